//! The pipeline against shards in memory, with everything that can go wrong between them, from a seed:
//! lost calls, lost answers, answers that come late, calls that arrive after they were given up, two workers on the
//! same partitions, rebalances, shards that fall back to an older state, chunks cut anywhere,
//! catalogues that are replaced, a Redis that takes seconds to say where a shard is.
//!
//! Whatever happens, in the end each event is charged once, each dead record has its dead letter, and the totals
//! add up to the records of the log.

mod alerts;
mod in_order;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use credit_meter::ingest::in_step::InStep;
use credit_meter::ingest::recorded;
use credit_meter::ledger::account::AccountConfig;
use credit_meter::ledger::call::{Input as Topic, Note, OutboxEntry, Output, Partition, Reply, Stamp};
use credit_meter::ledger::catalogue::{Catalogue, Conditions, Field};
use credit_meter::ledger::command::{ACCOUNT_PUT, Command, CommandBody};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::event::{Identity, UsageEvent};
use credit_meter::ledger::members::MemberLimit;
use credit_meter::ledger::outcome::{DeadReason, Outcome};
use credit_meter::ledger::shard::{Grown, InitCall, InitReply, Shard};
use credit_meter::ledger::time::rfc3339;
use credit_meter::ledger::void::Kept;
use credit_meter::pipeline::batch::Call;
use credit_meter::pipeline::lane::Bounds;
use credit_meter::pipeline::record::{Body, Record};
use credit_meter::pipeline::recorded::{Decision, Published};
use credit_meter::pipeline::{Answer, DeadLimit, Effect, Input, Pipeline, Settings};
use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{Rng, SeedableRng};

const SEEDS: u64 = 1_000;
const SHARDS: u32 = 3;
const STEPS: usize = 600;
/// Prices that new versions of the catalogue add.
const PRICES: usize = 3;
const NOW_MS: i64 = 1_773_144_000_000;

const CATALOGUE: &str = r#"
version = 1
[credit_types.email]
[actions.reveal_phone]
prices = [{ credit_type = "email", credits = 2 }]
charge_once = { by = "contact" }
[actions.enrich]
prices = [{ credit_type = "email", credits = 3 }]
voidable = true
[actions.reveal_email]
prices = [{ credit_type = "email", credits = 1.5 }]
[plans.basic]
interval = "monthly"
allowance = { email = 1_000_000 }
actions = ["reveal_email", "reveal_phone", "enrich"]
[plans.tiny]
interval = "monthly"
allowance = { email = 10 }
actions = ["reveal_email"]
[plans.capped]
interval = "monthly"
allowance = { email = 10 }
actions = ["reveal_email"]
overage = "cap"
"#;

#[test]
fn every_event_is_charged_once_whatever_happens() {
    let mut met = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.check();
        for (what, count) in world.met {
            *met.entry(what).or_insert(0u64) += count;
        }
    }
    let expected = [
        "other_position",
        "done_before",
        "stale",
        "question",
        "unknown",
        "dead",
        "rewind",
        "old_answer",
        "let_go",
        "late_call",
        "rollback",
        "zombie",
        "recalled",
        "renewed",
        "other_catalogue",
        "paused",
    ];
    for what in expected {
        assert!(met.get(what).is_some_and(|count| *count >= 50), "{what} hardly occurs: {met:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let run = |seed| {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        format!("{:?} {:?}", world.met, world.dead_letters)
    };
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// What workers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Serve,
    /// Records have times of their own, and those of the log so far order them.
    Backlog,
    /// The log's order is all that may decide.
    Rebuild,
}

struct World {
    seed: u64,
    rng: SmallRng,
    now_ms: u64,
    log: BTreeMap<Partition, Vec<Record>>,
    shards: Vec<Shard>,
    snapshots: Vec<(usize, Shard)>,
    workers: Vec<Worker>,
    /// Calls that are on their way, or that someone has given up and that still arrive.
    calls: Vec<OnItsWay>,
    dead_letters: BTreeSet<Note>,
    /// What the relay has published.
    published: Vec<OutboxEntry>,
    /// Two workers on the same partitions decide without knowing what the other has published.
    zombies: bool,
    stamp: Arc<Stamp>,
    /// The one in force; shards that fell back may have an older one.
    catalogue: Arc<Catalogue>,
    /// From when on each of the prices counts that were added.
    starts: Vec<i64>,
    faulty: bool,
    job: Job,
    /// Seconds that a shard takes to say where it is.
    slow: u32,
    /// A shard whose calls have no answer, though some arrive.
    silent: Option<usize>,
    met: BTreeMap<&'static str, u64>,
}

