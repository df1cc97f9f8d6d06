//! Consistency distillation and training (Song et al. 2023, arXiv 2303.01469), and improved consistency training (Song &
//! Dhariwal 2023, arXiv 2310.14189): neighbouring noise levels of a grid, which training may refine.

use crate::distance::{Distance, DistanceConfig};
use crate::ect::FINEST_DECAY;
use crate::grid::karras_sigmas;
use lcsc_torch::{Invalid, Kind, Result, Tensor, tch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The noise levels between which consistency is asked for: Karras et al.'s grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConsistencyGrid {
    /// Lowest noise level, where the model is the identity.
    pub sigma_min: f64,
    /// Highest noise level.
    pub sigma_max: f64,
    /// Exponent of the grid.
    pub rho: f64,
}

impl Default for ConsistencyGrid {
    fn default() -> Self {
        Self { sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 }
    }
}

/// Consistency distillation (Song et al. 2023, algorithm 2): the stage's `teacher` steps along its ODE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CdConfig {
    /// N, the number of noise levels.
    pub num_scales: u64,
    /// Noise levels.
    pub grid: ConsistencyGrid,
    /// How the teacher's ODE is solved.
    pub solver: TeacherSolver,
    /// μ of the target network's moving average; 0 makes the online weights the target.
    pub target_ema: f64,
    /// Dropout of the teacher while it steps.
    pub teacher_dropout: f64,
    /// The distance d.
    pub distance: DistanceConfig,
    /// λ(σ).
    pub weighting: Weighting,
}

/// A step of the teacher from one noise level of the grid to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TeacherSolver {
    /// First order, one evaluation.
    Euler,
    /// Second order, two evaluations.
    Heun,
}

/// Consistency training (Song et al. 2023, algorithm 3): the clean image takes the teacher's place, and the grid of
/// N(k) = ⌈√(k/K·((s₁+1)² − s₀²) + s₀²) − 1⌉ + 1 levels grows with the steps k of K.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CtConfig {
    /// s₀, the first number of intervals.
    pub s_0: u64,
    /// s₁, the last number of intervals.
    pub s_1: u64,
    /// μ₀ of the target network's moving average, μ(k) = exp(s₀·ln μ₀/(N(k) − 1)).
    pub mu_0: f64,
    /// Noise levels.
    pub grid: ConsistencyGrid,
    /// The distance d.
    pub distance: DistanceConfig,
    /// λ(σ).
    pub weighting: Weighting,
}

/// Improved consistency training: no target network, noise levels drawn lognormally, weights 1/(σ_{i+1} − σ_i), and a grid
/// whose number of intervals doubles from s₀ to s₁.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IctConfig {
    /// s₀, the first number of intervals.
    pub s_0: u64,
    /// s₁, the last number of intervals.
    pub s_1: u64,
    /// Mean of ln σ.
    pub p_mean: f64,
    /// Standard deviation of ln σ.
    pub p_std: f64,
    /// Noise levels.
    pub grid: ConsistencyGrid,
    /// The distance d.
    pub distance: DistanceConfig,
}

/// The weight λ of a consistency loss at σ (OpenAI's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// 1.
    Uniform,
    /// 1/σ².
    Snr,
    /// 1/σ² + 1.
    #[serde(rename = "snr+1")]
    SnrPlusOne,
    /// 1/σ² + 1/σ_data² with σ_data = ½.
    Karras,
    /// max(1/σ², 1).
    TruncatedSnr,
}

impl Default for CdConfig {
    fn default() -> Self {
        Self {
            num_scales: 18,
            grid: ConsistencyGrid::default(),
            solver: TeacherSolver::Heun,
            target_ema: 0.0,
            teacher_dropout: 0.0,
            distance: DistanceConfig::L2,
            weighting: Weighting::Uniform,
        }
    }
}

