//! The tables of a report page.

use super::Found;
use crate::search;
use lcsc_report::{Cell, Metric, ModelLabel, Part, Row, Summary, Table, figure};

/// The models of one run or several, the best of each run marked.
pub fn results(summaries: &[(Option<&str>, &Summary)]) -> Table {
    let several = summaries.iter().any(|(run, _)| run.is_some());
    let columns = [
        "model",
        "held-out FD ↓",
        "95 % interval",
        "independent ↓",
        "pixels ↓",
        "precision ↑",
        "recall ↑",
        "search FD",
        "detail",
    ];
    let run = several.then_some("run");
    let mut table = Table { columns: run.into_iter().chain(columns).map(String::from).collect(), rows: vec![] };
    for (run, summary) in summaries {
        let best = summary.best();
        for m in &summary.models {
            let mut cells: Vec<Cell> = run.iter().map(|run| Cell::text(*run)).collect();
            cells.push(Cell::text(m.label.to_string()));
            cells.push(Cell::number(m.fd_heldout, m.heldout()));
            let interval = format!("{} – {}", figure(m.fd_heldout_low), figure(m.fd_heldout_high));
            cells.push(Cell::number(m.fd_heldout_low, interval));
            cells.extend([m.fd_independent, m.fd_pixel].map(|v| Cell::number(v, figure(v))));
            cells.extend([m.precision, m.recall].map(|v| Cell::number(v, format!("{v:.2}"))));
            cells.extend([Cell::number(m.fd_search, figure(m.fd_search)), Cell::text(&*m.detail)]);
            table.rows.push(Row { cells, best: best == Some(m.fd_heldout) });
        }
    }
    table
}

/// What the columns of the results are, and what was measured.
pub fn glossary(m: &Metric) -> String {
    format!(
        "\
FD             Fréchet distance between the features of generated and of real images; smaller is better
held-out       mean over sets of {} images from latents (the noise that images are made from) that the search
               never saw, ± the standard deviation between the sets; with its 95 % interval
independent    the same images by another extractor, which the search did not use; a scale of its own
pixels         the same on raw pixels; a scale of its own
precision      share of the images that lie among the real ones; larger is better
recall         share of the real images that lie among the generated ones; larger is better
search FD      on the {} images that candidates were searched on: it favours what was searched
detail         what the model is: a checkpoint by the images trained, an average by its width, the search's winner

Network evaluations an image: {}. Extractor: {}. Real images: {}.
",
        m.n_heldout, m.n_search, m.nfe, m.extractor, m.reference
    )
}

/// What the searches beside the run's own came to.
pub fn others(runs: &[Found]) -> Option<Part> {
    let mut rows = Vec::new();
    for run in runs {
        for search in run.searches.iter().filter(|s| s.name != search::DEFAULT_NAME) {
            let Some(summary) = &search.summary else { continue };
            let lcsc = summary.models.iter().find(|m| m.label == ModelLabel::Lcsc);
            let cells = lcsc.map(|m| {
                let name = if runs.len() > 1 { format!("{} {}", run.name, search.name) } else { search.name.clone() };
                vec![
                    Cell::text(name),
                    Cell::number(m.fd_heldout, m.heldout()),
                    Cell::number(m.fd_independent, figure(m.fd_independent)),
                    Cell::number(summary.search.evaluations as f64, summary.search.evaluations.to_string()),
                    Cell::text(&*summary.search.method),
                    Cell::text(&*m.detail),
                ]
            });
            rows.extend(cells.map(|cells| Row { cells, best: false }));
        }
    }
    let columns = ["search", "held-out FD ↓", "independent ↓", "evaluations", "method", "detail"];
    (!rows.is_empty()).then(|| Part::Table(Table { columns: columns.map(String::from).to_vec(), rows }))
}
