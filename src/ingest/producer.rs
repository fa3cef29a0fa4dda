//! Records to Kafka, each acknowledged by all in-sync replicas. Loses nothing in silence: a record ends as
//! delivered or as an error that says what is known.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Statistics, Timestamp};
use tokio::sync::{Notify, oneshot};

use super::client::{self, BrokerError, Reasons};
use super::fault::{Fault, not_allowed};
use crate::config::Kafka;

const DEFAULTS: [(&str, &str); 6] = [
    // Batches form while the last one is under way; a lone record waits this long.
    ("linger.ms", "5"),
    ("compression.type", "lz4"),
    // As Java's clients choose: one account, one partition, whoever produces.
    ("partitioner", "murmur2_random"),
    // A dead letter holds a record of any size that the usage topic takes. Must stay below the queue's bytes.
    ("message.max.bytes", "104857600"),
    ("queue.buffering.max.kbytes", "262144"),
    ("queue.buffering.max.messages", "100000"),
];
const FIXED: [(&str, &str); 3] = [("acks", "all"), ("enable.idempotence", "true"), client::STATISTICS];

/// Room in the queue is signalled; this is for the signal that another waiter took.
const QUEUE_FULL_WAIT_MAX: Duration = Duration::from_millis(100);

/// A header: a name, and a value that may be null.
pub type OutgoingHeader<'a> = (&'a str, Option<&'a [u8]>);

/// A record to send. Without a partition the key chooses one; without a time the clock gives it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [OutgoingHeader<'a>],
    pub partition: Option<i32>,
    pub time_ms: Option<i64>,
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub partition: i32,
    pub offset: i64,
    /// When the broker appended it, where its topic stamps records so.
    pub append_ms: Option<i64>,
}

/// Why a record is not known to be there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// The same record will never be taken, unless someone raises the bound.
    #[error("a record of {bytes} bytes is too large for {topic}: raise the topic's max.message.bytes")]
    TooLarge { topic: String, bytes: usize },
    /// It is not there. Sending it again may help once someone has acted.
    #[error("kafka refused a record for {topic}: {reason}")]
    Refused { topic: String, reason: String },
    /// It may be there or not: send it again, with the same id.
    #[error("kafka has not acknowledged a record for {topic}: {reason}")]
    Indefinite { topic: String, reason: String },
}

impl ProduceError {
    /// Whether sending the record again may help without anyone's doing.
    pub fn may_pass(&self) -> bool {
        matches!(self, ProduceError::Indefinite { .. })
    }
}

/// A producer that can be shared. It replaces its client when that is broken for good.
pub struct Producer {
    settings: ClientConfig,
    client: Mutex<Arc<ThreadedProducer<Reports>>>,
}

impl Producer {
    pub fn new(kafka: &Kafka) -> Result<Producer, BrokerError> {
        let settings = client::settings(kafka, &DEFAULTS, &FIXED);
        let client = Mutex::new(Arc::new(connect(&settings)?));
        Ok(Producer { settings, client })
    }

    /// Sends a record and waits for its acknowledgement.
    pub async fn send(&self, record: Outgoing<'_>) -> Result<Delivered, ProduceError> {
        self.enqueue(record).await?.await
    }

