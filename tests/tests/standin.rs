//! Training, sampling, measuring and searching on a CUDA device that is none: what is computed is what a CPU computes, and
//! whatever would be wrong or slow on a GPU because of where tensors lie is an error.

use lcsc_tests::standin::{is_usable, succeed_with_gpus, with_gpus};
use lcsc_tests::*;
use lcsc_torch::tch::CModule;
use lcsc_torch::{Device, Kind, Tensor};
use std::path::Path;

/// A run on digits with these stages, and a search.
fn config(head: &str, stages: &str, sampler: &str) -> String {
    format!(
        "name = \"standin\"\nconditional = false\nthreads = 1\nplan = \"plain\"\n{head}\n[data]\nsource = \"digits\"\n\
         [model]\npreset = \"tiny\"\nsong.model_channels = 8\n{stages}\n[sampler.{sampler}]\n\
         [search]\nimages = 8\nselection_images = 8\nreport_images = 8\nreport_seeds = 1\nfinalists = 1\nchunk = 4\n\
         gradient.images = 8\nfinetune.images = 8\nbudget = {{ evaluations = 4 }}\n"
    )
}

/// Four steps of an objective.
fn stage(name: &str, objective: &str, more: &str) -> String {
    format!(
        "[[stage]]\nname = \"{name}\"\nnimg = 64\nbatch = 16\nobjective.{objective}\n{more}\nema = [{{ half_life = {{ nimg = 50 }} }}]\n\
         sample_nimg = 0\ntrajectory = {{ every_nimg = 32 }}\n"
    )
}

/// EDM, and each kind of consistency model.
fn stages() -> String {
    let teacher = "teacher.stage = { name = \"edm\" }\nstart.stage = { name = \"edm\" }";
    [
        stage("edm", "edm = {}", "dropout = 0.1\ngrad_clip = 1.0"),
        stage("cd", "cd = { target_ema = 0.9, grid.sigma_max = 20.0 }", teacher),
        stage("ct", "ct = { s_0 = 2, s_1 = 10, grid.sigma_max = 20.0 }", "optimizer.radam = {}"),
        stage("ict", "ict = { s_0 = 2, s_1 = 4, grid.sigma_max = 20.0 }", ""),
        stage("ect", "ect = { stage_every_nimg = 32 }", "start.stage = { name = \"edm\" }"),
    ]
    .concat()
}

