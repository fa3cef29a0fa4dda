//! What must not go on halts, says why and what to do, and leaves the rest alone.

use credit_meter::ledger::outcome::Outcome;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running, SHARDS};
use crate::support::redis::OwnRedis;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

async fn metric(running: &Running, line: &str) {
    until(&format!("the metrics say `{line}`"), || async {
        let (_, page) = running.get("/metrics").await?;
        page.lines().any(|own| own == line).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_may_evict_is_counted_in_no_more() {
    let redis = OwnRedis::start(&[]);
    redis.connection().await;
    let topics = Topics::create("evicts", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    meter.set("REDIS__PROBE_EVERY", "1s");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "basic")).await;
    topics.send("usage", &reveal("acme", "e1", 1)).await;
    meter.caught_up(&topics).await;
    let _: () = redis.tell(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let told = running.not_ready("allkeys-lru").await;
    assert!(told.contains("noeviction"), "the remedy is named: {told}");
    metric(&running, &format!("credit_meter_shards_halted {SHARDS}")).await;
    topics.send("usage", &reveal("acme", "e2", 1)).await;
    assert_eq!(running.get("/livez").await.expect("it serves").0, 200, "a restart alone would not help");
    // Set back and restarted, it goes on.
    assert!(running.terminate().await.success());
    assert_eq!(meter.totals("usage").await[&Outcome::Charged], 1);
    let _: () = redis.tell(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    assert_eq!(meter.totals("usage").await[&Outcome::Charged], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_its_topic_cannot_take_halts_its_shard() {
    let topics = Topics::create("too-large", 1).await;
    topics.remake("dead-letter", 1, &[("max.message.bytes", "2000")]).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    for account in ["acme", "beta", "gamma", "delta", "epsilon"] {
        topics.command(&put(account, "basic")).await;
    }
    let mut record = reveal("acme", "e1", 1);
    // Bytes that do not shrink when they are compressed.
    record.value = Some(SmallRng::seed_from_u64(1).random_iter().take(10_000).collect());
    topics.send("usage", &record).await;
    for account in ["acme", "beta", "gamma", "delta", "epsilon"] {
        topics.send("usage", &reveal(account, "e2", 1)).await;
    }
    let told = running.not_ready("dead letters are refused").await;
    assert!(told.contains("max.message.bytes"), "the remedy is named: {told}");
    metric(&running, "credit_meter_shards_halted 1").await;
    until("the other shards go on", || async {
        meter.totals("usage").await.get(&Outcome::Charged).filter(|charged| **charged > 0).map(|_| ())
    })
    .await;
    assert!(topics.read("dead-letter", 1).is_empty(), "and nothing is skipped");
}
