//! Whether all that the meter needs is there. Each line says what to do where it is not.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;

use super::Ended;
use super::output::Output;
use crate::config::{Config, ConfigError, PublishAfter, read_catalogue};
use crate::ingest::admin::{Admin, TopicReport};
use crate::ingest::client::{ANSWER_TIMEOUT, BrokerError};
use crate::ingest::watermarks::Watermarks;
use crate::ledger::shard::is_name_of_rebuild;
use crate::outbox;
use crate::report::state;
use crate::store::BEING_REBUILT;
use crate::store::info::{RedisInfo, cluster_info};

/// EXPIRE and SET options that the scripts use, and replication by effects.
const REDIS_MIN: (u32, u32) = (6, 2);

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Make the topics that do not exist
    #[arg(long)]
    pub create_topics: bool,
    /// Partitions of new topics; the commands topic always has one
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: i32,
    /// Copies of each partition of new topics
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    pub replication: i32,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    ok: bool,
    detail: String,
}

#[derive(Debug, Default)]
struct Lines(Vec<Line>);

impl Lines {
    fn add(&mut self, name: &str, result: Result<String, String>) {
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        self.0.push(Line { name: name.to_owned(), ok, detail });
    }

    fn ok(&self) -> bool {
        self.0.iter().all(|line| line.ok)
    }

    fn text(&self) -> String {
        let width = self.0.iter().map(|line| line.name.len()).max().unwrap_or(0);
        let text = |line: &Line| {
            let verdict = if line.ok { "OK  " } else { "FAIL" };
            format!("{verdict}  {:width$}  {}", line.name, line.detail)
        };
        self.0.iter().map(text).collect::<Vec<_>>().join("\n")
    }
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Line],
}

pub async fn run(args: CheckArgs, config: Result<Config, ConfigError>, output: Output) -> anyhow::Result<Ended> {
    let mut lines = Lines::default();
    match config {
        Err(error) => lines.add("config", Err(error.to_string())),
        Ok(config) => {
            lines.add("config", Ok(format!("group {}, prefix {}", config.kafka.group, config.redis.prefix)));
            check_catalogue(&config, &mut lines);
            let committed = check_kafka(&args, &config, &mut lines).await.unwrap_or_else(|error| {
                lines.add("kafka", Err(format!("{error:#}")));
                false
            });
            if let Err(error) = check_redis(&config, committed, &mut lines).await {
                lines.add("redis", Err(format!("{error:#}")));
            }
        }
    }
    let report = Report { ok: lines.ok(), checks: &lines.0 };
    output.answer(&report, || lines.text())?;
    Ok(if report.ok { Ended::Well } else { Ended::Badly })
}

fn check_catalogue(config: &Config, lines: &mut Lines) {
    let read = read_catalogue(config).map_err(|error| error.to_string());
    lines.add(
        "catalogue",
        read.map(|catalogue| {
            let (actions, plans) = (catalogue.actions.len(), catalogue.plans.len());
            format!(
                "{} version {}: {actions} actions, {plans} plans",
                config.catalogue.path.display(),
                catalogue.id.version
            )
        }),
    );
}

/// Gives whether a meter has worked as this group before.
async fn check_kafka(args: &CheckArgs, config: &Config, lines: &mut Lines) -> anyhow::Result<bool> {
    let admin = Admin::new(config)?;
    let brokers = admin.brokers().await?;
    lines.add("kafka", Ok(format!("{} answers; brokers in the cluster: {brokers}", config.kafka.brokers)));
    let mut made = Vec::new();
    if args.create_topics {
        made = admin.create_topics(args.partitions, args.replication).await?;
    }
    for report in admin.check_topics().await? {
        lines.add(&report.topic, topic_line(&report, made.contains(&report.topic)));
    }
    let committed = has_committed(config).await;
    let line = committed.clone().map(|any| if any { "has committed" } else { "nothing is committed yet" }.to_owned());
    lines.add(&format!("group {}", config.kafka.group), line.map_err(|error| error.to_string()));
    Ok(committed.unwrap_or(false))
}

