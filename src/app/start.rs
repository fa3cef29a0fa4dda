//! From an unknown state to open shards: a first start, a return, or a refusal.
//!
//! An emptied Redis looks like one that was never used. What tells them apart is Kafka: the group commits the
//! state's generation for every partition before the first call that applies anything, and the ledger topic, which is
//! kept for ever, has a line about it.

use std::time::{Duration, Instant};

use super::{Job, install};
use crate::config::{Config, StartFrom};
use crate::http::{Check, Health};
use crate::ingest::client::{ANSWER_TIMEOUT, BrokerError, Cluster, topic_of};
use crate::ingest::producer::{ProduceError, Producer};
use crate::ingest::watermarks::Watermarks;
use crate::ingest::{scan, state_line};
use crate::ledger::call::{Partition, SCHEMA};
use crate::ledger::catalogue::Catalogue;
use crate::ledger::shard::{InitCall, InitReply, NameReply, is_being_rebuilt, is_name_of_rebuild};
use crate::note;
use crate::outbox;
use crate::store::{Root, ShardState, Store, StoreError};

/// The wait between tries while Kafka or Redis is away.
const RETRY: Duration = Duration::from_secs(1);
/// How often one that waits for a rebuild looks, beyond [`RETRY`]: it makes clients each time.
const REBUILD_LOOK: Duration = Duration::from_secs(4);

