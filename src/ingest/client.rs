//! What every Kafka client of the meter has in common: its settings, why it fails, and a look at the cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::groups::GroupInfo;
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::statistics::{Broker, Statistics};
use rdkafka::{ClientContext, TopicPartitionList};

use super::fault::{Fault, Reported};
use crate::config::{Kafka, Topics};
use crate::ledger::call::Input;

/// A broker that is there answers within milliseconds; a TLS handshake across the world takes seconds.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the brokers do not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    #[error("librdkafka does not take the settings: {reason}; see kafka.properties")]
    Settings { reason: String },
    #[error("no answer from kafka at {brokers}: {fault}")]
    NoAnswer { brokers: String, fault: Fault },
    /// The client passes over such a batch: whoever meets it must not go on.
    #[error(
        "{place} cannot be read ({reason}): a batch there fails its checksum, or is of a kind that this program does not \
         know; mend the log on the brokers' disk, as from a replica"
    )]
    Damaged { place: String, reason: String },
    #[error(
        "topic {topic} does not exist, or its user may not see it; make it with `credit-meter check --create-topics`, or give the \
         user Describe on it"
    )]
    NoTopic { topic: String },
    #[error("kafka refused to {what}: {reason}")]
    Refused { what: String, reason: String },
}

/// The batch that a client could not read: it tells of it just before it gives the error, and reads on behind it.
#[derive(Debug, Default)]
pub struct Damage(Mutex<Option<String>>);

