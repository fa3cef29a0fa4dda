//! The fold against cases that are written out by hand: what the log says, what Redis says, and what is told of it.

/// Whole histories of an account.
mod histories;
/// Usage by day and member.
mod members;
/// What voids took back.
mod voids;

use std::collections::BTreeMap;

use chrono_tz::Tz;

use super::*;
use crate::ledger::account::AccountConfig;
use crate::ledger::command::{ACCOUNT_PUT, Command, CommandBody};
use crate::ledger::credits::Credits;
use crate::ledger::event::{DAY_MS, Identity, UsageEvent};
use crate::ledger::members::limits_from;
use crate::ledger::outcome::{DeadReason, Outcome};
use crate::pipeline::record::{Body, Record};
use crate::store::ShardState;
use crate::store::look::{LookedAccount, StoredDay};

pub(super) const CATALOGUE: &str = r#"
version = 1
[credit_types.email]
[actions.reveal]
prices = [{ credit_type = "email", credits = 1 }]
voidable = true
[actions.enrich]
prices = [{ credit_type = "email", credits = 2 }]
[actions.phone]
prices = [{ credit_type = "email", credits = 2 }]
charge_once = { by = "contact" }
voidable = true
[plans.basic]
interval = "monthly"
allowance = { email = 100 }
actions = ["reveal", "phone"]
[plans.pro]
interval = "monthly"
allowance = { email = 100 }
actions = ["reveal", "phone", "enrich"]
prices = { reveal = 3, phone = 4 }
[plans.flat]
interval = "monthly"
allowance = { email = 100 }
actions = ["reveal", "phone", "enrich"]
prices = { reveal = 0, phone = 0 }
"#;

/// 2026-11-24T12:00:00Z.
pub(super) const NOON_MS: i64 = 1_795_521_600_000;
const TODAY: i64 = NOON_MS / DAY_MS;

/// Members, actions, and the events charged, thousandths, events denied and free of each.
type Rows = Vec<(&'static str, &'static str, [i64; 4])>;

