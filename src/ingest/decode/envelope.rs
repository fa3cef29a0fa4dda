//! The envelope of an event: in which content mode it came, and its attributes, whatever the data.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, NoObject, Object};
use super::{Fault, Faults, Headers, Raw, TICK, clip};
use crate::ledger::command::{ACCOUNT_CLOSE, ACCOUNT_PUT, ADJUST, GRANT, GRANT_VOID};
use crate::ledger::outcome::DeadReason;

/// Bytes of a text that is kept: ids, accounts and names stand in keys, messages and logs.
const TEXT_BYTES_MAX: usize = 256;
/// 10000-01-01T00:00:00Z: RFC 3339 writes no later year.
const TIME_MS_END: i64 = 253_402_300_800_000;

/// How an event lies in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The value is the event.
    Structured,
    /// The headers are the attributes, the value is the data.
    Binary,
    /// Several events in one record: not read.
    Batch,
    /// No header says: an object with `specversion` is an event.
    Sniffed,
}

impl Mode {
    fn of(headers: Headers) -> Mode {
        let content_type = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let content_type = content_type.and_then(|(_, value)| *value).unwrap_or_default().trim_ascii_start();
        let starts_with = |prefix: &str| {
            content_type.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        if starts_with("application/cloudevents-batch") {
            Mode::Batch
        } else if starts_with("application/cloudevents") {
            Mode::Structured
        } else if header(headers, "ce_specversion").is_some() {
            Mode::Binary
        } else {
            Mode::Sniffed
        }
    }
}

/// An event whose parts are not checked yet.
pub struct Event<'a, D> {
    pub attributes: Attributes<'a>,
    pub data: Result<D, Fault>,
}

#[derive(Default)]
pub struct Attributes<'a> {
    specversion: Option<Attribute<'a>>,
    event_type: Option<Attribute<'a>>,
    id: Option<Attribute<'a>>,
    source: Option<Attribute<'a>>,
    subject: Option<Attribute<'a>>,
    time: Option<Attribute<'a>>,
}

#[derive(Clone, Copy)]
enum Attribute<'a> {
    Json(&'a RawValue),
    Header(&'a [u8]),
    RepeatedHeader,
}

/// The attributes of a good event.
#[derive(Default)]
pub struct Checked<'a> {
    pub event_type: &'static str,
    pub id: Cow<'a, str>,
    pub source: Cow<'a, str>,
    pub subject: Cow<'a, str>,
    pub time_ms: i64,
}

/// A structured event. `null` is the same as absent, as the CloudEvents JSON format has it.
#[derive(Deserialize)]
#[serde(bound(deserialize = "D: Deserialize<'de>"))]
struct Structured<'a, D> {
    #[serde(borrow)]
    specversion: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    event_type: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    subject: Option<&'a RawValue>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    data: Option<D>,
}

#[derive(Deserialize)]
struct OnlySubject<'a> {
    #[serde(borrow)]
    subject: Option<&'a RawValue>,
}

/// Takes a record apart.
pub fn read<'a, D: Deserialize<'a>>(raw: Raw<'a>, bytes_max: usize) -> Result<Event<'a, D>, Fault> {
    let text = text(raw.value, bytes_max)?;
    match Mode::of(raw.headers) {
        Mode::Structured | Mode::Sniffed => structured(text),
        Mode::Binary => binary(raw.headers, text),
        Mode::Batch => Err(match json::check(text) {
            Err(fault) => fault,
            Ok(()) => Fault::new(DeadReason::NotACloudEvent, "a batch of events: send each in a record of its own"),
        }),
    }
}

fn text(value: Option<&[u8]>, bytes_max: usize) -> Result<&str, Fault> {
    let value = value.unwrap_or_default();
    if value.is_empty() {
        return Err(Fault::new(DeadReason::EmptyValue, "the record has no value"));
    }
    if value.len() > bytes_max {
        let detail = format!("the value has {} bytes, more than {bytes_max}", value.len());
        return Err(Fault::new(DeadReason::TooLarge, detail));
    }
    let text = std::str::from_utf8(value).map_err(|error| Fault::new(DeadReason::InvalidUtf8, error.to_string()))?;
    if json::too_deep(text) {
        return Err(Fault::new(DeadReason::NestingTooDeep, "objects and arrays lie deeper than 128 levels"));
    }
    Ok(text)
}

/// The event's text where the value is the event, and may be read.
pub fn structured_text<'a>(raw: Raw<'a>, bytes_max: usize) -> Option<&'a str> {
    match Mode::of(raw.headers) {
        Mode::Structured | Mode::Sniffed => text(raw.value, bytes_max).ok(),
        Mode::Binary | Mode::Batch => None,
    }
}

