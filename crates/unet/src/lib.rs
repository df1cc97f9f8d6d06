//! UNets as pure functions of one flat parameter vector, with the tensor names of the reference checkpoints.
//!
//! A [`Network`] holds shapes and indices; its weights are one vector, cut into pieces by the layout made with it.
//!
//! ```
//! use lcsc_torch::{Device, Kind, Tensor};
//! use lcsc_unet::{ImageShape, Inputs, Network, NetworkConfig, SongUNetConfig};
//! # fn main() -> lcsc_torch::Result<()> {
//! let image = ImageShape { channels: 1, resolution: 8, label_dim: 0 };
//! let (network, layout) = Network::new(&NetworkConfig::Song(SongUNetConfig::tiny()), image, 1);
//! assert!(layout.params().iter().any(|p| p.name == "model.enc.8x8_conv.weight")); // as in EDM's files
//!
//! let weights = layout.init(0, Device::Cpu)?;
//! let p = layout.views(&weights.theta, &weights.buffers)?;
//! let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
//! let (x, c_noise) = (zeros(&[2, 1, 8, 8]), zeros(&[2]));
//! let inputs = Inputs { x: &x, c_noise: &c_noise, labels: None, augment_labels: None, train: false };
//! assert_eq!(network.forward(&p, &inputs).size(), x.size());
//! # Ok(())
//! # }
//! ```

mod activations;
mod adm;
mod blocks;
mod config;
mod groups;
mod network;
mod openai;
mod resample;
mod song;

pub use activations::Activations;
pub use adm::{DhariwalUNet, DhariwalUNetConfig};
pub use config::{Decoder, DecoderAttention, Embedding, Encoder, Heads, ImageShape, Resolution, SongUNetConfig};
pub use groups::level_groups;
pub use network::{Inputs, Network, NetworkConfig};
pub use openai::{Arrangement, AttentionOrder, Counterpart, openai_counterparts, openai_heads};
pub use song::SongUNet;
