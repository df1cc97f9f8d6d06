//! The parts UNets are made of. Each holds ids and sizes, never weights.

use crate::config::Heads;
use crate::resample::{Filter, Resample, repeat_pixels, size4};
use lcsc_torch::{
    BufferId, Device, Init, Kind, LayoutBuilder, NormOperands, ParamId, Params, Tensor, fused_group_norm,
};

/// How a layer begins.
#[derive(Clone, Copy)]
pub enum LayerInit {
    /// Xavier-uniform weights times a gain, zero bias (DDPM++).
    Xavier(f64),
    /// Weights and bias U(−1,1)/√fan_in, PyTorch's default (ADM).
    Uniform,
    /// All zero.
    Zeros,
}

impl LayerInit {
    /// The initial values of weights and bias.
    fn of(self, fan_in: i64, fan_out: i64) -> (Init, Init) {
        match self {
            Self::Xavier(gain) => (Init::XavierUniform { fan_in, fan_out, gain }, Init::Zeros),
            Self::Uniform => {
                let bound = (fan_in as f64).powf(-0.5);
                (Init::Uniform(bound), Init::Uniform(bound))
            }
            Self::Zeros => (Init::Zeros, Init::Zeros),
        }
    }
}

pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
    pub in_features: i64,
}

impl Linear {
    pub fn new(b: &mut LayoutBuilder, name: &str, (from, to): (i64, i64), init: LayerInit) -> Self {
        let (weight, bias) = init.of(from, to);
        let weight = b.param(format!("{name}.weight"), &[to, from], weight);
        let bias = Some(b.param(format!("{name}.bias"), &[to], bias));
        Self { weight, bias, in_features: from }
    }

    pub fn without_bias(b: &mut LayoutBuilder, name: &str, (from, to): (i64, i64), init: Init) -> Self {
        let weight = b.param(format!("{name}.weight"), &[to, from], init);
        Self { weight, bias: None, in_features: from }
    }

    /// [B,from] → [B,to]
    pub fn forward(&self, p: &Params, x: &Tensor) -> Tensor {
        x.linear(&p[self.weight], self.bias.map(|id| &p[id]))
    }
}

/// What the group norms of one network share.
#[derive(Clone, Copy)]
pub struct NormOptions {
    pub eps: f64,
    pub min_channels_per_group: i64,
}

impl NormOptions {
    /// Song et al. 2021, as in EDM.
    pub const SONG: Self = Self { eps: 1e-6, min_channels_per_group: 4 };

    /// Groups of a group norm over C channels: at most 32.
    pub fn groups(self, channels: i64) -> i64 {
        (channels / self.min_channels_per_group).clamp(1, 32)
    }

    /// Whether C channels can be divided into them.
    pub fn fits(self, channels: i64) -> bool {
        channels >= self.min_channels_per_group && channels % self.groups(channels) == 0
    }
}

pub struct GroupNorm {
    weight: ParamId,
    bias: ParamId,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    pub fn new(b: &mut LayoutBuilder, name: &str, channels: i64, options: NormOptions) -> Self {
        let weight = b.param(format!("{name}.weight"), &[channels], Init::Ones);
        let bias = b.param(format!("{name}.bias"), &[channels], Init::Zeros);
        Self { weight, bias, groups: options.groups(channels), eps: options.eps }
    }

    /// x [B,C,H,W] → the same shape.
    pub fn forward(&self, p: &Params, x: &Tensor) -> Tensor {
        self.computed(p, x, None, false, 0.0)
    }

    /// SiLU of the norm.
    pub fn silu(&self, p: &Params, x: &Tensor) -> Tensor {
        self.computed(p, x, None, true, 0.0)
    }

    /// SiLU of the norm, where it is modulated of the norm times 1 + scale, plus shift, both [B,C]; then dropout.
    pub fn modulated_silu(&self, p: &Params, x: &Tensor, modulation: Option<[&Tensor; 2]>, dropout: f64) -> Tensor {
        self.computed(p, x, modulation, true, dropout)
    }

    fn computed(&self, p: &Params, x: &Tensor, modulation: Option<[&Tensor; 2]>, silu: bool, dropout: f64) -> Tensor {
        let (weight, bias, groups, eps) = (&p[self.weight], &p[self.bias], self.groups, self.eps);
        if p.plan().fused_norm {
            return fused_group_norm(x, NormOperands { weight, bias, groups, eps, modulation, silu, dropout });
        }
        let y = x.group_norm(groups, Some(weight), Some(bias), eps, true);
        let y = match modulation.map(|pair| pair.map(|t| t.unsqueeze(2).unsqueeze(3))) {
            Some([scale, shift]) => y * (scale + 1.0) + shift,
            None => y,
        };
        let y = if silu { y.silu() } else { y };
        if dropout > 0.0 { y.dropout(dropout, true) } else { y }
    }
}

