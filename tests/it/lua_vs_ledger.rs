//! The project's conscience: the scripts in a real Redis and the ledger give the same answers and end in the
//! same state, over random histories of commands, batches, duplicates, restamped retries, resends, overlaps,
//! gaps, stale versions, dead notes and full outboxes, over renewals, lots that begin and end, late use, restatements, voids,
//! limits of members and other settings. `large.rs` has calls as large as they come, `poison.rs` keys of another type.

/// What has occurred, of what must not be rare.
#[path = "lua_vs_ledger/counts.rs"]
mod counts;
/// Calls as large as they come.
#[path = "lua_vs_ledger/large.rs"]
mod large;
/// What top-ups gave, and voids of it.
#[path = "lua_vs_ledger/lots.rs"]
mod lots;
/// Events and commands of a history.
#[path = "lua_vs_ledger/made_up.rs"]
mod made_up;
/// Calls that are neither usage nor commands.
#[path = "lua_vs_ledger/other_calls.rs"]
mod other_calls;
/// Keys of another type.
#[path = "lua_vs_ledger/poison.rs"]
mod poison;

use std::collections::BTreeMap;
use std::sync::Arc;

use credit_meter::ledger::account::AccountView;
use credit_meter::ledger::call::{Anchor, LastRead, Partition, Range, RefusalReason, Reply, StaleAccount, Stamp};
use credit_meter::ledger::catalogue::{Amount, Catalogue};
use credit_meter::ledger::command::{Command, refuse};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::{DAY_MS, Judge, UsageEvent};
use credit_meter::ledger::outcome::{DeadReason, Denial, Verdict};
use credit_meter::ledger::shard::{InitCall, InitReply, Shard};
use credit_meter::ledger::steps::Step;
use credit_meter::pipeline::batch::{Accounts, Batch, Call, DeadNotes, Known};
use credit_meter::pipeline::record::{Body, Record};
use credit_meter::pipeline::recorded::{Decision, Published, Recorded};
use credit_meter::store::RedisStore;
use credit_meter::store::keys::{Key, Keys};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use redis::aio::MultiplexedConnection;

use self::counts::Held;
use crate::support::redis::{OwnRedis, Server, connection, quiet, store};
use crate::support::{dump, own_prefix};

const HISTORIES: u64 = 1_500;
const HISTORIES_ON_VALKEY: u64 = 300;
const STEPS: usize = 16;
/// 10 March 2026: the midnight around which events lie.
const MIDNIGHT_MS: i64 = 1_773_100_800_000;
const MINUTE_MS: i64 = 60_000;
const LATE_AFTER_MS: i64 = 7 * MINUTE_MS;

const CATALOGUE: &str = r#"
version = 3
[credit_types.email]
[credit_types.phone]
[actions.reveal_email]
prices = [{ credit_type = "email", credits = 1 }]
voidable = true
[actions.reveal_phone]
prices = [{ credit_type = "phone", credits = 1.5 }]
free_outcomes = ["not_found"]
charge_once = { by = "contact" }
voidable = true
[actions.enrich]
prices = [{ credit_type = "email", credits = 0.5 }]
charge_once = { by = "company" }
[actions.verify]
prices = [{ credit_type = "email", credits = 0 }]
[actions.export]
prices = [{ credit_type = "email", credits = 0.25 }]
[plans.small]
interval = "monthly"
allowance = { email = 12, phone = 4.5 }
carry_over_max = { email = 2.5 }
actions = ["reveal_email", "enrich", "reveal_phone"]
thresholds = ["80%", "remaining 4", "33%"]
[plans.capped]
interval = "monthly"
allowance = { email = 7.25, phone = 3 }
thresholds = ["remaining 0", "50%"]
actions = ["reveal_email", "enrich", "reveal_phone", "verify", "export"]
overage = "cap"
[plans.allowed]
interval = "monthly"
thresholds = ["100%", "0%"]
allowance = { email = 5 }
actions = ["reveal_email", "enrich", "reveal_phone", "verify"]
overage = { allow = { limit = 6 } }
[plans.large]
interval = "monthly"
allowance = { email = 30, phone = 9 }
carry_over_max = { email = 100, phone = 1 }
actions = ["reveal_email", "enrich", "reveal_phone", "export"]
[plans.yearly]
interval = "annual"
allowance = { email = 300, phone = 90 }
actions = ["reveal_email", "enrich", "reveal_phone", "verify"]
[plans.unlimited]
interval = "monthly"
allowance = { email = "unlimited", phone = 10 }
actions = ["reveal_email", "enrich", "reveal_phone"]
overage = "allow"
"#;

