//! A network to Kafka that is slow, silent, cut, sliced or one-way, while the broker itself is well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::Message;
use serde_json::Value;

use super::PARTITIONS;
use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running};
use crate::support::proxied_kafka::ProxiedKafka;
use crate::support::proxy::Proxy;
use crate::support::report::{row, short_or_long};
use crate::support::traffic::Traffic;
use crate::support::{service, until};
use crate::walk::CATALOGUE;

const BYTES_AT_ONCE: usize = 7;
const CALLS: &str = "credit_meter_call_duration_seconds_count";

async fn under_load(kafka: &ProxiedKafka, test: &str, seed: u64) -> (Arc<Topics>, Meter, Traffic) {
    let topics = Arc::new(Topics::create_in(&kafka.plain(), test, PARTITIONS).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("LOG__FILTER", "error");
    // Ten seconds by default.
    meter.set("KAFKA__PROPERTIES__RECONNECT_BACKOFF_MAX_MS", "1000");
    let traffic = Traffic::start(&topics, seed);
    (topics, meter, traffic)
}

/// Ids of what Kafka holds though the outboxes do not know it yet.
async fn unacknowledged(topics: &Topics, meter: &Meter) -> usize {
    let waiting = meter.waiting_messages().await;
    let mut held = BTreeSet::new();
    for role in ["denied", "alerts", "ledger", "cycles"] {
        for message in topics.read(role, 1) {
            let event: Value = serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
            held.insert(event["id"].as_str().expect("an id").to_owned());
        }
    }
    waiting.intersection(&held).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_to_kafka_is_slow_sliced_silent_one_way_and_reset() {
    let kafka = ProxiedKafka::start().await;
    let way = &kafka.ways[0];
    let (topics, meter, traffic) = under_load(&kafka, "network", 10).await;
    let running = meter.start(&[("KAFKA__BROKERS", &way.address)]);
    meter.applies(1_000).await;
    let records = short_or_long(1_000, 60_000);

    let delay = Duration::from_millis(200);
    way.delay(delay);
    meter.applies(records).await;
    way.delay(Duration::ZERO);

    way.slice(BYTES_AT_ONCE);
    meter.applies(records).await;
    way.slice(usize::MAX);

    // Connections stay, and nothing comes: at first the session ends.
    way.hold();
    let lost = running.not_ready("the partitions are lost").await;
    assert!(lost.contains("kafka.session_timeout (6s)"), "{lost}");
    let silent = running.not_ready("no broker answers").await;
    assert!(silent.contains("does something on the way drop what is sent"), "{silent}");
    // In the long form the client hangs up meanwhile, and nobody answers its new connections.
    let silence = short_or_long(Duration::from_secs(2), Duration::from_secs(100));
    tokio::time::sleep(silence).await;
    let says = told_of_kafka(&running).await;
    assert!(says.contains("does something on the way drop what is sent"), "{says}");
    way.pass();
    running.ready().await;

    // What came meanwhile is being worked off, so that there is much in hand.
    meter.applies(300).await;
    let one_way = short_or_long(2, 10);
    let mut unknown = 0;
    for round in 0..one_way {
        way.hold_answers();
        // Sooner than the session ends, and later.
        let away = if round % 2 == 0 { Duration::from_secs(2) } else { Duration::from_secs(8) + silence };
        tokio::time::sleep(away).await;
        unknown += unacknowledged(&topics, &meter).await;
        way.reset();
        meter.applies(1_000).await;
    }
    assert!(unknown > 0, "no message was on its way");

    let resets = short_or_long(20, 300);
    for reset in 0..resets {
        way.reset();
        // Also within a handshake, and within a rebalance.
        tokio::time::sleep(Duration::from_millis(10 + 40 * (reset % 10))).await;
    }
    meter.applies(1_000).await;
    running.ready().await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    let fault = format!(
        "The network to Kafka, under load: {delay:?} each way, {BYTES_AT_ONCE} bytes at a time, silence, requests that arrive \
         and answers that do not, connections reset at short intervals"
    );
    let seen = format!(
        "ready again by itself each time; in silence `/readyz` says \"{says}\"; {unknown} messages that Kafka had taken, \
         their acknowledgements lost; {resets} resets: {seen}"
    );
    row("10", &fault, &seen);
}

/// What readiness says of the brokers.
async fn told_of_kafka(running: &Running) -> String {
    let page = running.not_ready("[-]kafka").await;
    let line = page.lines().find_map(|line| line.strip_prefix("[-]kafka failed: "));
    line.unwrap_or_default().to_owned()
}

/// What it had committed meanwhile would be sent after the session's end, by a member without a name; a broker that was
/// restarted still holds its place for it, takes it for another, and the client gives up for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_an_id_of_its_own_outlives_a_kafka_that_is_away_beyond_its_session() {
    let mut kafka = ProxiedKafka::start().await;
    let brokers = kafka.ways[0].address.clone();
    let (topics, mut meter, traffic) = under_load(&kafka, "ids", 18).await;
    meter.set("LOG__FILTER", "warn");
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let mut running = meter.start_telling(&[("KAFKA__BROKERS", &brokers), ("KAFKA__INSTANCE_ID", "worker-0")], &log);
    let rounds = short_or_long(1, 10);
    for _ in 0..rounds {
        running.ready().await;
        meter.applies(1_000).await;
        kafka.ways[0].refuse();
        // The length of the fault: beyond a session (see `Meter::named`), and within another one of what was committed last, and
        // of the restart.
        let away = tokio::time::sleep(Duration::from_millis(7_500));
        kafka.broker.restart().await;
        away.await;
        kafka.ways[0].pass();
    }
    running.ready().await;
    meter.applies(1_000).await;
    assert!(running.child.try_wait().expect("it is a child").is_none(), "it has given up");
    let told = std::fs::read_to_string(&log).expect("it is text");
    assert!(told.contains("the partitions are lost") && !told.contains("FENCED") && !told.contains("fenced"), "{told}");
    let seen = traffic.end().await.check(&topics, &meter).await;
    let fault = "A broker is restarted, and away for longer than the session of a worker with `kafka.instance_id`";
    row("8, 10", fault, &format!("{rounds} times; it joins again: {seen}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_workers_is_cut_off_from_kafka_alone_and_comes_back() {
    cut_off("cut-off", 11, "300000", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_workers_is_cut_off_from_kafka_alone_and_gives_its_messages_up() {
    cut_off("gives-up", 12, "2000", ", and gives its messages up meanwhile (`message.timeout.ms`)").await;
}

async fn cut_off(test: &str, seed: u64, message_timeout_ms: &str, also: &str) {
    let kafka = ProxiedKafka::start().await;
    let (topics, meter, traffic) = under_load(&kafka, test, seed).await;
    let way = &kafka.ways[0];
    let redis = Proxy::to(service("REDIS_URL").trim_start_matches("redis://").trim_end_matches('/')).await;
    let own = [
        ("KAFKA__BROKERS", way.address.as_str()),
        ("REDIS__URL", &format!("redis://{}/", redis.address)),
        ("BATCH__MAX_EVENTS", "50"),
        ("KAFKA__PROPERTIES__MESSAGE_TIMEOUT_MS", message_timeout_ms),
    ];
    // It is the first, and publishes for all shards.
    let cut_off = meter.start(&own);
    cut_off.ready().await;
    let other = meter.start(&[("KAFKA__BROKERS", &kafka.ways[1].address)]);
    other.ready().await;
    let rounds = short_or_long(1, 10);
    let mut in_hand = 0;
    for round in 0..rounds {
        // Its calls are small and take long: it reads more than it applies.
        redis.delay(Duration::from_millis(200));
        in_hand += until("it has work in hand", || async {
            let records = cut_off.metric("credit_meter_queue_records").await;
            (records > 2_000).then_some(records)
        })
        .await;
        if round % 2 == 0 {
            way.hold()
        } else {
            way.hold_answers()
        }
        cut_off.not_ready("the partitions are lost").await;
        redis.delay(Duration::ZERO);
        meter.applies(1_000).await;
        // What is decided now is told, also for shards whose messages the other one has in hand.
        let before = topics.ends("denied", 1)[0];
        until("denials are published", || async { (topics.ends("denied", 1)[0] > before + 200).then_some(()) }).await;
        let states = cut_off.get("/readyz").await.map(|(status, _)| status);
        assert_eq!(states, Some(503), "it is still cut off");
        if round % 2 == 0 {
            way.pass()
        } else {
            way.reset()
        }
        cut_off.ready().await;
        let before = cut_off.metric(CALLS).await;
        until("it works again", || async { (cut_off.metric(CALLS).await > before).then_some(()) }).await;
    }
    let seen = traffic.end().await.check(&topics, &meter).await;
    let refused = cut_off.fenced().await + other.fenced().await;
    let seen = format!(
        "{rounds} times partitions and outboxes are taken over, {in_hand} records in hand, {refused} calls refused by the fence; ready \
         again by itself each time: {seen}"
    );
    let fault = "One of two workers is cut off from Kafka alone beyond its session, with work in hand";
    row("10", &format!("{fault}{also}, and comes back"), &seen);
}
