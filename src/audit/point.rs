//! A saved point: what the usage below a cut through its log came to, so that a later audit reads only the rest.
//!
//! Its sums were folded from the log, never read from Redis; that tells only what is forgotten. A line an account, between
//! a header and an end with a checksum. Usage below the cut is added up in it where nothing that comes later can ask for it
//! again, and kept record by record elsewhere. Commands are not in it: their log is kept for ever, and is folded from its
//! start each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::fold::Folded;
use super::look::{FirstLook, Positions};
use super::recorded::{Decision, Heard, Reached, Told};
use super::resolve::Between;
use super::slices::Slice;
use super::totals::{SavedTotals, Totals};
use crate::ledger::call::Partition;
use crate::ledger::catalogue::{CatalogueId, Field};
use crate::ledger::credits::Credits;
use crate::ledger::event::{DAY_MS, Days, Identity, UsageEvent};
use crate::ledger::time::forgettable;
use crate::store::Root;
use crate::store::stored::parse_view;

/// The layout of a saved point. Those of format 1, and those that go on from one, do not have what members had charged.
pub const FORMAT: u32 = 2;

const ANOTHER: &str = "audit from another saved point, or without --from";

/// Why a saved point cannot be used, or made.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{} is no saved point of an audit: its first line is not one's; {ANOTHER}", path.display())]
    NotOne { path: PathBuf },
    #[error("{} has format {format}, this program knows up to {FORMAT}: use a newer one", path.display())]
    Newer { path: PathBuf, format: u32 },
    #[error("{} is torn or was changed: line {line}: {reason}; {ANOTHER}", path.display())]
    Torn { path: PathBuf, line: u64, reason: String },
    #[error("{} says something of account {account} that this program does not know: use a newer one", path.display())]
    Unknown { path: PathBuf, account: String },
    #[error(
        "{} was saved from state {saved}, redis holds state {stored}: {ANOTHER}",
        path.display()
    )]
    OtherGeneration { path: PathBuf, saved: String, stored: String },
    #[error("{} was saved from {saved} shards, the state has {stored}: {ANOTHER}", path.display())]
    OtherShards { path: PathBuf, saved: usize, stored: u32 },
    #[error(
        "{} was priced by catalogue version {} (hash {}), this one is version {} (hash {}): use the one in force",
        path.display(), saved.version, saved.hash, own.version, own.hash
    )]
    OtherCatalogue { path: PathBuf, saved: CatalogueId, own: CatalogueId },
    #[error(
        "{} counts {partition} up to offset {cut}, shard {shard} is at {at}: redis holds an older state; once the meter \
         has caught up, audit from a point that was saved before that state, or without --from",
        path.display()
    )]
    Behind { path: PathBuf, shard: u32, partition: Partition, cut: i64, at: i64 },
    #[error(
        "usage:{}@{} was decided anew after {} was saved, which had counted it ({}): redis went back to an older state; \
         audit from a point that was saved before that state, or without --from",
        again.partition, again.offset, path.display(), told_by(again.heard)
    )]
    DecidedAgain { path: PathBuf, again: Again },
    #[error(
        "{partition}@{offset} is dated before all that {} remembers, and it was not too late: redis went back to an older \
         state; audit from a point that was saved before that state, or without --from",
        path.display()
    )]
    DatedBefore { path: PathBuf, partition: Partition, offset: i64 },
    #[error(
        "account {account} has cycle {cycle} again, which was forgotten when {} was saved: redis went back to an older \
         state; audit from a point that was saved before that state, or without --from",
        path.display()
    )]
    CycleAgain { path: PathBuf, account: String, cycle: i32 },
}

/// A decision about usage that a saved point has counted, which it did not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    pub heard: Heard,
    pub partition: i32,
    pub offset: i64,
}

fn told_by(heard: Heard) -> String {
    match heard {
        Heard::Outbox => "an outbox tells of it".to_owned(),
        Heard::Topic { partition, offset } => format!("message {partition}@{offset} tells of it"),
    }
}

