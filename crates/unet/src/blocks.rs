//! The parts UNets are made of. Each holds ids and sizes, never weights.

use crate::config::groups;
use lcsc_torch::{BufferId, Init, Kind, LayoutBuilder, ParamId, Params, Tensor};

/// How a layer begins: xavier-uniform weights times `gain`, zero bias.
#[derive(Clone, Copy)]
pub struct Xavier(pub f64);

pub const INIT: Xavier = Xavier(1.0);
/// For layers whose output is added to something: the sum starts as that something.
pub const INIT_ZERO: Xavier = Xavier(1e-5);

pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
    pub in_features: i64,
}

impl Linear {
    pub fn new(b: &mut LayoutBuilder, name: &str, from: i64, to: i64, bias: bool) -> Self {
        let init = Init::XavierUniform { fan_in: from, fan_out: to, gain: 1.0 };
        let weight = b.param(format!("{name}.weight"), &[to, from], init);
        let bias = bias.then(|| b.param(format!("{name}.bias"), &[to], Init::Zeros));
        Self { weight, bias, in_features: from }
    }

    /// [B,from] → [B,to]
    pub fn forward(&self, p: &Params, x: &Tensor) -> Tensor {
        x.linear(&p[self.weight], self.bias.map(|id| &p[id]))
    }
}

pub struct GroupNorm {
    weight: ParamId,
    bias: ParamId,
    groups: i64,
}

impl GroupNorm {
    /// Song et al. use 1e-6.
    const EPS: f64 = 1e-6;

    pub fn new(b: &mut LayoutBuilder, name: &str, channels: i64) -> Self {
        let weight = b.param(format!("{name}.weight"), &[channels], Init::Ones);
        let bias = b.param(format!("{name}.bias"), &[channels], Init::Zeros);
        Self { weight, bias, groups: groups(channels) }
    }

    pub fn forward(&self, p: &Params, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&p[self.weight]), Some(&p[self.bias]), Self::EPS, true)
    }
}

/// A change of resolution by two with a separable filter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    Up,
    Down,
}

struct Filter {
    direction: Resample,
    taps: BufferId,
    size: i64,
    /// [1,1]: averaging down and repeating up have kernels of their own, which are faster.
    is_box: bool,
}

impl Filter {
    fn new(b: &mut LayoutBuilder, name: &str, direction: Resample, taps: &[f64]) -> Self {
        let sum: f64 = taps.iter().sum();
        let outer = taps.iter().flat_map(|a| taps.iter().map(move |c| (a * c / (sum * sum)) as f32)).collect();
        let size = taps.len() as i64;
        let id = b.buffer(format!("{name}.resample_filter"), &[1, 1, size, size], Init::Fixed(outer));
        Self { direction, taps: id, size, is_box: taps == [1.0, 1.0] }
    }

    fn pad(&self) -> i64 {
        (self.size - 1) / 2
    }

    /// [B,C,H,W] → [B,C,2H,2W] or [B,C,H/2,W/2], zero-padded by `pad`.
    fn forward(&self, p: &Params, x: &Tensor, pad: i64) -> Tensor {
        let (_, c, h, w) = size4(x);
        if self.is_box {
            return match self.direction {
                Resample::Up => x.upsample_nearest2d([2 * h, 2 * w], None, None),
                Resample::Down => x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None),
            };
        }
        let taps = p[self.taps].to_kind(x.kind()).tile([c, 1, 1, 1]);
        let none = None::<&Tensor>;
        match self.direction {
            Resample::Up => x.conv_transpose2d(&(taps * 4.0), none, [2, 2], [pad, pad], [0, 0], c, [1, 1]),
            Resample::Down => x.conv2d(&taps, none, [2, 2], [pad, pad], [1, 1], c),
        }
    }
}

