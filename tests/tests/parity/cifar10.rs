//! FID between real images: whatever the batches, it is what the definition gives.

use crate::fixture::{Outcome, device, own_rule};
use indicatif::ProgressBar;
use lcsc_data::{DataConfig, Dataset};
use lcsc_metrics::{Evaluation, Extractor, FeatureStats, Inception, Metrics, Scorer};
use lcsc_torch::{Kind, Tensor, TensorSpec};
use libtest_mimic::Trial;
use std::path::{Path, PathBuf};

/// Images a side: 2,048 features of few images, as a test has time for.
const N: i64 = 24;

/// The network of the inception files: weights by the rule.
pub fn inception(gain: f64) -> Outcome<Extractor> {
    let tensor =
        |spec: &TensorSpec| (spec.name.clone(), Tensor::from_slice(&own_rule(spec, gain)).view(&spec.shape[..]));
    let tensors: Vec<_> = Inception::tensors().iter().map(tensor).collect();
    Ok(Extractor::Inception(Box::new(Inception::new(&tensors, "rule", device())?)))
}

/// The trial, where `LCSC_DATA_DIR` (default: `../shared/data` beside the checkout) has CIFAR-10's training and test zips.
pub fn trial() -> Trial {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("LCSC_DATA_DIR").map_or_else(beside, PathBuf::from);
    let here = ["cifar10-train.zip", "cifar10-test.zip"].iter().all(|name| folder.join(name).is_file());
    let name = "fid-of-cifar10";
    if !here {
        // Standard output is the list of tests for those who ask for it.
        eprintln!("skipped: {name}: {} has no cifar10-train.zip and cifar10-test.zip", folder.display());
    }
    Trial::test(name, move || check(&folder)).with_ignored_flag(!here)
}

fn images(folder: &Path, name: &str) -> Outcome<Tensor> {
    let config = DataConfig { source: folder.join(name).display().to_string(), ..DataConfig::default() };
    Ok(Dataset::open(&config, &ProgressBar::hidden())?.images.narrow(0, 0, N))
}

/// ‖μ−μr‖² + Tr Σ + Tr Σr − 2·Tr(ΣΣr)^½, the last for centred features A and B as the nuclear norm of A·Bᵀ/(N−1).
fn by_definition(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let mean = |x: &Tensor| x.mean_dim(0i64, true, Kind::Double);
    let (centred_a, centred_b) = (&a - mean(&a), &b - mean(&b));
    let squares = |x: &Tensor| x.square().sum(Kind::Double).double_value(&[]);
    let roots = centred_a.matmul(&centred_b.tr()).svd(true, false).1.sum(Kind::Double).double_value(&[]);
    squares(&(mean(&a) - mean(&b))) + (squares(&centred_a) + squares(&centred_b) - 2.0 * roots) / (N - 1) as f64
}

fn check(folder: &Path) -> Outcome<()> {
    let (train, test) = (images(folder, "cifar10-train.zip")?, images(folder, "cifar10-test.zip")?);
    let network = inception(6.0)?;
    let of_train = network.features(&train)?;
    let direct = by_definition(&of_train, &network.features(&test)?);
    let scorer = Scorer::from_statistics(network, FeatureStats::of(&of_train)?, "cifar10-train")?;
    let in_batches = |batch: i64| -> Outcome<f64> {
        let mut evaluation = Evaluation::new(&scorer, N as u64, Metrics::default())?;
        for images in test.split(batch, 0) {
            evaluation.add(&images)?;
        }
        Ok(evaluation.finish()?.fd)
    };
    let (at_once, batched) = (in_batches(N)?, in_batches(12)?);
    println!(
        "parity fid-of-cifar10: {at_once:.9} at once, {batched:.9} in batches of 12, {direct:.9} by the definition"
    );
    if at_once != batched || (at_once - direct).abs() > 1e-6 * direct {
        return Err(format!("FID is {at_once} at once, {batched} in batches, {direct} by the definition").into());
    }
    Ok(())
}
