//! One account's usage, event by event: how each ended and what it took, with the audit's own pieces. Memory holds the
//! events of that account only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::commands::Commanded;
use super::compare::follow;
use super::fold::{Folded, Kinds};
use super::look::{self, FirstLook};
use super::once::Once;
use super::point::Base;
use super::recorded::{Decision, Denials, Heard, Names, dead_letter};
use super::refusals::Refusals;
use super::resolve::{self, Item, Priced, Resolver};
use super::slices::Slice;
use super::{AuditError, TELL_EVERY, Watch, raw};
use crate::config::Config;
use crate::ingest::client::BrokerError;
use crate::ingest::decode::{self, Called, Decoder, Voids};
use crate::ingest::log::{self, LogRecord, Span};
use crate::ingest::recorded::CLOCKS_APART_MS;
use crate::ingest::scan::offsets_at;
use crate::ingest::watermarks::Watermarks;
use crate::ledger::call::{Input, OutboxEntry, Output, Partition};
use crate::ledger::catalogue::Catalogue;
use crate::ledger::credits::Credits;
use crate::ledger::event::{DAY_MS, Identity, UsageEvent};
use crate::ledger::outcome::{DeadReason, Denial, Outcome};
use crate::pipeline::record::Body;
use crate::store::{RedisStore, Root};
const ALL: Slice = Slice { number: 0, of: 1 };

/// Events that are dated `from_ms..to_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated {
    pub from_ms: i64,
    pub to_ms: i64,
}

/// A usage record of the account.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub partition: i32,
    pub offset: i64,
    pub append_ms: i64,
    /// The time by which it counts: the earlier of its own and its append time.
    pub dated_ms: i64,
    /// `None`: the bytes are no event.
    pub event: Option<Arc<UsageEvent>>,
    /// What it is called if it is no event, as far as that can be read.
    pub called: Called,
    /// What a void takes back, and whose that was.
    pub voids: Option<Voids>,
    pub ended: Ended,
}

/// How a record ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// It lies beyond the position that the account is worth.
    Pending,
    DeadLettered(DeadReason),
    Decided(Decided),
    /// The records do not explain it; an audit tells more.
    Unexplained,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    pub outcome: Outcome,
    pub denial: Option<Denial>,
    pub credit_type: String,
    /// What was charged.
    pub cost: Credits,
    /// What the action costs.
    pub price: Credits,
    /// The cycle that it counts in.
    pub cycle: i32,
    /// Of attempts in different partitions, or events that are charged once, nobody knows which was first: it may be the
    /// other way round.
    pub certain: bool,
}

/// What an account has used.
#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    /// By date.
    pub events: Vec<Told>,
    /// Where retention has taken records that may be among those asked for: when the first that is left was appended.
    pub log_begins_ms: Option<i64>,
}

