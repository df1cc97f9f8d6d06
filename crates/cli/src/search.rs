//! LCSC on the checkpoints of a run: coefficients, merged model, table, pictures.

use crate::args::SearchArgs;
use crate::config;
use crate::merge::{self, Coefficient, Coefficients};
use crate::pictures;
use crate::session::Session;
use crate::{Ended, ui};
use lcsc_diffusion::Model;
use lcsc_metrics::Suite;
use lcsc_report::{ModelLabel, Summary};
use lcsc_search::{Label, Outcome, Row, SampledFitness, SearchSpace};
use lcsc_torch::{Error, Result, Weights, catch};
use lcsc_train::{StageConfig, StageRecord, Trainer};
use lcsc_trajectory::{Checkpoint, Manifest, RunFolder, TrainingState, Window};
use miette::IntoDiagnostic;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The search that `lcsc run` makes, and whose merged model is the run's.
pub const DEFAULT_NAME: &str = "default";

/// The log of a search, in its folder.
pub const EVALUATIONS: &str = "evaluations.jsonl";

/// `lcsc search`: a search of the checkpoints that a run has so far.
pub fn command(args: &SearchArgs, signals: &ui::Signals) -> miette::Result<Ended> {
    signals.listen()?;
    let run = RunFolder::open(&args.run).into_diagnostic()?;
    let session = Session::open(config::load(&run.config_path(), &args.set)?, run, signals)?;
    let state = TrainingState::load(&session.run).into_diagnostic()?;
    let stages = match &state {
        Some(state) => Trainer::position(state, &session.training_hash).into_diagnostic()?,
        None => Vec::new(),
    };
    search(&session, &args.name, stages)
}

/// Searches (or goes on searching), then writes coefficients, merged model, summary and pictures.
pub fn search(session: &Session, name: &str, stages: Vec<StageRecord>) -> miette::Result<Ended> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        miette::bail!("--name {name}: expected a folder name");
    }
    let suite = session.suite()?;
    let material = catch("loading the checkpoints", || Material::load(session)).into_diagnostic()?;
    let ended = catch("the search", || run(session, name, &suite, &material)).into_diagnostic()?;
    match ended {
        None => Ok(Ended::Stopped),
        Some(outcome) => {
            let finish = Finish { session, name, suite: &suite, material: &material, outcome: &outcome };
            catch("writing the results", || finish.write(stages)).into_diagnostic()?;
            Ok(Ended::Done)
        }
    }
}

/// What a search combines.
struct Material {
    model: Model,
    window: Window,
    /// Recorded EMA tracks at the last checkpoint of the window.
    tracks: BTreeMap<String, Weights>,
    track_checkpoints: Vec<Checkpoint>,
}

impl Material {
    fn load(session: &Session) -> Result<Self> {
        let config = &session.config;
        let stage = config.searched_stage().ok_or_else(|| Error::msg("the config has no stage to search"))?;
        let model = config.model(stage, session.image);
        let (raw, track_checkpoints) = checkpoints(session, stage)?;
        let budget = (config.search.memory_gib * f64::from(1 << 30)) as u64;
        let window = Window::load(&session.run, &raw, &model.layout, session.device, budget)?;
        let load = |c: &Checkpoint| Ok((c.track.clone(), c.load(&session.run, &model.layout, session.device)?));
        let tracks = track_checkpoints.iter().map(load).collect::<Result<_>>()?;
        Ok(Self { model, window, tracks, track_checkpoints })
    }

    fn space(&self, session: &Session, suite: &Suite) -> SearchSpace {
        let mut hash = blake3::Hasher::new();
        for checkpoint in self.window.checkpoints().iter().chain(&self.track_checkpoints) {
            hash.update(checkpoint.blake3.as_bytes());
        }
        for scorer in [&suite.primary, &suite.independent, &suite.pixels] {
            hash.update(scorer.extractor.convention().as_bytes());
        }
        hash.update(format!("{:?} {:?}", session.config.sampler, session.config.precision).as_bytes());
        let tracks = self.tracks.keys().cloned().collect();
        SearchSpace { times: self.window.times(), tracks, fingerprint: hash.finalize().to_hex().to_string() }
    }
}

