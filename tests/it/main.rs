//! Tests against a real Kafka and a real Redis, started by `tests/run` or by `docker/services up`.

mod lua_vs_ledger;
mod support;
