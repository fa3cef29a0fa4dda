//! Tests against a real Kafka and a real Redis, started by `tests/run` or by `docker/services up`.

mod audit;
mod backtest;
mod bad_input;
mod billing;
mod catalogue;
mod cli_follow;
mod cluster;
mod commands;
mod cycles;
mod durable;
mod faults;
mod halts;
mod independent;
mod latency;
mod lua_vs_ledger;
mod metrics;
mod monitoring;
mod once;
mod outage;
mod rebuild;
mod redis_answers;
mod start;
mod support;
mod time;
mod usage;
mod walk;
