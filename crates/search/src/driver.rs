//! The search from the first baseline to the final table.

use crate::baselines::{SearchSpace, baselines};
use crate::candidate::{Candidate, Model, Origin};
use crate::config::{Groups, SearchConfig};
use crate::log::{Evaluation, Header, Log};
use crate::methods::{Beginning, Method, MethodName};
use crate::outcome::{Label, Outcome, Row};
use crate::phase::Phase;
use crate::score::Fitness;
use crate::session::{Halt, Part, Progress, Session, Step};
use crate::worker::Worker;
use lcsc_torch::{Error, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;

/// What a search needs beside its space, config and fitness.
pub struct Run<'a> {
    /// Seed of latents and of the search methods.
    pub seed: u64,
    /// `evaluations.jsonl`.
    pub log_path: &'a Path,
    /// Who this is, where several processes share the search.
    pub worker: Option<Worker>,
    /// Whether to stop, with all scores so far in the log; asked before each score.
    pub stop: &'a dyn Fn() -> Result<bool>,
    /// Told of each score.
    pub progress: &'a mut dyn FnMut(&Progress),
}

/// Scores the baselines, searches until the budget is spent, chooses a winner of each family on the selection latents,
/// and scores the winners on the report latents. None: `stop` returned true, with all scores so far in the log.
///
/// Scores that the log holds are not computed again, so that the same call resumes a killed search; with a budget in
/// evaluations or images its rows are those of an uninterrupted one.
///
/// # Errors
/// The config or the trajectory cannot be searched, the log belongs to another search, or `fitness` fails.
pub fn run(space: &SearchSpace, config: &SearchConfig, fitness: &mut dyn Fitness, run: Run) -> Result<Option<Outcome>> {
    let problems: Vec<String> = config.validate().into_iter().map(|i| format!("`{}`: {}", i.key, i.message)).collect();
    if !problems.is_empty() {
        bail!("the search cannot be run: {}", problems.join("; "));
    }
    if run.worker.is_some() && config.method.contains(&MethodName::Finetune) {
        bail!("`finetune` keeps its state in one process: it cannot be shared by workers");
    }
    let baselines = baselines(space)?;
    let Run { seed, log_path, worker, stop, progress } = run;
    let log = Log::open(log_path, &Header::new(space, config, seed), worker)?;
    let mut session = Session { config, log, fitness, nfe: space.nfe, stop, progress, part: Part::default() };
    match search(&mut session, space, &baselines, seed) {
        Ok(outcome) => Ok(Some(outcome)),
        Err(Halt::Stopped) => Ok(None),
        Err(Halt::Failed(e)) => Err(e),
    }
}

fn search(session: &mut Session, space: &SearchSpace, baselines: &[Candidate], seed: u64) -> Step<Outcome> {
    session.begin(Some(baselines.len() as u64));
    let baselines = session.score(Phase::Baseline, baselines)?;
    let mut found = Vec::new();
    let (mut evaluations, mut seconds) = (0, 0.0);
    let methods = session.config.searching();
    for &name in &methods {
        let known: Vec<&Evaluation> = baselines.iter().chain(&found).collect();
        let (scored, finalists) = method(session, space, name, &known, seed, methods.len())?;
        evaluations += scored.len() as u64;
        seconds += scored.iter().map(|e| e.seconds).sum::<f64>();
        found.extend(finalists);
    }
    let winners = select(session, space, &baselines, &found)?;
    let seconds_in_all = session.log.seconds_of_search();
    Ok(Outcome { rows: report(session, &winners)?, evaluations, seconds, seconds_in_all })
}

/// All scores of a method, and its best few with their scores on the search latents.
fn method(
    session: &mut Session,
    space: &SearchSpace,
    name: MethodName,
    known: &[&Evaluation],
    seed: u64,
    methods: usize,
) -> Step<(Vec<Evaluation>, Vec<Evaluation>)> {
    let config = session.config;
    let phase = Phase::Search(name);
    let first_id = session.log.locked(|log| {
        let begun = log.scores(phase, 0).map(|e| e.candidate.id).chain(log.claims(phase).map(|c| c.candidate.id));
        Ok(begun.min().unwrap_or_else(|| log.next_id()))
    })?;
    let groups = if config.groups(name) == Groups::One { 1 } else { space.groups.len() };
    let beginning = Beginning { config, seed, first_id, nfe: space.nfe, groups, known };
    let Some(mut method) = Method::new(name, &beginning)? else { return Ok((vec![], vec![])) };
    let start = known.iter().min_by(|a, b| a.scores.fd.total_cmp(&b.scores.fd));
    let start = start.map_or(Model::Finetuned, |e| e.candidate.model.clone());
    let budget = config.budget.share(methods);
    session.begin(budget.evaluations);
    let scored = session.search(name, &mut method, &budget, first_id, &start)?;
    let end = method.ask(first_id + scored.len() as u64)?;
    let n = config.finalists;
    let finalists = match name {
        MethodName::EmaGrid => vec![],
        MethodName::Evolution | MethodName::OnePlusOne | MethodName::CmaEs => best(scored.iter().collect(), n),
        MethodName::Gradient => session.score(Phase::Finalist, &latest(&scored, end, n))?,
        MethodName::Finetune => session.score(Phase::Finalist, &latest(&[], end, 1))?,
    };
    Ok((scored, finalists))
}

