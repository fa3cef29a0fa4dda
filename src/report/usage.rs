//! What a team has used: by day of its own time zone, by member, by action.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, TimeDelta};
use clap::ValueEnum;
use serde::Serialize;

use super::forecast::{Forecast, WEEK_DAYS, forecasts};
use crate::ledger::catalogue::Catalogue;
use crate::ledger::credits::Credits;
use crate::ledger::usage::{DayUsage, Used, local_day};
use crate::store::{AccountState, RedisStore, StoreError};

/// What rows are told apart by, beside credit types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    Day,
    User,
    Action,
}

impl By {
    pub const fn name(self) -> &'static str {
        match self {
            By::Day => "day",
            By::User => "user",
            By::Action => "action",
        }
    }
}

/// Each once, in the order in which they were named.
pub fn distinct(by: &[By]) -> Vec<By> {
    by.iter().enumerate().filter(|(index, one)| !by[..*index].contains(one)).map(|(_, one)| *one).collect()
}

/// The days that are asked for, in the account's zone.
pub struct Days {
    pub from: NaiveDate,
    pub to: NaiveDate,
    pub today: NaiveDate,
}

impl Days {
    /// `max`: so many are read at most. Refuses with what is wrong with the days that were asked for.
    pub fn of(
        (from, to): (Option<NaiveDate>, Option<NaiveDate>),
        max: i64,
        account: &AccountState,
        now_ms: i64,
    ) -> Result<Days, String> {
        let timezone = account.view.config.timezone;
        let day = |ms: i64| DateTime::from_timestamp_millis(ms).map(|time| time.with_timezone(&timezone).date_naive());
        let today = day(now_ms).ok_or("the clock shows no date")?;
        let to = to.unwrap_or(today);
        let start = day(account.view.cycle.start_ms).ok_or("the cycle has no date")?;
        let from = from.unwrap_or(start.min(to));
        if from > to {
            let today = if to == today { "today, " } else { "" };
            return Err(format!("from {from} is after {today}{to}"));
        }
        if (to - from).num_days() >= max {
            return Err(format!("from {from} to {to} are more than {max} days"));
        }
        Ok(Days { from, to, today })
    }

    pub fn count(&self) -> u64 {
        (self.to - self.from).num_days().max(0).unsigned_abs() + 1
    }
}

type ByDay = BTreeMap<NaiveDate, DayUsage>;

async fn read(
    store: &RedisStore,
    account: &str,
    (from, to): (NaiveDate, NaiveDate),
    each: impl Fn(),
) -> Result<ByDay, StoreError> {
    let mut days = ByDay::new();
    for day in from.iter_days().take_while(|day| *day <= to) {
        let usage = store.day_usage(account, day).await?;
        if !usage.is_empty() {
            days.insert(day, usage);
        }
        each();
    }
    Ok(days)
}

/// The whole days before today that a forecast looks at.
async fn read_week(store: &RedisStore, account: &str, days: &Days, known: &ByDay) -> Result<ByDay, StoreError> {
    let (first, last) = (days.today - TimeDelta::days(WEEK_DAYS), days.today - TimeDelta::days(1));
    if days.from <= first && last <= days.to {
        return Ok(known.range(first..=last).map(|(day, usage)| (*day, usage.clone())).collect());
    }
    read(store, account, (first, last), || {}).await
}

/// What stands before the numbers of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Told {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<NaiveDate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    pub credit_type: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub told: Told,
    /// Events that were charged.
    pub charged: u64,
    pub credits: Credits,
    pub denied: u64,
    pub free: u64,
}

/// Credits of different types are not added up. Rows stand in the order of what they are told apart by.
fn rows(days: &ByDay, by: &[By], catalogue: &Catalogue) -> Vec<Row> {
    let mut sums: BTreeMap<Vec<String>, (Told, Used)> = BTreeMap::new();
    for (day, usage) in days {
        for ((user, action), used) in usage {
            let told = Told {
                day: by.contains(&By::Day).then_some(*day),
                user: by.contains(&By::User).then(|| user.to_string()),
                action: by.contains(&By::Action).then(|| action.to_string()),
                credit_type: credit_type(catalogue, action).to_owned(),
            };
            let mut order: Vec<String> = by.iter().map(|by| told.cell(*by)).collect();
            order.push(told.credit_type.clone());
            sums.entry(order).or_insert_with(|| (told, Used::default())).1.add(*used);
        }
    }
    let row = |(told, Used { charged, credits, denied, free })| Row { told, charged, credits, denied, free };
    sums.into_values().map(row).collect()
}

