//! What a run leaves for people to look at: contact sheets of samples, the table of results, a page with all of it, and
//! TensorBoard's event files.
//!
//! Plain numbers and images in, files and text out: nothing here knows models.
//!
//! ```
//! use lcsc_report::{Mark, Page, Part, Plot, Section, Series, columns};
//! # fn main() -> lcsc_report::Result<()> {
//! let points = vec![(0.0, 3.0), (1000.0, 1.5), (2000.0, 1.2)];
//! let loss = Series { name: "edm".into(), mark: Mark::Line, points };
//! let plot = Plot { x: "images".into(), y: "loss".into(), series: vec![loss] };
//! let training = Section { title: "Training".into(), text: String::new(), parts: vec![Part::Plot(plot)] };
//! let page = Page { title: "A run".into(), sections: vec![training], footer: String::new() };
//! assert!(page.html()?.contains("<svg")); // one file that needs nothing beside it
//!
//! assert_eq!(columns(&["model", "FD"], &[vec!["LCSC".into(), "0.91".into()]]), "model    FD\nLCSC   0.91\n");
//! # Ok(())
//! # }
//! ```

mod columns;
mod error;
mod font;
mod grid;
mod page;
mod plot;
mod summary;
pub mod tensorboard;

pub use columns::columns;
pub use error::{Error, Result};
pub use grid::{ImageBatch, write_comparison, write_grid, write_image};
pub use page::{Cell, Page, Part, Row, Section, Table};
pub use plot::{Mark, Plot, Series};
pub use summary::{Machine, Metric, Model, ModelLabel, Search, Stage, Summary, figure, table};
