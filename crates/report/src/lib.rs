//! What a run leaves for people to look at: contact sheets of samples, the table of results, a page with all of it, and
//! TensorBoard's event files.
//!
//! Plain numbers and images in, files and text out: nothing here knows models.

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
