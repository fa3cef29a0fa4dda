//! JSON below serde: objects that are no arrays, texts, depth and what is wrong with a value.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Fault;
use crate::ledger::outcome::DeadReason;

/// Levels of objects and arrays. The parser itself skips deeper values without harm, but not all readers of the
/// same topic do, and a limit that is known is better than one that differs.
const DEPTH_MAX: usize = 128;

/// A JSON object. A derived struct alone would take an array too, field by field.
#[derive(Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// The text of a JSON string; `None` if it is no string, or if its escapes are no text (half a surrogate pair).
pub fn text_of(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(raw.get()).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// Why a value that serde refused is not an object with each field once.
pub enum NoObject {
    /// Not JSON, or a field comes twice.
    Invalid(Fault),
    /// Valid JSON of another kind.
    OtherKind(&'static str),
}

pub fn why_no_object(text: &str, refused: &serde_json::Error) -> NoObject {
    match check(text) {
        Err(fault) => NoObject::Invalid(fault),
        Ok(()) if kind(text) != "an object" => NoObject::OtherKind(kind(text)),
        Ok(()) => NoObject::Invalid(Fault::new(DeadReason::InvalidJson, refused.to_string())),
    }
}

/// Whether a text is JSON at all.
pub fn check(text: &str) -> Result<(), Fault> {
    let json: Result<IgnoredAny, _> = serde_json::from_str(text);
    json.map(|_| ()).map_err(|error| Fault::new(DeadReason::InvalidJson, error.to_string()))
}

/// What a JSON value is, by its first character.
pub fn kind(json: &str) -> &'static str {
    match json.trim_start().bytes().next() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// Whether objects and arrays lie deeper than [`DEPTH_MAX`].
pub fn too_deep(text: &str) -> bool {
    // Nearly no text has as many brackets at all, and they are quickly counted.
    opened(text) > DEPTH_MAX && depth(text) > DEPTH_MAX
}

/// How often `[` or `{` stands in a text, in strings or not.
fn opened(text: &str) -> usize {
    // Many bytes are looked at at once: the two differ in one bit only, 255 bytes fit a counter of one byte, and an
    // addition that is not checked has no branch.
    let count = |count: u8, byte: &u8| count.wrapping_add(u8::from(byte | 0x20 == b'{'));
    text.as_bytes().chunks(255).map(|bytes| usize::from(bytes.iter().fold(0, count))).sum()
}

fn depth(text: &str) -> usize {
    let (mut depth, mut deepest): (usize, usize) = (0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
