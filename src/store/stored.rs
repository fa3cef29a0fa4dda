//! Reads what the scripts have written: accounts, counters, notes, the root.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Root, ShardState, StoreError};
use crate::ledger::account::{AccountConfig, AccountView, Counter, Life};
use crate::ledger::alerts::Alarm;
use crate::ledger::call::{Anchor, Note, Partition};
use crate::ledger::catalogue::{Amount, CatalogueId, Overage};
use crate::ledger::closed::{ClosedCounter, ClosedCycle};
use crate::ledger::credits::Credits;
use crate::ledger::cycle::Cycle;
use crate::ledger::day::Layout;
use crate::ledger::grants::{Granted, Lot, Lots, Pool};
use crate::ledger::outcome::{DeadReason, Outcome};
use crate::ledger::usage::day_of_number;

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
        } else if field.starts_with("reached:") {
            state.reached_ms = state.reached_ms.max(Some(number(value)?));
        } else if field == "schema" {
            state.schema = Some(number(value)?);
        } else if field == "meter_time_ms" {
            state.meter_time_ms = number(value)?;
        } else if field == "floor_ms" {
            state.floor_ms = number(value)?;
        } else if field == "restamp_tolerance_ms" {
            state.restamp_tolerance_ms = number(value)?;
        } else if let Some(side) = ["begun", "ended"].iter().position(|name| name == field) {
            state.writes[side] = number(value)?;
        } else if field == "rebuilt" {
            state.rebuilt_s = number(value)?;
        } else if field == "usage_from" {
            state.usage_from = day_of_number(number(value)?);
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

/// Parts of an account's fields, behind a credit type and a point. Short: each account has them for each type.
pub const GRANTED: &str = "g";
pub const CHARGED: &str = "c";
pub const EXPIRED: &str = "e";
pub const ALERTS: &str = "a";
const POOL: &str = "p";
const DENIED: &str = "d";

/// The credit type of a field that has this part.
fn of_type<'a>(field: &'a str, part: &str) -> Option<&'a str> {
    field.split_once('.').filter(|(_, own)| *own == part).map(|(credit_type, _)| credit_type)
}

/// Reads what was charged to a member.
pub fn parse_member_count(field: &str, used: &str) -> Result<((String, Arc<str>), Credits), StoreError> {
    let of = field.split_once(':').ok_or_else(|| StoreError::Broken(format!("the count of a member is `{field}`")))?;
    Ok(((of.0.to_owned(), of.1.into()), Credits::from_thousandths(number(used)?)))
}

/// What stands before a field that waits for the renewal.
pub const PENDING: &str = ">";

/// Reads an account as a worker knows it from its hash.
pub fn parse_view(fields: &BTreeMap<String, String>) -> Result<AccountView, StoreError> {
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let mut parts = field("cycle").split(' ');
    let mut part = || parts.next().ok_or_else(|| StoreError::Broken(format!("cycle `{}`", field("cycle"))));
    let cycle = Cycle { number: number(part()?)?, start_ms: number(part()?)?, end_ms: number(part()?)? };
    let (mut pools, mut lots, mut closed) = (BTreeMap::new(), Lots::new(), BTreeMap::new());
    let mut closed_counters = Vec::new();
    let mut pending = BTreeMap::new();
    let (mut lot_ids, mut lots_used, mut terms) = (Vec::new(), Vec::new(), Vec::new());
    for (name, value) in fields {
        let broken = || StoreError::Broken(format!("`{name}` is `{value}`"));
        if let Some(name) = name.strip_prefix(PENDING) {
            pending.insert(name.to_owned(), value.clone());
        } else if let Some(name) = name.strip_prefix("lot:") {
            match name.strip_suffix(":id") {
                None => drop(lots.insert(number(name)?, Lot::parse(value).ok_or_else(broken)?)),
                Some(created) => lot_ids.push((number::<i64>(created)?, value)),
            }
        } else if let Some(created) = name.strip_prefix("used:") {
            lots_used.push((number::<i64>(created)?, Lot::parse_used(value).ok_or_else(broken)?));
        } else if let Some(of) = name.strip_prefix("terms:") {
            terms.push((number::<i32>(of)?, value));
        } else if let Some(name) = name.strip_prefix("closed:") {
            match name.split_once(':') {
                None => {
                    closed.insert(number::<i32>(name)?, parse_closed(value).ok_or_else(broken)?);
                }
                Some((of, credit_type)) => {
                    let counter = parse_closed_counter(value).ok_or_else(broken)?;
                    closed_counters.push((number::<i32>(of)?, credit_type.to_owned(), counter));
                }
            }
        } else if let Some(credit_type) = of_type(name, POOL) {
            pools.insert(credit_type.to_owned(), parse_pool(value).ok_or_else(broken)?);
        }
    }
    for (created, id) in lot_ids {
        let lot = lots.get_mut(&created).ok_or_else(|| StoreError::Broken(format!("there is no lot {created}")))?;
        lot.command_id.clone_from(id);
    }
    for (created, used) in lots_used {
        // A program that does not know of it leaves it behind when a lot ends.
        lots.entry(created).and_modify(|lot| lot.used = used);
    }
    for (of, text) in terms {
        let cycle = closed.get_mut(&of).ok_or_else(|| StoreError::Broken(format!("there is no cycle {of}")))?;
        parse_terms(cycle, text).ok_or_else(|| StoreError::Broken(format!("terms of cycle {of} are `{text}`")))?;
    }
    for (of, credit_type, counter) in closed_counters {
        let cycle = closed.get_mut(&of).ok_or_else(|| StoreError::Broken(format!("there is no cycle {of}")))?;
        cycle.counters.insert(credit_type, counter);
    }
    let next = (!pending.is_empty()).then(|| AccountConfig::from_fields(&pending));
    let life = if field("life").is_empty() { Life::Open.name() } else { field("life") };
    Ok(AccountView {
        version: number(field("version"))?,
        config: AccountConfig::from_fields(fields).map_err(StoreError::Broken)?,
        next: next.transpose().map_err(StoreError::Broken)?,
        life: Life::from_name(life).ok_or_else(|| StoreError::Broken(format!("life `{life}`")))?,
        since_ms: if field("since").is_empty() { cycle.start_ms } else { number(field("since"))? },
        cycle,
        pools,
        lots,
        closed,
        days: parse_days(field("days"))?.into_iter().collect(),
        marks: parse_marks(field("once"))?,
    })
}

