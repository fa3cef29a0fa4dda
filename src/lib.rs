//! credit-meter: counts what a team's reveals and enrichments cost.
//! ARCHITECTURE.md is the map; the modules stand in reading order.

/// The specification: what a record does to a team's credits. Pure.
pub mod ledger;
/// Batches, ranges and refusals: what to send to which shard. No IO.
pub mod pipeline;
/// Where shards are kept: Redis with Lua, or memory.
pub mod store;
/// Kafka: reading, decoding, dead letters.
pub mod ingest;
/// Messages from the shards' outboxes to Kafka.
pub mod outbox;
/// The wiring: how a meter starts, works and stops.
pub mod app;
/// A whole meter in one process, with nothing installed.
pub mod demo;
/// The commands.
pub mod cli;
/// /metrics, /livez and /readyz.
pub mod http;
/// Every metric, a function each.
pub mod metrics;
/// The only reader of files and environment.
pub mod config;
