//! `credits.usage.v1`: what a service did for an account; `credits.usage.void.v1`: what it takes back.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, Object};
use super::{Fault, Faults, Raw, Settings, SharedTexts, TICK, clip, envelope};
use crate::ledger::catalogue::{Conditions, Field};
use crate::ledger::event::{Identity, UsageEvent};
use crate::ledger::outcome::DeadReason;
use crate::pipeline::record::Body;

pub const USAGE: &str = "credits.usage.v1";
pub const VOID: &str = "credits.usage.void.v1";

/// 10^15: times the smallest price it is beyond what an event may cost, and it still fits every number downstream.
const QUANTITY_MAX: u64 = 1_000_000_000_000_000;

/// The data of an event. Fields that are not read may be anything.
#[derive(Default, Deserialize)]
struct UsageData<'a> {
    #[serde(borrow)]
    action: Option<&'a RawValue>,
    #[serde(borrow)]
    quantity: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    outcome: Option<&'a RawValue>,
}

/// The data of a void: those of the event that it takes back, with the attributes that name it.
#[derive(Default, Deserialize)]
struct VoidData<'a> {
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    #[serde(borrow)]
    action: Option<&'a RawValue>,
}

#[derive(Default)]
struct Voided<'a> {
    source: Cow<'a, str>,
    id: Cow<'a, str>,
    time_ms: i64,
    action: Cow<'a, str>,
}

#[derive(Default)]
struct Usage<'a> {
    action: Cow<'a, str>,
    quantity: u64,
    outcome: Option<Cow<'a, str>>,
    user: Option<Cow<'a, str>>,
}

/// An event as nearly all are: structured, no text with an escape, each field of its type. Read in one pass.
#[derive(Deserialize)]
struct Plain<'a> {
    specversion: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    id: &'a str,
    source: &'a str,
    subject: &'a str,
    time: &'a str,
    #[serde(borrow)]
    data: Object<PlainData<'a>>,
}

#[derive(Deserialize)]
struct PlainData<'a> {
    action: &'a str,
    quantity: Option<u64>,
    #[serde(borrow)]
    user: Option<&'a str>,
    #[serde(borrow)]
    outcome: Option<&'a str>,
}

/// Fields of the data that nobody needs but prices that depend on them.
#[derive(Deserialize)]
struct FurtherData<'a> {
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    channel: Option<&'a RawValue>,
    #[serde(borrow)]
    contact: Option<&'a RawValue>,
    #[serde(borrow)]
    company: Option<&'a RawValue>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    reservation: Option<&'a RawValue>,
}

/// What prices depend on, and what is charged once.
type Further = (Box<[(Field, Arc<str>)]>, Option<Identity>);

pub fn read(raw: Raw<'_>, settings: Settings, conditions: &Conditions, texts: &mut SharedTexts) -> Result<Body, Fault> {
    let event = match plain(raw, settings, texts) {
        Some(event) => event,
        // With care, and with a word on what is wrong.
        None => match careful(raw, settings, texts)? {
            Some(event) => event,
            None => return Ok(Body::Tick),
        },
    };
    if conditions.ask_nothing_of(&event.action) {
        return Ok(Body::Usage(Arc::new(event)));
    }
    let (fields, once) = further(raw, settings, conditions, &event.action);
    Ok(Body::Usage(Arc::new(UsageEvent { fields, once, ..event })))
}

/// A second look at the data: most events need none. What is no text, or comes twice, equals no condition, and is
/// nothing that was charged before.
fn further(raw: Raw<'_>, settings: Settings, conditions: &Conditions, action: &str) -> Further {
    let read = envelope::read::<Object<FurtherData>>(raw, settings.max_bytes);
    let Some(Object(data)) = read.ok().and_then(|event| event.data.ok()) else { return Further::default() };
    let text = |field| {
        let raw = match field {
            Field::User => data.user,
            Field::Channel => data.channel,
            Field::Contact => data.contact,
            Field::Company => data.company,
            Field::Source => data.source,
            Field::Reservation => data.reservation,
            Field::Outcome => None,
        };
        json::text_of(raw?)
    };
    let once = conditions.once(action).and_then(text).filter(|of| !of.is_empty());
    (conditions.of_event(text), once.map(|of| Identity::of(action, &of)))
}

