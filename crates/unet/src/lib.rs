//! UNets as pure functions of one flat parameter vector, with the tensor names of the reference checkpoints.

mod blocks;
mod config;
mod groups;
mod song;

pub use config::{Decoder, Embedding, Encoder, ImageShape, SongUNetConfig};
pub use groups::level_groups;
pub use song::SongUNet;
