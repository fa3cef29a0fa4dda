//! The topics that the meter needs: which there must be, with what settings, and how to make them.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier};
use rdkafka::admin::{ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;

use super::client::{self, ANSWER_TIMEOUT, BrokerError, Cluster, Reasons, TopicView};
use crate::config::{AgeFrom, Config};

const TIMESTAMP_TYPE: &str = "message.timestamp.type";
const CLEANUP_POLICY: &str = "cleanup.policy";
const RETENTION_MS: &str = "retention.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";

/// What a dead letter has more than its record: the headers that say why and where from.
const DEAD_LETTER_HEADERS_BYTES: i64 = 64 * 1024;
/// What Kafka's topics take by themselves: a whole batch of the client (a million bytes), which may hold several messages with
/// hundreds of denials each.
const BATCH_BYTES: i64 = 1_048_588;
/// Of the oldest snapshot of Redis that one would restore; what came after it must still be in the log.
/// New topics keep a week, existing ones must keep a day at least.
const SNAPSHOT_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
const SNAPSHOT_AGE_MIN: Duration = Duration::from_secs(24 * 3600);
/// Ticks are kept for those who look.
const TICKS_AGE: Duration = Duration::from_secs(24 * 3600);
const TICKS_AGE_MIN: Duration = Duration::from_secs(60);
/// Until all brokers know a new topic and its partitions are led.
const CREATE_WAIT: Duration = Duration::from_secs(30);

/// A topic that the meter needs.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: Expect,
    pub settings: Vec<(&'static str, Rule)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Exactly(i32),
    AtLeast(i32),
}

/// What a setting must be, and what it is for a new topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    Is(&'static str),
    AtLeast(i64),
    /// -1 (no bound) or at least so much.
    Keeps {
        least: i64,
        new: i64,
    },
    /// At least the largest of these topics' and so much more.
    ExceedsEach {
        topics: Vec<String>,
        by: i64,
    },
    /// Where there are replicas, one copy is not enough for an acknowledgement.
    TwoInSync,
}

/// What is wrong with a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub remedy: String,
}

/// A topic of the plan, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicReport {
    pub topic: String,
    /// `None`: it does not exist.
    pub view: Option<TopicView>,
    pub findings: Vec<Finding>,
}

/// The topics that a configuration asks for, in the order in which they are made.
pub fn topic_plan(config: &Config) -> Vec<TopicSpec> {
    let topics = &config.kafka.topics;
    let least = config.events.late_after + SNAPSHOT_AGE_MIN;
    let new = config.events.late_after + SNAPSHOT_AGE;
    let kept = (RETENTION_MS, Rule::Keeps { least: millis(least), new: millis(new) });
    let deleted = (CLEANUP_POLICY, Rule::Is("delete"));
    let for_ever = [(RETENTION_MS, Rule::Is("-1")), (RETENTION_BYTES, Rule::Is("-1"))];
    // History is kept by its own time, so a bound would delete it at once.
    let (input_time, usage_kept) = match config.events.age_from {
        AgeFrom::Append => ((TIMESTAMP_TYPE, Rule::Is("LogAppendTime")), kept.clone()),
        AgeFrom::Create => {
            let kept = (RETENTION_MS, Rule::Keeps { least: millis(least), new: -1 });
            ((TIMESTAMP_TYPE, Rule::Is("CreateTime")), kept)
        }
    };
    let inputs = vec![topics.usage.clone(), topics.commands.clone()];
    let room = (MAX_MESSAGE_BYTES, Rule::AtLeast(BATCH_BYTES));
    let spec = |name: &str, partitions: Expect, settings: Vec<(&'static str, Rule)>| TopicSpec {
        name: name.to_owned(),
        partitions,
        settings: settings.into_iter().chain([deleted.clone(), (MIN_INSYNC_REPLICAS, Rule::TwoInSync)]).collect(),
    };
    let many = Expect::AtLeast(1);
    vec![
        spec(&topics.usage, many, vec![input_time.clone(), usage_kept]),
        // Commands have one order.
        spec(&topics.commands, Expect::Exactly(1), [vec![input_time], for_ever.to_vec()].concat()),
        spec(&topics.denied, many, vec![kept.clone(), room.clone()]),
        spec(&topics.alerts, many, vec![room.clone()]),
        // Statements are read years later.
        spec(&topics.cycles, many, [for_ever.to_vec(), vec![room.clone()]].concat()),
        spec(&topics.ledger, many, [for_ever.to_vec(), vec![room]].concat()),
        // Only the newest count.
        spec(
            &topics.ticks,
            Expect::Exactly(1),
            vec![
                (TIMESTAMP_TYPE, Rule::Is("LogAppendTime")),
                (RETENTION_MS, Rule::Keeps { least: millis(TICKS_AGE_MIN), new: millis(TICKS_AGE) }),
            ],
        ),
        spec(
            &topics.dead_letter,
            many,
            vec![kept, (MAX_MESSAGE_BYTES, Rule::ExceedsEach { topics: inputs, by: DEAD_LETTER_HEADERS_BYTES })],
        ),
    ]
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Whose time the records of a topic bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// The broker's; else their producer's.
    pub by_append: bool,
    /// How long they are kept after it; `None`: for ever.
    pub kept_ms: Option<i64>,
}

