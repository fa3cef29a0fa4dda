//! The file as it is written. Amounts keep their place, so that they are read from their text, not through a float.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

/// A name with its place.
pub type Name = Spanned<String>;
/// Any value with its place.
pub type Value = Spanned<toml::Value>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub version: Spanned<i64>,
    pub credit_types: BTreeMap<Name, CreditType>,
    pub actions: BTreeMap<Name, Action>,
    pub plans: BTreeMap<Name, Plan>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreditType {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    pub prices: Spanned<Vec<Spanned<Price>>>,
    #[serde(default)]
    pub free_outcomes: Vec<String>,
    pub charge_once: Option<ChargeOnce>,
    pub voidable: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChargeOnce {
    pub by: Name,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub credit_type: Name,
    pub credits: Value,
    pub effective_from: Option<Value>,
    #[serde(default)]
    pub when: BTreeMap<Name, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub interval: Name,
    pub allowance: Spanned<Allowances>,
    pub actions: Vec<Spanned<Entitled>>,
    #[serde(default)]
    pub overage: Option<Spanned<Overage>>,
    #[serde(default)]
    pub thresholds: Vec<Name>,
    #[serde(default)]
    pub prices: BTreeMap<Name, Spanned<PlanPrices>>,
    #[serde(default)]
    pub carry_over_max: BTreeMap<Name, Value>,
}

/// `"reveal_email"`, or a table with the times.
pub enum Entitled {
    Always(String),
    Dated(EntitledWhen),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntitledWhen {
    pub action: String,
    pub effective_from: Option<toml::Value>,
    pub effective_until: Option<toml::Value>,
}

/// An amount, or `effective_from`, by name.
pub type Allowance = BTreeMap<Name, Value>;

/// `{ email = 1000 }`, or a list of such tables with `effective_from`.
pub enum Allowances {
    One(Allowance),
    Dated(Vec<Spanned<Allowance>>),
}

/// An amount, or a list of tables like those of an action without `credit_type`.
pub enum PlanPrices {
    /// To be read from its text.
    One,
    Several(Vec<Spanned<PlanPrice>>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanPrice {
    pub credits: Value,
    pub effective_from: Option<Value>,
    #[serde(default)]
    pub when: BTreeMap<Name, Value>,
}

pub enum Overage {
    Name(String),
    Limited(Allow),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    pub allow: Limit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    pub limit: Value,
}

// By hand, and not untagged: that would lose the places.
impl<'de> Deserialize<'de> for Entitled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entitled, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = Entitled;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the name of an action, or { action = NAME, effective_from = TIME, effective_until = TIME }",
                )
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Entitled, E> {
                Ok(Entitled::Always(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entitled, A::Error> {
                EntitledWhen::deserialize(MapAccessDeserializer::new(map)).map(Entitled::Dated)
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}

impl<'de> Deserialize<'de> for Overage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Overage, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = Overage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"reject\", \"cap\", \"allow\" or { allow = { limit = CREDITS } }")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Overage, E> {
                Ok(Overage::Name(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Overage, A::Error> {
                Allow::deserialize(MapAccessDeserializer::new(map)).map(Overage::Limited)
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}

impl<'de> Deserialize<'de> for Allowances {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Allowances, D::Error> {
        struct OneOrList;
        impl<'de> Visitor<'de> for OneOrList {
            type Value = Allowances;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("amounts by credit type, or a list of those with effective_from")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Allowances, A::Error> {
                Allowance::deserialize(MapAccessDeserializer::new(map)).map(Allowances::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Allowances, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Allowances::Dated)
            }
        }
        deserializer.deserialize_any(OneOrList)
    }
}

impl<'de> Deserialize<'de> for PlanPrices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PlanPrices, D::Error> {
        struct OneOrList;
        impl<'de> Visitor<'de> for OneOrList {
            type Value = PlanPrices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of credits, or a list of prices")
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<PlanPrices, E> {
                Ok(PlanPrices::One)
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<PlanPrices, E> {
                Ok(PlanPrices::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<PlanPrices, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(PlanPrices::Several)
            }
        }
        deserializer.deserialize_any(OneOrList)
    }
}
