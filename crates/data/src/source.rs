//! Where images come from: their names and labels at once, their pixels one by one.

use crate::config::{DIGITS, DataConfig, MAX_RESOLUTION};
use crate::decode::{decode, fit, grey, shape, write_planes};
use crate::{digits, labels};
use image::DynamicImage;
use lcsc_torch::{Context, Error, Result, bail};
use memmap2::Mmap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zip::ZipArchive;
use zip::result::ZipResult;

/// A zip in memory, shared by the views of all threads.
#[derive(Clone)]
pub(crate) struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// What gives one image. Cheap to clone: each thread has its own.
#[derive(Clone)]
pub(crate) enum Reader {
    /// The embedded digits, u8 [N,8,8].
    Digits(Arc<[u8]>),
    /// Encoded images.
    Files(Files),
}

/// What gives the bytes of one file.
#[derive(Clone)]
pub(crate) enum Files {
    /// Entries of a zip.
    Zip(ZipArchive<Cursor<Mapped>>),
    /// Files below a folder.
    Folder(PathBuf),
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
    names: Vec<String>,
    resolution: Option<u32>,
}

/// Reader, names of the images in their order, and their classes.
type Opened = (Reader, Vec<String>, Option<Vec<i64>>);

impl Source {
    /// Reads names and labels.
    ///
    /// # Errors
    /// The path is missing or neither zip nor folder, there are no images, the labels do not fit them.
    pub(crate) fn open(config: &DataConfig) -> Result<Source> {
        let resolution = match config.resolution {
            None => None,
            Some(r @ 1..=MAX_RESOLUTION) => Some(r as u32),
            Some(r) => bail!("data.resolution = {r}: expected a number of pixels, 1…{MAX_RESOLUTION}"),
        };
        if let Some(p) = config.augment
            && !(p > 0.0 && p <= 1.0)
        {
            bail!("data.augment = {p}: expected a probability, 0 < p ≤ 1; leave it out for no augmentation");
        }
        let path = PathBuf::from(&config.source);
        let (reader, names, labels) =
            if config.source == DIGITS { open_digits(config.labels)? } else { open_path(&path, config.labels)? };
        let name = path.file_name().map_or(config.source.clone().into(), |name| name.to_string_lossy());
        let name = name.trim_end_matches(".zip").to_string();
        Ok(Source { name, labels, reader, path, names, resolution })
    }

    /// Number of images.
    pub(crate) fn images(&self) -> usize {
        self.names.len()
    }

    /// Number of classes, 0 without labels.
    pub(crate) fn classes(&self) -> i64 {
        self.labels.iter().flatten().max().map_or(0, |last| last + 1)
    }

    /// The shape C×H×W of the first image, which all others must have.
    ///
    /// # Errors
    /// It cannot be read or is not square.
    pub(crate) fn shape(&self) -> Result<[usize; 3]> {
        let shape = shape(&self.image(&mut self.reader.clone(), 0)?);
        match shape {
            [_, h, w] if h == w => Ok(shape),
            [_, h, w] => Err(self.error(0, &format!("is {h}×{w} (H×W), not square: set data.resolution"))),
        }
    }

    /// Decodes image `i` into its place, u8 C×H×W.
    ///
    /// # Errors
    /// It cannot be read, or its shape differs.
    pub(crate) fn read(&self, reader: &mut Reader, i: usize, expected: [usize; 3], planes: &mut [u8]) -> Result<()> {
        let image = self.image(reader, i)?;
        let first = &self.names[0];
        let ([c, h, w], [c0, h0, w0]) = (shape(&image), expected);
        if c != c0 {
            let found = format!("has channels: {c}, the first image `{first}`: {c0}");
            return Err(self.error(i, &format!("{found}; convert all to grey or all to RGB")));
        }
        if (h, w) != (h0, w0) {
            let found = format!("is {h}×{w} (H×W), the first image `{first}` {h0}×{w0}");
            return Err(self.error(i, &format!("{found}: set data.resolution to bring all to one size")));
        }
        write_planes(&image, planes);
        Ok(())
    }

