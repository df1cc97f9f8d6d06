//! A search as TensorBoard shows it: scores as they come, and the coefficients of each new best.

use super::results::model_label;
use lcsc_report::tensorboard::{EventFile, PREFIX, Step};
use lcsc_search::{Model, Origin, Outcome, Phase, Progress};
use lcsc_torch::{Context, Result};
use lcsc_train::report_error;
use std::path::{Path, PathBuf};

/// Event files of a search. Its log holds all of it: where they cannot be written, a warning says so and the search goes on.
pub struct Events {
    folder: PathBuf,
    groups: Vec<String>,
    /// None before the first score, and where it cannot be written.
    file: Option<EventFile>,
    scored: u64,
}

impl Events {
    /// Those in a folder, of coefficients of these groups. They begin anew with the first score: a search tells all its
    /// scores again, also those of its log.
    pub fn new(folder: PathBuf, groups: &[String]) -> Self {
        Self { folder, groups: groups.to_vec(), file: None, scored: 0 }
    }

    /// A score; steps are candidates scored, those of `checkpoints/…` images trained.
    pub fn note(&mut self, p: &Progress) {
        let (e, phase) = (p.evaluation, p.evaluation.phase);
        if matches!(phase, Phase::Report(_)) {
            return;
        }
        if self.scored == 0 {
            self.file = warned(begin_anew(&self.folder));
        }
        self.scored += 1;
        let mut values = Step::default()
            .scalar(format!("FD/{phase}"), e.scores.fd)
            .scalar(format!("best FD so far/{phase}"), p.best);
        if let (Model::Coefficients(alpha), Phase::Search(_) | Phase::Finalist) = (&e.candidate.model, phase)
            && e.scores.fd <= p.best
        {
            for (i, row) in alpha.rows().iter().enumerate() {
                let group = if alpha.groups() == 1 { "all" } else { self.groups.get(i).map_or("", String::as_str) };
                values = values.histogram(format!("coefficients/{group}"), row);
            }
        }
        self.write(self.scored, values);
        if let (Phase::Baseline, Origin::Checkpoint { nimg, track, .. }) = (phase, &e.candidate.origin) {
            self.write(*nimg as u64, Step::default().scalar(format!("checkpoints/{track}"), e.scores.fd));
        }
    }

    /// The table at the end.
    pub fn finish(&mut self, outcome: &Outcome) {
        let mut values = Step::default();
        for row in &outcome.rows {
            let label = model_label(row.label);
            values = values
                .scalar(format!("held-out FD/{label}"), row.fd_heldout)
                .scalar(format!("search FD/{label}"), row.fd_search);
        }
        self.write(self.scored, values);
    }

    fn write(&mut self, step: u64, values: Step) {
        if let Some(mut file) = self.file.take() {
            self.file = warned(file.write(step, values).map_err(report_error)).map(|()| file);
        }
    }
}

fn warned<T>(result: Result<T>) -> Option<T> {
    result.inspect_err(|e| tracing::warn!("nothing more for TensorBoard: {e}")).ok()
}

/// A file in place of those of earlier sittings.
fn begin_anew(folder: &Path) -> Result<EventFile> {
    std::fs::create_dir_all(folder).at(folder)?;
    for entry in std::fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) {
            std::fs::remove_file(&path).at(&path)?;
        }
    }
    EventFile::begin(folder, 0).map_err(report_error)
}
