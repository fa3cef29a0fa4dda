//! Paced traffic with a table of its own: what was sent, and how each record must end. It shares nothing with the
//! meter but the price list.
//!
//! Accounts that can run dry keep to one partition, so that the log alone decides; the others are unlimited, and
//! their events come again in other partitions. Some have top-ups that burn first, and voids of what is charged once for a
//! contact, all of it in one partition too.

mod check;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::kafka::{Outgoing, Topics};
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
