//! The way of records from partitions to shards, without IO: `on(now, Input) -> Vec<Effect>`.
//!
//! Each shard has a lane. A lane cuts batches, keeps each until the shard has answered for it, and follows
//! the shard's answers: it prices again, waits, trims, rewinds or halts. It never skips.

/// What a lane does with its shard's answer.
mod answers;
/// From records to a call.
pub mod batch;
/// Too many dead records.
mod dead;
/// What goes in, and what is to be done.
mod io;
/// The lane to one shard.
pub mod lane;
/// Records in the order of their times.
pub mod order;
/// A shard that has fallen back.
mod recall;
/// A decoded record.
pub mod record;
/// What was published about records that a shard has forgotten.
pub mod recorded;
/// What a call has changed.
pub mod report;
/// Another catalogue.
mod repricing;
/// A shard that does not answer.
mod silent;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ledger::call::{Input as Topic, LastRead, Note, Partition, Stamp};
use crate::ledger::catalogue::Catalogue;

pub use dead::DeadLimit;
pub use io::{Answer, Effect, Input, Progress};

use batch::{Accounts, Batch, Call, Known};
use dead::DeadWindows;
use lane::{Bounds, Lane, Probe, Push, ReadTo, Work};
use record::{Body, Record};
use recorded::{Decision, Recorded};

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub shards: u32,
    pub bounds: Bounds,
    /// Records that wait before the worker stops reading.
    pub queue_max: usize,
    pub dead_limit: DeadLimit,
    /// How long after its end a closed cycle is looked at again.
    pub late_after_ms: i64,
    /// Records of a shard that has not answered for so long may be let go of, and read again later.
    pub silent_ms: u64,
    /// Records go in the order in which they were appended, whatever their partition, as far as the log reached when
    /// reading began ([`Input::LogEnds`]): in a rebuild, and where records have times of their own.
    pub in_order: bool,
}

#[derive(Debug)]
pub struct Pipeline {
    settings: Settings,
    stamp: Arc<Stamp>,
    catalogue: Arc<Catalogue>,
    accounts: Accounts,
    partitions: BTreeMap<Partition, Reading>,
    lanes: Vec<Lane>,
    dead: BTreeMap<Partition, DeadWindows>,
    /// What the question is about that has no answer yet.
    recalling: Option<u64>,
    /// Some lane is shut, and no question is under way that would open them all.
    forgetful: bool,
    recorded: Recorded,
    last_id: u64,
    stopping: bool,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    read: ReadTo,
    epoch: u32,
    /// Where the log ended when reading began.
    log_end: Option<i64>,
}

impl Reading {
    fn begin_again(&mut self, offset: i64) {
        // What was read already lies in the log, too.
        self.log_end = self.log_end.map(|end| end.max(self.read.offset));
        self.read = ReadTo { offset, last: None };
        self.epoch += 1;
    }
}

impl Pipeline {
    pub fn new(settings: Settings, stamp: Arc<Stamp>, catalogue: Arc<Catalogue>) -> Pipeline {
        let lanes = (0..settings.shards).map(|_| Lane::default()).collect();
        Pipeline {
            settings,
            stamp,
            catalogue,
            accounts: Accounts::default(),
            partitions: BTreeMap::new(),
            lanes,
            dead: BTreeMap::new(),
            recalling: None,
            forgetful: false,
            recorded: Recorded::default(),
            last_id: 0,
            stopping: false,
        }
    }

