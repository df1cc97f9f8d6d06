//! Optimizers on the flat vector: a few element-wise kernels a step whatever the number of tensors.

use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Which optimizer, with its constants; names and defaults are PyTorch's, `lr` is the rate after the ramp.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerConfig {
    /// Adam (Kingma & Ba 2015, algorithm 1).
    Adam(AdamConfig),
    /// Rectified Adam (Liu et al. 2020, algorithm 2).
    RAdam(AdamConfig),
}

/// The constants that Adam and RAdam share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamConfig {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8 }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adam(AdamConfig::default())
    }
}

impl OptimizerConfig {
    /// The constants.
    pub fn constants(&self) -> &AdamConfig {
        match self {
            Self::Adam(c) | Self::RAdam(c) => c,
        }
    }
}

/// An optimizer and its state: moments f32 [P] and the number of steps taken.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// First moment, f32 [P].
    pub exp_avg: Tensor,
    /// Second moment, f32 [P].
    pub exp_avg_sq: Tensor,
    /// Steps taken.
    pub steps: i64,
}

impl Optimizer {
    /// Zero moments for `theta`.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(config: OptimizerConfig, theta: &Tensor) -> Result<Self> {
        let zeros = || theta.f_zeros_like();
        Ok(Self { config, exp_avg: zeros()?, exp_avg_sq: zeros()?, steps: 0 })
    }

    /// One step of `theta` f32 [P] along `grad` f32 [P] at rate `lr`; call it without gradient tracking.
    ///
    /// # Errors
    /// A shape differs, or the device has no room.
    pub fn step(&mut self, theta: &mut Tensor, grad: &Tensor, lr: f64) -> Result<()> {
        if grad.size() != theta.size() || grad.kind() != Kind::Float {
            return Err(Error::Message(format!(
                "the gradient has shape {:?} and type {:?}, expected {:?} and Float",
                grad.size(),
                grad.kind(),
                theta.size()
            )));
        }
        let &AdamConfig { betas: [b1, b2], eps, .. } = self.config.constants();
        self.steps += 1;
        let t = self.steps as f64;
        let _ = self.exp_avg.f_lerp_(grad, 1.0 - b1)?;
        let _ = self.exp_avg_sq.f_lerp_(&grad.f_square()?, 1.0 - b2)?;
        let bias1 = 1.0 - b1.powf(t);
        let bias2 = 1.0 - b2.powf(t);
        let root =
            || -> Result<Tensor> { Ok(self.exp_avg_sq.f_sqrt()?.f_div_scalar_(bias2.sqrt())?.f_add_scalar_(eps)?) };
        let update = match &self.config {
            OptimizerConfig::Adam(_) => self.exp_avg.f_div(&root()?)?.f_mul_scalar_(-lr / bias1)?,
            OptimizerConfig::RAdam(_) => match rectification(b2, t) {
                // PyTorch adds eps before the bias correction here, unlike in its Adam.
                Some(r) => {
                    let root = self.exp_avg_sq.f_sqrt()?.f_add_scalar_(eps)?;
                    self.exp_avg.f_div(&root)?.f_mul_scalar_(-lr * r * bias2.sqrt() / bias1)?
                }
                None => self.exp_avg.f_mul_scalar(-lr / bias1)?,
            },
        };
        let _ = theta.f_add_(&update)?;
        Ok(())
    }
}

/// RAdam's variance rectification r_t, or none while the variance is intractable (ρ_t ≤ 5).
fn rectification(b2: f64, t: f64) -> Option<f64> {
    let rho_inf = 2.0 / (1.0 - b2) - 1.0;
    let rho = rho_inf - 2.0 * t * b2.powf(t) / (1.0 - b2.powf(t));
    (rho > 5.0).then(|| ((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// `theta` after `n` steps on f(x) = ½‖x − (1, −2)‖² from (0, 0) at rate 0.1.
    fn run(config: OptimizerConfig, n: usize) -> Vec<f64> {
        let mut theta = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let target = Tensor::from_slice(&[1f32, -2.0]);
        let mut optimizer = Optimizer::new(config, &theta).unwrap();
        for _ in 0..n {
            let grad = &theta - &target;
            optimizer.step(&mut theta, &grad, 0.1).unwrap();
        }
        Vec::<f64>::try_from(theta.to_kind(Kind::Double)).unwrap()
    }

    fn close(found: Vec<f64>, expected: [f64; 2]) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 2e-6, "{found:?} instead of {expected:?}");
        }
    }

    // Expected values: torch.optim.Adam and torch.optim.RAdam of PyTorch 2.11 on the same function, float64.
    #[test]
    fn adam_follows_pytorch() {
        close(run(OptimizerConfig::Adam(AdamConfig::default()), 1), ADAM_1);
        close(run(OptimizerConfig::Adam(AdamConfig::default()), 10), ADAM_10);
    }

    #[test]
    fn radam_follows_pytorch_before_and_after_rectification() {
        close(run(OptimizerConfig::RAdam(AdamConfig::default()), 3), RADAM_3);
        close(run(OptimizerConfig::RAdam(AdamConfig::default()), 10), RADAM_10);
    }

    const ADAM_1: [f64; 2] = [0.09999999900000002, -0.0999999995];
    const ADAM_10: [f64; 2] = [0.9237508393802448, -0.9754131595271427];
    const RADAM_3: [f64; 2] = [0.28422994756263353, -0.5684598951252671];
    const RADAM_10: [f64; 2] = [0.4652524052815515, -0.9129016548372068];
}