/// `None`: the event is not plain, or something is wrong with it.
fn plain(raw: Raw<'_>, settings: Settings, texts: &mut SharedTexts) -> Option<UsageEvent> {
    let event: Object<Plain> = serde_json::from_str(envelope::structured_text(raw, settings.max_bytes)?).ok()?;
    let Object(Plain { specversion, event_type, id, source, subject, time, data: Object(data) }) = event;
    let kept = [id, source, subject, data.action];
    let kept = kept.into_iter().chain(data.user).chain(data.outcome).all(envelope::is_plain);
    let time_ms = envelope::time_ms(time)?;
    let early = time_ms.saturating_sub(raw.append_ms) > settings.early_limit_ms;
    let quantity = data.quantity.unwrap_or(1);
    if specversion != "1.0" || event_type != USAGE || !kept || early || !(1..=QUANTITY_MAX).contains(&quantity) {
        return None;
    }
    Some(UsageEvent {
        account: texts.share(subject),
        source: texts.share(source),
        identity: Identity::of(source, id),
        id: id.into(),
        time_ms,
        dated_ms: time_ms.min(raw.append_ms),
        action: texts.share(data.action),
        quantity,
        outcome: data.outcome.map(|outcome| texts.share(outcome)),
        user: data.user.map(|user| texts.share(user)),
        fields: Box::default(),
        once: None,
        voids: None,
    })
}

/// `None`: a tick.
fn careful(raw: Raw<'_>, settings: Settings, texts: &mut SharedTexts) -> Result<Option<UsageEvent>, Fault> {
    let event = envelope::read::<Object<UsageData>>(raw, settings.max_bytes)?;
    let mut faults = Faults::default();
    let envelope = event.attributes.check(&[USAGE, VOID, TICK], &mut faults);
    if envelope.event_type == VOID {
        return void(raw, settings, texts).map(Some);
    }
    if envelope.event_type == TICK {
        faults.none()?;
        return Ok(None);
    }
    let usage = faults.take(event.data.and_then(|Object(data)| data.check()));
    faults.take(envelope.check_early(raw.append_ms, settings.early_limit_ms));
    faults.none()?;
    Ok(Some(UsageEvent {
        account: texts.share(&envelope.subject),
        source: texts.share(&envelope.source),
        identity: Identity::of(&envelope.source, &envelope.id),
        id: envelope.id.into(),
        time_ms: envelope.time_ms,
        dated_ms: envelope.time_ms.min(raw.append_ms),
        action: texts.share(&usage.action),
        quantity: usage.quantity,
        outcome: usage.outcome.map(|outcome| texts.share(&outcome)),
        user: usage.user.map(|user| texts.share(&user)),
        fields: Box::default(),
        once: None,
        voids: None,
    }))
}

/// A void counts at the time of the event that it takes back, as far as it says: there that event is remembered.
fn void(raw: Raw<'_>, settings: Settings, texts: &mut SharedTexts) -> Result<UsageEvent, Fault> {
    let event = envelope::read::<Object<VoidData>>(raw, settings.max_bytes)?;
    let mut faults = Faults::default();
    let mut envelope = event.attributes.check(&[VOID], &mut faults);
    let voided = faults.take(event.data.and_then(|Object(data)| data.check()));
    faults.take(envelope.check_early(raw.append_ms, settings.early_limit_ms));
    envelope.time_ms = voided.time_ms;
    let early = envelope.check_early(raw.append_ms, settings.early_limit_ms);
    faults.take(early.map_err(|fault| Fault { detail: format!("the voided event's {}", fault.detail), ..fault }));
    faults.none()?;
    let voids = Identity::of(&voided.source, &voided.id);
    Ok(UsageEvent {
        account: texts.share(&envelope.subject),
        source: texts.share(&envelope.source),
        identity: voids.of_its_void(),
        id: envelope.id.into(),
        time_ms: voided.time_ms,
        dated_ms: voided.time_ms.min(raw.append_ms),
        action: texts.share(&voided.action),
        quantity: 1,
        outcome: None,
        user: None,
        fields: Box::default(),
        once: None,
        voids: Some(voids),
    })
}

