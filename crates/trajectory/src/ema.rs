//! Exponential moving averages of the weights: which, and the decay β of each step.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A moving average of the weights, kept while training: θ̂ ← β·θ̂ + (1−β)·θ after each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EmaConfig {
    /// Exponential, with an optional ramp-up (EDM, arXiv 2206.00364).
    HalfLife {
        /// Images after which a contribution has halved.
        nimg: u64,
        /// Keeps the half-life below this share of the images trained so far; by default there is no ramp-up.
        #[serde(default)]
        rampup_ratio: Option<f64>,
    },
    /// Power function, whose width grows with training (EDM2, arXiv 2312.02696).
    Power {
        /// Standard deviation of the profile over the length of training, in (0, 0.28].
        sigma_rel: f64,
    },
    /// The same decay for each step.
    Constant {
        /// Decay of one step, in [0, 1).
        beta: f64,
    },
}

impl EmaConfig {
    /// The name of the track, in files and tables.
    pub fn name(&self) -> String {
        match self {
            Self::HalfLife { nimg, .. } => format!("ema-h{nimg}"),
            Self::Power { sigma_rel } => format!("ema-p{sigma_rel:.3}"),
            Self::Constant { beta } => format!("ema-b{beta}"),
        }
    }

    /// β of the step that trains `batch` images after `nimg_before`.
    pub fn beta(&self, nimg_before: u64, batch: u64) -> f64 {
        match self {
            Self::HalfLife { nimg, rampup_ratio } => half_life_beta(*nimg as f64, *rampup_ratio, nimg_before, batch),
            Self::Power { sigma_rel } => power_function_beta(*sigma_rel, (nimg_before + batch) as f64, batch as f64),
            Self::Constant { beta } => *beta,
        }
    }
}

/// EDM's decay for a step of `batch` images after `nimg`: `0.5^(batch / max(min(half_life, nimg·ratio), 1e-8))`, all in
/// images.
pub fn half_life_beta(half_life_nimg: f64, rampup_ratio: Option<f64>, nimg: u64, batch: u64) -> f64 {
    let half_life = rampup_ratio.map_or(half_life_nimg, |ratio| half_life_nimg.min(nimg as f64 * ratio));
    0.5f64.powf(batch as f64 / half_life.max(1e-8))
}

/// EDM2's decay for a step of length `t_delta` that ends at `t_next`: `(1 − t_delta/t_next)^(γ+1)` (arXiv 2312.02696, §3.1).
pub fn power_function_beta(sigma_rel: f64, t_next: f64, t_delta: f64) -> f64 {
    (1.0 - t_delta / t_next).powf(sigma_rel_to_gamma(sigma_rel) + 1.0)
}

/// The exponent γ of the power function of relative width `sigma_rel` in (0, 0.28]: the largest real root of
/// γ³ + 7γ² + (16 − σ_rel⁻²)γ + (12 − σ_rel⁻²) (arXiv 2312.02696, appendix C).
pub fn sigma_rel_to_gamma(sigma_rel: f64) -> f64 {
    let s = sigma_rel.powi(-2);
    // Newton from 1/σ_rel, which lies right of the root where the cubic is convex: it falls monotonically to the root.
    let mut gamma = 1.0 / sigma_rel;
    loop {
        let value = ((gamma + 7.0) * gamma + 16.0 - s) * gamma + 12.0 - s;
        let slope = (3.0 * gamma + 14.0) * gamma + 16.0 - s;
        let next = gamma - value / slope;
        if next.is_nan() || next >= gamma {
            return gamma;
        }
        gamma = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-12, "{found} instead of {expected}");
    }

    // Computed by EDM2's reference code.
    #[test]
    fn gamma_follows_the_reference() {
        for (sigma_rel, gamma) in [
            (0.01, 96.99489782370986),
            (0.05, 16.972198602303447),
            (0.075, 10.289116448983853),
            (0.1, 6.937203937601809),
            (0.15, 3.5578687748994646),
            (0.2, 1.8262137798958404),
            (0.25, 0.71982395800071),
        ] {
            close(sigma_rel_to_gamma(sigma_rel), gamma);
        }
    }

    // Computed by EDM2's reference code.
    #[test]
    fn power_function_beta_follows_the_reference() {
        for (sigma_rel, t_next, t_delta, beta) in [
            (0.05, 1000.0, 128.0, 0.08530027938997979),
            (0.05, 1e6, 2048.0, 0.963825704953318),
            (0.05, 2e8, 2048.0, 0.9998159806776772),
            (0.1, 1000.0, 128.0, 0.3371841953514361),
            (0.1, 1e6, 2048.0, 0.9838596128766719),
            (0.1, 2e8, 2048.0, 0.9999187259184548),
        ] {
            close(power_function_beta(sigma_rel, t_next, t_delta), beta);
        }
    }

    #[test]
    fn half_life_halves_and_ramps_up() {
        assert_eq!(half_life_beta(1000.0, None, 0, 1000), 0.5);
        assert_eq!(half_life_beta(1000.0, Some(0.05), 0, 100), 0.0);
        assert_eq!(half_life_beta(1000.0, Some(0.05), 10_000, 500), 0.5);
        assert_eq!(half_life_beta(1000.0, Some(0.05), 10_000, 1000), 0.25);
        assert_eq!(half_life_beta(1000.0, Some(0.05), 1_000_000, 1000), 0.5);
    }

    #[test]
    fn each_track_has_its_name_and_decay() {
        let half_life = EmaConfig::HalfLife { nimg: 500_000, rampup_ratio: Some(0.05) };
        let power = EmaConfig::Power { sigma_rel: 0.05 };
        let constant = EmaConfig::Constant { beta: 0.9999 };
        assert_eq!((half_life.name(), half_life.beta(0, 512)), ("ema-h500000".into(), 0.0));
        assert_eq!((power.name(), power.beta(0, 512)), ("ema-p0.050".into(), 0.0));
        assert_eq!((constant.name(), constant.beta(0, 512)), ("ema-b0.9999".into(), 0.9999));
        close(power.beta(1_000_000 - 2048, 2048), 0.963825704953318);
    }

    #[test]
    fn configs_read_as_they_are_written() {
        let read = |text| serde_json::from_str::<EmaConfig>(text);
        let half_life = EmaConfig::HalfLife { nimg: 5, rampup_ratio: None };
        assert_eq!(read(r#"{"half_life": {"nimg": 5}}"#).unwrap(), half_life);
        assert_eq!(read(r#"{"power": {"sigma_rel": 0.1}}"#).unwrap(), EmaConfig::Power { sigma_rel: 0.1 });
        assert!(read(r#"{"power": {"sigma_rel": 0.1, "beta": 1}}"#).is_err());
    }

    proptest! {
        #[test]
        fn gamma_has_the_width_asked_for(sigma_rel in 1e-4..0.28) {
            let gamma = sigma_rel_to_gamma(sigma_rel);
            let width = ((gamma + 1.0) / ((gamma + 2.0).powi(2) * (gamma + 3.0))).sqrt();
            prop_assert!((width / sigma_rel - 1.0).abs() < 1e-10, "{width}");
        }
    }
}
