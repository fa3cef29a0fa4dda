//! Meter time: what is too late, what is forgotten, and that nothing is charged twice for it.

use chrono::{DateTime, SecondsFormat, Utc};
use credit_meter::ledger::event::DAY_MS;
use credit_meter::ledger::outcome::Outcome;
use serde_json::json;

use crate::cycles::{Past, revealed};
use crate::support::kafka::{Outgoing, Topics, data, header};
use crate::support::meter::Meter;
use crate::support::redis::shared;
use crate::support::{dump, until};
use crate::walk::{CATALOGUE, put, reveal};

/// An event at a time of its own, in a topic that keeps the producer's time.
async fn send(topics: &Topics, id: &str, time_ms: i64, partition: i32) {
    let mut record = reveal("acme", id, 1);
    let mut event: serde_json::Value = serde_json::from_slice(record.value.as_ref().expect("a value")).expect("JSON");
    let time = DateTime::<Utc>::from_timestamp_millis(time_ms).expect("a time");
    event["time"] = time.to_rfc3339_opts(SecondsFormat::Millis, true).into();
    record.value = Some(event.to_string().into_bytes());
    record.partition = partition;
    topics.send_at("usage", &record, time_ms).await;
}

async fn tick(topics: &Topics, time_ms: i64, partition: i32) {
    let event = serde_json::json!({
        "specversion": "1.0", "id": format!("tick-{time_ms}"), "source": "tests", "type": "credits.tick.v1",
        "subject": "tick", "time": "2026-01-01T00:00:00Z",
    });
    let record = Outgoing { value: Some(event.to_string().into_bytes()), partition, ..Outgoing::default() };
    topics.send_at("usage", &record, time_ms).await;
}

async fn day_sets(meter: &Meter) -> usize {
    keys_of(meter, "}:d:").await
}

async fn keys_of(meter: &Meter, kind: &str) -> usize {
    let mut connection = shared().await;
    dump::keys(&mut connection, &meter.prefix).await.iter().filter(|key| key.contains(kind)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_never_charged_twice_and_old_days_are_forgotten() {
    let topics = Topics::stamped("days", 2, "CreateTime").await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("EVENTS__AGE_FROM", "create");
    meter.set("EVENTS__LATE_AFTER", "48h");
    meter.set("TIME__TICK_EVERY", "200ms");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "organization")).await;
    // Noon of a day at the start of the account's open cycle.
    let now_ms = Utc::now().timestamp_millis();
    let noon_ms = (now_ms / DAY_MS - 6) * DAY_MS + DAY_MS / 2;
    let minute_ms = 60_000;
    let midnight_ms = noon_ms + DAY_MS / 2;

    send(&topics, "a", noon_ms, 0).await;
    send(&topics, "a", noon_ms + 1_000, 1).await; // a second later
    send(&topics, "b", midnight_ms - 4 * minute_ms, 0).await;
    meter.caught_up(&topics).await; // in another call than its retry
    send(&topics, "b", midnight_ms + 4 * minute_ms, 1).await; // restamped around midnight
    meter.caught_up(&topics).await;
    let totals = meter.totals("usage").await;
    assert_eq!((totals[&Outcome::Charged], totals[&Outcome::Duplicate]), (2, 2), "{totals:?}");
    assert_eq!(day_sets(&meter).await, 2);
    let usage = || meter.json(&["usage", "acme", "--by", "day,action", "--json"]);
    let told = usage();
    assert_eq!((told["usage"][0]["charged"].as_u64(), keys_of(&meter, "}:j:").await), (Some(2), 1), "{told}");

    // Days pass in one partition: the other one holds meter time back, and is named.
    let later_ms = noon_ms + 5 * DAY_MS;
    tick(&topics, later_ms, 0).await;
    until("partition 1 is named", || async {
        let (_, page) = running.get("/metrics").await?;
        let named = |line: &str| line.starts_with("credit_meter_meter_time_seconds");
        page.lines().find(|line| named(line)).map(str::to_owned)
    })
    .await;
    assert_eq!(day_sets(&meter).await, 2, "partition 1 has not passed");
    tick(&topics, later_ms, 1).await;
    until("the days are forgotten", || async { (day_sets(&meter).await == 0).then_some(()) }).await;
    until("usage has no journals", || async { (keys_of(&meter, "}:j:").await == 0).then_some(()) }).await;
    assert_eq!((usage(), keys_of(&meter, "}:u:").await), (told, 1));

    // Too late to be remembered, so too late to be charged.
    send(&topics, "a", noon_ms + 1_000, 0).await;
    send(&topics, "b", midnight_ms + 4 * minute_ms, 1).await;
    // A longer bound does not bring back what is forgotten.
    assert!(running.terminate().await.success());
    meter.set("EVENTS__LATE_AFTER", "2000h");
    let running = meter.start(&[]);
    running.ready().await;
    send(&topics, "a", noon_ms + 2_000, 1).await;
    send(&topics, "c", later_ms, 0).await;
    meter.caught_up(&topics).await;
    let totals = meter.totals("usage").await;
    assert_eq!((totals[&Outcome::Charged], totals[&Outcome::Duplicate]), (3, 2), "{totals:?}");
    let dead = topics.read("dead-letter", 1);
    let reasons: Vec<_> = dead.iter().map(|dead| header(dead, "__connect.errors.exception.class.name")).collect();
    assert_eq!(reasons, vec![Some("too_late".to_owned()); 3]);
    assert!(running.terminate().await.success());

    // And a rebuild decides the same.
    let mut connection = shared().await;
    let keys = dump::keys(&mut connection, &meter.prefix).await;
    let _: () = redis::cmd("DEL").arg(keys).query_async(&mut connection).await.expect("redis answers");
    meter.json(&["rebuild", "--json"]);
    assert_eq!(meter.totals("usage").await, totals);
}