impl Damage {
    pub fn note(&self, error: &KafkaError, reason: &str) {
        use RDKafkaErrorCode::{BadCompression, BadMessage, NotImplemented};
        let of_a_batch = matches!(error.rdkafka_error_code(), Some(BadMessage | BadCompression | NotImplemented));
        // An answer that is none of Kafka's has the same code, and spoils no record.
        if of_a_batch && !reason.contains("Receive failed") {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }

    /// What was told of it, if an error that has just come is of such a batch.
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl BrokerError {
    /// A client could not be made. The value of a property may be a password: only its name is told.
    pub fn settings(error: KafkaError) -> BrokerError {
        let reason = match error {
            KafkaError::ClientConfig(_, reason, name, _) => format!("{name}: {reason}"),
            KafkaError::ClientCreation(reason) if reason.starts_with("ssl.") => {
                format!("{reason}: is the file that it names there, readable, and PEM?")
            }
            other => other.to_string(),
        };
        BrokerError::Settings { reason }
    }
}

/// Settings of a client: the meter's defaults, then the user's properties, then what the meter's promises rest on.
pub fn settings(kafka: &Kafka, defaults: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
    let mut settings = ClientConfig::new();
    // It says only at this level that a broker has hung up, which may be all that is known; `log` decides what is shown.
    if !matches!(settings.log_level, RDKafkaLogLevel::Debug) {
        settings.set_log_level(RDKafkaLogLevel::Info);
    }
    settings.set("bootstrap.servers", &kafka.brokers);
    settings.set("client.id", "credit-meter");
    // Idle connections die in silence behind load balancers.
    settings.set("socket.keepalive.enable", "true");
    // The OpenSSL that is built in has no authorities of its own: those of the system, wherever it keeps them.
    settings.set("ssl.ca.location", "probe");
    for (name, value) in defaults {
        settings.set(*name, *value);
    }
    for (name, value) in &kafka.properties {
        settings.set(name, &**value);
    }
    for (name, value) in fixed {
        settings.set(*name, *value);
    }
    settings
}

const MAX_POLL_INTERVAL: &str = "max.poll.interval.ms";
/// The client's own.
const MAX_POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(300);

/// Those of a client that reads, whether or not it joins the group: it asks for the name (the meter's is allowed already), and
/// refuses a `max.poll.interval.ms` below the session.
pub fn reader_settings(kafka: &Kafka, defaults: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
    let mut settings = settings(kafka, defaults, fixed);
    settings.set("group.id", &kafka.group);
    settings.set("session.timeout.ms", kafka.session_timeout.as_millis().to_string());
    if settings.get(MAX_POLL_INTERVAL).is_none() {
        let interval = MAX_POLL_INTERVAL_DEFAULT.max(kafka.session_timeout);
        settings.set(MAX_POLL_INTERVAL, interval.as_millis().to_string());
    }
    settings
}

/// Who still has no place in the group by then waits in vain, though the brokers answer: a group waits for its slowest member,
/// and for one that is gone, no longer than this.
pub fn place_within(kafka: &Kafka) -> Duration {
    let interval = reader_settings(kafka, &[], &[]).get(MAX_POLL_INTERVAL).and_then(|ms| ms.parse().ok());
    interval.map_or(MAX_POLL_INTERVAL_DEFAULT, Duration::from_millis) + kafka.session_timeout
}

/// Whether a client has given up: no connection stands, and it tries to make none. It never comes back from there, though the
/// brokers do. A broker that has just started may answer that there are no brokers, and then the client knows none, not even
/// `kafka.brokers` (librdkafka's issue 5301, open); or it knows them, and waits for a connection that it takes to be there.
#[derive(Debug, Default)]
pub struct Attempts {
    made: i64,
    idle: u32,
}

impl Attempts {
    /// Takes the next statistics; how many there were in a row without a connection or an attempt to make one. They are counted,
    /// and not time: a process that was stopped has missed nothing.
    pub fn look(&mut self, statistics: &Statistics) -> u32 {
        let brokers = || statistics.brokers.values();
        // The coordinator's connection has an address only once another one has told it.
        let made = brokers().filter(|broker| broker.source != "logical").filter_map(|broker| broker.connects).sum();
        let stands_still = |broker: &Broker| matches!(broker.state.as_str(), "INIT" | "DOWN" | "TRY_CONNECT");
        let goes_on = made != self.made || !brokers().all(stands_still);
        self.idle = if goes_on { 0 } else { self.idle + 1 };
        self.made = made;
        self.idle
    }
}

const RECONNECT_MAX: &str = "reconnect.backoff.max.ms";
/// The client's own.
const RECONNECT_MAX_DEFAULT: Duration = Duration::from_secs(10);

/// A client that goes on makes its next attempt well before.
pub fn attempt_within(settings: &ClientConfig) -> Duration {
    let most = settings.get(RECONNECT_MAX).and_then(|ms| ms.parse().ok());
    most.map_or(RECONNECT_MAX_DEFAULT, Duration::from_millis).max(RECONNECT_MAX_DEFAULT) * 2
}

/// Reads partitions from these offsets, also those that were paused: a pause outlives an assignment.
///
/// They are resumed before it. What is asked of a partition while the client's own thread starts it, librdkafka may pass over as
/// outdated, without an error: resumed afterwards it may stay paused, and be read no more.
pub fn assign<C: ConsumerContext + 'static>(consumer: &BaseConsumer<C>, from: &TopicPartitionList) -> KafkaResult<()> {
    // Those that the client does not know yet are not paused.
    consumer.resume(from)?;
    consumer.assign(from)
}

/// The name of an input topic.
pub fn topic_of(topics: &Topics, input: Input) -> &str {
    match input {
        Input::Usage => &topics.usage,
        Input::Commands => &topics.commands,
    }
}

/// What a client reports of itself, and how often: [`Reasons`] notices by it that the client has given up.
pub const STATISTICS: (&str, &str) = ("statistics.interval.ms", "5000");
const STATISTICS_EVERY: Duration = Duration::from_secs(5);

/// A client repeats an error with every attempt, up to ten times a second: how often the log has it.
const REPEAT_EVERY: Duration = Duration::from_secs(30);

/// Errors that come again and again, by kind: each told at once, then with how often it came since.
#[derive(Debug, Default)]
struct Repeats {
    by_code: BTreeMap<i32, Repeat>,
}

#[derive(Debug, Default)]
struct Repeat {
    told: Option<Instant>,
    untold: u64,
}

impl Repeats {
    /// Counts one more; how many to tell of now.
    fn count(&mut self, code: Option<RDKafkaErrorCode>, now: Instant) -> Option<u64> {
        let repeat = self.by_code.entry(code.map_or(0, |code| code as i32)).or_default();
        repeat.untold += 1;
        if repeat.told.is_some_and(|told| now.duration_since(told) < REPEAT_EVERY) {
            return None;
        }
        repeat.told = Some(now);
        Some(std::mem::take(&mut repeat.untold))
    }

    /// It is over: the next one is new.
    fn clear(&mut self) {
        self.by_code.clear();
    }
}

/// Of all clients of the process: while a broker is away, some are made anew with every attempt.
static REPEATS: Mutex<Repeats> = Mutex::new(Repeats { by_code: BTreeMap::new() });

/// Whether to tell of a client's error now, and of how many.
pub fn tell(error: &KafkaError) -> Option<u64> {
    REPEATS.lock().unwrap_or_else(PoisonError::into_inner).count(error.rdkafka_error_code(), Instant::now())
}

/// A broker is connected again.
pub fn all_is_well() {
    REPEATS.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// What a client says by itself. That a connection or a commit has failed comes as an error as well.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
    match level {
        Debug => tracing::debug!(target: "librdkafka", facility, message),
        _ if matches!(facility, "FAIL" | "COMMITFAIL") => tracing::debug!(target: "librdkafka", facility, message),
        Info | Notice => tracing::info!(target: "librdkafka", facility, message),
        Warning => tracing::warn!(target: "librdkafka", facility, message),
        Error | Critical | Alert | Emerg => tracing::error!(target: "librdkafka", facility, message),
    }
}

/// What a client reported by itself: a call that times out does not say why.
#[derive(Debug, Default)]
pub struct Reasons {
    pub faults: Reported,
    pub damage: Damage,
    attempts: Mutex<Attempts>,
}

impl Reasons {
    /// What it reported lately; else the error itself says what is known.
    pub fn fault(&self, error: &KafkaError) -> Fault {
        self.faults.lately().unwrap_or_else(|| error.into())
    }