/// Another server runs the scripts with a Lua of its own, and has other commands and encodings.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_and_ledger_agree_on_valkey() {
    let valkey = OwnRedis::start_on(Server::Valkey, None, &["--appendonly", "no"]);
    assert_eq!(valkey.info("server_name").await, "valkey");
    let seen = agree(&valkey.url(), HISTORIES..HISTORIES + HISTORIES_ON_VALKEY).await;
    assert!(seen.len() > 60, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_and_ledger_agree_on_random_histories() {
    let seen = agree(&quiet(), 0..HISTORIES).await;
    // A history that never meets a refusal would prove nothing about it.
    for kind in [
        "applied",
        "done_before",
        "other_position",
        "fell_back",
        "other_catalogue",
        "other_generation",
        "stale",
        "question",
        "unknown",
        "dead",
        "outbox_full",
        "duplicate",
        "charged",
        "capped",
        "free",
        "denied",
        "command",
        "refused_command",
        "taken",
        "grown",
        "grown_ahead",
        "marks_grown",
        "marks_grown_ahead",
        "marks_forgotten",
        "free_once",
        "free_once_late",
        "free_once_in_call",
        "voided",
        "void_came_first",
        "void_came_late",
        "void_too_late",
        "refund",
        "void_unmarks",
        "void_frees_a_member",
        "void_leaves_usage",
        "void_refunds",
        "void_refunds_a_closed_cycle",
        "void_refunds_a_lot",
        "void_refunds_a_lot_late",
        "unentitled_beside_others",
        "member_limit",
        "member_limit_late",
        "member_limit_stands",
        "member_below_limit",
        "members_forgotten",
        "time_held",
        "time_moved",
        "time_other_generation",
        "forgotten",
        "usage_folded",
        "usage_forgotten",
        "usage_kept",
        "rolled",
        "renewed",
        "lots_passed",
        "account_closed",
        "restated",
        "cycle_forgotten",
        "late",
        "low",
        "exhausted",
        "restored",
        "installed",
        "ready",
        "init_other_catalogue",
        "older_catalogue",
        "priced_up_to",
    ] {
        assert!(seen.get(kind).is_some_and(|count| *count >= 20), "{kind} hardly occurs: {seen:?}");
    }
}

/// Runs histories of these seeds on a server, and counts what has occurred.
async fn agree(url: &str, seeds: std::ops::Range<u64>) -> BTreeMap<&'static str, u64> {
    let mut connection = connection(url).await;
    let catalogue = Catalogue::parse(CATALOGUE).expect("it is good");
    let mut seen = BTreeMap::new();
    for seed in seeds {
        let prefix = own_prefix("lua");
        let store = store(url, &prefix, 1);
        let mut history = History::new(seed, &catalogue, &prefix, store).await;
        history.accounts_first().await;
        for _ in 0..STEPS {
            history.step(&mut connection).await;
            history.check_books();
        }
        history.end(&mut connection).await;
        let stored = dump::normal(dump::shard(&mut connection, &prefix).await);
        assert_eq!(stored, dump::normal(history.shard.clone()), "seed {seed}: the states differ");
        history.check_due(&mut connection).await;
        for (kind, count) in history.replies {
            *seen.entry(kind).or_insert(0) += count;
        }
        let keys = dump::keys(&mut connection, &prefix).await;
        let _: () = redis::cmd("DEL").arg(keys).query_async(&mut connection).await.expect("redis answers");
    }
    seen
}

