//! `lcsc report`: what a run came to, or several, as a page to look at.

mod tables;

use crate::args::ReportArgs;
use crate::merge::{self, Coefficient, Coefficients};
use crate::{Ended, search, ui};
use lcsc_report::{Mark, ModelLabel, Page, Part, Plot, Section, Series, Summary};
use lcsc_search::{Evaluation, Model, Origin, Phase, Record};
use lcsc_torch::{Context, Result};
use lcsc_train::{Tick, report_error};
use lcsc_trajectory::{JsonLines, RunFolder};
use miette::IntoDiagnostic;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The page of a run, in its folder.
const FILE: &str = "report.html";
/// The page of several, unless it is given.
const COMPARISON: &str = "comparison.html";

/// Writes the page of one run into its folder, or one that compares several.
pub fn command(args: &ReportArgs) -> miette::Result<Ended> {
    let folders: Vec<RunFolder> = args.runs.iter().map(RunFolder::open).collect::<Result<_>>().into_diagnostic()?;
    let path = match (&args.out, &folders[..]) {
        (Some(path), _) => path.clone(),
        (None, [run]) => run.path().join(FILE),
        (None, _) => PathBuf::from(COMPARISON),
    };
    // A page in a run's folder is made anew from what lies there; any other may be somebody's.
    if args.out.is_some() || folders.len() > 1 {
        ui::refuse_existing(&path)?;
    }
    let mut runs = folders.iter().map(Found::read).collect::<Result<Vec<_>>>().into_diagnostic()?;
    let names: BTreeSet<String> = runs.iter().map(|run| run.name.clone()).collect();
    if names.len() < runs.len() {
        runs.iter_mut().for_each(|run| run.name = run.folder.display().to_string());
    }
    let page = if let [run] = &runs[..] { run.page() } else { Ok(compared(&runs)) };
    page.into_diagnostic()?.write(&path).into_diagnostic()?;
    ui::say!("report: {}", path.display());
    Ok(Ended::Done)
}

/// Writes the page of a run into its folder. What the run came to is saved already: where the page cannot be made, a warning
/// says why.
pub fn write(run: &RunFolder) {
    let path = run.path().join(FILE);
    let made = Found::read(run).and_then(|found| found.page()?.write(&path).map_err(report_error));
    match made {
        Ok(()) => tracing::info!("report: {}", path.display()),
        Err(e) => tracing::warn!("there is no report page: {e}"),
    }
}

/// What a run folder has for a page.
struct Found {
    name: String,
    folder: PathBuf,
    config: String,
    ticks: Vec<Tick>,
    summary: Option<Summary>,
    coefficients: Option<Coefficients>,
    searches: Vec<Searched>,
    imported: bool,
}

/// The scores of a search, in the order in which they were made.
struct Searched {
    name: String,
    /// Of a search beside the run's own, which keeps it in its folder.
    summary: Option<Summary>,
    evaluations: Vec<Evaluation>,
}

impl Found {
    fn read(run: &RunFolder) -> Result<Self> {
        let folder = run.path().to_path_buf();
        let config = std::fs::read_to_string(run.config_path()).at(run.config_path())?;
        let summary = run.summary().exists().then(|| Summary::read(run.summary()));
        let summary = summary.transpose().map_err(report_error)?;
        let coefficients = run.search(search::DEFAULT_NAME).join(merge::COEFFICIENTS);
        let named = folder.canonicalize().at(&folder)?.file_name().map(|n| n.to_string_lossy().into_owned());
        let searched = |(name, log): (String, PathBuf)| {
            let summary = Some(log.with_file_name("summary.json")).filter(|path| path.exists());
            let summary = summary.map(Summary::read).transpose().map_err(report_error)?;
            Ok(Searched { name, summary, evaluations: evaluations(&log)? })
        };
        let searches = search::logs(run)?.into_iter().map(searched).collect::<Result<_>>()?;
        Ok(Self {
            name: named.unwrap_or_default(),
            config,
            ticks: JsonLines::read(run.train_log())?,
            summary,
            coefficients: coefficients.exists().then(|| Coefficients::read(&coefficients)).transpose()?,
            searches,
            imported: run.imported().exists(),
            folder,
        })
    }