/// What a void says of the event that it takes back, for people: the meter believes its name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voids {
    pub source: String,
    pub id: String,
    pub user: Option<Arc<str>>,
}

/// `None`: no void, or none that can be read.
pub fn voids(raw: Raw<'_>, bytes_max: usize) -> Option<Voids> {
    let event = envelope::read::<Object<BTreeMap<String, &RawValue>>>(raw, bytes_max).ok()?;
    if event.attributes.check(&[VOID], &mut Faults::default()).event_type != VOID {
        return None;
    }
    let Object(data) = event.data.ok()?;
    let text = |name: &str| json::text_of(data.get(name)?).filter(|text| !text.is_empty());
    Some(Voids { source: text("source")?.into(), id: text("id")?.into(), user: text("user").map(Into::into) })
}

impl<'a> VoidData<'a> {
    fn check(self) -> Result<Voided<'a>, Fault> {
        let mut faults = Faults::default();
        let time = faults.take(envelope::field("time", self.time));
        let time_ms = envelope::time_ms(&time);
        let voided = Voided {
            source: faults.take(envelope::field("source", self.source)),
            id: faults.take(envelope::field("id", self.id)),
            time_ms: time_ms.unwrap_or_default(),
            action: faults.take(envelope::field("action", self.action)),
        };
        faults.none()?;
        match time_ms {
            Some(_) => Ok(voided),
            None => Err(Fault::new(DeadReason::InvalidTime, format!("the voided event's time is `{}`", clip(&time)))),
        }
    }
}

impl<'a> UsageData<'a> {
    fn check(self) -> Result<Usage<'a>, Fault> {
        let mut faults = Faults::default();
        let usage = Usage {
            action: faults.take(envelope::field("action", self.action)),
            quantity: faults.take(quantity(self.quantity)),
            outcome: faults.take(optional("outcome", self.outcome)),
            user: faults.take(optional("user", self.user)),
        };
        faults.none()?;
        Ok(usage)
    }
}

/// A field that may be absent, `null` or empty.
fn optional<'a>(name: &str, raw: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, Fault> {
    match raw {
        None => Ok(None),
        Some(raw) if raw.get() == "\"\"" => Ok(None),
        Some(raw) => envelope::field(name, Some(raw)).map(Some),
    }
}

