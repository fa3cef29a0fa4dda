//! A meter that nothing ails is found right: random histories of one account go through the ledger's own shard as a worker
//! sends them, and what the log says of it is held against the shard. Repeats with another member, day or price, voids,
//! late use, renewals, zones and limits that change, days that are forgotten, an account that is closed.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::ledger::account::AccountView;
use crate::ledger::call::{Range, Reply, StaleAccount, Stamp};
use crate::ledger::catalogue::Amount;
use crate::ledger::command::ACCOUNT_CLOSE;
use crate::ledger::day::DaySets;
use crate::ledger::roll::{RollAccount, RollCall};
use crate::ledger::shard::{Account, InitCall, Shard};
use crate::ledger::steps::{MeterTime, steps_until};
use crate::ledger::time::{ForgetCall, ForgetDays, TimeCall, forgettable};
use crate::ledger::usage::{ForgetUsageCall, is_past};
use crate::pipeline::batch::{Accounts, Batch, Call, DeadNotes, Known, thresholds};
use crate::pipeline::recorded::Recorded;

const SEEDS: u64 = 300;
const STEPS: usize = 60;
const HOUR_MS: i64 = 3_600_000;
const TOLERANCE_MS: i64 = 600_000;
const LATE_AFTER_MS: i64 = 3 * DAY_MS;
const KEEP_MS: i64 = 20 * DAY_MS;
const ZONES: [Tz; 3] = [chrono_tz::UTC, chrono_tz::Pacific::Kiritimati, chrono_tz::America::Los_Angeles];
const LIMITS: [&str; 4] = ["", "email 5000", "email 20000\temail 3000 u-1", "email 8000 u-2\tphone 4000"];

const PLANS: &str = r#"
version = 1
[credit_types.email]
[credit_types.phone]
[actions.reveal]
prices = [{ credit_type = "email", credits = 1 }]
voidable = true
[actions.enrich]
prices = [{ credit_type = "email", credits = 2 }]
[actions.phone]
prices = [{ credit_type = "phone", credits = 1.5 }]
charge_once = { by = "contact" }
voidable = true
[plans.small]
interval = "monthly"
allowance = { email = 30, phone = 9 }
actions = ["reveal", "phone"]
overage = "cap"
[plans.large]
interval = "monthly"
allowance = { email = 60, phone = 20 }
carry_over_max = { email = 10 }
actions = ["reveal", "phone", "enrich"]
[plans.open]
interval = "monthly"
allowance = { email = 60, phone = "unlimited" }
actions = ["reveal", "phone", "enrich"]
overage = { allow = { limit = 8 } }
prices = { phone = 2 }
"#;

/// How much of what may happen does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One partition and one configuration, so that everything is known.
    Certain,
    Any,
}

#[test]
fn a_meter_that_nothing_ails_is_found_right() {
    let mut met: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let kind = if seed % 3 == 0 { Kind::Certain } else { Kind::Any };
        let meter = Meter::lives(seed, kind);
        let report = meter.audit();
        assert_eq!(report.mismatches, 0, "seed {seed}: {:#?}", report.differences);
        report.outcomes.iter().for_each(|(outcome, records)| *met.entry(outcome).or_default() += records);
        *met.entry("days").or_default() += report.usage_days;
        *met.entry("counts").or_default() += meter.shard.members.len() as u64;
        *met.entry("closed cycles").or_default() += meter.account().closed.len() as u64;
    }
    let often = [
        "charged",
        "denied",
        "capped",
        "free",
        "voided",
        "duplicate",
        "dead_lettered",
        "days",
        "counts",
        "closed cycles",
    ];
    assert!(often.iter().all(|what| met.get(what).is_some_and(|times| *times >= SEEDS / 4)), "{met:?}");
}

