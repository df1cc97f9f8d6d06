//! The derivatives of the Fréchet distance, in closed form: no graph goes through an eigen-decomposition.

use crate::frechet::Reference;
use crate::stats::FeatureStats;
use lcsc_torch::{Kind, Result, Tensor, bail};

/// Eigenvalues of M at or below this share of the largest one count as zero.
const FLOOR: f64 = 1e-10;

/// A Fréchet distance with its derivatives by mean and covariance of the generated features.
#[derive(Debug)]
pub struct FrechetGradient {
    /// F, as [`Reference::distance`] gives it.
    pub distance: f64,
    /// ∂F/∂μ = 2(μ−μr), f64 [D].
    pub mean: Tensor,
    /// ∂F/∂Σ = I − R·M^(−½)·R with R = √Σr and M = R·Σ·R, symmetric, f64 [D,D].
    pub cov: Tensor,
}

impl Reference {
    /// The Fréchet distance of the candidate and its derivatives; for statistics that are not finite the distance is
    /// infinite and the derivatives are zero.
    ///
    /// # Errors
    /// The numbers of features differ, or the eigenvalues did not converge.
    pub fn gradient(&self, candidate: &FeatureStats) -> Result<FrechetGradient> {
        let Some(terms) = self.terms(candidate)? else {
            let (mean, cov) = (self.stats().mean.f_zeros_like()?, self.root.f_zeros_like()?);
            return Ok(FrechetGradient { distance: f64::INFINITY, mean, cov });
        };
        let (values, vectors) = terms.product.f_linalg_eigh("L")?;
        let half = self.root.f_matmul(&vectors)?;
        let weighted = half.f_mul(&inverse_roots(&values)?)?.f_matmul(&half.f_tr()?)?;
        let identity = Tensor::f_eye(candidate.dim(), (Kind::Double, self.root.device()))?;
        Ok(FrechetGradient { distance: terms.distance(&values)?, mean: terms.shift * 2.0, cov: identity - weighted })
    }
}

/// λ^(−½) of eigenvalues f64 [D] in ascending order, and 0 for those that are zero but for rounding.
///
/// The pseudo-inverse is exact for features: centred ones have no part in the null space of their covariance, so that
/// what ∂F/∂Σ says about it never reaches them, also with N ≤ D, where a small change of N features keeps the rank.
fn inverse_roots(values: &Tensor) -> Result<Tensor> {
    let floor = values.f_max()?.f_mul_scalar(FLOOR)?.f_clamp_min(f64::MIN_POSITIVE)?;
    Ok(values.f_rsqrt()?.f_where_self(&values.f_gt_tensor(&floor)?, &values.f_zeros_like()?)?)
}