/// The largest difference of two weights files.
fn difference(a: &Path, b: &Path) -> f32 {
    let values = |path| bits(path).into_iter().flat_map(|(_, bits)| bits.into_iter().map(f32::from_bits));
    values(a).zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn last_checkpoint(run: &Path) -> std::path::PathBuf {
    let files = files(&run.join("trajectory"));
    let last = files.keys().rfind(|path| path.to_string_lossy().ends_with("raw.safetensors")).unwrap();
    run.join("trajectory").join(last)
}

#[test]
fn every_objective_trains_in_every_precision() {
    if !is_usable() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let ddpm = stage("ddpm", "ddpm = {}", "");
    std::fs::write(folder.join("all.toml"), config("", &stages(), "consistency")).unwrap();
    std::fs::write(folder.join("ddpm.toml"), config("preconditioning.ddpm = {}", &ddpm, "ancestral")).unwrap();
    for name in ["all", "ddpm"] {
        let toml = format!("{name}.toml");
        for precision in ["f32", "bf16", "f16"] {
            let (out, set) = (format!("{name}-{precision}"), format!("precision={precision}"));
            let args = ["train", &toml, "--set", &set, "--set", "device=cuda", "--out", &out];
            let (_, counted) = succeed_with_gpus(folder, &args);
            assert!(counted.work[0] > 1000 && counted.work[1] == 0, "{counted:?}");
        }
        succeed(folder, &["train", &toml, "--set", "device=cpu", "--out", &format!("{name}-cpu")]);
        let [gpu, cpu] = ["f32", "cpu"].map(|end| last_checkpoint(&folder.join(format!("{name}-{end}"))));
        let error = difference(&gpu, &cpu);
        assert!(error < 1e-3, "{name}: {error}");
        // The random numbers are those of the CPU, which only precision moves.
        let half = difference(&last_checkpoint(&folder.join(format!("{name}-bf16"))), &cpu);
        assert!(half > error && half < 0.1, "{name}: {half}");
    }
}

#[test]
fn a_run_is_searched_by_every_method_sampled_and_measured() {
    if !is_usable() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let two = stage("edm", "edm = {}", "") + &stage("ect", "ect = {}", "start.stage = { name = \"edm\" }");
    std::fs::write(folder.join("config.toml"), config("", &two, "consistency")).unwrap();
    // The second device; nothing may touch the first.
    let only_second = |args: &[&str]| {
        let (ended, counted) = succeed_with_gpus(folder, args);
        assert!(counted.work[0] == 0 && counted.work[1] > 0, "{}: {counted:?}", args.join(" "));
        ended
    };
    let ended = only_second(&["run", "config.toml", "--set", "device=cuda:1", "--set", "plan=auto", "--out", "run"]);
    let plan = ended.stderr.lines().find(|line| line.contains("plan: ")).unwrap();
    assert!(plan.contains("plain") && plan.contains("channels-last, fused norm") && !plan.contains("wrong"), "{plan}");
    assert_eq!(plan.matches(" ms").count(), 4, "{plan}");
    // Of the search, whose small network may be recorded.
    let plan = ended.stderr.lines().rfind(|line| line.contains("plan: ")).unwrap();
    assert!(plan.contains("fused norm, graph") && !plan.contains("wrong"), "{plan}");
    assert_eq!(plan.matches(" ms").count(), 8, "{plan}");
    let methods = ["evolution", "one-plus-one", "cma-es", "gradient", "finetune"];
    for (method, memory, place) in [
        (&methods[..], ["4", "4"], "held on the device"),
        (&methods[3..4], ["0", "4"], "held in host memory"),
        (&methods[3..4], ["0", "0"], "streamed from mapped files"),
    ] {
        let sets = [
            format!("search.method={method:?}"),
            format!("search.memory_gib={}", memory[0]),
            format!("search.host_memory_gib={}", memory[1]),
        ];
        let mut args = vec!["search", "run", "--name", place];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let ended = only_second(&args);
        assert!(ended.stderr.contains(place), "{place}: {}", ended.stderr);
    }
    let merged = "run/merged.safetensors";
    for (i, sampler) in [
        "heun = { steps = 2 }",
        "euler = { steps = 2, churn.s_churn = 1.0 }",
        "ddim = { steps = 2 }",
        "ancestral = { steps = 2 }",
        "dpmpp = { steps = 3, order = 3 }",
        "consistency = { mid_sigmas = [0.8] }",
    ]
    .into_iter()
    .enumerate()
    {
        let images = |device: &str| {
            let out = format!("{device}-{i}.npz");
            let args =
                ["sample", "--weights", merged, "--n", "4", "--sampler", sampler, "--device", device, "--out", &out];
            if device == "cpu" {
                drop(succeed(folder, &args))
            } else {
                drop(only_second(&args))
            }
            npz::<u8>(&folder.join(out), "arr_0").1
        };
        let apart = images("cpu").into_iter().zip(images("cuda:1")).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(apart <= 1, "{sampler}: {apart}");
    }
    succeed(folder, &["sample", "--weights", merged, "--n", "20", "--device", "cpu", "--out", "given/"]);
    traced(&folder.join("mean.pt"));
    for extractor in ["classifier", "torchscript = \"mean.pt\""] {
        let fd = |device: &str| {
            let json_file = format!("{device}.json");
            let args = ["eval", "--images", "given", "--reference", "digits", "--extractor", extractor];
            let args = [&args[..], &["--device", device, "--json", &json_file]].concat();
            if device == "cpu" {
                drop(succeed(folder, &args))
            } else {
                drop(only_second(&args))
            }
            json(&folder.join(json_file))["results"][0]["fd"].as_f64().unwrap()
        };
        let (cpu, gpu) = (fd("cpu"), fd("cuda:1"));
        assert!((gpu / cpu - 1.0).abs() < 1e-4, "{extractor}: {gpu} instead of {cpu}");
    }
}

/// Writes a TorchScript module that gives the mean of each channel.
fn traced(path: &Path) {
    let mut mean = |inputs: &[Tensor]| vec![inputs[0].mean_dim([2i64, 3].as_slice(), false, Kind::Float)];
    let example = Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu));
    CModule::create_by_tracing("Mean", "forward", &[example], &mut mean).unwrap().save(path).unwrap();
}

