//! `evaluations.jsonl`: a header that says which search it is, then one line a score, appended as soon as it is known.
//! Where several workers share a search, a line before it says who is at it.

use crate::baselines::{Saved, SearchSpace};
use crate::candidate::Candidate;
use crate::config::SearchConfig;
use crate::phase::Phase;
use crate::score::Scores;
use crate::worker::Worker;
use lcsc_torch::{Error, Result};
use lcsc_trajectory::JsonLines;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What all scores of a log depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The saved weights that are combined.
    pub rows: Vec<Saved>,
    /// Recorded EMA tracks.
    pub tracks: Vec<String>,
    /// Groups of parameters.
    pub groups: Vec<String>,
    /// Where combinations that were given come from.
    pub given: Vec<String>,
    /// Stands for checkpoints, sampler and metric.
    pub fingerprint: String,
    /// Seed of latents and of the search methods.
    pub seed: u64,
    /// The search's config.
    pub config: SearchConfig,
}

impl Header {
    pub(crate) fn new(space: &SearchSpace, config: &SearchConfig, seed: u64) -> Self {
        let SearchSpace { rows, tracks, groups, given, nfe: _, fingerprint } = space.clone();
        let given = given.into_iter().map(|(source, _)| source).collect();
        Self { rows, tracks, groups, given, fingerprint, seed, config: config.clone() }
    }
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
    /// ∂F/∂α `[G][K]`, where it was asked for; null stands for values that are not finite.
    #[serde(default, with = "gradient_with_nulls", skip_serializing_if = "Option::is_none")]
    pub gradient: Option<Vec<Vec<f64>>>,
    /// Seconds it took; of candidates that were scored at once, each its part.
    pub seconds: f64,
}

/// A worker has begun to score a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// What is scored.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Who scores it.
    pub worker: u64,
    /// What for.
    pub phase: Phase,
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
pub enum Record {
    /// The first line.
    Header(Box<Header>),
    /// A candidate that a worker of several is at.
    Claim(Claim),
    /// A score.
    Evaluation(Evaluation),
}

/// The open file and all that it holds.
pub struct Log {
    lines: JsonLines<Record>,
    worker: Option<Worker>,
    scored: BTreeMap<(Phase, u64), Evaluation>,
    /// Candidates that are claimed and not scored.
    claims: BTreeMap<(Phase, u64), Claim>,
}

impl Log {
    /// Opens the log of the search that `header` describes, or begins it. A torn last line is dropped. With a `worker`
    /// others may have it open, too.
    ///
    /// # Errors
    /// The file cannot be read or written, is damaged, or belongs to another search.
    pub fn open(path: &Path, header: &Header, worker: Option<Worker>) -> Result<Self> {
        let _held = worker.as_ref().map(Worker::lock_log).transpose()?;
        let (mut lines, records) = JsonLines::open(path)?;
        let mut records = records.into_iter();
        match records.next() {
            None => lines.append_durable(&Record::Header(Box::new(header.clone())))?,
            Some(Record::Header(logged)) => refuse_another_search(path, &logged, header)?,
            Some(Record::Evaluation(_) | Record::Claim(_)) => {
                return Err(Error::file(path, "does not begin with the header of a search"));
            }
        }
        let mut log = Self { lines, worker, scored: BTreeMap::new(), claims: BTreeMap::new() };
        records.try_for_each(|record| log.take_in(record))?;
        Ok(log)
    }

    fn take_in(&mut self, record: Record) -> Result<()> {
        match record {
            Record::Header(_) => {
                return Err(Error::msg("a search's log has a second header: two searches wrote to it"));
            }
            Record::Claim(claim) => drop(self.claims.insert((claim.phase, claim.candidate.id), claim)),
            Record::Evaluation(evaluation) => {
                let key = (evaluation.phase, evaluation.candidate.id);
                self.claims.remove(&key);
                self.scored.insert(key, evaluation);
            }
        }
        Ok(())
    }

