//! Preconditioning: D(x;σ) = c_skip·x + c_out·F(c_in·x; c_noise)  (Karras et al. 2022, eq. 7 and table 1).

use crate::schedule::{DiscreteSchedule, VpSchedule};
use lcsc_torch::{Invalid, Kind, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Standard deviation of the data that the published recipes assume.
pub const SIGMA_DATA: f64 = 0.5;

/// What surrounds the network, and what it is told of the noise level: a property of trained weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PreconditioningConfig {
    /// EDM: the network's input and target have unit variance (Karras et al. 2022).
    Edm(EdmPreconditioning),
    /// The network predicts the noise ε of continuous DDPM, the VP column of EDM's table 1 (Song et al. 2021).
    Vp(VpPreconditioning),
    /// The VE column of EDM's table 1 (Song et al. 2021).
    Ve(VePreconditioning),
    /// The network predicts the noise ε of DDPM with its linear schedule (Ho et al. 2020).
    Ddpm(DdpmPreconditioning),
    /// The network predicts the noise ε of improved DDPM with its cosine schedule: the iDDPM column of EDM's table 1
    /// (Nichol & Dhariwal 2021).
    Iddpm(IddpmPreconditioning),
}

/// Constants of EDM's preconditioning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EdmPreconditioning {
    /// σ_data, the standard deviation of the data.
    pub sigma_data: f64,
    /// c_noise: how the network is told the noise level.
    pub time_input: TimeInput,
}

/// The network's noise level input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimeInput {
    /// ¼·ln σ (EDM).
    Edm,
    /// 1000·¼·ln(σ + 1e-44) (OpenAI's consistency models).
    OpenAi,
}

/// Constants of the continuous VP schedule σ(t) = √(exp(½·β_d·t² + β_min·t) − 1), 0 < t ≤ 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VpPreconditioning {
    /// β_d, the slope of β(t).
    pub beta_d: f64,
    /// β_min = β(0).
    pub beta_min: f64,
    /// M: the network is told (M−1)·t.
    pub m: u64,
    /// Lowest t in training.
    pub epsilon_t: f64,
}

/// Noise levels that a VE network supports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VePreconditioning {
    /// Lowest σ.
    pub sigma_min: f64,
    /// Highest σ.
    pub sigma_max: f64,
}

/// The linear schedule: β_i between these two in equal steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DdpmPreconditioning {
    /// β of the first time step.
    pub beta_start: f64,
    /// β of the last time step.
    pub beta_end: f64,
    /// T, the number of time steps.
    pub steps: u64,
}

/// The cosine schedule: ᾱ falls as sin²(½π·j/(M·(C₂+1))), each β at most 1 − C₁.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IddpmPreconditioning {
    /// C₁: the least ᾱ_{j−1}/ᾱ_j.
    pub c_1: f64,
    /// C₂: the offset of the cosine.
    pub c_2: f64,
    /// M, the number of time steps.
    pub m: u64,
    /// Whether the network has as many channels again for the variance: they are not used.
    pub learn_sigma: bool,
}

impl Default for EdmPreconditioning {
    fn default() -> Self {
        Self { sigma_data: SIGMA_DATA, time_input: TimeInput::Edm }
    }
}

impl Default for VpPreconditioning {
    fn default() -> Self {
        Self { beta_d: 19.9, beta_min: 0.1, m: 1000, epsilon_t: 1e-5 }
    }
}

impl Default for VePreconditioning {
    fn default() -> Self {
        Self { sigma_min: 0.02, sigma_max: 100.0 }
    }
}

impl Default for DdpmPreconditioning {
    fn default() -> Self {
        Self { beta_start: 1e-4, beta_end: 0.02, steps: 1000 }
    }
}

impl Default for IddpmPreconditioning {
    fn default() -> Self {
        Self { c_1: 0.001, c_2: 0.008, m: 4000, learn_sigma: false }
    }
}

impl Default for PreconditioningConfig {
    fn default() -> Self {
        Self::Edm(EdmPreconditioning::default())
    }
}

