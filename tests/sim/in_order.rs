//! A rebuild comes to what the log's own order gives, one record after the other, whatever happens meanwhile; and so does a
//! backtest, which renews accounts at the end of their cycles, as a meter's sweeper does: late use is late in all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use credit_meter::backtest::lines::Timed;
use credit_meter::backtest::statement::Statement;
use credit_meter::backtest::{Fold, Settings};
use credit_meter::ledger::call::Partition;
use credit_meter::ledger::catalogue::Catalogue;
use credit_meter::ledger::command::{ACCOUNT_PUT, ADJUST, Command, CommandBody, GRANT, GRANT_VOID, GrantBody};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::{Identity, UsageEvent};
use credit_meter::ledger::grants::GrantKind;
use credit_meter::ledger::members::MemberLimit;
use credit_meter::ledger::shard::Account;
use credit_meter::pipeline::Input;
use credit_meter::pipeline::record::{Body, Record};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::log::account_config;
use super::world::{Job, World};
use super::{CATALOGUE, NOW_MS, STEPS};

const SEEDS: u64 = 200;
const ACCOUNTS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const USAGE_PARTITIONS: i32 = 3;
/// Long enough that they last over two renewals.
const BETWEEN_RECORDS_MS: i64 = 10 * 3_600_000;
/// Late use is of the cycle before for some.
const LATE_MS: i64 = 60 * 3_600_000;

#[test]
fn a_rebuild_comes_to_what_the_order_of_the_log_gives() {
    let mut denied = 0;
    let mut renewed = 0;
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let history = history(&mut rng);
        let alone = one_after_the_other(seed, &history);
        let expected = accounts(&alone);
        same_statements(seed, &backtest(&history), &statements(&alone));

        let mut log = empty_log();
        for record in history {
            log.entry(record.partition).or_default().push(record);
        }
        let mut world = World::of_log(seed, rng, log, Job::Rebuild);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        let told = accounts(&world);
        for account in ACCOUNTS {
            assert_eq!(told.get(account), expected.get(account), "seed {seed}: account {account}");
        }
        assert_eq!(told.len(), ACCOUNTS.len(), "seed {seed}");
        denied += world.denied().len();
        renewed += expected.values().filter(|account| account.contains("number: 1")).count();
    }
    assert!(denied > 500 && renewed > 500, "denied: {denied}, renewed: {renewed}");
}

/// How the accounts are once each record was applied before the next one was appended.
fn one_after_the_other(seed: u64, history: &[Record]) -> World {
    let mut world = World::of_log(seed, SmallRng::seed_from_u64(seed), empty_log(), Job::Serve);
    world.faulty = false;
    for record in history {
        let Record { partition, offset, .. } = *record;
        world.log.entry(partition).or_default().push(record.clone());
        let epoch = world.workers[0].cursors[&partition].epoch;
        world.on(0, Input::Records { partition, epoch, records: vec![record.clone()] });
        world.on(0, Input::ReadTo { partition, epoch, offset: offset + 2 });
        let behind = |world: &World| world.shards.iter().any(|shard| shard.position(partition) < offset + 2);
        while behind(&world) {
            world.now_ms += 10;
            world.on(0, Input::Tick);
            world.arrive();
            world.finish_side_work(0);
        }
    }
    world
}

/// The same history as a file has it: usage and commands by their lines.
fn backtest(history: &[Record]) -> Vec<Statement> {
    let catalogue = Catalogue::parse(CATALOGUE).expect("it is good");
    let settings = Settings { late_after_ms: 259_200_000, restamp_tolerance_ms: 600_000, until_ms: None };
    let mut fold = Fold::new(catalogue, settings);
    for (line, record) in (1..).zip(history) {
        let partition = if record.partition == Partition::COMMANDS { record.partition } else { Partition::usage(0) };
        let record = Record { partition, offset: line, ..record.clone() };
        fold.record(Timed { time_ms: Some(record.append_ms), record, detail: None });
    }
    fold.finish().0
}

fn statements(world: &World) -> Vec<Statement> {
    let accounts = world.shards.iter().flat_map(|shard| &shard.accounts);
    let of_account = accounts.flat_map(|(name, account)| {
        let closed = account.closed.iter().map(|(number, closed)| Statement::closed(name, *number, closed));
        closed.chain(Statement::open(name, account)).collect::<Vec<_>>()
    });
    of_account.collect()
}

/// A cycle that ended after its account's last record is open where nobody renews idle accounts.
fn same_statements(seed: u64, backtest: &[Statement], alone: &[Statement]) {
    for expected in alone {
        let same = |found: &&Statement| (&found.account, found.cycle) == (&expected.account, expected.cycle);
        let found = backtest.iter().find(same).unwrap_or_else(|| panic!("seed {seed}: no {expected:?}"));
        assert!(found == expected || expected.open && !found.open, "seed {seed}: {found:?}, not {expected:?}");
    }
}

/// What no cutting of calls may change.
fn accounts(world: &World) -> BTreeMap<Arc<str>, String> {
    let told = |account: &Account| {
        let Account { config, next, life, cycle, counters, pools, lots, alarms, denied, closed, .. } = account;
        format!(
            "{cycle:?} {counters:?} {denied:?} {pools:?} {lots:?} {alarms:?} {closed:?} {life:?} {config:?} {next:?}"
        )
    };
    let accounts = world.shards.iter().flat_map(|shard| &shard.accounts);
    accounts.map(|(name, account)| (name.clone(), told(account))).collect()
}

fn empty_log() -> BTreeMap<Partition, Vec<Record>> {
    (0..USAGE_PARTITIONS).map(Partition::usage).chain([Partition::COMMANDS]).map(|each| (each, Vec::new())).collect()
}

