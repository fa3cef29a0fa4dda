//! What a team has used: by day of its own time zone, by member, by action; and when its credits will run out.

use std::collections::BTreeMap;

use anyhow::Context;
use chrono::{DateTime, NaiveDate, TimeDelta};
use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::account::unknown;
use super::forecast::{Forecast, WEEK_DAYS, forecasts};
use super::output::{self, Output, quoted};
use super::source::now_ms;
use super::{Ended, in_order, state, usage_error, values};
use crate::config::{Config, read_catalogue};
use crate::ledger::catalogue::Catalogue;
use crate::ledger::credits::Credits;
use crate::ledger::usage::{DayUsage, Used};
use crate::store::{AccountState, RedisStore};

/// Days that are read at most: eleven years.
const DAYS_MAX: i64 = 4_000;

#[derive(Debug, Args)]
pub struct UsageArgs {
    /// The account: the `subject` of its events
    #[arg(value_parser = values::name)]
    pub account: String,
    /// First day, in the account's time zone [default: the first of its open cycle]
    #[arg(long, value_name = "DATE", value_parser = values::date)]
    pub from: Option<NaiveDate>,
    /// Last day [default: today]
    #[arg(long, value_name = "DATE", value_parser = values::date)]
    pub to: Option<NaiveDate>,
    /// What to tell apart beside credit types, in this order
    #[arg(long, value_name = "WHAT", value_delimiter = ',', default_value = "action")]
    pub by: Vec<By>,
    /// Also tell when the credits will run out
    #[arg(long, conflicts_with = "csv")]
    pub forecast: bool,
    /// Answer in CSV
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

impl UsageArgs {
    pub fn check(&self) -> Result<(), clap::Error> {
        self.from.zip(self.to).map_or(Ok(()), |(from, to)| in_order("usage", from, to, |day| day.to_string()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    Day,
    User,
    Action,
}

impl By {
    const fn name(self) -> &'static str {
        match self {
            By::Day => "day",
            By::User => "user",
            By::Action => "action",
        }
    }
}

/// Each once, in the order in which they were named.
fn distinct(by: &[By]) -> Vec<By> {
    by.iter().enumerate().filter(|(index, one)| !by[..*index].contains(one)).map(|(_, one)| *one).collect()
}

pub async fn run(args: UsageArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let by = distinct(&args.by);
    let store = state::open(config).await?;
    let catalogue = read_catalogue(config)?;
    let account = store.account(&args.account).await?.with_context(|| unknown(&args.account))?;
    let days = Days::of(&args, &account)?;
    let read = read(&store, &args.account, days.from, days.to).await?;
    let mut shown = Shown {
        account: &args.account,
        timezone: account.view.config.timezone.name(),
        from: days.from,
        to: days.to,
        usage: rows(&read, &by, &catalogue),
        forecast: None,
    };
    if args.forecast {
        let week = read_week(&store, &args.account, &days, &read).await?;
        shown.forecast = Some(forecasts(&account, &catalogue, &week, days.today, now_ms()));
    }
    if args.csv {
        output.lines(&shown.csv(&by))?;
    } else {
        output.answer(&shown, || shown.text(&by, config))?;
    }
    Ok(Ended::Well)
}

/// The days that are asked for, in the account's zone.
struct Days {
    from: NaiveDate,
    to: NaiveDate,
    today: NaiveDate,
}

impl Days {
    fn of(args: &UsageArgs, account: &AccountState) -> anyhow::Result<Days> {
        let timezone = account.view.config.timezone;
        let day = |ms: i64| DateTime::from_timestamp_millis(ms).map(|time| time.with_timezone(&timezone).date_naive());
        let today = day(now_ms()).context("the clock shows no date")?;
        let to = args.to.unwrap_or(today);
        let start = day(account.view.cycle.start_ms).context("the cycle has no date")?;
        let from = args.from.unwrap_or(start.min(to));
        if from > to {
            // `--to` is not given: with both, the arguments were refused before.
            return Err(usage_error("usage", format!("--from {from} is after today, {to}")).into());
        }
        if (to - from).num_days() >= DAYS_MAX {
            return Err(usage_error("usage", format!("from {from} to {to} are more than {DAYS_MAX} days")).into());
        }
        Ok(Days { from, to, today })
    }
}

type ByDay = BTreeMap<NaiveDate, DayUsage>;

async fn read(store: &RedisStore, account: &str, from: NaiveDate, to: NaiveDate) -> anyhow::Result<ByDay> {
    let progress = output::progress((to - from).num_days().max(0).unsigned_abs() + 1);
    let mut days = ByDay::new();
    for day in from.iter_days().take_while(|day| *day <= to) {
        let usage = store.day_usage(account, day).await?;
        if !usage.is_empty() {
            days.insert(day, usage);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(days)
}

/// The whole days before today that a forecast looks at.
async fn read_week(store: &RedisStore, account: &str, days: &Days, known: &ByDay) -> anyhow::Result<ByDay> {
    let (first, last) = (days.today - TimeDelta::days(WEEK_DAYS), days.today - TimeDelta::days(1));
    if days.from <= first && last <= days.to {
        return Ok(known.range(first..=last).map(|(day, usage)| (*day, usage.clone())).collect());
    }
    read(store, account, first, last).await
}

/// What stands before the numbers of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Told {
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<NaiveDate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
    credit_type: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    #[serde(flatten)]
    told: Told,
    /// Events that were charged.
    charged: u64,
    credits: Credits,
    denied: u64,
    free: u64,
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
    fn cell(&self, by: By) -> String {
        match by {
            By::Day => self.day.map(|day| day.to_string()),
            By::User => self.user.clone(),
            By::Action => self.action.clone(),
        }
        .unwrap_or_default()
    }
}

impl Row {
    fn cells(&self, by: &[By]) -> Vec<String> {
        let numbers = [self.charged.to_string(), self.credits.to_string(), self.denied.to_string()];
        let told = by.iter().map(|by| self.told.cell(*by)).chain([self.told.credit_type.clone()]);
        told.chain(numbers).chain([self.free.to_string()]).collect()
    }
}

fn columns(by: &[By]) -> Vec<&'static str> {
    by.iter().map(|by| by.name()).chain(["credit_type", "charged", "credits", "denied", "free"]).collect()
}

#[derive(Serialize)]
struct Shown<'a> {
    account: &'a str,
    timezone: &'static str,
    from: NaiveDate,
    to: NaiveDate,
    usage: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<BTreeMap<String, Forecast>>,
}

impl Shown<'_> {
    fn csv(&self, by: &[By]) -> Vec<String> {
        let line = |cells: Vec<String>| cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",");
        let head = columns(by).join(",");
        std::iter::once(head).chain(self.usage.iter().map(|row| line(row.cells(by)))).collect()
    }

    fn text(&self, by: &[By], config: &Config) -> String {
        let mut lines = vec![format!("{}: {} to {} ({})", self.account, self.from, self.to, self.timezone)];
        if self.usage.is_empty() {
            lines.push("no usage".to_owned());
            if !config.usage.breakdown {
                lines.push("usage.breakdown is off: the meter does not add usage up by day".to_owned());
            }
        } else {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_header(columns(by));
            for row in &self.usage {
                table.add_row(row.cells(by));
            }
            for column in table.column_iter_mut().skip(by.len() + 1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            lines.push(table.to_string());
        }
        let forecasts = self.forecast.iter().flatten();
        lines.extend(forecasts.map(|(credit_type, forecast)| forecast.text(credit_type)));
        lines.join("\n")
    }
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
