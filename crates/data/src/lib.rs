//! Datasets to batches: images are decoded once to u8, kept on the device where they fit, and drawn in an order that is
//! a pure function of (seed, position).

mod augment;
mod batch;
mod config;
mod convert;
mod crop;
mod dataset;
mod decode;
mod digits;
mod fetch;
mod labels;
mod picture;
mod resize;
mod sampler;
mod source;
mod summary;
#[cfg(test)]
mod testing;

pub use augment::{AUGMENT_DIM, Augmentation};
pub use batch::Batch;
pub use config::{DIGITS, DataConfig, OnCorrupt, Split};
pub use convert::convert;
pub use crop::Crop;
pub use dataset::{DataInfo, Dataset, inspect};
pub use fetch::{CIFAR10, Hash, INCEPTION, Remote, fetch};
pub use picture::Picture;
pub use resize::{Filter, resize};
pub use sampler::Sampler;
pub use summary::{Summary, summarize};
