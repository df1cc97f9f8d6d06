//! The works that are timed.

use super::cost::{Cost, network};
use super::timing::Timer;
use indicatif::ProgressBar;
use lcsc_data::{DataConfig, Dataset};
use lcsc_diffusion::{
    ConsistencyConfig, LatentSet, Model, ObjectiveConfig, OdeConfig, PreconditioningConfig, SamplerConfig,
};
use lcsc_metrics::{FeatureStats, Preparation, RealImages, Reference};
use lcsc_search::{Coefficients, Fitness, Latents, Models, SampledFitness, SearchConfig, Setting};
use lcsc_torch::{
    Context, Device, Init, Kind, LayoutBuilder, OptimizerConfig, ParamLayout, Precision, Result, StorageDtype, Stream,
    Tensor, Weights,
};
use lcsc_train::{NonFinite, StageConfig, StageContext, Trainer};
use lcsc_trajectory::{Checkpoint, EmaConfig, Memory, Partition, RunFolder, Window, Writer};
use lcsc_unet::{ImageShape, NetworkConfig, SongUNetConfig};
use serde::Serialize;
use std::collections::BTreeMap;

/// Checkpoints of a window.
const CHECKPOINTS: usize = 50;
/// Parameters of each that are merged: those of a small network for CIFAR-10.
const PARAMETERS: i64 = 20_000_000;
/// Candidates merged in one pass.
const CANDIDATES: usize = 8;
/// Images sampled.
const IMAGES: u64 = 1000;
/// Features [N,D] of a Fréchet distance.
const FEATURES: [i64; 2] = [5000, 2048];

/// A work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// A step of EDM on 8×8 digits, tiny network.
    TrainTiny,
    /// A step of EDM on 32×32 images, DDPM++.
    TrainCifar10,
    /// 1,000 images in one step, tiny network.
    SampleOneStep,
    /// 1,000 images by Heun's method, tiny network.
    SampleHeun,
    /// A merged model of 50 checkpoints.
    Merge,
    /// Eight merged models in one pass.
    MergeMany,
    /// From 5,000 × 2,048 features to a Fréchet distance.
    Frechet,
    /// A candidate of a search: merged, sampled, measured.
    Evaluation,
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
    /// Prepares it and takes its time; `chunk` images are sampled at once.
    ///
    /// # Errors
    /// There is no room, on the device or on the disk.
    pub fn time(self, timer: &Timer, chunk: u64) -> Result<Timed> {
        let of_device = |cpu, gpu| if timer.device == Device::Cpu { cpu } else { gpu };
        match self {
            Self::TrainTiny => training(timer, "tiny", model(SongUNetConfig::tiny(), TINY), 64),
            Self::TrainCifar10 => {
                let model = model(SongUNetConfig::ddpmpp_cifar10(), CIFAR10);
                training(timer, "ddpmpp-cifar10", model, of_device(4, 512))
            }
            Self::SampleOneStep => sampling(timer, &SamplerConfig::Consistency(ConsistencyConfig::default()), chunk),
            Self::SampleHeun => sampling(timer, &SamplerConfig::Heun(OdeConfig::default()), chunk),
            Self::Merge => merging(timer, 1),
            Self::MergeMany => merging(timer, CANDIDATES),
            Self::Frechet => frechet(timer),
            Self::Evaluation => evaluation(timer, chunk),
        }
    }
}

const TINY: ImageShape = ImageShape { channels: 1, resolution: 8, label_dim: 0 };
const CIFAR10: ImageShape = ImageShape { channels: 3, resolution: 32, label_dim: 0 };

fn model(network: SongUNetConfig, image: ImageShape) -> Model {
    Model::new(&NetworkConfig::Song(network), &PreconditioningConfig::default(), image, Precision::F32)
}

/// A folder that is gone afterwards, as a run.
fn run_folder() -> Result<(tempfile::TempDir, RunFolder)> {
    let folder = tempfile::tempdir().at(std::env::temp_dir())?;
    let run = RunFolder::create(folder.path())?;
    Ok((folder, run))
}

/// Steps as the training loop makes them, log and averages among them.
fn training(timer: &Timer, name: &str, model: Model, batch: u64) -> Result<Timed> {
    let (_folder, run) = run_folder()?;
    let mut data = Dataset::open(&DataConfig::default(), &ProgressBar::hidden())?;
    let [c, h, w] = model.image.chw();
    let pixels = Tensor::f_randint(256, [2048, c, h, w], (Kind::Uint8, Device::Cpu))?;
    (data.images, data.labels) = (pixels, None);
    let data = data.to_device(timer.device)?;
    let stage = endless(batch);
    let weights = model.layout.init(0, timer.device)?;
    let card = serde_json::json!({});
    let context = StageContext {
        run: &run,
        stage: &stage,
        nimg_before: 0,
        model: &model,
        teacher: None,
        data: &data,
        seed: 0,
        device: timer.device,
        config_hash: "bench",
        card: &card,
        finished: Vec::new(),
    };
    let mut trainer = Trainer::new(context, weights)?;
    let mut nimg = 0;
    let seconds = timer.seconds(|| {
        nimg += batch;
        trainer.train_until(nimg, &|| false, &ProgressBar::hidden())
    })?;
    // The backward pass takes twice the forward one.
    let cost = Cost::flops(3.0 * batch as f64 * network(&model.layout));
    Ok(Timed { what: format!("{name}, batch {batch}"), seconds, cost, items: batch, unit: "img" })
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
    let model = model(SongUNetConfig::tiny(), TINY);
    let weights = model.layout.init(0, timer.device)?;
    let net = model.bind(&weights)?;
    let latents = LatentSet { seed: 0, stream: Stream::SampleLatents, n: IMAGES, chunk };
    let sample = || crate::sample::chunks(&net, sampler, latents, timer.device, |_| Ok(()));
    let seconds = timer.seconds(sample)?;
    let cost = Cost::flops(IMAGES as f64 * sampler.nfe() as f64 * network(&model.layout));
    Ok(Timed {
        what: format!("tiny, {} NFE, {chunk} at once", sampler.nfe()),
        seconds,
        cost,
        items: IMAGES,
        unit: "img",
    })
}

