//! A bad config is refused before any work, with all of its problems in one report.
//!
//! The reports are kept in `snapshots/`; `INSTA_UPDATE=always cargo test -p lcsc-tests --test bad_configs` writes them
//! anew.

use lcsc_tests::*;
use std::path::Path;

/// A report of `lcsc config check`, as on a screen without colours, and without spaces at the ends of lines.
fn report(folder: &Path, config: &str, sets: &[&str]) -> String {
    std::fs::write(folder.join("config.toml"), config).unwrap();
    let mut args = vec!["config", "check", "config.toml"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let ended = lcsc_in(folder, &args);
    let lines = ended.stderr.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    format!("exit status {}\n{}{}", ended.status.unwrap(), ended.stdout, lines)
}

/// The report of a config that has to be refused, also by `lcsc run`, which then leaves nothing behind.
fn refused(config: &str, sets: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let report = report(folder.path(), config, sets);
    assert!(report.starts_with("exit status 1\n"), "{report}");
    let mut args = vec!["run", "config.toml"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    for out in [&[][..], &["--out", "runs/x"]] {
        let ended = lcsc_in(folder.path(), &[&args, out].concat());
        assert_eq!(ended.status, Some(1), "{}", ended.stderr);
        let lines = ended.stderr.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        assert_eq!(format!("exit status 1\n{lines}"), report);
    }
    assert_eq!(files(folder.path()).len(), 1, "a refused run left something behind");
    report
}

/// Compares a report with the one in `snapshots/`.
fn assert_snapshot(name: &str, report: &str) {
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, report);
    });
}

#[test]
fn unknown_keys_and_wrong_types() {
    assert_snapshot(
        "unknown_keys_and_wrong_types",
        &refused(
            r#"
name = 7
sead = 1

[data]
source = "digits"
label = true

[model]
preset = "tiny"
model_chanels = 16

[[stage]]
name = "edm"
nimg = "many"
batch = 32
objective.edm = {}
optimizer.adan = { lr = 1e-3 }
trajectory = { every_nimg = 8, tracks = "raw" }

[sampler.heun]
steps = -3

[search]
budget = { evaluation = 5 }
"#,
            &["search.images=1.5", "serch.images=100"],
        ),
    );
}

#[test]
fn values_that_cannot_work() {
    assert_snapshot(
        "values_that_cannot_work",
        &refused(
            r#"
name = "a/b"
threads = 0

[data]
source = "digits"
resolution = 9

[model]
preset = "tiny"

[model.song]
model_channels = 18
channel_mult = [1, 2, 2, 2]
resample_filter = [1, -1]

[[stage]]
name = "edm"
nimg = 1_000
batch = 32
microbatch = 12
objective.edm = {}
optimizer.adam = { lr = 0.0 }
ema = [{ power = { sigma_rel = 0.5 } }, { constant = { beta = 1.5 } }]

[sampler.heun]
steps = 3
sigma_max = 0.001

[search]
images = 30
report_images = 1
finalists = 0
budget = { seconds = -1.0 }
memory_gib = nan
"#,
            &[],
        ),
    );
}

#[test]
fn stages_that_do_not_fit_each_other() {
    assert_snapshot(
        "stages_that_do_not_fit_each_other",
        &refused(
            r#"
name = "stages"
data.source = "digits"
model.preset = "tiny"

[[stage]]
name = "edm"
nimg = 1_280
batch = 32
objective.edm = {}
ema = [{ half_life = { nimg = 200 } }]

[[stage]]
name = "edm"
start.stage = { name = "emd" }
nimg = 1_280
batch = 32
objective.edm = {}

[[stage]]
name = "ect"
start.stage = { name = "edm", track = "ema-h300" }
nimg = 1_280
batch = 32
objective.ect = {}
trajectory = { every_nimg = 10_000, tracks = ["raw", "ema-h200"] }

[[stage]]
name = "more"
start.weights = { path = "missing.safetensors" }
nimg = 1_280
batch = 32
objective.edm = {}

[search]
stage = "ect"
"#,
            &[],
        ),
    );
}

