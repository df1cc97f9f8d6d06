//! The works that are timed.

use super::cost::{Cost, network as flops};
use super::timing::{Timer, median};
use clap::ValueEnum;
use indicatif::ProgressBar;
use lcsc_data::{DataConfig, Dataset};
use lcsc_diffusion::{
    ConsistencyConfig, LatentSet, Model, ObjectiveConfig, OdeConfig, PreconditioningConfig, SamplerConfig,
};
use lcsc_metrics::{
    Evaluation, Extractor, FeatureStats, Inception, Metrics, Preparation, RealImages, Reference, Scorer, Suite,
};
use lcsc_search::{Coefficients, Fitness, Latents, Models, SampledFitness, SearchConfig, Setting};
use lcsc_torch::{
    Context, Device, Init, Kind, LayoutBuilder, OptimizerConfig, ParamLayout, Precision, Result, StorageDtype, Stream,
    Tensor, Weights,
};
use lcsc_train::{NonFinite, StageConfig, StageContext, Trainer};
use lcsc_trajectory::{
    Checkpoint, EmaConfig, Manifest, Memory, Partition, RunFolder, TrajectoryConfig, Window, Writer,
};
use lcsc_unet::{DhariwalUNetConfig, ImageShape, NetworkConfig, SongUNetConfig};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Checkpoints of a window.
pub const CHECKPOINTS: usize = 50;
/// Parameters of each that are merged: those of a small network for CIFAR-10.
const PARAMETERS: i64 = 20_000_000;
/// Candidates merged in one pass.
pub const CANDIDATES: usize = 8;
/// Images sampled.
pub const IMAGES: u64 = 1000;
/// Features [N,D] of a Fréchet distance.
const FEATURES: [i64; 2] = [5000, 2048];
/// Steps of a round with or without a checkpoint, where its cost is measured.
const STEPS: u64 = 20;

/// A work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// A step of EDM on 8×8 digits, tiny network.
    TrainTiny,
    /// A step of EDM on 32×32 images, DDPM++.
    TrainCifar10,
    /// A step of EDM on 64×64 images, ADM.
    TrainImagenet64,
    /// What a checkpoint costs the training beside it.
    Checkpoint,
    /// 1,000 images in one step, tiny network.
    SampleOneStep,
    /// 1,000 images by Heun's method, tiny network.
    SampleHeun,
    /// A merged model of 50 checkpoints.
    Merge,
    /// Eight merged models in one pass.
    MergeMany,
    /// Features of FID's Inception.
    Features,
    /// From 5,000 × 2,048 features to a Fréchet distance.
    Frechet,
    /// A candidate of a search: merged, sampled, measured.
    Evaluation,
    /// FID of DDPM++ in one step.
    Fid,
}

/// What came out.
pub struct Timed {
    pub what: String,
    pub seconds: Vec<f64>,
    pub cost: Cost,
    /// How many of which things are done.
    pub items: u64,
    pub unit: &'static str,
}

impl Work {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }

    /// Prepares it and takes its time; `chunk` images are sampled at once, steps are made in `precision`.
    ///
    /// # Errors
    /// There is no room, on the device or on the disk.
    pub fn time(self, timer: &Timer, chunk: u64, precision: Precision) -> Result<Timed> {
        match self {
            Self::TrainTiny | Self::TrainCifar10 | Self::TrainImagenet64 => {
                training(timer, &network(self, precision), self.batch(timer.device), precision)
            }
            Self::Checkpoint => {
                let step = timer.on(Self::TrainTiny, Self::TrainCifar10);
                checkpoint(timer, &network(step, precision), step.batch(timer.device))
            }
            Self::SampleOneStep | Self::SampleHeun => sampling(timer, &sampler(self), chunk),
            Self::Merge => merging(timer, 1),
            Self::MergeMany => merging(timer, CANDIDATES),
            Self::Features => features(timer),
            Self::Frechet => frechet(timer),
            Self::Evaluation => evaluation(timer, chunk),
            Self::Fid => fid(timer, chunk),
        }
    }

    /// Images of a training step.
    fn batch(self, device: Device) -> u64 {
        match (self, device) {
            (Self::TrainCifar10, Device::Cpu) => 4,
            (Self::TrainCifar10, _) => 512,
            (Self::TrainImagenet64, Device::Cpu) => 1,
            _ => 64,
        }
    }
}

/// The network of a work, with EDM's preconditioning.
pub fn network(work: Work, precision: Precision) -> Model {
    let unconditional = |channels, resolution| ImageShape { channels, resolution, label_dim: 0 };
    let (network, image) = match work {
        Work::TrainCifar10 | Work::Fid => (NetworkConfig::Song(SongUNetConfig::ddpmpp_cifar10()), unconditional(3, 32)),
        Work::TrainImagenet64 => (NetworkConfig::Adm(DhariwalUNetConfig::adm_imagenet64()), unconditional(3, 64)),
        _ => (NetworkConfig::Song(SongUNetConfig::tiny()), unconditional(1, 8)),
    };
    Model::new(&network, &PreconditioningConfig::default(), image, precision)
}

