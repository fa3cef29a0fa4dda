//! From an account that is used up to a receiver, through a real Prometheus and a real Alertmanager.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::json;

use super::dashboards::quick_census;
use crate::support::kafka::Topics;
use crate::support::meter::{Meter, Running};
use crate::support::monitor::Monitor;
use crate::support::until;
use crate::walk::{CATALOGUE, put, reveal};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_used_up_reaches_a_receiver_and_a_top_up_resolves_it() {
    let topics = Topics::create("exhausted", 2).await;
    let mut meter = Meter::new(&topics, CATALOGUE);
    quick_census(&mut meter);
    let running = meter.start(&[]);
    running.ready().await;
    let mut monitor = Monitor::start(&[&running.http]).await;
    topics.command(&put("acme", "starter")).await; // 30 e-mail credits
    topics.command(&put("beta", "starter")).await;
    topics.send("usage", &reveal("acme", "e1", 30)).await;
    topics.send("usage", &reveal("beta", "e1", 1)).await;

    let is_exhausted = |name: &serde_json::Value| *name == "CreditMeterAccountExhausted";
    let fired = monitor.notice("acme is used up", |notice| is_exhausted(&notice.alert["labels"]["alertname"])).await;
    assert_eq!((fired.receiver.as_str(), fired.status.as_str()), ("accounts", "firing"));
    let labels = &fired.alert["labels"];
    assert_eq!((&labels["account"], &labels["credit_type"]), (&json!("acme"), &json!("email")));
    assert_eq!(fired.alert["annotations"]["description"], "acme has no email credits left.");
    metrics_are_well_formed(&running).await;

    let grant = ["grant", "acme", "--type", "email", "--amount", "100", "--id", "more", "--json"];
    assert_eq!(meter.json(&grant)["status"], "applied");
    let resolved = monitor
        .notice("a top-up resolves it", |notice| {
            is_exhausted(&notice.alert["labels"]["alertname"]) && notice.status == "resolved"
        })
        .await;
    assert_eq!((resolved.receiver.as_str(), &resolved.alert["labels"]["account"]), ("accounts", &json!("acme")));
}

/// By Prometheus' own linter.
async fn metrics_are_well_formed(running: &Running) {
    let (_, page) = running.get("/metrics").await.expect("it serves");
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut linter = command.spawn().expect("promtool starts");
    linter.stdin.take().expect("a pipe").write_all(page.as_bytes()).expect("it reads");
    let output = linter.wait_with_output().expect("it ends");
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.is_empty(), "promtool check metrics: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cause_silences_what_follows_from_it() {
    let monitor = Monitor::start(&[]).await;
    let alert = |name: &str, labels: serde_json::Value| {
        let mut alert = json!({ "labels": { "alertname": name } });
        let own = alert["labels"].as_object_mut().expect("labels");
        own.extend(labels.as_object().expect("labels").clone());
        alert
    };
    let acme = json!({ "account": "acme", "credit_type": "email", "audience": "accounts" });
    let beta = json!({ "account": "beta", "credit_type": "email", "audience": "accounts" });
    monitor
        .post_alerts(&json!([
            alert("CreditMeterStalled", json!({ "severity": "critical", "instance": "meter:9464" })),
            alert("CreditMeterLagHigh", json!({ "severity": "warning", "topic": "credits.usage" })),
            alert("CreditMeterAuditMismatch", json!({ "severity": "critical" })),
            alert("CreditMeterAccountExhausted", acme.clone()),
            alert("CreditMeterAccountLow", acme),
            alert("CreditMeterAccountLow", beta),
        ]))
        .await;
    until(
        "the lag of a stalled meter and the lowness of an exhausted account are silenced, and nothing else",
        || async {
            let held = monitor.held_alerts().await;
            let silenced = held.iter().filter(|alert| alert["status"]["state"] == "suppressed");
            let mut silenced: Vec<_> = silenced
                .map(|alert| {
                    let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
                    (label("alertname"), label("account"))
                })
                .collect();
            silenced.sort();
            let expected = [("CreditMeterAccountLow", "acme"), ("CreditMeterLagHigh", "")];
            let expected = expected.map(|(alert, account)| (alert.to_owned(), account.to_owned()));
            (held.len() == 6 && silenced == expected).then_some(())
        },
    )
    .await;
}
