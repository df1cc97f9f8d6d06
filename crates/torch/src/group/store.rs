//! The store through which ranks find each other: c10d's `TCPStore`.

use super::ranks::Ranks;
use crate::bail;
use crate::error::{Error, Result};
use crate::shim::{c_string, checked, own_string};
use std::ffi::{c_char, c_void};
use std::time::Duration;

type Handle = *mut c_void;

unsafe extern "C" {
    fn lcsc_store_open(
        host: *const c_char,
        port: *mut u16,
        serves: bool,
        prefix: *const c_char,
        timeout_ms: i64,
        out: *mut Handle,
    ) -> *mut c_char;
    fn lcsc_store_close(store: Handle);
    fn lcsc_store_set(store: Handle, key: *const c_char, bytes: *const u8, length: usize) -> *mut c_char;
    fn lcsc_store_has(store: Handle, key: *const c_char, has: *mut bool) -> *mut c_char;
    fn lcsc_store_get(store: Handle, key: *const c_char, value: *mut *mut c_char) -> *mut c_char;
}

/// Texts by key, which all ranks see.
pub struct Store {
    handle: Handle,
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the shim gave this reference, and it is not used again.
        unsafe { lcsc_store_close(self.handle) }
    }
}

impl Store {
    /// A store on this machine for processes that are about to be started, and its port.
    ///
    /// # Errors
    /// The machine has no free port.
    pub fn serve() -> Result<(Self, u16)> {
        Self::new("127.0.0.1", 0, true, "", Duration::from_secs(10))
    }

    /// The store of these ranks; rank 0 serves it unless the launcher does.
    pub(super) fn open(ranks: &Ranks) -> Result<Self> {
        // As PyTorch: ranks that are started again must not see what those before them left.
        let prefix = if ranks.launcher_serves { format!("/worker/attempt_{}", ranks.restart) } else { String::new() };
        match Self::new(&ranks.host, ranks.port, ranks.serves(), &format!("{prefix}/lcsc"), ranks.timeout) {
            Ok((store, _)) => Ok(store),
            Err(e) => bail!(
                "rank {} of {} cannot {} {} (MASTER_ADDR and MASTER_PORT): {e}",
                ranks.rank,
                ranks.size,
                if ranks.serves() { "listen at" } else { "reach rank 0 at" },
                ranks.address()
            ),
        }
    }

    fn new(host: &str, mut port: u16, serves: bool, prefix: &str, timeout: Duration) -> Result<(Self, u16)> {
        let (host, prefix) = (c_string(host)?, c_string(prefix)?);
        let mut handle = std::ptr::null_mut();
        let timeout = timeout.as_millis() as i64;
        // SAFETY: strings and places to write to outlive the call.
        let opened =
            unsafe { lcsc_store_open(host.as_ptr(), &mut port, serves, prefix.as_ptr(), timeout, &mut handle) };
        checked("the store of the ranks", opened)?;
        Ok((Self { handle }, port))
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn set(&self, key: &str, value: &str) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: key and value outlive the call.
        checked("the store of the ranks", unsafe {
            lcsc_store_set(self.handle, key.as_ptr(), value.as_ptr(), value.len())
        })
    }

    pub(super) fn has(&self, key: &str) -> Result<bool> {
        let (key, mut has) = (c_string(key)?, false);
        // SAFETY: the key and the place to write to outlive the call.
        checked("the store of the ranks", unsafe { lcsc_store_has(self.handle, key.as_ptr(), &mut has) })?;
        Ok(has)
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<String>> {
        if !self.has(key)? {
            return Ok(None);
        }
        let (key, mut value) = (c_string(key)?, std::ptr::null_mut());
        // SAFETY: the key and the place to write to outlive the call.
        checked("the store of the ranks", unsafe { lcsc_store_get(self.handle, key.as_ptr(), &mut value) })?;
        own_string(value).map(Some).ok_or_else(|| Error::msg("the store of the ranks gave nothing"))
    }
}
