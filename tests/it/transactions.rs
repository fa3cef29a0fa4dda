//! Producers that write in transactions: what was not committed does not exist, and what stands in the log between records
//! holds nothing up.

use std::time::Duration;

use credit_meter::ledger::call::Partition;
use credit_meter::ledger::outcome::Outcome;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::json;

use crate::redis_answers::unready;
use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running};
use crate::support::redis::OwnRedis;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

const PARTITIONS: i32 = 2;
const WITHIN: Duration = Duration::from_secs(60);

/// A producer that writes nothing but transactions.
struct Transactional<'a> {
    topics: &'a Topics,
    producer: BaseProducer,
}

impl Transactional<'_> {
    fn new<'a>(topics: &'a Topics, name: &str, timeout_ms: u32) -> Transactional<'a> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &topics.brokers).set("transactional.id", format!("{}-{name}", topics.prefix));
        config.set("transaction.timeout.ms", timeout_ms.to_string());
        let producer: BaseProducer = config.create().expect("a producer");
        producer.init_transactions(WITHIN).expect("kafka knows it");
        Transactional { topics, producer }
    }

    /// Usage of one account, spread over the partitions.
    fn begin(&self, ids: impl IntoIterator<Item = String>) {
        self.producer.begin_transaction().expect("a transaction begins");
        for (number, id) in ids.into_iter().enumerate() {
            let record = reveal("acme", &id, 1);
            self.send("usage", number as i32 % PARTITIONS, &record.value.expect("a value"));
        }
        self.producer.flush(WITHIN).expect("kafka takes them");
    }

    fn send(&self, role: &str, partition: i32, value: &[u8]) {
        let topic = self.topics.name(role);
        let outgoing: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&topic).partition(partition).key(&b"acme"[..]).payload(value);
        self.producer.send(outgoing).map_err(|(error, _)| error).expect("it is queued");
    }

    fn commit(&self) {
        self.producer.commit_transaction(WITHIN).expect("it is committed");
    }

    fn abort(&self) {
        self.producer.abort_transaction(WITHIN).expect("it is aborted");
    }
}

fn ids(transaction: &str, count: u32) -> Vec<String> {
    (0..count).map(|number| format!("{transaction}-{number}")).collect()
}

async fn meter_time(running: &Running) -> Option<f64> {
    let (_, page) = running.get("/metrics").await?;
    page.lines().find_map(|line| line.strip_prefix("credit_meter_meter_time_seconds ")?.parse().ok())
}

async fn charged(meter: &Meter) -> u64 {
    meter.totals("usage").await.get(&Outcome::Charged).copied().unwrap_or(0)
}

/// Once it is told of all partitions.
async fn lag(running: &Running, topics: &Topics) -> Option<u64> {
    let (_, page) = running.get("/metrics").await?;
    let of = |partition| {
        let labels = format!("{{partition=\"{partition}\",topic=\"{}\"}} ", topics.name("usage"));
        let name = format!("credit_meter_lag_records{labels}");
        page.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
    };
    (0..PARTITIONS).map(of).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_aborted_is_not_charged_and_markers_hold_nothing_up() {
    let mut redis = OwnRedis::start(&[]);
    let topics = Topics::create("transactions", PARTITIONS).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    meter.set("TIME__TICK_EVERY", "200ms");
    topics.command(&put("acme", "organization")).await;
    // The log begins with what nobody is given.
    let one = Transactional::new(&topics, "one", 60_000);
    one.begin(ids("never", 10));
    one.abort();
    let running = meter.start(&[]);
    running.ready().await;
    let other = Transactional::new(&topics, "other", 60_000);
    for round in 0..20 {
        // Two at a time, of which one is aborted, with a producer beside them that knows no transactions.
        one.begin(ids(&format!("kept-{round}"), 7));
        other.begin(ids(&format!("dropped-{round}"), 5));
        let mut plain = reveal("acme", &format!("plain-{round}"), 1);
        plain.partition = round % PARTITIONS;
        topics.send("usage", &plain).await;
        if round % 2 == 0 {
            one.commit();
            other.abort();
        } else {
            other.abort();
            one.commit();
        }
    }
    // An aborted one comes last: after it there is no record for the meter.
    one.begin(ids("last", 10));
    one.abort();
    meter.caught_up(&topics).await;
    let expected = 20 * 7 + 20;
    assert_eq!(meter.totals("usage").await, [(Outcome::Charged, expected)].into());
    until("nothing waits", || async { lag(&running, &topics).await.filter(|lag| *lag == 0) }).await;
    let time = meter_time(&running).await;
    until("time goes on", || async { meter_time(&running).await.filter(|now| Some(*now) > time) }).await;
    assert_eq!(meter.audit()["mismatches"], json!(0));

    // Whoever comes next finds its place between the markers, after a crash of Redis too.
    drop(running);
    redis.kill();
    redis.start_again(&[]);
    redis.connection().await;
    let running = meter.start(&[]);
    running.ready().await;
    one.begin(ids("more", 6));
    one.commit();
    meter.caught_up(&topics).await;
    assert_eq!(charged(&meter).await, expected + 6);
    running.ready().await;

    // Commands too: that all of them are read is what usage of an account waits for that is not there.
    one.producer.begin_transaction().expect("a transaction begins");
    one.send("commands", 0, put("late", "organization").to_string().as_bytes());
    one.commit();
    let number = topics.send("usage", &reveal("late", "late", 1)).await;
    topics.send("usage", &reveal("nobody", "unknown", 1)).await;
    meter.caught_up(&topics).await;
    let totals = meter.totals("usage").await;
    assert_eq!((totals[&Outcome::Charged], totals[&Outcome::DeadLettered]), (expected + 7, 1), "from {number} on");

    // And a rebuild, from a log of the same gaps.
    assert!(running.terminate().await.success());
    let totals = meter.totals("usage").await;
    let _: () = redis.tell(&["FLUSHALL"]).await;
    meter.json(&["rebuild", "--json"]);
    assert_eq!(meter.totals("usage").await, totals);
    assert_eq!(meter.audit()["mismatches"], json!(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_hangs_holds_up_what_comes_behind_it_and_is_told() {
    let topics = Topics::create("hanging", PARTITIONS).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("HEALTH__STALL_AFTER", "5s");
    topics.command(&put("acme", "organization")).await;
    let running = meter.start(&[]);
    running.ready().await;
    // Its producer dies: the brokers abort it after the time that it asked for.
    let hanging = Transactional::new(&topics, "hanging", 20_000);
    hanging.begin(ids("never", 2));
    std::mem::forget(hanging.producer);
    let mut behind = reveal("acme", "behind", 1);
    for partition in 0..PARTITIONS {
        behind.partition = partition;
        topics.send("usage", &behind).await;
    }
    until("it is told", || async { lag(&running, &topics).await.filter(|lag| *lag > 0) }).await;
    assert_eq!(charged(&meter).await, 0);
    unready(&running, &["[-]progress", "a producer has not ended its transaction in", &topics.name("usage")]).await;
    until("the brokers give it up", || async { (charged(&meter).await == 1).then_some(()) }).await;
    until("nothing waits", || async { lag(&running, &topics).await.filter(|lag| *lag == 0) }).await;
    running.ready().await;
    assert_eq!(meter.applied(Partition::usage(0)).await, topics.ends("usage", PARTITIONS)[0]);
    meter.audit();
}