/// Tells of an account's events, as of now. The account must exist.
pub async fn of_account(
    config: &Config,
    catalogue: &Catalogue,
    store: &RedisStore,
    root: &Root,
    account: &str,
    dated: Dated,
    watch: &mut dyn Watch,
) -> Result<Events, AuditError> {
    let (topics, shard) = (&config.kafka.topics, store.keys().shard_of(account));
    let first = FirstLook::take(store, root).await?;
    if let Some(stored) = first.shards[shard as usize].catalogue.clone().filter(|stored| *stored != catalogue.id) {
        return Err(AuditError::OtherCatalogue { stored, own: catalogue.id.clone() });
    }
    // In the audit's order: the account with its positions, then the outbox, then the ends of the topics.
    let name: Arc<str> = account.into();
    let mut seen = Vec::new();
    look::look(store, &first, shard, std::slice::from_ref(&name), None, &mut seen).await?;
    let seen = seen.pop().expect("a look tells of each account");
    let names = Names {
        source: config.redis.prefix.clone(),
        usage_topic: topics.usage.clone(),
        commands_topic: topics.commands.clone(),
    };
    let mut denials = Denials::default();
    let mut refusals = Refusals::new(config.events.age_from, None);
    let keep = |entry: OutboxEntry| match entry.output {
        Output::Denied if entry.account == account => denials.add(&names, ALL, Heard::Outbox, account, &entry.data),
        Output::Ledger => refusals.wait(&entry),
        Output::Denied | Output::Cycles | Output::Alerts => {}
    };
    store.outbox(shard, keep).await?;

    let logs = Logs { config, watermarks: Watermarks::new(&config.kafka)? };
    // Attempts at an event lie in its day and the neighbouring ones.
    let since_ms = ((dated.from_ms.div_euclid(DAY_MS) - 1) * DAY_MS).max(0);
    let mut teller = Teller {
        config,
        account: name,
        names,
        decoder: Decoder::new(decode::Settings::of(&config.events), Arc::new(catalogue.conditions())),
        folded: Folded {
            shard,
            positions: seen.positions,
            floor_ms: seen.floor_ms,
            usage_from: None,
            stored: Some(seen.stored),
            commanded: Commanded::default(),
            attempts: Vec::new(),
            once: BTreeMap::new(),
            voids: BTreeMap::new(),
            base: Base::default(),
        },
        denials,
        dead: FxHashMap::default(),
        refusals,
        kinds: Kinds::default(),
        told: Vec::new(),
        spans: Spans {
            denied: logs.since(&topics.denied, since_ms - CLOCKS_APART_MS).await?,
            dead: logs.since(&topics.dead_letter, since_ms - CLOCKS_APART_MS).await?,
            ledger: logs.since(&topics.ledger, 0).await?,
            commands: logs.commands(root).await?,
            usage: logs.since(&topics.usage, since_ms).await?,
        },
        begins_ms: BTreeMap::new(),
        watch,
        read: 0,
    };
    // What lies below the start of the state was never counted.
    for span in &mut teller.spans.usage {
        let starts = root.starts();
        let start = starts.iter().find(|(partition, _)| *partition == Partition::usage(span.partition));
        span.from = span.from.max(start.map_or(0, |(_, start)| *start));
    }
    let cut = logs.cut(root, &teller.spans.usage).await?;
    let tolerance_ms = first.shards[shard as usize].restamp_tolerance_ms;
    tokio::task::block_in_place(|| teller.read(catalogue, tolerance_ms))?;
    let begins = cut.iter().filter_map(|partition| teller.begins_ms.get(partition)).max().copied();
    let mut events = teller.told;
    events.retain(|told| dated.from_ms <= told.dated_ms && told.dated_ms < dated.to_ms);
    events.sort_by_key(|told| (told.dated_ms, told.append_ms, told.partition, told.offset));
    Ok(Events { events, log_begins_ms: begins.filter(|begins_ms| *begins_ms > dated.from_ms) })
}

/// What there is to read.
struct Logs<'a> {
    config: &'a Config,
    watermarks: Watermarks,
}

impl Logs<'_> {
    /// What was appended from a time on.
    async fn since(&self, topic: &str, since_ms: i64) -> Result<Vec<Span>, AuditError> {
        let kafka = &self.config.kafka;
        let starts = tokio::task::block_in_place(|| offsets_at(kafka, topic, since_ms))?;
        let mut spans = Vec::new();
        for (partition, start) in starts {
            let (first, to) = self.watermarks.range(topic, partition).await?;
            spans.push(Span { partition, from: start.clamp(first, to), to });
        }
        Ok(spans)
    }

    /// All of them: they make the account.
    async fn commands(&self, root: &Root) -> Result<Vec<Span>, AuditError> {
        let (topic, partition) = (&self.config.kafka.topics.commands, Partition::COMMANDS.index);
        let (first, to) = self.watermarks.range(topic, partition).await?;
        let needed = root.commands_start;
        if first > needed {
            return Err(AuditError::LogTooShort { topic: topic.clone(), partition, first, needed });
        }
        Ok(vec![Span { partition, from: needed, to }])
    }

    /// The partitions of which retention has taken records that the state has counted.
    async fn cut(&self, root: &Root, spans: &[Span]) -> Result<Vec<i32>, AuditError> {
        let mut cut = Vec::new();
        for span in spans {
            let (first, _) = self.watermarks.range(&self.config.kafka.topics.usage, span.partition).await?;
            let counted_from = root.starts().into_iter().find(|(own, _)| *own == Partition::usage(span.partition));
            if span.from == first && first > counted_from.map_or(0, |(_, start)| start) {
                cut.push(span.partition);
            }
        }
        Ok(cut)
    }
}