/// One shard with the account acme, and a log of usage.
struct Case {
    records: Vec<Record>,
    denied: Vec<String>,
    dead: Vec<(i32, i64)>,
    /// By partition.
    positions: Vec<i64>,
    first: Option<Vec<i64>>,
    charged: i64,
    remembered: u64,
    generations: u64,
    writes: [u64; 2],
    marks: u64,
    totals: Vec<(i32, Outcome, u64)>,
    /// Plans that the account had within the cycle; the first is basic.
    plans: Vec<&'static str>,
    /// Its zone, and that with the other plans.
    zones: Vec<Tz>,
    /// The limits of its members, and those with the other plans.
    limits: (&'static str, &'static str),
    /// The usage by day that is compared, what is stored of it, and what was counted for members.
    window: Option<Window>,
    used: Vec<(&'static str, Rows)>,
    counted: Vec<(&'static str, i64)>,
}

impl Case {
    /// Usage records: `partition@offset id quantity appended member`, appended in ms after noon; `!` stands before one that
    /// does not decode.
    fn new(records: &[&str]) -> Case {
        let mut case = Case {
            records: Vec::new(),
            denied: Vec::new(),
            dead: Vec::new(),
            positions: vec![100, 100],
            first: None,
            charged: 0,
            remembered: 0,
            generations: 1,
            writes: [1, 1],
            marks: 0,
            totals: Vec::new(),
            plans: vec!["basic"],
            zones: vec![chrono_tz::UTC],
            limits: ("", ""),
            window: None,
            used: Vec::new(),
            counted: Vec::new(),
        };
        for text in records {
            let (decodes, text) = text.strip_prefix('!').map_or((true, *text), |text| (false, text));
            let mut words = text.split(' ');
            let (partition, offset) = words.next().unwrap().split_once('@').unwrap();
            let (id, quantity) = (words.next().unwrap_or(""), words.next().unwrap_or("1"));
            let after_ms: i64 = words.next().map_or(1000, |ms| ms.parse().unwrap());
            let body = match decodes {
                true => {
                    let event = event(id, quantity.parse().unwrap());
                    Body::Usage(UsageEvent { user: words.next().map(Arc::from), ..event }.into())
                }
                false => Body::Dead { reason: DeadReason::InvalidJson, account: Some("acme".into()) },
            };
            case.records.push(Record {
                partition: Partition::usage(partition.parse().unwrap()),
                offset: offset.parse().unwrap(),
                append_ms: NOON_MS + after_ms,
                bytes: 100,
                fingerprint: 0,
                body,
            });
        }
        case
    }

    /// A denial: `partition@offset id reason required`, and what is uncovered where it was capped.
    fn denied(mut self, text: &str) -> Case {
        let mut words = text.split(' ');
        let (partition, offset) = words.next().unwrap().split_once('@').unwrap();
        let (id, reason, required) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let uncovered = words.next().map(|uncovered| format!(",\"uncovered\":{uncovered}")).unwrap_or_default();
        self.denied.push(format!(
            r#"{{"reason":"{reason}","events":[{{"source":"s","id":"{id}","topic":"usage","partition":{partition},
            "offset":{offset},"required":{required},"remaining":0{uncovered}}}]}}"#
        ));
        self
    }

    fn dead(mut self, partition: i32, offset: i64) -> Case {
        self.dead.push((partition, offset));
        self
    }

    fn stored(mut self, charged: i64, remembered: u64, totals: &[(i32, Outcome, u64)]) -> Case {
        (self.charged, self.remembered, self.totals) = (charged, remembered, totals.to_vec());
        self
    }

    fn upgraded(mut self, plan: &'static str) -> Case {
        self.plans.push(plan);
        self
    }

    fn marked(mut self, marks: u64) -> Case {
        self.marks = marks;
        self
    }

    fn audit(self) -> Report {
        let catalogue = Catalogue::parse(CATALOGUE).unwrap();
        let names = Names { source: "meter".into(), usage_topic: "usage".into(), commands_topic: "commands".into() };
        let commands = self.plans.len();
        let at = |usage: &[i64]| {
            let mut positions: Vec<(Partition, i64)> = vec![(Partition::COMMANDS, commands as i64)];
            positions.extend((0..).zip(usage).map(|(index, at)| (Partition::usage(index), *at)));
            positions
        };
        let mut totals: Vec<_> =
            self.totals.iter().map(|(index, outcome, n)| (Partition::usage(*index), *outcome, *n)).collect();
        totals.push((Partition::COMMANDS, Outcome::Applied, commands as u64));
        let shard = ShardState {
            writes: self.writes,
            positions: at(self.first.as_ref().unwrap_or(&self.positions)),
            totals,
            restamp_tolerance_ms: 600_000,
            ..ShardState::default()
        };
        let first = FirstLook { positions: vec![Positions::of(&shard)], shards: vec![shard] };
        let slice = Slice { number: 0, of: 1 };
        let mut denials = Denials::default();
        for data in &self.denied {
            denials.add(&names, slice, Heard::Outbox, "acme", data);
        }
        let mut dead = DeadLetters::default();
        for (partition, offset) in &self.dead {
            let (partition, offset) = (partition.to_string(), offset.to_string());
            let headers = [
                ("__connect.errors.topic", Some("usage".as_bytes())),
                ("__connect.errors.partition", Some(partition.as_bytes())),
                ("__connect.errors.offset", Some(offset.as_bytes())),
                ("__connect.errors.connector.name", Some(b"meter".as_slice())),
            ];
            let record =
                LogRecord { partition: 0, offset: 0, timestamp_ms: 0, key: None, value: None, headers: &headers };
            dead.add(&names, &record);
            dead.add(&names, &record); // a letter may come twice
        }
        let state = ShardState { positions: at(&self.positions), ..ShardState::default() };
        let positions = Positions::of(&state).into();
        let (window, stored) = (self.window, self.account(&catalogue));
        let usage_from = window.map(|window| window.first(&first.shards[0]));
        let seen = look::Seen { account: "acme".into(), positions, floor_ms: 0, usage_from, stored };
        let puts = (0..).zip(&self.plans).map(|(offset, plan)| put_config(offset, self.config_of(plan, offset > 0)));
        let records: Vec<Record> = puts.chain(self.records.iter().cloned()).collect();
        report(&catalogue, &first, seen, window, (denials, dead), records)
    }

    fn config_of(&self, plan: &str, last: bool) -> AccountConfig {
        let timezone = self.zones[if last { self.zones.len() - 1 } else { 0 }];
        let limits = if last { self.limits.1 } else { self.limits.0 };
        let member_limits = if limits.is_empty() { Default::default() } else { limits_from(limits).unwrap() };
        AccountConfig { plan: plan.into(), timezone, member_limits, ..config() }
    }

    fn account(&self, catalogue: &Catalogue) -> LookedAccount {
        let plan = *self.plans.last().unwrap();
        let config = self.config_of(plan, true);
        let cycle = config.calendar(&catalogue.plans[plan]).cycle_at(NOON_MS).unwrap();
        let mut fields: BTreeMap<String, String> = config.to_fields().into_iter().collect();
        let mut put = |name: &str, value: String| fields.insert(name.to_owned(), value);
        put("version", "1".into());
        put("once", format!(" {}:1", cycle.number));
        put("days", format!(" {TODAY}:1"));
        put("cycle", format!("{} {} {}", cycle.number, cycle.start_ms, cycle.end_ms));
        put("since", cycle.start_ms.to_string());
        put("email.p", "100000 100000".into());
        put("email.g", "100000".into());
        put("email.c", (self.charged * 1000).to_string());
        LookedAccount {
            fields,
            commands: self.plans.len() as u64,
            remembered: [(TODAY, self.remembered)].into(),
            generations: [(TODAY, self.generations)].into(),
            marks: [(cycle.number, self.marks)].into(),
            members: [(cycle.number, self.counted.iter().map(|(user, used)| counted(user, *used)).collect())].into(),
            usage: self.used.iter().map(|(day, rows)| StoredDay::of(day.parse().unwrap(), rows)).collect(),
        }
    }

    /// Nothing must be different.
    fn agrees(self) -> Report {
        let report = self.audit();
        assert_eq!((report.mismatches, &report.differences), (0, &Vec::new()));
        report
    }

    /// Exactly this must be different, apart from what follows from it in the totals.
    fn differs(self, what: &[&str]) {
        let report = self.audit();
        let found: Vec<&str> = report.differences.iter().map(|each| each.what.as_str()).collect();
        assert_eq!(found, what, "{:#?}", report.differences);
    }
}

