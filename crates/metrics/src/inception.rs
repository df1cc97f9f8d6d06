//! The Inception network of FID: TensorFlow's `inception-2015-12-05` as pytorch-fid ported it (`FIDInceptionA` … `E_2`).
//!
//! It is not torchvision's: its average pools do not count the padding, its last block takes maxima instead of averages,
//! and its class scores are 1008.

use crate::extractor::rgb;
use crate::published::{self, Expected, NetworkBuilder, Published};
use lcsc_torch::{Device, Kind, ParamId, Params, Precision, Result, Tensor, TensorSpec};

/// D, the features of the last pool.
pub(crate) const FEATURES: i64 = 2048;
/// Class scores, of which TensorFlow's graph has 1008.
const CLASSES: i64 = 1008;
/// Height and width that the network sees, in pixels.
const SIDE: i64 = 299;
/// Values that a graph through the network keeps of an image: the resized image, what each convolution, pool and joining of
/// branches gives.
const SAVED: u64 = 14_616_363;
/// Places that its maxima came from, i64.
const SAVED_PLACES: u64 = 839_712;

/// Convolution, batch normalisation by fixed statistics, ReLU.
#[derive(Debug)]
struct Conv {
    conv: published::Conv,
    stride: i64,
    padding: [i64; 2],
}

/// What a convolution is, beside its channels.
#[derive(Clone, Copy)]
struct Shape {
    kernel: [i64; 2],
    stride: i64,
    padded: bool,
}

/// 1×1.
const POINT: Shape = Shape { kernel: [1, 1], stride: 1, padded: true };
/// Square and padded, so that the map keeps its size.
const fn square(k: i64) -> Shape {
    Shape { kernel: [k, k], stride: 1, padded: true }
}
/// A row of `k` pixels.
const fn row(k: i64) -> Shape {
    Shape { kernel: [1, k], stride: 1, padded: true }
}
/// A column of `k` pixels.
const fn column(k: i64) -> Shape {
    Shape { kernel: [k, 1], stride: 1, padded: true }
}
/// 3×3 without padding.
const fn valid(stride: i64) -> Shape {
    Shape { kernel: [3, 3], stride, padded: false }
}

impl Conv {
    fn new(b: &mut NetworkBuilder, name: &str, from: i64, to: i64, shape: Shape) -> Self {
        let Shape { kernel: [h, w], stride, padded } = shape;
        let conv = b.conv(format!("{name}.conv"), format!("{name}.bn"), [to, from, h, w]);
        Self { conv, stride, padding: if padded { [h / 2, w / 2] } else { [0, 0] } }
    }

    fn forward(&self, params: &Params, x: &Tensor) -> Tensor {
        self.conv.forward(params, x, self.stride, self.padding, 1).relu()
    }
}

/// Convolutions one after the other.
#[derive(Debug)]
struct Chain(Vec<Conv>);

impl Chain {
    /// Named `{name}_1`, `{name}_2` …, each with its channels and shape.
    fn numbered(b: &mut NetworkBuilder, name: &str, from: i64, layers: &[(i64, Shape)]) -> Self {
        let mut from = from;
        let conv = |(i, &(to, shape)): (usize, &(i64, Shape))| {
            Conv::new(b, &format!("{name}_{}", i + 1), std::mem::replace(&mut from, to), to, shape)
        };
        Self(layers.iter().enumerate().map(conv).collect())
    }

    fn one(b: &mut NetworkBuilder, name: &str, from: i64, to: i64, shape: Shape) -> Self {
        Self(vec![Conv::new(b, name, from, to, shape)])
    }

    fn forward(&self, params: &Params, x: &Tensor) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, conv| conv.forward(params, &x))
    }
}

/// A branch that ends in a row and a column side by side.
#[derive(Debug)]
struct Fork {
    chain: Chain,
    row: Conv,
    column: Conv,
}

/// A branch of a block.
#[derive(Debug)]
enum Branch {
    Chain(Chain),
    Fork(Fork),
    /// A 3×3 average of the pixels inside the map, then a convolution.
    Average(Chain),
    /// A 3×3 maximum, then a convolution.
    Maximum(Chain),
    /// A 3×3 maximum that halves the map.
    Halving,
}

impl Branch {
    fn forward(&self, params: &Params, x: &Tensor) -> Tensor {
        match self {
            Self::Chain(chain) => chain.forward(params, x),
            Self::Fork(Fork { chain, row, column }) => {
                let x = chain.forward(params, x);
                Tensor::cat(&[row.forward(params, &x), column.forward(params, &x)], 1)
            }
            Self::Average(chain) => {
                chain.forward(params, &x.avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None::<i64>))
            }
            Self::Maximum(chain) => chain.forward(params, &x.max_pool2d([3, 3], [1, 1], [1, 1], [1, 1], false)),
            Self::Halving => halved(x),
        }
    }
}

