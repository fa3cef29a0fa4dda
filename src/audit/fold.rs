//! The log, folded: what each account was asked for, and which records ended as dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::NaiveDate;
use rustc_hash::FxHashMap;

use super::commands::Commanded;
use super::look::{FirstLook, Positions, Seen};
use super::point::{Base, Point, PointError, SavedAccount};
use super::recorded::DeadLetters;
use super::refusals::Refusals;
use super::report::{Difference, Named, Report, Topics};
use super::slices::Slice;
use super::totals::Totals;
use crate::ledger::call::{Input, Partition};
use crate::ledger::catalogue::{Catalogue, Field};
use crate::ledger::command::Command;
use crate::ledger::event::{Identity, UsageEvent};
use crate::ledger::outcome::{DeadReason, Outcome};
use crate::ledger::shard::shard_of;
use crate::pipeline::record::{Body, Record};
use crate::store::look::LookedAccount;

/// What an audit holds together.
pub struct Fold<'a> {
    pub catalogue: &'a Catalogue,
    pub topics: &'a Topics,
    pub slice: Slice,
    pub first: &'a FirstLook,
    pub dead: &'a mut DeadLetters,
    pub refusals: &'a Refusals,
    pub totals: &'a mut Totals,
    /// Of usage below the cut of the point that is saved.
    pub settled: &'a mut Totals,
    pub cut: Option<&'a Positions>,
    pub point: Option<&'a Point>,
    pub report: &'a mut Report,
    pub accounts: FxHashMap<Arc<str>, Folded>,
    pub kinds: Kinds,
    /// Usage that the saved point cannot judge.
    pub fault: Option<PointError>,
}

/// What the log tells of an account up to its positions.
#[derive(Debug)]
pub struct Folded {
    pub shard: u32,
    pub positions: Arc<Positions>,
    pub floor_ms: i64,
    /// The first day whose usage the shard must still have; `None`: usage by day is not compared.
    pub usage_from: Option<NaiveDate>,
    /// `None`: no due set names it, so that nobody has looked at it.
    pub stored: Option<LookedAccount>,
    pub commanded: Commanded,
    pub attempts: Vec<Kept>,
    /// What some of them are charged once for, by partition and offset.
    pub once: BTreeMap<(i32, i64), Identity>,
    /// Which event a void takes back, by the void's partition and offset.
    pub voids: BTreeMap<(i32, i64), Identity>,
    /// What a saved point says of it.
    pub base: Base,
}

impl Folded {
    fn new(shard: u32, positions: Arc<Positions>, floor_ms: i64) -> Folded {
        Folded {
            shard,
            positions,
            floor_ms,
            usage_from: None,
            stored: None,
            commanded: Commanded::default(),
            attempts: Vec::new(),
            once: BTreeMap::new(),
            voids: BTreeMap::new(),
            base: Base::default(),
        }
    }

    #[cfg(test)]
    pub fn nobody() -> Folded {
        Folded::new(0, Arc::default(), 0)
    }

    fn attempt(&mut self, kept: Kept, event: &UsageEvent) {
        let place = (kept.partition, kept.offset);
        self.attempts.push(kept);
        if let Some(once) = event.once {
            self.once.insert(place, once);
        }
        if let Some(voids) = event.voids {
            self.voids.insert(place, voids);
        }
    }
}

/// A usage record that is not dead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    pub identity: Identity,
    pub append_ms: i64,
    pub time_ms: i64,
    pub offset: i64,
    pub partition: i32,
    pub kind: u32,
    /// Its member's place in [`Kinds::users`].
    pub user: u32,
}

impl Kept {
    pub fn dated_ms(&self) -> i64 {
        self.time_ms.min(self.append_ms)
    }
}

/// Action, quantity, outcome, the further fields that prices depend on, whether it can be charged once, and is a void.
type Kind = (Arc<str>, u64, Option<Arc<str>>, Box<[(Field, Arc<str>)]>, bool, bool);

/// What events ask for, apart from when and for whom: many ask for the same. And the members that they name.
#[derive(Debug, Default)]
pub struct Kinds {
    index: FxHashMap<Kind, u32>,
    /// An event of each kind.
    pub examples: Vec<UsageEvent>,
    user_index: FxHashMap<Arc<str>, u32>,
    /// `""`: the event names none.
    pub users: Vec<Arc<str>>,
}

impl Kinds {
    pub fn of(&mut self, event: &UsageEvent) -> u32 {
        let (action, outcome, fields) = (event.action.clone(), event.outcome.clone(), event.fields.clone());
        let key = (action, event.quantity, outcome, fields, event.once.is_some(), event.voids.is_some());
        *self.index.entry(key).or_insert_with(|| {
            self.examples.push(event.clone());
            u32::try_from(self.examples.len() - 1).expect("memory ends earlier")
        })
    }

    pub fn user_of(&mut self, event: &UsageEvent) -> u32 {
        let user = event.user.clone().unwrap_or_default();
        *self.user_index.entry(user).or_insert_with_key(|user| {
            self.users.push(user.clone());
            u32::try_from(self.users.len() - 1).expect("memory ends earlier")
        })
    }

    /// What is kept of an event.
    pub fn keep(&mut self, event: &UsageEvent, (partition, offset): (i32, i64), append_ms: i64) -> Kept {
        let (kind, user) = (self.of(event), self.user_of(event));
        Kept { identity: event.identity, append_ms, time_ms: event.time_ms, offset, partition, kind, user }
    }
}

