use super::*;
use crate::config::Budget;
use crate::log::Record;
use crate::score::{Latents, Scores};
use lcsc_trajectory::JsonLines;
use std::cell::{Cell, RefCell};

/// A bowl around a known optimum, a little different on each set of latents.
struct Bowl {
    optimum: [f64; 4],
    /// Distance of a recorded track.
    track: f64,
    calls: RefCell<Vec<(Latents, Model)>>,
    /// Coefficients whose first value is above this give non-finite images.
    broken_above: f64,
}

impl Bowl {
    fn new() -> Self {
        Self { optimum: [-0.4, 0.3, 0.2, 0.9], track: 3.0, calls: RefCell::default(), broken_above: f64::INFINITY }
    }
}

impl Fitness for Bowl {
    fn score(&mut self, model: &Model, latents: Latents) -> Result<Scores> {
        self.calls.borrow_mut().push((latents, model.clone()));
        let (shift, report) = match latents {
            Latents::Search => (0.0, false),
            Latents::Selection => (0.01, false),
            Latents::Report(seed) => (0.02 * (1.0 + seed as f64), true),
        };
        let fd = match model {
            Model::Track(_) => self.track + shift,
            Model::Coefficients(c) if c.as_slice()[0] > self.broken_above => f64::NAN,
            Model::Coefficients(c) => {
                1.0 + c.as_slice().iter().zip(self.optimum).map(|(a, o)| (a - o - shift).powi(2)).sum::<f64>()
            }
        };
        Ok(Scores { fd, fd_independent: report.then_some(2.0 * fd), fd_pixel: report.then_some(3.0 * fd) })
    }
}

fn space() -> SearchSpace {
    SearchSpace { times: vec![100.0, 200.0, 300.0, 400.0], tracks: vec!["ema".into()], fingerprint: "bowl".into() }
}

fn config(evaluations: u64) -> SearchConfig {
    let budget = Budget { evaluations: Some(evaluations), seconds: None };
    SearchConfig { budget, finalists: 2, report_seeds: 2, ..SearchConfig::default() }
}

