//! Losses with noise levels, noise and indices injected.

use crate::fixture::{Fixture, Outcome, device};
use crate::networks::Described;
use lcsc_diffusion::{
    Adjustment, Denoiser, Distance, EctConfig, EdmConfig, Scalings, TeacherSolver, Weighting, consistency_loss,
    ect_loss, edm_loss, karras_sigmas, teacher_step,
};
use lcsc_torch::{Kind, Tensor};

pub fn edm(f: &Fixture) -> Outcome<f64> {
    let described = Described::of(&f.named_network()?)?;
    let weights = described.weights("")?;
    let (net, conditioning) = (described.model.bind(&weights)?, f.conditioning(described.model.image.label_dim)?);
    let number = |key: &str, default: f64| f.json[key].as_f64().unwrap_or(default);
    let config = EdmConfig { p_mean: number("P_mean", -1.2), p_std: number("P_std", 1.2) };
    let (y, noise) = (f.tensor("in.images")?, f.tensor("in.noise")?);
    let sigma = (f.tensor("in.rnd_normal")? * config.p_std + config.p_mean).exp();
    let denoise = |x: &Tensor, s: &Tensor| net.denoise(x, s, Scalings::Plain, &conditioning, false);
    let loss = edm_loss(denoise, &y, &sigma, &noise, number("sigma_data", 0.5));
    // The reference's mean over pixels; ours is the sum.
    let pixels = y.size()[1..].iter().product::<i64>() as f64;
    f.compare(&(loss / pixels), "out.loss_per_sample_mean")
}

pub fn ect(f: &Fixture) -> Outcome<f64> {
    let described = Described::of(&f.named_network()?)?;
    let weights = described.weights("")?;
    let (net, conditioning) = (described.model.bind(&weights)?, f.conditioning(described.model.image.label_dim)?);
    let d = EctConfig::default();
    let get = |key: &str, default: f64| f.number(key).unwrap_or(default);
    let config = EctConfig {
        p_mean: get("P_mean", d.p_mean),
        p_std: get("P_std", d.p_std),
        q: get("q", d.q),
        k: get("k", d.k),
        b: get("b", d.b),
        c: get("c", d.c),
        adj: if f.json["args"]["adj"] == "const" { Adjustment::Const } else { Adjustment::Sigmoid },
        ..d
    };
    let t = (f.tensor("in.rnd_normal")? * config.p_std + config.p_mean).exp();
    let r = config.t_to_r(&t, f.json["stage"].as_u64().unwrap_or(0));
    f.compare(&t, "out.t")?;
    f.compare(&r, "out.r")?;
    let denoise = |x: &Tensor, s: &Tensor| net.denoise(x, s, Scalings::Plain, &conditioning, false);
    let loss = ect_loss(denoise, &f.tensor("in.images")?, &t, &r, &f.tensor("in.noise")?, config.c);
    f.compare(&loss, "out.loss_per_sample")
}

/// Whether the distance of the file needs no weights of its own.
pub fn has_known_distance(f: &Fixture) -> bool {
    distance(f).is_some()
}

fn distance(f: &Fixture) -> Option<Distance> {
    match f.json["loss_norm"].as_str()? {
        "l1" => Some(Distance::L1),
        "l2" => Some(Distance::L2),
        _ => None,
    }
}

fn weighting(f: &Fixture) -> Outcome<Weighting> {
    Ok(match f.json["weight_schedule"].as_str().unwrap_or("uniform") {
        "uniform" => Weighting::Uniform,
        "snr" => Weighting::Snr,
        "snr+1" => Weighting::SnrPlusOne,
        "karras" => Weighting::Karras,
        "truncated-snr" => Weighting::TruncatedSnr,
        other => return Err(format!("unknown weight_schedule {other}").into()),
    })
}

pub fn consistency(f: &Fixture) -> Outcome<f64> {
    let described = Described::of(&f.named_network()?)?;
    let prefix = |key: &str| f.json["network"][key].as_str().unwrap_or_default();
    let [online, target, teacher] =
        ["", prefix("target_prefix"), prefix("teacher_prefix")].map(|p| described.weights(p));
    let (online, target, teacher) = (online?, target?, teacher?);
    let [online, target, teacher] = [&online, &target, &teacher].map(|w| described.model.bind(w));
    let (online, target, teacher) = (online?, target?, teacher?);
    let conditioning = f.conditioning(described.model.image.label_dim)?;
    let number = |key: &str, default: f64| f.json[key].as_f64().unwrap_or(default);
    let (sigma_min, num_scales) = (number("sigma_min", 0.002), f.json["num_scales"].as_u64().ok_or("no num_scales")?);
    let sigmas = karras_sigmas(num_scales as usize, sigma_min, number("sigma_max", 80.0), number("rho", 7.0));
    let (table, indices) = (Tensor::from_slice(&sigmas).to_kind(Kind::Float).to(device()), f.tensor("in.indices")?);
    let (t, r) = (table.index_select(0, &indices), table.index_select(0, &(&indices + 1)));
    let (y, noise) = (f.tensor("in.x")?, f.tensor("in.noise")?);
    let noised = |sigma: &Tensor| &y + &noise * sigma.reshape([-1, 1, 1, 1]);
    let pass = |net: &Denoiser, scalings, x: &Tensor, s: &Tensor| net.denoise(x, s, scalings, &conditioning, false);
    let x_t = noised(&t);
    let x_r = match f.json["mode"].as_str() {
        Some("distillation") => {
            teacher_step(|x, s| pass(&teacher, Scalings::Plain, x, s), TeacherSolver::Heun, &x_t, &t, &r)
        }
        _ => noised(&r),
    };
    let boundary = Scalings::Boundary { sigma_min };
    let loss = consistency_loss(
        |x, s| pass(&online, boundary, x, s),
        |x, s| pass(&target, boundary, x, s),
        (&x_t, &t),
        (&x_r, &r),
        &distance(f).ok_or("unknown loss_norm")?,
    );
    f.compare(&(loss * weighting(f)?.of(&t)), "out.loss")
}
