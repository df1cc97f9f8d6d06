//! Arrays of NumPy's `.npz` files.

use super::arrays::{Arrays, Order};
use super::files::{Zip, open_zip};
use super::{Checked, Opened, Reader, spill};
use crate::labels;
use bytes::Bytes;
use lcsc_torch::{Error, Result};
use npyz::{DType, NpyHeader, TypeChar};
use std::io::{Cursor, Read};
use std::path::Path;

/// Names of an array of images, the first that is there.
const IMAGES: [&str; 3] = ["arr_0", "images", "x"];
/// Names of an array of classes.
const LABELS: [&str; 3] = ["arr_1", "labels", "y"];
/// Most bytes of an array's header.
const MAX_HEADER: u64 = 1 << 16;

/// An array in row-major order.
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    /// Of little-endian values.
    kind: ValueType,
    pub(super) bytes: Bytes,
}

/// Whether a zip holds arrays, and nothing else.
pub(super) fn is_npz(archive: &Zip) -> bool {
    !archive.is_empty() && archive.file_names().all(|name| name.is_ok_and(|name| name.ends_with(".npy")))
}

/// The images of an npz, u8 N×H×W×C or N×H×W, with their classes where it has any.
///
/// # Errors
/// It is damaged, or holds something else.
pub(super) fn open(path: &Path, bytes: Bytes) -> Result<Opened> {
    let mut archive = open_zip(path, bytes.clone())?;
    let wrong = |message: String| Error::file(path, message);
    let expected = "expected u8 images N×H×W×C (C = 1 or 3) or N×H×W as `arr_0`, `images` or `x`";
    let mut first = |names: [&'static str; 3]| -> Result<Option<(&str, Array)>> {
        let Some(name) = names.into_iter().find(|name| has(&archive, name)) else { return Ok(None) };
        Ok(Some((name, read(path, &bytes, &mut archive, name)?)))
    };
    let (name, images) = first(IMAGES)?.ok_or_else(|| wrong(format!("holds no images; {expected}")))?;
    let found = format!("`{name}` is {:?} of shape {:?}", images.kind, images.shape);
    let (count, shape) = match *images.shape.as_slice() {
        [n, h, w, c @ (1 | 3)] => (n, [c, h, w]),
        [n, h, w] => (n, [1, h, w]),
        _ => return Err(wrong(format!("{found}; {expected}"))),
    };
    if images.kind != (TypeChar::Uint, 1) || images.bytes.is_empty() {
        return Err(wrong(format!("{found}; {expected}")));
    }
    let labels = first(LABELS)?.map(|(name, array)| classes(name, &array, count)).transpose().map_err(wrong)?;
    let mut arrays = Arrays::empty(shape, Order::Pixels);
    arrays.push(0, images.bytes);
    Ok(Opened { reader: Reader::Arrays(arrays), labels })
}

/// The classes of `count` images, or what is wrong with them.
fn classes(name: &str, array: &Array, count: usize) -> Checked<Vec<i64>> {
    if array.shape != [count] {
        return Err(format!("`{name}` has shape {:?}, expected a class for each of {count} images", array.shape));
    }
    let values = array.integers().ok_or_else(|| format!("`{name}` holds no integers, expected classes 0, 1, …"))?;
    labels::check(&values).map_err(|e| format!("`{name}`: {e}"))?;
    Ok(values)
}

impl Array {
    /// The values of an array of integers; none of another one.
    pub(super) fn integers(&self) -> Option<Vec<i64>> {
        let (kind, width) = self.kind;
        let signed = match kind {
            TypeChar::Int => true,
            TypeChar::Uint => false,
            _ => return None,
        };
        let value = |bytes: &[u8]| {
            let negative = signed && bytes.last().is_some_and(|top| top >> 7 == 1);
            let mut value = [if negative { 255 } else { 0 }; 8];
            value[..width].copy_from_slice(bytes);
            i64::from_le_bytes(value)
        };
        Some(self.bytes.chunks_exact(width).map(value).collect())
    }

