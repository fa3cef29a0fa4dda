//! What decodes to what, through the decoder alone.

/// Commands: what is read, refused or dead.
mod commands;

use proptest::prelude::*;

use super::*;
use crate::ledger::catalogue::{Catalogue, Field};
use crate::ledger::command::Command;
use crate::ledger::event::{Identity, UsageEvent};

const APPEND_MS: i64 = 1_784_116_800_000; // 2026-07-15T12:00:00Z
const EARLY_LIMIT_MS: i64 = 300_000;
const SETTINGS: Settings = Settings { max_bytes: 1024 * 1024, early_limit_ms: EARLY_LIMIT_MS };

const USAGE_EVENT: &str = concat!(
    r#"{"specversion":"1.0","id":"e-1","source":"/crm","type":"credits.usage.v1","#,
    r#""subject":"acme","time":"2026-07-15T11:59:59.250Z","#,
    r#""data":{"action":"reveal_email","quantity":2,"user":"u-1","outcome":"found","channel":7}}"#
);
const DATA: &str = r#"{"action":"reveal_email","quantity":2,"user":"u-1","outcome":"found","channel":7}"#;

/// The attributes of `USAGE_EVENT` as headers.
const BINARY: Headers = &[
    ("ce_specversion", Some(b"1.0")),
    ("ce_id", Some(b"e-1")),
    ("ce_source", Some(b"/crm")),
    ("ce_type", Some(b"credits.usage.v1")),
    ("ce_subject", Some(b"acme")),
    ("ce_time", Some(b"2026-07-15T11:59:59.250Z")),
];

fn usage<'a>(value: &'a [u8], headers: Headers<'a>) -> Raw<'a> {
    Raw {
        partition: Partition::usage(3),
        offset: 7,
        append_ms: APPEND_MS,
        key: Some(b"acme"),
        value: Some(value),
        headers,
    }
}

fn command<'a>(value: &'a [u8], headers: Headers<'a>) -> Raw<'a> {
    Raw { partition: Partition::COMMANDS, ..usage(value, headers) }
}

fn decoder(settings: Settings) -> Decoder {
    Decoder::new(settings, Arc::default())
}

fn decode(raw: Raw) -> Decoded {
    let decoded = decoder(SETTINGS).decode(raw);
    crate::schema::tests::takes_what_is_good(raw, &decoded);
    decoded
}

fn alive(raw: Raw) -> UsageEvent {
    let decoded = decode(raw);
    match decoded.record.body {
        Body::Usage(event) => (*event).clone(),
        other => panic!("{:?}: {other:?} {:?}", raw.value.map(String::from_utf8_lossy), decoded.detail),
    }
}

/// Expects a dead letter with a reason, in the shard of an account, and a detail that holds a text.
fn dead(raw: Raw, reason: DeadReason, account: Option<&str>, detail: &str) {
    let decoded = decode(raw);
    let value = raw.value.map(|value| String::from_utf8_lossy(&value[..value.len().min(400)]));
    let expected = Body::Dead { reason, account: account.map(Arc::from) };
    assert_eq!(decoded.record.body, expected, "{value:?}: {:?}", decoded.detail);
    let said = decoded.detail.expect("a dead record has a detail");
    assert!(said.contains(detail), "{value:?}: {said}");
}

