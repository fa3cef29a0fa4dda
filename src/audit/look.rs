//! The state as Redis holds it: each account with the positions that it is worth, while the meter goes on.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::NaiveDate;

use super::AuditError;
use super::members::Window;
use super::slices::Slice;
use crate::ledger::account::Life;
use crate::ledger::call::{Input, Partition};
use crate::ledger::shard::is_being_rebuilt;
use crate::store::look::{Asked, LookedAccount};
use crate::store::stored::parse_view;
use crate::store::{RedisStore, Root, ShardState};

/// Accounts of one look. A script that reads so many keeps Redis for a few milliseconds.
const LOOK_ACCOUNTS: usize = 200;
/// Keys that one look asks for, unless a single account has more: a busy day has thousands of sets.
const LOOK_KEYS: usize = 5_000;
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

    /// Of the usage topic, by partition.
    pub fn of_usage(usage: Vec<i64>) -> Positions {
        Positions { usage, commands: 0 }
    }

    pub fn usage(&self) -> &[i64] {
        &self.usage
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
    /// Days below it may be forgotten.
    pub floor_ms: i64,
    /// The first day whose usage is kept, whole; `None`: usage by day is not looked at.
    pub usage_from: Option<NaiveDate>,
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
            if state.generation.as_ref().is_some_and(|name| is_being_rebuilt(name, &root.generation)) {
                return Err(AuditError::BeingRebuilt);
            }
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
pub async fn accounts(
    store: &RedisStore,
    first: &FirstLook,
    slice: Slice,
    window: Option<Window>,
) -> Result<Vec<Seen>, AuditError> {
    let mut all = Vec::new();
    for shard in 0..store.keys().shards() {
        let names = due(store, shard, slice).await?;
        for chunk in names.chunks(LOOK_ACCOUNTS) {
            look(store, first, shard, chunk, window, &mut all).await?;
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

pub async fn look(
    store: &RedisStore,
    first: &FirstLook,
    shard: u32,
    names: &[Arc<str>],
    window: Option<Window>,
    all: &mut Vec<Seen>,
) -> Result<(), AuditError> {
    let mut waiting: Vec<Asked> = names.iter().map(|account| Asked::account(account)).collect();
    for _ in 0..LOOKS_MAX {
        let mut changed = Vec::new();
        for part in parts(&waiting)? {
            let looked = store.look(shard, part).await?;
            let positions = Arc::new(Positions::of(&looked.shard));
            if positions.behind(&first.positions[shard as usize]) {
                return Err(AuditError::WentBack { shard });
            }
            let floor_ms = looked.shard.floor_ms;
            let usage_from = window.map(|window| window.first(&looked.shard));
            for (asked_for, stored) in part.iter().zip(looked.accounts) {
                // What to ask for stands in the account itself: an answer counts if it says the same.
                let asks = asks(&asked_for.account, &stored, &looked.shard, window);
                if asks != *asked_for {
                    changed.push(asks);
                } else {
                    let (account, positions) = (asked_for.account.clone(), positions.clone());
                    all.push(Seen { account, positions, floor_ms, usage_from, stored });
                }
            }
        }
        waiting = changed;
        if waiting.is_empty() {
            return Ok(());
        }
    }
    Err(AuditError::Restless { account: waiting[0].account.to_string() })
}

/// What belongs to an account, by what its hash says.
pub(super) fn asks(account: &Arc<str>, stored: &LookedAccount, shard: &ShardState, window: Option<Window>) -> Asked {
    let (days, once) = (stored.days().to_owned(), stored.once().to_owned());
    // One that cannot be read is told of when it is compared.
    let view = parse_view(&stored.fields).ok();
    let open = view.as_ref().filter(|view| view.life != Life::Closed).map(|view| view.cycle.number);
    let closed = view.iter().flat_map(|view| view.closed.keys().copied());
    let usage = window.zip(view.as_ref()).and_then(|(window, view)| window.days(shard, view));
    Asked { account: account.clone(), days, once, cycles: closed.chain(open).collect(), usage }
}

/// Parts of a question that ask for few keys each.
fn parts(asked: &[Asked]) -> Result<Vec<&[Asked]>, AuditError> {
    let mut parts = Vec::new();
    let (mut start, mut keys) = (0, 0);
    for (index, each) in asked.iter().enumerate() {
        let own = each.keys()?;
        if index > start && keys + own > LOOK_KEYS {
            parts.push(&asked[start..index]);
            (start, keys) = (index, 0);
        }
        keys += own;
    }
    parts.push(&asked[start..]);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_asks_for_few_keys() {
        let asked = |days: &str| Asked { days: days.to_owned(), once: " 3:2".to_owned(), ..Asked::account("acme") };
        let all =
            [asked(""), asked(" 7:1 8:1"), asked(" 7:1,4096 8:4096"), asked(" 8:4090"), asked(" 8:900"), asked(" 8:7")];
        let sizes: Vec<usize> = parts(&all).unwrap().into_iter().map(<[Asked]>::len).collect();
        assert_eq!(sizes, [2, 1, 2, 1]);
    }
}
