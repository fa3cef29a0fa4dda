//! Renewals: cycles close and open once, in order, with statements; late use, lots, changes of plan, closing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use credit_meter::store::Store;
use credit_meter::store::keys::Key;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdkafka::Message;
use serde_json::{Value, json};

use crate::support::dump;
use crate::support::kafka::{Outgoing, Topics, data};
use crate::support::meter::{Meter, Running, SHARDS};
use crate::support::redis::shared;
use crate::support::report::{row, short_or_long};
use crate::support::{until, until_reached};
use crate::walk::{CATALOGUE, reveal};

pub fn at(time: &str) -> i64 {
    time.parse::<DateTime<Utc>>().expect("a time").timestamp_millis()
}

/// A meter on topics that keep their producer's time, so that months pass at once.
pub struct Past {
    pub topics: Arc<Topics>,
    pub meter: Meter,
}

impl Past {
    pub async fn new(test: &str) -> Past {
        let topics = Arc::new(Topics::of_the_past(test, 2).await);
        let mut meter = Meter::new(&topics, CATALOGUE);
        meter.set("EVENTS__AGE_FROM", "create");
        meter.set("TIME__TICK_EVERY", "200ms");
        Past { topics, meter }
    }

    pub async fn start(&self) -> Running {
        let running = self.meter.start(&[]);
        running.ready().await;
        running
    }

    pub async fn command(&self, account: &str, kind: &str, id: &str, time: &str, data: Value) {
        self.topics.send_at("commands", &command(account, kind, id, time, data), at(time)).await;
    }

    async fn put(&self, account: &str, plan: &str, time: &str) {
        let data = json!({"plan": plan, "anchor": "2026-01-01", "addons": [{"credit_type": "email", "amount": 5}]});
        self.command(account, "account.put", &format!("put-{time}"), time, data).await;
    }

    /// Events of an account, at a time of their own.
    pub async fn reveal(&self, account: &str, id: &str, quantity: u64, time: &str, partition: i32) {
        self.topics.send_at("usage", &revealed(account, id, quantity, time, partition), at(time)).await;
    }

    /// Many records at once.
    pub async fn send_all(&self, role: &'static str, records: Vec<(Outgoing, i64)>) {
        let mut sends = tokio::task::JoinSet::new();
        for (record, time_ms) in records {
            let topics = self.topics.clone();
            sends.spawn(async move { topics.send_at(role, &record, time_ms).await });
            if sends.len() >= 1_000 {
                sends.join_next().await.expect("one is under way").expect("it is sent");
            }
        }
        sends.join_all().await;
    }

    /// Time passes in all partitions.
    pub async fn tick(&self, time: &str) {
        for partition in 0..2 {
            let event = json!({
                "specversion": "1.0", "id": format!("tick-{time}"), "source": "tests", "type": "credits.tick.v1",
                "subject": "tick", "time": time,
            });
            let record = Outgoing { value: Some(event.to_string().into_bytes()), partition, ..Outgoing::default() };
            self.topics.send_at("usage", &record, at(time)).await;
        }
    }

    pub async fn meter_time(&self, time: &str) {
        until("meter time is there", || async {
            let states = self.meter.states().await;
            states.iter().all(|state| state.meter_time_ms >= at(time)).then_some(())
        })
        .await;
    }

    /// The statements of an account: cycle, revision and balances.
    async fn statements(&self, account: &str) -> Vec<Value> {
        self.meter.published().await;
        let cycles = self.topics.read("cycles", 1);
        let events = cycles
            .iter()
            .map(|message| serde_json::from_slice::<Value>(message.payload().expect("a value")).expect("JSON"));
        let own = |event: &Value| event["subject"] == account && event["type"] == "credits.cycle.closed.v1";
        events.filter(own).map(|event| event["data"].clone()).collect()
    }

    /// The cycles that closed, by account: number and e-mail credits used, in the order in which they were published;
    /// and how many messages came again. Each statement is the only one of its cycle.
    pub fn closed_cycles(&self) -> (BTreeMap<String, Vec<(i64, Value)>>, usize) {
        let mut statements: BTreeMap<String, Vec<(i64, Value)>> = BTreeMap::new();
        let mut repeats = 0;
        let mut ids = BTreeMap::new();
        for message in self.topics.read("cycles", 1) {
            let event: Value = serde_json::from_slice(message.payload().expect("a value")).expect("JSON");
            let id = event["id"].as_str().expect("an id").to_owned();
            if let Some(before) = ids.insert(id, event["data"].to_string()) {
                assert_eq!(before, event["data"].to_string(), "a repeat says the same");
                repeats += 1;
                continue;
            }
            if event["type"] == "credits.cycle.closed.v1" {
                let account = event["subject"].as_str().expect("a subject").to_owned();
                let number = event["data"]["cycle"]["number"].as_i64().expect("a number");
                assert_eq!(event["data"]["revision"], 1);
                let used = event["data"]["balances"]["email"]["used"].clone();
                statements.entry(account).or_default().push((number, used));
            }
        }
        (statements, repeats)
    }

