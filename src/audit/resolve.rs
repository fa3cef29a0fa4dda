//! What an account's usage comes to: each event priced with the ledger, once, as the records allow.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::attempts::{Attempt, Reading, Telling, readings};
use super::fold::{Folded, Kept, Kinds};
use super::once::Way;
use super::recorded::{Decision, Denials, Told};
use crate::ledger::call::Partition;
use crate::ledger::catalogue::Catalogue;
use crate::ledger::credits::Credits;
use crate::ledger::event::{Class, Days, Judge, price, terms_at};
use crate::ledger::outcome::{DeadReason, Denial, Outcome};

/// An attempt with its price and what a denial says of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Priced {
    pub kept: Kept,
    pub class: u32,
    pub days: Days,
    pub early: bool,
    pub decision: Option<Decision>,
}

/// Prices of an account: by kind, the cycle that holds the date, and the period between changes of prices that does.
type Prices = FxHashMap<(u32, Result<Option<i32>, DeadReason>, usize), Result<u32, DeadReason>>;

/// What an account's records are, one after the other.
pub enum Item<'a> {
    /// It cannot be priced, so that it must be dead, and it is not.
    Unpriced(&'a Kept, DeadReason),
    /// A denial that contradicts the price list, or another one.
    BadDenial(&'a Kept, &'a Class, Told),
    /// Attempts at one event, and how they can be read; no reading fits if there is none.
    Event(&'a [Priced], &'a [Reading]),
    /// Two events whose remembered halves are the same: the attempts at both.
    Collision(&'a [Priced]),
}

/// Prices of one account after the other.
pub struct Resolver<'a> {
    pub catalogue: &'a Catalogue,
    pub kinds: &'a Kinds,
    /// Classes are the same for many accounts.
    pub classes: Vec<Class>,
    index: FxHashMap<Class, u32>,
    /// The only reading of a single attempt.
    single: Vec<Reading>,
}

/// What one attempt ended as, and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub outcome: Outcome,
    pub charged: Credits,
}

impl<'a> Resolver<'a> {
    pub fn new(catalogue: &'a Catalogue, kinds: &'a Kinds) -> Resolver<'a> {
        let single = vec![vec![true]];
        Resolver { catalogue, kinds, classes: Vec::new(), index: FxHashMap::default(), single }
    }

    /// Goes through an account's records, which are sorted by identity, partition and offset.
    pub fn each(
        &mut self,
        account: &str,
        folded: &Folded,
        early: impl Fn(&Kept) -> bool,
        tolerance_ms: i64,
        denials: &mut Denials,
        mut visit: impl FnMut(&Resolver<'_>, Item<'_>),
    ) {
        // Nothing else decides a price.
        let mut prices = Prices::default();
        let mut attempts = Vec::new();
        for group in folded.attempts.chunk_by(|a, b| a.identity.member == b.identity.member) {
            attempts.clear();
            for kept in group {
                let told = denials.of(kept.partition, kept.offset, account, kept.identity).cloned();
                let class = match self.price(folded, kept, &mut prices) {
                    Ok(class) => class,
                    Err(reason) => {
                        visit(self, Item::Unpriced(kept, reason));
                        continue;
                    }
                };
                let decision = told.as_ref().map(|told| told.decision);
                if let Some(told) = told.filter(|told| !agrees(told, &self.classes[class as usize])) {
                    visit(self, Item::BadDenial(kept, &self.classes[class as usize], told));
                }
                let days = Days::of(kept.time_ms, tolerance_ms);
                attempts.push(Priced { kept: *kept, class, days, early: early(kept), decision });
            }
            if attempts.iter().any(|attempt| attempt.kept.identity != attempts[0].kept.identity) {
                visit(self, Item::Collision(&attempts));
            }
            match attempts.as_slice() {
                [] => {}
                [single] if self.telling(single) != Telling::NotDecided => {
                    visit(self, Item::Event(&attempts, &self.single));
                }
                several => {
                    let known: Vec<Attempt> = several
                        .iter()
                        .map(|attempt| Attempt {
                            partition: attempt.kept.partition,
                            days: attempt.days,
                            early: attempt.early,
                            told: self.telling(attempt),
                        })
                        .collect();
                    let readings = readings(&known);
                    visit(self, Item::Event(several, &readings));
                }
            }
        }
    }

    fn telling(&self, attempt: &Priced) -> Telling {
        let not_entitled = self.classes[attempt.class as usize].judge == Judge::NotEntitled;
        match attempt.decision {
            Some(_) => Telling::Decided,
            None if not_entitled => Telling::NotDecided,
            None => Telling::Open,
        }
    }

    fn price(&mut self, folded: &Folded, kept: &Kept, prices: &mut Prices) -> Result<u32, DeadReason> {
        let view = folded.commanded.view.as_ref().ok_or(DeadReason::UnknownAccount)?;
        let dated_ms = kept.time_ms.min(kept.append_ms);
        let cycle = terms_at(view, dated_ms).map(|(_, cycle)| cycle);
        let key = (kept.kind, cycle, self.catalogue.period_at(dated_ms));
        if let Some(known) = prices.get(&key) {
            return *known;
        }
        let mut event = self.kinds.examples[kept.kind as usize].clone();
        event.dated_ms = dated_ms;
        let class = price(self.catalogue, view, &event).map(|class| {
            *self.index.entry(class).or_insert_with_key(|class| {
                self.classes.push(class.clone());
                u32::try_from(self.classes.len() - 1).expect("memory ends earlier")
            })
        });
        prices.insert(key, class);
        class
    }

    /// How an attempt ended in a reading.
    pub fn ended(&self, attempt: &Priced, decided: bool) -> Ended {
        let class = &self.classes[attempt.class as usize];
        let (outcome, charged) = match (decided, attempt.decision) {
            (false, _) => (Outcome::Duplicate, Credits::ZERO),
            (true, Some(Decision::Denied(_))) => (Outcome::Denied, Credits::ZERO),
            (true, Some(Decision::Capped { uncovered })) => (Outcome::Capped, class.cost - uncovered),
            (true, None) if class.judge == Judge::Free => (Outcome::Free, Credits::ZERO),
            (true, None) if class.judge == Judge::Void => (Outcome::Voided, Credits::ZERO),
            (true, None) => (Outcome::Charged, class.cost),
        };
        Ended { outcome, charged }
    }
}

