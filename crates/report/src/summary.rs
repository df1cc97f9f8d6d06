//! `summary.json`: the result of a run, and the same as a table for the terminal.

use crate::error::{Error, Result, write_atomic};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt::{self, Display, Formatter};
use std::path::Path;

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the run.
    pub name: String,
    /// Training stages in their order.
    pub stages: Vec<Stage>,
    /// What the distances mean.
    pub metric: Metric,
    /// How the coefficients were found.
    pub search: Search,
    /// The models compared.
    pub models: Vec<Model>,
    /// What it was searched with; summaries of older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
}

/// Program and machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of this program.
    pub lcsc: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Device.
    pub device: String,
    /// Model of the CPU.
    pub cpu: String,
    /// Threads of a CPU operation.
    pub threads: usize,
}

impl Machine {
    /// Names and values.
    pub fn facts(&self) -> Vec<(String, String)> {
        let Self { lcsc, libtorch, device, cpu, threads } = self;
        let threads = threads.to_string();
        let facts = [("lcsc", lcsc), ("libtorch", libtorch), ("device", device), ("CPU", cpu), ("threads", &threads)];
        facts.map(|(name, value)| (name.to_string(), value.clone())).to_vec()
    }
}

/// One training stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name of the stage.
    pub name: String,
    /// Images trained on.
    pub nimg: u64,
    /// Time trained, resumed parts added up.
    pub seconds: f64,
}

/// The convention of the distances: only those of one convention and one N compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Feature extractor of `fd_search` and `fd_heldout`.
    pub extractor: String,
    /// The images that generated ones are compared with.
    pub reference: String,
    /// Images generated for each candidate of the search.
    pub n_search: u64,
    /// Images generated for each held-out figure.
    pub n_heldout: u64,
    /// Network evaluations an image.
    pub nfe: u64,
}

/// The search that found the coefficients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Search method.
    pub method: String,
    /// Candidates scored.
    pub evaluations: u64,
    /// Time searched, resumed parts added up.
    pub seconds: f64,
}

/// Which of the compared models a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelLabel {
    /// The last checkpoint.
    Last,
    /// The best single checkpoint.
    BestCheckpoint,
    /// The best exponential moving average.
    Ema,
    /// The linear combination found by the search.
    Lcsc,
    /// All parameters tuned by the loss of the search: no combination, a rival.
    Finetune,
}

impl Display for ModelLabel {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Last => "last",
            Self::BestCheckpoint => "best checkpoint",
            Self::Ema => "best EMA",
            Self::Lcsc => "LCSC",
            Self::Finetune => "fine-tuned",
        })
    }
}

/// One model's Fréchet distances; infinite (`null` in the file) where it generates non-finite images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Which model.
    pub label: ModelLabel,
    /// What it is exactly: the checkpoint, the EMA's rate, the space searched.
    pub detail: String,
    /// On the latents of the search.
    #[serde(deserialize_with = "null_is_infinite")]
    pub fd_search: f64,
    /// On latents used for this figure alone: mean over seeds.
    #[serde(deserialize_with = "null_is_infinite")]
    pub fd_heldout: f64,
    /// Sample standard deviation over those seeds, where there are two or more.
    pub fd_heldout_std: Option<f64>,
    /// Ends of its 95 % confidence interval by the bootstrap.
    #[serde(deserialize_with = "null_is_infinite")]
    pub fd_heldout_low: f64,
    /// See `fd_heldout_low`.
    #[serde(deserialize_with = "null_is_infinite")]
    pub fd_heldout_high: f64,
    /// With a feature extractor that the search never saw.
    #[serde(deserialize_with = "null_is_infinite")]
    pub fd_independent: f64,
    /// Of raw pixels.
    #[serde(deserialize_with = "null_is_infinite")]
    pub fd_pixel: f64,
    /// Share of the images that lie among the real ones (arXiv 1904.06991).
    pub precision: f64,
    /// Share of the real images that lie among the generated ones.
    pub recall: f64,
}

/// JSON has no infinity: `null` stands for it.
fn null_is_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

impl Model {
    /// The held-out distance as it is shown, with its spread.
    pub fn heldout(&self) -> String {
        let spread = self.fd_heldout_std.map(|std| format!(" ± {}", figure(std))).unwrap_or_default();
        figure(self.fd_heldout) + &spread
    }
}

impl Summary {
    /// The least held-out distance of its models, where one is finite.
    pub fn best(&self) -> Option<f64> {
        let finite = self.models.iter().map(|m| m.fd_heldout).filter(|fd| fd.is_finite());
        finite.min_by(f64::total_cmp)
    }

