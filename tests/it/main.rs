//! Tests against a real Kafka and a real Redis, started by `tests/run` or by `docker/services up`.

// The futures of tests nest deeply: test, meter, store, connection, client library.
#![recursion_limit = "256"]

mod audit;
mod backtest;
mod bad_input;
mod billing;
mod catalogue;
mod cli_follow;
mod cluster;
mod commands;
mod cycles;
mod dead_letters;
mod durable;
mod faults;
mod halts;
mod independent;
mod latency;
mod lua_vs_ledger;
mod members;
mod metrics;
mod monitoring;
mod once;
mod outage;
mod over_http;
mod rebuild;
mod redis_answers;
mod redis_tls;
mod renewals;
mod rights;
mod saved_point;
mod secured;
mod sentinel;
mod start;
mod support;
mod tables;
mod time;
mod transactions;
mod usage;
mod voids;
mod walk;
