//! Decisions that the meter has recorded: denials, published or still in an outbox, and dead letters.
//! They stand: an audit does not judge anew whether a balance was large enough.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::look::Positions;
use super::point::Again;
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
    /// It stands, whatever happens to Redis: it is in the topic, below where a saved point looked last.
    pub published: bool,
}

/// Where a message was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Outbox,
    Topic { partition: i32, offset: i64 },
}

/// How far a saved point has come: usage below the cut is folded, and a topic of decisions was read to its ends.
#[derive(Clone, Debug, Default)]
pub struct Reached {
    pub cut: Positions,
    pub ends: BTreeMap<i32, i64>,
}

impl Reached {
    fn folded(&self, (partition, offset): (i32, i64)) -> bool {
        offset < self.cut.at(Partition::usage(partition))
    }

    fn read(&self, heard: Heard) -> bool {
        match heard {
            Heard::Outbox => false,
            Heard::Topic { partition, offset } => offset < self.ends.get(&partition).copied().unwrap_or(0),
        }
    }
}

/// A topic of decisions between the saved point that an audit goes on from and the one that it saves.
#[derive(Debug, Default)]
pub struct Tail {
    pub from: Option<Reached>,
    pub to: Option<Reached>,
    /// The first message of each partition that the next audit needs: it is about usage that is not folded.
    pub first: BTreeMap<i32, i64>,
    /// A decision about folded usage that the saved point did not know.
    pub again: Option<Again>,
}

impl Tail {
    /// Whether a message about a usage record is to be taken; of those below the cut only if they are kept.
    fn takes(&mut self, heard: Heard, record: (i32, i64), is_kept: bool) -> bool {
        if let (Some(to), Heard::Topic { partition, offset }) = (&self.to, heard)
            && !to.folded(record)
        {
            let first = self.first.entry(partition).or_insert(offset);
            *first = offset.min(*first);
        }
        let Some(from) = self.from.as_ref().filter(|from| from.folded(record) && !is_kept) else { return true };
        if !from.read(heard) {
            self.again.get_or_insert(Again { heard, partition: record.0, offset: record.1 });
        }
        false
    }

    fn stands(&self, heard: Heard) -> bool {
        self.to.as_ref().is_some_and(|to| to.read(heard))
    }
}

/// The denials of a slice of accounts.
#[derive(Debug, Default)]
pub struct Denials {
    by_place: FxHashMap<(i32, i64), Told>,
    pub tail: Tail,
    /// Records that a saved point keeps.
    pub kept: FxHashSet<(i32, i64)>,
    /// Messages that this program cannot have written, by how many there are.
    pub unreadable: u64,
}

impl Denials {
    pub fn between(tail: Tail) -> Denials {
        Denials { tail, ..Denials::default() }
    }

    /// Takes a message of the denied topic, if it is this meter's.
    pub fn publish(&mut self, meter: &Names, slice: Slice, heard: Heard, value: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Message>(value) else {
            self.unreadable += 1;
            return;
        };
        // Several meters may share the topic.
        if message.source == meter.source && message.event_type == DENIED {
            self.add(meter, slice, heard, &message.subject, message.data.get());
        }
    }

