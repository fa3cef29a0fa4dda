//! A record of an input topic, read and decoded.

use std::sync::Arc;

use crate::ledger::call::Partition;
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
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Usage(Arc<UsageEvent>),
    Command(Box<Command>),
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
            Body::Dead { account, .. } => account.as_ref(),
        }
    }

    /// The shard that the record belongs to.
    pub fn shard(&self, shards: u32) -> u32 {
        match self.account() {
            Some(account) => shard_of(account, shards),
            None => self.partition.index.unsigned_abs() % shards,
        }
    }
}
