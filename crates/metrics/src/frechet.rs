//! Fréchet distance between Gaussians (Dowson & Landau 1982), as FID uses it (Heusel et al. 2017, arXiv 1706.08500).

use crate::stats::FeatureStats;
use crate::symmetric::add_lower_product;
use lcsc_torch::{Device, Group, Kind, Result, Tensor, bail};

/// Reference statistics with the root of their covariance, which every distance needs.
#[derive(Debug)]
pub struct Reference {
    stats: FeatureStats,
    /// R = √Σr, symmetric, f64 [D,D].
    pub(crate) root: Tensor,
}

impl Reference {
    /// Takes the root of the reference's covariance, in float64 on the CPU.
    ///
    /// # Errors
    /// The statistics are not finite, or their covariance is none.
    pub fn new(stats: FeatureStats) -> Result<Reference> {
        if !is_finite(&stats.mean) || !is_finite(&stats.cov) {
            bail!("the reference statistics hold values that are not finite: compute them again from the real images");
        }
        let (values, vectors) = stats.cov.f_linalg_eigh("L")?;
        let (least, most) = (values.min().double_value(&[]), values.max().double_value(&[]));
        if least < -1e-6 * most.abs() {
            bail!("the reference's covariance has the negative eigenvalue {least:e}: it is no covariance");
        }
        let root = vectors.f_mul(&values.f_clamp_min(0.0)?.f_sqrt()?)?.f_matmul(&vectors.f_tr()?)?;
        Ok(Reference { stats, root })
    }

    /// Of rank 0: lets the others have it by [`Self::shared`].
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn share(&self, group: &Group) -> Result<()> {
        let parts = [&self.stats.mean, &self.stats.cov, &self.root];
        parts.into_iter().try_for_each(|part| group.broadcast(&part.f_contiguous()?))
    }

    /// Of the others: that of rank 0, of `dim` features.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn shared(dim: i64, group: &Group) -> Result<Reference> {
        let part = |shape: &[i64]| {
            let part = Tensor::f_zeros(shape, (Kind::Double, Device::Cpu))?;
            group.broadcast(&part).map(|()| part)
        };
        let stats = FeatureStats { n: 0, mean: part(&[dim])?, cov: part(&[dim, dim])? };
        Ok(Reference { stats, root: part(&[dim, dim])? })
    }

    /// The statistics that this reference was made of.
    pub fn stats(&self) -> &FeatureStats {
        &self.stats
    }

    /// ‖μr−μ‖² + Tr(Σr+Σ) − 2·Tr(√Σr·Σ·√Σr)^½; infinite where the candidate's statistics are not finite.
    ///
    /// The last term is the sum of the roots of a symmetric matrix's eigenvalues: no complex parts, and rank-deficient
    /// covariances need nothing added to their diagonal.
    ///
    /// # Errors
    /// The numbers of features differ, or the eigenvalues did not converge.
    pub fn distance(&self, candidate: &FeatureStats) -> Result<f64> {
        if candidate.dim() != self.stats.dim() {
            bail!("statistics of {} features cannot be compared with {}", candidate.dim(), self.stats.dim());
        }
        let product = self.root.f_zeros_like()?; // its eigenvalues are read from the lower triangle
        add_lower_product(&product, &self.root.f_matmul(&candidate.cov)?, &self.root)?;
        let shift = candidate.mean.f_sub(&self.stats.mean)?;
        let rest = self.rest(&shift, candidate.cov.f_trace()?.double_value(&[]));
        // Eigenvalues of NaN are an error in LAPACK.
        if !rest.is_finite() || !is_finite(&product) {
            return Ok(f64::INFINITY);
        }
        Ok(rest - 2.0 * sum_of_roots(&product.f_linalg_eigvalsh("L")?))
    }

    /// ‖μ−μr‖² + Tr(Σr+Σ) for μ−μr and Tr Σ.
    pub(crate) fn rest(&self, shift: &Tensor, trace: f64) -> f64 {
        (shift.square().sum(Kind::Double) + self.stats.cov.trace()).double_value(&[]) + trace
    }
}

/// Σ√λ of eigenvalues f64 [D] that are not negative but for rounding.
pub(crate) fn sum_of_roots(eigenvalues: &Tensor) -> f64 {
    eigenvalues.clamp_min(0.0).sqrt().sum(Kind::Double).double_value(&[])
}