struct History<'a> {
    rng: SmallRng,
    seed: u64,
    catalogue: &'a Catalogue,
    store: RedisStore,
    keys: Keys,
    shard: Shard,
    stamp: Arc<Stamp>,
    accounts: Accounts,
    dead: DeadNotes,
    positions: BTreeMap<Partition, i64>,
    sent: Vec<Arc<UsageEvent>>,
    of_top_ups: Vec<Arc<UsageEvent>>,
    commands: Vec<Command>,
    last: Option<Call>,
    published: Vec<String>,
    replies: BTreeMap<&'static str, u64>,
    /// Each call is tried first with each key of another type.
    poisons: Option<(MultiplexedConnection, String)>,
    /// How often a script refused a kind of key.
    refused_poison: BTreeMap<(&'static str, String), u64>,
}

impl<'a> History<'a> {
    async fn new(seed: u64, catalogue: &'a Catalogue, prefix: &str, store: RedisStore) -> History<'a> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let stamp = Stamp {
            generation: "g1".into(),
            catalogue: catalogue.id.clone(),
            usage_topic: "credits.\"usage\"".into(),
            restamp_tolerance_ms: 10 * MINUTE_MS,
            breakdown: rng.random_bool(0.8),
            set_members_max: *[2, 4, 16, 512].choose(&mut rng).expect("not empty"),
            journal_bytes_max: *[0, 100, 300, 8192].choose(&mut rng).expect("not empty"),
            outbox_max: if rng.random_bool(0.2) { 3 } else { 1000 },
        };
        let mut positions = BTreeMap::from([(Partition::COMMANDS, 0), (Partition::usage(0), 0)]);
        positions.insert(Partition::usage(1), rng.random_range(0..50));
        let init = InitCall {
            generation: "g1".into(),
            shards: 1,
            catalogue: catalogue.id.clone(),
            catalogue_text: catalogue.text.clone(),
            grown: None,
            starts: positions.iter().map(|(partition, start)| (*partition, *start)).collect(),
            first_start: true,
        };
        let mut shard = Shard::default();
        let refused = InitCall { first_start: false, ..init.clone() };
        assert_eq!(store.init(0, &refused).await.expect("redis answers"), InitReply::Emptied);
        for call in [&refused, &init, &init] {
            assert_eq!(store.init(0, call).await.expect("redis answers"), shard.init(call), "seed {seed}");
        }
        History {
            rng,
            seed,
            catalogue,
            store,
            keys: Keys::new(prefix, 1),
            shard,
            stamp: Arc::new(stamp),
            accounts: Accounts::default(),
            dead: DeadNotes::new(),
            positions,
            sent: Vec::new(),
            of_top_ups: Vec::new(),
            commands: Vec::new(),
            last: None,
            published: Vec::new(),
            replies: BTreeMap::new(),
            poisons: None,
            refused_poison: BTreeMap::new(),
        }
    }

    /// Most histories begin with accounts that have something to use.
    async fn accounts_first(&mut self) {
        for account in ["a", "b", "c"] {
            if self.rng.random_bool(0.7) {
                let command = self.first_put(account);
                let record = self.command_record(self.positions[&Partition::COMMANDS], command);
                self.submit(vec![record]).await;
            }
        }
        if self.rng.random_bool(0.5) {
            self.use_a_top_up(MIDNIGHT_MS - 11 * MINUTE_MS).await;
        }
    }

