//! credit-meter: counts what a team's reveals and enrichments cost.
//! ARCHITECTURE.md is the map; the modules stand in reading order.

/// The specification: what a record does to a team's credits. Pure.
pub mod ledger;
/// Where shards are kept: Redis with Lua, or memory.
pub mod store;
/// Every metric, a function each.
pub mod metrics;
