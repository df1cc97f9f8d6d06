//! What a stage remembers beside its tensors, and what it logs.

use crate::judge::Outcome;
use crate::loss_scale::SavedLossScale;
use lcsc_diffusion::QUARTERS;
use lcsc_torch::{Error, Result, cpu_threads, default_threads, set_cpu_threads};
use lcsc_trajectory::TrainingState;
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
    /// The same in each quarter of the noise levels that the objective draws, from the lowest to the highest.
    #[serde(default)]
    pub loss_by_sigma: [Option<f64>; QUARTERS],
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
    /// GiB of host memory that the process has in use.
    #[serde(default)]
    pub host_gib: Option<f64>,
    /// GiB in use on the GPU.
    #[serde(default)]
    pub device_gib: Option<f64>,
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
    /// Losses in each quarter of the noise levels, and numbers of images.
    #[serde(default)]
    pub by_sigma: [[f64; QUARTERS]; 2],
}

impl Sums {
    /// And a good step.
    pub fn add(&mut self, outcome: &Outcome) {
        self.loss += outcome.loss;
        self.grad_norm += outcome.norm;
        self.steps += 1;
        let more = outcome.by_sigma.iter().flatten();
        self.by_sigma.iter_mut().flatten().zip(more).for_each(|(sum, more)| *sum += more);
    }

    /// A sum's mean over the steps.
    pub fn mean(&self, sum: f64) -> Option<f64> {
        (self.steps > 0).then(|| sum / self.steps as f64)
    }

    /// Mean loss of an image in each quarter of the noise levels.
    pub fn loss_by_sigma(&self) -> [Option<f64>; QUARTERS] {
        let [sums, images] = self.by_sigma;
        std::array::from_fn(|quarter| (images[quarter] > 0.0).then(|| sums[quarter] / images[quarter]))
    }
}

/// The progress in a training state, which is refused where it is of other settings.
pub(crate) fn read_progress(state: &TrainingState, config_hash: &str) -> Result<Progress> {
    let progress: Progress = serde_json::from_value(state.meta.clone())
        .map_err(|e| Error::msg(format!("the training state is of another version of this program: {e}")))?;
    if progress.config_hash != config_hash {
        return Err(Error::msg(
            "the run folder holds a training state of other settings (data, model, stages or seed were changed): \
             put them back to go on with it, or choose another folder with --out",
        ));
    }
    Ok(progress)
}

/// Uses the number of threads that the state was trained with, as far as the machine has them.
pub(crate) fn restore_threads(threads: usize) {
    if threads == cpu_threads() {
        return;
    }
    if threads <= default_threads() {
        tracing::info!("going on with {threads} CPU threads, as the saved state was trained");
        set_cpu_threads(threads);
    } else {
        tracing::warn!(
            "the saved state was trained with {threads} CPU threads, here are {}: the last bits of the result may differ \
             from an uninterrupted run",
            default_threads()
        );
    }
}
