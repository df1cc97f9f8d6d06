//! Datasets to batches: images are decoded once to u8, kept on the device where they fit, and drawn in an order that is
//! a pure function of (seed, position).

mod augment;
mod batch;
mod config;
mod dataset;
mod decode;
mod digits;
mod labels;
mod sampler;
mod source;

pub use augment::{AUGMENT_DIM, Augmentation};
pub use batch::Batch;
pub use config::{DIGITS, DataConfig};
pub use dataset::{DataInfo, Dataset, inspect};
pub use sampler::Sampler;
