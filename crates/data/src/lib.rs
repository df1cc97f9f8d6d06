//! Datasets to batches: images are decoded once to u8, kept on the device where they fit, and drawn in an order that is
//! a pure function of (seed, position).
//!
//! Folders, zips and archives are read as they are published, told apart by their content ([`Dataset::open`]);
//! [`convert`] writes any of them as a zip in EDM's layout.
//!
//! ```
//! use indicatif::ProgressBar;
//! use lcsc_data::{DataConfig, Dataset, Sampler};
//! use lcsc_torch::Device;
//! # fn main() -> lcsc_torch::Result<()> {
//! let digits = Dataset::open(&DataConfig::default(), &ProgressBar::hidden())?;
//! let mut sampler = Sampler::new(1797, 0);
//! let batch = digits.batch(&mut sampler, 128, 64, Device::Cpu)?;
//! assert_eq!(batch.images.size(), [64, 1, 8, 8]);
//!
//! // A resumed run draws what an uninterrupted one does.
//! let resumed = digits.batch(&mut Sampler::new(1797, 0), 128, 64, Device::Cpu)?;
//! assert!(batch.images.equal(&resumed.images));
//! # Ok(())
//! # }
//! ```

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
