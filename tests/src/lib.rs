//! What the end-to-end tests share: the `lcsc` binary, its runs, and the files that they leave.

use indicatif::ProgressBar;
use lcsc_data::{DataConfig, Dataset};
use lcsc_metrics::{RealImages, Suite};
use lcsc_torch::{Device, set_cpu_threads};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

/// The smallest config there is.
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tiny/edm.toml");

/// The folder that the test executables lie in, `target/<profile>`.
fn target() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().find(|p| p.ends_with("deps")).expect("tests lie in target/<profile>/deps").parent().unwrap().into()
}

/// The `lcsc` binary of the tests' own profile, brought up to date: cargo builds no binary of another package for tests.
pub fn lcsc() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let target = target();
        let profile = match target.file_name().and_then(|n| n.to_str()).unwrap() {
            "debug" => "dev",
            name => name,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
        let mut build = Command::new(cargo);
        build.current_dir(env!("CARGO_MANIFEST_DIR")).args([
            "build",
            "--quiet",
            "--package",
            "lcsc-cli",
            "--profile",
            profile,
        ]);
        assert!(build.arg("--target-dir").arg(target.parent().unwrap()).status().unwrap().success());
        target.join("lcsc")
    });
    &BINARY
}

/// A folder with the feature extractors of the digits, so that they are trained once for all tests.
pub fn cache() -> &'static Path {
    static CACHE: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = target().join("test-cache");
        std::fs::create_dir_all(&folder).unwrap();
        let lock = File::create(folder.join(".lock")).unwrap();
        fs4::FileExt::lock(&lock).unwrap();
        set_cpu_threads(1);
        let data = Dataset::open(&DataConfig::default(), &ProgressBar::hidden()).unwrap();
        let (images, labels, classes, hash) = (&data.images, data.labels.as_ref(), data.classes, data.hash.as_str());
        let real = RealImages { images, labels, classes, hash };
        Suite::prepare(real, 0, Device::Cpu, Some(&folder), &|_, _, _| {}).unwrap();
        folder
    });
    &CACHE
}

/// A run of `lcsc` in a folder: one thread, no colours, the cache of the tests.
pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(lcsc());
    command.current_dir(folder).args(args).stdin(Stdio::null());
    command.env("OMP_NUM_THREADS", "1").env("LCSC_CACHE", cache()).env_remove("RUST_LOG");
    // How miette draws its reports.
    command.env("NO_COLOR", "1").env("LC_ALL", "C.UTF-8").env_remove("TERM").env_remove("NO_GRAPHICS");
    command
}

/// How a run ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Exit status; none after a signal.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ended {
    /// Standard error as one line of words, without the frame that miette breaks lines with.
    pub fn message(&self) -> String {
        let words = self.stderr.split_whitespace().filter(|w| !["│", "×", "⚠"].contains(w));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Runs `lcsc` to its end.
pub fn lcsc_in(folder: &Path, args: &[&str]) -> Ended {
    command(folder, args).output().unwrap().into()
}

/// Runs `lcsc`, which has to succeed; gives its standard output.
pub fn succeed(folder: &Path, args: &[&str]) -> String {
    let ended = lcsc_in(folder, args);
    assert_eq!(ended.status, Some(0), "lcsc {}\n{}", args.join(" "), ended.stderr);
    ended.stdout
}

/// Runs `lcsc`, which has to refuse; gives its message as one line of words.
pub fn refuse(folder: &Path, args: &[&str]) -> String {
    let ended = lcsc_in(folder, args);
    assert_eq!(ended.status, Some(1), "lcsc {}\n{}{}", args.join(" "), ended.stdout, ended.stderr);
    ended.message()
}

/// Starts `lcsc` in the background.
pub fn spawn(folder: &Path, args: &[&str]) -> Child {
    command(folder, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The whole lines of a file, none where it is missing.
pub fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(|l| l.trim_end().to_string()).collect()
}

/// The values of a file of JSON lines.
pub fn json_lines(path: &Path) -> Vec<Value> {
    lines(path).iter().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The value of a JSON file.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// All files below a folder, by their path in it.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().into(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Copies a folder with all below it.
pub fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
