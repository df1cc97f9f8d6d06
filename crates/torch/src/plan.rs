//! How a network is computed: in which order values lie in memory, and what is asked of a GPU by one call.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// One way to compute a network. All plans give the same up to rounding; which one is fastest depends on network and GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Whether activations, and weights of convolutions, have the channels last in memory, as tensor cores take them.
    pub channels_last: bool,
    /// Whether a group norm is one operation with the scale, shift and SiLU after it; on a GPU alone.
    pub fused_norm: bool,
    /// Whether an evaluation without gradient is a CUDA graph, recorded once for a shape and then replayed.
    pub graph: bool,
}

impl Plan {
    /// Contiguous tensors and libtorch's operations.
    pub const PLAIN: Self = Self { channels_last: false, fused_norm: false, graph: false };

    /// All plans of training, the plain one first.
    pub const TRAINING: [Self; 4] = [
        Self::PLAIN,
        Self { channels_last: true, ..Self::PLAIN },
        Self { fused_norm: true, ..Self::PLAIN },
        Self { channels_last: true, fused_norm: true, graph: false },
    ];

    /// All plans of evaluating a network without gradient: each with and without a graph.
    pub fn of_sampling() -> Vec<Self> {
        let both = |plan| [plan, Self { graph: true, ..plan }];
        Self::TRAINING.into_iter().flat_map(both).collect()
    }

    /// `x` `[B,C,H,W]` as this plan has activations in memory.
    pub fn arranged(self, x: &Tensor) -> Tensor {
        if self.channels_last { channels_last(x) } else { x.shallow_clone() }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [(self.channels_last, "channels-last"), (self.fused_norm, "fused norm"), (self.graph, "graph")];
        let parts: Vec<&str> = parts.into_iter().filter_map(|(is_so, name)| is_so.then_some(name)).collect();
        f.write_str(&if parts.is_empty() { "plain".into() } else { parts.join(", ") })
    }
}

/// The same values `[B,C,H,W]` with those of a pixel side by side in memory; gradients flow through.
pub fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn plans_are_told_by_what_differs_from_the_plain_one() {
        let told: Vec<String> = Plan::of_sampling().iter().map(Plan::to_string).collect();
        assert_eq!(told[..5], ["plain", "graph", "channels-last", "channels-last, graph", "fused norm"]);
        assert_eq!(told[7], "channels-last, fused norm, graph");
        assert_eq!(Plan::of_sampling()[0], Plan::default());
    }

    #[test]
    fn the_channels_come_to_lie_last() {
        let x = Tensor::arange(48, (Kind::Float, Device::Cpu)).view([2, 3, 4, 2]);
        let plan = Plan::TRAINING[1];
        let last = plan.arranged(&x);
        assert!(last.equal(&x));
        assert_eq!((last.stride(), Plan::PLAIN.arranged(&x).stride()), (vec![24, 1, 6, 3], vec![24, 8, 2, 1]));
    }
}
