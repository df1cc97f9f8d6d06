//! The maths of the samplers: a first state made from unit normal latents, then one state after the other, so that
//! gradients can go through one step at a time.

use crate::grid::Spacing;
use crate::precond::Preconditioning;
use crate::sampler::{ConsistencyConfig, DpmConfig, OdeConfig, SamplerConfig};
use lcsc_torch::{Invalid, Kind, Tensor};
use std::convert::Infallible;

/// What a sampler made.
#[derive(Debug)]
pub struct Samples {
    /// f32 `[B,C,H,W]`, about [−1,1], not clamped.
    pub images: Tensor,
    /// Network evaluations an image, counted while sampling.
    pub nfe: usize,
}

/// Runs a sampler on unit normal latents f32 `[B,C,H,W]`.
///
/// `denoise(x f32, σ)` is D(x;σ) with the sampler's scalings and guidance; `noise(i)` gives unit normal noise of the
/// latents' shape for step i and is called only where noise is added.
pub fn sample(
    config: &SamplerConfig,
    network: &Preconditioning,
    latents: &Tensor,
    denoise: impl FnMut(&Tensor, f64) -> Tensor,
    mut noise: impl FnMut(usize) -> Tensor,
) -> Samples {
    let solver = Solver::new(config, network);
    let Ok(samples) = solver.try_sample(latents, denoise, |i| Ok::<_, Infallible>(noise(i)));
    samples
}

impl SamplerConfig {
    /// What about it does not fit a network: consistency sampling of one without boundary scalings, or noise levels that do
    /// not fall strictly. For a sampler that is valid by itself.
    pub fn misfit(&self, network: &Preconditioning) -> Option<Invalid> {
        let (name, steps) = (self.name(), self.steps());
        if let (Self::Consistency(_), false) = (self, matches!(network, Preconditioning::Edm(_))) {
            let message = "needs preconditioning edm: no other makes the model the identity at its lowest noise level";
            return Some(Invalid::new(name, message));
        }
        let sigmas = Solver::new(self, network).sigmas;
        let (lowest, highest) = network.sigma_range();
        (!sigmas.windows(2).all(|w| w[0] > w[1])).then(|| {
            let message = format!(
                "is {steps}, but so many noise levels do not differ: this network knows those from {lowest:.4} to \
                 {highest:.1}, at its own time steps; use fewer steps, or another spacing, sigma_min or sigma_max"
            );
            Invalid::new(format!("{name}.steps"), message)
        })
    }
}

/// Where a sampler stands: x_i [B,C,H,W], then the denoised images of the steps before that the next step needs, the
/// latest first.
pub(crate) type State = Vec<Tensor>;

/// A sampler with its noise levels worked out.
pub(crate) struct Solver<'c> {
    config: &'c SamplerConfig,
    network: &'c Preconditioning,
    /// The level before each step, and after the last one; empty for consistency sampling.
    sigmas: Vec<f64>,
    /// Of each step of DPM-Solver++.
    orders: Vec<usize>,
}

impl<'c> Solver<'c> {
    pub(crate) fn new(config: &'c SamplerConfig, network: &'c Preconditioning) -> Self {
        let down_to_zero = |spacing: Spacing, n, min, max| {
            let mut sigmas = spacing.sigmas(n, min, max, network);
            sigmas.push(0.0);
            sigmas
        };
        let (sigmas, orders) = match config {
            SamplerConfig::Heun(c) | SamplerConfig::Euler(c) => {
                (down_to_zero(c.spacing, c.steps, c.sigma_min, c.sigma_max), vec![])
            }
            SamplerConfig::Ddim(c) | SamplerConfig::Ancestral(c) => {
                (down_to_zero(c.spacing, c.steps, c.sigma_min, c.sigma_max), vec![])
            }
            SamplerConfig::Dpmpp(c) => {
                let orders = c.orders();
                (c.spacing.sigmas(orders.len() + 1, c.sigma_min, c.sigma_max, network), orders)
            }
            SamplerConfig::Consistency(_) => (vec![], vec![]),
        };
        Self { config, network, sigmas, orders }
    }

