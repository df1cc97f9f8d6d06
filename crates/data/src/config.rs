//! Which images to train on.

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
    /// else (flat) unlabelled.
    pub source: String,
    /// Resizes the shorter side to this many pixels (Lanczos) and crops the centre square. Unset: images are taken as
    /// they are, and must all be squares of one size.
    #[schemars(range(min = 1, max = MAX_RESOLUTION))]
    pub resolution: Option<i64>,
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

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source: DIGITS.into(),
            resolution: None,
            labels: true,
            xflip: false,
            augment: None,
            device_budget_mib: 4096,
        }
    }
}
