//! The stages of training, one after the other.

use crate::config::Config;
use crate::session::Session;
use crate::{Ended, during, progress};
use indicatif::HumanDuration;
use lcsc_diffusion::{ObjectiveConfig, SamplerConfig};
use lcsc_search::When;
use lcsc_torch::{Context, Error, Result, SafeFile, Weights, bail, catch, load_weights};
use lcsc_train::{StageConfig, StageContext, StageRecord, Start, Trainer};
use lcsc_trajectory::{Manifest, TrainingState, TrajectoryConfig, check_disk};
use lcsc_unet::ImageShape;
use miette::IntoDiagnostic;
use std::time::Duration;

/// Trains what is left of the stages. None: a signal came, the state is saved.
pub fn train(session: &Session) -> miette::Result<Option<Vec<StageRecord>>> {
    catch("training", || stages(session)).into_diagnostic()
}

fn stages(session: &Session) -> Result<Option<Vec<StageRecord>>> {
    let leads = session.group.leads();
    session.group.all_ok(if leads { refuse_imported(session) } else { Ok(()) })?;
    let mut state = TrainingState::load_shared(&session.run, session.group)?;
    let mut finished = match &state {
        None => Vec::new(),
        Some(state) => Trainer::position(state, &session.training_hash)?,
    };
    // The stage that the state is of goes on, unless it is at its end.
    let stages = &session.config.stage;
    match finished.last() {
        Some(last) if stages.get(finished.len() - 1).is_some_and(|s| last.nimg < s.images()) => drop(finished.pop()),
        Some(_) => state = None,
        None => {}
    }
    let prepare = || session.write_config().and_then(|()| check_space(session));
    session.group.all_ok(if leads { prepare() } else { Ok(()) })?;
    for stage in &stages[finished.len()..] {
        match train_stage(session, stage, &finished, state.take())? {
            Some(record) => finished.push(record),
            None => return Ok(None),
        }
    }
    Ok(Some(finished))
}

fn refuse_imported(session: &Session) -> Result<()> {
    if session.run.imported().exists() {
        bail!(
            "{}: its checkpoints were imported, and there is no state to train from: `lcsc search` searches them",
            session.run.path().display()
        );
    }
    Ok(())
}

/// Whether nothing of the stages is left to train.
pub fn is_finished(config: &Config, trained: &[StageRecord]) -> bool {
    let (last, record) = (config.stage.last(), trained.last());
    trained.len() == config.stage.len() && last.zip(record).is_some_and(|(s, r)| r.nimg >= s.images())
}

/// Trains a stage to its end, from its start or from a state of it.
fn train_stage(
    session: &Session,
    stage: &StageConfig,
    finished: &[StageRecord],
    state: Option<TrainingState>,
) -> Result<Option<StageRecord>> {
    let (model, teacher_model) = (session.model(stage), session.teacher(stage));
    let teacher = match &stage.teacher {
        None => None,
        Some(source) => Some((&teacher_model, shared_weights(session, Some(source), &teacher_model)?)),
    };
    let sampler = sampler(&session.config, stage);
    let card = serde_json::to_value(&session.card).map_err(|e| Error::msg(format!("metadata: {e}")))?;
    let context = StageContext {
        run: &session.run,
        stage,
        nimg_before: finished.iter().map(|s| s.nimg).sum(),
        model: &model,
        teacher,
        data: &session.data,
        seed: session.config.seed,
        sampler: &sampler,
        device: session.device,
        group: session.group,
        gradients: session.config.distributed.gradients,
        config_hash: &session.training_hash,
        card: &card,
        finished: finished.to_vec(),
    };
    let resumed = state.is_some();
    let mut trainer = match state {
        Some(state) => Trainer::resume(context, &state)?,
        None => {
            let start = shared_weights(session, stage.start.as_ref(), &model)?;
            Trainer::new(context, start)?
        }
    };
    let end = stage.images();
    let from = if resumed { ", from the saved state; what came after it is trained again" } else { "" };
    tracing::info!("stage `{}`: {} of {end} images trained{from}", stage.name, trainer.nimg());
    let searched = session.config.searched_stage().is_some_and(|s| s.name == stage.name);
    let every = match session.config.search.when {
        When::During if searched => session.config.search.during.every_nimg,
        When::During | When::After | When::Off => end,
    };
    if every < end && session.group.leads() {
        during::cut(session, trainer.nimg())?;
    }
    while trainer.nimg() < end {
        // Also after a resume: the state is saved before the search that is due then.
        if every < end && during::is_due(session, trainer.nimg(), stage.batch) {
            trainer.save()?;
            let search = || during::search(session, trainer.nimg()).into_diagnostic();
            if session.led(search).map_err(|e| Error::msg(e.to_string()))? == Ended::Stopped {
                return Ok(None);
            }
        }
        let next = (trainer.nimg() / every + 1) * every;
        let bar = progress::bar(&stage.name, end, "images");
        progress::jump(&bar, trainer.nimg());
        let ended = trainer.train_until(next, &|| session.stop(), &bar)?;
        drop(bar);
        if ended == lcsc_train::Ended::Stopped {
            return Ok(None);
        }
    }
    let record = trainer.record();
    tracing::info!("stage `{}`: trained in {}", stage.name, HumanDuration(Duration::from_secs_f64(record.seconds)));
    Ok(Some(record))
}

