//! The fitness of a model: the Fréchet distance of what it samples from fixed latents to the real images.

use crate::candidate::Model;
use crate::coefficients::Coefficients;
use crate::config::SearchConfig;
use crate::methods::step_images;
use crate::score::{Fitness, Latents, ReportScores, Scores};
use crate::team::Team;
use crate::tuning::Tuning;
use lcsc_diffusion::{LatentSet, SamplerConfig};
use lcsc_metrics::{FeatureStats, Suite};
use lcsc_torch::{Device, Error, Group, Result, Stream, Tensor, Weights, bail, derive_seed};
use lcsc_trajectory::{Partition, Window};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Memory for models merged in one pass, in bytes.
const MERGED_BYTES: usize = 1 << 30;

/// All that a model's score depends on.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The network.
    pub model: &'a lcsc_diffusion::Model,
    /// What its weights are made of.
    pub models: Models<'a>,
    /// Extractors and reference statistics.
    pub suite: &'a Suite,
    /// How images are made.
    pub sampler: &'a SamplerConfig,
    /// Numbers of images.
    pub config: &'a SearchConfig,
    /// Seed of the run.
    pub seed: u64,
    /// Where to sample.
    pub device: Device,
    /// The ranks that sample; this is rank 0.
    pub group: &'a Group,
}

/// Merges, samples and measures.
pub struct SampledFitness<'a> {
    setting: Setting<'a>,
    team: Team<'a>,
    /// Models merged ahead.
    merged: Vec<(Model, Tensor)>,
    tuning: Option<Tuning>,
    tuning_path: PathBuf,
}

/// What models are made of.
#[derive(Clone, Copy)]
pub struct Models<'a> {
    /// The saved weights that coefficients combine.
    pub window: &'a Window,
    /// Which parameters share coefficients.
    pub partition: &'a Partition,
    /// The EMA tracks as training recorded them.
    pub tracks: &'a BTreeMap<String, Weights>,
}

impl Models<'_> {
    /// The weights of a combination or a recorded track.
    ///
    /// # Errors
    /// A checkpoint cannot be read, the track is not recorded, or the model was fine-tuned.
    pub fn weights(&self, model: &Model) -> Result<Weights> {
        match model {
            Model::Coefficients(alpha) => {
                self.window.weights(self.partition, alpha.spread(self.partition.len())?.rows())
            }
            Model::Track(name) => match self.tracks.get(name) {
                Some(weights) => Ok(weights.with_theta(weights.theta.shallow_clone())),
                None => bail!("the run has recorded no track `{name}`"),
            },
            Model::Finetuned => bail!("the fine-tuned model is no combination of checkpoints"),
        }
    }
}

impl<'a> SampledFitness<'a> {
    /// Scores models in this setting. The state of fine-tuning is kept in the file `tuning`.
    pub fn new(setting: Setting<'a>, tuning: PathBuf) -> Self {
        let Setting { group, model, suite, device, .. } = setting;
        let team = Team::of(suite, group, model, device);
        Self { setting, team, merged: Vec::new(), tuning: None, tuning_path: tuning }
    }

    /// The weights of a model, also of the fine-tuned one.
    ///
    /// # Errors
    /// Those of [`Models::weights`].
    pub fn weights(&self, model: &Model) -> Result<Weights> {
        if let Some((_, theta)) = self.merged.iter().find(|(merged, _)| merged == model) {
            return Ok(self.setting.models.window.with_theta(theta.shallow_clone()));
        }
        match (model, &self.tuning) {
            (Model::Finetuned, Some(tuning)) => Ok(tuning.weights.with_theta(tuning.weights.theta.shallow_clone())),
            (model, _) => self.setting.models.weights(model),
        }
    }

    /// The fresh latents of a step.
    fn step_latents(&self, step: u64, images: u64) -> LatentSet {
        let n = step_images(images, self.setting.sampler.nfe());
        let seed = derive_seed(self.setting.seed, Stream::StepLatents, step);
        LatentSet { seed, stream: Stream::StepLatents, n, chunk: self.setting.config.gradient_chunk() }
    }

