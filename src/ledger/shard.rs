//! One shard: its accounts, what was already seen, and the fence that lets each record in once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::NaiveDate;
use rustc_hash::FxHashMap;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::account::{AccountConfig, AccountView, Counter, Life};
use super::alerts::Alarm;
use super::call::{Anchor, Note, OutboxEntry, Partition, Range, Reply, SCHEMA, Stamp};
use super::catalogue::{Amount, CatalogueId};
use super::closed::ClosedCycle;
use super::credits::Credits;
use super::cycle::Cycle;
use super::day::{DaySets, Layout};
use super::grants::{GrantKind, Lots, Pool};
use super::members::Counts;
use super::outcome::{DeadReason, Outcome};
use super::usage::DayUsage;
use super::void::DayCharges;

/// The state of one shard. `None` of it exists before [`Shard::init`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shard {
    pub fence: Option<Fence>,
    pub accounts: FxHashMap<Arc<str>, Account>,
    /// Identities decided, by account and UTC day.
    pub seen: FxHashMap<(Arc<str>, i64), DaySets>,
    /// What voidable events were charged, by account and UTC day.
    pub charges: FxHashMap<(Arc<str>, i64), DayCharges>,
    /// Usage by account and day of its own zone.
    pub usage: FxHashMap<(Arc<str>, NaiveDate), DayUsage>,
    /// What was charged in a cycle and is charged once in it, by account and number of the cycle.
    pub marks: FxHashMap<(Arc<str>, i32), DaySets>,
    /// What was charged to the members of accounts that have limits for them.
    pub members: Counts,
    /// Identities of the commands that were applied to an account. Never forgotten.
    pub commands_seen: FxHashMap<Arc<str>, BTreeSet<i64>>,
    pub notes: BTreeMap<(Partition, i64), DeadReason>,
    pub outbox: Vec<OutboxEntry>,
    /// Entries taken from the front of the outbox so far.
    pub outbox_taken: u64,
}

/// What the shard compares a call with, and moves with each call.
#[derive(Clone, Debug, PartialEq)]
pub struct Fence {
    pub schema: u32,
    pub generation: String,
    pub shards: u32,
    pub catalogue: CatalogueId,
    /// What it was read from; empty where an older program has not kept it.
    pub catalogue_text: Arc<str>,
    pub meter_time_ms: i64,
    /// Events dated below it are too late. Only rises.
    pub floor_ms: i64,
    /// The largest ever used: how long past a day's end its identities are needed.
    pub restamp_tolerance_ms: i64,
    /// Usage of earlier days was forgotten.
    pub usage_from: Option<NaiveDate>,
    /// When its state was last counted anew, in seconds since 1970; 0: never. See [`super::closed::ClosedCycle::number`].
    pub rebuilt_s: u32,
    /// The next offset to apply. A partition that is not here starts at 0.
    pub positions: BTreeMap<Partition, i64>,
    /// The last record below each position, by which a topic that was made anew is told.
    pub anchors: BTreeMap<Partition, Anchor>,
    /// The time that each partition's records have reached.
    pub reached: BTreeMap<Partition, i64>,
    /// Records by how they ended.
    pub totals: BTreeMap<(Partition, Outcome), u64>,
}

impl Fence {
    /// The time up to which something may have been priced: an event, or a renewal by meter time.
    pub fn priced_up_to_ms(&self) -> Option<i64> {
        let meter_time_ms = Some(self.meter_time_ms).filter(|time_ms| *time_ms > 0);
        self.reached.values().copied().chain(meter_time_ms).max()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    pub version: u64,
    pub config: AccountConfig,
    /// What waits for the renewal.
    pub next: Option<AccountConfig>,
    pub life: Life,
    pub since_ms: i64,
    pub cycle: Cycle,
    pub counters: BTreeMap<String, Counter>,
    pub pools: BTreeMap<String, Pool>,
    pub lots: Lots,
    /// Levels that credit types are below.
    pub alarms: BTreeMap<String, Alarm>,
    /// Events that were denied in the open cycle, by credit type.
    pub denied: BTreeMap<String, u64>,
    /// Cycles to which late use may still be charged, by number.
    pub closed: BTreeMap<i32, ClosedCycle>,
    /// Days whose identities are kept, with their sets.
    pub days: BTreeMap<i64, Layout>,
    /// Cycles whose marks are kept, with their sets.
    pub marks: BTreeMap<i32, Layout>,
}

impl Account {
    pub fn view(&self) -> AccountView {
        AccountView {
            version: self.version,
            config: self.config.clone(),
            next: self.next.clone(),
            life: self.life,
            since_ms: self.since_ms,
            cycle: self.cycle,
            // One of nothing is not stored.
            pools: self
                .pools
                .iter()
                .filter(|(_, pool)| **pool != Pool::default())
                .map(|(k, v)| (k.clone(), *v))
                .collect(),
            lots: self.lots.clone(),
            closed: self.closed.clone(),
            days: self.days.clone(),
            marks: self.marks.clone(),
        }
    }