fn halved(x: &Tensor) -> Tensor {
    x.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)
}

/// Branches whose channels are joined.
#[derive(Debug)]
struct Block(Vec<Branch>);

impl Block {
    /// Mixed_5b, 5c, 5d.
    fn a(b: &mut NetworkBuilder, name: &str, from: i64, pooled: i64) -> Self {
        let n = |part: &str| format!("{name}.{part}");
        Self(vec![
            Branch::Chain(Chain::one(b, &n("branch1x1"), from, 64, POINT)),
            Branch::Chain(Chain::numbered(b, &n("branch5x5"), from, &[(48, POINT), (64, square(5))])),
            Branch::Chain(Chain::numbered(
                b,
                &n("branch3x3dbl"),
                from,
                &[(64, POINT), (96, square(3)), (96, square(3))],
            )),
            Branch::Average(Chain::one(b, &n("branch_pool"), from, pooled, POINT)),
        ])
    }

    /// Mixed_6a.
    fn b(b: &mut NetworkBuilder, name: &str, from: i64) -> Self {
        let n = |part: &str| format!("{name}.{part}");
        Self(vec![
            Branch::Chain(Chain::one(b, &n("branch3x3"), from, 384, valid(2))),
            Branch::Chain(Chain::numbered(
                b,
                &n("branch3x3dbl"),
                from,
                &[(64, POINT), (96, square(3)), (96, valid(2))],
            )),
            Branch::Halving,
        ])
    }

    /// Mixed_6b … 6e.
    fn c(b: &mut NetworkBuilder, name: &str, from: i64, c7: i64) -> Self {
        let n = |part: &str| format!("{name}.{part}");
        let double = [(c7, POINT), (c7, column(7)), (c7, row(7)), (c7, column(7)), (192, row(7))];
        Self(vec![
            Branch::Chain(Chain::one(b, &n("branch1x1"), from, 192, POINT)),
            Branch::Chain(Chain::numbered(b, &n("branch7x7"), from, &[(c7, POINT), (c7, row(7)), (192, column(7))])),
            Branch::Chain(Chain::numbered(b, &n("branch7x7dbl"), from, &double)),
            Branch::Average(Chain::one(b, &n("branch_pool"), from, 192, POINT)),
        ])
    }

    /// Mixed_7a.
    fn d(b: &mut NetworkBuilder, name: &str, from: i64) -> Self {
        let n = |part: &str| format!("{name}.{part}");
        let long = [(192, POINT), (192, row(7)), (192, column(7)), (192, valid(2))];
        Self(vec![
            Branch::Chain(Chain::numbered(b, &n("branch3x3"), from, &[(192, POINT), (320, valid(2))])),
            Branch::Chain(Chain::numbered(b, &n("branch7x7x3"), from, &long)),
            Branch::Halving,
        ])
    }

    /// Mixed_7b and 7c, which differ in their pool.
    fn e(b: &mut NetworkBuilder, name: &str, from: i64, pool: fn(Chain) -> Branch) -> Self {
        let n = |part: &str| format!("{name}.{part}");
        let fork = |b: &mut NetworkBuilder, name: String, last: usize, chain| {
            Branch::Fork(Fork {
                chain,
                row: Conv::new(b, &format!("{name}_{last}a"), 384, 384, row(3)),
                column: Conv::new(b, &format!("{name}_{last}b"), 384, 384, column(3)),
            })
        };
        let single = Chain::numbered(b, &n("branch3x3"), from, &[(384, POINT)]);
        let double = Chain::numbered(b, &n("branch3x3dbl"), from, &[(448, POINT), (384, square(3))]);
        Self(vec![
            Branch::Chain(Chain::one(b, &n("branch1x1"), from, 320, POINT)),
            fork(b, n("branch3x3"), 2, single),
            fork(b, n("branch3x3dbl"), 3, double),
            pool(Chain::one(b, &n("branch_pool"), from, 192, POINT)),
        ])
    }

    fn forward(&self, params: &Params, x: &Tensor) -> Tensor {
        Tensor::cat(&self.0.iter().map(|branch| branch.forward(params, x)).collect::<Vec<_>>(), 1)
    }
}

/// The network's structure.
#[derive(Debug)]
struct Structure {
    /// Two parts, each followed by a pool.
    stem: [Chain; 2],
    blocks: Vec<Block>,
    scores: ParamId,
}

