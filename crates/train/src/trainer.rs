//! The training loop of one stage.

use crate::config::{GradientDtype, NonFinite, StageConfig};
use crate::ema::{EmaTrack, follow};
use crate::judge::{Judge, Outcome};
use crate::log::{Log, SHEET};
use crate::loss_scale::SavedLossScale;
use crate::state::{Progress, StageRecord, Sums, Tick, read_progress, restore_threads};
use indicatif::ProgressBar;
use lcsc_data::{Dataset, Sampler};
use lcsc_diffusion::{Conditioning, Model, Networks, Objective, Quartiles, Round, SamplerConfig, generate, one_hot};
use lcsc_torch::{
    Device, Error, Group, Kind, Optimizer, Precision, Result, StorageDtype, Stream, Tensor, Weights, bail, cpu_threads,
    device_memory, host_memory, to_u8,
};
use lcsc_trajectory::{Checkpoint, Manifest, RunFolder, TrainingState, Writer};
use std::time::Instant;

/// After so many bad steps in a row the policy `skip` stops, too: the weights themselves are ruined.
const MOST_SKIPPED: u64 = 100;

/// Everything about a stage that does not change while it trains.
pub struct StageContext<'a> {
    /// The run's folder, locked by the caller; rank 0 alone reads and writes it.
    pub run: &'a RunFolder,
    /// The stage.
    pub stage: &'a StageConfig,
    /// Images that the stages before it trained.
    pub nimg_before: u64,
    /// The network.
    pub model: &'a Model,
    /// The diffusion model that is distilled, where the objective needs one: its network and weights.
    pub teacher: Option<(&'a Model, Weights)>,
    /// The images.
    pub data: &'a Dataset,
    /// Seed of the run.
    pub seed: u64,
    /// What the samples of this stage are made with on the way.
    pub sampler: &'a SamplerConfig,
    /// Where to train.
    pub device: Device,
    /// The processes that train together, each with all that this holds and its share of every batch.
    pub group: &'a Group,
    /// The type in which gradients travel between them.
    pub gradients: GradientDtype,
    /// Hash of all settings that training depends on: a state of another hash is refused.
    pub config_hash: &'a str,
    /// What weights files tell about themselves; `checkpoint` is added to it.
    pub card: &'a serde_json::Value,
    /// Stages finished before this one.
    pub finished: Vec<StageRecord>,
}

/// How [`Trainer::train_until`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The asked number of images is reached.
    Reached,
    /// `stop` said so; the state is saved.
    Stopped,
}

/// A stage in training: parameters, moments, averages, and how far it got.
pub struct Trainer<'a> {
    context: StageContext<'a>,
    objective: Objective,
    weights: Weights,
    /// θ⁻ f32 `[P]`, the moving average that gives a consistency loss its target, where the objective has one.
    target: Option<Tensor>,
    optimizer: Optimizer,
    judge: Judge,
    ema: Vec<EmaTrack>,
    sampler: Sampler,
    quartiles: Quartiles,
    /// What rank 0 writes.
    records: Option<Records>,
    progress: Progress,
    /// Images of the stage up to which `progress` knows what the steps came to.
    settled: u64,
    samples_every: Option<u64>,
    /// Seconds between two saved states.
    state_pause: f64,
    tick_began: Instant,
    state_saved: Instant,
}

/// Where a stage in training is written down.
struct Records {
    writer: Writer,
    log: Log,
}

impl<'a> Trainer<'a> {
    /// Begins a stage at `weights`.
    ///
    /// # Errors
    /// The run folder cannot be written, or the device has no room.
    pub fn new(context: StageContext<'a>, weights: Weights) -> Result<Self> {
        let progress = Progress {
            config_hash: context.config_hash.to_string(),
            stage: context.stage.name.clone(),
            nimg: 0,
            steps: 0,
            seconds: 0.0,
            threads: cpu_threads(),
            sums: Sums::default(),
            non_finite_steps: 0,
            non_finite_in_a_row: 0,
            loss_scale: (context.model.precision == Precision::F16).then(SavedLossScale::default),
            finished: context.finished.clone(),
        };
        let mut trainer = Self::build(context, weights, progress)?;
        // From here on the folder knows its settings: a run of others is refused.
        trainer.save()?;
        Ok(trainer)
    }

