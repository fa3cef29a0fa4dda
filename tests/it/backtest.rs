//! What a year of events comes to: by `backtest`, by a separate table, and by a meter on a real Kafka and Redis.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rdkafka::Message;
use serde_json::Value;

use crate::support::dump;
use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::redis::shared;
use crate::support::{python, until};
use crate::walk::CATALOGUE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_credit-meter");
const PARTITIONS: i32 = 2;

fn run(script: &str, arguments: &[&str], into: &Path) {
    let script = PathBuf::from("tests/it/backtest").join(script);
    let out = File::create(into).expect("a file");
    let ended = python().arg(&script).args(arguments).stdout(out).status().expect("python starts");
    assert!(ended.success(), "{}", script.display());
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

fn backtest(arguments: &[&str], input: Stdio) -> Output {
    let fixed = ["backtest", "--catalogue", CATALOGUE];
    Command::new(PROGRAM).args(fixed).args(arguments).stdin(input).output().expect("the program starts")
}

/// A file of events, and the table for it.
struct Year {
    _folder: tempfile::TempDir,
    events: PathBuf,
    expected: Value,
}

impl Year {
    fn new(seed: &str, more: &[&str], until: &[&str]) -> Year {
        let folder = tempfile::tempdir().expect("a folder");
        let (events, table) = (folder.path().join("events.ndjson"), folder.path().join("expected.json"));
        run("scenario.py", &[&[seed], more].concat(), &events);
        run("expected.py", &[&[text(&events)], until].concat(), &table);
        Year { expected: json(&table), events, _folder: folder }
    }
}

/// Reasons with their counts alone.
fn counts(reasons: &Value) -> BTreeMap<&str, &Value> {
    let reasons = reasons.as_object().expect("reasons").iter();
    reasons.map(|(name, reason)| (name.as_str(), reason.get("records").unwrap_or(reason))).collect()
}

/// By account and cycle.
fn by_cycle(statements: &Value) -> BTreeMap<(String, i64), Value> {
    let statements = statements.as_array().expect("statements").iter();
    let key = |each: &Value| {
        let number = each["cycle"]["number"].as_i64().expect("a number");
        (each["account"].as_str().expect("a name").to_owned(), number)
    };
    statements.map(|each| (key(each), each.clone())).collect()
}

fn same_statements(found: &Value, expected: &Value) {
    let (found, expected) = (by_cycle(found), by_cycle(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (cycle, statement) in &expected {
        assert_eq!(&found[cycle], statement, "{cycle:?}");
    }
}

/// Whether some statement has more than nothing at a place of its balances.
fn occurs(statements: &Value, open: bool, place: &[&str]) -> bool {
    let statements = statements.as_array().expect("statements").iter().filter(|each| each["open"] == open);
    let mut balances = statements.flat_map(|each| each["balances"].as_object().expect("balances").values());
    balances.any(|balance| place.iter().fold(balance, |value, name| &value[*name]).as_f64() > Some(0.0))
}

#[test]
fn a_year_comes_to_what_a_separate_table_says() {
    for seed in ["1", "2"] {
        let year = Year::new(seed, &[], &[]);
        let output = backtest(&["--json", text(&year.events)], Stdio::null());
        assert!(output.status.success());
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        same_statements(&found["statements"], &year.expected["statements"]);
        for name in ["usage", "commands", "not_judged", "refused"] {
            assert_eq!(counts(&found[name]), counts(&year.expected[name]), "seed {seed}: {name}");
        }
        // The year has something of everything.
        for place in [&["expired"][..], &["remaining"], &["overage"], &["denied"], &["used"]] {
            assert!(occurs(&found["statements"], false, place), "seed {seed}: no cycle has {place:?}");
        }
        for kind in ["plan", "addon", "adjusted", "topup", "promo"] {
            assert!(occurs(&found["statements"], false, &["granted_by", kind]), "seed {seed}: no cycle has {kind}");
        }
        for outcome in ["charged", "capped", "denied", "free", "duplicate"] {
            assert!(found["usage"][outcome].as_u64() > Some(20), "seed {seed}: {outcome} hardly occurs");
        }
        for reason in ["too_late", "account_closed", "unknown_account", "before_account", "invalid_json"] {
            assert!(found["not_judged"][reason]["records"].as_u64() > Some(0), "seed {seed}: {reason} never occurs");
        }
    }
}

#[test]
fn time_passes_to_a_moment_and_faults_decide_only_a_strict_run() {
    let year = Year::new("3", &[], &["--until", "2026-08-01T00:00:00Z"]);
    let stdin = || Stdio::from(File::open(&year.events).expect("the events"));
    let output = backtest(&["--json", "--until", "2026-08-01T00:00:00Z", "-"], stdin());
    assert!(output.status.success());
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    same_statements(&found["statements"], &year.expected["statements"]);

    // What is dated later is left out, and no cycle begins after it.
    let output = backtest(&["--json", "--until", "2025-07-01T00:00:00Z"], stdin());
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(found["after_until"].as_u64() > Some(1000));
    let begun = |each: &Value| each["cycle"]["start"].as_str() <= Some("2025-07-01T00:00:00Z");
    assert!(found["statements"].as_array().expect("statements").iter().all(begun));

    // The same figures as text for programs, a row for each credit type.
    let output = backtest(&["--csv"], stdin());
    let csv = String::from_utf8(output.stdout).expect("text");
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let columns = lines.next().expect("a header");
    let rows: Vec<BTreeMap<&str, &str>> = lines.map(|cells| columns.iter().copied().zip(cells).collect()).collect();
    let found: Value = serde_json::from_slice(&backtest(&["--json"], stdin()).stdout).expect("JSON");
    let statements = found["statements"].as_array().expect("statements");
    let mut expected = statements.iter().flat_map(|statement| {
        let balances = statement["balances"].as_object().expect("balances");
        balances.iter().map(move |(credit_type, balance)| (statement, credit_type, balance))
    });
    for row in &rows {
        let (statement, credit_type, balance) = expected.next().expect("as many rows");
        assert_eq!((row["plan"], row["credit_type"]), (statement["plan"].as_str().unwrap_or_default(), &**credit_type));
        for column in ["granted", "used", "expired", "remaining", "overage", "denied"] {
            let number = if balance[column].is_null() { "unlimited".to_owned() } else { balance[column].to_string() };
            assert_eq!(row[column], number, "{column} of {row:?}");
        }
        let plan: Value = serde_json::from_str(row["granted_plan"]).unwrap_or_default(); // null where it is unlimited
        assert_eq!(plan, balance["granted_by"]["plan"], "{row:?}");
    }
    assert!(expected.next().is_none(), "as many rows");
    let text = String::from_utf8(backtest(&[], stdin()).stdout).expect("text");
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let shown: Vec<&str> = columns.iter().copied().filter(|column| !column.starts_with("granted_")).collect();
    assert_eq!(lines.next().expect("a header"), shown.join(" ").replace('_', " ").split(' ').collect::<Vec<_>>());
    for row in &rows {
        assert_eq!(lines.next(), Some(shown.iter().map(|column| row[column]).collect()));
    }
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("invalid_json, first in line 702"), "{told}");
    assert!(output.status.success());
    assert_eq!(backtest(&["--csv", "--strict"], stdin()).status.code(), Some(1));
    let nothing = backtest(&["/dev/null"], Stdio::null());
    assert_eq!(nothing.status.code(), Some(1), "there was nothing to read");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_through_a_real_meter_comes_to_the_same() {
    let year = Year::new("4", &["--in-order"], &[]);
    let topics = Topics::stamped("history", PARTITIONS, "LogAppendTime").await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    let load = ["load", "--history", text(&year.events), "--json"];
    let refused = meter.run(&load);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("message.timestamp.type=CreateTime"), "{told}");

    let create = ("message.timestamp.type", "CreateTime");
    topics.remake("usage", PARTITIONS, &[create, ("retention.ms", "86400000")]).await;
    topics.remake("commands", 1, &[create, ("retention.ms", "-1")]).await;
    let refused = meter.run(&load);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("retention.ms=-1"), "{told}");

    topics.remake("usage", PARTITIONS, &[create, ("retention.ms", "-1")]).await;
    topics.remake("commands", 1, &[create, ("retention.ms", "-1")]).await;
    meter.set("EVENTS__AGE_FROM", "create");
    meter.set("TIME__TICK_EVERY", "200ms");
    let loaded = meter.json(&load);
    assert!(loaded["failed"] == 0 && loaded["acknowledged"].as_u64() > Some(10_000), "{loaded}");
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;

    let expected = by_cycle(&year.expected["statements"]);
    let closed = expected.values().filter(|each| each["open"] == false).count();
    let found = until("all cycles are closed", || async {
        meter.published().await;
        let found = published(&topics);
        (found.len() >= closed).then_some(found)
    })
    .await;
    assert_eq!(found.len(), closed);
    for ((account, number), statement) in &expected {
        if statement["open"] == true {
            let balance = meter.json(&["balance", account, "--json"]);
            assert_eq!((&balance["plan"], &balance["cycle"]), (&statement["plan"], &statement["cycle"]), "{account}");
            for (name, expected) in statement["balances"].as_object().expect("balances") {
                for field in ["granted", "used", "expired", "remaining", "overage"] {
                    // A type that was only denied has no balance.
                    let found = balance["balances"].get(name).map_or(&Value::from(0), |found| &found[field]).clone();
                    assert_eq!(found, expected[field], "{account} {name} {field}");
                }
            }
        } else {
            let found = &found[&(account.clone(), *number)];
            for field in ["plan", "cycle", "balances"] {
                assert_eq!(found[field], statement[field], "{account} {number} {field}");
            }
        }
    }
    let totals = meter.totals("usage").await;
    let totals: BTreeMap<&str, u64> = totals.into_iter().map(|(outcome, records)| (outcome.name(), records)).collect();
    let expected: BTreeMap<&str, u64> = counts(&year.expected["usage"])
        .into_iter()
        .map(|(name, records)| (name, records.as_u64().expect("a count")))
        .collect();
    assert_eq!(totals, expected);
    meter.audit();
    until("the marks of cycles that are forgotten are deleted", || async {
        let (kept, forgotten) = marks(&meter).await;
        (forgotten == 0 && kept > 0).then_some(())
    })
    .await;
    assert!(running.terminate().await.success());
}

/// Sets of marks in Redis: of cycles that are open or kept, and of others.
async fn marks(meter: &Meter) -> (usize, usize) {
    let (mut kept, mut forgotten) = (0, 0);
    for key in dump::keys(&mut shared().await, &meter.prefix).await {
        let Some((_, name)) = key.split_once("}:o:") else { continue };
        let (cycle, account) = name.split_once(':').expect("a cycle and an account");
        let number: i32 = cycle.split('.').next().unwrap_or_default().parse().expect("a number");
        let view = meter.store.account(account).await.expect("redis answers").expect("an account").view;
        let is_kept = view.cycle.number == number || view.closed.contains_key(&number);
        assert_eq!(view.marks.contains_key(&number), is_kept, "{key}");
        *(if is_kept { &mut kept } else { &mut forgotten }) += 1;
    }
    (kept, forgotten)
}

/// The last statement of each cycle.
fn published(topics: &Topics) -> BTreeMap<(String, i64), Value> {
    let mut statements = BTreeMap::new();
    for message in topics.read("cycles", 1) {
        let event: Value = serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
        if event["type"] == "credits.cycle.closed.v1" {
            let number = event["data"]["cycle"]["number"].as_i64().expect("a number");
            let account = event["subject"].as_str().expect("an account").to_owned();
            statements.insert((account, number), event["data"].clone());
        }
    }
    statements
}
