//! Searches while training goes on: how good the merged model is by now.

use crate::Ended;
use crate::search::{Material, Plan, Results, run_search};
use crate::session::Session;
use lcsc_report::tensorboard::{EventFile, Step};
use lcsc_search::{Coefficients, Label, Model, Row, Saved, SearchConfig};
use lcsc_torch::{Error, Result};
use lcsc_train::report_error;
use lcsc_trajectory::JsonLines;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What one of them found: a line of `search/during.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Images of the stage.
    pub nimg: u64,
    /// The search's folder: another one for other checkpoints and other settings.
    pub search: String,
    /// How the merged model came about.
    pub detail: String,
    /// Fréchet distances on the selection latents; none where images are not finite.
    pub fd_ema: Option<f64>,
    pub fd_lcsc: Option<f64>,
    /// Seconds that the search took.
    pub seconds: f64,
    /// What the coefficients combine.
    pub rows: Vec<Saved>,
    /// None where a recorded EMA track was best.
    pub coefficients: Option<Coefficients>,
}

fn log_path(session: &Session) -> PathBuf {
    session.run.search("during.jsonl")
}

/// Whether a search is due after the step that reached `nimg` images.
pub fn is_due(session: &Session, nimg: u64, batch: u64) -> bool {
    let every = session.config.search.during.every_nimg;
    nimg >= every && (nimg - batch) / every != nimg / every
}

/// Forgets what was found after more than `nimg` images, which are about to be trained again, perhaps otherwise.
///
/// # Errors
/// The log cannot be read or written.
pub fn cut(session: &Session, nimg: u64) -> Result<()> {
    JsonLines::<Found>::retain(log_path(session), |f| f.nimg <= nimg)
}

/// Searches what the stage has saved so far, unless that was done.
///
/// # Errors
/// A checkpoint is damaged, or the disk is full.
pub fn search(session: &Session, nimg: u64) -> Result<Ended> {
    let (mut log, found) = JsonLines::<Found>::open(log_path(session))?;
    let mut plan = plan(session, nimg);
    if !Material::is_enough(session, &plan)? {
        tracing::info!("after {nimg} images: too few checkpoints to search");
        return Ok(Ended::Done);
    }
    let material = Material::load(session, &plan)?;
    let suite = session.suite().map_err(|e| Error::msg(e.to_string()))?;
    let space = material.space(session, suite, &plan);
    let settings = serde_json::to_string(&plan.search).map_err(|e| Error::msg(format!("search settings: {e}")))?;
    let hash = blake3::hash((space.fingerprint + &settings).as_bytes()).to_hex();
    plan.name = format!("during/{nimg:012}-{}", &hash[..8]);
    if found.iter().any(|f| f.search == plan.name) {
        return Ok(Ended::Done);
    }
    let rows = space.rows;
    let before = found.iter().rev().find_map(|f| f.coefficients.as_ref().map(|c| (f, c)));
    if let Some((f, coefficients)) = before {
        // Where settings have changed meanwhile, there may be nothing to go on from.
        let fits = coefficients.groups() == 1 || coefficients.groups() == material.partition.len();
        let moved = coefficients.moved(&f.rows, &rows).ok().filter(|_| fits);
        plan.given.extend(moved.map(|alpha| (format!("found after {} images", f.nimg), alpha)));
    }
    let Some(outcome) = run_search(session, suite, &material, &plan, None)? else { return Ok(Ended::Stopped) };
    let fd = |label| outcome.row(label).and_then(|row: &Row| row.fd_selection).filter(|fd| fd.is_finite());
    let lcsc = outcome.row(Label::Lcsc).ok_or_else(|| Error::msg("the search has no result"))?;
    let coefficients = match &lcsc.model {
        Model::Coefficients(alpha) => Some(alpha.clone()),
        Model::Track(_) | Model::Finetuned => None,
    };
    let [fd_ema, fd_lcsc] = [Label::Ema, Label::Lcsc].map(fd);
    let now = Found {
        nimg,
        search: plan.name.clone(),
        detail: lcsc.detail.clone(),
        fd_ema,
        fd_lcsc,
        seconds: outcome.seconds,
        rows,
        coefficients,
    };
    let figure = |fd: Option<f64>| lcsc_report::figure(fd.unwrap_or(f64::INFINITY));
    tracing::info!("after {nimg} images: best EMA {}, LCSC {}", figure(fd_ema), figure(fd_lcsc));
    let best_before = found.iter().filter_map(|f| f.fd_lcsc).fold(f64::INFINITY, f64::min);
    if fd_lcsc.is_some_and(|fd| fd < best_before) {
        let results = Results { session, plan: &plan, suite, material: &material, outcome: &outcome };
        results.write_merged(&session.run.merged())?;
    }
    log.append_durable(&now)?;
    let values = Step::default().scalar("FD/best EMA", fd_ema).scalar("FD/LCSC", fd_lcsc);
    let events = EventFile::begin(&session.run.tensorboard("search/during"), nimg);
    events.and_then(|mut events| events.write(nimg, values)).map_err(report_error)?;
    Ok(Ended::Done)
}

/// A small search: its table is measured on as many images as its candidates.
fn plan(session: &Session, nimg: u64) -> Plan {
    let mut plan = Plan { most_nimg: Some(nimg), ..Plan::new(&session.config, "during") };
    let SearchConfig { images, during, .. } = session.config.search.clone();
    plan.search = SearchConfig { budget: during.budget, report_images: images, report_seeds: 1, ..plan.search };
    plan
}

/// The best that was found while training of what the rows and groups of the final search can give, as its coefficients.
///
/// # Errors
/// The log of the searches is damaged.
pub fn best(session: &Session, rows: &[Saved], groups: usize) -> Result<Option<(String, Coefficients)>> {
    let mut found = JsonLines::<Found>::read(log_path(session))?;
    let fd = |f: &Found| f.fd_lcsc.unwrap_or(f64::INFINITY);
    found.sort_by(|a, b| fd(a).total_cmp(&fd(b)));
    let placed = |f: &Found| {
        let alpha = f.coefficients.as_ref().filter(|alpha| alpha.groups() == 1 || alpha.groups() == groups)?;
        Some((format!("found after {} images", f.nimg), alpha.placed(&f.rows, rows)?))
    };
    let best = found.iter().find_map(placed);
    if best.is_none() && !found.is_empty() {
        tracing::warn!("nothing that was found while training is of the checkpoints and groups of this search");
    }
    Ok(best)
}
