//! CIFAR-10 as it is published (Krizhevsky 2009): the binary and the Python version, packed or unpacked.
//!
//! A batch holds 10,000 images of 3×32×32. Of the binary version a record is the class and the planes; the Python version
//! is a pickled dict of `data` u8 [N,3072] and `labels`.

use super::arrays::{Arrays, Order};
use super::{Checked, EXPECTED, Opened, Reader, pickled, spill};
use crate::config::Split;
use bytes::Bytes;
use lcsc_torch::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

const SHAPE: [usize; 3] = [3, 32, 32];
const SIZE: usize = 3 * 32 * 32;
const CLASSES: i64 = 10;
/// Most bytes of an unpacked batch; one has 31 million.
const MAX_BATCH: u64 = 1 << 26;
/// Most bytes of the unpacked archive; it has 186 million.
const MAX_ARCHIVE: u64 = 1 << 30;

/// How a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Binary,
    Python,
}

impl Version {
    /// The version of which there is at least one batch.
    fn found(exists: impl Fn(&str) -> bool) -> Option<Version> {
        let any = |version: &Version| {
            [Split::Train, Split::Test].iter().any(|&split| version.batches(split).iter().any(|name| exists(name)))
        };
        [Version::Binary, Version::Python].into_iter().find(any)
    }

    /// The names of the batches of a split.
    fn batches(self, split: Split) -> Vec<String> {
        let extension = match self {
            Version::Binary => ".bin",
            Version::Python => "",
        };
        match split {
            Split::Train => (1..=5).map(|i| format!("data_batch_{i}{extension}")).collect(),
            Split::Test => vec![format!("test_batch{extension}")],
        }
    }
}

/// The dataset that lies unpacked in a folder; none where it holds something else.
///
/// # Errors
/// A batch is missing or damaged.
pub(super) fn open_folder(path: &Path, split: Split) -> Result<Option<Opened>> {
    let Some(version) = Version::found(|name| path.join(name).is_file()) else { return Ok(None) };
    gather(path, version, split, |name| path.join(name).is_file().then(|| spill::map(&path.join(name))).transpose())
        .map(Some)
}

/// The dataset in an archive `.tar.gz`.
///
/// # Errors
/// It is damaged, or holds something else.
pub(super) fn open_archive(path: &Path, packed: &[u8], split: Split) -> Result<Opened> {
    let mut batches = unpack(path, packed, split)?;
    let Some(version) = Version::found(|name| batches.contains_key(name)) else {
        return Err(Error::file(path, format!("holds no batches of CIFAR-10; {EXPECTED}")));
    };
    gather(path, version, split, |name| Ok(batches.remove(name)))
}

/// The batches of a split, by their names.
fn unpack(path: &Path, packed: &[u8], split: Split) -> Result<HashMap<String, Bytes>> {
    use std::io::Read;
    let wrong = |e: std::io::Error| Error::file(path, format!("is no whole .tar.gz ({e}); {EXPECTED}"));
    let wanted = [Version::Binary, Version::Python].map(|version| version.batches(split)).concat();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed).take(MAX_ARCHIVE));
    let mut batches = HashMap::new();
    // Raw: the names of batches are short, and those that are not are never read into memory.
    for entry in archive.entries().map_err(wrong)?.raw(true) {
        let entry = entry.map_err(wrong)?;
        let name = entry.path().ok().and_then(|p| Some(p.file_name()?.to_str()?.to_string())).unwrap_or_default();
        if wanted.contains(&name) && entry.header().entry_type().is_file() {
            let size = entry.size();
            let batch = spill::unpack(path, &name, entry, MAX_BATCH)?;
            if batch.len() as u64 != size {
                return Err(Error::file(path, format!("`{name}` is cut off: fetch the archive again")));
            }
            batches.insert(name, batch);
        }
    }
    Ok(batches)
}

/// Joins the batches of a split.
fn gather(
    path: &Path,
    version: Version,
    split: Split,
    mut batch: impl FnMut(&str) -> Result<Option<Bytes>>,
) -> Result<Opened> {
    let mut arrays = Arrays::empty(SHAPE, Order::Planes);
    let mut labels = Vec::new();
    for name in version.batches(split) {
        let bytes = batch(&name)?
            .ok_or_else(|| Error::file(path, format!("lacks `{name}` of CIFAR-10: unpack the whole archive")))?;
        let (head, records, classes) = match version {
            Version::Binary => binary(&bytes).map(|classes| (1, bytes, classes)),
            Version::Python => python(&bytes).map(|(data, classes)| (0, data, classes)),
        }
        .map_err(|e| Error::file(path, format!("`{name}` {e}")))?;
        if let Some(i) = classes.iter().position(|class| !(0..CLASSES).contains(class)) {
            let found = format!("`{name}`: image {i} has class {}, expected 0…9", classes[i]);
            return Err(Error::file(path, format!("{found}: the file is damaged")));
        }
        arrays.push(head, records);
        labels.extend(classes);
    }
    Ok(Opened { reader: Reader::Arrays(arrays), labels: Some(labels) })
}

/// The classes of a binary batch, or what is wrong with it.
fn binary(batch: &[u8]) -> Checked<Vec<i64>> {
    if batch.is_empty() || !batch.len().is_multiple_of(1 + SIZE) {
        return Err(format!("has {} bytes, expected a multiple of {}: the file is damaged", batch.len(), 1 + SIZE));
    }
    Ok(batch.iter().step_by(1 + SIZE).map(|&class| i64::from(class)).collect())
}

/// Images and classes of a pickled batch, or what is wrong with it.
fn python(batch: &Bytes) -> Checked<(Bytes, Vec<i64>)> {
    let (data, columns, labels) = pickled::read(batch)?;
    if columns != SIZE {
        return Err(format!("has images of {columns} values, expected {SIZE}"));
    }
    Ok((data, labels))
}
