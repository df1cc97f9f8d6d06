//! What a UNet is made of: the options of EDM's `SongUNet` and `DhariwalUNet`, and presets.

use crate::blocks::NormOptions;
use lcsc_torch::Invalid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The images a network is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageShape {
    /// C, colour channels.
    pub channels: i64,
    /// H = W, pixels.
    pub resolution: i64,
    /// Number of classes, 0 for an unconditional network.
    pub label_dim: i64,
}

impl ImageShape {
    /// `[C,H,W]`.
    pub fn chw(&self) -> [i64; 3] {
        [self.channels, self.resolution, self.resolution]
    }
}

/// How the noise level enters the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Embedding {
    /// Sinusoids of fixed geometric frequencies (DDPM++).
    Positional,
    /// Sinusoids of random frequencies, kept as the buffer `map_noise.freqs` (NCSN++).
    Fourier,
}

/// What the encoder does beside its main path (Song et al. 2021, appendix H).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// Nothing.
    Standard,
    /// Adds a projection of the downsampled input at each level.
    Skip,
    /// Carries a residual image pyramid through the levels (NCSN++).
    Residual,
}

/// How the decoder forms its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decoder {
    /// From the last level.
    Standard,
    /// As a sum of upsampled outputs of all levels.
    Skip,
}

/// What changes the resolution between two levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Resolution {
    /// Residual blocks that resample (Song et al. 2021; ADM).
    Blocks,
    /// Plain convolutions: of stride two down, after repeating pixels up (Ho et al. 2020; improved DDPM).
    Convolutions,
}

/// Which of a level's decoder blocks have self-attention, where its resolution has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DecoderAttention {
    /// The last one (Song et al. 2021).
    Last,
    /// Every one (Ho et al. 2020).
    Every,
}

/// How many heads an attention layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Heads {
    /// So many, whatever the channels.
    Count(i64),
    /// As many as there are groups of so many channels.
    Channels(i64),
}

impl Heads {
    /// The heads over C channels.
    pub fn of(self, channels: i64) -> i64 {
        match self {
            Self::Count(count) => count,
            Self::Channels(each) => channels / each,
        }
    }

    /// Whether C channels can be divided among them.
    pub(crate) fn fits(self, channels: i64) -> bool {
        match self {
            Self::Count(each) | Self::Channels(each) => each >= 1 && channels % each == 0,
        }
    }
}

/// The options of `SongUNet` (DDPM++ and NCSN++ as in EDM, Karras et al. 2022, appendix F.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SongUNetConfig {
    /// Base number of channels.
    pub model_channels: i64,
    /// Channel multiplier of each resolution level, finest first.
    pub channel_mult: Vec<i64>,
    /// Multiplier of the embedding vector's width.
    pub channel_mult_emb: i64,
    /// Residual blocks a level.
    pub num_blocks: i64,
    /// Resolutions (pixels) with self-attention.
    pub attn_resolutions: Vec<i64>,
    /// Dropout probability of intermediate activations.
    pub dropout: f64,
    /// Probability of hiding the class label of an image in training, for classifier-free guidance.
    pub label_dropout: f64,
    /// Noise level embedding.
    pub embedding_type: Embedding,
    /// Multiplier of the noise embedding's width: 1 for DDPM++, 2 for NCSN++.
    pub channel_mult_noise: i64,
    /// Encoder architecture.
    pub encoder_type: Encoder,
    /// Decoder architecture.
    pub decoder_type: Decoder,
    /// Resampling filter: `[1,1]` for DDPM++, `[1,3,3,1]` for NCSN++.
    pub resample_filter: Vec<f64>,
    /// What changes the resolution between two levels.
    pub resample: Resolution,
    /// Factor of every sum with a residual path: √½, or 1 in Ho et al.'s network.
    pub skip_scale: f64,
    /// Where the decoder has self-attention.
    pub decoder_attention: DecoderAttention,
    /// Number of augmentation labels, 0 without augmentation.
    pub augment_dim: i64,
}

impl Default for SongUNetConfig {
    fn default() -> Self {
        Self::ddpmpp_cifar10()
    }
}

