//! The architectures as one.

use crate::adm::{DhariwalUNet, DhariwalUNetConfig};
use crate::config::{ImageShape, SongUNetConfig};
use crate::song::SongUNet;
use lcsc_torch::{Invalid, Kind, ParamLayout, Params, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkConfig {
    /// DDPM++, NCSN++ or the network of DDPM: EDM's `SongUNet`.
    Song(SongUNetConfig),
    /// ADM or the network of improved DDPM: EDM's `DhariwalUNet`.
    Adm(DhariwalUNetConfig),
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self::Song(SongUNetConfig::default())
    }
}

impl NetworkConfig {
    /// Names that [`NetworkConfig::preset`] knows.
    pub fn presets() -> Vec<&'static str> {
        SongUNetConfig::PRESETS.into_iter().chain(DhariwalUNetConfig::PRESETS).collect()
    }

    /// A preset by name.
    pub fn preset(name: &str) -> Option<Self> {
        SongUNetConfig::preset(name).map(Self::Song).or_else(|| DhariwalUNetConfig::preset(name).map(Self::Adm))
    }

    /// Everything about it that cannot work for such images.
    pub fn validate(&self, image: ImageShape) -> Vec<Invalid> {
        let found = match self {
            Self::Song(c) => c.validate(image),
            Self::Adm(c) => c.validate(image),
        };
        found.into_iter().map(|i| i.under(self.architecture())).collect()
    }

    /// Its key in config files.
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Song(_) => "song",
            Self::Adm(_) => "adm",
        }
    }

    /// The same network with another dropout.
    pub fn with_dropout(&self, dropout: f64) -> Self {
        match self {
            Self::Song(c) => Self::Song(SongUNetConfig { dropout, ..c.clone() }),
            Self::Adm(c) => Self::Adm(DhariwalUNetConfig { dropout, ..c.clone() }),
        }
    }

    /// The same network without dropout and label dropout, which weights do not depend on.
    pub fn without_dropout(&self) -> Self {
        match self {
            Self::Song(c) => Self::Song(SongUNetConfig { dropout: 0.0, label_dropout: 0.0, ..c.clone() }),
            Self::Adm(c) => Self::Adm(DhariwalUNetConfig { dropout: 0.0, label_dropout: 0.0, ..c.clone() }),
        }
    }

    /// Number of augmentation labels.
    pub fn augment_dim(&self) -> i64 {
        match self {
            Self::Song(c) => c.augment_dim,
            Self::Adm(c) => c.augment_dim,
        }
    }

    /// Probability of hiding the class label of an image in training.
    pub fn label_dropout(&self) -> f64 {
        match self {
            Self::Song(c) => c.label_dropout,
            Self::Adm(c) => c.label_dropout,
        }
    }
}

/// What goes into a network.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// c_in·x, f32 `[B,C,H,W]`.
    pub x: &'a Tensor,
    /// f32 `[B]`.
    pub c_noise: &'a Tensor,
    /// One-hot classes `[B,label_dim]`; without them a conditional network sees zeros.
    pub labels: Option<&'a Tensor>,
    /// `[B,augment_dim]`; without them a network made for augmentation sees zeros.
    pub augment_labels: Option<&'a Tensor>,
    /// Turns dropout on; its masks come from torch's global generator.
    pub train: bool,
}

impl Inputs<'_> {
    /// The classes as the network sees them, one-hot f32 [B,label_dim]; in training each image's are hidden with
    /// probability `dropout`, for classifier-free guidance.
    pub(crate) fn seen_labels(&self, label_dim: i64, dropout: f64) -> Tensor {
        let (batch, float) = (self.c_noise.size()[0], (Kind::Float, self.c_noise.device()));
        let one_hot = self.labels.map_or_else(|| Tensor::zeros([batch, label_dim], float), |l| l.to_kind(float.0));
        if self.train && dropout > 0.0 {
            let keep = Tensor::rand([batch, 1], float).ge(dropout);
            return one_hot * keep.to_kind(float.0);
        }
        one_hot
    }
}

/// The network F(x; c_noise): shapes and indices only.
pub enum Network {
    /// Of [`NetworkConfig::Song`].
    Song(SongUNet),
    /// Of [`NetworkConfig::Adm`].
    Adm(DhariwalUNet),
}

