//! The config file: everything a run depends on.

use crate::check::{self, Sections};
use crate::document::Document;
use crate::plans::{PlanChoice, Trial};
use crate::problems::{Problem, Report};
use crate::read_config::read_config;
use crate::ui;
use lcsc_data::{DataConfig, DataInfo};
use lcsc_diffusion::{DistanceConfig, Model, PreconditioningConfig, SamplerConfig};
use lcsc_metrics::MetricConfig;
use lcsc_search::SearchConfig;
use lcsc_torch::{Device, DeviceChoice, Precision};
use lcsc_train::{DistributedConfig, StageConfig, Start};
use lcsc_trajectory::Memory;
use lcsc_unet::{ImageShape, NetworkConfig};
use miette::{IntoDiagnostic, WrapErr};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::Value;

/// A run: data, network, stages of training, sampler, metric and search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the run; its folder is `runs/<name>` unless `--out` says otherwise.
    pub name: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`.
    #[serde(default)]
    pub device: DeviceChoice,
    /// CPU threads of one operation; by default `OMP_NUM_THREADS`, else all cores (shared with the other ranks of the machine).
    /// The images of small networks are sampled on up to four cores whatever this says: those that `OMP_NUM_THREADS` allows.
    #[serde(default)]
    pub threads: Option<usize>,
    /// What networks compute in; weights, moments, preconditioning, losses and samplers stay f32 or wider.
    #[serde(default)]
    pub precision: Precision,
    /// How networks are computed on a GPU: `auto`, or `plain` for contiguous tensors and libtorch's operations. Results differ by rounding alone.
    #[serde(default)]
    pub plan: PlanChoice,
    /// Whether a GPU takes kernels that give the same bits each time, as far as libtorch has them; they are slower. Without it what is
    /// computed twice, or resumed, on a GPU differs in the last bits. A CPU repeats itself anyway.
    #[serde(default)]
    pub deterministic: bool,
    /// How several processes train together.
    #[serde(default)]
    pub distributed: DistributedConfig,
    /// The images.
    pub data: DataConfig,
    /// Whether the network is told the class of an image, where the data has classes.
    #[serde(default = "default_conditional")]
    pub conditional: bool,
    /// The network: `preset` names a published one, keys under `song` or `adm` change it.
    #[serde(default)]
    pub model: NetworkConfig,
    /// What surrounds the network, and what it is told of the noise level.
    #[serde(default)]
    pub preconditioning: PreconditioningConfig,
    /// Stages of training, one after the other, each a `[[stage]]`.
    pub stage: Vec<StageConfig>,
    /// How images are made when models are compared.
    #[serde(default)]
    pub sampler: SamplerConfig,
    /// How images are judged.
    #[serde(default)]
    pub metric: MetricConfig,
    /// The search of coefficients.
    #[serde(default)]
    pub search: SearchConfig,
}

fn default_conditional() -> bool {
    true
}

/// A config without problems, and the data it names.
pub struct Loaded {
    /// The config with all defaults.
    pub config: Config,
    /// What the dataset holds.
    pub data: DataInfo,
}

impl Config {
    /// TOML with every default written out.
    pub fn to_toml(&self) -> miette::Result<String> {
        toml::to_string_pretty(self).into_diagnostic()
    }

    /// The shape of images that the network is for.
    pub fn image(&self, data: &DataInfo) -> ImageShape {
        image_shape(data, self.conditional)
    }

    /// The network of a stage.
    pub fn model(&self, stage: &StageConfig, image: ImageShape) -> Model {
        let network = stage.dropout.map_or_else(|| self.model.clone(), |p| self.model.with_dropout(p));
        Model::new(&network, &self.preconditioning, image, self.precision)
    }

    /// The network of a stage's teacher.
    pub fn teacher(&self, stage: &StageConfig, image: ImageShape) -> Model {
        let network = self.model.with_dropout(stage.objective.teacher_dropout());
        Model::new(&network, &self.preconditioning, image, self.precision)
    }

    /// The trial of plans for the network, by rounds of training or by chunks of sampling.
    pub fn trial(&self, image: ImageShape, trains: bool) -> Trial {
        let round = self.stage.first().map_or(1, StageConfig::round);
        let images = if trains { round } else { self.search.chunk };
        Trial::new((&self.model, &self.preconditioning), (image, self.precision), images, trains)
    }

    /// Memory for the checkpoints that a search combines.
    pub fn memory(&self, device: Device) -> Memory {
        let bytes = |gib: f64| (gib * f64::from(1 << 30)) as u64;
        Memory { device, device_bytes: bytes(self.search.memory_gib), host_bytes: bytes(self.search.host_memory_gib) }
    }

    /// The stage whose checkpoints are combined.
    pub fn searched_stage(&self) -> Option<&StageConfig> {
        match &self.search.stage {
            Some(name) => self.stage.iter().find(|s| s.name == *name),
            None => self.stage.last(),
        }
    }

    /// BLAKE3 of the files that every sitting of the training reads: teachers and the weights of LPIPS.
    fn files_hashes(&self) -> miette::Result<Vec<String>> {
        let mut hashes = Vec::new();
        for stage in &self.stage {
            let teacher = stage.teacher.iter().filter_map(|source| match source {
                Start::Weights { path } => Some(path),
                Start::Stage { .. } => None,
            });
            let lpips = stage.objective.distance().into_iter().filter_map(|distance| match distance {
                DistanceConfig::Lpips(c) => Some(&c.weights),
                DistanceConfig::L1 | DistanceConfig::L2 | DistanceConfig::Huber { .. } => None,
            });
            for path in teacher.chain(lpips) {
                let mut hasher = blake3::Hasher::new();
                let unread = || format!("cannot read {}", path.display());
                let file = std::fs::File::open(path).into_diagnostic().wrap_err_with(unread)?;
                hasher.update_reader(file).into_diagnostic().wrap_err_with(unread)?;
                hashes.push(hasher.finalize().to_hex().to_string());
            }
        }
        Ok(hashes)
    }

    /// BLAKE3 of all that training depends on: a run is only resumed under the same.
    pub fn training_hash(&self, data_hash: &str) -> miette::Result<String> {
        let mut stages = self.stage.clone();
        for stage in &mut stages {
            // These change what is logged and when, not what is trained.
            stage.tick_nimg = None;
            stage.sample_nimg = None;
            stage.state_minutes = Some(0.0);
            if let Some(trajectory) = &mut stage.trajectory {
                trajectory.disk_budget_gib = None;
            }
        }
        let data = (data_hash, self.data.xflip, self.data.augment);
        let network = (&self.model, &self.preconditioning, self.precision);
        let depends = (self.seed, data, self.conditional, network, stages, self.files_hashes()?);
        Ok(blake3::hash(&serde_json::to_vec(&depends).into_diagnostic()?).to_hex().to_string())
    }
}

/// Reads a config, puts `--set` values over it, and checks all of it. Warnings are printed.
///
/// # Errors
/// One report of all problems, each with its place.
pub fn load(path: &Path, set: &[String]) -> miette::Result<Loaded> {
    let mut document = Document::read(path)?;
    for assignment in set {
        document.set(assignment)?;
    }
    let (loaded, problems) = examine(&mut document);
    if problems.iter().any(Problem::is_error) {
        return Err(Report::new(&problems, &document).into());
    }
    if !problems.is_empty() && !ui::follows() {
        eprintln!("{:?}", miette::Report::new(Report::new(&problems, &document)));
    }
    loaded.ok_or_else(|| miette::miette!("{}: cannot be read", document.name()))
}

/// The config and everything that is wrong with it.
pub fn examine(document: &mut Document) -> (Option<Loaded>, Vec<Problem>) {
    let mut problems: Vec<Problem> = apply_preset(document).into_iter().collect();
    let (config, found) = read_config::<Config>(document);
    problems.extend(found);
    check::check_finite(document.value(), "", &mut problems);
    let sections = config.as_ref().map_or_else(|| document.value().into(), Sections::from);
    let data = check::check_sections(&sections, &mut problems);
    config.iter().for_each(|c| check::check_whole(c, &mut problems));
    if let (Some(config), Some(data)) = (&config, &data)
        && !problems.iter().any(Problem::is_error)
    {
        let image = config.image(data);
        problems.extend(check::check_groups(config, image));
        check::check_fit(config, image, &mut problems);
        check::warn_of_large_batches(config, data, &mut problems);
    }
    problems.sort_by_key(|problem| problem.span(document).map_or(usize::MAX, |span| span.start));
    (config.zip(data).map(|(config, data)| Loaded { config, data }), problems)
}

/// The images that a network for this data is for.
pub fn image_shape(data: &DataInfo, conditional: bool) -> ImageShape {
    let label_dim = if conditional { data.classes } else { 0 };
    ImageShape { channels: data.channels, resolution: data.resolution, label_dim }
}

/// Replaces `model.preset` by the values it stands for, under those given beside it.
fn apply_preset(document: &mut Document) -> Option<Problem> {
    let model = document.value().get("model")?.as_table()?.clone();
    let preset = model.get("preset")?;
    let known = preset.as_str().and_then(NetworkConfig::preset);
    let mut merged = toml::Table::try_from(known.clone().unwrap_or_default()).ok()?;
    for (key, given) in model.iter().filter(|(key, _)| *key != "preset") {
        match (merged.get_mut(key), given) {
            (Some(Value::Table(values)), Value::Table(given)) => values.extend(given.clone()),
            // Of another architecture, or no key at all: reading the config tells.
            (_, given) => drop(merged.insert(key.clone(), given.clone())),
        }
    }
    document.replace("model", merged);
    let names = NetworkConfig::presets().join("`, `");
    known.is_none().then(|| Problem::error("model.preset", format!("expected one of `{names}`, found {preset}")))
}

/// The JSON schema of config files, for editors.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    // `preset` is resolved before the config is read.
    let preset = serde_json::json!({
        "enum": NetworkConfig::presets(), "description": "A published network to start from; keys under its architecture change it."
    });
    let architectures = schema["$defs"]["NetworkConfig"]["oneOf"].as_array_mut().into_iter().flatten();
    for architecture in architectures {
        architecture["properties"]["preset"] = preset.clone();
    }
    let mut alone = serde_json::json!({ "type": "object", "required": ["preset"], "additionalProperties": false });
    alone["properties"]["preset"] = preset;
    if let Some(ways) = schema["$defs"]["NetworkConfig"]["oneOf"].as_array_mut() {
        ways.push(alone);
    }
    schema
}
