//! Every command on a small finished run, and what a run refuses.

use lcsc_tests::*;
use lcsc_torch::{Kind, SafeFile};
use lcsc_trajectory::{Manifest, RunFolder, TrainingState};
use serde_json::Value;
use std::path::Path;

/// Settings that make the tiny run smaller still.
const SMALL: [&str; 6] = [
    "stage.0.nimg=384",
    "search.images=64",
    "search.selection_images=64",
    "search.report_images=64",
    "search.report_seeds=2",
    "search.budget.evaluations=6",
];

/// The arguments of a command on the small config, with further settings.
fn small<'a>(command: &'a str, out: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![command, TINY, "--out", out];
    SMALL.iter().chain(sets).for_each(|set| args.extend(["--set", set]));
    args
}

#[test]
fn libtorch_is_looked_for_beside_its_cuda_half_first() {
    let said: Ended = std::process::Command::new("readelf").arg("-d").arg(lcsc()).output().unwrap().into();
    let line = said.stdout.lines().find(|line| line.contains("RUNPATH") || line.contains("RPATH")).unwrap();
    let places: Vec<&str> = line.split(['[', ']', ':']).filter(|part| part.starts_with("$ORIGIN")).collect();
    let place = |up: &str, folder: &str| format!("$ORIGIN/{up}/.libtorch/{folder}");
    let expected = [("../..", "cuda"), ("../../..", "cuda"), ("../..", "lib"), ("../../..", "lib")];
    assert_eq!(places, expected.map(|(up, folder)| place(up, folder)));
}

#[test]
fn a_finished_run_and_every_command_on_it() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let table = succeed(folder, &small("run", "run", &[]));
    let run = folder.join("run");
    the_summary_and_the_table_tell_the_same(&run, &table);
    weights_tell_where_they_come_from(&run);
    a_second_run_changes_nothing(folder, &table);
    merging_gives_the_same_bits(folder);
    samples_are_the_same_however_they_are_written(folder);
    eval_measures(folder);
    cores_that_take_a_chunk_each_change_nothing(folder);
    settings_of_another_training_are_refused(folder);
}

fn the_summary_and_the_table_tell_the_same(run: &Path, table: &str) {
    let summary = json(&run.join("summary.json"));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&summary), ["name", "stages", "metric", "search", "models", "machine"]);
    assert_eq!(summary["name"], "smoke");
    assert_eq!(summary["stages"].as_array().unwrap().len(), 1);
    assert_eq!(keys(&summary["stages"][0]), ["name", "nimg", "seconds"]);
    assert_eq!((&summary["stages"][0]["name"], &summary["stages"][0]["nimg"]), (&"edm".into(), &384.into()));
    assert_eq!(keys(&summary["metric"]), ["extractor", "reference", "n_search", "n_heldout", "nfe"]);
    assert_eq!((&summary["metric"]["n_search"], &summary["metric"]["n_heldout"]), (&64.into(), &64.into()));
    assert_eq!(keys(&summary["search"]), ["method", "evaluations", "seconds"]);
    assert_eq!((&summary["search"]["method"], &summary["search"]["evaluations"]), (&"gradient".into(), &6.into()));
    let models = summary["models"].as_array().unwrap();
    let labels: Vec<&Value> = models.iter().map(|m| &m["label"]).collect();
    assert_eq!(labels, ["last", "best_checkpoint", "ema", "lcsc"]);
    for (model, name) in models.iter().zip(["last", "best checkpoint", "best EMA", "LCSC"]) {
        let row = table.lines().find(|l| l[2..].starts_with(&format!("{name} "))).expect("a row for each model");
        for key in ["fd_search", "fd_heldout", "fd_heldout_std", "fd_independent", "fd_pixel"] {
            let fd = model[key].as_f64().unwrap();
            assert!(fd > 0.0 && row.contains(&format!("{fd:.3}")), "{key} of {row}");
        }
    }
    assert!(
        table.contains("6 evaluations, ")
            && table.contains("search FD of 64 images")
            && table.contains("merged.safetensors"),
        "{table}"
    );
    for picture in ["lcsc.png", "comparison.png"] {
        assert!(image::open(run.join("samples").join(picture)).unwrap().width() > 8 * 16);
    }
}

