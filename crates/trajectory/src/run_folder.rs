//! The folder of one run and the places in it.

use lcsc_torch::{Context, Error, Result};
use std::fs::{File, create_dir_all};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The folder of one run: everything that training, search and report leave behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

/// Holds a run folder for this process; dropping it lets go.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunFolder {
    /// Makes the folder and its sub-folders where they are missing.
    ///
    /// # Errors
    /// A folder cannot be made: no permission, or a file of that name is in the way.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let run = Self { path: path.as_ref().to_path_buf() };
        for folder in [run.trajectory(), run.state(), run.path.join("search"), run.samples()] {
            create_dir_all(&folder).at(&folder)?;
        }
        Ok(run)
    }

    /// The folder as a process names it that leaves it to another, of rank 0, to read and write.
    pub fn of_rank_0(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_path_buf() }
    }

    /// The folder of a run that was begun before.
    ///
    /// # Errors
    /// There is no such run.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let run = Self { path: path.as_ref().to_path_buf() };
        if !run.trajectory().is_dir() {
            let message = "there is no run in this folder (it has no `trajectory/`): `lcsc run CONFIG` or \
                           `lcsc train CONFIG` makes one";
            return Err(Error::file(&run.path, message));
        }
        Ok(run)
    }

    /// Where the files are listed that the checkpoints were imported from; training made them unless it is there.
    pub fn imported(&self) -> PathBuf {
        self.path.join("imported.txt")
    }

    /// Takes the folder for this process, so that two never train or search in it at once, and removes the temporary
    /// files that a killed process left.
    ///
    /// # Errors
    /// Another process holds it, or the file system refuses the lock.
    pub fn lock(&self) -> Result<RunLock> {
        let lock = self.wait_for(fs4::FileExt::try_lock)?;
        remove_temporaries(&self.path)?;
        Ok(lock)
    }

    /// Takes the folder for this process and others that share it so: for workers at one search.
    ///
    /// # Errors
    /// A process holds it for itself, or the file system refuses the lock.
    pub fn lock_shared(&self) -> Result<RunLock> {
        self.wait_for(fs4::FileExt::try_lock_shared)
    }

    /// Whether a process works on the run now.
    ///
    /// # Errors
    /// The lock cannot be asked about.
    pub fn is_locked(&self) -> Result<bool> {
        let path = self.lock_path();
        if !path.exists() {
            return Ok(false);
        }
        // Held for an instant, which others wait for; network file systems lock only what is open for writing.
        let file = File::options().read(true).write(true).open(&path).at(&path)?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => Ok(false),
            Err(fs4::TryLockError::WouldBlock) => Ok(true),
            Err(fs4::TryLockError::Error(e)) => Err(e).at(&path),
        }
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join(".lock")
    }

    fn wait_for(&self, try_lock: fn(&File) -> std::result::Result<(), fs4::TryLockError>) -> Result<RunLock> {
        let path = self.lock_path();
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path).at(&path)?;
        let asked = Instant::now();
        loop {
            match try_lock(&file) {
                Ok(()) => break,
                // A killed process with gigabytes of memory takes a moment to be gone.
                Err(fs4::TryLockError::WouldBlock) if asked.elapsed() < LOCK_PATIENCE => sleep(LOCK_PATIENCE / 10),
                Err(fs4::TryLockError::WouldBlock) => {
                    let message =
                        "another process works on this run: wait for its end, or choose another folder (--out)";
                    return Err(Error::file(&self.path, message));
                }
                Err(fs4::TryLockError::Error(e)) => return Err(e).at(&path),
            }
        }
        Ok(RunLock { _file: file })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved config.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// Training log, JSON lines.
    pub fn train_log(&self) -> PathBuf {
        self.path.join("train.jsonl")
    }

    /// Folder of the checkpoints.
    pub fn trajectory(&self) -> PathBuf {
        self.path.join("trajectory")
    }

    /// The list of checkpoints, JSON lines.
    pub fn manifest(&self) -> PathBuf {
        self.trajectory().join("manifest.jsonl")
    }

    /// Folder of the training state.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Folder of one search.
    pub fn search(&self, name: &str) -> PathBuf {
        self.path.join("search").join(name)
    }

    /// The merged model.
    pub fn merged(&self) -> PathBuf {
        self.path.join("merged.safetensors")
    }

    /// Folder of image grids.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// Folder of TensorBoard's event files of a stage or a search.
    pub fn tensorboard(&self, of: &str) -> PathBuf {
        self.path.join("tensorboard").join(of)
    }

    /// What was said while the run was worked on, as text.
    pub fn log(&self) -> PathBuf {
        self.path.join("log.txt")
    }

    /// The table at the end of a run, JSON.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }
}

/// Removes what atomic writes leave when they are killed, in a folder and all below it.
fn remove_temporaries(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !path.is_symlink() {
            remove_temporaries(&path)?;
        } else if name.starts_with(".tmp") && name.ends_with(".tmp") {
            std::fs::remove_file(&path).at(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_begun_run_opens() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("runs/a");
        let text = RunFolder::open(&path).unwrap_err().to_string();
        assert!(text.contains("runs/a") && text.contains("lcsc run"), "{text}");
        let run = RunFolder::create(&path).unwrap();
        assert!(run.state().is_dir() && run.samples().is_dir());
        assert_eq!(RunFolder::open(&path).unwrap(), run);
        RunFolder::create(&path).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("trajectory"), "").unwrap();
        let text = RunFolder::create(temp.path()).unwrap_err().to_string();
        assert!(text.contains("trajectory"), "{text}");
    }

    #[test]
    fn one_lock_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunFolder::create(temp.path().join("run-7")).unwrap();
        let first = run.lock().unwrap();
        let text = run.lock().unwrap_err().to_string();
        assert!(text.contains("run-7: another process works on this run"), "{text}");
        assert!(run.is_locked().unwrap());
        drop(first);
        assert!(!run.is_locked().unwrap());
        run.lock().unwrap();
    }

    #[test]
    fn workers_share_a_lock_that_keeps_others_out() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunFolder::create(temp.path()).unwrap();
        let (first, second) = (run.lock_shared().unwrap(), run.lock_shared().unwrap());
        drop(first);
        assert!(run.lock().is_err());
        drop(second);
        let held = run.lock().unwrap();
        assert!(run.lock_shared().is_err());
        drop(held);
    }

    #[test]
    fn the_lock_clears_what_killed_writes_left() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunFolder::create(temp.path()).unwrap();
        let [torn, kept] = [".tmpA1b2C3.tmp", "state.safetensors"].map(|name| run.state().join(name));
        [&torn, &kept].iter().for_each(|path| std::fs::write(path, "").unwrap());
        let held = run.lock().unwrap();
        assert!(!torn.exists() && kept.exists());
        std::fs::write(&torn, "").unwrap();
        run.lock().unwrap_err();
        assert!(torn.exists(), "it may be of the process that holds the lock");
        drop(held);
    }
}
