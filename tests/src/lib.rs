//! What the end-to-end tests share: the `lcsc` binary, its runs, and the files that they leave.

pub mod docs;
pub mod standin;

use indicatif::ProgressBar;
use lcsc_data::{DataConfig, Dataset};
use lcsc_metrics::{Preparation, Progress, RealImages};
use lcsc_torch::{Device, SafeFile, Stream, Tensor, derive_seed, set_cpu_threads};
use lcsc_trajectory::METADATA;
use npyz::npz::NpzArchive;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

/// The smallest config there is.
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tiny/smoke.toml");

/// The folder that the test executables lie in, `target/<profile>`.
fn target() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().find(|p| p.ends_with("deps")).expect("tests lie in target/<profile>/deps").parent().unwrap().into()
}

/// The `lcsc` binary of the tests' own profile, brought up to date: cargo builds no binary of another package for tests. It is
/// built as all tests of the workspace build it, so that there is nothing left to build where they were built.
pub fn lcsc() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let target = target();
        let profile = match target.file_name().and_then(|n| n.to_str()).unwrap() {
            "debug" => "test",
            name => name,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
        let mut build = Command::new(cargo);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        build.args(["test", "--quiet", "--no-run", "--workspace", "--test", "binary", "--profile", profile]);
        // What cargo tells tests about their package is no business of a build: some build scripts would run again.
        let package = |name: &str| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_");
        for (name, _) in std::env::vars().filter(|(name, _)| package(name)) {
            build.env_remove(name);
        }
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
        let progress: Progress = &|_, _, _| {};
        let cache = Some(folder.as_path());
        Preparation { real, seed: 0, device: Device::Cpu, cache, kept: None, progress }.suite([None, None]).unwrap();
        folder
    });
    &CACHE
}

/// A run of `lcsc` in a folder: one thread, no colours, the cache of the tests.
pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = program(lcsc(), folder);
    command.args(args);
    command
}

/// Runs a line of shell in a folder, which finds `lcsc`.
pub fn shell(folder: &Path, line: &str) -> Ended {
    let mut command = program(Path::new("bash"), folder);
    let path = format!("{}:{}", lcsc().parent().unwrap().display(), std::env::var("PATH").unwrap());
    command.args(["-eu", "-o", "pipefail", "-c", line]).env("PATH", path).output().unwrap().into()
}

fn program(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null());
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

/// Sends a signal, such as `TERM`.
pub fn send(signal: &str, child: &Child) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
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

/// A log without what a clock said.
pub fn without_times(log: &Path) -> Vec<Value> {
    let mut lines = json_lines(log);
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        ["seconds", "img_per_s", "host_gib", "device_gib"].iter().for_each(|key| drop(line.remove(*key)));
    }
    lines
}

/// The value of a JSON file.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Shape and values of an array of an npz file.
pub fn npz<T: npyz::Deserialize>(path: &Path, name: &str) -> (Vec<u64>, Vec<T>) {
    let mut archive = NpzArchive::open(path).unwrap();
    let array = archive.by_name(name).unwrap().expect("the array is there");
    (array.shape().to_vec(), array.into_vec().unwrap())
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

/// The same without what grows whenever a command works on a run: its log, and the event files for TensorBoard.
pub fn results(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = files(folder);
    found.retain(|path, _| !path.ends_with("log.txt") && !path.iter().any(|part| part == "tensorboard"));
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

/// The bits of all tensors of a weights file by name, in f32.
pub fn bits(path: &Path) -> Vec<(String, Vec<u32>)> {
    let file = SafeFile::open(path).unwrap();
    let bits = |tensor: Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap().into_iter().map(f32::to_bits);
    file.names().into_iter().map(|name| (name.clone(), bits(file.tensor(&name).unwrap()).collect())).collect()
}

/// What a weights file tells about itself.
pub fn card(path: &Path) -> Value {
    serde_json::from_str(SafeFile::open(path).unwrap().metadata(METADATA).unwrap()).unwrap()
}

/// Numbers from 0 to 1 of a seed that is printed; `LCSC_KILL_SEED` sets it, to see the same kills again.
pub struct Moments {
    seed: u64,
    drawn: u64,
}

impl Moments {
    /// Prints the seed.
    pub fn begin() -> Self {
        let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
        let seed = std::env::var("LCSC_KILL_SEED").map_or_else(|_| now(), |text| text.parse().unwrap());
        println!("LCSC_KILL_SEED={seed}");
        Self { seed, drawn: 0 }
    }

    fn next(&mut self) -> f64 {
        self.drawn += 1;
        derive_seed(self.seed, Stream::Search, self.drawn) as f64 / u64::MAX as f64
    }

    /// A whole number from `low` to `high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() * (high - low + 1) as f64) as usize
    }

    /// Up to 40 ms.
    fn pause(&mut self) -> Duration {
        Duration::from_secs_f64(0.04 * self.next())
    }
}

/// Waits until the logs have so many lines together. False: the process ended before.
pub fn reaches(child: &mut Child, logs: &[&Path], count: usize) -> bool {
    while logs.iter().map(|log| lines(log).len()).sum::<usize>() < count {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Runs `lcsc` and kills it a random moment after its logs have so many lines. False: it had ended before.
pub fn kill_at(folder: &Path, args: &[&str], logs: &[&Path], count: usize, moments: &mut Moments) -> bool {
    let mut child = spawn(folder, args);
    let alive = reaches(&mut child, logs, count);
    std::thread::sleep(moments.pause());
    child.kill().unwrap();
    let status = child.wait().unwrap();
    println!("kill -9 at {count} lines: {status}");
    alive && status.code().is_none()
}
