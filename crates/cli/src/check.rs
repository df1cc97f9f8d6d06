//! What is wrong with a config as a whole, found before any work.

use crate::config::{self, Config};
use crate::problems::Problem;
use crate::{card, extractor};
use lcsc_data::{AUGMENT_DIM, DataConfig, DataInfo};
use lcsc_diffusion::{DistanceConfig, Lpips, ObjectiveConfig, PreconditioningConfig, SamplerConfig};
use lcsc_metrics::{ExtractorConfig, MetricConfig};
use lcsc_search::{MethodName, SearchConfig, When};
use lcsc_torch::{Invalid, Precision};
use lcsc_train::{StageConfig, Start};
use lcsc_trajectory::EmaConfig;
use lcsc_unet::{ImageShape, NetworkConfig};
use serde::de::DeserializeOwned;
use toml::Value;

/// The fewest real images that precision and recall, by three neighbours, can be told of.
const REAL_IMAGES: usize = 4;

/// The parts of a config that can be checked by themselves, as far as they could be read.
pub struct Sections {
    data: Option<DataConfig>,
    conditional: bool,
    model: Option<NetworkConfig>,
    preconditioning: Option<PreconditioningConfig>,
    stages: Vec<(usize, StageConfig)>,
    sampler: Option<SamplerConfig>,
    metric: Option<MetricConfig>,
    search: Option<SearchConfig>,
}

impl From<&Config> for Sections {
    fn from(config: &Config) -> Self {
        Self {
            data: Some(config.data.clone()),
            conditional: config.conditional,
            model: Some(config.model.clone()),
            preconditioning: Some(config.preconditioning.clone()),
            stages: config.stage.iter().cloned().enumerate().collect(),
            sampler: Some(config.sampler.clone()),
            metric: Some(config.metric.clone()),
            search: Some(config.search.clone()),
        }
    }
}

/// What can be read of a config that as a whole cannot.
impl From<&Value> for Sections {
    fn from(root: &Value) -> Self {
        fn section<T: DeserializeOwned>(root: &Value, key: &str) -> Option<T> {
            root.get(key)?.clone().try_into().ok()
        }
        let stages = root.get("stage").and_then(Value::as_array).into_iter().flatten().enumerate();
        Self {
            data: section(root, "data"),
            conditional: section(root, "conditional").unwrap_or(true),
            model: section(root, "model"),
            preconditioning: section(root, "preconditioning"),
            stages: stages.filter_map(|(i, stage)| Some((i, stage.clone().try_into().ok()?))).collect(),
            sampler: section(root, "sampler"),
            metric: section(root, "metric"),
            search: section(root, "search"),
        }
    }
}

/// Adds the problems that each section has by itself; gives what the dataset holds, if it can be read.
pub fn check_sections(sections: &Sections, problems: &mut Vec<Problem>) -> Option<DataInfo> {
    sections.sampler.iter().for_each(|s| problems.extend(under("sampler", s.validate())));
    sections.preconditioning.iter().for_each(|p| problems.extend(under("preconditioning", p.validate())));
    sections.search.iter().for_each(|s| problems.extend(under("search", s.validate())));
    for (i, stage) in &sections.stages {
        problems.extend(under(&format!("stage[{i}]"), stage.validate()));
    }
    match lcsc_data::inspect(sections.data.as_ref()?) {
        Ok(data) => {
            let image = config::image_shape(&data, sections.conditional);
            sections.model.iter().for_each(|m| problems.extend(under("model", m.validate(image))));
            check_judges(sections, Some((&data, image.chw())), problems);
            Some(data)
        }
        Err(e) => {
            problems.push(Problem::error("data.source", e.to_string()));
            check_judges(sections, None, problems);
            None
        }
    }
}

/// Numbers that are none: TOML has `nan` and `inf`, no setting has a use for them.
pub fn check_finite(value: &Value, path: &str, problems: &mut Vec<Problem>) {
    match value {
        Value::Float(number) if !number.is_finite() => {
            problems.push(Problem::error(path, format!("is {number}, expected a finite number")));
        }
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(i, v)| check_finite(v, &format!("{path}[{i}]"), problems));
        }
        Value::Table(table) => {
            let dot = if path.is_empty() { "" } else { "." };
            table.iter().for_each(|(key, v)| check_finite(v, &format!("{path}{dot}{key}"), problems));
        }
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// Problems of a struct, seen from the whole config.
fn under(place: &str, found: Vec<Invalid>) -> Vec<Problem> {
    found.into_iter().map(|i| Problem::error(format!("{place}.{}", i.key), i.message)).collect()
}

