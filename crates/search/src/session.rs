//! One search in progress: what is known, and how to learn more.

use crate::candidate::Candidate;
use crate::config::SearchConfig;
use crate::log::{Evaluation, Log, Phase};
use crate::score::Fitness;
use lcsc_torch::Error;
use std::time::Instant;

/// Where a search stands after a score.
#[derive(Debug)]
pub struct Progress<'a> {
    /// The score.
    pub evaluation: &'a Evaluation,
    /// Whether it came out of the log.
    pub replayed: bool,
    /// Scores so far in this part: baselines, search, selection or report.
    pub done: u64,
    /// Scores in this part; none where the budget is in seconds.
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

/// Scores candidates, each once: what the log holds is not computed again.
pub(crate) struct Session<'a> {
    pub(crate) config: &'a SearchConfig,
    pub(crate) log: Log,
    fitness: &'a mut dyn Fitness,
    stop: &'a dyn Fn() -> bool,
    progress: &'a mut dyn FnMut(&Progress),
    done: u64,
    total: Option<u64>,
    best: f64,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        config: &'a SearchConfig,
        log: Log,
        fitness: &'a mut dyn Fitness,
        stop: &'a dyn Fn() -> bool,
        progress: &'a mut dyn FnMut(&Progress),
    ) -> Self {
        Self { config, log, fitness, stop, progress, done: 0, total: None, best: f64::INFINITY }
    }

    /// Begins the next part of the search.
    pub(crate) fn begin(&mut self, total: Option<u64>) {
        (self.done, self.total, self.best) = (0, total, f64::INFINITY);
    }

    /// The score of a candidate: out of the log, else computed and logged.
    pub(crate) fn score(&mut self, phase: Phase, candidate: Candidate) -> Step<Evaluation> {
        let logged = self.log.find(phase, candidate.id).cloned();
        let replayed = logged.is_some();
        let evaluation = match logged {
            Some(evaluation) => evaluation,
            None => self.evaluate(phase, candidate)?,
        };
        self.done += 1;
        self.best = self.best.min(evaluation.scores.fd);
        let (done, total, best) = (self.done, self.total, self.best);
        (self.progress)(&Progress { evaluation: &evaluation, replayed, done, total, best });
        Ok(evaluation)
    }

    fn evaluate(&mut self, phase: Phase, candidate: Candidate) -> Step<Evaluation> {
        if (self.stop)() {
            return Err(Halt::Stopped);
        }
        let started = Instant::now();
        let scores = self.fitness.score(&candidate.model, phase.latents())?.worst_if_not_finite();
        let seconds = started.elapsed().as_secs_f64();
        let evaluation = Evaluation { candidate, worker: 0, phase, images: phase.images(self.config), scores, seconds };
        self.log.append(evaluation.clone())?;
        Ok(evaluation)
    }
}
