//! What is charged once within a cycle: of the events that ask for one mark one was charged, and the others were free.
//!
//! Which one depends on the order in which they were applied. Within a partition the log gives it; between partitions
//! nobody knows it afterwards, so that all *ways* count that the records allow. Where only some of an event's attempts ask
//! for a mark, or for different ones, what they ask for is looked at together.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::{FxHashMap, FxHashSet};

use super::fold::Folded;
use super::resolve::{Ended, Priced, Reading, Resolver};
use super::voids;
use crate::ledger::call::Partition;
use crate::ledger::credits::Credits;
use crate::ledger::event::Identity;
use crate::ledger::outcome::Outcome;

/// Ways that are tried for what hangs together; hundreds of attempts in several partitions have more.
pub const WAYS_MAX: usize = 4_096;

/// The cycle (`None`: the open one), and what is charged once in it.
pub type Mark = (Option<i32>, Identity);

/// An event that asks for marks, is voided, or is a void: its attempts, how they can be read, and the mark that each asks
/// for.
pub struct Asking {
    pub attempts: Vec<Priced>,
    pub readings: Vec<Reading>,
    pub marks: Vec<Option<Mark>>,
    /// The remembered half of the event that it is, or takes back.
    pub tied_to: Option<i64>,
    is_void: bool,
}

/// What events hang together by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Tie {
    Mark(Mark),
    Event(i64),
}

/// The events of an account that hang together: by marks, and by voids.
#[derive(Default)]
pub struct Once {
    events: Vec<Asking>,
    /// The events that voids of the account name.
    voided: FxHashSet<i64>,
}

/// How all attempts of some events ended, and the marks that were set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Way {
    pub ended: Vec<(Priced, Ended)>,
    pub set: BTreeSet<Mark>,
}

impl Once {
    /// Keeps an event if it hangs together with others.
    pub fn keep(
        &mut self,
        resolver: &Resolver<'_>,
        folded: &Folded,
        attempts: &[Priced],
        readings: &[Reading],
    ) -> bool {
        let Folded { once, voids, .. } = folded;
        if once.is_empty() && voids.is_empty() {
            return false;
        }
        if self.voided.is_empty() {
            self.voided = voids.values().map(|identity| identity.member).collect();
        }
        let mark = |(index, attempt): (usize, &Priced)| {
            let class = &resolver.classes[attempt.class as usize];
            let asks = class.once || readings.iter().any(|reading| resolver.asks_once(reading[index]));
            let mark = once.get(&(attempt.kept.partition, attempt.kept.offset)).filter(|_| asks);
            mark.map(|mark| (class.cycle, *mark))
        };
        let marks: Vec<Option<Mark>> = attempts.iter().enumerate().map(mark).collect();
        let voids = attempts.iter().find_map(|attempt| voids.get(&(attempt.kept.partition, attempt.kept.offset)));
        let own = attempts.first().map(|attempt| attempt.kept.identity.member);
        let tied_to = voids.map(|voided| voided.member).or(own.filter(|own| self.voided.contains(own)));
        let asks = marks.iter().any(Option::is_some) || tied_to.is_some();
        if asks {
            let (attempts, readings, is_void) = (attempts.to_vec(), readings.to_vec(), voids.is_some());
            self.events.push(Asking { attempts, readings, marks, tied_to, is_void });
        }
        asks
    }

    /// For what hangs together, each way in which it may have ended. Marks that are set already stay so.
    pub fn each(self, resolver: &Resolver<'_>, set: &BTreeSet<Mark>, mut visit: impl FnMut(&[&Asking], Ways)) {
        let mut part_of: Vec<usize> = (0..self.events.len()).collect();
        let mut first: FxHashMap<Tie, usize> = FxHashMap::default();
        for (index, event) in self.events.iter().enumerate() {
            let marks = event.marks.iter().flatten().map(|mark| Tie::Mark(*mark));
            for tie in marks.chain(event.tied_to.map(Tie::Event)) {
                let other = *first.entry(tie).or_insert(index);
                let (own, other) = (root(&mut part_of, index), root(&mut part_of, other));
                part_of[own] = other;
            }
        }
        let mut parts: BTreeMap<usize, Vec<&Asking>> = BTreeMap::new();
        for (index, event) in self.events.iter().enumerate() {
            parts.entry(root(&mut part_of, index)).or_default().push(event);
        }
        for events in parts.values() {
            let any_void = events.iter().any(|event| event.is_void);
            visit(events, if any_void { voids::ways(resolver, events, set) } else { ways(resolver, events, set) });
        }
    }
}

/// In which ways some events may have ended.
#[derive(Debug, Default)]
pub struct Ways {
    /// The likeliest first, where they are voids.
    pub found: Vec<Way>,
    /// There are more than can be tried.
    pub cut_off: bool,
}

impl Ways {
    /// Ways between which all lie, those among them that were not tried: nothing was charged, or all of it was.
    pub fn with_bounds(self, resolver: &Resolver<'_>, events: &[&Asking]) -> Vec<Way> {
        let mut ways = self.found;
        if self.cut_off {
            let attempts = || events.iter().flat_map(|event| &event.attempts);
            for outcome in [Outcome::Duplicate, Outcome::Free, Outcome::Voided] {
                let ended = attempts().map(|attempt| (*attempt, Ended { outcome, ..Ended::FREE }));
                ways.push(Way { ended: ended.collect(), set: BTreeSet::new() });
            }
            let charged = events.iter().flat_map(|event| {
                event.attempts.iter().enumerate().map(|(index, attempt)| {
                    let classes = event.readings.iter().filter_map(|reading| reading[index]).chain([attempt.class]);
                    let class = classes.max_by_key(|class| resolver.classes[*class as usize].cost);
                    let charged = class.map_or(Credits::ZERO, |class| resolver.classes[class as usize].cost);
                    (attempt.by(class), Ended { outcome: Outcome::Charged, charged, ..Ended::FREE })
                })
            });
            let set = events.iter().flat_map(|event| event.marks.iter().flatten().copied()).collect();
            ways.push(Way { ended: charged.collect(), set });
        }
        ways
    }
}

