//! Kernel Inception Distance (Bińkowski et al. 2018, arXiv 1801.01401): an unbiased squared maximum mean discrepancy.

use lcsc_torch::{Kind, Result, Stream, Tensor, bail, permutation};
use serde::{Deserialize, Serialize};

/// Images a block, as in the paper's experiments.
const BLOCK: i64 = 1000;

/// The mean over blocks of images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kid {
    /// The estimate; unbiased, so that it can be below zero.
    pub mean: f64,
    /// Standard deviation over blocks by the root of their number; none for a single block.
    pub standard_error: Option<f64>,
    /// Images a block.
    pub block: i64,
}

/// The unbiased estimate of MMD² between x `[m,D]` and y `[n,D]` with the kernel (xᵀy/D + 1)³, in float64.
///
/// # Errors
/// Fewer than two vectors on a side, other shapes, or libtorch failed.
pub fn squared_mmd(x: &Tensor, y: &Tensor) -> Result<f64> {
    let (m, n, dim) = match (&x.size()[..], &y.size()[..]) {
        (&[m, d], &[n, d1]) if d == d1 && m > 1 && n > 1 => (m as f64, n as f64, d as f64),
        (x, y) => bail!("KID is of features [m, D] and [n, D] with m and n of at least 2, not {x:?} and {y:?}"),
    };
    tch::no_grad(|| {
        let (x, y) = (x.f_to_kind(Kind::Double)?, y.f_to_device_(x.device(), Kind::Double, false, false)?);
        let kernel = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
            Ok((a.f_matmul(&b.f_tr()?)? / dim + 1.0).f_pow_tensor_scalar(3)?)
        };
        let sum = |k: &Tensor| -> Result<f64> { Ok(k.f_sum(Kind::Double)?.double_value(&[])) };
        // Each vector apart from itself.
        let within =
            |k: Tensor, n: f64| -> Result<f64> { Ok((sum(&k)? - sum(&k.f_diagonal(0, 0, 1)?)?) / (n * (n - 1.0))) };
        Ok(within(kernel(&x, &x)?, m)? + within(kernel(&y, &y)?, n)? - 2.0 * sum(&kernel(&x, &y)?)? / (m * n))
    })
}

/// Gathers generated features block by block; each block is compared with the next block of the real ones, which begin
/// anew when they are used up. What is left of the last block does not count.
#[derive(Debug)]
pub(crate) struct KidBlocks {
    real: Tensor,
    block: i64,
    waiting: Vec<Tensor>,
    estimates: Vec<f64>,
}

impl KidBlocks {
    /// For `n` generated images against the features `real` [M,D], whose blocks are drawn at random: datasets often lie
    /// class by class.
    pub(crate) fn new(real: &Tensor, n: i64) -> Result<Self> {
        let order = permutation(real.size()[0] as usize, 0, Stream::Features, 0);
        let order = Tensor::f_from_slice(&order)?.f_to(real.device())?;
        Ok(Self::of(real.f_index_select(0, &order)?, BLOCK.min(n)))
    }

    fn of(real: Tensor, block: i64) -> Self {
        let block = block.min(real.size()[0]);
        Self { real, block, waiting: Vec::new(), estimates: Vec::new() }
    }

    /// Adds features [B,D].
    pub(crate) fn add(&mut self, features: &Tensor) -> Result<()> {
        self.waiting.push(features.shallow_clone());
        let mut all = Tensor::f_cat(&self.waiting, 0)?;
        while all.size()[0] >= self.block {
            let blocks = self.real.size()[0] / self.block;
            let first = self.estimates.len() as i64 % blocks * self.block;
            let real = self.real.f_narrow(0, first, self.block)?;
            self.estimates.push(squared_mmd(&all.f_narrow(0, 0, self.block)?, &real)?);
            all = all.f_narrow(0, self.block, all.size()[0] - self.block)?;
        }
        // A copy: a view would keep all that came before alive.
        self.waiting = vec![all.f_alias_copy()?];
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Kid> {
        let b = self.estimates.len() as f64;
        if self.estimates.is_empty() {
            bail!("KID needs at least 2 images on both sides");
        }
        let mean = self.estimates.iter().sum::<f64>() / b;
        let squares = self.estimates.iter().map(|e| (e - mean).powi(2)).sum::<f64>();
        let standard_error = (b > 1.0).then(|| (squares / (b - 1.0) / b).sqrt());
        Ok(Kid { mean, standard_error, block: self.block })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata::Expected;
    use lcsc_torch::Device;

    #[test]
    fn values_are_those_of_the_definition() {
        let e = Expected::read();
        let found = squared_mmd(&e.tensor("fake"), &e.tensor("real")).unwrap();
        assert!((found - e.number("squared_mmd")).abs() < 1e-12, "{found}");
        assert!(squared_mmd(&e.tensor("fake").narrow(0, 0, 1), &e.tensor("real")).is_err());
        // In batches that do not fit the blocks; the last images fill none.
        let (fake, real) = (e.tensor("fake"), e.tensor("real"));
        let mut blocks = KidBlocks::of(real, 10);
        for batch in Tensor::cat(&[&fake, &fake.narrow(0, 0, 9)], 0).split(7, 0) {
            blocks.add(&batch).unwrap();
        }
        let expected = e.numbers("mmd_blocks_of_10");
        let mean = expected.iter().sum::<f64>() / 3.0;
        let squares = expected.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        let kid = blocks.finish().unwrap();
        assert!((kid.mean - mean).abs() < 1e-12 && kid.block == 10, "{kid:?}");
        assert!((kid.standard_error.unwrap() - (squares / 6.0).sqrt()).abs() < 1e-12, "{kid:?}");
    }

    #[test]
    fn real_images_in_the_order_of_their_classes_are_no_other_distribution() {
        let noise = |seed| lcsc_torch::latents(seed, Stream::Noise, 0, 4000, [2, 1, 1], Device::Cpu).unwrap();
        let features = |class: Tensor, seed| noise(seed).view([4000, 2]) + class.unsqueeze(1) * 5.0;
        let image = Tensor::arange(4000, (Kind::Float, Device::Cpu));
        let sorted = features(image.ge(2000.0).to_kind(Kind::Float), 1);
        let mixed = features(image.remainder(2.0), 2);
        let mut blocks = KidBlocks::new(&sorted, 4000).unwrap();
        blocks.add(&mixed).unwrap();
        let kid = blocks.finish().unwrap();
        let apart = squared_mmd(&mixed.narrow(0, 0, 1000), &sorted.narrow(0, 0, 1000)).unwrap();
        assert!(kid.mean.abs() < 0.01 * apart, "{kid:?} {apart}");
    }
}