/// What an audit of one account of one shard tells.
fn report(
    catalogue: &Catalogue,
    first: &FirstLook,
    seen: look::Seen,
    window: Option<Window>,
    (mut denials, mut dead): (Denials, DeadLetters),
    records: Vec<Record>,
) -> Report {
    let topics = Topics { usage: "usage".into(), commands: "commands".into() };
    let slice = Slice { number: 0, of: 1 };
    let (mut sums, mut report) = (Totals::new(1), Report::default());
    let mut fold = Fold {
        catalogue,
        topics: &topics,
        slice,
        first,
        dead: &mut dead,
        refusals: &Refusals::default(),
        totals: &mut sums,
        settled: &mut Totals::new(1),
        cut: None,
        point: None,
        report: &mut report,
        accounts: FxHashMap::default(),
        kinds: Kinds::default(),
        fault: None,
    };
    fold.see(vec![seen]);
    records.into_iter().for_each(|record| fold.record(record));
    let Fold { accounts, kinds, .. } = fold;
    Comparison {
        resolver: Resolver::new(catalogue, &kinds),
        denials: &mut denials,
        topics: &topics,
        first,
        totals: &mut sums,
        settled: &mut Totals::new(1),
        point: None,
        saver: None,
        window,
        unpublished: Default::default(),
        report: &mut report,
    }
    .slice(slice, accounts)
    .unwrap();
    compare::whole(first, &dead, &sums, &topics, &mut report);
    report
}

