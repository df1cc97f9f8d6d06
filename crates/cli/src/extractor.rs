//! The extractors that are files: found, read and opened.

use crate::session::cache_folder;
use lcsc_metrics::{Extractor, ExtractorConfig, Inception, TorchScript};
use lcsc_torch::{Context, Device, Error, Result, bail, catch};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The environment variable that names a copy of FID's Inception weights.
const INCEPTION: &str = "LCSC_INCEPTION";

/// The extractor of a config for images `[C,H,W]`; none where it is a classifier that is trained on the data.
///
/// # Errors
/// A file is missing, damaged, or holds something else.
pub fn open(config: &ExtractorConfig, chw: [i64; 3], device: Device) -> Result<Option<Extractor>> {
    if let Some(problem) = config.problem() {
        bail!("metric.extractor: {problem}");
    }
    match (locate(config)?, &config.torchscript) {
        (Some(path), None) => {
            Ok(Some(Extractor::Inception(Box::new(inception(&path, device)?.in_precision(config.precision)?))))
        }
        (Some(path), Some(_)) => catch("opening the extractor", || {
            Ok(Some(Extractor::TorchScript(TorchScript::open(&path, config.output.as_deref(), chw, device)?)))
        }),
        (None, _) => Ok(None),
    }
}

/// The file of the extractor, if it is one.
///
/// # Errors
/// It is missing, with the ways to get it.
pub fn locate(config: &ExtractorConfig) -> Result<Option<PathBuf>> {
    let (key, path) = match (&config.torchscript, &config.inception) {
        (Some(path), _) => ("torchscript", path.clone()),
        (None, Some(path)) if path.as_os_str() == "auto" => ("inception", published()?),
        (None, Some(path)) => ("inception", path.clone()),
        (None, None) => return Ok(None),
    };
    if !path.is_file() {
        bail!("metric.extractor.{key} = \"{}\": there is no such file{}", path.display(), remedy(key));
    }
    Ok(Some(path))
}

/// What can be done about a missing file.
fn remedy(key: &str) -> &'static str {
    match key {
        "inception" => {
            "; `lcsc data fetch inception` downloads it, and LCSC_INCEPTION or metric.extractor.inception name a copy"
        }
        _ => "",
    }
}

/// Where the published weights are: named in the environment, else where they are fetched to.
fn published() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(INCEPTION).filter(|v| !v.is_empty()) {
        return Ok(path.into());
    }
    let Some(folder) = cache_folder() else {
        bail!("metric.extractor.inception = \"auto\": there is no home or cache folder{}", remedy("inception"));
    };
    Ok(folder.join(lcsc_data::INCEPTION.file))
}

fn inception(path: &Path, device: Device) -> Result<Inception> {
    let bytes = std::fs::read(path).at(path)?;
    let hash: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    // The published name says how the hash begins.
    if !lcsc_data::INCEPTION.file.contains(&hash[..8]) {
        tracing::warn!(
            "{}: not the published Inception weights ({}, but SHA-256 {}…): distances are not comparable \
             with published ones",
            path.display(),
            lcsc_data::INCEPTION.file,
            &hash[..8]
        );
    }
    let tensors = lcsc_trajectory::read_tensors(path, &bytes, None)?;
    Inception::new(&tensors, &hash, device).map_err(|e| Error::file(path, e.to_string()))
}
