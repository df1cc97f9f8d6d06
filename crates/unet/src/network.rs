//! The architectures as one.

use crate::adm::{DhariwalUNet, DhariwalUNetConfig};
use crate::config::{ImageShape, SongUNetConfig};
use crate::song::SongUNet;
use lcsc_torch::{Invalid, ParamLayout, Params, Tensor};
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

    /// F(x; c_noise): x [B,C,H,W] and c_noise [B] f32, labels one-hot [B,label_dim], augmentation labels [B,augment_dim]
    /// → f32 [B,out_channels,H,W]. Computes in the type of `p`. Without labels a conditional network sees zeros.
    ///
    /// `train` turns dropout on; its masks come from torch's global generator.
    pub fn forward(
        &self,
        p: &Params,
        x: &Tensor,
        c_noise: &Tensor,
        labels: Option<&Tensor>,
        augment_labels: Option<&Tensor>,
        train: bool,
    ) -> Tensor {
        match self {
            Self::Song(net) => net.forward(p, x, c_noise, labels, augment_labels, train),
            Self::Adm(net) => net.forward(p, x, c_noise, labels, augment_labels, train),
        }
    }
}
