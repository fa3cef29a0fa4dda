//! Alerts: one message for each edge of a balance, down through a threshold or up again.
//!
//! A threshold fires once, and again only after the balance has risen above it: it is then armed anew, with the next
//! arming number. Usage only lowers a balance, so that how events are cut into calls changes no alert.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::account::Balance;
use super::call::{OutboxEntry, Output};
use super::catalogue::{Amount, Threshold};
use super::credits::Credits;
use super::cycle::Cycle;
use super::shard::Account;
use super::time::rfc3339;

/// Dates end with the year 9999.
const YEAR_10000_S: f64 = 253_402_300_800.0;

/// What a balance can fall through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Threshold(Threshold),
    /// Nothing is left, or an event was denied for want of credits.
    Exhausted,
}

/// The levels that a credit type of an account is below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarm {
    /// Counts the times that the balance has risen above a level again.
    pub arming: u32,
    pub fired: BTreeSet<Level>,
}

impl Level {
    /// Whether a balance is below it. One to which nothing was granted is below nothing.
    pub fn holds(self, balance: &Balance) -> bool {
        let (Some(granted), Some(remaining)) = (balance.granted, balance.remaining) else { return false };
        if granted == Credits::ZERO {
            return false;
        }
        match self {
            Level::Exhausted => remaining == Credits::ZERO,
            Level::Threshold(Threshold::Remaining(least)) => remaining <= least,
            Level::Threshold(Threshold::PercentUsed(percent)) => {
                // Of what can still be used: what has expired makes nothing fuller.
                let usable = granted - balance.expired;
                let (used, usable) = (i128::from(balance.used.thousandths()), i128::from(usable.thousandths()));
                usable > 0 && used * 100 >= usable * i128::from(percent)
            }
        }
    }

    /// The stored form.
    pub fn parse(code: &str) -> Option<Level> {
        if code == "x" {
            return Some(Level::Exhausted);
        }
        if let Some(percent) = code.strip_prefix('p') {
            return Some(Level::Threshold(Threshold::PercentUsed(percent.parse().ok()?)));
        }
        let least = code.strip_prefix('r')?.parse().ok()?;
        Some(Level::Threshold(Threshold::Remaining(Credits::from_thousandths(least))))
    }

    /// From the name that messages give it.
    pub fn named(name: &str) -> Option<Level> {
        if name == "exhausted" { Some(Level::Exhausted) } else { Threshold::parse(name).map(Level::Threshold) }
    }

    /// As people write it.
    fn name(self) -> String {
        match self {
            Level::Exhausted => "exhausted".to_owned(),
            Level::Threshold(threshold) => threshold.to_string(),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Level::Exhausted => f.write_str("x"),
            Level::Threshold(Threshold::PercentUsed(percent)) => write!(f, "p{percent}"),
            Level::Threshold(Threshold::Remaining(least)) => write!(f, "r{}", least.thousandths()),
        }
    }
}

impl Alarm {
    /// The stored form: the arming number, and what has fired.
    pub fn parse(text: &str) -> Option<Alarm> {
        let (arming, codes) = text.split_once(' ')?;
        let fired = codes.split(',').filter(|code| !code.is_empty()).map(Level::parse).collect::<Option<_>>()?;
        Some(Alarm { arming: arming.parse().ok()?, fired })
    }
}

/// The levels of an account, in order, as scripts take them.
pub fn levels(thresholds: &[Threshold]) -> BTreeSet<Level> {
    thresholds.iter().copied().map(Level::Threshold).chain([Level::Exhausted]).collect()
}

/// What may have happened to a balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Usage, dated up to a time: it fell. An event may have been denied for want of credits.
    Used { denied: bool, at_ms: i64 },
    /// A command, a lot that began or ended, a renewal. Only what has risen is restored, since one that is exhausted
    /// by a denial may have something left.
    Changed { risen: bool },
}

/// When what remains will be used up at the rate of the cycle so far. In floats, but in the same order of operations
/// everywhere: it is a forecast.
fn runs_out(balance: &Balance, cycle: Cycle, at_ms: i64) -> Option<i64> {
    let elapsed_ms = at_ms - cycle.start_ms;
    let remaining = balance.remaining.filter(|left| *left > Credits::ZERO)?;
    if elapsed_ms <= 0 || balance.used == Credits::ZERO {
        return None;
    }
    let per_credit = elapsed_ms as f64 / balance.used.thousandths() as f64;
    let seconds = ((at_ms as f64 + remaining.thousandths() as f64 * per_credit) / 1000.0).floor();
    (seconds < YEAR_10000_S).then_some(seconds as i64)
}

