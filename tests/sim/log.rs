//! The log: random events of few accounts, and what they are said to cost.

use std::collections::BTreeMap;
use std::sync::Arc;

use credit_meter::ledger::account::AccountConfig;
use credit_meter::ledger::call::Partition;
use credit_meter::ledger::catalogue::{Conditions, Field};
use credit_meter::ledger::command::{ACCOUNT_PUT, Command, CommandBody};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::{Identity, UsageEvent};
use credit_meter::ledger::members::MemberLimit;
use credit_meter::ledger::outcome::DeadReason;
use credit_meter::pipeline::record::{Body, Record};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::{NOW_MS, PRICES};

/// An account whose cycles begin with the month, with the plan's own of everything but its members' limits.
pub fn account_config(plan: &str, member_limits: Arc<[MemberLimit]>) -> AccountConfig {
    AccountConfig {
        plan: plan.into(),
        anchor: "2026-03-01".parse().expect("a date"),
        interval: None,
        timezone: chrono_tz::UTC,
        addons: Vec::new(),
        thresholds: None,
        overage: None,
        member_limits,
    }
}

pub fn make_log(rng: &mut SmallRng) -> BTreeMap<Partition, Vec<Record>> {
    let accounts = ["a", "b", "c", "d", "e", "f", "g", "h", "h"];
    let mut log = BTreeMap::new();
    let commands = accounts[..8].iter().enumerate().map(|(index, account)| {
        let (plan, limits) = match *account {
            "d" => ("tiny", Default::default()),
            "e" => ("capped", Default::default()),
            "g" => ("basic", member_limits()),
            "h" => ("basic", [MemberLimit { amount: Credits::whole(1_000), ..member_limits()[0].clone() }].into()),
            _ => ("basic", Default::default()),
        };
        let command = Command {
            account: (*account).into(),
            id: format!("put {account}"),
            identity: Identity::of("cli", account),
            time_ms: NOW_MS,
            command_type: ACCOUNT_PUT,
            body: Ok(CommandBody::Put(Box::new(account_config(plan, limits)))),
        };
        record(Partition::COMMANDS, 2 * index as i64, Body::Command(Box::new(command)))
    });
    let mut commands: Vec<Record> = commands.collect();
    commands.insert(2, record(Partition::COMMANDS, 3, Body::Dead { reason: DeadReason::InvalidJson, account: None }));
    log.insert(Partition::COMMANDS, commands);
    for index in 0..3 {
        let partition = Partition::usage(index);
        let mut offset = 0;
        let records = (0..rng.random_range(20..80)).map(|number| {
            offset += rng.random_range(1..3);
            let body = match rng.random_range(0..30) {
                0 => Body::Dead { reason: DeadReason::InvalidUtf8, account: None },
                1 => Body::Dead { reason: DeadReason::MissingField, account: Some("a".into()) },
                2 => event("stranger", number, rng),
                _ => event(accounts.choose(rng).expect("not empty"), number, rng),
            };
            Record { append_ms: NOW_MS + number * 1000, ..record(partition, offset, body) }
        });
        log.insert(partition, records.collect());
    }
    log
}

/// The `number`th of its partition.
pub fn event(account: &str, number: i64, rng: &mut SmallRng) -> Body {
    // Few ids, so that many events are repeats: in the same call, in other calls, in other partitions.
    // Attempts at one event have one date, which is not after any of them.
    let id = format!("{}", rng.random_range(0..60.min(number + 1)));
    let event = UsageEvent {
        account: account.into(),
        source: "s".into(),
        identity: Identity::of("s", &id),
        fields: [(Field::Source, format!("s{}", source(&id)).into())].into(),
        once: (account == "f").then(|| Identity::of("reveal_phone", &contact(&id).to_string())),
        voids: None,
        time_ms: NOW_MS + rng.random_range(-60_000..60_000),
        dated_ms: dated_ms(&id),
        action: match account {
            "f" => "reveal_phone".into(),
            "h" => "enrich".into(),
            _ => "reveal_email".into(),
        },
        quantity: 1,
        outcome: None,
        user: Some(user(&id).into()),
        id: id.into(),
    };
    // Many are taken back, wherever: before them and after, and more than once.
    let void = account == "h" && rng.random_bool(0.4);
    Body::Usage(Arc::new(if void { void_of(event) } else { event }))
}

fn void_of(event: UsageEvent) -> UsageEvent {
    let (identity, voids) = (event.identity.of_its_void(), Some(event.identity));
    UsageEvent { identity, voids, user: None, ..event }
}

pub fn dated_ms(id: &str) -> i64 {
    NOW_MS + id.parse::<i64>().expect("a number") * 1000
}

/// For whom the events of account f are.
pub fn contact(id: &str) -> usize {
    id.parse::<usize>().expect("a number") % 7
}

/// Who did an event.
pub fn user(id: &str) -> &'static str {
    ["ada", "bob", "eve"][id.parse::<usize>().expect("a number") % 3]
}

/// Of account g, which else has enough.
fn member_limits() -> Arc<[MemberLimit]> {
    let limit = |user: Option<&str>, credits: i64| MemberLimit {
        credit_type: "email".into(),
        user: user.map(Into::into),
        amount: Credits::whole(credits),
    };
    [limit(None, 5), limit(Some("eve"), 11)].into()
}

/// Which of the prices that are added counts for an event.
pub fn source(id: &str) -> usize {
    1 + id.parse::<usize>().expect("a number") % PRICES
}

/// A record as a reader has it that keeps only what prices depend on.
pub fn as_read(record: &Record, conditions: &Conditions) -> Record {
    let Body::Usage(event) = &record.body else { return record.clone() };
    let of = |name| event.fields.iter().find(|(own, _)| *own == name).map(|(_, value)| (&**value).into());
    let event = UsageEvent { fields: conditions.of_event(of), ..(**event).clone() };
    Record { body: Body::Usage(Arc::new(event)), ..record.clone() }
}

pub fn record(partition: Partition, offset: i64, body: Body) -> Record {
    Record { partition, offset, append_ms: NOW_MS, bytes: 100, fingerprint: offset as u64, body }
}
