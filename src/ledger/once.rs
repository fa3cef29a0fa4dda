//! What is charged once within a cycle (`charge_once`): an account's later events with the same action for the same
//! contact, or company, are free.
//!
//! A *mark* is the hash of action and contact. It is set by an event that was charged, and by no other: one that was
//! denied, or capped with nothing left, took nothing, so the next one is judged. Each cycle has its own, also once it is
//! closed; an account keeps them as it keeps identities (`day.rs`), and forgets them with the cycle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::call::{ApplyCall, CallEvent, Group};
use super::day::{DaySets, Layout, Room};
use super::event::{Class, Identity};
use super::shard::Shard;

/// A cycle's marks as a call knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallMarks {
    pub cycle: i32,
    /// If the account does not have the cycle's yet, they are begun with this layout.
    pub layout: Layout,
}

impl CallMarks {
    pub fn differ_from(&self, stored: &BTreeMap<i32, Layout>) -> bool {
        stored.get(&self.cycle).is_some_and(|layout| *layout != self.layout)
    }
}

/// A cycle of an account whose sets of marks would not have taken as many again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrownMarks {
    pub account: Arc<str>,
    pub cycle: i32,
    pub layout: Layout,
}

/// The mark that an event asks for, and the number of its cycle.
pub fn mark_of(group: &Group, class: &Class, event: &CallEvent) -> Option<(i32, Identity)> {
    let mark = event.event.once.filter(|_| class.once)?;
    Some((class.cycle.unwrap_or(group.cycle), mark))
}

impl Group {
    /// The different marks that its events ask for, by cycle, in the order in which they are met.
    pub fn marks_asked(&self, classes: &[Class]) -> BTreeMap<i32, Vec<Identity>> {
        let mut asked: BTreeMap<i32, Vec<Identity>> = BTreeMap::new();
        // An unknown account's events have no class.
        if self.version == 0 || classes.iter().all(|class| !class.once) {
            return asked;
        }
        let mut met = BTreeSet::new();
        for event in &self.events {
            if let Some((cycle, mark)) = mark_of(self, &classes[event.class], event)
                && met.insert((cycle, mark))
            {
                asked.entry(cycle).or_default().push(mark);
            }
        }
        asked
    }
}

impl Shard {
    /// The call's cycles whose sets have no room for its new marks, with one generation more.
    pub(super) fn marks_without_room(&self, call: &ApplyCall, room: Room) -> Vec<GrownMarks> {
        let mut grown = Vec::new();
        for group in &call.groups {
            for (cycle, marks) in group.marks_asked(&call.classes) {
                let (account, members_max) = (group.account.clone(), call.stamp.set_members_max);
                let Some(sets) = self.marks.get(&(account.clone(), cycle)) else { continue };
                let new: Vec<Identity> = marks.into_iter().filter(|mark| !sets.contains(*mark)).collect();
                if !sets.has_room(new.iter().copied(), room, members_max) {
                    let layout = sets.layout.grown(new.len(), members_max);
                    grown.push(GrownMarks { account, cycle, layout });
                }
            }
        }
        grown
    }

    pub(super) fn grow_marks(&mut self, grown: &[GrownMarks]) {
        for GrownMarks { account, cycle, layout } in grown {
            let sets = self.marks.get_mut(&(account.clone(), *cycle)).expect("marks that grow are there");
            sets.layout = layout.clone();
            let account = self.accounts.get_mut(account).expect("it has marks");
            account.marks.insert(*cycle, layout.clone());
        }
    }

    pub(super) fn has_mark(&self, group: &Group, cycle: i32, mark: Identity) -> bool {
        self.marks.get(&(group.account.clone(), cycle)).expect("the group's marks were begun").contains(mark)
    }

    pub(super) fn set_mark(&mut self, group: &Group, cycle: i32, mark: Identity) {
        let marks = self.marks.get_mut(&(group.account.clone(), cycle));
        marks.expect("the group's marks were begun").insert(mark);
    }

    /// Begins the marks of the cycles that a group asks for.
    pub(super) fn begin_marks(&mut self, group: &Group) {
        for CallMarks { cycle, layout } in &group.marks {
            let account = self.accounts.get_mut(&group.account).expect("an unknown account was refused");
            account.marks.entry(*cycle).or_insert_with(|| layout.clone());
            let begun = self.marks.entry((group.account.clone(), *cycle));
            begun.or_insert_with(|| DaySets::new(layout.clone()));
        }
    }
}
