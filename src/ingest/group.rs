//! The consumer group as the client's callbacks tell of it: rebalances and statistics, left for the thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;

use super::client::{self, Damage, topic_of};
use super::fault::{Fault, Reported};
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

#[derive(Default)]
struct Shared {
    rebalances: Vec<Rebalance>,
    statistics: Option<View>,
    /// Since when no broker is connected.
    down_since: Option<Instant>,
}

pub enum Rebalance {
    Assign(Vec<Partition>),
    Revoke,
}

/// The cluster as the client's statistics show it.
pub struct View {
    /// That some broker is; else why none is, as far as that is known.
    pub connected: Result<(), Option<Fault>>,
    /// Brokers that have told their number; the addresses of `kafka.brokers` and the coordinator come on top.
    pub brokers_up: usize,
    pub partitions: Vec<PartitionView>,
}

/// A partition as the client's statistics show it.
pub struct PartitionView {
    pub partition: Partition,
    pub app_offset: i64,
    pub next_offset: i64,
    pub eof_offset: i64,
    pub queued: i64,
    /// Up to where transactions have ended: what is behind it is given to nobody.
    pub stable_end: i64,
    pub end: i64,
}

impl Group {
    pub fn new(topics: Topics) -> Group {
        Group {
            topics,
            shared: Mutex::default(),
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
        let up = || statistics.brokers.values().filter(|broker| broker.state == "UP");
        let (connected, brokers_up) = (up().next().is_some(), up().filter(|broker| broker.nodeid >= 0).count());
        let mut shared = self.shared();
        if connected && let Some(since) = shared.down_since.take() {
            client::all_is_well();
            tracing::info!(after_seconds = since.elapsed().as_secs(), "kafka is back");
        }
        if connected {
            self.faults.clear();
        }
        let connected = if connected { Ok(()) } else { Err(self.faults.lately()) };
        shared.statistics = Some(View { connected, brokers_up, partitions: views });
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

impl ConsumerContext for Group {
    /// The partitions are not read yet when the group gives them: where they start is known only to Redis, and
    /// asking it here would block the poll. Until [`ToConsumer::Start`] the assignment is empty.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, given: &mut TopicPartitionList) {
        let assign = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let done = if assign { consumer.assign(&TopicPartitionList::new()) } else { consumer.unassign() };
        if let Err(error) = done {
            tracing::error!(%error, "kafka took no answer to a rebalance");
        }
        let rebalance = if assign {
            let given = given.elements();
            let partitions = given.iter().filter_map(|each| self.partition(each.topic(), each.partition()));
            Rebalance::Assign(partitions.collect())
        } else {
            Rebalance::Revoke
        };
        let mut shared = self.shared();
        shared.rebalances.push(rebalance);
        self.rebalanced.store(true, Ordering::Release);
    }
}
