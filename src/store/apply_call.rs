//! The call that applies usage events: `lua/apply.lua`'s keys, arguments and reply.

use rustc_hash::FxHashMap;

use super::StoreError;
use super::keys::{Key, Keys};
use super::scripts::{Script, refused, unexpected};
use super::stored::number;
use super::words::{Fields, Input};
use crate::ledger::apply::{json_text, named};
use crate::ledger::call::{Applied, ApplyCall, CallEvent, Group, Reply};
use crate::ledger::catalogue::Overage;
use crate::ledger::credits::Credits;
use crate::ledger::day::{Layout, SetIndex, layouts_of};
use crate::ledger::event::{CallEvents, Judge};
use crate::ledger::outcome::{Denial, Verdict};

pub struct ApplyScript<'a> {
    pub shard: u32,
    pub call: &'a ApplyCall,
}

impl Script for ApplyScript<'_> {
    const NAME: &'static str = "apply";
    const SOURCE: &'static str = concat!(
        include_str!("lua/account.lua"),
        include_str!("lua/apply.lua"),
        include_str!("lua/apply_late.lua"),
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
        input.number(call.others.len());
        for (partition, position) in &call.others {
            input.text(partition.to_string());
            input.number(*position);
        }
        input.number(call.found.len() + call.dead.len());
        let found = call.found.iter().map(|note| (note, "0"));
        for (note, produced) in found.chain(call.dead.iter().map(|note| (note, "1"))) {
            let range = call.ranges.iter().position(|range| range.partition == note.partition);
            input.number(range.expect("a dead record lies in a range of its call"));
            input.number(note.offset);
            input.text(note.reason.name());
            input.text(produced);
        }
        let mut types: Vec<&str> = call.classes.iter().map(|class| class.credit_type.as_str()).collect();
        types.sort_unstable();
        types.dedup();
        input.number(types.len());
        for name in &types {
            input.text(name);
        }
        let type_of = |name: &str| types.binary_search(&name).expect("every class's type is listed");
        input.number(call.classes.len());
        for class in &call.classes {
            input.text(class.action.as_bytes());
            input.number(type_of(&class.credit_type));
            input.number(class.cost.thousandths());
            input.text(match class.judge {
                Judge::Charge => "c",
                Judge::Free => "f",
                Judge::NotEntitled => "e",
                Judge::Denied(Denial::NotEntitled) => "E",
                Judge::Denied(Denial::InsufficientCredits) => "I",
                Judge::Denied(Denial::OverageLimit) => "O",
                Judge::Capped => "P",
                Judge::Repeat => "R",
            });
            input.text(class.cycle.map(|number| number.to_string()).unwrap_or_default());
        }
        let class_types: Vec<u8> = call.classes.iter().map(|class| type_of(&class.credit_type) as u8).collect();
        let kinds = Kinds::of(call);
        input.number(kinds.list.len());
        for (range, class) in &kinds.list {
            input.number(*range);
            input.number(*class);
        }
        input.number(call.groups.len());
        for group in &call.groups {
            self.group(&mut input, keys, group, &kinds, &class_types);
        }
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
            let letters = fields.bytes()?;
            if letters.is_empty() {
                verdicts.extend(group.events.iter().map(|event| match self.call.classes[event.class].judge {
                    Judge::Free => Verdict::Free,
                    _ => Verdict::Charged,
                }));
                continue;
            }
            if letters.len() != group.events.len() {
                return Err(unexpected(Self::NAME, "a verdict is missing"));
            }
            for letter in letters {
                let verdict = Verdict::from_code(letter).ok_or_else(|| unexpected(Self::NAME, "unknown verdict"))?;
                verdicts.push(verdict);
            }
        }
        Ok(Reply::Applied(Applied { verdicts, outbox }))
    }
}

/// The distinct pairs of range and class in a call; an event names its own with two bytes.
struct Kinds {
    list: Vec<(usize, usize)>,
    index: FxHashMap<(usize, usize), u16>,
}

impl Kinds {
    fn of(call: &ApplyCall) -> Kinds {
        let mut kinds = Kinds { list: Vec::new(), index: FxHashMap::default() };
        for event in call.groups.iter().flat_map(|group| &group.events) {
            let pair = (event.range, event.class);
            if !kinds.index.contains_key(&pair) {
                let next = u16::try_from(kinds.list.len()).expect("a call has at most 20,000 events");
                kinds.index.insert(pair, next);
                kinds.list.push(pair);
            }
        }
        kinds
    }

