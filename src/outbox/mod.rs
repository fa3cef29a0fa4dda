//! The relay: takes messages from the shards' outboxes to Kafka, in order, and deletes them once acknowledged.
//!
//! A message may be published twice (a relay that dies in between), always with the same id; never lost.

/// What a relay knows of each outbox.
pub mod known;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::DateTime;

use tokio::sync::{Notify, RwLock, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config::{Outbox, PublishAfter, Topics};
use crate::failpoint::{self, Failpoint};
use crate::http::ByShard;
use crate::ingest::producer::{Acknowledgement, Delivered, Outgoing, ProduceError, Producer};
use crate::ingest::statements::{CLOSED, Statement};
use crate::ledger::apply::json_text;
use crate::ledger::call::{OutboxEntry, Output};
use crate::metrics;
use crate::store::{Durable, Level, Store, StoreError, TakeCall, Taken, written_ms};
use known::Known;

/// Messages of a shard that are under way at once.
const TAKE_COUNT: usize = 100;
/// The wait after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// What the relays of all shards share.
pub struct Relay {
    pub store: Store,
    pub producer: Arc<Producer>,
    pub topics: Topics,
    pub settings: Outbox,
    /// Names the meter in the messages.
    pub source: String,
    /// Names this relay, for the lease.
    pub name: String,
    /// Why the outbox of a shard waits.
    pub waiting: ByShard,
    pub known: Known,
    /// A shard's bell: rung when its outbox was filled.
    pub bells: Vec<Notify>,
    /// Told the accounts of which an alert tells, as soon as it is there.
    pub alerts: mpsc::Sender<Arc<str>>,
    /// Held from a message's taking to its acknowledgement.
    pub publishing: RwLock<()>,
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
    #[error(
        "its messages wait, since a failover could undo what they tell of: {missing}; bring the replicas back, or lower \
         outbox.replicas or outbox.publish_after"
    )]
    NotDurable { missing: String },
}

