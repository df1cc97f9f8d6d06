//! What a sampler is told: its kind, its noise levels, and what cannot work.

use crate::precond::Scalings;
use lcsc_torch::{Invalid, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How images are made from noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SamplerConfig {
    /// Heun's second-order method, with optional churn (Karras et al. 2022, algorithms 1 and 2).
    Heun(OdeConfig),
    /// Euler's method on the same grid, with the same optional churn.
    Euler(OdeConfig),
    /// Consistency sampling in one or more steps (Song et al. 2023, algorithm 1).
    Consistency(ConsistencyConfig),
}

/// Solving the probability-flow ODE; defaults are EDM's for CIFAR-10.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OdeConfig {
    /// Time steps; the NFE is 2·steps − 1 with Heun's method, the same number with Euler's.
    pub steps: usize,
    /// Lowest noise level before 0.
    pub sigma_min: f64,
    /// Highest noise level.
    pub sigma_max: f64,
    /// Exponent of the grid.
    pub rho: f64,
    /// Noise added on the way; all zero gives the deterministic sampler.
    pub churn: Churn,
}

/// The stochastic part of EDM's sampler.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Churn {
    /// S_churn: amount of noise over all steps; 0 adds none.
    pub s_churn: f64,
    /// S_tmin: lowest noise level at which it is added.
    pub s_min: f64,
    /// S_tmax: highest noise level at which it is added.
    pub s_max: f64,
    /// S_noise: standard deviation of the added noise.
    pub s_noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Self { s_churn: 0.0, s_min: 0.0, s_max: 1e9, s_noise: 1.0 }
    }
}

impl Default for OdeConfig {
    fn default() -> Self {
        Self { steps: 18, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0, churn: Churn::default() }
    }
}

/// Consistency sampling with the boundary scalings at `sigma_min`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConsistencyConfig {
    /// Noise level of the first step.
    pub sigma_max: f64,
    /// Noise levels of further steps, falling; the NFE is one more than their number.
    pub mid_sigmas: Vec<f64>,
    /// The noise level at which the model is the identity.
    pub sigma_min: f64,
}

impl Default for ConsistencyConfig {
    fn default() -> Self {
        Self { sigma_max: 80.0, mid_sigmas: vec![], sigma_min: 0.003 }
    }
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self::Heun(OdeConfig::default())
    }
}

impl SamplerConfig {
    /// Steps from latents to images; a step of Heun's method evaluates the network twice, but for the last.
    pub fn steps(&self) -> usize {
        match self {
            Self::Heun(c) | Self::Euler(c) => c.steps,
            Self::Consistency(c) => 1 + c.mid_sigmas.len(),
        }
    }

    /// Network evaluations an image.
    pub fn nfe(&self) -> usize {
        match self {
            Self::Heun(c) => 2 * c.steps - 1,
            Self::Euler(c) => c.steps,
            Self::Consistency(c) => 1 + c.mid_sigmas.len(),
        }
    }

    /// The same sampler at another number of network evaluations an image; of consistency steps the first ones.
    ///
    /// # Errors
    /// It cannot have that number.
    pub fn with_nfe(&self, nfe: usize) -> Result<Self> {
        let (same, expected) = match self {
            Self::Heun(c) => {
                (Self::Heun(OdeConfig { steps: nfe.div_ceil(2), ..c.clone() }), "an odd number".to_string())
            }
            Self::Euler(c) => (Self::Euler(OdeConfig { steps: nfe, ..c.clone() }), "at least 1".into()),
            Self::Consistency(c) => {
                let mid_sigmas = c.mid_sigmas.iter().copied().take(nfe.saturating_sub(1)).collect();
                let most = 1 + c.mid_sigmas.len();
                let expected = format!("1 to {most}: more steps need further sampler.consistency.mid_sigmas");
                (Self::Consistency(ConsistencyConfig { mid_sigmas, ..c.clone() }), expected)
            }
        };
        if nfe == 0 || same.nfe() != nfe {
            bail!("this sampler cannot make an image in {nfe} network evaluations, expected {expected}");
        }
        Ok(same)
    }

    /// The scalings that it samples with.
    pub fn scalings(&self) -> Scalings {
        match self {
            Self::Heun(_) | Self::Euler(_) => Scalings::Edm,
            Self::Consistency(c) => Scalings::Boundary { sigma_min: c.sigma_min },
        }
    }

    /// Everything about it that cannot work.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut check = |ok: bool, key: &str, message: String| {
            if !ok {
                found.push(Invalid::new(key, message));
            }
        };
        let mut grid = |name: &str, steps: usize, sigma_min: f64, sigma_max: f64, rho: f64| {
            check(steps >= 1, &format!("{name}.steps"), "is 0, expected at least 1".into());
            let ok = sigma_min > 0.0 && sigma_min < sigma_max && sigma_max.is_finite();
            let key = format!("{name}.sigma_min");
            check(ok, &key, format!("is {sigma_min}, expected more than 0 and less than sigma_max = {sigma_max}"));
            check(rho > 0.0, &format!("{name}.rho"), format!("is {rho}, expected more than 0"));
        };
        match self {
            Self::Heun(c) => grid("heun", c.steps, c.sigma_min, c.sigma_max, c.rho),
            Self::Euler(c) => grid("euler", c.steps, c.sigma_min, c.sigma_max, c.rho),
            Self::Consistency(c) => {
                grid("consistency", 1, c.sigma_min, c.sigma_max, 1.0);
                let points: Vec<f64> = [&[c.sigma_max], c.mid_sigmas.as_slice(), &[c.sigma_min]].concat();
                check(
                    points.windows(2).all(|w| w[0] > w[1]),
                    "consistency.mid_sigmas",
                    format!("must fall from sigma_max = {} to above sigma_min = {}", c.sigma_max, c.sigma_min),
                );
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_samplers_are_named() {
        let config = SamplerConfig::Consistency(ConsistencyConfig { mid_sigmas: vec![1.0, 2.0], ..Default::default() });
        assert_eq!(config.validate()[0].key, "consistency.mid_sigmas");
        let config = SamplerConfig::Heun(OdeConfig { steps: 0, sigma_min: 0.0, ..Default::default() });
        let keys: Vec<String> = config.validate().into_iter().map(|i| i.key).collect();
        assert_eq!(keys, ["heun.steps", "heun.sigma_min"]);
    }
}
