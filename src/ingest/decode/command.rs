//! Accounts, grants and adjustments: what billing asks.
//!
//! An event whose envelope is bad is a dead letter. One whose data are bad is a command that is refused, so that its
//! sender gets an answer that names the field and the remedy.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{Datelike, NaiveDate};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, Object};
use super::{Fault, Faults, Raw, Settings, SharedTexts, TICK, clip, envelope};
use crate::ledger::account::{AccountConfig, Addon};
use crate::ledger::call::{Refusal, RefusalReason};
use crate::ledger::catalogue::{Overage, Threshold};
use crate::ledger::command::{
    ACCOUNT_CLOSE, ACCOUNT_PUT, ADJUST, Command, CommandBody, GRANT, GRANT_VOID, GrantBody, refuse,
};
use crate::ledger::credits::Credits;
use crate::ledger::cycle::Interval;
use crate::ledger::event::Identity;
use crate::ledger::grants::{GrantKind, PRIORITY_DEFAULT};
use crate::ledger::members::{MEMBER_LIMITS_MAX, MemberLimit};
use crate::ledger::outcome::DeadReason;
use crate::pipeline::record::Body;

/// No reason: round number.
pub const PRIORITY_MAX: u32 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutData<'a> {
    #[serde(borrow)]
    plan: Option<&'a RawValue>,
    #[serde(borrow)]
    anchor: Option<&'a RawValue>,
    #[serde(borrow)]
    interval: Option<&'a RawValue>,
    #[serde(borrow)]
    timezone: Option<&'a RawValue>,
    #[serde(borrow)]
    addons: Option<&'a RawValue>,
    #[serde(borrow)]
    thresholds: Option<&'a RawValue>,
    #[serde(borrow)]
    overage: Option<&'a RawValue>,
    #[serde(borrow)]
    member_limits: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddonData<'a> {
    #[serde(borrow)]
    credit_type: Option<&'a RawValue>,
    #[serde(borrow)]
    amount: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberLimitData<'a> {
    #[serde(borrow)]
    credit_type: Option<&'a RawValue>,
    #[serde(borrow)]
    amount: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowData<'a> {
    #[serde(borrow)]
    allow: Object<LimitData<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitData<'a> {
    #[serde(borrow)]
    limit: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantData<'a> {
    #[serde(borrow)]
    credit_type: Option<&'a RawValue>,
    #[serde(borrow)]
    amount: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    priority: Option<&'a RawValue>,
    #[serde(borrow)]
    effective_at: Option<&'a RawValue>,
    #[serde(borrow)]
    expires_at: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantVoidData<'a> {
    #[serde(borrow)]
    grant: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdjustData<'a> {
    #[serde(borrow)]
    credit_type: Option<&'a RawValue>,
    #[serde(borrow)]
    amount: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseData {}

pub fn read(raw: Raw<'_>, settings: Settings, texts: &mut SharedTexts) -> Result<Body, Fault> {
    let event = envelope::read::<&RawValue>(raw, settings.max_bytes)?;
    let mut faults = Faults::default();
    let envelope = event.attributes.check(&[ACCOUNT_PUT, ACCOUNT_CLOSE, GRANT, GRANT_VOID, ADJUST, TICK], &mut faults);
    if envelope.event_type == TICK {
        faults.none()?;
        return Ok(Body::Tick);
    }
    faults.take(envelope.check_early(raw.append_ms, settings.early_limit_ms));
    let data = match event.data {
        Err(fault) if fault.reason == DeadReason::MissingField => None,
        data => faults.take(data.map(Some)),
    };
    faults.none()?;
    let body = match data.map(RawValue::get) {
        None if envelope.event_type == ACCOUNT_CLOSE => Ok(CommandBody::Close),
        None => Err(invalid("data is missing".to_owned())),
        Some(data) => match envelope.event_type {
            GRANT => grant(data),
            GRANT_VOID => grant_void(data),
            ADJUST => adjust(data),
            ACCOUNT_CLOSE => object("data", data).map(|CloseData {}| CommandBody::Close),
            _ => put(data),
        },
    };
    Ok(Body::Command(Box::new(Command {
        account: texts.share(&envelope.subject),
        identity: Identity::of(&envelope.source, &envelope.id),
        id: envelope.id.into_owned(),
        // Dated like usage: a clock that runs ahead opens no later cycle.
        time_ms: envelope.time_ms.min(raw.append_ms),
        command_type: envelope.event_type,
        body,
    })))
}

