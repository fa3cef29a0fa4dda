//! What was published about records that may have to be decided again: denials, dead letters, answers to commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{BrokerError, topic_of};
use super::dead_letters::FROM_METER;
use super::scan::{Next, offsets_at, scan, scan_each};
use crate::config::{AgeFrom, Config};
use crate::ledger::call::{Input, Partition, Refusal, RefusalReason};
use crate::ledger::credits::Credits;
use crate::ledger::event::Identity;
use crate::ledger::outcome::{DeadReason, Denial};
use crate::pipeline::recorded::{Decision, Published};

/// Brokers' clocks differ: a denial may bear an earlier time than the event that it is about.
pub const CLOCKS_APART_MS: i64 = 10 * 60 * 1000;

/// Reads what was published about the records of these partitions from these offsets on. It blocks.
pub fn read(config: &Config, from: &[(Partition, i64)]) -> Result<Vec<Published>, BrokerError> {
    let mut found = Vec::new();
    let (topics, meter) = (&config.kafka.topics, &config.redis.prefix);
    for input in Input::ALL {
        let from: BTreeMap<i32, i64> =
            from.iter().filter(|(p, _)| p.input == input).map(|(p, offset)| (p.index, *offset)).collect();
        let Some(since_ms) = first_append_ms(config, input, &from)? else { continue };
        let mut keep = |published: Published| {
            let wanted = from.get(&published.partition.index).is_some_and(|offset| published.offset >= *offset);
            if wanted && published.partition.input == input {
                found.push(published);
            }
        };
        let dead_letter = |message: &BorrowedMessage, keep: &mut dyn FnMut(Published)| {
            if let Some(dead) = dead_letter(meter, topic_of(topics, input), input, message) {
                keep(dead);
            }
        };
        since(config, &topics.dead_letter, since_ms, |message| dead_letter(message, &mut keep))?;
        match input {
            Input::Usage => since(config, &topics.denied, since_ms, |message| {
                denied(meter, &topics.usage, message.payload().unwrap_or_default()).into_iter().for_each(&mut keep);
            })?,
            Input::Commands => since(config, &topics.ledger, since_ms, |message| {
                answered(meter, message.payload().unwrap_or_default()).into_iter().for_each(&mut keep);
            })?,
        }
    }
    Ok(found)
}

/// When the first record that may be decided again was appended; `None`: there is none.
fn first_append_ms(config: &Config, input: Input, from: &BTreeMap<i32, i64>) -> Result<Option<i64>, BrokerError> {
    let mut first = None;
    // What cannot be read is not decided either: whoever reads it to decide halts its partition.
    scan_each(&config.kafka, topic_of(&config.kafka.topics, input), from, |message| {
        // Producers' clocks say nothing of when it was published.
        let create = config.events.age_from == AgeFrom::Create;
        let append_ms = if create { 0 } else { message.timestamp().to_millis().unwrap_or(0) };
        first = Some(first.map_or(append_ms, |first: i64| first.min(append_ms)));
        Next::Enough
    })?;
    Ok(first)
}

fn since(
    config: &Config,
    topic: &str,
    time_ms: i64,
    mut visit: impl FnMut(&BorrowedMessage),
) -> Result<(), BrokerError> {
    let starts = offsets_at(&config.kafka, topic, time_ms - CLOCKS_APART_MS)?;
    scan(&config.kafka, topic, &starts, |message| {
        visit(message);
        Next::On
    })
}

fn dead_letter(meter: &str, topic: &str, input: Input, message: &BorrowedMessage) -> Option<Published> {
    let headers = message.headers()?;
    // A record may bring headers of the same name; ours come last.
    let header = |name: &str| {
        let all = headers.iter().filter(|header| header.key == name);
        all.last().and_then(|header| std::str::from_utf8(header.value?).ok())
    };
    if header("__connect.errors.topic")? != topic || header(FROM_METER)? != meter {
        return None;
    }
    let index = header("__connect.errors.partition")?.parse().ok()?;
    Some(Published {
        partition: Partition { input, index },
        offset: header("__connect.errors.offset")?.parse().ok()?,
        event: None,
        decision: Decision::Dead(DeadReason::from_name(header("__connect.errors.exception.class.name")?)?),
    })
}

#[derive(Deserialize)]
struct Event<D> {
    #[serde(default)]
    id: String,
    #[serde(default)]
    source: String,
    subject: String,
    data: D,
}

#[derive(Deserialize)]
struct DeniedData {
    reason: String,
    events: Vec<DeniedEvent>,
}

#[derive(Deserialize)]
struct DeniedEvent {
    source: String,
    id: String,
    topic: String,
    partition: i32,
    offset: i64,
    uncovered: Option<Box<RawValue>>,
}