    pub(crate) fn try_sample<E>(
        &self,
        latents: &Tensor,
        mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
        mut noise: impl FnMut(usize) -> Result<Tensor, E>,
    ) -> Result<Samples, E> {
        let mut nfe = 0;
        let mut state = self.first_state(latents);
        for i in 0..self.config.steps() {
            let counted = |x: &Tensor, sigma: f64| {
                nfe += self.config.evaluations();
                denoise(x, sigma)
            };
            state = self.step(i, &state, counted, &mut noise)?;
        }
        Ok(Samples { images: state[0].to_kind(Kind::Float), nfe })
    }

    /// The state x_0 = σ_0·z before the first step: f64 [B,C,H,W], f32 for consistency sampling.
    pub(crate) fn first_state(&self, latents: &Tensor) -> State {
        vec![match self.config {
            SamplerConfig::Consistency(c) => latents * c.sigma_max,
            SamplerConfig::Heun(_)
            | SamplerConfig::Euler(_)
            | SamplerConfig::Ddim(_)
            | SamplerConfig::Ancestral(_)
            | SamplerConfig::Dpmpp(_) => latents.to_kind(Kind::Double) * self.sigmas[0],
        }]
    }

    /// The state after step i < `config.steps()`, of the shapes and type of the state before; the first tensor of the
    /// last state holds the images.
    pub(crate) fn step<E>(
        &self,
        i: usize,
        state: &State,
        denoise: impl FnMut(&Tensor, f64) -> Tensor,
        noise: impl FnMut(usize) -> Result<Tensor, E>,
    ) -> Result<State, E> {
        let x = &state[0];
        Ok(match self.config {
            SamplerConfig::Heun(c) => vec![self.ode_step(c, true, i, x, denoise, noise)?],
            SamplerConfig::Euler(c) => vec![self.ode_step(c, false, i, x, denoise, noise)?],
            SamplerConfig::Ddim(_) => vec![self.ddim_step(0.0, i, x, denoise, noise)?],
            SamplerConfig::Ancestral(_) => vec![self.ddim_step(1.0, i, x, denoise, noise)?],
            SamplerConfig::Dpmpp(c) if c.multistep => self.multistep(c, i, state, denoise),
            SamplerConfig::Dpmpp(c) => vec![self.singlestep(c, i, x, denoise)],
            SamplerConfig::Consistency(c) => vec![consistency_step(c, i, x, denoise, noise)?],
        })
    }

