//! Sends a command and waits for the ledger's answer.
//!
//! Three things can be known of a command: nothing (send it again with the same id), that Kafka has it (it will
//! be applied, whatever happens), and what the meter decided.

use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use tokio::time::timeout;
use uuid::Uuid;

use super::Ended;
use super::output::Output;
use crate::config::Config;
use crate::ingest::client::Cluster;
use crate::ingest::ledger_tail::{Answer, LedgerTail};
use crate::ingest::producer::{Outgoing, ProduceError, Producer};
use crate::note;

const SOURCE: &str = "credit-meter-cli";
/// Not the caller's `--timeout`, which is about the meter: a command that may or may not be sent is worse than a wait.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);
pub const CLOUD_EVENTS_JSON: &[u8] = b"application/cloudevents+json; charset=utf-8";

/// A command to an account.
pub struct Request<D> {
    pub account: String,
    pub command_type: &'static str,
    /// `None`: a new one.
    pub id: Option<String>,
    pub data: D,
    /// For the meter's answer, from Kafka's acknowledgement on.
    pub timeout: Duration,
}

/// A CloudEvent in the structured form.
#[derive(Serialize)]
pub struct CloudEvent<'a, D> {
    pub specversion: &'static str,
    pub id: &'a str,
    pub source: &'a str,
    pub r#type: &'a str,
    pub subject: &'a str,
    pub time: String,
    pub datacontenttype: &'static str,
    pub data: D,
}

impl<'a, D: Serialize> CloudEvent<'a, D> {
    pub fn now(source: &'a str, event_type: &'a str, id: &'a str, account: &'a str, data: D) -> CloudEvent<'a, D> {
        CloudEvent {
            specversion: "1.0",
            id,
            source,
            r#type: event_type,
            subject: account,
            time: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            datacontenttype: "application/json",
            data,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    id: &'a str,
    account: &'a str,
    r#type: &'a str,
    /// `applied`, `duplicate`, `refused`, or `acknowledged` where no answer came in time.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    /// The id of a command that changed the account meanwhile, and whose change is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<&'a str>,
}

/// A command that Kafka has.
pub struct Sent {
    pub account: String,
    pub command_type: &'static str,
    pub id: String,
    pub offset: i64,
    /// `None`: none came in time.
    pub answer: Option<Answer>,
    waited: Duration,
}

pub async fn send<D: Serialize>(request: Request<D>, config: &Config, output: Output) -> anyhow::Result<Ended> {
    tell(&deliver(request, config).await?, None, output)
}

/// Sends a command and waits for its answer, which [`tell`] then shows.
pub async fn deliver<D: Serialize>(request: Request<D>, config: &Config) -> anyhow::Result<Sent> {
    let id = request.id.unwrap_or_else(|| Uuid::now_v7().to_string());
    let event = CloudEvent::now(SOURCE, request.command_type, &id, &request.account, &request.data);
    let value = serde_json::to_vec(&event)?;

    require_one_partition(config).await?;
    // Before the command: its answer cannot come earlier than it was sent.
    let ledger = LedgerTail::open(&config.kafka).await?;
    let offset = produce(config, &request.account, &id, &value).await?;
    let answer = match timeout(request.timeout, ledger.answer(&request.account, &id)).await {
        Ok(answer) => Some(answer.with_context(|| kept(&id))?),
        Err(_) => None,
    };
    let Request { account, command_type, timeout: waited, .. } = request;
    Ok(Sent { account, command_type, id, offset, answer, waited })
}

async fn require_one_partition(config: &Config) -> anyhow::Result<()> {
    let topic = &config.kafka.topics.commands;
    let partitions = Cluster::new(&config.kafka)?.partitions(topic).await?;
    if partitions != 1 {
        bail!("topic {topic} has {partitions} partitions: commands have one order, so it must have one; see `check`");
    }
    Ok(())
}

async fn produce(config: &Config, account: &str, id: &str, value: &[u8]) -> anyhow::Result<i64> {
    let producer = Producer::new(&config.kafka)?;
    let record = Outgoing {
        topic: &config.kafka.topics.commands,
        key: Some(account.as_bytes()),
        value: Some(value),
        headers: &[("content-type", Some(CLOUD_EVENTS_JSON))],
        ..Outgoing::default()
    };
    let again =
        || format!("command {id} may or may not be sent: send it again with --id {id}, the same id counts once");
    let delivered = timeout(ACKNOWLEDGED_WITHIN, producer.send(record)).await;
    let delivered = delivered.context("kafka has not acknowledged it in time").with_context(again)?;
    let delivered = match delivered {
        Err(refused @ (ProduceError::Refused { .. } | ProduceError::TooLarge { .. })) => {
            return Err(refused).with_context(|| format!("command {id} was not sent"));
        }
        other => other.with_context(again)?,
    };
    note!(
        "kafka acknowledged command {id} at {}/{}@{}",
        config.kafka.topics.commands,
        delivered.partition,
        delivered.offset
    );
    Ok(delivered.offset)
}

fn kept(id: &str) -> String {
    format!("command {id} is acknowledged by kafka and will be applied, but its answer cannot be read")
}

/// Tells how a command ended. `replaced`: the command of another whose change this one has undone.
pub fn tell(sent: &Sent, replaced: Option<&str>, output: Output) -> anyhow::Result<Ended> {
    let Sent { account, command_type, id, answer, waited, .. } = sent;
    let report = |status| Report { id, account, r#type: command_type, status, reason: None, message: None, replaced };
    let (report, ended) = match answer {
        Some(Answer::Applied) => (report("applied"), Ended::Well),
        Some(Answer::Duplicate) => (report("duplicate"), Ended::Well),
        Some(Answer::Refused { reason, message }) => {
            (Report { reason: Some(reason), message: Some(message), ..report("refused") }, Ended::Badly)
        }
        None => (report("acknowledged"), Ended::Badly),
    };
    match answer {
        Some(Answer::Duplicate) => note!(
            "command {id} was decided before: nothing changed, also if this one asks for something else; \
             for another command take another --id"
        ),
        None => note!(
            "no meter has answered within {}; command {id} is acknowledged by kafka and will be applied when a meter \
             runs",
            humantime::format_duration(*waited)
        ),
        Some(Answer::Applied | Answer::Refused { .. }) => {}
    }
    output.answer(&report, || match (&report.reason, &report.message) {
        (Some(reason), Some(message)) => format!("{account}: refused, {reason}: {message}"),
        _ => format!("{account}: {} {id}", report.status),
    })?;
    let Some(replaced) = replaced else { return Ok(ended) };
    note!(
        "meanwhile command {replaced} had put another configuration of {account}, which this one has replaced: put \
         that again with the add-ons as they are wanted"
    );
    Ok(Ended::Badly)
}