/// Whether a denial says what the price list says.
fn agrees(told: &Told, class: &Class) -> bool {
    let judge = match told.decision {
        Decision::Denied(Denial::NotEntitled) => class.judge == Judge::NotEntitled,
        Decision::Denied(Denial::InsufficientCredits | Denial::OverageLimit | Denial::MemberLimit) => {
            class.judge == Judge::Charge
        }
        Decision::Capped { uncovered } => class.judge == Judge::Charge && uncovered <= class.cost,
    };
    judge && told.required == class.cost && !told.contradicted
}

/// The least and the most that something may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Between<T> {
    pub min: T,
    pub max: T,
}

impl<T: Copy + Ord + std::ops::Add<Output = T>> Between<T> {
    pub fn holds(&self, value: T) -> bool {
        self.min <= value && value <= self.max
    }

    pub fn add(&mut self, min: T, max: T) {
        *self = Between { min: self.min + min, max: self.max + max };
    }
}

impl<T: PartialEq + std::fmt::Display> std::fmt::Display for Between<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// An account's sums.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// By closed cycle (`None`: the open one) and credit type.
    pub charged: BTreeMap<(Option<i32>, String), Between<Credits>>,
    /// Identities that are remembered, by UTC day.
    pub remembered: BTreeMap<i64, Between<u64>>,
    /// What was charged and is charged once, by closed cycle (`None`: the open one).
    pub marks: BTreeMap<Option<i32>, Between<u64>>,
    /// Events whose price depends on the reading.
    pub ambiguous: u64,
    /// Generations of sets of each day: a duplicate that came after a day had grown is remembered in both.
    pub generations: BTreeMap<i64, u64>,
}

