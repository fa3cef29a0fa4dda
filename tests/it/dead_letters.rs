//! Records that could not be judged, as the command line lists, shows and sends them again.

use std::thread;
use std::time::{Duration as Time, Instant};

use chrono::{Duration, Utc};
use credit_meter::ingest::client;
use credit_meter::ledger::outcome::Outcome;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::Meter;
use crate::walk::{CATALOGUE, put, reveal, reveal_event};

fn lines(meter: &Meter, arguments: &[&str]) -> Vec<Value> {
    let ended = meter.run(arguments);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let lines = String::from_utf8(ended.stdout).expect("text");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dead_is_listed_shown_and_charged_once_when_it_is_sent_again() {
    let topics = Topics::create("letters", 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "starter")).await; // 30 e-mail credits
    topics.send("usage", &reveal("late-customer", "e1", 2)).await;
    topics.send("usage", &reveal("late-customer", "e2", 3)).await;
    topics.send("usage", &reveal("acme", "e3", 1)).await;
    let mut early = reveal_event("acme", "e4", 1);
    early["time"] = json!((Utc::now() + Duration::days(9)).to_rfc3339());
    topics.send("usage", &record("acme", early.to_string().into_bytes())).await;
    let mut binary = record("acme", b"\x00\xffnot json".to_vec());
    binary.headers = vec![("trace".into(), vec![7, 255])];
    topics.send("usage", &binary).await;
    meter.caught_up(&topics).await;
    assert_eq!(meter.totals("usage").await[&Outcome::DeadLettered], 4);

    let all = lines(&meter, &["dead-letters", "list", "--json"]);
    assert_eq!(all.len(), 4, "{all:?}");
    let of = |reason: &str| all.iter().filter(|letter| letter["reason"] == reason).collect::<Vec<_>>();
    assert_eq!((of("unknown_account").len(), of("too_early").len()), (2, 1), "{all:?}");
    let broken = all.iter().find(|letter| letter["bytes"] == 10).expect("the binary one");
    let place = broken["letter"].as_str().expect("a place");
    let shown = meter.json(&["dead-letters", "show", place, "--json"]);
    assert_eq!((&shown["value"], &shown["headers"]), (&json!("\\x00\\xffnot json"), &json!([["trace", "\\x07\\xff"]])));
    assert_eq!(shown["topic"], topics.name("usage"));
    let missing = meter.run(&["dead-letters", "show", "0@999999"]);
    assert_eq!(missing.status.code(), Some(1));

    // The account comes, and what waited for it is sent again. To say which is a must.
    assert_eq!(meter.run(&["dead-letters", "replay"]).status.code(), Some(2));
    topics.command(&put("late-customer", "starter")).await;
    let usage = topics.name("usage");
    let chosen = ["dead-letters", "replay", "--reason", "unknown_account", "--account", "late-customer", "--json"];
    let dry = meter.json(&[&chosen[..], &["--dry-run"]].concat());
    assert_eq!((&dry["sent"], &dry["dry_run"]), (&json!({ &usage: 2 }), &json!(true)));
    meter.caught_up(&topics).await;
    assert_eq!(meter.json(&["balance", "late-customer", "--json"])["balances"]["email"]["used"], 0, "nothing was sent");
    assert_eq!(meter.json(&chosen)["sent"], json!({ &usage: 2 }));
    meter.caught_up(&topics).await;
    assert_eq!(meter.json(&["balance", "late-customer", "--json"])["balances"]["email"]["used"], 5);
    // Once more does no harm; what is still dead is so again, byte for byte.
    assert_eq!(meter.json(&chosen)["sent"], json!({ &usage: 2 }));
    assert_eq!(meter.json(&["dead-letters", "replay", place, "--json"])["sent"], json!({ &usage: 1 }));
    meter.caught_up(&topics).await;
    assert_eq!(meter.json(&["balance", "late-customer", "--json"])["balances"]["email"]["used"], 5);
    let totals = meter.totals("usage").await;
    assert_eq!((totals[&Outcome::Duplicate], totals[&Outcome::DeadLettered]), (2, 5), "{totals:?}");
    let again = lines(&meter, &["dead-letters", "list", "--json"]);
    let same: Vec<&Value> = again.iter().filter(|letter| letter["bytes"] == 10).collect();
    let place = same[1]["letter"].as_str().expect("a place");
    assert_eq!(meter.json(&["dead-letters", "show", place, "--json"])["headers"], shown["headers"]);
    assert_eq!(meter.audit()["mismatches"], 0);
}

fn record(account: &str, value: Vec<u8>) -> Outgoing {
    Outgoing { key: Some(account.into()), value: Some(value), ..Outgoing::default() }
}

/// As dead records are read again, and partitions after a rebalance of which there was enough: the client may take what is asked of
/// a partition for outdated while it starts it. Several at once, so that threads are in each other's way: resumed after it is
/// assigned, a partition was left paused about once in ten thousand times, so this may pass where it should not.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_paused_is_read_from_where_it_is_assigned_anew() {
    const RECORDS: i64 = 50;
    let topics = Topics::create("paused", 24).await;
    for number in 0..RECORDS {
        for partition in 0..24 {
            topics.send("usage", &Outgoing { partition, ..record("acme", number.to_string().into_bytes()) }).await;
        }
    }
    let read = |partition: i32| {
        let (topic, brokers) = (topics.name("usage"), topics.brokers.clone());
        thread::spawn(move || {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", brokers).set("group.id", &topic).set("fetch.wait.max.ms", "10");
            let consumer: BaseConsumer = config.create().expect("the settings are right");
            for turn in 0..400 {
                let mut list = TopicPartitionList::new();
                let offset = turn % RECORDS;
                list.add_partition_offset(&topic, partition, Offset::Offset(offset)).expect("a valid offset");
                client::assign(&consumer, &list).expect("it is assigned");
                // It may give nothing before its time is over, where it passes over what is from before.
                let since = Instant::now();
                let message = loop {
                    match consumer.poll(Time::from_secs(1)) {
                        Some(message) => break message.expect("a record"),
                        None => assert!(since.elapsed() < Time::from_secs(60), "turn {turn}: nothing comes"),
                    }
                };
                assert_eq!(message.offset(), offset);
                consumer.pause(&list).expect("it is paused");
            }
        })
    };
    let reading: Vec<_> = (0..24).map(read).collect();
    tokio::task::block_in_place(|| reading.into_iter().for_each(|thread| thread.join().expect("all was read")));
}