    /// `now_ms` is any clock that does not go back: it paces retries and decides nothing else.
    pub fn on(&mut self, now_ms: u64, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Assigned(partitions) => self.assigned(partitions),
            Input::Revoked => self.assigned(Vec::new()),
            Input::Records { partition, epoch, records } => {
                self.records(now_ms, partition, epoch, records, &mut effects)
            }
            Input::ReadTo { partition, epoch, offset } => self.read_to(partition, epoch, offset),
            Input::LogEnds(ends) => self.log_ends(ends),
            Input::Answered { shard, id, answer } => self.answered(now_ms, shard, id, answer, &mut effects),
            Input::CommandsEnd { shard, id, offset } => {
                if let Some(hold) = self.lane(shard).hold.as_mut().filter(|hold| hold.id == id) {
                    hold.commands_end = Some(offset);
                }
            }
            Input::Recalled { id, published, commands_end } => self.recalled(id, published, commands_end),
            Input::DeadLettersProduced { shard, id } => self.dead_letters_produced(now_ms, shard, id, &mut effects),
            Input::Probe => self.probe(&mut effects),
            Input::Positions { shard, id, generation, positions } => {
                self.lane(shard).answered_at_ms = Some(now_ms);
                self.probed(shard, id, generation, &positions, &mut effects);
            }
            Input::NoPositions { shard, id } => self.probe_failed(shard, id),
            Input::Halt { shard, reason } => self.halt(shard, &mut effects, reason),
            Input::Catalogue(catalogue) => self.reprice(catalogue, &mut effects),
            Input::Tick => {}
        }
        if self.forgetful {
            self.ask_suspects(&mut effects);
        }
        if !self.stopping {
            for shard in 0..self.settings.shards {
                self.advance(now_ms, shard, &mut effects);
            }
        }
        self.let_go_of_silent(now_ms, &mut effects);
        effects
    }

    /// Whether the worker should go on reading a topic. Usage that waits for commands must not keep them out.
    pub fn wants_more(&self, input: Topic) -> bool {
        // What a silent shard has in hand was counted when it was read, and stays.
        let lanes = self.lanes.iter().filter(|lane| !lane.reread);
        lanes.map(|lane| lane.queued_of(input)).sum::<usize>() < self.settings.queue_max
    }

    pub fn queued(&self) -> usize {
        Topic::ALL.into_iter().flat_map(|input| self.lanes.iter().map(move |lane| lane.queued_of(input))).sum()
    }

    /// When the next `Tick` is due; `None`: not before another input.
    pub fn due_at_ms(&self) -> Option<u64> {
        if self.stopping {
            return None;
        }
        let (bounds, order) = (self.settings.bounds, self.order());
        let waits = |lane: &&Lane| lane.shut.is_some() && matches!(lane.work, Work::Idle);
        let lanes = self.lanes.iter().filter(|lane| !waits(lane));
        lanes.filter_map(|lane| lane.due_at_ms(bounds, lane.behind(|p| self.read(p)), order)).min()
    }

    pub fn progress(&self) -> Vec<Progress> {
        let progress = |(&partition, reading): (&Partition, &Reading)| Progress {
            partition,
            applied: self.lanes.iter().filter_map(|lane| lane.applied(partition)).min().unwrap_or(0),
            read: reading.read.offset,
            oldest_append_ms: self.lanes.iter().filter_map(|lane| lane.oldest_append_ms(partition)).min(),
        };
        self.partitions.iter().map(progress).collect()
    }

    /// Whether what was published is being read, and lanes wait for it.
    pub fn recalling(&self) -> bool {
        self.recalling.is_some()
    }

    /// How many commands the shard waits for that is furthest behind in a partition of usage, before it goes on: those that were
    /// there before usage of an account that it does not know.
    pub fn awaited_commands(&self, partition: Partition) -> Option<i64> {
        let (_, lane) =
            self.lanes.iter().filter_map(|lane| Some((lane.applied(partition)?, lane))).min_by_key(|of| of.0)?;
        let hold = lane.hold.filter(|_| partition != Partition::COMMANDS)?;
        let awaited = hold.commands_end? - hold.commands_at.or(lane.applied(Partition::COMMANDS))?;
        (awaited > 0).then_some(awaited)
    }

    /// Cuts no more batches; what is under way is answered and finished.
    pub fn stop_cutting(&mut self) {
        self.stopping = true;
    }

    pub fn in_flight(&self) -> usize {
        self.lanes.iter().filter(|lane| matches!(lane.work, Work::InFlight { .. })).count()
    }

    pub fn halted(&self) -> usize {
        self.lanes.iter().filter(|lane| matches!(lane.work, Work::Halted)).count()
    }

    fn lane(&mut self, shard: u32) -> &mut Lane {
        &mut self.lanes[shard as usize]
    }

    fn read(&self, partition: Partition) -> ReadTo {
        self.partitions.get(&partition).map(|reading| reading.read).unwrap_or_default()
    }

    fn assigned(&mut self, partitions: Vec<(Partition, Vec<i64>)>) {
        self.partitions.clear();
        self.dead.clear();
        self.recorded = Recorded::default();
        self.recalling = None;
        self.forgetful = true;
        let shut = Some(self.next_id());
        for lane in &mut self.lanes {
            *lane = Lane::default();
            lane.shut = shut;
        }
        for (partition, positions) in partitions {
            assert_eq!(positions.len(), self.lanes.len(), "every shard has a position");
            let read = ReadTo { offset: positions.iter().copied().min().unwrap_or(0), last: None };
            self.partitions.insert(partition, Reading { read, epoch: 0, log_end: None });
            for (lane, position) in self.lanes.iter_mut().zip(positions) {
                lane.start(partition, position);
            }
        }
    }

    fn records(
        &mut self,
        now_ms: u64,
        partition: Partition,
        epoch: u32,
        records: Vec<Record>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(reading) = self.partitions.get_mut(&partition).filter(|reading| reading.epoch == epoch) else {
            return;
        };
        if let Some(last) = records.last() {
            let before_ms = reading.read.last.map_or(i64::MIN, |last| last.reached_ms);
            let reached_ms = records.iter().map(|record| record.append_ms).max().unwrap_or(i64::MIN).max(before_ms);
            reading.read.offset = reading.read.offset.max(last.offset + 1);
            reading.read.last = Some(LastRead { reached_ms, ..last.last_read() });
        }
        let shards = self.settings.shards;
        for record in records.into_iter().filter(|record| !matches!(record.body, Body::Tick)) {
            let shard = record.shard(shards);
            let (partition, offset) = (record.partition, record.offset);
            if self.lane(shard).push(record, now_ms) == Push::Contradiction {
                let reason = format!(
                    "{partition}@{offset} came although the log was seen to hold no record there, and its position may be \
                     past it: restart the worker; if it halts again, report it"
                );
                self.halt(shard, effects, reason);
            }
        }
    }

    fn read_to(&mut self, partition: Partition, epoch: u32, offset: i64) {
        if let Some(reading) = self.partitions.get_mut(&partition).filter(|reading| reading.epoch == epoch) {
            reading.read.offset = reading.read.offset.max(offset);
        }
    }

    /// Sends what is due on an idle lane.
    fn advance(&mut self, now_ms: u64, shard: u32, effects: &mut Vec<Effect>) {
        let (bounds, order) = (self.settings.bounds, self.order());
        let partitions = &self.partitions;
        let read = |partition: Partition| partitions.get(&partition).map(|reading| reading.read).unwrap_or_default();
        let lane = &mut self.lanes[shard as usize];
        match &lane.work {
            Work::Idle if lane.reread => self.read_again(shard, effects),
            Work::Idle if lane.shut.is_some() => {}
            Work::Idle => {
                if let Some(batch) = lane.cut(bounds, now_ms, read, order) {
                    self.send(now_ms, shard, batch, effects);
                }
            }
            Work::Retry { at_ms, .. } if now_ms >= *at_ms => {
                let Work::Retry { batch, call, attempts, .. } = std::mem::take(&mut lane.work) else { return };
                if call.stamp().catalogue == self.stamp.catalogue {
                    return self.send_again(shard, batch, call, attempts, effects);
                }
                // Made anew: a shard that has fallen back to the old catalogue must not take it. The fence keeps out
                // whichever comes second, should this one arrive after all.
                lane.put_back(batch, now_ms);
            }
            Work::Retry { .. }
            | Work::InFlight { .. }
            | Work::DeadLetters { .. }
            | Work::OtherCatalogue { .. }
            | Work::Halted => {}
        }
    }

    /// Sends a batch; if it holds accounts that the worker does not know, a question for them goes first: a call that is
    /// refused since it was priced without them costs half of one that is applied.
    fn send(&mut self, now_ms: u64, shard: u32, batch: Batch, effects: &mut Vec<Effect>) {
        let Some((batch, call)) = self.price(now_ms, shard, batch, effects) else { return };
        // Those that wait for commands were asked for before.
        let question = match &call {
            Call::Apply(call) if batch.commands_end.is_none() => call.question(),
            _ => None,
        };
        let call = question.map_or(call, |question| Call::Apply(Arc::new(question)));
        self.send_again(shard, batch, call, 0, effects);
    }

    /// Sends a batch whose accounts were asked for. Those that the shard has not shown do not exist, or were made since.
    fn send_asked(&mut self, now_ms: u64, shard: u32, batch: Batch, effects: &mut Vec<Effect>) {
        if let Some((batch, call)) = self.price(now_ms, shard, batch, effects) {
            self.send_again(shard, batch, call, 0, effects);
        }
    }

    /// Makes a batch's call; `None`: it is put back, or its partition is halted, since too much of it is dead.
    fn price(&mut self, now_ms: u64, shard: u32, batch: Batch, effects: &mut Vec<Effect>) -> Option<(Batch, Call)> {
        let lane = &mut self.lanes[shard as usize];
        if lane.reread {
            lane.put_back(batch, now_ms);
            self.read_again(shard, effects);
            return None;
        }
        for record in &batch.records {
            if let Some(Decision::Dead(reason)) = self.recorded.of(record) {
                lane.dead.insert((record.partition, record.offset), *reason);
            }
        }
        let dead = &lane.dead;
        let call = batch.call(&Known {
            stamp: &self.stamp,
            catalogue: &self.catalogue,
            accounts: &self.accounts,
            dead,
            recorded: &self.recorded,
            commands_first: lane.commands_first,
            others: lane.others(&batch.ranges),
            late_after_ms: self.settings.late_after_ms,
        });
        if let Call::Roll(_) = &call
            && let Some(records) = batch.cut_at(&self.accounts)
        {
            let batch = self.lane(shard).shorten(batch, records, now_ms);
            return self.price(now_ms, shard, batch, effects);
        }
        // Before they are noted: a note decides for ever.
        let found = match &call {
            Call::Apply(call) => call.found.clone(),
            Call::Command(_) | Call::Roll(_) => Vec::new(),
        };
        if let Call::Roll(roll) = &call
            && roll.commands_first.is_none()
            && batch.records.iter().any(|record| record.partition.input == Topic::Usage)
            && !batch.records.iter().all(|record| self.has_its_place(record))
        {
            // What was ordered before a renewal comes before it.
            self.hold(now_ms, shard, batch, None, effects);
            return None;
        }
        if let Some(partition) = self.too_many_dead(&found) {
            self.lane(shard).put_back(batch, 0);
            self.halt_partition(partition, effects);
            return None;
        }
        Some((batch, call))
    }

    fn send_again(&mut self, shard: u32, batch: Batch, call: Call, attempts: u32, effects: &mut Vec<Effect>) {
        let id = self.next_id();
        effects.push(Effect::Call { shard, id, call: call.clone() });
        let lane = self.lane(shard);
        lane.probe = Probe::None;
        lane.work = Work::InFlight { id, batch, call, attempts };
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn dead_letters_produced(&mut self, now_ms: u64, shard: u32, id: u64, effects: &mut Vec<Effect>) {
        let lane = self.lane(shard);
        if !matches!(&lane.work, Work::DeadLetters { id: current, .. } if *current == id) {
            return;
        }
        if let Work::DeadLetters { batch, .. } = std::mem::take(&mut lane.work) {
            self.send(now_ms, shard, batch, effects);
        }
    }

    fn halt(&mut self, shard: u32, effects: &mut Vec<Effect>, reason: String) {
        self.lane(shard).halt();
        effects.push(Effect::Halted { shard, reason });
    }

    /// The partition that has more dead records than it may.
    fn too_many_dead(&mut self, notes: &[Note]) -> Option<Partition> {
        let limit = self.settings.dead_limit;
        let alive = || self.lanes.iter().filter(|lane| !matches!(lane.work, Work::Halted));
        let too_many = |note: &&Note| {
            let applied = alive().filter_map(|lane| lane.applied(note.partition)).min().unwrap_or(0);
            self.dead.entry(note.partition).or_default().count(note.offset, applied, limit)
        };
        notes.iter().find(too_many).map(|note| note.partition)
    }

    fn halt_partition(&mut self, partition: Partition, effects: &mut Vec<Effect>) {
        if self.partitions.remove(&partition).is_none() {
            return;
        }
        for lane in &mut self.lanes {
            lane.forget(partition);
        }
        let DeadLimit { records, among } = self.settings.dead_limit;
        let reason = format!(
            "{partition}: more than {records} of {among} records are dead (the log and the dead-letter topic say why): \
             mend their producer, the catalogue or this program, or raise events.dead_letters_max, and restart the worker"
        );
        effects.push(Effect::HaltedPartition { partition, reason });
    }
}
