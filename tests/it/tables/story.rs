//! The language of the tables' stories: steps apart by `;`, each at noon of 10 March 2026 unless it says `@+31d`.
//!
//! | Step | What happens |
//! |---|---|
//! | `put acme small addon=email:5 limits=email:2,email:5:ada` | a command, also `grant acme email 5 topup`, `takeback acme g1` (a grant by the id of its command), `adjust acme email -2`, `close acme`; `id=` names it, `times=50` sends so many |
//! | `use e1 reveal_email x=3 user=ada contact=c1` | a usage event, of acme unless `for=` says otherwise; the same id is the same event |
//! | `void e1` | the void of an event; `named=+1d`: with another time |
//! | `use … + use …` | events of one call |
//! | `garbage` | bytes that are no event |
//! | `again` | the last call is sent once more, as it is |
//! | `blank` | from here on another worker, which knows no account |
//! | `tick`, `sweep`, `forget`, … | see `other_steps.rs` |
//!
//! Behind `|` stands in what a call differs from a worker's: see `Twist`.

use std::sync::Arc;

use credit_meter::ledger::account::{AccountConfig, Addon};
use credit_meter::ledger::call::{Partition, RefusalReason};
use credit_meter::ledger::catalogue::{Field, Overage};
use credit_meter::ledger::command::{
    ACCOUNT_CLOSE, ACCOUNT_PUT, ADJUST, Command, CommandBody, GRANT, GRANT_VOID, GrantBody, refuse,
};
use credit_meter::ledger::credits::Credits;
use credit_meter::ledger::cycle::Interval;
use credit_meter::ledger::event::{DAY_MS, Identity, UsageEvent};
use credit_meter::ledger::grants::GrantKind;
use credit_meter::ledger::members::MemberLimit;
use credit_meter::ledger::outcome::{DeadReason, Denial};
use credit_meter::pipeline::record::{Body, Record};
use credit_meter::pipeline::recorded::Decision;

use super::NOON_MS;
use super::world::{Twist, World};

/// A step taken apart: what stands in order, and what is named.
pub struct Words<'a> {
    pub at_ms: i64,
    pub plain: Vec<&'a str>,
    named: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    pub fn of(text: &'a str) -> Words<'a> {
        let mut words = Words { at_ms: NOON_MS, plain: Vec::new(), named: Vec::new() };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(named) => words.named.push(named),
                None if word.starts_with('@') => words.at_ms = time(&word[1..]),
                None => words.plain.push(word),
            }
        }
        words
    }

    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.named.iter().find(|(own, _)| *own == name).map(|(_, value)| *value)
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        self.get(name).map(|value| value.parse().expect("a number"))
    }

    pub fn twist(&self) -> Twist {
        Twist {
            generation: self.get("generation").map(str::to_owned),
            catalogue: self.get("catalogue").map(str::to_owned),
            shift: self.number("shift").unwrap_or(0),
            others: self.number("others").unwrap_or(0),
            commands_first: self.number("commands_first"),
            outbox_max: self.number("outbox_max").map(|number| number as usize),
            dies: self.get("dies").is_some(),
        }
    }
}

/// `+1d2h30m`, `-10m`: from noon on.
pub fn time(text: &str) -> i64 {
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text.strip_prefix('+').unwrap_or_else(|| panic!("`{text}` has no sign"))),
    };
    let (mut sum, mut number) = (0, 0);
    for letter in text.chars() {
        let unit_ms = match letter {
            'd' => DAY_MS,
            'h' => 3_600_000,
            'm' => 60_000,
            digit => {
                number = 10 * number + i64::from(digit.to_digit(10).expect("a digit, d, h or m"));
                continue;
            }
        };
        sum += number * unit_ms;
        number = 0;
    }
    NOON_MS + sign * sum
}

fn credits(text: &str) -> Credits {
    Credits::parse(text).unwrap_or_else(|error| panic!("`{text}`: {error}"))
}