pub(super) fn config() -> AccountConfig {
    AccountConfig {
        plan: "basic".into(),
        anchor: "2026-11-01".parse().unwrap(),
        interval: None,
        timezone: chrono_tz::UTC,
        addons: Vec::new(),
        thresholds: None,
        overage: None,
        member_limits: Default::default(),
    }
}

/// What was counted for a member.
fn counted(user: &str, used: i64) -> ((String, Arc<str>), Credits) {
    (("email".to_owned(), user.into()), Credits::whole(used))
}

pub(super) fn put_config(offset: i64, config: AccountConfig) -> Record {
    let id = format!("put-{offset}");
    let command = Command {
        account: "acme".into(),
        identity: Identity::of("s", &id),
        id,
        time_ms: NOON_MS - 1000,
        command_type: ACCOUNT_PUT,
        body: Ok(CommandBody::Put(Box::new(config))),
    };
    let body = Body::Command(Box::new(command));
    Record {
        partition: Partition::COMMANDS,
        offset,
        append_ms: NOON_MS + offset * 2000,
        bytes: 100,
        fingerprint: 0,
        body,
    }
}

/// `collision-…` ids all have the same remembered half; `enrich-…` is not on the plan, `old-…` is from the last cycle;
/// `phone-x…` is for contact x, `void-…` takes back the event named behind it.
fn event(id: &str, quantity: u64) -> UsageEvent {
    if let Some(voided) = id.strip_prefix("void-") {
        let voided = event(voided, 1);
        let identity = voided.identity.of_its_void();
        return UsageEvent { voids: Some(voided.identity), identity, id: id.into(), ..voided };
    }
    let mut identity = Identity::of("s", id);
    if id.starts_with("collision") {
        identity.member = 7;
    }
    let time_ms = if id.starts_with("old") { NOON_MS - 40 * DAY_MS } else { NOON_MS };
    UsageEvent {
        account: "acme".into(),
        source: "s".into(),
        id: id.into(),
        time_ms,
        dated_ms: time_ms,
        action: ["enrich", "phone"].into_iter().find(|name| id.starts_with(name)).unwrap_or("reveal").into(),
        quantity,
        outcome: None,
        user: None,
        fields: Box::default(),
        once: id.strip_prefix("phone-").map(|id| Identity::of("phone", &id[..1])),
        voids: None,
        identity,
    }
}

use Outcome::{Capped, Charged, DeadLettered, Denied, Duplicate, Free, Voided};

#[test]
fn what_was_charged_once_agrees() {
    let report = Case::new(&["0@1 a 3", "0@2 b 4", "1@1 c"]).stored(8, 3, &[(0, Charged, 2), (1, Charged, 1)]).agrees();
    assert_eq!((report.records, report.accounts_checked), (3, 1));
    assert_eq!(report.outcomes, [("charged", 3)].into());
    assert_eq!(report.commands, [("applied", 1)].into());
}

#[test]
fn what_was_charged_twice_or_not_at_all_is_named_with_its_record() {
    let case = || Case::new(&["0@1 a 3", "0@2 b 4"]);
    let totals = [(0, Charged, 2)];
    let report = case().stored(11, 2, &totals).audit();
    let [difference] = report.differences.as_slice() else { panic!("{report:?}") };
    assert_eq!(
        (difference.what.as_str(), difference.expected.as_str(), difference.found.as_str()),
        ("email.charged", "7", "11")
    );
    assert_eq!(
        difference.records.iter().map(|record| record.offset).collect::<Vec<_>>(),
        [2],
        "it costs the difference"
    );
    case().stored(4, 2, &totals).differs(&["email.charged"]);
    case().stored(7, 1, &totals).differs(&["remembered on 2026-11-24"]);
    case().stored(7, 2, &[(0, Charged, 3)]).differs(&["total usage:0 charged"]);
    Case { writes: [2, 1], ..case().stored(7, 2, &totals) }.differs(&["writes ended"]);
    case()
        .stored(7, 2, &[(0, Charged, 1), (0, Duplicate, 1)])
        .differs(&["total usage:0 duplicate", "total usage:0 charged"]);
}

