//! Saves a point for later audits to go on from: which usage is added up in it, which is kept, and the file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use rustc_hash::FxHashSet;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use super::fold::{Folded, Kinds};
use super::look::{FirstLook, Positions};
use super::once::Mark;
use super::point::{Base, ChecksumLine, End, EndLine, Header, day_of_floor};
use super::point::{PointError, SavedAccount, SavedDenial, SavedRecord, SavedShard};
use super::recorded::Denials;
use super::resolve::{Priced, Sums};
use crate::file;
use crate::ledger::account::{AccountView, Life};
use crate::ledger::call::Partition;
use crate::ledger::catalogue::CatalogueId;
use crate::ledger::event::{DAY_MS, Identity};
use crate::store::Root;
use crate::store::stored::parse_view;

/// Writes a point beside the file, which it replaces once the point is whole.
pub struct Saver {
    path: PathBuf,
    partial: PathBuf,
    file: Option<BufWriter<File>>,
    checked: Xxh3,
    pub cut: Positions,
    shards: Vec<SavedShard>,
    pub end: End,
    /// The first that went wrong with the file.
    error: Option<io::Error>,
}

/// The append time from which on usage is not folded: nothing older can be asked for again, but by what came with it.
pub fn cut_ms(first: &FirstLook, early_limit_ms: i64) -> i64 {
    let shards = first.shards.iter();
    // The first day that is not forgotten.
    let days = shards.map(|state| day_of_floor(state.floor_ms, state.restamp_tolerance_ms));
    (days.min().unwrap_or(0) * DAY_MS - early_limit_ms).max(0)
}

impl Saver {
    pub fn create(
        path: &Path,
        root: &Root,
        catalogue: &CatalogueId,
        first: &FirstLook,
        cut: Positions,
        format: u32,
    ) -> Result<Saver, PointError> {
        let partial = file::partial(path);
        let file = File::create(&partial).map_err(|error| PointError::Io { path: partial.clone(), error })?;
        let shards = first.shards.iter().zip(&first.positions).map(|(state, positions)| SavedShard {
            positions: positions.usage().to_vec(),
            floor_ms: state.floor_ms,
            restamp_tolerance_ms: state.restamp_tolerance_ms,
        });
        let mut saver = Saver {
            path: path.to_owned(),
            partial,
            file: Some(BufWriter::new(file)),
            checked: Xxh3::new(),
            shards: shards.collect(),
            end: End::default(),
            error: None,
            cut,
        };
        saver.line(&Header {
            format,
            generation: root.generation.clone(),
            catalogue_version: catalogue.version,
            catalogue_hash: catalogue.hash.clone(),
            cut: saver.cut.usage().to_vec(),
            shards: saver.shards.clone(),
        });
        Ok(saver)
    }

    /// Whether nothing that comes later can change how these attempts ended, or ask for them again.
    pub fn settles<'a>(
        &self,
        shard: u32,
        unpublished: &FxHashSet<(i32, i64)>,
        mut attempts: impl Iterator<Item = &'a Priced>,
    ) -> bool {
        let shard = &self.shards[shard as usize];
        attempts.all(|attempt| {
            let undone =
                attempt.decision.is_some() && unpublished.contains(&(attempt.kept.partition, attempt.kept.offset));
            self.folds(attempt) && shard.forgot(attempt.days.own) && !undone
        })
    }

    /// Whether it lies below the cut: what lies above is read again.
    pub fn folds(&self, attempt: &Priced) -> bool {
        attempt.kept.offset < self.cut.at(Partition::usage(attempt.kept.partition))
    }

    /// Writes what an account's usage below the cut comes to.
    pub fn account(&mut self, name: &str, folded: &Folded, below: &Below, kinds: &Kinds, denials: &Denials) {
        let Some(view) = &folded.commanded.view else { return };
        let stored = folded.stored.as_ref().and_then(|stored| parse_view(&stored.fields).ok());
        let closed: BTreeSet<i32> = stored.map(|stored| stored.closed.into_keys().collect()).unwrap_or_default();
        let floor_ms = self.shards[folded.shard as usize].floor_ms;
        let number = |cycle: &Option<i32>| cycle.unwrap_or(view.cycle.number);
        // A cycle that the floor has passed, and that Redis has forgotten, is compared no more.
        let is_kept = |cycle: &Option<i32>| {
            cycle.is_none_or(|number| {
                let above = view.closed.get(&number).is_none_or(|cycle| cycle.end_ms > floor_ms);
                above || closed.contains(&number)
            })
        };
        let gone = below.sums.charged.keys().map(|(cycle, _)| cycle).chain(below.marks.iter().map(|(cycle, _)| cycle));
        let gone = gone.filter(|cycle| !is_kept(cycle)).map(number).max();
        let forgotten = folded.base.forgotten.max(gone);
        let charged = below.sums.charged.iter().filter(|((cycle, _), _)| is_kept(cycle));
        let marks = below.marks.iter().filter(|(cycle, _)| is_kept(cycle));
        let members = below.sums.members.counts.iter().filter(|((cycle, ..), _)| is_kept(cycle));
        let mut account = SavedAccount {
            account: name.to_owned(),
            charged: charged
                .map(|((cycle, credit_type), sum)| {
                    (number(cycle), credit_type.clone(), sum.min.thousandths(), sum.max.thousandths())
                })
                .collect(),
            marks: marks.map(|(cycle, mark)| (number(cycle), mark.member, mark.other)).collect(),
            members: members
                .map(|((cycle, credit_type, user), sum)| {
                    (number(cycle), credit_type.clone(), user.to_string(), sum.min.thousandths(), sum.max.thousandths())
                })
                .collect(),
            forgotten,
            waiting: closed.into_iter().filter(|number| Some(*number) <= forgotten).collect(),
            records: below.kept.iter().map(|kept| record(folded, kept, kinds, denials)).collect(),
        };
        account.records.sort_unstable_by_key(|record| (record.partition, record.offset));
        let nothing = SavedAccount { account: name.to_owned(), ..SavedAccount::default() };
        if account != nothing {
            self.end.accounts += 1;
            self.end.kept += (account.records.len() + account.marks.len()) as u64;
            self.line(&account);
        }
    }

    fn line(&mut self, line: &impl Serialize) {
        let mut bytes = serde_json::to_vec(line).expect("it is JSON");
        bytes.push(b'\n');
        self.checked.update(&bytes);
        let Some(file) = self.file.as_mut().filter(|_| self.error.is_none()) else { return };
        self.error = file.write_all(&bytes).err();
    }

    /// Puts the point in the file's place.
    pub fn finish(mut self) -> Result<(), PointError> {
        let end = std::mem::take(&mut self.end);
        self.line(&EndLine { end });
        let checksum = format!("{:016x}", self.checked.digest());
        self.line(&ChecksumLine { checksum });
        let replaced = self.replace();
        replaced.map_err(|error| PointError::Io { path: self.path.clone(), error })
    }

    fn replace(&mut self) -> io::Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let Some(file) = self.file.take() else { return Ok(()) };
        let written = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file::replace(&written, &self.partial, &self.path)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // One that is whole has another name by now.
        let _ = fs::remove_file(&self.partial);
    }
}

