//! Natural images are judged by networks of natural images, without a word of configuration.

use image::RgbImage;
use lcsc_metrics::LiteName;
use lcsc_tests::*;
use lcsc_torch::near_places;
use std::path::Path;

const CONFIG: &str = r#"
name = "natural"
threads = 1

[data]
source = "images"

[model]
preset = "tiny"
song.model_channels = 8

[[stage]]
name = "edm"
nimg = 128
batch = 16
objective.edm = {}
ema = [{ half_life = { nimg = 50 } }]
trajectory = { every_nimg = 32 }

[sampler.heun]
steps = 2
sigma_max = 20.0

[search]
images = 8
selection_images = 8
report_images = 8
report_seeds = 1
finalists = 1
bootstrap = 2
chunk = 8
gradient.images = 8
budget = { evaluations = 2 }
"#;

/// Whether the weights are here, where scripts/setup.sh puts them.
fn has_weights() -> bool {
    let is_here = |name: LiteName| near_places(&format!("weights/{}", name.weights().file)).iter().any(|p| p.is_file());
    let all = is_here(LiteName::Lite0) && is_here(LiteName::Lite2);
    if !all {
        println!("skipped: the weights of EfficientNet-Lite are not here: scripts/setup.sh fetches them");
    }
    all
}

/// Twelve images of two classes, 16×16.
fn images(folder: &Path) {
    for class in 0..2u8 {
        let folder = folder.join(format!("images/class-{class}"));
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..6u8 {
            let pixel = |x: u32, y: u32| image::Rgb([x as u8 * 15, y as u8 * 15, class * 200 + i * 8]);
            RgbImage::from_fn(16, 16, pixel).save(folder.join(format!("{i}.png"))).unwrap();
        }
    }
}

#[test]
fn natural_images_are_searched_by_lite0_and_judged_by_lite2() {
    if !has_weights() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    images(folder);
    std::fs::write(folder.join("config.toml"), CONFIG).unwrap();
    let ended: Ended = command(folder, &["run", "config.toml", "--out", "run"]).output().unwrap().into();
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let (lite0, lite2) = (
        "efficientnet-lite0 1280-d weights 57934424 bilinear 112",
        "efficientnet-lite2 1280-d weights 9656183e bilinear 128",
    );
    assert!(
        ended.stderr.contains(&format!("images are judged by {lite0}; independently by {lite2}")),
        "{}",
        ended.stderr
    );
    let summary = json(&folder.join("run/summary.json"));
    assert_eq!(summary["metric"]["extractor"], lite0);
    let models = summary["models"].as_array().unwrap();
    assert_eq!(models.len(), 4);
    for model in models {
        for key in ["fd_heldout", "fd_independent", "fd_pixel"] {
            assert!(model[key].as_f64().is_some_and(|fd| fd > 0.0), "{key} of {model}");
        }
    }
    // The gradient of a step leads through the network.
    let log = json_lines(&folder.join("run/search/default/evaluations.jsonl"));
    let gradient = log.iter().find_map(|line| line["gradient"].as_array()).unwrap();
    assert!(gradient.iter().flat_map(|row| row.as_array().unwrap()).any(|d| d.as_f64().unwrap() != 0.0));
    // The model is measured as in its table: by both networks and pixels.
    let args = ["eval", "--weights", "run/merged.safetensors", "--n", "8", "--metrics", "fd", "--json", "eval.json"];
    succeed(folder, &args);
    let conventions: Vec<String> = json(&folder.join("eval.json"))["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["convention"]["extractor"].as_str().unwrap().into())
        .collect();
    assert_eq!(conventions, [lite0, lite2, "pixels 16x16"]);
}

#[test]
fn damaged_weights_are_named_with_both_hashes() {
    if !has_weights() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    images(temp.path());
    let cache = temp.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    let weights = LiteName::Lite0.weights();
    std::fs::write(cache.join(weights.file), "cut off").unwrap();
    let args = ["eval", "--images", "images", "--reference", "images", "--extractor", "lite0"];
    let ended: Ended = command(temp.path(), &args).env("LCSC_CACHE", &cache).output().unwrap().into();
    let message = ended.message();
    assert!(message.contains(weights.file) && message.contains(weights.sha256), "{message}");
    assert!(message.contains("its SHA-256 is 117b48570e01"), "{message}");
}
