//! What libtorch has and tch does not, through `csrc/shim.cpp`.

use crate::error::{Error, Result, first_line};
use crate::optim::Verdict;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use tch::{Device, Tensor};

/// A pointer to an `at::Tensor`, which is itself a handle: values change through a `const` one.
type Handle = *const c_void;

unsafe extern "C" {
    fn lcsc_allow_tf32(allow: bool) -> *mut c_char;
    fn lcsc_exact_products_begin() -> *mut c_void;
    fn lcsc_exact_products_end(guard: *mut c_void);
    fn lcsc_choose_kernels(deterministic: bool) -> *mut c_char;
    fn lcsc_use_device(index: c_int) -> *mut c_char;
    fn lcsc_used_memory(index: c_int, used: *mut u64) -> *mut c_char;
    fn lcsc_empty_cache() -> *mut c_char;
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

/// Whether CUDA may round the inputs of f32 convolutions and matrix products to TF32, in this process. libtorch's default is that
/// convolutions are and products are not.
///
/// # Errors
/// libtorch failed.
pub fn allow_tf32(allow: bool) -> Result<()> {
    // SAFETY: takes a plain value, and gives what `checked` expects.
    checked("setting the precision of f32", unsafe { lcsc_allow_tf32(allow) })
}

/// Makes a GPU the one that this thread uses where nothing else is said.
///
/// # Errors
/// It is not there.
pub(crate) fn use_device(index: usize) -> Result<()> {
    // SAFETY: takes a plain value, and gives what `checked` expects.
    checked("choosing the GPU", unsafe { lcsc_use_device(index as c_int) })
}

/// Bytes in use on a GPU, by all processes.
///
/// # Errors
/// It is not there.
pub(crate) fn used_memory(index: usize) -> Result<u64> {
    let mut used = 0;
    // SAFETY: the place to write to outlives the call.
    checked("asking a GPU for its memory", unsafe { lcsc_used_memory(index as c_int, &mut used) })?;
    Ok(used)
}

/// What `work` gives, with the matrix products of f32 on a GPU in full precision also where TF32 is allowed: for products that
/// are no layers of a network.
pub fn exact_products<T>(work: impl FnOnce() -> T) -> T {
    struct Guard(*mut c_void);
    impl Drop for Guard {
        fn drop(&mut self) {
            // SAFETY: the shim gave this pointer in this thread, and it is not used again.
            unsafe { lcsc_exact_products_end(self.0) }
        }
    }
    // SAFETY: takes nothing.
    let _guard = Guard(unsafe { lcsc_exact_products_begin() });
    work()
}

/// The kernels of this process on GPUs: the fastest of cuDNN's, which are tried for each new shape and may add up in another
/// order each time; or where `deterministic` those that give the same bits on the same GPU, as far as libtorch has them.
///
/// # Errors
/// libtorch failed.
pub fn choose_kernels(deterministic: bool) -> Result<()> {
    // SAFETY: takes a plain value, and gives what `checked` expects.
    checked("choosing kernels", unsafe { lcsc_choose_kernels(deterministic) })
}

/// Gives back memory of freed tensors that libtorch keeps for later ones: in pieces of the wrong size it is of no use. On the CPU
/// there is nothing to do.
///
/// # Errors
/// libtorch failed.
pub fn release_memory(device: Device) -> Result<()> {
    match device {
        // SAFETY: takes nothing, and gives what `checked` expects.
        Device::Cuda(_) => checked("giving back memory", unsafe { lcsc_empty_cache() }),
        Device::Cpu | Device::Mps | Device::Vulkan => Ok(()),
    }
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
        fn lcsc_tf32_bits(bits: *mut c_int) -> *mut c_char;
        fn lcsc_products_are_exact() -> bool;
        fn lcsc_kernel_bits() -> c_int;
    }

    #[test]
    fn memory_of_the_cpu_needs_no_release_and_that_of_a_missing_gpu_is_an_error() {
        release_memory(Device::Cpu).unwrap();
        if !tch::Cuda::is_available() {
            let text = release_memory(Device::Cuda(0)).unwrap_err().to_string();
            assert!(text.contains("giving back memory") && text.contains("cuda"), "{text}");
        }
    }

    #[test]
    fn tf32_is_allowed_and_forbidden() {
        for allow in [true, false, true, false] {
            allow_tf32(allow).unwrap();
            let mut bits = -1;
            checked("asking", unsafe { lcsc_tf32_bits(&mut bits) }).unwrap();
            // Convolutions, recurrent layers and products of a GPU; never products of the CPU.
            assert_eq!(bits, if allow { 0b111 } else { 0 });
        }
    }

    #[test]
    fn products_are_exact_inside_and_only_there() {
        let are_exact = || unsafe { lcsc_products_are_exact() };
        assert!(!are_exact());
        assert!(exact_products(|| exact_products(are_exact) && are_exact()));
        assert!(!are_exact());
        assert!(std::panic::catch_unwind(|| exact_products(|| panic!("inside"))).is_err());
        assert!(!are_exact());
    }

    #[test]
    fn kernels_are_fast_or_deterministic() {
        for (deterministic, bits) in [(false, 0b001), (true, 0b110), (false, 0b001)] {
            choose_kernels(deterministic).unwrap();
            assert_eq!(unsafe { lcsc_kernel_bits() }, bits);
        }
    }
}
