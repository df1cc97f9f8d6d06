//! The works that are timed.

use super::cost::{Cost, network as flops};
use super::setup::{
    CHECKPOINTS, FEATURES, IMAGES, Net, Search, endless, feature_pair, flat, heun, inception, inception_weights,
    one_step, pixels, window, with_trainer,
};
use super::timing::{Timer, median};
use crate::sample;
use clap::ValueEnum;
use indicatif::ProgressBar;
use lcsc_diffusion::{LatentSet, SamplerConfig};
use lcsc_metrics::{Evaluation, FeatureStats, Metrics, Reference, Scorer};
use lcsc_search::{Coefficients, Fitness, Latents};
use lcsc_torch::{Device, Kind, Precision, Result, Stream, Tensor};
use lcsc_train::{StageConfig, Trainer};
use lcsc_trajectory::TrajectoryConfig;
use serde::Serialize;

/// Parameters of each checkpoint that are merged: those of a small network for CIFAR-10.
const PARAMETERS: i64 = 20_000_000;
/// Candidates merged in one pass.
pub const CANDIDATES: usize = 8;
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
    /// The sum over several ranks of the gradient of DDPM++ for CIFAR-10.
    AllReduce,
}

/// What came out.
pub struct Timed {
    pub what: String,
    pub seconds: Vec<f64>,
    pub cost: Cost,
    /// How many of which things are done, where there is a rate.
    pub items: Option<(u64, &'static str)>,
}

impl Work {
    /// What so many ranks do where nothing is said.
    pub fn all(ranks: usize) -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|work| work.problem(ranks).is_none()).collect()
    }

    /// Why so many ranks cannot do it.
    pub fn problem(self, ranks: usize) -> Option<&'static str> {
        match self {
            Self::TrainTiny | Self::TrainCifar10 | Self::TrainImagenet64 => None,
            Self::AllReduce if ranks == 1 => {
                Some("is done by several ranks: lcsc launch --nproc 2 -- bench all-reduce")
            }
            Self::AllReduce => None,
            Self::Checkpoint
            | Self::SampleOneStep
            | Self::SampleHeun
            | Self::Merge
            | Self::MergeMany
            | Self::Features
            | Self::Frechet
            | Self::Evaluation
            | Self::Fid => (ranks > 1).then_some("is timed in one process: start it without launch"),
        }
    }

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
            Self::TrainTiny => training(timer, Net::Tiny, precision),
            Self::TrainCifar10 => training(timer, Net::Cifar10, precision),
            Self::TrainImagenet64 => training(timer, Net::Imagenet64, precision),
            Self::Checkpoint => checkpoint(timer, timer.on(Net::Tiny, Net::Cifar10), precision),
            Self::SampleOneStep => sampling(timer, &one_step(), chunk),
            Self::SampleHeun => sampling(timer, &heun(), chunk),
            Self::Merge => merging(timer, 1),
            Self::MergeMany => merging(timer, CANDIDATES),
            Self::Features => features(timer),
            Self::Frechet => frechet(timer),
            Self::Evaluation => evaluation(timer, chunk),
            Self::Fid => fid(timer, chunk),
            Self::AllReduce => all_reduce(timer, precision),
        }
    }
}

fn step(trainer: &mut Trainer, batch: u64) -> Result<()> {
    let next = trainer.nimg() + batch;
    trainer.train_until(next, &|| Ok(false), &ProgressBar::hidden()).map(drop)
}

/// Steps as the training loop makes them, averages among them.
fn training(timer: &Timer, net: Net, precision: Precision) -> Result<Timed> {
    let (model, share) = (net.planned(timer, precision)?, net.batch(timer));
    // As many images a rank, whatever their number.
    let batch = share * timer.group.size() as u64;
    let stage = StageConfig { microbatch: Some(share), ..endless(batch) };
    let seconds =
        with_trainer(timer.device, timer.group, &model, &stage, |trainer| timer.seconds(|| step(trainer, batch)))?;
    // The backward pass takes twice the forward one.
    let cost = Cost::flops(3.0 * share as f64 * flops(&model.layout));
    let millions = model.layout.numel() as f64 / 1e6;
    let what = format!("{millions:.1} M parameters, batch {batch}, plan: {}", model.plan);
    Ok(Timed { what, seconds, cost, items: Some((batch, "img")) })
}

/// A ring sends and receives 2·(N−1)/N of the vector on each of N ranks.
fn all_reduce(timer: &Timer, precision: Precision) -> Result<Timed> {
    let parameters = Net::Cifar10.model(Precision::F32).layout.numel();
    let gradient = Tensor::f_ones([parameters], (precision.kind(), timer.device))?;
    let seconds = timer.seconds(|| timer.group.sum(&gradient))?;
    let ranks = timer.group.size();
    let bytes = 2 * (ranks - 1) * parameters as usize * gradient.kind().elt_size_in_bytes() / ranks;
    let what = format!("{:.1} M values of {:?}, {ranks} ranks", parameters as f64 / 1e6, gradient.kind());
    Ok(Timed { what, seconds, cost: Cost::default(), items: Some((bytes as u64 / 1_000_000, "MB sent")) })
}