fn structured<'a, D: Deserialize<'a>>(text: &'a str) -> Result<Event<'a, D>, Fault> {
    match serde_json::from_str::<Object<Structured<D>>>(text) {
        Ok(Object(event)) => Ok(event.map(Ok)),
        Err(_) => structured_with_faults(text),
    }
}

/// Reads the envelope whatever the data, to say which of the two is wrong.
fn structured_with_faults<'a, D: Deserialize<'a>>(text: &'a str) -> Result<Event<'a, D>, Fault> {
    match serde_json::from_str::<Object<Structured<&RawValue>>>(text) {
        Ok(Object(event)) => Ok(event.map(|data| data_of(data.get()))),
        Err(refused) => Err(match json::why_no_object(text, &refused) {
            NoObject::Invalid(fault) => fault,
            NoObject::OtherKind(kind) => {
                Fault::new(DeadReason::NotACloudEvent, format!("the value is {kind}, not an object"))
            }
        }),
    }
}

fn binary<'a, D: Deserialize<'a>>(headers: Headers<'a>, text: &'a str) -> Result<Event<'a, D>, Fault> {
    let attributes = Attributes {
        specversion: header(headers, "ce_specversion"),
        event_type: header(headers, "ce_type"),
        id: header(headers, "ce_id"),
        source: header(headers, "ce_source"),
        subject: header(headers, "ce_subject"),
        time: header(headers, "ce_time"),
    };
    Ok(Event { attributes, data: data_of(text) })
}

fn data_of<'a, D: Deserialize<'a>>(text: &'a str) -> Result<D, Fault> {
    serde_json::from_str(text).map_err(|refused| match json::why_no_object(text, &refused) {
        NoObject::Invalid(fault) => Fault { detail: format!("data: {}", fault.detail), ..fault },
        NoObject::OtherKind("null") => missing("data"),
        NoObject::OtherKind(kind) => Fault::new(DeadReason::WrongType, format!("data is {kind}, not an object")),
    })
}

impl<'a, D> Structured<'a, D> {
    fn map<E>(self, read: impl FnOnce(D) -> Result<E, Fault>) -> Event<'a, E> {
        let json = |value: Option<&'a RawValue>| value.map(Attribute::Json);
        let attributes = Attributes {
            specversion: json(self.specversion),
            event_type: json(self.event_type),
            id: json(self.id),
            source: json(self.source),
            subject: json(self.subject),
            time: json(self.time),
        };
        Event { attributes, data: self.data.map_or_else(|| Err(missing("data")), read) }
    }
}

/// The account that a record names, whatever else is wrong with it: it chooses the shard, so it must depend on the
/// bytes alone.
pub fn subject_of<'a>(raw: Raw<'a>) -> Option<Cow<'a, str>> {
    let in_header = || limited("subject", header(raw.headers, "ce_subject")).ok();
    match Mode::of(raw.headers) {
        Mode::Binary => in_header(),
        Mode::Structured | Mode::Batch | Mode::Sniffed => subject_in(raw.value).or_else(in_header),
    }
}

fn subject_in(value: Option<&[u8]>) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(value?).ok()?;
    let Object(OnlySubject { subject }) = serde_json::from_str(text).ok()?;
    limited("subject", subject.map(Attribute::Json)).ok()
}

fn header<'a>(headers: Headers<'a>, name: &str) -> Option<Attribute<'a>> {
    let mut values = headers.iter().filter(|(key, _)| *key == name).filter_map(|(_, value)| *value);
    let first = values.next()?;
    Some(if values.next().is_some() { Attribute::RepeatedHeader } else { Attribute::Header(first) })
}

