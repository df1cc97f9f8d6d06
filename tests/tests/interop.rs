//! Weights of other programs in, ours out.

use lcsc_tests::*;
use lcsc_torch::{SafeFile, Tensor};
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// The names and values in a weights file.
fn tensors(path: &Path) -> Vec<(String, Tensor)> {
    SafeFile::open(path).unwrap().tensors().unwrap()
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (tensors(a), tensors(b));
    assert_eq!(a.len(), b.len());
    for ((name, x), (other, y)) in a.iter().zip(&b) {
        assert!(name == other && x.equal(y), "{name}");
    }
}

/// A finished run, smaller than the tiny one.
fn run(folder: &Path, more: &[&str]) {
    let mut args = vec!["train", TINY, "--out", "run", "--set", "stage.0.nimg=384"];
    more.iter().for_each(|set| args.extend(["--set", set]));
    succeed(folder, &args);
}

/// Runs `import` or `export`, which write where nothing is.
fn convert(folder: &Path, args: &[&str], out: &str) -> String {
    let _ = std::fs::remove_file(folder.join(out));
    succeed(folder, args)
}

/// The last checkpoint of the run.
const LAST: &str = "run/trajectory/ckpt-000000000384-raw.safetensors";

#[test]
fn exported_weights_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(folder, &[]);
    for out in ["edm.pt", "edm.safetensors"] {
        let said = succeed(folder, &["export", LAST, out, "--naming", "edm"]);
        assert!(said.contains("load_state_dict") && said.contains("strict=True"), "{said}");
        let import = ["import", out, "--config", "run/config.toml", "--out", "back.safetensors"];
        convert(folder, &import, "back.safetensors");
        assert_same(&folder.join(LAST), &folder.join("back.safetensors"));
    }
    assert!(refuse(folder, &["export", LAST, "edm.pt", "--naming", "edm"]).contains("edm.pt: exists already"));
    succeed(folder, &["sample", "--weights", "back.safetensors", "--n", "2", "--out", "x.png"]);
    let message = refuse(folder, &["export", LAST, "x.pt", "--naming", "openai"]);
    assert!(message.contains("OpenAI's names are those of ADM networks"), "{message}");
    let other =
        ["import", "edm.pt", "--config", "run/config.toml", "--set", "model.song.model_channels=16", "--out", "y"];
    let message = refuse(folder, &other);
    assert!(
        message.contains("edm.pt: does not fit") && message.contains("expected [32") && message.contains("more"),
        "{message}"
    );
    std::fs::write(folder.join("evil.pt"), b"\x80\x02cos\nsystem\n(X\x04\0\0\0true\x85R.").unwrap();
    let message = refuse(folder, &["import", "evil.pt", "--config", "run/config.toml", "--out", "y"]);
    assert!(message.contains("`os.system`") && !folder.join("y").exists(), "{message}");
}

#[test]
fn openai_names_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = std::fs::read_to_string(TINY).unwrap();
    let adm = "preset = \"adm-imagenet64\"\nadm.model_channels = 32\nadm.channel_mult = [1, 2]\nadm.num_blocks = 1\n\
               adm.attn_resolutions = [4]\nadm.heads = { channels = 8 }\nadm.min_channels_per_group = 1";
    let config = config
        .replace("preset = \"tiny\"\nsong.model_channels = 8", adm)
        .replace("conditional = false", "conditional = true");
    std::fs::write(folder.join("adm.toml"), config).unwrap();
    succeed(folder, &["train", "adm.toml", "--out", "run", "--set", "stage.0.nimg=384"]);
    succeed(folder, &["export", LAST, "openai.safetensors", "--naming", "openai"]);
    assert!(tensors(&folder.join("openai.safetensors")).iter().any(|(name, _)| name == "input_blocks.0.0.weight"));
    succeed(folder, &["export", LAST, "openai.pt", "--naming", "openai"]);
    let message = refuse(folder, &["export", LAST, "x.pt", "--naming", "edm"]);
    assert!(message.contains("EDM's code has no network of this `adm.heads`, only { channels = 64 }"), "{message}");
    for theirs in ["openai.pt", "openai.safetensors"] {
        convert(folder, &["import", theirs, "--config", "adm.toml", "--out", "back.safetensors"], "back.safetensors");
        assert_same(&folder.join(LAST), &folder.join("back.safetensors"));
    }
    attention_layers_in_other_orders_come_back_too(folder);
}

fn attention_layers_in_other_orders_come_back_too(folder: &Path) {
    let import = ["import", "guided.pt", "--config", "adm.toml", "--out", "back.safetensors"];
    for order in ["new", "legacy"] {
        let order = ["--attention-order", order];
        let export = [&["export", LAST, "guided.pt", "--naming", "openai"], &order[..]].concat();
        let said = convert(folder, &export, "guided.pt");
        assert!(said.contains("guided-diffusion"), "{said}");
        convert(folder, &[&import, &order[..]].concat(), "back.safetensors");
        assert_same(&folder.join(LAST), &folder.join("back.safetensors"));
    }
    std::fs::remove_file(folder.join("back.safetensors")).unwrap();
    let message = refuse(folder, &import);
    assert!(
        message.contains("qkv.weight` has shape [192, 64, 1]: it takes --attention-order new or legacy"),
        "{message}"
    );
    // Taken for the other order, only the rows of q, k and v come to other places.
    convert(folder, &[&import[..], &["--attention-order", "new"]].concat(), "back.safetensors");
    let (ours, back) = (tensors(&folder.join(LAST)), tensors(&folder.join("back.safetensors")));
    for ((name, x), (_, y)) in ours.iter().zip(&back) {
        assert!(name.contains(".qkv.") || x.equal(y), "{name}");
    }
    assert!(ours.iter().zip(&back).any(|((_, x), (_, y))| !x.equal(y)));
}

