//! The one error type of the libraries: what failed, where, and what to do about it.

use std::path::{Path, PathBuf};

/// Result with the project's [`enum@Error`].
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
    /// A file was read but its content does not fit: damaged, or not what was asked for.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// libtorch failed.
    #[error("libtorch, {during}: {message}")]
    Torch {
        /// What was being done.
        during: String,
        /// libtorch's message without its C++ stack.
        message: String,
    },
    /// Loss or gradient became non-finite under the policy `stop`.
    #[error("{0}")]
    NonFinite(String),
    /// Anything else, in a sentence that names the place and the remedy.
    #[error("{0}")]
    Message(String),
}

impl Error {
    /// An error about the content of a file.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// Whether libtorch found no room for a tensor, on a GPU or in host memory: less at once may go well.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::Torch { message, .. } if OUT_OF_MEMORY.iter().any(|sign| message.contains(sign)))
    }

    /// An error in a sentence.
    pub fn msg(message: impl Into<String>) -> Self {
        Error::Message(message.into())
    }
}

/// What stands in messages of the allocators of CUDA and of the CPU, of cuBLAS and of cuDNN.
const OUT_OF_MEMORY: [&str; 5] = [
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
];

/// The first line of a libtorch message: the rest is a C++ stack.
pub(crate) fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim().to_string()
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Error::Torch { during: "in a tensor operation".into(), message: first_line(&e.to_string()) }
    }
}

/// Gives an I/O or libtorch error its place.
pub trait Context<T> {
    /// Names the path that was worked on.
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { path: path.as_ref().to_path_buf(), source })
    }
}

impl<T> Context<T> for std::result::Result<T, tch::TchError> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::file(path, first_line(&e.to_string())))
    }
}

/// A setting that cannot work, found before any work begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key inside the struct that was checked, dotted where it is nested.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Invalid {
    /// A problem with one key.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }

    /// The same problem seen from the struct that holds this one under `outer`.
    pub fn under(self, outer: &str) -> Self {
        Self { key: format!("{outer}.{}", self.key), ..self }
    }
}

/// Returns early with [`Error::Message`], formatted.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::Error::Message(format!($($arg)*))) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catch;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_tensor_without_room_is_told_from_other_mistakes() {
        // More than any machine has.
        let too_long = [1i64 << 50];
        let cpu = (Kind::Float, Device::Cpu);
        let returned: Error = Tensor::f_zeros(too_long, cpu).unwrap_err().into();
        let panicked = catch("sampling", || Ok(Tensor::zeros(too_long, cpu))).unwrap_err();
        assert!(returned.is_out_of_memory() && panicked.is_out_of_memory(), "{returned} {panicked}");
        let cuda = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB";
        assert!(Error::Torch { during: "sampling".into(), message: cuda.into() }.is_out_of_memory());
        let other: Error = Tensor::f_ones([2], cpu).unwrap().f_view([3]).unwrap_err().into();
        assert!(!other.is_out_of_memory() && !Error::msg("out of memory").is_out_of_memory());
    }
}