/// Why a meter does not start. Waiting does not help with any of these.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "redis holds no state under `{prefix}`, but kafka's group `{group}` has applied records of state \
         {generation}: redis was emptied or is another one; restore its data, or `credit-meter rebuild`; nothing is counted \
         meanwhile"
    )]
    Emptied { prefix: String, group: String, generation: String },
    #[error(
        "redis holds state {stored} under `{prefix}`, but kafka's group `{group}` has applied records of state \
         {generation}: give each meter its own redis.prefix and kafka.group"
    )]
    OtherGeneration { prefix: String, group: String, stored: String, generation: String },
    #[error(
        "shard {shard} of `{prefix}` is empty, the others are not: restore its data, or `credit-meter rebuild`; nothing \
         is counted meanwhile"
    )]
    ShardEmptied { prefix: String, shard: u32 },
    #[error("redis.shards = {configured}, but the state was made with {stored}: the number is fixed, set it back")]
    OtherShards { configured: u32, stored: u32 },
    #[error("the state's layout is version {stored}, this program knows {SCHEMA}: run the newer program")]
    NewerSchema { stored: u32 },
    #[error(
        "shard {shard} has a layout of version {stored}, this program writes {SCHEMA}: stop all meters, then `credit-meter \
         rebuild` with --shard {shard}, and with one more for each other shard, counts them anew from the log; or run the older \
         program"
    )]
    OlderSchema { shard: u32, stored: u32 },
    #[error(
        "the catalogue has version {own}, the state was priced by version {stored} (hash {hash}): use that file, or \
         raise the version if the content has changed"
    )]
    OtherCatalogue { own: u32, stored: u32, hash: String },
    #[error("{place}: {reason} (the state was priced by version {stored})")]
    CatalogueEdits { place: String, reason: String, stored: u32 },
    #[error(
        "the state was priced by catalogue version {stored}, which an older program has not kept: start once with the file \
         of that version, then with this one"
    )]
    CatalogueNotKept { stored: u32 },
    #[error("the catalogue that shard {shard} was priced by cannot be read ({reason}): run the newer program")]
    CatalogueUnreadable { shard: u32, reason: String },
    #[error(
        "shard {shard} has priced events dated up to {up_to} by the older catalogue while the other shards took this one, \
         which prices them otherwise: `credit-meter rebuild --shard {shard}` counts it anew"
    )]
    PricedMeanwhile { shard: u32, up_to: String },
    #[error("topic {topic} has {partitions} partitions, but commands have one order: it must have 1")]
    CommandsPartitions { topic: String, partitions: i32 },
    #[error("shard {shard} holds state {stored}, the root key another: restore redis from one snapshot")]
    Torn { shard: u32, stored: String },
    #[error(
        "a rebuild makes the state under `{prefix}` anew: this worker waits until it is done; if none is running, one was \
         interrupted: `credit-meter rebuild` goes on from where it was"
    )]
    BeingRebuilt { prefix: String },
    #[error(
        "{} in kafka's group `{group}`, and a rebuild counts in the order in which records were appended, so it must be alone: stop \
         the workers (one that has ended without leaving is a member for kafka.session_timeout)",
        workers(*.members)
    )]
    Members { group: String, members: usize },
    #[error(
        "another rebuild has taken over shard {shard}, or redis has fallen back meanwhile: `credit-meter rebuild` goes on from \
         where it was"
    )]
    TakenOver { shard: u32 },
    #[error("no state was ever begun under `{prefix}`: there is nothing to rebuild, start a meter")]
    NothingToRebuild { prefix: String },
    #[error(
        "{topic}/{partition} starts at {start}, but {needed} is needed: the log does not reach back far enough; restore \
         redis from a snapshot that is younger than the topic's retention"
    )]
    LogTooShort { topic: String, partition: i32, start: i64, needed: i64 },
    #[error(
        "shard {shard} has lost its fence but not its accounts: `credit-meter rebuild --shard {shard}` deletes what is \
         left of it first"
    )]
    Leftovers { shard: u32 },
    #[error("the ledger topic tells of a state that this program cannot read ({reason}): run the newer program")]
    UnreadableState { reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

fn workers(count: usize) -> String {
    if count == 1 { "1 worker is".to_owned() } else { format!("{count} workers are") }
}

/// Opens the state, waiting for Kafka and Redis as long as it takes, and gives its generation. A rebuild works under another
/// name, see [`Job::state_name`].
pub async fn open(
    config: &Config,
    catalogue: &Catalogue,
    store: &Store,
    watermarks: &Watermarks,
    producer: &Producer,
    health: &Health,
    job: Job,
) -> Result<String, StartError> {
    loop {
        match try_open(config, catalogue, store, watermarks, producer, job).await {
            Ok(generation) => {
                health.set(Check::Redis, Ok(()));
                health.set(Check::Kafka, Ok(()));
                return Ok(generation);
            }
            Err(error @ StartError::BeingRebuilt { .. }) => {
                health.set(Check::Redis, Err(error.to_string()));
                tokio::time::sleep(REBUILD_LOOK).await;
            }
            Err(StartError::Store(error @ (StoreError::Indefinite { .. } | StoreError::Refused { .. }))) => {
                health.set(Check::Redis, Err(error.to_string()));
            }
            Err(StartError::Produce(error)) => health.set(Check::Kafka, Err(error.to_string())),
            Err(StartError::Broker(error @ (BrokerError::NoAnswer { .. } | BrokerError::NoTopic { .. }))) => {
                health.set(Check::Kafka, Err(error.to_string()));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_open(
    config: &Config,
    catalogue: &Catalogue,
    store: &Store,
    watermarks: &Watermarks,
    producer: &Producer,
    job: Job,
) -> Result<String, StartError> {
    let topics = &config.kafka.topics;
    let cluster = Cluster::new(&config.kafka)?;
    let commands_partitions = cluster.partitions(&topics.commands).await?;
    if commands_partitions != 1 {
        let topic = topics.commands.clone();
        return Err(StartError::CommandsPartitions { topic, partitions: commands_partitions });
    }
    let usage_partitions = cluster.partitions(&topics.usage).await?;
    if let Some(durable) = outbox::durable(&config.outbox) {
        store.check_durable(&durable).await?;
    }

    // Before Redis is asked: a worker that starts beside this one commits, and tells of the root, only after it has made it.
    let mut used = committed(config, watermarks, usage_partitions).await?;
    if used.is_none() {
        used = last_root(config).await?.map(|root| root.generation);
    }
    let stored = store.stored_root().await?;
    let (prefix, group) = (config.redis.prefix.clone(), config.kafka.group.clone());
    let root = match (stored, &used) {
        (Some(root), _) => root,
        (None, Some(generation)) => {
            return Err(StartError::Emptied { prefix, group, generation: generation.clone() });
        }
        (None, None) => {
            let proposed = first_root(config, watermarks, usage_partitions).await?;
            store.root(&proposed).await?
        }
    };
    if root.schema > SCHEMA {
        return Err(StartError::NewerSchema { stored: root.schema });
    }
    if root.shards != config.redis.shards {
        return Err(StartError::OtherShards { configured: config.redis.shards, stored: root.shards });
    }
    if let Some(generation) = used.clone().filter(|generation| *generation != root.generation) {
        return Err(StartError::OtherGeneration { prefix, group, stored: root.generation, generation });
    }
    let call = InitCall {
        generation: job.state_name(&root.generation),
        shards: root.shards,
        catalogue: catalogue.id.clone(),
        catalogue_text: catalogue.text.clone(),
        grown: None,
        starts: root.starts(),
        first_start: used.is_none(),
    };
    install::everywhere(config, catalogue, store, &call).await?;
    if used.is_none() {
        let data = serde_json::to_string(&root).expect("a root has only text keys");
        state_line::write(config, producer, &root.generation, &data).await?;
    }
    Ok(root.generation)
}

/// The generation that the group has committed beside its offsets.
async fn committed(
    config: &Config,
    watermarks: &Watermarks,
    usage_partitions: i32,
) -> Result<Option<String>, BrokerError> {
    let topics = &config.kafka.topics;
    let mut committed = watermarks.committed_metadata(&topics.usage, usage_partitions).await?;
    committed.extend(watermarks.committed_metadata(&topics.commands, 1).await?);
    Ok(committed.into_iter().find(|metadata| !metadata.is_empty()))
}

/// The root that the ledger topic tells of.
async fn last_root(config: &Config) -> Result<Option<Root>, StartError> {
    let config = config.clone();
    let line = tokio::task::spawn_blocking(move || state_line::last(&config)).await.expect("reading does not panic")?;
    let unreadable = |error: serde_json::Error| StartError::UnreadableState { reason: error.to_string() };
    line.map(|line| serde_json::from_str(&line).map_err(unreadable)).transpose()
}

/// What a rebuild finds.
pub struct Plan {
    pub root: Root,
    /// Shards that hold nothing.
    pub empty: Vec<u32>,
    pub usage_partitions: i32,
    /// A rebuild has been at the others and was interrupted.
    pub goes_on: bool,
    /// Records that are not applied by every shard.
    pub records: i64,
}

/// Finds out what is missing, and whether the log reaches back to it.
/// `wiped` are shards that will be emptied first.
pub async fn plan_rebuild(
    config: &Config,
    store: &Store,
    watermarks: &Watermarks,
    wiped: &[u32],
) -> Result<Plan, StartError> {
    let topics = &config.kafka.topics;
    let prefix = config.redis.prefix.clone();
    let usage_partitions = Cluster::new(&config.kafka)?.partitions(&topics.usage).await?;
    let root = match store.stored_root().await? {
        Some(root) => root,
        None => last_root(config).await?.ok_or(StartError::NothingToRebuild { prefix: prefix.clone() })?,
    };
    if root.shards != config.redis.shards {
        return Err(StartError::OtherShards { configured: config.redis.shards, stored: root.shards });
    }
    let used = committed(config, watermarks, usage_partitions).await?;
    if let Some(generation) = used.filter(|generation| *generation != root.generation) {
        let group = config.kafka.group.clone();
        return Err(StartError::OtherGeneration { prefix, group, stored: root.generation, generation });
    }
    let mut empty = Vec::new();
    let mut states = Vec::new();
    for shard in 0..root.shards {
        let mut state = store.shard_state(shard).await?;
        if wiped.contains(&shard) {
            state = ShardState::default();
        }
        match state.schema {
            Some(stored) if stored > SCHEMA => return Err(StartError::NewerSchema { stored }),
            Some(stored) if stored < SCHEMA => return Err(StartError::OlderSchema { shard, stored }),
            Some(_) | None => {}
        }
        match &state.generation {
            None if wiped.contains(&shard) => empty.push(shard),
            None if store.has_keys(shard).await? => return Err(StartError::Leftovers { shard }),
            None => empty.push(shard),
            Some(stored) if *stored != root.generation && !is_being_rebuilt(stored, &root.generation) => {
                return Err(StartError::Torn { shard, stored: stored.clone() });
            }
            Some(_) => {}
        }
        states.push(state);
    }
    let starts: std::collections::BTreeMap<_, _> = root.starts().into_iter().collect();
    let mut records = 0;
    for partition in (0..usage_partitions).map(Partition::usage).chain([Partition::COMMANDS]) {
        let needed = |state: &ShardState| match state.generation {
            None => starts.get(&partition).copied().unwrap_or(0),
            Some(_) => position(state, partition),
        };
        let needed = states.iter().map(needed).min().unwrap_or(0);
        let topic = topic_of(topics, partition.input);
        let (start, end) = watermarks.range(topic, partition.index).await?;
        if start > needed {
            let (topic, partition) = (topic.to_owned(), partition.index);
            return Err(StartError::LogTooShort { topic, partition, start, needed });
        }
        records += end - needed;
    }
    let name = |state: &ShardState| state.generation.as_deref().is_some_and(is_name_of_rebuild);
    let goes_on = states.iter().any(name);
    Ok(Plan { root, empty, usage_partitions, goes_on, records })
}

/// Whether a rebuild is alone in the group. Who has just ended is given time to leave it.
pub async fn alone(config: &Config) -> Result<(), StartError> {
    let (cluster, group) = (Cluster::new(&config.kafka)?, &config.kafka.group);
    let until = Instant::now() + config.kafka.session_timeout + ANSWER_TIMEOUT;
    let mut told = false;
    loop {
        let error = match cluster.members(group).await {
            Ok(0) => return Ok(()),
            Ok(members) => StartError::Members { group: group.clone(), members },
            // All brokers are asked, and one that is down is enough. A worker that runs is refused in any case.
            Err(error) if Instant::now() >= until => {
                note!("whether workers run is not known: {error}");
                return Ok(());
            }
            Err(error) => error.into(),
        };
        if Instant::now() >= until {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            note!("waiting: {error}");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Gives the shards that are there the name under which this rebuild works, whatever rebuild has been at them before.
pub async fn take_over(store: &Store, root: &Root, state_name: &str) -> Result<(), StartError> {
    for shard in 0..root.shards {
        let Some(name) = store.shard_state(shard).await?.generation else { continue };
        if name != root.generation && !is_being_rebuilt(&name, &root.generation) {
            return Err(StartError::Torn { shard, stored: name });
        }
        name_anew(store, shard, &name, state_name, None).await?;
    }
    Ok(())
}

/// Gives the shards that a rebuild has named the name of their state again, as far as they are counted.
pub async fn give_up(store: &Store, root: &Root) -> Result<u32, StartError> {
    let mut given = 0;
    for shard in 0..root.shards {
        let name = store.shard_state(shard).await?.generation;
        if let Some(name) = name.filter(|name| is_being_rebuilt(name, &root.generation)) {
            name_anew(store, shard, &name, &root.generation, Some(now_s())).await?;
            given += 1;
        }
    }
    Ok(given)
}

/// Gives all shards the name of their state again.
pub async fn give_back(store: &Store, root: &Root, state_name: &str) -> Result<(), StartError> {
    for shard in 0..root.shards {
        name_anew(store, shard, state_name, &root.generation, Some(now_s())).await?;
    }
    Ok(())
}

/// By the clock of who rebuilds: no other tells how often a state was made that is gone.
fn now_s() -> u32 {
    chrono::Utc::now().timestamp().try_into().unwrap_or_default()
}

/// Waits for a Redis that does not answer.
async fn name_anew(store: &Store, shard: u32, from: &str, to: &str, rebuilt_s: Option<u32>) -> Result<(), StartError> {
    let mut unanswered = false;
    loop {
        match store.name(shard, from, to, rebuilt_s).await {
            Ok(NameReply::Named) => return Ok(()),
            // The call whose answer got lost was done.
            Ok(NameReply::OtherGeneration(Some(stored))) if unanswered && stored == to => return Ok(()),
            Ok(NameReply::OtherGeneration(_)) => return Err(StartError::TakenOver { shard }),
            Err(error @ (StoreError::Indefinite { .. } | StoreError::Refused { .. })) => {
                if !std::mem::replace(&mut unanswered, true) {
                    note!("waiting: {error}");
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Makes what a rebuild has found missing, as it was at the first start.
pub async fn make_missing(
    catalogue: &Catalogue,
    store: &Store,
    plan: &Plan,
    state_name: &str,
) -> Result<(), StartError> {
    store.root(&plan.root).await?;
    let call = InitCall {
        generation: state_name.to_owned(),
        shards: plan.root.shards,
        catalogue: catalogue.id.clone(),
        catalogue_text: catalogue.text.clone(),
        grown: None,
        starts: plan.root.starts(),
        first_start: true,
    };
    for shard in &plan.empty {
        match store.init(*shard, &call).await? {
            InitReply::Ready => {}
            InitReply::OtherCatalogue(stored) => {
                let own = catalogue.id.version;
                return Err(StartError::OtherCatalogue { own, stored: stored.version, hash: stored.hash });
            }
            InitReply::OtherGeneration(_) => return Err(StartError::TakenOver { shard: *shard }),
            // The meter's own start says what is wrong.
            _ => {}
        }
    }
    Ok(())
}

/// Where a shard is in a partition.
pub fn position(state: &ShardState, partition: Partition) -> i64 {
    state.positions.iter().find(|(own, _)| *own == partition).map_or(0, |(_, offset)| *offset)
}

/// Where a first start begins.
async fn first_root(config: &Config, watermarks: &Watermarks, usage_partitions: i32) -> Result<Root, BrokerError> {
    let topics = &config.kafka.topics;
    let mut usage_starts = Vec::new();
    let at_time = match config.kafka.start_from {
        StartFrom::Time(time_ms) => {
            let (kafka, topic) = (config.kafka.clone(), topics.usage.clone());
            let asking = tokio::task::spawn_blocking(move || scan::offsets_at(&kafka, &topic, time_ms));
            asking.await.expect("asking does not panic")?
        }
        StartFrom::Earliest | StartFrom::Latest => Default::default(),
    };
    for partition in 0..usage_partitions {
        let (start, end) = watermarks.range(&topics.usage, partition).await?;
        usage_starts.push(match config.kafka.start_from {
            StartFrom::Earliest => start,
            StartFrom::Latest => end,
            StartFrom::Time(_) => at_time.get(&partition).copied().unwrap_or(end).min(end),
        });
    }
    Ok(Root {
        schema: SCHEMA,
        generation: uuid::Uuid::now_v7().to_string(),
        shards: config.redis.shards,
        usage_starts,
        commands_start: watermarks.range(&topics.commands, 0).await?.0,
    })
}
