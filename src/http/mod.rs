//! The operators' HTTP: `/metrics`, `/livez` and `/readyz`; where it is on, accounts. The only place that names axum.

/// What a team sees of its account.
pub mod accounts;
/// A check that holds when it holds for every shard.
mod by_shard;
/// What the meter says of its own state.
pub mod health;
/// Connections.
mod server;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use server::Bounds;

pub use accounts::Accounts;
pub use by_shard::{ByShard, name_shards};
pub use health::{Check, Health};

const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers until it is stopped. `connections_max`: [`crate::config::Http::connections_max`].
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    accounts: Option<Arc<dyn Accounts>>,
    connections_max: usize,
    stop: CancellationToken,
) {
    server::run(listener, router(health, accounts), Bounds::new(connections_max), stop).await;
}

fn router(health: Arc<Health>, accounts: Option<Arc<dyn Accounts>>) -> Router {
    let operators = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(health);
    match accounts {
        Some(accounts) => operators.merge(accounts::router(accounts)),
        None => operators,
    }
}

async fn show_metrics(State(health): State<Arc<Health>>) -> Response {
    for (check, state) in health.checks() {
        metrics::set_ready(check.name(), state.is_ok());
    }
    metrics::set_redis_up(health.state(Check::Redis).is_ok());
    text(StatusCode::OK, PROMETHEUS_TEXT, metrics::render())
}

type Parameters = Query<HashMap<String, String>>;

async fn livez(State(health): State<Arc<Health>>, parameters: Parameters) -> Response {
    let alive = health.alive();
    let status = status(alive.is_ok());
    if wants_json(&parameters) {
        return (status, Json(json!({ "alive": alive.is_ok(), "reason": alive.err() }))).into_response();
    }
    let body = match alive {
        Ok(()) => "ok\n".to_owned(),
        Err(reason) => format!("dead: {reason}\n"),
    };
    text(status, PLAIN_TEXT, body)
}

async fn readyz(State(health): State<Arc<Health>>, parameters: Parameters) -> Response {
    let checks = health.checks();
    let ready = checks.iter().all(|(_, state)| state.is_ok());
    if wants_json(&parameters) {
        let checks: Vec<_> = checks.iter().map(|(check, state)| describe(*check, state)).collect();
        return (status(ready), Json(json!({ "ready": ready, "checks": checks }))).into_response();
    }
    // A failed check is always named: who is asked why needs the reason, with or without `?verbose`.
    let body = match ready && !parameters.contains_key("verbose") {
        true => "ok\n".to_owned(),
        false => listed(&checks, ready),
    };
    text(status(ready), PLAIN_TEXT, body)
}

fn describe(check: Check, state: &Result<(), String>) -> serde_json::Value {
    json!({ "name": check.name(), "ok": state.is_ok(), "reason": state.as_ref().err() })
}

/// One line a check, as Kubernetes writes them.
fn listed(checks: &[(Check, Result<(), String>)], ready: bool) -> String {
    let line = |(check, state): &(Check, Result<(), String>)| match state {
        Ok(()) => format!("[+]{} ok\n", check.name()),
        Err(reason) => format!("[-]{} failed: {reason}\n", check.name()),
    };
    let verdict = if ready { "readyz check passed\n" } else { "readyz check failed\n" };
    checks.iter().map(line).chain([verdict.to_owned()]).collect()
}

fn wants_json(parameters: &Parameters) -> bool {
    parameters.get("format").is_some_and(|format| format == "json")
}

fn status(fine: bool) -> StatusCode {
    if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    pub struct Answer {
        pub status: u16,
        pub head: String,
        pub body: String,
    }

    /// A server of its own, that ends with the test.
    pub struct Site {
        address: SocketAddr,
    }

    impl Site {
        pub async fn open(accounts: Option<Arc<dyn Accounts>>) -> Site {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let site = Site { address: listener.local_addr().unwrap() };
            tokio::spawn(serve(listener, Arc::new(Health::new()), accounts, 100, CancellationToken::new()));
            site
        }

        pub async fn ask(&self, path: &str) -> Answer {
            ask(self.address, path).await
        }
    }

    async fn ask(address: SocketAddr, path: &str) -> Answer {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: meter\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    #[tokio::test]
    async fn probes_answer_what_health_says() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, stop) = (Arc::new(Health::new()), CancellationToken::new());
        let serving = tokio::spawn(serve(listener, health.clone(), None, 100, stop.clone()));

        let starting = ask(address, "/readyz").await;
        assert_eq!(starting.status, 503);
        assert!(starting.body.contains("[-]assigned failed: "), "{}", starting.body);

        for check in Check::ALL {
            health.set(check, Ok(()));
        }
        let ready = ask(address, "/readyz").await;
        assert_eq!((ready.status, ready.body.as_str()), (200, "ok\n"));
        let verbose = ask(address, "/readyz?verbose").await;
        assert!(verbose.body.ends_with("[+]outbox ok\n[+]time ok\nreadyz check passed\n"), "{}", verbose.body);

        health.set(Check::Redis, Err("no answer".to_owned()));
        let json = ask(address, "/readyz?format=json").await;
        assert_eq!(json.status, 503);
        let body: serde_json::Value = serde_json::from_str(&json.body).unwrap();
        assert_eq!(body["ready"], false);
        assert!(body["checks"].as_array().unwrap().contains(&json!({
            "name": "redis", "ok": false, "reason": "no answer"
        })));

        assert_eq!(ask(address, "/livez").await.status, 200);
        health.set_dead("the pipeline has panicked".to_owned());
        let dead = ask(address, "/livez").await;
        assert_eq!((dead.status, dead.body.as_str()), (503, "dead: the pipeline has panicked\n"));

        let metrics = ask(address, "/metrics").await;
        assert!(metrics.head.contains(PROMETHEUS_TEXT), "{}", metrics.head);
        assert!(metrics.body.contains("credit_meter_build_info"));
        for line in [
            "credit_meter_ready{check=\"redis\"} 0",
            "credit_meter_ready{check=\"outbox\"} 1",
            "credit_meter_redis_up 0",
        ] {
            assert!(metrics.body.lines().any(|own| own == line), "{line}: {}", metrics.body);
        }
        assert_eq!(ask(address, "/").await.status, 404);

        stop.cancel();
        serving.await.unwrap();
    }
}
