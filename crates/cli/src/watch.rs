//! `lcsc watch`: what a run is at, from its files alone; also of another process, or of one that has ended.

mod view;

use crate::args::WatchArgs;
use crate::config::Config;
use crate::{Ended, search, ui};
use lcsc_report::Summary;
use lcsc_search::{Evaluation, Phase, Record, SearchConfig};
use lcsc_torch::Result;
use lcsc_train::{Tick, report_error};
use lcsc_trajectory::{Checkpoint, RunFolder, Tail};
use miette::IntoDiagnostic;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// Columns and rows of the view as plain text.
const PLAIN: (u16, u16) = (80, 24);
/// Time from one look at the files to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Shows a run until a key ends it, or once.
pub fn command(args: &WatchArgs) -> miette::Result<Ended> {
    let run = RunFolder::open(&args.run).into_diagnostic()?;
    let mut watched = Watched::new(run);
    watched.update().into_diagnostic()?;
    if args.once || !std::io::stdout().is_terminal() {
        ui::say!("{}", plain(&watched)?);
        return Ok(Ended::Done);
    }
    let mut terminal = ratatui::try_init().into_diagnostic()?;
    let shown = live(&mut terminal, &mut watched);
    ratatui::restore();
    shown?;
    Ok(Ended::Done)
}

fn live(terminal: &mut DefaultTerminal, watched: &mut Watched) -> miette::Result<()> {
    loop {
        terminal.draw(|frame| view::draw(frame, watched)).into_diagnostic()?;
        if event::poll(PAUSE).into_diagnostic()? {
            match event::read().into_diagnostic()? {
                Event::Key(key) if key.kind == KeyEventKind::Press && ends(key.code, key.modifiers) => return Ok(()),
                _ => continue,
            }
        }
        watched.update().into_diagnostic()?;
    }
}

fn ends(key: KeyCode, modifiers: KeyModifiers) -> bool {
    matches!(key, KeyCode::Char('q') | KeyCode::Esc)
        || key == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL)
}

/// The view as text.
fn plain(watched: &Watched) -> miette::Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(PLAIN.0, PLAIN.1)).into_diagnostic()?;
    terminal.draw(|frame| view::draw(frame, watched)).into_diagnostic()?;
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    let rows: Vec<String> = cells.chunks(PLAIN.0.into()).map(|row| row.concat().trim_end().to_string()).collect();
    Ok(rows.join("\n").trim_end().to_string())
}

/// What is known of a run.
struct Watched {
    run: RunFolder,
    /// None until the run has written it.
    config: Option<Config>,
    ticks: Tail<Tick>,
    checkpoints: Tail<Checkpoint>,
    searches: BTreeMap<String, Search>,
    summary: Option<Summary>,
    /// Whether a process works on it now.
    works: bool,
    /// Lines of the log that tell of something wrong.
    warnings: Vec<String>,
}

/// A search of it.
struct Search {
    log: PathBuf,
    records: Tail<Record>,
}

impl Search {
    /// Its settings, once it has begun.
    fn config(&self) -> Option<&SearchConfig> {
        match self.records.values().first()? {
            Record::Header(header) => Some(&header.config),
            Record::Claim(_) | Record::Evaluation(_) => None,
        }
    }

    fn evaluations(&self) -> impl DoubleEndedIterator<Item = &Evaluation> {
        self.records.values().iter().filter_map(|record| match record {
            Record::Evaluation(evaluation) => Some(evaluation),
            Record::Header(_) | Record::Claim(_) => None,
        })
    }

    /// Scores of its methods.
    fn of_methods(&self) -> impl DoubleEndedIterator<Item = &Evaluation> {
        self.evaluations().filter(|e| matches!(e.phase, Phase::Search(_)))
    }
}

impl Watched {
    fn new(run: RunFolder) -> Self {
        Self {
            config: None,
            ticks: Tail::new(run.train_log()),
            checkpoints: Tail::new(run.manifest()),
            searches: BTreeMap::new(),
            summary: None,
            works: false,
            warnings: Vec::new(),
            run,
        }
    }

    /// Reads what has come.
    fn update(&mut self) -> Result<()> {
        let text = std::fs::read_to_string(self.run.config_path()).unwrap_or_default();
        self.config = toml::from_str(&text).ok();
        self.ticks.update()?;
        self.checkpoints.update()?;
        self.works = self.run.is_locked()?;
        let summary = self.run.summary();
        self.summary = summary.exists().then(|| Summary::read(summary)).transpose().map_err(report_error)?;
        let log = std::fs::read_to_string(self.run.log()).unwrap_or_default();
        let wrong = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        self.warnings = log.lines().filter(wrong).map(str::to_string).collect();
        for (name, log) in search::logs(&self.run)? {
            self.searches.entry(name).or_insert_with(|| Search { records: Tail::new(&log), log });
        }
        self.searches.values_mut().try_for_each(|search| search.records.update())
    }

    /// The search that was last worked on.
    fn latest_search(&self) -> Option<(&str, &Search)> {
        let changed = |search: &Search| search.log.metadata().and_then(|m| m.modified()).ok();
        let found = self.searches.iter().max_by_key(|(_, search)| changed(search));
        found.map(|(name, search)| (name.as_str(), search))
    }
}
