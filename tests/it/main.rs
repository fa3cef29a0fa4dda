//! Tests against a real Kafka and a real Redis, started by `tests/run` or by `docker/services up`.

mod audit;
mod bad_input;
mod commands;
mod crashes;
mod independent;
mod lua_vs_ledger;
mod outage;
mod rebuild;
mod start;
mod support;
mod time;
mod walk;