/// What a stage is sampled with on the way: what the run samples with where it is the stage that is searched.
fn sampler(config: &Config, stage: &StageConfig) -> SamplerConfig {
    if config.searched_stage().is_some_and(|searched| searched.name == stage.name) {
        return config.sampler.clone();
    }
    match stage.objective {
        ObjectiveConfig::Edm(_) => SamplerConfig::Heun(Default::default()),
        ObjectiveConfig::Ddpm(_) => SamplerConfig::Ddim(Default::default()),
        ObjectiveConfig::Cd(_) | ObjectiveConfig::Ct(_) | ObjectiveConfig::Ict(_) | ObjectiveConfig::Ect(_) => {
            SamplerConfig::Consistency(Default::default())
        }
    }
}

/// Weights that rank 0 reads, or fresh ones, on all ranks.
fn shared_weights(session: &Session, source: Option<&Start>, model: &lcsc_diffusion::Model) -> Result<Weights> {
    Weights::shared(session.group, &model.layout, session.device, || match source {
        Some(source) => weights(session, source, model),
        None => model.layout.init(session.config.seed, session.device),
    })
}

/// The end of an earlier stage, or a file.
fn weights(session: &Session, source: &Start, model: &lcsc_diffusion::Model) -> Result<Weights> {
    match source {
        Start::Weights { path } => load_weights(&model.layout, &SafeFile::open(path)?, session.device),
        Start::Stage { name, track } => {
            let earlier = session.config.stage.iter().find(|s| s.name == *name);
            let track = track.clone().or_else(|| earlier.map(StageConfig::default_track)).unwrap_or_default();
            let mut checkpoints = Manifest::read(&session.run)?;
            checkpoints.retain(|c| c.stage == *name && c.track == track);
            let last = checkpoints.last().ok_or_else(|| {
                Error::file(session.run.manifest(), format!("lists no checkpoint of stage `{name}`, track `{track}`"))
            })?;
            last.load(&session.run, &model.layout, session.device)
        }
    }
}

/// Bytes that the checkpoints of all stages will take.
pub fn checkpoint_bytes(config: &Config, image: ImageShape) -> u64 {
    config.stage.iter().map(|stage| stage_bytes(config, stage, image)).sum()
}

/// Bytes that the checkpoints of a stage will take: those on the way, and the exact ones of its end.
fn stage_bytes(config: &Config, stage: &StageConfig, image: ImageShape) -> u64 {
    let layout = config.model(stage, image).layout;
    let (trajectory, tracks) = (stage.trajectory(), stage.tracks());
    let kept = tracks.iter().filter(|t| trajectory.keeps(t)).count() as u64;
    let last = TrajectoryConfig { every_nimg: 0, ..Default::default() };
    trajectory.bytes(&layout, stage.images(), stage.batch, kept)
        + last.bytes(&layout, stage.images(), stage.batch, tracks.len() as u64)
}

/// Bytes of the largest training state: parameters, two moments, averages, and a target.
pub fn state_bytes(config: &Config, image: ImageShape) -> u64 {
    let of_stage = |stage: &StageConfig| {
        let target = u64::from(stage.objective.target_ema(0, stage.steps()).is_some());
        let vectors = 3 + stage.ema.len() as u64 + target;
        vectors * 4 * config.model(stage, image).layout.numel() as u64
    };
    config.stage.iter().map(of_stage).max().unwrap_or(0)
}

/// Bytes of a run folder at its largest: a state is replaced by a new one that is whole.
pub fn run_bytes(config: &Config, image: ImageShape) -> u64 {
    let merged = config.searched_stage().map_or(0, |stage| 4 * config.model(stage, image).layout.numel() as u64);
    checkpoint_bytes(config, image) + 2 * state_bytes(config, image) + merged
}

/// Refuses a run that the disk, or a stage's budget, has no room for; what is written already counts as there.
fn check_space(session: &Session) -> Result<()> {
    let mut written = 0;
    for folder in [session.run.trajectory(), session.run.state()] {
        for entry in std::fs::read_dir(&folder).at(&folder)? {
            written += entry.at(&folder)?.metadata().at(&folder)?.len();
        }
    }
    check_disk(session.run.path(), run_bytes(&session.config, session.image).saturating_sub(written), None)?;
    for stage in &session.config.stage {
        if let Some(budget) = stage.trajectory().disk_budget_gib {
            check_disk(session.run.path(), stage_bytes(&session.config, stage, session.image), Some(budget))?;
        }
    }
    Ok(())
}
