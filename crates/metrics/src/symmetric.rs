//! Symmetric products at little more than half the work.

use lcsc_torch::{Result, Tensor};

/// Columns of a block: of the products, those above the diagonal in a block are the only ones made in vain.
const BLOCK: i64 = 512;

/// Adds a·b to `sum` [D,D] on and below the diagonal, for a [D,N] and b [N,D] whose product is symmetric; above it `sum` is
/// arbitrary afterwards.
///
/// # Errors
/// The shapes do not fit, or the device has no room.
pub(crate) fn add_lower_product(sum: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let d = sum.size()[0];
    for start in (0..d).step_by(BLOCK as usize) {
        let (below, width) = (d - start, BLOCK.min(d - start));
        let mut block = sum.f_narrow(0, start, below)?.f_narrow(1, start, width)?;
        let _ = block.f_addmm_(&a.f_narrow(0, start, below)?, &b.f_narrow(1, start, width)?)?;
    }
    Ok(())
}

/// The symmetric matrix of a lower triangle.
///
/// # Errors
/// The device has no room.
pub(crate) fn mirrored(lower: &Tensor) -> Result<Tensor> {
    Ok(lower.f_tril(0)?.f_add_(&lower.f_tril(-1)?.f_tr()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Device, Kind, Stream, latents};

    #[test]
    fn blocks_give_the_whole_product() {
        for d in [3, 2 * BLOCK + 7] {
            let x =
                latents(0, Stream::Noise, 0, 20, [1, 1, d], Device::Cpu).unwrap().view([20, d]).to_kind(Kind::Double);
            let sum = Tensor::ones([d, d], (Kind::Double, Device::Cpu));
            add_lower_product(&sum, &x.tr(), &x).unwrap();
            let found = mirrored(&sum).unwrap();
            assert!((found - x.tr().matmul(&x) - 1.0).abs().max().double_value(&[]) < 1e-12);
        }
    }
}
