//! Workers, shards and a log, and one step of what may happen to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use credit_meter::ingest::in_step::InStep;
use credit_meter::ledger::call::{Input as Topic, Note, OutboxEntry, Partition, Reply, Stamp};
use credit_meter::ledger::catalogue::{Catalogue, Conditions};
use credit_meter::ledger::shard::{Grown, InitCall, InitReply, Shard};
use credit_meter::ledger::time::rfc3339;
use credit_meter::pipeline::batch::Call;
use credit_meter::pipeline::lane::Bounds;
use credit_meter::pipeline::record::Record;
use credit_meter::pipeline::{Answer, DeadLimit, Effect, Input, Pipeline, Settings};
use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{Rng, SeedableRng};

use super::check::end_of;
use super::log::{as_read, make_log};
use super::{CATALOGUE, NOW_MS, PRICES, SHARDS};

/// What workers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    Serve,
    /// Records have times of their own, and those of the log so far order them.
    Backlog,
    /// The log's order is all that may decide.
    Rebuild,
}

pub struct World {
    pub seed: u64,
    pub rng: SmallRng,
    pub now_ms: u64,
    pub log: BTreeMap<Partition, Vec<Record>>,
    pub shards: Vec<Shard>,
    pub snapshots: Vec<(usize, Shard)>,
    pub workers: Vec<Worker>,
    /// Calls that are on their way, or that someone has given up and that still arrive.
    pub calls: Vec<OnItsWay>,
    pub dead_letters: BTreeSet<Note>,
    /// What the relay has published.
    pub published: Vec<OutboxEntry>,
    /// Two workers on the same partitions decide without knowing what the other has published.
    pub zombies: bool,
    pub stamp: Arc<Stamp>,
    /// The one in force; shards that fell back may have an older one.
    pub catalogue: Arc<Catalogue>,
    /// From when on each of the prices counts that were added.
    pub starts: Vec<i64>,
    pub faulty: bool,
    pub job: Job,
    /// Seconds that a shard takes to say where it is.
    pub slow: u32,
    /// A shard whose calls have no answer, though some arrive.
    pub silent: Option<usize>,
    pub met: BTreeMap<&'static str, u64>,
}

pub struct Worker {
    pub pipeline: Pipeline,
    pub cursors: BTreeMap<Partition, Cursor>,
    pub dead_letters: Vec<(u32, u64, Vec<Note>)>,
    pub asks: Vec<(u32, u64)>,
    pub probes: Vec<Question>,
    pub recalls: Vec<(u64, Vec<(Partition, i64)>)>,
    /// Shards whose last call was a question for accounts.
    pub asked: BTreeSet<u32>,
    /// Some shard has another catalogue.
    pub other_catalogue: bool,
    /// What the reader keeps of events.
    pub conditions: Conditions,
    /// What the reader has read and the pipeline has not seen yet.
    pub inbox: VecDeque<Input>,
    pub in_step: InStep,
}

impl Worker {
    /// Events of an account that the worker does not know are sent only after a question for it.
    fn check_asked(&mut self, seed: u64, shard: u32, call: &Call) {
        if call.is_question() {
            self.asked.insert(shard);
        } else if let Call::Apply(call) = call {
            if call.question().is_none() {
                self.asked.remove(&shard);
            } else {
                let asked = self.asked.contains(&shard) || call.commands_end.is_some();
                assert!(asked, "seed {seed}: shard {shard} was not asked for the accounts of {call:?}");
            }
        }
    }
}

#[derive(Clone, Copy)]
pub struct Cursor {
    pub next: i64,
    pub epoch: u32,
}

/// Where a shard is.
pub struct Question {
    pub shard: u32,
    pub id: u64,
    /// What it saw, if it has come to the shard already.
    pub seen: Option<BTreeMap<Partition, i64>>,
    /// Seconds since it was asked.
    pub waits: u32,
}

