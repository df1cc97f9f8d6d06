//! Samplers: from unit normal latents to images. Time steps and the state of the ODE samplers are float64.

use crate::model::{Conditioning, Denoiser, one_hot, random_classes};
use crate::precond::Scalings;
use lcsc_torch::{Device, Invalid, Kind, Result, Stream, Tensor, derive_seed, latents};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How images are made from noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SamplerConfig {
    /// Heun's second-order method, with optional churn (Karras et al. 2022, algorithms 1 and 2).
    Heun(OdeConfig),
    /// Euler's method on the same grid, with the same optional churn.
    Euler(OdeConfig),
    /// Consistency sampling in one or more steps (Song et al. 2023, algorithm 1).
    Consistency(ConsistencyConfig),
}

/// Solving the probability-flow ODE; defaults are EDM's for CIFAR-10.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OdeConfig {
    /// Time steps; the NFE is 2·steps − 1 with Heun's method, the same number with Euler's.
    pub steps: usize,
    /// Lowest noise level before 0.
    pub sigma_min: f64,
    /// Highest noise level.
    pub sigma_max: f64,
    /// Exponent of the grid.
    pub rho: f64,
    /// Noise added on the way; all zero gives the deterministic sampler.
    pub churn: Churn,
}

/// The stochastic part of EDM's sampler.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Churn {
    /// S_churn: amount of noise over all steps; 0 adds none.
    pub s_churn: f64,
    /// S_tmin: lowest noise level at which it is added.
    pub s_min: f64,
    /// S_tmax: highest noise level at which it is added.
    pub s_max: f64,
    /// S_noise: standard deviation of the added noise.
    pub s_noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Self { s_churn: 0.0, s_min: 0.0, s_max: 1e9, s_noise: 1.0 }
    }
}

impl Default for OdeConfig {
    fn default() -> Self {
        Self { steps: 18, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0, churn: Churn::default() }
    }
}

/// Consistency sampling with the boundary scalings at `sigma_min`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConsistencyConfig {
    /// Noise level of the first step.
    pub sigma_max: f64,
    /// Noise levels of further steps, falling; the NFE is one more than their number.
    pub mid_sigmas: Vec<f64>,
    /// The noise level at which the model is the identity.
    pub sigma_min: f64,
}

impl Default for ConsistencyConfig {
    fn default() -> Self {
        Self { sigma_max: 80.0, mid_sigmas: vec![], sigma_min: 0.003 }
    }
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self::Heun(OdeConfig::default())
    }
}

impl SamplerConfig {
    /// Network evaluations an image.
    pub fn nfe(&self) -> usize {
        match self {
            Self::Heun(c) => 2 * c.steps - 1,
            Self::Euler(c) => c.steps,
            Self::Consistency(c) => 1 + c.mid_sigmas.len(),
        }
    }

    /// The scalings that it samples with.
    pub fn scalings(&self) -> Scalings {
        match self {
            Self::Heun(_) | Self::Euler(_) => Scalings::Edm,
            Self::Consistency(c) => Scalings::Boundary { sigma_min: c.sigma_min },
        }
    }

    /// Everything about it that cannot work.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut check = |ok: bool, key: &str, message: String| {
            if !ok {
                found.push(Invalid::new(key, message));
            }
        };
        let mut grid = |name: &str, steps: usize, sigma_min: f64, sigma_max: f64, rho: f64| {
            check(steps >= 1, &format!("{name}.steps"), "is 0, expected at least 1".into());
            let ok = sigma_min > 0.0 && sigma_min < sigma_max && sigma_max.is_finite();
            let key = format!("{name}.sigma_min");
            check(ok, &key, format!("is {sigma_min}, expected more than 0 and less than sigma_max = {sigma_max}"));
            check(rho > 0.0, &format!("{name}.rho"), format!("is {rho}, expected more than 0"));
        };
        match self {
            Self::Heun(c) => grid("heun", c.steps, c.sigma_min, c.sigma_max, c.rho),
            Self::Euler(c) => grid("euler", c.steps, c.sigma_min, c.sigma_max, c.rho),
            Self::Consistency(c) => {
                grid("consistency", 1, c.sigma_min, c.sigma_max, 1.0);
                let points: Vec<f64> = [&[c.sigma_max], c.mid_sigmas.as_slice(), &[c.sigma_min]].concat();
                check(
                    points.windows(2).all(|w| w[0] > w[1]),
                    "consistency.mid_sigmas",
                    format!("must fall from sigma_max = {} to above sigma_min = {}", c.sigma_max, c.sigma_min),
                );
            }
        }
        found
    }
}

