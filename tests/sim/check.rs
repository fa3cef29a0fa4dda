//! What must hold in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use credit_meter::ingest::recorded;
use credit_meter::ledger::call::{OutboxEntry, Output, Partition};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::Identity;
use credit_meter::ledger::outcome::Outcome;
use credit_meter::ledger::void::Kept;
use credit_meter::outbox::cloud_event;
use credit_meter::pipeline::record::{Body, Record};
use credit_meter::pipeline::recorded::{Decision, Published};

use super::SHARDS;
use super::log::{contact, dated_ms, source, user};
use super::schema::keeps_its_schema;
use super::world::World;

impl World {
    /// What an event costs, in thousandths.
    pub fn price(&self, id: &str) -> i64 {
        let (dated_ms, source) = (dated_ms(id), source(id));
        match self.starts.get(source - 1) {
            Some(start_ms) if *start_ms <= dated_ms => 1000 * source as i64 + 500,
            _ => 1500,
        }
    }

    /// The places of what was denied, as far as it was published.
    pub fn denied(&self) -> BTreeSet<(Partition, i64)> {
        self.published.iter().flat_map(denied).map(|denied| (denied.partition, denied.offset)).collect()
    }

    /// What the outputs say of records from these offsets on.
    pub fn published(&self, from: &[(Partition, i64)]) -> Vec<Published> {
        let from: BTreeMap<_, _> = from.iter().copied().collect();
        let wanted = |published: &Published| from.get(&published.partition).is_some_and(|at| published.offset >= *at);
        let dead = self.dead_letters.iter().map(|note| Published {
            partition: note.partition,
            offset: note.offset,
            event: None,
            decision: Decision::Dead(note.reason),
        });
        dead.chain(self.published.iter().flat_map(denied)).filter(wanted).collect()
    }

    /// No more faults: everything is read and applied.
    pub fn settle(&mut self) {
        self.faulty = false;
        for _ in 0..200_000 {
            self.step();
            let ends = self.log.iter().map(|(partition, records)| (*partition, end_of(records)));
            let done = |(partition, end)| self.shards.iter().all(|shard| shard.position(partition) == end);
            if self.calls.is_empty() && ends.clone().all(done) {
                return;
            }
        }
        let positions: Vec<_> = (0..SHARDS).map(|shard| self.positions(shard)).collect();
        let ends: Vec<_> = self.log.iter().map(|(partition, records)| (*partition, end_of(records))).collect();
        panic!("seed {}: it does not come to an end: {ends:?}, {positions:?}", self.seed);
    }

