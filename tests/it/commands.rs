//! Commands by the command line: acknowledged by Kafka, applied or refused, and answered.

use chrono::Utc;
use serde_json::json;

use crate::support::kafka::{Outgoing, Topics, data};
use crate::support::meter::Meter;
use crate::support::until;
use crate::walk::CATALOGUE;

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_answered_once_they_are_applied() {
    let topics = Topics::create("commands", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let running = meter.start(&[]);
    running.ready().await;
    let anchor = (Utc::now() - chrono::Duration::days(10)).date_naive().to_string();
    let put = ["account", "put", "acme", "--plan", "basic", "--anchor", &anchor, "--addon", "email=500", "--json"];
    assert_eq!(meter.json(&put)["status"], "applied");
    let get = meter.json(&["account", "get", "acme", "--json"]);
    assert_eq!(get["plan"], "basic");
    let email = |meter: &Meter| meter.json(&["balance", "acme", "--json"])["balances"]["email"].clone();
    assert_eq!(email(&meter)["granted"], json!(1500), "the plan's 1000 and the add-on's 500 show at once");

    let grant = ["grant", "acme", "--type", "email", "--amount", "0.25", "--id", "topup-1", "--json"];
    assert_eq!(meter.json(&grant)["status"], "applied");
    assert_eq!(meter.json(&grant)["status"], "duplicate", "a command's id is remembered");
    assert_eq!(email(&meter)["remaining"], json!(1500.25));

    // Within a cycle an add-on grants at most its highest amount.
    for (addon, granted) in [("email=100", 1500.25), ("email=700", 1700.25), ("email=500", 1700.25)] {
        let put = ["account", "put", "acme", "--plan", "basic", "--anchor", &anchor, "--addon", addon, "--json"];
        assert_eq!(meter.json(&put)["status"], "applied");
        assert_eq!(email(&meter)["granted"], json!(granted), "{addon}");
    }

    let refused = |arguments: &[&str], reason: &str| {
        let output = meter.run(arguments);
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.contains(reason), "{arguments:?}: {told}");
    };
    let early = ["grant", "late-comer", "--type", "email", "--amount", "1", "--id", "early"];
    refused(&early, "unknown_account");
    let put = ["account", "put", "late-comer", "--plan", "basic", "--anchor", &anchor, "--json"];
    assert_eq!(meter.json(&put)["status"], "applied");
    let output = meter.run(&early);
    assert!(output.status.success(), "a refused command may be sent again once its fault is mended");
    assert_eq!(meter.json(&["balance", "late-comer", "--json"])["balances"]["email"]["granted"], json!(1001));
    refused(&["grant", "acme", "--type", "fax", "--amount", "1"], "unknown_credit_type");
    refused(&["account", "put", "acme", "--plan", "gold", "--anchor", &anchor], "unknown_plan");
    // A smaller plan comes with the renewal.
    let put = ["account", "put", "acme", "--plan", "starter", "--anchor", &anchor, "--json"];
    assert_eq!(meter.json(&put)["status"], "applied");
    let account = meter.json(&["account", "get", "acme", "--json"]);
    assert_eq!((&account["plan"], &account["next"]["plan"]), (&json!("basic"), &json!("starter")));

    meter.published().await;
    let lines: Vec<_> = topics.read("ledger", 1).iter().map(data).collect();
    let topup = lines.iter().find(|line| line["kind"] == "topup").expect("a line for the top-up");
    assert_eq!((&topup["before"], &topup["amount"], &topup["after"]), (&json!(1500), &json!(0.25), &json!(1500.25)));
    let statuses = |status: &str| lines.iter().filter(|line| line["status"] == status).count();
    assert_eq!((statuses("applied"), statuses("duplicate"), statuses("refused")), (8, 1, 3), "{lines:?}");
    // One that cannot be read is among the commands that ended so, for the alert.
    topics.send("commands", &Outgoing { value: Some(b"{".to_vec()), ..Outgoing::default() }).await;
    until("the dead command is counted", || async {
        let (_, page) = running.get("/metrics").await?;
        page.contains("credit_meter_commands_total{outcome=\"dead_lettered\"} 1\n").then_some(())
    })
    .await;
    meter.audit();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_a_meter_is_acknowledged_and_applied_later() {
    let topics = Topics::create("no-meter", 1).await;
    let meter = Meter::new(&topics, CATALOGUE);
    let anchor = (Utc::now() - chrono::Duration::days(10)).date_naive().to_string();
    let output = meter.run(&["account", "put", "acme", "--plan", "basic", "--anchor", &anchor, "--timeout", "1s"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("acknowledged"), "{told}");
    let running = meter.start(&[]);
    running.ready().await;
    meter.caught_up(&topics).await;
    assert_eq!(meter.json(&["balance", "acme", "--json"])["balances"]["email"]["granted"], json!(1000));
}