/// What an account's usage below a cut comes to.
#[derive(Debug, Default)]
pub struct Below {
    /// Of what is settled.
    pub sums: Sums,
    pub marks: BTreeSet<Mark>,
    /// The rest, record by record.
    pub kept: Vec<Priced>,
}

impl Below {
    /// Begins with what a saved point says.
    pub fn of(base: &Base, view: Option<&AccountView>) -> Below {
        let open = view.filter(|view| view.life != Life::Closed).map(|view| view.cycle.number);
        let cycle = |number: i32| (Some(number) != open).then_some(number);
        let mut below = Below::default();
        for ((number, credit_type, user), sum) in &base.members {
            below.sums.members.counts.insert((cycle(*number), credit_type.clone(), user.clone()), *sum);
        }
        for ((number, credit_type), sum) in &base.charged {
            below.sums.charged.insert((cycle(*number), credit_type.clone()), *sum);
        }
        for (number, mark) in &base.marks {
            below.marks.insert((cycle(*number), *mark));
            below.sums.marks.entry(cycle(*number)).or_default().add(1, 1);
        }
        below
    }
}

fn record(folded: &Folded, attempt: &Priced, kinds: &Kinds, denials: &Denials) -> SavedRecord {
    let kept = &attempt.kept;
    let (place, event) = ((kept.partition, kept.offset), &kinds.examples[kept.kind as usize]);
    let pair = |identity: &Identity| (identity.member, identity.other);
    let text = |text: &std::sync::Arc<str>| text.to_string();
    // One that is only in an outbox may never be published.
    let told = attempt.decision.and_then(|_| denials.at(place)).filter(|told| told.published);
    SavedRecord {
        partition: kept.partition,
        offset: kept.offset,
        append_ms: kept.append_ms,
        time_ms: kept.time_ms,
        identity: pair(&kept.identity),
        action: text(&event.action),
        quantity: event.quantity,
        outcome: event.outcome.as_ref().map(text),
        user: Some(text(&kinds.users[kept.user as usize])).filter(|user| !user.is_empty()),
        fields: event.fields.iter().map(|(field, value)| (field.name().to_owned(), text(value))).collect(),
        once: folded.once.get(&place).map(pair),
        voids: folded.voids.get(&place).map(pair),
        denied: told.map(|told| SavedDenial {
            reason: told.decision.reason().to_owned(),
            required: told.required.thousandths(),
            uncovered: told.decision.uncovered().map(|uncovered| uncovered.thousandths()),
        }),
    }
}

/// Where the next audit has to read each partition of a topic of decisions from.
pub fn tails(ends: &BTreeMap<i32, i64>, first: &BTreeMap<i32, i64>) -> BTreeMap<i32, super::point::SavedTail> {
    let from = |partition: &i32, end: i64| first.get(partition).map_or(end, |first| end.min(*first));
    let tail = |(partition, end): (&i32, &i64)| {
        (*partition, super::point::SavedTail { from: from(partition, *end), end: *end })
    };
    ends.iter().map(tail).collect()
}
