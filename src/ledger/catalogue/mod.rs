//! The price list: credit types, what each action costs, and what each plan allows.
//!
//! Read from TOML text. A bad catalogue is refused whole, with the line and the reason; the caller adds the file. A
//! higher version only grows: nothing that was priced with is edited.

/// The content in one spelling, for the hash.
mod canonical;
/// What a file may say.
mod check;
/// When a plan may do what.
mod entitled;
/// What a higher version may change.
mod grows;
/// Prices, when they hold, and which one counts.
mod price;
/// The file as it is written.
mod written;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::credits::Credits;
use super::cycle::Interval;

pub use entitled::{Entitlement, entitled};
pub use grows::Growth;
pub use price::{Conditions, Field, Price, When, choose, in_force};

/// A checked price list.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalogue {
    pub id: CatalogueId,
    pub credit_types: Vec<String>,
    pub actions: BTreeMap<String, Action>,
    pub plans: BTreeMap<String, Plan>,
    /// What it was read from. Shards keep it, so that a higher version can be compared with it.
    pub text: Arc<str>,
    /// The times at which some price or entitlement changes, in their order.
    changes_ms: Vec<i64>,
    line: Line,
}

/// Which price list a worker judges by. Workers with different ones must not write to the same shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogueId {
    pub version: u32,
    /// Of the content, not of the text: comments and order do not count.
    pub hash: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// The one of all its prices.
    pub credit_type: String,
    /// In the order of [`choose`]; one of them holds for every event at every time.
    pub prices: Vec<Price>,
    /// Values of the event's `outcome` for which nothing is charged.
    pub free_outcomes: Vec<String>,
    /// What it is charged for only once within a cycle.
    pub charge_once: Option<ChargeOnce>,
    /// Whether its events can be voided.
    pub voidable: bool,
    line: Line,
}

/// The data field that tells whether an action was charged before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChargeOnce {
    Contact,
    Company,
}

impl ChargeOnce {
    pub const fn field(self) -> Field {
        match self {
            ChargeOnce::Contact => Field::Contact,
            ChargeOnce::Company => Field::Company,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub interval: Interval,
    /// In the order of their start; the first has none.
    pub allowances: Vec<Allowance>,
    /// The actions that the plan is entitled to, and when, in the order of time. None of them has no time.
    pub actions: BTreeMap<String, Vec<Entitlement>>,
    pub overage: Overage,
    pub thresholds: Vec<Threshold>,
    /// What beats the general prices, by action, in the order of [`choose`].
    pub prices: BTreeMap<String, Vec<Price>>,
    /// Unused credits that go on into the next cycle, at most; a type that is not here has none.
    pub carry_over_max: BTreeMap<String, Credits>,
    line: Line,
}

/// What a plan gives for each cycle from a time on.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowance {
    /// `None`: from the beginning.
    pub from_ms: Option<i64>,
    pub amounts: BTreeMap<String, Amount>,
    line: Line,
}

/// An amount of a credit type that an account may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Limited(Credits),
    /// Only counted: there is no balance.
    Unlimited,
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Amount::Limited(credits) => credits.fmt(f),
            Amount::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl Amount {
    pub fn plus(self, other: Amount) -> Amount {
        match (self, other) {
            (Amount::Limited(left), Amount::Limited(right)) => Amount::Limited(left + right),
            (Amount::Unlimited, _) | (_, Amount::Unlimited) => Amount::Unlimited,
        }
    }
}

/// What happens to an event that costs more than remains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overage {
    /// It is denied.
    Reject,
    /// It takes what is left; the rest is never charged.
    Cap,
    /// It is charged beyond the grants, up to a limit for each credit type.
    Allow { limit: Option<Credits> },
}

/// When a low-balance alert is due. Part of the contract since version 1; judged by the alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Threshold {
    PercentUsed(u8),
    Remaining(Credits),
}

/// Why a catalogue is refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct CatalogueError {
    pub line: usize,
    pub reason: String,
}

/// Where something stands in its file, for reasons. The same content elsewhere is the same.
#[derive(Clone, Copy, Debug, Default)]
struct Line(usize);

impl PartialEq for Line {
    fn eq(&self, _: &Line) -> bool {
        true
    }
}

