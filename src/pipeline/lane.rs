//! The lane to one shard: records that wait for it, and where its next range begins in each partition.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::batch::{Batch, Call, DeadNotes};
use super::record::{Record, runs};
use crate::ledger::call::{Input, LastRead, Partition, Range};
use crate::ledger::catalogue::CatalogueId;

#[derive(Debug, Default)]
pub struct Lane {
    commands: VecDeque<Record>,
    usage: VecDeque<Record>,
    usage_bytes: usize,
    /// Since when the oldest usage record waits.
    pub waiting_since_ms: Option<u64>,
    marks: BTreeMap<Partition, Mark>,
    /// When the oldest record was appended that a halted lane does not take any more.
    left_ms: BTreeMap<Partition, i64>,
    pub dead: DeadNotes,
    /// When ranges without records were last sent.
    pub swept_at_ms: u64,
    /// Usage that waits for the commands topic to be applied up to here.
    pub hold: Option<Hold>,
    /// Usage goes only once the shard has applied the commands up to here; see [`ApplyCall::commands_first`].
    ///
    /// [`ApplyCall::commands_first`]: crate::ledger::call::ApplyCall::commands_first
    pub commands_first: Option<i64>,
    pub probe: Probe,
    /// The shard has fallen back in some partition; how far in the others must be asked.
    pub suspect: bool,
    /// What was published about its records is not known: nothing is cut before it is. The number tells a question that
    /// was asked before from one that covers it.
    pub shut: Option<u64>,
    /// Its usage was read for a catalogue that asks for less, or let go of: it is read again from where the shard is, as
    /// soon as no call is under way. Until then no range is cut and no usage is kept.
    pub reread: bool,
    /// Since when its calls have had no answer.
    pub silent_since_ms: Option<u64>,
    /// When it last answered, a call or the question where it is.
    pub answered_at_ms: Option<u64>,
    pub work: Work,
}

/// How far a lane is in one partition.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// Where the last range that was sent ended.
    sent: i64,
    /// Where the last range that was applied ended.
    applied: i64,
    /// Records below were queued or sent, or are the shard's already.
    known: i64,
    /// Records that wait in the queue.
    queued: usize,
}

/// Usage whose account is unknown: it is judged once all commands that came before it are applied.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// Tells the answer to this hold's question from that to an earlier one.
    pub id: u64,
    /// The end of the commands topic, once it is known.
    pub commands_end: Option<i64>,
    /// Where the shard is in it, as far as it has said.
    pub commands_at: Option<i64>,
    pub retry_at_ms: u64,
    /// Only the records that were read before the end was asked for may use it.
    pub records: usize,
}

/// The question for the shard's positions. One at a time is under way, so that a Redis that is slow is asked no more
/// than it answers. A call overtakes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    #[default]
    None,
    UnderWay(u64),
    /// It has no answer and will have none.
    Failed,
}

/// What the lane does now. One call at a time is under way.
#[derive(Debug, Default)]
pub enum Work {
    #[default]
    Idle,
    /// A call is under way; `attempts` counts those without an answer.
    InFlight { id: u64, batch: Batch, call: Call, attempts: u32 },
    /// The same call goes out again at this time.
    Retry { at_ms: u64, batch: Batch, call: Call, attempts: u32 },
    /// Dead letters are being produced; then the batch goes out again.
    DeadLetters { id: u64, batch: Batch },
    /// The shard prices by another catalogue than this worker.
    OtherCatalogue { stored: CatalogueId },
    /// Nothing goes to this shard any more, and the reason is in the log.
    Halted,
}

/// How far a partition was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadTo {
    /// All records below were read.
    pub offset: i64,
    /// The last of them since the partition was assigned, with the largest time of all.
    pub last: Option<LastRead>,
}

/// Where records go in order: up to when the records of each topic are known that the log held when reading began. What was appended
/// before is here; `i64::MAX`: all of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadUpTo {
    pub usage_ms: i64,
    pub commands_ms: i64,
}

/// Who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Command,
    /// In order: what was appended before a time, see [`earlier`]; else as it came.
    Usage {
        before_ms: Option<i64>,
    },
    /// Nothing waits, or what does must wait for older records of other partitions.
    Nobodys,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    Queued,
    /// It is the shard's already, or on its way, or read again, or the partition is another worker's.
    NotWanted,
    /// A range that was sent said that there is no such record.
    Contradiction,
}