fn weights_tell_where_they_come_from(run: &Path) {
    let merged = card(&run.join("merged.safetensors"));
    assert_eq!((&merged["format"], &merged["run"]), (&2.into(), &"smoke".into()));
    assert_eq!(merged["image"], serde_json::json!({ "channels": 1, "resolution": 8, "label_dim": 0 }));
    assert_eq!(merged["network"]["song"]["model_channels"], 8);
    assert_eq!((&merged["sampler"]["heun"]["steps"], &merged["data"]["source"]), (&3.into(), &"digits".into()));
    let text = std::fs::read_to_string(run.join("search/default/coefficients.toml")).unwrap();
    let coefficients: Value = toml::from_str(&text).unwrap();
    assert_eq!(merged["merged"], coefficients);
    let terms = coefficients["checkpoint"].as_array().unwrap();
    let groups = coefficients["groups"].as_array().unwrap();
    for g in 0..groups.len() {
        let sum: f64 = terms.iter().map(|c| c["alpha"][g].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    }
    for checkpoint in Manifest::read(&RunFolder::open(run).unwrap()).unwrap() {
        let card = card(&run.join("trajectory").join(&checkpoint.file));
        let expected = serde_json::json!({ "stage": "edm", "nimg": checkpoint.nimg, "track": checkpoint.track });
        assert_eq!((&card["checkpoint"], card.get("merged")), (&expected, None));
    }
}

fn a_second_run_changes_nothing(folder: &Path, table: &str) {
    let before = results(&folder.join("run"));
    let again = lcsc_in(folder, &small("run", "run", &[]));
    assert_eq!((again.status, again.stdout.as_str()), (Some(0), table), "{}", again.stderr);
    assert!(!again.stderr.contains("images trained"), "{}", again.stderr);
    assert!(results(&folder.join("run")) == before);
}

fn merging_gives_the_same_bits(folder: &Path) {
    let (run, out) = (folder.join("run"), folder.join("out.safetensors"));
    let merged = std::fs::read(run.join("merged.safetensors")).unwrap();
    succeed(folder, &["merge", "run", "--out", "out.safetensors"]);
    assert!(std::fs::read(&out).unwrap() == merged, "lcsc merge gives other bytes than lcsc run");

    // One-hot coefficients give back the checkpoint.
    let text = std::fs::read_to_string(run.join("search/default/coefficients.toml")).unwrap();
    let mut coefficients: toml::Table = text.parse().unwrap();
    let terms = coefficients["checkpoint"].as_array_mut().unwrap();
    for (i, term) in terms.iter_mut().enumerate() {
        let term = term.as_table_mut().unwrap();
        let groups = term["alpha"].as_array().unwrap().len();
        term.insert("alpha".into(), vec![if i == 1 { 1.0 } else { 0.0 }; groups].into());
    }
    let file = terms[1]["file"].as_str().unwrap().to_string();
    std::fs::write(folder.join("one-hot.toml"), coefficients.to_string()).unwrap();
    let args = ["merge", "run", "--coefficients", "one-hot.toml", "--out", "out.safetensors"];
    succeed(folder, &args);
    assert_eq!(bits(&out), bits(&run.join("trajectory").join(&file)));

    succeed(folder, &[&args[..], &["--dtype", "bf16"]].concat());
    let halves = SafeFile::open(&out).unwrap();
    let exact = SafeFile::open(run.join("trajectory").join(&file)).unwrap();
    for name in halves.names() {
        let (half, exact) = (halves.tensor(&name).unwrap(), exact.tensor(&name).unwrap());
        assert!(half.equal(&exact.to_kind(half.kind())) && half.kind() != Kind::Half, "{name}");
    }
    assert!(halves.names().iter().any(|n| halves.tensor(n).unwrap().kind() == Kind::BFloat16));

    // Coefficients of another trajectory.
    let other = coefficients.to_string().replacen("blake3 = \"", "blake3 = \"0", 1);
    std::fs::write(folder.join("other.toml"), other).unwrap();
    let message = refuse(folder, &["merge", "run", "--coefficients", "other.toml", "--out", "out2.safetensors"]);
    assert!(message.contains("is not the checkpoint that these coefficients were found for"), "{message}");
    assert!(!folder.join("out2.safetensors").exists());
}

fn samples_are_the_same_however_they_are_written(folder: &Path) {
    let sample = |out: &str, more: &[&str]| {
        let args = ["sample", "--weights", "run/merged.safetensors", "--seed", "3", "--out", out];
        let said = succeed(folder, &[&args[..], more].concat());
        assert!(said.contains(out) && said.contains("NFE"), "{said}");
    };
    let read = |name: &str| npz::<u8>(&folder.join(name), "arr_0");
    sample("five.npz", &["--n", "5"]);
    let (shape, five) = read("five.npz");
    assert_eq!(shape, [5, 8, 8, 1]);
    assert!(five.iter().min() < five.iter().max());
    sample("chunks.npz", &["--n", "5", "--chunk", "2"]);
    assert_eq!(read("chunks.npz"), (shape, five.clone()));
    sample("three.npz", &["--n", "3"]);
    assert_eq!(read("three.npz").1, five[..3 * 64]);
    sample("euler.npz", &["--n", "5", "--sampler", "euler = { steps = 2 }"]);
    assert_ne!(read("euler.npz").1, five);
    sample("pictures/", &["--n", "5"]);
    assert_eq!(files(&folder.join("pictures")).len(), 5);
    for (i, expected) in five.chunks(64).enumerate() {
        let picture = image::open(folder.join(format!("pictures/img{i:08}.png"))).unwrap();
        assert_eq!(picture.to_luma8().as_raw(), expected);
    }
    sample("new/sheet.png", &["--n", "5"]);
    let sheet = image::open(folder.join("new/sheet.png")).unwrap();
    assert!(sheet.width() >= 3 * 8 && sheet.height() >= 2 * 8, "three columns, two rows");

    let message = refuse(folder, &["sample", "--weights", "run/merged.safetensors", "--out", "x.gif"]);
    assert!(message.contains("expected a name ending in .npz or .png, or a folder"), "{message}");
    let args = ["sample", "--weights", "run/merged.safetensors", "--out", "x.npz", "--sampler", "huen = {}"];
    let message = refuse(folder, &args);
    assert!(message.contains("--sampler huen = {}") && message.contains("heun"), "{message}");
}

fn cores_that_take_a_chunk_each_change_nothing(folder: &Path) {
    let found = ["1", "2", "7"].map(|cores| {
        let of_weights = "--weights run/merged.safetensors --chunk 20";
        let line = format!(
            "export OMP_NUM_THREADS={cores}; lcsc sample {of_weights} --n 100 --out cores.npz; \
             lcsc eval {of_weights} --n 100 --json cores.json"
        );
        let ended = shell(folder, &line);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        let fds: Vec<f64> =
            (0..3).map(|i| json(&folder.join("cores.json"))["results"][i]["fd"].as_f64().unwrap()).collect();
        (npz::<u8>(&folder.join("cores.npz"), "arr_0"), fds)
    });
    let [(images, fds), more @ ..] = &found;
    assert_eq!(images.0, [100, 8, 8, 1]);
    for (same_images, same_fds) in more {
        assert_eq!(same_images, images);
        // Matrix products of more threads are summed in another order.
        assert!(fds.iter().zip(same_fds).all(|(a, b)| (a - b).abs() < 1e-9 * a.abs()), "{fds:?} {same_fds:?}");
    }
}

fn eval_measures(folder: &Path) {
    let args = ["eval", "--weights", "run/merged.safetensors", "--n", "64", "--json", "eval.json"];
    let said = succeed(folder, &args);
    let found = json(&folder.join("eval.json"));
    let results = found["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for result in results {
        let (fd, convention) = (result["fd"].as_f64().unwrap(), &result["convention"]);
        assert!(fd > 0.0 && said.contains(&format!("{fd:.4}")), "{said}");
        assert!(said.contains(convention["extractor"].as_str().unwrap()) && convention["n"] == 64, "{said}");
    }
    let measures = ["kid", "inception_score", "precision", "recall"];
    assert_eq!(measures.map(|m| results[0][m].is_null()), [false; 4], "{results:?}");
    // Other chunks round otherwise, so that a pixel may be another.
    let chunks = ["--chunk", "10", "--reference", "digits", "--metrics", "pr", "--json", "chunks.json"];
    succeed(folder, &[&args[..5], &chunks].concat());
    let others = json(&folder.join("chunks.json"));
    let fds =
        |v: &Value| v["results"].as_array().unwrap().iter().map(|r| r["fd"].as_f64().unwrap()).collect::<Vec<_>>();
    for (a, b) in fds(&found).iter().zip(fds(&others)) {
        assert!((a - b).abs() < 1e-4 * b, "{a} {b}");
    }
    assert_eq!(measures.map(|m| others["results"][0][m].is_null()), [true, true, false, false]);
    given_images_are_measured(folder);
}

/// Images in a folder, by an extractor that is trained on the reference.
fn given_images_are_measured(folder: &Path) {
    succeed(folder, &["sample", "--weights", "run/merged.safetensors", "--n", "40", "--out", "given/"]);
    let args = ["eval", "--images", "given", "--reference", "digits"];
    let said = succeed(folder, &[&args[..], &["--extractor", "classifier"]].concat());
    assert!(said.contains("classifier-a") && said.contains("N 40"), "{said}");
    let message = refuse(folder, &[&args[..], &["--extractor", "classifier", "--n", "41"]].concat());
    assert!(message.contains("given holds 40 images"), "{message}");
    assert!(refuse(folder, &args[..3]).contains("--images needs --reference"));
    // Images alone are judged as published figures are.
    let ended: Ended = command(folder, &args).env_remove("LCSC_INCEPTION").output().unwrap().into();
    let message = ended.message();
    assert!(ended.status == Some(1) && message.contains("`lcsc data fetch inception`"), "{message}");
    assert!(message.contains("LCSC_INCEPTION"), "{message}");
}

fn settings_of_another_training_are_refused(folder: &Path) {
    let before = results(&folder.join("run"));
    for set in ["seed=1", "stage.0.nimg=640", "model.song.dropout=0.1", "stage.0.trajectory.every_nimg=64"] {
        let message = refuse(folder, &small("run", "run", &[set]));
        assert!(message.contains("training state of other settings") && message.contains("--out"), "{message}");
    }
    assert!(results(&folder.join("run")) == before, "a refused run changed the folder");
    for args in [vec!["search", "run", "--set", "search.images=65"], small("run", "run", &["search.images=65"])] {
        let message = refuse(folder, &args);
        assert!(message.contains("`config.images` was 64 and is 65") && message.contains("--name"), "{message}");
    }
    assert!(results(&folder.join("run")) == before, "a refused search changed the folder");
    // Another search beside the first leaves the run's results alone, and joins them on the page.
    succeed(folder, &["search", "run", "--name", "other", "--set", "search.images=65"]);
    let mut after = results(&folder.join("run"));
    let page = after.insert("report.html".into(), before[Path::new("report.html")].clone());
    let page = String::from_utf8(page.unwrap()).unwrap();
    let other = json(&folder.join("run/search/other/summary.json"));
    let lcsc = other["models"].as_array().unwrap().iter().find(|m| m["label"] == "lcsc").unwrap();
    let figure = format!("{:.3}", lcsc["fd_heldout"].as_f64().unwrap());
    assert!(page.contains("other: best so far") && page.contains(&figure), "{figure}");
    after.retain(|name, _| !name.starts_with("search/other"));
    assert!(after == before);
    assert!(folder.join("run/search/other/merged.safetensors").is_file());
}

#[test]
fn an_unfinished_run_is_searched_under_another_name_and_then_finished() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let two_stages = folder.join("two.toml");
    let text = std::fs::read_to_string(TINY).unwrap();
    let (head, tail) = text.split_once("[sampler").unwrap();
    let stage = head[head.find("[[stage]]").unwrap()..].replace("\"edm\"", "\"more\"");
    std::fs::write(&two_stages, format!("{head}{stage}[sampler{tail}")).unwrap();
    let small: Vec<&str> = SMALL.iter().flat_map(|set| ["--set", set]).collect();
    let run = [&["run", "two.toml", "--out", "run", "--set", "stage.1.nimg=384"][..], &small].concat();
    // A disk budget is of its own stage.
    let budget = ["--set", "stage.1.trajectory.disk_budget_gib=0.01"];
    let mut child = spawn(folder, &[&run[..], &budget].concat());
    while lines(&folder.join("run/trajectory/manifest.jsonl")).len() < 4 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was stopped");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let search = ["search", "run", "--set", "search.stage=\"edm\""];
    let message = refuse(folder, &search);
    assert!(message.contains("training is not finished") && message.contains("--name"), "{message}");
    succeed(folder, &[&search[..], &["--name", "early"]].concat());
    succeed(folder, &run);
}

