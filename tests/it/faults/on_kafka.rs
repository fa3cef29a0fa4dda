//! A Kafka that is killed, loses what it had, or grows.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use credit_meter::ledger::call::Partition;
use rdkafka::Message;

use super::{PARTITIONS, under_load};
use crate::support::brokers::Brokers;
use crate::support::following::Following;
use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running};
use crate::support::one_broker::{Listener, OneBroker};
use crate::support::own_kafka::OwnKafka;
use crate::support::redis::{OwnRedis, free_port};
use crate::support::report::{row, short_or_long};
use crate::support::traffic::{PACE, Traffic};
use crate::support::{own_prefix, until, until_reached};
use crate::walk::{CATALOGUE, put, reveal};

async fn sends(traffic: &Traffic, records: u64) {
    let enough = traffic.sent() + records;
    until("records are sent", || async { (traffic.sent() >= enough).then_some(()) }).await;
}

/// Waits until readiness says why the meter is halted.
pub async fn is_halted(running: &Running, reason: &str) -> String {
    let (_, page) = until(&format!("readiness says {reason}"), || async {
        running.get("/readyz?verbose").await.filter(|(status, page)| *status == 503 && page.contains(reason))
    })
    .await;
    page.lines().find(|line| line.contains(reason)).unwrap_or_default().trim().to_owned()
}

