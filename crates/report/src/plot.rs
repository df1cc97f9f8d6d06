//! Plots as SVG text that takes its colours from the page around it.

use crate::error::{Error, Result};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::path::Path;

/// Pixels of a plot; the page scales it, so that its text can be read on a phone, too.
const SIZE: (u32, u32) = (480, 280);
/// A range of positive values that spans more than this factor is drawn logarithmically.
const LOGARITHMIC: f64 = 20.0;
/// Stands for the page's text colour, then for that of the grid, then for those of the series: [`themed`] puts the page's in.
const INK: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(1, 1, 2);
const fn colour(series: usize) -> RGBColor {
    RGBColor(1, 2, (series % COLOURS) as u8)
}
/// Colours that a page has for series.
pub(crate) const COLOURS: usize = 8;

/// How the points of a series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A line through them.
    Line,
    /// A dot each.
    Dots,
    /// A line from zero to each.
    Stems,
    /// The area between them and zero.
    Area,
}

/// Points of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// How it is drawn.
    pub mark: Mark,
    /// x and y; those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// A plot with named axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// What is plotted, with its unit.
    pub x: String,
    /// What is plotted, with its unit.
    pub y: String,
    /// What is drawn, from the back to the front.
    pub series: Vec<Series>,
}

impl Plot {
    /// The SVG element; none where there is nothing to draw. A wide range of positive values gets a logarithmic axis.
    ///
    /// # Errors
    /// The plot cannot be drawn.
    pub fn svg(&self) -> Result<Option<String>> {
        let series: Vec<(usize, Series)> = self.drawn().map(|(i, series)| (i, finite(series))).collect();
        let all = || series.iter().flat_map(|(_, s)| &s.points);
        let Some(x) = range(all().map(|p| p.0)) else { return Ok(None) };
        let from_zero = series.iter().any(|(_, s)| matches!(s.mark, Mark::Stems | Mark::Area));
        let zero = from_zero.then_some(0.0);
        let Some(y) = range(all().map(|p| p.1).chain(zero)) else { return Ok(None) };
        let mut text = String::new();
        let drawn = if !from_zero && y.start > 0.0 && y.end > LOGARITHMIC * y.start {
            let marks = marks(&y);
            self.draw(&mut text, &series, x, y.log_scale().with_key_points(marks))
        } else {
            let margin = 0.05 * (y.end - y.start);
            self.draw(&mut text, &series, x, y.start - margin..y.end + margin)
        };
        drawn.map_err(|e| Error::content(Path::new("plot"), e))?;
        Ok(Some(themed(&text)))
    }

    /// The series that have something to draw, with the numbers of their colours.
    pub(crate) fn drawn(&self) -> impl Iterator<Item = (usize, &Series)> {
        let is_drawn = |s: &Series| s.points.iter().any(|(x, y)| x.is_finite() && y.is_finite());
        self.series.iter().enumerate().map(|(i, s)| (i % COLOURS, s)).filter(move |(_, s)| is_drawn(s))
    }

    fn draw<Y>(
        &self,
        text: &mut String,
        series: &[(usize, Series)],
        x: std::ops::Range<f64>,
        y: Y,
    ) -> std::result::Result<(), String>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let failed = |e: &dyn std::fmt::Display| e.to_string();
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)
            .map_err(|e| failed(&e))?;
        let label = || ("sans-serif", 14).into_font().color(&INK);
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(label())
            .axis_desc_style(label())
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|v| number(*v))
            .y_label_formatter(&|v| number(*v))
            .draw()
            .map_err(|e| failed(&e))?;
        for (i, Series { mark, points, .. }) in series {
            let (colour, points) = (colour(*i), points.iter().copied());
            match mark {
                Mark::Line => chart.draw_series(LineSeries::new(points, colour.stroke_width(2))).map(drop),
                Mark::Dots => chart.draw_series(points.map(|p| Circle::new(p, 2, colour.filled()))).map(drop),
                Mark::Stems => {
                    let stem = |(x, y)| PathElement::new([(x, 0.0), (x, y)], colour.stroke_width(2));
                    chart.draw_series(points.map(stem)).map(drop)
                }
                Mark::Area => chart.draw_series(AreaSeries::new(points, 0.0, colour.filled())).map(drop),
            }
            .map_err(|e| failed(&e))?;
        }
        area.present().map_err(|e| failed(&e))
    }
}

