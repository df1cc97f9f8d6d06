//! Any bytes as a dataset: the first byte chooses between a zip, an npz and a packed archive.
#![no_main]

use indicatif::ProgressBar;
use lcsc_data::{DataConfig, Dataset};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let name = ["a.zip", "a.npz", "a.tar.gz"][usize::from(kind) % 3];
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join(name);
    if std::fs::write(&path, bytes).is_ok() {
        let config = DataConfig { source: path.display().to_string(), ..DataConfig::default() };
        let _ = Dataset::open(&config, &ProgressBar::hidden());
    }
});
