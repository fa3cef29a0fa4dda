//! Alerts do not depend on how usage is cut into calls: over random histories of usage, voids, top-ups,
//! corrections and renewals, calls of one event tell the same edges as calls of many.

use std::collections::BTreeMap;
use std::sync::Arc;

use credit_meter::ledger::call::{Output, Partition, Range, Reply, StaleAccount, Stamp};
use credit_meter::ledger::catalogue::Catalogue;
use credit_meter::ledger::command::{ACCOUNT_PUT, ADJUST, Command, CommandBody, GRANT, GRANT_VOID, GrantBody};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::{Identity, UsageEvent};
use credit_meter::ledger::grants::GrantKind;
use credit_meter::ledger::shard::{InitCall, Shard};
use credit_meter::outbox::cloud_event;
use credit_meter::pipeline::batch::{Accounts, Batch, Call, DeadNotes, Known};
use credit_meter::pipeline::record::{Body, Record};
use credit_meter::pipeline::recorded::Recorded;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::log::account_config;
use super::schema::keeps_its_schema;

const SEEDS: u64 = 400;
const STEPS: i64 = 60;
/// 1 March 2026, where a cycle begins.
const START_MS: i64 = 1_772_323_200_000;
const HOUR_MS: i64 = 3_600_000;

const CATALOGUE: &str = r#"
version = 1
[credit_types.email]
[credit_types.phone]
[actions.reveal_email]
prices = [{ credit_type = "email", credits = 1 }]
voidable = true
[actions.reveal_phone]
prices = [{ credit_type = "phone", credits = 1.5 }]
voidable = true
[plans.reject]
interval = "monthly"
allowance = { email = 20, phone = 9 }
actions = ["reveal_email", "reveal_phone"]
thresholds = ["50%", "80%", "remaining 3", "remaining 0"]
[plans.cap]
interval = "monthly"
allowance = { email = 25, phone = 3 }
carry_over_max = { email = 10 }
actions = ["reveal_email", "reveal_phone"]
overage = "cap"
thresholds = ["0%", "100%"]
[plans.allow]
interval = "monthly"
allowance = { email = 10, phone = "unlimited" }
actions = ["reveal_email", "reveal_phone"]
overage = { allow = { limit = 8 } }
thresholds = ["75%"]
"#;

#[test]
fn the_same_edges_are_told_however_usage_is_cut_into_calls() {
    let catalogue = Catalogue::parse(CATALOGUE).expect("it is good");
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let history = history(&mut rng);
        let one_by_one = edges(&catalogue, &history, || 1);
        for _ in 0..2 {
            let most = *[3, 10, 100].choose(&mut rng).expect("not empty");
            let cut = edges(&catalogue, &history, || rng.random_range(1..=most));
            assert_eq!(cut, one_by_one, "seed {seed}");
        }
        for (kind, _) in one_by_one.values().flatten() {
            *kinds.entry(kind.clone()).or_default() += 1;
        }
    }
    for kind in ["credits.low.v1", "credits.exhausted.v1", "credits.restored.v1"] {
        assert!(kinds.get(kind).is_some_and(|count| *count >= 200), "{kind} hardly occurs: {kinds:?}");
    }
}

/// What each account is told, in its order: types and ids.
type Edges = BTreeMap<String, Vec<(String, String)>>;

