//! What a sampler is told: its kind, its noise levels, and what cannot work.

use crate::grid::Spacing;
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
    /// DDIM, deterministic (Song et al. 2021, arXiv 2010.02502): in σ it is Euler's method.
    Ddim(GridConfig),
    /// Ancestral sampling (Ho et al. 2020): DDIM's steps with η = 1, which add fresh noise.
    Ancestral(GridConfig),
    /// DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095).
    Dpmpp(DpmConfig),
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
    /// How noise levels are spaced.
    pub spacing: Spacing,
    /// Noise added on the way; all zero gives the deterministic sampler.
    pub churn: Churn,
    /// Classifier-free guidance: w of D = D(x;σ,∅) + w·(D(x;σ,c) − D(x;σ,∅)); each step then costs twice the NFE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
}

/// Stepping from noise level to noise level, at last to 0; the NFE is `steps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GridConfig {
    /// Steps.
    pub steps: usize,
    /// Lowest noise level before 0.
    pub sigma_min: f64,
    /// Highest noise level.
    pub sigma_max: f64,
    /// How noise levels are spaced.
    pub spacing: Spacing,
    /// Classifier-free guidance, as for Heun's method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
}

/// DPM-Solver++ for the noise-free image; it ends at `sigma_min`, not at 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DpmConfig {
    /// Network evaluations an image (without guidance).
    pub steps: usize,
    /// Order of the method: 1, 2 or 3.
    pub order: usize,
    /// Whether each step evaluates the network once and uses the evaluations before it, or steps of `order` evaluations
    /// stand for themselves.
    pub multistep: bool,
    /// Lowers the order towards the end (multistep: of the last steps; singlestep: of what `order` does not divide),
    /// which is stabler for few steps.
    pub lower_order_final: bool,
    /// Scales images whose 99.5 % quantile of |D| exceeds 1 back to it (dynamic thresholding, Saharia et al. 2022).
    pub thresholding: bool,
    /// Lowest noise level, where the images are taken.
    pub sigma_min: f64,
    /// Highest noise level.
    pub sigma_max: f64,
    /// How noise levels are spaced.
    pub spacing: Spacing,
    /// Classifier-free guidance, as for Heun's method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
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
        Self {
            steps: 18,
            sigma_min: 0.002,
            sigma_max: 80.0,
            spacing: Spacing::default(),
            churn: Churn::default(),
            guidance: None,
        }
    }
}

impl Default for GridConfig {
    fn default() -> Self {
        Self { steps: 50, sigma_min: 0.002, sigma_max: 80.0, spacing: Spacing::default(), guidance: None }
    }
}

impl Default for DpmConfig {
    fn default() -> Self {
        Self {
            steps: 15,
            order: 3,
            multistep: true,
            lower_order_final: true,
            thresholding: false,
            sigma_min: 0.002,
            sigma_max: 80.0,
            spacing: Spacing::LogSnr,
            guidance: None,
        }
    }
}