/// The tiny network.
pub fn tiny() -> Model {
    network(Work::TrainTiny, Precision::F32)
}

/// How the images of a work are made.
pub fn sampler(work: Work) -> SamplerConfig {
    match work {
        Work::SampleHeun => SamplerConfig::Heun(OdeConfig::default()),
        _ => SamplerConfig::Consistency(ConsistencyConfig::default()),
    }
}

/// A folder that is gone afterwards, as a run.
fn run_folder() -> Result<(tempfile::TempDir, RunFolder)> {
    let folder = tempfile::tempdir().at(std::env::temp_dir())?;
    let run = RunFolder::create(folder.path())?;
    Ok((folder, run))
}

/// Random images u8 [N,C,H,W].
pub fn pixels(n: i64, [c, h, w]: [i64; 3]) -> Result<Tensor> {
    Ok(Tensor::f_randint(256, [n, c, h, w], (Kind::Uint8, Device::Cpu))?)
}

/// Calls `with` on a trainer of random images, as the training loop has one.
fn with_trainer<T>(
    device: Device,
    model: &Model,
    stage: &StageConfig,
    with: impl FnOnce(&mut Trainer) -> Result<T>,
) -> Result<T> {
    let (_folder, run) = run_folder()?;
    let mut data = Dataset::open(&DataConfig::default(), &ProgressBar::hidden())?;
    (data.images, data.labels) = (pixels(2048, model.image.chw())?, None);
    let data = data.to_device(device)?;
    let card = serde_json::json!({});
    let context = StageContext {
        run: &run,
        stage,
        nimg_before: 0,
        model,
        teacher: None,
        data: &data,
        seed: 0,
        device,
        config_hash: "bench",
        card: &card,
        finished: Vec::new(),
    };
    with(&mut Trainer::new(context, model.layout.init(0, device)?)?)
}

fn step(trainer: &mut Trainer, batch: u64) -> Result<()> {
    let next = trainer.nimg() + batch;
    trainer.train_until(next, &|| false, &ProgressBar::hidden()).map(drop)
}

/// Steps as the training loop makes them, averages among them.
fn training(timer: &Timer, model: &Model, batch: u64, precision: Precision) -> Result<Timed> {
    let stage = endless(batch);
    let seconds = with_trainer(timer.device, model, &stage, |trainer| timer.seconds(|| step(trainer, batch)))?;
    // The backward pass takes twice the forward one.
    let cost = Cost::flops(3.0 * batch as f64 * flops(&model.layout));
    let millions = model.layout.numel() as f64 / 1e6;
    let what = format!("{millions:.1} M parameters, batch {batch}, {}", format!("{precision:?}").to_lowercase());
    Ok(Timed { what, seconds, cost, items: batch, unit: "img" })
}

/// What so many steps with a checkpoint of all tracks in f32 among them take longer than as many without, in turn.
fn checkpoint(timer: &Timer, model: &Model, batch: u64) -> Result<Timed> {
    let every_nimg = 2 * STEPS * batch;
    let trajectory = TrajectoryConfig { every_nimg, tracks: vec!["all".into()], ..TrajectoryConfig::default() };
    let stage = StageConfig { trajectory: Some(trajectory), ..endless(batch) };
    let round = |trainer: &mut Trainer, steps| (0..steps).try_for_each(|_| step(trainer, batch));
    let once = Timer { device: timer.device, repeats: 2 * timer.repeats };
    let seconds = with_trainer(timer.device, model, &stage, |trainer| {
        // So that checkpoints, and what their writing takes, fall into the middle of every second round.
        round(trainer, STEPS / 2)?;
        once.warm_seconds(|| round(trainer, STEPS))
    })?;
    let lost: Vec<f64> = seconds.chunks_exact(2).map(|pair| pair[1] - pair[0]).collect();
    let usual = median(&seconds.iter().step_by(2).copied().collect::<Vec<_>>()) / STEPS as f64;
    let what = format!("{:.2} % of 100 steps of batch {batch}", median(&lost) / usual);
    Ok(Timed { what, seconds: lost, cost: Cost::default(), items: 1, unit: "files" })
}

/// A stage that does not end while it is timed.
fn endless(batch: u64) -> StageConfig {
    StageConfig {
        name: "bench".into(),
        start: None,
        nimg: 1 << 40,
        batch,
        microbatch: None,
        objective: ObjectiveConfig::Edm(Default::default()),
        teacher: None,
        optimizer: OptimizerConfig::default(),
        lr_ramp_nimg: 10_000_000,
        grad_clip: None,
        non_finite: NonFinite::Zero,
        dropout: None,
        ema: vec![EmaConfig::HalfLife { nimg: 500_000, rampup_ratio: Some(0.05) }],
        trajectory: None,
        tick_nimg: Some(1 << 40),
        state_minutes: 1e9,
    }
}

