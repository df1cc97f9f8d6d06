//! c10d's collectives, by Gloo and by NCCL.

use super::ranks::Ranks;
use super::store::Store;
use crate::error::Result;
use crate::library::function;
use crate::shim::checked;
use std::ffi::{c_char, c_int, c_void};
use std::time::Duration;
use tch::Tensor;

type Handle = *mut c_void;
type OpenNccl = unsafe extern "C" fn(Handle, c_int, c_int, c_int, i64, *mut Handle) -> *mut c_char;

unsafe extern "C" {
    fn lcsc_group_gloo(
        store: Handle,
        one_machine: bool,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        out: *mut Handle,
    ) -> *mut c_char;
    fn lcsc_group_abort(group: Handle);
    fn lcsc_group_close(group: Handle);
    fn lcsc_all_reduce(group: Handle, tensor: *const c_void) -> *mut c_char;
    fn lcsc_broadcast(group: Handle, tensor: *const c_void, root: c_int, timeout_ms: i64) -> *mut c_char;
    fn lcsc_all_gather(group: Handle, all: *const c_void, own: *const c_void) -> *mut c_char;
}

/// A `c10d::Backend`.
pub(super) struct Backend {
    handle: Handle,
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: the shim gave this reference, and it is not used again.
        unsafe { lcsc_group_close(self.handle) }
    }
}

impl Backend {
    /// For tensors in host memory.
    pub(super) fn gloo(store: &Store, ranks: &Ranks) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        let (rank, size, timeout) = (ranks.rank as c_int, ranks.size as c_int, ranks.timeout.as_millis() as i64);
        // SAFETY: the store and the place to write to outlive the call.
        let made = unsafe { lcsc_group_gloo(store.handle(), ranks.one_machine, rank, size, timeout, &mut handle) };
        checked("connecting the ranks (GLOO_SOCKET_IFNAME names a network interface to use)", made)?;
        Ok(Self { handle })
    }

    /// For tensors of CUDA device `index`, once libtorch's CUDA half is open.
    pub(super) fn nccl(store: &Store, ranks: &Ranks, index: usize) -> Result<Self> {
        // SAFETY: this is the function's type in csrc/nccl.cpp.
        let open = unsafe { function::<OpenNccl>("lcsc_group_nccl")? };
        let (rank, size, index) = (ranks.rank as c_int, ranks.size as c_int, index as c_int);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the store and the place to write to outlive the call.
        let made = unsafe { open(store.handle(), rank, size, index, ranks.timeout.as_millis() as i64, &mut handle) };
        checked("connecting the GPUs of the ranks by NCCL", made)?;
        Ok(Self { handle })
    }

    /// Gives up what is under way.
    pub(super) fn abort(&self) {
        // SAFETY: the handle is alive.
        unsafe { lcsc_group_abort(self.handle) }
    }

    /// Σ over all ranks, in place.
    pub(super) fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: torch-sys's pointers are to `at::Tensor`, alive as long as the borrows.
        checked("summing over the ranks", unsafe { lcsc_all_reduce(self.handle, tensor.as_ptr().cast()) })
    }

    pub(super) fn broadcast(&self, tensor: &Tensor, timeout: Duration) -> Result<()> {
        let timeout = timeout.as_millis() as i64;
        // SAFETY: as above.
        checked("receiving from rank 0", unsafe { lcsc_broadcast(self.handle, tensor.as_ptr().cast(), 0, timeout) })
    }

    /// `own` of all ranks into `all`, which has as many elements a rank.
    pub(super) fn all_gather(&self, all: &Tensor, own: &Tensor) -> Result<()> {
        // SAFETY: as above.
        checked("gathering from the ranks", unsafe {
            lcsc_all_gather(self.handle, all.as_ptr().cast(), own.as_ptr().cast())
        })
    }
}
