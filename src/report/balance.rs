//! What a team has left.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{CycleShown, settled};
use crate::ledger::account::{Balance, Life};
use crate::ledger::credits::Credits;
use crate::ledger::grants::Lot;
use crate::ledger::time::rfc3339 as time;
use crate::store::{AccountState, RedisStore, ShardState, StoreError};

/// Reads an account, and how far its shard is; `None`: there is none.
pub async fn read(store: &RedisStore, account: &str) -> Result<Option<(AccountState, ShardState)>, StoreError> {
    // Positions first: the account is then at least as new as they say.
    let positions = store.shard_state(store.keys().shard_of(account)).await?;
    Ok(store.account(account).await?.map(|state| (state, positions)))
}

#[derive(Serialize)]
pub struct Shown<'a> {
    pub account: &'a str,
    pub plan: &'a str,
    pub cycle: CycleShown,
    pub balances: BTreeMap<&'a str, BalanceShown>,
    /// Another plan that waits for the renewal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_plan: Option<&'a str>,
    /// When the account was closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<String>,
    /// Top-ups and promos, the soonest ending first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<GrantShown>,
    pub as_of: AsOf,
}

#[derive(Serialize)]
pub struct BalanceShown {
    pub granted: Option<Credits>,
    pub used: Credits,
    pub expired: Credits,
    pub remaining: Option<Credits>,
    pub reserved: Credits,
    pub available: Option<Credits>,
    pub overage: Credits,
}

/// What is left of a top-up or promo, and until when.
#[derive(Serialize)]
pub struct GrantShown {
    pub kind: &'static str,
    pub credit_type: String,
    pub left: Credits,
    /// Where it has not begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `null`: the end of the cycle in which it begins.
    pub until: Option<String>,
    pub command_id: String,
}

/// Those that are used up do not matter any more.
fn grants(state: &AccountState) -> Vec<GrantShown> {
    let account = settled(state);
    let end_ms = account.cycle.end_ms;
    let ends = |lot: &Lot| lot.expires_ms.or(lot.begun.then_some(end_ms));
    let mut lots: Vec<Lot> = account.lots.into_values().filter(|lot| lot.left > Credits::ZERO).collect();
    lots.sort_by_key(|lot| ends(lot).unwrap_or(i64::MAX));
    let shown = lots.into_iter().map(|lot| GrantShown {
        kind: lot.kind.name(),
        from: (!lot.begun).then(|| time(lot.effective_ms)),
        until: ends(&lot).map(time),
        credit_type: lot.credit_type,
        left: lot.left,
        command_id: lot.command_id,
    });
    shown.collect()
}

#[derive(Serialize)]
pub struct AsOf {
    /// The next offset of each partition: all records below it are counted.
    pub positions: BTreeMap<String, i64>,
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
    pub fn of(account: &'a str, state: &'a AccountState, shard: &ShardState) -> Shown<'a> {
        let counters = state.counters.iter();
        let positions = shard.positions.iter().map(|(partition, offset)| (partition.to_string(), *offset));
        let next_plan = state.view.next.as_ref().map(|next| next.plan.as_str());
        Shown {
            account,
            plan: &state.view.config.plan,
            cycle: state.view.cycle.into(),
            balances: counters.map(|(name, counter)| (name.as_str(), counter.balance().into())).collect(),
            next_plan: next_plan.filter(|next| *next != state.view.config.plan),
            closed_at: (state.view.life != Life::Open).then(|| time(state.view.cycle.end_ms)),
            grants: grants(state),
            as_of: AsOf { positions: positions.collect() },
        }
    }
}
