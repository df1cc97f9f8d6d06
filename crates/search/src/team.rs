//! Images made and judged by all ranks together. Rank 0 searches; the others know nothing of the search, and answer what it asks.

use lcsc_diffusion::{Draw, LatentSet, Model, Room, SamplerConfig, generate, generate_backward};
use lcsc_metrics::{Evaluation, Extractor, Metrics, Scorer, Suite};
use lcsc_torch::tch::{no_grad, with_grad};
use lcsc_torch::{Device, Error, Group, Kind, Result, Tensor, Weights, to_u8};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The slope of what replaces the clamp of pixels to [−1,1] outside of it, so that a gradient leads back.
const LEAK: f64 = 0.01;
/// Chunks of images between two meetings of ranks that make those of a model each: each chunk would cost what spreading gains.
const MEETING: usize = 8;

/// What images are made and judged with, the same on all ranks.
#[derive(Clone)]
pub struct Team<'a> {
    /// The ranks.
    pub group: &'a Group,
    /// The network.
    pub model: &'a Model,
    /// What a search sees.
    pub primary: &'a Scorer,
    /// The independent and the pixels' extractor, for the final table.
    pub others: [&'a Extractor; 2],
    /// Where to sample.
    pub device: Device,
    /// How many images this rank takes at once. Ranks exchange whole chunks, so that each may have room for other numbers.
    pub rooms: Arc<Rooms>,
}

/// What was found of the device's memory.
#[derive(Debug)]
pub struct Rooms {
    without_gradient: Room,
    with_gradient: Room,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { without_gradient: Room::for_work("sampling"), with_gradient: Room::for_work("a step by gradient") }
    }
}

/// What rank 0 asks of the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Request {
    /// Features of images by the primary extractor or by all. The weights follow.
    Features { sampler: SamplerConfig, latents: LatentSet, by_all: bool },
    /// The distance of one model a rank. The weights follow by rank, but for those of rank 0.
    Distances { sampler: SamplerConfig, latents: LatentSet },
    /// The derivative of the distance by the parameters. The weights follow.
    Gradient { sampler: SamplerConfig, latents: LatentSet },
    /// Whether a signal came.
    Signal,
    /// Nothing more, and what rank 0 ended with.
    End { done: bool },
}

impl<'a> Team<'a> {
    /// Who judges by a suite.
    pub fn of(suite: &'a Suite, group: &'a Group, model: &'a Model, device: Device) -> Self {
        let others = [&suite.independent.extractor, &suite.pixels.extractor];
        Self { group, model, primary: &suite.primary, others, device, rooms: Arc::default() }
    }

    /// Of ranks other than 0: answers what rank 0 asks until it [ends](Self::end), and gives what it ended with. `signal` is told
    /// the number of a signal that another rank got, or 0, and gives that of its own.
    ///
    /// # Errors
    /// The device has no room, or another rank is gone.
    pub fn serve(&self, signal: &dyn Fn(i64) -> i64) -> Result<bool> {
        let own = self.model.layout.init(0, self.device)?;
        let mut of_another = None;
        loop {
            let told = self.group.told("")?;
            let request = serde_json::from_str(&told).map_err(|e| Error::msg(format!("a request of rank 0: {e}")))?;
            match request {
                Request::Features { sampler, latents, by_all } => {
                    self.broadcast(&own)?;
                    self.own_features(&own, &sampler, latents, by_all, |_| Ok(()))?;
                }
                Request::Distances { sampler, latents } => {
                    for rank in 1..self.group.size() {
                        let received = match &of_another {
                            _ if rank == self.group.rank() => &own,
                            Some(weights) => weights,
                            None => of_another.insert(self.model.layout.init(0, self.device)?),
                        };
                        self.broadcast(received)?;
                    }
                    self.own_distance(&own, &sampler, latents)?;
                }
                Request::Gradient { sampler, latents } => {
                    self.broadcast(&own)?;
                    drop(self.own_gradient(&own, &sampler, latents)?);
                }
                Request::Signal => drop(signal(self.largest(signal(0))?)),
                Request::End { done } => return Ok(done),
            }
        }
    }

