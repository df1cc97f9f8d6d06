//! A run that is killed at any moment, and resumed by the same command, ends like one that was left alone.

use lcsc_tests::*;
use lcsc_trajectory::{Manifest, RunFolder, TrainingState};
use std::path::Path;

/// Two stages, with the state saved at every tick: 16 + 16 lines in train.jsonl.
const CONFIG: &str = r#"
name = "killed"
conditional = false

[data]
source = "digits"

[model]
preset = "tiny"
song.model_channels = 8

[[stage]]
name = "edm"
nimg = 512
batch = 32
microbatch = 16
objective.edm = {}
ema = [{ half_life = { nimg = 200 } }]
tick_nimg = 32
state_minutes = 0.0

[[stage]]
name = "cd"
start.stage = { name = "edm" }
nimg = 512
batch = 32
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
report_seeds = 2
finalists = 2
chunk = 64
method = ["evolution", "gradient"]
budget = { evaluations = 20 }
gradient = { images = 64 }
finetune = { images = 64 }
"#;

const RUN: [&str; 4] = ["run", "config.toml", "--out", "run"];

/// A folder with the config, where `lcsc` is run.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
    folder
}

/// The same after an uninterrupted run.
fn finished() -> tempfile::TempDir {
    let folder = workplace();
    succeed(folder.path(), &RUN);
    folder
}

/// Everything that two run folders hold is the same, bit for bit, but for times.
fn assert_same(found: &Path, expected: &Path) {
    let [a, b] = [found, expected].map(|p| RunFolder::open(p.join("run")).unwrap());
    assert_eq!(without_times(&a.train_log()), without_times(&b.train_log()));
    assert_eq!(Manifest::read(&a).unwrap(), Manifest::read(&b).unwrap());
    let [states, others] = [&a, &b].map(|run| TrainingState::load(run).unwrap().unwrap().tensors);
    assert_eq!(states.keys().collect::<Vec<_>>(), others.keys().collect::<Vec<_>>());
    for (name, tensor) in &states {
        assert!(tensor.equal(&others[name]), "`{name}` of the training state differs");
    }
    assert_same_search(&a.search("default"), &b.search("default"));
    let timed = ["state", "search", "train.jsonl", "trajectory/manifest.jsonl", "summary.json", "report.html"];
    let untimed = |run: &RunFolder| {
        let mut all = results(run.path());
        all.retain(|name, _| !timed.iter().any(|t| name.starts_with(t)));
        all
    };
    let [found, expected] = [untimed(&a), untimed(&b)];
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in &found {
        assert!(*bytes == expected[name], "{} differs", name.display());
    }
    assert!(found.contains_key(Path::new("merged.safetensors")));
}

fn assert_same_search(found: &Path, expected: &Path) {
    let log = "evaluations.jsonl";
    assert_eq!(without_times(&found.join(log)), without_times(&expected.join(log)));
    let coefficients = |folder: &Path| std::fs::read_to_string(folder.join("coefficients.toml")).unwrap();
    assert_eq!(coefficients(found), coefficients(expected));
}

#[test]
fn a_killed_run_ends_like_an_uninterrupted_one() {
    let (reference, killed) = (finished(), workplace());
    let run = killed.path().join("run");
    let (training, search) = (run.join("train.jsonl"), run.join("search/default/evaluations.jsonl"));
    let logs = [training.as_path(), search.as_path()];
    let evaluations = lines(&reference.path().join("run/search/default/evaluations.jsonl")).len();
    let mut moments = Moments::begin();
    // Before the first state, twice in the first stage, at its end, twice in the second, twice in the search.
    let parts = [(0, 1), (2, 8), (9, 15), (16, 16), (17, 24), (25, 31), (34, 50), (51, 31 + evaluations)];
    let counts = parts.map(|(low, high)| moments.between(low, high));
    let kills = counts.iter().filter(|&&count| kill_at(killed.path(), &RUN, &logs, count, &mut moments)).count();
    assert!(kills >= 6, "only {kills} kills found the process alive");
    succeed(killed.path(), &RUN);
    assert_same(killed.path(), reference.path());

    // A search alone, of the same checkpoints.
    let method = r#"search.method=["cma-es", "finetune"]"#;
    let args = ["search", "run", "--name", "other", "--set", "search.budget.evaluations=30", "--set", method];
    succeed(reference.path(), &args);
    let log = run.join("search/other/evaluations.jsonl");
    let kills = [10, 30, 50, 70]
        .map(|from| kill_at(killed.path(), &args, &[&log], moments.between(from, from + 19), &mut moments));
    assert!(kills.iter().filter(|&&k| k).count() >= 2, "{kills:?}");
    succeed(killed.path(), &args);
    let other = |folder: &Path| folder.join("run/search/other");
    assert_same_search(&other(killed.path()), &other(reference.path()));
    let merged = |folder: &Path| std::fs::read(other(folder).join("merged.safetensors")).unwrap();
    assert!(merged(killed.path()) == merged(reference.path()));
}

