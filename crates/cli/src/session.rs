//! What every command on a run folder has at hand.

use crate::card::Card;
use crate::config::{Config, Loaded};
use crate::search::{DEFAULT_NAME, EVALUATIONS};
use crate::{Ended, extractor, plans, progress, ranks, ui};
use lcsc_data::Dataset;
use lcsc_diffusion::Model;
use lcsc_metrics::{Extractor, Preparation, RealImages, Scorer, Suite};
use lcsc_search::{Team, When};
use lcsc_torch::{
    Device, DeviceChoice, Error, Group, Plan, Precision, Result, allow_tf32, catch, choose_kernels, cpu_threads,
    default_threads, open_cuda, set_cpu_threads, write_atomic,
};
use lcsc_train::StageConfig;
use lcsc_trajectory::{RunFolder, RunLock};
use lcsc_unet::ImageShape;
use miette::IntoDiagnostic;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Training, and a search after or during it.
    Train,
    /// A search, alone or `shared` with other workers.
    Search { shared: bool },
}

/// A run folder that this process works on, with its config and data.
pub struct Session<'a> {
    pub config: Config,
    pub run: RunFolder,
    pub device: Device,
    pub data: Dataset,
    pub image: ImageShape,
    pub training_hash: String,
    pub card: Card,
    pub signals: &'a ui::Signals,
    /// How networks are trained.
    training_plan: Plan,
    /// How a search samples by them.
    sampling_plan: Plan,
    /// The processes that work on it; rank 0 alone reads and writes its files.
    pub group: &'a Group,
    suite: OnceCell<Suite>,
    /// On the other ranks: what they judge with instead, in the same order.
    judges: OnceCell<(Scorer, [Extractor; 2])>,
    _lock: Option<RunLock>,
}

impl<'a> Session<'a> {
    /// Locks the run folder, for this process alone or shared with other workers, and loads the data.
    ///
    /// # Errors
    /// Another process works there, the device or the data cannot be had.
    pub fn open(
        loaded: Loaded,
        run: RunFolder,
        signals: &'a ui::Signals,
        group: &'a Group,
        purpose: Purpose,
    ) -> miette::Result<Self> {
        let Loaded { config, data: info } = loaded;
        let lock = || {
            let lock = if purpose == (Purpose::Search { shared: true }) { run.lock_shared() } else { run.lock() };
            lock.and_then(|lock| ui::log_to(&run.log()).map(|()| lock)).map(Some)
        };
        let lock = group.all_ok(if group.leads() { lock() } else { Ok(None) }).into_diagnostic()?;
        let device = machine(config.device, config.threads, group)?;
        if config.deterministic && device.is_cuda() {
            only_deterministic_kernels().into_diagnostic()?;
        }
        allow_tf32(config.precision == Precision::Tf32).into_diagnostic()?;
        let data = ranks::all_ok(group, dataset(&config.data, device))?;
        let image = config.image(&info);
        let plan = |trains| plans::choose(config.plan, &config.trial(image, trains), device, group).into_diagnostic();
        let training_plan = if purpose == Purpose::Train { plan(true)? } else { Plan::PLAIN };
        let samples = purpose != Purpose::Train || config.search.when != When::Off;
        let sampling_plan = if samples { plan(false)? } else { Plan::PLAIN };
        let training_hash = config.training_hash(&data.hash)?;
        group.same("data or weights files", &training_hash).into_diagnostic()?;
        let card = Card::new(&config, image, &data.hash);
        let (suite, judges) = (OnceCell::new(), OnceCell::new());
        let session = Self {
            config,
            run,
            device,
            data,
            image,
            training_hash,
            card,
            signals,
            training_plan,
            sampling_plan,
            group,
            suite,
            judges,
            _lock: lock,
        };
        Ok(session)
    }

    /// The network of a stage, and how it is trained here.
    pub fn model(&self, stage: &StageConfig) -> Model {
        self.config.model(stage, self.image).with_plan(self.training_plan)
    }

