//! Made-up usage: what prospecting teams do, as CloudEvents. Pure: the same seed gives the same events, whatever
//! the time, which is the caller's.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat};
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::Zipf;

use crate::ledger::apply::json_text;
use crate::ledger::catalogue::Action;

/// Teams differ: the largest of 10,000 does about a tenth of all.
const ACCOUNTS_EXPONENT: f64 = 1.1;
const USERS_PER_ACCOUNT: u32 = 50;
/// Contacts that a team looks up: few enough that some come again.
const CONTACTS_PER_ACCOUNT: u32 = 20_000;
const CHANNELS: [&str; 3] = ["web_application", "browser_extension", "crm_connector"];
/// One event in a hundred comes again.
const REPEATS_PERCENT: f64 = 0.01;
/// A repeat comes after at most so many other events.
const REPEAT_DELAY_MAX: u64 = 100;
/// Of the lookups that are free when they find nothing.
const FOUND_NOTHING: f64 = 0.1;

/// An event as it is sent: its key and its JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    pub account: String,
    pub value: Vec<u8>,
}

/// How much usage to make up, for whom.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub events: u64,
    pub accounts: u32,
    pub seed: u64,
}

/// An iterator over made-up events. `clock` gives the time of each, in ms.
pub struct Generator<C> {
    usage: Usage,
    actions: Vec<Choice>,
    weights: WeightedIndex<u32>,
    by_size: Zipf<f64>,
    rng: SmallRng,
    clock: C,
    written_time: (i64, String),
    emitted: u64,
    made: u64,
    /// Events to send again, and after how many events.
    repeats: VecDeque<(u64, Generated)>,
}

struct Choice {
    name: String,
    with_contact: bool,
    /// As JSON text.
    free_outcome: Option<String>,
}

/// The name of an account, from 1.
pub fn account_name(number: u32) -> String {
    format!("team-{number:05}")
}

impl<C: FnMut() -> i64> Generator<C> {
    /// `None` if there is nothing to choose from: no account, or no action.
    pub fn new(usage: Usage, actions: &BTreeMap<String, Action>, clock: C) -> Option<Generator<C>> {
        let choices = actions.iter().map(|(name, action)| Choice {
            name: name.clone(),
            with_contact: action.credit_type == "phone",
            free_outcome: action.free_outcomes.first().map(|outcome| json_text(outcome)),
        });
        Some(Generator {
            usage,
            actions: choices.collect(),
            weights: WeightedIndex::new(actions.values().map(weight)).ok()?,
            by_size: Zipf::new(f64::from(usage.accounts), ACCOUNTS_EXPONENT).ok()?,
            rng: SmallRng::seed_from_u64(usage.seed),
            clock,
            written_time: (i64::MIN, String::new()),
            emitted: 0,
            made: 0,
            repeats: VecDeque::new(),
        })
    }

    fn make(&mut self) -> Generated {
        self.made += 1;
        let account = account_name(self.by_size.sample(&mut self.rng) as u32);
        let user = self.rng.random_range(1..=USERS_PER_ACCOUNT);
        let channel = CHANNELS[self.rng.random_range(0..CHANNELS.len())];
        let action = &self.actions[self.weights.sample(&mut self.rng)];
        let contact = self.rng.random_range(1..=CONTACTS_PER_ACCOUNT);
        let found_nothing = self.rng.random_bool(FOUND_NOTHING);
        update_time(&mut self.written_time, (self.clock)());

        let mut json = String::with_capacity(300);
        let (seed, number, time, name) = (self.usage.seed, self.made, &self.written_time.1, &action.name);
        let written = write!(
            json,
            "{{\"specversion\":\"1.0\",\"id\":\"{seed:016x}-{number:010}\",\"source\":\"load\",\
             \"type\":\"credits.usage.v1\",\"subject\":\"{account}\",\"time\":\"{time}\",\
             \"data\":{{\"action\":\"{name}\",\"quantity\":1,\"user\":\"{account}-user-{user:02}\",\
             \"channel\":\"{channel}\""
        );
        written.expect("a string takes all text");
        if action.with_contact {
            write!(json, ",\"contact\":\"contact-{contact:05}\"").expect("a string takes all text");
        }
        if let Some(outcome) = action.free_outcome.as_ref().filter(|_| found_nothing) {
            write!(json, ",\"outcome\":{outcome}").expect("a string takes all text");
        }
        json.push_str("}}");
        Generated { account, value: json.into_bytes() }
    }
}

impl<C: FnMut() -> i64> Iterator for Generator<C> {
    type Item = Generated;