#[test]
fn labels_go_with_samples_of_a_conditional_model() {
    let temp = tempfile::tempdir().unwrap();
    succeed(temp.path(), &small("train", "run", &["conditional=true", "stage.0.nimg=256"]));
    let weights = "run/trajectory/ckpt-000000000256-raw.safetensors";
    succeed(temp.path(), &["sample", "--weights", weights, "--n", "40", "--out", "x.npz"]);
    let (shape, labels) = npz::<i64>(&temp.path().join("x.npz"), "arr_1");
    assert_eq!(shape, [40]);
    assert!(labels.iter().all(|l| (0..10).contains(l)) && labels.iter().min() < labels.iter().max());
    assert_eq!(npz::<u8>(&temp.path().join("x.npz"), "arr_0").0, [40, 8, 8, 1]);
}

#[test]
fn config_and_doctor_tell_what_there_is() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let shown = succeed(folder, &["config", "show", TINY, "--set", "stage.0.batch=64", "--set", "name=shown"]);
    let table: toml::Table = shown.parse().unwrap();
    assert_eq!(table["name"].as_str(), Some("shown"));
    assert_eq!(table["stage"][0]["batch"].as_integer(), Some(64));
    assert_eq!(table["model"]["song"]["num_blocks"].as_integer(), Some(1), "the preset is written out");
    std::fs::write(folder.join("shown.toml"), &shown).unwrap();
    assert_eq!(succeed(folder, &["config", "show", "shown.toml"]), shown);
    assert!(succeed(folder, &["config", "check", "shown.toml"]).contains("no problems"));

    let schema: Value = serde_json::from_str(&succeed(folder, &["config", "schema"])).unwrap();
    assert!(schema["properties"]["stage"]["description"].is_string());
    let networks = schema["$defs"]["NetworkConfig"]["oneOf"].as_array().unwrap();
    assert_eq!(networks.len(), 3, "two architectures, and a preset alone");
    assert!(networks.iter().all(|n| n["properties"]["preset"]["enum"].as_array().unwrap().len() >= 6));

    let explained = succeed(folder, &["config", "explain", TINY]);
    for word in [
        "parameters",
        "1280 images in 40 steps of 32",
        "gradient",
        "moments",
        "2 EMA tracks",
        "of activations a round",
        "10 in the search window",
    ] {
        assert!(explained.contains(word), "{word}\n{explained}");
    }
    for word in [
        "disk",
        "gradient over W = 10 ×",
        "held on the device",
        "6 groups",
        "100 images an evaluation at 5 NFE",
        "images sampled at once",
        "in a step by gradient",
    ] {
        assert!(explained.contains(word), "{word}\n{explained}");
    }

    let doctor = succeed(folder, &["doctor", TINY]);
    for word in ["libtorch", "2.11.0", "CUDA", "threads    1\n", "memory", "disk", "for a run of"] {
        assert!(doctor.contains(word), "{word}\n{doctor}");
    }
    assert!(succeed(folder, &["completions", "bash"]).contains("lcsc"));
    assert!(files(folder).len() == 1, "asking leaves nothing behind");
}

