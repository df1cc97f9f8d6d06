use super::*;
use crate::Start;
use lcsc_data::DataConfig;
use lcsc_diffusion::{
    CdConfig, CtConfig, DdpmConfig, DdpmPreconditioning, EctConfig, EdmConfig, IctConfig, ObjectiveConfig, OdeConfig,
    PreconditioningConfig,
};
use lcsc_torch::{AdamConfig, OptimizerConfig, Precision, Ranks, Store, set_cpu_threads};
use lcsc_trajectory::{EmaConfig, JsonLines, Manifest, TrajectoryConfig};
use lcsc_unet::{ImageShape, NetworkConfig, SongUNetConfig};
use serde_json::{Value, json};
use std::cell::Cell;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const STEPS: u64 = 6;
const BATCH: u64 = 8;

fn stage() -> StageConfig {
    StageConfig {
        name: "edm".into(),
        start: None::<Start>,
        nimg: STEPS * BATCH,
        batch: BATCH,
        microbatch: None,
        objective: ObjectiveConfig::Edm(EdmConfig::default()),
        teacher: None,
        optimizer: OptimizerConfig::Adam(AdamConfig { lr: 1e-2, ..Default::default() }),
        lr_ramp_nimg: 0,
        grad_clip: None,
        non_finite: NonFinite::Stop,
        dropout: None,
        ema: vec![EmaConfig::Constant { beta: 0.5 }],
        trajectory: Some(TrajectoryConfig { every_nimg: BATCH, tracks: vec!["all".into()], ..Default::default() }),
        tick_nimg: Some(BATCH),
        sample_nimg: Some(0),
        state_minutes: None,
    }
}

/// Training seeds torch's global generators: tests of one process that train take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Bench {
    _temp: tempfile::TempDir,
    run: RunFolder,
    model: Model,
    data: Dataset,
    sampler: SamplerConfig,
    card: serde_json::Value,
    group: Group,
}

impl Bench {
    fn new() -> Self {
        Self::with(&PreconditioningConfig::default(), Precision::F32)
    }

    fn with(preconditioning: &PreconditioningConfig, precision: Precision) -> Self {
        set_cpu_threads(1);
        let temp = tempfile::tempdir().unwrap();
        let network = NetworkConfig::Song(SongUNetConfig { model_channels: 4, dropout: 0.2, ..SongUNetConfig::tiny() });
        let image = ImageShape { channels: 1, resolution: 8, label_dim: 0 };
        Self {
            run: RunFolder::create(temp.path()).unwrap(),
            _temp: temp,
            model: Model::new(&network, preconditioning, image, precision),
            data: Dataset::open(&DataConfig { source: "digits".into(), ..Default::default() }, &ProgressBar::hidden())
                .unwrap(),
            sampler: SamplerConfig::Heun(OdeConfig { steps: 2, ..OdeConfig::default() }),
            card: serde_json::json!({}),
            group: Group::alone(),
        }
    }

    fn context<'a>(&'a self, stage: &'a StageConfig) -> StageContext<'a> {
        StageContext {
            run: &self.run,
            stage,
            nimg_before: 100,
            model: &self.model,
            teacher: stage
                .objective
                .needs_teacher()
                .then(|| (&self.model, self.model.layout.init(1, Device::Cpu).unwrap())),
            data: &self.data,
            seed: 3,
            sampler: &self.sampler,
            device: Device::Cpu,
            group: &self.group,
            gradients: GradientDtype::F32,
            config_hash: "settings",
            card: &self.card,
            finished: vec![],
        }
    }

    /// Trains a stage from the same weights to its end.
    fn train(&self, stage: &StageConfig) -> Result<Ended> {
        let weights = self.model.layout.init(0, Device::Cpu)?;
        let mut trainer = Trainer::new(self.context(stage), weights)?;
        trainer.train_until(stage.images(), &|| Ok(false), &ProgressBar::hidden())
    }

    fn theta(&self, nimg: u64, track: &str) -> Tensor {
        let all = Manifest::read(&self.run).unwrap();
        let found = all.iter().find(|c| c.nimg == nimg && c.track == track).unwrap();
        found.load(&self.run, &self.model.layout, Device::Cpu).unwrap().theta
    }

