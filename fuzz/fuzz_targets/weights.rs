//! Any bytes as a weights file: PyTorch's zips and legacy files, pickled modules, safetensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let _ = lcsc_trajectory::read_tensors(Path::new("fuzzed"), bytes, None);
});