impl SongUNetConfig {
    /// Names that [`SongUNetConfig::preset`] knows.
    pub const PRESETS: [&'static str; 4] = ["ddpmpp-cifar10", "ncsnpp-cifar10", "ddpm-cifar10", "tiny"];

    /// A preset by name.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "ddpmpp-cifar10" => Some(Self::ddpmpp_cifar10()),
            "ncsnpp-cifar10" => Some(Self::ncsnpp_cifar10()),
            "ddpm-cifar10" => Some(Self::ddpm_cifar10()),
            "tiny" => Some(Self::tiny()),
            _ => None,
        }
    }

    /// EDM's DDPM++ for CIFAR-10 (about 56 M parameters).
    pub fn ddpmpp_cifar10() -> Self {
        Self {
            model_channels: 128,
            channel_mult: vec![2, 2, 2],
            channel_mult_emb: 4,
            num_blocks: 4,
            attn_resolutions: vec![16],
            dropout: 0.13,
            label_dropout: 0.0,
            embedding_type: Embedding::Positional,
            channel_mult_noise: 1,
            encoder_type: Encoder::Standard,
            decoder_type: Decoder::Standard,
            resample_filter: vec![1.0, 1.0],
            resample: Resolution::Blocks,
            skip_scale: std::f64::consts::FRAC_1_SQRT_2,
            decoder_attention: DecoderAttention::Last,
            augment_dim: 0,
        }
    }

    /// NCSN++ for CIFAR-10, as the consistency models' paper uses it.
    pub fn ncsnpp_cifar10() -> Self {
        Self {
            embedding_type: Embedding::Fourier,
            channel_mult_noise: 2,
            encoder_type: Encoder::Residual,
            resample_filter: vec![1.0, 3.0, 3.0, 1.0],
            dropout: 0.0,
            ..Self::ddpmpp_cifar10()
        }
    }

    /// The network of DDPM for CIFAR-10 (Ho et al. 2020, appendix B; 35.7 M parameters). It differs from DDPM++ in its
    /// width (128, then 256) and depth (four levels of two blocks), changes resolution by plain convolutions instead of
    /// residual blocks, attends after every block at 16×16 in the decoder too, and does not scale sums by √½.
    pub fn ddpm_cifar10() -> Self {
        Self {
            channel_mult: vec![1, 2, 2, 2],
            num_blocks: 2,
            dropout: 0.1,
            resample: Resolution::Convolutions,
            skip_scale: 1.0,
            decoder_attention: DecoderAttention::Every,
            ..Self::ddpmpp_cifar10()
        }
    }

    /// Small enough to train on a CPU in a minute: for trying things on 8×8 to 32×32 images.
    pub fn tiny() -> Self {
        Self {
            model_channels: 16,
            channel_mult: vec![1, 2],
            num_blocks: 1,
            attn_resolutions: vec![],
            dropout: 0.0,
            ..Self::ddpmpp_cifar10()
        }
    }

    /// Everything about this configuration that cannot work for such images.
    pub fn validate(&self, image: ImageShape) -> Vec<Invalid> {
        let mut found = self.common().validate(image);
        let mut check = |ok: bool, key: &str, message: &str| {
            if !ok {
                found.push(Invalid::new(key, message));
            }
        };
        check(self.channel_mult_noise >= 1, "channel_mult_noise", "must be at least 1");
        check(self.skip_scale > 0.0, "skip_scale", "must be more than 0");
        check(
            self.model_channels * self.channel_mult_noise % 2 == 0,
            "model_channels",
            "must be even: the noise embedding has as many sines as cosines",
        );
        let filter = &self.resample_filter;
        check(
            !filter.is_empty() && filter.len().is_multiple_of(2) && filter.iter().sum::<f64>() != 0.0,
            "resample_filter",
            "needs an even number of taps that do not sum to zero, such as [1, 1] or [1, 3, 3, 1]",
        );
        found
    }

    fn common(&self) -> Common<'_> {
        Common {
            model_channels: self.model_channels,
            channel_mult: &self.channel_mult,
            channel_mult_emb: self.channel_mult_emb,
            num_blocks: self.num_blocks,
            dropout: self.dropout,
            label_dropout: self.label_dropout,
            augment_dim: self.augment_dim,
            norm: NormOptions::SONG,
        }
    }
}

