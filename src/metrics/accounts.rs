//! Metrics of accounts: how many are in which state, and what is left to the few that are named.
//!
//! One worker a shard tells them, so that a sum over workers counts each account once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use prometheus::{GaugeVec, IntGauge, IntGaugeVec};

use super::METRICS;
use super::register::Register;
use crate::ledger::credits::Credits;

/// How an account stands: by the worst of its credit types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    Ok,
    /// Some balance is below a threshold.
    Low,
    /// Nothing is left of some credit type, or an event was denied for want of it.
    Exhausted,
}

impl Standing {
    pub const ALL: [Standing; 3] = [Standing::Ok, Standing::Low, Standing::Exhausted];

    pub const fn name(self) -> &'static str {
        match self {
            Standing::Ok => "ok",
            Standing::Low => "low",
            Standing::Exhausted => "exhausted",
        }
    }
}

/// What is left, by account and credit type.
pub type Remaining = BTreeMap<(String, String), Credits>;

/// Accounts by plan, in the order of [`Standing::ALL`]. A plan without accounts is told as zero.
pub fn set_accounts(by_plan: &BTreeMap<String, [u64; 3]>) {
    for (plan, counts) in by_plan {
        for (standing, count) in Standing::ALL.into_iter().zip(counts) {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            METRICS.accounts.by_state.with_label_values(&[standing.name(), plan.as_str()]).set(count);
        }
    }
}

/// The accounts that are named, in place of those named before, and how many the bound has left out.
pub fn set_account_remaining(remaining: &Remaining, dropped: u64) {
    static NAMED: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    for (account, credit_type) in named.iter().filter(|labels| !remaining.contains_key(*labels)) {
        let _ = METRICS.accounts.remaining.remove_label_values(&[account.as_str(), credit_type.as_str()]);
    }
    for ((account, credit_type), credits) in remaining {
        let gauge = METRICS.accounts.remaining.with_label_values(&[account.as_str(), credit_type.as_str()]);
        // A float may round here: the exact amounts are in Redis.
        gauge.set(credits.thousandths() as f64 / 1000.0);
    }
    *named = remaining.keys().cloned().collect();
    METRICS.accounts.dropped.set(i64::try_from(dropped).unwrap_or(i64::MAX));
}

/// When the last census of all this worker's shards ended, in seconds since 1970; `None`: it has no shards.
pub fn set_census_ended(at_seconds: Option<f64>) {
    match at_seconds {
        Some(at_seconds) => METRICS.accounts.census.with_label_values(&super::NO_LABELS).set(at_seconds),
        // Not there: it never had any.
        None => drop(METRICS.accounts.census.remove_label_values(&super::NO_LABELS)),
    }
}

pub(super) struct Accounts {
    pub(super) by_state: IntGaugeVec,
    remaining: GaugeVec,
    dropped: IntGauge,
    census: GaugeVec,
}

impl Accounts {
    pub(super) fn new(register: &mut Register) -> Accounts {
        Accounts {
            by_state: register.gauges(
                "credit_meter_accounts",
                "Open accounts of the shards that this worker counts, by the worst state of their credit types, and plan.",
                &["state", "plan"],
            ),
            remaining: register.float_gauges(
                "credit_meter_account_remaining",
                "Credits left to accounts that are low or exhausted, as metrics.per_account says.",
                &["account", "credit_type"],
            ),
            dropped: register.gauge(
                "credit_meter_account_series_dropped",
                "Accounts that are low or exhausted and have no series, since metrics.per_account_max is reached.",
            ),
            census: register.float_gauges(
                "credit_meter_census_timestamp_seconds",
                "When this worker has last counted all accounts of its shards, since 1970; absent if it counts none.",
                &[],
            ),
        }
    }
}