    /// Does something with the log as it is now, which no other worker changes meanwhile.
    ///
    /// # Errors
    /// The file cannot be read or locked; those of `work`.
    pub(crate) fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let held = self.worker.as_ref().map(Worker::lock_log).transpose()?;
        if held.is_some() {
            self.lines.follow()?.into_iter().try_for_each(|record| self.take_in(record))?;
        }
        work(self)
    }

    /// Whether several workers write to it.
    pub(crate) fn is_shared(&self) -> bool {
        self.worker.is_some()
    }

    /// The number of this worker; 0 for one that is alone.
    pub(crate) fn worker(&self) -> u64 {
        self.worker.as_ref().map_or(0, Worker::id)
    }

    /// The score of a candidate in a phase, if it is known.
    pub fn find(&self, phase: Phase, id: u64) -> Option<&Evaluation> {
        self.scored.get(&(phase, id))
    }

    /// All scores of a phase by id, from an id on.
    pub(crate) fn scores(&self, phase: Phase, from: u64) -> impl Iterator<Item = &Evaluation> {
        self.scored.range((phase, from)..=(phase, u64::MAX)).map(|(_, e)| e)
    }

    /// Seconds of all scores but those of the report.
    pub(crate) fn seconds_of_search(&self) -> f64 {
        let is_report = |phase: &Phase| matches!(phase, Phase::Report(_));
        self.scored.iter().filter(|((phase, _), _)| !is_report(phase)).map(|(_, e)| e.seconds).sum()
    }

    /// Claims of a phase without a score, by id.
    pub(crate) fn claims(&self, phase: Phase) -> impl Iterator<Item = &Claim> {
        self.claims.range((phase, 0)..=(phase, u64::MAX)).map(|(_, c)| c)
    }

    /// Whether the worker of a claim has ended without scoring: its candidate is free again.
    ///
    /// # Errors
    /// The folder of workers cannot be read.
    pub(crate) fn is_abandoned(&self, claim: &Claim) -> Result<bool> {
        self.worker.as_ref().map_or(Ok(true), |worker| worker.is_gone(claim.worker))
    }

    /// The smallest id larger than all in the log.
    pub(crate) fn next_id(&self) -> u64 {
        let ids = self.scored.keys().chain(self.claims.keys()).map(|(_, id)| id + 1);
        ids.max().unwrap_or(0)
    }

    /// Notes that this worker begins to score candidates; alone it need not.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub(crate) fn claim(&mut self, phase: Phase, candidates: &[Candidate]) -> Result<()> {
        let Some(worker) = self.worker.as_ref().map(Worker::id) else { return Ok(()) };
        for candidate in candidates {
            let claim = Claim { candidate: candidate.clone(), worker, phase };
            self.lines.append(&Record::Claim(claim.clone()))?;
            self.claims.insert((phase, candidate.id), claim);
        }
        Ok(())
    }

    /// Writes a score.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn append(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.locked(|log| {
            log.lines.append(&Record::Evaluation(evaluation.clone()))?;
            log.take_in(Record::Evaluation(evaluation.clone()))
        })
    }
}