impl Catalogue {
    fn refuse(line: Line, reason: impl Into<String>) -> CatalogueError {
        CatalogueError { line: line.0, reason: reason.into() }
    }

    /// What prices depend on, apart from action, plan, time and outcome.
    pub fn conditions(&self) -> Conditions {
        let general = self.actions.values().flat_map(|action| &action.prices);
        let of_plans = self.plans.values().flat_map(|plan| plan.prices.values().flatten());
        let once = self.actions.iter().filter_map(|(name, action)| Some((name.clone(), action.charge_once?.field())));
        Conditions::of(general.chain(of_plans), once.collect())
    }

    /// Tells apart the times between which some price or entitlement changes.
    pub fn period_at(&self, time_ms: i64) -> usize {
        self.changes_ms.partition_point(|change_ms| *change_ms <= time_ms)
    }
}

impl Plan {
    /// Whether nobody loses anything who changes to it from another plan at a time, in a cycle that starts at another.
    pub fn allows_all_of(&self, other: &Plan, start_ms: i64, at_ms: i64) -> bool {
        self.gives_all_of(other, start_ms) && self.may_do_all_of(other, at_ms)
    }

    fn gives_all_of(&self, other: &Plan, start_ms: i64) -> bool {
        let own = self.allowance_at(start_ms);
        let at_least = |(credit_type, amount): (&String, &Amount)| match (own.get(credit_type), amount) {
            (Some(Amount::Unlimited), _) => true,
            (Some(Amount::Limited(own)), Amount::Limited(other)) => own >= other,
            (None, Amount::Limited(other)) => *other == Credits::ZERO,
            (_, Amount::Unlimited) => false,
        };
        other.allowance_at(start_ms).iter().all(at_least)
    }

    fn may_do_all_of(&self, other: &Plan, at_ms: i64) -> bool {
        other.entitled_at(at_ms).all(|action| self.is_entitled(action, at_ms))
    }

    /// The actions that it may do at a time.
    pub fn entitled_at(&self, at_ms: i64) -> impl Iterator<Item = &str> {
        self.actions.iter().filter(move |(_, when)| entitled(when, at_ms)).map(|(name, _)| name.as_str())
    }

    pub fn is_entitled(&self, action: &str, at_ms: i64) -> bool {
        self.actions.get(action).is_some_and(|when| entitled(when, at_ms))
    }

    /// What a cycle that starts at a time is given.
    pub fn allowance_at(&self, time_ms: i64) -> &BTreeMap<String, Amount> {
        let mut latest_first = self.allowances.iter().rev();
        let in_force = latest_first.find(|allowance| allowance.from_ms.is_none_or(|from_ms| from_ms <= time_ms));
        &in_force.expect("one is in force from the beginning").amounts
    }
}

impl Overage {
    pub fn parse(text: &str) -> Option<Overage> {
        match text {
            "reject" => Some(Overage::Reject),
            "cap" => Some(Overage::Cap),
            "allow" => Some(Overage::Allow { limit: None }),
            _ => None,
        }
    }
}

impl std::fmt::Display for Overage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Overage::Reject => f.write_str("reject"),
            Overage::Cap => f.write_str("cap"),
            Overage::Allow { limit: None } => f.write_str("allow"),
            Overage::Allow { limit: Some(limit) } => write!(f, "allow {limit}"),
        }
    }
}

impl Threshold {
    /// `80%` (used of the credits that have not expired) or `remaining 100` (credits).
    pub fn parse(text: &str) -> Option<Threshold> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u8 = percent.trim().parse().ok()?;
            return (percent <= 100).then_some(Threshold::PercentUsed(percent));
        }
        let credits = Credits::parse(text.strip_prefix("remaining ")?.trim()).ok()?;
        (credits >= Credits::ZERO).then_some(Threshold::Remaining(credits))
    }
}

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Threshold::PercentUsed(percent) => write!(f, "{percent}%"),
            Threshold::Remaining(credits) => write!(f, "remaining {credits}"),
        }
    }
}

impl ChargeOnce {
    pub const fn name(self) -> &'static str {
        match self {
            ChargeOnce::Contact => "contact",
            ChargeOnce::Company => "company",
        }
    }
}

#[cfg(test)]
mod tests;
