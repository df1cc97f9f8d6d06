//! How far a command is: a bar on a terminal, a line now and then elsewhere.

use crate::ui::{BARS, is_quiet};
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::ops::Deref;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

/// Work that takes so long tells of itself less often.
const LONG: Duration = Duration::from_secs(60);

/// The unit of downloads, which are shown in MiB.
pub const BYTES: &str = "bytes";

/// Position, rate and time left of some work, shown until it is dropped.
pub struct Bar {
    bar: ProgressBar,
    /// Dropping it ends what looks at the work.
    _ended: Option<Sender<()>>,
}

impl Deref for Bar {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.bar
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Shows `work` of `total` things called `unit` (0: not known yet).
pub fn bar(work: &str, total: u64, unit: &'static str) -> Bar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()).with_message(work.to_string());
    if is_quiet() {
        return Bar { bar, _ended: None };
    }
    let on_terminal = std::io::stderr().is_terminal();
    let bar = if on_terminal { BARS.add(bar.with_style(style(unit))) } else { bar };
    let told = bar.clone();
    let (ended, receiver) = channel();
    spawn(move || {
        let began = Instant::now();
        // Also while nothing comes, so that the time left stays true.
        while !ends_within(pause(on_terminal, began.elapsed()), &receiver) {
            if on_terminal { told.tick() } else { tracing::info!("{}", line(&told, unit)) }
        }
    });
    Bar { bar, _ended: Some(ended) }
}

fn style(unit: &str) -> ProgressStyle {
    let position = match unit {
        BYTES => "{bytes}/{total_bytes}  {bytes_per_sec}".to_string(),
        unit => format!("{{human_pos}}/{{human_len}} {unit}  {{per_sec}}"),
    };
    let style = ProgressStyle::with_template(&format!("{{msg}} {{wide_bar}} {position}  {{eta}} left"));
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Time to the next look at work that began so long ago.
fn pause(on_terminal: bool, elapsed: Duration) -> Duration {
    match (on_terminal, elapsed < LONG) {
        (true, _) => Duration::from_secs(1),
        (false, true) => Duration::from_secs(10),
        (false, false) => LONG,
    }
}

/// Waits, unless the sender is dropped meanwhile.
fn ends_within(pause: Duration, ended: &Receiver<()>) -> bool {
    ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout)
}

/// Goes to a position that was reached before: what follows alone counts for the rate.
pub fn jump(bar: &ProgressBar, position: u64) {
    bar.set_position(position);
    bar.tick();
    bar.reset_eta();
}

fn line(bar: &ProgressBar, unit: &str) -> String {
    let amount = |n: u64| if unit == BYTES { HumanBytes(n).to_string() } else { HumanCount(n).to_string() };
    let (position, total, rate) = (bar.position(), bar.length().filter(|n| *n > 0), bar.per_sec());
    let of = total.map_or_else(String::new, |n| format!("/{}", amount(n)));
    let unit_shown = if unit == BYTES { String::new() } else { format!(" {unit}") };
    let speed = match rate {
        _ if unit == BYTES => format!("{}/s", HumanBytes(rate as u64)),
        _ if rate < 10.0 => format!("{rate:.2}/s"),
        _ => format!("{rate:.0}/s"),
    };
    let state = match total {
        Some(total) if position >= total => "finishing".into(),
        _ if rate <= 0.0 => "waiting".into(),
        Some(_) => format!("{speed}, {} left", HumanDuration(bar.eta())),
        None => speed,
    };
    format!("{}: {}{of}{unit_shown}, {state}", bar.message(), amount(position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    fn hidden(total: u64) -> ProgressBar {
        ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()).with_message("training")
    }

    #[test]
    fn a_line_tells_position_rate_and_time_left() {
        let bar = hidden(1_000_000);
        assert_eq!(line(&bar, "images"), "training: 0/1,000,000 images, waiting");
        sleep(Duration::from_millis(50));
        bar.set_position(1000);
        bar.tick();
        let text = line(&bar, "images");
        assert!(text.starts_with("training: 1,000/1,000,000 images, ") && text.ends_with(" left"), "{text}");
        bar.set_position(1_000_000);
        assert_eq!(line(&bar, "images"), "training: 1,000,000/1,000,000 images, finishing");
        let unknown = hidden(0);
        unknown.set_position(2048);
        assert_eq!(line(&unknown, BYTES).split(',').next(), Some("training: 2.00 KiB"));
    }

    #[test]
    fn looks_are_rarer_where_work_is_long_and_end_with_it() {
        let seconds = |on_terminal, elapsed| pause(on_terminal, Duration::from_secs(elapsed)).as_secs();
        assert_eq!([seconds(true, 0), seconds(true, 90), seconds(false, 0), seconds(false, 90)], [1, 1, 10, 60]);
        let (sender, receiver) = channel();
        assert!(!ends_within(Duration::from_millis(1), &receiver));
        drop(sender);
        assert!(ends_within(Duration::from_secs(60), &receiver));
    }

    #[test]
    fn what_was_done_before_counts_for_no_rate() {
        let bar = hidden(1_000_000);
        jump(&bar, 900_000);
        assert_eq!(line(&bar, "images"), "training: 900,000/1,000,000 images, waiting");
        sleep(Duration::from_millis(100));
        bar.set_position(900_100);
        bar.tick();
        let rate = bar.per_sec();
        assert!(0.0 < rate && rate < 2000.0, "{rate}");
    }
}
