//! `lcsc bench`: how fast this machine does the work that training and search are made of.

mod cost;
mod machine;
mod outputs;
mod setup;
mod timing;
mod works;

use crate::args::BenchArgs;
use crate::{Ended, session, ui};
use cost::Cost;
use lcsc_torch::{Group, Precision, allow_tf32, catch, cpu_threads, write_atomic};
use machine::Ceilings;
use miette::IntoDiagnostic;
use serde::Serialize;
use timing::Timer;
pub use timing::median;
pub use works::Work;

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    work: Work,
    what: String,
    /// Median, and all repeats in their order, in seconds.
    seconds: f64,
    repeats: Vec<f64>,
    #[serde(flatten)]
    cost: Cost,
    /// Of the machine's measured ceiling for what the work is bound by.
    fraction: Option<f64>,
}

/// Measures the machine, then each work; prints a table, writes JSON.
pub fn command(args: &BenchArgs, group: &Group) -> miette::Result<Ended> {
    let device = session::machine(args.machine.device, args.machine.threads, group)?;
    allow_tf32(args.precision == Precision::Tf32).into_diagnostic()?;
    let works = if args.works.is_empty() { Work::all(group.size()) } else { args.works.clone() };
    if let Some((work, problem)) = works.iter().find_map(|work| Some((work, work.problem(group.size())?))) {
        miette::bail!("`{}` {problem}", work.name());
    }
    if let Some(folder) = &args.outputs {
        if group.size() > 1 {
            miette::bail!("--outputs: expected one process, without launch");
        }
        catch("writing outputs", || outputs::write(folder, &works, device)).into_diagnostic()?;
        return Ok(Ended::Done);
    }
    let timer = Timer { group, device, plan: args.plan, repeats: args.repeats };
    let ceilings = catch("measuring the machine", || Ceilings::measure(&timer)).into_diagnostic()?;
    let say = |line: String| {
        if group.leads() {
            ui::say!("{line}");
        }
    };
    let ranks = if group.size() > 1 { format!("{} ranks of ", group.size()) } else { String::new() };
    say(format!("{ranks}{} threads on {device:?}: {ceilings}", cpu_threads()));
    say(format!("{:<16} {:>12} {:>12} {:>9}  {}", "work", "median", "a second", "ceiling", "what"));
    let mut rows = Vec::new();
    for work in works {
        let timed = catch("measuring", || work.time(&timer, args.machine.chunk, args.precision)).into_diagnostic()?;
        let seconds = median(&timed.seconds);
        let fraction = ceilings.fraction(timed.cost, seconds);
        let share = fraction.map_or_else(String::new, |f| format!("{:.0} %", 100.0 * f));
        let rate = timed.items.map_or_else(String::new, |(n, unit)| format!("{:.0} {unit}", n as f64 / seconds));
        let name = work.name();
        say(format!("{name:<16} {:>10.2} ms {rate:>12} {share:>9}  {}", 1e3 * seconds, timed.what));
        rows.push(Row { work, what: timed.what, seconds, repeats: timed.seconds, cost: timed.cost, fraction });
    }
    if let Some(path) = args.json.as_ref().filter(|_| group.leads()) {
        let device = format!("{device:?}");
        let json = serde_json::json!({
            "ranks": group.size(), "threads": cpu_threads(), "device": device, "precision": args.precision, "ceilings": ceilings, "rows": rows,
        });
        write_atomic(path, format!("{json:#}\n").as_bytes()).into_diagnostic()?;
    }
    Ok(Ended::Done)
}