/// What a convolution does beside convolving.
#[derive(Clone, Copy)]
pub enum Resampling<'a> {
    None,
    /// Resample, then convolve.
    Before(Resample, &'a [f64]),
    /// Convolve with the filter's padding, then downsample without (EDM's fused form).
    FusedDown(&'a [f64]),
}

pub struct Conv2d {
    /// Weight and bias, absent for a pure resampling layer (kernel 0).
    kernel: Option<(ParamId, ParamId, i64)>,
    filter: Option<Filter>,
    fused: bool,
}

impl Conv2d {
    pub fn new(
        b: &mut LayoutBuilder,
        name: &str,
        (from, to): (i64, i64),
        kernel: i64,
        resampling: Resampling,
        Xavier(gain): Xavier,
    ) -> Self {
        let kernel = (kernel > 0).then(|| {
            let area = kernel * kernel;
            let init = Init::XavierUniform { fan_in: from * area, fan_out: to * area, gain };
            let weight = b.param(format!("{name}.weight"), &[to, from, kernel, kernel], init);
            let bias = b.param(format!("{name}.bias"), &[to], Init::Zeros);
            (weight, bias, kernel)
        });
        let (filter, fused) = match resampling {
            Resampling::None => (None, false),
            Resampling::Before(direction, taps) => (Some(Filter::new(b, name, direction, taps)), false),
            Resampling::FusedDown(taps) => (Some(Filter::new(b, name, Resample::Down, taps)), true),
        };
        Self { kernel, filter, fused }
    }

    /// A convolution that keeps the resolution.
    pub fn plain(b: &mut LayoutBuilder, name: &str, channels: (i64, i64), kernel: i64, init: Xavier) -> Self {
        Self::new(b, name, channels, kernel, Resampling::None, init)
    }

    pub fn forward(&self, p: &Params, x: &Tensor) -> Tensor {
        let conv = |x: &Tensor, extra: i64| match self.kernel {
            None => x.shallow_clone(),
            Some((weight, bias, kernel)) => {
                let pad = kernel / 2 + extra;
                x.conv2d(&p[weight], Some(&p[bias]), [1, 1], [pad, pad], [1, 1], 1)
            }
        };
        match &self.filter {
            None => conv(x, 0),
            Some(filter) if self.fused => filter.forward(p, &conv(x, filter.pad()), 0),
            Some(filter) => conv(&filter.forward(p, x, filter.pad()), 0),
        }
    }
}

/// Single-head self-attention over pixels; `qkv` interleaves (head channel, three) as EDM's checkpoints do.
struct Attention {
    norm: GroupNorm,
    qkv: Conv2d,
    proj: Conv2d,
}

impl Attention {
    fn new(b: &mut LayoutBuilder, name: &str, channels: i64) -> Self {
        Self {
            norm: GroupNorm::new(b, &format!("{name}.norm2"), channels),
            qkv: Conv2d::plain(b, &format!("{name}.qkv"), (channels, 3 * channels), 1, Xavier(0.2f64.sqrt())),
            proj: Conv2d::plain(b, &format!("{name}.proj"), (channels, channels), 1, INIT_ZERO),
        }
    }

    /// The attended values, to be added to `x`.
    fn forward(&self, p: &Params, x: &Tensor) -> Tensor {
        let (n, c, h, w) = size4(x);
        let qkv = self.qkv.forward(p, &self.norm.forward(p, x)).reshape([n, 1, c, 3, h * w]);
        // [B,1,C,HW] → [B,1,HW,C]
        let [q, k, v] = [0, 1, 2].map(|i| qkv.select(3, i).transpose(2, 3));
        let a = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        self.proj.forward(p, &a.transpose(2, 3).reshape([n, c, h, w]))
    }
}

/// A residual block with an additive noise embedding, and optional attention after it.
pub struct UNetBlock {
    norm0: GroupNorm,
    conv0: Conv2d,
    affine: Linear,
    norm1: GroupNorm,
    conv1: Conv2d,
    skip: Option<Conv2d>,
    attention: Option<Attention>,
    dropout: f64,
    pub in_channels: i64,
    pub out_channels: i64,
}

/// What all blocks of one network share.
pub struct BlockOptions<'a> {
    pub emb_channels: i64,
    pub dropout: f64,
    pub resample_filter: &'a [f64],
}

