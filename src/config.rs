//! The configuration: defaults, then a file, then the environment, then flags. Nothing else reads settings.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::ledger::time::moment;

/// Bounds of values.
mod check;
/// The layers: file, environment, flags.
mod load;
/// Values that are shown to nobody.
mod secret;

pub use load::{ConfigError, at_line, read_catalogue, read_catalogue_file};
pub use secret::Secret;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub kafka: Kafka,
    pub redis: Redis,
    pub http: Http,
    pub catalogue: CatalogueFile,
    pub events: Events,
    pub time: Time,
    pub usage: Usage,
    pub batch: Batch,
    pub outbox: Outbox,
    pub metrics: Metrics,
    pub health: Health,
    pub log: Log,
    pub debug: Debug,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    pub brokers: String,
    pub group: String,
    /// Static membership: a restarted worker takes its partitions back without a rebalance.
    pub instance_id: Option<String>,
    #[serde(with = "duration")]
    pub session_timeout: Duration,
    /// Where a first start begins to read usage; see [`StartFrom`].
    pub start_from: StartFrom,
    pub topics: Topics,
    /// Given to librdkafka as they are.
    pub properties: BTreeMap<String, Secret>,
}

/// Where a first start begins to read usage. Commands are always read from the beginning: they make the accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    Earliest,
    Latest,
    /// With the first record that was appended at this time or later, in ms.
    Time(i64),
}

impl std::str::FromStr for StartFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<StartFrom, String> {
        match text {
            "earliest" => Ok(StartFrom::Earliest),
            "latest" => Ok(StartFrom::Latest),
            time => moment(time).map(StartFrom::Time).ok_or_else(|| {
                format!("`{text}` is none of earliest, latest, a date (in UTC) and a time like 2026-01-31T12:00:00Z")
            }),
        }
    }
}

impl<'de> Deserialize<'de> for StartFrom {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<StartFrom, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    pub usage: String,
    pub commands: String,
    pub denied: String,
    pub alerts: String,
    pub cycles: String,
    pub ledger: String,
    pub ticks: String,
    pub dead_letter: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    pub url: Secret,
    pub prefix: String,
    /// Fixed at the first start.
    pub shards: u32,
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// How often its eviction policy is looked at.
    #[serde(with = "duration")]
    pub probe_every: Duration,
    pub tls: RedisTls,
    pub sentinel: Sentinel,
}

/// Files in PEM, for addresses that begin with `rediss`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisTls {
    /// Who may have signed the servers' certificates; without it the system's authorities.
    pub ca: Option<PathBuf>,
    /// What this program shows to servers that ask for it.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// What Sentinels themselves ask for; `redis.url` has what Redis asks for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sentinel {
    pub username: Option<String>,
    pub password: Option<Secret>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    pub listen: String,
    /// Whether it tells of accounts.
    pub accounts: bool,
    /// Connections at once; more wait until one ends.
    pub connections_max: usize,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CatalogueFile {
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    #[serde(with = "duration")]
    pub late_after: Duration,
    #[serde(with = "duration")]
    pub early_limit: Duration,
    #[serde(with = "duration")]
    pub restamp_tolerance: Duration,
    pub age_from: AgeFrom,
    pub max_bytes: usize,
    /// Dead records among `dead_letters_among` offsets of a partition beyond which it halts.
    pub dead_letters_max: usize,
    pub dead_letters_among: usize,
}

/// Meter time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Time {
    #[serde(with = "duration")]
    pub tick_every: Duration,
}

/// Usage by day, member and action.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    pub breakdown: bool,
    #[serde(with = "duration")]
    pub keep: Duration,
}

