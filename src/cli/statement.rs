//! What a team was granted and has used, cycle by cycle: closed ones as they were stated, the open one as it is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::account::closed_cycle;
use super::output::{self, Output};
use super::{Ended, values};
use crate::config::Config;
use crate::ingest::client::Cluster;
use crate::ingest::log::Span;
use crate::ingest::statements::{self, StatedBalance, Statement};
use crate::ingest::watermarks::Watermarks;
use crate::ledger::account::{Counter, Life};
use crate::ledger::catalogue::Amount;
use crate::ledger::closed::{ClosedCounter, ClosedCycle};
use crate::ledger::credits::Credits;
use crate::ledger::grants::{GrantKind, Granted};
use crate::report::{CycleShown, state, unknown};
use crate::store::AccountState;

#[derive(Debug, Args)]
pub struct StatementArgs {
    /// The account: the `subject` of its events
    #[arg(value_parser = values::name)]
    pub account: String,
    /// Only this one; cycle 0 starts at the anchor
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub cycle: Option<i32>,
}

pub async fn run(args: StatementArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let StatementArgs { account, cycle } = args;
    let store = state::open(config).await?;
    store.account(&account).await?.with_context(|| unknown(&account))?;
    let published = published(config, &account).await?;
    // After the log: a cycle that closes meanwhile is then at least among the closed ones here.
    let stored = store.account(&account).await?.with_context(|| unknown(&account))?;
    let rebuilt_s = store.shard_state(store.keys().shard_of(&account)).await?.rebuilt_s;
    let mut statements = all(&account, published, &stored, rebuilt_s);
    if let Some(number) = cycle {
        statements.retain(|statement| statement.cycle.number == number);
        if statements.is_empty() {
            bail!("account {account} has no statement of cycle {number}, or the cycles topic no longer reaches back");
        }
    }
    let shown = Shown { statements };
    output.answer(&shown, || shown.text())?;
    Ok(Ended::Well)
}

async fn published(config: &Config, account: &str) -> anyhow::Result<BTreeMap<i32, Statement>> {
    let topic = &config.kafka.topics.cycles;
    let watermarks = Watermarks::new(&config.kafka)?;
    let mut spans = Vec::new();
    for partition in 0..Cluster::new(&config.kafka)?.partitions(topic).await? {
        let (from, to) = watermarks.range(topic, partition).await?;
        spans.push(Span { partition, from, to });
    }
    let records: i64 = spans.iter().map(|span| span.to - span.from).sum();
    let progress = output::progress(records.max(0).unsigned_abs());
    let (config, account, bar) = (config.clone(), account.to_owned(), progress.clone());
    let read = move || statements::of_account(&config, &account, &spans, || bar.inc(1));
    let found = tokio::task::spawn_blocking(read).await.context("reading");
    progress.finish_and_clear();
    Ok(found??)
}

/// The published statements, those that the meter has not published yet, and the open cycle.
fn all<'a>(
    account: &'a str,
    published: BTreeMap<i32, Statement>,
    stored: &AccountState,
    rebuilt_s: u32,
) -> Vec<StatementShown<'a>> {
    let view = &stored.view;
    let mut shown: BTreeMap<i32, StatementShown> =
        published.into_iter().map(|(number, statement)| (number, of_published(account, statement))).collect();
    for (number, closed) in &view.closed {
        let revision = closed.number(rebuilt_s);
        if shown.get(number).is_none_or(|known| known.revision < revision) {
            shown.insert(*number, StatementShown { revision, ..of_closed(account, *number, closed) });
        }
    }
    if view.life != Life::Closed {
        shown.insert(view.cycle.number, of_open(account, stored));
    }
    shown.into_values().collect()
}

#[derive(Serialize)]
struct Shown<'a> {
    statements: Vec<StatementShown<'a>>,
}

#[derive(Serialize)]
struct StatementShown<'a> {
    account: &'a str,
    plan: String,
    cycle: CycleShown,
    /// Rises with each change; 0 while the cycle is open.
    revision: u32,
    open: bool,
    balances: BTreeMap<String, BalanceShown>,
}

/// As in `balance`, and where the credits came from.
#[derive(Debug, PartialEq, Serialize)]
struct BalanceShown {
    granted: Option<Credits>,
    granted_by: BTreeMap<String, Option<Credits>>,
    used: Credits,
    expired: Credits,
    /// Of a closed cycle: what went on to the next one.
    remaining: Option<Credits>,
    reserved: Credits,
    available: Option<Credits>,
    overage: Credits,
    denied: u64,
}

