//! Each account as the log has it against the account as Redis holds it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::fold::{Folded, Kept, unexplained};
use super::look::FirstLook;
use super::members::{Members, Window};
use super::once::{Once, Way};
use super::point::{Point, PointError};
use super::recorded::{DeadLetters, Decision, Denials};
use super::report::{Difference, Named, RECORDS_MAX, Report, Topics};
use super::resolve::{Between, Item, Priced, Reading, Resolver, Sums, early_ways};
use super::save::{Below, Saver};
use super::slices::Slice;
use super::totals::Totals;
use crate::ledger::account::{AccountView, Life};
use crate::ledger::call::{Input, Partition};
use crate::ledger::catalogue::{Amount, Catalogue};
use crate::ledger::credits::Credits;
use crate::ledger::event::{Class, DAY_MS};
use crate::ledger::grants::GrantKind;
use crate::ledger::outcome::Outcome;
use crate::ledger::shard::shard_of;
use crate::ledger::time::forgettable;
use crate::store::look::LookedAccount;
use crate::store::stored::{parse_counters, parse_view};

/// Compares one account after the other.
pub struct Comparison<'a> {
    pub resolver: Resolver<'a>,
    pub denials: &'a mut Denials,
    pub topics: &'a Topics,
    pub first: &'a FirstLook,
    pub totals: &'a mut Totals,
    /// Of usage below the cut of the point that is saved.
    pub settled: &'a mut Totals,
    pub point: Option<&'a Point>,
    pub saver: Option<&'a mut Saver>,
    pub window: Option<Window>,
    /// Records whose denials may be undone with the outbox that they are in.
    pub unpublished: FxHashSet<(i32, i64)>,
    pub report: &'a mut Report,
}

