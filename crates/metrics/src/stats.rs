//! Mean and covariance of features, streamed in float64.

use crate::frechet::is_finite;
use crate::symmetric::{add_lower_product, mirrored};
use lcsc_torch::{Device, Kind, Result, Tensor, bail};

/// Mean and covariance of N feature vectors, float64 on the CPU.
#[derive(Debug)]
pub struct FeatureStats {
    /// N, the number of images; 0 where it is not known.
    pub n: i64,
    /// Mean, f64 `[D]`.
    pub mean: Tensor,
    /// Covariance with 1/(N−1), f64 `[D,D]`.
    pub cov: Tensor,
}

impl FeatureStats {
    /// The statistics of features `[N,D]` of any float type.
    ///
    /// # Errors
    /// N < 2.
    pub fn of(features: &Tensor) -> Result<FeatureStats> {
        let mut stats = StatsAccumulator::new(features.size().get(1).copied().unwrap_or(0), features.device());
        stats.add(features)?;
        stats.finish()
    }

    /// Statistics f64 `[D]` and `[D,D]` that were computed elsewhere, of an unknown number of images (N = 0).
    ///
    /// # Errors
    /// A value is not finite, or the covariance is not symmetric.
    pub fn from_parts(mean: Tensor, cov: Tensor) -> Result<FeatureStats> {
        if !is_finite(&mean) || !is_finite(&cov) {
            bail!("the statistics hold values that are not finite");
        }
        let asymmetry = cov.f_sub(&cov.f_tr()?)?.f_abs()?.f_max()?.double_value(&[]);
        if asymmetry > 1e-6 * cov.f_abs()?.f_max()?.double_value(&[]) {
            bail!("the covariance is not symmetric");
        }
        Ok(FeatureStats { n: 0, mean, cov })
    }

    /// D, the number of features.
    pub fn dim(&self) -> i64 {
        self.mean.size()[0]
    }

    /// A second handle on the same tensors.
    pub(crate) fn shallow_clone(&self) -> FeatureStats {
        FeatureStats { n: self.n, mean: self.mean.shallow_clone(), cov: self.cov.shallow_clone() }
    }

    /// The statistics of the same features times `factor`.
    pub(crate) fn scaled(self, factor: f64) -> FeatureStats {
        FeatureStats { n: self.n, mean: self.mean * factor, cov: self.cov * (factor * factor) }
    }
}

/// Gathers mean and covariance batch by batch.
///
/// Batches are centred before they are squared and merged pairwise (Chan, Golub & LeVeque 1979), so that a mean that
/// is large against the spread costs no digits.
#[derive(Debug)]
pub struct StatsAccumulator {
    n: i64,
    mean: Tensor,
    /// Sum of outer products of the centred features, f64 [D,D]; above the diagonal it is arbitrary.
    scatter: Tensor,
}

impl StatsAccumulator {
    /// Empty, for D = `dim` features that live on `device`.
    pub fn new(dim: i64, device: Device) -> Self {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, device));
        Self { n: 0, mean: zeros(&[dim]), scatter: zeros(&[dim, dim]) }
    }

    /// Number of images gathered.
    pub fn n(&self) -> i64 {
        self.n
    }

    /// Adds the features `[B,D]` of B images, of any float type.
    ///
    /// # Errors
    /// The shape is not `[B,D]`, or libtorch failed.
    pub fn add(&mut self, features: &Tensor) -> Result<()> {
        let dim = self.mean.size()[0];
        let b = match features.size()[..] {
            [b, d] if d == dim => b,
            _ => bail!("features have shape {:?}, expected [B, {dim}]", features.size()),
        };
        if b == 0 {
            return Ok(());
        }
        tch::no_grad(|| {
            let x = features.f_to_device_(self.mean.device(), Kind::Double, false, false)?;
            let mean = x.f_mean_dim(0i64, false, Kind::Double)?;
            let centred = x.f_sub(&mean)?;
            let delta = mean.f_sub(&self.mean)?;
            let total = self.n + b;
            add_lower_product(&self.scatter, &centred.f_tr()?, &centred)?;
            let _ = self.scatter.f_add_(&delta.f_outer(&delta)?.f_mul_scalar_((self.n * b) as f64 / total as f64)?)?;
            let _ = self.mean.f_add_(&(delta * (b as f64 / total as f64)))?;
            self.n = total;
            Ok(())
        })
    }

    /// Mean and covariance of all that was added; not finite where a feature was not.
    ///
    /// # Errors
    /// Fewer than two images were added.
    pub fn finish(self) -> Result<FeatureStats> {
        if self.n < 2 {
            bail!("a covariance needs the features of at least 2 images, but there are {}", self.n);
        }
        let cov = mirrored(&(self.scatter / (self.n - 1) as f64))?.f_to(Device::Cpu)?;
        Ok(FeatureStats { n: self.n, mean: self.mean.f_to(Device::Cpu)?, cov })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Stream, latents};

    fn normal(n: usize, d: i64) -> Tensor {
        latents(5, Stream::Features, 0, n, [d, 1, 1], Device::Cpu).unwrap().view([n as i64, d]).to_kind(Kind::Double)
    }

    fn largest(t: &Tensor) -> f64 {
        t.abs().max().double_value(&[])
    }

    #[test]
    fn values_of_three_points() {
        let stats = FeatureStats::of(&Tensor::from_slice2(&[[1f32, 0.0], [3.0, 0.0], [5.0, 3.0]])).unwrap();
        assert_eq!((stats.n, stats.dim()), (3, 2));
        assert_eq!(Vec::<f64>::try_from(&stats.mean).unwrap(), [3.0, 1.0]);
        assert_eq!(Vec::<f64>::try_from(stats.cov.view(-1)).unwrap(), [4.0, 3.0, 3.0, 3.0]);
    }

    #[test]
    fn streaming_equals_one_batch_also_far_from_zero() {
        let x = normal(1000, 6);
        let whole = FeatureStats::of(&x).unwrap();
        let far = &x + 1e6;
        let mut stats = StatsAccumulator::new(6, Device::Cpu);
        for (first, n) in [(0, 1), (1, 700), (701, 0), (701, 299)] {
            stats.add(&far.narrow(0, first, n)).unwrap();
        }
        let streamed = stats.finish().unwrap();
        assert_eq!(streamed.n, 1000);
        assert!(largest(&(&streamed.mean - 1e6 - &whole.mean)) < 1e-9);
        // Raw second moments would lose all but four digits here.
        assert!(largest(&(&streamed.cov - &whole.cov)) < 1e-9);
    }

    #[test]
    fn one_image_and_wrong_shapes_are_refused() {
        let text = FeatureStats::of(&normal(1, 3)).unwrap_err().to_string();
        assert!(text.contains("at least 2 images, but there are 1"), "{text}");
        let text = StatsAccumulator::new(4, Device::Cpu).add(&normal(2, 3)).unwrap_err().to_string();
        assert!(text.contains("[2, 3], expected [B, 4]"), "{text}");
    }
}