#[test]
fn objectives_and_samplers_that_do_not_fit_the_model() {
    let config = r#"
name = "models"
conditional = false
preconditioning.edm = {}

[data]
source = "digits"
augment = 0.12

[model]
preset = "tiny"
adm.dropout = 0.1

[[stage]]
name = "edm"
nimg = 1_280
batch = 32
teacher.weights = { path = "teacher.safetensors" }
objective.ddpm = {}

[[stage]]
name = "cd"
nimg = 1_280
batch = 32
objective.cd = { num_scales = 1, distance.lpips = { network = "vgg", weights = "vgg.safetensors" } }

[[stage]]
name = "ct"
nimg = 1_280
batch = 32
objective.ct = { s_1 = 100_000_000, mu_0 = 1.0 }

[[stage]]
name = "ict"
nimg = 128
batch = 32
objective.ict = { distance.huber = { c = -1.0 } }
trajectory = { every_nimg = 32 }

[sampler.dpmpp]
steps = 2
order = 3
guidance = 1.5
"#;
    assert_snapshot("objectives_and_samplers_that_do_not_fit_the_model", &refused(config, &[]));
}

#[test]
fn weights_of_another_network_and_guidance_without_label_dropout() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    succeed(folder, &["train", TINY, "--out", "other", "--set", "stage.0.nimg=256"]);
    let weights = std::fs::read_dir(folder.join("other/trajectory")).unwrap().map(|e| e.unwrap().path());
    let weights = weights.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).min().unwrap();
    let config = std::fs::read_to_string(TINY).unwrap();
    let start = format!("stage.0.start={{ weights = {{ path = {:?} }} }}", weights.display().to_string());
    std::fs::write(folder.join("config.toml"), config).unwrap();
    let check = |sets: &[&str]| {
        let mut args = vec!["config", "check", "config.toml", "--set", start.as_str()];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        lcsc_in(folder, &args)
    };
    assert_eq!(check(&[]).status, Some(0));
    let message = check(&["model.song.num_blocks=2"]).message();
    assert!(message.contains("stage[0].start.weights.path") && message.contains("has shape"), "{message}");
    let message = check(&["preconditioning={ vp = {} }", "stage.0.objective={ ddpm = {} }"]).message();
    assert!(message.contains("was trained with preconditioning Edm"), "{message}");
    let message = check(&["sampler.heun.guidance=1.5"]).message();
    assert!(message.contains("sampler.heun.guidance") && message.contains("label_dropout above 0"), "{message}");
}

#[test]
fn a_file_that_is_no_toml_and_data_that_is_not_there() {
    let config = "name = \"x\"\n[data\nsource = 1\n";
    let no_toml = refused(config, &[]);
    let config = "name = \"x\"\ndata.source = \"pictures.zip\"\n[[stage]]\nname = \"edm\"\nnimg = 96\nbatch = 32\n\
                  objective.edm = {}\ntrajectory = { every_nimg = 32 }\n";
    assert_snapshot(
        "a_file_that_is_no_toml_and_data_that_is_not_there",
        &format!("{no_toml}\n\n{}", refused(config, &["model.preset=tinny"])),
    );
}

#[test]
fn warnings_refuse_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(TINY).unwrap();
    let report = report(folder.path(), &config, &["search.images=32", "sampler={ consistency = {} }"]);
    assert!(report.starts_with("exit status 0\n"), "{report}");
    assert_snapshot("warnings_refuse_nothing", &report);
}

#[test]
fn missing_extractors_are_told_beside_missing_data() {
    let config = r#"
name = "x"
data.source = "none.zip"
model.preset = "tiny"
metric = { extractor = { inception = "none.pth" }, independent = { torchscript = "none.pt" } }

[[stage]]
name = "edm"
nimg = 1_000
batch = 32
objective.edm = {}
"#;
    let words = refused(config, &[]);
    for place in ["data.source: ", "metric.extractor: ", "metric.independent: "] {
        assert!(words.contains(place), "{words}");
    }
}

#[test]
fn a_gradient_does_not_lead_through_f16() {
    let config = |precision: &str| {
        format!(
            r#"
name = "x"
data.source = "digits"
model.preset = "tiny"
metric.extractor = {{ inception = "none.pth", precision = "{precision}" }}

[[stage]]
name = "edm"
nimg = 1_000
batch = 32
objective.edm = {{}}
trajectory = {{ every_nimg = 100 }}
"#
        )
    };
    let words = |precision| refused(&config(precision), &[]).split_whitespace().collect::<Vec<_>>().join(" ");
    let [f16, bf16] = ["f16", "bf16"].map(words);
    assert!(f16.contains("f16 has too small a range for the method") && f16.contains("none.pth"), "{f16}");
    assert!(!bf16.contains("too small a range") && bf16.contains("none.pth"), "{bf16}");
}
