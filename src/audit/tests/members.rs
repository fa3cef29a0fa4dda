//! Usage by day and member, and what counts against limits: what the log says against what Redis says.

use super::super::commands::Commanded;
use super::super::members::Members;
use super::super::resolve::{Back, Ended, Priced};
use super::*;
use crate::ledger::account::AccountView;
use crate::ledger::event::Days;

const WINDOW: Window = Window { keep_ms: 30 * DAY_MS, from: None, begins_ms: 0 };
const TODAY: &str = "2026-11-24";

fn with_usage(case: Case, used: &[(&'static str, Rows)]) -> Case {
    Case { window: Some(WINDOW), used: used.to_vec(), ..case }
}

#[test]
fn usage_by_day_is_that_of_the_log() {
    let records = ["0@1 a 3 1000 u-1", "0@2 b 2 1000 u-1", "0@3 b 2 1000 u-1", "0@4 c 1 1000", "0@5 d 4 1000 u-2"];
    let case = |used: &[(&'static str, Rows)]| {
        let case = Case::new(&records).denied("0@5 d insufficient_credits 4");
        with_usage(case.stored(6, 4, &[(0, Charged, 3), (0, Duplicate, 1), (0, Denied, 1)]), used)
    };
    let rows =
        || vec![("", "reveal", [1, 1_000, 0, 0]), ("u-1", "reveal", [2, 5_000, 0, 0]), ("u-2", "reveal", [0, 0, 1, 0])];
    assert_eq!(case(&[(TODAY, rows())]).agrees().usage_days, 1);
    let report = case(&[(TODAY, [&rows()[..2], &[("u-2", "reveal", [0, 0, 0, 1])]].concat())]).audit();
    let [difference] = report.differences.as_slice() else { panic!("{report:?}") };
    assert_eq!(
        (difference.what.as_str(), difference.expected.as_str(), difference.found.as_str()),
        ("usage on 2026-11-24 of member u-2, reveal", "0 charged 0, 1 denied, 0 free", "0 charged 0, 0 denied, 1 free")
    );
    assert_eq!(difference.records.iter().map(|record| record.offset).collect::<Vec<_>>(), [5]);
    // Each number, a member too many, one too few, another's day, nothing at all.
    for i in 0..4 {
        let mut rows = rows();
        rows[1].2[i] += 1;
        case(&[(TODAY, rows)]).differs(&["usage on 2026-11-24 of member u-1, reveal"]);
    }
    let more = [&rows()[..], &[("u-3", "reveal", [1, 0, 0, 0])]].concat();
    case(&[(TODAY, more)]).differs(&["usage on 2026-11-24 of member u-3, reveal"]);
    case(&[(TODAY, rows()[1..].to_vec())]).differs(&["usage on 2026-11-24 of no member, reveal"]);
    let others = [(TODAY, rows()), ("2026-11-23", vec![("u-1", "reveal", [1, 1_000, 0, 0])])];
    case(&others).differs(&["usage on 2026-11-23 of member u-1, reveal"]);
    assert_eq!(case(&[]).audit().mismatches, 3);
    // What is kept no more, was not kept yet, or is in a saved point, is not compared.
    let window = |window: Window| Case { window: Some(window), ..case(&[]) };
    assert_eq!(window(Window { from: Some("2026-11-25".parse().unwrap()), ..WINDOW }).agrees().usage_days, 0);
    assert_eq!(window(Window { begins_ms: NOON_MS, ..WINDOW }).agrees().usage_days, 0);
    assert_eq!(window(Window { begins_ms: NOON_MS - DAY_MS, ..WINDOW }).audit().mismatches, 3);
    assert_eq!(Case { window: None, ..case(&[]) }.agrees().usage_days, 0);
}

#[test]
fn usage_that_was_taken_back_capped_or_free_counts_as_that() {
    let case = |used: Rows| {
        let records = ["0@1 a 3 1000 u-1", "0@2 b 2 1000 u-1", "0@3 void-a 1 1000 u-9", "0@4 phone-a1 1 1000 u-1"];
        let more = ["0@5 phone-a2 1 1000 u-2", "0@6 c 5 1000 u-2"];
        let case = Case::new(&[&records[..], &more].concat()).denied("0@6 c capped 5 4").marked(1);
        let totals = [(0, Charged, 3), (0, Voided, 1), (0, Free, 1), (0, Capped, 1)];
        with_usage(case.stored(5, 6, &totals), &[(TODAY, used)])
    };
    let rows = || {
        let free = ("u-2", "phone", [0, 0, 0, 1]);
        vec![
            ("u-1", "phone", [1, 2_000, 0, 0]),
            ("u-1", "reveal", [1, 2_000, 0, 0]),
            free,
            ("u-2", "reveal", [1, 1_000, 0, 0]),
        ]
    };
    case(rows()).agrees();
    for row in 0..rows().len() {
        let mut rows = rows();
        rows[row].2[0] += 1;
        assert_eq!(case(rows).audit().mismatches, 1);
    }
    // In another partition the void may have come first: then the event is voided too, and the usage is the same.
    let case = |used: &[(&'static str, Rows)]| {
        let case = Case::new(&["0@1 a 3 1000 u-1", "1@1 void-a 1 1000"]);
        with_usage(case.stored(0, 2, &[(0, Voided, 1), (1, Voided, 1)]), used)
    };
    case(&[]).agrees();
    assert_eq!(case(&[(TODAY, vec![("u-1", "reveal", [1, 3_000, 0, 0])])]).audit().mismatches, 1);
}

#[test]
fn which_of_two_attempts_was_counted_is_not_known_but_one_was() {
    let case = |used: Rows| {
        let case = Case::new(&["0@1 a 3 1000 u-1", "1@1 a 5 1000 u-2"]);
        let first = used.iter().any(|(user, ..)| *user == "u-1");
        let (charged, totals) = match first {
            true => (3, [(0, Charged, 1), (1, Duplicate, 1)]),
            false => (5, [(0, Duplicate, 1), (1, Charged, 1)]),
        };
        with_usage(case.stored(charged, 1, &totals), &[(TODAY, used)])
    };
    case(vec![("u-1", "reveal", [1, 3_000, 0, 0])]).agrees();
    case(vec![("u-2", "reveal", [1, 5_000, 0, 0])]).agrees();
    case(vec![("u-2", "reveal", [1, 5_001, 0, 0])]).differs(&["usage on 2026-11-24 of member u-2, reveal"]);
    case(vec![("u-2", "reveal", [2, 5_000, 0, 0])]).differs(&["usage on 2026-11-24 of member u-2, reveal"]);
}

#[test]
fn a_day_is_one_of_any_zone_that_the_account_has_had() {
    let catalogue = Catalogue::parse(CATALOGUE).unwrap();
    let mut kinds = Kinds::default();
    // A zone changes with a renewal. Noon is the day after in Kiritimati.
    let (utc, line_islands) = (chrono_tz::UTC, chrono_tz::Pacific::Kiritimati);
    let kept = kinds.keep(&UsageEvent { user: Some("u-1".into()), ..event("a", 3) }, (0, 1), NOON_MS);
    let mut resolver = Resolver::new(&catalogue, &kinds);
    let view = AccountView::opened(config(), config().calendar(&catalogue.plans["basic"]).cycle_at(NOON_MS).unwrap());
    resolver.classes.push(crate::ledger::event::price(&catalogue, &view, &event("a", 3)).unwrap());
    let attempt = Priced { kept, class: 0, days: Days::of(NOON_MS, 0), early: true, decision: None };
    let charged = Ended { outcome: Charged, charged: Credits::whole(3), takes_back: None };
    let voided = |dated_ms: i64| {
        let takes_back = Some(Back { dated_ms, user: 0, cycle: None });
        Ended { outcome: Voided, charged: Credits::whole(-3), takes_back }
    };
    let check = |zones: &[Tz], ended: Ended, expected: &[&str]| {
        let commanded = Commanded { zones: zones.to_vec(), ..Commanded::default() };
        let mut members = Members::of(&commanded, Some("2026-11-24".parse().unwrap()));
        members.add_one_of(&resolver, &[&[(attempt, ended)]]);
        let shown = members.days.iter().map(|((day, user, action), row)| format!("{day} {user} {action}: {row}"));
        assert_eq!(shown.collect::<Vec<_>>(), expected, "{zones:?} {ended:?}");
    };
    check(&[utc], charged, &["2026-11-24 u-1 reveal: 1 charged 3, 0 denied, 0 free"]);
    check(&[line_islands], charged, &["2026-11-25 u-1 reveal: 1 charged 3, 0 denied, 0 free"]);
    let either = |day: &str| format!("{day} u-1 reveal: 0 to 1 charged 0 to 3, 0 denied, 0 free");
    check(&[utc, line_islands], charged, &[&either("2026-11-24"), &either("2026-11-25")]);
    // Taken out of the day that it is counted on, and of no other.
    check(&[utc], voided(NOON_MS), &["2026-11-24 u-1 reveal: -1 charged -3, 0 denied, 0 free"]);
    check(&[utc], voided(NOON_MS - DAY_MS), &[]);
    let either = |day: &str| format!("{day} u-1 reveal: -1 to 0 charged -3 to 0, 0 denied, 0 free");
    check(&[utc, line_islands], voided(NOON_MS), &[&either("2026-11-24"), &either("2026-11-25")]);
    check(&[utc, line_islands], voided(NOON_MS - DAY_MS), &[&either("2026-11-24")]);
}

#[test]
fn what_counts_against_limits_is_what_members_were_charged() {
    let case = |limits: (&'static str, &'static str), counted: &[(&'static str, i64)]| {
        let records = ["0@1 a 3 1000 u-1", "0@2 b 2 1000", "0@3 c 4 1000 u-1", "0@4 void-c 1 1000 u-9"];
        let case = Case { limits, counted: counted.to_vec(), ..Case::new(&records).upgraded("basic") };
        case.stored(5, 4, &[(0, Charged, 3), (0, Voided, 1)])
    };
    let limited = ("email 100000", "email 200000");
    case(limited, &[("", 2), ("u-1", 3)]).agrees();
    case(limited, &[("", 2), ("u-1", 4)]).differs(&["email counted for member u-1 in cycle 0"]);
    case(limited, &[("", 2)]).differs(&["email counted for member u-1 in cycle 0"]);
    case(limited, &[("u-1", 3)]).differs(&["email counted for no member in cycle 0"]);
    case(limited, &[("", 2), ("u-1", 3), ("u-2", 1)]).differs(&["email counted for member u-2 in cycle 0"]);
    // Without limits nothing is.
    case(("", ""), &[]).agrees();
    case(("", ""), &[("u-1", 3)]).differs(&["email counted for member u-1 in cycle 0"]);
    // Limits that came or went within the cycle: what was charged before or after may be in it or not.
    for limits in [("", "email 100000"), ("email 100000", "")] {
        case(limits, &[]).agrees();
        case(limits, &[("", 2), ("u-1", 3)]).agrees();
        case(limits, &[("u-1", 4)]).differs(&["email counted for member u-1 in cycle 0"]);
    }
}
