//! The state as Redis holds it: each account with the positions that it is worth, while the meter goes on.

use std::collections::HashSet;
use std::sync::Arc;

use super::AuditError;
use super::slices::Slice;
use crate::ledger::call::{Input, Partition};
use crate::store::look::{Asked, LookedAccount};
use crate::store::{RedisStore, Root, ShardState};

/// Accounts of one look. A script that reads so many keeps Redis for a few milliseconds.
const LOOK_ACCOUNTS: usize = 200;
/// Looks at an account whose days change between being asked for and being read. They change about once a day.
const LOOKS_MAX: usize = 20;

/// The next offset to apply of each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    usage: Vec<i64>,
    commands: i64,
}

impl Positions {
    pub fn of(state: &ShardState) -> Positions {
        let mut positions = Positions::default();
        for (partition, offset) in &state.positions {
            positions.set(*partition, *offset);
        }
        positions
    }

    pub fn set(&mut self, partition: Partition, offset: i64) {
        match partition.input {
            Input::Commands => self.commands = offset,
            Input::Usage => {
                let index = usize::try_from(partition.index).expect("partitions count from 0");
                self.usage.resize(self.usage.len().max(index + 1), 0);
                self.usage[index] = offset;
            }
        }
    }

    pub fn at(&self, partition: Partition) -> i64 {
        match partition.input {
            Input::Commands => self.commands,
            Input::Usage => {
                usize::try_from(partition.index).ok().and_then(|index| self.usage.get(index)).copied().unwrap_or(0)
            }
        }
    }

    /// Those that have a position.
    pub fn partitions(&self) -> Vec<Partition> {
        let usage = (0..self.usage.len()).map(|index| Partition::usage(index as i32));
        usage.chain([Partition::COMMANDS]).collect()
    }

    /// Moves each position on to the other's, where that is larger.
    pub fn extend(&mut self, other: &Positions) {
        self.commands = self.commands.max(other.commands);
        self.usage.resize(self.usage.len().max(other.usage.len()), 0);
        for (own, other) in self.usage.iter_mut().zip(&other.usage) {
            *own = (*own).max(*other);
        }
    }

    /// Whether a position lies below the other's.
    pub fn behind(&self, other: &Positions) -> bool {
        self.commands < other.commands
            || other.usage.iter().enumerate().any(|(index, at)| self.at(Partition::usage(index as i32)) < *at)
    }
}

/// An account as it was at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    pub account: Arc<str>,
    /// What the account is worth: all records below, none above.
    pub positions: Arc<Positions>,
    pub stored: LookedAccount,
}

/// The shards at the start of an audit: their totals are compared for these positions.
#[derive(Clone, Debug)]
pub struct FirstLook {
    pub shards: Vec<ShardState>,
    pub positions: Vec<Positions>,
}

impl FirstLook {
    pub async fn take(store: &RedisStore, root: &Root) -> Result<FirstLook, AuditError> {
        let mut shards = Vec::new();
        for shard in 0..root.shards {
            let state = store.look(shard, &[]).await?.shard;
            if state.generation.as_ref() != Some(&root.generation) {
                return Err(AuditError::OtherGeneration { shard, stored: state.generation });
            }
            shards.push(state);
        }
        let positions = shards.iter().map(Positions::of).collect();
        Ok(FirstLook { shards, positions })
    }

    /// The end over all shards.
    pub fn end(&self) -> Positions {
        let mut end = Positions::default();
        for positions in &self.positions {
            end.extend(positions);
        }
        end
    }
}

/// Looks at all accounts of a slice that the due sets name.
pub async fn accounts(store: &RedisStore, first: &FirstLook, slice: Slice) -> Result<Vec<Seen>, AuditError> {
    let mut all = Vec::new();
    for shard in 0..store.keys().shards() {
        let names = due(store, shard, slice).await?;
        for chunk in names.chunks(LOOK_ACCOUNTS) {
            look(store, first, shard, chunk, &mut all).await?;
        }
    }
    Ok(all)
}

async fn due(store: &RedisStore, shard: u32, slice: Slice) -> Result<Vec<Arc<str>>, AuditError> {
    let mut names = HashSet::new();
    let mut cursor = 0;
    loop {
        let (next, found) = store.due(shard, cursor).await?;
        names.extend(found.into_iter().filter(|name| slice.holds(name)).map(Arc::<str>::from));
        if next == 0 {
            return Ok(names.into_iter().collect());
        }
        cursor = next;
    }
}

async fn look(
    store: &RedisStore,
    first: &FirstLook,
    shard: u32,
    names: &[Arc<str>],
    all: &mut Vec<Seen>,
) -> Result<(), AuditError> {
    let asked = |account: &Arc<str>, days: &str| Asked { account: account.clone(), days: days.to_owned() };
    let mut waiting: Vec<Asked> = names.iter().map(|account| asked(account, "")).collect();
    for _ in 0..LOOKS_MAX {
        let looked = store.look(shard, &waiting).await?;
        let positions = Arc::new(Positions::of(&looked.shard));
        if positions.behind(&first.positions[shard as usize]) {
            return Err(AuditError::WentBack { shard });
        }
        let mut changed = Vec::new();
        for (asked_for, stored) in waiting.iter().zip(looked.accounts) {
            // Which sets to ask for stands in the account itself: an answer counts if it says the same.
            if stored.days() != asked_for.days {
                changed.push(asked(&asked_for.account, stored.days()));
            } else {
                all.push(Seen { account: asked_for.account.clone(), positions: positions.clone(), stored });
            }
        }
        waiting = changed;
        if waiting.is_empty() {
            return Ok(());
        }
    }
    Err(AuditError::Restless { account: waiting[0].account.to_string() })
}