/// How much a batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub max_events: usize,
    pub max_bytes: usize,
    pub max_age_ms: u64,
}

impl Lane {
    /// Starts a partition at the shard's position.
    pub fn start(&mut self, partition: Partition, position: i64) {
        self.marks.insert(partition, Mark { sent: position, applied: position, known: position, queued: 0 });
    }

    pub fn push(&mut self, record: Record, now_ms: u64) -> Push {
        let Some(mark) = self.marks.get_mut(&record.partition) else { return Push::NotWanted };
        let read_again = self.reread && record.partition.input == Input::Usage;
        if record.offset < mark.known || read_again {
            return Push::NotWanted;
        }
        if matches!(self.work, Work::Halted) {
            self.left_ms.entry(record.partition).or_insert(record.append_ms);
            return Push::NotWanted;
        }
        if record.offset < mark.sent {
            return Push::Contradiction;
        }
        mark.known = record.offset + 1;
        mark.queued += 1;
        if record.partition.input == Input::Commands {
            self.commands.push_back(record);
        } else {
            self.usage_bytes += record.bytes;
            self.waiting_since_ms.get_or_insert(now_ms);
            self.usage.push_back(record);
        }
        Push::Queued
    }

    /// Records that wait, those in a batch that has no answer yet among them.
    pub fn queued_of(&self, input: Input) -> usize {
        // A batch holds one command or usage: asked for with every input, it must not look at each record.
        let in_hand = self.in_hand();
        let in_hand = in_hand.first().filter(|record| record.partition.input == input).map_or(0, |_| in_hand.len());
        let waiting = match input {
            Input::Usage => self.usage.len(),
            Input::Commands => self.commands.len(),
        };
        waiting + in_hand
    }

    fn in_hand(&self) -> &[Record] {
        match &self.work {
            Work::InFlight { batch, .. } | Work::Retry { batch, .. } | Work::DeadLetters { batch, .. } => {
                &batch.records
            }
            Work::Idle | Work::OtherCatalogue { .. } | Work::Halted => &[],
        }
    }

    pub fn partitions(&self) -> Vec<Partition> {
        self.marks.keys().copied().collect()
    }

    /// Where the shard was after the last answer; `None` where another worker has the partition.
    pub fn applied(&self, partition: Partition) -> Option<i64> {
        self.marks.get(&partition).map(|mark| mark.applied)
    }

    /// Where the shard was after the last answer, in the partitions that the ranges leave out.
    pub fn others(&self, ranges: &[Range]) -> Vec<(Partition, i64)> {
        let in_ranges = |partition: Partition| ranges.iter().any(|range| range.partition == partition);
        let others = self.marks.iter().filter(|(partition, _)| !in_ranges(**partition));
        others.map(|(partition, mark)| (*partition, mark.applied)).collect()
    }

    /// When the oldest record that is not applied yet was appended.
    pub fn oldest_append_ms(&self, partition: Partition) -> Option<i64> {
        let own = |record: &&Record| record.partition == partition;
        let left = self.left_ms.get(&partition).copied();
        left.or_else(|| self.unapplied().find(own).map(|record| record.append_ms))
    }

    /// Records that have no answer, in the order of each partition.
    fn unapplied(&self) -> impl Iterator<Item = &Record> {
        self.in_hand().iter().chain(&self.commands).chain(&self.usage)
    }

