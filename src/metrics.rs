//! Every metric of the meter. Nothing else in the crate names one: call sites use the functions below.
//!
//! Labels come from closed sets, which start at zero so that a rate over them is right from the first event on.
//! User ids are never labels, and account ids only in one bounded metric; see `accounts.rs`.

/// Accounts by state, and the few that are named.
pub mod accounts;
/// A histogram of many equal values.
mod delays;
/// How metrics are made.
mod register;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use accounts::{Accounts, Standing};
use delays::Delays;
use register::Register;

use crate::ledger::credits::Credits;
use crate::ledger::outcome::{DeadReason, Denial, Outcome};
use crate::ledger::steps::Step;

/// How a usage event can end. `Applied` and `Refused` are for commands.
const EVENT_OUTCOMES: [Outcome; 7] = [
    Outcome::DeadLettered,
    Outcome::Duplicate,
    Outcome::Denied,
    Outcome::Free,
    Outcome::Capped,
    Outcome::Charged,
    Outcome::Voided,
];
const COMMAND_OUTCOMES: [Outcome; 4] = [Outcome::DeadLettered, Outcome::Refused, Outcome::Duplicate, Outcome::Applied];
/// The action of an event that names none of the catalogue: anyone can write any text there.
const UNKNOWN_ACTION: &str = "unknown";
/// The scripts whose calls are timed, as `store::scripts` names them.
const SCRIPTS: [&str; 3] = ["apply", "command", "roll"];
/// No answer came to a call: it may have been applied.
pub const INDEFINITE: &str = "indefinite";
/// The answer or the state is none that this program writes: the shard halts.
pub const BROKEN: &str = "broken";
/// Why a call changed nothing, or nothing is known of it: the kinds of `ledger::call::Reply`, the above, and those
/// of `store::Refusal`.
const CALL_REFUSALS: [&str; 30] = [
    "other_generation",
    "torn",
    "done_before",
    "other_position",
    "fell_back",
    "other_catalogue",
    "stale",
    "unknown",
    "dead",
    "outbox_full",
    INDEFINITE,
    BROKEN,
    "read_only",
    "loading",
    "busy",
    "out_of_memory",
    "cannot_persist",
    "too_few_replicas",
    "cluster_down",
    "slot_moving",
    "redirected",
    "primary_away",
    "no_script",
    "not_allowed",
    "too_many_clients",
    "unknown_primary",
    "certificate",
    "client_tls",
    "no_tls",
    "refused",
];
/// How an audit ends: without a difference, with some, without a result.
const AUDIT_CLEAN: &str = "clean";
const AUDIT_MISMATCHED: &str = "mismatched";
const AUDIT_FAILED: &str = "failed";
/// Up to a call's largest number of events, 20,000.
const BATCH_BUCKETS: [f64; 10] = [1.0, 4.0, 16.0, 64.0, 256.0, 1000.0, 4000.0, 8000.0, 16000.0, 20000.0];
/// From an empty range on a local Redis to a call that waits for a failover.
const CALL_SECONDS_BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2.0, 10.0];

/// From a quiet meter to one that catches up after an outage.
const APPLIED_DELAY_BUCKETS: [f64; 15] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
/// From an account with traffic to one that has waited for a meter that was down.
const ROLLOVER_DELAY_BUCKETS: [f64; 12] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 86_400.0];

const NO_LABELS: [&str; 0] = [];

/// Starts the series of the catalogue's actions at zero.
pub fn init_actions<'a>(actions: impl IntoIterator<Item = &'a str>) {
    for action in actions.into_iter().chain([UNKNOWN_ACTION]) {
        for outcome in EVENT_OUTCOMES {
            METRICS.events.with_label_values(&[outcome.name(), action]);
        }
    }
}

/// Starts the series of the catalogue's plans and credit types at zero.
pub fn init_plans<'a>(plans: impl IntoIterator<Item = &'a str>, credit_types: &[String]) {
    for plan in plans {
        for credit_type in credit_types {
            METRICS.credits_charged.with_label_values(&[credit_type.as_str(), plan]);
        }
        for standing in Standing::ALL {
            METRICS.accounts.by_state.with_label_values(&[standing.name(), plan]);
        }
    }
}

