//! What goes into the pipeline, and what it wants done.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batch::Call;
use super::record::Record;
use super::recorded::Published;
use super::report::Report;
use crate::ledger::call::{Applied, Commanded, Note, Partition, Reply};
use crate::ledger::catalogue::Catalogue;

/// What happens to the pipeline.
#[derive(Debug)]
pub enum Input {
    /// Partitions, each with every shard's position. All state before it is dropped.
    Assigned(Vec<(Partition, Vec<i64>)>),
    Revoked,
    /// Records in the order of their partitions. `epoch` tells those read before a rewind apart.
    Records {
        partition: Partition,
        epoch: u32,
        records: Vec<Record>,
    },
    /// There is no record between the last one and this offset (control records, gaps).
    ReadTo {
        partition: Partition,
        epoch: u32,
        offset: i64,
    },
    /// Where the log ended when reading began: see [`Settings::in_order`](super::Settings::in_order).
    LogEnds(Vec<(Partition, i64)>),
    Answered {
        shard: u32,
        id: u64,
        answer: Answer,
    },
    /// The end of the commands topic, for the lane that asked.
    CommandsEnd {
        shard: u32,
        id: u64,
        offset: i64,
    },
    /// What was published about the records that were asked for, and where the commands end.
    Recalled {
        id: u64,
        published: Vec<Published>,
        commands_end: i64,
    },
    /// The dead letters that a lane asked for are in Kafka.
    DeadLettersProduced {
        shard: u32,
        id: u64,
    },
    /// Ask the idle shards where they are: one that fell back to an older state says so only when it is asked.
    Probe,
    /// A shard's generation and positions, for the lane that asked.
    Positions {
        shard: u32,
        id: u64,
        generation: Option<String>,
        positions: BTreeMap<Partition, i64>,
    },
    /// The shard has not said where it is; every question ends in this or an answer.
    NoPositions {
        shard: u32,
        id: u64,
    },
    /// Nothing may be sent to a shard any more.
    Halt {
        shard: u32,
        reason: String,
    },
    /// The catalogue in force, once every shard prices by it.
    Catalogue(Arc<Catalogue>),
    Tick,
}

/// What came of a call.
#[derive(Debug)]
pub enum Answer {
    Apply(Reply<Applied>),
    Command(Reply<Commanded>),
    Roll(Reply<()>),
    /// Nothing was applied, or nobody knows.
    None,
    /// The shard's data or a script has a fault: the same call would only fail again.
    Halt {
        reason: String,
    },
}

/// What the pipeline wants done.
#[derive(Debug)]
pub enum Effect {
    Call {
        shard: u32,
        id: u64,
        call: Call,
    },
    AskCommandsEnd {
        shard: u32,
        id: u64,
    },
    ProduceDeadLetters {
        shard: u32,
        id: u64,
        notes: Vec<Note>,
    },
    /// For an answer, or word that there is none, however long it takes.
    AskPositions {
        shard: u32,
        id: u64,
    },
    /// Find what was published about records from these offsets on. Nothing new is sent before.
    Recall {
        id: u64,
        from: Vec<(Partition, i64)>,
    },
    /// Read a partition again from an offset, and mark what is read then with the epoch.
    Rewind {
        partition: Partition,
        offset: i64,
        epoch: u32,
        /// Redis is where it was, and what waits here is to be priced by another catalogue.
        repriced: bool,
    },
    Applied(Report),
    /// How much a shard's outbox holds.
    Outbox {
        shard: u32,
        entries: usize,
    },
    Refused {
        shard: u32,
        kind: &'static str,
    },
    /// Records that wait for a shard that does not answer are not kept any more: they are read again.
    LetGo {
        shard: u32,
        records: usize,
    },
    /// The shard prices by another catalogue: nothing goes to it before [`Input::Catalogue`].
    OtherCatalogue {
        shard: u32,
    },
    Halted {
        shard: u32,
        reason: String,
    },
    /// Nothing more of a partition is applied; it need not be read.
    HaltedPartition {
        partition: Partition,
        reason: String,
    },
}

/// How far a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub partition: Partition,
    /// The smallest position over the shards, as far as this worker knows.
    pub applied: i64,
    pub read: i64,
    pub oldest_append_ms: Option<i64>,
}
