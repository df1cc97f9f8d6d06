//! What the works are done with: networks, data, checkpoints, extractors.

use super::timing::Timer;
use crate::plans::{self, Trial};
use indicatif::ProgressBar;
use lcsc_data::{DataConfig, Dataset};
use lcsc_diffusion::{ConsistencyConfig, Model, ObjectiveConfig, OdeConfig, PreconditioningConfig, SamplerConfig};
use lcsc_metrics::{Extractor, Inception, Preparation, RealImages, Suite};
use lcsc_search::{Models, SampledFitness, SearchConfig, Setting};
use lcsc_torch::{
    Context, Device, Group, Init, Kind, LayoutBuilder, OptimizerConfig, ParamLayout, Precision, Result, StorageDtype,
    Tensor, TensorSpec, Weights,
};
use lcsc_train::{GradientDtype, NonFinite, StageConfig, StageContext, Trainer};
use lcsc_trajectory::{Checkpoint, EmaConfig, Manifest, Memory, Partition, RunFolder, Window, Writer};
use lcsc_unet::{DhariwalUNetConfig, ImageShape, NetworkConfig, SongUNetConfig};
use std::collections::BTreeMap;
use std::path::Path;

/// Checkpoints of a window.
pub const CHECKPOINTS: usize = 50;
/// Images sampled.
pub const IMAGES: u64 = 1000;
/// Features `[N,D]` of a Fréchet distance.
pub const FEATURES: [i64; 2] = [5000, 2048];

/// The networks that are trained, with EDM's preconditioning.
#[derive(Clone, Copy)]
pub enum Net {
    Tiny,
    Cifar10,
    Imagenet64,
}

impl Net {
    fn network(self) -> (NetworkConfig, ImageShape) {
        let (network, channels, resolution) = match self {
            Self::Tiny => (NetworkConfig::Song(SongUNetConfig::tiny()), 1, 8),
            Self::Cifar10 => (NetworkConfig::Song(SongUNetConfig::ddpmpp_cifar10()), 3, 32),
            Self::Imagenet64 => (NetworkConfig::Adm(DhariwalUNetConfig::adm_imagenet64()), 3, 64),
        };
        (network, ImageShape { channels, resolution, label_dim: 0 })
    }

    pub fn model(self, precision: Precision) -> Model {
        let (network, image) = self.network();
        Model::new(&network, &PreconditioningConfig::default(), image, precision)
    }

    /// The same as a run that trains it computes it.
    pub fn planned(self, timer: &Timer, precision: Precision) -> Result<Model> {
        let (network, image) = self.network();
        let network = (&network, &PreconditioningConfig::default());
        let trial = Trial::new(network, (image, precision), self.batch(timer), true);
        Ok(self.model(precision).with_plan(plans::choose(timer.plan, &trial, timer.device, timer.group)?))
    }

    /// Images of a training step.
    pub fn batch(self, timer: &Timer) -> u64 {
        match self {
            Self::Tiny => 64,
            Self::Cifar10 => timer.on(4, 512),
            Self::Imagenet64 => timer.on(1, 64),
        }
    }
}

/// A consistency model's sampler.
pub fn one_step() -> SamplerConfig {
    SamplerConfig::Consistency(ConsistencyConfig::default())
}

/// A diffusion model's sampler.
pub fn heun() -> SamplerConfig {
    SamplerConfig::Heun(OdeConfig::default())
}

/// A folder that is gone afterwards, as a run.
fn run_folder() -> Result<(tempfile::TempDir, RunFolder)> {
    let folder = tempfile::tempdir().at(std::env::temp_dir())?;
    let run = RunFolder::create(folder.path())?;
    Ok((folder, run))
}

/// Random images u8 `[N,C,H,W]`.
pub fn pixels(n: i64, [c, h, w]: [i64; 3]) -> Result<Tensor> {
    Ok(Tensor::f_randint(256, [n, c, h, w], (Kind::Uint8, Device::Cpu))?)
}

/// Calls `with` on a trainer of random images, as the training loop has one.
pub fn with_trainer<T>(
    device: Device,
    group: &Group,
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
        sampler: &SamplerConfig::default(),
        device,
        group,
        gradients: GradientDtype::F32,
        config_hash: "bench",
        card: &card,
        finished: Vec::new(),
    };
    with(&mut Trainer::new(context, model.layout.init(0, device)?)?)
}