    fn of_event(&self, event: &CallEvent) -> u16 {
        self.index[&(event.range, event.class)]
    }
}

/// What names an event in a message, should it be denied: its offset, its date, and its source and id in JSON.
fn write_line(line: &mut Vec<u8>, event: &CallEvent) {
    let mut digits = itoa::Buffer::new();
    line.extend_from_slice(digits.format(event.offset).as_bytes());
    line.push(b' ');
    line.extend_from_slice(digits.format(event.event.dated_ms).as_bytes());
    line.push(b' ');
    let (source, id) = (&event.event.source, &event.event.id);
    if is_plain(source) && is_plain(id) {
        for part in ["\"source\":\"", source, "\",\"id\":\"", id, "\""] {
            line.extend_from_slice(part.as_bytes());
        }
    } else {
        line.extend_from_slice(named(source, id).as_bytes());
    }
}

/// Whether a text stands in JSON as it is: then it need not go through the serializer.
fn is_plain(text: &str) -> bool {
    // Without an early end, so that the compiler can look at many bytes at once.
    text.bytes().fold(true, |plain, byte| plain & (byte >= 0x20) & (byte != b'"') & (byte != b'\\'))
}

impl ApplyScript<'_> {
    fn group(&self, input: &mut Input, keys: &Keys, group: &Group, kinds: &Kinds, class_types: &[u8]) {
        input.key(keys, Key::Account(&group.account));
        input.text(group.account.as_bytes());
        input.number(group.version);
        let (overage, limit) = match group.overage {
            Overage::Reject => ("reject", Credits::ZERO),
            Overage::Cap => ("cap", Credits::ZERO),
            Overage::Allow { limit } => ("allow", limit.unwrap_or(Credits::BALANCE_MAX)),
        };
        input.text(overage);
        input.number(limit.thousandths());
        input.number(group.events.iter().map(|event| event.event.dated_ms).min().unwrap_or(0));
        let mut types = Vec::new();
        for event in &group.events {
            let credit_type = class_types.get(event.class).copied();
            if let Some(credit_type) = credit_type.filter(|credit_type| !types.contains(credit_type)) {
                types.push(credit_type);
            }
        }
        input.text(types);
        for event in &group.events {
            input.arguments.text.extend(kinds.of_event(event).to_be_bytes());
        }
        input.arguments.end();
        for (index, event) in group.events.iter().enumerate() {
            if index > 0 {
                input.arguments.text.push(b'\n');
            }
            write_line(&mut input.arguments.text, event);
        }
        input.arguments.end();
        let runs: Vec<_> = group.runs(self.call.stamp.restamp_tolerance_ms).collect();
        input.number(runs.len());
        for (days, run) in runs {
            let (own, neighbour) = layouts_of(&group.days, days);
            input.number(days.own);
            input.text(own.to_string());
            input.text(days.neighbour.map(|day| day.to_string()).unwrap_or_default());
            input.text(neighbour.map(Layout::to_string).unwrap_or_default());
            input.number(own.generations());
            input.number(own.generations() + neighbour.map_or(0, Layout::generations));
            let beside = days.neighbour.zip(neighbour);
            for (day, layout) in [Some((days.own, own)), beside].into_iter().flatten() {
                for generation in 0..layout.generations() {
                    probe(input, keys, &group.account, day, layout, generation, run);
                }
            }
            input.number(run.len());
            for event in run {
                input.number(event.event.identity.member);
            }
        }
    }
}

/// The sets of a generation that a run touches, and in two bytes an event which of them is its own.
fn probe(input: &mut Input, keys: &Keys, account: &str, day: i64, layout: &Layout, generation: usize, run: CallEvents) {
    let places: Vec<SetIndex> = run.iter().map(|event| layout.place(generation, event.event.identity)).collect();
    let mut touched = places.clone();
    touched.sort_unstable();
    touched.dedup();
    for place in &touched {
        input.key(keys, Key::Day(account, day, *place));
    }
    input.number(touched.len());
    let mut own = Vec::new();
    if touched.len() > 1 {
        for place in &places {
            let index = touched.binary_search(place).expect("every place is listed");
            own.extend(u16::try_from(index).expect("a call has at most 20,000 events").to_be_bytes());
        }
    }
    input.text(own);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_text_is_what_json_leaves_as_it_is() {
        for byte in 0..=127u8 {
            let text = format!("a{}b", char::from(byte));
            assert_eq!(is_plain(&text), json_text(&text) == format!("\"{text}\""), "byte {byte}");
        }
        assert!(is_plain("é") && json_text("é") == "\"é\"");
    }
}