#[test]
fn a_signal_saves_everything_and_gives_its_status() {
    let (reference, stopped) = (finished(), workplace());
    let run = stopped.path().join("run");
    let (training, search) = (run.join("train.jsonl"), run.join("search/default/evaluations.jsonl"));
    for (signal, status, count) in [("TERM", 143, 5), ("INT", 130, 20), ("TERM", 143, 40)] {
        let mut child = spawn(stopped.path(), &RUN);
        assert!(reaches(&mut child, &[&training, &search], count));
        send(signal, &child);
        let ended = Ended::from(child.wait_with_output().unwrap());
        assert_eq!(ended.status, Some(status), "SIG{signal}\n{}", ended.stderr);
        assert!(ended.stderr.contains("everything is saved, and the same command goes on"), "{}", ended.stderr);
        assert!(!run.join("merged.safetensors").exists());
    }
    // Of two signals the second may end it at once.
    let mut child = spawn(stopped.path(), &RUN);
    assert!(reaches(&mut child, &[&training, &search], 45));
    send("TERM", &child);
    send("TERM", &child);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    succeed(stopped.path(), &RUN);
    assert_same(stopped.path(), reference.path());
}

#[test]
fn a_run_that_begins_again_otherwise_forgets_its_checkpoints() {
    let (folder, reference) = (workplace(), workplace());
    let run = RunFolder::create(folder.path().join("run")).unwrap();
    let args = ["train", "config.toml", "--out", "run"];
    let mut child = spawn(folder.path(), &args);
    assert!(reaches(&mut child, &[&run.train_log()], 24));
    child.kill().unwrap();
    child.wait().unwrap();
    // Other settings are refused as long as there is a state, which the user may give up.
    let other = [&args[..], &["--set", "seed=1", "--set", "stage.1.trajectory.every_nimg=96"]].concat();
    let message = refuse(folder.path(), &other);
    assert!(message.contains("training state of other settings"), "{message}");
    std::fs::remove_file(run.state().join("state.safetensors")).unwrap();
    succeed(folder.path(), &other);
    succeed(reference.path(), &other);
    let expected = RunFolder::open(reference.path().join("run")).unwrap();
    assert_eq!(Manifest::read(&run).unwrap(), Manifest::read(&expected).unwrap());
    assert_eq!(without_times(&run.train_log()), without_times(&expected.train_log()));
}

/// The draws of a round depend on its place alone: with the weights held still, the loss of the same images is the same
/// whether they are rounds of one step or steps of their own.
#[test]
fn how_many_rounds_a_step_has_changes_no_draw() {
    let folder = workplace();
    let losses = |batch: u64, out: &str| {
        let (batch, out) = (format!("stage.0.batch={batch}"), out.to_string());
        let still = "stage.0.optimizer.adam.lr=1e-30";
        let sets = [&batch, still, "stage.0.tick_nimg=64", "search.stage=edm", "stage.0.trajectory.every_nimg=256"];
        let mut args = vec!["train", "config.toml", "--out", &out];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        succeed(folder.path(), &args);
        let ticks = json_lines(&folder.path().join(&out).join("train.jsonl"));
        let of_first = ticks.iter().filter(|t| t["stage"] == "edm");
        of_first.map(|t| (t["nimg"].as_u64().unwrap(), t["loss"].as_f64().unwrap())).collect::<Vec<_>>()
    };
    let (one, four) = (losses(16, "one"), losses(64, "four"));
    assert_eq!(one.len(), 8);
    for ((n, a), (m, b)) in one.iter().zip(&four) {
        assert!(n == m && (a - b).abs() < 1e-4 * a.abs(), "{one:?}\n{four:?}");
    }
}