    /// Goes on from a saved state of this stage.
    ///
    /// # Errors
    /// The state does not fit the stage, the run folder cannot be written, or the device has no room.
    pub fn resume(context: StageContext<'a>, state: &TrainingState) -> Result<Self> {
        let progress = read_progress(state, context.config_hash)?;
        let device = context.device;
        let tensor = |name: &str| {
            let found = state.tensors.get(name);
            let found = found.ok_or_else(|| Error::msg(format!("the training state has no tensor `{name}`")))?;
            Ok::<_, Error>(found.f_to(device)?)
        };
        let buffers = (0..context.model.layout.buffers().len()).map(|i| tensor(&format!("buffer.{i}")));
        let weights = Weights { theta: tensor("theta")?, buffers: buffers.collect::<Result<_>>()? };
        let mut trainer = Self::build(context, weights, progress)?;
        trainer.optimizer.exp_avg = tensor("exp_avg")?;
        trainer.optimizer.exp_avg_sq = tensor("exp_avg_sq")?;
        let _ = trainer.optimizer.steps.f_fill_(trainer.progress.steps)?;
        if trainer.target.is_some() {
            trainer.target = Some(tensor("target")?);
        }
        for track in &mut trainer.ema {
            track.theta = tensor(&track.name())?;
        }
        Ok(trainer)
    }

    /// How far a saved state got: what was trained, the last entry being the stage that it is of. What follows uses the
    /// number of CPU threads that it was trained with.
    ///
    /// # Errors
    /// The state is of other settings than `config_hash`.
    pub fn position(state: &TrainingState, config_hash: &str) -> Result<Vec<StageRecord>> {
        let progress = read_progress(state, config_hash)?;
        restore_threads(progress.threads);
        let last = StageRecord { name: progress.stage, nimg: progress.nimg, seconds: progress.seconds };
        Ok(progress.finished.into_iter().chain([last]).collect())
    }

    fn build(context: StageContext<'a>, weights: Weights, progress: Progress) -> Result<Self> {
        let stage = context.stage;
        let records = context.group.all_ok(Records::open(&context, context.nimg_before + progress.nimg))?;
        if let Some((_, teacher)) = &context.teacher
            && teacher.theta.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0
        {
            bail!("stage `{}`: the weights of the teacher are not all finite: choose another teacher", stage.name);
        }
        let has_target = stage.objective.target_ema(0, stage.steps()).is_some();
        let vectors = 3 + stage.ema.len() + usize::from(has_target);
        Ok(Self {
            objective: Objective::new(&stage.objective, context.device)?,
            target: has_target.then(|| weights.theta.f_detach_copy()).transpose()?,
            optimizer: Optimizer::new(stage.optimizer.clone(), &weights.theta)?,
            judge: Judge::new(stage.non_finite, stage.grad_clip, progress.loss_scale, context.device)?,
            ema: stage.ema.iter().map(|c| EmaTrack::new(c, &weights.theta)).collect::<Result<_>>()?,
            sampler: Sampler::new(context.data.images.size()[0] as usize, context.seed),
            quartiles: Quartiles::new(&stage.objective, &context.model.preconditioning, context.device)?,
            records,
            settled: progress.nimg,
            samples_every: stage.samples_every(context.sampler.nfe()),
            state_pause: stage.state_pause(vectors as u64 * 4 * context.model.layout.numel() as u64),
            progress,
            weights,
            tick_began: Instant::now(),
            state_saved: Instant::now(),
            context,
        })
    }