/// Usage events that ended, by how. `None`: the record names no action of the catalogue.
pub fn record_events(outcome: Outcome, action: Option<&str>, events: u64) {
    METRICS.events.with_label_values(&[outcome.name(), action.unwrap_or(UNKNOWN_ACTION)]).inc_by(events);
}

/// By the plan that the account had when it was charged.
pub fn record_credits_charged(credit_type: &str, plan: &str, credits: Credits) {
    // A float may round here: the exact amounts are in the ledger, this one draws a curve.
    METRICS.credits_charged.with_label_values(&[credit_type, plan]).inc_by(credits.thousandths() as f64 / 1000.0);
}

/// Usage events that were applied so long after they were appended.
pub fn record_applied_delays(delays: impl Iterator<Item = (Duration, u64)>) {
    METRICS.applied_delay.observe(delays);
}

/// A cycle's first statement was published, so long after the cycle's end.
pub fn record_rollover(delay: Duration) {
    METRICS.rollovers.inc();
    METRICS.rollover_delay.observe(delay.as_secs_f64());
}

pub fn record_denied(denial: Denial, events: u64) {
    METRICS.denied[denial as usize].inc_by(events);
}

/// Dead letters that Kafka acknowledged.
pub fn record_dead_letters(reason: DeadReason, records: u64) {
    METRICS.dead_letters[reason as usize].inc_by(records);
}

pub fn record_commands(outcome: Outcome, commands: u64) {
    METRICS.commands.with_label_values(&[outcome.name()]).inc_by(commands);
}

/// Records whose key differs from their subject.
pub fn record_misrouted(records: u64) {
    METRICS.misrouted.inc_by(records);
}

/// Events that came twice within one call.
pub fn record_repeats(events: u64) {
    METRICS.repeats.inc_by(events);
}

/// How far a partition is behind: records that wait, and how long the oldest one has waited.
pub fn set_lag(topic: &str, partition: i32, records: i64, age: Duration) {
    let partition = itoa::Buffer::new().format(partition).to_owned();
    let labels = [topic, partition.as_str()];
    METRICS.lag_records.with_label_values(&labels).set(records);
    METRICS.lag_seconds.with_label_values(&labels).set(if records > 0 { age.as_secs_f64() } else { 0.0 });
}

/// Drops a partition's lag once another worker reads it, so that it is not reported twice.
pub fn forget_lag(topic: &str, partition: i32) {
    let partition = itoa::Buffer::new().format(partition).to_owned();
    let labels = [topic, partition.as_str()];
    // Not there: it was revoked before it was read.
    let _ = METRICS.lag_records.remove_label_values(&labels);
    let _ = METRICS.lag_seconds.remove_label_values(&labels);
}

/// Usage events of one call that was applied.
pub fn record_batch(events: usize) {
    METRICS.batch_events.observe(events as f64);
}

/// A script's call, from sending it to its reply.
pub fn record_call(script: &str, elapsed: Duration) {
    METRICS.call_seconds.with_label_values(&[script]).observe(elapsed.as_secs_f64());
}

/// A call that changed nothing: `Reply::kind` of its answer, or `StoreError::kind` where there was none.
pub fn record_call_refusal(kind: &'static str) {
    METRICS.call_refusals.with_label_values(&[kind]).inc();
}

pub fn record_rewind() {
    METRICS.rewinds.inc();
}

/// Counts a connection to Redis, and returns its number, which tells it from earlier ones.
pub fn record_redis_connect() -> u64 {
    static MADE: AtomicU64 = AtomicU64::new(0);
    METRICS.redis_connects.inc();
    MADE.fetch_add(1, Ordering::Relaxed) + 1
}

/// Records read from Kafka that wait in the worker.
pub fn set_queue_records(records: usize) {
    METRICS.queue_records.set(gauge(records));
}

/// The time of the shard that is furthest behind, and the floor below which nothing is decided.
pub fn set_meter_time(meter_time_ms: i64, floor_ms: i64) {
    METRICS.meter_time_seconds.with_label_values(&NO_LABELS).set(meter_time_ms as f64 / 1000.0);
    METRICS.floor_seconds.with_label_values(&NO_LABELS).set(floor_ms as f64 / 1000.0);
}

/// Another worker tells meter time now.
pub fn forget_meter_time() {
    let _ = METRICS.meter_time_seconds.remove_label_values(&NO_LABELS);
    let _ = METRICS.floor_seconds.remove_label_values(&NO_LABELS);
    METRICS.meter_time_held_seconds.reset();
}

