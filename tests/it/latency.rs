//! How soon people see things under load. The figures of docs/speed.md come from here:
//!
//!     CREDIT_METER_FAULTS=long cargo test --release --test it -- --nocapture latency
//!
//! With CREDIT_METER_LATENCY=dead some records are dead letters, with =new also accounts are put right before their first
//! event.
//!
//! Nothing fails for being slow: the machine may be. What fails is an alert or a grant that never shows.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use crate::support::kafka::Topics;
use crate::support::meter::Meter;
use crate::support::report::{percentiles, short_or_long};
use crate::support::traffic::{PACE, Traffic};
use crate::support::until;
use crate::walk::{CATALOGUE, put};

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_top_ups_under_load() {
    let topics = Arc::new(Topics::create("latency", 4).await);
    let mut meter = Meter::new(&topics, CATALOGUE);
    meter.set("LOG__FILTER", "warn");
    topics.command(&put("buyer", "starter")).await;
    let running = meter.start(&[]);
    running.ready().await;
    // Only now: what waits for a meter's start tells nothing of one that runs. Each dead record holds its shard up until
    // its letter is in Kafka, and so does an account that is put right before its first event: see docs/speed.md.
    let accounts = short_or_long(30, 450);
    let traffic = match std::env::var("CREDIT_METER_LATENCY").as_deref() {
        Ok("dead") => Traffic::start_with_accounts(&topics, 77, accounts),
        Ok("new") => Traffic::start(&topics, 77),
        _ => Traffic::start_clean(&topics, 77, accounts),
    };
    meter.applies(500).await;

    let store = &meter.store;
    let granted = || async {
        let account = store.account("buyer").await.ok()??;
        let email = account.counters.iter().find(|(name, _)| name == "email")?.1.balance();
        email.granted
    };
    let mut top_ups = Vec::new();
    for number in 0..short_or_long(20, 50) {
        let before = granted().await.expect("a balance");
        topics
            .command(&json!({
                "specversion": "1.0", "id": format!("top-up-{number}"), "source": "test", "type": "credits.grant.v1",
                "subject": "buyer", "time": chrono::Utc::now().to_rfc3339(),
                "data": { "credit_type": "email", "amount": 1, "kind": "topup" },
            }))
            .await;
        let acknowledged = Instant::now();
        // Closer than the polling of `until`, and bounded by it.
        until("the top-up shows", || async {
            for _ in 0..1_000 {
                if granted().await.is_some_and(|now| now > before) {
                    return Some(());
                }
            }
            None
        })
        .await;
        top_ups.push(i64::try_from(acknowledged.elapsed().as_millis()).expect("short"));
    }
    top_ups.sort_unstable();
    let enough = short_or_long(3_000, 60_000);
    until("enough is sent", || async { (traffic.sent() >= enough).then_some(()) }).await;

    let table = traffic.end().await;
    let seen = table.check(&topics, &meter).await;
    let alerts = table.alert_latencies(&topics);
    assert!(alerts.len() >= 10, "accounts were exhausted: {seen}");
    let ((alert_50, alert_99), (top_up_50, top_up_99)) = (percentiles(&alerts), percentiles(&top_ups));
    println!("{PACE} events a second: {seen}");
    println!(
        "from the append of the event that exhausts an account to the append of its alert, {} accounts:",
        alerts.len()
    );
    println!("  p50 {alert_50} ms, p99 {alert_99} ms");
    println!("from the acknowledgement of a top-up to the balance that shows it, {} top-ups:", top_ups.len());
    println!("  p50 {top_up_50} ms, p99 {top_up_99} ms");
}
