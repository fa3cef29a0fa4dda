//! When an account's credits will run out, at the rate of its last whole day and of its last whole week.

use std::collections::BTreeMap;

use chrono::{NaiveDate, TimeDelta};
use serde::Serialize;

use super::usage::credit_type;
use crate::ledger::account::Counter;
use crate::ledger::catalogue::Catalogue;
use crate::ledger::credits::Credits;
use crate::ledger::event::DAY_MS;
use crate::ledger::time::rfc3339 as time;
use crate::ledger::usage::DayUsage;
use crate::store::AccountState;

pub const WEEK_DAYS: i64 = 7;

/// Of one credit type.
#[derive(Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// `null`: it is unlimited.
    pub remaining: Option<Credits>,
    /// When the open cycle ends, and credits are granted anew.
    pub renews: String,
    pub last_day: Rate,
    pub last_week: Rate,
}

/// What was used in some whole days before today, and when the remaining credits will be used up if that goes on.
#[derive(Debug, PartialEq, Serialize)]
pub struct Rate {
    pub credits_per_day: Credits,
    /// `null`: never, at this rate.
    pub runs_out: Option<String>,
    pub before_renewal: bool,
}

/// For each type that the account holds. The week is as long as the account is old, if that is less.
pub fn forecasts(
    account: &AccountState,
    catalogue: &Catalogue,
    week: &BTreeMap<NaiveDate, DayUsage>,
    today: NaiveDate,
    now_ms: i64,
) -> BTreeMap<String, Forecast> {
    let age_days = ((now_ms - account.view.since_ms) / DAY_MS).clamp(1, WEEK_DAYS);
    let of_type = |(name, counter): &(String, Counter)| {
        let used = |days: i64| {
            let first = today - TimeDelta::days(days);
            let rows = week.range(first..today).flat_map(|(_, usage)| usage);
            let own = rows.filter(|((_, action), _)| credit_type(catalogue, action) == name);
            own.fold(Credits::ZERO, |sum, (_, used)| sum + used.credits)
        };
        let remaining = counter.remaining();
        let end_ms = account.view.cycle.end_ms;
        let rate = |days: i64| rate(used(days), days, remaining, now_ms, end_ms);
        let forecast = Forecast { remaining, renews: time(end_ms), last_day: rate(1), last_week: rate(age_days) };
        (name.clone(), forecast)
    };
    account.counters.iter().map(of_type).collect()
}

fn rate(used: Credits, days: i64, remaining: Option<Credits>, now_ms: i64, end_ms: i64) -> Rate {
    let runs_out_ms = remaining.filter(|_| used > Credits::ZERO).map(|remaining| {
        let ms = i128::from(remaining.thousandths()) * i128::from(days * DAY_MS) / i128::from(used.thousandths());
        now_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX))
    });
    Rate {
        credits_per_day: Credits::from_thousandths(used.thousandths() / days),
        // Beyond the years that dates have, never.
        runs_out: runs_out_ms.filter(|ms| *ms < 253_402_300_800_000).map(time),
        before_renewal: runs_out_ms.is_some_and(|ms| ms < end_ms),
    }
}

impl Forecast {
    pub fn text(&self, credit_type: &str) -> String {
        let Some(remaining) = self.remaining else { return format!("{credit_type}: unlimited") };
        if remaining == Credits::ZERO {
            return format!("{credit_type}: used up, renewed {}", self.renews);
        }
        let rate = |name: &str, rate: &Rate| {
            let ends = match (&rate.runs_out, rate.before_renewal) {
                (Some(at), true) => format!("used up {at}, before the renewal"),
                _ => "lasts until the renewal".to_owned(),
            };
            format!("at the rate of the last {name} ({} a day) {ends}", rate.credits_per_day)
        };
        format!(
            "{credit_type}: {remaining} left, renewed {}; {}; {}",
            self.renews,
            rate("whole day", &self.last_day),
            rate("whole week", &self.last_week)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_lasts_as_long_as_the_rate_says() {
        let check =
            |used: i64, days: i64, remaining: Option<i64>, per_day: &str, runs_out_days: Option<f64>, soon: bool| {
                let (now_ms, end_ms) = (0, 10 * DAY_MS);
                let rate = rate(Credits::whole(used), days, remaining.map(Credits::whole), now_ms, end_ms);
                let expected = runs_out_days.map(|days| time((days * DAY_MS as f64) as i64));
                let seen = (rate.credits_per_day.to_string(), rate.runs_out, rate.before_renewal);
                assert_eq!(seen, (per_day.to_owned(), expected, soon), "{used} in {days} of {remaining:?}");
            };
        check(10, 1, Some(100), "10", Some(10.0), false); // at the moment of the renewal
        check(20, 1, Some(100), "20", Some(5.0), true);
        check(70, 7, Some(25), "10", Some(2.5), true);
        check(0, 7, Some(25), "0", None, false);
        check(5, 1, None, "5", None, false);
        check(5, 1, Some(0), "5", Some(0.0), true);
        check(1, 7, Some(1_000_000_000_000), "0.142", None, false);
    }

    #[test]
    fn what_is_used_up_does_not_last() {
        let text = |remaining: i64| {
            let remaining = Some(Credits::whole(remaining));
            let rate = || rate(Credits::ZERO, 1, remaining, 0, DAY_MS);
            Forecast { remaining, renews: time(DAY_MS), last_day: rate(), last_week: rate() }.text("email")
        };
        assert!(text(1).contains("lasts until the renewal"), "{}", text(1));
        assert_eq!(text(0), "email: used up, renewed 1970-01-02T00:00:00Z");
    }
}
