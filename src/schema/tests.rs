use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use jsonschema::Validator;

use super::*;
use crate::ingest::decode::{Decoded, Decoder, Raw, Settings};
use crate::ledger::call::Partition;
use crate::pipeline::record::Body;

static VALIDATORS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let validator = |schema: Schema| {
        let made = jsonschema::validator_for(&schema.document).unwrap_or_else(|error| panic!("{schema:?}: {error}"));
        (schema.event_type, made)
    };
    all().into_iter().map(validator).collect()
});

/// Whether the schema of its type takes an event; one of no known type has none that does.
fn takes(event: &Value) -> bool {
    let validator = event["type"].as_str().and_then(|event_type| VALIDATORS.get(event_type));
    validator.is_some_and(|validator| validator.is_valid(event))
}

fn is_good(decoded: &Decoded) -> bool {
    match &decoded.record.body {
        Body::Usage(_) | Body::Tick => true,
        Body::Command(command) => command.body.is_ok(),
        Body::Dead { .. } => false,
    }
}

/// Of every event of the decoder's own tests: what it takes, its schema takes.
pub fn takes_what_is_good(raw: Raw<'_>, decoded: &Decoded) {
    let Some(text) = raw.value.filter(|_| is_good(decoded)) else { return };
    // A number beyond a float, in a field that nobody reads.
    let Ok(event) = serde_json::from_slice::<Value>(text) else { return };
    // In the binary mode the value is the data alone.
    if event.get("specversion").is_some() {
        assert!(takes(&event), "a good event is refused by its schema: {event}");
    }
}

#[test]
fn every_schema_is_one_and_all_together_are_one() {
    for schema in all() {
        jsonschema::draft202012::meta::validate(&schema.document).unwrap_or_else(|error| panic!("{schema:?}: {error}"));
        assert!(VALIDATORS.contains_key(&schema.event_type) && schema.description.ends_with('.'), "{schema:?}");
    }
    let together = bundle();
    jsonschema::draft202012::meta::validate(&together).expect("a schema");
    let validator = jsonschema::validator_for(&together).expect("a schema");
    assert!(validator.is_valid(&good("credits.grant.v1")) && validator.is_valid(&good("credits.usage.v1")));
    assert!(!validator.is_valid(&json!({ "type": "credits.grant.v1" })) && !validator.is_valid(&json!({})));
}

#[test]
fn every_type_that_the_program_names_has_a_schema() {
    let mut named = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let is_test = path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("tests"));
            if path.is_dir() {
                folders.push(path);
            } else if !is_test && path.extension().is_some_and(|kind| kind == "rs" || kind == "lua") {
                let text = std::fs::read_to_string(&path).expect("text");
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                let words = code.split(|char: char| !char.is_ascii_lowercase() && !matches!(char, '.' | '-' | '1'));
                named.extend(
                    words.filter(|word| word.starts_with("credits.") && word.ends_with(".v1")).map(str::to_owned),
                );
            }
        }
    }
    assert!(named.len() > 15, "{named:?}");
    let known: BTreeSet<String> = VALIDATORS.keys().cloned().collect();
    // Alerts are named by their kind.
    let alerts = ["credits.low.v1", "credits.exhausted.v1", "credits.restored.v1"].map(str::to_owned);
    assert_eq!(known, &named | &BTreeSet::from(alerts));
}

#[test]
fn the_examples_of_the_readme_are_taken() {
    let readme = include_str!("../../README.md");
    let examples: Vec<&str> = readme.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        let event: Value = serde_json::from_str(example).expect("JSON");
        assert!(takes(&event), "{event}");
    }
}

