//! A shard that has fallen back to an older state: where it is now, and what was published since. Its lane is shut until
//! both are known; the others go on.

use std::collections::BTreeMap;

use super::lane::{Lane, Probe, Work};
use super::recorded::{Published, Recorded};
use super::{Effect, Pipeline};
use crate::ledger::call::Partition;

impl Pipeline {
    /// The shard has fallen back.
    pub(super) fn suspect(&mut self, shard: u32) {
        let id = self.next_id();
        let lane = self.lane(shard);
        (lane.suspect, lane.shut) = (true, Some(id));
        self.forgetful = true;
    }

    /// First where the shards are that fell back, in all partitions, then what was published from there on.
    pub(super) fn ask_suspects(&mut self, effects: &mut Vec<Effect>) {
        let suspects: Vec<u32> = (0..self.settings.shards).filter(|shard| self.lane(*shard).suspect).collect();
        if suspects.is_empty() {
            self.forgetful = false;
            return self.recall(effects);
        }
        for shard in suspects {
            if self.lane(shard).probe == Probe::None {
                self.ask_positions(shard, effects);
            }
        }
    }

    pub(super) fn ask_positions(&mut self, shard: u32, effects: &mut Vec<Effect>) {
        let id = self.next_id();
        self.lane(shard).probe = Probe::UnderWay(id);
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
        let in_order = self.is_in_order();
        for lane in &mut self.lanes {
            // One that has fallen back since waits for a question of its own.
            if !lane.suspect && lane.shut.take_if(|shut| *shut < id).is_some() && !in_order {
                lane.commands_first = Some(commands_end);
            }
        }
    }

    pub(super) fn probe(&mut self, effects: &mut Vec<Effect>) {
        for shard in 0..self.settings.shards {
            let lane = self.lane(shard);
            if matches!(lane.work, Work::Idle) && !matches!(lane.probe, Probe::UnderWay(_)) {
                self.ask_positions(shard, effects);
            }
        }
        // A shard that does not say where it is keeps only its own lane shut.
        let known = |lane: &Lane| lane.shut.is_some() && !lane.suspect;
        if self.forgetful && self.recalling.is_none() && self.lanes.iter().any(known) {
            self.recall(effects);
        }
    }

    /// Asked again with the next [`Input::Probe`](super::Input::Probe), and no sooner: what fails may fail at once.
    pub(super) fn probe_failed(&mut self, shard: u32, id: u64) {
        let lane = self.lane(shard);
        if lane.probe == Probe::UnderWay(id) {
            lane.probe = Probe::Failed;
        }
    }