    /// Puts a record into the client's queue, waiting while it is full. The order of calls is the order of records
    /// in a partition. What is returned resolves when Kafka acknowledges.
    pub async fn enqueue(&self, record: Outgoing<'_>) -> Result<Acknowledgement, ProduceError> {
        loop {
            let client = self.current();
            let (report, acknowledgement) = oneshot::channel();
            match client.send(base_record(&record, Box::new(report))) {
                Ok(()) => {
                    return Ok(Acknowledgement { topic: record.topic.to_owned(), report: acknowledgement });
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    let room = client.context().room.notified();
                    let _ = tokio::time::timeout(QUEUE_FULL_WAIT_MAX, room).await;
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::Fatal), _)) => {
                    self.replace(client).map_err(|error| not_replaced(record.topic, &error))?;
                }
                Err((error, _)) => return Err(not_taken(record.topic, record_bytes(&record), &error)),
            }
        }
    }

    fn current(&self) -> Arc<ThreadedProducer<Reports>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes another client for one that has given up: whoever waits for its acknowledgements would not notice.
    pub fn replace_lost(&self) {
        let client = self.current();
        if client.context().reasons.has_given_up(&self.settings)
            && let Err(error) = self.replace(client)
        {
            tracing::warn!(%error, "the kafka producer that tries no broker any more is not replaced");
        }
    }

    /// An idempotent client that lost track of its sequence refuses everything; one that has given up sends nothing.
    /// What it still held ends as an error.
    fn replace(&self, broken: Arc<ThreadedProducer<Reports>>) -> Result<(), BrokerError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&client, &broken) {
            return Ok(());
        }
        let reason = broken.client().fatal_error().map_or_else(
            || "it has no connection to a broker, and does not try to make one".into(),
            |(_, reason)| reason,
        );
        tracing::warn!(reason, "the kafka producer is replaced");
        *client = Arc::new(connect(&self.settings)?);
        drop(client);
        // It waits for its threads.
        std::thread::Builder::new().name("lost".into()).spawn(move || drop(broken)).expect("a thread starts");
        Ok(())
    }
}

fn not_replaced(topic: &str, error: &BrokerError) -> ProduceError {
    ProduceError::Refused { topic: topic.to_owned(), reason: error.to_string() }
}

fn connect(settings: &ClientConfig) -> Result<ThreadedProducer<Reports>, BrokerError> {
    settings.create_with_context(Reports::default()).map_err(BrokerError::settings)
}

fn base_record<'a>(record: &Outgoing<'a>, report: Box<Report>) -> BaseRecord<'a, [u8], [u8], Box<Report>> {
    let mut made = BaseRecord::with_opaque_to(record.topic, report);
    made.key = record.key;
    made.payload = record.value;
    made.partition = record.partition;
    made.timestamp = record.time_ms;
    if !record.headers.is_empty() {
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        let add = |headers: OwnedHeaders, (key, value): &OutgoingHeader| headers.insert(Header { key, value: *value });
        made.headers = Some(record.headers.iter().fold(headers, add));
    }
    made
}

fn record_bytes(record: &Outgoing) -> usize {
    record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len)
}

/// A record's fate: resolves when Kafka has acknowledged it, or when that is given up.
#[derive(Debug)]
pub struct Acknowledgement {
    topic: String,
    report: oneshot::Receiver<Result<Delivered, ProduceError>>,
}

impl Acknowledgement {
    /// The fate if it is known already.
    pub fn known(&mut self) -> Option<Result<Delivered, ProduceError>> {
        match self.report.try_recv() {
            Ok(fate) => Some(fate),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(self.forgotten())),
        }
    }

    /// The client went away with the record.
    fn forgotten(&self) -> ProduceError {
        ProduceError::Indefinite { topic: self.topic.clone(), reason: "the producer was closed".to_owned() }
    }
}

impl Future for Acknowledgement {
    type Output = Result<Delivered, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.report).poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(fate)) => Poll::Ready(fate),
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.forgotten())),
        }
    }
}

type Report = oneshot::Sender<Result<Delivered, ProduceError>>;

/// Takes delivery reports to those who wait for them.
#[derive(Default)]
struct Reports {
    reasons: Reasons,
    /// Told with each report: a place in the queue is free.
    room: Notify,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        self.reasons.error(error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.reasons.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.reasons.stats(statistics);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Box<Report>) {
        let fate = match result {
            Ok(message) => {
                let append_ms = match message.timestamp() {
                    Timestamp::LogAppendTime(append_ms) => Some(append_ms),
                    Timestamp::CreateTime(_) | Timestamp::NotAvailable => None,
                };
                Ok(Delivered { partition: message.partition(), offset: message.offset(), append_ms })
            }
            Err((error, message)) => Err(self.not_delivered(message.topic(), message.payload_len(), error)),
        };
        // Nobody waits: the sender was stopped.
        let _ = report.send(fate);
        self.room.notify_one();
    }
}

