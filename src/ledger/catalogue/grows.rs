//! What a higher version may change: it adds, from a time on at which nothing was priced yet, and edits nothing that
//! was priced with. So an event has the same price whichever version judges it.

use std::collections::BTreeSet;

use super::entitled::{Entitlement, first_difference};
use super::{Action, Catalogue, CatalogueError, Line, Plan, Price};
use crate::ledger::time::rfc3339;

/// How long before its first change a catalogue must be installed: workers that still have the older one go on with it
/// until they have seen the newer, and must not price with it what this one prices otherwise.
const LEAD_MS: i64 = 60_000;

/// What a version adds to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Growth {
    /// The earliest time at which something costs or gives otherwise than before, and the line that says so.
    first: Option<(i64, Line)>,
}

impl Growth {
    pub fn starts_ms(&self) -> Option<i64> {
        self.first.map(|(starts_ms, _)| starts_ms)
    }

    /// Refuses what would change a price by which events dated up to a time were judged.
    pub fn check(&self, priced_up_to_ms: i64) -> Result<(), CatalogueError> {
        match self.first {
            Some((starts_ms, line)) if starts_ms <= priced_up_to_ms => {
                let reason = format!(
                    "it changes what counts from {} on, but events dated up to {} were priced already: let it start later",
                    rfc3339(starts_ms),
                    rfc3339(priced_up_to_ms),
                );
                Err(Catalogue::refuse(line, reason))
            }
            _ => Ok(()),
        }
    }

    /// The same, and what comes too soon for all workers to have it.
    pub fn check_in_time(&self, priced_up_to_ms: i64) -> Result<(), CatalogueError> {
        self.check(priced_up_to_ms)?;
        self.check(priced_up_to_ms + LEAD_MS).map_err(|error| CatalogueError {
            reason: format!(
                "it changes something less than a minute after the latest event that was priced ({}), and all workers \
                 must have it before: let it start later",
                rfc3339(priced_up_to_ms)
            ),
            ..error
        })
    }

    fn add(&mut self, from_ms: i64, line: Line) {
        if self.starts_ms().is_none_or(|first_ms| from_ms < first_ms) {
            self.first = Some((from_ms, line));
        }
    }
}

impl Catalogue {
    /// Whether this catalogue only adds to an older one, and from when on.
    pub fn grows_from(&self, old: &Catalogue) -> Result<Growth, CatalogueError> {
        let mut growth = Growth::default();
        if self.id == old.id {
            return Ok(growth);
        }
        if self.id.version <= old.id.version {
            let reason = format!(
                "version {} was installed already with another content: raise it above {}",
                self.id.version, old.id.version
            );
            let lower = format!("version {} is lower than {}, which is installed", self.id.version, old.id.version);
            let is_lower = self.id.version < old.id.version;
            return Err(Catalogue::refuse(self.line, if is_lower { lower } else { reason }));
        }
        let gone = |what: &str, name: &str| {
            let reason = format!("{what} `{name}` is gone: events were priced with it, so it must stay");
            Err(Catalogue::refuse(self.line, reason))
        };
        for name in &old.credit_types {
            if !self.credit_types.contains(name) {
                return gone("credit type", name);
            }
        }
        for (name, before) in &old.actions {
            let Some(now) = self.actions.get(name) else { return gone("action", name) };
            same_action(name, before, now, &mut growth)?;
        }
        for (name, before) in &old.plans {
            let Some(now) = self.plans.get(name) else { return gone("plan", name) };
            same_plan(name, before, now, old, &mut growth)?;
        }
        self.same_upgrades(old, &mut growth)?;
        Ok(growth)
    }

    /// Nobody has judged an event with an action that is new, but commands were: an account changed at once to a plan that allowed
    /// all that its own did. A plan that has more from the beginning would take that back.
    fn same_upgrades(&self, old: &Catalogue, growth: &mut Growth) -> Result<(), CatalogueError> {
        for (from_name, from) in &old.plans {
            let now = &self.plans[from_name];
            for (to_name, to) in old.plans.iter().filter(|(_, to)| to.may_give_all_of(from)) {
                let differs =
                    |at_ms: i64| to.may_do_all_of(from, at_ms) && !self.plans[to_name].may_do_all_of(now, at_ms);
                let entries = || now.actions.values().chain(self.plans[to_name].actions.values()).flatten();
                let bounds: BTreeSet<i64> = entries().flat_map(Entitlement::bounds).collect();
                if differs(i64::MIN) {
                    let reason = format!(
                        "plan `{from_name}`: it has a new action from the beginning that plan `{to_name}` has not, so that whoever \
                         was upgraded to that one would not have been: list the action with effective_from"
                    );
                    return Err(Catalogue::refuse(now.line, reason));
                }
                if let Some(first_ms) = bounds.into_iter().find(|at_ms| differs(*at_ms)) {
                    let entry = entries().find(|each| each.bounds().any(|bound_ms| bound_ms == first_ms));
                    growth.add(first_ms, entry.map_or(now.line, |entry| entry.line));
                }
            }
        }
        Ok(())
    }
}

