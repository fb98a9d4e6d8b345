//! What can go wrong, in the words that users read: the argument, what was found, what is expected.

use std::fmt;

/// A refusal or a fault. The variant says which exception Python raises, the text says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A dtype or a kind of object that is not supported (`TypeError`).
    Type(String),
    /// A shape, an option or an output that does not fit (`ValueError`).
    Value(String),
    /// A target that is not a class (`IndexError`).
    Index(String),
    /// Memory that the system does not give (`MemoryError`).
    Memory(String),
    /// The caller asked to stop; whoever asked knows why.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(text) | Self::Value(text) | Self::Index(text) | Self::Memory(text) => formatter.write_str(text),
            Self::Interrupted => formatter.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}

/// `Result` with the error of this crate.
pub type Result<T> = std::result::Result<T, Error>;