fn run_with(
    config: &SearchConfig,
    path: &Path,
    fitness: &mut dyn Fitness,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Outcome>> {
    run(&space(), config, 11, path, fitness, stop, &mut |_| {})
}

fn log_path(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("evaluations.jsonl")
}

fn evaluations(path: &Path) -> Vec<Evaluation> {
    let record = |r| match r {
        Record::Evaluation(e) => Some(Evaluation { seconds: 0.0, ..e }),
        Record::Header(_) => None,
    };
    JsonLines::open(path).unwrap().1.into_iter().filter_map(record).collect()
}

fn whole(config: &SearchConfig, fitness: &mut Bowl) -> (Outcome, Vec<Evaluation>) {
    let folder = tempfile::tempdir().unwrap();
    let outcome = run_with(config, &log_path(&folder), fitness, &|| false).unwrap().unwrap();
    (outcome, evaluations(&log_path(&folder)))
}

fn row(outcome: &Outcome, label: Label) -> &Row {
    outcome.rows.iter().find(|r| r.label == label).unwrap()
}

#[test]
fn the_search_beats_the_baselines_on_held_out_latents() {
    let (outcome, _) = whole(&config(300), &mut Bowl::new());
    let [last, best, ema, lcsc] =
        [Label::Last, Label::BestCheckpoint, Label::Ema, Label::Lcsc].map(|l| row(&outcome, l));
    assert_eq!((last.detail.as_str(), best.detail.as_str()), ("checkpoint 400", "checkpoint 400"));
    assert_eq!((last.fd_search, last.fd_selection), (best.fd_search, best.fd_selection));
    assert!(lcsc.detail.contains("candidate"), "{}", lcsc.detail);
    assert!(lcsc.fd_search - 1.0 < 0.02 * (ema.fd_search - 1.0), "{} {}", lcsc.fd_search, ema.fd_search);
    assert!(lcsc.fd_heldout < ema.fd_heldout && lcsc.fd_heldout < best.fd_heldout);
    for row in &outcome.rows {
        let ratio = [row.fd_independent, row.fd_pixel].map(|fd| fd.unwrap() / row.fd_heldout);
        assert!((ratio[0] - 2.0).abs() < 1e-12 && (ratio[1] - 3.0).abs() < 1e-12);
        assert!(row.fd_heldout_std.unwrap() < 0.1);
    }
    assert_eq!(outcome.evaluations, 300);
}

#[test]
fn each_phase_has_its_latents_and_the_report_comes_once_and_last() {
    let mut fitness = Bowl::new();
    let (_, log) = whole(&config(10), &mut fitness);
    let calls = fitness.calls.borrow();
    let count = |latents| calls.iter().filter(|c| c.0 == latents).count();
    let baselines = baselines(&space()).unwrap().len();
    assert_eq!(count(Latents::Search), baselines + 10);
    assert_eq!(count(Latents::Selection), 2 + 2 + 2);
    let distinct = count(Latents::Report(0));
    assert!((2..=4).contains(&distinct) && distinct == count(Latents::Report(1)));
    let order: Vec<u8> = calls
        .iter()
        .map(|(latents, _)| match latents {
            Latents::Search => 0,
            Latents::Selection => 1,
            Latents::Report(_) => 2,
        })
        .collect();
    assert!(order.is_sorted());
    for (i, call) in calls.iter().enumerate() {
        assert!(order[i] < 2 || !calls[..i].contains(call), "{call:?} was reported twice");
    }
    assert_eq!(log.len(), calls.len());
    for e in &log {
        let images = match e.phase {
            Phase::Baseline | Phase::Search => 1000,
            Phase::Selection => 2000,
            Phase::Report(_) => 5000,
        };
        assert_eq!((e.images, e.worker), (images, 0));
    }
}

#[test]
fn a_search_stopped_anywhere_resumes_to_the_same_result() {
    let (outcome, log) = whole(&config(10), &mut Bowl::new());
    for n in 0..=log.len() {
        let folder = tempfile::tempdir().unwrap();
        let path = log_path(&folder);
        let left = Cell::new(n);
        let stop = || left.replace(left.get().saturating_sub(1)) == 0;
        let stopped = run_with(&config(10), &path, &mut Bowl::new(), &stop).unwrap();
        assert_eq!(stopped.is_some(), n == log.len());
        assert_eq!(evaluations(&path), log[..n]);
        let mut fitness = Bowl::new();
        let resumed = run_with(&config(10), &path, &mut fitness, &|| false).unwrap().unwrap();
        assert_eq!(resumed.rows, outcome.rows);
        assert_eq!(evaluations(&path), log);
        assert_eq!(fitness.calls.borrow().len(), log.len() - n);
    }
}

#[test]
fn a_log_torn_inside_any_line_resumes_to_the_same_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let outcome = run_with(&config(10), &path, &mut Bowl::new(), &|| false).unwrap().unwrap();
    let log = evaluations(&path);
    let bytes = std::fs::read(&path).unwrap();
    let mut start = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        std::fs::write(&path, &bytes[..start + line.len() / 2]).unwrap();
        let resumed = run_with(&config(10), &path, &mut Bowl::new(), &|| false).unwrap().unwrap();
        assert_eq!(resumed.rows, outcome.rows);
        assert_eq!(evaluations(&path), log);
        start += line.len();
    }
}

#[test]
fn candidates_that_are_not_finite_are_worst_and_end_nothing() {
    let mut fitness = Bowl { broken_above: 0.1, ..Bowl::new() };
    let (outcome, log) = whole(&config(60), &mut fitness);
    assert!(log.iter().any(|e| e.phase == Phase::Baseline && e.scores.fd == f64::INFINITY));
    assert_eq!(outcome.evaluations, 60);
    assert!(row(&outcome, Label::Lcsc).fd_heldout < 1.2);

    let mut hopeless = Bowl { broken_above: f64::NEG_INFINITY, track: f64::NAN, ..Bowl::new() };
    let (outcome, _) = whole(&config(5), &mut hopeless);
    for row in &outcome.rows {
        assert_eq!((row.fd_heldout, row.fd_heldout_std), (f64::INFINITY, None));
    }
}

