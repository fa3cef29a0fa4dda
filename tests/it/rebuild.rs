//! What was lost comes back from the log, and what was published stands.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use credit_meter::ledger::outcome::Outcome;
use credit_meter::ledger::shard::{NameReply, name_of_rebuild};
use credit_meter::store::Store;
use credit_meter::store::keys::Key;
use rdkafka::Message;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::audit::top_up;
use crate::support::kafka::{Topics, data};
use crate::support::meter::{Meter, SHARDS};
use crate::support::redis::shared;
use crate::support::{dump, until};
use crate::walk::{CATALOGUE, put, reveal};

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_of_an_older_program_is_refused_and_counted_anew() {
    let (_topics, meter) = used("older-layout").await;
    let before = meter.json(&["balance", "acme", "--json"])["balances"].clone();
    let mut connection = shared().await;
    let Store::Redis(store) = &meter.store else { unreachable!("the tests use a real redis") };
    for shard in 0..SHARDS {
        let key = store.keys().spell(Key::Shard(shard));
        let set = redis::cmd("HSET").arg(key).arg("schema").arg(1).query_async::<()>(&mut connection).await;
        set.expect("redis answers");
    }
    let mut running = meter.start(&[]);
    assert!(!running.ends("an older layout is refused").await.success());
    let shards: Vec<String> = (0..SHARDS).flat_map(|shard| ["--shard".to_owned(), shard.to_string()]).collect();
    let rebuild = [vec!["rebuild"], shards.iter().map(String::as_str).collect()].concat();
    let output = meter.run(&rebuild);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"], before);
    meter.audit();
}

const ACCOUNTS: [&str; 4] = ["acme", "beta", "gamma", "delta"];

async fn delete(connection: &mut MultiplexedConnection, keys: Vec<String>) {
    let _: () = redis::cmd("DEL").arg(keys).query_async(connection).await.expect("redis answers");
}

