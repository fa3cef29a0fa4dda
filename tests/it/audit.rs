//! The audit folds the log by itself: it agrees with a meter that goes on, and names what was changed by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use credit_meter::ledger::day::SetIndex;
use credit_meter::ledger::event::{DAY_MS, Identity};
use credit_meter::store::Store;
use credit_meter::store::keys::Key;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::Meter;
use crate::support::redis::shared;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal, reveal_event};

const PARTITIONS: i32 = 3;

/// Traffic of every outcome, over all partitions. Gives the number of records.
async fn traffic(topics: &Topics, round: u64) -> u64 {
    let mut sends = Vec::new();
    for number in 0..200u64 {
        let id = format!("r{round}-{number}");
        let account = ["small", "capped", "large", "nobody"][number as usize % 4];
        let mut record = reveal(account, &id, 1 + number % 7);
        record.partition = (number % PARTITIONS as u64) as i32;
        sends.push(record.clone());
        if number.is_multiple_of(5) {
            // A retry, often in another partition.
            record.partition = (number / 5 % PARTITIONS as u64) as i32;
            sends.push(record);
        }
        if number.is_multiple_of(50) {
            let broken = Outgoing { value: Some(b"{".to_vec()), partition: 1, ..Outgoing::default() };
            sends.push(broken);
            let mut event = reveal_event("small", &format!("{id}-phone"), 1);
            event["data"]["action"] = json!("reveal_phone"); // not on its plan
            sends.push(Outgoing { value: Some(event.to_string().into_bytes()), ..Outgoing::default() });
        }
    }
    let records = sends.len() as u64;
    futures(topics, sends).await;
    records
}

async fn futures(topics: &Topics, records: Vec<Outgoing>) {
    for chunk in records.chunks(100) {
        let mut waiting = Vec::new();
        for record in chunk {
            waiting.push(topics.send("usage", record));
        }
        for sent in waiting {
            sent.await;
        }
    }
}

pub fn top_up(account: &str, id: &str, amount: u64) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "test", "type": "credits.grant.v1", "subject": account,
        "time": chrono::Utc::now().to_rfc3339(),
        "data": { "credit_type": "email", "amount": amount, "kind": "topup" },
    })
}

async fn accounts(topics: &Topics) {
    for (account, plan) in [("small", "starter"), ("capped", "capped"), ("large", "organization")] {
        topics.command(&put(account, plan)).await;
    }
}