struct Spans {
    denied: Vec<Span>,
    dead: Vec<Span>,
    ledger: Vec<Span>,
    commands: Vec<Span>,
    usage: Vec<Span>,
}

/// Reads the logs, and keeps what concerns the account.
struct Teller<'a> {
    config: &'a Config,
    account: Arc<str>,
    names: Names,
    decoder: Decoder,
    folded: Folded,
    denials: Denials,
    dead: FxHashMap<(Partition, i64), DeadReason>,
    refusals: Refusals,
    kinds: Kinds,
    told: Vec<Told>,
    spans: Spans,
    /// When the first record that was read of a partition was appended.
    begins_ms: BTreeMap<i32, i64>,
    watch: &'a mut dyn Watch,
    read: u64,
}

impl Teller<'_> {
    /// It blocks.
    fn read(&mut self, catalogue: &Catalogue, tolerance_ms: i64) -> Result<(), BrokerError> {
        let topics = &self.config.kafka.topics;
        let Spans { denied, dead, ledger, commands, usage } = &self.spans;
        let lists = [
            (&topics.denied, denied.clone()),
            (&topics.dead_letter, dead.clone()),
            (&topics.ledger, ledger.clone()),
            (&topics.commands, commands.clone()),
            (&topics.usage, usage.clone()),
        ];
        let all = lists.iter().flat_map(|(_, spans)| spans);
        let to_read: u64 = all.map(|span| u64::try_from(span.to - span.from).unwrap_or(0)).sum();
        // What was decided first, then the commands: they make the account that usage is priced for.
        for (step, (topic, spans)) in lists.into_iter().enumerate() {
            log::read(&self.config.kafka, topic, &spans, |record| {
                match step {
                    0 => self.denied(&record),
                    1 => self.dead_letter(&record),
                    // The relay keys by account.
                    2 if record.key != Some(self.account.as_bytes()) => {}
                    2 => self.refusals.hear(&self.names, &record),
                    3 => self.command(catalogue, &record),
                    _ => self.usage(&record),
                }
                self.read += 1;
                if self.read.is_multiple_of(TELL_EVERY) {
                    self.watch.read(self.read, to_read);
                }
            })?;
        }
        follow(catalogue, &mut self.folded);
        self.decide(catalogue, tolerance_ms);
        name_users(&mut self.told);
        Ok(())
    }

    fn denied(&mut self, record: &LogRecord<'_>) {
        // The relay keys by account.
        if record.key == Some(self.account.as_bytes()) {
            let heard = Heard::Topic { partition: record.partition, offset: record.offset };
            self.denials.publish(&self.names, ALL, heard, record.value.unwrap_or_default());
        }
    }

    fn dead_letter(&mut self, record: &LogRecord<'_>) {
        let Some((partition, offset, reason)) = dead_letter(&self.names, record) else { return };
        // It is the record as it came, so that it names its account.
        let original = LogRecord { partition: partition.index, offset, ..*record };
        let decoded = self.decoder.decode(raw(partition.input, &original)).record;
        if decoded.account().is_some_and(|account| *account == self.account) {
            self.dead.insert((partition, offset), reason);
        }
    }

    fn command(&mut self, catalogue: &Catalogue, record: &LogRecord<'_>) {
        let decoded = self.decoder.decode(raw(Input::Commands, record)).record;
        let Body::Command(command) = &decoded.body else { return };
        let applied = decoded.offset < self.folded.positions.at(decoded.partition);
        let dead = self.dead.contains_key(&(decoded.partition, decoded.offset));
        if command.account == self.account && applied && !dead {
            let is_refused = self.refusals.hold(decoded.offset, decoded.append_ms);
            self.folded.commanded.fold(catalogue, command, (decoded.offset, decoded.append_ms), is_refused);
        }
    }

    fn usage(&mut self, record: &LogRecord<'_>) {
        self.begins_ms.entry(record.partition).or_insert(record.timestamp_ms);
        let decoded = self.decoder.decode(raw(Input::Usage, record)).record;
        if decoded.account().is_none_or(|account| *account != self.account) {
            return;
        }
        let event = match &decoded.body {
            Body::Usage(event) => Some(event.clone()),
            Body::Dead { .. } => None,
            Body::Command(_) | Body::Tick => return,
        };
        let dead = self.dead.get(&(decoded.partition, decoded.offset));
        let ended = match (dead, &event) {
            (Some(reason), _) => Ended::DeadLettered(*reason),
            _ if decoded.offset >= self.folded.positions.at(decoded.partition) => Ended::Pending,
            (None, None) => Ended::Unexplained,
            (None, Some(event)) => {
                let place = (decoded.partition.index, decoded.offset);
                self.folded.attempts.push(self.kinds.keep(event, place, decoded.append_ms));
                if let Some(once) = event.once {
                    self.folded.once.insert((decoded.partition.index, decoded.offset), once);
                }
                if let Some(voids) = event.voids {
                    self.folded.voids.insert((decoded.partition.index, decoded.offset), voids);
                }
                // Until all attempts at it are known.
                Ended::Unexplained
            }
        };
        let voids = event.as_ref().and_then(|event| event.voids);
        let voids = voids.and_then(|_| decode::voids(raw(Input::Usage, record), self.config.events.max_bytes));
        let called = if event.is_none() { decode::called(raw(Input::Usage, record)) } else { Called::default() };
        self.told.push(Told {
            called,
            partition: decoded.partition.index,
            offset: decoded.offset,
            append_ms: decoded.append_ms,
            dated_ms: event.as_ref().map_or(decoded.append_ms, |event| event.dated_ms),
            event,
            voids,
            ended,
        });
    }

    /// Prices what was kept, and tells attempts at one event apart.
    fn decide(&mut self, catalogue: &Catalogue, tolerance_ms: i64) {
        let places = self.told.iter().enumerate().map(|(index, told)| ((told.partition, told.offset), index));
        let places: FxHashMap<(i32, i64), usize> = places.collect();
        self.folded.attempts.sort_unstable_by_key(|kept| (kept.identity.member, kept.partition, kept.offset));
        let open = self.folded.commanded.view.as_ref().map_or(0, |view| view.cycle.number);
        let told = &mut self.told;
        let mut tell = |resolver: &Resolver<'_>, ways: &[Ways<'_>], cut_off: bool| {
            for (attempt, ended, certain) in likeliest(ways) {
                let decided = decided(resolver, &attempt, ended, certain && !cut_off, open);
                told[places[&place(&attempt)]].ended = Ended::Decided(decided);
            }
        };
        let (mut once, folded) = (Once::default(), &self.folded);
        let each = |resolver: &Resolver<'_>, item: Item<'_>| {
            // What does not agree stays unexplained.
            let Item::Event(attempts, readings) = item else { return };
            if once.keep(resolver, folded, attempts, readings) {
                return;
            }
            let ways: Vec<_> = readings.iter().map(|reading| resolver.all_ended(attempts, reading)).collect();
            tell(resolver, &ways.iter().map(Vec::as_slice).collect::<Vec<_>>(), false);
        };
        let mut resolver = Resolver::new(catalogue, &self.kinds);
        resolver.each(&self.account, &self.folded, |_| true, tolerance_ms, &mut self.denials, each);
        once.each(&resolver, &BTreeSet::new(), |_, ways| {
            tell(&resolver, &ways.found.iter().map(|way| way.ended.as_slice()).collect::<Vec<_>>(), ways.cut_off);
        });
    }
}