/// A price list that is older than the meter's may miss an action.
pub fn credit_type<'a>(catalogue: &'a Catalogue, action: &str) -> &'a str {
    catalogue.actions.get(action).map_or("unknown", |action| &action.credit_type)
}

impl Told {
    pub fn cell(&self, by: By) -> String {
        match by {
            By::Day => self.day.map(|day| day.to_string()),
            By::User => self.user.clone(),
            By::Action => self.action.clone(),
        }
        .unwrap_or_default()
    }
}

impl Row {
    /// As a line of a table.
    pub fn cells(&self, by: &[By]) -> Vec<String> {
        let numbers = [self.charged.to_string(), self.credits.to_string(), self.denied.to_string()];
        let told = by.iter().map(|by| self.told.cell(*by)).chain([self.told.credit_type.clone()]);
        told.chain(numbers).chain([self.free.to_string()]).collect()
    }
}

#[derive(Serialize)]
pub struct Shown<'a> {
    pub account: &'a str,
    pub timezone: &'static str,
    pub from: NaiveDate,
    pub to: NaiveDate,
    /// Where the days begin that are kept, if earlier ones of its cycles were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_before: Option<NaiveDate>,
    /// Whether usage is added up now (`usage.breakdown`).
    pub breakdown: bool,
    pub usage: Vec<Row>,
    /// None where usage is not added up: a rate of 0 would be none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<BTreeMap<String, Forecast>>,
}

/// Reads what was used in some days. `forecast_at`: also tells when the credits will run out, as seen at that time.
pub async fn shown<'a>(
    store: &RedisStore,
    (catalogue, breakdown): (&Catalogue, bool),
    (account, state): (&'a str, &AccountState),
    (days, by): (&Days, &[By]),
    forecast_at: Option<i64>,
    each: impl Fn(),
) -> Result<Shown<'a>, StoreError> {
    let read = read(store, account, (days.from, days.to), each).await?;
    let begun = local_day(state.view.since_ms, state.view.config.timezone).max(days.from);
    // Told once all accounts of the shard are through: for a moment a day may be gone untold.
    let kept_from = store.shard_state(store.keys().shard_of(account)).await?.usage_from;
    let forecast = match forecast_at.filter(|_| breakdown) {
        Some(now_ms) => {
            let week = read_week(store, account, days, &read).await?;
            Some(forecasts(state, catalogue, &week, days.today, now_ms))
        }
        None => None,
    };
    Ok(Shown {
        account,
        timezone: state.view.config.timezone.name(),
        from: days.from,
        to: days.to,
        deleted_before: kept_from.filter(|first| begun < *first),
        breakdown,
        usage: rows(&read, by, catalogue),
        forecast,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_named_twice_is_one_column() {
        assert_eq!(distinct(&[By::User, By::Day, By::User, By::Day]), [By::User, By::Day]);
        assert_eq!(distinct(&[By::Action]), [By::Action]);
    }

    #[test]
    fn rows_are_told_apart_as_asked_and_types_never_mixed() {
        let catalogue = Catalogue::parse(include_str!("../../config/catalogue.toml")).unwrap();
        let used = |credits: i64| Used { charged: 1, credits: Credits::whole(credits), ..Used::default() };
        let key = |user: &str, action: &str| (Arc::from(user), Arc::from(action));
        let day = |text: &str, usage: &[(&str, &str, i64)]| {
            let usage = usage.iter().map(|(user, action, credits)| (key(user, action), used(*credits)));
            (text.parse::<NaiveDate>().unwrap(), usage.collect::<DayUsage>())
        };
        let days = ByDay::from([
            day("2026-03-10", &[("u-1", "reveal_email", 2), ("u-2", "reveal_phone", 5)]),
            day("2026-03-11", &[("u-1", "reveal_email", 3), ("u-1", "reveal_phone", 7)]),
        ]);
        let check = |by: &[By], expected: &[&str]| {
            let rows: Vec<_> = rows(&days, by, &catalogue).iter().map(|row| row.cells(by).join(" ")).collect();
            assert_eq!(rows, expected, "{by:?}");
        };
        check(&[By::Action], &["reveal_email email 2 5 0 0", "reveal_phone phone 2 12 0 0"]);
        check(&[By::User], &["u-1 email 2 5 0 0", "u-1 phone 1 7 0 0", "u-2 phone 1 5 0 0"]);
        check(
            &[By::Day, By::User],
            &[
                "2026-03-10 u-1 email 1 2 0 0",
                "2026-03-10 u-2 phone 1 5 0 0",
                "2026-03-11 u-1 email 1 3 0 0",
                "2026-03-11 u-1 phone 1 7 0 0",
            ],
        );
    }
}
