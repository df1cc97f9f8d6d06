//! What libtorch has and tch does not, through `csrc/shim.cpp`.

use crate::error::{Error, Result, first_line};
use crate::optim::Verdict;
use std::ffi::{CStr, CString, c_char, c_void};
use tch::Tensor;

/// A pointer to an `at::Tensor`, which is itself a handle: values change through a `const` one.
type Handle = *const c_void;

unsafe extern "C" {
    fn lcsc_allow_tf32(allow: bool) -> *mut c_char;
    fn lcsc_fused_adam(
        theta: Handle,
        grad: Handle,
        exp_avg: Handle,
        exp_avg_sq: Handle,
        steps: Handle,
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        divisor: Handle,
        left_out: Handle,
    ) -> *mut c_char;
}

/// Whether CUDA may round the inputs of f32 convolutions and matrix products to TF32, in this process.
///
/// # Errors
/// libtorch failed.
pub fn allow_tf32(allow: bool) -> Result<()> {
    // SAFETY: takes a plain value, and gives what `checked` expects.
    checked("setting the precision of f32", unsafe { lcsc_allow_tf32(allow) })
}

/// `at::_fused_adam_`: Adam's step number `steps` f32 [1] in one pass over vectors f32, contiguous and of one shape.
pub(crate) fn fused_adam(
    theta: &Tensor,
    grad: &Tensor,
    [exp_avg, exp_avg_sq, steps]: [&Tensor; 3],
    lr: f64,
    (betas, eps): ([f64; 2], f64),
    verdict: &Verdict,
) -> Result<()> {
    let handle = |tensor: &Tensor| tensor.as_ptr().cast();
    let divisor = verdict.divisor.as_ref().map_or(std::ptr::null(), handle);
    // SAFETY: torch-sys's pointers are to `at::Tensor`, alive as long as the borrows; the rest are plain values.
    checked("the optimizer's step", unsafe {
        lcsc_fused_adam(
            handle(theta),
            handle(grad),
            handle(exp_avg),
            handle(exp_avg_sq),
            handle(steps),
            lr,
            betas[0],
            betas[1],
            eps,
            divisor,
            handle(&verdict.left_out),
        )
    })
}

/// The error that a function of the shim gave.
pub(crate) fn checked(during: &str, message: *mut c_char) -> Result<()> {
    match own_string(message) {
        None => Ok(()),
        Some(text) => Err(Error::Torch { during: during.into(), message: first_line(&text) }),
    }
}

/// A C string that the shim made with `strdup` for us to free; none where it gave null.
pub(crate) fn own_string(string: *mut c_char) -> Option<String> {
    if string.is_null() {
        return None;
    }
    // SAFETY: it is not null, ends with a zero, and nobody else has it.
    let text = unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned();
    unsafe { libc::free(string.cast()) };
    Some(text)
}

/// A text for the shim.
pub(crate) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Message(format!("`{text}` holds a zero byte")))
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