    /// Of rank 0: the largest of the numbers that `signal` gives on the ranks.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn signal(&self, own: i64) -> Result<i64> {
        self.ask(&Request::Signal)?;
        self.largest(own)
    }

    fn largest(&self, own: i64) -> Result<i64> {
        Ok(self.group.numbers(own)?.into_iter().max().unwrap_or(own))
    }

    /// Of rank 0: lets the others go on, and tells them whether all was done.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn end(&self, done: bool) -> Result<()> {
        self.ask(&Request::End { done })
    }

    fn ask(&self, request: &Request) -> Result<()> {
        if self.group.size() > 1 {
            let text = serde_json::to_string(request).map_err(|e| Error::msg(format!("a request: {e}")))?;
            self.group.told(&text)?;
        }
        Ok(())
    }

    fn broadcast(&self, weights: &Weights) -> Result<()> {
        std::iter::once(&weights.theta).chain(&weights.buffers).try_for_each(|tensor| self.group.broadcast(tensor))
    }

    /// The primary extractor, or all: with the independent and the pixels'.
    fn extractors(&self, all: bool) -> Vec<&Extractor> {
        let others = self.others.iter().filter(|_| all).copied();
        std::iter::once(&self.primary.extractor).chain(others).collect()
    }

    /// Of rank 0: the Fréchet distances of the images that models make of a latent set; +∞ where a pixel is not finite. Where
    /// there are as many models as ranks, each rank makes and judges one, so that parameters and distances are all that they
    /// exchange; else they share the images of each.
    pub(crate) fn distances(
        &self,
        mut models: impl ExactSizeIterator<Item = Result<Weights>>,
        sampler: &SamplerConfig,
        latents: LatentSet,
    ) -> Result<Vec<f64>> {
        if models.len() != self.group.size() {
            return models.map(|weights| self.distance(&weights?, sampler, latents, || Ok(()))).collect();
        }
        let Some(own) = models.next().transpose()? else { return Ok(vec![]) };
        self.ask(&Request::Distances { sampler: sampler.clone(), latents })?;
        models.try_for_each(|weights| self.broadcast(&weights?))?;
        self.own_distance(&own, sampler, latents)
    }

    /// The distances of the models of all ranks. The chunks are those of images that are shared, so that distances are the
    /// same to the last bit.
    fn own_distance(&self, weights: &Weights, sampler: &SamplerConfig, latents: LatentSet) -> Result<Vec<f64>> {
        let latents = latents.among(self.group.size());
        let alone = Team { group: &Group::alone(), ..self.clone() };
        let mut chunks = 0;
        let own = alone.distance(weights, sampler, latents, || {
            chunks += 1;
            self.meet_after(chunks)
        })?;
        // With images that are not finite it ended early.
        (chunks + 1..=latents.draws().len()).try_for_each(|chunk| self.meet_after(chunk))?;
        Ok(self.group.gather(&Tensor::f_from_slice(&[own])?)?.f_flatten(0, -1)?.try_into()?)
    }

    /// Waits for the others every few chunks, so that none of them waits for the end of a long evaluation.
    fn meet_after(&self, chunk: usize) -> Result<()> {
        if chunk.is_multiple_of(MEETING) { self.group.numbers(0).map(drop) } else { Ok(()) }
    }

    /// Calls `after_chunk` after each chunk of finite images.
    fn distance(
        &self,
        weights: &Weights,
        sampler: &SamplerConfig,
        latents: LatentSet,
        mut after_chunk: impl FnMut() -> Result<()>,
    ) -> Result<f64> {
        let mut evaluation = Evaluation::new(self.primary, latents.n, Metrics::default())?;
        let add = |features: &[Tensor]| {
            evaluation.add_features(&features[0])?;
            after_chunk()
        };
        match self.features(weights, sampler, latents, false, add)? {
            true => Ok(evaluation.finish()?.fd),
            false => Ok(f64::INFINITY),
        }
    }

    /// Of rank 0: calls `with` for the features f32 `[n,D]` by each extractor, or by the primary alone, of the images of a
    /// latent set, chunk by chunk. False once a pixel is not finite.
    pub(crate) fn features(
        &self,
        weights: &Weights,
        sampler: &SamplerConfig,
        latents: LatentSet,
        by_all: bool,
        with: impl FnMut(&[Tensor]) -> Result<()>,
    ) -> Result<bool> {
        self.ask(&Request::Features { sampler: sampler.clone(), latents, by_all })?;
        self.broadcast(weights)?;
        self.own_features(weights, sampler, latents, by_all, with)
    }

    fn own_features(
        &self,
        weights: &Weights,
        sampler: &SamplerConfig,
        latents: LatentSet,
        by_all: bool,
        with: impl FnMut(&[Tensor]) -> Result<()>,
    ) -> Result<bool> {
        let (net, device, room) = (self.model.bind(weights)?, self.device, &self.rooms.without_gradient);
        let draws = latents.among(self.group.size()).draws();
        let rows: Vec<usize> = draws.iter().map(|draw| draw.n).collect();
        let images = |task: usize| {
            let made = room.in_pieces(draws[task], device, |Draw { seed, stream, first, n }| {
                Ok(generate(&net, sampler, seed, stream, first, n, device)?.images)
            });
            let images = Tensor::f_cat(&made?, 0)?;
            Ok((images.isfinite().all().int64_value(&[]) != 0).then(|| to_u8(&images)))
        };
        let at_once = self.model.chunks_at_once(device);
        features_in_turn(self.group, &self.extractors(by_all), &rows, at_once, images, with)
    }

    /// Of rank 0: F and ∂F/∂θ f32 [P] of the images of a latent set; F = +∞ with a gradient of zero where images are not
    /// finite.
    ///
    /// Two passes, so that memory depends on the chunk alone: the first has no graph and gives all features, hence μ, Σ
    /// and the closed form of ∂F/∂features; the second repeats each chunk with a graph and feeds ∂F/∂features back. Images
    /// that fit one chunk of one rank need one pass. A chunk that a rank has no room for is made in pieces there.
    pub(crate) fn gradient(
        &self,
        weights: &Weights,
        sampler: &SamplerConfig,
        latents: LatentSet,
    ) -> Result<(f64, Tensor)> {
        self.ask(&Request::Gradient { sampler: sampler.clone(), latents })?;
        self.broadcast(weights)?;
        self.own_gradient(weights, sampler, latents)
    }

    fn own_gradient(&self, weights: &Weights, sampler: &SamplerConfig, latents: LatentSet) -> Result<(f64, Tensor)> {
        let draws = latents.among(self.group.size()).draws();
        if let ([draw], 1) = (&draws[..], self.group.size()) {
            let one_pass = || self.in_one_pass(weights, sampler, *draw);
            if let Some(found) = self.rooms.with_gradient.at_once(draw.n, self.device, one_pass)? {
                return Ok(found);
            }
        }
        let features = self.smooth_features(weights, sampler, &draws)?;
        let (fd, f_bar) = match self.group.leads() {
            true => {
                let gradient = self.primary.reference.gradient(&features)?;
                (gradient.distance, gradient.features.f_to_device_(self.device, Kind::Float, false, false)?)
            }
            false => (0.0, features.f_zeros_like()?),
        };
        let fd = Tensor::from(fd);
        self.group.broadcast(&fd)?;
        let fd = fd.f_double_value(&[])?;
        let mut theta_bar = weights.theta.f_detach()?.f_zeros_like()?;
        if !fd.is_finite() {
            return Ok((fd, theta_bar));
        }
        self.group.broadcast(&f_bar)?;
        for draw in draws.into_iter().skip(self.group.rank()).step_by(self.group.size()) {
            self.rooms.with_gradient.in_pieces(draw, self.device, |piece| {
                let part = f_bar.f_narrow(0, piece.first as i64, piece.n as i64)?;
                let part_bar = self.backward(weights, sampler, piece, |_| Ok(part))?;
                theta_bar.f_add_(&part_bar).map(drop).map_err(Error::from)
            })?;
        }
        self.group.sum(&theta_bar)?;
        Ok((fd, theta_bar))
    }

    fn in_one_pass(&self, weights: &Weights, sampler: &SamplerConfig, draw: Draw) -> Result<(f64, Tensor)> {
        let mut fd = f64::INFINITY;
        let gradient = self.backward(weights, sampler, draw, |features| {
            let gradient = self.primary.reference.gradient(features)?;
            fd = gradient.distance;
            Ok(gradient.features)
        })?;
        let gradient = if fd.is_finite() { gradient } else { gradient.f_zeros_like()? };
        Ok((fd, gradient))
    }

    /// Features f32 [N,D] of all draws, of pixels that are not rounded.
    fn smooth_features(&self, weights: &Weights, sampler: &SamplerConfig, draws: &[Draw]) -> Result<Tensor> {
        let (net, device, room) = (self.model.bind(weights)?, self.device, &self.rooms.without_gradient);
        let rows: Vec<usize> = draws.iter().map(|draw| draw.n).collect();
        let extractor = &self.primary.extractor;
        let mut all = Vec::new();
        let chunk = |task: usize| {
            let made = room.in_pieces(draws[task], device, |Draw { seed, stream, first, n }| {
                let images = generate(&net, sampler, seed, stream, first, n, device)?.images;
                no_grad(|| extractor.forward(&leaky_clamp(&images)))
            });
            Ok(Tensor::f_cat(&made?, 0)?)
        };
        let at_once = self.model.chunks_at_once(device);
        self.group.in_turn(&rows, &no_features(&[extractor])?, at_once, chunk, |_, features| {
            all.push(features);
            Ok(true)
        })?;
        Ok(Tensor::f_cat(&all, 0)?)
    }

    /// Σ_i ⟨∂F/∂f_i, ∂f_i/∂θ⟩ over the images of a draw, where `cotangent` gives ∂F/∂f of features f [n,D].
    fn backward(
        &self,
        weights: &Weights,
        sampler: &SamplerConfig,
        draw: Draw,
        cotangent: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        generate_backward(self.model, weights, sampler, draw, self.device, |images| {
            let images = images.f_detach()?.f_set_requires_grad(true)?;
            let features = with_grad(|| self.primary.extractor.forward(&leaky_clamp(&images)))?;
            let f_bar = cotangent(&features.f_detach()?)?.f_to_device_(self.device, Kind::Float, false, false)?;
            let dot = with_grad(|| features.f_mul(&f_bar)?.f_sum(Kind::Float))?;
            let mut grads = Tensor::f_run_backward(&[dot], &[&images], false, false)?;
            // What leads nowhere (an image of NaN) must not lead astray.
            let x_bar = grads.pop().ok_or_else(|| Error::msg("no gradient with respect to the images"))?;
            Ok(x_bar.f_nan_to_num(0.0, 0.0, 0.0)?)
        })
    }
}

