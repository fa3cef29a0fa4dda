//! What a team has used: by day of its own time zone, by member, by action; and when its credits will run out.

use anyhow::Context;
use chrono::NaiveDate;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};

use super::output::{self, Output, quoted};
use super::source::now_ms;
use super::{Ended, in_order, usage_error, values};
use crate::config::{Config, read_catalogue};
use crate::note;
use crate::report::usage::{self, By, Days, Shown, distinct};
use crate::report::{state, unknown};

/// Days that are read at most: eleven years.
const DAYS_MAX: i64 = 4_000;

#[derive(Debug, Args)]
pub struct UsageArgs {
    /// The account: the `subject` of its events
    #[arg(value_parser = values::name)]
    pub account: String,
    /// First day, in the account's time zone [default: the first of its open cycle, or --to if that is earlier]
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

pub async fn run(args: UsageArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let by = distinct(&args.by);
    let store = state::open(config).await?;
    let catalogue = read_catalogue(config)?;
    let account = store.account(&args.account).await?.with_context(|| unknown(&args.account))?;
    let now_ms = now_ms();
    let days = Days::of((args.from, args.to), DAYS_MAX, &account, now_ms);
    let days = days.map_err(|wrong| usage_error("usage", format!("--{wrong}")))?;
    let progress = output::progress(days.count());
    let forecast_at = args.forecast.then_some(now_ms);
    let (added_up, of) = ((&catalogue, config.usage.breakdown), (args.account.as_str(), &account));
    let shown = usage::shown(&store, added_up, of, (&days, &by), forecast_at, || progress.inc(1)).await;
    progress.finish_and_clear();
    let shown = shown?;
    if args.csv {
        for missing in shown.missing() {
            note!("{missing}");
        }
        output.lines(&shown.csv(&by))?;
    } else {
        output.answer(&shown, || shown.text(&by))?;
    }
    Ok(Ended::Well)
}

fn columns(by: &[By]) -> Vec<&'static str> {
    by.iter().map(|by| by.name()).chain(["credit_type", "charged", "credits", "denied", "free"]).collect()
}

impl Shown<'_> {
    fn csv(&self, by: &[By]) -> Vec<String> {
        let line = |cells: Vec<String>| cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",");
        let head = columns(by).join(",");
        std::iter::once(head).chain(self.usage.iter().map(|row| line(row.cells(by)))).collect()
    }

    /// Why there is less than was asked for.
    fn missing(&self) -> Vec<String> {
        let deleted = self.deleted_before.map(|day| format!("usage before {day} is kept no more: see usage.keep"));
        let off = "usage.breakdown is off: no usage is added up now, and there is no forecast";
        deleted.into_iter().chain((!self.breakdown).then(|| off.to_owned())).collect()
    }

    fn text(&self, by: &[By]) -> String {
        let mut lines = vec![format!("{}: {} to {} ({})", self.account, self.from, self.to, self.timezone)];
        if self.usage.is_empty() {
            lines.push("no usage".to_owned());
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
        lines.extend(self.missing());
        let forecasts = self.forecast.iter().flatten();
        lines.extend(forecasts.map(|(credit_type, forecast)| forecast.text(credit_type)));
        lines.join("\n")
    }
}
