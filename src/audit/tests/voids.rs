//! What voids took back, in all orders that the log allows.

use super::*;

#[test]
fn a_void_takes_back_what_was_charged_in_every_order_that_the_log_allows() {
    let case = || Case::new(&["0@1 a 3", "0@2 void-a"]);
    case().stored(0, 2, &[(0, Charged, 1), (0, Voided, 1)]).agrees();
    case().stored(3, 2, &[(0, Charged, 1), (0, Voided, 1)]).differs(&["email.charged"]);
    case().stored(0, 2, &[(0, Voided, 2)]).differs(&["total usage:0 charged", "total usage:0 voided"]);
    // It came first.
    Case::new(&["0@1 void-a", "0@2 a 3"]).stored(0, 2, &[(0, Voided, 2)]).agrees();
    // Two partitions: either came first.
    let case = || Case::new(&["0@1 a 3", "1@1 void-a"]);
    case().stored(0, 2, &[(0, Charged, 1), (1, Voided, 1)]).agrees();
    case().stored(0, 2, &[(0, Voided, 1), (1, Voided, 1)]).agrees();
    case().stored(3, 2, &[(0, Charged, 1), (1, Voided, 1)]).differs(&["email.charged"]);
    // Once, and nothing that was not charged.
    let case = Case::new(&["0@1 a 3", "0@2 a 3", "0@3 void-a", "0@4 void-a"]);
    case.stored(0, 2, &[(0, Charged, 1), (0, Duplicate, 2), (0, Voided, 1)]).agrees();
    let case = Case::new(&["0@1 a 3", "0@2 void-a"]).denied("0@1 a insufficient_credits 3");
    case.stored(0, 2, &[(0, Denied, 1), (0, Voided, 1)]).agrees();
    let case = Case::new(&["0@1 a 3", "0@2 void-a"]).denied("0@1 a capped 3 1");
    case.stored(0, 2, &[(0, Capped, 1), (0, Voided, 1)]).agrees();
    // The mark goes with the charge.
    let case = || Case::new(&["0@1 phone-a1", "0@2 phone-a2", "0@3 void-phone-a1", "0@4 phone-a3"]).marked(1);
    case().stored(2, 4, &[(0, Charged, 2), (0, Free, 1), (0, Voided, 1)]).agrees();
    case().stored(0, 4, &[(0, Charged, 1), (0, Free, 2), (0, Voided, 1)]).differs(&[
        "email.charged",
        "total usage:0 free",
        "total usage:0 charged",
    ]);
    let case = || Case::new(&["0@1 phone-a1", "1@1 void-phone-a1", "0@2 phone-a2"]).marked(1);
    case().stored(2, 3, &[(0, Charged, 2), (1, Voided, 1)]).agrees();
    case().stored(2, 3, &[(0, Charged, 1), (0, Voided, 1), (1, Voided, 1)]).agrees();
    case().marked(0).stored(0, 3, &[(0, Charged, 1), (0, Free, 1), (1, Voided, 1)]).agrees();
}

#[test]
fn voids_among_many_events_of_one_contact_are_told_apart() {
    // The voids come right behind the first two, in another partition.
    let case = |events: i64| {
        let events = (1..=events).map(|n| format!("0@{n} phone-a{n} 1 {}", 10 * n));
        let voids = (1..=2).map(|n| format!("1@{n} void-phone-a{n} 1 {}", 10 * n + 5));
        let records: Vec<String> = events.chain(voids).collect();
        let mut case = Case::new(&records.iter().map(String::as_str).collect::<Vec<_>>());
        case.positions = vec![1_000_000, 1_000_000];
        case
    };
    let as_appended =
        |n: u64| case(n as i64).marked(1).stored(2, n + 2, &[(0, Charged, 3), (0, Free, n - 3), (1, Voided, 2)]);
    as_appended(100).agrees();
    // One partition was read long before the other.
    case(100).stored(0, 102, &[(0, Charged, 1), (0, Free, 99), (1, Voided, 2)]).agrees();
    case(100).marked(1).stored(2, 102, &[(0, Charged, 1), (0, Free, 97), (0, Voided, 2), (1, Voided, 2)]).agrees();
    case(100).marked(1).stored(8, 102, &[(0, Charged, 4), (0, Free, 96), (1, Voided, 2)]).differs(&[
        "email.charged",
        "total usage:0 free",
        "total usage:0 charged",
        "total usage free",
        "total usage charged",
    ]);
    // More than can be tried in all orders.
    as_appended(20_000).agrees();
    // Of each event one attempt or the other was decided: which ones, has more answers than can be tried.
    let twice = |n: i64| {
        let records: Vec<String> =
            (1..=n).flat_map(|id| [0, 1].map(|partition| format!("{partition}@{id} phone-a{id}"))).collect();
        Case::new(&records.iter().map(String::as_str).collect::<Vec<_>>()).marked(1)
    };
    twice(16).stored(2, 16, &[(0, Duplicate, 16), (1, Charged, 1), (1, Free, 15)]).agrees();
    twice(16).stored(2, 16, &[(0, Charged, 1), (0, Free, 15), (1, Duplicate, 16)]).agrees();
    assert!(twice(16).stored(65, 16, &[(0, Duplicate, 16), (1, Charged, 16)]).audit().mismatches > 0);
}
