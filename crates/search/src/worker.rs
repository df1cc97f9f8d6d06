//! Several processes at one search: who is alive, and who may write.

use lcsc_torch::{Context, Result};
use std::fs::{File, create_dir_all};
use std::path::{Path, PathBuf};

/// One of several processes that share a search. It holds a lock on a file of its own as long as it lives, also past a
/// `kill -9` or a crashed machine: what it had claimed is then free again.
#[derive(Debug)]
pub struct Worker {
    id: u64,
    folder: PathBuf,
    _alive: File,
}

impl Worker {
    /// Takes the smallest number that no living worker has, from 1 on, in `search`/workers.
    ///
    /// # Errors
    /// The folder cannot be written, or its file system has no locks.
    pub fn start(search: &Path) -> Result<Self> {
        let folder = search.join("workers");
        create_dir_all(&folder).at(&folder)?;
        let mut id = 1;
        loop {
            if let Some(alive) = try_lock(&folder, id)? {
                return Ok(Self { id, folder, _alive: alive });
            }
            id += 1;
        }
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether a worker has ended. This one asks about itself when it finds a claim that it does not work on: one that an
    /// earlier process of its number left.
    pub(crate) fn is_gone(&self, id: u64) -> Result<bool> {
        Ok(id == self.id || try_lock(&self.folder, id)?.is_some())
    }

    /// Waits until no other worker reads or writes the log, and keeps it so until the file is dropped.
    pub(crate) fn lock_log(&self) -> Result<File> {
        let path = self.folder.join("log.lock");
        let file = open(&path)?;
        fs4::FileExt::lock(&file).at(&path)?;
        Ok(file)
    }
}

/// The locked file of a worker; none while that worker lives.
fn try_lock(folder: &Path, id: u64) -> Result<Option<File>> {
    let path = folder.join(format!("{id}.lock"));
    let file = open(&path)?;
    match fs4::FileExt::try_lock(&file) {
        Ok(()) => Ok(Some(file)),
        Err(fs4::TryLockError::WouldBlock) => Ok(None),
        Err(fs4::TryLockError::Error(e)) => Err(e).at(&path),
    }
}

fn open(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(path).at(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_the_living() {
        let folder = tempfile::tempdir().unwrap();
        let start = || Worker::start(folder.path()).unwrap();
        let (one, two) = (start(), start());
        assert_eq!((one.id(), two.id()), (1, 2));
        assert!(!two.is_gone(1).unwrap() && two.is_gone(2).unwrap() && two.is_gone(3).unwrap());
        drop(one);
        assert!(two.is_gone(1).unwrap());
        assert_eq!(start().id(), 1);
    }
}