/// What so many steps with a checkpoint of all tracks in f32 among them take longer than as many without, in turn.
fn checkpoint(timer: &Timer, net: Net, precision: Precision) -> Result<Timed> {
    let (model, batch) = (net.planned(timer, precision)?, net.batch(timer));
    let every_nimg = 2 * STEPS * batch;
    let trajectory = TrajectoryConfig { every_nimg, tracks: vec!["all".into()], ..TrajectoryConfig::default() };
    let stage = StageConfig { trajectory: Some(trajectory), ..endless(batch) };
    let round = |trainer: &mut Trainer, steps| (0..steps).try_for_each(|_| step(trainer, batch));
    let once = Timer { repeats: 2 * timer.repeats, ..*timer };
    let seconds = with_trainer(timer.device, timer.group, &model, &stage, |trainer| {
        // So that checkpoints, and what their writing takes, fall into the middle of every second round.
        round(trainer, STEPS / 2)?;
        once.warm_seconds(|| round(trainer, STEPS))
    })?;
    let lost: Vec<f64> = seconds.chunks_exact(2).map(|pair| pair[1] - pair[0]).collect();
    let usual = median(&seconds.iter().step_by(2).copied().collect::<Vec<_>>()) / STEPS as f64;
    let what = format!("{:.2} % of 100 steps of batch {batch}", median(&lost) / usual);
    Ok(Timed { what, seconds: lost, cost: Cost::default(), items: None })
}

fn sampling(timer: &Timer, sampler: &SamplerConfig, chunk: u64) -> Result<Timed> {
    let model = Net::Tiny.model(Precision::F32);
    let weights = model.layout.init(0, timer.device)?;
    let net = model.bind(&weights)?;
    let latents = LatentSet { seed: 0, stream: Stream::SampleLatents, n: IMAGES, chunk };
    let place = (timer.device, timer.group);
    let seconds = timer.seconds(|| sample::chunks(&net, sampler, latents, place, |_| Ok(())))?;
    let cost = Cost::flops(IMAGES as f64 * sampler.nfe() as f64 * flops(&model.layout));
    let what = format!("tiny, {} NFE, {chunk} at once", sampler.nfe());
    Ok(Timed { what, seconds, cost, items: Some((IMAGES, "img")) })
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
    Ok(Timed { what, seconds, cost, items: Some((candidates as u64, "models")) })
}

fn features(timer: &Timer) -> Result<Timed> {
    let extractor = inception(&inception_weights()?, timer.device)?;
    let n = timer.on(16, 512);
    let images = pixels(n, [3, 32, 32])?;
    let seconds = timer.seconds(|| extractor.features(&images))?;
    let cost = Cost::flops(n as f64 * INCEPTION_FLOPS);
    Ok(Timed { what: "Inception at 299×299".into(), seconds, cost, items: Some((n as u64, "img")) })
}

/// Of one image, as PyTorch's flop counter counts them.
const INCEPTION_FLOPS: f64 = 11.42e9;

fn frechet(timer: &Timer) -> Result<Timed> {
    let [real, generated] = feature_pair(timer.device)?;
    let reference = Reference::new(FeatureStats::of(&real)?)?;
    let seconds = timer.seconds(|| reference.distance(&FeatureStats::of(&generated)?))?;
    let [n, d] = FEATURES;
    let what = format!("{n} × {d}, statistics and distance in f64");
    Ok(Timed { what, seconds, cost: Cost::default(), items: Some((n as u64, "img")) })
}

fn evaluation(timer: &Timer, chunk: u64) -> Result<Timed> {
    let model = Net::Tiny.model(Precision::F32);
    let rows = Tensor::f_randn([CHECKPOINTS as i64, model.layout.numel()], (Kind::Float, Device::Cpu))?;
    let search = Search::new(timer.device, model, &rows, chunk)?;
    let mut fitness = search.fitness();
    let uniform = Coefficients::one(vec![1.0 / CHECKPOINTS as f64; CHECKPOINTS])?;
    let candidate = lcsc_search::Model::Coefficients(uniform);
    let seconds = timer.seconds(|| fitness.scores(&[&candidate], Latents::Search))?;
    let what = format!("tiny, {CHECKPOINTS} checkpoints, {IMAGES} images in one step");
    Ok(Timed { what, seconds, cost: Cost::default(), items: Some((1, "candidates")) })
}

fn fid(timer: &Timer, chunk: u64) -> Result<Timed> {
    let (model, n) = (Net::Cifar10.model(Precision::F32), timer.on(16, 50_000));
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
        sample::chunks(&net, &one_step(), latents, (timer.device, timer.group), |images| evaluation.add(&images))?;
        evaluation.finish()
    })?;
    let cost = Cost::flops(n as f64 * (flops(&model.layout) + INCEPTION_FLOPS));
    Ok(Timed { what: format!("DDPM++, one step, {n} images, Inception"), seconds, cost, items: Some((n, "img")) })
}