/// The partition that holds meter time back, and for how long.
pub fn set_meter_time_held(held: Option<(&str, i32, Duration)>) {
    METRICS.meter_time_held_seconds.reset();
    if let Some((topic, partition, since)) = held {
        let partition = itoa::Buffer::new().format(partition).to_owned();
        METRICS.meter_time_held_seconds.with_label_values(&[topic, partition.as_str()]).set(since.as_secs_f64());
    }
}

/// What the sweeper has done for idle accounts.
/// A round in which the accounts of a shard that are due could not be renewed.
pub fn record_sweep_failed() {
    METRICS.sweep_failures.inc();
}

pub fn record_swept(steps: impl Iterator<Item = &'static str>) {
    for step in steps {
        METRICS.swept.with_label_values(&[step]).inc();
    }
}

/// Accounts of which days below the floor were deleted.
pub fn record_forgotten(accounts: u64) {
    METRICS.forgotten.inc_by(accounts);
}

/// What came of a look at the catalogue's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    Applied,
    Refused,
    Unchanged,
}

impl Reload {
    const ALL: [Reload; 3] = [Reload::Applied, Reload::Refused, Reload::Unchanged];

    const fn name(self) -> &'static str {
        match self {
            Reload::Applied => "applied",
            Reload::Refused => "refused",
            Reload::Unchanged => "unchanged",
        }
    }
}

pub fn record_catalogue_reload(result: Reload) {
    METRICS.catalogue_reloads.with_label_values(&[result.name()]).inc();
}

/// The version by which this worker prices.
pub fn set_catalogue_version(version: u32) {
    METRICS.catalogue_version.set(i64::from(version));
}

pub fn set_shards_halted(shards: usize) {
    METRICS.shards_halted.set(gauge(shards));
}

/// How many partitions are halted; one may not be known by name.
pub fn set_partitions_halted(partitions: usize) {
    METRICS.partitions_halted.set(gauge(partitions));
    if partitions == 0 {
        METRICS.partition_halted.reset();
    }
}

pub fn name_halted_partition(topic: &str, partition: i32) {
    METRICS.partition_halted.with_label_values(&[topic, itoa::Buffer::new().format(partition)]).set(1);
}

/// Entries in a shard's outbox, as last seen by the worker that publishes it; the metric is the sum over the shards.
pub fn set_outbox_entries(shard: u32, entries: usize) {
    static BY_SHARD: Mutex<BTreeMap<u32, usize>> = Mutex::new(BTreeMap::new());
    let mut by_shard = BY_SHARD.lock().unwrap_or_else(PoisonError::into_inner);
    by_shard.insert(shard, entries);
    METRICS.outbox_entries.set(gauge(by_shard.values().sum()));
}

/// The age of the oldest message that waits in the outboxes that this worker publishes.
pub fn set_outbox_oldest(age: Duration) {
    METRICS.outbox_oldest_seconds.set(age.as_secs_f64());
}

/// A relay's attempt to publish that failed.
pub fn record_outbox_failure() {
    METRICS.outbox_failures.inc();
}

/// What `/readyz` says, check by check.
pub fn set_ready(check: &str, holds: bool) {
    METRICS.ready.with_label_values(&[check]).set(i64::from(holds));
}

/// For how long a position has stood still while records wait.
pub fn set_stalled(since: Duration) {
    METRICS.stalled_seconds.set(since.as_secs_f64());
}

/// Brokers that the consumer has a connection to, and that answer.
pub fn set_kafka_brokers_up(brokers: usize) {
    METRICS.kafka_brokers_up.set(gauge(brokers));
}

pub fn set_redis_up(up: bool) {
    METRICS.redis_up.set(i64::from(up));
}

/// Outbox entries that Kafka acknowledged.
pub fn record_published(topic: &str, entries: u64) {
    METRICS.outbox_published.with_label_values(&[topic]).inc_by(entries);
}

/// An audit that came to a result.
pub fn record_audit(accounts_checked: u64, mismatches: u64, lag_records: u64, ended: Duration) {
    METRICS.audits.with_label_values(&[if mismatches == 0 { AUDIT_CLEAN } else { AUDIT_MISMATCHED }]).inc();
    METRICS.audit_accounts.set(i64::try_from(accounts_checked).unwrap_or(i64::MAX));
    METRICS.audit_mismatches.set(i64::try_from(mismatches).unwrap_or(i64::MAX));
    METRICS.audit_lag_records.set(i64::try_from(lag_records).unwrap_or(i64::MAX));
    METRICS.audit_timestamp.set(i64::try_from(ended.as_secs()).unwrap_or(i64::MAX));
}