struct Worker {
    pipeline: Pipeline,
    cursors: BTreeMap<Partition, Cursor>,
    dead_letters: Vec<(u32, u64, Vec<Note>)>,
    asks: Vec<(u32, u64)>,
    probes: Vec<Question>,
    recalls: Vec<(u64, Vec<(Partition, i64)>)>,
    /// Shards whose last call was a question for accounts.
    asked: BTreeSet<u32>,
    /// Some shard has another catalogue.
    other_catalogue: bool,
    /// What the reader keeps of events.
    conditions: Conditions,
    /// What the reader has read and the pipeline has not seen yet.
    inbox: VecDeque<Input>,
    in_step: InStep,
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
struct Cursor {
    next: i64,
    epoch: u32,
}

/// Where a shard is.
struct Question {
    shard: u32,
    id: u64,
    /// What it saw, if it has come to the shard already.
    seen: Option<BTreeMap<Partition, i64>>,
    /// Seconds since it was asked.
    waits: u32,
}

struct OnItsWay {
    worker: usize,
    shard: u32,
    id: u64,
    call: Call,
    given_up: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let log = make_log(&mut rng);
        let job = if rng.random_bool(0.3) { Job::Backlog } else { Job::Serve };
        World::of_log(seed, rng, log, job)
    }

