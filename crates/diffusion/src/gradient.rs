//! Gradients through a sampler, one step at a time.

use crate::generate::{Draw, Source};
use crate::model::Model;
use crate::sampler::SamplerConfig;
use crate::solver::State;
use lcsc_torch::tch::{no_grad, with_grad};
use lcsc_torch::{Device, Kind, Result, Tensor, Weights, bail};

/// ∂F/∂θ f32 `[P]` for a function F of the images of a draw: the vector-Jacobian product through the whole sampler.
///
/// `cotangent` gets the images f32 `[N,C,H,W]` without graph, those that [`generate`](crate::generate()) makes, and
/// gives ∂F/∂images f32 `[N,C,H,W]`. The result is linear in that: the gradient for many images is the sum over draws
/// that make a part of them each.
///
/// Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): the states x_0 … x_{S−1} are computed without graph,
/// then each step, from the last to the first, is computed again with one. So the memory is that of S states and the
/// graph of one step, whatever S is, and the time one more forward pass for all steps but the last. The graph of the
/// last step is alive while `cotangent` runs.
///
/// # Errors
/// `cotangent` fails or gives another shape or type, `weights` is of another layout, or the device has no room.
pub fn generate_backward(
    model: &Model,
    weights: &Weights,
    config: &SamplerConfig,
    draw: Draw,
    device: Device,
    cotangent: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let source = Source::new(config, model, draw, device)?;
    let (mut states, last) = no_grad(|| states(model, weights, &source, config.steps()))?;
    let mut step = Step::record(model, weights, &source, states.len(), &last)?;
    let images = step.next[0].f_detach()?.f_to_kind(Kind::Float)?;
    let x_bar = cotangent(&images)?;
    if x_bar.size() != images.size() || x_bar.kind() != images.kind() {
        let (found, expected) = (x_bar.size(), images.size());
        bail!("the gradient by images is {:?} of shape {found:?}, expected Float {expected:?}", x_bar.kind());
    }
    let mut bars = vec![x_bar];
    let mut theta_bar = weights.theta.f_detach()?.f_zeros_like()?;
    loop {
        let (step_bar, before) = step.backward(&bars)?;
        let _ = theta_bar.f_add_(&step_bar)?;
        let Some(state) = states.pop() else { return Ok(theta_bar) };
        bars = before;
        step = Step::record(model, weights, &source, states.len(), &state)?;
    }
}

/// The states before each of the S steps: those of the first S − 1, and that of the last.
fn states(model: &Model, weights: &Weights, source: &Source, steps: usize) -> Result<(Vec<State>, State)> {
    let net = model.bind(weights)?;
    let (mut states, mut state) = (Vec::new(), source.first_state());
    for i in 0..steps.saturating_sub(1) {
        let next = source.step(&net, i, &state)?;
        states.push(std::mem::replace(&mut state, next));
    }
    Ok((states, state))
}

/// One step of the sampler with its graph.
struct Step {
    /// Leaf f32 [P].
    theta: Tensor,
    /// Leaves: the state before; none for the first step, whose state depends on nothing.
    before: State,
    next: State,
}

impl Step {
    fn record(model: &Model, weights: &Weights, source: &Source, i: usize, state: &State) -> Result<Self> {
        let theta = weights.theta.f_detach()?.f_set_requires_grad(true)?;
        let leaf = |t: &Tensor| Ok(t.f_detach()?.f_set_requires_grad(i > 0)?);
        let state = state.iter().map(leaf).collect::<Result<State>>()?;
        let next = with_grad(|| {
            let net = model.bind(&weights.with_theta(theta.shallow_clone()))?;
            source.step(&net, i, &state)
        })?;
        Ok(Self { theta, before: if i > 0 { state } else { vec![] }, next })
    }