    /// Whether the client is of no use any more, see [`Attempts`]. Only one with [`STATISTICS`] can tell.
    pub fn has_given_up(&self, settings: &ClientConfig) -> bool {
        STATISTICS_EVERY * self.attempts().idle >= attempt_within(settings)
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Reasons {
    fn error(&self, error: KafkaError, reason: &str) {
        self.damage.note(&error, reason);
        // The end of a partition is no fault.
        if matches!(error, KafkaError::PartitionEOF(_))
            || error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF)
        {
            return;
        }
        // "All brokers are down" follows the reason why.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) && self.faults.lately().is_some() {
            return;
        }
        self.faults.note(Fault::new(&error, reason));
        if let Some(times) = tell(&error) {
            tracing::warn!(reason, times, "kafka client");
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.faults.note_logged(facility, message);
        log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.attempts().look(&statistics);
    }
}

impl ConsumerContext for Reasons {}

impl ProducerContext for Reasons {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, _: ()) {}
}

/// A topic as the brokers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    pub partitions: i32,
    /// The smallest number of replicas that a partition of it has.
    pub replication: usize,
    /// Whether every partition can be read and written now.
    pub led: bool,
}

/// The cluster as the brokers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    pub brokers: usize,
    pub topics: BTreeMap<String, TopicView>,
}

/// A client that only asks. Its thread takes what the client reports while a question waits: that is why there is no answer.
///
/// One that has failed is not asked again: it may have given up, see [`Attempts`].
#[derive(Clone)]
pub struct Cluster {
    client: Arc<Mutex<Arc<Asking>>>,
    kafka: Kafka,
}

type Asking = ThreadedProducer<Reasons>;

impl Cluster {
    pub fn new(kafka: &Kafka) -> Result<Cluster, BrokerError> {
        let client = Arc::new(Mutex::new(Cluster::connect(kafka)?));
        Ok(Cluster { client, kafka: kafka.clone() })
    }

    fn connect(kafka: &Kafka) -> Result<Arc<Asking>, BrokerError> {
        let made = settings(kafka, &[], &[]).create_with_context(Reasons::default());
        made.map(Arc::new).map_err(BrokerError::settings)
    }

    fn current(&self) -> MutexGuard<'_, Arc<Asking>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn view(&self) -> Result<ClusterView, BrokerError> {
        // All topics: asking for one by name would create it where brokers create topics by themselves.
        let view = |client: &Asking| {
            client.client().fetch_metadata(None, ANSWER_TIMEOUT).map(|metadata| ClusterView {
                brokers: metadata.brokers().len(),
                topics: metadata.topics().iter().map(|topic| (topic.name().to_owned(), view_of(topic))).collect(),
            })
        };
        self.ask(view).await
    }

    /// How many members a group has. Who has just ended without leaving is one until its session ends.
    pub async fn members(&self, group: &str) -> Result<usize, BrokerError> {
        let group = group.to_owned();
        let members = move |client: &Asking| {
            let groups = client.client().fetch_group_list(Some(&group), ANSWER_TIMEOUT)?;
            // One whose coordinator is not ready is told without members.
            let has = |group: &GroupInfo| match group.state() {
                "Empty" | "Dead" | "" => group.members().len(),
                _ => group.members().len().max(1),
            };
            Ok(groups.groups().iter().map(has).sum())
        };
        self.ask(members).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Asking) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let client = self.current().clone();
        let asking = client.clone();
        let answer = tokio::task::spawn_blocking(move || question(&asking)).await.expect("asking does not panic");
        answer.map_err(|error| {
            let fault = client.context().fault(&error);
            let mut current = self.current();
            if Arc::ptr_eq(&current, &client)
                && let Ok(next) = Cluster::connect(&self.kafka)
            {
                *current = next;
            }
            drop(current);
            // It may wait for its thread.
            tokio::task::spawn_blocking(move || drop(client));
            BrokerError::NoAnswer { brokers: self.kafka.brokers.clone(), fault }
        })
    }

    /// The number of partitions of a topic that must be there.
    pub async fn partitions(&self, topic: &str) -> Result<i32, BrokerError> {
        let view = self.view().await?;
        let found = view.topics.get(topic).map(|topic| topic.partitions);
        found.ok_or_else(|| BrokerError::NoTopic { topic: topic.to_owned() })
    }
}

