//! What a team has left.

use anyhow::Context;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};

use super::output::Output;
use super::{Ended, values};
use crate::config::Config;
use crate::ledger::credits::Credits;
use crate::report::balance::{self, Shown};
use crate::report::{state, unknown};

#[derive(Debug, Args)]
pub struct BalanceArgs {
    /// The account: the `subject` of its events
    #[arg(value_parser = values::name)]
    pub account: String,
}

pub async fn run(args: BalanceArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let store = state::open(config).await?;
    let read = balance::read(&store, &args.account).await?;
    let (account, positions) = read.with_context(|| unknown(&args.account))?;
    let shown = Shown::of(&args.account, &account, &positions);
    output.answer(&shown, || shown.text())?;
    Ok(Ended::Well)
}

impl Shown<'_> {
    fn text(&self) -> String {
        let cycle = &self.cycle;
        let head = format!(
            "{}: plan {}, cycle {} from {} to {}",
            self.account, self.plan, cycle.number, cycle.start, cycle.end
        );
        let positions = self.as_of.positions.iter().map(|(partition, offset)| format!("{partition} up to {offset}"));
        let positions: Vec<String> = positions.collect();
        let mut lines = vec![head, self.table().to_string()];
        lines.extend(self.closed_at.as_ref().map(|at| format!("closed at {at}")));
        lines.extend(self.next_plan.map(|plan| format!("plan {plan} begins at the renewal, {}", cycle.end)));
        lines.extend(self.grants.iter().map(|grant| {
            let from = grant.from.as_ref().map_or(String::new(), |from| format!(" from {from}"));
            let until = grant.until.as_deref().unwrap_or("the end of that cycle");
            format!("{} {}: {} left{from} until {until}", grant.kind, grant.credit_type, grant.left)
        }));
        lines.push(format!("as of {}", positions.join(", ")));
        lines.join("\n")
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::ledger::account::{AccountConfig, AccountView, Counter};
    use crate::ledger::call::Partition;
    use crate::ledger::catalogue::Amount;
    use crate::ledger::cycle::Cycle;
    use crate::ledger::grants::{GrantKind, Lot};
    use crate::store::{AccountState, ShardState};

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
                    member_limits: Default::default(),
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
            denied: BTreeMap::new(),
        }
    }

    #[test]
    fn what_ends_first_and_what_waits_is_told() {
        let mut state = state();
        let lot = |left: i64, expires_ms: Option<i64>, begun: bool| Lot {
            kind: GrantKind::Topup,
            credit_type: "phone".into(),
            left: Credits::whole(left),
            used: Default::default(),
            priority: 100,
            effective_ms: 1_772_236_800_000,
            expires_ms,
            begun,
            command_id: format!("c-{left}"),
        };
        let (end_ms, day_ms) = (state.view.cycle.end_ms, 86_400_000);
        state.view.lots = [
            (1, lot(40, None, false)),
            (2, lot(50, Some(end_ms + day_ms), true)),
            (3, lot(20, Some(end_ms - day_ms), true)),
            (4, lot(30, None, true)),
        ]
        .into_iter()
        .collect();
        // 10 of the 20 that end first are used: the grants are settled for the answer.
        let phone = &mut state.counters[1].1;
        phone.granted = Amount::Limited(Credits::whole(100));
        phone.charged = Credits::whole(10);
        state.view.next = Some(AccountConfig { plan: "starter".into(), ..state.view.config.clone() });
        let shown = Shown::of("team-1", &state, &ShardState::default());
        let left: Vec<_> = shown.grants.iter().map(|grant| (grant.left, grant.until.as_deref())).collect();
        let expected = [
            (Credits::whole(10), Some("2026-03-30T00:00:00Z")),
            (Credits::whole(30), Some("2026-03-31T00:00:00Z")),
            (Credits::whole(50), Some("2026-04-01T00:00:00Z")),
            (Credits::whole(40), None),
        ];
        assert_eq!(left, expected);
        let text = shown.text();
        assert!(text.contains("plan starter begins at the renewal, 2026-03-31"), "{text}");
        assert!(text.contains("topup phone: 40 left from 2026-02-28T00:00:00Z until the end of that cycle"), "{text}");
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