    async fn step(&mut self, connection: &mut redis::aio::MultiplexedConnection) {
        if self.rng.random_bool(0.03) {
            self.use_a_top_up(MIDNIGHT_MS).await;
        }
        if self.rng.random_bool(0.1) && !self.of_top_ups.is_empty() {
            let voids = self.voids_of_top_ups();
            self.submit(voids).await;
        }
        match self.rng.random_range(0..100) {
            0..27 => {
                let command = self.command();
                let offset = self.positions[&Partition::COMMANDS] + self.rng.random_range(0..2);
                let record = self.command_record(offset, command);
                self.submit(vec![record]).await;
            }
            27..72 => {
                let records = self.usage();
                self.submit(records).await;
            }
            72..78 => {
                if let Some(call) = self.last.clone() {
                    self.send(&call).await; // a resend, whatever was applied since
                }
            }
            78..83 => {
                let mut call = self.last.clone();
                if let Some(Call::Apply(apply)) = &mut call {
                    let by = self.rng.random_range(-3..=3);
                    for range in &mut Arc::make_mut(apply).ranges {
                        range.from += by; // an overlap or a gap
                        range.to = range.to.max(range.from);
                        range.to = range.to.max(range.from);
                    }
                }
                if let Some(call) = call {
                    self.send_if_fenced(&call).await;
                }
            }
            83..85 => self.other_stamp().await,
            85..87 => self.init_again().await,
            87..90 => self.move_time().await,
            90..91 => self.forget().await,
            91..92 => self.forget_usage().await,
            98..99 => self.fold_usage().await,
            94..98 => self.sweep().await,
            92..94 => {
                let floor_ms = MIDNIGHT_MS - self.rng.random_range(0..8) * MINUTE_MS;
                self.raise_floor(floor_ms, connection).await;
            }
            _ => self.take().await,
        }
        if self.rng.random_bool(0.15) {
            self.accounts.clear(); // another worker, which knows nothing
        }
        if self.rng.random_bool(0.05) {
            let stamp = Arc::make_mut(&mut self.stamp); // with other settings
            stamp.breakdown = !stamp.breakdown;
            stamp.restamp_tolerance_ms = self.rng.random_range(1..12) * MINUTE_MS;
        }
    }

    /// What was granted is used, expired, remains or has gone on, in every cycle.
    fn check_books(&self) {
        let seed = self.seed;
        for (name, account) in &self.shard.accounts {
            for (credit_type, counter) in &account.counters {
                let pool = account.pools.get(credit_type).copied().unwrap_or_default();
                assert_eq!(counter.granted, pool.granted.total(), "seed {seed}: {name} {credit_type}");
                let balance = counter.balance();
                let (Some(granted), Some(remaining)) = (balance.granted, balance.remaining) else { continue };
                assert_eq!(granted, balance.used + balance.expired + remaining, "seed {seed}: {name} {credit_type}");
                let lots = account.lots.values().filter(|lot| lot.begun && lot.credit_type == *credit_type);
                let lots: Vec<Credits> = lots.map(|lot| lot.left).collect();
                let left = lots.iter().fold(pool.left, |sum, left| sum + *left);
                let sound = lots.iter().chain([&pool.left]).all(|left| *left >= Credits::ZERO);
                assert!(
                    sound && left >= remaining && left <= granted - balance.expired,
                    "seed {seed}: {name} {account:#?}"
                );
            }
            for closed in account.closed.values() {
                for counter in closed.counters.values() {
                    let Amount::Limited(granted) = counter.granted.total() else { continue };
                    let used = counter.charged - counter.overage();
                    assert_eq!(granted, used + counter.expired + counter.moved, "seed {seed}: {name} {closed:#?}");
                    assert!(
                        counter.spare >= Credits::ZERO && counter.spare <= counter.expired,
                        "seed {seed}: {closed:#?}"
                    );
                }
            }
        }
    }

