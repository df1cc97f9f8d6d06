//! Where images come from: their names and labels at once, their pixels one by one.

mod arrays;
mod cifar;
mod files;
mod imagenet;
mod npz;
#[cfg(feature = "parquet")]
mod parquet;
mod pickled;
mod spill;

use crate::config::{DIGITS, DataConfig, MAX_RESOLUTION, OnCorrupt, Split};
use crate::crop::Crop;
use crate::decode::{Flaw, decode};
use crate::digits;
use crate::picture::Picture;
use arrays::Arrays;
use files::Files;
use lcsc_torch::{Error, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A value, or what is wrong, to follow the name of the file.
type Checked<T> = std::result::Result<T, String>;

/// What a path may be.
const EXPECTED: &str = "expected `digits`, an EDM zip, a folder of images, CIFAR-10, ImageNet's batches or an npz";

/// What gives one image. Cheap to clone: each thread has its own.
#[derive(Clone)]
pub(crate) enum Reader {
    /// Pixels in memory or in mapped files.
    Arrays(Arrays),
    /// Encoded images and their names.
    Files(Files, Arc<[String]>),
    /// Encoded images without names.
    #[cfg(feature = "parquet")]
    Encoded(Arc<[bytes::Bytes]>),
}

/// A dataset of which only names and labels were read.
pub(crate) struct Source {
    /// Short name of the dataset.
    pub(crate) name: String,
    /// The class of each image.
    pub(crate) labels: Option<Vec<i64>>,
    /// What opens the images.
    pub(crate) reader: Reader,
    path: PathBuf,
    square: Option<(Crop, usize)>,
    rgb: bool,
    on_corrupt: OnCorrupt,
}

/// What opening a path gives: a reader of the images in their order, and their classes.
struct Opened {
    reader: Reader,
    labels: Option<Vec<i64>>,
}

impl Source {
    /// Reads names and labels.
    ///
    /// # Errors
    /// The path is missing or nothing that can be read, there are no images, the labels do not fit them.
    pub(crate) fn open(config: &DataConfig) -> Result<Source> {
        let square = match config.resolution {
            None => None,
            Some(r @ 1..=MAX_RESOLUTION) => Some((config.crop, r as usize)),
            Some(r) => bail!("data.resolution = {r}: expected a number of pixels, 1…{MAX_RESOLUTION}"),
        };
        if let Some(p) = config.augment
            && !(p > 0.0 && p <= 1.0)
        {
            bail!("data.augment = {p}: expected a probability, 0 < p ≤ 1; leave it out for no augmentation");
        }
        let path = PathBuf::from(&config.source);
        let Opened { reader, labels } = open(&path, config)?;
        let name = path.file_name().map_or(config.source.clone().into(), |name| name.to_string_lossy());
        let name = [".zip", ".npz", ".tar.gz"].iter().fold(&*name, |name, end| name.trim_end_matches(end)).to_string();
        let (rgb, on_corrupt) = (config.rgb, config.on_corrupt);
        Ok(Source { name, labels: labels.filter(|_| config.labels), reader, path, square, rgb, on_corrupt })
    }

    /// Number of images.
    pub(crate) fn images(&self) -> usize {
        match &self.reader {
            Reader::Arrays(arrays) => arrays.images(),
            Reader::Files(_, names) => names.len(),
            #[cfg(feature = "parquet")]
            Reader::Encoded(images) => images.len(),
        }
    }

    /// Number of classes, 0 without labels.
    pub(crate) fn classes(&self) -> i64 {
        self.labels.iter().flatten().max().map_or(0, |last| last + 1)
    }

    /// What the first readable image is, which all others must equal in shape.
    ///
    /// # Errors
    /// There is none, or it is not square.
    pub(crate) fn first(&self) -> Result<First> {
        let mut reader = self.reader.clone();
        for index in 0..self.images() {
            let Some(picture) = self.picture(&mut reader, index)? else { continue };
            let (shape @ [_, h, w], name) = (picture.shape(), self.image_name(index));
            if h != w {
                return Err(self.error(index, &format!("is {h}×{w} (H×W), not square: set data.resolution")));
            }
            return Ok(First { shape, name });
        }
        Err(Error::file(&self.path, format!("none of its {} images can be read", self.images())))
    }

    /// Image `i` as configured; none where it is damaged and such images are to be skipped.
    ///
    /// # Errors
    /// It cannot be read, or its shape differs from that of the first.
    pub(crate) fn read(&self, reader: &mut Reader, i: usize, first: &First) -> Result<Option<Picture>> {
        let Some(picture) = self.picture(reader, i)? else { return Ok(None) };
        let ([c, h, w], [c0, h0, w0]) = (picture.shape(), first.shape);
        if c != c0 {
            let found = format!("has channels: {c}, the first image `{}`: {c0}", first.name);
            return Err(self.error(i, &format!("{found}; data.rgb = true makes all RGB")));
        }
        if (h, w) != (h0, w0) {
            let found = format!("is {h}×{w} (H×W), the first image `{}` {h0}×{w0}", first.name);
            return Err(self.error(i, &format!("{found}: set data.resolution to bring all to one size")));
        }
        Ok(Some(picture))
    }

    /// Image `i`, 8-bit grey or RGB, cropped and resized as configured.
    fn picture(&self, reader: &mut Reader, i: usize) -> Result<Option<Picture>> {
        let picture = match reader {
            Reader::Arrays(arrays) if self.rgb => Ok(arrays.picture(i).into_rgb()),
            Reader::Arrays(arrays) => Ok(arrays.picture(i)),
            Reader::Files(files, names) => {
                files.bytes(&names[i]).map_err(Flaw::Corrupt).and_then(|bytes| decode(&bytes, self.rgb))
            }
            #[cfg(feature = "parquet")]
            Reader::Encoded(images) => decode(&images[i], self.rgb),
        };
        let picture = match picture {
            Ok(picture) => picture,
            Err(Flaw::Corrupt(_)) if self.on_corrupt == OnCorrupt::Skip => return Ok(None),
            Err(Flaw::Corrupt(e)) => {
                return Err(self.error(i, &format!("{e}; data.on_corrupt = \"skip\" leaves such images out")));
            }
            Err(Flaw::Unfit(e)) => return Err(self.error(i, &e)),
        };
        match self.square {
            Some((_, side)) if (picture.height, picture.width) == (side, side) => Ok(Some(picture)),
            Some((crop, side)) => crop.apply(picture, side).map(Some).map_err(|e| self.error(i, &e)),
            None => Ok(Some(picture)),
        }
    }

    /// Tells which images were left out.
    ///
    /// # Errors
    /// All of them were.
    pub(crate) fn warn_of_skipped(&self, skipped: &[usize]) -> Result<()> {
        if skipped.is_empty() {
            return Ok(());
        }
        if skipped.len() == self.images() {
            return Err(Error::file(&self.path, format!("none of its {} images can be read", skipped.len())));
        }
        let names: Vec<String> = skipped.iter().take(5).map(|&i| format!("`{}`", self.image_name(i))).collect();
        let more = if skipped.len() > names.len() { ", …" } else { "" };
        let count = skipped.len();
        tracing::warn!("{}: {count} damaged images left out: {}{more}", self.path.display(), names.join(", "));
        Ok(())
    }

    fn image_name(&self, i: usize) -> String {
        match &self.reader {
            Reader::Files(_, names) => names[i].clone(),
            Reader::Arrays(_) => format!("image {i}"),
            #[cfg(feature = "parquet")]
            Reader::Encoded(_) => format!("image {i}"),
        }
    }

    fn error(&self, i: usize, message: &str) -> Error {
        Error::file(&self.path, format!("`{}` {message}", self.image_name(i)))
    }
}

/// What all images of a dataset must equal.
pub(crate) struct First {
    /// Channels, height, width.
    pub(crate) shape: [usize; 3],
    name: String,
}

fn open(path: &Path, config: &DataConfig) -> Result<Opened> {
    if config.source == DIGITS {
        one_part(config, "the digits")?;
        let (pixels, labels) = digits::read()?;
        let arrays = Arrays::new([1, digits::SIDE, digits::SIDE], pixels.into());
        return Ok(Opened { reader: Reader::Arrays(arrays), labels: Some(labels) });
    }
    let kind = std::fs::metadata(path)
        .map_err(|e| Error::msg(format!("data.source = \"{}\": {e}; {EXPECTED}", path.display())))?;
    if kind.is_dir() {
        if let Some(found) = cifar::open_folder(path, config.split)? {
            return Ok(found);
        }
        if let Some(found) = imagenet::open_folder(path, config.split)? {
            return Ok(found);
        }
        #[cfg(feature = "parquet")]
        if let Some(found) = parquet::open_folder(path, config.split)? {
            return Ok(found);
        }
        one_part(config, "a folder of images")?;
        return files::open_folder(path, config.labels);
    }
    let bytes = spill::map(path)?;
    if bytes.starts_with(spill::GZIP) {
        return cifar::open_archive(path, &bytes, config.split);
    }
    one_part(config, "a single file")?;
    #[cfg(feature = "parquet")]
    if bytes.starts_with(b"PAR1") {
        return parquet::open(&[path.to_path_buf()]);
    }
    let archive = files::open_zip(path, bytes.clone())?;
    if npz::is_npz(&archive) { npz::open(path, bytes) } else { files::open(path, Files::Zip(archive), config.labels) }
}

/// Refuses to take another part of what has no parts.
fn one_part(config: &DataConfig, what: &str) -> Result<()> {
    match config.split {
        Split::Train => Ok(()),
        Split::Test => bail!("data.split = \"test\": {what} has no splits; name the test images as data.source"),
    }
}

#[cfg(test)]
mod tests;