    /// Who samples.
    pub fn team(&self) -> Team<'a> {
        self.team.clone()
    }

    fn value_and_gradient(&self, weights: &Weights, latents: LatentSet) -> Result<(f64, Tensor)> {
        self.team.gradient(weights, self.setting.sampler, latents)
    }

    fn report(&self, weights: &Weights, latents: LatentSet) -> Result<Scores> {
        let Suite { primary, independent, pixels } = self.setting.suite;
        let scorers = [primary, independent, pixels];
        let mut features = [const { Vec::new() }; 3];
        let add = |found: &[Tensor]| {
            features.iter_mut().zip(found).for_each(|(all, found)| all.push(found.shallow_clone()));
            Ok(())
        };
        if !self.team.features(weights, self.setting.sampler, latents, true, add)? {
            let infinite = f64::INFINITY;
            let report = ReportScores { fd_independent: infinite, fd_pixel: infinite, ..ReportScores::default() };
            return Ok(Scores { fd: infinite, report: Some(report) });
        }
        let features = features.iter().map(|f| Ok(Tensor::f_cat(f, 0)?)).collect::<Result<Vec<_>>>()?;
        let distance = |i: usize| scorers[i].reference.distance(&FeatureStats::of(&features[i])?);
        let neighbours = independent.precision_recall(&features[1])?;
        let report = ReportScores {
            fd_std: primary.reference.bootstrap_std(&features[0], self.setting.config.bootstrap, latents.seed)?,
            fd_independent: distance(1)?,
            fd_pixel: distance(2)?,
            precision: neighbours.precision,
            recall: neighbours.recall,
        };
        Ok(Scores { fd: distance(0)?, report: Some(report) })
    }
}

impl Fitness for SampledFitness<'_> {
    fn prepare(&mut self, models: &[&Model]) -> Result<()> {
        self.merged.clear();
        let Models { window, partition, .. } = self.setting.models;
        let fits = MERGED_BYTES / (4 * self.setting.model.layout.numel() as usize);
        let combination = |model: &&Model| match model {
            Model::Coefficients(alpha) => Some(((*model).clone(), alpha.spread(partition.len()))),
            Model::Track(_) | Model::Finetuned => None,
        };
        let combinations: Vec<_> = models.iter().filter_map(combination).take(fits).collect();
        if combinations.len() < 2 {
            return Ok(());
        }
        let (models, alphas): (Vec<Model>, Vec<Result<Coefficients>>) = combinations.into_iter().unzip();
        let alphas = alphas.into_iter().collect::<Result<Vec<_>>>()?;
        let rows: Vec<&[Vec<f64>]> = alphas.iter().map(Coefficients::rows).collect();
        let thetas = window.merge_many(partition, &rows)?.f_unbind(0)?;
        self.merged = models.into_iter().zip(thetas).collect();
        Ok(())
    }

    fn side_by_side(&self) -> usize {
        self.setting.group.size()
    }

    fn scores(&mut self, models: &[&Model], latents: Latents) -> Result<Vec<Scores>> {
        let Setting { seed, config, sampler, .. } = self.setting;
        let weights = models.iter().map(|model| self.weights(model));
        let set = |seed, stream, n| LatentSet { seed, stream, n, chunk: config.chunk };
        let distances = |stream, n| {
            let distances = self.team.distances(weights.clone(), sampler, set(seed, stream, n))?;
            Ok(distances.into_iter().map(Scores::of).collect())
        };
        match latents {
            Latents::Search => distances(Stream::SearchLatents, config.images),
            Latents::Selection => distances(Stream::SelectionLatents, config.selection_images),
            Latents::Report(index) => {
                let seed = derive_seed(seed, Stream::ReportLatents, index);
                let latents = set(seed, Stream::ReportLatents, config.report_images);
                weights.map(|weights| self.report(&weights?, latents)).collect()
            }
        }
    }

    fn gradient(&mut self, alpha: &Coefficients, step: u64) -> Result<(f64, Vec<Vec<f64>>)> {
        let latents = self.step_latents(step, self.setting.config.gradient.images);
        let weights = self.setting.models.weights(&Model::Coefficients(alpha.clone()))?;
        let (fd, theta_bar) = self.value_and_gradient(&weights, latents)?;
        let Models { window, partition, .. } = self.setting.models;
        let by_group = window.project(partition, &theta_bar)?;
        // Coefficients that all groups share have the sum of their derivatives.
        let shared = |k: usize| by_group.iter().map(|row| row[k]).sum();
        Ok((fd, if alpha.groups() == 1 { vec![(0..window.len()).map(shared).collect()] } else { by_group }))
    }

    fn begin_tuning(&mut self, start: &Model, logged: u64) -> Result<u64> {
        let tuning =
            Tuning::begin(self.setting.models.weights(start)?, self.setting.config, logged, &self.tuning_path)?;
        Ok(self.tuning.insert(tuning).steps())
    }

    fn tune(&mut self, step: u64, lr: f64) -> Result<f64> {
        let latents = self.step_latents(step, self.setting.config.finetune.images);
        let tuning = self.tuning.take().ok_or_else(|| Error::msg("fine-tuning was not begun"))?;
        let (fd, theta_bar) = self.value_and_gradient(&tuning.weights, latents)?;
        let tuning = self.tuning.insert(tuning);
        tuning.step(step, fd.is_finite().then_some(theta_bar), lr)?;
        Ok(fd)
    }

    fn end_tuning(&mut self) -> Result<()> {
        self.tuning.as_mut().map_or(Ok(()), Tuning::save)
    }
}
