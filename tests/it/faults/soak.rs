//! Hours of everything at once: a worker that lives through it all, another that dies and comes back, and faults of
//! every kind at random, one after the other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use super::PARTITIONS;
use super::on_redis::REWINDS;
use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running};
use crate::support::own_kafka::OwnKafka;
use crate::support::redis::{OwnCluster, OwnRedis};
use crate::support::report::{row, short_or_long};
use crate::support::traffic::Traffic;
use crate::walk::CATALOGUE;

/// How long the long form is, what its random choices start from, and whether Redis is a cluster; else an hour, the clock,
/// and one server.
const MINUTES: &str = "CREDIT_METER_SOAK_MINUTES";
const SEED: &str = "CREDIT_METER_SOAK_SEED";
const CLUSTER: &str = "CREDIT_METER_SOAK_CLUSTER";
/// Events a second, and in a burst.
const PACE: u64 = 300;
const BURST: u64 = 10 * PACE;
const PARTITIONS_MAX: i32 = 8;
/// The last slot of a cluster.
const SLOT_MAX: u16 = 16_383;
/// Faults between two audits.
const AUDIT_EVERY: usize = 12;
/// What the worker that lives through it may take more at the end than after its first quarter, beside what it remembers of
/// accounts that came since.
const GROWTH_MAX_MIB: u64 = 64;
const ACCOUNT_KIB: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    OtherKilled,
    OtherTerminated,
    OtherStandsStill,
    StandsStill,
    RedisKilled,
    RedisStandsStill,
    RedisForgetsScripts,
    RedisRewrites,
    RedisFallsBack,
    BrokerKilled,
    BrokerRestarted,
    PartitionAdded,
    Burst,
    Idle,
    Calm,
}

use Fault::*;

const FAULTS: [(Fault, &str); 15] = [
    (OtherKilled, "the other worker is killed"),
    (OtherTerminated, "it is replaced, and the next one too"),
    (OtherStandsStill, "it stands still"),
    (StandsStill, "the first stands still"),
    (RedisKilled, "Redis is killed"),
    (RedisStandsStill, "it stands still"),
    (RedisForgetsScripts, "it forgets its scripts"),
    (RedisRewrites, "it rewrites its AOF"),
    (RedisFallsBack, "it falls back to an older AOF, or a cluster's slots move"),
    (BrokerKilled, "the broker is killed"),
    (BrokerRestarted, "it is restarted"),
    (PartitionAdded, "a partition is added"),
    (Burst, "ten times the traffic"),
    (Idle, "no traffic"),
    (Calm, "nothing"),
];

/// In the order in which they end: workers say how they are before their servers go.
struct Soak {
    /// Lives through it all.
    survivor: Running,
    other: Running,
    traffic: Traffic,
    topics: Arc<Topics>,
    meter: Meter,
    kafka: OwnKafka,
    redis: Servers,
    rng: SmallRng,
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_of_everything_at_once() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (minutes, seed) = (number(MINUTES).unwrap_or(60), number(SEED));
    let seed = seed.unwrap_or_else(|| short_or_long(51, chrono::Utc::now().timestamp().unsigned_abs()));
    let mut soak = Soak::start(seed).await;