impl Relay {
    /// Publishes one shard's outbox until it is told to stop.
    pub async fn run(self: Arc<Relay>, shard: u32, stop: CancellationToken) {
        let mut published = Vec::new();
        loop {
            let (wait, rings) = match self.publish(shard, &mut published).await {
                Ok(more) => {
                    self.known.tried(shard, None);
                    (if more { Duration::ZERO } else { self.settings.poll }, true)
                }
                Err(error) => {
                    tracing::warn!(shard, %error, "the outbox waits");
                    metrics::record_outbox_failure();
                    if let RelayError::Store(error) = &error {
                        metrics::record_call_refusal(error.kind());
                        self.known.unanswered(shard);
                    }
                    self.known.tried(shard, Some(error.to_string()));
                    let wait = match error {
                        // Kafka may be away from this worker alone: another has time to take its place.
                        RelayError::Produce(_) => {
                            self.renew(shard, Duration::from_millis(1), &published).await;
                            RETRY.max((2 * self.settings.poll).min(self.settings.lease))
                        }
                        RelayError::Store(_) | RelayError::NotDurable { .. } => RETRY,
                    };
                    (wait, false)
                }
            };
            self.waiting.set(shard, self.known.state(shard));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.bells[shard as usize].notified(), if rings => {}
            }
        }
    }

    /// Tells how long messages have waited, and replaces a producer that has given up. A relay that waits for Kafka can do neither
    /// itself.
    pub fn watch(&self) {
        self.producer.replace_lost();
        metrics::set_outbox_oldest(self.known.oldest());
        for shard in 0..self.bells.len() as u32 {
            self.waiting.set(shard, self.known.state(shard));
        }
    }

    /// Waits until what was taken from an outbox before now is in Kafka.
    pub async fn settle(&self) {
        drop(self.publishing.write().await);
    }

    /// Takes what is next and publishes it; `true` if there may be more.
    async fn publish(&self, shard: u32, published: &mut Vec<String>) -> Result<bool, RelayError> {
        let call = TakeCall {
            relay: self.name.clone(),
            lease_ms: self.settings.lease.as_millis() as u64,
            published: published.clone(),
            count: TAKE_COUNT,
            durable: durable(&self.settings),
        };
        let _publishing = self.publishing.read().await;
        let entries = match self.store.take(shard, &call).await? {
            Taken::Held => {
                self.known.lost(shard);
                metrics::set_outbox_entries(shard, 0);
                return Ok(false);
            }
            // What was published is deleted already, and nothing more was.
            Taken::NotDurable(missing) => {
                published.clear();
                self.known.withheld(shard);
                return Err(RelayError::NotDurable { missing });
            }
            Taken::Entries(entries) => entries,
        };
        published.clear();
        self.known.taken(shard, oldest_ms(&entries));
        for (_, entry) in entries.iter().filter(|(_, entry)| entry.output == Output::Alerts) {
            // Full, or nobody counts accounts: the next census finds it.
            let _ = self.alerts.try_send(entry.account.as_str().into());
        }
        if !entries.is_empty() {
            failpoint::reached(Failpoint::BeforePublish);
        }
        let failed = {
            let sending = self.send(&entries, published);
            tokio::pin!(sending);
            let started = Instant::now();
            loop {
                tokio::select! {
                    failed = &mut sending => break failed,
                    () = tokio::time::sleep(self.settings.lease / 3) => {
                        self.renew(shard, lease_after(started.elapsed(), self.settings.lease), &[]).await;
                    }
                }
            }
        };
        if let Some(error) = failed {
            return Err(error.into());
        }
        if !published.is_empty() {
            failpoint::reached(Failpoint::AfterPublish);
        }
        if entries.is_empty() {
            metrics::set_outbox_entries(shard, 0);
        }
        Ok(!entries.is_empty())
    }

    /// Keeps the lease for a while longer, and deletes what was published.
    async fn renew(&self, shard: u32, lease: Duration, published: &[String]) {
        let call = TakeCall {
            relay: self.name.clone(),
            lease_ms: lease.as_millis() as u64,
            published: published.to_vec(),
            count: 1,
            durable: None,
        };
        match self.store.take(shard, &call).await {
            Ok(Taken::Held) => self.known.lost(shard),
            // It may have been another's turn meanwhile, so what waits is told anew.
            Ok(Taken::Entries(entries)) => self.known.taken(shard, oldest_ms(&entries)),
            Ok(Taken::NotDurable(_)) => self.known.withheld(shard),
            Err(error) => {
                metrics::record_call_refusal(error.kind());
                self.known.unanswered(shard);
            }
        }
    }

    /// Sends messages, and tells which may be deleted. What comes behind one that failed is sent again.
    async fn send(&self, entries: &[(String, OutboxEntry)], published: &mut Vec<String>) -> Option<ProduceError> {
        let mut failed = None;
        let mut acknowledgements = Vec::new();
        for (_, entry) in entries {
            match self.enqueue(entry).await {
                Ok(acknowledgement) => acknowledgements.push(acknowledgement),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let refused = failed.is_some();
        for (acknowledgement, (entry_id, entry)) in acknowledgements.into_iter().zip(entries) {
            // All are waited for: none is under way any more once this returns.
            match acknowledgement.await {
                Ok(delivered) if failed.is_none() || refused => {
                    metrics::record_published(self.topic(entry.output), 1);
                    count_rollover(entry, &delivered);
                    published.push(entry_id.clone());
                }
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed
    }

    async fn enqueue(&self, entry: &OutboxEntry) -> Result<Acknowledgement, ProduceError> {
        let event = cloud_event(&self.source, entry);
        let record = Outgoing {
            topic: self.topic(entry.output),
            key: Some(entry.account.as_bytes()),
            value: Some(event.as_bytes()),
            headers: &[("content-type", Some(b"application/cloudevents+json; charset=UTF-8"))],
            ..Outgoing::default()
        };
        self.producer.enqueue(record).await
    }

    fn topic(&self, output: Output) -> &str {
        match output {
            Output::Denied => &self.topics.denied,
            Output::Ledger => &self.topics.ledger,
            Output::Cycles => &self.topics.cycles,
            Output::Alerts => &self.topics.alerts,
        }
    }
}

fn oldest_ms(entries: &[(String, OutboxEntry)]) -> Option<i64> {
    entries.first().and_then(|(entry_id, _)| written_ms(entry_id))
}

/// For how long a relay keeps its lease, once it has waited for Kafka for so long. Kafka may be away from this worker alone:
/// then it leaves its place free half of the time, and whoever finds it free publishes the same messages.
fn lease_after(waited: Duration, lease: Duration) -> Duration {
    if waited < lease { lease } else { lease / 6 }
}

/// What must hold of messages before they leave.
pub fn durable(settings: &Outbox) -> Option<Durable> {
    let level = match settings.publish_after {
        PublishAfter::Applied => return None,
        PublishAfter::Replicated => Level::Replicated,
        PublishAfter::Synced => Level::Synced,
    };
    // Within half a lease, so that a relay that waits for its replicas keeps its outbox.
    Some(Durable { level, replicas: settings.replicas, within: settings.lease / 2 })
}

/// Counts a cycle's close, which is told once, by its first statement.
fn count_rollover(entry: &OutboxEntry, delivered: &Delivered) {
    if let Some(end_ms) = closed_at(entry) {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        // A topic that carries no append time leaves this clock.
        let told_ms = delivered.append_ms.unwrap_or_else(now);
        metrics::record_rollover(Duration::from_millis(u64::try_from(told_ms - end_ms).unwrap_or(0)));
    }
}

/// The end of the cycle whose first statement a message is.
fn closed_at(entry: &OutboxEntry) -> Option<i64> {
    if entry.event_type != CLOSED {
        return None;
    }
    let statement: Statement = serde_json::from_str(&entry.data).ok()?;
    let end = DateTime::parse_from_rfc3339(&statement.cycle.end).ok()?;
    (statement.revision == 1).then(|| end.timestamp_millis())
}

/// The message as a structured CloudEvent.
pub fn cloud_event(source: &str, entry: &OutboxEntry) -> String {
    format!(
        "{{\"specversion\":\"1.0\",\"id\":{},\"source\":{},\"type\":\"{}\",\"subject\":{},\
         \"datacontenttype\":\"application/json\",\"data\":{}}}",
        json_text(&entry.id),
        json_text(source),
        entry.event_type,
        json_text(&entry.account),
        entry.data,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::http::{Check, Health};
    use crate::ledger::call::{Change, CommandCall, Partition, Range, RefusalReason, Reply, Stamp};
    use crate::ledger::catalogue::CatalogueId;
    use crate::ledger::command::{GRANT, refuse};
    use crate::ledger::shard::InitCall;
    use crate::store::MemoryStore;

    /// A store whose shard 0 has one message: that a command was refused.
    fn store_with_a_message() -> MemoryStore {
        let store = MemoryStore::new(1);
        let catalogue = CatalogueId { version: 1, hash: "h".into() };
        let generation = "g".to_owned();
        store.init(
            0,
            &InitCall {
                generation: generation.clone(),
                shards: 1,
                catalogue: catalogue.clone(),
                catalogue_text: "".into(),
                grown: None,
                starts: Vec::new(),
                first_start: true,
            },
        );
        let stamp = Stamp {
            generation,
            catalogue,
            usage_topic: "u".into(),
            restamp_tolerance_ms: 0,
            breakdown: false,
            outbox_max: 10,
            set_members_max: 9,
            journal_bytes_max: 8192,
        };
        let call = CommandCall {
            stamp: Arc::new(stamp),
            range: Range { partition: Partition::COMMANDS, from: 0, to: 1, repeats: 0, last: None },
            account: "acme".into(),
            version: 0,
            command_id: "c1".into(),
            member: 1,
            command_type: GRANT,
            change: Change::Refuse(refuse(RefusalReason::UnknownAccount, "no such account".into())),
            thresholds: Vec::new(),
            credit_types: Vec::new(),
            told: false,
            others: Vec::new(),
        };
        assert!(matches!(store.command(0, &call), Reply::Applied(_)));
        store
    }

    #[tokio::test]
    async fn a_message_stays_in_the_outbox_until_kafka_has_it() {
        let store = store_with_a_message();
        let mut config = Config::default();
        config.kafka.brokers = "127.0.0.1:1".into(); // nobody there
        config.kafka.properties.insert("message.timeout.ms".into(), "200".into());
        let relay = Relay {
            store: Store::Memory(store.clone()),
            producer: Arc::new(Producer::new(&config.kafka).unwrap()),
            topics: config.kafka.topics.clone(),
            settings: config.outbox.clone(),
            source: "meter".into(),
            name: "r1".into(),
            waiting: ByShard::new(Arc::new(Health::new()), Check::Outbox),
            known: Known::new(1, config.outbox.lease, config.health.outbox_after),
            bells: vec![Notify::new()],
            alerts: mpsc::channel(1).0,
            publishing: RwLock::default(),
        };
        let mut published = Vec::new();
        for _ in 0..2 {
            assert!(relay.publish(0, &mut published).await.is_err(), "it is not acknowledged");
        }
        let call = TakeCall { relay: "r1".into(), lease_ms: 1, published, count: 10, durable: None };
        let Taken::Entries(left) = store.take(0, &call) else { panic!("nobody else holds it") };
        assert_eq!(left.len(), 1, "it is still there");
    }

    #[test]
    fn a_relay_that_waits_for_kafka_leaves_its_place_free_for_half_of_the_time() {
        let lease = Duration::from_secs(9);
        assert_eq!(lease_after(Duration::from_secs(8), lease), lease);
        assert!(2 * lease_after(Duration::from_secs(9), lease) <= lease / 3, "it renews it every third");
    }

    #[test]
    fn a_cycle_is_counted_by_its_first_statement() {
        let entry = |event_type: &str, revision: u32| OutboxEntry {
            output: Output::Cycles,
            id: format!("closed/acme/0/{revision}"),
            event_type: event_type.into(),
            account: "acme".into(),
            data: format!(
                "{{\"cycle\":{{\"number\":0,\"start\":\"2026-01-01T00:00:00Z\",\"end\":\"2026-02-01T00:00:00Z\"}},\
                 \"plan\":\"basic\",\"revision\":{revision},\"balances\":{{}}}}"
            ),
        };
        assert_eq!(closed_at(&entry(CLOSED, 1)), Some(1_769_904_000_000));
        assert_eq!(closed_at(&entry(CLOSED, 2)), None, "late usage has restated it");
        assert_eq!(closed_at(&entry("credits.cycle.opened.v1", 1)), None);
    }

    #[test]
    fn a_message_is_a_cloud_event() {
        let entry = OutboxEntry {
            output: Output::Denied,
            id: "credits.usage/0/7/not_entitled".into(),
            event_type: "credits.denied.v1".into(),
            account: "a\"b".into(),
            data: "{\"reason\":\"not_entitled\",\"events\":[]}".into(),
        };
        let event: serde_json::Value = serde_json::from_str(&cloud_event("meter", &entry)).unwrap();
        assert_eq!(event["specversion"], "1.0");
        assert_eq!((&event["id"], &event["subject"]), (&"credits.usage/0/7/not_entitled".into(), &"a\"b".into()));
        assert_eq!(event["data"]["reason"], "not_entitled");
    }
}
