//! Bounds of the values: what would be read but could not work.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Config, PublishAfter, Topics};
use crate::ledger::call::CALL_EVENTS_MAX;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: usize = 1024 * 1024;
/// Kafka's bound for the name of a topic.
const TOPIC_BYTES_MAX: usize = 249;

/// Properties of librdkafka that are set by keys of their own, or that the meter's guarantees rest on.
const OWN_PROPERTIES: [(&str, &str); 10] = [
    ("bootstrap.servers", "set kafka.brokers instead"),
    ("metadata.broker.list", "set kafka.brokers instead"),
    ("group.id", "set kafka.group instead"),
    ("group.instance.id", "set kafka.instance_id instead"),
    ("session.timeout.ms", "set kafka.session_timeout instead"),
    ("enable.auto.commit", "positions are kept beside the counters"),
    ("enable.auto.offset.store", "positions are kept beside the counters"),
    ("auto.offset.reset", "a lost position halts, it never jumps"),
    ("check.crcs", "a batch that is spoiled halts its partition, it is never charged"),
    ("isolation.level", "what was aborted is never charged"),
];

/// A key whose value cannot be.
#[derive(Debug, PartialEq)]
pub struct Wrong {
    pub key: String,
    pub reason: String,
}

type Checked = Result<(), Wrong>;

impl Config {
    pub fn check(&self) -> Checked {
        self.check_numbers()?;
        self.check_durations()?;
        self.check_texts()?;
        self.kafka.topics.check()
    }

    fn check_numbers(&self) -> Checked {
        let batch = &self.batch;
        within("redis.shards", self.redis.shards as usize, 1, 4096)?;
        within("events.max_bytes", self.events.max_bytes, 1, 1024 * MIB)?;
        within("events.dead_letters_max", self.events.dead_letters_max, 1, 1_000_000_000)?;
        within("events.dead_letters_among", self.events.dead_letters_among, 1, 1_000_000_000)?;
        within("batch.max_events", batch.max_events, 1, CALL_EVENTS_MAX)?;
        within("batch.max_bytes", batch.max_bytes, 1, 1024 * MIB)?;
        within("http.connections_max", self.http.connections_max, 1, 100_000)?;
        within("log.queue_max", self.log.queue_max, 1, 1_000_000)?;
        // A queue that cannot hold a batch would never fill one.
        within("batch.queue_max", batch.queue_max, batch.max_events, 100_000_000)?;
        within("outbox.max_entries", self.outbox.max_entries, 1, 100_000_000)?;
        within("metrics.census_rate", self.metrics.census_rate, 1, 1_000_000)?;
        // Each is a series a credit type: beyond, Prometheus is the wrong place to ask.
        within("metrics.per_account_max", self.metrics.per_account_max, 1, 100_000)?;
        let listed = || format!("has {} accounts: metrics.per_account_max is less", self.metrics.allowlist.len());
        let fits = self.metrics.allowlist.len() <= self.metrics.per_account_max;
        ensure(fits, || "metrics.allowlist".into(), listed)?;
        // WAIT for no replica would prove nothing; WAITAOF still asks for the primary's disk.
        let least = usize::from(self.outbox.publish_after == PublishAfter::Replicated);
        within("outbox.replicas", self.outbox.replicas as usize, least, 100)
    }

    fn check_durations(&self) -> Checked {
        let (events, outbox) = (&self.events, &self.outbox);
        // Brokers take at most half an hour (`group.max.session.timeout.ms`).
        lasts("kafka.session_timeout", self.kafka.session_timeout, SECOND, 1800 * SECOND)?;
        lasts("redis.timeout", self.redis.timeout, Duration::from_millis(1), HOUR)?;
        lasts("redis.probe_every", self.redis.probe_every, SECOND, DAY)?;
        lasts("events.late_after", events.late_after, Duration::ZERO, 36_525 * DAY)?;
        lasts("events.early_limit", events.early_limit, Duration::ZERO, DAY)?;
        // Near midnight a second day is asked for; an hour keeps that rare.
        lasts("events.restamp_tolerance", events.restamp_tolerance, Duration::ZERO, HOUR)?;
        lasts("time.tick_every", self.time.tick_every, Duration::from_millis(100), HOUR)?;
        lasts("usage.keep", self.usage.keep, DAY, 36_525 * DAY)?;
        let (keep, late_after) = (self.usage.keep, events.late_after);
        ensure(
            keep >= late_after,
            || "usage.keep".into(),
            || format!("is {keep:?}: days to which late events still come go on for events.late_after, {late_after:?}"),
        )?;
        lasts("batch.max_age", self.batch.max_age, Duration::ZERO, 10 * SECOND)?;
        lasts("outbox.lease", outbox.lease, SECOND, HOUR)?;
        lasts("outbox.poll", outbox.poll, Duration::from_millis(1), HOUR)?;
        lasts("metrics.census_every", self.metrics.census_every, SECOND, DAY)?;
        lasts("health.stall_after", self.health.stall_after, SECOND, DAY)?;
        lasts("health.outbox_after", self.health.outbox_after, SECOND, DAY)
    }

