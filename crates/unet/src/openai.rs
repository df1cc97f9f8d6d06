//! OpenAI's `UNetModel` as an ADM network: what its tensors are called there, and how their values lie. The names are the same
//! in consistency_models, guided-diffusion and improved-diffusion; the order of rows in attention layers is not, and a file
//! tells it in part only.

use crate::adm::DhariwalUNetConfig;
use crate::config::{Heads, ImageShape, Resolution};
use lcsc_torch::{Result, Tensor};

/// The order of the rows of q, k and v in an attention layer of theirs, by what their code calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionOrder {
    /// (three, heads, head channel), in two-dimensional convolutions: consistency_models.
    #[default]
    Flash,
    /// (three, heads, head channel), in one-dimensional convolutions: guided-diffusion with `use_new_attention_order`.
    New,
    /// (heads, three, head channel), in one-dimensional convolutions: improved-diffusion, and guided-diffusion by default.
    Legacy,
}

impl AttentionOrder {
    /// What becomes of the weight of a 1×1 convolution in an attention layer.
    fn convolution(self) -> Arrangement {
        match self {
            Self::Flash => Arrangement::Same,
            Self::New | Self::Legacy => Arrangement::OneDimensional,
        }
    }
}

/// How the values of a tensor of theirs become ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// As they are, in the same order.
    Same,
    /// A table of embeddings `[classes,E]` is a weight `[E,classes]`.
    Transposed,
    /// The weight of a one-dimensional convolution `[O,I,1]` is one of `[O,I,1,1]`.
    OneDimensional,
    /// Rows of q, k and v in another order than (heads, head channel, three).
    Attention {
        /// Theirs.
        order: AttentionOrder,
        /// Heads of the attention layer.
        heads: i64,
    },
}

/// A tensor of ours, and theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterpart {
    /// Its name in EDM's naming.
    pub ours: String,
    /// Its name in `UNetModel`'s state dict.
    pub theirs: String,
    /// What becomes of the values.
    pub arrangement: Arrangement,
}

impl Counterpart {
    /// The shape in their file of a tensor of ours of this shape.
    pub fn their_shape(&self, ours: &[i64]) -> Vec<i64> {
        match (self.arrangement, ours) {
            (Arrangement::Transposed, _) => ours.iter().rev().copied().collect(),
            (Arrangement::OneDimensional, [shorter @ .., 1]) => shorter.to_vec(),
            (Arrangement::Attention { order, .. }, [shorter @ .., 1])
                if order.convolution() == Arrangement::OneDimensional =>
            {
                shorter.to_vec()
            }
            (Arrangement::Same | Arrangement::OneDimensional | Arrangement::Attention { .. }, _) => ours.to_vec(),
        }
    }

    /// Their values, of `their_shape`, as ours, of the shape `ours`.
    ///
    /// # Errors
    /// The values are of another shape.
    pub fn to_ours(&self, theirs: &Tensor, ours: &[i64]) -> Result<Tensor> {
        let arranged = match self.arrangement {
            Arrangement::Same | Arrangement::OneDimensional => theirs.shallow_clone(),
            Arrangement::Transposed => theirs.f_tr()?,
            Arrangement::Attention { order, heads } => {
                let channels = ours[0] / (3 * heads);
                match order {
                    AttentionOrder::Flash | AttentionOrder::New => {
                        theirs.f_reshape([3, heads, channels, -1])?.f_permute([1, 2, 0, 3])?
                    }
                    AttentionOrder::Legacy => theirs.f_reshape([heads, 3, channels, -1])?.f_permute([0, 2, 1, 3])?,
                }
            }
        };
        Ok(arranged.f_contiguous()?.f_reshape(ours)?)
    }

    /// Our values as theirs: undoes [`Self::to_ours`].
    ///
    /// # Errors
    /// The values are of another shape.
    pub fn to_theirs(&self, ours: &Tensor) -> Result<Tensor> {
        let shape = ours.size();
        let arranged = match self.arrangement {
            Arrangement::Same | Arrangement::OneDimensional => ours.shallow_clone(),
            Arrangement::Transposed => ours.f_tr()?,
            Arrangement::Attention { order, heads } => {
                let split = ours.f_reshape([heads, shape[0] / (3 * heads), 3, -1])?;
                split.f_permute(match order {
                    AttentionOrder::Flash | AttentionOrder::New => [2, 0, 1, 3],
                    AttentionOrder::Legacy => [0, 2, 1, 3],
                })?
            }
        };
        Ok(arranged.f_contiguous()?.f_reshape(self.their_shape(&shape))?)
    }
}

/// All tensors of an ADM network without augmentation labels, with their counterparts in `UNetModel`.
pub fn openai_counterparts(config: &DhariwalUNetConfig, image: ImageShape, order: AttentionOrder) -> Vec<Counterpart> {
    let mut found = Found { table: Vec::new(), order };
    found.layer("model.map_layer0", "time_embed.0");
    found.layer("model.map_layer1", "time_embed.2");
    if image.label_dim > 0 {
        found.tensor("model.map_label.weight", "label_emb.weight", Arrangement::Transposed);
    }
    found.encoder(config, image);
    found.decoder(config, image);
    found.layer("model.out_norm", "out.0");
    found.layer("model.out_conv", "out.2");
    found.table
}

