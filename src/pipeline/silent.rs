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
