//! The call that applies usage events: `lua/apply.lua`'s keys, arguments and reply.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use chrono_tz::Tz;
use rustc_hash::FxHashMap;

use super::StoreError;
use super::apply_lines::write_line;
use super::apply_rows::{Row, told};
use super::keys::{Key, Keys};
use super::scripts::{Script, levels_text, others, refused, unexpected};
use super::stored::number;
use super::words::{Fields, Input, Packed};
use crate::ledger::apply::json_text;
use crate::ledger::call::{Applied, ApplyCall, CallEvent, Group, GrownDay, Reply};
use crate::ledger::catalogue::Overage;
use crate::ledger::credits::Credits;
use crate::ledger::day::{Layout, SetIndex, layouts_of};
use crate::ledger::event::{CallEvents, Class, Days, Identity, Judge};
use crate::ledger::members::MemberCount;
use crate::ledger::once::{GrownMarks, mark_of};
use crate::ledger::outcome::{Denial, Verdict};
use crate::ledger::usage::{day_number, local_day, quarter_hour};

pub struct ApplyScript<'a> {
    pub shard: u32,
    pub call: &'a ApplyCall,
}

impl Script for ApplyScript<'_> {
    const NAME: &'static str = "apply";
    const SOURCE: &'static str = concat!(
        include_str!("lua/account.lua"),
        include_str!("lua/usage.lua"),
        include_str!("lua/apply_once.lua"),
        include_str!("lua/apply_members.lua"),
        include_str!("lua/apply.lua"),
        include_str!("lua/apply_late.lua"),
        include_str!("lua/apply_usage.lua"),
        include_str!("lua/apply_void.lua"),
        include_str!("lua/apply_decide.lua"),
    );
    type Reply = Reply<Applied>;

    fn input(&self, keys: &Keys) -> Input {
        let call = self.call;
        let mut input = Input::default();
        input.key(keys, Key::Shard(self.shard));
        input.key(keys, Key::Notes(self.shard));
        input.key(keys, Key::Outbox(self.shard));
        input.key(keys, Key::Due(self.shard));
        input.text(&call.stamp.generation);
        input.number(call.stamp.catalogue.version);
        input.text(&call.stamp.catalogue.hash);
        input.number(call.stamp.outbox_max);
        input.number(call.stamp.restamp_tolerance_ms);
        input.text(call.commands_end.map_or(String::new(), |end| end.to_string()));
        input.text(call.commands_first.map_or(String::new(), |first| first.to_string()));
        input.number(call.stamp.set_members_max);
        input.number(call.stamp.journal_bytes_max);
        input.text(&call.stamp.usage_topic);
        input.text(json_text(&call.stamp.usage_topic));
        input.number(call.ranges.len());
        for range in &call.ranges {
            input.text(range.partition.to_string());
            input.number(range.from);
            input.number(range.to);
            input.number(range.repeats);
            input.last_read(range.last);
        }
        others(&mut input, &call.others);
        input.number(call.found.len() + call.dead.len());
        let found = call.found.iter().map(|note| (note, "0"));
        for (note, produced) in found.chain(call.dead.iter().map(|note| (note, "1"))) {
            let range = call.ranges.iter().position(|range| range.partition == note.partition);
            input.number(range.expect("a dead record lies in a range of its call"));
            input.number(note.offset);
            input.text(note.reason.name());
            input.text(produced);
        }
        let mut groups = Groups::new(call, keys, std::mem::take(&mut input.arguments.text));
        call.groups.iter().for_each(|group| groups.group(&mut input, group));
        input.arguments.text = std::mem::take(&mut groups.packed).into_bytes();
        input.arguments.end();
        input.text(groups.tables().into_bytes());
        input.text(groups.lines);
        input
    }

    fn reply(&self, mut fields: Fields) -> Result<Reply<Applied>, StoreError> {
        let code = fields.text()?;
        if code != "applied" {
            let accounts = self.call.groups.iter().map(|group| group.account.clone()).collect();
            return refused(Self::NAME, &code, fields, accounts);
        }
        let outbox = number(&fields.text()?)?;
        let mut verdicts = Vec::with_capacity(self.call.events());
        for group in &self.call.groups {
            let first = verdicts.len();
            verdicts.extend(group.events.iter().map(|event| match self.call.classes[event.class].judge {
                Judge::Free => Verdict::Free,
                _ => Verdict::Charged,
            }));
            let otherwise = fields.bytes()?;
            let (each, rest) = otherwise.as_chunks::<3>();
            for &[letter, high, low] in each {
                let verdict = Verdict::from_code(letter).ok_or_else(|| unexpected(Self::NAME, "unknown verdict"))?;
                let event = usize::from(u16::from_be_bytes([high, low]));
                *event
                    .checked_sub(1)
                    .and_then(|index| verdicts.get_mut(first + index))
                    .ok_or_else(|| unexpected(Self::NAME, "the verdict of no event"))? = verdict;
            }
            if !rest.is_empty() {
                return Err(unexpected(Self::NAME, "half a verdict"));
            }
        }
        let (mut uncovered, mut grown, mut grown_marks) = (BTreeMap::new(), Vec::new(), Vec::new());
        while !fields.is_empty() {
            let index: usize = number(&fields.text()?)?;
            let group = self.call.groups.get(index).ok_or_else(|| unexpected(Self::NAME, "an unknown group"))?;
            let (of, layout) = (fields.text()?, fields.text()?);
            if let Some(class) = of.strip_prefix('u') {
                let class = number::<usize>(class)?.checked_sub(1).filter(|class| *class < self.call.classes.len());
                let class = class.ok_or_else(|| unexpected(Self::NAME, "an unknown class"))?;
                uncovered.insert((index, class), Credits::from_thousandths(number(&layout)?));
                continue;
            }
            let layout = Layout::parse(&layout).ok_or_else(|| unexpected(Self::NAME, &layout))?;
            let account = group.account.clone();
            match of.strip_prefix('o') {
                Some(cycle) => grown_marks.push(GrownMarks { account, cycle: number(cycle)?, layout }),
                None => grown.push(GrownDay { account, day: number(&of)?, layout }),
            }
        }
        Ok(Reply::Applied(Applied { verdicts, outbox, uncovered, grown, grown_marks }))
    }
}