    /// Image `i`, 8-bit grey or RGB, resized and cropped as configured.
    fn image(&self, reader: &mut Reader, i: usize) -> Result<DynamicImage> {
        let image = match reader {
            Reader::Digits(pixels) => {
                let area = digits::SIDE * digits::SIDE;
                grey(&pixels[i * area..(i + 1) * area], digits::SIDE)
            }
            Reader::Files(files) => {
                files.bytes(&self.names[i]).and_then(|bytes| decode(&bytes)).map_err(|e| self.error(i, &e))?
            }
        };
        Ok(self.resolution.into_iter().fold(image, fit))
    }

    fn error(&self, i: usize, message: &str) -> Error {
        Error::file(&self.path, format!("`{}` {message}", self.names[i]))
    }
}

impl Files {
    /// The bytes of one file, or what is wrong, to follow its name.
    fn bytes(&mut self, name: &str) -> std::result::Result<Vec<u8>, String> {
        let unreadable = |e: std::io::Error| format!("cannot be read ({e})");
        match self {
            Files::Zip(archive) => {
                let mut bytes = Vec::new();
                let mut entry = archive.by_name(name).map_err(|e| unreadable(e.into()))?;
                entry.read_to_end(&mut bytes).map_err(unreadable)?;
                Ok(bytes)
            }
            Files::Folder(folder) => std::fs::read(folder.join(name)).map_err(unreadable),
        }
    }

    /// The class of each image: from `dataset.json` where it is, else from the sub-folders of a folder.
    fn labels(&mut self, indexed: bool, names: &[String]) -> Result<Option<Vec<i64>>> {
        if indexed {
            let json = self.bytes(labels::INDEX).map_err(|e| Error::msg(format!("`{}` {e}", labels::INDEX)))?;
            return labels::from_index(&json, names);
        }
        match self {
            Files::Zip(_) => Ok(None),
            Files::Folder(_) => labels::from_folders(names),
        }
    }
}

fn open_digits(with_labels: bool) -> Result<Opened> {
    let (pixels, labels) = digits::read()?;
    let names = (0..labels.len()).map(|i| format!("digit {i}")).collect();
    Ok((Reader::Digits(pixels.into()), names, with_labels.then_some(labels)))
}

fn open_path(path: &Path, with_labels: bool) -> Result<Opened> {
    const EXPECTED: &str = "expected `digits`, an EDM zip or a folder of images";
    let kind = std::fs::metadata(path)
        .map_err(|e| Error::msg(format!("data.source = \"{}\": {e}; {EXPECTED}", path.display())))?;
    let (mut files, all) = if kind.is_dir() {
        let mut all = Vec::new();
        list_files(path, "", &mut all)?;
        (Files::Folder(path.to_path_buf()), all)
    } else {
        open_zip(path).map_err(|e| Error::file(path, format!("is no whole zip ({e}); {EXPECTED}")))?
    };
    let indexed = all.iter().any(|name| name == labels::INDEX);
    let mut names: Vec<String> = all.into_iter().filter(|name| is_image(name)).collect();
    names.sort_unstable();
    if names.is_empty() {
        return Err(Error::file(path, format!("holds no images (.png, .jpg, .jpeg); {EXPECTED}")));
    }
    let labels = with_labels.then(|| files.labels(indexed, &names)).transpose();
    Ok((Reader::Files(files), names, labels.map_err(|e| Error::file(path, e.to_string()))?.flatten()))
}

/// A zip and the names of all its entries.
fn open_zip(path: &Path) -> ZipResult<(Files, Vec<String>)> {
    // SAFETY: the mapping is only read; a dataset is not to be changed while it is read, as with any other reader.
    let map = unsafe { Mmap::map(&File::open(path)?)? };
    let archive = ZipArchive::new(Cursor::new(Mapped(Arc::new(map))))?;
    let names = archive.file_names().map(|name| name.map(String::from)).collect::<ZipResult<_>>()?;
    Ok((Files::Zip(archive), names))
}

/// Names of all files below a folder, relative to it, with `/`.
fn list_files(folder: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(Error::file(&path, "has a name that is not UTF-8: rename it"));
        };
        let name = format!("{prefix}{name}");
        if path.is_dir() { list_files(&path, &format!("{name}/"), names)? } else { names.push(name) }
    }
    Ok(())
}

/// Whether a file is a png or jpeg by its name; hidden files, and those in hidden folders, are not.
fn is_image(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let hidden = name.split('/').any(|part| part.starts_with('.'));
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) && !hidden
}
