//! Commands that were refused, as the meter told: they stay refused. Whether a plan was there, or a balance would have
//! become too large, depended on a price list and on usage of then.

use std::collections::BTreeMap;

use rustc_hash::FxHashSet;

use super::recorded::Names;
use crate::ingest::log::{LogRecord, Span};
use crate::ingest::recorded::{answer, answered};
use crate::ledger::call::OutboxEntry;
use crate::pipeline::recorded::Decision;

/// The refused commands, by their offsets.
#[derive(Debug, Default)]
pub struct Refusals {
    published: FxHashSet<i64>,
    /// Told in an outbox alone, when it was looked at.
    waiting: FxHashSet<i64>,
    /// How far the ledger topic is read, by partition.
    read: BTreeMap<i32, i64>,
}

impl Refusals {
    /// Goes on from what a saved point knows.
    pub fn from_saved(offsets: &[i64], read: &BTreeMap<i32, i64>) -> Refusals {
        Refusals { published: offsets.iter().copied().collect(), waiting: FxHashSet::default(), read: read.clone() }
    }

    pub fn holds(&self, offset: i64) -> bool {
        self.published.contains(&offset) || self.waiting.contains(&offset)
    }

    /// Takes a line of the ledger that waits in an outbox.
    pub fn wait(&mut self, entry: &OutboxEntry) {
        if let Some((offset, Decision::Refused(_))) = answer(&entry.id, &entry.data) {
            self.waiting.insert(offset);
        }
    }

    /// Takes a message of the ledger topic, if it is this meter's.
    pub fn hear(&mut self, meter: &Names, record: &LogRecord<'_>) {
        let told = answered(&meter.source, record.value.unwrap_or_default());
        if let Some(told) = told.filter(|told| matches!(told.decision, Decision::Refused(_))) {
            self.published.insert(told.offset);
        }
        self.read.insert(record.partition, record.offset + 1);
    }

    /// What is left to read of these.
    pub fn unread(&self, spans: Vec<Span>) -> Vec<Span> {
        let from = |span: &Span| self.read.get(&span.partition).copied().unwrap_or(0).max(span.from);
        spans.into_iter().map(|span| Span { from: from(&span), ..span }).collect()
    }

    /// For a saved point: what an outbox alone tells of may be undone with it.
    pub fn to_saved(&self) -> (Vec<i64>, BTreeMap<i32, i64>) {
        let mut offsets: Vec<i64> = self.published.iter().copied().collect();
        offsets.sort_unstable();
        (offsets, self.read.clone())
    }
}
