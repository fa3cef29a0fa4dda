//! Reads what the scripts have written: accounts, counters, notes, the root.

use std::collections::BTreeMap;

use super::{Root, ShardState, StoreError};
use crate::ledger::account::{AccountConfig, AccountView, Counter, Grant, GrantKind, add_grant};
use crate::ledger::call::{Anchor, Note, Partition};
use crate::ledger::catalogue::{Amount, CatalogueId};
use crate::ledger::credits::Credits;
use crate::ledger::cycle::Cycle;
use crate::ledger::day::Layout;
use crate::ledger::outcome::{DeadReason, Outcome};

pub fn parse_root(text: &str) -> Result<Root, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Broken(format!("the root key: {error}")))
}

pub fn parse_note(name: &str, reason: &str) -> Option<Note> {
    let (partition, offset) = name.rsplit_once('@')?;
    Some(Note {
        partition: Partition::parse(partition)?,
        offset: offset.parse().ok()?,
        reason: DeadReason::from_name(reason)?,
    })
}

/// Reads where a shard is from its hash.
pub fn parse_shard(fields: &BTreeMap<String, String>) -> Result<ShardState, StoreError> {
    let mut state = ShardState { generation: fields.get("generation").cloned(), ..ShardState::default() };
    for (field, value) in fields {
        if let Some(partition) = field.strip_prefix("position:").and_then(Partition::parse) {
            state.positions.push((partition, number(value)?));
        } else if let Some((partition, outcome)) = field.strip_prefix("total:").and_then(parse_total) {
            state.totals.push((partition, outcome, number(value)?));
        } else if let Some(partition) = field.strip_prefix("anchor:").and_then(Partition::parse) {
            let anchor = Anchor::parse(value).ok_or_else(|| StoreError::Broken(format!("{field} is `{value}`")))?;
            state.anchors.push((partition, anchor));
        } else if field == "meter_time_ms" {
            state.meter_time_ms = number(value)?;
        } else if field == "floor_ms" {
            state.floor_ms = number(value)?;
        } else if field == "restamp_tolerance_ms" {
            state.restamp_tolerance_ms = number(value)?;
        } else if field == "catalogue_version" {
            let hash = fields.get("catalogue_hash").cloned().unwrap_or_default();
            state.catalogue = Some(CatalogueId { version: number(value)?, hash });
        }
    }
    state.positions.sort_unstable();
    state.totals.sort_unstable();
    Ok(state)
}

fn parse_total(text: &str) -> Option<(Partition, Outcome)> {
    let (partition, outcome) = text.rsplit_once(':')?;
    Some((Partition::parse(partition)?, Outcome::from_name(outcome)?))
}

/// Reads an account's configuration, cycle and grants from its hash.
pub fn parse_view(fields: &BTreeMap<String, String>) -> Result<AccountView, StoreError> {
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let mut parts = field("cycle").split(' ');
    let mut part = || parts.next().ok_or_else(|| StoreError::Broken(format!("cycle `{}`", field("cycle"))));
    let cycle = Cycle { number: number(part()?)?, start_ms: number(part()?)?, end_ms: number(part()?)? };
    let mut grants = Vec::new();
    let mut bought = Vec::new();
    for (name, value) in fields {
        let broken = || StoreError::Broken(format!("`{name}` is `{value}`"));
        if let Some(offset) = name.strip_prefix("grant:") {
            bought.push((number::<i64>(offset)?, parse_grant(value).ok_or_else(broken)?));
        } else if let Some((credit_type, part)) = name.split_once('.')
            && let Some(kind) = GrantKind::from_name(part)
        {
            let amount = parse_amount(value).ok_or_else(broken)?;
            add_grant(&mut grants, Grant { kind, credit_type: credit_type.to_owned(), amount, command_id: None });
        }
    }
    bought.sort_by_key(|(offset, _)| *offset);
    grants.extend(bought.into_iter().map(|(_, grant)| grant));
    let config = AccountConfig::from_fields(fields).map_err(StoreError::Broken)?;
    let days = parse_days(field("days"))?.into_iter().collect();
    Ok(AccountView { version: number(field("version"))?, config, cycle, grants, days })
}

/// The days whose identities an account keeps, in the order in which they began.
pub fn parse_days(text: &str) -> Result<Vec<(i64, Layout)>, StoreError> {
    let day = |part: &str| {
        let (day, layout) = part.split_once(':')?;
        Some((day.parse().ok()?, Layout::parse(layout)?))
    };
    let days =
        text.split_whitespace().map(|part| day(part).ok_or_else(|| StoreError::Broken(format!("days `{text}`"))));
    days.collect()
}

/// Reads an account's counters from its hash.
pub fn parse_counters(fields: &BTreeMap<String, String>) -> Result<BTreeMap<String, Counter>, StoreError> {
    let mut counters: BTreeMap<String, Counter> = BTreeMap::new();
    for (name, value) in fields {
        let Some((credit_type, part)) = name.split_once('.') else { continue };
        if GrantKind::from_name(part).is_some() {
            continue;
        }
        let counter = counters.entry(credit_type.to_owned()).or_default();
        match part {
            "granted" => {
                counter.granted =
                    parse_amount(value).ok_or_else(|| StoreError::Broken(format!("`{name}` is `{value}`")))?;
            }
            "charged" => counter.charged = Credits::from_thousandths(number(value)?),
            "expired" => counter.expired = Credits::from_thousandths(number(value)?),
            _ => return Err(StoreError::Broken(format!("an account has a field `{name}`"))),
        }
    }
    Ok(counters)
}

fn parse_grant(text: &str) -> Option<Grant> {
    let mut parts = text.splitn(4, ' ');
    Some(Grant {
        kind: GrantKind::from_name(parts.next()?)?,
        credit_type: parts.next()?.to_owned(),
        amount: parse_amount(parts.next()?)?,
        command_id: Some(parts.next()?.to_owned()),
    })
}

pub fn parse_amount(text: &str) -> Option<Amount> {
    match text {
        "unlimited" => Some(Amount::Unlimited),
        thousandths => Some(Amount::Limited(Credits::from_thousandths(thousandths.parse().ok()?))),
    }
}

pub fn number<T: std::str::FromStr>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Broken(format!("`{text}` where a number is due")))
}