    fn log(&self) -> Vec<Tick> {
        JsonLines::read(self.run.train_log()).unwrap()
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_stopped_stage_goes_on_bit_for_bit() {
    let _turn = turn();
    // Six steps leave no room for more doublings.
    let ict = IctConfig { s_0: 10, s_1: 20, ..IctConfig::default() };
    for objective in [
        ObjectiveConfig::Edm(EdmConfig::default()),
        ObjectiveConfig::Cd(CdConfig::default()),
        ObjectiveConfig::Cd(CdConfig { target_ema: 0.5, ..CdConfig::default() }),
        ObjectiveConfig::Ct(CtConfig::default()),
        ObjectiveConfig::Ict(ict),
        ObjectiveConfig::Ect(EctConfig::default()),
    ] {
        goes_on_bit_for_bit(&StageConfig { objective, ..stage() }, &PreconditioningConfig::default(), Precision::F32);
    }
    for precision in [Precision::Tf32, Precision::Bf16, Precision::F16] {
        goes_on_bit_for_bit(&stage(), &PreconditioningConfig::default(), precision);
    }
    let ddpm = StageConfig { objective: ObjectiveConfig::Ddpm(DdpmConfig {}), ..stage() };
    goes_on_bit_for_bit(&ddpm, &PreconditioningConfig::Ddpm(DdpmPreconditioning::default()), Precision::F32);
}

fn goes_on_bit_for_bit(stage: &StageConfig, preconditioning: &PreconditioningConfig, precision: Precision) {
    let (whole, parts) = (Bench::with(preconditioning, precision), Bench::with(preconditioning, precision));
    assert_eq!(whole.train(stage).unwrap(), Ended::Reached);

    let steps = Cell::new(0);
    let stop = || Ok(steps.replace(steps.get() + 1) == 2);
    let weights = parts.model.layout.init(0, Device::Cpu).unwrap();
    let mut trainer = Trainer::new(parts.context(stage), weights).unwrap();
    assert_eq!(trainer.train_until(stage.images(), &stop, &ProgressBar::hidden()).unwrap(), Ended::Stopped);
    assert_eq!(trainer.nimg(), 2 * BATCH);
    drop(trainer);
    let state = TrainingState::load(&parts.run).unwrap().unwrap();
    assert_eq!(Trainer::position(&state, "settings").unwrap()[0].nimg, 2 * BATCH);
    let mut trainer = Trainer::resume(parts.context(stage), &state).unwrap();
    assert_eq!(trainer.train_until(stage.images(), &|| Ok(false), &ProgressBar::hidden()).unwrap(), Ended::Reached);
    drop(trainer);

    let found = files(&parts.run.trajectory());
    assert_eq!(found.len() as u64, 2 * STEPS);
    assert!(found == files(&whole.run.trajectory()), "a checkpoint differs: {:?}", stage.objective);
    let losses = |b: &Bench| b.log().iter().map(|t| (t.total_nimg, t.loss, t.grad_norm)).collect::<Vec<_>>();
    assert_eq!(losses(&parts), losses(&whole));
    assert_eq!(losses(&parts)[0].0, 100 + BATCH);
}

#[test]
fn every_precision_comes_to_the_same_loss() {
    let _turn = turn();
    let steps = 60;
    let stage = StageConfig { nimg: steps * BATCH, trajectory: None, tick_nimg: Some(steps * BATCH / 2), ..stage() };
    let trained = |precision| {
        let bench = Bench::with(&PreconditioningConfig::default(), precision);
        bench.train(&stage).unwrap();
        let state = TrainingState::load(&bench.run).unwrap().unwrap();
        (bench.log().iter().map(|tick| tick.loss.unwrap()).collect::<Vec<_>>(), state.meta["loss_scale"].clone())
    };
    let (exact, scale) = trained(Precision::F32);
    assert!(exact[1] < 0.9 * exact[0] && scale.is_null(), "{exact:?}");
    for (precision, most) in [(Precision::Bf16, 0.03), (Precision::F16, 0.03)] {
        let (losses, scale) = trained(precision);
        for (found, expected) in losses.iter().zip(&exact) {
            assert!((found / expected - 1.0).abs() < most, "{precision:?}: {losses:?}, f32 {exact:?}");
        }
        let expected =
            if precision == Precision::F16 { json!({ "scale": 128.0, "good_steps": steps }) } else { Value::Null };
        assert_eq!(scale, expected);
    }
}

#[test]
fn a_scale_that_overflows_f16_is_halved_and_the_step_left_out() {
    let _turn = turn();
    let bench = Bench::with(&PreconditioningConfig::default(), Precision::F16);
    let (stage, weights) = (stage(), bench.model.layout.init(0, Device::Cpu).unwrap());
    let before = weights.theta.copy();
    let mut trainer = Trainer::new(bench.context(&stage), weights).unwrap();
    let judge_from = |scale, good_steps| {
        let saved = SavedLossScale { scale, good_steps };
        Judge::new(NonFinite::Stop, None, Some(saved), Device::Cpu).unwrap()
    };
    trainer.judge = judge_from(2f64.powi(40), 3);
    trainer.train_until(BATCH, &|| Ok(false), &ProgressBar::hidden()).unwrap();
    let halved = SavedLossScale { scale: 2f64.powi(39), good_steps: 0 };
    assert_eq!(trainer.progress.loss_scale, Some(halved));
    assert!(trainer.weights.theta.equal(&before) && trainer.ema[0].theta.equal(&before));
    assert_eq!((trainer.progress.non_finite_steps, trainer.progress.steps), (0, 0));
    trainer.judge = judge_from(128.0, 0);
    trainer.train_until(2 * BATCH, &|| Ok(false), &ProgressBar::hidden()).unwrap();
    assert!(!trainer.weights.theta.equal(&before));
}

#[test]
fn the_target_network_follows_the_weights() {
    let _turn = turn();
    let stage = StageConfig {
        nimg: BATCH,
        objective: ObjectiveConfig::Cd(CdConfig { target_ema: 0.75, ..CdConfig::default() }),
        ..stage()
    };
    let bench = Bench::new();
    let before = bench.model.layout.init(0, Device::Cpu).unwrap().theta;
    bench.train(&stage).unwrap();
    let target = &TrainingState::load(&bench.run).unwrap().unwrap().tensors["target"];
    let expected = before * 0.75 + bench.theta(BATCH, "raw") * 0.25;
    assert!((target - expected).abs().max().double_value(&[]) < 1e-6);
}

#[test]
fn a_teacher_that_is_not_finite_is_refused() {
    let _turn = turn();
    let (bench, objective) = (Bench::new(), ObjectiveConfig::Cd(CdConfig::default()));
    let stage = StageConfig { objective, ..stage() };
    let weights = || bench.model.layout.init(0, Device::Cpu).unwrap();
    let broken = weights().with_theta(weights().theta * f64::NAN);
    let context = StageContext { teacher: Some((&bench.model, broken)), ..bench.context(&stage) };
    let text = Trainer::new(context, weights()).err().unwrap().to_string();
    assert!(text.contains("stage `edm`") && text.contains("teacher are not all finite"), "{text}");
}

#[test]
fn a_state_of_other_settings_is_refused() {
    let _turn = turn();
    let bench = Bench::new();
    let stage = stage();
    bench.train(&stage).unwrap();
    let state = TrainingState::load(&bench.run).unwrap().unwrap();
    let context = StageContext { config_hash: "others", ..bench.context(&stage) };
    let text = Trainer::resume(context, &state).err().unwrap().to_string();
    assert!(text.contains("other settings") && text.contains("--out"), "{text}");
}

#[test]
fn rounds_change_nothing_but_the_order_of_summation() {
    let _turn = turn();
    // σ, noise and dropout are drawn a round, so rounds of 4 are compared with the sum of their own gradients.
    let stage = StageConfig { microbatch: Some(4), ..stage() };
    let bench = Bench::new();
    let weights = bench.model.layout.init(0, Device::Cpu).unwrap();
    let mut trainer = Trainer::new(bench.context(&stage), weights).unwrap();
    let Gradient { loss, by_sigma, grad } = trainer.gradient().unwrap();
    let one = StageConfig { batch: 4, microbatch: None, ..stage.clone() };
    let halves = [100, 104].map(|nimg_before| {
        let context = StageContext { nimg_before, stage: &one, ..bench.context(&stage) };
        let weights = bench.model.layout.init(0, Device::Cpu).unwrap();
        Trainer::new(context, weights).unwrap().gradient().unwrap()
    });
    let [loss, first, second] = [&loss, &halves[0].loss, &halves[1].loss].map(|l| l.double_value(&[]));
    assert!((loss - (first + second) / 2.0).abs() < 1e-4 * loss);
    let expected = (&halves[0].grad + &halves[1].grad) / 2.0;
    assert!((&grad - &expected).norm().double_value(&[]) < 1e-5 * expected.norm().double_value(&[]));
    let expected = &halves[0].by_sigma + &halves[1].by_sigma;
    assert!((&by_sigma - &expected).abs().max().double_value(&[]) < 1e-3);
    assert_eq!(by_sigma.get(1).sum(Kind::Float).double_value(&[]), 8.0);
    let mean = by_sigma.get(0).sum(Kind::Float).double_value(&[]) / 8.0;
    assert!((mean - loss).abs() < 1e-4 * loss);
}

#[test]
fn averages_follow_the_weights() {
    let _turn = turn();
    let bench = Bench::new();
    bench.train(&stage()).unwrap();
    let mut average = bench.model.layout.init(0, Device::Cpu).unwrap().theta;
    for step in 1..=STEPS {
        average = (average + bench.theta(step * BATCH, "raw")) / 2.0;
        let error = (&average - bench.theta(step * BATCH, "ema-b0.5")).abs().max().double_value(&[]);
        assert!(error < 1e-6, "step {step}: {error}");
    }
}

#[test]
fn the_rate_rises_linearly_to_its_value() {
    let _turn = turn();
    let bench = Bench::new();
    bench.train(&StageConfig { lr_ramp_nimg: 4 * BATCH, ..stage() }).unwrap();
    let rates: Vec<f64> = bench.log().iter().map(|t| t.lr).collect();
    for (rate, expected) in rates.iter().zip([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01]) {
        assert!((rate - expected).abs() < 1e-12, "{rates:?}");
    }
}

#[test]
fn clipping_bounds_what_reaches_the_optimizer() {
    let _turn = turn();
    // The first step of Adam has size lr whatever the gradient, so the moment shows what came through.
    let bench = Bench::new();
    let stage = StageConfig { nimg: BATCH, grad_clip: Some(0.5), ..stage() };
    let weights = bench.model.layout.init(0, Device::Cpu).unwrap();
    let mut trainer = Trainer::new(bench.context(&stage), weights).unwrap();
    trainer.train_until(BATCH, &|| Ok(false), &ProgressBar::hidden()).unwrap();
    let moment = trainer.optimizer.exp_avg.norm().double_value(&[]);
    assert!((moment - 0.1 * 0.5).abs() < 1e-4, "{moment}");
    assert!(bench.log()[0].grad_norm.unwrap() > 0.5, "the log shows the norm before clipping");
}

#[test]
fn non_finite_steps_follow_the_policy() {
    let _turn = turn();
    let broken = |non_finite| StageConfig {
        non_finite,
        optimizer: OptimizerConfig::Adam(AdamConfig { lr: 1e30, ..Default::default() }),
        ..stage()
    };
    let bench = Bench::new();
    let error = bench.train(&broken(NonFinite::Stop)).unwrap_err();
    assert!(matches!(error, Error::NonFinite(_)), "{error}");
    assert!(error.to_string().contains("after 8 images") && error.to_string().contains("non_finite"), "{error}");
    let state = TrainingState::load(&bench.run).unwrap().unwrap();
    assert_eq!(Trainer::position(&state, "settings").unwrap()[0].nimg, BATCH);
    let good = bench.theta(BATCH, "raw");
    assert!(state.tensors["theta"].equal(&good));

    // The same where the host learns of it only after the last step.
    let bench = Bench::new();
    let rarely = StageConfig { tick_nimg: Some(STEPS * BATCH), trajectory: None, ..broken(NonFinite::Stop) };
    assert_eq!(bench.train(&rarely).unwrap_err().to_string(), error.to_string());
    let late = TrainingState::load(&bench.run).unwrap().unwrap();
    assert_eq!((late.meta["nimg"].as_u64(), late.meta["steps"].as_u64()), (Some(BATCH), Some(1)));
    assert!(state.tensors.iter().all(|(name, tensor)| tensor.equal(&late.tensors[name])));

    let bench = Bench::new();
    bench.train(&broken(NonFinite::Skip)).unwrap();
    assert_eq!(bench.log().last().unwrap().non_finite_steps, STEPS - 1);
    assert!(bench.theta(STEPS * BATCH, "raw").equal(&bench.theta(BATCH, "raw")));

    let bench = Bench::new();
    bench.train(&broken(NonFinite::Zero)).unwrap();
    assert_eq!(bench.log().last().unwrap().non_finite_steps, STEPS - 1);
    let after = bench.theta(STEPS * BATCH, "raw");
    assert_eq!(after.isfinite().all().int64_value(&[]), 1);
    assert!(!after.equal(&bench.theta(BATCH, "raw")));
}

#[test]
fn sheets_of_samples_are_made_on_the_way_and_change_nothing() {
    let _turn = turn();
    let (with, without) = (Bench::new(), Bench::new());
    with.train(&StageConfig { sample_nimg: Some(2 * BATCH), ..stage() }).unwrap();
    without.train(&stage()).unwrap();
    let names = std::fs::read_dir(with.run.samples()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut sheets: Vec<String> = names.collect();
    sheets.sort();
    assert_eq!(sheets, [2, 4, 6].map(|step| format!("edm-{:012}.png", step * BATCH)));
    assert_eq!(files(&with.run.trajectory()), files(&without.run.trajectory()));
    assert_eq!(std::fs::read_dir(without.run.samples()).unwrap().count(), 0);
}

#[test]
fn small_states_are_saved_more_often_than_large_ones() {
    let pause = |state_minutes, bytes| StageConfig { state_minutes, ..stage() }.state_pause(bytes);
    assert_eq!([pause(None, 1_000_000), pause(None, 2_000_000_000), pause(None, 1 << 40)], [15.0, 100.0, 300.0]);
    assert_eq!([pause(Some(0.0), 1 << 40), pause(Some(15.0), 1)], [0.0, 900.0]);
}

#[test]
fn sheets_are_not_made_so_often_that_they_cost_much() {
    let every = |nimg, sample_nimg, nfe| StageConfig { nimg, sample_nimg, ..stage() }.samples_every(nfe);
    assert_eq!(every(1_000_000, None, 1), Some(100_000));
    // 64 images of 35 evaluations are 2 % of 37,333 trained ones at three evaluations each.
    assert_eq!(every(100_000, None, 35), Some(37_333));
    assert_eq!([every(100, Some(0), 1), every(100, Some(1), 1)], [None, Some(BATCH)]);
}

#[test]
fn ranks_that_hold_other_parameters_are_found_out() {
    let _turn = turn();
    let (_store, port) = Store::serve().unwrap();
    let train = |rank: usize| {
        let ranks = Ranks { timeout: Duration::from_secs(20), ..Ranks::of_this_machine(rank, 2, port) };
        let bench = Bench { group: Group::join(ranks).unwrap(), ..Bench::new() };
        let stage = StageConfig { microbatch: Some(BATCH / 2), ..stage() };
        let weights = bench.model.layout.init(rank as u64, Device::Cpu).unwrap();
        let mut trainer = Trainer::new(bench.context(&stage), weights).unwrap();
        trainer.train_until(stage.images(), &|| Ok(false), &ProgressBar::hidden()).unwrap_err().to_string()
    };
    let train = &train;
    let texts = std::thread::scope(|scope| {
        let threads = [0, 1].map(|rank| scope.spawn(move || train(rank)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(texts[0], texts[1]);
    let expected = "stage `edm`, after 8 images: the ranks hold different parameters (whose bits sum to [";
    assert!(texts[0].starts_with(expected), "{}", texts[0]);
}
