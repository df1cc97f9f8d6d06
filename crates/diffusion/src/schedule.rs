//! Noise schedules of networks that predict the noise: time steps and their σ = √((1−ᾱ)/ᾱ).

use crate::precond::{DdpmPreconditioning, IddpmPreconditioning, VpPreconditioning};
use lcsc_torch::{Device, Kind, Tensor};
use std::f64::consts::FRAC_PI_2;
use std::sync::{Mutex, PoisonError};

/// σ(t) = √(exp(½·β_d·t² + β_min·t) − 1) (Song et al. 2021; Karras et al. 2022, table 1).
#[derive(Debug)]
pub struct VpSchedule(pub(crate) VpPreconditioning);

impl VpSchedule {
    pub(crate) fn sigma(&self, t: f64) -> f64 {
        (0.5 * self.0.beta_d * t * t + self.0.beta_min * t).exp_m1().sqrt()
    }

    pub(crate) fn time(&self, sigma: f64) -> f64 {
        let VpPreconditioning { beta_d, beta_min, .. } = self.0;
        ((beta_min * beta_min + 2.0 * beta_d * (sigma * sigma).ln_1p()).sqrt() - beta_min) / beta_d
    }

    /// (M−1)·t for σ f32 [B].
    pub(crate) fn c_noise(&self, sigma: &Tensor) -> Tensor {
        let VpPreconditioning { beta_d, beta_min, m, .. } = self.0;
        let t = ((sigma.square().log1p() * (2.0 * beta_d) + beta_min * beta_min).sqrt() - beta_min) / beta_d;
        t * (m - 1) as f64
    }
}

/// A table of σ of time steps 0 … M−1, rising.
#[derive(Debug)]
pub struct DiscreteSchedule {
    sigmas: Vec<f64>,
    /// ln α = −½·ln(1+σ²) of each, falling.
    log_alphas: Vec<f64>,
    /// σ and −ln α of each, f64 [2,M], on the device that asked last: the network asks at every call.
    table: Mutex<Tensor>,
}

impl DiscreteSchedule {
    /// Ho et al. 2020: ᾱ_t = Π (1−β_i).
    pub(crate) fn linear(config: &DdpmPreconditioning) -> Self {
        let last = (config.steps - 1) as f64;
        let beta = |i: u64| config.beta_start + (config.beta_end - config.beta_start) * i as f64 / last;
        let mut log_alpha_bar = 0.0;
        let sigma = |i| {
            log_alpha_bar += (-beta(i)).ln_1p();
            (-log_alpha_bar).exp_m1().sqrt()
        };
        Self::new((0..config.steps).map(sigma).collect())
    }

    /// Nichol & Dhariwal 2021 as EDM writes it: u_{j−1} = √((u_j²+1)/max(ᾱ_{j−1}/ᾱ_j, C₁) − 1), u_M = 0.
    pub(crate) fn cosine(config: &IddpmPreconditioning) -> Self {
        let alpha_bar = |j: u64| (FRAC_PI_2 * j as f64 / (config.m as f64 * (config.c_2 + 1.0))).sin().powi(2);
        let mut u = 0.0f64;
        let sigma = |j: u64| {
            u = ((u * u + 1.0) / (alpha_bar(j - 1) / alpha_bar(j)).max(config.c_1) - 1.0).sqrt();
            u
        };
        Self::new((1..=config.m).rev().map(sigma).collect())
    }

    fn new(sigmas: Vec<f64>) -> Self {
        let log_alphas: Vec<f64> = sigmas.iter().map(|&s| log_alpha(s)).collect();
        let rows: Vec<f64> = sigmas.iter().copied().chain(log_alphas.iter().map(|a| -a)).collect();
        let table = Mutex::new(Tensor::from_slice(&rows).view([2, -1]));
        Self { sigmas, log_alphas, table }
    }

    /// σ of each time step, rising.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// σ of the first and last time step.
    pub(crate) fn range(&self) -> (f64, f64) {
        (self.sigmas[0], self.sigmas[self.sigmas.len() - 1])
    }

    /// σ and −ln α of each time step, f64 [M] both, on a device.
    pub(crate) fn table(&self, device: Device) -> [Tensor; 2] {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.device() != device {
            *table = table.to(device);
        }
        [table.get(0), table.get(1)]
    }

    pub(crate) fn nearest(&self, sigma: f64) -> f64 {
        let after = self.sigmas.partition_point(|&s| s < sigma).min(self.sigmas.len() - 1);
        let before = after.saturating_sub(1);
        let closer = (sigma - self.sigmas[before]).abs() < (self.sigmas[after] - sigma).abs();
        self.sigmas[if closer { before } else { after }]
    }

    /// (step + 1)/M, between steps linear in ln α (Lu et al. 2022, DPM-Solver, appendix D.4).
    pub(crate) fn time(&self, sigma: f64) -> f64 {
        let (i, part) = position(&self.log_alphas, log_alpha(sigma));
        (i as f64 + part + 1.0) / self.sigmas.len() as f64
    }

    /// The inverse of [`Self::time`].
    pub(crate) fn sigma(&self, time: f64) -> f64 {
        let step = (time * self.sigmas.len() as f64 - 1.0).clamp(0.0, (self.sigmas.len() - 1) as f64);
        let i = (step as usize).min(self.sigmas.len() - 2);
        let (a, b) = (self.log_alphas[i], self.log_alphas[i + 1]);
        (-2.0 * (a + (b - a) * (step - i as f64))).exp_m1().sqrt()
    }

    /// The nearest time step of σ f32 [B], f32 [B].
    pub(crate) fn nearest_step(&self, sigma: &Tensor) -> Tensor {
        let table = self.table(sigma.device())[0].to_kind(Kind::Float);
        let (sigma, table) = (sigma.reshape([-1, 1]), table.reshape([1, -1]));
        (sigma - table).abs().argmin(1i64, false).to_kind(Kind::Float)
    }

    /// The time step of σ f32 [B], between steps linear in ln α, f64 [B].
    pub(crate) fn interpolated_step(&self, sigma: &Tensor) -> Tensor {
        let [_, table] = self.table(sigma.device());
        let x = sigma.flatten(0, -1).to_kind(Kind::Double).square().log1p() * 0.5;
        let last = self.sigmas.len() as i64 - 2;
        let i = (Tensor::bucketize(&x, &table, false, false) - 1).clamp(0, last);
        let (a, b) = (table.index_select(0, &i), table.index_select(0, &(&i + 1)));
        i.to_kind(Kind::Double) + ((x - &a) / (b - a)).clamp(0.0, 1.0)
    }
}

fn log_alpha(sigma: f64) -> f64 {
    -0.5 * (sigma * sigma).ln_1p()
}

/// Where a value lies in a falling table: the entry before it and the part of the way to the next.
fn position(table: &[f64], value: f64) -> (usize, f64) {
    let i = table.partition_point(|&a| a > value).saturating_sub(1).min(table.len() - 2);
    (i, ((table[i] - value) / (table[i] - table[i + 1])).clamp(0.0, 1.0))
}