/// The end of a chain of steps and, where there are enough, points before it, a tenth of the chain apart.
fn latest(scored: &[Evaluation], end: Option<Candidate>, n: usize) -> Vec<Candidate> {
    let apart = (scored.len() / 10).max(1);
    let earlier = scored.iter().rev().skip(apart - 1).step_by(apart).map(|e| e.candidate.clone());
    end.into_iter().chain(earlier).take(n).collect()
}

/// The model of each row with its score on the search latents.
fn select(
    session: &mut Session,
    space: &SearchSpace,
    baselines: &[Evaluation],
    found: &[Evaluation],
) -> Step<Vec<(Label, Evaluation)>> {
    let base = space.rows.last().map_or("", |row| row.track.as_str());
    let family = |e: &Evaluation| match &e.candidate.origin {
        Origin::Checkpoint { track, .. } if track == base => Label::BestCheckpoint,
        Origin::Checkpoint { .. } | Origin::Uniform | Origin::HalfLife { .. } => Label::Ema,
        Origin::PowerFunction { .. } | Origin::Track { .. } => Label::Ema,
        Origin::Given { .. } | Origin::Mutation { .. } | Origin::Crossover { .. } => Label::Lcsc,
        Origin::Generation { .. } | Origin::Gradient { .. } => Label::Lcsc,
        Origin::Finetune { .. } => Label::Finetune,
    };
    let n = session.config.finalists;
    let of = |label| baselines.iter().chain(found).filter(|e| family(e) == label).collect::<Vec<_>>();
    let last = of(Label::BestCheckpoint).last().map(|e| (*e).clone());
    let last = last.ok_or_else(|| Error::msg("the search has no checkpoint"))?;
    let finalists = [Label::BestCheckpoint, Label::Ema].map(|label| best(of(label), n));
    let searched = match session.config.searching().len() {
        0 | 1 => best(of(Label::Lcsc), n),
        methods => best(of(Label::Lcsc), n * methods),
    };
    let tuned = best(of(Label::Finetune), n);
    let count = finalists.iter().map(Vec::len).sum::<usize>() + searched.len() + tuned.len();
    session.begin(Some(count as u64));
    let [checkpoints, averages] = finalists;
    let checkpoint = winner(session, checkpoints)?;
    let ema = winner(session, averages)?;
    // What the search began with competes too: where nothing searched is better, LCSC is that model.
    let lcsc = winner(session, [vec![ema.clone(), checkpoint.clone()], searched].concat())?;
    let mut rows =
        vec![(Label::Last, last), (Label::BestCheckpoint, checkpoint), (Label::Ema, ema), (Label::Lcsc, lcsc)];
    if !tuned.is_empty() {
        rows.push((Label::Finetune, winner(session, tuned)?));
    }
    Ok(rows)
}

/// The best `n` on the search latents.
fn best(mut family: Vec<&Evaluation>, n: usize) -> Vec<Evaluation> {
    family.sort_by(|a, b| a.scores.fd.total_cmp(&b.scores.fd));
    family.into_iter().take(n).cloned().collect()
}

/// The finalist that is best on the selection latents; the first of equals.
fn winner(session: &mut Session, finalists: Vec<Evaluation>) -> Step<Evaluation> {
    let candidates: Vec<Candidate> = finalists.iter().map(|e| e.candidate.clone()).collect();
    let scored = session.score(Phase::Selection, &candidates)?;
    let best = scored.iter().zip(finalists).min_by(|a, b| a.0.scores.fd.total_cmp(&b.0.scores.fd));
    best.map(|(_, finalist)| finalist).ok_or_else(|| Error::msg("the selection has no finalist").into())
}

/// Scores each row on each set of report latents.
fn report(session: &mut Session, winners: &[(Label, Evaluation)]) -> Step<Vec<Row>> {
    let seeds = session.config.report_seeds;
    let candidates: Vec<Candidate> = winners.iter().map(|(_, e)| e.candidate.clone()).collect();
    let distinct: BTreeSet<u64> = candidates.iter().map(|c| c.id).collect();
    session.begin(Some(seeds * distinct.len() as u64));
    let mut heldout = vec![Vec::new(); winners.len()];
    for seed in 0..seeds {
        for (scores, evaluation) in heldout.iter_mut().zip(session.score(Phase::Report(seed), &candidates)?) {
            scores.push(evaluation.scores);
        }
    }
    let row = |((label, winner), scores): (&(Label, Evaluation), Vec<_>)| {
        let fd_selection = session.log.find(Phase::Selection, winner.candidate.id).map(|e| e.scores.fd);
        Row::new(*label, winner, fd_selection, &scores)
    };
    winners.iter().zip(heldout).map(row).collect::<Result<_>>().map_err(Halt::from)
}

#[cfg(test)]
mod tests;
