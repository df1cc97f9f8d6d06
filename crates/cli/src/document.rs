//! A TOML file with the place of every value, and the values that `--set` puts over it.

use miette::{IntoDiagnostic, LabeledSpan, NamedSource, WrapErr, miette};
use std::fmt::{self, Display, Formatter};
use std::ops::Range;
use std::path::Path;
use toml::Value;

/// One step from a value to a value inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPart {
    /// A key of a table.
    Key(String),
    /// An element of an array, from 0.
    Index(usize),
}

/// The way to a value, written `stage[1].optimizer.adam.lr`; empty for the whole document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPath(pub Vec<PathPart>);

impl KeyPath {
    /// The path of a key inside the table at this path.
    pub fn key(&self, key: &str) -> KeyPath {
        KeyPath([self.0.as_slice(), &[PathPart::Key(key.to_string())]].concat())
    }

    /// Whether this is the path itself or one inside it.
    pub fn is_within(&self, other: &KeyPath) -> bool {
        self.0.starts_with(&other.0)
    }
}

/// Parses `stage[1].seed` and `stage.1.seed` alike: parts of digits alone are indices.
impl From<&str> for KeyPath {
    fn from(text: &str) -> Self {
        let parts = text.replace('[', ".").replace(']', "");
        let part = |part: &str| part.parse().map_or_else(|_| PathPart::Key(part.to_string()), PathPart::Index);
        KeyPath(parts.split('.').filter(|_| !text.is_empty()).map(part).collect())
    }
}

impl From<String> for KeyPath {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl Display for KeyPath {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            match part {
                PathPart::Key(key) if i == 0 => write!(f, "{key}")?,
                PathPart::Key(key) => write!(f, ".{key}")?,
                PathPart::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Which part of `key = value` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The key.
    Key,
    /// The value.
    Value,
}

/// A config file as written, and its value with `--set` applied.
pub struct Document {
    name: String,
    written: toml_edit::Document<String>,
    value: Value,
    /// What `--set` gave: values, and the outermost tables made for them.
    set: Vec<KeyPath>,
}

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read or is no TOML.
    pub fn read(path: &Path) -> miette::Result<Self> {
        let name = path.display().to_string();
        if path.is_dir() {
            miette::bail!("{name}: is a folder, expected a config file (TOML), as there are in configs/");
        }
        let text = std::fs::read_to_string(path).into_diagnostic().wrap_err_with(|| format!("cannot read {name}"))?;
        Self::parse(name, text)
    }

    /// Parses the text of a file; `name` is what messages call it.
    ///
    /// # Errors
    /// The text is no TOML.
    pub fn parse(name: impl Into<String>, text: impl Into<String>) -> miette::Result<Self> {
        let (name, text) = (name.into(), text.into());
        let value = toml::from_str(&text).map_err(|e| {
            let label = LabeledSpan::underline(e.span().unwrap_or(0..0));
            miette!(labels = vec![label], "{name} is not valid TOML: {}", e.message())
                .with_source_code(NamedSource::new(&name, text.clone()).with_language("toml"))
        })?;
        let written = toml_edit::Document::parse(text).into_diagnostic()?;
        Ok(Self { name, written, value: Value::Table(value), set: Vec::new() })
    }

    /// What messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of the file.
    pub fn text(&self) -> &str {
        self.written.raw()
    }

    /// The whole table, with `--set` applied.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Puts another table in the place of a top-level one; places in the file stay those of what was written there.
    pub fn replace(&mut self, key: &str, table: toml::Table) {
        if let Value::Table(root) = &mut self.value {
            root.insert(key.to_string(), Value::Table(table));
        }
    }

