//! Paced traffic with a table of its own: what was sent, and how each record must end. It shares nothing with the
//! meter but the price list.
//!
//! Accounts that can run dry keep to one partition, so that the log alone decides; the others are unlimited, and
//! their events come again in other partitions. Some have top-ups that burn first, and voids of what is charged once for a
//! contact, all of it in one partition too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdkafka::Message;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::kafka::{Outgoing, Topics, data, header, kind};
use super::meter::Meter;
use super::until;
use crate::voids::void;
use crate::walk::{outgoing, put, reveal, reveal_event};

/// Events a second, until another pace is asked for.
pub const PACE: u64 = 3_000;
const TICKS_A_SECOND: u64 = 50;
const WIDE_ACCOUNTS: u64 = 12;
/// Events of an account that can run dry, before the next account takes its turn.
const EVENTS_AN_ACCOUNT: u64 = 15;
/// How much later an event comes again, in events.
const AGAIN_AFTER_MAX: u64 = 3_000;
const NOT_JSON: &str = "not json";
const RETURNING_ACCOUNTS: u64 = 6;
const TOP_UPS: u64 = 5;
const TOP_UP: u64 = 40;
/// What each adjustment gives.
const ADJUSTMENT: u64 = 3;
/// Events before the next of those accounts takes its turn, and the contacts that a tenth of them is about.
const EVENTS_A_TURN: u64 = 300;
const CONTACTS_A_TURN: u64 = 15;
/// How much later a void comes than its event, in events.
const VOID_AFTER_MAX: u64 = 100;

pub struct Traffic {
    stop: Arc<AtomicBool>,
    pace: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    task: JoinHandle<Table>,
}

/// What was sent.
#[derive(Default)]
pub struct Table {
    /// By the event's id.
    events: HashMap<String, Sent>,
    /// By the void's id the event that it takes back.
    voids: HashMap<String, String>,
    /// What came to a returning account's allowance.
    bought: HashMap<String, u64>,
    /// The accounts that were put, with their plan.
    accounts: BTreeMap<String, Plan>,
    /// The partition of an account that keeps to one.
    homes: HashMap<String, i32>,
    not_json: u64,
    /// Whether every record can be judged, by commands that came before all of them.
    clean: bool,
}

#[derive(Clone)]
struct Sent {
    account: String,
    quantity: u64,
    dead: Option<&'static str>,
    /// The contact that is charged once.
    contact: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Unlimited,
    /// So many e-mail credits; what does not fit is denied.
    Reject(u64),
    /// What does not fit takes what is left.
    Cap(u64),
    /// It never runs dry; some of what it was charged is given back.
    Returning,
}

/// As tests/data/catalogue-independent.toml has them.
const TIGHT: Plan = Plan::Reject(30);
const CAPPED: Plan = Plan::Cap(50);
const RETURNING_ALLOWANCE: u64 = 1_000_000;

impl Plan {
    fn name(self) -> &'static str {
        match self {
            Plan::Unlimited => "organization",
            Plan::Reject(_) => "starter",
            Plan::Cap(_) => "capped",
            Plan::Returning => "returning",
        }
    }
}

impl Plan {
    /// The edges that an account has passed once so much is used, or an event was denied.
    fn alerts(self, account: &str, used: u64, denied: bool) -> Vec<(String, String, String)> {
        let (granted, thresholds): (u64, &[u64]) = match self {
            Plan::Unlimited | Plan::Returning => return Vec::new(),
            Plan::Reject(granted) => (granted, &[80]),
            Plan::Cap(granted) => (granted, &[80, 95]),
        };
        let low = thresholds.iter().filter(|percent| used * 100 >= granted * **percent);
        let mut alerts: Vec<_> = low.map(|percent| ("credits.low.v1", format!("{percent}%"))).collect();
        if used == granted || denied {
            alerts.push(("credits.exhausted.v1", "exhausted".to_owned()));
        }
        alerts.into_iter().map(|(kind, threshold)| (account.to_owned(), kind.to_owned(), threshold)).collect()
    }
}

/// How the records of a log must have ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    outcomes: BTreeMap<String, u64>,
    used: BTreeMap<String, u64>,
    /// id → account, reason, required, remaining, uncovered.
    denied: BTreeMap<String, (String, String, u64, u64, Option<u64>)>,
    /// Account, type and threshold: once each, since no balance rises.
    alerts: BTreeSet<(String, String, String)>,
    /// When the event was appended that has exhausted an account.
    exhausted: BTreeMap<String, i64>,
    /// partition and offset → reason.
    dead: BTreeMap<(i32, i64), String>,
    /// Ids of lines about voids.
    ledger: BTreeSet<String>,
}