/// σ_i = (σ_max^{1/ρ} + i/(n−1)·(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ for i < n (Karras et al. 2022, eq. 5), without the final 0.
pub fn karras_sigmas(n: usize, sigma_min: f64, sigma_max: f64, rho: f64) -> Vec<f64> {
    let (top, bottom) = (sigma_max.powf(1.0 / rho), sigma_min.powf(1.0 / rho));
    let last = n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| (top + i as f64 / last * (bottom - top)).powf(rho)).collect()
}

/// What a sampler made.
#[derive(Debug)]
pub struct Samples {
    /// f32 [B,C,H,W], about [−1,1], not clamped.
    pub images: Tensor,
    /// Network evaluations an image, counted while sampling.
    pub nfe: usize,
}

/// Runs a sampler on unit normal latents f32 [B,C,H,W].
///
/// `denoise(x f32, σ)` is D(x;σ) with the sampler's scalings; `noise(i)` gives unit normal noise of the latents' shape
/// for step i and is called only where noise is added.
pub fn sample(
    config: &SamplerConfig,
    latents: &Tensor,
    mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
    noise: impl FnMut(usize) -> Tensor,
) -> Samples {
    let mut nfe = 0;
    let counted = |x: &Tensor, sigma: f64| {
        nfe += 1;
        denoise(x, sigma)
    };
    let images = match config {
        SamplerConfig::Heun(c) => ode(c, true, latents, counted, noise),
        SamplerConfig::Euler(c) => ode(c, false, latents, counted, noise),
        SamplerConfig::Consistency(c) => consistency(c, latents, counted, noise),
    };
    Samples { images, nfe }
}

/// The probability-flow ODE dx/dσ = (x − D(x;σ))/σ from σ_max over the grid to 0, state in float64.
/// Second order: Heun's correction at every step but the last. (Karras et al. 2022, algorithms 1 and 2.)
fn ode(
    config: &OdeConfig,
    second_order: bool,
    latents: &Tensor,
    mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
    mut noise: impl FnMut(usize) -> Tensor,
) -> Tensor {
    let mut slope = |x: &Tensor, t: f64| {
        let d: Tensor = x - denoise(&x.to_kind(Kind::Float), t);
        d / t
    };
    let OdeConfig { steps, sigma_min, sigma_max, rho, churn } = *config;
    let sigmas = karras_sigmas(steps, sigma_min, sigma_max, rho);
    let mut x_next = latents.to_kind(Kind::Double) * sigma_max;
    for (i, &t_cur) in sigmas.iter().enumerate() {
        let t_next = sigmas.get(i + 1).copied().unwrap_or(0.0);
        // Raise the noise level by the factor 1 + γ.
        let stirred = churn.s_churn > 0.0 && (churn.s_min..=churn.s_max).contains(&t_cur);
        let gamma = if stirred { (churn.s_churn / steps as f64).min(2f64.sqrt() - 1.0) } else { 0.0 };
        let t_hat = t_cur * (1.0 + gamma);
        let x_hat = if gamma > 0.0 {
            x_next + noise(i).to_kind(Kind::Double) * ((t_hat * t_hat - t_cur * t_cur).sqrt() * churn.s_noise)
        } else {
            x_next
        };
        let d_cur = slope(&x_hat, t_hat);
        x_next = &x_hat + &d_cur * (t_next - t_hat);
        if second_order && t_next > 0.0 {
            let d_prime = slope(&x_next, t_next);
            x_next = &x_hat + (d_cur + d_prime) * (0.5 * (t_next - t_hat));
        }
    }
    x_next.to_kind(Kind::Float)
}

/// x = D(σ_max·z; σ_max), then for each further σ: x = D(x + √(σ² − σ_min²)·z; σ) (Song et al. 2023, algorithm 1).
fn consistency(
    config: &ConsistencyConfig,
    latents: &Tensor,
    mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
    mut noise: impl FnMut(usize) -> Tensor,
) -> Tensor {
    let mut x = denoise(&(latents * config.sigma_max), config.sigma_max);
    for (i, &sigma) in config.mid_sigmas.iter().enumerate() {
        let scale = (sigma * sigma - config.sigma_min * config.sigma_min).sqrt();
        x = denoise(&(x + noise(i) * scale), sigma);
    }
    x
}

