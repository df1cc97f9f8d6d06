//! Search by gradient: Adam on the coefficients. The merged model is linear in α, so that ∂F/∂α = W·∂F/∂θ: one backward
//! pass through sampler and feature extractor, and one matrix-vector product.

use super::{Objective, check_positive};
use crate::candidate::{Model, Origin};
use crate::coefficients::Coefficients;
use crate::log::Evaluation;
use lcsc_torch::{Error, Invalid, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The constants of the search by gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GradientConfig {
    /// Learning rate of Adam for one network evaluation an image: it is divided by the root of their number, and falls to
    /// zero along a cosine over the budget.
    pub lr: f64,
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Images sampled a step, from fresh latents, for one network evaluation an image: they are divided by the root of
    /// their number, too, so that steps stay frequent. For D features at least D/2 are advised.
    pub images: u64,
}

impl Default for GradientConfig {
    fn default() -> Self {
        Self { lr: 0.06, betas: [0.9, 0.99], images: 250 }
    }
}

impl GradientConfig {
    pub(crate) fn validate(&self) -> Vec<Invalid> {
        check_steps(self.lr, self.betas, self.images)
    }
}

/// The constants of fine-tuning all parameters by the same loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Learning rate of Adam for one network evaluation an image, as in the search by gradient.
    pub lr: f64,
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Images sampled a step, from fresh latents, for one network evaluation an image, as in the search by gradient.
    pub images: u64,
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self { lr: 2e-4, betas: [0.9, 0.99], images: 250 }
    }
}

impl FinetuneConfig {
    pub(crate) fn validate(&self) -> Vec<Invalid> {
        check_steps(self.lr, self.betas, self.images)
    }
}

fn check_steps(lr: f64, betas: [f64; 2], images: u64) -> Vec<Invalid> {
    let betas = (!betas.iter().all(|b| (0.0..1.0).contains(b)))
        .then(|| Invalid::new("betas", format!("are {betas:?}, expected two numbers in [0, 1)")));
    let images = (images < 2).then(|| {
        Invalid::new("images", format!("is {images}, expected at least 2: a covariance is estimated from them"))
    });
    check_positive("lr", lr).into_iter().chain(betas).chain(images).collect()
}

/// The rate of a step after a fraction of the budget: `lr`/√NFE, falling along a cosine.
pub(crate) fn rate(lr: f64, nfe: usize, fraction: f64) -> f64 {
    lr / (nfe as f64).sqrt() * 0.5 * (1.0 + (std::f64::consts::PI * fraction.min(1.0)).cos())
}

/// The images of a step: `images`/√NFE, at least 2.
pub fn step_images(images: u64, nfe: usize) -> u64 {
    ((images as f64 / (nfe as f64).sqrt()).round() as u64).max(2)
}

/// A chain of steps: the candidate of the next one is known only after the last was scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdamSteps {
    first_id: u64,
    steps: u64,
}

impl AdamSteps {
    pub(super) fn new(first_id: u64) -> Self {
        Self { first_id, steps: 0 }
    }

    /// The step whose candidate has this id, if it is the next one.
    pub(super) fn ask(&self, id: u64) -> Option<u64> {
        (id == self.first_id + self.steps).then_some(self.steps)
    }

    pub(super) fn advance(&mut self) {
        self.steps += 1;
    }
}

/// α with Adam's moments (Kingma & Ba 2015), all `[G][K]`. Each row of gradient and update has its mean taken off, so
/// that Σα stays one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gradient {
    lr: f64,
    betas: [f64; 2],
    nfe: usize,
    objective: Objective,
    chain: AdamSteps,
    /// Steps with a finite gradient.
    updates: i32,
    alpha: Coefficients,
    exp_avg: Vec<Vec<f64>>,
    exp_avg_sq: Vec<Vec<f64>>,
}

/// Added to the root of the second moment.
const EPS: f64 = 1e-8;

impl Gradient {
    pub(super) fn new(config: &GradientConfig, objective: Objective, first_id: u64, nfe: usize) -> Self {
        let alpha = objective.start.clone();
        let zeros = vec![vec![0.0; alpha.checkpoints()]; alpha.groups()];
        Self {
            lr: config.lr,
            betas: config.betas,
            nfe,
            objective,
            chain: AdamSteps::new(first_id),
            updates: 0,
            alpha,
            exp_avg: zeros.clone(),
            exp_avg_sq: zeros,
        }
    }

    /// α where the chain stands.
    pub(super) fn ask(&self, id: u64) -> Option<(Origin, Coefficients)> {
        self.chain.ask(id).map(|step| (Origin::Gradient { step }, self.alpha.clone()))
    }

    /// Steps along the gradient of the evaluation; where that or the distance is not finite, α stays.
    pub(super) fn tell(&mut self, evaluation: &Evaluation, fraction: f64) -> Result<()> {
        let (Some(gradient), Model::Coefficients(_)) = (&evaluation.gradient, &evaluation.candidate.model) else {
            return Err(Error::msg(format!("candidate {} has no gradient", evaluation.candidate.id)));
        };
        self.chain.advance();
        let mut gradient = gradient.clone();
        self.objective.add_gradient(&self.alpha, &mut gradient);
        if evaluation.scores.fd.is_finite() && gradient.iter().flatten().all(|g| g.is_finite()) {
            self.step(&gradient, rate(self.lr, self.nfe, fraction))?;
        }
        Ok(())
    }

    fn step(&mut self, gradient: &[Vec<f64>], lr: f64) -> Result<()> {
        self.updates += 1;
        let [b1, b2] = self.betas;
        let (bias1, bias2) = (1.0 - b1.powi(self.updates), 1.0 - b2.powi(self.updates));
        let mut rows = self.alpha.rows().to_vec();
        for (g, row) in rows.iter_mut().enumerate() {
            let gradient = without_mean(&gradient[g]);
            let (m, v) = (&mut self.exp_avg[g], &mut self.exp_avg_sq[g]);
            for (i, d) in gradient.iter().enumerate() {
                m[i] = b1 * m[i] + (1.0 - b1) * d;
                v[i] = b2 * v[i] + (1.0 - b2) * d * d;
            }
            let update: Vec<f64> = m.iter().zip(v).map(|(m, v)| m / bias1 / ((*v / bias2).sqrt() + EPS)).collect();
            row.iter_mut().zip(without_mean(&update)).for_each(|(a, u)| *a -= lr * u);
        }
        self.alpha = Coefficients::new(&rows)?;
        Ok(())
    }
}

/// The projection onto the vectors that sum to zero.
fn without_mean(values: &[f64]) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|v| v - mean).collect()
}
