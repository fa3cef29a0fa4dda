//! Kafka: the only place that names rdkafka.

/// Topics: made, and compared with what the meter needs.
pub mod admin;
/// Edges of balances, as the meter has published them.
pub mod alerts;
/// Whether a log is still the one that was read.
pub mod anchors;
/// What a topic holds, in the order of its times.
pub mod by_time;
/// What every client shares: settings, errors, a look at the cluster.
pub mod client;
/// A clock of day that is set back.
pub mod clock;
/// Commands that were sent.
pub mod commands;
/// The thread that reads.
pub mod consumer;
/// Records that cannot be judged, to their own topic.
pub mod dead_letters;
/// Bytes to records: CloudEvents in both content modes.
pub mod decode;
/// Why brokers do not answer, and where the remedy is.
pub mod fault;
/// Rebalances and statistics, as the client's callbacks tell of them.
pub mod group;
/// Partitions that are read side by side in time.
pub mod in_step;
/// Waits for the answer to a command.
pub mod ledger_tail;
/// A dead letter, read again.
pub mod letter;
/// A log from one offset to another, for those who fold it again.
pub mod log;
/// A broker inside the process, for the demo.
pub mod mock;
/// Records to Kafka, each acknowledged.
pub mod producer;
/// What was published about records that may be decided again.
pub mod recorded;
/// Whether the brokers let the meter's user read.
pub mod rights;
/// Who is read on, what is paused, and why.
pub mod room;
/// The newest records of a topic, now and then.
pub mod sample;
/// A topic from given offsets to its present end.
pub mod scan;
/// Brokers that answer nothing though their connections stand.
pub mod silence;
/// The ledger's line that names a state.
pub mod state_line;
/// What was published about closed cycles.
pub mod statements;
/// A topic as it goes on.
pub mod tail;
/// Where logs start and end, and what the group committed.
pub mod watermarks;
