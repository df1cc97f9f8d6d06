//! Moving averages of the weights, one flat vector each.

use lcsc_torch::{Result, Tensor};
use lcsc_trajectory::EmaConfig;

/// `average` ← average + taken·(1−β)(θ − average), of f32 [P] and `taken` f32 [1].
pub(crate) fn follow(average: &mut Tensor, theta: &Tensor, beta: f64, taken: &Tensor) -> Result<()> {
    let _ = average.f_lerp_tensor_(theta, &taken.f_mul_scalar(1.0 - beta)?)?;
    Ok(())
}

/// One average: θ̂ ← θ̂ + (1−β)(θ − θ̂) after each step.
#[derive(Debug)]
pub struct EmaTrack {
    config: EmaConfig,
    /// f32 [P]
    pub theta: Tensor,
}

impl EmaTrack {
    /// An average that begins at `theta`.
    pub fn new(config: &EmaConfig, theta: &Tensor) -> Result<Self> {
        Ok(Self { config: config.clone(), theta: theta.f_detach_copy()? })
    }

    /// The track's name in files.
    pub fn name(&self) -> String {
        self.config.name()
    }

    /// Follows a step of `batch` images that began after `nimg` images of the stage; `taken` f32 [1] is 0 where it was left
    /// out.
    pub fn update(&mut self, theta: &Tensor, nimg: u64, batch: u64, taken: &Tensor) -> Result<()> {
        follow(&mut self.theta, theta, self.config.beta(nimg, batch), taken)
    }
}
