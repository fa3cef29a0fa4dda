//! Redis stands still while a backlog is read: the worker has enough, pauses its partitions, and goes on later.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use credit_meter::ledger::outcome::Outcome;
use credit_meter::store::{RedisStore, Store};
use serde_json::json;

use crate::support::kafka::Topics;
use crate::support::meter::{Meter, SHARDS};
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

const EVENTS: u64 = 40_000;
const PARTITIONS: i32 = 3;

/// A Redis of the test's own, so that it may be stopped.
struct OwnRedis {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl OwnRedis {
    fn start() -> OwnRedis {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = socket.local_addr().expect("an address").port().to_string();
        drop(socket);
        let folder = tempfile::tempdir().expect("a folder");
        let child = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        OwnRedis { child, url: format!("redis://127.0.0.1:{port}/"), _folder: folder }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stands_still_holds_the_reader_back_and_nothing_is_lost() {
    let redis = OwnRedis::start();
    let topics = Arc::new(Topics::create("outage", PARTITIONS).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("REDIS__URL", &redis.url);
    meter.set("REDIS__TIMEOUT", "1s");
    // Small, so that the backlog does not fit.
    meter.set("BATCH__MAX_EVENTS", "50");
    meter.set("BATCH__QUEUE_MAX", "1000");
    let store = RedisStore::new(&redis.url, &meter.prefix, SHARDS, std::time::Duration::from_secs(60), None);
    meter.store = Store::Redis(store.expect("an address"));
    topics.command(&put("acme", "organization")).await; // e-mail unlimited
    let mut sends = tokio::task::JoinSet::new();
    for number in 0..EVENTS {
        let mut record = reveal("acme", &format!("e{number}"), 1);
        record.partition = (number % PARTITIONS as u64) as i32;
        let topics = topics.clone();
        sends.spawn(async move { topics.send("usage", &record).await });
    }
    sends.join_all().await;

    let running = meter.start(&[]);
    for round in 1..=3 {
        until("some is applied", || async {
            let charged = meter.totals("usage").await.get(&Outcome::Charged).copied().unwrap_or(0);
            (charged >= round * 500).then_some(())
        })
        .await;
        redis.signal("-STOP");
        // Longer than the reader waits before it pauses, and than a call waits for its answer.
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        redis.signal("-CONT");
    }
    meter.caught_up(&topics).await;
    let totals = meter.totals("usage").await;
    assert_eq!(totals.into_iter().collect::<Vec<_>>(), [(Outcome::Charged, EVENTS)]);
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"], json!(EVENTS));
    running.ready().await;
}
