//! One file: tensors, and the JSON that says what they are.

use lcsc_diffusion::Conditioning;
use lcsc_torch::{Device, DeviceChoice, Kind, SafeFile, Tensor, TensorSpec};
use libtest_mimic::Failed;
use serde_json::Value;
use std::path::Path;
use std::sync::LazyLock;

/// What a check gives.
pub type Outcome<T> = Result<T, Failed>;

/// Where all is computed: what `LCSC_PARITY_DEVICE` names, by default the CPU.
pub fn device() -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(|| {
        let named = std::env::var("LCSC_PARITY_DEVICE").unwrap_or_else(|_| "cpu".into());
        named.parse::<DeviceChoice>().unwrap().resolve().unwrap()
    });
    *DEVICE
}

/// A safetensors file of the parity folder.
pub struct Fixture {
    pub file: SafeFile,
    pub json: Value,
}

impl Fixture {
    pub fn open(path: &Path) -> Outcome<Self> {
        let file = SafeFile::open(path)?;
        // Python writes an infinite limit as a word that JSON lacks.
        let json = serde_json::from_str(&file.metadata("fixture")?.replace("Infinity", "1e300"))?;
        Ok(Self { file, json })
    }

    /// On the device.
    pub fn tensor(&self, name: &str) -> Outcome<Tensor> {
        Ok(self.file.tensor(name)?.to(device()))
    }

    pub fn optional(&self, name: &str) -> Outcome<Option<Tensor>> {
        self.file.names().iter().any(|n| n == name).then(|| self.tensor(name)).transpose()
    }

    /// A number among the `args`.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.json["args"][key].as_f64()
    }

    /// Fails unless |found − out| ≤ atol + rtol·|out| everywhere; otherwise the largest absolute error.
    pub fn compare(&self, found: &Tensor, name: &str) -> Outcome<f64> {
        let expected = self.tensor(name)?.to_kind(Kind::Double);
        let found = found.to(device()).to_kind(Kind::Double);
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

    /// Labels one-hot, given so or as classes; and augmentation labels.
    pub fn conditioning(&self, label_dim: i64) -> Outcome<Conditioning> {
        let one_hot = |classes: Tensor| classes.one_hot(label_dim).to_kind(Kind::Float);
        let labels = match self.optional("in.labels")? {
            Some(labels) => Some(labels),
            None => self.optional("in.classes")?.map(one_hot),
        };
        Ok(Conditioning { labels, augment_labels: self.optional("in.augment_labels")? })
    }

    /// The file of the network that this one names.
    pub fn named_network(&self) -> Outcome<Fixture> {
        let name = self.json["network"]["fixture"].as_str().ok_or("no network named")?;
        Fixture::open(&self.file.path().with_file_name(format!("{name}.safetensors")))
    }
}

/// The values of a tensor by the weight rule `splitmix64-fnv1a`.
pub fn rule(name: &str, shape: &[i64], gain: f64) -> Vec<f32> {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let fan_in = shape.iter().skip(1).product::<i64>() as f64;
    let value = |i: i64| {
        let z = hash.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        let u = 2.0 * ((z >> 11) as f64 * (0.5f64).powi(53)) - 1.0;
        let value = match shape.len() {
            1 if name.ends_with("running_var") => 1.0 + 0.5 * u,
            1 if name.ends_with("weight") => 1.0 + 0.1 * u,
            1 if name.ends_with("freqs") => 16.0 * u,
            1 => 0.1 * u,
            _ => u * (gain / fan_in).sqrt(),
        };
        value as f32
    };
    (0..shape.iter().product()).map(value).collect()
}

/// The rule for a tensor of ours under its own name.
pub fn own_rule(spec: &TensorSpec, gain: f64) -> Vec<f32> {
    rule(&spec.name, &spec.shape, gain)
}
