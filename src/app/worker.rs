//! The loop that carries the pipeline's effects out, and brings it the answers.

/// What it looks after every second.
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Job;
use super::counted::count;
use super::stall::Stall;
use super::watchdog::Pulse;
use crate::config::{Config, Kafka};
use crate::failpoint::{self, Failpoint};
use crate::http::{ByShard, Check, Health};
use crate::ingest::anchors;
use crate::ingest::client::{BrokerError, topic_of};
use crate::ingest::consumer::{FromKafka, ToConsumer};
use crate::ingest::dead_letters::{self, DeadLetterError};
use crate::ingest::producer::Producer;
use crate::ingest::recorded;
use crate::ingest::rights::may_read;
use crate::ingest::room::Enough;
use crate::ingest::watermarks::Watermarks;
use crate::ledger::call::{Anchor, Input as Topic, Note, Partition};
use crate::ledger::catalogue::Catalogue;
use crate::metrics;
use crate::outbox::Relay;
use crate::pipeline::batch::Call;
use crate::pipeline::order::HALTED;
use crate::pipeline::recorded::Published;
use crate::pipeline::{Answer, Effect, Input, Pipeline};
use crate::store::{ShardState, Store, StoreError};

/// How often lag is measured and offsets are committed.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// The wait before something that failed outside the pipeline is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Between two questions whether the user may read: each takes some connections of its own.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Events from Kafka taken in a row before answers get their turn.
const TURN: usize = 64;

pub struct Parts {
    pub config: Config,
    pub job: Job,
    pub pipeline: Pipeline,
    pub store: Store,
    pub reader: Sender<ToConsumer>,
    pub enough: Arc<Enough>,
    pub producer: Arc<Producer>,
    pub relay: Arc<Relay>,
    pub watermarks: Watermarks,
    pub health: Arc<Health>,
    /// Told whether this worker has the commands partition.
    pub lead: watch::Sender<bool>,
    /// The catalogue in force in every shard.
    pub catalogues: watch::Receiver<Arc<Catalogue>>,
    /// Rung when a shard prices by another one.
    pub other_catalogue: Arc<Notify>,
    pub pulse: Arc<Pulse>,
}

pub struct Worker {
    parts: Parts,
    started: Instant,
    done: UnboundedSender<Done>,
    finished: UnboundedReceiver<Done>,
    assignment: u64,
    /// Where each partition ends, and up to where its transactions have ended.
    ends: BTreeMap<Partition, (i64, i64)>,
    stall: Stall,
    /// Why what was published is not known yet.
    recall_fault: Option<String>,
    /// Why partitions of this assignment are not read any more; `None` stands for one that is not known.
    halted: BTreeMap<Option<Partition>, String>,
    /// Why shards are halted, and which.
    shards_halted: BTreeMap<String, BTreeSet<u32>>,
    probed: Instant,
    /// Whether Redis answers for each shard.
    redis: Arc<ByShard>,
    /// Since when some shard prices by another catalogue.
    other_catalogue_since: Option<Instant>,
    /// Told when the brokers refuse to let its user read.
    not_allowed: Arc<Notify>,
    /// Why Kafka will not have this worker any more.
    fenced: Option<String>,
}

/// What a task has done for the worker.
enum Done {
    Answered {
        shard: u32,
        id: u64,
        answer: Answer,
    },
    /// The positions of the partitions, and those whose log is another than the one that was read.
    Positions {
        assignment: u64,
        positions: Vec<(Partition, Vec<i64>)>,
        other_logs: Vec<(Partition, String)>,
    },
    Halt {
        shard: u32,
        reason: String,
    },
    CommandsEnd {
        shard: u32,
        id: u64,
        offset: i64,
    },
    DeadLetters {
        shard: u32,
        id: u64,
    },
    ShardState {
        shard: u32,
        id: u64,
        state: ShardState,
    },
    NoShardState {
        shard: u32,
        id: u64,
    },
    Recalled {
        id: u64,
        published: Vec<Published>,
        commands_end: i64,
    },
    /// It is asked again.
    RecallFailed {
        reason: String,
    },
}

