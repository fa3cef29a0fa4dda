//! Accounts as they are at one moment, together with the positions that they are worth. Reads only.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::{Key, Keys};
use super::scripts::Script;
use super::stored::{number, parse_days, parse_ids, parse_marks, parse_shard};
use super::words::{Fields, Input};
use super::{RedisStore, ShardState, StoreError};
use crate::ledger::call::{OutboxEntry, Output};
use crate::ledger::day::Layout;

/// Entries of an outbox that are read at once: each may hold 256 KiB.
const OUTBOX_PAGE: usize = 100;
/// Accounts that one step through the due set aims at.
const DUE_PAGE: usize = 1_000;

/// A look at some accounts of one shard.
pub struct LookScript<'a> {
    pub shard: u32,
    pub accounts: &'a [Asked],
}

/// An account to look at, and the `days` and `once` that it is believed to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub account: Arc<str>,
    pub days: String,
    pub once: String,
}

impl Asked {
    /// How many sets hold the account's identities and marks.
    pub fn sets(&self) -> Result<usize, StoreError> {
        let days: usize = parse_days(&self.days)?.iter().map(|(_, layout)| layout.sets().count()).sum();
        Ok(days + parse_marks(&self.once)?.values().map(|layout| layout.sets().count()).sum::<usize>())
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Looked {
    pub shard: ShardState,
    /// In the order of the question.
    pub accounts: Vec<LookedAccount>,
}

/// An account's hash, and how many identities are remembered for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LookedAccount {
    /// Empty: there is no such account.
    pub fields: BTreeMap<String, String>,
    /// Commands that were applied.
    pub commands: u64,
    /// Events, by UTC day.
    pub remembered: BTreeMap<i64, u64>,
    /// What was charged and is charged once, by cycle.
    pub marks: BTreeMap<i32, u64>,
    /// Generations of sets, by UTC day: a duplicate that came after a day had grown is remembered in both.
    pub generations: BTreeMap<i64, u64>,
}

impl LookedAccount {
    pub fn days(&self) -> &str {
        self.fields.get("days").map_or("", String::as_str)
    }

    pub fn once(&self) -> &str {
        self.fields.get("once").map_or("", String::as_str)
    }
}

/// The days that an account's `days` names, each with the sets that hold its identities.
fn day_sets<'a>(account: &'a str, days: &str) -> Result<Vec<(i64, Vec<Key<'a>>)>, StoreError> {
    let sets = |(day, layout): (i64, Layout)| (day, layout.sets().map(|set| Key::Day(account, day, set)).collect());
    Ok(parse_days(days)?.into_iter().map(sets).collect())
}

/// The cycles that an account's `once` names, each with the sets that hold its marks.
fn mark_sets<'a>(account: &'a str, once: &str) -> Result<Vec<(i32, Vec<Key<'a>>)>, StoreError> {
    let sets =
        |(cycle, layout): (i32, Layout)| (cycle, layout.sets().map(|set| Key::Marks(account, cycle, set)).collect());
    Ok(parse_marks(once)?.into_iter().map(sets).collect())
}

impl Script for LookScript<'_> {
    const NAME: &'static str = "look";
    const SOURCE: &'static str = include_str!("lua/look.lua");
    type Reply = Looked;

    fn input(&self, keys: &Keys) -> Input {
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        for asked in self.accounts {
            input.key(keys, Key::Account(&asked.account));
            let sets = day_sets(&asked.account, &asked.days).unwrap_or_default();
            let marks = mark_sets(&asked.account, &asked.once).unwrap_or_default();
            let sets = sets.into_iter().flat_map(|(_, sets)| sets);
            let sets: Vec<Key> = sets.chain(marks.into_iter().flat_map(|(_, sets)| sets)).collect();
            input.number(1 + sets.len());
            input.key(keys, Key::Commands(&asked.account));
            for set in sets {
                input.key(keys, set);
            }
        }
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Looked, StoreError> {
        let shard = parse_shard(&hash(&mut fields)?)?;
        let mut accounts = Vec::with_capacity(self.accounts.len());
        for asked in self.accounts {
            let mut looked = LookedAccount { fields: hash(&mut fields)?, ..LookedAccount::default() };
            looked.commands = number::<u64>(&fields.text()?)? + parse_ids(&looked.fields)?.len() as u64;
            for (day, sets) in day_sets(&asked.account, &asked.days)? {
                let mut members = 0;
                for _ in sets {
                    members += number::<u64>(&fields.text()?)?;
                }
                looked.remembered.insert(day, members);
            }
            for (cycle, sets) in mark_sets(&asked.account, &asked.once)? {
                let mut members = 0;
                for _ in sets {
                    members += number::<u64>(&fields.text()?)?;
                }
                looked.marks.insert(cycle, members);
            }
            for (day, layout) in parse_days(&asked.days)? {
                looked.generations.insert(day, layout.generations() as u64);
            }
            accounts.push(looked);
        }
        Ok(Looked { shard, accounts })
    }
}

fn hash(fields: &mut Fields) -> Result<BTreeMap<String, String>, StoreError> {
    let mut hash = BTreeMap::new();
    for _ in 0..number::<usize>(&fields.text()?)? {
        hash.insert(fields.text()?, fields.text()?);
    }
    Ok(hash)
}

impl RedisStore {
    pub async fn look(&self, shard: u32, accounts: &[Asked]) -> Result<Looked, StoreError> {
        self.run(&LookScript { shard, accounts }).await
    }

    /// How many accounts a shard's due set holds.
    pub async fn due_count(&self, shard: u32) -> Result<u64, StoreError> {
        self.read(redis::cmd("ZCARD").arg(self.keys().spell(Key::Due(shard)))).await
    }

    /// The next accounts of a shard's due set, and where to go on: 0 at the end. One may come twice.
    pub async fn due(&self, shard: u32, cursor: u64) -> Result<(u64, Vec<String>), StoreError> {
        let mut scan = redis::cmd("ZSCAN");
        scan.arg(self.keys().spell(Key::Due(shard))).arg(cursor).arg("COUNT").arg(DUE_PAGE);
        let (next, pairs): (u64, Vec<(String, String)>) = self.read(&scan).await?;
        Ok((next, pairs.into_iter().map(|(account, _)| account).collect()))
    }

    /// A shard's messages that are not published yet. One that goes meanwhile was published.
    pub async fn outbox(&self, shard: u32, mut each: impl FnMut(OutboxEntry)) -> Result<(), StoreError> {
        let key = self.keys().spell(Key::Outbox(shard));
        let mut from = "-".to_owned();
        loop {
            let mut range = redis::cmd("XRANGE");
            range.arg(&key).arg(&from).arg("+").arg("COUNT").arg(OUTBOX_PAGE);
            let entries: Vec<(String, BTreeMap<String, String>)> = self.read(&range).await?;
            let Some((last, _)) = entries.last() else { return Ok(()) };
            from = format!("({last}");
            for (id, mut fields) in entries {
                let mut take = |name: &str| {
                    fields.remove(name).ok_or_else(|| StoreError::Broken(format!("outbox entry {id} has no {name}")))
                };
                let output = take("output")?;
                each(OutboxEntry {
                    output: Output::from_name(&output)
                        .ok_or_else(|| StoreError::Broken(format!("outbox entry {id} is for `{output}`")))?,
                    id: take("id")?,
                    event_type: take("type")?,
                    account: take("account")?,
                    data: take("data")?,
                });
            }
        }
    }
}
