//! `scripts/gpu.sh`, in small and on the CPU: so that no mistake in it waits for a GPU.

use lcsc_tests::*;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const STEPS: [&str; 13] = [
    "devices", "samples", "smoke", "parity", "align", "outputs", "bench", "peers", "resume", "search", "kernels",
    "compile", "study",
];

/// The script in the repository, whose Python `LCSC_PYTHON` names.
fn script(args: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).arg("scripts/gpu.sh").args(args);
    command.env("OMP_NUM_THREADS", "1").env("LCSC_CACHE", cache()).env("LC_ALL", "C.UTF-8").env_remove("OUT");
    command
}

/// The newest test binary of the parity files, where it is built.
fn parity() -> Option<PathBuf> {
    let entries = std::fs::read_dir(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let is_binary = |path: &PathBuf| {
        path.extension().is_none() && path.file_name().unwrap().to_string_lossy().starts_with("parity-")
    };
    let modified = |path: &PathBuf| path.metadata().unwrap().modified().unwrap();
    entries.map(|e| e.unwrap().path()).filter(is_binary).max_by_key(modified)
}

/// What ncu writes of two kernels, beside what the command does.
const NCU: &str = r#"#!/bin/bash
while [ "$1" != --log-file ]; do shift; done
cat > "$2" <<'END'
==PROF== Connected
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","sum(float)","gpu__time_duration.sum","us","1,500.5"
"1","product","gpu__time_duration.sum","ns","499,500"
"2","sum(float)","gpu__time_duration.sum","ms","1"
END
shift 2
while [[ $1 == --* ]]; do shift 2; done
exec "$@"
"#;

/// Name, end and key figures of each step, as summary.md has them.
fn steps(out: &Path) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(out.join("summary.md")).unwrap();
    let rows = text.lines().skip_while(|l| !l.starts_with("|---")).skip(1).take_while(|l| l.starts_with('|'));
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect());
    cells.map(|row: Vec<String>| (row[0].clone(), row[1].clone(), row[3].clone())).collect()
}

#[test]
fn every_step_passes_in_small_on_a_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let [kit, out] = ["kit", "out"].map(|name| folder.path().join(name));
    let [kit, out_text] = [&kit, &out].map(|path| path.to_str().unwrap());
    let mut prepare = script(&["--prepare", kit]);
    prepare.env("LCSC", lcsc()).envs(parity().map(|path| ("PARITY", path)));
    let prepared = Ended::from(prepare.output().unwrap());
    assert_eq!(prepared.status, Some(0), "{}", prepared.stderr);

    let args = ["--device", "cpu", "--tiny", "--kit", kit, "--out", out_text];
    let path = [program(folder.path(), "ncu", NCU), std::env::var("PATH").unwrap().into()];
    let path = path.map(|folder| folder.into_os_string()).join(":".as_ref());
    let ended = Ended::from(script(&args).env("PATH", path).output().unwrap());
    let summary = std::fs::read_to_string(out.join("summary.md")).unwrap();
    println!("{summary}");
    assert_eq!(ended.status, Some(0), "{}\n{summary}", ended.stderr);
    assert!(ended.stdout.lines().count() <= 60, "{}", ended.stdout);
    let steps = steps(&out);
    assert_eq!(steps.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), STEPS);
    for (name, end, figures) in &steps {
        // What needs PyTorch, or a test binary that another command builds.
        let may_lack = ["parity", "align", "outputs", "peers", "search", "compile"].contains(&name.as_str());
        let lacks = figures.contains(" has no ") || figures.ends_with(" is missing");
        assert!(end == "ok" || (end == "skipped" && may_lack && lacks), "{name}: {end}, {figures}");
    }
    assert!(steps[3].1 == "skipped" || steps[3].2.contains("0 failed; largest error "), "{}", steps[3].2);
    assert!(summary.contains("3 kernels, 3.0 ms") && summary.contains("| 83.4% | 2 | sum(float) |"), "{summary}");
    assert!(steps[1].2.contains("largest pixel difference 0 of 255"), "{}", steps[1].2);
    let list = shell(&out, "tar tzf logs.tgz").stdout;
    assert!(["devices.log", "study.log", "study.md", "summary.json"].iter().all(|name| list.contains(name)), "{list}");
}

/// A folder with one executable script.
fn program(folder: &Path, name: &str, text: &str) -> PathBuf {
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join(name), text).unwrap();
    std::fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn what_hangs_is_stopped_and_what_no_longer_fits_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let (kit, out) = (program(folder.path(), "lcsc", "#!/bin/sh\necho began\nsleep 60\n"), folder.path().join("out"));
    let [kit, out_text] = [&kit, &out].map(|path| path.to_str().unwrap());
    let args = ["--device", "cpu", "--tiny", "--kit", kit, "--out", out_text, "--seconds", "12"];
    let ended = Ended::from(script(&args).output().unwrap());
    assert_eq!(ended.status, Some(1), "{}", ended.stderr);
    let steps = steps(&out);
    assert_eq!((steps[0].0.as_str(), steps[0].1.as_str()), ("devices", "timed out"));
    assert_eq!(steps.len(), STEPS.len());
    let skipped = |(_, end, figures): &(String, String, String)| end == "skipped" && figures == "no time left";
    assert!(steps[2..].iter().all(skipped), "{steps:?}");
    assert!(shell(&out, "tar xzOf logs.tgz logs/devices.log").stdout.ends_with("began\n"));
}

#[test]
fn a_failure_is_told_and_the_next_step_follows() {
    let folder = tempfile::tempdir().unwrap();
    let (kit, out) = (
        program(folder.path(), "lcsc", "#!/bin/sh\necho '  × no such device' >&2\nexit 1\n"),
        folder.path().join("out"),
    );
    let [kit, out_text] = [&kit, &out].map(|path| path.to_str().unwrap());
    let ended = Ended::from(script(&["--device", "cpu", "--tiny", "--kit", kit, "--out", out_text]).output().unwrap());
    assert_eq!(ended.status, Some(1), "{}", ended.stderr);
    for (name, end, figures) in
        steps(&out).iter().filter(|(name, ..)| ["samples", "smoke", "study"].contains(&name.as_str()))
    {
        assert_eq!((end.as_str(), figures.trim()), ("failed (1)", "× no such device"), "{name}");
    }
}
