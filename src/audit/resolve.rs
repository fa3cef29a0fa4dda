//! What an account's usage comes to: each event priced with the ledger, once, as the records allow.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::attempts::{Attempt, Telling, readings};
use super::fold::{Folded, Kept, Kinds};
use super::members::Members;
use super::once::{WAYS_MAX, Way};
use super::recorded::{Decision, Denials, Told};
use crate::ledger::account::{AccountView, Life};
use crate::ledger::call::Partition;
use crate::ledger::catalogue::Catalogue;
use crate::ledger::credits::Credits;
use crate::ledger::event::{Class, Days, Judge, price, terms_at};
use crate::ledger::outcome::{DeadReason, Denial, Outcome};

/// An attempt with its price and what a denial says of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Priced {
    pub kept: Kept,
    /// The likeliest, where it is not known by which plan of its cycle it was judged.
    pub class: u32,
    pub days: Days,
    pub early: bool,
    pub decision: Option<Decision>,
}

/// A reading: for each attempt the class by which it was decided; `None`: it is a duplicate.
pub type Reading = Vec<Option<u32>>;

/// Prices of an account: by kind, the cycle that holds the date, the period between changes of prices that does, and which
/// of the cycle's plans.
type Prices = FxHashMap<(u32, Result<Option<i32>, DeadReason>, usize, usize), Result<u32, DeadReason>>;

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
    /// Of a void: what it took the charge back from.
    pub takes_back: Option<Back>,
}

/// An event whose charge a void took back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Back {
    pub dated_ms: i64,
    pub user: u32,
    /// The cycle by the void's own time (`None`: the open one): where it takes from members' counts.
    pub cycle: Option<i32>,
}

impl Ended {
    pub const FREE: Ended = Ended { outcome: Outcome::Free, charged: Credits::ZERO, takes_back: None };
    /// Of a void that found nothing to take back, and of an event whose void came first.
    pub const VOIDED: Ended = Ended { outcome: Outcome::Voided, ..Ended::FREE };
}