    /// Adds to what was granted, and gives what remained before and remains now; `None` where the balance would exceed
    /// its bound.
    pub fn grant(&mut self, credit_type: &str, kind: GrantKind, amount: Amount) -> Option<Remaining> {
        if self.fitting(credit_type, amount) != amount {
            return None;
        }
        let counter = self.counters.entry(credit_type.to_owned()).or_default();
        let before = counter.remaining();
        counter.granted = counter.granted.plus(amount);
        let after = counter.remaining();
        let pool = self.pools.entry(credit_type.to_owned()).or_default();
        pool.granted.add(kind, amount);
        if let Amount::Limited(credits) = amount
            && !matches!(kind, GrantKind::Topup | GrantKind::Promo)
        {
            pool.left += credits;
        }
        Some((before, after))
    }

    /// As much of an amount as the balance can take.
    pub fn fitting(&self, credit_type: &str, amount: Amount) -> Amount {
        let Amount::Limited(more) = amount else { return amount };
        let granted = self.pools.get(credit_type).map(|pool| pool.granted.counted()).unwrap_or_default();
        Amount::Limited(more.min(Credits::BALANCE_MAX - granted))
    }
}

/// What remained before a change, and after it; `None` where the type is unlimited.
pub type Remaining = (Option<Credits>, Option<Credits>);

/// Makes a shard, or checks that it is the one the worker believes.
#[derive(Clone, Debug, PartialEq)]
pub struct InitCall {
    pub generation: String,
    pub shards: u32,
    pub catalogue: CatalogueId,
    pub catalogue_text: Arc<str>,
    /// The catalogue that was found stored, where this one only adds to it.
    pub grown: Option<Grown>,
    /// Where each partition starts.
    pub starts: Vec<(Partition, i64)>,
    /// Whether the shard may be made: only until a worker may have applied anything to it.
    pub first_start: bool,
}

/// What a catalogue was compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Grown {
    pub from: CatalogueId,
    /// The first time at which the two differ.
    pub starts_ms: Option<i64>,
}

/// What the fences of a state are named while this rebuild works: only it may write meanwhile, since only it has all records in
/// their order. Of two rebuilds the one that came first is refused.
pub fn name_of_rebuild(generation: &str, id: Uuid) -> String {
    format!("{generation}{BEING_REBUILT}{id}")
}

pub fn is_name_of_rebuild(name: &str) -> bool {
    name.contains(BEING_REBUILT)
}

/// Whether a rebuild has given a state this name.
pub fn is_being_rebuilt(name: &str, generation: &str) -> bool {
    name.strip_prefix(generation).is_some_and(|rest| rest.starts_with(BEING_REBUILT))
}