#[test]
fn the_noise_levels_of_iddpm_go_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = std::fs::read_to_string(TINY).unwrap();
    let config = config
        .replace("objective.edm = {}", "objective.ddpm = {}")
        .replace("[data]", "preconditioning.iddpm = { m = 100, learn_sigma = true }\n[data]");
    let config = config.replace("steps = 3\nsigma_max = 20.0", "steps = 3");
    std::fs::write(folder.join("iddpm.toml"), config).unwrap();
    succeed(folder, &["train", "iddpm.toml", "--out", "run", "--set", "stage.0.nimg=384"]);
    succeed(folder, &["export", LAST, "x.safetensors", "--naming", "edm"]);
    let (_, u) = tensors(&folder.join("x.safetensors")).into_iter().find(|(name, _)| name == "u").unwrap();
    assert!(u.size() == [101] && u.double_value(&[100]) == 0.0 && u.double_value(&[0]) > u.double_value(&[1]));
    let import = ["import", "x.safetensors", "--config", "iddpm.toml", "--out", "back.safetensors"];
    succeed(folder, &import);
    assert_same(&folder.join(LAST), &folder.join("back.safetensors"));
    std::fs::remove_file(folder.join("back.safetensors")).unwrap();
    let message = refuse(folder, &[&import[..], &["--set", "preconditioning.iddpm.m=50"]].concat());
    assert!(message.contains("x.safetensors: its noise levels `u` [101] are not those"), "{message}");
}

#[test]
fn a_folder_of_files_becomes_a_trajectory_that_is_searched() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(folder, &[]);
    for step in [4, 8, 12] {
        let nimg = step * 32;
        let ours = format!("run/trajectory/ckpt-{nimg:012}-raw.safetensors");
        succeed(folder, &["export", &ours, &format!("model{step:06}.pt"), "--naming", "edm"]);
        succeed(folder, &["export", &ours, &format!("ema{step:06}.pt"), "--naming", "edm"]);
    }
    // Their EMA, here the same weights, is a row among the baselines.
    let ema = ["--set", "stage.0.ema=[{constant={beta=0.9}}]", "--trajectory", "ema-b0.9=ema*.pt"];
    let import = ["import", "theirs", "--config", "run/config.toml", "--trajectory", "model*.pt"];
    let said = succeed(folder, &[&import, &ema[..]].concat());
    assert!(said.contains("6 checkpoints") && said.contains("lcsc search theirs"), "{said}");
    let list = std::fs::read_to_string(folder.join("theirs/imported.txt")).unwrap();
    assert!(list.starts_with("128 ema-b0.9 ./ema000004.pt\n128 raw ./model000004.pt\n256 "), "{list}");
    assert_same(&folder.join(LAST), &folder.join("theirs/trajectory/ckpt-000000000384-raw.safetensors"));
    let search = ["search", "theirs", "--set", "search.budget.evaluations=4"];
    assert!(succeed(folder, &search).contains("LCSC"));
    let evaluations = std::fs::read_to_string(folder.join("theirs/search/default/evaluations.jsonl")).unwrap();
    assert!(evaluations.contains("\"ema-b0.9\""), "{evaluations}");
    assert!(folder.join("theirs/merged.safetensors").exists());
    assert!(refuse(folder, &["train", "run/config.toml", "--out", "theirs"]).contains("were imported"));
    assert!(refuse(folder, &import).contains("theirs: exists already"));
    // A bad file among them leaves nothing behind.
    std::fs::write(folder.join("model000016.pt"), "no weights").unwrap();
    let message = refuse(folder, &[&["import", "others"], &import[2..]].concat());
    assert!(message.contains("model000016.pt"), "{message}");
    let left = std::fs::read_dir(folder).unwrap().filter(|e| {
        let name = e.as_ref().unwrap().file_name();
        name == "others" || name.to_string_lossy().starts_with(".importing")
    });
    assert_eq!(left.count(), 0);
}

/// A Python with PyTorch: `LCSC_PYTHON`, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("LCSC_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import torch"]).output().is_ok_and(|o| o.status.success());
    if !found {
        println!("skipped: {python} has no PyTorch; LCSC_PYTHON names another");
    }
    found.then_some(python)
}

#[test]
fn files_of_pytorch_itself_come_in_and_ours_go_back() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(folder, &[]);
    let shapes: serde_json::Map<String, serde_json::Value> =
        tensors(&folder.join(LAST)).into_iter().map(|(name, tensor)| (name, json!(tensor.size()))).collect();
    std::fs::write(folder.join("shapes.json"), serde_json::Value::from(shapes).to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/weights.py");
    let call = |args: &[&str]| {
        let output = Command::new(&python).current_dir(folder).arg(script).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    call(&["write", "."]);
    let files =
        ["zip.pt", "legacy.pt", "wrapped.pth", "strided.pt", "network-snapshot-000123.pkl", "training-state-000123.pt"];
    for (i, theirs) in files.iter().enumerate() {
        let ours = format!("{i}.safetensors");
        succeed(folder, &["import", theirs, "--config", "run/config.toml", "--out", &ours]);
        assert_same(&folder.join("0.safetensors"), &folder.join(&ours));
        convert(folder, &["export", &ours, "back.pt", "--naming", "edm"], "back.pt");
        call(&["check", "back.pt", "."]);
    }
}