/// A meter that has charged, denied, dead-lettered and answered; stopped.
async fn used(test: &str) -> (Topics, Meter) {
    let topics = Topics::create(test, 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    for account in ACCOUNTS {
        topics.command(&put(account, "starter")).await; // 30 e-mail credits
    }
    for number in 0..40 {
        let account = ACCOUNTS[number % 4];
        let mut record = reveal(account, &format!("e{number}"), 4);
        record.partition = (number % 2) as i32;
        topics.send("usage", &record).await;
        if number % 5 == 0 {
            topics.send("usage", &record).await; // again
        }
    }
    topics.send("usage", &reveal("nobody", "n1", 1)).await;
    meter.caught_up(&topics).await;
    topics.command(&top_up("acme", "top-up", 20)).await;
    meter.caught_up(&topics).await;
    meter.published().await;
    assert!(running.terminate().await.success());
    (topics, meter)
}

fn alerts(topics: &Topics) -> Vec<Value> {
    let alerts = topics.read("alerts", 1);
    alerts.iter().map(|alert| serde_json::from_slice(alert.payload().expect("a value")).expect("JSON")).collect()
}

fn balances(meter: &Meter) -> Vec<Value> {
    ACCOUNTS.map(|account| meter.json(&["balance", account, "--json"])["balances"].clone()).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_is_rebuilt_from_the_log_with_the_same_decisions() {
    let (topics, meter) = used("rebuild").await;
    let (before, totals) = (balances(&meter), meter.totals("usage").await);
    assert!(totals[&Outcome::Denied] > 0 && totals[&Outcome::DeadLettered] == 1, "{totals:?}");
    let published = |role: &str| topics.ends(role, 1)[0];
    let told = (published("denied"), published("dead-letter"), published("ledger"));
    let alerted = alerts(&topics);

    let mut connection = shared().await;
    let keys = dump::keys(&mut connection, &meter.prefix).await;
    delete(&mut connection, keys).await;
    let plan = meter.json(&["rebuild", "--dry-run", "--json"]);
    assert_eq!(plan["made"].as_array().map(Vec::len), Some(SHARDS as usize), "{plan}");
    assert_eq!(dump::keys(&mut connection, &meter.prefix).await, Vec::<String>::new(), "a dry run makes nothing");
    meter.json(&["rebuild", "--json"]);

    assert_eq!(balances(&meter), before);
    let plan = meter.run(&["rebuild", "--shard", "0", "--dry-run"]).stdout;
    let plan = String::from_utf8(plan).expect("text");
    assert!(plan.starts_with(&format!("1 of {SHARDS} shards to be made anew")), "none is empty: {plan}");
    assert_eq!(meter.totals("usage").await, totals);
    meter.published().await;
    assert_eq!(
        (published("denied"), published("dead-letter"), published("ledger")),
        told,
        "nothing is published twice"
    );
    // Alerts come again, with the same ids, up to the last: who is told that credits ran out hears that they came back.
    let again = alerts(&topics).split_off(alerted.len());
    let ids = |alerts: &[Value]| alerts.iter().map(|alert| alert["id"].clone()).collect::<Vec<_>>();
    assert!(ids(&again).iter().all(|id| ids(&alerted).contains(id)), "{again:?}");
    let last = again.iter().rfind(|alert| alert["subject"] == "acme").expect("it had run out");
    assert_eq!(last["type"], "credits.restored.v1", "{last}");
    // A meter goes on from there.
    let running = meter.start(&[]);
    running.ready().await;
    topics.send("usage", &reveal("acme", "one-more", 1)).await;
    meter.caught_up(&topics).await;
}

/// Each of two would apply its own partitions, and credits that were bought would be burnt by what came before them.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_is_alone_and_workers_wait_for_one_that_was_interrupted() {
    let (topics, meter) = used("rebuild-alone").await;
    let before = balances(&meter);
    let running = meter.start(&[]);
    running.ready().await;
    let refused = meter.run(&["rebuild", "--shard", "0"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("1 worker is in kafka's group"), "{told}");
    assert_eq!(balances(&meter), before, "nothing was deleted");

    // One that was interrupted. The worker that runs may have been away when it began.
    let generation = meter.store.stored_root().await.expect("redis answers").expect("a state").generation;
    let name = name_of_rebuild(&generation, Uuid::now_v7());
    for shard in 0..SHARDS {
        let named = meter.store.name(shard, &generation, &name, None).await;
        assert_eq!(named.expect("redis answers"), NameReply::Named);
    }
    topics.send("usage", &reveal("acme", "one-more", 1)).await;
    running.not_ready("a rebuild makes it anew").await;
    assert!(running.terminate().await.success());
    let running = meter.start(&[]);
    running.not_ready("a rebuild makes the state under").await;
    let audited = meter.run(&["audit"]);
    let told = String::from_utf8_lossy(&audited.stderr).into_owned();
    assert!(!audited.status.success() && told.contains("a rebuild makes the state anew"), "{told}");
    let balance = meter.run(&["balance", "acme"]);
    assert!(!balance.status.success(), "what is counted so far is not what an account has");
    let checked = meter.run(&["check"]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!checked.status.success() && told.contains("a rebuild makes the state anew"), "{told}");

    // Producers go on meanwhile, and it ends all the same.
    let producer = Topics::named(&topics.brokers, topics.prefix.clone(), 2);
    let sending = tokio::spawn(async move {
        for number in 0.. {
            producer.send("usage", &reveal("beta", &format!("meanwhile{number}"), 1)).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    meter.json(&["rebuild", "--json"]);
    sending.abort();
    running.ready().await;
    meter.caught_up(&topics).await;
    meter.audit();
    assert!(running.terminate().await.success());

    // One that cannot go on is given up: workers apply what is left.
    for shard in 0..SHARDS {
        meter.store.name(shard, &generation, &name, None).await.expect("redis answers");
    }
    let given = meter.json(&["rebuild", "--give-up", "--json"]);
    assert_eq!(given["given"], SHARDS, "{given}");
    let running = meter.start(&[]);
    running.ready().await;
    meter.audit();
}

/// Whoever is told that it goes on says the same again. No worker counts and nobody is shown half a count meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_killed_at_any_named_place_goes_on() {
    let (_topics, meter) = used("rebuild-kills").await;
    let before = balances(&meter);
    let two = ["rebuild", "--shard", "0", "--shard", "1"];
    let rest_given_back = format!("after_name@{}", SHARDS - 2 + 1);
    let places = [
        "after_fence_wiped",
        "after_wipe",
        "after_name",
        "after_init",
        "after_command",
        "after_apply",
        &rest_given_back,
    ];
    let mut waiting = None;
    for place in places {
        let killed = meter.run(&[&two[..], &["--set", &format!("debug.failpoint={place}")]].concat());
        let told = String::from_utf8_lossy(&killed.stderr).into_owned();
        assert_eq!(killed.status.signal(), Some(6), "{place}: {told}");
        for (account, before) in ACCOUNTS.into_iter().zip(&before) {
            let balance = meter.run(&["balance", account, "--json"]);
            if balance.status.success() {
                let shown: Value = serde_json::from_slice(&balance.stdout).expect("JSON");
                assert_eq!(shown["balances"], *before, "{place}");
            } else {
                let told = String::from_utf8_lossy(&balance.stderr).into_owned();
                let is_lost = told.contains("redis holds nothing of shard");
                assert!(is_lost || told.contains("a rebuild makes the state anew"), "{place}: {told}");
            }
        }
        if place == "after_init" {
            waiting = Some(meter.start(&[]));
        }
        if let Some(waiting) = &waiting {
            waiting.not_ready("a rebuild makes the state under").await;
        }
    }
    meter.json(&["rebuild", "--json"]);
    assert_eq!(balances(&meter), before);
    waiting.expect("it was started").ready().await;
    meter.audit();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_has_lost_a_key_is_counted_anew() {
    let (_topics, meter) = used("rebuild-shard").await;
    let before = balances(&meter);
    let Store::Redis(store) = &meter.store else { unreachable!("the tests use a real redis") };
    let shard = store.keys().shard_of("beta");
    let mut connection = shared().await;
    delete(&mut connection, vec![store.keys().spell(Key::Account("beta"))]).await;
    let balance = meter.run(&["balance", "beta"]);
    let told = String::from_utf8_lossy(&balance.stderr).into_owned();
    assert!(!balance.status.success() && told.contains("its hash is gone"), "{told}");
    meter.json(&["rebuild", "--shard", &shard.to_string(), "--json"]);
    assert_eq!(balances(&meter), before);

    // Without its fence, what is left of it would be charged twice.
    delete(&mut connection, vec![store.keys().spell(Key::Shard(shard))]).await;
    let refused = meter.run(&["rebuild"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("--shard"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_denied_stays_denied_though_redis_is_older_and_a_top_up_came_since() {
    let topics = Topics::create("recorded", 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "starter")).await; // 30 e-mail credits
    topics.send("usage", &reveal("acme", "e1", 20)).await;
    meter.caught_up(&topics).await;
    meter.published().await;
    assert!(running.terminate().await.success());
    // The snapshot.
    let mut connection = shared().await;
    let mut kept = Vec::new();
    // Without the relays' leases, which would never end.
    let keys = dump::keys(&mut connection, &meter.prefix).await.into_iter().filter(|key| !key.ends_with(":relay"));
    for key in keys {
        let dumped: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(&mut connection).await.expect("redis answers");
        kept.push((key, dumped));
    }

    let running = meter.start(&[]);
    running.ready().await;
    topics.send("usage", &reveal("acme", "denied", 15)).await;
    meter.caught_up(&topics).await;
    let grant = meter.run(&["grant", "acme", "--type", "email", "--amount", "100"]);
    assert!(grant.status.success(), "{}", String::from_utf8_lossy(&grant.stderr));
    let mut other = reveal("acme", "charged", 50);
    other.partition = 1;
    topics.send("usage", &other).await;
    meter.caught_up(&topics).await;
    meter.published().await;
    let balance = meter.json(&["balance", "acme", "--json"])["balances"].clone();
    assert_eq!(balance["email"]["used"], json!(70));
    assert!(running.terminate().await.success());

    let keys = dump::keys(&mut connection, &meter.prefix).await;
    delete(&mut connection, keys).await;
    for (key, dumped) in kept {
        let mut restore = redis::cmd("RESTORE");
        restore.arg(key).arg(0).arg(dumped);
        let _: () = restore.query_async(&mut connection).await.expect("redis answers");
    }
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    meter.published().await;
    // The top-up would cover it now; but its denial was told.
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"], balance);
    let denied = topics.read("denied", 1);
    assert_eq!(denied.len(), 1, "it is not told twice");
    assert_eq!(data(&denied[0])["events"][0]["id"], "denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_and_grew_past_the_position_halts() {
    let (topics, meter) = used("anew").await;
    let before = topics.ends("usage", 2);
    topics.remake("usage", 2, &[("message.timestamp.type", "LogAppendTime")]).await;
    for partition in 0..2 {
        for number in 0..before[partition as usize] + 5 {
            let mut record = reveal("acme", &format!("other-{partition}-{number}"), 1);
            record.partition = partition;
            topics.send("usage", &record).await;
        }
    }
    let balance = balances(&meter);
    let running = meter.start(&[]);
    running.not_ready("is not the record that was counted there").await;
    // Commands go on.
    topics.command(&put("epsilon", "starter")).await;
    until("the command is applied", || async {
        let state = meter.store.account("epsilon").await.expect("redis answers");
        state.map(|_| ())
    })
    .await;
    assert_eq!(balances(&meter), balance, "nothing of it was charged");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_dead_letters_than_the_limit_halt_a_partition_before_it_is_drained() {
    let topics = Topics::create("dead-limit", 2).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("EVENTS__DEAD_LETTERS_MAX", "20");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "organization")).await;
    for number in 0..100 {
        let mut record = reveal("acme", &format!("e{number}"), 1);
        record.value = Some(b"not json".to_vec());
        topics.send("usage", &record).await;
    }
    let told = running.not_ready("more than 20 of").await;
    assert!(told.contains("usage:0"), "{told}");
    let dead = topics.ends("dead-letter", 1)[0];
    assert!(dead <= 21, "{dead} dead letters");
    // The other partition goes on.
    let mut record = reveal("acme", "other", 1);
    record.partition = 1;
    topics.send("usage", &record).await;
    until("it is charged", || async {
        meter.totals("usage").await.get(&Outcome::Charged).filter(|charged| **charged == 1).map(|_| ())
    })
    .await;
}

/// What takes credits away came after usage that had them, and after a rebuild it comes after it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_denies_nothing_for_a_command_that_came_later() {
    let topics = Topics::create("rebuild-order", 3).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    let accounts: Vec<String> = (0..8).map(|number| format!("team-{number}")).collect();
    for account in &accounts {
        topics.command(&put(account, "starter")).await; // 30 e-mail credits
    }
    let use_some = async |round: &str, records: usize| {
        for number in 0..records {
            for account in &accounts {
                let mut record = reveal(account, &format!("{round}-{number}"), 4);
                record.partition = (number % 3) as i32;
                topics.send("usage", &record).await;
            }
        }
        meter.caught_up(&topics).await;
    };
    use_some("before", 6).await; // 24 of them
    for account in &accounts {
        topics
            .command(&json!({
                "specversion": "1.0", "id": format!("adjust-{account}"), "source": "test", "type": "credits.adjust.v1",
                "subject": account, "time": chrono::Utc::now().to_rfc3339(),
                "data": { "credit_type": "email", "amount": -20, "reason": "agreed" },
            }))
            .await;
    }
    use_some("after", 1).await;
    meter.published().await;
    assert!(running.terminate().await.success());
    let of_all = || accounts.iter().map(|account| meter.json(&["balance", account, "--json"])["balances"].clone());
    let (before, totals): (Vec<_>, _) = (of_all().collect(), meter.totals("usage").await);
    assert_eq!((totals[&Outcome::Charged], totals[&Outcome::Denied]), (48, 8), "{before:?}");

    let mut connection = shared().await;
    let keys = dump::keys(&mut connection, &meter.prefix).await;
    delete(&mut connection, keys).await;
    meter.json(&["rebuild", "--json"]);
    assert_eq!(of_all().collect::<Vec<_>>(), before);
    assert_eq!(meter.totals("usage").await, totals);
    meter.audit();
}