impl Default for CtConfig {
    fn default() -> Self {
        Self {
            s_0: 2,
            s_1: 150,
            mu_0: 0.9,
            grid: ConsistencyGrid::default(),
            distance: DistanceConfig::L2,
            weighting: Weighting::Uniform,
        }
    }
}

impl Default for IctConfig {
    fn default() -> Self {
        Self {
            s_0: 10,
            s_1: 1280,
            p_mean: -1.1,
            p_std: 2.0,
            grid: ConsistencyGrid::default(),
            distance: DistanceConfig::Huber { c: None },
        }
    }
}

impl Weighting {
    /// λ(σ) of σ f32 `[B]`.
    pub fn of(self, sigma: &Tensor) -> Tensor {
        let snr = sigma.square().reciprocal();
        match self {
            Self::Uniform => sigma.ones_like(),
            Self::Snr => snr,
            Self::SnrPlusOne => snr + 1.0,
            Self::Karras => snr + 1.0 / (crate::SIGMA_DATA * crate::SIGMA_DATA),
            Self::TruncatedSnr => snr.clamp_min(1.0),
        }
    }
}

impl ConsistencyGrid {
    /// N noise levels, falling.
    pub(crate) fn sigmas(&self, num_scales: u64) -> Vec<f64> {
        karras_sigmas(num_scales as usize, self.sigma_min, self.sigma_max, self.rho)
    }

    /// What cannot work with at most so many levels.
    fn validate(&self, num_scales: u64, key: &str) -> Vec<Invalid> {
        let ConsistencyGrid { sigma_min, sigma_max, rho } = *self;
        let mut found = Vec::new();
        if !(0.0 < sigma_min && sigma_min < sigma_max && sigma_max.is_finite()) {
            let message = format!("is {sigma_min}, expected more than 0 and less than sigma_max = {sigma_max}");
            found.push(Invalid::new("grid.sigma_min", message));
        } else if rho < 1.0 {
            found.push(Invalid::new("grid.rho", format!("is {rho}, expected at least 1")));
        } else {
            // The relative gap between the highest levels is the smallest.
            let step = (1.0 - (sigma_min / sigma_max).powf(1.0 / rho)) / num_scales.saturating_sub(1).max(1) as f64;
            let gap = 1.0 - (1.0 - step).powf(rho);
            if gap < FINEST_DECAY {
                let message = format!(
                    "leads to {num_scales} noise levels, the highest of which differ by a share of {gap:.1e}: f32 cannot \
                     tell them apart; expected {FINEST_DECAY:.1e} or more"
                );
                found.push(Invalid::new(key, message));
            }
        }
        found
    }
}

impl CdConfig {
    pub(crate) fn validate(&self) -> Vec<Invalid> {
        let mut found = self.grid.validate(self.num_scales, "num_scales");
        if self.num_scales < 2 {
            found.push(Invalid::new("num_scales", format!("is {}, expected at least 2", self.num_scales)));
        }
        for (key, p) in [("target_ema", self.target_ema), ("teacher_dropout", self.teacher_dropout)] {
            if !(0.0..1.0).contains(&p) {
                found.push(Invalid::new(key, format!("is {p}, expected a number in [0, 1)")));
            }
        }
        found.into_iter().chain(self.distance.validate()).collect()
    }
}

impl CtConfig {
    /// N(k), the number of noise levels at step k of K.
    pub fn num_scales(&self, k: u64, steps: u64) -> u64 {
        self.intervals(k, steps) + 1
    }

    /// μ(k), the decay of the target network's moving average after step k of K.
    pub fn target_ema(&self, k: u64, steps: u64) -> f64 {
        (self.s_0 as f64 * self.mu_0.ln() / self.intervals(k, steps) as f64).exp()
    }

    fn intervals(&self, k: u64, steps: u64) -> u64 {
        let (s_0, s_1) = (self.s_0 as f64, self.s_1 as f64);
        let grown = k as f64 / steps as f64 * ((s_1 + 1.0).powi(2) - s_0 * s_0) + s_0 * s_0;
        ((grown.sqrt() - 1.0).ceil() as u64).max(1)
    }

