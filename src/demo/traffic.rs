//! The demo's teams and what they do, and what that must come to.
//!
//! The expectation is kept in plain sums of the traffic's own, apart from the ledger: it knows neither cycles nor
//! dedupe sets nor outcomes, only what it sent once, twice or wrongly.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

/// A team, its plan, and how much of the traffic is its.
struct Team {
    name: &'static str,
    plan: &'static str,
    weight: u32,
    /// What the plan and its add-on grant of e-mail credits, where they can run out.
    emails: Option<u64>,
}

const TEAMS: [Team; 6] = [
    Team { name: "acme", plan: "organization", weight: 40, emails: None },
    Team { name: "globex", plan: "organization", weight: 25, emails: None },
    Team { name: "initech", plan: "basic", weight: 15, emails: None },
    Team { name: "umbrella", plan: "basic", weight: 10, emails: None },
    Team { name: "hooli", plan: "basic", weight: 6, emails: None },
    // Runs out within seconds, and is denied from then on.
    Team { name: "tiny-startup", plan: "free", weight: 4, emails: Some(EMAILS_FREE + EMAILS_ADDON) },
];
const EMAILS_FREE: u64 = 250;
const EMAILS_ADDON: u64 = 50;

/// Of a thousand events: sent again as they were, sent again with another time, broken.
const AGAIN: u32 = 20;
const RESTAMPED: u32 = 10;
const BROKEN: u32 = 2;
/// Events remembered to be sent again.
const MEMORY: usize = 500;
/// A retry is restamped by up to a minute, well within `events.restamp_tolerance`.
const RESTAMP_MS: i64 = 60_000;

/// What the meter must have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub sent: u64,
    pub charged: u64,
    pub free: u64,
    pub duplicates: u64,
    pub denied: u64,
    pub dead_lettered: u64,
    /// Thousandths of a credit used, by team and credit type.
    pub used: BTreeMap<(&'static str, &'static str), u64>,
}

pub struct Traffic {
    rng: SmallRng,
    sent: Vec<Sent>,
    next_id: u64,
    pub expected: Expected,
}

#[derive(Clone)]
struct Sent {
    team: &'static str,
    id: String,
    action: &'static str,
    outcome: &'static str,
    time_ms: i64,
}

/// A record for the usage topic.
pub struct UsageRecord {
    pub key: &'static str,
    pub value: String,
}

impl Traffic {
    pub fn new(seed: u64) -> Traffic {
        let mut expected = Expected::default();
        for team in &TEAMS {
            expected.used.insert((team.name, "email"), 0);
        }
        Traffic { rng: SmallRng::seed_from_u64(seed), sent: Vec::new(), next_id: 0, expected }
    }

    /// The commands that make the teams: their names, ids and events.
    pub fn commands(anchor: &str, time: &str) -> Vec<(&'static str, String)> {
        let put = |team: &Team| {
            let addons = if team.emails.is_some() {
                json!([{ "credit_type": "email", "amount": EMAILS_ADDON }])
            } else {
                json!([])
            };
            let event = json!({
                "specversion": "1.0", "id": format!("put-{}", team.name), "source": "demo",
                "type": "credits.account.put.v1", "subject": team.name, "time": time,
                "data": { "plan": team.plan, "anchor": anchor, "timezone": "Europe/Paris", "addons": addons },
            });
            (team.name, event.to_string())
        };
        TEAMS.iter().map(put).collect()
    }

