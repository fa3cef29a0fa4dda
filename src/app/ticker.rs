//! Meter time: ticks that the broker stamps, shards that follow them, and what is forgotten then.
//!
//! The worker that has the commands partition does it for all shards: there is one such worker, and what two would
//! do at once does no harm, since a shard's time never falls.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDate, SecondsFormat, TimeDelta, Utc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::sweeper::Sweeper;
use crate::config::{AgeFrom, Config};
use crate::http::health::{Check, Health};
use crate::ingest::client::{BrokerError, Cluster, topic_of};
use crate::ingest::decode::TICK;
use crate::ingest::producer::{Outgoing, ProduceError, Producer};
use crate::ingest::watermarks::Watermarks;
use crate::ledger::apply::json_text;
use crate::ledger::call::Partition;
use crate::ledger::day::Layout;
use crate::ledger::event::DAY_MS;
use crate::ledger::steps::MeterTime;
use crate::ledger::time::{ForgetCall, ForgetDays, TimeCall, TimeReply, forgettable};
use crate::ledger::usage::{FoldUsageCall, ForgetUsageCall, last_past};
use crate::metrics;
use crate::store::{ShardState, Store, StoreError};

/// Ticks that wait for a partition that lags; beyond, those between the oldest and the newest are thinned out.
const PENDING_MAX: usize = 100;
/// Ticks that fail for so long tell of more than a broker or a Redis that is starting again. One that has no answer by then
/// has failed.
const FAILING_LONG: Duration = Duration::from_secs(10);
/// A tick that waits longer is worth a word.
const HELD_LONG: Duration = Duration::from_secs(60);
/// Accounts whose days are looked at in one step.
const FORGET_ACCOUNTS: usize = 200;
/// Days of usage that are forgotten at once.
const FORGET_USAGE_DAYS: i64 = 31;
/// Days of usage that are looked for journals again, beside those to which events may still come: no worker may have run on
/// as many; and most that are at once.
const FOLD_USAGE_DAYS: i64 = 7;
const FOLD_USAGE_DAYS_MAX: i64 = 31;
/// Days of accounts that a script folds: Redis takes up to half a millisecond for the journal of one.
const FOLD_USAGE_AT_ONCE: usize = 100;
/// Sets that one call deletes, unless one account alone has more.
const FORGET_SETS: usize = 10_000;

pub struct Ticker {
    pub config: Config,
    pub store: Store,
    pub producer: Arc<Producer>,
    pub watermarks: Watermarks,
    pub cluster: Cluster,
    pub generation: String,
    pub sweeper: Arc<Sweeper>,
    /// Whether this worker has the commands partition.
    pub leads: watch::Receiver<bool>,
    pub health: Arc<Health>,
}

#[derive(Debug, thiserror::Error)]
enum TickError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
    #[error(
        "topic {topic} carries no append time: set message.timestamp.type=LogAppendTime on it; until then meter time \
         stands still"
    )]
    NoAppendTime { topic: String },
    #[error(
        "topic {topic} has taken no tick for {}: do its brokers answer, and are enough of its replicas in sync?",
        humantime::format_duration(FAILING_LONG)
    )]
    Unanswered { topic: String },
}

/// A moment of the broker's time, and where the inputs ended after it.
struct Tick {
    sent: Instant,
    call: TimeCall,
}

impl Tick {
    /// The first partition that a shard has not read to its end.
    fn held_by(&self, state: &ShardState) -> Option<Partition> {
        let position = |partition: &Partition| {
            state.positions.iter().find(|(own, _)| own == partition).map_or(0, |(_, offset)| *offset)
        };
        let behind = |(partition, end): &&(Partition, Option<i64>)| end.is_some_and(|end| position(partition) < end);
        self.call.ends.iter().find(behind).map(|(partition, _)| *partition)
    }
}

/// Accounts for one call each: a busy day has thousands of sets, and each is a key of the call.
fn in_parts(accounts: Vec<ForgetDays>) -> Vec<Vec<ForgetDays>> {
    let mut parts: Vec<Vec<ForgetDays>> = Vec::new();
    let mut sets = usize::MAX;
    for account in accounts {
        let gone = account.read.iter().filter(|(day, _)| account.gone.contains(day));
        let own: usize = gone.map(|(_, layout)| layout.sets().count()).sum();
        if sets.saturating_add(own) > FORGET_SETS {
            parts.push(Vec::new());
            sets = 0;
        }
        sets += own;
        parts.last_mut().expect("one was begun").push(account);
    }
    parts
}