impl DpmConfig {
    /// The order of each step: of a multistep method as far as there are evaluations before it; of a singlestep method
    /// the evaluations that it takes, too.
    pub(crate) fn orders(&self) -> Vec<usize> {
        if self.multistep {
            let ending = |i: usize| if self.lower_order_final { self.steps - i } else { usize::MAX };
            return (0..self.steps).map(|i| self.order.min(i + 1).min(ending(i))).collect();
        }
        let (whole, rest) = (self.steps / self.order, self.steps % self.order);
        match (self.order, rest) {
            // Lu et al. end with lower orders also where 3 divides the number of evaluations.
            (3, 0) if self.lower_order_final && whole > 0 => [vec![3; whole - 1], vec![2, 1]].concat(),
            (_, 0) => vec![self.order; whole],
            (_, rest) => [vec![self.order; whole], vec![rest]].concat(),
        }
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
    /// Steps from latents to images, some of which evaluate the network more than once.
    pub fn steps(&self) -> usize {
        match self {
            Self::Heun(c) | Self::Euler(c) => c.steps,
            Self::Ddim(c) | Self::Ancestral(c) => c.steps,
            Self::Dpmpp(c) => c.orders().len(),
            Self::Consistency(c) => 1 + c.mid_sigmas.len(),
        }
    }

    /// Network evaluations an image.
    pub fn nfe(&self) -> usize {
        let denoised = match self {
            Self::Heun(c) => 2 * c.steps - 1,
            Self::Euler(c) => c.steps,
            Self::Ddim(c) | Self::Ancestral(c) => c.steps,
            Self::Dpmpp(c) => c.steps,
            Self::Consistency(c) => 1 + c.mid_sigmas.len(),
        };
        denoised * self.evaluations()
    }

    /// Network evaluations of one denoised image.
    pub(crate) fn evaluations(&self) -> usize {
        if self.guidance().is_some() { 2 } else { 1 }
    }

    /// The weight of classifier-free guidance.
    pub fn guidance(&self) -> Option<f64> {
        match self {
            Self::Heun(c) | Self::Euler(c) => c.guidance,
            Self::Ddim(c) | Self::Ancestral(c) => c.guidance,
            Self::Dpmpp(c) => c.guidance,
            Self::Consistency(_) => None,
        }
    }

    /// The same sampler at another number of network evaluations an image; of consistency steps the first ones.
    ///
    /// # Errors
    /// It cannot have that number.
    pub fn with_nfe(&self, nfe: usize) -> Result<Self> {
        let steps = nfe / self.evaluations();
        let even = if self.evaluations() == 2 { " of pairs" } else { "" };
        let (same, expected) = match self {
            Self::Heun(c) => {
                (Self::Heun(OdeConfig { steps: steps.div_ceil(2), ..c.clone() }), format!("an odd number{even}"))
            }
            Self::Euler(c) => (Self::Euler(OdeConfig { steps, ..c.clone() }), format!("at least 1{even}")),
            Self::Ddim(c) => (Self::Ddim(GridConfig { steps, ..c.clone() }), format!("at least 1{even}")),
            Self::Ancestral(c) => (Self::Ancestral(GridConfig { steps, ..c.clone() }), format!("at least 1{even}")),
            Self::Dpmpp(c) => {
                (Self::Dpmpp(DpmConfig { steps, ..c.clone() }), format!("at least its order {}{even}", c.order))
            }
            Self::Consistency(c) => {
                let mid_sigmas = c.mid_sigmas.iter().copied().take(nfe.saturating_sub(1)).collect();
                let most = 1 + c.mid_sigmas.len();
                let expected = format!("1 to {most}: more steps need further sampler.consistency.mid_sigmas");
                (Self::Consistency(ConsistencyConfig { mid_sigmas, ..c.clone() }), expected)
            }
        };
        if steps == 0 || same.nfe() != nfe || !same.validate().is_empty() {
            bail!("this sampler cannot make an image in {nfe} network evaluations, expected {expected}");
        }
        Ok(same)
    }

    /// The scalings that it samples with.
    pub fn scalings(&self) -> Scalings {
        match self {
            Self::Heun(_) | Self::Euler(_) | Self::Ddim(_) | Self::Ancestral(_) | Self::Dpmpp(_) => Scalings::Plain,
            Self::Consistency(c) => Scalings::Boundary { sigma_min: c.sigma_min },
        }
    }

    /// Everything about it that cannot work.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut check = Check { name: self.name(), found: Vec::new() };
        match self {
            Self::Heun(c) | Self::Euler(c) => {
                check.grid(c.steps, (c.sigma_min, c.sigma_max));
                check.spacing(c.spacing);
                check.guidance(c.guidance);
            }
            Self::Ddim(c) | Self::Ancestral(c) => {
                check.grid(c.steps, (c.sigma_min, c.sigma_max));
                check.spacing(c.spacing);
                check.guidance(c.guidance);
            }
            Self::Dpmpp(c) => {
                check.grid(c.steps, (c.sigma_min, c.sigma_max));
                check.spacing(c.spacing);
                check.guidance(c.guidance);
                check.that((1..=3).contains(&c.order), "order", || format!("is {}, expected 1, 2 or 3", c.order));
                let (steps, order) = (c.steps, c.order);
                check.that(steps >= order, "steps", || format!("is {steps}, expected at least its order {order}"));
                let divides = order > 0 && steps % order == 0;
                check.that(c.multistep || c.lower_order_final || divides, "steps", || {
                    format!("is {steps}, expected a multiple of order = {order}, or lower_order_final = true")
                });
            }
            Self::Consistency(c) => {
                check.grid(1, (c.sigma_min, c.sigma_max));
                let points: Vec<f64> = [&[c.sigma_max], c.mid_sigmas.as_slice(), &[c.sigma_min]].concat();
                check.that(points.windows(2).all(|w| w[0] > w[1]), "mid_sigmas", || {
                    format!("must fall from sigma_max = {} to above sigma_min = {}", c.sigma_max, c.sigma_min)
                });
            }
        }
        check.found
    }

