//! What the tests share: where the services are, topics and prefixes of a test's own, a meter as a child process,
//! servers that a test may break.

pub mod acls;
pub mod brokers;
pub mod certificates;
pub mod clock;
pub mod dump;
pub mod following;
pub mod kafka;
pub mod meter;
pub mod monitor;
pub mod one_broker;
pub mod own_kafka;
pub mod past;
pub mod proxied_kafka;
pub mod proxy;
pub mod redis;
pub mod report;
pub mod schema;
pub mod secured_kafka;
pub mod sentinels;
pub mod traffic;

use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// An address that `tests/run` gives; a test without it fails, it is never skipped.
pub fn service(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run tests/run, or docker/services up"))
}

/// Of the tests' own packages.
pub fn python() -> Command {
    Command::new(PathBuf::from(service("CREDIT_METER_VENV")).join("bin/python"))
}

/// A key prefix of the test's own.
pub fn own_prefix(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::now_v7().simple())
}

/// Waits on a condition. The bound is generous: it only ends a test that would never end.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What moves no further for so long has stopped.
const STILL_MAX: Duration = Duration::from_secs(180);

/// Waits until a measure has reached an end, as long as it goes on: how long that takes says nothing.
pub async fn until_reached<F: Future<Output = i64>>(what: &str, end: i64, mut measure: impl FnMut() -> F) {
    let (mut reached, mut moved) = (i64::MIN, Instant::now());
    while reached < end {
        let now = measure().await;
        if now > reached {
            (reached, moved) = (now, Instant::now());
        }
        assert!(moved.elapsed() < STILL_MAX, "it stands still at {reached} of {end} until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends a signal to a process that the test started. Every shell knows `kill`; a program of that name a small system lacks.
pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("sh").args(["-c", "kill $0 $1", signal, &pid.to_string()]).status().expect("sh runs");
    assert!(sent.success(), "kill {signal} {pid}");
}