    pub fn check(&mut self) {
        let seed = self.seed;
        for shard in &mut self.shards {
            self.published.extend(shard.take(shard.outbox_taken, usize::MAX).into_iter().map(|(_, entry)| entry));
        }
        // They are of few kinds.
        for entry in self.published.iter().filter(|_| seed.is_multiple_of(10)) {
            keeps_its_schema(cloud_event("meter", entry).as_bytes());
        }
        let said: Vec<Published> = self.published.iter().flat_map(denied).collect();
        let mut uncovered = 0;
        let mut denied: BTreeMap<(Arc<str>, i64), (Partition, i64)> = BTreeMap::new();
        let mut places = BTreeSet::new();
        for Published { partition, offset, event, decision } in said {
            let (account, identity) = event.expect("a denied event has an identity");
            let again = denied.insert((account, identity.member), (partition, offset));
            if !self.zombies {
                assert!(again.is_none_or(|place| place == (partition, offset)), "seed {seed}: one attempt is decided");
            }
            let first = places.insert((partition, offset));
            match decision {
                Decision::Capped { uncovered: amount } if first => uncovered += amount.thousandths(),
                _ => {}
            }
        }
        let mut ids: BTreeMap<Arc<str>, BTreeSet<&str>> = BTreeMap::new();
        // Of account h.
        let mut voided: BTreeSet<&str> = BTreeSet::new();
        let mut dead = BTreeSet::new();
        for (partition, records) in &self.log {
            for record in records {
                match &record.body {
                    Body::Usage(event) if &*event.account == "stranger" => {
                        dead.insert((*partition, record.offset));
                    }
                    Body::Usage(event) if event.voids.is_some() => {
                        voided.insert(&event.id);
                    }
                    Body::Usage(event) => {
                        ids.entry(event.account.clone()).or_default().insert(&event.id);
                    }
                    Body::Dead { .. } => {
                        dead.insert((*partition, record.offset));
                    }
                    Body::Command(_) | Body::Tick => {}
                }
            }
            let total = |outcomes: &[Outcome]| -> u64 {
                let fences = self.shards.iter().filter_map(|shard| shard.fence.as_ref());
                let totals = fences.flat_map(|fence| &fence.totals);
                let own = totals.filter(|((of, outcome), _)| of == partition && outcomes.contains(outcome));
                own.map(|(_, records)| *records).sum()
            };
            assert_eq!(total(&Outcome::ALL), records.len() as u64, "seed {seed}: {partition}: totals and records");
        }
        for (account, ids) in ids {
            let account_state = self.shards.iter().find_map(|shard| shard.accounts.get(&account)).expect("it was made");
            let charged = account_state.counters["email"].charged.thousandths();
            match &*account {
                "d" | "e" if self.zombies => {}
                "d" => {
                    let is_denied = |id: &str| denied.contains_key(&(account.clone(), Identity::of("s", id).member));
                    let paid: i64 = ids.iter().filter(|id| !is_denied(id)).map(|id| self.price(id)).sum();
                    assert_eq!(charged, paid, "seed {seed}: what is denied is not charged");
                }
                "g" if self.zombies => {}
                "g" => {
                    let is_denied = |id: &str| denied.contains_key(&(account.clone(), Identity::of("s", id).member));
                    let mut paid: BTreeMap<(String, Arc<str>), Credits> = BTreeMap::new();
                    for id in ids.iter().filter(|id| !is_denied(id)) {
                        let member = ("email".to_owned(), user(id).into());
                        *paid.entry(member).or_default() += Credits::from_thousandths(self.price(id));
                    }
                    let counts = self.shards.iter().find_map(|shard| shard.members.get(&(account.clone(), 0)));
                    assert_eq!(counts, Some(&paid), "seed {seed}: what a member was charged, and no more, is counted");
                    let limit = |user: &str| Credits::whole(if user == "eve" { 11 } else { 5 });
                    let within = paid.iter().all(|((_, user), used)| *used <= limit(user));
                    assert!(within, "seed {seed}: {paid:?}");
                    let sum = paid.values().fold(Credits::ZERO, |sum, used| sum + *used);
                    assert_eq!(charged, sum.thousandths(), "seed {seed}: what is denied is not charged");
                }
                "h" => {
                    let shard = self.shards.iter().find(|shard| shard.accounts.contains_key(&account));
                    let shard = shard.expect("it was made");
                    let kept: BTreeSet<&str> = ids.iter().copied().filter(|id| !voided.contains(id)).collect();
                    assert_eq!(charged, 3_000 * kept.len() as i64, "seed {seed}: what is void is charged to nobody");
                    let sum = |sum: i64, more: &Credits| sum + more.thousandths();
                    let counts =
                        shard.members.get(&(account.clone(), 0)).into_iter().flat_map(|counts| counts.values());
                    assert_eq!(counts.fold(0, sum), charged, "seed {seed}: nor counted for a member");
                    let days = shard.usage.iter().filter(|((of, _), _)| *of == account);
                    let used = days.flat_map(|(_, day)| day.values()).map(|used| &used.credits);
                    assert_eq!(used.fold(0, sum), charged, "seed {seed}: nor broken down");
                    let days = shard.charges.iter().filter(|((of, _), _)| *of == account);
                    let (waiting, may_be_voided): (Vec<_>, Vec<_>) =
                        days.flat_map(|(_, day)| day.values()).partition(|kept| **kept == Kept::Waits);
                    assert_eq!(may_be_voided.len(), kept.len(), "seed {seed}: each may be voided");
                    let idle = voided.iter().filter(|id| !ids.contains(*id)).count();
                    assert_eq!(waiting.len(), idle, "seed {seed}: a void waits only for what never came");
                }
                "f" => {
                    let contacts: BTreeSet<usize> = ids.iter().map(|id| contact(id)).collect();
                    assert_eq!(charged, 2_000 * contacts.len() as i64, "seed {seed}: each contact once");
                }
                "e" => {
                    let cost: i64 = ids.iter().map(|id| self.price(id)).sum();
                    assert_eq!(charged, cost - uncovered, "seed {seed}: what is uncovered neither");
                }
                _ => {
                    let cost: i64 = ids.iter().map(|id| self.price(id)).sum();
                    assert_eq!(charged, cost, "seed {seed}: {account}: each event once, by its own date");
                }
            }
        }
        let letters: BTreeSet<_> = self.dead_letters.iter().map(|note| (note.partition, note.offset)).collect();
        assert_eq!(letters, dead, "seed {seed}: a dead letter for each dead record, and for no other");
    }
}

/// The decisions in a message to the denied topic.
pub fn denied(entry: &OutboxEntry) -> Vec<Published> {
    let value = format!(r#"{{"id":"","source":"meter","subject":"{}","data":{}}}"#, entry.account, entry.data);
    if entry.output == Output::Denied {
        recorded::denied("meter", "credits.usage", value.as_bytes())
    } else {
        Vec::new()
    }
}

/// The offset behind the last record, with a control record after it.
pub fn end_of(records: &[Record]) -> i64 {
    records.last().map_or(0, |record| record.offset + 2)
}