    /// Its key in config files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Heun(_) => "heun",
            Self::Euler(_) => "euler",
            Self::Ddim(_) => "ddim",
            Self::Ancestral(_) => "ancestral",
            Self::Dpmpp(_) => "dpmpp",
            Self::Consistency(_) => "consistency",
        }
    }
}

/// Gathers what cannot work under the sampler's key.
struct Check {
    name: &'static str,
    found: Vec<Invalid>,
}

impl Check {
    fn that(&mut self, ok: bool, key: &str, message: impl FnOnce() -> String) {
        if !ok {
            self.found.push(Invalid::new(format!("{}.{key}", self.name), message()));
        }
    }

    fn grid(&mut self, steps: usize, (sigma_min, sigma_max): (f64, f64)) {
        self.that(steps >= 1, "steps", || "is 0, expected at least 1".into());
        let ok = sigma_min > 0.0 && sigma_min < sigma_max && sigma_max.is_finite();
        self.that(ok, "sigma_min", || {
            format!("is {sigma_min}, expected more than 0 and less than sigma_max = {sigma_max}")
        });
    }

    fn spacing(&mut self, spacing: Spacing) {
        if let Spacing::Karras { rho } = spacing {
            self.that(rho > 0.0, "spacing", || format!("has rho = {rho}, expected more than 0"));
        }
    }

    fn guidance(&mut self, guidance: Option<f64>) {
        self.that(guidance.is_none_or(f64::is_finite), "guidance", || "expected a finite number".into());
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

    #[test]
    fn a_dpm_solver_needs_as_many_steps_as_its_order() {
        let dpm = |steps, order, multistep, lower_order_final| {
            let c = DpmConfig { steps, order, multistep, lower_order_final, ..DpmConfig::default() };
            SamplerConfig::Dpmpp(c).validate().into_iter().map(|i| i.key).collect::<Vec<_>>()
        };
        assert_eq!(dpm(2, 3, true, true), ["dpmpp.steps"]);
        assert_eq!(dpm(7, 3, false, false), ["dpmpp.steps"]);
        assert_eq!(dpm(7, 4, true, true), ["dpmpp.order"]);
        assert_eq!(dpm(7, 3, false, true), [""; 0]);
    }

    #[test]
    fn orders_rise_and_fall_as_told() {
        let orders = |steps, order, multistep, lower_order_final| {
            DpmConfig { steps, order, multistep, lower_order_final, ..DpmConfig::default() }.orders()
        };
        assert_eq!(orders(6, 3, true, true), [1, 2, 3, 3, 2, 1]);
        assert_eq!(orders(6, 3, true, false), [1, 2, 3, 3, 3, 3]);
        assert_eq!(orders(6, 3, false, true), [3, 2, 1]);
        assert_eq!(orders(6, 3, false, false), [3, 3]);
        assert_eq!(orders(7, 3, false, true), [3, 3, 1]);
        assert_eq!(orders(5, 2, false, true), [2, 2, 1]);
    }

    #[test]
    fn guidance_doubles_the_evaluations() {
        let config = SamplerConfig::Ddim(GridConfig { steps: 10, guidance: Some(1.5), ..GridConfig::default() });
        assert_eq!(config.nfe(), 20);
        assert_eq!(config.with_nfe(8).unwrap().steps(), 4);
        assert!(config.with_nfe(7).is_err());
    }
}
