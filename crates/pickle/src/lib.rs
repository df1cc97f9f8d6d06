//! A restricted reader of Python pickles: data alone, nothing is ever executed.
//!
//! [`Pickle::parse`] follows the opcodes and gives a graph of [`Node`]s. Calls and objects are kept as what they are, the name of
//! a function or class with its arguments and state; none is looked up or run. Names have to be on the list of what
//! weights and arrays need ([`is_allowed`]), anything else is refused by name. References are ids, so that values that occur
//! twice are shared and a cycle is no danger to the reader; whoever walks the graph bounds its own depth.
//!
//! Memory is bounded by the length of the input (about 200 bytes for each of its at most): strings and bytes are borrowed from
//! it, and each opcode adds one node at most.
//!
//! ```
//! use lcsc_pickle::{Pickle, numpy::Array};
//! # fn main() -> lcsc_pickle::Result<()> {
//! let file = b"\x80\x02}U\x06labels]K\x03as."; // {"labels": [3]}, as Python 2 writes it
//! let pickle = Pickle::parse(file)?;
//! let labels = pickle.get(pickle.root(), "labels").map(|id| pickle.tuple(id)).transpose()?.unwrap_or_default();
//! assert_eq!(pickle.int(labels[0])?, 3);
//! assert!(Array::read(&pickle, labels[0]).is_err()); // an integer, no array
//! # Ok(())
//! # }
//! ```

mod allowed;
mod error;
mod machine;
mod node;
pub mod numpy;

pub use allowed::is_allowed;
pub use error::{Error, Result};
pub use node::{Id, Node, Object, Pickle};

#[cfg(test)]
mod tests;
