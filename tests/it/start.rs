//! First starts, returns, and states that are not what they were.

use credit_meter::store::Store;
use credit_meter::store::keys::Key;

use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running};
use crate::support::redis::shared;
use crate::support::{dump, until};
use crate::walk::{CATALOGUE, put, reveal};

/// A running meter that has applied one event.
async fn in_use(test: &str) -> (Topics, Meter, Running) {
    let topics = Topics::create(test, 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "basic")).await;
    topics.send("usage", &reveal("acme", "e1", 1)).await;
    meter.caught_up(&topics).await;
    (topics, meter, running)
}

/// The same, stopped.
async fn used(test: &str) -> (Topics, Meter) {
    let (topics, meter, running) = in_use(test).await;
    assert!(running.terminate().await.success());
    (topics, meter)
}

async fn refuses(meter: &Meter, extra: &[(&str, &str)], reason: &str) {
    let mut running = meter.start(extra);
    let status = until("the meter refuses to start", || {
        let ended = running.child.try_wait().expect("it is a child");
        async move { ended }
    })
    .await;
    assert_eq!(status.code(), Some(1), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_reads_what_was_there_before_it_commands_first() {
    let topics = Topics::create("first", 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    // The event is older than the command: sign-up and first reveal race.
    topics.send("usage", &reveal("acme", "e1", 3)).await;
    topics.command(&put("acme", "basic")).await;
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_start_at_once_begin_one_state() {
    for round in 0..3 {
        let topics = Topics::create(&format!("at-once-{round}"), 6).await;
        let meter = Meter::new(&topics, CATALOGUE);
        topics.command(&put("acme", "basic")).await;
        topics.send("usage", &reveal("acme", "e1", 3)).await;
        let workers: Vec<Running> = (0..5).map(|_| meter.start(&[])).collect();
        for worker in &workers {
            worker.ready().await; // one that takes the others' state for a lost one ends
        }
        meter.caught_up(&topics).await;
        assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"], 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_may_leave_out_the_usage_that_was_there() {
    let topics = Topics::create("latest", 1).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    topics.command(&put("acme", "basic")).await;
    topics.send("usage", &reveal("acme", "old", 3)).await;
    meter.set("KAFKA__START_FROM", "latest");
    let running = meter.start(&[]);
    running.ready().await;
    topics.send("usage", &reveal("acme", "new", 1)).await;
    meter.caught_up(&topics).await;
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"], 1);
    // Later starts go on from where they were, whatever is said then.
    assert!(running.terminate().await.success());
    topics.send("usage", &reveal("acme", "meanwhile", 1)).await;
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["used"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_is_not_a_first_start() {
    let (_topics, meter) = used("emptied").await;
    let mut connection = shared().await;
    let keys = dump::keys(&mut connection, &meter.prefix).await;
    let _: () = redis::cmd("DEL").arg(keys).query_async(&mut connection).await.expect("redis answers");
    refuses(&meter, &[], "redis holds no state").await;
    let checked = meter.run(&["check"]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!checked.status.success() && told.contains("but the group has committed"), "{told}");
    assert_eq!(dump::keys(&mut connection, &meter.prefix).await, Vec::<String>::new(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_emptied_shard_or_another_number_of_shards_is_refused() {
    let (_topics, meter) = used("shards").await;
    refuses(&meter, &[("REDIS__SHARDS", "5")], "redis.shards").await;
    let Store::Redis(store) = &meter.store else { unreachable!("the tests use a real redis") };
    let key = store.keys().spell(Key::Shard(2));
    let mut connection = shared().await;
    let _: () = redis::cmd("DEL").arg(key).query_async(&mut connection).await.expect("redis answers");
    refuses(&meter, &[], "shard 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_emptied_under_a_running_meter_halts_it() {
    let (topics, meter, running) = in_use("halt").await;
    let mut connection = shared().await;
    let keys = dump::keys(&mut connection, &meter.prefix).await;
    let _: () = redis::cmd("DEL").arg(keys).query_async(&mut connection).await.expect("redis answers");
    topics.send("usage", &reveal("acme", "e2", 1)).await;
    let told = until("readiness says so", || async {
        running.get("/readyz?verbose").await.filter(|(status, body)| *status == 503 && body.contains("emptied"))
    })
    .await;
    assert!(told.1.contains("shards"), "{}", told.1);
    let left = dump::keys(&mut connection, &meter.prefix).await;
    assert!(left.iter().all(|key| key.ends_with(":relay")), "nothing was made anew: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_vanished_halts_its_shard_and_is_not_made_anew() {
    let (topics, meter, running) = in_use("vanished").await;
    let Store::Redis(store) = &meter.store else { unreachable!("the tests use a real redis") };
    let key = store.keys().spell(Key::Account("acme"));
    let mut connection = shared().await;
    let _: () = redis::cmd("DEL").arg(&key).query_async(&mut connection).await.expect("redis answers");
    // A new put would give a full allowance, and the event would be dead: neither happens.
    let mut again = put("acme", "basic");
    again["id"] = "put-again".into();
    topics.command(&again).await;
    topics.send("usage", &reveal("acme", "e2", 1)).await;
    until("readiness names the account", || async {
        running.get("/readyz?verbose").await.filter(|(status, body)| *status == 503 && body.contains("`acme`"))
    })
    .await;
    until("what waits for the halted shard grows old", || async {
        (running.metric("credit_meter_lag_seconds").await > 0).then_some(())
    })
    .await;
    let made: bool = redis::cmd("EXISTS").arg(&key).query_async(&mut connection).await.expect("redis answers");
    assert!(!made && topics.read("dead-letter", 1).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_an_append_time_halt_their_partition_and_are_not_judged() {
    let topics = Topics::stamped("create-time", 1, "CreateTime").await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.send("usage", &reveal("acme", "e1", 1)).await;
    until("readiness says why", || async {
        running.get("/readyz?verbose").await.filter(|(status, body)| *status == 503 && body.contains("append time"))
    })
    .await;
    // The others go on.
    topics.command(&put("acme", "basic")).await;
    until("the command is applied", || async {
        (meter.applied(credit_meter::ledger::call::Partition::COMMANDS).await == 1).then_some(())
    })
    .await;
    assert!(meter.totals("usage").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_cannot_be_read_is_told_of_with_its_key() {
    let (_topics, meter) = used("unreadable").await;
    let mut connection = shared().await;
    let keys = dump::keys(&mut connection, &meter.prefix).await;
    let key = keys.iter().find(|key| key.ends_with(":a:acme")).expect("the account's hash");
    redis::cmd("HSET").arg(key).arg("email.c").arg("abc").exec_async(&mut connection).await.expect("redis answers");
    let output = meter.run(&["balance", "acme"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("`{key}`: `abc` where a number is due")), "{told}");
}
