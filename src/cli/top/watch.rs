//! Reads alerts and usage in the background. What cannot be read is said, and tried again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::AlarmsView;
use super::alarms::Alarms;
use super::hottest::Hottest;
use crate::config::{Config, StartFrom};
use crate::ingest::alerts::Alert;
use crate::ingest::by_time::ByTime;
use crate::ingest::client::BrokerError;
use crate::ingest::decode::{self, Decoder, Raw};
use crate::ingest::log::LogRecord;
use crate::ingest::sample::Sampler;
use crate::ingest::tail::{Step, Tail};
use crate::ledger::call::Partition;

/// Counters for accounts, of which the largest are shown.
const COUNTERS: usize = 1_000;
/// Records that are read at first: who was hottest is then known also when nothing comes.
const BACK_RECORDS: usize = 10_000;
/// Records that are read in a round, of as many as come: a few milliseconds' work.
const ROUND_RECORDS: usize = 4_000;
const ROUND: Duration = Duration::from_secs(1);
/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What was read so far.
#[derive(Debug)]
struct State {
    hottest: Hottest,
    arriving_per_second: Option<f64>,
    /// Whether the newest records were read once.
    sampled: bool,
    usage_failure: Option<String>,
    alarms: Alarms,
    alerts_failure: Option<String>,
}

pub struct Watches {
    state: Arc<Mutex<State>>,
    /// Ends the tasks when nobody looks any more.
    _stop: DropGuard,
    tasks: [JoinHandle<()>; 2],
}

/// What is shown of it.
pub struct Watched {
    pub arriving_per_second: Option<f64>,
    pub shares: Vec<(Arc<str>, f64)>,
    pub usage_failure: Option<String>,
    pub alarms: AlarmsView,
    pub alerts_failure: Option<String>,
}

impl Watches {
    pub fn start(config: &Config) -> Watches {
        let state = Arc::new(Mutex::new(State {
            hottest: Hottest::new(COUNTERS),
            arriving_per_second: None,
            sampled: false,
            usage_failure: None,
            alarms: Alarms::default(),
            alerts_failure: None,
        }));
        let stop = CancellationToken::new();
        let (config, own, stopped) = (Arc::new(config.clone()), state.clone(), stop.clone());
        let watching = watch_alerts(config.clone(), state.clone());
        let watching = stop.clone().run_until_cancelled_owned(watching);
        let alerts = tokio::spawn(async move {
            watching.await;
        });
        // It asks and reads in turns, and blocks.
        let usage = tokio::task::spawn_blocking(move || watch_usage(&config, &own, &stopped));
        Watches { state, _stop: stop.drop_guard(), tasks: [usage, alerts] }
    }

    /// Whether both topics were read to their ends, or cannot be.
    pub fn both_read(&self) -> bool {
        let state = lock(&self.state);
        (state.sampled || state.usage_failure.is_some()) && (state.alarms.complete || state.alerts_failure.is_some())
    }

    /// An error: who reads has panicked, and what is shown would stand still.
    pub fn seen(&self, most: usize) -> anyhow::Result<Watched> {
        if self.tasks.iter().any(JoinHandle::is_finished) {
            bail!("reading in the background has ended, which is a fault of this program");
        }
        let state = lock(&self.state);
        Ok(Watched {
            arriving_per_second: state.arriving_per_second,
            shares: state.hottest.top(most),
            usage_failure: state.usage_failure.clone(),
            alarms: AlarmsView::of(&state.alarms, most),
            alerts_failure: state.alerts_failure.clone(),
        })
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch_usage(config: &Config, state: &Mutex<State>, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = sample(config, state, stop) {
            let mut state = lock(state);
            (state.usage_failure, state.arriving_per_second) = (Some(error.to_string()), None);
        }
        std::thread::sleep(RETRY);
    }
}

fn sample(config: &Config, state: &Mutex<State>, stop: &CancellationToken) -> Result<(), BrokerError> {
    let mut decoder = Decoder::new(decode::Settings::of(&config.events), Arc::default());
    let mut sampler = Sampler::open(&config.kafka, &config.kafka.topics.usage, BACK_RECORDS)?;
    let (mut records_max, mut last) = (BACK_RECORDS, Instant::now());
    while !stop.is_cancelled() {
        let began = Instant::now();
        let parts = sampler.round(records_max, ROUND, |record| account(&mut decoder, record))?;
        let seconds = (began - last).as_secs_f64();
        last = began;
        let appended: u64 = parts.values().map(|part| part.appended).sum();
        let came = parts.into_values().flat_map(|part| {
            // A record that was read stands for those of its partition that were not.
            let weight = (part.appended as f64 / part.read.len().max(1) as f64).max(1.0);
            part.read.into_iter().flatten().map(move |account| (account, weight))
        });
        let first = records_max == BACK_RECORDS;
        {
            let mut state = lock(state);
            state.hottest.take(came, seconds);
            // The first round reads what was there before.
            state.arriving_per_second = (!first).then(|| appended as f64 / seconds);
            (state.sampled, state.usage_failure) = (state.sampled || !first, None);
        }
        records_max = ROUND_RECORDS;
        std::thread::sleep(ROUND.saturating_sub(began.elapsed()));
    }
    Ok(())
}

fn account(decoder: &mut Decoder, record: LogRecord<'_>) -> Option<Arc<str>> {
    let raw = Raw {
        partition: Partition::usage(record.partition),
        offset: record.offset,
        append_ms: record.timestamp_ms,
        key: record.key,
        value: record.value,
        headers: record.headers,
    };
    decoder.decode(raw).record.account().cloned()
}

async fn watch_alerts(config: Arc<Config>, state: Arc<Mutex<State>>) {
    loop {
        let failed = fold_alerts(&config, &state).await;
        {
            let mut state = lock(&state);
            state.alerts_failure = Some(failed.to_string());
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// From the topic's beginning and on, until it fails. By time: an account's alerts are in two partitions where some were added.
async fn fold_alerts(config: &Config, state: &Mutex<State>) -> BrokerError {
    let mut tail = match Tail::open(&config.kafka, &config.kafka.topics.alerts, StartFrom::Earliest).await {
        Ok(tail) => ByTime::new(tail),
        Err(error) => return error,
    };
    {
        let mut state = lock(state);
        (state.alarms, state.alerts_failure) = (Alarms::default(), None);
    }
    loop {
        match tail.next().await {
            Ok(Step::CaughtUp) => lock(state).alarms.complete = true,
            // What no meter writes tells nothing.
            Ok(Step::Record(record)) => {
                if let Ok(Some(alert)) = Alert::read(&record, &config.redis.prefix) {
                    lock(state).alarms.take(alert);
                }
            }
            Err(error) => return error,
        }
    }
}