impl UNetBlock {
    pub fn new(
        b: &mut LayoutBuilder,
        name: &str,
        (from, to): (i64, i64),
        resample: Option<Resample>,
        attention: bool,
        options: &BlockOptions,
    ) -> Self {
        let resampling = match resample {
            None => Resampling::None,
            Some(direction) => Resampling::Before(direction, options.resample_filter),
        };
        let child = |part: &str| format!("{name}.{part}");
        Self {
            norm0: GroupNorm::new(b, &child("norm0"), from),
            conv0: Conv2d::new(b, &child("conv0"), (from, to), 3, resampling, INIT),
            affine: Linear::new(b, &child("affine"), options.emb_channels, to, true),
            norm1: GroupNorm::new(b, &child("norm1"), to),
            conv1: Conv2d::plain(b, &child("conv1"), (to, to), 3, INIT_ZERO),
            skip: (from != to || resample.is_some())
                .then(|| Conv2d::new(b, &child("skip"), (from, to), 1, resampling, INIT)),
            attention: attention.then(|| Attention::new(b, name, to)),
            dropout: options.dropout,
            in_channels: from,
            out_channels: to,
        }
    }

    /// x [B,from,H,W], emb [B,E] → [B,to,H',W'], every sum scaled by √½.
    pub fn forward(&self, p: &Params, x: &Tensor, emb: &Tensor, train: bool) -> Tensor {
        let skip_scale = 0.5f64.sqrt();
        let h = self.conv0.forward(p, &self.norm0.forward(p, x).silu());
        let shift = self.affine.forward(p, emb).unsqueeze(2).unsqueeze(3);
        let h = self.norm1.forward(p, &(h + shift)).silu();
        let h = self.conv1.forward(p, &if train && self.dropout > 0.0 { h.dropout(self.dropout, true) } else { h });
        let residual = self.skip.as_ref().map_or_else(|| x.shallow_clone(), |s| s.forward(p, x));
        let x = (h + residual) * skip_scale;
        match &self.attention {
            None => x,
            Some(attention) => (attention.forward(p, &x) + x) * skip_scale,
        }
    }
}

/// The noise level's embedding before the two dense layers.
pub enum NoiseEmbedding {
    Positional { channels: i64 },
    Fourier { freqs: BufferId },
}

impl NoiseEmbedding {
    const MAX_POSITIONS: f64 = 10000.0;
    const FOURIER_SCALE: f64 = 16.0;

    pub fn positional(channels: i64) -> Self {
        Self::Positional { channels }
    }

    pub fn fourier(b: &mut LayoutBuilder, name: &str, channels: i64) -> Self {
        let freqs = b.buffer(format!("{name}.freqs"), &[channels / 2], Init::Normal(Self::FOURIER_SCALE));
        Self::Fourier { freqs }
    }

    /// c_noise f32 [B] → [B,channels], sines first.
    pub fn forward(&self, p: &Params, c_noise: &Tensor) -> Tensor {
        let angles = match self {
            Self::Positional { channels } => {
                let half = channels / 2;
                let exponents = Tensor::arange(half, (Kind::Float, c_noise.device())) / (half - 1).max(1) as f64;
                let freqs = (exponents * -Self::MAX_POSITIONS.ln()).exp();
                c_noise.outer(&freqs)
            }
            Self::Fourier { freqs } => c_noise.outer(&(&p[*freqs] * std::f64::consts::TAU)),
        };
        Tensor::cat(&[angles.sin(), angles.cos()], 1)
    }
}

pub fn size4(x: &Tensor) -> (i64, i64, i64, i64) {
    let s = x.size();
    (s[0], s[1], s[2], s[3])
}
