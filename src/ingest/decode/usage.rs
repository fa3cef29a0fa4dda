//! `credits.usage.v1`: what a service did for an account.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, Object};
use super::{Fault, Faults, Raw, Settings, SharedTexts, TICK, clip, envelope};
use crate::ledger::event::{Identity, UsageEvent};
use crate::ledger::outcome::DeadReason;
use crate::pipeline::record::Body;

pub const USAGE: &str = "credits.usage.v1";

/// 10^15: times the smallest price it is beyond what an event may cost, and it still fits every number downstream.
const QUANTITY_MAX: u64 = 1_000_000_000_000_000;

/// The data of an event. Fields that are not read may be anything.
#[derive(Default, Deserialize)]
struct UsageData<'a> {
    #[serde(borrow)]
    action: Option<&'a RawValue>,
    #[serde(borrow)]
    quantity: Option<&'a RawValue>,
    /// Checked although nothing is counted by user yet: what is accepted now must not be refused then.
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    outcome: Option<&'a RawValue>,
}

#[derive(Default)]
struct Usage<'a> {
    action: Cow<'a, str>,
    quantity: u64,
    outcome: Option<Cow<'a, str>>,
}

pub fn read(raw: Raw<'_>, settings: Settings, texts: &mut SharedTexts) -> Result<Body, Fault> {
    let event = envelope::read::<Object<UsageData>>(raw, settings.max_bytes)?;
    let mut faults = Faults::default();
    let envelope = event.attributes.check(&[USAGE, TICK], &mut faults);
    if envelope.event_type == TICK {
        faults.none()?;
        return Ok(Body::Tick);
    }
    let usage = faults.take(event.data.and_then(|Object(data)| data.check()));
    faults.take(envelope.check_early(raw.append_ms, settings.early_limit_ms));
    faults.none()?;
    Ok(Body::Usage(Arc::new(UsageEvent {
        account: texts.share(&envelope.subject),
        source: texts.share(&envelope.source),
        identity: Identity::of(&envelope.source, &envelope.id),
        id: envelope.id.into(),
        time_ms: envelope.time_ms,
        dated_ms: envelope.time_ms.min(raw.append_ms),
        action: texts.share(&usage.action),
        quantity: usage.quantity,
        outcome: usage.outcome.map(|outcome| texts.share(&outcome)),
    })))
}

impl<'a> UsageData<'a> {
    fn check(self) -> Result<Usage<'a>, Fault> {
        let mut faults = Faults::default();
        faults.take(optional("user", self.user));
        let usage = Usage {
            action: faults.take(envelope::field("action", self.action)),
            quantity: faults.take(quantity(self.quantity)),
            outcome: faults.take(optional("outcome", self.outcome)),
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
