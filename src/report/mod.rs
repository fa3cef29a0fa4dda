//! What a team sees: the same for the command line and over HTTP.

pub mod balance;
/// When credits will run out.
pub mod forecast;
/// The state in Redis, as the meter left it.
pub mod state;
pub mod usage;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::ledger::account::AccountView;
use crate::ledger::cycle::Cycle;
use crate::ledger::shard::Account;
use crate::ledger::time::rfc3339 as time;
use crate::store::AccountState;

pub fn unknown(account: &str) -> String {
    format!("account {account} does not exist: make it with `account put`, or wait until the meter has applied that")
}

/// A cycle as every answer shows it.
#[derive(Debug, PartialEq, Serialize)]
pub struct CycleShown {
    pub number: i32,
    pub start: String,
    pub end: String,
}

impl From<Cycle> for CycleShown {
    fn from(cycle: Cycle) -> CycleShown {
        let (start, end) = (time(cycle.start_ms), time(cycle.end_ms));
        CycleShown { number: cycle.number, start, end }
    }
}

/// An account whose top-ups and promos show what is left of them now. Its alarms are not read.
pub fn settled(state: &AccountState) -> Account {
    let AccountState { view, counters, denied } = state.clone();
    let AccountView { version, config, next, life, since_ms, cycle, pools, lots, closed, days, marks } = view;
    let counters = counters.into_iter().collect();
    let mut account = Account {
        version,
        config,
        next,
        life,
        since_ms,
        cycle,
        counters,
        pools,
        lots,
        denied,
        closed,
        days,
        marks,
        alarms: BTreeMap::new(),
    };
    let credit_types: Vec<String> = account.counters.keys().cloned().collect();
    credit_types.iter().for_each(|credit_type| account.settle(credit_type));
    account
}
