//! UNets as pure functions of one flat parameter vector, with the tensor names of the reference checkpoints.

mod adm;
mod blocks;
mod config;
mod groups;
mod network;
mod openai;
mod song;

pub use adm::{DhariwalUNet, DhariwalUNetConfig};
pub use config::{Decoder, DecoderAttention, Embedding, Encoder, Heads, ImageShape, Resolution, SongUNetConfig};
pub use groups::level_groups;
pub use network::{Inputs, Network, NetworkConfig};
pub use openai::{Arrangement, AttentionOrder, Counterpart, openai_counterparts, openai_heads};
pub use song::SongUNet;