fn of_published(account: &str, statement: Statement) -> StatementShown<'_> {
    let Statement { cycle, plan, revision, balances } = statement;
    let balance = |(credit_type, stated): (String, StatedBalance)| {
        let amount = |stated: statements::Stated| stated.0.unwrap_or(Credits::ZERO);
        let shown = BalanceShown {
            granted: stated.granted.0,
            granted_by: stated.granted_by.into_iter().map(|(kind, stated)| (kind, stated.0)).collect(),
            used: amount(stated.used),
            expired: amount(stated.expired),
            remaining: stated.remaining.0,
            reserved: Credits::ZERO,
            available: stated.remaining.0,
            overage: amount(stated.overage),
            denied: stated.denied,
        };
        (credit_type, shown)
    };
    let cycle = CycleShown { number: cycle.number, start: cycle.start, end: cycle.end };
    let balances = balances.into_iter().map(balance).collect();
    StatementShown { account, plan, cycle, revision, open: false, balances }
}

fn of_closed<'a>(account: &'a str, number: i32, closed: &ClosedCycle) -> StatementShown<'a> {
    let balance = |(credit_type, counter): (&String, &ClosedCounter)| {
        let remaining = credits(counter.granted.total()).map(|_| counter.moved);
        let overage = counter.overage();
        let shown = BalanceShown {
            granted: credits(counter.granted.total()),
            granted_by: granted_by(&counter.granted),
            used: counter.charged - overage,
            expired: counter.expired,
            remaining,
            reserved: Credits::ZERO,
            available: remaining,
            overage,
            denied: counter.denied,
        };
        (credit_type.clone(), shown)
    };
    StatementShown {
        account,
        plan: closed.plan.clone(),
        cycle: closed_cycle(number, closed).into(),
        revision: closed.revision,
        open: false,
        balances: closed.counters.iter().map(balance).collect(),
    }
}

fn of_open<'a>(account: &'a str, stored: &AccountState) -> StatementShown<'a> {
    let AccountState { view, counters, denied } = stored;
    let counters: BTreeMap<&String, Counter> = counters.iter().map(|(name, counter)| (name, *counter)).collect();
    let credit_types: BTreeSet<&String> = counters.keys().copied().chain(denied.keys()).collect();
    let balance = |credit_type: &String| {
        let balance = counters.get(credit_type).copied().unwrap_or_default().balance();
        let granted = view.pools.get(credit_type).map(|pool| pool.granted).unwrap_or_default();
        let shown = BalanceShown {
            granted: balance.granted,
            granted_by: granted_by(&granted),
            used: balance.used,
            expired: balance.expired,
            remaining: balance.remaining,
            reserved: Credits::ZERO,
            available: balance.remaining,
            overage: balance.overage,
            denied: denied.get(credit_type).copied().unwrap_or(0),
        };
        (credit_type.clone(), shown)
    };
    StatementShown {
        account,
        plan: view.config.plan.clone(),
        cycle: view.cycle.into(),
        revision: 0,
        open: true,
        balances: credit_types.into_iter().map(balance).collect(),
    }
}

fn credits(amount: Amount) -> Option<Credits> {
    match amount {
        Amount::Limited(credits) => Some(credits),
        Amount::Unlimited => None,
    }
}

fn granted_by(granted: &Granted) -> BTreeMap<String, Option<Credits>> {
    GrantKind::ALL.into_iter().map(|kind| (kind.name().to_owned(), credits(granted.of(kind)))).collect()
}

impl Shown<'_> {
    fn text(&self) -> String {
        let each = self.statements.iter().map(|statement| {
            let StatementShown { account, plan, cycle, revision, open, .. } = statement;
            let stated = if *open { "open".to_owned() } else { format!("revision {revision}") };
            let head = format!(
                "{account}: plan {plan}, cycle {} from {} to {} ({stated})",
                cycle.number, cycle.start, cycle.end
            );
            format!("{head}\n{}", statement.table())
        });
        each.collect::<Vec<_>>().join("\n\n")
    }
}

