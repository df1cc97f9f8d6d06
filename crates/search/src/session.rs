//! One search in progress: what is known, and how to learn more.

use crate::candidate::{Candidate, Model, Origin};
use crate::config::{Budget, SearchConfig, Spent};
use crate::log::{Evaluation, Log};
use crate::methods::{Method, MethodName, rate};
use crate::phase::Phase;
use crate::score::{Fitness, Latents, Scores};
use lcsc_torch::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where a search stands after a score.
#[derive(Debug)]
pub struct Progress<'a> {
    /// The score.
    pub evaluation: &'a Evaluation,
    /// Whether it came out of the log.
    pub replayed: bool,
    /// Scores so far in this part: baselines, a method, selection or report.
    pub done: u64,
    /// Scores in this part; none where the budget is in seconds or images.
    pub total: Option<u64>,
    /// Smallest distance so far in this part.
    pub best: f64,
}

/// Why a search ends before its result.
pub(crate) enum Halt {
    /// Asked to.
    Stopped,
    /// By an error.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

/// The result of a step that may be stopped.
pub(crate) type Step<T> = std::result::Result<T, Halt>;

/// What to do next.
enum Next {
    Score(Vec<Candidate>),
    /// Other workers are at what is left.
    Wait,
    Done,
}

/// Candidates that are merged in one pass over the checkpoints, rounded up so that each rank has as many.
const BATCH: usize = 8;
/// How long a worker waits before it looks for the scores of others.
const PAUSE: Duration = Duration::from_millis(100);

/// ∂F/∂α of a step along a gradient.
type Gradient = Option<Vec<Vec<f64>>>;

/// Scores candidates, each once: what the log holds is not computed again.
pub(crate) struct Session<'a> {
    pub(crate) config: &'a SearchConfig,
    pub(crate) log: Log,
    pub(crate) fitness: &'a mut dyn Fitness,
    /// Network evaluations an image.
    pub(crate) nfe: usize,
    pub(crate) stop: &'a dyn Fn() -> Result<bool>,
    pub(crate) progress: &'a mut dyn FnMut(&Progress),
    pub(crate) part: Part,
}

/// How far a part of the search got.
#[derive(Default)]
pub(crate) struct Part {
    noted: BTreeSet<(Phase, u64)>,
    total: Option<u64>,
    best: f64,
}