type Settings = BTreeMap<String, String>;

/// Makes and checks topics.
pub struct Admin {
    client: AdminClient<Reasons>,
    cluster: Cluster,
    plan: Vec<TopicSpec>,
    brokers: String,
}

impl Admin {
    pub fn new(config: &Config) -> Result<Admin, BrokerError> {
        let made = client::settings(&config.kafka, &[], &[]).create_with_context(Reasons::default());
        let client = made.map_err(BrokerError::settings)?;
        let cluster = Cluster::new(&config.kafka)?;
        Ok(Admin { client, cluster, plan: topic_plan(config), brokers: config.kafka.brokers.clone() })
    }

    /// The number of brokers, once one has answered.
    pub async fn brokers(&self) -> Result<usize, BrokerError> {
        Ok(self.cluster.view().await?.brokers)
    }

    /// Makes the topics that do not exist, leaves the others as they are, and names those that it made.
    pub async fn create_topics(&self, partitions: i32, replication: i32) -> Result<Vec<String>, BrokerError> {
        let mut made = Vec::new();
        let mut existing = self.cluster.view().await?.topics;
        for spec in &self.plan {
            if existing.contains_key(&spec.name) {
                continue;
            }
            // Later topics are sized after earlier ones.
            let settings = self.settings(existing.keys()).await?;
            self.create(spec, partitions, replication, &settings).await?;
            made.push(spec.name.clone());
            existing = self.led(&spec.name).await?;
        }
        Ok(made)
    }