/// The event that stands for all that an event hangs together with.
fn root(part_of: &mut [usize], mut index: usize) -> usize {
    while part_of[index] != index {
        part_of[index] = part_of[part_of[index]];
        index = part_of[index];
    }
    index
}

/// All ways of some events: by how their attempts are read, and which of those that ask for a mark came first.
fn ways(resolver: &Resolver<'_>, events: &[&Asking], set: &BTreeSet<Mark>) -> Ways {
    let mut ways = Vec::new();
    let mut chosen = vec![0; events.len()];
    loop {
        let mut asking: BTreeMap<Mark, Vec<Priced>> = BTreeMap::new();
        let mut others = Way::default();
        for (event, reading) in events.iter().zip(&chosen) {
            let decided = event.readings.get(*reading).map_or(&[][..], |reading| reading);
            for ((attempt, mark), decided) in event.attempts.iter().zip(&event.marks).zip(decided) {
                let ended = resolver.ended(attempt, *decided);
                let took_nothing = attempt.decision.is_some() && ended.charged == Credits::ZERO;
                match mark.filter(|_| resolver.asks_once(*decided)) {
                    Some(mark) if !took_nothing => asking.entry(mark).or_default().push(attempt.by(*decided)),
                    _ => others.ended.push((attempt.by(*decided), ended)),
                }
            }
        }
        let mut found = vec![others];
        for (mark, attempts) in &asking {
            let was_set = set.contains(mark);
            let firsts = if was_set { vec![None] } else { firsts(attempts) };
            let mut longer = Vec::new();
            for (way, first) in found.iter().flat_map(|way| firsts.iter().map(move |first| (way, *first))) {
                let mut way = way.clone();
                way.ended.extend(attempts.iter().zip(0..).map(|(attempt, index)| {
                    let free = attempt.decision.is_none() && first != Some(index);
                    let free = free.then_some(Ended::FREE);
                    (*attempt, free.unwrap_or_else(|| resolver.ended(attempt, Some(attempt.class))))
                }));
                way.set.extend((!was_set).then_some(*mark));
                longer.push(way);
                if ways.len() + longer.len() >= WAYS_MAX {
                    break;
                }
            }
            found = longer;
        }
        ways.extend(found);
        let cut_off = ways.len() >= WAYS_MAX;
        if cut_off || !next(&mut chosen, events) {
            return Ways { found: ways, cut_off };
        }
    }
}

/// The next choice of readings.
pub fn next(chosen: &mut [usize], events: &[&Asking]) -> bool {
    for (reading, event) in chosen.iter_mut().zip(events) {
        *reading += 1;
        if *reading < event.readings.len() {
            return true;
        }
        *reading = 0;
    }
    false
}

/// Which of the attempts that were decided, and took something, may be the one that was charged whole (`None`: none was, since
/// one that was capped came first).
///
/// One that was capped took what was left, and its message stands. After a fall-back another of another partition may be
/// decided before it, and be charged as well.
fn firsts(attempts: &[Priced]) -> Vec<Option<usize>> {
    let any_early = attempts.iter().any(|attempt| attempt.early);
    let place = |attempt: &Priced| (attempt.kept.partition, attempt.kept.offset);
    let mut heads: BTreeMap<i32, i64> = BTreeMap::new();
    for (partition, offset) in attempts.iter().map(place) {
        let head = heads.entry(partition).or_insert(offset);
        *head = offset.min(*head);
    }
    let may_be_first =
        |attempt: &Priced| heads[&attempt.kept.partition] == attempt.kept.offset && (attempt.early || !any_early);
    let capped: Vec<&Priced> = attempts.iter().filter(|attempt| attempt.decision.is_some()).collect();
    let beside = |attempt: &Priced| capped.iter().all(|capped| capped.kept.partition != attempt.kept.partition);
    let whole = attempts.iter().enumerate().filter(|(_, attempt)| attempt.decision.is_none());
    let whole = whole.filter(|(_, attempt)| may_be_first(attempt) && beside(attempt)).map(|(index, _)| Some(index));
    let none = capped.iter().any(|capped| may_be_first(capped)).then_some(None);
    let mut firsts: Vec<Option<usize>> = whole.chain(none).collect();
    if firsts.is_empty() {
        // What was capped came after another of its own partition: they contradict each other, and both count.
        firsts.extend(attempts.iter().position(may_be_first).map(Some));
    }
    firsts
}

impl Way {
    /// What its early attempts came to, for the totals.
    pub fn early(&self) -> Vec<(Partition, Outcome)> {
        let early = self.ended.iter().filter(|(attempt, _)| attempt.early);
        let mut early: Vec<_> =
            early.map(|(attempt, ended)| (Partition::usage(attempt.kept.partition), ended.outcome)).collect();
        early.sort_unstable();
        early
    }
}
