//! Events of the past into Kafka: each record carries its event's time, so that a meter that goes by it
//! (`events.age_from = "create"`) lets that time pass.

use std::collections::BTreeMap;

use anyhow::bail;

use super::request::CLOUD_EVENTS_JSON;
use super::source::now_ms;
use crate::config::Config;
use crate::ingest::admin::Admin;
use crate::ingest::decode::{self, Bears};
use crate::ingest::producer::{Outgoing, Producer};
use crate::ledger::apply::json_text;
use crate::ledger::roll::time_text;
use crate::note;

pub struct History {
    usage: String,
    commands: String,
    /// How long each topic keeps a record after its own time, in ms; absent: for ever.
    kept_ms: BTreeMap<String, i64>,
    /// The largest time of any event.
    reached_ms: Option<i64>,
}

impl History {
    /// Refuses topics that would stamp the records anew.
    pub async fn open(config: &Config) -> anyhow::Result<History> {
        let (usage, commands) = (config.kafka.topics.usage.clone(), config.kafka.topics.commands.clone());
        let admin = Admin::new(config)?;
        let mut kept_ms = BTreeMap::new();
        for topic in [&usage, &commands] {
            let stamps = admin.stamps(topic).await?;
            if stamps.by_append {
                bail!(
                    "topic {topic} stamps records with its own clock, which would make history of today: load it into \
                     topics of its own with message.timestamp.type=CreateTime, for a meter with events.age_from = \
                     \"create\" ({})",
                    admin.alter_stamps(topic)
                );
            }
            kept_ms.extend(stamps.kept_ms.map(|ms| (topic.clone(), ms)));
        }
        Ok(History { usage, commands, kept_ms, reached_ms: None })
    }

    /// The topic and the time of an event; `None` for a tick, which only lets time pass.
    pub fn place(&mut self, value: &[u8]) -> Result<Option<(&str, i64)>, String> {
        let Some((bears, time_ms)) = decode::bears(value) else {
            return Err("it has no time that RFC 3339 knows".to_owned());
        };
        self.reached_ms = self.reached_ms.max(Some(time_ms));
        let topic = match bears {
            Bears::Tick => return Ok(None),
            Bears::Command => &self.commands,
            Bears::Usage => &self.usage,
        };
        if let Some(kept_ms) = self.kept_ms.get(topic).filter(|kept_ms| time_ms < now_ms() - **kept_ms) {
            let days = kept_ms / 86_400_000;
            return Err(format!(
                "topic {topic} keeps a record for {days} days after its own time, so kafka would delete this one: set \
                 retention.ms=-1 on it"
            ));
        }
        Ok(Some((topic, time_ms)))
    }

    /// Ends every usage partition with a tick: without one, a partition that is behind holds meter time back.
    pub async fn end(&self, producer: &Producer, partitions: i32) -> anyhow::Result<()> {
        let Some(time_ms) = self.reached_ms else { return Ok(()) };
        let time = time_text(time_ms);
        for partition in 0..partitions {
            let value = format!(
                "{{\"specversion\":\"1.0\",\"id\":{},\"source\":\"load\",\"type\":\"{}\",\"subject\":\"history\",\
                 \"time\":\"{time}\"}}",
                json_text(&format!("history-{time}")),
                decode::TICK,
            );
            let record = Outgoing {
                topic: &self.usage,
                value: Some(value.as_bytes()),
                headers: &[("content-type", Some(CLOUD_EVENTS_JSON))],
                partition: Some(partition),
                time_ms: Some(time_ms),
                ..Outgoing::default()
            };
            producer.send(record).await?;
        }
        note!("time has passed to {time} in {partitions} partitions of {}", self.usage);
        Ok(())
    }
}
