//! Partitions in step: a rebuild applies records in the order in which they were appended, and so does a meter with a backlog
//! of records that have times of their own. What is read of one partition far ahead of the others would only wait, and fill
//! the memory that those need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ledger::call::{Input, Partition};
use crate::pipeline::record::Record;

/// The usage partitions that are being read, up to where the log ended when that began. Commands are read as they come:
/// usage may wait for any of them.
#[derive(Debug, Default)]
pub struct InStep {
    /// Records that wait for slower partitions, at most, of all partitions together. What a pause throws away of the
    /// client's own queue is read again, so that it must be worth it.
    ahead_max: usize,
    each: BTreeMap<Partition, Step>,
}

#[derive(Debug)]
struct Step {
    /// Where the log ended.
    end: i64,
    /// All records below were read.
    next: i64,
    /// The largest time of those.
    reached_ms: i64,
    /// Largest times and numbers of records, in the order read, that may be ahead of the slowest partition.
    ahead: VecDeque<(i64, usize)>,
    paused: bool,
}

impl InStep {
    /// Partitions with the offset that is read next, and where the log ends.
    pub fn new(ahead_max: usize, partitions: impl Iterator<Item = (Partition, i64, i64)>) -> InStep {
        let usage = partitions.filter(|(partition, ..)| partition.input == Input::Usage);
        let step = |next, end| Step { end, next, reached_ms: i64::MIN, ahead: VecDeque::new(), paused: false };
        InStep { ahead_max, each: usage.map(|(partition, next, end)| (partition, step(next, end))).collect() }
    }

    pub fn read(&mut self, partition: Partition, records: &[Record]) {
        let (Some(step), Some(last)) = (self.each.get_mut(&partition), records.last()) else { return };
        let latest_ms = records.iter().map(|record| record.append_ms).max().unwrap_or(i64::MIN);
        step.next = last.offset + 1;
        step.reached_ms = step.reached_ms.max(latest_ms);
        step.ahead.push_back((step.reached_ms, records.len()));
    }

    /// No record lies before the offset.
    pub fn read_to(&mut self, partition: Partition, next: i64) {
        if let Some(step) = self.each.get_mut(&partition) {
            step.next = step.next.max(next);
        }
    }

    /// It is read again from an offset.
    pub fn rewound(&mut self, partition: Partition, next: i64) {
        if let Some(step) = self.each.get_mut(&partition) {
            // The worker waits for what it had had, too.
            *step = Step {
                end: step.end.max(step.next),
                next,
                reached_ms: i64::MIN,
                ahead: VecDeque::new(),
                paused: false,
            };
        }
    }

    pub fn forget(&mut self, partition: Partition) {
        self.each.remove(&partition);
    }

    /// The partitions that wait for the slowest. `full`: the worker has enough, and only that may have what it waits for.
    pub fn ahead(&mut self, full: bool) -> BTreeSet<Partition> {
        let slowest_ms = self.each.values().filter(|step| step.next < step.end).map(|step| step.reached_ms).min();
        let Some(slowest_ms) = slowest_ms else {
            // What the log held is read: it is as ever.
            return if full { self.each.keys().copied().collect() } else { BTreeSet::new() };
        };
        let each_max = self.ahead_max / self.each.len().max(1);
        let mut paused = BTreeSet::new();
        for (partition, step) in &mut self.each {
            while step.ahead.front().is_some_and(|(reached_ms, _)| *reached_ms <= slowest_ms) {
                step.ahead.pop_front();
            }
            let ahead: usize = step.ahead.iter().map(|(_, records)| records).sum();
            step.paused = match (full, step.paused) {
                (true, _) => step.reached_ms > slowest_ms,
                (false, false) => ahead > each_max,
                (false, true) => ahead > each_max / 2,
            };
            if step.paused {
                paused.insert(*partition);
            }
        }
        paused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::outcome::DeadReason;
    use crate::pipeline::record::Body;

    const AHEAD_MAX: usize = 100_000;
    const MANY: usize = AHEAD_MAX / 2 + 1;

    impl InStep {
        fn reads(&mut self, partition: Partition, next: i64, records: usize, append_ms: i64) {
            let body = Body::Dead { reason: DeadReason::InvalidJson, account: None };
            let record = Record { partition, offset: next - 1, append_ms, bytes: 1, fingerprint: 0, body };
            self.read(partition, &vec![record; records]);
        }
    }

    fn two() -> (InStep, Partition, Partition) {
        let (one, other) = (Partition::usage(0), Partition::usage(1));
        (InStep::new(AHEAD_MAX, [(one, 0, 1_000_000), (other, 0, 1_000_000)].into_iter()), one, other)
    }

    #[test]
    fn who_is_far_ahead_in_time_waits_until_the_slowest_has_come_nearer() {
        let (mut in_step, one, other) = two();
        in_step.reads(one, 1_000, 1_000, 500);
        assert!(in_step.ahead(false).is_empty(), "not far");
        in_step.reads(one, 1_000 + MANY as i64, MANY, 900);
        assert_eq!(in_step.ahead(false), BTreeSet::from([one]));
        in_step.reads(other, 10, 10, 600);
        assert_eq!(in_step.ahead(false), BTreeSet::from([one]), "what is ahead is what was appended later");
        in_step.reads(other, 20, 10, 900);
        assert!(in_step.ahead(false).is_empty());
        // What is behind is not paused however much of it there is.
        in_step.reads(other, 20 + MANY as i64, MANY, 900);
        assert!(in_step.ahead(false).is_empty());
    }

    #[test]
    fn when_there_is_no_room_only_the_slowest_goes_on() {
        let (mut in_step, one, other) = two();
        in_step.reads(one, 1, 1, 500);
        in_step.reads(other, 1, 1, 400);
        assert_eq!(in_step.ahead(true), BTreeSet::from([one]));
        in_step.reads(other, 2, 1, 501);
        assert_eq!(in_step.ahead(true), BTreeSet::from([other]));
        in_step.rewound(other, 0);
        assert_eq!(in_step.ahead(true), BTreeSet::from([one]));
    }

    #[test]
    fn what_was_read_beyond_the_end_and_is_read_again_is_waited_for_too() {
        let (mut in_step, one, other) = two();
        in_step.reads(one, 1_000_010, 10, 900);
        in_step.reads(other, 1_000_010, 10, 900);
        assert_eq!(in_step.ahead(true), BTreeSet::from([one, other]), "what the log held is read");
        in_step.rewound(other, 1_000_005);
        assert_eq!(in_step.ahead(true), BTreeSet::from([one]));
        in_step.read_to(other, 1_000_010);
        assert_eq!(in_step.ahead(true), BTreeSet::from([one, other]));
    }

    #[test]
    fn nobody_waits_for_one_that_is_at_its_end_or_is_not_read_any_more() {
        for leaves in [false, true] {
            let (mut in_step, one, other) = two();
            in_step.reads(one, MANY as i64, MANY, 900);
            in_step.read_to(other, 999_999);
            assert_eq!(in_step.ahead(false), BTreeSet::from([one]));
            if leaves {
                in_step.forget(other)
            } else {
                in_step.read_to(other, 1_000_000)
            }
            assert!(in_step.ahead(false).is_empty());
            assert!(in_step.ahead(true).is_empty());
            in_step.read_to(one, 1_000_000);
            assert!(in_step.ahead(true).contains(&one), "what comes then has to wait for room");
        }
    }
}
