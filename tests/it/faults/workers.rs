//! Workers that are killed, doubled, stopped and started.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{PARTITIONS, under_load};
use crate::support::meter::SHARDS;
use crate::support::proxy::Proxy;
use crate::support::report::{row, short_or_long};
use crate::support::{service, until};

/// The places that a worker passes again and again, and how often one is passed at most before it kills.
const PLACES: [(&str, u64); 8] = [
    ("after_generation", 1),
    ("before_apply", 40),
    ("after_apply", 40),
    ("after_command", 10),
    ("after_note", 2),
    ("after_dead_letters", 2),
    ("before_publish", 5),
    ("after_publish", 5),
];
const AT_RANDOM: &str = "at random";

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_and_at_every_named_place() {
    let (topics, mut meter, traffic) = under_load("kills", 1).await;
    // Small calls, so that a death finds work under way.
    meter.set("BATCH__MAX_EVENTS", "200");
    let kills = short_or_long(16, 100);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut deaths: BTreeMap<&str, usize> = BTreeMap::new();
    let mut lag_max = 0;
    for kill in 0..kills {
        let before = meter.progress().await;
        // Most workers come back under their own name; the others wait for the dead one's session to end.
        let name: &[_] = if kill % 4 == 3 { &[] } else { &[("KAFKA__INSTANCE_ID", "worker")] };
        let (place, times) = if kill % 2 == 0 { PLACES[kill / 2 % PLACES.len()] } else { (AT_RANDOM, 1) };
        if place == AT_RANDOM {
            let mut running = meter.start(name);
            until("a call is applied", || async { (meter.progress().await > before).then_some(()) }).await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await;
            running.kill();
        } else {
            let failpoint = format!("{place}@{}", rng.random_range(1..=times));
            let mut running = meter.start(&[name, &[("DEBUG__FAILPOINT", failpoint.as_str())]].concat());
            let status = running.ends(&format!("the process ends at {failpoint}")).await;
            assert_eq!(status.signal(), Some(6), "it ends by its own hand: {status}");
        }
        *deaths.entry(place).or_insert(0) += 1;
        let ends: i64 = topics.ends("usage", PARTITIONS).iter().sum();
        lag_max = lag_max.max(ends - meter.progress().await / i64::from(SHARDS));
    }
    assert!(lag_max > 0, "a death left work");
    for (place, _) in PLACES {
        assert!(deaths.contains_key(place), "{place} was never reached: {deaths:?}");
    }
    let _running = meter.start(&[]);
    let seen = traffic.end().await.check(&topics, &meter).await;
    let deaths: Vec<_> = deaths.iter().map(|(place, times)| format!("{times} {place}")).collect();
    let deaths = format!("{kills} kills ({}), up to {lag_max} records behind", deaths.join(", "));
    row("1, 2", "SIGKILL of the worker, at random and at every named place", &format!("{deaths}: {seen}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_starts_for_the_first_time() {
    for place in ["after_root", "after_init", "after_init@3", "after_generation"] {
        let (topics, meter, traffic) = under_load("first-start", 11).await;
        let mut running = meter.start(&[("DEBUG__FAILPOINT", place)]);
        assert_eq!(running.ends("the failpoint ends the process").await.signal(), Some(6));
        let running = meter.start(&[]);
        running.ready().await;
        meter.applies(300).await;
        let seen = traffic.end().await.check(&topics, &meter).await;
        row("1", &format!("SIGKILL in the first start, {place}"), &seen.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_wakes_up_after_another_has_taken_over() {
    let (topics, mut meter, traffic) = under_load("zombie", 2).await;
    meter.set("REDIS__TIMEOUT", "60s");
    let way = Proxy::to(service("REDIS_URL").trim_start_matches("redis://").trim_end_matches('/')).await;
    let zombie = meter.start(&[("REDIS__URL", &format!("redis://{}/", way.address))]);
    let rounds = short_or_long(1, 10);
    for _ in 0..rounds {
        meter.applies(300).await;
        // Its calls are on their way while it stands still, and arrive when another has applied their records.
        way.hold();
        let arrived = traffic.sent() + 500;
        until("the zombie has sent calls", || async { (traffic.sent() > arrived).then_some(()) }).await;
        zombie.signal("-STOP");
        let mut other = meter.start(&[]);
        // The zombie's session ends, and the other applies what the zombie holds.
        meter.applies(2_000).await;
        way.pass();
        zombie.signal("-CONT");
        until("the zombie works again", || async { zombie.get("/livez").await }).await;
        meter.applies(2_000).await;
        other.kill();
        meter.applies(300).await;
    }
    let seen = traffic.end().await.check(&topics, &meter).await;
    let seen = format!("{rounds} takeovers: {seen}");
    let fault =
        "SIGSTOP beyond the session timeout with calls on their way; another takes over; the calls arrive, both run";
    row("3", fault, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_that_both_have_every_partition() {
    let (topics, meter, traffic) = under_load("doubled", 3).await;
    // Two groups: each gives its only worker all partitions.
    let other_group = format!("{}-other", meter.prefix);
    let first = meter.start(&[]);
    let second = meter.start(&[("KAFKA__GROUP", other_group.as_str())]);
    first.ready().await;
    second.ready().await;
    let events = short_or_long(8_000, 200_000);
    until("enough is sent", || async { (traffic.sent() > events).then_some(()) }).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    let mut refused = Vec::new();
    for each in [&first, &second] {
        refused.push(each.fenced().await);
        assert_eq!(each.metric("credit_meter_shards_halted").await, 0);
    }
    assert!(refused.iter().sum::<u64>() > 0, "they were never in each other's way");
    let seen = format!("{} and {} calls refused: {seen}", refused[0], refused[1]);
    row("4", "Two workers with the same partitions at the same time", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_with_one_instance_id() {
    let (topics, meter, traffic) = under_load("one-id", 7).await;
    let same = [("KAFKA__INSTANCE_ID", "worker-0")];
    let folder = tempfile::tempdir().expect("a folder");
    let start = |number: usize| meter.start_telling(&same, &folder.path().join(number.to_string()));
    let mut own = start(0);
    own.ready().await;
    let rounds = short_or_long(3, 20);
    for round in 0..rounds {
        meter.applies(300).await;
        // As a supervisor would that starts the one which has ended.
        let other = start(round + 1);
        let status = own.ends("the first ends, since the second has its place").await;
        assert_eq!(status.code(), Some(1));
        let told = std::fs::read_to_string(folder.path().join(round.to_string())).expect("it is text");
        let last = told.lines().last().unwrap_or_default();
        assert!(last.contains("another process has joined group") && last.contains("\"worker-0\""), "{told}");
        other.ready().await;
        own = other;
    }
    let seen = traffic.end().await.check(&topics, &meter).await;
    let fault = "Two workers with the same `kafka.instance_id`: each start takes the partitions of the other";
    row("4", fault, &format!("the one that lost its place says so and exits 1, {rounds} times: {seen}"));
}

/// As where the client itself has made Kafka take it for another: see src/ingest/consumer/join.rs.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_place_is_taken_once_takes_it_again() {
    let (topics, meter, traffic) = under_load("place", 9).await;
    let same = "worker-0";
    let mut running = meter.start(&[("KAFKA__INSTANCE_ID", same)]);
    running.ready().await;
    meter.applies(300).await;
    let usage = topics.name("usage");
    let taken = tokio::task::spawn_blocking({
        let (brokers, group) = (topics.brokers.clone(), meter.prefix.clone());
        move || {
            let mut config = ClientConfig::new();
            let own = [
                ("bootstrap.servers", brokers.as_str()),
                ("group.id", &group),
                ("group.instance.id", same),
                ("session.timeout.ms", "6000"),
                ("partition.assignment.strategy", "range"),
            ];
            own.into_iter().for_each(|(key, value)| _ = config.set(key, value));
            let other: BaseConsumer = config.create().expect("a client");
            other.subscribe(&[usage.as_str()]).expect("it asks to join");
            let deadline = Instant::now() + Duration::from_secs(60);
            while other.assignment().expect("it tells").count() == 0 && Instant::now() < deadline {
                let _ = other.poll(Duration::from_millis(100));
            }
            other.assignment().expect("it tells").count()
        }
    });
    assert!(taken.await.expect("it does not panic") > 0, "another takes its place");
    meter.applies(2_000).await;
    running.ready().await;
    assert!(running.child.try_wait().expect("it is a child").is_none(), "it goes on");
    let seen = traffic.end().await.check(&topics, &meter).await;
    row(
        "4",
        "Another client takes the place of a worker with `kafka.instance_id`, once",
        &format!("it takes it again: {seen}"),
    );
}

/// As a client that has forgotten to join again. The group waits for a member that does not come, for longer than this worker does.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_place_for_too_long_joins_again() {
    let (topics, mut meter, traffic) = under_load("outside", 9).await;
    meter.set("KAFKA__PROPERTIES__MAX_POLL_INTERVAL_MS", "6000");
    let usage = topics.name("usage");
    let (is_member, leaves) = (Arc::new(Barrier::new(2)), channel::<()>());
    let silent = std::thread::spawn({
        let (brokers, group, is_member) = (topics.brokers.clone(), meter.prefix.clone(), is_member.clone());
        move || {
            let mut config = ClientConfig::new();
            let own = [
                ("bootstrap.servers", brokers.as_str()),
                ("group.id", &group),
                ("partition.assignment.strategy", "range"),
                ("max.poll.interval.ms", "600000"),
            ];
            own.into_iter().for_each(|(key, value)| _ = config.set(key, value));
            let other: BaseConsumer = config.create().expect("a client");
            other.subscribe(&[usage.as_str()]).expect("it asks to join");
            let shares = || other.assignment().expect("it tells").count();
            while shares() == 0 {
                let _ = other.poll(Duration::from_millis(100));
            }
            // From now on it takes part in no rebalance.
            is_member.wait();
            let _ = leaves.1.recv();
            // A client that is closed within a rebalance may wait for ever.
            let all = shares();
            while shares() == all {
                let _ = other.poll(Duration::from_millis(100));
            }
        }
    });
    tokio::task::block_in_place(|| is_member.wait());
    let running = meter.start(&[]);
    running.not_ready("has had no place for this worker for 12s; it joins again by itself").await;
    leaves.0.send(()).expect("it waits");
    silent.join().expect("it leaves");
    running.ready().await;
    meter.applies(1_000).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    row(
        "10",
        "The group has no place for a worker for longer than a rebalance may take, though the brokers answer",
        &format!("it joins again with another client: {seen}"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_join_and_leave() {
    let (topics, meter, traffic) = under_load("join-leave", 4).await;
    let _first = meter.start(&[]);
    let rounds = short_or_long(6, 50);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let other = meter.start(&[]);
        other.ready().await;
        if round % 3 == 2 {
            meter.applies(100).await;
        }
        let asked = Instant::now();
        let status = other.terminate().await;
        assert!(status.success(), "{status}");
        slowest = slowest.max(asked.elapsed());
    }
    let seen = traffic.end().await.check(&topics, &meter).await;
    let seen = format!("{rounds} times, slowest SIGTERM to exit {} ms: {seen}", slowest.as_millis());
    row("5, 6", "A second worker joins and leaves (SIGTERM) under load", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load() {
    let (topics, meter, traffic) = under_load("sigterm", 5).await;
    let rounds = short_or_long(4, 50);
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        let running = meter.start(&[]);
        meter.applies(50).await;
        let asked = Instant::now();
        let status = running.terminate().await;
        assert!(status.success(), "{status}");
        slowest = slowest.max(asked.elapsed());
    }
    let _running = meter.start(&[]);
    let seen = traffic.end().await.check(&topics, &meter).await;
    let seen = format!("{rounds} times, exit code 0, slowest {} ms: {seen}", slowest.as_millis());
    row("6", "SIGTERM of the only worker under load", &seen);
}