/// Positions of a partition, over the shards.
async fn positions(meter: &Meter, partition: i32) -> Vec<i64> {
    let own = Partition::usage(partition);
    let states = meter.states().await;
    let of =
        |positions: &[(Partition, i64)]| positions.iter().find(|(other, _)| *other == own).map_or(0, |(_, at)| *at);
    states.iter().map(|state| of(&state.positions)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_killed() {
    let kafka = OwnKafka::start();
    let topics = Arc::new(Topics::create_in(&kafka.brokers, "broker", PARTITIONS).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("LOG__FILTER", "error");
    let traffic = Traffic::start(&topics, 8);
    let _running = meter.start(&[]);
    let kills = short_or_long(2, 10);
    let away = short_or_long(Duration::from_secs(5), Duration::from_secs(60));
    for kill in 0..kills {
        meter.applies(1_000).await;
        tokio::task::block_in_place(|| kafka.kill());
        if kill == 0 {
            // The length of the fault: messages wait in the outboxes, and those that were under way are sent again.
            tokio::time::sleep(away).await;
        }
        tokio::task::block_in_place(|| kafka.start_again());
    }
    meter.applies(1_000).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    row(
        "8",
        "SIGKILL of the broker under load, and its start",
        &format!("{kills} kills, once away for {away:?}: {seen}"),
    );
}

/// A broker that its controller has not heard of for long enough tells of no broker, not even of itself. Clients forget all that
/// they know then, `kafka.brokers` too, and never find one again (librdkafka's issue 5301).
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_a_broker_tells_of_no_broker_are_replaced() {
    const FENCED_BETWEEN_HEARTBEATS: &str = "broker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=8000";
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let folder = tempfile::tempdir().expect("a folder");
    let listeners = [Listener::plain("PLAIN", port, address.clone())];
    let mut broker = OneBroker::start(folder, &listeners, "", &[]).await;
    let topics = Arc::new(Topics::create_in(&address, "no-broker", PARTITIONS).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    // Each dead letter is told; only lost clients are of interest here.
    meter.set("LOG__FILTER", "warn,credit_meter::ingest::dead_letters=error");
    meter.set("KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "1000");
    // By default a client mostly remembers `kafka.brokers`, and now and then it does not.
    meter.set("KAFKA__PROPERTIES__METADATA_RECOVERY_STRATEGY", "none");
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let running = meter.start_telling(&[], &log);
    running.ready().await;
    let following_log = folder.path().join("following");
    let following = Following::start_telling(&meter, &["alerts", "--follow", "--json"], &following_log);
    let traffic = Traffic::start(&topics, 52);
    meter.applies(1_000).await;
    let first = following.line();
    traffic.goes_at(0);
    meter.caught_up(&topics).await;

    broker.restart_with(FENCED_BETWEEN_HEARTBEATS).await;
    until("the clients have given up", || async {
        let lost = |log: &Path, client: &str| {
            let told = std::fs::read_to_string(log).expect("it is text");
            told.lines().any(|line| line.contains(client) && line.contains("does not try to make one"))
        };
        let worker = lost(&log, "another client takes the place") && lost(&log, "the kafka producer is replaced");
        (worker && lost(&following_log, "another goes on where it was")).then_some(())
    })
    .await;
    broker.restart().await;
    running.ready().await;
    topics.take_another_producer();
    traffic.goes_at(PACE);
    meter.applies(1_000).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    // A relay that did not hear that Kafka has taken one sends it again.
    let published: BTreeSet<Vec<u8>> =
        topics.read("alerts", 1).iter().filter_map(|alert| alert.payload().map(<[u8]>::to_vec)).collect();
    let mut told = BTreeSet::from([first]);
    while told.len() < published.len() {
        assert!(told.insert(following.line()), "each edge is told once, whichever client has read it");
    }
    row(
        "8",
        "A broker that is fenced by its controller, and tells every client that there are no brokers",
        &seen.to_string(),
    );
}

/// Each of three brokers leads some partitions, and one is the controller.
#[tokio::test(flavor = "multi_thread")]
async fn one_broker_of_three_dies_or_stands_still() {
    let mut brokers = Brokers::start().await;
    let topics = Arc::new(Topics::named(&brokers.addresses(), own_prefix("three"), PARTITIONS));
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("LOG__FILTER", "error");
    let made = meter.run(&["check", "--create-topics", "--partitions", "1", "--replication", "3"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    topics.grow("usage", PARTITIONS).await;
    let traffic = Traffic::start(&topics, 16);
    let workers = ["worker-0", "worker-1"].map(|id| meter.start(&[("KAFKA__INSTANCE_ID", id)]));
    let rounds = short_or_long(3, 12);
    let away = short_or_long(Duration::from_secs(5), Duration::from_secs(30));
    for round in 0..rounds {
        let number = round % 3;
        meter.applies(1_000).await;
        brokers.kill(number);
        meter.applies(1_000).await;
        brokers.start_again(number);
        brokers.in_sync().await;
    }
    // Connections stay, and nothing comes: longer than it takes until another one leads.
    brokers.signal(0, "-STOP");
    tokio::time::sleep(away).await;
    meter.applies(1_000).await;
    brokers.signal(0, "-CONT");
    brokers.in_sync().await;
    meter.applies(1_000).await;
    for worker in &workers {
        worker.ready().await;
    }
    let seen = traffic.end().await.check(&topics, &meter).await;
    row(
        "8, 9",
        "SIGKILL and SIGSTOP of one of three brokers under load, `acks=all`, two in sync at least",
        &format!("{rounds} kills, each with two left, and once {away:?} without an answer: {seen}"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_shorter_than_it_was_halts() {
    let kafka = OwnKafka::start();
    let topics = Arc::new(Topics::create_in(&kafka.brokers, "shorter", PARTITIONS).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("LOG__FILTER", "error");
    let traffic = Traffic::start(&topics, 13);
    let running = meter.start(&[]);
    meter.applies(500).await;
    traffic.end().await.check(&topics, &meter).await;
    let older = tempfile::tempdir().expect("a folder");
    tokio::task::block_in_place(|| {
        kafka.stop();
        copy_folder(&kafka.data(), &older.path().join("data"));
        kafka.start_again();
    });
    let traffic = Traffic::start_again(&topics, 14);
    meter.applies(1_000).await;
    traffic.end().await;
    meter.caught_up(&topics).await;
    let before = meter.progress().await;
    tokio::task::block_in_place(|| {
        kafka.kill();
        std::fs::remove_dir_all(kafka.data()).expect("it has a log");
        copy_folder(&older.path().join("data"), &kafka.data());
        kafka.start_again();
    });
    let running_says = is_halted(&running, "truncated").await;
    drop(running);
    let again = meter.start(&[]);
    let start_says = is_halted(&again, "truncated").await;
    assert_eq!(meter.progress().await, before, "nothing moved");
    row(
        "13",
        "Kafka comes back with an older log, shorter than what is applied",
        &format!("halted, nothing moved; a running worker says \"{running_says}\", one that starts \"{start_says}\""),
    );
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_is_named_for_as_long_as_it_is_gone() {
    let topics = Topics::create("deleted", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "1000");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "starter")).await; // 30 e-mail credits
    topics.send("usage", &reveal("acme", "e0", 4)).await;
    meter.caught_up(&topics).await;
    topics.delete("usage").await;
    // The group takes the topic's partitions back, and is content with what is left.
    let told = running.not_ready(&format!("topic {} does not exist", topics.name("usage"))).await;
    assert!(told.contains("[-]time failed: meter time stands still"), "{told}");
    until("it is content with what is left, and unready all the same", || async {
        let (status, told) = running.get("/readyz?verbose").await?;
        (status == 503 && told.contains("[+]assigned ok") && told.contains("[-]time failed")).then_some(())
    })
    .await;
    // Commands go on.
    topics.command(&put("late", "starter")).await;
    until_reached("the command is applied", topics.ends("commands", 1)[0], || meter.applied(Partition::COMMANDS)).await;
    row(
        "14",
        "The usage topic is deleted",
        "`/readyz` names it for as long as it is gone; commands are applied meanwhile",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_added() {
    let (topics, mut meter, traffic) = under_load("partitions", 15).await;
    // Half a minute by default.
    meter.set("KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "1000");
    let running = meter.start(&[]);
    running.ready().await;
    meter.applies(300).await;
    let more = PARTITIONS + 3;
    topics.grow("usage", more).await;
    let asked = Instant::now();
    topics.partitions.store(more, Ordering::Relaxed);
    for partition in PARTITIONS..more {
        let own = Partition::usage(partition);
        until("the new partition is read", || async { (meter.applied(own).await > 0).then_some(()) }).await;
    }
    let noticed = asked.elapsed();
    meter.applies(300).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    let seen = format!(
        "from {PARTITIONS} to {more}, read after {} s (topic.metadata.refresh.interval.ms = 1000): {seen}",
        noticed.as_secs()
    );
    row("15", "Partitions are added under load", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_overtakes_a_worker_halts_its_partition() {
    let (topics, meter, traffic) = under_load("retention", 12).await;
    let mut running = meter.start(&[]);
    meter.applies(500).await;

    // Of a running worker, which was slow.
    running.signal("-STOP");
    sends(&traffic, 4_000).await;
    let kept = topics.ends("usage", 1)[0] - 10;
    topics.delete_below("usage", 0, kept).await;
    running.signal("-CONT");
    let running_says = is_halted(&running, "retention").await;
    assert!(running_says.contains(&format!("{}/0 starts at {kept}, ", topics.name("usage"))), "{running_says}");
    let (_, page) = running.get("/metrics").await.expect("it serves");
    let named: Vec<_> = page.lines().filter(|line| line.starts_with("credit_meter_partition_halted{")).collect();
    let labels = format!("{{partition=\"0\",topic=\"{}\"}}", topics.name("usage"));
    assert_eq!(named, [format!("credit_meter_partition_halted{labels} 1")]);
    assert_eq!(running.metric("credit_meter_partitions_halted").await, 1);
    let others = meter.progress().await;
    until("the other partitions go on", || async { (meter.progress().await > others + 2_000).then_some(()) }).await;

    // Of one that was away.
    running.kill();
    let again = meter.start(&[]);
    let start_says = is_halted(&again, "retention").await;
    let others = meter.progress().await;
    until("the other partitions go on", || async { (meter.progress().await > others + 2_000).then_some(()) }).await;
    let stays = positions(&meter, 0).await;
    assert!(stays.iter().all(|position| *position < kept), "nothing is skipped: {stays:?}, kafka starts at {kept}");
    traffic.end().await;
    row(
        "12",
        "Retention deletes what a worker has not read (`kafka-delete-records`)",
        &format!(
            "that partition is halted, the others go on; a running worker says \"{running_says}\", one that starts \
             \"{start_says}\""
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_halts() {
    let (topics, meter, traffic) = under_load("anew", 14).await;
    let mut running = meter.start(&[]);
    meter.applies(500).await;
    traffic.end().await;
    meter.caught_up(&topics).await;
    let before = meter.progress().await;
    let partitions = topics.partitions.load(Ordering::Relaxed);
    topics.remake("usage", partitions, &[("message.timestamp.type", "LogAppendTime")]).await;
    let running_says = is_halted(&running, "made anew").await;
    assert!(running_says.contains(&format!("{}/", topics.name("usage"))), "{running_says}");
    running.kill();
    let again = meter.start(&[]);
    let start_says = is_halted(&again, "made anew").await;
    assert_eq!(meter.progress().await, before, "nothing moved");
    row(
        "14",
        "The topic is deleted and made anew, shorter than what is applied",
        &format!("halted, nothing moved; a running worker says \"{running_says}\", one that starts \"{start_says}\""),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_older_than_retention_halts() {
    let mut redis = OwnRedis::start(&[]);
    let (topics, mut meter, traffic) = under_load("older-than-retention", 23).await;
    meter.use_redis(&redis.url());
    let running = meter.start(&[]);
    meter.applies(500).await;
    let older = redis.copy_aof();
    meter.applies(1_000).await;
    traffic.end().await;
    meter.caught_up(&topics).await;
    for (partition, end) in topics.ends("usage", PARTITIONS).into_iter().enumerate() {
        topics.delete_below("usage", partition as i32, end - 1).await;
    }
    redis.kill();
    let newer = redis.copy_aof();
    redis.replace_aof(older.path());
    redis.back().await;
    let before = meter.progress().await;
    let says = is_halted(&running, "retention").await;
    assert_eq!(meter.progress().await, before, "nothing moved");

    // The way out that it names: a state that is that far.
    redis.kill();
    redis.replace_aof(newer.path());
    redis.back().await;
    drop(running);
    let again = meter.start(&[]);
    again.ready().await;
    topics.send("usage", &crate::walk::reveal("wide-0", "after", 1)).await;
    meter.caught_up(&topics).await;
    row(
        "23",
        "Redis comes back older than what Kafka still holds",
        &format!("halted, nothing moved: \"{says}\"; goes on once a newer state is restored"),
    );
}
