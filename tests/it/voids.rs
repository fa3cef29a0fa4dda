//! Charges that are taken back by `credits.usage.void.v1`, through a real Kafka and Redis.

use std::collections::BTreeMap;

use chrono::Utc;
use credit_meter::ledger::event::DAY_MS;
use credit_meter::ledger::outcome::Outcome;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::dump;
use crate::support::kafka::{Outgoing, Topics, data, header, kind};
use crate::support::meter::Meter;
use crate::support::redis::shared;
use crate::support::until;
use crate::walk::{outgoing, put};

const CATALOGUE: &str = "tests/data/catalogue-voids.toml";

fn event(account: &str, id: &str, action: &str, more: Value) -> Value {
    let mut data = json!({ "action": action, "user": "ada" });
    data.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({
        "specversion": "1.0", "id": id, "source": "reveals", "type": "credits.usage.v1", "subject": account,
        "time": Utc::now().to_rfc3339(), "data": data,
    })
}

/// The void of an event, with all that the event says.
pub fn void(event: &Value, id: &str) -> Value {
    let mut data = event["data"].clone();
    for name in ["source", "id", "time"] {
        data[name] = event[name].clone();
    }
    json!({
        "specversion": "1.0", "id": id, "source": "refunds", "type": "credits.usage.void.v1", "subject": event["subject"],
        "time": Utc::now().to_rfc3339(), "data": data,
    })
}

async fn send(topics: &Topics, partition: i32, event: &Value) {
    topics.send("usage", &Outgoing { partition, ..outgoing(event) }).await;
}