    fn of_log(seed: u64, mut rng: SmallRng, log: BTreeMap<Partition, Vec<Record>>, job: Job) -> World {
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

    fn step(&mut self) {
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
    fn arrive(&mut self) {
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

    fn finish_side_work(&mut self, worker: usize) {
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

    fn positions(&self, shard: u32) -> BTreeMap<Partition, i64> {
        self.shards[shard as usize].fence.as_ref().expect("it was made").positions.clone()
    }

    fn on(&mut self, worker: usize, input: Input) {
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
                Effect::Rewind { partition, offset, epoch } => {
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

    /// What an event costs, in thousandths.
    fn price(&self, id: &str) -> i64 {
        let (dated_ms, source) = (dated_ms(id), source(id));
        match self.starts.get(source - 1) {
            Some(start_ms) if *start_ms <= dated_ms => 1000 * source as i64 + 500,
            _ => 1500,
        }
    }

    /// The places of what was denied, as far as it was published.
    fn denied(&self) -> BTreeSet<(Partition, i64)> {
        self.published.iter().flat_map(denied).map(|denied| (denied.partition, denied.offset)).collect()
    }

    /// What the outputs say of records from these offsets on.
    fn published(&self, from: &[(Partition, i64)]) -> Vec<Published> {
        let from: BTreeMap<_, _> = from.iter().copied().collect();
        let wanted = |published: &Published| from.get(&published.partition).is_some_and(|at| published.offset >= *at);
        let dead = self.dead_letters.iter().map(|note| Published {
            partition: note.partition,
            offset: note.offset,
            event: None,
            decision: Decision::Dead(note.reason),
        });
        dead.chain(self.published.iter().flat_map(denied)).filter(wanted).collect()
    }

    /// No more faults: everything is read and applied.
    fn settle(&mut self) {
        self.faulty = false;
        for _ in 0..200_000 {
            self.step();
            let ends = self.log.iter().map(|(partition, records)| (*partition, end_of(records)));
            let done = |(partition, end)| self.shards.iter().all(|shard| shard.position(partition) == end);
            if self.calls.is_empty() && ends.clone().all(done) {
                return;
            }
        }
        let positions: Vec<_> = (0..SHARDS).map(|shard| self.positions(shard)).collect();
        let ends: Vec<_> = self.log.iter().map(|(partition, records)| (*partition, end_of(records))).collect();
        panic!("seed {}: it does not come to an end: {ends:?}, {positions:?}", self.seed);
    }

    fn check(&mut self) {
        let seed = self.seed;
        for shard in &mut self.shards {
            self.published.extend(shard.take(shard.outbox_taken, usize::MAX).into_iter().map(|(_, entry)| entry));
        }
        let said: Vec<Published> = self.published.iter().flat_map(denied).collect();
        let mut uncovered = 0;
        let mut denied: BTreeMap<(Arc<str>, i64), (Partition, i64)> = BTreeMap::new();
        let mut places = BTreeSet::new();
        for Published { partition, offset, event, decision } in said {
            let (account, identity) = event.expect("a denied event has an identity");
            let again = denied.insert((account, identity.member), (partition, offset));
            if !self.zombies {
                assert!(again.is_none_or(|place| place == (partition, offset)), "seed {seed}: one attempt is decided");
            }
            let first = places.insert((partition, offset));
            match decision {
                Decision::Capped { uncovered: amount } if first => uncovered += amount.thousandths(),
                _ => {}
            }
        }
        let mut ids: BTreeMap<Arc<str>, BTreeSet<&str>> = BTreeMap::new();
        // Of account h.
        let mut voided: BTreeSet<&str> = BTreeSet::new();
        let mut dead = BTreeSet::new();
        for (partition, records) in &self.log {
            for record in records {
                match &record.body {
                    Body::Usage(event) if &*event.account == "stranger" => {
                        dead.insert((*partition, record.offset));
                    }
                    Body::Usage(event) if event.voids.is_some() => {
                        voided.insert(&event.id);
                    }
                    Body::Usage(event) => {
                        ids.entry(event.account.clone()).or_default().insert(&event.id);
                    }
                    Body::Dead { .. } => {
                        dead.insert((*partition, record.offset));
                    }
                    Body::Command(_) | Body::Tick => {}
                }
            }
            let total = |outcomes: &[Outcome]| -> u64 {
                let fences = self.shards.iter().filter_map(|shard| shard.fence.as_ref());
                let totals = fences.flat_map(|fence| &fence.totals);
                let own = totals.filter(|((of, outcome), _)| of == partition && outcomes.contains(outcome));
                own.map(|(_, records)| *records).sum()
            };
            assert_eq!(total(&Outcome::ALL), records.len() as u64, "seed {seed}: {partition}: totals and records");
        }
        for (account, ids) in ids {
            let account_state = self.shards.iter().find_map(|shard| shard.accounts.get(&account)).expect("it was made");
            let charged = account_state.counters["email"].charged.thousandths();
            match &*account {
                "d" | "e" if self.zombies => {}
                "d" => {
                    let is_denied = |id: &str| denied.contains_key(&(account.clone(), Identity::of("s", id).member));
                    let paid: i64 = ids.iter().filter(|id| !is_denied(id)).map(|id| self.price(id)).sum();
                    assert_eq!(charged, paid, "seed {seed}: what is denied is not charged");
                }
                "g" if self.zombies => {}
                "g" => {
                    let is_denied = |id: &str| denied.contains_key(&(account.clone(), Identity::of("s", id).member));
                    let mut paid: BTreeMap<(String, Arc<str>), Credits> = BTreeMap::new();
                    for id in ids.iter().filter(|id| !is_denied(id)) {
                        let member = ("email".to_owned(), user(id).into());
                        *paid.entry(member).or_default() += Credits::from_thousandths(self.price(id));
                    }
                    let counts = self.shards.iter().find_map(|shard| shard.members.get(&(account.clone(), 0)));
                    assert_eq!(counts, Some(&paid), "seed {seed}: what a member was charged, and no more, is counted");
                    let limit = |user: &str| Credits::whole(if user == "eve" { 11 } else { 5 });
                    let within = paid.iter().all(|((_, user), used)| *used <= limit(user));
                    assert!(within, "seed {seed}: {paid:?}");
                    let sum = paid.values().fold(Credits::ZERO, |sum, used| sum + *used);
                    assert_eq!(charged, sum.thousandths(), "seed {seed}: what is denied is not charged");
                }
                "h" => {
                    let shard = self.shards.iter().find(|shard| shard.accounts.contains_key(&account));
                    let shard = shard.expect("it was made");
                    let kept: BTreeSet<&str> = ids.iter().copied().filter(|id| !voided.contains(id)).collect();
                    assert_eq!(charged, 3_000 * kept.len() as i64, "seed {seed}: what is void is charged to nobody");
                    let sum = |sum: i64, more: &Credits| sum + more.thousandths();
                    let counts =
                        shard.members.get(&(account.clone(), 0)).into_iter().flat_map(|counts| counts.values());
                    assert_eq!(counts.fold(0, sum), charged, "seed {seed}: nor counted for a member");
                    let days = shard.usage.iter().filter(|((of, _), _)| *of == account);
                    let used = days.flat_map(|(_, day)| day.values()).map(|used| &used.credits);
                    assert_eq!(used.fold(0, sum), charged, "seed {seed}: nor broken down");
                    let days = shard.charges.iter().filter(|((of, _), _)| *of == account);
                    let (waiting, may_be_voided): (Vec<_>, Vec<_>) =
                        days.flat_map(|(_, day)| day.values()).partition(|kept| **kept == Kept::Waits);
                    assert_eq!(may_be_voided.len(), kept.len(), "seed {seed}: each may be voided");
                    let idle = voided.iter().filter(|id| !ids.contains(*id)).count();
                    assert_eq!(waiting.len(), idle, "seed {seed}: a void waits only for what never came");
                }
                "f" => {
                    let contacts: BTreeSet<usize> = ids.iter().map(|id| contact(id)).collect();
                    assert_eq!(charged, 2_000 * contacts.len() as i64, "seed {seed}: each contact once");
                }
                "e" => {
                    let cost: i64 = ids.iter().map(|id| self.price(id)).sum();
                    assert_eq!(charged, cost - uncovered, "seed {seed}: what is uncovered neither");
                }
                _ => {
                    let cost: i64 = ids.iter().map(|id| self.price(id)).sum();
                    assert_eq!(charged, cost, "seed {seed}: {account}: each event once, by its own date");
                }
            }
        }
        let letters: BTreeSet<_> = self.dead_letters.iter().map(|note| (note.partition, note.offset)).collect();
        assert_eq!(letters, dead, "seed {seed}: a dead letter for each dead record, and for no other");
    }
}

/// The decisions in a message to the denied topic.
fn denied(entry: &OutboxEntry) -> Vec<Published> {
    let value = format!(r#"{{"id":"","source":"meter","subject":"{}","data":{}}}"#, entry.account, entry.data);
    if entry.output == Output::Denied {
        recorded::denied("meter", "credits.usage", value.as_bytes())
    } else {
        Vec::new()
    }
}

/// The offset behind the last record, with a control record after it.
fn end_of(records: &[Record]) -> i64 {
    records.last().map_or(0, |record| record.offset + 2)
}

/// An account whose cycles begin with the month, with the plan's own of everything but its members' limits.
fn account_config(plan: &str, member_limits: Arc<[MemberLimit]>) -> AccountConfig {
    AccountConfig {
        plan: plan.into(),
        anchor: "2026-03-01".parse().expect("a date"),
        interval: None,
        timezone: chrono_tz::UTC,
        addons: Vec::new(),
        thresholds: None,
        overage: None,
        member_limits,
    }
}

fn make_log(rng: &mut SmallRng) -> BTreeMap<Partition, Vec<Record>> {
    let accounts = ["a", "b", "c", "d", "e", "f", "g", "h", "h"];
    let mut log = BTreeMap::new();
    let commands = accounts[..8].iter().enumerate().map(|(index, account)| {
        let (plan, limits) = match *account {
            "d" => ("tiny", Default::default()),
            "e" => ("capped", Default::default()),
            "g" => ("basic", member_limits()),
            "h" => ("basic", [MemberLimit { amount: Credits::whole(1_000), ..member_limits()[0].clone() }].into()),
            _ => ("basic", Default::default()),
        };
        let command = Command {
            account: (*account).into(),
            id: format!("put {account}"),
            identity: Identity::of("cli", account),
            time_ms: NOW_MS,
            command_type: ACCOUNT_PUT,
            body: Ok(CommandBody::Put(Box::new(account_config(plan, limits)))),
        };
        record(Partition::COMMANDS, 2 * index as i64, Body::Command(Box::new(command)))
    });
    let mut commands: Vec<Record> = commands.collect();
    commands.insert(2, record(Partition::COMMANDS, 3, Body::Dead { reason: DeadReason::InvalidJson, account: None }));
    log.insert(Partition::COMMANDS, commands);
    for index in 0..3 {
        let partition = Partition::usage(index);
        let mut offset = 0;
        let records = (0..rng.random_range(20..80)).map(|number| {
            offset += rng.random_range(1..3);
            let body = match rng.random_range(0..30) {
                0 => Body::Dead { reason: DeadReason::InvalidUtf8, account: None },
                1 => Body::Dead { reason: DeadReason::MissingField, account: Some("a".into()) },
                2 => event("stranger", number, rng),
                _ => event(accounts.choose(rng).expect("not empty"), number, rng),
            };
            Record { append_ms: NOW_MS + number * 1000, ..record(partition, offset, body) }
        });
        log.insert(partition, records.collect());
    }
    log
}

/// The `number`th of its partition.
fn event(account: &str, number: i64, rng: &mut SmallRng) -> Body {
    // Few ids, so that many events are repeats: in the same call, in other calls, in other partitions.
    // Attempts at one event have one date, which is not after any of them.
    let id = format!("{}", rng.random_range(0..60.min(number + 1)));
    let event = UsageEvent {
        account: account.into(),
        source: "s".into(),
        identity: Identity::of("s", &id),
        fields: [(Field::Source, format!("s{}", source(&id)).into())].into(),
        once: (account == "f").then(|| Identity::of("reveal_phone", &contact(&id).to_string())),
        voids: None,
        time_ms: NOW_MS + rng.random_range(-60_000..60_000),
        dated_ms: dated_ms(&id),
        action: match account {
            "f" => "reveal_phone".into(),
            "h" => "enrich".into(),
            _ => "reveal_email".into(),
        },
        quantity: 1,
        outcome: None,
        user: Some(user(&id).into()),
        id: id.into(),
    };
    // Many are taken back, wherever: before them and after, and more than once.
    let void = account == "h" && rng.random_bool(0.4);
    Body::Usage(Arc::new(if void { void_of(event) } else { event }))
}

fn void_of(event: UsageEvent) -> UsageEvent {
    let (identity, voids) = (event.identity.of_its_void(), Some(event.identity));
    UsageEvent { identity, voids, user: None, ..event }
}

fn dated_ms(id: &str) -> i64 {
    NOW_MS + id.parse::<i64>().expect("a number") * 1000
}

/// For whom the events of account f are.
fn contact(id: &str) -> usize {
    id.parse::<usize>().expect("a number") % 7
}

/// Who did an event.
fn user(id: &str) -> &'static str {
    ["ada", "bob", "eve"][id.parse::<usize>().expect("a number") % 3]
}

/// Of account g, which else has enough.
fn member_limits() -> Arc<[MemberLimit]> {
    let limit = |user: Option<&str>, credits: i64| MemberLimit {
        credit_type: "email".into(),
        user: user.map(Into::into),
        amount: Credits::whole(credits),
    };
    [limit(None, 5), limit(Some("eve"), 11)].into()
}

/// Which of the prices that are added counts for an event.
fn source(id: &str) -> usize {
    1 + id.parse::<usize>().expect("a number") % PRICES
}

/// A record as a reader has it that keeps only what prices depend on.
fn as_read(record: &Record, conditions: &Conditions) -> Record {
    let Body::Usage(event) = &record.body else { return record.clone() };
    let of = |name| event.fields.iter().find(|(own, _)| *own == name).map(|(_, value)| (&**value).into());
    let event = UsageEvent { fields: conditions.of_event(of), ..(**event).clone() };
    Record { body: Body::Usage(Arc::new(event)), ..record.clone() }
}

fn record(partition: Partition, offset: i64, body: Body) -> Record {
    Record { partition, offset, append_ms: NOW_MS, bytes: 100, fingerprint: offset as u64, body }
}
