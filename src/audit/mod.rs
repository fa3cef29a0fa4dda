//! The audit: folds usage, commands, denials and dead letters from the log by itself, and compares what they come to
//! with Redis, while the meter goes on. Shares the ledger's prices, calendar and decisions about commands with the
//! meter, and nothing else. Writes nothing but a saved point.

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
/// Usage by day and member.
mod members;
/// What is charged once.
mod once;
/// What an audit goes on from.
pub mod point;
/// Denials and dead letters.
mod recorded;
/// Commands that were refused.
mod refusals;
/// What was found.
pub mod report;
/// Events priced and added up.
mod resolve;
/// What later audits go on from.
mod save;
/// Accounts in parts, so that memory is bounded.
mod slices;
/// Records by how they ended.
mod totals;
mod voids;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use chrono::NaiveDate;
use rustc_hash::FxHashMap;

use crate::config::Config;
use crate::ingest::client::{BrokerError, Cluster};
use crate::ingest::decode::{self, Decoder, Raw};
use crate::ingest::log::{self, LogRecord, Span};
use crate::ingest::scan::offsets_at;
use crate::ingest::watermarks::Watermarks;
use crate::ledger::call::{Input, OutboxEntry, Output, Partition};
use crate::ledger::catalogue::{Catalogue, CatalogueId};
use crate::store::BEING_REBUILT;
use crate::store::{RedisStore, Root, StoreError};

use compare::Comparison;
use fold::{Fold, Kinds};
use look::{FirstLook, Positions};
use members::Window;
use point::{Point, PointError, SavedAccount, SavedTail};
use recorded::{DeadLetters, Denials, Heard, Names, Reached, Tail};
use refusals::Refusals;
use report::{Report, Topics};
use resolve::Resolver;
use save::Saver;
use slices::Slice;
use totals::Totals;

/// Records between two words to whoever watches.
const TELL_EVERY: u64 = 10_000;

