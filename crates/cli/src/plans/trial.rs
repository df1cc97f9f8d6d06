//! The trial of plans, in a process of its own: each computes the same, is compared with the plain one, and timed.

use super::{Finding, Found, Trial};
use crate::bench::median;
use crate::{Ended, session};
use lcsc_diffusion::{Conditioning, Denoiser, Model, Scalings, edm_loss, one_hot, random_classes};
use lcsc_torch::tch::no_grad;
use lcsc_torch::{
    Device, DeviceChoice, Error, Group, Kind, Plan, Precision, Result, Stream, Tensor, Weights, allow_tf32, catch,
    latents, seed_torch, synchronize,
};
use miette::IntoDiagnostic;
use std::io::Write;
use std::time::{Duration, Instant};

/// Repeats of a plan that are timed, and how long they take at least.
const REPEATS: usize = 5;
const AT_LEAST: Duration = Duration::from_millis(300);
/// Images of the gradient that is compared where none is repeated.
const GRADIENT_IMAGES: i64 = 8;
/// σ_data of EDM, which the loss of a trial is weighted with whatever the preconditioning.
const SIGMA_DATA: f64 = 0.5;

/// `lcsc try-plans`: reads a [`Trial`] as JSON from standard input, and prints a [`Finding`] a line, before and after each plan.
pub fn command(device: DeviceChoice) -> miette::Result<Ended> {
    let trial: Trial = serde_json::from_reader(std::io::stdin()).into_diagnostic()?;
    let device = session::machine(device, None, &Group::alone())?;
    allow_tf32(trial.precision == Precision::Tf32).into_diagnostic()?;
    let work = Work::new(&trial, device).into_diagnostic()?;
    let mut plain = None;
    for (index, &plan) in trial.plans.iter().enumerate() {
        tell(&Finding { index, found: Found::Begins })?;
        let found = catch("trying a plan", || {
            let model = trial.model(plan);
            let repeated = work.of(&model)?;
            let Outcome { loss, direction } = repeated()?;
            let mut own = vec![direction];
            if !trial.trains {
                own.push(work.gradient(&model)?.direction);
            }
            let plain = plain.get_or_insert_with(|| own.iter().map(Tensor::shallow_clone).collect::<Vec<_>>());
            let cosines = own.iter().zip(plain.iter()).map(|(own, plain)| cosine(own, plain));
            let cosine = cosines.collect::<Result<Vec<_>>>()?.into_iter().fold(1.0, f64::min);
            Ok(Found::Took { seconds: seconds(&repeated, device)?, loss, cosine })
        });
        let failed = found.is_err();
        tell(&Finding { index, found: found.unwrap_or_else(|e| Found::Failed(e.to_string())) })?;
        if failed {
            // It may have left the GPU's context unusable: a new process tries the rest.
            break;
        }
    }
    Ok(Ended::Done)
}

/// The reader of the line takes a process that ends without it for one that crashed.
fn tell(finding: &Finding) -> miette::Result<()> {
    let mut out = std::io::stdout();
    let line = serde_json::to_string(finding).into_diagnostic()?;
    writeln!(out, "{line}").and_then(|()| out.flush()).into_diagnostic()
}

/// What all plans of a trial compute.
struct Work<'t> {
    trial: &'t Trial,
    weights: Weights,
    images: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
}

/// What a plan gives.
#[derive(Debug)]
struct Outcome {
    loss: f64,
    /// The gradient of all parameters, or where the trial does not train the denoised images; flat.
    direction: Tensor,
}

