//! Limits of members within what their team shares, on a real meter.

use std::collections::BTreeMap;

use chrono::{DateTime, Days, Months, NaiveTime, TimeDelta, Utc};
use credit_meter::ledger::outcome::Outcome;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::dump;
use crate::support::kafka::{Outgoing, Topics, data};
use crate::support::meter::Meter;
use crate::support::redis::shared;
use crate::support::until;
use crate::walk::{CATALOGUE, reveal_event};

fn of_member(id: &str, user: Option<&str>, quantity: u64, time: &str) -> Outgoing {
    let mut event = reveal_event("acme", id, quantity);
    event["time"] = time.into();
    if let Some(user) = user {
        event["data"]["user"] = user.into();
    }
    Outgoing { key: Some("acme".into()), value: Some(event.to_string().into()), ..Outgoing::default() }
}

/// An account on a plan with 100,000 e-mail credits whose second cycle began a day or so ago.
fn put_large(limits: &Value) -> (Value, DateTime<Utc>) {
    let anchor = Utc::now().date_naive() - Days::new(1) - Months::new(1);
    let second = (anchor + Months::new(1)).and_time(NaiveTime::MIN).and_utc();
    let put = json!({
        "specversion": "1.0", "id": "put-1", "source": "test", "type": "credits.account.put.v1", "subject": "acme",
        "time": (anchor + Days::new(1)).and_time(NaiveTime::MIN).and_utc().to_rfc3339(),
        "data": { "plan": "large", "anchor": anchor, "member_limits": limits },
    });
    (put, second)
}

/// The ids that were denied, with the reason of each.
fn denied(topics: &Topics) -> BTreeMap<String, Value> {
    let messages = topics.read("denied", 1);
    let each = messages.iter().map(data).flat_map(|message| {
        let events = message["events"].as_array().expect("events").clone();
        events
            .into_iter()
            .map(move |event| (event["id"].as_str().expect("an id").to_owned(), message["reason"].clone()))
    });
    each.collect()
}

