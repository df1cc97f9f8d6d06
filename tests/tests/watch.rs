//! `lcsc watch` of a run that goes on in another process, of one that was killed, and of one that has ended.

use lcsc_tests::*;

/// What it prints once, which fits a terminal of 80 by 24.
fn watch(folder: &std::path::Path) -> String {
    let text = succeed(folder, &["watch", "run", "--once"]);
    assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
    text
}

#[test]
fn a_run_is_seen_from_its_files() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let message = refuse(folder, &["watch", "run", "--once"]);
    assert!(message.contains("there is no run in this folder"), "{message}");
    let sets =
        ["stage.0.state_minutes=0", "search.images=64", "search.report_images=64", "search.budget.evaluations=6"];
    let mut args = vec!["run", TINY, "--out", "run"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let mut child = spawn(folder, &args);
    assert!(reaches(&mut child, &[&folder.join("run/train.jsonl")], 5));
    let text = watch(folder);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(text.starts_with("smoke  run  working"), "{text}");
    for part in ["/1,280 images", "loss of edm: ", "gradient norm ", "memory "] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let text = watch(folder);
    assert!(text.starts_with("smoke  run  stopped"), "{text}");

    // A warning is kept in the log of the run.
    let log = folder.join("run/train.jsonl");
    let torn = [std::fs::read(&log).unwrap(), b"{\"stage\"".to_vec()].concat();
    std::fs::write(&log, torn).unwrap();
    succeed(folder, &args);
    let text = watch(folder);
    assert!(text.starts_with("smoke  run  finished"), "{text}");
    for part in ["1,280/1,280 images  done", "6 candidates", "held-out FD:  last ", "LCSC ", "last warnings", "torn"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let said = std::fs::read_to_string(folder.join("run/log.txt")).unwrap();
    assert!(said.contains("INFO stage `edm`: 0 of 1280 images trained") && said.contains("WARN"), "{said}");

    // What a command ends with is in the log, too.
    let mut others = args.clone();
    others.extend(["--set", "seed=7"]);
    let message = refuse(folder, &others);
    assert!(message.contains("other settings"), "{message}");
    let said = std::fs::read_to_string(folder.join("run/log.txt")).unwrap();
    assert!(said.lines().last().unwrap().contains("Z ERROR "), "{said}");
}
