//! Prices, when they hold, and which one counts.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Line;
use crate::ledger::credits::Credits;

/// A data field of an event that a price may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    User,
    Channel,
    Contact,
    Company,
    Outcome,
    Source,
    Reservation,
}

impl Field {
    pub const ALL: [Field; 7] = [
        Field::User,
        Field::Channel,
        Field::Contact,
        Field::Company,
        Field::Outcome,
        Field::Source,
        Field::Reservation,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Field::User => "user",
            Field::Channel => "channel",
            Field::Contact => "contact",
            Field::Company => "company",
            Field::Outcome => "outcome",
            Field::Source => "source",
            Field::Reservation => "reservation",
        }
    }

    pub fn from_name(name: &str) -> Option<Field> {
        Field::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// What one unit of an action costs, for which events and from when on.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    pub credits: Credits,
    pub when: When,
    /// `None`: from the beginning.
    pub from_ms: Option<i64>,
    pub(super) line: Line,
}

/// The values that an event's data fields must have, in the order of the fields. Empty: any event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When(pub(super) Vec<(Field, Arc<str>)>);

impl When {
    pub fn fields(&self) -> impl Iterator<Item = (Field, &str)> {
        self.0.iter().map(|(field, value)| (*field, &**value))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The more fields, the more specific.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What holds where both hold; `None` if they cannot.
    pub(super) fn and(&self, other: &When) -> Option<When> {
        let mut both: BTreeMap<Field, Arc<str>> = self.0.iter().cloned().collect();
        for (field, value) in &other.0 {
            if both.insert(*field, value.clone()).is_some_and(|own| own != *value) {
                return None;
            }
        }
        Some(When(both.into_iter().collect()))
    }
}

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fields: Vec<_> = self.fields().map(|(field, value)| format!("{} = {value:?}", field.name())).collect();
        f.write_str(&fields.join(", "))
    }
}

/// Puts prices in the order of [`choose`]: the most specific first, and of these the latest.
pub(super) fn sort(prices: &mut [Price]) {
    prices.sort_by_key(|price| Reverse((price.when.len(), price.from_ms)));
}

/// The price that counts at a time: the most specific that holds, then the latest. `field` gives the event's data.
pub fn choose<'p, 'e>(
    prices: &'p [Price],
    time_ms: i64,
    field: impl Fn(Field) -> Option<&'e str>,
) -> Option<&'p Price> {
    prices.iter().find(|price| {
        price.from_ms.is_none_or(|from_ms| from_ms <= time_ms)
            && price.when.fields().all(|(name, value)| field(name) == Some(value))
    })
}

/// The prices that can count at a time: for each `when` the latest.
pub fn in_force(prices: &[Price], time_ms: i64) -> Vec<&Price> {
    let mut found: Vec<&Price> = Vec::new();
    for price in prices.iter().filter(|price| price.from_ms.is_none_or(|from_ms| from_ms <= time_ms)) {
        if found.iter().all(|later| later.when != price.when) {
            found.push(price);
        }
    }
    found
}

/// The data fields that prices depend on: nothing else of them is kept of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Values that some price asks for.
    values: BTreeMap<Field, Vec<Arc<str>>>,
    /// The field of which an action is charged once for each value.
    once: BTreeMap<String, Field>,
}

impl Conditions {
    /// An event's outcome is kept anyway.
    pub(super) fn of<'a>(prices: impl Iterator<Item = &'a Price>, once: BTreeMap<String, Field>) -> Conditions {
        let mut conditions: BTreeMap<Field, Vec<Arc<str>>> = BTreeMap::new();
        for (field, value) in prices.flat_map(|price| &price.when.0).filter(|(field, _)| *field != Field::Outcome) {
            let values = conditions.entry(*field).or_default();
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
        Conditions { values: conditions, once }
    }

    /// Whether nothing is asked of an event with this action.
    pub fn ask_nothing_of(&self, action: &str) -> bool {
        self.values.is_empty() && !self.once.contains_key(action)
    }

    /// The field that tells whether this action was charged before.
    pub fn once(&self, action: &str) -> Option<Field> {
        self.once.get(action).copied()
    }

    /// Whether events that were read for these are good for others too.
    pub fn hold(&self, others: &Conditions) -> bool {
        let known = |field: &Field, value: &Arc<str>| self.values.get(field).is_some_and(|own| own.contains(value));
        others.values.iter().all(|(field, values)| values.iter().all(|value| known(field, value)))
            && others.once.iter().all(|(action, field)| self.once.get(action) == Some(field))
    }

    /// The fields whose values matter, as an event has them.
    pub fn of_event<'e>(&self, text: impl Fn(Field) -> Option<std::borrow::Cow<'e, str>>) -> Box<[(Field, Arc<str>)]> {
        let own = self.values.iter().filter_map(|(field, values)| {
            let text = text(*field)?;
            Some((*field, values.iter().find(|value| ***value == *text)?.clone()))
        });
        own.collect()
    }
}
