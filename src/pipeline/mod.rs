//! The way of records from partitions to shards, without IO: `on(now, Input) -> Vec<Effect>`.
//!
//! Each shard has a lane. A lane cuts batches, keeps each until the shard has answered for it, and follows
//! the shard's answers: it prices again, waits, trims, rewinds or halts. It never skips.

/// From records to a call.
pub mod batch;
/// The lane to one shard.
pub mod lane;
/// A decoded record.
pub mod record;
/// What was published about records that a shard has forgotten.
pub mod recorded;
/// What a call has changed.
pub mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ledger::call::{
    Applied, ApplyCall, Commanded, Input as Topic, LastRead, Note, Partition, Reply, StaleAccount, Stamp,
};
use crate::ledger::catalogue::Catalogue;

use batch::{Accounts, Batch, Call, Known};
use lane::{Bounds, Hold, Lane, Push, ReadTo, Work};
use record::{Body, Record};
use recorded::{Decision, Published, Recorded};
use report::Report;

/// Accounts that a worker remembers; beyond, it forgets all and is told anew.
const ACCOUNTS_MAX: usize = 200_000;
/// Days of an account that a worker remembers; the shard tells those that it has forgotten.
const DAYS_KNOWN_MAX: usize = 64;
/// The wait before a call without an answer goes out again, doubled up to the longest.
const RETRY_MIN_MS: u64 = 20;
const RETRY_MAX_MS: u64 = 2_000;

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub shards: u32,
    pub bounds: Bounds,
    /// Records that wait before the worker stops reading.
    pub queue_max: usize,
    pub dead_limit: DeadLimit,
}

/// Beyond so many dead records among so many offsets of a partition it halts: a bad price list or program must not
/// drain a topic into the dead letters.
#[derive(Clone, Copy, Debug)]
pub struct DeadLimit {
    pub records: usize,
    pub among: i64,
}

/// What happens to the pipeline.
#[derive(Debug)]
pub enum Input {
    /// Partitions, each with every shard's position. All state before it is dropped.
    Assigned(Vec<(Partition, Vec<i64>)>),
    Revoked,
    /// Records in the order of their partitions. `epoch` tells those read before a rewind apart.
    Records {
        partition: Partition,
        epoch: u32,
        records: Vec<Record>,
    },
    /// There is no record between the last one and this offset (control records, gaps).
    ReadTo {
        partition: Partition,
        epoch: u32,
        offset: i64,
    },
    Answered {
        shard: u32,
        id: u64,
        answer: Answer,
    },
    /// The end of the commands topic, for the lane that asked.
    CommandsEnd {
        shard: u32,
        id: u64,
        offset: i64,
    },
    /// What was published about the records that were asked for, and where the commands end.
    Recalled {
        id: u64,
        published: Vec<Published>,
        commands_end: i64,
    },
    /// The dead letters that a lane asked for are in Kafka.
    DeadLettersProduced {
        shard: u32,
        id: u64,
    },
    /// Ask the idle shards where they are: one that fell back to an older state says so only when it is asked.
    Probe,
    /// A shard's generation and positions, for the lane that asked.
    Positions {
        shard: u32,
        id: u64,
        generation: Option<String>,
        positions: BTreeMap<Partition, i64>,
    },
    /// Nothing may be sent to a shard any more.
    Halt {
        shard: u32,
        reason: String,
    },
    Tick,
}

/// What came of a call.
#[derive(Debug)]
pub enum Answer {
    Apply(Reply<Applied>),
    Command(Reply<Commanded>),
    /// Nothing was applied, or nobody knows.
    None,
}

/// What the pipeline wants done.
#[derive(Debug)]
pub enum Effect {
    Call {
        shard: u32,
        id: u64,
        call: Call,
    },
    AskCommandsEnd {
        shard: u32,
        id: u64,
    },
    ProduceDeadLetters {
        shard: u32,
        id: u64,
        notes: Vec<Note>,
    },
    AskPositions {
        shard: u32,
        id: u64,
    },
    /// Find what was published about records from these offsets on. Nothing new is sent before.
    Recall {
        id: u64,
        from: Vec<(Partition, i64)>,
    },
    /// Read a partition again from an offset, and mark what is read then with the epoch.
    Rewind {
        partition: Partition,
        offset: i64,
        epoch: u32,
    },
    Applied(Report),
    /// How much a shard's outbox holds.
    Outbox {
        shard: u32,
        entries: usize,
    },
    Refused {
        shard: u32,
        kind: &'static str,
    },
    Halted {
        shard: u32,
        reason: String,
    },
    /// Nothing more of a partition is applied; it need not be read.
    HaltedPartition {
        partition: Partition,
        reason: String,
    },
}

