//! What a lane does with its shard's answer.

use super::batch::{Batch, Call};
use super::lane::{Hold, Work};
use super::report::Report;
use super::{Answer, Effect, Pipeline};
use crate::ledger::call::{ApplyCall, GrownDay, Note, Partition, Reply, StaleAccount, account_lost};
use crate::ledger::once::GrownMarks;
use crate::ledger::shard::{is_being_rebuilt, is_name_of_rebuild};

/// Accounts that a worker remembers; beyond, it forgets all and is told anew.
const ACCOUNTS_MAX: usize = 200_000;
/// Days of an account that a worker remembers; the shard tells those that it has forgotten.
const DAYS_KNOWN_MAX: usize = 64;
/// The wait before a call without an answer goes out again, doubled up to the longest.
const RETRY_MIN_MS: u64 = 20;
const RETRY_MAX_MS: u64 = 2_000;

impl Pipeline {
    pub(super) fn answered(&mut self, now_ms: u64, shard: u32, id: u64, answer: Answer, effects: &mut Vec<Effect>) {
        let lane = self.lane(shard);
        // An answer to a call from before an assignment is nobody's any more.
        if !matches!(&lane.work, Work::InFlight { id: current, .. } if *current == id) {
            return;
        }
        let Work::InFlight { batch, call, attempts, .. } = std::mem::take(&mut lane.work) else { return };
        match &answer {
            Answer::None => _ = lane.silent_since_ms.get_or_insert(now_ms),
            _ => (lane.silent_since_ms, lane.answered_at_ms) = (None, Some(now_ms)),
        }
        match answer {
            Answer::None => {
                let wait = (RETRY_MIN_MS << attempts.min(10)).min(RETRY_MAX_MS);
                lane.work = Work::Retry { at_ms: now_ms + wait, batch, call, attempts: attempts + 1 };
            }
            Answer::Halt { reason } => self.halt(shard, effects, reason),
            Answer::Apply(Reply::Stale(shown)) if call.is_question() => {
                self.learn(shown);
                self.send_asked(now_ms, shard, batch, effects);
            }
            Answer::Apply(Reply::Applied(_)) if call.is_question() => self.send_asked(now_ms, shard, batch, effects),
            Answer::Apply(Reply::Applied(applied)) => {
                if let Call::Apply(call) = &call {
                    if call.commands_first.is_some() {
                        self.lane(shard).commands_first = None;
                    }
                    self.learn_days(call, &applied.grown);
                    self.learn_marks(call, &applied.grown_marks);
                }
                let report = Report::of(&batch, &call, &applied);
                self.applied(shard, &batch, report, applied.outbox, effects);
            }
            Answer::Command(Reply::Applied(commanded)) => {
                let report = Report::of_command(&batch, commanded.outcome);
                self.applied(shard, &batch, report, commanded.outbox, effects);
            }
            Answer::Apply(Reply::OutboxFull { entries })
            | Answer::Command(Reply::OutboxFull { entries })
            | Answer::Roll(Reply::OutboxFull { entries }) => {
                effects.push(Effect::Refused { shard, kind: "outbox_full" });
                effects.push(Effect::Outbox { shard, entries });
                let at_ms = now_ms + RETRY_MAX_MS / 10;
                self.lane(shard).work = Work::Retry { at_ms, batch, call, attempts };
            }
            Answer::Roll(Reply::Stale(shown)) => {
                self.learn(shown);
                self.send(now_ms, shard, batch, effects);
            }
            Answer::Roll(reply) => self.refused(now_ms, shard, batch, reply, effects),
            Answer::Apply(reply) => self.refused(now_ms, shard, batch, reply, effects),
            Answer::Command(reply) => self.refused(now_ms, shard, batch, reply, effects),
        }
    }

    pub(super) fn applied(
        &mut self,
        shard: u32,
        batch: &Batch,
        report: Report,
        outbox: usize,
        effects: &mut Vec<Effect>,
    ) {
        self.recorded.applied(&batch.records);
        self.lane(shard).applied_up_to(batch);
        effects.push(Effect::Applied(report));
        effects.push(Effect::Outbox { shard, entries: outbox });
    }