    /// Sometimes the days around midnight end, and then the history.
    async fn end(&mut self, connection: &mut redis::aio::MultiplexedConnection) {
        if self.rng.random_bool(0.8) {
            let floor_ms =
                MIDNIGHT_MS + self.rng.random_range(0..2) * DAY_MS + self.rng.random_range(9..12) * MINUTE_MS;
            self.raise_floor(floor_ms, connection).await;
            self.move_time().await;
            self.move_time().await;
            self.forget().await;
            self.forget_usage().await;
            for _ in 0..6 {
                self.sweep().await;
            }
            if let Some(records) = self.voids_of_the_cycle_before() {
                self.submit(records).await;
            }
            self.step(connection).await;
            self.step(connection).await;
        }
    }

    /// Sends records as a worker does: follows each answer until they are applied.
    async fn submit(&mut self, records: Vec<Record>) {
        let mut ends: BTreeMap<Partition, i64> = BTreeMap::new();
        for record in &records {
            ends.insert(
                record.partition,
                record.offset + 1 + self.rng.random_range(0..2) * i64::from(record.partition != Partition::COMMANDS),
            );
        }
        let ranges = ends.iter().map(|(partition, to)| Range {
            partition: *partition,
            from: self.positions[partition],
            to: *to,
            repeats: 0,
            last: self.rng.random_bool(0.7).then(|| LastRead {
                anchor: Anchor { offset: *to - 1, fingerprint: u64::MAX - *to as u64 },
                reached_ms: MIDNIGHT_MS + *to,
            }),
        });
        let ranges: Vec<_> = ranges.collect();
        let recorded = self.recorded(&records);
        let mut commands_first = self.commands_first();
        let outside = self.positions.iter().filter(|(partition, _)| !ends.contains_key(partition));
        let mut others: Vec<_> = outside.map(|(partition, position)| (*partition, *position)).collect();
        for (_, position) in &mut others {
            *position += i64::from(self.rng.random_bool(0.05)); // an older state came back
        }
        let mut batch = Batch { records, ranges, commands_end: None };
        for _ in 0..16 {
            let call = batch.call(&Known {
                stamp: &self.stamp,
                catalogue: self.catalogue,
                accounts: &self.accounts,
                dead: &self.dead,
                recorded: &recorded,
                commands_first,
                others: others.clone(),
                late_after_ms: LATE_AFTER_MS,
            });
            if let Call::Roll(roll) = &call
                && batch.commands_end.is_none()
                && roll.commands_first.is_none()
                && batch.records[0].partition != Partition::COMMANDS
            {
                // The worker asks first what the commands topic held.
                batch.commands_end = Some(self.positions[&Partition::COMMANDS] + self.rng.random_range(0..2));
                continue;
            }
            if let Call::Apply(apply) = &call
                && let Some(question) = apply.question().filter(|_| self.rng.random_bool(0.3))
            {
                *self.replies.entry("question").or_insert(0) += 1;
                match self.send(&Call::Apply(Arc::new(question))).await {
                    Reply::Stale(shown) => {
                        self.learn(shown);
                        continue;
                    }
                    Reply::Applied(()) => {} // there are none
                    Reply::OutboxFull { .. } => self.take().await,
                    other => panic!("seed {}: unexpected {other:?}", self.seed),
                }
            }
            let reply = self.send(&call).await;
            self.last = Some(call);
            match reply {
                Reply::Applied(()) => return,
                Reply::Stale(stale) => {
                    let many = |view: &AccountView| view.days.values().any(|layout| layout.generations() > 1);
                    let grown = stale.iter().filter(|each| each.view.as_ref().is_some_and(many)).count();
                    *self.replies.entry("grown").or_insert(0) += grown as u64;
                    let many = |view: &AccountView| view.marks.values().any(|layout| layout.generations() > 1);
                    let grown = stale.iter().filter(|each| each.view.as_ref().is_some_and(many)).count();
                    *self.replies.entry("marks_grown").or_insert(0) += grown as u64;
                    self.learn(stale);
                }
                Reply::FellBack => others.clear(),
                Reply::Unknown { commands_position } => {
                    batch.commands_end = Some(commands_position);
                    commands_first = None;
                }
                Reply::Dead(notes) => {
                    let late = notes.iter().filter(|note| note.reason == DeadReason::VoidTooLate).count();
                    *self.replies.entry("void_too_late").or_insert(0) += late as u64;
                    self.dead.extend(notes.iter().map(|note| ((note.partition, note.offset), note.reason)));
                    if self.rng.random_bool(0.1) {
                        // The worker dies here. The next one knows nothing, and finds other records alive.
                        self.dead.clear();
                        return;
                    }
                }
                Reply::OutboxFull { .. } => self.take().await,

                other => panic!("seed {}: unexpected {other:?}", self.seed),
            }
        }
    }