    /// The same, and how a search samples by it here.
    pub fn searched_model(&self, stage: &StageConfig) -> Model {
        self.config.model(stage, self.image).with_plan(self.sampling_plan)
    }

    /// The network of a stage's teacher, likewise.
    pub fn teacher(&self, stage: &StageConfig) -> Model {
        self.config.teacher(stage, self.image).with_plan(self.training_plan)
    }

    /// Whether a signal asked any rank to stop; all ranks ask at once.
    pub fn stop(&self) -> Result<bool> {
        let received = self.group.numbers(self.signals.received())?;
        Ok(self.signals.hear(received.into_iter().max().unwrap_or(0)))
    }

    /// Has rank 0 do `work`, a search: the others make and judge the images that it asks them for. On all ranks it ends alike.
    pub fn led(&self, work: impl FnOnce() -> miette::Result<Ended>) -> miette::Result<Ended> {
        if self.group.size() == 1 {
            return work();
        }
        let stage = self.config.searched_stage().ok_or_else(|| miette::miette!("the config has no stage to search"))?;
        let model = self.model(stage);
        let (group, device) = (self.group, self.device);
        if group.leads() {
            let suite = self.suite()?;
            let ended = work()?;
            Team::of(suite, group, &model, device).end(ended == Ended::Done).into_diagnostic()?;
            return Ok(ended);
        }
        let (primary, others) = self.judges()?;
        let team = Team { group, model: &model, primary, others: others.each_ref(), device, rooms: Arc::default() };
        let done = catch("the search", || {
            team.serve(&|signal| {
                self.signals.hear(signal);
                self.signals.received()
            })
        });
        Ok(if done.into_diagnostic()? { Ended::Done } else { Ended::Stopped })
    }

    /// Keeps the resolved config in the run folder. Once the run's search has begun it stays as it is: what was searched
    /// must not be told otherwise, and the search itself refuses other settings.
    pub fn write_config(&self) -> Result<()> {
        if self.run.search(DEFAULT_NAME).join(EVALUATIONS).exists() {
            return Ok(());
        }
        let text = self.config.to_toml().map_err(|e| Error::msg(e.to_string()))?;
        write_atomic(self.run.config_path(), text.as_bytes())
    }

    /// Of rank 0: feature extractors and reference statistics of the run's data, made ready at the first call.
    pub fn suite(&self) -> miette::Result<&Suite> {
        if self.suite.get().is_none() {
            let given = self.given_extractors()?;
            let kept = self.run.path().join("metric");
            let seed = self.config.metric.seed;
            let mut suite = preparing(&self.data, seed, self.device, Some(&kept), |p| p.suite(given))?;
            for scorer in [&mut suite.primary, &mut suite.independent, &mut suite.pixels] {
                scorer.extractor.share(self.group).into_diagnostic()?;
            }
            suite.primary.reference.share(self.group).into_diagnostic()?;
            let [primary, independent] = [&suite.primary, &suite.independent].map(|s| s.extractor.convention());
            tracing::info!("images are judged by {primary}; independently by {independent}");
            let _ = self.suite.set(suite);
        }
        self.suite.get().ok_or_else(|| miette::miette!("the metric is not ready"))
    }

    /// Of the other ranks: what they judge with.
    fn judges(&self) -> miette::Result<&(Scorer, [Extractor; 2])> {
        if self.judges.get().is_none() {
            let given = self.given_extractors()?;
            let seed = self.config.metric.seed;
            let mut extractors = preparing(&self.data, seed, self.device, None, |p| p.untrained(given))?;
            extractors.iter_mut().try_for_each(|e| e.share(self.group)).into_diagnostic()?;
            let [primary, independent, pixels] = extractors;
            let primary = Scorer::shared(primary, self.group).into_diagnostic()?;
            let _ = self.judges.set((primary, [independent, pixels]));
        }
        self.judges.get().ok_or_else(|| miette::miette!("the metric is not ready"))
    }