/// A stage that does not end while it is timed.
pub fn endless(batch: u64) -> StageConfig {
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
        sample_nimg: Some(0),
        state_minutes: Some(1e9),
    }
}

/// A window of checkpoints with these rows f32 `[P]`.
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

/// Weights that keep the size of activations, under the names of pytorch-fid's file.
pub fn inception_weights() -> Result<Vec<(String, Tensor)>> {
    let float = (Kind::Float, Device::Cpu);
    let tensor = |spec: &TensorSpec| -> Result<Tensor> {
        let shape = spec.shape.as_slice();
        Ok(match spec.numel() / shape[0] {
            1 if spec.name.ends_with("weight") || spec.name.ends_with("var") => Tensor::f_ones(shape, float)?,
            1 => Tensor::f_zeros(shape, float)?,
            fan_in => Tensor::f_randn(shape, float)?.f_mul_scalar((2.0 / fan_in as f64).sqrt())?,
        })
    };
    Inception::tensors().iter().map(|spec| Ok((spec.name.clone(), tensor(spec)?))).collect()
}

/// FID's extractor with these weights.
pub fn inception(weights: &[(String, Tensor)], device: Device) -> Result<Extractor> {
    Ok(Extractor::Inception(Box::new(Inception::new(weights, "bench", device)?)))
}

/// Real and generated features, f32 `[N,D]`.
pub fn feature_pair(device: Device) -> Result<[Tensor; 2]> {
    let normal = || Tensor::f_randn(FEATURES, (Kind::Float, device));
    Ok([normal()?, normal()?.f_mul_scalar(1.1)?])
}

/// A search on digits.
pub struct Search {
    device: Device,
    group: Group,
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
    /// Over checkpoints of `model` with these parameters f32 `[K,P]`.
    pub fn new(device: Device, model: Model, rows: &Tensor, chunk: u64) -> Result<Self> {
        let data = Dataset::open(&DataConfig::default(), &ProgressBar::hidden())?;
        let (folder, window) = window(device, &model.layout, |i| Ok(rows.f_get(i)?))?;
        let labels = data.labels.as_ref();
        let real = RealImages { images: &data.images, labels, classes: data.classes, hash: &data.hash };
        let kept = Some(folder.path());
        let suite =
            Preparation { real, seed: 0, device, cache: None, kept, progress: &|_, _, _| () }.suite([None, None])?;
        let (partition, tracks) = (Partition::one(&model.layout), BTreeMap::new());
        let config = SearchConfig { images: IMAGES, chunk, ..SearchConfig::default() };
        let sampler = one_step();
        let group = Group::alone();
        Ok(Self { device, group, model, data, suite, window, partition, tracks, config, sampler, folder })
    }

    /// What scores its candidates.
    pub fn fitness(&self) -> SampledFitness<'_> {
        let Self { device, group, model, suite, window, partition, tracks, config, sampler, .. } = self;
        let models = Models { window, partition, tracks };
        let setting = Setting { model, models, suite, sampler, config, seed: 0, device: *device, group };
        SampledFitness::new(setting, self.folder().join("tuning"))
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inception_computes_nearly_the_same_in_lower_precision() {
        let weights = inception_weights().unwrap();
        let image = lcsc_torch::to_float(&pixels(1, [3, 32, 32]).unwrap());
        let of = |precision| {
            let net = Inception::new(&weights, "bench", Device::Cpu).unwrap().in_precision(precision).unwrap();
            let extractor = Extractor::Inception(Box::new(net));
            (extractor.forward(&image).unwrap(), extractor.convention())
        };
        let (exact, convention) = of(Precision::F32);
        for (precision, name, most) in [(Precision::Bf16, "bf16", 0.03), (Precision::F16, "f16", 0.004)] {
            let (features, named) = of(precision);
            let error = (&features - &exact).norm().double_value(&[]) / exact.norm().double_value(&[]);
            assert!(0.0 < error && error < most, "{name}: {error}");
            assert_eq!(named, format!("{convention} {name}"));
            assert_eq!(features.kind(), Kind::Float);
        }
    }
}