    /// The next batch, if one is due. `read` gives the offset up to which a partition was read; see [`Lane::turn`] for the
    /// order.
    pub fn cut(
        &mut self,
        bounds: Bounds,
        now_ms: u64,
        read: impl Fn(Partition) -> ReadTo,
        order: Option<ReadUpTo>,
    ) -> Option<Batch> {
        let sweep = now_ms >= self.swept_at_ms + SWEEP_EVERY_MS;
        let (records, commands_end) = match self.turn(order) {
            Turn::Command => {
                if order.is_some() {
                    // Perhaps it makes the account that usage waits for: no more commands than that go ahead of it.
                    self.hold = None;
                }
                let command = self.commands.pop_front().expect("it is a command's turn");
                return Some(self.batch(vec![command], None));
            }
            Turn::Usage { before_ms } => self.cut_usage(bounds, now_ms, before_ms),
            Turn::Nobodys => (Vec::new(), None),
        };
        let idle_ranges = sweep || self.hold.is_some();
        let mut batch = self.batch(records, commands_end);
        for range in &mut batch.ranges {
            let mark = self.marks.get_mut(&range.partition).expect("a range's partition has a mark");
            if mark.queued == 0 {
                // Offsets between the last record and what was read hold nothing for this shard.
                let read = read(range.partition);
                range.to = mark.known.max(read.offset);
                if range.to == read.offset {
                    range.last = read.last.or(range.last);
                }
                mark.sent = range.to;
            }
        }
        if idle_ranges {
            self.idle_ranges(&mut batch, read);
            self.swept_at_ms = now_ms;
        }
        (!batch.ranges.is_empty()).then_some(batch)
    }

    /// Commands go first: an account is made before its events are judged. In a rebuild both go in the order in which they
    /// were appended, since what was decided must come out again: a credit that a command took away later, and a price of a
    /// plan that came later, are not those of what was used before.
    fn turn(&self, order: Option<ReadUpTo>) -> Turn {
        let command_ms = self.commands.front().map(|command| command.append_ms);
        let (Some(order), false) = (order, command_ms.is_some() && self.hold.is_some()) else {
            return match (command_ms, self.usage.is_empty()) {
                (Some(_), _) => Turn::Command,
                (None, false) => Turn::Usage { before_ms: None },
                (None, true) => Turn::Nobodys,
            };
        };
        let before_ms = command_ms.unwrap_or(i64::MAX).min(order.commands_ms).min(order.usage_ms);
        let waits = |before_ms: i64| self.usage.iter().any(earlier(before_ms));
        match command_ms {
            _ if waits(before_ms) => Turn::Usage { before_ms: Some(before_ms) },
            // Commands may be read again for another shard: then usage before it waits for those.
            Some(command_ms) if command_ms <= order.usage_ms && !waits(command_ms) => Turn::Command,
            _ => Turn::Nobodys,
        }
    }

    /// When [`Lane::cut`] has something to do; `None`: not before another input.
    pub fn due_at_ms(&self, bounds: Bounds, behind: bool, order: Option<ReadUpTo>) -> Option<u64> {
        match &self.work {
            Work::Retry { at_ms, .. } => return Some(*at_ms),
            Work::InFlight { .. } | Work::DeadLetters { .. } | Work::OtherCatalogue { .. } | Work::Halted => {
                return None;
            }
            Work::Idle => {}
        }
        let usage = match (self.turn(order), self.hold) {
            (Turn::Command, _) => return Some(0),
            (Turn::Nobodys, _) => None,
            (Turn::Usage { .. }, Some(hold)) => hold.commands_end.map(|_| hold.retry_at_ms),
            (Turn::Usage { .. }, None) if self.full(bounds) => Some(0),
            (Turn::Usage { .. }, None) => self.waiting_since_ms.map(|since| since + bounds.max_age_ms),
        };
        let sweep = behind.then_some(self.swept_at_ms + if self.hold.is_some() { 0 } else { SWEEP_EVERY_MS });
        usage.into_iter().chain(sweep).min()
    }

    fn full(&self, bounds: Bounds) -> bool {
        self.usage.len() >= bounds.max_events || self.usage_bytes >= bounds.max_bytes
    }