/// How far a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub partition: Partition,
    /// The smallest position over the shards, as far as this worker knows.
    pub applied: i64,
    pub read: i64,
    pub oldest_append_ms: Option<i64>,
}

#[derive(Debug)]
pub struct Pipeline {
    settings: Settings,
    stamp: Arc<Stamp>,
    catalogue: Arc<Catalogue>,
    accounts: Accounts,
    partitions: BTreeMap<Partition, Reading>,
    lanes: Vec<Lane>,
    /// Dead records by partition, in the window that began at the offset.
    dead: BTreeMap<Partition, DeadWindow>,
    /// What the question is about that has no answer yet.
    recalling: Option<u64>,
    /// A partition was assigned or rewound: what was published about its records is not known.
    forgetful: bool,
    recorded: Recorded,
    last_id: u64,
    stopping: bool,
}

#[derive(Clone, Debug, Default)]
struct DeadWindow {
    start: i64,
    offsets: BTreeSet<i64>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    read: ReadTo,
    epoch: u32,
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
            Input::Answered { shard, id, answer } => self.answered(now_ms, shard, id, answer, &mut effects),
            Input::CommandsEnd { shard, id, offset } => {
                if let Some(hold) = self.lane(shard).hold.as_mut().filter(|hold| hold.id == id) {
                    hold.commands_end = Some(offset);
                }
            }
            Input::Recalled { id, published, commands_end } => self.recalled(id, published, commands_end),
            Input::DeadLettersProduced { shard, id } => self.dead_letters_produced(shard, id, &mut effects),
            Input::Probe => self.probe(&mut effects),
            Input::Positions { shard, id, generation, positions } => {
                self.probed(shard, id, generation, &positions, &mut effects);
            }
            Input::Halt { shard, reason } => self.halt(shard, &mut effects, reason),
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
        effects
    }

    /// Whether the worker should go on reading a topic. Usage that waits for commands must not keep them out.
    pub fn wants_more(&self, input: Topic) -> bool {
        let queued: usize = self.lanes.iter().map(|lane| lane.queued_of(input)).sum();
        queued < self.settings.queue_max
    }

    pub fn queued(&self) -> usize {
        Topic::ALL.into_iter().flat_map(|input| self.lanes.iter().map(move |lane| lane.queued_of(input))).sum()
    }

    /// When the next `Tick` is due; `None`: not before another input.
    pub fn due_at_ms(&self) -> Option<u64> {
        if self.stopping {
            return None;
        }
        let bounds = self.settings.bounds;
        let unsure = self.forgetful || self.recalling.is_some();
        let waits = |lane: &&Lane| unsure && matches!(lane.work, Work::Idle);
        let lanes = self.lanes.iter().filter(|lane| !waits(lane));
        lanes.filter_map(|lane| lane.due_at_ms(bounds, lane.behind(|p| self.read(p)))).min()
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
        for lane in &mut self.lanes {
            *lane = Lane::default();
        }
        for (partition, positions) in partitions {
            assert_eq!(positions.len(), self.lanes.len(), "every shard has a position");
            let read = ReadTo { offset: positions.iter().copied().min().unwrap_or(0), last: None };
            self.partitions.insert(partition, Reading { read, epoch: 0 });
            for (lane, position) in self.lanes.iter_mut().zip(positions) {
                lane.start(partition, position);
            }
        }
    }

    /// First where the shards are that fell back, in all partitions, then what was published from there on.
    fn ask_suspects(&mut self, effects: &mut Vec<Effect>) {
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

    fn ask_positions(&mut self, shard: u32, effects: &mut Vec<Effect>) {
        let id = self.next_id();
        self.lane(shard).probe = Some(id);
        effects.push(Effect::AskPositions { shard, id });
    }

    /// Redis may be older than what was published: nothing is decided before it is known.
    fn recall(&mut self, effects: &mut Vec<Effect>) {
        let lowest = |partition: Partition| self.lanes.iter().filter_map(|lane| lane.applied(partition)).min();
        let from: Vec<_> =
            self.partitions.keys().filter_map(|&partition| Some((partition, lowest(partition)?))).collect();
        if !from.is_empty() {
            let id = self.next_id();
            self.recalling = Some(id);
            effects.push(Effect::Recall { id, from });
        }
    }

    fn recalled(&mut self, id: u64, published: Vec<Published>, commands_end: i64) {
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
        let bounds = self.settings.bounds;
        let partitions = &self.partitions;
        let read = |partition: Partition| partitions.get(&partition).map(|reading| reading.read).unwrap_or_default();
        let lane = &mut self.lanes[shard as usize];
        match &lane.work {
            Work::Idle if self.forgetful || self.recalling.is_some() => {}
            Work::Idle => {
                if let Some(batch) = lane.cut(bounds, now_ms, read) {
                    self.send(shard, batch, effects);
                }
            }
            Work::Retry { at_ms, .. } if now_ms >= *at_ms => {
                if let Work::Retry { batch, call, attempts, .. } = std::mem::take(&mut lane.work) {
                    self.send_again(shard, batch, call, attempts, effects);
                }
            }
            Work::Retry { .. } | Work::InFlight { .. } | Work::DeadLetters { .. } | Work::Halted => {}
        }
    }

    fn send(&mut self, shard: u32, batch: Batch, effects: &mut Vec<Effect>) {
        let lane = &mut self.lanes[shard as usize];
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
        });
        // Before they are noted: a note decides for ever.
        let found = match &call {
            Call::Apply(call) => call.found.clone(),
            Call::Command(_) => Vec::new(),
        };
        if let Some(partition) = self.too_many_dead(&found) {
            self.lane(shard).put_back(batch, 0);
            return self.halt_partition(partition, effects);
        }
        self.send_again(shard, batch, call, 0, effects);
    }

    fn send_again(&mut self, shard: u32, batch: Batch, call: Call, attempts: u32, effects: &mut Vec<Effect>) {
        let id = self.next_id();
        effects.push(Effect::Call { shard, id, call: call.clone() });
        let lane = self.lane(shard);
        lane.probe = None;
        lane.work = Work::InFlight { id, batch, call, attempts };
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn dead_letters_produced(&mut self, shard: u32, id: u64, effects: &mut Vec<Effect>) {
        let lane = self.lane(shard);
        if !matches!(&lane.work, Work::DeadLetters { id: current, .. } if *current == id) {
            return;
        }
        if let Work::DeadLetters { batch, .. } = std::mem::take(&mut lane.work) {
            self.send(shard, batch, effects);
        }
    }

    fn answered(&mut self, now_ms: u64, shard: u32, id: u64, answer: Answer, effects: &mut Vec<Effect>) {
        let lane = self.lane(shard);
        // An answer to a call from before an assignment is nobody's any more.
        if !matches!(&lane.work, Work::InFlight { id: current, .. } if *current == id) {
            return;
        }
        let Work::InFlight { batch, call, attempts, .. } = std::mem::take(&mut lane.work) else { return };
        match answer {
            Answer::None => {
                let wait = (RETRY_MIN_MS << attempts.min(10)).min(RETRY_MAX_MS);
                lane.work = Work::Retry { at_ms: now_ms + wait, batch, call, attempts: attempts + 1 };
            }
            Answer::Apply(Reply::Applied(applied)) => {
                if let Call::Apply(call) = &call {
                    if call.commands_first.is_some() {
                        self.lane(shard).commands_first = None;
                    }
                    self.learn_days(call);
                }
                let report = Report::of(&batch, &call, &applied.verdicts, None);
                self.applied(shard, &batch, report, applied.outbox, effects);
            }
            Answer::Command(Reply::Applied(commanded)) => {
                let report = Report::of(&batch, &call, &[], Some(commanded.outcome));
                self.applied(shard, &batch, report, commanded.outbox, effects);
            }
            Answer::Apply(Reply::OutboxFull { entries }) | Answer::Command(Reply::OutboxFull { entries }) => {
                effects.push(Effect::Refused { shard, kind: "outbox_full" });
                effects.push(Effect::Outbox { shard, entries });
                let at_ms = now_ms + RETRY_MAX_MS / 10;
                self.lane(shard).work = Work::Retry { at_ms, batch, call, attempts };
            }
            Answer::Apply(reply) => self.refused(now_ms, shard, batch, reply, effects),
            Answer::Command(reply) => self.refused(now_ms, shard, batch, reply, effects),
        }
    }

    fn applied(&mut self, shard: u32, batch: &Batch, report: Report, outbox: usize, effects: &mut Vec<Effect>) {
        self.recorded.applied(&batch.records);
        self.lane(shard).applied_up_to(batch);
        effects.push(Effect::Applied(report));
        effects.push(Effect::Outbox { shard, entries: outbox });
    }

    fn refused<T>(&mut self, now_ms: u64, shard: u32, batch: Batch, reply: Reply<T>, effects: &mut Vec<Effect>) {
        effects.push(Effect::Refused { shard, kind: reply.kind() });
        match reply {
            Reply::Applied(_) | Reply::OutboxFull { .. } => unreachable!("the caller has taken them"),
            Reply::DoneBefore => self.lane(shard).applied_up_to(&batch),
            Reply::OtherPosition(stored) => self.other_position(now_ms, shard, batch, &stored, effects),
            Reply::FellBack => {
                let lane = self.lane(shard);
                lane.put_back(batch, now_ms);
                lane.suspect = true;
                self.forgetful = true;
            }
            Reply::Stale(stale) => {
                self.learn(stale);
                self.send(shard, batch, effects);
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
            Reply::AccountLost(account) => {
                let reason = format!(
                    "account `{account}` is in its due set, but its hash is gone: redis has evicted or deleted it; restore \
                     its data"
                );
                self.halt(shard, effects, reason);
            }
            Reply::OtherCatalogue(stored) => {
                let (version, own) = (stored.version, self.stamp.catalogue.version);
                let reason = format!(
                    "it is priced by catalogue version {version} ({}), this worker has version {own} ({}): \
                     give all workers the same file and restart them",
                    stored.hash, self.stamp.catalogue.hash,
                );
                self.halt(shard, effects, reason);
            }
        }
    }

    /// Usage waits for the commands that may make its account.
    fn unknown(&mut self, now_ms: u64, shard: u32, batch: Batch, commands: i64, effects: &mut Vec<Effect>) {
        let (commands_end, records) = (batch.commands_end, batch.records.len());
        self.lane(shard).put_back(batch, now_ms);
        // The commands must move for the wait to end, and it asks too often for a probe to see where they are.
        self.follow(shard, Partition::COMMANDS, commands, effects);
        let id = self.next_id();
        self.lane(shard).hold = Some(Hold { id, commands_end, retry_at_ms: now_ms + RETRY_MIN_MS, records });
        if commands_end.is_none() {
            effects.push(Effect::AskCommandsEnd { shard, id });
        }
    }

    fn other_generation(&mut self, shard: u32, stored: Option<String>, effects: &mut Vec<Effect>) {
        let reason = match stored {
            None => "redis holds nothing of it: it was emptied; restore its data".to_owned(),
            Some(stored) => format!("redis holds another state, generation {stored}; restart the worker"),
        };
        self.halt(shard, effects, reason);
    }

    fn halt(&mut self, shard: u32, effects: &mut Vec<Effect>, reason: String) {
        self.lane(shard).halt();
        effects.push(Effect::Halted { shard, reason });
    }

    /// The days that a call has begun are known from now on.
    fn learn_days(&mut self, call: &ApplyCall) {
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

    /// The partition that has more dead records than it may.
    fn too_many_dead(&mut self, notes: &[Note]) -> Option<Partition> {
        let limit = self.settings.dead_limit;
        for note in notes {
            let window = self.dead.entry(note.partition).or_default();
            if note.offset >= window.start + limit.among {
                *window = DeadWindow { start: note.offset, ..DeadWindow::default() };
            }
            window.offsets.insert(note.offset);
            if window.offsets.len() > limit.records {
                return Some(note.partition);
            }
        }
        None
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

    fn learn(&mut self, stale: Vec<StaleAccount>) {
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

    fn other_position(&mut self, now_ms: u64, shard: u32, batch: Batch, stored: &[i64], effects: &mut Vec<Effect>) {
        let ranges = batch.ranges.clone();
        self.lane(shard).put_back(batch, now_ms);
        for (range, &position) in ranges.iter().zip(stored) {
            if position >= range.from {
                self.lane(shard).skip_to(range.partition, position);
            } else {
                self.rewind(shard, range.partition, position, effects);
            }
        }
    }

    fn probe(&mut self, effects: &mut Vec<Effect>) {
        for shard in 0..self.settings.shards {
            if matches!(self.lane(shard).work, Work::Idle) {
                self.ask_positions(shard, effects);
            }
        }
    }

    fn probed(
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
    fn follow(&mut self, shard: u32, partition: Partition, position: i64, effects: &mut Vec<Effect>) {
        let Some(applied) = self.lane(shard).applied(partition) else { return };
        if position > applied {
            self.lane(shard).skip_to(partition, position);
        } else if position < applied {
            self.rewind(shard, partition, position, effects);
        }
    }

    /// The shard has lost what it had applied (an older copy was restored, or a replica took over).
    fn rewind(&mut self, shard: u32, partition: Partition, position: i64, effects: &mut Vec<Effect>) {
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
