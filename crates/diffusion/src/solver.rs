//! The maths of the samplers: a first state made from unit normal latents, then one state after the other, so that
//! gradients can go through one step at a time.

use crate::sampler::{ConsistencyConfig, OdeConfig, SamplerConfig};
use lcsc_torch::{Kind, Tensor};
use std::convert::Infallible;

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
    denoise: impl FnMut(&Tensor, f64) -> Tensor,
    mut noise: impl FnMut(usize) -> Tensor,
) -> Samples {
    let Ok(samples) = try_sample(config, latents, denoise, |i| Ok::<_, Infallible>(noise(i)));
    samples
}

/// [`sample`] with noise that can fail.
pub(crate) fn try_sample<E>(
    config: &SamplerConfig,
    latents: &Tensor,
    mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
    mut noise: impl FnMut(usize) -> Result<Tensor, E>,
) -> Result<Samples, E> {
    let mut nfe = 0;
    let mut x = first_state(config, latents);
    for i in 0..config.steps() {
        let counted = |x: &Tensor, sigma: f64| {
            nfe += 1;
            denoise(x, sigma)
        };
        x = step(config, i, &x, counted, &mut noise)?;
    }
    Ok(Samples { images: x.to_kind(Kind::Float), nfe })
}

/// The state x_0 = σ_max·z before the first step: f64 [B,C,H,W] for the ODE samplers, f32 for consistency sampling.
pub(crate) fn first_state(config: &SamplerConfig, latents: &Tensor) -> Tensor {
    match config {
        SamplerConfig::Heun(c) | SamplerConfig::Euler(c) => latents.to_kind(Kind::Double) * c.sigma_max,
        SamplerConfig::Consistency(c) => latents * c.sigma_max,
    }
}

/// The state x_{i+1} after step i < `config.steps()`, of the shape and type of the state `x` = x_i; the last state
/// holds the images.
pub(crate) fn step<E>(
    config: &SamplerConfig,
    i: usize,
    x: &Tensor,
    denoise: impl FnMut(&Tensor, f64) -> Tensor,
    noise: impl FnMut(usize) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    match config {
        SamplerConfig::Heun(c) => ode_step(c, true, i, x, denoise, noise),
        SamplerConfig::Euler(c) => ode_step(c, false, i, x, denoise, noise),
        SamplerConfig::Consistency(c) => consistency_step(c, i, x, denoise, noise),
    }
}

/// Step i along the probability-flow ODE dx/dσ = (x − D(x;σ))/σ, from σ_i of the grid to σ_{i+1}, at last to 0.
/// Second order: Heun's correction at every step but the last. (Karras et al. 2022, algorithms 1 and 2.)
fn ode_step<E>(
    config: &OdeConfig,
    second_order: bool,
    i: usize,
    x: &Tensor,
    mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
    noise: impl FnOnce(usize) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let mut slope = |x: &Tensor, t: f64| {
        let d: Tensor = x - denoise(&x.to_kind(Kind::Float), t);
        d / t
    };
    let OdeConfig { steps, sigma_min, sigma_max, rho, churn } = *config;
    let sigmas = karras_sigmas(steps, sigma_min, sigma_max, rho);
    let (t_cur, t_next) = (sigmas[i], sigmas.get(i + 1).copied().unwrap_or(0.0));
    // Raise the noise level by the factor 1 + γ.
    let stirred = churn.s_churn > 0.0 && (churn.s_min..=churn.s_max).contains(&t_cur);
    let gamma = if stirred { (churn.s_churn / steps as f64).min(2f64.sqrt() - 1.0) } else { 0.0 };
    let t_hat = t_cur * (1.0 + gamma);
    let x_hat = if gamma > 0.0 {
        x + noise(i)?.to_kind(Kind::Double) * ((t_hat * t_hat - t_cur * t_cur).sqrt() * churn.s_noise)
    } else {
        x.shallow_clone()
    };
    let d_cur = slope(&x_hat, t_hat);
    let x_next = &x_hat + &d_cur * (t_next - t_hat);
    if second_order && t_next > 0.0 {
        let d_prime = slope(&x_next, t_next);
        return Ok(&x_hat + (d_cur + d_prime) * (0.5 * (t_next - t_hat)));
    }
    Ok(x_next)
}

/// Step 0: x_1 = D(x_0; σ_max); each further one, with the next of the `mid_sigmas`: D(x + √(σ² − σ_min²)·z; σ).
/// (Song et al. 2023, algorithm 1.)
fn consistency_step<E>(
    config: &ConsistencyConfig,
    i: usize,
    x: &Tensor,
    mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
    noise: impl FnOnce(usize) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let Some(mid) = i.checked_sub(1) else { return Ok(denoise(x, config.sigma_max)) };
    let sigma = config.mid_sigmas[mid];
    let scale = (sigma * sigma - config.sigma_min * config.sigma_min).sqrt();
    Ok(denoise(&(x + noise(mid)? * scale), sigma))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{Churn, ConsistencyConfig};
    use lcsc_torch::{Device, Stream, latents};

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
}
