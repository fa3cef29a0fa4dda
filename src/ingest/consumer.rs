//! The consumer: one thread that reads and decodes, and starts each partition where Redis says.
//!
//! Kafka's own offsets are committed for lag tools only. Redis decides what was applied.

/// What is committed to the group.
mod commit;
/// Where logs end.
mod ends;
/// The client's place in the group.
mod join;
/// What keeps a partition from being read.
mod unread;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message};
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use tokio::sync::mpsc::UnboundedSender;

use self::commit::{COMMIT_TIMEOUT, Committing};
use self::unread::{Holds, Unreadable};
use super::client::{self, BrokerError, topic_of};
use super::decode::{Decoder, Raw};
use super::group::{Connection, Group, Rebalance};
use super::in_step::InStep;
use super::room::{Enough, Look, Room};
use crate::config::{AgeFrom, Kafka};
use crate::failpoint::{self, Failpoint};
use crate::ledger::call::{Input, Partition};
use crate::ledger::catalogue::Conditions;
use crate::metrics;
use crate::pipeline::record::Record;

/// Records decoded before they are handed on, at most.
const CHUNK_RECORDS: usize = 1_000;
/// How long a chunk may be collected.
const CHUNK_AGE: Duration = Duration::from_millis(2);
/// Records between two looks at the clock, of which each takes 30 ns: so many are read in less than 0.1 ms.
const CHUNK_CLOCK_RECORDS: usize = 32;
/// The poll when nothing comes: bounds how late a command to the thread is seen.
const POLL: Duration = Duration::from_millis(10);
/// How often the log tells of what does not go away.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// Moving is local; it takes a turn of the client's own thread.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);
/// An unreachable partition must not keep the others from being read: it says the same when it is read.
const LOG_START_TIMEOUT: Duration = Duration::from_secs(1);

/// What the thread tells the worker. `assignment` tells those of an earlier assignment apart.
#[derive(Debug)]
pub enum FromKafka {
    /// The group gave these partitions; they are read once [`ToConsumer::Start`] says from where.
    Assigned {
        assignment: u64,
        partitions: Vec<Partition>,
    },
    Revoked {
        assignment: u64,
        reason: String,
    },
    /// The partitions are being read.
    Started {
        assignment: u64,
        /// Where their logs end.
        log_ends: Vec<(Partition, i64)>,
    },
    Records {
        assignment: u64,
        partition: Partition,
        epoch: u32,
        records: Vec<Record>,
    },
    /// Nothing lies between the last record and this offset.
    ReadTo {
        assignment: u64,
        partition: Partition,
        epoch: u32,
        offset: i64,
    },
    /// The offset after a partition's last record, for the lag, and up to where its transactions have ended.
    End {
        partition: Partition,
        offset: i64,
        stable: i64,
    },
    Connection(Connection),
    /// The brokers do not let this worker's user read.
    NotAllowed,
    /// They do not let it into the group.
    NotInGroup {
        reason: String,
    },
    /// Kafka has no place for this consumer any more, and it reads nothing more.
    Fenced {
        reason: String,
    },
    /// A partition cannot be read, and waiting does not help.
    Halted {
        /// `None`: which one is not known.
        partition: Option<Partition>,
        reason: String,
    },
}

/// What the worker tells the thread.
#[derive(Debug)]
pub enum ToConsumer {
    Start {
        assignment: u64,
        positions: Vec<(Partition, i64)>,
    },
    Rewind {
        partition: Partition,
        offset: i64,
        epoch: u32,
    },
    /// Read nothing more of a partition.
    Halt {
        partition: Partition,
    },
    /// What prices depend on from now on.
    Conditions(Arc<Conditions>),
    /// Commits applied positions, for lag tools.
    Commit {
        positions: Vec<(Partition, i64)>,
    },
    Stop,
}

/// The worker's end of the thread.
pub struct Handle {
    pub control: Sender<ToConsumer>,
    /// Set while the worker has enough of a topic.
    pub enough: Arc<Enough>,
    pub thread: JoinHandle<()>,
}

pub struct Settings {
    pub kafka: Kafka,
    pub age_from: AgeFrom,
    pub decoder: Decoder,
    /// Committed beside each offset: tells a lost state from a first start.
    pub generation: String,
    /// Whether partitions are kept in step: records are applied in the order of their times.
    pub in_order: bool,
    /// Records that may wait for partitions that are behind in time, in order.
    pub ahead_max: usize,
}

