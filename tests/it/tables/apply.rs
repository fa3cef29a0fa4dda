//! Usage.

use super::Row;

/// How events end that are judged.
#[rustfmt::skip]
pub const OUTCOMES: &[Row] = &[
    // Charged.
    ("put acme small; use e1 reveal_email", "charged", "email 10/1/0/9/0, total.charged 1, remembered 1"),
    ("put acme small; use e1 reveal_email x=3 user=ada", "charged", "email 10/3/0/7/0, usage.ada 1/3/0/0"),
    ("put acme small; use e1 enrich + use e2 reveal_phone", "charged, charged", "email 10/0.5/0/9.5/0, phone 16/8/0/8/0"),
    ("put acme small; use e1 reveal_email x=10", "charged", "email 10/10/0/0/0"),
    ("put acme small overage=3; use e1 reveal_email x=13", "charged", "email 10/10/0/0/3"),
    ("put acme unlimited; use e1 reveal_email x=1000000", "charged", "email unlimited/1000000/0/unlimited/0"),
    ("put acme small; put globex small; use e1 reveal_email + use e1 reveal_email for=globex", "charged, charged", "email 10/1/0/9/0, globex.email 10/1/0/9/0"),
    // To the closed cycle that it is dated in, as long as that is kept.
    ("put acme small; @+22d use e1 reveal_email; @+21d11h use e2 reveal_email appended=+22d", "charged", "cycle 1, email 10/1/0/9/0, closed0.email 10/1/9/0/0"),
    // Capped: takes what is left.
    ("put acme small overage=cap; use e1 reveal_email x=12 user=ada", "capped", "email 10/10/0/0/0, usage.ada 1/10/0/0, said.denied 1"),
    ("put acme small overage=cap; use e1 reveal_email x=10; use e2 reveal_email", "capped", "email 10/10/0/0/0, total.capped 1"),
    ("put acme small; use e1 reveal_email x=5 published=2", "capped", "email 10/3/0/7/0, said.denied 0"),
    // Free.
    ("put acme small; use e1 verify user=ada", "free", "email 10/0/0/10/0, usage.ada 0/0/0/1, remembered 1"),
    ("put acme small; use e1 reveal_phone outcome=not_found contact=c1", "free", "phone 16/0/0/16/0, marks 0"),
    ("put acme small; use e1 reveal_phone contact=c1; use e2 reveal_phone contact=c1", "free", "phone 16/8/0/8/0, marks 1"),
    ("put acme small; use e1 reveal_phone contact=c1 + use e2 reveal_phone contact=c1", "charged, free", "phone 16/8/0/8/0"),
    ("put acme small; use e1 reveal_phone contact=c1 x=3; use e2 reveal_phone contact=c1", "charged", "phone 16/8/0/8/0, total.denied 1"),
    ("put acme small; use e1 reveal_phone contact=c1; @+22d use e2 reveal_phone contact=c1", "charged", "cycle 1, phone 16/8/0/8/0, marks 2"),
    // Denied.
    ("put acme small; use e1 export user=ada", "denied not_entitled", "email 10/0/0/10/0, usage.ada 0/0/1/0, said.denied 1"),
    // What the plan is not entitled to says what remained before it, whatever of that call was seen before.
    ("put acme small; use e1 enrich + use e2 enrich x=2 + use e3 export + use e4 enrich", "charged, charged, denied not_entitled, charged", "email 10/2/0/8/0, left 8.5"),
    ("put acme small; use e1 enrich; use e2 enrich + use e1 enrich + use e3 export + use e4 enrich + use e5 export", "charged, duplicate, denied not_entitled, charged, denied not_entitled", "email 10/1.5/0/8.5/0, left 9/8.5"),
    ("put acme small; use e1 export; use e1 export + use e2 verify user=ada + use e3 export user=ada", "duplicate, free, denied not_entitled", "email 10/0/0/10/0, usage.ada 0/0/1/1, total.denied 2"),
    ("put acme small; use e1 reveal_email x=11", "denied insufficient_credits", "email 10/0/0/10/0, remembered 1"),
    ("put acme small; use e1 reveal_email x=9 + use e2 reveal_email x=2 + use e3 reveal_email", "charged, denied insufficient_credits, charged", "email 10/10/0/0/0"),
    ("put acme small overage=3; use e1 reveal_email x=14", "denied overage_limit", "email 10/0/0/10/0"),
    ("put acme small; use e1 reveal_email published=insufficient_credits", "denied insufficient_credits", "email 10/0/0/10/0, said.denied 0"),
    ("put acme small limits=email:2; use e1 reveal_email x=3 user=ada", "denied member_limit", "email 10/0/0/10/0, usage.ada 0/0/1/0"),
    ("put acme small limits=email:2; use e1 reveal_email x=2 user=ada; use e2 reveal_email user=ada; use e3 reveal_email user=bob", "charged", "email 10/3/0/7/0, usage.ada 1/2/1/0, usage.bob 1/1/0/0"),
    ("put acme small limits=email:2,email:5:ada; use e1 reveal_email x=5 user=ada + use e2 reveal_email x=5 user=bob", "charged, denied member_limit", "email 10/5/0/5/0"),
    ("put acme small limits=email:0:bob; use e1 reveal_email x=10 user=ada + use e2 reveal_email user=bob", "charged, denied member_limit", "email 10/10/0/0/0"),
    // Duplicate: whatever it says of itself.
    ("put acme small; use e1 reveal_email; use e1 reveal_email", "duplicate", "email 10/1/0/9/0, remembered 1"),
    ("put acme small; use e1 reveal_email + use e1 reveal_email", "charged, duplicate", "email 10/1/0/9/0, total.duplicate 1"),
    ("put acme small; use e1 reveal_email; use e1 reveal_phone x=2", "duplicate", "email 10/1/0/9/0, phone 16/0/0/16/0"),
    ("put acme small; use e1 reveal_email x=11; grant acme email 5 topup; use e1 reveal_email x=11", "duplicate", "email 15/0/0/15/0"),
    ("put acme small; @+11h58m use e1 reveal_email; @+12h5m use e1 reveal_email", "duplicate", "email 10/1/0/9/0, remembered 2"),
    ("put acme small; @+11h58m use e1 reveal_email + @+12h5m use e1 reveal_email", "charged, duplicate", "email 10/1/0/9/0, remembered 2"),
    ("put acme small; use e1 reveal_email; @+1d use e1 reveal_email", "charged", "email 10/2/0/8/0"), // beyond the tolerance it is another
    ("put acme small; use e1 reveal_email; use e1 reveal_email partition=1", "duplicate", "email 10/1/0/9/0"),
    // Voided.
    ("put acme small; use e1 reveal_email x=3 user=ada; void e1", "voided", "email 10/0/0/10/0, usage.ada 0/0/0/0, said.ledger.refund 1, said.ledger.void-waits 0"),
    ("put acme small; void e1 action=reveal_email; use e1 reveal_email", "voided", "email 10/0/0/10/0, total.voided 2"),
    // What late use took from the top-up is judged by the void of overage in the closed cycle, which brings nothing back.
    ("put acme small overage=3; use e1 reveal_email x=10; @+20d12h grant acme email 20 topup until=+90d; @+22d tick; sweep; @+22d use e2 reveal_email x=16; @+20d use e3 reveal_email x=3; @+21d use e4 reveal_email x=10; @+22d use e5 reveal_phone outcome=not_found + @+20d void e3", "free, voided", "email 20/16/0/4/0, said.low 2, said.restored 2"),
    // One that finds nothing charged says so: its event was denied, comes later or never, or has another time.
    ("put acme small; use e1 reveal_email; void e2", "voided", "email 10/1/0/9/0, said.ledger.refund 0, said.ledger.void-waits 1"),
    ("put acme small; void e1; @+1d void e1", "voided", "total.voided 2, said.ledger.void-waits 2"),
    ("put acme small; use e1 reveal_email; @+1d void e1 named=+1d; void e1", "voided", "email 10/0/0/10/0, said.ledger.refund 1, said.ledger.void-waits 1"),
    ("put acme small; use e1 reveal_email; void e1; void e1", "duplicate", "email 10/0/0/10/0"),
    ("put acme small; use e1 reveal_email; void e1; use e1 reveal_email", "duplicate", "email 10/0/0/10/0"),
    ("put acme small; use e1 reveal_email x=11; void e1", "voided", "email 10/0/0/10/0, said.ledger.refund 0, said.ledger.void-waits 1"),
    ("put acme small; use e1 reveal_phone contact=c1; void e1; use e2 reveal_phone contact=c1", "charged", "phone 16/8/0/8/0"),
    ("put acme small overage=3; use e1 reveal_email x=12; use e2 reveal_email; void e1", "voided", "email 10/1/0/9/0"),
    ("put acme small; use e1 reveal_email x=3; @+22d use e2 reveal_email; void e1", "voided", "email 10/1/0/9/0, closed0.email 10/0/10/0/0"),
    // Where a type became unlimited within the cycle, what was charged before comes back to what goes on; for what came after, nothing was taken.
    ("put acme small; grant acme email 5 topup until=+90d; use e1 reveal_email x=12; put acme unlimited; void e1; put acme small; @+22d tick; sweep", "took renew", "email 15/0/0/15/0"),
    ("put acme small; grant acme email 5 topup until=+90d; use e1 reveal_email x=12; put acme unlimited; use e2 reveal_email x=2; void e2; put acme small; @+22d tick; sweep", "took renew", "email 13/0/0/13/0"),
    ("put acme small; grant acme email 5 topup until=+90d; @+20d use e1 reveal_email x=12; put acme unlimited; put acme small; @+22d tick; sweep; void e1", "voided", "email 15/0/0/15/0, closed0.email unlimited/0/0/0/0"),
    ("put acme small; grant acme email 5 topup until=+90d; use e1 reveal_email x=12; put acme unlimited; @+20d use e2 reveal_email x=2; put acme small; @+22d tick; sweep; void e2", "voided", "email 13/0/0/13/0"),
];

