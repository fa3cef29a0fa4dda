//! What a file may say: from what is written to what is meant, or the line and the reason why not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use chrono::DateTime;
use toml::Spanned;
use xxhash_rust::xxh3::xxh3_128;

use super::canonical::canonical;
use super::price::sort;
use super::written::{self, Name, Value};
use super::{
    Action, Allowance, Amount, Catalogue, CatalogueError, CatalogueId, ChargeOnce, Entitlement, Field, Line, Overage,
    Plan, Price, Threshold, When,
};
use crate::ledger::credits::Credits;
use crate::ledger::cycle::Interval;

/// A call names a credit type with a byte.
const CREDIT_TYPES_MAX: usize = 64;
/// Texts of an event are no longer.
const VALUE_BYTES_MAX: usize = 256;
/// The fields of a dated entry.
const EFFECTIVE_FROM: &str = "effective_from";
const EFFECTIVE_UNTIL: &str = "effective_until";

impl Catalogue {
    pub fn parse(text: &str) -> Result<Catalogue, CatalogueError> {
        let written: written::File = toml::from_str(text).map_err(|error| CatalogueError {
            line: line_of(text, error.span().unwrap_or(0..0)),
            reason: error.message().to_owned(),
        })?;
        Checker { text }.catalogue(written)
    }
}

/// A price without its credit type.
struct WrittenPrice<'a> {
    credits: &'a Value,
    effective_from: Option<&'a Value>,
    when: &'a BTreeMap<Name, Value>,
}

struct Checker<'a> {
    text: &'a str,
}

