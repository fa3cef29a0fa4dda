//! Room: who is read on, what is paused, and why. Says what the client has to do, and asks it for nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::ledger::call::{Input, Partition};

/// Records decoded that the worker has not taken yet, at most (and a chunk).
const ON_THE_WAY_MAX: usize = 20_000;
/// A short wait for room costs nothing; a longer one pauses the partitions, so that Kafka goes on seeing polls.
const UNPOLLED_MAX: Duration = Duration::from_secs(1);

/// What the worker has enough of.
#[derive(Debug, Default)]
pub struct Enough {
    pub usage: AtomicBool,
    /// Also of the usage partition that is behind the others: nothing waits for it.
    pub slowest: AtomicBool,
    pub commands: AtomicBool,
    /// Records on their way from the thread to the worker.
    pub on_the_way: AtomicUsize,
}

impl Enough {
    fn of(&self, input: Input) -> bool {
        match input {
            Input::Usage => self.usage.load(Ordering::Acquire),
            Input::Commands => self.commands.load(Ordering::Acquire),
        }
    }
}

/// Whether to ask the client for records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Not for a moment: a short wait polls nothing.
    Wait,
    /// For those that are not paused. The worker has enough of these topics.
    Read { full: Vec<Input> },
}

/// What the client has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub pause: Vec<Partition>,
    pub resume: Vec<Partition>,
}

#[derive(Debug)]
pub struct Room {
    enough: Arc<Enough>,
    /// Whether of usage those wait that are ahead of the others, and no others while something waits for them.
    in_order: bool,
    full_since: Option<Instant>,
    /// Since when nothing waits for the usage partition that is behind the others. It may be so for a moment, between
    /// records that go.
    idle_since: Option<Instant>,
    /// That partition is read although there is enough.
    slowest_goes_on: bool,
    /// Of the partitions that are read, those that are paused.
    paused: BTreeSet<Partition>,
}

impl Room {
    pub fn new(enough: Arc<Enough>, in_order: bool) -> Room {
        let (full_since, idle_since, paused) = (None, None, BTreeSet::new());
        Room { enough, in_order, full_since, idle_since, slowest_goes_on: true, paused }
    }

    /// Records go to the worker, which takes them off again.
    pub fn sent(&self, records: usize) {
        self.enough.on_the_way.fetch_add(records, Ordering::AcqRel);
    }

    /// Whether the worker has enough for now. After a longer wait the rest is read: usage may wait for commands, and in a
    /// rebuild for the slowest partition.
    pub fn look(&mut self, now: Instant) -> Look {
        if !self.enough.slowest.load(Ordering::Acquire) {
            self.idle_since = None;
        } else if self.idle_since.is_none() {
            self.idle_since = Some(now);
        }
        self.slowest_goes_on = self.idle_since.is_none_or(|since| now.duration_since(since) < UNPOLLED_MAX);
        if self.enough.on_the_way.load(Ordering::Acquire) >= ON_THE_WAY_MAX {
            return Look::Wait;
        }
        let full: Vec<Input> = Input::ALL.into_iter().filter(|input| self.enough.of(*input)).collect();
        if full.is_empty() {
            self.full_since = None;
        } else if now.duration_since(*self.full_since.get_or_insert(now)) < UNPOLLED_MAX {
            return Look::Wait;
        }
        Look::Read { full }
    }

    /// Which of the partitions that are read are to be paused, since there is enough of them, and which to be resumed.
    pub fn change<'a>(
        &self,
        reading: impl Iterator<Item = &'a Partition>,
        full: &[Input],
        ahead: &BTreeSet<Partition>,
    ) -> Change {
        let waits = |partition: &Partition| match partition.input {
            Input::Usage if self.in_order && self.slowest_goes_on => ahead.contains(partition),
            Input::Usage if self.in_order => full.contains(&Input::Usage) || ahead.contains(partition),
            input => full.contains(&input),
        };
        let changed = reading.copied().filter(|own| waits(own) != self.is_paused(*own));
        let (pause, resume) = changed.partition(waits);
        Change { pause, resume }
    }

    /// The client has done it.
    pub fn paused(&mut self, partitions: &[Partition]) {
        self.paused.extend(partitions);
    }

    /// The client has done it.
    pub fn resumed(&mut self, partitions: &[Partition]) {
        partitions.iter().for_each(|partition| self.forget(*partition));
    }

    pub fn forget(&mut self, partition: Partition) {
        self.paused.remove(&partition);
    }

    /// Of a new assignment nothing is paused.
    pub fn assigned(&mut self) {
        self.paused.clear();
    }

    pub fn is_paused(&self, partition: Partition) -> bool {
        self.paused.contains(&partition)
    }
}