    /// The primary and the independent extractor, where they are networks of published weights.
    fn given_extractors(&self) -> miette::Result<[Option<Extractor>; 2]> {
        let chw = [1, 2, 3].map(|axis| self.data.images.size()[axis]);
        let opened = extractor::open_judges(&self.config.metric, chw, self.device);
        self.group.all_ok(opened).into_diagnostic()
    }
}

/// For all that is computed from here on, on a GPU.
fn only_deterministic_kernels() -> Result<()> {
    const CUBLAS: &str = "CUBLAS_WORKSPACE_CONFIG";
    if std::env::var_os(CUBLAS).is_none() {
        // What NVIDIA asks for; cuBLAS reads it at its first product.
        // SAFETY: no other thread of this process reads or writes the environment while a session opens.
        unsafe { std::env::set_var(CUBLAS, ":4096:8") };
    }
    choose_kernels(true)
}

/// The device of this rank, after setting the number of CPU threads.
pub fn machine(device: DeviceChoice, threads: Option<usize>, group: &Group) -> miette::Result<Device> {
    set_cpu_threads(threads.unwrap_or_else(default_threads));
    let of_rank = if group.size() > 1 { device.of_local_rank(group.local_rank()) } else { device };
    let found = group.all_ok(of_rank.resolve()).into_diagnostic()?;
    group.use_device(found).into_diagnostic()?;
    if group.size() > 1 {
        tracing::info!("{} processes compute together", group.size());
    }
    if device == DeviceChoice::Auto
        && let Some(why) = open_cuda().unusable_device()
    {
        tracing::warn!("this machine's NVIDIA device cannot be used: {why}");
    }
    match (device, found) {
        (DeviceChoice::Auto, Device::Cpu) => {
            tracing::info!("no CUDA (`lcsc doctor` says why): computing on the CPU, {} thread(s)", cpu_threads());
        }
        (_, Device::Cpu) => tracing::info!("computing on the CPU, {} thread(s)", cpu_threads()),
        (_, device) => tracing::info!("computing on {device:?}"),
    }
    Ok(found)
}

/// A dataset on the device, read with a progress bar.
pub fn dataset(config: &lcsc_data::DataConfig, device: Device) -> miette::Result<Dataset> {
    let bar = progress::bar("reading the data", 0, "images");
    let data = catch("reading the data", || Dataset::open(config, &bar)?.to_device(device)).into_diagnostic()?;
    drop(bar);
    let (n, classes) = (data.images.size()[0], data.classes);
    tracing::info!(
        "{}: {n} images, {}",
        data.name,
        if classes > 0 { format!("{classes} classes") } else { "no labels".into() }
    );
    Ok(data)
}

/// What `work` prepares of extractors and reference statistics, with a progress bar and the user's cache; classifiers are
/// those that are `kept`, where there are any.
pub fn preparing<T>(
    data: &Dataset,
    seed: u64,
    device: Device,
    kept: Option<&Path>,
    work: impl FnOnce(&Preparation) -> Result<T>,
) -> miette::Result<T> {
    let real =
        RealImages { images: &data.images, labels: data.labels.as_ref(), classes: data.classes, hash: &data.hash };
    let bar = progress::bar("preparing the metric", 0, "steps");
    let show = |what: &str, done, total| {
        bar.set_message(what.to_string());
        bar.set_length(total);
        bar.set_position(done);
    };
    let cache = cache_folder();
    let preparation = Preparation { real, seed, device, cache: cache.as_deref(), kept, progress: &show };
    let made = catch("preparing the metric", || work(&preparation));
    drop(bar);
    made.into_diagnostic()
}

/// Where extractors and fetched files are kept between runs: `$LCSC_CACHE`, else `lcsc` in the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("LCSC_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("lcsc")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/lcsc")))
}
