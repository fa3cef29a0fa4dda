//! What goes wrong, and which alert says so: the real meter, Prometheus with the shipped rules.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::Meter;
use crate::support::monitor::{Monitor, Notice};
use crate::support::own_kafka::OwnKafka;
use crate::support::redis::OwnRedis;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_is_down_and_is_not_the_only_one() {
    let topics = Topics::create("stopped", 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let (one, other) = (meter.start(&[]), meter.start(&[]));
    let monitor = Monitor::start(&[&one.http, &other.http]).await;
    one.ready().await;
    one.signal("-STOP");
    // A slow machine may miss a scrape of the other one.
    until("the one that is stopped is down, and only that one", || async {
        let firing = monitor.firing().await;
        let down = firing.iter().filter(|labels| labels["alertname"] == "CreditMeterDown");
        let down: Vec<_> = down.map(|labels| &labels["instance"]).collect();
        let absent = firing.iter().any(|labels| labels["alertname"] == "CreditMeterAbsent");
        (down == [&json!(one.http)] && !absent).then_some(())
    })
    .await;
    one.signal("-CONT");
    monitor.is_silent("CreditMeterDown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_halts_is_told() {
    let topics = Topics::create("halts-told", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("EVENTS__DEAD_LETTERS_MAX", "5");
    let running = meter.start(&[]);
    running.ready().await;
    let monitor = Monitor::start(&[&running.http]).await;
    let bad = Outgoing { key: Some("acme".into()), value: Some("no event".into()), ..Outgoing::default() };
    for _ in 0..20 {
        topics.send("usage", &bad).await;
    }
    let halted = monitor.fires("CreditMeterPartitionHalted").await;
    assert_eq!((&halted["instance"], &halted["severity"]), (&json!(running.http), &json!("critical")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_is_told() {
    let kafka = OwnKafka::start();
    let topics = Topics::create_in(&kafka.brokers, "away", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    let monitor = Monitor::start(&[&running.http]).await;
    monitor.is_silent("CreditMeterKafkaAway").await;
    kafka.kill();
    let away = monitor.fires("CreditMeterKafkaAway").await;
    assert_eq!(away["instance"], running.http);
    kafka.start_again();
    monitor.is_silent("CreditMeterKafkaAway").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_slow_and_then_away_is_told() {
    let redis = OwnRedis::start(&[]);
    redis.connection().await;
    let topics = Topics::create("slow", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    let running = meter.start(&[]);
    running.ready().await;
    let mut monitor = Monitor::start(&[&running.http]).await;
    topics.command(&put("acme", "basic")).await;

    let told = AtomicBool::new(false);
    let slow = async {
        for number in 0.. {
            if told.load(Ordering::Relaxed) {
                break;
            }
            // Every client waits so long.
            let _: () = redis.tell(&["CLIENT", "PAUSE", "600"]).await;
            topics.send("usage", &reveal("acme", &format!("e{number}"), 1)).await;
        }
    };
    let fires = async {
        monitor.fires("CreditMeterScriptsSlow").await;
        told.store(true, Ordering::Relaxed);
    };
    tokio::join!(slow, fires);

    monitor.is_silent("CreditMeterRedisAway").await;
    drop(redis);
    monitor.fires("CreditMeterRedisAway").await;
    let is_away = |notice: &Notice| notice.alert["labels"]["alertname"] == "CreditMeterRedisAway";
    assert_eq!(monitor.notice("someone hears of it", is_away).await.receiver, "pager");
    // What follows from it is known and not told besides.
    topics.send("usage", &reveal("acme", "waits", 1)).await;
    for consequence in ["CreditMeterNotReady", "CreditMeterStalled"] {
        until(&format!("{consequence} fires and is silenced"), || async {
            let held = monitor.held_alerts().await;
            let fires = held.iter().find(|alert| alert["labels"]["alertname"] == consequence)?;
            (fires["status"]["state"] == "suppressed").then_some(())
        })
        .await;
    }
}
