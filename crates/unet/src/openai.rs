//! OpenAI's `UNetModel` as an ADM network: what its tensors are called there, and how their values lie. For the weights of
//! consistency_models: guided-diffusion and improved-diffusion have the same names, but by default another order of rows in
//! their attention layers.

use crate::adm::DhariwalUNetConfig;
use crate::config::{Heads, ImageShape, Resolution};
use lcsc_torch::{Result, Tensor};

/// How the values of a tensor of theirs become ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// As they are, in the same order.
    Same,
    /// A table of embeddings [classes,E] is a weight [E,classes].
    Transposed,
    /// Rows of q, k and v in the order (three, heads, head channel) instead of (heads, head channel, three).
    ThreeHeadsDim {
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
    /// The shape in their file of a tensor of ours of this shape. (Their files of one-dimensional attention layers lack
    /// its last 1.)
    pub fn their_shape(&self, ours: &[i64]) -> Vec<i64> {
        match self.arrangement {
            Arrangement::Same | Arrangement::ThreeHeadsDim { .. } => ours.to_vec(),
            Arrangement::Transposed => ours.iter().rev().copied().collect(),
        }
    }

    /// Their values, of `their_shape`, as ours.
    ///
    /// # Errors
    /// The values are of another shape.
    pub fn to_ours(&self, theirs: &Tensor) -> Result<Tensor> {
        match self.arrangement {
            Arrangement::Same => Ok(theirs.shallow_clone()),
            Arrangement::Transposed => Ok(theirs.f_tr()?.f_contiguous()?),
            Arrangement::ThreeHeadsDim { heads } => {
                let shape = theirs.size();
                let split = theirs.f_reshape([3, heads, shape[0] / (3 * heads), -1])?;
                Ok(split.f_permute([1, 2, 0, 3])?.f_reshape(&shape)?)
            }
        }
    }
}

impl Counterpart {
    /// Our values as theirs: undoes [`Self::to_ours`].
    ///
    /// # Errors
    /// The values are of another shape.
    pub fn to_theirs(&self, ours: &Tensor) -> Result<Tensor> {
        match self.arrangement {
            Arrangement::Same => Ok(ours.shallow_clone()),
            Arrangement::Transposed => Ok(ours.f_tr()?.f_contiguous()?),
            Arrangement::ThreeHeadsDim { heads } => {
                let shape = ours.size();
                let split = ours.f_reshape([heads, shape[0] / (3 * heads), 3, -1])?;
                Ok(split.f_permute([2, 0, 1, 3])?.f_reshape(&shape)?)
            }
        }
    }
}

/// All tensors of an ADM network without augmentation labels, with their counterparts in `UNetModel`.
pub fn openai_counterparts(config: &DhariwalUNetConfig, image: ImageShape) -> Vec<Counterpart> {
    let mut found = Found(Vec::new());
    found.layer("model.map_layer0", "time_embed.0");
    found.layer("model.map_layer1", "time_embed.2");
    if image.label_dim > 0 {
        found.tensor("model.map_label.weight", "label_emb.weight", Arrangement::Transposed);
    }
    found.encoder(config, image);
    found.decoder(config, image);
    found.layer("model.out_norm", "out.0");
    found.layer("model.out_conv", "out.2");
    found.0
}

struct Found(Vec<Counterpart>);

impl Found {
    fn tensor(&mut self, ours: &str, theirs: &str, arrangement: Arrangement) {
        self.0.push(Counterpart { ours: ours.into(), theirs: theirs.into(), arrangement });
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
            self.tensor(&own, &their, Arrangement::ThreeHeadsDim { heads });
        }
        self.layer(&format!("{ours}.proj"), &format!("{theirs}.proj_out"));
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
    use std::collections::BTreeSet;

    #[test]
    fn every_tensor_has_one_counterpart() {
        let image = ImageShape { channels: 3, resolution: 64, label_dim: 10 };
        for config in [DhariwalUNetConfig::adm_imagenet64(), DhariwalUNetConfig::iddpm_imagenet64()] {
            let (_, layout) = DhariwalUNet::new(&config, image, 3);
            let table = openai_counterparts(&config, image);
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
        let table = openai_counterparts(&DhariwalUNetConfig::adm_imagenet64(), image);
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
        let counterpart =
            Counterpart { ours: "a".into(), theirs: "b".into(), arrangement: Arrangement::ThreeHeadsDim { heads: 2 } };
        // Row 100·three + 10·head + channel.
        let theirs: Vec<f32> =
            (0..3).flat_map(|t| (0..2).flat_map(move |h| (0..2).map(move |d| (100 * t + 10 * h + d) as f32))).collect();
        let ours = counterpart.to_ours(&Tensor::from_slice(&theirs)).unwrap();
        let expected = [0.0, 100.0, 200.0, 1.0, 101.0, 201.0, 10.0, 110.0, 210.0, 11.0, 111.0, 211.0];
        assert_eq!(Vec::<f32>::try_from(ours).unwrap(), expected);
    }
}
