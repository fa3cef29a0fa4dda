//! Where shards are kept: in Redis, or in memory for the demo. The only place that names redis.

/// What the settings say of where Redis is.
mod address;
/// The call that applies usage events.
pub mod apply_call;
/// What names the events of such a call.
mod apply_lines;
/// Rows of usage in such a call.
mod apply_rows;
/// One attempt for all who come while it is under way.
mod attempt;
/// How accounts stand.
pub mod census;
/// Messages leave only when what they tell of is on replicas, or on disk.
pub mod durable;
/// What Redis says of itself, for `check`.
pub mod info;
/// The keys, what each holds, and what absence means.
pub mod keys;
/// Accounts as they are at one moment, with their shard's positions.
pub mod look;
/// The shards as the ledger in memory.
pub mod memory;
/// The nodes of Redis, and a connection to each.
pub mod nodes;
/// The shards in a real Redis.
pub mod redis;
/// Redis' error answers.
pub mod refusal;
/// One typed struct for each Lua script.
pub mod scripts;
/// Where Sentinels say that the primary is.
mod sentinel;
/// Who has which slot of a Redis Cluster.
pub mod slots;
/// What the scripts have written, read.
pub mod stored;
/// Usage by day, member and action.
pub mod usage;
/// Keys, arguments and replies.
pub mod words;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use chrono::NaiveDate;

use crate::ledger::account::{AccountView, Counter};
use crate::ledger::call::{Anchor, Applied, ApplyCall, CommandCall, Commanded, OutboxEntry, Partition, Reply};
use crate::ledger::catalogue::CatalogueId;
use crate::ledger::day::Layout;
use crate::ledger::outcome::Outcome;
use crate::ledger::roll::RollCall;
use crate::ledger::shard::{InitCall, InitReply, NameReply};
use crate::ledger::time::{ForgetCall, TimeCall, TimeReply};
use crate::ledger::usage::{FoldUsageCall, ForgetUsageCall};
use crate::metrics;

pub use census::{Counted, CountedBalance};
pub use durable::{Durable, Level};
pub use memory::MemoryStore;
pub use redis::RedisStore;
pub use refusal::Refusal;

/// Why a store did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Nothing is known of the call: it may have been applied, or not, or may be applied yet. Sending it
    /// again does no harm, since the fence lets a range in once.
    #[error("no answer from redis at {place}: {reason}")]
    Indefinite { place: String, reason: String },
    /// The call was refused before its first write. Sent again, it is taken once the cause is gone.
    #[error("redis at {place} {}: {} ({told})", refusal.fault(), refusal.remedy())]
    Refused { place: String, refusal: Refusal, told: String },
    /// This Redis cannot be what the configuration wants of it.
    #[error("{0}")]
    Unfit(String),
    /// The answer or the state is none that this program writes. Sending again would not help.
    #[error("{0}")]
    Broken(String),
}

/// What is counted so far is not what an account has.
pub const BEING_REBUILT: &str = "a rebuild makes the state anew: wait until it is done; if none is running, one was interrupted: \
                                 `credit-meter rebuild` goes on from where it was";

/// A shard without a fence.
fn shard_lost(shard: u32) -> String {
    format!(
        "redis holds nothing of shard {shard}: if a meter has just started for the first time, ask again; else it was emptied: \
         restore its data, or `credit-meter rebuild`"
    )
}

impl StoreError {
    /// Its label in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            StoreError::Indefinite { .. } => metrics::INDEFINITE,
            StoreError::Refused { refusal, .. } => refusal.name(),
            StoreError::Unfit(_) => Refusal::Other.name(),
            StoreError::Broken(_) => metrics::BROKEN,
        }
    }
}

/// The root key: what names a state. Stored as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub schema: u32,
    pub generation: String,
    pub shards: u32,
    /// Where each usage partition started.
    pub usage_starts: Vec<i64>,
    pub commands_start: i64,
}

impl Root {
    pub fn starts(&self) -> Vec<(Partition, i64)> {
        let usage = self.usage_starts.iter().enumerate();
        let usage = usage.map(|(index, start)| (Partition::usage(index as i32), *start));
        usage.chain([(Partition::COMMANDS, self.commands_start)]).collect()
    }
}