impl Network {
    /// The network with so many output channels, and its layout. The configuration must be free of problems.
    pub fn new(config: &NetworkConfig, image: ImageShape, out_channels: i64) -> (Self, ParamLayout) {
        match config {
            NetworkConfig::Song(c) => {
                let (net, layout) = SongUNet::new(c, image, out_channels);
                (Self::Song(net), layout)
            }
            NetworkConfig::Adm(c) => {
                let (net, layout) = DhariwalUNet::new(c, image, out_channels);
                (Self::Adm(net), layout)
            }
        }
    }

    /// F(x; c_noise) f32 `[B,out_channels,H,W]`, computed in the type of `p`.
    pub fn forward(&self, p: &Params, inputs: &Inputs) -> Tensor {
        let f_x = match self {
            Self::Song(net) => net.forward(p, inputs),
            Self::Adm(net) => net.forward(p, inputs),
        };
        f_x.contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Embedding, Encoder, Heads};
    use lcsc_torch::{Device, Plan, Stream, TensorSpec, latents};

    /// Networks that have all kinds of layers together.
    fn networks() -> [NetworkConfig; 3] {
        let ncsnpp = SongUNetConfig {
            encoder_type: Encoder::Residual,
            embedding_type: Embedding::Fourier,
            resample_filter: vec![1.0, 3.0, 3.0, 1.0],
            ..SongUNetConfig::tiny()
        };
        let adm = DhariwalUNetConfig {
            model_channels: 8,
            channel_mult: vec![1, 2],
            num_blocks: 1,
            attn_resolutions: vec![8],
            heads: Heads::Count(2),
            ..DhariwalUNetConfig::default()
        };
        [NetworkConfig::Song(SongUNetConfig::tiny()), NetworkConfig::Song(ncsnpp), NetworkConfig::Adm(adm)]
    }

    #[test]
    fn channels_last_computes_the_same() {
        let image = ImageShape { channels: 3, resolution: 8, label_dim: 0 };
        let x = latents(0, Stream::Noise, 0, 2, image.chw(), Device::Cpu).unwrap();
        let c_noise = Tensor::from_slice(&[0.3f32, -1.0]);
        let inputs = Inputs { x: &x, c_noise: &c_noise, labels: None, augment_labels: None, train: false };
        for config in networks() {
            let (net, layout) = Network::new(&config, image, 3);
            let weights = layout.init(0, Device::Cpu).unwrap();
            let of = |plan| {
                let theta = (&weights.theta + 0.02).set_requires_grad(true);
                let f_x = net.forward(&layout.views(&theta, &weights.buffers).unwrap().planned(plan), &inputs);
                assert!(f_x.is_contiguous());
                let grad = Tensor::run_backward(&[f_x.square().sum(Kind::Float)], &[&theta], false, false).remove(0);
                (f_x.detach(), grad)
            };
            let (expected, expected_grad) = of(Plan::PLAIN);
            let (found, grad) = of(Plan { channels_last: true, ..Plan::PLAIN });
            let error = |a: &Tensor, b: &Tensor| ((a - b).norm() / b.norm()).double_value(&[]);
            let errors = (error(&found, &expected), error(&grad, &expected_grad));
            assert!(errors.0 < 1e-5 && errors.1 < 1e-5, "{errors:?} {config:?}");
        }
    }

    #[test]
    fn every_weight_of_a_preset_begins_at_sixteen_bytes_in_half_precision() {
        let image = ImageShape { channels: 3, resolution: 64, label_dim: 10 };
        for name in NetworkConfig::presets() {
            let (_, layout) = Network::new(&NetworkConfig::preset(name).unwrap(), image, 3);
            let length: i64 = layout.params().iter().map(|spec| (spec.numel() + 7) / 8 * 8).sum();
            // Memory that nothing writes to takes no room.
            let aligned = Tensor::empty([length], (Kind::BFloat16, Device::Cpu));
            for (spec, piece) in layout.params().iter().zip(layout.cut_aligned(&aligned).unwrap()) {
                let TensorSpec { name: tensor, .. } = spec;
                assert_eq!(
                    (piece.data_ptr() as usize % 16, piece.numel() as i64),
                    (0, spec.numel()),
                    "{name}: {tensor}"
                );
            }
        }
    }
}
