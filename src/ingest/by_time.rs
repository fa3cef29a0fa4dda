//! What a topic holds, in the order of its times: a client gives some of one partition, then some of the next.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::client::BrokerError;
use super::tail::{Step, Tail, TailRecord};

/// What is held until the other partitions are as far. With more the earliest goes all the same.
const HELD_BYTES_MAX: usize = 64 << 20;
/// A partition that gives nothing for so long is not waited for: what was read of the others may matter more.
const WAIT: Duration = Duration::from_secs(2);

/// A tail of which the records that were there at the start come by time, each partition's in its order. Those after them
/// come as they do.
pub struct ByTime<S = Tail> {
    tail: S,
    held: Held,
    /// Since when something is held and nothing goes.
    waiting: Option<Instant>,
    caught_up: bool,
}

/// What a [`ByTime`] needs of a tail.
pub trait Source {
    /// May be dropped while it waits.
    fn next(&mut self) -> impl Future<Output = Result<Step, BrokerError>> + Send;
    /// Partitions of which not all has come that was there at the start.
    fn behind(&self) -> impl Iterator<Item = i32>;
}

impl<S: Source> ByTime<S> {
    pub fn new(tail: S) -> ByTime<S> {
        ByTime { tail, held: Held::default(), waiting: None, caught_up: false }
    }

    /// Waits for what comes next; may be dropped while it waits.
    pub async fn next(&mut self) -> Result<Step, BrokerError> {
        loop {
            if let Some(record) = self.held.first(self.tail.behind()) {
                self.waiting = None;
                return Ok(Step::Record(record));
            }
            if std::mem::take(&mut self.caught_up) {
                return Ok(Step::CaughtUp);
            }
            // Not while nothing is held: a tail that is dropped again and again comes to nothing else that it does.
            let step = if self.held.each.is_empty() {
                self.tail.next().await
            } else {
                let since = *self.waiting.get_or_insert_with(Instant::now);
                match timeout_at(since + WAIT, self.tail.next()).await {
                    Ok(step) => step,
                    Err(_) => {
                        self.held.in_vain = true;
                        continue;
                    }
                }
            };
            match step? {
                Step::Record(record) => self.held.push(record),
                Step::CaughtUp => self.caught_up = true,
            }
        }
    }
}

#[derive(Default)]
struct Held {
    /// None is empty.
    each: BTreeMap<i32, VecDeque<TailRecord>>,
    bytes: usize,
    /// All that is held goes without the partitions that were waited for.
    in_vain: bool,
}

impl Held {
    fn push(&mut self, record: TailRecord) {
        self.bytes += size(&record);
        self.each.entry(record.partition).or_default().push_back(record);
    }

    /// The earliest, once nothing earlier can come from partitions of which not all has been read.
    fn first(&mut self, mut behind: impl Iterator<Item = i32>) -> Option<TailRecord> {
        let goes =
            self.in_vain || self.bytes > HELD_BYTES_MAX || behind.all(|partition| self.each.contains_key(&partition));
        if !goes {
            return None;
        }
        let time_of = |records: &VecDeque<TailRecord>| records.front().map(|record| record.timestamp_ms);
        let (_, partition) = self.each.iter().map(|(partition, records)| (time_of(records), *partition)).min()?;
        let records = self.each.get_mut(&partition)?;
        let record = records.pop_front()?;
        if records.is_empty() {
            self.each.remove(&partition);
        }
        self.bytes -= size(&record);
        self.in_vain &= !self.each.is_empty();
        Some(record)
    }
}

fn size(record: &TailRecord) -> usize {
    let of = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + of(value)).sum();
    size_of::<TailRecord>() + of(&record.key) + of(&record.value) + headers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records by partition and time.
    fn held(records: &[(i32, i64)]) -> Held {
        let mut held = Held::default();
        for (offset, (partition, timestamp_ms)) in (0..).zip(records.iter().copied()) {
            held.push(TailRecord { partition, offset, timestamp_ms, ..TailRecord::default() });
        }
        held
    }

    fn all(held: &mut Held, behind: &[i32]) -> Vec<(i32, i64)> {
        let next = || held.first(behind.iter().copied()).map(|record| (record.partition, record.timestamp_ms));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn the_earliest_goes_once_every_partition_that_is_behind_has_given_something() {
        let mut held = held(&[(0, 5), (0, 9), (2, 7)]);
        assert_eq!(all(&mut held, &[1, 2]), [], "partition 1 may have an earlier one");
        held.push(TailRecord { partition: 1, timestamp_ms: 6, ..TailRecord::default() });
        assert_eq!(all(&mut held, &[1, 2]), [(0, 5), (1, 6)], "then 1 may have more");
        assert_eq!(all(&mut held, &[2]), [(2, 7)]);
        assert_eq!(all(&mut held, &[]), [(0, 9)], "all is read");
        assert_eq!((held.bytes, held.each.len()), (0, 0));
    }

    #[test]
    fn a_partition_keeps_its_order_though_its_times_go_back() {
        assert_eq!(all(&mut held(&[(0, 9), (0, 1), (1, 5)]), &[]), [(1, 5), (0, 9), (0, 1)]);
    }

    /// Gives a record of partition 0 now and then, though partition 1 is behind and silent, and ends with an error.
    struct Trickle(i64);

    impl Source for Trickle {
        async fn next(&mut self) -> Result<Step, BrokerError> {
            tokio::time::sleep(WAIT / 8).await;
            self.0 += 1;
            match self.0 {
                100.. => Err(BrokerError::NoTopic { topic: "alerts".to_owned() }),
                timestamp_ms => Ok(Step::Record(TailRecord { timestamp_ms, ..TailRecord::default() })),
            }
        }

        fn behind(&self) -> impl Iterator<Item = i32> {
            [1].into_iter()
        }
    }

    #[tokio::test]
    async fn a_silent_partition_holds_nobody_up_though_others_go_on() {
        let mut trickle = ByTime::new(Trickle(0));
        let Ok(Step::Record(first)) = trickle.next().await else { panic!("a record goes before the tail ends") };
        assert_eq!(first.timestamp_ms, 1);
        assert!(trickle.tail.0 > 1, "partition 1 was waited for");
    }

    #[test]
    fn who_gives_nothing_is_not_waited_for_and_what_is_held_is_bounded() {
        let mut held = held(&[(0, 5), (0, 9)]);
        held.in_vain = true;
        assert_eq!(all(&mut held, &[1]), [(0, 5), (0, 9)]);
        held.push(TailRecord::default());
        assert_eq!(all(&mut held, &[1]), [], "the next ones wait again");
        held.push(TailRecord { value: Some(vec![0; HELD_BYTES_MAX]), timestamp_ms: 1, ..TailRecord::default() });
        held.push(TailRecord { timestamp_ms: 2, ..TailRecord::default() });
        assert_eq!(all(&mut held, &[1]), [(0, 0), (0, 1)], "as many as are too many");
    }
}