impl Comparison<'_> {
    /// Compares all accounts of a slice, and holds the denials against what was found.
    pub fn slice(mut self, slice: Slice, mut accounts: FxHashMap<Arc<str>, Folded>) -> Result<(), PointError> {
        let mut order: Vec<_> = accounts.keys().cloned().collect();
        order.sort_unstable();
        for name in &order {
            let folded = accounts.get_mut(name).expect("it is a key");
            follow(self.resolver.catalogue, folded);
            folded.attempts.sort_unstable_by_key(|kept| (kept.identity.member, kept.partition, kept.offset));
            if let (Some(point), Some(cycle)) = (self.point, Point::cycle_again(folded)) {
                return Err(PointError::CycleAgain { path: point.path.clone(), account: name.to_string(), cycle });
            }
            self.account(name, folded);
        }
        for ((index, offset), told) in self.denials.unfounded() {
            let partition = Partition::usage(index);
            let shard = shard_of(&told.account, self.first.positions.len() as u32);
            let positions = accounts.get(&told.account).map(|folded| &*folded.positions);
            // What was decided after the account was looked at is not judged.
            if offset < positions.unwrap_or(&self.first.positions[shard as usize]).at(partition) {
                self.report.differs(Difference {
                    account: Some(told.account.to_string()),
                    shard,
                    what: "denial".to_owned(),
                    expected: "of an event of this account in the log".to_owned(),
                    found: "none there".to_owned(),
                    records: vec![self.topics.named(partition, offset, "denied", Some(told.required))],
                });
            }
        }
        // The same messages are read for each slice.
        if self.denials.unreadable > 0 && slice.holds_nameless() {
            self.report.differs(Difference {
                account: None,
                shard: 0,
                what: "denials".to_owned(),
                expected: "readable".to_owned(),
                found: format!("{} are not", self.denials.unreadable),
                records: Vec::new(),
            });
        }
        Ok(())
    }

    fn account(&mut self, name: &str, folded: &Folded) {
        let (sums, below) = self.sum(name, folded);
        if let Some(saver) = &mut self.saver {
            saver.account(name, folded, &below, self.resolver.kinds, self.denials);
        }
        self.report.ambiguous += sums.ambiguous;
        self.report.collisions += folded.commanded.collisions;
        let Some(stored) = &folded.stored else {
            // Only accounts have a place in the due set; records of an unknown one are told of by themselves.
            if folded.commanded.view.is_some() {
                self.differs(name, folded, "account", "in the due set".to_owned(), "not in it".to_owned(), Vec::new());
            }
            return;
        };
        self.report.accounts_checked += 1;
        match (&folded.commanded.view, stored.fields.is_empty()) {
            (None, _) => {
                let found = if stored.fields.is_empty() { "only in the due set" } else { "one" };
                let expected = "no account: no command made it".to_owned();
                self.differs(name, folded, "account", expected, found.to_owned(), Vec::new());
            }
            (Some(view), true) => {
                let expected = format!("version {}", view.version);
                self.differs(name, folded, "account", expected, "nothing".to_owned(), Vec::new());
            }
            (Some(view), false) => {
                self.configuration(name, folded, view, stored);
                self.counters(name, folded, stored, &sums);
                self.remembered(name, folded, stored, &sums);
                self.marks(name, folded, stored, &sums);
                self.member_counts(name, folded, stored, &sums);
                self.usage_by_day(name, folded, stored, &sums);
            }
        }
    }

    /// Adds an account's usage up, and tells of records that are explained twice or not at all. Also what a point saves
    /// of it.
    fn sum(&mut self, name: &str, folded: &Folded) -> (Sums, Below) {
        let generations = folded.stored.as_ref().map(|stored| stored.generations.clone()).unwrap_or_default();
        let zones = &folded.commanded.zones;
        let usage_from = folded.usage_from.zip(self.window).map(|(from, window)| window.first_for(from, zones));
        let members = Members::of(&folded.commanded, usage_from);
        let mut sums = Sums { generations: generations.clone(), members: members.clone(), ..Sums::default() };
        let mut below = Below::of(&folded.base, folded.commanded.view.as_ref());
        below.sums.generations = generations;
        below.sums.members = members.with(std::mem::take(&mut below.sums.members.counts));
        let set = below.marks.clone();
        let first = &self.first.positions[folded.shard as usize];
        let early = |kept: &Kept| kept.offset < first.at(Partition::usage(kept.partition));
        let (topics, totals, report) = (self.topics, &mut *self.totals, &mut *self.report);
        let (saver, settled) = (self.saver.as_deref(), &mut *self.settled);
        let settles = |attempts: &mut dyn Iterator<Item = &Priced>| {
            saver.is_some_and(|saver| saver.settles(folded.shard, &self.unpublished, attempts))
        };
        let folds = |attempt: &&Priced| saver.is_some_and(|saver| saver.folds(attempt));
        let mut settled_collisions = 0;
        let tolerance_ms = self.first.shards[folded.shard as usize].restamp_tolerance_ms;
        let mut once = Once::default();
        self.resolver.each(name, folded, early, tolerance_ms, self.denials, |resolver, item| match item {
            Item::Unpriced(kept, reason) => {
                let named = topics.named(Partition::usage(kept.partition), kept.offset, "unexplained", None);
                report.differs(unexplained(Some(name.to_owned()), folded.shard, reason, named));
            }
            Item::BadDenial(kept, class, told) => {
                let named = topics.named(Partition::usage(kept.partition), kept.offset, "denied", Some(class.cost));
                let found = match told.contradicted {
                    true => "messages that contradict each other".to_owned(),
                    false => format!("{:?}, required {}", told.decision, told.required),
                };
                report.differs(Difference {
                    account: Some(name.to_owned()),
                    shard: folded.shard,
                    what: "denial".to_owned(),
                    expected: format!("{:?}, required {}", class.judge, class.cost),
                    found,
                    records: vec![named],
                });
            }
            Item::Collision(attempts) => {
                report.collisions += 1;
                settled_collisions += u64::from(settles(&mut attempts.iter()));
            }
            Item::Event(attempts, readings) => {
                let fallback;
                let readings = if readings.is_empty() {
                    report.differs(contradiction(resolver, topics, name, folded.shard, attempts));
                    fallback =
                        [attempts.iter().map(|attempt| attempt.decision.map(|_| attempt.class)).collect::<Reading>()];
                    &fallback[..]
                } else {
                    readings
                };
                if once.keep(resolver, folded, attempts, readings) {
                    return sums.remember(attempts, readings);
                }
                let (sums, totals) = match settles(&mut attempts.iter()) {
                    true => (&mut below.sums, &mut *settled),
                    false => {
                        below.kept.extend(attempts.iter().filter(folds));
                        (&mut sums, &mut *totals)
                    }
                };
                sums.add(resolver, attempts, readings);
                if let ([attempt], [reading]) = (attempts, readings) {
                    if attempt.early {
                        let outcome = resolver.ended(attempt, reading[0]).outcome;
                        totals.add(folded.shard, Partition::usage(attempt.kept.partition), outcome);
                    }
                } else {
                    let mut ways = early_ways(resolver, attempts, readings);
                    match ways.as_mut_slice() {
                        [way] => {
                            for (partition, outcome) in way {
                                totals.add(folded.shard, *partition, *outcome);
                            }
                        }
                        _ => totals.add_one_of(folded.shard, &ways),
                    }
                }
            }
        });
        once.each(&self.resolver, &set, |events, ways| {
            let attempts = || events.iter().flat_map(|event| &event.attempts);
            let ways = ways.with_bounds(&self.resolver, events);
            let same_marks = ways.windows(2).all(|pair| pair[0].set == pair[1].set);
            let (sums, totals) = match same_marks && settles(&mut attempts()) {
                true => {
                    below.marks.extend(ways.iter().flat_map(|way| &way.set));
                    (&mut below.sums, &mut *settled)
                }
                false => {
                    below.kept.extend(attempts().filter(folds));
                    (&mut sums, &mut *totals)
                }
            };
            sums.add_ways(&self.resolver, &ways);
            let mut early: Vec<_> = ways.iter().map(Way::early).collect();
            early.sort_unstable();
            early.dedup();
            match early.as_slice() {
                [way] => {
                    way.iter().for_each(|(partition, outcome)| totals.add(folded.shard, *partition, *outcome));
                }
                _ => totals.add_one_of(folded.shard, &early),
            }
        });
        sums.plus(&below.sums);
        if let Some(saver) = &mut self.saver {
            saver.end.ambiguous += below.sums.ambiguous;
            saver.end.collisions += settled_collisions;
        }
        (sums, below)
    }

    fn configuration(&mut self, name: &str, folded: &Folded, view: &AccountView, stored: &LookedAccount) {
        let found = match parse_view(&stored.fields) {
            Ok(found) => found,
            Err(error) => {
                return self.differs(name, folded, "account", "readable".to_owned(), error.to_string(), Vec::new());
            }
        };
        let cycle =
            |view: &AccountView| format!("{} from {} to {}", view.cycle.number, view.cycle.start_ms, view.cycle.end_ms);
        let mut differs = |what: &str, expected: String, found: String| {
            if expected != found {
                self.differs(name, folded, what, expected, found, Vec::new());
            }
        };
        differs("cycle", cycle(view), cycle(&found));
        let fields = |view: &AccountView| view.config.to_fields().into_iter().collect::<BTreeMap<String, String>>();
        let (expected, stored_fields) = (fields(view), fields(&found));
        let names = expected.keys().chain(stored_fields.keys().filter(|name| !expected.contains_key(*name)));
        for field in names {
            let shown = |fields: &BTreeMap<String, String>| fields.get(field).cloned().unwrap_or("none".to_owned());
            differs(field, shown(&expected), shown(&stored_fields));
        }
        differs("life", view.life.name().to_owned(), found.life.name().to_owned());
        let lots = |view: &AccountView| {
            let lots =
                view.lots.iter().map(|(created, lot)| (*created, lot.kind, lot.credit_type.clone(), lot.expires_ms));
            lots.collect::<std::collections::BTreeSet<_>>()
        };
        // Some may have ended since the last renewal.
        let unknown: Vec<_> = lots(&found).difference(&lots(view)).map(|(created, ..)| created.to_string()).collect();
        differs("top-ups and promos that no command gave", String::new(), unknown.join(", "));
        let applied = folded.commanded.applied.len() as u64;
        differs("commands remembered", applied.to_string(), stored.commands.to_string());
    }

    fn counters(&mut self, name: &str, folded: &Folded, stored: &LookedAccount, sums: &Sums) {
        let found = match parse_counters(&stored.fields) {
            Ok(found) => found,
            Err(error) => {
                return self.differs(name, folded, "counters", "readable".to_owned(), error.to_string(), Vec::new());
            }
        };
        let Ok(stored_view) = parse_view(&stored.fields) else { return };
        let Some(view) = &folded.commanded.view else { return };
        let mut types: Vec<&String> = view.pools.keys().chain(found.keys()).collect();
        types.extend(sums.charged.keys().filter(|(cycle, _)| cycle.is_none()).map(|(_, credit_type)| credit_type));
        types.sort_unstable();
        types.dedup();
        for credit_type in types {
            let pool = |view: &AccountView| view.pools.get(credit_type).copied().unwrap_or_default();
            let (expected, pool) = (pool(view).granted, pool(&stored_view));
            let counter = found.get(credit_type).copied().unwrap_or_default();
            let mut differs = |part: &str, expected: String, found: String| {
                self.differs(name, folded, &format!("{credit_type}.{part}"), expected, found, Vec::new());
            };
            for kind in [GrantKind::Plan, GrantKind::Addon, GrantKind::Adjusted] {
                // A renewal gives what fits beside what goes on.
                let expected = pool.granted.fitting(kind, expected.of(kind));
                if expected != pool.granted.of(kind) {
                    let part = format!("granted by {}", kind.name());
                    differs(&part, expected.to_string(), pool.granted.of(kind).to_string());
                }
            }
            if counter.granted != pool.granted.total() {
                differs("granted", pool.granted.total().to_string(), counter.granted.to_string());
            }
            let lots = stored_view.lots.values().filter(|lot| lot.begun && lot.credit_type == *credit_type);
            let left = lots.fold(pool.left, |sum, lot| sum + lot.left);
            if let Amount::Limited(granted) = counter.granted
                && !(left >= Credits::ZERO && left <= granted - counter.expired)
            {
                differs("left of grants", format!("at most {}", granted - counter.expired), left.to_string());
            }
            self.charged(name, folded, (None, credit_type), sums, counter.charged);
        }
        for (number, closed) in &stored_view.closed {
            for (credit_type, counter) in &closed.counters {
                self.charged(name, folded, (Some(*number), credit_type), sums, counter.charged);
            }
        }
    }

    /// What was charged in a cycle (`None`: the open one).
    fn charged(&mut self, name: &str, folded: &Folded, place: (Option<i32>, &String), sums: &Sums, found: Credits) {
        let (cycle, credit_type) = place;
        let open = folded.commanded.view.as_ref().map(|view| view.cycle.number);
        let key = (cycle, credit_type.clone());
        let taken = cycle.or(open).and_then(|number| folded.commanded.taken.get(&(number, credit_type.clone())));
        let taken = taken.copied().unwrap_or_default();
        let charged = sums.charged.get(&key).copied().unwrap_or_default();
        let charged = Between { min: charged.min + taken, max: charged.max + taken };
        if !charged.holds(found) {
            let records = self.charged_records(name, folded, place, charged, found);
            let what = match cycle {
                None => format!("{credit_type}.charged"),
                Some(number) => format!("{credit_type}.charged in cycle {number}"),
            };
            self.differs(name, folded, &what, charged.to_string(), found.to_string(), records);
        }
    }

    fn remembered(&mut self, name: &str, folded: &Folded, stored: &LookedAccount, sums: &Sums) {
        // A day that the floor has passed may be forgotten, or be about to be.
        let tolerance_ms = self.first.shards[folded.shard as usize].restamp_tolerance_ms;
        let point = self.point.map(|point| &point.header.shards[folded.shard as usize]);
        let may_be_gone =
            |day: i64| forgettable(day, folded.floor_ms, tolerance_ms) || point.is_some_and(|shard| shard.forgot(day));
        let mut days: Vec<i64> = sums.remembered.keys().chain(stored.remembered.keys()).copied().collect();
        days.sort_unstable();
        days.dedup();
        for day in days {
            let expected = sums.remembered.get(&day).copied().unwrap_or_default();
            let found = stored.remembered.get(&day).copied().unwrap_or(0);
            if expected.holds(found) || may_be_gone(day) {
                continue;
            }
            let records = self.records_where(name, folded, |_, attempt, _| attempt.days.own == day);
            let what = format!("remembered on {}", date(day));
            self.differs(name, folded, &what, expected.to_string(), found.to_string(), records);
        }
    }

    /// What is charged once: as many marks as were charged, in each cycle that is not forgotten.
    fn marks(&mut self, name: &str, folded: &Folded, stored: &LookedAccount, sums: &Sums) {
        let Ok(view) = parse_view(&stored.fields) else { return };
        // The last cycle of a closed account is among the closed ones, or forgotten.
        let open = (view.life != Life::Closed).then_some((view.cycle.number, None));
        let kept = view.closed.keys().map(|number| (*number, Some(*number))).chain(open);
        let mut expected: BTreeMap<i32, Between<u64>> =
            kept.map(|(number, cycle)| (number, sums.marks.get(&cycle).copied().unwrap_or_default())).collect();
        for number in stored.marks.keys() {
            expected.entry(*number).or_default();
        }
        for (number, expected) in expected {
            let found = stored.marks.get(&number).copied().unwrap_or(0);
            if !expected.holds(found) {
                let what = format!("charged once in cycle {number}");
                self.differs(name, folded, &what, expected.to_string(), found.to_string(), Vec::new());
            }
        }
    }

    /// The records that a difference of charges may come from: those whose cost is the difference, or else the first.
    fn charged_records(
        &mut self,
        name: &str,
        folded: &Folded,
        (cycle, credit_type): (Option<i32>, &String),
        expected: Between<Credits>,
        found: Credits,
    ) -> Vec<Named> {
        let off = if found > expected.max { found - expected.max } else { expected.min - found };
        let of_type =
            |class: &Class| (class.cycle, &class.credit_type) == (cycle, credit_type) && class.cost > Credits::ZERO;
        let same = self.records_where(name, folded, |class, attempt, decided| {
            let uncovered = match attempt.decision {
                Some(Decision::Capped { uncovered }) => uncovered,
                Some(Decision::Denied(_)) | None => Credits::ZERO,
            };
            of_type(class) && (class.cost == off || (decided && class.cost - uncovered == off))
        });
        if same.is_empty() { self.records_where(name, folded, |class, _, _| of_type(class)) } else { same }
    }

    /// The first records of an account, in the order in which they were appended, that a rule chooses.
    pub(super) fn records_where(
        &mut self,
        name: &str,
        folded: &Folded,
        chosen: impl Fn(&Class, &Priced, bool) -> bool,
    ) -> Vec<Named> {
        let mut found: Vec<(i64, Named)> = Vec::new();
        let topics = self.topics;
        let tolerance_ms = self.first.shards[folded.shard as usize].restamp_tolerance_ms;
        self.resolver.each(
            name,
            folded,
            |_| true,
            tolerance_ms,
            self.denials,
            |resolver, item| {
                let Item::Event(attempts, readings) = item else { return };
                for (index, attempt) in attempts.iter().enumerate() {
                    let class = &resolver.classes[attempt.class as usize];
                    let decided = readings.first().and_then(|reading| reading[index]);
                    if chosen(class, attempt, decided.is_some()) {
                        let outcome = resolver.ended(attempt, decided).outcome.name();
                        let partition = Partition::usage(attempt.kept.partition);
                        let named = topics.named(partition, attempt.kept.offset, outcome, Some(class.cost));
                        found.push((attempt.kept.append_ms, named));
                    }
                }
                if found.len() > 64 * RECORDS_MAX {
                    first_of(&mut found);
                }
            },
        );
        first_of(&mut found);
        found.into_iter().map(|(_, named)| named).collect()
    }

    pub(super) fn differs(
        &mut self,
        name: &str,
        folded: &Folded,
        what: &str,
        expected: String,
        found: String,
        records: Vec<Named>,
    ) {
        self.report.differs(Difference {
            account: Some(name.to_owned()),
            shard: folded.shard,
            what: what.to_owned(),
            expected,
            found,
            records,
        });
    }
}