    /// Trains until the stage has seen `nimg` images, or its end; `bar` counts them. The caller's `stop` is asked before
    /// each step, and must say the same on all ranks. At the end of the stage all tracks are saved, and the state.
    ///
    /// # Errors
    /// A non-finite loss or gradient under `stop` (the state of the last good step is saved first), a full disk, no room on
    /// the device, or another rank is gone.
    pub fn train_until(&mut self, nimg: u64, stop: &dyn Fn() -> Result<bool>, bar: &ProgressBar) -> Result<Ended> {
        let stage = self.context.stage;
        let end = stage.images();
        while self.progress.nimg < nimg.min(end) {
            if self.or_save(stop())? {
                self.save()?;
                return Ok(Ended::Stopped);
            }
            let step_began = Instant::now();
            let before = self.progress.nimg;
            let after = before + stage.batch;
            let lr = self.learning_rate(after);
            self.step(before, lr)?;
            self.progress.nimg = after;
            let ticks = before / stage.tick() != after / stage.tick() || after == end;
            let is_due = stage.trajectory().is_due(before, after, end);
            if ticks || is_due {
                self.settle()?;
            }
            self.progress.seconds += step_began.elapsed().as_secs_f64();
            bar.set_position(after);
            if is_due {
                self.save_checkpoints()?;
            }
            if ticks {
                self.tick(lr, bar)?;
            }
            if self.samples_every.is_some_and(|every| before / every != after / every) {
                self.save_samples()?;
            }
            if self.state_saved.elapsed().as_secs_f64() >= self.state_pause {
                self.save_state()?;
            }
        }
        if self.progress.nimg == end {
            self.save()?;
        }
        Ok(Ended::Reached)
    }

    /// One step, after `before` images: gradient, optimizer, averages. On a GPU it is queued and not waited for.
    fn step(&mut self, before: u64, lr: f64) -> Result<()> {
        let gradient = self.gradient();
        let Gradient { loss, by_sigma, mut grad } = self.or_save(gradient)?;
        let verdict = self.judge.judge(&loss, &by_sigma, &mut grad)?;
        self.optimizer.step(&mut self.weights.theta, grad, lr, &verdict)?;
        let (stage, taken) = (self.context.stage, verdict.taken());
        for track in &mut self.ema {
            track.update(&self.weights.theta, before, stage.batch, &taken)?;
        }
        let mu = stage.objective.target_ema(before / stage.batch, stage.steps());
        if let (Some(target), Some(mu)) = (&mut self.target, mu) {
            follow(target, &self.weights.theta, mu, &taken)?;
        }
        Ok(())
    }

    /// Where something failed between two steps, the state after the last one is saved. A GPU that waits for a rank that is gone
    /// cannot be read any more.
    fn or_save<T>(&mut self, outcome: Result<T>) -> Result<T> {
        let StageContext { group, device, .. } = &self.context;
        let hangs = group.is_broken() && device.is_cuda();
        outcome.or_else(|e| if hangs { Err(e) } else { self.save().and(Err(e)) })
    }

    /// Takes note of what the steps since the last time came to, once the device has made them.
    fn settle(&mut self) -> Result<()> {
        let (batch, policy) = (self.context.stage.batch, self.context.stage.non_finite);
        for outcome in self.judge.read()? {
            if outcome.is_good() {
                self.progress.non_finite_in_a_row = 0;
                self.progress.sums.add(&outcome);
            } else if !outcome.overflowed {
                self.note_non_finite(self.settled, outcome)?;
            }
            let taken = outcome.is_good() || policy == NonFinite::Zero && !outcome.overflowed;
            self.progress.steps += i64::from(taken);
            self.settled += batch;
        }
        self.progress.loss_scale = self.judge.saved_loss_scale()?;
        Ok(())
    }