/// An event of a type that is sent, with every field that it may have.
fn good(event_type: &str) -> Value {
    let data = match event_type {
        "credits.usage.v1" => json!({
            "action": "reveal_email", "quantity": 2, "user": "u-1", "outcome": "found", "channel": "web", "contact": "c",
            "company": "d", "source": "premium", "reservation": "r", "more": {"a": [1]},
        }),
        "credits.usage.void.v1" => json!({
            "source": "reveal-service", "id": "e-1", "time": "2026-07-15T11:00:00Z", "action": "reveal_email", "quantity": 2,
        }),
        "credits.account.put.v1" => json!({
            "plan": "basic", "anchor": "2026-01-31", "interval": "annual", "timezone": "Europe/Paris",
            "addons": [{"credit_type": "email", "amount": 500.5}], "thresholds": ["80%", "remaining 10"],
            "overage": {"allow": {"limit": 7.5}}, "member_limits": [{"credit_type": "email", "amount": 0, "user": "ada"}],
        }),
        "credits.account.close.v1" => json!({}),
        "credits.grant.v1" => json!({
            "credit_type": "email", "amount": 0.125, "kind": "topup", "priority": 0, "effective_at": "2026-07-15T11:00:00Z",
            "expires_at": "2026-08-15T11:00:00+02:00",
        }),
        "credits.grant.void.v1" => json!({ "grant": "c-1" }),
        "credits.adjust.v1" => json!({ "credit_type": "email", "amount": -2.5, "reason": "late \"import\"" }),
        "credits.tick.v1" => Value::Null,
        other => panic!("{other} is sent by nobody"),
    };
    json!({
        "specversion": "1.0", "id": "e-1", "source": "/crm", "type": event_type, "subject": "acme",
        "time": "2026-07-15T11:59:59.250Z", "datacontenttype": "application/json", "data": data, "traceparent": "00-1",
    })
}

/// Values that a field may have, good and bad, as JSON texts.
const VALUES: [&str; 55] = [
    "null",
    "\"\"",
    "\"x\"",
    "\"é\"",
    "\"\u{7f}\"",
    "\"\u{85}\"",
    "\"a\\nb\"",
    "true",
    "[]",
    "{}",
    "[null]",
    "[7]",
    "[\"80%\"]",
    "[\"101%\"]",
    "[\" +080 %\"]",
    "[\"remaining 1.5\"]",
    "[\"remaining  7 \"]",
    "[\"remaining \\t7\"]",
    "[\"remaining -0.0\"]",
    "[\"remaining -0.01\"]",
    "[\"remaining -1\"]",
    "[\"80 percent\"]",
    "0",
    "-0",
    "1",
    "-1",
    "1.0",
    "1.5",
    "0.0001",
    "1000",
    "1001",
    "1000000000000",
    "1000000000001",
    "1000000000000001",
    "1e2",
    "\"1.0\"",
    "\"credits.usage.v1\"",
    "\"credits.other.v1\"",
    "\"2026-03-10T12:00:00Z\"",
    "\"2026-03-10t12:00:00.5+01:00\"",
    "\"2026-03-10 12:00:00z\"",
    "\"1969-03-10T12:00:00Z\"",
    "\"2026-02-30T12:00:00Z\"",
    "\"tomorrow\"",
    "\"2026-02-28\"",
    "\"2026-02-30\"",
    "\"2026-2-28\"",
    "\"1969-12-31\"",
    "\"topup\"",
    "\"plan\"",
    "\"monthly\"",
    "\"cap\"",
    "{\"allow\":{}}",
    "{\"allow\":{\"limit\":-1}}",
    "{\"allow\":{\"limit\":0},\"deny\":1}",
];

