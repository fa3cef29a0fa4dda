//! The client's place in the group: how it is taken, and taken again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::super::client::{self, BrokerError};
use super::super::group::Group;
use super::{FromKafka, Thread};
use crate::config::Kafka;

const FETCH_WAIT: &str = "fetch.wait.max.ms";
const DEFAULTS: [(&str, &str); 6] = [
    ("fetch.min.bytes", "1"),
    // How soon a new partition is seen.
    ("topic.metadata.refresh.interval.ms", "30000"),
    (FETCH_WAIT, "20"),
    ("queued.min.messages", "100000"),
    ("queued.max.messages.kbytes", "65536"),
    // The default of a second stalls a reader that keeps its queue full.
    ("fetch.queue.backoff.ms", "10"),
];
const FIXED: [(&str, &str); 8] = [
    ("check.crcs", "true"),
    ("isolation.level", "read_committed"),
    // A position that the log does not hold halts; it never jumps.
    ("auto.offset.reset", "error"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("enable.partition.eof", "true"),
    ("partition.assignment.strategy", "range"),
    ("statistics.interval.ms", "1000"),
];

/// Who has lost its place again so soon has not lost it by an accident: another has the same name.
const LOST_AGAIN: Duration = Duration::from_secs(300);

/// A client that joins the group.
pub(super) fn join(kafka: &Kafka) -> Result<BaseConsumer<Group>, BrokerError> {
    let mut config = client::reader_settings(kafka, &DEFAULTS, &FIXED);
    if let Some(instance) = &kafka.instance_id {
        config.set("group.instance.id", instance);
    }
    let fetch_wait =
        config.get(FETCH_WAIT).and_then(|ms| ms.parse().ok()).map_or(Duration::ZERO, Duration::from_millis);
    let group = Group::new(kafka.topics.clone(), fetch_wait);
    let consumer: BaseConsumer<Group> = config.create_with_context(group).map_err(BrokerError::settings)?;
    let topics = [kafka.topics.usage.as_str(), kafka.topics.commands.as_str()];
    consumer.subscribe(&topics).map_err(BrokerError::settings)?;
    Ok(consumer)
}

impl Thread {
    /// The client has given up for good: Kafka has no place for it any more.
    ///
    /// With `kafka.instance_id` the reason need not be another worker. What was being committed while the coordinator went away
    /// the client commits after the session's end, as a member without a name, which Kafka takes for another one. So it
    /// joins again, once; two workers of one name take the place from each other at once, and one of them ends.
    pub(super) fn lost_its_place(&mut self, error: &KafkaError) {
        let fenced = error.rdkafka_error_code() == Some(RDKafkaErrorCode::FencedInstanceId);
        let instance = self.settings.kafka.instance_id.as_ref().filter(|_| fenced);
        let Some(instance) = instance else {
            let reason = format!("kafka has no place for this consumer any more: {error}; restart the worker");
            return self.tell(FromKafka::Fenced { reason });
        };
        let group = &self.settings.kafka.group;
        if self.joined_again.is_some_and(|at| at.elapsed() < LOST_AGAIN) {
            let reason = format!(
                "another process has joined group {group} as kafka.instance_id = \"{instance}\" and has taken this worker's \
                 partitions: give each worker an id of its own; if there is no other, the group has lost sight of this one \
                 twice, as where its coordinator comes and goes: start it again"
            );
            return self.tell(FromKafka::Fenced { reason });
        }
        let reason =
            format!("group {group} has another kafka.instance_id = \"{instance}\", or takes this worker for one");
        self.join_again(&reason);
        self.joined_again = Some(Instant::now());
    }

    /// Takes a client for another that would never be of use again. It counts statistics, which come once a second, and not
    /// time: a process that was stopped has missed nothing. `idle`: so many without a connection or an attempt to make one.
    pub(super) fn look_for_its_place(&mut self, in_group: bool, brokers_answer: bool, idle: u32) {
        self.outside = if in_group || !brokers_answer { 0 } else { self.outside + 1 };
        let most = client::place_within(&self.settings.kafka);
        let attempt = client::attempt_within(&client::settings(&self.settings.kafka, &[], &[]));
        if u64::from(idle) > attempt.as_secs() {
            self.join_again("the client has no connection to a broker, and does not try to make one");
        } else if u64::from(self.outside) > most.as_secs() {
            let (group, most) = (&self.settings.kafka.group, humantime::format_duration(most));
            let reason = format!("the brokers answer, but group {group} has had no place for this worker for {most}");
            self.join_again(&reason);
        }
    }

    /// With another client. Kafka may take that for a second worker of the same `kafka.instance_id` and fence one of them: there is
    /// one more attempt then (`joined_again` is not set here).
    fn join_again(&mut self, reason: &str) {
        let reason = format!("{reason}; it joins again by itself");
        tracing::warn!(reason, "another client takes the place in the group");
        let lost = match join(&self.settings.kafka) {
            Ok(consumer) => std::mem::replace(&mut self.consumer, Arc::new(consumer)),
            Err(error) => return self.tell(FromKafka::Fenced { reason: error.to_string() }),
        };
        // It may wait for what it has asked of brokers that are silent.
        std::thread::Builder::new().name("lost".into()).spawn(move || drop(lost)).expect("a thread starts");
        self.outside = 0;
        self.forget_assignment();
        self.tell(FromKafka::Revoked { assignment: self.assignment, reason });
    }
}
