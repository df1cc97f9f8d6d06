//! `lcsc run` and `lcsc train`.

use crate::args::RunArgs;
use crate::config;
use crate::session::Session;
use crate::{Ended, report, search, train, ui};
use lcsc_search::When;
use lcsc_trajectory::RunFolder;
use miette::IntoDiagnostic;
use std::path::Path;

/// Trains all stages, searches, and writes the merged model.
pub fn run(args: &RunArgs, signals: &ui::Signals) -> miette::Result<Ended> {
    let session = open(args, signals)?;
    match train::train(&session)? {
        Some(stages) if session.config.search.when != When::Off => {
            search::search(&session, search::DEFAULT_NAME, stages, false)
        }
        Some(_) => {
            report::write(&session.run);
            Ok(trained(&session))
        }
        None => Ok(Ended::Stopped),
    }
}

/// Trains all stages.
pub fn train(args: &RunArgs, signals: &ui::Signals) -> miette::Result<Ended> {
    let session = open(args, signals)?;
    Ok(match train::train(&session)? {
        Some(_) => trained(&session),
        None => Ended::Stopped,
    })
}

fn trained(session: &Session) -> Ended {
    ui::say!("trained: {}", session.run.path().display());
    Ended::Done
}

fn open<'a>(args: &RunArgs, signals: &'a ui::Signals) -> miette::Result<Session<'a>> {
    signals.listen()?;
    let loaded = config::load(&args.file.config, &args.file.set)?;
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&loaded.config.name));
    let run = RunFolder::create(out).into_diagnostic()?;
    Session::open(loaded, run, signals, false)
}
