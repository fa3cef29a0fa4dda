//! The line of the ledger topic that names a state: it outlives the group's offsets, and tells where a state begins.

use rdkafka::message::Message as _;
use serde::Deserialize;

use super::client::BrokerError;
use super::producer::{Outgoing, ProduceError, Producer};
use super::scan::{Next, offsets_at, scan};
use crate::config::Config;
use crate::ledger::apply::json_text;

const STATE_LINE: &str = "credits.ledger.state.v1";

/// Writes a state's line. Twice does no harm: the id is the same.
pub async fn write(config: &Config, producer: &Producer, generation: &str, data: &str) -> Result<(), ProduceError> {
    let meter = &config.redis.prefix;
    let value = format!(
        "{{\"specversion\":\"1.0\",\"id\":{},\"source\":{},\"type\":\"{STATE_LINE}\",\"subject\":{},\
         \"datacontenttype\":\"application/json\",\"data\":{data}}}",
        json_text(&format!("state/{generation}")),
        json_text(meter),
        json_text(meter),
    );
    let record = Outgoing {
        topic: &config.kafka.topics.ledger,
        key: Some(meter.as_bytes()),
        value: Some(value.as_bytes()),
        headers: &[("content-type", Some(b"application/cloudevents+json; charset=UTF-8"))],
        ..Outgoing::default()
    };
    producer.send(record).await.map(|_| ())
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    source: String,
    data: Box<serde_json::value::RawValue>,
}

/// The data of the last state that this meter has begun, if it ever began one. It reads the whole ledger, and blocks.
pub fn last(config: &Config) -> Result<Option<String>, BrokerError> {
    let topic = &config.kafka.topics.ledger;
    let starts = offsets_at(&config.kafka, topic, 0)?;
    let mut last = None;
    scan(&config.kafka, topic, &starts, |message| {
        let value = message.payload().unwrap_or_default();
        // Most lines are others: a look at the bytes spares parsing them.
        let named = value.windows(STATE_LINE.len()).any(|window| window == STATE_LINE.as_bytes());
        let line = named.then(|| serde_json::from_slice::<Line>(value).ok()).flatten();
        if let Some(line) = line.filter(|line| line.r#type == STATE_LINE && line.source == config.redis.prefix) {
            last = Some(line.data.get().to_owned());
        }
        Next::On
    })?;
    Ok(last)
}
