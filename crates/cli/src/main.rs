//! The `lcsc` command: train diffusion and consistency models, keep their checkpoints, search the best combination.

mod args;
mod bench;
mod card;
mod check;
mod config;
mod config_reference;
mod data;
#[cfg(test)]
mod docs;
mod doctor;
mod document;
mod during;
mod eval;
mod examples;
mod explain;
mod export;
mod extractor;
mod import;
mod launch;
mod man;
mod merge;
mod naming;
mod pictures;
mod plans;
mod problems;
mod progress;
mod ranks;
mod read_config;
mod reference;
mod report;
mod run;
mod sample;
mod search;
mod session;
mod train;
mod ui;
mod watch;

use args::{Args, Command, ConfigCommand};
use clap::{CommandFactory, Parser};
use config::Loaded;
use ranks::together;
use std::process::ExitCode;

/// How a command came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It did what was asked.
    Done,
    /// A signal asked it to stop; everything is saved.
    Stopped,
    /// The processes that it started ended with this status, and have told why.
    OfRanks(u8),
}

fn main() -> ExitCode {
    let args = Args::parse();
    ui::start_logging(args.quiet, args.verbose, ranks::follows(&args.command));
    lcsc_torch::install_panic_hook();
    lcsc_torch::keep_freed_memory();
    let signals = ui::Signals::default();
    match dispatch(args.command, &signals) {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Stopped) => {
            if !ui::follows() {
                eprintln!("stopped; everything is saved, and the same command goes on from here");
            }
            ExitCode::from(signals.exit_status())
        }
        Ok(Ended::OfRanks(status)) => ExitCode::from(status),
        Err(report) => match report.downcast_ref() {
            Some(ranks::End::Told) => ExitCode::FAILURE,
            Some(ranks::End::ByAnother(known)) => {
                eprintln!("{known}");
                ui::keep_error(&report);
                ExitCode::from(ranks::ENDED_BY_ANOTHER)
            }
            None => {
                ui::tell_error(&report);
                ExitCode::FAILURE
            }
        },
    }
}

fn dispatch(command: Command, signals: &ui::Signals) -> miette::Result<Ended> {
    match command {
        Command::Run(a) => together(|group| run::run(&a, signals, group)),
        Command::Train(a) => together(|group| run::train(&a, signals, group)),
        Command::Search(a) => together(|group| search::command(&a, signals, group)),
        Command::Launch(a) => launch::command(&a, signals),
        Command::Merge(a) => merge::command(&a),
        Command::Sample(a) => together(|group| sample::command(&a, group)),
        Command::Eval(a) => together(|group| eval::command(&a, group)),
        Command::Import(a) => import::command(&a, signals),
        Command::Export(a) => export::command(&a),
        Command::Data(command) => data::command(&command, signals),
        Command::Doctor { config } => doctor::command(config.as_deref()),
        Command::Report(a) => report::command(&a),
        Command::Watch(a) => watch::command(&a),
        Command::Bench(a) => together(|group| bench::command(&a, group)),
        Command::Config(command) => config_command(command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "lcsc", &mut std::io::stdout());
            Ok(Ended::Done)
        }
        Command::Man { folder } => man::write(&folder).map(|()| Ended::Done),
        Command::TryPlans { device } => plans::command(device),
    }
}

fn config_command(command: ConfigCommand) -> miette::Result<Ended> {
    match command {
        ConfigCommand::Check(file) => {
            let Loaded { config, .. } = config::load(&file.config, &file.set)?;
            ui::say!(
                "{}: no problems; {} stages (the images are read when a run begins)",
                file.config.display(),
                config.stage.len()
            );
        }
        ConfigCommand::Show(file) => {
            ui::say!("{}", config::load(&file.config, &file.set)?.config.to_toml()?.trim_end())
        }
        ConfigCommand::Explain(file) => {
            ui::say!("{}", explain::text(&config::load(&file.config, &file.set)?)?.trim_end())
        }
        ConfigCommand::Schema => ui::say!("{:#}", config::schema()),
        ConfigCommand::Reference => ui::say!("{}", config_reference::text(&config::schema()).trim_end()),
    }
    Ok(Ended::Done)
}