    /// Step i along the probability-flow ODE dx/dσ = (x − D(x;σ))/σ. Second order: Heun's correction at every step but
    /// the last. (Karras et al. 2022, algorithms 1 and 2.)
    fn ode_step<E>(
        &self,
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
        let churn = config.churn;
        let (t_cur, t_next) = (self.sigmas[i], self.sigmas[i + 1]);
        // Raise the noise level by the factor 1 + γ.
        let stirred = churn.s_churn > 0.0 && (churn.s_min..=churn.s_max).contains(&t_cur);
        let gamma = if stirred { (churn.s_churn / config.steps as f64).min(2f64.sqrt() - 1.0) } else { 0.0 };
        let t_hat = self.network.round_sigma(t_cur * (1.0 + gamma));
        let x_hat = if t_hat > t_cur {
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

    /// From σ to σ': x' = D + σ_down·(x − D)/σ + σ_up·z with σ_up = η·σ'·√(1 − σ'²/σ²) and σ_down² + σ_up² = σ'².
    /// (Song et al. 2021, DDIM, eq. 12 and 16, in σ.)
    fn ddim_step<E>(
        &self,
        eta: f64,
        i: usize,
        x: &Tensor,
        mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
        noise: impl FnOnce(usize) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let (sigma, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let denoised = denoise(&x.to_kind(Kind::Float), sigma).to_kind(Kind::Double);
        let up = eta * next * (1.0 - (next / sigma).powi(2)).max(0.0).sqrt();
        let down = (next * next - up * up).max(0.0).sqrt();
        let x = &denoised + (x - &denoised) * (down / sigma);
        Ok(if up > 0.0 { x + noise(i)?.to_kind(Kind::Double) * up } else { x })
    }

    /// A step of DPM-Solver++ that uses the denoised images before it (Lu et al. 2022b, algorithm 2 and its third-order
    /// form), with λ = −ln σ and r = (λ_i − λ_{i−1})/h:
    ///
    /// x' = σ'/σ·x − φ₁·D₀ + φ₂·D₁ − φ₃·D₂, with φ₁ = e^{−h} − 1, φ₂ = φ₁/h + 1, φ₃ = φ₂/h − ½, where D₁ and D₂ are
    /// h·D' and h²·D'' by differences of the denoised images; of second order −½φ₁·D₁ stands for φ₂·D₁. (The authors'
    /// code has half of this D₂, which costs the third order.)
    fn multistep(
        &self,
        config: &DpmConfig,
        i: usize,
        state: &State,
        mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
    ) -> State {
        let lambda = |i: usize| -self.sigmas[i].ln();
        let d_0 = thresholded(config, denoise(&state[0].to_kind(Kind::Float), self.sigmas[i]));
        let h = lambda(i + 1) - lambda(i);
        let phi = Phi::of(h);
        let mut x = &state[0] * (self.sigmas[i + 1] / self.sigmas[i]) - &d_0 * phi.one;
        let ratio = |before: usize| (lambda(i - before) - lambda(i - before - 1)) / h;
        match self.orders[i] {
            3 => {
                let (r_0, r_1) = (ratio(0), ratio(1));
                let (first, second) = ((&d_0 - &state[1]) / r_0, (&state[1] - &state[2]) / r_1);
                let bend = &first - second;
                x = x + (first + &bend * (r_0 / (r_0 + r_1))) * phi.two - bend * (2.0 * phi.three / (r_0 + r_1));
            }
            2 => x = x - (&d_0 - &state[1]) * (0.5 * phi.one / ratio(0)),
            _ => {}
        }
        let kept = self.orders.get(i + 1).map_or(0, |order| order - 1);
        let history = std::iter::once(&d_0).chain(&state[1..]).take(kept).map(Tensor::shallow_clone);
        std::iter::once(x).chain(history).collect()
    }

    /// A step of DPM-Solver++ that evaluates the network as often as its order (Lu et al. 2022b, algorithm 1 with r = ½,
    /// and its third-order form with r₁ = ⅓, r₂ = ⅔).
    fn singlestep(
        &self,
        config: &DpmConfig,
        i: usize,
        x: &Tensor,
        mut denoise: impl FnMut(&Tensor, f64) -> Tensor,
    ) -> Tensor {
        let (sigma, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let h = (sigma / next).ln();
        let mut d = |x: &Tensor, sigma: f64| thresholded(config, denoise(&x.to_kind(Kind::Float), sigma));
        let d_0 = d(x, sigma);
        // The first-order step over a part of h, and its noise level.
        let part = |r: f64| (x * (-r * h).exp() - &d_0 * Phi::of(r * h).one, sigma * (-r * h).exp());
        let phi = Phi::of(h);
        let (first, _) = part(1.0);
        match self.orders[i] {
            3 => {
                let (x_1, sigma_1) = part(1.0 / 3.0);
                let d_1 = d(&x_1, sigma_1) - &d_0;
                let (x_2, sigma_2) = part(2.0 / 3.0);
                let x_2 = x_2 + d_1 * (2.0 * Phi::of(2.0 / 3.0 * h).two);
                first + (d(&x_2, sigma_2) - d_0) * (1.5 * phi.two)
            }
            2 => {
                let (x_1, sigma_1) = part(0.5);
                first - (d(&x_1, sigma_1) - d_0) * phi.one
            }
            _ => first,
        }
    }
}

/// φ₁ = e^{−h} − 1, φ₂ = φ₁/h + 1, φ₃ = φ₂/h − ½.
struct Phi {
    one: f64,
    two: f64,
    three: f64,
}

impl Phi {
    fn of(h: f64) -> Self {
        let one = (-h).exp_m1();
        let two = one / h + 1.0;
        Self { one, two, three: two / h - 0.5 }
    }
}

/// D f64 [B,C,H,W], scaled back per image where dynamic thresholding is on and the quantile exceeds 1.
fn thresholded(config: &DpmConfig, denoised: Tensor) -> Tensor {
    const QUANTILE: f64 = 0.995;
    let denoised = denoised.to_kind(Kind::Double);
    if !config.thresholding {
        return denoised;
    }
    let limit = denoised.abs().flatten(1, -1).quantile_scalar(QUANTILE, 1i64, true, "linear").clamp_min(1.0);
    let limit = limit.unsqueeze(2).unsqueeze(3);
    denoised.minimum(&limit).maximum(&limit.neg()) / limit
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
    use crate::precond::{IddpmPreconditioning, PreconditioningConfig};
    use crate::sampler::{Churn, ConsistencyConfig, GridConfig};
    use lcsc_torch::{Device, Stream, latents};

    /// The exact denoiser of data N(0, s²): D(x;σ) = s²/(s²+σ²)·x; the ODE's solution is x·s/√(s²+σ_max²).
    fn gaussian(s: f64) -> impl Fn(&Tensor, f64) -> Tensor {
        move |x, sigma| x * (s * s / (s * s + sigma * sigma))
    }

    fn edm() -> Preconditioning {
        Preconditioning::new(&PreconditioningConfig::default())
    }

    fn error(config: &SamplerConfig) -> (f64, usize) {
        let z = Tensor::from_slice(&[1f32]).reshape([1, 1, 1, 1]);
        let out = sample(config, &edm(), &z, gaussian(0.5), |_| z.shallow_clone());
        let exact = 80.0 * 0.5 / (0.25f64 + 6400.0).sqrt();
        ((out.images.double_value(&[0, 0, 0, 0]) - exact).abs(), out.nfe)
    }

    /// The error of DPM-Solver++ from σ = 10 to 0.1. A multistep method begins with the exact history: its first steps are
    /// of lower order.
    fn dpm_error(spacing: Spacing, order: usize, multistep: bool, steps: usize) -> f64 {
        let config = DpmConfig {
            steps,
            order,
            multistep,
            lower_order_final: false,
            sigma_min: 0.1,
            sigma_max: 10.0,
            spacing,
            ..DpmConfig::default()
        };
        let (config, network) = (SamplerConfig::Dpmpp(config), edm());
        let solver = Solver::new(&config, &network);
        let scalar = |v: f64| Tensor::full([1, 1, 1, 1], v, (Kind::Double, Device::Cpu));
        let exact = |i: usize| 10.0 * ((0.25 + solver.sigmas[i].powi(2)) / (0.25 + 100.0f64)).sqrt();
        let denoised = |i: usize| exact(i) * 0.25 / (0.25 + solver.sigmas[i].powi(2));
        let first = if multistep { order - 1 } else { 0 };
        let mut state: State =
            std::iter::once(exact(first)).chain((0..first).rev().map(denoised)).map(scalar).collect();
        for i in first..config.steps() {
            state = solver.step(i, &state, gaussian(0.5), |_| Ok::<_, Infallible>(Tensor::new())).unwrap();
        }
        (state[0].double_value(&[0, 0, 0, 0]) - exact(config.steps())).abs()
    }

    #[test]
    fn nfe_is_counted_and_equals_the_formula() {
        let heun = SamplerConfig::Heun(OdeConfig { steps: 5, ..OdeConfig::default() });
        let euler = SamplerConfig::Euler(OdeConfig { steps: 10, ..OdeConfig::default() });
        let two = SamplerConfig::Consistency(ConsistencyConfig { mid_sigmas: vec![0.821], ..Default::default() });
        let ddim = SamplerConfig::Ddim(GridConfig { steps: 7, ..GridConfig::default() });
        let guided = SamplerConfig::Ancestral(GridConfig { steps: 7, guidance: Some(2.0), ..GridConfig::default() });
        let multi = SamplerConfig::Dpmpp(DpmConfig { steps: 8, ..DpmConfig::default() });
        let single = SamplerConfig::Dpmpp(DpmConfig { steps: 8, multistep: false, ..DpmConfig::default() });
        for (config, nfe) in [(heun, 9), (euler, 10), (two, 2), (ddim, 7), (guided, 14), (multi, 8), (single, 8)] {
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
    fn ddim_is_eulers_method() {
        let euler = SamplerConfig::Euler(OdeConfig { steps: 10, ..OdeConfig::default() });
        let ddim = SamplerConfig::Ddim(GridConfig { steps: 10, ..GridConfig::default() });
        assert!((error(&euler).0 - error(&ddim).0).abs() < 1e-6);
    }

    #[test]
    fn dpm_solvers_have_their_orders() {
        for (multistep, spacing) in
            [true, false].into_iter().flat_map(|m| [(m, Spacing::LogSnr), (m, Spacing::Quadratic)])
        {
            for order in [1, 2, 3] {
                // Fine enough for the order to show, coarse enough for errors to stay above the rounding of the network's
                // f32 input.
                let steps = if multistep && order == 3 { 192 } else { 96 };
                let slope = (dpm_error(spacing, order, multistep, steps)
                    / dpm_error(spacing, order, multistep, 2 * steps))
                .log2();
                assert!(
                    (slope - order as f64).abs() < 0.35,
                    "order {order}, multistep {multistep}, {spacing:?}: slope {slope}"
                );
            }
        }
    }

    #[test]
    fn more_noise_levels_than_time_steps_are_a_misfit() {
        let iddpm = PreconditioningConfig::Iddpm(IddpmPreconditioning { m: 1000, ..Default::default() });
        let iddpm = Preconditioning::new(&iddpm);
        let dpm = |steps, sigma_min| SamplerConfig::Dpmpp(DpmConfig { steps, sigma_min, ..DpmConfig::default() });
        assert_eq!(dpm(15, 0.01).misfit(&iddpm), None);
        assert_eq!(dpm(60, 0.002).misfit(&iddpm).unwrap().key, "dpmpp.steps");
        assert_eq!(dpm(60, 0.002).misfit(&edm()), None);
        // Above all that the network knows.
        let ddim = SamplerConfig::Ddim(GridConfig { sigma_min: 1e6, sigma_max: 1e7, ..GridConfig::default() });
        assert_eq!(ddim.misfit(&iddpm).unwrap().key, "ddim.steps");
        let consistency = SamplerConfig::Consistency(ConsistencyConfig::default());
        assert_eq!(consistency.misfit(&iddpm).unwrap().key, "consistency");
    }

    #[test]
    fn thresholding_scales_back_what_exceeds_the_range() {
        let d = Tensor::from_slice(&[0.5f32, -2.0, 0.5, 0.25]).reshape([2, 1, 1, 2]);
        let config = DpmConfig { thresholding: true, ..DpmConfig::default() };
        let found = Vec::<f64>::try_from(thresholded(&config, d).flatten(0, -1)).unwrap();
        // The 99.5 % quantile of {0.5, 2} lies at 1.9925.
        for (f, e) in found.iter().zip([0.5 / 1.9925, -1.0, 0.5, 0.25]) {
            assert!((f - e).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn ancestral_steps_keep_the_distribution_and_forget_the_latent() {
        let z = latents(0, Stream::SearchLatents, 0, 4000, [1, 1, 1], Device::Cpu).unwrap();
        let config = SamplerConfig::Ancestral(GridConfig { steps: 200, ..GridConfig::default() });
        let noise = |i| latents(i as u64, Stream::SamplerNoise, 0, 4000, [1, 1, 1], Device::Cpu).unwrap();
        let out = sample(&config, &edm(), &z, gaussian(0.5), noise).images;
        let (std, kept) = (out.std(true).double_value(&[]), (&out * &z).mean(None).double_value(&[]) / 0.5);
        assert!((std - 0.5).abs() < 0.03 && kept.abs() < 0.1, "{std} {kept}");
    }

    #[test]
    fn churn_keeps_the_distribution() {
        let z = latents(0, Stream::SearchLatents, 0, 4000, [1, 1, 1], Device::Cpu).unwrap();
        let churn = Churn { s_churn: 10.0, ..Churn::default() };
        let config = SamplerConfig::Heun(OdeConfig { steps: 40, churn, ..OdeConfig::default() });
        let noise = |i| latents(i as u64, Stream::SamplerNoise, 0, 4000, [1, 1, 1], Device::Cpu).unwrap();
        let out = sample(&config, &edm(), &z, gaussian(0.5), noise).images;
        let std = out.std(true).double_value(&[]);
        assert!((std - 0.5).abs() < 0.02, "{std}");
        let kept = (&out * &z).mean(None).double_value(&[]) / 0.5;
        assert!(kept < 0.9, "churn must forget part of the latent: {kept}");
    }
}
