//! Very many accounts whose renewals came while no worker was there, and new events that come meanwhile. The figures of
//! docs/speed.md come from here:
//!
//!     CREDIT_METER_FAULTS=long cargo test --release --test it -- --nocapture renewals
//!
//! Nothing fails for being slow: the machine may be. What fails is a cycle that closes twice, never, out of order, or with
//! another sum.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::cycles::{Past, at, command, revealed};
use crate::support::meter::{Running, SHARDS};
use crate::support::report::{row, short_or_long};
use crate::support::until_reached;

/// New events a second.
const PACE: usize = 1_000;
const TICKS_A_SECOND: usize = 50;
const PARTITIONS: usize = 2;
const APRIL: &str = "2026-04-02T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn many_accounts_cross_three_boundaries_while_new_events_come() {
    let accounts = short_or_long(2_000, 100_000);
    let past = Arc::new(Past::new("renewals").await);
    let january = "2026-01-15T00:00:00Z";
    let puts = (0..accounts).map(|index| {
        let data = json!({"plan": "starter", "anchor": "2026-01-01"});
        (command(&format!("a{index}"), "account.put", &format!("put-{index}"), january, data), at(january))
    });
    past.send_all("commands", puts.collect()).await;
    let running = past.start().await;
    past.meter.caught_up(&past.topics).await;
    past.meter.published().await;
    assert!(running.terminate().await.success());

    // The first events of April tell of three renewals of every account.
    let running = past.start().await;
    let before = Calls::of(&running).await;
    let started = Instant::now();
    let load = Load::start(past.clone(), accounts);
    let renewed = || async {
        let mut through = 0;
        for shard in 0..SHARDS {
            let due = past.meter.store.due_by(shard, at(APRIL), 0, 1).await.expect("redis answers");
            through += i64::from(due.is_empty());
        }
        // What has been done goes on also where no shard is through.
        if through == i64::from(SHARDS) {
            i64::MAX
        } else {
            running.metric("credit_meter_swept_steps_total").await as i64
        }
    };
    until_reached("all accounts are renewed", i64::MAX, renewed).await;
    let took = started.elapsed();
    let after = Calls::of(&running).await;
    // As long again, with the same events and nothing to renew.
    let end = past.meter.progress().await + (took.as_secs() as i64 + 1) * PACE as i64 * i64::from(SHARDS);
    until_reached("as many events are applied without renewals", end, || past.meter.progress()).await;
    let quiet = Calls::of(&running).await;
    let used = load.end().await;
    past.meter.caught_up(&past.topics).await;
    past.meter.published().await;

    let (statements, _) = past.closed_cycles();
    assert_eq!(statements.len(), accounts);
    for index in 0..accounts {
        let expected = [(0, json!(0)), (1, json!(0)), (2, json!(0))];
        assert_eq!(statements[&format!("a{index}")], expected, "a{index}");
    }
    for (index, used) in used.iter().take(5) {
        assert_eq!(past.email(&format!("a{index}"))["used"], *used);
    }
    let events = used.values().sum::<u64>();
    assert_eq!(past.meter.totals("usage").await.values().sum::<u64>(), events, "{events} events were sent");
    assert_eq!(past.meter.audit()["accounts_checked"], accounts);

    let seconds = took.as_secs_f64();
    let rate = accounts as f64 / seconds;
    let (with, without) = (after.since(&before, "apply"), quiet.since(&after, "apply"));
    let seen = format!(
        "{accounts} accounts renewed three times in {seconds:.1} s, {rate:.0} accounts a second, each cycle closed once and \
         in order; `apply` {with} meanwhile and {without} afterwards; `roll` {}",
        after.since(&before, "roll"),
    );
    row("1", &format!("three boundaries of {accounts} accounts at once, with {PACE} new events a second"), &seen);
}

/// Events of April for accounts at random, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<BTreeMap<usize, u64>>,
}

impl Load {
    fn start(past: Arc<Past>, accounts: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut rng = SmallRng::seed_from_u64(4);
            let mut used: BTreeMap<usize, u64> = BTreeMap::new();
            let mut tick = tokio::time::interval(Duration::from_secs(1) / TICKS_A_SECOND as u32);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                let mut records = Vec::new();
                for _ in 0..PACE / TICKS_A_SECOND {
                    number += 1;
                    let account = rng.random_range(0..accounts);
                    *used.entry(account).or_default() += 1;
                    let (name, id) = (format!("a{account}"), format!("april-{number}"));
                    records.push((revealed(&name, &id, 1, APRIL, (number % PARTITIONS) as i32), at(APRIL)));
                }
                past.send_all("usage", records).await;
            }
            used
        });
        Load { stop, task }
    }

    /// How many events each account has had.
    async fn end(self) -> BTreeMap<usize, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load ends")
    }
}

/// A worker's calls by script and by how long they took, as its metrics tell.
struct Calls(BTreeMap<(String, u64), u64>);

impl Calls {
    async fn of(running: &Running) -> Calls {
        let (_, page) = running.get("/metrics").await.expect("the worker answers");
        let buckets = page.lines().filter_map(|line| {
            let line = line.strip_prefix("credit_meter_call_duration_seconds_bucket{")?;
            let (labels, count) = line.split_once("} ")?;
            let label = |name: &str| labels.split(&format!("{name}=\"")).nth(1)?.split('"').next();
            let bound = label("le")?.parse::<f64>().expect("a bound");
            let micros = if bound.is_finite() { (bound * 1e6).round() as u64 } else { u64::MAX };
            Some(((label("script")?.to_owned(), micros), count.parse().expect("a count")))
        });
        Calls(buckets.collect())
    }

    /// Calls of a script since an earlier look, and below which bounds half of them lie, and 99 %.
    fn since(&self, earlier: &Calls, script: &str) -> String {
        let own = self.0.iter().filter(|((own, _), _)| own == script);
        let counts: Vec<(u64, u64)> = own.map(|(key, count)| (key.1, count - earlier.0[key])).collect();
        let all = counts.last().expect("a histogram has buckets").1;
        assert!(all > 0, "{script} was called");
        let below = |percent: u64| {
            let (bound, _) = counts.iter().find(|(_, count)| count * 100 >= all * percent).expect("the last holds all");
            if *bound == u64::MAX { "∞".to_owned() } else { (*bound as f64 / 1e3).to_string() }
        };
        format!("p50 < {} ms, p99 < {} ms ({all} calls)", below(50), below(99))
    }
}