struct Found {
    table: Vec<Counterpart>,
    order: AttentionOrder,
}

impl Found {
    fn tensor(&mut self, ours: &str, theirs: &str, arrangement: Arrangement) {
        self.table.push(Counterpart { ours: ours.into(), theirs: theirs.into(), arrangement });
    }

    /// Weight and bias.
    fn layer(&mut self, ours: &str, theirs: &str) {
        for part in ["weight", "bias"] {
            self.tensor(&format!("{ours}.{part}"), &format!("{theirs}.{part}"), Arrangement::Same);
        }
    }

    /// A residual block; `skip` where its channels change.
    fn block(&mut self, ours: &str, theirs: &str, skip: bool) {
        let parts = [
            ("norm0", "in_layers.0"),
            ("conv0", "in_layers.2"),
            ("affine", "emb_layers.1"),
            ("norm1", "out_layers.0"),
            ("conv1", "out_layers.3"),
            ("skip", "skip_connection"),
        ];
        for (own, their) in &parts[..if skip { 6 } else { 5 }] {
            self.layer(&format!("{ours}.{own}"), &format!("{theirs}.{their}"));
        }
    }

    /// The attention layer of one of our blocks.
    fn attention(&mut self, ours: &str, theirs: &str, heads: i64) {
        self.layer(&format!("{ours}.norm2"), &format!("{theirs}.norm"));
        for part in ["weight", "bias"] {
            let (own, their) = (format!("{ours}.qkv.{part}"), format!("{theirs}.qkv.{part}"));
            self.tensor(&own, &their, Arrangement::Attention { order: self.order, heads });
        }
        let (own, their) = (format!("{ours}.proj"), format!("{theirs}.proj_out"));
        self.tensor(&format!("{own}.weight"), &format!("{their}.weight"), self.order.convolution());
        self.tensor(&format!("{own}.bias"), &format!("{their}.bias"), Arrangement::Same);
    }

    fn encoder(&mut self, config: &DhariwalUNetConfig, image: ImageShape) {
        let mut index = 0;
        let mut from = config.model_channels * config.channel_mult.first().copied().unwrap_or(1);
        for (level, mult) in config.channel_mult.iter().enumerate() {
            let (res, to) = (image.resolution >> level, config.model_channels * mult);
            let ours = |part: &str| format!("model.enc.{res}x{res}_{part}");
            match config.resample {
                _ if level == 0 => self.layer(&ours("conv"), "input_blocks.0.0"),
                Resolution::Blocks => self.block(&ours("down"), &format!("input_blocks.{index}.0"), false),
                Resolution::Convolutions => self.layer(&ours("down"), &format!("input_blocks.{index}.0.op")),
            }
            for block in 0..config.num_blocks {
                index += 1;
                let own = ours(&format!("block{block}"));
                self.block(&own, &format!("input_blocks.{index}.0"), from != to);
                if config.attn_resolutions.contains(&res) {
                    self.attention(&own, &format!("input_blocks.{index}.1"), config.heads.of(to));
                }
                from = to;
            }
            index += 1;
        }
    }

    fn decoder(&mut self, config: &DhariwalUNetConfig, image: ImageShape) {
        let mut index = 0;
        let deepest = config.channel_mult.len().saturating_sub(1);
        for (level, mult) in config.channel_mult.iter().enumerate().rev() {
            let (res, channels) = (image.resolution >> level, config.model_channels * mult);
            let ours = |part: &str| format!("model.dec.{res}x{res}_{part}");
            if level == deepest {
                self.block(&ours("in0"), "middle_block.0", false);
                self.attention(&ours("in0"), "middle_block.1", config.heads.of(channels));
                self.block(&ours("in1"), "middle_block.2", false);
            } else {
                // Theirs belongs to the last block of the level below.
                let below = config.attn_resolutions.contains(&(res / 2));
                let theirs = format!("output_blocks.{}.{}", index - 1, if below { 2 } else { 1 });
                match config.resample {
                    Resolution::Blocks => self.block(&ours("up"), &theirs, false),
                    Resolution::Convolutions => self.layer(&ours("up"), &format!("{theirs}.conv")),
                }
            }
            for block in 0..=config.num_blocks {
                let own = ours(&format!("block{block}"));
                // A skip connection always widens the input.
                self.block(&own, &format!("output_blocks.{index}.0"), true);
                if config.attn_resolutions.contains(&res) {
                    self.attention(&own, &format!("output_blocks.{index}.1"), config.heads.of(channels));
                }
                index += 1;
            }
        }
    }
}

