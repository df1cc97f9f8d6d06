//! CUDA graphs: what is asked of a GPU is recorded once and asked for again by one call, which pays where a network is so small
//! that the host cannot ask as fast as the GPU computes.

use crate::error::{Error, Result};
use crate::library::function;
use crate::shim::checked;
use libloading::os::unix::Symbol;
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::Device;

type Handle = *mut c_void;
type Work = unsafe extern "C" fn(Handle) -> bool;
type Record = unsafe extern "C" fn(c_int, Work, Handle, *mut Handle) -> *mut c_char;
type Replay = unsafe extern "C" fn(Handle) -> *mut c_char;
type Free = unsafe extern "C" fn(Handle);

/// Recorded work of a GPU.
pub struct Graph {
    handle: Handle,
    replay: Symbol<Replay>,
    free: Symbol<Free>,
}

// SAFETY: a graph may be replayed by any thread, one at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the library gave this handle, and it is not used again.
        unsafe { (self.free)(self.handle) }
    }
}

impl Graph {
    /// Records what `work` asks of the GPU: always the same operations on tensors in the same places, without waiting for it. It
    /// is called twice. Its results hold values only after a [replay](Self::replay).
    ///
    /// # Errors
    /// The work failed, or cannot be recorded; the library of scripts/build_cuda.sh is missing.
    pub fn record(device: Device, mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        let Device::Cuda(index) = device else { return Err(Error::msg("only work of a GPU can be recorded")) };
        // SAFETY: these are the functions' types in csrc/graph.cpp.
        let (record, replay, free) = unsafe {
            (function::<Record>("lcsc_graph_record")?, function("lcsc_graph_replay")?, function("lcsc_graph_free")?)
        };
        // No panic may pass through C++: it goes on after the recording has ended.
        let mut outcome = Ok(Ok(()));
        let mut work = || {
            outcome = catch_unwind(AssertUnwindSafe(&mut work));
            matches!(outcome, Ok(Ok(())))
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: the closure and the place to write to outlive the call.
        let recorded = unsafe { record(index as c_int, trampoline(&work), (&raw mut work).cast(), &mut handle) };
        match outcome {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(of_work) => of_work?,
        }
        checked("recording a CUDA graph", recorded)?;
        Ok(Self { handle, replay, free })
    }

    /// Has the GPU do the work again, after all that was asked of it before.
    ///
    /// # Errors
    /// CUDA failed.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: the handle is alive.
        checked("replaying a CUDA graph", unsafe { (self.replay)(self.handle) })
    }
}

/// A C function that calls a closure of this type behind its argument.
fn trampoline<F: FnMut() -> bool>(_: &F) -> Work {
    unsafe extern "C" fn call<F: FnMut() -> bool>(work: Handle) -> bool {
        // SAFETY: the argument is what was passed beside this function.
        unsafe { (*work.cast::<F>())() }
    }
    call::<F>
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_a_cpu_is_not_recorded() {
        let error = Graph::record(Device::Cpu, || Ok(())).err().unwrap();
        assert_eq!(error.to_string(), "only work of a GPU can be recorded");
    }
}