    /// Loss and gradient of the next batch, summed over rounds of `microbatch` images and over ranks.
    fn gradient(&mut self) -> Result<Gradient> {
        let own = self.own_gradient()?;
        let StageContext { group, gradients, .. } = &self.context;
        if group.size() == 1 {
            return Ok(own);
        }
        let losses = Tensor::f_cat(&[own.loss.f_view([1])?, own.by_sigma.f_flatten(0, -1)?], 0)?;
        group.sum(&losses)?;
        let grad = own.grad.f_to_kind(gradients.kind())?;
        group.sum(&grad)?;
        Ok(Gradient {
            loss: losses.f_get(0)?,
            by_sigma: losses.f_narrow(0, 1, own.by_sigma.numel() as i64)?.f_view_as(&own.by_sigma)?,
            grad: grad.f_to_kind(Kind::Float)?,
        })
    }

    /// This rank's part of the next batch: as many whole rounds as every other has.
    fn own_gradient(&mut self) -> Result<Gradient> {
        let c = &self.context;
        let round = c.stage.round();
        let share = c.stage.batch / c.group.size() as u64;
        let first = c.nimg_before + self.progress.nimg + c.group.rank() as u64 * share;
        // Cast once a step: the leaf has the type that the network computes in.
        let leaf = self.weights.theta.f_detach()?.f_to_kind(c.model.precision.kind())?.f_set_requires_grad(true)?;
        let online = c.model.bind(&self.weights.with_theta(leaf.shallow_clone()))?;
        let bind_target = |theta: &Tensor| c.model.bind(&self.weights.with_theta(theta.shallow_clone()));
        let target = self.target.as_ref().map(bind_target).transpose()?;
        let teacher = c.teacher.as_ref().map(|(model, weights)| model.bind(weights)).transpose()?;
        let nets = Networks { online: &online, target: target.as_ref(), teacher: teacher.as_ref() };
        let mut total: Option<Gradient> = None;
        for start in (first..first + share).step_by(round as usize) {
            let batch = c.data.batch(&mut self.sampler, start, round as usize, c.device)?;
            let labels = one_hot(batch.labels.as_ref(), c.model.image.label_dim);
            let conditioning = Conditioning { labels, augment_labels: batch.augment_labels };
            let round = Round {
                images: &batch.images,
                conditioning: &conditioning,
                seed: c.seed,
                nimg: start,
                stage_nimg: start - c.nimg_before,
                step: self.progress.nimg / c.stage.batch,
                steps: c.stage.steps(),
            };
            let losses = self.objective.loss(&nets, &round)?;
            let by_sigma = self.quartiles.sums(&losses)?;
            let loss = losses.loss.f_sum(Kind::Float)?.f_div_scalar(c.stage.batch as f64)?;
            let scaled = self.judge.loss_scale().map(|scale| loss.f_mul(&scale.f_squeeze()?)).transpose()?;
            let grad = Tensor::f_run_backward(&[scaled.as_ref().unwrap_or(&loss)], &[&leaf], false, false)?.remove(0);
            let loss = loss.f_detach()?;
            total = Some(match total {
                None => Gradient { loss, by_sigma, grad: grad.f_to_kind(Kind::Float)? },
                Some(mut sum) => Gradient {
                    loss: sum.loss.f_add_(&loss)?,
                    by_sigma: sum.by_sigma.f_add_(&by_sigma)?,
                    grad: sum.grad.f_add_(&grad)?,
                },
            });
        }
        total.ok_or_else(|| Error::msg("a step needs at least one image"))
    }

    /// The rate of the step that ends at `nimg` images.
    fn learning_rate(&self, nimg: u64) -> f64 {
        let stage = self.context.stage;
        let ramp = nimg as f64 / stage.lr_ramp_nimg.max(1) as f64;
        stage.optimizer.constants().lr * ramp.min(1.0)
    }