/// The decisions in a message of the denied topic about events of this usage topic, if this meter published it.
pub fn denied(meter: &str, usage_topic: &str, value: &[u8]) -> Vec<Published> {
    let Ok(message) = serde_json::from_slice::<Event<DeniedData>>(value) else { return Vec::new() };
    if message.source != meter {
        return Vec::new();
    }
    let denial = Denial::ALL.into_iter().find(|denial| denial.name() == message.data.reason);
    let own = message.data.events.into_iter().filter(|event| event.topic == usage_topic);
    let account: Arc<str> = message.subject.as_str().into();
    let published = |event: DeniedEvent| {
        let decision = match (denial, event.uncovered) {
            (Some(denial), _) => Decision::Denied(denial),
            (None, Some(uncovered)) => Decision::Capped { uncovered: Credits::parse(uncovered.get()).ok()? },
            (None, None) => return None,
        };
        Some(Published {
            partition: Partition::usage(event.partition),
            offset: event.offset,
            event: Some((account.clone(), Identity::of(&event.source, &event.id))),
            decision,
        })
    };
    own.filter_map(published).collect()
}

#[derive(Deserialize)]
struct CommandLine {
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// The decision in a line of the ledger topic, if it answers a command of this meter's.
pub fn answered(meter: &str, value: &[u8]) -> Option<Published> {
    let line: Event<&RawValue> = serde_json::from_slice(value).ok()?;
    if line.source != meter {
        return None;
    }
    let (offset, decision) = answer(&line.id, line.data.get())?;
    Some(Published { partition: Partition::COMMANDS, offset, event: None, decision })
}

/// The offset of the command that a line of this id answers, and what was decided.
pub fn answer(id: &str, data: &str) -> Option<(i64, Decision)> {
    let offset = id.strip_prefix("command/")?.parse().ok()?;
    let line: CommandLine = serde_json::from_str(data).ok()?;
    let decision = match line.status.as_str() {
        "applied" | "duplicate" => Decision::Answered,
        "refused" => {
            Decision::Refused(Refusal { reason: RefusalReason::from_name(&line.reason)?, message: line.message })
        }
        _ => return None,
    };
    Some((offset, decision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_message_names_what_stands() {
        let message = |reason: &str, rest: &str| {
            format!(
                r#"{{"specversion":"1.0","id":"x","source":"meter","subject":"acme","type":"credits.denied.v1","data":{{"reason":"{reason}",
                "events":[{{"source":"s","id":"1","topic":"u","partition":2,"offset":7,"required":1.5,"remaining":0.5{rest}}},
                {{"source":"s","id":"2","topic":"other","partition":2,"offset":8,"required":1,"remaining":0}}]}}}}"#
            )
        };
        let one = |decision| {
            vec![Published {
                partition: Partition::usage(2),
                offset: 7,
                event: Some(("acme".into(), Identity::of("s", "1"))),
                decision,
            }]
        };
        let insufficient = message("insufficient_credits", "");
        let denied = |topic: &str, value: &[u8]| super::denied("meter", topic, value);
        assert_eq!(super::denied("other", "u", insufficient.as_bytes()), Vec::new());
        assert_eq!(denied("u", insufficient.as_bytes()), one(Decision::Denied(Denial::InsufficientCredits)));
        let uncovered = Credits::parse("1.125").unwrap();
        let capped = message("capped", r#","uncovered":1.125"#);
        assert_eq!(denied("u", capped.as_bytes()), one(Decision::Capped { uncovered }));
        assert_eq!(denied("u", message("capped", "").as_bytes()), Vec::new());
        assert_eq!(denied("u", b"no json"), Vec::new());
    }

    #[test]
    fn only_the_line_that_answers_a_command_decides() {
        let line = |id: &str, data: &str| {
            answered("meter", format!(r#"{{"id":"{id}","source":"meter","subject":"acme","data":{data}}}"#).as_bytes())
        };
        let at = |decision| Some(Published { partition: Partition::COMMANDS, offset: 7, event: None, decision });
        assert_eq!(line("command/7", r#"{"command_id":"c","status":"applied"}"#), at(Decision::Answered));
        let refusal = Refusal { reason: RefusalReason::UnknownPlan, message: "m".into() };
        let refused = r#"{"command_id":"c","status":"refused","reason":"unknown_plan","message":"m"}"#;
        assert_eq!(line("command/7", refused), at(Decision::Refused(refusal)));
        assert_eq!(line("command/7/1", r#"{"kind":"topup","status":"applied"}"#), None);
    }
}
