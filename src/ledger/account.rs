//! A team: how it is configured, what it was granted and what it was charged.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::NaiveDate;
use chrono_tz::Tz;

use super::catalogue::{Amount, Overage, Plan, Threshold};
use super::closed::ClosedCycle;
use super::credits::Credits;
use super::cycle::{Calendar, Cycle, Interval};
use super::day::Layout;
use super::grants::{GrantKind, Lots, Pool};
use super::members::{MemberLimit, limits_from, limits_text};

/// What `account.put` sets.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountConfig {
    pub plan: String,
    pub anchor: NaiveDate,
    /// Overrides the plan's.
    pub interval: Option<Interval>,
    pub timezone: Tz,
    /// In the order of their credit types.
    pub addons: Vec<Addon>,
    /// Overrides the plan's.
    pub thresholds: Option<Vec<Threshold>>,
    /// Overrides the plan's.
    pub overage: Option<Overage>,
    /// In their order; none: members share what the team has without limits.
    pub member_limits: Arc<[MemberLimit]>,
}

/// Credits bought on top of the plan, granted again at each renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addon {
    pub credit_type: String,
    pub amount: Credits,
}

impl AccountConfig {
    pub fn calendar(&self, plan: &Plan) -> Calendar {
        let interval = self.interval.unwrap_or(plan.interval);
        Calendar { anchor: self.anchor, interval, timezone: self.timezone }
    }

    pub fn overage(&self, plan: &Plan) -> Overage {
        self.overage.unwrap_or(plan.overage)
    }

    pub fn thresholds(&self, plan: &Plan) -> Vec<Threshold> {
        self.thresholds.clone().unwrap_or_else(|| plan.thresholds.clone())
    }

    /// What plan and add-ons give for a cycle that starts at a time, in the order of kinds and types.
    pub fn grants(&self, plan: &Plan, start_ms: i64) -> Vec<(String, GrantKind, Amount)> {
        let allowance =
            plan.allowance_at(start_ms).iter().map(|(name, amount)| (name.clone(), GrantKind::Plan, *amount));
        let addons = self.addons.iter();
        let addons = addons.map(|each| (each.credit_type.clone(), GrantKind::Addon, Amount::Limited(each.amount)));
        allowance.chain(addons).collect()
    }
}

/// One credit type of an account in its open cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    pub granted: Amount,
    /// All that was charged, covered by grants or not.
    pub charged: Credits,
    pub expired: Credits,
}

impl Default for Counter {
    fn default() -> Counter {
        Counter { granted: Amount::Limited(Credits::ZERO), charged: Credits::ZERO, expired: Credits::ZERO }
    }
}

/// What users see of a counter: `granted = used + expired + remaining`; overage is charged beyond the grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// `None` where the type is unlimited.
    pub granted: Option<Credits>,
    pub used: Credits,
    pub expired: Credits,
    /// `None` where the type is unlimited.
    pub remaining: Option<Credits>,
    pub overage: Credits,
}

impl Counter {
    pub fn balance(&self) -> Balance {
        let Amount::Limited(granted) = self.granted else {
            return Balance {
                granted: None,
                used: self.charged,
                expired: self.expired,
                remaining: None,
                overage: Credits::ZERO,
            };
        };
        let usable = granted - self.expired;
        let used = self.charged.min(usable);
        let balance = Balance {
            granted: Some(granted),
            used,
            expired: self.expired,
            remaining: Some(usable - used),
            overage: self.charged - used,
        };
        assert!(usable >= Credits::ZERO && self.charged >= Credits::ZERO, "a counter is broken: {self:?}");
        balance
    }

    /// What may still be charged within the grants; `None` where the type is unlimited.
    pub fn remaining(&self) -> Option<Credits> {
        self.balance().remaining
    }
}

/// Whether an account goes on after its cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Open,
    /// Its cycle ends when it was closed, and that has not been carried out yet.
    Closing,
    Closed,
}

impl Life {
    pub const ALL: [Life; 3] = [Life::Open, Life::Closing, Life::Closed];

    pub const fn name(self) -> &'static str {
        match self {
            Life::Open => "open",
            Life::Closing => "closing",
            Life::Closed => "closed",
        }
    }

    pub fn from_name(name: &str) -> Option<Life> {
        Life::ALL.into_iter().find(|life| life.name() == name)
    }
}

/// An account as a worker knows it: enough to price its events, to judge commands to it, and to know what time does
/// to it.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountView {
    /// Counts every change but usage: a worker that holds an older one is stale.
    pub version: u64,
    pub config: AccountConfig,
    /// What waits for the renewal.
    pub next: Option<AccountConfig>,
    pub life: Life,
    /// When its first cycle started.
    pub since_ms: i64,
    /// The open cycle, or the last one of a closed account.
    pub cycle: Cycle,
    pub pools: BTreeMap<String, Pool>,
    pub lots: Lots,
    pub closed: BTreeMap<i32, ClosedCycle>,
    /// The days whose identities are kept, as far as the worker knows.
    pub days: BTreeMap<i64, Layout>,
    /// The cycles whose marks are kept, as far as the worker knows.
    pub marks: BTreeMap<i32, Layout>,
}

