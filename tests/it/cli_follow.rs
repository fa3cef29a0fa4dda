//! Commands that look on while a meter works: alerts as they come, the live view, an account's events.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::channel;

use chrono::DateTime;
use serde_json::{Value, json};

use crate::support::following::Following;
use crate::support::kafka::{Outgoing, Topics};
use crate::support::meter::Meter;
use crate::support::{signal, until};
use crate::walk::{CATALOGUE, put, reveal, reveal_event};

/// What each run of the program was given goes to a file of its own.
fn program(folder: &Path) -> String {
    let path = folder.join("program");
    let text = format!(
        "#!/bin/sh\n(cat; echo \"$ALERT_EDGE $ALERT_ACCOUNT $ALERT_REMAINING\") > {0}/part.$$ && mv {0}/part.$$ {0}/ran.$$\n",
        folder.display()
    );
    std::fs::write(&path, text).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it may be run");
    path.display().to_string()
}

fn ran(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let own = entries.filter(|path| path.file_stem().is_some_and(|stem| stem == "ran"));
    own.map(|path| std::fs::read_to_string(path).expect("text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_come_as_they_are_published_and_a_program_runs_for_each() {
    let topics = Topics::create("alerts", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let follow = ["alerts", "--follow", "--from", "earliest", "--json", "--exec", program.as_str()];
    let mut following = Following::start(&meter, &follow);
    let mut lows = Vec::new();
    for account in ["acme", "other"] {
        topics.command(&put(account, "starter")).await; // 30 e-mail credits
        topics.send("usage", &reveal(account, "e1", 25)).await;
        let low: Value = serde_json::from_str(&following.line()).expect("JSON");
        assert_eq!((&low["type"], &low["subject"]), (&json!("credits.low.v1"), &json!(account)), "{low}");
        assert_eq!((&low["data"]["threshold"], &low["data"]["remaining"]), (&json!("80%"), &json!(5)), "{low}");
        assert!(low["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{low}");
        lows.push(low);
    }
    topics.send("usage", &reveal("acme", "e2", 5)).await;
    let exhausted: Value = serde_json::from_str(&following.line()).expect("JSON");
    assert_eq!(exhausted["type"], "credits.exhausted.v1", "{exhausted}");
    let ran = until("the program has run for each", || async { Some(ran(folder.path())).filter(|ran| ran.len() == 3) });
    let ran = ran.await;
    assert!(ran.iter().any(|told| told.ends_with("exhausted acme 0\n")), "{ran:?}");
    let first = ran.iter().find(|told| told.ends_with("low acme 5\n")).expect("it ran for the first");
    assert_eq!(serde_json::from_str::<Value>(first.lines().next().expect("a line")).expect("JSON"), lows[0]);
    // A partition that is added is followed too.
    let published = topics.read("alerts", 1);
    let text = String::from_utf8(rdkafka::Message::payload(&published[0]).expect("a value").to_vec()).expect("text");
    let added = text.replace("/acme/", "/added/").replace("\"acme\"", "\"added\"");
    topics.grow("alerts", 2).await;
    let in_the_new_one = Outgoing { value: Some(added.into_bytes()), partition: 1, ..Default::default() };
    topics.send("alerts", &in_the_new_one).await;
    let added: Value = serde_json::from_str(&following.line()).expect("JSON");
    assert_eq!(added["subject"], "added");
    signal(following.child.id(), "-TERM");
    assert_eq!(following.ends("SIGTERM ends it").await, 0);

    // Again, as a relay that died would: the same message is told once.
    let repeated = Outgoing {
        key: Some(b"acme".to_vec()),
        value: rdkafka::Message::payload(&published[0]).map(<[u8]>::to_vec),
        ..Default::default()
    };
    topics.send("alerts", &repeated).await;
    let lines = |arguments: &[&str]| {
        let output = meter.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = lines(&["alerts", "--account", "acme"]);
    assert_eq!(own.len(), 2, "{own:?}");
    assert!(own[0].ends_with("low        acme  email (80%): 5 of 30 left"), "{own:?}");
    assert!(own[1].ends_with("exhausted  acme  email: 0 of 30 left"), "{own:?}");
    assert_eq!(lines(&["alerts"]).len(), 4);
    assert!(lines(&["alerts", "--from", "latest"]).is_empty());
    assert!(lines(&["alerts", "--from", "2999-01-01T00:00:00Z"]).is_empty());

    // A program that fails is told of, and holds nothing up.
    let failing = meter.run(&["alerts", "--exec", "/bin/false"]);
    let told = String::from_utf8_lossy(&failing.stderr).into_owned();
    assert_eq!((failing.status.code(), String::from_utf8_lossy(&failing.stdout).lines().count()), (Some(1), 4));
    assert!(told.contains("the program failed for 4 alerts"), "{told}");

    // Nobody reads any more, and nothing comes: it ends all the same.
    let follow = ["alerts", "--follow", "--from", "earliest"];
    let spawned = meter.command().args(follow).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.expect("the program starts");
    let mut stdout = child.stdout.take().expect("it is piped");
    stdout.read_exact(&mut [0; 10]).expect("it tells what there is");
    drop(stdout);
    let (_, lines) = channel();
    let mut deaf = Following { child, lines, log: None };
    assert_eq!(deaf.ends("a closed pipe ends it").await, 0);
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_come_in_the_order_of_their_times_and_who_resumes_misses_none() {
    const ROUNDS: usize = 6;
    const ACCOUNTS: usize = 12;
    const PARTITIONS: i32 = 4;
    let topics = Topics::create("alerts-resumed", 1).await;
    topics.grow("alerts", PARTITIONS).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    let publish = async |round: usize| {
        for number in 0..ACCOUNTS {
            let account = format!("team-{number}-{round}");
            topics.command(&put(&account, "starter")).await; // 30 e-mail credits
            topics.send("usage", &reveal(&account, "e1", 25)).await;
        }
        meter.caught_up(&topics).await;
        meter.published().await;
    };
    for round in 0..ROUNDS {
        publish(round).await;
    }
    let told = |line: &str| {
        let alert: Value = serde_json::from_str(line).expect("JSON");
        let time = DateTime::parse_from_rfc3339(alert["time"].as_str().expect("a time")).expect("RFC 3339");
        (time.timestamp_millis(), alert["subject"].as_str().expect("an account").to_owned())
    };
    let list = |arguments: &[&str]| {
        let output = meter.run(&[&["alerts", "--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").lines().map(told).collect::<Vec<_>>()
    };
    let all = list(&[]);
    assert_eq!(all.len(), ROUNDS * ACCOUNTS);
    assert!(all.is_sorted_by_key(|(time, _)| time), "{all:?}");
    let used: Vec<i64> = topics.ends("alerts", PARTITIONS);
    assert!(used.iter().filter(|end| **end > 0).count() > 1, "they lie in several partitions: {used:?}");

    // Killed in the middle of what there was, and stopped; what comes meanwhile waits.
    let folder = tempfile::tempdir().expect("a folder");
    let (program, file) = (program(folder.path()), folder.path().join("place"));
    let file = file.to_str().expect("text");
    let mut heard = Vec::new();
    for (round, signal_name) in [(ROUNDS, "-KILL"), (ROUNDS + 1, "-TERM")] {
        let follow = ["alerts", "--follow", "--from", "earliest", "--json", "--exec", &program, "--resume", file];
        let mut following = Following::start(&meter, &follow);
        for _ in 0..ACCOUNTS {
            heard.push(told(&following.line()));
        }
        signal(following.child.id(), signal_name);
        until("it has ended", || std::future::ready(following.child.try_wait().expect("it is a child"))).await;
        publish(round).await;
        // What it had told beside: the program has run for it, so that it is not told again.
        heard.extend(following.lines.try_iter().map(|line| told(&line)));
    }
    heard.extend(list(&["--resume", file]));
    let (heard_once, all) = (BTreeSet::from_iter(heard.iter().cloned()), list(&[]));
    assert_eq!(heard_once, BTreeSet::from_iter(all));
    assert!(heard.len() <= heard_once.len() + 1, "only the one under way came again: {} lines", heard.len());
    assert!(list(&["--resume", file]).is_empty(), "all is told");
    let other = meter.run(&["alerts", "--account", "acme", "--resume", file]);
    assert!(
        !other.status.success() && String::from_utf8_lossy(&other.stderr).contains("not of account acme"),
        "{other:?}"
    );

    // What is only printed is noted too, a moment later.
    let lines_only = folder.path().join("lines");
    let lines_only = lines_only.to_str().expect("text");
    let mut following = Following::start(&meter, &["alerts", "--follow", "--from", "earliest", "--resume", lines_only]);
    (0..heard_once.len()).for_each(|_| drop(following.line()));
    let told: i64 = topics.ends("alerts", PARTITIONS).iter().sum();
    let noted = || {
        let place: Value = serde_json::from_slice(&std::fs::read(lines_only).ok()?).expect("it is whole at any time");
        let next = place["next"].as_object()?.values().filter_map(Value::as_i64);
        (next.sum::<i64>() == told).then_some(())
    };
    until("all is noted", || std::future::ready(noted())).await;
    signal(following.child.id(), "-KILL");
    until("it has ended", || std::future::ready(following.child.try_wait().expect("it is a child"))).await;
    assert!(list(&["--resume", lines_only]).is_empty());

    // A program that is not there is not run, and the alert waits.
    let nowhere = folder.path().join("nowhere");
    let waits = ["alerts", "--resume", nowhere.to_str().expect("text"), "--exec", "/no/such/program"];
    for _ in 0..2 {
        let output = meter.run(&waits);
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).lines().count()), (Some(1), 1));
    }

    // What was not read and is gone is told of, and so is a log that is another.
    let ends = topics.ends("alerts", PARTITIONS);
    let (busiest, end) = (0..).zip(ends).max_by_key(|(_, end)| *end).expect("there are partitions");
    topics.delete_below("alerts", busiest, 1).await;
    let left = heard_once.len() - 1;
    for (next, read_ms, says) in [
        (0, json!(null), "what lay from 0 to 1 was deleted before it was read"),
        (2, json!(1), "is another log than the one that was read up to 2"),
        (end + 1, json!(null), "is another log"),
    ] {
        let place = json!({
            "meter": meter.prefix, "topic": topics.name("alerts"), "account": null,
            "next": { busiest.to_string(): next }, "read_ms": read_ms,
        });
        let file = folder.path().join("made-up");
        std::fs::write(&file, place.to_string()).expect("a file");
        let output = meter.run(&["alerts", "--resume", file.to_str().expect("text")]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && told.contains(says), "{says}: {told}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), left, "{says}");
    }
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_lag_outcomes_the_hottest_account_and_alarms() {
    let topics = Topics::create("top", 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    for (account, plan) in [("hot", "organization"), ("small", "starter")] {
        topics.command(&put(account, plan)).await;
    }
    for number in 0..60 {
        let account = if number % 6 == 0 { "small" } else { "hot" };
        topics.send("usage", &reveal(account, &format!("e{number}"), 4)).await;
    }
    meter.caught_up(&topics).await;
    meter.published().await;

    let silent = "127.0.0.1:1";
    let arguments = ["top", "--once", "--json", "--every", "500ms", "--url", &running.http, "--url", silent];
    let view = until("lag is shown as none", || {
        let view = meter.json(&arguments);
        let lag = view["lag"].as_array().expect("topics").clone();
        let none = lag.len() == 2 && lag.iter().all(|topic| topic["records"] == 0);
        async move { none.then_some(view) }
    })
    .await;
    let (first, second) = (&view["meters"][0], &view["meters"][1]);
    assert_eq!((&first["answers"], &first["ready"], &second["answers"]), (&json!(true), &json!(true), &json!(false)));
    assert!(second["reason"].as_str().is_some_and(|reason| reason.contains("refused")), "{second}");
    // Of the 30 credits of the small account 28 are used by 7 events, and 3 are denied.
    let outcomes = view["outcomes"].as_array().expect("outcomes");
    let ended = |outcome: &str| outcomes.iter().find(|each| each["outcome"] == outcome).expect("all are shown").clone();
    assert_eq!((&ended("charged")["events"], &ended("denied")["events"]), (&json!(57), &json!(3)), "{view}");
    assert_eq!((&view["events"], &view["shards_halted"]), (&json!(60), &json!(0)));
    let hottest = &view["hottest"][0];
    assert_eq!(hottest["account"], "hot", "{view}");
    assert!(hottest["share"].as_f64().is_some_and(|share| (share - 50.0 / 60.0).abs() < 0.01), "{hottest}");
    let alarms = &view["alarms"];
    assert_eq!((&alarms["exhausted"], &alarms["low"], &alarms["complete"]), (&json!(1), &json!(0), &json!(true)));
    assert_eq!((&alarms["newest"][0]["account"], &alarms["newest"][0]["remaining"]), (&json!("small"), &json!(2)));

    let text = String::from_utf8(meter.run(&["top", "--every", "500ms", "--url", &running.http]).stdout).expect("text");
    assert!(text.contains("in alarm: 1 exhausted, 0 low") && text.contains("ready"), "{text}");
    assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 80), "{text}");

    // The live view, and how it leaves the terminal.
    for way in ["q", "ctrl-c", "TERM"] {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/cli_follow/terminal.py");
        let program = meter.command().get_program().to_owned();
        let mut command = std::process::Command::new("python3");
        for (key, value) in meter.command().get_envs() {
            command.env(key, value.expect("a value"));
        }
        command.args([script, way, "ready,exhausted,83.3"]).arg(program).args(["top", "--url", &running.http]);
        let output = command.output().expect("python runs");
        let told: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{way}: {error}: {}", String::from_utf8_lossy(&output.stderr)));
        let expected = json!({
            "code": 0, "asked": true, "taken": true, "restored": true, "entered": 1, "left": 1, "cursor_shown": true,
        });
        assert_eq!(told, expected, "{way}");
    }
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_how_each_ended_and_add_up_to_the_balance() {
    let topics = Topics::create("events", 3).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    for (account, plan) in [("acme", "starter"), ("part", "capped"), ("other", "organization")] {
        topics.command(&put(account, plan)).await;
    }
    let send = async |account: &str, id: &str, partition: i32, change: &dyn Fn(&mut Value)| {
        let mut event = reveal_event(account, id, 4);
        change(&mut event);
        let value = event.to_string().into_bytes();
        let record = Outgoing { key: Some(account.into()), value: Some(value), partition, ..Outgoing::default() };
        topics.send("usage", &record).await;
    };
    let same = |_: &mut Value| {};
    for number in 0..30 {
        // 7 of the 30 credits' worth of acme fit; what is capped gets a part.
        for account in ["acme", "part", "other"] {
            send(account, &format!("e{number}"), number % 3, &same).await;
        }
    }
    meter.caught_up(&topics).await;
    send("acme", "e0", 0, &same).await; // again, where it came before
    send("acme", "e1", 2, &same).await; // and in another partition
    send("acme", "phone", 0, &|event| event["data"]["action"] = json!("reveal_phone")).await; // not on its plan
    send("acme", "fax", 0, &|event| event["data"]["action"] = json!("send_fax")).await; // nobody knows it
    send("acme", "old", 0, &|event| event["time"] = json!("2020-01-01T00:00:00Z")).await;
    send("acme", "user", 0, &|event| event["data"]["user"] = json!("u, the \"first\"")).await;
    send("acme", "two", 0, &|event| event["data"]["quantity"] = json!(2)).await; // fits what is left
    send("acme", "bad", 0, &|event| event["data"]["quantity"] = json!(-1)).await; // is no event
    for (id, contact) in [("p1", "c-1"), ("p2", "c-1"), ("p3", "c-2")] {
        let phone = |event: &mut Value| {
            event["data"] = json!({ "action": "reveal_mobile", "quantity": 2, "contact": contact }); // charged once
        };
        send("other", id, 1, &phone).await;
    }
    meter.caught_up(&topics).await;
    meter.published().await;

    let phone = meter.json(&["events", "other", "--json"])["used"]["phone"].clone();
    assert_eq!(phone, meter.json(&["balance", "other", "--json"])["balances"]["phone"]["used"]);
    assert_eq!(phone, json!(6));
    let used = |account: &str| meter.json(&["balance", account, "--json"])["balances"]["email"]["used"].clone();
    for account in ["acme", "part", "other"] {
        let told = meter.json(&["events", account, "--json"]);
        assert_eq!(told["used"]["email"], used(account), "{told}");
        let cost = |event: &Value| event["cost"].as_f64().expect("nothing waits");
        let events = told["events"].as_array().expect("events").iter();
        let costs: f64 = events.filter(|event| event["credit_type"] == "email").map(cost).sum();
        assert_eq!(costs, used(account).as_f64().expect("a number"), "{told}");
    }
    assert_eq!(meter.json(&["events", "other", "--json"])["outcomes"], json!({ "charged": 32, "free": 1 }));
    let part = meter.json(&["events", "part", "--json"])["outcomes"].clone();
    assert!(part["capped"].as_u64().is_some_and(|events| events > 0), "{part}");
    let told = meter.json(&["events", "acme", "--json"]);
    let outcomes = json!({ "charged": 8, "denied": 25, "duplicate": 2, "dead_lettered": 2 });
    assert_eq!(told["outcomes"], outcomes, "{told}");
    let events = told["events"].as_array().expect("events");
    let of = |id: &str| events.iter().filter(|event| event["id"] == id).collect::<Vec<_>>();
    let ended = |id: &str| of(id).iter().map(|event| event["outcome"].clone()).collect::<Vec<_>>();
    assert_eq!(ended("e0"), [json!("charged"), json!("duplicate")]);
    assert_eq!((&of("phone")[0]["reason"], &of("phone")[0]["price"]), (&json!("not_entitled"), &json!(6)), "{told}");
    assert_eq!((&of("e29")[0]["reason"], &of("e29")[0]["cost"]), (&json!("insufficient_credits"), &json!(0)), "{told}");
    assert_eq!(of("fax")[0]["reason"], "unknown_action");
    assert_eq!((&of("two")[0]["cost"], &of("two")[0]["cycle"]), (&json!(2), &json!(0)));
    assert_eq!(of("bad")[0]["reason"], "quantity_negative");
    assert_eq!(of("user")[0]["user"], "u, the \"first\"");
    // What came before the account is asked for by its time.
    let old = meter.json(&["events", "acme", "--from", "2019-12-31", "--to", "2020-01-02", "--json"]);
    assert_eq!(
        (&old["events"][0]["id"], &old["events"][0]["reason"]),
        (&json!("old"), &json!("before_account")),
        "{old}"
    );
    assert_eq!(old["outcomes"], json!({ "dead_lettered": 1 }));
    let csv = String::from_utf8(meter.run(&["events", "acme", "--csv"]).stdout).expect("text");
    assert_eq!(csv.lines().count(), 1 + events.len());
    assert!(csv.contains(",\"u, the \"\"first\"\"\","), "{csv}");

    // What no meter has applied so far waits.
    assert!(running.terminate().await.success());
    send("acme", "later", 1, &same).await;
    let told = meter.json(&["events", "acme", "--json"]);
    let later = told["events"].as_array().and_then(|events| events.last()).expect("events").clone();
    assert_eq!((&later["id"], &later["outcome"], &later["cost"]), (&json!("later"), &json!("pending"), &Value::Null));
    assert_eq!(told["used"]["email"], used("acme"));
    let text = String::from_utf8(meter.run(&["events", "acme"]).stdout).expect("text");
    assert!(text.trim_end().ends_with("used: 30 email"), "{text}");
    assert_eq!(meter.run(&["events", "nobody"]).status.code(), Some(1));
    assert_eq!(meter.run(&["events", "acme", "--from", "soon"]).status.code(), Some(2));
    // Arguments that only the account shows to be wrong.
    let refused = |arguments: &[&str], why: &str| {
        let ended = meter.run(arguments);
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(2) && told.contains(why), "{arguments:?}: {told}");
    };
    refused(&["events", "acme", "--to", "2020-01-02"], "not before --to 2020-01-02T00:00:00Z: name --from");
    refused(&["usage", "acme", "--from", "2999-01-01"], "--from 2999-01-01 is after today, ");
    refused(&["usage", "acme", "--from", "1999-01-01"], " are more than 4000 days");
}
