use super::*;
use lcsc_diffusion::{Churn, ConsistencyConfig, OdeConfig, PreconditioningConfig};
use lcsc_metrics::{Preparation, Progress, RealImages, Suite};
use lcsc_torch::{Precision, Stream, latents};
use lcsc_unet::{ImageShape, NetworkConfig, SongUNetConfig};

struct Scene {
    model: Model,
    weights: Weights,
    suite: Suite,
    group: Group,
}

/// A small network whose last layer is far from zero, and random convolutions as features.
fn scene() -> Scene {
    lcsc_torch::set_cpu_threads(1);
    let network = NetworkConfig::Song(SongUNetConfig { model_channels: 8, ..SongUNetConfig::tiny() });
    let image = ImageShape { channels: 1, resolution: 8, label_dim: 0 };
    let model = Model::new(&network, &PreconditioningConfig::default(), image, Precision::F32);
    let mut weights = model.layout.init(0, Device::Cpu).unwrap();
    weights.theta = weights.theta + 0.02;
    let real = latents(1, Stream::SampleLatents, 0, 400, image.chw(), Device::Cpu).unwrap();
    let images = (real * 60.0 + 100.0).clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let real = RealImages { images: &images, labels: None, classes: 0, hash: "0123456789abcdef" };
    let progress: Progress = &|_, _, _| ();
    let preparation = Preparation { real, seed: 0, device: Device::Cpu, cache: None, kept: None, progress };
    let suite = preparation.suite([None, None]).unwrap();
    Scene { model, weights, suite, group: Group::alone() }
}

fn samplers() -> [SamplerConfig; 3] {
    let churn = Churn { s_churn: 2.0, ..Churn::default() };
    [
        SamplerConfig::Consistency(ConsistencyConfig { mid_sigmas: vec![], ..Default::default() }),
        SamplerConfig::Consistency(ConsistencyConfig { mid_sigmas: vec![0.8], ..Default::default() }),
        SamplerConfig::Heun(OdeConfig { steps: 3, sigma_max: 20.0, churn, ..Default::default() }),
    ]
}

/// F and ∂F/∂θ of the images of a latent set by the ranks of a group.
struct Objective<'a> {
    scene: &'a Scene,
    sampler: &'a SamplerConfig,
}

impl Objective<'_> {
    fn value_and_gradient(&self, weights: &Weights, latents: LatentSet) -> Result<(f64, Tensor)> {
        let (Scene { group, model, suite, .. }, device) = (self.scene, Device::Cpu);
        Team::of(suite, group, model, device).gradient(weights, self.sampler, latents)
    }
}

fn objective<'a>(scene: &'a Scene, sampler: &'a SamplerConfig) -> Objective<'a> {
    Objective { scene, sampler }
}

/// Fewer images than features would do, too; these have full rank.
fn latent_set(n: u64, chunk: u64) -> LatentSet {
    LatentSet { seed: 7, stream: Stream::StepLatents, n, chunk }
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).norm().double_value(&[]) / b.norm().double_value(&[])
}

#[test]
fn chunks_change_neither_value_nor_gradient() {
    let scene = scene();
    for sampler in &samplers() {
        let objective = objective(&scene, sampler);
        let (fd, whole) = objective.value_and_gradient(&scene.weights, latent_set(96, 96)).unwrap();
        let (again, chunked) = objective.value_and_gradient(&scene.weights, latent_set(96, 40)).unwrap();
        assert!(fd > 0.1 && (fd - again).abs() < 1e-4 * fd, "{fd} {again}");
        let error = relative(&chunked, &whole);
        assert!(error < 1e-3, "{sampler:?}: {error}");
    }
}

/// 96 images in chunks of 40, none of which fits: one of 30 would.
#[test]
fn pieces_that_fit_give_the_gradient_of_the_whole() {
    let scene = scene();
    let (set, sampler) = (latent_set(96, 40), &samplers()[1]);
    let (fd, expected) = objective(&scene, sampler).value_and_gradient(&scene.weights, set).unwrap();
    let Scene { group, model, suite, weights } = &scene;
    for (without, with) in [(96, 30), (30, 96), (30, 7), (1, 1)] {
        let team = Team::of(suite, group, model, Device::Cpu);
        run_out(&team.rooms.without_gradient, without);
        run_out(&team.rooms.with_gradient, with);
        let (again, found) = team.gradient(weights, sampler, set).unwrap();
        assert!((fd / again - 1.0).abs() < 1e-5, "{without}, {with}: {fd} {again}");
        let error = relative(&found, &expected);
        assert!(error < 1e-5, "{without}, {with}: {error}");
    }
}

/// As on a device that has room for so many images.
fn run_out(room: &Room, most: usize) {
    let draw = Draw { seed: 0, stream: Stream::StepLatents, first: 0, n: 96 };
    let fails = |n| if n > most { 1 << 50 } else { 1 };
    let piece = |draw: Draw| Ok(Tensor::zeros([fails(draw.n)], (Kind::Float, Device::Cpu)));
    drop(room.in_pieces(draw, Device::Cpu, piece).unwrap());
}

