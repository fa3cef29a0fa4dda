//! Billing cycles: half-open stretches of time that tile it, `n` intervals from the original anchor.
//!
//! Boundary `n` is local midnight, in the account's time zone, of the anchor's day in the target month,
//! or of that month's last day where the month is shorter. It is counted from the original anchor, never
//! from the last boundary: 31 January, 28 February, 31 March.

use chrono::{DateTime, Datelike, Days, Duration, LocalResult, Months, NaiveDate, NaiveTime, TimeZone, Utc};
use chrono_tz::Tz;

/// How long a plan's cycle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interval {
    Monthly,
    Quarterly,
    SemiAnnual,
    Annual,
}

impl Interval {
    pub const ALL: [Interval; 4] = [Interval::Monthly, Interval::Quarterly, Interval::SemiAnnual, Interval::Annual];

    pub const fn name(self) -> &'static str {
        match self {
            Interval::Monthly => "monthly",
            Interval::Quarterly => "quarterly",
            Interval::SemiAnnual => "semi_annual",
            Interval::Annual => "annual",
        }
    }

    pub fn from_name(name: &str) -> Option<Interval> {
        Interval::ALL.into_iter().find(|interval| interval.name() == name)
    }

    pub const fn months(self) -> i32 {
        match self {
            Interval::Monthly => 1,
            Interval::Quarterly => 3,
            Interval::SemiAnnual => 6,
            Interval::Annual => 12,
        }
    }
}

/// What an account's cycles are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    pub anchor: NaiveDate,
    pub interval: Interval,
    pub timezone: Tz,
}

/// One cycle. Cycle 0 starts at the anchor; those before it have negative numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cycle {
    pub number: i32,
    pub start_ms: i64,
    pub end_ms: i64,
}

impl Cycle {
    pub fn holds(&self, time_ms: i64) -> bool {
        self.start_ms <= time_ms && time_ms < self.end_ms
    }
}

impl Calendar {
    /// The instant at which cycle `number` starts; `None` beyond the years that a date can name.
    pub fn boundary(&self, number: i32) -> Option<DateTime<Utc>> {
        let months = number.checked_mul(self.interval.months())?;
        // `Months` clamps to the last day of a shorter month.
        let date = if months >= 0 {
            self.anchor.checked_add_months(Months::new(months.unsigned_abs()))?
        } else {
            self.anchor.checked_sub_months(Months::new(months.unsigned_abs()))?
        };
        first_instant_of(date, self.timezone)
    }

    /// The cycle that holds a time.
    pub fn cycle_at(&self, time_ms: i64) -> Option<Cycle> {
        let time = DateTime::from_timestamp_millis(time_ms)?;
        let local = time.with_timezone(&self.timezone).date_naive();
        let months = (local.year() - self.anchor.year()) * 12 + local.month() as i32 - self.anchor.month() as i32;
        // The month gives the cycle to within one: the anchor's day may lie before or after the time's.
        let near = months.div_euclid(self.interval.months());
        (near - 1..=near + 1).find_map(|number| {
            let cycle = self.cycle(number)?;
            cycle.holds(time_ms).then_some(cycle)
        })
    }

    pub fn cycle(&self, number: i32) -> Option<Cycle> {
        let start = self.boundary(number)?;
        let end = self.boundary(number.checked_add(1)?)?;
        Some(Cycle { number, start_ms: start.timestamp_millis(), end_ms: end.timestamp_millis() })
    }
}

/// Local midnight, or the first valid instant after it where clocks skip it; the earlier where it comes twice.
fn first_instant_of(date: NaiveDate, timezone: Tz) -> Option<DateTime<Utc>> {
    let midnight = date.and_time(NaiveTime::MIN);
    match timezone.from_local_datetime(&midnight) {
        LocalResult::Single(instant) => Some(instant.to_utc()),
        LocalResult::Ambiguous(earlier, later) => Some(earlier.min(later).to_utc()),
        LocalResult::None => end_of_gap(date, timezone),
    }
}