impl Traffic {
    /// Sends until [`Traffic::end`].
    pub fn start(topics: &Arc<Topics>, seed: u64) -> Traffic {
        Traffic::start_with_accounts(topics, seed, 0)
    }

    /// Puts so many accounts of each kind beforehand, rather than each before its first event, and puts none later: they
    /// take their turns in a circle.
    pub fn start_with_accounts(topics: &Arc<Topics>, seed: u64, accounts: u64) -> Traffic {
        Traffic::start_from(topics, seed, accounts, 0)
    }

    /// The same, and every record can be judged (none is a dead letter), by the commands that came before all of them.
    pub fn start_clean(topics: &Arc<Topics>, seed: u64, accounts: u64) -> Traffic {
        Traffic::start_as(topics, seed, accounts, 0, true)
    }

    /// More traffic on the same topics, with events and accounts of its own.
    pub fn start_again(topics: &Arc<Topics>, seed: u64) -> Traffic {
        Traffic::start_from(topics, seed, 0, 1_000_000)
    }

    fn start_from(topics: &Arc<Topics>, seed: u64, accounts: u64, first: u64) -> Traffic {
        Traffic::start_as(topics, seed, accounts, first, false)
    }

    fn start_as(topics: &Arc<Topics>, seed: u64, accounts: u64, first: u64, clean: bool) -> Traffic {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pace = Arc::new(AtomicU64::new(PACE));
        let sender = Sender {
            topics: topics.clone(),
            rng: SmallRng::seed_from_u64(seed),
            table: Table { clean, ..Table::default() },
            number: first,
            put_before: accounts,
            again: Vec::new(),
            in_flight: Arc::default(),
            sent: sent.clone(),
            pace: pace.clone(),
        };
        Traffic { task: tokio::spawn(sender.run(stop.clone())), stop, sent, pace }
    }

    /// Records that Kafka has acknowledged.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Another pace from now on, in events a second.
    pub fn goes_at(&self, pace: u64) {
        self.pace.store(pace, Ordering::Relaxed);
    }

    pub async fn end(self) -> Table {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the traffic ends")
    }
}

struct Sender {
    topics: Arc<Topics>,
    rng: SmallRng,
    table: Table,
    number: u64,
    /// How many accounts of each kind that can run dry were put beforehand; 0: each is put before its first event.
    put_before: u64,
    /// Records to send once more, and before which event.
    again: Vec<(u64, Outgoing)>,
    in_flight: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    pace: Arc<AtomicU64>,
}

