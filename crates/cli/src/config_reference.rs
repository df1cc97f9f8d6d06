//! `lcsc config reference`: every key of config files as Markdown, out of their JSON schema.

use serde_json::{Map, Value};

const HEAD: &str = "\
# Config reference

Every key of a [config file](config.md), as `lcsc config reference` prints it. Sections are tables of the file, by the
path of their keys; values are TOML.

- A choice is written as one of its quoted names, or as a table with one of its keys: `sampler.heun = { steps = 9 }`.
- A table or choice that is left out has the default beside it; keys not shown there have the default of their own
  section. What is *unset* has no value; its description says what happens then.
";

/// A table, or a choice among tables: what has a section of its own.
struct Section<'a> {
    /// Every place where it stands.
    paths: Vec<String>,
    schema: &'a Value,
}

/// The schema and what of it has a section, in the order of the file.
struct Reference<'a> {
    schema: &'a Value,
    sections: Vec<Section<'a>>,
}

/// Markdown with a section for each table of the schema.
pub fn text(schema: &Value) -> String {
    let mut reference = Reference { schema, sections: Vec::new() };
    reference.collect("", schema);
    let sections = reference.sections.iter().map(|section| reference.section(section));
    HEAD.to_string() + &sections.collect::<String>()
}

impl<'a> Reference<'a> {
    /// Notes the section at a path, and all below it.
    fn collect(&mut self, path: &str, schema: &'a Value) {
        let target = self.target(schema);
        if !has_section(target) {
            return;
        }
        match self.sections.iter_mut().find(|section| std::ptr::eq(section.schema, target)) {
            Some(section) => section.paths.push(path.into()),
            None => self.sections.push(Section { paths: vec![path.into()], schema: target }),
        }
        for (key, value) in properties(target) {
            let path = join(path, key);
            match is_inline(value) {
                true => properties(value).for_each(|(key, value)| self.collect(&join(&path, key), value)),
                false => self.collect(&path, value),
            }
        }
    }

    /// What a value is: behind references, what may be unset, and the elements of an array.
    fn target(&self, schema: &'a Value) -> &'a Value {
        let reference = schema["$ref"].as_str().and_then(|path| self.schema.pointer(path.trim_start_matches('#')));
        let inner = reference.or_else(|| schema["anyOf"].get(0)).or_else(|| schema.get("items"));
        inner.map_or(schema, |inner| self.target(inner))
    }

    fn section(&self, section: &Section<'a>) -> String {
        let path = &section.paths[0];
        let heading = match path.matches('.').count() {
            _ if path.is_empty() => "## Top level".into(),
            0 => format!("## `{path}`"),
            _ => format!("### `{path}`"),
        };
        let others = match &section.paths[1..] {
            [] => String::new(),
            others => format!(" Also `{}`.", others.join("`, `")),
        };
        let rows: String = match section.schema.get("oneOf") {
            Some(ways) => self.choice_rows(elements(ways)),
            None => self.rows("", section.schema),
        };
        let columns = "| key | type | default | description |\n|---|---|---|---|\n";
        let table = if rows.is_empty() { "It has no keys.\n".into() } else { format!("{columns}{rows}") };
        format!("\n{heading}\n\n{}{others}\n\n{table}", description(section.schema))
    }

    /// A line for each key of a table.
    fn rows(&self, prefix: &str, table: &'a Value) -> String {
        let required = |key: &str| elements(&table["required"]).any(|name| name == key);
        let row = |(key, value): (&String, &'a Value)| {
            let default = match value.get("default") {
                _ if required(key) => "required".into(),
                None | Some(Value::Null) => "unset".into(),
                Some(default) => format!("`{}`", toml(&self.brief(default, value))),
            };
            row(&format!("`{prefix}{key}`"), &self.kind(value), &default, &self.meaning(value))
        };
        properties(table).map(row).collect()
    }

    /// A line for each name or key of a choice, and for the keys of tables that have no section.
    fn choice_rows(&self, ways: impl Iterator<Item = &'a Value>) -> String {
        let mut rows: Vec<String> = Vec::new();
        for way in ways {
            if let Some(name) = way["const"].as_str() {
                rows.push(row(&format!("`\"{name}\"`"), "name", "", &description(way)));
            }
            for (key, value) in properties(way) {
                let meaning = if value["description"].is_string() { self.meaning(value) } else { description(way) };
                let line = row(&format!("`{key}`"), &self.kind(value), "", &meaning);
                // What goes along with several ways is listed once.
                if !rows.contains(&line) {
                    rows.push(line);
                }
                rows.extend(is_inline(value).then(|| self.rows(&format!("{key}."), value)));
            }
        }
        rows.concat()
    }

    /// The type of a value, with a link to its section.
    fn kind(&self, value: &'a Value) -> String {
        let target = self.target(value);
        let section = self.sections.iter().find(|section| std::ptr::eq(section.schema, target));
        let name = match target {
            _ if target.get("oneOf").or_else(|| target.get("enum")).is_some() => "choice",
            _ => elements(&target["type"]).next().and_then(Value::as_str).unwrap_or("value"),
        };
        let name = if name == "object" { "table" } else { name };
        let plural = if is_array(value) { "s" } else { "" };
        let name = match section.map(|section| &section.paths[0]) {
            Some(path) => format!("[{name}{plural}](#{})", anchor(path)),
            None => format!("{name}{plural}"),
        };
        match (is_array(value), &value["minItems"]) {
            (true, Value::Null) => format!("array of {name}"),
            (true, count) => format!("array of {count} {name}"),
            (false, _) => name + &range(target),
        }
    }

    /// The description of a value, and the names it may have.
    fn meaning(&self, value: &'a Value) -> String {
        let target = self.target(value);
        let own = description(if value["description"].is_string() { value } else { target });
        let names = elements(&target["enum"]).map(|name| format!("<br>`{name}`"));
        let ways = elements(&target["oneOf"]).filter(|_| !has_section(target));
        let ways = ways.map(|way| format!("<br>`{}`: {}", way["const"], description(way)));
        own + &names.chain(ways).collect::<String>()
    }

    /// A default without what the keys below it have by themselves.
    fn brief(&self, value: &Value, schema: &'a Value) -> Value {
        let Value::Object(table) = value else { return value.clone() };
        let target = self.target(schema);
        let differs = |(key, value): (&String, &Value)| {
            let (_, property) = properties(target).find(|(name, _)| *name == key)?;
            let same = property.get("default").unwrap_or(&Value::Null) == value;
            (!same).then(|| (key.clone(), self.brief(value, property)))
        };
        Value::Object(table.iter().filter_map(differs).collect::<Map<_, _>>())
    }
}

/// Whether this is a table, or a choice of which some are tables.
fn has_section(schema: &Value) -> bool {
    schema["type"] == "object" || elements(&schema["oneOf"]).any(|way| way["type"] == "object")
}

/// Whether this is a table that is described in its place.
fn is_inline(schema: &Value) -> bool {
    schema["properties"].is_object()
}

fn is_array(schema: &Value) -> bool {
    schema["type"] == "array"
}

/// The keys of a table, or those of all ways of a choice.
fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let tables = std::iter::once(schema).chain(elements(&schema["oneOf"]));
    tables.filter_map(|table| table["properties"].as_object()).flatten()
}

