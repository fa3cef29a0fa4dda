//! The audit: folds usage, commands, denials and dead letters from the log by itself, and compares what they come to
//! with Redis, while the meter goes on. Shares the ledger's prices, calendar and decisions about commands with the
//! meter, and nothing else. Writes nowhere.

/// Attempts at one event, and the readings that the records allow.
mod attempts;
/// Accounts by their commands.
mod commands;
/// Accounts by the log against Redis.
mod compare;
/// One account, event by event.
pub mod events;
/// Records to their accounts.
mod fold;
/// Redis, with positions.
mod look;
/// What is charged once.
mod once;
/// Denials and dead letters.
mod recorded;
/// What was found.
pub mod report;
/// Events priced and added up.
mod resolve;
/// Accounts in parts, so that memory is bounded.
mod slices;
/// Records by how they ended.
mod totals;
mod voids;

use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::config::Config;
use crate::ingest::client::{BrokerError, Cluster};
use crate::ingest::decode::{self, Decoder, Raw};
use crate::ingest::log::{self, LogRecord, Span};
use crate::ingest::watermarks::Watermarks;
use crate::ledger::call::{Input, Output, Partition};
use crate::ledger::catalogue::{Catalogue, CatalogueId};
use crate::store::{RedisStore, Root, StoreError};

use compare::Comparison;
use fold::{Fold, Kinds};
use look::{FirstLook, Positions};
use recorded::{DeadLetters, Denials, Names};
use report::{Report, Topics};
use resolve::Resolver;
use slices::Slice;
use totals::Totals;

/// Records between two words to whoever watches.
const TELL_EVERY: u64 = 10_000;

/// Why an audit has no result.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(
        "{topic}/{partition} starts at offset {first}, but the state counts from {needed}: the log no longer reaches \
         back to the beginning of the state"
    )]
    LogTooShort { topic: String, partition: i32, first: i64, needed: i64 },
    #[error("shard {shard} holds state {stored:?}, not that of the root key: it was emptied or restored alone")]
    OtherGeneration { shard: u32, stored: Option<String> },
    #[error(
        "the state was priced by catalogue version {} (hash {}), this one is version {} (hash {}): use that file",
        stored.version, stored.hash, own.version, own.hash
    )]
    OtherCatalogue { stored: CatalogueId, own: CatalogueId },
    #[error("shard {shard} went back while it was looked at: redis was restored or has failed over, run it again")]
    WentBack { shard: u32 },
    #[error("account {account} changes its days faster than it can be looked at")]
    Restless { account: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

pub struct Options {
    /// What the folded records and accounts of one pass may take.
    pub memory_bytes: u64,
}

/// Told how many records are read, and how many there are to read.
pub trait Watch {
    fn read(&mut self, records: u64, of: u64);
}

/// Audits a meter's state once.
pub async fn run(
    config: &Config,
    catalogue: &Catalogue,
    store: &RedisStore,
    root: &Root,
    options: &Options,
    watch: &mut dyn Watch,
) -> Result<Report, AuditError> {
    let started = Instant::now();
    let mut audit = Audit {
        config,
        catalogue,
        store,
        root,
        names: Names {
            source: config.redis.prefix.clone(),
            usage_topic: config.kafka.topics.usage.clone(),
            commands_topic: config.kafka.topics.commands.clone(),
        },
        topics: Topics { usage: config.kafka.topics.usage.clone(), commands: config.kafka.topics.commands.clone() },
        watermarks: Watermarks::new(&config.kafka)?,
        first: FirstLook::take(store, root).await?,
        dead: DeadLetters::default(),
        totals: Totals::new(root.shards),
        report: Report::default(),
        watch,
        read: 0,
        to_read: 0,
    };
    audit.check_start().await?;
    let slices = audit.slices(options).await?;
    for number in 0..slices {
        audit.pass(Slice { number, of: slices }).await?;
    }
    let lag_records = audit.lag_records().await?;
    let mut report = audit.finish();
    report.lag_records = lag_records;
    report.passes = slices;
    report.seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    Ok(report)
}

struct Audit<'a> {
    config: &'a Config,
    catalogue: &'a Catalogue,
    store: &'a RedisStore,
    root: &'a Root,
    names: Names,
    topics: Topics,
    watermarks: Watermarks,
    first: FirstLook,
    dead: DeadLetters,
    totals: Totals,
    report: Report,
    watch: &'a mut dyn Watch,
    read: u64,
    to_read: u64,
}