/// A window of checkpoints of this layout with normally distributed values.
fn window(timer: &Timer, layout: &ParamLayout) -> Result<(tempfile::TempDir, Window)> {
    let (folder, run) = run_folder()?;
    let mut writer = Writer::start(&run)?;
    for i in 1..=CHECKPOINTS as u64 {
        let theta = Tensor::f_randn([layout.numel()], (Kind::Float, Device::Cpu))?;
        let weights = Weights { theta, buffers: layout.init(0, Device::Cpu)?.buffers };
        let checkpoint = Checkpoint::new("bench", i, i, "raw", StorageDtype::F32);
        writer.checkpoint(checkpoint, layout, &weights, "{}")?;
    }
    writer.finish()?;
    let bytes = 4 * CHECKPOINTS as u64 * layout.numel() as u64;
    let memory = Memory { device: timer.device, device_bytes: bytes, host_bytes: bytes };
    let window = Window::load(&run, &lcsc_trajectory::Manifest::read(&run)?, layout, memory)?;
    Ok((folder, window))
}

fn merging(timer: &Timer, candidates: usize) -> Result<Timed> {
    let mut b = LayoutBuilder::default();
    b.param("w", &[PARAMETERS], Init::Zeros);
    let layout = b.finish();
    let (_folder, window) = window(timer, &layout)?;
    let partition = Partition::one(&layout);
    let alpha = vec![vec![1.0 / CHECKPOINTS as f64; CHECKPOINTS]];
    let alphas = vec![alpha.as_slice(); candidates];
    let seconds = timer.seconds(|| window.merge_many(&partition, &alphas))?;
    let cost = Cost::bytes(4.0 * PARAMETERS as f64 * (CHECKPOINTS + candidates) as f64);
    let what = format!("{candidates} of {CHECKPOINTS} × {} M in f32", PARAMETERS / 1_000_000);
    Ok(Timed { what, seconds, cost, items: candidates as u64, unit: "models" })
}

fn frechet(timer: &Timer) -> Result<Timed> {
    let features = |scale: f64| -> Result<Tensor> {
        Ok(Tensor::f_randn(FEATURES, (Kind::Float, timer.device))?.f_mul_scalar(scale)?)
    };
    let reference = Reference::new(FeatureStats::of(&features(1.0)?)?)?;
    let generated = features(1.1)?;
    let seconds = timer.seconds(|| reference.distance(&FeatureStats::of(&generated)?))?;
    let [n, d] = FEATURES;
    let what = format!("{n} × {d}, statistics and distance in f64");
    Ok(Timed { what, seconds, cost: Cost::default(), items: n as u64, unit: "img" })
}

fn evaluation(timer: &Timer, chunk: u64) -> Result<Timed> {
    let model = model(SongUNetConfig::tiny(), TINY);
    let data = Dataset::open(&DataConfig::default(), &ProgressBar::hidden())?;
    let real =
        RealImages { images: &data.images, labels: data.labels.as_ref(), classes: data.classes, hash: &data.hash };
    let preparation =
        Preparation { real, seed: 0, device: timer.device, cache: None, kept: None, progress: &|_, _, _| () };
    let suite = preparation.suite(None)?;
    let (folder, window) = window(timer, &model.layout)?;
    let (partition, tracks) = (Partition::one(&model.layout), BTreeMap::new());
    let config = SearchConfig { images: IMAGES, chunk, ..SearchConfig::default() };
    let setting = Setting {
        model: &model,
        models: Models { window: &window, partition: &partition, tracks: &tracks },
        suite: &suite,
        sampler: &SamplerConfig::Consistency(ConsistencyConfig::default()),
        config: &config,
        seed: 0,
        device: timer.device,
    };
    let mut fitness = SampledFitness::new(setting, folder.path().join("tuning"));
    let uniform = Coefficients::one(vec![1.0 / CHECKPOINTS as f64; CHECKPOINTS])?;
    let candidate = lcsc_search::Model::Coefficients(uniform);
    let seconds = timer.seconds(|| fitness.score(&candidate, Latents::Search))?;
    let what = format!("tiny, {CHECKPOINTS} checkpoints, {IMAGES} images in one step");
    Ok(Timed { what, seconds, cost: Cost::default(), items: 1, unit: "candidates" })
}
