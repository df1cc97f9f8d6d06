//! The error type and the atomic write that every file of a report goes through.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Result with the report's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong, each with its place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a path.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The content for a file, or of a file, is not what it must be.
    #[error("{}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn content(path: &Path, message: impl Into<String>) -> Self {
        Error::Content { path: path.to_path_buf(), message: message.into() }
    }
}

/// Writes a file so that a reader finds the old one or the whole new one.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let readable = std::fs::Permissions::from_mode(0o666); // less the umask, as for any new file
    let mut temp = tempfile::Builder::new()
        .suffix(".tmp")
        .permissions(readable)
        .tempfile_in(folder)
        .map_err(|e| Error::io(folder, e))?;
    temp.write_all(bytes).and_then(|()| temp.as_file().sync_all()).map_err(|e| Error::io(path, e))?;
    temp.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}
