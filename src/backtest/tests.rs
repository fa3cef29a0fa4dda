//! A backtest comes to what a meter comes to that lets time pass before each record, renews whoever is due, and applies the
//! record in a call of its own: random histories of several accounts, late and repeated events, voids before and after what
//! they take back, commands that come late, grants that begin and end, accounts that are closed, prices that change.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::lines::Lines;
use super::statement::{Shown, Statement};
use super::tally::Tally;
use super::{Fold, Settings};
use crate::ingest::decode::{self, Bears, Decoder, Raw};
use crate::ledger::call::{Input, OutboxEntry, Partition, Range, Reply, StaleAccount, Stamp};
use crate::ledger::catalogue::Catalogue;
use crate::ledger::event::DAY_MS;
use crate::ledger::outcome::Outcome;
use crate::ledger::roll::{RollAccount, RollCall, time_text};
use crate::ledger::shard::{InitCall, InitReply, Shard};
use crate::ledger::steps::{MeterTime, steps_until};
use crate::ledger::time::{ForgetCall, ForgetDays, TimeCall, forgettable};
use crate::pipeline::batch::{Accounts, Batch, Call, DeadNotes, Known, thresholds};
use crate::pipeline::record::{Body, Record};
use crate::pipeline::recorded::Recorded;

const SEEDS: u64 = 40;
const RECORDS: usize = 150;
const HOUR_MS: i64 = 3_600_000;
/// 2025-12-28T12:00:00Z.
const START_MS: i64 = 1_766_923_200_000;
const TOLERANCE_MS: i64 = 600_000;
const LATE_AFTER_MS: i64 = 3 * DAY_MS;
const ACCOUNTS: [&str; 4] = ["a", "b", "c", "d"];
const DECODED: decode::Settings = decode::Settings { max_bytes: 10_000, early_limit_ms: 300_000 };

const CATALOGUE: &str = r#"
version = 1
[credit_types.email]
[credit_types.phone]
[actions.reveal]
prices = [
  { credit_type = "email", credits = 1 },
  { credit_type = "email", credits = 1.5, effective_from = "2026-02-10T00:00:00Z" },
  { credit_type = "email", credits = 3, when = { source = "premium" } },
]
free_outcomes = ["not_found"]
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
carry_over_max = { email = 10, phone = 4 }
actions = ["reveal", "phone", "enrich"]
[plans.open]
interval = "monthly"
actions = ["reveal", "phone", "enrich"]
overage = { allow = { limit = 8 } }
prices = { phone = 2 }
[[plans.open.allowance]]
email = 60
phone = 12
[[plans.open.allowance]]
effective_from = "2026-02-01T00:00:00Z"
email = 40
phone = "unlimited"
"#;

#[test]
fn a_backtest_comes_to_what_records_come_to_one_by_one() {
    let mut met: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let text = History::of(&mut rng);
        let (told, tally) = backtest(&text);
        let mut meter = OneByOne::new();
        text.lines().enumerate().for_each(|(index, line)| meter.line(index as i64 + 1, line));
        let (expected, outcomes) = meter.finish();
        assert_eq!(told.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "seed {seed}");
        for (cycle, statement) in &expected {
            assert_eq!(&told[cycle], statement, "seed {seed}: {cycle:?}");
        }
        let seen = outcomes_of(&tally);
        let of = |outcomes: &BTreeMap<&str, u64>, names: &[&str]| -> u64 {
            names.iter().filter_map(|name| outcomes.get(name)).sum()
        };
        // A repeat within a call is one, however late it is.
        let repeats = ["duplicate", "too_late", "void_too_late"];
        assert_eq!(of(&seen, &repeats), of(&outcomes, &repeats), "seed {seed}");
        assert!(of(&seen, &repeats[..1]) >= of(&outcomes, &repeats[..1]), "seed {seed}: {seen:?}, not {outcomes:?}");
        let others = |outcomes: &BTreeMap<&'static str, u64>| -> BTreeMap<&str, u64> {
            outcomes.iter().filter(|(name, _)| !repeats.contains(name)).map(|(name, times)| (*name, *times)).collect()
        };
        assert_eq!(others(&seen), others(&outcomes), "seed {seed}");
        seen.iter().for_each(|(outcome, records)| *met.entry(outcome).or_default() += records);
        *met.entry("cycles").or_default() += told.len() as u64;
    }
    let often = [
        "cycles",
        "charged",
        "denied",
        "capped",
        "free",
        "voided",
        "duplicate",
        "applied",
        "refused",
        "too_late",
        "void_too_late",
        "before_account",
        "account_closed",
        "unknown_account",
        "unknown_action",
        "not_voidable",
        "too_early",
        "cost_too_large",
    ];
    assert!(often.iter().all(|what| met.get(what).is_some_and(|times| *times >= SEEDS / 4)), "{met:?}");
}