/// Features by each of the extractors of images that the ranks make and judge in turn: `images` gives those of a task, u8
/// `[n,C,H,W]`, or none where they are not finite, and `rows` their numbers; a rank does `at_once` of its tasks side by side. `with`
/// gets the features f32 `[n,D]` in the order of the tasks, on all ranks. False once images are not finite.
///
/// # Errors
/// Those of both functions and of the extractors; another rank is gone.
pub fn features_in_turn(
    group: &Group,
    extractors: &[&Extractor],
    rows: &[usize],
    at_once: usize,
    images: impl Fn(usize) -> Result<Option<Tensor>> + Sync,
    mut with: impl FnMut(&[Tensor]) -> Result<()>,
) -> Result<bool> {
    let dims: Vec<i64> = extractors.iter().map(|e| e.dim()).collect();
    let none = no_features(extractors)?;
    let device = none.device();
    // Features side by side; NaN in all of them stands for images that are not finite.
    let compute = |task: usize| {
        let Some(images) = images(task)? else {
            let size = [rows[task] as i64, dims.iter().sum()];
            return Ok(Tensor::f_full(size, f64::NAN, (Kind::Float, device))?);
        };
        let features = extractors.iter().map(|e| Ok(e.features(&images)?.f_to(device)?));
        Ok(Tensor::f_cat(&features.collect::<Result<Vec<_>>>()?, 1)?)
    };
    let mut all_finite = true;
    group.in_turn(rows, &none, at_once, compute, |_, features| {
        all_finite = features.f_isnan()?.f_all()?.f_int64_value(&[])? == 0;
        if all_finite {
            with(&features.f_split_with_sizes(&dims[..], 1)?)?;
        }
        Ok(all_finite)
    })?;
    Ok(all_finite)
}

/// Features f32 `[0,ΣD]`.
fn no_features(extractors: &[&Extractor]) -> Result<Tensor> {
    let device = extractors.first().map_or(Device::Cpu, |e| e.device());
    Ok(Tensor::f_empty([0, extractors.iter().map(|e| e.dim()).sum()], (Kind::Float, device))?)
}

/// The identity on [−1,1], with a small slope outside.
fn leaky_clamp(x: &Tensor) -> Tensor {
    let inside = x.clamp(-1.0, 1.0);
    &inside + (x - &inside) * LEAK
}

#[cfg(test)]
mod tests;
