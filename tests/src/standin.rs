//! Runs of `lcsc` on the CUDA device that is none (`tests/standin`).

use crate::{Ended, command, target};
use lcsc_torch::{CudaStatus, open_cuda};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::SystemTime;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/standin");
/// What names the list of operators.
const OPERATORS: &str = "LCSC_STANDIN_OPERATORS";
const LIBTORCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.libtorch");

/// Whether the stand-in can be used; libtorch's own CUDA half would be opened in its place.
pub fn is_usable() -> bool {
    let own = Path::new(LIBTORCH).join("cuda").exists();
    if own {
        println!("skipped: .libtorch holds libtorch's own CUDA half");
    }
    !own
}

/// A run of `lcsc` in a folder on a machine that seems to have two GPUs.
pub fn with_gpus(folder: &Path, args: &[&str]) -> Command {
    let mut command = command(folder, args);
    on_gpus(&mut command);
    command
}

/// For a test that computes on the stand-in by itself: runs it again in a process that finds the stand-in, where this is true.
pub fn is_inside(test: &str) -> bool {
    if std::env::var_os(OPERATORS).is_some() {
        assert!(matches!(open_cuda(), CudaStatus::Available { .. }));
        return true;
    }
    if is_usable() {
        let mut inside = Command::new(std::env::current_exe().unwrap());
        let output = on_gpus(inside.args(["--exact", test])).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
    false
}

/// A process that finds two GPUs.
fn on_gpus(command: &mut Command) -> &mut Command {
    command.env("LD_LIBRARY_PATH", library()).env(OPERATORS, format!("{SOURCES}/operators.txt"))
}

/// The same to its end, which has to be a good one; with what the stand-in counted.
pub fn succeed_with_gpus(folder: &Path, args: &[&str]) -> (Ended, Counted) {
    let ended: Ended = with_gpus(folder, args).output().unwrap().into();
    assert_eq!(ended.status, Some(0), "lcsc {}\n{}", args.join(" "), ended.stderr);
    let counted = Counted::all(&ended.stderr);
    assert_eq!(counted.len(), 1, "{}", ended.stderr);
    (ended, counted[0])
}

/// What the stand-in tells at the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// How often the host waited for a device.
    pub waits: u64,
    /// Operations of each device.
    pub work: [u64; 2],
}

impl Counted {
    /// Of all processes that wrote to it.
    pub fn all(stderr: &str) -> Vec<Self> {
        let lines = stderr.lines().filter_map(|line| line.split_once("[standin] "));
        let counted = |(_, line): (&str, &str)| {
            let numbers: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
            let [waits, first, second] = numbers[..] else { panic!("{line}") };
            Self { waits, work: [first, second] }
        };
        lines.map(counted).collect()
    }
}

/// The folder of the library, which is built where it is older than its sources.
fn library() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = target().join("standin");
        std::fs::create_dir_all(&folder).unwrap();
        let lock = File::create(folder.join(".lock")).unwrap();
        fs4::FileExt::lock(&lock).unwrap();
        let library = folder.join("libtorch_cuda.so");
        if written(&library) < sources().iter().map(|path| written(path)).max().unwrap() {
            build(&library);
            // What libtorch opens for NVRTC and the driver, and what scripts/build_cuda.sh makes.
            for name in ["libcaffe2_nvrtc.so", "liblcsc_cuda.so"].map(|name| folder.join(name)) {
                if !name.exists() {
                    std::os::unix::fs::symlink("libtorch_cuda.so", name).unwrap();
                }
            }
        }
        folder
    });
    &FOLDER
}

fn sources() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(SOURCES).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "cpp" || e == "h")).collect()
}

fn written(path: &Path) -> SystemTime {
    path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn build(library: &Path) {
    let new = library.with_extension("new");
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-DUSE_C10D_GLOO"]);
    // What libtorch keeps of Gloo to itself is never looked into.
    compiler.arg("-I").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/torch/csrc/stubs/gloo"));
    for include in ["include", "include/torch/csrc/api/include"] {
        compiler.arg("-I").arg(Path::new(LIBTORCH).join(include));
    }
    compiler.args(sources().iter().filter(|path| path.extension().is_some_and(|e| e == "cpp")));
    compiler.arg("-L").arg(Path::new(LIBTORCH).join("lib")).args(["-ltorch_cpu", "-lc10", "-o"]).arg(&new);
    compiler.arg("-ldl");
    assert!(compiler.status().unwrap().success(), "{compiler:?}");
    std::fs::rename(new, library).unwrap();
}