impl World<'_> {
    pub async fn step(&mut self, text: &str) -> Result<(), String> {
        self.trail.clear();
        let (text, twist) = text.split_once('|').unwrap_or((text, ""));
        let twist = Words::of(twist).twist();
        let each: Vec<Words> = text.split(" + ").map(Words::of).collect();
        match each[0].plain[0] {
            "use" | "void" | "garbage" => {
                let mut records: Vec<Record> = Vec::new();
                for words in &each {
                    let record = self.usage_record(words, &records);
                    records.push(record);
                }
                self.submit(records, &twist).await
            }
            "put" | "grant" | "takeback" | "adjust" | "close" | "bad" => {
                for _ in 1..each[0].number("times").unwrap_or(1) {
                    let body = Body::Command(Box::new(self.command(&each[0])));
                    let record = self.record(Partition::COMMANDS, 0, each[0].at_ms, body);
                    self.submit(vec![record], &twist).await?;
                }
                let command = self.command(&each[0]);
                let record = self.record(Partition::COMMANDS, 0, each[0].at_ms, Body::Command(Box::new(command)));
                if each[0].get("published").is_some() {
                    self.publish(&record, Decision::Answered);
                }
                self.submit(vec![record], &twist).await
            }
            "again" => self.again().await,
            "blank" => {
                self.accounts.clear();
                Ok(())
            }
            _ => self.other_step(&each[0], &twist).await,
        }
    }

    fn usage_record(&mut self, words: &Words, before: &[Record]) -> Record {
        let partition = match words.get("partition") {
            Some("commands") => Partition::COMMANDS,
            Some(index) => Partition::usage(index.parse().expect("a number")),
            None => Partition::usage(0),
        };
        let before = before.iter().filter(|record| record.partition == partition).count();
        let appended_ms = words.get("appended").map_or(words.at_ms, time);
        let body = match words.plain[0] {
            "garbage" => Body::Dead { reason: DeadReason::InvalidJson, account: None },
            "use" => {
                let event = Arc::new(event(words, appended_ms));
                self.events.insert(event.id.to_string(), event.clone());
                Body::Usage(event)
            }
            _ => {
                let id = words.plain[1];
                let voided = self.events.get(id).map(|event| (**event).clone());
                let voided = voided.unwrap_or_else(|| event(words, appended_ms));
                let action = words.get("action").map_or(voided.action.clone(), Arc::from);
                let named = words.get("named").map(time);
                Body::Usage(Arc::new(UsageEvent {
                    identity: voided.identity.of_its_void(),
                    voids: Some(voided.identity),
                    id: format!("void-of-{id}").into(),
                    action,
                    time_ms: named.unwrap_or(voided.time_ms),
                    dated_ms: named.map_or(voided.dated_ms, |time_ms| time_ms.min(appended_ms)),
                    quantity: 1,
                    outcome: None,
                    user: None,
                    ..voided
                }))
            }
        };
        let record = self.record(partition, before, appended_ms, body);
        if let Some(text) = words.get("published") {
            let denial = Denial::ALL.into_iter().find(|denial| denial.name() == text);
            let decision = match denial {
                Some(denial) => Decision::Denied(denial),
                None => Decision::Capped { uncovered: credits(text) },
            };
            self.publish(&record, decision);
        }
        record
    }

    fn command(&self, words: &Words) -> Command {
        let account = words.plain[1];
        let id = words.get("id").map_or_else(|| format!("c{}", self.positions[&Partition::COMMANDS]), str::to_owned);
        let (command_type, body) = match words.plain[0] {
            "put" => (ACCOUNT_PUT, Ok(CommandBody::Put(Box::new(config(words))))),
            "grant" => (GRANT, Ok(CommandBody::Grant(Box::new(grant(words))))),
            "takeback" => (GRANT_VOID, Ok(CommandBody::GrantVoid { grant: words.plain[2].to_owned() })),
            "adjust" => (ADJUST, Ok(adjust(words))),
            "close" => (ACCOUNT_CLOSE, Ok(CommandBody::Close)),
            // What decoding has found.
            _ => {
                let reason = RefusalReason::from_name(words.plain[2]).expect("a reason");
                (GRANT, Err(refuse(reason, "as it was decoded".into())))
            }
        };
        let identity = Identity::of("cli", &id);
        Command { account: account.into(), identity, id, time_ms: words.at_ms, command_type, body }
    }
}

fn event(words: &Words, appended_ms: i64) -> UsageEvent {
    let id = words.plain[1];
    let action = words.plain.get(2).copied().or(words.get("action")).unwrap_or("reveal_email");
    UsageEvent {
        account: words.get("for").unwrap_or("acme").into(),
        source: "s".into(),
        identity: Identity::of("s", id),
        id: id.into(),
        time_ms: words.at_ms,
        dated_ms: words.at_ms.min(appended_ms),
        action: action.into(),
        quantity: words.number("x").unwrap_or(1) as u64,
        outcome: words.get("outcome").map(Arc::from),
        user: words.get("user").map(Arc::from),
        fields: words.get("source").map(|source| (Field::Source, Arc::from(source))).into_iter().collect(),
        once: words.get("contact").map(|contact| Identity::of(action, contact)),
        voids: None,
    }
}

fn config(words: &Words) -> AccountConfig {
    let addons = words.get("addon").map(|addon| {
        let (credit_type, amount) = addon.split_once(':').expect("a type and an amount");
        Addon { credit_type: credit_type.to_owned(), amount: credits(amount) }
    });
    let limits = words.get("limits").unwrap_or_default().split(',').filter(|limit| !limit.is_empty());
    let limits = limits.map(|limit| {
        let mut parts = limit.split(':');
        let (credit_type, amount) = (parts.next().expect("a type"), parts.next().expect("an amount"));
        let user = parts.next().map(Arc::from);
        MemberLimit { credit_type: credit_type.to_owned(), user, amount: credits(amount) }
    });
    let mut limits: Vec<_> = limits.collect();
    limits.sort_by(MemberLimit::order);
    let overage = words.get("overage").map(|overage| match overage {
        "reject" => Overage::Reject,
        "cap" => Overage::Cap,
        limit => Overage::Allow { limit: Some(credits(limit)) },
    });
    AccountConfig {
        plan: words.plain[2].to_owned(),
        anchor: words.get("anchor").unwrap_or("2026-03-01").parse().expect("a date"),
        interval: words.get("interval").map(|name| Interval::from_name(name).expect("an interval")),
        timezone: words.get("zone").unwrap_or("UTC").parse().expect("a zone"),
        addons: addons.into_iter().collect(),
        thresholds: None,
        overage,
        member_limits: limits.into(),
    }
}

fn grant(words: &Words) -> GrantBody {
    GrantBody {
        credit_type: words.plain[2].to_owned(),
        amount: credits(words.plain[3]),
        kind: if words.plain[4] == "topup" { GrantKind::Topup } else { GrantKind::Promo },
        priority: words.number("priority").unwrap_or(100) as u32,
        effective_ms: words.get("from").map(time),
        expires_ms: words.get("until").map(time),
    }
}

fn adjust(words: &Words) -> CommandBody {
    let (sign, amount) = words.plain[3].split_at(1);
    CommandBody::Adjust {
        credit_type: words.plain[2].to_owned(),
        amount: credits(amount),
        adds: sign == "+",
        reason: "a mistake".into(),
    }
}