/// What a point is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    #[serde(rename = "credit_meter_audit_point")]
    pub format: u32,
    pub generation: String,
    pub catalogue_version: u32,
    pub catalogue_hash: String,
    /// Usage below it is folded, by partition.
    pub cut: Vec<i64>,
    pub shards: Vec<SavedShard>,
}

/// A shard as it was when the audit began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedShard {
    /// By usage partition.
    pub positions: Vec<i64>,
    pub floor_ms: i64,
    pub restamp_tolerance_ms: i64,
}

impl SavedShard {
    /// Whether identities of a day are among those that were added up.
    pub fn forgot(&self, day: i64) -> bool {
        forgettable(day, self.floor_ms, self.restamp_tolerance_ms)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Format {
    #[serde(rename = "credit_meter_audit_point")]
    format: u32,
}

/// What is known once all accounts are written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    pub accounts: u64,
    /// Records that are kept, and marks.
    pub kept: u64,
    pub ambiguous: u64,
    pub collisions: u64,
    pub totals: Vec<SavedTotals>,
    /// By partition of the topic.
    pub denied: BTreeMap<i32, SavedTail>,
    pub dead_letters: BTreeMap<i32, SavedTail>,
    /// The offsets of commands that ended as dead letters.
    pub dead_commands: Vec<i64>,
    /// Those of commands that were refused, with when it was told, and how far the topic was read that tells so, by partition.
    /// Older points do not have it: the topic is read from its start.
    #[serde(default)]
    pub refused_commands: Vec<(i64, i64)>,
    #[serde(default)]
    pub ledger: BTreeMap<i32, i64>,
}

/// Where a topic of decisions is to be read from, and where it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTail {
    pub from: i64,
    pub end: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct EndLine {
    pub end: End,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ChecksumLine {
    /// XXH3 of all bytes before this line.
    pub checksum: String,
}

/// What the usage of an account below the cut came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedAccount {
    pub account: String,
    /// Cycle, credit type, and the least and the most that was charged, in thousandths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub charged: Vec<(i32, String, i64, i64)>,
    /// What was charged once, by cycle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<(i32, i64, u64)>,
    /// If members have had limits: cycle, credit type, member, and the least and the most that was charged, in thousandths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<(i32, String, String, i64, i64)>,
    /// The last cycle whose sums are not here any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten: Option<i32>,
    /// Cycles up to that one whose sums are here, since Redis had not forgotten them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<i32>,
    /// Usage below the cut that may still be asked for, or hangs together with usage above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<SavedRecord>,
}

/// A usage record: what its price, its identity and its decision depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedRecord {
    pub partition: i32,
    pub offset: i64,
    pub append_ms: i64,
    pub time_ms: i64,
    pub identity: (i64, u64),
    pub action: String,
    pub quantity: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<(i64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voids: Option<(i64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<SavedDenial>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedDenial {
    pub reason: String,
    /// In thousandths.
    pub required: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncovered: Option<i64>,
}

impl SavedRecord {
    /// The event, as far as anything depends on it; `None`: a field has a name that is none.
    pub fn event(&self) -> Option<UsageEvent> {
        let identity = |(member, other): (i64, u64)| Identity { member, other };
        let field = |(name, value): &(String, String)| Some((Field::from_name(name)?, Arc::from(value.as_str())));
        Some(UsageEvent {
            account: "".into(),
            source: "".into(),
            id: "".into(),
            time_ms: self.time_ms,
            dated_ms: self.time_ms.min(self.append_ms),
            action: self.action.as_str().into(),
            quantity: self.quantity,
            outcome: self.outcome.as_deref().map(Arc::from),
            user: self.user.as_deref().map(Arc::from),
            fields: self.fields.iter().map(field).collect::<Option<_>>()?,
            once: self.once.map(identity),
            voids: self.voids.map(identity),
            identity: identity(self.identity),
        })
    }

    /// What a denial says of it, if there is one; the outer `None`: it says what no denial says.
    pub fn told(&self, account: &Arc<str>) -> Option<Option<Told>> {
        let Some(SavedDenial { reason, required, uncovered }) = &self.denied else { return Some(None) };
        let (member, other) = self.identity;
        Some(Some(Told {
            account: account.clone(),
            identity: Identity { member, other },
            decision: Decision::named(reason, uncovered.map(Credits::from_thousandths))?,
            required: Credits::from_thousandths(*required),
            contradicted: false,
            found: false,
            published: true,
        }))
    }
}

/// What a saved point says of an account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Base {
    /// By cycle and credit type.
    pub charged: BTreeMap<(i32, String), Between<Credits>>,
    /// By cycle, credit type and member.
    pub members: BTreeMap<(i32, String, Arc<str>), Between<Credits>>,
    pub marks: BTreeSet<(i32, Identity)>,
    pub forgotten: Option<i32>,
    pub waiting: Vec<i32>,
}

impl Base {
    pub fn of(saved: &SavedAccount) -> Base {
        let between = |min: i64, max: i64| {
            let amount = Credits::from_thousandths;
            Between { min: amount(min), max: amount(max) }
        };
        let charged = saved.charged.iter();
        let charged =
            charged.map(|(cycle, credit_type, min, max)| ((*cycle, credit_type.clone()), between(*min, *max)));
        let members = saved.members.iter().map(|(cycle, credit_type, user, min, max)| {
            ((*cycle, credit_type.clone(), user.as_str().into()), between(*min, *max))
        });
        let mark = |(cycle, member, other): &(i32, i64, u64)| (*cycle, Identity { member: *member, other: *other });
        Base {
            charged: charged.collect(),
            members: members.collect(),
            marks: saved.marks.iter().map(mark).collect(),
            forgotten: saved.forgotten,
            waiting: saved.waiting.clone(),
        }
    }
}

/// The first UTC day whose identities are remembered.
pub fn day_of_floor(floor_ms: i64, restamp_tolerance_ms: i64) -> i64 {
    (floor_ms - restamp_tolerance_ms).div_euclid(DAY_MS)
}

/// A point that was saved, whole and of this state.
pub struct Point {
    pub path: PathBuf,
    pub header: Header,
    pub end: End,
    pub cut: Positions,
    pub totals: Totals,
    file: BufReader<File>,
}

impl Point {
    /// What lies below the cut is dated before it.
    pub fn begins_ms(&self) -> i64 {
        let days = self.header.shards.iter().map(|shard| day_of_floor(shard.floor_ms, shard.restamp_tolerance_ms));
        (days.min().unwrap_or(0) * DAY_MS).max(0)
    }

    /// Whether it has what members had charged.
    pub fn counts_members(&self) -> bool {
        self.header.format >= 2
    }

    /// Reads it through once, and checks all but whether it is of this state.
    pub fn open(path: &Path) -> Result<Point, PointError> {
        let io = |error| PointError::Io { path: path.to_owned(), error };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut line = Vec::new();
        file.read_until(b'\n', &mut line).map_err(io)?;
        let not_one = || PointError::NotOne { path: path.to_owned() };
        let Format { format } = serde_json::from_slice(&line).map_err(|_| not_one())?;
        if format > FORMAT {
            return Err(PointError::Newer { path: path.to_owned(), format });
        }
        let header: Header = serde_json::from_slice(&line).map_err(|_| not_one())?;

        let mut checked = Xxh3::new();
        checked.update(&line);
        let (mut number, mut before) = (1, line.clone());
        let torn =
            |line: u64, reason: &str| Err(PointError::Torn { path: path.to_owned(), line, reason: reason.to_owned() });
        loop {
            line.clear();
            number += 1;
            if file.read_until(b'\n', &mut line).map_err(io)? == 0 {
                return torn(number, "the file ends without a checksum");
            }
            if let Ok(ChecksumLine { checksum }) = serde_json::from_slice(&line) {
                if checksum != format!("{:016x}", checked.digest()) {
                    return torn(number, "the checksum is that of other lines");
                }
                break;
            }
            checked.update(&line);
            std::mem::swap(&mut before, &mut line);
        }
        if !file.fill_buf().map_err(io)?.is_empty() {
            return torn(number + 1, "there is something behind the checksum");
        }
        let Ok(EndLine { end }) = serde_json::from_slice(&before) else {
            return torn(number - 1, "it is not the end");
        };
        let Some(totals) = Totals::from_saved(&end.totals).filter(|_| end.totals.len() == header.shards.len()) else {
            return torn(number - 1, "its totals are none of these shards");
        };
        let cut = Positions::of_usage(header.cut.clone());
        Ok(Point { path: path.to_owned(), header, end, cut, totals, file })
    }

    /// Whether it is of this state, and the state has not fallen back behind it.
    pub fn check(&self, root: &Root, catalogue: &CatalogueId, first: &FirstLook) -> Result<(), PointError> {
        let (path, header) = (self.path.clone(), &self.header);
        if header.generation != root.generation {
            let (saved, stored) = (header.generation.clone(), root.generation.clone());
            return Err(PointError::OtherGeneration { path, saved, stored });
        }
        if header.shards.len() != root.shards as usize {
            return Err(PointError::OtherShards { path, saved: header.shards.len(), stored: root.shards });
        }
        let saved = CatalogueId { version: header.catalogue_version, hash: header.catalogue_hash.clone() };
        if saved.version > catalogue.version || saved.version == catalogue.version && saved != *catalogue {
            return Err(PointError::OtherCatalogue { path, saved, own: catalogue.clone() });
        }
        for (shard, positions) in (0..).zip(&first.positions) {
            for (index, cut) in (0..).zip(self.cut.usage()) {
                let (partition, cut) = (Partition::usage(index), *cut);
                let at = positions.at(partition);
                if at < cut {
                    return Err(PointError::Behind { path, shard, partition, cut, at });
                }
            }
        }
        Ok(())
    }

    /// Gives the accounts of a slice.
    pub fn accounts(&mut self, slice: Slice) -> Result<Vec<SavedAccount>, PointError> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            account: std::borrow::Cow<'a, str>,
        }
        let path = self.path.clone();
        let io = |error| PointError::Io { path: path.clone(), error };
        self.file.rewind().map_err(io)?;
        let (mut line, mut accounts) = (Vec::new(), Vec::new());
        self.file.read_until(b'\n', &mut line).map_err(io)?;
        for number in 0..self.end.accounts {
            line.clear();
            self.file.read_until(b'\n', &mut line).map_err(io)?;
            let torn = |error: serde_json::Error| {
                let reason = format!("it is no account: {error}");
                PointError::Torn { path: path.clone(), line: number + 2, reason }
            };
            let Named { account } = serde_json::from_slice(&line).map_err(torn)?;
            if slice.holds(&account) {
                accounts.push(serde_json::from_slice(&line).map_err(torn)?);
            }
        }
        Ok(accounts)
    }