/// Lets time pass for an account until the renewals that Redis has seen.
pub fn follow(catalogue: &Catalogue, folded: &mut Folded) {
    let Some(Ok(found)) = folded.stored.as_ref().map(|stored| parse_view(&stored.fields)) else { return };
    folded.commanded.pass(catalogue, |view| {
        view.cycle.number < found.cycle.number || view.life == Life::Closing && found.life == Life::Closed
    });
}

/// What concerns all slices together: totals, and dead letters of records that are not there.
pub fn whole(first: &FirstLook, dead: &DeadLetters, totals: &Totals, topics: &Topics, report: &mut Report) {
    let end = first.end();
    for (partition, offset) in dead.unfounded() {
        if offset < end.at(partition) {
            report.differs(Difference {
                account: None,
                shard: 0,
                what: "dead letter".to_owned(),
                expected: "of a record in the log".to_owned(),
                found: "none there".to_owned(),
                records: vec![topics.named(partition, offset, "dead_lettered", None)],
            });
        }
    }
    for (shard, stored) in (0..).zip(&first.shards) {
        totals.compare(shard, stored, report);
    }
    report.outcomes = totals.sums(Input::Usage);
    report.commands = totals.sums(Input::Commands);
    report.records = totals.records(Input::Usage);
}

fn first_of(found: &mut Vec<(i64, Named)>) {
    found.sort_by_key(|(append_ms, named)| (*append_ms, named.partition, named.offset));
    found.truncate(RECORDS_MAX);
}

