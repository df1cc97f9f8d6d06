//! What libtorch has and tch does not, through `csrc/shim.cpp`.

use crate::error::{Error, Result, first_line};
use std::ffi::{CStr, c_char};

unsafe extern "C" {
    fn lcsc_allow_tf32(allow: bool) -> *mut c_char;
}

/// Whether CUDA may round the inputs of f32 convolutions and matrix products to TF32, in this process.
///
/// # Errors
/// libtorch failed.
pub fn allow_tf32(allow: bool) -> Result<()> {
    // SAFETY: takes a plain value, and gives what `checked` expects.
    checked("setting the precision of f32", unsafe { lcsc_allow_tf32(allow) })
}

/// The error that a function of the shim gave.
fn checked(during: &str, message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim gives a C string that it made with `strdup`, for us to free.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    unsafe { libc::free(message.cast()) };
    Err(Error::Torch { during: during.into(), message: first_line(&text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn lcsc_allows_tf32() -> bool;
    }

    #[test]
    fn tf32_is_allowed_and_forbidden() {
        for allow in [true, false] {
            allow_tf32(allow).unwrap();
            assert_eq!(unsafe { lcsc_allows_tf32() }, allow);
        }
    }
}
