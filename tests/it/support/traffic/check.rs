//! How the traffic must have ended, by its own table, and whether it did.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use rdkafka::Message;
use serde_json::{Value, json};

use super::{NOT_JSON, Plan, RETURNING_ALLOWANCE, Sent, Table};
use crate::support::kafka::{Topics, data, header, kind};
use crate::support::meter::Meter;

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