impl Sender {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Table {
        for account in 0..WIDE_ACCOUNTS {
            self.put(format!("wide-{account}"), Plan::Unlimited).await;
        }
        for account in 0..RETURNING_ACCOUNTS {
            self.put_returning(format!("returning-{account}")).await;
        }
        for number in 0..self.put_before {
            self.put(format!("tight-{number}"), TIGHT).await;
            self.put(format!("cap-{number}"), CAPPED).await;
        }
        let mut tick = tokio::time::interval(Duration::from_millis(1000 / TICKS_A_SECOND));
        // What a slow machine has missed is not made up for at once.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.load(Ordering::Relaxed) {
            tick.tick().await;
            for _ in 0..self.pace.load(Ordering::Relaxed) / TICKS_A_SECOND {
                self.one().await;
            }
        }
        for (_, record) in std::mem::take(&mut self.again) {
            self.send(record);
        }
        let in_flight = self.in_flight.clone();
        until("kafka has acknowledged all", || async { (in_flight.load(Ordering::Relaxed) == 0).then_some(()) }).await;
        self.table
    }

    async fn one(&mut self) {
        self.number += 1;
        let number = self.number;
        while let Some(due) = self.again.iter().position(|(before, _)| *before <= number) {
            let (_, record) = self.again.swap_remove(due);
            self.send(record);
        }
        let partitions = self.topics.partitions.load(Ordering::Relaxed);
        let id = format!("e{number}");
        let mut anywhere = self.rng.random_range(0..partitions);
        let (account, quantity, dead) = match number % 400 {
            7 | 107 | 207 if self.table.clean => (format!("wide-{}", self.rng.random_range(0..WIDE_ACCOUNTS)), 1, None),
            7 => ("wide-0".to_owned(), 1, Some("unknown_action")),
            107 => (format!("ghost-{number}"), 1, Some("unknown_account")),
            207 => return self.send_not_json(anywhere),
            each if each % 10 == 1 => self.dry("tight", TIGHT, 5).await,
            each if each % 10 == 2 => self.dry("cap", CAPPED, 8).await,
            13 if !self.table.clean => return self.adjust().await,
            each if each % 10 == 3 => return self.returning(id),
            _ => (format!("wide-{}", self.rng.random_range(0..WIDE_ACCOUNTS)), 1, None),
        };
        let wide = account.starts_with("wide");
        if !wide {
            anywhere = *self.table.homes.entry(account.clone()).or_insert(anywhere);
        }
        let mut record = reveal(&account, &id, quantity);
        if dead == Some("unknown_action") {
            let mut event = reveal_event(&account, &id, quantity);
            event["data"]["action"] = json!("guess");
            record.value = Some(event.to_string().into_bytes());
        }
        record.partition = anywhere;
        self.table.events.insert(id, Sent { account, quantity, dead, contact: None });
        if self.rng.random_bool(0.1) {
            let mut copy = record.clone();
            if wide {
                copy.partition = (anywhere + 1) % partitions;
            }
            self.again.push((number + self.rng.random_range(0..AGAIN_AFTER_MAX), copy));
        }
        self.send(record);
    }

    /// A returning account's event, which is charged once for its contact. Some come again, some are taken back, once or twice
    /// and a few before they come.
    fn returning(&mut self, id: String) {
        let turn = self.number / EVENTS_A_TURN;
        let account = self.whose_turn();
        let quantity = self.rng.random_range(1..=3);
        let contact = format!("{turn}-{}", self.rng.random_range(0..CONTACTS_A_TURN));
        let mut event = reveal_event(&account, &id, quantity);
        event["data"]["action"] = json!("reveal_direct");
        event["data"]["contact"] = json!(contact);
        let anywhere = self.rng.random_range(0..self.topics.partitions.load(Ordering::Relaxed));
        let partition = *self.table.homes.entry(account.clone()).or_insert(anywhere);
        let of = |event: &Value| Outgoing { partition, ..outgoing(event) };
        let record = of(&event);
        if self.rng.random_bool(0.1) {
            self.again.push((self.number + self.rng.random_range(0..AGAIN_AFTER_MAX), record.clone()));
        }
        let voids = [0.05, 0.4, 0.1].map(|odds| self.rng.random_bool(odds));
        for (index, _) in voids.into_iter().enumerate().filter(|(_, sent)| *sent) {
            let void_id = format!("v{index}-{id}");
            let record = of(&void(&event, &void_id));
            self.table.voids.insert(void_id, id.clone());
            match index {
                0 => self.send(record),
                _ => self.again.push((self.number + self.rng.random_range(1..VOID_AFTER_MAX), record)),
            }
        }
        self.table.events.insert(id, Sent { account, quantity, dead: None, contact: Some(contact) });
        self.send(record);
    }

    fn whose_turn(&self) -> String {
        format!("returning-{}", self.number / EVENTS_A_TURN % RETURNING_ACCOUNTS)
    }

    /// Gives some credits in between, so that what was used before is settled.
    async fn adjust(&mut self) {
        let account = self.whose_turn();
        let given = json!({ "credit_type": "email", "amount": ADJUSTMENT, "reason": "goodwill" });
        self.buy(&account, "credits.adjust.v1", ADJUSTMENT, &format!("adjust-{}", self.number), given).await;
    }

    async fn put_returning(&mut self, account: String) {
        self.put(account.clone(), Plan::Returning).await;
        for top_up in 0..TOP_UPS {
            // They burn before the allowance.
            let given = json!({ "credit_type": "email", "amount": TOP_UP, "kind": "topup", "priority": top_up });
            self.buy(&account, "credits.grant.v1", TOP_UP, &format!("top-up-{top_up}-{account}"), given).await;
        }
    }

    async fn buy(&mut self, account: &str, kind: &str, amount: u64, id: &str, given: Value) {
        let mut command = put(account, "");
        (command["id"], command["type"], command["data"]) = (json!(id), json!(kind), given);
        self.topics.command(&command).await;
        *self.table.bought.entry(account.to_owned()).or_insert(0) += amount;
    }

    /// The account whose turn it is; a new one is put before its first event.
    async fn dry(&mut self, kind: &str, plan: Plan, quantity_max: u64) -> (String, u64, Option<&'static str>) {
        let turn = self.number / (10 * EVENTS_AN_ACCOUNT);
        let account = format!("{kind}-{}", turn.checked_rem(self.put_before).unwrap_or(turn));
        if !self.table.accounts.contains_key(&account) {
            self.put(account.clone(), plan).await;
        }
        (account, self.rng.random_range(1..=quantity_max), None)
    }

    async fn put(&mut self, account: String, plan: Plan) {
        self.topics.command(&put(&account, plan.name())).await;
        self.table.accounts.insert(account, plan);
    }

    fn send_not_json(&mut self, partition: i32) {
        self.table.not_json += 1;
        let value = format!("{NOT_JSON} {}", self.number).into_bytes();
        self.send(Outgoing { partition, key: Some(b"wide-1".to_vec()), value: Some(value), ..Outgoing::default() });
    }

    fn send(&self, record: Outgoing) {
        let (topics, in_flight, sent) = (self.topics.clone(), self.in_flight.clone(), self.sent.clone());
        in_flight.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            topics.send("usage", &record).await;
            sent.fetch_add(1, Ordering::Relaxed);
            in_flight.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// What the traffic came to, all of it as its table says.
pub struct Seen {
    pub records: u64,
    outcomes: BTreeMap<String, u64>,
    denials: usize,
    alerts: usize,
    /// Denials that were published more than once, each time in the same message.
    again: usize,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Seen { records, outcomes, denials, alerts, again } = self;
        let outcomes: Vec<_> = outcomes.iter().map(|(name, records)| format!("{records} {name}")).collect();
        write!(
            out,
            "{records} records ({}), difference 0, audited; {denials} denials and {alerts} alerts as expected",
            outcomes.join(", ")
        )?;
        if *again > 0 { write!(out, " ({again} published again, under the same id)") } else { Ok(()) }
    }
}

