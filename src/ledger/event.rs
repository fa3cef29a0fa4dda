//! A usage event: its identity, its day and its price.

use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::account::{AccountView, Life};
use super::catalogue::{Action, Catalogue, Entitlement, Field, Price, choose, entitled};
use super::credits::Credits;
use super::outcome::{DeadReason, Denial};

pub const DAY_MS: i64 = 86_400_000;

/// A `credits.usage.v1` event that was read and checked, except against the catalogue and its account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEvent {
    pub account: Arc<str>,
    pub source: Arc<str>,
    pub id: Box<str>,
    /// The event's own time, as its producer wrote it. Its day and the restamp tolerance use it.
    pub time_ms: i64,
    /// The earlier of its own and its append time: a fast clock cannot move an event into the future.
    pub dated_ms: i64,
    pub action: Arc<str>,
    pub quantity: u64,
    /// What the lookup found, for actions that are free when it found nothing.
    pub outcome: Option<Arc<str>>,
    /// The member who did it.
    pub user: Option<Arc<str>>,
    /// Further data fields, where they have a value that some price depends on.
    pub fields: Box<[(Field, Arc<str>)]>,
    /// What its action is charged for only once within a cycle, if the event has that field.
    pub once: Option<Identity>,
    /// A void: the event that it takes back. Its own time and data are then as that event's, as far as it says.
    pub voids: Option<Identity>,
    pub identity: Identity,
}

/// The hash of (source, id): within an account it tells events apart. Of (action, contact) likewise, and of
/// (action, company): it tells what was charged already. That two are the same by chance is for a million of them in
/// one set less likely than 1 to 10^7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The half that is remembered.
    pub member: i64,
    /// The half that chooses a sub-set, and tells two events with the same member apart in an audit.
    pub other: u64,
}

impl Identity {
    pub fn of(source: &str, id: &str) -> Identity {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        let length = (source.len() as u64).to_le_bytes();
        let end = length.len() + source.len();
        let mut buffer = [0; 8 + 2 * 256];
        let hash = match buffer.get_mut(..end + id.len()) {
            // In one piece it is hashed several times as fast; texts that were read fit.
            Some(text) => {
                text[..length.len()].copy_from_slice(&length);
                text[length.len()..end].copy_from_slice(source.as_bytes());
                text[end..].copy_from_slice(id.as_bytes());
                xxh3_128(text)
            }
            None => {
                let mut hasher = Xxh3::new();
                [&length, source.as_bytes(), id.as_bytes()].into_iter().for_each(|part| hasher.update(part));
                hasher.digest128()
            }
        };
        Identity { member: hash as u64 as i64, other: (hash >> 64) as u64 }
    }

    /// The identity by which the void of an event is remembered: there is one for each event.
    pub fn of_its_void(self) -> Identity {
        let hash = xxh3_128(&[b"void".as_slice(), &self.member.to_le_bytes(), &self.other.to_le_bytes()].concat());
        Identity { member: hash as u64 as i64, other: (hash >> 64) as u64 }
    }
}

/// The UTC day of an event's time, and the neighbouring day whose memory a restamped retry may be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Days {
    pub own: i64,
    pub neighbour: Option<i64>,
}

impl Days {
    pub fn of(time_ms: i64, restamp_tolerance_ms: i64) -> Days {
        let own = time_ms.div_euclid(DAY_MS);
        let into_day = time_ms.rem_euclid(DAY_MS);
        let neighbour = if into_day < restamp_tolerance_ms {
            Some(own - 1)
        } else if DAY_MS - into_day <= restamp_tolerance_ms {
            Some(own + 1)
        } else {
            None
        };
        Days { own, neighbour }
    }
}

/// Events of a call.
pub type CallEvents<'a> = &'a [super::call::CallEvent];