impl Sums {
    /// Adds an event. Of several readings the least and the most of each sum count.
    pub fn add(&mut self, resolver: &Resolver<'_>, attempts: &[Priced], readings: &[Reading]) {
        self.remember(attempts, readings);
        if let ([attempt], [_]) = (attempts, readings) {
            let charged = resolver.ended(attempt, true).charged;
            if charged > Credits::ZERO {
                self.charge(resolver, attempt, charged, charged);
            }
            return;
        }
        let ended = |reading: &Reading| {
            let each = attempts.iter().zip(reading);
            each.map(|(attempt, decided)| (*attempt, resolver.ended(attempt, *decided))).collect()
        };
        let ways: Vec<Vec<(Priced, Ended)>> = readings.iter().map(ended).collect();
        self.charge_one_of(resolver, &ways.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }

    /// Adds events that are charged once. Of several ways the least and the most of each sum count.
    pub fn add_ways(&mut self, resolver: &Resolver<'_>, ways: &[Way]) {
        self.charge_one_of(resolver, &ways.iter().map(|way| way.ended.as_slice()).collect::<Vec<_>>());
        let cycles: BTreeSet<Option<i32>> = ways.iter().flat_map(|way| &way.set).map(|(cycle, _)| *cycle).collect();
        for cycle in cycles {
            let of_cycle = |way: &Way| way.set.iter().filter(|(own, _)| *own == cycle).count() as u64;
            let set = || ways.iter().map(of_cycle);
            let (min, max) = (set().min().unwrap_or(0), set().max().unwrap_or(0));
            self.marks.entry(cycle).or_default().add(min, max);
        }
    }

    fn charge_one_of(&mut self, resolver: &Resolver<'_>, ways: &[&[(Priced, Ended)]]) {
        let mut charged: BTreeMap<(Option<i32>, &str), Vec<Credits>> = BTreeMap::new();
        for (number, way) in ways.iter().enumerate() {
            for (attempt, ended) in *way {
                let class = &resolver.classes[attempt.class as usize];
                let key = (class.cycle, class.credit_type.as_str());
                let sums = charged.entry(key).or_insert_with(|| vec![Credits::ZERO; ways.len()]);
                sums[number] += ended.charged;
            }
        }
        let mut ambiguous = false;
        for ((cycle, credit_type), sums) in charged {
            let (min, max) = (sums.iter().min().copied(), sums.iter().max().copied());
            let (Some(min), Some(max)) = (min, max) else { continue };
            ambiguous |= min != max;
            if max > Credits::ZERO {
                self.charged.entry((cycle, credit_type.to_owned())).or_default().add(min, max);
            }
        }
        self.ambiguous += u64::from(ambiguous);
    }

    /// Counts the identities of an event's attempts, by day.
    pub fn remember(&mut self, attempts: &[Priced], readings: &[Reading]) {
        if let ([attempt], [_]) = (attempts, readings) {
            self.remembered.entry(attempt.days.own).or_default().add(1, 1);
            return;
        }
        let mut days: Vec<i64> = attempts.iter().map(|attempt| attempt.days.own).collect();
        days.sort_unstable();
        days.dedup();
        for day in days {
            // What was decided is remembered under its own day; a duplicate too, but for a repeat within a call.
            let decided_on = |reading: &Reading| {
                attempts.iter().zip(reading).any(|(attempt, decided)| *decided && attempt.days.own == day)
            };
            let certain = !readings.is_empty() && readings.iter().all(decided_on);
            let on_day = attempts.iter().filter(|attempt| attempt.days.own == day).count() as u64;
            let most = on_day.min(self.generations.get(&day).copied().unwrap_or(1));
            self.remembered.entry(day).or_default().add(u64::from(certain), most);
        }
    }

    /// Adds what other events come to.
    pub fn plus(&mut self, other: &Sums) {
        let Sums { charged, remembered, marks, ambiguous, generations: _ } = other;
        charged.iter().for_each(|(key, sum)| self.charged.entry(key.clone()).or_default().add(sum.min, sum.max));
        remembered.iter().for_each(|(day, sum)| self.remembered.entry(*day).or_default().add(sum.min, sum.max));
        marks.iter().for_each(|(cycle, sum)| self.marks.entry(*cycle).or_default().add(sum.min, sum.max));
        self.ambiguous += ambiguous;
    }

    fn charge(&mut self, resolver: &Resolver<'_>, attempt: &Priced, min: Credits, max: Credits) {
        let class = &resolver.classes[attempt.class as usize];
        self.charged.entry((class.cycle, class.credit_type.clone())).or_default().add(min, max);
    }
}

/// The ways in which the early attempts of an event ended, for the totals.
pub fn early_ways(
    resolver: &Resolver<'_>,
    attempts: &[Priced],
    readings: &[Reading],
) -> Vec<Vec<(Partition, Outcome)>> {
    let way = |reading: &Reading| {
        let early = attempts.iter().zip(reading).filter(|(attempt, _)| attempt.early);
        let ended = early.map(|(attempt, decided)| {
            (Partition::usage(attempt.kept.partition), resolver.ended(attempt, *decided).outcome)
        });
        ended.collect::<Vec<_>>()
    };
    let mut ways: Vec<_> = readings.iter().map(way).collect();
    ways.sort_unstable();
    ways.dedup();
    ways
}