/// What is wrong with what images are judged by, as far as that is known without the data and its shape `[C,H,W]`.
fn check_judges(sections: &Sections, data: Option<(&DataInfo, [i64; 3])>, problems: &mut Vec<Problem>) {
    // Sections that are left out have their defaults; those that cannot be read were told of.
    let metric = sections.metric.clone().unwrap_or_default();
    problems.extend(data.and_then(|(_, chw)| metric.problem(chw)).map(|p| Problem::error("metric.independent", p)));
    let named = || [metric.extractor.clone(), metric.independent.clone()];
    let [primary, independent] = data.map_or_else(named, |(_, chw)| metric.judges(chw));
    let search = sections.search.clone().unwrap_or_default();
    if search.when != When::Off {
        if let Some((data, _)) = data
            && data.images < REAL_IMAGES
        {
            let message = format!(
                "holds {} images, expected at least {REAL_IMAGES}: samples are compared with their neighbours among the real images",
                data.images
            );
            problems.push(Problem::error("data.source", message).help("search.when = \"off\" trains without a search"));
        }
        for (key, judge) in [("extractor", &primary), ("independent", &independent)] {
            problems
                .extend(extractor::locate(judge).err().map(|e| Problem::error(format!("metric.{key}"), e.to_string())));
        }
    }
    problems.extend(check_gradient(&search, &primary));
    warn_of_few_samples(&search, &primary, problems);
}

/// A gradient that leads through an extractor in f16 would vanish there.
fn check_gradient(search: &SearchConfig, primary: &ExtractorConfig) -> Option<Problem> {
    let follows = |m: &MethodName| matches!(m, MethodName::Gradient | MethodName::Finetune);
    let method = search.method.iter().find(|m| follows(m)).filter(|_| primary.precision() == Precision::F16)?;
    let message = format!("f16 has too small a range for the method `{}` of the search: choose bf16", method.name());
    Some(Problem::error("metric.extractor.precision", message))
}

fn warn_of_few_samples(search: &SearchConfig, primary: &ExtractorConfig, problems: &mut Vec<Problem>) {
    // A module tells how many features it gives only when it is run.
    let Some(features) = primary.features() else { return };
    for (key, n) in [
        ("images", search.images),
        ("selection_images", search.selection_images),
        ("report_images", search.report_images),
    ] {
        if n >= 2 && 2 * n <= features {
            let message = format!(
                "{n} images for {features} features: their covariance has rank {}, so that distances are biased upward \
                 and noisy",
                n - 1
            );
            problems.push(
                Problem::warning(format!("search.{key}"), message).help(format!("{} or more", features.max(1000))),
            );
        }
    }
}

/// Adds the problems that the parts of `config` have with each other.
pub fn check_whole(config: &Config, problems: &mut Vec<Problem>) {
    let name_is_safe = !config.name.is_empty() && !config.name.contains(['/', '\0']) && !config.name.starts_with('.');
    if !name_is_safe {
        problems.push(Problem::error("name", format!("is `{}`, expected a folder name", config.name)));
    }
    if config.threads == Some(0) {
        problems.push(Problem::error("threads", "is 0, expected at least 1; leave it out for all cores"));
    }
    check_stages(config, problems);
    check_search(config, problems);
}

