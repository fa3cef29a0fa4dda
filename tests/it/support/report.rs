//! What a fault test has seen, for `tests/faults` and docs/reliability.md, and how long a test is.

use std::io::Write;

/// `tests/faults` runs the long form of a test, `tests/run` the short one.
pub fn short_or_long<T>(short: T, long: T) -> T {
    if std::env::var("CREDIT_METER_FAULTS").is_ok_and(|form| form == "long") { long } else { short }
}

/// The median and the 99th percentile of sorted measurements.
pub fn percentiles(sorted: &[i64]) -> (i64, i64) {
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100];
    (at(50), at(99))
}

/// A row: the numbers of the faults, the fault, and what was seen.
pub fn row(numbers: &str, fault: &str, seen: &str) {
    println!("{numbers} | {fault} | {seen}");
    let Ok(path) = std::env::var("CREDIT_METER_FAULTS_REPORT") else { return };
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = serde_json::json!({ "test": test, "numbers": numbers, "fault": fault, "seen": seen });
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("the report is a file");
    writeln!(file, "{line}").expect("the report takes a line");
}