#[test]
fn what_cannot_be_begun_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let held = RunFolder::create(folder.join("held")).unwrap().lock().unwrap();
    for args in [small("run", "held", &[]), small("train", "held", &[])] {
        let message = refuse(folder, &args);
        assert!(message.contains("held: another process works on this run"), "{message}");
    }
    drop(held);
    for args in [&["search", "none"][..], &["merge", "none"]] {
        let message = refuse(folder, args);
        assert!(message.contains("none: there is no run in this folder") && message.contains("lcsc run"), "{message}");
    }
    let message = refuse(folder, &small("run", "run", &["stage.1.nimg=5"]));
    assert!(message.contains("--set stage.1.nimg=5: `stage` has 1 elements"), "{message}");
    let message = refuse(folder, &small("run", "run", &["stage.0.trajectory.disk_budget_gib=1e-6"]));
    assert!(message.contains("disk_budget_gib allows") && message.contains("every_nimg larger"), "{message}");
    assert!(lcsc_in(folder, &["sample", "--out", "x.npz"]).stderr.contains("--weights"));
    let message = refuse(folder, &["sample", "--weights", "none.safetensors", "--out", "x.npz"]);
    assert!(message.contains("none.safetensors"), "{message}");
}

/// A learning rate that ruins the weights in the first step, so that the second has no finite loss.
const RUINOUS: &str = "stage.0.optimizer.adam.lr=1e30";