/// A text with one part replaced.
fn change(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn a_structured_event_is_read() {
    let event = alive(usage(USAGE_EVENT.as_bytes(), &[]));
    let expected = UsageEvent {
        account: "acme".into(),
        source: "/crm".into(),
        id: "e-1".into(),
        time_ms: APPEND_MS - 750,
        dated_ms: APPEND_MS - 750,
        action: "reveal_email".into(),
        quantity: 2,
        outcome: Some("found".into()),
        user: Some("u-1".into()),
        fields: Box::default(),
        once: None,
        voids: None,
        identity: Identity::of("/crm", "e-1"),
    };
    assert_eq!(event, expected);
}

#[test]
fn data_fields_are_kept_where_a_price_depends_on_their_value() {
    let catalogue = r#"
        version = 1
        [credit_types.email]
        [actions.reveal_email]
        prices = [
          { credit_type = "email", credits = 1 },
          { credit_type = "email", credits = 2, when = { channel = "api" } },
          { credit_type = "email", credits = 3, when = { user = "u-1", channel = "api" } },
        ]
        [plans]
    "#;
    let conditions = Arc::new(Catalogue::parse(catalogue).unwrap().conditions());
    let check = |channel: &str, expected: &[(Field, &str)]| {
        let expected: Vec<_> = expected.iter().map(|(field, value)| (*field, Arc::<str>::from(*value))).collect();
        for (from, headers) in [(USAGE_EVENT, &[][..]), (DATA, BINARY)] {
            let value = change(from, r#""channel":7"#, channel);
            let mut decoder = Decoder::new(SETTINGS, conditions.clone());
            let Body::Usage(event) = decoder.decode(usage(value.as_bytes(), headers)).record.body else {
                panic!("{channel}: it is good")
            };
            assert_eq!(event.fields[..], expected[..], "{channel}");
        }
    };
    let user = (Field::User, "u-1");
    check(r#""channel":"api""#, &[user, (Field::Channel, "api")]);
    check(r#""channel":"\u0061pi""#, &[user, (Field::Channel, "api")]);
    check(r#""channel":"web","source":"api""#, &[user]);
    check(r#""channel":["api"]"#, &[user]);
    check(r#""channel":null"#, &[user]);
    assert_eq!(alive(usage(USAGE_EVENT.as_bytes(), &[])).fields[..], [], "no price asks");
}

#[test]
fn both_content_modes_and_sniffing_give_the_same_event() {
    let structured = alive(usage(USAGE_EVENT.as_bytes(), &[]));
    let check = |headers: Headers, value: &str| {
        assert_eq!(alive(usage(value.as_bytes(), headers)), structured, "{headers:?}");
    };
    let with = |name: &'static str, value: &'static [u8]| {
        let mut headers = BINARY.to_vec();
        headers.insert(0, (name, Some(value)));
        headers
    };
    check(&[], USAGE_EVENT);
    check(&[("traceparent", Some(b"00-1-2-3")), ("empty", None)], USAGE_EVENT);
    check(&[("content-type", Some(b"application/json"))], USAGE_EVENT);
    check(&[("content-type", Some(b"application/cloudevents+json"))], USAGE_EVENT);
    check(&[("Content-Type", Some(b" Application/CloudEvents; charset=UTF-8"))], USAGE_EVENT);
    check(&with("content-type", b"application/cloudevents+json"), USAGE_EVENT);
    check(&with("ce_specversion_", b"0.3"), DATA);
    check(&with("content-type", b"application/json"), DATA);
    check(BINARY, DATA);
    check(BINARY, &format!("\n {DATA}\t"));
}

#[test]
fn texts_are_compared_after_their_escapes() {
    let check = |from: &str, to: &str, account: &str, id: &str| {
        let event = alive(usage(change(USAGE_EVENT, from, to).as_bytes(), &[]));
        assert_eq!((&*event.account, &*event.id), (account, id), "{to}");
        assert_eq!(event.identity, Identity::of("/crm", id), "{to}");
    };
    check("acme", r"\u0061cme", "acme", "e-1");
    check("\"subject\"", r#""\u0073ubject""#, "acme", "e-1");
    check("\"e-1\"", r#""\"\\\/\u00e9""#, "acme", "\"\\/é");
    check("\"e-1\"", r#""\ud83d\ude00""#, "acme", "😀");
    check("acme", "Müller & Söhne 株式会社", "Müller & Söhne 株式会社", "e-1");
    check("e-1", &"é".repeat(128), "acme", &"é".repeat(128)); // 256 bytes
    check("\"data\"", "\"subjects\":{\"subject\":\"other\"},\"data\"", "acme", "e-1");
}

#[test]
fn what_an_action_is_charged_once_for_is_kept() {
    let catalogue = r#"
        version = 1
        [credit_types.email]
        [actions.reveal_email]
        prices = [{ credit_type = "email", credits = 1 }]
        charge_once = { by = "contact" }
        [actions.verify]
        prices = [{ credit_type = "email", credits = 1 }]
        [actions.enrich]
        prices = [{ credit_type = "email", credits = 1, when = { source = "x" } }, { credit_type = "email", credits = 1 }]
        charge_once = { by = "company" }
        [plans.basic]
        interval = "monthly"
        allowance = {}
        actions = ["reveal_email"]
    "#;
    let conditions = Arc::new(Catalogue::parse(catalogue).unwrap().conditions());
    let check = |action: &str, data: &str, of: Option<&str>| {
        let data = format!("{{\"action\":\"{action}\"{data}}}");
        let structured = change(USAGE_EVENT, DATA, &data);
        for raw in [usage(structured.as_bytes(), &[]), usage(data.as_bytes(), BINARY)] {
            let decoded = Decoder::new(SETTINGS, conditions.clone()).decode(raw);
            let Body::Usage(event) = decoded.record.body else { panic!("{data}: {:?}", decoded.detail) };
            assert_eq!(event.once, of.map(|of| Identity::of(action, of)), "{data}");
        }
    };
    check("reveal_email", r#","contact":"c-1","company":"d""#, Some("c-1"));
    check("reveal_email", r#","contact":"c\u002d1""#, Some("c-1"));
    check("enrich", r#","contact":"c-1","company":"d""#, Some("d"));
    check("verify", r#","contact":"c-1""#, None);
    // It is charged each time.
    check("reveal_email", "", None);
    check("reveal_email", r#","contact":"""#, None);
    check("reveal_email", r#","contact":null"#, None);
    check("reveal_email", r#","contact":7"#, None);
    check("reveal_email", r#","contact":"c","contact":"c""#, None);
    assert_ne!(Identity::of("reveal_email", "c-1"), Identity::of("enrich", "c-1"));
}

#[test]
fn optional_fields_may_be_absent_null_or_empty() {
    let check = |from: &str, to: &str, quantity: u64, outcome: Option<&str>| {
        let event = alive(usage(change(USAGE_EVENT, from, to).as_bytes(), &[]));
        assert_eq!((event.quantity, event.outcome.as_deref()), (quantity, outcome), "{to}");
    };
    check("\"quantity\":2,", "", 1, Some("found"));
    check("\"quantity\":2", "\"quantity\":null", 1, Some("found"));
    check("\"quantity\":2", "\"quantity\": 1000000000000000 ", 1_000_000_000_000_000, Some("found"));
    check("\"found\"", "null", 2, None);
    check("\"found\"", "\"\"", 2, None);
    check("\"u-1\"", "\"\"", 2, Some("found"));
    check("\"channel\":7", "\"channel\":1e999,\"channel\":[{}]", 2, Some("found"));
}

#[test]
fn time_is_exact_to_the_millisecond() {
    let check = |time: &str, from_append_ms: i64| {
        let event = alive(usage(change(USAGE_EVENT, "2026-07-15T11:59:59.250Z", time).as_bytes(), &[]));
        assert_eq!(event.time_ms - APPEND_MS, from_append_ms, "{time}");
        assert_eq!(event.dated_ms - APPEND_MS, from_append_ms.min(0), "{time}");
    };
    check("2026-07-15T12:00:00Z", 0);
    check("2026-07-15t12:00:00z", 0);
    check("2026-07-15T12:00:00.0009999Z", 0);
    check("2026-07-15T12:00:00.001Z", 1);
    check("2026-07-15T12:00:00.123456789123Z", 123);
    check("2026-07-15T14:04:59.5+02:00", 299_500);
    check("2026-07-15T12:05:00-00:00", 300_000);
    check("2026-07-15T11:59:60Z", 0); // a leap second
    check("1970-01-01T00:00:00Z", -APPEND_MS);
}

#[test]
fn each_bad_event_has_its_own_reason() {
    use DeadReason::*;
    let acme = Some("acme");
    let check = |from: &str, to: &str, reason: DeadReason, account: Option<&str>, detail: &str| {
        dead(usage(change(USAGE_EVENT, from, to).as_bytes(), &[]), reason, account, detail);
    };
    let long = "x".repeat(257);

    // the value
    check("{\"specversion\"", "{specversion", InvalidJson, None, "line 1 column 2");
    check("}}", "}", InvalidJson, None, "EOF");
    check("}}", "}} x", InvalidJson, None, "trailing");
    check("\"quantity\":2", "\"quantity\":NaN", InvalidJson, None, "expected value");
    check("\"quantity\":2", "\"quantity\":02", InvalidJson, None, "invalid number");
    check("\"acme\"", "\"ac\nme\"", InvalidJson, None, "control character");
    check("\"e-1\"", r#""\ud83d""#, InvalidJson, acme, "id holds half a surrogate pair");
    check("\"acme\"", r#""\ud83d""#, InvalidJson, None, "subject holds half a surrogate pair");
    check("\"id\":\"e-1\"", "\"id\":\"e-1\",\"id\":\"e-1\"", InvalidJson, acme, "duplicate field `id`");
    check("\"subject\"", "\"subject\":\"acme\",\"subject\"", InvalidJson, None, "duplicate field `subject`");
    check("\"quantity\":2", "\"quantity\":2,\"quantity\":3", InvalidJson, acme, "data: duplicate field `quantity`");
    check("\"channel\":7", &format!("\"channel\":{}", nested(200)), NestingTooDeep, acme, "128");
    check("\"channel\":7", &format!("\"channel\":{}", nested(127)), NestingTooDeep, acme, "128");

    // the envelope
    check("\"specversion\":\"1.0\",", "", NotACloudEvent, acme, "specversion");
    check("\"1.0\"", "null", NotACloudEvent, acme, "specversion");
    check("\"1.0\"", "\"0.3\"", UnsupportedSpecversion, acme, "`0.3`");
    check("\"1.0\"", "1.0", UnsupportedSpecversion, acme, "a number");
    check("\"1.0\"", "\"\"", UnsupportedSpecversion, acme, "empty");
    check("usage.v1", "usage.v2", UnknownType, acme, "`credits.usage.v2` is none of credits.usage.v1");
    check("usage.v1", "usage.void.v1", MissingField, acme, "time is missing");
    check("usage.v1", "grant.v1", UnknownType, acme, "grant");
    check("\"credits.usage.v1\"", "\"\"", MissingField, acme, "type");
    check("\"credits.usage.v1\"", "5", WrongType, acme, "type is a number");
    check("\"id\":\"e-1\",", "", MissingField, acme, "id");
    check("\"e-1\"", "null", MissingField, acme, "id");
    check("\"e-1\"", "\"\"", MissingField, acme, "id");
    check("\"e-1\"", "17", WrongType, acme, "id is a number");
    check("e-1", &long, InvalidField, acme, "id has 257 bytes");
    check("e-1", r"e\u00001", InvalidField, acme, "id holds a control");
    check("e-1", r"e\u007f1", InvalidField, acme, "id holds a control");
    check("e-1", "e\u{85}1", InvalidField, acme, "id holds a control");
    check("\"source\":\"/crm\",", "", MissingField, acme, "source");
    check("\"/crm\"", "{}", WrongType, acme, "source is an object");
    check("/crm", &long, InvalidField, acme, "source");
    check("\"subject\":\"acme\",", "", MissingField, None, "subject");
    check("\"acme\"", "\"\"", MissingField, None, "subject");
    check("\"acme\"", "[\"acme\"]", WrongType, None, "subject is an array");
    check("acme", &long, InvalidField, None, "subject");
    check("acme", r"ac\nme", InvalidField, None, "subject");
    check("\"time\"", "\"at\"", MissingField, acme, "time");
    check("\"2026-07-15T11:59:59.250Z\"", "1784116800000", WrongType, acme, "time is a number");
    for time in [
        "yesterday",
        "2026-07-15",
        "2026-07-15T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-07-15T24:00:00Z",
        long.as_str(),
    ] {
        check("2026-07-15T11:59:59.250Z", time, InvalidTime, acme, &time[..9]);
    }
    check("2026-07-15T11:59:59.250Z", "1969-12-31T23:59:59Z", InvalidTime, acme, "1969");
    check("2026-07-15T11:59:59.250Z", "1970-01-01T00:00:00+01:00", InvalidTime, acme, "1970");
    check("2026-07-15T11:59:59.250Z", "9999-12-31T23:59:59-01:00", InvalidTime, acme, "9999");
    check("2026-07-15T11:59:59.250Z", "12026-07-15T12:00:00Z", InvalidTime, acme, "12026");
    check("2026-07-15T11:59:59.250Z", "2026-07-15T12:05:00.001Z", TooEarly, acme, "300001 ms ahead");
    check("2026-07-15T11:59:59.250Z", "9999-12-31T23:59:59.999Z", TooEarly, acme, "ahead");

    // the data
    check("\"data\"", "\"date\"", MissingField, acme, "data");
    check(DATA, "null", MissingField, acme, "data");
    check(DATA, "\"text\"", WrongType, acme, "data is a string");
    check(DATA, "[\"reveal_email\",2,\"u-1\",\"found\"]", WrongType, acme, "data is an array");
    check("\"action\"", "\"Action\"", MissingField, acme, "action");
    check("\"reveal_email\"", "\"\"", MissingField, acme, "action");
    check("\"reveal_email\"", "true", WrongType, acme, "action is a boolean");
    check("reveal_email", &long, InvalidField, acme, "action");
    check("\"u-1\"", "5", WrongType, acme, "user is a number");
    check("u-1", &long, InvalidField, acme, "user");
    check("\"found\"", "false", WrongType, acme, "outcome is a boolean");
    check("found", r"\u0007", InvalidField, acme, "outcome");
    for (quantity, reason) in [
        ("0", QuantityZero),
        ("-0", QuantityZero),
        ("-1", QuantityNegative),
        ("-1.5", QuantityNegative),
        ("1.0", QuantityNotInteger),
        ("0.5", QuantityNotInteger),
        ("1e3", QuantityNotInteger),
        ("1E3", QuantityNotInteger),
        ("1e308", QuantityNotInteger),
        ("1e999", QuantityNotInteger),
        ("1000000000000001", QuantityTooLarge),
        ("18446744073709551617", QuantityTooLarge),
        ("\"1\"", WrongType),
        ("[1]", WrongType),
        ("true", WrongType),
    ] {
        check("\"quantity\":2", &format!("\"quantity\":{quantity}"), reason, acme, "quantity is");
    }
}

#[test]
fn of_several_faults_the_first_reason_counts() {
    use DeadReason::*;
    let check = |changes: &[(&str, &str)], reason: DeadReason| {
        let value = changes.iter().fold(USAGE_EVENT.to_owned(), |text, (from, to)| change(&text, from, to));
        dead(usage(value.as_bytes(), &[]), reason, Some("acme"), "");
    };
    let late = ("2026-07-15T11:59:59.250Z", "2027-01-01T00:00:00Z");
    check(&[("\"1.0\"", "\"0.3\""), ("usage.v1", "usage.v2")], UnsupportedSpecversion);
    check(&[("usage.v1", "usage.v2"), ("\"id\":\"e-1\",", "")], UnknownType);
    check(&[("usage.v1", "usage.v2"), (DATA, "[]")], UnknownType);
    check(&[("\"e-1\"", "5"), ("\"action\"", "\"Action\"")], MissingField);
    check(&[("\"e-1\"", "5"), ("\"quantity\":2", "\"quantity\":0"), late], WrongType);
    check(&[("\"quantity\":2", "\"quantity\":0"), ("2026-07-15", "2026-13-15")], InvalidTime);
    check(&[("\"quantity\":2", "\"quantity\":0"), late], QuantityZero);
    check(&[(DATA, "5"), late], WrongType);
}

#[test]
fn a_value_that_is_no_event_is_dead() {
    use DeadReason::*;
    let check = |value: &[u8], headers: Headers, reason: DeadReason, account: Option<&str>| {
        dead(usage(value, headers), reason, account, "");
    };
    let batch: Headers = &[("content-type", Some(b"application/cloudevents-batch+json"))];
    let structured: Headers = &[("content-type", Some(b"application/cloudevents+json"))];
    let named: Headers = &[("ce_subject", Some(b"acme"))];
    check(b"", &[], EmptyValue, None);
    check(b"", named, EmptyValue, Some("acme"));
    dead(Raw { value: None, ..usage(b"", &[]) }, EmptyValue, None, "no value");
    check(b"\xff{}", &[], InvalidUtf8, None);
    check(b"{\"subject\":\"ac\xffme\"}", named, InvalidUtf8, Some("acme"));
    check(b"hello", &[], InvalidJson, None);
    check(b" ", &[], InvalidJson, None);
    check("\u{feff}{}".as_bytes(), &[], InvalidJson, None);
    check(nested(200).as_bytes(), &[], NestingTooDeep, None);
    check("[".repeat(100_000).as_bytes(), &[], NestingTooDeep, None);
    check(format!("{{\"subject\":\"acme\",\"x\":{}}}", nested(100_000)).as_bytes(), &[], NestingTooDeep, Some("acme"));
    check(nested(128).as_bytes(), &[], NotACloudEvent, None);
    check(format!("{{\"subject\":\"{}\"}}", "[".repeat(200)).as_bytes(), &[], NotACloudEvent, Some(&"[".repeat(200)));
    check(b"{}", &[], NotACloudEvent, None);
    check(b"{}", named, NotACloudEvent, Some("acme"));
    check(b"{\"subject\":\"acme\"}", &[], NotACloudEvent, Some("acme"));
    check(b"[\"1.0\",\"credits.usage.v1\",\"e-1\",\"/crm\",\"acme\"]", &[], NotACloudEvent, None);
    check(b"[\"1.0\",\"credits.usage.v1\",\"e-1\",\"/crm\",\"acme\"]", structured, NotACloudEvent, None);
    check(b"null", &[], NotACloudEvent, None);
    check(b"1e999", &[], NotACloudEvent, None);
    check(b"[1, 2", &[], InvalidJson, None);
    check(format!("[{USAGE_EVENT}]").as_bytes(), batch, NotACloudEvent, None);
    check(USAGE_EVENT.as_bytes(), batch, NotACloudEvent, Some("acme"));
    check(b"[", batch, InvalidJson, None);
}

#[test]
fn a_bad_binary_event_is_dead() {
    use DeadReason::*;
    let check = |name: &str, header: Option<&[u8]>, data: &str, reason: DeadReason, account: Option<&str>| {
        let mut headers = BINARY.to_vec();
        headers.retain(|(other, _)| *other != name);
        headers.push((name, header));
        dead(usage(data.as_bytes(), &headers), reason, account, "");
    };
    let (acme, none) = (Some("acme"), None);
    check("ce_specversion", Some(b"0.3"), DATA, UnsupportedSpecversion, acme);
    check("ce_specversion", None, DATA, NotACloudEvent, acme); // sniffed: the data are no event
    check("ce_id", None, DATA, MissingField, acme);
    check("ce_id", Some(b""), DATA, MissingField, acme);
    check("ce_id", Some(b"\xff"), DATA, InvalidField, acme);
    check("ce_source", Some(&[b'x'; 257]), DATA, InvalidField, acme);
    check("ce_type", Some(b"credits.usage.v2"), DATA, UnknownType, acme);
    check("ce_time", Some(b"noon"), DATA, InvalidTime, acme);
    check("ce_subject", None, DATA, MissingField, none);
    check("ce_subject", Some(b"ac\xffme"), DATA, InvalidField, none);
    check("ce_subject", None, "{\"subject\":\"acme\"}", MissingField, none); // that is the data's own subject
    check("other", None, "", EmptyValue, acme);
    check("other", None, "x", InvalidJson, acme);
    check("other", None, "[]", WrongType, acme);
    check("other", None, "null", MissingField, acme);
    check("other", None, USAGE_EVENT, MissingField, acme);
    let repeated: Headers = &[("ce_specversion", Some(b"1.0")), ("ce_subject", Some(b"a")), ("ce_subject", Some(b"b"))];
    dead(usage(DATA.as_bytes(), repeated), MissingField, None, "");
}

#[test]
fn a_large_value_is_dead_in_its_accounts_shard() {
    let padding = "[".repeat(10 * 1024 * 1024);
    let value = change(USAGE_EVENT, "\"channel\":7", &format!("\"channel\":\"{padding}\""));
    dead(usage(value.as_bytes(), &[]), DeadReason::TooLarge, Some("acme"), "more than 1048576");
    let large = Settings { max_bytes: 20 * 1024 * 1024, ..SETTINGS };
    let decoded = decoder(large).decode(usage(value.as_bytes(), &[]));
    assert!(matches!(decoded.record.body, Body::Usage(_)), "{:?}", decoded.detail);
    assert_eq!(decoded.record.bytes, value.len() + "acme".len());
    let mut exact = SETTINGS;
    exact.max_bytes = USAGE_EVENT.len();
    assert_eq!(decoder(exact).decode(usage(USAGE_EVENT.as_bytes(), &[])).detail, None);
}

#[test]
fn a_key_that_is_not_the_subject_is_misrouted() {
    let check = |key: Option<&[u8]>, value: &str, misrouted: bool| {
        let of_usage = decode(Raw { key, ..usage(value.as_bytes(), &[]) });
        assert_eq!(of_usage.misrouted, misrouted, "{key:?} {value}");
        assert!(!decode(Raw { key, ..command(value.as_bytes(), &[]) }).misrouted);
    };
    check(Some(b"acme"), USAGE_EVENT, false);
    check(Some(b"Acme"), USAGE_EVENT, true);
    check(Some(b"\xff"), USAGE_EVENT, true);
    check(Some(b""), USAGE_EVENT, true);
    check(None, USAGE_EVENT, true);
    check(None, "{\"subject\":\"acme\"}", true);
    check(None, "hello", false);
}

#[test]
fn texts_are_shared_and_forgotten_at_the_bound() {
    let mut texts = SharedTexts::default();
    let first = texts.share("acme");
    assert!(Arc::ptr_eq(&first, &texts.share("acme")));
    for number in 0..SHARED_TEXTS_MAX {
        texts.share(&number.to_string());
    }
    assert!(texts.texts.len() <= SHARED_TEXTS_MAX);
    assert!(!Arc::ptr_eq(&first, &texts.share("acme")));
}

const PUT_EVENT: &str = concat!(
    r#"{"specversion":"1.0","id":"c-1","source":"/billing","type":"credits.account.put.v1","#,
    r#""subject":"acme","time":"2026-07-15T12:00:01Z","data":DATA}"#
);
const PUT_DATA: &str = concat!(
    r#"{"plan":"basic","anchor":"2026-01-31","interval":"annual","timezone":"Europe/Paris","#,
    r#""addons":[{"credit_type":"email","amount":500.5}],"thresholds":["80%","remaining 10"],"#,
    r#""overage":{"allow":{"limit":7.5}},"member_limits":null}"#
);
const GRANT_DATA: &str = r#"{"credit_type":"email","amount":0.125,"kind":"topup"}"#;

fn put_event(data: &str) -> String {
    PUT_EVENT.replace("DATA", data)
}

fn grant_event(data: &str) -> String {
    put_event(data).replace("account.put", "grant")
}

fn commanded(value: &str) -> Command {
    let decoded = decode(command(value.as_bytes(), &[]));
    match decoded.record.body {
        Body::Command(command) => *command,
        other => panic!("{value}: {other:?} {:?}", decoded.detail),
    }
}

/// Bytes that are nearly an event: what is worth trying lies close to what is accepted.
fn nearly_an_event() -> impl Strategy<Value = Vec<u8>> {
    let events = vec![
        USAGE_EVENT.to_owned(),
        put_event(PUT_DATA),
        grant_event(GRANT_DATA),
        change(DATA, "\"channel\":7", "\"subject\":\"other\""),
        DATA.into(),
    ];
    let noise = prop::sample::select(b"{}[]\",:\\u0019e.-ntfx \xff\x00\n".to_vec());
    let edits = prop::collection::vec((any::<prop::sample::Index>(), noise), 0..4);
    (prop::sample::select(events), edits).prop_map(|(event, edits)| {
        let mut bytes = event.into_bytes();
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes
    })
}

fn any_value() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::of(prop_oneof![nearly_an_event(), prop::collection::vec(any::<u8>(), 0..64)])
}

/// Headers of any bytes, or nearly those of a binary event.
fn any_headers() -> impl Strategy<Value = Vec<(&'static str, Option<Vec<u8>>)>> {
    let mut names: Vec<_> = BINARY.iter().map(|(name, _)| *name).collect();
    names.extend(["content-type", "x"]);
    let texts: [&[u8]; 3] = [b"1.0", b"acme", b"application/cloudevents+json"];
    let value =
        prop_oneof![prop::sample::select(texts.map(<[u8]>::to_vec).to_vec()), prop::collection::vec(any::<u8>(), 0..8)];
    let header = (prop::sample::select(names), prop::option::of(value));
    let binary: Vec<_> = BINARY.iter().map(|(name, value)| (*name, value.map(<[u8]>::to_vec))).collect();
    prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(header.clone(), 0..9),
        prop::collection::vec((any::<prop::sample::Index>(), header), 0..2).prop_map(move |edits| {
            let mut headers = binary.clone();
            for (place, header) in edits {
                let place = place.index(headers.len());
                headers[place] = header;
            }
            headers
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_give_a_record_whose_shard_depends_on_them_alone(
        value in any_value(),
        key in prop::option::of(prop_oneof![Just(b"acme".to_vec()), prop::collection::vec(any::<u8>(), 0..8)]),
        headers in any_headers(),
        input in prop::sample::select(Input::ALL.to_vec()),
        offset in any::<i64>(),
        append_ms in prop_oneof![Just(APPEND_MS), any::<i64>()],
    ) {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_deref())).collect();
        let partition = Partition { input, index: 5 };
        let (key, value) = (key.as_deref(), value.as_deref());
        let raw = Raw { partition, offset, append_ms, key, value, headers: &headers };
        let decoded = decode(raw);
        let record = &decoded.record;
        prop_assert_eq!((record.partition, record.offset, record.append_ms), (partition, offset, append_ms));
        prop_assert_eq!(matches!(record.body, Body::Dead { .. }), decoded.detail.is_some());
        let strict = decoder(Settings { max_bytes: 0, early_limit_ms: i64::MIN }).decode(raw);
        let is_dead = |record: &Record| matches!(record.body, Body::Dead { .. });
        prop_assert!(is_dead(&strict.record));
        prop_assert_eq!(record.account(), strict.record.account());
    }
}
