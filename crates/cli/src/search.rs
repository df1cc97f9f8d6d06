//! LCSC on the checkpoints of a run.

mod events;
mod material;
mod remembered;
mod results;
mod studies;

pub use material::Material;
pub use results::Results;
pub use studies::Compared;

use crate::args::SearchArgs;
use crate::config::{self, Config};
use crate::session::{Purpose, Session};
use crate::{Ended, during, progress, ranks, report, train, ui};
use events::Events;
use indicatif::ProgressBar;
use lcsc_diffusion::SamplerConfig;
use lcsc_metrics::Suite;
use lcsc_search::{
    Budget, Coefficients, Fitness, Outcome, Phase, Progress, Run, SampledFitness, SearchConfig, Setting, When, Worker,
};
use lcsc_torch::{Context, Group, Result, catch};
use lcsc_train::{StageRecord, Trainer};
use lcsc_trajectory::{RunFolder, TrainingState};
use miette::IntoDiagnostic;
use remembered::Remembered;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The search that `lcsc run` makes, and whose merged model is the run's.
pub const DEFAULT_NAME: &str = "default";

/// The log of a search, in its folder.
pub const EVALUATIONS: &str = "evaluations.jsonl";

/// `lcsc search`: a search of the checkpoints that a run has so far, or a study of several.
pub fn command(args: &SearchArgs, signals: &ui::Signals, group: &Group) -> miette::Result<Ended> {
    signals.listen()?;
    let opened = RunFolder::open(&args.run).into_diagnostic();
    let (run, mut loaded) = ranks::all_ok(
        group,
        opened.and_then(|run| config::load(&run.config_path(), &args.set).map(|loaded| (run, loaded))),
    )?;
    if let Some(seconds) = args.seconds {
        if !(seconds.is_finite() && seconds > 0.0) {
            miette::bail!("--seconds {seconds}: expected a positive number");
        }
        loaded.config.search.budget = Budget { seconds: Some(seconds), ..Budget::default() };
    }
    let name = args.name.as_deref().unwrap_or(args.study_name().unwrap_or(DEFAULT_NAME));
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        miette::bail!("--name {name}: expected a folder name");
    }
    let session = Session::open(loaded, run, signals, group, Purpose::Search { shared: args.worker })?;
    session.led(|| command_of_rank_0(&session, args, name))
}

fn command_of_rank_0(session: &Session, args: &SearchArgs, name: &str) -> miette::Result<Ended> {
    let state = TrainingState::load(&session.run).into_diagnostic()?;
    let stages = match &state {
        Some(state) => Trainer::position(state, &session.training_hash).into_diagnostic()?,
        None => Vec::new(),
    };
    let trained = session.run.imported().exists() || train::is_finished(&session.config, &stages);
    if name == DEFAULT_NAME && !trained {
        miette::bail!(
            "{}: its training is not finished, and `lcsc run` will search all of its checkpoints at the end: give a search \
             of those so far a --name of its own",
            session.run.path().display()
        );
    }
    if args.study_name().is_some() {
        return studies::command(session, args, name, &stages);
    }
    search(session, name, stages, args.worker)
}

/// Searches (or goes on searching), then writes coefficients, merged model, summary and pictures.
pub fn search(session: &Session, name: &str, stages: Vec<StageRecord>, worker: bool) -> miette::Result<Ended> {
    let suite = session.suite()?;
    let mut plan = Plan { worker, ..Plan::new(&session.config, name) };
    let material = catch("loading the checkpoints", || Material::load(session, &plan)).into_diagnostic()?;
    if name == DEFAULT_NAME && plan.search.when == When::During {
        let rows = material.space(session, suite, &plan).rows;
        plan.given.extend(during::best(session, &rows, material.partition.len()).into_diagnostic()?);
    }
    let outcome = catch("the search", || run_search(session, suite, &material, &plan, None)).into_diagnostic()?;
    let Some(outcome) = outcome else { return Ok(Ended::Stopped) };
    let results = Results { session, plan: &plan, suite, material: &material, outcome: &outcome };
    catch("writing the results", || results.write(stages)).into_diagnostic()?;
    report::write(&session.run);
    Ok(Ended::Done)
}

/// One search of a run's checkpoints.
pub struct Plan {
    /// Its folder, below `search/`.
    pub name: String,
    pub search: SearchConfig,
    pub sampler: SamplerConfig,
    /// Checkpoints of at most so many images of the stage; all unless given.
    pub most_nimg: Option<u64>,
    /// Combinations found before, with what to call them.
    pub given: Vec<(String, Coefficients)>,
    /// Whether other processes share the search.
    pub worker: bool,
}

