//! Decisions that the meter has recorded: denials, published or still in an outbox, and dead letters.
//! They stand: an audit does not judge anew whether a balance was large enough.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::slices::Slice;
use crate::ingest::dead_letters::FROM_METER;
use crate::ingest::log::LogRecord;
use crate::ledger::call::{Input, Partition};
use crate::ledger::credits::Credits;
use crate::ledger::event::Identity;
use crate::ledger::outcome::{DeadReason, Denial};

/// The type of the messages that name denied events.
const DENIED: &str = "credits.denied.v1";

/// How an event was decided otherwise than by charging it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Denied(Denial),
    Capped { uncovered: Credits },
}

/// An event that a denial names.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub account: Arc<str>,
    pub identity: Identity,
    pub decision: Decision,
    pub required: Credits,
    /// Another message tells it otherwise.
    pub contradicted: bool,
    /// The event was found in the log.
    pub found: bool,
}

/// The denials of a slice of accounts.
#[derive(Debug, Default)]
pub struct Denials {
    by_place: FxHashMap<(i32, i64), Told>,
    /// Messages that this program cannot have written, by how many there are.
    pub unreadable: u64,
}

impl Denials {
    /// Takes a message of the denied topic, if it is this meter's.
    pub fn publish(&mut self, meter: &Names, slice: Slice, value: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Message>(value) else {
            self.unreadable += 1;
            return;
        };
        // Several meters may share the topic.
        if message.source == meter.source && message.event_type == DENIED {
            self.add(meter, slice, &message.subject, message.data.get());
        }
    }

    /// Takes the data of a message, published or not.
    pub fn add(&mut self, meter: &Names, slice: Slice, account: &str, data: &str) {
        if !slice.holds(account) {
            return;
        }
        let Ok(data) = serde_json::from_str::<Data>(data) else {
            self.unreadable += 1;
            return;
        };
        let account: Arc<str> = account.into();
        for event in data.events {
            if event.topic != meter.usage_topic {
                continue;
            }
            match event.told(&account, &data.reason) {
                None => self.unreadable += 1,
                Some(told) => self.tell((event.partition, event.offset), told),
            }
        }
    }

    /// A message may come twice with the same content, as after a relay that died; never with another.
    fn tell(&mut self, place: (i32, i64), told: Told) {
        match self.by_place.entry(place) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(told);
            }
            std::collections::hash_map::Entry::Occupied(mut occupied) => {
                let before = occupied.get_mut();
                let same = Told { contradicted: before.contradicted, found: before.found, ..told } == *before;
                before.contradicted |= !same;
            }
        }
    }

    /// What was told of an event, which counts as found.
    pub fn of(&mut self, partition: i32, offset: i64, account: &str, identity: Identity) -> Option<&Told> {
        if self.by_place.is_empty() {
            return None;
        }
        let told = self.by_place.get_mut(&(partition, offset))?;
        // One that names another event at this place tells nothing of it, and stays to be found out.
        if *told.account != *account || told.identity != identity {
            return None;
        }
        told.found = true;
        Some(told)
    }

    /// Denials of events that are not there, in the order of the log.
    pub fn unfounded(&self) -> Vec<((i32, i64), &Told)> {
        let mut left: Vec<_> =
            self.by_place.iter().filter(|(_, told)| !told.found).map(|(place, told)| (*place, told)).collect();
        left.sort_unstable_by_key(|(place, _)| *place);
        left
    }
}

/// What tells a meter's messages from those of others.
#[derive(Clone, Debug)]
pub struct Names {
    pub source: String,
    pub usage_topic: String,
    pub commands_topic: String,
}

#[derive(Deserialize)]
struct Message<'a> {
    source: String,
    #[serde(rename = "type")]
    event_type: String,
    subject: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Data<'a> {
    reason: String,
    #[serde(borrow)]
    events: Vec<Event<'a>>,
}

#[derive(Deserialize)]
struct Event<'a> {
    source: String,
    id: String,
    topic: String,
    partition: i32,
    offset: i64,
    #[serde(borrow)]
    required: &'a RawValue,
    #[serde(borrow)]
    uncovered: Option<&'a RawValue>,
}

impl Event<'_> {
    fn told(&self, account: &Arc<str>, reason: &str) -> Option<Told> {
        let decision = match (Denial::ALL.into_iter().find(|denial| denial.name() == reason), self.uncovered) {
            (Some(denial), None) => Decision::Denied(denial),
            (None, Some(uncovered)) if reason == "capped" => {
                Decision::Capped { uncovered: Credits::parse(uncovered.get()).ok()? }
            }
            _ => return None,
        };
        Some(Told {
            account: account.clone(),
            identity: Identity::of(&self.source, &self.id),
            decision,
            required: Credits::parse(self.required.get()).ok()?,
            contradicted: false,
            found: false,
        })
    }
}

/// The records that dead letters name. A letter may come twice.
#[derive(Debug, Default)]
pub struct DeadLetters {
    /// Whether the record was found in the log.
    by_place: FxHashMap<(Partition, i64), bool>,
}

impl DeadLetters {
    /// Takes a record of the dead-letter topic, if it tells of this meter's topics.
    pub fn add(&mut self, meter: &Names, record: &LogRecord<'_>) {
        if let Some((partition, offset)) = dead_place(meter, record) {
            self.by_place.entry((partition, offset)).or_insert(false);
        }
    }