/// Attempts at one event that no order explains.
fn contradiction(resolver: &Resolver<'_>, topics: &Topics, name: &str, shard: u32, attempts: &[Priced]) -> Difference {
    let named = |attempt: &Priced| {
        let class = &resolver.classes[attempt.class as usize];
        let outcome = match attempt.decision {
            Some(Decision::Denied(_)) => Outcome::Denied.name(),
            Some(Decision::Capped { .. }) => Outcome::Capped.name(),
            None => "unexplained",
        };
        topics.named(Partition::usage(attempt.kept.partition), attempt.kept.offset, outcome, Some(class.cost))
    };
    let told = attempts.iter().filter(|attempt| attempt.decision.is_some()).count();
    let found = match told {
        0 => "not decided: not entitled, and no denial says so",
        1 => "decided before it was denied",
        _ => "denied more than once",
    };
    Difference {
        account: Some(name.to_owned()),
        shard,
        what: "event".to_owned(),
        expected: "decided once".to_owned(),
        found: found.to_owned(),
        records: attempts.iter().take(RECORDS_MAX).map(named).collect(),
    }
}

fn date(day: i64) -> String {
    let date = chrono::DateTime::from_timestamp_millis(day.saturating_mul(DAY_MS));
    date.map_or_else(|| format!("day {day}"), |date| date.date_naive().to_string())
}