fn put(data: &str) -> Result<CommandBody, Refusal> {
    let data: PutData = object("data", data)?;
    Ok(CommandBody::Put(Box::new(AccountConfig {
        plan: text("plan", data.plan, "name a plan of the catalogue")?.into_owned(),
        anchor: anchor(data.anchor)?,
        interval: optional(data.interval, interval)?,
        timezone: optional(data.timezone, timezone)?.unwrap_or(chrono_tz::UTC),
        addons: optional(data.addons, addons)?.unwrap_or_default(),
        thresholds: optional(data.thresholds, thresholds)?,
        overage: optional(data.overage, overage)?,
        member_limits: optional(data.member_limits, member_limits)?.unwrap_or_default(),
    })))
}

fn grant(data: &str) -> Result<CommandBody, Refusal> {
    let data: GrantData = object("data", data)?;
    Ok(CommandBody::Grant(Box::new(GrantBody {
        credit_type: credit_type(data.credit_type)?,
        amount: positive("amount", data.amount)?,
        kind: kind(data.kind)?,
        priority: optional(data.priority, priority)?.unwrap_or(PRIORITY_DEFAULT),
        effective_ms: optional(data.effective_at, |raw| time("effective_at", raw))?,
        expires_ms: optional(data.expires_at, |raw| time("expires_at", raw))?,
    })))
}

fn grant_void(data: &str) -> Result<CommandBody, Refusal> {
    let data: GrantVoidData = object("data", data)?;
    let grant = text("grant", data.grant, "write the id of the grant's command")?.into_owned();
    Ok(CommandBody::GrantVoid { grant })
}

fn adjust(data: &str) -> Result<CommandBody, Refusal> {
    let data: AdjustData = object("data", data)?;
    let credit_type = credit_type(data.credit_type)?;
    let signed = amount("amount", data.amount)?;
    if signed == Credits::ZERO {
        return Err(invalid("amount is 0: write more to give credits, less to take some".to_owned()));
    }
    let adds = signed > Credits::ZERO;
    let amount = if adds { signed } else { Credits::ZERO - signed };
    let reason = text("reason", data.reason, "say why, for those who read the ledger")?.into_owned();
    Ok(CommandBody::Adjust { credit_type, amount, adds, reason })
}

fn credit_type(raw: Option<&RawValue>) -> Result<String, Refusal> {
    Ok(text("credit_type", raw, "name a credit type of the catalogue")?.into_owned())
}

fn priority(raw: &RawValue) -> Result<u32, Refusal> {
    let read = raw.get().parse().ok().filter(|priority| *priority <= PRIORITY_MAX);
    read.ok_or_else(|| {
        let written = clip(raw.get());
        invalid(format!("priority `{written}` is none: write 0 (burns first) to {PRIORITY_MAX}"))
    })
}

fn time(name: &str, raw: &RawValue) -> Result<i64, Refusal> {
    let remedy = "write an RFC 3339 time, like 2026-01-31T00:00:00Z";
    let written = text(name, Some(raw), remedy)?;
    let time = chrono::DateTime::parse_from_rfc3339(&written).ok().filter(|time| (1970..=9999).contains(&time.year()));
    time.map(|time| time.timestamp_millis())
        .ok_or_else(|| invalid(format!("{name} `{}` is no time: {remedy}", clip(&written))))
}

