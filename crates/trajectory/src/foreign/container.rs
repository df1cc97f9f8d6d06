//! The containers that PyTorch writes, and which of the networks inside is meant.

use super::storage::{Storage, Storages};
use super::tensors::{Found, Graph};
use lcsc_pickle::{Node, Pickle};
use lcsc_torch::{Error, Result, Tensor, bail};
use std::collections::HashMap;
use std::io::{Cursor, Read};
use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

/// What `torch.save` began its files with before it wrote zips: 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The longest pickle inside a zip, in bytes: the tensors' values lie beside it.
const PICKLE: u64 = 256 << 20;

fn unpickled<T>(result: lcsc_pickle::Result<T>) -> Result<T> {
    result.map_err(|e| Error::msg(e.to_string()))
}

/// The tensors of a zip: `…/data.pkl` with the storages `…/data/<key>` beside it.
pub(super) fn read_zip(bytes: &[u8], key: Option<&str>) -> Result<Vec<(String, Tensor)>> {
    let broken = |e: &dyn std::fmt::Display| Error::msg(format!("is no whole PyTorch file ({e})"));
    // PyTorch's end records can be taken for those of a zip behind something else, which its files never are.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, Cursor::new(bytes)).map_err(|e| broken(&e))?;
    let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.to_string())).collect();
    let Some(prefix) = names.iter().find_map(|name| name.strip_suffix("data.pkl")) else {
        bail!("is a zip without data.pkl: expected a file that torch.save wrote");
    };
    // Entries may lie over one another: together they are no longer than the file all the same.
    let mut left = bytes.len() as u64;
    let mut entry = |name: &str, limit: u64| -> Result<Vec<u8>> {
        let file = archive.by_name(&format!("{prefix}{name}")).map_err(|e| broken(&e))?;
        if file.compression() != CompressionMethod::Stored {
            bail!("its entry {name} is compressed, which torch.save never does: save it again");
        }
        let limit = limit.min(left);
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content).map_err(|e| broken(&e))?;
        left = left.checked_sub(content.len() as u64).filter(|_| content.len() as u64 <= limit).ok_or_else(|| {
            Error::msg(format!("its entry {name} is larger than {limit} bytes: no file of torch.save's"))
        })?;
        Ok(content)
    };
    if names.iter().any(|name| *name == format!("{prefix}byteorder")) && entry("byteorder", 16)? != b"little" {
        bail!("was written on a big-endian machine: save it again on another");
    }
    let data = entry("data.pkl", PICKLE)?;
    let pickle = unpickled(Pickle::parse(&data))?;
    let mut read = |key: &str| entry(&format!("data/{key}"), bytes.len() as u64);
    let storages = Storages::Entries { read: &mut read, known: HashMap::new() };
    chosen(Graph::new(&pickle, storages, bytes.len()), key)
}

/// The tensors of a legacy file, or of a bare pickle.
pub(super) fn read_pickle(bytes: &[u8], key: Option<&str>) -> Result<Vec<(String, Tensor)>> {
    let first = unpickled(Pickle::parse(bytes))?;
    if *first.node(first.root()) != Node::Long(&MAGIC) {
        return chosen(Graph::new(&first, Storages::None, bytes.len()), key);
    }
    let (pickle, storages) = read_legacy(bytes)?;
    chosen(Graph::new(&pickle, Storages::Known(storages), bytes.len()), key)
}

/// The object of a legacy stream (the fourth pickle: magic number, protocol and system come before it), and the storages
/// that follow it.
pub(super) fn read_legacy(bytes: &[u8]) -> Result<(Pickle<'_>, HashMap<String, Storage<'_>>)> {
    let mut rest = bytes;
    let mut pickles = Vec::new();
    for _ in 0..5 {
        let pickle = unpickled(Pickle::parse(rest))?;
        rest = &rest[pickle.length()..];
        pickles.push(pickle);
    }
    let (Some(keys), Some(object)) = (pickles.pop(), pickles.pop()) else { bail!("is no legacy PyTorch file") };
    let is_legacy = pickles.first().is_some_and(|magic| *magic.node(magic.root()) == Node::Long(&MAGIC));
    if !is_legacy {
        bail!("is no legacy PyTorch file");
    }
    let types = super::storage::types(&object)?;
    let mut storages = HashMap::new();
    for &key in unpickled(keys.tuple(keys.root()))? {
        let key = unpickled(keys.text(key))?;
        let Some(&kind) = types.get(key) else { bail!("holds a storage `{key}` that no tensor has") };
        let (storage, length) = Storage::after_count(rest, kind)?;
        rest = &rest[length..];
        storages.insert(key.to_string(), storage);
    }
    Ok((object, storages))
}

/// The network that is meant among those in a file.
fn chosen(mut graph: Graph, key: Option<&str>) -> Result<Vec<(String, Tensor)>> {
    let root = graph.root();
    if let Some(key) = key {
        return match graph.entry(root, key).and_then(|id| graph.network(id)) {
            Some(found) => graph.tensors(found),
            None => Err(Error::msg(format!("has no network `{key}`{}", listed(&graph.networks(root))))),
        };
    }
    if let Some(found) = graph.network(root) {
        return graph.tensors(found);
    }
    let networks = graph.networks(root);
    match networks.iter().find(|(name, _)| name == "ema").or((networks.len() == 1).then(|| &networks[0])) {
        Some((_, found)) => graph.tensors(*found),
        None if networks.is_empty() => bail!("holds no state dict and no module: expected weights"),
        None => bail!("holds several networks: choose one with --key{}", listed(&networks)),
    }
}

fn listed(networks: &[(String, Found)]) -> String {
    let names: Vec<String> = networks.iter().take(8).map(|(name, _)| format!("`{name}`")).collect();
    if names.is_empty() { String::new() } else { format!("; it holds {}", names.join(", ")) }
}