    pub(super) fn refused<T>(
        &mut self,
        now_ms: u64,
        shard: u32,
        batch: Batch,
        reply: Reply<T>,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::Refused { shard, kind: reply.kind() });
        match reply {
            Reply::Applied(_) | Reply::OutboxFull { .. } => unreachable!("the caller has taken them"),
            Reply::DoneBefore => self.lane(shard).applied_up_to(&batch),
            Reply::OtherPosition(stored) => self.other_position(now_ms, shard, batch, &stored, effects),
            Reply::FellBack => {
                let lane = self.lane(shard);
                lane.put_back(batch, now_ms);
                self.suspect(shard);
            }
            Reply::Stale(stale) => {
                self.learn(stale);
                self.send(now_ms, shard, batch, effects);
            }
            Reply::Unknown { commands_position } => self.unknown(now_ms, shard, batch, commands_position, effects),
            Reply::Dead(notes) => {
                let id = self.next_id();
                let lane = self.lane(shard);
                let key = |note: &Note| (note.partition, note.offset);
                let new: Vec<Note> =
                    notes.into_iter().filter(|note| lane.dead.insert(key(note), note.reason).is_none()).collect();
                lane.work = Work::DeadLetters { id, batch };
                effects.push(Effect::ProduceDeadLetters { shard, id, notes: new.clone() });
                if let Some(partition) = self.too_many_dead(&new) {
                    self.halt_partition(partition, effects);
                }
            }
            Reply::OtherGeneration(stored) => self.other_generation(shard, stored, effects),
            Reply::Torn { begun, ended } => self.torn(shard, begun, ended, effects),
            Reply::AccountLost(account) => self.halt(shard, effects, account_lost(&account, shard)),
            // This worker's catalogue was changed while the call was on its way.
            Reply::OtherCatalogue(stored) if stored == self.stamp.catalogue => self.send(now_ms, shard, batch, effects),
            Reply::OtherCatalogue(stored) => {
                let lane = self.lane(shard);
                lane.put_back(batch, now_ms);
                lane.work = Work::OtherCatalogue { stored };
                effects.push(Effect::OtherCatalogue { shard });
            }
        }
    }

    /// Redis counted the writes to the shard, and has run half of one.
    fn torn(&mut self, shard: u32, begun: u64, ended: u64, effects: &mut Vec<Effect>) {
        let reason = format!(
            "redis ran half of what a script wrote when it loaded a torn append-only file ({begun} writes begun, {ended} \
             ended): its numbers are wrong; stop the workers, then `credit-meter rebuild --shard {shard}`"
        );
        self.halt(shard, effects, reason);
    }

    /// Usage waits for the commands that may make its account.
    pub(super) fn unknown(&mut self, now_ms: u64, shard: u32, batch: Batch, commands: i64, effects: &mut Vec<Effect>) {
        // The commands must move for the wait to end, and it asks too often for a probe to see where they are.
        self.hold(now_ms, shard, batch, Some(commands), effects);
        self.follow(shard, Partition::COMMANDS, commands, effects);
    }

    /// Puts a batch back until the commands that lay before it are applied.
    pub(super) fn hold(
        &mut self,
        now_ms: u64,
        shard: u32,
        batch: Batch,
        commands_at: Option<i64>,
        effects: &mut Vec<Effect>,
    ) {
        let commands_end = batch.commands_end;
        let records = self.lane(shard).put_back(batch, now_ms);
        let id = self.next_id();
        self.lane(shard).hold =
            Some(Hold { id, commands_end, commands_at, retry_at_ms: now_ms + RETRY_MIN_MS, records });
        if commands_end.is_none() {
            effects.push(Effect::AskCommandsEnd { shard, id });
        }
    }

    pub(super) fn other_generation(&mut self, shard: u32, stored: Option<String>, effects: &mut Vec<Effect>) {
        let reason = match stored {
            None => "redis holds nothing of it: it was emptied; restore its data, or `credit-meter rebuild`".to_owned(),
            Some(stored) if is_being_rebuilt(&stored, &self.stamp.generation) => {
                "a rebuild makes it anew: restart the worker once it is done; if none is running, stop the workers, and \
                 `credit-meter rebuild`"
                    .to_owned()
            }
            Some(_) if is_name_of_rebuild(&self.stamp.generation) => {
                "another rebuild has taken it over, or redis has fallen back: `credit-meter rebuild` goes on from where it was"
                    .to_owned()
            }
            Some(stored) => format!("redis holds another state, generation {stored}; restart the worker"),
        };
        self.halt(shard, effects, reason);
    }

    pub(super) fn other_position(
        &mut self,
        now_ms: u64,
        shard: u32,
        batch: Batch,
        stored: &[i64],
        effects: &mut Vec<Effect>,
    ) {
        let ranges = batch.ranges.clone();
        self.lane(shard).put_back(batch, now_ms);
        for (range, &position) in ranges.iter().zip(stored) {
            if position >= range.from {
                self.lane(shard).skip_to(range.partition, position);
            } else {
                self.rewind(shard, range.partition, position, false, effects);
            }
        }
    }

    /// The days that a call has begun are known from now on, and those that have more sets.
    pub(super) fn learn_days(&mut self, call: &ApplyCall, grown: &[GrownDay]) {
        for GrownDay { account, day, layout } in grown {
            if let Some(account) = self.accounts.get_mut(account) {
                account.days.insert(*day, layout.clone());
            }
        }
        for group in call.groups.iter().filter(|group| group.days.iter().any(|day| !day.known)) {
            let Some(account) = self.accounts.get_mut(&group.account) else { continue };
            for day in group.days.iter().filter(|day| !day.known) {
                account.days.insert(day.day, day.layout.clone());
            }
            while account.days.len() > DAYS_KNOWN_MAX {
                account.days.pop_first();
            }
        }
    }

    /// The same for marks.
    fn learn_marks(&mut self, call: &ApplyCall, grown: &[GrownMarks]) {
        for group in call.groups.iter().filter(|group| !group.marks.is_empty()) {
            let Some(account) = self.accounts.get_mut(&group.account) else { continue };
            account.marks.extend(group.marks.iter().map(|marks| (marks.cycle, marks.layout.clone())));
        }
        for GrownMarks { account, cycle, layout } in grown {
            if let Some(account) = self.accounts.get_mut(account) {
                account.marks.insert(*cycle, layout.clone());
            }
        }
    }

    pub(super) fn learn(&mut self, stale: Vec<StaleAccount>) {
        if self.accounts.len() + stale.len() > ACCOUNTS_MAX {
            self.accounts.clear();
        }
        for StaleAccount { account, view } in stale {
            match view {
                Some(view) => self.accounts.insert(account, view),
                None => self.accounts.remove(&account),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::super::recall::tests::{PARTITION, pipeline, read, recall, recalled, record};
    use super::*;

    #[test]
    fn usage_of_an_unknown_account_tells_how_many_commands_it_waits_for() {
        let mut pipeline = pipeline(1);
        // Another worker applies the commands.
        let effects = pipeline.on(0, Input::Assigned(vec![(PARTITION, vec![10])]));
        recalled(&mut pipeline, recall(&effects).expect("what was published is asked for"));
        let calls = read(&mut pipeline, 0, 0, vec![record(10, (0, 1))]);
        let answer = Answer::Apply(Reply::Unknown { commands_position: 3 });
        let effects = pipeline.on(20, Input::Answered { shard: 0, id: calls[&0], answer });
        let asked = effects.iter().find_map(|effect| match effect {
            Effect::AskCommandsEnd { id, .. } => Some(*id),
            _ => None,
        });
        assert_eq!(pipeline.awaited_commands(PARTITION), None, "where the commands end is not known yet");
        let id = asked.expect("it asks where they end");
        pipeline.on(30, Input::CommandsEnd { shard: 0, id, offset: 8 });
        assert_eq!(pipeline.awaited_commands(PARTITION), Some(5));
        pipeline.on(30, Input::CommandsEnd { shard: 0, id, offset: 3 });
        assert_eq!(pipeline.awaited_commands(PARTITION), None, "none is missing");
    }
}
