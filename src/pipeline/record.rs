//! A record of an input topic, read and decoded.

use std::sync::Arc;

use crate::ledger::call::{Anchor, LastRead, Partition};
use crate::ledger::command::Command;
use crate::ledger::event::UsageEvent;
use crate::ledger::outcome::DeadReason;
use crate::ledger::shard::shard_of;

#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub partition: Partition,
    pub offset: i64,
    /// When the broker appended it, or what stands for that (`events.age_from`).
    pub append_ms: i64,
    /// Of key and value, for the bounds of batches.
    pub bytes: usize,
    /// Of what the record holds: tells whether a log is still the one that was read.
    pub fingerprint: u64,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Usage(Arc<UsageEvent>),
    Command(Box<Command>),
    /// Nothing but a time: `credits.tick.v1`.
    Tick,
    /// Cannot be judged. It belongs to its account's shard where the bytes name an account: which shard a
    /// record belongs to must not depend on a setting or a version.
    Dead {
        reason: DeadReason,
        account: Option<Arc<str>>,
    },
}

impl Record {
    pub fn account(&self) -> Option<&Arc<str>> {
        match &self.body {
            Body::Usage(event) => Some(&event.account),
            Body::Command(command) => Some(&command.account),
            Body::Tick => None,
            Body::Dead { account, .. } => account.as_ref(),
        }
    }

    /// What a shard remembers of the log with its position.
    pub fn last_read(&self) -> LastRead {
        let anchor = Anchor { offset: self.offset, fingerprint: self.fingerprint };
        LastRead { anchor, reached_ms: self.append_ms }
    }

    /// The shard that the record belongs to.
    pub fn shard(&self, shards: u32) -> u32 {
        match self.account() {
            Some(account) => shard_of(account, shards),
            None => self.partition.index.unsigned_abs() % shards,
        }
    }
}

/// Records in stretches of one partition. A lane gets many of one together, so that what is known of the partition is
/// looked up once for them all.
pub fn runs(records: &[Record]) -> impl Iterator<Item = &[Record]> {
    records.chunk_by(|one, next| one.partition == next.partition)
}
