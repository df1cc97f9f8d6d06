//! The derivatives of the Fréchet distance, in closed form: no graph goes through an eigen-decomposition.

use crate::frechet::{Reference, is_finite, sum_of_roots};
use lcsc_torch::{Kind, Result, Tensor, bail};

/// Eigenvalues at or below this share of the largest one count as zero.
const FLOOR: f64 = 1e-10;

/// A Fréchet distance with its derivatives by the generated features.
#[derive(Debug)]
pub struct FrechetGradient {
    /// F, as [`Reference::distance`] gives it.
    pub distance: f64,
    /// ∂F/∂f, f64 `[N,D]` on the CPU; zero where the distance is infinite.
    pub features: Tensor,
}

impl Reference {
    /// The Fréchet distance of N generated images' features `[N,D]`, of any float type, and its derivatives
    ///
    /// ```text
    /// ∂F/∂f = 2/N·(μ − μr) + 2/(N−1)·(C − C·R·M^(−½)·R),      C = f − μ,  R = √Σr,  M = R·Σ·R.
    /// ```
    ///
    /// Where N ≤ D the eigenvalues of M that are not zero are those of the Gram matrix G = C·Σr·Cᵀ/(N−1), and
    /// C·R·M^(−½)·R = G^(−½)·C·Σr: the cost is that of N×N matrices. Features that are not finite are infinitely far.
    ///
    /// # Errors
    /// The shape is not `[N,D]` with N ≥ 2, or the eigenvalues did not converge.
    pub fn gradient(&self, features: &Tensor) -> Result<FrechetGradient> {
        let dim = self.stats().dim();
        let n = match features.size()[..] {
            [n, d] if n > 1 && d == dim => n,
            _ => bail!("features have shape {:?}, expected [N, {dim}] with N of at least 2", features.size()),
        };
        tch::no_grad(|| {
            let f = features.f_to_device_(self.root.device(), Kind::Double, false, false)?;
            let mean = f.f_mean_dim(0i64, true, Kind::Double)?;
            let centred = f.f_sub(&mean)?;
            let shift = mean.f_sub(&self.stats().mean)?;
            let degrees = (n - 1) as f64;
            let trace = centred.f_square()?.f_sum(Kind::Double)?.double_value(&[]) / degrees;
            let rest = self.rest(&shift, trace);
            let coupling = if n > dim { self.by_covariance(&centred)? } else { self.by_gram(&centred)? };
            let Some((roots, coupling)) = coupling.filter(|_| rest.is_finite()) else {
                return Ok(FrechetGradient { distance: f64::INFINITY, features: f.f_zeros_like()? });
            };
            let features = (centred - coupling) * (2.0 / degrees) + shift * (2.0 / n as f64);
            Ok(FrechetGradient { distance: rest - 2.0 * roots, features })
        })
    }

    /// Tr M^½ and C·R·M^(−½)·R f64 [N,D] of centred features C f64 [N,D]; nothing where M is not finite.
    fn by_covariance(&self, centred: &Tensor) -> Result<Option<(f64, Tensor)>> {
        let rotated = centred.f_matmul(&self.root)?; // C·R
        let product = rotated.f_tr()?.f_matmul(&rotated)? / (centred.size()[0] - 1) as f64;
        if !is_finite(&product) {
            return Ok(None);
        }
        let (values, vectors) = product.f_linalg_eigh("L")?;
        let half = self.root.f_matmul(&vectors)?;
        let weighted = half.f_mul(&inverse_roots(&values)?)?.f_matmul(&half.f_tr()?)?;
        Ok(Some((sum_of_roots(&values), centred.f_matmul(&weighted)?)))
    }

    /// The same by the Gram matrix: Tr G^½ and G^(−½)·C·Σr.
    fn by_gram(&self, centred: &Tensor) -> Result<Option<(f64, Tensor)>> {
        let by_reference = centred.f_matmul(&self.stats().cov)?; // C·Σr
        let gram = by_reference.f_matmul(&centred.f_tr()?)? / (centred.size()[0] - 1) as f64;
        if !is_finite(&gram) {
            return Ok(None);
        }
        let (values, vectors) = gram.f_linalg_eigh("L")?;
        let inverse_root = vectors.f_mul(&inverse_roots(&values)?)?.f_matmul(&vectors.f_tr()?)?;
        Ok(Some((sum_of_roots(&values), inverse_root.f_matmul(&by_reference)?)))
    }
}