/// Why an audit has no result.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(
        "{topic}/{partition} starts at offset {first}, the audit needs it from {needed}: it has been deleted; audit from a \
         point that was saved since (--from), and save them more often than the log is deleted (retention.ms)"
    )]
    LogTooShort { topic: String, partition: i32, first: i64, needed: i64 },
    #[error("{BEING_REBUILT}")]
    BeingRebuilt,
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
    Point(#[from] PointError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

pub struct Options {
    /// What the folded records and accounts of one pass may take.
    pub memory_bytes: u64,
    /// A saved point to go on from; without one the log is read from the start of the state.
    pub from: Option<PathBuf>,
    /// Where to save a point, if there is no difference.
    pub save: Option<PathBuf>,
    /// The first day whose usage by member is compared, in each account's zone.
    pub usage_from: Option<NaiveDate>,
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
    let first = FirstLook::take(store, root).await?;
    let point = options.from.as_deref().map(|path| tokio::task::block_in_place(|| Point::open(path))).transpose()?;
    if let Some(point) = &point {
        point.check(root, &catalogue.id, &first)?;
    }
    let shards = root.shards;
    let mut report = Report::default();
    if let Some(point) = &point {
        (report.ambiguous, report.collisions) = (point.end.ambiguous, point.end.collisions);
    }
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
        first,
        dead: DeadLetters::default(),
        denied: point.as_ref().map(|point| Decisions::from_saved(&point.end.denied)).unwrap_or_default(),
        dead_letters: point.as_ref().map(|point| Decisions::from_saved(&point.end.dead_letters)).unwrap_or_default(),
        refusals: Refusals::new(config.events.age_from, point.as_ref().map(|point| &point.end)),
        totals: Totals::new(shards),
        settled: point.as_ref().map_or_else(|| Totals::new(shards), |point| point.totals.clone()),
        window: Window::of(&config.usage, options.usage_from, point.as_ref()),
        point,
        saver: None,
        report,
        watch,
        read: 0,
        to_read: 0,
    };
    audit.check_start()?;
    audit.check_log().await?;
    if let Some(path) = &options.save {
        let cut = audit.cut()?;
        let format = audit.point.as_ref().map_or(point::FORMAT, |point| point.header.format);
        audit.saver = Some(Saver::create(path, root, &catalogue.id, &audit.first, cut, format)?);
    }
    audit.begin_decisions().await?;
    let slices = audit.slices(options).await?;
    for number in 0..slices {
        audit.pass(Slice { number, of: slices }).await?;
        // What is deleted while it is read is not read.
        audit.check_log().await?;
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
    denied: Decisions,
    dead_letters: Decisions,
    refusals: Refusals,
    totals: Totals,
    /// Of usage below the cut: of the saved point's, and then of that of the point to be saved.
    settled: Totals,
    point: Option<Point>,
    saver: Option<Saver>,
    /// The usage by day that is compared; `None`: the meter does not keep it.
    window: Option<Window>,
    report: Report,
    watch: &'a mut dyn Watch,
    read: u64,
    to_read: u64,
}

/// A topic of decisions: where to read it from, where it ended at first, and the first message that a later audit needs.
#[derive(Debug, Default)]
struct Decisions {
    from: BTreeMap<i32, i64>,
    ends: BTreeMap<i32, i64>,
    first: BTreeMap<i32, i64>,
}

impl Decisions {
    fn from_saved(saved: &BTreeMap<i32, SavedTail>) -> Decisions {
        let from = saved.iter().map(|(partition, tail)| (*partition, tail.from)).collect();
        Decisions { from, ..Decisions::default() }
    }

    fn needs(&mut self, first: &BTreeMap<i32, i64>) {
        for (partition, offset) in first {
            let own = self.first.entry(*partition).or_insert(*offset);
            *own = (*own).min(*offset);
        }
    }
}

impl Audit<'_> {
    /// What makes a comparison meaningless.
    fn check_start(&self) -> Result<(), AuditError> {
        for state in &self.first.shards {
            if let Some(stored) = state.catalogue.clone().filter(|stored| *stored != self.catalogue.id) {
                return Err(AuditError::OtherCatalogue { stored, own: self.catalogue.id.clone() });
            }
        }
        Ok(())
    }

    /// Whether all is there that is to be read.
    async fn check_log(&self) -> Result<(), AuditError> {
        let topics = &self.config.kafka.topics;
        let mut needed: Vec<(&String, i32, i64)> = Vec::new();
        for (partition, start) in self.starts(&self.first.end()) {
            let topic = if partition.input == Input::Usage { &topics.usage } else { &topics.commands };
            needed.push((topic, partition.index, start));
        }
        for (topic, decisions) in [(&topics.denied, &self.denied), (&topics.dead_letter, &self.dead_letters)] {
            for partition in 0..self.partitions(topic).await? {
                needed.push((topic, partition, decisions.from.get(&partition).copied().unwrap_or(0)));
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

    /// Up to where the usage of each partition is folded by the point that is saved.
    fn cut(&self) -> Result<Positions, AuditError> {
        let early_limit_ms = self.config.events.early_limit.as_millis() as i64;
        let time_ms = save::cut_ms(&self.first, early_limit_ms);
        let kafka = &self.config.kafka;
        let found = tokio::task::block_in_place(|| offsets_at(kafka, &kafka.topics.usage, time_ms))?;
        let mut cut = Positions::default();
        for (partition, start) in self.starts(&self.first.end()) {
            if partition.input == Input::Usage {
                let applied = self.first.positions.iter().map(|positions| positions.at(partition)).min();
                let young = found.get(&partition.index).copied().unwrap_or(start);
                cut.set(partition, young.min(applied.unwrap_or(start)).max(start));
            }
        }
        Ok(cut)
    }

    /// Where the topics of decisions end: what comes later, a later audit reads.
    async fn begin_decisions(&mut self) -> Result<(), AuditError> {
        let topics = &self.config.kafka.topics;
        let nothing = BTreeMap::new();
        let ends = |spans: Vec<Span>| spans.into_iter().map(|span| (span.partition, span.to)).collect();
        self.denied.ends = ends(self.spans(&topics.denied, &nothing).await?);
        self.dead_letters.ends = ends(self.spans(&topics.dead_letter, &nothing).await?);
        let cut = self.saver.as_ref().map(|saver| saver.cut.clone());
        let to = |ends: &BTreeMap<i32, i64>| cut.clone().map(|cut| Reached { cut, ends: ends.clone() });
        let from = self.point.as_ref().map(Point::dead_letters);
        self.dead.tail = Tail { from, to: to(&self.dead_letters.ends), ..Tail::default() };
        let commands = self.point.iter().flat_map(|point| &point.end.dead_commands);
        commands.for_each(|offset| self.dead.put(Partition::COMMANDS, *offset));
        Ok(())
    }

    async fn partitions(&self, topic: &str) -> Result<i32, AuditError> {
        Ok(Cluster::new(&self.config.kafka)?.partitions(topic).await?)
    }

    /// Where each input partition is read from that has a position. One that came later starts at 0; usage that a point
    /// stands for is not read.
    fn starts(&self, end: &Positions) -> Vec<(Partition, i64)> {
        let mut starts = self.root.starts();
        for partition in end.partitions() {
            if !starts.iter().any(|(own, _)| *own == partition) {
                starts.push((partition, 0));
            }
        }
        for (partition, start) in &mut starts {
            *start = self.point.as_ref().map_or(0, |point| point.cut.at(*partition)).max(*start);
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
        let kept = self.point.as_ref().map_or(0, |point| point.end.kept);
        let slices = Slice::count((records + kept) * if once { 2 } else { 1 }, accounts, options.memory_bytes);
        self.to_read = records * slices;
        Ok(slices)
    }

    /// Audits the accounts of a slice.
    async fn pass(&mut self, slice: Slice) -> Result<(), AuditError> {
        // The order makes it consistent. Each account is looked at together with its positions. A denial below them
        // leaves its outbox only once it is published: so the outboxes are read next. What is not there any more, and
        // the dead letters, are in their topics by then: so the topics' ends are asked for last.
        let seen = look::accounts(self.store, &self.first, slice, self.window).await?;
        let saved = self.saved(slice)?;
        let mut denials = self.denials(&saved)?;
        for shard in 0..self.root.shards {
            let (names, refusals) = (&self.names, &mut self.refusals);
            let add = |entry: OutboxEntry| match entry.output {
                Output::Denied => denials.add(names, slice, Heard::Outbox, &entry.account, &entry.data),
                Output::Ledger => refusals.wait(&entry),
                Output::Cycles | Output::Alerts => {}
            };
            self.store.outbox(shard, add).await?;
        }
        let denied_spans = self.spans(&self.config.kafka.topics.denied, &self.denied.from).await?;
        let dead_spans = self.spans(&self.config.kafka.topics.dead_letter, &self.dead_letters.from).await?;
        let ledger = self.spans(&self.config.kafka.topics.ledger, &BTreeMap::new()).await?;
        let ledger_spans = self.refusals.unread(ledger);
        let spans = [&denied_spans, &dead_spans, &ledger_spans].map(Vec::as_slice);
        tokio::task::block_in_place(|| self.fold(slice, seen, &saved, denials, spans))
    }

    /// What the point says of the accounts of a slice.
    fn saved(&mut self, slice: Slice) -> Result<Vec<SavedAccount>, AuditError> {
        let Some(point) = &mut self.point else { return Ok(Vec::new()) };
        Ok(tokio::task::block_in_place(|| point.accounts(slice))?)
    }

    /// Begins with what was denied of the records that the point keeps.
    fn denials(&self, saved: &[SavedAccount]) -> Result<Denials, AuditError> {
        let to = self.saver.as_ref().map(|saver| Reached { cut: saver.cut.clone(), ends: self.denied.ends.clone() });
        let tail = Tail { from: self.point.as_ref().map(Point::denied), to, ..Tail::default() };
        let mut denials = Denials::between(tail);
        for account in saved {
            let name: Arc<str> = account.account.as_str().into();
            for record in &account.records {
                let place = (record.partition, record.offset);
                denials.kept.insert(place);
                if let Some(told) = record.told(&name).ok_or_else(|| self.unknown(account))? {
                    denials.tell(place, told);
                }
            }
        }
        Ok(denials)
    }

    /// A name in the point that this program does not know.
    fn unknown(&self, account: &SavedAccount) -> AuditError {
        let path = self.point.as_ref().map(|point| point.path.clone()).unwrap_or_default();
        PointError::Unknown { path, account: account.account.clone() }.into()
    }

    /// All that a topic holds now, but for what lies below some offsets.
    async fn spans(&self, topic: &str, starts: &BTreeMap<i32, i64>) -> Result<Vec<Span>, AuditError> {
        let mut spans = Vec::new();
        for partition in 0..self.partitions(topic).await? {
            let (from, to) = self.watermarks.range(topic, partition).await?;
            let from = from.max(starts.get(&partition).copied().unwrap_or(0));
            spans.push(Span { partition, from, to });
        }
        Ok(spans)
    }

    fn fold(
        &mut self,
        slice: Slice,
        seen: Vec<look::Seen>,
        saved: &[SavedAccount],
        mut denials: Denials,
        [denied_spans, dead_spans, ledger_spans]: [&[Span]; 3],
    ) -> Result<(), AuditError> {
        let kafka = &self.config.kafka;
        let names = &self.names;
        log::read(kafka, &kafka.topics.denied, denied_spans, |record| {
            let heard = Heard::Topic { partition: record.partition, offset: record.offset };
            denials.publish(names, slice, heard, record.value.unwrap_or_default());
        })?;
        let dead = &mut self.dead;
        log::read(kafka, &kafka.topics.dead_letter, dead_spans, |record| dead.add(names, &record))?;
        let refusals = &mut self.refusals;
        log::read(kafka, &kafka.topics.ledger, ledger_spans, |record| refusals.hear(names, &record))?;
        if let (Some(point), Some(again)) = (&self.point, denials.tail.again.or(dead.tail.again)) {
            return Err(PointError::DecidedAgain { path: point.path.clone(), again }.into());
        }
        self.denied.needs(&denials.tail.first);
        self.dead_letters.needs(&dead.tail.first);

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
            refusals: &self.refusals,
            totals: &mut self.totals,
            settled: &mut self.settled,
            cut: self.saver.as_ref().map(|saver| &saver.cut),
            point: self.point.as_ref(),
            report: &mut self.report,
            accounts: FxHashMap::default(),
            kinds: Kinds::default(),
            fault: None,
        };
        fold.see(seen);
        for account in saved {
            if fold.restore(account).is_none() {
                let path = self.point.as_ref().map(|point| point.path.clone()).unwrap_or_default();
                return Err(PointError::Unknown { path, account: account.account.clone() }.into());
            }
        }
        let mut usage_read = 0;
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
                usage_read += u64::from(input == Input::Usage);
                *read += 1;
                if read.is_multiple_of(TELL_EVERY) {
                    watch.read(*read, to_read);
                }
            })?;
        }
        let Fold { accounts, kinds, fault, .. } = fold;
        if let Some(fault) = fault {
            return Err(fault.into());
        }
        self.report.records_read += usage_read;
        Comparison {
            resolver: Resolver::new(self.catalogue, &kinds),
            unpublished: denials.unpublished(),
            denials: &mut denials,
            topics: &self.topics,
            first: &self.first,
            totals: &mut self.totals,
            settled: &mut self.settled,
            point: self.point.as_ref(),
            saver: self.saver.as_mut(),
            window: self.window,
            report: &mut self.report,
        }
        .slice(slice, accounts)?;
        Ok(())
    }

    async fn lag_records(&self) -> Result<u64, AuditError> {
        let (topic, end) = (&self.config.kafka.topics.usage, self.first.end());
        let mut records = 0;
        for span in self.spans(topic, &BTreeMap::new()).await? {
            records += u64::try_from(span.to - end.at(Partition::usage(span.partition))).unwrap_or(0);
        }
        Ok(records)
    }

    fn finish(mut self) -> Report {
        self.totals.plus(&self.settled);
        compare::whole(&self.first, &self.dead, &self.totals, &self.topics, &mut self.report);
        // A point that is not what Redis holds would hide the difference from later audits, or tell of it again and again.
        if let Some(mut saver) = self.saver.take().filter(|_| self.report.mismatches == 0) {
            let before = self.point.as_ref().map(|point| &point.end);
            saver.end.ambiguous += before.map_or(0, |end| end.ambiguous);
            saver.end.collisions += before.map_or(0, |end| end.collisions);
            saver.end.totals = self.settled.to_saved();
            saver.end.denied = save::tails(&self.denied.ends, &self.denied.first);
            saver.end.dead_letters = save::tails(&self.dead_letters.ends, &self.dead_letters.first);
            saver.end.dead_commands = self.dead.commands();
            (saver.end.refused_commands, saver.end.ledger) = self.refusals.to_saved();
            match saver.finish() {
                Ok(()) => self.report.saved = Some(self.settled.sums(Input::Usage).values().sum()),
                Err(fault) => self.report.save_fault = Some(fault.to_string()),
            }
        }
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
mod point_tests;
#[cfg(test)]
mod tests;
