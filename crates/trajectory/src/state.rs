//! The training state: what a killed run needs to go on as if nothing had happened.

use crate::{METADATA, RunFolder};
use lcsc_torch::{Context, Error, Group, Result, SafeFile, Tensor, serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The tensor at the end of the file: BLAKE3 of all bytes before it. Files are sorted by type, then name, and u8 with
/// this name comes last.
const HASH: &str = "~blake3";
const HASH_BYTES: usize = blake3::OUT_LEN;

/// The latest training state of a run.
#[derive(Debug)]
pub struct TrainingState {
    /// Parameters, moments, EMA tracks: by name, each in its own type, on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
    /// Everything that is no tensor.
    pub meta: serde_json::Value,
}

impl TrainingState {
    /// Reads the state of a run, none if it has not got so far, after checking that it is the one that was written.
    ///
    /// # Errors
    /// The file cannot be read, or is torn or altered.
    pub fn load(run: &RunFolder) -> Result<Option<Self>> {
        read(run)?.map(|bytes| Self::parse(run, bytes)).transpose()
    }

    /// The same on all ranks; rank 0 reads the file.
    ///
    /// # Errors
    /// Those of [`Self::load`], on all ranks. Another rank is gone.
    pub fn load_shared(run: &RunFolder, group: &Group) -> Result<Option<Self>> {
        let own = if group.leads() { read(run) } else { Ok(None) };
        let bytes = group.sent(group.all_ok(own)?.unwrap_or_default())?;
        if bytes.is_empty() { Ok(None) } else { Self::parse(run, bytes).map(Some) }
    }

    fn parse(run: &RunFolder, bytes: Vec<u8>) -> Result<Self> {
        let path = state_path(run);
        let is_whole = bytes.split_last_chunk::<HASH_BYTES>().is_some_and(|(rest, hash)| blake3::hash(rest) == *hash);
        if !is_whole {
            let message = "torn or altered: its content does not fit its BLAKE3 hash; restore it from a copy, or delete \
                           it: the run then trains from the beginning, and its checkpoints can be searched as they are \
                           (lcsc search --name NAME)";
            return Err(Error::file(path, message));
        }
        let file = SafeFile::from_bytes(&path, bytes)?;
        let names = file.names().into_iter().filter(|name| name != HASH);
        let tensors = names.map(|name| Ok((name.clone(), file.tensor(&name)?))).collect::<Result<_>>()?;
        let meta = serde_json::from_str(file.metadata(METADATA)?)
            .map_err(|e| Error::file(&path, format!("metadata entry `{METADATA}` is not JSON: {e}")))?;
        Ok(Self { tensors, meta })
    }
}

/// The bytes of the state file, where there is one.
fn read(run: &RunFolder) -> Result<Option<Vec<u8>>> {
    let path = state_path(run);
    if path.exists() { std::fs::read(&path).at(&path).map(Some) } else { Ok(None) }
}

/// Where the state of a run lies.
pub(crate) fn state_path(run: &RunFolder) -> PathBuf {
    run.state().join("state.safetensors")
}

/// The bytes of a state file.
pub(crate) fn state_bytes(mut tensors: Vec<(String, Tensor)>, metadata: &str) -> Result<Vec<u8>> {
    tensors.push((HASH.into(), Tensor::f_from_slice(&[0u8; HASH_BYTES])?));
    let mut bytes = serialize(&tensors, (METADATA, metadata))?;
    let data = bytes.len() - HASH_BYTES;
    let (rest, hash) = bytes.split_at_mut(data);
    hash.copy_from_slice(blake3::hash(rest).as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writer;
    use lcsc_torch::{Device, Kind};

    fn saved() -> (tempfile::TempDir, RunFolder) {
        let temp = tempfile::tempdir().unwrap();
        let run = RunFolder::create(temp.path()).unwrap();
        let mut writer = Writer::start(&run).unwrap();
        let tensors = vec![
            ("theta".to_string(), Tensor::from_slice(&[1f32, -0.0])),
            ("steps".to_string(), Tensor::from_slice(&[7i64])),
            ("z.bytes".to_string(), Tensor::from_slice(&[1u8, 2, 3])),
            ("sum".to_string(), Tensor::from_slice(&[0.1f64])),
        ];
        writer.state(tensors, r#"{"nimg": 18446744073709551615, "loss": 0.1}"#.into()).unwrap();
        writer.finish().unwrap();
        (temp, run)
    }

    #[test]
    fn tensors_and_values_come_back_exactly() {
        let (_temp, run) = saved();
        let state = TrainingState::load(&run).unwrap().unwrap();
        assert_eq!(state.tensors.keys().collect::<Vec<_>>(), ["steps", "sum", "theta", "z.bytes"]);
        assert_eq!(crate::testing::bits(&state.tensors["theta"]), [1f32.to_bits(), (-0f32).to_bits()]);
        assert_eq!(state.tensors["steps"].int64_value(&[0]), 7);
        assert_eq!(state.tensors["sum"].kind(), Kind::Double);
        assert_eq!(state.tensors["sum"].device(), Device::Cpu);
        assert_eq!(state.meta["nimg"].as_u64(), Some(u64::MAX));
        assert_eq!(state.meta["loss"].as_f64(), Some(0.1));
    }

    #[test]
    fn every_altered_byte_and_every_length_is_detected() {
        let (_temp, run) = saved();
        let path = state_path(&run);
        let good = std::fs::read(&path).unwrap();
        let refused = |bad: &[u8]| {
            std::fs::write(&path, bad).unwrap();
            let text = TrainingState::load(&run).unwrap_err().to_string();
            assert!(text.contains("state.safetensors: torn or altered"), "{text}");
        };
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x20;
            refused(&bad);
        }
        refused(&good[..good.len() - 1]);
        refused(b"");
    }

    #[test]
    fn a_run_without_a_state_has_none() {
        let temp = tempfile::tempdir().unwrap();
        assert!(TrainingState::load(&RunFolder::create(temp.path()).unwrap()).unwrap().is_none());
    }
}