fn used(meter: &Meter, account: &str, credit_type: &str) -> Value {
    meter.json(&["balance", account, "--json"])["balances"][credit_type]["used"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_gives_back_what_was_charged_once() {
    let topics = Topics::create("voids", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "team")).await;
    let send = async |events: &[&Value]| {
        for event in events {
            send(&topics, 0, event).await;
        }
        meter.caught_up(&topics).await;
    };
    // Seven of ten, and what is exhausted by it comes back.
    let first = event("acme", "e1", "reveal_email", json!({ "quantity": 7 }));
    let second = event("acme", "e2", "reveal_email", json!({ "quantity": 3 }));
    send(&[&first, &second]).await;
    assert_eq!(used(&meter, "acme", "email"), 10);
    // Whatever it says of the price: seven are given back, and once.
    let mut voids = void(&first, "v1");
    voids["data"]["quantity"] = json!(1_000_000);
    send(&[&voids, &voids, &void(&first, "v2")]).await;
    assert_eq!(used(&meter, "acme", "email"), 3);
    send(&[&first]).await; // a retry of the event is one still
    assert_eq!(used(&meter, "acme", "email"), 3);

    // Nothing was charged, or not yet.
    let free = event("acme", "e3", "reveal_email", json!({ "outcome": "not_found" }));
    let denied = event("acme", "e4", "reveal_email", json!({ "quantity": 8 }));
    let later = event("acme", "e5", "reveal_email", json!({ "quantity": 2 }));
    send(&[&free, &void(&free, "v3"), &denied, &void(&denied, "v4"), &void(&later, "v5"), &later]).await;
    assert_eq!(used(&meter, "acme", "email"), 3);

    // What is charged once: the mark goes with the charge.
    let contact = json!({ "contact": "c1" });
    let calls: Vec<Value> = (1..=4).map(|n| event("acme", &format!("p{n}"), "reveal_phone", contact.clone())).collect();
    send(&[&calls[0], &calls[1]]).await;
    assert_eq!(used(&meter, "acme", "phone"), 1.5);
    send(&[&void(&calls[1], "v6")]).await; // it was free
    assert_eq!(used(&meter, "acme", "phone"), 1.5);
    send(&[&void(&calls[0], "v7"), &calls[2], &calls[3]]).await;
    assert_eq!(used(&meter, "acme", "phone"), 1.5);

    // No void of what cannot be voided; and one that says too little.
    let export = event("acme", "x1", "export", json!({}));
    let mut nameless = void(&second, "v9");
    nameless["data"].as_object_mut().expect("an object").remove("id");
    send(&[&export, &void(&export, "v8"), &nameless]).await;
    assert_eq!(used(&meter, "acme", "email"), 5);
    let dead = topics.read("dead-letter", 1);
    let reasons: Vec<_> =
        dead.iter().filter_map(|dead| header(dead, "__connect.errors.exception.class.name")).collect();
    assert_eq!(reasons, ["not_voidable", "missing_field"]);

    meter.published().await;
    let totals: Vec<_> = meter.totals("usage").await.into_iter().collect();
    let expected = [
        (Outcome::DeadLettered, 2),
        (Outcome::Duplicate, 3),
        (Outcome::Denied, 1),
        (Outcome::Free, 3),
        (Outcome::Charged, 5),
        (Outcome::Voided, 7),
    ];
    assert_eq!(totals, expected);
    let refunds: Vec<Value> =
        topics.read("ledger", 1).iter().filter(|line| kind(line) == "credits.ledger.refund.v1").map(data).collect();
    let told = |line: &Value| (line["credit_type"].clone(), line["amount"].clone(), line["before"].clone());
    assert_eq!(
        refunds.iter().map(told).collect::<Vec<_>>(),
        [(json!("email"), json!(7), json!(0)), (json!("phone"), json!(1.5), json!(4.5))]
    );
    assert_eq!(refunds[0]["cause"], json!({ "source": "refunds", "id": "v1" }));
    let alerts: Vec<String> = topics.read("alerts", 1).iter().map(kind).collect();
    assert!(alerts.contains(&"credits.restored.v1".to_owned()), "{alerts:?}");

    // Usage by day and member is what was charged in the end; event by event it is told as it came.
    let usage = meter.json(&["usage", "acme", "--by", "user,action", "--json"]);
    let rows = usage["usage"].as_array().expect("rows").iter();
    let credits: BTreeMap<&str, &Value> =
        rows.map(|row| (row["action"].as_str().expect("a name"), &row["credits"])).collect();
    let expected = [("export", &json!(2)), ("reveal_email", &json!(3)), ("reveal_phone", &json!(1.5))];
    assert_eq!(credits, BTreeMap::from(expected), "{usage}");
    let events = meter.json(&["events", "acme", "--json"]);
    let of = |id: &str| events["events"].as_array().expect("a list").iter().find(|event| event["id"] == id).cloned();
    let told = |id: &str| of(id).map(|event| (event["outcome"].clone(), event["cost"].clone()));
    assert_eq!(told("e1"), Some((json!("charged"), json!(7))), "{events}");
    assert_eq!(told("v1"), Some((json!("voided"), json!(-7))), "{events}");
    assert_eq!(told("e5"), Some((json!("voided"), json!(0))), "{events}");
    assert_eq!(events["used"], json!({ "email": 5, "phone": 1.5 }), "what was given back is not used");
    // A void names whose event it took back, and which; no other row does.
    let named = |id: &str| of(id).map(|event| (event["user"].clone(), event.get("voids").cloned()));
    assert_eq!(named("e1"), Some((json!("ada"), None)), "{events}");
    assert_eq!(named("v1"), Some((json!("ada"), Some(json!({ "source": "reveals", "id": "e1" })))), "{events}");
    assert_eq!(named("v8"), Some((json!("ada"), Some(json!({ "source": "reveals", "id": "x1" })))), "not voidable");
    assert_eq!(named("e5"), Some((json!("ada"), None)), "it came after its void");
    let shown =
        |format: &[&str]| String::from_utf8(meter.run(&[&["events", "acme"], format].concat()).stdout).expect("text");
    let csv = shown(&["--csv"]);
    let (head, row) = (csv.lines().next(), csv.lines().find(|line| line.contains(",refunds,v1,")));
    assert!(head.is_some_and(|head| head.ends_with(",offset,voids_source,voids_id")), "{csv}");
    assert!(row.is_some_and(|row| row.contains(",ada,voided,") && row.ends_with(",reveals,e1")), "{csv}");
    let text = shown(&[]);
    let row = text.lines().find(|line| line.contains(" v1 ")).expect("a row");
    assert!(row.contains(" ada ") && row.trim_end().ends_with(" e1"), "{text}");
    meter.audit();
}

#[tokio::test(flavor = "multi_thread")]
async fn voids_and_retries_in_any_order_while_workers_die() {
    const PARTITIONS: i32 = 3;
    let topics = Topics::create("void-chaos", PARTITIONS).await;
    let meter = Meter::new(&topics, CATALOGUE);
    topics.command(&put("large", "large")).await;
    let mut rng = SmallRng::seed_from_u64(7);
    let mut running = vec![meter.start(&[]), meter.start(&[])];
    running[0].ready().await;
    let mut kept = 0;
    for round in 0..4 {
        // All of an event's records are in one partition, as a key keeps them; their order is any.
        let mut records: Vec<(i32, Value)> = Vec::new();
        for number in 0..150 {
            let partition = rng.random_range(0..PARTITIONS);
            let quantity = rng.random_range(1..4);
            let event = event("large", &format!("{round}-{number}"), "reveal_email", json!({ "quantity": quantity }));
            records.push((partition, event.clone()));
            if rng.random_bool(0.2) {
                records.push((partition, event.clone()));
            }
            if rng.random_bool(0.4) {
                for again in 0..rng.random_range(1..3) {
                    records
                        .push((rng.random_range(0..PARTITIONS), void(&event, &format!("v{round}-{number}-{again}"))));
                }
            } else {
                kept += quantity;
            }
        }
        records.shuffle(&mut rng);
        for (partition, record) in &records {
            send(&topics, *partition, record).await;
        }
        drop(running.pop());
        running.insert(0, meter.start(&[]));
    }
    meter.caught_up(&topics).await;
    assert_eq!(used(&meter, "large", "email"), json!(kept));
    meter.published().await;
    meter.audit();

    // The log alone gives the same again.
    drop(running);
    let mut connection = shared().await;
    let keys = dump::keys(&mut connection, &meter.prefix).await;
    let charges: Vec<&String> = keys.iter().filter(|key| key.contains("}:v:")).collect();
    assert!([1, 2].contains(&charges.len()), "a day's charges, or two days': {charges:?}");
    let _: () = redis::cmd("DEL").arg(&keys).query_async(&mut connection).await.expect("redis answers");
    meter.json(&["rebuild", "--json"]);
    assert_eq!(used(&meter, "large", "email"), json!(kept));
    meter.audit();
    // What Redis says that was given back, and was not, is found.
    let key = meter.key(credit_meter::store::keys::Key::Account("large"));
    let _: () =
        redis::cmd("HINCRBY").arg(&key).arg("email.c").arg(-1_000).query_async(&mut connection).await.expect("ok");
    let output = meter.run(&["audit", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["mismatches"], json!(1), "{report}");
}

/// An adjustment and an add-on in between settle what was used.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_top_up_gave_is_in_it_again() {
    let topics = Topics::create("void-top-up", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "team")).await; // 10 e-mail credits
    let next_year = (Utc::now() + chrono::TimeDelta::days(365)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    meter.json(&["grant", "acme", "--type", "email", "--amount", "20", "--expires-at", &next_year, "--json"]);
    let events =
        [10, 5].map(|number| event("acme", &format!("e{number}"), "reveal_email", json!({ "quantity": number })));
    for event in &events {
        send(&topics, 0, event).await;
    }
    meter.caught_up(&topics).await;
    let left = || meter.json(&["balance", "acme", "--json"])["grants"][0]["left"].clone();
    assert_eq!(left(), 15);
    meter.json(&["adjust", "acme", "--type", "email", "--amount", "-1", "--reason", "a wrong number", "--json"]);
    assert_eq!(left(), 14);
    meter.json(&["addon", "set", "acme", "email=2", "--json"]);
    send(&topics, 0, &void(&events[1], "v1")).await;
    meter.caught_up(&topics).await;
    assert_eq!(left(), 19);
    let email = meter.json(&["balance", "acme", "--json"])["balances"]["email"].clone();
    assert_eq!((&email["used"], &email["remaining"]), (&json!(11), &json!(21)), "{email}");
    meter.audit();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_whose_day_is_forgotten_is_too_late() {
    let topics = Topics::stamped("void-late", 1, "CreateTime").await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("EVENTS__AGE_FROM", "create");
    meter.set("EVENTS__LATE_AFTER", "48h");
    meter.set("TIME__TICK_EVERY", "200ms");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "team")).await;
    let now_ms = Utc::now().timestamp_millis();
    let at = |event: Value, time_ms: i64| {
        let mut event = event;
        event["time"] = json!(chrono::DateTime::from_timestamp_millis(time_ms).expect("a time").to_rfc3339());
        event
    };
    let send = async |event: &Value, time_ms: i64| {
        let value = Some(event.to_string().into_bytes());
        let record = Outgoing { key: Some("acme".into()), value, ..Outgoing::default() };
        topics.send_at("usage", &record, time_ms).await;
        meter.caught_up(&topics).await;
    };
    let old_ms = now_ms - 6 * DAY_MS;
    let (old, older) = (event("acme", "e1", "reveal_email", json!({})), event("acme", "e2", "reveal_email", json!({})));
    let (old, older) = (at(old, old_ms), at(older, old_ms - 1));
    send(&old, old_ms).await;
    send(&older, old_ms).await;
    send(&at(void(&old, "v1"), now_ms - 5 * DAY_MS), now_ms - 5 * DAY_MS).await;
    assert_eq!(used(&meter, "acme", "email"), 1);
    // Days pass.
    let new = at(event("acme", "e3", "reveal_email", json!({})), now_ms);
    send(&new, now_ms).await;
    let charges = async || {
        let keys = dump::keys(&mut shared().await, &meter.prefix).await;
        keys.into_iter().filter(|key| key.contains("}:v:")).count()
    };
    until("the old day is forgotten", || async { (charges().await == 1).then_some(()) }).await;
    send(&void(&older, "v2"), now_ms).await;
    assert_eq!(used(&meter, "acme", "email"), 2);
    meter.published().await;
    let dead = topics.read("dead-letter", 1);
    let reasons: Vec<_> =
        dead.iter().filter_map(|dead| header(dead, "__connect.errors.exception.class.name")).collect();
    assert_eq!(reasons, ["void_too_late"]);
    meter.audit();
}
