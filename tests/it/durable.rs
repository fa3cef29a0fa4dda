//! Messages that wait for replicas, or for disks.

use credit_meter::store::keys::Key;
use serde_json::{Value, json};

use crate::redis_answers::unready;
use crate::support::kafka::{Topics, data};
use crate::support::meter::Meter;
use crate::support::redis::{OwnRedis, Server};
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

fn events(topics: &Topics) -> Vec<String> {
    let id = |denied| data(denied)["events"][0]["id"].as_str().expect("an id").to_owned();
    topics.read("denied", 1).iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicated_messages_wait_while_the_replica_stands_still() {
    let primary = OwnRedis::start(&[]);
    let replica = OwnRedis::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    until("the replica follows", || async { (replica.info("master_link_status").await == "up").then_some(()) }).await;
    let topics = Topics::create("replicated", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&primary.url());
    meter.set("OUTBOX__PUBLISH_AFTER", "replicated");
    meter.set("OUTBOX__LEASE", "2s");
    let running = meter.start(&[]);
    topics.command(&put("acme", "starter")).await; // 30 e-mail credits
    topics.send("usage", &reveal("acme", "first", 31)).await;
    until("a denial is published", || async { (events(&topics).len() == 1).then_some(()) }).await;
    running.ready().await;

    replica.signal("-STOP");
    topics.send("usage", &reveal("acme", "second", 31)).await;
    meter.caught_up(&topics).await; // counters do not wait
    unready(&running, &["[-]outbox", "0 of 1 replicas have them", "outbox.replicas"]).await;
    assert_eq!(events(&topics), ["first"], "it left before the replica had it");
    let outbox = meter.key(Key::Outbox(credit_meter::ledger::shard::shard_of("acme", crate::support::meter::SHARDS)));
    assert_eq!(primary.tell::<u64>(&["XLEN", &outbox]).await, 1);

    replica.signal("-CONT");
    meter.published().await;
    assert_eq!(events(&topics), ["first", "second"]);
    running.ready().await;
}

/// What `check` says of this meter's settings.
fn checked(meter: &Meter) -> Value {
    serde_json::from_slice(&meter.run(&["check", "--json"]).stdout).expect("JSON")
}

fn line<'a>(checked: &'a Value, name: &str) -> &'a Value {
    let lines = checked["checks"].as_array().expect("lines");
    lines.iter().find(|line| line["name"] == name).unwrap_or_else(|| panic!("{name}: {checked}"))
}

/// On Valkey: Redis can tell from 7.2 on.
#[tokio::test(flavor = "multi_thread")]
async fn synced_messages_wait_for_the_disks() {
    // It leaves to the system when it writes, so it cannot tell yet.
    let primary = OwnRedis::start_on(Server::Valkey, None, &["--appendfsync", "no"]);
    let replica = OwnRedis::start_on(Server::Valkey, None, &["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    until("the replica follows", || async { (replica.info("master_link_status").await == "up").then_some(()) }).await;
    let topics = Topics::create("synced", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&primary.url());
    meter.set("OUTBOX__PUBLISH_AFTER", "synced");
    meter.set("OUTBOX__LEASE", "2s");
    let checked = checked(&meter);
    assert!(line(&checked, "redis")["detail"].as_str().expect("a text").starts_with("valkey 9."), "{checked}");
    for name in ["outbox", "redis replicas"] {
        assert_eq!(line(&checked, name)["ok"], json!(true), "{checked}");
    }
    let running = meter.start(&[]);
    topics.command(&put("acme", "starter")).await; // 30 e-mail credits
    topics.send("usage", &reveal("acme", "first", 31)).await;
    meter.caught_up(&topics).await; // counters do not wait
    unready(&running, &["[-]outbox", "the primary has not synced them to its disk"]).await;
    assert_eq!(events(&topics), [""; 0], "it left before it was on disk");
    let _: () = primary.tell(&["CONFIG", "SET", "appendfsync", "everysec"]).await;
    meter.published().await;
    assert_eq!(events(&topics), ["first"]);
    running.ready().await;

    replica.signal("-STOP");
    topics.send("usage", &reveal("acme", "second", 31)).await;
    meter.caught_up(&topics).await;
    unready(&running, &["[-]outbox", "0 of 1 replicas have them"]).await;
    assert_eq!(events(&topics), ["first"], "it left before the replica had it");
    replica.signal("-CONT");
    meter.published().await;
    assert_eq!(events(&topics), ["first", "second"]);
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn synced_is_refused_where_redis_cannot_tell() {
    // Without an AOF no version can; before 7.2, none at all.
    let redis = OwnRedis::start(&["--appendonly", "no"]);
    redis.connection().await;
    let topics = Topics::create("synced", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    meter.set("OUTBOX__PUBLISH_AFTER", "synced");
    let checked = checked(&meter);
    let ended = meter.run(&["serve", "--set", "http.listen=127.0.0.1:0"]);
    assert!(!ended.status.success());
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    for part in [redis.address().as_str(), "cannot tell when a write is synced", "WAITAOF", "7.2", "publish_after"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    for name in ["outbox", "redis replicas"] {
        assert_eq!(line(&checked, name)["ok"], json!(false), "{checked}");
    }
}