#[test]
fn where_nothing_searched_is_better_lcsc_is_the_best_baseline() {
    let (outcome, _) = whole(&config(5), &mut Bowl { track: 0.5, ..Bowl::new() });
    let (ema, lcsc) = (row(&outcome, Label::Ema), row(&outcome, Label::Lcsc));
    assert_eq!((&ema.detail, &ema.model), (&"EMA track ema".to_string(), &Model::Track("ema".into())));
    assert_eq!(lcsc.detail, "EMA track ema: nothing searched was better on the selection latents");
    assert_eq!((&lcsc.model, lcsc.fd_heldout), (&ema.model, ema.fd_heldout));
    let (outcome, _) = whole(&config(0), &mut Bowl { optimum: [1.0, 0.0, 0.0, 0.0], ..Bowl::new() });
    assert!(row(&outcome, Label::Lcsc).detail.starts_with("checkpoint 100: nothing searched"));
}

#[test]
fn a_budget_in_seconds_counts_those_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let budget = Budget { evaluations: None, seconds: Some(1e6) };
    let config = SearchConfig { budget, ..config(0) };
    let left = Cell::new(baselines(&space()).unwrap().len() + 7);
    let stop = || left.replace(left.get().saturating_sub(1)) == 0;
    assert_eq!(run_with(&config, &path, &mut Bowl::new(), &stop).unwrap(), None);
    let (_, mut records) = JsonLines::<Record>::open(&path).unwrap();
    let Some(Record::Evaluation(last)) = records.last_mut() else { panic!("an evaluation") };
    last.seconds = 2e6;
    let lines: String = records.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
    std::fs::write(&path, lines).unwrap();
    let outcome = run_with(&config, &path, &mut Bowl::new(), &|| false).unwrap().unwrap();
    assert_eq!(outcome.evaluations, 7);
    assert!(outcome.seconds >= 2e6);
}

#[test]
fn a_failing_fitness_ends_the_search_and_keeps_its_log() {
    struct Failing(Bowl, usize);
    impl Fitness for Failing {
        fn score(&mut self, model: &Model, latents: Latents) -> Result<Scores> {
            if self.0.calls.borrow().len() == self.1 {
                bail!("out of memory");
            }
            self.0.score(model, latents)
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let text = run_with(&config(10), &path, &mut Failing(Bowl::new(), 6), &|| false).unwrap_err().to_string();
    assert_eq!(text, "out of memory");
    assert_eq!(evaluations(&path).len(), 6);
    let text = run_with(&SearchConfig { images: 500, ..config(10) }, &path, &mut Bowl::new(), &|| false);
    assert!(text.unwrap_err().to_string().contains("`config.images` was 1000 and is 500"));
}

#[test]
fn progress_counts_each_part_and_marks_replays() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let seen = RefCell::new(Vec::new());
    let mut note = |p: &Progress| seen.borrow_mut().push((p.evaluation.phase, p.done, p.total, p.replayed, p.best));
    let n = baselines(&space()).unwrap().len() as u64;
    let mut go = || run(&space(), &config(10), 11, &path, &mut Bowl::new(), &|| false, &mut note).unwrap();
    go();
    let first = seen.take();
    assert_eq!((first[0].1, first[0].2), (1, Some(n)));
    assert!(first.iter().any(|p| (p.0, p.1, p.2) == (Phase::Search, 10, Some(10))));
    assert!(first.iter().any(|p| (p.0, p.1, p.2) == (Phase::Selection, 8, Some(8))));
    assert_eq!(first.last().map(|p| (p.0, p.1, p.2)), Some((Phase::Report(1), 8, Some(8))));
    let mut go = || run(&space(), &config(10), 11, &path, &mut Bowl::new(), &|| false, &mut note).unwrap();
    go();
    assert!(seen.borrow().iter().all(|p| p.3));
    assert_eq!(seen.borrow().len(), first.len());
}

#[test]
fn what_cannot_be_searched_is_refused_before_a_log_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let config = SearchConfig { budget: Budget::default(), finalists: 0, ..config(1) };
    let text = run_with(&config, &path, &mut Bowl::new(), &|| false).unwrap_err().to_string();
    assert!(text.contains("`budget`: expected") && text.contains("`finalists`: expected at least 1"), "{text}");
    assert!(!path.exists());
}
