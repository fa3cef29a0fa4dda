//! Records by how they ended, for each shard and partition: as the log has it, and as the scripts counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::report::{Difference, Report};
use crate::ledger::call::{Input, Partition};
use crate::ledger::outcome::Outcome;
use crate::store::ShardState;

/// A shard's totals of usage, as a saved point has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedTotals {
    certain: Vec<(i32, String, u64)>,
    open: Vec<(i32, String, u64, u64)>,
    open_sums: Vec<(String, u64, u64)>,
    open_records: Vec<(i32, u64)>,
}

/// How often an outcome came: at least and at most. Which of two attempts in different partitions was the
/// duplicate is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bounds {
    min: u64,
    max: u64,
}

#[derive(Clone, Debug)]
pub struct Totals {
    shards: Vec<ShardTotals>,
}

#[derive(Clone, Debug, Default)]
struct ShardTotals {
    certain: BTreeMap<Partition, [u64; Outcome::ALL.len()]>,
    open: BTreeMap<(Partition, Outcome), Bounds>,
    /// Over the partitions of an input there is less that is open.
    open_sums: BTreeMap<(Input, Outcome), Bounds>,
    /// Records that are open, by partition.
    open_records: BTreeMap<Partition, u64>,
}

impl Totals {
    pub fn new(shards: u32) -> Totals {
        Totals { shards: vec![ShardTotals::default(); shards as usize] }
    }

    pub fn add(&mut self, shard: u32, partition: Partition, outcome: Outcome) {
        self.shards[shard as usize].certain.entry(partition).or_default()[outcome as usize] += 1;
    }

    /// Adds records that ended in one of several ways.
    pub fn add_one_of(&mut self, shard: u32, ways: &[Vec<(Partition, Outcome)>]) {
        let totals = &mut self.shards[shard as usize];
        let Some(first) = ways.first() else { return };
        for (partition, _) in first {
            *totals.open_records.entry(*partition).or_default() += 1;
        }
        add_bounds(&mut totals.open, ways, |&(partition, outcome)| (partition, outcome));
        add_bounds(&mut totals.open_sums, ways, |&(partition, outcome)| (partition.input, outcome));
    }

