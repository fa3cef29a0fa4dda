//! Scripts that are neither usage, nor commands, nor renewals.

use super::Row;

#[rustfmt::skip]
pub const INIT: &[Row] = &[
    ("wipe; init first", "ready", "accounts 0, position.usage:0 0"),
    ("init", "ready", ""),
    ("put acme small; use e1 reveal_email; init first", "ready", "email 10/1/0/9/0, position.usage:0 1"), // it stays what it is
    ("put acme small; wipe; init", "emptied", "accounts 0"),
    ("init | generation=g2", "other_generation g1", ""),
    ("init shards=2", "other_shards 1", ""),
    ("schema 1; init", "other_schema 1", ""),
    ("init version=2", "other_catalogue 3", ""),
    ("init hash=x", "other_catalogue 3", ""),
    ("init version=4", "older_catalogue 3", ""),
    ("init version=4 compared", "ready", ""),
    ("put acme small; init version=4 compared differs=+1d", "ready", "version 1"),
    ("put acme small; init version=4 compared differs=+0d", "priced_up_to +0d", "version 1"),
    ("@+3d tick; init version=4 compared differs=+2d", "priced_up_to +3d", ""),
    // The first that differs is named.
    ("schema 1; init version=4 shards=2", "other_schema 1", ""),
];

#[rustfmt::skip]
pub const TIME: &[Row] = &[
    ("@+3d tick", "at +3d +1d", ""),
    ("@+3d tick; @+2d tick", "at +3d +1d", ""), // never back
    ("@+3d tick ahead", "held commands:0", ""),
    ("tick reached", "held usage:0", ""),
    ("put acme small; use e1 reveal_email; tick reached", "at +0d -2d", ""),
    ("@+3d tick | generation=g2", "other_generation", ""),
];

#[rustfmt::skip]
pub const FORGET: &[Row] = &[
    // Identities go once the floor has passed their day.
    ("put acme small; use e1 reveal_email; @+2d tick; forget", "forgotten 0", "remembered 1"),
    ("put acme small; use e1 reveal_email; @+4d tick; forget", "forgotten 1", "remembered 0"),
    ("put acme small; use e1 reveal_email; @+2d tick; forget early", "forgotten 0", "remembered 1"),
    ("put acme small; use e1 reveal_email; @+4d tick; forget changed", "forgotten 0", "remembered 1"),
    ("put acme small; use e1 reveal_email; @+4d tick; forget | generation=g2", "other_generation", "remembered 1"),
    // What was charged stays charged, and goes with its cycle.
    ("put acme small; use e1 reveal_email; @+4d tick; forget; @+4d use e1 reveal_email", "charged", "email 10/2/0/8/0"),
];

#[rustfmt::skip]
pub const FORGET_USAGE: &[Row] = &[
    // Usage goes once its day is over everywhere.
    ("put acme small; use e1 reveal_email user=ada; @+1d tick; forget_usage", "refused", "usage.ada 1/1/0/0"),
    ("put acme small; use e1 reveal_email user=ada; @+3d tick; forget_usage", "forgotten 1", "usage.ada 0/0/0/0, email 10/1/0/9/0"),
    ("put acme small; use e1 reveal_email user=ada; @+3d tick; forget_usage keep=2", "refused", "usage.ada 1/1/0/0"),
    ("put acme small; use e1 reveal_email user=ada; @+3d tick; forget_usage | generation=g2", "refused", "usage.ada 1/1/0/0"),
];

#[rustfmt::skip]
pub const OUTBOX: &[Row] = &[
    ("take", "taken", ""),
    ("put acme small; take", "taken credits.ledger.grant.v1 credits.ledger.grant.v1", "said.ledger 3"),
    ("put acme small; take; take", "taken credits.ledger.command.v1", "said.ledger 1"),
    ("put acme small; take; take; take", "taken", "said.ledger 0"),
    ("put acme small; take; take other", "held", "said.ledger 3"),
];

#[rustfmt::skip]
pub const READING: &[Row] = &[
    ("root g1", "root g1", ""),
    ("root g1 g2 g1", "root g1 g1 g1", ""), // it is made once
    ("name g1 g2", "named", ""),
    ("name g1 g2; name g1 g2", "other_generation g2", ""),
    ("wipe; name g1 g2", "other_generation -", ""),
    ("put acme small; name g1 g2; use e1 reveal_email", "other_generation g2", "accounts 1"),
    ("put acme small; wipe", "wiped 5", "accounts 0"),
    ("wipe; wipe", "wiped 0", ""),
    ("put acme small; census acme globex", "small ok 10, none", ""),
    ("put acme small; use e1 reveal_email x=9; census acme", "small low 1", ""),
    ("put acme small; use e1 reveal_email x=10; census acme", "small exhausted 0", ""),
    ("put acme unlimited; census acme", "unlimited ok unlimited", ""),
    ("put acme small; close acme; @+1d tick; sweep; census acme", "none", ""),
    ("put acme small; use e1 reveal_email + use e2 reveal_email; look acme globex", "small 1 commands 2 events, none", ""),
];
