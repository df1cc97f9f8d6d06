//! What can be wrong with a pickle.

use thiserror::Error;

/// Why a pickle was not read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// It ends early.
    #[error("the pickle is cut off at byte {0}")]
    CutOff(usize),
    /// An opcode that is not known or not needed by data.
    #[error("the pickle has opcode 0x{code:02x} at byte {at}, which data does not need: refused")]
    Opcode {
        /// The opcode.
        code: u8,
        /// Where.
        at: usize,
    },
    /// A class or function that is not on the list.
    #[error(
        "the pickle names `{0}`, which weights and arrays do not need: refused; where it was made, save its state \
             dict or array alone"
    )]
    Forbidden(String),
    /// Opcodes that do not fit together.
    #[error("the pickle is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: usize,
        /// What does not fit.
        what: String,
    },
    /// A sound pickle of something else.
    #[error("{0}")]
    Unexpected(String),
}

/// What reading gives.
pub type Result<T> = std::result::Result<T, Error>;