#[test]
fn attempts_count_once_wherever_they_were_decided() {
    let same = Case::new(&["0@1 a 3", "0@2 a 3"]).stored(3, 1, &[(0, Charged, 1), (0, Duplicate, 1)]);
    same.agrees();
    let across = || Case::new(&["0@1 a 3", "1@1 a 3"]);
    across().stored(3, 1, &[(0, Charged, 1), (1, Duplicate, 1)]).agrees();
    across().stored(3, 1, &[(1, Charged, 1), (0, Duplicate, 1)]).agrees();
    across().stored(6, 1, &[(0, Charged, 1), (1, Charged, 1)]).differs(&[
        "email.charged",
        "total usage duplicate",
        "total usage charged",
    ]);
    // Attempts that cost differently: either may have been charged.
    let differing = || Case::new(&["0@1 a 3", "1@1 a 5"]);
    assert_eq!(differing().stored(5, 1, &[(1, Charged, 1), (0, Duplicate, 1)]).agrees().ambiguous, 1);
    assert_eq!(differing().stored(3, 1, &[(0, Charged, 1), (1, Duplicate, 1)]).agrees().ambiguous, 1);
    differing().stored(8, 1, &[(0, Charged, 1), (1, Duplicate, 1)]).differs(&["email.charged"]);
}

#[test]
fn denials_stand_as_they_were_recorded() {
    let denied = |case: Case| case.denied("0@1 a insufficient_credits 3");
    denied(Case::new(&["0@1 a 3"])).stored(0, 1, &[(0, Denied, 1)]).agrees();
    denied(denied(Case::new(&["0@1 a 3"]))).stored(0, 1, &[(0, Denied, 1)]).agrees();
    denied(Case::new(&["0@1 a 3", "1@1 a 3"])).stored(0, 1, &[(0, Denied, 1), (1, Duplicate, 1)]).agrees();
    // It is charged all the same.
    denied(Case::new(&["0@1 a 3"])).stored(3, 1, &[(0, Denied, 1)]).differs(&["email.charged"]);
    // Its first attempt was charged before.
    denied(Case::new(&["0@0 a 3", "0@1 a 3"])).stored(0, 1, &[(0, Denied, 1), (0, Duplicate, 1)]).differs(&["event"]);
    // Another price, another event, an event that is not there.
    denied(Case::new(&["0@1 a 4"])).stored(0, 1, &[(0, Denied, 1)]).differs(&["denial"]);
    denied(Case::new(&["0@1 b 3"])).stored(3, 1, &[(0, Charged, 1)]).differs(&["denial"]);
    denied(Case::new(&[])).differs(&["denial"]);
    // Two that contradict each other.
    denied(Case::new(&["0@1 a 3"]))
        .denied("0@1 a overage_limit 3")
        .stored(0, 1, &[(0, Denied, 1)])
        .differs(&["denial"]);
}

#[test]
fn a_capped_event_takes_what_was_left() {
    let capped = || Case::new(&["0@1 a 3"]).denied("0@1 a capped 3 2");
    capped().stored(1, 1, &[(0, Capped, 1)]).agrees();
    capped().stored(3, 1, &[(0, Capped, 1)]).differs(&["email.charged"]);
}

#[test]
fn an_action_off_the_plan_is_denied_or_told_of() {
    let case = || Case::new(&["0@1 enrich-a 3"]);
    case().denied("0@1 enrich-a not_entitled 6").stored(0, 1, &[(0, Denied, 1)]).agrees();
    case().denied("0@1 enrich-a insufficient_credits 6").stored(0, 1, &[(0, Denied, 1)]).differs(&["denial"]);
    let report = case().stored(0, 1, &[(0, Denied, 1)]).audit();
    assert_eq!(report.differences[0].what, "event", "{report:?}");
}