#[test]
fn one_number_that_is_wrong_is_told() {
    for seed in (0..SEEDS).step_by(3) {
        let mut meter = Meter::lives(seed, Kind::Certain);
        let mut rng = SmallRng::seed_from_u64(seed);
        let window = meter.window();
        let first = window.first(&meter.state());
        let usage = meter.shard.usage.iter_mut().filter(|((_, day), _)| *day >= first);
        let mut rows: Vec<_> = usage.flat_map(|(_, usage)| usage.values_mut()).collect();
        rows.sort_by_key(|row| (row.charged, row.credits, row.denied, row.free));
        if rows.is_empty() {
            continue;
        }
        let row = rng.random_range(0..rows.len());
        let used = &mut *rows[row];
        match rng.random_range(0..4) {
            0 => used.charged += 1,
            1 => used.credits += Credits::from_thousandths(1),
            2 => used.denied += 1,
            _ => used.free += 1,
        }
        let found: Vec<String> = meter.audit().differences.into_iter().map(|each| each.what).collect();
        assert!(found.len() == 1 && found[0].starts_with("usage on "), "seed {seed}: {found:?}");

        let mut meter = Meter::lives(seed, Kind::Certain);
        let counts = meter.shard.members.values_mut().flat_map(|counts| counts.values_mut());
        let Some(used) = counts.min() else { continue };
        *used += Credits::from_thousandths(1);
        let found: Vec<String> = meter.audit().differences.into_iter().map(|each| each.what).collect();
        assert!(found.len() == 1 && found[0].contains(" counted for "), "seed {seed}: {found:?}");
    }
}

/// A shard with one account, and the worker that fills it.
struct Meter {
    catalogue: Catalogue,
    stamp: Arc<Stamp>,
    shard: Shard,
    accounts: Accounts,
    dead: DeadNotes,
    log: Vec<Record>,
    /// The shard as an audit saw it first.
    first: ShardState,
}

impl Meter {
    fn lives(seed: u64, kind: Kind) -> Meter {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut meter = Meter::new();
        let partitions = if kind == Kind::Certain { 1 } else { 3 };
        let mut next = vec![0; partitions];
        let mut config = config_of(&mut rng);
        let mut now_ms = NOON_MS - 23 * DAY_MS;
        let mut commands = 0;
        let mut sent: Vec<UsageEvent> = Vec::new();
        meter.commands(&mut commands, now_ms, ACCOUNT_PUT, CommandBody::Put(Box::new(config.clone())));
        let looks_at = rng.random_range(0..STEPS);
        for step in 0..STEPS {
            now_ms += rng.random_range(0..30) * HOUR_MS + rng.random_range(0..HOUR_MS);
            match rng.random_range(0..100) {
                0..6 if kind == Kind::Any => {
                    let other = config_of(&mut rng);
                    match rng.random_range(0..6) {
                        0..2 => config.timezone = other.timezone,
                        2..5 => config.member_limits = other.member_limits,
                        _ => config.plan = other.plan,
                    }
                    meter.commands(&mut commands, now_ms, ACCOUNT_PUT, CommandBody::Put(Box::new(config.clone())));
                }
                6..7 if step > STEPS / 2 => meter.commands(&mut commands, now_ms, ACCOUNT_CLOSE, CommandBody::Close),
                7..30 => meter.time_passes(now_ms),
                _ => {
                    let partition = rng.random_range(0..partitions);
                    let mut records = Vec::new();
                    // Records may have times of their own.
                    let back_ms = if rng.random_bool(0.9) { 0 } else { rng.random_range(0..LATE_AFTER_MS) };
                    for _ in 0..rng.random_range(1..6) {
                        let append_ms = now_ms - back_ms;
                        let event = event_of(&mut rng, append_ms, &mut sent);
                        records.push(usage_record((partition as i32, next[partition]), append_ms, event));
                        next[partition] += rng.random_range(1..3);
                        now_ms += rng.random_range(0..1_000);
                    }
                    meter.log.extend(records.iter().cloned());
                    meter.send(records);
                }
            }
            if step == looks_at {
                meter.first = meter.state();
            }
        }
        meter
    }

    fn new() -> Meter {
        let catalogue = Catalogue::parse(PLANS).unwrap();
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
        let stamp = Arc::new(Stamp {
            generation: "g".into(),
            catalogue: catalogue.id.clone(),
            usage_topic: "usage".into(),
            restamp_tolerance_ms: TOLERANCE_MS,
            outbox_max: usize::MAX,
            set_members_max: 512,
            journal_bytes_max: 8192,
            breakdown: true,
        });
        let (accounts, dead, first) = (Accounts::default(), DeadNotes::new(), ShardState::default());
        Meter { catalogue, stamp, shard, accounts, dead, log: Vec::new(), first }
    }

    fn account(&self) -> &Account {
        &self.shard.accounts["acme"]
    }

