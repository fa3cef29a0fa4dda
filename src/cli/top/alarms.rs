//! Accounts in alarm: alerts folded to what holds now.

use std::collections::{BTreeMap, BTreeSet};

use crate::ingest::alerts::{Alert, Edge};
use crate::ledger::credits::Credits;

/// Balances in alarm that are remembered, about 20 MB.
const BALANCES_MAX: usize = 100_000;

/// Balances that are below some level, by account and credit type.
#[derive(Clone, Debug)]
pub struct Alarms {
    balances: BTreeMap<(String, String), Alarm>,
    max: usize,
    /// Whether some were left out since there were too many.
    pub overflowed: bool,
    /// Whether the topic was read to its end.
    pub complete: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Alarm {
    /// The levels that it is below, as alerts spell them.
    pub levels: BTreeSet<String>,
    /// Whether it is exhausted, or only low.
    pub edge: Edge,
    /// As the last alert about it said.
    pub remaining: Option<Credits>,
    pub granted: Option<Credits>,
    pub at_ms: i64,
}

impl Default for Alarms {
    fn default() -> Alarms {
        Alarms { balances: BTreeMap::new(), max: BALANCES_MAX, overflowed: false, complete: false }
    }
}

impl Alarms {
    /// Takes the next alert of its account. One that comes twice changes nothing.
    pub fn take(&mut self, alert: Alert) {
        let key = (alert.account.clone(), alert.credit_type.clone());
        if alert.edge == Edge::Restored {
            let Some(alarm) = self.balances.get_mut(&key) else { return };
            // Whatever rises above a level is told of, so that one that is still here is from a state that Redis has lost.
            alarm.levels.retain(|level| *level != alert.threshold && alert.is_below(level));
            if alarm.levels.is_empty() {
                self.balances.remove(&key);
                return;
            }
        } else if self.balances.len() >= self.max && !self.balances.contains_key(&key) {
            self.overflowed = true;
            return;
        }
        let alarm = self.balances.entry(key).or_insert_with(|| Alarm {
            levels: BTreeSet::new(),
            edge: Edge::Low,
            remaining: None,
            granted: None,
            at_ms: 0,
        });
        if alert.edge != Edge::Restored {
            alarm.levels.insert(alert.threshold);
        }
        alarm.edge = if alarm.levels.contains(Edge::Exhausted.name()) { Edge::Exhausted } else { Edge::Low };
        (alarm.remaining, alarm.granted, alarm.at_ms) = (alert.remaining, alert.granted, alert.at_ms);
    }

    /// How many balances are exhausted, and how many only low.
    pub fn counts(&self) -> (usize, usize) {
        let exhausted = self.balances.values().filter(|alarm| alarm.edge == Edge::Exhausted).count();
        (exhausted, self.balances.len() - exhausted)
    }

    /// The exhausted ones first, each kind with the newest alert first.
    pub fn newest(&self, most: usize) -> Vec<(&str, &str, &Alarm)> {
        let all = self.balances.iter().map(|((account, credit_type), alarm)| (&**account, &**credit_type, alarm));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|(_, _, alarm)| (alarm.edge, std::cmp::Reverse(alarm.at_ms)));
        all.truncate(most);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::alerts::tests::alert;

    fn folded(alerts: &[&str]) -> Vec<String> {
        let mut alarms = Alarms::default();
        for (at_ms, text) in (0..).zip(alerts) {
            alarms.take(Alert { at_ms, ..alert(text) });
        }
        let shown = |(account, credit_type, alarm): (&str, &str, &Alarm)| {
            let levels: Vec<&str> = alarm.levels.iter().map(String::as_str).collect();
            format!("{} {account} {credit_type} {}", alarm.edge.name(), levels.join(","))
        };
        alarms.newest(10).into_iter().map(shown).collect()
    }

    #[test]
    fn an_alarm_holds_until_every_level_is_restored() {
        let mut alerts = vec!["low a email 80% 2/10 0", "low a email 90% 1/10 0", "exhausted a email exhausted 0/10 0"];
        assert_eq!(folded(&alerts), ["exhausted a email 80%,90%,exhausted"]);
        alerts.extend(["restored a email exhausted 2/10 0", "restored a email 90% 2/10 0"]);
        assert_eq!(folded(&alerts), ["low a email 80%"]);
        alerts.extend(["restored a email 80% 9/10 0", "restored a email 80% 9/10 0", "restored b email 80% 9/10 0"]);
        assert!(folded(&alerts).is_empty());
        alerts.push("low a email 80% 2/10 1");
        assert_eq!(folded(&alerts), ["low a email 80%"]);
    }

    #[test]
    fn what_a_lost_state_has_left_ends_with_the_next_that_is_restored() {
        let check = |restored: &str, expected: &[&str]| {
            // Then Redis is older, and falls through 80 % alone.
            let lost = ["low a email 80% 2/10 0", "low a email 90% 1/10 0", "exhausted a email exhausted 0/10 0"];
            assert_eq!(folded(&[&lost[..], &["low a email 80% 2/10 0", restored]].concat()), expected, "{restored}");
        };
        check("restored b email 80% 9/10 0", &["exhausted a email 80%,90%,exhausted"]);
        check("restored a email 80% 9/10 0", &[]);
        check("restored a email 80% 9/null 0", &[]);
        // Its account was closed.
        check("restored a email 80% 0/0 0", &[]);
        // What holds at that balance may have fired.
        check("restored a email 95% 1/10 0", &["low a email 80%,90%"]);
    }

    #[test]
    fn exhausted_ones_come_first_then_the_newest() {
        let alerts = [
            "exhausted a email exhausted 0/10 0",
            "low b email 80% 2/10 0",
            "low c email 80% 2/10 0",
            "exhausted d phone exhausted 0/5 0",
        ];
        let expected =
            ["exhausted d phone exhausted", "exhausted a email exhausted", "low c email 80%", "low b email 80%"];
        assert_eq!(folded(&alerts), expected);
    }

    #[test]
    fn memory_is_bounded_and_says_so() {
        let mut alarms = Alarms { max: 1, ..Alarms::default() };
        alarms.take(alert("low a email 80% 2/10 0"));
        assert!(!alarms.overflowed);
        alarms.take(alert("low b email 80% 2/10 0"));
        alarms.take(alert("exhausted a email exhausted 0/10 0"));
        assert_eq!((alarms.counts(), alarms.overflowed), ((1, 0), true));
    }
}
