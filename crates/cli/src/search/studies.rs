//! Several searches of one trajectory, and the table that compares them: methods, numbers of network evaluations, and
//! prefixes of the training.

use super::material::Material;
use super::remembered::Remembered;
use super::results::Results;
use super::{Plan, run_search};
use crate::args::SearchArgs;
use crate::session::Session;
use crate::{Ended, card, report, ui};
use lcsc_metrics::Suite;
use lcsc_report::{columns, figure};
use lcsc_search::{Groups, Label, MethodName, Outcome, Row, SearchConfig};
use lcsc_torch::{Error, Result, bail, catch, write_atomic};
use lcsc_train::StageRecord;
use miette::IntoDiagnostic;
use serde_json::{Value, json};
use std::path::Path;

/// `lcsc search` with `--compare`, `--nfe` or `--prefix`.
pub fn command(session: &Session, args: &SearchArgs, name: &str, stages: &[StageRecord]) -> miette::Result<Ended> {
    let suite = session.suite()?;
    let mut study = Study { session, suite, name, remembered: Remembered::default() };
    let table = catch("the study", || match (&args.compare, &args.nfe, &args.prefix) {
        (methods, _, _) if !methods.is_empty() => study.compare(methods),
        (_, nfes, _) if !nfes.is_empty() => study.nfe(nfes),
        (_, _, fractions) => study.prefix(fractions, stages),
    });
    let Some((text, json)) = table.into_diagnostic()? else { return Ok(Ended::Stopped) };
    ui::say!("{}", text.trim_end());
    let stored = session.run.search(name).join("table.json");
    for path in [Some(stored.as_path()), args.json.as_deref()].into_iter().flatten() {
        write_json(path, &json).into_diagnostic()?;
    }
    report::write(&session.run);
    Ok(Ended::Done)
}

fn write_json(path: &Path, json: &Value) -> Result<()> {
    write_atomic(path, format!("{json:#}\n").as_bytes())
}

/// A table for the terminal and the same as JSON; none: a signal came.
type Table = Option<(String, Value)>;

struct Study<'a> {
    session: &'a Session<'a>,
    suite: &'a Suite,
    name: &'a str,
    /// Scores that do not depend on how the search goes.
    remembered: Remembered,
}

