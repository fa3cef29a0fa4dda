//! When an account's credits will run out, at the rate of its last whole day and of its last whole week.

use std::collections::{BTreeMap, VecDeque};

use chrono::{NaiveDate, TimeDelta};
use serde::Serialize;

use super::settled;
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

/// What was used in some whole days before today, and when nothing will remain if that goes on: top-ups and promos end
/// meanwhile, and none comes.
#[derive(Debug, PartialEq, Serialize)]
pub struct Rate {
    pub credits_per_day: Credits,
    /// `null`: never, at this rate. After the renewal: as if there were none.
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
    let settled = settled(account);
    let of_type = |(name, counter): &(String, Counter)| {
        let used = |days: i64| {
            let first = today - TimeDelta::days(days);
            let rows = week.range(first..today).flat_map(|(_, usage)| usage);
            let own = rows.filter(|((_, action), _)| credit_type(catalogue, action) == name);
            own.fold(Credits::ZERO, |sum, (_, used)| sum + used.credits)
        };
        let remaining = counter.remaining();
        let end_ms = account.view.cycle.end_ms;
        let burning = remaining.map(|_| Burning::of(&settled.burning(name), end_ms));
        let rate = |days: i64| rate(used(days), days, burning.clone(), now_ms, end_ms);
        let forecast = Forecast { remaining, renews: time(end_ms), last_day: rate(1), last_week: rate(age_days) };
        (name.clone(), forecast)
    };
    account.counters.iter().map(of_type).collect()
}

/// Credits in the order in which they burn, each with its end if that comes before the renewal.
#[derive(Clone)]
struct Burning(VecDeque<(Credits, Option<i64>)>);

impl Burning {
    fn of(burning: &[(Credits, i64)], renewal_ms: i64) -> Burning {
        let each = burning.iter().filter(|(left, _)| *left > Credits::ZERO);
        Burning(each.map(|&(left, ends_ms)| (left, (ends_ms < renewal_ms).then_some(ends_ms))).collect())
    }

    fn left(&self) -> Credits {
        self.0.iter().fold(Credits::ZERO, |sum, (left, _)| sum + *left)
    }

    fn next_end(&self) -> Option<i64> {
        self.0.iter().filter_map(|(_, ends_ms)| *ends_ms).min()
    }

    fn take(&mut self, mut amount: Credits) {
        while let Some((left, _)) = self.0.front_mut() {
            if amount < *left {
                *left = *left - amount;
                return;
            }
            amount = amount - *left;
            self.0.pop_front();
        }
    }

    fn end(&mut self, at_ms: i64) {
        self.0.retain(|(_, ends_ms)| ends_ms.is_none_or(|ends_ms| ends_ms > at_ms));
    }
}

/// `burning`: `None` where the type is unlimited.
fn rate(used: Credits, days: i64, burning: Option<Burning>, now_ms: i64, renewal_ms: i64) -> Rate {
    let runs_out_ms = burning.and_then(|burning| runs_out_ms(used, days * DAY_MS, burning, now_ms));
    Rate {
        credits_per_day: Credits::from_thousandths(used.thousandths() / days),
        // Beyond the years that dates have, never.
        runs_out: runs_out_ms.filter(|ms| *ms < 253_402_300_800_000).map(time),
        before_renewal: runs_out_ms.is_some_and(|ms| ms < renewal_ms),
    }
}

/// `used` in each `period_ms`.
fn runs_out_ms(used: Credits, period_ms: i64, mut burning: Burning, now_ms: i64) -> Option<i64> {
    let (used, period_ms) = (i128::from(used.thousandths().max(0)), i128::from(period_ms));
    let mut at_ms = now_ms;
    loop {
        let left = i128::from(burning.left().thousandths());
        let used_up_ms = (used > 0).then(|| {
            let ms = left * period_ms / used;
            at_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX))
        });
        let Some(end_ms) = burning.next_end().filter(|end_ms| used_up_ms.is_none_or(|used_up_ms| *end_ms < used_up_ms))
        else {
            return used_up_ms;
        };
        // One may have ended that the meter has not come to yet.
        let until_ms = end_ms.max(at_ms);
        let taken = used * i128::from(until_ms - at_ms) / period_ms;
        burning.take(Credits::from_thousandths(i64::try_from(taken).expect("it is less than what is left")));
        burning.end(end_ms);
        at_ms = until_ms;
        if burning.left() == Credits::ZERO {
            return Some(at_ms);
        }
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
                (Some(at), true) => format!("nothing is left from {at}, before the renewal"),
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
                let burning = remaining.map(|left| Burning::of(&[(Credits::whole(left), end_ms)], end_ms));
                let rate = rate(Credits::whole(used), days, burning, now_ms, end_ms);
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

    /// Lots with what is left and the day on which each ends, in the order in which they burn; the renewal is on day 10.
    #[test]
    fn top_ups_and_promos_end_meanwhile() {
        let check = |used: i64, lots: &[(i64, i64)], runs_out_days: Option<f64>| {
            let lots: Vec<_> = lots.iter().map(|(left, day)| (Credits::whole(*left), day * DAY_MS)).collect();
            let burning = Burning::of(&lots, 10 * DAY_MS);
            let runs_out = runs_out_ms(Credits::whole(used), DAY_MS, burning, 0);
            assert_eq!(runs_out, runs_out_days.map(|days| (days * DAY_MS as f64) as i64), "{used} a day of {lots:?}");
        };
        check(10, &[(30, 5), (100, 10)], Some(13.0)); // used before it ends
        check(10, &[(80, 5), (40, 10)], Some(9.0)); // 30 of it are lost
        check(10, &[(40, 10), (80, 5)], Some(5.0)); // its priority is a later one: 70 of it are lost, and nothing else is left
        check(10, &[(20, 2), (80, 3), (45, 10)], Some(7.5)); // one after the other
        check(10, &[(20, 3), (30, 3), (45, 10)], Some(7.5)); // both at the same time
        check(0, &[(80, 5), (40, 10)], None);
        check(0, &[(80, 5)], Some(5.0)); // without any use
        check(10, &[(80, -1), (40, 10)], Some(4.0)); // over, though the meter has not come to it
        check(10, &[(80, 20)], Some(8.0)); // after the renewal it does not matter
        check(10, &[], Some(0.0));
        check(0, &[], None);
    }

    #[test]
    fn what_is_used_up_does_not_last() {
        let text = |remaining: i64| {
            let remaining = Some(Credits::whole(remaining));
            let burning = remaining.map(|left| Burning::of(&[(left, DAY_MS)], DAY_MS));
            let rate = || rate(Credits::ZERO, 1, burning.clone(), 0, DAY_MS);
            Forecast { remaining, renews: time(DAY_MS), last_day: rate(), last_week: rate() }.text("email")
        };
        assert!(text(1).contains("lasts until the renewal"), "{}", text(1));
        assert_eq!(text(0), "email: used up, renewed 1970-01-02T00:00:00Z");
    }
}
