//! Redis stands still or goes back while a backlog is read: the reader pauses or rewinds, and nothing is lost.

use std::sync::Arc;

use credit_meter::ledger::outcome::Outcome;
use redis::aio::MultiplexedConnection;
use serde_json::json;

use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running};
use crate::support::redis::OwnRedis;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

const EVENTS: u64 = 40_000;
const PARTITIONS: i32 = 3;

/// A meter on a Redis of its own, with a backlog of events of one account.
async fn with_a_backlog(test: &str, redis: &OwnRedis) -> (Arc<Topics>, Meter) {
    let topics = Arc::new(Topics::create(test, PARTITIONS).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    meter.set("REDIS__TIMEOUT", "1s");
    // Small, so that the backlog does not fit.
    meter.set("BATCH__MAX_EVENTS", "50");
    meter.set("BATCH__QUEUE_MAX", "1000");
    topics.command(&put("acme", "organization")).await; // e-mail unlimited
    let mut sends = tokio::task::JoinSet::new();
    for number in 0..EVENTS {
        let mut record = reveal("acme", &format!("e{number}"), 1);
        record.partition = (number % PARTITIONS as u64) as i32;
        let topics = topics.clone();
        sends.spawn(async move { topics.send("usage", &record).await });
    }
    sends.join_all().await;
    (topics, meter)
}

async fn charged_at_least(meter: &Meter, events: u64) {
    until("some is applied", || async {
        let charged = meter.totals("usage").await.get(&Outcome::Charged).copied().unwrap_or(0);
        (charged >= events).then_some(())
    })
    .await;
}

async fn every_event_is_charged_once(topics: &Topics, meter: &Meter, running: &Running) {
    meter.caught_up(topics).await;
    let totals = meter.totals("usage").await;
    assert_eq!(totals.into_iter().collect::<Vec<_>>(), [(Outcome::Charged, EVENTS)]);
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"], json!(EVENTS));
    running.ready().await;
    assert_eq!(meter.audit()["records"], json!(EVENTS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stands_still_holds_the_reader_back_and_nothing_is_lost() {
    let redis = OwnRedis::start(&[]);
    let (topics, meter) = with_a_backlog("outage", &redis).await;
    let running = meter.start(&[]);
    for round in 1..=3 {
        charged_at_least(&meter, round * 500).await;
        redis.signal("-STOP");
        // Longer than the reader waits before it pauses, and than a call waits for its answer.
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        redis.signal("-CONT");
    }
    every_event_is_charged_once(&topics, &meter, &running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_goes_back_is_followed_and_every_event_is_charged_once() {
    let redis = OwnRedis::start(&[]);
    let (topics, meter) = with_a_backlog("rollback", &redis).await;
    let running = meter.start(&[]);
    charged_at_least(&meter, 2_000).await;
    let mut connection = redis.connection().await;
    let before = snapshot(&mut connection, &meter.prefix).await;
    for more in [6_000, 10_000, EVENTS] {
        charged_at_least(&meter, more).await;
        restore(&mut connection, &before).await;
    }
    every_event_is_charged_once(&topics, &meter, &running).await;
    let (_, page) = running.get("/metrics").await.expect("it serves");
    let rewinds = page.lines().find_map(|line| line.strip_prefix("credit_meter_rewinds_total "));
    assert!(rewinds.is_some_and(|rewinds| rewinds != "0"), "it was never behind: {rewinds:?}");
}

/// All keys at one moment: listed and read in one script, since a day's sets grow under load.
async fn snapshot(connection: &mut MultiplexedConnection, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let script = "local all = {} \
        for _, key in ipairs(redis.call('KEYS', ARGV[1])) do \
          all[#all + 1] = { key, redis.call('DUMP', key) } \
        end \
        return all";
    let mut dump = redis::cmd("EVAL");
    dump.arg(script).arg(0).arg(format!("{prefix}:*"));
    dump.query_async(connection).await.expect("redis answers")
}

/// Redis as it was, as if an older copy had been restored or a replica that lagged had taken over.
async fn restore(connection: &mut MultiplexedConnection, before: &[(String, Vec<u8>)]) {
    let mut restore = redis::pipe();
    restore.atomic().cmd("FLUSHDB").ignore();
    for (key, dump) in before {
        restore.cmd("RESTORE").arg(key).arg(0).arg(dump).ignore();
    }
    let _: () = restore.query_async(connection).await.expect("redis answers");
}
