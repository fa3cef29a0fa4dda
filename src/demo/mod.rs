//! The demo: a whole meter in one process, with nothing installed.
//!
//! A mock broker inside librdkafka stands in for Kafka, the ledger in memory for Redis. The traffic keeps its own
//! sums, and the demo ends by holding the meter's balances against them.

/// The teams, what they do, and what that must come to.
mod traffic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chrono::Utc;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::Job;
use crate::config::{AgeFrom, Config};
use crate::http::{self, Health};
use crate::ingest::mock::MockBroker;
use crate::ingest::producer::{Outgoing, Producer};
use crate::ledger::call::Input;
use crate::ledger::catalogue::Catalogue;
use crate::ledger::outcome::Outcome;
use crate::note;
use crate::store::{MemoryStore, Store};
use traffic::{Expected, Traffic};

const CATALOGUE: &str = include_str!("catalogue.toml");
const USAGE_PARTITIONS: i32 = 4;
const SHARDS: u32 = 4;
/// Well below what the meter can do: the mock broker forgets what is not read within 5 MiB a partition.
const EVENTS_PER_SECOND: u64 = 4_000;
/// The traffic comes in ticks of this length.
const TICK: Duration = Duration::from_millis(20);
/// How long the meter may take to come to an end with what was sent.
const SETTLE_WAIT: Duration = Duration::from_secs(60);

const CLOSING_WORDS: &str = r#"
This was a demo: the broker was a mock and the store was in memory, so nothing of it is left.
On real Kafka and Redis:

  cargo build --release && export PATH=$PWD/target/release:$PATH
  eval "$(docker/services up --install | sed 's/^/export /')"
  export CREDIT_METER__KAFKA__BROKERS=$KAFKA_BROKERS CREDIT_METER__REDIS__URL=$REDIS_URL
  credit-meter check --create-topics
  credit-meter serve &
  credit-meter account put acme --plan basic --anchor 2026-01-31
  credit-meter load --generate 100000 --accounts 100 --put-accounts basic
  credit-meter balance acme
"#;

pub struct DemoOptions {
    pub for_: Duration,
    pub seed: u64,
}

/// Runs the demo; an error if the meter's numbers are not those of the traffic. `answer` gets what it came to, for programs
/// and for people.
pub async fn run(
    options: DemoOptions,
    answer: impl FnOnce(&Value, String) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let topics = Config::default().kafka.topics;
    let broker = MockBroker::start(&[
        (&topics.usage, USAGE_PARTITIONS),
        (&topics.commands, 1),
        (&topics.denied, 1),
        (&topics.ledger, 1),
        (&topics.ticks, 1),
        (&topics.dead_letter, 1),
    ])?;
    let config = config(broker.brokers());
    let store = Store::Memory(MemoryStore::new(SHARDS));
    let (health, stop) = (Arc::new(Health::new()), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    note!("credit-meter demo: a mock broker and a store in memory, for {:?}", options.for_);
    note!("metrics while it runs: http://{}/metrics", listener.local_addr()?);
    let connections_max = config.http.connections_max;
    let http = tokio::spawn(http::serve(listener, health.clone(), None, connections_max, stop.clone()));
    let catalogue = Catalogue::parse(CATALOGUE).context("the demo's catalogue")?;
    let (in_force, _) = watch::channel(Arc::new(catalogue));
    let meter = tokio::spawn(crate::app::run(config.clone(), in_force, Job::Demo, store.clone(), health, stop.clone()));

    let producer = Producer::new(&config.kafka)?;
    let started = Instant::now();
    let expected = tokio::select! {
        expected = generate(&options, &config, &producer, &store) => expected?,
        _ = tokio::signal::ctrl_c() => bail!("stopped before its end: nothing was compared"),
    };
    let seconds = started.elapsed().as_secs_f64();
    let seen = settle(&store, &expected).await;
    let result = compare(&store, &expected).await?;
    stop.cancel();
    meter.await.context("the meter")??;
    http.await.context("the http server")?;
    drop(broker);

    note!("{CLOSING_WORDS}");
    let (document, text) = report(&seen, &result, seconds);
    answer(&document, text)?;
    if result.mismatches.is_empty() && seen.agrees(&expected) {
        return Ok(());
    }
    bail!("the meter's numbers are not the traffic's: expected {expected:?}; {}", result.mismatches.join("; "))
}

fn config(brokers: String) -> Config {
    let mut config = Config::default();
    config.kafka.brokers = brokers;
    // The mock broker stamps nothing itself.
    config.events.age_from = AgeFrom::Create;
    config.redis.prefix = "demo".into();
    config.redis.shards = SHARDS;
    config
}

/// Sends the teams' commands, then their traffic, paced.
async fn generate(
    options: &DemoOptions,
    config: &Config,
    producer: &Producer,
    store: &Store,
) -> anyhow::Result<Expected> {
    let topics = &config.kafka.topics;
    let anchor = (Utc::now() - chrono::Duration::days(10)).date_naive().to_string();
    for (team, command) in Traffic::commands(&anchor, &Utc::now().to_rfc3339()) {
        send(producer, &topics.commands, team, &command).await?;
    }
    let mut traffic = Traffic::new(options.seed);
    let mut tick = tokio::time::interval(TICK);
    let started = Instant::now();
    let mut told_at = Instant::now();
    while started.elapsed() < options.for_ {
        tick.tick().await;
        let due = (started.elapsed().as_secs_f64() * EVENTS_PER_SECOND as f64) as u64;
        let mut acknowledgements = Vec::new();
        while traffic.expected.sent < due {
            let record = traffic.next(Utc::now().timestamp_millis());
            let outgoing = outgoing(&topics.usage, record.key, &record.value);
            acknowledgements.push(producer.enqueue(outgoing).await?);
        }
        for acknowledgement in acknowledgements {
            acknowledgement.await.context("the mock broker did not take an event")?;
        }
        if told_at.elapsed() > Duration::from_secs(2) {
            told_at = Instant::now();
            let seen = Seen::of(store).await?;
            let left = options.for_.saturating_sub(started.elapsed()).as_secs();
            note!("{} events read, {} charged, {} denied, {left} s to go", seen.read, seen.charged, seen.denied);
        }
    }
    Ok(traffic.expected)
}

async fn send(producer: &Producer, topic: &str, key: &str, value: &str) -> anyhow::Result<()> {
    producer.send(outgoing(topic, key, value)).await.context("the mock broker did not take a command")?;
    Ok(())
}

fn outgoing<'a>(topic: &'a str, key: &'a str, value: &'a str) -> Outgoing<'a> {
    Outgoing { topic, key: Some(key.as_bytes()), value: Some(value.as_bytes()), ..Outgoing::default() }
}