    fn check_texts(&self) -> Checked {
        let kafka = &self.kafka;
        not_empty("kafka.brokers", &kafka.brokers)?;
        not_empty("kafka.group", &kafka.group)?;
        not_empty("kafka.instance_id", kafka.instance_id.as_deref().unwrap_or("none"))?;
        for (name, remedy) in OWN_PROPERTIES {
            let key = || format!("kafka.properties.{name}");
            ensure(!kafka.properties.contains_key(name), key, || format!("cannot be set: {remedy}"))?;
        }
        not_empty("redis.url", &self.redis.url)?;
        not_empty("redis.prefix", &self.redis.prefix)?;
        // A brace would be taken for the hash tag that keeps a shard's keys together.
        let prefix = &self.redis.prefix;
        let plain =
            prefix.chars().all(|char| !matches!(char, '{' | '}') && !char.is_whitespace() && !char.is_control());
        ensure(plain, || "redis.prefix".into(), || format!("is `{prefix}`: leave out braces and spaces"))?;
        let listen = &self.http.listen;
        let remedy = || format!("is `{listen}`: write an address and a port, like 127.0.0.1:9464");
        ensure(listen.parse::<SocketAddr>().is_ok(), || "http.listen".into(), remedy)?;
        not_empty("catalogue.path", &self.catalogue.path.to_string_lossy())
    }
}

impl Topics {
    fn check(&self) -> Checked {
        let topics = [
            ("usage", &self.usage),
            ("commands", &self.commands),
            ("denied", &self.denied),
            ("alerts", &self.alerts),
            ("cycles", &self.cycles),
            ("ledger", &self.ledger),
            ("ticks", &self.ticks),
            ("dead_letter", &self.dead_letter),
        ];
        let mut names = BTreeSet::new();
        for (key, name) in topics {
            let key = || format!("kafka.topics.{key}");
            let legal = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-');
            let good = !name.is_empty() && name.len() <= TOPIC_BYTES_MAX && name.chars().all(legal);
            let good = good && !matches!(name.as_str(), "." | "..");
            ensure(good, key, || {
                format!("is `{name}`: write 1 to {TOPIC_BYTES_MAX} of a-z, A-Z, 0-9, `.`, `_` and `-`")
            })?;
            // What is written to one of the inputs would be read again, for ever.
            ensure(names.insert(name), key, || format!("is `{name}`: another topic has that name"))?;
        }
        Ok(())
    }
}

fn within(key: &str, value: usize, least: usize, most: usize) -> Checked {
    bounded(key, value, least, most, |number| number.to_string())
}

fn lasts(key: &str, value: Duration, least: Duration, most: Duration) -> Checked {
    let show = |duration: Duration| humantime::format_duration(duration).to_string();
    bounded(key, value, least, most, show)?;
    let whole = value.subsec_nanos().is_multiple_of(1_000_000);
    ensure(whole, || key.to_owned(), || format!("is {}: nothing is finer than a millisecond", show(value)))
}

fn bounded<T: PartialOrd + Copy>(key: &str, value: T, least: T, most: T, show: impl Fn(T) -> String) -> Checked {
    let reason = || format!("is {}: write {} to {}", show(value), show(least), show(most));
    ensure(least <= value && value <= most, || key.to_owned(), reason)
}

fn not_empty(key: &str, value: &str) -> Checked {
    ensure(!value.trim().is_empty(), || key.to_owned(), || "is empty".to_owned())
}

