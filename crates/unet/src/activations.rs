//! How much memory activations take, from the names and shapes of parameters alone.

use crate::config::ImageShape;
use lcsc_torch::{ParamLayout, TensorSpec};

/// Values of activations that one image takes: estimates, in the type that the network computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activations {
    /// In a forward pass with a graph and its backward pass, without the masks of dropout.
    pub with_gradient: i64,
    /// In a forward pass without graph.
    pub without_gradient: i64,
}

impl Activations {
    /// Of a network with this layout for such images.
    ///
    /// A graph keeps what goes into each group norm, SiLU, convolution and product; each is counted where it is used. On top
    /// come three tensors as large as the largest one, for gradients on their way. Without a graph the skip connections are
    /// kept, and around the largest convolution what goes into it, before and after norm and SiLU, and what comes out.
    ///
    /// For the preset `ddpmpp-cifar10` in f32 that is 123 MB and 13 MB an image. On the CPU the peak of the process grew by 121 MB
    /// an image from 4 to 8 images (135 MB with dropout, whose masks are f32 there and a byte a value on GPUs), and by 13 MB
    /// without graph. ADM's grew by 86 MB without graph, of which 52 are counted: a CPU has no fused attention, and holds
    /// every pixel's weights. The allocator's gaps come on top; glibc's own took the 135 MB to 184.
    pub fn of(layout: &ParamLayout, image: ImageShape) -> Self {
        let layers: Vec<Layer> = layout.params().iter().filter_map(|spec| Layer::of(spec, image.resolution)).collect();
        let (saved, skips) = (layers.iter().map(Layer::saved), layers.iter().map(Layer::skip));
        let largest = layers.iter().map(Layer::joined).max().unwrap_or_default();
        let working = layers.iter().map(Layer::working).max().unwrap_or_default();
        let (with_gradient, without_gradient) = (saved.sum::<i64>() + 3 * largest, skips.sum::<i64>() + working);
        Self { with_gradient, without_gradient }
    }
}

/// A layer, by its weight.
struct Layer<'a> {
    /// `block0.norm1` of `model.enc.16x16_block0.norm1.weight`.
    name: &'a str,
    encodes: bool,
    /// Input channels of a product or a convolution, else its channels.
    from: i64,
    to: i64,
    /// Pixels before and after a change of resolution.
    before: i64,
    after: i64,
}

impl<'a> Layer<'a> {
    fn of(spec: &'a TensorSpec, resolution: i64) -> Option<Self> {
        let name = spec.name.strip_prefix("model.")?.strip_suffix(".weight")?;
        let (encodes, rest) = (name.starts_with("enc."), name.trim_start_matches("enc.").trim_start_matches("dec."));
        let placed = rest.split_once('_').and_then(|(size, part)| Some((size.split_once('x')?.0.parse().ok()?, part)));
        let (side, name): (i64, &str) = placed.unwrap_or((resolution, name));
        let before = match name {
            _ if name.starts_with("down") || name == "aux_residual" => 2 * side,
            _ if name.starts_with("up") => side / 2,
            _ => side,
        };
        let to = *spec.shape.first()?;
        let from = spec.shape.get(1).copied().unwrap_or(to);
        Some(Self { name, encodes, from, to, before: before * before, after: side * side })
    }

    /// What the graph keeps of it.
    fn saved(&self) -> i64 {
        let Self { from, to, before, after, .. } = *self;
        match self.part() {
            // Before and after, and after SiLU.
            "norm0" | "aux_norm" | "out_norm" => 3 * to * before,
            // Embeddings scale, shift or are added to what goes into norm or SiLU.
            "affine" => to * after,
            "norm1" => 2 * to * after,
            // Before and after; queries, keys and values; what was attended, also with its pixels in order.
            "norm2" => 7 * to * after,
            // Pixels are averaged or repeated first.
            "conv0" if before != after => from * after,
            "skip" if before > after => from * after,
            "down" => from * before,
            "up" => from * after,
            // Averaged after the convolution.
            "aux_residual" => to * before,
            _ => 0,
        }
    }

    /// What goes into a block, the skip connection included.
    fn joined(&self) -> i64 {
        if self.part() == "norm0" { self.to * self.before } else { 0 }
    }

    /// What it hands on to the decoder.
    fn skip(&self) -> i64 {
        if self.encodes && matches!(self.part(), "conv" | "conv1" | "down") { self.to * self.after } else { 0 }
    }

    /// What is there at once around a convolution at the beginning of a block.
    fn working(&self) -> i64 {
        if self.part() == "conv0" { 3 * self.from * self.before + self.to * self.after } else { 0 }
    }

    /// `norm1` of `block0.norm1`.
    fn part(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name, |(_, part)| part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Network, NetworkConfig};

    fn activations(preset: &str, resolution: i64) -> Activations {
        let image = ImageShape { channels: 3, resolution, label_dim: 0 };
        Activations::of(&Network::new(&NetworkConfig::preset(preset).unwrap(), image, 3).1, image)
    }

    #[test]
    fn estimates_are_near_what_was_measured() {
        let found = activations("ddpmpp-cifar10", 32);
        for (values, measured) in [(found.with_gradient, 121e6), (found.without_gradient, 13e6)] {
            let ratio = 4.0 * values as f64 / measured;
            assert!((ratio - 1.0).abs() < 0.1, "{found:?}");
        }
    }

    #[test]
    fn every_network_keeps_more_for_its_gradient() {
        for preset in NetworkConfig::presets() {
            let found = activations(preset, 64);
            assert!(
                found.without_gradient > 0 && found.with_gradient > 3 * found.without_gradient,
                "{preset}: {found:?}"
            );
        }
    }
}