impl<'a> Fold<'a> {
    /// Begins with the accounts that were looked at.
    pub fn see(&mut self, seen: Vec<Seen>) {
        for Seen { account, positions, floor_ms, usage_from, stored } in seen {
            let shard = self.shard_of(&account);
            let stored = Some(stored);
            let folded = Folded { usage_from, stored, ..Folded::new(shard, positions, floor_ms) };
            self.accounts.insert(account, folded);
        }
    }

    /// Goes on from what a saved point says. `None`: it is none that this program writes.
    pub fn restore(&mut self, saved: &SavedAccount) -> Option<()> {
        let shard = self.shard_of(&saved.account);
        let positions = &self.first.positions[shard as usize];
        let unseen = || Folded::new(shard, Arc::new(positions.clone()), 0);
        let folded = self.accounts.entry(saved.account.as_str().into()).or_insert_with(unseen);
        folded.base = Base::of(saved);
        for record in &saved.records {
            let event = record.event()?;
            let kept = self.kinds.keep(&event, (record.partition, record.offset), record.append_ms);
            folded.attempt(kept, &event);
        }
        Some(())
    }

    fn shard_of(&self, account: &str) -> u32 {
        shard_of(account, self.first.positions.len() as u32)
    }

    /// Takes the next record of a partition.
    pub fn record(&mut self, record: Record) {
        match &record.body {
            Body::Usage(event) if self.slice.holds(&event.account) => self.usage(&record, event),
            Body::Command(command) if self.slice.holds(&command.account) => self.command(&record, command),
            Body::Usage(_) | Body::Command(_) | Body::Tick => {}
            Body::Dead { reason, account } => {
                let own = match account {
                    Some(account) => self.slice.holds(account),
                    None => self.slice.holds_nameless(),
                };
                if own {
                    self.undecodable(&record, record.shard(self.first.positions.len() as u32), *reason);
                }
            }
        }
    }

    /// The account of a record that counts for it; `None` if it was not applied when the account was looked at.
    fn account(&mut self, name: &Arc<str>, record: &Record) -> Option<&mut Folded> {
        let shard = self.shard_of(name);
        let folded = match self.accounts.entry(name.clone()) {
            std::collections::hash_map::Entry::Occupied(occupied) => occupied.into_mut(),
            std::collections::hash_map::Entry::Vacant(vacant) => {
                let positions = Arc::new(self.first.positions[shard as usize].clone());
                if record.offset >= positions.at(record.partition) {
                    return None;
                }
                vacant.insert(Folded::new(shard, positions, 0))
            }
        };
        (record.offset < folded.positions.at(record.partition)).then_some(folded)
    }

    fn is_early(&self, shard: u32, partition: Partition, offset: i64) -> bool {
        offset < self.first.positions[shard as usize].at(partition)
    }

    fn usage(&mut self, record: &Record, event: &Arc<UsageEvent>) {
        if self.dead.take(record.partition, record.offset) {
            return self.count_dead(record, self.shard_of(&event.account));
        }
        let (partition, offset) = (record.partition, record.offset);
        let kept = self.kinds.keep(event, (partition.index, offset), record.append_ms);
        let (first, point) = (self.first, self.point);
        let Some(account) = self.account(&event.account, record) else { return };
        let shard = account.shard;
        account.attempt(kept, event);
        let tolerance_ms = first.shards[shard as usize].restamp_tolerance_ms;
        let judges = |point: &&Point| point.judges(shard, partition, offset, event.time_ms, tolerance_ms);
        if let Some(point) = point.filter(|point| !judges(point)) {
            let path = point.path.clone();
            self.fault.get_or_insert(PointError::DatedBefore { path, partition, offset });
        }
    }

    fn command(&mut self, record: &Record, command: &Command) {
        let shard = self.shard_of(&command.account);
        if self.dead.take(record.partition, record.offset) {
            return self.count_dead(record, shard);
        }
        let (catalogue, is_refused) = (self.catalogue, self.refusals.hold(record.offset, record.append_ms));
        let Some(account) = self.account(&command.account, record) else { return };
        let outcome = account.commanded.fold(catalogue, command, (record.offset, record.append_ms), is_refused);
        if self.is_early(shard, record.partition, record.offset) {
            self.totals.add(shard, record.partition, outcome);
        }
    }

    fn undecodable(&mut self, record: &Record, shard: u32, reason: DeadReason) {
        if self.dead.take(record.partition, record.offset) {
            return self.count_dead(record, shard);
        }
        if !self.is_early(shard, record.partition, record.offset) {
            return;
        }
        let account = record.account().map(|account| account.to_string());
        let named = self.topics.named(record.partition, record.offset, "unexplained", None);
        self.report.differs(unexplained(account, shard, reason, named));
    }

    fn count_dead(&mut self, record: &Record, shard: u32) {
        let (partition, offset) = (record.partition, record.offset);
        let folds = partition.input == Input::Usage && self.cut.is_some_and(|cut| offset < cut.at(partition));
        if self.is_early(shard, partition, offset) {
            let totals = if folds { &mut *self.settled } else { &mut *self.totals };
            totals.add(shard, partition, Outcome::DeadLettered);
        }
    }
}

/// A record that must have ended as a dead letter, and has none.
pub fn unexplained(account: Option<String>, shard: u32, reason: DeadReason, named: Named) -> Difference {
    Difference {
        account,
        shard,
        what: "dead letter".to_owned(),
        expected: format!("one: {}", reason.name()),
        found: "none".to_owned(),
        records: vec![named],
    }
}