impl<'a> Resolver<'a> {
    pub fn new(catalogue: &'a Catalogue, kinds: &'a Kinds) -> Resolver<'a> {
        let single = vec![vec![None]];
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
        let (mut classes, mut others) = (Vec::new(), Vec::new());
        for group in folded.attempts.chunk_by(|a, b| a.identity.member == b.identity.member) {
            attempts.clear();
            others.clear();
            for kept in group {
                let told = denials.of(kept.partition, kept.offset, account, kept.identity).cloned();
                if let Err(reason) = self.price(folded, kept, &mut prices, &mut classes) {
                    visit(self, Item::Unpriced(kept, reason));
                    continue;
                }
                let decision = told.as_ref().map(|told| told.decision);
                let likeliest = classes[0];
                let class_of = |class: &u32| &self.classes[*class as usize];
                match &told {
                    Some(told) => classes.retain(|class| agrees(told, class_of(class))),
                    // A denial would say so.
                    None => classes.retain(|class| class_of(class).judge != Judge::NotEntitled),
                }
                if let Some(told) = told.filter(|_| classes.is_empty()) {
                    visit(self, Item::BadDenial(kept, class_of(&likeliest), told));
                }
                let class = classes.first().copied().unwrap_or(likeliest);
                others.extend(classes.iter().skip(1).map(|class| (attempts.len(), *class)));
                let days = Days::of(kept.time_ms, tolerance_ms);
                attempts.push(Priced { kept: *kept, class, days, early: early(kept), decision });
            }
            if attempts.iter().any(|attempt| attempt.kept.identity != attempts[0].kept.identity) {
                visit(self, Item::Collision(&attempts));
            }
            match attempts.as_slice() {
                [] => {}
                [single] if others.is_empty() && self.telling(single) != Telling::NotDecided => {
                    self.single[0][0] = Some(single.class);
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
                    let readings: Vec<Reading> =
                        readings.iter().flat_map(|decided| by_class(several, &others, decided)).collect();
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

    /// The classes by which a record may have been judged, the likeliest first.
    ///
    /// Commands and usage come from different partitions: whether a record was judged before or after a command that put
    /// another plan within its cycle, nobody knows afterwards. So each plan of the cycle counts, for each record by itself;
    /// that those of one partition were judged in their order is not looked at. The likeliest is the plan in force when it
    /// was appended. And a record that is dated after its account's end, and is no dead letter, was judged before it was closed.
    fn price(
        &mut self,
        folded: &Folded,
        kept: &Kept,
        prices: &mut Prices,
        classes: &mut Vec<u32>,
    ) -> Result<(), DeadReason> {
        classes.clear();
        let mut view = folded.commanded.view.as_ref().ok_or(DeadReason::UnknownAccount)?;
        let dated_ms = kept.dated_ms();
        let longer;
        if view.life != Life::Open && dated_ms >= view.cycle.end_ms {
            longer = with_no_end(view);
            view = &longer;
        }
        let cycle = terms_at(view, dated_ms).map(|(_, cycle)| cycle);
        let number = cycle.map(|cycle| cycle.unwrap_or(view.cycle.number));
        let earlier = number.ok().and_then(|number| folded.commanded.earlier.get(&number));
        let earlier = earlier.map_or(&[][..], Vec::as_slice);
        let at = earlier.iter().position(|(until_ms, _)| kept.append_ms < *until_ms).unwrap_or(earlier.len());
        let mut dead = None;
        for plan in [at].into_iter().chain((0..=earlier.len()).filter(|plan| *plan != at)) {
            let key = (kept.kind, cycle, self.catalogue.period_at(dated_ms), plan);
            let class = match prices.get(&key) {
                Some(known) => *known,
                None => {
                    let class = match earlier.get(plan) {
                        None => self.price_for(view, kept.kind, dated_ms),
                        Some((_, plan)) => self.price_for(&with_plan(view, cycle, plan), kept.kind, dated_ms),
                    };
                    prices.insert(key, class);
                    class
                }
            };
            match class {
                Ok(class) if !classes.contains(&class) => classes.push(class),
                Ok(_) => {}
                Err(reason) => dead = dead.or(Some(reason)),
            }
        }
        dead.filter(|_| classes.is_empty()).map_or(Ok(()), Err)
    }

    fn price_for(&mut self, view: &AccountView, kind: u32, dated_ms: i64) -> Result<u32, DeadReason> {
        let mut event = self.kinds.examples[kind as usize].clone();
        event.dated_ms = dated_ms;
        price(self.catalogue, view, &event).map(|class| {
            *self.index.entry(class).or_insert_with_key(|class| {
                self.classes.push(class.clone());
                u32::try_from(self.classes.len() - 1).expect("memory ends earlier")
            })
        })
    }

    /// How an attempt ended that was decided by a class; without one it is a duplicate.
    pub fn ended(&self, attempt: &Priced, decided: Option<u32>) -> Ended {
        let Some(class) = decided.map(|class| &self.classes[class as usize]) else {
            return Ended { outcome: Outcome::Duplicate, ..Ended::FREE };
        };
        let (outcome, charged) = match attempt.decision {
            Some(Decision::Denied(_)) => (Outcome::Denied, Credits::ZERO),
            Some(Decision::Capped { uncovered }) => (Outcome::Capped, class.cost - uncovered),
            None if class.judge == Judge::Free => (Outcome::Free, Credits::ZERO),
            None if class.judge == Judge::Void => (Outcome::Voided, Credits::ZERO),
            None => (Outcome::Charged, class.cost),
        };
        Ended { outcome, charged, takes_back: None }
    }

    /// Whether what was decided by a class is charged only once.
    pub fn asks_once(&self, decided: Option<u32>) -> bool {
        decided.is_some_and(|class| self.classes[class as usize].once)
    }

    /// How the attempts at an event ended in a reading.
    pub fn all_ended(&self, attempts: &[Priced], reading: &Reading) -> Vec<(Priced, Ended)> {
        let each = attempts.iter().zip(reading);
        each.map(|(attempt, decided)| (attempt.by(*decided), self.ended(attempt, *decided))).collect()
    }
}

impl Priced {
    /// As it is in a reading.
    pub fn by(&self, decided: Option<u32>) -> Priced {
        Priced { class: decided.unwrap_or(self.class), ..*self }
    }
}

/// A closed account as it was before, in its last cycle.
fn with_no_end(view: &AccountView) -> AccountView {
    let mut view = view.clone();
    if view.life == Life::Closing {
        view.cycle.end_ms = i64::MAX;
    }
    if let Some(last) = view.closed.get_mut(&view.cycle.number) {
        last.end_ms = i64::MAX;
    }
    view
}

/// The account as it was while its cycle (`None`: the open one) had another plan.
fn with_plan(view: &AccountView, cycle: Result<Option<i32>, DeadReason>, plan: &str) -> AccountView {
    let mut view = view.clone();
    match cycle.ok().flatten().and_then(|number| view.closed.get_mut(&number)) {
        Some(closed) => plan.clone_into(&mut closed.plan),
        None => plan.clone_into(&mut view.config.plan),
    }
    view
}

/// The readings by which attempts were decided: with each class that those may have beside the likeliest.
fn by_class(attempts: &[Priced], others: &[(usize, u32)], decided: &[bool]) -> Vec<Reading> {
    let mut readings = vec![Reading::new()];
    for (index, (attempt, decided)) in attempts.iter().zip(decided).enumerate() {
        let mut classes = vec![decided.then_some(attempt.class)];
        let others = others.iter().filter(|(of, _)| *decided && *of == index).map(|(_, class)| Some(*class));
        classes.extend(others);
        if readings.len() * classes.len() > WAYS_MAX {
            classes.truncate(1);
        }
        let longer = |class: &Option<u32>| {
            let class = *class;
            readings.iter().map(move |reading| reading.iter().copied().chain([class]).collect())
        };
        readings = classes.iter().flat_map(longer).collect();
    }
    readings
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
    pub members: Members,
    /// Events whose price depends on the reading.
    pub ambiguous: u64,
    /// Generations of sets of each day: a duplicate that came after a day had grown is remembered in both.
    pub generations: BTreeMap<i64, u64>,
}

impl Sums {
    /// Adds an event. Of several readings the least and the most of each sum count.
    pub fn add(&mut self, resolver: &Resolver<'_>, attempts: &[Priced], readings: &[Reading]) {
        self.remember(attempts, readings);
        if let ([attempt], [reading]) = (attempts, readings) {
            let ended = resolver.ended(attempt, reading[0]);
            if ended.charged > Credits::ZERO {
                self.charge(resolver, attempt, ended.charged, ended.charged);
            }
            return self.members.add_one_of(resolver, &[&[(attempt.by(reading[0]), ended)]]);
        }
        let ways: Vec<_> = readings.iter().map(|reading| resolver.all_ended(attempts, reading)).collect();
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
        self.members.add_one_of(resolver, ways);
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
        if let ([attempt], [_, ..]) = (attempts, readings) {
            self.remembered.entry(attempt.days.own).or_default().add(1, 1);
            return;
        }
        let mut days: Vec<i64> = attempts.iter().map(|attempt| attempt.days.own).collect();
        days.sort_unstable();
        days.dedup();
        for day in days {
            // What was decided is remembered under its own day; a duplicate too, but for a repeat within a call.
            let decided_on = |reading: &Reading| {
                attempts.iter().zip(reading).any(|(attempt, decided)| decided.is_some() && attempt.days.own == day)
            };
            let certain = !readings.is_empty() && readings.iter().all(decided_on);
            let on_day = attempts.iter().filter(|attempt| attempt.days.own == day).count() as u64;
            let most = on_day.min(self.generations.get(&day).copied().unwrap_or(1));
            self.remembered.entry(day).or_default().add(u64::from(certain), most);
        }
    }

    /// Adds what other events come to.
    pub fn plus(&mut self, other: &Sums) {
        let Sums { charged, remembered, marks, members, ambiguous, generations: _ } = other;
        self.members.plus(members);
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