    pub fn email(&self, account: &str) -> Value {
        self.meter.json(&["balance", account, "--json"])["balances"]["email"].clone()
    }
}

pub fn command(account: &str, kind: &str, id: &str, time: &str, data: Value) -> Outgoing {
    let event = json!({
        "specversion": "1.0", "id": id, "source": "tests", "type": format!("credits.{kind}.v1"),
        "subject": account, "time": time, "data": data,
    });
    let value = Some(event.to_string().into_bytes());
    Outgoing { key: Some(account.as_bytes().to_vec()), value, ..Outgoing::default() }
}

pub fn revealed(account: &str, id: &str, quantity: u64, time: &str, partition: i32) -> Outgoing {
    let mut record = reveal(account, id, quantity);
    let mut event: Value = serde_json::from_slice(record.value.as_ref().expect("a value")).expect("JSON");
    event["time"] = time.into();
    record.value = Some(event.to_string().into_bytes());
    record.partition = partition;
    record
}

fn sums(balance: &Value) -> (&Value, &Value, &Value, &Value, &Value) {
    (&balance["granted"], &balance["used"], &balance["expired"], &balance["remaining"], &balance["overage"])
}

#[tokio::test(flavor = "multi_thread")]
async fn cycles_that_were_missed_close_once_and_in_order_and_late_use_goes_to_its_own() {
    let past = Past::new("missed").await;
    for account in ["busy", "idle"] {
        past.put(account, "starter", "2026-01-15T00:00:00Z").await; // 30 e-mail credits, and 5 of the add-on
    }
    let running = past.start().await;
    past.reveal("busy", "a", 3, "2026-01-20T00:00:00Z", 0).await;
    past.meter.caught_up(&past.topics).await;
    assert_eq!(sums(&past.email("busy")), (&json!(35), &json!(3), &json!(0), &json!(32), &json!(0)));
    assert!(running.terminate().await.success());

    // All workers are down across three boundaries.
    past.reveal("busy", "b", 10, "2026-04-01T00:00:10Z", 0).await;
    past.tick("2026-04-01T00:00:20Z").await;
    let running = past.start().await;
    past.meter_time("2026-04-01T00:00:20Z").await;
    for account in ["busy", "idle"] {
        until("three cycles are closed", || async { (past.statements(account).await.len() >= 3).then_some(()) }).await;
        let statements = past.statements(account).await;
        let cycles: Vec<_> = statements.iter().map(|each| (&each["cycle"]["number"], &each["revision"])).collect();
        assert_eq!(cycles, [(&json!(0), &json!(1)), (&json!(1), &json!(1)), (&json!(2), &json!(1))], "{account}");
        let used = if account == "busy" { 3 } else { 0 };
        let first = &statements[0]["balances"]["email"];
        assert_eq!(sums(first), (&json!(35), &json!(used), &json!(35 - used), &json!(0), &json!(0)), "{account}");
        assert_eq!(statements[2]["cycle"]["end"], "2026-04-01T00:00:00Z");
    }
    assert_eq!(sums(&past.email("busy")), (&json!(35), &json!(10), &json!(0), &json!(25), &json!(0)));

    // Events of March that come late are charged to March, out of what expired then.
    past.reveal("busy", "c", 20, "2026-03-31T23:59:00Z", 1).await;
    past.reveal("busy", "d", 20, "2026-03-31T23:58:00Z", 1).await; // more than is left of March
    past.reveal("busy", "e", 1, "2026-04-01T00:00:30Z", 0).await;
    past.tick("2026-04-01T00:02:00Z").await;
    past.meter_time("2026-04-01T00:02:00Z").await;
    until("March is stated again", || async { (past.statements("busy").await.len() == 4).then_some(()) }).await;
    let statements = past.statements("busy").await;
    let again = &statements[3];
    // A charge and a denial have changed it.
    assert_eq!((&again["cycle"]["number"], &again["revision"]), (&json!(2), &json!(3)));
    let march = &again["balances"]["email"];
    assert_eq!(sums(march), (&json!(35), &json!(20), &json!(15), &json!(0), &json!(0)));
    assert_eq!(march["denied"], 1);
    assert_eq!(sums(&past.email("busy")), (&json!(35), &json!(11), &json!(0), &json!(24), &json!(0)));
    assert_eq!(past.meter.audit()["accounts_checked"], 2);

    // A rebuild finds both events in time, since they were stamped in March. Another change has a later number than all that was
    // told before.
    assert!(running.terminate().await.success());
    let keys = dump::keys(&mut shared().await, &past.meter.prefix).await;
    let _: () = redis::cmd("DEL").arg(keys).query_async(&mut shared().await).await.expect("redis answers");
    past.meter.json(&["rebuild", "--json"]);
    let running = past.start().await;
    past.reveal("busy", "c2", 5, "2026-03-31T23:57:00Z", 1).await;
    past.tick("2026-04-01T00:04:00Z").await;
    past.meter_time("2026-04-01T00:04:00Z").await;
    until("March is stated with the new event", || async {
        let told = past.statements("busy").await;
        let of_march = told.iter().filter(|each| each["cycle"]["number"] == 2);
        let last = of_march.max_by_key(|each| each["revision"].as_u64()).expect("it was stated");
        (last["balances"]["email"]["used"] == 25).then_some(())
    })
    .await;

    // Once the floor has passed it, March is forgotten, and nothing is charged to it any more.
    past.tick("2026-04-05T00:00:00Z").await;
    past.meter_time("2026-04-05T00:00:00Z").await;
    until("March is forgotten", || async {
        let account = past.meter.store.account("busy").await.expect("redis answers").expect("it is there");
        account.view.closed.is_empty().then_some(())
    })
    .await;
    past.reveal("busy", "f", 1, "2026-03-31T23:59:00Z", 1).await;
    past.meter.caught_up(&past.topics).await;
    assert_eq!(past.topics.read("dead-letter", 1).len(), 1);
    assert_eq!(past.meter.audit()["accounts_checked"], 2);
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn top_ups_outlive_renewals_a_smaller_plan_waits_and_an_account_ends() {
    let past = Past::new("changes").await;
    past.put("acme", "basic", "2026-01-15T00:00:00Z").await; // 1,000 and 5
    let grant = |amount: i64, kind: &str, until: &str| json!({"credit_type": "email", "amount": amount, "kind": kind, "expires_at": until});
    past.command("acme", "grant", "t1", "2026-01-16T00:00:00Z", grant(100, "topup", "2026-03-10T00:00:00Z")).await;
    past.command("acme", "grant", "p1", "2026-01-16T00:00:00Z", grant(50, "promo", "2026-01-20T00:00:00Z")).await;
    let running = past.start().await;
    // The promo ends first, so it burns first; its rest expires without any event.
    past.reveal("acme", "a", 20, "2026-01-17T00:00:00Z", 0).await;
    past.tick("2026-01-21T00:00:00Z").await;
    past.meter_time("2026-01-21T00:00:00Z").await;
    until("the promo has expired", || async { (past.email("acme")["expired"] == 30).then_some(()) }).await;
    assert_eq!(sums(&past.email("acme")), (&json!(1155), &json!(20), &json!(30), &json!(1105), &json!(0)));

    // A smaller plan waits for the renewal; an adjustment counts at once.
    past.put("acme", "starter", "2026-01-22T00:00:00Z").await;
    let taken = json!({"credit_type": "email", "amount": -5, "reason": "an import"});
    past.command("acme", "adjust", "j1", "2026-01-23T00:00:00Z", taken).await;
    until("the adjustment counts", || async { (past.email("acme")["used"] == 25).then_some(()) }).await;
    let account = past.meter.json(&["account", "get", "acme", "--json"]);
    assert_eq!((&account["plan"], &account["next"]["plan"]), (&json!("basic"), &json!("starter")));
    past.tick("2026-02-01T00:00:01Z").await;
    past.meter_time("2026-02-01T00:00:01Z").await;
    until("the plan has changed", || async {
        let account = past.meter.json(&["account", "get", "acme", "--json"]);
        (account["plan"] == "starter" && account["next"].is_null()).then_some(())
    })
    .await;
    // 30 of the plan, 5 of the add-on, and the top-up goes on whole: the plan's credits end sooner, and burned first.
    assert_eq!(sums(&past.email("acme")), (&json!(135), &json!(0), &json!(0), &json!(135), &json!(0)));

    // With a closed cycle and a top-up Redis still keeps the account packed: a hash table would take three times as much.
    let Store::Redis(store) = &past.meter.store else { unreachable!("the tests use a real redis") };
    let key = store.keys().spell(Key::Account("acme"));
    let encoding: String =
        redis::cmd("OBJECT").arg("ENCODING").arg(key).query_async(&mut shared().await).await.expect("redis answers");
    assert_eq!(encoding, "listpack");

    // What was used beyond the plan is taken from the top-up, and its rest is voided.
    past.reveal("acme", "b", 40, "2026-02-02T00:00:00Z", 0).await;
    past.meter.caught_up(&past.topics).await;
    past.command("acme", "grant.void", "v1", "2026-02-03T00:00:00Z", json!({"grant": "t1"})).await;
    until("the void counts", || async { (past.email("acme")["granted"] == 40).then_some(()) }).await;
    assert_eq!(sums(&past.email("acme")), (&json!(40), &json!(40), &json!(0), &json!(0), &json!(0)));

    // Closed on the 10th: earlier events are late use, later ones are dead.
    past.command("acme", "account.close", "c1", "2026-02-10T00:00:00Z", json!({})).await;
    past.tick("2026-02-10T00:00:01Z").await;
    past.meter_time("2026-02-10T00:00:01Z").await;
    until("the last cycle is closed", || async { (past.statements("acme").await.len() == 2).then_some(()) }).await;
    past.reveal("acme", "c", 1, "2026-02-10T00:00:02Z", 0).await;
    past.reveal("acme", "d", 1, "2026-02-09T23:00:00Z", 0).await; // denied: nothing had expired
    past.meter.caught_up(&past.topics).await;
    let dead = past.topics.read("dead-letter", 1);
    assert_eq!(dead.len(), 1);
    past.meter.published().await;
    let denied = past.topics.read("denied", 1);
    assert_eq!(data(&denied[0])["events"][0]["id"], "d");
    let refused = json!({"credit_type": "email", "amount": 1, "kind": "topup"});
    past.command("acme", "grant", "t2", "2026-02-11T00:00:00Z", refused).await;
    until("a grant to a closed account is refused", || async {
        past.meter.published().await;
        let lines = past.topics.read("ledger", 1);
        lines.iter().any(|line| data(line)["reason"] == "account_closed").then_some(())
    })
    .await;
    past.meter.audit();
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_accounts_cross_three_boundaries_while_workers_die() {
    let (accounts, kills) = short_or_long((1_000, 3), (100_000, 20));
    let past = Past::new("boundaries").await;
    let january = "2026-01-15T00:00:00Z";
    let puts = (0..accounts).map(|index| {
        let data = json!({"plan": "starter", "anchor": "2026-01-01"});
        (command(&format!("a{index}"), "account.put", &format!("put-{index}"), january, data), at(january))
    });
    past.send_all("commands", puts.collect()).await;
    let running = past.start().await;
    let usage = (0..accounts).step_by(10).map(|index| {
        let partition = (index % 2) as i32;
        (revealed(&format!("a{index}"), "in-january", 4, "2026-01-20T00:00:00Z", partition), at("2026-01-20T00:00:00Z"))
    });
    past.send_all("usage", usage.collect()).await;
    past.meter.caught_up(&past.topics).await;
    past.meter.published().await;
    assert!(running.terminate().await.success());

    // Nobody works across three boundaries; then there are new events for a tenth, and time passes for all.
    let april = "2026-04-02T00:00:00Z";
    let usage = (0..accounts)
        .skip(5)
        .step_by(10)
        .map(|index| (revealed(&format!("a{index}"), "in-april", 3, april, (index % 2) as i32), at(april)));
    past.send_all("usage", usage.collect()).await;
    past.tick("2026-04-02T00:00:01Z").await;
    let started = Instant::now();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut running = past.start().await;
    for _ in 0..kills {
        // The moment of a death is a matter of chance.
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..3_000))).await;
        running.kill();
        running = past.meter.start(&[]);
    }
    // How many accounts have come to April.
    let through = || async {
        let mut due = 0;
        for shard in 0..SHARDS {
            due += past.meter.store.due_by(shard, at(april), 0, accounts).await.expect("redis answers").len();
        }
        accounts as i64 - due as i64
    };
    until_reached("all accounts are renewed", accounts as i64, through).await;
    let took = started.elapsed();
    past.meter.caught_up(&past.topics).await;
    past.meter.published().await;

    let (statements, repeats) = past.closed_cycles();
    assert_eq!(statements.len(), accounts);
    for index in 0..accounts {
        let used = if index % 10 == 0 { 4 } else { 0 };
        let expected = [(0, json!(used)), (1, json!(0)), (2, json!(0))];
        assert_eq!(statements[&format!("a{index}")], expected, "a{index}");
    }
    for index in [0, 5] {
        let used = if index == 5 { 3 } else { 0 };
        assert_eq!(past.email(&format!("a{index}"))["used"], used);
    }
    assert_eq!(past.meter.audit()["accounts_checked"], accounts);
    let seen = format!(
        "{} cycles closed once and in order in {:.1} s with {kills} kills, {:.0} a second; {repeats} messages came twice",
        3 * accounts,
        took.as_secs_f64(),
        3.0 * accounts as f64 / took.as_secs_f64(),
    );
    row("1", &format!("three boundaries of {accounts} accounts while no worker was there, then workers killed"), &seen);
}