impl PreconditioningConfig {
    /// Everything about it that cannot work.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut check = |ok: bool, key: &str, expected: &str| {
            if !ok {
                found.push(Invalid::new(key, format!("expected {expected}")));
            }
        };
        const STEPS: std::ops::RangeInclusive<u64> = 2..=100_000;
        match self {
            Self::Edm(c) => check(c.sigma_data > 0.0, "edm.sigma_data", "more than 0"),
            Self::Vp(c) => {
                check(c.beta_d > 0.0, "vp.beta_d", "more than 0");
                check(c.beta_min >= 0.0, "vp.beta_min", "0 or more");
                check(c.epsilon_t > 0.0 && c.epsilon_t < 1.0, "vp.epsilon_t", "a number between 0 and 1");
                check(c.m >= 2, "vp.m", "at least 2");
            }
            Self::Ve(c) => {
                check(0.0 < c.sigma_min && c.sigma_min < c.sigma_max, "ve.sigma_min", "0 < sigma_min < sigma_max")
            }
            Self::Ddpm(c) => {
                let rises = 0.0 < c.beta_start && c.beta_start <= c.beta_end && c.beta_end < 1.0;
                check(rises, "ddpm.beta_start", "0 < beta_start ≤ beta_end < 1");
                check(STEPS.contains(&c.steps), "ddpm.steps", "2 to 100,000 time steps");
            }
            Self::Iddpm(c) => {
                check(c.c_1 > 0.0 && c.c_1 < 1.0, "iddpm.c_1", "a number between 0 and 1");
                check(c.c_2 > 0.0, "iddpm.c_2", "more than 0");
                check(STEPS.contains(&c.m), "iddpm.m", "2 to 100,000 time steps");
            }
        }
        found
    }

    /// Channels that the network gives, for images of so many.
    pub fn out_channels(&self, channels: i64) -> i64 {
        match self {
            Self::Iddpm(c) if c.learn_sigma => 2 * channels,
            Self::Edm(_) | Self::Vp(_) | Self::Ve(_) | Self::Ddpm(_) | Self::Iddpm(_) => channels,
        }
    }
}

/// A preconditioning with its noise schedule worked out.
#[derive(Debug)]
pub enum Preconditioning {
    /// Of [`PreconditioningConfig::Edm`].
    Edm(EdmPreconditioning),
    /// Of [`PreconditioningConfig::Vp`].
    Vp(VpSchedule),
    /// Of [`PreconditioningConfig::Ve`].
    Ve(VePreconditioning),
    /// Of [`PreconditioningConfig::Ddpm`]; between time steps the schedule is interpolated.
    Ddpm(DiscreteSchedule),
    /// Of [`PreconditioningConfig::Iddpm`]; noise levels are rounded to those of time steps.
    Iddpm(DiscreteSchedule),
}

/// Which scalings surround the network in a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalings {
    /// Those of the preconditioning.
    Plain,
    /// EDM's with the boundary condition D(x;σ_min) = x of a consistency model (Song et al. 2023, appendix C).
    Boundary {
        /// The σ at which D is the identity.
        sigma_min: f64,
    },
}

/// The four coefficients for a batch of noise levels.
#[derive(Debug)]
pub struct Coefficients {
    /// `[B,1,1,1]`
    pub c_skip: Tensor,
    /// `[B,1,1,1]`
    pub c_out: Tensor,
    /// `[B,1,1,1]`
    pub c_in: Tensor,
    /// `[B]`
    pub c_noise: Tensor,
}

impl Preconditioning {
    /// Works out the schedule of a valid configuration.
    pub fn new(config: &PreconditioningConfig) -> Self {
        match config {
            PreconditioningConfig::Edm(c) => Self::Edm(c.clone()),
            PreconditioningConfig::Vp(c) => Self::Vp(VpSchedule(c.clone())),
            PreconditioningConfig::Ve(c) => Self::Ve(c.clone()),
            PreconditioningConfig::Ddpm(c) => Self::Ddpm(DiscreteSchedule::linear(c)),
            PreconditioningConfig::Iddpm(c) => Self::Iddpm(DiscreteSchedule::cosine(c)),
        }
    }

