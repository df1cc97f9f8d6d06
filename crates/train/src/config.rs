//! What one stage of training is.

use crate::log::SHEET;
use lcsc_diffusion::{ObjectiveConfig, Span};
use lcsc_torch::{Invalid, Kind, OptimizerConfig};
use lcsc_trajectory::{EmaConfig, TrajectoryConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One stage: an objective trained for a number of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Name in logs, checkpoints and `start`.
    pub name: String,
    /// Where the weights come from; by default a fresh initialisation.
    #[serde(default)]
    pub start: Option<Start>,
    /// Images to train for.
    pub nimg: u64,
    /// Images an optimizer step.
    pub batch: u64,
    /// Images that go through the network at once (gradients are accumulated); by default the whole batch, or its share of a run
    /// that several processes begin.
    #[serde(default)]
    pub microbatch: Option<u64>,
    /// What is minimised.
    pub objective: ObjectiveConfig,
    /// The diffusion model that consistency distillation distils: of the same network.
    #[serde(default)]
    pub teacher: Option<Start>,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Images over which the learning rate rises linearly to its value.
    #[serde(default)]
    pub lr_ramp_nimg: u64,
    /// Largest gradient norm; by default gradients are not clipped.
    #[serde(default)]
    pub grad_clip: Option<f64>,
    /// What to do when loss or gradient is not finite.
    #[serde(default)]
    pub non_finite: NonFinite,
    /// Dropout of this stage, where it differs from the model's.
    #[serde(default)]
    pub dropout: Option<f64>,
    /// Moving averages of the weights, tracked side by side.
    #[serde(default)]
    pub ema: Vec<EmaConfig>,
    /// Checkpoints kept along the way; by default those of the last step alone.
    #[serde(default)]
    pub trajectory: Option<TrajectoryConfig>,
    /// Images between two lines of the log; by default a fiftieth of the stage, at most 50,000.
    #[serde(default)]
    pub tick_nimg: Option<u64>,
    /// Images between two sheets of samples in `samples/`; 0 makes none. By default a tenth of the stage, and never so often
    /// that sampling takes more than about two per cent of the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_nimg: Option<u64>,
    /// Minutes after which the training state is saved. By default as often as at most 20 MB a second are written so, after
    /// a quarter of a minute at least and five minutes at most. It is saved at the end and on a signal, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_minutes: Option<f64>,
}

/// How several processes train together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DistributedConfig {
    /// The type in which gradients travel between processes; each sums its own in f32 before, and the optimizer gets f32.
    pub gradients: GradientDtype,
}

/// The type in which gradients travel between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GradientDtype {
    /// Exact.
    #[default]
    F32,
    /// Half the bytes; sums are rounded to 8 bits of mantissa.
    Bf16,
}

impl GradientDtype {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// What saving states may write, on average.
const MOST_STATE_BYTES_A_SECOND: f64 = 20e6;
/// Images between two lines of the log of a long stage.
const MOST_TICK: u64 = 50_000;

/// Where weights come from: one of the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Start {
    /// A track at the end of an earlier stage.
    Stage {
        /// That stage's name.
        name: String,
        /// `raw` or the name of an EMA track; by default the first EMA track, or `raw` where there is none.
        #[serde(default)]
        track: Option<String>,
    },
    /// A weights file of the same network.
    Weights {
        /// The file.
        path: PathBuf,
    },
}

/// What to do with a step whose loss or gradient is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// End the run with an error; the state of the last good step is kept.
    #[default]
    Stop,
    /// Leave the weights as they are and go on; counted in the log.
    Skip,
    /// EDM's way: NaN becomes 0 and ±∞ becomes ±1e5 in the gradient; counted in the log.
    Zero,
}

impl StageConfig {
    /// The images that go through the network at once.
    pub fn round(&self) -> u64 {
        self.microbatch.unwrap_or(self.batch)
    }

    /// The images of the stage: whole steps, so up to one step more than `nimg` says.
    pub fn images(&self) -> u64 {
        self.steps() * self.batch
    }

    /// Optimizer steps of the stage.
    pub fn steps(&self) -> u64 {
        self.nimg.div_ceil(self.batch.max(1))
    }

    /// Names of all tracks: `raw`, then the EMAs.
    pub fn tracks(&self) -> Vec<String> {
        std::iter::once("raw".to_string()).chain(self.ema.iter().map(EmaConfig::name)).collect()
    }

    /// The track that a following stage starts from when nothing is said.
    pub fn default_track(&self) -> String {
        self.ema.first().map_or_else(|| "raw".to_string(), EmaConfig::name)
    }

    /// The checkpoints to keep.
    pub fn trajectory(&self) -> TrajectoryConfig {
        self.trajectory.clone().unwrap_or(TrajectoryConfig { every_nimg: 0, ..TrajectoryConfig::default() })
    }

    /// Images between two lines of the log.
    pub fn tick(&self) -> u64 {
        self.tick_nimg.unwrap_or((self.nimg / 50).min(MOST_TICK)).max(self.batch)
    }