    /// Adds other records.
    pub fn plus(&mut self, other: &Totals) {
        for (own, other) in self.shards.iter_mut().zip(&other.shards) {
            for (partition, counts) in &other.certain {
                let sums = own.certain.entry(*partition).or_default();
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            other.open.iter().for_each(|(key, bounds)| own.open.entry(*key).or_default().add(*bounds));
            other.open_sums.iter().for_each(|(key, bounds)| own.open_sums.entry(*key).or_default().add(*bounds));
            other.open_records.iter().for_each(|(key, records)| *own.open_records.entry(*key).or_default() += records);
        }
    }

    /// As a saved point has them. They are of usage alone.
    pub fn to_saved(&self) -> Vec<SavedTotals> {
        let saved = |totals: &ShardTotals| {
            let counts = totals.certain.iter().flat_map(|(partition, counts)| {
                Outcome::ALL.into_iter().map(|outcome| (partition.index, outcome, counts[outcome as usize]))
            });
            let counts = counts.filter(|(_, _, records)| *records > 0);
            let open = totals.open.iter();
            let sums = totals.open_sums.iter();
            SavedTotals {
                certain: counts.map(|(index, outcome, records)| (index, outcome.name().to_owned(), records)).collect(),
                open: open
                    .map(|((partition, outcome), Bounds { min, max })| {
                        (partition.index, outcome.name().to_owned(), *min, *max)
                    })
                    .collect(),
                open_sums: sums
                    .map(|((_, outcome), Bounds { min, max })| (outcome.name().to_owned(), *min, *max))
                    .collect(),
                open_records: totals.open_records.iter().map(|(partition, n)| (partition.index, *n)).collect(),
            }
        };
        self.shards.iter().map(saved).collect()
    }

    /// `None`: an outcome has a name that is none.
    pub fn from_saved(saved: &[SavedTotals]) -> Option<Totals> {
        let mut totals = Totals::new(saved.len() as u32);
        for (own, saved) in totals.shards.iter_mut().zip(saved) {
            for (index, name, records) in &saved.certain {
                let counts = own.certain.entry(Partition::usage(*index)).or_default();
                counts[Outcome::from_name(name)? as usize] = *records;
            }
            for (index, name, min, max) in &saved.open {
                let key = (Partition::usage(*index), Outcome::from_name(name)?);
                own.open.insert(key, Bounds { min: *min, max: *max });
            }
            for (name, min, max) in &saved.open_sums {
                own.open_sums.insert((Input::Usage, Outcome::from_name(name)?), Bounds { min: *min, max: *max });
            }
            own.open_records = saved.open_records.iter().map(|(index, n)| (Partition::usage(*index), *n)).collect();
        }
        Some(totals)
    }

    /// Compares with what a shard has counted.
    pub fn compare(&self, shard: u32, stored: &ShardState, report: &mut Report) {
        let totals = &self.shards[shard as usize];
        let found: BTreeMap<(Partition, Outcome), u64> =
            stored.totals.iter().map(|(partition, outcome, records)| ((*partition, *outcome), *records)).collect();
        let mut differs = |what: String, expected: String, found: u64| {
            report.differs(Difference {
                account: None,
                shard,
                what,
                expected,
                found: found.to_string(),
                records: Vec::new(),
            });
        };
        let [begun, ended] = stored.writes;
        if begun != ended {
            differs("writes ended".to_owned(), begun.to_string(), ended);
        }
        let mut partitions: Vec<Partition> = totals.certain.keys().chain(totals.open_records.keys()).copied().collect();
        partitions.extend(found.keys().map(|(partition, _)| *partition));
        partitions.sort_unstable();
        partitions.dedup();
        let mut sums: BTreeMap<(Input, Outcome), (u64, u64)> = BTreeMap::new();
        for partition in partitions {
            let certain = totals.certain.get(&partition).copied().unwrap_or_default();
            let (mut records, mut counted) = (totals.open_records.get(&partition).copied().unwrap_or(0), 0);
            let mut wrong = false;
            for outcome in Outcome::ALL {
                let certain = certain[outcome as usize];
                let open = totals.open.get(&(partition, outcome)).copied().unwrap_or_default();
                let bounds = Bounds { min: certain + open.min, max: certain + open.max };
                let found = found.get(&(partition, outcome)).copied().unwrap_or(0);
                records += certain;
                counted += found;
                let sum = sums.entry((partition.input, outcome)).or_default();
                sum.0 += certain;
                sum.1 += found;
                if !(bounds.min..=bounds.max).contains(&found) {
                    wrong = true;
                    differs(format!("total {partition} {}", outcome.name()), bounds.shown(), found);
                }
            }
            if records != counted && !wrong {
                differs(format!("records {partition}"), records.to_string(), counted);
            }
        }
        for ((input, outcome), (certain, found)) in sums {
            let open = totals.open_sums.get(&(input, outcome)).copied().unwrap_or_default();
            let bounds = Bounds { min: certain + open.min, max: certain + open.max };
            // Where nothing is open between the partitions, they have told already.
            if totals.has_open(input, outcome) && !(bounds.min..=bounds.max).contains(&found) {
                differs(format!("total {} {}", input.name(), outcome.name()), bounds.shown(), found);
            }
        }
    }

    /// How many records were added.
    pub fn records(&self, input: Input) -> u64 {
        let of = |partition: &Partition| partition.input == input;
        let sum = |totals: &ShardTotals| -> u64 {
            let certain = totals.certain.iter().filter(|(partition, _)| of(partition)).flat_map(|(_, counts)| counts);
            let open = totals.open_records.iter().filter(|(partition, _)| of(partition)).map(|(_, records)| records);
            certain.chain(open).sum()
        };
        self.shards.iter().map(sum).sum()
    }

    /// All that was added, with the least of what is open.
    pub fn sums(&self, input: Input) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for totals in &self.shards {
            for (_, certain) in totals.certain.iter().filter(|(partition, _)| partition.input == input) {
                for outcome in Outcome::ALL {
                    *sums.entry(outcome.name()).or_default() += certain[outcome as usize];
                }
            }
            for ((of, outcome), bounds) in &totals.open_sums {
                if *of == input {
                    *sums.entry(outcome.name()).or_default() += bounds.min;
                }
            }
        }
        sums.retain(|_, records| *records > 0);
        sums
    }
}

impl ShardTotals {
    fn has_open(&self, input: Input, outcome: Outcome) -> bool {
        self.open
            .iter()
            .any(|((partition, of), bounds)| partition.input == input && *of == outcome && bounds.min != bounds.max)
    }
}

impl Bounds {
    fn add(&mut self, other: Bounds) {
        self.min += other.min;
        self.max += other.max;
    }

    fn shown(self) -> String {
        if self.min == self.max { self.min.to_string() } else { format!("{} to {}", self.min, self.max) }
    }
}

fn add_bounds<K: Ord + Copy>(
    bounds: &mut BTreeMap<K, Bounds>,
    ways: &[Vec<(Partition, Outcome)>],
    key: impl Fn(&(Partition, Outcome)) -> K,
) {
    let mut each: BTreeMap<K, Bounds> = BTreeMap::new();
    for (index, way) in ways.iter().enumerate() {
        let mut counts: BTreeMap<K, u64> = BTreeMap::new();
        for record in way {
            *counts.entry(key(record)).or_default() += 1;
        }
        for (key, bounds) in &mut each {
            bounds.min = bounds.min.min(counts.get(key).copied().unwrap_or(0));
        }
        for (key, count) in counts {
            let own = each.entry(key).or_insert(Bounds { min: if index == 0 { count } else { 0 }, max: count });
            own.max = own.max.max(count);
        }
    }
    for (key, own) in each {
        bounds.entry(key).or_default().add(own);
    }
}
