//! Damaged files are named and never merged; torn last lines of logs are survived.

use lcsc_tests::*;
use lcsc_trajectory::{Manifest, RunFolder};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A way in which a file goes wrong.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 3] = [("torn or altered", flip), ("torn or altered", truncate), ("unreadable", remove)];

/// Changes one bit in the middle.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Cuts a few bytes off the end.
fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 7]).unwrap();
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

/// The command that makes a run, or goes on with it.
fn run(out: &str) -> Vec<&str> {
    let mut args = vec!["run", TINY, "--out", out];
    for set in [
        "stage.0.nimg=384",
        "search.images=64",
        "search.selection_images=64",
        "search.report_images=64",
        "search.report_seeds=1",
        "search.finalists=1",
        "search.budget.evaluations=4",
    ] {
        args.extend(["--set", set]);
    }
    args
}

/// Makes a finished run in `folder`/whole.
fn finish(folder: &Path) -> PathBuf {
    succeed(folder, &run("whole"));
    folder.join("whole")
}

#[test]
fn damaged_files_are_named_and_never_used() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let whole = finish(folder);
    let checkpoints = Manifest::read(&RunFolder::open(&whole).unwrap()).unwrap();
    let file = |track: &str| checkpoints.iter().rfind(|c| c.track.starts_with(track)).unwrap().file.clone();

    for (i, (what, damage)) in DAMAGES.into_iter().enumerate() {
        let name = format!("checkpoint-{i}");
        let copied = folder.join(&name);
        copy(&whole, &copied);
        damage(&copied.join("trajectory").join(file("raw")));
        let before = results(&copied);
        for args in [&["search", &name, "--name", "again"][..], &["merge", &name], &run(&name)] {
            let message = refuse(folder, args);
            assert!(message.contains(what) && message.contains(&file("raw")), "{args:?}: {message}");
        }
        assert!(results(&copied) == before, "something was written beside a damaged checkpoint");
    }

    // A recorded EMA track is a row of the table.
    let copied = folder.join("track");
    copy(&whole, &copied);
    flip(&copied.join("trajectory").join(file("ema")));
    let message = refuse(folder, &["search", "track", "--name", "again"]);
    assert!(message.contains("torn or altered") && message.contains(&file("ema")), "{message}");

    // The training state.
    for (i, damage) in [flip as Damage, truncate].into_iter().enumerate() {
        let name = format!("state-{i}");
        let copied = folder.join(&name);
        copy(&whole, &copied);
        damage(&copied.join("state/state.safetensors"));
        let message = refuse(folder, &run(&name));
        assert!(message.contains("state.safetensors: torn or altered"), "{message}");
        assert!(message.contains("delete it: the run then trains from the beginning"), "{message}");
        // The remedy that the message names.
        remove(&copied.join("state/state.safetensors"));
        succeed(folder, &run(&name));
        let merged = |run: &Path| std::fs::read(run.join("merged.safetensors")).unwrap();
        assert!(merged(&copied) == merged(&whole));
    }

    // A weights file that is to be sampled.
    let weights = folder.join("cut.safetensors");
    std::fs::copy(whole.join("merged.safetensors"), &weights).unwrap();
    truncate(&weights);
    let message = refuse(folder, &["sample", "--weights", "cut.safetensors", "--out", "x.npz"]);
    assert!(message.contains("cut.safetensors: not a whole safetensors file"), "{message}");
    assert!(!folder.join("x.npz").exists());
}

#[test]
fn torn_last_lines_are_survived_and_bad_ones_before_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let whole = finish(folder);
    let copied = folder.join("torn");
    copy(&whole, &copied);
    let (manifest, log) = (copied.join("trajectory/manifest.jsonl"), copied.join("search/default/evaluations.jsonl"));
    let half = std::fs::read(&manifest).unwrap()[..40].to_vec();
    std::fs::write(&manifest, [std::fs::read(&manifest).unwrap(), half].concat()).unwrap();
    let cut_at = lines(&log).len() * 2 / 3;
    let head = lines(&log)[..cut_at].join("\n");
    std::fs::write(&log, &head[..head.len() - 20]).unwrap();

    let args = run("torn");
    let ended = lcsc_in(folder, &args);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert!(ended.message().contains("evaluations.jsonl: the last line was torn and is cut off"), "{}", ended.stderr);
    let scores = |run: &Path| -> Vec<[Value; 3]> {
        let all = json_lines(&run.join("search/default/evaluations.jsonl"));
        all.iter().skip(1).map(|e| ["id", "phase", "fd"].map(|key| e[key].clone())).collect()
    };
    assert_eq!(scores(&copied), scores(&whole));
    for name in ["merged.safetensors", "search/default/coefficients.toml"] {
        assert!(
            std::fs::read(copied.join(name)).unwrap() == std::fs::read(whole.join(name)).unwrap(),
            "{name} differs"
        );
    }

    for name in ["trajectory/manifest.jsonl", "search/default/evaluations.jsonl"] {
        let path = copied.join(name);
        let good = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, good.replacen("{\"", "{", 2)).unwrap();
        let message = refuse(folder, &args);
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(message.contains(&format!("{file}: line 1 is not what this program writes")), "{message}");
        std::fs::write(&path, good).unwrap();
    }
    succeed(folder, &args);
}