#[test]
fn a_dead_record_is_dead_once() {
    let case = || Case::new(&["!0@1", "0@2 old-a 3", "0@3 a 3"]).dead(0, 1).dead(0, 2);
    case().stored(3, 1, &[(0, Charged, 1), (0, DeadLettered, 2)]).agrees();
    // Dead, and denied as well.
    case()
        .denied("0@2 old-a insufficient_credits 3")
        .stored(3, 1, &[(0, Charged, 1), (0, DeadLettered, 2)])
        .differs(&["denial"]);
    // No dead letter tells of them.
    let report = Case::new(&["!0@1", "0@2 old-a 3"]).stored(0, 0, &[(0, DeadLettered, 2)]).audit();
    assert_eq!(report.differences.iter().filter(|each| each.what == "dead letter").count(), 2, "{report:?}");
    // A letter of a record that is not there.
    Case::new(&[]).dead(0, 7).differs(&["dead letter"]);
}

#[test]
fn what_came_after_the_look_is_not_judged() {
    let mut case = Case::new(&["0@1 a 3", "0@100 b 4", "!0@101"])
        .denied("0@100 b insufficient_credits 4")
        .denied("0@200 c insufficient_credits 4")
        .dead(0, 101)
        .dead(0, 300)
        .stored(3, 1, &[(0, Charged, 1)]);
    case.agrees();
    // The account was looked at later than the totals.
    case = Case::new(&["0@1 a 3", "0@50 a 3", "0@60 b 4"]).stored(7, 2, &[(0, Charged, 1)]);
    case.first = Some(vec![50, 0]);
    case.agrees();
}

#[test]
fn events_with_the_same_remembered_half_are_reported() {
    let case = Case::new(&["0@1 collision-a 3", "0@2 collision-b 4"]);
    let report = case.stored(3, 1, &[(0, Charged, 1), (0, Duplicate, 1)]).agrees();
    assert_eq!(report.collisions, 1);
}

#[test]
fn a_duplicate_may_be_remembered_again_once_its_day_has_grown() {
    let check = |generations: u64, remembered: u64, agrees: bool| {
        let mut case = Case::new(&["0@1 a 3", "0@2 a 3", "0@3 b 1"]);
        case.generations = generations;
        let report = case.stored(4, remembered, &[(0, Charged, 2), (0, Duplicate, 1)]).audit();
        assert_eq!(report.mismatches == 0, agrees, "{generations} {remembered}: {report:?}");
    };
    // generations remembered | agrees
    check(1, 2, true);
    check(1, 3, false);
    check(2, 3, true);
    check(2, 4, false);
    check(2, 1, false);
}

#[test]
fn what_is_charged_once_is_charged_with_one_of_its_events() {
    let case = || Case::new(&["0@1 phone-a1 1", "0@2 phone-a2 3", "0@3 phone-b1 1"]);
    let totals = [(0, Charged, 2), (0, Free, 1)];
    // The first of a partition, whatever the others would have cost.
    case().marked(2).stored(4, 3, &totals).agrees();
    case().marked(2).stored(8, 3, &totals).differs(&["email.charged"]);
    case().marked(2).stored(10, 3, &[(0, Charged, 3)]).differs(&[
        "email.charged",
        "total usage:0 free",
        "total usage:0 charged",
    ]);
    case().marked(1).stored(4, 3, &totals).differs(&["charged once in cycle 0"]);
    // A duplicate of it is not free, it is nothing.
    let twice = Case::new(&["0@1 phone-a1 1", "0@2 phone-a1 1", "0@3 phone-a2 1"]);
    twice.marked(1).stored(2, 2, &[(0, Charged, 1), (0, Duplicate, 1), (0, Free, 1)]).agrees();
}