fn view_of(topic: &MetadataTopic) -> TopicView {
    let partitions = topic.partitions();
    TopicView {
        partitions: i32::try_from(partitions.len()).expect("kafka counts partitions with 32 bits"),
        replication: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
        led: topic.error().is_none() && partitions.iter().all(|partition| partition.leader() >= 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_tries_no_broker_any_more_has_given_up() {
        let statistics = |brokers: &[(&str, i64)]| {
            let broker = |(state, connects): &(&str, i64)| {
                let broker = Broker { state: (*state).to_owned(), connects: Some(*connects), ..Broker::default() };
                (format!("{state}-{connects}"), broker)
            };
            Statistics { brokers: brokers.iter().map(broker).collect(), ..Statistics::default() }
        };
        let mut attempts = Attempts::default();
        let mut look = |brokers: &[(&str, i64)]| attempts.look(&statistics(brokers));
        assert_eq!(look(&[("INIT", 0), ("TRY_CONNECT", 1)]), 0);
        assert_eq!(look(&[("INIT", 0), ("TRY_CONNECT", 1)]), 1);
        assert_eq!(look(&[("INIT", 0), ("TRY_CONNECT", 2)]), 0, "another attempt");
        assert_eq!((look(&[("INIT", 0), ("DOWN", 2)]), look(&[("INIT", 0), ("DOWN", 2)])), (1, 2));
        assert_eq!(
            (look(&[("INIT", 0), ("UP", 2)]), look(&[("INIT", 0), ("UP", 2)])),
            (0, 0),
            "who is connected need not try"
        );
        assert_eq!((look(&[]), look(&[]), look(&[])), (0, 1, 2), "it knows none");
        assert_eq!((look(&[("SSL_HANDSHAKE", 3)]), look(&[("SSL_HANDSHAKE", 3)])), (0, 0), "an attempt takes its time");
        for (backoff_ms, seconds) in [(None, 20), (Some("100"), 20), (Some("60000"), 120)] {
            let mut settings = ClientConfig::new();
            if let Some(backoff_ms) = backoff_ms {
                settings.set("reconnect.backoff.max.ms", backoff_ms);
            }
            assert_eq!(attempt_within(&settings), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn an_error_that_comes_again_is_told_at_once_and_then_every_half_minute_with_how_often_it_came() {
        let (start, mut repeats) = (Instant::now(), Repeats::default());
        let down = Some(RDKafkaErrorCode::AllBrokersDown);
        let mut at = |ms: u64| repeats.count(down, start + Duration::from_millis(ms));
        let rows = [(0, Some(1)), (100, None), (29_999, None), (30_000, Some(3)), (30_100, None), (95_000, Some(2))];
        for (ms, times) in rows {
            assert_eq!(at(ms), times, "at {ms} ms");
        }
        let late = start + Duration::from_millis(95_100);
        assert_eq!(repeats.count(Some(RDKafkaErrorCode::Authentication), late), Some(1), "another kind is new");
        repeats.clear();
        assert_eq!(repeats.count(down, late), Some(1), "after it was over");
    }

    #[test]
    fn damage_is_of_a_batch_and_told_once() {
        let of = |code, reason: &str| {
            let damage = Damage::default();
            damage.note(&KafkaError::MessageConsumption(code), reason);
            (damage.take(), damage.take())
        };
        let batch = "MessageSet at offset 1 (248 bytes) failed CRC32C check";
        assert_eq!(of(RDKafkaErrorCode::BadMessage, batch), (Some(batch.to_owned()), None));
        let answer = "k:1/1: Receive failed: Invalid response size 1213486160 (0..100000512)";
        assert_eq!(of(RDKafkaErrorCode::BadMessage, answer), (None, None), "an HTTP server, say");
        assert_eq!(of(RDKafkaErrorCode::BrokerTransportFailure, "Connection refused"), (None, None));
    }

    #[test]
    fn a_setting_that_is_not_taken_is_named_without_its_value() {
        let mut kafka = Kafka::default();
        kafka.properties.insert("sasl.pasword".into(), "hush".into());
        let said = Cluster::new(&kafka).map(|_| ()).unwrap_err().to_string();
        assert!(said.contains("sasl.pasword: No such configuration property") && !said.contains("hush"), "{said}");
    }

    #[test]
    fn the_users_properties_stand_between_defaults_and_promises() {
        let mut kafka = Kafka::default();
        kafka.properties.insert("linger.ms".into(), "50".into());
        kafka.properties.insert("acks".into(), "0".into());
        let settings = settings(&kafka, &[("linger.ms", "5")], &[("acks", "all")]);
        assert_eq!(settings.get("linger.ms"), Some("50"));
        assert_eq!(settings.get("acks"), Some("all"));
        assert_eq!(settings.get("bootstrap.servers"), Some("127.0.0.1:9092"));
        assert_eq!(settings.get("ssl.ca.location"), Some("probe"));
    }
}