impl Checker<'_> {
    fn catalogue(&self, written: written::File) -> Result<Catalogue, CatalogueError> {
        let version = u32::try_from(*written.version.get_ref())
            .ok()
            .filter(|version| *version >= 1)
            .ok_or_else(|| self.refuse(&written.version, "version must be a whole number from 1 to 4294967295"))?;
        let mut credit_types = Vec::new();
        for name in written.credit_types.keys() {
            self.name(name, "credit type")?;
            credit_types.push(name.get_ref().clone());
        }
        credit_types.sort_unstable();
        if credit_types.len() > CREDIT_TYPES_MAX {
            let reason = format!("there are {} credit types, at most {CREDIT_TYPES_MAX}", credit_types.len());
            return Err(self.refuse(&written.version, reason));
        }
        let mut actions = BTreeMap::new();
        for (name, action) in written.actions {
            self.name(&name, "action")?;
            actions.insert(name.get_ref().clone(), self.action(&name, action, &credit_types)?);
        }
        let mut plans = BTreeMap::new();
        for (name, plan) in written.plans {
            self.name(&name, "plan")?;
            plans.insert(name.get_ref().clone(), self.plan(&name, plan, &credit_types, &actions)?);
        }
        let hash = format!("{:032x}", xxh3_128(canonical(&credit_types, &actions, &plans).as_bytes()));
        let general = actions.values().flat_map(|action| &action.prices);
        let of_plans = plans.values().flat_map(|plan| plan.prices.values().flatten());
        let entitlements = plans.values().flat_map(|plan| plan.actions.values().flatten());
        let changes: BTreeSet<i64> = general
            .chain(of_plans)
            .filter_map(|price| price.from_ms)
            .chain(entitlements.flat_map(Entitlement::bounds))
            .collect();
        Ok(Catalogue {
            id: CatalogueId { version, hash },
            credit_types,
            changes_ms: changes.into_iter().collect(),
            text: self.text.into(),
            line: self.line(&written.version),
            actions,
            plans,
        })
    }

    fn action(&self, name: &Name, written: written::Action, credit_types: &[String]) -> Result<Action, CatalogueError> {
        let Some(first) = written.prices.get_ref().first() else {
            let reason = format!("action `{}` needs a price", name.get_ref());
            return Err(self.refuse(&written.prices, reason));
        };
        let credit_type = first.get_ref().credit_type.get_ref().clone();
        let mut prices = Vec::new();
        for price in written.prices.get_ref() {
            let own = &price.get_ref().credit_type;
            self.known_credit_type(own, credit_types)?;
            if *own.get_ref() != credit_type {
                let reason = format!(
                    "action `{}` costs `{credit_type}` and `{}`: all prices of an action are in one credit type; make two \
                     actions of it",
                    name.get_ref(),
                    own.get_ref(),
                );
                return Err(self.refuse(own, reason));
            }
            let written::Price { credit_type: _, credits, effective_from, when } = price.get_ref();
            prices.push(self.price(price, WrittenPrice { credits, effective_from: effective_from.as_ref(), when })?);
        }
        if !prices.iter().any(|price: &Price| price.when.is_empty() && price.from_ms.is_none()) {
            let reason = format!(
                "action `{}` needs a price without `when` and without `effective_from`: what it costs from the beginning",
                name.get_ref()
            );
            return Err(self.refuse(&written.prices, reason));
        }
        self.no_two_for_one(&mut prices)?;
        let charge_once = written.charge_once.as_ref().map(|once| self.charge_once(once)).transpose()?;
        Ok(Action {
            credit_type,
            prices,
            free_outcomes: written.free_outcomes,
            charge_once,
            voidable: written.voidable.is_some_and(Spanned::into_inner),
            line: self.line(name),
        })
    }

    fn charge_once(&self, written: &written::ChargeOnce) -> Result<ChargeOnce, CatalogueError> {
        match written.by.get_ref().as_str() {
            "contact" => Ok(ChargeOnce::Contact),
            "company" => Ok(ChargeOnce::Company),
            other => Err(self.refuse(&written.by, format!("charge_once by `{other}`: it is by contact or company"))),
        }
    }

    fn price<T>(&self, place: &Spanned<T>, written: WrittenPrice<'_>) -> Result<Price, CatalogueError> {
        let credits = self.credits(written.credits)?;
        if credits > Credits::EVENT_MAX {
            let reason = format!("a price is at most {} credits", Credits::EVENT_MAX);
            return Err(self.refuse(written.credits, reason));
        }
        let mut when = Vec::new();
        for (name, value) in written.when {
            let field = Field::from_name(name.get_ref()).ok_or_else(|| {
                let known: Vec<_> = Field::ALL.into_iter().map(Field::name).collect();
                self.refuse(name, format!("`when` names `{}`, which is none of {}", name.get_ref(), known.join(", ")))
            })?;
            let text = value.get_ref().as_str().filter(|text| !text.is_empty() && text.len() <= VALUE_BYTES_MAX);
            let text = text.ok_or_else(|| {
                self.refuse(
                    value,
                    format!("`{}` is compared with a text of 1 to {VALUE_BYTES_MAX} bytes", field.name()),
                )
            })?;
            when.push((field, Arc::from(text)));
        }
        when.sort_unstable();
        let from_ms = written.effective_from.map(|from| self.time(from)).transpose()?;
        Ok(Price { credits, when: When(when), from_ms, line: self.line(place) })
    }

    /// For every event and time one price counts.
    fn no_two_for_one(&self, prices: &mut [Price]) -> Result<(), CatalogueError> {
        sort(prices);
        for (index, price) in prices.iter().enumerate() {
            let rivals = prices[index + 1..].iter();
            let rivals = rivals.filter(|other| other.when.len() == price.when.len() && other.from_ms == price.from_ms);
            for rival in rivals {
                let Some(both) = price.when.and(&rival.when) else { continue };
                let later = if price.line.0 > rival.line.0 { price } else { rival };
                if both == price.when {
                    return Err(Catalogue::refuse(later.line, "two prices for the same `when` and time"));
                }
                let decides = |other: &&Price| other.when == both && other.from_ms <= price.from_ms;
                if !prices.iter().any(|other| decides(&other)) {
                    let reason = format!(
                        "two prices count for an event with {both}, and none is more specific: add one for when = {{ {both} }}"
                    );
                    return Err(Catalogue::refuse(later.line, reason));
                }
            }
        }
        Ok(())
    }

    fn plan(
        &self,
        name: &Name,
        written: written::Plan,
        credit_types: &[String],
        actions: &BTreeMap<String, Action>,
    ) -> Result<Plan, CatalogueError> {
        let interval = Interval::from_name(written.interval.get_ref()).ok_or_else(|| {
            let reason =
                format!("interval `{}` is none of monthly, quarterly, semi_annual, annual", written.interval.get_ref());
            self.refuse(&written.interval, reason)
        })?;
        let entitled = self.entitled(&written.actions, actions)?;
        let overage = match &written.overage {
            None => Overage::Reject,
            Some(overage) => self.overage(overage)?,
        };
        let mut thresholds = Vec::new();
        for threshold in &written.thresholds {
            thresholds.push(Threshold::parse(threshold.get_ref()).ok_or_else(|| {
                let reason =
                    format!("threshold `{}` is neither like \"80%\" nor like \"remaining 100\"", threshold.get_ref());
                self.refuse(threshold, reason)
            })?);
        }
        let mut prices = BTreeMap::new();
        for (action, written) in &written.prices {
            if !entitled.contains_key(action.get_ref()) {
                let reason = format!("`{}` has a price, but the plan is not entitled to it", action.get_ref());
                return Err(self.refuse(action, reason));
            }
            prices.insert(action.get_ref().clone(), self.plan_prices(written)?);
        }
        let mut carry_over_max = BTreeMap::new();
        for (credit_type, max) in &written.carry_over_max {
            self.known_credit_type(credit_type, credit_types)?;
            carry_over_max.insert(credit_type.get_ref().clone(), self.credits(max)?);
        }
        Ok(Plan {
            interval,
            allowances: self.allowances(&written.allowance, credit_types)?,
            actions: entitled,
            overage,
            thresholds,
            prices,
            carry_over_max,
            line: self.line(name),
        })
    }

    fn entitled(
        &self,
        written: &[Spanned<written::Entitled>],
        actions: &BTreeMap<String, Action>,
    ) -> Result<BTreeMap<String, Vec<Entitlement>>, CatalogueError> {
        let mut entitled: BTreeMap<String, Vec<Entitlement>> = BTreeMap::new();
        for entry in written {
            let (name, from, until) = match entry.get_ref() {
                written::Entitled::Always(name) => (name, None, None),
                written::Entitled::Dated(written::EntitledWhen { action, effective_from, effective_until }) => {
                    (action, effective_from.as_ref(), effective_until.as_ref())
                }
            };
            if !actions.contains_key(name) {
                return Err(self.refuse(entry, format!("action `{name}` is not defined")));
            }
            let time = |what: &str, value: &toml::Value| {
                time_of(value).map_err(|text| self.refuse(entry, no_time(what, &text)))
            };
            let from_ms = from.map(|from| time(EFFECTIVE_FROM, from)).transpose()?;
            let until_ms = until.map(|until| time(EFFECTIVE_UNTIL, until)).transpose()?;
            if from_ms.zip(until_ms).is_some_and(|(from_ms, until_ms)| until_ms <= from_ms) {
                return Err(self.refuse(entry, format!("`{name}`: {EFFECTIVE_UNTIL} is not after {EFFECTIVE_FROM}")));
            }
            let own = entitled.entry(name.clone()).or_default();
            own.push(Entitlement { from_ms, until_ms, line: self.line(entry) });
            own.sort_by_key(|each| each.from_ms);
            let overlaps =
                |pair: &[Entitlement]| pair[0].until_ms.is_none_or(|until_ms| Some(until_ms) > pair[1].from_ms);
            if own.windows(2).any(overlaps) {
                return Err(self.refuse(entry, format!("`{name}` is listed twice for the same time")));
            }
        }
        Ok(entitled)
    }

    fn plan_prices(&self, written: &Spanned<written::PlanPrices>) -> Result<Vec<Price>, CatalogueError> {
        let several = match written.get_ref() {
            written::PlanPrices::One => {
                let credits = self.credits_at(written.span())?;
                if credits > Credits::EVENT_MAX {
                    return Err(self.refuse(written, format!("a price is at most {} credits", Credits::EVENT_MAX)));
                }
                return Ok(vec![Price { credits, when: When::default(), from_ms: None, line: self.line(written) }]);
            }
            written::PlanPrices::Several(several) => several,
        };
        let mut prices = Vec::new();
        for price in several {
            let written::PlanPrice { credits, effective_from, when } = price.get_ref();
            prices.push(self.price(price, WrittenPrice { credits, effective_from: effective_from.as_ref(), when })?);
        }
        if prices.is_empty() {
            return Err(self.refuse(written, "an action that is listed needs a price"));
        }
        self.no_two_for_one(&mut prices)?;
        Ok(prices)
    }

    fn allowances(
        &self,
        written: &Spanned<written::Allowances>,
        credit_types: &[String],
    ) -> Result<Vec<Allowance>, CatalogueError> {
        let entries: Vec<(Line, &written::Allowance)> = match written.get_ref() {
            written::Allowances::One(one) => vec![(self.line(written), one)],
            written::Allowances::Dated(list) => list.iter().map(|each| (self.line(each), each.get_ref())).collect(),
        };
        let mut allowances: Vec<Allowance> = Vec::new();
        for (line, entry) in entries {
            let mut from_ms = None;
            let mut amounts = BTreeMap::new();
            for (name, value) in entry {
                if name.get_ref() == EFFECTIVE_FROM {
                    from_ms = Some(self.time(value)?);
                    continue;
                }
                self.known_credit_type(name, credit_types)?;
                let amount = match value.get_ref().as_str() {
                    Some("unlimited") => Amount::Unlimited,
                    _ => Amount::Limited(self.credits(value)?),
                };
                amounts.insert(name.get_ref().clone(), amount);
            }
            if allowances.iter().any(|other| other.from_ms == from_ms) {
                return Err(Catalogue::refuse(line, "two allowances from the same time on"));
            }
            allowances.push(Allowance { from_ms, amounts, line });
        }
        allowances.sort_by_key(|allowance| allowance.from_ms);
        if allowances.first().is_none_or(|first| first.from_ms.is_some()) {
            let reason = "a plan needs an allowance without `effective_from`: what it gives from the beginning";
            return Err(self.refuse(written, reason));
        }
        Ok(allowances)
    }

    fn overage(&self, written: &Spanned<written::Overage>) -> Result<Overage, CatalogueError> {
        match written.get_ref() {
            written::Overage::Name(name) => Overage::parse(name).ok_or_else(|| {
                let reason = "overage is \"reject\", \"cap\", \"allow\" or { allow = { limit = CREDITS } }";
                self.refuse(written, reason)
            }),
            written::Overage::Limited(written::Allow { allow }) => {
                Ok(Overage::Allow { limit: Some(self.credits(&allow.limit)?) })
            }
        }
    }

    /// Names stand in Redis fields and metric labels, so their alphabet is small.
    fn name(&self, name: &Name, what: &str) -> Result<(), CatalogueError> {
        let text = name.get_ref();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
            let reason = format!("{what} `{text}`: a name is 1 to 64 of a-z, 0-9 and _");
            return Err(self.refuse(name, reason));
        }
        if text == EFFECTIVE_FROM {
            return Err(self.refuse(name, format!("{what} `{text}`: that is the name of a field")));
        }
        Ok(())
    }

    fn known_credit_type(&self, name: &Name, known: &[String]) -> Result<(), CatalogueError> {
        if known.contains(name.get_ref()) {
            return Ok(());
        }
        Err(self.refuse(name, format!("credit type `{}` is not defined", name.get_ref())))
    }

    fn credits(&self, value: &Value) -> Result<Credits, CatalogueError> {
        if !value.get_ref().is_integer() && !value.get_ref().is_float() {
            let text = &self.text[value.span()];
            return Err(self.refuse(value, format!("{text} is not an amount of credits")));
        }
        self.credits_at(value.span())
    }

    fn credits_at(&self, span: Range<usize>) -> Result<Credits, CatalogueError> {
        let text = self.text[span.clone()].replace('_', "");
        let refuse = |reason: String| CatalogueError { line: line_of(self.text, span.clone()), reason };
        let credits = Credits::parse(&text).map_err(|error| refuse(error.to_string()))?;
        if credits < Credits::ZERO {
            return Err(refuse("an amount of credits is not negative".to_owned()));
        }
        Ok(credits)
    }

    fn time(&self, value: &Value) -> Result<i64, CatalogueError> {
        time_of(value.get_ref()).map_err(|text| self.refuse(value, no_time(EFFECTIVE_FROM, &text)))
    }

    fn line<T>(&self, place: &Spanned<T>) -> Line {
        Line(line_of(self.text, place.span()))
    }

    fn refuse<T>(&self, place: &Spanned<T>, reason: impl Into<String>) -> CatalogueError {
        Catalogue::refuse(self.line(place), reason)
    }
}

/// A time in ms, or the text that is none.
fn time_of(value: &toml::Value) -> Result<i64, String> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Datetime(time) => time.to_string(),
        other => other.to_string(),
    };
    DateTime::parse_from_rfc3339(&text).map(|time| time.timestamp_millis()).map_err(|_| text)
}

fn no_time(what: &str, text: &str) -> String {
    format!("{what} `{text}` is no RFC 3339 time like 2027-01-01T00:00:00Z")
}

fn line_of(text: &str, span: Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
}