fn anchor(raw: Option<&RawValue>) -> Result<NaiveDate, Refusal> {
    let remedy = "write a date from 1970 on, on which a cycle starts, like 2026-01-31";
    let written = text("anchor", raw, remedy)?;
    // Compared with what it would be written as: chrono reads more than that one form.
    let plain = |date: &NaiveDate| (1970..=9999).contains(&date.year()) && date.to_string() == written;
    let date = written.parse().ok().filter(plain);
    date.ok_or_else(|| invalid(format!("anchor `{}` is none: {remedy}", clip(&written))))
}

fn interval(raw: &RawValue) -> Result<Interval, Refusal> {
    let names = Interval::ALL.map(Interval::name).join(", ");
    let remedy = format!("write one of {names}");
    let name = text("interval", Some(raw), &remedy)?;
    Interval::from_name(&name).ok_or_else(|| invalid(format!("interval `{}` is unknown: {remedy}", clip(&name))))
}

fn timezone(raw: &RawValue) -> Result<chrono_tz::Tz, Refusal> {
    let remedy = "write a name of the IANA database, like Europe/Paris";
    let name = text("timezone", Some(raw), remedy)?;
    name.parse().map_err(|_| invalid(format!("timezone `{}` is unknown: {remedy}", clip(&name))))
}

fn addons(raw: &RawValue) -> Result<Vec<Addon>, Refusal> {
    let written: Vec<Object<AddonData>> = serde_json::from_str(raw.get()).map_err(|error| {
        invalid(format!("addons: {}: write [{{\"credit_type\": \"email\", \"amount\": 100}}]", without_place(&error)))
    })?;
    let mut addons: Vec<Addon> = Vec::new();
    for (index, Object(addon)) in written.into_iter().enumerate() {
        let place = |field: &str| format!("addons[{index}].{field}");
        let credit_type = text(&place("credit_type"), addon.credit_type, "name a credit type of the catalogue")?;
        if addons.iter().any(|other| *other.credit_type == *credit_type) {
            let message = format!("addons: credit type `{}` comes twice: add the amounts up", clip(&credit_type));
            return Err(invalid(message));
        }
        let amount = positive(&place("amount"), addon.amount)?;
        addons.push(Addon { credit_type: credit_type.into_owned(), amount });
    }
    addons.sort_by(|a, b| a.credit_type.cmp(&b.credit_type));
    Ok(addons)
}

fn thresholds(raw: &RawValue) -> Result<Vec<Threshold>, Refusal> {
    let remedy = "write [\"80%\"] for percent used, [\"remaining 100\"] for credits";
    let written: Vec<String> = serde_json::from_str(raw.get())
        .map_err(|error| invalid(format!("thresholds: {}: {remedy}", without_place(&error))))?;
    let parse = |text: &String| {
        Threshold::parse(text).ok_or_else(|| invalid(format!("thresholds: `{}` is none: {remedy}", clip(text))))
    };
    written.iter().map(parse).collect()
}

fn overage(raw: &RawValue) -> Result<Overage, Refusal> {
    let refused = || {
        let message = "overage is none of \"reject\", \"cap\", \"allow\" and {\"allow\": {\"limit\": CREDITS}}";
        invalid(message.to_owned())
    };
    if let Some(name) = json::text_of(raw) {
        return Overage::parse(&name).ok_or_else(refused);
    }
    let Object(AllowData { allow: Object(LimitData { limit }) }) =
        serde_json::from_str(raw.get()).map_err(|_| refused())?;
    let limit = amount("overage.allow.limit", Some(limit))?;
    Ok(Overage::Allow { limit: Some(not_negative("overage.allow.limit", limit)?) })
}

