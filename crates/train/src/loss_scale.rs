//! Dynamic loss scaling: keeps gradients in the range of f16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

use serde::{Deserialize, Serialize};

/// Good steps after which the scale is doubled.
const GROWTH_INTERVAL: u64 = 2000;

/// What the loss is multiplied with before the backward pass, and its gradient divided by afterwards. It doubles and halves
/// as PyTorch's `GradScaler` does, but begins near the constant scale of EDM, 100: from `GradScaler`'s 65,536 on, the first
/// steps of a run, where it learns fastest, would be left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct LossScale {
    pub scale: f64,
    /// Steps since the scale last changed.
    pub good_steps: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: 128.0, good_steps: 0 }
    }
}

impl LossScale {
    /// Takes note of a gradient that is finite or not. Halves the scale where it is not, and says so: the step is to be left
    /// out. At a scale of one the fault is not the scale's.
    pub fn overflowed(&mut self, is_finite: bool) -> bool {
        if !is_finite {
            let halved = self.scale > 1.0;
            *self = Self { scale: (0.5 * self.scale).max(1.0), good_steps: 0 };
            return halved;
        }
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            *self = Self { scale: 2.0 * self.scale, good_steps: 0 };
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_at_once_and_doubles_after_many_good_steps() {
        let mut scale = LossScale::default();
        assert!(scale.overflowed(false));
        assert_eq!(scale, LossScale { scale: 64.0, good_steps: 0 });
        assert!((0..GROWTH_INTERVAL).all(|_| !scale.overflowed(true)));
        assert_eq!(scale, LossScale { scale: 128.0, good_steps: 0 });
        let mut least = LossScale { scale: 1.0, good_steps: 7 };
        assert!(!least.overflowed(false));
        assert_eq!(least, LossScale { scale: 1.0, good_steps: 0 });
    }
}
