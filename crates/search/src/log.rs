//! `evaluations.jsonl`: a header that says which search it is, then one line a score, appended as soon as it is known.

use crate::candidate::Candidate;
use crate::config::SearchConfig;
use crate::score::{Latents, Scores};
use lcsc_torch::{Error, Result};
use lcsc_trajectory::JsonLines;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

/// What a score is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Baselines on the search latents.
    Baseline,
    /// Candidates of the search method on the search latents.
    Search,
    /// Finalists on the selection latents.
    Selection,
    /// Rows of the final table on the report latents of this seed index.
    Report(u64),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Baseline => write!(f, "baselines"),
            Self::Search => write!(f, "search"),
            Self::Selection => write!(f, "selection"),
            Self::Report(seed) => write!(f, "report {seed}"),
        }
    }
}

impl Phase {
    /// The latents of this phase.
    pub fn latents(self) -> Latents {
        match self {
            Self::Baseline | Self::Search => Latents::Search,
            Self::Selection => Latents::Selection,
            Self::Report(seed) => Latents::Report(seed),
        }
    }

    /// Images sampled for one score.
    pub fn images(self, config: &SearchConfig) -> u64 {
        match self {
            Self::Baseline | Self::Search => config.images,
            Self::Selection => config.selection_images,
            Self::Report(_) => config.report_images,
        }
    }
}

/// What all scores of a log depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Images seen at each of the K checkpoints.
    pub times: Vec<f64>,
    /// Recorded EMA tracks.
    pub tracks: Vec<String>,
    /// Stands for checkpoints, sampler and metric.
    pub fingerprint: String,
    /// Seed of latents and of the search method.
    pub seed: u64,
    /// The search's config.
    pub config: SearchConfig,
}

/// One score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What was scored.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Who scored it.
    pub worker: u64,
    /// What for.
    pub phase: Phase,
    /// Images sampled.
    pub images: u64,
    /// Smaller is better; +∞ (null in the file) where images were not finite.
    #[serde(flatten)]
    pub scores: Scores,
    /// Seconds it took.
    pub seconds: f64,
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
pub enum Record {
    /// The first line.
    Header(Header),
    /// Every other line.
    Evaluation(Evaluation),
}

/// The open file and all scores that it holds.
pub struct Log {
    lines: JsonLines<Record>,
    scored: HashMap<(Phase, u64), Evaluation>,
}

impl Log {
    /// Opens the log of the search that `header` describes, or begins it. A torn last line is dropped.
    ///
    /// # Errors
    /// The file cannot be read or written, is damaged, or belongs to another search.
    pub fn open(path: &Path, header: &Header) -> Result<Self> {
        let (mut lines, records) = JsonLines::open(path)?;
        let mut records = records.into_iter();
        match records.next() {
            None => lines.append_durable(&Record::Header(header.clone()))?,
            Some(Record::Header(logged)) => refuse_another_search(path, &logged, header)?,
            Some(Record::Evaluation(_)) => return Err(Error::file(path, "does not begin with the header of a search")),
        }
        let scored = records.map(|record| match record {
            Record::Evaluation(e) => Ok(((e.phase, e.candidate.id), e)),
            Record::Header(_) => Err(Error::file(path, "has a second header: two searches wrote to it")),
        });
        Ok(Self { lines, scored: scored.collect::<Result<_>>()? })
    }

    /// The score of a candidate in a phase, if it is known.
    pub fn find(&self, phase: Phase, id: u64) -> Option<&Evaluation> {
        self.scored.get(&(phase, id))
    }

    /// Writes a score.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn append(&mut self, evaluation: Evaluation) -> Result<()> {
        let record = Record::Evaluation(evaluation.clone());
        self.lines.append(&record)?;
        self.scored.insert((evaluation.phase, evaluation.candidate.id), evaluation);
        Ok(())
    }
}

