//! Files as shared bytes, without their being read into memory.

use bytes::Bytes;
use lcsc_torch::{Context, Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How a gzip file begins.
pub(super) const GZIP: &[u8] = &[0x1f, 0x8b];

/// The bytes of a file, mapped.
pub(super) fn map(path: &Path) -> Result<Bytes> {
    map_file(&File::open(path).at(path)?).at(path)
}

/// The bytes of an open file, mapped.
pub(super) fn map_file(file: &File) -> std::io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is only read; a dataset is not to be changed while it is read, as with any other reader.
    Ok(Bytes::from_owner(unsafe { Mmap::map(file)? }))
}

/// The bytes of a part of `path` that is packed, unpacked into a file without a name in the folder for temporary ones.
///
/// # Errors
/// It is damaged, has more than `limit` bytes, or the disk is full.
pub(super) fn unpack(path: &Path, name: &str, packed: impl Read, limit: u64) -> Result<Bytes> {
    let wrong = |e: std::io::Error| Error::file(path, format!("`{name}` cannot be unpacked ({e})"));
    let mut file = tempfile::tempfile().map_err(wrong)?;
    let copied = std::io::copy(&mut packed.take(limit.saturating_add(1)), &mut file).map_err(wrong)?;
    if copied > limit {
        return Err(Error::file(
            path,
            format!("`{name}` has more than the expected {limit} bytes: the file is damaged"),
        ));
    }
    map_file(&file).map_err(wrong)
}