    fn cut_usage(&mut self, bounds: Bounds, now_ms: u64, before_ms: Option<i64>) -> (Vec<Record>, Option<i64>) {
        let mut records: Vec<Record> = Vec::new();
        let (limit, commands_end) = match self.hold {
            Some(Hold { commands_end: None, .. }) => return (records, None),
            Some(Hold { commands_end, retry_at_ms, records, .. }) if now_ms >= retry_at_ms => (records, commands_end),
            Some(_) => return (records, None),
            None => {
                let aged = self.waiting_since_ms.is_some_and(|since| now_ms >= since + bounds.max_age_ms);
                if !aged && !self.full(bounds) {
                    return (records, None);
                }
                (bounds.max_events, None)
            }
        };
        let usage = before_ms.map_or(self.usage.len(), |before_ms| self.earlier_first(before_ms));
        let limit = limit.min(bounds.max_events).min(usage);
        records.reserve_exact(limit);
        let mut bytes = 0;
        let mut partitions = BTreeSet::new();
        while let Some(record) = self.usage.front() {
            let fits = records.is_empty() || bytes + record.bytes <= bounds.max_bytes;
            if records.last().is_none_or(|last| last.partition != record.partition) {
                partitions.insert(record.partition);
            }
            if records.len() >= limit || !fits || partitions.len() > RANGES_MAX {
                break;
            }
            bytes += record.bytes;
            records.extend(self.usage.pop_front());
        }
        self.usage_bytes -= bytes;
        self.waiting_since_ms = (!self.usage.is_empty()).then_some(now_ms);
        if !records.is_empty() {
            self.hold = None;
        }
        (records, commands_end)
    }

    /// Puts the usage in front that was appended before a time, in the order in which it was, and counts it.
    fn earlier_first(&mut self, before_ms: i64) -> usize {
        let (mut first, mut rest): (Vec<_>, VecDeque<_>) = (Vec::new(), VecDeque::new());
        let mut reached: BTreeMap<Partition, i64> = BTreeMap::new();
        let mut is_earlier = earlier(before_ms);
        for record in self.usage.drain(..) {
            if is_earlier(&record) {
                // A partition's own order stands, should a broker's clock have gone back.
                let reached_ms = reached.entry(record.partition).or_insert(record.append_ms);
                *reached_ms = record.append_ms.max(*reached_ms);
                first.push((*reached_ms, record));
            } else {
                rest.push_back(record);
            }
        }
        first.sort_by_key(|(reached_ms, _)| *reached_ms);
        self.usage = first.into_iter().map(|(_, record)| record).collect();
        let count = self.usage.len();
        self.usage.append(&mut rest);
        count
    }

    /// Takes records out of the lane's counts, with a range for each of their partitions.
    fn batch(&mut self, records: Vec<Record>, commands_end: Option<i64>) -> Batch {
        for run in runs(&records) {
            let mark = self.marks.get_mut(&run[0].partition).expect("a queued record's partition has a mark");
            mark.queued -= run.len();
        }
        let ranges =
            ends(&records).into_iter().map(|(partition, (to, last))| self.range(partition, to, last)).collect();
        Batch { records, ranges, commands_end }
    }

    fn range(&mut self, partition: Partition, to: i64, last: Option<LastRead>) -> Range {
        let mark = self.marks.get_mut(&partition).expect("a range's partition has a mark");
        let range = Range { partition, from: mark.sent, to, repeats: 0, last };
        mark.sent = to;
        range
    }

    /// Ranges of partitions that hold nothing for this shard, so that its positions do not stand still.
    fn idle_ranges(&mut self, batch: &mut Batch, read: impl Fn(Partition) -> ReadTo) {
        let idle: Vec<_> = self
            .marks
            .iter()
            .filter(|(partition, mark)| {
                let in_batch = batch.ranges.iter().any(|range| range.partition == **partition);
                mark.queued == 0 && !in_batch && mark.sent < mark.known.max(read(**partition).offset)
            })
            .map(|(partition, mark)| {
                let read = read(*partition);
                let to = mark.known.max(read.offset);
                (*partition, to, read.last.filter(|_| to == read.offset))
            })
            .take(RANGES_MAX.saturating_sub(batch.ranges.len()))
            .collect();
        for (partition, to, last) in idle {
            let range = self.range(partition, to, last);
            batch.ranges.push(range);
        }
    }

    /// Whether some partition was read further than this shard knows.
    pub fn behind(&self, read: impl Fn(Partition) -> ReadTo) -> bool {
        let to = |partition: Partition, mark: &Mark| mark.known.max(read(partition).offset);
        self.marks.iter().any(|(partition, mark)| mark.queued == 0 && mark.sent < to(*partition, mark))
    }

