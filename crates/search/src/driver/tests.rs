use super::*;
use crate::baselines::Saved;
use crate::config::Budget;
use crate::log::Record;
use crate::score::{Latents, ReportScores, Scores};
use crate::{Coefficients, EvolutionConfig, Penalty};
use lcsc_torch::{Stream, rng, standard_normal};
use lcsc_trajectory::JsonLines;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A bowl around a known optimum, a little different on each set of latents.
struct Bowl {
    optimum: [f64; 4],
    /// Distance of a recorded track.
    track: f64,
    calls: RefCell<Vec<(Latents, Model)>>,
    /// Coefficients whose first value is above this give non-finite images.
    broken_above: f64,
    /// Steps along gradients.
    steps: Vec<u64>,
    /// What is fine-tuned, and what was saved of it: steps and values.
    tuned: (u64, [f64; 4]),
    saved: Option<(u64, [f64; 4])>,
    /// Scores after which memory is out.
    fails_after: usize,
    /// Takes long enough that other workers get their turn.
    slow: bool,
    /// Models that are scored at once, and how many there were each time.
    ranks: usize,
    at_once: Vec<usize>,
}

impl Bowl {
    fn new() -> Self {
        Self {
            optimum: [-0.4, 0.3, 0.2, 0.9],
            track: 3.0,
            calls: RefCell::default(),
            broken_above: f64::INFINITY,
            steps: vec![],
            tuned: (0, [0.0; 4]),
            saved: None,
            fails_after: usize::MAX,
            slow: false,
            ranks: 1,
            at_once: vec![],
        }
    }

