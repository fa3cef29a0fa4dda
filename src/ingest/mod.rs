//! Kafka: the only place that names rdkafka.

/// Bytes to records: CloudEvents in both content modes.
pub mod decode;