    /// However old the answer is, it is safe to follow. It was asked for after the lane's last call was answered, so that
    /// it is no older than what the lane knew before. What has moved the shard since (another worker, a call that was
    /// given up, another fall) the next call finds out: its ranges and the positions it names beside them are compared
    /// in the script that applies it, and what was published is asked for from wherever the lane then is. A time after
    /// which an answer does not count would add nothing but a Redis that is slower, and a shard that never opens.
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
        if lane.probe != Probe::UnderWay(id) {
            return;
        }
        lane.probe = Probe::None;
        let partitions = lane.partitions();
        if generation.as_ref() != Some(&self.stamp.generation) {
            return self.other_generation(shard, generation, effects);
        }
        for partition in partitions {
            let position = positions.get(&partition).copied().unwrap_or(0);
            self.follow(shard, partition, position, effects);
        }
        let id = self.next_id();
        let lane = self.lane(shard);
        if std::mem::take(&mut lane.suspect) {
            lane.shut = Some(id);
        }
    }

    /// Takes an idle lane to where its shard is.
    pub(super) fn follow(&mut self, shard: u32, partition: Partition, position: i64, effects: &mut Vec<Effect>) {
        let Some(applied) = self.lane(shard).applied(partition) else { return };
        if position > applied {
            self.lane(shard).skip_to(partition, position);
        } else if position < applied {
            self.rewind(shard, partition, position, false, effects);
        }
    }

    /// The shard has lost what it had applied (an older copy was restored, or a replica took over).
    pub(super) fn rewind(
        &mut self,
        shard: u32,
        partition: Partition,
        position: i64,
        repriced: bool,
        effects: &mut Vec<Effect>,
    ) {
        let read = self.read(partition).offset;
        // The other lanes skip what they have had when it comes again.
        self.lane(shard).rewind_to(partition, position);
        self.suspect(shard);
        if let Some(reading) = self.partitions.get_mut(&partition).filter(|_| position < read) {
            reading.begin_again(position);
            effects.push(Effect::Rewind { partition, offset: position, epoch: reading.epoch, repriced });
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ledger::call::{Input as Topic, Reply, Stamp};
    use crate::ledger::catalogue::Catalogue;
    use crate::ledger::event::{Identity, UsageEvent};
    use crate::pipeline::lane::Bounds;
    use crate::pipeline::record::{Body, Record};
    use crate::pipeline::{Answer, DeadLimit, Input, Settings};

    pub const PARTITION: Partition = Partition { input: Topic::Usage, index: 0 };
    const CATALOGUE: &str = r#"
version = 1
[credit_types.email]
[actions.reveal]
prices = [{ credit_type = "email", credits = 1 }]
[plans.basic]
interval = "monthly"
allowance = { email = 10 }
actions = ["reveal"]
"#;

    pub fn pipeline(shards: u32) -> Pipeline {
        let catalogue = Catalogue::parse(CATALOGUE).unwrap();
        let stamp = Stamp {
            generation: "g".into(),
            catalogue: catalogue.id.clone(),
            usage_topic: "usage".into(),
            restamp_tolerance_ms: 0,
            breakdown: false,
            outbox_max: 100,
            set_members_max: 8,
            journal_bytes_max: 8192,
        };
        let settings = Settings {
            shards,
            bounds: Bounds { max_events: 100, max_bytes: 1_000, max_age_ms: 5 },
            queue_max: 100,
            dead_limit: DeadLimit { records: 10, among: 10 },
            late_after_ms: 0,
            silent_ms: 1_000,
            in_order: false,
        };
        Pipeline::new(settings, Arc::new(stamp), Arc::new(catalogue))
    }

    /// Usage of an account of a shard, of two or of three.
    pub fn record(offset: i64, (shard, of_shards): (u32, u32)) -> Record {
        let of = |account: String| Record {
            partition: PARTITION,
            offset,
            append_ms: offset,
            bytes: 1,
            fingerprint: 0,
            body: Body::Usage(Arc::new(UsageEvent {
                account: account.into(),
                source: "s".into(),
                id: offset.to_string().into(),
                time_ms: offset,
                dated_ms: offset,
                action: "reveal".into(),
                quantity: 1,
                outcome: None,
                user: None,
                fields: Box::default(),
                once: None,
                voids: None,
                identity: Identity::of("s", &offset.to_string()),
            })),
        };
        let mut records = (0..).map(|number| of(format!("team-{number}")));
        records.find(|record| record.shard(of_shards) == shard).unwrap()
    }

    /// Has these records read, and gives the calls that go out.
    pub fn read(pipeline: &mut Pipeline, now_ms: u64, epoch: u32, records: Vec<Record>) -> BTreeMap<u32, u64> {
        let mut effects = pipeline.on(now_ms, Input::Records { partition: PARTITION, epoch, records });
        effects.extend(pipeline.on(now_ms + 10, Input::Tick));
        let call = |effect: &Effect| match effect {
            Effect::Call { shard, id, .. } => Some((*shard, *id)),
            _ => None,
        };
        effects.iter().filter_map(call).collect()
    }

    pub fn recall(effects: &[Effect]) -> Option<u64> {
        effects.iter().find_map(|effect| if let Effect::Recall { id, .. } = effect { Some(*id) } else { None })
    }

    /// The shards that are asked where they are.
    pub fn asked(effects: &[Effect]) -> BTreeMap<u32, u64> {
        let asked = |effect: &Effect| match effect {
            Effect::AskPositions { shard, id } => Some((*shard, *id)),
            _ => None,
        };
        effects.iter().filter_map(asked).collect()
    }

    pub fn recalled(pipeline: &mut Pipeline, id: u64) {
        pipeline.on(0, Input::Recalled { id, published: Vec::new(), commands_end: 0 });
    }

    #[test]
    fn a_shard_that_does_not_say_where_it_is_keeps_only_its_own_lane_shut() {
        let mut pipeline = pipeline(2);
        let effects = pipeline.on(0, Input::Assigned(vec![(PARTITION, vec![10, 10])]));
        recalled(&mut pipeline, recall(&effects).expect("what was published is asked for"));
        let calls = read(&mut pipeline, 0, 0, vec![record(10, (0, 2)), record(11, (1, 2))]);
        assert_eq!(calls.keys().collect::<Vec<_>>(), [&0, &1]);
        let answer = Answer::Apply(Reply::DoneBefore);
        pipeline.on(20, Input::Answered { shard: 1, id: calls[&1], answer });

        // Shard 0 is five records back, and nothing answers there any more.
        let answer = Answer::Apply(Reply::OtherPosition(vec![5]));
        let effects = pipeline.on(20, Input::Answered { shard: 0, id: calls[&0], answer });
        let asked = asked(&effects);
        assert!(recall(&effects).is_none(), "its positions come first");
        let calls = read(&mut pipeline, 30, 1, vec![record(5, (0, 2)), record(12, (1, 2))]);
        assert_eq!(calls.keys().collect::<Vec<_>>(), [&1], "the other shard goes on");

        // It answers at last.
        let positions = BTreeMap::from([(PARTITION, 5)]);
        let generation = Some("g".into());
        let effects = pipeline.on(50, Input::Positions { shard: 0, id: asked[&0], generation, positions });
        let id = recall(&effects).expect("what was published from there on is asked for");
        let calls = read(&mut pipeline, 60, 1, vec![record(13, (0, 2))]);
        assert!(calls.is_empty(), "nothing is decided before it is known");
        recalled(&mut pipeline, id);
        let calls = read(&mut pipeline, 80, 1, vec![]);
        assert_eq!(calls.keys().collect::<Vec<_>>(), [&0]);
    }

    #[test]
    fn an_answer_that_takes_seconds_opens_its_lane() {
        let mut pipeline = pipeline(1);
        let effects = pipeline.on(0, Input::Assigned(vec![(PARTITION, vec![10])]));
        recalled(&mut pipeline, recall(&effects).expect("what was published is asked for"));
        let calls = read(&mut pipeline, 0, 0, vec![record(10, (0, 1))]);
        let answer = Answer::Apply(Reply::OtherPosition(vec![5]));
        let first = asked(&pipeline.on(20, Input::Answered { shard: 0, id: calls[&0], answer }))[&0];

        // As long as it may still be answered it is not asked again, and whoever ticks makes no haste.
        for second in 1..=9 {
            assert!(asked(&pipeline.on(1_000 * second, Input::Probe)).is_empty(), "second {second}");
        }
        pipeline.on(9_500, Input::NoPositions { shard: 0, id: first });
        assert!(asked(&pipeline.on(9_501, Input::Tick)).is_empty(), "what fails may fail at once");
        let second = asked(&pipeline.on(10_000, Input::Probe))[&0];
        pipeline.on(10_100, Input::NoPositions { shard: 0, id: first });
        assert!(asked(&pipeline.on(11_000, Input::Probe)).is_empty(), "word of the first is none of the second");

        let (generation, positions) = (Some("g".into()), BTreeMap::from([(PARTITION, 5)]));
        let effects = pipeline.on(15_000, Input::Positions { shard: 0, id: second, generation, positions });
        recalled(&mut pipeline, recall(&effects).expect("what was published from there on is asked for"));
        let epoch = pipeline.partitions[&PARTITION].epoch;
        let calls = read(&mut pipeline, 15_100, epoch, vec![record(5, (0, 1))]);
        assert_eq!(calls.keys().collect::<Vec<_>>(), [&0]);
    }

    #[test]
    fn a_lane_opens_with_the_answer_that_covers_it_and_no_other() {
        let mut pipeline = pipeline(3);
        let effects = pipeline.on(0, Input::Assigned(vec![(PARTITION, vec![10, 10, 10])]));
        recalled(&mut pipeline, recall(&effects).expect("what was published is asked for"));
        let calls = read(&mut pipeline, 0, 0, (0..3).map(|shard| record(10 + i64::from(shard), (shard, 3))).collect());
        let mut probed = BTreeMap::new();
        for (shard, id) in calls {
            let answer = Answer::Apply(Reply::OtherPosition(vec![5]));
            probed.extend(asked(&pipeline.on(20, Input::Answered { shard, id, answer })));
        }
        let answers = |pipeline: &mut Pipeline, shard: u32, id: u64| {
            let (generation, positions) = (Some("g".into()), BTreeMap::from([(PARTITION, 5)]));
            pipeline.on(40, Input::Positions { shard, id, generation, positions })
        };
        assert!(recall(&answers(&mut pipeline, 0, probed[&0])).is_none(), "the others may answer at once");
        let first = recall(&pipeline.on(1_030, Input::Probe)).expect("they have not");
        // Where this one is, the question did not know.
        answers(&mut pipeline, 1, probed[&1]);
        recalled(&mut pipeline, first);
        let epoch = pipeline.partitions[&PARTITION].epoch;
        let calls = read(&mut pipeline, 1_040, epoch, vec![record(5, (0, 3)), record(6, (1, 3)), record(7, (2, 3))]);
        assert_eq!(calls.keys().collect::<Vec<_>>(), [&0]);
    }
}
