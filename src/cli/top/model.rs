//! From what meters say at two moments to what is shown. Pure: no clock, no terminal.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::page::{Page, Sample};
use crate::ledger::outcome::Outcome;

const EVENTS: &str = "credit_meter_events_total";
const CREDITS: &str = "credit_meter_credits_charged_total";
const LAG_RECORDS: &str = "credit_meter_lag_records";
const LAG_SECONDS: &str = "credit_meter_lag_seconds";
const DELAY_BUCKETS: &str = "credit_meter_event_applied_delay_seconds_bucket";
const CALL_BUCKETS: &str = "credit_meter_call_duration_seconds_bucket";
const CALL_COUNT: &str = "credit_meter_call_duration_seconds_count";
const REFUSALS: &str = "credit_meter_call_refusals_total";
const OUTBOX: &str = "credit_meter_outbox_entries";
const OUTBOX_OLDEST: &str = "credit_meter_outbox_oldest_seconds";
const QUEUE: &str = "credit_meter_queue_records";
const METER_TIME: &str = "credit_meter_meter_time_seconds";
const METER_TIME_HELD: &str = "credit_meter_meter_time_held_seconds";
const SHARDS_HALTED: &str = "credit_meter_shards_halted";
const PARTITIONS_HALTED: &str = "credit_meter_partitions_halted";
/// Each tick holds meter time for a moment: until what lay before it is applied.
const HELD_SECONDS_MIN: f64 = 1.0;
/// Every metric that is looked at.
#[cfg(test)]
const NAMES: [&str; 14] = [
    EVENTS,
    CREDITS,
    LAG_RECORDS,
    LAG_SECONDS,
    "credit_meter_event_applied_delay_seconds",
    "credit_meter_call_duration_seconds",
    REFUSALS,
    OUTBOX,
    OUTBOX_OLDEST,
    QUEUE,
    METER_TIME,
    METER_TIME_HELD,
    SHARDS_HALTED,
    PARTITIONS_HALTED,
];
/// How a usage event can end, the usual first.
const OUTCOMES: [Outcome; 7] = [
    Outcome::Charged,
    Outcome::Free,
    Outcome::Capped,
    Outcome::Denied,
    Outcome::Duplicate,
    Outcome::Voided,
    Outcome::DeadLettered,
];

/// What a meter said.
#[derive(Clone, Debug, PartialEq)]
pub struct Scrape {
    /// On a clock that does not jump.
    pub at_seconds: f64,
    pub page: Page,
    /// Or why it is not.
    pub ready: Result<(), String>,
}

/// A meter at two moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Meter {
    pub url: String,
    pub before: Option<Scrape>,
    /// Or why it does not answer.
    pub now: Result<Scrape, String>,
}

/// What is shown of the meters.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Meters {
    pub meters: Vec<MeterView>,
    pub lag: Vec<Lag>,
    pub outcomes: Vec<Outcomes>,
    pub events: u64,
    /// `None`: nothing is known of an earlier moment.
    pub events_per_second: Option<f64>,
    pub credits: Vec<Charged>,
    /// From an event's append to the reply that applied it.
    pub delay: Quantiles,
    pub calls: Calls,
    /// Messages that wait: each meter tells of the outboxes that it publishes.
    pub outbox_entries: Option<u64>,
    pub outbox_oldest_seconds: Option<f64>,
    /// Records read that wait in them.
    pub queue_records: Option<u64>,
    pub meter_time: Option<MeterTime>,
    pub shards_halted: Option<u64>,
    pub partitions_halted: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeterView {
    pub url: String,
    pub answers: bool,
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// How far a topic is behind: all its records that wait, and the age of the oldest that was applied last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lag {
    pub topic: String,
    pub records: u64,
    pub seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcomes {
    pub outcome: &'static str,
    pub events: u64,
    pub per_second: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Charged {
    pub credit_type: String,
    pub per_second: Option<f64>,
}

/// Calls of the script that applies usage.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Calls {
    pub per_second: Option<f64>,
    pub time: Quantiles,
    /// Calls that changed nothing, of any script, by kind.
    pub refused_per_second: BTreeMap<String, f64>,
}

/// Of what happened between the two moments; `None`: nothing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50_seconds: Option<f64>,
    pub p99_seconds: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeterTime {
    pub behind_seconds: f64,
    pub held: Option<Held>,
}

/// The partition that holds meter time back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Held {
    pub topic: String,
    pub partition: String,
    pub seconds: f64,
}

