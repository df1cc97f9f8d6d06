//! Several processes on the loopback address: they train and search what one does, and end together when one fails.

use lcsc_tests::standin::Counted;
use lcsc_tests::*;
use lcsc_torch::{Kind, Tensor};
use lcsc_trajectory::{RunFolder, TrainingState};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Two stages of 8 steps, each a batch of four rounds, with the state saved after every step.
const CONFIG: &str = r#"
name = "ranks"
conditional = false

[data]
source = "digits"

[model]
preset = "tiny"
song.model_channels = 8

[[stage]]
name = "edm"
nimg = 256
batch = 32
microbatch = 8
objective.edm = {}
optimizer.adam = { lr = 1e-3 }
ema = [{ half_life = { nimg = 200 } }]
tick_nimg = 32
state_minutes = 0.0

[[stage]]
name = "cd"
start.stage = { name = "edm" }
nimg = 256
batch = 32
microbatch = 8
teacher.stage = { name = "edm" }
objective.cd = { target_ema = 0.9, teacher_dropout = 0.1, grid.sigma_max = 20.0 }
optimizer.radam = { lr = 5e-4 }
dropout = 0.1
ema = [{ half_life = { nimg = 200 } }, { power = { sigma_rel = 0.1 } }]
trajectory = { every_nimg = 64, tracks = ["all"] }
tick_nimg = 32
state_minutes = 0.0

[sampler.consistency]
sigma_max = 20.0
sigma_min = 0.002

[search]
images = 64
selection_images = 64
report_images = 64
report_seeds = 1
finalists = 1
chunk = 16
method = ["evolution", "gradient"]
budget = { evaluations = 8 }
gradient = { images = 64 }
"#;

/// Rounds so large that two ranks have one each: their sum is that of one process to the last bit.
const HALVES: [&str; 4] = ["--set", "stage.0.microbatch=16", "--set", "stage.1.microbatch=16"];
const TRAIN: [&str; 4] = ["train", "config.toml", "--out", "run"];
const RUN: [&str; 4] = ["run", "config.toml", "--out", "run"];
/// In which all processes have to end once one failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn workplace() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
    folder
}

/// The arguments of a command that so many ranks carry out; one does without `launch`.
fn on<'a>(ranks: &'a str, command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let launch: &[&str] = if ranks == "1" { &[] } else { &["launch", "--nproc", ranks, "--"] };
    [launch, command, more].concat()
}

fn state(folder: &Path) -> BTreeMap<String, Tensor> {
    TrainingState::load(&RunFolder::open(folder.join("run")).unwrap()).unwrap().unwrap().tensors
}