impl Study<'_> {
    /// The plan of one search of the study.
    fn plan(&self, part: &str) -> Plan {
        Plan::new(&self.session.config, &format!("{}/{part}", self.name))
    }

    /// One search, whose coefficients are kept in its folder.
    fn find(&mut self, material: &Material, plan: &Plan) -> Result<Option<Outcome>> {
        let outcome = run_search(self.session, self.suite, material, plan, Some(&mut self.remembered))?;
        if let Some(outcome) = &outcome {
            Results { session: self.session, plan, suite: self.suite, material, outcome }.write_coefficients()?;
        }
        Ok(outcome)
    }

    /// Methods side by side at equal budget.
    fn compare(&mut self, methods: &[Compared]) -> Result<Table> {
        let mut material = Material::load(self.session, &self.plan(""))?;
        let (mut lines, mut rows) = (Vec::new(), Vec::new());
        for compared in methods {
            let mut plan = self.plan(&compared.folder());
            plan.search.method = vec![compared.method];
            if let Some(groups) = &compared.groups {
                plan.search.groups = Some(groups.clone());
            }
            material.partition = lcsc_search::partition(&lcsc_search::groups_of(&plan.search), &material.model.layout)?;
            let Some(outcome) = self.find(&material, &plan)? else { return Ok(None) };
            if lines.is_empty() {
                lines.push(cells("last", None, row(&outcome, Label::Last)?, None));
            }
            let found = row(&outcome, compared.label())?;
            let groups = compared.has_groups().then(|| groups(&plan.search, &material));
            lines.push(cells(compared.method.name(), groups, found, Some(&outcome)));
            rows.push(figures(compared.method.name(), groups, found, &outcome));
        }
        let header = ["method", "groups", SEARCH, HELDOUT, LOW, HIGH, INDEPENDENT, PIXEL, PRECISION, STEPS, SECONDS];
        Ok(Some((columns(&header, &lines), rows.into())))
    }

    /// One α for each number of network evaluations.
    fn nfe(&mut self, nfes: &[usize]) -> Result<Table> {
        let samplers = nfes.iter().map(|&nfe| self.session.config.sampler.with_nfe(nfe)).collect::<Result<Vec<_>>>()?;
        let material = Material::load(self.session, &self.plan(""))?;
        for sampler in &samplers {
            if let Some(misfit) = card::misfit(sampler, &self.session.config.model, &material.model) {
                bail!("--nfe {}: {} {}", sampler.nfe(), misfit.key, misfit.message);
            }
        }
        let (mut lines, mut rows) = (Vec::new(), Vec::new());
        for sampler in samplers {
            let nfe = sampler.nfe();
            let plan = Plan { sampler, ..self.plan(&format!("nfe-{nfe}")) };
            self.remembered = Remembered::default(); // another sampler, other scores
            let Some(outcome) = self.find(&material, &plan)? else { return Ok(None) };
            let mut line = vec![nfe.to_string()];
            let mut row_of = json!({ "nfe": nfe, "evaluations": outcome.evaluations, "seconds": outcome.seconds });
            for (name, label) in [("last", Label::Last), ("ema", Label::Ema), ("lcsc", Label::Lcsc)] {
                let found = row(&outcome, label)?;
                line.extend([found.fd_heldout, found.fd_independent].map(figure));
                row_of[name] = measured(found);
            }
            line.push(format!("{:.0}", outcome.seconds));
            lines.push(line);
            rows.push(row_of);
        }
        let header = ["NFE", "last", INDEPENDENT, "best EMA", INDEPENDENT, "LCSC", INDEPENDENT, SECONDS];
        Ok(Some((columns(&header, &lines), rows.into())))
    }

    /// Searches of what was there after fractions of the training; the whole of it is always among them.
    fn prefix(&mut self, fractions: &[f64], stages: &[StageRecord]) -> Result<Table> {
        let stage =
            self.session.config.searched_stage().ok_or_else(|| Error::msg("the config has no stage to search"))?;
        let Some(trained) = stages.iter().find(|s| s.name == stage.name && s.nimg >= stage.images()) else {
            bail!("stage `{}` is not trained to its end: there is no whole that a fraction could reach", stage.name);
        };
        let mut fractions: Vec<f64> = fractions.iter().copied().chain([1.0]).collect();
        fractions.sort_by(f64::total_cmp);
        fractions.dedup();
        let (mut lines, mut rows) = (Vec::new(), Vec::new());
        for fraction in fractions {
            let nimg = (fraction * stage.images() as f64).round() as u64;
            let plan = Plan { most_nimg: Some(nimg), ..self.plan(&format!("prefix-{fraction}")) };
            let material = Material::load(self.session, &plan)?;
            self.remembered = Remembered::default(); // other checkpoints, other scores
            let Some(outcome) = self.find(&material, &plan)? else { return Ok(None) };
            let (ema, lcsc) = (row(&outcome, Label::Ema)?, row(&outcome, Label::Lcsc)?);
            let mut line = vec![fraction.to_string(), nimg.to_string(), material.window.len().to_string()];
            line.extend([ema.fd_heldout, ema.fd_independent, ema.fd_pixel].map(figure));
            line.extend([lcsc.fd_heldout, lcsc.fd_independent, lcsc.fd_pixel].map(figure));
            let train_seconds = trained.seconds * fraction;
            line.extend([train_seconds, outcome.seconds_in_all].map(|s| format!("{s:.0}")));
            lines.push(line);
            rows.push(json!({
                "fraction": fraction, "nimg": nimg, "checkpoints": material.window.len(), "train_seconds": train_seconds,
                "search_seconds": outcome.seconds_in_all, "ema": measured(ema), "lcsc": measured(lcsc),
            }));
        }
        let header = [
            "of training",
            "images",
            "K",
            "best EMA",
            INDEPENDENT,
            PIXEL,
            "LCSC",
            INDEPENDENT,
            PIXEL,
            "train s",
            "search s",
        ];
        let text = format!("{}{}\n", columns(&header, &lines), reached(&rows));
        Ok(Some((text, rows.into())))
    }
}

const SEARCH: &str = "search FD";
const HELDOUT: &str = "held-out FD";
const LOW: &str = "low";
const HIGH: &str = "high";
const INDEPENDENT: &str = "indep.";
const PIXEL: &str = "pixel";
const PRECISION: &str = "prec/rec";
const STEPS: &str = "evaluations";
const SECONDS: &str = "seconds";

fn row(outcome: &Outcome, label: Label) -> Result<&Row> {
    outcome.row(label).ok_or_else(|| Error::msg(format!("the search has no row {label:?}")))
}

/// The number of groups of coefficients.
fn groups(search: &SearchConfig, material: &Material) -> usize {
    if lcsc_search::groups_of(search) == Groups::One { 1 } else { material.partition.len() }
}

/// A line of the comparison.
fn cells(name: &str, groups: Option<usize>, row: &Row, outcome: Option<&Outcome>) -> Vec<String> {
    let mut line = vec![name.to_string(), groups.map_or(String::new(), |g| g.to_string())];
    let fds =
        [row.fd_search, row.fd_heldout, row.fd_heldout_low, row.fd_heldout_high, row.fd_independent, row.fd_pixel];
    line.extend(fds.map(figure));
    line.push(format!("{:.2}/{:.2}", row.precision, row.recall));
    if let Some(outcome) = outcome {
        line.extend([outcome.evaluations.to_string(), format!("{:.1}", outcome.seconds)]);
    }
    line
}

