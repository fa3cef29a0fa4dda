//! `rebuild`: from an emptied or older Redis to the state that the log comes to.
//!
//! It makes what is missing anew, with the generation and the starts that the ledger topic tells, and then works as a
//! meter until what the log held then is applied, in the order in which it was appended. That takes one reader of all partitions: it
//! begins only when it is alone in the group, and names the state's fences so that no other worker is let in before it is
//! done. Stopped, it goes on where it was: the positions are in Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Ended;
use super::output::Output;
use crate::app::start;
use crate::app::{self, Job};
use crate::config::{Config, read_catalogue};
use crate::http::{Check, Health};
use crate::ingest::client::{BrokerError, Cluster, topic_of};
use crate::ingest::clock;
use crate::ingest::watermarks::Watermarks;
use crate::ledger::call::Partition;
use crate::note;
use crate::store::{RedisStore, Root, Store, StoreError};

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A partition that is halted, or a meter that is stuck, does not get well by itself.
const STANDSTILL_MAX: Duration = Duration::from_secs(120);
/// How often it says what it waits for.
const TELL_EVERY: Duration = Duration::from_secs(30);

const GOES_ON: &str = "`credit-meter rebuild` goes on from where it was";

#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// Only say what would be made anew, and whether the log reaches back
    #[arg(long)]
    pub dry_run: bool,
    /// First delete what is left of this shard; repeat for several. Its accounts are counted anew from the log
    #[arg(long)]
    pub shard: Vec<u32>,
    /// End one that was interrupted and cannot go on, as for a partition that is halted: workers apply what is left, commands
    /// first, so that credits may be taken in another order than they were
    #[arg(long, conflicts_with_all = ["dry_run", "shard"])]
    pub give_up: bool,
}

#[derive(Serialize)]
struct GivenUp {
    generation: String,
    /// Shards that a rebuild had named.
    given: u32,
}

#[derive(Serialize)]
struct Report {
    generation: String,
    /// Shards that were empty, or are named by `--shard`.
    made: Vec<u32>,
    records: i64,
}

pub async fn run(args: RebuildArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let catalogue = read_catalogue(config)?;
    let redis = &config.redis;
    let store = Store::Redis(RedisStore::new(redis)?);
    let watermarks = Watermarks::new(&config.kafka)?;
    if let Some(shard) = args.shard.iter().find(|shard| **shard >= redis.shards) {
        bail!("--shard {shard}: there are {} shards, counted from 0", redis.shards);
    }
    if !args.dry_run {
        start::alone(config).await?;
    }
    if args.give_up {
        return give_up(&store, output).await;
    }
    let plan = start::plan_rebuild(config, &store, &watermarks, &args.shard).await?;
    if args.dry_run {
        let report =
            Report { generation: plan.root.generation.clone(), made: plan.empty.clone(), records: plan.records };
        output.answer(&report, || {
            format!(
                "{} of {} shards to be made anew; {} records to apply",
                plan.empty.len(),
                redis.shards,
                plan.records
            )
        })?;
        return Ok(Ended::Well);
    }
    // Only now: what the log cannot give back is not deleted. And before the others are named: a copy of Redis from before the
    // deletion bears another name.
    // All fences first: whoever is interrupted is told which shards to name again.
    for shard in &args.shard {
        store.wipe_fence(*shard).await?;
    }
    for shard in &args.shard {
        let keys = store.wipe(*shard).await?;
        note!("shard {shard}: {keys} keys deleted");
    }
    let job = Job::Rebuild { id: Uuid::now_v7(), usage_partitions: plan.usage_partitions };
    let state_name = job.state_name(&plan.root.generation);
    start::take_over(&store, &plan.root, &state_name).await?;
    start::make_missing(&catalogue, &store, &plan, &state_name).await?;
    note!("state {}: {} of {} shards made anew", plan.root.generation, plan.empty.len(), redis.shards);

    let (health, stop) = (Arc::new(Health::new()), CancellationToken::new());
    let (in_force, _) = watch::channel(Arc::new(catalogue));
    let meter = app::run(config.clone(), in_force, job, store.clone(), health.clone(), stop.clone());
    let mut meter = tokio::spawn(clock::watched(meter, stop.clone(), clock::START_AGAIN));
    let progress = ProgressBar::new(plan.records.max(0) as u64);
    let caught_up = follow(config, &store, &watermarks, &health, &progress);
    tokio::spawn(app::stop_on_signal(stop.clone()));
    let mut has_ended = false;
    let ended = tokio::select! {
        ended = caught_up => ended,
        ended = &mut meter => {
            has_ended = true;
            let early = || anyhow!("the meter has ended before everything was applied");
            Err(ended.context("the meter")?.err().unwrap_or_else(early))
        }
        () = stop.cancelled() => Err(anyhow!("stopped")),
    };
    stop.cancel();
    if !has_ended {
        meter.await.context("the meter")??;
    }
    let ended = ended.and_then(|()| health.state(Check::Shards).map_err(anyhow::Error::msg));
    if let Err(error) = ended {
        // What was there before is there for the workers as well.
        let changed = !plan.empty.is_empty() || plan.goes_on;
        return Err(if changed {
            error.context(GOES_ON)
        } else {
            give_back(&store, &plan.root, &state_name).await.err().unwrap_or(error)
        });
    }
    give_back(&store, &plan.root, &state_name).await?;
    progress.finish_and_clear();
    let report = Report { generation: plan.root.generation.clone(), made: plan.empty.clone(), records: plan.records };
    output.answer(&report, || {
        format!("rebuilt: {} records applied; check it with `credit-meter audit`, then start the meters", plan.records)
    })?;
    Ok(Ended::Well)
}

