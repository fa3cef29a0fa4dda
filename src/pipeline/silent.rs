//! A shard that does not answer while others do: what waits for it must not keep the worker from reading for the others.

use super::lane::{Lane, Work};
use super::{Effect, Pipeline};
use crate::ledger::call::Input as Topic;

impl Pipeline {
    /// Once the worker reads no more, usage of shards that have been silent for long is let go of. It is read again from
    /// where each of them is, once it has answered.
    pub(super) fn let_go_of_silent(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let silent_ms = self.settings.silent_ms;
        let since = |lane: &Lane| lane.silent_since_ms.filter(|since| now_ms >= since + silent_ms && !lane.reread);
        let Some(first) = self.lanes.iter().filter_map(since).min() else { return };
        // Where nobody answers, nobody would gain, and the log would be read for nothing.
        let answers = |lane: &Lane| lane.answered_at_ms.is_some_and(|at_ms| at_ms > first + silent_ms / 2);
        if self.wants_more(Topic::Usage) || !self.lanes.iter().any(answers) {
            return;
        }
        for (shard, lane) in (0..).zip(&mut self.lanes) {
            if since(lane).is_some() && matches!(lane.work, Work::InFlight { .. } | Work::Retry { .. }) {
                effects.push(Effect::LetGo { shard, records: lane.let_go() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::recall::tests::{PARTITION, asked, pipeline, read, recall, recalled, record};
    use super::*;
    use crate::ledger::call::Reply;
    use crate::pipeline::{Answer, Input};

    /// Two shards, of which the first has not answered since 20 ms, and a queue that is full for it.
    fn full() -> Pipeline {
        let mut pipeline = pipeline(2);
        let effects = pipeline.on(0, Input::Assigned(vec![(PARTITION, vec![10, 10])]));
        recalled(&mut pipeline, recall(&effects).expect("what was published is asked for"));
        let calls = read(&mut pipeline, 0, 0, vec![record(10, (0, 2)), record(11, (1, 2))]);
        pipeline.on(20, Input::Answered { shard: 1, id: calls[&1], answer: Answer::Apply(Reply::DoneBefore) });
        pipeline.on(20, Input::Answered { shard: 0, id: calls[&0], answer: Answer::None });
        let records = (12..112).map(|offset| record(offset, (0, 2))).collect();
        pipeline.on(30, Input::Records { partition: PARTITION, epoch: 0, records });
        assert!(!pipeline.wants_more(Topic::Usage));
        pipeline
    }

    fn call(effects: &[Effect], of: u32) -> Option<u64> {
        effects.iter().find_map(|effect| match effect {
            Effect::Call { shard, id, .. } if *shard == of => Some(*id),
            _ => None,
        })
    }

    fn let_go(effects: &[Effect]) -> Option<(u32, usize)> {
        effects.iter().find_map(|effect| match effect {
            Effect::LetGo { shard, records } => Some((*shard, *records)),
            _ => None,
        })
    }

    #[test]
    fn what_waits_for_a_silent_shard_is_let_go_and_read_again_once_it_answers() {
        let mut pipeline = full();
        let effects = pipeline.on(900, Input::Probe);
        let id = call(&effects, 0).expect("it goes out again");
        let (generation, positions) = (Some("g".into()), BTreeMap::from([(PARTITION, 12)]));
        let told = Input::Positions { shard: 1, id: asked(&effects)[&1], generation, positions };
        assert_eq!(let_go(&pipeline.on(910, told)), None, "it may answer yet");
        let effects = pipeline.on(1_020, Input::Tick);
        assert_eq!(let_go(&effects), Some((0, 100)));
        assert!(pipeline.wants_more(Topic::Usage), "others are read for");
        let sweep = call(&effects, 1).expect("the other is told how far was read");
        let told = Input::Answered { shard: 1, id: sweep, answer: Answer::Apply(Reply::DoneBefore) };
        assert_eq!(let_go(&pipeline.on(1_030, told)), None, "once");
        let more = vec![record(112, (0, 2)), record(113, (1, 2))];
        assert_eq!(read(&mut pipeline, 1_040, 0, more).keys().collect::<Vec<_>>(), [&1]);

        let answer = Answer::Apply(Reply::DoneBefore);
        let effects = pipeline.on(2_000, Input::Answered { shard: 0, id, answer });
        let rewind = effects.iter().find_map(|effect| match effect {
            Effect::Rewind { offset, .. } => Some(*offset),
            _ => None,
        });
        assert_eq!(rewind, Some(12), "from behind the range that it had in hand");
    }

    #[test]
    fn nothing_is_let_go_where_no_shard_answers() {
        let mut pipeline = full();
        for second in 1..60 {
            assert_eq!(let_go(&pipeline.on(1_000 * second, Input::Probe)), None);
        }
        assert!(!pipeline.wants_more(Topic::Usage));
    }
}