    /// Counts a bad step, which began after `nimg` images, or ends the run as the policy says.
    fn note_non_finite(&mut self, nimg: u64, Outcome { loss, norm, .. }: Outcome) -> Result<()> {
        let stage = self.context.stage;
        let place = format!("stage `{}`, after {nimg} images: loss {loss}, gradient norm {norm}", stage.name);
        let remedy = "the state of the last good step is saved; lower the learning rate, set grad_clip, or choose \
                      non_finite = \"skip\" or \"zero\" (with another --out, or from a weights file)";
        if stage.non_finite == NonFinite::Stop {
            // The device has left out all steps since.
            self.progress.nimg = nimg;
            self.save()?;
            return Err(Error::NonFinite(format!("{place} is not finite. {remedy}")));
        }
        let p = &mut self.progress;
        p.non_finite_steps += 1;
        p.non_finite_in_a_row += 1;
        if stage.non_finite == NonFinite::Skip && p.non_finite_in_a_row > MOST_SKIPPED {
            return Err(Error::NonFinite(format!(
                "{place}: more than {MOST_SKIPPED} steps in a row were not finite. {remedy}"
            )));
        }
        tracing::warn!("{place} is not finite (policy {:?})", stage.non_finite);
        Ok(())
    }

    /// Queues the checkpoints of this moment. Those of the stage's end are exact and of all tracks.
    fn save_checkpoints(&mut self) -> Result<()> {
        let Some(records) = &mut self.records else { return Ok(()) };
        let StageContext { stage, model, card, nimg_before, .. } = &self.context;
        let (now, end) = (self.progress.nimg, stage.images());
        let trajectory = stage.trajectory();
        let tracks = std::iter::once(("raw".to_string(), &self.weights.theta));
        for (track, theta) in tracks.chain(self.ema.iter().map(|t| (t.name(), &t.theta))) {
            if now < end && !trajectory.keeps(&track) {
                continue;
            }
            let dtype = if now == end { StorageDtype::F32 } else { trajectory.dtype };
            let checkpoint = Checkpoint::new(&stage.name, now, nimg_before + now, &track, dtype);
            let mut card = (*card).clone();
            card["checkpoint"] = serde_json::json!({ "stage": stage.name, "nimg": now, "track": track });
            let weights = self.weights.with_theta(theta.shallow_clone());
            records.writer.checkpoint(checkpoint, &model.layout, &weights, &card.to_string())?;
        }
        Ok(())
    }

    /// Logs the means since the last tick, and makes sure that all ranks hold the same parameters.
    fn tick(&mut self, lr: f64, bar: &ProgressBar) -> Result<()> {
        self.check_parameters()?;
        let stage = self.context.stage;
        let sums = std::mem::take(&mut self.progress.sums);
        let Some(records) = &mut self.records else { return Ok(()) };
        let gib = |bytes: Option<u64>| bytes.map(|b| b as f64 / (1u64 << 30) as f64);
        let tick = Tick {
            stage: stage.name.clone(),
            nimg: self.progress.nimg,
            total_nimg: self.context.nimg_before + self.progress.nimg,
            loss: sums.mean(sums.loss),
            loss_by_sigma: sums.loss_by_sigma(),
            grad_norm: sums.mean(sums.grad_norm),
            lr,
            img_per_s: (sums.steps * stage.batch) as f64 / self.tick_began.elapsed().as_secs_f64(),
            seconds: self.progress.seconds,
            non_finite_steps: self.progress.non_finite_steps,
            host_gib: gib(host_memory()),
            device_gib: gib(device_memory(self.context.device)),
        };
        self.tick_began = Instant::now();
        let loss = tick.loss.map_or_else(|| "not finite".into(), |l| format!("{l:.4}"));
        bar.set_message(format!("{}, loss {loss}", stage.name));
        records.log.tick(&tick)
    }