impl Table {
    pub fn accounts(&self) -> u64 {
        self.accounts.len() as u64
    }

    /// Waits until everything is applied and published, then compares balances, totals, denials and dead letters.
    pub async fn check(&self, topics: &Topics, meter: &Meter) -> Seen {
        meter.caught_up(topics).await;
        meter.published().await;
        let expected = self.fold(topics);

        let totals = meter.totals("usage").await;
        let outcomes: BTreeMap<String, u64> =
            totals.into_iter().map(|(outcome, records)| (outcome.name().to_owned(), records)).collect();
        assert_eq!(outcomes, expected.outcomes, "the totals are those of the table");
        for (account, plan) in &self.accounts {
            let state = meter.store.account(account).await.expect("redis answers");
            let state = state.unwrap_or_else(|| panic!("{account} was put"));
            let counter = state.counters.iter().find(|(name, _)| name == "email").map(|(_, counter)| *counter);
            let counter = counter.unwrap_or_default();
            let used = expected.used.get(account).copied().unwrap_or(0);
            assert_eq!(counter.charged.to_string(), used.to_string(), "{account} ({plan:?})");
            if *plan == Plan::Returning {
                let granted = RETURNING_ALLOWANCE + self.bought[account];
                let left = counter.remaining().expect("it is limited");
                assert_eq!(left.to_string(), (granted - used).to_string(), "{account}, {granted} granted");
            }
        }
        // What people see is the same.
        let balance = meter.json(&["balance", "wide-0", "--json"]);
        assert_eq!(balance["balances"]["email"]["used"], json!(expected.used["wide-0"]));
        let (denials, again) = check_denials(topics, &expected);
        let alerts = check_alerts(topics, &expected);
        check_dead_letters(topics, &expected);
        check_ledger(topics, &expected);
        let records: u64 = expected.outcomes.values().sum();
        assert_eq!(meter.audit()["records"], json!(records), "the audit agrees");
        Seen { records, outcomes, denials, alerts, again }
    }

