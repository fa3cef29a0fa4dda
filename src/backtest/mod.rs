//! What a log would come to under a price list: commands and usage folded with the ledger alone, without Kafka or Redis.
//!
//! Records are taken in the order of the file, and time is their own: meter time is the largest time that any record
//! before had. When it reaches the end of a cycle, or of a grant, that happens before the next record is judged, for idle
//! accounts too; what is dated before and comes later is late use. So the same file always gives the same statements,
//! however its records are cut into calls.

/// Records through the ledger.
mod fold;
/// Lines of a file to records.
pub mod lines;
/// What is told of each cycle.
pub mod statement;
/// What became of the records.
pub mod tally;

pub use fold::{Fold, Settings};

#[cfg(test)]
mod tests;