    fn rest(&self) {
        if self.slow {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn fd(&self, values: &[f64], shift: f64) -> f64 {
        1.0 + values.iter().zip(self.optimum).map(|(a, o)| (a - o - shift).powi(2)).sum::<f64>()
    }

    /// 2(a − o) and a little noise, a function of the step.
    fn slopes(&self, values: &[f64], step: u64) -> Vec<f64> {
        let noise = |i: usize| 0.01 * standard_normal(&mut rng(3, Stream::StepLatents, 4 * step + i as u64));
        values.iter().zip(self.optimum).enumerate().map(|(i, (a, o))| 2.0 * (a - o) + noise(i)).collect()
    }

    fn score(&mut self, model: &Model, latents: Latents) -> Result<Scores> {
        if self.calls.borrow().len() == self.fails_after {
            bail!("out of memory");
        }
        self.rest();
        self.calls.borrow_mut().push((latents, model.clone()));
        let (shift, report) = match latents {
            Latents::Search => (0.0, false),
            Latents::Selection => (0.01, false),
            Latents::Report(seed) => (0.02 * (1.0 + seed as f64), true),
        };
        let mean = |c: &Coefficients, i: usize| c.rows().iter().map(|row| row[i]).sum::<f64>() / c.groups() as f64;
        let fd = match model {
            Model::Track(_) => self.track + shift,
            Model::Coefficients(c) if c.rows()[0][0] > self.broken_above => f64::NAN,
            Model::Coefficients(c) => self.fd(&[0, 1, 2, 3].map(|i| mean(c, i)), shift),
            Model::Finetuned => self.fd(&self.tuned.1, shift),
        };
        let measured =
            ReportScores { fd_std: 0.1, fd_independent: 2.0 * fd, fd_pixel: 3.0 * fd, precision: 0.5, recall: 0.25 };
        Ok(Scores { fd, report: report.then_some(measured) })
    }
}

impl Fitness for Bowl {
    fn prepare(&mut self, _: &[&Model]) -> Result<()> {
        Ok(())
    }

    fn side_by_side(&self) -> usize {
        self.ranks
    }

    fn scores(&mut self, models: &[&Model], latents: Latents) -> Result<Vec<Scores>> {
        self.at_once.push(models.len());
        assert!(models.len() == 1 || !matches!(latents, Latents::Report(_)));
        models.iter().map(|model| self.score(model, latents)).collect()
    }

    fn gradient(&mut self, alpha: &Coefficients, step: u64) -> Result<(f64, Vec<Vec<f64>>)> {
        self.rest();
        self.steps.push(step);
        let rows = alpha.rows().iter().map(|row| self.slopes(row, step)).collect();
        Ok((self.fd(&alpha.rows()[0], 0.0), rows))
    }

    fn begin_tuning(&mut self, start: &Model, logged: u64) -> Result<u64> {
        let Model::Coefficients(c) = start else { panic!("{start:?}") };
        let begin = (0, [0, 1, 2, 3].map(|i| c.rows()[0][i]));
        self.tuned = self.saved.filter(|(steps, _)| *steps <= logged).unwrap_or(begin);
        Ok(self.tuned.0)
    }

    fn tune(&mut self, step: u64, lr: f64) -> Result<f64> {
        assert_eq!(step, self.tuned.0);
        if step == 4 {
            self.saved = Some(self.tuned);
        }
        self.steps.push(step);
        let fd = self.fd(&self.tuned.1, 0.0);
        let slopes = self.slopes(&self.tuned.1, step);
        self.tuned.1.iter_mut().zip(slopes).for_each(|(v, s)| *v -= 1000.0 * lr * s);
        self.tuned.0 += 1;
        Ok(fd)
    }

    fn end_tuning(&mut self) -> Result<()> {
        self.saved = Some(self.tuned);
        Ok(())
    }
}

fn space() -> SearchSpace {
    let raw = |i| Saved { nimg: 100.0 * f64::from(i), track: "raw".into() };
    SearchSpace {
        rows: (1..5).map(raw).collect(),
        tracks: vec!["ema".into()],
        groups: vec!["input".into(), "output".into()],
        given: vec![],
        nfe: 1,
        fingerprint: "bowl".into(),
    }
}

/// A search by `method`.
fn search(method: &[MethodName], evaluations: u64) -> SearchConfig {
    let budget = Budget { evaluations: Some(evaluations), ..Budget::default() };
    SearchConfig { method: method.to_vec(), budget, finalists: 2, report_seeds: 2, ..SearchConfig::default() }
}

fn config(evaluations: u64) -> SearchConfig {
    search(&[MethodName::Evolution], evaluations)
}

fn run_with(
    config: &SearchConfig,
    path: &Path,
    fitness: &mut dyn Fitness,
    stop: &dyn Fn() -> Result<bool>,
) -> Result<Option<Outcome>> {
    run(&space(), config, fitness, Run { seed: 11, log_path: path, worker: None, stop, progress: &mut |_| {} })
}

fn log_path(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("evaluations.jsonl")
}

fn evaluations(path: &Path) -> Vec<Evaluation> {
    let record = |r| match r {
        Record::Evaluation(e) => Some(Evaluation { seconds: 0.0, worker: 0, ..e }),
        Record::Header(_) | Record::Claim(_) => None,
    };
    JsonLines::open(path).unwrap().1.into_iter().filter_map(record).collect()
}

fn whole(config: &SearchConfig, fitness: &mut Bowl) -> (Outcome, Vec<Evaluation>) {
    let folder = tempfile::tempdir().unwrap();
    let outcome = run_with(config, &log_path(&folder), fitness, &|| Ok(false)).unwrap().unwrap();
    (outcome, evaluations(&log_path(&folder)))
}

fn row(outcome: &Outcome, label: Label) -> &Row {
    outcome.row(label).unwrap()
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
        let ratio = [row.fd_independent, row.fd_pixel].map(|fd| fd / row.fd_heldout);
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
            Phase::Baseline | Phase::Search(_) | Phase::Finalist => 1000,
            Phase::Selection => 2000,
            Phase::Report(_) => 5000,
        };
        assert_eq!((e.images, e.worker), (images, 0));
    }
}

/// Every method that has steps of its own.
const METHODS: [MethodName; 5] =
    [MethodName::Evolution, MethodName::OnePlusOne, MethodName::CmaEs, MethodName::Gradient, MethodName::Finetune];

#[test]
fn every_method_beats_the_baselines() {
    for method in METHODS {
        let (outcome, log) = whole(&search(&[method], 200), &mut Bowl::new());
        let label = if method == MethodName::Finetune { Label::Finetune } else { Label::Lcsc };
        let (ema, found) = (row(&outcome, Label::Ema), row(&outcome, label));
        let left = (found.fd_heldout - 1.0) / (ema.fd_heldout - 1.0);
        assert!(left < 0.3, "{}: {left}", method.name());
        assert_eq!(log.iter().filter(|e| e.phase == Phase::Search(method)).count(), 200);
        assert_eq!(outcome.doubt(&SearchConfig::default()), None, "{}", method.name());
    }
}

