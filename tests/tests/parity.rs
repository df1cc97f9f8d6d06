//! Reproduces the numbers of the reference codes in every file of `LCSC_PARITY_DIR` (default: `tests/parity`).
//!
//! One test a file; each prints its largest error. Kinds that are not built yet are listed as ignored.
//! `tests/parity/README.md` describes the files and the rule that makes their weights.

use lcsc_diffusion::{
    Adjustment, Churn, Conditioning, EctConfig, EdmConfig, Model, OdeConfig, SamplerConfig, Scalings, ect_loss,
    edm_loss, sample,
};
use lcsc_metrics::{StatsAccumulator, frechet_distance};
use lcsc_torch::{Device, Kind, Precision, SafeFile, Tensor, TensorSpec, Weights};
use lcsc_unet::{Decoder, Embedding, Encoder, ImageShape, SongUNetConfig};
use libtest_mimic::{Arguments, Failed, Trial};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

type Outcome<T> = Result<T, Failed>;

fn main() {
    tch_single_thread();
    let folder = std::env::var_os("LCSC_PARITY_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("parity"), PathBuf::from);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds no parity file", folder.display());
    let trials = files.into_iter().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn tch_single_thread() {
    lcsc_torch::set_cpu_threads(1);
}

fn trial(path: PathBuf) -> Trial {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let check: fn(&Fixture) -> Outcome<f64> = match Fixture::open(&path).map(|f| f.check()) {
        Ok(Some(check)) => check,
        Ok(None) => return Trial::test(name, || Ok(())).with_kind("not yet supported").with_ignored_flag(true),
        Err(e) => return Trial::test(name, || Err(e)),
    };
    Trial::test(name.clone(), move || {
        let worst = check(&Fixture::open(&path)?)?;
        println!("parity {name}: largest error {worst:.2e}");
        Ok(())
    })
}

/// One file: tensors, and the JSON that says what they are.
struct Fixture {
    file: SafeFile,
    json: Value,
}

impl Fixture {
    fn open(path: &Path) -> Outcome<Self> {
        let file = SafeFile::open(path)?;
        // Python writes an infinite limit as a word that JSON lacks.
        let json = serde_json::from_str(&file.metadata("fixture")?.replace("Infinity", "1e300"))?;
        Ok(Self { file, json })
    }

    /// The check for this kind, if it and the network that it names are built.
    fn check(&self) -> Option<fn(&Fixture) -> Outcome<f64>> {
        // A network that is missing is an error of the check, not a kind to come.
        let named = || self.named_network().map_or(true, |network| network.is_song_with_edm());
        match self.json["kind"].as_str()? {
            "network" if self.is_song_with_edm() => Some(network),
            "sampler" if self.is_edm_sampler() && named() => Some(sampler),
            "edm-loss" if named() => Some(edm),
            "ect-loss" if named() => Some(ect),
            "fid" => Some(fid),
            _ => None,
        }
    }

    fn is_song_with_edm(&self) -> bool {
        self.json["config"]["model_type"] == "SongUNet"
            && self.json["source"].as_str().is_some_and(|s| s.ends_with("EDMPrecond"))
    }

    /// EDM's sampler, or the ablation sampler where it equals ours: EDM's own schedule, scaling, discretisation and α.
    fn is_edm_sampler(&self) -> bool {
        let args = &self.json["args"];
        let is = |key: &str, value: &str| args[key].as_str().is_none_or(|v| v == value);
        let own_alpha = args["solver"] == "euler" || args["alpha"].as_f64().is_none_or(|alpha| alpha == 1.0);
        match self.json["sampler"].as_str() {
            Some("edm_sampler") => true,
            Some("ablation_sampler") => {
                is("discretization", "edm") && is("schedule", "linear") && is("scaling", "none") && own_alpha
            }
            _ => false,
        }
    }

    fn tensor(&self, name: &str) -> Outcome<Tensor> {
        Ok(self.file.tensor(name)?)
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.json["args"][key].as_f64()
    }

    /// Fails unless |found − out| ≤ atol + rtol·|out| everywhere; otherwise the largest absolute error.
    fn compare(&self, found: &Tensor, name: &str) -> Outcome<f64> {
        let expected = self.tensor(name)?.to_kind(Kind::Double);
        let found = found.to_kind(Kind::Double);
        if found.size() != expected.size() {
            return Err(format!("{name}: shape {:?}, expected {:?}", found.size(), expected.size()).into());
        }
        let (rtol, atol) = (self.json["rtol"].as_f64().unwrap_or(0.0), self.json["atol"].as_f64().unwrap_or(0.0));
        let error = (found - &expected).abs();
        let worst = error.max().double_value(&[]);
        let excess = (error - expected.abs() * rtol - atol).max().double_value(&[]);
        // A NaN fails: no comparison with it holds.
        if excess <= 0.0 {
            Ok(worst)
        } else {
            Err(format!("{name}: largest error {worst:.3e} is out of tolerance").into())
        }
    }

    fn optional(&self, name: &str) -> Outcome<Option<Tensor>> {
        self.file.names().iter().any(|n| n == name).then(|| self.tensor(name)).transpose()
    }

    fn conditioning(&self) -> Outcome<Conditioning> {
        Ok(Conditioning { labels: self.optional("in.labels")?, augment_labels: self.optional("in.augment_labels")? })
    }

    /// The file of the network that this one names.
    fn named_network(&self) -> Outcome<Fixture> {
        let name = self.json["network"]["fixture"].as_str().ok_or("no network named")?;
        Fixture::open(&self.file.path().with_file_name(format!("{name}.safetensors")))
    }

    /// The network of this file, with the weights of its rule.
    fn own_network(&self) -> Outcome<(Model, Weights)> {
        let config: EdmNetwork = serde_json::from_value(self.json["config"].clone())?;
        let (song, image) = config.split();
        let model = Model::new(&song, image, config.sigma_data, Precision::F32);
        let gain = self.json["weights"]["gain"].as_f64().ok_or("no gain")?;
        let initial = model.layout.init(0, Device::Cpu)?;
        let values: Vec<f32> = model.layout.params().iter().flat_map(|spec| rule(spec, gain)).collect();
        let buffer = |(spec, own): (&TensorSpec, Tensor)| {
            if spec.name.ends_with("freqs") { Tensor::from_slice(&rule(spec, gain)) } else { own }
        };
        let buffers = model.layout.buffers().iter().zip(initial.buffers).map(buffer).collect();
        if let Some(expected) = self.json["params"].as_i64().filter(|&n| n != model.layout.numel()) {
            return Err(format!("the network has {} parameters, expected {expected}", model.layout.numel()).into());
        }
        Ok((model, Weights { theta: Tensor::from_slice(&values), buffers }))
    }
}

/// The weight rule `splitmix64-fnv1a`.
fn rule(spec: &TensorSpec, gain: f64) -> Vec<f32> {
    let hash =
        spec.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let fan_in = spec.shape.iter().skip(1).product::<i64>() as f64;
    let value = |i: i64| {
        let z = hash.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        let u = 2.0 * ((z >> 11) as f64 * (0.5f64).powi(53)) - 1.0;
        let value = match spec.shape.len() {
            1 if spec.name.ends_with("running_var") => 1.0 + 0.5 * u,
            1 if spec.name.ends_with("weight") => 1.0 + 0.1 * u,
            1 if spec.name.ends_with("freqs") => 16.0 * u,
            1 => 0.1 * u,
            _ => u * (gain / fan_in).sqrt(),
        };
        value as f32
    };
    (0..spec.numel()).map(value).collect()
}

/// The arguments of EDM's `EDMPrecond` with a `SongUNet`, as a fixture writes them; defaults are EDM's.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EdmNetwork {
    img_resolution: i64,
    img_channels: i64,
    label_dim: i64,
    model_type: String,
    use_fp16: bool,
    sigma_min: f64,
    sigma_max: Option<f64>,
    sigma_data: f64,
    augment_dim: i64,
    model_channels: i64,
    channel_mult: Vec<i64>,
    channel_mult_emb: i64,
    num_blocks: i64,
    attn_resolutions: Vec<i64>,
    dropout: f64,
    label_dropout: f64,
    embedding_type: Embedding,
    channel_mult_noise: i64,
    encoder_type: Encoder,
    decoder_type: Decoder,
    resample_filter: Vec<f64>,
}