    /// Takes the data of a message, published or not.
    pub fn add(&mut self, meter: &Names, slice: Slice, heard: Heard, account: &str, data: &str) {
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
            let place = (event.partition, event.offset);
            if !self.tail.takes(heard, place, self.kept.contains(&place)) {
                continue;
            }
            match event.told(&account, &data.reason, self.tail.stands(heard)) {
                None => self.unreadable += 1,
                Some(told) => self.tell(place, told),
            }
        }
    }

    /// A message may come twice with the same content, as after a relay that died; never with another.
    pub fn tell(&mut self, place: (i32, i64), told: Told) {
        match self.by_place.entry(place) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(told);
            }
            std::collections::hash_map::Entry::Occupied(mut occupied) => {
                let before = occupied.get_mut();
                let Told { contradicted, found, published, .. } = *before;
                let stands = published || told.published;
                let same = Told { contradicted, found, published, ..told } == *before;
                before.contradicted |= !same;
                before.published = stands;
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

    /// What was told of the record at a place.
    pub fn at(&self, place: (i32, i64)) -> Option<&Told> {
        self.by_place.get(&place)
    }

    /// The records whose denials may be undone with the outbox that they are in.
    pub fn unpublished(&self) -> FxHashSet<(i32, i64)> {
        self.by_place.iter().filter(|(_, told)| !told.published).map(|(place, _)| *place).collect()
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
    fn told(&self, account: &Arc<str>, reason: &str, published: bool) -> Option<Told> {
        let uncovered = self.uncovered.map(|uncovered| Credits::parse(uncovered.get())).transpose().ok()?;
        Some(Told {
            account: account.clone(),
            identity: Identity::of(&self.source, &self.id),
            decision: Decision::named(reason, uncovered)?,
            required: Credits::parse(self.required.get()).ok()?,
            contradicted: false,
            found: false,
            published,
        })
    }
}

/// The reason of those that took what was left.
const CAPPED: &str = "capped";

impl Decision {
    /// By its reason, and what is uncovered where there is such a part.
    pub fn named(reason: &str, uncovered: Option<Credits>) -> Option<Decision> {
        match (Denial::ALL.into_iter().find(|denial| denial.name() == reason), uncovered) {
            (Some(denial), None) => Some(Decision::Denied(denial)),
            (None, Some(uncovered)) if reason == CAPPED => Some(Decision::Capped { uncovered }),
            _ => None,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Decision::Denied(denial) => denial.name(),
            Decision::Capped { .. } => CAPPED,
        }
    }

    pub fn uncovered(self) -> Option<Credits> {
        match self {
            Decision::Denied(_) => None,
            Decision::Capped { uncovered } => Some(uncovered),
        }
    }
}

/// The records that dead letters name. A letter may come twice.
#[derive(Debug, Default)]
pub struct DeadLetters {
    /// Whether the record was found in the log.
    by_place: FxHashMap<(Partition, i64), bool>,
    pub tail: Tail,
}

impl DeadLetters {
    /// Takes a record of the dead-letter topic, if it tells of this meter's topics.
    pub fn add(&mut self, meter: &Names, record: &LogRecord<'_>) {
        let Some((partition, offset)) = dead_place(meter, record) else { return };
        let heard = Heard::Topic { partition: record.partition, offset: record.offset };
        if partition.input == Input::Commands || self.tail.takes(heard, (partition.index, offset), false) {
            self.put(partition, offset);
        }
    }

    /// Takes a record that is known to be dead.
    pub fn put(&mut self, partition: Partition, offset: i64) {
        self.by_place.entry((partition, offset)).or_insert(false);
    }

    /// The commands among them: their log is read from its start each time.
    pub fn commands(&self) -> Vec<i64> {
        let commands = self.by_place.keys().filter(|(partition, _)| partition.input == Input::Commands);
        let mut offsets: Vec<i64> = commands.map(|(_, offset)| *offset).collect();
        offsets.sort_unstable();
        offsets
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
    const TOPIC: Heard = Heard::Topic { partition: 0, offset: 0 };

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
        denials.publish(&names(), ALL, TOPIC, message("another", "not_entitled", "").as_bytes());
        assert!(denials.of(2, 7, "acme", Identity::of("s", "e1")).is_none(), "another meter's");
        for _ in 0..2 {
            denials.publish(&names(), ALL, TOPIC, message("meter", "insufficient_credits", "").as_bytes());
        }
        assert_eq!(denials.unfounded().len(), 1);
        assert!(denials.of(2, 7, "globex", Identity::of("s", "e1")).is_none(), "another account's");
        assert!(denials.of(2, 7, "acme", Identity::of("s", "e2")).is_none(), "another event's");
        let told = denials.of(2, 7, "acme", Identity::of("s", "e1")).expect("it is told").clone();
        assert_eq!(told.decision, Decision::Denied(Denial::InsufficientCredits));
        assert_eq!((told.required, told.contradicted), (Credits::from_thousandths(1500), false));
        assert!(denials.unfounded().is_empty());
        denials.publish(&names(), ALL, TOPIC, message("meter", "capped", ",\"uncovered\":0.5").as_bytes());
        assert!(denials.of(2, 7, "acme", Identity::of("s", "e1")).is_some_and(|told| told.contradicted));
        assert_eq!(denials.unreadable, 0);
    }

    #[test]
    fn messages_that_no_meter_writes_are_counted() {
        let mut denials = Denials::default();
        for bad in ["{", "{}", &message("meter", "capped", ""), &message("meter", "because", "")] {
            denials.publish(&names(), ALL, TOPIC, bad.as_bytes());
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

    #[test]
    fn a_decision_about_what_a_point_has_added_up_is_known_to_it_or_stops_the_audit() {
        let reached =
            |cut: i64, end: i64| Some(Reached { cut: Positions::of_usage(vec![0, 0, cut]), ends: [(0, end)].into() });
        let heard = |offset: i64| Heard::Topic { partition: 0, offset };
        let again = |heard: Heard, kept: bool, cut: i64| {
            let mut denials = Denials { tail: Tail { from: reached(cut, 5), ..Tail::default() }, ..Denials::default() };
            denials.kept.extend(kept.then_some((2, 7)));
            denials.publish(&names(), ALL, heard, message("meter", "insufficient_credits", "").as_bytes());
            (denials.tail.again.is_some(), denials.at((2, 7)).is_some())
        };
        assert_eq!(again(heard(4), false, 8), (false, false), "it was in the topic then");
        assert_eq!(again(heard(5), false, 8), (true, false));
        assert_eq!(again(heard(5), true, 8), (false, true), "the record is kept");
        assert_eq!(again(heard(4), false, 7), (false, true), "above the cut");

        // What the next audit needs, and what stands: a message below the end.
        let mut denials = Denials { tail: Tail { to: reached(7, 5), ..Tail::default() }, ..Denials::default() };
        for offset in [6, 4] {
            assert_eq!(denials.unpublished().contains(&(2, 7)), offset == 4);
            denials.publish(&names(), ALL, heard(offset), message("meter", "insufficient_credits", "").as_bytes());
        }
        assert!(denials.unpublished().is_empty() && denials.tail.first == [(0, 4)].into());
        let mut denials = Denials { tail: Tail { to: reached(8, 5), ..Tail::default() }, ..Denials::default() };
        denials.publish(&names(), ALL, heard(4), message("meter", "insufficient_credits", "").as_bytes());
        assert!(denials.tail.first.is_empty(), "its record is folded");
    }
}