    /// Whether a record is dead; it then counts as found.
    pub fn take(&mut self, partition: Partition, offset: i64) -> bool {
        if self.by_place.is_empty() {
            return false;
        }
        match self.by_place.get_mut(&(partition, offset)) {
            None => false,
            Some(found) => {
                *found = true;
                true
            }
        }
    }

    /// Letters about records that are not there, in the order of the log.
    pub fn unfounded(&self) -> Vec<(Partition, i64)> {
        let mut left: Vec<_> = self.by_place.iter().filter(|(_, found)| !**found).map(|(place, _)| *place).collect();
        left.sort_unstable();
        left
    }
}

/// The record that a dead letter names, if it tells of this meter's topics.
fn dead_place(meter: &Names, record: &LogRecord<'_>) -> Option<(Partition, i64)> {
    let topic =
        header(record, "__connect.errors.topic").filter(|_| header(record, FROM_METER) == Some(&meter.source))?;
    let input = if topic == meter.usage_topic {
        Input::Usage
    } else if topic == meter.commands_topic {
        Input::Commands
    } else {
        return None;
    };
    let index = header(record, "__connect.errors.partition")?.parse().ok()?;
    Some((Partition { input, index }, header(record, "__connect.errors.offset")?.parse().ok()?))
}

/// The same with the reason.
pub fn dead_letter(meter: &Names, record: &LogRecord<'_>) -> Option<(Partition, i64, DeadReason)> {
    let (partition, offset) = dead_place(meter, record)?;
    let reason = DeadReason::from_name(header(record, "__connect.errors.exception.class.name")?)?;
    Some((partition, offset, reason))
}

/// The last of a name: a dead letter that was sent to the topic again keeps its old headers.
fn header<'a>(record: &LogRecord<'a>, name: &str) -> Option<&'a str> {
    let found = record.headers.iter().rev().find(|(own, _)| *own == name)?;
    std::str::from_utf8(found.1?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Slice = Slice { number: 0, of: 1 };

    fn names() -> Names {
        Names { source: "meter".into(), usage_topic: "usage".into(), commands_topic: "commands".into() }
    }

    fn message(source: &str, reason: &str, rest: &str) -> String {
        format!(
            r#"{{"specversion":"1.0","id":"x","source":"{source}","type":"credits.denied.v1","subject":"acme",
            "data":{{"reason":"{reason}","events":[{{"source":"s","id":"e1","topic":"usage","partition":2,"offset":7,
            "action":"a","credit_type":"email","required":1.5,"remaining":0{rest}}}]}}}}"#
        )
    }

    #[test]
    fn a_denial_tells_of_one_event_however_often_it_is_published() {
        let mut denials = Denials::default();
        denials.publish(&names(), ALL, message("another", "not_entitled", "").as_bytes());
        assert!(denials.of(2, 7, "acme", Identity::of("s", "e1")).is_none(), "another meter's");
        for _ in 0..2 {
            denials.publish(&names(), ALL, message("meter", "insufficient_credits", "").as_bytes());
        }
        assert_eq!(denials.unfounded().len(), 1);
        assert!(denials.of(2, 7, "globex", Identity::of("s", "e1")).is_none(), "another account's");
        assert!(denials.of(2, 7, "acme", Identity::of("s", "e2")).is_none(), "another event's");
        let told = denials.of(2, 7, "acme", Identity::of("s", "e1")).expect("it is told").clone();
        assert_eq!(told.decision, Decision::Denied(Denial::InsufficientCredits));
        assert_eq!((told.required, told.contradicted), (Credits::from_thousandths(1500), false));
        assert!(denials.unfounded().is_empty());
        denials.publish(&names(), ALL, message("meter", "capped", ",\"uncovered\":0.5").as_bytes());
        assert!(denials.of(2, 7, "acme", Identity::of("s", "e1")).is_some_and(|told| told.contradicted));
        assert_eq!(denials.unreadable, 0);
    }

    #[test]
    fn messages_that_no_meter_writes_are_counted() {
        let mut denials = Denials::default();
        for bad in ["{", "{}", &message("meter", "capped", ""), &message("meter", "because", "")] {
            denials.publish(&names(), ALL, bad.as_bytes());
        }
        assert_eq!(denials.unreadable, 4);
        assert!(denials.unfounded().is_empty());
    }

    #[test]
    fn a_dead_letter_names_the_record_by_its_last_headers() {
        let headers: Vec<(&str, Option<&[u8]>)> = [("usage", "1", "5"), ("commands", "0", "9")]
            .iter()
            .flat_map(|(topic, partition, offset)| {
                [
                    ("__connect.errors.topic", Some(topic.as_bytes())),
                    ("__connect.errors.partition", Some(partition.as_bytes())),
                    ("__connect.errors.offset", Some(offset.as_bytes())),
                    (FROM_METER, Some(b"meter".as_slice())),
                ]
            })
            .collect();
        let record = |headers| LogRecord { partition: 0, offset: 0, timestamp_ms: 0, key: None, value: None, headers };
        let mut letters = DeadLetters::default();
        letters.add(&names(), &record(&headers[..4]));
        letters.add(&names(), &record(&headers[..4]));
        assert_eq!(letters.unfounded(), [(Partition::usage(1), 5)]);
        assert!(letters.take(Partition::usage(1), 5) && !letters.take(Partition::usage(1), 6));
        letters.add(&names(), &record(&headers));
        assert_eq!(letters.unfounded(), [(Partition::COMMANDS, 9)]);
        letters.add(&names(), &record(&[]));
        assert_eq!(letters.unfounded().len(), 1, "not a dead letter of this meter");
    }
}