/// Accounts, and then usage of three partitions among commands that give and take, in the order in which they were appended.
fn history(rng: &mut SmallRng) -> Vec<Record> {
    let mut history = Vec::new();
    let mut next: BTreeMap<Partition, i64> = BTreeMap::new();
    let mut append = |history: &mut Vec<Record>, partition: Partition, body: &dyn Fn(i64, i64) -> Body| {
        let offset = next.entry(partition).or_default();
        let append_ms = NOW_MS + history.len() as i64 * BETWEEN_RECORDS_MS;
        let body = body(append_ms, *offset);
        history.push(Record { partition, offset: *offset, append_ms, bytes: 100, fingerprint: *offset as u64, body });
        *offset += 2;
    };
    for account in ACCOUNTS {
        let plan = match account {
            "e" => "rolling",
            "f" => "capped",
            _ => "tiny",
        };
        append(&mut history, Partition::COMMANDS, &|at_ms, offset| command(account, at_ms, offset, put(plan, None)));
    }
    let mut voids: Vec<(&str, &str, i64)> = Vec::new();
    for _ in 0..rng.random_range(60..140) {
        let account = *ACCOUNTS.choose(rng).expect("there are some");
        let draw = rng.random_range(0..100);
        if draw < 80 {
            let partition = Partition::usage(rng.random_range(0..USAGE_PARTITIONS));
            let user = ["ada", "bob"][rng.random_range(0..2)];
            let action = if rng.random_bool(0.3) { "enrich" } else { "reveal_email" };
            // One in four comes late.
            let late_ms = if rng.random_bool(0.75) { 0 } else { rng.random_range(0..LATE_MS) };
            append(&mut history, partition, &|at_ms, _| usage(account, user, action, at_ms, at_ms - late_ms));
            if action == "enrich" && rng.random_bool(0.4) {
                voids.push((account, user, NOW_MS + (history.len() as i64 - 1) * BETWEEN_RECORDS_MS - late_ms));
            }
            continue;
        }
        // None that would be too late: in this world no time passes.
        let at_ms = NOW_MS + history.len() as i64 * BETWEEN_RECORDS_MS;
        voids.retain(|(.., voided_ms)| at_ms - voided_ms <= LATE_MS);
        if draw < 86 && !voids.is_empty() {
            let (account, user, voided_ms) = voids.swap_remove(rng.random_range(0..voids.len()));
            let partition = Partition::usage(rng.random_range(0..USAGE_PARTITIONS));
            append(&mut history, partition, &|at_ms, _| {
                let Body::Usage(event) = usage(account, user, "enrich", voided_ms, voided_ms) else { unreachable!() };
                let (identity, voids) = (event.identity.of_its_void(), Some(event.identity));
                Body::Usage(Arc::new(UsageEvent {
                    identity,
                    voids,
                    dated_ms: voided_ms.min(at_ms),
                    ..(*event).clone()
                }))
            });
            continue;
        }
        let amount = rng.random_range(2..8);
        append(&mut history, Partition::COMMANDS, &|at_ms, offset| {
            let body = match draw {
                80..86 => adjust(amount, false),
                86..89 => adjust(amount, true),
                89..92 => put("basic", None),
                92..94 => put("tiny", None),
                94..96 => put("tiny", Some(amount)),
                96..98 => grant(amount),
                _ => (GRANT_VOID, CommandBody::GrantVoid { grant: "g2".into() }),
            };
            command(account, at_ms, offset, body)
        });
    }
    history
}

fn usage(account: &str, user: &str, action: &str, at_ms: i64, time_ms: i64) -> Body {
    let id = time_ms.to_string();
    Body::Usage(Arc::new(UsageEvent {
        account: account.into(),
        source: "s".into(),
        identity: Identity::of("s", &id),
        fields: Box::default(),
        once: None,
        voids: None,
        time_ms,
        dated_ms: time_ms.min(at_ms),
        action: action.into(),
        quantity: 1,
        outcome: None,
        user: Some(user.into()),
        id: id.into(),
    }))
}

fn command(account: &str, at_ms: i64, offset: i64, (command_type, body): (&'static str, CommandBody)) -> Body {
    // Grants are g0 or g2, by their place: one that is voided may exist.
    let id = if command_type == GRANT { format!("g{}", offset % 4) } else { format!("{command_type} {offset}") };
    Body::Command(Box::new(Command {
        account: account.into(),
        identity: Identity::of("cli", &format!("{account} {id}")),
        id,
        time_ms: at_ms,
        command_type,
        body: Ok(body),
    }))
}

fn put(plan: &str, member_limit: Option<i64>) -> (&'static str, CommandBody) {
    let limit = |amount| MemberLimit { credit_type: "email".into(), user: None, amount: Credits::whole(amount) };
    let config = account_config(plan, member_limit.map(limit).into_iter().collect());
    (ACCOUNT_PUT, CommandBody::Put(Box::new(config)))
}

fn adjust(amount: i64, adds: bool) -> (&'static str, CommandBody) {
    let (credit_type, amount) = ("email".to_owned(), Credits::whole(amount));
    (ADJUST, CommandBody::Adjust { credit_type, amount, adds, reason: "a reason".into() })
}

fn grant(amount: i64) -> (&'static str, CommandBody) {
    let grant = GrantBody {
        credit_type: "email".into(),
        amount: Credits::whole(amount),
        kind: GrantKind::Topup,
        priority: 10,
        effective_ms: None,
        expires_ms: None,
    };
    (GRANT, CommandBody::Grant(Box::new(grant)))
}