    /// The batch is in the shard.
    pub fn applied_up_to(&mut self, batch: &Batch) {
        for range in &batch.ranges {
            if let Some(mark) = self.marks.get_mut(&range.partition) {
                mark.applied = range.to;
            }
            self.dead.retain(|&(partition, offset), _| partition != range.partition || offset >= range.to);
        }
    }

    /// Puts a batch back in front, as if it had never been cut.
    /// The number of records that are in the lane again: those of a partition that was halted meanwhile are not.
    pub fn put_back(&mut self, batch: Batch, now_ms: u64) -> usize {
        let mut back = 0;
        for range in &batch.ranges {
            if let Some(mark) = self.marks.get_mut(&range.partition) {
                mark.sent = range.from;
            }
        }
        for record in batch.records.into_iter().rev() {
            // A partition that was halted meanwhile has no mark any more.
            let Some(mark) = self.marks.get_mut(&record.partition) else { continue };
            mark.queued += 1;
            back += 1;
            if record.partition.input == Input::Commands {
                self.commands.push_front(record);
            } else {
                self.usage_bytes += record.bytes;
                self.waiting_since_ms = Some(now_ms);
                self.usage.push_front(record);
            }
        }
        back
    }

    /// Puts all but the first records of a batch back.
    pub fn shorten(&mut self, batch: Batch, records: usize, now_ms: u64) -> Batch {
        let Batch { records: mut first, ranges, commands_end } = batch;
        let rest = first.split_off(records);
        self.put_back(Batch { records: rest, ranges: ranges.clone(), commands_end }, now_ms);
        let ends = ends(&first);
        let ranges = ranges.into_iter().filter_map(|range| {
            let &(to, last) = ends.get(&range.partition)?;
            let halted = !self.marks.contains_key(&range.partition);
            Some(if halted { range } else { self.range(range.partition, to, last) })
        });
        Batch { ranges: ranges.collect(), records: first, commands_end }
    }

    /// The shard is further than the worker believed: what it has applied is dropped.
    pub fn skip_to(&mut self, partition: Partition, position: i64) {
        self.drop_records(|record| record.partition == partition && record.offset < position);
        if let Some(mark) = self.marks.get_mut(&partition) {
            *mark = Mark { sent: position, applied: position, known: mark.known.max(position), ..*mark };
        }
    }

    /// The shard is back at an older position: its records are read again from there.
    pub fn rewind_to(&mut self, partition: Partition, position: i64) {
        self.drop_records(|record| record.partition == partition);
        self.start(partition, position);
    }

    /// Nothing more of a partition goes to this shard.
    pub fn forget(&mut self, partition: Partition) {
        self.drop_records(|record| record.partition == partition);
        self.marks.remove(&partition);
        self.left_ms.remove(&partition);
    }

    /// Lets go of the usage that waits: it is read again. The number of records.
    pub fn let_go(&mut self) -> usize {
        let before = self.usage.len();
        self.drop_records(|record| record.partition.input == Input::Usage);
        self.reread = true;
        before
    }

    pub fn halt(&mut self) {
        let mut left_ms = std::mem::take(&mut self.left_ms);
        for record in self.unapplied() {
            left_ms.entry(record.partition).or_insert(record.append_ms);
        }
        self.left_ms = left_ms;
        self.drop_records(|_| true);
        self.suspect = false;
        self.shut = None;
        self.work = Work::Halted;
    }

    fn drop_records(&mut self, dropped: impl Fn(&Record) -> bool) {
        for queue in [&mut self.commands, &mut self.usage] {
            queue.retain(|record| {
                let drop = dropped(record);
                if drop && let Some(mark) = self.marks.get_mut(&record.partition) {
                    mark.queued -= 1;
                }
                !drop
            });
        }
        self.usage_bytes = self.usage.iter().map(|record| record.bytes).sum();
        if self.usage.is_empty() {
            self.waiting_since_ms = None;
        }
        // The hold's end of the commands is too old for records that have moved up into its count: it is asked anew.
        self.hold = None;
    }
}

/// Whether a record is of those that go before a time: all of its partition up to the first that was appended then or later.
fn earlier(before_ms: i64) -> impl FnMut(&Record) -> bool {
    let mut over = BTreeSet::new();
    move |record| {
        if record.append_ms >= before_ms {
            over.insert(record.partition);
        }
        !over.contains(&record.partition)
    }
}

