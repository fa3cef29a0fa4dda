//! A shard that has fallen back to an older state: where it is now, and what was published since.

use std::collections::BTreeMap;

use super::lane::{ReadTo, Work};
use super::recorded::{Published, Recorded};
use super::{Effect, Pipeline, Reading};
use crate::ledger::call::Partition;

impl Pipeline {
    /// First where the shards are that fell back, in all partitions, then what was published from there on.
    pub(super) fn ask_suspects(&mut self, effects: &mut Vec<Effect>) {
        let suspects: Vec<u32> = (0..self.settings.shards).filter(|shard| self.lane(*shard).suspect).collect();
        if suspects.is_empty() {
            self.forgetful = false;
            return self.recall(effects);
        }
        for shard in suspects {
            if self.lane(shard).probe.is_none() {
                self.ask_positions(shard, effects);
            }
        }
    }

    pub(super) fn ask_positions(&mut self, shard: u32, effects: &mut Vec<Effect>) {
        let id = self.next_id();
        self.lane(shard).probe = Some(id);
        effects.push(Effect::AskPositions { shard, id });
    }

    /// Redis may be older than what was published: nothing is decided before it is known.
    pub(super) fn recall(&mut self, effects: &mut Vec<Effect>) {
        let lowest = |partition: Partition| self.lanes.iter().filter_map(|lane| lane.applied(partition)).min();
        let from: Vec<_> =
            self.partitions.keys().filter_map(|&partition| Some((partition, lowest(partition)?))).collect();
        if !from.is_empty() {
            let id = self.next_id();
            self.recalling = Some(id);
            effects.push(Effect::Recall { id, from });
        }
    }

    pub(super) fn recalled(&mut self, id: u64, published: Vec<Published>, commands_end: i64) {
        if self.recalling != Some(id) {
            return;
        }
        self.recalling = None;
        self.recorded = Recorded::default();
        for published in published {
            self.recorded.insert(published);
        }
        for lane in &mut self.lanes {
            lane.commands_first = Some(commands_end);
        }
    }

    pub(super) fn probe(&mut self, effects: &mut Vec<Effect>) {
        for shard in 0..self.settings.shards {
            if matches!(self.lane(shard).work, Work::Idle) {
                self.ask_positions(shard, effects);
            }
        }
    }

    pub(super) fn probed(
        &mut self,
        shard: u32,
        id: u64,
        generation: Option<String>,
        positions: &BTreeMap<Partition, i64>,
        effects: &mut Vec<Effect>,
    ) {
        let lane = self.lane(shard);
        // A batch that was cut meanwhile finds out by itself.
        if lane.probe != Some(id) {
            return;
        }
        lane.probe = None;
        let partitions = lane.partitions();
        if generation.as_ref() != Some(&self.stamp.generation) {
            return self.other_generation(shard, generation, effects);
        }
        for partition in partitions {
            let position = positions.get(&partition).copied().unwrap_or(0);
            self.follow(shard, partition, position, effects);
        }
        self.lane(shard).suspect = false;
    }

    /// Takes an idle lane to where its shard is.
    pub(super) fn follow(&mut self, shard: u32, partition: Partition, position: i64, effects: &mut Vec<Effect>) {
        let Some(applied) = self.lane(shard).applied(partition) else { return };
        if position > applied {
            self.lane(shard).skip_to(partition, position);
        } else if position < applied {
            self.rewind(shard, partition, position, effects);
        }
    }

    /// The shard has lost what it had applied (an older copy was restored, or a replica took over).
    pub(super) fn rewind(&mut self, shard: u32, partition: Partition, position: i64, effects: &mut Vec<Effect>) {
        let read = self.read(partition).offset;
        // The other lanes skip what they have had when it comes again.
        self.lane(shard).rewind_to(partition, position);
        self.lane(shard).suspect = true;
        if let Some(reading) = self.partitions.get_mut(&partition).filter(|_| position < read) {
            *reading = Reading { read: ReadTo { offset: position, last: None }, epoch: reading.epoch + 1 };
            effects.push(Effect::Rewind { partition, offset: position, epoch: reading.epoch });
        }
        self.forgetful = true;
    }
}