/// 35 of 30 and a top-up of 20 were used in January; the last 5 are taken back.
#[test]
fn what_a_void_brings_back_is_there_whatever_came_between() {
    let line = |kind: &str, id: &str, time: &str, data: &str| {
        format!(
            "{{\"specversion\":\"1.0\",\"type\":\"credits.{kind}.v1\",\"id\":\"{id}\",\"source\":\"s\",\"subject\":\"a\",\
             \"time\":\"2026-{time}Z\",\"data\":{{{data}}}}}\n"
        )
    };
    let grant = |credit_type: &str, kind: &str, ends: &str| {
        format!("\"credit_type\":\"{credit_type}\",\"amount\":20,\"kind\":\"{kind}\",\"expires_at\":\"2026-{ends}Z\"")
    };
    let void = "\"source\":\"s\",\"id\":\"e2\",\"time\":\"2026-01-30T00:00:00Z\",\"action\":\"reveal\"";
    let put = |addons: &str| {
        line("account.put", "put", "01-02T00:00:00", &format!("\"plan\":\"small\",\"anchor\":\"2026-01-01\"{addons}"))
    };
    let before = [
        put(""),
        line("grant", "top-up", "01-03T00:00:00", &grant("email", "topup", "06-01T00:00:00")),
        line("usage", "e1", "01-29T00:00:00", "\"action\":\"reveal\",\"quantity\":30"),
        line("usage", "e2", "01-30T00:00:00", "\"action\":\"reveal\",\"quantity\":5"),
    ];
    let adjust = |amount: i64| {
        let data = format!("\"credit_type\":\"email\",\"amount\":{amount},\"reason\":\"r\"");
        line("adjust", "adjust", "01-30T12:00:00", &data)
    };
    let addon = line(
        "account.put",
        "again",
        "01-30T12:00:00",
        "\"plan\":\"small\",\"anchor\":\"2026-01-01\",\"addons\":[{\"credit_type\":\"email\",\"amount\":1}]",
    );
    let other = line("grant", "other", "01-30T06:00:00", &grant("phone", "promo", "01-30T12:00:00"));
    // What came between, when the void came, what of the top-up goes on into February.
    for (between, voided, goes_on) in [
        (String::new(), "01-31T00:00:00", 20),
        (other, "01-31T00:00:00", 20), // a promo of another type that has ended
        (adjust(-1), "01-31T00:00:00", 19),
        (adjust(1), "01-31T00:00:00", 20),
        (addon, "01-31T00:00:00", 20),
        (String::new(), "02-01T12:00:00", 20), // after the renewal
    ] {
        let void = line("usage.void", "v", voided, void);
        let (statements, _) =
            backtest(&[&before.concat(), &*between, &void, &line("tick", "t", "02-03T00:00:00", "")].concat());
        let of = |cycle: i64, field: &str| statements[&("a".to_owned(), cycle)]["balances"]["email"][field].clone();
        let seen =
            (of(0, "remaining"), of(1, "granted_by")["topup"].clone(), of(1, "remaining").as_i64().unwrap() - 30);
        let addons = i64::from(between.contains("addons"));
        assert_eq!(seen, (goes_on.into(), goes_on.into(), goes_on + addons), "{between}{voided}");
    }
}

type Statements = BTreeMap<(String, i64), Value>;

