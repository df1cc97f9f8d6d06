//! Evaluations as CUDA graphs, on the stand-in: what is recorded once holds for other weights and inputs.

use lcsc_diffusion::{Conditioning, Model, PreconditioningConfig, Scalings, one_hot};
use lcsc_tests::standin::is_inside;
use lcsc_torch::tch::no_grad;
use lcsc_torch::{Device, Error, Graph, Kind, Plan, Precision, Stream, Tensor, Weights, catch, latents};
use lcsc_unet::{ImageShape, NetworkConfig, SongUNetConfig};

const GPU: Device = Device::Cuda(0);
const IMAGE: ImageShape = ImageShape { channels: 3, resolution: 8, label_dim: 3 };

fn model() -> Model {
    let network = NetworkConfig::Song(SongUNetConfig { model_channels: 8, ..SongUNetConfig::tiny() });
    Model::new(&network, &PreconditioningConfig::default(), IMAGE, Precision::F32)
}

/// D(x;σ) of n images on the weights' device, of a class or of none.
fn images(model: &Model, weights: &Weights, first: u64, n: usize, class: Option<i64>) -> Tensor {
    let device = weights.theta.device();
    let x = latents(0, Stream::Noise, first, n, IMAGE.chw(), device).unwrap();
    let sigma = Tensor::full([n as i64], 0.5 + first as f64, (Kind::Float, device));
    let classes = class.map(|class| Tensor::full([n as i64], class, (Kind::Int64, device)));
    let conditioning = Conditioning { labels: one_hot(classes.as_ref(), IMAGE.label_dim), augment_labels: None };
    let net = model.bind(weights).unwrap();
    no_grad(|| net.denoise(&x, &sigma, Scalings::Plain, &conditioning, false))
}

#[test]
fn recorded_evaluations_are_those_of_the_plain_plan() {
    if !is_inside("recorded_evaluations_are_those_of_the_plain_plan") {
        return;
    }
    let (plain, recorded) = (model(), model().with_plan(Plan { graph: true, ..Plan::PLAIN }));
    let weights = |seed, device| {
        let initial = plain.layout.init(seed, device).unwrap();
        initial.with_theta(&initial.theta + 0.02)
    };
    // Other weights, images, numbers of images and classes, and what was there before.
    let cases = [
        (0, 0, 4, Some(1)),
        (1, 0, 4, Some(1)),
        (1, 4, 4, Some(2)),
        (1, 4, 2, Some(2)),
        (0, 8, 4, None),
        (0, 0, 4, Some(1)),
    ];
    let found = cases.map(|(seed, first, n, class)| images(&recorded, &weights(seed, GPU), first, n, class));
    for ((seed, first, n, class), found) in cases.into_iter().zip(found) {
        let expected = images(&plain, &weights(seed, Device::Cpu), first, n, class);
        let error = (found.to(Device::Cpu) - expected).abs().max().double_value(&[]);
        assert!(error < 1e-5, "{seed} {first} {n} {class:?}: {error}");
    }
    // A gradient goes through the network itself.
    let theta = weights(0, GPU).theta.set_requires_grad(true);
    let net = recorded.bind(&plain.layout.init(0, GPU).unwrap().with_theta(theta.shallow_clone())).unwrap();
    let x = latents(0, Stream::Noise, 0, 2, IMAGE.chw(), GPU).unwrap();
    let denoised =
        net.denoise(&x, &Tensor::ones([2], (Kind::Float, GPU)), Scalings::Plain, &Conditioning::default(), false);
    assert!(denoised.requires_grad());
}

#[test]
fn a_recording_that_fails_leaves_the_next_one_whole() {
    if !is_inside("a_recording_that_fails_leaves_the_next_one_whole") {
        return;
    }
    let x = Tensor::ones([3], (Kind::Float, GPU));
    // The work is called twice: at first to see that it can be done.
    for last in [1, 2] {
        let mut calls = 0;
        let error = Graph::record(GPU, || {
            calls += 1;
            if calls == last { Err(Error::msg("no room")) } else { Ok(()) }
        });
        assert_eq!((error.err().unwrap().to_string(), calls), ("no room".to_string(), last));
    }
    let waits = || Graph::record(GPU, || x.f_sum(Kind::Float)?.f_double_value(&[]).map(|_| ()).map_err(Error::from));
    let text = catch("recording", waits).err().unwrap().to_string();
    assert!(text.contains("nobody may wait"), "{text}");
    let mut y = x.shallow_clone();
    let graph = Graph::record(GPU, || y.f_add_(&x).map(|_| ()).map_err(Error::from)).unwrap();
    let before = y.double_value(&[0]);
    graph.replay().unwrap();
    assert_eq!(y.double_value(&[0]), 2.0 * before);
}
