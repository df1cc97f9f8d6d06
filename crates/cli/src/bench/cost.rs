//! What work takes at least: bytes and floating-point operations.

use lcsc_torch::ParamLayout;
use serde::Serialize;

/// The least that a work takes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Cost {
    /// Bytes read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<f64>,
    /// Floating-point operations, a multiplication and an addition being two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops: Option<f64>,
}

impl Cost {
    /// Of floating-point operations.
    pub fn flops(flops: f64) -> Self {
        Self { flops: Some(flops), ..Self::default() }
    }

    /// Of bytes.
    pub fn bytes(bytes: f64) -> Self {
        Self { bytes: Some(bytes), ..Self::default() }
    }
}

/// Floating-point operations of one image through a UNet: its dense layers, convolutions and attention, at the resolutions
/// that the names of its tensors tell.
pub fn network(layout: &ParamLayout) -> f64 {
    let of = |spec: &lcsc_torch::TensorSpec| {
        let pixels = resolution(&spec.name).map_or(1.0, |r| (r * r) as f64);
        match spec.shape[..] {
            [_, _] => 2.0 * spec.numel() as f64,
            [_, channels, 1, 1] if spec.name.ends_with(".qkv.weight") => {
                // Two products of the pixels with one another.
                2.0 * spec.numel() as f64 * pixels + 4.0 * pixels * pixels * channels as f64
            }
            [_, _, _, _] => 2.0 * spec.numel() as f64 * pixels,
            _ => 0.0,
        }
    };
    layout.params().iter().map(of).sum()
}

/// The resolution in a name such as `model.enc.32x32_block0.conv0.weight`.
fn resolution(name: &str) -> Option<i64> {
    let level = name.split('.').find(|part| part.contains('x') && part.starts_with(|c: char| c.is_ascii_digit()))?;
    level.split('x').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_unet::{ImageShape, Network, NetworkConfig};

    #[test]
    fn operations_are_those_that_pytorch_counts() {
        // torch.utils.flop_counter of PyTorch 2.11 on the same networks, resampling by depthwise convolutions apart.
        for (preset, channels, resolution, expected) in [("tiny", 1, 8, 9.095e6), ("ddpmpp-cifar10", 3, 32, 42.383e9)] {
            let config = NetworkConfig::preset(preset).unwrap();
            let (_, layout) = Network::new(&config, ImageShape { channels, resolution, label_dim: 0 }, channels);
            let found = network(&layout);
            assert!((found / expected - 1.0).abs() < 0.01, "{preset}: {found}");
        }
    }
}
