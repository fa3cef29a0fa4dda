//! Each error that Redis answers with: the meter gets unready and says why, goes on by itself once the cause is gone,
//! and has charged every event once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use credit_meter::ledger::outcome::Outcome;
use credit_meter::store::keys::Key;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running, SHARDS};
use crate::support::proxy::Proxy;
use crate::support::redis::{Disk, OwnRedis, Server};
use crate::support::report::row;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

const PARTITIONS: i32 = 2;
const ACCOUNTS: u64 = 20;

/// Traffic that goes on until it is stopped, and its own sum for each account.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    sending: JoinHandle<BTreeMap<String, u64>>,
}

impl Traffic {
    /// `per_tick` events every 20 ms, each tenth twice.
    pub fn start(topics: &Arc<Topics>, per_tick: u64) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let sending = tokio::spawn(send(topics.clone(), stop.clone(), per_tick));
        Traffic { stop, sending }
    }

    pub async fn end(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.sending.await.expect("the traffic ends")
    }
}

async fn send(topics: Arc<Topics>, stop: Arc<AtomicBool>, per_tick: u64) -> BTreeMap<String, u64> {
    let mut sent = BTreeMap::new();
    let mut sends = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        for _ in 0..per_tick {
            number += 1;
            let account = format!("team-{}", number % ACCOUNTS);
            for copy in 0..1 + u64::from(number % 10 == 0) {
                let mut record = reveal(&account, &format!("e{number}"), 1);
                record.partition = ((number + copy) % PARTITIONS as u64) as i32;
                let topics = topics.clone();
                sends.spawn(async move { topics.send("usage", &record).await });
            }
            *sent.entry(account).or_insert(0) += 1;
        }
    }
    sends.join_all().await;
    sent
}

/// Topics with an account for each name of the traffic, whose e-mail is unlimited.
pub async fn topics(test: &str) -> Arc<Topics> {
    let topics = Arc::new(Topics::create(test, PARTITIONS).await);
    for account in 0..ACCOUNTS {
        topics.command(&put(&format!("team-{account}"), "organization")).await;
    }
    topics
}

/// Every event that was sent is charged once, and the totals add up to the records.
pub async fn every_event_is_charged_once(topics: &Topics, meter: &Meter, sent: &BTreeMap<String, u64>) {
    meter.caught_up(topics).await;
    let totals = meter.totals("usage").await;
    let records: i64 = topics.ends("usage", PARTITIONS).iter().sum();
    assert_eq!(totals.values().sum::<u64>(), records as u64, "the totals add up to the records");
    assert_eq!(totals.get(&Outcome::Charged), Some(&sent.values().sum::<u64>()), "{totals:?}");
    assert!(totals.keys().all(|outcome| matches!(outcome, Outcome::Charged | Outcome::Duplicate)), "{totals:?}");
    for (account, events) in sent {
        let balance = meter.json(&["balance", account, "--json"]);
        assert_eq!(balance["balances"]["email"]["used"], json!(events), "{account}: each event once");
    }
    meter.audit();
}

/// Waits until the meter is unready for a reason that has these words.
pub async fn unready(running: &Running, words: &[&str]) -> String {
    until(&format!("the meter tells {words:?}"), || async {
        let (status, told) = running.get("/readyz").await?;
        (status == 503 && words.iter().all(|word| told.contains(word))).then_some(told)
    })
    .await
}

/// A metric's value.
pub async fn metric(running: &Running, name: &str) -> u64 {
    let (_, page) = running.get("/metrics").await.expect("it serves");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not in\n{page}"))
}

/// Waits until a refusal is counted: readiness may tell of it first.
pub async fn is_counted(running: &Running, kind: &str) {
    let counter = format!("credit_meter_call_refusals_total{{kind=\"{kind}\"}}");
    until(&format!("{kind} is counted"), || async { (metric(running, &counter).await > 0).then_some(()) }).await;
}

struct Case {
    redis: OwnRedis,
    topics: Arc<Topics>,
    meter: Meter,
    running: Running,
    traffic: Traffic,
}

impl Case {
    /// A meter with traffic, of which some is applied.
    async fn start(test: &str, flags: &[&str]) -> Case {
        Case::start_on(None, test, flags).await
    }

    async fn start_on(disk: Option<Disk>, test: &str, flags: &[&str]) -> Case {
        let redis = OwnRedis::start_on(Server::Redis, disk, flags);
        redis.connection().await;
        let url = redis.url();
        Case::at(test, redis, &url).await
    }

    async fn at(test: &str, redis: OwnRedis, url: &str) -> Case {
        let topics = topics(test).await;
        let mut meter = Meter::new(&topics, CATALOGUE);
        meter.use_redis(url);
        meter.set("REDIS__TIMEOUT", "2s");
        let running = meter.start(&[]);
        running.ready().await;
        let traffic = Traffic::start(&topics, 4);
        until("some is applied", || async { meter.totals("usage").await.get(&Outcome::Charged).copied() }).await;
        Case { redis, topics, meter, running, traffic }
    }

