//! Moving averages of the weights, one flat vector each.

use lcsc_torch::{Result, Tensor};
use lcsc_trajectory::EmaConfig;

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

    /// Follows a step of `batch` images that began after `nimg` images of the stage.
    pub fn update(&mut self, theta: &Tensor, nimg: u64, batch: u64) -> Result<()> {
        let _ = self.theta.f_lerp_(theta, 1.0 - self.config.beta(nimg, batch))?;
        Ok(())
    }
}