/// What a convolution does beside convolving.
#[derive(Clone, Copy)]
pub enum Resampling<'a> {
    None,
    /// Resample with a filter, then convolve.
    Before(Resample, &'a [f64]),
    /// Convolve with the filter's padding, then downsample without (EDM's fused form).
    FusedDown(&'a [f64]),
    /// Convolve with stride two; `same` pads right and below alone, as TensorFlow does.
    Strided {
        same: bool,
    },
    /// Repeat pixels, then convolve.
    Nearest,
}

enum Resampler {
    None,
    Before(Filter),
    FusedDown(Filter),
    Strided { same: bool },
    Nearest,
}

pub struct Conv2d {
    /// Weight, bias and size, absent for a pure resampling layer (kernel 0).
    kernel: Option<(ParamId, ParamId, i64)>,
    resampler: Resampler,
}

impl Conv2d {
    pub fn new(
        b: &mut LayoutBuilder,
        name: &str,
        (from, to): (i64, i64),
        kernel: i64,
        resampling: Resampling,
        init: LayerInit,
    ) -> Self {
        let kernel = (kernel > 0).then(|| {
            let area = kernel * kernel;
            let (weight, bias) = init.of(from * area, to * area);
            let weight = b.param(format!("{name}.weight"), &[to, from, kernel, kernel], weight);
            let bias = b.param(format!("{name}.bias"), &[to], bias);
            (weight, bias, kernel)
        });
        let resampler = match resampling {
            Resampling::None => Resampler::None,
            Resampling::Before(direction, taps) => Resampler::Before(Filter::new(b, name, direction, taps)),
            Resampling::FusedDown(taps) => Resampler::FusedDown(Filter::new(b, name, Resample::Down, taps)),
            Resampling::Strided { same } => Resampler::Strided { same },
            Resampling::Nearest => Resampler::Nearest,
        };
        Self { kernel, resampler }
    }

    /// A convolution that keeps the resolution.
    pub fn plain(b: &mut LayoutBuilder, name: &str, channels: (i64, i64), kernel: i64, init: LayerInit) -> Self {
        Self::new(b, name, channels, kernel, Resampling::None, init)
    }

    pub fn forward(&self, p: &Params, x: &Tensor) -> Tensor {
        match &self.resampler {
            Resampler::None => self.convolve(p, x, 1, 0),
            // A product at each pixel is the same before pixels are repeated, and four times cheaper.
            Resampler::Before(filter) if filter.repeats() && self.kernel.is_some_and(|(_, _, size)| size == 1) => {
                repeat_pixels(&self.convolve(p, x, 1, 0))
            }
            Resampler::Before(filter) => self.convolve(p, &filter.forward(p, x, filter.pad()), 1, 0),
            Resampler::FusedDown(filter) => filter.forward(p, &self.convolve(p, x, 1, filter.pad()), 0),
            Resampler::Strided { same: false } => self.convolve(p, x, 2, 0),
            Resampler::Strided { same: true } => self.convolve(p, &x.constant_pad_nd([0, 1, 0, 1]), 2, -1),
            Resampler::Nearest => self.convolve(p, &repeat_pixels(x), 1, 0),
        }
    }

    /// Zero-padded by half the kernel and `extra`.
    fn convolve(&self, p: &Params, x: &Tensor, stride: i64, extra: i64) -> Tensor {
        let Some((weight, bias, kernel)) = self.kernel else { return x.shallow_clone() };
        let pad = kernel / 2 + extra;
        x.conv2d(&p[weight], Some(&p[bias]), [stride, stride], [pad, pad], [1, 1], 1)
    }
}

/// Self-attention over pixels; `qkv` interleaves (heads, head channel, three) as EDM's checkpoints do.
struct Attention {
    norm: GroupNorm,
    qkv: Conv2d,
    proj: Conv2d,
    heads: i64,
}

impl Attention {
    fn new(b: &mut LayoutBuilder, name: &str, channels: i64, options: &BlockOptions) -> Self {
        let Inits { attention, last, .. } = options.inits;
        Self {
            norm: GroupNorm::new(b, &format!("{name}.norm2"), channels, options.norm),
            qkv: Conv2d::plain(b, &format!("{name}.qkv"), (channels, 3 * channels), 1, attention),
            proj: Conv2d::plain(b, &format!("{name}.proj"), (channels, channels), 1, last),
            heads: options.heads.of(channels),
        }
    }

    /// The attended values, to be added to `x`.
    fn forward(&self, p: &Params, x: &Tensor) -> Tensor {
        let (n, c, h, w) = size4(x);
        let qkv = self.qkv.forward(p, &self.norm.forward(p, x));
        let channels_last = p.plan().channels_last;
        let [q, k, v] = self.queries_keys_values(&qkv, channels_last || qkv.device() != Device::Cpu);
        let a = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        let a = if channels_last {
            a.transpose(1, 2).reshape([n, h, w, c]).permute([0, 3, 1, 2])
        } else {
            // A view would have the channels last, and all that follows with it, sums with what has not.
            a.transpose(2, 3).contiguous().view([n, c, h, w])
        };
        self.proj.forward(p, &a)
    }

    /// [B,3C,H,W] → three of [B,heads,HW,C/heads]. Views, or `side_by_side` the values of a pixel, which alone the fused
    /// kernels of a GPU take: one copy for all three.
    fn queries_keys_values(&self, qkv: &Tensor, side_by_side: bool) -> [Tensor; 3] {
        let (n, c, h, w) = size4(qkv);
        let qkv = qkv.reshape([n, self.heads, c / 3 / self.heads, 3, h * w]);
        if !side_by_side {
            return [0, 1, 2].map(|i| qkv.select(3, i).transpose(2, 3));
        }
        let qkv = qkv.permute([3, 0, 1, 4, 2]).contiguous();
        [0, 1, 2].map(|i| qkv.get(i))
    }
}

/// A residual block told of the noise level, with optional attention after it.
pub struct UNetBlock {
    norm0: GroupNorm,
    conv0: Conv2d,
    affine: Linear,
    norm1: GroupNorm,
    conv1: Conv2d,
    skip: Option<Conv2d>,
    attention: Option<Attention>,
    adaptive_scale: bool,
    skip_scale: f64,
    dropout: f64,
    pub in_channels: i64,
    pub out_channels: i64,
}

/// How the layers of a block begin.
#[derive(Clone, Copy)]
pub struct Inits {
    pub layer: LayerInit,
    pub attention: LayerInit,
    /// For layers whose output is added to something: the sum starts as that something.
    pub last: LayerInit,
}

/// What all blocks of one network share.
pub struct BlockOptions<'a> {
    pub emb_channels: i64,
    pub dropout: f64,
    pub resample_filter: &'a [f64],
    /// Whether a change of resolution alone, too, puts a 1×1 convolution on the residual path.
    pub resample_proj: bool,
    /// Whether the embedding scales and shifts the normalised activations; else it is added before the norm.
    pub adaptive_scale: bool,
    /// Factor of every sum with the residual path.
    pub skip_scale: f64,
    pub heads: Heads,
    pub norm: NormOptions,
    pub inits: Inits,
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
        let Inits { layer, last, .. } = options.inits;
        let child = |part: &str| format!("{name}.{part}");
        let affine = if options.adaptive_scale { 2 * to } else { to };
        let skip_kernel = i64::from(from != to || options.resample_proj);
        Self {
            norm0: GroupNorm::new(b, &child("norm0"), from, options.norm),
            conv0: Conv2d::new(b, &child("conv0"), (from, to), 3, resampling, layer),
            affine: Linear::new(b, &child("affine"), (options.emb_channels, affine), layer),
            norm1: GroupNorm::new(b, &child("norm1"), to, options.norm),
            conv1: Conv2d::plain(b, &child("conv1"), (to, to), 3, last),
            skip: (from != to || resample.is_some())
                .then(|| Conv2d::new(b, &child("skip"), (from, to), skip_kernel, resampling, layer)),
            attention: attention.then(|| Attention::new(b, name, to, options)),
            adaptive_scale: options.adaptive_scale,
            skip_scale: options.skip_scale,
            dropout: options.dropout,
            in_channels: from,
            out_channels: to,
        }
    }

    /// x [B,from,H,W], emb [B,E] → [B,to,H',W'].
    pub fn forward(&self, p: &Params, x: &Tensor, emb: &Tensor, train: bool) -> Tensor {
        let h = self.conv0.forward(p, &self.norm0.silu(p, x));
        let emb = self.affine.forward(p, emb);
        let dropout = if train { self.dropout } else { 0.0 };
        let h = if self.adaptive_scale {
            let [scale, shift] = [0, 1].map(|i| emb.narrow(1, i * self.out_channels, self.out_channels));
            self.norm1.modulated_silu(p, &h, Some([&scale, &shift]), dropout)
        } else {
            self.norm1.modulated_silu(p, &(h + emb.unsqueeze(2).unsqueeze(3)), None, dropout)
        };
        let h = self.conv1.forward(p, &h);
        let residual = self.skip.as_ref().map_or_else(|| x.shallow_clone(), |s| s.forward(p, x));
        let x = self.scaled(h + residual);
        match &self.attention {
            None => x,
            Some(attention) => self.scaled(attention.forward(p, &x) + x),
        }
    }

    fn scaled(&self, sum: Tensor) -> Tensor {
        if self.skip_scale == 1.0 { sum } else { sum * self.skip_scale }
    }
}