    pub(crate) fn validate(&self) -> Vec<Invalid> {
        let mut found = check_intervals(self.s_0, self.s_1, &self.grid);
        if !(0.0..1.0).contains(&self.mu_0) || self.mu_0 == 0.0 {
            found.push(Invalid::new("mu_0", format!("is {}, expected a number between 0 and 1", self.mu_0)));
        }
        found.into_iter().chain(self.distance.validate()).collect()
    }
}

impl IctConfig {
    /// N(k) = min(s₀·2^⌊k/K'⌋, s₁) + 1 with K' = ⌊K/(log₂⌊s₁/s₀⌋ + 1)⌋ (Song & Dhariwal 2023, eq. 17).
    pub fn num_scales(&self, k: u64, steps: u64) -> u64 {
        let doublings = k.checked_div(self.steps_a_doubling(steps)).unwrap_or(0).min(62);
        self.s_0.saturating_mul(1 << doublings).min(self.s_1) + 1
    }

    fn steps_a_doubling(&self, steps: u64) -> u64 {
        (steps as f64 / (((self.s_1 / self.s_0.max(1)) as f64).log2() + 1.0)) as u64
    }

    /// The probability of each interval of a rising grid: that of a normal ln σ within it.
    pub(crate) fn probabilities(&self, rising: &[f64]) -> Result<Vec<f64>> {
        let ends: Vec<f64> = rising.iter().map(|s| (s.ln() - self.p_mean) / (2f64.sqrt() * self.p_std)).collect();
        let erf = Tensor::from_slice(&ends).erf();
        let weights = (erf.slice(0, 1, None, 1) - erf.slice(0, 0, -1, 1)).clamp_min(0.0);
        let sum = weights.sum(Kind::Double);
        Ok(Vec::<f64>::try_from(weights / sum)?)
    }

    pub(crate) fn validate(&self, steps: u64) -> Vec<Invalid> {
        let mut found = check_intervals(self.s_0, self.s_1, &self.grid);
        if self.p_std <= 0.0 {
            found.push(Invalid::new("p_std", format!("is {}, expected more than 0", self.p_std)));
        }
        if found.is_empty() && self.steps_a_doubling(steps) == 0 {
            let (s_0, s_1) = (self.s_0, self.s_1);
            let message =
                format!("is {s_1}: {steps} steps are too few to double the intervals from s_0 = {s_0} so far");
            found.push(Invalid::new("s_1", message));
        }
        found.into_iter().chain(self.distance.validate()).collect()
    }
}

/// What cannot work of a grid that grows from s₀ to s₁ intervals.
fn check_intervals(s_0: u64, s_1: u64, grid: &ConsistencyGrid) -> Vec<Invalid> {
    if s_0 < 1 || s_1 < s_0 {
        let message = format!("is {s_0}, expected at least 1 and at most s_1 = {s_1}");
        return vec![Invalid::new("s_0", message)];
    }
    grid.validate(s_1.saturating_add(1), "s_1")
}

/// d(f(x_t,t), f⁻(x_r,r)) for neighbouring noise levels t > r f32 `[B]` and x_t, x_r f32 `[B,C,H,W]` of one trajectory
/// → f32 `[B]`. No gradient goes through the target f⁻. (Song et al. 2023, eq. 7 and 10.)
pub fn consistency_loss(
    online: impl Fn(&Tensor, &Tensor) -> Tensor,
    target: impl Fn(&Tensor, &Tensor) -> Tensor,
    (x_t, t): (&Tensor, &Tensor),
    (x_r, r): (&Tensor, &Tensor),
    distance: &Distance,
) -> Tensor {
    let f_t = online(x_t, t);
    let f_r = tch::no_grad(|| target(x_r, r));
    distance.between(&f_t, &f_r)
}

