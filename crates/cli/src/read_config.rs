//! Reading a config with all of its problems at once.

use crate::document::{Document, KeyPath, Part, PathPart};
use crate::problems::Problem;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::Value;

/// Reads a config out of a document and finds its unknown keys, wrong types and missing keys in one go.
///
/// serde stops at the first error, so each offending value is taken out of a copy and the rest is read again. Problems
/// come in the order of the text, those of `--set` last. The config is what remains, taken-out keys at their defaults,
/// so that its other values can be checked too; `None` where a required key or an element of an array is gone. Of
/// several required keys that one table lacks, the first is named.
pub fn read_config<T: DeserializeOwned>(document: &Document) -> (Option<T>, Vec<Problem>) {
    let mut rest = document.value().clone();
    let mut problems = Vec::new();
    let mut removed: Vec<KeyPath> = Vec::new();
    let config = loop {
        let error = match serde_path_to_error::deserialize::<_, T>(rest.clone()) {
            Ok(config) => break Some(config),
            Err(error) => error,
        };
        let (path, value) = locate(&rest, error.path());
        let place = undo_shifts(&path, &removed);
        if !follows_from(&removed, &place, error.inner().message()) {
            problems.push(explain(&place, value, error.inner().message()));
        }
        if remove(&mut rest, &path).is_none() {
            break None;
        }
        removed.push(place);
    };
    let shifted = removed.iter().any(|path| matches!(path.0.last(), Some(PathPart::Index(_))));
    problems.sort_by_key(|problem| problem.span(document).map_or(usize::MAX, |span| span.start));
    (config.filter(|_| !shifted), problems)
}

/// As much of serde's path as there is in the value, and the value there.
fn locate<'a>(root: &'a Value, path: &serde_path_to_error::Path) -> (KeyPath, &'a Value) {
    let (mut found, mut value) = (KeyPath::default(), root);
    for segment in path {
        let (part, inner) = match segment {
            Segment::Map { key } | Segment::Enum { variant: key } => (PathPart::Key(key.clone()), value.get(key)),
            Segment::Seq { index } => (PathPart::Index(*index), value.get(*index)),
            Segment::Unknown => break,
        };
        let Some(inner) = inner else { break };
        found.0.push(part);
        value = inner;
    }
    (found, value)
}

/// The path in the document of a path in what remains of it: elements before may be gone.
fn undo_shifts(path: &KeyPath, removed: &[KeyPath]) -> KeyPath {
    let mut original = KeyPath::default();
    for part in &path.0 {
        original.0.push(part.clone());
        if let PathPart::Index(left) = part {
            let gone = |index: usize| {
                let parent = &original.0[..original.0.len() - 1];
                removed.iter().any(|r| r.0.split_last() == Some((&PathPart::Index(index), parent)))
            };
            let index = (0..).filter(|&index| !gone(index)).nth(*left);
            original.0.pop();
            original.0.extend(index.map(PathPart::Index));
        }
    }
    original
}

/// Whether an error about a table or array comes only from what was taken out of it.
fn follows_from(removed: &[KeyPath], place: &KeyPath, message: &str) -> bool {
    if let Some(field) = quoted(message, "missing field `") {
        return removed.contains(&place.key(field));
    }
    removed.iter().any(|path| path.0.split_last().is_some_and(|(_, parent)| parent == place.0))
}

/// Takes a value out of the table or array that holds it; nothing holds the root.
fn remove(root: &mut Value, path: &KeyPath) -> Option<Value> {
    let (last, parents) = path.0.split_last()?;
    let parent = parents.iter().try_fold(root, |value, part| match part {
        PathPart::Key(key) => value.get_mut(key),
        PathPart::Index(index) => value.get_mut(*index),
    })?;
    match last {
        PathPart::Key(key) => parent.as_table_mut()?.remove(key),
        PathPart::Index(index) => Some(parent.as_array_mut()?.remove(*index)),
    }
}

/// serde's message about the value at `place` as a problem in the words of the config file.
fn explain(place: &KeyPath, value: &Value, message: &str) -> Problem {
    if let Some(field) = quoted(message, "missing field `") {
        return Problem::error(place.key(field), "missing, and there is no default");
    }
    if quoted(message, "unknown field `").is_some() {
        let message = message.replacen("unknown field", "unknown key", 1);
        return Problem { part: Part::Key, help: nearest(&message), ..Problem::error(place.clone(), message) };
    }
    if let Some(variant) = quoted(message, "unknown variant `") {
        let help = nearest(message);
        let message = message.replacen("unknown variant", "unknown choice", 1);
        return match value.get(variant) {
            Some(_) => Problem { part: Part::Key, help, ..Problem::error(place.key(variant), message) },
            None => Problem { help, ..Problem::error(place.clone(), message) },
        };
    }
    match value {
        Value::Table(table) if message.starts_with("wanted exactly 1 element") => {
            let found: Vec<String> = table.keys().map(|key| format!("`{key}`")).collect();
            let found = if found.is_empty() { "none".into() } else { found.join(" and ") };
            Problem::error(place.clone(), format!("expected exactly one choice as a key, found {found}"))
        }
        Value::String(name) if message.contains("unit variant") => {
            let short = KeyPath(place.0.last().cloned().into_iter().collect());
            Problem::error(place.clone(), format!("expected settings, found only the name `{name}`"))
                .help(format!("`{short}.{name} = {{}}` takes the defaults"))
        }
        Value::Table(_) if message == "expected empty table" => {
            Problem::error(place.clone(), "this choice takes no settings")
        }
        _ => Problem::error(place.clone(), plain_words(message)),
    }
}