/// The Fréchet distance of two sets of statistics; infinite where one of them is not finite.
///
/// # Errors
/// The numbers of features differ, or the eigenvalues did not converge.
pub fn frechet_distance(a: &FeatureStats, b: &FeatureStats) -> Result<f64> {
    if !is_finite(&a.mean) || !is_finite(&a.cov) {
        return Ok(f64::INFINITY);
    }
    Reference::new(a.shallow_clone())?.distance(b)
}

/// Whether all values of a tensor are finite.
pub(crate) fn is_finite(t: &Tensor) -> bool {
    t.isfinite().all().int64_value(&[]) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Stream, latents};

    fn gaussian(mean: &[f64], variances: &[f64]) -> FeatureStats {
        let cov = Tensor::from_slice(variances).diag(0);
        FeatureStats { n: 100, mean: Tensor::from_slice(mean), cov }
    }

    fn samples(seed: u64, n: usize, d: i64) -> Tensor {
        latents(seed, Stream::Features, 0, n, [d, 1, 1], Device::Cpu).unwrap().view([n as i64, d])
    }

    #[test]
    fn diagonal_gaussians_have_their_closed_form() {
        let d = frechet_distance(&gaussian(&[1.0], &[4.0]), &gaussian(&[-2.0], &[9.0])).unwrap();
        assert!((d - 10.0).abs() < 1e-12, "{d}"); // 3² + (2−3)²
        let a = gaussian(&[0.0, 1.0, 0.0], &[1.0, 16.0, 0.0]);
        let b = gaussian(&[2.0, 1.0, 0.0], &[9.0, 1.0, 25.0]);
        for d in [frechet_distance(&a, &b).unwrap(), frechet_distance(&b, &a).unwrap()] {
            assert!((d - (4.0 + 4.0 + 9.0 + 25.0)).abs() < 1e-12, "{d}");
        }
    }

    #[test]
    fn rotating_both_changes_nothing() {
        let (a, b) = (gaussian(&[0.0, 1.0], &[1.0, 16.0]), gaussian(&[2.0, 1.0], &[9.0, 1.0]));
        let turn = Tensor::from_slice2(&[[0.6f64, -0.8], [0.8, 0.6]]);
        let turned = |s: &FeatureStats| FeatureStats {
            n: s.n,
            mean: turn.matmul(&s.mean),
            cov: turn.matmul(&s.cov).matmul(&turn.tr()),
        };
        let d = frechet_distance(&turned(&a), &turned(&b)).unwrap();
        assert!((d - 17.0).abs() < 1e-12, "{d}");
    }

    #[test]
    fn identical_sets_are_at_distance_zero_also_without_full_rank() {
        for n in [20, 2000] {
            let stats = FeatureStats::of(&(samples(1, n, 64) * 3.0)).unwrap();
            let d = frechet_distance(&stats, &stats).unwrap();
            assert!(d.abs() < 1e-3, "{n} samples: {d}");
        }
    }

    #[test]
    fn what_is_not_finite_is_infinitely_far() {
        let good = FeatureStats::of(&samples(1, 50, 4)).unwrap();
        let mut features = samples(2, 50, 4);
        let _ = features.get(3).fill_(f64::NAN);
        let bad = FeatureStats::of(&features).unwrap();
        assert_eq!(frechet_distance(&good, &bad).unwrap(), f64::INFINITY);
        assert_eq!(frechet_distance(&bad, &good).unwrap(), f64::INFINITY);
        let _ = features.fill_(0.0).get(3).fill_(1e30);
        let huge = FeatureStats { cov: FeatureStats::of(&features).unwrap().cov * 1e280, ..good.shallow_clone() };
        assert_eq!(frechet_distance(&good, &huge).unwrap(), f64::INFINITY);
        let far = FeatureStats { mean: &good.mean + f64::INFINITY, ..good.shallow_clone() };
        assert_eq!(frechet_distance(&good, &far).unwrap(), f64::INFINITY);
        assert!(Reference::new(bad).unwrap_err().to_string().contains("not finite"));
    }

    #[test]
    fn other_numbers_of_features_are_refused() {
        let text =
            frechet_distance(&gaussian(&[0.0], &[1.0]), &gaussian(&[0.0; 2], &[1.0; 2])).unwrap_err().to_string();
        assert!(text.contains("2 features cannot be compared with 1"), "{text}");
    }
}
