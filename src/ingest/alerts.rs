//! Alerts, as the meter has published them.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::statements::Stated;
use super::tail::TailRecord;
use crate::ledger::account::Balance;
use crate::ledger::alerts::Level;
use crate::ledger::credits::Credits;

/// What happened to a balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    Exhausted,
    Low,
    Restored,
}

impl Edge {
    pub const fn name(self) -> &'static str {
        match self {
            Edge::Exhausted => "exhausted",
            Edge::Low => "low",
            Edge::Restored => "restored",
        }
    }

    fn of_type(event_type: &str) -> Option<Edge> {
        match event_type {
            "credits.exhausted.v1" => Some(Edge::Exhausted),
            "credits.low.v1" => Some(Edge::Low),
            "credits.restored.v1" => Some(Edge::Restored),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Alert {
    /// The same for repeats.
    pub id: String,
    pub event_type: String,
    pub edge: Edge,
    pub account: String,
    pub credit_type: String,
    /// `80%`, `remaining 100` or `exhausted`.
    pub threshold: String,
    pub used: Credits,
    /// `None`: unlimited.
    pub granted: Option<Credits>,
    pub remaining: Option<Credits>,
    pub cycle: i32,
    pub arming: u32,
    /// When it was published.
    pub at_ms: i64,
    /// `data`, as it was published.
    pub data: Box<RawValue>,
}

#[derive(Deserialize)]
struct Event<'a> {
    id: String,
    source: String,
    r#type: String,
    subject: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Data {
    credit_type: String,
    threshold: String,
    used: Stated,
    granted: Stated,
    remaining: Stated,
    cycle: i32,
    arming: u32,
}

impl Alert {
    /// `None`: another message, or another meter's; several may share the topic.
    pub fn read(record: &TailRecord, meter: &str) -> serde_json::Result<Option<Alert>> {
        let Ok(event) = serde_json::from_slice::<Event>(record.value.as_deref().unwrap_or_default()) else {
            return Ok(None);
        };
        let Some(edge) = Edge::of_type(&event.r#type).filter(|_| event.source == meter) else { return Ok(None) };
        let data: Data = serde_json::from_str(event.data.get())?;
        Ok(Some(Alert {
            id: event.id,
            event_type: event.r#type,
            edge,
            account: event.subject,
            credit_type: data.credit_type,
            threshold: data.threshold,
            used: data.used.0.unwrap_or(Credits::ZERO),
            granted: data.granted.0,
            remaining: data.remaining.0,
            cycle: data.cycle,
            arming: data.arming,
            at_ms: record.timestamp_ms,
            data: event.data.to_owned(),
        }))
    }

    /// Whether the balance that it tells of is below a level, which has the name that alerts give it.
    pub fn is_below(&self, level: &str) -> bool {
        let Alert { used, granted, remaining, .. } = *self;
        let balance = Balance { granted, used, expired: Credits::ZERO, remaining, overage: Credits::ZERO };
        // One that this program does not know may hold.
        Level::named(level).is_none_or(|level| level.holds(&balance))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A record of the alerts topic: `low acme email 80% 5/30 3`, the last being the arming number. What does not remain is
    /// used; 1.5 of what is unlimited.
    pub fn record(text: &str) -> TailRecord {
        let [edge, account, credit_type, threshold, balance, arming] = text.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{text}")
        };
        let (remaining, granted) = balance.split_once('/').expect("remaining/granted");
        let numbers = granted.parse::<f64>().ok().zip(remaining.parse::<f64>().ok());
        let used = numbers.map_or(1.5, |(granted, remaining)| granted - remaining);
        let value = format!(
            r#"{{"specversion":"1.0","id":"{edge}/{account}/{credit_type}/{threshold}/0/{arming}","source":"meter",
            "type":"credits.{edge}.v1","subject":"{account}","datacontenttype":"application/json",
            "data":{{"credit_type":"{credit_type}","threshold":"{threshold}","used":{used},"granted":{granted},"remaining":{remaining},"cycle":0,"arming":{arming}}}}}"#
        );
        TailRecord { timestamp_ms: 1_790_000_000_000, value: Some(value.into_bytes()), ..TailRecord::default() }
    }

    pub fn alert(text: &str) -> Alert {
        Alert::read(&record(text), "meter").expect("it is readable").expect("it is an alert")
    }

    #[test]
    fn only_this_meters_alerts_count() {
        let alert = alert("low acme email 80% 999999999999.001/null 3");
        assert_eq!((alert.edge, alert.account.as_str(), alert.arming), (Edge::Low, "acme", 3));
        assert_eq!((alert.used, alert.granted), (Credits::from_thousandths(1500), None));
        assert_eq!(alert.remaining, Some(Credits::parse("999999999999.001").expect("credits")));
        let record = record("low acme email 80% 1/2 3");
        assert!(Alert::read(&record, "another").expect("it is readable").is_none());
        assert!(Alert::read(&TailRecord::default(), "meter").expect("no message").is_none());
        let other = String::from_utf8(record.value.clone().expect("a value"))
            .expect("text")
            .replace("credits.low.v1", "credits.high.v1");
        let other = TailRecord { value: Some(other.into_bytes()), ..record.clone() };
        assert!(Alert::read(&other, "meter").expect("another type").is_none());
        let broken =
            String::from_utf8(record.value.clone().expect("a value")).expect("text").replace("\"cycle\":0,", "");
        assert!(Alert::read(&TailRecord { value: Some(broken.into_bytes()), ..record }, "meter").is_err());
    }
}