/// The raw checkpoints of the window, and the EMA tracks recorded with the last of them.
fn checkpoints(session: &Session, stage: &StageConfig) -> Result<(Vec<Checkpoint>, Vec<Checkpoint>)> {
    let mut all = Manifest::read(&session.run)?;
    all.retain(|c| c.stage == stage.name);
    let end = all.iter().filter(|c| c.track == "raw").map(|c| c.nimg).max().unwrap_or(0);
    let first = session.config.search.window.map_or(0, |w| (end + 1).saturating_sub(w));
    let (raw, tracks): (Vec<_>, Vec<_>) = all.into_iter().filter(|c| c.nimg >= first).partition(|c| c.track == "raw");
    if raw.len() < 2 {
        return Err(Error::file(
            session.run.manifest(),
            format!(
                "stage `{}` has {} raw checkpoints in the window, expected at least 2: train further, or widen search.window",
                stage.name,
                raw.len()
            ),
        ));
    }
    Ok((raw, tracks.into_iter().filter(|c| c.nimg == end).collect()))
}

fn run(session: &Session, name: &str, suite: &Suite, material: &Material) -> Result<Option<Outcome>> {
    let config = &session.config;
    let folder = session.run.search(name);
    std::fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
    let mut fitness = SampledFitness {
        model: &material.model,
        window: &material.window,
        tracks: &material.tracks,
        suite,
        sampler: &config.sampler,
        config: &config.search,
        seed: config.seed,
        device: session.device,
    };
    tracing::info!("searching {} checkpoints by {}", material.window.len(), config.search.method.name());
    let bar = ui::bar(0, "candidates");
    let mut progress = |p: &lcsc_search::Progress| {
        bar.set_message(format!("{}: best FD {:.4}", p.evaluation.phase, p.best));
        p.total.inspect(|&total| bar.set_length(total));
        bar.set_position(p.done);
        if bar.is_hidden() && !p.replayed && (p.done.is_multiple_of(100) || p.total == Some(p.done)) {
            tracing::info!("{}: {} scored, best FD {:.4}", p.evaluation.phase, p.done, p.best);
        }
    };
    let outcome = lcsc_search::run(
        &material.space(session, suite),
        &config.search,
        config.seed,
        &folder.join(EVALUATIONS),
        &mut fitness,
        &|| session.signals.stop(),
        &mut progress,
    );
    bar.finish_and_clear();
    outcome
}

/// Everything that the results are written from.
struct Finish<'a> {
    session: &'a Session<'a>,
    name: &'a str,
    suite: &'a Suite,
    material: &'a Material,
    outcome: &'a Outcome,
}