impl Structure {
    fn new() -> (Self, Expected) {
        let mut builder = NetworkBuilder::new();
        let b = &mut builder;
        let mut conv = |name: &str, from, to, shape| Conv::new(b, name, from, to, shape);
        let stem = [
            Chain(vec![
                conv("Conv2d_1a_3x3", 3, 32, valid(2)),
                conv("Conv2d_2a_3x3", 32, 32, valid(1)),
                conv("Conv2d_2b_3x3", 32, 64, square(3)),
            ]),
            Chain(vec![conv("Conv2d_3b_1x1", 64, 80, POINT), conv("Conv2d_4a_3x3", 80, 192, valid(1))]),
        ];
        let blocks = vec![
            Block::a(b, "Mixed_5b", 192, 32),
            Block::a(b, "Mixed_5c", 256, 64),
            Block::a(b, "Mixed_5d", 288, 64),
            Block::b(b, "Mixed_6a", 288),
            Block::c(b, "Mixed_6b", 768, 128),
            Block::c(b, "Mixed_6c", 768, 160),
            Block::c(b, "Mixed_6d", 768, 160),
            Block::c(b, "Mixed_6e", 768, 192),
            Block::d(b, "Mixed_7a", 768),
            Block::e(b, "Mixed_7b", 1280, Branch::Average),
            Block::e(b, "Mixed_7c", 2048, Branch::Maximum),
        ];
        b.param("fc.bias", &[CLASSES]);
        let scores = b.param("fc.weight", &[CLASSES, FEATURES]);
        (Self { stem, blocks, scores }, builder.finish(EXPECTED.into()))
    }
}

/// The network with its weights.
#[derive(Debug)]
pub struct Inception {
    structure: Structure,
    published: Published,
}

impl Inception {
    /// The names and shapes of pytorch-fid's state dict, `num_batches_tracked` apart.
    pub fn tensors() -> Vec<TensorSpec> {
        Structure::new().1.tensors()
    }

    /// The network with the tensors of pytorch-fid's `pt_inception-2015-12-05`; `hash` is the SHA-256 of the file that they are from.
    ///
    /// # Errors
    /// A tensor is missing, extra or mis-shaped, or the device has no room.
    pub fn new(tensors: &[(String, Tensor)], hash: &str, device: Device) -> Result<Inception> {
        let (structure, expected) = Structure::new();
        Ok(Inception { structure, published: Published::new(expected, tensors, hash, device)? })
    }

    /// The same network with weights and activations in another precision. Images are resized and features averaged in f32.
    ///
    /// # Errors
    /// The device has no room.
    pub fn in_precision(self, precision: Precision) -> Result<Inception> {
        Ok(Inception { published: self.published.in_precision(precision)?, ..self })
    }

    /// Bytes of activations that the graph through the network keeps of an image: an estimate. In f32 65 MB; on the CPU the peak of
    /// the process grew by 63 MB an image from 2 to 4 images.
    pub fn activation_bytes(precision: Precision) -> u64 {
        SAVED * precision.kind().elt_size_in_bytes() as u64 + SAVED_PLACES * Kind::Int64.elt_size_in_bytes() as u64
    }

    /// Features f32 [B,2048] of pixels f32 [B,1 or 3,H,W] in [−1,1].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Structure { stem, blocks, .. } = &self.structure;
        let params = self.published.params()?;
        // Resizing commutes with the map to [0,1] and back that the reference makes around it.
        let x = rgb(x).upsample_bilinear2d([SIDE, SIDE], false, None, None).to_kind(self.published.kind());
        let x = halved(&stem[0].forward(&params, &x));
        let x = halved(&stem[1].forward(&params, &x));
        let x = blocks.iter().fold(x, |x, block| block.forward(&params, &x));
        Ok(x.mean_dim([2i64, 3].as_slice(), false, Kind::Float))
    }

    /// Class probabilities f32 [B,1008] of features f32 [B,2048]: without the bias, as TensorFlow's Inception Score.
    pub(crate) fn probabilities(&self, features: &Tensor) -> Result<Tensor> {
        let weight = self.published.params()?[self.structure.scores].f_to_kind(Kind::Float)?;
        Ok(features.f_linear(&weight, None::<&Tensor>)?.f_softmax(1, Kind::Float)?)
    }

    pub(crate) fn dim(&self) -> i64 {
        FEATURES
    }

    pub(crate) fn device(&self) -> Device {
        self.published.device()
    }

    pub(crate) fn convention(&self) -> String {
        self.published.convention("inception pool3 2048-d", &format!("bilinear {SIDE}"))
    }
}

/// What the file should be.
const EXPECTED: &str = "expected pytorch-fid's pt_inception-2015-12-05-6726825d.pth (`lcsc data fetch inception`), not \
                        torchvision's network";