impl Session<'_> {
    /// Begins the next part of the search.
    pub(crate) fn begin(&mut self, total: Option<u64>) {
        self.part = Part { noted: BTreeSet::new(), total, best: f64::INFINITY };
    }

    /// The scores of candidates in a phase, in their order: out of the log, else computed and logged.
    pub(crate) fn score(&mut self, phase: Phase, candidates: &[Candidate]) -> Step<Vec<Evaluation>> {
        let batch = self.batch();
        let mut replayed = true;
        loop {
            let next = self.log.locked(|log| open_jobs(log, phase, candidates, batch))?;
            let known = candidates.iter().filter_map(|c| self.log.find(phase, c.id));
            for evaluation in known.cloned().collect::<Vec<_>>() {
                self.note(&evaluation, replayed);
            }
            replayed = false;
            match next {
                Next::Score(jobs) => self.evaluate_all(phase, jobs, 0.0)?,
                Next::Wait => self.wait()?,
                Next::Done => break,
            }
        }
        let find = |c: &Candidate| self.log.find(phase, c.id).cloned();
        candidates.iter().map(find).collect::<Option<_>>().ok_or_else(|| Error::msg("a score got lost").into())
    }

    /// Asks and tells a method that begins at `start` until its budget is spent. All its scores by id.
    pub(crate) fn search(
        &mut self,
        name: MethodName,
        method: &mut Method,
        budget: &Budget,
        first_id: u64,
        start: &Model,
    ) -> Step<Vec<Evaluation>> {
        let phase = Phase::Search(name);
        let tunes = name == MethodName::Finetune;
        let images = phase.images(self.config, self.nfe);
        let logged = self.log.scores(phase, first_id).count() as u64;
        let mut tuned = if tunes { self.fitness.begin_tuning(start, logged)? } else { 0 };
        // With patience each score may be the last.
        let batch = if budget.patience.is_some() { 1 } else { self.batch() as u64 };
        let mut told = Told { name, first_id, images, batch, scores: BTreeMap::new() };
        let mut replayed = true;
        loop {
            let (new, next) = self.log.locked(|log| told.catch_up_and_ask(log, method, budget))?;
            for (evaluation, fraction) in new {
                // Steps that the saved parameters do not know yet are taken again.
                if let Origin::Finetune { step } = evaluation.candidate.origin
                    && step >= tuned
                {
                    self.fitness.tune(step, rate(self.config.finetune.lr, self.nfe, fraction))?;
                    tuned = step + 1;
                }
                self.note(&evaluation, replayed);
            }
            replayed = false;
            match next {
                Next::Score(jobs) => {
                    tuned += u64::from(tunes);
                    self.evaluate_all(phase, jobs, budget.fraction(told.spent()))?;
                }
                Next::Wait => self.wait()?,
                Next::Done => break,
            }
        }
        if tunes {
            self.fitness.end_tuning()?;
        }
        Ok(self.log.scores(phase, first_id).cloned().collect())
    }

    /// Shows a score once.
    fn note(&mut self, evaluation: &Evaluation, replayed: bool) {
        let part = &mut self.part;
        if part.noted.insert((evaluation.phase, evaluation.candidate.id)) {
            part.best = part.best.min(evaluation.scores.fd);
            let (done, total, best) = (part.noted.len() as u64, part.total, part.best);
            (self.progress)(&Progress { evaluation, replayed, done, total, best });
        }
    }

    fn wait(&self) -> Step<()> {
        if (self.stop)()? {
            return Err(Halt::Stopped);
        }
        sleep(PAUSE);
        Ok(())
    }

    /// Scores candidates and logs each score at once; `fraction` of the budget was used up before.
    fn evaluate_all(&mut self, phase: Phase, jobs: Vec<Candidate>, fraction: f64) -> Step<()> {
        if (self.stop)()? {
            return Err(Halt::Stopped);
        }
        let started = Instant::now();
        if phase.latents().is_some() {
            self.fitness.prepare(&jobs.iter().map(|job| &job.model).collect::<Vec<_>>())?;
        }
        let merging = started.elapsed().as_secs_f64() / jobs.len() as f64;
        let mut waiting = &jobs[..];
        while !waiting.is_empty() {
            if (self.stop)()? {
                return Err(Halt::Stopped);
            }
            let started = Instant::now();
            let (now, later) = waiting.split_at(self.at_once(phase, waiting.len()));
            waiting = later;
            let scored = self.evaluate(phase, now, fraction)?;
            let seconds = started.elapsed().as_secs_f64() / now.len() as f64 + merging;
            let (worker, images) = (self.log.worker(), phase.images(self.config, self.nfe));
            for (candidate, (scores, gradient)) in now.iter().cloned().zip(scored) {
                let scores = scores.worst_if_not_finite();
                let evaluation = Evaluation { candidate, worker, phase, images, scores, gradient, seconds };
                self.log.append(&evaluation)?;
                self.note(&evaluation, false);
            }
        }
        Ok(())
    }

    /// How many of the candidates that wait are scored at once: one a rank, where there are as many.
    fn at_once(&self, phase: Phase, waiting: usize) -> usize {
        let ranks = self.fitness.side_by_side();
        match phase.latents() {
            Some(Latents::Search | Latents::Selection) if waiting >= ranks => ranks,
            _ => 1,
        }
    }

    /// Candidates to take at a time: few where other workers could take the next.
    fn batch(&self) -> usize {
        let ranks = self.fitness.side_by_side();
        if self.log.is_shared() { ranks } else { BATCH.next_multiple_of(ranks) }
    }

    /// The scores of candidates, with the gradients of steps.
    fn evaluate(&mut self, phase: Phase, jobs: &[Candidate], fraction: f64) -> Result<Vec<(Scores, Gradient)>> {
        let Some(latents) = phase.latents() else {
            return jobs.iter().map(|job| self.step(phase, job, fraction)).collect();
        };
        let models: Vec<&Model> = jobs.iter().map(|job| &job.model).collect();
        Ok(self.fitness.scores(&models, latents)?.into_iter().map(|scores| (scores, None)).collect())
    }

    fn step(&mut self, phase: Phase, candidate: &Candidate, fraction: f64) -> Result<(Scores, Gradient)> {
        match (&candidate.origin, &candidate.model) {
            (Origin::Gradient { step }, Model::Coefficients(alpha)) => {
                let (fd, gradient) = self.fitness.gradient(alpha, *step)?;
                Ok((Scores::of(fd), Some(gradient)))
            }
            (Origin::Finetune { step }, Model::Finetuned) => {
                let lr = rate(self.config.finetune.lr, self.nfe, fraction);
                Ok((Scores::of(self.fitness.tune(*step, lr)?), None))
            }
            (origin, _) => Err(Error::msg(format!("{phase}: {origin} is no step along a gradient"))),
        }
    }
}