    /// Applies one `--set key=value`, such as `stage.1.optimizer.adam.lr=1e-3`.
    ///
    /// The value is read as TOML, or taken as a string where it is none. Missing tables are made.
    ///
    /// # Errors
    /// There is no `=`, an index is outside its array, or the path leads into a value that is no table or array.
    pub fn set(&mut self, assignment: &str) -> miette::Result<()> {
        let refuse = |reason: String| miette!("--set {assignment}: {reason}");
        let (path, text) = assignment.split_once('=').ok_or_else(|| refuse("expected key=value".into()))?;
        let path = KeyPath::from(path.trim());
        if path.0.is_empty() || path.0.contains(&PathPart::Key(String::new())) {
            return Err(refuse("expected a key such as `stage.0.seed` before the `=`".into()));
        }
        let text = text.trim();
        let value = text.parse().unwrap_or_else(|_| Value::String(text.to_string()));
        let made = put(&mut self.value, &path, value).map_err(refuse)?;
        self.set.push(KeyPath(path.0[..made].to_vec()));
        Ok(())
    }

    /// The bytes of the text where a value or its key stands; for what is absent, the nearest table around it.
    ///
    /// `None` for what came from `--set`.
    pub fn span_of(&self, path: &KeyPath, part: Part) -> Option<Range<usize>> {
        if self.set.iter().any(|set| path.is_within(set)) {
            return None;
        }
        let (mut item, mut span) = (self.written.as_item(), 0..0);
        for (depth, step) in path.0.iter().enumerate() {
            let Some((key, inner)) = enter(item, step) else { break };
            let last = depth + 1 == path.0.len();
            let found = if last && part == Part::Key { key.or(inner.span()) } else { inner.span().or(key) };
            (item, span) = (inner, found.unwrap_or(span));
        }
        Some(span)
    }

