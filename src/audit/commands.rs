//! Accounts as the log of commands and time make them: with the ledger's decisions, and sums of its own.

use std::collections::{BTreeMap, BTreeSet};

use chrono_tz::Tz;
use rustc_hash::FxHashMap;

use crate::ledger::account::{AccountView, Life};
use crate::ledger::call::Change;
use crate::ledger::catalogue::{Amount, Catalogue};
use crate::ledger::command::{Command, decide};
use crate::ledger::credits::Credits;
use crate::ledger::grants::GrantKind;
use crate::ledger::outcome::Outcome;
use crate::ledger::steps::{MeterTime, steps_until};

/// An account after the commands that were folded so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Commanded {
    /// What is left of grants is not known here, only what was granted.
    pub view: Option<AccountView>,
    /// Plans that others replaced within a cycle, by its number: in order, with the append time of what replaced each.
    pub earlier: BTreeMap<i32, Vec<(i64, String)>>,
    /// Credits that adjustments took as used, by cycle and credit type.
    pub taken: BTreeMap<(i32, String), Credits>,
    /// Commands that were applied, by the half of their identity that is remembered; with the other half.
    pub applied: FxHashMap<i64, u64>,
    /// Commands that were taken for others, since the remembered halves are the same.
    pub collisions: u64,
    /// The zones that it has had.
    pub zones: Vec<Tz>,
    pub limits: Limits,
}

/// Which credit types an account's members had limits of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    pub ever: bool,
    now: BTreeSet<String>,
    /// The number of the cycle in which limits of a type came or went last.
    changed: BTreeMap<String, i32>,
}

impl Limits {
    fn notice(&mut self, view: &AccountView, is_first: bool) {
        let limits = view.config.member_limits.iter();
        let now: BTreeSet<String> = limits.map(|limit| limit.credit_type.clone()).collect();
        for credit_type in self.now.symmetric_difference(&now).filter(|_| !is_first) {
            self.changed.insert(credit_type.clone(), view.cycle.number);
        }
        self.ever |= !now.is_empty();
        self.now = now;
    }

    /// Whether use of a type was counted by member through all of a cycle, and since (`None`: now and then).
    pub fn counted(&self, credit_type: &str, cycle: i32) -> Option<bool> {
        let changed = self.changed.get(credit_type).is_some_and(|changed| *changed >= cycle);
        (!changed).then(|| self.now.contains(credit_type))
    }
}

impl Commanded {
    /// Folds the next command, and says how it must have ended. That it was refused stands, if it was told.
    pub fn fold(
        &mut self,
        catalogue: &Catalogue,
        command: &Command,
        (offset, append_ms): (i64, i64),
        is_refused: bool,
    ) -> Outcome {
        let identity = command.identity;
        if is_refused {
            return Outcome::Refused;
        }
        if let Some(other) = self.applied.get(&identity.member) {
            self.collisions += u64::from(*other != identity.other);
            return Outcome::Duplicate;
        }
        // Whatever the log held before a renewal was applied before it.
        self.pass(catalogue, |view| view.next_change_ms().is_some_and(|at_ms| at_ms <= append_ms));
        if self.change(decide(catalogue, self.view.as_ref(), command), offset, append_ms).is_none() {
            return Outcome::Refused;
        }
        self.applied.insert(identity.member, identity.other);
        Outcome::Applied
    }

    /// Lets time pass, as long as a condition holds.
    pub fn pass(&mut self, catalogue: &Catalogue, goes_on: impl Fn(&AccountView) -> bool) {
        let Some(view) = &mut self.view else { return };
        while goes_on(view) {
            let Some(at_ms) = view.next_change_ms() else { return };
            let steps = steps_until(catalogue, view, at_ms, MeterTime::default());
            if steps.is_empty() {
                return;
            }
            steps.iter().for_each(|step| view.take(step));
            notice(&mut self.zones, &mut self.limits, view);
        }
    }

    /// `None`: it is refused.
    fn change(&mut self, change: Change, offset: i64, append_ms: i64) -> Option<()> {
        let mut view = self.view.clone();
        let mut earlier = None;
        match change {
            Change::Refuse(_) => return None,
            Change::Put { config, next, opens, grants, .. } => {
                let config = *config;
                let opened = opens.map(|cycle| AccountView::opened(config.clone(), cycle));
                let account = view.get_or_insert_with(|| opened.expect("the first put opens a cycle"));
                let replaced = std::mem::replace(&mut account.config, config).plan;
                earlier = (replaced != account.config.plan).then_some((account.cycle.number, replaced));
                account.next = next.map(|next| *next);
                for (credit_type, kind, amount) in grants {
                    grant(account, &credit_type, kind, amount);
                }
            }
            Change::Grant(lot) => {
                let account = view.as_mut()?;
                if lot.begun {
                    grant(account, &lot.credit_type, lot.kind, Amount::Limited(lot.left));
                }
                account.lots.insert(offset, lot);
            }
            Change::Void { created } => {
                view.as_mut()?.lots.remove(&created);
            }
            Change::Adjust { credit_type, amount, adds: true, .. } => {
                grant(view.as_mut()?, &credit_type, GrantKind::Adjusted, Amount::Limited(amount));
            }
            Change::Adjust { credit_type, amount, adds: false, .. } => {
                let number = view.as_ref()?.cycle.number;
                *self.taken.entry((number, credit_type)).or_default() += amount;
            }
            Change::Close { at_ms, .. } => {
                let account = view.as_mut()?;
                account.life = Life::Closing;
                account.cycle.end_ms = at_ms;
                account.next = None;
            }
        }
        if let Some((number, plan)) = earlier {
            self.earlier.entry(number).or_default().push((append_ms, plan));
        }
        if let Some(view) = &view {
            notice(&mut self.zones, &mut self.limits, view);
        }
        self.view = view;
        Some(())
    }
}

/// Takes note of what usage is broken down and counted by.
fn notice(zones: &mut Vec<Tz>, limits: &mut Limits, view: &AccountView) {
    limits.notice(view, zones.is_empty());
    if !zones.contains(&view.config.timezone) {
        zones.push(view.config.timezone);
    }
}

/// Whether it fits below the largest balance is not asked: that it did not was told.
fn grant(account: &mut AccountView, credit_type: &str, kind: GrantKind, amount: Amount) {
    account.pools.entry(credit_type.to_owned()).or_default().granted.add(kind, amount);
}
