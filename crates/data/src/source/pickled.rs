//! Batches that were pickled: a dict of `data` u8 [N,D] and `labels`, as of CIFAR-10 and the downsampled ImageNet.

use super::Checked;
use bytes::Bytes;
use lcsc_pickle::{Pickle, numpy::Array};
use std::borrow::Cow;

/// The images, the length D of one, and the labels of a batch, or what is wrong with it.
pub(super) fn read(batch: &Bytes) -> Checked<(Bytes, usize, Vec<i64>)> {
    let wrong = |e: lcsc_pickle::Error| format!("cannot be read ({e})");
    let pickle = Pickle::parse(batch).map_err(wrong)?;
    let entries = pickle.entries(pickle.root()).unwrap_or_default();
    // Python 3 may have written keys of Python 2 as bytes in text.
    let is = |node, key: &str| {
        pickle.bytes(node).is_ok_and(|found| *found == *key.as_bytes()) || pickle.text(node) == Ok(key)
    };
    let key = |key: &str| {
        let entry = entries.iter().rev().find(|(node, _)| is(*node, key));
        entry.map(|(_, value)| *value).ok_or_else(|| format!("is no pickled dict with `{key}`: the file is damaged"))
    };
    let Array { shape, dtype, bytes } = Array::read(&pickle, key("data")?).map_err(wrong)?;
    let &[images, columns] = shape.as_slice() else {
        return Err(format!("has `data` of shape {shape:?}, expected [N, D]"));
    };
    if dtype != "u1" || images == 0 || columns == 0 {
        return Err(format!("has `data` of type `{dtype}` and shape {shape:?}, expected some images of `u1`"));
    }
    let labels = pickle.tuple(key("labels")?).map_err(wrong)?;
    let labels = labels.iter().map(|&label| pickle.int(label)).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    if labels.len() != images {
        return Err(format!("has {} labels for {images} images: the file is damaged", labels.len()));
    }
    let data = match bytes {
        Cow::Borrowed(data) => batch.slice_ref(data),
        Cow::Owned(data) => data.into(),
    };
    Ok((data, columns, labels))
}