/// Starts the thread.
pub fn spawn(settings: Settings, events: UnboundedSender<FromKafka>) -> Result<Handle, BrokerError> {
    let consumer = join::join(&settings.kafka)?;
    let (control, orders) = channel();
    let enough = Arc::new(Enough::default());
    let thread = Thread {
        consumer: Arc::new(consumer),
        room: Room::new(enough.clone(), settings.in_order),
        settings,
        events,
        orders,
        assignment: 0,
        starting: None,
        committing: None,
        to_commit: Vec::new(),
        in_group: false,
        reading: BTreeMap::new(),
        in_step: InStep::default(),
        unreadable: Unreadable::default(),
        suspects: BTreeSet::new(),
        complained_at: None,
        joined_again: None,
        outside: 0,
        statistics_since_change: 0,
    };
    let thread = std::thread::Builder::new()
        .name("consumer".into())
        .spawn(move || thread.run())
        .map_err(|error| BrokerError::Settings { reason: error.to_string() })?;
    Ok(Handle { control, enough, thread })
}

struct Thread {
    consumer: Arc<BaseConsumer<Group>>,
    settings: Settings,
    events: UnboundedSender<FromKafka>,
    orders: Receiver<ToConsumer>,
    assignment: u64,
    /// Positions to start at, until Kafka has taken the generation that goes with them.
    starting: Option<BTreeMap<Partition, Reading>>,
    committing: Option<Committing>,
    /// Applied positions, for lag tools. They are committed with the next statistics that find this worker in its group: the
    /// client keeps a commit while it has no coordinator, and commits it after the session's end as a member without a name,
    /// which ends it for good where `kafka.instance_id` is set (FENCED_INSTANCE_ID).
    to_commit: Vec<(Partition, i64)>,
    /// Whether its coordinator is there, as the last statistics or the assignment had it.
    in_group: bool,
    reading: BTreeMap<Partition, Reading>,
    room: Room,
    in_step: InStep,
    unreadable: Unreadable,
    /// Of these the next batch may be one that cannot be read.
    suspects: BTreeSet<Partition>,
    complained_at: Option<Instant>,
    /// When it last took its place in the group again.
    joined_again: Option<Instant>,
    /// Statistics in a row that find it in no group, though brokers answer.
    outside: u32,
    /// Statistics seen since the last pause or assignment.
    statistics_since_change: u32,
}

#[derive(Clone, Copy)]
struct Reading {
    /// The next offset that may come.
    next: i64,
    epoch: u32,
    /// Whether a record has come since the partition was assigned.
    delivered: bool,
    /// What comes is from before a rewind, until the client has moved.
    seeking: bool,
}

