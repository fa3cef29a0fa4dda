//! What time does to an account: lots begin and end, cycles close and open, statements are restated.
//!
//! The worker's part: it knows the catalogue and the calendar. `roll.rs` takes the steps.

use std::collections::BTreeMap;

use super::account::{AccountConfig, AccountView, Life};
use super::catalogue::{Amount, Catalogue, Overage, Threshold};
use super::closed::ClosedCycle;
use super::credits::Credits;
use super::cycle::{Calendar, Cycle};
use super::day::Layout;
use super::grants::GrantKind;
use super::shard::Account;

/// Steps of one call: a script keeps everyone else waiting.
pub const STEPS_MAX: usize = 200;

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Lots begin or end within the cycle.
    Lots { at_ms: i64 },
    /// The cycle ends. `opens`: the next one; none where the account is closed.
    Renew { closes: Closes, opens: Option<Box<Opens>> },
    /// A closed cycle has changed: its statement is written anew.
    Restate { number: i32, cycle: Cycle },
    /// Nothing can be charged to a closed cycle any more; its marks and its members' counts go with it.
    Forget { number: i32, cycle: Cycle, marks: Option<Layout> },
}

impl Step {
    pub const NAMES: [&str; 4] = ["lots", "renew", "restate", "forget"];

    pub const fn name(&self) -> &'static str {
        match self {
            Step::Lots { .. } => "lots",
            Step::Renew { .. } => "renew",
            Step::Restate { .. } => "restate",
            Step::Forget { .. } => "forget",
        }
    }
}

/// By what a cycle that ends was judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Closes {
    pub cycle: Cycle,
    pub plan: String,
    pub overage: Overage,
    /// Credits of each type that the next cycle takes over at most, in the order of the types.
    pub carry_over: Vec<(String, Credits)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Opens {
    pub cycle: Cycle,
    /// Set where a change has waited for the renewal; with what it replaces.
    pub config: Option<(Box<AccountConfig>, Box<AccountConfig>)>,
    pub plan: String,
    pub thresholds: Vec<Threshold>,
    /// What plan and add-ons give, in the order of types and kinds.
    pub grants: Vec<(String, GrantKind, Amount)>,
}

/// What an account has to do up to a time, in order. By a meter time of 0 no statement is restated and no cycle
/// forgotten.
pub fn steps_until(catalogue: &Catalogue, view: &AccountView, time_ms: i64, meter: MeterTime) -> Vec<Step> {
    let mut view = view.clone();
    let mut steps = Vec::new();
    for (&number, closed) in &view.closed {
        let cycle = Cycle { number, start_ms: closed.start_ms, end_ms: closed.end_ms };
        if closed.restate && closed.due_ms() <= meter.now_ms {
            steps.push(Step::Restate { number, cycle });
        } else if !closed.restate && closed.keep_ms <= meter.now_ms && closed.end_ms <= meter.floor_ms {
            steps.push(Step::Forget { number, cycle, marks: view.marks.get(&number).cloned() });
        }
    }
    while steps.len() < STEPS_MAX
        && let Some(at_ms) = view.next_change_ms().filter(|at_ms| *at_ms <= time_ms)
    {
        let Some(step) = step_at(catalogue, &view, at_ms) else { break };
        view.take(&step);
        steps.push(step);
    }
    steps
}

/// How far a shard is in the brokers' time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterTime {
    pub now_ms: i64,
    pub floor_ms: i64,
}

fn step_at(catalogue: &Catalogue, view: &AccountView, at_ms: i64) -> Option<Step> {
    if at_ms < view.cycle.end_ms {
        return Some(Step::Lots { at_ms });
    }
    let plan = catalogue.plans.get(&view.config.plan)?;
    let closes = Closes {
        cycle: view.cycle,
        plan: view.config.plan.clone(),
        overage: view.config.overage(plan),
        carry_over: plan.carry_over_max.iter().map(|(credit_type, max)| (credit_type.clone(), *max)).collect(),
    };
    if view.life == Life::Closing {
        return Some(Step::Renew { closes, opens: None });
    }
    let config = view.next.as_ref().unwrap_or(&view.config);
    let plan = catalogue.plans.get(&config.plan)?;
    let cycle = next_cycle(config.calendar(plan), view.cycle)?;
    let opens = Opens {
        cycle,
        config: view.next.clone().map(|next| (Box::new(next), Box::new(view.config.clone()))),
        plan: config.plan.clone(),
        thresholds: config.thresholds(plan),
        grants: config.grants(plan, cycle.start_ms),
    };
    Some(Step::Renew { closes, opens: Some(Box::new(opens)) })
}

/// The cycle after another: to the calendar's first boundary more than half an interval later, so that a change of
/// anchor, interval or zone leaves no gap, and no cycle is shorter than half an interval.
pub fn next_cycle(calendar: Calendar, before: Cycle) -> Option<Cycle> {
    const HALF_A_MONTH_MS: i64 = 15 * super::event::DAY_MS;
    let start_ms = before.end_ms;
    let after = calendar.cycle_at(start_ms + HALF_A_MONTH_MS * i64::from(calendar.interval.months()))?;
    Some(Cycle { number: before.number.checked_add(1)?, start_ms, end_ms: after.end_ms })
}