/// The images `first..first+n` of a latent stream, without gradient: latents, classes and sampler noise of each image
/// are functions of (seed, stream, index), so that they do not depend on how many are made at once.
///
/// # Errors
/// The device has no room for the latents.
pub fn generate(
    net: &Denoiser,
    config: &SamplerConfig,
    seed: u64,
    stream: Stream,
    first: u64,
    n: usize,
    device: Device,
) -> Result<Samples> {
    let image = net.model().image;
    let z = latents(seed, stream, first, n, image.chw(), device)?;
    let stream_seed = derive_seed(seed, stream, 0);
    let classes = random_classes(stream_seed, first, n, image.label_dim, device);
    let conditioning = Conditioning { labels: one_hot(classes.as_ref(), image.label_dim), augment_labels: None };
    let denoise = |x: &Tensor, sigma: f64| {
        let sigma = Tensor::full([n as i64], sigma, (Kind::Float, device));
        net.denoise(x, &sigma, config.scalings(), &conditioning, false)
    };
    let mut failed = None;
    let noise = |i: usize| {
        let seed = derive_seed(stream_seed, Stream::SamplerNoise, i as u64);
        latents(seed, Stream::SamplerNoise, first, n, image.chw(), device).unwrap_or_else(|e| {
            failed = Some(e);
            z.zeros_like()
        })
    };
    let samples = lcsc_torch::tch::no_grad(|| sample(config, &z, denoise, noise));
    failed.map_or(Ok(samples), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exact denoiser of data N(0, s²): D(x;σ) = s²/(s²+σ²)·x; the ODE's solution is x·s/√(s²+σ_max²).
    fn gaussian(s: f64) -> impl Fn(&Tensor, f64) -> Tensor {
        move |x, sigma| x * (s * s / (s * s + sigma * sigma))
    }

    fn error(config: &SamplerConfig) -> (f64, usize) {
        let z = Tensor::from_slice(&[1f32]).reshape([1, 1, 1, 1]);
        let out = sample(config, &z, gaussian(0.5), |_| z.shallow_clone());
        let exact = 80.0 * 0.5 / (0.25f64 + 6400.0).sqrt();
        ((out.images.double_value(&[0, 0, 0, 0]) - exact).abs(), out.nfe)
    }

    #[test]
    fn nfe_is_counted_and_equals_the_formula() {
        let heun = SamplerConfig::Heun(OdeConfig { steps: 5, ..OdeConfig::default() });
        let euler = SamplerConfig::Euler(OdeConfig { steps: 10, ..OdeConfig::default() });
        let two = SamplerConfig::Consistency(ConsistencyConfig { mid_sigmas: vec![0.821], ..Default::default() });
        for (config, nfe) in [(heun, 9), (euler, 10), (two, 2)] {
            assert_eq!((error(&config).1, config.nfe()), (nfe, nfe));
        }
    }

    #[test]
    fn euler_is_first_and_heun_second_order() {
        let euler = |steps| error(&SamplerConfig::Euler(OdeConfig { steps, ..Default::default() })).0;
        let heun = |steps| error(&SamplerConfig::Heun(OdeConfig { steps, ..Default::default() })).0;
        let (slope_euler, slope_heun) = ((euler(64) / euler(128)).log2(), (heun(32) / heun(64)).log2());
        assert!((slope_euler - 1.0).abs() < 0.15, "{slope_euler}");
        assert!((slope_heun - 2.0).abs() < 0.35, "{slope_heun}");
    }

    #[test]
    fn churn_keeps_the_distribution() {
        let z = latents(0, Stream::SearchLatents, 0, 4000, [1, 1, 1], Device::Cpu).unwrap();
        let churn = Churn { s_churn: 10.0, ..Churn::default() };
        let config = SamplerConfig::Heun(OdeConfig { steps: 40, churn, ..OdeConfig::default() });
        let noise = |i| latents(i as u64, Stream::SamplerNoise, 0, 4000, [1, 1, 1], Device::Cpu).unwrap();
        let out = sample(&config, &z, gaussian(0.5), noise).images;
        let std = out.std(true).double_value(&[]);
        assert!((std - 0.5).abs() < 0.02, "{std}");
        let kept = (&out * &z).mean(None).double_value(&[]) / 0.5;
        assert!(kept < 0.9, "churn must forget part of the latent: {kept}");
    }

    #[test]
    fn the_grid_meets_its_ends() {
        let sigmas = karras_sigmas(18, 0.002, 80.0, 7.0);
        assert_eq!(sigmas.len(), 18);
        assert!((sigmas[0] - 80.0).abs() < 1e-9 && (sigmas[17] - 0.002).abs() < 1e-12);
        assert!((sigmas[1] - 57.58598472124816).abs() < 1e-9);
        assert_eq!(karras_sigmas(1, 0.002, 80.0, 7.0).len(), 1);
    }

    #[test]
    fn impossible_samplers_are_named() {
        let config = SamplerConfig::Consistency(ConsistencyConfig { mid_sigmas: vec![1.0, 2.0], ..Default::default() });
        assert_eq!(config.validate()[0].key, "consistency.mid_sigmas");
        let config = SamplerConfig::Heun(OdeConfig { steps: 0, sigma_min: 0.0, ..Default::default() });
        let keys: Vec<String> = config.validate().into_iter().map(|i| i.key).collect();
        assert_eq!(keys, ["heun.steps", "heun.sigma_min"]);
    }
}
