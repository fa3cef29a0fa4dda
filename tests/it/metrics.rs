//! What the metrics say of accounts, and which of them move when something is wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use credit_meter::ledger::outcome::Outcome;
use credit_meter::store::keys::Key;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::billing::renewed;
use crate::redis_answers::unready;
use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::{Meter, Running, SHARDS};
use crate::support::own_kafka::OwnKafka;
use crate::support::redis::OwnRedis;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal, reveal_event};

/// The series of a metric, with their values.
async fn series(running: &Running, name: &str) -> BTreeMap<String, f64> {
    let Some((200, page)) = running.get("/metrics").await else { return BTreeMap::new() };
    let own = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    let parse = |line: &str| {
        let (labels, value) = line.rsplit_once(' ').expect("a value");
        (labels[name.len()..].to_owned(), value.parse().expect("a number"))
    };
    own.map(parse).collect()
}

/// Waits until a metric has a value in one series, or over all.
async fn has(running: &Running, name: &str, labels: &str, enough: impl Fn(f64) -> bool) {
    let what = format!("{name}{labels} moves");
    until(&what, || async {
        let series = series(running, name).await;
        let value = if labels.is_empty() { series.values().next() } else { series.get(labels) };
        value.copied().filter(|value| enough(*value))
    })
    .await;
}

/// Open accounts of a plan by how they stand, over all workers.
async fn accounts(workers: &[&Running], plan: &str) -> [u64; 3] {
    let mut sums = [0; 3];
    for worker in workers {
        let series = series(worker, "credit_meter_accounts").await;
        for (sum, state) in sums.iter_mut().zip(["ok", "low", "exhausted"]) {
            *sum += series.get(&format!("{{plan=\"{plan}\",state=\"{state}\"}}")).copied().unwrap_or(0.0) as u64;
        }
    }
    sums
}

async fn stand(workers: &[&Running], plan: &str, expected: [u64; 3]) {
    until(&format!("accounts of {plan} are {expected:?}"), || async {
        (accounts(workers, plan).await == expected).then_some(())
    })
    .await;
}

