//! Usage broken down by day, member and action: what a team's admins look at.
//!
//! Added up by the script that charges, so that it is as exact as the counters. A day is one of the account's own time
//! zone; that of an event is the date of its quarter of an hour (UTC), which every zone of today agrees with.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta};
use chrono_tz::Tz;

use super::call::{CallEvent, Group};
use super::credits::Credits;
use super::event::{Class, DAY_MS};
use super::outcome::Verdict;
use super::shard::Shard;

/// Some 150 rows, one a member and action of a call. Longer journals take more memory while a day lasts, shorter ones more time.
pub const JOURNAL_BYTES_MAX: usize = 2048;

const QUARTER_HOUR_MS: i64 = 15 * 60_000;
/// A day may end later or earlier than in UTC, by less than this.
const ZONES_MS: i64 = DAY_MS;

/// What a member did with an action on a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Events that were charged, also those charged in part.
    pub charged: u64,
    pub credits: Credits,
    pub denied: u64,
    pub free: u64,
}

impl Used {
    /// One event; `None`: it changes nothing, since it was counted before.
    fn of(verdict: Verdict, cost: Credits) -> Option<Used> {
        match verdict {
            Verdict::Charged | Verdict::Capped => Some(Used { charged: 1, credits: cost, ..Used::default() }),
            Verdict::Denied(_) => Some(Used { denied: 1, ..Used::default() }),
            Verdict::Free => Some(Used { free: 1, ..Used::default() }),
            Verdict::Duplicate | Verdict::Voided => None,
        }
    }

    pub fn add(&mut self, other: Used) {
        self.charged += other.charged;
        self.credits += other.credits;
        self.denied += other.denied;
        self.free += other.free;
    }
}

/// A day's usage, by member (`""`: the events name none) and action.
pub type DayUsage = BTreeMap<(Arc<str>, Arc<str>), Used>;

/// The day of an account that an event belongs to.
pub fn local_day(dated_ms: i64, timezone: Tz) -> NaiveDate {
    let quarter_ms = dated_ms.div_euclid(QUARTER_HOUR_MS) * QUARTER_HOUR_MS;
    let start = DateTime::from_timestamp_millis(quarter_ms).expect("events lie between the years 1970 and 9999");
    start.with_timezone(&timezone).date_naive()
}

/// The part of time in which all events of a zone have the same day.
pub fn quarter_hour(dated_ms: i64) -> i64 {
    dated_ms.div_euclid(QUARTER_HOUR_MS)
}

/// `20261125`: as days are written in keys.
pub fn day_number(day: NaiveDate) -> i32 {
    day.year() * 10_000 + day.month() as i32 * 100 + day.day() as i32
}

pub fn day_of_number(number: i32) -> Option<NaiveDate> {
    NaiveDate::from_ymd_opt(number / 10_000, (number / 100 % 100).try_into().ok()?, (number % 100).try_into().ok()?)
}

/// Whether a day has been over for so long, in meter time and in every zone.
pub fn is_past(day: NaiveDate, keep_ms: i64, meter_time_ms: i64) -> bool {
    day_end_ms(day).saturating_add(ZONES_MS + keep_ms) <= meter_time_ms
}

fn day_end_ms(day: NaiveDate) -> i64 {
    (day + TimeDelta::days(1)).and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis()
}

/// The last day that is past; `None`: there is none yet.
pub fn last_past(keep_ms: i64, meter_time_ms: i64) -> Option<NaiveDate> {
    let end_ms = meter_time_ms - ZONES_MS - keep_ms;
    (end_ms >= DAY_MS).then(|| DateTime::from_timestamp_millis(end_ms - DAY_MS).map(|time| time.date_naive())).flatten()
}

/// Asks a shard to forget some accounts' usage of days that are past.
#[derive(Clone, Debug, PartialEq)]
pub struct ForgetUsageCall {
    pub generation: String,
    pub keep_ms: i64,
    pub days: Vec<NaiveDate>,
    pub accounts: Vec<Arc<str>>,
    /// All accounts were asked for: the first day that the shard may still have.
    pub from: Option<NaiveDate>,
}

/// Asks a store to put some accounts' usage of days into the shape in which it takes least. Changes nothing else: a
/// shard of the ledger has one shape only.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldUsageCall {
    pub generation: String,
    pub days: Vec<NaiveDate>,
    pub accounts: Vec<Arc<str>>,
}

impl Shard {
    /// Counts an event under its day, which it gives.
    pub(super) fn count_usage(
        &mut self,
        group: &Group,
        event: &CallEvent,
        class: &Class,
        verdict: Verdict,
        cost: Credits,
    ) -> Option<NaiveDate> {
        let (timezone, used) = group.breakdown.zip(Used::of(verdict, cost))?;
        let day = local_day(event.event.dated_ms, timezone);
        let user = event.event.user.clone().unwrap_or_default();
        let usage = self.usage.entry((group.account.clone(), day)).or_default();
        usage.entry((user, class.action.clone())).or_default().add(used);
        Some(day)
    }

    /// Forgets usage; `None`: the shard belongs to another state, or a day is not past yet.
    pub fn forget_usage(&mut self, call: &ForgetUsageCall) -> Option<u64> {
        let fence = self.fence.as_mut().filter(|fence| fence.generation == call.generation)?;
        // An older state, where it was earlier, may have come back.
        if !call.days.iter().all(|day| is_past(*day, call.keep_ms, fence.meter_time_ms)) {
            return None;
        }
        let mut gone = 0;
        for account in &call.accounts {
            for day in &call.days {
                gone += u64::from(self.usage.remove(&(account.clone(), *day)).is_some());
            }
        }
        if let Some(from) = call.from {
            fence.usage_from = fence.usage_from.max(Some(from));
        }
        Some(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[test]
    fn a_day_is_one_of_the_accounts_zone() {
        let check = |time: &str, zone: &str, day: &str| {
            let time_ms = DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis();
            assert_eq!(local_day(time_ms, zone.parse().unwrap()), date(day), "{time} {zone}");
        };
        check("2026-11-25T23:59:59.999Z", "UTC", "2026-11-25");
        check("2026-11-26T00:00:00Z", "UTC", "2026-11-26");
        check("2026-11-25T23:00:00Z", "Europe/Paris", "2026-11-26");
        check("2026-11-25T22:59:59.999Z", "Europe/Paris", "2026-11-25");
        check("2026-11-25T18:14:59Z", "Asia/Kathmandu", "2026-11-25"); // 5:45 ahead
        check("2026-11-25T18:15:00Z", "Asia/Kathmandu", "2026-11-26");
        check("2026-11-25T09:59:59Z", "Pacific/Kiritimati", "2026-11-25"); // 14:00 ahead
    }

    #[test]
    fn a_day_is_past_when_it_is_in_every_zone() {
        let day = date("2026-11-25");
        let end_ms = day_end_ms(day);
        let keep_ms = 3 * DAY_MS;
        let past_ms = end_ms + DAY_MS + keep_ms;
        assert!(!is_past(day, keep_ms, past_ms - 1));
        assert!(is_past(day, keep_ms, past_ms));
        assert_eq!(last_past(keep_ms, past_ms), Some(day));
        assert_eq!(last_past(keep_ms, past_ms - 1), Some(date("2026-11-24")));
        assert_eq!(last_past(keep_ms, 0), None);
        assert_eq!(day_of_number(day_number(day)), Some(day));
    }
}