impl<'a> Attributes<'a> {
    /// Checks the attributes of an event whose type must be one of `types`.
    pub fn check(self, types: &[&'static str], faults: &mut Faults) -> Checked<'a> {
        faults.take(check_specversion(self.specversion));
        Checked {
            event_type: faults.take(check_type(self.event_type, types)),
            id: faults.take(limited("id", self.id)),
            source: faults.take(limited("source", self.source)),
            subject: faults.take(limited("subject", self.subject)),
            time_ms: faults.take(check_time(self.time)),
        }
    }
}

impl Checked<'_> {
    /// A clock that runs far ahead would date events into cycles that nobody has reached.
    pub fn check_early(&self, append_ms: i64, early_limit_ms: i64) -> Result<(), Fault> {
        let ahead_ms = self.time_ms.saturating_sub(append_ms);
        if ahead_ms <= early_limit_ms {
            return Ok(());
        }
        let detail = format!("time is {ahead_ms} ms ahead of the append time, more than {early_limit_ms}");
        Err(Fault::new(DeadReason::TooEarly, detail))
    }
}

fn check_specversion(attribute: Option<Attribute>) -> Result<(), Fault> {
    if attribute.is_none() {
        return Err(Fault::new(DeadReason::NotACloudEvent, "specversion is missing"));
    }
    match string("specversion", attribute) {
        Ok(version) if version == "1.0" => Ok(()),
        Ok(version) => {
            let detail = format!("specversion is `{}`, not `1.0`", clip(&version));
            Err(Fault::new(DeadReason::UnsupportedSpecversion, detail))
        }
        Err(fault) => Err(Fault::new(DeadReason::UnsupportedSpecversion, fault.detail)),
    }
}

fn check_type(attribute: Option<Attribute>, types: &[&'static str]) -> Result<&'static str, Fault> {
    let event_type = string("type", attribute)?;
    types.iter().copied().find(|known| *known == event_type).ok_or_else(|| {
        let detail = format!("type `{}` is none of {}", clip(&event_type), types.join(", "));
        Fault::new(DeadReason::UnknownType, detail)
    })
}

fn check_time(attribute: Option<Attribute>) -> Result<i64, Fault> {
    let time = string("time", attribute)?;
    time_ms(&time).ok_or_else(|| {
        let detail = format!("time `{}` is not like 2026-01-31T12:00:00.000Z", clip(&time));
        Fault::new(DeadReason::InvalidTime, detail)
    })
}

/// A text that is kept.
fn limited<'a>(name: &str, attribute: Option<Attribute<'a>>) -> Result<Cow<'a, str>, Fault> {
    let text = string(name, attribute)?;
    check_limits(name, &text)?;
    Ok(text)
}

fn string<'a>(name: &str, attribute: Option<Attribute<'a>>) -> Result<Cow<'a, str>, Fault> {
    let invalid = |what: &str| Fault::new(DeadReason::InvalidField, format!("header ce_{name} {what}"));
    let text = match attribute {
        None => return Err(missing(name)),
        Some(Attribute::Json(raw)) => json_string(name, raw)?,
        Some(Attribute::Header(bytes)) => {
            Cow::Borrowed(std::str::from_utf8(bytes).map_err(|_| invalid("is not UTF-8 text"))?)
        }
        Some(Attribute::RepeatedHeader) => return Err(invalid("comes twice")),
    };
    if text.is_empty() {
        return Err(missing(name));
    }
    Ok(text)
}

/// A field of the data that is kept.
pub fn field<'a>(name: &str, raw: Option<&'a RawValue>) -> Result<Cow<'a, str>, Fault> {
    limited(name, raw.map(Attribute::Json))
}

fn json_string<'a>(name: &str, raw: &'a RawValue) -> Result<Cow<'a, str>, Fault> {
    json::text_of(raw).ok_or_else(|| match json::kind(raw.get()) {
        "a string" => Fault::new(DeadReason::InvalidJson, format!("{name} holds half a surrogate pair")),
        kind => Fault::new(DeadReason::WrongType, format!("{name} is {kind}, not a string")),
    })
}

fn check_limits(name: &str, text: &str) -> Result<(), Fault> {
    let invalid = |what: String| Err(Fault::new(DeadReason::InvalidField, format!("{name} {what}")));
    if text.len() > TEXT_BYTES_MAX {
        return invalid(format!("has {} bytes, more than {TEXT_BYTES_MAX}", text.len()));
    }
    if has_control_character(text) {
        return invalid("holds a control character".to_owned());
    }
    Ok(())
}

fn has_control_character(text: &str) -> bool {
    !is_plain_ascii(text) && text.chars().any(char::is_control)
}

/// Whether a text may be kept without a closer look.
pub fn is_plain(text: &str) -> bool {
    (1..=TEXT_BYTES_MAX).contains(&text.len()) && is_plain_ascii(text)
}

fn is_plain_ascii(text: &str) -> bool {
    // Without an early end, so that the compiler can look at many bytes at once.
    text.bytes().fold(true, |plain, byte| plain & (0x20..0x7f).contains(&byte))
}

fn missing(name: &str) -> Fault {
    Fault::new(DeadReason::MissingField, format!("{name} is missing or empty"))
}

