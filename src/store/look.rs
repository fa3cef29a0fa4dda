//! Accounts as they are at one moment, together with the positions that they are worth. Reads only.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::NaiveDate;

use super::keys::{Key, Keys};
use super::scripts::Script;
use super::stored::{number, parse_days, parse_ids, parse_marks, parse_member_count, parse_shard};
use super::usage::parse_usage;
use super::words::{Fields, Input};
use super::{RedisStore, ShardState, StoreError};
use crate::ledger::call::{OutboxEntry, Output};
use crate::ledger::day::Layout;
use crate::ledger::members::MemberCounts;
use crate::ledger::usage::DayUsage;

/// Entries of an outbox that are read at once: each may hold 256 KiB.
const OUTBOX_PAGE: usize = 100;
/// Accounts that one step through the due set aims at.
const DUE_PAGE: usize = 1_000;

/// A look at some accounts of one shard.
pub struct LookScript<'a> {
    pub shard: u32,
    pub accounts: &'a [Asked],
}

/// An account to look at, and what it is believed to have: its `days` and `once`, and where it counts what members use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    pub account: Arc<str>,
    pub days: String,
    pub once: String,
    /// Cycles in which use is counted by member.
    pub cycles: Vec<i32>,
    /// The first and the last of the days of usage.
    pub usage: Option<(NaiveDate, NaiveDate)>,
}

impl Asked {
    /// The hash of an account, and nothing that belongs to it.
    pub fn account(account: &str) -> Asked {
        Asked { account: account.into(), ..Asked::default() }
    }

    /// How many keys hold what belongs to the account.
    pub fn keys(&self) -> Result<usize, StoreError> {
        let days: usize = parse_days(&self.days)?.iter().map(|(_, layout)| layout.sets().count()).sum();
        let marks: usize = parse_marks(&self.once)?.values().map(|layout| layout.sets().count()).sum();
        Ok(days + marks + self.cycles.len() + 2 * self.usage_days().count())
    }

    fn usage_days(&self) -> impl Iterator<Item = NaiveDate> {
        let days = self.usage.map(|(from, to)| from.iter_days().take_while(move |day| *day <= to));
        days.into_iter().flatten()
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
    /// What was charged to members, by cycle.
    pub members: BTreeMap<i32, MemberCounts>,
    /// The days that were asked for and have usage.
    pub usage: Vec<StoredDay>,
}

/// A day's usage as it is stored, which takes a fraction of what it is read to.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredDay {
    pub day: NaiveDate,
    journal: Box<[u8]>,
    /// The fields and values of its hash, a length before each.
    hash: Box<[u8]>,
}

impl StoredDay {
    pub fn read(&self) -> Result<DayUsage, String> {
        let mut fields = Vec::new();
        let mut rest = &*self.hash;
        let mut next = || {
            let (length, behind) = rest.split_first_chunk()?;
            let (bytes, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
            rest = behind;
            Some(bytes.to_vec())
        };
        while let (Some(field), Some(value)) = (next(), next()) {
            fields.push((field, value));
        }
        parse_usage(fields, &self.journal)
    }

    /// A journal of the events charged, thousandths, events denied and free of members and actions.
    #[cfg(test)]
    pub fn of(day: NaiveDate, rows: &[(&str, &str, [i64; 4])]) -> StoredDay {
        let of = |i: usize| rows.iter().map(|(.., numbers)| numbers[i]).collect::<Vec<_>>();
        let (actions, users): (Vec<&str>, Vec<&str>) = rows.iter().map(|(user, action, _)| (*action, *user)).unzip();
        let (places, none): (Vec<usize>, Vec<i64>) = (1..=rows.len()).map(|place| (place, 0)).unzip();
        let mut journal = rmp_serde::to_vec(&(actions, users, &places, of(0), of(1), of(3))).expect("numbers");
        journal.extend(rmp_serde::to_vec(&(&places, &none, &none, of(2), &none)).expect("numbers"));
        StoredDay { day, journal: journal.into(), hash: Box::default() }
    }

    /// From what a script answers.
    fn from_reply(day: NaiveDate, fields: &mut Fields) -> Result<StoredDay, StoreError> {
        let journal = fields.bytes()?.into();
        let mut hash = Vec::new();
        for _ in 0..2 * number::<usize>(&fields.text()?)? {
            let bytes = fields.bytes()?;
            hash.extend(u32::try_from(bytes.len()).expect("a value fits into memory").to_le_bytes());
            hash.extend(bytes);
        }
        Ok(StoredDay { day, journal, hash: hash.into() })
    }
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
            input.number(asked.cycles.len());
            input.number(asked.usage_days().count());
            input.key(keys, Key::Commands(&asked.account));
            for set in sets {
                input.key(keys, set);
            }
            for cycle in &asked.cycles {
                input.key(keys, Key::Members(&asked.account, *cycle));
            }
            for day in asked.usage_days() {
                input.key(keys, Key::Usage(&asked.account, day));
                input.key(keys, Key::Journal(&asked.account, day));
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
            for cycle in &asked.cycles {
                let counts = hash(&mut fields)?.into_iter().map(|(field, used)| parse_member_count(&field, &used));
                looked.members.insert(*cycle, counts.collect::<Result<_, _>>()?);
            }
            let days: Vec<NaiveDate> = asked.usage_days().collect();
            for _ in 0..number::<usize>(&fields.text()?)? {
                let place: usize = number(&fields.text()?)?;
                let day = place.checked_sub(1).and_then(|place| days.get(place));
                let day =
                    day.ok_or_else(|| StoreError::Broken(format!("look answers day {place} of {}", days.len())))?;
                looked.usage.push(StoredDay::from_reply(*day, &mut fields)?);
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
