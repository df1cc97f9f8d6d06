//! `lcsc man`: man pages out of the command line's own help.

use crate::args::Args;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use miette::{IntoDiagnostic, WrapErr};
use std::path::Path;

/// Writes a page for the program and one for each command.
pub fn write(folder: &Path) -> miette::Result<()> {
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let written = std::fs::create_dir_all(folder).and_then(|()| pages(&command, folder));
    written.into_diagnostic().wrap_err_with(|| format!("cannot write man pages to {}", folder.display()))
}

fn pages(command: &Command, folder: &Path) -> std::io::Result<()> {
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|command| pages(command, folder))?;
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render(&mut page)?;
    // The examples under the heading that pages have for them, each in its own line.
    let page = String::from_utf8_lossy(&page).replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n.nf\n");
    std::fs::write(folder.join(man.get_filename()), page.replace(".SH VERSION\n", ".fi\n.SH VERSION\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("share/man1");
        write(&folder).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(page("lcsc.1").contains("lcsc\\-search(1)"));
        assert!(!folder.join("lcsc-try-plans.1").exists());
        let example = ".SH EXAMPLES\n.nf\n  lcsc config check configs/quickstart.toml\n";
        assert!(page("lcsc-config-check.1").contains(example));
        write(&folder.join("lcsc.1")).unwrap_err();
    }
}
