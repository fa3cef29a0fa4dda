//! Commands.

use super::Row;

#[rustfmt::skip]
pub const OUTCOMES: &[Row] = &[
    // The first put opens a cycle and grants plan and add-ons.
    ("put acme small", "applied", "plan small, cycle 0, version 1, email 10/0/0/10/0, phone 16/0/0/16/0"),
    ("put acme small addon=email:5", "applied", "email 15/0/0/15/0"),
    ("put acme small anchor=2026-01-31", "applied", "cycle 1"),
    // Another counts at once where nothing shrinks; used stays used.
    ("put acme small; use e1 reveal_email x=4; put acme large", "applied", "plan large, next none, email 100/4/0/96/0, phone 40/0/0/40/0"),
    ("put acme small addon=email:5; put acme small addon=email:5", "applied", "email 15/0/0/15/0, version 2"),
    ("put acme small addon=email:5; put acme small addon=email:7", "applied", "email 17/0/0/17/0"),
    ("put acme small addon=email:5; put acme small; put acme small addon=email:5", "applied", "email 15/0/0/15/0"),
    // Else it waits for the renewal.
    ("put acme large; put acme small", "applied", "plan large, next small, email 100/0/0/100/0"),
    ("put acme large; put acme small; put acme large", "applied", "plan large, next none, email 100/0/0/100/0"),
    ("put acme small; put acme yearly", "applied", "plan small, next yearly, email 10/0/0/10/0"),
    ("put acme small; put acme small anchor=2026-03-05", "applied", "plan small, next small, email 10/0/0/10/0"),
    // Top-ups and promos.
    ("put acme small; grant acme email 5 topup", "applied", "email 15/0/0/15/0, lots 1, said.ledger.grant 3"),
    ("put acme small; grant acme email 5 promo until=+2d", "applied", "email 15/0/0/15/0, lots 1"),
    ("put acme small; grant acme email 5 promo from=+2d", "applied", "email 10/0/0/10/0, lots 1"),
    ("put acme unlimited; grant acme email 5 topup", "applied", "email unlimited/0/0/unlimited/0, lots 1"),
    // What is left of one is taken back.
    ("put acme small; grant acme email 5 topup id=g1; takeback acme g1", "applied", "email 10/0/0/10/0, lots 0, said.ledger.void 1"),
    ("put acme small; grant acme email 5 topup until=+1d id=g1; use e1 reveal_email x=3; takeback acme g1", "applied", "email 13/3/0/10/0"),
    ("put acme small; grant acme email 5 promo from=+2d id=g1; takeback acme g1", "applied", "email 10/0/0/10/0, lots 0, said.ledger.void 0"),
    // Corrections.
    ("put acme small; adjust acme email +2.5", "applied", "email 12.5/0/0/12.5/0"),
    ("put acme small; adjust acme email -2.5", "applied", "email 10/2.5/0/7.5/0"),
    ("put acme small; adjust acme email -12", "applied", "email 10/10/0/0/2"),
    ("put acme unlimited; adjust acme email -12", "applied", "email unlimited/12/0/unlimited/0"),
    // The cycle ends then and there.
    ("put acme small; close acme", "applied", "life closing, email 10/0/0/10/0"),
    ("put acme large; put acme small; close acme", "applied", "life closing, next none"),
    // A command is applied once, whatever it says of itself.
    ("put acme small; grant acme email 5 topup id=g1; grant acme email 5 topup id=g1", "duplicate", "email 15/0/0/15/0, lots 1"),
    ("put acme small; grant acme email 5 topup id=g1; blank; grant acme email 9 topup id=g1", "duplicate", "email 15/0/0/15/0"),
    ("put acme small id=p; put acme large id=p", "duplicate", "plan small"),
    ("put acme small; close acme id=x; @+1d close acme id=x", "duplicate", "life closing"),
    ("put acme small id=a; put globex small id=a", "applied", "accounts 2"), // ids are each account's own
    ("put acme small; grant acme email 1 topup id=b; grant acme email 1 topup id=c; grant acme email 1 topup id=d; grant acme email 1 topup id=e; grant acme email 1 topup id=b", "duplicate", "email 14/0/0/14/0"),
    // After a fall-back what was answered is not answered twice.
    ("put acme small; grant acme email 5 topup published=yes", "applied", "email 15/0/0/15/0, said.ledger.command 1"),
    // Time comes first: what was ordered after a renewal takes effect in the next cycle.
    ("put acme small; use e1 reveal_email; @+22d grant acme email 5 topup", "took renew > applied", "cycle 1, email 15/0/0/15/0"),
];

