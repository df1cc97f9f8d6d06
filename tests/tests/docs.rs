//! Blocks of the documentation that are marked `sh run` are run, page by page, each page in a folder of its own that
//! holds the repository's `configs` and `data`. Blocks marked `file=NAME` are written there first. The runs that a page names
//! without making any are there as well: a small one of the quick start's config under each of the names.

use lcsc_tests::docs::{Block, Page, pages, programs, root};
use lcsc_tests::{copy, shell, succeed};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::LazyLock;

fn main() {
    let runs = |block: &Block| block.info == "sh run";
    let pages = pages().into_iter().filter(|page| page.blocks().iter().any(runs));
    let trials: Vec<Trial> = pages.map(|page| Trial::test(page.name.clone(), move || run(&page))).collect();
    assert!(!trials.is_empty(), "no page has a block of `sh run`");
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn run(page: &Page) -> Result<(), Failed> {
    let temp = tempfile::tempdir()?;
    let folder = temp.path();
    for shared in ["configs", "data"] {
        symlink(root().join(shared), folder.join(shared))?;
    }
    for name in named_runs(page) {
        copy(&PREPARED.path().join("runs/quickstart"), &folder.join("runs").join(name));
    }
    for block in page.blocks() {
        if let Some(name) = block.file() {
            std::fs::write(folder.join(name), block.lines.join("\n") + "\n")?;
        }
        if block.info == "sh run" {
            run_block(page, &block, folder)?;
        }
    }
    Ok(())
}

/// A run of the quick start in seconds.
static PREPARED: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    symlink(root().join("configs"), folder.path().join("configs")).unwrap();
    let sets = [
        "stage.0.nimg=640",
        "stage.1.nimg=640",
        "stage.1.trajectory.every_nimg=64",
        "search.images=100",
        "search.selection_images=100",
        "search.report_images=200",
        "search.budget.evaluations=10",
    ];
    let mut args = vec!["run", "configs/quickstart.toml"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    succeed(folder.path(), &args);
    folder
});

/// The names of the runs that a page is about, none where it makes its own.
fn named_runs(page: &Page) -> BTreeSet<String> {
    let blocks = page.blocks();
    let commands = blocks.iter().filter(|block| block.info == "sh run").flat_map(Block::commands);
    let words: Vec<String> = commands.flat_map(|command| programs(&command.text).concat()).collect();
    if words.iter().any(|word| word == "run" || word == "train") {
        return BTreeSet::new();
    }
    let name = |word: &String| Some(word.strip_prefix("runs/")?.split('/').next()?.to_string());
    words.iter().filter_map(name).collect()
}

fn run_block(page: &Page, block: &Block, folder: &Path) -> Result<(), Failed> {
    for command in block.commands() {
        let ended = shell(folder, &command.text);
        if ended.status != Some(0) {
            let (page, line, text) = (&page.name, command.line, &command.text);
            let status = ended.status.map_or_else(|| "a signal".into(), |status| format!("status {status}"));
            return Err(format!("{page}:{line}: {text}: {status}\n{}{}", ended.stdout, ended.stderr).into());
        }
    }
    Ok(())
}