/// What all architectures have, to be checked in one place.
pub(crate) struct Common<'a> {
    pub model_channels: i64,
    pub channel_mult: &'a [i64],
    pub channel_mult_emb: i64,
    pub num_blocks: i64,
    pub dropout: f64,
    pub label_dropout: f64,
    pub augment_dim: i64,
    pub norm: NormOptions,
}

impl Common<'_> {
    /// Everything about it that cannot work for such images.
    pub fn validate(&self, image: ImageShape) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut check = |ok: bool, key: &str, message: String| {
            if !ok {
                found.push(Invalid::new(key, message));
            }
        };
        check(!self.channel_mult.is_empty(), "channel_mult", "needs at least one level".into());
        check(self.num_blocks >= 1, "num_blocks", format!("is {}, expected at least 1", self.num_blocks));
        check(self.channel_mult_emb >= 1, "channel_mult_emb", "must be at least 1".into());
        check(self.augment_dim >= 0, "augment_dim", "must not be negative".into());
        for (key, p) in [("dropout", self.dropout), ("label_dropout", self.label_dropout)] {
            check((0.0..1.0).contains(&p), key, format!("is {p}, expected a probability in [0, 1)"));
        }
        let halvings = self.channel_mult.len().saturating_sub(1) as u32;
        let unit = 2i64.saturating_pow(halvings);
        check(
            image.resolution % unit == 0,
            "channel_mult",
            format!(
                "has {} levels, which halve the image {halvings} times, but {} pixels cannot be halved so often; use fewer levels or a resolution divisible by {unit}",
                self.channel_mult.len(),
                image.resolution
            ),
        );
        if let Some(channels) = self.normed_channels().into_iter().find(|&c| !self.norm.fits(c)) {
            let each = self.norm.min_channels_per_group;
            let message = format!(
                "gives a layer of {channels} channels, which the group norm cannot divide into min(32, C/{each}) groups; use a multiple of 32, or of {each} where no layer (in the decoder: with its skip connection) exceeds {}",
                32 * each
            );
            check(false, "model_channels", message);
        }
        found
    }

    /// The channels that group norms see: each level's own, and those of the decoder's blocks with a skip connection.
    fn normed_channels(&self) -> Vec<i64> {
        let levels: Vec<i64> = self.channel_mult.iter().map(|mult| self.model_channels * mult).collect();
        let mut found = [&[self.model_channels], levels.as_slice()].concat();
        for (i, &own) in levels.iter().enumerate() {
            // A level's first block follows the level below, its last one joins the skip that came from above.
            let (above, below) = (found[i], *levels.get(i + 1).unwrap_or(&own));
            found.extend([own + below, own + above]);
            if self.num_blocks > 1 {
                found.push(own + own);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIFAR: ImageShape = ImageShape { channels: 3, resolution: 32, label_dim: 10 };

    #[test]
    fn presets_fit_cifar() {
        for name in SongUNetConfig::PRESETS {
            assert_eq!(SongUNetConfig::preset(name).map(|c| c.validate(CIFAR)), Some(vec![]), "{name}");
        }
        assert_eq!(SongUNetConfig::preset("huge"), None);
    }

    #[test]
    fn impossible_settings_are_all_named() {
        let config = SongUNetConfig {
            model_channels: 100,
            channel_mult: vec![1, 2, 2],
            dropout: 1.5,
            resample_filter: vec![1.0],
            ..SongUNetConfig::tiny()
        };
        let found = config.validate(ImageShape { resolution: 30, ..CIFAR });
        let keys: Vec<&str> = found.iter().map(|i| i.key.as_str()).collect();
        assert_eq!(keys, ["dropout", "channel_mult", "model_channels", "resample_filter"], "{found:?}");
        assert!(found[1].message.contains("divisible by 4"));
        assert!(found[2].message.contains("200 channels"));
    }

    #[test]
    fn skip_connections_count_for_the_group_norm() {
        // Levels of 48 and 96 channels divide well, their sum of 144 does not.
        let found = SongUNetConfig { model_channels: 48, ..SongUNetConfig::tiny() }.validate(CIFAR);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("144 channels"), "{found:?}");
    }
}