fn backtest(text: &str) -> (Statements, Tally) {
    let catalogue = Catalogue::parse(CATALOGUE).expect("a catalogue");
    let mut lines = Lines::new(text.as_bytes(), DECODED, Arc::new(catalogue.conditions()));
    let settings = Settings { late_after_ms: LATE_AFTER_MS, restamp_tolerance_ms: TOLERANCE_MS, until_ms: None };
    let mut fold = Fold::new(catalogue, settings);
    while let Some((_, records)) = lines.next_block().expect("memory can be read") {
        records.into_iter().for_each(|timed| fold.record(timed));
    }
    let (statements, tally) = fold.finish();
    let told = statements.iter().map(|statement| {
        let key = (statement.account.to_string(), i64::from(statement.cycle.number));
        (key, serde_json::to_value(Shown::of(statement)).expect("JSON"))
    });
    (told.collect(), tally)
}

fn outcomes_of(tally: &Tally) -> BTreeMap<&'static str, u64> {
    let mut outcomes = BTreeMap::new();
    let ended = tally.usage.iter().chain(&tally.commands).map(|(name, records)| (*name, *records));
    let dead = tally.not_judged.iter().map(|(name, reason)| (*name, reason.records));
    ended.chain(dead).for_each(|(name, records)| *outcomes.entry(name).or_default() += records);
    outcomes
}

/// A shard, and a worker that sends it each record alone.
struct OneByOne {
    catalogue: Catalogue,
    stamp: Arc<Stamp>,
    shard: Shard,
    accounts: Accounts,
    dead: BTreeMap<&'static str, u64>,
    decoder: Decoder,
    now_ms: i64,
    /// As they were published last.
    statements: Statements,
}

impl OneByOne {
    fn new() -> OneByOne {
        let catalogue = Catalogue::parse(CATALOGUE).expect("a catalogue");
        let mut shard = Shard::default();
        let made = shard.init(&InitCall {
            generation: "g".into(),
            shards: 1,
            catalogue: catalogue.id.clone(),
            catalogue_text: catalogue.text.clone(),
            grown: None,
            starts: Vec::new(),
            first_start: true,
        });
        assert_eq!(made, InitReply::Ready);
        let stamp = Arc::new(Stamp {
            generation: "g".into(),
            catalogue: catalogue.id.clone(),
            usage_topic: "usage".into(),
            restamp_tolerance_ms: TOLERANCE_MS,
            outbox_max: usize::MAX,
            set_members_max: 8,
            journal_bytes_max: 8192,
            breakdown: true,
        });
        let decoder = Decoder::new(DECODED, Arc::new(catalogue.conditions()));
        let (accounts, dead, statements) = (Accounts::default(), BTreeMap::new(), Statements::new());
        OneByOne { catalogue, stamp, shard, accounts, dead, decoder, now_ms: 0, statements }
    }

    fn line(&mut self, number: i64, line: &str) {
        let Some((bears, time_ms)) = decode::bears(line.as_bytes()) else { panic!("{line} has no time") };
        let partition = match bears {
            Bears::Command => Partition::COMMANDS,
            Bears::Usage | Bears::Tick => Partition::usage(0),
        };
        let value = Some(line.as_bytes());
        let raw = Raw { partition, offset: number, append_ms: time_ms, key: None, value, headers: &[] };
        let record = self.decoder.decode(raw).record;
        if let Body::Dead { reason, .. } = record.body {
            *self.dead.entry(reason.name()).or_default() += 1;
            return;
        }
        self.time_passes(time_ms);
        if !matches!(record.body, Body::Tick) {
            self.send(&record);
        }
    }