    async fn create(
        &self,
        spec: &TopicSpec,
        partitions: i32,
        replication: i32,
        others: &BTreeMap<String, Settings>,
    ) -> Result<(), BrokerError> {
        let partitions = match spec.partitions {
            Expect::Exactly(exactly) => exactly,
            Expect::AtLeast(_) => partitions,
        };
        let values = spec.settings.iter().filter_map(|(name, rule)| {
            let value = new_value(rule, replication, others)?;
            Some((*name, value))
        });
        let values: Vec<(&str, String)> = values.collect();
        let mut topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(replication));
        for (name, value) in &values {
            topic = topic.set(name, value);
        }
        let refused = |reason: String| BrokerError::Refused { what: format!("create topic {}", spec.name), reason };
        let created = self.client.create_topics([&topic], &options()).await;
        let created = created.map_err(|error| refused(error.to_string()))?;
        match created.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) => Ok(()),
            Some(Err((_, code))) => Err(refused(code.to_string())),
            None => Err(refused("no answer for the topic".to_owned())),
        }
    }

    /// Waits until a new topic is there for everyone.
    async fn led(&self, topic: &str) -> Result<BTreeMap<String, TopicView>, BrokerError> {
        let deadline = tokio::time::Instant::now() + CREATE_WAIT;
        loop {
            let topics = self.cluster.view().await?.topics;
            if topics.get(topic).is_some_and(|view| view.led) {
                return Ok(topics);
            }
            if tokio::time::Instant::now() > deadline {
                let reason = format!("its partitions have no leader after {} s", CREATE_WAIT.as_secs());
                return Err(BrokerError::Refused { what: format!("serve topic {topic}"), reason });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Compares every topic of the plan with what is there.
    pub async fn check_topics(&self) -> Result<Vec<TopicReport>, BrokerError> {
        let views = self.cluster.view().await?.topics;
        let settings = self.settings(views.keys()).await?;
        let report = |spec: &TopicSpec| {
            let view = views.get(&spec.name).cloned();
            let findings = match &view {
                None => vec![missing()],
                Some(view) => self.findings(spec, view, &settings),
            };
            TopicReport { topic: spec.name.clone(), view, findings }
        };
        Ok(self.plan.iter().map(report).collect())
    }

    fn findings(&self, spec: &TopicSpec, view: &TopicView, all: &BTreeMap<String, Settings>) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(wrong_partitions(spec, view.partitions));
        if !view.led {
            findings.push(Finding {
                what: "not every partition has a leader".to_owned(),
                remedy: "bring back the brokers that hold it".to_owned(),
            });
        }
        let Some(found) = all.get(&spec.name).filter(|found| !found.is_empty()) else {
            findings.push(settings_hidden());
            return findings;
        };
        for (name, rule) in &spec.settings {
            let value = found.get(*name).map(String::as_str);
            let Some(wanted) = wrong_value(rule, value, view.replication, all) else { continue };
            findings.push(Finding {
                what: format!("{name} is {}, not {wanted}", value.unwrap_or("not told")),
                remedy: self.alter(&spec.name, name, &wanted),
            });
        }
        findings
    }

    /// Which time the records of an input topic bear, and how long they are kept.
    pub async fn stamps(&self, topic: &String) -> Result<Stamps, BrokerError> {
        let settings = self.settings([topic].into_iter()).await?;
        let setting = |name: &str| settings.get(topic).and_then(|settings| settings.get(name));
        let kept_ms = setting(RETENTION_MS).and_then(|ms| ms.parse().ok()).filter(|ms| *ms >= 0);
        Ok(Stamps { by_append: setting(TIMESTAMP_TYPE).is_some_and(|kind| kind == "LogAppendTime"), kept_ms })
    }

    /// The command that lets producers stamp the records of a topic.
    pub fn alter_stamps(&self, topic: &str) -> String {
        self.alter(topic, TIMESTAMP_TYPE, &Wanted { value: "CreateTime".to_owned(), or_more: false })
    }

    fn alter(&self, topic: &str, setting: &str, wanted: &Wanted) -> String {
        format!(
            "kafka-configs --bootstrap-server {} --alter --entity-type topics --entity-name {topic} \
             --add-config {setting}={}",
            self.brokers, wanted.value
        )
    }

    /// The settings of the plan's topics, of those that exist.
    async fn settings(
        &self,
        existing: impl Iterator<Item = &String>,
    ) -> Result<BTreeMap<String, Settings>, BrokerError> {
        let existing: Vec<&String> = existing.collect();
        let asked: Vec<ResourceSpecifier> = self
            .plan
            .iter()
            .filter(|spec| existing.contains(&&spec.name))
            .map(|spec| ResourceSpecifier::Topic(&spec.name))
            .collect();
        if asked.is_empty() {
            return Ok(BTreeMap::new());
        }
        let refused =
            |reason: String| BrokerError::Refused { what: "describe the topics' settings".to_owned(), reason };
        let answers = self.client.describe_configs(&asked, &options()).await;
        let mut settings = BTreeMap::new();
        for answer in answers.map_err(|error| refused(error.to_string()))? {
            let resource = answer.map_err(|code| refused(code.to_string()))?;
            if let OwnedResourceSpecifier::Topic(name) = &resource.specifier {
                settings.insert(name.clone(), entries(&resource));
            }
        }
        Ok(settings)
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT)).operation_timeout(Some(ANSWER_TIMEOUT))
}

