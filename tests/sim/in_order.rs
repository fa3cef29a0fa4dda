//! A rebuild comes to what the log's own order gives, one record after the other, whatever happens meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use credit_meter::ledger::call::Partition;
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
use super::{NOW_MS, STEPS};

const SEEDS: u64 = 200;
const ACCOUNTS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const USAGE_PARTITIONS: i32 = 3;
/// Long enough that they last over two renewals.
const BETWEEN_RECORDS_MS: i64 = 10 * 3_600_000;

#[test]
fn a_rebuild_comes_to_what_the_order_of_the_log_gives() {
    let mut denied = 0;
    let mut renewed = 0;
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let history = history(&mut rng);
        let expected = one_after_the_other(seed, &history);

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
fn one_after_the_other(seed: u64, history: &[Record]) -> BTreeMap<Arc<str>, String> {
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
    accounts(&world)
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
        let plan = if account == "f" { "capped" } else { "tiny" };
        append(&mut history, Partition::COMMANDS, &|at_ms, offset| command(account, at_ms, offset, put(plan, None)));
    }
    for _ in 0..rng.random_range(60..140) {
        let account = *ACCOUNTS.choose(rng).expect("there are some");
        let draw = rng.random_range(0..100);
        if draw < 80 {
            let partition = Partition::usage(rng.random_range(0..USAGE_PARTITIONS));
            let user = ["ada", "bob"][rng.random_range(0..2)];
            append(&mut history, partition, &|at_ms, _| usage(account, user, at_ms));
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

fn usage(account: &str, user: &str, at_ms: i64) -> Body {
    let id = at_ms.to_string();
    Body::Usage(Arc::new(UsageEvent {
        account: account.into(),
        source: "s".into(),
        identity: Identity::of("s", &id),
        fields: Box::default(),
        once: None,
        voids: None,
        time_ms: at_ms,
        dated_ms: at_ms,
        action: "reveal_email".into(),
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
