//! Every file of `configs/` is read, checked and explained; those of `configs/tiny` are run, shortened.

use image::RgbImage;
use lcsc_tests::*;
use libtest_mimic::{Arguments, Trial};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");

fn main() {
    let mut files = Vec::new();
    for folder in ["", "one-gpu", "studies", "tiny"] {
        let entries = std::fs::read_dir(Path::new(CONFIGS).join(folder)).unwrap();
        files.extend(entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "toml")));
    }
    files.sort();
    let name = |p: &Path| p.strip_prefix(CONFIGS).unwrap().display().to_string();
    let explained = files.iter().cloned().map(|path| {
        Trial::test(format!("explained {}", name(&path)), move || {
            explained(&path);
            Ok(())
        })
    });
    let tiny = files.iter().filter(|p| p.parent().unwrap().ends_with("tiny")).cloned().map(|path| {
        Trial::test(format!("run {}", name(&path)), move || {
            run(&path);
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), explained.chain(tiny).collect()).exit();
}

fn read(path: &Path) -> Table {
    toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn stages(config: &Table) -> &Vec<Value> {
    config["stage"].as_array().unwrap()
}

/// A folder with a few images of the size that the recipe is for, whose class is the last one.
fn dataset(folder: &Path, side: u32, class: u32) -> PathBuf {
    let data = folder.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let names = ["a", "b", "c", "d"].map(|name| format!("{name}.png"));
    names.iter().for_each(|name| RgbImage::new(side, side).save(data.join(name)).unwrap());
    let labels = names.map(|name| format!(r#"["{name}", {class}]"#)).join(", ");
    std::fs::write(data.join("dataset.json"), format!(r#"{{"labels": [{labels}]}}"#)).unwrap();
    data
}

fn explained(path: &Path) {
    let (config, temp) = (read(path), tempfile::tempdir().unwrap());
    let mut args = vec!["config".to_string(), "explain".into(), path.display().to_string()];
    let mut set = |assignment: String| args.extend(["--set".into(), assignment]);
    let source = config["data"]["source"].as_str().unwrap();
    let (side, class) = if source.contains("imagenet") { (64, 999) } else { (32, 9) };
    if source != "digits" {
        set(format!("data.source={}", dataset(temp.path(), side, class).display()));
    }
    for (i, stage) in stages(&config).iter().enumerate() {
        for (name, objective) in stage["objective"].as_table().unwrap() {
            // Its weights are not ours to ship.
            if objective.get("distance").is_some_and(|d| d.get("lpips").is_some()) {
                set(format!("stage.{i}.objective.{name}.distance=l2"));
            }
        }
    }
    // Nor are those of Inception, of which it is asked whether they are there.
    let inception = temp.path().join("inception.pth");
    std::fs::write(&inception, "").unwrap();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended: Ended = command(temp.path(), &args).env("LCSC_INCEPTION", inception).output().unwrap().into();
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let text = ended.stdout;
    for stage in stages(&config) {
        let line = format!("stage      {}: ", stage["name"].as_str().unwrap());
        assert!(text.contains(&line) && text.contains("search"), "{text}");
    }
    let teaches = stages(&config).iter().any(|stage| stage.get("teacher").is_some());
    assert_eq!(teaches, text.contains(", teacher "), "{text}");
}

/// A few steps of each stage, a few evaluations of the search: every part is gone through.
fn run(path: &Path) {
    let (config, temp) = (read(path), tempfile::tempdir().unwrap());
    let mut set: Vec<String> = [
        "search.images=64",
        "search.selection_images=64",
        "search.report_images=64",
        "search.report_seeds=1",
        "search.finalists=1",
        "search.bootstrap=2",
        "search.budget={ evaluations = 3 }",
        "search.gradient.images=64",
    ]
    .map(String::from)
    .into();
    for (i, stage) in stages(&config).iter().enumerate() {
        set.extend([format!("stage.{i}.nimg=512"), format!("stage.{i}.batch=64")]);
        if stage.get("trajectory").is_some() {
            set.push(format!("stage.{i}.trajectory.every_nimg=128"));
        }
        // So few steps leave no room for more doublings of its grid.
        if stage["objective"].get("ict").is_some() {
            set.push(format!("stage.{i}.objective.ict.s_1=20"));
        }
    }
    let path = path.display().to_string();
    let mut args = vec!["run", path.as_str(), "--out", "run"];
    set.iter().for_each(|s| args.extend(["--set", s]));
    succeed(temp.path(), &args);
    let summary = json(&temp.path().join("run/summary.json"));
    let models = summary["models"].as_array().unwrap();
    let fd = |label: &str| models.iter().find(|m| m["label"] == label).unwrap()["fd_heldout"].as_f64().unwrap();
    assert!(["last", "ema", "lcsc"].iter().all(|label| fd(label).is_finite() && fd(label) > 0.0), "{summary}");
    assert_eq!(summary["stages"].as_array().unwrap().len(), stages(&config).len());
    assert!(temp.path().join("run/merged.safetensors").is_file());
}
