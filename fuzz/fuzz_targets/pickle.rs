//! Any bytes as a pickle, and each of its nodes as an array of NumPy's.
#![no_main]

use lcsc_pickle::{Pickle, numpy::Array};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(pickle) = Pickle::parse(bytes)
        && let Ok(array) = Array::read(&pickle, pickle.root())
    {
        let _ = array.to_f64();
    }
});
