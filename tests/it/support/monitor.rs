//! A Prometheus and an Alertmanager of a test's own, with the shipped rules and routes at a quicker pace, and a
//! receiver of what they send.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path as UrlPath, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::until;

pub struct Monitor {
    folder: tempfile::TempDir,
    prometheus: String,
    alertmanager: String,
    received: mpsc::UnboundedReceiver<Notice>,
}

/// An alert in a message of Alertmanager's.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The end of the receiver's address.
    pub receiver: String,
    pub status: String,
    pub alert: Value,
}

impl Monitor {
    /// Scrapes the meters at these addresses every two seconds, and judges every second. Without any it scrapes one that is up and
    /// tells nothing.
    pub async fn start(meters: &[&str]) -> Monitor {
        let folder = tempfile::tempdir().expect("a folder");
        let (receiver, received) = receive().await;
        let none = [receiver.as_str()];
        let meters = if meters.is_empty() { &none } else { meters };
        quicken(&folder.path().join("config"), meters, &receiver);
        let told = services(&folder, &["monitor"]);
        let line = |name: &str| {
            let address = told.lines().find_map(|line| line.strip_prefix(name)).expect("it says where it is");
            address.strip_prefix("http://").expect("a url").to_owned()
        };
        let (prometheus, alertmanager) = (line("PROMETHEUS_URL="), line("ALERTMANAGER_URL="));
        Monitor { folder, prometheus, alertmanager, received }
    }

    /// What an instant query gives: labels and value of each series.
    pub async fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>, String> {
        let path = format!("/api/v1/query?query={}", encoded(expression));
        let answer = request(&self.prometheus, "GET", &path, "").await.ok_or("no answer")?;
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        let data = &answer["data"];
        if data["resultType"] == "scalar" {
            return Ok(vec![(Value::Null, number(&data["result"][1]))]);
        }
        let series = data["result"].as_array().expect("a list of series").iter();
        Ok(series.map(|series| (series["metric"].clone(), number(&series["value"][1]))).collect())
    }

    /// The alerts that fire now.
    pub async fn firing(&self) -> Vec<Value> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}").await.unwrap_or_default();
        alerts.into_iter().map(|(labels, _)| labels).collect()
    }

    pub async fn fires(&self, alert: &str) -> Value {
        let named = |labels: &Value| labels["alertname"] == alert;
        until(&format!("{alert} fires"), || async { self.firing().await.into_iter().find(named) }).await
    }

    pub async fn is_silent(&self, alert: &str) {
        until(&format!("{alert} ends"), || async {
            self.firing().await.iter().all(|labels| labels["alertname"] != alert).then_some(())
        })
        .await;
    }

    /// The next message about an alert that is what the test waits for.
    pub async fn notice(&mut self, what: &str, wanted: impl Fn(&Notice) -> bool) -> Notice {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(180), self.received.recv()).await;
            let notice = next.unwrap_or_else(|_| panic!("waited too long for {what}")).expect("the receiver lives");
            if wanted(&notice) {
                return notice;
            }
        }
    }

    /// Gives Alertmanager alerts as Prometheus would.
    pub async fn post_alerts(&self, alerts: &Value) {
        request(&self.alertmanager, "POST", "/api/v2/alerts", &alerts.to_string()).await;
    }

    /// The alerts that Alertmanager holds, with what inhibits them.
    pub async fn held_alerts(&self) -> Vec<Value> {
        let answer = request(&self.alertmanager, "GET", "/api/v2/alerts", "").await;
        answer.and_then(|answer| answer.as_array().cloned()).unwrap_or_default()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["prometheus.log", "alertmanager.log"] {
                let told = std::fs::read_to_string(self.folder.path().join("services").join(log)).unwrap_or_default();
                let last: Vec<&str> = told.lines().rev().take(10).collect();
                eprintln!("the end of {log}, last line first:\n{}", last.join("\n"));
            }
        }
        services(&self.folder, &["down"]);
    }
}

/// Copies of the shipped files: other addresses, seconds for minutes, all else as it is.
fn quicken(folder: &Path, meters: &[&str], receiver: &str) {
    std::fs::create_dir_all(folder.join("prometheus")).expect("a folder");
    let read = |name: &str| std::fs::read_to_string(Path::new("config").join(name)).expect("it is shipped");
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("it can be written");
    let replaced = |text: String, from: &str, to: &str| {
        assert!(text.contains(from), "{from} stands in the shipped file");
        text.replace(from, to)
    };

    let meters: Vec<String> = meters.iter().map(|meter| format!("\"{meter}\"")).collect();
    let scrape = replaced(read("prometheus/prometheus.yml"), "\"127.0.0.1:9464\"", &meters.join(", "));
    let scrape = replaced(scrape, "scrape_interval: 15s", "scrape_interval: 2s\n  scrape_timeout: 2s");
    write("prometheus/prometheus.yml", replaced(scrape, "evaluation_interval: 15s", "evaluation_interval: 1s"));
    write("prometheus/recording.yml", read("prometheus/recording.yml"));
    let rules = paced(&read("prometheus/rules.yml"), &[("for:", "1s"), ("keep_firing_for:", "1s")]);
    let stalled = "credit_meter_stalled_seconds) > ";
    write("prometheus/rules.yml", replaced(rules, &format!("{stalled}60"), &format!("{stalled}5")));
    let routes = paced(&read("alertmanager.yml"), &[("group_wait:", "1s"), ("group_interval:", "1s")]);
    write("alertmanager.yml", replaced(routes, "127.0.0.1:9466", receiver));
}

/// Sets the value of every line with one of these keys.
fn paced(text: &str, paces: &[(&str, &str)]) -> String {
    let line = |line: &str| {
        let indent = &line[..line.len() - line.trim_start().len()];
        let pace = paces.iter().find(|(key, _)| line.trim_start().starts_with(key));
        pace.map_or_else(|| format!("{line}\n"), |(key, value)| format!("{indent}{key} {value}\n"))
    };
    text.lines().map(line).collect()
}

/// Listens as the receivers of alertmanager.yml would.
async fn receive() -> (String, mpsc::UnboundedReceiver<Notice>) {
    let (notices, received) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let router = Router::new().route("/{receiver}", post(take)).route("/metrics", get(async || ""));
    let router = router.with_state(Arc::new(notices));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, received)
}

async fn take(
    State(notices): State<Arc<mpsc::UnboundedSender<Notice>>>,
    UrlPath(receiver): UrlPath<String>,
    Json(message): Json<Value>,
) {
    for alert in message["alerts"].as_array().into_iter().flatten() {
        let status = alert["status"].as_str().unwrap_or_default().to_owned();
        // The test may have ended.
        let _ = notices.send(Notice { receiver: receiver.clone(), status, alert: alert.clone() });
    }
}

/// HTTP/1.0, so that the answer comes in one piece.
async fn request(address: &str, method: &str, path: &str, body: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let head = format!("{method} {path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Prometheus writes numbers as texts.
fn number(value: &Value) -> f64 {
    value.as_str().and_then(|text| text.parse().ok()).expect("a number")
}

fn services(folder: &tempfile::TempDir, arguments: &[&str]) -> String {
    let mut command = Command::new("docker/services");
    command.args(arguments).arg("--dir").arg(folder.path().join("services"));
    let output = command.env("MONITOR_CONFIG", folder.path().join("config")).output().expect("docker/services starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