#[test]
fn methods_in_sequence_share_the_budget_and_go_on_from_the_best() {
    let both = search(&[MethodName::EmaGrid, MethodName::Evolution, MethodName::Gradient], 61);
    let (outcome, log) = whole(&both, &mut Bowl::new());
    let of = |method| log.iter().filter(|e| e.phase == Phase::Search(method)).collect::<Vec<_>>();
    let (first, second) = (of(MethodName::Evolution), of(MethodName::Gradient));
    assert_eq!((first.len(), second.len(), outcome.evaluations), (31, 31, 62));
    let best = first.iter().min_by(|a, b| a.scores.fd.total_cmp(&b.scores.fd)).unwrap();
    let Model::Coefficients(start) = &best.candidate.model else { panic!("{best:?}") };
    assert_eq!(second[0].candidate.model, Model::Coefficients(start.spread(2).unwrap()));
    // What has groups is gone on from in groups, whatever the method that follows.
    let all = [MethodName::Gradient, MethodName::CmaEs, MethodName::Evolution, MethodName::Finetune];
    let (outcome, log) = whole(&search(&all, 120), &mut Bowl::new());
    let groups = |e: &&Evaluation| match &e.candidate.model {
        Model::Coefficients(alpha) => alpha.groups(),
        Model::Track(_) | Model::Finetuned => 0,
    };
    for method in &all[..3] {
        let own = log.iter().filter(|e| e.phase == Phase::Search(*method));
        assert!(own.clone().count() == 30 && own.map(|e| groups(&e)).all(|g| g == 2), "{}", method.name());
    }
    assert!(row(&outcome, Label::Lcsc).fd_heldout < 1.1 && outcome.evaluations == 120);
    let grid = search(&[MethodName::EmaGrid], 10);
    let (outcome, _) = whole(&grid, &mut Bowl::new());
    assert_eq!((outcome.evaluations, row(&outcome, Label::Lcsc).fd_heldout), (0, row(&outcome, Label::Ema).fd_heldout));
}

#[test]
fn ranks_score_side_by_side_what_one_process_scores_in_turn() {
    let methods = [MethodName::Evolution, MethodName::CmaEs, MethodName::OnePlusOne];
    for (batch, ranks, budget) in [(9, 3, 90), (30, 16, 90), (1, 2, 90), (9, 3, 40)] {
        let evolution = EvolutionConfig { batch, ..EvolutionConfig::default() };
        let config = SearchConfig { evolution, ..search(&methods, budget) };
        let (expected, scores) = whole(&config, &mut Bowl::new());
        let mut several = Bowl { ranks, ..Bowl::new() };
        let (outcome, spread) = whole(&config, &mut several);
        assert!(spread == scores && outcome.rows == expected.rows, "{ranks} ranks");
        let together = several.at_once.iter().filter(|n| **n == ranks).count();
        let of_baselines = scores.iter().filter(|e| e.phase == Phase::Baseline).count() / ranks;
        assert!(together > of_baselines, "{together} times {ranks} at once");
        assert!(several.at_once.iter().all(|n| *n == 1 || *n == ranks));
    }
}

#[test]
fn a_search_stopped_anywhere_resumes_to_the_same_result() {
    for method in METHODS {
        let config = search(&[method], 10);
        let (outcome, log) = whole(&config, &mut Bowl::new());
        for n in 0..=log.len() {
            let folder = tempfile::tempdir().unwrap();
            let path = log_path(&folder);
            let mut first = Bowl::new();
            let stop = || Ok(evaluations(&path).len() >= n);
            let stopped = run_with(&config, &path, &mut first, &stop).unwrap();
            assert_eq!(stopped.is_some(), n == log.len());
            assert_eq!(evaluations(&path), log[..n]);
            let mut second = Bowl { saved: first.saved, ..Bowl::new() };
            let resumed = run_with(&config, &path, &mut second, &|| Ok(false)).unwrap().unwrap();
            assert_eq!(resumed.rows, outcome.rows, "{} stopped after {n}", method.name());
            assert_eq!(evaluations(&path), log);
            // Nothing is scored twice, but steps of fine-tuning that were not saved are taken again.
            let tunes = method == MethodName::Finetune;
            let scored = |f: &Bowl| f.calls.borrow().len() + if tunes { 0 } else { f.steps.len() };
            assert_eq!(scored(&first) + scored(&second), log.len() - if tunes { 10 } else { 0 });
        }
    }
}

