//! `schedules.json`: numbers of schedules, each by its own function.

use crate::fixture::Outcome;
use lcsc_diffusion::{CtConfig, karras_sigmas};
use lcsc_trajectory::{power_function_beta, power_function_response, sigma_rel_to_gamma, solve_posthoc};
use serde_json::Value;
use std::path::Path;

/// Checks every entry; the largest error, relative to max(1, |expected|).
pub fn check(path: &Path) -> Outcome<f64> {
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let mut worst = Worst(0.0);
    for (name, entry) in all.as_object().ok_or("no object")? {
        match name.as_str() {
            _ if name.ends_with("adaptive_progressive") => adaptive(entry, &mut worst)?,
            // A constant schedule has no formula.
            _ if name.ends_with("_fixed") => {}
            "power_function" => power_function(entry, &mut worst)?,
            "posthoc" => posthoc(entry, &mut worst)?,
            "power_response" => response(entry, &mut worst)?,
            "karras_sigmas" => sigmas(entry, &mut worst)?,
            other => return Err(format!("unknown schedule {other}").into()),
        }
    }
    Ok(worst.0)
}

struct Worst(f64);

impl Worst {
    fn note(&mut self, what: &str, found: f64, expected: f64, tolerance: f64) -> Outcome<()> {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        self.0 = self.0.max(error);
        if error <= tolerance { Ok(()) } else { Err(format!("{what}: {found}, expected {expected}").into()) }
    }
}

fn numbers(value: &Value) -> Outcome<Vec<f64>> {
    let list = value.as_array().ok_or("expected a list")?;
    Ok(list.iter().map(|v| v.as_f64().ok_or("expected a number")).collect::<Result<_, _>>()?)
}

fn rows(value: &Value) -> Outcome<Vec<Vec<f64>>> {
    value.as_array().ok_or("expected a list")?.iter().map(numbers).collect()
}

fn number(entry: &Value, key: &str) -> Outcome<f64> {
    Ok(entry[key].as_f64().ok_or_else(|| format!("no {key}"))?)
}

/// [k, μ(k), N(k)] of consistency training.
fn adaptive(entry: &Value, worst: &mut Worst) -> Outcome<()> {
    let config = CtConfig {
        s_0: number(entry, "start_scales")? as u64,
        s_1: number(entry, "end_scales")? as u64,
        mu_0: number(entry, "start_ema")?,
        ..CtConfig::default()
    };
    let steps = number(entry, "total_steps")? as u64;
    for point in rows(&entry["points"])? {
        let k = point[0] as u64;
        worst.note("μ(k)", config.target_ema(k, steps), point[1], 1e-12)?;
        worst.note("N(k)", config.num_scales(k, steps) as f64, point[2], 0.0)?;
    }
    Ok(())
}

fn power_function(entry: &Value, worst: &mut Worst) -> Outcome<()> {
    for pair in rows(&entry["std_to_exp"])? {
        worst.note("γ", sigma_rel_to_gamma(pair[0]), pair[1], 1e-9)?;
    }
    for row in rows(&entry["beta"])? {
        worst.note("β", power_function_beta(row[0], row[1], row[2]), row[3], 1e-9)?;
    }
    Ok(())
}

fn posthoc(entry: &Value, worst: &mut Worst) -> Outcome<()> {
    let list = |key: &str| numbers(&entry[key]);
    let found = solve_posthoc(&list("in_ofs")?, &list("in_std")?, &list("out_ofs")?, &list("out_std")?)?;
    for (row, expected) in found.iter().zip(rows(&entry["coefficients_in_by_out"])?) {
        for (x, e) in row.iter().zip(expected) {
            worst.note("post-hoc coefficient", *x, e, 1e-6)?;
        }
    }
    Ok(())
}

fn response(entry: &Value, worst: &mut Worst) -> Outcome<()> {
    let (ofs, std) = (numbers(&entry["ofs"])?, numbers(&entry["std"])?);
    let length = number(entry, "len")? as usize;
    let profiles: Vec<Vec<f64>> =
        ofs.iter().zip(&std).map(|(&end, &width)| power_function_response(end, width, length)).collect();
    for point in rows(&entry["at"])? {
        for (profile, expected) in profiles.iter().zip(&point[1..]) {
            worst.note("profile", profile[point[0] as usize], *expected, 1e-9)?;
        }
    }
    Ok(())
}

fn sigmas(entry: &Value, worst: &mut Worst) -> Outcome<()> {
    for grid in entry.as_array().ok_or("expected a list")? {
        let (n, rho) = (number(grid, "n")? as usize, number(grid, "rho")?);
        let found = karras_sigmas(n, number(grid, "sigma_min")?, number(grid, "sigma_max")?, rho);
        for (f, e) in found.iter().zip(numbers(&grid["sigmas"])?) {
            worst.note("σ", *f, e, 1e-12)?;
        }
    }
    Ok(())
}
