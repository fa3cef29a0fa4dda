//! credit-meter: counts what a team's reveals and enrichments cost.
//! ARCHITECTURE.md is the map; the modules stand in reading order.

/// The wiring: how a meter starts, works and stops.
pub mod app;
/// The log folded again and compared with Redis, apart from the meter.
pub mod audit;
/// A file of events folded under a price list, with the ledger alone.
pub mod backtest;
/// The commands.
pub mod cli;
/// The only reader of files and environment.
pub mod config;
/// A whole meter in one process, with nothing installed.
pub mod demo;
/// Where a test ends the process as if it were killed.
pub mod failpoint;
/// A file that is whole, or as it was before.
pub mod file;
/// /metrics, /livez and /readyz, and accounts where that is on.
pub mod http;
/// Kafka: reading, decoding, dead letters.
pub mod ingest;
/// The specification: what a record does to a team's credits. Pure.
pub mod ledger;
/// The log on stderr.
pub mod log;
/// Every metric, a function each.
pub mod metrics;
/// Messages from the shards' outboxes to Kafka.
pub mod outbox;
/// Batches, ranges and refusals: what to send to which shard. No IO.
pub mod pipeline;
/// What a team sees of its account: the same for the command line and over HTTP.
pub mod report;
/// JSON Schema of every message.
pub mod schema;
/// Where shards are kept: Redis with Lua, or memory.
pub mod store;
