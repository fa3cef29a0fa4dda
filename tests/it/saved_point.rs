//! An audit goes on from a saved point: it reads only the rest of the log, and finds what it would have found with all of it.

use std::path::Path;

use credit_meter::store::keys::Key;
use serde_json::{Value, json};

use crate::cycles::{Past, at};
use crate::support::kafka::Outgoing;
use crate::support::redis::shared;
use crate::support::until;

const CATALOGUE: &str = "tests/data/catalogue-voids.toml";
const JANUARY: &str = "2026-01-20T10:00:00Z";
/// The day above the cut when the point is saved.
const LATER: &str = "2026-01-22T10:00:00Z";
const SAVED: &str = "2026-01-24T12:00:00Z";

fn event(account: &str, id: &str, action: &str, time: &str, more: Value) -> Value {
    let mut data = json!({ "action": action });
    data.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({
        "specversion": "1.0", "id": id, "source": "reveals", "type": "credits.usage.v1", "subject": account,
        "time": time, "data": data,
    })
}

fn email(account: &str, id: &str, time: &str, quantity: u64) -> Value {
    event(account, id, "reveal_email", time, json!({ "quantity": quantity }))
}

fn phone(account: &str, id: &str, time: &str, contact: &str) -> Value {
    event(account, id, "reveal_phone", time, json!({ "contact": contact }))
}

fn void(event: &Value, time: &str) -> Value {
    let mut data = event["data"].clone();
    for name in ["source", "id", "time"] {
        data[name] = event[name].clone();
    }
    json!({
        "specversion": "1.0", "id": format!("void-{}", event["id"]), "source": "refunds", "type": "credits.usage.void.v1",
        "subject": event["subject"], "time": time, "data": data,
    })
}

fn record(partition: i32, event: &Value) -> Outgoing {
    let key = event["subject"].as_str().expect("an account").as_bytes().to_vec();
    Outgoing { partition, key: Some(key), value: Some(event.to_string().into_bytes()), ..Outgoing::default() }
}

/// Sends events, appended at a time, one after the other.
async fn send(past: &Past, appended: &str, events: &[(i32, &Value)]) {
    for (partition, event) in events {
        past.topics.send_at("usage", &record(*partition, event), at(appended)).await;
    }
    past.meter.caught_up(&past.topics).await;
}

/// Runs an audit that must fail, and gives what it said.
fn fails(past: &Past, arguments: &[&str]) -> (Value, String) {
    let output = past.meter.run(&[&["audit", "--json"], arguments].concat());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let found = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}{found}");
    (serde_json::from_slice(&output.stdout).unwrap_or_default(), told)
}

fn what(report: &Value) -> Vec<&str> {
    let differences = report["differences"].as_array().expect("differences");
    differences.iter().map(|difference| difference["what"].as_str().expect("a text")).collect()
}

async fn add(key: &str, field: &str, amount: i64) {
    let mut command = redis::cmd("HINCRBY");
    let _: i64 = command.arg(key).arg(field).arg(amount).query_async(&mut shared().await).await.expect("redis answers");
}

/// First and last but one line of a saved point.
fn saved(path: &Path) -> (Value, Value) {
    let text = std::fs::read_to_string(path).expect("it was saved");
    let lines: Vec<&str> = text.lines().collect();
    let line = |index: usize| serde_json::from_str(lines[index]).expect("JSON");
    (line(0), line(lines.len() - 2))
}