/// What is left to an account, as any worker tells it.
async fn remaining(workers: &[&Running], account: &str) -> Option<f64> {
    let mut told = Vec::new();
    for worker in workers {
        let labels = format!("{{account=\"{account}\",credit_type=\"email\"}}");
        told.extend(series(worker, "credit_meter_account_remaining").await.get(&labels).copied());
    }
    assert!(told.len() <= 1, "one worker tells of an account: {told:?}");
    told.pop()
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_in_alarm_are_told_at_once_by_one_worker_each() {
    let topics = Topics::create("census", 2).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("OUTBOX__LEASE", "2s");
    meter.set("REDIS__TIMEOUT", "2s");
    let a = meter.start(&[]);
    a.ready().await;
    for shard in 0..SHARDS {
        let mut put = put(&meter.account_of(shard), "starter"); // 30 e-mail credits, 80 %
        put["data"]["overage"] = "cap".into();
        topics.command(&put).await;
    }
    topics.command(&put("big", "organization")).await;
    meter.caught_up(&topics).await;
    stand(&[&a], "starter", [u64::from(SHARDS), 0, 0]).await;
    let b = meter.start(&[]);
    let both = [&a, &b];
    let empty = meter.account_of(0);
    topics.send("usage", &reveal(&empty, "all and more", 35)).await;
    until("the exhausted account is told", || async { remaining(&both, &empty).await.filter(|left| *left == 0.0) })
        .await;
    assert_eq!(accounts(&both, "starter").await[2], 1);
    let low = meter.account_of(1);
    topics.send("usage", &reveal(&low, "most", 25)).await;
    until("the low account is told", || async { remaining(&both, &low).await.filter(|left| *left == 5.0) }).await;
    let charged = "credit_meter_credits_charged_total";
    until("credits are counted by plan, of a capped event those that were left", || async {
        let mut sum = 0.0;
        for worker in both {
            let labels = "{credit_type=\"email\",plan=\"starter\"}";
            sum += series(worker, charged).await.get(labels).copied().unwrap_or(0.0);
        }
        (sum == 55.0).then_some(())
    })
    .await;

    // A top-up resolves it.
    let grant = ["grant", &empty, "--type", "email", "--amount", "100", "--id", "more", "--json"];
    assert_eq!(meter.json(&grant)["status"], "applied");
    until("the account is no longer told", || async { remaining(&both, &empty).await.is_none().then_some(()) }).await;
    assert_eq!(accounts(&both, "starter").await[2], 0);

    // A worker that is stopped loses its shards to the other, which counts them anew; when it goes on, it tells of none.
    a.signal("-STOP");
    stand(&[&b], "starter", [3, 1, 0]).await;
    stand(&[&b], "organization", [1, 0, 0]).await;
    assert_eq!(remaining(&[&b], &low).await, Some(5.0));
    a.signal("-CONT");
    stand(&[&a], "starter", [0, 0, 0]).await;
    assert_eq!(remaining(&[&a, &b], &low).await, Some(5.0));
    stand(&[&a, &b], "starter", [3, 1, 0]).await;
    assert_eq!(a.get("/livez").await.expect("it serves").0, 200);
    has(&b, "credit_meter_census_timestamp_seconds", "", |at| at > 1.7e9).await;
    has(&b, "credit_meter_event_applied_delay_seconds_count", "", |_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_accounts_that_cannot_be_renewed_are_counted_and_renewed_once_they_can() {
    let topics = Topics::create("sweeping", 1).await;
    let redis = OwnRedis::start(&[]);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    meter.set("TIME__TICK_EVERY", "200ms");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "starter")).await;
    meter.caught_up(&topics).await;
    let failures = "credit_meter_sweep_failures_total";
    has(&running, failures, "", |count| count == 0.0).await;

    // Somebody has changed the account by hand, and then a promo of it ends.
    let key = meter.key(Key::Account("acme"));
    let ends = (chrono::Utc::now() + chrono::TimeDelta::seconds(4)).to_rfc3339();
    let promo =
        ["grant", "acme", "--type", "email", "--amount", "5", "--kind", "promo", "--expires-at", &ends, "--json"];
    assert_eq!(meter.json(&promo)["status"], "applied");
    let version: String = redis.tell(&["HGET", &key, "version"]).await;
    let _: i64 = redis.tell(&["HSET", &key, "version", "abc"]).await;
    has(&running, failures, "", |count| count >= 2.0).await;
    assert_eq!(running.get("/readyz").await.expect("it answers").0, 200, "usage goes on");
    let _: i64 = redis.tell(&["HSET", &key, "version", &version]).await;
    until("the promo has ended", || async {
        let balance = meter.json(&["balance", "acme", "--json"]);
        (balance["balances"]["email"]["expired"] == 5).then_some(())
    })
    .await;
    assert_eq!(meter.audit()["mismatches"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn series_stay_bounded_with_100_000_accounts() {
    const OK: u64 = 40_000;
    const EXHAUSTED: u64 = 60_000;
    let redis = OwnRedis::start(&[]);
    redis.connection().await;
    let topics = Topics::create("bounded", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    meter.set("METRICS__CENSUS_EVERY", "1s");
    meter.set("METRICS__CENSUS_RATE", "1000000");
    let running = meter.start(&[]);
    running.ready().await;
    for account in ["fine", "empty"] {
        topics.command(&put(account, "starter")).await;
    }
    topics.send("usage", &reveal("empty", "all", 30)).await;
    meter.caught_up(&topics).await;
    // As if so many had been put and used up: copies of these two, in the shards where they belong.
    let copy = "for i = 1, #KEYS, 3 do \
          redis.call('COPY', KEYS[i], KEYS[i + 1]) redis.call('ZADD', KEYS[i + 2], ARGV[1], ARGV[1 + (i + 2) / 3]) \
        end";
    let names: Vec<String> = (0..OK + EXHAUSTED).map(|number| format!("copy-{number}")).collect();
    for chunk in names.iter().enumerate().collect::<Vec<_>>().chunks(1_000) {
        let mut eval = redis::cmd("EVAL");
        eval.arg(copy).arg(3 * chunk.len());
        for (number, name) in chunk {
            let of = if (*number as u64) < OK { "fine" } else { "empty" };
            let shard = credit_meter::ledger::shard::shard_of(name, SHARDS);
            for key in [Key::Account(of), Key::Account(name), Key::Due(shard)] {
                eval.arg(meter.key(key));
            }
        }
        eval.arg("9000000000000000");
        for (_, name) in chunk {
            eval.arg(name);
        }
        let _: () = eval.query_async(&mut redis.connection().await).await.expect("redis copies");
    }
    stand(&[&running], "starter", [OK + 1, 0, EXHAUSTED + 1]).await;
    has(&running, "credit_meter_account_series_dropped", "", |dropped| dropped == (EXHAUSTED + 1 - 1_000) as f64).await;
    let (_, page) = running.get("/metrics").await.expect("it serves");
    let named = page.lines().filter(|line| line.starts_with("credit_meter_account_remaining{")).count();
    let all = page.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(named, 1_000, "one credit type of each is in alarm");
    assert!(all < 1_500, "{all} series");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_is_counted_with_its_delay() {
    let topics = Topics::create("renewals", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    let (running, _) = renewed(&topics, &mut meter).await;
    has(&running, "credit_meter_rollovers_total", "", |rollovers| rollovers == 1.0).await;
    // A day after its end, by the broker's clock.
    let delays = series(&running, "credit_meter_rollover_delay_seconds_bucket").await;
    let up_to = |bound: &str| delays[&format!("{{le=\"{bound}\"}}")];
    assert_eq!((up_to("14400"), up_to("+Inf")), (0.0, 1.0), "{delays:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halted_partition_is_told_apart_from_one_that_goes_on() {
    let topics = Topics::create("halted", 2).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("EVENTS__DEAD_LETTERS_MAX", "1");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "basic")).await;
    has(&running, "credit_meter_ready", "{check=\"progress\"}", |ready| ready == 1.0).await;
    for _ in 0..3 {
        let bad = Outgoing { value: Some(b"no event".to_vec()), partition: 1, ..Outgoing::default() };
        topics.send("usage", &bad).await;
    }
    unready(&running, &["[-]progress", "dead_letters_max"]).await;
    has(&running, "credit_meter_partitions_halted", "", |halted| halted == 1.0).await;
    has(&running, "credit_meter_ready", "{check=\"progress\"}", |ready| ready == 0.0).await;
    has(&running, "credit_meter_stalled_seconds", "", |since| since > 0.0).await;
    topics.send("usage", &reveal("acme", "e1", 1)).await;
    has(&running, "credit_meter_event_applied_delay_seconds_count", "", |events| events >= 1.0).await;
    assert_eq!(running.get("/livez").await.expect("it serves").0, 200, "a restart would not help");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stands_still_is_a_standstill_of_the_meter() {
    let redis = OwnRedis::start(&[]);
    redis.connection().await;
    let topics = Topics::create("standstill", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    meter.set("REDIS__TIMEOUT", "1s");
    meter.set("HEALTH__STALL_AFTER", "1s");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "basic")).await;
    meter.caught_up(&topics).await;
    has(&running, "credit_meter_redis_up", "", |up| up == 1.0).await;
    redis.signal("-STOP");
    topics.send("usage", &reveal("acme", "e1", 1)).await;
    unready(&running, &["[-]redis", "[-]progress failed: 1 records of usage:0 wait"]).await;
    has(&running, "credit_meter_redis_up", "", |up| up == 0.0).await;
    has(&running, "credit_meter_stalled_seconds", "", |since| since >= 1.0).await;
    assert_eq!(running.get("/livez").await.expect("it serves").0, 200, "a restart would not help");
    redis.signal("-CONT");
    running.ready().await;
    has(&running, "credit_meter_stalled_seconds", "", |since| since == 0.0).await;
    has(&running, "credit_meter_redis_up", "", |up| up == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_is_told_and_comes_back() {
    let kafka = OwnKafka::start();
    let topics = Topics::create_in(&kafka.brokers, "away", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    has(&running, "credit_meter_kafka_brokers_up", "", |up| up == 1.0).await;
    tokio::task::block_in_place(|| kafka.kill());
    unready(&running, &["[-]kafka", "no broker is connected"]).await;
    has(&running, "credit_meter_kafka_brokers_up", "", |up| up == 0.0).await;
    has(&running, "credit_meter_ready", "{check=\"kafka\"}", |ready| ready == 0.0).await;
    assert_eq!(running.get("/livez").await.expect("it serves").0, 200, "a restart would not help");
    tokio::task::block_in_place(|| kafka.start_again());
    running.ready().await;
    has(&running, "credit_meter_kafka_brokers_up", "", |up| up == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_does_not_drain_is_told_with_its_age() {
    let topics = Topics::create("undrained", 1).await;
    // Too small for the denial of an event whose id does not shrink.
    topics.remake("denied", 1, &[("max.message.bytes", "300")]).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    has(&running, "credit_meter_outbox_oldest_seconds", "", |age| age == 0.0).await;
    topics.command(&put("acme", "starter")).await;
    let random = SmallRng::seed_from_u64(1).random_iter::<u64>().take(12);
    let id: String = random.map(|number| format!("{number:x}")).collect();
    topics.send("usage", &reveal("acme", &id, 31)).await;
    unready(&running, &["[-]outbox", "denied"]).await;
    has(&running, "credit_meter_outbox_failures_total", "", |failures| failures > 0.0).await;
    has(&running, "credit_meter_outbox_oldest_seconds", "", |age| age > 1.0).await;
    has(&running, "credit_meter_outbox_entries", "", |entries| entries >= 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_strange_events_nor_a_storm_of_scrapes_does_harm() {
    const STRANGE: u64 = 2_000;
    const SCRAPERS: usize = 50;
    const SCRAPES: usize = 100;
    let topics = Topics::create("storm", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("EVENTS__DEAD_LETTERS_MAX", "1000000");
    // Those that ask nothing leave ten places to those that ask.
    meter.set("HTTP__CONNECTIONS_MAX", "60");
    let running = meter.start(&[]);
    running.ready().await;
    // One of each kind, so that nearly every series is there that there will be.
    topics.command(&put("acme", "starter")).await;
    let strange = |number: u64| {
        let mut event = reveal_event("acme", &format!("e{number}"), 1);
        event["data"]["action"] = json!(format!("action-{number}"));
        event["data"]["user"] = json!(format!("user-{number}"));
        event["source"] = json!(format!("/source/{number}"));
        event["subject"] = json!(if number.is_multiple_of(2) { "acme".to_owned() } else { format!("team-{number}") });
        let key = event["subject"].as_str().map(|subject| subject.as_bytes().to_vec());
        Outgoing { key, value: Some(event.to_string().into_bytes()), ..Outgoing::default() }
    };
    for number in 0..2 {
        topics.send("usage", &strange(number)).await;
    }
    topics.send("usage", &reveal("acme", "good", 1)).await;
    meter.caught_up(&topics).await;
    meter.published().await;
    let before = running.get("/metrics").await.expect("it answers").1;

    // Scrapers that ask all the time, and as many connections that ask nothing.
    let mut idle = Vec::new();
    for _ in 0..SCRAPERS {
        idle.push(TcpStream::connect(&running.http).await.expect("it is taken"));
    }
    let running = Arc::new(running);
    let mut scrapers = JoinSet::new();
    for _ in 0..SCRAPERS {
        let running = running.clone();
        scrapers.spawn(async move {
            for _ in 0..SCRAPES {
                let (status, page) = running.get("/metrics").await.expect("it answers");
                assert!(status == 200 && page.contains("credit_meter_events_total"), "{status}");
            }
        });
    }
    for number in 2..STRANGE {
        topics.send("usage", &strange(number)).await;
        topics.send("usage", &reveal("acme", &format!("good-{}", number % 20), 1)).await;
    }
    meter.caught_up(&topics).await;
    scrapers.join_all().await;
    drop(idle);

    let totals = meter.totals("usage").await;
    assert_eq!((totals[&Outcome::DeadLettered], totals[&Outcome::Charged]), (STRANGE, 21), "{totals:?}");
    let after = running.get("/metrics").await.expect("it answers").1;
    for word in ["action-", "user-", "/source/", "team-"] {
        assert!(!after.contains(word), "what an event says is no label: {word}");
    }
    // Some that tell of time and of accounts come within the first minutes.
    let (before, after) = (before.lines().count(), after.lines().count());
    assert!(after < before + 100, "{after} lines after {STRANGE} strange events, {before} before");
    assert_eq!(meter.audit()["mismatches"], 0);
}
