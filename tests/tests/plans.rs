//! Plans of computing a network are tried in a process of its own, which tells what it finds line by line.

use lcsc_tests::command;
use lcsc_tests::standin::{is_usable, with_gpus};
use lcsc_torch::{Plan, Precision};
use lcsc_unet::{DhariwalUNetConfig, Heads, ImageShape, NetworkConfig, SongUNetConfig};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

/// What is told of each plan: its time, loss, and the cosine of its gradient (or images) and the plain plan's.
fn tried(
    mut program: Command,
    network: &NetworkConfig,
    precision: Precision,
    trains: bool,
    plans: &[Plan],
) -> Vec<[f64; 3]> {
    let image = ImageShape { channels: 1, resolution: 8, label_dim: 3 };
    let trial = json!({
        "network": network, "preconditioning": { "edm": {} }, "image": image, "precision": precision, "images": 2,
        "trains": trains, "plans": plans,
    });
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(trial.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let findings: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let order: Vec<(usize, bool)> =
        findings.iter().map(|f| (f["index"].as_u64().unwrap() as usize, f["found"] == "begins")).collect();
    assert_eq!(order, (0..plans.len()).flat_map(|i| [(i, true), (i, false)]).collect::<Vec<_>>(), "{text}");
    let number = |f: &Value, key: &str| f["found"]["took"][key].as_f64().unwrap_or_else(|| panic!("{f}"));
    let took = |f: &Value| ["seconds", "loss", "cosine"].map(|key| number(f, key));
    findings.iter().skip(1).step_by(2).map(took).collect()
}

/// Loss and direction of all plans are those of the plain one, but for a relative error.
fn assert_equal(found: &[[f64; 3]], error: f64) {
    let [plain_seconds, plain, one] = found[0];
    assert!(plain_seconds > 0.0 && (one - 1.0).abs() < 1e-6, "{found:?}");
    for [seconds, loss, cosine] in &found[1..] {
        assert!(*seconds > 0.0 && (cosine - 1.0).abs() < error && (loss / plain - 1.0).abs() < error, "{found:?}");
    }
}

fn song() -> NetworkConfig {
    NetworkConfig::Song(SongUNetConfig { model_channels: 8, ..SongUNetConfig::tiny() })
}

#[test]
fn what_channels_last_computes_is_compared_with_the_plain_plan() {
    for (precision, trains, error) in
        [(Precision::F32, true, 1e-5), (Precision::F32, false, 1e-5), (Precision::Bf16, true, 1e-2)]
    {
        let folder = tempfile::tempdir().unwrap();
        let program = command(folder.path(), &["try-plans", "--device", "cpu"]);
        assert_equal(&tried(program, &song(), precision, trains, &Plan::TRAINING[..2]), error);
    }
}

/// ADM's norms have scale and shift.
#[test]
fn all_plans_compute_the_same_on_the_stand_in() {
    if !is_usable() {
        return;
    }
    let adm = NetworkConfig::Adm(DhariwalUNetConfig {
        model_channels: 16,
        channel_mult: vec![1, 2],
        num_blocks: 1,
        attn_resolutions: vec![4],
        heads: Heads::Count(1),
        ..DhariwalUNetConfig::default()
    });
    let folder = tempfile::tempdir().unwrap();
    for (trains, plans) in [(true, Plan::TRAINING.to_vec()), (false, Plan::of_sampling())] {
        let program = with_gpus(folder.path(), &["try-plans", "--device", "cuda"]);
        assert_equal(&tried(program, &adm, Precision::F32, trains, &plans), 1e-5);
    }
}