impl Change {
    pub fn is_none(&self) -> bool {
        self.pause.is_empty() && self.resume.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_wait_polls_nothing_and_a_longer_one_reads_the_rest() {
        let enough = Arc::new(Enough::default());
        let mut room = Room::new(enough.clone(), false);
        let begin = Instant::now();
        let mut look = |ms: u64| room.look(begin + Duration::from_millis(ms));
        assert_eq!(look(0), Look::Read { full: vec![] });
        enough.usage.store(true, Ordering::Release);
        assert_eq!((look(10), look(1009)), (Look::Wait, Look::Wait));
        assert_eq!(look(1010), Look::Read { full: vec![Input::Usage] });
        enough.commands.store(true, Ordering::Release);
        assert_eq!(look(1011), Look::Read { full: vec![Input::Usage, Input::Commands] });
        // What is on its way waits whatever else there is, and room begins a new wait.
        enough.on_the_way.store(ON_THE_WAY_MAX, Ordering::Release);
        assert_eq!(look(9000), Look::Wait);
        enough.on_the_way.store(ON_THE_WAY_MAX - 1, Ordering::Release);
        assert_eq!(look(9001), Look::Read { full: vec![Input::Usage, Input::Commands] });
        enough.usage.store(false, Ordering::Release);
        enough.commands.store(false, Ordering::Release);
        assert_eq!(look(9002), Look::Read { full: vec![] });
        enough.usage.store(true, Ordering::Release);
        assert_eq!((look(9003), look(10_002)), (Look::Wait, Look::Wait));
    }

    #[test]
    fn the_slowest_partition_is_paused_once_nothing_has_waited_for_it_for_a_while() {
        let enough = Arc::new(Enough::default());
        let mut room = Room::new(enough.clone(), true);
        let begin = Instant::now();
        let mut pauses = |ms: u64, waits: bool| {
            enough.slowest.store(!waits, Ordering::Release);
            room.look(begin + Duration::from_millis(ms));
            room.change([Partition::usage(0)].iter(), &[Input::Usage], &BTreeSet::new()).pause.len()
        };
        assert_eq!((pauses(0, true), pauses(5_000, true)), (0, 0), "what waits for it would wait for ever");
        assert_eq!((pauses(6_000, false), pauses(6_999, false)), (0, 0));
        assert_eq!(pauses(7_000, false), 1, "redis does not answer: the log does not fit into memory");
        assert_eq!((pauses(8_000, true), pauses(8_500, false)), (0, 0));
    }

    #[test]
    fn what_there_is_enough_of_is_paused_and_in_a_rebuild_what_is_ahead() {
        let partition = |number: i32| if number == 9 { Partition::COMMANDS } else { Partition::usage(number) };
        // Reads usage 0 and 1, and commands (9).
        let check = |in_order: bool, paused: &[i32], full: &[Input], ahead: &[i32], pause: &[i32], resume: &[i32]| {
            let all = |numbers: &[i32]| numbers.iter().map(|number| partition(*number)).collect::<Vec<_>>();
            let mut room = Room::new(Arc::default(), in_order);
            room.paused(&all(paused));
            let change = room.change(all(&[0, 1, 9]).iter(), full, &all(ahead).into_iter().collect());
            let expected = Change { pause: all(pause), resume: all(resume) };
            assert_eq!(change, expected, "{in_order} {paused:?} {full:?} {ahead:?}");
        };
        let (usage, commands) = (&[Input::Usage], &[Input::Commands]);
        //    in order  paused     full      ahead    | pause   resume
        check(false, &[], &[], &[], &[], &[]);
        check(false, &[], usage, &[], &[0, 1], &[]);
        check(false, &[0, 1], usage, &[], &[], &[]);
        check(false, &[0, 1], commands, &[], &[9], &[0, 1]);
        check(false, &[0], &[], &[0], &[], &[0]);
        check(true, &[], &[], &[1], &[1], &[]);
        check(true, &[1], usage, &[1], &[], &[]);
        check(true, &[1], commands, &[0], &[0, 9], &[1]);
    }
}
