//! What a run leaves for people to look at: contact sheets of samples and the table of results.
//!
//! Plain numbers and images in, files and text out: nothing here knows models.

mod columns;
mod error;
mod font;
mod grid;
mod summary;

pub use columns::columns;
pub use error::{Error, Result};
pub use grid::{ImageBatch, write_comparison, write_grid, write_image};
pub use summary::{Metric, Model, ModelLabel, Search, Stage, Summary, figure, table};