fn parse_pool(text: &str) -> Option<Pool> {
    let mut words = text.split(' ');
    let left = words.next()?;
    // Kinds at the end of which nothing was granted are left out.
    let granted = Granted::parse(&mut words.chain(std::iter::repeat("0")))?;
    let left = if left == "=" { granted.own() } else { thousandths(left)? };
    Some(Pool { left, granted })
}

fn parse_closed(text: &str) -> Option<ClosedCycle> {
    let mut words = text.split(' ');
    Some(ClosedCycle {
        start_ms: words.next()?.parse().ok()?,
        end_ms: words.next()?.parse().ok()?,
        keep_ms: words.next()?.parse().ok()?,
        stated_ms: words.next()?.parse().ok()?,
        told: words.next().unwrap_or("0").parse().ok()?,
        restate: false,
        revision: 0,
        overage: Overage::Reject,
        plan: String::new(),
        counters: BTreeMap::new(),
    })
}

fn parse_terms(cycle: &mut ClosedCycle, text: &str) -> Option<()> {
    let mut words = text.split(' ');
    cycle.restate = words.next()? == "1";
    cycle.revision = words.next()?.parse().ok()?;
    cycle.overage = Overage::from_stored(words.next()?)?;
    cycle.plan = words.next()?.to_owned();
    Some(())
}

fn parse_closed_counter(text: &str) -> Option<ClosedCounter> {
    let mut words = text.split(' ');
    Some(ClosedCounter {
        granted: Granted::parse(&mut words)?,
        charged: thousandths(words.next()?)?,
        expired: thousandths(words.next()?)?,
        moved: thousandths(words.next()?)?,
        spare: thousandths(words.next()?)?,
        denied: words.next()?.parse().ok()?,
    })
}

fn thousandths(text: &str) -> Option<Credits> {
    text.parse().ok().map(Credits::from_thousandths)
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

/// The cycles whose marks an account keeps.
pub fn parse_marks(text: &str) -> Result<BTreeMap<i32, Layout>, StoreError> {
    let cycle = |(number, layout): (i64, Layout)| {
        let number = i32::try_from(number).map_err(|_| StoreError::Broken(format!("once `{text}`")))?;
        Ok((number, layout))
    };
    parse_days(text)?.into_iter().map(cycle).collect()
}

/// Reads an account's counters from its hash.
pub fn parse_counters(fields: &BTreeMap<String, String>) -> Result<BTreeMap<String, Counter>, StoreError> {
    let mut counters: BTreeMap<String, Counter> = BTreeMap::new();
    for (name, value) in fields {
        let Some((credit_type, part)) = name.split_once('.') else { continue };
        if matches!(part, POOL | DENIED | ALERTS) {
            continue;
        }
        let counter = counters.entry(credit_type.to_owned()).or_default();
        match part {
            GRANTED => {
                counter.granted =
                    parse_amount(value).ok_or_else(|| StoreError::Broken(format!("`{name}` is `{value}`")))?;
            }
            CHARGED => counter.charged = Credits::from_thousandths(number(value)?),
            EXPIRED => counter.expired = Credits::from_thousandths(number(value)?),
            _ => return Err(StoreError::Broken(format!("an account has a field `{name}`"))),
        }
    }
    Ok(counters)
}

/// The first commands that were applied to an account; the others are in a set of their own.
pub fn parse_ids(fields: &BTreeMap<String, String>) -> Result<Vec<i64>, StoreError> {
    fields.get("ids").map_or("", String::as_str).split_whitespace().map(number).collect()
}

/// The levels that credit types are below.
pub fn parse_alarms(fields: &BTreeMap<String, String>) -> Result<BTreeMap<String, Alarm>, StoreError> {
    let alarms = fields.iter().filter_map(|(name, value)| Some((of_type(name, ALERTS)?, value)));
    let alarm = |(credit_type, value): (&str, &String)| {
        let alarm = Alarm::parse(value).ok_or_else(|| StoreError::Broken(format!("alerts are `{value}`")))?;
        Ok((credit_type.to_owned(), alarm))
    };
    alarms.map(alarm).collect()
}

/// Events that were denied in the open cycle, by credit type.
pub fn parse_denied(fields: &BTreeMap<String, String>) -> Result<BTreeMap<String, u64>, StoreError> {
    let denied = fields.iter().filter_map(|(name, value)| Some((of_type(name, DENIED)?, value)));
    denied.map(|(credit_type, value)| Ok((credit_type.to_owned(), number(value)?))).collect()
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