#[test]
fn a_log_torn_inside_any_line_resumes_to_the_same_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let outcome = run_with(&config(10), &path, &mut Bowl::new(), &|| Ok(false)).unwrap().unwrap();
    let log = evaluations(&path);
    let bytes = std::fs::read(&path).unwrap();
    let mut start = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        std::fs::write(&path, &bytes[..start + line.len() / 2]).unwrap();
        let resumed = run_with(&config(10), &path, &mut Bowl::new(), &|| Ok(false)).unwrap().unwrap();
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
    let budget = Budget { seconds: Some(1e6), ..Budget::default() };
    let config = SearchConfig { budget, ..config(0) };
    let n = baselines(&space()).unwrap().len() + 7;
    let stop = || Ok(evaluations(&path).len() >= n);
    assert_eq!(run_with(&config, &path, &mut Bowl::new(), &stop).unwrap(), None);
    let (_, mut records) = JsonLines::<Record>::open(&path).unwrap();
    let Some(Record::Evaluation(last)) = records.last_mut() else { panic!("an evaluation") };
    last.seconds = 2e6;
    let lines: String = records.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
    std::fs::write(&path, lines).unwrap();
    let outcome = run_with(&config, &path, &mut Bowl::new(), &|| Ok(false)).unwrap().unwrap();
    assert_eq!(outcome.evaluations, 7);
    assert!(outcome.seconds >= 2e6);
}

#[test]
fn a_search_without_improvement_gives_up() {
    let patient = |method, patience| {
        let mut config = search(&[method], 400);
        config.budget.patience = Some(patience);
        whole(&config, &mut Bowl::new()).0.evaluations
    };
    assert!((50..399).contains(&patient(MethodName::OnePlusOne, 20)));
    assert!((30..399).contains(&patient(MethodName::Gradient, 20)));
    for method in [MethodName::Evolution, MethodName::CmaEs] {
        let budget = Budget { images: Some(9_500), ..Budget::default() };
        let config = SearchConfig { budget, ..search(&[method], 0) };
        assert_eq!(whole(&config, &mut Bowl::new()).0.evaluations, 10);
    }
}

#[test]
fn a_failing_fitness_ends_the_search_and_keeps_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let mut failing = Bowl { fails_after: 6, ..Bowl::new() };
    let text = run_with(&config(10), &path, &mut failing, &|| Ok(false)).unwrap_err().to_string();
    assert_eq!(text, "out of memory");
    assert_eq!(evaluations(&path).len(), 6);
    let text = run_with(&SearchConfig { images: 500, ..config(10) }, &path, &mut Bowl::new(), &|| Ok(false));
    assert!(text.unwrap_err().to_string().contains("`config.images` was 1000 and is 500"));
}

/// A worker's part in a search of the log in `folder`.
fn work(config: &SearchConfig, folder: &Path, fitness: &mut Bowl) -> Result<Option<Outcome>> {
    let log_path = folder.join("evaluations.jsonl");
    let worker = Some(Worker::start(folder).unwrap());
    run(
        &space(),
        config,
        fitness,
        Run { seed: 11, log_path: &log_path, worker, stop: &|| Ok(false), progress: &mut |_| {} },
    )
}

#[test]
fn workers_share_a_search_and_score_nothing_twice() {
    for method in [MethodName::Evolution, MethodName::CmaEs, MethodName::Gradient] {
        let folder = tempfile::tempdir().unwrap();
        let config = search(&[method], 30);
        let join = || {
            let mut fitness = Bowl { slow: true, ..Bowl::new() };
            let outcome = work(&config, folder.path(), &mut fitness).unwrap().unwrap();
            (outcome, fitness.calls.borrow().len() + fitness.steps.len())
        };
        let ended = std::thread::scope(|s| {
            let workers: Vec<_> = (0..3).map(|_| s.spawn(join)).collect();
            workers.into_iter().map(|w| w.join().unwrap()).collect::<Vec<_>>()
        });
        let log = evaluations(&log_path(&folder));
        assert_eq!(ended.iter().map(|(_, scored)| scored).sum::<usize>(), log.len(), "{}", method.name());
        // Steps along a gradient follow each other: one worker may take them all.
        assert!(method == MethodName::Gradient || ended.iter().all(|(_, scored)| *scored > 3), "one worker did all");
        assert!(ended.iter().all(|(outcome, _)| outcome.rows == ended[0].0.rows));
        let searched: Vec<_> = log.iter().filter(|e| e.phase == Phase::Search(method)).collect();
        assert_eq!((searched.len(), ended[0].0.evaluations), (30, 30));
        let distinct: BTreeMap<_, _> = log.iter().map(|e| ((e.phase, e.candidate.id), ())).collect();
        assert_eq!(distinct.len(), log.len());
    }
}