impl Audit<'_> {
    /// What makes a comparison meaningless.
    async fn check_start(&self) -> Result<(), AuditError> {
        for state in &self.first.shards {
            if let Some(stored) = state.catalogue.clone().filter(|stored| *stored != self.catalogue.id) {
                return Err(AuditError::OtherCatalogue { stored, own: self.catalogue.id.clone() });
            }
        }
        let topics = &self.config.kafka.topics;
        let mut needed: Vec<(&String, i32, i64)> = Vec::new();
        for (partition, start) in self.starts(&self.first.end()) {
            let topic = if partition.input == Input::Usage { &topics.usage } else { &topics.commands };
            needed.push((topic, partition.index, start));
        }
        for topic in [&topics.denied, &topics.dead_letter] {
            for partition in 0..self.partitions(topic).await? {
                needed.push((topic, partition, 0));
            }
        }
        for (topic, partition, needed) in needed {
            let (first, _) = self.watermarks.range(topic, partition).await?;
            if first > needed {
                return Err(AuditError::LogTooShort { topic: topic.clone(), partition, first, needed });
            }
        }
        Ok(())
    }

    async fn partitions(&self, topic: &str) -> Result<i32, AuditError> {
        Ok(Cluster::new(&self.config.kafka)?.partitions(topic).await?)
    }

    /// Where each input partition starts that has a position. One that came later starts at 0.
    fn starts(&self, end: &Positions) -> Vec<(Partition, i64)> {
        let mut starts = self.root.starts();
        for partition in end.partitions() {
            if !starts.iter().any(|(own, _)| *own == partition) {
                starts.push((partition, 0));
            }
        }
        starts
    }

    async fn slices(&mut self, options: &Options) -> Result<u64, AuditError> {
        let end = self.first.end();
        let spans = self.starts(&end).into_iter().map(|(partition, start)| end.at(partition) - start);
        let records: u64 = spans.map(|records| u64::try_from(records).unwrap_or(0)).sum();
        let mut accounts = 0;
        for shard in 0..self.root.shards {
            accounts += self.store.due_count(shard).await?;
        }
        // What an event is charged once for is kept beside it.
        let once = self.catalogue.actions.values().any(|action| action.charge_once.is_some());
        let slices = Slice::count(records * if once { 2 } else { 1 }, accounts, options.memory_bytes);
        self.to_read = records * slices;
        Ok(slices)
    }

    /// Audits the accounts of a slice.
    async fn pass(&mut self, slice: Slice) -> Result<(), AuditError> {
        // The order makes it consistent. Each account is looked at together with its positions. A denial below them
        // leaves its outbox only once it is published: so the outboxes are read next. What is not there any more, and
        // the dead letters, are in their topics by then: so the topics' ends are asked for last.
        let seen = look::accounts(self.store, &self.first, slice).await?;
        let mut denials = Denials::default();
        for shard in 0..self.root.shards {
            let names = &self.names;
            let add = |entry: crate::ledger::call::OutboxEntry| {
                if entry.output == Output::Denied {
                    denials.add(names, slice, &entry.account, &entry.data);
                }
            };
            self.store.outbox(shard, add).await?;
        }
        let denied_spans = self.spans(&self.config.kafka.topics.denied).await?;
        let dead_spans = self.spans(&self.config.kafka.topics.dead_letter).await?;
        tokio::task::block_in_place(|| self.fold(slice, seen, denials, &denied_spans, &dead_spans))
    }

    /// All that a topic holds now.
    async fn spans(&self, topic: &str) -> Result<Vec<Span>, AuditError> {
        let mut spans = Vec::new();
        for partition in 0..self.partitions(topic).await? {
            let (from, to) = self.watermarks.range(topic, partition).await?;
            spans.push(Span { partition, from, to });
        }
        Ok(spans)
    }

    fn fold(
        &mut self,
        slice: Slice,
        seen: Vec<look::Seen>,
        mut denials: Denials,
        denied_spans: &[Span],
        dead_spans: &[Span],
    ) -> Result<(), AuditError> {
        let kafka = &self.config.kafka;
        let names = &self.names;
        log::read(kafka, &kafka.topics.denied, denied_spans, |record| {
            denials.publish(names, slice, record.value.unwrap_or_default());
        })?;
        let dead = &mut self.dead;
        log::read(kafka, &kafka.topics.dead_letter, dead_spans, |record| dead.add(names, &record))?;

        let mut end = self.first.end();
        for seen in &seen {
            end.extend(&seen.positions);
        }
        let starts = self.starts(&end);
        let mut fold = Fold {
            catalogue: self.catalogue,
            topics: &self.topics,
            slice,
            first: &self.first,
            dead: &mut self.dead,
            totals: &mut self.totals,
            report: &mut self.report,
            accounts: FxHashMap::default(),
            kinds: Kinds::default(),
        };
        fold.see(seen);
        let mut decoder =
            Decoder::new(decode::Settings::of(&self.config.events), Arc::new(self.catalogue.conditions()));
        // Commands first: they make the accounts that usage is priced for.
        for input in [Input::Commands, Input::Usage] {
            let topic = if input == Input::Usage { &kafka.topics.usage } else { &kafka.topics.commands };
            let spans: Vec<Span> = starts
                .iter()
                .filter(|(partition, _)| partition.input == input)
                .map(|(partition, from)| Span { partition: partition.index, from: *from, to: end.at(*partition) })
                .collect();
            let (read, to_read, watch) = (&mut self.read, self.to_read, &mut *self.watch);
            log::read(kafka, topic, &spans, |record| {
                fold.record(decoder.decode(raw(input, &record)).record);
                *read += 1;
                if read.is_multiple_of(TELL_EVERY) {
                    watch.read(*read, to_read);
                }
            })?;
        }
        let Fold { accounts, kinds, .. } = fold;
        Comparison {
            resolver: Resolver::new(self.catalogue, &kinds),
            denials: &mut denials,
            topics: &self.topics,
            first: &self.first,
            totals: &mut self.totals,
            report: &mut self.report,
        }
        .slice(slice, accounts);
        Ok(())
    }

    async fn lag_records(&self) -> Result<u64, AuditError> {
        let (topic, end) = (&self.config.kafka.topics.usage, self.first.end());
        let mut records = 0;
        for span in self.spans(topic).await? {
            records += u64::try_from(span.to - end.at(Partition::usage(span.partition))).unwrap_or(0);
        }
        Ok(records)
    }

    fn finish(mut self) -> Report {
        compare::whole(&self.first, &self.dead, &self.totals, &self.topics, &mut self.report);
        self.report
    }
}

fn raw<'a>(input: Input, record: &LogRecord<'a>) -> Raw<'a> {
    Raw {
        partition: Partition { input, index: record.partition },
        offset: record.offset,
        append_ms: record.timestamp_ms,
        key: record.key,
        value: record.value,
        headers: record.headers,
    }
}

#[cfg(test)]
mod tests;
