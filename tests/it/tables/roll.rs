//! What time does.

use super::Row;

#[rustfmt::skip]
pub const STEPS: &[Row] = &[
    ("put acme small; @+21d tick; sweep", "nothing", "cycle 0, version 1"),
    // A renewal: what is left expires, or goes on as far as the plan allows; plan and add-on grant anew.
    ("put acme small addon=email:5; use e1 reveal_email x=4; @+22d tick; sweep", "took renew", "cycle 1, email 15/0/0/15/0, closed0.email 15/4/11/0/0, said.cycle.closed 1, said.cycle.opened 1"),
    ("put acme saver; use e1 reveal_email x=4; @+22d tick; sweep", "took renew", "email 13/0/0/13/0, closed0.email 10/4/3/3/0"),
    ("put acme saver; use e1 reveal_email x=8; @+22d tick; sweep", "took renew", "email 12/0/0/12/0, closed0.email 10/8/0/2/0"),
    ("put acme small overage=3; use e1 reveal_email x=12; @+22d tick; sweep", "took renew", "email 10/0/0/10/0, closed0.email 10/10/0/0/2"),
    ("put acme large; put acme small; @+22d tick; sweep", "took renew", "plan small, next none, email 10/0/0/10/0"),
    ("put acme small; put acme yearly; @+22d tick; sweep", "took renew", "plan yearly, email 300/0/0/300/0"),
    // Whoever comes second finds it done.
    ("put acme small; @+22d tick; sweep; again", "stale", "cycle 1, closed 1, said.cycle.closed 1"),
    ("put acme small; @+22d tick; sweep old", "stale", "cycle 0, said.cycle.closed 0"),
    // Usage finds its account due, before any sweeper.
    ("put acme small; use e1 reveal_email; @+22d use e2 reveal_email", "took renew > charged", "cycle 1, email 10/1/0/9/0"),
    // The last cycle of a closed account.
    ("put acme small; use e1 reveal_email; close acme; @+1d tick; sweep", "took renew", "life closed, closed0.email 10/1/9/0/0, said.cycle.closed 1, said.cycle.opened 0"),
    ("put acme saver; grant acme email 5 topup until=+90d; close acme; @+1d tick; sweep", "took renew", "life closed, lots 0, closed0.email 15/0/15/0/0"),
    // Lots begin and end.
    ("put acme small; grant acme email 5 promo from=+2d; @+2d tick; sweep", "took lots", "email 15/0/0/15/0, lots 1"),
    ("put acme small; grant acme email 5 promo until=+2d; @+2d tick; sweep", "took lots", "email 15/0/5/10/0, lots 0"),
    ("put acme small; grant acme email 5 promo until=+2d; use e1 reveal_email x=2; @+2d tick; sweep", "took lots", "email 15/2/3/10/0"),
    ("put acme small; grant acme email 5 promo from=+1d until=+2d; @+3d tick; sweep", "took lots lots", "email 15/0/5/10/0, lots 0"),
    ("put acme small; grant acme email 5 topup until=+90d; @+22d tick; sweep", "took renew", "email 15/0/0/15/0, lots 1, closed0.email 15/0/10/5/0"),
    ("put acme small; grant acme email 5 topup; @+22d tick; sweep", "took renew", "email 10/0/0/10/0, lots 0, closed0.email 15/0/15/0/0"),
    // After a renewal alerts go by the plan that it brought.
    ("put acme large; put acme saver; grant acme email 5 promo until=+25d; @+26d tick; sweep", "took renew lots", "plan saver, email 15/0/5/10/0, said.low 1"),
    // A statement that late use has changed is restated; one that nothing can change any more is forgotten.
    ("put acme small; @+22d tick; sweep; @+21d11h use e1 reveal_email; @+23d tick; sweep", "took restate", "closed0.email 10/1/9/0/0, said.cycle.closed 2"),
    ("put acme small; @+22d tick; sweep; @+23d tick; sweep", "nothing", "closed 1"),
    // Its number counts changes, from the second of a rebuild on that came after its end; then it is stated once more in any case.
    ("put acme small; @+22d tick; sweep; @+21d11h use e1 reveal_email; @+21d11h use e2 reveal_email; @+23d tick; sweep", "took restate", "closed0.told 3, said.cycle.closed 2"),
    ("put acme small; @+22d tick; sweep; @+21d11h use e1 reveal_email; name g1 g1 rebuilt=+22d; @+23d tick; sweep; void e1; @+24d tick; sweep", "took restate", "closed0.told 1775044803, said.cycle.closed 3"),
    ("put acme small; name g1 g1 rebuilt=+20d; @+22d tick; sweep; @+21d11h use e1 reveal_email; @+23d tick; sweep", "took restate", "closed0.told 2, said.cycle.closed 2"),
    ("put acme small; @+22d tick; sweep; name g1 g1 rebuilt=+22d; @+25d tick; sweep", "took forget", "closed 0, said.cycle.closed 2"),
    ("put acme small; @+22d tick; sweep; name g1 g1 rebuilt=+22d; @+21d11h use e1 reveal_email; @+23d tick; sweep; @+25d tick; sweep", "took forget", "closed 0, said.cycle.closed 2"),
    // An older program changes a cycle without counting.
    ("put acme small; @+22d tick; sweep; older acme; @+23d tick; sweep", "took restate", "closed0.told 2, said.cycle.closed 2"),
    ("put acme small; @+22d tick; sweep; @+25d tick; sweep", "took forget", "closed 0"),
    ("put acme small; use e1 reveal_phone contact=c1; @+22d tick; sweep; @+25d tick; sweep", "took forget", "closed 0, marks 0"),
];

#[rustfmt::skip]
pub const REFUSALS: &[Row] = &[
    ("put acme small; @+22d tick; sweep | generation=g2", "other_generation g1", "cycle 0"),
    ("put acme small; @+22d tick; tear; sweep", "torn", ""),
    ("put acme small; @+22d tick; sweep | catalogue=x", "other_catalogue", "cycle 0"),
    ("put acme small; @+22d tick; sweep | catalogue=x commands_first=2", "other_catalogue", "cycle 0"),
    ("put acme small; @+22d tick; sweep | commands_first=2", "unknown", "cycle 0"),
    ("put acme small; @+22d tick; sweep ahead", "fell_back", "cycle 0"),
    ("put acme small; use e0 reveal_email; @+22d use e1 reveal_email | others=1", "fell_back", "cycle 0"),
    ("put acme small; @+22d tick; sweep ahead | commands_first=2", "unknown", "cycle 0"),
    ("put acme small; @+22d tick; sweep | outbox_max=1", "outbox_full", "cycle 0"),
    ("put acme small; @+22d tick; sweep old", "stale", "cycle 0"),
];
