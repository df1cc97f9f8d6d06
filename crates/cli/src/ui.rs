//! What people see while a command works, and the signals they send.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use miette::IntoDiagnostic;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use tracing_subscriber::EnvFilter;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
static QUIET: AtomicBool = AtomicBool::new(false);

/// Log lines go to standard error, above the progress bars.
pub fn start_logging(quiet: bool, verbose: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
    let level = match (quiet, verbose) {
        (true, _) => "warn",
        (false, false) => "info",
        (false, true) => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_target(false)
        .with_ansi(colours)
        .with_writer(|| AboveBars)
        .init();
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

/// A bar over `total` things called `unit`; hidden where standard error is no terminal.
pub fn bar(total: u64, unit: &str) -> ProgressBar {
    if QUIET.load(Ordering::Relaxed) || !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    }
    let template = format!("{{msg}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    BARS.add(ProgressBar::new(total).with_style(style))
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
        self.received.load(Ordering::Relaxed) != 0
    }

    /// 128 + the signal's number, as shells report it.
    pub fn exit_status(&self) -> u8 {
        128 + self.received.load(Ordering::Relaxed) as u8
    }
}