    /// For each account that was exhausted the milliseconds from the append of the event that did it to the append of
    /// the alert, in their order.
    pub fn alert_latencies(&self, topics: &Topics) -> Vec<i64> {
        let mut expected = self.fold(topics).exhausted;
        let alerts = topics.read("alerts", 1).into_iter().filter(|alert| kind(alert) == "credits.exhausted.v1");
        let mut latencies: Vec<i64> = alerts
            .filter_map(|alert| {
                let event: Value = serde_json::from_slice(alert.payload()?).ok()?;
                Some(alert.timestamp().to_millis()? - expected.remove(event["subject"].as_str()?)?)
            })
            .collect();
        assert!(expected.is_empty(), "accounts without an alert: {expected:?}");
        latencies.sort_unstable();
        latencies
    }

    /// Goes through the log, partition by partition.
    fn fold(&self, topics: &Topics) -> Expected {
        let mut expected = Expected::default();
        let mut seen = BTreeSet::new();
        let (mut charges, mut voids, mut voided) = (HashMap::new(), BTreeSet::new(), HashMap::new());
        // Contacts that were charged for.
        let mut marked = BTreeSet::new();
        let mut not_json = 0;
        for message in topics.read("usage", topics.partitions.load(Ordering::Relaxed)) {
            let at = (message.partition(), message.offset());
            let value = message.payload().expect("a value");
            let mut count = |outcome: &str| *expected.outcomes.entry(outcome.to_owned()).or_insert(0) += 1;
            if value.starts_with(NOT_JSON.as_bytes()) {
                not_json += 1;
                count("dead_lettered");
                expected.dead.insert(at, "invalid_json".to_owned());
                continue;
            }
            let event: Value = serde_json::from_slice(value).expect("JSON");
            let id = event["id"].as_str().expect("an id").to_owned();
            if let Some(event_id) = self.voids.get(&id) {
                voids.insert(id);
                if voided.contains_key(event_id) {
                    count("duplicate");
                    continue;
                }
                count("voided");
                let charge = charges.remove(event_id);
                voided.insert(event_id.clone(), charge.is_some());
                let came_of_it = if charge.is_some() { "refund" } else { "waits" };
                expected.ledger.insert(format!("{}/{}/{}/{came_of_it}", topics.name("usage"), at.0, at.1));
                if let Some(charge) = charge {
                    let Sent { account, contact, .. } = &self.events[event_id];
                    *expected.used.get_mut(account).expect("it was charged") -= charge;
                    marked.remove(contact.as_ref().expect("a contact"));
                }
                continue;
            }
            let Sent { account, quantity, dead, contact } = self.events.get(&id).expect("it was sent").clone();
            if let Some(reason) = dead {
                count("dead_lettered");
                expected.dead.insert(at, reason.to_owned());
                seen.insert(id);
                continue;
            }
            if !seen.insert(id.clone()) {
                count("duplicate");
                continue;
            }
            if let Some(contact) = contact {
                if marked.contains(&contact) {
                    count("free");
                } else if voided.get(&id) == Some(&false) {
                    count("voided");
                } else {
                    count("charged");
                    *expected.used.entry(account).or_insert(0) += quantity;
                    charges.insert(id.clone(), quantity);
                    marked.insert(contact);
                }
                continue;
            }
            let used = expected.used.entry(account.clone()).or_insert(0);
            let denial = |reason: &str, remaining: u64, uncovered: Option<u64>| {
                (account.clone(), reason.to_owned(), quantity, remaining, uncovered)
            };
            match self.accounts[&account] {
                Plan::Reject(granted) if *used + quantity > granted => {
                    count("denied");
                    expected.denied.insert(id.clone(), denial("insufficient_credits", granted - *used, None));
                }
                Plan::Cap(granted) if *used + quantity > granted => {
                    count("capped");
                    let remaining = granted - *used;
                    expected.denied.insert(id.clone(), denial("capped", remaining, Some(quantity - remaining)));
                    *used = granted;
                }
                Plan::Unlimited | Plan::Reject(_) | Plan::Cap(_) | Plan::Returning => {
                    count("charged");
                    *used += quantity;
                }
            }
            let denied = expected.denied.contains_key(&id);
            let alerts = self.accounts[&account].alerts(&account, *used, denied);
            if alerts.iter().any(|(_, kind, _)| kind == "credits.exhausted.v1") {
                let append_ms = message.timestamp().to_millis().expect("kafka stamps records");
                expected.exhausted.entry(account).or_insert(append_ms);
            }
            expected.alerts.extend(alerts);
        }
        assert_eq!(seen.len(), self.events.len(), "kafka holds every event that it has acknowledged");
        assert_eq!(voids.len(), self.voids.len(), "and every void");
        assert!(not_json >= self.not_json, "and every record that is none");
        let outcomes = if self.clean { 6 } else { 7 };
        assert!(expected.outcomes.len() >= outcomes, "every outcome is there: {:?}", expected.outcomes);
        expected
    }
}

