//! What the tests share: where the services are, and the state of a shard as Redis holds it.

pub mod dump;

/// An address that `tests/run` gives; a test without it fails, it is never skipped.
pub fn service(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run tests/run, or docker/services up"))
}

/// A key prefix of the test's own.
pub fn own_prefix(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::now_v7().simple())
}