fn check_stages(config: &Config, problems: &mut Vec<Problem>) {
    if config.stage.is_empty() {
        problems.push(Problem::error("stage", "a run needs at least one [[stage]]"));
    }
    let (architecture, augment_dim) = (config.model.architecture(), config.model.augment_dim());
    if config.data.augment.is_some() && augment_dim != AUGMENT_DIM {
        let message = format!("is {augment_dim}, but data.augment gives the network {AUGMENT_DIM} labels");
        problems.push(Problem::error(format!("model.{architecture}.augment_dim"), message));
    }
    if config.data.augment.is_none() && augment_dim > 0 {
        let message = "no augmentation supplies augmentation labels: the network will never see them";
        let place = format!("model.{architecture}.augment_dim");
        problems.push(Problem::warning(place, message).help("set it to 0, or data.augment to a probability"));
    }
    if config.data.augment.is_some() && config.data.xflip {
        let message = "mirrors images that the network is told are not: data.augment mirrors by itself";
        problems.push(Problem::warning("data.xflip", message).help("leave it out"));
    }
    for (i, stage) in config.stage.iter().enumerate() {
        let earlier = &config.stage[..i];
        if earlier.iter().any(|s| s.name == stage.name) {
            problems.push(Problem::error(format!("stage[{i}].name"), format!("`{}` is taken", stage.name)));
        }
        for (key, source) in [("start", &stage.start), ("teacher", &stage.teacher)] {
            problems.extend(source.as_ref().and_then(|s| check_source(&format!("stage[{i}].{key}"), s, earlier)));
        }
        check_objective(i, stage, config, problems);
        if let Some(Start::Stage { name, .. }) = &stage.teacher
            && earlier.iter().any(|s| s.name == *name && s.objective.is_consistency())
        {
            let message = format!("stage `{name}` trains a consistency model, expected a diffusion model");
            problems.push(Problem::error(format!("stage[{i}].teacher.stage.name"), message));
        }
        if matches!(stage.objective, ObjectiveConfig::Ect(_)) && stage.start.is_none() {
            let message = "consistency tuning from fresh weights: ECT is made to start from a diffusion model";
            let help = "add start.stage = { name = \"…\" } or start.weights = { path = \"…\" }";
            problems.push(Problem::warning(format!("stage[{i}]"), message).help(help));
        }
        for (k, ema) in stage.ema.iter().enumerate() {
            let (ok, key, expected) = match ema {
                EmaConfig::HalfLife { nimg, rampup_ratio } => {
                    (*nimg > 0 && rampup_ratio.is_none_or(|r| r > 0.0), "half_life", "images and a ratio above 0")
                }
                EmaConfig::Power { sigma_rel } => {
                    (*sigma_rel > 0.0 && *sigma_rel <= 0.28, "power.sigma_rel", "a width in (0, 0.28]")
                }
                EmaConfig::Constant { beta } => ((0.0..1.0).contains(beta), "constant.beta", "a decay in [0, 1)"),
            };
            if !ok {
                problems.push(Problem::error(format!("stage[{i}].ema[{k}].{key}"), format!("expected {expected}")));
            }
        }
    }
}

fn check_objective(i: usize, stage: &StageConfig, config: &Config, problems: &mut Vec<Problem>) {
    let place = format!("stage[{i}].objective.{}", stage.objective.name());
    if let Err(expected) = stage.objective.accepts(&config.preconditioning) {
        problems.push(Problem::error(place.as_str(), expected));
    }
    if let Some(DistanceConfig::Lpips(lpips)) = stage.objective.distance()
        && let Err(missing) = Lpips::check(lpips)
    {
        problems.push(Problem::error(format!("{place}.distance.lpips.weights"), missing.to_string()));
    }
}

fn check_source(place: &str, source: &Start, earlier: &[StageConfig]) -> Option<Problem> {
    match source {
        Start::Stage { name, track } => {
            let Some(stage) = earlier.iter().find(|s| s.name == *name) else {
                let known: Vec<&str> = earlier.iter().map(|s| s.name.as_str()).collect();
                let message = format!("`{name}` is no earlier stage; there are: {}", known.join(", "));
                return Some(Problem::error(format!("{place}.stage.name"), message));
            };
            let tracks = stage.tracks();
            let unknown = track.as_ref().filter(|t| !tracks.contains(t))?;
            let message = format!("stage `{name}` has no track `{unknown}`; it has: {}", tracks.join(", "));
            Some(Problem::error(format!("{place}.stage.track"), message))
        }
        Start::Weights { path } => (!path.is_file())
            .then(|| Problem::error(format!("{place}.weights.path"), format!("{}: no such file", path.display()))),
    }
}

fn check_search(config: &Config, problems: &mut Vec<Problem>) {
    let search = &config.search;
    let Some(stage) = config.searched_stage() else {
        if let Some(name) = &search.stage {
            problems.push(Problem::error("search.stage", format!("there is no stage `{name}`")));
        }
        return;
    };
    let i = config.stage.iter().position(|s| s.name == stage.name).unwrap_or_default();
    check_method(search, stage, problems);
    let checkpoints = saved(stage, search).base;
    if stage.batch > 0 && checkpoints < 2 && search.when != When::Off {
        let message = format!(
            "stage `{}` keeps {checkpoints} checkpoint of a track for the search, expected at least 2",
            stage.name
        );
        let help = "set trajectory.every_nimg to a fraction of the stage's nimg, trajectory.tracks with those of \
                    search.tracks, and a wider search.window";
        problems.push(Problem::error(format!("stage[{i}].trajectory"), message).help(help));
    }
    let consistent = stage.objective.is_consistency();
    if let (Some(grid), SamplerConfig::Consistency(sampler)) = (stage.objective.grid(), &config.sampler) {
        for (key, asked, trained) in
            [("sigma_min", sampler.sigma_min, grid.sigma_min), ("sigma_max", sampler.sigma_max, grid.sigma_max)]
        {
            if asked != trained {
                let message = format!("is {asked}, but stage `{}` trains with {key} = {trained}", stage.name);
                problems.push(Problem::warning(format!("sampler.consistency.{key}"), message));
            }
        }
    }
    let one_step = matches!(config.sampler, SamplerConfig::Consistency(_));
    if consistent != one_step {
        let (message, help) = if one_step {
            (
                format!("consistency sampling of stage `{}`, which trains a diffusion model", stage.name),
                "[sampler.heun]",
            )
        } else {
            (
                format!("an ODE sampler for stage `{}`, which trains a consistency model", stage.name),
                "[sampler.consistency]",
            )
        };
        problems.push(Problem::warning("sampler", message).help(format!("add {help}")));
    }
}