/// Events that end as dead letters: first found, then produced, then counted.
#[rustfmt::skip]
pub const DEAD: &[Row] = &[
    ("garbage", "dead invalid_json > dead_lettered", "total.dead_lettered 1, notes 0, remembered 0"),
    ("put acme small; use e1 unheard_of", "dead unknown_action > dead_lettered", "email 10/0/0/10/0, remembered 0"),
    ("use e1 reveal_email", "unknown > dead unknown_account > dead_lettered", "accounts 0"),
    ("use e1 reveal_email; put acme small; use e1 reveal_email", "charged", "email 10/1/0/9/0"), // and can be replayed
    ("put acme small; @+5d tick; @+2d use e1 reveal_email", "dead too_late > dead_lettered", "email 10/0/0/10/0, remembered 0"),
    ("put acme small; @+5d tick; @+3d use e1 reveal_email", "charged", "email 10/1/0/9/0"), // at the floor itself
    ("put acme small; use e1 reveal_email; @+5d tick; void e1", "dead void_too_late > dead_lettered", "email 10/1/0/9/0"),
    ("put acme small; use e1 enrich; void e1", "dead not_voidable > dead_lettered", "email 10/0.5/0/9.5/0"),
    ("put acme small; @-10d use e1 reveal_email", "dead before_account > dead_lettered", "email 10/0/0/10/0"),
    ("put acme small; close acme; @+1d use e1 reveal_email", "dead account_closed > dead_lettered", "life closed, closed0.email 10/0/10/0/0"),
    ("put acme small; close acme; @-1d use e1 reveal_email", "charged", "email 10/1/0/9/0"), // it is dated before
    ("put acme unlimited; use e1 reveal_email x=100000001", "dead cost_too_large > dead_lettered", "email unlimited/0/0/unlimited/0"),
    ("put acme unlimited; use e1 reveal_email x=100000000", "charged", "email unlimited/100000000/0/unlimited/0"),
    // One among others stops none of them, and the letter counts only once it is produced.
    ("put acme small; use e1 reveal_email + garbage + use e2 reveal_email", "dead invalid_json > charged, charged, dead_lettered", "email 10/2/0/8/0"),
    ("put acme small; use e1 reveal_email + garbage | dies=yes", "dead invalid_json", "email 10/0/0/10/0, notes 1, total.dead_lettered 0"),
    // What one worker has noted stands, also where another would have charged it.
    ("use e1 reveal_email | dies=yes; put acme small; use e1 reveal_email", "dead unknown_account > dead_lettered", "email 10/0/0/10/0, notes 0"),
];