    fn page(&self) -> Result<Page> {
        let sections = vec![
            self.results(),
            self.samples()?,
            self.coefficients(),
            scores(std::slice::from_ref(self)),
            self.checkpoints(),
            training(std::slice::from_ref(self)),
            self.repeat(),
        ];
        Ok(Page { title: self.name.clone(), sections, footer: footer() })
    }

    fn results(&self) -> Section {
        let Some(summary) = &self.summary else {
            let state = "the search that the run makes is not finished".into();
            return section("Results", "", vec![Part::Facts(vec![("none yet".into(), state)])]);
        };
        let text = format!(
            "{} LCSC is one model made of many checkpoints of this training, a linear combination of their weights, whose \
             coefficients were searched for. The held-out FD is the figure to quote.",
            summary.outcome().unwrap_or_default()
        );
        let glossary = Part::Text { summary: "What the columns mean".into(), text: tables::glossary(&summary.metric) };
        section("Results", &text, vec![Part::Table(tables::results(&[(None, summary)])), glossary])
    }

    /// The pictures that the run made.
    fn samples(&self) -> Result<Section> {
        let mut parts = Vec::new();
        for (file, caption) in [
            ("comparison.png", "The same latents through each model"),
            ("nearest.png", "Samples of LCSC (first column) and the training images nearest to them in feature space"),
            ("lcsc.png", "Samples of LCSC"),
        ] {
            let path = self.folder.join("samples").join(file);
            if path.exists() {
                parts.push(Part::Picture { png: std::fs::read(&path).at(&path)?, caption: caption.into() });
            }
        }
        Ok(section("Samples", "Click to enlarge.", parts))
    }

    /// Coefficients over the training, the best average behind them.
    fn coefficients(&self) -> Section {
        let Some(found) = &self.coefficients else { return Section::default() };
        let mut tracks: Vec<&str> = found.checkpoint.iter().map(track).collect();
        tracks.dedup();
        let over_time = |of: &str, alpha: &dyn Fn(usize) -> Option<f64>| {
            let point = |(i, c): (usize, &Coefficient)| Some((c.nimg as f64, alpha(i)?));
            found.checkpoint.iter().enumerate().filter(|(_, c)| track(c) == of).filter_map(point).collect::<Vec<_>>()
        };
        // Averages are over the last track.
        let average = self.best_average().filter(|(_, alpha)| alpha.len() == found.checkpoint.len());
        let average = average.zip(tracks.last()).map(|((name, alpha), last)| {
            let points = over_time(last, &|i| Some(alpha[i]));
            Series { name, mark: Mark::Area, points }
        });
        let plot = |(g, group): (usize, &String)| {
            let stems = |of: &&str| {
                let points = over_time(of, &|i| found.checkpoint[i].alpha.get(g).copied());
                let of = if tracks.len() > 1 { format!(", {of}") } else { String::new() };
                Series { name: format!("LCSC, {group}{of}"), mark: Mark::Stems, points }
            };
            let series = average.clone().into_iter().chain(tracks.iter().map(stems)).collect();
            Part::Plot(Plot { x: "images trained in the stage".into(), y: "coefficient".into(), series })
        };
        let text = "One stem a checkpoint, for each group of parameters. In each group they sum to one; the search makes use of \
                    values below zero, which an average does not have.";
        section("Coefficients", text, found.groups.iter().enumerate().map(plot).collect())
    }

    /// The best average that is a combination of the checkpoints.
    fn best_average(&self) -> Option<(String, Vec<f64>)> {
        let is_average =
            |o: &Origin| matches!(o, Origin::Uniform | Origin::HalfLife { .. } | Origin::PowerFunction { .. });
        let in_table = self.summary.iter().flat_map(|s| &s.models).find(|m| m.label == ModelLabel::Ema);
        let baselines =
            self.default_search()?.iter().filter(|e| e.phase == Phase::Baseline && is_average(&e.candidate.origin));
        // The one of the table, where that is a combination.
        let is_other = |e: &Evaluation| in_table.is_none_or(|m| m.detail != e.candidate.origin.to_string());
        let best = baselines.min_by(|a, b| is_other(a).cmp(&is_other(b)).then(a.scores.fd.total_cmp(&b.scores.fd)))?;
        match &best.candidate.model {
            Model::Coefficients(alpha) => Some((best.candidate.origin.to_string(), alpha.rows().first()?.clone())),
            Model::Track(_) | Model::Finetuned => None,
        }
    }

