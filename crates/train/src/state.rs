//! What a stage remembers beside its tensors, and what it logs.

use crate::loss_scale::SavedLossScale;
use serde::{Deserialize, Serialize};

/// A line of `train.jsonl`: means over the images since the line before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tick {
    /// Stage.
    pub stage: String,
    /// Images trained in this stage.
    pub nimg: u64,
    /// Images trained in the run.
    pub total_nimg: u64,
    /// Mean loss an image; none where no step was good.
    pub loss: Option<f64>,
    /// Mean norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Images a second.
    pub img_per_s: f64,
    /// Seconds trained in this stage.
    pub seconds: f64,
    /// Steps of this stage that were left out or mended because loss or gradient was not finite.
    pub non_finite_steps: u64,
}

/// A finished stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Its name.
    pub name: String,
    /// Images trained.
    pub nimg: u64,
    /// Seconds it took, over all sittings.
    pub seconds: f64,
}

/// The part of the training state that is no tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Hash of all settings that training depends on.
    pub config_hash: String,
    /// Name of the stage.
    pub stage: String,
    /// Images trained in it.
    pub nimg: u64,
    /// Optimizer steps taken.
    pub steps: i64,
    /// Seconds trained in it.
    pub seconds: f64,
    /// Threads of a CPU operation: the last bits of convolution gradients depend on it.
    pub threads: usize,
    /// Sums since the last tick.
    pub sums: Sums,
    /// Steps with a non-finite loss or gradient, in all and in a row.
    pub non_finite_steps: u64,
    pub non_finite_in_a_row: u64,
    /// Of training in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<SavedLossScale>,
    /// Stages before this one.
    pub finished: Vec<StageRecord>,
}

/// Sums over the steps since the last tick.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub loss: f64,
    pub grad_norm: f64,
    pub steps: u64,
}