pub fn record_audit_failure() {
    METRICS.audits.with_label_values(&[AUDIT_FAILED]).inc();
}

/// All metrics in the text format 0.0.4.
pub fn render() -> String {
    let lost = crate::log::lines_lost();
    let told = METRICS.log_lines_told.fetch_max(lost, Ordering::Relaxed);
    METRICS.log_lines_lost.inc_by(lost.saturating_sub(told));
    let families = METRICS.registry.gather();
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
        tracing::error!(%error, "metrics cannot be rendered");
        String::new()
    })
}

/// The names of the meter's own metrics: what alert rules and dashboards may use.
pub fn names() -> &'static [String] {
    &METRICS.names
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

struct Metrics {
    registry: Registry,
    names: Vec<String>,
    log_lines_lost: IntCounter,
    /// How many of them are counted: two may ask at once.
    log_lines_told: AtomicU64,
    events: IntCounterVec,
    credits_charged: CounterVec,
    denied: Vec<IntCounter>,
    dead_letters: Vec<IntCounter>,
    commands: IntCounterVec,
    misrouted: IntCounter,
    repeats: IntCounter,
    lag_records: IntGaugeVec,
    lag_seconds: GaugeVec,
    batch_events: Histogram,
    call_seconds: HistogramVec,
    call_refusals: IntCounterVec,
    rewinds: IntCounter,
    redis_connects: IntCounter,
    queue_records: IntGauge,
    catalogue_reloads: IntCounterVec,
    catalogue_version: IntGauge,
    shards_halted: IntGauge,
    partitions_halted: IntGauge,
    partition_halted: IntGaugeVec,
    meter_time_seconds: GaugeVec,
    floor_seconds: GaugeVec,
    meter_time_held_seconds: GaugeVec,
    swept: IntCounterVec,
    sweep_failures: IntCounter,
    forgotten: IntCounter,
    outbox_entries: IntGauge,
    outbox_published: IntCounterVec,
    outbox_oldest_seconds: Gauge,
    outbox_failures: IntCounter,
    applied_delay: Delays,
    rollovers: IntCounter,
    rollover_delay: Histogram,
    accounts: Accounts,
    ready: IntGaugeVec,
    stalled_seconds: Gauge,
    kafka_brokers_up: IntGauge,
    redis_up: IntGauge,
    audits: IntCounterVec,
    audit_accounts: IntGauge,
    audit_mismatches: IntGauge,
    audit_lag_records: IntGauge,
    audit_timestamp: IntGauge,
}

