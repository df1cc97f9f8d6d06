//! Noise levels that samplers step through.

use crate::precond::Preconditioning;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How noise levels are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Spacing {
    /// Equal steps of σ^{1/ρ} (Karras et al. 2022, eq. 5).
    Karras {
        /// ρ.
        rho: f64,
    },
    /// Equal steps of ln σ, half of the log signal-to-noise ratio (Lu et al. 2022).
    LogSnr,
    /// Equal steps of the network's own time (DDIM); of σ where it has none.
    Uniform,
    /// Equal steps of the root of the network's own time (Song et al. 2021, DDIM); of √σ where it has none.
    Quadratic,
}

impl Default for Spacing {
    fn default() -> Self {
        Self::Karras { rho: 7.0 }
    }
}

impl Spacing {
    /// n noise levels from σ_max down to σ_min, both within what the network is for, rounded to what it can be told.
    pub(crate) fn sigmas(self, n: usize, sigma_min: f64, sigma_max: f64, network: &Preconditioning) -> Vec<f64> {
        let (lowest, highest) = network.sigma_range();
        let (from, to) = (sigma_max.clamp(lowest, highest), sigma_min.clamp(lowest, highest));
        let along = |transform: &dyn Fn(f64) -> f64, inverse: &dyn Fn(f64) -> f64| {
            let (a, b) = (transform(from), transform(to));
            let last = n.saturating_sub(1).max(1) as f64;
            // The ends exactly, whatever the transform's rounding.
            (0..n)
                .map(|i| {
                    if i == 0 {
                        from
                    } else if i + 1 == n {
                        to
                    } else {
                        inverse(a + i as f64 / last * (b - a))
                    }
                })
                .collect()
        };
        let sigmas: Vec<f64> = match self {
            Self::Karras { rho } => karras_sigmas(n, to, from, rho),
            Self::LogSnr => along(&f64::ln, &f64::exp),
            Self::Uniform => along(&|s| network.time(s), &|t| network.sigma(t)),
            Self::Quadratic => along(&|s| network.time(s).sqrt(), &|root| network.sigma(root * root)),
        };
        sigmas.into_iter().map(|sigma| network.round_sigma(sigma)).collect()
    }
}

/// σ_i = (σ_max^{1/ρ} + i/(n−1)·(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ for i < n (Karras et al. 2022, eq. 5), without the final 0.
pub fn karras_sigmas(n: usize, sigma_min: f64, sigma_max: f64, rho: f64) -> Vec<f64> {
    let (top, bottom) = (sigma_max.powf(1.0 / rho), sigma_min.powf(1.0 / rho));
    let last = n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| (top + i as f64 / last * (bottom - top)).powf(rho)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precond::{DdpmPreconditioning, IddpmPreconditioning, PreconditioningConfig};

    fn edm() -> Preconditioning {
        Preconditioning::new(&PreconditioningConfig::default())
    }

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f / e - 1.0).abs() < 1e-9, "{found:?} instead of {expected:?}");
        }
    }

    #[test]
    fn the_grid_meets_its_ends() {
        let sigmas = karras_sigmas(18, 0.002, 80.0, 7.0);
        assert_eq!(sigmas.len(), 18);
        assert!((sigmas[0] - 80.0).abs() < 1e-9 && (sigmas[17] - 0.002).abs() < 1e-12);
        assert!((sigmas[1] - 57.58598472124816).abs() < 1e-9);
        assert_eq!(karras_sigmas(1, 0.002, 80.0, 7.0).len(), 1);
    }

    #[test]
    fn each_spacing_is_even_in_its_own_measure() {
        close(&Spacing::LogSnr.sigmas(3, 0.01, 100.0, &edm()), &[100.0, 1.0, 0.01]);
        close(&Spacing::Uniform.sigmas(3, 2.0, 10.0, &edm()), &[10.0, 6.0, 2.0]);
        close(&Spacing::Quadratic.sigmas(3, 1.0, 9.0, &edm()), &[9.0, 4.0, 1.0]);
        let ddpm = Preconditioning::new(&PreconditioningConfig::Ddpm(DdpmPreconditioning::default()));
        let sigmas = Spacing::Uniform.sigmas(5, 0.0, 1e9, &ddpm);
        let times: Vec<f64> = sigmas.iter().map(|&s| 1000.0 * ddpm.time(s)).collect();
        close(&times, &[1000.0, 750.25, 500.5, 250.75, 1.0]);
    }

    #[test]
    fn levels_keep_to_what_the_network_knows() {
        let iddpm = PreconditioningConfig::Iddpm(IddpmPreconditioning { m: 1000, ..Default::default() });
        let iddpm = Preconditioning::new(&iddpm);
        let sigmas = Spacing::default().sigmas(6, 0.0, 1e9, &iddpm);
        let (low, high) = iddpm.sigma_range();
        assert_eq!((sigmas[0], sigmas[5]), (high, low));
        assert!(sigmas.iter().all(|&s| iddpm.round_sigma(s) == s));
    }
}