/// The instant at which a gap over midnight ends: the first whose local date and time are past it.
/// A gap can be a whole day (Samoa skipped 30 December 2011), so the search spans three.
fn end_of_gap(date: NaiveDate, timezone: Tz) -> Option<DateTime<Utc>> {
    let midnight = date.and_time(NaiveTime::MIN);
    let local_at =
        |second: i64| DateTime::from_timestamp(second, 0).map(|instant| instant.with_timezone(&timezone).naive_local());
    let mut before = date.checked_sub_days(Days::new(2))?.and_time(NaiveTime::MIN).and_utc().timestamp();
    let mut after = (midnight + Duration::days(2)).and_utc().timestamp();
    while after - before > 1 {
        let middle = before + (after - before).div_euclid(2);
        if local_at(middle)? < midnight {
            before = middle;
        } else {
            after = middle;
        }
    }
    DateTime::from_timestamp(after, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        vectors: Vec<Vector>,
    }

    #[derive(serde::Deserialize)]
    struct Vector {
        id: String,
        anchor: NaiveDate,
        interval: String,
        timezone: String,
        boundaries: Vec<DateTime<Utc>>,
    }

    #[test]
    fn boundaries_equal_the_vectors() {
        let text = include_str!("../../tests/data/cycles.json");
        let vectors: Vectors = serde_json::from_str(text).expect("the vectors are valid");
        assert!(vectors.vectors.len() >= 13, "the vector file is cut");
        for vector in vectors.vectors {
            let calendar = Calendar {
                anchor: vector.anchor,
                interval: Interval::from_name(&vector.interval).expect("a known interval"),
                timezone: vector.timezone.parse().expect("a known time zone"),
            };
            for (number, boundary) in vector.boundaries.iter().enumerate() {
                let number = number as i32;
                assert_eq!(calendar.boundary(number), Some(*boundary), "{} boundary {number}", vector.id);
            }
        }
    }

    #[test]
    fn a_skipped_midnight_or_day_moves_to_the_first_valid_instant() {
        let check = |zone: &str, date: &str, expected: &str| {
            let instant = first_instant_of(date.parse().unwrap(), zone.parse().unwrap()).unwrap();
            assert_eq!(instant, expected.parse::<DateTime<Utc>>().unwrap(), "{zone} {date}");
        };
        check("Pacific/Apia", "2011-12-30", "2011-12-30T10:00:00Z"); // the whole day was skipped
        check("America/Asuncion", "2023-10-01", "2023-10-01T04:00:00Z"); // 00:00 to 01:00 was skipped
        check("America/Havana", "2023-11-05", "2023-11-05T04:00:00Z"); // 00:00 came twice
    }

    /// Counted from the last boundary instead of the anchor: the day of a long month is lost in a short one.
    fn chained(calendar: Calendar, number: u32) -> Option<DateTime<Utc>> {
        let mut date = calendar.anchor;
        for _ in 0..number {
            date = date.checked_add_months(Months::new(calendar.interval.months().unsigned_abs()))?;
        }
        first_instant_of(date, calendar.timezone)
    }

    #[test]
    fn a_chained_calendar_is_another() {
        let calendar =
            Calendar { anchor: "2026-01-31".parse().unwrap(), interval: Interval::Monthly, timezone: Tz::UTC };
        assert_eq!(chained(calendar, 1), calendar.boundary(1));
        assert_ne!(chained(calendar, 2), calendar.boundary(2), "28 March instead of the 31st");
    }

    proptest! {
        #[test]
        fn cycles_tile_time(
            days in 0i64..30_000,
            interval in prop::sample::select(Interval::ALL.to_vec()),
            zone in prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
            time_ms in 0i64..4_000_000_000_000,
        ) {
            let anchor = NaiveDate::from_ymd_opt(1971, 1, 1).unwrap() + Duration::days(days);
            let calendar = Calendar { anchor, interval, timezone: zone };
            let cycle = calendar.cycle_at(time_ms).expect("every time has a cycle");
            prop_assert!(cycle.holds(time_ms));
            let next = calendar.cycle_at(cycle.end_ms).expect("every time has a cycle");
            prop_assert_eq!((next.number, next.start_ms), (cycle.number + 1, cycle.end_ms));
        }
    }
}