/// Of each type, one field of a good event at a time has each of the values, is absent, or is one too many: what the
/// decoder takes, its schema takes, and but for what a schema cannot say it refuses what the decoder refuses.
#[test]
fn decoder_and_schema_agree_on_what_is_sent() {
    let mut allowed_alone: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut taken, mut refused) = (0, 0);
    for schema in all().into_iter().filter(|schema| schema.flow == Flow::Sent) {
        let good = good(&schema.event_type);
        assert!(decodes(&schema.event_type, &good.to_string()) && takes(&good), "{good}");
        for path in paths(&good) {
            let values = VALUES.into_iter().map(Some).chain([None]);
            for value in values {
                let text = with(&good, &path, value);
                let event: Value = serde_json::from_str(&text).expect("JSON");
                let (decoder, own) = (decodes(&schema.event_type, &text), takes(&event));
                *(if decoder { &mut taken } else { &mut refused }) += 1;
                assert!(own || !decoder, "the decoder takes what the schema refuses: {text}");
                if own && !decoder {
                    let place = format!("{} {path}", schema.event_type);
                    allowed_alone.entry(place).or_default().insert(value.unwrap_or("absent").to_owned());
                }
            }
        }
    }
    assert!(taken > 500 && refused > 1500, "{taken} were taken, {refused} refused: too few to compare");
    for (place, values) in allowed_alone {
        let field = place.rsplit('/').next().unwrap_or_default();
        let (_, expected) = ONLY_THE_DECODER_REFUSES.iter().find(|(fields, _)| fields.contains(&field)).expect(&place);
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        assert!(field == "timezone" || values == *expected, "{place}: {values:?}");
    }
}

/// What a schema cannot say: how a number is written, which days there are, which zones.
const ONLY_THE_DECODER_REFUSES: [(&[&str], &[&str]); 6] = [
    (&["time", "effective_at", "expires_at"], &["\"1969-03-10T12:00:00Z\"", "\"2026-02-30T12:00:00Z\""]),
    (&["anchor"], &["\"1969-12-31\"", "\"2026-02-30\""]),
    (&["amount", "limit"], &["0.0001", "1e2"]),
    (&["quantity"], &["1.0", "1e2"]),
    (&["priority"], &["-0", "1.0", "1e2"]),
    (&["timezone"], &[]),
];

/// The places of an event: its fields, those of its data, and those of what lies in these.
fn paths(event: &Value) -> Vec<String> {
    fn below(value: &Value, above: &str, paths: &mut Vec<String>) {
        let entries: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
            Value::Array(values) => {
                values.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
            }
            _ => Vec::new(),
        };
        for (name, value) in entries {
            let path = format!("{above}/{name}");
            below(value, &path, paths);
            paths.push(path);
        }
        if value.is_object() {
            paths.push(format!("{above}/one_too_many"));
        }
    }
    let mut paths = Vec::new();
    below(event, "", &mut paths);
    paths
}

/// The event's text with another value at a place. Amounts keep their digits.
fn with(event: &Value, path: &str, value: Option<&str>) -> String {
    const MARK: &str = "HERE";
    let mut event = event.clone();
    let (above, name) = path.rsplit_once('/').expect("a path");
    match (event.pointer_mut(above).expect("a place"), value) {
        (Value::Object(fields), Some(_)) => drop(fields.insert(name.to_owned(), MARK.into())),
        (Value::Object(fields), None) => drop(fields.remove(name)),
        (Value::Array(values), Some(_)) => values[name.parse::<usize>().expect("an index")] = MARK.into(),
        (Value::Array(values), None) => drop(values.remove(name.parse().expect("an index"))),
        _ => unreachable!("only these have places"),
    }
    event.to_string().replace(&format!("\"{MARK}\""), value.unwrap_or_default())
}

/// Whether the decoder takes it, from the topic that such events are sent to.
fn decodes(event_type: &str, text: &str) -> bool {
    let usage = ["credits.usage.v1", "credits.usage.void.v1", "credits.tick.v1"].contains(&event_type);
    let partition = if usage { Partition::usage(0) } else { Partition::COMMANDS };
    let raw = Raw {
        partition,
        offset: 7,
        append_ms: 4_000_000_000_000,
        key: None,
        value: Some(text.as_bytes()),
        headers: &[],
    };
    is_good(&Decoder::new(Settings { max_bytes: 10_000, early_limit_ms: 0 }, Arc::default()).decode(raw))
}
