//! What the worker looks after every second: lag, standstill, the shards' catalogue, Redis' settings, and commits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Done, Worker};
use crate::app::stall::{Stalled, Standing};
use crate::http::{Check, name_shards};
use crate::ingest::client::topic_of;
use crate::ingest::consumer::ToConsumer;
use crate::metrics;

/// The files of workers are not changed at the same moment. Long enough for any way of bringing them out.
const OTHER_CATALOGUE_GRACE: Duration = Duration::from_secs(10);

impl Worker {
    /// Measures lag, notices a stall, and commits positions for lag tools.
    pub(super) fn status(&mut self) {
        let progress = self.parts.pipeline.progress();
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let mut standing: Vec<Standing> = Vec::new();
        for each in &progress {
            let end = self.ends.get(&each.partition).map_or(each.read, |(end, _)| *end);
            let lag = (end - each.applied).max(0);
            standing.push(Standing { partition: each.partition, applied: each.applied, lag });
            let age_ms = each.oldest_append_ms.map_or(0, |append_ms| (now_ms - append_ms).max(0));
            let topic = topic_of(&self.parts.config.kafka.topics, each.partition.input);
            metrics::set_lag(topic, each.partition.index, lag, Duration::from_millis(age_ms as u64));
        }
        metrics::set_queue_records(self.parts.pipeline.queued());
        // One of which nothing is applied any more stands still, however many of its records are known to wait.
        for partition in self.halted.keys().flatten() {
            standing.retain(|own| own.partition != *partition);
            standing.push(Standing { partition: *partition, applied: 0, lag: 1 });
        }
        self.progress(&standing);
        self.commit();
    }

    /// Says whether positions move.
    fn progress(&mut self, standing: &[Standing]) {
        if self.parts.pipeline.recalling() && self.recall_fault.is_none() {
            // Reading what was published takes as long as it is long.
            self.stall.clear();
        }
        let stalled = self.stall.look(Instant::now(), standing);
        metrics::set_stalled(stalled.map_or(Duration::ZERO, |stalled| stalled.since));
        if !self.halted.is_empty() {
            return; // the reason stands until the group assigns anew
        }
        let stall_after = self.parts.config.health.stall_after;
        let Some(Stalled { partition, lag, since }) = stalled.filter(|stalled| stalled.since >= stall_after) else {
            return self.parts.health.set(Check::Progress, Ok(()));
        };
        let since = humantime::format_duration(Duration::from_secs(since.as_secs()));
        let in_transaction = |own: &Standing| own.partition == partition && self.in_transaction(own);
        let why = match &self.recall_fault {
            Some(fault) => format!(": {fault}"),
            None if standing.iter().any(in_transaction) => {
                let topic = topic_of(&self.parts.config.kafka.topics, partition.input);
                format!(
                    ": a producer has not ended its transaction in {topic}/{}; kafka-transactions.sh describe-producers \
                     --topic {topic} --partition {} names it",
                    partition.index, partition.index
                )
            }
            None => match self.parts.pipeline.awaited_commands(partition) {
                Some(commands) => format!(": it waits for {commands} commands that came before them"),
                None => String::new(),
            },
        };
        let reason = format!("{lag} records of {partition} wait and its position has not moved for {since}{why}");
        self.parts.health.set(Check::Progress, Err(reason));
    }

    /// Whether all is applied but what is in transactions, or behind them.
    fn in_transaction(&self, standing: &Standing) -> bool {
        let ends = self.ends.get(&standing.partition);
        ends.is_some_and(|&(end, stable)| stable < end && standing.applied >= stable)
    }

    /// A shard that prices by another catalogue waits for this worker's file to be renewed, or for the shard.
    pub(super) fn watch_catalogue(&mut self) {
        let others = self.parts.pipeline.other_catalogues();
        let Some((shard, stored)) = others.first() else {
            if self.other_catalogue_since.take().is_some() && self.parts.pipeline.halted() == 0 {
                metrics::set_shards_halted(0);
                self.parts.health.set(Check::Shards, Ok(()));
            }
            return;
        };
        self.parts.other_catalogue.notify_one();
        let since = *self.other_catalogue_since.get_or_insert_with(Instant::now);
        if since.elapsed() < OTHER_CATALOGUE_GRACE {
            return;
        }
        let reason = format!(
            "shard {shard} is halted: it is priced by catalogue version {} (hash {}), and {} is not that: give this \
             worker the same file, it goes on by itself",
            stored.version,
            stored.hash,
            self.parts.config.catalogue.path.display(),
        );
        metrics::set_shards_halted(self.parts.pipeline.halted() + others.len());
        self.parts.health.set(Check::Shards, Err(reason));
    }

    /// A Redis that evicts keys loses credits without a word.
    pub(super) fn probe_redis(&mut self) {
        if self.probed.elapsed() < self.parts.config.redis.probe_every {
            return;
        }
        self.probed = Instant::now();
        let (store, done, shards) = (self.parts.store.clone(), self.done.clone(), self.parts.config.redis.shards);
        tokio::spawn(async move {
            if let Ok(Some(policy)) = store.evicts().await {
                for shard in 0..shards {
                    let reason = format!(
                        "redis has maxmemory-policy {policy}: it may delete counters; set it to noeviction, make sure that \
                         nothing is lost (`credit-meter audit`), then restart the worker"
                    );
                    let _ = done.send(Done::Halt { shard, reason });
                }
            }
        });
    }

    pub(super) fn commit(&self) {
        let progress = self.parts.pipeline.progress();
        let positions: Vec<_> = progress.iter().map(|each| (each.partition, each.applied)).collect();
        if !positions.is_empty() {
            let _ = self.parts.reader.send(ToConsumer::Commit { positions });
        }
    }

    pub(super) fn forget_lag(&mut self) {
        for each in self.parts.pipeline.progress() {
            let topic = topic_of(&self.parts.config.kafka.topics, each.partition.input);
            metrics::forget_lag(topic, each.partition.index);
        }
    }
}

/// Which shards are halted, and why.
pub(super) fn halted_shards(by_reason: &BTreeMap<String, BTreeSet<u32>>) -> String {
    name_shards(by_reason, " is halted", " are halted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_halted_shards_are_named_with_their_reasons() {
        let by_reason = BTreeMap::from([
            ("redis may evict".to_owned(), BTreeSet::from([3, 1])),
            ("a key is lost".to_owned(), BTreeSet::from([2])),
        ]);
        let told = halted_shards(&by_reason);
        assert_eq!(told, "shard 2 is halted: a key is lost; also: shards 1, 3 are halted: redis may evict");
    }
}