fn member_limits(raw: &RawValue) -> Result<Arc<[MemberLimit]>, Refusal> {
    let written: Vec<Object<MemberLimitData>> = serde_json::from_str(raw.get()).map_err(|error| {
        let remedy = r#"write [{"credit_type": "email", "amount": 50, "user": "ada"}]"#;
        invalid(format!("member_limits: {}: {remedy}", without_place(&error)))
    })?;
    if written.len() > MEMBER_LIMITS_MAX {
        let message =
            format!("member_limits has {} entries: an account has at most {MEMBER_LIMITS_MAX}", written.len());
        return Err(invalid(message));
    }
    let mut limits = Vec::with_capacity(written.len());
    for (index, Object(limit)) in written.into_iter().enumerate() {
        let place = |field: &str| format!("member_limits[{index}].{field}");
        let user = |raw| text(&place("user"), Some(raw), "name a member, or leave it out for the limit of each");
        limits.push(MemberLimit {
            credit_type: text(&place("credit_type"), limit.credit_type, "name a credit type of the catalogue")?
                .into_owned(),
            user: optional(limit.user, user)?.map(Arc::from),
            amount: not_negative(&place("amount"), amount(&place("amount"), limit.amount)?)?,
        });
    }
    limits.sort_by(MemberLimit::order);
    if let Some(twice) = limits.windows(2).find(|pair| pair[0].order(&pair[1]).is_eq()) {
        let of = twice[0].user.as_ref().map_or(String::new(), |user| format!(" of `{}`", clip(user)));
        let message = format!("member_limits: `{}`{of} comes twice: keep one", clip(&twice[0].credit_type));
        return Err(invalid(message));
    }
    Ok(limits.into())
}

fn kind(raw: Option<&RawValue>) -> Result<GrantKind, Refusal> {
    let remedy = "write topup for credits that were bought, promo for credits that were given";
    let name = text("kind", raw, remedy)?;
    match GrantKind::from_name(&name) {
        Some(kind @ (GrantKind::Topup | GrantKind::Promo)) => Ok(kind),
        // Those two come with the account's plan and add-ons, never by themselves.
        _ => Err(invalid(format!("kind `{}` cannot be granted: {remedy}", clip(&name)))),
    }
}

fn not_negative(name: &str, credits: Credits) -> Result<Credits, Refusal> {
    if credits < Credits::ZERO {
        return Err(invalid(format!("{name} is negative: write 0 or more")));
    }
    Ok(credits)
}

fn positive(name: &str, raw: Option<&RawValue>) -> Result<Credits, Refusal> {
    let credits = amount(name, raw)?;
    if credits <= Credits::ZERO {
        return Err(invalid(format!("{name} is {credits}: write more than 0")));
    }
    Ok(credits)
}

fn amount(name: &str, raw: Option<&RawValue>) -> Result<Credits, Refusal> {
    let remedy = "write credits as a number with at most three decimals";
    let raw = raw.ok_or_else(|| invalid(format!("{name} is missing: {remedy}")))?;
    Credits::parse(raw.get()).map_err(|error| invalid(format!("{name}: {error}: {remedy}")))
}

/// A text within the limits of all texts that are kept.
fn text<'a>(name: &str, raw: Option<&'a RawValue>, remedy: &str) -> Result<Cow<'a, str>, Refusal> {
    envelope::field(name, raw).map_err(|fault| invalid(format!("{}: {remedy}", fault.detail)))
}

fn optional<'a, T>(
    raw: Option<&'a RawValue>,
    read: impl FnOnce(&'a RawValue) -> Result<T, Refusal>,
) -> Result<Option<T>, Refusal> {
    raw.map(read).transpose()
}

fn object<'a, T: Deserialize<'a>>(name: &str, text: &'a str) -> Result<T, Refusal> {
    let object: Result<Object<T>, _> = serde_json::from_str(text);
    object.map(|Object(value)| value).map_err(|error| invalid(format!("{name}: {}", without_place(&error))))
}

/// The place would be that in the data, not in the record.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
    // It quotes the data, which may be long.
    message.chars().take(300).collect()
}

fn invalid(message: String) -> Refusal {
    refuse(RefusalReason::InvalidCommand, message)
}
