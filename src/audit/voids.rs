//! What voids took back: all orders of the events that hang together are tried, partition against partition, by the rules of
//! the ledger (`ledger/void.rs`, `ledger/once.rs`). With one partition there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;

use rustc_hash::{FxBuildHasher, FxHashSet};

use super::once::{Asking, Mark, WAYS_MAX, Way, Ways, next};
use super::resolve::{Back, Ended, Priced, Resolver};
use crate::ledger::credits::Credits;
use crate::ledger::event::Judge;
use crate::ledger::outcome::Outcome;

/// Events that are taken in all orders together.
const STEPS_MAX: usize = 100_000;
/// Choices on one way: each lies on the stack. From then on the log's own order counts.
const DEPTH_MAX: usize = 512;

/// An attempt that was decided.
#[derive(Clone, Copy)]
struct Step {
    attempt: Priced,
    mark: Option<Mark>,
    /// The event that it is, or takes back.
    event: i64,
}

/// What was kept of an event; `None`: its void waits.
type Kept = Option<Charge>;

#[derive(Clone, Copy, Hash)]
struct Charge {
    class: u32,
    cost: Credits,
    /// The mark that it has set.
    mark: Option<Mark>,
    dated_ms: i64,
    user: u32,
}

#[derive(Clone, Default)]
struct State {
    /// By UTC day and event.
    kept: BTreeMap<(i64, i64), Kept>,
    marks: BTreeSet<Mark>,
    /// Of how the attempts ended so far, whatever their order.
    ended: u64,
}

struct Search<'a> {
    resolver: &'a Resolver<'a>,
    /// Marks that are set already.
    set: &'a BTreeSet<Mark>,
    /// By partition, in order.
    lanes: Vec<Vec<Step>>,
    steps: usize,
    /// How the attempts ended on the way to where the search is.
    ended: Vec<(Priced, Ended)>,
    /// Places and states from which all ways are known.
    met: FxHashSet<u64>,
    found: Vec<Way>,
    /// Not every order was tried.
    cut_off: bool,
}

/// All ways of some events, voids among them. The first is the one in which they were appended.
pub fn ways(resolver: &Resolver<'_>, events: &[&Asking], set: &BTreeSet<Mark>) -> Ways {
    let mut found = Vec::new();
    let mut chosen = vec![0; events.len()];
    let (mut steps, mut cut_off) = (0, false);
    loop {
        let mut ended = Vec::new();
        let mut lanes: BTreeMap<i32, Vec<Step>> = BTreeMap::new();
        for (event, reading) in events.iter().zip(&chosen) {
            let decided = event.readings.get(*reading).map_or(&[][..], |reading| reading);
            for ((attempt, mark), decided) in event.attempts.iter().zip(&event.marks).zip(decided) {
                let mark = mark.filter(|_| resolver.asks_once(*decided));
                let step = Step { attempt: attempt.by(*decided), mark, event: event.tied_to.unwrap_or_default() };
                match decided {
                    Some(_) => lanes.entry(attempt.kept.partition).or_default().push(step),
                    None => ended.push((*attempt, resolver.ended(attempt, None))),
                }
            }
        }
        for lane in lanes.values_mut() {
            lane.sort_unstable_by_key(|step| step.attempt.kept.offset);
        }
        let at = vec![0; lanes.len()];
        let lanes = lanes.into_values().collect();
        let mut search = Search { resolver, set, lanes, steps, ended, met: FxHashSet::default(), found, cut_off };
        search.go(at, State::default(), 0);
        (steps, found) = (search.steps, search.found);
        cut_off = search.cut_off || found.len() >= WAYS_MAX || steps >= STEPS_MAX;
        if cut_off || !next(&mut chosen, events) {
            return Ways { found, cut_off };
        }
    }
}