/// Read from its text: a float would round it, and `1.0` says that its producer counts in floats.
fn quantity(raw: Option<&RawValue>) -> Result<u64, Fault> {
    let Some(raw) = raw else { return Ok(1) };
    let text = raw.get();
    let fault = |reason: DeadReason| Err(Fault::new(reason, format!("quantity is {}", clip(text))));
    let kind = json::kind(text);
    if kind != "a number" {
        return Err(Fault::new(DeadReason::WrongType, format!("quantity is {kind}, not a number")));
    }
    if text == "0" || text == "-0" {
        return fault(DeadReason::QuantityZero);
    }
    if text.starts_with('-') {
        return fault(DeadReason::QuantityNegative);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return fault(DeadReason::QuantityNotInteger);
    }
    match text.parse() {
        Ok(quantity) if quantity <= QUANTITY_MAX => Ok(quantity),
        _ => fault(DeadReason::QuantityTooLarge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::call::Partition;

    /// Values that a field may have, good and bad.
    const VALUES: [&str; 26] = [
        "null",
        "\"\"",
        "\"x\"",
        "\"a\\u0062c\"",
        "\"\\ud800\"",
        "\"\u{7f}\"",
        "\"é\"",
        "\"\u{85}\"",
        "\"1.0\"",
        "\"0.3\"",
        "\"credits.usage.v1\"",
        "\"2026-03-10T12:00:00Z\"",
        "\"2026-03-10T12:00:00.5+01:00\"",
        "\"2027-03-10T12:00:00Z\"",
        "1",
        "0",
        "-0",
        "-1",
        "1.0",
        "1e2",
        "1000000000000000",
        "1000000000000001",
        "18446744073709551616",
        "true",
        "[]",
        "{}",
    ];

    /// One field of a good event at a time has each of the values, is absent, or comes twice.
    #[test]
    fn a_plain_event_is_read_as_with_care() {
        let envelope = [
            ("specversion", "\"1.0\""),
            ("type", "\"credits.usage.v1\""),
            ("id", "\"7f3c\""),
            ("source", "\"reveal-service\""),
            ("subject", "\"acme\""),
            ("time", "\"2026-03-10T09:30:00.123Z\""),
        ];
        let data = [
            ("action", "\"reveal_email\""),
            ("quantity", "2"),
            ("user", "\"u-17\""),
            ("outcome", "\"found\""),
            ("company", "\"c\""),
        ];
        let long = format!("\"{}\"", "x".repeat(257));
        let values: Vec<&str> = VALUES.into_iter().chain([long.as_str()]).collect();
        type Fields<'a> = Vec<(&'a str, &'a str)>;
        let object = |fields: &Fields| {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}}}", fields.join(","))
        };
        let event = |envelope: &Fields, data: &str| object(&[envelope.as_slice(), &[("data", data)]].concat());
        let (envelope, data) = (envelope.to_vec(), data.to_vec());
        let good = event(&envelope, &object(&data));
        assert!(read_both(&good), "a good event is plain");

        let mut texts: Vec<String> = vec!["[1]".into(), "{".into(), "".into(), format!(" {good} "), format!("{good}x")];
        texts.extend(values.iter().map(|value| event(&envelope, value)));
        for index in 0..envelope.len() {
            let with = |value| [&envelope[..index], &[(envelope[index].0, value)], &envelope[index + 1..]].concat();
            texts.extend(values.iter().map(|value| event(&with(value), &object(&data))));
            texts.push(event(&[&envelope[..index], &envelope[index + 1..]].concat(), &object(&data)));
            texts.push(event(&[&envelope[..], &envelope[index..=index]].concat(), &object(&data)));
        }
        for index in 0..data.len() {
            let with = |value| [&data[..index], &[(data[index].0, value)], &data[index + 1..]].concat();
            texts.extend(values.iter().map(|value| event(&envelope, &object(&with(value)))));
            texts.push(event(&envelope, &object(&[&data[..index], &data[index + 1..]].concat())));
            texts.push(event(&envelope, &object(&[&data[..], &data[index..=index]].concat())));
        }
        let plain = texts.iter().filter(|text| read_both(text)).count();
        assert!(plain > 40, "{plain} of {} were plain: too few to compare", texts.len());
    }

    #[test]
    fn a_void_says_what_it_takes_back_and_whose_that_was() {
        let check = |kind: &str, data: &str, expected: Option<(&str, &str, Option<&str>)>| {
            let text = format!("{{\"specversion\":\"1.0\",\"type\":\"{kind}\",\"data\":{data}}}");
            let partition = Partition::usage(0);
            let raw = Raw { partition, offset: 7, append_ms: 0, key: None, value: Some(text.as_bytes()), headers: &[] };
            let said = voids(raw, 1000);
            let said = said.as_ref().map(|voids| (&*voids.source, &*voids.id, voids.user.as_deref()));
            assert_eq!(said, expected, "{text}");
        };
        check(VOID, r#"{"source":"s","id":"e1","user":"ada","n":7}"#, Some(("s", "e1", Some("ada"))));
        check(VOID, r#"{"source":"s","id":"\u0065 \"1\"","user":7}"#, Some(("s", "e \"1\"", None)));
        check(VOID, r#"{"source":"s","id":"e1","user":"","user":""}"#, Some(("s", "e1", None)));
        check(VOID, r#"{"source":"s"}"#, None);
        check(VOID, "[]", None);
        check(USAGE, r#"{"source":"s","id":"e1"}"#, None);
    }

    /// Whether the event is plain; then it is read as with care.
    fn read_both(text: &str) -> bool {
        let raw = Raw {
            partition: Partition::usage(0),
            offset: 7,
            append_ms: 1_773_144_000_000,
            key: None,
            value: Some(text.as_bytes()),
            headers: &[],
        };
        let settings = Settings { max_bytes: 1000, early_limit_ms: 300_000 };
        let plain = plain(raw, settings, &mut SharedTexts::default());
        if plain.is_some() {
            let careful = careful(raw, settings, &mut SharedTexts::default());
            assert_eq!(careful.ok(), Some(plain.clone()), "{text}");
        }
        plain.is_some()
    }
}