impl Account {
    /// Judges a credit type after it has moved; gives the messages about it.
    pub fn judge_alerts(
        &mut self,
        name: &str,
        credit_type: &str,
        thresholds: &[Threshold],
        moved: Moved,
    ) -> Vec<OutboxEntry> {
        let counter = self.counters.get(credit_type).copied().unwrap_or_default();
        let balance = counter.balance();
        let mut alarm = self.alarms.remove(credit_type).unwrap_or_default();
        let mut messages = Vec::new();
        let runs_out = match moved {
            Moved::Used { at_ms, .. } => runs_out(&balance, self.cycle, at_ms),
            Moved::Changed { .. } => None,
        };
        let message = |kind: &str, level: Level, arming: u32| {
            let (cycle, threshold) = (self.cycle.number, level.name());
            let granted = super::command::null_or_amount(balance.granted.map_or(Amount::Unlimited, Amount::Limited));
            let remaining =
                super::command::null_or_amount(balance.remaining.map_or(Amount::Unlimited, Amount::Limited));
            OutboxEntry {
                output: Output::Alerts,
                // Where Redis falls back, what comes again may come in another order: a number of before must not hide an edge
                // that is new, since other credits were there.
                id: format!("{kind}/{name}/{credit_type}/{level}/{cycle}/{arming}/{granted}"),
                event_type: format!("credits.{kind}.v1"),
                account: name.to_owned(),
                data: format!(
                    "{{\"credit_type\":\"{credit_type}\",\"threshold\":\"{threshold}\",\"used\":{},\"granted\":{granted},\
                     \"remaining\":{remaining},\"cycle\":{cycle},\"arming\":{arming}{runs_out}}}",
                    balance.used,
                    runs_out = match kind {
                        "low" => format!(",\"runs_out\":{}", runs_out.map_or("null".to_owned(), quoted_time)),
                        _ => String::new(),
                    },
                ),
            }
        };
        if moved == (Moved::Changed { risen: true }) {
            let above: Vec<Level> = alarm.fired.iter().copied().filter(|level| !level.holds(&balance)).collect();
            for level in &above {
                alarm.fired.remove(level);
                messages.push(message("restored", *level, alarm.arming));
            }
            alarm.arming += u32::from(!above.is_empty());
        }
        let denied = matches!(moved, Moved::Used { denied: true, .. });
        for level in levels(thresholds) {
            let below = level.holds(&balance) || level == Level::Exhausted && denied;
            if below && alarm.fired.insert(level) {
                let kind = if level == Level::Exhausted { "exhausted" } else { "low" };
                messages.push(message(kind, level, alarm.arming));
            }
        }
        if alarm != Alarm::default() {
            self.alarms.insert(credit_type.to_owned(), alarm);
        }
        messages
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codes: Vec<String> = self.fired.iter().map(Level::to_string).collect();
        write!(f, "{} {}", self.arming, codes.join(","))
    }
}

fn quoted_time(seconds: i64) -> String {
    format!("\"{}\"", rfc3339(seconds * 1000))
}

/// What remained of each type before something changed; `None`: it was unlimited.
pub type Before = BTreeMap<String, Option<Credits>>;

impl Account {
    pub fn remaining(&self) -> Before {
        self.counters.iter().map(|(credit_type, counter)| (credit_type.clone(), counter.remaining())).collect()
    }

    /// Judges all types after a change; `None`: the cycle is new.
    pub fn judge_changed(&mut self, name: &str, thresholds: &[Threshold], before: Option<&Before>) -> Vec<OutboxEntry> {
        let mut messages = Vec::new();
        for credit_type in self.credit_types() {
            let left = self.counters.get(&credit_type).copied().unwrap_or_default().remaining();
            let risen = before.is_none_or(|before| {
                let before = before.get(&credit_type).copied().unwrap_or(Some(Credits::ZERO));
                before.is_some_and(|before| left.is_none_or(|left| left > before))
            });
            messages.extend(self.judge_alerts(name, &credit_type, thresholds, Moved::Changed { risen }));
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::grants::GrantKind;
    use crate::ledger::grants::tests::account;

    #[test]
    fn a_level_is_known_by_the_name_that_messages_give_it() {
        let thresholds = ["80%", "0%", "remaining 100", "remaining 0.5"].map(|text| Threshold::parse(text).unwrap());
        for level in levels(&thresholds) {
            assert_eq!(Level::named(&level.name()), Some(level));
        }
        for other in ["", "x", "p80", "101%", "remaining"] {
            assert_eq!(Level::named(other), None, "{other}");
        }
    }

    #[test]
    fn an_edge_has_the_id_that_it_had_and_one_of_other_credits_another() {
        let low_after = |top_up: i64, used: i64| {
            let mut account = account();
            account.grant("email", GrantKind::Topup, Amount::Limited(Credits::whole(top_up))).unwrap();
            account.counters.get_mut("email").unwrap().charged = Credits::whole(used);
            let moved = Moved::Used { denied: false, at_ms: 0 };
            let mut messages = account.judge_alerts("acme", "email", &[Threshold::PercentUsed(80)], moved);
            messages.pop().map(|message| message.id)
        };
        assert_eq!(low_after(0, 7), None);
        assert_eq!(low_after(0, 8).as_deref(), Some("low/acme/email/p80/0/0/10"));
        assert_eq!(low_after(0, 9), low_after(0, 8), "however events are cut into calls");
        // The same usage, read again behind a top-up that was bought because of it.
        assert_eq!(low_after(10, 8), None);
        assert_eq!(low_after(10, 16).as_deref(), Some("low/acme/email/p80/0/0/20"));
    }

    #[test]
    fn what_remains_lasts_at_the_rate_of_the_cycle_so_far() {
        let check = |used: i64, remaining: Option<i64>, at_ms: i64, expected: Option<&str>| {
            let balance = Balance {
                granted: remaining.map(|remaining| Credits::whole(used + remaining)),
                used: Credits::whole(used),
                expired: Credits::ZERO,
                remaining: remaining.map(Credits::whole),
                overage: Credits::ZERO,
            };
            let cycle = Cycle { number: 0, start_ms: 1_000_000_000_000, end_ms: 1_000_002_592_000 };
            let seen = runs_out(&balance, cycle, at_ms).map(|seconds| rfc3339(seconds * 1000));
            assert_eq!(seen.as_deref(), expected, "{used} {remaining:?} {at_ms}");
        };
        let start_ms = 1_000_000_000_000; // 2001-09-09T01:46:40Z
        check(80, Some(20), start_ms + 80_000, Some("2001-09-09T01:48:20Z"));
        check(80, Some(0), start_ms + 80_000, None);
        check(0, Some(10), start_ms + 80_000, None);
        check(80, None, start_ms + 80_000, None);
        check(80, Some(20), start_ms, None);
        check(1, Some(1_000_000_000_000), start_ms + 86_400_000, None);
    }
}