    fn default_search(&self) -> Option<&[Evaluation]> {
        let is_default = |s: &&Searched| s.name == search::DEFAULT_NAME;
        self.searches.iter().find(is_default).map(|s| s.evaluations.as_slice())
    }

    /// The score of each single checkpoint.
    fn checkpoints(&self) -> Section {
        let mut series: Vec<Series> = Vec::new();
        for e in self.default_search().unwrap_or_default().iter().filter(|e| e.phase == Phase::Baseline) {
            let Origin::Checkpoint { nimg, track, .. } = &e.candidate.origin else { continue };
            let point = (*nimg, e.scores.fd);
            match series.iter_mut().find(|s| s.name == *track) {
                Some(series) => series.points.push(point),
                None => series.push(Series { name: track.clone(), mark: Mark::Line, points: vec![point] }),
            }
        }
        let plot = Plot { x: "images trained in the stage".into(), y: "FD of a checkpoint".into(), series };
        let text = "Each checkpoint alone, on the latents of the search.";
        section("Checkpoints", text, vec![Part::Plot(plot)])
    }

    /// What one needs to make the run again.
    fn repeat(&self) -> Section {
        let mut facts = vec![("folder".to_string(), self.folder.display().to_string())];
        if let Some(summary) = &self.summary {
            for stage in &summary.stages {
                facts.push((
                    format!("stage {}", stage.name),
                    format!("{} images in {:.0} s", stage.nimg, stage.seconds),
                ));
            }
            let s = &summary.search;
            facts.push(("search".into(), format!("{}, {} evaluations, {:.0} s", s.method, s.evaluations, s.seconds)));
            facts.push(("extractor".into(), summary.metric.extractor.clone()));
            facts.extend(summary.machine.iter().flat_map(|m| m.facts()));
        }
        let files = self.coefficients.iter().flat_map(|c| &c.checkpoint).map(|c| format!("{}  {}\n", c.blake3, c.file));
        let config =
            Part::Text { summary: "config.toml: settings and seeds of the run".into(), text: self.config.clone() };
        let mut parts = vec![Part::Facts(facts), config];
        if self.coefficients.is_some() {
            let summary = "checkpoints and their BLAKE3 hashes".into();
            parts.push(Part::Text { summary, text: files.collect() });
        }
        let text = match self.imported {
            true => "The checkpoints were imported; a search of them can be made again with these settings.",
            false => {
                "lcsc run config.toml trains this run again, and searches it; on a CPU with as many threads bit for bit."
            }
        };
        section("To make it again", text, parts)
    }
}

/// The track in a name like `ckpt-000000065600-raw.safetensors`.
fn track(checkpoint: &Coefficient) -> &str {
    let name = checkpoint.file.splitn(3, '-').last().unwrap_or_default();
    name.strip_suffix(".safetensors").unwrap_or(name)
}

/// The scores in the log of a search.
fn evaluations(log: &Path) -> Result<Vec<Evaluation>> {
    let records = JsonLines::<Record>::read(log)?.into_iter();
    Ok(records
        .filter_map(|record| match record {
            Record::Evaluation(e) => Some(e),
            Record::Header(_) | Record::Claim(_) => None,
        })
        .collect())
}

/// Several runs side by side.
fn compared(runs: &[Found]) -> Page {
    let summaries: Vec<_> = runs.iter().filter_map(|r| Some((Some(r.name.as_str()), r.summary.as_ref()?))).collect();
    let text = "Figures of one extractor and one number of images compare, those of others do not.";
    let table = (!summaries.is_empty()).then(|| Part::Table(tables::results(&summaries)));
    let sections = vec![section("Results", text, table.into_iter().collect()), scores(runs), training(runs)];
    let names: Vec<&str> = runs.iter().map(|r| r.name.as_str()).collect();
    Page { title: names.join(", "), sections, footer: footer() }
}