fn assert_equal(found: &Path, expected: &Path) {
    let (found, expected) = (state(found), state(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in &found {
        assert!(tensor.equal(&expected[name]), "`{name}` of the training state differs");
    }
}

/// ‖a−b‖ / ‖b‖ of the parameters.
fn distance(found: &Path, expected: &Path) -> f64 {
    let [a, b] = [found, expected].map(|folder| state(folder).remove("theta").unwrap().to_kind(Kind::Double));
    ((a - &b).norm() / b.norm()).double_value(&[])
}

#[test]
fn two_and_four_ranks_train_what_one_process_does() {
    let [one, two, again, four] = [(); 4].map(|()| workplace());
    for (folder, ranks) in [(&one, "1"), (&two, "2"), (&again, "2"), (&four, "4")] {
        succeed(folder.path(), &on(ranks, &TRAIN, &[]));
    }
    assert_equal(two.path(), again.path());
    // 16 steps of Adam, which differ by the order in which four rounds are added in f32.
    for folder in [&two, &four] {
        let distance = distance(folder.path(), one.path());
        println!("relative distance of the parameters: {distance:e}");
        assert!(distance < 1e-6, "{distance}");
    }
    let losses = |folder: &TempDir| -> Vec<f64> {
        json_lines(&folder.path().join("run/train.jsonl")).iter().map(|tick| tick["loss"].as_f64().unwrap()).collect()
    };
    for (a, b) in losses(&four).iter().zip(losses(&one)) {
        assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
    }
}

#[test]
fn gradients_may_travel_in_bf16() {
    let [exact, half] = [(); 2].map(|()| workplace());
    succeed(exact.path(), &on("2", &TRAIN, &[]));
    succeed(half.path(), &on("2", &TRAIN, &["--set", "distributed.gradients=bf16"]));
    let distance = distance(half.path(), exact.path());
    println!("relative distance of the parameters: {distance:e}");
    assert!((1e-6..1e-2).contains(&distance), "{distance}");
}

#[test]
fn ranks_on_gpus_find_what_one_gpu_does() {
    if !standin::is_usable() {
        return;
    }
    let [one, two] = [(); 2].map(|()| workplace());
    let sets =
        ["device=cuda", "plan=plain", "search.images=32", "search.selection_images=32", "search.report_images=32"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).chain(HALVES).collect();
    let found = [(&one, "1"), (&two, "2")].map(|(folder, ranks)| {
        let ended: Ended = standin::with_gpus(folder.path(), &on(ranks, &RUN, &sets)).output().unwrap().into();
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        let mut work: Vec<[bool; 2]> = Counted::all(&ended.stderr).iter().map(|c| c.work.map(|n| n > 1000)).collect();
        work.sort();
        (work, without_times(&folder.path().join("run/search/default/evaluations.jsonl")))
    });
    // Each rank on a GPU of its own.
    assert_eq!(found[0].0, [[true, false]]);
    assert_eq!(found[1].0, [[false, true], [true, false]]);
    assert_equal(two.path(), one.path());
    let scores = |i: usize| found[i].1.iter().filter_map(|line: &Value| line["fd"].as_f64()).collect::<Vec<_>>();
    assert_eq!(scores(1).len(), scores(0).len());
    for (a, b) in scores(1).iter().zip(scores(0)) {
        assert!((a - b).abs() < 1e-3 * b, "{a} on two GPUs, {b} on one");
    }
}

/// Processes whose parent this is.
fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap().success());
}

/// How a launched command ended, which it has to do in bounded time, with all its ranks.
fn ended(mut child: Child, ranks: &[u32]) -> Ended {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "still running");
        std::thread::sleep(Duration::from_millis(20));
    }
    for pid in ranks {
        assert!(!Path::new(&format!("/proc/{pid}/cmdline")).exists(), "process {pid} is still there");
    }
    child.wait_with_output().unwrap().into()
}

