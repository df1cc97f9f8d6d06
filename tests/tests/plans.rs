//! Plans of computing a network are tried in a process of its own, which tells what it finds line by line.

use lcsc_tests::command;
use lcsc_torch::Precision;
use lcsc_unet::{ImageShape, NetworkConfig, SongUNetConfig};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

/// What is told of each plan: its time, loss, and the cosine of its gradient (or images) and the plain plan's.
fn tried(precision: Precision, trains: bool) -> Vec<[f64; 3]> {
    let network = NetworkConfig::Song(SongUNetConfig { model_channels: 8, ..SongUNetConfig::tiny() });
    let image = ImageShape { channels: 1, resolution: 8, label_dim: 3 };
    let plan = |channels_last| json!({ "channels_last": channels_last });
    let trial = json!({
        "network": network, "preconditioning": { "edm": {} }, "image": image, "precision": precision, "images": 4,
        "trains": trains, "plans": [plan(false), plan(true)],
    });
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path(), &["try-plans", "--device", "cpu"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(trial.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let findings: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let order: Vec<(u64, bool)> =
        findings.iter().map(|f| (f["index"].as_u64().unwrap(), f["found"] == "begins")).collect();
    assert_eq!(order, [(0, true), (0, false), (1, true), (1, false)]);
    let took = |f: &Value| ["seconds", "loss", "cosine"].map(|key| f["found"]["took"][key].as_f64().unwrap());
    [1, 3].map(|i| took(&findings[i])).to_vec()
}

#[test]
fn what_channels_last_computes_is_compared_with_the_plain_plan() {
    for (precision, trains, error) in
        [(Precision::F32, true, 1e-5), (Precision::F32, false, 1e-5), (Precision::Bf16, true, 1e-2)]
    {
        let found = tried(precision, trains);
        let [[plain_seconds, plain, one], [seconds, loss, cosine]] = found[..] else { panic!("{found:?}") };
        assert!(plain_seconds > 0.0 && seconds > 0.0, "{found:?}");
        assert!((one - 1.0).abs() < 1e-6 && (cosine - 1.0).abs() < error, "{precision:?}: {found:?}");
        assert!((loss / plain - 1.0).abs() < error, "{precision:?}: {found:?}");
    }
}