    /// Sends a record as a worker does, a renewal first where one is due.
    fn send(&mut self, record: &Record) {
        let mut dead = DeadNotes::new();
        loop {
            let from = self.shard.position(record.partition);
            let (partition, to, last) = (record.partition, record.offset + 1, Some(record.last_read()));
            let batch = Batch {
                records: vec![record.clone()],
                ranges: vec![Range { partition, from, to, repeats: 0, last }],
                commands_end: Some(0),
            };
            let call = batch.call(&Known {
                stamp: &self.stamp,
                catalogue: &self.catalogue,
                accounts: &self.accounts,
                dead: &dead,
                recorded: &Recorded::default(),
                commands_first: None,
                others: Vec::new(),
                late_after_ms: LATE_AFTER_MS,
            });
            let stale = match call {
                Call::Apply(call) => match self.shard.apply(&call) {
                    Reply::Applied(_) => break,
                    Reply::Stale(stale) => stale,
                    Reply::Dead(notes) => {
                        dead.extend(notes.iter().map(|note| ((note.partition, note.offset), note.reason)));
                        continue;
                    }
                    other => panic!("{other:?}"),
                },
                Call::Command(call) => match self.shard.command(&call) {
                    Reply::Applied(_) => break,
                    Reply::Stale(stale) => stale,
                    other => panic!("{other:?}"),
                },
                Call::Roll(call) => self.roll(&call),
            };
            self.show(stale);
        }
        dead.into_values().for_each(|reason| *self.dead.entry(reason.name()).or_default() += 1);
        self.publish();
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

    /// Whoever is due is rolled, and what is past is forgotten.
    fn time_passes(&mut self, time_ms: i64) {
        self.now_ms = self.now_ms.max(time_ms);
        let (generation, late_after_ms) = ("g".to_owned(), LATE_AFTER_MS);
        let tick_ms = Some(self.now_ms);
        self.shard.move_time(&TimeCall { generation: generation.clone(), tick_ms, late_after_ms, ends: Vec::new() });
        let fence = self.shard.fence.clone().expect("it was made");
        let meter = MeterTime { now_ms: fence.meter_time_ms, floor_ms: fence.floor_ms };
        let names: Vec<Arc<str>> = self.shard.accounts.keys().cloned().collect();
        let mut forgets = Vec::new();
        for account in names {
            loop {
                let view = self.shard.accounts[&account].view();
                let steps = steps_until(&self.catalogue, &view, meter.now_ms, meter);
                if steps.is_empty() {
                    break;
                }
                let thresholds = thresholds(&self.catalogue, &view.config);
                let shown = self.roll(&RollCall {
                    stamp: self.stamp.clone(),
                    others: Vec::new(),
                    commands_first: None,
                    meter_time_ms: Some(meter.now_ms),
                    late_after_ms,
                    credit_types: self.catalogue.credit_types.clone(),
                    accounts: vec![RollAccount { account: account.clone(), version: view.version, thresholds, steps }],
                });
                self.show(shown);
            }
            let days = &self.shard.accounts[&account].days;
            let read: Vec<_> = days.iter().map(|(day, layout)| (*day, layout.clone())).collect();
            let gone = read.iter().map(|(day, _)| *day).filter(|day| forgettable(*day, fence.floor_ms, TOLERANCE_MS));
            forgets.push(ForgetDays { account: account.clone(), gone: gone.collect(), read: read.clone() });
        }
        self.shard.forget(&ForgetCall { generation, accounts: forgets });
        self.publish();
    }

    fn publish(&mut self) {
        for OutboxEntry { event_type, account, data, .. } in self.shard.outbox.drain(..) {
            if event_type == "credits.cycle.closed.v1" {
                let mut statement: Value = serde_json::from_str(&data).expect("JSON");
                let fields = statement.as_object_mut().expect("an object");
                fields.remove("revision");
                fields.insert("account".to_owned(), account.clone().into());
                fields.insert("open".to_owned(), false.into());
                let number = statement["cycle"]["number"].as_i64().expect("a number");
                self.statements.insert((account, number), statement);
            }
        }
    }

    fn finish(mut self) -> (Statements, BTreeMap<&'static str, u64>) {
        self.time_passes(self.now_ms);
        for (name, account) in &self.shard.accounts {
            let number = i64::from(account.cycle.number);
            let closed = account.closed.iter();
            let changed = closed
                .filter(|(_, closed)| closed.restate)
                .map(|(number, closed)| (i64::from(*number), Statement::closed(name, *number, closed)));
            let open = Statement::open(name, account).map(|statement| (number, statement));
            for (number, statement) in changed.chain(open) {
                let shown = serde_json::to_value(Shown::of(&statement)).expect("JSON");
                self.statements.insert((name.to_string(), number), shown);
            }
        }
        let mut outcomes = self.dead;
        for ((partition, outcome), records) in self.shard.fence.expect("it was made").totals {
            if outcome != Outcome::DeadLettered || partition.input == Input::Commands {
                *outcomes.entry(outcome.name()).or_default() += records;
            }
        }
        (self.statements, outcomes)
    }
}

/// Lines as they arrive.
struct History<'a> {
    rng: &'a mut SmallRng,
    text: String,
    lines: usize,
    now_ms: i64,
    /// Usage that was sent: account, id, time, data without braces.
    sent: Vec<(&'static str, String, i64, String)>,
    grants: Vec<String>,
}

impl History<'_> {
    fn of(rng: &mut SmallRng) -> String {
        let text = String::new();
        let mut history = History { rng, text, lines: 0, now_ms: START_MS, sent: Vec::new(), grants: Vec::new() };
        for account in ACCOUNTS.into_iter().take(3) {
            history.put(account);
        }
        for _ in 0..RECORDS {
            history.now_ms += match history.rng.random_range(0..20) {
                0..6 => 0,
                6..12 => history.rng.random_range(0..HOUR_MS),
                12..19 => history.rng.random_range(0..30 * HOUR_MS),
                _ => history.rng.random_range(0..20 * DAY_MS),
            };
            let account = *ACCOUNTS.choose(history.rng).expect("there are some");
            match history.rng.random_range(0..100) {
                0..5 => history.put(account),
                5..9 => history.grant(account),
                9..11 => history.void_grant(account),
                11..14 => history.adjust(account),
                14..15 => history.close(account),
                15..17 => history.tick(),
                17..35 => history.void(),
                35..45 => history.again(),
                _ => history.usage(account),
            }
        }
        history.text
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// When it happened: mostly now.
    fn happened(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0..13 => self.now_ms,
            13..16 => self.now_ms - self.rng.random_range(0..6 * HOUR_MS),
            16..18 => self.now_ms - self.rng.random_range(0..LATE_AFTER_MS),
            18..19 => self.now_ms - LATE_AFTER_MS - self.rng.random_range(-3..3),
            _ => self.now_ms - self.rng.random_range(0..40 * DAY_MS),
        }
    }