/// Puts together what several meters said.
pub fn view(meters: &[Meter], now_ms: i64) -> Meters {
    let together = Together { meters };
    let events = |outcome: &'static str| move |sample: &Sample| sample.label("outcome") == outcome;
    let outcomes = OUTCOMES.map(Outcome::name).map(|outcome| Outcomes {
        outcome,
        events: whole(together.total(EVENTS, events(outcome))),
        per_second: together.rate(EVENTS, events(outcome)),
    });
    let credit_types = together.labels(CREDITS, "credit_type").into_iter().map(|credit_type| {
        let per_second = together.rate(CREDITS, |sample| sample.label("credit_type") == credit_type);
        Charged { credit_type, per_second }
    });
    Meters {
        meters: meters.iter().map(of_one).collect(),
        lag: together.lag(),
        outcomes: outcomes.to_vec(),
        events: whole(together.total(EVENTS, |_| true)),
        events_per_second: together.rate(EVENTS, |_| true),
        credits: credit_types.collect(),
        delay: together.quantiles(DELAY_BUCKETS, |_| true),
        calls: together.calls(),
        outbox_entries: together.sum(OUTBOX),
        outbox_oldest_seconds: together.pages().filter_map(|page| page.sum(OUTBOX_OLDEST)).max_by(f64::total_cmp),
        queue_records: together.sum(QUEUE),
        meter_time: together.meter_time(now_ms),
        shards_halted: together.sum(SHARDS_HALTED),
        partitions_halted: together.sum(PARTITIONS_HALTED),
    }
}

fn of_one(meter: &Meter) -> MeterView {
    let (answers, reason) = match &meter.now {
        Ok(scrape) => (true, scrape.ready.clone().err()),
        Err(reason) => (false, Some(reason.clone())),
    };
    MeterView { url: meter.url.clone(), answers, ready: answers && reason.is_none(), reason }
}

struct Together<'a> {
    meters: &'a [Meter],
}

