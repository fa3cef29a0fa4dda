//! The days whose identities an account keeps, and the sets that each day is spread over.
//!
//! Redis keeps a small set of integers packed and a large one at eight times the size, so a busy day is spread over
//! several. A day only gets more sets, in generations: an identity is remembered in the newest and asked for in all.

use std::collections::BTreeSet;
use std::fmt;

use super::event::{Days, Identity};

/// Members beyond which Redis does not pack a set (`set-max-intset-entries`). More cost memory, not correctness.
pub const SET_MEMBERS_MAX: usize = 512;
/// Sets of one generation.
const SETS_MAX: u32 = 4096;
/// A new generation has so many times the sets of the one before.
const GROWTH: u32 = 8;

/// The generations of a day's sets: how many sets each has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layout(Vec<u32>);

/// One of a day's sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetIndex {
    pub generation: u32,
    pub set: u32,
}

impl SetIndex {
    /// The only set of a quiet day.
    pub const ONLY: SetIndex = SetIndex { generation: 0, set: 0 };
}

impl Layout {
    /// For a day that begins with so many events.
    pub fn first(events: usize, members_max: usize) -> Layout {
        if events * 2 <= members_max { Layout(vec![1]) } else { Layout(vec![spread(events, members_max)]) }
    }

    /// With one generation more, for so many events to come.
    pub fn grown(&self, events: usize, members_max: usize) -> Layout {
        let last = *self.0.last().expect("a layout has a generation");
        let next = last.saturating_mul(GROWTH).min(SETS_MAX).max(spread(events, members_max));
        Layout(self.0.iter().copied().chain([next]).collect())
    }

    pub fn parse(text: &str) -> Option<Layout> {
        let generations: Vec<u32> = text.split(',').map(|sets| sets.parse().ok()).collect::<Option<_>>()?;
        generations.iter().all(|sets| *sets > 0).then_some(Layout(generations))
    }

    pub fn generations(&self) -> usize {
        self.0.len()
    }

    /// Whether the day has one set.
    pub fn is_plain(&self) -> bool {
        self.0 == [1]
    }

    pub fn has_one_set(&self, generation: usize) -> bool {
        self.0[generation] == 1
    }

    /// Where a generation remembers an identity.
    pub fn place(&self, generation: usize, identity: Identity) -> SetIndex {
        SetIndex { generation: generation as u32, set: (identity.other % u64::from(self.0[generation])) as u32 }
    }