impl Finish<'_> {
    fn write(&self, stages: Vec<StageRecord>) -> Result<()> {
        let Self { session, outcome, .. } = self;
        let lcsc = outcome.rows.iter().find(|r| r.label == Label::Lcsc);
        let lcsc = lcsc.ok_or_else(|| Error::msg("the search has no result"))?;
        let coefficients = self.coefficients(lcsc);
        coefficients.write(&session.run.search(self.name).join(merge::COEFFICIENTS))?;
        let weights = self.weights(lcsc)?;
        let merged = self.of_run_or_search(session.run.merged(), merge::MERGED);
        merge::write(&merged, &session.card, &self.material.model, &weights, &coefficients, Default::default())?;
        let summary = self.summary(stages);
        summary.write(self.of_run_or_search(session.run.summary(), "summary.json")).map_err(report_error)?;
        self.pictures()?;
        ui::say!("{}", lcsc_report::table(&summary));
        ui::say!("merged model: {}", merged.display());
        Ok(())
    }

    /// A file of the run for the default search; other searches keep theirs to themselves.
    fn of_run_or_search(&self, of_run: PathBuf, file: &str) -> PathBuf {
        if self.name == DEFAULT_NAME { of_run } else { self.session.run.search(self.name).join(file) }
    }

    fn weights(&self, row: &Row) -> Result<Weights> {
        lcsc_search::candidate_weights(&row.model, &self.material.window, &self.material.tracks)
    }

    fn coefficients(&self, row: &Row) -> Coefficients {
        let of =
            |c: &Checkpoint, alpha| Coefficient { file: c.file.clone(), nimg: c.nimg, blake3: c.blake3.clone(), alpha };
        let checkpoint = match &row.model {
            lcsc_search::Model::Coefficients(alpha) => {
                self.material.window.checkpoints().iter().zip(alpha.as_slice()).map(|(c, &a)| of(c, a)).collect()
            }
            lcsc_search::Model::Track(name) => {
                self.material.track_checkpoints.iter().filter(|c| c.track == *name).map(|c| of(c, 1.0)).collect()
            }
        };
        Coefficients {
            search: self.name.to_string(),
            detail: row.detail.clone(),
            extractor: self.suite.primary.extractor.convention(),
            images: self.session.config.search.report_images,
            fd_heldout: row.fd_heldout,
            checkpoint,
        }
    }

    fn summary(&self, stages: Vec<StageRecord>) -> Summary {
        let Self { session, suite, outcome, .. } = self;
        let search = &session.config.search;
        let model = |row: &Row| lcsc_report::Model {
            label: model_label(row.label),
            detail: row.detail.clone(),
            fd_search: row.fd_search,
            fd_heldout: row.fd_heldout,
            fd_heldout_std: row.fd_heldout_std,
            fd_independent: row.fd_independent.unwrap_or(f64::INFINITY),
            fd_pixel: row.fd_pixel.unwrap_or(f64::INFINITY),
        };
        let stage = |s: StageRecord| lcsc_report::Stage { name: s.name, nimg: s.nimg, seconds: s.seconds };
        Summary {
            name: session.config.name.clone(),
            stages: stages.into_iter().map(stage).collect(),
            metric: lcsc_report::Metric {
                extractor: suite.primary.extractor.convention(),
                reference: format!("{}, {} images", session.data.name, session.data.images.size()[0]),
                n_search: search.images,
                n_heldout: search.report_images,
            },
            search: lcsc_report::Search {
                method: search.method.name().to_string(),
                evaluations: outcome.evaluations,
                seconds: outcome.seconds,
            },
            models: outcome.rows.iter().map(model).collect(),
        }
    }

    /// The same latents through each row's model, and a sheet of the merged one.
    fn pictures(&self) -> Result<()> {
        let Self { session, outcome, .. } = self;
        let mut rows = Vec::new();
        for row in &outcome.rows {
            let weights = self.weights(row)?;
            let label = model_label(row.label).to_string();
            let images = pictures::sample(session, &self.material.model, &weights, pictures::COLUMNS)?;
            rows.push((label, images));
            if row.label == Label::Lcsc {
                let sheet = pictures::sample(session, &self.material.model, &weights, pictures::SHEET)?;
                let path = self.of_run_or_search(session.run.samples().join("lcsc.png"), "samples.png");
                lcsc_report::write_grid(path, &sheet, pictures::COLUMNS as usize).map_err(report_error)?;
            }
        }
        let path = self.of_run_or_search(session.run.samples().join("comparison.png"), "comparison.png");
        lcsc_report::write_comparison(path, &rows).map_err(report_error)
    }
}

fn model_label(label: Label) -> ModelLabel {
    match label {
        Label::Last => ModelLabel::Last,
        Label::BestCheckpoint => ModelLabel::BestCheckpoint,
        Label::Ema => ModelLabel::Ema,
        Label::Lcsc => ModelLabel::Lcsc,
    }
}

fn report_error(e: lcsc_report::Error) -> Error {
    Error::msg(e.to_string())
}
