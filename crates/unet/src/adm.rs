//! `DhariwalUNet`: ADM (Dhariwal & Nichol 2021) as configured by EDM (Karras et al. 2022, table 7), with the options that
//! improved DDPM and OpenAI's consistency models need.

use crate::blocks::{
    BlockOptions, Conv2d, GroupNorm, Inits, LayerInit, Linear, NoiseEmbedding, NormOptions, Resampling, UNetBlock,
};
use crate::config::{Common, Heads, ImageShape, Resolution};
use crate::network::Inputs;
use crate::resample::Resample;
use lcsc_torch::{Init, Invalid, Kind, LayoutBuilder, ParamLayout, Params, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The options of `DhariwalUNet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DhariwalUNetConfig {
    /// Base number of channels.
    pub model_channels: i64,
    /// Channel multiplier of each resolution level, finest first.
    pub channel_mult: Vec<i64>,
    /// Multiplier of the embedding vector's width.
    pub channel_mult_emb: i64,
    /// Residual blocks a level.
    pub num_blocks: i64,
    /// Resolutions (pixels) with self-attention; the middle has it always.
    pub attn_resolutions: Vec<i64>,
    /// Heads of an attention layer.
    pub heads: Heads,
    /// Dropout probability of intermediate activations.
    pub dropout: f64,
    /// Probability of hiding the class label of an image in training, for classifier-free guidance.
    pub label_dropout: f64,
    /// What changes the resolution between two levels.
    pub resample: Resolution,
    /// Whether the embedding scales and shifts normalised activations (adaptive group norm); else it is added to them.
    pub adaptive_scale: bool,
    /// A group norm has min(32, C / this) groups: 4 in EDM's code, 1 in OpenAI's.
    pub min_channels_per_group: i64,
    /// Number of augmentation labels, 0 without augmentation.
    pub augment_dim: i64,
}

impl Default for DhariwalUNetConfig {
    fn default() -> Self {
        Self::adm_imagenet64()
    }
}

impl DhariwalUNetConfig {
    /// Names that [`DhariwalUNetConfig::preset`] knows.
    pub const PRESETS: [&'static str; 2] = ["adm-imagenet64", "iddpm-imagenet64"];

    /// A preset by name.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "adm-imagenet64" => Some(Self::adm_imagenet64()),
            "iddpm-imagenet64" => Some(Self::iddpm_imagenet64()),
            _ => None,
        }
    }

    /// ADM for ImageNet-64, as EDM and OpenAI's consistency models use it (about 296 M parameters).
    pub fn adm_imagenet64() -> Self {
        Self {
            model_channels: 192,
            channel_mult: vec![1, 2, 3, 4],
            channel_mult_emb: 4,
            num_blocks: 3,
            attn_resolutions: vec![32, 16, 8],
            heads: Heads::Channels(64),
            dropout: 0.1,
            label_dropout: 0.0,
            resample: Resolution::Blocks,
            adaptive_scale: true,
            min_channels_per_group: 4,
            augment_dim: 0,
        }
    }

    /// Improved DDPM for ImageNet-64 (Nichol & Dhariwal 2021), as the LCSC paper configures it: 128 channels, attention
    /// of four heads at 16×16 and 8×8, plain convolutions between the levels, no dropout.
    pub fn iddpm_imagenet64() -> Self {
        Self {
            model_channels: 128,
            attn_resolutions: vec![16, 8],
            heads: Heads::Count(4),
            dropout: 0.0,
            resample: Resolution::Convolutions,
            ..Self::adm_imagenet64()
        }
    }

    /// Groups of the group norm over the fewest channels.
    pub fn least_groups(&self) -> i64 {
        let least = self.channel_mult.iter().min().map_or(0, |mult| mult * self.model_channels);
        self.norm().groups(least)
    }

    /// Everything about this configuration that cannot work for such images.
    pub fn validate(&self, image: ImageShape) -> Vec<Invalid> {
        let norm = self.norm();
        if norm.min_channels_per_group < 1 {
            return vec![Invalid::new("min_channels_per_group", "must be at least 1")];
        }
        let mut found = Common {
            model_channels: self.model_channels,
            channel_mult: &self.channel_mult,
            channel_mult_emb: self.channel_mult_emb,
            num_blocks: self.num_blocks,
            dropout: self.dropout,
            label_dropout: self.label_dropout,
            augment_dim: self.augment_dim,
            norm,
        }
        .validate(image);
        if self.model_channels % 2 != 0 {
            let message = "must be even: the noise embedding has as many sines as cosines";
            found.push(Invalid::new("model_channels", message));
        }
        let deepest = self.channel_mult.len().saturating_sub(1);
        for (level, mult) in self.channel_mult.iter().enumerate() {
            let channels = self.model_channels * mult;
            let attends = level == deepest || self.attn_resolutions.contains(&(image.resolution >> level));
            if attends && !self.heads.fits(channels) {
                let message = format!("do not divide the {channels} channels of level {level}");
                found.push(Invalid::new("heads", message));
            }
        }
        found
    }

    fn norm(&self) -> NormOptions {
        NormOptions { eps: 1e-5, min_channels_per_group: self.min_channels_per_group }
    }

    fn block_options(&self) -> BlockOptions<'_> {
        BlockOptions {
            emb_channels: self.model_channels * self.channel_mult_emb,
            dropout: self.dropout,
            resample_filter: &[1.0, 1.0],
            resample_proj: false,
            adaptive_scale: self.adaptive_scale,
            skip_scale: 1.0,
            heads: self.heads,
            norm: self.norm(),
            inits: Inits { layer: LayerInit::Uniform, attention: LayerInit::Uniform, last: LayerInit::Zeros },
        }
    }
}

enum Layer {
    Conv(Conv2d),
    Block(Box<UNetBlock>),
}

impl Layer {
    fn forward(&self, p: &Params, x: &Tensor, emb: &Tensor, train: bool) -> Tensor {
        match self {
            Self::Conv(conv) => conv.forward(p, x),
            Self::Block(block) => block.forward(p, x, emb, train),
        }
    }
}

/// The network F(x; c_noise): shapes and indices only.
pub struct DhariwalUNet {
    map_noise: NoiseEmbedding,
    map_augment: Option<Linear>,
    map_layer0: Linear,
    map_layer1: Linear,
    map_label: Option<Linear>,
    enc: Vec<Layer>,
    dec: Vec<Layer>,
    out_norm: GroupNorm,
    out_conv: Conv2d,
    label_dropout: f64,
}

impl DhariwalUNet {
    /// The network with so many output channels, and its layout; names start with `model.`, as in EDM's checkpoints.
    ///
    /// The configuration must be free of problems ([`DhariwalUNetConfig::validate`]).
    pub fn new(config: &DhariwalUNetConfig, image: ImageShape, out_channels: i64) -> (Self, ParamLayout) {
        let mut b = LayoutBuilder::default();
        let options = config.block_options();
        let (channels, emb_channels) = (config.model_channels, options.emb_channels);
        let layer = options.inits.layer;
        let map_augment = (config.augment_dim > 0)
            .then(|| Linear::without_bias(&mut b, "model.map_augment", (config.augment_dim, channels), Init::Zeros));
        let map_layer0 = Linear::new(&mut b, "model.map_layer0", (channels, emb_channels), layer);
        let map_layer1 = Linear::new(&mut b, "model.map_layer1", (emb_channels, emb_channels), layer);
        let map_label = (image.label_dim > 0).then(|| {
            Linear::without_bias(&mut b, "model.map_label", (image.label_dim, emb_channels), Init::Normal(1.0))
        });
        let (enc, skips) = encoder(&mut b, config, image, &options);
        let (dec, last) = decoder(&mut b, config, image.resolution, &options, skips);
        let out_norm = GroupNorm::new(&mut b, "model.out_norm", last, options.norm);
        let out_conv = Conv2d::plain(&mut b, "model.out_conv", (last, out_channels), 3, options.inits.last);
        let map_noise = NoiseEmbedding::PositionalOpen { channels };
        let label_dropout = config.label_dropout;
        let net = Self {
            map_noise,
            map_augment,
            map_layer0,
            map_layer1,
            map_label,
            enc,
            dec,
            out_norm,
            out_conv,
            label_dropout,
        };
        (net, b.finish())
    }

    /// F(x; c_noise) f32 `[B,out_channels,H,W]`, computed in the type of `p`.
    pub fn forward(&self, p: &Params, inputs: &Inputs) -> Tensor {
        let (emb, train) = (self.embed(p, inputs), inputs.train);
        let mut x = p.plan().arranged(&inputs.x.to_kind(p.kind()));
        let mut skips: Vec<Tensor> = Vec::with_capacity(self.enc.len());
        for layer in &self.enc {
            x = layer.forward(p, &x, &emb, train);
            skips.push(x.shallow_clone());
        }
        for layer in &self.dec {
            let joins = matches!(layer, Layer::Block(block) if block.in_channels != x.size()[1]);
            if let Some(skip) = joins.then(|| skips.pop()).flatten() {
                x = Tensor::cat(&[x, skip], 1);
            }
            x = layer.forward(p, &x, &emb, train);
        }
        self.out_conv.forward(p, &self.out_norm.silu(p, &x)).to_kind(Kind::Float)
    }

    /// The embedding vector [B,E] of noise level, augmentation and class.
    fn embed(&self, p: &Params, inputs: &Inputs) -> Tensor {
        let kind = p.kind();
        let mut emb = self.map_noise.forward(p, inputs.c_noise).to_kind(kind);
        if let (Some(map), Some(labels)) = (&self.map_augment, inputs.augment_labels) {
            emb = emb + map.forward(p, &labels.to_kind(kind));
        }
        emb = self.map_layer1.forward(p, &self.map_layer0.forward(p, &emb).silu());
        if let Some(map) = &self.map_label {
            let one_hot = inputs.seen_labels(map.in_features, self.label_dropout);
            emb = emb + map.forward(p, &one_hot.to_kind(kind));
        }
        emb.silu()
    }
}

/// The encoder's layers, and the channels of each skip connection.
fn encoder(
    b: &mut LayoutBuilder,
    config: &DhariwalUNetConfig,
    image: ImageShape,
    options: &BlockOptions,
) -> (Vec<Layer>, Vec<i64>) {
    let (mut layers, mut skips) = (Vec::new(), Vec::new());
    let init = options.inits.layer;
    let mut channels = config.model_channels * config.channel_mult.first().copied().unwrap_or(1);
    for (level, mult) in config.channel_mult.iter().enumerate() {
        let res = image.resolution >> level;
        let name = |part: &str| format!("model.enc.{res}x{res}_{part}");
        let (down, same) = (name("down"), (channels, channels));
        layers.push(match config.resample {
            _ if level == 0 => Layer::Conv(Conv2d::plain(b, &name("conv"), (image.channels, channels), 3, init)),
            Resolution::Blocks => {
                Layer::Block(Box::new(UNetBlock::new(b, &down, same, Some(Resample::Down), false, options)))
            }
            Resolution::Convolutions => {
                Layer::Conv(Conv2d::new(b, &down, same, 3, Resampling::Strided { same: false }, init))
            }
        });
        skips.push(channels);
        let attention = config.attn_resolutions.contains(&res);
        for index in 0..config.num_blocks {
            let to = config.model_channels * mult;
            let block = UNetBlock::new(b, &name(&format!("block{index}")), (channels, to), None, attention, options);
            layers.push(Layer::Block(Box::new(block)));
            channels = to;
            skips.push(channels);
        }
    }
    (layers, skips)
}

/// The decoder's layers, and the channels of the last one.
fn decoder(
    b: &mut LayoutBuilder,
    config: &DhariwalUNetConfig,
    resolution: i64,
    options: &BlockOptions,
    mut skips: Vec<i64>,
) -> (Vec<Layer>, i64) {
    let mut layers = Vec::new();
    let block = |b: &mut LayoutBuilder, name: &str, channels, resample, attention| {
        Layer::Block(Box::new(UNetBlock::new(b, name, channels, resample, attention, options)))
    };
    let deepest = config.channel_mult.len().saturating_sub(1);
    let mut channels = skips.last().copied().unwrap_or(config.model_channels);
    for (level, mult) in config.channel_mult.iter().enumerate().rev() {
        let res = resolution >> level;
        let name = |part: &str| format!("model.dec.{res}x{res}_{part}");
        let (up, same) = (name("up"), (channels, channels));
        if level == deepest {
            layers.push(block(b, &name("in0"), same, None, true));
            layers.push(block(b, &name("in1"), same, None, false));
        } else {
            layers.push(match config.resample {
                Resolution::Blocks => block(b, &up, same, Some(Resample::Up), false),
                Resolution::Convolutions => {
                    Layer::Conv(Conv2d::new(b, &up, same, 3, Resampling::Nearest, options.inits.layer))
                }
            });
        }
        let attention = config.attn_resolutions.contains(&res);
        for index in 0..=config.num_blocks {
            let from = channels + skips.pop().unwrap_or_default();
            channels = config.model_channels * mult;
            layers.push(block(b, &name(&format!("block{index}")), (from, channels), None, attention));
        }
    }
    (layers, channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Device, Stream, latents};

    const IMAGENET: ImageShape = ImageShape { channels: 3, resolution: 64, label_dim: 1000 };

    #[test]
    fn presets_fit_imagenet_and_have_the_published_sizes() {
        for name in DhariwalUNetConfig::PRESETS {
            assert_eq!(DhariwalUNetConfig::preset(name).map(|c| c.validate(IMAGENET)), Some(vec![]), "{name}");
        }
        assert_eq!(DhariwalUNetConfig::preset("adm"), None);
        let (_, layout) = DhariwalUNet::new(&DhariwalUNetConfig::adm_imagenet64(), IMAGENET, 3);
        assert_eq!(layout.numel(), 295_899_267);
    }

    #[test]
    fn every_variant_keeps_the_image_shape_and_uses_every_parameter() {
        for (resample, adaptive_scale, heads) in
            [(Resolution::Blocks, true, Heads::Channels(8)), (Resolution::Convolutions, false, Heads::Count(4))]
        {
            let config = DhariwalUNetConfig {
                model_channels: 16,
                channel_mult: vec![1, 2, 2],
                num_blocks: 1,
                attn_resolutions: vec![8],
                resample,
                adaptive_scale,
                heads,
                augment_dim: 2,
                ..DhariwalUNetConfig::default()
            };
            let image = ImageShape { channels: 3, resolution: 16, label_dim: 5 };
            assert_eq!(config.validate(image), vec![]);
            let (net, layout) = DhariwalUNet::new(&config, image, 6);
            // The last layers begin at zero, and would hide those before them.
            let theta = (layout.init(0, Device::Cpu).unwrap().theta + 0.02).set_requires_grad(true);
            let buffers = layout.init(0, Device::Cpu).unwrap().buffers;
            let params = layout.views(&theta, &buffers).unwrap();
            let x = latents(0, Stream::Noise, 0, 2, image.chw(), Device::Cpu).unwrap();
            let float = (Kind::Float, Device::Cpu);
            let labels = Tensor::eye(5, float).narrow(0, 0, 2);
            let sigma = Tensor::from_slice(&[0.3f32, -1.0]);
            let (labels, augment_labels) = (Some(&labels), Some(&Tensor::ones([2, 2], float)));
            let inputs = Inputs { x: &x, c_noise: &sigma, labels, augment_labels, train: false };
            let out = net.forward(&params, &inputs);
            assert_eq!(out.size(), [2, 6, 16, 16]);
            let grad = Tensor::run_backward(&[out.square().sum(Kind::Float)], &[&theta], false, false).remove(0);
            let sizes: Vec<i64> = layout.params().iter().map(|p| p.numel()).collect();
            for (spec, piece) in layout.params().iter().zip(grad.split_with_sizes(sizes, 0)) {
                assert!(piece.abs().max().double_value(&[]) > 0.0, "{} has no gradient", spec.name);
            }
        }
    }

    #[test]
    fn heads_must_divide_the_channels_that_attend() {
        let config = DhariwalUNetConfig { heads: Heads::Channels(256), ..DhariwalUNetConfig::default() };
        let found = config.validate(IMAGENET);
        assert_eq!(found[0].key, "heads");
        assert!(found[0].message.contains("384 channels of level 1"), "{found:?}");
    }
}