#[test]
fn a_run_that_is_not_finite_stops_and_keeps_the_last_good_state() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    for _ in 0..2 {
        let message = refuse(folder, &small("run", "stop", &[RUINOUS]));
        assert!(message.contains("stage `edm`, after 32 images: loss") && message.contains("not finite"), "{message}");
        assert!(message.contains("lower the learning rate, set grad_clip"), "{message}");
        let state = TrainingState::load(&RunFolder::open(folder.join("stop")).unwrap()).unwrap().unwrap();
        assert_eq!(state.meta["nimg"], 32);
        assert!(state.tensors["theta"].isfinite().all().int64_value(&[]) == 1);
    }
    // Where nothing becomes good again, `skip` stops in the end.
    let message = refuse(folder, &small("train", "skip", &[RUINOUS, "stage.0.non_finite=skip", "stage.0.nimg=3520"]));
    assert!(message.contains("more than 100 steps in a row were not finite"), "{message}");
}

#[test]
fn skipped_and_mended_steps_are_counted_and_the_search_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    for policy in ["skip", "zero"] {
        let set = format!("stage.0.non_finite={policy}");
        let table = succeed(folder, &small("run", policy, &[RUINOUS, &set]));
        let log = json_lines(&folder.join(policy).join("train.jsonl"));
        let (first, last) = (&log[0], log.last().unwrap());
        assert_eq!((&first["nimg"], &first["non_finite_steps"]), (&32.into(), &0.into()));
        assert!(first["loss"].as_f64().is_some());
        assert_eq!((&last["nimg"], &last["non_finite_steps"]), (&384.into(), &11.into()), "{policy}");
        assert_eq!(last["loss"], Value::Null);
        assert!(table.contains("LCSC"), "{table}");
        let summary = json(&folder.join(policy).join("summary.json"));
        assert_eq!(summary["models"].as_array().unwrap().len(), 4);
    }
}