/// Steps of more images than there are.
pub fn warn_of_large_batches(config: &Config, data: &DataInfo, problems: &mut Vec<Problem>) {
    for (i, stage) in config.stage.iter().enumerate().filter(|(_, stage)| stage.batch > data.images as u64) {
        let message =
            format!("is {}, but there are {} images: each step takes some several times", stage.batch, data.images);
        problems.push(Problem::warning(format!("stage[{i}].batch"), message));
    }
}

/// Weights files and a sampler that do not fit the network; asked of a config without errors.
pub fn check_fit(config: &Config, image: ImageShape, problems: &mut Vec<Problem>) {
    for (i, stage) in config.stage.iter().enumerate() {
        for (key, source) in [("start", &stage.start), ("teacher", &stage.teacher)] {
            if let Some(Start::Weights { path }) = source
                && let Err(misfit) = card::check(path, config, &config.model(stage, image))
            {
                problems.push(Problem::error(format!("stage[{i}].{key}.weights.path"), misfit.to_string()));
            }
        }
    }
    if let Some(stage) = config.stage.last() {
        let misfit = card::misfit(&config.sampler, &config.model, &config.model(stage, image));
        problems.extend(misfit.map(|i| Problem::error(format!("sampler.{}", i.key), i.message)));
    }
}

/// Groups of coefficients that do not fit the network; asked of a config without errors, whose network can be made.
pub fn check_groups(config: &Config, image: ImageShape) -> Option<Problem> {
    let layout = config.model(config.searched_stage()?, image).layout;
    let misfit = lcsc_search::partition(&lcsc_search::groups_of(&config.search), &layout).err()?;
    Some(Problem::error("search.groups", misfit.to_string()))
}

fn check_method(search: &SearchConfig, stage: &StageConfig, problems: &mut Vec<Problem>) {
    for (i, method) in search.method.iter().enumerate() {
        if search.method[..i].contains(method) {
            let message = format!("`{}` is named twice", method.name());
            problems.push(Problem::error(format!("search.method[{i}]"), message));
        }
    }
    let tracks = stage.tracks();
    for (i, track) in search.tracks.iter().enumerate().filter(|(_, t)| *t != "all" && !tracks.contains(t)) {
        let message = format!("stage `{}` has no track `{track}`; it has: {}", stage.name, tracks.join(", "));
        problems.push(Problem::error(format!("search.tracks[{i}]"), message));
    }
    let every = search.during.every_nimg;
    if search.when == When::During && every >= stage.images() {
        let message = format!(
            "is {every}, but stage `{}` trains {} images: nothing would be searched",
            stage.name,
            stage.images()
        );
        problems.push(Problem::error("search.during.every_nimg", message));
    }
}

/// How many saved weights a search will find.
pub struct SavedWeights {
    /// Of its last track, which EMA profiles are over: the raw one where it is asked for.
    pub base: u64,
    /// Of all its tracks: K.
    pub all: u64,
}

/// The saved weights in the window of a search.
pub fn saved(stage: &StageConfig, search: &SearchConfig) -> SavedWeights {
    let asked = |track: &str| search.tracks.iter().any(|t| t == track || t == "all");
    let mut tracks: Vec<String> = stage.tracks().into_iter().filter(|t| asked(t)).collect();
    tracks.sort_by_key(|track| (track == "raw", track.clone()));
    let most = search.checkpoints.map_or(u64::MAX, |most| most as u64);
    let counts: Vec<u64> = tracks.iter().map(|track| window_size(stage, track, search.window).min(most)).collect();
    SavedWeights { base: counts.last().copied().unwrap_or(0), all: counts.iter().sum() }
}

/// How many checkpoints of a track are in the window.
fn window_size(stage: &StageConfig, track: &str, window: Option<u64>) -> u64 {
    let (trajectory, end) = (stage.trajectory(), stage.images());
    if stage.batch == 0 || !trajectory.keeps(track) {
        return u64::from(stage.batch > 0);
    }
    let first = window.map_or(0, |w| end.saturating_sub(w));
    let ends = (0..end).step_by(stage.batch as usize).map(|before| (before, before + stage.batch));
    ends.filter(|&(before, after)| after > first && trajectory.is_due(before, after, end)).count() as u64
}