    fn next(&mut self) -> Option<Generated> {
        if self.emitted == self.usage.events {
            return None;
        }
        self.emitted += 1;
        if self.repeats.front().is_some_and(|(due, _)| *due <= self.emitted) {
            return self.repeats.pop_front().map(|(_, event)| event);
        }
        let event = self.make();
        if self.rng.random_bool(REPEATS_PERCENT) {
            let due = self.emitted + self.rng.random_range(1..=REPEAT_DELAY_MAX);
            self.repeats.push_back((due, event.clone()));
        }
        Some(event)
    }
}

/// Times are written once for each millisecond: that is dearer than the rest of the event.
fn update_time(written: &mut (i64, String), now_ms: i64) {
    if written.0 != now_ms {
        let time = DateTime::from_timestamp_millis(now_ms).expect("the clock shows a year that has four digits");
        *written = (now_ms, time.to_rfc3339_opts(SecondsFormat::Millis, true));
    }
}

/// E-mails are most of what teams reveal, phone numbers the least.
fn weight(action: &Action) -> u32 {
    match action.credit_type.as_str() {
        "email" => 6,
        "phone" => 1,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::ledger::catalogue::Catalogue;

    const NOW_MS: i64 = 1_790_000_000_000;

    fn actions() -> BTreeMap<String, Action> {
        let text = r#"
            version = 1
            [credit_types.email]
            [credit_types.phone]
            [actions.reveal_email]
            prices = [{ credit_type = "email", credits = 1 }]
            free_outcomes = ["not_found"]
            [actions.reveal_phone]
            prices = [{ credit_type = "phone", credits = 1 }]
            [plans.basic]
            interval = "monthly"
            allowance = { email = 1000, phone = 100 }
            actions = ["reveal_email", "reveal_phone"]
        "#;
        Catalogue::parse(text).unwrap().actions
    }

    fn generate(events: u64, accounts: u32, seed: u64) -> Vec<Generated> {
        Generator::new(Usage { events, accounts, seed }, &actions(), || NOW_MS).unwrap().collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_events() {
        assert_eq!(generate(1000, 100, 7), generate(1000, 100, 7));
        assert_ne!(generate(1000, 100, 7), generate(1000, 100, 8));
    }

    #[test]
    fn time_changes_nothing_but_the_time() {
        let mut now_ms = NOW_MS;
        let usage = Usage { events: 500, accounts: 100, seed: 7 };
        let ticking = Generator::new(usage, &actions(), || {
            now_ms += 1;
            now_ms
        });
        let without_time = |event: &Generated| {
            let mut json: serde_json::Value = serde_json::from_slice(&event.value).unwrap();
            json["time"].take();
            json
        };
        let ticking: Vec<_> = ticking.unwrap().map(|event| without_time(&event)).collect();
        let still: Vec<_> = generate(500, 100, 7).iter().map(without_time).collect();
        assert_eq!(ticking, still);
    }

    #[test]
    fn one_in_a_hundred_is_sent_again_as_it_was() {
        let events = generate(100_000, 1000, 1);
        assert_eq!(events.len(), 100_000);
        let distinct: HashSet<_> = events.iter().map(|event| &event.value).collect();
        let repeats = events.len() - distinct.len();
        assert!((800..1200).contains(&repeats), "{repeats} repeats");
    }

    #[test]
    fn events_are_as_long_as_the_design_measures_with() {
        let events = generate(10_000, 10_000, 1);
        let mean = events.iter().map(|event| event.value.len()).sum::<usize>() / events.len();
        assert!((255..268).contains(&mean), "{mean} bytes");
    }

    #[test]
    fn few_accounts_do_much_and_all_names_are_in_range() {
        let mut by_account: HashMap<String, u32> = HashMap::new();
        for event in generate(50_000, 1000, 3) {
            *by_account.entry(event.account).or_default() += 1;
        }
        let names: HashSet<String> = (1..=1000).map(account_name).collect();
        assert!(by_account.keys().all(|name| names.contains(name)));
        assert!(by_account["team-00001"] > 20 * by_account["team-00100"]);
        assert!(by_account.len() > 900);
    }

    #[test]
    fn phone_events_name_a_contact_and_every_key_is_its_subject() {
        for event in generate(2000, 10, 5) {
            let json: serde_json::Value = serde_json::from_slice(&event.value).unwrap();
            assert_eq!(json["subject"], event.account);
            assert_eq!(json["data"]["action"] == "reveal_phone", json["data"]["contact"].is_string());
        }
    }

    #[test]
    fn nothing_to_choose_from_is_refused() {
        let usage = Usage { events: 1, accounts: 0, seed: 1 };
        assert!(Generator::new(usage, &actions(), || NOW_MS).is_none());
    }
}
