//! Which images to train on.

use crate::crop::Crop;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `source` of the embedded digits.
pub const DIGITS: &str = "digits";

/// Largest `resolution`: beyond it lie slips of the pen, which would exhaust the memory.
pub(crate) const MAX_RESOLUTION: i64 = 4096;

/// Which images to train on, and how they are prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// `digits` (embedded, 1×8×8), or a path: a zip as EDM's `dataset_tool` writes it (png or jpeg, labels in
    /// `dataset.json`), or a folder of png or jpeg files: labelled by a `dataset.json`, else by one sub-folder a class,
    /// else (flat) unlabelled; CIFAR-10 as it is published (binary or Python version, archive or folder); the folder of
    /// ImageNet's downsampled batches; or an `.npz` of images.
    pub source: String,
    /// Which part of a dataset that is published in two: CIFAR-10, ImageNet's batches.
    pub split: Split,
    /// Brings every image to a square of this many pixels, as `crop` says. Unset: images are taken as they are, and must
    /// all be squares of one size.
    #[schemars(range(min = 1, max = MAX_RESOLUTION))]
    pub resolution: Option<i64>,
    /// How images become squares of the resolution.
    pub crop: Crop,
    /// Makes every image RGB: grey ones get three equal channels, transparency is dropped.
    pub rgb: bool,
    /// What happens where an image file is damaged.
    pub on_corrupt: OnCorrupt,
    /// Reads class labels if the dataset has any.
    pub labels: bool,
    /// Mirrors each drawn image left to right with probability ½.
    pub xflip: bool,
    /// The probability of each of EDM's transformations (flips, scale, rotation, anisotropy, translation; Karras et al.
    /// 2022, table 6), 0 < p ≤ 1: EDM's recipe for CIFAR-10 has 0.12. As there, the flip left to right among them
    /// has probability ½ whatever p is, so `xflip` stays off. The network then needs `augment_dim = 9`. Unset: none.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub augment: Option<f64>,
    /// Largest dataset, in MiB of u8 pixels, that is kept on the device; a larger one stays in host memory.
    pub device_budget_mib: u64,
}

/// A part of a published dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// The images for training.
    #[default]
    Train,
    /// Those held out: CIFAR-10's test batch, ImageNet's validation set.
    Test,
}

/// What happens where an image file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnCorrupt {
    /// The dataset is refused.
    #[default]
    Fail,
    /// The image is left out with its label, and a warning names it.
    Skip,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source: DIGITS.into(),
            split: Split::Train,
            resolution: None,
            crop: Crop::Center,
            rgb: false,
            on_corrupt: OnCorrupt::Fail,
            labels: true,
            xflip: false,
            augment: None,
            device_budget_mib: 4096,
        }
    }
}