/// Candidates without a score that nobody else is at.
fn open_jobs(log: &mut Log, phase: Phase, candidates: &[Candidate], batch: usize) -> Result<Next> {
    let mut free: Vec<Candidate> = Vec::new();
    let mut others = false;
    for candidate in candidates.iter().filter(|c| log.find(phase, c.id).is_none()) {
        let claim = log.claims(phase).find(|claim| claim.candidate.id == candidate.id);
        if !claim.map_or(Ok(true), |claim| log.is_abandoned(claim))? {
            others = true;
        } else if free.len() < batch && free.iter().all(|f| f.id != candidate.id) {
            free.push(candidate.clone());
        }
    }
    log.claim(phase, &free)?;
    Ok(match free.is_empty() {
        false => Next::Score(free),
        true if others => Next::Wait,
        true => Next::Done,
    })
}

/// What a method was told. The end of its search is a function of all its scores in the order of their ids, so that
/// workers, and a search that is resumed, agree on it.
struct Told {
    name: MethodName,
    first_id: u64,
    /// Images of a score.
    images: u64,
    /// Candidates to ask for at a time.
    batch: u64,
    /// Distance, seconds and images of each score.
    scores: BTreeMap<u64, (f64, f64, u64)>,
}

impl Told {
    /// What is used up.
    fn spent(&self) -> Spent {
        let sum = |spent: Spent, &(_, seconds, images): &(f64, f64, u64)| Spent {
            evaluations: spent.evaluations + 1,
            seconds: spent.seconds + seconds,
            images: spent.images + images,
        };
        self.scores.values().fold(Spent::default(), sum)
    }

    /// Tells the method all scores that are new, each with the fraction of the budget before it, and asks what is next.
    fn catch_up_and_ask(
        &mut self,
        log: &mut Log,
        method: &mut Method,
        budget: &Budget,
    ) -> Result<(Vec<(Evaluation, f64)>, Next)> {
        let phase = Phase::Search(self.name);
        let scored = log.scores(phase, self.first_id).filter(|e| !self.scores.contains_key(&e.candidate.id));
        let mut new = Vec::new();
        for evaluation in scored.cloned().collect::<Vec<_>>() {
            let fraction = budget.fraction(self.spent());
            method.tell(&evaluation, fraction)?;
            let score = (evaluation.scores.fd, evaluation.seconds, evaluation.images);
            self.scores.insert(evaluation.candidate.id, score);
            new.push((evaluation, fraction));
        }
        Ok((new, self.ask(log, method, budget)?))
    }

    /// The candidates to score next.
    fn ask(&self, log: &mut Log, method: &Method, budget: &Budget) -> Result<Next> {
        let phase = Phase::Search(self.name);
        let mut going_on = 0;
        let mut jobs = Vec::new();
        for claim in log.claims(phase) {
            match log.is_abandoned(claim)? {
                true if (jobs.len() as u64) < self.batch => jobs.push(claim.candidate.clone()),
                true => {}
                false => going_on += 1,
            }
        }
        let spent = self.spent();
        let of_images = budget.images.map(|limit| limit.saturating_sub(spent.images).div_ceil(self.images.max(1)));
        let of_evaluations = budget.evaluations.map(|limit| limit.saturating_sub(spent.evaluations));
        let left = of_images.into_iter().chain(of_evaluations).min().unwrap_or(u64::MAX).saturating_sub(going_on);
        let ended = budget.fraction(spent) >= 1.0 || left == 0 || self.has_stalled(budget);
        if jobs.is_empty() && !ended {
            let next = log.next_id().max(self.first_id);
            for id in next..next + left.min(self.batch).min(method.most(next)) {
                jobs.extend(method.ask(id)?);
            }
        }
        log.claim(phase, &jobs)?;
        Ok(match jobs.is_empty() {
            false => Next::Score(jobs),
            true if ended && going_on == 0 => Next::Done,
            true => Next::Wait,
        })
    }

    /// Whether the best score is too long ago.
    fn has_stalled(&self, budget: &Budget) -> bool {
        let Some(patience) = budget.patience else { return false };
        let smoothed = if Phase::Search(self.name).latents().is_some() { 1 } else { SMOOTHED };
        let scores: Vec<f64> = self.scores.values().map(|(fd, _, _)| *fd).collect();
        let means = scores.windows(smoothed).map(|w| w.iter().sum::<f64>() / smoothed as f64);
        let best = means.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        best.is_some_and(|(i, _)| (scores.len() - smoothed - i) as u64 >= patience)
    }
}

/// Scores whose mean tells whether a method on fresh latents still improves.
const SMOOTHED: usize = 10;
