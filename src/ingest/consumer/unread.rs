//! What keeps a partition from being read: what the client's errors mean, and what is done then.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::super::client::{BrokerError, topic_of};
use super::super::fault::{Fault, not_allowed};
use super::super::scan::{Next, scan};
use super::{COMPLAIN_EVERY, FromKafka, LOG_START_TIMEOUT, Reading, Thread};
use crate::ledger::call::Partition;

/// Partitions of this assignment of which the client has said that they do not hold their next offset. It does not say
/// which; the brokers do.
#[derive(Default)]
pub(super) struct Unreadable {
    pub(super) told: usize,
    pub(super) named: usize,
}

/// Whether a partition's log holds the offset that is read next.
pub(super) enum Holds {
    /// And where it ends.
    Yes(i64),
    No(String),
    /// The brokers do not answer.
    Unknown,
}

impl Thread {
    pub(super) fn holds(&self, partition: Partition, position: i64) -> Holds {
        let topic = topic_of(&self.settings.kafka.topics, partition.input);
        let marks = self.consumer.fetch_watermarks(topic, partition.index, LOG_START_TIMEOUT);
        match marks {
            Ok((start, _)) if start > position => Holds::No(format!(
                "{topic}/{} starts at {start}, but {position} is read next: retention has deleted records that \
                 were never counted; restore the topic, or a redis state that is that far",
                partition.index
            )),
            Ok((_, end)) if end < position => Holds::No(format!(
                "{topic}/{} ends at {end}, but {position} is read next: the topic was truncated or made anew; \
                 restore it",
                partition.index
            )),
            Ok((_, end)) => Holds::Yes(end),
            Err(_) => Holds::Unknown,
        }
    }

    /// Halts the partitions that do not hold their next offset. Where the brokers do not answer, it is tried again.
    pub(super) fn name_unreadable(&mut self) {
        let reading: Vec<_> = self.reading.iter().map(|(partition, reading)| (*partition, reading.next)).collect();
        for (partition, next) in reading {
            match self.holds(partition, next) {
                Holds::Yes(_) => {}
                Holds::No(reason) => {
                    self.unreadable.named += 1;
                    self.halt(partition, reason);
                }
                Holds::Unknown => return,
            }
        }
        // By now each seems to hold it again, or the client has skipped what lies between.
        if self.unreadable.named < self.unreadable.told {
            self.unreadable.named = self.unreadable.told;
            let reason = "a partition did not hold the offset that redis says is next: it was truncated, made anew, or its \
                          retention is too short; nothing is skipped, restore the topic and restart the worker";
            self.tell(FromKafka::Halted { partition: None, reason: reason.to_owned() });
        }
    }

    /// Reads nothing more of a partition in this assignment; the others go on.
    pub(super) fn halt(&mut self, partition: Partition, reason: String) {
        self.drop_partition(partition);
        self.tell(FromKafka::Halted { partition: Some(partition), reason });
    }

    pub(super) fn drop_partition(&mut self, partition: Partition) {
        if let Some(starting) = &mut self.starting {
            starting.remove(&partition);
        }
        self.in_step.forget(partition);
        self.room.forget(partition);
        if let Some(reading) = self.reading.remove(&partition) {
            // What comes nevertheless is dropped: it is not being read.
            let _ = self.consumer.pause(&self.list([(&partition, &reading)].into_iter()));
        }
    }

    pub(super) fn failed(&mut self, error: &KafkaError) {
        match error {
            KafkaError::PartitionEOF(_) => {}
            // The client tells of it by itself, and not each time.
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            ) => {}
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
                self.unreadable.told += 1;
                self.name_unreadable();
            }
            KafkaError::MessageConsumptionFatal(_) => self.lost_its_place(error),
            _ => match self.consumer.context().damage.take() {
                Some(reason) => self.read_again(&reason),
                None => {
                    self.tell_of_rights(error);
                    self.complain(error, "reading from kafka");
                }
            },
        }
    }

    pub(super) fn tell_of_rights(&self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                self.tell(FromKafka::NotInGroup { reason: Fault::from(error).to_string() });
            }
            Some(code) if not_allowed(code) => self.tell(FromKafka::NotAllowed),
            _ => {}
        }
    }

    /// The client has met a batch that it could not read, and goes on behind it without saying of which partition. So all are
    /// read again from where they are, and one whose log cannot be read there is halted.
    fn read_again(&mut self, reason: &str) {
        tracing::warn!(reason, "kafka gave what cannot be read: all partitions are read again from where they are");
        for reading in self.reading.values_mut() {
            *reading = Reading { seeking: true, delivered: false, ..*reading };
        }
        // Otherwise those that stand first would be looked at again and again.
        if self.suspects.is_empty() {
            self.suspects = self.reading.keys().copied().collect();
        }
    }

    /// Asks for what is read next of one suspect anew, by another client: what was spoiled on its way is whole then.
    /// One in each turn, since it may take as long as a broker may be silent.
    pub(super) fn look_at_suspect(&mut self) {
        let Some(partition) = self.suspects.pop_first() else { return };
        let Some(reading) = self.reading.get(&partition) else { return };
        let topic = topic_of(&self.settings.kafka.topics, partition.input);
        let from = BTreeMap::from([(partition.index, reading.next)]);
        if let Err(error @ BrokerError::Damaged { .. }) = scan(&self.settings.kafka, topic, &from, |_| Next::Enough) {
            self.halt(partition, format!("{error}, and restart the worker; nothing is passed over"));
        }
    }

    /// The client repeats itself while a broker is away; the log need not.
    pub(super) fn complain(&mut self, error: &KafkaError, what: &str) {
        if self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained_at = Some(Instant::now());
            tracing::warn!(%error, what, "kafka");
        }
    }
}
