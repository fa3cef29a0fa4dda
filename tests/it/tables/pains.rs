//! What users of credit meters suffer from, and what happens here instead.
//!
//! Not here, since no story of one shard can tell it: what is lost or doubled by crashes (`tests/sim`, `faults/`), what
//! stands still (`halts.rs`, `monitoring/`), and what is dead before any script is asked (`bad_input.rs`).

use super::Row;

#[rustfmt::skip]
pub const PAINS: &[(&str, &[Row])] = &[
    ("a top-up that is sent twice is booked twice", &[
        ("put acme small; grant acme email 5 topup id=order-1; grant acme email 5 topup id=order-1; grant acme email 5 topup id=order-1", "duplicate", "email 15/0/0/15/0, lots 1, total.applied 2, total.duplicate 2"),
        // Months later, and after it has ended.
        ("put acme small; grant acme email 5 topup id=order-1; blank; @+150d grant acme email 5 topup id=order-1", "duplicate", "lots 1, total.applied 2"),
        ("put acme small; grant acme email 5 topup id=order-1; @+150d tick; sweep; @+150d grant acme email 5 topup id=order-1", "duplicate", "cycle 5, email 10/0/0/10/0, lots 0, total.applied 2"),
        // Nor is one lost that was only resembled: another order is another.
        ("put acme small; grant acme email 5 topup id=order-1; grant acme email 5 topup id=order-2", "applied", "email 20/0/0/20/0"),
    ]),
    ("a renewal is missed since the service was down when it was due", &[
        ("put acme small addon=email:5; use e1 reveal_email x=4; @+90d tick; sweep", "took renew renew renew", "cycle 3, email 15/0/0/15/0, closed0.email 15/4/11/0/0, closed1.email 15/0/15/0/0, closed2.email 15/0/15/0/0, said.cycle.closed 3, said.cycle.opened 3"),
        ("put acme small addon=email:5; use e1 reveal_email x=4; @+90d use e2 reveal_email", "took renew renew renew > charged", "cycle 3, email 15/1/0/14/0, closed0.email 15/4/11/0/0, said.cycle.closed 3, said.cycle.opened 3"),
        ("put acme small; use e1 reveal_email; @+90d tick; sweep; blank; @+90d use e2 reveal_email", "charged", "cycle 3, email 10/1/0/9/0, said.cycle.closed 3"), // not once more
        // What was to come meanwhile has come, and gone, in its cycle.
        ("put acme small; grant acme email 5 promo from=+30d until=+40d; @+90d tick; sweep", "took renew lots lots renew renew", "closed0.email 10/0/10/0/0, closed1.email 15/0/15/0/0, closed2.email 10/0/10/0/0"),
    ]),
    ("cycles drift away from the last of the month", &[
        ("put acme small anchor=2026-01-31", "applied", "cycle 1, ends 2026-03-31T00:00:00Z"),
        ("put acme small anchor=2026-01-31; @+150d tick; sweep", "took renew renew renew renew renew", "cycle 6, ends 2026-03-31T00:00:00Z 2026-04-30T00:00:00Z 2026-05-31T00:00:00Z 2026-06-30T00:00:00Z 2026-07-31T00:00:00Z 2026-08-31T00:00:00Z"),
        ("put acme small anchor=2026-01-30 interval=quarterly; @+340d tick; sweep", "took renew renew renew renew", "ends 2026-04-30T00:00:00Z 2026-07-30T00:00:00Z 2026-10-30T00:00:00Z 2027-01-30T00:00:00Z 2027-04-30T00:00:00Z"),
        ("put acme small anchor=2025-08-31 interval=semi_annual; @+180d tick; sweep", "took renew", "ends 2026-08-31T00:00:00Z 2027-02-28T00:00:00Z"),
        // 29 February comes back in a leap year.
        ("put acme yearly anchor=2024-02-29; @+730d tick; sweep", "took renew renew", "ends 2027-02-28T00:00:00Z 2028-02-29T00:00:00Z 2029-02-28T00:00:00Z"),
        // Midnight is the customer's, also where the clocks change in between.
        ("put acme small anchor=2026-02-15 zone=America/New_York; @+10d tick; sweep", "took renew", "ends 2026-03-15T04:00:00Z 2026-04-15T04:00:00Z"),
        ("put acme small anchor=2026-03-01 zone=America/New_York", "applied", "ends 2026-04-01T04:00:00Z"),
    ]),
    ("use around a renewal counts in the wrong month", &[
        ("put acme small; @+21d11h59m use e1 reveal_email", "charged", "cycle 0, email 10/1/0/9/0"),
        ("put acme small; @+21d12h use e1 reveal_email", "stale > took renew > charged", "cycle 1, email 10/1/0/9/0, closed0.email 10/0/10/0/0"),
        ("put acme small; @+21d12h use e1 reveal_email; @+21d11h59m use e2 reveal_email appended=+21d13h", "charged", "cycle 1, email 10/1/0/9/0, closed0.email 10/1/9/0/0"),
    ]),
    ("a renewal takes bought credits away", &[
        ("put acme small addon=email:5; grant acme email 20 topup until=+90d; use e1 reveal_email x=12; @+22d tick; sweep", "took renew", "email 35/0/0/35/0, closed0.email 35/12/3/20/0"),
        ("put acme small addon=email:5; grant acme email 20 topup until=+90d; use e1 reveal_email x=18; @+22d tick; sweep", "took renew", "email 32/0/0/32/0, closed0.email 35/18/0/17/0"),
    ]),
    ("bought credits go before those that end with the month", &[
        ("put acme small; grant acme email 5 topup until=+90d id=g1; use e1 reveal_email x=8; takeback acme g1", "applied", "email 10/8/0/2/0"), // it was whole
        ("put acme small; grant acme email 5 topup until=+90d; grant acme email 5 promo until=+2d; use e1 reveal_email x=3; @+2d tick; sweep", "took lots", "email 20/3/2/15/0"),
    ]),
    ("a change of plan resets what was used, or gives credits twice", &[
        ("put acme small; use e1 reveal_email x=4; put acme large; use e2 reveal_email", "charged", "email 100/5/0/95/0, said.cycle.closed 0"),
        ("put acme large; use e1 reveal_email x=50; put acme small; use e2 reveal_email", "charged", "email 100/51/0/49/0, next small"),
        ("put acme small addon=email:5; use e1 reveal_email x=15; put acme small; put acme small addon=email:5; use e2 reveal_email", "denied insufficient_credits", "email 15/15/0/0/0"),
        ("put acme small; put acme large; put acme small; put acme large", "applied", "plan large, email 100/0/0/100/0"),
    ]),
    ("a correction is lost among charges that are under way, or undoes them", &[
        ("put acme small; use e1 reveal_email x=4; adjust acme email -3; use e2 reveal_email x=3; adjust acme email +5", "applied", "email 15/10/0/5/0"),
        ("put acme small; use e1 reveal_email x=4; adjust acme email -3; again", "done_before", "email 10/7/0/3/0"),
        ("put acme small; use e1 reveal_email x=4; adjust acme email +1; blank; use e2 reveal_email x=7", "charged", "email 11/11/0/0/0"), // another worker sees it
        ("put acme small; use e1 reveal_email x=4; adjust acme email -6; use e2 reveal_email", "denied insufficient_credits", "email 10/10/0/0/0"),
    ]),
    ("a balance stays wrong after something came late", &[
        // Late or in time, the statement is the same.
        ("put acme saver; use e1 reveal_email x=4; use e2 reveal_email x=3; @+22d tick; sweep", "took renew", "email 13/0/0/13/0, closed0.email 10/7/0/3/0"),
        ("put acme saver; use e1 reveal_email x=4; @+22d tick; sweep; @+1h use e2 reveal_email x=3 appended=+22d", "dead too_late > dead_lettered", "closed0.email 10/4/3/3/0"), // beyond what is waited for
        ("put acme saver; use e1 reveal_email x=4; @+22d tick; sweep; @+21d use e2 reveal_email x=3 appended=+22d", "charged", "email 13/0/0/13/0, closed0.email 10/7/0/3/0"),
        ("put acme small; grant acme email 5 topup until=+90d; @+22d tick; sweep; @+21d use e2 reveal_email x=12 appended=+22d", "charged", "email 13/0/0/13/0, closed0.email 15/12/0/3/0"),
        // So it is with what is taken back, and the statement follows.
        ("put acme small; @+21d use e1 reveal_email x=4; @+22d tick; sweep; void e1; @+23d tick; sweep", "took restate", "email 10/0/0/10/0, closed0.email 10/0/10/0/0, said.cycle.closed 2"),
        ("put acme small; grant acme email 5 topup id=g1; use e1 reveal_email x=12; takeback acme g1; use e2 reveal_email", "denied insufficient_credits", "email 12/12/0/0/0"),
    ]),
    ("what was denied counts as used", &[
        ("put acme small; use e1 reveal_email x=11 user=ada; use e2 reveal_email x=10 user=ada", "charged", "email 10/10/0/0/0, usage.ada 1/10/1/0"),
        ("put acme small; use e1 reveal_phone x=3 contact=c1; use e2 reveal_phone contact=c1", "charged", "phone 16/8/0/8/0, marks 1"), // nor as charged once
    ]),
    ("what was refunded cannot be used at once", &[
        ("put acme small; use e1 reveal_email x=10; void e1; use e2 reveal_email x=10", "charged", "email 10/10/0/0/0"),
        ("put acme small; use e1 reveal_email x=10; void e1 + use e2 reveal_email x=10", "voided, charged", "email 10/10/0/0/0"),
        ("put acme small; use e1 reveal_email x=4 user=ada; void e1", "voided", "usage.ada 0/0/0/0, said.ledger.refund 1"), // and the table of usage says so
    ]),
    ("a refund gives more than was taken", &[
        ("put acme small; use e1 reveal_email; void e1; void e1; void e1", "duplicate", "email 10/0/0/10/0, total.voided 1"),
        ("put acme small overage=cap; use e1 reveal_email x=12; void e1", "voided", "email 10/0/0/10/0"),
        ("put acme small; use e1 reveal_email x=11; void e1; use e2 reveal_email", "charged", "email 10/1/0/9/0"), // nothing was taken
        ("put acme small; use e1 reveal_phone contact=c1; use e2 reveal_phone contact=c1; void e2", "voided", "phone 16/8/0/8/0"),
    ]),
    ("a yearly contract that is paid by the quarter gives its credits on the first day, or none later", &[
        ("put acme yearly interval=quarterly; use e1 reveal_email x=300; use e2 reveal_email", "denied insufficient_credits", "email 300/300/0/0/0"),
        ("put acme yearly interval=quarterly; use e1 reveal_email x=300; @+90d use e2 reveal_email", "took renew > charged", "cycle 1, email 300/1/0/299/0, ends 2026-06-01T00:00:00Z 2026-09-01T00:00:00Z"),
        ("put acme yearly; @+90d use e1 reveal_email x=301", "denied insufficient_credits", "cycle 0, email 300/0/0/300/0"),
    ]),
    ("what was not found is charged", &[
        ("put acme small; use e1 reveal_phone outcome=not_found", "free", "phone 16/0/0/16/0"),
        ("put acme small; use e1 reveal_phone outcome=found", "charged", "phone 16/8/0/8/0"),
        ("put acme small; use e1 reveal_phone x=2; use e2 reveal_phone outcome=not_found", "free", "phone 16/16/0/0/0"), // nor denied
        ("put acme small; use e1 reveal_phone contact=c1 outcome=not_found; use e2 reveal_phone contact=c1", "charged", "phone 16/8/0/8/0"),
    ]),
    ("a contact is charged again, above all when two ask at once", &[
        ("put acme small; use e1 reveal_phone contact=c1 user=ada; use e2 reveal_phone contact=c1 user=bob", "free", "phone 16/8/0/8/0, usage.bob 0/0/0/1"),
        ("put acme small; use e1 reveal_phone contact=c1 + use e2 reveal_phone contact=c1 + use e3 reveal_phone contact=c2", "charged, free, charged", "phone 16/16/0/0/0"),
        ("put acme small; use e1 reveal_phone contact=c1 + use e2 reveal_phone contact=c1 partition=1", "charged, free", "phone 16/8/0/8/0"),
        ("put acme small; use e1 reveal_phone contact=c1; blank; use e2 reveal_phone contact=c1 partition=1", "free", "phone 16/8/0/8/0"),
        ("put acme small; use e1 reveal_phone contact=c1 x=2; use e2 reveal_phone contact=c1", "free", "phone 16/16/0/0/0"), // also of an empty account
    ]),
    ("credits are missing while a job runs", &[
        // Nothing is held: what was not charged is there.
        ("put acme small; use e1 reveal_email x=9 + use e2 reveal_email x=2 + use e3 reveal_email", "charged, denied insufficient_credits, charged", "email 10/10/0/0/0"),
        ("put acme small; use e1 reveal_email x=9; use e2 reveal_email x=2; use e3 reveal_email", "charged", "email 10/10/0/0/0"),
    ]),
    ("more is used than there is when many ask at once", &[
        ("put acme small; use e1 reveal_email x=8; use e2 reveal_email + use e3 reveal_email partition=1 + use e4 reveal_email + use e5 reveal_email partition=1", "charged, charged, denied insufficient_credits, denied insufficient_credits", "email 10/10/0/0/0"),
    ]),
    ("an alert does not come, or comes with every event", &[
        ("put acme small; use e1 reveal_email x=7", "charged", "said.low 0"),
        ("put acme small; use e1 reveal_email x=8; grant acme email 5 promo from=+1d until=+2d; @+3d tick; sweep", "took lots lots", "email 15/8/5/2/0, said.low 2, said.restored 1, said.exhausted 0"),
        ("put acme small; use e1 reveal_email x=7; use e2 reveal_email; use e3 reveal_email", "charged", "said.low 1, said.exhausted 0"),
        ("put acme small; use e1 reveal_email x=10; use e2 reveal_email; use e3 reveal_email", "denied insufficient_credits", "said.exhausted 1"),
        ("put acme small; use e1 reveal_email x=8; @+22d use e2 reveal_email; @+22d use e3 reveal_email x=7", "charged", "said.low 2"), // once a cycle
    ]),
    ("an incident about an account that was closed stays open for ever", &[
        ("put acme small; use e1 reveal_email x=10; close acme; put acme small", "took renew > refused account_closed", "life closed, said.low 1, said.exhausted 1, said.restored 2"),
        ("put acme small; use e1 reveal_email x=10; use e2 reveal_email; grant acme email 5 topup; close acme; put acme small", "took renew > refused account_closed", "said.exhausted 1, said.restored 2"), // once
        ("put acme small; use e1 reveal_email x=7; close acme; put acme small", "took renew > refused account_closed", "said.low 0, said.restored 0"),
        ("put acme small; use e1 reveal_email x=10; close acme; @-1d use e2 reveal_email", "denied insufficient_credits", "said.exhausted 1, said.restored 0"), // not yet
    ]),
    ("one member uses the whole team's credits up", &[
        ("put acme small limits=email:4; use e1 reveal_email x=4 user=ada + use e2 reveal_email user=ada + use e3 reveal_email user=bob", "charged, denied member_limit, charged", "email 10/5/0/5/0"),
        ("put acme small; use e1 reveal_email x=10 user=ada", "charged", "email 10/10/0/0/0"), // without a limit: all there is
        ("put acme small limits=email:4; use e1 reveal_email x=4 user=ada; void e1; use e2 reveal_email x=4 user=ada", "charged", "email 10/4/0/6/0"),
        ("put acme small limits=email:4; use e1 reveal_email x=4 user=ada; @+22d use e2 reveal_email x=4 user=ada", "charged", "cycle 1, email 10/4/0/6/0"),
        ("put acme small limits=email:4; use e1 reveal_email x=4 user=ada; put acme small limits=email:6; use e2 reveal_email x=2 user=ada", "charged", "email 10/6/0/4/0"),
    ]),
    ("a purchase shows a day later", &[
        ("put acme small; use e1 reveal_email x=10; grant acme email 5 topup; use e2 reveal_email x=5", "charged", "email 15/15/0/0/0"),
    ]),
    ("one bad event of a batch rejects the others", &[
        ("put acme small; use e1 reveal_email + garbage + use e2 unheard_of + use e3 reveal_email for=nobody + use e4 reveal_email", "dead invalid_json unknown_action unknown_account > charged, charged, dead_lettered, dead_lettered, dead_lettered", "email 10/2/0/8/0"),
    ]),
    ("every source of data has one price", &[
        ("put acme small; use e1 enrich source=premium + use e2 enrich source=basic + use e3 enrich", "charged, charged, charged", "email 10/3/0/7/0"),
        ("put acme small; use e1 enrich source=premium outcome=not_found", "free", "email 10/0/0/10/0"),
    ]),
];