    pub fn denied(&self) -> Reached {
        self.reached(&self.end.denied)
    }

    pub fn dead_letters(&self) -> Reached {
        self.reached(&self.end.dead_letters)
    }

    fn reached(&self, tails: &BTreeMap<i32, SavedTail>) -> Reached {
        Reached { cut: self.cut.clone(), ends: tails.iter().map(|(partition, tail)| (*partition, tail.end)).collect() }
    }

    /// Whether all attempts at an event are known that may have been there before a record that came later.
    pub fn judges(&self, shard: u32, partition: Partition, offset: i64, time_ms: i64, tolerance_ms: i64) -> bool {
        let shard = &self.header.shards[shard as usize];
        let index = usize::try_from(partition.index).expect("partitions count from 0");
        if offset < shard.positions.get(index).copied().unwrap_or(0) {
            return true;
        }
        let days = Days::of(time_ms, tolerance_ms);
        ![Some(days.own), days.neighbour].into_iter().flatten().any(|day| shard.forgot(day))
    }

    /// A closed cycle that Redis holds again, though it was forgotten.
    pub fn cycle_again(folded: &Folded) -> Option<i32> {
        let Base { forgotten, waiting, .. } = &folded.base;
        let last = (*forgotten)?;
        let again = |number: &i32| *number <= last && !waiting.contains(number);
        let stored = parse_view(&folded.stored.as_ref()?.fields).ok()?;
        stored.closed.into_keys().find(again)
    }
}
