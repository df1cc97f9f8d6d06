//! `SongUNet`: the DDPM++ and NCSN++ networks of Song et al. 2021 as configured by EDM (Karras et al. 2022, table 7).

use crate::blocks::{
    BlockOptions, Conv2d, GroupNorm, Inits, LayerInit, Linear, NoiseEmbedding, NormOptions, Resampling, UNetBlock,
};
use crate::config::{Decoder, DecoderAttention, Embedding, Encoder, Heads, ImageShape, Resolution, SongUNetConfig};
use crate::network::Inputs;
use crate::resample::Resample;
use lcsc_torch::{Init, LayoutBuilder, ParamLayout, Params, Tensor};

const INIT: LayerInit = LayerInit::Xavier(1.0);
const INIT_LAST: LayerInit = LayerInit::Xavier(1e-5);

enum Encode {
    Conv(Conv2d),
    Block(Box<UNetBlock>),
    AuxDown(Conv2d),
    AuxSkip(Conv2d),
    AuxResidual(Conv2d),
}

enum Decode {
    Block(Box<UNetBlock>),
    Up(Conv2d),
    AuxUp(Conv2d),
    AuxOutput(GroupNorm, Conv2d),
}

/// The network F(x; c_noise): shapes and indices only.
pub struct SongUNet {
    map_noise: NoiseEmbedding,
    map_label: Option<Linear>,
    map_augment: Option<Linear>,
    map_layer0: Linear,
    map_layer1: Linear,
    enc: Vec<Encode>,
    dec: Vec<Decode>,
    label_dropout: f64,
}

impl SongUNet {
    /// The network with so many output channels, and its layout; names start with `model.`, as in EDM's checkpoints.
    ///
    /// The configuration must be free of problems ([`SongUNetConfig::validate`]).
    pub fn new(config: &SongUNetConfig, image: ImageShape, out_channels: i64) -> (Self, ParamLayout) {
        let mut b = LayoutBuilder::default();
        let b = &mut b;
        let noise_channels = config.model_channels * config.channel_mult_noise;
        let emb_channels = config.model_channels * config.channel_mult_emb;
        let map_noise = match config.embedding_type {
            Embedding::Positional => NoiseEmbedding::Positional { channels: noise_channels },
            Embedding::Fourier => NoiseEmbedding::fourier(b, "model.map_noise", noise_channels),
        };
        let map_label =
            (image.label_dim > 0).then(|| Linear::new(b, "model.map_label", (image.label_dim, noise_channels), INIT));
        let map_augment = (config.augment_dim > 0).then(|| {
            let (from, to) = (config.augment_dim, noise_channels);
            let init = Init::XavierUniform { fan_in: from, fan_out: to, gain: 1.0 };
            Linear::without_bias(b, "model.map_augment", (from, to), init)
        });
        let map_layer0 = Linear::new(b, "model.map_layer0", (noise_channels, emb_channels), INIT);
        let map_layer1 = Linear::new(b, "model.map_layer1", (emb_channels, emb_channels), INIT);
        let options = block_options(config);
        let (enc, skips) = encoder(b, config, image, &options);
        let dec = decoder(b, config, (image.resolution, out_channels), &options, skips);
        let label_dropout = config.label_dropout;
        let net = Self { map_noise, map_label, map_augment, map_layer0, map_layer1, enc, dec, label_dropout };
        (net, std::mem::take(b).finish())
    }

    /// F(x; c_noise) f32 `[B,out_channels,H,W]`, computed in the type of `p`.
    pub fn forward(&self, p: &Params, inputs: &Inputs) -> Tensor {
        let (emb, train) = (self.embed(p, inputs), inputs.train);
        let mut x = p.plan().arranged(&inputs.x.to_kind(p.kind()));
        let mut skips: Vec<Tensor> = Vec::with_capacity(self.enc.len());
        let mut aux = x.shallow_clone();
        for layer in &self.enc {
            match layer {
                Encode::Conv(conv) => x = conv.forward(p, &x),
                Encode::Block(block) => x = block.forward(p, &x, &emb, train),
                Encode::AuxDown(down) => {
                    aux = down.forward(p, &aux);
                    continue;
                }
                // The last skip is replaced by the sum with the image pyramid.
                Encode::AuxSkip(skip) => {
                    x = x + skip.forward(p, &aux);
                    skips.pop();
                }
                Encode::AuxResidual(residual) => {
                    x = (x + residual.forward(p, &aux)) * 0.5f64.sqrt();
                    aux = x.shallow_clone();
                    skips.pop();
                }
            }
            skips.push(x.shallow_clone());
        }
        let mut out: Option<Tensor> = None;
        for layer in &self.dec {
            match layer {
                Decode::Block(block) => {
                    if let Some(skip) = (x.size()[1] != block.in_channels).then(|| skips.pop()).flatten() {
                        x = Tensor::cat(&[x, skip], 1);
                    }
                    x = block.forward(p, &x, &emb, train);
                }
                Decode::Up(up) => x = up.forward(p, &x),
                Decode::AuxUp(up) => out = out.map(|o| up.forward(p, &o)),
                Decode::AuxOutput(norm, conv) => {
                    let level = conv.forward(p, &norm.silu(p, &x));
                    out = Some(out.map_or_else(|| level.shallow_clone(), |o| o + &level));
                }
            }
        }
        out.unwrap_or(x).to_kind(lcsc_torch::Kind::Float)
    }