/// A relay's request to a shard's outbox.
#[derive(Clone, Debug)]
pub struct TakeCall {
    /// Names the relay, for the lease.
    pub relay: String,
    pub lease_ms: u64,
    /// Entries that were published and may go.
    pub published: Vec<String>,
    pub count: usize,
    /// What must hold of the entries before they are given; `None`: nothing more than that they are applied.
    pub durable: Option<Durable>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// Another relay holds the lease.
    Held,
    Entries(Vec<(String, OutboxEntry)>),
    /// There are entries, but a failover could still undo what they tell of.
    NotDurable(String),
}

/// When an outbox entry was written, in ms since 1970, by Redis' clock; `None`: memory does not note it.
pub fn written_ms(entry_id: &str) -> Option<i64> {
    entry_id.split_once('-')?.0.parse().ok()
}

/// An account as `balance` and `account get` show it.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountState {
    pub view: AccountView,
    pub counters: Vec<(String, Counter)>,
    /// Events that were denied in the open cycle, by credit type.
    pub denied: BTreeMap<String, u64>,
}

/// A shard's positions and totals, for `balance`, metrics and tests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardState {
    /// `None`: it was never made, or its data are lost.
    pub generation: Option<String>,
    /// The version of its layout.
    pub schema: Option<u32>,
    pub positions: Vec<(Partition, i64)>,
    pub totals: Vec<(Partition, Outcome, u64)>,
    /// The last record below each position.
    pub anchors: Vec<(Partition, Anchor)>,
    /// The latest time of the records below the positions: events dated later were not priced yet.
    pub reached_ms: Option<i64>,
    pub meter_time_ms: i64,
    pub floor_ms: i64,
    /// The largest ever used.
    pub restamp_tolerance_ms: i64,
    /// When it was last counted anew, in seconds since 1970; 0: never.
    pub rebuilt_s: u32,
    /// Usage of earlier days was forgotten.
    pub usage_from: Option<NaiveDate>,
    pub catalogue: Option<CatalogueId>,
    /// Writes that were begun and those that were ended: Redis ran half of one where they differ.
    pub writes: [u64; 2],
}

/// Accounts with the days whose identities they keep, and where to go on (0: that was all).
pub type DaysPage = (u64, Vec<(Arc<str>, Vec<(i64, Layout)>)>);

/// Where the shards are kept.
#[derive(Clone)]
pub enum Store {
    Redis(RedisStore),
    Memory(MemoryStore),
}

macro_rules! either {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Store::Redis($store) => $call.await,
            Store::Memory($store) => Ok($call),
        }
    };
}

impl Store {
    /// The root key, made as proposed if there is none.
    pub async fn root(&self, proposed: &Root) -> Result<Root, StoreError> {
        either!(self, store => store.root(proposed))
    }

    /// The root key, if there is one.
    pub async fn stored_root(&self) -> Result<Option<Root>, StoreError> {
        either!(self, store => store.stored_root())
    }

    pub async fn init(&self, shard: u32, call: &InitCall) -> Result<InitReply, StoreError> {
        either!(self, store => store.init(shard, call))
    }

    pub async fn apply(&self, shard: u32, call: &ApplyCall) -> Result<Reply<Applied>, StoreError> {
        either!(self, store => store.apply(shard, call))
    }

    pub async fn command(&self, shard: u32, call: &CommandCall) -> Result<Reply<Commanded>, StoreError> {
        either!(self, store => store.command(shard, call))
    }

    pub async fn roll(&self, shard: u32, call: &RollCall) -> Result<Reply<()>, StoreError> {
        either!(self, store => store.roll(shard, call))
    }

    pub async fn take(&self, shard: u32, call: &TakeCall) -> Result<Taken, StoreError> {
        either!(self, store => store.take(shard, call))
    }

    pub async fn move_time(&self, shard: u32, call: &TimeCall) -> Result<TimeReply, StoreError> {
        either!(self, store => store.move_time(shard, call))
    }

    pub async fn forget(&self, shard: u32, call: &ForgetCall) -> Result<Option<u64>, StoreError> {
        either!(self, store => store.forget(shard, call))
    }