/// What changes nothing, in order of precedence.
#[rustfmt::skip]
pub const REFUSALS: &[Row] = &[
    ("put acme small; use e1 reveal_email | generation=g2", "other_generation g1", "email 10/0/0/10/0, position.usage:0 0"),
    ("put acme small; use e1 reveal_email | generation=g2 shift=1 catalogue=x", "other_generation g1", "position.usage:0 0"),
    ("wipe; use e1 reveal_email", "other_generation", "accounts 0"),
    ("put acme small; tear; use e1 reveal_email", "torn", ""),
    ("put acme small; tear; use e1 reveal_email | shift=1 catalogue=x", "torn", ""),
    ("put acme small; use e1 reveal_email; again", "done_before", "email 10/1/0/9/0, total.charged 1"),
    ("put acme small; use e1 reveal_email; use e2 reveal_email; use e3 reveal_email | shift=-2", "done_before", "email 10/2/0/8/0"),
    ("put acme small; use e1 reveal_email; use e2 reveal_email | shift=1", "other_position 1", "email 10/1/0/9/0"),
    ("put acme small; use e1 reveal_email; use e2 reveal_email + use e3 reveal_email partition=1 | shift=1", "other_position 1 0", "email 10/1/0/9/0"),
    ("put acme small; use e1 reveal_email | shift=1 catalogue=x others=1", "other_position 0", "email 10/0/0/10/0"),
    ("put acme small; use e1 reveal_email | others=1", "fell_back", "email 10/0/0/10/0"),
    ("put acme small; use e1 reveal_email | catalogue=x", "other_catalogue", "email 10/0/0/10/0"),
    ("put acme small; use e1 reveal_email | catalogue=x others=1", "other_catalogue", "email 10/0/0/10/0"),
    ("put acme small; use e1 reveal_email", "stale > charged", "email 10/1/0/9/0"), // the worker does not know it yet
    ("put acme small; use e1 reveal_email; put acme large; use e2 reveal_email x=50", "stale > charged", "email 100/51/0/49/0"),
    ("put acme small; use e1 reveal_email; blank; use e2 reveal_email", "stale > charged", "email 10/2/0/8/0"),
    ("put acme small; use e1 reveal_email | commands_first=2", "stale > unknown", "email 10/0/0/10/0"),
    ("put acme small; lose acme; use e1 reveal_email", "account_lost acme", ""),
    ("put acme small; use e1 reveal_email for=globex | commands_first=2", "unknown", "position.usage:0 0"),
    ("put acme small; use e1 reveal_email; use e2 reveal_email | commands_first=2", "unknown", "email 10/1/0/9/0"),
    ("use e1 reveal_email + use e2 unheard_of", "unknown > dead unknown_account unknown_action > dead_lettered, dead_lettered", "accounts 0"),
    ("put acme small; use e1 reveal_email; use e2 reveal_email | outbox_max=1", "outbox_full", "email 10/1/0/9/0"),
    ("put acme small; use e1 reveal_email; garbage | outbox_max=1", "dead invalid_json > outbox_full", "email 10/1/0/9/0, notes 1"),
];
