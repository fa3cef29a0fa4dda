//! Records in the order in which they were appended, whatever their partition: in a rebuild, and where records have times of
//! their own. As far as the log reached when reading began; what is appended later is read as it comes.

use super::lane::{Lane, ReadUpTo, Work};
use super::record::Record;
use super::{Pipeline, Reading};
use crate::ledger::call::{Input as Topic, Partition};

/// The end of a log of which nothing more is read: nobody waits for it.
pub const HALTED: i64 = i64::MIN;

impl Reading {
    /// What was appended before is read.
    fn read_up_to_ms(&self) -> i64 {
        if self.log_end.is_some_and(|end| self.read.offset >= end) {
            return i64::MAX;
        }
        self.read.last.map_or(i64::MIN, |last| last.reached_ms)
    }
}

impl Pipeline {
    pub(super) fn log_ends(&mut self, ends: Vec<(Partition, i64)>) {
        for (partition, end) in ends {
            if let Some(reading) = self.partitions.get_mut(&partition) {
                reading.log_end = Some(end);
            }
        }
    }

    /// How far the log is read; `None`: records go as they come.
    pub(super) fn order(&self) -> Option<ReadUpTo> {
        let up_to_ms = |input: Topic| {
            let readings = self.partitions.iter().filter(|(partition, _)| partition.input == input);
            readings.map(|(_, reading)| reading.read_up_to_ms()).min().unwrap_or(i64::MAX)
        };
        let read = || ReadUpTo { usage_ms: up_to_ms(Topic::Usage), commands_ms: up_to_ms(Topic::Commands) };
        self.is_in_order().then(read)
    }

    /// Whether what is here waits for older usage to be read, however much there is already.
    pub fn waits_for_usage(&self) -> bool {
        let Some(order) = self.order().filter(|order| order.usage_ms <= order.commands_ms) else { return false };
        self.lanes.iter().any(|lane| {
            let queued = || Topic::ALL.into_iter().any(|input| lane.queued_of(input) > 0);
            is_free(lane) && queued() && lane.due_at_ms(self.settings.bounds, false, Some(order)).is_none()
        })
    }

    /// A worker without the commands cannot know which of them come first, nor can one for which they are halted.
    pub(super) fn is_in_order(&self) -> bool {
        let commands = self.partitions.get(&Partition::COMMANDS);
        self.settings.in_order && commands.is_some_and(|reading| reading.log_end != Some(HALTED))
    }

    /// Whether a record goes in its order: what came before it has been read.
    pub(super) fn has_its_place(&self, record: &Record) -> bool {
        let log_end = self.partitions.get(&record.partition).and_then(|reading| reading.log_end);
        self.is_in_order() && log_end.is_some_and(|end| record.offset < end)
    }
}

