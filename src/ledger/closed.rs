//! Closed cycles: what their statements say, and late use of what they let expire.
//!
//! An event that is dated in a closed cycle, and above the floor, is charged to that cycle: from what expired at its
//! close, then from lots in force at its time, then as the plan's policy says. The statement is then restated.

use std::collections::BTreeMap;

use super::apply::judge;
use super::catalogue::{Amount, Overage};
use super::credits::Credits;
use super::event::Class;
use super::grants::{GrantKind, Granted};
use super::outcome::Verdict;
use super::shard::Account;

/// A statement is restated at most once in this time.
pub const RESTATE_EVERY_MS: i64 = 60_000;

/// A cycle that was closed. Kept until nothing can be charged to it any more.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedCycle {
    pub start_ms: i64,
    pub end_ms: i64,
    /// By which late events are priced.
    pub plan: String,
    pub overage: Overage,
    /// 1, and one more for each change since the close.
    pub revision: u32,
    /// The number of its last statement; 0: a program of before wrote it, which changes a cycle without counting.
    pub told: u32,
    /// In meter time.
    pub stated_ms: i64,
    /// Whether it has changed since.
    pub restate: bool,
    /// When to look whether it may be forgotten.
    pub keep_ms: i64,
    pub counters: BTreeMap<String, ClosedCounter>,
}

/// One credit type in a closed cycle: `granted = used + expired + moved`, and overage beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClosedCounter {
    pub granted: Granted,
    pub charged: Credits,
    pub expired: Credits,
    /// What went on to the next cycle: lots that end later, and carried credits.
    pub moved: Credits,
    /// What expired at the close: late use takes it first.
    pub spare: Credits,
    /// Events that were denied.
    pub denied: u64,
}

impl ClosedCounter {
    pub fn overage(&self) -> Credits {
        match self.granted.total() {
            Amount::Limited(granted) => self.charged - self.charged.min(granted - self.expired - self.moved),
            Amount::Unlimited => Credits::ZERO,
        }
    }
}

impl ClosedCycle {
    pub fn holds(&self, time_ms: i64) -> bool {
        self.start_ms <= time_ms && time_ms < self.end_ms
    }

    /// The number of a statement of it as it is. It counts from when the state was counted anew, if that was after its end: which
    /// events had been late before depended on the order between partitions, and so did the numbers that were told.
    pub fn number(&self, rebuilt_s: u32) -> u32 {
        self.base(rebuilt_s) + self.revision
    }

    pub(super) fn base(&self, rebuilt_s: u32) -> u32 {
        if self.end_ms <= i64::from(rebuilt_s) * 1000 { rebuilt_s } else { 0 }
    }

    fn change(&mut self) {
        self.revision += 1;
        self.restate = true;
    }

    /// When something is to be done about it, in meter time.
    pub fn due_ms(&self) -> i64 {
        if self.restate { self.stated_ms + RESTATE_EVERY_MS } else { self.keep_ms }
    }
}

impl Account {
    /// Decides an event of a closed cycle, and charges it. The remaining credits are those before it.
    pub fn use_late(&mut self, number: i32, class: &Class, dated_ms: i64) -> (Verdict, Credits, Option<Credits>) {
        let credit_type = &class.credit_type;
        let closed = &self.closed[&number];
        let overage = closed.overage;
        let counter = closed.counters.get(credit_type).copied().unwrap_or_default();
        let mut lots = Vec::new();
        let remaining = match counter.granted.total() {
            Amount::Unlimited => None,
            Amount::Limited(_) => {
                // What the open cycle has used is not there to be used again.
                self.settle(credit_type);
                lots = self.lots_in_force(credit_type, dated_ms);
                Some(lots.iter().fold(counter.spare, |sum, created| sum + self.lots[created].left))
            }
        };
        let (verdict, uncovered) = judge(class, remaining, counter.charged, counter.overage(), overage);
        match verdict {
            Verdict::Charged | Verdict::Capped => self.charge_late(number, credit_type, class.cost - uncovered, &lots),
            Verdict::Denied(_) => {
                let closed = self.closed.get_mut(&number).expect("it was read above");
                closed.counters.entry(credit_type.clone()).or_default().denied += 1;
                closed.change();
            }
            Verdict::Free | Verdict::Duplicate | Verdict::Voided => {}
        }
        (verdict, uncovered, remaining)
    }

    fn charge_late(&mut self, number: i32, credit_type: &str, cost: Credits, lots: &[i64]) {
        let closed = self.closed.get_mut(&number).expect("the caller has read it");
        let counter = closed.counters.entry(credit_type.to_owned()).or_default();
        let spare = cost.min(counter.spare);
        counter.charged += cost;
        counter.spare = counter.spare - spare;
        counter.expired = counter.expired - spare;
        closed.change();
        let mut open = cost - spare;
        for created in lots {
            let taken = open.min(self.lots[created].left);
            open = open - taken;
            self.take_late(number, *created, taken);
        }
    }

    /// Gives back what was charged to a closed cycle: what exceeds its overage is again in the lots that it was taken from, as
    /// far as they live; the rest expires there, for late use to take. `unlimited`: nothing was taken for it.
    pub fn refund_late(&mut self, number: i32, credit_type: &str, amount: Credits, unlimited: bool) {
        let closed = self.closed.get_mut(&number).expect("the call was refused if it is kept no more");
        closed.change();
        let counter = closed.counters.entry(credit_type.to_owned()).or_default();
        let mut back = amount - amount.min(counter.overage());
        counter.charged = counter.charged - amount;
        if unlimited {
            return;
        }
        // What the open cycle takes comes from what there was before.
        self.settle(credit_type);
        for created in self.lots_used_in(number, credit_type) {
            let used = self.lots[&created].used[&number];
            let Amount::Limited(given) = self.fitting(credit_type, Amount::Limited(back.min(used))) else {
                unreachable!("it is limited")
            };
            back = back - given;
            self.take_late(number, created, Credits::ZERO - given);
        }
        let closed = self.closed.get_mut(&number).expect("it was there above");
        let counter = closed.counters.get_mut(credit_type).expect("it was there above");
        if counter.granted.total() != Amount::Unlimited {
            (counter.expired, counter.spare) = (counter.expired + back, counter.spare + back);
        }
    }

    /// A closed cycle takes credits of a lot that went on from it; below zero, gives them back.
    fn take_late(&mut self, number: i32, created: i64, taken: Credits) {
        let lot = self.lots.get_mut(&created).expect("it is in force");
        lot.take(number, taken);
        let (credit_type, kind) = (lot.credit_type.clone(), lot.kind);
        self.move_back(number, &credit_type, kind, taken);
    }

    /// Credits of a lot that had gone on from a closed cycle are used there after all; below zero, they go on after all.
    fn move_back(&mut self, number: i32, credit_type: &str, kind: GrantKind, taken: Credits) {
        if taken == Credits::ZERO {
            return;
        }
        for (&other, closed) in self.closed.range_mut(number..) {
            let counter = closed.counters.entry(credit_type.to_owned()).or_default();
            if counter.granted.total() != Amount::Unlimited {
                counter.moved = counter.moved - taken;
            }
            if other > number {
                counter.granted.take(kind, taken);
                closed.change();
            }
        }
        let pool = self.pools.entry(credit_type.to_owned()).or_default();
        pool.granted.take(kind, taken);
        let counter = self.counters.entry(credit_type.to_owned()).or_default();
        if let Amount::Limited(granted) = counter.granted {
            counter.granted = Amount::Limited(granted - taken);
        }
    }
}
