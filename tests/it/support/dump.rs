//! Reads a whole shard back from Redis into the ledger's own type, to compare.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use credit_meter::ledger::account::Counter;
use credit_meter::ledger::call::{Anchor, OutboxEntry, Output, Partition};
use credit_meter::ledger::catalogue::CatalogueId;
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::day::{DaySets, SetIndex};
use credit_meter::ledger::grants::Pool;
use credit_meter::ledger::outcome::Outcome;
use credit_meter::ledger::shard::{Account, Fence, Shard};
use credit_meter::ledger::usage::day_of_number;
use credit_meter::ledger::void::Kept;
use credit_meter::outbox::cloud_event;
use credit_meter::store::stored::{parse_alarms, parse_counters, parse_denied, parse_ids, parse_note, parse_view};
use credit_meter::store::usage::parse_usage;
use redis::aio::MultiplexedConnection;

use super::schema::keeps_its_schema;

pub async fn keys(connection: &mut MultiplexedConnection, prefix: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut cursor = 0u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{prefix}:*")).arg("COUNT").arg(1000);
        let (next, found): (u64, Vec<String>) = scan.query_async(connection).await.expect("redis answers");
        keys.extend(found);
        cursor = next;
        if cursor == 0 {
            return keys;
        }
    }
}

/// The single shard under a prefix.
pub async fn shard(connection: &mut MultiplexedConnection, prefix: &str) -> Shard {
    let mut shard = Shard::default();
    let (mut days, mut marks) = (Vec::new(), Vec::new());
    let mut catalogue_text = String::new();
    for key in keys(connection, prefix).await {
        let name = key.split_once('}').map_or("", |(_, name)| name).trim_start_matches(':').to_owned();
        let mut parts = name.splitn(2, ':');
        match (parts.next().unwrap_or(""), parts.next()) {
            ("shard", None) => shard.fence = Some(fence(&hash(connection, &key).await)),
            ("notes", None) => {
                for (field, reason) in hash(connection, &key).await {
                    let note = parse_note(&field, &reason).expect("a note");
                    shard.notes.insert((note.partition, note.offset), note.reason);
                }
            }
            ("outbox", None) => shard.outbox = outbox(connection, &key).await,
            ("catalogue", None) => {
                catalogue_text = redis::cmd("GET").arg(&key).query_async(connection).await.expect("redis answers")
            }
            ("due" | "relay", None) => {}
            ("a", Some(account)) => {
                let fields = hash(connection, &key).await;
                let ids = parse_ids(&fields).expect("ids");
                shard.commands_seen.entry(account.into()).or_default().extend(ids);
                shard.accounts.insert(account.into(), parse_account(&fields));
            }
            ("d", Some(rest)) => {
                let (account, day, set) = set_of(rest);
                days.push(((account, day), set, members(connection, &key).await));
            }
            ("o", Some(rest)) => {
                let (account, cycle, set) = set_of(rest);
                marks.push(((account, cycle as i32), set, members(connection, &key).await));
            }
            ("v", Some(rest)) => {
                let (day, account) = rest.split_once(':').expect("a day and an account");
                let kept = hash(connection, &key).await.into_iter().map(|(member, text)| {
                    (member.parse().expect("a number"), Kept::parse(&text).expect("what is kept of an event"))
                });
                shard.charges.insert((account.into(), day.parse().expect("a day")), kept.collect());
            }
            (part @ ("u" | "j"), Some(rest)) => {
                let (day, account) = rest.split_once(':').expect("a day and an account");
                let day = day_of_number(day.parse().expect("a number")).expect("a day");
                let named = |kind: &str| key.replacen(&format!(":{part}:"), &format!(":{kind}:"), 1);
                let fields =
                    redis::cmd("HGETALL").arg(named("u")).query_async(connection).await.expect("redis answers");
                let journal: Vec<u8> =
                    redis::cmd("GET").arg(named("j")).query_async(connection).await.expect("redis answers");
                shard.usage.insert((account.into(), day), parse_usage(fields, &journal).expect("usage"));
            }
            ("m", Some(rest)) => {
                let (cycle, account) = rest.split_once(':').expect("a cycle and an account");
                let count = |(field, thousandths): (String, String)| {
                    let (credit_type, user) = field.split_once(':').expect("a type and a member");
                    let thousandths = thousandths.parse().expect("a number");
                    ((credit_type.to_owned(), user.into()), Credits::from_thousandths(thousandths))
                };
                let counts = hash(connection, &key).await.into_iter().map(count).collect();
                shard.members.insert((account.into(), cycle.parse().expect("a number")), counts);
            }
            ("c", Some(account)) => {
                let members = members(connection, &key).await;
                shard.commands_seen.entry(account.into()).or_default().extend(members);
            }
            other => panic!("an unknown key {key}: {other:?}"),
        }
    }
    if let Some(fence) = &mut shard.fence {
        fence.catalogue_text = catalogue_text.into();
    }
    for (name, account) in &shard.accounts {
        for (day, layout) in &account.days {
            shard.seen.insert((name.clone(), *day), DaySets::new(layout.clone()));
        }
        for (cycle, layout) in &account.marks {
            shard.marks.insert((name.clone(), *cycle), DaySets::new(layout.clone()));
        }
    }
    for (cycle, index, members) in marks {
        shard.marks.get_mut(&cycle).expect("an account knows its marks").sets.insert(index, members);
    }
    for (day, index, members) in days {
        shard.seen.get_mut(&day).expect("an account knows its days").sets.insert(index, members);
    }
    shard
}