/// λ^(−½) of eigenvalues f64 in ascending order, and 0 for those that are zero but for rounding.
///
/// The pseudo-inverse is exact for features: centred ones have no part in the null space of their covariance, so that
/// what ∂F/∂Σ says about it never reaches them, also with N ≤ D, where a small change of N features keeps the rank.
fn inverse_roots(values: &Tensor) -> Result<Tensor> {
    let floor = values.f_max()?.f_mul_scalar(FLOOR)?.f_clamp_min(f64::MIN_POSITIVE)?;
    Ok(values.f_rsqrt()?.f_where_self(&values.f_gt_tensor(&floor)?, &values.f_zeros_like()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::FeatureStats;
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
        reference.gradient(f).unwrap().features
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
        let gradient = reference.gradient(&f).unwrap();
        let (value, expected) = by_autograd(&reference, &f);
        let distance = reference.distance(&FeatureStats::of(&f).unwrap()).unwrap();
        assert!(distance > 1.0 && (gradient.distance - distance).abs() < 1e-12 * distance);
        assert!((value - distance).abs() < 1e-11 * distance);
        let found = gradient.features;
        assert_eq!((found.size(), found.kind()), (vec![40, 6], Kind::Double));
        assert!(error(&found, &expected) < 1e-8, "{}", error(&found, &expected));
        let single = cotangent(&reference, &f.to_kind(Kind::Float));
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

    /// As many images as Inception's D would want are too many for a step: N of 250 there and the Gram matrix.
    #[test]
    fn a_random_network_of_2048_features_has_its_gradient_at_250_images() {
        let w = latents(9, Stream::Features, 0, 1, [64, 2048, 1], Device::Cpu).unwrap().view([64, 2048]) * 0.2;
        let net = |x: &Tensor| x.to_kind(Kind::Double).matmul(&w.to_kind(Kind::Double)).relu();
        let reference = Reference::new(FeatureStats::of(&net(&features(3, 600, 64))).unwrap()).unwrap();
        let x = features(4, 250, 64).set_requires_grad(true);
        let f = net(&x);
        let gradient = reference.gradient(&f.detach()).unwrap();
        let by_stats = reference.distance(&FeatureStats::of(&f.detach()).unwrap()).unwrap();
        assert!((gradient.distance / by_stats - 1.0).abs() < 1e-6, "{} {by_stats}", gradient.distance);
        let x_bar = Tensor::run_backward(&[(f * gradient.features).sum(Kind::Double)], &[&x], false, false).remove(0);
        let norm = x_bar.norm().double_value(&[]);
        let h = 1e-3;
        let at = |step: f64| reference.gradient(&net(&(x.detach() + &x_bar * (step / norm)))).unwrap().distance;
        let slope = (at(h) - at(-h)) / (2.0 * h);
        assert!((slope / norm - 1.0).abs() < 1e-3, "{slope} by differences, {norm} by the gradient");
    }

    #[test]
    fn features_that_are_not_finite_have_zero_derivatives() {
        for (n, d) in [(20, 4), (4, 20)] {
            let (reference, f) = (reference(d), features(2, n, d));
            let _ = f.get(3).fill_(f64::NAN);
            let gradient = reference.gradient(&f).unwrap();
            assert_eq!((gradient.distance, gradient.features.size()), (f64::INFINITY, vec![n as i64, d]));
            assert!(gradient.features.equal(&gradient.features.zeros_like()));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for wrong in [features(2, 1, 4), features(2, 20, 3), features(2, 20, 4).view(-1)] {
            let text = reference(4).gradient(&wrong).unwrap_err().to_string();
            assert!(text.contains("expected [N, 4] with N of at least 2"), "{text}");
        }
    }
}
