//! A log from one offset to another, for those who fold it again.

use std::collections::BTreeMap;

use rdkafka::message::{Headers as _, Message as _};

use super::client::BrokerError;
use super::decode::Headers;
use super::scan::{Next, scan};
use crate::config::Kafka;

/// Offsets `from..to` of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
}

/// A record as it lies in the log.
#[derive(Clone, Copy, Debug)]
pub struct LogRecord<'a> {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// Gives all records of a topic's spans; those of one partition in order. It blocks.
pub fn read(
    kafka: &Kafka,
    topic: &str,
    spans: &[Span],
    mut visit: impl FnMut(LogRecord<'_>),
) -> Result<(), BrokerError> {
    let spans = spans.iter().filter(|span| span.from < span.to);
    let ends: BTreeMap<i32, i64> = spans.clone().map(|span| (span.partition, span.to)).collect();
    let starts = spans.map(|span| (span.partition, span.from)).collect();
    scan(kafka, topic, &starts, |message| {
        let (partition, offset) = (message.partition(), message.offset());
        let to = ends.get(&partition).copied().unwrap_or(0);
        if offset >= to {
            return Next::Enough;
        }
        let headers = message.headers().map(|headers| headers.iter().map(|header| (header.key, header.value)));
        let headers: Vec<_> = headers.into_iter().flatten().collect();
        visit(LogRecord {
            partition,
            offset,
            timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
            key: message.key(),
            value: message.payload(),
            headers: &headers,
        });
        if offset + 1 >= to { Next::Enough } else { Next::On }
    })
}