/// The noise level's embedding before the two dense layers.
pub enum NoiseEmbedding {
    /// Sines first; the lowest frequency is 1/10000 (Ho et al. 2020).
    Positional { channels: i64 },
    /// Cosines first; the frequencies stop short of 1/10000 (Dhariwal & Nichol 2021).
    PositionalOpen { channels: i64 },
    /// Sines first, random frequencies (Song et al. 2021).
    Fourier { freqs: BufferId },
}

impl NoiseEmbedding {
    const MAX_POSITIONS: f64 = 10000.0;
    const FOURIER_SCALE: f64 = 16.0;

    pub fn fourier(b: &mut LayoutBuilder, name: &str, channels: i64) -> Self {
        let freqs = b.buffer(format!("{name}.freqs"), &[channels / 2], Init::Normal(Self::FOURIER_SCALE));
        Self::Fourier { freqs }
    }

    /// c_noise f32 [B] → [B,channels].
    pub fn forward(&self, p: &Params, c_noise: &Tensor) -> Tensor {
        let geometric = |half: i64, last: i64| {
            let exponents = Tensor::arange(half, (Kind::Float, c_noise.device())) / last.max(1) as f64;
            c_noise.outer(&(exponents * -Self::MAX_POSITIONS.ln()).exp())
        };
        match self {
            Self::Positional { channels } => {
                let angles = geometric(channels / 2, channels / 2 - 1);
                Tensor::cat(&[angles.sin(), angles.cos()], 1)
            }
            Self::PositionalOpen { channels } => {
                let angles = geometric(channels / 2, channels / 2);
                Tensor::cat(&[angles.cos(), angles.sin()], 1)
            }
            Self::Fourier { freqs } => {
                let angles = c_noise.outer(&(&p[*freqs] * std::f64::consts::TAU));
                Tensor::cat(&[angles.sin(), angles.cos()], 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Stream, latents};

    #[test]
    fn attention_takes_the_values_of_a_pixel_side_by_side() {
        let mut b = LayoutBuilder::default();
        let inits = Inits { layer: LayerInit::Uniform, attention: LayerInit::Uniform, last: LayerInit::Uniform };
        let options = BlockOptions {
            emb_channels: 8,
            dropout: 0.0,
            resample_filter: &[1.0, 1.0],
            resample_proj: false,
            adaptive_scale: false,
            skip_scale: 1.0,
            heads: Heads::Count(2),
            norm: NormOptions::SONG,
            inits,
        };
        let attention = Attention::new(&mut b, "a", 8, &options);
        let qkv = latents(0, Stream::Noise, 0, 3, [24, 4, 4], Device::Cpu).unwrap();
        let views = attention.queries_keys_values(&qkv, false);
        for (copy, view) in attention.queries_keys_values(&qkv, true).iter().zip(&views) {
            assert!(copy.equal(view));
            assert_eq!((copy.size(), copy.stride()), (vec![3, 2, 16, 4], vec![128, 64, 4, 1]));
        }
    }

    #[test]
    fn a_pointwise_convolution_commutes_with_repeated_pixels() {
        let mut b = LayoutBuilder::default();
        let up = Resampling::Before(Resample::Up, &[1.0, 1.0]);
        let conv = Conv2d::new(&mut b, "conv", (4, 6), 1, up, LayerInit::Uniform);
        let layout = b.finish();
        let weights = layout.init(0, Device::Cpu).unwrap();
        let p = layout.views(&weights.theta, &weights.buffers).unwrap();
        let x = latents(0, Stream::Noise, 0, 2, [4, 8, 8], Device::Cpu).unwrap();
        let expected = conv.convolve(&p, &repeat_pixels(&x), 1, 0);
        assert!((conv.forward(&p, &x) - expected).abs().max().double_value(&[]) < 1e-6);
    }
}
