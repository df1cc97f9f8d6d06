//! What the machine can do at most.

use super::cost::Cost;
use super::timing::{Timer, median};
use lcsc_torch::{Kind, Result, Tensor};
use serde::Serialize;

/// Values of the vector that is summed: 512 MiB in f32, far more than a cache.
const VECTOR: i64 = 1 << 27;
/// Side of the matrices that are multiplied.
const SIDE: i64 = 2048;

/// Measured ceilings.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ceilings {
    /// Reading memory: the sum of a long f32 vector, bytes a second.
    pub read: f64,
    /// Copying memory: bytes read and written a second.
    pub copy: f64,
    /// Products of f32 matrices, floating-point operations a second.
    pub product: f64,
}

impl Ceilings {
    /// # Errors
    /// There is no room.
    pub fn measure(timer: &Timer) -> Result<Self> {
        let float = (Kind::Float, timer.device);
        let (from, mut to) = (Tensor::f_ones([VECTOR], float)?, Tensor::f_zeros([VECTOR], float)?);
        let bytes = 4.0 * VECTOR as f64;
        let read = bytes / median(&timer.seconds(|| Ok(from.f_sum(Kind::Float)?))?);
        let copy = 2.0 * bytes / median(&timer.seconds(|| Ok(to.f_copy_(&from)?))?);
        let (a, b) = (Tensor::f_rand([SIDE, SIDE], float)?, Tensor::f_rand([SIDE, SIDE], float)?);
        let product = 2.0 * (SIDE as f64).powi(3) / median(&timer.seconds(|| Ok(a.f_matmul(&b)?))?);
        Ok(Self { read, copy, product })
    }

    /// The share of its ceiling that a work of this cost reaches: of products where it computes, else of reading.
    pub fn fraction(&self, cost: Cost, seconds: f64) -> Option<f64> {
        match cost {
            Cost { flops: Some(flops), .. } => Some(flops / seconds / self.product),
            Cost { bytes: Some(bytes), .. } => Some(bytes / seconds / self.read),
            Cost { flops: None, bytes: None } => None,
        }
    }
}

impl std::fmt::Display for Ceilings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { read, copy, product } = self;
        write!(
            f,
            "reads {:.1} GB/s, copies {:.1} GB/s, f32 products {:.0} GFLOP/s",
            read / 1e9,
            copy / 1e9,
            product / 1e9
        )
    }
}