    /// What came out, in a sentence or two: LCSC beside the best EMA, and where it is worse by more than two per cent.
    pub fn outcome(&self) -> Option<String> {
        let row = |label| self.models.iter().find(|m| m.label == label);
        let (ema, lcsc) = (row(ModelLabel::Ema)?, row(ModelLabel::Lcsc)?);
        let change = 100.0 * (lcsc.fd_heldout / ema.fd_heldout - 1.0);
        let apart = lcsc.fd_heldout_high < ema.fd_heldout_low || ema.fd_heldout_high < lcsc.fd_heldout_low;
        let mut text = format!(
            "Held-out FD of LCSC {}, of the best EMA {} ({change:+.0} %; the 95 % intervals {}).",
            figure(lcsc.fd_heldout),
            figure(ema.fd_heldout),
            if apart { "are apart" } else { "overlap" }
        );
        let distances =
            [("the independent FD", lcsc.fd_independent, ema.fd_independent), ("pixels", lcsc.fd_pixel, ema.fd_pixel)];
        let shares = [("precision", lcsc.precision, ema.precision), ("recall", lcsc.recall, ema.recall)];
        let larger = distances.into_iter().filter(|(_, lcsc, ema)| *lcsc > 1.02 * ema);
        let smaller = shares.into_iter().filter(|(_, lcsc, ema)| *lcsc < ema - 0.02);
        let worse: Vec<String> = larger
            .map(|(name, lcsc, ema)| format!("{name} ({} against {})", figure(lcsc), figure(ema)))
            .chain(smaller.map(|(name, lcsc, ema)| format!("{name} ({lcsc:.2} against {ema:.2})")))
            .collect();
        if !worse.is_empty() {
            text += &format!(" LCSC is worse in {}.", worse.join(", "));
        }
        Some(text)
    }

    /// Reads a summary.
    ///
    /// # Errors
    /// The file cannot be read or is no summary.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        serde_json::from_str(&text).map_err(|e| Error::content(path, format!("no summary of a run: {e}")))
    }

    /// Writes the summary as indented JSON, replacing the file whole.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::content(path, e.to_string()))?;
        text.push('\n');
        write_atomic(path, text.as_bytes())
    }
}

/// Widest line of the table, in characters.
const WIDTH: usize = 100;
/// Characters of a model's detail that are shown.
const DETAIL: usize = 20;

/// The models as a table for the terminal, at most 100 columns wide; the best held-out distance has a star.
pub fn table(summary: &Summary) -> String {
    let best = summary.best();
    let detail_width = summary.models.iter().map(|m| m.detail.chars().count()).max().unwrap_or(0).clamp(6, DETAIL);
    let mut text = format!(
        "  {:15}  {:detail_width$}  {:>9}  {:>16}  {:>8}  {:>8}  {:>9}\n",
        "model", "", "search FD", "held-out FD", "indep.", "pixel", "prec/rec"
    );
    for model in &summary.models {
        let mark = if best == Some(model.fd_heldout) { '*' } else { ' ' };
        let heldout = model.heldout();
        text += &format!(
            "{mark} {:15}  {:detail_width$}  {:>9}  {heldout:>16}  {:>8}  {:>8}  {:>9}\n",
            model.label,
            clip(&model.detail, DETAIL),
            figure(model.fd_search),
            figure(model.fd_independent),
            figure(model.fd_pixel),
            format!("{:.2}/{:.2}", model.precision, model.recall),
        );
    }
    let Metric { extractor, reference, n_search, n_heldout, nfe } = &summary.metric;
    let Search { method, evaluations, seconds } = &summary.search;
    for line in [
        format!("* best on held-out latents: {n_heldout} images a seed at {nfe} NFE, mean ± standard deviation"),
        format!("  FD of {extractor} against {reference}; independent and pixel FD have their own scales"),
        format!("  search: {method}, {evaluations} evaluations, {seconds:.0} s; search FD of {n_search} images"),
    ] {
        text += &clip(&line, WIDTH);
        text.push('\n');
    }
    text
}

/// A distance in at most eight characters.
pub fn figure(value: f64) -> String {
    if value.abs() < 1000.0 {
        format!("{value:.3}")
    } else if value.abs() < 1e6 {
        format!("{value:.0}")
    } else {
        format!("{value:.1e}")
    }
}