    /// Seconds between two saved states of so many bytes.
    pub fn state_pause(&self, bytes: u64) -> f64 {
        let least = bytes as f64 / MOST_STATE_BYTES_A_SECOND;
        self.state_minutes.map_or_else(|| least.clamp(15.0, 300.0), |minutes| 60.0 * minutes)
    }

    /// Images between two sheets of samples of `nfe` network evaluations an image; none where none are made.
    pub fn samples_every(&self, nfe: usize) -> Option<u64> {
        // Training an image costs three evaluations.
        let dear = SHEET * nfe as u64 * 50 / 3;
        let every = self.sample_nimg.unwrap_or_else(|| (self.nimg / 10).max(dear));
        (every > 0).then(|| every.max(self.batch))
    }

    /// Everything about the stage itself that cannot work.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found: Vec<Invalid> = self
            .objective
            .validate(Span { nimg: self.nimg, steps: self.steps() })
            .into_iter()
            .map(|i| i.under("objective"))
            .collect();
        let mut check = |ok: bool, key: &str, message: String| {
            if !ok {
                found.push(Invalid::new(key, message));
            }
        };
        let name = self.objective.name();
        match (&self.teacher, self.objective.needs_teacher()) {
            (None, true) => {
                let message = "is missing: objective cd distils a diffusion model; add teacher.stage = { name = \"…\" } or \
                               teacher.weights = { path = \"…\" }";
                check(false, "teacher", message.into());
            }
            (Some(_), false) => check(false, "teacher", format!("has no use: objective {name} needs none")),
            (None, false) | (Some(_), true) => {}
        }
        let file_name_safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        check(
            !self.name.is_empty() && self.name.chars().all(file_name_safe),
            "name",
            format!("is `{}`, expected letters, digits, `-`, `_` or `.`", self.name),
        );
        check(self.nimg >= 1, "nimg", "is 0, expected at least 1".into());
        check(self.batch >= 1, "batch", "is 0, expected at least 1".into());
        let round = self.round();
        check(
            round >= 1 && self.batch.checked_rem(round) == Some(0),
            "microbatch",
            format!("is {round}, expected a divisor of batch = {}", self.batch),
        );
        let c = self.optimizer.constants();
        check(c.lr > 0.0 && c.lr.is_finite(), "optimizer", format!("has lr = {}, expected more than 0", c.lr));
        let betas_fit = c.betas.iter().all(|b| (0.0..1.0).contains(b));
        check(betas_fit, "optimizer", format!("has betas = {:?}, expected two numbers in [0, 1)", c.betas));
        check(
            self.grad_clip.is_none_or(|g| g > 0.0),
            "grad_clip",
            "must be more than 0; leave it out for no clipping".into(),
        );
        check(
            self.dropout.is_none_or(|p| (0.0..1.0).contains(&p)),
            "dropout",
            "expected a probability in [0, 1)".into(),
        );
        check(self.state_minutes.is_none_or(|m| m >= 0.0), "state_minutes", "must not be negative".into());
        let tracks = self.tracks();
        for (i, name) in tracks.iter().enumerate() {
            check(!tracks[..i].contains(name), "ema", format!("tracks `{name}` twice"));
        }
        for name in self.trajectory().tracks.iter().filter(|n| *n != "all" && !tracks.contains(n)) {
            let message = format!("names `{name}`, but this stage tracks {}", tracks.join(", "));
            check(false, "trajectory.tracks", message);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_diffusion::EdmConfig;

    pub(crate) fn stage() -> StageConfig {
        StageConfig {
            name: "edm".into(),
            start: None,
            nimg: 100,
            batch: 32,
            microbatch: None,
            objective: ObjectiveConfig::Edm(EdmConfig::default()),
            teacher: None,
            optimizer: OptimizerConfig::default(),
            lr_ramp_nimg: 0,
            grad_clip: None,
            non_finite: NonFinite::Stop,
            dropout: None,
            ema: vec![EmaConfig::Constant { beta: 0.9 }],
            trajectory: None,
            tick_nimg: None,
            sample_nimg: None,
            state_minutes: None,
        }
    }

    #[test]
    fn whole_steps_are_trained_and_defaults_derived() {
        let stage = stage();
        assert_eq!((stage.images(), stage.round(), stage.tick()), (128, 32, 32));
        assert_eq!(stage.default_track(), stage.tracks()[1]);
        assert_eq!(stage.validate(), vec![]);
    }

    #[test]
    fn every_problem_is_named() {
        let bad = StageConfig {
            name: "a/b".into(),
            microbatch: Some(5),
            grad_clip: Some(0.0),
            ema: vec![EmaConfig::Constant { beta: 0.9 }; 2],
            trajectory: Some(TrajectoryConfig { tracks: vec!["emma".into()], ..Default::default() }),
            ..stage()
        };
        let keys: Vec<String> = bad.validate().into_iter().map(|i| i.key).collect();
        assert_eq!(keys, ["name", "microbatch", "grad_clip", "ema", "trajectory.tracks"]);
    }
}