impl Thread {
    fn run(mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(ToConsumer::Stop) | Err(TryRecvError::Disconnected) => break,
                Ok(order) => {
                    self.obey(order);
                    continue;
                }
                Err(TryRecvError::Empty) => {}
            }
            self.try_start();
            self.seek();
            self.look_at_suspect();
            match self.room.look(Instant::now()) {
                Look::Wait => {
                    std::thread::park_timeout(Duration::from_millis(1));
                    continue;
                }
                Look::Read { full } => self.pause(&full),
            }
            self.read_chunk();
            self.rebalanced();
            self.read_statistics();
        }
        self.commit();
        self.consumer.unsubscribe();
        // It leaves the group when nobody holds it any more.
        if let Some(committing) = &self.committing {
            let _ = committing.answer.recv_timeout(COMMIT_TIMEOUT);
        }
    }

    fn tell(&self, event: FromKafka) {
        // The worker is gone only while the process ends.
        let _ = self.events.send(event);
    }

    fn obey(&mut self, order: ToConsumer) {
        match order {
            ToConsumer::Start { assignment, positions } => {
                if assignment == self.assignment {
                    let reading =
                        |(partition, next)| (partition, Reading { next, epoch: 0, delivered: false, seeking: false });
                    self.starting = Some(positions.into_iter().map(reading).collect());
                }
            }
            ToConsumer::Rewind { partition, offset, epoch } => {
                let rewound = Reading { next: offset, epoch, delivered: false, seeking: false };
                if let Some(starting) = self.starting.as_mut().and_then(|starting| starting.get_mut(&partition)) {
                    *starting = rewound;
                } else if let Some(reading) = self.reading.get_mut(&partition) {
                    *reading = Reading { seeking: true, ..rewound };
                    self.in_step.rewound(partition, offset);
                }
            }
            ToConsumer::Halt { partition } => self.drop_partition(partition),
            ToConsumer::Conditions(conditions) => self.settings.decoder.set_conditions(conditions),
            ToConsumer::Commit { positions } if !self.reading.is_empty() => self.to_commit = positions,
            ToConsumer::Commit { .. } => {}
            ToConsumer::Stop => {}
        }
    }

    /// Reads the partitions once Kafka holds the generation for each: from then on an empty Redis is a lost one.
    fn try_start(&mut self) {
        let Some(mut starting) = self.starting.take() else { return };
        let positions: Vec<_> = starting.iter().map(|(partition, reading)| (*partition, reading.next)).collect();
        // A worker beyond the number of partitions has none: it stands by.
        if !positions.is_empty() && !self.has_committed(&positions) {
            self.starting = Some(starting);
            // Serves a rebalance that may come meanwhile.
            self.read_chunk();
            self.rebalanced();
            return;
        }
        failpoint::reached(Failpoint::AfterGeneration);
        let mut ends = Vec::new();
        for (partition, position) in &positions {
            match self.holds(*partition, *position) {
                Holds::Yes(end) => ends.push((*partition, *position, end)),
                Holds::No(reason) => {
                    starting.remove(partition);
                    self.tell(FromKafka::Halted { partition: Some(*partition), reason });
                }
                // The order of the records is not known without it.
                Holds::Unknown if self.settings.in_order => {
                    self.starting = Some(starting);
                    return;
                }
                // It is read: the client goes on trying.
                Holds::Unknown => {}
            }
        }
        self.reading = starting;
        self.assign();
        let log_ends = ends.iter().map(|(partition, _, end)| (*partition, *end)).collect();
        if self.settings.in_order {
            self.in_step = InStep::new(self.settings.ahead_max, ends.into_iter());
        }
        self.tell(FromKafka::Started { assignment: self.assignment, log_ends });
    }

    /// Moves rewound partitions. Not by a new assignment: librdkafka ends the process where two of those come in
    /// quick succession (an assertion in rd_kafka_assignment_partition_stopped).
    fn seek(&mut self) {
        let seeking: Vec<_> = self.reading.iter().filter(|(_, reading)| reading.seeking).collect();
        let seeking: Vec<_> = seeking.into_iter().map(|(partition, reading)| (*partition, reading.next)).collect();
        for (partition, next) in seeking {
            let topic = topic_of(&self.settings.kafka.topics, partition.input);
            match self.consumer.seek(topic, partition.index, Offset::Offset(next), SEEK_TIMEOUT) {
                Ok(()) => {
                    if let Some(reading) = self.reading.get_mut(&partition) {
                        reading.seeking = false;
                    }
                    self.statistics_since_change = 0;
                }
                // Its reading is only starting; the next turn tries again.
                Err(error) => self.complain(&error, "a partition is not rewound yet"),
            }
        }
    }

    fn list<'a>(&self, reading: impl Iterator<Item = (&'a Partition, &'a Reading)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, reading) in reading {
            let topic = topic_of(&self.settings.kafka.topics, partition.input);
            list.add_partition_offset(topic, partition.index, Offset::Offset(reading.next))
                .expect("an offset of the log is a valid offset");
        }
        list
    }

    fn assign(&mut self) {
        let list = self.list(self.reading.iter());
        if let Err(error) = client::assign(&self.consumer, &list) {
            self.tell(FromKafka::Halted {
                partition: None,
                reason: format!("kafka refused the assignment: {error}; restart the worker"),
            });
        }
        self.room.assigned();
        self.statistics_since_change = 0;
    }

    /// Pauses partitions of which there is enough, and resumes the others.
    fn pause(&mut self, full: &[Input]) {
        let ahead = self.in_step.ahead(full.contains(&Input::Usage));
        let change = self.room.change(self.reading.keys(), full, &ahead);
        if change.is_none() {
            return;
        }
        let list = |own: &[Partition]| self.list(self.reading.iter().filter(|(partition, _)| own.contains(partition)));
        let (pause, resume) = (list(&change.pause), list(&change.resume));
        tracing::debug!(paused = ?change.pause, resumed = ?change.resume, "there is enough of some partitions");
        if self.consumer.pause(&pause).is_ok() {
            self.room.paused(&change.pause);
        }
        if self.consumer.resume(&resume).is_ok() {
            self.room.resumed(&change.resume);
        }
        self.statistics_since_change = 0;
    }

    fn read_chunk(&mut self) {
        let mut chunk: BTreeMap<Partition, Vec<Record>> = BTreeMap::new();
        let started = Instant::now();
        let mut count = 0;
        let mut halted = None;
        let mut failed = None;
        let mut wait = POLL;
        while count < CHUNK_RECORDS {
            if count.is_multiple_of(CHUNK_CLOCK_RECORDS) && started.elapsed() >= CHUNK_AGE.max(wait) {
                break;
            }
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    match decode(&mut self.settings, self.consumer.context(), &message) {
                        Ok(record) => {
                            if let Some(record) = record
                                && let Some(reading) = self.reading.get_mut(&record.partition)
                                && !reading.seeking
                            {
                                reading.next = record.offset + 1;
                                reading.delivered = true;
                                chunk.entry(record.partition).or_default().push(record);
                            }
                        }
                        Err(halt) => {
                            halted = Some(halt);
                            break;
                        }
                    }
                    count += 1;
                    wait = Duration::ZERO;
                }
                Some(Err(error)) => {
                    failed = Some(error);
                    break;
                }
            }
            // Records after a rebalance belong to another assignment.
            if self.consumer.context().rebalanced() {
                break;
            }
        }
        for (partition, records) in chunk {
            let epoch = self.reading.get(&partition).map_or(0, |reading| reading.epoch);
            self.in_step.read(partition, &records);
            self.room.sent(records.len());
            self.tell(FromKafka::Records { assignment: self.assignment, partition, epoch, records });
        }
        if let Some(error) = failed {
            self.failed(&error);
        }
        if let Some((partition, reason)) = halted {
            self.halt(partition, reason);
        }
    }

    /// Whatever comes from now on belongs to another assignment.
    fn forget_assignment(&mut self) {
        self.assignment += 1;
        (self.starting, self.committing) = (None, None);
        self.to_commit.clear();
        self.in_group = false;
        self.reading.clear();
        self.in_step = InStep::default();
        self.unreadable = Unreadable::default();
        self.suspects.clear();
    }

    fn rebalanced(&mut self) {
        let rebalances = self.consumer.context().take_rebalances();
        for rebalance in rebalances {
            self.forget_assignment();
            let assignment = self.assignment;
            match rebalance {
                Rebalance::Assign(partitions) => {
                    self.in_group = true;
                    self.tell(FromKafka::Assigned { assignment, partitions });
                }
                Rebalance::Revoke => {
                    let reason = "the group has taken the partitions back".to_owned();
                    self.tell(FromKafka::Revoked { assignment, reason });
                }
                Rebalance::Lose => {
                    let session = humantime::format_duration(self.settings.kafka.session_timeout);
                    let reason = format!(
                        "the partitions are lost, as where kafka and this worker do not hear of each other for \
                         kafka.session_timeout ({session}); it joins the group again by itself"
                    );
                    self.tell(FromKafka::Revoked { assignment, reason });
                }
            }
        }
    }
}