    /// The embedding vector [B,E] of noise level, class and augmentation.
    fn embed(&self, p: &Params, inputs: &Inputs) -> Tensor {
        let kind = p.kind();
        let mut emb = self.map_noise.forward(p, inputs.c_noise).to_kind(kind);
        if let Some(map) = &self.map_label {
            let one_hot = inputs.seen_labels(map.in_features, self.label_dropout);
            emb = emb + map.forward(p, &(one_hot.to_kind(kind) * (map.in_features as f64).sqrt()));
        }
        if let (Some(map), Some(labels)) = (&self.map_augment, inputs.augment_labels) {
            emb = emb + map.forward(p, &labels.to_kind(kind));
        }
        let emb = self.map_layer0.forward(p, &emb).silu();
        self.map_layer1.forward(p, &emb).silu()
    }
}

fn block_options(config: &SongUNetConfig) -> BlockOptions<'_> {
    BlockOptions {
        emb_channels: config.model_channels * config.channel_mult_emb,
        dropout: config.dropout,
        resample_filter: &config.resample_filter,
        resample_proj: true,
        adaptive_scale: false,
        skip_scale: config.skip_scale,
        heads: Heads::Count(1),
        norm: NormOptions::SONG,
        inits: Inits { layer: INIT, attention: LayerInit::Xavier(0.2f64.sqrt()), last: INIT_LAST },
    }
}

/// The encoder's layers, and the channels of each skip connection.
fn encoder(
    b: &mut LayoutBuilder,
    config: &SongUNetConfig,
    image: ImageShape,
    options: &BlockOptions,
) -> (Vec<Encode>, Vec<i64>) {
    let taps = &config.resample_filter;
    let mut layers = Vec::new();
    let mut skips = Vec::new();
    let mut channels = config.model_channels;
    let mut aux_channels = image.channels;
    for (level, mult) in config.channel_mult.iter().enumerate() {
        let res = image.resolution >> level;
        let name = |part: &str| format!("model.enc.{res}x{res}_{part}");
        if level == 0 {
            let conv = Conv2d::plain(b, &name("conv"), (image.channels, channels), 3, INIT);
            layers.push(Encode::Conv(conv));
        } else {
            let (down, same) = (name("down"), (channels, channels));
            layers.push(match config.resample {
                Resolution::Blocks => {
                    Encode::Block(Box::new(UNetBlock::new(b, &down, same, Some(Resample::Down), false, options)))
                }
                Resolution::Convolutions => {
                    Encode::Conv(Conv2d::new(b, &down, same, 3, Resampling::Strided { same: true }, INIT))
                }
            });
            match config.encoder_type {
                Encoder::Standard => {}
                Encoder::Skip => {
                    let same = (aux_channels, aux_channels);
                    let down = Resampling::Before(Resample::Down, taps);
                    layers.push(Encode::AuxDown(Conv2d::new(b, &name("aux_down"), same, 0, down, INIT)));
                    let skip = Conv2d::plain(b, &name("aux_skip"), (aux_channels, channels), 1, INIT);
                    layers.push(Encode::AuxSkip(skip));
                }
                Encoder::Residual => {
                    let down = Resampling::FusedDown(taps);
                    let conv = Conv2d::new(b, &name("aux_residual"), (aux_channels, channels), 3, down, INIT);
                    layers.push(Encode::AuxResidual(conv));
                    aux_channels = channels;
                }
            }
        }
        skips.push(channels);
        let attention = config.attn_resolutions.contains(&res);
        for index in 0..config.num_blocks {
            let to = config.model_channels * mult;
            let block = UNetBlock::new(b, &name(&format!("block{index}")), (channels, to), None, attention, options);
            channels = block.out_channels;
            skips.push(channels);
            layers.push(Encode::Block(Box::new(block)));
        }
    }
    (layers, skips)
}