/// The heads that OpenAI's options mean.
pub fn openai_heads(num_heads: i64, num_head_channels: i64) -> Heads {
    if num_head_channels > 0 { Heads::Channels(num_head_channels) } else { Heads::Count(num_heads) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DhariwalUNet;
    use lcsc_torch::{Device, Kind};
    use std::collections::BTreeSet;

    #[test]
    fn every_tensor_has_one_counterpart() {
        let image = ImageShape { channels: 3, resolution: 64, label_dim: 10 };
        for config in [DhariwalUNetConfig::adm_imagenet64(), DhariwalUNetConfig::iddpm_imagenet64()] {
            let (_, layout) = DhariwalUNet::new(&config, image, 3);
            let table = openai_counterparts(&config, image, AttentionOrder::default());
            let ours: BTreeSet<&str> = table.iter().map(|c| c.ours.as_str()).collect();
            let expected: BTreeSet<&str> = layout.params().iter().map(|p| p.name.as_str()).collect();
            assert_eq!(ours, expected);
            let theirs: BTreeSet<&str> = table.iter().map(|c| c.theirs.as_str()).collect();
            assert_eq!(theirs.len(), table.len());
        }
    }

    #[test]
    fn names_are_those_of_the_released_models() {
        let image = ImageShape { channels: 3, resolution: 64, label_dim: 1000 };
        let table = openai_counterparts(&DhariwalUNetConfig::adm_imagenet64(), image, AttentionOrder::default());
        let theirs = |ours: &str| table.iter().find(|c| c.ours == ours).map(|c| c.theirs.as_str());
        for (ours, expected) in [
            ("model.enc.32x32_down.conv0.weight", "input_blocks.4.0.in_layers.2.weight"),
            ("model.enc.32x32_block0.qkv.bias", "input_blocks.5.1.qkv.bias"),
            ("model.dec.8x8_in0.proj.weight", "middle_block.1.proj_out.weight"),
            ("model.dec.16x16_up.affine.bias", "output_blocks.3.2.emb_layers.1.bias"),
            ("model.dec.64x64_up.norm1.bias", "output_blocks.11.2.out_layers.0.bias"),
            ("model.dec.64x64_block3.skip.weight", "output_blocks.15.0.skip_connection.weight"),
        ] {
            assert_eq!(theirs(ours), Some(expected), "{ours}");
        }
    }

    #[test]
    fn attention_rows_are_put_in_order() {
        let heads = 2;
        // The value of a row is 100·three + 10·head + channel.
        let value = |t: i64, h: i64, d: i64| (100 * t + 10 * h + d) as f32;
        let all = |a: i64, b: i64, row: &dyn Fn(i64, i64, i64) -> f32| -> Vec<f32> {
            let indices = (0..a).flat_map(|i| (0..b).flat_map(move |j| (0..2).map(move |d| (i, j, d))));
            indices.map(|(i, j, d)| row(i, j, d)).collect()
        };
        for (order, theirs) in [
            (AttentionOrder::Flash, all(3, heads, &value)),
            (AttentionOrder::Legacy, all(heads, 3, &|h, t, d| value(t, h, d))),
        ] {
            let arrangement = Arrangement::Attention { order, heads };
            let counterpart = Counterpart { ours: "a".into(), theirs: "b".into(), arrangement };
            let ours = counterpart.to_ours(&Tensor::from_slice(&theirs), &[12]).unwrap();
            let expected = [0.0, 100.0, 200.0, 1.0, 101.0, 201.0, 10.0, 110.0, 210.0, 11.0, 111.0, 211.0];
            assert_eq!(Vec::<f32>::try_from(&ours).unwrap(), expected);
            assert_eq!(Vec::<f32>::try_from(counterpart.to_theirs(&ours).unwrap()).unwrap(), theirs);
        }
    }

    #[test]
    fn every_tensor_comes_back_bit_for_bit() {
        let image = ImageShape { channels: 3, resolution: 16, label_dim: 10 };
        let config = DhariwalUNetConfig {
            model_channels: 8,
            channel_mult: vec![1, 2],
            num_blocks: 1,
            attn_resolutions: vec![8],
            heads: Heads::Count(2),
            ..DhariwalUNetConfig::adm_imagenet64()
        };
        let (_, layout) = DhariwalUNet::new(&config, image, 3);
        for order in [AttentionOrder::Flash, AttentionOrder::New, AttentionOrder::Legacy] {
            for counterpart in openai_counterparts(&config, image, order) {
                let spec = layout.params().iter().find(|p| p.name == counterpart.ours).unwrap();
                let ours = Tensor::arange(spec.numel(), (Kind::Float, Device::Cpu)).reshape(&spec.shape);
                let theirs = counterpart.to_theirs(&ours).unwrap();
                assert_eq!(theirs.size(), counterpart.their_shape(&spec.shape));
                assert!(counterpart.to_ours(&theirs, &spec.shape).unwrap().equal(&ours), "{}", spec.name);
                if counterpart.theirs.ends_with("proj_out.weight") {
                    assert_eq!(theirs.dim(), if order == AttentionOrder::Flash { 4 } else { 3 });
                }
            }
        }
    }
}
