//! A team: how it is configured, what it was granted and what it was charged.

use chrono::NaiveDate;
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::catalogue::{Amount, Catalogue, Overage, Plan, Threshold};
use super::credits::Credits;
use super::cycle::{Calendar, Cycle, Interval};

/// What `account.put` sets.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountConfig {
    pub plan: String,
    pub anchor: NaiveDate,
    /// Overrides the plan's.
    pub interval: Option<Interval>,
    pub timezone: Tz,
    pub addons: Vec<Addon>,
    /// Overrides the plan's.
    pub thresholds: Option<Vec<Threshold>>,
    /// Overrides the plan's.
    pub overage: Option<Overage>,
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

    /// Whether two configurations count the same cycles on the same plan.
    pub fn same_terms(&self, other: &AccountConfig, catalogue: &Catalogue) -> bool {
        let terms = |config: &AccountConfig| {
            let plan = catalogue.plans.get(&config.plan)?;
            Some((config.plan.clone(), config.calendar(plan)))
        };
        terms(self) == terms(other)
    }
}

/// Where credits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GrantKind {
    Plan,
    Addon,
    Topup,
    Promo,
}

impl GrantKind {
    pub const ALL: [GrantKind; 4] = [GrantKind::Plan, GrantKind::Addon, GrantKind::Topup, GrantKind::Promo];

    pub const fn name(self) -> &'static str {
        match self {
            GrantKind::Plan => "plan",
            GrantKind::Addon => "addon",
            GrantKind::Topup => "topup",
            GrantKind::Promo => "promo",
        }
    }

    pub fn from_name(name: &str) -> Option<GrantKind> {
        GrantKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Credits given in the open cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub kind: GrantKind,
    pub credit_type: String,
    pub amount: Amount,
    /// The command that gave it, for those that can be voided one by one: top-ups and promos.
    pub command_id: Option<String>,
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

    /// Adds to what was granted; `None` where the balance would exceed its bound.
    pub fn grant(&mut self, amount: Amount) -> Option<()> {
        self.granted = match (self.granted, amount) {
            (Amount::Limited(granted), Amount::Limited(amount)) => {
                let sum = granted + amount;
                if sum > Credits::BALANCE_MAX {
                    return None;
                }
                Amount::Limited(sum)
            }
            (Amount::Unlimited, _) | (_, Amount::Unlimited) => Amount::Unlimited,
        };
        Some(())
    }
}

/// An account as a worker knows it: enough to price its events and to judge commands to it.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountView {
    /// Counts `account.put` and `account.close`: a worker that holds an older one is stale.
    pub version: u64,
    pub config: AccountConfig,
    pub cycle: Cycle,
    /// In the open cycle, in the order in which they were given.
    pub grants: Vec<Grant>,
}

/// The stored form of an [`AccountConfig`] (JSON), also shown by `account get`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredConfig {
    plan: String,
    anchor: NaiveDate,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    interval: Option<String>,
    timezone: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    addons: Vec<StoredAddon>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    thresholds: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    overage: Option<StoredOverage>,
}

#[derive(Serialize, Deserialize)]
struct StoredAddon {
    credit_type: String,
    amount: Box<serde_json::value::RawValue>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredOverage {
    Reject,
    Cap,
    Allow { limit: Option<i64> },
}

impl AccountConfig {
    pub fn to_json(&self) -> String {
        let raw = |credits: Credits| {
            serde_json::value::RawValue::from_string(credits.to_string()).expect("a decimal number is valid JSON")
        };
        let stored = StoredConfig {
            plan: self.plan.clone(),
            anchor: self.anchor,
            interval: self.interval.map(|interval| interval.name().to_owned()),
            timezone: self.timezone.name().to_owned(),
            addons: self
                .addons
                .iter()
                .map(|addon| StoredAddon { credit_type: addon.credit_type.clone(), amount: raw(addon.amount) })
                .collect(),
            thresholds: self.thresholds.as_ref().map(|all| all.iter().map(Threshold::to_string).collect()),
            overage: self.overage.map(|overage| match overage {
                Overage::Reject => StoredOverage::Reject,
                Overage::Cap => StoredOverage::Cap,
                Overage::Allow { limit } => StoredOverage::Allow { limit: limit.map(Credits::thousandths) },
            }),
        };
        serde_json::to_string(&stored).expect("a configuration has only text keys")
    }

    pub fn from_json(text: &str) -> Result<AccountConfig, String> {
        let stored: StoredConfig = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let interval = match stored.interval {
            None => None,
            Some(name) => Some(Interval::from_name(&name).ok_or(format!("unknown interval `{name}`"))?),
        };
        let mut addons = Vec::new();
        for addon in stored.addons {
            let amount = Credits::parse(addon.amount.get()).map_err(|error| error.to_string())?;
            addons.push(Addon { credit_type: addon.credit_type, amount });
        }
        let thresholds = match stored.thresholds {
            None => None,
            Some(texts) => {
                let parse = |text: &String| Threshold::parse(text).ok_or(format!("bad threshold `{text}`"));
                Some(texts.iter().map(parse).collect::<Result<Vec<_>, _>>()?)
            }
        };
        Ok(AccountConfig {
            plan: stored.plan,
            anchor: stored.anchor,
            interval,
            timezone: stored.timezone.parse().map_err(|_| format!("unknown time zone `{}`", stored.timezone))?,
            addons,
            thresholds,
            overage: stored.overage.map(|overage| match overage {
                StoredOverage::Reject => Overage::Reject,
                StoredOverage::Cap => Overage::Cap,
                StoredOverage::Allow { limit } => Overage::Allow { limit: limit.map(Credits::from_thousandths) },
            }),
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
        };
        assert_eq!(AccountConfig::from_json(&config.to_json()), Ok(config));
    }
}
