//! The search from the first baseline to the final table.

use crate::baselines::{SearchSpace, baselines};
use crate::candidate::{Candidate, Model, Origin};
use crate::config::{MethodConfig, SearchConfig};
use crate::evolution::{Evolution, Member};
use crate::log::{Evaluation, Header, Log, Phase};
use crate::outcome::{Label, Outcome, Row};
use crate::score::Fitness;
use crate::session::{Halt, Progress, Session, Step};
use lcsc_torch::{Error, Result, bail};
use std::path::Path;

/// Scores the baselines, searches until the budget is spent, chooses a winner of each family on the selection latents,
/// and scores the winners on the report latents. None: `stop` returned true, with all scores so far in the log.
///
/// Scores that the log at `log_path` holds are not computed again, so that the same call resumes a killed search; with a
/// budget in evaluations its rows are those of an uninterrupted one.
///
/// # Errors
/// The config or the trajectory cannot be searched, the log belongs to another search, or `fitness` fails.
pub fn run(
    space: &SearchSpace,
    config: &SearchConfig,
    seed: u64,
    log_path: &Path,
    fitness: &mut dyn Fitness,
    stop: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Option<Outcome>> {
    let problems: Vec<String> = config.validate().into_iter().map(|i| format!("`{}`: {}", i.key, i.message)).collect();
    if !problems.is_empty() {
        bail!("the search cannot be run: {}", problems.join("; "));
    }
    let baselines = baselines(space)?;
    let SearchSpace { times, tracks, fingerprint } = space.clone();
    let log = Log::open(log_path, &Header { times, tracks, fingerprint, seed, config: config.clone() })?;
    match search(&mut Session::new(config, log, fitness, stop, progress), baselines, seed) {
        Ok(outcome) => Ok(Some(outcome)),
        Err(Halt::Stopped) => Ok(None),
        Err(Halt::Failed(e)) => Err(e),
    }
}

fn search(session: &mut Session, baselines: Vec<Candidate>, seed: u64) -> Step<Outcome> {
    session.begin(Some(baselines.len() as u64));
    let baselines = baselines.into_iter().map(|b| session.score(Phase::Baseline, b)).collect::<Step<Vec<_>>>()?;
    let searched = evolve(session, &baselines, seed)?;
    let winners = select(session, &baselines, &searched)?;
    Ok(Outcome {
        rows: report(session, &winners)?,
        evaluations: searched.len() as u64,
        seconds: searched.iter().map(|e| e.seconds).sum(),
    })
}

/// Candidates of the search method until the budget is spent, in the order of their ids.
fn evolve(session: &mut Session, baselines: &[Evaluation], seed: u64) -> Step<Vec<Evaluation>> {
    let SearchConfig { method: MethodConfig::Evolution(constants), budget, .. } = session.config;
    let initial = baselines.iter().filter_map(member).collect();
    let mut evolution = Evolution::new(constants.clone(), seed, baselines.len() as u64, initial);
    let mut searched = Vec::new();
    let mut seconds = 0.0;
    session.begin(budget.evaluations);
    while !budget.is_spent(searched.len() as u64, seconds) {
        let evaluation = session.score(Phase::Search, evolution.ask()?)?;
        if let Some(member) = member(&evaluation) {
            evolution.tell(member);
        }
        seconds += evaluation.seconds;
        searched.push(evaluation);
    }
    Ok(searched)
}

/// A scored combination as a member of the population; a recorded track is none.
fn member(evaluation: &Evaluation) -> Option<Member> {
    let Candidate { id, model, .. } = &evaluation.candidate;
    match model {
        Model::Coefficients(c) => Some(Member { id: *id, coefficients: c.clone(), score: evaluation.scores.fd }),
        Model::Track(_) => None,
    }
}

/// The model of each row with its score on the search latents.
fn select(session: &mut Session, baselines: &[Evaluation], searched: &[Evaluation]) -> Step<[(Label, Evaluation); 4]> {
    let is_checkpoint = |e: &&Evaluation| matches!(e.candidate.origin, Origin::Checkpoint { .. });
    let (checkpoints, averages): (Vec<_>, Vec<_>) = baselines.iter().partition(is_checkpoint);
    let Some(last) = checkpoints.last().map(|e| (*e).clone()) else {
        return Err(Error::msg("the search has no checkpoint").into());
    };
    let n = session.config.finalists;
    let [checkpoints, averages, searched] =
        [checkpoints, averages, searched.iter().collect()].map(|family| finalists(family, n));
    session.begin(Some((checkpoints.len() + averages.len() + 2 + searched.len()) as u64));
    let checkpoint = winner(session, checkpoints)?;
    let ema = winner(session, averages)?;
    // What the search began with competes too: where nothing searched is better, LCSC is that model.
    let lcsc = winner(session, [vec![ema.clone(), checkpoint.clone()], searched].concat())?;
    Ok([(Label::Last, last), (Label::BestCheckpoint, checkpoint), (Label::Ema, ema), (Label::Lcsc, lcsc)])
}

/// The best `n` of a family on the search latents.
fn finalists(mut family: Vec<&Evaluation>, n: usize) -> Vec<Evaluation> {
    family.sort_by(|a, b| a.scores.fd.total_cmp(&b.scores.fd));
    family.into_iter().take(n).cloned().collect()
}

/// The finalist that is best on the selection latents; the first of equals.
fn winner(session: &mut Session, finalists: Vec<Evaluation>) -> Step<Evaluation> {
    let mut scored = Vec::with_capacity(finalists.len());
    for finalist in finalists {
        scored.push((session.score(Phase::Selection, finalist.candidate.clone())?.scores.fd, finalist));
    }
    let best = scored.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, finalist)| finalist).ok_or_else(|| Error::msg("the selection has no finalist").into())
}

/// Scores each row on each set of report latents.
fn report(session: &mut Session, winners: &[(Label, Evaluation)]) -> Step<Vec<Row>> {
    let seeds = session.config.report_seeds;
    session.begin(Some(seeds * winners.len() as u64));
    let mut heldout = vec![Vec::new(); winners.len()];
    for seed in 0..seeds {
        for ((_, winner), scores) in winners.iter().zip(&mut heldout) {
            scores.push(session.score(Phase::Report(seed), winner.candidate.clone())?.scores);
        }
    }
    let row = |((label, winner), scores): (&(Label, Evaluation), Vec<_>)| {
        let fd_selection = session.log.find(Phase::Selection, winner.candidate.id).map(|e| e.scores.fd);
        Row::new(*label, winner, fd_selection, &scores)
    };
    Ok(winners.iter().zip(heldout).map(row).collect())
}

#[cfg(test)]
mod tests;
