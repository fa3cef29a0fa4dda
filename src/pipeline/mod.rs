//! The way of records from partitions to shards, without IO: `on(Input) -> Vec<Effect>`.

/// A decoded record.
pub mod record;
