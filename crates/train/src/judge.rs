//! Which steps are taken: decided on the device, where the optimizer heeds it, and read by the host once a tick.

use crate::config::NonFinite;
use crate::loss_scale::{LossScale, SavedLossScale};
use lcsc_diffusion::QUARTERS;
use lcsc_torch::{Device, Kind, Result, Tensor, Verdict};

/// Judges loss and gradient of each step by the stage's policy, and keeps what they were until the host asks.
pub(crate) struct Judge {
    policy: NonFinite,
    grad_clip: Option<f64>,
    loss_scale: Option<LossScale>,
    /// 1 once a step was bad under `stop`: nothing is taken after it. f32 `[1]`.
    ended: Tensor,
    /// Loss, norm of the gradient, whether f16 overflowed, and losses by noise level, f32 `[11]`, of each step since the last
    /// reading.
    outcomes: Vec<Tensor>,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    /// Mean loss an image.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// The gradient of the scaled loss left the range of f16. The next step mends it; it is no fault of the run.
    pub overflowed: bool,
    /// Sums of the losses in each quarter of the noise levels, and numbers of their images.
    pub by_sigma: [[f64; QUARTERS]; 2],
}

/// Numbers of an outcome on the device.
const WIDTH: usize = 3 + 2 * QUARTERS;

impl Outcome {
    /// Whether loss and gradient are finite.
    pub fn is_good(self) -> bool {
        self.loss.is_finite() && self.norm.is_finite()
    }
}

impl Judge {
    /// Begins with no step judged.
    pub fn new(
        policy: NonFinite,
        grad_clip: Option<f64>,
        loss_scale: Option<SavedLossScale>,
        device: Device,
    ) -> Result<Self> {
        let loss_scale = loss_scale.map(|saved| LossScale::new(saved, device)).transpose()?;
        let ended = Tensor::f_zeros([1], (Kind::Float, device))?;
        Ok(Self { policy, grad_clip, loss_scale, ended, outcomes: Vec::new() })
    }

    /// What the loss is multiplied with before the backward pass, f32 `[1]`.
    pub fn loss_scale(&self) -> Option<&Tensor> {
        self.loss_scale.as_ref().map(|s| &s.scale)
    }

    /// Judges a step of mean loss f32 `[]`, losses by noise level f32 `[2,4]`, and gradient f32 `[P]` of the scaled loss, which
    /// `zero` mends.
    pub fn judge(&mut self, loss: &Tensor, by_sigma: &Tensor, grad: &mut Tensor) -> Result<Verdict> {
        let loss = loss.f_view([1])?;
        let mut scale = self.loss_scale().map(Tensor::shallow_clone);
        if self.policy == NonFinite::Zero
            && let Some(scale) = scale.take()
        {
            // What is mended has its true size.
            let _ = grad.f_div_(&scale)?;
        }
        let norm_of = |grad: &Tensor| -> Result<Tensor> {
            let norm = grad.f_norm()?.f_view([1])?;
            Ok(if let Some(scale) = &scale { norm.f_div(scale)? } else { norm })
        };
        let norm = norm_of(grad)?;
        let (loss_is_finite, norm_is_infinite) = (loss.f_isfinite()?, norm.f_isfinite()?.f_logical_not()?);
        let overflowed = match &mut self.loss_scale {
            Some(scale) => {
                let counts = loss_is_finite.f_logical_and(&self.ended.f_eq(0.0)?)?;
                scale.update(&norm_is_infinite, &counts)?
            }
            None => loss.f_zeros_like()?,
        };
        self.outcomes.push(Tensor::f_cat(&[&loss, &norm, &overflowed, &by_sigma.f_flatten(0, -1)?], 0)?);
        let is_bad = loss_is_finite.f_logical_not()?.f_logical_or(&norm_is_infinite)?.f_to_kind(Kind::Float)?;
        let left_out = match self.policy {
            NonFinite::Stop => {
                let _ = self.ended.f_add_(&is_bad.f_sub(&overflowed)?)?.f_clamp_max_(1.0)?;
                is_bad.f_maximum(&self.ended)?
            }
            NonFinite::Skip => is_bad,
            NonFinite::Zero => {
                let _ = grad.f_nan_to_num_(0.0, 1e5, -1e5)?;
                overflowed
            }
        };
        let Some(most) = self.grad_clip else { return Ok(Verdict { divisor: scale, left_out }) };
        let norm = if self.policy == NonFinite::Zero { norm_of(grad)? } else { norm };
        let excess = norm.f_div_scalar(most)?.f_clamp_min(1.0)?;
        let divisor = if let Some(scale) = scale { excess.f_mul(&scale)? } else { excess };
        Ok(Verdict { divisor: Some(divisor), left_out })
    }

    /// What the steps since the last reading came to: waits for the device.
    pub fn read(&mut self) -> Result<Vec<Outcome>> {
        let outcomes = std::mem::take(&mut self.outcomes);
        if outcomes.is_empty() {
            return Ok(vec![]);
        }
        let rows = Vec::<f32>::try_from(Tensor::f_cat(&outcomes, 0)?)?;
        let outcome = |row: &[f32]| Outcome {
            loss: row[0].into(),
            norm: row[1].into(),
            overflowed: row[2] != 0.0,
            by_sigma: [3, 3 + QUARTERS].map(|at| std::array::from_fn(|quarter| row[at + quarter].into())),
        };
        Ok(rows.chunks_exact(WIDTH).map(outcome).collect())
    }

    /// The scale of the loss in numbers: waits for the device.
    pub fn saved_loss_scale(&self) -> Result<Option<SavedLossScale>> {
        self.loss_scale.as_ref().map(LossScale::read).transpose()
    }
}
