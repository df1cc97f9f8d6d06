//! `lcsc run` and `lcsc train`.

use crate::args::RunArgs;
use crate::config;
use crate::session::{Purpose, Session};
use crate::{Ended, ranks, report, search, train, ui};
use lcsc_search::When;
use lcsc_torch::Group;
use lcsc_trajectory::RunFolder;
use miette::IntoDiagnostic;
use std::path::Path;

/// Trains all stages, searches, and writes the merged model.
pub fn run(args: &RunArgs, signals: &ui::Signals, group: &Group) -> miette::Result<Ended> {
    let session = open(args, signals, group)?;
    match train::train(&session)? {
        Some(stages) if session.config.search.when != When::Off => {
            session.led(|| search::search(&session, search::DEFAULT_NAME, stages, false))
        }
        Some(_) if group.leads() => {
            report::write(&session.run);
            Ok(trained(&session))
        }
        Some(_) => Ok(Ended::Done),
        None => Ok(Ended::Stopped),
    }
}

/// Trains all stages.
pub fn train(args: &RunArgs, signals: &ui::Signals, group: &Group) -> miette::Result<Ended> {
    let session = open(args, signals, group)?;
    Ok(match train::train(&session)? {
        Some(_) if group.leads() => trained(&session),
        Some(_) => Ended::Done,
        None => Ended::Stopped,
    })
}

fn trained(session: &Session) -> Ended {
    ui::say!("trained: {}", session.run.path().display());
    Ended::Done
}

fn open<'a>(args: &RunArgs, signals: &'a ui::Signals, group: &'a Group) -> miette::Result<Session<'a>> {
    signals.listen()?;
    let mut loaded = ranks::all_ok(group, config::load(&args.file.config, &args.file.set))?;
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&loaded.config.name));
    let run = if group.leads() { RunFolder::create(out) } else { Ok(RunFolder::of_rank_0(out)) };
    let run = group.all_ok(run).into_diagnostic()?;
    ranks::share_batches(&mut loaded, &run, group)?;
    Session::open(loaded, run, signals, group, Purpose::Train)
}
