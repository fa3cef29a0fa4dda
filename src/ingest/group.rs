//! The consumer group as the client's callbacks tell of it: rebalances and statistics, left for the thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::{Broker, Statistics};
use rdkafka::types::RDKafkaRespErr;

use super::client::{self, Attempts, Damage, topic_of};
use super::fault::{Fault, Reported};
use super::silence::{Line, Silence};
use crate::config::Topics;
use crate::ledger::call::{Input, Partition};

/// What the callbacks leave for the thread; they run inside its own polls.
pub struct Group {
    topics: Topics,
    shared: Mutex<Shared>,
    /// Whether a rebalance waits: asked after every record.
    rebalanced: AtomicBool,
    faults: Reported,
    pub damage: Damage,
}

struct Shared {
    rebalances: Vec<Rebalance>,
    statistics: Option<View>,
    silence: Silence,
    attempts: Attempts,
    /// Since when no broker is connected.
    down_since: Option<Instant>,
}

pub enum Rebalance {
    Assign(Vec<Partition>),
    /// The group gives them to others.
    Revoke,
    /// Others may have them already: group and worker have not heard of each other.
    Lose,
}

/// Whether the brokers are there for this worker.
#[derive(Debug)]
pub enum Connection {
    Answers,
    /// Connections stand, and nothing comes of what was asked for.
    Silent(Fault),
    /// None stands; why, as far as that is known.
    Down(Option<Fault>),
}

impl Connection {
    /// As readiness tells it.
    pub fn state(self) -> Result<(), String> {
        match self {
            Connection::Answers => Ok(()),
            Connection::Silent(fault) => Err(format!("no broker answers: {fault}")),
            Connection::Down(fault) => {
                let reason = fault.map_or_else(String::new, |fault| format!(": {fault}"));
                Err(format!("no broker is connected{reason}"))
            }
        }
    }
}

/// The cluster as the client's statistics show it.
pub struct View {
    pub connection: Connection,
    /// Brokers that answer and have told their number; the addresses of `kafka.brokers` and the coordinator come on top.
    pub brokers_up: usize,
    /// Statistics in a row without a connection or an attempt to make one.
    pub idle: u32,
    /// Whether the group's coordinator is connected and this worker has its place in the group.
    pub in_group: bool,
    pub partitions: Vec<PartitionView>,
}

/// A partition as the client's statistics show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionView {
    pub partition: Partition,
    /// Whether it is being fetched. While a partition has no leader, or its client has yet to make sure of a position, the
    /// other numbers are of before.
    pub active: bool,
    pub app_offset: i64,
    pub next_offset: i64,
    pub eof_offset: i64,
    pub queued: i64,
    /// Up to where transactions have ended: what is behind it is given to nobody.
    pub stable_end: i64,
    pub end: i64,
}

impl Group {
    /// `fetch_wait`: for how long a broker may keep a fetch unanswered where there is nothing new.
    pub fn new(topics: Topics, fetch_wait: Duration) -> Group {
        let shared = Shared {
            rebalances: Vec::new(),
            statistics: None,
            silence: Silence::new(fetch_wait),
            attempts: Attempts::default(),
            down_since: None,
        };
        Group {
            topics,
            shared: Mutex::new(shared),
            rebalanced: AtomicBool::new(false),
            faults: Reported::default(),
            damage: Damage::default(),
        }
    }

    pub fn rebalanced(&self) -> bool {
        self.rebalanced.load(Ordering::Acquire)
    }

    pub fn take_rebalances(&self) -> Vec<Rebalance> {
        let mut shared = self.shared();
        self.rebalanced.store(false, Ordering::Release);
        std::mem::take(&mut shared.rebalances)
    }

    pub fn take_statistics(&self) -> Option<View> {
        self.shared().statistics.take()
    }

    pub fn partition(&self, topic: &str, index: i32) -> Option<Partition> {
        let input = Input::ALL.into_iter().find(|input| topic_of(&self.topics, *input) == topic)?;
        Some(Partition { input, index })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Group {
    fn stats(&self, statistics: Statistics) {
        let mut views = Vec::new();
        for topic in statistics.topics.values() {
            for view in topic.partitions.values() {
                if let Some(partition) = self.partition(&topic.topic, view.partition) {
                    views.push(PartitionView {
                        partition,
                        active: view.fetch_state == "active",
                        app_offset: view.app_offset,
                        next_offset: view.next_offset,
                        eof_offset: view.eof_offset,
                        queued: view.fetchq_cnt,
                        stable_end: view.ls_offset,
                        end: view.hi_offset,
                    });
                }
            }
        }
        let up: Vec<&Broker> = statistics.brokers.values().filter(|broker| broker.state == "UP").collect();
        let lines: Vec<Line> = up.iter().map(|broker| line(broker)).collect();
        let mut shared = self.shared();
        let connection = match shared.silence.look(&lines) {
            _ if up.is_empty() => Connection::Down(self.faults.lately().or_else(|| self.faults.last_end())),
            Some(since) => {
                let fault = Fault::unanswered(since);
                // Why the client closes them at last.
                self.faults.note(fault.clone());
                Connection::Silent(fault)
            }
            None => Connection::Answers,
        };
        if matches!(connection, Connection::Answers) {
            self.faults.clear();
            if let Some(since) = shared.down_since.take() {
                client::all_is_well();
                tracing::info!(after_seconds = since.elapsed().as_secs(), "kafka is back");
            }
        }
        let idle = shared.attempts.look(&statistics);
        let answers = |broker: &&&Broker| broker.nodeid >= 0 && !shared.silence.is_silent(&broker.name);
        let brokers_up = up.iter().filter(answers).count();
        let in_group = statistics.cgrp.is_some_and(|group| group.state == "up" && group.join_state == "steady");
        shared.statistics = Some(View { connection, brokers_up, idle, in_group, partitions: views });
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.damage.note(&error, reason);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return; // the end of a partition is no error
        }
        // That all are down follows the reason why.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.shared().down_since.get_or_insert_with(Instant::now);
        } else {
            self.faults.note(Fault::new(&error, reason));
        }
        if let Some(times) = client::tell(&error) {
            tracing::warn!(%error, reason, times, "kafka client");
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.faults.note_logged(facility, message);
        client::log(level, facility, message);
    }
}

fn line(broker: &Broker) -> Line<'_> {
    // The coordinator lets a member that joins wait for all others.
    let waits = broker.waitresp_cnt > 0 && broker.source != "logical";
    Line { broker: &broker.name, waits, idle: Duration::from_micros(u64::try_from(broker.rxidle).unwrap_or(0)) }
}

impl ConsumerContext for Group {
    /// The partitions are not read yet when the group gives them: where they start is known only to Redis, and
    /// asking it here would block the poll. Until [`ToConsumer::Start`] the assignment is empty.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, given: &mut TopicPartitionList) {
        let assign = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        // The answer below makes the client forget it.
        let lost = consumer.assignment_lost();
        let done = if assign { consumer.assign(&TopicPartitionList::new()) } else { consumer.unassign() };
        if let Err(error) = done {
            tracing::error!(%error, "kafka took no answer to a rebalance");
        }
        let rebalance = if assign {
            let given = given.elements();
            let partitions = given.iter().filter_map(|each| self.partition(each.topic(), each.partition()));
            Rebalance::Assign(partitions.collect())
        } else if lost {
            Rebalance::Lose
        } else {
            Rebalance::Revoke
        };
        let mut shared = self.shared();
        shared.rebalances.push(rebalance);
        self.rebalanced.store(true, Ordering::Release);
    }
}