/// Deletes all that an audit from a point does not need, as retention would.
async fn delete_below(past: &Past, path: &Path) -> i64 {
    let (header, end) = saved(path);
    let mut deleted = 0;
    for (partition, cut) in (0..).zip(header["cut"].as_array().expect("offsets")) {
        let cut = cut.as_i64().expect("an offset");
        past.topics.delete_below("usage", partition, cut).await;
        deleted += cut;
    }
    for (role, tails) in [("denied", "denied"), ("dead-letter", "dead_letters")] {
        let from = end["end"][tails]["0"]["from"].as_i64().expect("an offset");
        past.topics.delete_below(role, 0, from).await;
    }
    deleted
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_goes_on_from_a_saved_point_and_reads_only_the_rest() {
    let mut past = Past::new("saved-point").await;
    past.meter.set("CATALOGUE__PATH", CATALOGUE);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("point");
    let file = path.to_str().expect("a path");
    for (account, plan) in [("acme", "team"), ("big", "large")] {
        let data = json!({"plan": plan, "anchor": "2026-01-01"});
        past.command(account, "account.put", &format!("put-{account}"), "2026-01-15T00:00:00Z", data).await;
    }
    let running = past.start().await;

    // January: what will lie below the cut. Some of it comes again, is taken back or is asked for again above it.
    let many: Vec<Value> = (0..400).map(|number| email("big", &format!("j{number}"), JANUARY, 1)).collect();
    let many: Vec<(i32, &Value)> = (0..).zip(&many).map(|(number, event)| (number % 2, event)).collect();
    let january = at(JANUARY);
    past.send_all("usage", many.iter().map(|(partition, event)| (record(*partition, event), january)).collect()).await;
    let (again, back, taken) =
        (email("big", "again", JANUARY, 2), email("big", "back", JANUARY, 3), phone("big", "p1", JANUARY, "c1"));
    let folded = [
        email("acme", "e1", JANUARY, 7),
        email("acme", "e2", JANUARY, 4), // denied
        phone("big", "p2", JANUARY, "c2"),
        phone("acme", "p3", JANUARY, "c3"),
    ];
    send(&past, JANUARY, &[(0, many[0].1), (1, many[0].1), (0, &again), (0, &back), (0, &taken)]).await;
    send(&past, JANUARY, &[(0, &folded[0]), (0, &folded[1]), (1, &folded[2]), (0, &folded[3])]).await;
    past.topics.send_at("usage", &Outgoing { value: Some(b"{".to_vec()), ..Outgoing::default() }, january).await;
    // Above the cut, and still before the point.
    let (young, soon) = (email("big", "young", LATER, 5), email("big", "soon", LATER, 6));
    let above = [phone("big", "p4", LATER, "c1"), email("acme", "e3", LATER, 4), email("acme", "e4", LATER, 1)];
    send(&past, LATER, &[(1, &again), (0, &void(&back, LATER)), (1, &young), (0, &soon)]).await;
    send(&past, LATER, &[(1, &above[0]), (0, &above[1]), (1, &above[2])]).await;
    past.tick(SAVED).await;
    past.meter_time(SAVED).await;
    past.meter.caught_up(&past.topics).await;
    past.meter.published().await;

    // What Redis holds wrongly is never saved as if it were right.
    let big = past.meter.key(Key::Account("big"));
    add(&big, "email.c", 1).await;
    let (report, told) = fails(&past, &["--save", file]);
    assert_eq!((what(&report), &report["saved"]), (vec!["email.charged"], &Value::Null));
    assert!(told.contains("not saved"), "{told}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is left over");
    add(&big, "email.c", -1).await;

    // A file that cannot be written is told of, beside what was found.
    let (report, told) = fails(&past, &["--save", folder.path().to_str().expect("utf-8")]);
    assert_eq!((what(&report), &report["mismatches"], &report["saved"]), (vec![], &json!(0), &Value::Null));
    assert!(report["save_fault"].as_str().is_some_and(|fault| told.contains(fault)), "{report} {told}");

    let whole = past.meter.json(&["audit", "--json", "--save", file]);
    let below = delete_below(&past, &path).await;
    assert!(below > 400, "{below}");
    // All of January but three records that hang together with what lies above the cut.
    assert_eq!(whole["saved"], json!(below - 3), "{whole}");
    let (_, told) = fails(&past, &[]);
    assert!(told.contains("--from"), "{told}");

    // Across the point: repeats, voids, what is charged once; denials and dead letters; then a renewal, and late use.
    let after = "2026-01-25T10:00:00Z";
    let asked = [phone("big", "p5", after, "c1"), phone("big", "p6", after, "c2"), phone("big", "p7", after, "c7")];
    let denied = [email("acme", "e5", after, 9), email("acme", "e6", after, 1)];
    send(&past, after, &[(0, &young), (0, &void(&soon, after)), (0, &asked[0]), (0, &asked[1]), (1, &asked[2])]).await;
    send(&past, after, &[(1, &denied[0]), (0, &denied[1])]).await;
    past.topics.send_at("usage", &Outgoing { value: Some(b"[".to_vec()), ..Outgoing::default() }, at(after)).await;
    let (february, late) = ("2026-02-02T10:00:00Z", "2026-01-31T20:00:00Z");
    past.tick("2026-02-01T00:00:01Z").await;
    past.meter_time("2026-02-01T00:00:01Z").await;
    let renewed = [email("acme", "f1", february, 3), phone("big", "f2", february, "c2"), email("acme", "l1", late, 1)];
    send(&past, february, &[(0, &renewed[0]), (1, &renewed[1]), (1, &renewed[2])]).await;
    past.meter.published().await;

    let from = past.meter.json(&["audit", "--json", "--from", file]);
    let ends: i64 = past.topics.ends("usage", 2).iter().sum();
    assert_eq!(from["records_read"], json!(ends - below), "{from}");
    assert_eq!(from["accounts_checked"], json!(2));
    let outcomes = from["outcomes"].as_object().expect("outcomes");
    let totals = past.meter.totals("usage").await;
    for (outcome, records) in &totals {
        assert_eq!(outcomes[outcome.name()], json!(records), "{from}");
    }
    assert_eq!(outcomes.len(), totals.len());
    for outcome in ["charged", "denied", "duplicate", "free", "voided", "dead_lettered"] {
        assert!(outcomes.contains_key(outcome), "no {outcome}: {from}");
    }
    // In slices it is the same, and the point is read for each.
    let sliced = past.meter.json(&["audit", "--json", "--from", file, "--memory", "12KiB"]);
    assert!(sliced["passes"].as_u64().is_some_and(|passes| passes > 1), "{sliced}");
    assert_eq!(sliced["outcomes"], from["outcomes"]);

    // What is changed by hand is found, above the cut and below it; and the point stays as it was.
    let kept = std::fs::read(&path).expect("a point");
    let shard = past.meter.shard_key(0);
    let closed = "closed:0:email";
    for (key, field, by, named) in [
        (&big, "email.c", 1, "email.charged"),
        (&shard, "total:usage:0:charged", 1, "total usage:0 charged"),
        (&past.meter.key(Key::Account("acme")), "phone.g", 1000, "phone.granted"),
    ] {
        add(key, field, by).await;
        let (report, _) = fails(&past, &["--from", file, "--save", file]);
        assert!(what(&report).contains(&named), "{report}");
        add(key, field, -by).await;
    }
    let acme = past.meter.key(Key::Account("acme"));
    let mut redis = shared().await;
    let counters: String =
        redis::cmd("HGET").arg(&acme).arg(closed).query_async(&mut redis).await.expect("redis answers");
    let mut words: Vec<String> = counters.split(' ').map(str::to_owned).collect();
    words[6] = "5000".into(); // charged
    let _: () = redis::cmd("HSET")
        .arg(&acme)
        .arg(closed)
        .arg(words.join(" "))
        .query_async(&mut redis)
        .await
        .expect("it is set");
    assert_eq!(what(&fails(&past, &["--from", file]).0), ["email.charged in cycle 0"]);
    let _: () =
        redis::cmd("HSET").arg(&acme).arg(closed).arg(&counters).query_async(&mut redis).await.expect("it is set");
    assert_eq!(std::fs::read(&path).expect("a point"), kept);

    // Each point saves the next one more: here, until all of January is closed, forgotten and deleted.
    past.tick("2026-02-08T00:00:00Z").await;
    past.meter_time("2026-02-08T00:00:00Z").await;
    until("January is forgotten", || async {
        let account = past.meter.store.account("acme").await.expect("redis answers").expect("it is there");
        account.view.closed.is_empty().then_some(())
    })
    .await;
    let following = past.meter.start_with(&["audit", "--follow", "--every", "1s", "--save", file], &[]);
    until("two audits have ended", || async {
        let (_, page) = following.get("/metrics").await?;
        page.contains("credit_meter_audits_total{result=\"clean\"} 2").then_some(())
    })
    .await;
    assert!(following.terminate().await.success());
    let below = delete_below(&past, &path).await;
    let next = email("acme", "f3", "2026-02-08T00:00:00Z", 1);
    send(&past, "2026-02-08T00:00:00Z", &[(0, &next), (1, &next)]).await;
    let last = past.meter.json(&["audit", "--json", "--from", file]);
    let ends: i64 = past.topics.ends("usage", 2).iter().sum();
    assert_eq!(last["records_read"], json!(ends - below), "{last}");
    assert!(ends - below < 10, "{below} of {ends}");

    // A decision about what is counted already: the point holds no more, and says so.
    let forged = json!({
        "specversion": "1.0", "id": "forged", "source": past.meter.prefix, "type": "credits.denied.v1", "subject": "big",
        "data": { "reason": "insufficient_credits", "events": [{
            "source": "reveals", "id": "j1", "topic": past.topics.name("usage"), "partition": 1, "offset": 0,
            "action": "reveal_email", "credit_type": "email", "required": 1, "remaining": 0,
        }]},
    });
    let forged = Outgoing { value: Some(forged.to_string().into_bytes()), ..Outgoing::default() };
    past.topics.send("denied", &forged).await;
    let (_, told) = fails(&past, &["--from", file]);
    assert!(told.contains("usage:1@0 was decided anew after") && told.contains(file), "{told}");

    // A file that was cut off, and one of another state.
    std::fs::write(&path, &kept[..kept.len() - 10]).expect("it can be written");
    assert!(fails(&past, &["--from", file]).1.contains("is torn"), "a torn file");
    std::fs::write(&path, "{}\n").expect("it can be written");
    assert!(fails(&past, &["--from", file]).1.contains("is no saved point"), "another file");
    assert!(running.terminate().await.success());
}