fn entries(resource: &ConfigResource) -> Settings {
    let told = resource.entries.iter().filter_map(|entry| Some((entry.name.clone(), entry.value.clone()?)));
    told.collect()
}

fn missing() -> Finding {
    Finding {
        what: "it does not exist, or its user may not see it".to_owned(),
        remedy: "make it with `credit-meter check --create-topics`, or give the user Describe on it".to_owned(),
    }
}

/// Brokers tell no settings to who may not read them, and no error.
fn settings_hidden() -> Finding {
    Finding {
        what: "its settings are not told".to_owned(),
        remedy: "give the user DescribeConfigs on it, so that they can be checked".to_owned(),
    }
}

fn wrong_partitions(spec: &TopicSpec, found: i32) -> Option<Finding> {
    match spec.partitions {
        Expect::Exactly(exactly) if found != exactly => Some(Finding {
            what: format!("it has {found} partitions, not {exactly}"),
            remedy: format!("delete {} and make it again before anything is sent to it", spec.name),
        }),
        Expect::AtLeast(least) if found < least => Some(Finding {
            what: format!("it has {found} partitions, not at least {least}"),
            remedy: format!("add partitions to {}", spec.name),
        }),
        Expect::Exactly(_) | Expect::AtLeast(_) => None,
    }
}

/// The value that a setting should have.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    value: String,
    or_more: bool,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.value, if self.or_more { " or more" } else { "" })
    }
}

/// What a setting should be, if it is not.
fn wrong_value(
    rule: &Rule,
    found: Option<&str>,
    replication: usize,
    all: &BTreeMap<String, Settings>,
) -> Option<Wanted> {
    let number = found.and_then(|value| value.parse::<i64>().ok());
    let at_least = |least: i64| {
        let enough = number.is_some_and(|number| number >= least);
        (!enough).then(|| Wanted { value: least.to_string(), or_more: true })
    };
    match rule {
        Rule::Is(value) => (found != Some(*value)).then(|| Wanted { value: (*value).to_owned(), or_more: false }),
        Rule::Keeps { .. } if number == Some(-1) => None,
        Rule::AtLeast(least) | Rule::Keeps { least, .. } => at_least(*least),
        Rule::ExceedsEach { topics, by } => largest(topics, all).and_then(|largest| at_least(largest + by)),
        Rule::TwoInSync if replication > 1 => at_least(2),
        Rule::TwoInSync => None,
    }
}

/// The value for a new topic, where it is not the broker's to choose.
fn new_value(rule: &Rule, replication: i32, others: &BTreeMap<String, Settings>) -> Option<String> {
    match rule {
        Rule::Is(value) => Some((*value).to_owned()),
        Rule::AtLeast(least) => Some(least.to_string()),
        Rule::Keeps { new, .. } => Some(new.to_string()),
        Rule::ExceedsEach { topics, by } => largest(topics, others).map(|largest| (largest + by).to_string()),
        Rule::TwoInSync => (replication > 1).then(|| "2".to_owned()),
    }
}