impl Worker {
    pub fn new(parts: Parts) -> Worker {
        let (done, finished) = unbounded_channel();
        let redis = Arc::new(ByShard::new(parts.health.clone(), Check::Redis));
        Worker {
            redis,
            parts,
            started: Instant::now(),
            done,
            finished,
            assignment: 0,
            ends: BTreeMap::new(),
            stall: Stall::default(),
            recall_fault: None,
            halted: BTreeMap::new(),
            shards_halted: BTreeMap::new(),
            probed: Instant::now(),
            other_catalogue_since: None,
            not_allowed: Arc::default(),
            fenced: None,
        }
    }

    /// Works until it is told to stop, then waits for the calls that are under way.
    pub async fn run(
        mut self,
        mut events: UnboundedReceiver<FromKafka>,
        stop: CancellationToken,
        stop_wait: Duration,
    ) -> anyhow::Result<()> {
        let mut status = tokio::time::interval(STATUS_EVERY);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.ask_until_allowed();
        loop {
            self.parts.pulse.worker.beat();
            let due = self.parts.pipeline.due_at_ms().map(|at_ms| self.started + Duration::from_millis(at_ms));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.finished.recv() => self.on_done(done),
                Ok(()) = self.parts.catalogues.changed() => self.reprice(),
                // Before what Kafka brings, which may always be more.
                _ = status.tick() => {
                    self.status();
                    self.parts.relay.watch();
                    self.watch_catalogue();
                    self.probe_redis();
                    self.on(Input::Probe);
                }
                event = events.recv() => {
                    let Some(event) = event else {
                        self.parts.health.set_dead("the thread that reads kafka has ended".to_owned());
                        anyhow::bail!("the thread that reads kafka has ended: restart the meter");
                    };
                    self.on_event(event);
                    for _ in 0..TURN {
                        let Ok(event) = events.try_recv() else { break };
                        self.on_event(event);
                    }
                }
                () = sleep_until(due) => self.on(Input::Tick),
            }
            if self.fenced.is_some() {
                break;
            }
        }
        self.drain(stop_wait).await;
        self.commit();
        let _ = self.parts.reader.send(ToConsumer::Stop);
        self.fenced.map_or(Ok(()), |reason| Err(anyhow::anyhow!(reason)))
    }

    async fn drain(&mut self, stop_wait: Duration) {
        self.parts.pipeline.stop_cutting();
        let deadline = tokio::time::sleep(stop_wait);
        tokio::pin!(deadline);
        while self.parts.pipeline.in_flight() > 0 {
            tokio::select! {
                Some(done) = self.finished.recv() => self.on_done(done),
                () = &mut deadline => {
                    tracing::warn!("redis has not answered in time; the next start asks again");
                    return;
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn on_event(&mut self, event: FromKafka) {
        self.parts.pulse.reader.beat();
        match event {
            FromKafka::Assigned { assignment, partitions } => self.assigned(assignment, partitions),
            FromKafka::Revoked { assignment, reason } => {
                self.assignment = assignment;
                self.forget_lag();
                self.parts.lead.send_replace(false);
                self.on(Input::Revoked);
                self.parts.health.set(Check::Assigned, Err(reason));
            }
            FromKafka::Started { assignment, log_ends } => {
                if assignment == self.assignment {
                    self.on(Input::LogEnds(log_ends));
                    self.parts.health.set(Check::Assigned, Ok(()));
                }
            }
            FromKafka::Records { assignment, partition, epoch, records } => {
                self.parts.enough.on_the_way.fetch_sub(records.len(), Ordering::AcqRel);
                if assignment == self.assignment {
                    self.on(Input::Records { partition, epoch, records });
                }
            }
            FromKafka::ReadTo { assignment, partition, epoch, offset } => {
                if assignment == self.assignment {
                    self.on(Input::ReadTo { partition, epoch, offset });
                }
            }
            FromKafka::Connection(connection) => self.parts.health.set(Check::Kafka, connection.state()),
            FromKafka::NotAllowed => self.not_allowed.notify_one(),
            FromKafka::NotInGroup { reason } => {
                if self.parts.health.state(Check::Assigned).is_err() {
                    self.parts.health.set(Check::Assigned, Err(reason));
                }
            }
            FromKafka::End { partition, offset, stable } => {
                self.ends.insert(partition, (offset, stable));
            }
            FromKafka::Fenced { reason } => {
                self.parts.health.set_dead(reason.clone());
                self.fenced = Some(reason);
            }
            FromKafka::Halted { partition, reason } => {
                // Nobody waits for what is not read, but for a rebuild: it ends, rather than judge without what is missing.
                if let Some(partition) = partition.filter(|_| !matches!(self.parts.job, Job::Rebuild { .. })) {
                    self.on(Input::LogEnds(vec![(partition, HALTED)]));
                }
                self.halt_partition(partition, reason);
            }
        }
    }

    fn assigned(&mut self, assignment: u64, partitions: Vec<Partition>) {
        tracing::info!(partitions = partitions.len(), "assigned");
        self.assignment = assignment;
        self.halted.clear();
        self.shards_halted.clear();
        self.recall_fault = None;
        metrics::set_partitions_halted(0);
        metrics::set_shards_halted(0);
        self.parts.health.set(Check::Shards, Ok(()));
        self.forget_lag();
        self.on(Input::Revoked);
        if let Job::Rebuild { usage_partitions, .. } = self.parts.job {
            let mut needed = (0..usage_partitions).map(Partition::usage).chain([Partition::COMMANDS]);
            if !needed.all(|partition| partitions.contains(&partition)) {
                let group = &self.parts.config.kafka.group;
                let reason = format!(
                    "another worker has joined group {group}, and a rebuild must read all partitions: stop it; `credit-meter \
                     rebuild` goes on from where it was"
                );
                return self.parts.health.set_dead(reason);
            }
        }
        let (store, shards, done) = (self.parts.store.clone(), self.parts.config.redis.shards, self.done.clone());
        let (health, kafka) = (self.parts.health.clone(), self.parts.config.kafka.clone());
        tokio::spawn(async move {
            loop {
                match positions(&kafka, &store, shards, &partitions).await {
                    Ok((positions, other_logs)) => {
                        let _ = done.send(Done::Positions { assignment, positions, other_logs });
                        return;
                    }
                    Err(PositionsError::Broker(error)) => {
                        health.set(Check::Kafka, Err(error.to_string()));
                        tokio::time::sleep(RETRY).await;
                    }
                    Err(PositionsError::Store(error)) => {
                        health.set(Check::Redis, Err(error.to_string()));
                        tokio::time::sleep(RETRY).await;
                    }
                }
                if done.is_closed() {
                    return;
                }
            }
        });
    }

    /// The client does not say of what it is not let read, nor when it is. What it tells while a question is on its way is
    /// asked anew.
    fn ask_until_allowed(&self) {
        let (config, health) = (self.parts.config.clone(), self.parts.health.clone());
        let (refused, done) = (self.not_allowed.clone(), self.done.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = done.closed() => return,
                    () = refused.notified() => {}
                }
                while let Err(error) = may_read(&config.kafka).await {
                    health.set(Check::Allowed, Err(error.to_string()));
                    tokio::select! {
                        () = done.closed() => return,
                        () = tokio::time::sleep(ASK_AGAIN) => {}
                    }
                }
                health.set(Check::Allowed, Ok(()));
            }
        });
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Answered { shard, id, answer } => self.on(Input::Answered { shard, id, answer }),
            Done::CommandsEnd { shard, id, offset } => self.on(Input::CommandsEnd { shard, id, offset }),
            Done::ShardState { shard, id, state } => {
                let positions = state.positions.into_iter().collect();
                self.on(Input::Positions { shard, id, generation: state.generation, positions });
            }
            Done::NoShardState { shard, id } => self.on(Input::NoPositions { shard, id }),
            Done::Halt { shard, reason } => self.on(Input::Halt { shard, reason }),
            Done::Recalled { id, published, commands_end } => {
                self.recall_fault = None;
                self.on(Input::Recalled { id, published, commands_end });
            }
            Done::RecallFailed { reason } => self.recall_fault = Some(reason),
            Done::DeadLetters { shard, id } => self.on(Input::DeadLettersProduced { shard, id }),
            Done::Positions { assignment, mut positions, other_logs } if assignment == self.assignment => {
                positions.retain(|(partition, _)| other_logs.iter().all(|(other, _)| other != partition));
                for (partition, reason) in other_logs {
                    self.halt_partition(Some(partition), reason);
                }
                self.redis.clear();
                self.parts.lead.send_replace(positions.iter().any(|(partition, _)| *partition == Partition::COMMANDS));
                let starts = positions.iter().map(|(partition, each)| {
                    let start = each.iter().copied().min().expect("there is at least one shard");
                    (*partition, start)
                });
                let order = ToConsumer::Start { assignment, positions: starts.collect() };
                self.on(Input::Assigned(positions));
                let _ = self.parts.reader.send(order);
            }
            Done::Positions { .. } => {}
        }
    }

    fn on(&mut self, input: Input) {
        let effects = self.parts.pipeline.on(self.now_ms(), input);
        for effect in effects {
            self.carry_out(effect);
        }
        let Parts { enough, pipeline, .. } = &self.parts;
        let full = !pipeline.wants_more(Topic::Usage);
        enough.slowest.store(full && !pipeline.waits_for_usage(), Ordering::Release);
        enough.usage.store(full, Ordering::Release);
        enough.commands.store(!pipeline.wants_more(Topic::Commands), Ordering::Release);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Call { shard, id, call } => self.call(shard, id, call),
            Effect::AskCommandsEnd { shard, id } => self.ask_commands_end(shard, id),
            Effect::ProduceDeadLetters { shard, id, notes } => self.produce_dead_letters(shard, id, notes),
            Effect::AskPositions { shard, id } => self.ask_positions(shard, id),
            Effect::Recall { id, from } => self.recall(id, from),
            Effect::Rewind { partition, offset, epoch, repriced } => {
                if repriced {
                    tracing::info!(%partition, offset, "reading again, to price by the new catalogue");
                } else {
                    metrics::record_rewind();
                    tracing::warn!(%partition, offset, "reading again from where redis is");
                }
                failpoint::reached(Failpoint::AfterRewind);
                let _ = self.parts.reader.send(ToConsumer::Rewind { partition, offset, epoch });
            }
            Effect::Applied(report) => count(&report),
            Effect::Outbox { shard, entries } => {
                if self.parts.relay.known.holds(shard) {
                    metrics::set_outbox_entries(shard, entries);
                }
                if entries > 0 {
                    self.parts.relay.bells[shard as usize].notify_one();
                }
            }
            Effect::Refused { shard, kind } => {
                metrics::record_call_refusal(kind);
                tracing::debug!(shard, kind, "a shard refused a call");
            }
            Effect::HaltedPartition { partition, reason } => {
                let _ = self.parts.reader.send(ToConsumer::Halt { partition });
                self.halt_partition(Some(partition), reason);
            }
            Effect::LetGo { shard, records } => {
                tracing::warn!(shard, records, "it does not answer: what waits for it is read again once it does");
            }
            Effect::OtherCatalogue { shard } => {
                tracing::debug!(shard, "prices by another catalogue");
                self.parts.other_catalogue.notify_one();
            }
            Effect::Halted { shard, reason } => {
                tracing::error!(shard, reason, "halted");
                metrics::set_shards_halted(self.parts.pipeline.halted());
                self.shards_halted.entry(reason).or_default().insert(shard);
                self.parts.health.set(Check::Shards, Err(status::halted_shards(&self.shards_halted)));
            }
        }
    }

    fn call(&self, shard: u32, id: u64, call: Call) {
        let (store, done, redis) = (self.parts.store.clone(), self.done.clone(), self.redis.clone());
        tokio::spawn(async move {
            let started = Instant::now();
            let script = call.script();
            let answer = match &call {
                Call::Apply(call) => {
                    if !call.is_question() {
                        metrics::record_batch(call.events());
                    }
                    store.apply(shard, call).await.map(Answer::Apply)
                }
                Call::Command(call) => store.command(shard, call).await.map(Answer::Command),
                Call::Roll(call) => store.roll(shard, call).await.map(Answer::Roll),
            };
            let answer = match answer {
                Ok(answer) => {
                    metrics::record_call(script, started.elapsed());
                    redis.set(shard, Ok(()));
                    answer
                }
                Err(StoreError::Broken(reason)) => {
                    metrics::record_call_refusal(metrics::BROKEN);
                    redis.set(shard, Ok(())); // it has answered; what it said halts the shard
                    Answer::Halt { reason: format!("{script}.lua: {reason}") }
                }
                Err(error) => {
                    metrics::record_call_refusal(error.kind());
                    tracing::warn!(shard, script, %error, "a call has no answer and goes out again");
                    redis.set(shard, Err(error.to_string()));
                    Answer::None
                }
            };
            let _ = done.send(Done::Answered { shard, id, answer });
        });
    }

    /// One try, which takes no longer than `redis.timeout` and a connection: the next probe asks again.
    fn ask_positions(&self, shard: u32, id: u64) {
        let (store, done, redis) = (self.parts.store.clone(), self.done.clone(), self.redis.clone());
        tokio::spawn(async move {
            let (told, answers) = match store.shard_state(shard).await {
                Ok(state) => (Done::ShardState { shard, id, state }, Ok(())),
                Err(StoreError::Broken(reason)) => (Done::Halt { shard, reason }, Ok(())),
                Err(error) => (Done::NoShardState { shard, id }, Err(error.to_string())),
            };
            redis.set(shard, answers);
            let _ = done.send(told);
        });
    }

    fn ask_commands_end(&self, shard: u32, id: u64) {
        let (watermarks, done) = (self.parts.watermarks.clone(), self.done.clone());
        let topic = self.parts.config.kafka.topics.commands.clone();
        tokio::spawn(async move {
            while !done.is_closed() {
                match watermarks.range(&topic, 0).await {
                    Ok((_, offset)) => {
                        let _ = done.send(Done::CommandsEnd { shard, id, offset });
                        return;
                    }
                    Err(error) => tracing::warn!(shard, %error, "events of an unknown account wait"),
                }
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    fn recall(&self, id: u64, from: Vec<(Partition, i64)>) {
        let (config, relay) = (self.parts.config.clone(), self.parts.relay.clone());
        let (watermarks, done) = (self.parts.watermarks.clone(), self.done.clone());
        tokio::spawn(async move {
            while !done.is_closed() {
                match recall(&config, &relay, &watermarks, &from).await {
                    Ok((published, commands_end)) => {
                        if !published.is_empty() {
                            let records = published.len();
                            tracing::warn!(records, "decided before and published: those decisions stand");
                        }
                        let _ = done.send(Done::Recalled { id, published, commands_end });
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "what was published is not known yet; nothing is decided");
                        let _ = done.send(Done::RecallFailed { reason: error.to_string() });
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    fn produce_dead_letters(&self, shard: u32, id: u64, notes: Vec<Note>) {
        let (config, producer) = (self.parts.config.clone(), self.parts.producer.clone());
        let done = self.done.clone();
        tokio::spawn(async move {
            while !done.is_closed() && !notes.is_empty() {
                match dead_letters::produce(&config, &producer, &notes).await {
                    Ok(()) => {
                        failpoint::reached(Failpoint::AfterDeadLetters);
                        break;
                    }
                    Err(DeadLetterError::Produce(error)) if !error.may_pass() => {
                        let reason = format!("its dead letters are refused: {error}; then restart the worker");
                        let _ = done.send(Done::Halt { shard, reason });
                        return;
                    }
                    Err(error) => tracing::error!(shard, %error, "dead letters wait, and the shard with them"),
                }
                tokio::time::sleep(RETRY).await;
            }
            let _ = done.send(Done::DeadLetters { shard, id });
        });
    }

    fn halt_partition(&mut self, partition: Option<Partition>, reason: String) {
        tracing::error!(reason, "halted");
        if let Some(Partition { input, index }) = partition {
            metrics::name_halted_partition(topic_of(&self.parts.config.kafka.topics, input), index);
        }
        self.halted.insert(partition, reason);
        metrics::set_partitions_halted(self.halted.len());
        let reasons: Vec<&str> = self.halted.values().map(String::as_str).collect();
        self.parts.health.set(Check::Progress, Err(reasons.join("; also: ")));
    }

    /// Another catalogue is in force in every shard.
    fn reprice(&mut self) {
        let catalogue = self.parts.catalogues.borrow_and_update().clone();
        start_series(&catalogue);
        // Before the pipeline has anything read again.
        let _ = self.parts.reader.send(ToConsumer::Conditions(Arc::new(catalogue.conditions())));
        self.on(Input::Catalogue(catalogue));
    }
}

/// Starts the series of what a catalogue names, at zero.
pub fn start_series(catalogue: &Catalogue) {
    metrics::init_actions(catalogue.actions.keys().map(String::as_str));
    metrics::init_plans(catalogue.plans.keys().map(String::as_str), &catalogue.credit_types);
    metrics::set_catalogue_version(catalogue.id.version);
}

#[derive(Debug, thiserror::Error)]
enum PositionsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

type Positions = (Vec<(Partition, Vec<i64>)>, Vec<(Partition, String)>);

/// Every shard's position of every partition, and the partitions whose log is another than the one that was read.
async fn positions(
    kafka: &Kafka,
    store: &Store,
    shards: u32,
    partitions: &[Partition],
) -> Result<Positions, PositionsError> {
    let mut positions: Vec<_> = partitions.iter().map(|partition| (*partition, Vec::new())).collect();
    let mut known: BTreeMap<Partition, BTreeSet<Anchor>> = BTreeMap::new();
    for shard in 0..shards {
        let state = store.shard_state(shard).await?;
        let stored: BTreeMap<Partition, i64> = state.positions.into_iter().collect();
        for (partition, of_shards) in &mut positions {
            of_shards.push(stored.get(partition).copied().unwrap_or(0));
        }
        for (partition, anchor) in state.anchors.into_iter().filter(|(partition, _)| partitions.contains(partition)) {
            known.entry(partition).or_default().insert(anchor);
        }
    }
    let kafka = kafka.clone();
    let checking = tokio::task::spawn_blocking(move || anchors::check(&kafka, &known));
    let other_logs = checking.await.expect("reading does not panic")?;
    Ok((positions, other_logs))
}

/// What was published about records from these offsets on, and the end of the commands.
async fn recall(
    config: &Config,
    relay: &Relay,
    watermarks: &Watermarks,
    from: &[(Partition, i64)],
) -> Result<(Vec<Published>, i64), BrokerError> {
    relay.settle().await;
    let (for_reading, from) = (config.clone(), from.to_vec());
    let reading = tokio::task::spawn_blocking(move || recorded::read(&for_reading, &from));
    let published = reading.await.expect("reading does not panic")?;
    let (_, commands_end) = watermarks.range(&config.kafka.topics.commands, 0).await?;
    Ok((published, commands_end))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