/// The clock of whoever closes it is behind, or the command was on its way while it was used.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_charged_after_an_account_was_closed_and_before_that_was_applied_agrees() {
    let topics = Topics::create("audit-close", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("small", "starter")).await;
    topics.send("usage", &reveal("small", "before", 3)).await;
    meter.caught_up(&topics).await;
    let close = json!({
        "specversion": "1.0", "id": "close", "source": "test", "type": "credits.account.close.v1", "subject": "small",
        "time": (chrono::Utc::now() - chrono::TimeDelta::minutes(1)).to_rfc3339(), "data": {},
    });
    topics.command(&close).await;
    meter.caught_up(&topics).await;
    meter.audit();
    topics.send("usage", &reveal("small", "after", 5)).await; // a dead letter
    meter.caught_up(&topics).await;
    meter.published().await;
    meter.audit();
    let from = (chrono::Utc::now() - chrono::TimeDelta::days(1)).to_rfc3339();
    let events = meter.json(&["events", "small", "--from", &from, "--json"]);
    assert_eq!(events["outcomes"], json!({ "charged": 1, "dead_lettered": 1 }), "{events}");
    assert_eq!(events["used"]["email"], 3);

    // What is in Redis and was not charged is found as ever.
    let Store::Redis(store) = &meter.store else { unreachable!("the tests use a real redis") };
    let key = store.keys().spell(Key::Account("small"));
    let mut connection = shared().await;
    let fields: std::collections::BTreeMap<String, String> =
        redis::cmd("HGETALL").arg(&key).query_async(&mut connection).await.expect("redis answers");
    let (field, text) =
        fields.iter().find(|(name, _)| name.starts_with("closed:") && name.ends_with(":email")).expect("one");
    let mut numbers: Vec<&str> = text.split(' ').collect();
    assert_eq!(numbers[6], "3000", "what was charged: {text}");
    numbers[6] = "4000";
    let _: i64 = redis::cmd("HSET")
        .arg(&key)
        .arg(field)
        .arg(numbers.join(" "))
        .query_async(&mut connection)
        .await
        .expect("redis answers");
    assert!(!meter.run(&["audit"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_and_redis_agree_while_the_meter_goes_on() {
    let topics = Arc::new(Topics::create("audit", PARTITIONS).await);
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    accounts(&topics).await;
    let stop = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn({
        let (topics, stop) = (topics.clone(), stop.clone());
        async move {
            let mut records = 0;
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                records += traffic(&topics, round).await;
                topics.command(&top_up("small", &format!("t{round}"), 20)).await;
                topics.command(&top_up("small", &format!("t{}", round / 2), 20)).await; // every other one again
                topics.command(&top_up("nobody", &format!("t{round}"), 20)).await; // refused
                round += 1;
            }
            records
        }
    });
    running.ready().await;
    let mut audited = Vec::new();
    for _ in 0..4 {
        audited.push(tokio::task::block_in_place(|| meter.audit())["records"].as_u64().expect("a count"));
    }
    assert!(audited.windows(2).all(|pair| pair[0] <= pair[1]), "{audited:?}");
    stop.store(true, Ordering::Relaxed);
    let records = sending.await.expect("the traffic ends");
    meter.caught_up(&topics).await;

    let report = meter.audit();
    assert_eq!(report["records"], json!(records));
    assert!(report["usage_days"].as_u64().is_some_and(|days| days >= 3), "a day of each account: {report}");
    assert_eq!(report["accounts_checked"], json!(3));
    let outcomes = report["outcomes"].as_object().expect("outcomes");
    let totals = meter.totals("usage").await;
    for (outcome, records) in &totals {
        assert_eq!(outcomes[outcome.name()], json!(records), "{report}");
    }
    assert_eq!(outcomes.len(), totals.len());
    for outcome in ["charged", "capped", "denied", "duplicate", "dead_lettered"] {
        assert!(outcomes[outcome].as_u64().is_some_and(|records| records > 0), "no {outcome}: {report}");
    }
    for outcome in ["applied", "duplicate", "refused"] {
        assert!(report["commands"][outcome].as_u64().is_some_and(|commands| commands > 0), "no {outcome}: {report}");
    }
    let following = meter.start_with(&["audit", "--follow"], &[]);
    let page = until("an audit has ended", || async {
        let (_, page) = following.get("/metrics").await?;
        page.contains("credit_meter_audits_total{result=\"clean\"} 1").then_some(page)
    })
    .await;
    for line in ["credit_meter_audit_accounts_checked 3", "credit_meter_audit_mismatches 0"] {
        assert!(page.lines().any(|own| own == line), "{line} is not in\n{page}");
    }
    assert!(following.terminate().await.success());
    // With hardly any memory each account is audited by itself, and nothing else changes.
    let output = meter.run(&["audit", "--json", "--memory", "20KiB"]);
    let sliced: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(sliced["passes"].as_u64().is_some_and(|passes| passes > 1), "{sliced}");
    for field in ["accounts_checked", "mismatches", "records", "outcomes", "commands"] {
        assert_eq!(sliced[field], report[field], "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_judged_before_its_account_was_upgraded_agrees() {
    let topics = Topics::create("audit-upgrade", 1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("catalogue.toml");
    let text = std::fs::read_to_string(CATALOGUE).expect("the price list");
    std::fs::write(&path, text.replacen("[plans.basic]", "[plans.basic]\nprices = { reveal_email = 2 }", 1))
        .expect("it is written");
    let meter = Meter::new(&topics, path.to_str().expect("a plain path"));
    let running = meter.start(&[]);
    running.ready().await;
    let phone = |id: &str| {
        let mut event = reveal_event("acme", id, 1);
        event["data"]["action"] = json!("reveal_phone"); // only on the second plan
        Outgoing { key: Some("acme".into()), value: Some(event.to_string().into_bytes()), ..Outgoing::default() }
    };
    topics.command(&put("acme", "starter")).await;
    topics.send("usage", &reveal("acme", "before", 3)).await;
    topics.send("usage", &phone("denied")).await;
    meter.caught_up(&topics).await;
    let mut upgrade = put("acme", "basic");
    upgrade["id"] = json!("upgrade");
    topics.command(&upgrade).await;
    meter.caught_up(&topics).await;
    topics.send("usage", &reveal("acme", "after", 4)).await;
    topics.send("usage", &phone("charged")).await;
    meter.caught_up(&topics).await;

    let balance = meter.json(&["balance", "acme", "--json"]);
    assert_eq!((&balance["plan"], &balance["balances"]["email"]["used"]), (&json!("basic"), &json!(11)), "{balance}");
    let report = meter.audit();
    assert_eq!(report["outcomes"], json!({ "charged": 3, "denied": 1 }), "{report}");
    meter.published().await;
    assert_eq!(meter.audit()["mismatches"], 0);
    // Each is told of by the plan in force when it was appended.
    let told = meter.json(&["events", "acme", "--json"]);
    assert_eq!(told["used"], json!({ "email": 11, "phone": 1.5 }), "{told}");
    for (id, outcome, price) in
        [("before", "charged", 3.0), ("denied", "denied", 1.5), ("after", "charged", 8.0), ("charged", "charged", 1.5)]
    {
        let event = told["events"].as_array().expect("events").iter().find(|event| event["id"] == id);
        let event = event.unwrap_or_else(|| panic!("no {id}: {told}"));
        assert_eq!((&event["outcome"], event["price"].as_f64()), (&json!(outcome), Some(price)), "{event}");
    }
    assert!(running.terminate().await.success());
}

/// A state at rest, to be changed by hand.
struct ByHand {
    topics: Topics,
    meter: Meter,
    redis: MultiplexedConnection,
}

impl ByHand {
    fn key(&self, key: Key) -> String {
        let Store::Redis(store) = &self.meter.store else { unreachable!("the tests use a real redis") };
        store.keys().spell(key)
    }

    async fn run(&mut self, command: &[&str]) -> redis::Value {
        let mut sent = redis::cmd(command[0]);
        for argument in &command[1..] {
            sent.arg(argument);
        }
        sent.query_async(&mut self.redis).await.expect("redis answers")
    }

    /// The audit must fail, and name the account (or none) and what is different.
    fn names(&self, account: Option<&str>, what: &str) -> Value {
        let output = self.meter.run(&["audit", "--json"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {told}");
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{what}: {error}: {told}"));
        let differences = report["differences"].as_array().expect("differences");
        let named =
            differences.iter().find(|difference| difference["account"] == json!(account) && difference["what"] == what);
        named.unwrap_or_else(|| panic!("{account:?} {what} is not in {report}")).clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_by_hand_is_named() {
    let topics = Topics::create("audit-by-hand", PARTITIONS).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    accounts(&topics).await;
    traffic(&topics, 0).await;
    let mut costly = reveal("large", "costly", 4321);
    costly.partition = 2;
    let costly_at = topics.send("usage", &costly).await;
    let other_at = topics.send("usage", &Outgoing { partition: 2, ..reveal("large", "other", 1) }).await;
    meter.caught_up(&topics).await;
    meter.published().await;
    meter.audit();
    assert!(running.terminate().await.success());
    let redis = shared().await;
    let mut hand = ByHand { topics, meter, redis };

    let large = hand.key(Key::Account("large"));
    // As if the event had been charged twice.
    hand.run(&["HINCRBY", &large, "email.c", "4321000"]).await;
    let named = hand.names(Some("large"), "email.charged");
    let record = &named["records"][0];
    assert_eq!((&record["partition"], &record["offset"]), (&json!(2), &json!(costly_at)), "{named}");
    assert_eq!((&record["outcome"], &record["cost"]), (&json!("charged"), &json!(4321)), "{named}");
    hand.run(&["HINCRBY", &large, "email.c", "-4321000"]).await;

    hand.run(&["HINCRBY", &large, "phone.g", "1"]).await;
    hand.names(Some("large"), "phone.granted");
    hand.run(&["HINCRBY", &large, "phone.g", "-1"]).await;

    hand.run(&["HSET", &large, "plan", "basic"]).await;
    hand.names(Some("large"), "plan");
    hand.run(&["HSET", &large, "plan", "organization"]).await;

    // As if the event had never been seen.
    let day = chrono::Utc::now().timestamp_millis().div_euclid(DAY_MS);
    let (member, mut removed) = (Identity::of("test", "costly").member.to_string(), None);
    for day in [day - 1, day] {
        let set = hand.key(Key::Day("large", day, SetIndex::ONLY));
        if hand.run(&["SREM", &set, &member]).await == redis::Value::Int(1) {
            removed = Some((day, set));
        }
    }
    let (day, set) = removed.expect("it was remembered");
    let date = chrono::DateTime::from_timestamp_millis(day * DAY_MS).expect("a day").date_naive();
    hand.names(Some("large"), &format!("remembered on {date}"));
    hand.run(&["SADD", &set, &member]).await;

    // As if all of a day's usage had been counted twice, and not at all.
    let journal = hand.key(Key::Journal("large", date));
    hand.run(&["COPY", &journal, "by-hand"]).await;
    let what = format!("usage on {date} of no member, reveal_email");
    hand.run(&["EVAL", "redis.call('APPEND', KEYS[1], redis.call('GET', KEYS[1]))", "1", &journal]).await;
    let twice = hand.names(Some("large"), &what);
    hand.run(&["DEL", &journal]).await;
    let never = hand.names(Some("large"), &what);
    assert_eq!(never["expected"], twice["expected"]);
    assert_eq!(never["found"], "0 charged 0, 0 denied, 0 free");
    hand.run(&["RENAME", "by-hand", &journal]).await;

    // Its members have no limits, so that nothing is counted for them.
    let counts = hand.key(Key::Members("large", 0));
    hand.run(&["HSET", &counts, "email:u-1", "1000"]).await;
    hand.names(Some("large"), "email counted for member u-1 in cycle 0");
    hand.run(&["DEL", &counts]).await;

    let shard = hand.key(Key::Shard(0));
    hand.run(&["HINCRBY", &shard, "total:usage:1:free", "2"]).await;
    hand.names(None, "total usage:1 free");
    hand.run(&["HINCRBY", &shard, "total:usage:1:free", "-2"]).await;

    let Store::Redis(store) = &hand.meter.store else { unreachable!("the tests use a real redis") };
    let own_shard = store.keys().shard_of("large");
    let due = hand.key(Key::Due(own_shard));
    let redis::Value::BulkString(score) = hand.run(&["ZSCORE", &due, "large"]).await else { panic!("it is due") };
    let score = String::from_utf8(score).expect("a number");
    hand.run(&["ZREM", &due, "large"]).await;
    hand.names(Some("large"), "account");
    hand.run(&["ZADD", &due, &score, "large"]).await;

    hand.run(&["COPY", &large, "by-hand"]).await;
    hand.run(&["DEL", &large]).await;
    assert_eq!(hand.names(Some("large"), "account")["found"], "nothing");
    hand.run(&["COPY", "by-hand", &large]).await;
    hand.run(&["DEL", "by-hand"]).await;
    hand.meter.audit();

    // A denial of an event that was charged, then one of an event that is not there.
    let denial = |offset: i64, id: &str| {
        let value = json!({
            "specversion": "1.0", "id": "forged", "source": hand.meter.prefix, "type": "credits.denied.v1",
            "subject": "large", "data": { "reason": "insufficient_credits", "events": [{
                "source": "test", "id": id, "topic": hand.topics.name("usage"), "partition": 2, "offset": offset,
                "action": "reveal_email", "credit_type": "email", "required": 4321, "remaining": 0,
            }]},
        });
        Outgoing { value: Some(value.to_string().into_bytes()), ..Outgoing::default() }
    };
    hand.topics.send("denied", &denial(costly_at, "costly")).await;
    assert_eq!(hand.names(Some("large"), "email.charged")["records"][0]["outcome"], "denied");
    hand.topics.send("denied", &denial(other_at, "never sent")).await;
    hand.names(Some("large"), "denial");
    // A denial of what is not applied yet is nobody's fault.
    let report = hand.names(Some("large"), "denial");
    hand.topics.send("denied", &denial(costly_at + 1000, "never sent")).await;
    assert_eq!(hand.names(Some("large"), "denial"), report);

    let letter = |partition: i32, offset: i64| Outgoing {
        value: Some(b"{".to_vec()),
        headers: vec![
            ("__connect.errors.topic".into(), hand.topics.name("usage").into_bytes()),
            ("__connect.errors.partition".into(), partition.to_string().into_bytes()),
            ("__connect.errors.offset".into(), offset.to_string().into_bytes()),
            ("__connect.errors.connector.name".into(), hand.meter.prefix.clone().into_bytes()),
        ],
        ..Outgoing::default()
    };
    hand.topics.send("dead-letter", &letter(2, costly_at)).await;
    hand.names(Some("large"), "denial"); // dead, and denied
    hand.names(None, "total usage:2 dead_lettered");
}

/// Whether a balance would have become too large depended on usage of then, and on what was left of grants.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_were_refused_for_their_size_stay_refused_for_the_audit() {
    let topics = Topics::create("too-large", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "organization")).await;
    topics.send("usage", &reveal("acme", "e1", 3)).await;
    meter.caught_up(&topics).await;
    let refused = |arguments: &[&str]| {
        let told = meter.run(arguments);
        assert_eq!(told.status.code(), Some(1), "{arguments:?}");
        String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned()
    };
    let all = "-1000000000000";
    let told = refused(&["adjust", "acme", "--type", "email", "--amount", all, "--reason", "a slip"]);
    assert!(told.contains("-1000000000000 credits of email would exceed"), "{told}");
    for number in 0..2 {
        let id = format!("g{number}");
        let large = ["--type", "email", "--amount", "900000000000", "--id", &id];
        meter.json(&[&["grant", "acme", "--json"], &large[..]].concat());
        meter.json(&["void-grant", "acme", "--grant", &id, "--json"]);
    }
    let report = meter.audit();
    assert_eq!(report["commands"], json!({ "applied": 5, "refused": 1 }), "{report}");
}