/// The groups of a call, and the lists that they point into.
struct Groups<'a> {
    call: &'a ApplyCall,
    keys: &'a Keys,
    types: Vec<&'a str>,
    /// By class.
    type_of: Vec<usize>,
    wants: Listed<Vec<usize>>,
    kinds: Listed<(usize, usize)>,
    sources: Listed<&'a str>,
    policies: Listed<(&'static str, Credits, String)>,
    days: Listed<(Days, &'a Layout, Option<&'a Layout>)>,
    /// By zone and quarter of an hour.
    local_days: FxHashMap<(Tz, i64), NaiveDate>,
    packed: Packed,
    /// Events of the group in hand, by kind.
    tally: Vec<usize>,
    /// Of all groups.
    lines: Vec<u8>,
}

/// Bytes that an event takes in a call, about: memory that is asked for in one piece is not moved while it grows.
const PACKED_BYTES: usize = 32;
const LINE_BYTES: usize = 80;

impl<'a> Groups<'a> {
    fn new(call: &'a ApplyCall, keys: &'a Keys, mut before: Vec<u8>) -> Groups<'a> {
        let mut types: Vec<&str> = call.classes.iter().map(|class| class.credit_type.as_str()).collect();
        types.sort_unstable();
        types.dedup();
        let type_of = |name: &str| types.binary_search(&name).expect("every class's type is listed");
        let type_of = call.classes.iter().map(|class| type_of(&class.credit_type)).collect();
        let events = call.events();
        before.reserve(events * PACKED_BYTES);
        let mut packed = Packed::behind(before);
        packed.list(call.groups.len());
        Groups {
            call,
            keys,
            types,
            type_of,
            wants: Listed::default(),
            kinds: Listed::default(),
            sources: Listed::default(),
            policies: Listed::default(),
            days: Listed::default(),
            local_days: FxHashMap::default(),
            packed,
            tally: Vec::new(),
            lines: Vec::with_capacity(events * LINE_BYTES),
        }
    }

    fn tables(&self) -> Packed {
        let mut tables = Packed::default();
        tables.list(7);
        tables.list(self.types.len());
        self.types.iter().for_each(|name| tables.text(name));
        tables.list(self.wants.items.len());
        for want in &self.wants.items {
            tables.list(want.len());
            want.iter().for_each(|credit_type| tables.index(*credit_type));
        }
        tables.list(self.call.classes.len());
        for (class, credit_type) in self.call.classes.iter().zip(&self.type_of) {
            tables.list(6);
            tables.text(class.action.as_bytes());
            tables.index(*credit_type);
            tables.decimal(class.cost.thousandths());
            tables.text(judge_code(class.judge));
            tables.text(class.cycle.map(|number| number.to_string()).unwrap_or_default());
            tables.text(if class.voidable { "1" } else { "" });
        }
        tables.list(self.kinds.items.len());
        for (range, class) in &self.kinds.items {
            tables.list(2);
            tables.index(*range);
            tables.index(*class);
        }
        tables.list(self.sources.items.len());
        self.sources.items.iter().for_each(|source| tables.text(json_text(source)));
        tables.list(self.policies.items.len());
        for (overage, limit, levels) in &self.policies.items {
            tables.list(3);
            tables.text(overage);
            tables.decimal(limit.thousandths());
            tables.text(levels);
        }
        tables.list(self.days.items.len());
        for (days, own, neighbour) in &self.days.items {
            tables.list(5);
            tables.decimal(days.own);
            tables.text(own.to_string());
            tables.text(days.neighbour.map(|day| day.to_string()).unwrap_or_default());
            tables.text(neighbour.map(Layout::to_string).unwrap_or_default());
            tables.number(own.generations());
        }
        tables
    }

    fn group(&mut self, input: &mut Input, group: &'a Group) {
        input.key(self.keys, Key::Account(&group.account));
        let (overage, limit) = match group.overage {
            Overage::Reject => ("reject", Credits::ZERO),
            Overage::Cap => ("cap", Credits::ZERO),
            Overage::Allow { limit } => ("allow", limit.unwrap_or(Credits::BALANCE_MAX)),
        };
        self.packed.list(18);
        self.packed.text(group.account.as_bytes());
        self.packed.decimal(group.version);
        let want = self.want(group);
        self.packed.index(self.wants.place(want));
        self.packed.index(self.policies.place((overage, limit, levels_text(&group.thresholds))));
        let dates = || group.events.iter().map(|event| event.event.dated_ms);
        self.packed.decimal(dates().min().unwrap_or(0));
        self.packed.decimal(dates().max().unwrap_or(0));
        self.kinds(group);
        self.packed.index(self.lines.len());
        let mut unentitled = Unentitled::default();
        for event in &group.events {
            unentitled.add(&self.type_of, &self.call.classes, event, self.lines.len());
            let source = self.sources.place(&event.event.source);
            write_line(&mut self.lines, event, source);
        }
        let days = self.usage(group);
        let runs: Vec<_> = group.runs(self.call.stamp.restamp_tolerance_ms).collect();
        self.packed.list(runs.len());
        for (days, run) in runs {
            self.run(input, group, days, run);
        }
        for day in days {
            input.key(self.keys, Key::Usage(&group.account, day));
            input.key(self.keys, Key::Journal(&group.account, day));
        }
        self.marks(input, group);
        self.packed.decimal(group.cycle);
        self.members(input, group);
        self.packed.list(unentitled.told.len());
        unentitled.told.iter().for_each(|number| self.packed.number(*number));
    }

    /// What the group's events come to by day, member and action, if they are charged or free. Gives the days.
    fn usage(&mut self, group: &Group) -> Vec<NaiveDate> {
        let Some(timezone) = group.breakdown else {
            self.packed.list(0);
            self.packed.text("");
            self.packed.text("");
            return Vec::new();
        };
        let (mut days, mut rows): (Vec<NaiveDate>, Vec<Row>) = (Vec::new(), Vec::new());
        let mut actions: Vec<&str> = Vec::new();
        let mut places = FxHashMap::default();
        let mut row_of = Vec::with_capacity(2 * group.events.len());
        for event in &group.events {
            let own = &event.event;
            let quarter = (timezone, quarter_hour(own.dated_ms));
            let day = *self.local_days.entry(quarter).or_insert_with(|| local_day(own.dated_ms, timezone));
            let day = days.iter().position(|known| *known == day).unwrap_or_else(|| {
                days.push(day);
                days.len() - 1
            });
            let user = own.user.as_deref().unwrap_or_default();
            let class = &self.call.classes[event.class];
            let action = actions.iter().position(|known| *known == &*class.action).unwrap_or_else(|| {
                actions.push(&class.action);
                actions.len() - 1
            });
            let place = *places.entry((day, user, action)).or_insert(rows.len());
            if place == rows.len() {
                rows.push(Row { day, user, action, charged: 0, cost: 0, free: 0 });
            }
            match class.judge {
                Judge::Charge => {
                    rows[place].charged += 1;
                    rows[place].cost += class.cost.thousandths() as usize;
                }
                Judge::Free => rows[place].free += 1,
                _ => {}
            }
            row_of.extend(two_bytes(place));
        }
        self.packed.list(days.len());
        days.iter().for_each(|day| self.packed.decimal(day_number(*day)));
        self.packed.text(told(&rows, &actions, days.len()).into_bytes());
        self.packed.text(row_of);
        days
    }

    /// What its events are charged for once: which event asks for which mark, and the sets that hold these.
    fn marks(&mut self, input: &mut Input, group: &'a Group) {
        let asked = group.marks_asked(&self.call.classes);
        let all = asked.iter().flat_map(|(cycle, marks)| marks.iter().map(|mark| (*cycle, *mark)));
        let numbers: FxHashMap<(i32, Identity), usize> = all.zip(0..).collect();
        let mut events = Vec::with_capacity(4 * numbers.len());
        for (index, event) in group.events.iter().enumerate().filter(|_| !numbers.is_empty()) {
            if let Some(mark) = mark_of(group, &self.call.classes[event.class], event) {
                events.extend(two_bytes(index));
                events.extend(two_bytes(numbers[&mark]));
            }
        }
        self.packed.text(events);
        self.packed.list(asked.len());
        for (cycle, marks) in &asked {
            let known = group.marks.iter().find(|known| known.cycle == *cycle);
            let layout = &known.expect("a call names the marks of its events").layout;
            self.packed.list(3);
            self.packed.decimal(*cycle);
            self.packed.text(layout.to_string());
            self.packed.list(layout.generations());
            for generation in 0..layout.generations() {
                let places = marks.iter().map(|mark| (layout.place(generation, *mark), *mark));
                let mut places: Vec<(SetIndex, Identity)> = places.collect();
                places.sort_by_key(|(place, _)| *place);
                self.packed.list(places.chunk_by(|(a, _), (b, _)| a == b).count());
                for of_set in places.chunk_by(|(a, _), (b, _)| a == b) {
                    input.key(self.keys, Key::Marks(&group.account, *cycle, of_set[0].0));
                    self.packed.list(2);
                    self.packed.list(of_set.len());
                    of_set.iter().for_each(|(_, mark)| self.packed.decimal(mark.member));
                    let each = of_set.iter().flat_map(|(_, mark)| two_bytes(numbers[&(*cycle, *mark)]));
                    self.packed.text(each.collect::<Vec<u8>>());
                }
            }
        }
    }

    /// What its members' limits are asked for: which event goes to which count, and the cycles that have them.
    fn members(&mut self, input: &mut Input, group: &'a Group) {
        let count = |event: &'a CallEvent| group.member_count(self.call.classes.get(event.class)?, event);
        let (mut counts, mut cycles) = (Listed::<MemberCount>::default(), Listed::<i32>::default());
        let mut each = Vec::new();
        if !group.member_limits.is_empty() {
            let place = |event| count(event).map_or([0, 0], |count| two_bytes(counts.place(count)));
            each.extend(group.events.iter().flat_map(place));
        }
        let voids = group.events.iter().filter(|event| event.event.voids.is_some());
        voids.filter_map(|event| group.voided_cycle(self.call.classes.get(event.class)?)).for_each(|cycle| {
            cycles.place(cycle);
        });
        if counts.items.is_empty() && cycles.items.is_empty() {
            return self.packed.list(0);
        }
        self.packed.list(3);
        self.packed.text(each);
        self.packed.list(3 * counts.items.len());
        for MemberCount { cycle, credit_type, user, limit } in &counts.items {
            self.packed.index(cycles.place(*cycle));
            self.packed.text(format!("{credit_type}:{user}"));
            self.packed.text(limit.map(|limit| limit.thousandths().to_string()).unwrap_or_default());
        }
        self.packed.list(cycles.items.len());
        for cycle in &cycles.items {
            self.packed.decimal(*cycle);
            input.key(self.keys, Key::Members(&group.account, *cycle));
        }
    }

    /// The types that a group's events cost.
    fn want(&self, group: &Group) -> Vec<usize> {
        let mut want = Vec::new();
        for event in &group.events {
            let credit_type = self.type_of.get(event.class).copied();
            if let Some(credit_type) = credit_type.filter(|credit_type| !want.contains(credit_type)) {
                want.push(credit_type);
            }
        }
        want.sort_unstable();
        want
    }

    /// How many events are of each kind, and of which kind each is.
    fn kinds(&mut self, group: &Group) {
        let (mut own, mut each) = (Vec::new(), Vec::with_capacity(2 * group.events.len()));
        for event in &group.events {
            let kind = self.kinds.place((event.range, event.class));
            if self.tally.len() <= kind {
                self.tally.resize(kind + 1, 0);
            }
            if self.tally[kind] == 0 {
                own.push(kind);
            }
            self.tally[kind] += 1;
            each.extend(two_bytes(kind));
        }
        self.packed.list(2 * own.len());
        for kind in own {
            self.packed.index(kind);
            self.packed.number(std::mem::take(&mut self.tally[kind]));
        }
        self.packed.text(each);
    }

    fn run(&mut self, input: &mut Input, group: &'a Group, days: Days, run: CallEvents) {
        let (own, neighbour) = layouts_of(&group.days, days);
        let beside = days.neighbour.zip(neighbour);
        let probes: Vec<(i64, &Layout, usize)> = [Some((days.own, own)), beside]
            .into_iter()
            .flatten()
            .flat_map(|(day, layout)| (0..layout.generations()).map(move |generation| (day, layout, generation)))
            .collect();
        self.packed.list(5);
        self.packed.index(self.days.place((days, own, neighbour)));
        self.packed.number(run.len());
        // Where all probes ask sets of their own for them, the members stand there.
        let of_all =
            if probes.iter().any(|(_, layout, generation)| layout.has_one_set(*generation)) { run } else { &[] };
        self.packed.list(of_all.len());
        of_all.iter().for_each(|event| self.packed.decimal(event.event.identity.member));
        self.packed.list(probes.len());
        for (day, layout, generation) in probes {
            if layout.has_one_set(generation) {
                let only = SetIndex { generation: generation as u32, set: 0 };
                input.key(self.keys, Key::Day(&group.account, day, only));
                self.packed.list(0);
            } else {
                self.sets(input, group, day, run, |event| layout.place(generation, event.event.identity));
            }
        }
        self.charges(input, group, days, run);
    }

    /// The events of a run whose charges are kept, and its voids with the events that they name.
    fn charges(&mut self, input: &mut Input, group: &'a Group, days: Days, run: CallEvents) {
        let class = |event: &CallEvent| self.call.classes.get(event.class).filter(|_| group.version > 0);
        let asked = run.iter().enumerate().filter_map(|(place, event)| match class(event)? {
            class if class.judge == Judge::Void => Some((place, event.event.voids?.member)),
            class => class.voidable.then_some((place, event.event.identity.member)),
        });
        let asked: Vec<(usize, i64)> = asked.collect();
        if asked.is_empty() {
            return self.packed.list(0);
        }
        for day in [Some(days.own), days.neighbour].into_iter().flatten() {
            input.key(self.keys, Key::Charges(&group.account, day));
        }
        self.packed.list(2);
        self.packed.list(asked.len());
        asked.iter().for_each(|(_, member)| self.packed.decimal(*member));
        self.packed.text(asked.iter().flat_map(|(place, _)| two_bytes(*place)).collect::<Vec<u8>>());
    }

    /// The sets of a generation that a run touches, each with its members and their places in the run.
    fn sets(
        &mut self,
        input: &mut Input,
        group: &Group,
        day: i64,
        run: CallEvents,
        place: impl Fn(&CallEvent) -> SetIndex,
    ) {
        let mut places: Vec<(SetIndex, usize)> = run.iter().map(place).zip(0..).collect();
        places.sort_unstable();
        self.packed.list(places.chunk_by(|(a, _), (b, _)| a == b).count());
        for of_set in places.chunk_by(|(a, _), (b, _)| a == b) {
            input.key(self.keys, Key::Day(&group.account, day, of_set[0].0));
            self.packed.list(2);
            self.packed.list(of_set.len());
            of_set.iter().for_each(|(_, event)| self.packed.decimal(run[*event].event.identity.member));
            self.packed.text(of_set.iter().flat_map(|(_, event)| two_bytes(*event)).collect::<Vec<u8>>());
        }
    }
}