impl<'t> Work<'t> {
    fn new(trial: &'t Trial, device: Device) -> Result<Self> {
        let (n, image) = (trial.images.max(1) as usize, trial.image);
        let model = trial.model(Plan::PLAIN);
        let initial = model.layout.init(0, device)?;
        // Layers that begin at zero would hide what lies before them.
        seed_torch(0, Stream::Init, 0);
        let noise = Tensor::f_randn([model.layout.numel()], (Kind::Float, device))?;
        let draw = |stream| latents(0, stream, 0, n, image.chw(), device);
        let classes = random_classes(0, 0, n, image.label_dim, device);
        Ok(Self {
            weights: initial.with_theta(initial.theta.f_add(&noise.f_mul_scalar(0.02)?)?),
            images: draw(Stream::SampleLatents)?.f_clamp(-1.0, 1.0)?,
            noise: draw(Stream::Noise)?,
            sigma: latents(0, Stream::Noise, 0, n, [1, 1, 1], device)?.f_view([-1])?.f_exp()?,
            conditioning: Conditioning { labels: one_hot(classes.as_ref(), image.label_dim), augment_labels: None },
            trial,
        })
    }

    /// What is repeated: of training a round with its weights, of sampling an evaluation, of which each set of weights has many.
    fn of<'w>(&'w self, model: &'w Model) -> Result<Box<dyn Fn() -> Result<Outcome> + 'w>> {
        if self.trial.trains {
            return Ok(Box::new(|| self.gradient(model)));
        }
        let net = model.bind(&self.weights)?;
        Ok(Box::new(move || no_grad(|| self.denoised(&net))))
    }

    /// Loss and gradient as a round of training takes them, without dropout: its mask depends on the plan. Where the trial does
    /// not train, of a few images: a search by gradient takes them, in pieces of its own.
    fn gradient(&self, model: &Model) -> Result<Outcome> {
        let n = if self.trial.trains { self.images.size()[0] } else { self.images.size()[0].min(GRADIENT_IMAGES) };
        let first = |t: &Tensor| t.f_narrow(0, 0, n);
        let labels = self.conditioning.labels.as_ref().map(first).transpose()?;
        let conditioning = Conditioning { labels, augment_labels: None };
        let [images, sigma, noise] = [first(&self.images)?, first(&self.sigma)?, first(&self.noise)?];
        let kind = self.trial.precision.kind();
        let leaf = self.weights.theta.f_detach()?.f_to_kind(kind)?.f_set_requires_grad(true)?;
        let net = model.bind(&self.weights.with_theta(leaf.shallow_clone()))?;
        let denoise = |x: &Tensor, s: &Tensor| net.denoise(x, s, Scalings::Plain, &conditioning, false);
        let loss = edm_loss(denoise, &images, &sigma, &noise, SIGMA_DATA).f_mean(Kind::Float)?;
        let direction = Tensor::f_run_backward(&[&loss], &[&leaf], false, false)?.remove(0);
        Ok(Outcome { loss: loss.f_double_value(&[])?, direction })
    }

    /// The images that one evaluation of the network makes of noisy ones.
    fn denoised(&self, net: &Denoiser) -> Result<Outcome> {
        let x = &self.images + &self.noise * self.sigma.f_view([-1, 1, 1, 1])?;
        let images = net.denoise(&x, &self.sigma, Scalings::Plain, &self.conditioning, false);
        let loss = (&images - &self.images).f_square()?.f_mean(Kind::Float)?.f_double_value(&[])?;
        Ok(Outcome { loss, direction: images.f_flatten(0, -1)? })
    }
}

/// The median of some repeats.
fn seconds(work: impl Fn() -> Result<Outcome>, device: Device) -> Result<f64> {
    work()?;
    synchronize(device);
    let (mut seconds, first) = (Vec::new(), Instant::now());
    while seconds.len() < REPEATS || first.elapsed() < AT_LEAST {
        let began = Instant::now();
        work()?;
        synchronize(device);
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(median(&seconds))
}

/// ⟨a,b⟩/(‖a‖·‖b‖).
fn cosine(a: &Tensor, b: &Tensor) -> Result<f64> {
    let dot = |x: &Tensor, y: &Tensor| -> Result<f64> { Ok(x.f_mul(y)?.f_sum(Kind::Float)?.f_double_value(&[])?) };
    let [a, b] = [a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?];
    let norms = dot(&a, &a)? * dot(&b, &b)?;
    if norms > 0.0 && norms.is_finite() {
        Ok(dot(&a, &b)? / norms.sqrt())
    } else {
        Err(Error::msg("a gradient is zero or not finite"))
    }
}