#[test]
fn which_of_several_partitions_came_first_is_not_known_but_one_did() {
    let case = || Case::new(&["0@1 phone-a1 1", "0@2 phone-a2 1", "1@1 phone-a3 3"]).marked(1);
    case().stored(2, 3, &[(0, Charged, 1), (0, Free, 1), (1, Free, 1)]).agrees();
    assert_eq!(case().stored(6, 3, &[(0, Free, 2), (1, Charged, 1)]).agrees().ambiguous, 1);
    case().stored(8, 3, &[(0, Charged, 1), (0, Free, 1), (1, Charged, 1)]).differs(&[
        "email.charged",
        "total usage free",
        "total usage charged",
    ]);
    case().marked(0).stored(2, 3, &[(0, Charged, 1), (0, Free, 1), (1, Free, 1)]).differs(&["charged once in cycle 0"]);
    // What lies below the first look came first.
    let mut early = case().stored(2, 3, &[(0, Charged, 1)]);
    early.first = Some(vec![2, 0]);
    early.agrees();
    let mut early = case().stored(6, 3, &[(0, Charged, 1)]);
    early.first = Some(vec![2, 0]);
    early.differs(&["email.charged"]);
}

#[test]
fn what_was_denied_frees_nothing_and_what_was_capped_does() {
    let denied = |offset: i64| {
        let case = Case::new(&["0@1 phone-a1 3", "0@2 phone-a2 1", "0@3 phone-a3 1"]);
        let (id, required) = if offset == 1 { ("phone-a1", 6) } else { ("phone-a2", 2) };
        case.denied(&format!("0@{offset} {id} insufficient_credits {required}")).marked(1)
    };
    denied(1).stored(2, 3, &[(0, Charged, 1), (0, Free, 1), (0, Denied, 1)]).agrees();
    denied(1).stored(0, 3, &[(0, Free, 2), (0, Denied, 1)]).differs(&[
        "email.charged",
        "total usage:0 free",
        "total usage:0 charged",
    ]);
    // Had the first been charged, the second could not have been denied; but what is told stands.
    denied(2).stored(6, 3, &[(0, Charged, 1), (0, Free, 1), (0, Denied, 1)]).agrees();
    let capped = |others: &[&str]| {
        let events = [&["0@1 phone-a1 3", "0@2 phone-a2 1"], others].concat();
        Case::new(&events).denied("0@1 phone-a1 capped 6 5").marked(1)
    };
    capped(&[]).stored(1, 2, &[(0, Capped, 1), (0, Free, 1)]).agrees();
    capped(&[]).stored(3, 2, &[(0, Capped, 1), (0, Charged, 1)]).differs(&[
        "email.charged",
        "total usage:0 free",
        "total usage:0 charged",
    ]);
    // With nothing left it took nothing, and the next one is charged.
    let nothing = Case::new(&["0@1 phone-a1 3", "0@2 phone-a2 1"]).denied("0@1 phone-a1 capped 6 6").marked(1);
    nothing.stored(2, 2, &[(0, Capped, 1), (0, Charged, 1)]).agrees();
    // Another partition's was free, or charged after a fall-back and before the capped one was read again.
    capped(&["1@1 phone-a3 1"]).stored(1, 3, &[(0, Capped, 1), (0, Free, 1), (1, Free, 1)]).agrees();
    capped(&["1@1 phone-a3 1"]).stored(3, 3, &[(0, Capped, 1), (0, Free, 1), (1, Charged, 1)]).agrees();
}