/// The account, the day or cycle, and the set, that a key names.
fn set_of(rest: &str) -> (Arc<str>, i64, SetIndex) {
    let (of, account) = rest.split_once(':').expect("a day or cycle, and an account");
    let mut parts = of.split('.').map(|part| part.parse::<i64>().expect("a number"));
    let of = parts.next().expect("a day or cycle");
    let (generation, set) = (parts.next().unwrap_or(0) as u32, parts.next().unwrap_or(0) as u32);
    (account.into(), of, SetIndex { generation, set })
}

/// What equal states may show differently: a counter of nothing, an empty set.
pub fn normal(mut shard: Shard) -> Shard {
    for account in shard.accounts.values_mut() {
        account.counters.retain(|_, counter| *counter != Counter::default());
        account.pools.retain(|_, pool| *pool != Pool::default());
    }
    shard.commands_seen.retain(|_, set| !set.is_empty());
    shard.outbox_taken = 0;
    shard
}

async fn hash(connection: &mut MultiplexedConnection, key: &str) -> BTreeMap<String, String> {
    redis::cmd("HGETALL").arg(key).query_async(connection).await.expect("redis answers")
}

async fn members(connection: &mut MultiplexedConnection, key: &str) -> BTreeSet<i64> {
    redis::cmd("SMEMBERS").arg(key).query_async(connection).await.expect("redis answers")
}

async fn outbox(connection: &mut MultiplexedConnection, key: &str) -> Vec<OutboxEntry> {
    let mut range = redis::cmd("XRANGE");
    range.arg(key).arg("-").arg("+");
    let entries: Vec<(String, HashMap<String, String>)> = range.query_async(connection).await.expect("redis answers");
    let entry = |mut fields: HashMap<String, String>| {
        let mut take = |name: &str| fields.remove(name).expect("an outbox entry has all fields");
        let entry = OutboxEntry {
            output: Output::from_name(&take("output")).expect("an output"),
            id: take("id"),
            event_type: take("type"),
            account: take("account"),
            data: take("data"),
        };
        keeps_its_schema(cloud_event("meter", &entry).as_bytes());
        entry
    };
    entries.into_iter().map(|(_, fields)| entry(fields)).collect()
}

fn fence(fields: &BTreeMap<String, String>) -> Fence {
    let owned = |name: &str| fields[name].clone();
    let number = |name: &str| fields[name].parse::<i64>().expect("a number");
    let mut positions = BTreeMap::new();
    let mut anchors = BTreeMap::new();
    let mut reached = BTreeMap::new();
    let mut totals = BTreeMap::new();
    for (field, text) in fields {
        let value: i64 = text.parse().unwrap_or(0);
        if let Some(partition) = field.strip_prefix("position:") {
            positions.insert(Partition::parse(partition).expect("a partition"), value);
        } else if let Some(partition) = field.strip_prefix("anchor:") {
            let anchor = Anchor::parse(text).expect("an anchor");
            anchors.insert(Partition::parse(partition).expect("a partition"), anchor);
        } else if let Some(partition) = field.strip_prefix("reached:") {
            reached.insert(Partition::parse(partition).expect("a partition"), value);
        } else if let Some(total) = field.strip_prefix("total:") {
            let (partition, outcome) = total.rsplit_once(':').expect("an outcome");
            let partition = Partition::parse(partition).expect("a partition");
            totals.insert((partition, Outcome::from_name(outcome).expect("an outcome")), value as u64);
        }
    }
    Fence {
        schema: number("schema") as u32,
        generation: owned("generation"),
        shards: number("shards") as u32,
        catalogue: CatalogueId { version: number("catalogue_version") as u32, hash: owned("catalogue_hash") },
        catalogue_text: "".into(),
        meter_time_ms: number("meter_time_ms"),
        floor_ms: number("floor_ms"),
        restamp_tolerance_ms: number("restamp_tolerance_ms"),
        usage_from: fields.get("usage_from").map(|text| day_of_number(text.parse().expect("a number")).expect("a day")),
        rebuilt_s: fields.get("rebuilt").map_or(0, |text| text.parse().expect("a number")),
        positions,
        anchors,
        reached,
        totals,
    }
}

fn parse_account(fields: &BTreeMap<String, String>) -> Account {
    let view = parse_view(fields).expect("an account");
    Account {
        version: view.version,
        config: view.config,
        next: view.next,
        life: view.life,
        since_ms: view.since_ms,
        cycle: view.cycle,
        counters: parse_counters(fields).expect("counters"),
        pools: view.pools,
        lots: view.lots,
        alarms: parse_alarms(fields).expect("alarms"),
        denied: parse_denied(fields).expect("denied"),
        closed: view.closed,
        days: view.days,
        marks: view.marks,
    }
}

/// The account names in a due set.
pub async fn due(connection: &mut MultiplexedConnection, key: &str) -> BTreeMap<Arc<str>, i64> {
    let mut range = redis::cmd("ZRANGE");
    range.arg(key).arg(0).arg(-1).arg("WITHSCORES");
    let entries: Vec<(String, f64)> = range.query_async(connection).await.expect("redis answers");
    entries.into_iter().map(|(account, at_ms)| (account.into(), at_ms as i64)).collect()
}