/// A void is about the member whose event it takes back, as far as that event is there; else whom it names itself.
fn name_users(told: &mut [Told]) {
    let mut users: FxHashMap<Identity, Arc<str>> = FxHashMap::default();
    for Told { event, ended, .. } in &*told {
        let Some(event) = event.as_ref().filter(|event| event.voids.is_none()) else { continue };
        let Some(user) = &event.user else { continue };
        // Of attempts at an event the one that was decided, if they name several.
        let decided = matches!(ended, Ended::Decided(decided) if decided.outcome != Outcome::Duplicate);
        if decided || !users.contains_key(&event.identity) {
            users.insert(event.identity, user.clone());
        }
    }
    for Told { event, voids, .. } in told {
        let voided = event.as_ref().and_then(|event| event.voids);
        if let (Some(voids), Some(user)) = (voids, voided.and_then(|voided| users.get(&voided))) {
            voids.user = Some(user.clone());
        }
    }
}

/// How some attempts may have ended together.
type Ways<'a> = &'a [(Priced, resolve::Ended)];

fn place(attempt: &Priced) -> (i32, i64) {
    (attempt.kept.partition, attempt.kept.offset)
}

/// Of all ways that the records allow the likeliest: the attempts that came first were decided and charged. With each,
/// whether all ways agree about it.
fn likeliest(ways: &[Ways<'_>]) -> Vec<(Priced, resolve::Ended, bool)> {
    let came = |way: &Ways<'_>, counts: fn(&resolve::Ended) -> bool| {
        let counting = way.iter().filter(|(_, ended)| counts(ended));
        let mut came: Vec<i64> = counting.map(|(attempt, _)| attempt.kept.append_ms).collect();
        came.sort_unstable();
        came
    };
    let order = |way: &&Ways<'_>| {
        let decided = came(way, |ended| ended.outcome != Outcome::Duplicate);
        (decided, came(way, |ended| ended.charged > Credits::ZERO))
    };
    let Some(chosen) = ways.iter().min_by_key(order) else { return Vec::new() };
    let ended: Vec<FxHashMap<(i32, i64), resolve::Ended>> = match ways {
        [_] => Vec::new(),
        several => {
            several.iter().map(|way| way.iter().map(|(attempt, ended)| (place(attempt), *ended)).collect()).collect()
        }
    };
    let agreed = |attempt: &Priced, own: &resolve::Ended| ended.iter().all(|way| way.get(&place(attempt)) == Some(own));
    chosen.iter().map(|(attempt, own)| (*attempt, *own, agreed(attempt, own))).collect()
}

