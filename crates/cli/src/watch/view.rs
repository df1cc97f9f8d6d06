//! A run as rows of a terminal, of 80 columns or more.

use super::{Search, Watched};
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use lcsc_report::figure;
use lcsc_search::Phase;
use lcsc_train::Tick;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::symbols::bar;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Sparkline};
use std::collections::BTreeMap;
use std::time::Duration;

/// Columns that there are at least.
const WIDTH: usize = 80;
/// Rows of the curve of the loss.
const CURVE: u16 = 3;
/// Warnings shown, the last ones.
const WARNINGS: usize = 4;
/// Columns of a bar, and of what stands before it.
const BAR: usize = 14;
const NAME: usize = 14;
/// Scores and ticks that the present rate is taken from.
const RECENT: usize = 20;

/// Draws all that is known.
pub fn draw(frame: &mut Frame, watched: &Watched) {
    let (progress, scores, warnings) = (progress(watched), scores(watched), warnings(watched));
    let height = |lines: &[Line]| Constraint::Length(lines.len() as u16);
    let curve = Constraint::Length(if watched.ticks.values().is_empty() { 0 } else { CURVE + 1 });
    let [head, above, middle, below, last, _] = Layout::vertical([
        Constraint::Length(2),
        height(&progress),
        curve,
        height(&scores),
        height(&warnings),
        Constraint::Min(0),
    ])
    .areas(frame.area());
    let title = watched.config.as_ref().map_or("", |c| &c.name).to_string();
    let folder = watched.run.path().display().to_string();
    frame.render_widget(Line::from(vec![title.bold(), format!("  {folder}  ").into(), state(watched).bold()]), head);
    frame.render_widget(Paragraph::new(progress), above);
    loss(frame, middle, watched.ticks.values());
    frame.render_widget(Paragraph::new(scores), below);
    frame.render_widget(Paragraph::new(warnings), last);
}

fn state(watched: &Watched) -> &'static str {
    match (watched.works, &watched.summary) {
        (true, _) => "working",
        (false, Some(_)) => "finished",
        (false, None) => "stopped; the same command goes on",
    }
}

/// How far something is.
struct Row {
    name: String,
    done: f64,
    total: f64,
    /// Position and rate.
    text: String,
    /// Things left a second.
    rate: f64,
}

impl Row {
    fn line(&self, works: bool) -> Line<'static> {
        let share = if self.total > 0.0 { (self.done / self.total).clamp(0.0, 1.0) } else { 0.0 };
        let filled = (share * BAR as f64) as usize;
        let drawn = format!("{}{}", bar::FULL.repeat(filled), "·".repeat(BAR - filled));
        let left = match (share < 1.0, works && self.rate > 0.0) {
            (false, _) => "done".into(),
            (true, true) => {
                let seconds = (self.total - self.done) / self.rate;
                format!("{} left", HumanDuration(Duration::from_secs_f64(seconds.min(1e9))))
            }
            (true, false) => String::new(),
        };
        Line::from(vec![
            format!("{:<NAME$.NAME$} ", self.name).into(),
            drawn.cyan(),
            format!(" {}  {left}", self.text).into(),
        ])
    }
}

/// Every stage, and the search that was last worked on.
fn progress(watched: &Watched) -> Vec<Line<'static>> {
    let stages = watched.config.iter().flat_map(|c| &c.stage);
    let mut rows: Vec<Row> =
        stages.map(|stage| training(&stage.name, stage.images(), watched.ticks.values())).collect();
    rows.extend(watched.latest_search().and_then(|(name, search)| searching(name, search)));
    let mut lines: Vec<Line> = rows.iter().map(|row| row.line(watched.works)).collect();
    lines.push(Line::default());
    lines
}

fn training(name: &str, images: u64, ticks: &[Tick]) -> Row {
    let of_stage: Vec<&Tick> = ticks.iter().filter(|t| t.stage == name).collect();
    let last = of_stage.last();
    let done = last.map_or(0, |t| t.nimg);
    let rate = last.filter(|_| done < images).map_or(0.0, |t| t.img_per_s);
    let speed = if rate > 0.0 { format!(", {rate:.0}/s") } else { String::new() };
    let text = format!("{}/{} images{speed}", HumanCount(done), HumanCount(images));
    Row { name: name.to_string(), done: done as f64, total: images as f64, text, rate }
}

