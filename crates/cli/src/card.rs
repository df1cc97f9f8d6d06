//! What a weights file tells about itself, so that sampling and measuring need no config.

use crate::config::Config;
use crate::plans::{self, Trial};
use crate::ranks;
use lcsc_data::DataConfig;
use lcsc_diffusion::{Model, PreconditioningConfig, SamplerConfig};
use lcsc_metrics::MetricConfig;
use lcsc_torch::{Device, Error, Group, Invalid, Precision, Result, SafeFile, Weights, allow_tf32, load_weights};
use lcsc_trajectory::METADATA;
use lcsc_unet::{ImageShape, NetworkConfig};
use miette::IntoDiagnostic;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::path::Path;

/// The version of this metadata.
const FORMAT: u32 = 2;

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

    /// What plans are remembered by.
    fn trial(&self) -> Trial {
        Trial::new((&self.network, &self.preconditioning), (self.image, self.precision), 1, false)
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
    if path.is_dir() {
        miette::bail!(
            "{}: is a folder, expected a weights file, such as merged.safetensors in a run's folder",
            path.display()
        );
    }
    let file = SafeFile::open(path).into_diagnostic()?;
    let card = read(path, &file).into_diagnostic()?;
    allow_tf32(card.precision == Precision::Tf32).into_diagnostic()?;
    let model = card.model();
    let weights = load_weights(&model.layout, &file, device).into_diagnostic()?;
    Ok((card, model, weights))
}

/// The same on all ranks, each of which reads the file. The network is computed by the plan that a run on this GPU found.
///
/// # Errors
/// Those of [`open`], on any rank; the ranks have different files.
pub fn open_alike(path: &Path, device: Device, group: &Group) -> miette::Result<(Card, Model, Weights)> {
    let (card, model, weights) = ranks::all_ok(group, open(path, device))?;
    let plan = plans::remembered(&card.trial(), device, group).into_diagnostic()?;
    let sums = group.sums_of_bits(&weights.theta).into_diagnostic()?;
    if sums.iter().any(|sum| *sum != sums[0]) {
        miette::bail!("{}: the ranks have different files of this name", path.display());
    }
    Ok((card, model.with_plan(plan), weights))
}

/// The card in the metadata entry of a file.
///
/// # Errors
/// There is none, or it is of another format.
pub fn read(path: &Path, file: &SafeFile) -> Result<Card> {
    let text = file.metadata(METADATA)?;
    let unfit = |what: String| Error::file(path, what);
    let no_card = |e| unfit(format!("is no weights file of this program (metadata entry `{METADATA}`: {e})"));
    // The format first: it says whether the rest can be understood.
    let value: serde_json::Value = serde_json::from_str(text).map_err(no_card)?;
    if let Some(format) = value["format"].as_u64().filter(|&f| f != u64::from(FORMAT)) {
        return Err(unfit(format!("has format {format}, this program reads {FORMAT}")));
    }
    serde_json::from_value(value).map_err(no_card)
}

/// Whether a file holds weights for this network; where it tells what it was trained as, for the same kind.
///
/// # Errors
/// It does not, with what differs.
pub fn check(path: &Path, config: &Config, model: &Model) -> Result<()> {
    let file = SafeFile::open(path)?;
    file.check(&model.layout)?;
    if file.metadata(METADATA).is_err() {
        return Ok(()); // weights of another program
    }
    let card = read(path, &file)?;
    let differs = |what: &str, found: &dyn Debug, expected: &dyn Debug| {
        Err(Error::file(path, format!("was trained with {what} {found:?}, this run has {expected:?}")))
    };
    if card.preconditioning != config.preconditioning {
        return differs("preconditioning", &card.preconditioning, &config.preconditioning);
    }
    let (found, expected) = (card.network.without_dropout(), config.model.without_dropout());
    if found != expected {
        return differs("network", &found, &expected);
    }
    if card.image != model.image {
        return differs("images", &card.image, &model.image);
    }
    Ok(())
}

/// The sampler given on the command line as TOML, else the card's own.
///
/// # Errors
/// It is no sampler, or cannot work with this model.
pub fn sampler(card: &Card, model: &Model, given: Option<&str>) -> miette::Result<SamplerConfig> {
    let (sampler, source) = match given {
        None => (card.sampler.clone(), "the sampler of the weights file".to_string()),
        Some(text) => {
            let sampler = toml::from_str(text).map_err(|e| {
                miette::miette!("--sampler {text}: {}; expected e.g. `heun = {{ steps = 9 }}`", e.message())
            })?;
            (sampler, format!("--sampler {text}"))
        }
    };
    let problems = sampler.validate();
    match problems.into_iter().next().or_else(|| misfit(&sampler, &card.network, model)) {
        None => Ok(sampler),
        Some(problem) => Err(miette::miette!("{source}: {} {}", problem.key, problem.message)),
    }
}

/// What about a valid sampler does not fit a model.
pub fn misfit(sampler: &SamplerConfig, network: &NetworkConfig, model: &Model) -> Option<Invalid> {
    if let Some(w) = sampler.guidance()
        && (model.image.label_dim == 0 || network.label_dropout() == 0.0)
    {
        let message = format!(
            "is {w}, but the network knows no images without a class: guidance needs a conditional model trained with \
             model.{}.label_dropout above 0",
            network.architecture()
        );
        return Some(Invalid::new(format!("{}.guidance", sampler.name()), message));
    }
    sampler.misfit(&model.preconditioning)
}
