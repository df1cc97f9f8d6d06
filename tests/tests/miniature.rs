//! The quick start in miniature: a diffusion model of the digits, tuned into a one-step consistency model, and LCSC on
//! its checkpoints.

use lcsc_search::{Evaluation, Model, Origin, Phase, Record};
use lcsc_tests::*;
use lcsc_trajectory::JsonLines;
use serde_json::Value;

const CONFIG: &str = r#"
name = "miniature"
conditional = false

[data]
source = "digits"

[model]
preset = "tiny"

[[stage]]
name = "edm"
nimg = 19_200
batch = 64
objective.edm = {}
optimizer.adam = { lr = 2e-3 }
ema = [{ half_life = { nimg = 2_000, rampup_ratio = 0.05 } }]

[[stage]]
name = "ect"
start.stage = { name = "edm" }
nimg = 16_000
batch = 64
objective.ect = { q = 4.0, stage_every_nimg = 4_000 }
optimizer.radam = { lr = 1e-3 }
ema = [{ half_life = { nimg = 1_000 } }, { power = { sigma_rel = 0.05 } }, { power = { sigma_rel = 0.1 } }]
trajectory = { every_nimg = 800 }

[sampler.consistency]
sigma_max = 20.0

[search]
images = 200
selection_images = 400
report_images = 500
report_seeds = 2
finalists = 3
budget = { evaluations = 60 }
gradient = { images = 200 }
"#;

#[test]
fn the_search_finds_a_better_model_than_training_ends_with() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    std::fs::write(folder.join("config.toml"), CONFIG).unwrap();
    let table = succeed(folder, &["run", "config.toml", "--out", "run"]);
    println!("{table}");

    let summary = json(&folder.join("run/summary.json"));
    let models = summary["models"].as_array().unwrap();
    for key in ["fd_search", "fd_heldout", "fd_heldout_std", "fd_independent", "fd_pixel"] {
        assert!(models.iter().all(|m| m[key].as_f64().is_some_and(f64::is_finite)), "{key}\n{table}");
    }
    let fd = |label: &str, key: &str| models.iter().find(|m| m["label"] == label).unwrap()[key].as_f64().unwrap();
    for (key, share) in [("fd_search", 0.8), ("fd_heldout", 0.8), ("fd_independent", 0.9)] {
        assert!(
            fd("lcsc", key) < share * fd("last", key) && fd("lcsc", key) < share * fd("ema", key),
            "{key}\n{table}"
        );
    }

    // On the selection latents nothing is better than LCSC, and it is what was merged.
    let records = JsonLines::<Record>::read(folder.join("run/search/default/evaluations.jsonl")).unwrap();
    let selected: Vec<&Evaluation> = records.iter().filter_map(selection).collect();
    let averages =
        selected.iter().filter(|e| !is_searched(e) && !matches!(e.candidate.origin, Origin::Checkpoint { .. }));
    let best = selected.iter().min_by(|a, b| a.scores.fd.total_cmp(&b.scores.fd)).unwrap();
    assert!(is_searched(best) && averages.clone().count() > 0, "{best:?}");
    assert!(averages.map(|e| e.scores.fd).all(|fd| best.scores.fd < fd));
    let merged = std::fs::read_to_string(folder.join("run/search/default/coefficients.toml")).unwrap();
    let merged: Value = toml::from_str(&merged).unwrap();
    let Model::Coefficients(coefficients) = &best.candidate.model else { panic!("{best:?}") };
    assert_eq!(merged["groups"].as_array().unwrap().len(), 6);
    for (k, checkpoint) in merged["checkpoint"].as_array().unwrap().iter().enumerate() {
        let alpha: Vec<f64> = checkpoint["alpha"].as_array().unwrap().iter().map(|a| a.as_f64().unwrap()).collect();
        assert_eq!(coefficients.rows().iter().map(|row| row[k]).collect::<Vec<_>>(), alpha);
    }
}

fn selection(record: &Record) -> Option<&Evaluation> {
    match record {
        Record::Evaluation(evaluation) if evaluation.phase == Phase::Selection => Some(evaluation),
        Record::Evaluation(_) | Record::Header(_) | Record::Claim(_) => None,
    }
}

fn is_searched(evaluation: &Evaluation) -> bool {
    matches!(evaluation.candidate.origin, Origin::Gradient { .. })
}
