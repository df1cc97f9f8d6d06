//! The Markdown pages of the repository, as far as tests read them: fenced blocks, command lines, code in sentences.

use std::path::{Path, PathBuf};

/// The folder of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

/// A page, by its path in the repository.
pub struct Page {
    /// Such as `docs/config.md`.
    pub name: String,
    /// Its Markdown.
    pub text: String,
}

/// A fenced block.
pub struct Block<'a> {
    /// What stands behind the opening fence.
    pub info: &'a str,
    /// The number of its first line in the page.
    pub line: usize,
    /// What is between the fences.
    pub lines: Vec<&'a str>,
}

/// A command, with its lines joined where they end in a backslash.
pub struct CommandLine {
    /// The number of its first line in the page.
    pub line: usize,
    /// The command as a shell reads it.
    pub text: String,
}

/// The pages for users: the front page, `docs/`, and the notes beside configs and data.
pub fn pages() -> Vec<Page> {
    let mut names = vec!["README.md".to_string()];
    for folder in ["configs", "data", "docs"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        let files = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.extend(files.filter(|name| name.ends_with(".md")).map(|name| format!("{folder}/{name}")));
    }
    names.sort();
    let read = |name: String| Page { text: std::fs::read_to_string(root().join(&name)).unwrap(), name };
    names.into_iter().map(read).collect()
}

impl Page {
    /// All fenced blocks, in their order.
    pub fn blocks(&self) -> Vec<Block<'_>> {
        let (mut blocks, mut inside) = (Vec::new(), None::<Block>);
        for (index, line) in self.text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            match (&mut inside, fence) {
                (None, Some(info)) => inside = Some(Block { info: info.trim(), line: index + 2, lines: Vec::new() }),
                (Some(block), None) => block.lines.push(line),
                (_, Some(_)) => blocks.extend(inside.take()),
                (None, None) => (),
            }
        }
        assert!(inside.is_none(), "{}: a fence is not closed", self.name);
        blocks
    }

    /// The text in backticks outside of blocks, as one line each.
    pub fn spans(&self) -> Vec<String> {
        let outside = self.text.split("```").step_by(2);
        let paragraphs = outside.flat_map(|text| text.split("\n\n"));
        let spans = paragraphs.flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
        spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}

impl Block<'_> {
    /// The first word behind the fence.
    pub fn language(&self) -> &str {
        self.info.split(' ').next().unwrap_or_default()
    }

    /// The file that a block marked `file=NAME` stands for.
    pub fn file(&self) -> Option<&str> {
        self.info.split(' ').find_map(|word| word.strip_prefix("file="))
    }

    /// The commands of a block of `sh`.
    pub fn commands(&self) -> Vec<CommandLine> {
        let mut commands: Vec<CommandLine> = Vec::new();
        let mut continued = false;
        for (index, line) in self.lines.iter().enumerate() {
            let (line, open) = line.strip_suffix('\\').map_or((*line, false), |line| (line, true));
            match commands.last_mut() {
                Some(command) if continued => command.text += line,
                _ => commands.push(CommandLine { line: self.line + index, text: line.into() }),
            }
            continued = open;
        }
        commands.retain(|command| !command.text.trim().is_empty() && !command.text.trim().starts_with('#'));
        commands
    }
}

/// The programs that a line of shell starts, each with its arguments: without comments, assignments and redirections.
pub fn programs(line: &str) -> Vec<Vec<String>> {
    let words = shlex::split(line).unwrap_or_else(|| panic!("a quote is not closed: {line}"));
    let programs = words.split(|word| ["|", "&&", "||", ";", "&"].contains(&word.as_str()));
    let assigns = |word: &&String| word.split_once('=').is_some_and(|(name, _)| name.to_uppercase() == name);
    let redirects = |word: &&String| word.starts_with(['>', '<']) || word.starts_with("2>");
    let bare = |words: &[String]| words.iter().skip_while(assigns).take_while(|w| !redirects(w)).cloned().collect();
    programs.map(bare).filter(|words: &Vec<String>| !words.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read() {
        let text = "a `b\nc` d\n\n```toml file=x.toml\nk = '`'\n```\n\n`e`\n```sh run\n# none\na b \\\n  c\n\nd\n```\n";
        let page = Page { name: "p".into(), text: text.into() };
        assert_eq!(page.spans(), ["b c", "e"]);
        let blocks = page.blocks();
        assert_eq!((blocks[0].language(), blocks[0].file(), blocks[0].line), ("toml", Some("x.toml"), 5));
        let commands: Vec<_> = blocks[1].commands().into_iter().map(|c| (c.line, c.text)).collect();
        assert_eq!(commands, [(11, "a b   c".into()), (14, "d".into())]);
    }

    #[test]
    fn lines_of_shell_are_taken_apart() {
        let found = programs("A=1 lcsc run 'x y' --set a=b > out 2>&1 | head -1 && b  # c");
        assert_eq!(found, [vec!["lcsc", "run", "x y", "--set", "a=b"], vec!["head", "-1"], vec!["b"]]);
    }
}
