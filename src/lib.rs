//! credit-meter: counts what a team's reveals and enrichments cost.
//! ARCHITECTURE.md is the map; the modules stand in reading order.

/// The only reader of files and environment.
pub mod config;
/// Kafka: reading, decoding, dead letters.
pub mod ingest;
/// The specification: what a record does to a team's credits. Pure.
pub mod ledger;
/// Every metric, a function each.
pub mod metrics;
/// Batches, ranges and refusals: what to send to which shard. No IO.
pub mod pipeline;
/// Where shards are kept: Redis with Lua, or memory.
pub mod store;