impl StatementShown<'_> {
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let by = GrantKind::ALL.map(GrantKind::name);
        let sums = ["granted", "used", "expired", "remaining", "overage", "denied"];
        table.set_header(["credits"].into_iter().chain(by).chain(sums));
        let text = |credits: &Option<Credits>| credits.map_or("unlimited".to_owned(), |credits| credits.to_string());
        for (credit_type, balance) in &self.balances {
            let mut row = vec![credit_type.clone()];
            row.extend(by.map(|kind| balance.granted_by.get(kind).map_or("0".to_owned(), text)));
            row.push(text(&balance.granted));
            row.extend([balance.used.to_string(), balance.expired.to_string(), text(&balance.remaining)]);
            row.extend([balance.overage.to_string(), balance.denied.to_string()]);
            table.add_row(row);
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
    use crate::ledger::account::{AccountConfig, AccountView};
    use crate::ledger::catalogue::Overage;
    use crate::ledger::cycle::Cycle;
    use crate::ledger::grants::Pool;

    fn stored() -> AccountState {
        let config = AccountConfig {
            plan: "basic".into(),
            anchor: "2026-01-31".parse().unwrap(),
            interval: None,
            timezone: chrono_tz::UTC,
            addons: vec![],
            thresholds: None,
            overage: None,
            member_limits: Default::default(),
        };
        let cycle = Cycle { number: 1, start_ms: 1_772_236_800_000, end_ms: 1_774_915_200_000 };
        let mut view = AccountView::opened(config, cycle);
        let mut pool = Pool::default();
        pool.granted.add(GrantKind::Plan, Amount::Limited(Credits::whole(10)));
        pool.granted.add(GrantKind::Topup, Amount::Limited(Credits::from_thousandths(1500)));
        view.pools.insert("email".into(), pool);
        let mut lost = ClosedCounter { charged: Credits::whole(12), denied: 3, ..Default::default() };
        lost.granted.add(GrantKind::Plan, Amount::Limited(Credits::whole(10)));
        let closed = ClosedCycle {
            start_ms: 1_769_817_600_000,
            end_ms: 1_772_236_800_000,
            plan: "starter".into(),
            overage: Overage::Reject,
            revision: 2,
            told: 1,
            stated_ms: 0,
            restate: false,
            keep_ms: 0,
            counters: [("email".to_owned(), lost)].into_iter().collect(),
        };
        view.closed.insert(0, closed);
        let counter = Counter {
            granted: Amount::Limited(Credits::from_thousandths(11_500)),
            charged: Credits::whole(4),
            ..Default::default()
        };
        AccountState {
            view,
            counters: vec![("email".into(), counter)],
            denied: [("phone".to_owned(), 1)].into_iter().collect(),
        }
    }

    fn published(revision: u32) -> BTreeMap<i32, Statement> {
        let statement: Statement = serde_json::from_str(&format!(
            r#"{{"cycle":{{"number":0,"start":"2026-01-31T00:00:00Z","end":"2026-02-28T00:00:00Z"}},"plan":"starter",
            "revision":{revision},"balances":{{}}}}"#
        ))
        .unwrap();
        [(0, statement)].into_iter().collect()
    }

    #[test]
    fn json_is_as_agreed() {
        let mut state = stored();
        state.view.closed.clear();
        let shown = Shown { statements: all("acme", BTreeMap::new(), &state, 0) };
        let none = r#""granted_by":{"addon":0,"adjusted":0,"carried":0,"plan":0,"promo":0,"topup":0}"#;
        let json = [
            r#"{"statements":[{"account":"acme","plan":"basic","cycle":{"number":1,"start":"2026-02-28T00:00:00Z","#,
            r#""end":"2026-03-31T00:00:00Z"},"revision":0,"open":true,"balances":{"email":{"granted":11.5,"#,
            r#""granted_by":{"addon":0,"adjusted":0,"carried":0,"plan":10,"promo":0,"topup":1.5},"used":4,"#,
            r#""expired":0,"remaining":7.5,"reserved":0,"available":7.5,"overage":0,"denied":0},"#,
            &format!(r#""phone":{{"granted":0,{none},"used":0,"expired":0,"remaining":0,"reserved":0,"#),
            r#""available":0,"overage":0,"denied":1}}}]}"#,
        ];
        assert_eq!(serde_json::to_string(&shown).unwrap(), json.concat());
    }

    #[test]
    fn what_is_closed_and_not_published_yet_is_told_from_redis() {
        let revisions = |published: BTreeMap<i32, Statement>| {
            let state = stored();
            let all = all("acme", published, &state, 0);
            all.iter().map(|each| (each.cycle.number, each.revision, each.balances.len())).collect::<Vec<_>>()
        };
        assert_eq!(revisions(BTreeMap::new()), [(0, 2, 1), (1, 0, 2)]);
        assert_eq!(revisions(published(1)), [(0, 2, 1), (1, 0, 2)]);
        assert_eq!(revisions(published(2)), [(0, 2, 0), (1, 0, 2)], "what was published stands");
        let state = stored();
        let rebuilt_s = 1_796_000_000;
        let anew = all("acme", published(40), &state, rebuilt_s);
        assert_eq!(
            (anew[0].revision, anew[0].balances.len()),
            (rebuilt_s + 2, 1),
            "counted anew since it was published"
        );
        let shown = all("acme", BTreeMap::new(), &state, 0);
        let email = &shown[0].balances["email"];
        assert_eq!((email.used, email.overage, email.denied), (Credits::whole(10), Credits::whole(2), 3));
    }
}
