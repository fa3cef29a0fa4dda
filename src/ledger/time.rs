//! Meter time: how far a shard is in the brokers' time, and what is forgotten by it.
//!
//! No worker's clock is read. A tick that the broker stamped with T moves a shard to T once the shard has applied
//! everything that lay before it; the floor follows, and below the floor nothing is decided any more.

use std::sync::Arc;

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat};

use super::call::Partition;
use super::day::Layout;
use super::event::DAY_MS;
use super::shard::Shard;

/// Asks a shard to move its time.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeCall {
    pub generation: String,
    /// When the broker stamped the tick; `None`: the smallest time that the partitions themselves have reached
    /// (`events.age_from = "create"`).
    pub tick_ms: Option<i64>,
    pub late_after_ms: i64,
    /// Where each input partition ended after the tick; without an end its own records tell the time.
    pub ends: Vec<(Partition, Option<i64>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeReply {
    OtherGeneration,
    /// The first partition that is not there yet.
    Held(Partition),
    At {
        meter_time_ms: i64,
        floor_ms: i64,
    },
}

/// Asks a shard to forget the days of some accounts that are below its floor.
#[derive(Clone, Debug, PartialEq)]
pub struct ForgetCall {
    pub generation: String,
    pub accounts: Vec<ForgetDays>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ForgetDays {
    pub account: Arc<str>,
    /// The account's days, as they were read.
    pub read: Vec<(i64, Layout)>,
    /// Those of them that go.
    pub gone: Vec<i64>,
}

/// Whether no event that may still be decided can ask for a day.
pub fn forgettable(day: i64, floor_ms: i64, restamp_tolerance_ms: i64) -> bool {
    (day + 1) * DAY_MS + restamp_tolerance_ms <= floor_ms
}

impl Shard {
    /// Moves meter time and the floor, never back.
    pub fn move_time(&mut self, call: &TimeCall) -> TimeReply {
        let Some(fence) = self.fence.as_mut().filter(|fence| fence.generation == call.generation) else {
            return TimeReply::OtherGeneration;
        };
        let mut reached_ms = call.tick_ms.unwrap_or(i64::MAX);
        for (partition, end) in &call.ends {
            match end {
                Some(end) if fence.positions.get(partition).copied().unwrap_or(0) < *end => {
                    return TimeReply::Held(*partition);
                }
                Some(_) => {}
                None => match fence.reached.get(partition) {
                    Some(own_ms) => reached_ms = reached_ms.min(*own_ms),
                    None => return TimeReply::Held(*partition),
                },
            }
        }
        if reached_ms != i64::MAX {
            fence.meter_time_ms = fence.meter_time_ms.max(reached_ms);
        }
        fence.floor_ms = fence.floor_ms.max(fence.meter_time_ms - call.late_after_ms);
        TimeReply::At { meter_time_ms: fence.meter_time_ms, floor_ms: fence.floor_ms }
    }

    /// Forgets days below the floor; `None`: it belongs to another state. The number of accounts that changed.
    pub fn forget(&mut self, call: &ForgetCall) -> Option<u64> {
        let fence = self.fence.as_ref().filter(|fence| fence.generation == call.generation)?;
        let may_go = |day: &i64| forgettable(*day, fence.floor_ms, fence.restamp_tolerance_ms);
        let mut changed = 0;
        for ForgetDays { account: name, read, gone } in &call.accounts {
            let Some(account) = self.accounts.get_mut(name) else { continue };
            // An older state with a lower floor may have come back.
            if gone.is_empty() || !gone.iter().all(may_go) {
                continue;
            }
            // Another day has begun since: the next round sees it.
            if account.days != read.iter().cloned().collect() {
                continue;
            }
            account.days.retain(|day, _| !gone.contains(day));
            for day in gone {
                self.seen.remove(&(name.clone(), *day));
                self.charges.remove(&(name.clone(), *day));
            }
            changed += 1;
        }
        Some(changed)
    }
}

/// A date, which is its first moment in UTC, or an RFC 3339 time; in ms.
pub fn moment(text: &str) -> Option<i64> {
    let date = text.parse::<NaiveDate>().ok().map(|date| date.and_time(NaiveTime::MIN).and_utc().timestamp_millis());
    date.or_else(|| Some(DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis()))
}

/// As times are written in messages.
pub fn rfc3339(time_ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(time_ms);
    time.map_or_else(|| format!("{time_ms} ms"), |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}