    fn learn(&mut self, shown: Vec<StaleAccount>) {
        for StaleAccount { account, view } in shown {
            match view {
                Some(view) => self.accounts.insert(account, view),
                None => self.accounts.remove(&account),
            };
        }
    }

    /// What was published about some of the records before the shard fell back.
    fn recorded(&mut self, records: &[Record]) -> Recorded {
        let mut recorded = Recorded::default();
        let rng = &mut self.rng;
        if rng.random_bool(0.7) {
            return recorded;
        }
        for record in records.iter().filter(|_| rng.random_bool(0.2)).collect::<Vec<_>>() {
            let decision = match &record.body {
                Body::Usage(_) if rng.random_bool(0.5) => {
                    Decision::Denied(*Denial::ALL.choose(rng).expect("not empty"))
                }
                Body::Usage(_) => {
                    let thousandths = rng.random_range(0..2_000);
                    Decision::Capped { uncovered: Credits::from_thousandths(thousandths) }
                }
                Body::Command(_) if rng.random_bool(0.5) => Decision::Answered,
                Body::Command(_) => Decision::Refused(refuse(RefusalReason::UnknownPlan, "none \"such\"".into())),
                Body::Dead { .. } | Body::Tick => continue,
            };
            let event = match &record.body {
                Body::Usage(event) => Some((event.account.clone(), event.identity)),
                _ => None,
            };
            recorded.insert(Published { partition: record.partition, offset: record.offset, event, decision });
        }
        recorded
    }

    fn commands_first(&mut self) -> Option<i64> {
        let position = self.positions[&Partition::COMMANDS];
        if self.rng.random_bool(0.1) { Some(position + self.rng.random_range(-1..=1)) } else { None }
    }

    async fn submit_one(&mut self) {
        let records = self.usage();
        self.submit(records).await;
    }

    async fn send_if_fenced(&mut self, call: &Call) {
        let Call::Apply(apply) = call else { return };
        let in_place = |range: &Range| self.shard.position(range.partition) == range.from;
        // One that would fit by chance is no refusal; the events in it are those of another range.
        if !apply.ranges.iter().all(in_place) {
            self.send(call).await;
        }
    }