    /// The coefficients at σ f32 `[B]`. Boundary scalings are for EDM's preconditioning: no other has a boundary
    /// condition.
    pub fn coefficients(&self, sigma: &Tensor, scalings: Scalings) -> Coefficients {
        let s = sigma.reshape([-1, 1, 1, 1]);
        match self {
            Self::Edm(c) => c.coefficients(sigma, scalings),
            Self::Ve(_) => {
                let (one, c_noise) = (s.ones_like(), (sigma * 0.5).log());
                Coefficients { c_skip: one.shallow_clone(), c_out: s, c_in: one, c_noise }
            }
            Self::Vp(schedule) => predicting_noise(&s, schedule.c_noise(sigma)),
            Self::Ddpm(schedule) => predicting_noise(&s, schedule.interpolated_step(sigma)),
            Self::Iddpm(schedule) => predicting_noise(&s, schedule.nearest_step(sigma)),
        }
    }

    /// The lowest and highest σ that the network is for.
    pub fn sigma_range(&self) -> (f64, f64) {
        match self {
            Self::Edm(_) => (0.0, f64::INFINITY),
            Self::Ve(c) => (c.sigma_min, c.sigma_max),
            Self::Vp(schedule) => (schedule.sigma(schedule.0.epsilon_t), schedule.sigma(1.0)),
            Self::Ddpm(schedule) | Self::Iddpm(schedule) => schedule.range(),
        }
    }

    /// The noise level nearest to σ that the network can be told.
    pub fn round_sigma(&self, sigma: f64) -> f64 {
        match self {
            Self::Edm(_) | Self::Vp(_) | Self::Ve(_) | Self::Ddpm(_) => sigma,
            Self::Iddpm(schedule) => schedule.nearest(sigma),
        }
    }

    /// The time of a noise level in the network's own schedule; σ itself where it has none.
    pub fn time(&self, sigma: f64) -> f64 {
        match self {
            Self::Edm(_) | Self::Ve(_) => sigma,
            Self::Vp(schedule) => schedule.time(sigma),
            Self::Ddpm(schedule) | Self::Iddpm(schedule) => schedule.time(sigma),
        }
    }

    /// The noise level at a time, the inverse of [`Preconditioning::time`].
    pub fn sigma(&self, time: f64) -> f64 {
        match self {
            Self::Edm(_) | Self::Ve(_) => time,
            Self::Vp(schedule) => schedule.sigma(time),
            Self::Ddpm(schedule) | Self::Iddpm(schedule) => schedule.sigma(time),
        }
    }
}

impl EdmPreconditioning {
    fn coefficients(&self, sigma: &Tensor, scalings: Scalings) -> Coefficients {
        let sd2 = self.sigma_data * self.sigma_data;
        let s = sigma.reshape([-1, 1, 1, 1]);
        let total: Tensor = s.square() + sd2; // σ² + σ_data²
        let (c_skip, c_out) = match scalings {
            Scalings::Plain => (sd2 * total.reciprocal(), &s * self.sigma_data / total.sqrt()),
            Scalings::Boundary { sigma_min } => {
                let above = &s - sigma_min;
                let c_skip = sd2 * (above.square() + sd2).reciprocal();
                (c_skip, above * self.sigma_data / total.sqrt())
            }
        };
        let quarter_log = match self.time_input {
            TimeInput::Edm => sigma.flatten(0, -1).log() / 4.0,
            TimeInput::OpenAi => (sigma.flatten(0, -1) + 1e-44).log() * (1000.0 / 4.0),
        };
        Coefficients { c_skip, c_out, c_in: total.rsqrt(), c_noise: quarter_log }
    }
}

