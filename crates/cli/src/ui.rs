//! What people are told while a command works, and the signals they send.

use indicatif::MultiProgress;
use miette::IntoDiagnostic;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// All progress bars.
pub static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
static QUIET: AtomicBool = AtomicBool::new(false);
static FOLLOWS: AtomicBool = AtomicBool::new(false);
/// `log.txt` of the run that is worked on.
static RUN_LOG: Mutex<Option<File>> = Mutex::new(None);

/// Log lines go to standard error, above the progress bars, and to the log of the run. A rank that `follows` tells what is its own
/// alone: its end.
pub fn start_logging(quiet: bool, verbose: bool, follows: bool) {
    QUIET.store(quiet || follows, Ordering::Relaxed);
    FOLLOWS.store(follows, Ordering::Relaxed);
    let level = match (quiet, verbose) {
        _ if follows => "error",
        (true, _) => "warn",
        (false, false) => "info",
        (false, true) => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let shown = fmt::layer().without_time().with_target(false).with_ansi(colours).with_writer(|| AboveBars);
    let kept = fmt::layer().with_target(false).with_ansi(false).with_writer(|| RunLog);
    tracing_subscriber::registry().with(shown.with_filter(filter)).with(kept.with_filter(LevelFilter::INFO)).init();
}

/// From now on log lines also go to the end of this file.
///
/// # Errors
/// The file cannot be written.
pub fn log_to(path: &Path) -> lcsc_torch::Result<()> {
    use lcsc_torch::Context;
    let file = File::options().create(true).append(true).open(path).at(path)?;
    *RUN_LOG.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    Ok(())
}

/// Shows what a command ended with, and notes it in the log of the run.
pub fn tell_error(report: &miette::Report) {
    eprintln!("{report:?}");
    keep_error(report);
}

/// Notes in the log of the run what a command ended with; it is shown already.
pub fn keep_error(report: &miette::Report) {
    let mut line = String::new();
    let _ = SystemTime.format_time(&mut fmt::format::Writer::new(&mut line));
    let _ = writeln!(RunLog, "{line} ERROR {}", report.to_string().replace('\n', " "));
}

/// Whether rank 0 tells what this process finds, too.
pub fn follows() -> bool {
    FOLLOWS.load(Ordering::Relaxed)
}

/// Whether progress is not to be shown.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        BARS.suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// The log of the run; a full disk must not end what is told about.
pub struct RunLog;

impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(file) = &mut *RUN_LOG.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = file.write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A line on standard output; a reader that has gone away (`| head`) is no error.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}
pub(crate) use say;

/// Refuses to write where something is: what was saved is never lost.
pub fn refuse_existing(path: &Path) -> miette::Result<()> {
    match path.exists() {
        true => Err(miette::miette!("{}: exists already; choose another name, or remove it", path.display())),
        false => Ok(()),
    }
}

/// SIGINT and SIGTERM: the first asks to stop after saving, the second ends the process at once.
#[derive(Default)]
pub struct Signals {
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// Listens to both signals from now on: for commands that save what they did. Others end as usual.
    pub fn listen(&self) -> miette::Result<()> {
        let armed = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset, and sets it.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, armed.clone()).into_diagnostic()?;
            signal_hook::flag::register(signal, armed.clone()).into_diagnostic()?;
            signal_hook::flag::register_usize(signal, self.received.clone(), signal as usize).into_diagnostic()?;
        }
        Ok(())
    }

    /// Whether a signal asked to stop.
    pub fn stop(&self) -> bool {
        self.received() != 0
    }

    /// The number of the signal that asked to stop, or 0.
    pub fn received(&self) -> i64 {
        self.received.load(Ordering::Relaxed) as i64
    }

    /// Takes note of the signal that all ranks know of, or 0: whether to stop. One that came to this process meanwhile does not
    /// count yet, since the others go on.
    pub fn hear(&self, signal: i64) -> bool {
        self.received.fetch_max(signal as usize, Ordering::Relaxed);
        signal != 0
    }

    /// 128 + the signal's number, as shells report it.
    pub fn exit_status(&self) -> u8 {
        128 + self.received.load(Ordering::Relaxed) as u8
    }
}