/// What members used of a credit type in a cycle, as Redis counts it.
async fn counted(meter: &Meter, cycle: i32) -> BTreeMap<String, String> {
    let mut connection = shared().await;
    let keys = dump::keys(&mut connection, &meter.prefix).await;
    let of_cycle: Vec<String> = keys.into_iter().filter(|key| key.ends_with(&format!("}}:m:{cycle}:acme"))).collect();
    let Some(key) = of_cycle.first() else { return BTreeMap::new() };
    redis::cmd("HGETALL").arg(key).query_async(&mut connection).await.expect("redis answers")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_denied_above_its_limit_and_the_others_go_on() {
    let topics = Topics::create("members", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("TIME__TICK_EVERY", "200ms");
    meter.set("EVENTS__LATE_AFTER", "1h");
    let anchor = Utc::now().date_naive() - Days::new(1) - Months::new(1);
    let day = |days: u64| ((anchor + Days::new(days)).and_time(NaiveTime::MIN).and_utc()).to_rfc3339();
    let limits = json!([
        { "credit_type": "email", "amount": 50 },
        { "credit_type": "email", "amount": 80.5, "user": "ada lovelace" },
    ]);
    let put = json!({
        "specversion": "1.0", "id": "put-1", "source": "test", "type": "credits.account.put.v1", "subject": "acme",
        "time": day(1), "data": { "plan": "basic", "anchor": anchor, "member_limits": limits },
    });
    topics.command(&put).await;
    // 1,000 credits for all.
    let (ada, bob) = (Some("ada lovelace"), Some("bob"));
    let first_cycle = [
        ("a1", ada, 60), // 60
        ("a2", ada, 21), // denied: 81 are above 80.5
        ("b1", bob, 50), // 50
        ("b2", bob, 1),  // denied
        ("a3", ada, 20), // 80
        ("n1", None, 50),
        ("n2", None, 1), // denied: an event without a member has the limit of all
        ("c1", Some("carol"), 7),
    ];
    for (id, user, quantity) in first_cycle {
        topics.send("usage", &of_member(id, user, quantity, &day(2))).await;
    }
    topics.send("usage", &of_member("a1", ada, 60, &day(2))).await; // the same event again
    let running = meter.start(&[]);
    running.ready().await;
    until("the first cycle is closed and forgotten", || async {
        let account = meter.store.account("acme").await.ok()??;
        (account.view.cycle.number == 1 && account.view.closed.is_empty()).then_some(())
    })
    .await;
    meter.published().await;
    let limit = json!("member_limit");
    let expected = |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), limit.clone())).collect::<BTreeMap<_, _>>();
    assert_eq!(denied(&topics), expected(&["a2", "b2", "n2"]));
    assert!(counted(&meter, 0).await.is_empty(), "the counts go with their cycle");

    // A renewal gives each member a whole limit again.
    let now = Utc::now().to_rfc3339();
    topics.send("usage", &of_member("a4", ada, 80, &now)).await;
    topics.send("usage", &of_member("b3", bob, 10, &now)).await;
    meter.caught_up(&topics).await;
    let counts = |counts: &[(&str, &str)]| counts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(counted(&meter, 1).await, counts(&[("email:ada lovelace", "80000"), ("email:bob", "10000")]));

    // Other limits by hand: they hold at once, and what was counted stays.
    let put = |limits: &[&str]| {
        let anchor = anchor.to_string();
        let mut arguments = vec!["account", "put", "acme", "--plan", "basic", "--anchor", &anchor, "--json"];
        limits.iter().for_each(|limit| arguments.extend(["--member-limit", limit]));
        meter.json(&arguments)
    };
    assert_eq!(put(&["email=20", "email:ada lovelace=90"])["status"], "applied");
    let account = meter.json(&["account", "get", "acme", "--json"]);
    let shown = json!([
        { "credit_type": "email", "amount": 20 },
        { "credit_type": "email", "amount": 90, "user": "ada lovelace" },
    ]);
    assert_eq!(account["member_limits"], shown);
    let text = String::from_utf8_lossy(&meter.run(&["account", "get", "acme"]).stdout).into_owned();
    assert!(text.contains("limit     email 90 for member ada lovelace in a cycle"), "{text}");
    let more = [("a5", ada, 10), ("a6", ada, 1), ("b4", bob, 11), ("b5", bob, 10), ("c2", Some("carol"), 20)];
    for (id, user, quantity) in more {
        topics.send("usage", &of_member(id, user, quantity, &now)).await; // a6 and b4 are denied
    }
    meter.caught_up(&topics).await;
    meter.published().await;
    assert_eq!(denied(&topics), expected(&["a2", "b2", "n2", "a6", "b4"]));
    let anchored = ["account", "put", "acme", "--plan", "basic", "--anchor", "2026-01-01"];
    let refused = meter.run(&[&anchored[..], &["--member-limit", "fax=20"]].concat());
    let told = format!("{}{}", String::from_utf8_lossy(&refused.stdout), String::from_utf8_lossy(&refused.stderr));
    assert!(refused.status.code() == Some(1) && told.contains("credit type `fax` is none of"), "{told}");

    // A put that names none takes them away.
    assert_eq!(put(&[])["status"], "applied");
    topics.send("usage", &of_member("a7", ada, 100, &now)).await;
    meter.caught_up(&topics).await;
    let balance = meter.json(&["balance", "acme", "--json"]);
    assert_eq!(balance["balances"]["email"]["used"], 80 + 10 + 10 + 10 + 20 + 100);
    let totals: Vec<_> = meter.totals("usage").await.into_iter().collect();
    assert_eq!(totals, [(Outcome::Duplicate, 1), (Outcome::Denied, 5), (Outcome::Charged, 11)]);
    let events = meter.json(&["events", "acme", "--json"]);
    let shown = events["events"].as_array().expect("events").iter().find(|event| event["id"] == "a6").expect("a6");
    assert_eq!((&shown["outcome"], &shown["reason"]), (&json!("denied"), &limit), "{shown}");
    let (_, page) = running.get("/metrics").await.expect("it serves");
    assert!(page.contains("credit_meter_denied_total{reason=\"member_limit\"} 5"), "{page}");
    assert_eq!(meter.audit()["mismatches"], 0);
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_stay_within_their_limits_while_workers_die_and_charges_are_taken_back() {
    const PARTITIONS: i32 = 3;
    let topics = Topics::create("members-die", PARTITIONS).await;
    let meter = Meter::new(&topics, "tests/data/catalogue-voids.toml");
    let limits = json!([
        { "credit_type": "email", "amount": 60 },
        { "credit_type": "email", "amount": 90, "user": "ada" },
    ]);
    let (put, second_cycle) = put_large(&limits);
    topics.command(&put).await;
    let mut rng = SmallRng::seed_from_u64(1);
    let mut running = vec![meter.start(&[]), meter.start(&[])];
    running[0].ready().await;
    let users = [Some("ada"), Some("bob"), Some("carol"), None];
    let now = Utc::now().to_rfc3339();
    let mut voids = 0;
    for round in 0..4 {
        for number in 0..80 {
            let user = *users.choose(&mut rng).expect("not empty");
            let id = format!("{round}-{number}");
            let event = Outgoing {
                partition: rng.random_range(0..PARTITIONS),
                ..of_member(&id, user, rng.random_range(1..4), &now)
            };
            topics.send("usage", &event).await;
            if rng.random_bool(0.1) {
                topics.send("usage", &Outgoing { partition: rng.random_range(0..PARTITIONS), ..event }).await;
            }
            if rng.random_bool(0.2) {
                let void = json!({
                    "specversion": "1.0", "id": format!("void-{id}"), "source": "test", "subject": "acme",
                    "type": "credits.usage.void.v1", "time": Utc::now().to_rfc3339(),
                    "data": { "source": "test", "id": id, "time": now, "action": "reveal_email" },
                });
                let (key, value) = (Some("acme".into()), Some(void.to_string().into()));
                let partition = rng.random_range(0..PARTITIONS);
                topics.send("usage", &Outgoing { partition, key, value, ..Outgoing::default() }).await;
                voids += 1;
            }
        }
        // One of the two dies in the middle of its work.
        drop(running.pop().expect("two run"));
        running.insert(0, meter.start(&[]));
    }
    meter.caught_up(&topics).await;
    meter.published().await;
    let counts = counted(&meter, 1).await;
    let usage = meter.json(&["usage", "acme", "--by", "user", "--json"]);
    let mut used = BTreeMap::new();
    for row in usage["usage"].as_array().unwrap_or_else(|| panic!("{usage}")) {
        let (user, credits) = (row["user"].as_str().unwrap_or(""), row["credits"].as_i64().expect("whole credits"));
        let limit = if user == "ada" { 90 } else { 60 };
        assert!(credits > limit / 2 && credits <= limit, "{usage}");
        used.insert(format!("email:{user}"), (1000 * credits).to_string());
    }
    assert_eq!(counts, used, "what is counted is what was charged and not taken back");
    assert!(voids > 20 && denied(&topics).values().all(|reason| reason == "member_limit"), "{:?}", denied(&topics));
    assert!(denied(&topics).len() > 20, "{:?}", denied(&topics));

    // Late use counts in its own cycle.
    let late = (second_cycle - TimeDelta::hours(1)).to_rfc3339();
    for (id, quantity) in [("late-1", 89), ("late-2", 2), ("late-3", 1)] {
        topics.send("usage", &of_member(id, Some("ada"), quantity, &late)).await; // the second is denied
    }
    meter.caught_up(&topics).await;
    meter.published().await;
    assert_eq!(counted(&meter, 0).await, [("email:ada".to_owned(), "90000".to_owned())].into());
    assert_eq!(counted(&meter, 1).await, counts);
    assert!(denied(&topics).contains_key("late-2") && !denied(&topics).contains_key("late-3"));
    assert_eq!(meter.audit()["mismatches"], 0);
}