/// Waits for Redis, unless it is told to stop.
async fn give_back(store: &Store, root: &Root, state_name: &str) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    tokio::spawn(app::stop_on_signal(stop.clone()));
    tokio::select! {
        given = start::give_back(store, root, state_name) => Ok(given?),
        () = stop.cancelled() => Err(anyhow!("stopped before workers were let in again").context(GOES_ON)),
    }
}

async fn give_up(store: &Store, output: Output) -> anyhow::Result<Ended> {
    let root = store.stored_root().await?.context("there is no state: nothing was begun")?;
    let given = start::give_up(store, &root).await?;
    let report = GivenUp { generation: root.generation, given };
    output.answer(&report, || match given {
        0 => "no rebuild was under way".to_owned(),
        _ => format!("{given} shards are given back as far as they are counted: start the meters"),
    })?;
    Ok(Ended::Well)
}

/// Waits until every shard has applied what the log held when this began: more comes all the time.
async fn follow(
    config: &Config,
    store: &Store,
    watermarks: &Watermarks,
    health: &Health,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    let mut stands_since: Option<Instant> = None;
    let (mut ends, mut told) = (None, Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        health.alive().map_err(anyhow::Error::msg)?;
        health.state(Check::Shards).map_err(anyhow::Error::msg)?;
        match health.state(Check::Progress) {
            Ok(()) => stands_since = None,
            Err(reason) if stands_since.get_or_insert_with(Instant::now).elapsed() > STANDSTILL_MAX => {
                bail!("{reason}")
            }
            Err(_) => {}
        }
        // Kafka or Redis may be away for a moment: the meter waits for them, and so does this.
        let failing = Check::ALL.into_iter().find_map(|check| health.state(check).err());
        if let Some(reason) = failing.filter(|_| told.elapsed() > TELL_EVERY) {
            progress.suspend(|| note!("waiting: {reason}"));
            told = Instant::now();
        }
        if ends.is_none() {
            ends = log_ends(config, watermarks).await.ok();
        }
        let Some(ends) = &ends else { continue };
        let Ok(waiting) = waiting(config, store, ends).await else { continue };
        progress.set_position(progress.length().unwrap_or(0).saturating_sub(waiting as u64));
        if waiting == 0 {
            return Ok(());
        }
    }
}

async fn log_ends(config: &Config, watermarks: &Watermarks) -> Result<Vec<(Partition, i64)>, BrokerError> {
    let topics = &config.kafka.topics;
    let usage = Cluster::new(&config.kafka)?.partitions(&topics.usage).await?;
    let mut ends = Vec::new();
    for partition in (0..usage).map(Partition::usage).chain([Partition::COMMANDS]) {
        ends.push((partition, watermarks.range(topic_of(topics, partition.input), partition.index).await?.1));
    }
    Ok(ends)
}

/// Records below these ends that some shard has not applied.
async fn waiting(config: &Config, store: &Store, ends: &[(Partition, i64)]) -> Result<i64, StoreError> {
    let mut lowest: Vec<i64> = ends.iter().map(|(_, end)| *end).collect();
    for shard in 0..config.redis.shards {
        let state = store.shard_state(shard).await?;
        for ((partition, _), lowest) in ends.iter().zip(&mut lowest) {
            *lowest = start::position(&state, *partition).min(*lowest);
        }
    }
    Ok(ends.iter().zip(lowest).map(|((_, end), lowest)| end - lowest).sum())
}
