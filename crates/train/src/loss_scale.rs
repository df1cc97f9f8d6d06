//! Dynamic loss scaling: keeps gradients in the range of f16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

use lcsc_torch::{Device, Kind, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Good steps after which the scale is doubled.
const GROWTH_INTERVAL: i64 = 2000;

/// What the loss is multiplied with before the backward pass, and its gradient divided by afterwards. It doubles and halves
/// as PyTorch's `GradScaler` does, but begins near the constant scale of EDM, 100: from `GradScaler`'s 65,536 on, the first
/// steps of a run, where it learns fastest, would be left out.
#[derive(Debug)]
pub(crate) struct LossScale {
    /// f32 [1]
    pub scale: Tensor,
    /// Steps since the scale last changed, i32 [1].
    good_steps: Tensor,
}

/// The same as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedLossScale {
    pub scale: f64,
    pub good_steps: i64,
}

impl Default for SavedLossScale {
    fn default() -> Self {
        Self { scale: 128.0, good_steps: 0 }
    }
}

impl LossScale {
    /// Puts the numbers on a device.
    pub fn new(saved: SavedLossScale, device: Device) -> Result<Self> {
        Ok(Self {
            scale: Tensor::f_full([1], saved.scale, (Kind::Float, device))?,
            good_steps: Tensor::f_full([1], saved.good_steps, (Kind::Int, device))?,
        })
    }

    /// Reads the numbers: waits for the device.
    pub fn read(&self) -> Result<SavedLossScale> {
        Ok(SavedLossScale { scale: self.scale.f_double_value(&[0])?, good_steps: self.good_steps.f_int64_value(&[0])? })
    }

    /// Takes note of a gradient that `overflowed`, bool [1], or did not: halves the scale if it did. Gives f32 [1], 1 if so:
    /// the step is to be left out. At a scale of one the fault is not the scale's. A step that does not `count`, bool [1],
    /// changes nothing.
    pub fn update(&mut self, overflowed: &Tensor, counts: &Tensor) -> Result<Tensor> {
        let overflowed = overflowed.f_logical_and(counts)?.f_to_kind(Kind::Float)?;
        let halved = overflowed.f_mul(&self.scale.f_gt(1.0)?)?;
        let (mut scale, good_steps) = (self.scale.f_detach_copy()?, self.good_steps.f_detach_copy()?);
        let _ = scale.f_internal_amp_update_scale_(&good_steps, &overflowed, 2.0, 0.5, GROWTH_INTERVAL)?;
        self.scale = scale.f_clamp_min_(1.0)?.f_where_self(counts, &self.scale)?;
        self.good_steps = good_steps.f_where_self(counts, &self.good_steps)?;
        Ok(halved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_at_once_and_doubles_after_many_good_steps() {
        let update = |scale: &mut LossScale, overflowed: bool| {
            let [overflowed, counts] = [overflowed, true].map(|b| Tensor::from_slice(&[b]));
            scale.update(&overflowed, &counts).unwrap().double_value(&[0])
        };
        let mut scale = LossScale::new(SavedLossScale::default(), Device::Cpu).unwrap();
        assert_eq!(update(&mut scale, true), 1.0);
        assert_eq!(scale.read().unwrap(), SavedLossScale { scale: 64.0, good_steps: 0 });
        assert!((0..GROWTH_INTERVAL).all(|_| update(&mut scale, false) == 0.0));
        assert_eq!(scale.read().unwrap(), SavedLossScale { scale: 128.0, good_steps: 0 });
        let mut least = LossScale::new(SavedLossScale { scale: 1.0, good_steps: 7 }, Device::Cpu).unwrap();
        assert_eq!(update(&mut least, true), 0.0);
        assert_eq!(least.read().unwrap(), SavedLossScale { scale: 1.0, good_steps: 0 });
        let [yes, no] = [true, false].map(|b| Tensor::from_slice(&[b]));
        let before = scale.read().unwrap();
        assert_eq!(scale.update(&yes, &no).unwrap().double_value(&[0]), 0.0);
        assert_eq!(scale.read().unwrap(), before);
    }
}