impl AccountView {
    /// An account as its first put makes it, before its grants.
    pub fn opened(config: AccountConfig, cycle: Cycle) -> AccountView {
        AccountView {
            version: 0,
            config,
            next: None,
            life: Life::Open,
            since_ms: cycle.start_ms,
            cycle,
            pools: BTreeMap::new(),
            lots: Lots::new(),
            closed: BTreeMap::new(),
            days: BTreeMap::new(),
            marks: BTreeMap::new(),
        }
    }
}

/// The stored form: a field each, short, so that Redis keeps an account's hash packed.
impl Overage {
    pub fn to_stored(self) -> String {
        match self {
            Overage::Reject => "reject".to_owned(),
            Overage::Cap => "cap".to_owned(),
            Overage::Allow { limit: None } => "allow".to_owned(),
            Overage::Allow { limit: Some(limit) } => format!("allow:{}", limit.thousandths()),
        }
    }

    pub fn from_stored(text: &str) -> Option<Overage> {
        match text.strip_prefix("allow:") {
            Some(limit) => Some(Overage::Allow { limit: Some(Credits::from_thousandths(limit.parse().ok()?)) }),
            None => Overage::parse(text),
        }
    }
}

impl AccountConfig {
    pub fn to_fields(&self) -> Vec<(String, String)> {
        let mut fields = vec![("plan".to_owned(), self.plan.clone()), ("anchor".to_owned(), self.anchor.to_string())];
        if self.timezone != Tz::UTC {
            fields.push(("timezone".to_owned(), self.timezone.name().to_owned()));
        }
        if let Some(interval) = self.interval {
            fields.push(("interval".to_owned(), interval.name().to_owned()));
        }
        if let Some(thresholds) = &self.thresholds {
            let thresholds: Vec<_> = thresholds.iter().map(Threshold::to_string).collect();
            fields.push(("thresholds".to_owned(), thresholds.join(", ")));
        }
        if let Some(overage) = self.overage {
            fields.push(("overage".to_owned(), overage.to_stored()));
        }
        if !self.member_limits.is_empty() {
            fields.push(("members".to_owned(), limits_text(&self.member_limits)));
        }
        for addon in &self.addons {
            fields.push((format!("addon:{}", addon.credit_type), addon.amount.thousandths().to_string()));
        }
        fields
    }

    pub fn from_fields(fields: &BTreeMap<String, String>) -> Result<AccountConfig, String> {
        let field = |name: &str| fields.get(name).map(String::as_str);
        let bad = |name: &str| format!("field `{name}` is {:?}", field(name));
        let mut addons = Vec::new();
        for (name, amount) in fields {
            if let Some(credit_type) = name.strip_prefix("addon:") {
                let amount = Credits::from_thousandths(amount.parse().map_err(|_| bad(name))?);
                addons.push(Addon { credit_type: credit_type.to_owned(), amount });
            }
        }
        let thresholds = field("thresholds").map(|texts| {
            let texts = texts.split(", ").filter(|text| !text.is_empty());
            texts.map(|text| Threshold::parse(text).ok_or_else(|| bad("thresholds"))).collect()
        });
        let overage = field("overage").map(|text| Overage::from_stored(text).ok_or_else(|| bad("overage")));
        let interval = field("interval").map(|name| Interval::from_name(name).ok_or_else(|| bad("interval")));
        let limits = field("members").map(|text| limits_from(text).ok_or_else(|| bad("members")));
        Ok(AccountConfig {
            plan: field("plan").ok_or_else(|| bad("plan"))?.to_owned(),
            anchor: field("anchor").and_then(|date| date.parse().ok()).ok_or_else(|| bad("anchor"))?,
            interval: interval.transpose()?,
            timezone: field("timezone").map_or(Ok(Tz::UTC), |zone| zone.parse().map_err(|_| bad("timezone")))?,
            addons,
            thresholds: thresholds.transpose()?,
            overage: overage.transpose()?,
            member_limits: limits.transpose()?.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_shows_used_remaining_and_overage() {
        let check = |granted: i64, expired: i64, charged: i64, used: i64, remaining: i64, overage: i64| {
            let counter = Counter {
                granted: Amount::Limited(Credits::whole(granted)),
                charged: Credits::whole(charged),
                expired: Credits::whole(expired),
            };
            let balance = counter.balance();
            let seen = (balance.used, balance.remaining.unwrap(), balance.overage);
            assert_eq!(seen, (Credits::whole(used), Credits::whole(remaining), Credits::whole(overage)));
        };
        // granted expired charged | used remaining overage
        check(100, 0, 30, 30, 70, 0);
        check(100, 0, 130, 100, 0, 30);
        check(100, 60, 40, 40, 0, 0);
        check(150, 0, 130, 130, 20, 0); // the same with a later grant of 50: overage is covered first
    }

    #[test]
    fn a_configuration_is_stored_and_read_back() {
        let config = AccountConfig {
            plan: "basic".into(),
            anchor: "2026-01-31".parse().unwrap(),
            interval: Some(Interval::SemiAnnual),
            timezone: "Europe/Paris".parse().unwrap(),
            addons: vec![Addon { credit_type: "email".into(), amount: Credits::from_thousandths(500_500) }],
            thresholds: Some(vec![Threshold::PercentUsed(80), Threshold::Remaining(Credits::whole(10))]),
            overage: Some(Overage::Allow { limit: Some(Credits::whole(7)) }),
            member_limits: limits_from("email 50000\temail 200000 ada lovelace").unwrap(),
        };
        assert_eq!(AccountConfig::from_fields(&config.to_fields().into_iter().collect()), Ok(config));
    }
}