    /// Compares the sums of the parameters' bits over the ranks.
    fn check_parameters(&self) -> Result<()> {
        let StageContext { group, stage, .. } = &self.context;
        if group.size() == 1 {
            return Ok(());
        }
        let of_ranks = group.sums_of_bits(&self.weights.theta)?;
        if of_ranks.iter().any(|other| *other != of_ranks[0]) {
            let (nimg, name) = (self.progress.nimg, &stage.name);
            bail!(
                "stage `{name}`, after {nimg} images: the ranks hold different parameters (whose bits sum to {of_ranks:?}):                  a device computes wrongly. The last saved state is from before; the same command goes on from there"
            );
        }
        Ok(())
    }

    /// Writes a sheet of samples of the weights that this stage hands on.
    fn save_samples(&mut self) -> Result<()> {
        let Some(records) = &mut self.records else { return Ok(()) };
        let StageContext { stage, model, sampler, seed, device, nimg_before, .. } = self.context;
        let track = stage.default_track();
        let theta = self.ema.iter().find(|t| t.name() == track).map_or(&self.weights.theta, |t| &t.theta);
        let net = model.bind(&self.weights.with_theta(theta.shallow_clone()))?;
        let samples = generate(&net, sampler, seed, Stream::SampleLatents, 0, SHEET as usize, device)?;
        let images = to_u8(&samples.images.nan_to_num(0.0, 1.0, -1.0));
        records.log.samples(&images, &track, self.progress.nimg, nimg_before + self.progress.nimg)
    }

    /// Saves the training state: when this returns, it and all checkpoints before it are durable.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn save(&mut self) -> Result<()> {
        self.save_state()?;
        self.records.as_mut().map_or(Ok(()), |records| records.writer.flush())
    }

    /// Queues the whole training state; checkpoints queued before are durable before it.
    fn save_state(&mut self) -> Result<()> {
        self.settle()?;
        let Some(records) = &mut self.records else { return Ok(()) };
        let named = |name: &str, tensor: &Tensor| (name.to_string(), tensor.shallow_clone());
        let mut tensors = vec![
            named("theta", &self.weights.theta),
            named("exp_avg", &self.optimizer.exp_avg),
            named("exp_avg_sq", &self.optimizer.exp_avg_sq),
        ];
        tensors.extend(self.weights.buffers.iter().enumerate().map(|(i, b)| named(&format!("buffer.{i}"), b)));
        tensors.extend(self.ema.iter().map(|t| named(&t.name(), &t.theta)));
        tensors.extend(self.target.iter().map(|t| named("target", t)));
        let meta = serde_json::to_string(&self.progress).map_err(|e| Error::msg(format!("training state: {e}")))?;
        records.writer.state(tensors, meta)?;
        self.state_saved = Instant::now();
        Ok(())
    }

    /// What this stage did, for the summary.
    pub fn record(&self) -> StageRecord {
        let name = self.context.stage.name.clone();
        StageRecord { name, nimg: self.progress.nimg, seconds: self.progress.seconds }
    }

    /// Images of this stage trained so far.
    pub fn nimg(&self) -> u64 {
        self.progress.nimg
    }
}

impl Records {
    /// On rank 0, after `reached` images of the run: steps that the saved state does not know are trained, logged and listed
    /// again.
    fn open(context: &StageContext, reached: u64) -> Result<Option<Self>> {
        if !context.group.leads() {
            return Ok(None);
        }
        Manifest::cut(context.run, reached)?;
        let log = Log::open(context.run, &context.stage.name, reached)?;
        Ok(Some(Self { writer: Writer::start(context.run)?, log }))
    }
}

/// Of a batch, without gradient of their own.
struct Gradient {
    /// Mean loss, f32 `[]`.
    loss: Tensor,
    /// Losses by noise level, f32 `[2,4]`.
    by_sigma: Tensor,
    /// Of the scaled loss, f32 `[P]`.
    grad: Tensor,
}

#[cfg(test)]
mod tests;
