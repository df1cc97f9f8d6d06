//! Tests of what the pages of the documentation say about the command line.

use crate::args::Args;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use lcsc_tests::docs::{Page, pages, programs, root};

/// What is wrong with a line of shell, if anything: options of `lcsc`, or scripts that are not there.
pub fn problem(line: &str) -> Option<String> {
    programs(line).iter().find_map(|words| {
        match words[0].trim_start_matches("./").trim_start_matches("target/release/") {
            "lcsc" => parse_error(words).map(|e| e.to_string()),
            _ => {
                let mut scripts = words.iter().filter(|w| w.trim_start_matches("./").starts_with("scripts/"));
                scripts.find(|script| !root().join(script).exists()).map(|script| format!("there is no {script}"))
            }
        }
    })
}

/// What clap has against the arguments; asking for help is fine.
fn parse_error(words: &[String]) -> Option<clap::Error> {
    let error = Args::try_parse_from(words).err()?;
    (!matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)).then_some(error)
}

/// Whether a command only lacks something at its end: sentences name commands and options without their values.
fn incomplete(error: &clap::Error) -> bool {
    let unvalued = || error.get(ContextKind::InvalidValue) == Some(&ContextValue::String(String::new()));
    match error.kind() {
        ErrorKind::MissingRequiredArgument | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => true,
        ErrorKind::InvalidValue => unvalued(),
        _ => false,
    }
}

/// Says for each page what `find` finds, with the number of things that were looked at.
fn check(find: impl Fn(&Page) -> Vec<(String, Option<String>)>, least: usize) {
    let found: Vec<_> = pages().iter().flat_map(find).collect();
    let problems: Vec<String> =
        found.iter().filter_map(|(place, problem)| problem.as_ref().map(|p| format!("{place}: {p}"))).collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    assert!(found.len() >= least, "only {} were found", found.len());
}

#[test]
fn commands_in_blocks_are_right() {
    let find = |page: &Page| {
        let blocks = page.blocks();
        let commands = blocks.iter().filter(|block| block.language() == "sh").flat_map(|block| block.commands());
        commands.map(|c| (format!("{}:{}: {}", page.name, c.line, c.text), problem(&c.text))).collect()
    };
    check(find, 50);
}

#[test]
fn commands_in_sentences_name_nothing_unknown() {
    let names: Vec<String> = Args::command().get_subcommands().map(|c| format!("lcsc {}", c.get_name())).collect();
    let find = |page: &Page| {
        let spans = page.spans().into_iter().filter(|span| !span.ends_with('…'));
        let commands = spans.filter(|span| names.iter().any(|n| *span == *n || span.starts_with(&format!("{n} "))));
        let error = |span: &str| parse_error(programs(span).first()?).filter(|e| !incomplete(e));
        commands.map(|s| (format!("{}: `{s}`", page.name), error(&s).map(|e| e.to_string()))).collect()
    };
    check(find, 20);
}

#[test]
fn configs_that_are_named_exist() {
    let find = |page: &Page| {
        let path = |rest: &str| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-_./".contains(c)).unwrap_or(rest.len());
            format!("configs/{}", rest[..end].trim_end_matches('.'))
        };
        let paths = page.text.split("configs/").skip(1).map(path).filter(|path| path.ends_with(".toml"));
        let missing = |path: &str| (!root().join(path).exists()).then(|| "is not there".to_string());
        paths.map(|path| (format!("{}: {path}", page.name), missing(&path))).collect()
    };
    check(find, 5);
}