fn decided(resolver: &Resolver<'_>, attempt: &Priced, ended: resolve::Ended, certain: bool, open: i32) -> Decided {
    let class = &resolver.classes[attempt.class as usize];
    let denial = match attempt.decision {
        Some(Decision::Denied(denial)) if ended.outcome == Outcome::Denied => Some(denial),
        Some(_) | None => None,
    };
    Decided {
        outcome: ended.outcome,
        denial,
        credit_type: class.credit_type.clone(),
        cost: ended.charged,
        price: class.cost,
        cycle: class.cycle.unwrap_or(open),
        certain,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fold::Kept;
    use super::*;
    use crate::ledger::event::Days;

    /// An attempt by partition, offset and append time, and what was charged.
    fn ended(text: &str) -> (Priced, resolve::Ended) {
        let [partition, offset, append_ms, charged] =
            text.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<i64>>()[..]
        else {
            panic!("{text}")
        };
        let identity = Identity::of("s", "e");
        let kept = Kept { identity, append_ms, time_ms: 0, offset, partition: partition as i32, kind: 0, user: 0 };
        let attempt = Priced { kept, class: 0, days: Days::of(0, 0), early: true, decision: None };
        let outcome = if charged > 0 { Outcome::Charged } else { Outcome::Duplicate };
        (attempt, resolve::Ended { outcome, charged: Credits::whole(charged), takes_back: None })
    }

    #[test]
    fn a_void_has_the_member_of_its_event_else_the_one_that_it_names() {
        // An event `e1 ada charged`, or a void `void-of-e1 bob`; `-` names nobody.
        let told = |text: &&str| {
            let words: Vec<&str> = text.split(' ').collect();
            let user = Some(words[1]).filter(|user| *user != "-").map(Arc::<str>::from);
            let voided = words[0].strip_prefix("void-of-");
            let outcome = words.get(2).and_then(|name| Outcome::from_name(name)).unwrap_or(Outcome::Voided);
            let event = UsageEvent {
                account: "acme".into(),
                source: "s".into(),
                id: words[0].into(),
                time_ms: 0,
                dated_ms: 0,
                action: "reveal_email".into(),
                quantity: 1,
                outcome: None,
                user: user.clone().filter(|_| voided.is_none()),
                fields: Box::default(),
                once: None,
                voids: voided.map(|id| Identity::of("s", id)),
                identity: Identity::of("s", words[0]),
            };
            let decided = Decided {
                outcome,
                denial: None,
                credit_type: "email".into(),
                cost: Credits::ZERO,
                price: Credits::ZERO,
                cycle: 0,
                certain: true,
            };
            Told {
                partition: 0,
                offset: 0,
                append_ms: 0,
                dated_ms: 0,
                event: Some(Arc::new(event)),
                called: Called::default(),
                voids: voided.map(|id| Voids { source: "s".into(), id: id.into(), user }),
                ended: Ended::Decided(decided),
            }
        };
        let check = |rows: &[&str], expected: &[Option<&str>]| {
            let mut rows: Vec<Told> = rows.iter().map(told).collect();
            name_users(&mut rows);
            let voids = rows.iter().filter_map(|told| told.voids.as_ref());
            assert_eq!(voids.map(|voids| voids.user.as_deref()).collect::<Vec<_>>(), expected, "{rows:?}");
        };
        check(&["e1 ada charged", "void-of-e1 -"], &[Some("ada")]);
        check(&["void-of-e1 bob", "e1 ada voided", "void-of-e1 -"], &[Some("ada"), Some("ada")]);
        check(&["e1 - charged", "e2 ada charged", "void-of-e1 bob", "void-of-e3 -"], &[Some("bob"), None]);
        check(&["e1 eve duplicate", "e1 ada charged", "e1 eve duplicate", "void-of-e1 -"], &[Some("ada")]);
    }

    #[test]
    fn the_first_that_came_was_most_likely_charged_and_what_all_ways_say_is_certain() {
        let check = |ways: &[&[&str]], expected: &[(i64, bool)]| {
            let ways: Vec<Vec<_>> = ways.iter().map(|way| way.iter().map(|text| ended(text)).collect()).collect();
            let told = likeliest(&ways.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let told: Vec<_> = told.iter().map(|(_, ended, certain)| (ended.charged, *certain)).collect();
            let expected: Vec<_> =
                expected.iter().map(|(charged, certain)| (Credits::whole(*charged), *certain)).collect();
            assert_eq!(told, expected, "{ways:?}");
        };
        check(&[], &[]);
        check(&[&["0 7 100 5", "0 8 50 0"]], &[(5, true), (0, true)]);
        check(&[&["0 7 100 5", "1 3 50 0"], &["0 7 100 0", "1 3 50 5"]], &[(0, false), (5, false)]);
        check(
            &[&["1 3 50 5", "0 7 100 0", "0 9 70 0"], &["0 7 100 5", "1 3 50 0", "0 9 70 0"]],
            &[(5, false), (0, false), (0, true)],
        );
    }
}