/// Every candidate's score over the seconds of its search, and the best so far.
fn scores(runs: &[Found]) -> Section {
    let several = runs.len() > 1;
    let mut series = Vec::new();
    for run in runs {
        for search in &run.searches {
            let name = if several { format!("{} {}", run.name, search.name) } else { search.name.clone() };
            let [all, best] = search.curves();
            // Of one search all candidates are shown, of several they would cover each other.
            if !several && run.searches.len() == 1 {
                series.push(Series { name: format!("{name}: candidates"), mark: Mark::Dots, points: all });
            }
            series.push(Series { name: format!("{name}: best so far"), mark: Mark::Line, points: best });
        }
    }
    let plot = Plot { x: "seconds of search".into(), y: "FD on the latents of the search".into(), series };
    let text = "Baselines first. A search by gradient draws fresh latents at each step; the best so far counts the scores on \
                the fixed ones, so that it stays flat until its finalists are scored there.";
    section("Search", text, [Part::Plot(plot)].into_iter().chain(tables::others(runs)).collect())
}

impl Searched {
    /// Seconds and score of each candidate, and of the best so far among those on the fixed latents of the search.
    fn curves(&self) -> [Vec<(f64, f64)>; 2] {
        let (mut seconds, mut least) = (0.0, f64::INFINITY);
        let (mut all, mut best) = (Vec::new(), Vec::new());
        for e in self.evaluations.iter().filter(|e| !matches!(e.phase, Phase::Selection | Phase::Report(_))) {
            seconds += e.seconds;
            all.push((seconds, e.scores.fd));
            if !e.phase.draws_fresh_latents() {
                least = least.min(e.scores.fd);
            }
            best.push((seconds, least));
        }
        [all, best]
    }
}

/// Loss, norm of the gradient and speed over the images trained, stage by stage.
fn training(runs: &[Found]) -> Section {
    let mut stages: Vec<&str> = Vec::new();
    for tick in runs.iter().flat_map(|run| &run.ticks) {
        if !stages.contains(&tick.stage.as_str()) {
            stages.push(&tick.stage);
        }
    }
    let curve = |stage: &str, y: &str, value: fn(&Tick) -> Option<f64>| {
        let points = |run: &Found| {
            let ticks = run.ticks.iter().filter(|t| t.stage == stage);
            ticks.filter_map(|t| Some((t.nimg as f64, value(t)?))).collect()
        };
        let name = |run: &Found| if runs.len() > 1 { format!("{} {stage}", run.name) } else { stage.to_string() };
        let series = runs.iter().map(|run| Series { name: name(run), mark: Mark::Line, points: points(run) }).collect();
        Part::Plot(Plot { x: "images trained in the stage".into(), y: y.into(), series })
    };
    let of_stage = |stage: &&str| {
        let by_sigma = if let [run] = runs { Some(loss_by_sigma(run, stage)) } else { None };
        let curves = [
            curve(stage, "norm of the gradient", |t| t.grad_norm),
            curve(stage, "images a second", |t| Some(t.img_per_s)),
        ];
        [curve(stage, "loss", |t| t.loss)].into_iter().chain(by_sigma).chain(curves)
    };
    section("Training", "Means over a tick.", stages.iter().flat_map(of_stage).collect())
}

/// The loss at low, middling and high noise.
fn loss_by_sigma(run: &Found, stage: &str) -> Part {
    let names = ["lowest quarter of the noise levels", "second", "third", "highest"];
    let of_quarter = |(quarter, name): (usize, &str)| {
        let ticks = run.ticks.iter().filter(|t| t.stage == stage);
        let points = ticks.filter_map(|t| Some((t.nimg as f64, t.loss_by_sigma[quarter]?))).collect();
        Series { name: name.to_string(), mark: Mark::Line, points }
    };
    let series = names.into_iter().enumerate().map(of_quarter).collect();
    Part::Plot(Plot { x: format!("images trained in {stage}"), y: "loss by noise level".into(), series })
}

fn section(title: &str, text: &str, parts: Vec<Part>) -> Section {
    Section { title: title.into(), text: text.into(), parts }
}

fn footer() -> String {
    format!("Made by lcsc {} from the files of the run.", env!("CARGO_PKG_VERSION"))
}
