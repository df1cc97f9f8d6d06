//! What is wrong with a config: every problem with its place, all of them in one report.

use crate::document::{Document, KeyPath, Part};
use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};
use std::fmt::{self, Display, Formatter};
use std::ops::Range;

/// One thing that is wrong, or (a warning) likely not what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The value it is about.
    pub path: KeyPath,
    /// Whether the key or the value is to be shown.
    pub part: Part,
    /// What was expected and what was found.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// Errors refuse the config, warnings do not.
    pub severity: Severity,
}

impl Problem {
    /// A problem that refuses the config; paths may be given as text, `stage[1].seed`.
    pub fn error(path: impl Into<KeyPath>, message: impl Into<String>) -> Self {
        let (path, message) = (path.into(), message.into());
        Self { path, part: Part::Value, message, help: None, severity: Severity::Error }
    }

    /// A problem that is only shown.
    pub fn warning(path: impl Into<KeyPath>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(path, message) }
    }

    /// The same with what would be right.
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// Whether it refuses the config.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Where it stands in the document; `None` for a value from `--set`.
    pub fn span(&self, document: &Document) -> Option<Range<usize>> {
        document.span_of(&self.path, self.part)
    }

    /// Path and message, without the place.
    fn text(&self, document: &Document) -> String {
        let separator = if self.path.0.is_empty() { "" } else { ": " };
        let origin = if self.span(document).is_none() { " (from --set)" } else { "" };
        format!("{}{separator}{}{origin}", self.path, self.message)
    }
}

/// All problems of a document as one diagnostic, each shown in the text it is about.
///
/// Return it as the error, or print the `{:?}` of `miette::Report::new` of it: coloured on a terminal.
#[derive(Debug)]
pub struct Report {
    title: String,
    severity: Severity,
    source: NamedSource<String>,
    problems: Vec<Located>,
}

/// A problem of a [`Report`].
#[derive(Debug)]
struct Located {
    text: String,
    help: Option<String>,
    severity: Severity,
    span: Option<Range<usize>>,
}

impl Report {
    /// A report of some problems of a document.
    pub fn new(problems: &[Problem], document: &Document) -> Self {
        let errors = problems.iter().filter(|p| p.is_error()).count();
        let warnings = problems.len() - errors;
        let count = |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
        let counts: Vec<String> =
            [count(errors, "problem"), count(warnings, "warning")].into_iter().flatten().collect();
        let located = |problem: &Problem| Located {
            text: problem.text(document),
            help: problem.help.clone(),
            severity: problem.severity,
            span: problem.span(document),
        };
        Self {
            title: format!("{}: {}", document.name(), counts.join(", ")),
            severity: if errors > 0 { Severity::Error } else { Severity::Warning },
            source: NamedSource::new(document.name(), document.text().to_string()).with_language("toml"),
            problems: problems.iter().map(located).collect(),
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(&self.title)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.problems.iter().map(|p| p as &dyn Diagnostic)))
    }
}

impl Display for Located {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Located {}

impl Diagnostic for Located {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.span.clone()?;
        Some(Box::new(std::iter::once(LabeledSpan::underline(span))))
    }
}

#[cfg(test)]
/// The problems as text, one a line: `x.toml:12:8: stage[1].seed: expected …, found …. help: …`.
pub fn render_plain(problems: &[Problem], document: &Document) -> String {
    let mut text = String::new();
    for problem in problems {
        let place = problem.span(document).map(|span| document.line_column(span.start));
        let place = place.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
        let kind = if problem.is_error() { "" } else { "warning: " };
        let help = problem.help.as_ref().map(|help| format!(". help: {help}")).unwrap_or_default();
        text += &format!("{}{place}: {kind}{}{help}\n", document.name(), problem.text(document));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use miette::{GraphicalReportHandler, GraphicalTheme};

    fn problems() -> (Vec<Problem>, Document) {
        let mut document = Document::parse("x.toml", "[unet]\nchannels = 18\n\n[[stage]]\nseed = 1\n").unwrap();
        document.set("unet.width=9").unwrap();
        let problems = vec![
            Problem::error("unet.channels", "18 does not divide into groups").help("16 or 20"),
            Problem::error("unet.width", "9 is odd"),
            Problem::warning("stage[0].nimg", "nothing to train"),
            Problem::error("", "nothing to search"),
        ];
        (problems, document)
    }

    #[test]
    fn plain_lines_name_place_path_message_and_help() {
        let (problems, document) = problems();
        let expected = "\
x.toml:2:12: unet.channels: 18 does not divide into groups. help: 16 or 20
x.toml: unet.width: 9 is odd (from --set)
x.toml:4:1: warning: stage[0].nimg: nothing to train
x.toml:1:1: nothing to search
";
        assert_eq!(render_plain(&problems, &document), expected);
    }

    #[test]
    fn one_report_shows_every_problem_in_the_text() {
        let (problems, document) = problems();
        let report = Report::new(&problems, &document);
        let mut text = String::new();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
        handler.render_report(&mut text, &report).unwrap();
        let expected = "  × x.toml: 3 problems, 1 warning

Error:\x20
  × unet.channels: 18 does not divide into groups
   ╭─[x.toml:2:12]
 1 │ [unet]
 2 │ channels = 18
   ·            ──
 3 │\x20
   ╰────
  help: 16 or 20

Error:\x20
  × unet.width: 9 is odd (from --set)

Warning:\x20
  ⚠ stage[0].nimg: nothing to train
   ╭─[x.toml:4:1]
 3 │\x20
 4 │ [[stage]]
   · ─────────
 5 │ seed = 1
   ╰────

Error:\x20
  × nothing to search
   ╭─[x.toml:1:1]
 1 │ [unet]
   · ▲
 2 │ channels = 18
   ╰────
";
        assert_eq!(text, expected);
    }

    #[test]
    fn warnings_alone_do_not_make_an_error() {
        let (problems, document) = problems();
        let report = Report::new(&problems[2..3], &document);
        assert_eq!(report.to_string(), "x.toml: 1 warning");
        assert_eq!(report.severity(), Some(Severity::Warning));
        assert_eq!(Report::new(&problems, &document).severity(), Some(Severity::Error));
    }
}