    #[cfg(test)]
    /// Line and column of a byte of the text, both from 1, columns in characters.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.text()[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// Sets the value at a path. Returns how many parts of the path lead to what did not come from the file.
fn put(root: &mut Value, path: &KeyPath, value: Value) -> Result<usize, String> {
    let mut made = path.0.len();
    let mut slot = root;
    for (depth, part) in path.0.iter().enumerate() {
        let place = KeyPath(path.0[..depth].to_vec());
        slot = match (slot, part) {
            (Value::Table(table), PathPart::Key(key)) => {
                if !table.contains_key(key) {
                    made = made.min(depth + 1);
                }
                table.entry(key).or_insert_with(|| Value::Table(toml::Table::new()))
            }
            (Value::Array(array), PathPart::Index(index)) => {
                let len = array.len();
                array.get_mut(*index).ok_or_else(|| format!("`{place}` has {len} elements, counted from 0"))?
            }
            (Value::Table(_), PathPart::Index(index)) => {
                return Err(format!("expected a key of the table `{place}`, found the index {index}"));
            }
            (Value::Array(_), PathPart::Key(key)) => {
                return Err(format!("expected an index into the array `{place}`, found the key `{key}`"));
            }
            (other, _) => return Err(format!("`{place}` holds no other values, it is of type {}", other.type_str())),
        };
    }
    *slot = value;
    Ok(made)
}

/// One step into an item: the span of the key, where there is one, and the item there.
fn enter<'a>(item: &'a toml_edit::Item, part: &PathPart) -> Option<(Option<Range<usize>>, &'a toml_edit::Item)> {
    match part {
        PathPart::Key(name) => item.as_table_like()?.get_key_value(name).map(|(key, inner)| (key.span(), inner)),
        PathPart::Index(index) => item.get(*index).map(|inner| (None, inner)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
name = \"añb\" # comment
sampler.heun = { steps = 18 }

[unet]
channels = 16
mult = [1, 2]

[[stage]]
seed = 1

[[stage]]
seed = 2
[stage.optimizer.adam]
lr = 1e-3
";

    fn document(sets: &[&str]) -> Document {
        let mut document = Document::parse("x.toml", TEXT).unwrap();
        sets.iter().for_each(|set| document.set(set).unwrap());
        document
    }

    #[test]
    fn paths_read_as_they_are_written() {
        let path = KeyPath::from("stage[1].optimizer.adam.lr");
        assert_eq!(path, KeyPath::from("stage.1.optimizer.adam.lr"));
        assert_eq!(path.0[..2], [PathPart::Key("stage".into()), PathPart::Index(1)]);
        assert_eq!(path.to_string(), "stage[1].optimizer.adam.lr");
        assert_eq!(KeyPath::from(""), KeyPath::default());
    }

    #[test]
    fn everything_has_its_place() {
        let document = document(&[]);
        let place = |path: &str, part| document.span_of(&path.into(), part).map(|span| &TEXT[span]).unwrap();
        assert_eq!(place("name", Part::Value), "\"añb\"");
        assert_eq!(place("name", Part::Key), "name");
        assert_eq!(place("sampler", Part::Value), "sampler");
        assert_eq!(place("sampler.heun.steps", Part::Value), "18");
        assert_eq!(place("sampler.heun.steps", Part::Key), "steps");
        assert_eq!(place("unet.mult[1]", Part::Value), "2");
        assert_eq!(place("unet.missing", Part::Value), "[unet]");
        assert_eq!(place("stage[1].seed", Part::Value), "2");
        assert_eq!(place("stage[0].seed.deeper", Part::Value), "1");
        assert_eq!(place("stage[1].optimizer.adam.lr", Part::Value), "1e-3");
        assert_eq!(place("stage[1].optimizer", Part::Key), "optimizer");
        assert_eq!(place("missing", Part::Key), "");
        let second_header = document.span_of(&"stage[1].missing".into(), Part::Value).unwrap();
        assert_eq!(document.line_column(second_header.start), (11, 1));
        let comment = TEXT.find('#').unwrap();
        assert_eq!(document.line_column(comment), (1, 14), "columns are characters, not bytes");
    }

    #[test]
    fn set_replaces_and_adds_values() {
        let document = document(&[
            "stage.1.optimizer.adam.lr=2e-4",
            "unet.mult[0] = 3",
            "name=runs/x y",
            "ema.track.name=\"5\"",
            "data={ path = 'd' }",
            "note=a=b",
        ]);
        let value = document.value();
        assert_eq!(value["stage"][1]["optimizer"]["adam"]["lr"], Value::Float(2e-4));
        assert_eq!(value["unet"]["mult"], Value::Array(vec![3.into(), 2.into()]));
        assert_eq!(value["name"], Value::from("runs/x y"));
        assert_eq!(value["ema"]["track"]["name"], Value::from("5"));
        assert_eq!(value["data"]["path"], Value::from("d"));
        assert_eq!(value["note"], Value::from("a=b"));
        assert_eq!(value["stage"][0]["seed"], Value::from(1));
    }

    #[test]
    fn what_came_from_set_has_no_place() {
        let document = document(&["stage.1.optimizer.adam.lr=2e-4", "ema.track.name=x"]);
        let from_set = |path: &str| document.span_of(&path.into(), Part::Value).is_none();
        assert!(from_set("stage[1].optimizer.adam.lr"));
        assert!(from_set("ema.track.missing"), "the table was made by --set");
        assert!(!from_set("stage[1].optimizer.adam"));
        assert!(!from_set("missing"));
    }

    #[test]
    fn set_refuses_what_leads_nowhere() {
        let refused = |set: &str| document(&[]).set(set).unwrap_err().to_string();
        assert_eq!(refused("stage.2.seed=1"), "--set stage.2.seed=1: `stage` has 2 elements, counted from 0");
        assert_eq!(
            refused("stage.seed=1"),
            "--set stage.seed=1: expected an index into the array `stage`, found the key `seed`"
        );
        assert_eq!(refused("unet.0=1"), "--set unet.0=1: expected a key of the table `unet`, found the index 0");
        assert_eq!(refused("name.x=1"), "--set name.x=1: `name` holds no other values, it is of type string");
        assert_eq!(refused("name"), "--set name: expected key=value");
        assert!(refused("=1").contains("expected a key"));
        assert!(refused("a..b=1").contains("expected a key"));
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused_with_its_place() {
        let error = Document::parse("x.toml", "a = 1\nb = [1,\nc = 2\n").err().unwrap();
        assert!(error.to_string().starts_with("x.toml is not valid TOML: "), "{error}");
        let label = error.labels().unwrap().next().unwrap();
        assert!(label.offset() >= 12, "{label:?}");
        let missing = Document::read(Path::new("/nonexistent.toml")).err().unwrap();
        assert_eq!(missing.to_string(), "cannot read /nonexistent.toml");
    }
}
