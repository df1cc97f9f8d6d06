//! Checkpoints on disk and their list, the manifest.

use crate::{JsonLines, RunFolder};
use lcsc_torch::{Device, Error, ParamLayout, Result, SafeFile, StorageDtype, Weights, load_weights, write_atomic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name of the metadata entry in all our safetensors files.
pub const METADATA: &str = "lcsc";

const REMEDY: &str = "resume training from an earlier state to write it again, or delete its line in manifest.jsonl \
                      to leave it out";

/// One saved checkpoint: a line of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The stage that was being trained.
    pub stage: String,
    /// Images trained in that stage.
    pub nimg: u64,
    /// Images trained over the whole run.
    pub total_nimg: u64,
    /// `raw`, or the name of an EMA track.
    pub track: String,
    /// The type of the parameters in the file.
    pub dtype: StorageDtype,
    /// The file's name in the trajectory folder.
    pub file: String,
    /// The file's length.
    pub bytes: u64,
    /// The file's BLAKE3 hash, hexadecimal.
    pub blake3: String,
}

impl Checkpoint {
    /// A checkpoint still to be written: the writer fills in length and hash.
    pub fn new(stage: &str, nimg: u64, total_nimg: u64, track: &str, dtype: StorageDtype) -> Self {
        let file = format!("ckpt-{total_nimg:012}-{track}.safetensors");
        let (stage, track) = (stage.to_string(), track.to_string());
        Self { stage, nimg, total_nimg, track, dtype, file, bytes: 0, blake3: String::new() }
    }

    /// Reads the weights onto `device`, in f32, after checking that the file is the one that was written.
    ///
    /// # Errors
    /// The file is missing, torn or altered, or does not fit `layout`.
    pub fn load(&self, run: &RunFolder, layout: &ParamLayout, device: Device) -> Result<Weights> {
        let path = run.trajectory().join(&self.file);
        let bytes = std::fs::read(&path).map_err(|e| Error::file(&path, format!("unreadable: {e}; {REMEDY}")))?;
        let found = blake3::hash(&bytes).to_hex();
        if found.as_str() != self.blake3 {
            let message = format!(
                "torn or altered: {} bytes with BLAKE3 {found}, the manifest says {} bytes with BLAKE3 {}; {REMEDY}",
                bytes.len(),
                self.bytes,
                self.blake3
            );
            return Err(Error::file(path, message));
        }
        load_weights(layout, &SafeFile::from_bytes(path, bytes)?, device)
    }
}

/// The list of a run's checkpoints, `trajectory/manifest.jsonl`.
#[derive(Debug)]
pub struct Manifest;

impl Manifest {
    /// All checkpoints by images and track. Of two lines about one file the later holds: a resumed run may have written
    /// the checkpoint again.
    ///
    /// # Errors
    /// The manifest cannot be read, or has a bad line before its end.
    pub fn read(run: &RunFolder) -> Result<Vec<Checkpoint>> {
        let lines = JsonLines::<Checkpoint>::read(run.manifest())?;
        let newest: BTreeMap<_, _> = lines.into_iter().map(|c| ((c.total_nimg, c.track.clone()), c)).collect();
        Ok(newest.into_values().collect())
    }

    /// Forgets checkpoints of more than `total_nimg` images, which are about to be trained again, perhaps under other
    /// settings. Their files stay.
    ///
    /// # Errors
    /// The manifest cannot be read or written.
    pub fn cut(run: &RunFolder, total_nimg: u64) -> Result<()> {
        let (path, all) = (run.manifest(), Self::read(run)?);
        if all.iter().all(|c| c.total_nimg <= total_nimg) {
            return Ok(());
        }
        let mut text = String::new();
        for checkpoint in all.iter().filter(|c| c.total_nimg <= total_nimg) {
            text.push_str(&serde_json::to_string(checkpoint).map_err(|e| Error::file(&path, e.to_string()))?);
            text.push('\n');
        }
        write_atomic(path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{layout, trajectory};

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit() {
        let (_temp, run, thetas) = trajectory(3, StorageDtype::F32);
        let checkpoints = Manifest::read(&run).unwrap();
        assert_eq!(checkpoints[1].file, "ckpt-000000000200-raw.safetensors");
        for (checkpoint, theta) in checkpoints.iter().zip(&thetas) {
            assert!(checkpoint.load(&run, &layout(), Device::Cpu).unwrap().theta.equal(theta));
        }
    }

    #[test]
    fn altered_torn_and_missing_files_are_named() {
        let (_temp, run, _) = trajectory(1, StorageDtype::F32);
        let checkpoint = Manifest::read(&run).unwrap().remove(0);
        let path = run.trajectory().join(&checkpoint.file);
        let good = std::fs::read(&path).unwrap();
        let load = || checkpoint.load(&run, &layout(), Device::Cpu).unwrap_err().to_string();
        let mut altered = good.clone();
        *altered.last_mut().unwrap() ^= 1;
        for bad in [&altered[..], &good[..good.len() - 1], b""] {
            std::fs::write(&path, bad).unwrap();
            let text = load();
            assert!(text.contains(&checkpoint.file) && text.contains(&checkpoint.blake3), "{text}");
            assert!(text.contains(blake3::hash(bad).to_hex().as_str()) && text.contains("resume training"), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        let text = load();
        assert!(text.contains(&checkpoint.file) && text.contains("resume training"), "{text}");
    }

    #[test]
    fn the_later_line_about_a_file_holds_and_lines_are_sorted() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunFolder::create(temp.path()).unwrap();
        let (mut lines, _) = JsonLines::open(run.manifest()).unwrap();
        for (nimg, track, bytes) in [(20, "raw", 1), (10, "raw", 2), (10, "ema-p0.050", 3), (20, "raw", 4)] {
            lines.append(&Checkpoint { bytes, ..Checkpoint::new("s", nimg, nimg, track, StorageDtype::F32) }).unwrap();
        }
        let bytes: Vec<u64> = Manifest::read(&run).unwrap().iter().map(|c| c.bytes).collect();
        assert_eq!(bytes, [3, 2, 4]);
    }

    #[test]
    fn checkpoints_that_are_trained_again_are_forgotten() {
        let (_temp, run, _) = trajectory(4, StorageDtype::F32);
        let listed = || Manifest::read(&run).unwrap().iter().map(|c| c.total_nimg).collect::<Vec<_>>();
        Manifest::cut(&run, 400).unwrap();
        assert_eq!(listed(), [100, 200, 300, 400]);
        Manifest::cut(&run, 250).unwrap();
        assert_eq!(listed(), [100, 200]);
        assert!(run.trajectory().join("ckpt-000000000300-raw.safetensors").exists());
    }
}
