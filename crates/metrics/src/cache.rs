//! Tensors that are dear to compute, kept as files between runs. A cache never fails a run: it only warns.

use lcsc_torch::{Context, Error, Result, SafeFile, Tensor, serialize, write_atomic};
use serde::{Deserialize, Serialize};
use std::path::Path;

const ENTRY: &str = "lcsc-metrics";

/// What the metadata of a cached file says.
#[derive(Serialize, Deserialize)]
struct Seal {
    /// All that the tensors depend on.
    key: String,
    /// Hash of names, shapes and values.
    blake3: String,
}

/// The tensors of `folder`/`name`.safetensors, or those that `make` gives, which are then kept there.
///
/// A file that is damaged or belongs to another `key` is made again with a warning; a folder that cannot be written
/// is a warning too.
///
/// # Errors
/// Those of `make`.
pub(crate) fn cached(
    folder: Option<&Path>,
    name: &str,
    key: &str,
    make: impl FnOnce() -> Result<Vec<(String, Tensor)>>,
) -> Result<SafeFile> {
    let path = folder.unwrap_or(Path::new("")).join(format!("{name}.safetensors"));
    if folder.is_some() && path.exists() {
        match open(&path, key) {
            Ok(file) => return Ok(file),
            Err(e) => tracing::warn!("{e}; this cached file is made again"),
        }
    }
    let bytes = sealed(&make()?, key)?;
    if let Some(folder) = folder {
        let written = std::fs::create_dir_all(folder).at(folder).and_then(|()| write_atomic(&path, &bytes));
        if let Err(e) = written {
            tracing::warn!("{e}; the run goes on without keeping {name}, which the next run has to compute again");
        }
    }
    SafeFile::from_bytes(path, bytes)
}

/// The bytes of a cached file.
fn sealed(tensors: &[(String, Tensor)], key: &str) -> Result<Vec<u8>> {
    let seal = Seal { key: key.to_string(), blake3: fingerprint(tensors)? };
    let seal =
        serde_json::to_string(&seal).map_err(|e| Error::msg(format!("writing a cached file's metadata: {e}")))?;
    serialize(tensors, (ENTRY, &seal))
}

fn open(path: &Path, key: &str) -> Result<SafeFile> {
    let file = SafeFile::open(path)?;
    let seal: Seal = serde_json::from_str(file.metadata(ENTRY)?)
        .map_err(|e| Error::file(path, format!("its metadata `{ENTRY}` cannot be read ({e})")))?;
    if seal.key != key {
        return Err(Error::file(path, format!("was made for `{}`, not for `{key}`", seal.key)));
    }
    if seal.blake3 != fingerprint(&file.tensors()?)? {
        return Err(Error::file(path, "its values do not have the hash that was noted when it was written"));
    }
    Ok(file)
}

/// blake3 of names, shapes and values, in hexadecimal.
pub(crate) fn fingerprint(tensors: &[(String, Tensor)]) -> Result<String> {
    Ok(blake3::hash(&serialize(tensors, (ENTRY, ""))?).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn tensors() -> Result<Vec<(String, Tensor)>> {
        Ok(vec![("b".into(), Tensor::from_slice(&[1f64, 2.0])), ("a".into(), Tensor::from_slice(&[3i64]))])
    }

    #[test]
    fn kept_tensors_come_back_and_damage_is_repaired() {
        let folder = tempfile::tempdir().unwrap();
        let made = Cell::new(0);
        let get = |key| {
            let make = || {
                made.set(made.get() + 1);
                tensors()
            };
            let file = cached(Some(&folder.path().join("new")), "x", key, make).unwrap();
            assert_eq!(file.tensor("b").unwrap().double_value(&[1]), 2.0);
            made.get()
        };
        assert_eq!((get("k"), get("k")), (1, 1));
        assert_eq!((get("other"), get("other")), (2, 2));
        let path = folder.path().join("new/x.safetensors");
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&flipped[..], &whole[..whole.len() - 1], b"", b"not a file of tensors"] {
            std::fs::write(&path, damaged).unwrap();
            let before = made.get();
            assert_eq!((get("other"), get("other")), (before + 1, before + 1));
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn without_a_writable_folder_the_tensors_are_made() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for folder in [None, Some(file.path())] {
            assert_eq!(cached(folder, "x", "k", tensors).unwrap().names(), ["a", "b"]);
        }
    }
}