    /// All sets of the day, in the order of their generations.
    pub fn sets(&self) -> impl Iterator<Item = SetIndex> {
        let generations = self.0.iter().zip(0..);
        generations.flat_map(|(&sets, generation)| (0..sets).map(move |set| SetIndex { generation, set }))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, sets) in self.0.iter().enumerate() {
            write!(f, "{}{sets}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Sets enough for so many events, with room for several times as many.
fn spread(events: usize, members_max: usize) -> u32 {
    let sets = (events * 8).div_ceil(members_max).next_power_of_two();
    u32::try_from(sets).unwrap_or(SETS_MAX).min(SETS_MAX)
}

/// For what a day's sets must have room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// What comes now: without it the call is refused, and made anew with more sets.
    Now,
    /// As much again, and no less than half of what a single set takes, or a quarter of what one of several takes: calls
    /// differ tenfold in size.
    Again,
}

/// A day's sets, as the ledger holds them. What a cycle was charged for is kept likewise.
#[derive(Clone, Debug, PartialEq)]
pub struct DaySets {
    pub layout: Layout,
    pub sets: std::collections::BTreeMap<SetIndex, BTreeSet<i64>>,
}

impl DaySets {
    pub fn new(layout: Layout) -> DaySets {
        DaySets { layout, sets: Default::default() }
    }

    pub fn contains(&self, identity: Identity) -> bool {
        let places = (0..self.layout.generations()).map(|generation| self.layout.place(generation, identity));
        places.into_iter().any(|place| self.sets.get(&place).is_some_and(|set| set.contains(&identity.member)))
    }

    pub fn insert(&mut self, identity: Identity) {
        let newest = self.layout.place(self.layout.generations() - 1, identity);
        self.sets.entry(newest).or_default().insert(identity.member);
    }

    /// Takes it out of every generation.
    pub fn remove(&mut self, identity: Identity) {
        for generation in 0..self.layout.generations() {
            if let Some(set) = self.sets.get_mut(&self.layout.place(generation, identity)) {
                set.remove(&identity.member);
            }
        }
        // Redis keeps no empty set.
        self.sets.retain(|_, set| !set.is_empty());
    }

    /// Whether the newest sets take as much and stay packed. One of several stands for all, and they are full a little
    /// earlier, since they do not fill evenly.
    pub fn has_room(&self, identities: impl Iterator<Item = Identity> + Clone, room: Room, members_max: usize) -> bool {
        let newest = self.layout.generations() - 1;
        let places = || identities.clone().map(|identity| self.layout.place(newest, identity));
        let Some(measured) = places().min() else { return true };
        let more = places().filter(|place| *place == measured).count();
        let has_one_set = self.layout.has_one_set(newest);
        let next = match room {
            Room::Now => 0,
            Room::Again if has_one_set => more.max(members_max / 2),
            Room::Again => more.max(members_max / 4),
        };
        let members = self.sets.get(&measured).map_or(0, BTreeSet::len) + more + next;
        if has_one_set { members <= members_max } else { members * 8 <= members_max * 7 }
    }
}

/// A day as a call knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallDay {
    pub day: i64,
    pub layout: Layout,
    /// Whether the account was seen to have it; else it is begun with this layout.
    pub known: bool,
}

/// The layouts that a run of events is judged with: of its own day, and of the neighbouring one if there is any.
pub fn layouts_of(days: &[CallDay], run: Days) -> (&Layout, Option<&Layout>) {
    let own = days.iter().find(|day| day.day == run.own).expect("a call names the days of its events");
    let neighbour = days.iter().find(|day| Some(day.day) == run.neighbour && day.known);
    (&own.layout, neighbour.map(|day| &day.layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_day_begins_with_more_sets_and_gets_more() {
        let first = |events: usize| Layout::first(events, 512).to_string();
        assert_eq!((first(1), first(256), first(257), first(4000)), ("1".into(), "1".into(), "8".into(), "64".into()));
        let grown = Layout::first(1, 512).grown(10, 512);
        assert_eq!(grown.to_string(), "1,8");
        assert_eq!(grown.grown(4000, 512).to_string(), "1,8,64");
        assert_eq!(Layout(vec![4096]).grown(1, 512).to_string(), "4096,4096");
        assert_eq!(Layout::parse("1,8"), Some(grown));
        assert_eq!((Layout::parse("0"), Layout::parse("")), (None, None));
    }

    #[test]
    fn sets_get_more_in_time_for_a_call_that_is_larger_than_this_one() {
        let room = |layout: u32, kept: usize, comes: usize, room: Room| {
            let mut day = DaySets::new(Layout(vec![layout]));
            let identity = |member: i64| Identity { member, other: 0 };
            (0..kept as i64).for_each(|member| day.insert(identity(member)));
            day.has_room((0..comes as i64).map(|number| identity(-1 - number)), room, 512)
        };
        // A single set.
        assert!(room(1, 511, 1, Room::Now) && !room(1, 511, 2, Room::Now));
        assert!(room(1, 255, 1, Room::Again) && !room(1, 256, 1, Room::Again));
        assert!(room(1, 0, 256, Room::Again) && !room(1, 0, 257, Room::Again));
        // One of several, which are full at seven eighths.
        assert!(room(8, 447, 1, Room::Now) && !room(8, 447, 2, Room::Now));
        assert!(room(8, 319, 1, Room::Again) && !room(8, 320, 1, Room::Again));
        assert!(room(8, 0, 224, Room::Again) && !room(8, 0, 225, Room::Again));
    }

    #[test]
    fn what_an_older_generation_remembers_is_still_found() {
        let mut day = DaySets::new(Layout(vec![1]));
        let identity = |id: &str| Identity::of("s", id);
        day.insert(identity("a"));
        day.layout = day.layout.grown(1, 512);
        day.insert(identity("b"));
        assert!(day.contains(identity("a")) && day.contains(identity("b")) && !day.contains(identity("c")));
    }
}
