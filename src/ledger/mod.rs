//! The specification of the credit meter: what a record does to a team's credits.
//!
//! Pure Rust: no clock, no IO, no async. Times are arguments, and the scripts in `store/lua` must give
//! the same answers (`tests/it/lua_vs_ledger.rs` compares them). In reading order:

/// A team: its configuration, counters and grants.
pub mod account;
/// Alerts: one message for each edge of a balance.
pub mod alerts;
/// How usage events are decided.
pub mod apply;
/// What a worker asks a shard, and what it answers.
pub mod call;
/// The price list: credit types, actions, plans.
pub mod catalogue;
/// Closed cycles, and late use of them.
pub mod closed;
/// Commands to accounts, and what they change.
pub mod command;
/// Amounts: integers of a thousandth of a credit.
pub mod credits;
/// Billing cycles: where one ends and the next begins.
pub mod cycle;
/// The days whose identities are kept, and their sets.
pub mod day;
/// A usage event, its identity and its price.
pub mod event;
/// Credits given, and the order in which they burn.
pub mod grants;
/// How much of a credit type each member may use in a cycle.
pub mod members;
/// What is charged once within a cycle.
pub mod once;
/// What a record can end as, and why.
pub mod outcome;
/// An account takes the steps that time asks of it.
pub mod roll;
/// One shard: the fence, the accounts and what was already seen.
pub mod shard;
/// What time does to an account: lots, cycles, statements.
pub mod steps;
/// Meter time, the floor, and what is forgotten below it.
pub mod time;
/// Usage by day, member and action.
pub mod usage;
/// Charges that are taken back.
pub mod void;
