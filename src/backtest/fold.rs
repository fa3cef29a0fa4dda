//! Records through the ledger: one shard, the pipeline's calls, and time as the records tell it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::lines::Timed;
use super::statement::Statement;
use super::tally::Tally;
use crate::ledger::call::{
    ApplyCall, CALL_EVENTS_MAX, Change, CommandCall, Input, Note, Range, RefusalReason, Reply, StaleAccount, Stamp,
};
use crate::ledger::catalogue::Catalogue;
use crate::ledger::event::DAY_MS;
use crate::ledger::once::GrownMarks;
use crate::ledger::outcome::{DeadReason, Outcome};
use crate::ledger::roll::{RollAccount, RollCall};
use crate::ledger::shard::{Account, InitCall, InitReply, Shard};
use crate::ledger::steps::{MeterTime, NEVER_MS, Step, steps_until};
use crate::ledger::time::{ForgetCall, ForgetDays, TimeCall, forgettable};
use crate::pipeline::batch::{Accounts, Batch, Call, DeadNotes, Known};
use crate::pipeline::record::{Body, Record};
use crate::pipeline::recorded::Recorded;

/// The state is of one run, and nobody else's.
const GENERATION: &str = "backtest";

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub late_after_ms: i64,
    pub restamp_tolerance_ms: i64,
    /// Records after it are left out, and time passes up to it.
    pub until_ms: Option<i64>,
}

pub struct Fold {
    settings: Settings,
    catalogue: Arc<Catalogue>,
    stamp: Arc<Stamp>,
    shard: Shard,
    /// As the pipeline knows the accounts: the shard tells.
    accounts: Accounts,
    recorded: Recorded,
    /// Usage that no call has taken yet. Nothing that could change how it is judged lies between its records.
    waiting: Vec<Record>,
    /// Meter time: the largest time of any record so far.
    now_ms: i64,
    /// When accounts change by time alone, soonest first; what `due_of` does not confirm is outdated.
    due: BinaryHeap<Reverse<(i64, Arc<str>)>>,
    due_of: FxHashMap<Arc<str>, i64>,
    /// Days up to this one are forgotten.
    forgotten: i64,
    /// Of cycles that nothing can change any more.
    statements: Vec<Statement>,
    tally: Tally,
}

