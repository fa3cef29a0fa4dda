//! Whether positions stand still while records wait.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::ledger::call::Partition;

/// When each partition's position last moved, or had nothing to move for.
#[derive(Debug, Default)]
pub struct Stall {
    moved: BTreeMap<Partition, (i64, Instant)>,
}

/// How a partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub partition: Partition,
    pub applied: i64,
    /// Records that wait.
    pub lag: i64,
}

/// The partition that has stood still the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    pub partition: Partition,
    pub lag: i64,
    pub since: Duration,
}

impl Stall {
    /// Looks at all partitions of an assignment. One that moves hides none that does not.
    pub fn look(&mut self, now: Instant, partitions: &[Standing]) -> Option<Stalled> {
        self.moved.retain(|partition, _| partitions.iter().any(|own| own.partition == *partition));
        let mut longest: Option<Stalled> = None;
        for &Standing { partition, applied, lag } in partitions {
            let moved = self.moved.entry(partition).or_insert((applied, now));
            if lag == 0 || moved.0 != applied {
                *moved = (applied, now);
            } else if let since = now.duration_since(moved.1)
                && longest.is_none_or(|longest| longest.since < since)
            {
                longest = Some(Stalled { partition, lag, since });
            }
        }
        longest.filter(|stalled| stalled.since > Duration::ZERO)
    }

    /// What happened until now is no stall.
    pub fn clear(&mut self) {
        self.moved.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn standing(index: i32, applied: i64, lag: i64) -> Standing {
        Standing { partition: Partition::usage(index), applied, lag }
    }

    #[test]
    fn a_position_stalls_while_records_wait_and_it_does_not_move() {
        let mut stall = Stall::default();
        let start = Instant::now();
        let mut look = |second: u32, applied, lag| {
            stall.look(start + second * SECOND, &[standing(0, applied, lag)]).map(|stalled| stalled.since)
        };
        assert_eq!(look(0, 5, 0), None);
        assert_eq!(look(50, 5, 0), None, "nothing waits");
        assert_eq!(look(51, 5, 2), Some(SECOND));
        assert_eq!(look(60, 5, 9), Some(10 * SECOND), "since it last had nothing to do");
        assert_eq!(look(61, 6, 8), None, "it moves");
        assert_eq!(look(62, 6, 8), Some(SECOND));
        assert_eq!(look(63, 4, 10), None, "it goes back, to read again");
    }

    #[test]
    fn a_partition_that_moves_hides_none_that_does_not() {
        let mut stall = Stall::default();
        let start = Instant::now();
        for second in 0..40 {
            let found = stall.look(start + second * SECOND, &[standing(0, i64::from(second), 9), standing(1, 7, 3)]);
            let expected = Stalled { partition: Partition::usage(1), lag: 3, since: second * SECOND };
            assert_eq!(found, (second > 0).then_some(expected));
        }
        assert_eq!(stall.look(start + 41 * SECOND, &[standing(0, 50, 9)]), None, "the other was taken away");
        assert_eq!(stall.look(start + 42 * SECOND, &[standing(0, 60, 9), standing(1, 7, 3)]), None, "and is new again");
        stall.clear();
        assert_eq!(stall.look(start + 99 * SECOND, &[standing(1, 7, 3)]), None);
    }
}
