//! Commands that several processes carry out together.

use crate::Ended;
use crate::args::Command;
use crate::config::{Config, Loaded};
use crate::ui;
use lcsc_torch::{Error, Failure, Group, Ranks, Result};
use lcsc_trajectory::RunFolder;
use miette::IntoDiagnostic;

/// Exit status of a rank that ends because another one did.
pub const ENDED_BY_ANOTHER: u8 = 75;

/// The end of a rank of which there is no report to be shown.
#[derive(Debug, miette::Diagnostic, thiserror::Error)]
pub enum End {
    /// It is shown already.
    #[error("ended")]
    Told,
    /// Another rank ended, or tells the same: what is known of that.
    #[error("{0}")]
    ByAnother(String),
}

/// Whether this process is told what to do by rank 0, which alone reports.
pub fn follows(command: &Command) -> bool {
    takes_part(command) && Ranks::from_env().is_ok_and(|ranks| ranks.is_some_and(|ranks| ranks.rank > 0))
}

/// Whether several processes can carry out a command together.
pub fn takes_part(command: &Command) -> bool {
    match command {
        Command::Run(_)
        | Command::Train(_)
        | Command::Search(_)
        | Command::Sample(_)
        | Command::Eval(_)
        | Command::Bench(_) => true,
        Command::Merge(_)
        | Command::Import(_)
        | Command::Export(_)
        | Command::Data(_)
        | Command::Doctor { .. }
        | Command::Report(_)
        | Command::Watch(_)
        | Command::Config(_)
        | Command::Completions { .. }
        | Command::Launch(_)
        | Command::Man { .. }
        | Command::TryPlans { .. } => false,
    }
}

/// Meets the other ranks where the environment says that there are any, works with them, and leaves when all are done.
///
/// # Errors
/// That of `work`, once the others know it; else an [`End`].
pub fn together(work: impl FnOnce(&Group) -> miette::Result<Ended>) -> miette::Result<Ended> {
    let group = match Ranks::from_env().into_diagnostic()? {
        Some(ranks) => Group::join(ranks).into_diagnostic()?,
        None => Group::alone(),
    };
    let ended = work(&group).and_then(|ended| group.leave().into_diagnostic().map(|()| ended));
    ended.map_err(|report| {
        // Before the others end and say so.
        let told = group.size() > 1 && group.leads() && !group.is_broken();
        if told {
            ui::tell_error(&report);
        }
        match group.fail(&report.to_string()) {
            Failure::Own if told => End::Told.into(),
            Failure::Own => report,
            Failure::OfAnother(known) => End::ByAnother(known).into(),
        }
    })
}

/// The outcome of something that each rank does for itself, once all of them have succeeded.
///
/// # Errors
/// Its own, else that of another rank.
pub fn all_ok<T>(group: &Group, outcome: miette::Result<T>) -> miette::Result<T> {
    let known = outcome.as_ref().map(drop).map_err(|report| Error::msg(report.to_string()));
    let all = group.all_ok(known);
    let value = outcome?;
    all.into_diagnostic().map(|()| value)
}

/// Makes sure that all ranks have the same settings, and that they can share every batch evenly.
///
/// Where `microbatch` is not set it becomes this rank's share, and stays so: what it was when the run was begun counts.
///
/// # Errors
/// They have not, or they cannot.
pub fn share_batches(loaded: &mut Loaded, run: &RunFolder, group: &Group) -> miette::Result<()> {
    group.same("settings", &loaded.config.to_toml()?).into_diagnostic()?;
    let begun = match group.leads() {
        true => std::fs::read_to_string(run.config_path()).unwrap_or_default(),
        false => String::new(),
    };
    let begun = group.told(&begun).into_diagnostic()?;
    settle_rounds(&mut loaded.config, toml::from_str(&begun).ok().as_ref(), group.size() as u64).into_diagnostic()
}

fn settle_rounds(config: &mut Config, begun: Option<&Config>, ranks: u64) -> Result<()> {
    for (i, stage) in config.stage.iter_mut().enumerate() {
        let before = begun.and_then(|begun| begun.stage.get(i)).filter(|before| before.batch == stage.batch);
        if stage.microbatch.is_none() {
            stage.microbatch = match before {
                Some(before) => before.microbatch,
                None if ranks > 1 && stage.batch % ranks == 0 => Some(stage.batch / ranks),
                None => None,
            };
        }
        let rounds = stage.batch / stage.round();
        if rounds % ranks != 0 {
            return Err(Error::Message(format!(
                "stage `{}`: a batch of {} images in rounds of {} is {rounds} rounds, which {ranks} ranks cannot share evenly. \
                 Start as many ranks as divide the number of rounds, or begin a run with another `microbatch`: it decides what \
                 noise an image gets, and stays as it is once a run has begun",
                stage.name,
                stage.batch,
                stage.round()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::path::Path;

    fn smoke(set: &[&str]) -> Config {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/tiny/smoke.toml");
        config::load(&path, &set.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap().config
    }

    #[test]
    fn a_batch_is_cut_into_as_many_rounds_as_there_are_ranks_when_a_run_begins() {
        let mut config = smoke(&[]);
        let batch = config.stage[0].batch;
        settle_rounds(&mut config, None, 1).unwrap();
        assert_eq!(config.stage[0].microbatch, None);
        settle_rounds(&mut config, None, 4).unwrap();
        assert_eq!(config.stage[0].microbatch, Some(batch / 4));
        // On it goes with another number of ranks, from the same file.
        for ranks in [1, 2] {
            let mut again = smoke(&[]);
            settle_rounds(&mut again, Some(&config), ranks).unwrap();
            assert_eq!(again, config);
        }
        // Of another batch it is another run.
        let mut other = smoke(&[&format!("stage.0.batch={}", 2 * batch)]);
        settle_rounds(&mut other, Some(&config), 2).unwrap();
        assert_eq!(other.stage[0].microbatch, Some(batch));
    }

    #[test]
    fn rounds_that_cannot_be_shared_are_refused() {
        let refused = |mut config: Config, begun: Option<&Config>, ranks| {
            settle_rounds(&mut config, begun, ranks).unwrap_err().to_string()
        };
        let batch = smoke(&[]).stage[0].batch;
        let text = refused(smoke(&[]), Some(&smoke(&[])), 2);
        assert!(text.contains(&format!("rounds of {batch} is 1 rounds, which 2 ranks cannot share evenly")), "{text}");
        let halves = smoke(&[&format!("stage.0.microbatch={}", batch / 2)]);
        assert!(refused(halves, None, 4).contains("is 2 rounds, which 4 ranks cannot share"));
    }
}