    /// The meter has told of a fault, and counts it.
    async fn told(&self, kind: &str, words: &[&str]) {
        let place = self.redis.address();
        unready(&self.running, &[words, &["[-]redis", &place]].concat()).await;
        is_counted(&self.running, kind).await;
    }

    /// The cause is gone: the meter goes on by itself.
    async fn mended(self) {
        self.running.ready().await;
        let sent = self.traffic.end().await;
        every_event_is_charged_once(&self.topics, &self.meter, &sent).await;
        self.running.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readonly_a_primary_that_became_a_replica() {
    let case = Case::start("readonly", &[]).await;
    let _: () = case.redis.tell(&["REPLICAOF", "127.0.0.1", "1"]).await;
    case.told("read_only", &["is a replica", "READONLY", "redis.url"]).await;
    let _: () = case.redis.tell(&["REPLICAOF", "NO", "ONE"]).await;
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readonly_a_demoted_primary_is_left_for_the_new_one() {
    let old = OwnRedis::start(&[]);
    let new = OwnRedis::start(&["--replicaof", "127.0.0.1", &old.port.to_string()]);
    until("the replica follows", || async { (new.info("master_link_status").await == "up").then_some(()) }).await;
    let proxy = Proxy::to(&old.address()).await;
    let case = Case::at("demoted", old, &format!("redis://{}/", proxy.address)).await;
    // As a failover behind an address that moves: the connections to the old primary stay open.
    let _: () = new.tell(&["REPLICAOF", "NO", "ONE"]).await;
    proxy.lead_new_to(&new.address());
    let _: () = case.redis.tell(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]).await;
    until("the old primary has followed", || async {
        (case.redis.info("master_link_status").await == "up").then_some(())
    })
    .await;
    until("the meter has left it", || async {
        let read_only = metric(&case.running, "credit_meter_call_refusals_total{kind=\"read_only\"}").await;
        (read_only > 0).then_some(())
    })
    .await;
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_a_redis_that_reads_its_data() {
    // It answers between keys, every kilobyte.
    let mut case = Case::start("loading", &["--loading-process-events-interval-bytes", "1024"]).await;
    let fill = "for i = 1, 4000 do redis.call('SET', 'filler-' .. i, string.rep('x', 100)) end";
    let _: () = case.redis.tell(&["EVAL", fill, "0"]).await;
    // Into the AOF's base, which is read key by key.
    let _: () = case.redis.tell(&["BGREWRITEAOF"]).await;
    until("the aof is written anew", || async {
        (case.redis.info("aof_rewrite_in_progress").await == "0").then_some(())
    })
    .await;
    case.redis.kill();
    case.redis.start_again(&["--key-load-delay", "5000"]);
    case.told("loading", &["is reading its data", "LOADING"]).await;
    let _: () = case.redis.tell(&["CONFIG", "SET", "key-load-delay", "0"]).await;
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_a_script_of_another_client() {
    let case = Case::start("busy", &["--busy-reply-threshold", "50"]).await;
    let mut other = case.redis.connection().await;
    let endless = tokio::spawn(async move {
        redis::cmd("EVAL").arg("while true do end").arg(0).query_async::<redis::Value>(&mut other).await
    });
    case.told("busy", &["held up by a script", "SCRIPT KILL"]).await;
    let _: () = case.redis.tell(&["SCRIPT", "KILL"]).await;
    assert!(endless.await.expect("it ends").is_err(), "it was killed");
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oom_a_redis_at_its_maxmemory() {
    let case = Case::start("oom", &[]).await;
    let _: () = case.redis.tell(&["CONFIG", "SET", "maxmemory", "1"]).await;
    case.told("out_of_memory", &["is out of memory", "raise maxmemory"]).await;
    let _: () = case.redis.tell(&["CONFIG", "SET", "maxmemory", "0"]).await;
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn misconf_a_disk_that_is_full() {
    let disk = Disk { megabytes: 16 };
    let fault = "Redis' disk is full under load, and has room again";
    if let Err(why) = disk.allowed() {
        cannot_save("no-disk").await;
        return row("33", fault, &format!("no disk may be mounted here ({why}): a save that failed stood for it"));
    }
    let case = Case::start_on(Some(disk), "full", &["--enable-debug-command", "local"]).await;
    let filler = case.redis.folder().join("filler");
    let full = std::fs::write(&filler, vec![b'x'; 17_000_000]).expect_err("it does not fit");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    case.told("cannot_persist", &["cannot write to its disk", "No space left on device"]).await;
    std::fs::remove_file(&filler).expect("it goes");
    case.running.ready().await;
    // What was half written then is not in the way of what came later: it starts anew from its file.
    let before = case.meter.totals("usage").await[&Outcome::Charged];
    until("more is charged", || async {
        (case.meter.totals("usage").await[&Outcome::Charged] > before + 100).then_some(())
    })
    .await;
    let _: redis::Value = case.redis.tell(&["DEBUG", "LOADAOF"]).await;
    case.mended().await;
    row("33", fault, "a tmpfs of 16 MB: MISCONF, counted, waited for; its AOF is whole; every event is charged once");
}

#[tokio::test(flavor = "multi_thread")]
async fn misconf_a_redis_that_cannot_save() {
    cannot_save("misconf").await;
}

async fn cannot_save(test: &str) {
    let case = Case::start(test, &["--save", "3600", "1000000"]).await;
    // Its file cannot take the place of a folder: as on a disk that is full, a save fails.
    let in_the_way = case.redis.folder().join("dump.rdb");
    std::fs::create_dir_all(in_the_way.join("full")).expect("a folder");
    save(&case.redis, "err").await;
    case.told("cannot_persist", &["cannot write to its disk", "MISCONF"]).await;
    std::fs::remove_dir_all(&in_the_way).expect("a folder goes");
    save(&case.redis, "ok").await;
    case.mended().await;
}

async fn save(redis: &OwnRedis, ends: &str) {
    let _: redis::Value = redis.tell(&["BGSAVE"]).await;
    until("the save has ended", || async { (redis.info("rdb_last_bgsave_status").await == ends).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noreplicas_a_primary_alone() {
    let case = Case::start("noreplicas", &[]).await;
    let _: () = case.redis.tell(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    case.told("too_few_replicas", &["min-replicas-to-write", "NOREPLICAS"]).await;
    let _: () = case.redis.tell(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noauth_a_password_that_the_meter_does_not_know() {
    let case = Case::start("noauth", &[]).await;
    let mut admin = case.redis.connection().await;
    let mut tell = async |words: &[&str]| {
        let _: redis::Value = redis::cmd(words[0]).arg(&words[1..]).query_async(&mut admin).await.expect("it answers");
    };
    tell(&["CONFIG", "SET", "requirepass", "secret"]).await;
    tell(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    case.told("not_allowed", &["does not allow it", "NOAUTH", "user and password"]).await;
    tell(&["CONFIG", "SET", "requirepass", ""]).await;
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noscript_scripts_that_are_flushed_in_a_loop() {
    let case = Case::start("flushes", &[]).await;
    let mut admin = case.redis.connection().await;
    let flushing = tokio::spawn(async move {
        loop {
            let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut admin).await.expect("redis answers");
        }
    });
    let before = case.meter.totals("usage").await[&Outcome::Charged];
    until("more is charged meanwhile", || async {
        (case.meter.totals("usage").await[&Outcome::Charged] > before + 200).then_some(())
    })
    .await;
    flushing.abort();
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrongtype_a_poisoned_key_halts_its_shard_and_no_other() {
    let mut case = Case::start("wrongtype", &[]).await;
    let poisoned = case.meter.account_of(1);
    let key = case.meter.key(Key::Account(&poisoned));
    let mut admin = case.redis.connection().await;
    // Its events and the poison at one moment, so that nothing is charged in between.
    let (dump, (), ()): (Vec<u8>, (), ()) = redis::pipe()
        .atomic()
        .cmd("DUMP")
        .arg(&key)
        .del(&key)
        .cmd("SET")
        .arg(&key)
        .arg("poison")
        .query_async(&mut admin)
        .await
        .expect("redis answers");
    let told = unready(&case.running, &["[-]shards", "shard 1 is halted", "WRONGTYPE"]).await;
    assert!(told.contains("[+]redis") && told.contains(&case.redis.address()), "{told}");
    let folder = key.rsplit_once(":a:").expect("an account's key").0;
    assert!(told.contains(folder), "it names the keys: {told}");
    assert_eq!(metric(&case.running, "credit_meter_shards_halted").await, 1);
    // The others go on.
    let charged = async |shard: usize| {
        let states = case.meter.states().await;
        states[shard].totals.iter().filter(|total| total.1 == Outcome::Charged).map(|total| total.2).sum::<u64>()
    };
    for other in [0, 2, 3] {
        let before = charged(other).await;
        until("another shard charges more", || async { (charged(other).await > before).then_some(()) }).await;
    }
    let _: () = redis::pipe()
        .atomic()
        .del(&key)
        .cmd("RESTORE")
        .arg(&key)
        .arg(0)
        .arg(&dump)
        .query_async(&mut admin)
        .await
        .expect("redis answers");
    case.running.kill();
    case.running = case.meter.start(&[]);
    case.mended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrongtype_an_idle_shard_that_cannot_be_read_halts() {
    let redis = OwnRedis::start(&[]);
    redis.connection().await;
    let topics = topics("unreadable").await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    let key = meter.key(Key::Shard(SHARDS - 1));
    let _: redis::Value = redis.tell(&["RENAME", &key, "away"]).await;
    let _: redis::Value = redis.tell(&["SET", &key, "poison"]).await;
    unready(&running, &["[-]shards", "shard 3 is halted"]).await;
}