/// Events of the open cycle that a group's plan is not entitled to, as `apply.lua` describes them.
#[derive(Default)]
struct Unentitled {
    told: Vec<usize>,
    /// What the events so far cost, by credit type.
    costs: Vec<usize>,
    events: usize,
}

impl Unentitled {
    fn add(&mut self, type_of: &[usize], classes: &[Class], event: &CallEvent, line_start: usize) {
        self.events += 1;
        let Some(class) = classes.get(event.class).filter(|class| class.cycle.is_none()) else { return };
        let credit_type = type_of[event.class];
        if self.costs.len() <= credit_type {
            self.costs.resize(credit_type + 1, 0);
        }
        match class.judge {
            Judge::Charge => self.costs[credit_type] += class.cost.thousandths() as usize,
            Judge::NotEntitled => self.told.extend([self.events, self.costs[credit_type], line_start + 1]),
            _ => {}
        }
    }
}

/// Different items, in the order in which they were met.
struct Listed<T> {
    items: Vec<T>,
    places: FxHashMap<T, usize>,
}

impl<T> Default for Listed<T> {
    fn default() -> Listed<T> {
        Listed { items: Vec::new(), places: FxHashMap::default() }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Listed<T> {
    fn place(&mut self, item: T) -> usize {
        match self.places.get(&item) {
            Some(place) => *place,
            None => {
                self.items.push(item.clone());
                self.places.insert(item, self.items.len() - 1);
                self.items.len() - 1
            }
        }
    }
}

/// An index of an event or of a kind, from 1.
fn two_bytes(index: usize) -> [u8; 2] {
    u16::try_from(index + 1).expect("a call has at most 20,000 events").to_be_bytes()
}

const fn judge_code(judge: Judge) -> &'static str {
    match judge {
        Judge::Charge => "c",
        Judge::Free => "f",
        Judge::NotEntitled => "e",
        Judge::Denied(Denial::NotEntitled) => "E",
        Judge::Denied(Denial::InsufficientCredits) => "I",
        Judge::Denied(Denial::OverageLimit) => "O",
        Judge::Denied(Denial::MemberLimit) => "M",
        Judge::Capped => "P",
        Judge::Repeat => "R",
        Judge::Void => "v",
    }
}