impl AccountView {
    /// When time alone changes it next.
    pub fn next_change_ms(&self) -> Option<i64> {
        next_change_ms(self.life, self.cycle, self.lots.values().filter_map(|lot| lot.next_change_ms()))
    }

    pub fn is_due(&self, time_ms: i64) -> bool {
        self.next_change_ms().is_some_and(|at_ms| at_ms <= time_ms)
    }

    /// Follows a step, as far as prices, commands and later steps depend on it.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Lots { at_ms } => self.pass_lots(*at_ms, false),
            Step::Renew { opens, closes } => {
                let closed = ClosedCycle::of(closes);
                self.closed.insert(closes.cycle.number, closed);
                self.pools.clear();
                let Some(opens) = opens else {
                    self.life = Life::Closed;
                    self.lots.clear();
                    return;
                };
                self.pass_lots(closes.cycle.end_ms, true);
                self.cycle = opens.cycle;
                if let Some((config, _)) = &opens.config {
                    self.config = (**config).clone();
                    self.next = None;
                }
                for (credit_type, kind, amount) in &opens.grants {
                    self.pools.entry(credit_type.clone()).or_default().granted.add(*kind, *amount);
                }
            }
            Step::Forget { number, .. } => {
                self.closed.remove(number);
                self.marks.remove(number);
            }
            Step::Restate { .. } => {}
        }
    }

    fn pass_lots(&mut self, at_ms: i64, renewal: bool) {
        self.lots.retain(|_, lot| !(lot.ends_by(at_ms) || renewal && lot.begun && lot.expires_ms.is_none()));
        self.lots.values_mut().filter(|lot| lot.begins_by(at_ms)).for_each(|lot| lot.begun = true);
    }
}

/// When time alone changes an account next; `None`: never, it is closed.
fn next_change_ms(life: Life, cycle: Cycle, lots: impl Iterator<Item = i64>) -> Option<i64> {
    (life != Life::Closed).then(|| lots.fold(cycle.end_ms, i64::min))
}

/// The score of accounts that have nothing to wait for.
pub const NEVER_MS: i64 = 9_000_000_000_000_000;

impl Account {
    /// Its score in the due set.
    pub fn due_ms(&self) -> i64 {
        let change = next_change_ms(self.life, self.cycle, self.lots.values().filter_map(|lot| lot.next_change_ms()));
        let closed = self.closed.values().map(ClosedCycle::due_ms);
        change.into_iter().chain(closed).min().unwrap_or(NEVER_MS)
    }
}

impl ClosedCycle {
    pub(super) fn of(closes: &Closes) -> ClosedCycle {
        ClosedCycle {
            start_ms: closes.cycle.start_ms,
            end_ms: closes.cycle.end_ms,
            plan: closes.plan.clone(),
            overage: closes.overage,
            revision: 1,
            told: 0,
            stated_ms: 0,
            restate: false,
            keep_ms: 0,
            counters: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::cycle::Interval;

    fn calendar() -> impl Strategy<Value = Calendar> {
        let anchor =
            (0i64..20_000).prop_map(|days| NaiveDate::from_ymd_opt(1971, 1, 1).unwrap() + chrono::Duration::days(days));
        let interval = prop::sample::select(Interval::ALL.to_vec());
        let timezone = prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec());
        (anchor, interval, timezone).prop_map(|(anchor, interval, timezone)| Calendar { anchor, interval, timezone })
    }

    proptest! {
        /// Without gap or overlap, whatever changes at which renewal; a calendar that stays keeps its boundaries.
        #[test]
        fn cycles_tile_time_through_changes_of_the_calendar(
            first in calendar(),
            changes in prop::collection::vec(prop::option::of(calendar()), 1..12),
            time_ms in 0i64..2_000_000_000_000,
        ) {
            let mut calendar = first;
            let mut cycle = calendar.cycle_at(time_ms).expect("every time has a cycle");
            for change in changes {
                calendar = change.unwrap_or(calendar);
                let next = next_cycle(calendar, cycle).expect("every cycle has a next one");
                prop_assert_eq!((next.number, next.start_ms), (cycle.number + 1, cycle.end_ms));
                let half_ms = 15 * crate::ledger::event::DAY_MS * i64::from(calendar.interval.months());
                prop_assert!(next.end_ms - next.start_ms > half_ms);
                // It ends at a boundary, and from then on all do.
                prop_assert_eq!(calendar.cycle_at(next.end_ms).expect("a cycle").start_ms, next.end_ms);
                if change.is_none() && calendar.cycle_at(cycle.end_ms).expect("a cycle").start_ms == cycle.end_ms {
                    prop_assert_eq!(next.end_ms, calendar.cycle_at(cycle.end_ms).expect("a cycle").end_ms);
                }
                cycle = next;
            }
        }
    }
}