/// A row of the comparison as JSON.
fn figures(name: &str, groups: Option<usize>, row: &Row, outcome: &Outcome) -> Value {
    let mut json = json!({
        "method": name, "groups": groups, "evaluations": outcome.evaluations, "seconds": outcome.seconds,
    });
    if let (Some(json), Value::Object(measured)) = (json.as_object_mut(), measured(row)) {
        json.extend(measured);
    }
    json
}

/// What was measured of a row, as JSON; not finite is null.
fn measured(row: &Row) -> Value {
    json!({
        "detail": row.detail, "fd_search": row.fd_search, "fd_heldout": row.fd_heldout,
        "fd_heldout_low": row.fd_heldout_low, "fd_heldout_high": row.fd_heldout_high,
        "fd_independent": row.fd_independent, "fd_pixel": row.fd_pixel, "precision": row.precision, "recall": row.recall,
    })
}

/// The paper's headline: at which fraction of the training LCSC is as good as the best EMA of the whole.
fn reached(rows: &[Value]) -> String {
    let number = |row: &Value, key: &str| row.pointer(key).and_then(Value::as_f64).unwrap_or(f64::INFINITY);
    let Some(whole) = rows.last() else { return String::new() };
    let total = number(whole, "/train_seconds");
    let line = |(name, key): (&str, &str)| {
        let bar = number(whole, &format!("/ema/{key}"));
        match rows.iter().find(|row| number(row, &format!("/lcsc/{key}")) <= bar) {
            None => format!("{name}: LCSC does not reach the best EMA of the whole training ({})", figure(bar)),
            Some(row) => {
                let (fraction, train) = (number(row, "/fraction"), number(row, "/train_seconds"));
                let with_search = total / (train + number(row, "/search_seconds"));
                format!(
                    "{name}: LCSC reaches the best EMA of the whole training ({}) at {fraction} of it: {:.1}× less training, \
                     {with_search:.1}× with the search counted",
                    figure(bar),
                    1.0 / fraction
                )
            }
        }
    };
    [("held-out FD", "fd_heldout"), ("independent FD", "fd_independent"), ("pixel FD", "fd_pixel")].map(line).join("\n")
}

/// A method to compare, and its groups where they are said: `METHOD`, `METHOD:one` or `METHOD:levels`.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    method: MethodName,
    groups: Option<Groups>,
}

impl std::str::FromStr for Compared {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (method, groups) = match text.split_once(':') {
            None => (text, None),
            Some((method, "one")) => (method, Some(Groups::One)),
            Some((method, "levels")) => (method, Some(Groups::Levels)),
            Some((_, other)) => return Err(format!("unknown groups `{other}`, expected `one` or `levels`")),
        };
        Ok(Self { method: method.parse()?, groups })
    }
}

impl Compared {
    /// The row that shows it.
    fn label(&self) -> Label {
        match self.method {
            MethodName::EmaGrid => Label::Ema,
            MethodName::Finetune => Label::Finetune,
            MethodName::Evolution | MethodName::OnePlusOne | MethodName::CmaEs | MethodName::Gradient => Label::Lcsc,
        }
    }

    fn has_groups(&self) -> bool {
        self.method != MethodName::Finetune
    }

    fn folder(&self) -> String {
        match &self.groups {
            None => self.method.name().to_string(),
            Some(Groups::One) => format!("{}-one", self.method.name()),
            Some(Groups::Levels | Groups::Patterns(_)) => format!("{}-levels", self.method.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_with_their_groups() {
        let parse = |text: &str| text.parse::<Compared>();
        let folder = |text| parse(text).unwrap().folder();
        assert_eq!([folder("cma-es"), folder("gradient:one")], ["cma-es", "gradient-one"]);
        assert_eq!(parse("gradient:levels").unwrap().groups, Some(Groups::Levels));
        assert!(parse("gradient:two").unwrap_err().contains("expected `one` or `levels`"));
        assert!(parse("sgd").unwrap_err().contains("unknown method `sgd`"));
    }

    #[test]
    fn the_headline_is_the_smallest_fraction_that_reaches_the_whole() {
        let row = |fraction: f64, ema: f64, lcsc: f64| {
            json!({
                "fraction": fraction, "train_seconds": 100.0 * fraction, "search_seconds": 10.0,
                "ema": { "fd_heldout": ema, "fd_independent": ema, "fd_pixel": 0.1 },
                "lcsc": { "fd_heldout": lcsc, "fd_independent": 2.0 * lcsc, "fd_pixel": 1.0 },
            })
        };
        let text = reached(&[row(0.05, 4.0, 2.5), row(0.1, 3.0, 1.5), row(0.5, 2.0, 0.75), row(1.0, 1.75, 0.5)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("(1.750) at 0.1 of it: 10.0× less training, 5.0× with the search"), "{text}");
        assert!(lines[1].contains("at 0.5 of it: 2.0× less training, 1.7× with"), "{text}");
        assert!(lines[2].contains("pixel FD: LCSC does not reach"), "{text}");
    }
}