#[test]
fn an_event_was_judged_by_any_one_plan_of_its_cycle() {
    // 1 on basic, 3 on pro: whether the command came first is not known.
    let case = || Case::new(&["0@1 a 2", "0@2 b 2"]).upgraded("pro");
    let totals = [(0, Charged, 2)];
    assert_eq!(case().stored(4, 2, &totals).agrees().ambiguous, 2);
    case().stored(8, 2, &totals).agrees();
    case().stored(12, 2, &totals).agrees();
    case().stored(3, 2, &totals).differs(&["email.charged"]);
    case().stored(13, 2, &totals).differs(&["email.charged"]);
    case().stored(8, 2, &[(0, Charged, 1), (0, Free, 1)]).differs(&["total usage:0 free", "total usage:0 charged"]);
    // A plan in the middle counts too, the same plan again is none.
    case().upgraded("flat").stored(12, 2, &totals).agrees();
    let report = Case::new(&["0@1 a 2"]).upgraded("basic").stored(2, 1, &[(0, Charged, 1)]).agrees();
    assert_eq!(report.ambiguous, 0);
    // Only the attempt that was decided is charged, by one of its prices.
    let twice = || Case::new(&["0@1 a 2", "0@2 a 2"]).upgraded("pro");
    twice().stored(2, 1, &[(0, Charged, 1), (0, Duplicate, 1)]).agrees();
    twice().stored(6, 1, &[(0, Charged, 1), (0, Duplicate, 1)]).agrees();
    twice().stored(8, 1, &[(0, Charged, 1), (0, Duplicate, 1)]).differs(&["email.charged"]);
    // Free on the other plan.
    let case = || Case::new(&["0@1 a 2"]).upgraded("flat");
    case().stored(0, 1, &[(0, Free, 1)]).agrees();
    let report = case().stored(2, 1, &[(0, Charged, 1)]).agrees();
    assert_eq!((report.records, report.outcomes.len()), (1, 0), "it counts, though how it ended is not known");
}

#[test]
fn a_denial_was_by_any_one_plan_of_its_cycle() {
    let enrich = || Case::new(&["0@1 enrich-a 3"]).upgraded("pro");
    enrich().denied("0@1 enrich-a not_entitled 6").stored(0, 1, &[(0, Denied, 1)]).agrees();
    enrich().denied("0@1 enrich-a insufficient_credits 6").stored(0, 1, &[(0, Denied, 1)]).agrees();
    enrich().denied("0@1 enrich-a insufficient_credits 7").stored(0, 1, &[(0, Denied, 1)]).differs(&["denial"]);
    // Without a denial it was entitled.
    enrich().stored(6, 1, &[(0, Charged, 1)]).agrees();
    enrich().stored(0, 1, &[(0, Charged, 1)]).differs(&["email.charged"]);
    let reveal = |required: u64| {
        let denied = format!("0@1 a insufficient_credits {required}");
        Case::new(&["0@1 a 2"]).upgraded("pro").denied(&denied).stored(0, 1, &[(0, Denied, 1)])
    };
    reveal(2).agrees();
    reveal(6).agrees();
    reveal(4).differs(&["denial"]);
    // What was capped tells its price.
    let capped = || Case::new(&["0@1 a 2"]).upgraded("pro").denied("0@1 a capped 6 1");
    capped().stored(5, 1, &[(0, Capped, 1)]).agrees();
    capped().stored(1, 1, &[(0, Capped, 1)]).differs(&["email.charged"]);
}

#[test]
fn what_is_charged_once_or_taken_back_was_charged_by_any_one_plan_of_its_cycle() {
    let case = || Case::new(&["0@1 phone-a1 1", "0@2 phone-a2 1"]).upgraded("pro").marked(1);
    let totals = [(0, Charged, 1), (0, Free, 1)];
    case().stored(2, 2, &totals).agrees();
    case().stored(4, 2, &totals).agrees();
    case().stored(6, 2, &totals).differs(&["email.charged"]);
    // Free on the other plan, so that the second sets the mark, or none does.
    let case = || Case::new(&["0@1 phone-a1 1", "0@2 phone-a2 3"]).upgraded("flat");
    case().marked(1).stored(6, 2, &totals).agrees();
    case().marked(0).stored(0, 2, &[(0, Free, 2)]).agrees();
    case().marked(1).stored(8, 2, &totals).differs(&["email.charged"]);
    // A void takes what was charged, whichever it was.
    let case = || Case::new(&["0@1 a 2", "0@2 void-a"]).upgraded("pro");
    case().stored(0, 2, &[(0, Charged, 1), (0, Voided, 1)]).agrees();
    case().stored(4, 2, &[(0, Charged, 1), (0, Voided, 1)]).differs(&["email.charged"]);
    // One that is free cannot be voided, and is not charged.
    let case = Case::new(&["0@1 a 2", "0@2 void-a"]).upgraded("flat");
    case.stored(0, 2, &[(0, Free, 1), (0, Voided, 1)]).agrees();
}
