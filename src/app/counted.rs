//! What calls have changed, in the metrics.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::ledger::call::Input;
use crate::ledger::outcome::{Outcome, Verdict};
use crate::metrics;
use crate::pipeline::report::Report;

pub fn count(report: &Report) {
    for ((action, verdict), events) in &report.verdicts {
        metrics::record_events(verdict.outcome(), Some(action), *events);
        if let Verdict::Denied(denial) = verdict {
            metrics::record_denied(*denial, *events);
        }
    }
    for (action, events) in &report.repeats {
        metrics::record_events(Outcome::Duplicate, Some(action), *events);
        metrics::record_repeats(*events);
    }
    for ((credit_type, plan), credits) in &report.charged {
        metrics::record_credits_charged(credit_type, plan, *credits);
    }
    if !report.appended.is_empty() {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        // The broker's clock may be ahead of ours.
        let delay = |append_ms: i64| Duration::from_millis((now_ms - append_ms).max(0) as u64);
        metrics::record_applied_delays(report.appended.iter().map(|(append_ms, events)| (delay(*append_ms), *events)));
    }
    for ((input, reason), records) in &report.dead {
        match input {
            Input::Usage => metrics::record_events(Outcome::DeadLettered, None, *records),
            Input::Commands => metrics::record_commands(Outcome::DeadLettered, *records),
        }
        metrics::record_dead_letters(*reason, *records);
    }
    if let Some(outcome) = report.command {
        metrics::record_commands(outcome, 1);
    }
}