    fn commands(&mut self, offset: &mut i64, now_ms: i64, command_type: &'static str, body: CommandBody) {
        let id = format!("c{offset}");
        let identity = Identity::of("cli", &id);
        let command = Command { account: "acme".into(), id, identity, time_ms: now_ms, command_type, body: Ok(body) };
        let body = Body::Command(Box::new(command));
        let partition = Partition::COMMANDS;
        let record = Record { partition, offset: *offset, append_ms: now_ms, bytes: 100, fingerprint: 0, body };
        *offset += 1;
        self.log.push(record.clone());
        self.send(vec![record]);
    }

    /// Sends records of one partition as a worker does, a renewal first where one is due.
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
                    Reply::Dead(notes) => {
                        self.dead.extend(notes.iter().map(|note| ((note.partition, note.offset), note.reason)));
                        continue;
                    }
                    other => panic!("{other:?}"),
                },
                Call::Command(call) => match self.shard.command(&call) {
                    Reply::Applied(_) => return,
                    Reply::Stale(stale) => stale,
                    other => panic!("{other:?}"),
                },
                Call::Roll(call) => self.roll(&call),
            };
            self.show(stale);
        }
    }

    fn price(&self, records: &[Record]) -> (Batch, Call) {
        let (first, last) = (&records[0], &records[records.len() - 1]);
        let from = self.shard.position(first.partition);
        let range =
            Range { partition: first.partition, from, to: last.offset + 1, repeats: 0, last: Some(last.last_read()) };
        let batch = Batch { records: records.to_vec(), ranges: vec![range], commands_end: None };
        let call = batch.call(&Known {
            stamp: &self.stamp,
            catalogue: &self.catalogue,
            accounts: &self.accounts,
            dead: &self.dead,
            recorded: &Recorded::default(),
            commands_first: None,
            others: Vec::new(),
            late_after_ms: LATE_AFTER_MS,
        });
        (batch, call)
    }

    fn show(&mut self, stale: Vec<StaleAccount>) {
        for StaleAccount { account, view } in stale {
            match view {
                Some(view) => drop(self.accounts.insert(account, view)),
                None => drop(self.accounts.remove(&account)),
            }
        }
    }

    fn roll(&mut self, call: &RollCall) -> Vec<StaleAccount> {
        match self.shard.roll(call) {
            Reply::Stale(stale) => stale,
            other => panic!("{other:?}"),
        }
    }

    /// A tick: idle accounts are rolled, and what is past is forgotten.
    fn time_passes(&mut self, now_ms: i64) {
        let (generation, late_after_ms) = ("g".to_owned(), LATE_AFTER_MS);
        let call = TimeCall { generation: generation.clone(), tick_ms: Some(now_ms), late_after_ms, ends: Vec::new() };
        self.shard.move_time(&call);
        let fence = self.shard.fence.clone().unwrap();
        let meter = MeterTime { now_ms: fence.meter_time_ms, floor_ms: fence.floor_ms };
        let view = self.account().view();
        let steps = steps_until(&self.catalogue, &view, meter.now_ms, meter);
        if !steps.is_empty() {
            let thresholds = thresholds(&self.catalogue, &view.config);
            let account = RollAccount { account: "acme".into(), version: view.version, thresholds, steps };
            let shown = self.roll(&RollCall {
                stamp: self.stamp.clone(),
                others: Vec::new(),
                commands_first: None,
                meter_time_ms: Some(meter.now_ms),
                late_after_ms,
                credit_types: self.catalogue.credit_types.clone(),
                accounts: vec![account],
            });
            self.show(shown);
        }
        let read: Vec<_> = self.account().days.iter().map(|(day, layout)| (*day, layout.clone())).collect();
        let gone = read.iter().map(|(day, _)| *day);
        let gone = gone.filter(|day| forgettable(*day, fence.floor_ms, TOLERANCE_MS)).collect();
        let days = ForgetDays { account: "acme".into(), read, gone };
        self.shard.forget(&ForgetCall { generation: generation.clone(), accounts: vec![days] });
        let days = self.shard.usage.keys().map(|(_, day)| *day);
        let days: Vec<NaiveDate> = days.filter(|day| is_past(*day, KEEP_MS, fence.meter_time_ms)).collect();
        let accounts = vec!["acme".into()];
        self.shard.forget_usage(&ForgetUsageCall { generation, keep_ms: KEEP_MS, days, accounts, from: None });
    }

    fn window(&self) -> Window {
        Window { keep_ms: KEEP_MS, from: None, begins_ms: 0 }
    }

    fn state(&self) -> ShardState {
        let fence = self.shard.fence.as_ref().unwrap();
        ShardState {
            positions: fence.positions.iter().map(|(partition, offset)| (*partition, *offset)).collect(),
            totals: fence.totals.iter().map(|((partition, outcome), n)| (*partition, *outcome, *n)).collect(),
            meter_time_ms: fence.meter_time_ms,
            floor_ms: fence.floor_ms,
            restamp_tolerance_ms: fence.restamp_tolerance_ms,
            ..ShardState::default()
        }
    }

    fn audit(&self) -> Report {
        let (state, window) = (self.state(), self.window());
        let mut denials = Denials::default();
        let names = Names { source: "meter".into(), usage_topic: "usage".into(), commands_topic: "commands".into() };
        for entry in self.shard.outbox.iter().filter(|entry| entry.output == Output::Denied) {
            denials.add(&names, Slice { number: 0, of: 1 }, Heard::Outbox, &entry.account, &entry.data);
        }
        let mut dead = DeadLetters::default();
        self.dead.keys().for_each(|(partition, offset)| dead.put(*partition, *offset));
        let first = FirstLook { positions: vec![Positions::of(&self.first)], shards: vec![self.first.clone()] };
        let stored = self.looked(&state, window);
        let seen = look::Seen {
            account: "acme".into(),
            positions: Positions::of(&state).into(),
            floor_ms: state.floor_ms,
            usage_from: Some(window.first(&state)),
            stored,
        };
        let mut log = self.log.clone();
        log.sort_by_key(|record| (record.partition.input == Input::Usage, record.partition.index, record.offset));
        report(&self.catalogue, &first, seen, Some(window), (denials, dead), log)
    }

    /// The account as its hash and keys have it in Redis.
    fn looked(&self, state: &ShardState, window: Window) -> LookedAccount {
        let account = self.account();
        let view: AccountView = account.view();
        let mut fields: BTreeMap<String, String> = account.config.to_fields().into_iter().collect();
        let next = account.next.iter().flat_map(AccountConfig::to_fields);
        fields.extend(next.map(|(name, value)| (format!(">{name}"), value)));
        let mut put = |name: &str, value: String| fields.insert(name.to_owned(), value);
        put("version", account.version.to_string());
        put("life", account.life.name().to_owned());
        put("since", account.since_ms.to_string());
        put("cycle", format!("{} {} {}", account.cycle.number, account.cycle.start_ms, account.cycle.end_ms));
        put("days", account.days.iter().map(|(day, layout)| format!(" {day}:{layout}")).collect());
        put("once", account.marks.iter().map(|(cycle, layout)| format!(" {cycle}:{layout}")).collect());
        for (credit_type, pool) in &account.pools {
            put(&format!("{credit_type}.p"), format!("{} {}", pool.left.thousandths(), pool.granted));
        }
        for (credit_type, counter) in &account.counters {
            let granted = match counter.granted {
                Amount::Limited(amount) => amount.thousandths().to_string(),
                Amount::Unlimited => "unlimited".to_owned(),
            };
            put(&format!("{credit_type}.g"), granted);
            put(&format!("{credit_type}.c"), counter.charged.thousandths().to_string());
            put(&format!("{credit_type}.e"), counter.expired.thousandths().to_string());
        }
        for (number, closed) in &account.closed {
            let times = [closed.start_ms, closed.end_ms, closed.keep_ms, closed.stated_ms].map(|ms| ms.to_string());
            put(&format!("closed:{number}"), times.join(" "));
            let (restate, overage) = (i32::from(closed.restate), closed.overage.to_stored());
            put(&format!("terms:{number}"), format!("{restate} {} {overage} {}", closed.revision, closed.plan));
            for (credit_type, counter) in &closed.counters {
                let amounts = [counter.charged, counter.expired, counter.moved, counter.spare];
                let amounts = amounts.map(|amount| amount.thousandths().to_string()).join(" ");
                let text = format!("{} {amounts} {}", counter.granted, counter.denied);
                put(&format!("closed:{number}:{credit_type}"), text);
            }
        }
        let size = |sets: &DaySets| sets.sets.values().map(|set| set.len() as u64).sum::<u64>();
        let asked = look::asks(
            &"acme".into(),
            &LookedAccount { fields: fields.clone(), ..Default::default() },
            state,
            Some(window),
        );
        let of_day = |day: NaiveDate| {
            let usage = self.shard.usage.get(&("acme".into(), day))?;
            let rows: Vec<_> = usage
                .iter()
                .map(|((user, action), used)| {
                    let count = |events: u64| events as i64;
                    let numbers =
                        [count(used.charged), used.credits.thousandths(), count(used.denied), count(used.free)];
                    (&**user, &**action, numbers)
                })
                .collect();
            Some(StoredDay::of(day, &rows))
        };
        let days = asked.usage.into_iter().flat_map(|(from, to)| from.iter_days().take_while(move |day| *day <= to));
        LookedAccount {
            fields,
            commands: self.shard.commands_seen["acme"].len() as u64,
            remembered: view.days.keys().map(|day| (*day, size(&self.shard.seen[&("acme".into(), *day)]))).collect(),
            marks: view.marks.keys().map(|cycle| (*cycle, size(&self.shard.marks[&("acme".into(), *cycle)]))).collect(),
            generations: view.days.iter().map(|(day, layout)| (*day, layout.generations() as u64)).collect(),
            members: asked
                .cycles
                .iter()
                .map(|cycle| (*cycle, self.shard.members.get(&("acme".into(), *cycle)).cloned().unwrap_or_default()))
                .collect(),
            usage: days.filter_map(of_day).collect(),
        }
    }
}

