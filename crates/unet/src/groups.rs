//! The groups of parameters that get merging coefficients of their own: the levels of a UNet, by EDM's tensor names.

use lcsc_torch::{ParamLayout, Result, bail};
use std::cmp::Reverse;

/// A part of a UNet, in the order of the way through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// The embedding of noise level, class and augmentation, and the first convolution.
    Input,
    /// The encoder at a resolution, from high to low.
    Encoder(Reverse<i64>),
    /// The two blocks at the lowest resolution between encoder and decoder.
    Middle,
    /// The decoder at a resolution, from low to high.
    Decoder(i64),
}

impl Group {
    fn name(self) -> String {
        match self {
            Self::Input => "input+embedding".into(),
            Self::Encoder(Reverse(res)) => format!("encoder {res}x{res}"),
            Self::Middle => "middle".into(),
            Self::Decoder(res) => format!("decoder {res}x{res}"),
        }
    }
}

/// The levels of a UNet as groups of its parameters: the names of the groups, none of them empty, and for each entry of
/// [`ParamLayout::params`] the index of its group.
///
/// In the order of the way through the network: `input+embedding` (with the first convolution), `encoder RxR` from the
/// highest resolution to the lowest, `middle`, `decoder RxR` back to the highest. For EDM's `SongUNet` and
/// `DhariwalUNet` (Karras et al. 2022), whose output layers belong to the last level of the decoder.
///
/// # Errors
/// A parameter whose name is none of those networks'.
pub fn level_groups(layout: &ParamLayout) -> Result<(Vec<String>, Vec<usize>)> {
    let finest = layout.params().iter().filter_map(|spec| level(&spec.name)).map(|(_, res, _)| res).max();
    let mut of_params = Vec::with_capacity(layout.params().len());
    for spec in layout.params() {
        let Some(group) = group(&spec.name, finest) else {
            bail!(
                "{} belongs to no level of a UNet, expected model.map_*, model.enc.RxR_* or model.dec.RxR_*",
                spec.name
            );
        };
        of_params.push(group);
    }
    let mut groups = of_params.clone();
    groups.sort_unstable();
    groups.dedup();
    let group_of = of_params.iter().map(|group| groups.partition_point(|g| g < group)).collect();
    Ok((groups.into_iter().map(Group::name).collect(), group_of))
}

/// The group of a parameter of a network whose highest resolution is `finest`.
fn group(name: &str, finest: Option<i64>) -> Option<Group> {
    if name.starts_with("model.map_") {
        return Some(Group::Input);
    }
    if name.starts_with("model.out_norm.") || name.starts_with("model.out_conv.") {
        return finest.map(Group::Decoder);
    }
    match level(name)? {
        ("enc", _, "conv") => Some(Group::Input),
        ("enc", res, _) => Some(Group::Encoder(Reverse(res))),
        ("dec", _, "in0" | "in1") => Some(Group::Middle),
        ("dec", res, _) => Some(Group::Decoder(res)),
        _ => None, // the open set of names in files
    }
}

