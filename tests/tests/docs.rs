//! Blocks of the documentation that are marked `sh run` are run, page by page, each page in a folder of its own that
//! holds the repository's `configs` and `data`. Blocks marked `file=NAME` are written there first.

use lcsc_tests::docs::{Block, Page, pages, root};
use lcsc_tests::shell;
use libtest_mimic::{Arguments, Failed, Trial};
use std::os::unix::fs::symlink;
use std::path::Path;

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
