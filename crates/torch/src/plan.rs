//! How a network is computed: in which order values lie in memory, and which operations are one.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// One way to compute a network. All plans give the same up to rounding; which one is fastest depends on network and GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Whether activations, and weights of convolutions, have the channels last in memory, as tensor cores take them.
    pub channels_last: bool,
    /// Whether a group norm is one operation with the scale, shift and SiLU after it; on a GPU alone.
    pub fused_norm: bool,
}

impl Plan {
    /// Contiguous tensors and libtorch's operations.
    pub const PLAIN: Self = Self { channels_last: false, fused_norm: false };

    /// All plans, the plain one first.
    pub const ALL: [Self; 4] = [
        Self::PLAIN,
        Self { channels_last: true, ..Self::PLAIN },
        Self { fused_norm: true, ..Self::PLAIN },
        Self { channels_last: true, fused_norm: true },
    ];

    /// `x` `[B,C,H,W]` as this plan has activations in memory.
    pub fn arranged(self, x: &Tensor) -> Tensor {
        if self.channels_last { channels_last(x) } else { x.shallow_clone() }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.channels_last, self.fused_norm) {
            (false, false) => "plain",
            (true, false) => "channels-last",
            (false, true) => "fused norm",
            (true, true) => "channels-last, fused norm",
        })
    }
}

/// The same values `[B,C,H,W]` with those of a pixel side by side in memory; gradients flow through.
fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn plans_are_told_by_what_differs_from_the_plain_one() {
        let told: Vec<String> = Plan::ALL.iter().map(Plan::to_string).collect();
        assert_eq!(told, ["plain", "channels-last", "fused norm", "channels-last, fused norm"]);
        assert_eq!(Plan::ALL[0], Plan::default());
    }

    #[test]
    fn the_channels_come_to_lie_last() {
        let x = Tensor::arange(48, (Kind::Float, Device::Cpu)).view([2, 3, 4, 2]);
        let plan = Plan::ALL[1];
        let last = plan.arranged(&x);
        assert!(last.equal(&x));
        assert_eq!((last.stride(), Plan::PLAIN.arranged(&x).stride()), (vec![24, 1, 6, 3], vec![24, 8, 2, 1]));
    }
}
