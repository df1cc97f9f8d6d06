//! Checkpoints on disk and their list, the manifest.

use crate::{JsonLines, RunFolder};
use lcsc_torch::{Device, Error, ParamLayout, Result, SafeFile, StorageDtype, Weights, load_weights};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The name of the metadata entry in all our safetensors files.
pub const METADATA: &str = "lcsc";

pub(crate) const REMEDY: &str = "resume training from an earlier state to write it again; where there is none, delete its line in \
                      manifest.jsonl to leave it out of searches of another --name";

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
        load_weights(layout, &self.open(run)?.0, device)
    }

    /// The file, checked to be the one that was written, with the stamp that it bore before it was read.
    ///
    /// # Errors
    /// The file is missing, torn or altered.
    pub(crate) fn open(&self, run: &RunFolder) -> Result<(SafeFile, Stamp)> {
        let path = run.trajectory().join(&self.file);
        let (bytes, stamp) = read(&path).map_err(|e| unreadable(&path, &e))?;
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
        Ok((SafeFile::from_bytes(path, bytes)?, stamp))
    }
}

/// The stamp is taken first, so that it differs from that of a file that was altered while it was read.
fn read(path: &Path) -> std::io::Result<(Vec<u8>, Stamp)> {
    let mut file = File::open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    let mut bytes = Vec::with_capacity(stamp.bytes as usize);
    file.read_to_end(&mut bytes)?;
    Ok((bytes, stamp))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::file(path, format!("unreadable: {error}; {REMEDY}"))
}

/// What tells whether a file is still the one whose hash was checked, without reading it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    inode: u64,
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { bytes: metadata.len(), modified, inode: metadata.ino() }
    }

    /// Compares with what the system says now about the file at `path`.
    ///
    /// # Errors
    /// It is missing, or bears another stamp.
    pub(crate) fn check(self, path: &Path, now: std::io::Result<Metadata>) -> Result<()> {
        let metadata = now.map_err(|e| unreadable(path, &e))?;
        if Self::of(&metadata) != self {
            let message = format!(
                "torn or altered: it is no longer the file whose BLAKE3 hash was checked (then {} bytes, now {}; time of \
                 change and inode count too); {REMEDY}",
                self.bytes,
                metadata.len()
            );
            return Err(Error::file(path, message));
        }
        Ok(())
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
        JsonLines::<Checkpoint>::retain(run.manifest(), |c| c.total_nimg <= total_nimg)
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