impl Metrics {
    fn new() -> Metrics {
        let mut register = Register { registry: Registry::new(), names: Vec::new() };
        register.build_info();
        register.process();
        let metrics = Metrics {
            log_lines_lost: register.counter(
                "credit_meter_log_lines_lost_total",
                "Lines of the log that stderr did not take: its disk is full, or its reader stands still.",
            ),
            log_lines_told: AtomicU64::new(0),
            events: register.counters(
                "credit_meter_events_total",
                "Usage events by how they ended and their action.",
                &["outcome", "action"],
            ),
            credits_charged: register.float_counters(
                "credit_meter_credits_charged_total",
                "Credits charged, covered by grants or not, by credit type and the account's plan.",
                &["credit_type", "plan"],
            ),
            denied: register.counter_each(
                "credit_meter_denied_total",
                "Usage events denied, by reason.",
                "reason",
                Denial::ALL.map(Denial::name),
            ),
            dead_letters: register.counter_each(
                "credit_meter_dead_letters_total",
                "Records published to the dead-letter topic, by reason.",
                "reason",
                DeadReason::ALL.iter().map(|reason| reason.name()),
            ),
            commands: register.counters("credit_meter_commands_total", "Commands by how they ended.", &["outcome"]),
            misrouted: register.counter(
                "credit_meter_misrouted_total",
                "Records whose key differs from their subject. Harmless to the count, costly to batching.",
            ),
            repeats: register.counter(
                "credit_meter_repeats_total",
                "Usage events that came twice within one call; part of the duplicates.",
            ),
            lag_records: register.gauges(
                "credit_meter_lag_records",
                "Records in an assigned partition that are not applied yet.",
                &["topic", "partition"],
            ),
            lag_seconds: register.float_gauges(
                "credit_meter_lag_seconds",
                "How long the oldest record that waits, or that a halted shard left, has waited since its append; 0: none does.",
                &["topic", "partition"],
            ),
            batch_events: register.histogram(
                "credit_meter_batch_events",
                "Usage events in a call that was applied.",
                &BATCH_BUCKETS,
            ),
            call_seconds: register.histograms(
                "credit_meter_call_duration_seconds",
                "Time from sending a script's call to its reply.",
                &["script"],
                &CALL_SECONDS_BUCKETS,
            ),
            call_refusals: register.counters(
                "credit_meter_call_refusals_total",
                "Calls to a shard that changed nothing, or of which nothing is known, by kind.",
                &["kind"],
            ),
            rewinds: register.counter(
                "credit_meter_rewinds_total",
                "Times that a partition was read again because Redis was behind what was read.",
            ),
            redis_connects: register.counter("credit_meter_redis_connects_total", "Connections made to Redis."),
            queue_records: register.gauge("credit_meter_queue_records", "Records read that wait in the worker."),
            catalogue_reloads: register.counters(
                "credit_meter_catalogue_reloads_total",
                "Looks at the catalogue's file that found something to judge, by what came of it.",
                &["result"],
            ),
            catalogue_version: register
                .gauge("credit_meter_catalogue_version", "Version of the catalogue by which this worker prices."),
            shards_halted: register.gauge(
                "credit_meter_shards_halted",
                "Shards that apply nothing until someone looks at them; the log says why.",
            ),
            partitions_halted: register.gauge(
                "credit_meter_partitions_halted",
                "Partitions of which nothing is applied until someone looks at them; the log says why.",
            ),
            partition_halted: register.gauges(
                "credit_meter_partition_halted",
                "1 for a partition of which nothing is applied until someone looks at it; the others have no series.",
                &["topic", "partition"],
            ),
            meter_time_seconds: register.float_gauges(
                "credit_meter_meter_time_seconds",
                "Meter time of the shard that is furthest behind, in seconds since 1970. One worker tells it.",
                &[],
            ),
            floor_seconds: register.float_gauges(
                "credit_meter_floor_seconds",
                "The time below which events are too late, in seconds since 1970. One worker tells it.",
                &[],
            ),
            meter_time_held_seconds: register.float_gauges(
                "credit_meter_meter_time_held_seconds",
                "For how long a partition that is not applied to its end has held meter time back.",
                &["topic", "partition"],
            ),
            sweep_failures: register.counter(
                "credit_meter_sweep_failures_total",
                "Rounds in which a shard's idle accounts that were due could not be renewed; they wait for the next.",
            ),
            swept: register.counters(
                "credit_meter_swept_steps_total",
                "Steps that the sweeper took for accounts without usage, by what they did.",
                &["step"],
            ),
            forgotten: register.counter(
                "credit_meter_forgotten_accounts_total",
                "Times that identities of an account's days below the floor were deleted.",
            ),
            outbox_entries: register.gauge(
                "credit_meter_outbox_entries",
                "Messages that wait in the outboxes that this worker publishes, as last seen.",
            ),
            outbox_published: register.counters(
                "credit_meter_outbox_published_total",
                "Messages from the outboxes that Kafka acknowledged.",
                &["topic"],
            ),
            outbox_oldest_seconds: register.float_gauge(
                "credit_meter_outbox_oldest_seconds",
                "Age of the oldest message that waits in the outboxes that this worker publishes; 0 if none waits.",
            ),
            outbox_failures: register.counter(
                "credit_meter_outbox_failures_total",
                "Attempts to publish messages from an outbox that failed; they are made again.",
            ),
            applied_delay: register.delays(
                "credit_meter_event_applied_delay_seconds",
                "Time from a usage event's append to the reply that applied it.",
                &APPLIED_DELAY_BUCKETS,
            ),
            rollovers: register
                .counter("credit_meter_rollovers_total", "Cycles whose close was published by this worker, each once."),
            rollover_delay: register.histogram(
                "credit_meter_rollover_delay_seconds",
                "Time from a cycle's end to the append of its first statement, by the broker's clock.",
                &ROLLOVER_DELAY_BUCKETS,
            ),
            accounts: Accounts::new(&mut register),
            ready: register.gauges(
                "credit_meter_ready",
                "Whether a check of /readyz holds: 1, or 0. All must hold.",
                &["check"],
            ),
            stalled_seconds: register.float_gauge(
                "credit_meter_stalled_seconds",
                "For how long the position of a partition has stood still while its records wait; 0 if none does.",
            ),
            kafka_brokers_up: register.gauge(
                "credit_meter_kafka_brokers_up",
                "Brokers that the consumer is connected to, and that answer. It connects to those that it needs.",
            ),
            redis_up: register.gauge("credit_meter_redis_up", "Whether Redis answers for every shard: 1, or 0."),
            audits: register.counters("credit_meter_audits_total", "Audits by how they ended.", &["result"]),
            audit_accounts: register
                .gauge("credit_meter_audit_accounts_checked", "Accounts that the last audit has compared."),
            audit_mismatches: register
                .gauge("credit_meter_audit_mismatches", "Differences between the log and Redis in the last audit."),
            audit_lag_records: register.gauge(
                "credit_meter_audit_lag_records",
                "Usage records at the end of the last audit that lay beyond the positions it has audited.",
            ),
            audit_timestamp: register.gauge(
                "credit_meter_audit_timestamp_seconds",
                "When the last audit ended, since 1970; 0 in a process that audits nothing.",
            ),
            registry: register.registry,
            names: register.names,
        };
        for outcome in COMMAND_OUTCOMES {
            metrics.commands.with_label_values(&[outcome.name()]);
        }
        for kind in CALL_REFUSALS {
            metrics.call_refusals.with_label_values(&[kind]);
        }
        for result in [AUDIT_CLEAN, AUDIT_MISMATCHED, AUDIT_FAILED] {
            metrics.audits.with_label_values(&[result]);
        }
        for step in Step::NAMES {
            metrics.swept.with_label_values(&[step]);
        }
        for result in Reload::ALL {
            metrics.catalogue_reloads.with_label_values(&[result.name()]);
        }
        for script in SCRIPTS {
            metrics.call_seconds.with_label_values(&[script]);
        }
        metrics
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_sets_start_at_zero() {
        init_actions(["test_started"]);
        init_plans(["test_plan"], &["test_type".to_owned()]);
        let text = render();
        for line in [
            "credit_meter_events_total{action=\"test_started\",outcome=\"charged\"} 0",
            "credit_meter_credits_charged_total{credit_type=\"test_type\",plan=\"test_plan\"} 0",
            "credit_meter_accounts{plan=\"test_plan\",state=\"exhausted\"} 0",
            "credit_meter_denied_total{reason=\"overage_limit\"} 0",
            "credit_meter_dead_letters_total{reason=\"too_late\"} 0",
            "credit_meter_call_refusals_total{kind=\"outbox_full\"} 0",
            "credit_meter_commands_total{outcome=\"refused\"} 0",
            "credit_meter_call_duration_seconds_count{script=\"apply\"} 0",
            concat!("credit_meter_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn enums_index_their_own_counter() {
        record_denied(Denial::OverageLimit, 0);
        record_dead_letters(*DeadReason::ALL.last().unwrap(), 0);
        for (index, reason) in DeadReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        for (index, denial) in Denial::ALL.into_iter().enumerate() {
            assert_eq!(denial as usize, index);
        }
    }

    #[test]
    fn lag_has_an_age_only_while_records_wait() {
        set_lag("test.lag", 3, 0, Duration::from_secs(9));
        assert!(render().contains("credit_meter_lag_seconds{partition=\"3\",topic=\"test.lag\"} 0\n"));
        set_lag("test.lag", 3, 2, Duration::from_secs(9));
        assert!(render().contains("credit_meter_lag_seconds{partition=\"3\",topic=\"test.lag\"} 9\n"));
        forget_lag("test.lag", 3);
        assert!(!render().contains("test.lag"));
    }

    #[test]
    fn connections_are_numbered() {
        let first = record_redis_connect();
        assert!(record_redis_connect() > first);
    }

    #[test]
    fn names_follow_the_conventions() {
        for name in names() {
            assert!(name.starts_with("credit_meter_"), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        }
    }
}
