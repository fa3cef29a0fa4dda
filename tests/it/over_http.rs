//! What a team sees of its account over HTTP: what the command line shows, of a real meter.

use credit_meter::ledger::outcome::Outcome;
use serde_json::{Value, json};

use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running};
use crate::support::redis::OwnRedis;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

async fn get(running: &Running, path: &str) -> (u16, Value) {
    let (status, body) = running.get(path).await.expect("it answers");
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn balance_and_usage_are_those_of_the_command_line() {
    let topics = Topics::create("over-http", 2).await;
    let mut redis = OwnRedis::start(&[]);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.use_redis(&redis.url());
    let silent = meter.start(&[]);
    silent.ready().await;
    assert_eq!(silent.get("/v1/accounts/acme/balance").await.expect("it answers").0, 404, "it is off by default");
    assert!(silent.terminate().await.success());

    meter.set("HTTP__ACCOUNTS", "true");
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "starter")).await;
    topics.command(&put("a b/c", "starter")).await;
    topics.send("usage", &reveal("acme", "e1", 12)).await;
    topics.send("usage", &reveal("acme", "e2", 100)).await; // denied
    meter.caught_up(&topics).await;
    assert_eq!(meter.totals("usage").await[&Outcome::Denied], 1);

    let (status, balance) = get(&running, "/v1/accounts/acme/balance").await;
    assert_eq!((status, &balance["balances"]["email"]["remaining"]), (200, &json!(18)), "{balance}");
    assert_eq!(balance, meter.json(&["balance", "acme", "--json"]));
    assert_eq!(get(&running, "/v1/accounts/a%20b%2Fc/balance").await.1["account"], "a b/c");

    let (status, usage) = get(&running, "/v1/accounts/acme/usage").await;
    assert_eq!(status, 200, "{usage}");
    assert_eq!((&usage["usage"][0]["credits"], &usage["usage"][0]["denied"]), (&json!(12), &json!(1)), "{usage}");
    assert_eq!(usage, meter.json(&["usage", "acme", "--json"]));
    let (_, by_day) = get(&running, "/v1/accounts/acme/usage?from=2026-01-01&to=2026-12-31&by=day,user").await;
    let same = ["usage", "acme", "--from", "2026-01-01", "--to", "2026-12-31", "--by", "day,user", "--json"];
    assert_eq!(by_day, meter.json(&same));
    let (_, forecast) = get(&running, "/v1/accounts/acme/usage?forecast=true").await;
    assert_eq!(forecast["forecast"]["email"]["remaining"], 18, "{forecast}");

    let (status, unknown) = get(&running, "/v1/accounts/nobody/balance").await;
    assert_eq!((status, &unknown["error"]), (404, &json!("unknown_account")));
    assert_eq!(get(&running, "/v1/accounts/nobody/usage").await.0, 404);
    let (status, wrong) = get(&running, "/v1/accounts/acme/usage?from=2020-01-01&to=2022-01-01").await;
    assert_eq!((status, &wrong["error"]), (400, &json!("invalid")), "{wrong}");
    assert!(wrong["message"].as_str().expect("a text").contains("more than 366 days"), "{wrong}");

    // Who asks while Redis is away is told so, and is answered once it is back.
    redis.kill();
    let (status, away) = get(&running, "/v1/accounts/acme/balance").await;
    assert_eq!((status, &away["error"]), (503, &json!("unavailable")), "{away}");
    redis.start_again(&[]);
    until("the balance is told again", || async {
        let (status, again) = get(&running, "/v1/accounts/acme/balance").await;
        (status == 200 && again["balances"] == balance["balances"]).then_some(())
    })
    .await;

    // An account that was lost is not one that never was.
    let _: String = redis.tell(&["FLUSHALL"]).await;
    for question in ["balance", "usage"] {
        let (status, lost) = get(&running, &format!("/v1/accounts/acme/{question}")).await;
        assert_eq!((status, &lost["error"]), (503, &json!("unavailable")), "{lost}");
        assert!(lost["message"].as_str().expect("a text").contains("redis holds nothing of shard"), "{lost}");
    }
}