impl Reports {
    fn not_delivered(&self, topic: &str, bytes: usize, error: &KafkaError) -> ProduceError {
        match not_taken(topic, bytes, error) {
            // A time-out alone does not tell that no broker was there.
            ProduceError::Indefinite { topic, reason } => {
                let fault = self.reasons.faults.lately().map(|fault| format!(" ({fault})")).unwrap_or_default();
                ProduceError::Indefinite { topic, reason: format!("{reason}{fault}") }
            }
            definite @ (ProduceError::TooLarge { .. } | ProduceError::Refused { .. }) => definite,
        }
    }
}

fn not_taken(topic: &str, bytes: usize, error: &KafkaError) -> ProduceError {
    use RDKafkaErrorCode as Code;

    let topic = topic.to_owned();
    match error.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge) => ProduceError::TooLarge { topic, bytes },
        Some(
            code @ (Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::InvalidRecord
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::InvalidArgument
            | Code::PolicyViolation),
        ) => {
            let told = code.to_string();
            let reason = if not_allowed(code) { Fault::new(error, &told).to_string() } else { told };
            ProduceError::Refused { topic, reason }
        }
        Some(code) => ProduceError::Indefinite { topic, reason: code.to_string() },
        None => ProduceError::Indefinite { topic, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_called_refused() {
        let fate = |code| not_taken("t", 9, &KafkaError::MessageProduction(code));
        let check = |code, expected: fn(&ProduceError) -> bool| assert!(expected(&fate(code)), "{code}");
        check(RDKafkaErrorCode::MessageSizeTooLarge, |error| {
            *error == ProduceError::TooLarge { topic: "t".into(), bytes: 9 }
        });
        check(RDKafkaErrorCode::UnknownTopic, |error| matches!(error, ProduceError::Refused { .. }));
        check(RDKafkaErrorCode::MessageTimedOut, |error| matches!(error, ProduceError::Indefinite { .. }));
        check(RDKafkaErrorCode::PurgeInflight, |error| matches!(error, ProduceError::Indefinite { .. }));
        check(RDKafkaErrorCode::NotEnoughReplicasAfterAppend, |error| matches!(error, ProduceError::Indefinite { .. }));
    }

    #[tokio::test]
    async fn a_client_without_brokers_is_replaced_and_gives_up_what_it_held() {
        let producer = Producer::new(&Kafka { brokers: "127.0.0.1:1".into(), ..Kafka::default() }).unwrap();
        let record = Outgoing { topic: "t", value: Some(b"{}"), ..Outgoing::default() };
        let mut held = producer.enqueue(record).await.unwrap();
        let lost = producer.current();
        for _ in 0..4 {
            assert!(!lost.context().reasons.has_given_up(&producer.settings));
            lost.context().stats(Statistics::default());
        }
        drop(lost);
        assert_eq!(held.known(), None);
        // Whoever holds records waits for their fate, and sends nothing meanwhile.
        producer.replace_lost();
        // Not by its time-out, which comes minutes later.
        assert!(matches!(held.await, Err(ProduceError::Indefinite { reason, .. }) if reason.contains("Purge")));
        let mut next = producer.enqueue(record).await.unwrap();
        assert_eq!(next.known(), None, "it has another client, which tries");
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for_and_unsent_records_end_as_indefinite() {
        let mut kafka = Kafka { brokers: "127.0.0.1:1".into(), ..Kafka::default() };
        kafka.properties.insert("queue.buffering.max.messages".into(), "2".into());
        kafka.properties.insert("message.timeout.ms".into(), "300".into());
        let producer = Producer::new(&kafka).unwrap();
        let record = Outgoing { topic: "t", value: Some(b"{}"), ..Outgoing::default() };
        let mut fates = Vec::new();
        for _ in 0..5 {
            fates.push(producer.enqueue(record).await.unwrap());
        }
        for fate in fates {
            assert!(matches!(fate.await, Err(ProduceError::Indefinite { .. })));
        }
    }
}
