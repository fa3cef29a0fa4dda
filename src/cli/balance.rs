//! What a team has left.

use std::collections::BTreeMap;

use anyhow::Context;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::account::{CycleShown, unknown};
use super::output::Output;
use super::{Ended, state, values};
use crate::config::Config;
use crate::ledger::account::Balance;
use crate::ledger::credits::Credits;
use crate::store::{AccountState, ShardState};

#[derive(Debug, Args)]
pub struct BalanceArgs {
    /// The account: the `subject` of its events
    #[arg(value_parser = values::name)]
    pub account: String,
}

pub async fn run(args: BalanceArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let store = state::open(config).await?;
    let shard = store.keys().shard_of(&args.account);
    // Positions first: the account is then at least as new as they say.
    let positions = store.shard_state(shard).await?;
    let account = store.account(&args.account).await?.with_context(|| unknown(&args.account))?;
    let shown = Shown::of(&args.account, &account, &positions);
    output.answer(&shown, || shown.text())?;
    Ok(Ended::Well)
}

#[derive(Serialize)]
struct Shown<'a> {
    account: &'a str,
    plan: &'a str,
    cycle: CycleShown,
    balances: BTreeMap<&'a str, BalanceShown>,
    as_of: AsOf,
}

#[derive(Serialize)]
struct BalanceShown {
    granted: Option<Credits>,
    used: Credits,
    expired: Credits,
    remaining: Option<Credits>,
    reserved: Credits,
    available: Option<Credits>,
    overage: Credits,
}

#[derive(Serialize)]
struct AsOf {
    /// The next offset of each partition: all records below it are counted.
    positions: BTreeMap<String, i64>,
}

impl From<Balance> for BalanceShown {
    fn from(balance: Balance) -> BalanceShown {
        BalanceShown {
            granted: balance.granted,
            used: balance.used,
            expired: balance.expired,
            remaining: balance.remaining,
            // There are no reservations yet.
            reserved: Credits::ZERO,
            available: balance.remaining,
            overage: balance.overage,
        }
    }
}

impl<'a> Shown<'a> {
    fn of(account: &'a str, state: &'a AccountState, shard: &ShardState) -> Shown<'a> {
        let counters = state.counters.iter();
        let positions = shard.positions.iter().map(|(partition, offset)| (partition.to_string(), *offset));
        Shown {
            account,
            plan: &state.view.config.plan,
            cycle: state.view.cycle.into(),
            balances: counters.map(|(name, counter)| (name.as_str(), counter.balance().into())).collect(),
            as_of: AsOf { positions: positions.collect() },
        }
    }

    fn text(&self) -> String {
        let cycle = &self.cycle;
        let head = format!(
            "{}: plan {}, cycle {} from {} to {}",
            self.account, self.plan, cycle.number, cycle.start, cycle.end
        );
        let positions = self.as_of.positions.iter().map(|(partition, offset)| format!("{partition} up to {offset}"));
        let positions: Vec<String> = positions.collect();
        format!("{head}\n{}\nas of {}", self.table(), positions.join(", "))
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["credits", "granted", "used", "expired", "remaining", "reserved", "available", "overage"]);
        let limited = |credits: Option<Credits>| credits.map_or("unlimited".to_owned(), |credits| credits.to_string());
        for (credit_type, balance) in &self.balances {
            table.add_row([
                (*credit_type).to_owned(),
                limited(balance.granted),
                balance.used.to_string(),
                balance.expired.to_string(),
                limited(balance.remaining),
                balance.reserved.to_string(),
                limited(balance.available),
                balance.overage.to_string(),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::account::{AccountConfig, AccountView, Counter};
    use crate::ledger::call::Partition;
    use crate::ledger::catalogue::Amount;
    use crate::ledger::cycle::Cycle;

    fn state() -> AccountState {
        AccountState {
            view: AccountView::opened(
                AccountConfig {
                    plan: "organization".into(),
                    anchor: "2026-01-31".parse().unwrap(),
                    interval: None,
                    timezone: chrono_tz::UTC,
                    addons: vec![],
                    thresholds: None,
                    overage: None,
                },
                Cycle { number: 1, start_ms: 1_772_236_800_000, end_ms: 1_774_915_200_000 },
            ),
            counters: vec![
                (
                    "email".into(),
                    Counter { granted: Amount::Unlimited, charged: Credits::whole(7), ..Default::default() },
                ),
                (
                    "phone".into(),
                    Counter {
                        granted: Amount::Limited(Credits::whole(100)),
                        charged: Credits::from_thousandths(130_500),
                        expired: Credits::ZERO,
                    },
                ),
            ],
        }
    }

    #[test]
    fn json_is_as_agreed() {
        let shard = ShardState { positions: vec![(Partition::usage(0), 123)], ..ShardState::default() };
        let json = concat!(
            r#"{"account":"team-1","plan":"organization","#,
            r#""cycle":{"number":1,"start":"2026-02-28T00:00:00Z","end":"2026-03-31T00:00:00Z"},"#,
            r#""balances":{"email":{"granted":null,"used":7,"expired":0,"remaining":null,"reserved":0,"#,
            r#""available":null,"overage":0},"#,
            r#""phone":{"granted":100,"used":100,"expired":0,"remaining":0,"reserved":0,"available":0,"#,
            r#""overage":30.5}},"as_of":{"positions":{"usage:0":123}}}"#
        );
        assert_eq!(serde_json::to_string(&Shown::of("team-1", &state(), &shard)).unwrap(), json);
    }

    #[test]
    fn people_see_what_is_unlimited() {
        let state = state();
        let text = Shown::of("team-1", &state, &ShardState::default()).text();
        assert!(text.contains("unlimited") && text.contains("30.5"), "{text}");
    }
}