fn sampling(timer: &Timer, sampler: &SamplerConfig, chunk: u64) -> Result<Timed> {
    let model = tiny();
    let weights = model.layout.init(0, timer.device)?;
    let net = model.bind(&weights)?;
    let latents = LatentSet { seed: 0, stream: Stream::SampleLatents, n: IMAGES, chunk };
    let seconds = timer.seconds(|| crate::sample::chunks(&net, sampler, latents, timer.device, |_| Ok(())))?;
    let cost = Cost::flops(IMAGES as f64 * sampler.nfe() as f64 * flops(&model.layout));
    let what = format!("tiny, {} NFE, {chunk} at once", sampler.nfe());
    Ok(Timed { what, seconds, cost, items: IMAGES, unit: "img" })
}

/// A window of checkpoints with these rows f32 [P].
pub fn window(
    device: Device,
    layout: &ParamLayout,
    row: impl Fn(i64) -> Result<Tensor>,
) -> Result<(tempfile::TempDir, Window)> {
    let (folder, run) = run_folder()?;
    let mut writer = Writer::start(&run)?;
    for i in 0..CHECKPOINTS as u64 {
        let weights = Weights { theta: row(i as i64)?, buffers: layout.init(0, Device::Cpu)?.buffers };
        let checkpoint = Checkpoint::new("bench", i + 1, i + 1, "raw", StorageDtype::F32);
        writer.checkpoint(checkpoint, layout, &weights, "{}")?;
    }
    writer.finish()?;
    let bytes = 4 * CHECKPOINTS as u64 * layout.numel() as u64;
    let memory = Memory { device, device_bytes: bytes, host_bytes: bytes };
    let window = Window::load(&run, &Manifest::read(&run)?, layout, memory)?;
    Ok((folder, window))
}

/// A network of one tensor.
pub fn flat(parameters: i64) -> (ParamLayout, Partition) {
    let mut b = LayoutBuilder::default();
    b.param("w", &[parameters], Init::Zeros);
    let layout = b.finish();
    let partition = Partition::one(&layout);
    (layout, partition)
}

fn merging(timer: &Timer, candidates: usize) -> Result<Timed> {
    let (layout, partition) = flat(PARAMETERS);
    let random = |_| Ok(Tensor::f_randn([PARAMETERS], (Kind::Float, Device::Cpu))?);
    let (_folder, window) = window(timer.device, &layout, random)?;
    let alpha = vec![vec![1.0 / CHECKPOINTS as f64; CHECKPOINTS]];
    let alphas = vec![alpha.as_slice(); candidates];
    let seconds = timer.seconds(|| window.merge_many(&partition, &alphas))?;
    let cost = Cost::bytes(4.0 * PARAMETERS as f64 * (CHECKPOINTS + candidates) as f64);
    let what = format!("{candidates} of {CHECKPOINTS} × {} M in f32", PARAMETERS / 1_000_000);
    Ok(Timed { what, seconds, cost, items: candidates as u64, unit: "models" })
}

/// Weights that keep the size of activations, under the names of pytorch-fid's file.
pub fn inception_weights() -> Result<Vec<(String, Tensor)>> {
    let float = (Kind::Float, Device::Cpu);
    let tensor = |spec: &lcsc_torch::TensorSpec| -> Result<Tensor> {
        let shape = spec.shape.as_slice();
        Ok(match shape {
            [_] if spec.name.ends_with("weight") || spec.name.ends_with("var") => Tensor::f_ones(shape, float)?,
            [_] => Tensor::f_zeros(shape, float)?,
            [_, inner @ ..] => {
                let fan_in: i64 = inner.iter().product();
                Tensor::f_randn(shape, float)?.f_mul_scalar((2.0 / fan_in as f64).sqrt())?
            }
            [] => Tensor::f_zeros(shape, float)?,
        })
    };
    Inception::tensors().iter().map(|spec| Ok((spec.name.clone(), tensor(spec)?))).collect()
}

/// FID's extractor with these weights.
pub fn inception(weights: &[(String, Tensor)], device: Device) -> Result<Extractor> {
    Ok(Extractor::Inception(Box::new(Inception::new(weights, "bench", device)?)))
}

fn features(timer: &Timer) -> Result<Timed> {
    let extractor = inception(&inception_weights()?, timer.device)?;
    let n = timer.on(16, 512);
    let images = pixels(n, [3, 32, 32])?;
    let seconds = timer.seconds(|| extractor.features(&images))?;
    let cost = Cost::flops(n as f64 * INCEPTION_FLOPS);
    Ok(Timed { what: "Inception at 299×299".into(), seconds, cost, items: n as u64, unit: "img" })
}

