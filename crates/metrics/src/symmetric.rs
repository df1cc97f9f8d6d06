//! Symmetric products at little more than half the work.

use lcsc_torch::{Result, Tensor};

/// Columns of a block: of the products, those above the diagonal in a block are the only ones made in vain.
const BLOCK: i64 = 512;

/// The lower triangle of a·b [D,D] for a [D,N] and b [N,D] whose product is symmetric; above it values are arbitrary.
///
/// # Errors
/// The shapes do not fit, or the device has no room.
pub(crate) fn lower_product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let d = b.size()[1];
    if d <= BLOCK {
        return Ok(a.f_matmul(b)?);
    }
    let out = a.f_new_zeros([d, d], (a.kind(), a.device()))?;
    for start in (0..d).step_by(BLOCK as usize) {
        let (below, width) = (d - start, BLOCK.min(d - start));
        let block = a.f_narrow(0, start, below)?.f_matmul(&b.f_narrow(1, start, width)?)?;
        out.f_narrow(0, start, below)?.f_narrow(1, start, width)?.f_copy_(&block)?;
    }
    Ok(out)
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
            let found = mirrored(&lower_product(&x.tr(), &x).unwrap()).unwrap();
            assert!((found - x.tr().matmul(&x)).abs().max().double_value(&[]) < 1e-12);
        }
    }
}
