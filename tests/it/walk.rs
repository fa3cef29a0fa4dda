//! One event from topic to counter and out.

use chrono::Utc;
use credit_meter::ledger::outcome::Outcome;
use serde_json::json;

use crate::support::kafka::{Outgoing, Topics, data, kind};
use crate::support::meter::Meter;

pub const CATALOGUE: &str = "tests/data/catalogue-independent.toml";

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_from_topic_to_counter_and_what_does_not_fit_comes_out() {
    let topics = Topics::create("walk", 2).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    topics.command(&put("acme", "starter")).await; // 30 e-mail credits
    for (index, quantity) in [10, 15, 8, 5].into_iter().enumerate() {
        topics.send("usage", &reveal("acme", &format!("e{index}"), quantity)).await;
    }
    topics.send("usage", &reveal("acme", "e1", 15)).await; // the same event again
    meter.caught_up(&topics).await;

    let balance = meter.json(&["balance", "acme", "--json"]);
    assert_eq!(balance["plan"], "starter");
    let email = &balance["balances"]["email"];
    // 10 and 15 fit, 8 does not, 5 does.
    assert_eq!(
        (&email["granted"], &email["used"], &email["remaining"]),
        (&json!(30), &json!(30), &json!(0)),
        "{balance}"
    );
    let totals = meter.totals("usage").await;
    assert_eq!(
        totals.into_iter().collect::<Vec<_>>(),
        [(Outcome::Duplicate, 1), (Outcome::Denied, 1), (Outcome::Charged, 3)]
    );
    meter.published().await;
    let denied = topics.read("denied", 1);
    assert_eq!(denied.len(), 1);
    let denial = data(&denied[0]);
    assert_eq!(denial["reason"], "insufficient_credits");
    assert_eq!(
        (&denial["events"][0]["id"], &denial["events"][0]["required"], &denial["events"][0]["remaining"]),
        (&json!("e2"), &json!(8), &json!(5))
    );

    // 25 of 30 are more than 80 %; then an event is denied for want of credits. A top-up lifts the balance above both.
    let grant = ["grant", "acme", "--type", "email", "--amount", "10", "--id", "more", "--json"];
    assert_eq!(meter.json(&grant)["status"], "applied");
    meter.published().await;
    let alerts = topics.read("alerts", 1);
    let told: Vec<_> = alerts.iter().map(|alert| (kind(alert), data(alert)["threshold"].clone())).collect();
    let edges = [("low", "80%"), ("exhausted", "exhausted"), ("restored", "80%"), ("restored", "exhausted")];
    assert_eq!(told, edges.map(|(kind, threshold)| (format!("credits.{kind}.v1"), json!(threshold))));
    // By how the events were cut into calls.
    let low = data(&alerts[0]);
    assert!(low["used"] == 25 || low["used"] == 30, "{low}");
    assert!(low["runs_out"].is_string() == (low["used"] == 25), "{low}");
    assert_eq!(data(&alerts[3])["remaining"], 10);

    let (status, page) = running.get("/metrics").await.expect("it serves");
    assert_eq!(status, 200);
    let has = |line: &str| assert!(page.lines().any(|own| own == line), "{line} is not in\n{page}");
    has("credit_meter_events_total{action=\"reveal_email\",outcome=\"charged\"} 3");
    has("credit_meter_denied_total{reason=\"insufficient_credits\"} 1");
    let (status, checks) = running.get("/readyz?verbose").await.expect("it serves");
    assert!(status == 200 && checks.contains("redis"), "{checks}");
    assert_eq!(running.get("/livez").await.expect("it serves").0, 200);
    let status = running.terminate().await;
    assert!(status.success(), "SIGTERM ends it well: {status}");
}

/// The command that makes an account whose cycle holds the present for days to come.
pub fn put(account: &str, plan: &str) -> serde_json::Value {
    let anchor = (Utc::now() - chrono::Duration::days(10)).date_naive();
    json!({
        "specversion": "1.0", "id": format!("put-{account}"), "source": "test", "type": "credits.account.put.v1",
        "subject": account, "time": Utc::now().to_rfc3339(), "data": { "plan": plan, "anchor": anchor },
    })
}

pub fn reveal_event(account: &str, id: &str, quantity: u64) -> serde_json::Value {
    json!({
        "specversion": "1.0", "id": id, "source": "test", "type": "credits.usage.v1", "subject": account,
        "time": Utc::now().to_rfc3339(), "data": { "action": "reveal_email", "quantity": quantity },
    })
}

pub fn reveal(account: &str, id: &str, quantity: u64) -> Outgoing {
    outgoing(&reveal_event(account, id, quantity))
}

/// An event keyed by its account.
pub fn outgoing(event: &serde_json::Value) -> Outgoing {
    let key = event["subject"].as_str().expect("an account");
    Outgoing { key: Some(key.into()), value: Some(event.to_string().into_bytes()), ..Outgoing::default() }
}