/// What the meter has counted.
#[derive(Debug, Default)]
struct Seen {
    read: u64,
    charged: u64,
    free: u64,
    duplicates: u64,
    denied: u64,
    dead_lettered: u64,
}

impl Seen {
    async fn of(store: &Store) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        for shard in 0..SHARDS {
            for (partition, outcome, records) in store.shard_state(shard).await?.totals {
                if partition.input == Input::Usage {
                    seen.add(outcome, records);
                }
            }
        }
        Ok(seen)
    }

    fn add(&mut self, outcome: Outcome, records: u64) {
        self.read += records;
        match outcome {
            Outcome::Charged | Outcome::Capped => self.charged += records,
            Outcome::Free => self.free += records,
            Outcome::Duplicate => self.duplicates += records,
            Outcome::Denied => self.denied += records,
            Outcome::DeadLettered => self.dead_lettered += records,
            Outcome::Voided | Outcome::Applied | Outcome::Refused => {}
        }
    }

    fn agrees(&self, expected: &Expected) -> bool {
        let seen = [self.read, self.charged, self.free, self.duplicates, self.denied, self.dead_lettered];
        let Expected { sent, charged, free, duplicates, denied, dead_lettered, used: _ } = expected;
        seen == [*sent, *charged, *free, *duplicates, *denied, *dead_lettered]
    }
}

/// Waits until all that was sent is counted.
async fn settle(store: &Store, expected: &Expected) -> Seen {
    let deadline = Instant::now() + SETTLE_WAIT;
    loop {
        let seen = Seen::of(store).await.unwrap_or_default();
        if seen.read >= expected.sent || Instant::now() > deadline {
            return seen;
        }
        tokio::time::sleep(TICK).await;
    }
}

struct Comparison {
    accounts: usize,
    mismatches: Vec<String>,
}

/// Holds the meter's balances against the traffic's sums.
async fn compare(store: &Store, expected: &Expected) -> anyhow::Result<Comparison> {
    let mut mismatches = Vec::new();
    for team in Traffic::teams() {
        let account = store.account(team).await?;
        let counters: BTreeMap<_, _> =
            account.map(|account| account.counters.into_iter().collect()).unwrap_or_default();
        for (&(_, credit_type), &thousandths) in expected.used.iter().filter(|((name, _), _)| *name == team) {
            let used = counters.get(credit_type).map_or(0, |counter| counter.balance().used.thousandths());
            if u64::try_from(used) != Ok(thousandths) {
                mismatches.push(format!("{team} {credit_type}: used {used}, expected {thousandths} thousandths"));
            }
        }
    }
    Ok(Comparison { accounts: Traffic::teams().count(), mismatches })
}

fn report(seen: &Seen, result: &Comparison, seconds: f64) -> (Value, String) {
    let per_second = (seen.read as f64 / seconds).round();
    let document = json!({
        "events_read": seen.read, "charged": seen.charged, "free": seen.free, "duplicates": seen.duplicates,
        "denied": seen.denied, "dead_lettered": seen.dead_lettered, "accounts": result.accounts,
        "events_per_second": per_second,
        "check": { "accounts_checked": result.accounts, "mismatches": result.mismatches.len() },
    });
    let text = format!(
        "{} events read ({per_second} a second): {} charged, {} free, {} duplicates, {} denied, {} dead-lettered\n\
         {} accounts checked against the traffic's own sums: {} mismatches",
        seen.read,
        seen.charged,
        seen.free,
        seen.duplicates,
        seen.denied,
        seen.dead_lettered,
        result.accounts,
        result.mismatches.len(),
    );
    (document, text)
}