pub struct OnItsWay {
    pub worker: usize,
    pub shard: u32,
    pub id: u64,
    pub call: Call,
    pub given_up: bool,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let log = make_log(&mut rng);
        let job = if rng.random_bool(0.3) { Job::Backlog } else { Job::Serve };
        World::of_log(seed, rng, log, job)
    }

    pub fn of_log(seed: u64, mut rng: SmallRng, log: BTreeMap<Partition, Vec<Record>>, job: Job) -> World {
        let catalogue = Arc::new(Catalogue::parse(CATALOGUE).expect("it is good"));
        let stamp = Arc::new(Stamp {
            generation: "g".into(),
            catalogue: catalogue.id.clone(),
            usage_topic: "credits.usage".into(),
            restamp_tolerance_ms: 600_000,
            breakdown: true,
            outbox_max: usize::MAX,
            set_members_max: 8,
            journal_bytes_max: 8192,
        });
        let rng_zombies = rng.random_bool(0.5);
        let slow = if rng.random_bool(0.3) { 3 } else { 0 };
        let init = InitCall {
            generation: "g".into(),
            shards: SHARDS,
            catalogue: catalogue.id.clone(),
            catalogue_text: catalogue.text.clone(),
            grown: None,
            starts: Vec::new(),
            first_start: true,
        };
        let shards = (0..SHARDS).map(|_| {
            let mut shard = Shard::default();
            assert_eq!(shard.init(&init), InitReply::Ready);
            shard
        });
        let mut world = World {
            seed,
            rng,
            now_ms: 0,
            log,
            shards: shards.collect(),
            snapshots: Vec::new(),
            workers: Vec::new(),
            calls: Vec::new(),
            dead_letters: BTreeSet::new(),
            published: Vec::new(),
            zombies: rng_zombies,
            stamp,
            catalogue,
            starts: Vec::new(),
            faulty: true,
            job,
            slow,
            silent: None,
            met: BTreeMap::new(),
        };
        world.add_worker();
        world
    }

    fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_insert(0) += 1;
    }

    fn add_worker(&mut self) {
        let bounds = Bounds { max_events: self.rng.random_range(1..20), max_bytes: 2_000, max_age_ms: 5 };
        let settings = Settings {
            shards: SHARDS,
            bounds,
            queue_max: self.rng.random_range(20..100),
            dead_limit: DeadLimit { records: 1_000, among: 1_000 },
            late_after_ms: 259_200_000,
            silent_ms: 100,
            in_order: self.job != Job::Serve,
        };
        self.workers.push(Worker {
            pipeline: Pipeline::new(settings, self.stamp.clone(), self.catalogue.clone()),
            cursors: BTreeMap::new(),
            dead_letters: Vec::new(),
            asks: Vec::new(),
            probes: Vec::new(),
            recalls: Vec::new(),
            asked: BTreeSet::new(),
            other_catalogue: false,
            conditions: self.catalogue.conditions(),
            inbox: VecDeque::new(),
            in_step: InStep::default(),
        });
        self.assign(self.workers.len() - 1);
    }

    /// Gives a worker all partitions at the shards' positions, as they are now.
    fn assign(&mut self, worker: usize) {
        let of = |partition: &Partition| self.shards.iter().map(|shard| shard.position(*partition)).collect::<Vec<_>>();
        let positions: Vec<_> = self.log.keys().map(|partition| (*partition, of(partition))).collect();
        let cursors = positions.iter().map(|(partition, each)| {
            (*partition, Cursor { next: *each.iter().min().expect("there are shards"), epoch: 0 })
        });
        self.workers[worker].cursors = cursors.collect();
        // What was read in another assignment is nobody's.
        self.workers[worker].inbox.clear();
        let mut log_ends: Vec<_> = self.log.iter().map(|(partition, records)| (*partition, end_of(records))).collect();
        if self.job == Job::Backlog {
            // The rest is appended later.
            log_ends.iter_mut().for_each(|(_, end)| *end = self.rng.random_range(0..=*end));
        }
        if self.job != Job::Serve {
            let cursors = &self.workers[worker].cursors;
            let each = log_ends.iter().map(|(partition, end)| (*partition, cursors[partition].next, *end));
            self.workers[worker].in_step =
                InStep::new(self.rng.random_range(5..30), each.collect::<Vec<_>>().into_iter());
        }
        self.on(worker, Input::Assigned(positions));
        self.workers[worker].inbox.push_back(Input::LogEnds(log_ends));
    }

    pub fn step(&mut self) {
        self.now_ms += self.rng.random_range(0..20);
        let worker = self.rng.random_range(0..self.workers.len());
        match self.rng.random_range(0..100) {
            0..20 => self.read(worker),
            20..40 => {
                if let Some(input) = self.workers[worker].inbox.pop_front() {
                    self.on(worker, input);
                }
            }
            40..69 => self.arrive(),
            69..70 if self.faulty && self.job != Job::Rebuild && self.starts.len() < PRICES => self.renew_catalogue(),
            70..80 => self.finish_side_work(worker),
            80..88 => self.on(worker, Input::Tick),
            88..90 => {
                self.workers[worker].probes.iter_mut().for_each(|question| question.waits += 1);
                self.on(worker, Input::Probe);
            }
            90..92 if self.faulty => self.assign(worker),
            92..94 if self.faulty && self.zombies && self.workers.len() < 3 => {
                // The group believes that the first is gone; it does not.
                self.meet("zombie");
                self.add_worker();
            }
            94 if self.faulty && self.rng.random_bool(0.2) => {
                let shard = self.rng.random_range(0..self.shards.len());
                self.silent = self.silent.is_none().then_some(shard);
            }
            94..97 => {
                let shard = self.rng.random_range(0..self.shards.len());
                self.snapshots.push((shard, self.shards[shard].clone()));
            }
            97..98 if self.faulty && !self.snapshots.is_empty() => {
                let (shard, state) = self.snapshots.choose(&mut self.rng).expect("there are some").clone();
                self.shards[shard] = state;
                // The server that held the calls is gone, and its connections with it.
                let (lost, kept): (Vec<_>, Vec<_>) = self.calls.drain(..).partition(|call| call.shard == shard as u32);
                self.calls = kept;
                for OnItsWay { worker, shard, id, given_up, .. } in lost {
                    if !given_up {
                        self.on(worker, Input::Answered { shard, id, answer: Answer::None });
                    }
                }
                // What is newer than the state that came back never happened.
                self.snapshots.retain(|(of, _)| *of != shard);
                self.meet("rollback");
            }
            98..100 => {
                let shard = self.shards.choose_mut(&mut self.rng).expect("there are shards");
                let taken = shard.take(shard.outbox_taken, 3);
                self.published.extend(taken.iter().map(|(_, entry)| entry.clone()));
                shard.take(shard.outbox_taken + taken.len() as u64, 0);
            }
            _ => {}
        }
    }

    /// Some records of a partition, in order, and perhaps the news that the rest of the offsets hold none.
    fn read(&mut self, worker: usize) {
        let partition =
            *self.log.keys().collect::<Vec<_>>().choose(&mut self.rng).expect("there are partitions").to_owned();
        let count = self.rng.random_range(1..15);
        let Some(cursor) = self.workers[worker].cursors.get(&partition).copied() else { return };
        let full = !self.workers[worker].pipeline.wants_more(partition.input);
        let paused = match partition.input {
            Topic::Usage if self.job != Job::Serve => {
                let Worker { in_step, pipeline, .. } = &mut self.workers[worker];
                in_step.ahead(full).contains(&partition) || full && !pipeline.waits_for_usage()
            }
            _ => full,
        };
        if paused {
            return self.meet("paused");
        }
        let rest = self.log[&partition].iter().filter(|record| record.offset >= cursor.next);
        let conditions = &self.workers[worker].conditions;
        let records: Vec<Record> = rest.take(count).map(|record| as_read(record, conditions)).collect();
        let epoch = cursor.epoch;
        let next = records.last().map_or(cursor.next, |record| record.offset + 1);
        if let Some(cursor) = self.workers[worker].cursors.get_mut(&partition) {
            cursor.next = next;
        }
        let at_end = self.log[&partition].last().is_none_or(|last| last.offset < next);
        self.workers[worker].in_step.read(partition, &records);
        if at_end {
            self.workers[worker].in_step.read_to(partition, end_of(&self.log[&partition]));
        }
        let inbox = &mut self.workers[worker].inbox;
        inbox.push_back(Input::Records { partition, epoch, records });
        if at_end {
            inbox.push_back(Input::ReadTo { partition, epoch, offset: end_of(&self.log[&partition]) });
        }
    }

    /// A call reaches its shard, or does not; its answer comes back, or does not.
    pub fn arrive(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.calls.len());
        let silent = self.faulty && self.silent == Some(self.calls[index].shard as usize);
        let lot = if silent {
            0
        } else if self.faulty {
            self.rng.random_range(0..10)
        } else {
            9
        };
        if lot == 0 && !self.calls[index].given_up {
            // Given up before it arrives: it may arrive at any time from now on.
            self.calls[index].given_up = true;
            let OnItsWay { worker, shard, id, .. } = self.calls[index];
            self.on(worker, Input::Answered { shard, id, answer: Answer::None });
            return;
        }
        let OnItsWay { worker, shard, id, call, given_up } = self.calls.swap_remove(index);
        if given_up {
            self.meet("late_call");
            if self.rng.random_bool(0.5) {
                return; // it was lost on its way
            }
        }
        let target = &mut self.shards[shard as usize];
        let (kind, answer) = match &call {
            Call::Apply(call) => {
                let reply = target.apply(call);
                (reply.kind(), Answer::Apply(reply))
            }
            Call::Command(call) => {
                let reply = target.command(call);
                (reply.kind(), Answer::Command(reply))
            }
            Call::Roll(call) => {
                let reply = target.roll(call);
                ("roll", Answer::Roll(reply))
            }
        };
        self.meet(if call.is_question() { "question" } else { kind });
        assert!(!matches!(answer, Answer::Apply(Reply::OtherGeneration(_))));
        if !given_up {
            let answer = if lot == 1 { Answer::None } else { answer };
            self.on(worker, Input::Answered { shard, id, answer });
        }
    }

    pub fn finish_side_work(&mut self, worker: usize) {
        if let Some((shard, id, notes)) = self.workers[worker].dead_letters.pop() {
            self.dead_letters.extend(notes);
            self.on(worker, Input::DeadLettersProduced { shard, id });
        }
        let probes = &mut self.workers[worker].probes;
        if let Some(due) = probes.iter().rposition(|question| question.waits >= self.slow) {
            let Question { shard, id, seen, .. } = probes.remove(due);
            if self.faulty && self.rng.random_bool(0.3) {
                self.on(worker, Input::NoPositions { shard, id });
            } else {
                let positions = seen.unwrap_or_else(|| self.positions(shard));
                if positions != self.positions(shard) {
                    self.meet("old_answer");
                }
                self.on(worker, Input::Positions { shard, id, generation: Some("g".into()), positions });
            }
        }
        if let Some((id, from)) = self.workers[worker].recalls.pop() {
            let published = self.published(&from);
            if !published.is_empty() {
                self.meet("recalled");
            }
            let commands_end = end_of(&self.log[&Partition::COMMANDS]);
            self.on(worker, Input::Recalled { id, published, commands_end });
        }
        if std::mem::take(&mut self.workers[worker].other_catalogue) {
            self.install();
            self.on(worker, Input::Catalogue(self.catalogue.clone()));
        }
        if let Some((shard, id)) = self.workers[worker].asks.pop() {
            let offset = end_of(&self.log[&Partition::COMMANDS]);
            self.on(worker, Input::CommandsEnd { shard, id, offset });
        }
    }

    pub fn positions(&self, shard: u32) -> BTreeMap<Partition, i64> {
        self.shards[shard as usize].fence.as_ref().expect("it was made").positions.clone()
    }

    pub fn on(&mut self, worker: usize, input: Input) {
        let now_ms = self.now_ms;
        if let Input::Catalogue(catalogue) = &input {
            self.workers[worker].conditions = catalogue.conditions();
        }
        for effect in self.workers[worker].pipeline.on(now_ms, input) {
            match effect {
                Effect::Call { shard, id, call } => {
                    self.workers[worker].check_asked(self.seed, shard, &call);
                    self.calls.push(OnItsWay { worker, shard, id, call, given_up: false });
                }
                Effect::AskCommandsEnd { shard, id } => self.workers[worker].asks.push((shard, id)),
                Effect::ProduceDeadLetters { shard, id, notes } => {
                    self.workers[worker].dead_letters.push((shard, id, notes));
                }
                Effect::Recall { id, from } => self.workers[worker].recalls.push((id, from)),
                Effect::AskPositions { shard, id } => {
                    let seen = self.rng.random_bool(0.5).then(|| self.positions(shard));
                    self.workers[worker].probes.push(Question { shard, id, seen, waits: 0 });
                }
                Effect::Rewind { partition, offset, epoch, .. } => {
                    self.meet("rewind");
                    self.workers[worker].cursors.insert(partition, Cursor { next: offset, epoch });
                    self.workers[worker].in_step.rewound(partition, offset);
                }
                Effect::LetGo { .. } => self.meet("let_go"),
                Effect::OtherCatalogue { .. } => self.workers[worker].other_catalogue = true,
                Effect::Halted { shard, reason } => panic!("seed {}: shard {shard} halted: {reason}", self.seed),
                Effect::HaltedPartition { reason, .. } => panic!("seed {}: {reason}", self.seed),
                Effect::Applied(_) | Effect::Outbox { .. } | Effect::Refused { .. } => {}
            }
        }
    }

    /// A higher version, with one more price from a time on that no shard has reached; all workers are told.
    fn renew_catalogue(&mut self) {
        let reached = |shard: &Shard| shard.fence.as_ref().and_then(|fence| fence.reached.values().copied().max());
        let reached_ms = self.shards.iter().filter_map(reached).max().unwrap_or(NOW_MS);
        self.starts.push(reached_ms + 1);
        let added = (1..).zip(&self.starts).map(|(number, start_ms)| {
            let from = rfc3339(*start_ms);
            format!(
                r#", {{ credit_type = "email", credits = {number}.5, when = {{ source = "s{number}" }}, effective_from = "{from}" }}"#
            )
        });
        let prices = added.collect::<String>() + "]\n[plans.basic]";
        let text = CATALOGUE.replacen("version = 1", &format!("version = {}", 1 + self.starts.len()), 1);
        let text = text.replacen("]\n[plans.basic]", &prices, 1);
        self.catalogue = Arc::new(Catalogue::parse(&text).expect("it is good"));
        self.stamp = Arc::new(Stamp { catalogue: self.catalogue.id.clone(), ..(*self.stamp).clone() });
        self.install();
        for worker in 0..self.workers.len() {
            self.on(worker, Input::Catalogue(self.catalogue.clone()));
        }
        self.meet("renewed");
    }

    /// The catalogue into every shard, as a worker does it.
    fn install(&mut self) {
        let catalogue = &self.catalogue;
        for shard in &mut self.shards {
            let call = InitCall {
                generation: "g".into(),
                shards: SHARDS,
                catalogue: catalogue.id.clone(),
                catalogue_text: catalogue.text.clone(),
                grown: None,
                starts: Vec::new(),
                first_start: false,
            };
            let InitReply::OlderCatalogue(stored, text) = shard.init(&call) else { continue };
            let growth = catalogue.grows_from(&Catalogue::parse(&text).expect("it is good")).expect("it only grows");
            let grown = Some(Grown { from: stored, starts_ms: growth.starts_ms() });
            assert_eq!(shard.init(&InitCall { grown, ..call }), InitReply::Ready, "seed {}", self.seed);
        }
    }
}