impl FrechetGradient {
    /// ∂F/∂f for the features [N,D] of any float type whose statistics gave this gradient:
    /// `(∂F/∂μ)/N + 2/(N−1)·(f_i − μ)·∂F/∂Σ`, with μ their own mean; f64 [N,D] on the features' device.
    ///
    /// Zero where the distance is infinite.
    ///
    /// # Errors
    /// The shape is not [N,D] with N ≥ 2, or libtorch failed.
    pub fn cotangent(&self, features: &Tensor) -> Result<Tensor> {
        let dim = self.mean.size()[0];
        let n = match features.size()[..] {
            [n, d] if n > 1 && d == dim => n as f64,
            _ => bail!("features have shape {:?}, expected [N, {dim}] with N of at least 2", features.size()),
        };
        tch::no_grad(|| {
            let f = features.f_to_kind(Kind::Double)?;
            if self.distance.is_infinite() {
                return Ok(f.f_zeros_like()?);
            }
            let centred = f.f_sub(&f.f_mean_dim(0i64, true, Kind::Double)?)?;
            let by_cov = centred.f_matmul(&self.cov.f_to(f.device())?)? * (2.0 / (n - 1.0));
            Ok(by_cov.f_add(&(self.mean.f_to(f.device())? / n))?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Device, Stream, latents};

    /// Normal features f64 [n,d], correlated and off zero.
    fn features(seed: u64, n: usize, d: i64) -> Tensor {
        let z = latents(seed, Stream::Features, 0, n, [d, 1, 1], Device::Cpu).unwrap().view([n as i64, d]);
        let mix = latents(seed + 50, Stream::Features, 0, 1, [d, d, 1], Device::Cpu).unwrap().view([d, d]);
        (z.matmul(&mix) * 0.7 + 0.3).to_kind(Kind::Double)
    }

    fn reference(d: i64) -> Reference {
        Reference::new(FeatureStats::of(&features(1, 500, d)).unwrap()).unwrap()
    }

    fn cotangent(reference: &Reference, f: &Tensor) -> Tensor {
        reference.gradient(&FeatureStats::of(f).unwrap()).unwrap().cotangent(f).unwrap()
    }

    /// ‖a−b‖/‖b‖.
    fn error(a: &Tensor, b: &Tensor) -> f64 {
        ((a - b).norm() / b.norm()).double_value(&[])
    }

    /// Value and derivative by one graph over moments and eigenvalues.
    fn by_autograd(reference: &Reference, f: &Tensor) -> (f64, Tensor) {
        let f = f.copy().set_requires_grad(true);
        let real = reference.stats();
        let mean = f.mean_dim(0i64, false, Kind::Double);
        let centred = &f - &mean;
        let cov = centred.tr().matmul(&centred) / (f.size()[0] - 1) as f64;
        let values = reference.root.matmul(&cov).matmul(&reference.root).linalg_eigvalsh("L");
        let traces = cov.trace() + real.cov.trace();
        let distance = (mean - &real.mean).square().sum(Kind::Double) + traces - values.sqrt().sum(Kind::Double) * 2.0;
        let grad = Tensor::run_backward(&[&distance], &[&f], false, false).remove(0);
        (distance.double_value(&[]), grad)
    }

    /// Central differences of `distance` by all features, at step `h`.
    fn by_differences(reference: &Reference, f: &Tensor, h: f64) -> Tensor {
        let moved = |index: i64, by: f64| {
            let f = f.copy();
            let _ = f.view(-1).get(index).g_add_scalar_(by);
            reference.distance(&FeatureStats::of(&f).unwrap()).unwrap()
        };
        let slopes: Vec<f64> = (0..f.numel() as i64).map(|i| (moved(i, h) - moved(i, -h)) / (2.0 * h)).collect();
        Tensor::from_slice(&slopes).view_as(f)
    }

    #[test]
    fn value_and_cotangent_equal_autograd() {
        let (reference, f) = (reference(6), features(2, 40, 6));
        let stats = FeatureStats::of(&f).unwrap();
        let gradient = reference.gradient(&stats).unwrap();
        let (value, expected) = by_autograd(&reference, &f);
        let distance = reference.distance(&stats).unwrap();
        assert!(distance > 1.0 && (gradient.distance - distance).abs() < 1e-12 * distance);
        assert!((value - distance).abs() < 1e-11 * distance);
        let found = gradient.cotangent(&f).unwrap();
        assert_eq!((found.size(), found.kind()), (vec![40, 6], Kind::Double));
        assert!(error(&found, &expected) < 1e-8, "{}", error(&found, &expected));
        let single = gradient.cotangent(&f.to_kind(Kind::Float)).unwrap();
        assert!(single.kind() == Kind::Double && error(&single, &expected) < 1e-6);
    }

    #[test]
    fn cotangent_equals_finite_differences() {
        let (reference, f) = (reference(6), features(2, 40, 6));
        let expected = by_differences(&reference, &f, 1e-4);
        let e = error(&cotangent(&reference, &f), &expected);
        assert!(e < 1e-6, "{e}");
    }

    #[test]
    fn fewer_images_than_features_have_their_exact_derivative() {
        let (reference, f) = (reference(16), features(2, 10, 16));
        // Rounding leaves M 7 eigenvalues of about 1e-15 in place of zero, whose roots make F uncertain by 1e-7, and at
        // this step slopes of about 0.5 by 1e-5.
        let expected = by_differences(&reference, &f, 1e-2);
        let e = error(&cotangent(&reference, &f), &expected);
        assert!(e < 2e-4, "{e}");
    }

    #[test]
    fn features_that_never_vary_have_no_infinite_derivative() {
        let (reference, f) = (reference(6), features(2, 40, 6));
        let _ = f.narrow(1, 2, 2).fill_(0.5);
        let found = cotangent(&reference, &f);
        // In the directions that do vary the distance stays smooth.
        let expected = by_differences(&reference, &f, 1e-2);
        let moving = |t: &Tensor| Tensor::cat(&[t.narrow(1, 0, 2), t.narrow(1, 4, 2)], 1);
        let e = error(&moving(&found), &moving(&expected));
        assert!(e < 2e-4, "{e}");
    }

    #[test]
    fn a_far_mean_adds_its_own_part_and_changes_no_other() {
        let (reference, f) = (reference(6), features(2, 40, 6));
        let near = cotangent(&reference, &f);
        let far = cotangent(&reference, &(&f + 1e6));
        assert!(error(&(&far - 2e6 / 40.0), &near) < 1e-8);
        let (_, expected) = by_autograd(&reference, &(&f + 100.0));
        assert!(error(&cotangent(&reference, &(&f + 100.0)), &expected) < 1e-8);
    }

    #[test]
    fn statistics_that_are_not_finite_have_zero_derivatives() {
        let (reference, f) = (reference(4), features(2, 20, 4));
        let _ = f.get(3).fill_(f64::NAN);
        let gradient = reference.gradient(&FeatureStats::of(&f).unwrap()).unwrap();
        assert_eq!(gradient.distance, f64::INFINITY);
        let found = gradient.cotangent(&f).unwrap();
        assert_eq!((found.size(), gradient.mean.size(), gradient.cov.size()), (vec![20, 4], vec![4], vec![4, 4]));
        for t in [found, gradient.mean, gradient.cov] {
            assert!(t.equal(&t.zeros_like()));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let gradient = reference(4).gradient(&FeatureStats::of(&features(2, 20, 4)).unwrap()).unwrap();
        for wrong in [features(2, 1, 4), features(2, 20, 3), features(2, 20, 4).view(-1)] {
            let text = gradient.cotangent(&wrong).unwrap_err().to_string();
            assert!(text.contains("expected [N, 4] with N of at least 2"), "{text}");
        }
        let text = reference(4).gradient(&FeatureStats::of(&features(2, 20, 3)).unwrap()).unwrap_err().to_string();
        assert!(text.contains("3 features cannot be compared with 4"), "{text}");
    }
}
