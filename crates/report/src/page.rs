//! The report page: one HTML file that needs nothing beside it.

use crate::error::{Error, Result, write_atomic};
use crate::plot::Plot;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use serde::Serialize;
use std::path::Path;

/// A page of sections.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// What the page is called.
    pub title: String,
    /// Sections from the top to the bottom.
    pub sections: Vec<Section>,
    /// What made it.
    pub footer: String,
}

/// A part of the page under a heading; left out where none of its parts shows anything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// What is to be seen, in a sentence or two.
    pub text: String,
    /// What is seen.
    pub parts: Vec<Part>,
}

/// Something to look at.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Rows that can be sorted by a column.
    Table(Table),
    /// A plot with its legend.
    Plot(Plot),
    /// A PNG that is enlarged on a click, and what it shows.
    Picture {
        /// The file's bytes.
        png: Vec<u8>,
        /// What it shows.
        caption: String,
    },
    /// Names and values.
    Facts(Vec<(String, String)>),
    /// A text as it is, under a line that unfolds it.
    Text {
        /// The line.
        summary: String,
        /// The text.
        text: String,
    },
}

/// A table of text and numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// What the columns are.
    pub columns: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Row>,
}

/// A row of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// Cells as they are shown.
    pub cells: Vec<Cell>,
    /// Whether it is the one to look at.
    pub best: bool,
}

/// A cell of a table.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// What it is sorted by.
    pub value: Option<f64>,
}

impl Cell {
    /// A cell of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None }
    }

    /// A number as it is shown.
    pub fn number(value: f64, text: impl Into<String>) -> Self {
        Self { text: text.into(), value: Some(value) }
    }
}

/// A part as the template takes it.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum View<'a> {
    Table { columns: &'a [String], rows: Vec<(bool, &'a [Cell])> },
    Plot { svg: String, legend: Vec<(usize, &'a str)>, label: String },
    Picture { data: String, caption: &'a str },
    Facts { facts: &'a [(String, String)] },
    Text { summary: &'a str, text: &'a str },
}

impl Part {
    /// None for a plot of nothing.
    fn view(&self) -> Result<Option<View<'_>>> {
        Ok(Some(match self {
            Self::Table(table) => View::Table {
                columns: &table.columns,
                rows: table.rows.iter().map(|row| (row.best, row.cells.as_slice())).collect(),
            },
            Self::Plot(plot) => {
                let Some(svg) = plot.svg()? else { return Ok(None) };
                let legend = plot.drawn().map(|(i, series)| (i, series.name.as_str())).collect();
                View::Plot { svg, legend, label: format!("{} over {}", plot.y, plot.x) }
            }
            Self::Picture { png, caption } => {
                use base64::Engine;
                View::Picture { data: base64::engine::general_purpose::STANDARD.encode(png), caption }
            }
            Self::Facts(facts) => View::Facts { facts },
            Self::Text { summary, text } => View::Text { summary, text },
        }))
    }
}

impl Page {
    /// The HTML text.
    ///
    /// # Errors
    /// A plot cannot be drawn.
    pub fn html(&self) -> Result<String> {
        let section = |s: &Section| -> Result<_> {
            let parts: Vec<View> = s.parts.iter().filter_map(|part| part.view().transpose()).collect::<Result<_>>()?;
            let anchor: String = s.title.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
            Ok((!parts.is_empty()).then(|| context! { anchor, title => s.title, text => s.text, parts }))
        };
        let sections: Vec<_> = self.sections.iter().filter_map(|s| section(s).transpose()).collect::<Result<_>>()?;
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        let rendered = environment
            .render_str(include_str!("page.html"), context! { title => self.title, footer => self.footer, sections });
        rendered.map_err(|e| Error::content(Path::new("page.html"), format!("{e:#}")))
    }

    /// Writes the page, replacing the file whole.
    ///
    /// # Errors
    /// A plot cannot be drawn, or the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path.as_ref(), self.html()?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Mark, Series};

    #[test]
    fn a_page_holds_all_parts_escaped_and_needs_no_network() {
        let plot = |points| {
            let series = vec![Series { name: "<loss>".into(), mark: Mark::Line, points }];
            Part::Plot(Plot { x: "images".into(), y: "loss".into(), series })
        };
        let section = |title: &str, parts| Section { title: title.into(), text: "What is seen.".into(), parts };
        let table = Table {
            columns: vec!["model".into(), "FD".into()],
            rows: vec![
                Row { cells: vec![Cell::text("last"), Cell::number(2.5, "2.500")], best: false },
                Row { cells: vec![Cell::text("LCSC & co"), Cell::number(f64::INFINITY, "inf")], best: true },
            ],
        };
        let page = Page {
            title: "run <1>".into(),
            sections: vec![
                section("Results", vec![Part::Table(table)]),
                section("Loss", vec![plot(vec![(0.0, 1.0), (1.0, 2.0)])]),
                section("Nothing", vec![plot(vec![])]),
                section("Nothing at all", vec![]),
                section("Images", vec![Part::Picture { png: b"png".to_vec(), caption: "samples".into() }]),
                section("Facts", vec![Part::Facts(vec![("seed".into(), "0".into())])]),
                section("Config", vec![Part::Text { summary: "config.toml".into(), text: "a = \"<b>\"".into() }]),
            ],
            footer: "made".into(),
        };
        let html = page.html().unwrap();
        for part in [
            "<title>run &lt;1&gt;</title>",
            "LCSC &amp; co",
            "data-value=\"2.5\"",
            "&lt;loss&gt;",
            "data:image/png;base64,cG5n",
            "a = &quot;&lt;b&gt;&quot;",
            "prefers-color-scheme: dark",
            "<svg role=\"img\"",
        ] {
            assert!(html.contains(part), "no {part} in {html}");
        }
        assert!(!html.contains("Nothing"), "a section without parts is left out");
        let outside = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http://") && !outside.contains("https://") && !outside.contains("src=\"/"));
    }
}