/// What the group has committed for the commands' one partition is asked for only to see whether it is told: that takes
/// Describe on the group. Whether the user may join it, only joining tells.
async fn has_committed(config: &Config) -> Result<bool, BrokerError> {
    let (watermarks, started) = (Watermarks::new(&config.kafka)?, Instant::now());
    loop {
        match watermarks.committed_metadata(&config.kafka.topics.commands, 1).await {
            Ok(committed) => return Ok(committed.iter().any(|metadata| !metadata.is_empty())),
            // Brokers that have just started look for the group's coordinator first.
            Err(BrokerError::NoAnswer { .. }) if started.elapsed() < ANSWER_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn topic_line(report: &TopicReport, made: bool) -> Result<String, String> {
    let findings = report.findings.iter().map(|finding| format!("{}: {}", finding.what, finding.remedy));
    match (&report.view, report.findings.is_empty()) {
        (Some(view), true) => {
            let made = if made { ", made now" } else { "" };
            Ok(format!("partitions {}, replication {}{made}", view.partitions, view.replication))
        }
        _ => Err(findings.collect::<Vec<_>>().join("; ")),
    }
}

/// `committed`: a meter has worked before, so there must be a state.
async fn check_redis(config: &Config, committed: bool, lines: &mut Lines) -> anyhow::Result<()> {
    let store = state::store_without_shards(config)?;
    for (place, primary) in store.sentinels().await {
        let told = primary.map(|primary| format!("says that the primary is at {primary}"));
        lines.add(&format!("sentinel {place}"), told.map_err(|error| error.to_string()));
    }
    let primaries = store.primaries().await;
    let (primaries, cluster) = primaries.map_err(|error| anyhow!("{error}; is it up, and is redis.url right?"))?;
    if cluster {
        let told = cluster_info(&store, &primaries[0]).await?;
        lines.add("redis cluster", cluster_line(&told, primaries.len()));
    }
    for node in &primaries {
        let name = if cluster { format!("redis {}", node.address) } else { "redis".to_owned() };
        match RedisInfo::ask(&store, node).await {
            Ok(info) => check_primary(config, &name, &info, lines),
            Err(error) => lines.add(&name, Err(error.to_string())),
        }
    }
    if let Some(durable) = outbox::durable(&config.outbox) {
        let can = store.check_durable(&durable).await;
        let level = format!("publish_after = {}", durable.level.name());
        lines.add("outbox", can.map(|()| level).map_err(|error| error.to_string()));
    }
    let root = store.stored_root().await?;
    lines.add(
        "state",
        match root {
            None if committed => Err(format!(
                "none under {}, but the group has committed: redis was emptied or is another one; restore its data, or \
                 `credit-meter rebuild`",
                config.redis.prefix
            )),
            None => Ok(format!("none under {} yet: the first start makes it", config.redis.prefix)),
            Some(root) => match state::readable(&root) {
                Err(error) => Err(error.to_string()),
                Ok(()) if root.shards != config.redis.shards => Err(format!(
                    "it has {} shards, which cannot change: set redis.shards = {}",
                    root.shards, root.shards
                )),
                Ok(()) if is_being_rebuilt(config).await? => Err(BEING_REBUILT.to_owned()),
                Ok(()) => Ok(format!("generation {}, {} shards", root.generation, root.shards)),
            },
        },
    );
    Ok(())
}

async fn is_being_rebuilt(config: &Config) -> anyhow::Result<bool> {
    let (store, root) = state::open_with_root(config).await?;
    for shard in 0..root.shards {
        if store.shard_state(shard).await?.generation.is_some_and(|name| is_name_of_rebuild(&name)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn check_primary(config: &Config, name: &str, info: &RedisInfo, lines: &mut Lines) {
    let told = |field: &str| info.field(field).unwrap_or("not told").to_owned();
    lines.add(name, redis_version(info));
    lines.add(
        &format!("{name} maxmemory-policy"),
        match told("maxmemory_policy").as_str() {
            "noeviction" => Ok("noeviction".to_owned()),
            other => Err(format!(
                "it is {other}, so redis may throw counters away: set maxmemory-policy noeviction in redis.conf"
            )),
        },
    );
    lines.add(
        &format!("{name} persistence"),
        match told("aof_enabled").as_str() {
            "1" => Ok("appendonly yes".to_owned()),
            _ => Err("appendonly is off, so a restart loses what came since the last snapshot: set appendonly yes in \
                  redis.conf"
                .to_owned()),
        },
    );
    if config.outbox.publish_after != PublishAfter::Applied {
        let (replicas, wanted) = (told("connected_slaves"), config.outbox.replicas);
        let enough = replicas.parse().is_ok_and(|replicas: u32| replicas >= wanted);
        let few = format!("{replicas} are connected, outbox.replicas = {wanted}: messages would wait for ever");
        lines.add(&format!("{name} replicas"), if enough { Ok(replicas) } else { Err(few) });
    }
}

fn cluster_line(told: &RedisInfo, primaries: usize) -> Result<String, String> {
    let field = |name: &str| told.field(name).unwrap_or("not told").to_owned();
    let (state, slots) = (field("cluster_state"), field("cluster_slots_ok"));
    if state == "ok" && slots == "16384" {
        return Ok(format!("{primaries} primaries, all slots served"));
    }
    Err(format!("state {state}, {slots} of 16384 slots served: redis-cli --cluster check names what is missing"))
}

/// Valkey tells two versions: its own, and that of the Redis that it stands for.
fn redis_version(info: &RedisInfo) -> Result<String, String> {
    let version = info.field("redis_version").unwrap_or("of an unknown version");
    match (info.version(), info.field("valkey_version")) {
        (Some(found), Some(valkey)) if found >= REDIS_MIN => Ok(format!("valkey {valkey}, for redis {version}")),
        (Some(found), None) if found >= REDIS_MIN => Ok(format!("redis {version}")),
        _ => Err(format!("it is redis {version}: {}.{} or newer is needed", REDIS_MIN.0, REDIS_MIN.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::admin::Finding;
    use crate::ingest::client::TopicView;

    #[test]
    fn one_failed_line_fails_the_check() {
        let mut lines = Lines::default();
        lines.add("config", Ok("fine".into()));
        assert!(lines.ok());
        lines.add("kafka", Err("no answer".into()));
        assert!(!lines.ok());
        assert_eq!(lines.text(), "OK    config  fine\nFAIL  kafka   no answer");
    }

    #[test]
    fn a_topic_line_names_every_fault_with_its_remedy() {
        let view = TopicView { partitions: 8, replication: 1, led: true };
        let finding = Finding { what: "it has 8 partitions, not 1".into(), remedy: "make it again".into() };
        let mut report = TopicReport { topic: "t".into(), view: Some(view), findings: vec![] };
        assert_eq!(topic_line(&report, true), Ok("partitions 8, replication 1, made now".into()));
        report.findings = vec![finding.clone(), finding];
        let told = "it has 8 partitions, not 1: make it again; it has 8 partitions, not 1: make it again";
        assert_eq!(topic_line(&report, false), Err(told.into()));
    }
}