    // The short form has each once.
    let mut once = FAULTS.map(|(fault, _)| fault).to_vec();
    once.shuffle(&mut soak.rng);
    let started = Instant::now();
    let length = Duration::from_secs(60 * minutes);
    let (mut faults, mut after_a_quarter) = (Vec::new(), None);
    let folder = tempfile::tempdir().expect("a folder");
    let point = folder.path().join("point");
    loop {
        let next = short_or_long(
            once.pop(),
            (started.elapsed() < length).then(|| FAULTS.choose(&mut soak.rng).expect("there are some").0),
        );
        let Some(fault) = next else { break };
        eprintln!("seed {seed}, {:?}: {fault:?}, {} MiB", started.elapsed(), soak.survivor.resident_mib());
        soak.has(fault).await;
        faults.push(fault);
        let audited = faults.len() % AUDIT_EVERY == 0;
        // Some come while the one before is not mended yet.
        if audited || soak.rng.random_bool(0.7) {
            soak.recovers().await;
        }
        if audited {
            soak.is_audited(&point);
        }
        if short_or_long(faults.len() > FAULTS.len() / 4, started.elapsed() > length / 4) {
            after_a_quarter.get_or_insert_with(|| soak.survivor.resident_mib());
        }
    }
    let redis = if matches!(soak.redis, Servers::One(_)) { "one Redis" } else { "a Redis Cluster" };
    let Soak { topics, meter, traffic, mut survivor, .. } = soak;
    assert!(survivor.child.try_wait().expect("it is a child").is_none(), "it lives through it all");
    let sent = traffic.end().await;
    let seen = sent.check(&topics, &meter).await;
    let at_the_end = survivor.resident_mib();
    let rewinds = survivor.metric(REWINDS).await;
    let before = after_a_quarter.expect("more than a quarter has passed");
    let most = before + GROWTH_MAX_MIB + sent.accounts() * ACCOUNT_KIB / 1024;
    assert!(at_the_end < most, "it grew from {before} to {at_the_end} MiB, with {} accounts", sent.accounts());
    let times = |fault: &Fault| faults.iter().filter(|other| *other == fault).count();
    let kinds: Vec<_> = FAULTS.iter().map(|(fault, name)| format!("{name}: {}", times(fault))).collect();
    let minutes = started.elapsed().as_secs() / 60;
    row(
        "44, 51",
        &format!(
            "{minutes} minutes of faults at random on {redis}, seed {seed}, with bursts and pauses of the traffic"
        ),
        &format!(
            "{} faults ({}); one worker lived through them all, with {rewinds} rewinds, from {before} MiB after a quarter to \
             {at_the_end} MiB: {seen}",
            faults.len(),
            kinds.join(", ")
        ),
    );
}

impl Soak {
    async fn start(seed: u64) -> Soak {
        let kafka = OwnKafka::start();
        let redis = Servers::start().await;
        let topics = Arc::new(Topics::create_in(&kafka.brokers, "soak", PARTITIONS).await);
        let mut meter = Meter::new(&topics, CATALOGUE);
        meter.set("LOG__FILTER", "error");
        meter.use_redis(&redis.url());
        meter.set("REDIS__TIMEOUT", "2s");
        meter.set("KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "5000");
        let traffic = Traffic::start(&topics, seed);
        traffic.goes_at(PACE);
        let (survivor, other) = (meter.start(&[SURVIVOR]), meter.start(&[OTHER]));
        // A Redis that falls back behind the first start was emptied.
        survivor.ready().await;
        other.ready().await;
        meter.applies(100).await;
        Soak { topics, meter, kafka, redis, traffic, survivor, other, rng: SmallRng::seed_from_u64(seed) }
    }

    /// Lengths are those of faults: nothing is waited for by them.
    async fn has(&mut self, fault: Fault) {
        let length = Duration::from_millis(self.rng.random_range(0..short_or_long(3_000, 12_000)));
        match fault {
            OtherKilled => {
                sleep(length / 4).await;
                self.other.kill();
                sleep(length).await;
                self.other = self.meter.start(&[OTHER]);
            }
            OtherTerminated => {
                let next = self.meter.start(&[("KAFKA__INSTANCE_ID", "next")]);
                next.ready().await;
                let left = std::mem::replace(&mut self.other, next);
                assert_eq!(left.terminate().await.code(), Some(0));
                let next = std::mem::replace(&mut self.other, self.meter.start(&[OTHER]));
                assert_eq!(next.terminate().await.code(), Some(0));
            }
            OtherStandsStill => stands_still(|signal| self.other.signal(signal), length).await,
            StandsStill => stands_still(|signal| self.survivor.signal(signal), length).await,
            RedisStandsStill => self.redis.stands_still(self.rng.random_range(0..=SLOT_MAX), length).await,
            RedisKilled => self.redis.is_killed(self.rng.random_range(0..=SLOT_MAX), length).await,
            RedisForgetsScripts => self.redis.forgets_scripts().await,
            RedisRewrites => self.redis.rewrites().await,
            RedisFallsBack => self.redis.falls_back(self.rng.random_range(0..=SLOT_MAX), length).await,
            BrokerKilled => {
                tokio::task::block_in_place(|| self.kafka.kill());
                sleep(length).await;
                tokio::task::block_in_place(|| self.kafka.start_again());
            }
            BrokerRestarted => tokio::task::block_in_place(|| {
                self.kafka.stop();
                self.kafka.start_again();
            }),
            PartitionAdded => {
                let partitions = self.topics.partitions.load(Ordering::Relaxed);
                if partitions < PARTITIONS_MAX {
                    self.topics.grow("usage", partitions + 1).await;
                    self.topics.partitions.store(partitions + 1, Ordering::Relaxed);
                }
            }
            Burst | Idle => {
                self.traffic.goes_at(if fault == Burst { BURST } else { 0 });
                sleep(length).await;
                self.traffic.goes_at(PACE);
            }
            Calm => sleep(length).await,
        }
    }

    /// Everything that was there when the fault ended is applied, and both are ready by themselves.
    async fn recovers(&self) {
        self.meter.caught_up(&self.topics).await;
        self.survivor.ready().await;
        self.other.ready().await;
    }

    /// From one saved point to the next, while all goes on; from the beginning where Redis fell back behind the point.
    fn is_audited(&self, point: &Path) {
        let path = point.to_str().expect("a path");
        let save = ["audit", "--json", "--save", path];
        let from_point = || self.meter.run(&[&save[..], &["--from", path]].concat());
        if let Some(audited) = point.exists().then(from_point) {
            let (told, found) = (String::from_utf8_lossy(&audited.stderr), String::from_utf8_lossy(&audited.stdout));
            if audited.status.success() {
                return;
            }
            assert!(told.contains("audit from a point that was saved before that state"), "{told}{found}");
        }
        let audited = self.meter.json(&save);
        assert_eq!(audited["mismatches"], 0, "{audited}");
    }
}

/// One Redis, or three primaries with a replica each. A slot says which primary a fault is for.
enum Servers {
    One(OwnRedis),
    Cluster(OwnCluster),
}

impl Servers {
    async fn start() -> Servers {
        if std::env::var_os(CLUSTER).is_some() {
            Servers::Cluster(OwnCluster::start().await)
        } else {
            Servers::One(OwnRedis::start(&["--appendfsync", "everysec"]))
        }
    }