/// What only says how or when scores are computed may change when a search is resumed.
fn refuse_another_search(path: &Path, logged: &Header, header: &Header) -> Result<()> {
    let SearchConfig { when, memory_gib, host_memory_gib, chunk, gradient_chunk, ref during, .. } = logged.config;
    let during = during.clone();
    let config =
        SearchConfig { when, memory_gib, host_memory_gib, chunk, gradient_chunk, during, ..header.config.clone() };
    let here = Header { config, ..header.clone() };
    let json = |h: &Header| serde_json::to_value(h).map_err(|e| Error::file(path, e.to_string()));
    let mut differences = Vec::new();
    compare("", &json(logged)?, &json(&here)?, &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!(
        "belongs to another search: {}. Restore these to resume it, or make another search of the same checkpoints: \
         lcsc search RUN --name NAME, with the new settings as --set KEY=VALUE",
        differences.join("; ")
    );
    Err(Error::file(path, message))
}

/// Adds a line for each leaf that differs.
fn compare(key: &str, logged: &Value, here: &Value, differences: &mut Vec<String>) {
    let brief = |v: &Value| match v.as_array() {
        Some(values) if values.len() > 8 || values.iter().any(Value::is_object) => format!("{} values", values.len()),
        _ => v.to_string(),
    };
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

/// JSON has no infinity and no NaN: null stands for them, and comes back as NaN.
mod gradient_with_nulls {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Rows<T> = Option<Vec<Vec<T>>>;

    pub fn serialize<S: Serializer>(gradient: &Rows<f64>, s: S) -> Result<S::Ok, S::Error> {
        gradient.serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Rows<f64>, D::Error> {
        let rows: Rows<Option<f64>> = Option::deserialize(d)?;
        let finite = |row: Vec<Option<f64>>| row.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect();
        Ok(rows.map(|rows| rows.into_iter().map(finite).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baselines::tests::space;
    use crate::methods::MethodName;
    use crate::{Coefficients, Model, Origin};

    fn header() -> Header {
        Header::new(&space(3), &SearchConfig::default(), u64::MAX)
    }

    fn evaluation(id: u64, phase: Phase) -> Evaluation {
        let model = Model::Coefficients(Coefficients::one(vec![1.0 / 3.0, -1e-17, 0.1]).unwrap());
        let candidate = Candidate { id, origin: Origin::Crossover { parents: [3, 1] }, model };
        let scores = Scores::of(f64::INFINITY);
        Evaluation { candidate, worker: 0, phase, images: 9, scores, gradient: None, seconds: 0.1 }
    }

    #[test]
    fn scores_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluations.jsonl");
        let phases = [Phase::Baseline, Phase::Search(MethodName::Gradient), Phase::Selection, Phase::Report(2)];
        let mut all = phases.map(|p| evaluation(7, p));
        all[1].gradient = Some(vec![vec![0.1, -1.0 / 3.0, 1e-300]]);
        let mut log = Log::open(&path, &header(), None).unwrap();
        all.iter().for_each(|e| log.append(e).unwrap());
        let log = Log::open(&path, &header(), None).unwrap();
        for e in &all {
            assert_eq!(log.find(e.phase, 7), Some(e));
        }
        assert_eq!((log.find(Phase::Report(1), 7), log.next_id()), (None, 8));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().nth(1).unwrap().starts_with(r#"{"record":"evaluation","id":7,"origin":"#), "{text}");
        assert!(text.contains(r#""phase":{"report":2},"images":9,"fd":null,"seconds":0.1}"#), "{text}");
        assert!(text.contains(r#""phase":{"search":"gradient"}"#), "{text}");
    }

    #[test]
    fn a_gradient_that_is_not_finite_survives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluations.jsonl");
        let phase = Phase::Search(MethodName::Gradient);
        let gradient = Some(vec![vec![f64::NAN, 2.0, f64::INFINITY]]);
        let mut log = Log::open(&path, &header(), None).unwrap();
        log.append(&Evaluation { gradient, ..evaluation(7, phase) }).unwrap();
        let log = Log::open(&path, &header(), None).unwrap();
        let row = &log.find(phase, 7).unwrap().gradient.as_ref().unwrap()[0];
        assert!(row[0].is_nan() && row[1] == 2.0 && row[2].is_nan());
    }

    #[test]
    fn another_search_is_refused_with_the_differences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluations.jsonl");
        Log::open(&path, &header(), None).unwrap();
        let open = |change: &dyn Fn(&mut Header)| {
            let mut other = header();
            change(&mut other);
            Log::open(&path, &other, None).err().map(|e| e.to_string())
        };
        let text = open(&|h| (h.config.images, h.seed) = (500, 1)).unwrap();
        assert!(
            text.contains("`seed` was 18446744073709551615 and is 1; `config.images` was 1000 and is 500."),
            "{text}"
        );
        assert!(text.contains("lcsc search RUN --name NAME"), "{text}");
        assert!(open(&|h| h.rows.truncate(2)).unwrap().contains("`rows` was 3 values and is 2 values"));
        assert!(open(&|h| h.fingerprint = "g".into()).unwrap().contains("`fingerprint` was \"\" and is \"g\""));
        assert!(open(&|h| h.config.method = vec![MethodName::CmaEs]).unwrap().contains(r#"was ["gradient"] and is"#));
        assert!(open(&|h| h.config.budget.evaluations = None).unwrap().contains("`config.budget.evaluations` was 150"));
        assert_eq!(open(&|h| (h.config.chunk, h.config.memory_gib) = (100, 1.0)), None);
        assert_eq!(open(&|h| h.config.gradient_chunk = Some(20)), None);
    }

    #[test]
    fn a_file_that_is_no_log_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluations.jsonl");
        let line = serde_json::to_string(&Record::Evaluation(evaluation(0, Phase::Selection))).unwrap();
        std::fs::write(&path, line + "\n").unwrap();
        let text = Log::open(&path, &header(), None).err().unwrap().to_string();
        assert!(text.contains("does not begin with the header"), "{text}");
    }
}
