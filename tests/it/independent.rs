//! Events written by clients that share nothing with the meter (Python's confluent-kafka, kcat) end in real Redis
//! as a table says that a separate script has computed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::Utc;
use serde_json::{Value, json};

use crate::support::kafka::{Topics, data, header};
use crate::support::meter::Meter;
use crate::support::{python, service};
use crate::walk::CATALOGUE;

const PARTITIONS: i32 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn what_other_clients_write_ends_as_a_separate_table_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let scenario = folder.path().join("scenario.json");
    let now = Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let partitions = PARTITIONS.to_string();
    let seed = (Utc::now().timestamp() % 10_000).to_string();
    println!("scenario.py {seed} {now}");
    let made = run("scenario.py", &[&seed, &now, "--partitions", &partitions]);
    std::fs::write(&scenario, &made).expect("a file");
    let scenario = scenario.to_str().expect("a path");

    let topics = Topics::create("independent", PARTITIONS).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let brokers = service("KAFKA_BROKERS");
    let (usage, commands) = (topics.name("usage"), topics.name("commands"));
    let produce = |only: &str| {
        let to = ["--brokers", &brokers, "--usage-topic", &usage, "--commands-topic", &commands];
        let rest = ["--partitions", &partitions, "--only", only];
        run("produce.py", &[&[scenario][..], &to[..], &rest[..]].concat());
    };
    produce("commands");
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    produce("events");
    meter.caught_up(&topics).await;
    meter.published().await;

    let expected: Value = serde_json::from_slice(&run("expected.py", &[scenario])).expect("JSON");
    check_balances(&meter, &expected["balances"]);
    check_outcomes(&meter, &expected["outcomes"]).await;
    check_denied(&topics, &expected);
    check_dead_letters(&topics, &expected["dead_letters"]);
    meter.audit();
}

fn check_balances(meter: &Meter, expected: &Value) {
    let accounts = expected.as_object().expect("accounts");
    assert!(accounts.len() >= 8);
    for (account, types) in accounts {
        let balance = meter.json(&["balance", account, "--json"]);
        for (credit_type, expected) in types.as_object().expect("credit types") {
            let stored = &balance["balances"][credit_type];
            for field in ["granted", "used", "remaining", "overage"] {
                assert!(same(&stored[field], &expected[field]), "{account} {credit_type} {field}: {stored} {expected}");
            }
        }
    }
}

/// Numbers are equal as amounts: 5 and 5.0.
fn same(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => (left - right).abs() < 1e-6,
        _ => left == right,
    }
}

async fn check_outcomes(meter: &Meter, expected: &Value) {
    let totals = meter.totals("usage").await;
    let totals: BTreeMap<&str, u64> = totals.into_iter().map(|(outcome, records)| (outcome.name(), records)).collect();
    let expected = expected.as_object().expect("outcomes").iter();
    let expected: BTreeMap<&str, u64> =
        expected.map(|(name, records)| (name.as_str(), records.as_u64().expect("a count"))).collect();
    assert_eq!(totals, expected);
}

fn check_denied(topics: &Topics, expected: &Value) {
    let mut denied = Vec::new();
    let mut capped = Vec::new();
    for message in topics.read("denied", 1) {
        let denial = data(&message);
        for event in denial["events"].as_array().expect("events") {
            let (source, id) = (event["source"].to_string(), event["id"].to_string());
            if denial["reason"] == "capped" {
                capped.push((source, id, String::new(), event["uncovered"].as_f64().expect("an amount").to_string()));
            } else {
                let required = event["required"].as_f64().expect("an amount").to_string();
                denied.push((source, id, denial["reason"].to_string(), required));
            }
        }
    }
    let rows = |name: &str| {
        let rows = expected[name].as_array().expect("rows").iter();
        let mut rows: Vec<_> = rows
            .map(|row| {
                let amount = row[row.as_array().expect("a row").len() - 1].as_f64().expect("an amount").to_string();
                let reason = if name == "denied" { row[2].to_string() } else { String::new() };
                (row[0].to_string(), row[1].to_string(), reason, amount)
            })
            .collect();
        rows.sort();
        rows
    };
    denied.sort();
    capped.sort();
    assert!(!denied.is_empty() && !capped.is_empty());
    assert_eq!(denied, rows("denied"));
    assert_eq!(capped, rows("capped"));
}

fn check_dead_letters(topics: &Topics, expected: &Value) {
    let mut seen: Vec<(String, String)> = Vec::new();
    for letter in topics.read("dead-letter", 1) {
        let index = header(&letter, "scenario-index").expect("the header that it came with");
        let reason = header(&letter, "__connect.errors.exception.class.name").expect("a reason");
        seen.push((index, reason));
    }
    let rows = expected.as_array().expect("rows").iter();
    let mut expected: Vec<_> = rows.map(|row| (plain(&row[0]), plain(&row[1]))).collect();
    expected.sort();
    seen.sort();
    assert!(!seen.is_empty());
    assert_eq!(seen, expected);
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| json!(value).to_string(), str::to_owned)
}

fn run(script: &str, arguments: &[&str]) -> Vec<u8> {
    let script = PathBuf::from("tests/it/independent").join(script);
    let output = python().arg(&script).args(arguments).output().expect("python starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {told}", script.display());
    output.stdout
}