#[test]
fn a_killed_run_goes_on_to_the_same_weights() {
    if !is_usable() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let edm = stage("edm", "edm = {}", "tick_nimg = 16\nstate_minutes = 0.0").replace("nimg = 64", "nimg = 160");
    std::fs::write(folder.join("config.toml"), config("", &edm, "heun")).unwrap();
    let train = |out| ["train", "config.toml", "--set", "device=cuda", "--out", out];
    succeed_with_gpus(folder, &train("whole"));
    let mut child = with_gpus(folder, &train("killed")).spawn().unwrap();
    assert!(reaches(&mut child, &[&folder.join("killed/train.jsonl")], 3));
    child.kill().unwrap();
    child.wait().unwrap();
    succeed_with_gpus(folder, &train("killed"));
    let [whole, killed] = ["whole", "killed"].map(|run| last_checkpoint(&folder.join(run)));
    assert_eq!(bits(&whole), bits(&killed));
}

#[test]
fn the_host_waits_in_no_step_of_training() {
    if !is_usable() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    // One tick, one checkpoint and one state whatever the number of steps.
    let stages: Vec<String> = ["edm = {}", "ict = { s_0 = 2, s_1 = 2, grid.sigma_max = 20.0 }", "ect = {}"]
        .iter()
        .map(|objective| stage(&objective[..3], objective, "grad_clip = 1.0\nstate_minutes = 60.0"))
        .collect();
    let ect = "start.stage = { name = \"edm\" }\nobjective.ect";
    let stages =
        stages.concat().replace("objective.ect", ect).replace("name = \"ict\"", "name = \"ict\"\nmicrobatch = 8");
    let waits = |nimg: u64| {
        let nimg = format!("nimg = {nimg}");
        let stages = stages.replace("nimg = 64", &nimg).replace("every_nimg = 32", "every_nimg = 0");
        let stages = stages.replace("sample_nimg", &format!("tick_{nimg}\nsample_nimg"));
        std::fs::write(folder.join("config.toml"), config("", &stages, "heun")).unwrap();
        let out = format!("run-{}", &nimg[7..]);
        succeed_with_gpus(
            folder,
            &["train", "config.toml", "--set", "device=cuda", "--set", "search.when=off", "--out", &out],
        )
        .1
        .waits
    };
    let (few, many) = (waits(32), waits(128));
    assert!(few > 0);
    assert_eq!(few, many);
}

#[test]
fn an_operator_without_a_kernel_is_an_error() {
    if !is_usable() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    std::fs::write(folder.join("config.toml"), config("", &stage("edm", "edm = {}", ""), "heun")).unwrap();
    let operators = concat!(env!("CARGO_MANIFEST_DIR"), "/standin/operators.txt");
    let list = std::fs::read_to_string(operators).unwrap().replace("aten::silu.out\n", "");
    std::fs::write(folder.join("operators.txt"), list).unwrap();
    let mut train = with_gpus(folder, &["train", "config.toml", "--set", "device=cuda", "--out", "run"]);
    let ended: Ended = train.env("LCSC_STANDIN_OPERATORS", folder.join("operators.txt")).output().unwrap().into();
    assert!(ended.message().contains("no CUDA kernel for aten::silu.out"), "{}", ended.stderr);
}
