//! Reproduces the numbers of the reference codes in every file of `LCSC_PARITY_DIR` (default: `tests/parity`).
//!
//! One test a file; each prints its largest error. Kinds that are not built yet are listed as ignored.
//! `LCSC_PARITY_DEVICE=cuda` computes all on a GPU.
//! `tests/parity/README.md` describes the files and the rule that makes their weights.

mod cifar10;
mod fixture;
mod losses;
mod networks;
mod schedules;

use fixture::{Fixture, Outcome, device};
use lcsc_diffusion::{Churn, OdeConfig, SamplerConfig, Scalings, Spacing, sample};
use lcsc_metrics::{Extractor, FeatureStats, Lite, LiteName, StatsAccumulator, frechet_distance};
use lcsc_torch::{Kind, Tensor, allow_tf32, near_places};
use libtest_mimic::{Arguments, Trial};
use networks::Described;
use std::path::{Path, PathBuf};

fn main() {
    lcsc_torch::set_cpu_threads(1);
    // The references compute in IEEE single precision.
    device();
    allow_tf32(false).unwrap();
    let folder = std::env::var_os("LCSC_PARITY_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("parity"), PathBuf::from);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    files.sort();
    let mut trials: Vec<Trial> = files.into_iter().filter_map(trial).collect();
    assert!(!trials.is_empty(), "{} holds no parity file", folder.display());
    trials.push(cifar10::trial());
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(path: PathBuf) -> Option<Trial> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let check: Box<dyn Fn() -> Outcome<f64> + Send> = match path.extension().and_then(|e| e.to_str()) {
        Some("json") => Box::new(move || schedules::check(&path)),
        Some("safetensors") => match Fixture::open(&path).map(|f| (check_of(&f), lite_of(&f))) {
            // Standard output is the list of tests for those who ask for it.
            Ok((Some(_), Some(lite))) if weights_of(lite).is_none() => {
                eprintln!("skipped: {name}: its weights are not here: scripts/setup.sh fetches them");
                return Some(Trial::test(name, || Ok(())).with_ignored_flag(true));
            }
            Ok((Some(check), _)) => Box::new(move || check(&Fixture::open(&path)?)),
            Ok((None, _)) => {
                let unsupported = Trial::test(name, || Ok(())).with_kind("not yet supported");
                return Some(unsupported.with_ignored_flag(true));
            }
            Err(e) => return Some(Trial::test(name, || Err(e))),
        },
        Some(_) | None => return None,
    };
    Some(Trial::test(name.clone(), move || {
        println!("parity {name}: largest error {:.2e}", check()?);
        Ok(())
    }))
}

/// The check for the kind of a file, if it is built.
fn check_of(f: &Fixture) -> Option<fn(&Fixture) -> Outcome<f64>> {
    match f.json["kind"].as_str()? {
        "network" => Some(networks::network),
        "sampler" if is_known_sampler(f) => Some(sampler),
        "edm-loss" => Some(losses::edm),
        "ect-loss" => Some(losses::ect),
        "consistency-loss" if losses::has_known_distance(f) => Some(losses::consistency),
        "fid" => Some(fid),
        "inception" => Some(inception),
        "lite" => Some(lite),
        _ => None,
    }
}

/// EDM's sampler, or the ablation sampler where it equals ours: time is σ, no scaling, our grids, and Heun's own α.
fn is_known_sampler(f: &Fixture) -> bool {
    let args = &f.json["args"];
    let is = |key: &str, values: &[&str]| args[key].as_str().is_none_or(|v| values.contains(&v));
    let own_alpha = args["solver"] == "euler" || args["alpha"].as_f64().is_none_or(|alpha| alpha == 1.0);
    match f.json["sampler"].as_str() {
        Some("edm_sampler") => true,
        Some("ablation_sampler") => {
            is("discretization", &["edm", "ve"]) && is("schedule", &["linear"]) && is("scaling", &["none"]) && own_alpha
        }
        _ => false,
    }
}

fn sampler(f: &Fixture) -> Outcome<f64> {
    let network = f.named_network()?;
    let described = Described::of(&network)?;
    let weights = described.weights("")?;
    let net = described.model.bind(&weights)?;
    let get = |key: &str, default: f64| f.number(key).unwrap_or(default);
    // The reference keeps to the noise levels that the network supports.
    let limit = |key: &str, default: f64| network.json["config"][key].as_f64().unwrap_or(default);
    let ve = f.json["args"]["discretization"] == "ve";
    let (low, high) = if ve { (0.02, 100.0) } else { (0.002, 80.0) };
    let config = OdeConfig {
        steps: get("num_steps", 18.0) as usize,
        sigma_min: get("sigma_min", low).max(limit("sigma_min", 0.0)),
        sigma_max: get("sigma_max", high).min(limit("sigma_max", f64::INFINITY)),
        // σ² in geometric steps is ln σ in even ones.
        spacing: if ve { Spacing::LogSnr } else { Spacing::Karras { rho: get("rho", 7.0) } },
        churn: Churn {
            s_churn: get("S_churn", 0.0),
            s_min: get("S_min", 0.0),
            s_max: get("S_max", f64::INFINITY),
            s_noise: get("S_noise", 1.0),
        },
        guidance: None,
    };
    let config = match f.json["args"]["solver"].as_str() {
        Some("euler") => SamplerConfig::Euler(config),
        _ => SamplerConfig::Heun(config),
    };
    let conditioning = f.conditioning(described.model.image.label_dim)?;
    let latents = f.tensor("in.latents")?;
    let noise = f.tensor("in.noise").ok();
    let batch = latents.size()[0];
    let samples = sample(
        &config,
        &described.model.preconditioning,
        &latents,
        |x, sigma| {
            let sigma = Tensor::full([batch], sigma, (Kind::Float, device()));
            net.denoise(x, &sigma, Scalings::Plain, &conditioning, false)
        },
        |step| noise.as_ref().map_or_else(|| latents.zeros_like(), |n| n.get(step as i64)),
    );
    f.compare(&samples.images, "out.samples")
}

fn fid(f: &Fixture) -> Outcome<f64> {
    let stats = |name: &str| -> Outcome<FeatureStats> {
        let features = f.tensor(name)?;
        let mut sums = StatsAccumulator::new(features.size()[1], device());
        // In two parts, as a stream of images would come.
        for part in features.chunk(2, 0) {
            sums.add(&part)?;
        }
        Ok(sums.finish()?)
    };
    let (a, b) = (stats("in.features_a")?, stats("in.features_b")?);
    let mean = f.compare(&a.mean, "out.mu_a")?;
    let cov = f.compare(&a.cov, "out.sigma_a")?;
    let fid = Tensor::from_slice(&[frechet_distance(&a, &b)?]);
    Ok(f.compare(&fid, "out.fid")?.max(mean).max(cov))
}

/// The Lite network that a file is about.
fn lite_of(f: &Fixture) -> Option<LiteName> {
    [LiteName::Lite0, LiteName::Lite2].into_iter().find(|name| f.json["network"] == name.name())
}

/// The weights of a Lite network, where scripts/setup.sh put them.
fn weights_of(name: LiteName) -> Option<PathBuf> {
    near_places(&format!("weights/{}", name.weights().file)).into_iter().find(|path| path.is_file())
}

fn lite(f: &Fixture) -> Outcome<f64> {
    let name = lite_of(f).ok_or("no network")?;
    let path = weights_of(name).ok_or("no weights")?;
    let tensors = lcsc_trajectory::read_tensors(&path, &std::fs::read(&path)?, None)?;
    let features = |side| -> Outcome<Tensor> {
        let net = Lite::new(name, side, &tensors, name.weights().sha256, device())?;
        Ok(Extractor::Lite(Box::new(net)).features(&f.tensor("in.images")?)?)
    };
    let side = f.json["side"].as_i64().ok_or("no side")?;
    Ok(f.compare(&features(side)?, "out.features")?.max(f.compare(&features(71)?, "out.features_at_71")?))
}

fn inception(f: &Fixture) -> Outcome<f64> {
    let network = cifar10::inception(f.json["weights"]["gain"].as_f64().ok_or("no gain")?)?;
    f.compare(&network.features(&f.tensor("in.images_u8")?)?, "out.pool3")
}