/// D = x − σ·F(x/√(σ²+1)): F predicts the unit noise ε.
fn predicting_noise(s: &Tensor, c_noise: Tensor) -> Coefficients {
    Coefficients {
        c_skip: s.ones_like(),
        c_out: s.neg(),
        c_in: (s.square() + 1.0).rsqrt(),
        c_noise: c_noise.to_kind(Kind::Float),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(c: &Coefficients) -> [f64; 4] {
        [&c.c_skip, &c.c_out, &c.c_in, &c.c_noise].map(|t| t.reshape([-1]).double_value(&[0]))
    }

    fn at(config: &PreconditioningConfig, sigma: f32, scalings: Scalings) -> [f64; 4] {
        values(&Preconditioning::new(config).coefficients(&Tensor::from_slice(&[sigma]), scalings))
    }

    #[test]
    fn edm_coefficients_at_sigma_data() {
        let found = at(&PreconditioningConfig::default(), 0.5, Scalings::Plain);
        let expected = [0.5, 0.5 * 0.5 / 0.5f64.sqrt(), 0.5f64.powf(-0.5), 0.5f64.ln() / 4.0];
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-6, "{found:?} instead of {expected:?}");
        }
        let openai = EdmPreconditioning { time_input: TimeInput::OpenAi, ..EdmPreconditioning::default() };
        let c_noise = at(&PreconditioningConfig::Edm(openai), 0.5, Scalings::Plain)[3];
        assert!((c_noise - 250.0 * 0.5f64.ln()).abs() < 1e-3, "{c_noise}");
    }

    #[test]
    fn the_boundary_condition_is_the_identity() {
        let [c_skip, c_out, ..] = at(&PreconditioningConfig::default(), 0.003, Scalings::Boundary { sigma_min: 0.003 });
        assert!((c_skip - 1.0).abs() < 1e-6 && c_out.abs() < 1e-9, "{c_skip} {c_out}");
    }

    #[test]
    fn networks_that_predict_noise_are_told_their_time_step() {
        // ᾱ of time step 0 is 1 − β_start, so σ² = β/(1 − β).
        let ddpm = PreconditioningConfig::Ddpm(DdpmPreconditioning::default());
        let sigma = (1e-4f64 / (1.0 - 1e-4)).sqrt();
        let [c_skip, c_out, c_in, c_noise] = at(&ddpm, sigma as f32, Scalings::Plain);
        assert!(c_skip == 1.0 && (c_out + sigma).abs() < 1e-8 && (c_in - 1.0).abs() < 1e-4 && c_noise.abs() < 1e-2);
        let p = Preconditioning::new(&ddpm);
        let (low, high) = p.sigma_range();
        assert!((low - sigma).abs() < 1e-12 && (high - 157.4).abs() < 0.1, "{low} {high}");
        // Continuous and discrete schedule agree in the middle.
        let vp = PreconditioningConfig::Vp(VpPreconditioning::default());
        let [.., discrete] = at(&ddpm, 1.0, Scalings::Plain);
        let [.., continuous] = at(&vp, 1.0, Scalings::Plain);
        assert!((discrete - continuous).abs() < 1.0, "{discrete} {continuous}");
    }

    #[test]
    fn times_and_noise_levels_are_each_others_inverse() {
        for config in [
            PreconditioningConfig::default(),
            PreconditioningConfig::Vp(VpPreconditioning::default()),
            PreconditioningConfig::Ddpm(DdpmPreconditioning::default()),
            PreconditioningConfig::Iddpm(IddpmPreconditioning::default()),
        ] {
            let p = Preconditioning::new(&config);
            for sigma in [0.02, 0.3, 1.0, 7.0, 60.0] {
                let back = p.sigma(p.time(sigma));
                assert!((back / sigma - 1.0).abs() < 1e-9, "{config:?}: {sigma} became {back}");
            }
        }
    }

    #[test]
    fn rounding_goes_to_the_nearest_time_step() {
        let iddpm = PreconditioningConfig::Iddpm(IddpmPreconditioning { m: 1000, ..Default::default() });
        let p = Preconditioning::new(&iddpm);
        let rounded = p.round_sigma(1.0);
        assert!(rounded != 1.0 && (rounded - 1.0).abs() < 2e-3 && p.round_sigma(rounded) == rounded, "{rounded}");
        assert_eq!(Preconditioning::new(&PreconditioningConfig::default()).round_sigma(1.0), 1.0);
        // EDM's iDDPM column: u_0 ≈ 20,291 at M = 1000.
        let (low, high) = p.sigma_range();
        assert!(low > 0.0 && (high - 20_291.0).abs() < 10.0, "{low} {high}");
    }

    #[test]
    fn impossible_schedules_are_named() {
        let found = PreconditioningConfig::Ddpm(DdpmPreconditioning { beta_end: 1.0, steps: 1, ..Default::default() });
        let keys: Vec<String> = found.validate().into_iter().map(|i| i.key).collect();
        assert_eq!(keys, ["ddpm.beta_start", "ddpm.steps"]);
    }
}