/// "invalid type: X, expected Y" as "expected Y, found X", without names of Rust types.
fn plain_words(message: &str) -> String {
    let kinds = ["invalid type: ", "invalid value: ", "invalid length "];
    let Some((found, expected)) = kinds.iter().find_map(|k| message.strip_prefix(k)?.split_once(", expected ")) else {
        return message.to_string();
    };
    let expected = match expected {
        "f64" | "f32" => "a number",
        "u64" | "u32" | "usize" => "a whole number, 0 or more",
        "i64" | "i32" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    let found = match found {
        "map" => "a table",
        "sequence" => "an array",
        other => other,
    };
    format!("expected {expected}, found {found}")
}

/// The name in backticks after `opening`, which the text must begin with.
fn quoted<'a>(text: &'a str, opening: &str) -> Option<&'a str> {
    text.strip_prefix(opening)?.split('`').next()
}

/// "did you mean `x`?" for the known name nearest to the unknown one; serde's message quotes the unknown one first.
fn nearest(message: &str) -> Option<String> {
    const MAX_EDITS: usize = 2;
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    let (edits, name) = names.map(|name| (edit_distance(unknown, name), name)).min()?;
    (edits <= MAX_EDITS).then(|| format!("did you mean `{name}`?"))
}

/// Levenshtein's distance: insertions, deletions and substitutions from one text to the other.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::render_plain;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        name: String,
        #[serde(default)]
        sampler: Sampler,
        #[serde(default)]
        checkpoints: Checkpoints,
        #[serde(default)]
        stage: Vec<Stage>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Checkpoints {
        every_nimg: u64,
        dtype: Dtype,
        mult: Vec<u64>,
        betas: [f64; 2],
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Dtype {
        #[default]
        F32,
        Bf16,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stage {
        nimg: u64,
        optimizer: Option<Optimizer>,
        flip: Option<bool>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase", deny_unknown_fields)]
    enum Optimizer {
        Adam(Adam),
        Radam(Adam),
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Adam {
        lr: f64,
        eps: f64,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase", deny_unknown_fields)]
    enum Sampler {
        #[default]
        Euler,
        Heun {
            steps: u64,
        },
    }

    fn read(text: &str, sets: &[&str]) -> (Option<Config>, String) {
        let mut document = Document::parse("x.toml", text).unwrap();
        sets.iter().for_each(|set| document.set(set).unwrap());
        let (config, problems) = read_config(&document);
        (config, render_plain(&problems, &document))
    }

    fn problems(text: &str) -> String {
        read(text, &[]).1
    }

    #[test]
    fn a_good_config_is_read_whole() {
        let text = "name = 'a'\nsampler.heun = { steps = 18 }\n[[stage]]\nnimg = 5\noptimizer.adam.lr = 1\n";
        let (config, problems) = read(text, &["stage.0.optimizer.adam.eps=1e-8"]);
        assert_eq!(problems, "");
        let config = config.unwrap();
        assert_eq!(config.sampler, Sampler::Heun { steps: 18 });
        let adam = Adam { lr: 1.0, eps: 1e-8 };
        assert_eq!(config.stage, [Stage { nimg: 5, optimizer: Some(Optimizer::Adam(adam)), flip: None }]);
    }

    #[test]
    fn all_problems_come_at_once_in_the_order_of_the_text() {
        let text = "\
name = 3

[checkpoints]
every_ming = 10
dtype = \"bf61\"
mult = [1, \"a\", 2, \"b\"]
betas = [0.9, true]

[[stage]]
optimizer.adam = { lr = \"1e-3\", esp = 0 }

[[stage]]
nimg = -1
flip = 'no'
colour = 1
[stage.optimizer.adan]
lr = 1

[[stage]]
nimg = 1
optimizer = \"adam\"
";
        let (config, problems) = read(text, &["stage.2.nimg=1.5", "sampler.huen.steps=3"]);
        assert!(config.is_none());
        let expected = "\
x.toml:1:8: name: expected a string, found integer `3`
x.toml:4:1: checkpoints.every_ming: unknown key `every_ming`, expected one of `every_nimg`, `dtype`, `mult`, `betas`. help: did you mean `every_nimg`?
x.toml:5:9: checkpoints.dtype: unknown choice `bf61`, expected `f32` or `bf16`. help: did you mean `bf16`?
x.toml:6:12: checkpoints.mult[1]: expected a whole number, 0 or more, found string \"a\"
x.toml:6:20: checkpoints.mult[3]: expected a whole number, 0 or more, found string \"b\"
x.toml:7:15: checkpoints.betas[1]: expected a number, found boolean `true`
x.toml:9:1: stage[0].nimg: missing, and there is no default
x.toml:10:25: stage[0].optimizer.adam.lr: expected a number, found string \"1e-3\"
x.toml:10:33: stage[0].optimizer.adam.esp: unknown key `esp`, expected `lr` or `eps`. help: did you mean `eps`?
x.toml:13:8: stage[1].nimg: expected a whole number, 0 or more, found integer `-1`
x.toml:14:8: stage[1].flip: expected true or false, found string \"no\"
x.toml:15:1: stage[1].colour: unknown key `colour`, expected one of `nimg`, `optimizer`, `flip`
x.toml:16:18: stage[1].optimizer.adan: unknown choice `adan`, expected `adam` or `radam`. help: did you mean `adam`?
x.toml:21:13: stage[2].optimizer: expected settings, found only the name `adam`. help: `optimizer.adam = {}` takes the defaults
x.toml: sampler.huen: unknown choice `huen`, expected `euler` or `heun` (from --set). help: did you mean `heun`?
x.toml: stage[2].nimg: expected a whole number, 0 or more, found floating point `1.5` (from --set)
";
        assert_eq!(problems, expected);
    }

    #[test]
    fn what_remains_is_read_where_it_keeps_its_places() {
        let text = "name = 'a'\nnmae = 'b'\n[checkpoints]\nevery_nimg = 'x'\nmult = [2]\n";
        let (config, problems) = read(text, &[]);
        assert_eq!(problems.lines().count(), 2, "{problems}");
        let checkpoints = config.unwrap().checkpoints;
        assert_eq!((checkpoints.every_nimg, checkpoints.mult), (0, vec![2]));
        let (config, _) = read("name = 'a'\n[checkpoints]\nmult = [2, 'x']\n", &[]);
        assert!(config.is_none());
    }

    #[test]
    fn missing_keys_point_at_their_table() {
        assert_eq!(problems(""), "x.toml:1:1: name: missing, and there is no default\n");
        let text = "name = 'a'\n[[stage]]\nnimg = 1\n\n[[stage]]\nflip = true\n";
        assert_eq!(problems(text), "x.toml:5:1: stage[1].nimg: missing, and there is no default\n");
        let (_, problems) = read("name = 'a'\n", &["sampler={ heun = {} }"]);
        assert_eq!(problems, "x.toml: sampler.heun.steps: missing, and there is no default (from --set)\n");
    }

    #[test]
    fn two_choices_or_none_are_refused() {
        let two = "name = 'a'\n[[stage]]\nnimg = 1\noptimizer.adam = {}\noptimizer.radam = {}\n";
        assert_eq!(
            problems(two),
            "x.toml:4:1: stage[0].optimizer: expected exactly one choice as a key, found `adam` and `radam`\n"
        );
        let none = "name = 'a'\n[[stage]]\nnimg = 1\noptimizer = {}\n";
        assert_eq!(
            problems(none),
            "x.toml:4:13: stage[0].optimizer: expected exactly one choice as a key, found none\n"
        );
    }

    #[test]
    fn tables_and_values_are_not_mistaken_for_each_other() {
        assert_eq!(
            problems("name = 'a'\ncheckpoints = 1\nstage = [3]\n"),
            "x.toml:2:15: checkpoints: expected a table, found integer `1`\n\
             x.toml:3:10: stage[0]: expected a table, found integer `3`\n"
        );
        assert_eq!(
            problems("sampler.euler.steps = 1\n[name]\nx = 1\n[stage]\n"),
            "x.toml:1:9: sampler.euler: this choice takes no settings\n\
             x.toml:2:1: name: expected a string, found a table\n\
             x.toml:4:1: stage: expected an array, found a table\n"
        );
    }

    #[test]
    fn suggestions_are_near() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        let message = "unknown field `lrr`, expected one of `lr`, `eps`";
        assert_eq!(nearest(message).as_deref(), Some("did you mean `lr`?"));
        assert_eq!(nearest("unknown field `momentum`, expected `lr` or `eps`"), None);
        assert_eq!(nearest("unknown field `x`, there are no fields"), None);
    }
}