fn searching(name: &str, search: &Search) -> Option<Row> {
    let budget = &search.config()?.budget;
    let scored = search.of_methods().count() as f64;
    let seconds: f64 = search.of_methods().map(|e| e.seconds).sum();
    let recent: Vec<f64> = search.of_methods().rev().take(RECENT).map(|e| e.seconds).collect();
    let rate = recent.len() as f64 / recent.iter().sum::<f64>().max(1e-9);
    let images: f64 = search.of_methods().map(|e| e.images as f64).sum();
    let phase = search.evaluations().next_back().map_or_else(String::new, |e| e.phase.to_string());
    let text = if scored > 0.0 { format!("{phase}, {scored} candidates, {rate:.2}/s") } else { phase };
    let name = format!("search {name}");
    let row = |done, total, rate| Some(Row { name: name.clone(), done, total, text: text.clone(), rate });
    match (budget.evaluations, budget.seconds, budget.images) {
        (Some(total), ..) => row(scored, total as f64, rate),
        (None, Some(total), _) => row(seconds, total, 1.0),
        (None, None, Some(total)) => row(images, total as f64, images / seconds.max(1e-9)),
        (None, None, None) => None,
    }
}

/// The loss of the stage that is trained.
fn loss(frame: &mut Frame, area: Rect, ticks: &[Tick]) {
    let Some(last) = ticks.last() else { return };
    let [head, curve] = Layout::vertical([Constraint::Length(1), Constraint::Length(CURVE)]).areas(area);
    let of_stage = ticks.iter().filter(|t| t.stage == last.stage);
    let losses: Vec<Option<f64>> = of_stage.map(|t| t.loss.filter(|l| l.is_finite())).collect();
    let shown = losses.len().saturating_sub(usize::from(curve.width));
    let losses = &losses[shown..];
    let (low, high) = losses.iter().flatten().fold((f64::INFINITY, 0f64), |(l, h), &x| (l.min(x), h.max(x)));
    // The lowest is still a stroke.
    let scaled = losses.iter().map(|l| l.map(|l| 10 + (990.0 * (l - low) / (high - low).max(1e-12)) as u64));
    let number = |value: Option<f64>| value.map_or_else(|| "not finite".into(), |v| format!("{v:.4}"));
    let text = format!(
        "loss of {}: {} (shown {} to {})  gradient norm {}  rate {:.1e}",
        last.stage,
        number(last.loss),
        figure(low),
        figure(high),
        number(last.grad_norm),
        last.lr
    );
    frame.render_widget(Line::from(text), head);
    frame.render_widget(
        Sparkline::default().data(scaled.collect::<Vec<_>>()).max(1000).style(Style::new().yellow()),
        curve,
    );
}

/// The best Fréchet distances, checkpoints and memory.
fn scores(watched: &Watched) -> Vec<Line<'static>> {
    let mut lines = vec![Line::default()];
    if let Some(summary) = &watched.summary {
        let of_models = summary.models.iter().map(|m| format!("{} {}", m.label, figure(m.fd_heldout)));
        lines.extend(listed("held-out FD:".into(), of_models));
    }
    if let Some((name, search)) = watched.latest_search() {
        let mut best: BTreeMap<Phase, f64> = BTreeMap::new();
        for e in search.evaluations().filter(|e| !matches!(e.phase, Phase::Report(_))) {
            let so_far = best.entry(e.phase).or_insert(f64::INFINITY);
            *so_far = so_far.min(e.scores.fd);
        }
        let of_phases = best.iter().map(|(phase, fd)| format!("{phase} {}", figure(*fd)));
        lines.extend(listed(format!("best FD of search {name}:"), of_phases));
    }
    let checkpoints = watched.checkpoints.values();
    if !checkpoints.is_empty() {
        let bytes = HumanBytes(checkpoints.iter().map(|c| c.bytes).sum());
        lines.push(format!("{} checkpoints, {bytes}", checkpoints.len()).into());
    }
    if let Some(Tick { host_gib: Some(host), device_gib, .. }) = watched.ticks.values().last() {
        let device = device_gib.map_or_else(String::new, |gib| format!(", GPU {gib:.1} GiB"));
        lines.push(format!("memory {host:.1} GiB{device}").into());
    }
    lines
}

/// Items after a heading, in as many lines as they take.
fn listed(heading: String, items: impl Iterator<Item = String>) -> Vec<Line<'static>> {
    let mut lines = vec![heading];
    for item in items {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + item.chars().count() <= WIDTH => {
                line.push_str(&format!("  {item}"))
            }
            _ => lines.push(format!("  {item}")),
        }
    }
    lines.into_iter().map(Line::from).collect()
}

fn warnings(watched: &Watched) -> Vec<Line<'static>> {
    let all = &watched.warnings;
    if all.is_empty() {
        return vec![];
    }
    let last = all[all.len().saturating_sub(WARNINGS)..].iter().map(|w| Line::from(w.clone()).red());
    [Line::default(), Line::from("last warnings")].into_iter().chain(last).collect()
}