/// Of one image, as PyTorch's flop counter counts them.
const INCEPTION_FLOPS: f64 = 11.42e9;

/// Real and generated features, f32 [N,D].
pub fn feature_pair(device: Device) -> Result<[Tensor; 2]> {
    let normal = || Tensor::f_randn(FEATURES, (Kind::Float, device));
    Ok([normal()?, normal()?.f_mul_scalar(1.1)?])
}

fn frechet(timer: &Timer) -> Result<Timed> {
    let [real, generated] = feature_pair(timer.device)?;
    let reference = Reference::new(FeatureStats::of(&real)?)?;
    let seconds = timer.seconds(|| reference.distance(&FeatureStats::of(&generated)?))?;
    let [n, d] = FEATURES;
    let what = format!("{n} × {d}, statistics and distance in f64");
    Ok(Timed { what, seconds, cost: Cost::default(), items: n as u64, unit: "img" })
}

/// A search on digits.
pub struct Search {
    device: Device,
    pub model: Model,
    pub data: Dataset,
    suite: Suite,
    window: Window,
    partition: Partition,
    tracks: BTreeMap<String, Weights>,
    config: SearchConfig,
    sampler: SamplerConfig,
    folder: tempfile::TempDir,
}

impl Search {
    /// Over checkpoints of `model` with these parameters f32 [K,P].
    pub fn new(device: Device, model: Model, rows: &Tensor, chunk: u64) -> Result<Self> {
        let data = Dataset::open(&DataConfig::default(), &ProgressBar::hidden())?;
        let (folder, window) = window(device, &model.layout, |i| Ok(rows.f_get(i)?))?;
        let labels = data.labels.as_ref();
        let real = RealImages { images: &data.images, labels, classes: data.classes, hash: &data.hash };
        let kept = Some(folder.path());
        let suite = Preparation { real, seed: 0, device, cache: None, kept, progress: &|_, _, _| () }.suite(None)?;
        let (partition, tracks) = (Partition::one(&model.layout), BTreeMap::new());
        let config = SearchConfig { images: IMAGES, chunk, ..SearchConfig::default() };
        let sampler = sampler(Work::SampleOneStep);
        Ok(Self { device, model, data, suite, window, partition, tracks, config, sampler, folder })
    }

    /// What scores its candidates.
    pub fn fitness(&self) -> SampledFitness<'_> {
        let Self { device, model, suite, window, partition, tracks, config, sampler, .. } = self;
        let models = Models { window, partition, tracks };
        let setting = Setting { model, models, suite, sampler, config, seed: 0, device: *device };
        SampledFitness::new(setting, self.folder.path().join("tuning"))
    }

    /// Where its files are.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }
}

fn evaluation(timer: &Timer, chunk: u64) -> Result<Timed> {
    let model = tiny();
    let rows = Tensor::f_randn([CHECKPOINTS as i64, model.layout.numel()], (Kind::Float, Device::Cpu))?;
    let search = Search::new(timer.device, model, &rows, chunk)?;
    let mut fitness = search.fitness();
    let uniform = Coefficients::one(vec![1.0 / CHECKPOINTS as f64; CHECKPOINTS])?;
    let candidate = lcsc_search::Model::Coefficients(uniform);
    let seconds = timer.seconds(|| fitness.score(&candidate, Latents::Search))?;
    let what = format!("tiny, {CHECKPOINTS} checkpoints, {IMAGES} images in one step");
    Ok(Timed { what, seconds, cost: Cost::default(), items: 1, unit: "candidates" })
}

fn fid(timer: &Timer, chunk: u64) -> Result<Timed> {
    let (model, n) = (network(Work::Fid, Precision::F32), timer.on(16, 50_000));
    let weights = model.layout.init(0, timer.device)?;
    let net = model.bind(&weights)?;
    let [real, _] = feature_pair(timer.device)?;
    let scorer = Scorer {
        extractor: inception(&inception_weights()?, timer.device)?,
        reference: Reference::new(FeatureStats::of(&real)?)?,
        real_features: None,
        reference_hash: "bench".into(),
    };
    let latents = LatentSet { seed: 0, stream: Stream::SampleLatents, n, chunk };
    let seconds = timer.seconds(|| {
        let mut evaluation = Evaluation::new(&scorer, n, Metrics::default())?;
        crate::sample::chunks(&net, &sampler(Work::Fid), latents, timer.device, |images| evaluation.add(images))?;
        evaluation.finish()
    })?;
    let cost = Cost::flops(n as f64 * (flops(&model.layout) + INCEPTION_FLOPS));
    Ok(Timed { what: format!("DDPM++, one step, {n} images, Inception"), seconds, cost, items: n, unit: "img" })
}
