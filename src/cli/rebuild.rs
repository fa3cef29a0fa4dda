//! `rebuild`: from an emptied or older Redis to the state that the log comes to.
//!
//! It makes what is missing anew, with the generation and the starts that the ledger topic tells, and then works as a
//! meter until everything is applied. Stopped, it goes on where it was: the positions are in Redis.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Ended;
use super::output::Output;
use crate::app::{self, start};
use crate::config::{Config, read_catalogue};
use crate::http::{Check, Health};
use crate::ingest::client::{Cluster, topic_of};
use crate::ingest::watermarks::Watermarks;
use crate::ledger::call::Partition;
use crate::store::{RedisStore, Store};

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// Only say what would be made anew, and whether the log reaches back
    #[arg(long)]
    pub dry_run: bool,
    /// First delete what is left of this shard; repeat for several. Its accounts are counted anew from the log
    #[arg(long)]
    pub shard: Vec<u32>,
}

#[derive(Serialize)]
struct Report {
    generation: String,
    /// Shards that were empty.
    made: Vec<u32>,
    records: i64,
}

pub async fn run(args: RebuildArgs, config: &Config, output: Output) -> anyhow::Result<Ended> {
    let catalogue = read_catalogue(config)?;
    let redis = &config.redis;
    let store = Store::Redis(RedisStore::new(&redis.url, &redis.prefix, redis.shards, redis.timeout)?);
    let watermarks = Watermarks::new(&config.kafka)?;
    for shard in args.shard.iter().filter(|_| !args.dry_run) {
        if *shard >= redis.shards {
            bail!("--shard {shard}: there are {} shards, counted from 0", redis.shards);
        }
        let keys = store.wipe(*shard).await?;
        eprintln!("shard {shard}: {keys} keys deleted");
    }
    let plan = start::plan_rebuild(config, &store, &watermarks).await?;
    if args.dry_run {
        let report =
            Report { generation: plan.root.generation.clone(), made: plan.empty.clone(), records: plan.records };
        output.answer(&report, || {
            format!("{} of {} shards are empty; {} records to apply", plan.empty.len(), redis.shards, plan.records)
        })?;
        return Ok(Ended::Well);
    }
    start::make_missing(&catalogue, &store, &plan).await?;
    eprintln!("state {}: {} of {} shards made anew", plan.root.generation, plan.empty.len(), redis.shards);

    let (health, stop) = (Arc::new(Health::new()), CancellationToken::new());
    let meter = tokio::spawn(app::run(config.clone(), catalogue, store.clone(), health.clone(), stop.clone()));
    let progress = ProgressBar::new(plan.records.max(0) as u64);
    let caught_up = follow(config, &store, &watermarks, &health, &progress);
    let ended = tokio::select! {
        ended = caught_up => ended,
        _ = tokio::signal::ctrl_c() => bail!("stopped; the same command goes on from where it was"),
    };
    stop.cancel();
    meter.await.context("the meter")??;
    ended?;
    progress.finish_and_clear();
    let report = Report { generation: plan.root.generation.clone(), made: plan.empty.clone(), records: plan.records };
    output.answer(&report, || {
        format!("rebuilt: {} records applied; check it with `credit-meter audit`, then start the meters", plan.records)
    })?;
    Ok(Ended::Well)
}

/// Waits until every shard has applied every partition to its end.
async fn follow(
    config: &Config,
    store: &Store,
    watermarks: &Watermarks,
    health: &Health,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    let topics = &config.kafka.topics;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for check in [Check::Shards, Check::Progress] {
            if let Err(reason) = health.state(check) {
                bail!("{reason}");
            }
        }
        let usage = Cluster::new(&config.kafka)?.partitions(&topics.usage).await?;
        let partitions = (0..usage).map(Partition::usage).chain([Partition::COMMANDS]);
        let mut waiting = 0;
        for partition in partitions {
            let (_, end) = watermarks.range(topic_of(topics, partition.input), partition.index).await?;
            let mut lowest = i64::MAX;
            for shard in 0..config.redis.shards {
                lowest = lowest.min(start::position(&store.shard_state(shard).await?, partition));
            }
            waiting += (end - lowest).max(0);
        }
        progress.set_position(progress.length().unwrap_or(0).saturating_sub(waiting as u64));
        if waiting == 0 {
            return Ok(());
        }
    }
}
