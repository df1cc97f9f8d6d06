//! Optimizers on the flat vector: one kernel a step, or a few, whatever the number of tensors.

use crate::error::{Error, Result};
use crate::shim::fused_adam;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

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

/// An optimizer and its state, on the device.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// First moment, f32 `[P]`.
    pub exp_avg: Tensor,
    /// Second moment, f32 `[P]`.
    pub exp_avg_sq: Tensor,
    /// Steps taken, f32 `[1]` (exact up to 2²⁴).
    pub steps: Tensor,
}

/// What becomes of a gradient: decided on the device, so that the host need not wait.
#[derive(Debug)]
pub struct Verdict {
    /// What the gradient is divided by, f32 `[1]`.
    pub divisor: Option<Tensor>,
    /// 1 for a step in which nothing changes, else 0; f32 `[1]`.
    pub left_out: Tensor,
}

impl Verdict {
    /// A gradient that is taken as it is.
    ///
    /// # Errors
    /// The device has no room.
    pub fn take(device: Device) -> Result<Self> {
        Ok(Self { divisor: None, left_out: Tensor::f_zeros([1], (Kind::Float, device))? })
    }

    /// 0 for a step in which nothing changes, else 1; f32 `[1]`.
    pub fn taken(&self) -> Tensor {
        1.0 - &self.left_out
    }
}

impl Optimizer {
    /// Zero moments for `theta`.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(config: OptimizerConfig, theta: &Tensor) -> Result<Self> {
        let zeros = || theta.f_zeros_like();
        let steps = Tensor::f_zeros([1], (Kind::Float, theta.device()))?;
        Ok(Self { config, exp_avg: zeros()?, exp_avg_sq: zeros()?, steps })
    }

    /// One step of `theta` f32 `[P]` along `grad` f32 `[P]`, which it uses up, at rate `lr`; call it without gradient
    /// tracking.
    ///
    /// # Errors
    /// A shape or type differs, or the device has no room.
    pub fn step(&mut self, theta: &mut Tensor, grad: Tensor, lr: f64, verdict: &Verdict) -> Result<()> {
        let (m, v) = (&self.exp_avg, &self.exp_avg_sq);
        for (name, tensor) in [("gradient", &grad), ("first moment", m), ("second moment", v)] {
            if tensor.size() != theta.size() || tensor.kind() != Kind::Float || !tensor.is_contiguous() {
                return Err(Error::Message(format!(
                    "the {name} has shape {:?} and type {:?}, expected {:?} and Float",
                    tensor.size(),
                    tensor.kind(),
                    theta.size()
                )));
            }
        }
        let _ = self.steps.f_add_(&verdict.taken())?;
        match &self.config {
            OptimizerConfig::Adam(c) => fused_adam(theta, &grad, [m, v, &self.steps], lr, (c.betas, c.eps), verdict),
            OptimizerConfig::RAdam(_) => self.rectified(theta, grad, lr, verdict),
        }
    }

    /// RAdam in element-wise operations: libtorch has no fused one.
    fn rectified(&mut self, theta: &mut Tensor, mut grad: Tensor, lr: f64, verdict: &Verdict) -> Result<()> {
        let &AdamConfig { betas: [b1, b2], eps, .. } = self.config.constants();
        let taken = verdict.taken();
        if let Some(divisor) = &verdict.divisor {
            let _ = grad.f_div_(divisor)?;
        }
        // Zero times what is not finite would not be zero.
        let _ = grad.f_nan_to_num_(0.0, 0.0, 0.0)?;
        let _ = self.exp_avg.f_lerp_tensor_(&grad, &(&taken * (1.0 - b1)))?;
        let _ = self.exp_avg_sq.f_lerp_tensor_(&grad.f_square()?, &(&taken * (1.0 - b2)))?;
        // Before the first step that is taken there is no bias to correct: it would be a division by zero.
        let t = self.steps.to_kind(Kind::Double).clamp_min(1.0);
        let [bias1, bias2]: [Tensor; 2] = [b1, b2].map(|b| 1.0 - Tensor::pow_scalar(b, &t));
        let (is_tractable, rectification) = rectification(b2, &t);
        // PyTorch adds eps before the bias correction here, unlike in its Adam.
        let root = self.exp_avg_sq.f_sqrt()?.f_add_scalar_(eps)?.f_where_self(&is_tractable, &taken.ones_like())?;
        let rate = (rectification * bias2.sqrt()).where_self(&is_tractable, &bias2.ones_like()) * -lr / bias1 * taken;
        let _ = theta.f_addcdiv_(&self.exp_avg.f_mul(&rate.to_kind(Kind::Float))?, &root)?;
        Ok(())
    }
}

/// Whether RAdam's variance is tractable after t steps (ρ_t > 5), and its rectification r_t there; of t f64 [1].
fn rectification(b2: f64, t: &Tensor) -> (Tensor, Tensor) {
    let rho_inf = 2.0 / (1.0 - b2) - 1.0;
    let decayed = Tensor::pow_scalar(b2, t);
    let rho: Tensor = rho_inf - t * 2.0 * &decayed / (1.0 - &decayed);
    let squared = (&rho - 4.0) * (&rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * &rho);
    (rho.gt(5.0), squared.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `theta` after `n` steps on f(x) = ½‖x − (1, −2)‖² from (0, 0) at rate 0.1, their gradients multiplied by 8 and divided
    /// again; before each comes one without a number, which is left out.
    fn run(config: OptimizerConfig, n: usize) -> Vec<f64> {
        let mut theta = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let target = Tensor::from_slice(&[1f32, -2.0]);
        let mut optimizer = Optimizer::new(config, &theta).unwrap();
        let verdict = |left_out: f32| Verdict {
            divisor: Some(Tensor::from_slice(&[8f32])),
            left_out: Tensor::from_slice(&[left_out]),
        };
        for _ in 0..n {
            let grad = (&theta - &target) * 8.0;
            optimizer.step(&mut theta, &grad * f64::NAN, 0.1, &verdict(1.0)).unwrap();
            optimizer.step(&mut theta, grad, 0.1, &verdict(0.0)).unwrap();
        }
        assert_eq!(optimizer.steps.double_value(&[0]), n as f64);
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
