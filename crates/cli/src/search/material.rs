//! What a search combines, out of the run folder.

use super::Plan;
use crate::session::Session;
use lcsc_diffusion::Model;
use lcsc_metrics::Suite;
use lcsc_search::{Models, Saved, SearchSpace};
use lcsc_torch::{Error, Result, SafeFile, Weights};
use lcsc_train::StageConfig;
use lcsc_trajectory::{Checkpoint, Manifest, Partition, Window};
use std::collections::BTreeMap;

/// The state of fine-tuning, in the folder of its search.
pub const FINETUNED: &str = "finetune.safetensors";

/// The track that all stages save.
const RAW: &str = "raw";

/// Checkpoints and what is needed to make models of them.
pub struct Material {
    pub model: Model,
    pub window: Window,
    pub partition: Partition,
    /// Recorded EMA tracks at the last checkpoint of the window.
    pub tracks: BTreeMap<String, Weights>,
    pub track_checkpoints: Vec<Checkpoint>,
}

impl Material {
    /// # Errors
    /// There are too few checkpoints, one is damaged, or the config's groups do not fit the network.
    pub fn load(session: &Session, plan: &Plan) -> Result<Self> {
        let config = &session.config;
        let stage = config.searched_stage().ok_or_else(|| Error::msg("the config has no stage to search"))?;
        let model = session.searched_model(stage);
        let partition = lcsc_search::partition(&lcsc_search::groups_of(&plan.search), &model.layout)?;
        let (rows, track_checkpoints) = checkpoints(session, stage, plan)?;
        if of_base(&rows) < 2 {
            let message = format!(
                "stage `{}` has {} checkpoints in the window, expected at least 2 of a track: train further, or widen \
                 search.window",
                stage.name,
                rows.len()
            );
            return Err(Error::file(session.run.manifest(), message));
        }
        let window = Window::load(&session.run, &rows, &model.layout, config.memory(session.device))?;
        let load = |c: &Checkpoint| Ok((c.track.clone(), c.load(&session.run, &model.layout, session.device)?));
        let tracks = track_checkpoints.iter().map(load).collect::<Result<_>>()?;
        Ok(Self { model, window, partition, tracks, track_checkpoints })
    }

    /// Whether there are checkpoints enough to search.
    ///
    /// # Errors
    /// The manifest is damaged.
    pub fn is_enough(session: &Session, plan: &Plan) -> Result<bool> {
        let stage = session.config.searched_stage();
        stage.map_or(Ok(false), |stage| Ok(of_base(&checkpoints(session, stage, plan)?.0) >= 2))
    }

    /// What models are made of.
    pub fn models(&self) -> Models<'_> {
        Models { window: &self.window, partition: &self.partition, tracks: &self.tracks }
    }

    /// The weights of a model; those of fine-tuning are read from the search's folder.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn weights(&self, session: &Session, plan: &Plan, model: &lcsc_search::Model) -> Result<Weights> {
        if *model == lcsc_search::Model::Finetuned {
            let file = SafeFile::open(plan.file(session, FINETUNED))?;
            return Ok(self.window.with_theta(file.tensor("theta")?.f_to(session.device)?));
        }
        self.models().weights(model)
    }

    /// What the search is told of it.
    pub fn space(&self, session: &Session, suite: &Suite, plan: &Plan) -> SearchSpace {
        let mut hash = blake3::Hasher::new();
        for checkpoint in self.window.checkpoints().iter().chain(&self.track_checkpoints) {
            hash.update(checkpoint.blake3.as_bytes());
        }
        for scorer in [&suite.primary, &suite.independent, &suite.pixels] {
            hash.update(scorer.extractor.convention().as_bytes());
        }
        hash.update(format!("{:?} {:?}", plan.sampler, session.config.precision).as_bytes());
        let saved = |c: &Checkpoint| Saved { nimg: c.nimg as f64, track: c.track.clone() };
        SearchSpace {
            rows: self.window.checkpoints().iter().map(saved).collect(),
            tracks: self.tracks.keys().cloned().collect(),
            groups: self.partition.names().to_vec(),
            given: plan.given.clone(),
            nfe: plan.sampler.nfe(),
            fingerprint: hash.finalize().to_hex().to_string(),
        }
    }
}

/// The saved weights of the window, track by track with the raw ones last, and the EMA tracks recorded at its end.
fn checkpoints(session: &Session, stage: &StageConfig, plan: &Plan) -> Result<(Vec<Checkpoint>, Vec<Checkpoint>)> {
    let search = &plan.search;
    let mut all = Manifest::read(&session.run)?;
    all.retain(|c| c.stage == stage.name && plan.most_nimg.is_none_or(|most| c.nimg <= most));
    let asked = |c: &Checkpoint| search.tracks.iter().any(|t| *t == c.track || t == "all");
    let end = all.iter().filter(|c| asked(c)).map(|c| c.nimg).max().unwrap_or(0);
    let first = search.window.map_or(0, |w| (end + 1).saturating_sub(w));
    let recorded = all.iter().filter(|c| c.track != RAW && c.nimg == end).cloned().collect();
    let mut tracks: BTreeMap<(bool, String), Vec<Checkpoint>> = BTreeMap::new();
    for checkpoint in all.into_iter().filter(|c| asked(c) && c.nimg >= first) {
        tracks.entry((checkpoint.track == RAW, checkpoint.track.clone())).or_default().push(checkpoint);
    }
    let rows = tracks.into_values().flat_map(|track| thinned(track, search.checkpoints)).collect();
    Ok((rows, recorded))
}

/// How many of the saved weights are of the last track, which EMA profiles are over.
fn of_base(rows: &[Checkpoint]) -> usize {
    rows.iter().filter(|c| rows.last().is_some_and(|last| last.track == c.track)).count()
}

/// At most `most` of a track's checkpoints, evenly spaced from the last one back.
fn thinned(track: Vec<Checkpoint>, most: Option<usize>) -> Vec<Checkpoint> {
    let n = track.len();
    let k = most.unwrap_or(n).min(n);
    let kept = |i: usize| (i + 1) * k / n > i * k / n;
    track.into_iter().enumerate().filter(|(i, _)| kept(*i)).map(|(_, c)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::StorageDtype;

    #[test]
    fn thinning_keeps_the_last_and_is_even() {
        let track = |n: u64| (1..=n).map(|i| Checkpoint::new("s", i, i, RAW, StorageDtype::F32)).collect::<Vec<_>>();
        let kept = |n, most| thinned(track(n), most).iter().map(|c| c.nimg).collect::<Vec<_>>();
        assert_eq!(kept(10, Some(5)), [2, 4, 6, 8, 10]);
        assert_eq!(kept(7, Some(3)), [3, 5, 7]);
        assert_eq!(kept(3, Some(9)), [1, 2, 3]);
        assert_eq!(kept(3, None), [1, 2, 3]);
    }
}
