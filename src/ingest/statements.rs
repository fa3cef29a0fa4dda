//! Statements of closed cycles, as the meter has published them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::client::BrokerError;
use super::log::{self, Span};
use crate::config::Config;
use crate::ledger::credits::Credits;

pub const CLOSED: &str = "credits.cycle.closed.v1";

/// `data` of `credits.cycle.closed.v1`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Statement {
    pub cycle: StatedCycle,
    pub plan: String,
    pub revision: u32,
    pub balances: BTreeMap<String, StatedBalance>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct StatedCycle {
    pub number: i32,
    pub start: String,
    pub end: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct StatedBalance {
    pub granted: Stated,
    pub granted_by: BTreeMap<String, Stated>,
    pub used: Stated,
    pub expired: Stated,
    pub remaining: Stated,
    pub overage: Stated,
    pub denied: u64,
}

/// Credits, read from their text; `None`: unlimited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stated(pub Option<Credits>);

impl<'de> Deserialize<'de> for Stated {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Stated, D::Error> {
        let raw: Box<RawValue> = Deserialize::deserialize(deserializer)?;
        if raw.get() == "null" {
            return Ok(Stated(None));
        }
        Credits::parse(raw.get()).map(Some).map(Stated).map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize)]
struct Event<'a> {
    source: String,
    r#type: String,
    subject: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// The newest statement of each closed cycle of an account in the spans of the cycles topic; `read` is told of each
/// record. It blocks.
pub fn of_account(
    config: &Config,
    account: &str,
    spans: &[Span],
    mut read: impl FnMut(),
) -> Result<BTreeMap<i32, Statement>, BrokerError> {
    let mut newest = BTreeMap::new();
    let mut broken = None;
    log::read(&config.kafka, &config.kafka.topics.cycles, spans, |record| {
        read();
        // The relay keys by account: most records need not be looked into.
        if record.key != Some(account.as_bytes()) {
            return;
        }
        match statement(record.value.unwrap_or_default(), &config.redis.prefix, account) {
            Ok(Some(statement)) => keep(&mut newest, statement),
            Ok(None) => {}
            Err(error) => broken = Some(format!("{}@{}: {error}", record.partition, record.offset)),
        }
    })?;
    match broken {
        None => Ok(newest),
        Some(reason) => {
            let what = format!("give statements of {account} that can be read");
            Err(BrokerError::Refused { what, reason })
        }
    }
}

/// One that comes again, after a shard fell back, stands for the one before.
fn keep(newest: &mut BTreeMap<i32, Statement>, statement: Statement) {
    let number = statement.cycle.number;
    if newest.get(&number).is_none_or(|known| known.revision <= statement.revision) {
        newest.insert(number, statement);
    }
}

/// `None`: it is another message, or another meter's.
fn statement(value: &[u8], meter: &str, account: &str) -> serde_json::Result<Option<Statement>> {
    let Ok(event) = serde_json::from_slice::<Event>(value) else { return Ok(None) };
    if event.source != meter || event.r#type != CLOSED || event.subject != account {
        return Ok(None);
    }
    serde_json::from_str(event.data.get()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(source: &str, subject: &str, revision: u32, used: &str) -> String {
        format!(
            r#"{{"specversion":"1.0","id":"closed/acme/3/1","source":"{source}","type":"{CLOSED}","subject":"{subject}",
            "data":{{"cycle":{{"number":3,"start":"2026-03-01T00:00:00Z","end":"2026-04-01T00:00:00Z"}},"plan":"basic",
            "revision":{revision},"balances":{{"email":{{"granted":null,"granted_by":{{"plan":null,"topup":1.5}},
            "used":{used},"expired":0,"remaining":null,"overage":0,"denied":2}}}}}}}}"#
        )
    }

    #[test]
    fn only_this_meters_statements_of_the_account_count_and_the_newest_stands() {
        let mut newest = BTreeMap::new();
        let records = [
            event("meter", "acme", 1, "1"),
            event("meter", "acme", 2, "999999999999.001"),
            event("meter", "acme", 1, "1"),
            event("meter", "other", 3, "1"),
            event("other", "acme", 3, "1"),
        ];
        for record in &records {
            if let Some(statement) = statement(record.as_bytes(), "meter", "acme").unwrap() {
                keep(&mut newest, statement);
            }
        }
        assert_eq!(newest.keys().collect::<Vec<_>>(), [&3]);
        let email = &newest[&3].balances["email"];
        assert_eq!((newest[&3].revision, email.denied, email.granted), (2, 2, Stated(None)));
        assert_eq!(email.used, Stated(Some(Credits::parse("999999999999.001").unwrap())));
        assert_eq!(email.granted_by["topup"], Stated(Some(Credits::from_thousandths(1500))));
        assert!(statement(event("meter", "acme", 1, "0.0001").as_bytes(), "meter", "acme").is_err());
    }
}