/// The last day of each shard whose identities are deleted, and whose usage is without journals.
#[derive(Default)]
struct Cleared {
    forgotten: BTreeMap<u32, i64>,
    folded: BTreeMap<u32, NaiveDate>,
}

/// How far a shard has come.
struct Moved {
    /// Ticks that it has passed.
    passed: usize,
    held: Option<(Partition, Duration)>,
    meter_time_ms: i64,
    floor_ms: i64,
}

impl Ticker {
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pending = VecDeque::new();
        let mut cleared = Cleared::default();
        let mut told: Option<Instant> = None;
        let mut failing: Option<Instant> = None;
        loop {
            let every = self.config.time.tick_every;
            // What is mended is seen soon.
            let wait = if failing.is_some() { every.min(FAILING_LONG) } else { every };
            let leads = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => *self.leads.borrow(),
                changed = self.leads.changed() => match changed {
                    // It ticks after a while.
                    Ok(()) if *self.leads.borrow() => continue,
                    Ok(()) => false,
                    Err(_) => return,
                },
            };
            if !leads {
                pending.clear();
                failing = None;
                self.health.set(Check::Time, Ok(()));
                metrics::forget_meter_time();
                continue;
            }
            let begun = Instant::now();
            let result = self.turn(&mut pending, &mut cleared).await;
            match &result {
                Ok(_) => {
                    failing = None;
                    self.health.set(Check::Time, Ok(()));
                }
                Err(error) => {
                    if failing.get_or_insert(begun).elapsed() >= FAILING_LONG {
                        self.health.set(Check::Time, Err(format!("meter time stands still: {error}")));
                    }
                }
            }
            let quiet = told.is_some_and(|told| told.elapsed() < HELD_LONG);
            match result {
                Err(error) if !quiet => {
                    tracing::warn!(%error, "meter time stands still");
                    told = Some(Instant::now());
                }
                Ok(Some((shard, partition, held))) if held > HELD_LONG && !quiet => {
                    tracing::warn!(shard, %partition, ?held, "meter time is held back: no worker applies this partition");
                    told = Some(Instant::now());
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// One tick; tells what has held the oldest one back, and for how long.
    async fn turn(
        &self,
        pending: &mut VecDeque<Tick>,
        cleared: &mut Cleared,
    ) -> Result<Option<(u32, Partition, Duration)>, TickError> {
        if pending.len() == PENDING_MAX {
            pending.remove(1);
        }
        pending.push_back(self.tick().await?);
        let mut held = None;
        let mut done = pending.len();
        let (mut meter_time_ms, mut floor_ms) = (i64::MAX, i64::MAX);
        let mut failed = None;
        for shard in 0..self.config.redis.shards {
            // One shard that cannot be reached holds back itself alone.
            match self.shard(shard, pending, cleared).await {
                Ok(moved) => {
                    done = done.min(moved.passed);
                    held = held.or(moved.held.map(|(partition, since)| (shard, partition, since)));
                    meter_time_ms = meter_time_ms.min(moved.meter_time_ms);
                    floor_ms = floor_ms.min(moved.floor_ms);
                }
                Err(error) => {
                    done = 0;
                    failed = failed.or(Some(error));
                }
            }
        }
        pending.drain(..done);
        if let Some(error) = failed {
            return Err(error);
        }
        metrics::set_meter_time(meter_time_ms, floor_ms);
        let topics = &self.config.kafka.topics;
        metrics::set_meter_time_held(
            held.map(|(_, partition, since)| (topic_of(topics, partition.input), partition.index, since)),
        );
        Ok(held)
    }

    /// Takes a shard as far as its positions allow.
    async fn shard(&self, shard: u32, pending: &VecDeque<Tick>, cleared: &mut Cleared) -> Result<Moved, TickError> {
        let state = self.store.shard_state(shard).await?;
        // Ends only grow: what holds no tick back holds no earlier one back either.
        let passed = pending.iter().take_while(|tick| tick.held_by(&state).is_none()).count();
        let waiting = pending.get(passed);
        let held = waiting.and_then(|tick| Some((tick.held_by(&state)?, tick.sent.elapsed())));
        let (meter_time_ms, floor_ms) = (state.meter_time_ms, state.floor_ms);
        let mut moved = Moved { passed, held, meter_time_ms, floor_ms };
        if let Some(tick) = passed.checked_sub(1).and_then(|last| pending.get(last)) {
            match self.store.move_time(shard, &tick.call).await? {
                TimeReply::At { meter_time_ms, floor_ms } => {
                    (moved.meter_time_ms, moved.floor_ms) = (meter_time_ms, floor_ms);
                }
                TimeReply::Held(partition) => {
                    moved.held.get_or_insert((partition, tick.sent.elapsed()));
                }
                TimeReply::OtherGeneration => {}
            }
        }
        self.sweeper.begin(shard, MeterTime { now_ms: moved.meter_time_ms, floor_ms: moved.floor_ms });
        self.forget(shard, moved.floor_ms, state.restamp_tolerance_ms, &mut cleared.forgotten).await?;
        self.forget_usage(shard, moved.meter_time_ms, state.usage_from).await?;
        self.fold_usage(shard, moved.meter_time_ms, &mut cleared.folded).await?;
        Ok(moved)
    }

    async fn tick(&self) -> Result<Tick, TickError> {
        let topics = &self.config.kafka.topics;
        let tick_ms = match self.config.events.age_from {
            AgeFrom::Append => Some(self.produce().await?),
            AgeFrom::Create => None,
        };
        // After the tick: what is below these ends was there when the broker stamped it, or came soon after.
        let mut ends = vec![(Partition::COMMANDS, Some(self.watermarks.range(&topics.commands, 0).await?.1))];
        for index in 0..self.cluster.partitions(&topics.usage).await? {
            let end = match tick_ms {
                Some(_) => Some(self.watermarks.range(&topics.usage, index).await?.1),
                None => None,
            };
            ends.push((Partition::usage(index), end));
        }
        let call = TimeCall {
            generation: self.generation.clone(),
            tick_ms,
            late_after_ms: self.config.events.late_after.as_millis() as i64,
            ends,
        };
        Ok(Tick { sent: Instant::now(), call })
    }

    /// Gives the time at which the broker has appended a tick.
    async fn produce(&self) -> Result<i64, TickError> {
        let topic = &self.config.kafka.topics.ticks;
        let source = &self.config.redis.prefix;
        let value = format!(
            "{{\"specversion\":\"1.0\",\"id\":\"{}\",\"source\":{},\"type\":\"{TICK}\",\"subject\":{},\"time\":\"{}\"}}",
            uuid::Uuid::now_v7(),
            json_text(source),
            json_text(source),
            Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
        );
        let record = Outgoing {
            topic,
            value: Some(value.as_bytes()),
            headers: &[("content-type", Some(b"application/cloudevents+json; charset=UTF-8"))],
            partition: Some(0),
            ..Outgoing::default()
        };
        let sent = tokio::time::timeout(FAILING_LONG, self.producer.send(record)).await;
        let delivered = sent.map_err(|_| TickError::Unanswered { topic: topic.clone() })??;
        delivered.append_ms.ok_or_else(|| TickError::NoAppendTime { topic: topic.clone() })
    }

    /// Goes through a shard's accounts when its floor has passed another day.
    async fn forget(
        &self,
        shard: u32,
        floor_ms: i64,
        restamp_tolerance_ms: i64,
        forgotten: &mut BTreeMap<u32, i64>,
    ) -> Result<(), TickError> {
        let last_day = (floor_ms - restamp_tolerance_ms).div_euclid(DAY_MS) - 1;
        if floor_ms == 0 || forgotten.get(&shard).is_some_and(|day| *day >= last_day) {
            return Ok(());
        }
        let gone = |days: &[(i64, Layout)]| {
            let days = days.iter().map(|(day, _)| *day);
            days.filter(|day| forgettable(*day, floor_ms, restamp_tolerance_ms)).collect::<Vec<_>>()
        };
        let mut changed = 0;
        let mut cursor = 0;
        loop {
            let (next, accounts) = self.store.days(shard, cursor, FORGET_ACCOUNTS).await?;
            let accounts = accounts.into_iter().map(|(account, read)| ForgetDays { gone: gone(&read), account, read });
            let accounts: Vec<_> = accounts.filter(|account| !account.gone.is_empty()).collect();
            for accounts in in_parts(accounts) {
                let call = ForgetCall { generation: self.generation.clone(), accounts };
                // The shard belongs to another state: it is asked again with the next tick.
                let Some(gone) = self.store.forget(shard, &call).await? else { return Ok(()) };
                changed += gone;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        if changed > 0 {
            tracing::info!(shard, accounts = changed, "identities of days below the floor are deleted");
        }
        metrics::record_forgotten(changed);
        forgotten.insert(shard, last_day);
        Ok(())
    }

    /// Goes through a shard's accounts when another day has passed: for what has come to it and, late, to those before.
    async fn fold_usage(
        &self,
        shard: u32,
        meter_time_ms: i64,
        folded: &mut BTreeMap<u32, NaiveDate>,
    ) -> Result<(), TickError> {
        let last = last_past(0, meter_time_ms).filter(|last| folded.get(&shard).is_none_or(|folded| folded < last));
        let Some(last) = last else { return Ok(()) };
        let late_days = self.config.events.late_after.as_secs() as i64 / (DAY_MS / 1000);
        let mut first = last - TimeDelta::days((late_days + FOLD_USAGE_DAYS).min(FOLD_USAGE_DAYS_MAX));
        let Some(mut journals) = self.fold_days(shard, first, last).await? else { return Ok(()) };
        if folded.get(&shard).and_then(NaiveDate::succ_opt) != Some(last) {
            // A log may have been applied since that goes back for longer.
            let mut found = journals;
            while found > 0 {
                let before = first - TimeDelta::days(1);
                first -= TimeDelta::days(FOLD_USAGE_DAYS_MAX);
                let Some(more) = self.fold_days(shard, first, before).await? else { return Ok(()) };
                found = more;
                journals += found;
            }
        }
        if journals > 0 {
            tracing::debug!(shard, days = journals, "usage of days that have passed is stored by member");
        }
        folded.insert(shard, last);
        Ok(())
    }

    /// Folds usage of some days of all of a shard's accounts; gives how many journals there were. `None`: the shard belongs
    /// to another state, or is torn: it is asked again with the next tick.
    async fn fold_days(&self, shard: u32, first: NaiveDate, last: NaiveDate) -> Result<Option<u64>, TickError> {
        let days: Vec<NaiveDate> = first.iter_days().take_while(|day| *day <= last).collect();
        let (mut journals, mut cursor) = (0, 0);
        loop {
            let (next, accounts) = self.store.days(shard, cursor, FORGET_ACCOUNTS).await?;
            let accounts: Vec<Arc<str>> = accounts.into_iter().map(|(account, _)| account).collect();
            for accounts in accounts.chunks((FOLD_USAGE_AT_ONCE / days.len()).max(1)) {
                let accounts = accounts.to_vec();
                let call = FoldUsageCall { generation: self.generation.clone(), days: days.clone(), accounts };
                let Some(folded) = self.store.fold_usage(shard, &call).await? else { return Ok(None) };
                journals += folded;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(Some(journals));
            }
        }
    }

    /// The first day of which a shard may have usage, in whichever zone.
    async fn first_day(&self, shard: u32) -> Result<Option<NaiveDate>, StoreError> {
        let (mut oldest, mut cursor) = (None, 0);
        loop {
            let (next, since_ms) = self.store.oldest(shard, cursor, FORGET_ACCOUNTS).await?;
            oldest = [oldest, since_ms].into_iter().flatten().min();
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        Ok(oldest.and_then(DateTime::from_timestamp_millis).map(|since| since.date_naive() - TimeDelta::days(1)))
    }

    /// Goes through a shard's accounts when another day of usage is past.
    async fn forget_usage(&self, shard: u32, meter_time_ms: i64, from: Option<NaiveDate>) -> Result<(), TickError> {
        let keep_ms = self.config.usage.keep.as_millis() as i64;
        let Some(last) = last_past(keep_ms, meter_time_ms) else { return Ok(()) };
        // A shard that has never forgotten any may hold years: a log of before was read anew, or loaded.
        let from = match from {
            Some(from) => from,
            None => self.first_day(shard).await?.map_or(last, |first| first.min(last)),
        };
        let mut days = from.iter_days().take_while(|day| *day <= last).collect::<Vec<_>>();
        days.truncate(FORGET_USAGE_DAYS as usize);
        let Some(done) = days.last().copied() else { return Ok(()) };
        let call = |accounts: Vec<Arc<str>>, from: Option<NaiveDate>| ForgetUsageCall {
            generation: self.generation.clone(),
            keep_ms,
            days: days.clone(),
            accounts,
            from,
        };
        let mut gone = 0;
        let mut cursor = 0;
        loop {
            let (next, accounts) = self.store.days(shard, cursor, FORGET_ACCOUNTS).await?;
            let accounts = accounts.into_iter().map(|(account, _)| account).collect();
            let from = (next == 0).then(|| done + TimeDelta::days(1));
            match self.store.forget_usage(shard, &call(accounts, from)).await? {
                Some(deleted) => gone += deleted,
                // An older state has come back: later.
                None => return Ok(()),
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        if gone > 0 {
            tracing::info!(shard, days = gone, "usage older than usage.keep is deleted");
        }
        Ok(())
    }
}