    /// Puts usage of days that have passed into as little memory as it can; gives how many of them. `None`: refused.
    pub async fn fold_usage(&self, shard: u32, call: &FoldUsageCall) -> Result<Option<u64>, StoreError> {
        match self {
            Store::Redis(store) => store.fold_usage(shard, call).await,
            Store::Memory(_) => Ok(Some(0)),
        }
    }

    /// Forgets usage; `None`: refused.
    pub async fn forget_usage(&self, shard: u32, call: &ForgetUsageCall) -> Result<Option<u64>, StoreError> {
        either!(self, store => store.forget_usage(shard, call))
    }

    /// About so many of a shard's open accounts, from a cursor on (0: from the start).
    pub async fn days(&self, shard: u32, cursor: u64, count: usize) -> Result<DaysPage, StoreError> {
        either!(self, store => store.days(shard, cursor, count))
    }

    /// Since when the oldest of some accounts has been there.
    pub async fn oldest(&self, shard: u32, cursor: u64, count: usize) -> Result<(u64, Option<i64>), StoreError> {
        either!(self, store => store.oldest(shard, cursor, count))
    }

    /// The accounts of a shard that time has something for up to a time, the longest due first.
    pub async fn due_by(
        &self,
        shard: u32,
        time_ms: i64,
        skip: usize,
        count: usize,
    ) -> Result<Vec<Arc<str>>, StoreError> {
        either!(self, store => store.due_by(shard, time_ms, skip, count))
    }

    /// The eviction policy, and whose it is, where it is one that deletes keys.
    pub async fn evicts(&self) -> Result<Option<String>, StoreError> {
        match self {
            Store::Redis(store) => {
                for node in store.primaries().await?.0 {
                    let info = info::RedisInfo::ask(store, &node).await?;
                    if let Some(policy) = info.field("maxmemory_policy").filter(|policy| *policy != "noeviction") {
                        return Ok(Some(format!("{policy} at {}", node.address)));
                    }
                }
                Ok(None)
            }
            Store::Memory(_) => Ok(None),
        }
    }

    /// Whether any key of a shard is there.
    pub async fn has_keys(&self, shard: u32) -> Result<bool, StoreError> {
        either!(self, store => store.has_keys(shard))
    }

    /// Names a shard's state anew: who works under the old name is refused from then on.
    pub async fn name(
        &self,
        shard: u32,
        from: &str,
        to: &str,
        rebuilt_s: Option<u32>,
    ) -> Result<NameReply, StoreError> {
        either!(self, store => store.name(shard, from, to, rebuilt_s))
    }

    /// Deletes a shard's fence: no call fits any more, and what is left of it must be wiped.
    pub async fn wipe_fence(&self, shard: u32) -> Result<u64, StoreError> {
        either!(self, store => store.wipe_fence(shard))
    }

    /// Deletes all keys of a shard, its fence first.
    pub async fn wipe(&self, shard: u32) -> Result<u64, StoreError> {
        either!(self, store => store.wipe(shard))
    }

    /// Whether this store can tell that a write is durable, or why not.
    pub async fn check_durable(&self, durable: &Durable) -> Result<(), StoreError> {
        match self {
            Store::Redis(store) => store.check_durable(durable).await,
            Store::Memory(_) => Ok(()),
        }
    }

    pub async fn shard_state(&self, shard: u32) -> Result<ShardState, StoreError> {
        either!(self, store => store.shard_state(shard))
    }

    /// How some accounts of one shard stand, in their order; `None`: there is none, or it is closed.
    pub async fn census(
        &self,
        accounts: &[Arc<str>],
        credit_types: &[String],
    ) -> Result<Vec<Option<Counted>>, StoreError> {
        match self {
            Store::Redis(store) => store.census(accounts, credit_types).await,
            Store::Memory(store) => Ok(store.census(accounts)),
        }
    }

    /// About so many of a shard's accounts, from a cursor on (0: from the start), and where to go on (0: that was all).
    pub async fn names(&self, shard: u32, cursor: u64, count: usize) -> Result<(u64, Vec<Arc<str>>), StoreError> {
        match self {
            Store::Redis(store) => store.names(shard, cursor, count).await,
            Store::Memory(store) => Ok((0, store.names(shard))),
        }
    }

    pub async fn account(&self, account: &str) -> Result<Option<AccountState>, StoreError> {
        either!(self, store => store.account(account))
    }
}