/// The elements of an array, or the one value; nothing of null.
fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    match value {
        Value::Array(elements) => elements.as_slice(),
        Value::Null => &[],
        one => std::slice::from_ref(one),
    }
    .iter()
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

/// What GitHub makes of a heading.
fn anchor(path: &str) -> String {
    path.replace('.', "")
}

fn row(key: &str, kind: &str, default: &str, meaning: &str) -> String {
    format!("| {key} | {kind} | {default} | {meaning} |\n")
}

/// A doc comment in one line that may stand in a table.
fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

/// The bounds of a number, but for those of its type.
fn range(schema: &Value) -> String {
    let bound = |key: &str, sign: &str| schema.get(key).map(|bound| format!("{sign} {bound}"));
    let bounds = [("exclusiveMinimum", ">"), ("minimum", "≥"), ("maximum", "≤")];
    let bounds: Vec<String> = bounds.iter().filter_map(|(key, sign)| bound(key, sign)).collect();
    if bounds.is_empty() { String::new() } else { format!(" {}", bounds.join(", ")) }
}

fn toml(value: &Value) -> String {
    match value {
        // JSON writes small numbers with an exponent.
        Value::Number(number) => number.to_string(),
        value => toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_page_is_what_the_command_prints() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config-reference.md");
        let expected = text(&config::schema());
        let found = std::fs::read_to_string(page).unwrap();
        assert!(found == expected, "stale: write it with `lcsc config reference > docs/config-reference.md`");
    }

    #[test]
    fn every_link_has_its_section() {
        let text = text(&config::schema());
        let anchors: Vec<String> = text
            .lines()
            .filter_map(|l| l.split_once("# `"))
            .map(|(_, path)| anchor(path.trim_end_matches('`')))
            .collect();
        let links = || text.split("](#").skip(1).filter_map(|rest| rest.split(')').next());
        assert!(links().count() > 40);
        links().for_each(|link| assert_eq!(anchors.iter().filter(|a| *a == link).count(), 1, "{link}"));
    }
}
