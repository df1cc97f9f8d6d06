//! Covariance matrix adaptation (Hansen, arXiv 1604.00772) as ask and tell: the (μ/μ_w, λ)-CMA-ES with positive
//! weights, rank-one and rank-μ update, and cumulative step-size adaptation.
//!
//! Equation numbers are the tutorial's. In four details this follows its author's short implementation, `cma.purecma`:
//! the step size compares ‖p_σ‖² with its expectation n, not ‖p_σ‖ with an approximation of E‖N(0, I)‖, and grows at
//! most e-fold at once; h_σ compares the same squares; the damping d_σ is a simpler formula; c_μ lacks the 1/4 of the
//! tutorial's second version.
//!
//! Unlike both, this decomposes C every generation (a tenth of a second for n = 500) and samples by the symmetric
//! C^(1/2) = B·D·Bᵀ: the distribution is that of B·D, without the arbitrary signs and order of eigenvectors.

use super::check_positive;
use crate::score::worst_if_not_finite;
use lcsc_torch::Invalid;
use nalgebra::{DMatrix, DVector};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The constants of the CMA-ES.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CmaEsConfig {
    /// Standard deviation of every coordinate at the start, σ; a positive number.
    pub sigma: f64,
    /// Candidates a generation, λ, at least 2; 4 + ⌊3 ln n⌋ unless given.
    pub population: Option<usize>,
}

impl Default for CmaEsConfig {
    fn default() -> Self {
        Self { sigma: 0.05, population: None }
    }
}

impl CmaEsConfig {
    pub(crate) fn validate(&self) -> Vec<Invalid> {
        let population = self.population.filter(|n| *n < 2);
        let population = population.map(|n| Invalid::new("population", format!("is {n}, expected at least 2")));
        check_positive("sigma", self.sigma).into_iter().chain(population).collect()
    }
}

/// The greatest ratio of eigenvalues of C; beyond it, the small ones are rounding errors.
const MAX_CONDITION: f64 = 1e14;
/// σ stays within this factor of its initial value.
const SIGMA_RANGE: f64 = 1e20;

/// The state of the search: the distribution N(m, σ²C) of the next candidates, and the paths it has taken.
///
/// A point depends on this state and its normal numbers alone, so that telling the same scores again restores the
/// search. Every number of it stays finite: a generation that would end this, and one without any finite score, is
/// counted but teaches nothing. JSON keeps every bit (with serde_json's `float_roundtrip`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CmaEs {
    config: CmaEsConfig,
    /// g, from 0.
    generation: u64,
    /// m [n]
    mean: DVector<f64>,
    /// σ
    sigma: f64,
    /// p_σ [n]
    p_sigma: DVector<f64>,
    /// p_c [n]
    p_c: DVector<f64>,
    /// C [n,n]; the decomposition reads its lower triangle.
    c: DMatrix<f64>,
    /// Eigenvectors of C in columns, B [n,n]
    b: DMatrix<f64>,
    /// Square roots of the eigenvalues of C, D [n]
    d: DVector<f64>,
}

impl CmaEs {
    /// N(`mean`, σ²I).
    pub fn new(config: &CmaEsConfig, mean: Vec<f64>) -> Self {
        let n = mean.len();
        Self {
            config: config.clone(),
            generation: 0,
            mean: DVector::from_vec(mean),
            sigma: config.sigma,
            p_sigma: DVector::zeros(n),
            p_c: DVector::zeros(n),
            c: DMatrix::identity(n, n),
            b: DMatrix::identity(n, n),
            d: DVector::repeat(n, 1.0),
        }
    }

    /// Points of a generation, λ (eq. 48).
    pub fn population(&self) -> usize {
        let usual = || 4 + (3.0 * (self.mean.len() as f64).ln()) as usize;
        self.config.population.unwrap_or_else(usual).max(2)
    }

    /// Generations told so far.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The centre of the present generation, m `[n]`: the best estimate of the optimum where scores are noisy.
    pub fn mean(&self) -> &[f64] {
        self.mean.as_slice()
    }

    /// The step size of the present generation, σ.
    pub fn sigma(&self) -> f64 {
        self.sigma
    }

    /// A point `[n]` of the present generation, m + σ·C^(1/2)·z (eq. 38–40), for z `[n]` of numbers that are N(0, 1).
    pub fn point(&self, mut standard_normal: impl FnMut() -> f64) -> Vec<f64> {
        let z = DVector::from_fn(self.mean.len(), |_, _| standard_normal());
        let x = &self.mean + self.scaled(&z, |d| d) * self.sigma;
        x.as_slice().to_vec()
    }

    /// Ends the generation: its λ points with their scores. Smaller is better; scores that are not finite are worst,
    /// and equal ones rank in the order given.
    ///
    /// A point that is missing, not finite or of another length counts as the mean.
    pub fn tell(&mut self, scored: &[(Vec<f64>, f64)]) {
        let mut ranked: Vec<_> = scored.iter().map(|(x, score)| (x, worst_if_not_finite(*score))).collect();
        ranked.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        if ranked.first().is_some_and(|(_, best)| best.is_finite()) {
            let y: Vec<_> = ranked.iter().map(|(x, _)| self.step(x)).collect();
            if let Some(next) = self.updated(&y) {
                *self = next;
            }
        }
        self.generation += 1;
    }