#[rustfmt::skip]
pub const REFUSED: &[Row] = &[
    ("bad acme invalid_command", "refused invalid_command", "accounts 0, total.refused 1, said.ledger.command 1"),
    ("bad acme unsupported_field", "refused unsupported_field", "accounts 0"),
    ("put acme small; grant acme email 5 promo until=-1d", "refused invalid_command", "email 10/0/0/10/0, lots 0"),
    ("grant acme email 5 topup", "refused unknown_account", "accounts 0"),
    ("adjust acme email +5", "refused unknown_account", "accounts 0"),
    ("close acme", "refused unknown_account", "accounts 0"),
    ("put acme none", "refused unknown_plan", "accounts 0"),
    ("put acme small; put acme none", "refused unknown_plan", "plan small, version 1"),
    ("put acme small addon=fax:5", "refused unknown_credit_type", "accounts 0"),
    ("put acme small; grant acme fax 5 topup", "refused unknown_credit_type", "version 1"),
    ("put acme small; adjust acme fax +5", "refused unknown_credit_type", "version 1"),
    ("put acme small; close acme; put acme small", "took renew > refused account_closed", "life closed, email 0/0/0/0/0"),
    ("put acme small; close acme; @+1d grant acme email 5 topup", "refused account_closed", "life closed"),
    ("put acme small; takeback acme g1", "refused unknown_grant", "version 1"),
    ("put acme small; grant acme email 5 topup id=g1; takeback acme g1; takeback acme g1", "refused unknown_grant", "email 10/0/0/10/0"),
    ("put acme small; grant acme email 1000000000000 topup", "refused balance_too_large", "email 10/0/0/10/0, lots 0, version 1"),
    ("put acme small; adjust acme email -1000000000000; adjust acme email -1", "refused balance_too_large", "email 10/10/0/0/999999999990"),
    ("put acme small; grant acme email 1 topup times=50; grant acme email 1 topup", "refused too_many_grants", "lots 50, email 60/0/0/60/0"),
    ("put acme small; grant acme email 1 topup times=50; takeback acme c3; grant acme email 1 topup", "applied", "lots 50, email 60/0/0/60/0"),
    // One that was refused is not remembered: once its fault is mended, it may be sent again.
    ("grant acme email 5 topup id=g1; put acme small; grant acme email 5 topup id=g1", "applied", "email 15/0/0/15/0"),
];

#[rustfmt::skip]
pub const REFUSALS: &[Row] = &[
    ("put acme small | generation=g2", "other_generation g1", "accounts 0, position.commands:0 0"),
    ("put acme small | generation=g2 shift=1 catalogue=x", "other_generation g1", "accounts 0"),
    ("tear; put acme small", "torn", ""),
    ("put acme small; again", "done_before", "version 1, total.duplicate 0"),
    ("put acme small | shift=1", "other_position 0", "accounts 0"),
    ("put acme small | shift=1 catalogue=x", "other_position 0", "accounts 0"),
    ("put acme small | catalogue=x", "other_catalogue", "accounts 0"),
    ("put acme small; grant acme email 5 topup | others=1", "fell_back", "version 1"),
    ("put acme small; grant acme email 5 topup | others=1 catalogue=x", "other_catalogue", "version 1"),
    ("put acme small; grant acme email 5 topup", "stale > applied", "email 15/0/0/15/0"), // the worker does not know it yet
    ("put acme small; put acme large", "stale > applied", "plan large"), // as if it were the first
    ("put acme small; grant acme email 5 topup; lose acme; close acme", "stale > account_lost acme", ""),
    ("garbage partition=commands | dies=yes; put acme small", "dead invalid_json > dead_lettered", "accounts 0, notes 0, position.commands:0 1"),
    ("put acme small; grant acme email 5 topup | outbox_max=1", "stale > outbox_full", "version 1"),
];
