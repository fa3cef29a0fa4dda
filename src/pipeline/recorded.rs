//! What was published about records that a shard has forgotten: it stands.
//!
//! A shard that falls back to an older state gets its records again. What was denied or found dead before, and told
//! to the world, is resent as that; the rest is decided anew.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::record::Record;
use crate::ledger::call::{Partition, Refusal};
use crate::ledger::credits::Credits;
use crate::ledger::event::{Identity, UsageEvent};
use crate::ledger::outcome::{DeadReason, Denial};

/// What was published about a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Denied(Denial),
    /// This much of its cost was not charged.
    Capped {
        uncovered: Credits,
    },
    Dead(DeadReason),
    /// A command that took effect, or was seen before.
    Answered,
    Refused(Refusal),
}

/// A decision, and the record that it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    pub partition: Partition,
    pub offset: i64,
    /// Of a usage event: another attempt at it must not be decided in its place.
    pub event: Option<(Arc<str>, Identity)>,
    pub decision: Decision,
}

/// The decisions about records that are not applied yet.
#[derive(Debug, Default)]
pub struct Recorded {
    by_offset: FxHashMap<(Partition, i64), Published>,
    by_event: FxHashMap<(Arc<str>, Identity), (Partition, i64)>,
}

impl Recorded {
    pub fn insert(&mut self, published: Published) {
        let place = (published.partition, published.offset);
        if let Some(event) = &published.event {
            self.by_event.insert(event.clone(), place);
        }
        self.by_offset.insert(place, published);
    }

    pub fn of(&self, record: &Record) -> Option<&Decision> {
        if self.by_offset.is_empty() {
            return None;
        }
        self.by_offset.get(&(record.partition, record.offset)).map(|published| &published.decision)
    }

    /// Whether a decision about another attempt at the event is still to come: then this one is the repeat.
    pub fn elsewhere(&self, record: &Record, event: &UsageEvent) -> bool {
        if self.by_event.is_empty() {
            return false;
        }
        let place = self.by_event.get(&(event.account.clone(), event.identity));
        place.is_some_and(|place| *place != (record.partition, record.offset))
    }

    /// The records are applied: what was remembered of them is in the shard now.
    pub fn applied(&mut self, records: &[Record]) {
        if self.by_offset.is_empty() {
            return;
        }
        for record in records {
            let removed = self.by_offset.remove(&(record.partition, record.offset));
            if let Some(event) = removed.and_then(|published| published.event) {
                self.by_event.remove(&event);
            }
        }
    }
}