impl Search<'_> {
    fn go(&mut self, mut at: Vec<usize>, mut state: State, depth: usize) {
        loop {
            let waiting = |lane: usize| self.lanes[lane].get(at[lane]).map(|step| (lane, *step));
            let mut candidates: Vec<(usize, Step)> = (0..at.len()).filter_map(waiting).collect();
            // What lies below the first look came first.
            if candidates.iter().any(|(_, step)| step.attempt.early) {
                candidates.retain(|(_, step)| step.attempt.early);
            }
            // The likeliest first, so that it is among what is found where not all can be tried.
            candidates.sort_by_key(|(lane, step)| (step.attempt.kept.append_ms, *lane));
            if candidates.len() > 1 {
                if !self.met.insert(place(&at, &state)) {
                    return;
                }
                if self.steps >= STEPS_MAX || self.found.len() >= WAYS_MAX || depth >= DEPTH_MAX {
                    candidates.truncate(1);
                    self.cut_off = true;
                }
            }
            let Some((last, others)) = candidates.split_last() else {
                return self.end(&state);
            };
            for (lane, step) in others {
                let (mut at, mut state) = (at.clone(), state.clone());
                let ended = self.ended.len();
                at[*lane] += 1;
                self.take(&mut state, step);
                self.go(at, state, depth + 1);
                self.ended.truncate(ended);
            }
            at[last.0] += 1;
            self.take(&mut state, &last.1);
        }
    }

    fn end(&mut self, state: &State) {
        let mut way = Way { ended: self.ended.clone(), set: state.marks.clone() };
        way.ended.sort_unstable_by_key(|(attempt, _)| (attempt.kept.partition, attempt.kept.offset));
        if !self.found.contains(&way) {
            self.found.push(way);
        }
    }

    fn ends(&mut self, state: &mut State, attempt: Priced, ended: Ended) {
        let place = (attempt.kept.partition, attempt.kept.offset, attempt.class);
        // Not in their order: the sum is the same for all orders.
        let hash = FxBuildHasher.hash_one((place, ended.outcome, ended.charged, ended.takes_back));
        state.ended = state.ended.wrapping_add(hash);
        self.ended.push((attempt, ended));
    }

    fn take(&mut self, state: &mut State, step: &Step) {
        self.steps += 1;
        let attempt = &step.attempt;
        let class = &self.resolver.classes[attempt.class as usize];
        let days = [Some(attempt.days.own), attempt.days.neighbour];
        let found = days.into_iter().flatten().map(|day| (day, step.event)).find(|key| state.kept.contains_key(key));
        if class.judge == Judge::Void {
            let Some(key) = found else {
                state.kept.insert((attempt.days.own, step.event), None);
                return self.ends(state, *attempt, Ended::VOIDED);
            };
            let Some(charge) = state.kept[&key] else { return self.ends(state, *attempt, Ended::VOIDED) };
            state.kept.remove(&key);
            if step.mark.is_some() && step.mark == charge.mark {
                state.marks.remove(&charge.mark.expect("it is the void's"));
            }
            // It counts against what it takes back, whatever it says of that.
            let against = Priced { class: charge.class, ..*attempt };
            let Charge { dated_ms, user, .. } = charge;
            let takes_back = Some(Back { dated_ms, user, cycle: class.cycle });
            return self.ends(
                state,
                against,
                Ended { charged: Credits::ZERO - charge.cost, takes_back, ..Ended::VOIDED },
            );
        }
        let ended = self.resolver.ended(attempt, Some(attempt.class));
        let takes = matches!(ended.outcome, Outcome::Charged | Outcome::Capped);
        let is_marked = step.mark.is_some_and(|mark| state.marks.contains(&mark) || self.set.contains(&mark));
        if takes && is_marked && attempt.decision.is_none() {
            return self.ends(state, *attempt, Ended::FREE);
        }
        if takes && class.voidable && found.is_some_and(|key| state.kept[&key].is_none()) {
            found.map(|key| state.kept.remove(&key));
            return self.ends(state, *attempt, Ended::VOIDED);
        }
        if takes {
            let mark = step.mark.filter(|_| !is_marked && ended.charged > Credits::ZERO);
            mark.map(|mark| state.marks.insert(mark));
            if class.voidable {
                let (dated_ms, user) = (attempt.kept.dated_ms(), attempt.kept.user);
                let charge = Charge { class: attempt.class, cost: ended.charged, mark, dated_ms, user };
                state.kept.insert((attempt.days.own, step.event), Some(charge));
            }
        }
        self.ends(state, *attempt, ended);
    }
}

/// What the rest of a way depends on, and how it came there.
fn place(at: &[usize], state: &State) -> u64 {
    FxBuildHasher.hash_one((at, &state.kept, &state.marks, state.ended))
}