#[test]
fn what_a_dead_worker_had_claimed_is_scored_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(12);
    // It dies in the middle of the search, after its claim.
    let mut failing = Bowl { fails_after: baselines(&space()).unwrap().len() + 5, ..Bowl::new() };
    assert!(work(&config, folder.path(), &mut failing).is_err());
    let records = JsonLines::<Record>::read(log_path(&folder)).unwrap();
    let Some(Record::Claim(claim)) = records.last() else { panic!("{records:?}") };
    // Its number is taken by a worker that lives: the claim is still known to be nobody's.
    for number_taken in [false, true] {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(log_path(&folder), log_path(&copy)).unwrap();
        let other = (!number_taken).then(|| Worker::start(copy.path()).unwrap());
        assert_eq!(other.as_ref().map(Worker::id), (!number_taken).then_some(1));
        drop(other);
        let outcome = work(&config, copy.path(), &mut Bowl::new()).unwrap().unwrap();
        assert_eq!(outcome.evaluations, 12);
        let log = evaluations(&log_path(&copy));
        let scored: Vec<_> = log.iter().filter(|e| e.candidate == claim.candidate && e.phase == claim.phase).collect();
        assert_eq!(scored.len(), 1);
    }
    let tuning = search(&[MethodName::Finetune], 3);
    let text = work(&tuning, folder.path(), &mut Bowl::new()).unwrap_err().to_string();
    assert!(text.contains("cannot be shared by workers"), "{text}");
}

#[test]
fn a_given_combination_competes() {
    let optimum = Coefficients::one(Bowl::new().optimum.to_vec()).unwrap();
    let space = SearchSpace { given: vec![("found before".into(), optimum)], ..space() };
    let folder = tempfile::tempdir().unwrap();
    let config = SearchConfig { penalty: Penalty { distance: 1.0, square: 0.0 }, ..config(5) };
    let (log_path, stop) = (log_path(&folder), || Ok(false));
    let run_of = Run { seed: 11, log_path: &log_path, worker: None, stop: &stop, progress: &mut |_| {} };
    let outcome = run(&space, &config, &mut Bowl::new(), run_of).unwrap().unwrap();
    let lcsc = row(&outcome, Label::Lcsc);
    assert!(lcsc.detail == "found before" && lcsc.fd_search == 1.0, "{lcsc:?}");
}

fn run_noted(path: &Path, progress: &mut dyn FnMut(&Progress)) {
    let run_of = Run { seed: 11, log_path: path, worker: None, stop: &|| Ok(false), progress };
    run(&space(), &config(10), &mut Bowl::new(), run_of).unwrap();
}

#[test]
fn progress_counts_each_part_and_marks_replays() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let seen = RefCell::new(Vec::new());
    let mut note = |p: &Progress| seen.borrow_mut().push((p.evaluation.phase, p.done, p.total, p.replayed, p.best));
    let n = baselines(&space()).unwrap().len() as u64;
    let mut go = || run_noted(&path, &mut note);
    go();
    let first = seen.take();
    assert_eq!((first[0].1, first[0].2), (1, Some(n)));
    assert!(first.iter().any(|p| (p.0, p.1, p.2) == (Phase::Search(MethodName::Evolution), 10, Some(10))));
    assert!(first.iter().any(|p| (p.0, p.1, p.2) == (Phase::Selection, 6, Some(6))));
    let (phase, done, total) = first.last().map(|p| (p.0, p.1, p.2.unwrap())).unwrap();
    assert_eq!((phase, done), (Phase::Report(1), total));
    let mut go = || run_noted(&path, &mut note);
    go();
    assert!(seen.borrow().iter().all(|p| p.3));
    assert_eq!(seen.borrow().len(), first.len());
}

#[test]
fn what_cannot_be_searched_is_refused_before_a_log_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_path(&folder);
    let config = SearchConfig { budget: Budget::default(), finalists: 0, ..config(1) };
    let text = run_with(&config, &path, &mut Bowl::new(), &|| Ok(false)).unwrap_err().to_string();
    assert!(
        text.contains("`budget.evaluations`: expected") && text.contains("`finalists`: expected at least 1"),
        "{text}"
    );
    assert!(!path.exists());
}
