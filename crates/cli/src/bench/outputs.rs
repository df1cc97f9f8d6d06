//! What the works compute, with what they were given: for another implementation to compare.

use super::setup::{self, CHECKPOINTS, IMAGES, Net};
use super::works::{CANDIDATES, Work};
use lcsc_diffusion::{Conditioning, Model, SamplerConfig, Scalings, edm_loss, generate};
use lcsc_metrics::{FeatureStats, Reference};
use lcsc_search::{Coefficients, Fitness, Latents};
use lcsc_torch::{
    Context, Device, Kind, ParamLayout, Precision, Result, SafeFile, StorageDtype, Stream, Tensor, Weights, bail,
    latents, pack_weights, serialize, write_atomic,
};
use std::path::Path;

type Named = Vec<(String, Tensor)>;

/// Writes `FOLDER/<work>.safetensors` for each work that has an output.
///
/// # Errors
/// There is no room, on the device or on the disk.
pub fn write(folder: &Path, works: &[Work], device: Device) -> Result<()> {
    std::fs::create_dir_all(folder).at(folder)?;
    for &work in works {
        let tensors = of(work, device)?;
        if !tensors.is_empty() {
            let path = folder.join(format!("{}.safetensors", work.name()));
            write_atomic(&path, &serialize(&tensors, ("work", &work.name()))?)?;
        }
    }
    Ok(())
}

fn of(work: Work, device: Device) -> Result<Named> {
    match work {
        Work::TrainTiny => training(Net::Tiny, device),
        Work::TrainCifar10 => training(Net::Cifar10, device),
        Work::TrainImagenet64 => training(Net::Imagenet64, device),
        Work::SampleOneStep => sampling(&setup::one_step(), device),
        Work::SampleHeun => sampling(&setup::heun(), device),
        Work::Merge => merging(1, device),
        Work::MergeMany => merging(CANDIDATES, device),
        Work::Features => features(device),
        Work::Frechet => frechet(device),
        Work::Evaluation => evaluation(device),
        // Made of the others, or nothing to compare.
        Work::Fid | Work::Checkpoint | Work::AllReduce => Ok(vec![]),
    }
}

fn named(name: &str, tensor: &Tensor) -> (String, Tensor) {
    (name.to_string(), tensor.shallow_clone())
}

/// The pieces of a flat vector under a prefix.
fn pieces(prefix: &str, layout: &ParamLayout, theta: &Tensor) -> Result<Named> {
    let weights = Weights { theta: theta.shallow_clone(), buffers: vec![] };
    let packed = pack_weights(layout, &weights, StorageDtype::F32)?;
    Ok(under(prefix, packed))
}

fn under(prefix: &str, tensors: Named) -> Named {
    tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
}

/// Initial weights with noise on them: some layers begin at zero.
fn noisy(model: &Model, seed: u64, device: Device) -> Result<Weights> {
    let weights = model.layout.init(seed, device)?;
    // On the CPU: drawing this many at once takes a multiple of their memory on a GPU.
    let noise = latents(seed, Stream::Noise, 0, 1, [model.layout.numel(), 1, 1], Device::Cpu)?.f_flatten(0, -1)?;
    let noise = noise.f_to(device)?;
    Ok(weights.with_theta(weights.theta.f_add(&noise.f_mul_scalar(0.02)?)?))
}

/// EDM's loss of two images, and its gradient.
fn training(net: Net, device: Device) -> Result<Named> {
    let model = net.model(Precision::F32);
    let weights = noisy(&model, 0, device)?;
    let leaf = weights.theta.f_set_requires_grad(true)?;
    let net = model.bind(&weights.with_theta(leaf.shallow_clone()))?;
    let draw = |stream| latents(1, stream, 0, 2, model.image.chw(), device);
    let (y, noise) = (draw(Stream::SampleLatents)?.f_clamp(-1.0, 1.0)?, draw(Stream::Noise)?);
    let sigma = Tensor::f_from_slice(&[0.2f32, 3.0])?.f_to(device)?;
    let denoise = |x: &Tensor, s: &Tensor| net.denoise(x, s, Scalings::Plain, &Conditioning::default(), false);
    let loss = edm_loss(denoise, &y, &sigma, &noise, 0.5);
    let grad = Tensor::f_run_backward(&[&loss.f_sum(Kind::Float)?], &[&leaf], false, false)?.remove(0);
    let mut all =
        vec![named("y", &y), named("noise", &noise), named("sigma", &sigma), named("loss", &loss.f_detach()?)];
    all.extend(pieces("theta/", &model.layout, &weights.theta)?);
    all.extend(pieces("grad/", &model.layout, &grad)?);
    Ok(all)
}