/// Every denial is published, with its own amounts; gives how many there are, and how many came more than once.
fn check_denials(topics: &Topics, expected: &Expected) -> (usize, usize) {
    let mut denied = BTreeMap::new();
    let mut again = 0;
    // A receiver that drops messages whose id it has seen.
    let mut messages = BTreeSet::new();
    let mut received: BTreeMap<String, String> = BTreeMap::new();
    for message in topics.read("denied", 1) {
        let event: Value = serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
        let denial = data(&message);
        let message_id = event["id"].as_str().expect("an id").to_owned();
        let first = messages.insert(message_id.clone());
        for each in denial["events"].as_array().expect("events") {
            let number = |name: &str| each[name].as_u64().expect("a whole amount");
            let told = (
                event["subject"].as_str().expect("an account").to_owned(),
                denial["reason"].as_str().expect("a reason").to_owned(),
                number("required"),
                number("remaining"),
                each["uncovered"].as_u64(),
            );
            let id = each["id"].as_str().expect("an id").to_owned();
            if first && let Some(other) = received.insert(id.clone(), message_id.clone()) {
                panic!("{id} is told by {other} and by {message_id}");
            }
            if let Some(before) = denied.insert(id.clone(), told.clone()) {
                again += 1;
                assert_eq!(before, told, "{id} is told the same each time");
            }
        }
    }
    for (id, told) in &expected.denied {
        assert_eq!(denied.get(id), Some(told), "{id} is denied as the table says");
    }
    assert_eq!(denied.len(), expected.denied.len(), "nothing else is denied");
    let missed: Vec<_> = denied.keys().filter(|id| !received.contains_key(*id)).collect();
    assert!(missed.is_empty(), "a receiver that drops repeated messages misses {missed:?}");
    (denied.len(), again)
}

/// Every edge is told, nothing else, and again only under the same id. Gives how many there are.
fn check_alerts(topics: &Topics, expected: &Expected) -> usize {
    let mut told = BTreeMap::new();
    for message in topics.read("alerts", 1) {
        let event: Value = serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let edge = (text(&event["subject"]), text(&event["type"]), text(&data(&message)["threshold"]));
        let id = text(&event["id"]);
        if let Some(before) = told.insert(edge.clone(), id.clone()) {
            assert_eq!(before, id, "{edge:?} is told under one id");
        }
    }
    let told: BTreeSet<_> = told.into_keys().collect();
    let (missed, unfounded): (Vec<_>, Vec<_>) =
        (expected.alerts.difference(&told).collect(), told.difference(&expected.alerts).collect());
    assert!(missed.is_empty() && unfounded.is_empty(), "alerts: missed {missed:?}, unfounded {unfounded:?}");
    told.len()
}

/// Every record that is dead has a letter with its reason.
/// Every command is answered, and every void told of, at least once.
fn check_ledger(topics: &Topics, expected: &Expected) {
    let commands = topics.read("commands", 1).into_iter().map(|command| format!("command/{}", command.offset()));
    let mut missing: BTreeSet<String> = commands.chain(expected.ledger.iter().cloned()).collect();
    for line in topics.read("ledger", 1) {
        let line: Value = serde_json::from_slice(line.payload().expect("a value")).expect("JSON");
        missing.remove(line["id"].as_str().expect("an id"));
    }
    assert!(missing.is_empty(), "lines of the ledger that are not there: {missing:?}");
}

fn check_dead_letters(topics: &Topics, expected: &Expected) {
    let mut letters = BTreeMap::new();
    for letter in topics.read("dead-letter", 1) {
        let number = |name: &str| header(&letter, name).expect("a header").parse::<i64>().expect("a number");
        let at = (number("__connect.errors.partition") as i32, number("__connect.errors.offset"));
        let reason = header(&letter, "__connect.errors.exception.class.name").expect("a reason");
        letters.insert(at, reason);
    }
    assert_eq!(letters, expected.dead, "each dead record has its letter, and no other has one");
}