#[tokio::test(flavor = "multi_thread")]
async fn meter_time_follows_the_brokers_clock_once_everything_is_applied() {
    let topics = Topics::create("ticks", 2).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("TIME__TICK_EVERY", "200ms");
    let before_ms = Utc::now().timestamp_millis();
    let running = meter.start(&[]);
    running.ready().await;
    topics.send("usage", &reveal("acme", "e1", 1)).await;
    let states = until("meter time is there", || async {
        let states = meter.states().await;
        states.iter().all(|state| state.meter_time_ms > before_ms - 60_000).then_some(states)
    })
    .await;
    assert!(states.iter().all(|state| state.floor_ms == state.meter_time_ms - 72 * 3_600_000));
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_a_long_log_is_stored_by_member_once_its_days_have_passed() {
    let topics = Topics::stamped("days", 1, "CreateTime").await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("EVENTS__AGE_FROM", "create");
    meter.set("TIME__TICK_EVERY", "200ms");
    meter.set("BATCH__MAX_EVENTS", "1"); // an event of another day in a call would keep it out of the journal
    // Days of one cycle, as a meter finds them that was down, or whose state is counted anew.
    let now_ms = Utc::now().timestamp_millis();
    let mut account = put("acme", "organization");
    account["data"]["anchor"] = (Utc::now() - chrono::Duration::days(27)).date_naive().to_string().into();
    topics.command(&account).await;
    for (id, days) in [("a", 26), ("b", 25), ("c", 5)] {
        send(&topics, id, now_ms - days * DAY_MS, 0).await;
    }
    tick(&topics, now_ms, 0).await;
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    until("usage has no journals", || async {
        (keys_of(&meter, "}:u:").await == 3 && keys_of(&meter, "}:j:").await == 0).then_some(())
    })
    .await;
    let told = meter.json(&["usage", "acme", "--json"]);
    assert_eq!(told["usage"][0]["charged"].as_u64(), Some(3), "{told}");
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_applied_in_the_order_of_its_records_times() {
    let past = Past::new("backlog").await;
    let accounts: Vec<String> = (0..6).map(|number| format!("team-{number}")).collect();
    let commands = [
        ("account.put", "2026-03-01T00:00:00Z", json!({ "plan": "starter", "anchor": "2026-03-01" })), // 30 e-mail credits
        ("adjust", "2026-03-03T00:00:00Z", json!({ "credit_type": "email", "amount": -20, "reason": "agreed" })),
        ("grant", "2026-03-05T00:00:00Z", json!({ "credit_type": "email", "amount": 30, "kind": "topup" })),
    ];
    for (kind, time, data) in commands {
        for account in &accounts {
            past.command(account, kind, &format!("{kind}-{account}"), time, data.clone()).await;
        }
    }
    let usage = [
        ("large", 24, "2026-03-02T00:00:00Z"),
        ("refused", 4, "2026-03-04T00:00:00Z"),
        ("small", 4, "2026-03-06T00:00:00Z"),
    ];
    for (number, (id, quantity, time)) in (0..).zip(usage) {
        for (place, account) in (0..).zip(&accounts) {
            past.reveal(account, &format!("{id}-{account}"), quantity, time, (number + place) % 2).await;
        }
    }
    past.tick("2026-03-07T00:00:00Z").await;
    let running = past.start().await;
    past.meter.caught_up(&past.topics).await;
    past.meter.published().await;
    let mut denied: Vec<String> = past.topics.read("denied", 1).iter().map(data).flat_map(ids).collect();
    denied.sort_unstable();
    assert_eq!(denied, accounts.iter().map(|account| format!("refused-{account}")).collect::<Vec<_>>());
    for account in &accounts {
        let balance = past.meter.json(&["balance", account, "--json"]);
        // 24 and 4, and 20 of the adjustment, of 60.
        assert_eq!(balance["balances"]["email"]["remaining"], 12, "{balance}");
    }

    // What comes later is taken as it comes: a renewal still waits for the commands before it.
    past.command(
        "team-0",
        "grant",
        "late",
        "2026-03-31T23:00:00Z",
        json!({ "credit_type": "email", "amount": 3, "kind": "topup" }),
    )
    .await;
    past.reveal("team-0", "next", 1, "2026-04-02T00:00:00Z", 0).await;
    past.meter.caught_up(&past.topics).await;
    let balance = past.meter.json(&["balance", "team-0", "--json"]);
    assert_eq!(balance["balances"]["email"]["used"], 1, "{balance}");
    assert_eq!(past.meter.audit()["mismatches"], 0);
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_partitions_far_apart_in_time_is_read_in_step() {
    const RECORDS: i64 = 6_000;
    let mut past = Past::new("in-step").await;
    // Little room: the partition that is ahead is paused, and read on from where it was.
    past.meter.set("BATCH__QUEUE_MAX", "1500");
    past.meter.set("BATCH__MAX_EVENTS", "500");
    let plan = json!({ "plan": "organization", "anchor": "2026-03-01" });
    past.command("acme", "account.put", "put", "2026-03-01T00:00:00Z", plan).await;
    let at_ms = |time: &str| time.parse::<DateTime<Utc>>().expect("a time").timestamp_millis();
    let [early_ms, late_ms, last_ms] =
        ["2026-03-02", "2026-03-04", "2026-03-06"].map(|day| at_ms(&format!("{day}T00:00:00Z")));
    let mut records = Vec::new();
    for number in 0..RECORDS {
        // Whichever is read first comes to be ahead of the other.
        let first_ms = if number < RECORDS / 2 { early_ms } else { last_ms };
        for (partition, from_ms) in [(0, first_ms), (1, late_ms)] {
            let time_ms = from_ms + number * 1_000;
            let time = DateTime::<Utc>::from_timestamp_millis(time_ms).expect("a time").to_rfc3339();
            // Each comes twice.
            records.push((revealed("acme", &format!("{partition}-{}", number / 2), 1, &time, partition), time_ms));
        }
    }
    past.send_all("usage", records).await;
    past.tick("2026-03-07T00:00:00Z").await;
    let folder = tempfile::tempdir().expect("a folder");
    let told = folder.path().join("told");
    let running = past.meter.start_telling(&[("LOG__FILTER", "credit_meter=debug")], &told);
    running.ready().await;
    past.meter.caught_up(&past.topics).await;
    let totals = past.meter.totals("usage").await;
    let half = RECORDS as u64;
    assert_eq!((totals[&Outcome::Charged], totals[&Outcome::Duplicate]), (half, half), "{totals:?}");
    assert_eq!(past.meter.audit()["mismatches"], 0);
    let told = std::fs::read_to_string(told).expect("it is told");
    let ahead = [0, 1].map(|index| format!("paused=[Partition {{ input: Usage, index: {index} }}]"));
    assert!(ahead.iter().any(|ahead| told.contains(ahead)), "the one that is ahead was not paused alone: {told}");
    assert!(running.terminate().await.success());
}

/// The ids that a denial tells of.
fn ids(denial: serde_json::Value) -> Vec<String> {
    let events = denial["events"].as_array().expect("events").iter();
    events.map(|event| event["id"].as_str().expect("an id").to_owned()).collect()
}
