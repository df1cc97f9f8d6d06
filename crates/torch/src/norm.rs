//! Group norm with all that follows it in a UNet's block, as one operation of a GPU.

use crate::error::Result;
use crate::guard::unguarded;
use crate::shim::{c_string, checked};
use std::ffi::{c_char, c_void};
use std::path::Path;
use tch::Tensor;

unsafe extern "C" {
    fn lcsc_set_cuda_path(path: *const c_char);
    fn lcsc_group_norm(
        x: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        scale: *const c_void,
        shift: *const c_void,
        groups: i64,
        eps: f64,
        silu: bool,
        dropout: f64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// A group norm (Wu & He 2018) and what follows it.
#[derive(Debug, Clone, Copy)]
pub struct NormOperands<'t> {
    /// Gain of each channel, `[C]`.
    pub weight: &'t Tensor,
    /// Offset of each channel, `[C]`.
    pub bias: &'t Tensor,
    /// Groups, a divisor of C; at most 256 channels each.
    pub groups: i64,
    /// Added to the variance.
    pub eps: f64,
    /// Scale and shift of each image, `[B,C]` both.
    pub modulation: Option<[&'t Tensor; 2]>,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Probability, in [0, 1), with which a value becomes zero in the end, the others growing to keep the mean. The mask follows
    /// torch's global generator, but is not that of torch's own dropout.
    pub dropout: f64,
}

/// `dropout(silu(group_norm(x)·(1 + scale) + shift))` of `x` `[B,C,H,W]` on a GPU in f32, bf16 or f16, whatever of it is asked for;
/// contiguous or with the channels last, as `x` is. It is computed in f32 and rounded once. It has a gradient, but no second one.
/// The kernel is compiled when a GPU first needs it, by libtorch's NVRTC.
///
/// # Panics
/// As tch's own operations do, to become an error at the next [`catch`](crate::catch): `x` is not on a GPU, operands have another
/// type or device, NVRTC is missing or CUDA failed.
pub fn fused_group_norm(x: &Tensor, operands: NormOperands) -> Tensor {
    unguarded(launched(x, operands))
}

fn launched(x: &Tensor, operands: NormOperands) -> Result<Tensor> {
    let handle = |tensor: &Tensor| tensor.as_ptr().cast();
    let [scale, shift] = operands.modulation.map_or([std::ptr::null(); 2], |pair| pair.map(handle));
    let mut out = std::ptr::null_mut();
    // SAFETY: torch-sys's pointers are to `at::Tensor`, alive as long as the borrows; the place to write to outlives the call.
    checked("a fused group norm", unsafe {
        lcsc_group_norm(
            handle(x),
            handle(operands.weight),
            handle(operands.bias),
            scale,
            shift,
            operands.groups,
            operands.eps,
            operands.silu,
            operands.dropout,
            &mut out,
        )
    })?;
    // SAFETY: the shim gave a new `at::Tensor` for us to keep.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// Where the library lies that NVRTC and CUDA's driver are linked to.
pub(crate) fn set_cuda_path(path: &Path) -> Result<()> {
    let path = c_string(&path.to_string_lossy())?;
    // SAFETY: the text outlives the call, which copies it.
    unsafe { lcsc_set_cuda_path(path.as_ptr()) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Kind, catch};

    #[test]
    fn without_a_gpu_it_is_an_error() {
        let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let (x, weight) = (ones(&[2, 8, 4, 4]), ones(&[8]));
        let norm = NormOperands {
            weight: &weight,
            bias: &weight,
            groups: 2,
            eps: 1e-5,
            modulation: None,
            silu: true,
            dropout: 0.0,
        };
        let text = catch("trying", || Ok(fused_group_norm(&x, norm))).unwrap_err().to_string();
        assert!(
            text.contains("during trying") && text.contains("no fused group norm of [2, 8, 4, 4] on cpu"),
            "{text}"
        );
    }
}