#[test]
fn a_step_that_does_not_fit_one_pass_takes_two() {
    let scene = scene();
    let sampler = &samplers()[0];
    let (fd, expected) = objective(&scene, sampler).value_and_gradient(&scene.weights, latent_set(96, 96)).unwrap();
    let Scene { group, model, suite, weights } = &scene;
    let team = Team::of(suite, group, model, Device::Cpu);
    run_out(&team.rooms.with_gradient, 24);
    let (again, found) = team.gradient(weights, sampler, latent_set(96, 96)).unwrap();
    assert!((fd / again - 1.0).abs() < 1e-5, "{fd} {again}");
    assert!(relative(&found, &expected) < 1e-5, "{}", relative(&found, &expected));
}

#[test]
fn the_gradient_is_that_of_one_graph_over_everything() {
    let scene = scene();
    let sampler = &samplers()[0];
    let (fd, gradient) = objective(&scene, sampler).value_and_gradient(&scene.weights, latent_set(96, 30)).unwrap();
    // The same by autograd alone, through the sampler, the features and the eigenvalues of √Σr·Σ·√Σr.
    let theta = scene.weights.theta.detach().set_requires_grad(true);
    let net = scene.model.bind(&scene.weights.with_theta(theta.shallow_clone())).unwrap();
    let z = latents(7, Stream::StepLatents, 0, 96, scene.model.image.chw(), Device::Cpu).unwrap();
    let images = lcsc_diffusion::sample(
        sampler,
        &scene.model.preconditioning,
        &z,
        |x, sigma| {
            let sigma = Tensor::full([96], sigma, (Kind::Float, Device::Cpu));
            net.denoise(x, &sigma, sampler.scalings(), &Default::default(), false)
        },
        |_| z.zeros_like(),
    )
    .images;
    let f = scene.suite.primary.extractor.forward(&leaky_clamp(&images)).unwrap().to_kind(Kind::Double);
    let reference = scene.suite.primary.reference.stats();
    let (values, vectors) = reference.cov.linalg_eigh("L");
    let root = (&vectors * values.clamp_min(0.0).sqrt()).matmul(&vectors.tr());
    let mean = f.mean_dim(0i64, false, Kind::Double);
    let centred = &f - &mean;
    let cov = centred.tr().matmul(&centred) / 95.0;
    let product = root.matmul(&cov).matmul(&root);
    let eigenvalues = product.linalg_eigvalsh("L");
    let floor = eigenvalues.max().double_value(&[]) * 1e-10;
    let roots = eigenvalues.clamp_min(floor).sqrt().sum(Kind::Double);
    let whole = (mean - &reference.mean).square().sum(Kind::Double) + cov.trace() + reference.cov.trace() - roots * 2.0;
    let expected = Tensor::run_backward(&[&whole], &[&theta], false, false).remove(0);
    assert!((fd - whole.double_value(&[])).abs() < 1e-4 * fd, "{fd} {}", whole.double_value(&[]));
    let error = relative(&gradient, &expected);
    assert!(error < 1e-3, "{error}");
}

#[test]
fn a_step_against_the_gradient_lowers_the_distance_as_predicted() {
    let scene = scene();
    for sampler in &samplers() {
        let objective = objective(&scene, sampler);
        let value = |theta: Tensor| {
            objective.value_and_gradient(&scene.weights.with_theta(theta), latent_set(96, 96)).unwrap().0
        };
        let gradient = objective.value_and_gradient(&scene.weights, latent_set(96, 96)).unwrap().1;
        let norm = gradient.norm().double_value(&[]);
        let h = 2e-4;
        let along = &gradient * (h / norm);
        let slope = (value(&scene.weights.theta + &along) - value(&scene.weights.theta - &along)) / (2.0 * h);
        assert!((slope / norm - 1.0).abs() < 0.03, "{sampler:?}: {slope} by differences, {norm} by the gradient");
    }
}

#[test]
fn images_that_are_not_finite_have_no_gradient() {
    let scene = scene();
    let sampler = &samplers()[0];
    let broken = scene.weights.with_theta(&scene.weights.theta * f64::NAN);
    for chunk in [64, 20] {
        let (fd, gradient) = objective(&scene, sampler).value_and_gradient(&broken, latent_set(64, chunk)).unwrap();
        assert_eq!(fd, f64::INFINITY);
        assert!(gradient.equal(&broken.theta.zeros_like()), "with chunks of {chunk}");
    }
}

#[test]
fn the_leak_is_small_and_continuous() {
    let x = Tensor::from_slice(&[-3.0f32, -1.0, 0.25, 1.0, 2.0]);
    let found = Vec::<f32>::try_from(leaky_clamp(&x)).unwrap();
    for (a, b) in found.iter().zip([-1.02, -1.0, 0.25, 1.0, 1.01]) {
        assert!((a - b).abs() < 1e-6, "{found:?}");
    }
}
