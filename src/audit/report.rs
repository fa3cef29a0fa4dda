//! What an audit found.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::ledger::call::{Input, Partition};
use crate::ledger::credits::Credits;

/// Differences that are kept with their records; the others are only counted.
const DIFFERENCES_MAX: usize = 1_000;
/// Records that are named for one difference.
pub const RECORDS_MAX: usize = 5;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub accounts_checked: u64,
    /// Differences between the log and Redis, all of them.
    pub mismatches: u64,
    /// Usage records below the positions at the start of the audit.
    pub records: u64,
    /// How they ended, as the log has it: at least so many, where it does not tell which of several attempts was decided.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// The same of commands.
    pub commands: BTreeMap<&'static str, u64>,
    /// Events of which nobody can tell which of several attempts was charged, or by which plan of its cycle, and for which
    /// the price depends on it: each of the prices was accepted.
    pub ambiguous: u64,
    /// Events that were taken for others: of the two halves of their identity only the remembered one is the same.
    pub collisions: u64,
    /// Days of accounts on which there was usage, compared by member and action; 0: `usage.breakdown` is off.
    pub usage_days: u64,
    /// Usage records that were read of the log, over all passes.
    pub records_read: u64,
    /// Usage records that the point stands for that was saved; `None`: none was.
    pub saved: Option<u64>,
    /// Why the point that was asked for could not be written; what the audit found stands nevertheless.
    pub save_fault: Option<String>,
    /// Usage records that lay beyond those positions at the end of the audit.
    pub lag_records: u64,
    /// How often the log was read.
    pub passes: u64,
    pub seconds: f64,
    /// The first of them.
    pub differences: Vec<Difference>,
}

/// Something that the log and Redis tell otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub account: Option<String>,
    pub shard: u32,
    /// What is different, such as `email.charged`.
    pub what: String,
    /// By the log.
    pub expected: String,
    /// In Redis.
    pub found: String,
    /// The first records that explain it.
    pub records: Vec<Named>,
}

/// A record, and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Named {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Credits>,
}

impl Report {
    pub fn differs(&mut self, difference: Difference) {
        self.mismatches += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }
}

/// Names records by their topics.
#[derive(Clone, Debug)]
pub struct Topics {
    pub usage: String,
    pub commands: String,
}

impl Topics {
    pub fn named(&self, partition: Partition, offset: i64, outcome: &'static str, cost: Option<Credits>) -> Named {
        let topic = match partition.input {
            Input::Usage => &self.usage,
            Input::Commands => &self.commands,
        };
        Named { topic: topic.clone(), partition: partition.index, offset, outcome, cost }
    }
}