    pub fn teams() -> impl Iterator<Item = &'static str> {
        TEAMS.iter().map(|team| team.name)
    }

    /// The next record, and what it changes in what is expected.
    pub fn next(&mut self, now_ms: i64) -> UsageRecord {
        self.expected.sent += 1;
        let lot = self.rng.random_range(0..1000);
        if lot < BROKEN {
            self.expected.dead_lettered += 1;
            return self.broken(now_ms);
        }
        if lot < BROKEN + AGAIN + RESTAMPED && !self.sent.is_empty() {
            self.expected.duplicates += 1;
            let mut again = self.sent.choose(&mut self.rng).expect("it is not empty").clone();
            if lot >= BROKEN + AGAIN {
                again.time_ms = (again.time_ms + self.rng.random_range(0..RESTAMP_MS)).min(now_ms);
            }
            return record(&again);
        }
        let sent = self.fresh(now_ms);
        self.expect(&sent);
        if self.sent.len() < MEMORY {
            self.sent.push(sent.clone());
        } else {
            let place = self.rng.random_range(0..MEMORY);
            self.sent[place] = sent.clone();
        }
        record(&sent)
    }

    fn fresh(&mut self, now_ms: i64) -> Sent {
        let team = TEAMS.choose_weighted(&mut self.rng, |team| team.weight).expect("the weights are positive");
        let action = match (team.plan, self.rng.random_range(0..10)) {
            ("free", _) | (_, 0..5) => "reveal_email",
            (_, 5..8) => "reveal_phone",
            // Not all plans may enrich.
            (_, _) => "enrich_contact",
        };
        let outcome = if self.rng.random_range(0..4) == 0 { "not_found" } else { "found" };
        self.next_id += 1;
        Sent { team: team.name, id: format!("event-{}", self.next_id), action, outcome, time_ms: now_ms }
    }

    fn expect(&mut self, sent: &Sent) {
        let team = TEAMS.iter().find(|team| team.name == sent.team).expect("it is one of the teams");
        let (credit_type, thousandths) = match sent.action {
            "reveal_email" => ("email", 1000),
            "reveal_phone" => ("phone", 1500),
            _ => ("enrichment", 2000),
        };
        if sent.action == "enrich_contact" && team.plan != "organization" {
            self.expected.denied += 1;
            return;
        }
        if sent.action == "enrich_contact" && sent.outcome == "not_found" {
            self.expected.free += 1;
            return;
        }
        let used = self.expected.used.entry((team.name, credit_type)).or_default();
        // All events of the team that runs out cost the same, so that their order does not matter.
        if team.emails.is_some_and(|emails| *used + thousandths > emails * 1000) {
            self.expected.denied += 1;
            return;
        }
        *used += thousandths;
        self.expected.charged += 1;
    }

    fn broken(&mut self, now_ms: i64) -> UsageRecord {
        self.next_id += 1;
        let stranger = Sent {
            team: "nobody-knows-us",
            id: format!("event-{}", self.next_id),
            action: "reveal_email",
            outcome: "found",
            time_ms: now_ms,
        };
        let mut record = record(&stranger);
        if self.rng.random_bool(0.5) {
            record.value.truncate(record.value.len() / 2);
        }
        record
    }
}

fn record(sent: &Sent) -> UsageRecord {
    let time = chrono::DateTime::from_timestamp_millis(sent.time_ms).expect("the present is a valid time");
    let time = time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let event = json!({
        "specversion": "1.0", "id": sent.id, "source": "demo", "type": "credits.usage.v1", "subject": sent.team,
        "time": time, "data": { "action": sent.action, "outcome": sent.outcome, "user": "u1" },
    });
    UsageRecord { key: sent.team, value: event.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_has_something_of_everything() {
        let mut traffic = Traffic::new(1);
        for _ in 0..20_000 {
            traffic.next(1_773_100_800_000);
        }
        let expected = &traffic.expected;
        let ends = expected.charged + expected.free + expected.duplicates + expected.denied + expected.dead_lettered;
        assert_eq!(ends, expected.sent);
        for each in [expected.charged, expected.free, expected.duplicates, expected.denied, expected.dead_lettered] {
            assert!(each > 10, "{expected:?}");
        }
        assert_eq!(expected.used[&("tiny-startup", "email")], (EMAILS_FREE + EMAILS_ADDON) * 1000, "it runs out");
    }
}
