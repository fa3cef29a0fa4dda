//! Dead letters: the record as it came, key, value and headers byte for byte, with the reason in headers.
//!
//! The record is read again from the log: the way there need not keep the bytes of all records in hand.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{self, BrokerError, Reasons, topic_of};
use super::decode::{self, Decoder, Raw};
use super::ledger_tail::will_not_pass;
use super::producer::{Outgoing, ProduceError, Producer};
use super::tail::headers;
use crate::config::{Config, Kafka};
use crate::ledger::call::{Note, Partition};
use crate::pipeline::record::Body;

/// How long a record that was just read may take to be read again.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a dead letter is not in Kafka. The shard's batch waits; nothing is skipped.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("{topic}/{partition}@{offset} cannot be read again: {reason}")]
    Unreadable { topic: String, partition: i32, offset: i64, reason: String },
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

/// A record as it came.
struct Original {
    note: Note,
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Original {
    /// The field or place that decoding stumbles over; what is judged later has none.
    fn detail(&self, decoder: &mut Decoder) -> Option<String> {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let decoded = decoder.decode(Raw {
            partition: self.note.partition,
            offset: self.note.offset,
            append_ms: self.timestamp_ms,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &headers,
        });
        let same = matches!(decoded.record.body, Body::Dead { reason, .. } if reason == self.note.reason);
        decoded.detail.filter(|_| same)
    }
}

/// Reads the noted records again and produces a dead letter for each.
pub async fn produce(config: &Config, producer: &Producer, notes: &[Note]) -> Result<(), DeadLetterError> {
    let kafka = &config.kafka;
    let (for_reading, to_read) = (kafka.clone(), notes.to_vec());
    let originals = tokio::task::spawn_blocking(move || read(&for_reading, &to_read));
    let originals = originals.await.expect("reading does not panic")?;
    let mut decoder = Decoder::new(decode::Settings::of(&config.events), Arc::default());
    let mut acknowledgements = Vec::new();
    for original in &originals {
        let topic = topic_of(&kafka.topics, original.note.partition.input);
        let reasons = reason_headers(&config.redis.prefix, topic, original, &mut decoder);
        let came = original.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let added = reasons.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
        let headers: Vec<_> = came.chain(added).collect();
        let record = Outgoing {
            topic: &kafka.topics.dead_letter,
            key: original.key.as_deref(),
            value: original.value.as_deref(),
            headers: &headers,
            ..Outgoing::default()
        };
        acknowledgements.push(producer.enqueue(record).await?);
    }
    for acknowledgement in acknowledgements {
        acknowledgement.await?;
    }
    Ok(())
}

/// The meter that a dead letter comes from: several may share the topic, and each follows its own decisions only.
pub const FROM_METER: &str = "__connect.errors.connector.name";

/// What each of the headers that are added begins with.
pub const ADDED: &str = "__connect.errors.";

/// The string headers of Kafka Connect, which tools for dead letters read.
fn reason_headers(meter: &str, topic: &str, original: &Original, decoder: &mut Decoder) -> Vec<(&'static str, String)> {
    let note = original.note;
    let message = match original.detail(decoder) {
        Some(detail) => format!("{}: {detail}", note.reason.explain()),
        None => note.reason.explain().to_owned(),
    };
    let (partition, offset, reason) = (note.partition.index, note.offset, note.reason.name());
    tracing::warn!(topic, partition, offset, reason, message, "a record goes to the dead-letter topic");
    vec![
        ("__connect.errors.topic", topic.to_owned()),
        ("__connect.errors.partition", partition.to_string()),
        ("__connect.errors.offset", offset.to_string()),
        ("__connect.errors.exception.class.name", reason.to_owned()),
        ("__connect.errors.exception.message", message),
        ("__connect.errors.timestamp", original.timestamp_ms.to_string()),
        (FROM_METER, meter.to_owned()),
    ]
}

fn read(kafka: &Kafka, notes: &[Note]) -> Result<Vec<Original>, DeadLetterError> {
    let config = client::reader_settings(kafka, &[("fetch.wait.max.ms", "20")], &READ_FIXED);
    let consumer: BaseConsumer<Reasons> =
        config.create_with_context(Reasons::default()).map_err(BrokerError::settings)?;
    let mut waiting: BTreeMap<Partition, VecDeque<Note>> = BTreeMap::new();
    for note in notes {
        waiting.entry(note.partition).or_default().push_back(*note);
    }
    for notes in waiting.values_mut() {
        notes.make_contiguous().sort_unstable_by_key(|note| note.offset);
    }
    read_side_by_side(kafka, &consumer, waiting)
}

const READ_FIXED: [(&str, &str); 4] = [
    ("auto.offset.reset", "error"),
    ("enable.auto.commit", "false"),
    ("isolation.level", "read_committed"),
    ("check.crcs", "true"),
];

/// Offsets that are read on through, rather than sought past, to the next dead record. A few megabytes come sooner than what
/// was sought, where the brokers are far away.
const READ_ON_MAX: i64 = 10_000;

/// Reads the noted records of all partitions side by side, in turns: each takes a few times the way to the brokers and back.
fn read_side_by_side(
    kafka: &Kafka,
    consumer: &BaseConsumer<Reasons>,
    mut waiting: BTreeMap<Partition, VecDeque<Note>>,
) -> Result<Vec<Original>, DeadLetterError> {
    let mut originals = Vec::new();
    let mut at_once = usize::MAX;
    while let Some(note) = waiting.values().find_map(|notes| notes.front().copied()) {
        let next = waiting.iter().filter_map(|(partition, notes)| Some((*partition, notes.front()?.offset)));
        let mut turn: BTreeMap<Partition, i64> = next.take(at_once).collect();
        let list = list(kafka, &turn);
        let assigned = list.and_then(|list| client::assign(consumer, &list));
        assigned.map_err(|error| unreadable(kafka, note, error.to_string()))?;
        let mut heard = Instant::now();
        let mut last = None;
        while let Some(partition) = turn.keys().next() {
            let note = waiting[partition][0];
            if heard.elapsed() > READ_TIMEOUT {
                let last = last.map(|error: KafkaError| format!("; the last fault: {error}")).unwrap_or_default();
                return Err(unreadable(kafka, note, format!("no answer within {READ_TIMEOUT:?}{last}")));
            }
            let message = match consumer.poll(Duration::from_millis(200)) {
                None | Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(Ok(message)) => message,
                // Of one partition it is known which.
                Some(Err(error)) if error.rdkafka_error_code().is_some_and(will_not_pass) => match turn.len() {
                    1 => return Err(unreadable(kafka, note, error.to_string())),
                    _ => {
                        at_once = 1;
                        break;
                    }
                },
                Some(Err(error)) => match consumer.context().damage.take() {
                    Some(_) if turn.len() > 1 => {
                        at_once = 1;
                        break;
                    }
                    Some(reason) => return Err(unreadable(kafka, note, reason)),
                    // One of several brokers may be away, and the client goes on to the others.
                    None => {
                        last = Some(error);
                        continue;
                    }
                },
            };
            let own = |partition: &&Partition| {
                message.partition() == partition.index && message.topic() == topic_of(&kafka.topics, partition.input)
            };
            let Some(partition) = turn.keys().find(own).copied() else { continue };
            heard = Instant::now();
            let notes = waiting.get_mut(&partition).expect("what is read is waited for");
            let (note, until) = (notes[0], turn[&partition] + READ_ON_MAX);
            if message.offset() > note.offset {
                return Err(unreadable(kafka, note, "the log does not hold it any more".to_owned()));
            }
            if message.offset() == note.offset {
                originals.push(original(note, &message));
                notes.pop_front();
            }
            if notes.front().is_none_or(|next| next.offset >= until) {
                turn.remove(&partition);
                // Nothing more of it, while others are read; what comes nevertheless is passed over.
                let _ = self::list(kafka, &BTreeMap::from([(partition, until)])).and_then(|list| consumer.pause(&list));
            }
        }
    }
    Ok(originals)
}

fn list(kafka: &Kafka, offsets: &BTreeMap<Partition, i64>) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic_of(&kafka.topics, partition.input), partition.index, Offset::Offset(*offset))?;
    }
    Ok(list)
}

fn unreadable(kafka: &Kafka, note: Note, reason: String) -> DeadLetterError {
    let topic = topic_of(&kafka.topics, note.partition.input).to_owned();
    DeadLetterError::Unreadable { topic, partition: note.partition.index, offset: note.offset, reason }
}

fn original(note: Note, message: &BorrowedMessage) -> Original {
    Original {
        note,
        timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers(message),
    }
}
