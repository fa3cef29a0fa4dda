//! JSON Schema (2020-12) of every message: what producers and billing send, and what the meter publishes.
//!
//! Written by hand, since what is read is read by hand. The decoder is what counts: a schema of what is sent allows all that
//! it takes, and refuses what it refuses where a schema can say so. One of what is published has every field and no other.

use serde_json::{Map, Value, json};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
const SENT: &str = include_str!("sent.json");
const PUBLISHED: &str = include_str!("published.json");
const COMMON: &str = include_str!("common.json");

/// The schema of one type of message.
#[derive(Clone, Debug)]
pub struct Schema {
    pub event_type: String,
    pub flow: Flow,
    /// What it tells, in a sentence or two.
    pub description: String,
    pub document: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Producers or billing send it.
    Sent,
    /// The meter publishes it.
    Published,
}

impl Flow {
    pub const fn name(self) -> &'static str {
        match self {
            Flow::Sent => "sent",
            Flow::Published => "published",
        }
    }
}

/// All of them, what is sent first.
pub fn all() -> Vec<Schema> {
    let common = object(COMMON);
    let of = |flow: Flow, text: &str| {
        let common = &common;
        object(text)
            .into_iter()
            .map(move |(event_type, parts)| schema(event_type, flow, parts, common))
            .collect::<Vec<_>>()
    };
    [of(Flow::Sent, SENT), of(Flow::Published, PUBLISHED)].concat()
}

/// One document that takes each message of a known type.
pub fn bundle() -> Value {
    let schemas = all();
    let each: Vec<Value> = schemas.iter().map(|schema| json!({ "$ref": schema.document["$id"] })).collect();
    let documents: Map<String, Value> =
        schemas.into_iter().map(|schema| (schema.event_type, schema.document)).collect();
    json!({
        "$schema": DRAFT,
        "$id": "urn:credit-meter:messages",
        "title": "Messages of credit-meter",
        "oneOf": each,
        "$defs": documents,
    })
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).expect("a test reads every file")
}

fn schema(event_type: String, flow: Flow, mut parts: Value, common: &Map<String, Value>) -> Schema {
    let description = parts["description"].as_str().expect("a test reads every type").to_owned();
    let (data, required) = match parts["data"].take() {
        Value::Null => (parts["optional_data"].take(), None),
        data => (data, Some("data")),
    };
    let text = json!({ "$ref": "#/$defs/text" });
    let mut properties = json!({
        "specversion": { "const": "1.0" },
        "id": { "$ref": "#/$defs/text", "description": "Names the event, together with its source." },
        "source": text,
        "type": { "const": event_type },
        "subject": { "$ref": "#/$defs/text", "description": "The account." },
        "data": data,
    });
    let mut names = vec!["specversion", "id", "source", "type", "subject"];
    match flow {
        Flow::Sent => {
            properties["time"] = json!({ "$ref": "#/$defs/time" });
            names.push("time");
        }
        Flow::Published => {
            // Made of names of accounts, topics and commands, so that it may be longer than a name that is sent.
            properties["id"] = json!({ "type": "string", "minLength": 1 });
            properties["datacontenttype"] = json!({ "const": "application/json" });
            names.push("datacontenttype");
        }
    }
    names.extend(required);
    let mut document = json!({
        "$schema": DRAFT,
        "$id": format!("urn:credit-meter:{event_type}"),
        "title": event_type,
        "description": description,
        "type": "object",
        "required": names,
        "properties": properties,
    });
    if flow == Flow::Published {
        document["additionalProperties"] = json!(false);
    }
    let mut needed = Map::new();
    needs(&document, common, &mut needed);
    document["$defs"] = Value::Object(needed);
    Schema { event_type, flow, description, document }
}

/// Collects the definitions that a schema refers to, and those that these refer to.
fn needs(schema: &Value, common: &Map<String, Value>, needed: &mut Map<String, Value>) {
    match schema {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix("#/$defs/"));
            if let Some(name) = name.filter(|name| !needed.contains_key(*name)) {
                needed.insert(name.to_owned(), common[name].clone());
                needs(&common[name], common, needed);
            }
            fields.values().for_each(|value| needs(value, common, needed));
        }
        Value::Array(values) => values.iter().for_each(|value| needs(value, common, needed)),
        _ => {}
    }
}

#[cfg(test)]
pub mod tests;
