//! Where logs end, and up to where partitions are read.

use rdkafka::consumer::Consumer;

use super::super::group::{Connection, PartitionView};
use super::{FromKafka, Reading, Thread};
use crate::metrics;

/// Statistics that come before this many are of the time before a pause or an assignment.
const SETTLED_STATISTICS: u32 = 3;

impl Thread {
    /// Tells of the ends of logs, and up to where partitions are read.
    pub(super) fn read_statistics(&mut self) {
        let Some(statistics) = self.consumer.context().take_statistics() else { return };
        metrics::set_kafka_brokers_up(statistics.brokers_up);
        let brokers_answer = matches!(statistics.connection, Connection::Answers);
        self.tell(FromKafka::Connection(statistics.connection));
        self.in_group = statistics.in_group;
        self.look_for_its_place(statistics.in_group, brokers_answer, statistics.idle);
        self.commit();
        if self.unreadable.named < self.unreadable.told {
            self.name_unreadable();
        }
        self.statistics_since_change = self.statistics_since_change.saturating_add(1);
        let settled = self.statistics_since_change >= SETTLED_STATISTICS;
        for view in statistics.partitions {
            if view.end >= 0 {
                let stable = view.stable_end.min(view.end);
                self.tell(FromKafka::End { partition: view.partition, offset: view.end, stable });
            }
            let Some(reading) = self.reading.get(&view.partition).copied() else { continue };
            let paused = self.room.is_paused(view.partition);
            if settled && !paused && at_end(&view, reading) {
                let (assignment, partition, epoch) = (self.assignment, view.partition, reading.epoch);
                self.in_step.read_to(partition, view.eof_offset);
                self.tell(FromKafka::ReadTo { assignment, partition, epoch, offset: view.eof_offset });
            }
        }
    }
}

/// Where the client has reached a partition's end, what lies behind the last record holds no record.
///
/// Nothing is queued, the client has fetched up to the end that it saw, and what it has handed out has been read here (or
/// nothing has come since the assignment): then no record lies between that and the end. It counts markers of transactions as
/// handed out, though nobody is given them. A pause or an assignment empties the client's queue while the end is still the
/// old one, so the first statistics after it do not count; a rewind of a partition without a leader does so for as long as it
/// has none, so what is not being fetched does not count.
fn at_end(view: &PartitionView, reading: Reading) -> bool {
    let handed_out = view.app_offset >= reading.next || (!reading.delivered && view.app_offset < 0);
    let fetched = view.active && view.queued == 0 && view.next_offset == view.eof_offset;
    fetched && !reading.seeking && handed_out && view.eof_offset > reading.next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::call::Partition;

    #[test]
    fn a_partition_is_read_to_its_end_only_where_the_client_says_so_of_now() {
        let read = Reading { next: 5, epoch: 0, delivered: true, seeking: false };
        // Five records, and a marker behind them.
        let view = PartitionView {
            partition: Partition::usage(0),
            active: true,
            app_offset: 6,
            next_offset: 6,
            eof_offset: 6,
            queued: 0,
            stable_end: 6,
            end: 6,
        };
        assert!(at_end(&view, read));
        assert!(!at_end(&PartitionView { queued: 1, ..view }, read), "records wait");
        assert!(!at_end(&PartitionView { next_offset: 5, ..view }, read), "there is more to fetch");
        assert!(!at_end(&PartitionView { app_offset: 4, ..view }, read), "what was handed out is not read yet");
        assert!(!at_end(&view, Reading { next: 6, ..read }), "nothing is new");
        // Rewound to 0: nothing has come since, and the numbers are of before until it is fetched again.
        let rewound = Reading { next: 0, epoch: 1, delivered: false, seeking: true };
        let sought = PartitionView { app_offset: -1001, ..view };
        assert!(!at_end(&sought, rewound), "the client has not moved");
        let rewound = Reading { seeking: false, ..rewound };
        assert!(!at_end(&PartitionView { active: false, ..sought }, rewound), "it has no leader");
        assert!(at_end(&sought, rewound), "there is no record in it, only markers");
    }
}