/// Whether a lane would send what may go.
fn is_free(lane: &Lane) -> bool {
    matches!(lane.work, Work::Idle) && lane.shut.is_none() && !lane.reread
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::recall::tests::{PARTITION, pipeline, recall, recalled, record};
    use crate::pipeline::{Effect, Input};

    fn in_order(partitions: &[(Partition, i64)]) -> Pipeline {
        let mut pipeline = pipeline(1);
        pipeline.settings.in_order = true;
        pipeline.on(0, Input::Assigned(partitions.iter().map(|(partition, at)| (*partition, vec![*at])).collect()));
        pipeline
    }

    fn read(pipeline: &mut Pipeline, offsets: std::ops::Range<i64>) {
        let records = offsets.map(|offset| record(offset, (0, 1))).collect();
        let epoch = pipeline.partitions[&PARTITION].epoch;
        pipeline.on(0, Input::Records { partition: PARTITION, epoch, records });
    }

    fn up_to(usage_ms: i64, commands_ms: i64) -> Option<ReadUpTo> {
        Some(ReadUpTo { usage_ms, commands_ms })
    }

    #[test]
    fn the_log_has_an_order_up_to_where_it_ended_and_to_where_it_was_read() {
        let mut pipeline = in_order(&[(PARTITION, 5), (Partition::COMMANDS, 0)]);
        let has_place = |pipeline: &Pipeline, offset: i64| pipeline.has_its_place(&record(offset, (0, 1)));
        assert_eq!(pipeline.order(), up_to(i64::MIN, i64::MIN), "nothing is known yet");
        pipeline.on(0, Input::LogEnds(vec![(PARTITION, 12), (Partition::COMMANDS, 0)]));
        assert_eq!(pipeline.order(), up_to(i64::MIN, i64::MAX));
        read(&mut pipeline, 5..8);
        assert_eq!(pipeline.order(), up_to(7, i64::MAX), "a record is appended at the time of its offset");
        read(&mut pipeline, 8..15);
        assert_eq!(pipeline.order(), up_to(i64::MAX, i64::MAX));
        assert!(has_place(&pipeline, 11) && !has_place(&pipeline, 12), "12 was appended while it was read");
        // What it had read is what it reads again.
        let mut effects = Vec::new();
        pipeline.rewind(0, PARTITION, 5, false, &mut effects);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Rewind { offset: 5, .. })), "{effects:?}");
        assert_eq!(pipeline.order(), up_to(i64::MIN, i64::MAX));
        assert!(has_place(&pipeline, 14) && !has_place(&pipeline, 15));
        // Nobody waits for what is halted.
        pipeline.on(0, Input::LogEnds(vec![(PARTITION, HALTED)]));
        assert_eq!(pipeline.order(), up_to(i64::MAX, i64::MAX));
    }

    #[test]
    fn where_the_commands_are_halted_a_renewal_waits_for_them() {
        let mut pipeline = in_order(&[(PARTITION, 5), (Partition::COMMANDS, 0)]);
        pipeline.on(0, Input::LogEnds(vec![(PARTITION, 12), (Partition::COMMANDS, 9)]));
        assert!(pipeline.has_its_place(&record(7, (0, 1))));
        pipeline.on(0, Input::LogEnds(vec![(Partition::COMMANDS, HALTED)]));
        assert!(!pipeline.has_its_place(&record(7, (0, 1))));
        assert_eq!(pipeline.order(), None);
    }

    #[test]
    fn what_waits_for_the_slowest_partition_is_told_from_what_waits_for_an_answer() {
        let other = Partition::usage(1);
        let mut pipeline = pipeline(1);
        pipeline.settings.in_order = true;
        let partitions = [PARTITION, other, Partition::COMMANDS];
        let effects = pipeline.on(0, Input::Assigned(partitions.map(|partition| (partition, vec![5])).into()));
        recalled(&mut pipeline, recall(&effects).expect("what was published is asked for"));
        pipeline.on(0, Input::LogEnds(vec![(PARTITION, 12), (other, 12), (Partition::COMMANDS, 5)]));
        assert!(!pipeline.waits_for_usage(), "nothing waits");
        read(&mut pipeline, 5..8);
        assert!(pipeline.waits_for_usage(), "of the other partition older records may come");
        pipeline.on(0, Input::ReadTo { partition: other, epoch: 0, offset: 12 });
        assert!(!pipeline.waits_for_usage(), "the first may go");
        assert!(pipeline.on(9, Input::Tick).iter().any(|effect| matches!(effect, Effect::Call { .. })));
        assert!(!pipeline.waits_for_usage(), "they have no answer");
        // For commands that are not read no usage is read.
        pipeline.on(9, Input::LogEnds(vec![(Partition::COMMANDS, 9)]));
        assert!(!pipeline.waits_for_usage());
    }

    #[test]
    fn a_worker_without_the_commands_keeps_no_order() {
        let mut pipeline = in_order(&[(PARTITION, 5)]);
        pipeline.on(0, Input::LogEnds(vec![(PARTITION, 12)]));
        assert_eq!(pipeline.order(), None);
        assert!(!pipeline.has_its_place(&record(7, (0, 1))), "a renewal waits for the commands before it");
    }
}