fn edges(catalogue: &Catalogue, history: &[Record], mut cut: impl FnMut() -> usize) -> Edges {
    let mut worker = Worker::new(catalogue);
    let mut waiting = Vec::new();
    let mut most = cut();
    for record in history {
        if record.partition == Partition::COMMANDS || waiting.len() == most {
            worker.send(std::mem::take(&mut waiting));
            most = cut();
        }
        waiting.push(record.clone());
        if record.partition == Partition::COMMANDS {
            worker.send(std::mem::take(&mut waiting));
        }
    }
    worker.send(waiting);
    worker.shard.outbox.iter().for_each(|entry| keeps_its_schema(cloud_event("meter", entry).as_bytes()));
    let mut edges = Edges::new();
    for entry in worker.shard.outbox.into_iter().filter(|entry| entry.output == Output::Alerts) {
        edges.entry(entry.account).or_default().push((entry.event_type, entry.id));
    }
    // Types are judged one after the other, so that messages of one call stand in another order than those of two.
    edges.values_mut().for_each(|edges| edges.sort());
    let twice = edges.values().any(|edges| edges.windows(2).any(|pair| pair[0].1 == pair[1].1));
    assert!(!twice, "an edge is told once: {edges:?}");
    edges
}

struct Worker<'a> {
    catalogue: &'a Catalogue,
    stamp: Arc<Stamp>,
    shard: Shard,
    accounts: Accounts,
}

impl Worker<'_> {
    fn new(catalogue: &Catalogue) -> Worker<'_> {
        let mut shard = Shard::default();
        shard.init(&InitCall {
            generation: "g".into(),
            shards: 1,
            catalogue: catalogue.id.clone(),
            catalogue_text: catalogue.text.clone(),
            grown: None,
            starts: Vec::new(),
            first_start: true,
        });
        let stamp = Stamp {
            generation: "g".into(),
            catalogue: catalogue.id.clone(),
            usage_topic: "u".into(),
            restamp_tolerance_ms: 600_000,
            outbox_max: usize::MAX,
            set_members_max: 512,
            journal_bytes_max: 8192,
            breakdown: false,
        };
        Worker { catalogue, stamp: Arc::new(stamp), shard, accounts: Accounts::default() }
    }

    /// Sends records of one partition as a worker does: a renewal first where one is due, and only as many records as
    /// come before the next one.
    fn send(&mut self, mut records: Vec<Record>) {
        while !records.is_empty() {
            let (batch, call) = self.price(&records);
            if let (Call::Roll(_), Some(cut)) = (&call, batch.cut_at(&self.accounts)) {
                let later = records.split_off(cut);
                self.send(records);
                records = later;
                continue;
            }
            let stale = match call {
                Call::Apply(call) => match self.shard.apply(&call) {
                    Reply::Applied(_) => return,
                    Reply::Stale(stale) => stale,
                    other => panic!("{other:?}"),
                },
                Call::Command(call) => match self.shard.command(&call) {
                    Reply::Applied(_) => return,
                    Reply::Stale(stale) => stale,
                    other => panic!("{other:?}"),
                },
                Call::Roll(call) => match self.shard.roll(&call) {
                    Reply::Stale(stale) => stale,
                    other => panic!("{other:?}"),
                },
            };
            for StaleAccount { account, view } in stale {
                match view {
                    Some(view) => drop(self.accounts.insert(account, view)),
                    None => drop(self.accounts.remove(&account)),
                }
            }
        }
    }

    fn price(&self, records: &[Record]) -> (Batch, Call) {
        let (first, last) = (&records[0], &records[records.len() - 1]);
        let range =
            Range { partition: first.partition, from: first.offset, to: last.offset + 1, repeats: 0, last: None };
        let batch = Batch { records: records.to_vec(), ranges: vec![range], commands_end: None };
        let call = batch.call(&Known {
            stamp: &self.stamp,
            catalogue: self.catalogue,
            accounts: &self.accounts,
            dead: &DeadNotes::new(),
            recorded: &Recorded::default(),
            commands_first: None,
            others: Vec::new(),
            late_after_ms: 0,
        });
        (batch, call)
    }
}