#[test]
fn bench_times_works_and_writes_what_they_compute() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    succeed(folder, &["bench", "merge", "--outputs", "outputs"]);
    let file = SafeFile::open(folder.join("outputs/merge.safetensors")).unwrap();
    let [w, alpha, theta] = ["w", "alpha", "theta"].map(|name| file.tensor(name).unwrap());
    let product = alpha.matmul(&w.to_kind(Kind::Double));
    assert!((product - &theta).abs().max().double_value(&[]) < 1e-6);
    assert!(theta.abs().max().double_value(&[]) > 0.1);

    let table = succeed(folder, &["bench", "train-tiny", "--repeats", "1", "--json", "times.json"]);
    assert!(table.contains("train-tiny") && table.contains("GFLOP/s"), "{table}");
    let found = json(&folder.join("times.json"));
    assert_eq!((&found["threads"], &found["precision"]), (&1.into(), &"f32".into()));
    let row = &found["rows"][0];
    assert_eq!(row["work"], "train-tiny");
    // Quick work is repeated for a second.
    let repeats: Vec<f64> = row["repeats"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
    assert!(repeats.iter().sum::<f64>() > 0.9, "{repeats:?}");
    // Three passes of 64 images, as PyTorch counts their operations.
    assert!((row["flops"].as_f64().unwrap() / (3.0 * 64.0 * 9.095e6) - 1.0).abs() < 0.01);
    let reached = row["flops"].as_f64().unwrap() / row["seconds"].as_f64().unwrap();
    let share = reached / found["ceilings"]["product"].as_f64().unwrap();
    assert!((row["fraction"].as_f64().unwrap() / share - 1.0).abs() < 1e-9);
}