/// Where the records of each partition end.
fn ends(records: &[Record]) -> BTreeMap<Partition, (i64, Option<LastRead>)> {
    let end = |record: &Record| (record.partition, (record.offset + 1, Some(record.last_read())));
    runs(records).filter_map(|run| run.last().map(end)).collect()
}

/// How often ranges without records are sent. No reason: round number, well below what anyone watches.
pub const SWEEP_EVERY_MS: u64 = 1_000;
/// Ranges in one call: a script reads seven fields for each and writes as many, at once, and Lua's stack ends at 8,000.
const RANGES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::outcome::DeadReason;
    use crate::pipeline::record::Body;

    #[test]
    fn a_rebuild_goes_by_time_and_a_partitions_own_order_stands_though_a_clock_went_back() {
        let record = |partition: Partition, offset: i64, append_ms: i64| {
            let body = Body::Dead { reason: DeadReason::InvalidJson, account: None };
            Record { partition, offset, append_ms, bytes: 1, fingerprint: 0, body }
        };
        let (one, other) = (Partition::usage(0), Partition::usage(1));
        let mut lane = Lane::default();
        for partition in [one, other, Partition::COMMANDS] {
            lane.start(partition, 0);
        }
        for (partition, offset, append_ms) in
            [(one, 0, 100), (one, 1, 80), (one, 2, 130), (other, 0, 90), (other, 1, 110), (Partition::COMMANDS, 0, 120)]
        {
            assert_eq!(lane.push(record(partition, offset, append_ms), 0), Push::Queued);
        }
        let bounds = Bounds { max_events: 100, max_bytes: 100, max_age_ms: 0 };
        let mut cut_of = |usage_ms: i64, commands_ms: i64| {
            let order = Some(ReadUpTo { usage_ms, commands_ms });
            let due = lane.due_at_ms(bounds, false, order).is_some();
            let batch =
                lane.cut(bounds, 1, |_| ReadTo::default(), order).map(|batch| batch.records).unwrap_or_default();
            assert_eq!(due, !batch.is_empty(), "it is due when there is something to cut, and not else");
            batch.iter().map(|record| (record.partition, record.offset)).collect::<Vec<_>>()
        };
        assert_eq!(cut_of(i64::MAX, 95), [(other, 0)], "commands from 95 on may still come");
        assert_eq!(cut_of(i64::MAX, 95), [], "nor does the command of 120 go before usage that waits for those");
        let mut cut = |usage_ms: i64| cut_of(usage_ms, i64::MAX);
        assert_eq!(cut(85), [], "what one holds first is of 100");
        assert_eq!(cut(105), [(one, 0), (one, 1)]);
        assert_eq!(cut(115), [(other, 1)]);
        assert_eq!(cut(119), [], "usage from before the command may still come");
        assert_eq!(cut(120), [(Partition::COMMANDS, 0)]);
        assert_eq!(cut(120), []);
        assert_eq!(cut(i64::MAX), [(one, 2)]);
    }

    #[test]
    fn what_a_halted_lane_leaves_goes_on_growing_old() {
        let partition = Partition::usage(0);
        let record = |offset: i64, append_ms: i64| {
            let body = Body::Dead { reason: DeadReason::InvalidJson, account: None };
            Record { partition, offset, append_ms, bytes: 1, fingerprint: 0, body }
        };
        let lane = || {
            let mut lane = Lane::default();
            lane.start(partition, 10);
            lane
        };
        let mut waiting = lane();
        waiting.push(record(10, 1_000), 0);
        waiting.push(record(11, 2_000), 0);
        waiting.halt();
        waiting.halt();
        assert_eq!(waiting.push(record(12, 3_000), 0), Push::NotWanted);
        assert_eq!(waiting.oldest_append_ms(partition), Some(1_000));
        // It had nothing to do when it was halted; what it has applied is read again by nobody.
        let mut idle = lane();
        idle.halt();
        assert_eq!(idle.oldest_append_ms(partition), None);
        idle.push(record(9, 500), 0);
        idle.push(record(10, 1_000), 0);
        idle.push(record(11, 2_000), 0);
        assert_eq!(idle.oldest_append_ms(partition), Some(1_000));
    }
}