/// Starts a command on two ranks, waits until its logs have so many lines, and sends a signal to one rank.
fn signalled(folder: &Path, args: &[&str], logs: &[&Path], lines: usize, signal: &str, rank: usize) -> Ended {
    let mut child = spawn(folder, args);
    assert!(reaches(&mut child, logs, lines), "it ended before");
    let ranks = children(child.id());
    kill(signal, ranks[rank]);
    ended(child, &ranks)
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks_to_the_same_bits() {
    let [whole, parts] = [(); 2].map(|()| workplace());
    succeed(whole.path(), &on("1", &TRAIN, &HALVES));
    let log = parts.path().join("run/train.jsonl");
    // A signal to any rank stops all of them.
    let stopped = signalled(parts.path(), &on("2", &TRAIN, &HALVES), &[&log], 3, "TERM", 1);
    assert_eq!(stopped.status, Some(143), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("everything is saved, and the same command goes on"), "{}", stopped.stderr);
    let mut one = spawn(parts.path(), &on("1", &TRAIN, &HALVES));
    assert!(reaches(&mut one, &[&log], 9));
    send("INT", &one);
    assert_eq!(ended(one, &[]).status, Some(130));
    let launched = spawn(parts.path(), &on("2", &TRAIN, &HALVES));
    assert_eq!(ended(launched, &[]).status, Some(0));
    assert_equal(parts.path(), whole.path());
}

#[test]
fn a_killed_rank_ends_all_and_the_run_goes_on() {
    let [whole, killed] = [(); 2].map(|()| workplace());
    succeed(whole.path(), &on("2", &RUN, &[]));
    let run = killed.path().join("run");
    let (training, search) = (run.join("train.jsonl"), run.join("search/default/evaluations.jsonl"));
    // In training, at a checkpoint (one every other step of the second stage), in both parts of the search; either rank.
    for (lines, rank) in [(3, 1), (6, 0), (10, 0), (13, 1), (17 + 8, 1), (17 + 22, 0)] {
        let args = on("2", &RUN, &[]);
        let ended = signalled(killed.path(), &args, &[&training, &search], lines, "KILL", rank);
        assert_eq!(ended.status, Some(137), "{}", ended.stderr);
        let first = format!("lcsc launch: rank {rank} was killed by signal 9: the others are ended");
        assert!(ended.stderr.contains(&first), "{}", ended.stderr);
        let other = format!("[{}] rank {rank} is gone or does not answer", 1 - rank);
        assert!(ended.stderr.contains(&other), "{}", ended.stderr);
        assert!(ended.stderr.find(&first) < ended.stderr.find(&other), "{}", ended.stderr);
    }
    succeed(killed.path(), &on("2", &RUN, &[]));
    assert_equal(killed.path(), whole.path());
    let log = |folder: &TempDir| without_times(&folder.path().join("run/search/default/evaluations.jsonl"));
    assert_eq!(log(&killed), log(&whole));
    let merged = |folder: &TempDir| bits(&folder.path().join("run/merged.safetensors"));
    assert!(merged(&killed) == merged(&whole));
}

#[test]
fn a_search_finds_the_same_on_any_number_of_ranks() {
    let folder = workplace();
    succeed(folder.path(), &on("1", &TRAIN, &[]));
    let scores_by = |ranks: &str, method: &str, name: &str, sets: &[&str]| -> Vec<f64> {
        let method = format!("search.method=[\"{method}\"]");
        succeed(folder.path(), &on(ranks, &["search", "run", "--name", name, "--set", &method], sets));
        let log = json_lines(&folder.path().join(format!("run/search/{name}/evaluations.jsonl")));
        log[1..].iter().map(|line| line["fd"].as_f64().unwrap_or(f64::INFINITY)).collect()
    };
    let scores = |ranks: &str, method: &str| scores_by(ranks, method, &format!("{method}-{ranks}"), &[]);
    // Evolution's candidates follow one another, those of a generation of CMA-ES are spread: 8 are two rounds of 3 and two more.
    for (method, ranks, tolerance) in
        [("evolution", "4", 0.0), ("cma-es", "3", 0.0), ("gradient", "2", 1e-3), ("finetune", "2", 1e-3)]
    {
        let (one, several) = (scores("1", method), scores(ranks, method));
        assert_eq!(several.len(), one.len());
        for (a, b) in several.iter().zip(&one) {
            assert!((a - b).abs() <= tolerance * b, "{method} on {ranks} ranks: {a}, on one: {b}");
        }
    }
    // Spread or, where each score may be the last, with shared images: the same to the last bit, whatever the chunks.
    let sizes = ["--set", "search.images=96", "--set", "search.chunk=64"];
    let patient = [&sizes[..], &["--set", "search.budget.patience=99"]].concat();
    assert_eq!(scores_by("3", "cma-es", "spread", &sizes), scores_by("3", "cma-es", "shared", &patient));
    // Ranks whose images are not finite wait for the others.
    let wild = ["search.evolution.sigma=1e30", "search.evolution.batch=8", "search.chunk=4"];
    let wild: Vec<&str> = wild.iter().flat_map(|set| ["--set", set]).collect();
    let (one, several) = (scores_by("1", "evolution", "wild-1", &wild), scores_by("3", "evolution", "wild-3", &wild));
    assert_eq!(several, one);
    assert!(one.iter().any(|fd| fd.is_infinite()) && one.iter().any(|fd| fd.is_finite()), "{one:?}");
}

#[test]
fn searches_while_training_go_on_over_ranks() {
    let [one, two] = [(); 2].map(|()| workplace());
    let sets = ["search.when=during", "search.during.every_nimg=128", "search.during.budget.evaluations=4"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).chain(HALVES).collect();
    let method = ["--set", r#"search.method=["evolution"]"#];
    for (folder, ranks) in [(&one, "1"), (&two, "2")] {
        succeed(folder.path(), &on(ranks, &RUN, &[&sets[..], &method].concat()));
    }
    let found = |folder: &TempDir| without_times(&folder.path().join("run/search/during.jsonl"));
    assert_eq!(found(&one).len(), 1);
    assert_eq!(found(&two), found(&one));
    assert_equal(two.path(), one.path());
}

#[test]
fn samples_and_scores_are_those_of_one_process() {
    let folder = workplace();
    succeed(folder.path(), &on("1", &RUN, &[]));
    let weights = ["--weights", "run/merged.safetensors", "--chunk", "16"];
    let sample = |ranks: &str| {
        let out = format!("{ranks}.npz");
        succeed(folder.path(), &on(ranks, &["sample", "--n", "50", "--out", &out], &weights));
        npz::<u8>(&folder.path().join(out), "arr_0")
    };
    assert!(sample("3") == sample("1"));
    let eval = |ranks: &str, what: &[&str]| -> Value {
        let out = format!("{ranks}.json");
        succeed(folder.path(), &on(ranks, &["eval", "--json", &out], what));
        json(&folder.path().join(out))["results"].clone()
    };
    let of_weights = [&weights[..], &["--n", "70"]].concat();
    assert_eq!(eval("2", &of_weights), eval("1", &of_weights));
    let of_images = ["--images", "1.npz", "--reference", "digits", "--extractor", "classifier"];
    assert_eq!(eval("2", &of_images), eval("1", &of_images));
}

/// A port that is free.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts one of two ranks, as a cluster's scheduler would.
fn rank(program: &mut Command, rank: u32, port: u16) -> Child {
    program
        .envs([("RANK", rank.to_string()), ("LOCAL_RANK", rank.to_string()), ("MASTER_PORT", port.to_string())])
        .envs([("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    program.spawn().unwrap()
}

#[test]
fn ranks_meet_by_the_environment_of_a_cluster() {
    let [launched, alone] = [(); 2].map(|()| workplace());
    succeed(launched.path(), &on("2", &TRAIN, &[]));
    let (folder, port) = (alone.path(), port());
    let ranks = [1, 0].map(|number| rank(&mut command(folder, &TRAIN), number, port));
    for rank in ranks {
        let ended = ended(rank, &[]);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    }
    assert_equal(alone.path(), launched.path());
}

#[test]
fn a_rank_that_never_comes_and_a_wrong_address_are_told() {
    let folder = workplace();
    let alone = |number: u32, port: u16| {
        let mut program = command(folder.path(), &TRAIN);
        let ended = ended(rank(program.env("LCSC_RANK_TIMEOUT", "2"), number, port), &[]);
        assert_eq!(ended.status, Some(1), "{}", ended.stderr);
        ended.message()
    };
    let message = alone(0, port());
    assert!(message.contains("rank 1 of 2 did not come to 127.0.0.1:") && message.contains("within 2 s"), "{message}");
    let message = alone(1, port());
    assert!(message.contains("rank 1 of 2 cannot reach rank 0 at 127.0.0.1:"), "{message}");
    assert!(message.contains("MASTER_ADDR and MASTER_PORT"), "{message}");
    let refused = lcsc_in(folder.path(), &on("3", &TRAIN, &[]));
    let message = refused.message().replace("[0] ", "");
    assert_eq!(refused.status, Some(1), "{message}");
    assert!(message.contains("is 4 rounds, which 3 ranks cannot share evenly"), "{message}");
}

#[test]
fn different_settings_are_refused_before_work_begins() {
    let folder = workplace();
    let port = port();
    let seeds = [["--set", "seed=1"], ["--set", "seed=2"]];
    let start = |number: u32| {
        let args = [&TRAIN[..], &seeds[number as usize]].concat();
        rank(&mut command(folder.path(), &args), number, port)
    };
    let [zero, one] = [start(0), start(1)].map(|rank| ended(rank, &[]));
    let said = "the ranks have different settings: rank 0 `seed = 1`, rank 1 `seed = 2`";
    assert!(zero.message().contains(said), "{}", zero.stderr);
    assert_eq!((zero.status, one.status), (Some(1), Some(75)));
    assert!(one.stderr.contains("rank 0 tells why"), "{}", one.stderr);
    assert!(!folder.path().join("run/config.toml").exists());
}

#[test]
fn a_full_disk_of_rank_0_ends_all_and_the_run_goes_on() {
    let [whole, full] = [(); 2].map(|()| workplace());
    succeed(whole.path(), &on("2", &TRAIN, &[]));
    let (folder, port) = (full.path(), port());
    // No file may become larger than 200 KiB: the training state does not fit.
    let mut limited = Command::new("bash");
    let line = format!("trap '' XFSZ; ulimit -f 200; exec {} train config.toml --out run", lcsc().display());
    limited.current_dir(folder).args(["-c", &line]).env("OMP_NUM_THREADS", "1").env("LC_ALL", "C.UTF-8");
    let zero = rank(&mut limited, 0, port);
    let one = rank(&mut command(folder, &TRAIN), 1, port);
    let [zero, one] = [zero, one].map(|rank| ended(rank, &[]));
    assert_eq!((zero.status, one.status), (Some(1), Some(75)), "{}\n{}", zero.stderr, one.stderr);
    assert!(zero.message().contains("File too large"), "{}", zero.stderr);
    assert!(one.stderr.contains("rank 0 ended: ") && one.stderr.contains("File too large"), "{}", one.stderr);
    succeed(folder, &on("2", &TRAIN, &[]));
    assert_equal(folder, whole.path());
}

#[test]
fn what_launch_starts_is_told_apart_and_its_error_comes_first() {
    let folder = workplace();
    let said = lcsc_in(folder.path(), &on("2", &TRAIN, &[]));
    assert_eq!((said.status, said.stdout.as_str()), (Some(0), "[0] trained: run\n"));
    assert!(said.stderr.lines().all(|line| line.starts_with("[0] ")), "{}", said.stderr);
    let message = refuse(folder.path(), &["launch", "--nproc", "2", "--", "merge", "run"]);
    assert!(message.contains("`lcsc merge` works in one process"), "{message}");
    // Data that is not there: both ranks find it, and it is told once.
    let failed = lcsc_in(folder.path(), &on("2", &TRAIN, &["--set", "data.source=nowhere.zip"]));
    assert_eq!(failed.status, Some(1), "{}", failed.stderr);
    assert_eq!(failed.stderr.matches("nowhere.zip").count(), 1, "{}", failed.stderr);
    assert!(failed.stderr.starts_with("[0] "), "{}", failed.stderr);
}

/// torchrun of a Python with PyTorch: `LCSC_PYTHON`, the one of the bench, or the system's.
fn torchrun() -> Option<Command> {
    let bench = concat!(env!("CARGO_MANIFEST_DIR"), "/../.bench/venv/bin/python");
    let pythons = [std::env::var("LCSC_PYTHON").unwrap_or_default(), bench.into(), "python3".into()];
    let has_torch = |python: &&String| {
        let found = Command::new(python).args(["-c", "import torch.distributed.run"]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let mut command = Command::new(pythons.iter().find(has_torch)?);
    command.args(["-m", "torch.distributed.run", "--no-python", "--nproc-per-node=2", "--standalone"]);
    Some(command)
}

#[test]
fn torchrun_starts_ranks() {
    let Some(mut torchrun) = torchrun() else {
        println!("skipped: no Python with PyTorch (LCSC_PYTHON names one)");
        return;
    };
    let [launched, under_torchrun] = [(); 2].map(|()| workplace());
    succeed(launched.path(), &on("2", &TRAIN, &[]));
    let folder = under_torchrun.path();
    let output = torchrun.current_dir(folder).arg(lcsc()).args(TRAIN).env("OMP_NUM_THREADS", "1").output().unwrap();
    let ended = Ended::from(output);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert_equal(folder, launched.path());
}

/// What Slurm's tools do for a job of two tasks, on this machine.
const SLURM: [(&str, &str); 2] = [
    ("scontrol", "#!/bin/bash\nprintf '127.0.0.1\\nnode1\\n'\n"),
    (
        "srun",
        "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_PROCID=1 SLURM_LOCALID=1 \"$@\" &\n\
         SLURM_PROCID=0 SLURM_LOCALID=0 \"$@\"\nstatus=$?\nwait -n || exit 1\nexit $status\n",
    ),
];

#[test]
fn the_script_for_slurm_starts_ranks() {
    let [launched, by_slurm] = [(); 2].map(|()| workplace());
    succeed(launched.path(), &on("2", &TRAIN, &[]));
    let tools = tempfile::tempdir().unwrap();
    for (name, script) in SLURM {
        let path = tools.path().join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cluster/slurm.sh");
    let job = "SLURM_JOB_NODELIST=nodes SLURM_NTASKS=2 SLURM_CPUS_PER_TASK=1";
    let line = format!(
        "PATH={}:$PATH {job} SLURM_JOB_ID={} {script} {}",
        tools.path().display(),
        std::process::id(),
        TRAIN.join(" ")
    );
    let ended = shell(by_slurm.path(), &line);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert_equal(by_slurm.path(), launched.path());
}

#[test]
fn the_manifest_for_kubernetes_is_a_pytorchjob() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cluster/pytorchjob.yaml");
    let job: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!((&job["apiVersion"], &job["kind"]), (&"kubeflow.org/v1".into(), &"PyTorchJob".into()));
    let replicas = job["spec"]["pytorchReplicaSpecs"].as_object().unwrap();
    assert_eq!(replicas.keys().collect::<Vec<_>>(), ["Master", "Worker"]);
    assert_eq!(replicas["Master"]["replicas"], 1);
    for spec in replicas.values() {
        assert_eq!(spec["restartPolicy"], "OnFailure");
        let pod = &spec["template"]["spec"];
        let container = &pod["containers"][0];
        // The operator sets the variables of the container of this name alone.
        assert_eq!((&container["name"], &container["command"][0]), (&"pytorch".into(), &"lcsc".into()));
        assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], 1);
        let names = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().into()).collect()
        };
        assert_eq!(names(&container["volumeMounts"]), names(&pod["volumes"]));
    }
}

#[test]
fn no_symbol_of_gloo_leaves_the_program() {
    let symbols = Command::new("readelf").args(["--dyn-syms", "--wide"]).arg(lcsc()).output().unwrap();
    let symbols = String::from_utf8(symbols.stdout).unwrap();
    assert!(symbols.contains("libtorch") || symbols.contains("c10d"), "{symbols:.300}");
    let defined = symbols.lines().filter(|line| !line.contains(" UND ") && line.to_lowercase().contains("gloo"));
    assert_eq!(defined.collect::<Vec<_>>(), Vec::<&str>::new());
}
