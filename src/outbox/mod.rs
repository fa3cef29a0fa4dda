//! The relay: takes messages from the shards' outboxes to Kafka, in order, and deletes them once acknowledged.
//!
//! A message may be published twice (a relay that dies in between), always with the same id; never lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::{Outbox, Topics};
use crate::http::{Check, Health};
use crate::ingest::producer::{Acknowledgement, Outgoing, ProduceError, Producer};
use crate::ledger::apply::json_text;
use crate::ledger::call::{OutboxEntry, Output};
use crate::metrics;
use crate::store::{Store, StoreError, TakeCall, Taken};

/// Messages of a shard that are under way at once.
const TAKE_COUNT: usize = 500;
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
    pub health: Arc<Health>,
    /// A shard's bell: rung when its outbox was filled.
    pub bells: Vec<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

impl Relay {
    /// Publishes one shard's outbox until it is told to stop.
    pub async fn run(self: Arc<Relay>, shard: u32, stop: CancellationToken) {
        let mut published = Vec::new();
        loop {
            let wait = match self.publish(shard, &mut published).await {
                Ok(true) => Duration::ZERO,
                Ok(false) => self.settings.poll,
                Err(error) => {
                    tracing::warn!(shard, %error, "the outbox waits");
                    self.health.set(Check::Outbox, Err(format!("shard {shard}: {error}")));
                    RETRY
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.bells[shard as usize].notified() => {}
            }
        }
    }

    /// Takes what is next and publishes it; `true` if there may be more.
    async fn publish(&self, shard: u32, published: &mut Vec<String>) -> Result<bool, RelayError> {
        let call = TakeCall {
            relay: self.name.clone(),
            lease_ms: self.settings.lease.as_millis() as u64,
            published: published.clone(),
            count: TAKE_COUNT,
        };
        let entries = match self.store.take(shard, &call).await? {
            Taken::Held => return Ok(false),
            Taken::Entries(entries) => entries,
        };
        published.clear();
        let mut acknowledgements = Vec::new();
        for (_, entry) in &entries {
            acknowledgements.push(self.enqueue(entry).await?);
        }
        for (acknowledgement, (entry_id, entry)) in acknowledgements.into_iter().zip(&entries) {
            acknowledgement.await?;
            metrics::record_published(self.topic(entry.output), 1);
            published.push(entry_id.clone());
        }
        if entries.is_empty() {
            metrics::set_outbox_entries(shard, 0);
        }
        self.health.set(Check::Outbox, Ok(()));
        Ok(!entries.is_empty())
    }

    async fn enqueue(&self, entry: &OutboxEntry) -> Result<Acknowledgement, ProduceError> {
        let event = cloud_event(&self.source, entry);
        let record = Outgoing {
            topic: self.topic(entry.output),
            key: Some(entry.account.as_bytes()),
            value: Some(event.as_bytes()),
            headers: &[("content-type", Some(b"application/cloudevents+json; charset=UTF-8"))],
            partition: None,
        };
        self.producer.enqueue(record).await
    }

    fn topic(&self, output: Output) -> &str {
        match output {
            Output::Denied => &self.topics.denied,
            Output::Ledger => &self.topics.ledger,
        }
    }
}

/// The message as a structured CloudEvent.
fn cloud_event(source: &str, entry: &OutboxEntry) -> String {
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