    /// y = (x − m)/σ
    fn step(&self, x: &[f64]) -> DVector<f64> {
        match x.len() == self.mean.len() && x.iter().all(|v| v.is_finite()) {
            true => (DVector::from_column_slice(x) - &self.mean) / self.sigma,
            false => DVector::zeros(self.mean.len()),
        }
    }

    /// The distribution after the steps `y` of a generation, best first; none if it is not finite.
    fn updated(&self, y: &[DVector<f64>]) -> Option<Self> {
        let Parameters { weights, mu_eff, c_c, c_sigma, d_sigma, c_1, c_mu } =
            Parameters::new(self.mean.len(), self.population());
        let n = self.mean.len() as f64;
        let y_w = y.iter().zip(&weights).fold(DVector::zeros(self.mean.len()), |sum, (y, w)| sum + y * *w); // eq. 41
        let mut next = self.clone();

        // eq. 42, c_m = 1
        next.mean.axpy(self.sigma, &y_w, 1.0);

        // eq. 43
        let whitened = self.scaled(&y_w, |d| 1.0 / d);
        next.p_sigma.axpy((c_sigma * (2.0 - c_sigma) * mu_eff).sqrt(), &whitened, 1.0 - c_sigma);

        // eq. 44, squared; `length` is 1 in expectation under random selection
        let length = next.p_sigma.norm_squared() / n;
        next.sigma *= (c_sigma / d_sigma * (length - 1.0) / 2.0).min(1.0).exp();
        next.sigma = next.sigma.max(self.config.sigma / SIGMA_RANGE).min(self.config.sigma * SIGMA_RANGE);

        // eq. 45; h_σ stalls p_c while σ grows fast, allowing for p_σ = 0 at the start
        let started = 1.0 - (1.0 - c_sigma).powf(2.0 * (self.generation + 1) as f64);
        let h_sigma = if length / started < 2.0 + 4.0 / (n + 1.0) { 1.0 } else { 0.0 };
        next.p_c.axpy(h_sigma * (c_c * (2.0 - c_c) * mu_eff).sqrt(), &y_w, 1.0 - c_c);

        // eq. 47; δ(h_σ) makes up for the variance that a stalled p_c lacks
        let delta = (1.0 - h_sigma) * c_c * (2.0 - c_c);
        next.c *= 1.0 + c_1 * delta - c_1 - c_mu;
        next.c.ger(c_1, &next.p_c, &next.p_c, 1.0);
        y.iter().zip(&weights).for_each(|(y, w)| next.c.ger(c_mu * w, y, y, 1.0));

        next.decomposed()
    }

    /// With B and D of its C = B·D²·Bᵀ, C lifted to a bearable condition; none if a number is not finite.
    fn decomposed(mut self) -> Option<Self> {
        let numbers = [&self.mean, &self.p_sigma, &self.p_c].into_iter().flatten().chain(&self.c);
        if self.mean.is_empty() || !numbers.chain([&self.sigma]).all(|v| v.is_finite()) {
            return None;
        }
        let n = self.mean.len();
        let eigen = self.c.clone().try_symmetric_eigen(f64::EPSILON, 100 * n)?;
        let lift = (eigen.eigenvalues.max() / MAX_CONDITION - eigen.eigenvalues.min()).max(0.0);
        (0..n).for_each(|i| self.c[(i, i)] += lift);
        self.d = eigen.eigenvalues.map(|e| (e + lift).sqrt());
        self.b = eigen.eigenvectors;
        self.d.iter().all(|d| d.is_finite() && *d > 0.0).then_some(self)
    }

    /// B·f(D)·Bᵀ·v [n]
    fn scaled(&self, v: &DVector<f64>, f: impl Fn(f64) -> f64) -> DVector<f64> {
        let mut rotated = self.b.tr_mul(v);
        rotated.zip_apply(&self.d, |x, d| *x *= f(d));
        &self.b * rotated
    }
}

/// The strategy parameters for dimension n and population λ (tutorial, table 1).
struct Parameters {
    /// w_1 ≥ … ≥ w_μ > 0, Σw = 1
    weights: Vec<f64>,
    mu_eff: f64,
    c_c: f64,
    c_sigma: f64,
    d_sigma: f64,
    c_1: f64,
    c_mu: f64,
}

impl Parameters {
    fn new(n: usize, population: usize) -> Self {
        let (n, lambda) = (n as f64, population as f64);
        let raw = (1..=population / 2).map(|i| ((lambda + 1.0) / 2.0).ln() - (i as f64).ln()); // eq. 49
        let sum: f64 = raw.clone().sum();
        let weights: Vec<f64> = raw.map(|w| w / sum).collect(); // eq. 53, positive ones
        let mu_eff = 1.0 / weights.iter().map(|w| w * w).sum::<f64>();
        let c_sigma = (mu_eff + 2.0) / (n + mu_eff + 5.0); // eq. 55
        let d_sigma = 2.0 * mu_eff / lambda + 0.3 + c_sigma; // purecma; usually close to 1
        let c_c = (4.0 + mu_eff / n) / (n + 4.0 + 2.0 * mu_eff / n); // eq. 56
        let c_1 = 2.0 / ((n + 1.3).powi(2) + mu_eff); // eq. 57
        let c_mu = 2.0 * (mu_eff - 2.0 + 1.0 / mu_eff) / ((n + 2.0).powi(2) + mu_eff); // eq. 58, purecma
        let c_mu = c_mu.min(1.0 - c_1);
        Self { weights, mu_eff, c_c, c_sigma, d_sigma, c_1, c_mu }
    }
}
