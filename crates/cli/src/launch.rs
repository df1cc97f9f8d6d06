//! `lcsc launch`: the ranks of one machine, without Python.

use crate::args::{Args, LaunchArgs};
use crate::{Ended, ranks, ui};
use clap::Parser;
use lcsc_torch::{Ranks, Store};
use miette::{IntoDiagnostic, WrapErr};
use signal_hook::consts::{SIGINT, SIGKILL, SIGTERM};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// How long the other ranks have to save and end once one failed.
const GRACE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Starts the ranks, passes signals on to them, and ends all when one fails.
pub fn command(args: &LaunchArgs, signals: &ui::Signals) -> miette::Result<Ended> {
    let own = || std::iter::once("lcsc".to_string());
    let parsed = Args::try_parse_from(own().chain(args.command.iter().cloned())).unwrap_or_else(|e| e.exit());
    if !ranks::takes_part(&parsed.command) {
        miette::bail!("`lcsc {}` works in one process: start it without launch", args.command[0]);
    }
    signals.listen()?;
    let (_store, port) = Store::serve().into_diagnostic()?;
    let mut ranks = Vec::new();
    for rank in 0..args.nproc {
        ranks.push(Rank::start(rank, args, port)?);
    }
    let ended = watch(&mut ranks, signals);
    for output in ranks.into_iter().flat_map(|rank| rank.outputs) {
        let _ = output.join();
    }
    Ok(ended)
}

/// One of the processes.
struct Rank {
    child: Child,
    status: Option<ExitStatus>,
    /// What passes its lines on.
    outputs: [JoinHandle<()>; 2],
}

impl Rank {
    fn start(number: usize, args: &LaunchArgs, port: u16) -> miette::Result<Self> {
        let program = std::env::current_exe().into_diagnostic().wrap_err("the path of this program")?;
        let mut command = Command::new(program);
        command
            .args(&args.command)
            .envs(Ranks::of_this_machine(number, args.nproc, port).to_env())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C of the terminal comes here alone, and is passed on once.
            .process_group(0);
        // SAFETY: prctl is safe to call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // A rank must not go on when its launcher was killed.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let mut child = command.spawn().into_diagnostic().wrap_err("starting a rank")?;
        let outputs = [
            pass_on(number, child.stdout.take(), |line| drop(std::io::stdout().write_all(line))),
            pass_on(number, child.stderr.take(), |line| drop(std::io::stderr().write_all(line))),
        ];
        Ok(Self { child, status: None, outputs })
    }

    /// Its status, once, when it has ended.
    fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_some() {
            return None;
        }
        self.status = self.child.try_wait().ok().flatten();
        self.status
    }

    fn signal(&self, signal: i32) {
        if self.status.is_none() {
            // SAFETY: the process was not waited for yet, so that its number is still its own.
            unsafe { libc::kill(self.child.id() as i32, signal) };
        }
    }
}

/// Passes lines on, each at once and under the number of its rank.
fn pass_on(rank: usize, from: Option<impl Read + Send + 'static>, write: fn(&[u8])) -> JoinHandle<()> {
    thread::spawn(move || {
        let Some(from) = from else { return };
        let mut from = BufReader::new(from);
        loop {
            let mut line = format!("[{rank}] ").into_bytes();
            let prefix = line.len();
            if from.read_until(b'\n', &mut line).is_err() || line.len() == prefix {
                return;
            }
            write(&line);
        }
    })
}

/// Waits for the end of all; what the first that failed by itself ended with is what all end with.
fn watch(ranks: &mut [Rank], signals: &ui::Signals) -> Ended {
    let mut passed_on = false;
    let (mut failed, mut ending): (Option<ExitStatus>, Option<Instant>) = (None, None);
    while ranks.iter().any(|rank| rank.status.is_none()) {
        if signals.stop() && !passed_on {
            passed_on = true;
            ranks.iter().for_each(|rank| rank.signal(signals.received() as i32));
        }
        for i in 0..ranks.len() {
            let Some(status) = ranks[i].ended() else { continue };
            let end = End::of(status);
            if end == End::ByItself && failed.is_none() {
                eprintln!("lcsc launch: rank {i} {}: the others are ended", described(status));
                failed = Some(status);
                ranks.iter().for_each(|rank| rank.signal(SIGTERM));
            }
            if end != End::Orderly {
                ending.get_or_insert_with(Instant::now);
            }
        }
        if ending.is_some_and(|since| since.elapsed() > GRACE) {
            ranks.iter().for_each(|rank| rank.signal(SIGKILL));
        }
        sleep(POLL);
    }
    let last = ranks.iter().filter_map(|rank| rank.status).find(|status| !status.success());
    match failed.or(last) {
        None => Ended::Done,
        Some(status) => Ended::OfRanks(code(status)),
    }
}

/// Why a rank ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was done, or stopped with everything saved.
    Orderly,
    /// Another one failed.
    ByAnother,
    /// It failed.
    ByItself,
}

impl End {
    fn of(status: ExitStatus) -> Self {
        let stopped = [SIGINT, SIGTERM].map(|signal| Some(128 + signal));
        match status.code() {
            code if status.success() || stopped.contains(&code) => Self::Orderly,
            Some(code) if code == i32::from(ranks::ENDED_BY_ANOTHER) => Self::ByAnother,
            Some(_) | None => Self::ByItself,
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).map_or(1, |code| code as u8)
}

fn described(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("failed with exit status {}", code(status)),
    }
}
