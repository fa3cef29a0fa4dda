//! Messages of the meter, held against their schemas: no field is missing, and none is there that no schema names.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex, PoisonError};

use jsonschema::Validator;

static VALIDATORS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let validator =
        |schema: &credit_meter::schema::Schema| jsonschema::validator_for(&schema.document).expect("a schema");
    credit_meter::schema::all().into_iter().map(|schema| (schema.event_type.clone(), validator(&schema))).collect()
});

/// Hashes of those that do: an outbox is looked at after every call.
static GOOD: Mutex<Option<HashSet<u64>>> = Mutex::new(None);

/// Fails where a message is not as its schema has it.
pub fn keeps_its_schema(message: &[u8]) {
    let mut hasher = DefaultHasher::new();
    message.hash(&mut hasher);
    let hash = hasher.finish();
    let known = |good: &Option<HashSet<u64>>| good.as_ref().is_some_and(|good| good.contains(&hash));
    if known(&GOOD.lock().unwrap_or_else(PoisonError::into_inner)) {
        return;
    }
    let event: serde_json::Value = serde_json::from_slice(message).expect("a message is JSON");
    let validator = event["type"].as_str().and_then(|event_type| VALIDATORS.get(event_type));
    let validator = validator.unwrap_or_else(|| panic!("no schema has its type: {event}"));
    let faults: Vec<String> =
        validator.iter_errors(&event).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{faults:?}: {event}");
    GOOD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(hash);
}
