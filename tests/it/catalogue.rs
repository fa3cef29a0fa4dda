//! The catalogue while meters run: prices that change at a date, files that are refused, workers that do not have the
//! same file at the same moment.

use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};
use credit_meter::ledger::outcome::Outcome;
use serde_json::json;

use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::{Meter, Running, SHARDS};
use crate::support::until;
use crate::walk::{put, reveal};

const MINUTE_MS: i64 = 60_000;

const FIRST: &str = r#"version = 1
[credit_types.email]
[actions.reveal_email]
prices = [
  { credit_type = "email", credits = 1 },
]
[plans.basic]
interval = "monthly"
allowance = { email = 1000 }
actions = ["reveal_email"]
[actions.enrich]
prices = [{ credit_type = "email", credits = 7 }]
"#;

/// The file of a worker.
struct File {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl File {
    fn new(text: &str) -> File {
        let folder = tempfile::tempdir().expect("a folder");
        let file = File { path: folder.path().join("catalogue.toml"), _folder: folder };
        file.write(text);
        file
    }

    /// At once, as a deployment does it.
    fn write(&self, text: &str) {
        let new = self.path.with_extension("new");
        std::fs::write(&new, text).expect("it can be written");
        std::fs::rename(&new, &self.path).expect("it can be renamed");
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("a plain path")
    }
}

/// The first catalogue with a higher version and further prices.
fn with_prices(version: u32, prices: &str) -> String {
    let text = FIRST.replacen("version = 1", &format!("version = {version}"), 1);
    text.replacen("credits = 1 },\n", &format!("credits = 1 }},\n{prices}\n"), 1)
}

fn time(time_ms: i64) -> String {
    let time = DateTime::<Utc>::from_timestamp_millis(time_ms).expect("a time");
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// An event at a time of its own, in a topic that keeps the producer's time.
async fn send(topics: &Topics, id: &str, time_ms: i64, source: &str) {
    send_action(topics, "reveal_email", id, time_ms, source).await;
}

async fn send_action(topics: &Topics, action: &str, id: &str, time_ms: i64, source: &str) {
    let event = json!({
        "specversion": "1.0", "id": id, "source": "test", "type": "credits.usage.v1", "subject": "acme",
        "time": time(time_ms), "data": { "action": action, "source": source },
    });
    let record = Outgoing { key: Some("acme".into()), value: Some(event.to_string().into()), ..Outgoing::default() };
    topics.send_at("usage", &record, time_ms).await;
}

async fn reloads(running: &Running, result: &str, count: u64) {
    let line = format!("credit_meter_catalogue_reloads_total{{result=\"{result}\"}} {count}");
    until(&line, || async {
        let (_, page) = running.get("/metrics").await?;
        page.lines().any(|own| own == line).then_some(())
    })
    .await;
}

async fn used(meter: &Meter, topics: &Topics) -> serde_json::Value {
    meter.caught_up(topics).await;
    meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_changes_at_its_date_and_what_is_refused_changes_nothing() {
    let topics = Topics::stamped("prices", 2, "CreateTime").await;
    let file = File::new(FIRST);
    let mut meter = Meter::new(&topics, file.path());
    meter.set("EVENTS__AGE_FROM", "create");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "basic")).await;
    // Producers' clocks are ahead, so that the date comes as soon as the test likes.
    let start_ms = Utc::now().timestamp_millis() + 30 * MINUTE_MS;
    send(&topics, "before", start_ms - 2 * MINUTE_MS, "premium").await;
    send_action(&topics, "enrich", "not entitled", start_ms - 2 * MINUTE_MS, "").await;
    assert_eq!(used(&meter, &topics).await, 1);

    // A price that counts later, and one on a field that was not read so far; what the plan may do later.
    let start = time(start_ms);
    let second = format!(
        r#"  {{ credit_type = "email", credits = 2, effective_from = "{start}" }},
  {{ credit_type = "email", credits = 5, when = {{ source = "premium" }}, effective_from = "{start}" }},"#
    );
    let entitled = format!("\"reveal_email\", {{ action = \"enrich\", effective_from = \"{start}\" }}");
    let with_prices =
        |version: u32, prices: &str| with_prices(version, prices).replacen("\"reveal_email\"", &entitled, 1);
    file.write(&with_prices(2, &second));
    reloads(&running, "applied", 1).await;
    send_action(&topics, "enrich", "not yet", start_ms - 1, "").await;
    send_action(&topics, "enrich", "entitled", start_ms, "").await;
    send(&topics, "late", start_ms - 1, "premium").await;
    send(&topics, "after", start_ms, "standard").await;
    send(&topics, "premium", start_ms + MINUTE_MS, "premium").await;
    assert_eq!(used(&meter, &topics).await, 1 + 1 + 2 + 5 + 7);
    assert_eq!(meter.totals("usage").await[&Outcome::Denied], 2);

    // Not TOML · another price from the beginning · another price for what was priced already · lower.
    let edited = with_prices(3, &second).replacen("credits = 1 }", "credits = 3 }", 1);
    let past = format!(
        r#"  {{ credit_type = "email", credits = 9, when = {{ source = "vip" }}, effective_from = "{start}" }},"#
    );
    let refused = ["version = ", &edited, &with_prices(3, &format!("{second}\n{past}")), FIRST];
    for (count, text) in (1..).zip(refused) {
        file.write(text);
        reloads(&running, "refused", count).await;
    }
    send(&topics, "still", start_ms + 2 * MINUTE_MS, "standard").await;
    assert_eq!(used(&meter, &topics).await, 16 + 2);
    assert_eq!(running.metric("credit_meter_rewinds_total").await, 0, "a new price list is no fall-back");
    // A signal asks for an answer, also to what was refused before.
    running.signal("-HUP");
    reloads(&running, "refused", 5).await;
    file.write(&with_prices(2, &second));
    running.signal("-HUP");
    reloads(&running, "unchanged", 1).await;
    running.ready().await;
    // Who deletes it hears of it before the next start, each time.
    for (refused, unchanged) in [(6, 2), (7, 3)] {
        std::fs::remove_file(file.path()).expect("it is there");
        reloads(&running, "refused", refused).await;
        file.write(&with_prices(2, &second));
        running.signal("-HUP");
        reloads(&running, "unchanged", unchanged).await;
    }
    running.ready().await;
    let audit = meter.audit();
    assert_eq!((&audit["mismatches"], &audit["outcomes"]["charged"]), (&json!(0), &json!(6)), "{audit}");
    assert!(running.terminate().await.success());

    // At a start it is the same.
    file.write(&edited);
    let refused = meter.run(&["serve", "--set", "http.listen=127.0.0.1:0"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    let place = format!("{}:5: action `reveal_email`", file.path());
    assert!(!refused.status.success() && told.contains(&place), "{told}");
    // With the way to say it.
    let third_ms = start_ms + 10 * MINUTE_MS;
    let third = format!(r#"  {{ credit_type = "email", credits = 3, effective_from = "{}" }},"#, time(third_ms));
    file.write(&with_prices(3, &format!("{second}\n{third}")));
    let running = meter.start(&[]);
    running.ready().await;
    send(&topics, "third", third_ms, "standard").await;
    assert_eq!(used(&meter, &topics).await, 18 + 3);
    assert_eq!(meter.audit()["mismatches"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_file_is_older_waits_for_it_and_goes_on_by_itself() {
    let topics = Topics::create("two-files", 2).await;
    let (own, other) = (File::new(FIRST), File::new(FIRST));
    let meter = Meter::new(&topics, own.path());
    let behind = meter.start(&[]);
    behind.ready().await;
    topics.command(&put("acme", "basic")).await;
    topics.send("usage", &reveal("acme", "e1", 1)).await;
    meter.caught_up(&topics).await;
    let second_ms = Utc::now().timestamp_millis() + 60 * MINUTE_MS;
    let price = format!(r#"  {{ credit_type = "email", credits = 2, effective_from = "{}" }},"#, time(second_ms));
    let second = with_prices(2, &price);
    // Another worker brings the new one, and does not stay: the partitions are the first one's again.
    other.write(&second);
    let ahead = meter.start(&[("CATALOGUE__PATH", other.path())]);
    ahead.ready().await;
    assert!(ahead.terminate().await.success());
    for (index, partition) in [0, 1].into_iter().enumerate() {
        let record = Outgoing { partition, ..reveal("acme", &format!("e{}", 2 + index), 1) };
        topics.send("usage", &record).await;
    }
    let told = until("readiness says which catalogue is missing", || async {
        let words = "catalogue version 2";
        behind.get("/readyz?verbose").await.filter(|(status, body)| *status == 503 && body.contains(words))
    })
    .await;
    assert!(told.1.contains(own.path()), "the file is named: {}", told.1);
    until("each shard says so", || async {
        (behind.metric("credit_meter_shards_halted").await == u64::from(SHARDS)).then_some(())
    })
    .await;
    own.write(&second);
    meter.caught_up(&topics).await;
    behind.ready().await;
    assert_eq!(behind.metric("credit_meter_shards_halted").await, 0);
    assert_eq!(meter.totals("usage").await[&Outcome::Charged], 3);
    assert_eq!(meter.audit()["mismatches"], 0);
}

/// Judged by the price list that is in force now, it would have been applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_named_a_plan_too_early_stays_refused_for_the_audit() {
    let topics = Topics::create("too-early", 2).await;
    let file = File::new(FIRST);
    let meter = Meter::new(&topics, file.path());
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "basic")).await;
    let (mut moved, new) = (put("acme", "large"), put("new", "large"));
    moved["id"] = json!("moved");
    topics.command(&moved).await;
    topics.command(&new).await;
    topics.send("usage", &reveal("acme", "e1", 1)).await;
    assert_eq!(used(&meter, &topics).await, 1);
    let large = "[plans.large]\ninterval = \"monthly\"\nallowance = { email = 9000 }\nactions = [\"reveal_email\"]\n";
    file.write(&format!("{}{large}", with_prices(2, "")));
    reloads(&running, "applied", 1).await;
    // Where the answers wait in outboxes, where they are published, and where a point knows them.
    meter.audit();
    meter.published().await;
    meter.audit();
    let point = file.path.with_extension("point");
    let point = point.to_str().expect("a plain path");
    meter.json(&["audit", "--json", "--save", point]);
    assert_eq!(meter.json(&["audit", "--json", "--from", point])["commands"]["refused"], 2);

    // The same again, now that the plan is there.
    topics.command(&moved).await;
    topics.command(&new).await;
    topics.send("usage", &reveal("new", "e2", 1)).await;
    meter.caught_up(&topics).await;
    assert_eq!(meter.json(&["balance", "acme", "--json"])["plan"], "large");
    for from in [&[][..], &["--from", point]] {
        let audit = meter.json(&[&["audit", "--json"], from].concat());
        assert_eq!(audit["commands"], json!({ "applied": 3, "refused": 2 }), "{audit}");
    }
    let events = meter.json(&["events", "acme", "--json"]);
    assert_eq!(events["events"][0]["outcome"], "charged", "{events}");
}
