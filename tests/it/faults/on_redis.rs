//! A Redis that is killed, goes back, forgets its scripts, or is two.

use std::sync::Arc;

use credit_meter::ledger::call::Partition;
use credit_meter::store::Store;
use serde_json::json;

use super::{PARTITIONS, under_load};
use crate::support::kafka::{Topics, data};
use crate::support::meter::{Meter, Running, SHARDS};
use crate::support::own_kafka::OwnKafka;
use crate::support::proxy::Proxy;
use crate::support::redis::{OwnRedis, Server};
use crate::support::report::{row, short_or_long};
use crate::support::traffic::{PACE, Traffic};
use crate::support::{until, until_reached};
use crate::walk::{CATALOGUE, put, reveal};

pub const REWINDS: &str = "credit_meter_rewinds_total";

/// A worker on a Redis of the test's own, under load.
async fn with_own(test: &str, seed: u64, redis: &OwnRedis) -> (Arc<Topics>, Meter, Traffic, Running) {
    let (topics, mut meter, traffic) = under_load(test, seed).await;
    meter.use_redis(&redis.url());
    meter.set("REDIS__TIMEOUT", "2s");
    let running = meter.start(&[]);
    running.ready().await;
    (topics, meter, traffic, running)
}

/// Kills it several times under load: how often the worker went back, and what has come of it.
async fn is_killed(test: &str, seed: u64, mut redis: OwnRedis) -> (u64, String) {
    let (topics, meter, traffic, running) = with_own(test, seed, &redis).await;
    let kills = short_or_long(3, 20);
    for _ in 0..kills {
        meter.applies(500).await;
        redis.kill();
        redis.back().await;
    }
    meter.applies(500).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    let rewinds = running.metric(REWINDS).await;
    (rewinds, format!("{kills} kills, {rewinds} rewinds: {seen}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_killed_and_loses_nothing_with_appendfsync_always() {
    let redis = OwnRedis::start(&["--appendfsync", "always"]);
    let (rewinds, seen) = is_killed("aof-always", 21, redis).await;
    assert_eq!(rewinds, 0, "what was answered is there");
    row("19", "SIGKILL of Redis, `appendfsync always`", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_killed_with_appendfsync_everysec() {
    let redis = OwnRedis::start(&["--appendfsync", "everysec"]);
    let (_, seen) = is_killed("aof-everysec", 22, redis).await;
    row("19", "SIGKILL of Redis, `appendfsync everysec`", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_is_killed_with_appendfsync_everysec() {
    let valkey = OwnRedis::start_on(Server::Valkey, None, &["--appendfsync", "everysec"]);
    let (_, seen) = is_killed("valkey-everysec", 28, valkey).await;
    row("19", "SIGKILL of Valkey, `appendfsync everysec`", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_comes_back_with_an_older_aof() {
    let mut redis = OwnRedis::start(&["--appendfsync", "everysec"]);
    let (topics, meter, traffic, running) = with_own("older-aof", 23, &redis).await;
    let rounds = short_or_long(2, 20);
    for round in 1..=rounds {
        meter.applies(500).await;
        let copy = redis.copy_aof();
        // About a second of traffic, and answers that the worker has seen.
        meter.applies(3_000).await;
        let rewinds = running.metric(REWINDS).await;
        redis.fall_back_to(copy.path()).await;
        until("the worker goes back", || async { (running.metric(REWINDS).await > rewinds).then_some(()) }).await;
        meter.applies(100 * round).await;
    }
    let seen = traffic.end().await.check(&topics, &meter).await;
    let rewinds = running.metric(REWINDS).await;
    let seen = format!("{rounds} times, {rewinds} rewinds: {seen}");
    row("20", "SIGKILL of Redis, its AOF replaced by a copy about a second old", &seen);
}

/// What is known of a partition's end is of before, until it has a leader again.
#[tokio::test(flavor = "multi_thread")]
async fn redis_falls_back_while_no_broker_is_there() {
    let kafka = OwnKafka::start();
    let topics = Arc::new(Topics::create_in(&kafka.brokers, "both", PARTITIONS).await);
    let mut redis = OwnRedis::start(&["--appendfsync", "everysec"]);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("LOG__FILTER", "error");
    meter.use_redis(&redis.url());
    meter.set("REDIS__TIMEOUT", "2s");
    meter.set("KAFKA__PROPERTIES__RECONNECT_BACKOFF_MAX_MS", "1000");
    let traffic = Traffic::start(&topics, 29);
    let running = meter.start(&[]);
    running.ready().await;
    let rounds = short_or_long(1, 20);
    for _ in 0..rounds {
        traffic.goes_at(PACE);
        meter.applies(500).await;
        let copy = redis.copy_aof();
        meter.applies(3_000).await;
        // All is applied, so that nothing is queued at the client.
        traffic.goes_at(0);
        meter.caught_up(&topics).await;
        tokio::task::block_in_place(|| kafka.kill());
        let rewinds = running.metric(REWINDS).await;
        redis.fall_back_to(copy.path()).await;
        until("the worker goes back", || async { (running.metric(REWINDS).await > rewinds).then_some(()) }).await;
        // The length of the fault: the client's statistics come meanwhile, once a second.
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        tokio::task::block_in_place(|| kafka.start_again());
        meter.caught_up(&topics).await;
    }
    let seen = traffic.end().await.check(&topics, &meter).await;
    let rewinds = running.metric(REWINDS).await;
    let seen = format!("{rounds} times, {rewinds} rewinds: {seen}");
    row("20", "Redis falls back while no broker is there, with everything applied", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_comes_back_with_a_torn_aof() {
    let mut redis = OwnRedis::start(&["--appendfsync", "everysec"]);
    let (topics, meter, traffic, running) = with_own("torn-aof", 24, &redis).await;
    let tears = short_or_long(3, 20);
    let mut bytes = 0;
    for tear in 0..tears {
        meter.applies(500).await;
        let before = redis.aof_length();
        meter.applies(3_000).await;
        let rewinds = running.metric(REWINDS).await;
        redis.kill();
        // Anywhere, but early enough that answered calls are gone.
        let (length, torn) = (redis.aof_length(), before + (redis.aof_length() - before) / 3 + tear);
        redis.tear_aof(torn);
        bytes += length - torn;
        redis.back().await;
        redis.rewrite_aof().await;
        until("the worker goes back", || async { (running.metric(REWINDS).await > rewinds).then_some(()) }).await;
    }
    meter.applies(500).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    let rewinds = running.metric(REWINDS).await;
    let seen = format!("{tears} times, {bytes} bytes cut off, {rewinds} rewinds: {seen}");
    row("21", "SIGKILL of Redis, the tail of its AOF torn off", &seen);
}

/// Redis 7.0 cuts a torn AOF off inside the transaction that was torn, and runs that half at its next start.
#[tokio::test(flavor = "multi_thread")]
async fn half_of_a_torn_transaction_halts_its_shard() {
    // In the last write, and in the word that ends it: then the whole transaction is run, and what came in its place.
    for from_end in [-7, 5] {
        let mut redis = OwnRedis::start(&["--appendfsync", "always"]);
        let topics = Topics::create("half-run", 1).await;
        let mut meter = Meter::new(&topics, CATALOGUE);
        meter.use_redis(&redis.url());
        let mut running = meter.start(&[]);
        running.ready().await;
        topics.command(&put("acme", "starter")).await; // 30 e-mail credits
        for number in 0..3 {
            topics.send("usage", &reveal("acme", &format!("e{number}"), 4)).await;
            meter.caught_up(&topics).await;
        }
        running.kill();
        redis.kill();
        redis.tear_last_transaction(b"SADD", from_end);
        redis.back().await;
        let mut running = meter.start(&[]);
        running.ready().await;
        meter.caught_up(&topics).await;
        meter.audit();
        running.kill();
        redis.kill();
        redis.back().await;

        let running = meter.start(&[]);
        topics.send("usage", &reveal("acme", "e3", 4)).await;
        running.not_ready("redis ran half of what a script wrote").await;
        assert!(running.terminate().await.success());
        let audited = meter.run(&["audit", "--json"]);
        let told = String::from_utf8_lossy(&audited.stdout);
        assert!(audited.status.code() == Some(1) && told.contains("writes ended"), "{told}");

        let Store::Redis(store) = &meter.store else { unreachable!("the tests use a real redis") };
        meter.json(&["rebuild", "--shard", &store.keys().shard_of("acme").to_string(), "--json"]);
        assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"], 16);
        meter.audit();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_stands_still() {
    let redis = OwnRedis::start(&[]);
    let (topics, meter, traffic, running) = with_own("still", 26, &redis).await;
    let seconds = short_or_long(4, 30);
    for _ in 0..short_or_long(2, 3) {
        meter.applies(500).await;
        redis.signal("-STOP");
        tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
        redis.signal("-CONT");
    }
    meter.applies(500).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    let unanswered = running.metric("credit_meter_call_refusals_total").await;
    let seen = format!("{seconds} s at a time, {unanswered} calls without an answer or refused: {seen}");
    row("26", "Redis stands still (SIGSTOP), calls time out after 2 s", &seen);
}

/// The thread that reads goes on asking Kafka while nothing can be written: to the group the worker is there.
#[tokio::test(flavor = "multi_thread")]
async fn redis_stands_still_for_longer_than_kafka_waits_for_the_next_poll() {
    let redis = OwnRedis::start(&[]);
    let (topics, mut meter, traffic) = under_load("max-poll", 7).await;
    meter.use_redis(&redis.url());
    meter.set("REDIS__TIMEOUT", "2s");
    meter.set("KAFKA__PROPERTIES__MAX_POLL_INTERVAL_MS", "6000");
    // Little fits in, so that it has enough of every partition.
    meter.set("BATCH__QUEUE_MAX", "2000");
    meter.set("BATCH__MAX_EVENTS", "500");
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let running = meter.start_telling(&[], &log);
    running.ready().await;
    meter.applies(500).await;
    redis.signal("-STOP");
    let seconds = short_or_long(10, 60);
    tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
    redis.signal("-CONT");
    running.ready().await;
    meter.applies(500).await;
    let told = std::fs::read_to_string(&log).expect("it is text");
    assert!(told.contains("check=\"redis\"") && !told.contains("check=\"assigned\""), "{told}");
    let seen = traffic.end().await.check(&topics, &meter).await;
    let seen = format!("{seconds} s with `max.poll.interval.ms` = 6000: it keeps its partitions: {seen}");
    row("7", "Nothing can be written for longer than `max.poll.interval.ms`", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_forgets_its_scripts_all_the_time() {
    let redis = OwnRedis::start(&[]);
    let (topics, meter, traffic, _running) = with_own("script-flush", 30, &redis).await;
    let flushes = short_or_long(300, 5_000);
    for _ in 0..flushes {
        let _: String = redis.tell(&["SCRIPT", "FLUSH"]).await;
        let _: String = redis.tell(&["FUNCTION", "FLUSH"]).await;
    }
    meter.applies(500).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    row("30", "`SCRIPT FLUSH` and `FUNCTION FLUSH` in a loop", &format!("{flushes} times: {seen}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lags_takes_over() {
    let mut primary = OwnRedis::start(&[]);
    let (topics, mut meter, traffic) = under_load("failover", 27).await;
    let front = Proxy::to(&primary.address()).await;
    meter.use_redis(&format!("redis://{}/", front.address));
    meter.set("REDIS__TIMEOUT", "2s");
    let running = meter.start(&[]);
    let rounds = short_or_long(1, 10);
    for _ in 0..rounds {
        let replica = OwnRedis::start(&[]);
        let link = Proxy::to(&primary.address()).await;
        follow(&replica, &link).await;
        meter.applies(500).await;
        link.hold();
        meter.applies(3_000).await;
        let rewinds = running.metric(REWINDS).await;
        primary.kill();
        let _: String = replica.tell(&["REPLICAOF", "NO", "ONE"]).await;
        front.lead_to(&replica.address());
        until("the worker goes back", || async { (running.metric(REWINDS).await > rewinds).then_some(()) }).await;
        primary = replica;
    }
    meter.applies(500).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    let rewinds = running.metric(REWINDS).await;
    let seen = format!("{rounds} failovers, {rewinds} rewinds: {seen}");
    row("27", "Failover to a replica behind a proxy that had held its replication back", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_primary_is_still_written_while_another_worker_uses_the_new_one() {
    let primary = OwnRedis::start(&[]);
    let replica = OwnRedis::start(&[]);
    let topics = Arc::new(Topics::create("split-brain", PARTITIONS).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("LOG__FILTER", "warn");
    // No command comes later: the worker without the commands' partition would wait for it, since its Redis has fallen back.
    let traffic = Traffic::start_clean(&topics, 28, 1_000);
    until("traffic has begun", || async { (traffic.sent() > 0).then_some(()) }).await;
    let (front_a, front_b) = (Proxy::to(&primary.address()).await, Proxy::to(&primary.address()).await);
    meter.use_redis(&primary.url());
    meter.set("REDIS__TIMEOUT", "2s");
    let link = Proxy::to(&primary.address()).await;
    follow(&replica, &link).await;
    let start = |front: &Proxy| meter.start(&[("REDIS__URL", &format!("redis://{}/", front.address))]);
    let (a, b) = (start(&front_a), start(&front_b));
    a.ready().await;
    b.ready().await;
    let puts = topics.ends("commands", 1)[0];
    until_reached("the replica will have every command", puts, || meter.applied(Partition::COMMANDS)).await;
    meter.applies(500).await;

    link.refuse();
    meter.applies(1_000).await;
    let _: String = replica.tell(&["REPLICAOF", "NO", "ONE"]).await;
    front_b.lead_to(&replica.address());
    // The old primary goes on with the partitions of one worker, the new one with those of the other.
    let (old, new) = (sum_of_positions(&primary, &meter).await, sum_of_positions(&replica, &meter).await);
    for (redis, before) in [(&primary, old), (&replica, new)] {
        until("both are written", || async { (sum_of_positions(redis, &meter).await > before + 4_000).then_some(()) })
            .await;
    }
    let written_in_vain = sum_of_positions(&primary, &meter).await - old;

    // Healed: everyone uses the new one, and the old one follows it.
    let rewinds = a.metric(REWINDS).await;
    let port = replica.port.to_string();
    let _: String = primary.tell(&["REPLICAOF", "127.0.0.1", &port]).await;
    front_a.lead_to(&replica.address());
    meter.use_redis(&replica.url());
    until("the worker goes back", || async { (a.metric(REWINDS).await > rewinds).then_some(()) }).await;
    let seen = traffic.end().await.check(&topics, &meter).await;
    let seen = format!("{} positions moved in vain on the old primary, then healed: {seen}", written_in_vain);
    row("28", "Split brain: one worker writes to the old primary, another to the promoted replica", &seen);
}

/// Makes a replica follow whatever is behind the link, and waits until it has its data.
async fn follow(replica: &OwnRedis, link: &Proxy) {
    let _: String = replica.tell(&["REPLICAOF", "127.0.0.1", link.port()]).await;
    until("the replica follows", || async {
        let info: String = replica.tell(&["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
}

async fn sum_of_positions(redis: &OwnRedis, meter: &Meter) -> i64 {
    let mut sum = 0;
    for shard in 0..SHARDS {
        let key = meter.shard_key(shard);
        let fields: std::collections::BTreeMap<String, String> = redis.tell(&["HGETALL", &key]).await;
        let own = fields.iter().filter(|(field, _)| field.starts_with("position:usage"));
        sum += own.map(|(_, at)| at.parse::<i64>().expect("a position")).sum::<i64>();
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn flushall_under_load_halts_and_a_restored_copy_goes_on() {
    let mut redis = OwnRedis::start(&[]);
    let (topics, meter, traffic, running) = with_own("flushall", 241, &redis).await;
    meter.applies(1_000).await;
    let copy = redis.copy_aof();
    meter.applies(500).await;
    let _: String = redis.tell(&["FLUSHALL"]).await;
    let (_, says) = until("readiness says so", || async {
        running.get("/readyz?verbose").await.filter(|(status, page)| *status == 503 && page.contains("emptied"))
    })
    .await;
    let says = says.lines().find(|line| line.contains("emptied")).unwrap_or_default().trim().to_owned();
    until("all shards are halted", || async {
        (running.metric("credit_meter_shards_halted").await == u64::from(SHARDS)).then_some(())
    })
    .await;
    let keys: Vec<String> = redis.tell(&["KEYS", "*"]).await;
    assert!(keys.iter().all(|key| key.ends_with(":relay")), "nothing was made anew: {keys:?}");
    redis.kill();
    redis.replace_aof(copy.path());
    redis.back().await;
    drop(running);
    let _again = meter.start(&[]);
    let seen = traffic.end().await.check(&topics, &meter).await;
    let seen = format!("halted: \"{says}\"; goes on from a restored copy: {seen}");
    row("24", "`FLUSHALL` under load", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_may_evict_is_refused_by_check() {
    let redis = OwnRedis::start(&[]);
    let topics = Topics::create("eviction", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    let policy = |meter: &Meter| {
        let text = String::from_utf8_lossy(&meter.run(&["check"]).stdout).into_owned();
        text.lines().find(|line| line.contains("maxmemory-policy")).expect("check tells of it").trim().to_owned()
    };
    assert!(policy(&meter).contains("noeviction"));
    let _: String = redis.tell(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let says = policy(&meter);
    assert!(says.contains("allkeys-lru") && says.contains("set maxmemory-policy noeviction"), "{says}");
    assert!(!meter.run(&["check"]).status.success());
    row("32", "`CONFIG SET maxmemory-policy allkeys-lru`", &format!("`check` fails: \"{says}\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_snapshot_does_not_change_what_was_published() {
    const ACCOUNTS: usize = 20;
    let mut redis = OwnRedis::start(&["--appendonly", "no"]);
    let topics = Topics::create("restored", 2).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    let running = meter.start(&[]);
    running.ready().await;
    let account = |number: usize| format!("team-{number}");
    let send = async |id: &str, quantity: u64| {
        for number in 0..ACCOUNTS {
            let mut record = reveal(&account(number), &format!("{id}-{number}"), quantity);
            record.partition = (number % 2) as i32;
            topics.send("usage", &record).await;
        }
        meter.caught_up(&topics).await;
    };
    for number in 0..ACCOUNTS {
        topics.command(&put(&account(number), "starter")).await; // 30 e-mail credits
    }
    send("fits", 28).await;
    let snapshot = redis.snapshot().await;

    send("denied", 5).await; // 2 are left
    meter.published().await;
    for number in 0..ACCOUNTS {
        let granted = meter.run(&["grant", &account(number), "--type", "email", "--amount", "10"]);
        assert!(granted.status.success(), "{}", String::from_utf8_lossy(&granted.stderr));
    }
    send("fits-again", 6).await;

    redis.kill();
    redis.restore(&snapshot);
    redis.back().await;
    until("the worker goes back", || async { (running.metric(REWINDS).await > 0).then_some(()) }).await;
    meter.caught_up(&topics).await;
    send("afterwards", 1).await;
    meter.published().await;
    for number in 0..ACCOUNTS {
        let email = meter.json(&["balance", &account(number), "--json"])["balances"]["email"].clone();
        assert_eq!((&email["granted"], &email["used"]), (&json!(40), &json!(35)), "{}: {email}", account(number));
    }
    let mut told = Vec::new();
    for message in topics.read("denied", 1) {
        let denial = data(&message);
        told.extend(denial["events"].as_array().expect("events").iter().map(|event| event["id"].to_string()));
    }
    told.sort();
    let mut expected: Vec<String> = (0..ACCOUNTS).map(|number| format!("\"denied-{number}\"")).collect();
    expected.sort();
    assert_eq!(told, expected, "each denial is told once");
    let rewinds = running.metric(REWINDS).await;
    row(
        "22",
        "Redis restored from an RDB snapshot; denials were published and credits granted since",
        &format!(
            "{rewinds} rewinds; {ACCOUNTS} denials stand though the credits would suffice by now, each published once; \
             balances exact"
        ),
    );
}