const BEING_REBUILT: &str = ", being rebuilt by ";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameReply {
    Named,
    /// The state has this name, or there is none.
    OtherGeneration(Option<String>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum InitReply {
    Ready,
    /// It is empty, and it is not the first start: its counters were lost.
    Emptied,
    OtherGeneration(String),
    OtherShards(u32),
    OtherSchema(u32),
    /// The stored catalogue has a higher version, or the same with another content.
    OtherCatalogue(CatalogueId),
    /// The stored catalogue has a lower version, and the call's was not compared with it.
    OlderCatalogue(CatalogueId, Arc<str>),
    /// Events dated up to this time were priced by the stored catalogue, and the call's differs before.
    PricedUpTo(i64),
}

impl Shard {
    /// Gives the state another name: who works under the old one is refused from then on.
    pub fn name(&mut self, from: &str, to: &str, rebuilt_s: Option<u32>) -> NameReply {
        match &mut self.fence {
            Some(fence) if fence.generation == from => {
                to.clone_into(&mut fence.generation);
                fence.rebuilt_s = rebuilt_s.unwrap_or(fence.rebuilt_s);
                NameReply::Named
            }
            fence => NameReply::OtherGeneration(fence.as_ref().map(|fence| fence.generation.clone())),
        }
    }

    pub fn init(&mut self, call: &InitCall) -> InitReply {
        let Some(fence) = &mut self.fence else {
            if !call.first_start {
                return InitReply::Emptied;
            }
            self.fence = Some(Fence {
                schema: SCHEMA,
                generation: call.generation.clone(),
                shards: call.shards,
                catalogue: call.catalogue.clone(),
                catalogue_text: call.catalogue_text.clone(),
                meter_time_ms: 0,
                floor_ms: 0,
                restamp_tolerance_ms: 0,
                usage_from: None,
                rebuilt_s: 0,
                positions: call.starts.iter().copied().collect(),
                anchors: BTreeMap::new(),
                reached: BTreeMap::new(),
                totals: BTreeMap::new(),
            });
            return InitReply::Ready;
        };
        if fence.schema != SCHEMA {
            return InitReply::OtherSchema(fence.schema);
        }
        if fence.generation != call.generation {
            return InitReply::OtherGeneration(fence.generation.clone());
        }
        if fence.shards != call.shards {
            return InitReply::OtherShards(fence.shards);
        }
        if call.catalogue.version > fence.catalogue.version {
            let Some(grown) = call.grown.as_ref().filter(|grown| grown.from == fence.catalogue) else {
                return InitReply::OlderCatalogue(fence.catalogue.clone(), fence.catalogue_text.clone());
            };
            let reached_ms = fence.priced_up_to_ms();
            if let (Some(reached_ms), Some(starts_ms)) = (reached_ms, grown.starts_ms)
                && starts_ms <= reached_ms
            {
                return InitReply::PricedUpTo(reached_ms);
            }
            fence.catalogue = call.catalogue.clone();
            fence.catalogue_text = call.catalogue_text.clone();
        }
        if call.catalogue != fence.catalogue {
            return InitReply::OtherCatalogue(fence.catalogue.clone());
        }
        if fence.catalogue_text.is_empty() {
            fence.catalogue_text = call.catalogue_text.clone();
        }
        InitReply::Ready
    }

    pub fn position(&self, partition: Partition) -> i64 {
        self.fence.as_ref().and_then(|fence| fence.positions.get(&partition).copied()).unwrap_or(0)
    }

    /// The first three checks of every call: generation, ranges, catalogue. `Ok` lets it on.
    pub(super) fn check_fence<T>(&self, stamp: &Stamp, ranges: &[Range]) -> Result<(), Reply<T>> {
        assert!(ranges.iter().all(|range| range.from <= range.to), "a range goes back: {ranges:?}");
        let Some(fence) = &self.fence else { return Err(Reply::OtherGeneration(None)) };
        if fence.generation != stamp.generation {
            return Err(Reply::OtherGeneration(Some(fence.generation.clone())));
        }
        let stored: Vec<i64> = ranges.iter().map(|range| self.position(range.partition)).collect();
        let each = || ranges.iter().zip(&stored);
        if !each().all(|(range, stored)| *stored == range.from) {
            let done_before = each().all(|(range, stored)| *stored >= range.to);
            return Err(if done_before { Reply::DoneBefore } else { Reply::OtherPosition(stored) });
        }
        if fence.catalogue != stamp.catalogue {
            return Err(Reply::OtherCatalogue(fence.catalogue.clone()));
        }
        Ok(())
    }

    /// Whether the shard is where the worker knows it to be, or further.
    pub(super) fn check_others<T>(&self, others: &[(Partition, i64)]) -> Result<(), Reply<T>> {
        let behind = others.iter().any(|(partition, position)| self.position(*partition) < *position);
        if behind { Err(Reply::FellBack) } else { Ok(()) }
    }

    /// Notes within the ranges, in the order of the ranges.
    pub(super) fn notes_in(&self, ranges: &[Range]) -> Vec<Note> {
        let within = |range: &Range| (range.partition, range.from)..(range.partition, range.to);
        let notes = ranges.iter().flat_map(|range| self.notes.range(within(range)));
        notes.map(|(&(partition, offset), &reason)| Note { partition, offset, reason }).collect()
    }

    pub(super) fn check_outbox<T>(&self, stamp: &Stamp) -> Result<(), Reply<T>> {
        if self.outbox.len() >= stamp.outbox_max {
            return Err(Reply::OutboxFull { entries: self.outbox.len() });
        }
        Ok(())
    }

    /// Moves the positions to the ends of the ranges and drops the notes that they have passed.
    pub(super) fn advance(&mut self, stamp: &Stamp, ranges: &[Range]) {
        let fence = self.fence.as_mut().expect("check_fence saw it");
        for range in ranges {
            fence.positions.insert(range.partition, range.to);
            if let Some(last) = range.last {
                fence.anchors.insert(range.partition, last.anchor);
                fence.reached.insert(range.partition, last.reached_ms);
            }
            self.notes.retain(|&(partition, offset), _| partition != range.partition || offset >= range.to);
        }
        fence.restamp_tolerance_ms = fence.restamp_tolerance_ms.max(stamp.restamp_tolerance_ms);
    }

    pub(super) fn count(&mut self, partition: Partition, outcome: Outcome, records: u64) {
        if records > 0 {
            let fence = self.fence.as_mut().expect("check_fence saw it");
            *fence.totals.entry((partition, outcome)).or_default() += records;
        }
    }

    /// Deletes the first `published` entries that were taken, and gives the next.
    pub fn take(&mut self, published_up_to: u64, count: usize) -> Vec<(u64, OutboxEntry)> {
        let published = published_up_to.saturating_sub(self.outbox_taken).min(self.outbox.len() as u64);
        self.outbox.drain(..published as usize);
        self.outbox_taken += published;
        let first = self.outbox_taken + 1;
        (first..).zip(self.outbox.iter().take(count).cloned()).collect()
    }
}

/// The shard of an account. Fixed for the life of a state: positions are kept by shard.
pub fn shard_of(account: &str, shards: u32) -> u32 {
    (xxh3_64(account.as_bytes()) % u64::from(shards)) as u32
}
