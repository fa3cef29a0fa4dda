//! Alerts: one message for each edge of a balance, down through a threshold or up again.
//!
//! A threshold fires once, and again only after the balance has risen above it: it is then armed anew, with the next
//! arming number. Usage only lowers a balance, so that how events are cut into calls changes no alert.

use std::collections::BTreeSet;
use std::fmt;

use super::account::Balance;
use super::call::{OutboxEntry, Output};
use super::catalogue::{Amount, Threshold};
use super::credits::Credits;
use super::shard::Account;

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
    fn holds(self, balance: &Balance) -> bool {
        let (Some(granted), Some(remaining)) = (balance.granted, balance.remaining) else { return false };
        if granted == Credits::ZERO {
            return false;
        }
        match self {
            Level::Exhausted => remaining == Credits::ZERO,
            Level::Threshold(Threshold::Remaining(least)) => remaining <= least,
            Level::Threshold(Threshold::PercentUsed(percent)) => {
                let (used, granted) = (i128::from(balance.used.thousandths()), i128::from(granted.thousandths()));
                used * 100 >= granted * i128::from(percent)
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
    /// Usage: it fell. An event may have been denied for want of credits.
    Used { denied: bool },
    /// A command or a renewal: it may have risen.
    Changed,
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
        let message = |kind: &str, level: Level, arming: u32| {
            let (cycle, threshold) = (self.cycle.number, level.name());
            let granted = super::command::null_or_amount(balance.granted.map_or(Amount::Unlimited, Amount::Limited));
            let remaining =
                super::command::null_or_amount(balance.remaining.map_or(Amount::Unlimited, Amount::Limited));
            OutboxEntry {
                output: Output::Alerts,
                id: format!("{kind}/{name}/{credit_type}/{level}/{cycle}/{arming}"),
                event_type: format!("credits.{kind}.v1"),
                account: name.to_owned(),
                data: format!(
                    "{{\"credit_type\":\"{credit_type}\",\"threshold\":\"{threshold}\",\"used\":{},\"granted\":{granted},\
                     \"remaining\":{remaining},\"cycle\":{cycle},\"arming\":{arming}}}",
                    balance.used,
                ),
            }
        };
        if moved == Moved::Changed {
            let above: Vec<Level> = alarm.fired.iter().copied().filter(|level| !level.holds(&balance)).collect();
            for level in &above {
                alarm.fired.remove(level);
                messages.push(message("restored", *level, alarm.arming));
            }
            alarm.arming += u32::from(!above.is_empty());
        }
        let denied = moved == Moved::Used { denied: true };
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