impl Plan {
    /// Whether it gives all that another plan gives, in cycles of some time.
    fn may_give_all_of(&self, other: &Plan) -> bool {
        let starts = self.allowances.iter().chain(&other.allowances).map(|each| each.from_ms.unwrap_or(i64::MIN));
        starts.into_iter().any(|start_ms| self.gives_all_of(other, start_ms))
    }
}

fn same_action(name: &str, before: &Action, now: &Action, growth: &mut Growth) -> Result<(), CatalogueError> {
    let place = format!("action `{name}`");
    let edited = |what: &str, remedy: &str| Err(edits(now.line, &place, what, remedy));
    if before.credit_type != now.credit_type {
        return edited("its credit type", "make another action");
    }
    if set(&before.free_outcomes) != set(&now.free_outcomes) {
        return edited("free_outcomes", "add a dated price of 0 with when = { outcome = … }");
    }
    if before.charge_once != now.charge_once {
        return edited("charge_once", "make another action");
    }
    if before.voidable != now.voidable {
        return edited("voidable", "make another action");
    }
    same_prices(&place, now.line, &before.prices, &now.prices, growth)
}

fn same_plan(
    name: &str,
    before: &Plan,
    now: &Plan,
    old: &Catalogue,
    growth: &mut Growth,
) -> Result<(), CatalogueError> {
    let place = format!("plan `{name}`");
    let edited = |what: &str| Err(edits(now.line, &place, what, "make another plan"));
    if before.interval != now.interval {
        return edited("interval");
    }
    if before.overage != now.overage {
        return edited("overage");
    }
    if before.carry_over_max != now.carry_over_max {
        return edited("carry_over_max");
    }
    // Nobody has judged an event with an action that did not exist.
    for action in now.actions.keys().chain(before.actions.keys()).filter(|name| old.actions.contains_key(*name)) {
        let of = |plan: &Plan| plan.actions.get(action).cloned().unwrap_or_default();
        let (of_before, of_now) = (of(before), of(now));
        let Some(first) = first_difference(&of_before, &of_now) else { continue };
        let Some(first_ms) = first else {
            let what = format!("what it is entitled to from the beginning, here `{action}`,");
            let remedy = "list it with effective_from, or end it with effective_until";
            return Err(edits(now.line, &place, &what, remedy));
        };
        let entry = of_now.iter().find(|each| each.bounds().any(|bound_ms| bound_ms == first_ms));
        growth.add(first_ms, entry.map_or(now.line, |entry| entry.line));
    }
    for action in now.prices.keys().chain(before.prices.keys()).filter(|name| old.actions.contains_key(*name)) {
        let of = |plan: &Plan| plan.prices.get(action).cloned().unwrap_or_default();
        let place = format!("plan `{name}`, price of `{action}`");
        same_prices(&place, now.line, &of(before), &of(now), growth)?;
    }
    for allowance in now.allowances.iter().filter(|allowance| !before.allowances.contains(allowance)) {
        dated(&place, "an allowance", allowance.from_ms, allowance.line, growth)?;
    }
    for allowance in before.allowances.iter().filter(|allowance| !now.allowances.contains(allowance)) {
        dated(&place, "an allowance", allowance.from_ms, now.line, growth)?;
    }
    Ok(())
}

fn same_prices(
    place: &str,
    line: Line,
    before: &[Price],
    now: &[Price],
    growth: &mut Growth,
) -> Result<(), CatalogueError> {
    for price in now.iter().filter(|price| !before.contains(price)) {
        dated(place, "a price", price.from_ms, price.line, growth)?;
    }
    for price in before.iter().filter(|price| !now.contains(price)) {
        dated(place, "a price", price.from_ms, line, growth)?;
    }
    Ok(())
}

/// What is not in both versions must have a start; whether something was priced after it is for those who know.
fn dated(place: &str, what: &str, from_ms: Option<i64>, line: Line, growth: &mut Growth) -> Result<(), CatalogueError> {
    let Some(from_ms) = from_ms else {
        return Err(edits(
            line,
            place,
            &format!("{what} that counts from the beginning"),
            "add one with effective_from",
        ));
    };
    growth.add(from_ms, line);
    Ok(())
}

fn edits(line: Line, place: &str, what: &str, remedy: &str) -> CatalogueError {
    Catalogue::refuse(line, format!("{place}: {what} is not as it was, and events were priced with it: {remedy}"))
}

fn set(texts: &[String]) -> BTreeSet<&str> {
    texts.iter().map(String::as_str).collect()
}
