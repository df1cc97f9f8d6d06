//! The downsampled ImageNet (Chrabaszcz et al. 2017) as it is published: ten batches for training and one of validation.
//!
//! A batch is an `.npz` or a pickled dict of `data` u8 [N,3·S·S], planes, and `labels` 1…1000.

use super::arrays::{Arrays, Order};
use super::{Opened, Reader, files, npz, pickled, spill};
use crate::config::Split;
use bytes::Bytes;
use lcsc_torch::{Context, Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const TRAIN: &str = "train_data_batch_";
const TEST: &str = "val_data";
const CLASSES: i64 = 1000;

/// Images, values of one, and labels.
type Batch = (Bytes, usize, Vec<i64>);

/// The dataset whose batches lie in a folder; none where it holds something else.
///
/// # Errors
/// A batch is missing or damaged, or they differ in size.
pub(super) fn open_folder(path: &Path, split: Split) -> Result<Option<Opened>> {
    let names = names(path)?;
    if !names.iter().any(|name| name.starts_with(TRAIN) || stem(name) == TEST) {
        return Ok(None);
    }
    let batches = match split {
        Split::Train => numbered(path, &names)?,
        Split::Test => vec![one(path, &names, TEST)?],
    };
    let mut joined: Option<(usize, Arrays)> = None;
    let mut labels = Vec::new();
    for batch in batches {
        let (data, columns, classes) = read(&batch)?;
        let (first, arrays) = match &mut joined {
            Some(joined) => joined,
            None => joined.insert((columns, Arrays::empty(shape(&batch, columns)?, Order::Planes))),
        };
        if *first != columns {
            let found = format!("has images of {columns} values, the first batch {first}");
            return Err(Error::file(&batch, format!("{found}: keep one size in a folder")));
        }
        arrays.push(0, data);
        labels.extend(zero_based(&batch, &classes)?);
    }
    Ok(joined.map(|(_, arrays)| Opened { reader: Reader::Arrays(arrays), labels: Some(labels) }))
}

/// C×H×W of images of so many values.
fn shape(batch: &Path, columns: usize) -> Result<[usize; 3]> {
    let side = (columns / 3).isqrt();
    if 3 * side * side == columns {
        Ok([3, side, side])
    } else {
        Err(Error::file(batch, format!("has images of {columns} values, expected 3·S·S of S×S pixels")))
    }
}

/// Classes 0…999 of labels 1…1000.
fn zero_based(batch: &Path, labels: &[i64]) -> Result<Vec<i64>> {
    match labels.iter().position(|label| !(1..=CLASSES).contains(label)) {
        None => Ok(labels.iter().map(|label| label - 1).collect()),
        Some(i) => {
            let found = format!("`labels`: image {i} has {}, expected 1…{CLASSES}", labels[i]);
            Err(Error::file(batch, format!("{found}: the file is damaged")))
        }
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).at(folder)?.collect::<std::io::Result<Vec<_>>>().at(folder)?;
    Ok(entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn stem(name: &str) -> &str {
    name.trim_end_matches(".npz")
}

/// The batches for training, 1, 2, … without a gap.
fn numbered(folder: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let count =
        names.iter().map(|name| stem(name)).filter(|name| name.starts_with(TRAIN)).collect::<BTreeSet<_>>().len();
    (1..=count.max(1)).map(|i| one(folder, names, &format!("{TRAIN}{i}"))).collect()
}

/// The file of a batch.
fn one(folder: &Path, names: &[String], batch: &str) -> Result<PathBuf> {
    let name = names.iter().find(|name| stem(name) == batch);
    let name =
        name.ok_or_else(|| Error::file(folder, format!("lacks the batch `{batch}` or `{batch}.npz`: unpack all")))?;
    Ok(folder.join(name))
}

fn read(path: &Path) -> Result<Batch> {
    let bytes = spill::map(path)?;
    if !bytes.starts_with(b"PK") {
        return pickled::read(&bytes).map_err(|e| Error::file(path, e));
    }
    let mut archive = files::open_zip(path, bytes.clone())?;
    let data = npz::read(path, &bytes, &mut archive, "data")?;
    let labels = npz::read(path, &bytes, &mut archive, "labels")?;
    let expected = "expected u8 `data` [N, D] and integer `labels` [N]";
    let wrong = || Error::file(path, format!("`data` {:?} and `labels` {:?}: {expected}", data.shape, labels.shape));
    let &[images, columns] = data.shape.as_slice() else { return Err(wrong()) };
    let classes = labels.integers().filter(|_| data.is_u8() && labels.shape == [images] && !data.bytes.is_empty());
    Ok((data.bytes.clone(), columns, classes.ok_or_else(wrong)?))
}
