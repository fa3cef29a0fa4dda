//! What the client library can read at all, and with every event parsed: the limits to approach.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::message::Message;
use serde::Deserialize;

use crate::kafka;
use crate::machine::cpu_seconds;
use crate::report::Run;

/// All fields, borrowed from the bytes.
#[derive(Deserialize)]
#[expect(dead_code, reason = "what is parsed is measured, whether anyone looks at it or not")]
pub struct Event<'a> {
    pub specversion: &'a str,
    pub id: &'a str,
    pub source: &'a str,
    #[serde(rename = "type")]
    pub event_type: &'a str,
    pub subject: &'a str,
    pub time: &'a str,
    #[serde(borrow)]
    pub data: Data<'a>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "as above")]
pub struct Data<'a> {
    pub action: &'a str,
    pub quantity: Option<u64>,
    pub user: Option<&'a str>,
    pub channel: Option<&'a str>,
    pub company: Option<&'a str>,
    pub contact: Option<&'a str>,
    pub outcome: Option<&'a str>,
}

/// Reads everything and looks at nothing.
pub fn consume(brokers: &str, topic: &str, events: u64) -> anyhow::Result<Run> {
    read(brokers, topic, events, |_| {})
}

/// Reads everything and parses each event, on one thread.
pub fn parse(brokers: &str, topic: &str, events: u64, broken: u64) -> anyhow::Result<Run> {
    let mut refused = 0;
    let run = read(brokers, topic, events, |payload| {
        let event: Result<Event, _> = serde_json::from_slice(payload);
        refused += u64::from(std::hint::black_box(event).is_err());
    })?;
    if refused != broken {
        bail!("{refused} events could not be parsed, the data set holds {broken} broken ones");
    }
    Ok(run)
}

/// From the first record to the last.
fn read(brokers: &str, topic: &str, events: u64, mut each: impl FnMut(&[u8])) -> anyhow::Result<Run> {
    let consumer = kafka::reader(brokers, topic, kafka::PARTITIONS)?;
    let mut started = None;
    let mut count = 0;
    while count < events {
        let message = consumer.poll(Duration::from_secs(60)).context("kafka sends nothing more")??;
        started.get_or_insert_with(|| (Instant::now(), cpu_seconds("self")));
        each(message.payload().unwrap_or_default());
        count += 1;
    }
    let (started, cpu) = started.context("the data set is empty")?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Run { events, seconds, cpu_seconds: cpu_seconds("self") - cpu, redis_seconds: 0.0 })
}