/// What an event is for, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bears {
    Usage,
    Command,
    Tick,
}

/// What a structured event is for, and its time, whatever else is in it.
pub fn bears(value: &[u8]) -> Option<(Bears, i64)> {
    #[derive(Deserialize)]
    struct TypeAndTime<'a> {
        #[serde(borrow, rename = "type")]
        event_type: Option<Cow<'a, str>>,
        #[serde(borrow)]
        time: Cow<'a, str>,
    }
    let Object(TypeAndTime { event_type, time }) = serde_json::from_slice(value).ok()?;
    let bears = match event_type.as_deref() {
        Some(TICK) => Bears::Tick,
        Some(ACCOUNT_PUT | ACCOUNT_CLOSE | GRANT | GRANT_VOID | ADJUST) => Bears::Command,
        // One of no known type goes where its producer would have sent it, to end as a dead letter.
        _ => Bears::Usage,
    };
    Some((bears, time_ms(&time)?))
}

/// What a structured event is called, whatever is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Called {
    pub source: Option<String>,
    pub id: Option<String>,
}

/// Attributes in headers are not looked at, and neither is what no event may be called.
pub fn called(raw: Raw<'_>) -> Called {
    let value = match Mode::of(raw.headers) {
        Mode::Structured | Mode::Sniffed => raw.value.unwrap_or_default(),
        Mode::Binary | Mode::Batch => return Called::default(),
    };
    let Ok(Object(event)) = serde_json::from_slice::<Object<BTreeMap<String, &RawValue>>>(value) else {
        return Called::default();
    };
    let fits = |name: &str, text: &str| !text.is_empty() && check_limits(name, text).is_ok();
    let text = |name: &str| json::text_of(event.get(name)?).filter(|text| fits(name, text)).map(Into::into);
    Called { source: text("source"), id: text("id") }
}

/// An RFC 3339 timestamp between the years 1970 and 9999, in ms; what is finer is cut off.
pub fn time_ms(text: &str) -> Option<i64> {
    let any_rfc_3339 = || Some(DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis());
    let time = utc_ms(text.as_bytes()).or_else(any_rfc_3339)?;
    (0..TIME_MS_END).contains(&time).then_some(time)
}

/// `2026-01-31T12:00:00Z` or `2026-01-31T12:00:00.000Z`, as most producers write it; `None` for everything else.
fn utc_ms(text: &[u8]) -> Option<i64> {
    let (seconds, ms) = match text.len() {
        20 => (text, 0),
        24 if text[19] == b'.' => (&text[..20], number(&text[20..23])?),
        _ => return None,
    };
    let punctuation = [4, 7, 10, 13, 16].map(|place| seconds[place]);
    if punctuation != *b"--T::" || text.last() != Some(&b'Z') {
        return None;
    }
    let part = |places: std::ops::Range<usize>| number(&seconds[places]);
    let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
    // A leap second is left to the reader of everything.
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let date = NaiveDate::from_ymd_opt(year as i32, month, day)?;
    let days = i64::from(date.to_epoch_days());
    let second_of_day = i64::from((hour * 60 + minute) * 60 + second);
    Some((days * 86_400 + second_of_day) * 1000 + i64::from(ms))
}

/// A few decimal digits and nothing else.
fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_time_is_read_as_rfc_3339_has_it() {
        let check = |text: &str| {
            let expected = DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_millis());
            let read = utc_ms(text.as_bytes());
            assert!(read.is_none() || read == expected, "{text}: {read:?}, not {expected:?}");
            read.is_some()
        };
        let mut read = 0;
        for year in [0, 1969, 1970, 1999, 2000, 2023, 2024, 2026, 2100, 9999] {
            for (month, day) in [(0, 1), (1, 31), (2, 28), (2, 29), (2, 30), (4, 31), (12, 31), (13, 1), (6, 0)] {
                for time in ["00:00:00", "23:59:59", "24:00:00", "12:60:00", "12:34:60", "1a:00:00", "12:34:56"] {
                    for end in ["Z", ".000Z", ".987Z", ".9Z", ".98aZ", "+00:00", "z", ".987z"] {
                        read += usize::from(check(&format!("{year:04}-{month:02}-{day:02}T{time}{end}")));
                    }
                }
            }
        }
        assert!(read > 250, "only {read} were read");
        for text in ["2026-01-31 12:00:00Z", "2026-01-31t12:00:00Z", "2026/01-31T12:00:00Z", "é026-01-31T12:00:00Z", ""]
        {
            check(text);
        }
    }
}