/// `model.{side}.{res}x{res}_{part}.…` → (side, res, part).
fn level(name: &str) -> Option<(&str, i64, &str)> {
    let (side, rest) = name.strip_prefix("model.")?.split_once('.')?;
    let (size, rest) = rest.split_once('_')?;
    let (height, width) = size.split_once('x')?;
    let (part, _) = rest.split_once('.')?;
    let res = height.parse().ok().filter(|_| height == width)?;
    Some((side, res, part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoder, Encoder, ImageShape, SongUNet, SongUNetConfig};
    use lcsc_torch::{Init, LayoutBuilder};

    fn layout(config: &SongUNetConfig, resolution: i64) -> ParamLayout {
        SongUNet::new(config, ImageShape { channels: 3, resolution, label_dim: 10 }, 3).1
    }

    fn named(names: &[&str]) -> ParamLayout {
        let mut b = LayoutBuilder::default();
        for name in names {
            b.param(*name, &[1], Init::Zeros);
        }
        b.finish()
    }

    /// The group of a parameter.
    fn of(layout: &ParamLayout, name: &str) -> String {
        let (names, group_of) = level_groups(layout).unwrap();
        names[group_of[layout.params().iter().position(|p| p.name == name).expect(name)]].clone()
    }

    #[test]
    fn tiny_has_six_groups_in_the_order_of_the_way_through_it() {
        let (names, _) = level_groups(&layout(&SongUNetConfig::tiny(), 8)).unwrap();
        let expected = ["input+embedding", "encoder 8x8", "encoder 4x4", "middle", "decoder 4x4", "decoder 8x8"];
        assert_eq!(names, expected);
    }

    #[test]
    fn presets_are_partitioned() {
        for (preset, count) in SongUNetConfig::PRESETS.into_iter().zip([8, 8, 10, 6]) {
            let layout = layout(&SongUNetConfig::preset(preset).unwrap(), 32);
            let (names, group_of) = level_groups(&layout).unwrap();
            assert_eq!(names.len(), count, "{preset}");
            assert_eq!(group_of.len(), layout.params().len(), "{preset}");
            let mut used = group_of;
            used.sort_unstable();
            used.dedup();
            assert_eq!(used, (0..count).collect::<Vec<_>>(), "{preset}");
        }
    }

    #[test]
    fn every_part_of_a_song_unet_is_at_its_level() {
        let skip = SongUNetConfig {
            encoder_type: Encoder::Skip,
            decoder_type: Decoder::Skip,
            augment_dim: 9,
            ..SongUNetConfig::ddpmpp_cifar10()
        };
        let layout = layout(&skip, 32);
        for (name, group) in [
            ("model.map_label.weight", "input+embedding"),
            ("model.map_augment.weight", "input+embedding"),
            ("model.map_layer1.bias", "input+embedding"),
            ("model.enc.32x32_conv.weight", "input+embedding"),
            ("model.enc.32x32_block0.conv0.weight", "encoder 32x32"),
            ("model.enc.16x16_down.skip.bias", "encoder 16x16"),
            ("model.enc.16x16_aux_skip.weight", "encoder 16x16"),
            ("model.enc.8x8_block3.affine.weight", "encoder 8x8"),
            ("model.dec.8x8_in0.qkv.weight", "middle"),
            ("model.dec.8x8_in1.conv1.bias", "middle"),
            ("model.dec.8x8_block0.conv0.weight", "decoder 8x8"),
            ("model.dec.8x8_aux_norm.weight", "decoder 8x8"),
            ("model.dec.16x16_up.conv0.weight", "decoder 16x16"),
            ("model.dec.16x16_aux_conv.bias", "decoder 16x16"),
            ("model.dec.32x32_aux_conv.weight", "decoder 32x32"),
        ] {
            assert_eq!(of(&layout, name), group, "{name}");
        }
    }

    #[test]
    fn the_output_of_a_dhariwal_unet_belongs_to_the_last_level() {
        let layout = named(&[
            "model.map_layer0.weight",
            "model.enc.64x64_conv.weight",
            "model.enc.64x64_block0.norm0.weight",
            "model.enc.8x8_down.conv0.weight",
            "model.dec.8x8_in0.conv0.weight",
            "model.dec.8x8_block0.conv0.weight",
            "model.dec.64x64_up.conv0.weight",
            "model.out_conv.weight",
            "model.out_norm.bias",
        ]);
        let (names, _) = level_groups(&layout).unwrap();
        let expected = ["input+embedding", "encoder 64x64", "encoder 8x8", "middle", "decoder 8x8", "decoder 64x64"];
        assert_eq!(names, expected);
        assert_eq!(of(&layout, "model.out_conv.weight"), "decoder 64x64");
        assert_eq!(of(&layout, "model.out_norm.bias"), "decoder 64x64");
    }

    #[test]
    fn a_name_that_fits_nowhere_is_an_error() {
        for name in [
            "head.weight",
            "model.mid.8x8_in0.weight",
            "model.enc.8x4_block0.weight",
            "model.dec.8x8",
            "model.out_norm.bias",
        ] {
            let text = level_groups(&named(&[name])).unwrap_err().to_string();
            assert!(text.starts_with(name), "{text}");
        }
    }
}