/// A record, or why its partition cannot be read on.
fn decode(
    settings: &mut Settings,
    group: &Group,
    message: &BorrowedMessage,
) -> Result<Option<Record>, (Partition, String)> {
    let Some(partition) = group.partition(message.topic(), message.partition()) else { return Ok(None) };
    let timestamp = message.timestamp();
    if settings.age_from == AgeFrom::Append && !matches!(timestamp, Timestamp::LogAppendTime(_)) {
        let reason = format!(
            "{}/{}@{} carries no append time: set message.timestamp.type=LogAppendTime on the topic, or \
             events.age_from = \"create\" to trust the producers' clocks",
            message.topic(),
            message.partition(),
            message.offset(),
        );
        return Err((partition, reason));
    }
    let headers: Vec<(&str, Option<&[u8]>)> = message.headers().map(header_list).unwrap_or_default();
    let decoded = settings.decoder.decode(Raw {
        partition,
        offset: message.offset(),
        append_ms: timestamp.to_millis().unwrap_or(0),
        key: message.key(),
        value: message.payload(),
        headers: &headers,
    });
    if decoded.misrouted {
        metrics::record_misrouted(1);
    }
    if let Some(detail) = decoded.detail {
        let topic = message.topic();
        tracing::debug!(topic, partition = partition.index, offset = message.offset(), detail, "a record is dead");
    }
    Ok(Some(decoded.record))
}

fn header_list(headers: &BorrowedHeaders) -> Vec<(&str, Option<&[u8]>)> {
    headers.iter().map(|header| (header.key, header.value)).collect()
}
