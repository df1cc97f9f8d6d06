//! Weights files of other programs: PyTorch's (zip and legacy), pickled modules as EDM's snapshots hold them, safetensors.

mod container;
mod state_dict;
mod storage;
mod tensors;

use lcsc_torch::{Error, Result, SafeFile, Tensor};
use std::collections::HashSet;
use std::path::Path;

pub use state_dict::state_dict;

/// The named tensors in a file, on the CPU, in the file's order (of safetensors in that of their names); `key` chooses among several networks (`ema`, `state_dict`, …).
///
/// A file that holds one network needs no key; of several `ema` is taken. The prefix `module.` of parallel wrappers is left
/// out. Nothing that a file names is executed, and memory is bounded by the file's length (see the crate
/// `lcsc-pickle`; tensors and their names take at most four times as much).
///
/// # Errors
/// The file is damaged, names something that weights do not need, or holds no network or several.
pub fn read_tensors(path: &Path, bytes: &[u8], key: Option<&str>) -> Result<Vec<(String, Tensor)>> {
    let named = |e: Error| Error::file(path, e.to_string());
    let tensors = if bytes.starts_with(b"PK") {
        container::read_zip(bytes, key).map_err(named)?
    } else if is_safetensors(bytes) {
        SafeFile::from_bytes(path, bytes.to_vec())?.tensors()?
    } else {
        container::read_pickle(bytes, key).map_err(named)?
    };
    let mut names = HashSet::new();
    match tensors.iter().find(|(name, _)| !names.insert(name)) {
        None => Ok(without_wrapper(tensors)),
        Some((name, _)) => Err(Error::file(path, format!("holds two tensors `{name}`"))),
    }
}

/// Whether the file begins with the length of a JSON header inside it.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= rest.len() as u64
}

/// The names without the prefix of `DataParallel`.
fn without_wrapper(tensors: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    const WRAPPER: &str = "module.";
    if tensors.iter().any(|(name, _)| !name.starts_with(WRAPPER)) {
        return tensors;
    }
    tensors.into_iter().map(|(name, tensor)| (name[WRAPPER.len()..].to_string(), tensor)).collect()
}

#[cfg(test)]
mod tests;