fn ensure(good: bool, key: impl FnOnce() -> String, reason: impl FnOnce() -> String) -> Checked {
    if good { Ok(()) } else { Err(Wrong { key: key(), reason: reason() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_work_is_refused() {
        let check = |change: fn(&mut Config), message: &str| {
            let mut config = Config::default();
            change(&mut config);
            let said = config.check().err().map(|wrong| format!("{} {}", wrong.key, wrong.reason));
            assert_eq!(said.unwrap_or_default(), message);
        };
        check(|_| {}, "");
        check(|config| config.redis.shards = 0, "redis.shards is 0: write 1 to 4096");
        check(|config| config.redis.shards = 4096, "");
        check(|config| config.redis.shards = 4097, "redis.shards is 4097: write 1 to 4096");
        check(|config| config.batch.max_events = 0, "batch.max_events is 0: write 1 to 20000");
        check(|config| config.batch.max_events = 20_001, "batch.max_events is 20001: write 1 to 20000");
        check(|config| config.batch.queue_max = 15_999, "batch.queue_max is 15999: write 16000 to 100000000");
        check(|config| config.batch.queue_max = 16_000, "");
        check(|config| config.http.connections_max = 0, "http.connections_max is 0: write 1 to 100000");
        check(|config| config.batch.max_bytes = 0, "batch.max_bytes is 0: write 1 to 1073741824");
        check(|config| config.batch.max_age = 11 * SECOND, "batch.max_age is 11s: write 0s to 10s");
        check(|config| config.events.max_bytes = 0, "events.max_bytes is 0: write 1 to 1073741824");
        check(|config| config.events.restamp_tolerance = HOUR, "");
        check(
            |config| config.events.restamp_tolerance = HOUR + SECOND,
            "events.restamp_tolerance is 1h 1s: write 0s to 1h",
        );
        check(
            |config| config.events.late_after = Duration::from_micros(1_500),
            "events.late_after is 1ms 500us: nothing is finer than a millisecond",
        );
        check(|config| config.events.early_limit = 2 * DAY, "events.early_limit is 2days: write 0s to 1day");
        check(|config| config.kafka.session_timeout = Duration::ZERO, "kafka.session_timeout is 0s: write 1s to 30m");
        check(|config| config.redis.timeout = Duration::ZERO, "redis.timeout is 0s: write 1ms to 1h");
        check(|config| config.outbox.max_entries = 0, "outbox.max_entries is 0: write 1 to 100000000");
        check(|config| config.outbox.replicas = 0, "");
        check(
            |config| {
                config.outbox.publish_after = PublishAfter::Replicated;
                config.outbox.replicas = 0;
            },
            "outbox.replicas is 0: write 1 to 100",
        );
        check(|config| config.outbox.lease = Duration::ZERO, "outbox.lease is 0s: write 1s to 1h");
        check(|config| config.outbox.poll = Duration::ZERO, "outbox.poll is 0s: write 1ms to 1h");
        check(|config| config.metrics.census_rate = 0, "metrics.census_rate is 0: write 1 to 1000000");
        check(|config| config.metrics.per_account_max = 0, "metrics.per_account_max is 0: write 1 to 100000");
        check(
            |config| (config.metrics.per_account_max, config.metrics.allowlist) = (1, vec!["a".into(), "b".into()]),
            "metrics.allowlist has 2 accounts: metrics.per_account_max is less",
        );
        check(|config| config.metrics.census_every = Duration::ZERO, "metrics.census_every is 0s: write 1s to 1day");
        check(|config| config.health.stall_after = Duration::ZERO, "health.stall_after is 0s: write 1s to 1day");
        check(|config| config.health.outbox_after = Duration::ZERO, "health.outbox_after is 0s: write 1s to 1day");
        check(|config| config.kafka.brokers = " ".into(), "kafka.brokers is empty");
        check(|config| config.kafka.group = "".into(), "kafka.group is empty");
        check(|config| config.kafka.instance_id = Some("".into()), "kafka.instance_id is empty");
        check(|config| config.redis.url = "".into(), "redis.url is empty");
        check(|config| config.redis.prefix = "".into(), "redis.prefix is empty");
        check(|config| config.redis.prefix = "{a}".into(), "redis.prefix is `{a}`: leave out braces and spaces");
        check(|config| config.catalogue.path = "".into(), "catalogue.path is empty");
        check(
            |config| config.http.listen = "localhost:80".into(),
            "http.listen is `localhost:80`: write an address and a port, like 127.0.0.1:9464",
        );
        check(|config| config.http.listen = "[::]:9464".into(), "");
        let legal = "write 1 to 249 of a-z, A-Z, 0-9, `.`, `_` and `-`";
        check(|config| config.kafka.topics.usage = "".into(), &format!("kafka.topics.usage is ``: {legal}"));
        check(|config| config.kafka.topics.denied = "a b".into(), &format!("kafka.topics.denied is `a b`: {legal}"));
        check(
            |config| config.kafka.topics.dead_letter = config.kafka.topics.usage.clone(),
            "kafka.topics.dead_letter is `credits.usage`: another topic has that name",
        );
        check(
            |config| drop(config.kafka.properties.insert("auto.offset.reset".into(), "latest".into())),
            "kafka.properties.auto.offset.reset cannot be set: a lost position halts, it never jumps",
        );
    }
}