/// Memory and chunk only say how scores are computed; they may change when a search is resumed.
fn refuse_another_search(path: &Path, logged: &Header, header: &Header) -> Result<()> {
    let SearchConfig { memory_gib, chunk, .. } = logged.config;
    let here = Header { config: SearchConfig { memory_gib, chunk, ..header.config.clone() }, ..header.clone() };
    let json = |h: &Header| serde_json::to_value(h).map_err(|e| Error::file(path, e.to_string()));
    let mut differences = Vec::new();
    compare("", &json(logged)?, &json(&here)?, &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!(
        "belongs to another search: {}. Restore these to resume it, or give the new search another --name",
        differences.join("; ")
    );
    Err(Error::file(path, message))
}

/// Adds a line for each leaf that differs.
fn compare(key: &str, logged: &Value, here: &Value, differences: &mut Vec<String>) {
    let brief = |v: &Value| v.as_array().map_or_else(|| v.to_string(), |a| format!("{} values", a.len()));
    match (logged, here) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, value) in b {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                compare(&key, a.get(name).unwrap_or(&Value::Null), value, differences);
            }
        }
        (a, b) if a != b => differences.push(format!("`{key}` was {} and is {}", brief(a), brief(b))),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Coefficients, Model, Origin};

    fn header() -> Header {
        Header {
            times: vec![100.0, 200.1, 1.0 / 3.0 + 300.0],
            tracks: vec!["ema".into()],
            fingerprint: "f".into(),
            seed: u64::MAX,
            config: SearchConfig::default(),
        }
    }

    fn evaluation(id: u64, phase: Phase) -> Evaluation {
        let model = Model::Coefficients(Coefficients::from_free(&[1.0 / 3.0, -1e-17, 0.1]).unwrap());
        let scores = Scores { fd: f64::INFINITY, fd_independent: None, fd_pixel: None };
        let candidate = Candidate { id, origin: Origin::Crossover { parents: [3, 1] }, model };
        Evaluation { candidate, worker: 0, phase, images: 9, scores, seconds: 0.1 }
    }

    #[test]
    fn scores_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluations.jsonl");
        let all = [Phase::Baseline, Phase::Search, Phase::Selection, Phase::Report(2)].map(|p| evaluation(7, p));
        let mut log = Log::open(&path, &header()).unwrap();
        for e in &all {
            log.append(e.clone()).unwrap();
        }
        let log = Log::open(&path, &header()).unwrap();
        for e in &all {
            assert_eq!(log.find(e.phase, 7), Some(e));
        }
        assert_eq!(log.find(Phase::Report(1), 7), None);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().nth(1).unwrap().starts_with(r#"{"record":"evaluation","id":7,"origin":"#), "{text}");
        assert!(text.contains(r#""phase":{"report":2},"images":9,"fd":null,"seconds":0.1}"#), "{text}");
    }

    #[test]
    fn another_search_is_refused_with_the_differences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluations.jsonl");
        Log::open(&path, &header()).unwrap();
        let open = |change: &dyn Fn(&mut Header)| {
            let mut other = header();
            change(&mut other);
            Log::open(&path, &other).err().map(|e| e.to_string())
        };
        let text = open(&|h| (h.config.images, h.seed) = (500, 1)).unwrap();
        assert!(
            text.contains("`seed` was 18446744073709551615 and is 1; `config.images` was 1000 and is 500."),
            "{text}"
        );
        assert!(text.contains("another --name"), "{text}");
        assert!(open(&|h| h.times.truncate(2)).unwrap().contains("`times` was 3 values and is 2 values"));
        assert!(open(&|h| h.fingerprint = "g".into()).unwrap().contains("`fingerprint` was \"f\" and is \"g\""));
        assert!(open(&|h| h.config.budget.evaluations = None).unwrap().contains("`config.budget.evaluations` was 400"));
        assert_eq!(open(&|h| (h.config.chunk, h.config.memory_gib) = (100, 1.0)), None);
    }

    #[test]
    fn a_file_that_is_no_log_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluations.jsonl");
        let line = serde_json::to_string(&Record::Evaluation(evaluation(0, Phase::Search))).unwrap();
        std::fs::write(&path, line + "\n").unwrap();
        let text = Log::open(&path, &header()).err().unwrap().to_string();
        assert!(text.contains("does not begin with the header"), "{text}");
    }
}