    fn line(&mut self, kind: &str, (account, id): (&str, &str), time_ms: i64, data: &str) {
        let time = time_text(time_ms);
        self.text += &format!(
            "{{\"specversion\":\"1.0\",\"type\":\"credits.{kind}.v1\",\"id\":\"{id}\",\"source\":\"s\",\
             \"subject\":\"{account}\",\"time\":\"{time}\",\"data\":{{{data}}}}}\n"
        );
        self.lines += 1;
    }

    fn command(&mut self, kind: &str, account: &str, data: &str) {
        let time_ms = if self.chance(80) { self.now_ms } else { self.happened() };
        let id = if self.chance(95) { format!("c{}", self.lines) } else { format!("c{}", self.lines / 10) };
        if kind == "grant" {
            self.grants.push(id.clone());
        }
        self.line(kind, (account, &id), time_ms, data);
    }

    fn put(&mut self, account: &str) {
        let plan = *["small", "large", "open"].choose(self.rng).expect("there are some");
        let anchor = *["2025-12-31", "2025-11-15", "2024-02-29"].choose(self.rng).expect("there are some");
        let zone = *["UTC", "Pacific/Kiritimati", "America/Los_Angeles"].choose(self.rng).expect("there are some");
        let mut data = format!("\"plan\":\"{plan}\",\"anchor\":\"{anchor}\",\"timezone\":\"{zone}\"");
        if self.chance(20) {
            data += ",\"interval\":\"quarterly\"";
        }
        if self.chance(30) {
            let amount = self.rng.random_range(1..20);
            data += &format!(",\"addons\":[{{\"credit_type\":\"email\",\"amount\":{amount}.5}}]");
        }
        if self.chance(30) {
            let overage =
                *["\"reject\"", "\"cap\"", "\"allow\"", "{\"allow\":{\"limit\":5}}"].choose(self.rng).expect("some");
            data += &format!(",\"overage\":{overage}");
        }
        if self.chance(40) {
            let amount = self.rng.random_range(3..25);
            data += &format!(
                ",\"member_limits\":[{{\"credit_type\":\"email\",\"amount\":{amount}}},\
                 {{\"credit_type\":\"phone\",\"amount\":4,\"user\":\"u-1\"}}]"
            );
        }
        self.command("account.put", account, &data);
    }

