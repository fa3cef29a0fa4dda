//! Bad input through the real topic: each record ends with its own reason, byte for byte in the dead-letter topic,
//! and the good events around it are charged.

use std::collections::BTreeMap;

use chrono::{Duration, Utc};
use credit_meter::ledger::outcome::Outcome;
use rdkafka::Message;
use serde_json::{Value, json};

use crate::support::kafka::{Outgoing, Topics, data, header};
use crate::support::meter::Meter;
use crate::walk::{CATALOGUE, put, reveal, reveal_event};

/// How a record must end.
enum Ends {
    Dead(&'static str),
    Denied(&'static str),
    Charged,
}
use Ends::{Charged, Dead, Denied};

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_record_ends_with_its_own_reason() {
    let topics = Topics::create("bad-input", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("EVENTS__MAX_BYTES", "1048576");
    let running = meter.start(&[]);
    topics.command(&put("acme", "basic")).await; // 1000 e-mail credits
    topics.command(&put("wide", "organization")).await; // e-mail unlimited

    let with = |change: &dyn Fn(&mut Value)| {
        let mut event = reveal_event("acme", &uuid::Uuid::now_v7().to_string(), 1);
        change(&mut event);
        keyed("acme", event.to_string().into_bytes())
    };
    let quantity_of = |account: &str, text: &str| {
        let event = reveal_event(account, &uuid::Uuid::now_v7().to_string(), 777).to_string();
        // With the field's name: id and time may hold the number too.
        let event = event.replace("\"quantity\":777", &format!("\"quantity\":{text}"));
        keyed(account, event.into_bytes())
    };
    let quantity = |text: &str| quantity_of("acme", text);
    let unlimited = |text: &str| quantity_of("wide", text);
    let deep = format!("{{\"specversion\":\"1.0\",\"deep\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let mut no_key = with(&|_| {});
    no_key.key = Some(Vec::new());
    let mut other_key = with(&|_| {});
    other_key.key = Some(b"globex".to_vec());
    let mut headers = keyed("acme", b"\x00not json".to_vec());
    headers.headers = vec![("trace".into(), vec![0, 255, 1])];
    let rows: Vec<(&str, Outgoing, Ends)> = vec![
        ("invalid JSON", headers, Dead("invalid_json")),
        ("cut JSON", keyed("acme", b"{\"specversion\":\"1.0\",".to_vec()), Dead("invalid_json")),
        ("invalid UTF-8", keyed("acme", b"{\"specversion\":\"1.0\",\"id\":\"\xff\"}".to_vec()), Dead("invalid_utf8")),
        ("no CloudEvent", keyed("acme", b"{\"hello\":1}".to_vec()), Dead("not_a_cloudevent")),
        ("an array", keyed("acme", b"[]".to_vec()), Dead("not_a_cloudevent")),
        ("old version", with(&|event| event["specversion"] = json!("0.3")), Dead("unsupported_specversion")),
        ("another type", with(&|event| event["type"] = json!("other.v1")), Dead("unknown_type")),
        ("id is a number", with(&|event| event["id"] = json!(7)), Dead("wrong_type")),
        ("data is text", with(&|event| event["data"] = json!("x")), Dead("wrong_type")),
        ("action is a list", with(&|event| event["data"]["action"] = json!([])), Dead("wrong_type")),
        ("quantity is text", with(&|event| event["data"]["quantity"] = json!("1")), Dead("wrong_type")),
        ("no id", with(&|event| remove(event, "id")), Dead("missing_field")),
        ("no subject", with(&|event| remove(event, "subject")), Dead("missing_field")),
        ("no time", with(&|event| remove(event, "time")), Dead("missing_field")),
        ("no data", with(&|event| remove(event, "data")), Dead("missing_field")),
        ("no action", with(&|event| remove(&mut event["data"], "action")), Dead("missing_field")),
        ("empty id", with(&|event| event["id"] = json!("")), Dead("missing_field")),
        ("long id", with(&|event| event["id"] = json!("x".repeat(257))), Dead("invalid_field")),
        ("bad time", with(&|event| event["time"] = json!("yesterday")), Dead("invalid_time")),
        ("zero", quantity("0"), Dead("quantity_zero")),
        ("negative", quantity("-1"), Dead("quantity_negative")),
        ("fraction", quantity("1.5"), Dead("quantity_not_integer")),
        ("exponent", quantity("1e2"), Dead("quantity_not_integer")),
        ("huge", quantity("10000000000000000000000"), Dead("quantity_too_large")),
        ("cost at its bound", unlimited("100000000"), Charged),
        ("cost above its bound", unlimited("100000001"), Dead("cost_too_large")),
        ("unknown action", with(&|event| event["data"]["action"] = json!("guess")), Dead("unknown_action")),
        ("unknown account", with(&|event| event["subject"] = json!("nobody")), Dead("unknown_account")),
        ("not entitled", with(&|event| event["data"]["action"] = json!("enrich_contact")), Denied("not_entitled")),
        ("more than there is", quantity("5000"), Denied("insufficient_credits")),
        ("from the future", with(&|event| at(event, Duration::hours(1))), Dead("too_early")),
        ("from before the cycle", with(&|event| at(event, Duration::days(-60))), Dead("before_account")),
        ("10 MB", with(&|event| event["data"]["note"] = json!("x".repeat(10_000_000))), Dead("too_large")),
        ("deep nesting", keyed("acme", deep.into_bytes()), Dead("nesting_too_deep")),
        ("an empty value", keyed("acme", Vec::new()), Dead("empty_value")),
        ("no value", Outgoing { key: Some(b"acme".to_vec()), ..Outgoing::default() }, Dead("empty_value")),
        ("an empty key", no_key, Charged),
        ("a key that differs from the subject", other_key, Charged),
    ];
    let mut expected_dead = BTreeMap::new();
    let mut expected_denied = Vec::new();
    let mut charged = 0;
    for (index, (name, record, ends)) in rows.iter().enumerate() {
        // A good event before each bad one.
        topics.send("usage", &reveal("acme", &format!("good-{index}"), 1)).await;
        charged += 1;
        let offset = topics.send("usage", record).await;
        match ends {
            Dead(reason) => {
                expected_dead.insert(offset, (*name, *reason, record));
            }
            Denied(reason) => expected_denied.push((offset, *reason)),
            Charged => charged += 1,
        }
    }
    meter.caught_up(&topics).await;
    meter.published().await;

    let letters = topics.read("dead-letter", 1);
    let mut seen = BTreeMap::new();
    for letter in &letters {
        let offset: i64 = header(letter, "__connect.errors.offset").expect("an offset").parse().expect("a number");
        let (name, reason, record) = expected_dead.get(&offset).unwrap_or_else(|| panic!("{offset} is no bad record"));
        assert_eq!(header(letter, "__connect.errors.exception.class.name").as_deref(), Some(*reason), "{name}");
        assert_eq!(header(letter, "__connect.errors.topic"), Some(topics.name("usage")), "{name}");
        assert!(header(letter, "__connect.errors.exception.message").is_some_and(|text| text.len() > 10), "{name}");
        assert_eq!(letter.key(), record.key.as_deref(), "{name}: the key as it came");
        assert_eq!(letter.payload(), record.value.as_deref(), "{name}: the value as it came");
        for (key, value) in &record.headers {
            use rdkafka::message::Headers;
            let found = letter.headers().expect("headers").iter().find(|header| header.key == key);
            assert_eq!(found.and_then(|header| header.value), Some(value.as_slice()), "{name}: the header as it came");
        }
        *seen.entry(offset).or_insert(0) += 1;
    }
    let expected: BTreeMap<i64, i32> = expected_dead.keys().map(|offset| (*offset, 1)).collect();
    assert_eq!(seen, expected, "one dead letter for each bad record");

    let mut denied = Vec::new();
    for message in topics.read("denied", 1) {
        let denial = data(&message);
        for event in denial["events"].as_array().expect("events") {
            denied.push((
                event["offset"].as_i64().expect("an offset"),
                denial["reason"].as_str().expect("a reason").to_owned(),
            ));
        }
    }
    denied.sort();
    let expected: Vec<_> = expected_denied.iter().map(|(offset, reason)| (*offset, (*reason).to_owned())).collect();
    assert_eq!(denied, expected);

    let totals = meter.totals("usage").await;
    let expected =
        [(Outcome::DeadLettered, expected_dead.len() as u64), (Outcome::Denied, 2), (Outcome::Charged, charged)];
    assert_eq!(totals.into_iter().collect::<Vec<_>>(), expected, "the totals add up to the records");
    meter.audit();
    let balance = meter.json(&["balance", "acme", "--json"]);
    assert_eq!(balance["balances"]["email"]["used"], json!(charged - 1), "good events are charged");
    let (_, page) = running.get("/metrics").await.expect("it serves");
    assert!(
        page.lines().any(|line| line.starts_with("credit_meter_misrouted_total") && !line.ends_with(" 0")),
        "{page}"
    );
}

fn keyed(key: &str, value: Vec<u8>) -> Outgoing {
    Outgoing { key: Some(key.into()), value: Some(value), ..Outgoing::default() }
}

fn remove(event: &mut Value, name: &str) {
    event.as_object_mut().expect("an object").remove(name).expect("it was there");
}

fn at(event: &mut Value, from_now: Duration) {
    event["time"] = json!((Utc::now() + from_now).to_rfc3339());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_which_every_line_is_skipped_has_failed() {
    let topics = Topics::create("skipped", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("events.ndjson");
    let good = crate::walk::reveal_event("acme", "e1", 1).to_string();
    // lines, whether it ends well, records that are there then
    let rows = [("nonsense\n{}\n", false, 0), ("nonsense\nGOOD\n", true, 1), ("", true, 1)];
    for (lines, well, records) in rows {
        std::fs::write(&file, lines.replace("GOOD", &good)).expect("a file");
        let load = meter.run(&["load", "--skip-bad", file.to_str().expect("text")]);
        let told = String::from_utf8_lossy(&load.stderr);
        assert_eq!(load.status.code(), Some(i32::from(!well)), "{lines}: {told}");
        assert_eq!(told.contains("nothing was sent: every line was skipped (2)"), !well, "{lines}: {told}");
        assert_eq!(topics.ends("usage", 1), [records], "{lines}");
    }
}
