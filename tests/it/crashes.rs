//! The worker is killed again and again while events keep coming, once exactly between the script and its reply.
//! Every event is charged once, and the totals add up to the records read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use credit_meter::ledger::call::Partition;
use credit_meter::ledger::outcome::Outcome;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

const KILLS: usize = 15;
const PARTITIONS: i32 = 4;
const ACCOUNTS: u64 = 40;
/// Events a second, in ticks.
const PACE: u64 = 4_000;

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_charged_once_though_the_worker_is_killed_fifteen_times() {
    let topics = Arc::new(Topics::create("crashes", PARTITIONS).await);
    let meter = Meter::new(&topics, CATALOGUE);
    for account in 0..ACCOUNTS {
        topics.command(&put(&format!("team-{account}"), "organization")).await; // e-mail unlimited
    }
    let stop = Arc::new(AtomicBool::new(false));
    let generator = tokio::spawn(generate(topics.clone(), stop.clone()));

    let mut rng = SmallRng::seed_from_u64(15);
    let mut kills = 0;
    let mut lives = 0;
    // One life ends between the script and its reply: the script has run, the worker never learns of it.
    let mut at_failpoint = 0;
    while kills < KILLS || at_failpoint == 0 {
        lives += 1;
        assert!(lives < 200, "only {kills} of {lives} lives counted");
        let before = applied(&meter).await;
        let on_purpose = at_failpoint == 0 && kills >= 3;
        let failpoint: &[(&str, &str)] = if on_purpose { &[("DEBUG__FAILPOINT", "after_apply")] } else { &[] };
        let mut running = meter.start(failpoint);
        if on_purpose {
            let status = until("the failpoint ends the process", || {
                let ended = running.child.try_wait().expect("it is a child");
                async move { ended }
            })
            .await;
            assert!(!status.success(), "it was not killed: {status}");
        } else {
            until("a call is applied", || async { (applied(&meter).await > before).then_some(()) }).await;
            tokio::time::sleep(std::time::Duration::from_millis(rng.random_range(0..400))).await;
            running.kill();
        }
        let after = applied(&meter).await;
        let ends: i64 = topics.ends("usage", PARTITIONS).iter().sum();
        // Only a life that has applied something and left something counts.
        if after > before && ends > after / i64::from(crate::support::meter::SHARDS) {
            kills += usize::from(!on_purpose);
            at_failpoint += usize::from(on_purpose);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent = generator.await.expect("the generator ends");

    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    let totals = meter.totals("usage").await;
    let records = topics.read("usage", PARTITIONS).len() as u64;
    assert_eq!(totals.values().sum::<u64>(), records, "the totals add up to the records");
    assert_eq!(totals.get(&Outcome::Charged), Some(&sent.values().sum::<u64>()), "{totals:?}");
    assert_eq!(totals.len(), 2, "only charged and duplicate: {totals:?}");
    for (account, events) in sent {
        let balance = meter.json(&["balance", &account, "--json"]);
        assert_eq!(balance["balances"]["email"]["used"], json!(events), "{account}: each event once");
    }
    assert_eq!(meter.audit()["records"], json!(records));
    println!("{kills} kills and {at_failpoint} at the failpoint in {lives} lives, {records} records");
}

/// The sum of all positions of all shards: grows with every call that is applied.
async fn applied(meter: &Meter) -> i64 {
    let usage = |partition: &Partition| *partition != Partition::COMMANDS;
    let states = meter.states().await;
    states.iter().flat_map(|state| &state.positions).filter(|(own, _)| usage(own)).map(|(_, at)| at).sum()
}

/// Sends events at a pace until it is told to stop; gives the distinct events of each account.
async fn generate(topics: Arc<Topics>, stop: Arc<AtomicBool>) -> BTreeMap<String, u64> {
    let mut sent = BTreeMap::new();
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
    let in_flight = Arc::new(AtomicU64::new(0));
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        for _ in 0..PACE / 50 {
            number += 1;
            // Every tenth comes twice, the second time in another partition.
            let twice = number.is_multiple_of(10);
            let account = format!("team-{}", number % ACCOUNTS);
            *sent.entry(account.clone()).or_insert(0) += 1;
            for copy in 0..1 + u64::from(twice) {
                let mut record = reveal(&account, &format!("e{number}"), 1);
                record.partition = ((number + copy) % PARTITIONS as u64) as i32;
                let (topics, in_flight) = (topics.clone(), in_flight.clone());
                in_flight.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    topics.send("usage", &record).await;
                    in_flight.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    }
    until("all events are acknowledged", || async { (in_flight.load(Ordering::Relaxed) == 0).then_some(()) }).await;
    sent
}