/// Accounts, their usage, and commands between it, over about a month and its end.
fn history(rng: &mut SmallRng) -> Vec<Record> {
    let accounts = ["a", "b", "c"];
    let mut records = Vec::new();
    let mut command = 0;
    for (account, plan) in accounts.iter().zip(["reject", "cap", "allow"]) {
        let put = CommandBody::Put(Box::new(account_config(plan, Default::default())));
        records.push(command_record(command, account, START_MS, ACCOUNT_PUT, put));
        command += 1;
    }
    let mut time_ms = START_MS;
    let mut usage = 0;
    let (mut grants, mut sent) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        time_ms += rng.random_range(0..25) * HOUR_MS;
        let account = *accounts.choose(rng).expect("not empty");
        let credits = Credits::from_thousandths(*[500, 2_000, 6_000].choose(rng).expect("not empty"));
        let (kind, body) = match rng.random_range(0..100) {
            0..80 => {
                for _ in 0..rng.random_range(1..6) {
                    let used = usage_record(usage, step, time_ms, account, rng);
                    usage += 1;
                    records.push(used.clone());
                    sent.push(used);
                    if rng.random_bool(0.2) {
                        let of = sent.choose(rng).expect("not empty");
                        records.push(void_record(usage, time_ms, of));
                        usage += 1;
                    }
                }
                continue;
            }
            80..90 => {
                grants.push((account, format!("c{command}")));
                let expires_ms = rng.random_bool(0.5).then(|| time_ms + rng.random_range(1..100) * HOUR_MS);
                let grant = GrantBody {
                    credit_type: (*["email", "phone"].choose(rng).expect("not empty")).into(),
                    amount: credits,
                    kind: GrantKind::Topup,
                    priority: 100,
                    effective_ms: None,
                    expires_ms,
                };
                (GRANT, CommandBody::Grant(Box::new(grant)))
            }
            90..93 if !grants.is_empty() => {
                let (account, grant) = grants.choose(rng).expect("not empty").clone();
                let void = CommandBody::GrantVoid { grant };
                records.push(command_record(command, account, time_ms, GRANT_VOID, void));
                command += 1;
                continue;
            }
            _ => {
                let (adds, reason) = (rng.random_bool(0.5), "\"test\"".into());
                (ADJUST, CommandBody::Adjust { credit_type: "email".into(), amount: credits, adds, reason })
            }
        };
        records.push(command_record(command, account, time_ms, kind, body));
        command += 1;
    }
    records
}

fn usage_record(offset: i64, step: i64, time_ms: i64, account: &str, rng: &mut SmallRng) -> Record {
    let id = format!("{step}-{offset}");
    let body = Body::Usage(Arc::new(UsageEvent {
        account: account.into(),
        source: "s".into(),
        identity: Identity::of("s", &id),
        id: id.into(),
        time_ms,
        dated_ms: time_ms,
        action: (*["reveal_email", "reveal_email", "reveal_phone"].choose(rng).expect("not empty")).into(),
        quantity: rng.random_range(1..5),
        outcome: None,
        user: None,
        fields: Box::default(),
        once: None,
        voids: None,
    }));
    Record { partition: Partition::usage(0), offset, append_ms: time_ms, bytes: 100, fingerprint: 0, body }
}

/// Takes usage back: that of a cycle before as well.
fn void_record(offset: i64, time_ms: i64, of: &Record) -> Record {
    let Body::Usage(event) = &of.body else { unreachable!("only usage is sent") };
    let (identity, voids) = (event.identity.of_its_void(), Some(event.identity));
    let body = Body::Usage(Arc::new(UsageEvent { identity, voids, quantity: 1, ..(**event).clone() }));
    Record { partition: Partition::usage(0), offset, append_ms: time_ms, bytes: 100, fingerprint: 0, body }
}

fn command_record(offset: i64, account: &str, time_ms: i64, command_type: &'static str, body: CommandBody) -> Record {
    let id = format!("c{offset}");
    let identity = Identity::of("cli", &id);
    let body = Body::Command(Box::new(Command {
        account: account.into(),
        id,
        identity,
        time_ms,
        command_type,
        body: Ok(body),
    }));
    Record { partition: Partition::COMMANDS, offset, append_ms: time_ms, bytes: 100, fingerprint: 0, body }
}