    fn url(&self) -> String {
        match self {
            Servers::One(redis) => redis.url(),
            Servers::Cluster(cluster) => cluster.url(),
        }
    }

    fn nodes(&self) -> &[OwnRedis] {
        match self {
            Servers::One(redis) => std::slice::from_ref(redis),
            Servers::Cluster(cluster) => &cluster.nodes,
        }
    }

    async fn stands_still(&self, slot: u16, length: Duration) {
        match self {
            Servers::One(redis) => stands_still(|signal| redis.signal(signal), length).await,
            Servers::Cluster(cluster) => {
                let owner = cluster.owner(slot).await;
                stands_still(|signal| cluster.nodes[owner].signal(signal), length).await;
                cluster.whole().await;
            }
        }
    }

    async fn is_killed(&mut self, slot: u16, length: Duration) {
        match self {
            Servers::One(redis) => {
                redis.kill();
                sleep(length).await;
                redis.back().await;
            }
            Servers::Cluster(cluster) => {
                let owner = cluster.owner(slot).await;
                cluster.nodes[owner].kill();
                sleep(length).await;
                cluster.nodes[owner].back().await;
                cluster.whole().await;
            }
        }
    }

    async fn forgets_scripts(&self) {
        for node in self.nodes() {
            let _: String = node.tell(&["SCRIPT", "FLUSH"]).await;
        }
    }

    async fn rewrites(&self) {
        for node in self.nodes() {
            node.rewrite_aof().await;
        }
    }

    /// To an AOF that is older; a cluster's slots move instead.
    async fn falls_back(&mut self, slot: u16, length: Duration) {
        match self {
            Servers::One(redis) => {
                let copy = redis.copy_aof();
                sleep(length).await;
                redis.fall_back_to(copy.path()).await;
            }
            Servers::Cluster(cluster) => {
                let (from, to) = (cluster.owner(slot).await, cluster.owner(slot ^ (SLOT_MAX / 2)).await);
                if from != to {
                    cluster.move_slots(from, to, SLOT_MAX / 8).await;
                }
                cluster.whole().await;
            }
        }
    }
}

const SURVIVOR: (&str, &str) = ("KAFKA__INSTANCE_ID", "survivor");
const OTHER: (&str, &str) = ("KAFKA__INSTANCE_ID", "other");

async fn stands_still(signal: impl Fn(&str), length: Duration) {
    signal("-STOP");
    sleep(length).await;
    signal("-CONT");
}