/// The text, cut to `width` characters where it is longer.
fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(label: ModelLabel, detail: &str, fd: [f64; 5]) -> Model {
        let [fd_search, fd_heldout, fd_heldout_std, fd_independent, fd_pixel] = fd;
        let fd_heldout_std = fd_heldout_std.is_finite().then_some(fd_heldout_std);
        Model {
            label,
            detail: detail.into(),
            fd_search,
            fd_heldout,
            fd_heldout_std,
            fd_heldout_low: fd_heldout - 0.5,
            fd_heldout_high: fd_heldout + 0.5,
            fd_independent,
            fd_pixel,
            precision: 0.75,
            recall: 0.5,
        }
    }

    fn summary() -> Summary {
        Summary {
            name: "quickstart".into(),
            stages: vec![Stage { name: "edm".into(), nimg: 153600, seconds: 26.5 }],
            metric: Metric {
                extractor: "classifier-64".into(),
                reference: "digits".into(),
                n_search: 1000,
                n_heldout: 5000,
                nfe: 1,
            },
            search: Search { method: "evolution".into(), evaluations: 700, seconds: 40.25 },
            models: vec![
                model(ModelLabel::Last, "192000", [4.5, 4.4807, 0.021, 5.25, 3.125]),
                model(ModelLabel::BestCheckpoint, "184320", [3.75, 12345.6, 1.5, 4.5, 2.5e7]),
                model(ModelLabel::Ema, "half-life of ten thousand images", [3.1, 3.2, 0.0304, 4.0, 2.0]),
                model(ModelLabel::Lcsc, "51 checkpoints", [1.25, 1.6, 0.025, f64::INFINITY, 1.0]),
            ],
            machine: None,
        }
    }

    #[test]
    fn the_table_is_aligned_and_marks_the_best() {
        let expected =
            "  model                                  search FD       held-out FD    indep.     pixel   prec/rec
  last             192000                    4.500     4.481 ± 0.021     5.250     3.125  0.75/0.50
  best checkpoint  184320                    3.750     12346 ± 1.500     4.500     2.5e7  0.75/0.50
  best EMA         half-life of ten th…      3.100     3.200 ± 0.030     4.000     2.000  0.75/0.50
* LCSC             51 checkpoints            1.250     1.600 ± 0.025       inf     1.000  0.75/0.50
* best on held-out latents: 5000 images a seed at 1 NFE, mean ± standard deviation
  FD of classifier-64 against digits; independent and pixel FD have their own scales
  search: evolution, 700 evaluations, 40 s; search FD of 1000 images
";
        assert_eq!(table(&summary()), expected);
    }

    #[test]
    fn the_outcome_tells_gain_and_loss() {
        let mut summary = summary();
        let text = "Held-out FD of LCSC 1.600, of the best EMA 3.200 (-50 %; the 95 % intervals are apart). LCSC is worse in \
                    the independent FD (inf against 4.000).";
        assert_eq!(summary.outcome().as_deref(), Some(text));
        summary.models[3] = model(ModelLabel::Lcsc, "51 checkpoints", [1.25, 2.6, 0.025, 3.0, 1.0]);
        summary.models[3].recall = 0.25;
        let text = "Held-out FD of LCSC 2.600, of the best EMA 3.200 (-19 %; the 95 % intervals overlap). LCSC is worse in \
                    recall (0.25 against 0.50).";
        assert_eq!(summary.outcome().as_deref(), Some(text));
        summary.models.truncate(2);
        assert_eq!(summary.outcome(), None);
    }

    #[test]
    fn the_table_is_at_most_100_columns_wide() {
        let mut summary = summary();
        summary.metric.extractor = "é".repeat(200);
        summary.models[0] = model(ModelLabel::BestCheckpoint, &"x".repeat(200), [-9e300, 9e300, 9e300, 9e300, 9e300]);
        let widest = table(&summary).lines().map(|l| l.chars().count()).max();
        assert!(widest.is_some_and(|w| w <= 100), "{widest:?}");
    }

    #[test]
    fn a_summary_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        summary().write(&path).unwrap();
        assert_eq!(Summary::read(&path).unwrap(), summary());
        std::fs::write(&path, "{}").unwrap();
        let message = Summary::read(&path).unwrap_err().to_string();
        assert!(message.contains("summary.json: no summary of a run: missing field `name`"), "{message}");
    }

    #[test]
    fn the_file_has_the_published_fields() {
        let mut summary = summary();
        summary.models.drain(..3);
        let expected = serde_json::json!({
            "name": "quickstart",
            "stages": [{"name": "edm", "nimg": 153600, "seconds": 26.5}],
            "metric": {"extractor": "classifier-64", "reference": "digits", "n_search": 1000, "n_heldout": 5000, "nfe": 1},
            "search": {"method": "evolution", "evaluations": 700, "seconds": 40.25},
            "models": [{
                "label": "lcsc", "detail": "51 checkpoints", "fd_search": 1.25, "fd_heldout": 1.6,
                "fd_heldout_std": 0.025, "fd_heldout_low": 1.1, "fd_heldout_high": 2.1, "fd_independent": null,
                "fd_pixel": 1.0, "precision": 0.75, "recall": 0.5,
            }],
        });
        assert_eq!(serde_json::to_value(&summary).unwrap(), expected);
        let labels = [ModelLabel::Last, ModelLabel::BestCheckpoint, ModelLabel::Ema];
        assert_eq!(serde_json::to_value(labels).unwrap(), serde_json::json!(["last", "best_checkpoint", "ema"]));
    }
}
