//! Another catalogue: calls are stamped with it from now on, and what was read for the old one may be read again.

use std::sync::Arc;

use super::lane::Work;
use super::{Effect, Pipeline};
use crate::ledger::call::{Input, Partition, Stamp};
use crate::ledger::catalogue::{Catalogue, CatalogueId};

impl Pipeline {
    /// Calls that are under way are refused by their shards, and made anew.
    pub(super) fn reprice(&mut self, catalogue: Arc<Catalogue>, effects: &mut Vec<Effect>) {
        let read_for_it = self.catalogue.conditions().hold(&catalogue.conditions());
        self.stamp = Arc::new(Stamp { catalogue: catalogue.id.clone(), ..(*self.stamp).clone() });
        self.catalogue = catalogue;
        for lane in &mut self.lanes {
            if matches!(lane.work, Work::OtherCatalogue { .. }) {
                lane.work = Work::Idle;
            }
        }
        if !read_for_it {
            self.read_all_again(effects);
        }
    }

    /// Shards that price by another catalogue than this worker.
    pub fn other_catalogues(&self) -> Vec<(u32, &CatalogueId)> {
        let lanes = (0..).zip(&self.lanes);
        let others = lanes.filter_map(|(shard, lane)| match &lane.work {
            Work::OtherCatalogue { stored } => Some((shard, stored)),
            _ => None,
        });
        others.collect()
    }

    /// The events in hand lack data that the new prices depend on. Those on their way here belong to an older epoch;
    /// each lane starts over once its shard has answered.
    fn read_all_again(&mut self, effects: &mut Vec<Effect>) {
        for lane in self.lanes.iter_mut().filter(|lane| !matches!(lane.work, Work::Halted)) {
            lane.reread = true;
        }
        let usage: Vec<Partition> =
            self.partitions.keys().copied().filter(|partition| partition.input == Input::Usage).collect();
        for partition in usage {
            let applied = self.lanes.iter().filter_map(|lane| lane.applied(partition)).min();
            if let (Some(offset), Some(reading)) = (applied, self.partitions.get_mut(&partition)) {
                reading.begin_again(offset);
                effects.push(Effect::Rewind { partition, offset, epoch: reading.epoch, repriced: true });
            }
        }
    }

    /// Starts an idle lane over at where its shard is.
    pub(super) fn read_again(&mut self, shard: u32, effects: &mut Vec<Effect>) {
        let lane = self.lane(shard);
        lane.reread = false;
        let usage: Vec<_> = lane.partitions().into_iter().filter(|partition| partition.input == Input::Usage).collect();
        for partition in usage {
            if let Some(position) = self.lane(shard).applied(partition) {
                self.rewind(shard, partition, position, true, effects);
            }
        }
    }
}
