//! Attempts at one event: which of them was decided, and which are duplicates of it.
//!
//! Within a partition the log gives the order. Between partitions nobody knows it afterwards, so that there may be
//! several *readings* of what happened; all that the records allow are kept.

use std::collections::{BTreeMap, BTreeSet};

use crate::ledger::event::Days;

/// Orders that are tried for attempts over several days; more than four attempts in four partitions have.
const STEPS_MAX: usize = 20_000;

/// One attempt. All of an event stand in the order of their partitions and offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub partition: i32,
    pub days: Days,
    /// It was applied before those that are not, whatever their partition: it lies below the first look.
    pub early: bool,
    pub told: Telling,
}

/// What is known of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// A denial says that it was decided.
    Decided,
    /// It may have been decided.
    Open,
    /// Had it been decided, a denial would say so.
    NotDecided,
}

/// For each attempt whether it was decided.
pub type Reading = Vec<bool>;

/// Every way to read what happened that fits the records. Empty: they fit no order at all.
pub fn readings(attempts: &[Attempt]) -> Vec<Reading> {
    let same_day = attempts.windows(2).all(|pair| pair[0].days.own == pair[1].days.own);
    let readings = if same_day { of_one_day(attempts) } else { of_several_days(attempts) };
    readings.into_iter().filter(|reading| fits(attempts, reading)).collect()
}

fn fits(attempts: &[Attempt], reading: &Reading) -> bool {
    attempts.iter().zip(reading).all(|(attempt, decided)| match attempt.told {
        Telling::Decided => *decided,
        Telling::Open => true,
        Telling::NotDecided => !decided,
    })
}

/// One is decided: the first of some partition.
fn of_one_day(attempts: &[Attempt]) -> Vec<Reading> {
    let any_early = attempts.iter().any(|attempt| attempt.early);
    let mut readings = Vec::new();
    for (index, attempt) in attempts.iter().enumerate() {
        let first = index == 0 || attempts[index - 1].partition != attempt.partition;
        if first && (attempt.early || !any_early) {
            let mut reading = vec![false; attempts.len()];
            reading[index] = true;
            readings.push(reading);
        }
    }
    readings
}

/// Tries the orders. A repeat within a call is not remembered under its own day, one of an earlier call is: which
/// it was is not known either.
fn of_several_days(attempts: &[Attempt]) -> Vec<Reading> {
    let mut lanes: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (index, attempt) in attempts.iter().enumerate() {
        lanes.entry(attempt.partition).or_default().push(index);
    }
    let mut search = Search {
        attempts,
        lanes: lanes.into_values().collect(),
        steps: 0,
        decided: vec![false; attempts.len()],
        found: BTreeSet::new(),
    };
    let next = vec![0; search.lanes.len()];
    search.go(&next, &mut Vec::new());
    search.found.into_iter().collect()
}

struct Search<'a> {
    attempts: &'a [Attempt],
    /// By partition, in order.
    lanes: Vec<Vec<usize>>,
    steps: usize,
    decided: Reading,
    found: BTreeSet<Reading>,
}

impl Search<'_> {
    fn go(&mut self, next: &[usize], days: &mut Vec<i64>) {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return;
        }
        let waiting = |lane: usize| self.lanes[lane].get(next[lane]).copied();
        let candidates: Vec<(usize, usize)> =
            (0..next.len()).filter_map(|lane| waiting(lane).map(|index| (lane, index))).collect();
        if candidates.is_empty() {
            self.found.insert(self.decided.clone());
            return;
        }
        let any_early = candidates.iter().any(|(_, index)| self.attempts[*index].early);
        for (lane, index) in candidates {
            let attempt = self.attempts[index];
            if any_early && !attempt.early {
                continue;
            }
            let mut next = next.to_vec();
            next[lane] += 1;
            let duplicate = days.iter().any(|day| *day == attempt.days.own || Some(*day) == attempt.days.neighbour);
            if duplicate {
                self.go(&next, days);
            }
            let known = days.contains(&attempt.days.own);
            if !duplicate || !known {
                self.decided[index] = !duplicate;
                days.push(attempt.days.own);
                self.go(&next, days);
                days.pop();
                self.decided[index] = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::event::DAY_MS;

    const TOLERANCE_MS: i64 = 600_000;
    const MINUTE: i64 = 60_000;

    /// `0:d` is an attempt in partition 0 that a denial tells of, `n` one that it would have told of, `-` neither;
    /// `+` stands before one that is not early; behind `@` are minutes from midnight.
    fn attempts(text: &str) -> Vec<Attempt> {
        let attempt = |text: &str| {
            let (early, text) = text.strip_prefix('+').map_or((true, text), |text| (false, text));
            let (partition, rest) = text.split_once(':').unwrap();
            let (told, minutes) = rest.split_once('@').unwrap_or((rest, "720"));
            let time_ms = 20_000 * DAY_MS + minutes.parse::<i64>().unwrap() * MINUTE;
            let told = match told {
                "d" => Telling::Decided,
                "n" => Telling::NotDecided,
                _ => Telling::Open,
            };
            Attempt { partition: partition.parse().unwrap(), days: Days::of(time_ms, TOLERANCE_MS), early, told }
        };
        text.split(' ').map(attempt).collect()
    }

    #[test]
    fn one_of_the_attempts_is_decided_as_the_records_allow() {
        let check = |text: &str, expected: &[&str]| {
            let readings = readings(&attempts(text));
            let shown = |reading: &Reading| reading.iter().map(|decided| if *decided { 'x' } else { '.' }).collect();
            let mut shown: Vec<String> = readings.iter().map(shown).collect();
            shown.sort();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(shown, expected, "{text}");
        };
        check("0:-", &["x"]);
        check("0:- 0:- 0:-", &["x.."]);
        check("0:- 1:- 1:-", &["x..", ".x."]);
        // a denial says which
        check("0:d 1:-", &["x."]);
        check("0:- 1:d", &[".x"]);
        check("0:- 0:d", &[]); // the first was decided before
        check("0:d 1:d", &[]); // both were
        // one that would have been denied
        check("0:n", &[]);
        check("0:n 1:-", &[".x"]);
        // what lies below the first look came first
        check("+0:- 1:-", &[".x"]);
        check("+0:d 1:-", &[]);
        check("+0:- +1:-", &["x.", ".x"]);
        // over midnight: within the tolerance of it the neighbouring day is asked too
        check("0:-@-5 0:-@4", &["x."]);
        check("0:-@-5 0:-@700", &["xx"]);
        check("0:-@-20 0:-@4", &["x."]); // the second asks the first's day
        check("0:-@-20 1:-@4", &["x.", "xx"]); // the other way round, the first does not ask the second's
        check("0:-@-5 1:-@4", &["x.", ".x"]);
        // the second may have been a repeat within the first's call: then its day does not hold it
        check("0:-@-5 0:-@4 0:-@700", &["x..", "x.x"]);
    }
}
