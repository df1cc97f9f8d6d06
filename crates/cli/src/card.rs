//! What a weights file tells about itself, so that sampling and measuring need no config.

use crate::config::Config;
use lcsc_data::DataConfig;
use lcsc_diffusion::{Model, PreconditioningConfig, SamplerConfig};
use lcsc_metrics::MetricConfig;
use lcsc_torch::{Device, Error, Precision, Result, SafeFile, Weights, load_weights};
use lcsc_trajectory::METADATA;
use lcsc_unet::{ImageShape, NetworkConfig};
use miette::IntoDiagnostic;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of this metadata.
const FORMAT: u32 = 1;

/// The JSON in the metadata entry `lcsc` of weights files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Card {
    pub format: u32,
    /// Name and seed of the run.
    pub run: String,
    pub seed: u64,
    pub network: NetworkConfig,
    pub preconditioning: PreconditioningConfig,
    pub image: ImageShape,
    pub precision: Precision,
    pub sampler: SamplerConfig,
    pub data: DataConfig,
    /// BLAKE3 of the training images and labels.
    pub data_hash: String,
    pub metric: MetricConfig,
    /// Which checkpoint it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<serde_json::Value>,
    /// How it was merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<serde_json::Value>,
}

impl Card {
    /// The card of a run's weights.
    pub fn new(config: &Config, image: ImageShape, data_hash: &str) -> Self {
        Self {
            format: FORMAT,
            run: config.name.clone(),
            seed: config.seed,
            network: config.model.clone(),
            preconditioning: config.preconditioning.clone(),
            image,
            precision: config.precision,
            sampler: config.sampler.clone(),
            data: config.data.clone(),
            data_hash: data_hash.to_string(),
            metric: config.metric.clone(),
            checkpoint: None,
            merged: None,
        }
    }

    /// The network.
    pub fn model(&self) -> Model {
        Model::new(&self.network, &self.preconditioning, self.image, self.precision)
    }
}

/// A weights file with its card.
///
/// # Errors
/// It cannot be read, tells nothing about itself, is of another format, or does not fit its own card.
pub fn open(path: &Path, device: Device) -> miette::Result<(Card, Model, Weights)> {
    let file = SafeFile::open(path).into_diagnostic()?;
    let text = file.metadata(METADATA).into_diagnostic()?;
    let unfit = |what: String| miette::miette!("{}: {what}", path.display());
    let card: Card = serde_json::from_str(text)
        .map_err(|e| unfit(format!("is no weights file of this program (metadata entry `{METADATA}`: {e})")))?;
    if card.format != FORMAT {
        return Err(unfit(format!("has format {}, this program reads {FORMAT}", card.format)));
    }
    let model = card.model();
    let weights = load_weights(&model.layout, &file, device).into_diagnostic()?;
    Ok((card, model, weights))
}

/// Whether a file holds weights for this network; where it tells of its preconditioning, for that too.
///
/// # Errors
/// It does not, with what differs.
pub fn check(path: &Path, config: &Config, model: &Model) -> Result<()> {
    let file = SafeFile::open(path)?;
    file.check(&model.layout)?;
    let card = file.metadata(METADATA).ok().and_then(|text| serde_json::from_str::<Card>(text).ok());
    match card {
        Some(card) if card.preconditioning != config.preconditioning => {
            let (found, expected) = (&card.preconditioning, &config.preconditioning);
            Err(Error::file(path, format!("was trained with preconditioning {found:?}, this run has {expected:?}")))
        }
        Some(_) | None => Ok(()),
    }
}

/// The sampler given on the command line as TOML, else the card's own.
///
/// # Errors
/// It is no sampler, or cannot work.
pub fn sampler(card: &Card, given: Option<&str>) -> miette::Result<SamplerConfig> {
    let Some(text) = given else { return Ok(card.sampler.clone()) };
    let sampler: SamplerConfig = toml::from_str(text)
        .map_err(|e| miette::miette!("--sampler {text}: {}; expected e.g. `heun = {{ steps = 9 }}`", e.message()))?;
    match sampler.validate().first() {
        None => Ok(sampler),
        Some(problem) => Err(miette::miette!("--sampler {text}: {} {}", problem.key, problem.message)),
    }
}