    /// ∂F by the state after the step → (the step's part of ∂F/∂θ, ∂F by the state before it); frees the graph.
    fn backward(self, bars: &[Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
        // The gradient of Σ x·x̄ with x̄ held fixed is the product with x̄.
        let dot = |(x, bar): (&Tensor, &Tensor)| Ok(x.f_mul(&bar.f_detach()?.f_to_kind(x.kind())?)?.f_sum(x.kind())?);
        let dots = with_grad(|| self.next.iter().zip(bars).map(dot).collect::<Result<Vec<_>>>())?;
        let dot = with_grad(|| Tensor::f_stack(&dots, 0)?.f_sum(None::<Kind>))?;
        let inputs: Vec<&Tensor> = std::iter::once(&self.theta).chain(&self.before).collect();
        let mut grads = Tensor::f_run_backward(&[dot], &inputs, false, false)?;
        let before = grads.split_off(1);
        Ok((grads.swap_remove(0), before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PreconditioningConfig;
    use crate::model::{Conditioning, one_hot, random_classes};
    use crate::sampler::{Churn, ConsistencyConfig, DpmConfig, GridConfig, OdeConfig};
    use crate::{generate, sample};
    use lcsc_torch::{Error, Precision, Stream, derive_seed, latents};
    use lcsc_unet::{ImageShape, NetworkConfig, SongUNetConfig};

    const IMAGE: ImageShape = ImageShape { channels: 1, resolution: 8, label_dim: 3 };
    const DRAW: Draw = Draw { seed: 5, stream: Stream::SearchLatents, first: 7, n: 2 };

    fn model(precision: Precision) -> (Model, Weights) {
        let network = NetworkConfig::Song(SongUNetConfig { model_channels: 8, ..SongUNetConfig::tiny() });
        let model = Model::new(&network, &PreconditioningConfig::default(), IMAGE, precision);
        let initial = model.layout.init(0, Device::Cpu).unwrap();
        // The initial weights of last layers are nearly zero, and so would be the gradients before them.
        let weights = initial.with_theta(&initial.theta + 0.02);
        (model, weights)
    }

    fn consistency(mid_sigmas: &[f64]) -> SamplerConfig {
        SamplerConfig::Consistency(ConsistencyConfig { mid_sigmas: mid_sigmas.to_vec(), ..Default::default() })
    }

    fn ode(steps: usize, s_churn: f64) -> OdeConfig {
        OdeConfig { steps, churn: Churn { s_churn, ..Churn::default() }, ..OdeConfig::default() }
    }

    /// Each with the evaluations of the network that it takes.
    fn samplers() -> [(SamplerConfig, usize); 9] {
        let dpm = |steps, multistep| {
            SamplerConfig::Dpmpp(DpmConfig {
                steps,
                multistep,
                sigma_min: 0.1,
                sigma_max: 10.0,
                ..DpmConfig::default()
            })
        };
        let grid = |guidance| GridConfig { steps: 3, guidance, ..GridConfig::default() };
        [
            (consistency(&[]), 1),
            (consistency(&[0.821]), 2),
            (SamplerConfig::Heun(ode(3, 0.0)), 5),
            (SamplerConfig::Euler(ode(4, 0.0)), 4),
            (SamplerConfig::Heun(ode(3, 1.0)), 5),
            (SamplerConfig::Ddim(grid(Some(1.5))), 6),
            (SamplerConfig::Ancestral(grid(None)), 3),
            (dpm(5, true), 5),
            (dpm(4, false), 4),
        ]
    }

    fn c() -> Tensor {
        latents(1, Stream::Noise, 0, DRAW.n, IMAGE.chw(), Device::Cpu).unwrap()
    }

    /// F = Σ images·c + Σ images².
    fn f(images: &Tensor) -> Tensor {
        (images * c() + images.square()).sum(Kind::Double)
    }

    /// ∂F/∂θ by [`generate_backward`], and the images that it showed.
    fn checkpointed(model: &Model, weights: &Weights, config: &SamplerConfig) -> (Tensor, Tensor) {
        let mut shown = None;
        let grad = generate_backward(model, weights, config, DRAW, Device::Cpu, |images| {
            shown = Some(images.copy());
            Ok(c() + images * 2.0)
        });
        (grad.unwrap(), shown.unwrap())
    }

    /// ∂F/∂θ by one graph over the whole sampler.
    fn whole_graph(model: &Model, weights: &Weights, config: &SamplerConfig) -> Tensor {
        let theta = weights.theta.detach().set_requires_grad(true);
        let net = model.bind(&weights.with_theta(theta.shallow_clone())).unwrap();
        let Draw { seed, stream, first, n } = DRAW;
        let stream_seed = derive_seed(seed, stream, 0);
        let z = |seed, stream| latents(seed, stream, first, n, IMAGE.chw(), Device::Cpu).unwrap();
        let classes = random_classes(stream_seed, first, n, IMAGE.label_dim, Device::Cpu);
        let conditioning = Conditioning { labels: one_hot(classes.as_ref(), IMAGE.label_dim), augment_labels: None };
        let denoise = |x: &Tensor, sigma: f64| {
            let sigma = Tensor::full([n as i64], sigma, (Kind::Float, Device::Cpu));
            let conditional = net.denoise(x, &sigma, config.scalings(), &conditioning, false);
            let unconditional = || net.denoise(x, &sigma, config.scalings(), &Conditioning::default(), false);
            match config.guidance() {
                Some(w) => conditional * w + unconditional() * (1.0 - w),
                None => conditional,
            }
        };
        let noise = |i: usize| z(derive_seed(stream_seed, Stream::SamplerNoise, i as u64), Stream::SamplerNoise);
        let images = sample(config, &model.preconditioning, &z(seed, stream), denoise, noise).images;
        Tensor::run_backward(&[f(&images)], &[&theta], false, false).remove(0)
    }

    fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
        (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[])
    }

    #[test]
    fn step_by_step_equals_one_graph_over_the_whole_sampler() {
        let (model, weights) = model(Precision::F32);
        for (config, _) in samplers() {
            let (found, expected) = (checkpointed(&model, &weights, &config).0, whole_graph(&model, &weights, &config));
            assert_eq!((found.size(), found.kind(), found.requires_grad()), (expected.size(), Kind::Float, false));
            let error = relative_error(&found, &expected);
            assert!(error <= 1e-5, "{config:?}: {error}");
        }
    }

    #[test]
    fn the_images_are_those_of_generate() {
        for precision in [Precision::F32, Precision::Bf16] {
            let (model, weights) = model(precision);
            let net = model.bind(&weights).unwrap();
            for (config, nfe) in samplers() {
                let Draw { seed, stream, first, n } = DRAW;
                let made = generate(&net, &config, seed, stream, first, n, Device::Cpu).unwrap();
                assert_eq!((made.nfe, config.nfe()), (nfe, nfe));
                assert!(made.images.equal(&checkpointed(&model, &weights, &config).1), "{config:?} {precision:?}");
            }
        }
    }

    #[test]
    fn a_small_step_along_the_gradient_changes_f_as_it_says() {
        let (model, weights) = model(Precision::F32);
        let config = SamplerConfig::Heun(ode(3, 1.0));
        let grad = checkpointed(&model, &weights, &config).0;
        let slope = grad.norm().double_value(&[]);
        let at = |h: f64| {
            let moved = weights.with_theta(&weights.theta + &grad * (h / slope));
            f(&checkpointed(&model, &moved, &config).1).double_value(&[])
        };
        let h = 1e-3;
        let found = (at(h) - at(-h)) / (2.0 * h);
        println!("{found} {slope}");
        assert!((found / slope - 1.0).abs() < 1e-3, "{found} instead of {slope}");
    }

    #[test]
    fn bf16_has_gradients_of_its_precision() {
        let (model, weights) = model(Precision::Bf16);
        let config = consistency(&[0.821]);
        let (found, expected) = (checkpointed(&model, &weights, &config).0, whole_graph(&model, &weights, &config));
        assert_eq!(found.kind(), Kind::Float);
        // The one graph adds up both steps in bf16.
        let error = relative_error(&found, &expected);
        println!("{error}");
        assert!(error < 1e-2, "{error}");
    }

    #[test]
    fn a_cotangent_that_fails_or_does_not_fit_is_an_error() {
        let (model, weights) = model(Precision::F32);
        let run = |cotangent: fn(&Tensor) -> Result<Tensor>| {
            let made = generate_backward(&model, &weights, &consistency(&[]), DRAW, Device::Cpu, cotangent);
            made.unwrap_err().to_string()
        };
        assert_eq!(run(|_| Err(Error::msg("no features"))), "no features");
        let text = run(|images| Ok(images.sum(Kind::Float)));
        assert!(text.contains("shape []") && text.contains("[2, 1, 8, 8]"), "{text}");
        let text = run(|images| Ok(images.to_kind(Kind::Double)));
        assert!(text.contains("Double") && text.contains("Float"), "{text}");
    }
}