    /// Whether it is of u8.
    pub(super) fn is_u8(&self) -> bool {
        self.kind == (TypeChar::Uint, 1)
    }
}

/// Whether a zip has an array of this name.
pub(super) fn has(archive: &Zip, name: &str) -> bool {
    archive.index_for_name(&npyz::npz::file_name_from_array_name(name)).is_some()
}

/// An array of an npz: mapped where it is stored as it is, else unpacked to disk.
///
/// # Errors
/// It is missing, damaged, big-endian, in column order, or of something else than numbers.
pub(super) fn read(path: &Path, whole: &Bytes, archive: &mut Zip, name: &str) -> Result<Array> {
    let wrong = |e: String| Error::file(path, format!("`{name}` {e}"));
    let file = npyz::npz::file_name_from_array_name(name);
    let mut entry = archive.by_name(&file).map_err(|e| wrong(format!("cannot be read ({e})")))?;
    let (size, start) = (entry.size(), entry.data_start());
    let bytes = match (entry.compression(), start) {
        (zip::CompressionMethod::Stored, Some(start)) => {
            let range =
                usize::try_from(start).ok().zip(start.checked_add(size).and_then(|end| usize::try_from(end).ok()));
            let range = range.filter(|(start, end)| start <= end && *end <= whole.len());
            let (start, end) = range.ok_or_else(|| wrong("is cut off: the file is damaged".into()))?;
            whole.slice(start..end)
        }
        _ => {
            // No more than the array's own header promises.
            let (_, _, values) = described(&mut entry.by_ref().take(MAX_HEADER)).map_err(wrong)?;
            drop(entry);
            let entry = archive.by_name(&file).map_err(|e| wrong(format!("cannot be read ({e})")))?;
            spill::unpack(path, name, entry, (values as u64).saturating_add(MAX_HEADER))?
        }
    };
    parse(&bytes).map_err(wrong)
}

/// An array of a `.npy` file, or what is wrong with it.
fn parse(npy: &Bytes) -> Checked<Array> {
    let mut reader = Cursor::new(npy.as_ref());
    let (shape, kind, expected) = described(&mut reader)?;
    let bytes = npy.slice((reader.position() as usize).min(npy.len())..);
    if bytes.len() != expected {
        return Err(format!("has {} bytes, not those of shape {shape:?}: the file is damaged", bytes.len()));
    }
    Ok(Array { shape, kind, bytes })
}

/// The type of values: NumPy's letter, and bytes of one.
type ValueType = (TypeChar, usize);

/// Shape, type and bytes of the values that follow the header of a `.npy` file, or what is wrong with it.
fn described(reader: &mut impl Read) -> Checked<(Vec<usize>, ValueType, usize)> {
    let header = NpyHeader::from_reader(reader).map_err(|e| format!("is no array ({e})"))?;
    let kind = match header.dtype() {
        DType::Plain(ty) => {
            let width = usize::try_from(ty.size_field()).unwrap_or(0);
            let usable = matches!(ty.type_char(), TypeChar::Int | TypeChar::Uint | TypeChar::Float)
                && matches!(width, 1 | 2 | 4 | 8)
                && ty.endianness() != npyz::Endianness::Big;
            usable.then_some((ty.type_char(), width))
        }
        _ => None,
    };
    let kind = kind.ok_or_else(|| format!("has type {}, expected little-endian numbers", header.dtype().descr()))?;
    let shape = header.shape().iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
    let bytes = shape.as_ref().and_then(|s| s.iter().try_fold(kind.1, |n, &axis| n.checked_mul(axis)));
    if header.order() != npyz::Order::C {
        return Err("lies in column order: save it with numpy.ascontiguousarray".into());
    }
    match shape.zip(bytes) {
        Some((shape, bytes)) => Ok((shape, kind, bytes)),
        None => Err(format!("has the impossible shape {:?}: the file is damaged", header.shape())),
    }
}