fn config_of(rng: &mut SmallRng) -> AccountConfig {
    let plan = *["small", "large", "open"].choose(rng).unwrap();
    let limits = *LIMITS.choose(rng).unwrap();
    let member_limits = if limits.is_empty() { Default::default() } else { limits_from(limits).unwrap() };
    AccountConfig { plan: plan.into(), timezone: *ZONES.choose(rng).unwrap(), member_limits, ..config() }
}

/// A new event, another attempt at one, or a void.
fn event_of(rng: &mut SmallRng, now_ms: i64, sent: &mut Vec<UsageEvent>) -> UsageEvent {
    let user = [None, Some("u-1"), Some("u-2"), Some("u 3:\t")].choose(rng).unwrap().map(Arc::from);
    let last = &sent[sent.len().saturating_sub(20)..];
    let moved = |rng: &mut SmallRng| if rng.random_bool(0.8) { 0 } else { rng.random_range(-2 * DAY_MS..2 * DAY_MS) };
    let event = match (rng.random_range(0..100), last.choose(rng)) {
        (0..15, Some(before)) => {
            let time_ms = before.time_ms + moved(rng);
            UsageEvent { user, time_ms, quantity: rng.random_range(1..4), ..before.clone() }
        }
        (15..35, Some(before)) => {
            let identity = Identity::of("s", &before.id);
            let time_ms = before.time_ms + moved(rng);
            UsageEvent { user, time_ms, voids: Some(identity), identity: identity.of_its_void(), ..before.clone() }
        }
        _ => {
            let action = *["reveal", "reveal", "enrich", "phone", "phone"].choose(rng).unwrap();
            let id = format!("{action}-{}", sent.len());
            let back_ms = match rng.random_range(0..10) {
                0..5 => 0,
                5..8 => rng.random_range(-240_000..6 * HOUR_MS),
                8..9 => rng.random_range(0..LATE_AFTER_MS),
                _ => rng.random_range(0..6 * DAY_MS),
            };
            let once = (action == "phone").then(|| Identity::of("phone", &rng.random_range(0..20).to_string()));
            let event = event("a", rng.random_range(1..4));
            let identity = Identity::of("s", &id);
            let event = UsageEvent { action: action.into(), id: id.into(), identity, user, once, ..event };
            let event = UsageEvent { time_ms: now_ms - back_ms, ..event };
            sent.push(event.clone());
            event
        }
    };
    UsageEvent { dated_ms: event.time_ms.min(now_ms), ..event }
}

fn usage_record((partition, offset): (i32, i64), append_ms: i64, event: UsageEvent) -> Record {
    let body = Body::Usage(UsageEvent { dated_ms: event.time_ms.min(append_ms), ..event }.into());
    Record { partition: Partition::usage(partition), offset, append_ms, bytes: 100, fingerprint: 0, body }
}