    fn grant(&mut self, account: &str) {
        let amount = self.rng.random_range(1..25);
        let kind = *["topup", "promo"].choose(self.rng).expect("some");
        let credit_type = *["email", "email", "phone"].choose(self.rng).expect("some");
        let mut data = format!("\"credit_type\":\"{credit_type}\",\"amount\":{amount},\"kind\":\"{kind}\"");
        if self.chance(40) {
            let time = time_text(self.now_ms + self.rng.random_range(-5 * DAY_MS..20 * DAY_MS));
            data += &format!(",\"effective_at\":\"{time}\"");
        }
        if self.chance(60) {
            let time = time_text(self.now_ms + self.rng.random_range(-DAY_MS..50 * DAY_MS));
            data += &format!(",\"expires_at\":\"{time}\"");
        }
        if self.chance(30) {
            data += &format!(",\"priority\":{}", self.rng.random_range(1..4));
        }
        self.command("grant", account, &data);
    }

    fn void_grant(&mut self, account: &str) {
        let Some(grant) = self.grants.choose(self.rng).cloned() else { return };
        self.command("grant.void", account, &format!("\"grant\":\"{grant}\""));
    }

    fn adjust(&mut self, account: &str) {
        let amount = self.rng.random_range(-12..12);
        self.command("adjust", account, &format!("\"credit_type\":\"email\",\"amount\":{amount},\"reason\":\"r\""));
    }

    fn close(&mut self, account: &str) {
        self.command("account.close", account, "");
    }

    fn tick(&mut self) {
        let now_ms = self.now_ms;
        self.line("tick", ("t", "t"), now_ms, "");
    }

    fn usage(&mut self, account: &'static str) {
        let account = if self.chance(1) { "nobody" } else { account };
        let action = *["reveal", "reveal", "enrich", "phone", "phone"].choose(self.rng).expect("some");
        let action = if self.chance(1) { "gift" } else { action };
        let quantity = if self.chance(1) { 1_000_000_000 } else { self.rng.random_range(1..5) };
        let mut data = format!("\"action\":\"{action}\",\"quantity\":{quantity}");
        if self.chance(70) {
            data += &format!(",\"user\":\"u-{}\"", self.rng.random_range(1..4));
        }
        if action == "phone" && self.chance(90) {
            data += &format!(",\"contact\":\"p{}\"", self.rng.random_range(0..12));
        }
        if self.chance(10) {
            data += ",\"outcome\":\"not_found\"";
        }
        if self.chance(20) {
            data += ",\"source\":\"premium\"";
        }
        let (id, time_ms) = (format!("e{}", self.lines), self.happened());
        if self.chance(90) {
            self.line("usage", (account, &id), time_ms, &data);
        }
        self.sent.push((account, id, time_ms, data));
    }

    fn of_before(&mut self) -> Option<(&'static str, String, i64, String)> {
        let (account, id, time_ms, data) = self.sent[self.sent.len().saturating_sub(25)..].choose(self.rng)?.clone();
        let moved_ms = match self.rng.random_range(0..10) {
            0..6 => 0,
            6..9 => self.rng.random_range(-TOLERANCE_MS..TOLERANCE_MS),
            _ => self.rng.random_range(-2 * DAY_MS..2 * DAY_MS),
        };
        Some((account, id, time_ms + moved_ms, data))
    }

    fn again(&mut self) {
        let Some((account, id, time_ms, data)) = self.of_before() else { return };
        self.line("usage", (account, &id), time_ms, &data);
    }

    fn void(&mut self) {
        let Some((account, id, time_ms, data)) = self.of_before() else { return };
        let own_ms = if self.chance(80) { self.now_ms } else { self.happened() };
        let named = format!("\"id\":\"{id}\",\"time\":\"{}\"", time_text(time_ms));
        // A data field of its own is named source, too.
        let data = data.replace(",\"source\":\"premium\"", "");
        let void = format!("v{}", self.lines);
        self.line("usage.void", (account, &void), own_ms, &format!("\"source\":\"s\",{named},{data}"));
    }
}