impl Fold {
    pub fn new(catalogue: Catalogue, settings: Settings) -> Fold {
        let stamp = Arc::new(Stamp {
            generation: GENERATION.to_owned(),
            catalogue: catalogue.id.clone(),
            usage_topic: String::new(),
            restamp_tolerance_ms: settings.restamp_tolerance_ms,
            breakdown: false,
            // What the outbox holds is thrown away after each call.
            outbox_max: usize::MAX,
            // A set in memory may have any size.
            set_members_max: usize::MAX,
            journal_bytes_max: 0,
        });
        let mut shard = Shard::default();
        let (generation, catalogue_id) = (GENERATION.to_owned(), catalogue.id.clone());
        let init = InitCall {
            generation,
            shards: 1,
            catalogue: catalogue_id,
            catalogue_text: "".into(),
            grown: None,
            starts: Vec::new(),
            first_start: true,
        };
        assert_eq!(shard.init(&init), InitReply::Ready);
        Fold {
            settings,
            catalogue: Arc::new(catalogue),
            stamp,
            shard,
            accounts: Accounts::default(),
            recorded: Recorded::default(),
            waiting: Vec::new(),
            now_ms: 0,
            due: BinaryHeap::new(),
            due_of: FxHashMap::default(),
            forgotten: i64::MIN,
            statements: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Takes the next record of the file.
    pub fn record(&mut self, timed: Timed) {
        let Timed { record, time_ms, detail } = timed;
        self.tally.records += 1;
        let Some(time_ms) = time_ms else {
            if let Body::Dead { reason, .. } = &record.body {
                return self.tally.not_judged(
                    reason.name(),
                    record.offset,
                    detail.as_deref().unwrap_or(reason.explain()),
                );
            }
            let reason = DeadReason::InvalidTime;
            return self.tally.not_judged(reason.name(), record.offset, reason.explain());
        };
        if self.settings.until_ms.is_some_and(|until_ms| time_ms > until_ms) {
            self.tally.after_until += 1;
            return;
        }
        let dated_ms = match &record.body {
            // What a void takes back may be long ago.
            Body::Usage(event) => event.dated_ms,
            Body::Command(_) | Body::Tick | Body::Dead { .. } => time_ms,
        };
        self.time(time_ms, dated_ms);
        match &record.body {
            Body::Usage(_) => {
                self.waiting.push(record);
                if self.waiting.len() == CALL_EVENTS_MAX {
                    self.flush();
                }
            }
            Body::Command(_) => {
                self.flush();
                self.settle(vec![record]);
                // One that comes late may open a cycle that is over.
                self.roll_due();
            }
            Body::Tick | Body::Dead { .. } => {}
        }
    }

    /// Lets time pass to the end, and gives all statements by account and cycle.
    pub fn finish(mut self) -> (Vec<Statement>, Tally) {
        let end_ms = self.settings.until_ms.unwrap_or(self.now_ms);
        self.time(end_ms, end_ms);
        self.flush();
        for (name, account) in &self.shard.accounts {
            let closed = account.closed.iter().map(|(number, closed)| Statement::closed(name, *number, closed));
            self.statements.extend(closed.chain(Statement::open(name, account)));
        }
        self.statements.sort_by(|a, b| (&a.account, a.cycle.number).cmp(&(&b.account, b.cycle.number)));
        let fence = self.shard.fence.as_ref().expect("it was made");
        for (&(partition, outcome), &records) in &fence.totals {
            match partition.input {
                Input::Usage if outcome == Outcome::DeadLettered => {}
                Input::Usage => *self.tally.usage.entry(outcome.name()).or_default() += records,
                Input::Commands => *self.tally.commands.entry(outcome.name()).or_default() += records,
            }
        }
        (self.statements, self.tally)
    }

    fn floor_ms(&self) -> i64 {
        self.shard.fence.as_ref().map_or(0, |fence| fence.floor_ms)
    }

    /// Takes the time of a record that counts at `dated_ms`. What waits is judged before anything happens that the record
    /// comes after.
    fn time(&mut self, time_ms: i64, dated_ms: i64) {
        let now_ms = self.now_ms.max(time_ms);
        let renews = self.due.peek().is_some_and(|Reverse((at_ms, _))| *at_ms <= time_ms);
        // The shard's floor follows with each call: one that decides about this record must be there before it.
        let too_late = dated_ms < now_ms - self.settings.late_after_ms && dated_ms >= self.floor_ms();
        if renews || too_late {
            self.flush();
        }
        self.now_ms = now_ms;
        if renews || too_late {
            self.move_time();
        }
        if renews {
            self.roll_due();
        }
    }

    fn flush(&mut self) {
        if !self.waiting.is_empty() {
            let records = std::mem::take(&mut self.waiting);
            self.settle(records);
        }
        self.move_time();
    }

    fn move_time(&mut self) {
        let call = TimeCall {
            generation: GENERATION.to_owned(),
            tick_ms: Some(self.now_ms),
            late_after_ms: self.settings.late_after_ms,
            ends: Vec::new(),
        };
        self.shard.move_time(&call);
        self.forget_days();
    }

    /// Calls the shard until it has taken the records, which are of one input.
    fn settle(&mut self, records: Vec<Record>) {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return };
        let partition = first.partition;
        let (from, to) = (self.shard.position(partition), last.offset + 1);
        let ranges = vec![Range { partition, from, to, repeats: 0, last: None }];
        // No command comes later that could make an unknown account.
        let batch = Batch { records, ranges, commands_end: Some(0) };
        let mut dead = DeadNotes::new();
        loop {
            let call = batch.call(&Known {
                stamp: &self.stamp,
                catalogue: &self.catalogue,
                accounts: &self.accounts,
                dead: &dead,
                recorded: &self.recorded,
                commands_first: None,
                others: Vec::new(),
                late_after_ms: self.settings.late_after_ms,
            });
            let refused = match &call {
                Call::Apply(call) => match self.shard.apply(call) {
                    Reply::Applied(applied) => break self.applied(call, &applied.grown_marks),
                    refused => self.refused(refused),
                },
                Call::Command(call) => match self.shard.command(call) {
                    Reply::Applied(commanded) => break self.commanded(call, commanded.outcome),
                    refused => self.refused(refused),
                },
                Call::Roll(call) => {
                    let reply = self.shard.roll(call);
                    self.refused(reply)
                }
            };
            dead.extend(refused.into_iter().map(|note| ((note.partition, note.offset), note.reason)));
        }
        for ((_, line), reason) in dead {
            self.tally.not_judged(reason.name(), line, reason.explain());
        }
        self.shard.outbox.clear();
    }

    /// Follows a refusal; gives the records that are dead.
    fn refused<T: std::fmt::Debug>(&mut self, reply: Reply<T>) -> Vec<Note> {
        match reply {
            Reply::Stale(shown) => self.learn(shown),
            Reply::Dead(notes) => return notes,
            reply => unreachable!("nobody else writes to this shard: {reply:?}"),
        }
        Vec::new()
    }

    fn learn(&mut self, shown: Vec<StaleAccount>) {
        for StaleAccount { account, view } in shown {
            match view {
                Some(view) => self.accounts.insert(account, view),
                None => self.accounts.remove(&account),
            };
        }
    }

    fn applied(&mut self, call: &ApplyCall, grown: &[GrownMarks]) {
        let late = call.classes.iter().any(|class| class.cycle.is_some());
        for group in &call.groups {
            let begun = group.days.iter().filter(|day| !day.known);
            if let Some(view) = self.accounts.get_mut(&group.account) {
                view.days.extend(begun.map(|day| (day.day, day.layout.clone())));
                view.marks.extend(group.marks.iter().map(|marks| (marks.cycle, marks.layout.clone())));
            }
            if late {
                self.note_due(&group.account);
            }
        }
        for GrownMarks { account, cycle, layout } in grown {
            if let Some(view) = self.accounts.get_mut(account) {
                view.marks.insert(*cycle, layout.clone());
            }
        }
    }

    fn commanded(&mut self, call: &CommandCall, outcome: Outcome) {
        let line = call.range.to - 1;
        match &call.change {
            _ if outcome != Outcome::Refused => {}
            Change::Refuse(refusal) => self.tally.refused(refusal.reason.name(), line, &refusal.message),
            _ => {
                let reason = RefusalReason::BalanceTooLarge;
                self.tally.refused(reason.name(), line, "it would exceed the largest balance");
            }
        }
        let view = self.shard.accounts.get(&call.account).map(Account::view);
        self.learn(vec![StaleAccount { account: call.account.clone(), view }]);
        self.note_due(&call.account);
    }

    fn note_due(&mut self, name: &Arc<str>) {
        let Some(due_ms) = self.shard.accounts.get(name).map(Account::due_ms).filter(|due_ms| *due_ms < NEVER_MS)
        else {
            return;
        };
        if self.due_of.get(name).is_none_or(|known_ms| due_ms < *known_ms) {
            self.due_of.insert(name.clone(), due_ms);
            self.due.push(Reverse((due_ms, name.clone())));
        }
    }

    /// Does what time asks of accounts by now.
    fn roll_due(&mut self) {
        while let Some(Reverse((at_ms, _))) = self.due.peek()
            && *at_ms <= self.now_ms
        {
            let Some(Reverse((at_ms, name))) = self.due.pop() else { return };
            if self.due_of.get(&name) == Some(&at_ms) {
                self.due_of.remove(&name);
                self.roll(&name);
            }
        }
    }

    fn roll(&mut self, name: &Arc<str>) {
        loop {
            let Some(account) = self.shard.accounts.get(name) else { return };
            if account.due_ms() > self.now_ms {
                return self.note_due(name);
            }
            let view = account.view();
            let meter = MeterTime { now_ms: self.now_ms, floor_ms: self.floor_ms() };
            let steps = steps_until(&self.catalogue, &view, self.now_ms, meter);
            if steps.is_empty() {
                // No calendar names a cycle for it.
                return;
            }
            for step in &steps {
                if let Step::Forget { number, .. } = step {
                    self.statements.push(Statement::closed(name, *number, &account.closed[number]));
                }
            }
            let reply = self.shard.roll(&RollCall {
                stamp: self.stamp.clone(),
                others: Vec::new(),
                commands_first: None,
                meter_time_ms: None,
                late_after_ms: self.settings.late_after_ms,
                credit_types: self.catalogue.credit_types.clone(),
                accounts: vec![RollAccount {
                    account: name.clone(),
                    version: view.version,
                    thresholds: Vec::new(), // nobody is told
                    steps,
                }],
            });
            self.refused(reply);
            self.shard.outbox.clear();
        }
    }

    /// Once a day of meter time: the identities that no event can ask for any more.
    fn forget_days(&mut self) {
        let (floor_ms, tolerance_ms) = (self.floor_ms(), self.settings.restamp_tolerance_ms);
        let last_day = (floor_ms - tolerance_ms).div_euclid(DAY_MS) - 1;
        if last_day <= self.forgotten {
            return;
        }
        self.forgotten = last_day;
        let mut accounts = Vec::new();
        for (name, account) in &self.shard.accounts {
            let days = account.days.keys().copied();
            let gone: Vec<i64> = days.filter(|day| forgettable(*day, floor_ms, tolerance_ms)).collect();
            if !gone.is_empty() {
                let read = account.days.iter().map(|(day, layout)| (*day, layout.clone())).collect();
                accounts.push(ForgetDays { account: name.clone(), read, gone });
            }
        }
        for ForgetDays { account, gone, .. } in &accounts {
            if let Some(view) = self.accounts.get_mut(account) {
                view.days.retain(|day, _| !gone.contains(day));
            }
        }
        self.shard.forget(&ForgetCall { generation: GENERATION.to_owned(), accounts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backtest::lines::Lines;
    use crate::ingest::decode;

    fn event(kind: &str, id: &str, time: &str, data: &str) -> String {
        format!(
            "{{\"specversion\":\"1.0\",\"type\":\"credits.{kind}.v1\",\"id\":\"{id}\",\"source\":\"s\",\"subject\":\"acme\",\
             \"time\":\"{time}\",\"data\":{data}}}\n"
        )
    }

    #[test]
    fn a_void_is_judged_when_it_comes_by_the_time_of_its_event() {
        let catalogue = include_str!("../../tests/data/catalogue-voids.toml");
        let check = |late_after_days: i64, void: &str, says: &str, until: &str, told: &str, used: &[&str]| {
            let events = [
                event("account.put", "c1", "2026-01-01T00:00:00Z", "{\"plan\":\"team\",\"anchor\":\"2026-01-01\"}"),
                event("usage", "e1", "2026-01-10T12:00:00Z", "{\"action\":\"reveal_email\",\"quantity\":7}"),
                event(
                    "usage.void",
                    "v1",
                    void,
                    &format!("{{\"source\":\"s\",\"id\":\"e1\",\"time\":\"{says}\",\"action\":\"reveal_email\"}}"),
                ),
            ];
            let catalogue = Catalogue::parse(catalogue).expect("a catalogue");
            let text = events.concat();
            let settings = decode::Settings { max_bytes: 1000, early_limit_ms: 300_000 };
            let mut lines = Lines::new(text.as_bytes(), settings, Arc::new(catalogue.conditions()));
            let until_ms = until.parse().ok().map(|until: chrono::DateTime<chrono::Utc>| until.timestamp_millis());
            let settings = Settings { late_after_ms: late_after_days * DAY_MS, restamp_tolerance_ms: 0, until_ms };
            let mut fold = Fold::new(catalogue, settings);
            while let Some((_, records)) = lines.next_block().expect("memory can be read") {
                records.into_iter().for_each(|timed| fold.record(timed));
            }
            let (statements, tally) = fold.finish();
            let voided = tally.usage.get("voided").map(|records| format!("{records} voided"));
            let left_out = (tally.after_until > 0).then(|| format!("{} left out", tally.after_until));
            let dead = tally.not_judged.iter().map(|(reason, first)| format!("{reason} in line {}", first.first_line));
            let seen: Vec<String> = voided.into_iter().chain(left_out).chain(dead).collect();
            assert_eq!(seen, [told], "{void} {says}");
            let email = statements.iter().filter_map(|each| Some((each.open, each.balances.get("email")?)));
            let email = email.map(|(open, counter)| {
                format!("{} {} {}", if open { "open" } else { "closed" }, counter.charged, counter.expired)
            });
            assert_eq!(email.collect::<Vec<_>>(), used, "{void} {says}");
        };
        let same = "2026-01-10T12:00:00Z";
        // So many days late at most; it comes, and says that its event was at; until | how it ended, what was used, expired
        check(30, "2026-01-11T00:00:00Z", same, "", "1 voided", &["open 0 0"]);
        check(30, "2026-01-10T11:55:00Z", same, "", "1 voided", &["open 0 0"]);
        check(30, "2026-01-10T11:54:59Z", same, "", "too_early in line 3", &["open 7 0"]);
        check(30, "2026-01-11T00:00:00Z", "2026-06-01T00:00:00Z", "", "too_early in line 3", &["open 7 0"]);
        check(30, "2026-02-09T12:00:00Z", same, "", "1 voided", &["closed 0 10", "open 0 0"]);
        check(5, "2026-01-15T12:00:00Z", same, "", "1 voided", &["open 0 0"]);
        check(5, "2026-01-15T12:00:01Z", same, "", "void_too_late in line 3", &["open 7 0"]);
        check(30, "2026-02-09T12:00:01Z", same, "", "void_too_late in line 3", &["closed 7 3", "open 0 0"]);
        check(30, "2026-01-20T00:00:00Z", same, "2026-01-15T00:00:00Z", "1 left out", &["open 7 0"]);
    }
}
