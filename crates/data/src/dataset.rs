//! A dataset in memory.

use crate::config::DataConfig;
use crate::source::{Reader, Source};
use indicatif::ProgressBar;
use lcsc_torch::Result;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

/// What a dataset holds, without its pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataInfo {
    /// Number of images N.
    pub images: usize,
    /// Channels C: 1 (grey) or 3 (RGB).
    pub channels: i64,
    /// Height and width of the square images, in pixels.
    pub resolution: i64,
    /// Number of classes; 0 without labels.
    pub classes: i64,
    /// Short name: `digits`, or that of the file or folder.
    pub name: String,
}

/// Reads names, labels and one image of a dataset.
///
/// # Errors
/// As [`Dataset::open`], but for what only shows when all images are decoded.
pub fn inspect(config: &DataConfig) -> Result<DataInfo> {
    let source = Source::open(config)?;
    let [channels, resolution, _] = source.first()?.shape.map(|d| d as i64);
    Ok(DataInfo { images: source.images(), channels, resolution, classes: source.classes(), name: source.name })
}

/// All images of a dataset, in the order of their sorted names (that of EDM).
#[derive(Debug)]
pub struct Dataset {
    /// Pixels, u8 `[N,C,H,W]`, H = W.
    pub images: Tensor,
    /// Classes, i64 `[N]`, on the device of the images.
    pub labels: Option<Tensor>,
    /// Number of classes; 0 without labels.
    pub classes: i64,
    /// BLAKE3 of shape, pixels and labels, in hex.
    pub hash: String,
    /// Short name: `digits`, or that of the file or folder.
    pub name: String,
    /// Whether batches mirror images left to right with probability ½.
    pub xflip: bool,
    /// The probability of each of EDM's transformations, where batches are augmented.
    pub augment: Option<f64>,
    pub(crate) device_budget_mib: u64,
}

// SAFETY: libtorch lets threads read a tensor at once, and images and labels are only read.
unsafe impl Sync for Dataset {}

impl Dataset {
    /// Decodes all images into host memory, on all cores; `bar` counts them.
    ///
    /// # Errors
    /// The path is missing, there are no images, an image is unreadable or differs from the first in size or channels,
    /// images are not square and no resolution is set, or the labels do not fit the images.
    pub fn open(config: &DataConfig, bar: &ProgressBar) -> Result<Dataset> {
        let source = Source::open(config)?;
        let first = source.first()?;
        bar.set_length(source.images() as u64);
        bar.set_position(0);
        bar.set_message(format!("reading {}", source.name));
        let [c, h, w] = first.shape.map(|d| d as i64);
        let images = Tensor::f_zeros([source.images() as i64, c, h, w], (Kind::Uint8, Device::Cpu))?;
        // SAFETY: the tensor was made contiguous here, has this many bytes, and is not used while the slice lives.
        let pixels = unsafe { std::slice::from_raw_parts_mut(images.data_ptr().cast::<u8>(), images.numel()) };
        let read = |reader: &mut Reader, (i, planes): (usize, &mut [u8])| -> Result<Option<usize>> {
            let picture = source.read(reader, i, &first)?;
            bar.inc(1);
            let Some(picture) = picture else { return Ok(Some(i)) };
            picture.write_planes(planes);
            Ok(None)
        };
        let places = pixels.par_chunks_mut(first.shape.iter().product()).enumerate();
        let skipped = places.map_init(|| source.reader.clone(), read).filter_map(Result::transpose);
        let skipped = skipped.collect::<Result<Vec<usize>>>()?;
        source.warn_of_skipped(&skipped)?;
        let images = without(&images, &skipped)?;
        let labels = source.labels.as_ref().map(|l| without(&Tensor::f_from_slice(l)?, &skipped)).transpose()?;
        Ok(Dataset {
            hash: content_hash(&images, labels.as_ref())?,
            images,
            labels,
            classes: source.classes(),
            name: source.name,
            xflip: config.xflip,
            augment: config.augment,
            device_budget_mib: config.device_budget_mib,
        })
    }
}

/// A tensor without the given rows.
fn without(tensor: &Tensor, rows: &[usize]) -> Result<Tensor> {
    if rows.is_empty() {
        return Ok(tensor.shallow_clone());
    }
    let kept: Vec<i64> = (0..tensor.size()[0]).filter(|&i| rows.binary_search(&(i as usize)).is_err()).collect();
    Ok(tensor.f_index_select(0, &Tensor::f_from_slice(&kept)?)?)
}

/// BLAKE3 of shape, pixels and labels, in hex.
fn content_hash(images: &Tensor, labels: Option<&Tensor>) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    images.size().iter().for_each(|d| _ = hasher.update(&d.to_le_bytes()));
    hasher.update(bytes(images));
    if let Some(labels) = labels {
        Vec::<i64>::try_from(labels)?.iter().for_each(|class| _ = hasher.update(&class.to_le_bytes()));
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The pixels of contiguous u8 images in host memory.
pub(crate) fn bytes(images: &Tensor) -> &[u8] {
    // SAFETY: u8 tensors of datasets are contiguous, have this many bytes, and live as long as the slice.
    unsafe { std::slice::from_raw_parts(images.data_ptr().cast::<u8>(), images.numel()) }
}

#[cfg(test)]
mod tests;
