//! What is told of each cycle: the fields of `credits.cycles`, for closed cycles and for the open one.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::ledger::account::Life;
use crate::ledger::catalogue::Amount;
use crate::ledger::closed::{ClosedCounter, ClosedCycle};
use crate::ledger::credits::Credits;
use crate::ledger::cycle::Cycle;
use crate::ledger::grants::GrantKind;
use crate::ledger::roll::{cycle_text, time_text};
use crate::ledger::shard::Account;

/// One cycle of one account.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub account: Arc<str>,
    pub plan: String,
    pub cycle: Cycle,
    /// Whether it goes on after the last moment.
    pub open: bool,
    /// By credit type, of those that were granted, used or denied.
    pub balances: BTreeMap<String, ClosedCounter>,
}

impl Statement {
    pub fn closed(account: &Arc<str>, number: i32, closed: &ClosedCycle) -> Statement {
        Statement {
            account: account.clone(),
            plan: closed.plan.clone(),
            cycle: Cycle { number, start_ms: closed.start_ms, end_ms: closed.end_ms },
            open: false,
            balances: closed.counters.clone(),
        }
    }

    /// The open cycle so far; `None` where the account is closed.
    pub fn open(name: &Arc<str>, account: &Account) -> Option<Statement> {
        if account.life == Life::Closed {
            return None;
        }
        let mut types: Vec<&String> =
            account.counters.keys().chain(account.pools.keys()).chain(account.denied.keys()).collect();
        types.sort_unstable();
        types.dedup();
        let balance = |credit_type: &String| {
            let counter = account.counters.get(credit_type).copied().unwrap_or_default();
            ClosedCounter {
                granted: account.pools.get(credit_type).copied().unwrap_or_default().granted,
                charged: counter.charged,
                expired: counter.expired,
                // Of an open cycle nothing has gone on yet; it is what would.
                moved: counter.remaining().unwrap_or(Credits::ZERO),
                spare: Credits::ZERO,
                denied: account.denied.get(credit_type).copied().unwrap_or(0),
            }
        };
        let balances = types.into_iter().map(|credit_type| (credit_type.clone(), balance(credit_type)));
        Some(Statement {
            account: name.clone(),
            plan: account.config.plan.clone(),
            cycle: account.cycle,
            open: true,
            balances: balances.filter(|(_, balance)| *balance != ClosedCounter::default()).collect(),
        })
    }
}

/// As JSON shows it.
#[derive(Serialize)]
pub struct Shown<'a> {
    account: &'a str,
    plan: &'a str,
    cycle: Box<RawValue>,
    open: bool,
    balances: BTreeMap<&'a str, Box<RawValue>>,
}

impl<'a> Shown<'a> {
    pub fn of(statement: &'a Statement) -> Shown<'a> {
        let json = |text: String| RawValue::from_string(text).expect("the ledger writes JSON");
        Shown {
            account: &statement.account,
            plan: &statement.plan,
            cycle: json(cycle_text(statement.cycle)),
            open: statement.open,
            balances: statement.balances.iter().map(|(name, each)| (&**name, json(each.to_string()))).collect(),
        }
    }
}

/// The columns of a table with a row for each cycle and credit type.
pub fn columns() -> Vec<String> {
    let before = ["account", "plan", "cycle", "start", "end", "state", "credit_type", "granted"].map(str::to_owned);
    let kinds = GrantKind::ALL.map(|kind| format!("granted_{}", kind.name()));
    let after = ["used", "expired", "remaining", "overage", "denied"].map(str::to_owned);
    [&before[..], &kinds, &after].concat()
}

/// The rows of a statement: `unlimited` where a type is only counted.
pub fn rows(statement: &Statement) -> Vec<Vec<String>> {
    let row = |(credit_type, counter): (&String, &ClosedCounter)| {
        let granted = counter.granted.total();
        let overage = counter.overage();
        let remaining = match granted {
            Amount::Limited(_) => counter.moved.to_string(),
            Amount::Unlimited => granted.to_string(),
        };
        let (start, end) = (time_text(statement.cycle.start_ms), time_text(statement.cycle.end_ms));
        let state = if statement.open { "open" } else { "closed" };
        let mut row = vec![statement.account.to_string(), statement.plan.clone(), statement.cycle.number.to_string()];
        row.extend([start, end, state.to_owned(), credit_type.clone(), granted.to_string()]);
        row.extend(GrantKind::ALL.map(|kind| counter.granted.of(kind).to_string()));
        row.extend([(counter.charged - overage).to_string(), counter.expired.to_string(), remaining]);
        row.extend([overage.to_string(), counter.denied.to_string()]);
        row
    };
    statement.balances.iter().map(row).collect()
}
