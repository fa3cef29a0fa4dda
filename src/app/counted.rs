//! What calls have changed, in the metrics.

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
    for (credit_type, credits) in &report.charged {
        metrics::record_credits_charged(credit_type, *credits);
    }
    for (reason, records) in &report.dead {
        metrics::record_events(Outcome::DeadLettered, None, *records);
        metrics::record_dead_letters(*reason, *records);
    }
    if let Some(outcome) = report.command {
        metrics::record_command(outcome);
    }
}
