//! Whether too many records of a partition are dead.

use std::collections::{BTreeMap, BTreeSet};

/// Beyond so many dead records among so many offsets of a partition it halts: a bad price list or program must not
/// drain a topic into the dead letters.
#[derive(Clone, Copy, Debug)]
pub struct DeadLimit {
    pub records: usize,
    pub among: i64,
}

/// The dead records of a partition, by window: one for each [`DeadLimit::among`] offsets. There are several, since shards are not
/// equally far: what one has left behind another comes to only now.
#[derive(Clone, Debug, Default)]
pub struct DeadWindows(BTreeMap<i64, BTreeSet<i64>>);

impl DeadWindows {
    /// Counts a record, once; gives whether there are too many. `applied`: all shards are so far.
    pub fn count(&mut self, offset: i64, applied: i64, limit: DeadLimit) -> bool {
        self.0.retain(|window, _| *window >= applied / limit.among);
        let window = self.0.entry(offset / limit.among).or_default();
        window.insert(offset);
        window.len() > limit.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: DeadLimit = DeadLimit { records: 3, among: 100 };

    /// The first of these offsets at which there are too many.
    fn first_too_many(offsets: &[i64]) -> Option<i64> {
        let mut windows = DeadWindows::default();
        offsets.iter().copied().find(|offset| windows.count(*offset, 0, LIMIT))
    }

    #[test]
    fn more_than_the_limit_in_a_window_are_too_many() {
        assert_eq!(first_too_many(&[1000, 1001, 1002, 1003]), Some(1003));
        assert_eq!(first_too_many(&[1000, 1050, 1098, 1099]), Some(1099));
        assert_eq!(first_too_many(&[1003, 1002, 1001, 1000]), Some(1000), "in any order");
        assert_eq!(first_too_many(&[1000, 1050, 1098, 1100, 1101, 1102]), None, "in two windows");
        assert_eq!(first_too_many(&[7, 7, 7, 7, 7]), None, "one record that is told again and again");
    }

    #[test]
    fn a_shard_that_is_far_behind_another_is_counted_where_it_is() {
        // One record in a hundred is dead, and another shard is at 10,000 by now.
        let behind: Vec<i64> = (0..100).map(|window| window * 100).collect();
        assert_eq!(first_too_many(&[&[10_000][..], &behind].concat()), None);
        // By turns.
        let turns: Vec<i64> = (0..100).flat_map(|window| [window * 100, 1_000_000 + window * 100]).collect();
        assert_eq!(first_too_many(&turns), None);
        // And yet too many behind are too many.
        assert_eq!(first_too_many(&[10_000, 200, 201, 202, 203]), Some(203));
    }

    #[test]
    fn what_all_shards_have_behind_them_is_forgotten() {
        let mut windows = DeadWindows::default();
        for offset in (0..1_000).map(|window| window * 100) {
            assert!(!windows.count(offset, offset - 250, LIMIT));
        }
        assert_eq!(windows.0.len(), 4);
    }
}
