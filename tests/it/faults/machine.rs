//! The worker's own machine: a disk without room for its log, a collector that does not read it, a clock that jumps.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Stdio;

use tokio::net::unix::pipe;

use super::under_load;
use crate::support::clock::Clock;
use crate::support::report::{row, short_or_long};
use crate::support::until;

/// Every write to it fails as on a full disk.
const FULL_DISK: &str = "/dev/full";
const LINES_LOST: &str = "credit_meter_log_lines_lost_total";

fn full_disk() -> File {
    OpenOptions::new().write(true).open(FULL_DISK).expect("Linux has it")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_lines_of_the_log_and_nothing_else() {
    let (topics, mut meter, traffic) = under_load("full-log", 34).await;
    meter.set("LOG__FILTER", "debug");
    let running = meter.start_on(&[], full_disk());
    running.ready().await;
    meter.applies(short_or_long(2_000, 100_000)).await;
    // Commands tell more on stderr than their answer.
    let put = ["account", "put", "told-to-nobody", "--plan", "starter", "--anchor", "2026-01-31"];
    let status = meter.command().args(put).stdout(Stdio::null()).stderr(full_disk()).status();
    assert!(status.expect("the program starts").success(), "a command whose stderr takes nothing does its work");
    let balance = meter.command().args(["balance", "told-to-nobody"]).stdout(full_disk()).output();
    let balance = balance.expect("the program starts");
    let told = String::from_utf8_lossy(&balance.stderr);
    assert_eq!(balance.status.code(), Some(1), "an answer that is lost is a failure");
    assert!(told.contains("stdout cannot be written: No space left on device"), "{told}");

    let seen = traffic.end().await.check(&topics, &meter).await;
    let lost =
        until("what is lost is counted", || async { Some(running.metric(LINES_LOST).await).filter(|lost| *lost > 0) })
            .await;
    assert_eq!(running.terminate().await.code(), Some(0));
    row("34", "The disk that takes the worker's log is full", &format!("{lost} lines lost and counted: {seen}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_does_not_read_the_log_holds_nothing_up() {
    let (topics, mut meter, traffic) = under_load("unread-log", 35).await;
    meter.set("LOG__FILTER", "debug");
    meter.set("LOG__QUEUE_MAX", "10");
    let (reads_nothing, log) = pipe_without_room();
    let mut running = meter.start_on(&[], log);
    running.ready().await;
    meter.applies(short_or_long(2_000, 100_000)).await;
    let lost = until("ten lines wait, the others are counted", || async {
        Some(running.metric(LINES_LOST).await).filter(|lost| *lost > 0)
    })
    .await;
    // Nor does it hold up who stops, or who has a last word to say.
    assert_eq!(running.terminate().await.code(), Some(0));
    let clock = Clock::new();
    let (reads_nothing_either, log) = pipe_without_room();
    running = meter.start_on(&clock.environment().each_ref().map(|(name, value)| (*name, value.as_str())), log);
    running.ready().await;
    clock.is_off_by(-HOUR);
    assert_eq!(running.ends("it says why it ends to nobody").await.code(), Some(1));
    drop((reads_nothing, reads_nothing_either));
    let _running = meter.start(&[]);
    let seen = traffic.end().await.check(&topics, &meter).await;
    row(
        "34",
        "The worker's log is a pipe that is full, and nobody reads it",
        &format!("{lost} lines lost and counted: {seen}"),
    );
}

/// A pipe that takes no byte more, and its end that is to read.
fn pipe_without_room() -> (std::io::PipeReader, Stdio) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let writer = pipe::Sender::from_owned_fd(writer.into()).expect("it is a pipe");
    while writer.try_write(&[b'.'; 4096]).is_ok() {}
    while writer.try_write(b".").is_ok() {}
    (reader, writer.into_blocking_fd().expect("it blocks again").into())
}

/// How far the clock is off by which a worker writes its log, in seconds.
fn is_off(log: &Path) -> Option<i64> {
    let log = std::fs::read_to_string(log).expect("a log is UTF-8");
    let (stamp, _) = log.lines().last()?.split_once(' ')?;
    let written = chrono::DateTime::parse_from_rfc3339(stamp).ok()?;
    Some(written.timestamp() - chrono::Utc::now().timestamp())
}

/// Waits until a worker writes its log by a clock that is off by so much.
async fn has_jumped(log: &Path, seconds: i64) {
    until(&format!("the clock is off by {seconds} s"), || async {
        is_off(log).filter(|off| (off - seconds).abs() < 600)
    })
    .await;
}

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_decides_nothing() {
    let (topics, mut meter, traffic) = under_load("clock", 40).await;
    meter.set("LOG__FILTER", "debug");
    let clocks = [Clock::new(), Clock::new()];
    let folder = tempfile::tempdir().expect("a folder");
    let logs = [folder.path().join("one"), folder.path().join("other")];
    let start = |worker: usize| {
        let log = OpenOptions::new().create(true).append(true).open(&logs[worker]).expect("a file");
        meter.start_on(&clocks[worker].environment().each_ref().map(|(name, value)| (*name, value.as_str())), log)
    };
    let mut workers = [start(0), start(1)];
    for worker in &workers {
        worker.ready().await;
    }
    // Over an hour, over a day, and over the end of every account's cycle; together and against each other.
    let jumps = [[HOUR, -HOUR], [DAY, DAY], [40 * DAY, -40 * DAY], [-40 * DAY, 40 * DAY], [0, 0]];
    let (mut before, mut ended) = ([0, 0], 0);
    for jump in jumps {
        for worker in 0..2 {
            clocks[worker].is_off_by(jump[worker]);
            if jump[worker] < before[worker] {
                // What reads Kafka would sleep.
                let status = workers[worker].ends("a clock that is set back ends the worker").await;
                assert_eq!(status.code(), Some(1));
                let log = std::fs::read_to_string(&logs[worker]).expect("a log is UTF-8");
                let told = log.lines().rfind(|line| line.starts_with("credit-meter: ")).expect("it has told why");
                assert!(told.contains("this machine's clock was set back by "), "{told}");
                ended += 1;
                workers[worker] = start(worker);
            }
            has_jumped(&logs[worker], jump[worker]).await;
        }
        before = jump;
        for worker in &workers {
            worker.ready().await;
        }
        meter.applies(short_or_long(600, 20_000)).await;
    }
    let seen = traffic.end().await.check(&topics, &meter).await;
    // Nor do threads that nothing wakes any more hold the end up.
    for (clock, worker) in clocks.iter().zip(&mut workers) {
        clock.is_off_by(-HOUR);
        assert_eq!(worker.ends("a clock that is set back ends an idle worker").await.code(), Some(1));
    }
    row(
        "40",
        "The clocks of two workers are set by an hour, a day and 40 days, forward and back, against each other",
        &format!("set back, a worker says so and ends with 1, {ended} times, and is started again: {seen}"),
    );
}