impl Together<'_> {
    fn pages(&self) -> impl Iterator<Item = &Page> {
        self.meters.iter().filter_map(|meter| meter.now.as_ref().ok()).map(|scrape| &scrape.page)
    }

    /// Over all meters; `None`: none of them shows it.
    fn sum(&self, name: &str) -> Option<u64> {
        self.pages().filter_map(|page| page.sum(name)).reduce(|sum, own| sum + own).map(whole)
    }

    fn total(&self, name: &str, counts: impl Fn(&Sample) -> bool) -> f64 {
        self.pages().map(|page| sum(page, name, &counts)).sum()
    }

    /// How fast counters rose, over all meters of which two moments are known.
    fn rate(&self, name: &str, counts: impl Fn(&Sample) -> bool) -> Option<f64> {
        let rates = self.meters.iter().filter_map(|meter| {
            let (before, now) = meter.before.as_ref().zip(meter.now.as_ref().ok())?;
            let seconds = now.at_seconds - before.at_seconds;
            (seconds > 0.0).then(|| rise(before, now, name, &counts) / seconds)
        });
        rates.reduce(|sum, rate| sum + rate)
    }

    fn labels(&self, name: &str, label: &str) -> BTreeSet<String> {
        self.pages().flat_map(|page| page.of(name)).map(|sample| sample.label(label).to_owned()).collect()
    }

    fn lag(&self) -> Vec<Lag> {
        let topics = self.labels(LAG_RECORDS, "topic").into_iter().map(|topic| {
            let own = |sample: &Sample| sample.label("topic") == topic;
            let records = whole(self.total(LAG_RECORDS, own));
            let ages = self.pages().flat_map(|page| page.of(LAG_SECONDS)).filter(|sample| own(sample));
            let seconds = ages.map(|sample| sample.value).fold(0.0, f64::max);
            Lag { topic, records, seconds }
        });
        let mut topics: Vec<Lag> = topics.collect();
        topics.sort_by(|a, b| b.records.cmp(&a.records).then_with(|| b.topic.cmp(&a.topic)));
        topics
    }

    fn calls(&self) -> Calls {
        let apply = |sample: &Sample| sample.label("script") == "apply";
        let refused = self.labels(REFUSALS, "kind").into_iter().filter_map(|kind| {
            let rate = self.rate(REFUSALS, |sample| sample.label("kind") == kind)?;
            (rate > 0.0).then_some((kind, rate))
        });
        Calls {
            per_second: self.rate(CALL_COUNT, apply),
            time: self.quantiles(CALL_BUCKETS, apply),
            refused_per_second: refused.collect(),
        }
    }

    fn quantiles(&self, name: &str, counts: impl Fn(&Sample) -> bool) -> Quantiles {
        let buckets = self.labels(name, "le").into_iter().filter_map(|le| {
            let rate = self.rate(name, |sample| counts(sample) && sample.label("le") == le)?;
            Some((le.parse().ok()?, rate))
        });
        let mut buckets: Vec<(f64, f64)> = buckets.collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Quantiles { p50_seconds: quantile(&buckets, 0.5), p99_seconds: quantile(&buckets, 0.99) }
    }

    /// One meter tells it; right after it moved to another both may.
    fn meter_time(&self, now_ms: i64) -> Option<MeterTime> {
        // 0 until the first tick.
        let told = self.pages().filter_map(|page| page.sum(METER_TIME)).filter(|seconds| *seconds > 0.0);
        let newest = told.max_by(f64::total_cmp)?;
        let held = self.pages().flat_map(|page| page.of(METER_TIME_HELD)).filter(|held| held.value >= HELD_SECONDS_MIN);
        let held = held.max_by(|a, b| a.value.total_cmp(&b.value));
        let held = held.map(|sample| Held {
            topic: sample.label("topic").to_owned(),
            partition: sample.label("partition").to_owned(),
            seconds: sample.value,
        });
        Some(MeterTime { behind_seconds: (now_ms as f64 / 1000.0 - newest).max(0.0), held })
    }
}

fn sum(page: &Page, name: &str, counts: impl Fn(&Sample) -> bool) -> f64 {
    page.of(name).filter(|sample| counts(sample)).map(|sample| sample.value).sum()
}

/// One that fell was started anew, and counts from 0.
fn rise(before: &Scrape, now: &Scrape, name: &str, counts: impl Fn(&Sample) -> bool) -> f64 {
    let (before, now) = (sum(&before.page, name, &counts), sum(&now.page, name, &counts));
    if now < before { now } else { now - before }
}

/// Of a histogram whose buckets count all below them, straight between two bounds. `None`: it is empty. Beyond the
/// last bound nothing is known but that bound.
fn quantile(buckets: &[(f64, f64)], part: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let rank = part * all;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= rank && bound.is_finite() {
            let inside = count - below;
            let share = if inside > 0.0 { (rank - below) / inside } else { 1.0 };
            return Some(low + (bound - low) * share);
        }
        if bound.is_finite() {
            (low, below) = (*bound, *count);
        }
    }
    Some(low)
}

fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::metrics;

    /// A meter that was asked twice, two seconds apart.
    pub fn meter(before: &str, now: &str) -> Meter {
        let scrape = |at_seconds: f64, text: &str| Scrape { at_seconds, page: Page::read(text), ready: Ok(()) };
        Meter { url: "meter-1:9464".into(), before: Some(scrape(10.0, before)), now: Ok(scrape(12.0, now)) }
    }

    const BEFORE: &str = "credit_meter_events_total{action=\"a\",outcome=\"charged\"} 100\n\
        credit_meter_events_total{action=\"b\",outcome=\"charged\"} 10\n\
        credit_meter_events_total{action=\"a\",outcome=\"denied\"} 7\n\
        credit_meter_call_duration_seconds_count{script=\"apply\"} 50\n\
        credit_meter_call_duration_seconds_bucket{script=\"apply\",le=\"0.001\"} 50\n\
        credit_meter_call_duration_seconds_bucket{script=\"apply\",le=\"0.002\"} 50\n\
        credit_meter_call_duration_seconds_bucket{script=\"apply\",le=\"+Inf\"} 50\n\
        credit_meter_call_refusals_total{kind=\"stale\"} 1\n\
        credit_meter_call_refusals_total{kind=\"busy\"} 4\n";
    const NOW: &str = "credit_meter_events_total{action=\"a\",outcome=\"charged\"} 300\n\
        credit_meter_events_total{action=\"b\",outcome=\"charged\"} 30\n\
        credit_meter_events_total{action=\"a\",outcome=\"denied\"} 7\n\
        credit_meter_credits_charged_total{credit_type=\"email\"} 8.5\n\
        credit_meter_lag_records{partition=\"0\",topic=\"usage\"} 40\n\
        credit_meter_lag_records{partition=\"1\",topic=\"usage\"} 2\n\
        credit_meter_lag_records{partition=\"0\",topic=\"commands\"} 0\n\
        credit_meter_lag_seconds{partition=\"0\",topic=\"usage\"} 1.5\n\
        credit_meter_lag_seconds{partition=\"1\",topic=\"usage\"} 0.5\n\
        credit_meter_call_duration_seconds_count{script=\"apply\"} 150\n\
        credit_meter_call_duration_seconds_bucket{script=\"apply\",le=\"0.001\"} 100\n\
        credit_meter_call_duration_seconds_bucket{script=\"apply\",le=\"0.002\"} 150\n\
        credit_meter_call_duration_seconds_bucket{script=\"apply\",le=\"+Inf\"} 150\n\
        credit_meter_call_duration_seconds_bucket{script=\"roll\",le=\"+Inf\"} 9\n\
        credit_meter_call_refusals_total{kind=\"stale\"} 3\n\
        credit_meter_call_refusals_total{kind=\"busy\"} 4\n\
        credit_meter_event_applied_delay_seconds_bucket{le=\"1\"} 4\n\
        credit_meter_event_applied_delay_seconds_bucket{le=\"+Inf\"} 4\n\
        credit_meter_outbox_entries 12\n\
        credit_meter_outbox_oldest_seconds 0.25\n\
        credit_meter_queue_records 42\n\
        credit_meter_shards_halted 1\n\
        credit_meter_partitions_halted 0\n\
        credit_meter_meter_time_seconds 1000\n\
        credit_meter_meter_time_held_seconds{partition=\"3\",topic=\"usage\"} 20\n";

    #[test]
    fn two_moments_make_rates() {
        let view = view(&[meter(BEFORE, NOW)], 1_004_000);
        let charged = &view.outcomes[0];
        assert_eq!((charged.outcome, charged.events, charged.per_second), ("charged", 330, Some(110.0)));
        assert_eq!((view.events, view.events_per_second), (337, Some(110.0)));
        assert_eq!(view.credits, [Charged { credit_type: "email".into(), per_second: Some(4.25) }]);
        let usage = Lag { topic: "usage".into(), records: 42, seconds: 1.5 };
        assert_eq!(view.lag, [usage, Lag { topic: "commands".into(), records: 0, seconds: 0.0 }]);
        assert_eq!((view.calls.per_second, view.calls.time.p50_seconds), (Some(50.0), Some(0.001)));
        assert_eq!(view.calls.time.p99_seconds, Some(0.00198));
        assert_eq!(view.calls.refused_per_second.into_iter().collect::<Vec<_>>(), [("stale".to_owned(), 1.0)]);
        assert_eq!((view.outbox_entries, view.queue_records), (Some(12), Some(42)));
        assert_eq!((view.outbox_oldest_seconds, view.delay.p50_seconds), (Some(0.25), Some(0.5)));
        assert_eq!((view.shards_halted, view.partitions_halted), (Some(1), Some(0)));
        let held = Held { topic: "usage".into(), partition: "3".into(), seconds: 20.0 };
        assert_eq!(view.meter_time, Some(MeterTime { behind_seconds: 4.0, held: Some(held) }));
    }

    #[test]
    fn several_meters_add_up() {
        let mut silent = meter("", "");
        silent.now = Err("connection refused".into());
        let view = view(&[meter(BEFORE, NOW), meter("", NOW), silent], 1_004_000);
        assert_eq!((view.events, view.events_per_second), (674, Some(110.0 + 168.5)));
        assert_eq!((view.lag[0].records, view.lag[0].seconds), (84, 1.5));
        assert_eq!((view.outbox_entries, view.queue_records, view.shards_halted), (Some(24), Some(84), Some(2)));
        let answers: Vec<bool> = view.meters.iter().map(|meter| meter.answers).collect();
        assert_eq!(answers, [true, true, false]);
        assert_eq!(view.meters[2].reason.as_deref(), Some("connection refused"));
    }

    #[test]
    fn a_meter_that_was_started_anew_counts_from_zero() {
        let view = view(&[meter(NOW, BEFORE)], 0);
        assert_eq!(view.events_per_second, Some(58.5));
    }

    #[test]
    fn who_was_asked_once_or_does_not_answer_has_no_rates() {
        let mut once = meter("", NOW);
        once.before = None;
        let seen = view(&[once], 1_004_000);
        assert_eq!((seen.events, seen.events_per_second), (337, None));
        assert_eq!((seen.calls.per_second, seen.calls.time.p99_seconds), (None, None));
        let mut silent = meter(BEFORE, "");
        silent.now = Err("no answer".into());
        let seen = view(&[silent], 0);
        assert_eq!((seen.events, seen.events_per_second, seen.outbox_entries, seen.meter_time), (0, None, None, None));
        assert!(seen.lag.is_empty() && !seen.meters[0].ready);
    }

    #[test]
    fn a_meter_that_is_not_ready_says_why() {
        let mut halted = meter(BEFORE, NOW);
        halted.now = halted.now.map(|scrape| Scrape { ready: Err("redis: no answer".into()), ..scrape });
        let view = view(&[halted], 0);
        assert_eq!((view.meters[0].answers, view.meters[0].ready), (true, false));
        assert_eq!(view.meters[0].reason.as_deref(), Some("redis: no answer"));
    }

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        let check = |buckets: &[(f64, f64)], part: f64, expected: Option<f64>| {
            assert_eq!(quantile(buckets, part), expected, "{buckets:?} {part}");
        };
        check(&[], 0.5, None);
        check(&[(1.0, 0.0), (f64::INFINITY, 0.0)], 0.5, None);
        check(&[(1.0, 4.0), (2.0, 8.0), (f64::INFINITY, 8.0)], 0.25, Some(0.5));
        check(&[(1.0, 4.0), (2.0, 8.0), (f64::INFINITY, 8.0)], 0.75, Some(1.5));
        check(&[(1.0, 1.0), (2.0, 1.0), (f64::INFINITY, 8.0)], 0.99, Some(2.0)); // beyond the last bound
    }

    #[test]
    fn every_metric_that_is_shown_is_one_of_the_meters() {
        for name in NAMES {
            assert!(metrics::names().iter().any(|own| own == name), "{name}");
        }
    }
}