/// A step of the teacher's ODE from x_t at t to x_r at r, all of a batch, without gradient.
pub fn teacher_step(
    teacher: impl Fn(&Tensor, &Tensor) -> Tensor,
    solver: TeacherSolver,
    x_t: &Tensor,
    t: &Tensor,
    r: &Tensor,
) -> Tensor {
    let column = |s: &Tensor| s.reshape([-1, 1, 1, 1]);
    let slope = |x: &Tensor, s: &Tensor| (x - teacher(x, s)) / column(s);
    tch::no_grad(|| {
        let h = column(r) - column(t);
        let d = slope(x_t, t);
        let x_r = x_t + &d * &h;
        match solver {
            TeacherSolver::Euler => x_r,
            TeacherSolver::Heun => x_t + (d + slope(&x_r, r)) * (h * 0.5),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Points of OpenAI's create_ema_and_scales_fn are in the parity test of schedules.
    #[test]
    fn improved_training_doubles_its_grid() {
        let config = IctConfig::default();
        // K' = ⌊400000/8⌋ = 50000.
        let found = [0, 49_999, 50_000, 100_000, 350_000, 399_999].map(|k| config.num_scales(k, 400_000));
        assert_eq!(found, [11, 11, 21, 41, 1281, 1281]);
        assert_eq!(config.validate(7)[0].key, "s_1");
        assert_eq!(config.validate(8), vec![]);
    }

    #[test]
    fn lognormal_intervals_have_their_probability() {
        let config = IctConfig::default();
        let rising: Vec<f64> = config.grid.sigmas(11).into_iter().rev().collect();
        let p = config.probabilities(&rising).unwrap();
        assert!(p.len() == 10 && (p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let most = p.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i).unwrap();
        assert!(rising[most] < 0.4 && rising[most + 1] > 0.3, "{p:?}");
    }

    #[test]
    fn a_grid_that_f32_cannot_follow_is_refused() {
        let keys = |s_0, s_1| CtConfig { s_0, s_1, ..CtConfig::default() }.validate().into_iter().map(|i| i.key);
        assert!(keys(2, 200).next().is_none());
        assert_eq!(keys(2, 100_000_000).next().as_deref(), Some("s_1"));
        assert_eq!(keys(9, 3).next().as_deref(), Some("s_0"));
        assert_eq!(CdConfig { num_scales: 1, ..CdConfig::default() }.validate()[0].key, "num_scales");
    }

    #[test]
    fn no_gradient_reaches_target_or_teacher() {
        let w = Tensor::from_slice(&[2f32]).set_requires_grad(true);
        let column = |s: &Tensor| s.reshape([-1, 1, 1, 1]);
        let f = |x: &Tensor, s: &Tensor| x * &w + column(s);
        let (t, r) = (Tensor::from_slice(&[1f32]), Tensor::from_slice(&[0.5f32]));
        let x_t = Tensor::ones([1, 1, 1, 1], (Kind::Float, tch::Device::Cpu));
        let x_r = teacher_step(f, TeacherSolver::Heun, &x_t, &t, &r);
        assert!(!x_r.requires_grad());
        // d = (1 − 3)/1 = −2, x = 2; there d' = (2 − 4.5)/0.5 = −5: 1 + (−2 − 5)/2·(−½) = 2.75.
        assert!((x_r.double_value(&[0, 0, 0, 0]) - 2.75).abs() < 1e-6);
        let loss = consistency_loss(f, f, (&x_t, &t), (&x_r, &r), &Distance::L2);
        // f(x_t) = w + 1 = 3, the target 2.75·2 + ½ = 6 is held fixed: d/dw (3 − 6)² = −6.
        let grad = Tensor::run_backward(&[loss.sum(Kind::Float)], &[&w], false, false).remove(0);
        assert!((grad.double_value(&[0]) + 6.0).abs() < 1e-5);
    }
}