/// What an event of an account costs; in a call, events that cost the same share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    pub action: Arc<str>,
    pub credit_type: String,
    pub cost: Credits,
    pub judge: Judge,
    /// The closed cycle that it is charged to; `None`: the open one.
    pub cycle: Option<i32>,
    /// It is charged only if its account was not charged for the same in the cycle before ([`UsageEvent::once`]).
    pub once: bool,
    /// What it is charged is kept, for a void to come.
    pub voidable: bool,
}

/// A class without the names of its action and credit type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Charge {
    pub cost: Credits,
    pub judge: Judge,
    pub cycle: Option<i32>,
    pub once: bool,
    pub voidable: bool,
}

impl Charge {
    pub fn class(self, name: Arc<str>, action: &Action) -> Class {
        let Charge { cost, judge, cycle, once, voidable } = self;
        Class { action: name, credit_type: action.credit_type.clone(), cost, judge, cycle, once, voidable }
    }
}

/// What a plan makes of an action, whatever the event's time and data.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// What beats the general prices.
    of_plan: &'a [Price],
    /// When it is entitled to it.
    entitled: &'a [Entitlement],
}

impl<'a> Offer<'a> {
    pub fn of(catalogue: &'a Catalogue, action: &str, plan: &str) -> Offer<'a> {
        let plan = catalogue.plans.get(plan);
        let of_plan = plan.and_then(|plan| plan.prices.get(action)).map_or(&[][..], Vec::as_slice);
        let entitled = plan.and_then(|plan| plan.actions.get(action)).map_or(&[][..], Vec::as_slice);
        Offer { of_plan, entitled }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Judge {
    Charge,
    Free,
    NotEntitled,
    /// As it was published before the shard fell back to an older state; nothing is published again.
    Denied(Denial),
    /// The same: the class costs what was charged then.
    Capped,
    /// The same call holds an earlier attempt at the event, in the neighbouring day.
    Repeat,
    /// It takes another event's charge back.
    Void,
}

impl Judge {
    /// Whether the decision stands already.
    pub const fn recorded(self) -> bool {
        matches!(self, Judge::Denied(_) | Judge::Capped)
    }
}

impl UsageEvent {
    fn field(&self, name: Field) -> Option<&str> {
        match name {
            Field::Outcome => self.outcome.as_deref(),
            _ => self.fields.iter().find(|(own, _)| *own == name).map(|(_, value)| &**value),
        }
    }
}

/// All that can be judged without the account. `action`: as the catalogue has it.
pub fn allowed<'a>(action: Option<&'a Action>, event: &UsageEvent) -> Result<&'a Action, DeadReason> {
    let action = action.ok_or(DeadReason::UnknownAction)?;
    if event.voids.is_some() && !action.voidable {
        return Err(DeadReason::NotVoidable);
    }
    Ok(action)
}

/// Prices an event for its account.
pub fn price(catalogue: &Catalogue, account: &AccountView, event: &UsageEvent) -> Result<Class, DeadReason> {
    let action = allowed(catalogue.actions.get(&*event.action), event)?;
    let offer = |plan: &str| Offer::of(catalogue, &event.action, plan);
    Ok(charge(action, account, event, offer)?.class(event.action.clone(), action))
}

/// Prices an event for its account, by what was in force at its time. `offer`: what the plan of that time makes of the
/// action. That it is asked for lets many events share the answer.
pub fn charge<'a>(
    action: &'a Action,
    account: &'a AccountView,
    event: &UsageEvent,
    offer: impl FnOnce(&'a str) -> Offer<'a>,
) -> Result<Charge, DeadReason> {
    if event.voids.is_some() {
        return void(action, account, event);
    }
    let (plan, cycle) = terms_at(account, event.dated_ms)?;
    let Offer { of_plan, entitled: when } = offer(plan);
    let choose =
        |prices: &'a [Price]| choose(prices, event.dated_ms, |name| event.field(name)).map(|price| price.credits);
    let unit = choose(of_plan).or_else(|| choose(&action.prices));
    let unit = unit.expect("some price holds for every event at every time");
    let cost = unit.checked_mul(event.quantity).filter(|cost| *cost <= Credits::EVENT_MAX);
    let cost = cost.ok_or(DeadReason::CostTooLarge)?;
    let found_nothing =
        event.outcome.as_deref().is_some_and(|outcome| action.free_outcomes.iter().any(|free| free == outcome));
    let judge = if !entitled(when, event.dated_ms) {
        Judge::NotEntitled
    } else if found_nothing || cost == Credits::ZERO {
        Judge::Free
    } else {
        Judge::Charge
    };
    let cost = if judge == Judge::Free { Credits::ZERO } else { cost };
    let once = judge == Judge::Charge && action.charge_once.is_some() && event.once.is_some();
    let voidable = action.voidable && judge == Judge::Charge;
    Ok(Charge { cost, judge, cycle, once, voidable })
}

/// What a void comes to: what it takes back is what was charged, not what a price list says.
fn void(action: &Action, account: &AccountView, event: &UsageEvent) -> Result<Charge, DeadReason> {
    let terms = terms_at(account, event.dated_ms);
    let (_, cycle) = terms.map_err(|reason| match reason {
        DeadReason::TooLate => DeadReason::VoidTooLate,
        other => other,
    })?;
    let once = action.charge_once.is_some() && event.once.is_some();
    Ok(Charge { cost: Credits::ZERO, judge: Judge::Void, cycle, once, voidable: false })
}

/// The plan that an account had at a time, and the closed cycle that holds it; `None`: the open one does.
pub fn terms_at(account: &AccountView, dated_ms: i64) -> Result<(&str, Option<i32>), DeadReason> {
    if account.life != Life::Closed && account.cycle.holds(dated_ms) {
        return Ok((&account.config.plan, None));
    }
    if let Some((number, closed)) = account.closed.iter().find(|(_, closed)| closed.holds(dated_ms)) {
        return Ok((&closed.plan, Some(*number)));
    }
    Err(match dated_ms {
        _ if dated_ms < account.since_ms => DeadReason::BeforeAccount,
        // Its cycle was forgotten, since the floor had passed it.
        _ if dated_ms < account.cycle.end_ms => DeadReason::TooLate,
        _ if account.life == Life::Closed => DeadReason::AccountClosed,
        // The pipeline rolls the account first, so that no calendar names a cycle for it.
        _ => DeadReason::CycleNotOpen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_near_midnight_also_asks_the_neighbouring_day() {
        let minute = 60_000;
        let check = |time_ms: i64, own: i64, neighbour: Option<i64>| {
            assert_eq!(Days::of(time_ms, 10 * minute), Days { own, neighbour }, "{time_ms}");
        };
        check(DAY_MS, 1, Some(0));
        check(DAY_MS + 10 * minute - 1, 1, Some(0));
        check(DAY_MS + 10 * minute, 1, None);
        check(2 * DAY_MS - 10 * minute - 1, 1, None);
        check(2 * DAY_MS - 10 * minute, 1, Some(2));
        check(2 * DAY_MS - 1, 1, Some(2));
    }

    #[test]
    fn source_and_id_do_not_run_together() {
        assert_ne!(Identity::of("ab", "c"), Identity::of("a", "bc"));
        assert_eq!(Identity::of("ab", "c"), Identity::of("ab", "c"));
    }

    #[test]
    fn a_short_identity_is_hashed_like_a_long_one() {
        let check = |source: &str, id: &str| {
            let mut hasher = Xxh3::new();
            hasher.update(&(source.len() as u64).to_le_bytes());
            hasher.update(source.as_bytes());
            hasher.update(id.as_bytes());
            let hash = hasher.digest128();
            let expected = Identity { member: hash as u64 as i64, other: (hash >> 64) as u64 };
            assert_eq!(Identity::of(source, id), expected, "{} and {} bytes", source.len(), id.len());
        };
        let text = "0123456789abcdef".repeat(20);
        for length in [0, 1, 3, 8, 16, 100, 240, 255, 256, 257, 320] {
            check("reveal-service", &text[..length]);
            check(&text[..length], "event-1");
            check(&text[..length], &text[..length]);
        }
    }
}