fn largest(topics: &[String], all: &BTreeMap<String, Settings>) -> Option<i64> {
    let bytes = topics.iter().filter_map(|topic| all.get(topic)?.get(MAX_MESSAGE_BYTES)?.parse().ok());
    bytes.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &[(&str, &str, &str)]) -> BTreeMap<String, Settings> {
        let mut all: BTreeMap<String, Settings> = BTreeMap::new();
        for (topic, name, value) in settings {
            all.entry((*topic).to_owned()).or_default().insert((*name).to_owned(), (*value).to_owned());
        }
        all
    }

    #[test]
    fn settings_are_compared_by_their_rule() {
        let inputs = of(&[("usage", MAX_MESSAGE_BYTES, "1048588"), ("commands", MAX_MESSAGE_BYTES, "2000000")]);
        let kept = Rule::Keeps { least: 100, new: 500 };
        let larger = Rule::ExceedsEach { topics: vec!["usage".into(), "commands".into()], by: 65_536 };
        let check = |rule: &Rule, found: Option<&str>, replication: usize, wanted: Option<&str>| {
            let wrong = wrong_value(rule, found, replication, &inputs).map(|wanted| wanted.to_string());
            assert_eq!(wrong.as_deref(), wanted, "{rule:?} {found:?}");
        };
        check(&Rule::Is("delete"), Some("delete"), 1, None);
        check(&Rule::Is("delete"), Some("compact"), 1, Some("delete"));
        check(&Rule::Is("delete"), None, 1, Some("delete"));
        check(&kept, Some("-1"), 1, None);
        check(&kept, Some("100"), 1, None);
        check(&kept, Some("99"), 1, Some("100 or more"));
        check(&larger, Some("2065536"), 1, None);
        check(&larger, Some("2065535"), 1, Some("2065536 or more"));
        check(&Rule::TwoInSync, Some("1"), 1, None);
        check(&Rule::TwoInSync, Some("1"), 3, Some("2 or more"));
        check(&Rule::TwoInSync, Some("2"), 3, None);
    }

    #[test]
    fn new_topics_pass_their_own_check() {
        let plan = topic_plan(&Config::default());
        let mut all = BTreeMap::new();
        for spec in &plan {
            let mut settings = of(&[(&spec.name, MAX_MESSAGE_BYTES, "1048588")]).remove(&spec.name).unwrap();
            for (name, rule) in &spec.settings {
                settings.extend(new_value(rule, 3, &all).map(|value| ((*name).to_owned(), value)));
            }
            all.insert(spec.name.clone(), settings);
        }
        for spec in &plan {
            for (name, rule) in &spec.settings {
                let found = all[&spec.name].get(*name).map(String::as_str);
                assert_eq!(wrong_value(rule, found, 3, &all), None, "{} {name}", spec.name);
            }
        }
        for spec in &plan[2..6] {
            let (_, room) = spec.settings.iter().find(|(name, _)| *name == MAX_MESSAGE_BYTES).expect("it is sent to");
            let wrong = wrong_value(room, Some("100000"), 3, &all).map(|wanted| wanted.to_string());
            assert_eq!(wrong.as_deref(), Some("1048588 or more"), "{}", spec.name);
        }
    }

    #[test]
    fn commands_ledger_and_statements_are_kept_for_ever() {
        let config = Config::default();
        for spec in topic_plan(&config) {
            let topics = &config.kafka.topics;
            let for_ever = [&topics.commands, &topics.cycles, &topics.ledger].contains(&&spec.name);
            let kept = spec.settings.contains(&(RETENTION_MS, Rule::Is("-1")));
            assert_eq!(kept, for_ever, "{}", spec.name);
            assert!(spec.settings.contains(&(CLEANUP_POLICY, Rule::Is("delete"))), "{}", spec.name);
        }
    }

    #[test]
    fn commands_have_one_partition() {
        let plan = topic_plan(&Config::default());
        let commands = plan.iter().find(|spec| spec.name == "credits.commands").unwrap();
        assert_eq!(wrong_partitions(commands, 1), None);
        let finding = wrong_partitions(commands, 8).unwrap();
        assert_eq!(finding.what, "it has 8 partitions, not 1");
    }
}