fn sampling(sampler: &SamplerConfig, device: Device) -> Result<Named> {
    const N: usize = 16;
    let model = Net::Tiny.model(Precision::F32);
    let weights = noisy(&model, 0, device)?;
    let stream = Stream::SampleLatents;
    let z = latents(0, stream, 0, N, model.image.chw(), device)?;
    let images = generate(&model.bind(&weights)?, sampler, 0, stream, 0, N, device)?.images;
    let mut all = vec![named("latents", &z), named("images", &images)];
    all.extend(pieces("theta/", &model.layout, &weights.theta)?);
    Ok(all)
}

/// Coefficients that sum to one, some of them negative.
fn alpha(candidate: usize) -> Vec<f64> {
    let raw: Vec<f64> = (0..CHECKPOINTS).map(|i| (0.7 * (i + candidate) as f64).sin() + 0.2).collect();
    let sum: f64 = raw.iter().sum();
    raw.iter().map(|a| a / sum).collect()
}

fn merging(candidates: usize, device: Device) -> Result<Named> {
    let (layout, partition) = setup::flat(10_000);
    let rows = latents(0, Stream::Noise, 0, CHECKPOINTS, [1, 1, layout.numel()], Device::Cpu)?.f_flatten(1, -1)?;
    let (_folder, window) = setup::window(device, &layout, |i| Ok(rows.f_get(i)?))?;
    let alphas: Vec<Vec<Vec<f64>>> = (0..candidates).map(|i| vec![alpha(i)]).collect();
    let thetas = window.merge_many(&partition, &alphas.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    let flat: Vec<f64> = alphas.concat().concat();
    let alphas = Tensor::f_from_slice(&flat)?.f_view([candidates as i64, CHECKPOINTS as i64])?;
    Ok(vec![named("w", &rows), named("alpha", &alphas), named("theta", &thetas)])
}

fn features(device: Device) -> Result<Named> {
    let weights = setup::inception_weights()?;
    let images = setup::pixels(16, [3, 32, 32])?;
    let found = setup::inception(&weights, device)?.features(&images)?;
    let mut all = under("weights/", weights);
    all.extend([named("images", &images), named("features", &found)]);
    Ok(all)
}

fn frechet(device: Device) -> Result<Named> {
    let [real, generated] = setup::feature_pair(device)?;
    let distance = Reference::new(FeatureStats::of(&real)?)?.distance(&FeatureStats::of(&generated)?)?;
    Ok(vec![
        named("real", &real),
        named("generated", &generated),
        named("distance", &Tensor::f_from_slice(&[distance])?),
    ])
}

fn evaluation(device: Device) -> Result<Named> {
    let model = Net::Tiny.model(Precision::F32);
    let rows = (0..CHECKPOINTS as u64).map(|i| Ok(noisy(&model, i, Device::Cpu)?.theta)).collect::<Result<Vec<_>>>()?;
    let search = setup::Search::new(device, model, &Tensor::f_stack(&rows, 0)?, IMAGES)?;
    let coefficients = Coefficients::one(alpha(0))?;
    let candidate = lcsc_search::Model::Coefficients(coefficients);
    let distances: Vec<f64> =
        search.fitness().scores(&[&candidate], Latents::Search)?.iter().map(|scores| scores.fd).collect();
    let z = latents(0, Stream::SearchLatents, 0, IMAGES as usize, search.model.image.chw(), device)?;
    let mut all = vec![
        named("alpha", &Tensor::f_from_slice(&alpha(0))?),
        named("distance", &Tensor::f_from_slice(&distances)?),
        named("latents", &z),
        named("real", &search.data.images),
    ];
    for (i, theta) in rows.iter().enumerate() {
        all.extend(pieces(&format!("theta{i}/"), &search.model.layout, theta)?);
    }
    all.extend(under("classifier/", search.classifier()?.tensors()?));
    Ok(all)
}

impl setup::Search {
    /// The file of the classifier that it measures with.
    fn classifier(&self) -> Result<SafeFile> {
        let folder = self.folder();
        for entry in std::fs::read_dir(folder).at(folder)? {
            let path = entry.at(folder)?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("classifier-a")) {
                return SafeFile::open(path);
            }
        }
        bail!("no classifier was kept in {}", folder.display())
    }
}
