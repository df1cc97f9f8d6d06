//! The part of the shim that needs CUDA's headers to be built: a library of its own.

use crate::bail;
use crate::device::{loader_reason, near_places};
use crate::error::Result;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::sync::OnceLock;

/// The library that scripts/build_cuda.sh makes.
const NAME: &str = "liblcsc_cuda.so";

/// Opens the library for collectives among GPUs and for CUDA graphs, once libtorch's CUDA half is open.
///
/// # Errors
/// It is not there, or of another libtorch: with the loader's reason for each place.
pub fn open_cuda_library() -> Result<&'static Library> {
    static OPENED: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
    match OPENED.get_or_init(opened) {
        Ok(library) => Ok(library),
        Err(reasons) => bail!("{NAME} cannot be opened: {reasons}. `scripts/setup.sh --cuda` builds it"),
    }
}

fn opened() -> std::result::Result<Library, String> {
    let mut reasons = Vec::new();
    for place in near_places(NAME) {
        // SAFETY: the library's initialisers only set up what it uses of libtorch.
        match unsafe { Library::open(Some(&place), RTLD_NOW | RTLD_GLOBAL) } {
            Err(e) => reasons.push(loader_reason(&e)),
            Ok(library) => return Ok(library),
        }
    }
    Err(reasons.join("; "))
}

/// A function of it.
///
/// # Safety
/// `T` is the function's type in csrc/nccl.cpp or csrc/graph.cpp.
pub(crate) unsafe fn function<T>(name: &str) -> Result<Symbol<T>> {
    let library = open_cuda_library()?;
    // SAFETY: as the caller says.
    match unsafe { library.get(name.as_bytes()) } {
        Ok(function) => Ok(function),
        Err(e) => bail!("{NAME} is of another version ({e}): run scripts/setup.sh --cuda again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_named_with_the_remedy() {
        if !tch::Cuda::is_available() {
            let text = open_cuda_library().unwrap_err().to_string();
            assert!(text.starts_with("liblcsc_cuda.so cannot be opened: "), "{text}");
            assert!(text.ends_with("`scripts/setup.sh --cuda` builds it"), "{text}");
        }
    }
}