impl Plan {
    /// The search of a config.
    pub fn new(config: &Config, name: &str) -> Self {
        let (search, sampler) = (config.search.clone(), config.sampler.clone());
        Self { name: name.to_string(), search, sampler, most_nimg: None, given: vec![], worker: false }
    }

    /// A file in the folder of the search.
    pub fn file(&self, session: &Session, file: &str) -> PathBuf {
        session.run.search(&self.name).join(file)
    }
}

/// The logs of all searches of a run, under the searches' names.
///
/// # Errors
/// A folder cannot be read.
pub fn logs(run: &RunFolder) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(String::new(), run.path().join("search"))];
    while let Some((name, folder)) = folders.pop() {
        let log = folder.join(EVALUATIONS);
        if log.exists() {
            found.insert(name.clone(), log);
        }
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).at(&folder)? {
            let path = entry.at(&folder)?.path();
            let below = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push((if name.is_empty() { below } else { format!("{name}/{below}") }, path));
            }
        }
    }
    Ok(found)
}

/// Searches, with progress; what `remembered` holds is not computed again. None: a signal came, all scores are in the log.
pub fn run_search(
    session: &Session,
    suite: &Suite,
    material: &Material,
    plan: &Plan,
    remembered: Option<&mut Remembered>,
) -> Result<Option<Outcome>> {
    let folder = session.run.search(&plan.name);
    std::fs::create_dir_all(&folder).at(&folder)?;
    let worker = plan.worker.then(|| Worker::start(&folder)).transpose()?;
    let setting = Setting {
        model: &material.model,
        models: material.models(),
        suite,
        sampler: &plan.sampler,
        config: &plan.search,
        seed: session.config.seed,
        device: session.device,
        group: session.group,
    };
    let mut fitness = SampledFitness::new(setting, folder.join(material::FINETUNED));
    let methods: Vec<&str> = plan.search.method.iter().map(|m| m.name()).collect();
    tracing::info!(
        "searching {} checkpoints ({}) by {}{}",
        material.window.len(),
        material.window.placement(),
        methods.join(", "),
        worker.as_ref().map_or(String::new(), |w| format!(", worker {}", w.id()))
    );
    let shared = worker.as_ref().map_or_else(String::new, |w| format!("-worker-{}", w.id()));
    let of_search = session.run.tensorboard(&format!("search/{}{shared}", plan.name));
    let mut events = Events::new(of_search, material.partition.names());
    let bar = progress::bar("searching", 0, "candidates");
    let mut part = String::new();
    let mut note = |p: &Progress| {
        show(&bar, p, &mut part);
        events.note(p);
    };
    let team = fitness.team();
    let stop = || Ok(session.signals.hear(team.signal(session.signals.received())?));
    let log_path = folder.join(EVALUATIONS);
    let run = Run { seed: session.config.seed, log_path: &log_path, worker, stop: &stop, progress: &mut note };
    let space = material.space(session, suite, plan);
    let outcome = match remembered {
        Some(scores) => lcsc_search::run(&space, &plan.search, &mut scores.before(&mut fitness), run),
        None => lcsc_search::run(&space, &plan.search, &mut fitness as &mut dyn Fitness, run),
    };
    drop(bar);
    if let Ok(Some(outcome)) = &outcome {
        events.finish(outcome);
        if let Some(doubt) = outcome.doubt(&plan.search) {
            tracing::warn!("{doubt}");
        }
    }
    outcome
}

/// Shows how far a search got, and says so when another `part` of it begins.
fn show(bar: &ProgressBar, p: &Progress, part: &mut String) {
    let phase = match p.evaluation.phase {
        Phase::Report(_) => "held-out figures".to_string(),
        phase => phase.to_string(),
    };
    if !p.replayed && *part != phase {
        // Finalists come after all that their method was to score.
        let to_score = p.total.filter(|total| p.done <= *total);
        tracing::info!("{phase}{}", to_score.map_or_else(String::new, |n| format!(": {n} to score")));
        *part = phase;
    }
    bar.set_message(format!("{}: best FD {:.4}", p.evaluation.phase, p.best));
    p.total.inspect(|&total| bar.set_length(total));
    if p.replayed {
        progress::jump(bar, p.done);
    } else {
        bar.set_position(p.done);
    }
}