/// Which record timestamp an event's age is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgeFrom {
    /// The broker's (`LogAppendTime`).
    Append,
    /// The producer's (`CreateTime`): for test topics and loads of history.
    Create,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    pub max_events: usize,
    pub max_bytes: usize,
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Records that wait in the worker before it stops reading.
    pub queue_max: usize,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outbox {
    pub publish_after: PublishAfter,
    /// Copies that a message waits for, unless it leaves as soon as it is applied.
    pub replicas: u32,
    pub max_entries: usize,
    #[serde(with = "duration")]
    pub lease: Duration,
    #[serde(with = "duration")]
    pub poll: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishAfter {
    /// Redis has applied what it tells of.
    Applied,
    /// Replicas have it too.
    Replicated,
    /// It is on the disks of the primary and of replicas.
    Synced,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// The wait between two counts of all accounts.
    #[serde(with = "duration")]
    pub census_every: Duration,
    /// Accounts that a count reads in a second, at most.
    pub census_rate: usize,
    pub per_account: PerAccount,
    pub per_account_max: usize,
    pub allowlist: Vec<String>,
}

/// Accounts that have a series of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PerAccount {
    Off,
    /// Those that are low or exhausted.
    Alarmed,
    /// Those of the list.
    Allowlist,
}

/// What makes a worker unready.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    #[serde(with = "duration")]
    pub stall_after: Duration,
    #[serde(with = "duration")]
    pub outbox_after: Duration,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A `tracing` filter, as in `RUST_LOG`.
    pub filter: String,
    pub format: LogFormat,
    /// Lines that wait for a stderr that takes none; what comes on top is lost.
    pub queue_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// For tests only.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Debug {
    /// The named place at which the process ends as if killed.
    pub failpoint: Option<String>,
}

impl Default for Kafka {
    fn default() -> Kafka {
        Kafka {
            brokers: "127.0.0.1:9092".into(),
            group: "credit-meter".into(),
            instance_id: None,
            session_timeout: Duration::from_secs(45),
            start_from: StartFrom::Earliest,
            topics: Topics::default(),
            properties: BTreeMap::new(),
        }
    }
}

impl Default for Topics {
    fn default() -> Topics {
        Topics {
            usage: "credits.usage".into(),
            commands: "credits.commands".into(),
            denied: "credits.denied".into(),
            alerts: "credits.alerts".into(),
            cycles: "credits.cycles".into(),
            ledger: "credits.ledger".into(),
            ticks: "credits.ticks".into(),
            dead_letter: "credits.dead-letter".into(),
        }
    }
}

impl Default for Redis {
    fn default() -> Redis {
        Redis {
            url: "redis://127.0.0.1:6379/".into(),
            prefix: "credit-meter".into(),
            shards: 16,
            timeout: Duration::from_secs(10),
            probe_every: Duration::from_secs(60),
            tls: RedisTls::default(),
            sentinel: Sentinel::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Http {
        Http { listen: "127.0.0.1:9464".into(), accounts: false, connections_max: 256 }
    }
}

impl Default for CatalogueFile {
    fn default() -> CatalogueFile {
        CatalogueFile { path: "config/catalogue.toml".into() }
    }
}

impl Default for Events {
    fn default() -> Events {
        Events {
            late_after: Duration::from_secs(72 * 3600),
            early_limit: Duration::from_secs(5 * 60),
            restamp_tolerance: Duration::from_secs(10 * 60),
            age_from: AgeFrom::Append,
            max_bytes: 1024 * 1024,
            dead_letters_max: 1_000,
            dead_letters_among: 10_000,
        }
    }
}

impl Default for Time {
    fn default() -> Time {
        Time { tick_every: Duration::from_secs(10) }
    }
}

impl Default for Usage {
    fn default() -> Usage {
        Usage { breakdown: true, keep: Duration::from_secs(400 * 24 * 3600) }
    }
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { max_events: 16_000, max_bytes: 16 * 1024 * 1024, max_age: Duration::from_millis(5), queue_max: 300_000 }
    }
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox {
            publish_after: PublishAfter::Applied,
            replicas: 1,
            max_entries: 100_000,
            lease: Duration::from_secs(10),
            poll: Duration::from_secs(1),
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            census_every: Duration::from_secs(5 * 60),
            census_rate: 5_000,
            per_account: PerAccount::Alarmed,
            per_account_max: 1_000,
            allowlist: Vec::new(),
        }
    }
}

impl Default for Health {
    fn default() -> Health {
        Health { stall_after: Duration::from_secs(30), outbox_after: Duration::from_secs(60) }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { filter: "info".into(), format: LogFormat::Text, queue_max: 16_384 }
    }
}

mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    /// `72h`, `10min`, `5ms`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| D::Error::custom(format!("`{text}` is no duration: {error}")))
    }
}