fn finite(series: &Series) -> Series {
    let mut series = series.clone();
    series.points.retain(|(x, y)| x.is_finite() && y.is_finite());
    series
}

/// From the least to the greatest value, never empty.
fn range(values: impl Iterator<Item = f64>) -> Option<std::ops::Range<f64>> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    match low.total_cmp(&high) {
        std::cmp::Ordering::Less => Some(low..high),
        std::cmp::Ordering::Equal => Some(low - 0.5 * low.abs().max(1e-9)..high + 0.5 * high.abs().max(1e-9)),
        std::cmp::Ordering::Greater => None,
    }
}

/// 1, 2 and 5 times the powers of ten within a positive range.
fn marks(range: &std::ops::Range<f64>) -> Vec<f64> {
    let decades = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let all = decades.flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d)));
    all.filter(|v| range.contains(v)).collect()
}

/// A value of an axis in few characters: 0.25, 12, 40k, 1.5M.
fn number(value: f64) -> String {
    let short = |v: f64| {
        let digits = if v.abs() >= 100.0 {
            0
        } else if v.abs() >= 1.0 {
            1
        } else {
            3
        };
        let text = format!("{v:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
    };
    match value.abs() {
        v if v >= 1e6 => short(value / 1e6) + "M",
        v if v >= 1e4 => short(value / 1e3) + "k",
        // Where an axis adds up its marks, zero is what is left of rounding.
        v if v < 1e-12 => "0".into(),
        v if v < 1e-3 => format!("{value:.0e}"),
        _ => short(value),
    }
}

/// The page's colours in the place of the ones that stand for them, and a size that follows the page.
fn themed(svg: &str) -> String {
    let (width, height) = SIZE;
    let hex = |RGBColor(r, g, b)| format!("#{r:02X}{g:02X}{b:02X}");
    let fixed = [(INK, "var(--ink)".to_string()), (GRID, "var(--grid)".to_string())];
    let series = (0..COLOURS).map(|i| (colour(i), format!("var(--series-{i})")));
    let text = fixed.into_iter().chain(series).fold(svg.to_string(), |text, (c, name)| text.replace(&hex(c), &name));
    text.replace(&format!("width=\"{width}\" height=\"{height}\" viewBox"), "role=\"img\" viewBox")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(mark: Mark, points: Vec<(f64, f64)>) -> Plot {
        let series = vec![Series { name: "a".into(), mark, points }];
        Plot { x: "images".into(), y: "loss".into(), series }
    }

    #[test]
    fn axes_are_named_and_colours_are_the_pages() {
        for mark in [Mark::Line, Mark::Dots, Mark::Stems, Mark::Area] {
            let svg = plot(mark, vec![(0.0, 1.0), (50_000.0, 2.0), (100_000.0, f64::NAN)]).svg().unwrap().unwrap();
            assert!(svg.starts_with("<svg role=\"img\" viewBox") && svg.trim_end().ends_with("</svg>"), "{svg}");
            for part in ["images", "loss", "50k", "var(--ink)", "var(--grid)", "var(--series-0)"] {
                assert!(svg.contains(part), "{mark:?}: no {part} in {svg}");
            }
            assert!(!svg.contains("#010"), "{svg}");
        }
    }

    #[test]
    fn wide_ranges_are_logarithmic_and_nothing_is_no_plot() {
        let svg = plot(Mark::Line, vec![(0.0, 0.01), (1.0, 100.0)]).svg().unwrap().unwrap();
        for mark in ["0.02", "0.1", "50"] {
            assert!(svg.contains(&format!("\n{mark}\n")), "no {mark} in {svg}");
        }
        assert_eq!(plot(Mark::Line, vec![(0.0, f64::INFINITY)]).svg().unwrap(), None);
        assert!(plot(Mark::Dots, vec![(3.0, 0.0)]).svg().unwrap().is_some());
    }

    #[test]
    fn numbers_are_short() {
        let found = [0.0, 0.25, 12.0, 1234.0, 40_000.0, 1.5e6, -0.000_02].map(number);
        assert_eq!(found, ["0", "0.25", "12", "1234", "40k", "1.5M", "-2e-5"]);
    }
}