impl Default for EdmNetwork {
    fn default() -> Self {
        Self {
            img_resolution: 32,
            img_channels: 3,
            label_dim: 0,
            model_type: "SongUNet".into(),
            use_fp16: false,
            sigma_min: 0.0,
            sigma_max: None,
            sigma_data: 0.5,
            augment_dim: 0,
            model_channels: 128,
            channel_mult: vec![1, 2, 2, 2],
            channel_mult_emb: 4,
            num_blocks: 4,
            attn_resolutions: vec![16],
            dropout: 0.1,
            label_dropout: 0.0,
            embedding_type: Embedding::Positional,
            channel_mult_noise: 1,
            encoder_type: Encoder::Standard,
            decoder_type: Decoder::Standard,
            resample_filter: vec![1.0, 1.0],
        }
    }
}

impl EdmNetwork {
    fn split(&self) -> (SongUNetConfig, ImageShape) {
        let song = SongUNetConfig {
            model_channels: self.model_channels,
            channel_mult: self.channel_mult.clone(),
            channel_mult_emb: self.channel_mult_emb,
            num_blocks: self.num_blocks,
            attn_resolutions: self.attn_resolutions.clone(),
            dropout: self.dropout,
            label_dropout: self.label_dropout,
            embedding_type: self.embedding_type,
            channel_mult_noise: self.channel_mult_noise,
            encoder_type: self.encoder_type,
            decoder_type: self.decoder_type,
            resample_filter: self.resample_filter.clone(),
            augment_dim: self.augment_dim,
        };
        let image =
            ImageShape { channels: self.img_channels, resolution: self.img_resolution, label_dim: self.label_dim };
        (song, image)
    }
}