    /// The same call to Redis and to the ledger.
    async fn send(&mut self, call: &Call) -> Reply<()> {
        let seed = self.seed;
        self.poison(call).await;
        let (kind, reply) = match call {
            Call::Apply(call) => {
                let before = Held::by(&self.shard);
                let stored = self.store.apply(0, call).await.expect("redis answers");
                let expected = self.shard.apply(call);
                assert_eq!(stored, expected, "seed {seed}: {call:#?}");
                if let Reply::Applied(applied) = &stored {
                    self.positions.extend(call.ranges.iter().map(|range| (range.partition, range.to)));
                    *self.replies.entry("grown_ahead").or_insert(0) += applied.grown.len() as u64;
                    *self.replies.entry("marks_grown_ahead").or_insert(0) += applied.grown_marks.len() as u64;
                    self.count_once(call, &applied.verdicts);
                    self.count_members(call, &applied.verdicts);
                    self.count_given_back(before);
                    self.count_unentitled(call, &applied.verdicts);
                    for verdict in &applied.verdicts {
                        *self.replies.entry(verdict.outcome().name()).or_insert(0) += 1;
                    }
                    let events = call.groups.iter().flat_map(|group| &group.events);
                    for (event, verdict) in events.zip(&applied.verdicts) {
                        let kind = match (&call.classes[event.class], verdict) {
                            (class, Verdict::Voided) if class.judge != Judge::Void => "void_came_first",
                            (class, Verdict::Voided) if class.cycle.is_some() => "void_came_late",
                            _ => continue,
                        };
                        *self.replies.entry(kind).or_insert(0) += 1;
                    }
                    let late = call.groups.iter().flat_map(|group| &group.events);
                    let late = late.filter(|event| call.classes[event.class].cycle.is_some()).count();
                    *self.replies.entry("late").or_insert(0) += late as u64;
                }
                (stored.kind(), without_answer(stored))
            }
            Call::Roll(call) => {
                let stored = self.store.roll(0, call).await.expect("redis answers");
                let counts = self.shard.members.len();
                let expected = self.shard.roll(call);
                let forgotten = counts - self.shard.members.len();
                *self.replies.entry("members_forgotten").or_insert(0) += forgotten as u64;
                assert_eq!(stored, expected, "seed {seed}: {call:#?}");
                let steps = call.accounts.iter().flat_map(|roll| &roll.steps);
                for step in steps {
                    let kind = match step {
                        Step::Lots { .. } => "lots_passed",
                        Step::Renew { opens: Some(_), .. } => "renewed",
                        Step::Renew { opens: None, .. } => "account_closed",
                        Step::Restate { .. } => "restated",
                        Step::Forget { marks: Some(_), .. } => "marks_forgotten",
                        Step::Forget { .. } => "cycle_forgotten",
                    };
                    *self.replies.entry(kind).or_insert(0) += 1;
                }
                (if matches!(stored, Reply::Stale(_)) { "rolled" } else { stored.kind() }, stored)
            }
            Call::Command(call) => {
                let stored = self.store.command(0, call).await.expect("redis answers");
                let expected = self.shard.command(call);
                assert_eq!(stored, expected, "seed {seed}: {call:#?}");
                if let Reply::Applied(commanded) = &stored {
                    self.positions.insert(call.range.partition, call.range.to);
                    let refused = commanded.outcome == credit_meter::ledger::outcome::Outcome::Refused;
                    *self.replies.entry(if refused { "refused_command" } else { "command" }).or_insert(0) += 1;
                }
                (stored.kind(), without_answer(stored))
            }
        };
        *self.replies.entry(kind).or_insert(0) += 1;
        reply
    }

    async fn check_due(&self, connection: &mut redis::aio::MultiplexedConnection) {
        let due = dump::due(connection, &self.keys.spell(Key::Due(0))).await;
        let own = self.shard.accounts.iter().map(|(name, account)| (name.clone(), account.due_ms()));
        assert_eq!(due, own.collect(), "seed {}: every account is due when time changes it next", self.seed);
    }
}

/// A reply without what it says of the call that was applied.
pub fn without_answer<T>(reply: Reply<T>) -> Reply<()> {
    match reply {
        Reply::OtherGeneration(stored) => Reply::OtherGeneration(stored),
        Reply::Torn { begun, ended } => Reply::Torn { begun, ended },
        Reply::DoneBefore => Reply::DoneBefore,
        Reply::OtherPosition(stored) => Reply::OtherPosition(stored),
        Reply::FellBack => Reply::FellBack,
        Reply::OtherCatalogue(stored) => Reply::OtherCatalogue(stored),
        Reply::Stale(stale) => Reply::Stale(stale),
        Reply::AccountLost(account) => Reply::AccountLost(account),
        Reply::Unknown { commands_position } => Reply::Unknown { commands_position },
        Reply::Dead(notes) => Reply::Dead(notes),
        Reply::OutboxFull { entries } => Reply::OutboxFull { entries },
        Reply::Applied(_) => Reply::Applied(()),
    }
}