fn decoder(
    b: &mut LayoutBuilder,
    config: &SongUNetConfig,
    (resolution, out_channels): (i64, i64),
    options: &BlockOptions,
    mut skips: Vec<i64>,
) -> Vec<Decode> {
    let taps = &config.resample_filter;
    let mut layers = Vec::new();
    let block = |b: &mut LayoutBuilder, name: &str, channels, resample, attention| {
        Decode::Block(Box::new(UNetBlock::new(b, name, channels, resample, attention, options)))
    };
    let deepest = config.channel_mult.len() - 1;
    let mut channels = config.model_channels * config.channel_mult[deepest];
    for (level, mult) in config.channel_mult.iter().enumerate().rev() {
        let res = resolution >> level;
        let name = |part: &str| format!("model.dec.{res}x{res}_{part}");
        if level == deepest {
            layers.push(block(b, &name("in0"), (channels, channels), None, true));
            layers.push(block(b, &name("in1"), (channels, channels), None, false));
        } else {
            let (up, same) = (name("up"), (channels, channels));
            layers.push(match config.resample {
                Resolution::Blocks => block(b, &up, same, Some(Resample::Up), false),
                Resolution::Convolutions => Decode::Up(Conv2d::new(b, &up, same, 3, Resampling::Nearest, INIT)),
            });
        }
        for index in 0..=config.num_blocks {
            let from = channels + skips.pop().unwrap_or_default();
            channels = config.model_channels * mult;
            let here = config.decoder_attention == DecoderAttention::Every || index == config.num_blocks;
            let attention = here && config.attn_resolutions.contains(&res);
            layers.push(block(b, &name(&format!("block{index}")), (from, channels), None, attention));
        }
        if config.decoder_type == Decoder::Skip || level == 0 {
            if config.decoder_type == Decoder::Skip && level < deepest {
                let same = (out_channels, out_channels);
                let up = Resampling::Before(Resample::Up, taps);
                layers.push(Decode::AuxUp(Conv2d::new(b, &name("aux_up"), same, 0, up, INIT)));
            }
            let norm = GroupNorm::new(b, &name("aux_norm"), channels, options.norm);
            let conv = Conv2d::plain(b, &name("aux_conv"), (channels, out_channels), 3, INIT_LAST);
            layers.push(Decode::AuxOutput(norm, conv));
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Device, Kind, Stream, latents, seed_torch};

    const CIFAR: ImageShape = ImageShape { channels: 3, resolution: 32, label_dim: 0 };

    /// Images without labels.
    fn alone<'a>(x: &'a Tensor, c_noise: &'a Tensor, train: bool) -> Inputs<'a> {
        Inputs { x, c_noise, labels: None, augment_labels: None, train }
    }

    #[test]
    fn presets_have_the_published_sizes() {
        // 55.7 M: the unconditional DDPM++ with EDM's nine augmentation labels.
        let config = SongUNetConfig { augment_dim: 9, ..SongUNetConfig::ddpmpp_cifar10() };
        assert_eq!(SongUNet::new(&config, CIFAR, 3).1.numel(), 55_733_891);
        assert_eq!(SongUNet::new(&SongUNetConfig::ncsnpp_cifar10(), CIFAR, 3).1.numel(), 56_395_523);
        // Ho et al. 2020, appendix B: 35.7 M.
        assert_eq!(SongUNet::new(&SongUNetConfig::ddpm_cifar10(), CIFAR, 3).1.numel(), 35_746_307);
        assert_eq!(
            SongUNet::new(&SongUNetConfig::tiny(), ImageShape { channels: 1, resolution: 8, label_dim: 0 }, 1)
                .1
                .numel(),
            180_193
        );
    }

    #[test]
    fn every_architecture_keeps_the_image_shape_and_uses_every_parameter() {
        for (encoder_type, decoder_type) in
            [(Encoder::Standard, Decoder::Standard), (Encoder::Skip, Decoder::Skip), (Encoder::Residual, Decoder::Skip)]
        {
            let config = SongUNetConfig {
                encoder_type,
                decoder_type,
                model_channels: 8,
                channel_mult: vec![1, 2, 2],
                attn_resolutions: vec![4],
                resample_filter: vec![1.0, 3.0, 3.0, 1.0],
                embedding_type: Embedding::Fourier,
                augment_dim: 2,
                ..SongUNetConfig::tiny()
            };
            let (net, layout) = SongUNet::new(&config, ImageShape { channels: 3, resolution: 16, label_dim: 5 }, 3);
            let weights = layout.init(0, Device::Cpu).unwrap();
            let theta = weights.theta.set_requires_grad(true);
            let params = layout.views(&theta, &weights.buffers).unwrap();
            let cpu = (Kind::Float, Device::Cpu);
            let x = latents(0, Stream::Noise, 0, 2, [3, 16, 16], Device::Cpu).unwrap();
            let labels = Tensor::eye(5, cpu).narrow(0, 0, 2);
            let c_noise = Tensor::from_slice(&[0.3f32, -1.0]);
            let (labels, augment_labels) = (Some(&labels), Some(&Tensor::ones([2, 2], cpu)));
            let out = net.forward(&params, &Inputs { x: &x, c_noise: &c_noise, labels, augment_labels, train: false });
            assert_eq!(out.size(), x.size());
            let grad = Tensor::run_backward(&[out.square().sum(Kind::Float)], &[&theta], false, false).remove(0);
            for (spec, piece) in layout
                .params()
                .iter()
                .zip(grad.split_with_sizes(layout.params().iter().map(|p| p.numel()).collect::<Vec<_>>(), 0))
            {
                assert!(piece.abs().max().double_value(&[]) > 0.0, "{} has no gradient", spec.name);
            }
        }
    }

    #[test]
    fn bf16_computes_the_same_up_to_its_precision() {
        let config = SongUNetConfig {
            embedding_type: Embedding::Fourier,
            resample_filter: vec![1.0, 3.0, 3.0, 1.0],
            attn_resolutions: vec![8],
            ..SongUNetConfig::tiny()
        };
        let (net, layout) = SongUNet::new(&config, ImageShape { channels: 3, resolution: 8, label_dim: 0 }, 3);
        let weights = layout.init(0, Device::Cpu).unwrap();
        // Uniform weights instead of the initial ones: those of the last layer are nearly zero.
        let theta = weights.theta.shallow_clone() + 0.02;
        let x = latents(0, Stream::Noise, 0, 2, [3, 8, 8], Device::Cpu).unwrap();
        let run = |kind| {
            let params = layout.views(&theta.to_kind(kind), &weights.buffers).unwrap();
            net.forward(&params, &alone(&x, &Tensor::from_slice(&[0.3f32, -1.0]), false))
        };
        let (exact, rough) = (run(Kind::Float), run(Kind::BFloat16));
        assert_eq!(rough.kind(), Kind::Float);
        let error = (&exact - &rough).norm().double_value(&[]) / exact.norm().double_value(&[]);
        assert!(error > 0.0 && error < 0.05, "{error}");
    }

    #[test]
    fn dropout_masks_follow_the_seed_and_only_in_training() {
        let config = SongUNetConfig { dropout: 0.5, ..SongUNetConfig::tiny() };
        let (net, layout) = SongUNet::new(&config, ImageShape { channels: 1, resolution: 8, label_dim: 0 }, 1);
        let weights = layout.init(0, Device::Cpu).unwrap();
        // Nearly-zero output layers would hide the masks.
        let params = layout.views(&Tensor::full_like(&weights.theta, 0.1), &weights.buffers).unwrap();
        let x = latents(0, Stream::Noise, 0, 2, [1, 8, 8], Device::Cpu).unwrap();
        let run = |seed, train| {
            seed_torch(seed, Stream::Dropout, 0);
            net.forward(&params, &alone(&x, &Tensor::zeros([2], (Kind::Float, Device::Cpu)), train))
        };
        assert!(run(1, true).equal(&run(1, true)));
        assert!(!run(1, true).equal(&run(2, true)));
        assert!(run(1, false).equal(&run(2, false)));
    }

    #[test]
    fn names_are_those_of_edm() {
        let config = SongUNetConfig { resample_filter: vec![1.0, 3.0, 3.0, 1.0], ..SongUNetConfig::ncsnpp_cifar10() };
        let (_, layout) = SongUNet::new(&config, CIFAR, 3);
        let names: Vec<&str> = layout.params().iter().chain(layout.buffers()).map(|s| s.name.as_str()).collect();
        for name in [
            "model.map_noise.freqs",
            "model.enc.32x32_conv.weight",
            "model.enc.16x16_down.conv0.resample_filter",
            "model.enc.16x16_down.skip.resample_filter",
            "model.enc.16x16_aux_residual.weight",
            "model.enc.16x16_block0.qkv.bias",
            "model.dec.8x8_in0.norm2.weight",
            "model.dec.16x16_up.conv0.resample_filter",
            "model.dec.32x32_block4.affine.weight",
            "model.dec.32x32_aux_norm.bias",
        ] {
            assert!(names.contains(&name), "{name}");
        }
    }
}