fn network(f: &Fixture) -> Outcome<f64> {
    let (model, weights) = f.own_network()?;
    let net = model.bind(&weights)?;
    let (x, sigma) = (f.tensor("in.x")?, f.tensor("in.sigma")?);
    let denoised = |conditioning| net.denoise(&x, &sigma, Scalings::Edm, &conditioning, false);
    let mut worst = f.compare(&denoised(f.conditioning()?), "out.denoised")?;
    if f.optional("out.denoised_no_label")?.is_some() {
        let without_label = Conditioning { labels: None, ..f.conditioning()? };
        worst = worst.max(f.compare(&denoised(without_label), "out.denoised_no_label")?);
    }
    Ok(worst)
}

fn sampler(f: &Fixture) -> Outcome<f64> {
    let network = f.named_network()?;
    let (model, weights) = network.own_network()?;
    let net = model.bind(&weights)?;
    let get = |key: &str, default: f64| f.number(key).unwrap_or(default);
    // The reference keeps to the noise levels that the network supports.
    let limit = |key: &str, default: f64| network.json["config"][key].as_f64().unwrap_or(default);
    let config = OdeConfig {
        steps: get("num_steps", 18.0) as usize,
        sigma_min: get("sigma_min", 0.002).max(limit("sigma_min", 0.0)),
        sigma_max: get("sigma_max", 80.0).min(limit("sigma_max", f64::INFINITY)),
        rho: get("rho", 7.0),
        churn: Churn {
            s_churn: get("S_churn", 0.0),
            s_min: get("S_min", 0.0),
            s_max: get("S_max", f64::INFINITY),
            s_noise: get("S_noise", 1.0),
        },
    };
    let config = match f.json["args"]["solver"].as_str() {
        Some("euler") => SamplerConfig::Euler(config),
        _ => SamplerConfig::Heun(config),
    };
    let conditioning = f.conditioning()?;
    let latents = f.tensor("in.latents")?;
    let noise = f.tensor("in.noise").ok();
    let batch = latents.size()[0];
    let samples = sample(
        &config,
        &latents,
        |x, sigma| {
            let sigma = Tensor::full([batch], sigma, (Kind::Float, Device::Cpu));
            net.denoise(x, &sigma, Scalings::Edm, &conditioning, false)
        },
        |step| noise.as_ref().map_or_else(|| latents.zeros_like(), |n| n.get(step as i64)),
    );
    f.compare(&samples.images, "out.samples")
}

fn edm(f: &Fixture) -> Outcome<f64> {
    let (model, weights) = f.named_network()?.own_network()?;
    let (net, conditioning) = (model.bind(&weights)?, f.conditioning()?);
    let number = |key: &str, default: f64| f.json[key].as_f64().unwrap_or(default);
    let config = EdmConfig { p_mean: number("P_mean", -1.2), p_std: number("P_std", 1.2) };
    let (y, noise) = (f.tensor("in.images")?, f.tensor("in.noise")?);
    let sigma = (f.tensor("in.rnd_normal")? * config.p_std + config.p_mean).exp();
    let denoise = |x: &Tensor, s: &Tensor| net.denoise(x, s, Scalings::Edm, &conditioning, false);
    let loss = edm_loss(denoise, &y, &sigma, &noise, number("sigma_data", 0.5));
    // The reference's mean over pixels; ours is the sum.
    let pixels = y.size()[1..].iter().product::<i64>() as f64;
    f.compare(&(loss / pixels), "out.loss_per_sample_mean")
}

fn ect(f: &Fixture) -> Outcome<f64> {
    let (model, weights) = f.named_network()?.own_network()?;
    let (net, conditioning) = (model.bind(&weights)?, f.conditioning()?);
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
    let denoise = |x: &Tensor, s: &Tensor| net.denoise(x, s, Scalings::Edm, &conditioning, false);
    let loss = ect_loss(denoise, &f.tensor("in.images")?, &t, &r, &f.tensor("in.noise")?, config.c);
    f.compare(&loss, "out.loss_per_sample")
}

fn fid(f: &Fixture) -> Outcome<f64> {
    let stats = |name: &str| -> Outcome<lcsc_metrics::FeatureStats> {
        let features = f.tensor(name)?;
        let mut sums = StatsAccumulator::new(features.size()[1], Device::Cpu);
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
