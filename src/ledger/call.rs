//! What a worker asks a shard, and what the shard answers.
//!
//! The fence: every call carries, for each partition that it touches, the range of offsets that it applies.
//! A shard applies a range only at its stored position, so that a late, repeated or lost call does no harm.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use chrono_tz::Tz;

use super::account::{AccountConfig, AccountView};
use super::catalogue::{Amount, CatalogueId, Overage, Threshold};
use super::credits::Credits;
use super::cycle::Cycle;
use super::day::{CallDay, Layout};
use super::event::{Class, Days, UsageEvent};
use super::grants::{GrantKind, Lot};
use super::members::MemberLimit;
use super::once::{CallMarks, GrownMarks};
use super::outcome::{DeadReason, Outcome, Verdict};

/// The layout of what is stored. A program refuses a state with another one.
pub const SCHEMA: u32 = 3;
/// Events of a call. More in a call are more to an account, which costs the same for one event as for many; but a script
/// keeps everyone else waiting, about 3 µs an event.
pub const CALL_EVENTS_MAX: usize = 20_000;
/// Events of a run: a script unpacks them at once, and Lua's stack ends at 8,000.
pub const RUN_EVENTS_MAX: usize = 4_000;
/// Events named in one message to the denied topic.
pub const DENIED_EVENTS_MAX: usize = 500;
/// Bytes of the events named in one message to the denied topic.
pub const DENIED_BYTES_MAX: usize = 256 * 1024;

/// A topic that is read, by its part in the meter, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    Usage,
    Commands,
}

impl Input {
    pub const ALL: [Input; 2] = [Input::Usage, Input::Commands];

    pub const fn name(self) -> &'static str {
        match self {
            Input::Usage => "usage",
            Input::Commands => "commands",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub input: Input,
    pub index: i32,
}

impl Partition {
    pub const COMMANDS: Partition = Partition { input: Input::Commands, index: 0 };

    pub fn usage(index: i32) -> Partition {
        Partition { input: Input::Usage, index }
    }

    pub fn parse(text: &str) -> Option<Partition> {
        let (name, index) = text.split_once(':')?;
        let input = Input::ALL.into_iter().find(|input| input.name() == name)?;
        Some(Partition { input, index: index.parse().ok()? })
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.input.name(), self.index)
    }
}

/// Offsets `from..to` of a partition: all records in it that belong to the shard are in the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub partition: Partition,
    pub from: i64,
    pub to: i64,
    /// Repeats of an event of the same call; counted as duplicates.
    pub repeats: u32,
    /// The last record below `to`, where the worker has read one.
    pub last: Option<LastRead>,
}

/// A record by which a log is known again, and the time that its partition has reached with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRead {
    pub anchor: Anchor,
    pub reached_ms: i64,
}

/// The offset of a record, and a hash of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Anchor {
    pub offset: i64,
    pub fingerprint: u64,
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.offset, self.fingerprint)
    }
}

impl Anchor {
    pub fn parse(text: &str) -> Option<Anchor> {
        let (offset, fingerprint) = text.split_once(':')?;
        Some(Anchor { offset: offset.parse().ok()?, fingerprint: fingerprint.parse().ok()? })
    }
}

/// What every call carries beside its ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Names this meter's state: made once, with the root key.
    pub generation: String,
    pub catalogue: CatalogueId,
    /// Of the usage topic, for messages.
    pub usage_topic: String,
    pub restamp_tolerance_ms: i64,
    /// Entries in a shard's outbox beyond which it takes nothing more.
    pub outbox_max: usize,
    /// Identities in a set beyond which its day gets more sets.
    pub set_members_max: usize,
    /// Bytes that the journal of a day's usage may have.
    pub journal_bytes_max: usize,
    /// Whether usage is broken down by day, member and action.
    pub breakdown: bool,
}

/// Usage events of one shard, and ranges of offsets.
#[derive(Clone, Debug, PartialEq)]
pub struct ApplyCall {
    pub stamp: Arc<Stamp>,
    pub ranges: Vec<Range>,
    /// The end of the commands topic, seen after the last event was read: an account that is unknown
    /// once the shard has applied all commands before it stays unknown. `None`: not asked yet.
    pub commands_end: Option<i64>,
    /// After a shard has fallen back to an older state, usage waits until the commands up to here are applied
    /// again: they were there when it was decided first.
    pub commands_first: Option<i64>,
    /// Where the shard was, as the worker knows, in its partitions that the call has no range of. One that is behind
    /// has fallen back: what was published about its records must be known before anything is decided.
    pub others: Vec<(Partition, i64)>,
    /// Records found dead whose dead letters are not in Kafka yet: the shard notes them and answers `Dead`.
    pub found: Vec<Note>,
    /// Records that end as dead letters, which are in Kafka.
    pub dead: Vec<Note>,
    /// Repeats of events of the same call, by action. The shard is told by range how many there are.
    pub repeats: BTreeMap<Arc<str>, u64>,
    pub classes: Vec<Class>,
    pub groups: Vec<Group>,
}

impl ApplyCall {
    pub fn events(&self) -> usize {
        self.groups.iter().map(|group| group.events.len()).sum()
    }

    /// A call that asks for the accounts which the worker does not know: it names them and has no range, so that the
    /// shard shows those that exist (`Stale`) before it is sent all their events.
    pub fn question(&self) -> Option<ApplyCall> {
        let unknown = self.groups.iter().filter(|group| group.version == 0 && !group.events.is_empty());
        let groups: Vec<Group> = unknown
            .map(|group| Group {
                account: group.account.clone(),
                version: 0,
                plan: None,
                overage: Overage::Reject,
                thresholds: Vec::new(),
                member_limits: Arc::default(),
                breakdown: None,
                days: Vec::new(),
                cycle: 0,
                marks: Vec::new(),
                events: Vec::new(),
            })
            .collect();
        (!groups.is_empty()).then(|| ApplyCall {
            stamp: self.stamp.clone(),
            ranges: Vec::new(),
            commands_end: None,
            commands_first: None,
            others: Vec::new(),
            found: Vec::new(),
            dead: Vec::new(),
            repeats: BTreeMap::new(),
            classes: Vec::new(),
            groups,
        })
    }

    /// Whether it only asks, and applies nothing.
    pub fn is_question(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// The events of one account in a call, in the order in which they are decided.
/// Without events it asks only that the account is as the worker believes.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub account: Arc<str>,
    /// The version that the events were priced by; 0 if the worker does not know the account.
    pub version: u64,
    /// The account's, for who counts what was charged: it decides nothing.
    pub plan: Option<Arc<str>>,
    pub overage: Overage,
    pub thresholds: Vec<Threshold>,
    /// In their order.
    pub member_limits: Arc<[MemberLimit]>,
    /// The zone whose days its usage is broken down by; `None`: it is not.
    pub breakdown: Option<Tz>,
    /// The days of its events and their neighbours, as far as they are known or begun.
    pub days: Vec<CallDay>,
    /// The number of the open cycle.
    pub cycle: i32,
    /// The cycles of its events that are charged once.
    pub marks: Vec<CallMarks>,
    pub events: Vec<CallEvent>,
}

impl Group {
    /// The events in their order, cut where the days change that they ask for, and where a run is full.
    pub fn runs(&self, restamp_tolerance_ms: i64) -> impl Iterator<Item = (Days, &[CallEvent])> {
        let days = move |event: &CallEvent| Days::of(event.event.time_ms, restamp_tolerance_ms);
        let of_a_day = self.events.chunk_by(move |a, b| days(a) == days(b));
        of_a_day.flat_map(|run| run.chunks(RUN_EVENTS_MAX)).map(move |run| (days(&run[0]), run))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct CallEvent {
    /// Index into the call's ranges.
    pub range: usize,
    /// Index into the call's classes. Without meaning where the account is unknown.
    pub class: usize,
    pub offset: i64,
    pub event: Arc<UsageEvent>,
}

/// A record that was found dead: it decides, whatever a later reader finds, until the position has passed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    pub partition: Partition,
    pub offset: i64,
    pub reason: DeadReason,
}

/// One command of one account, decided by [`super::command::decide`].
#[derive(Clone, Debug, PartialEq)]
pub struct CommandCall {
    pub stamp: Arc<Stamp>,
    /// Holds exactly one record, the command.
    pub range: Range,
    pub account: Arc<str>,
    /// The version that the command was decided by; 0 if the account does not exist.
    pub version: u64,
    pub command_id: String,
    /// The hash of source and id that is remembered.
    pub member: i64,
    pub command_type: &'static str,
    pub change: Change,
    /// Of the account as it is afterwards.
    pub thresholds: Vec<Threshold>,
    /// All that the catalogue knows, in order.
    pub credit_types: Vec<String>,
    /// Its answer was published before the shard fell back to an older state; only alerts are published again.
    pub told: bool,
    /// See [`ApplyCall::others`].
    pub others: Vec<(Partition, i64)>,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Creates the account with its first cycle, or sets its configuration in place of another.
    Put {
        config: Box<AccountConfig>,
        /// What waits for the renewal.
        next: Option<Box<AccountConfig>>,
        replaces: Option<Box<Replaced>>,
        opens: Option<Cycle>,
        grants: Vec<(String, GrantKind, Amount)>,
    },
    /// A top-up or promo.
    Grant(Lot),
    /// Takes back what is left of the lot that a command has given.
    Void { created: i64 },
    Adjust {
        credit_type: String,
        amount: Credits,
        adds: bool,
        /// As JSON text.
        reason: String,
    },
    /// Ends the account's cycle, and opens no other.
    Close {
        at_ms: i64,
        /// What has waited for a renewal that does not come.
        next: Option<Box<AccountConfig>>,
    },
    /// Nothing, and the ledger says why.
    Refuse(Refusal),
}

/// The configuration that a put replaces.
#[derive(Clone, Debug, PartialEq)]
pub struct Replaced {
    pub config: AccountConfig,
    pub next: Option<AccountConfig>,
}

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: RefusalReason,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    InvalidCommand,
    UnknownAccount,
    UnknownPlan,
    UnknownCreditType,
    /// Of programs that knew less.
    UnsupportedField,
    AccountClosed,
    /// No top-up or promo of this command has anything left.
    UnknownGrant,
    TooManyGrants,
    BalanceTooLarge,
}

impl RefusalReason {
    pub const ALL: [RefusalReason; 9] = [
        RefusalReason::InvalidCommand,
        RefusalReason::UnknownAccount,
        RefusalReason::UnknownPlan,
        RefusalReason::UnknownCreditType,
        RefusalReason::UnsupportedField,
        RefusalReason::AccountClosed,
        RefusalReason::UnknownGrant,
        RefusalReason::TooManyGrants,
        RefusalReason::BalanceTooLarge,
    ];

    pub fn from_name(name: &str) -> Option<RefusalReason> {
        RefusalReason::ALL.into_iter().find(|reason| reason.name() == name)
    }

    pub const fn name(self) -> &'static str {
        match self {
            RefusalReason::InvalidCommand => "invalid_command",
            RefusalReason::UnknownAccount => "unknown_account",
            RefusalReason::UnknownPlan => "unknown_plan",
            RefusalReason::UnknownCreditType => "unknown_credit_type",
            RefusalReason::UnsupportedField => "unsupported_field",
            RefusalReason::AccountClosed => "account_closed",
            RefusalReason::UnknownGrant => "unknown_grant",
            RefusalReason::TooManyGrants => "too_many_grants",
            RefusalReason::BalanceTooLarge => "balance_too_large",
        }
    }
}

/// What a shard answers. Everything but `Applied` changed nothing (`Dead` wrote its notes), in the order in which `apply` checks.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<T> {
    /// The shard belongs to another state, or was never opened (`None`).
    OtherGeneration(Option<String>),
    /// The store ran half of what a script wrote, and counted it. The ledger itself tears nothing.
    Torn {
        begun: u64,
        ended: u64,
    },
    /// All ranges were applied before.
    DoneBefore,
    /// The stored position of each range of the call.
    OtherPosition(Vec<i64>),
    OtherCatalogue(CatalogueId),
    /// The ranges fit, but another partition is behind where it was.
    FellBack,
    Stale(Vec<StaleAccount>),
    /// An account that was made has vanished from the store. The ledger itself loses none.
    AccountLost(String),
    /// Commands come first that the shard has not applied yet: they may make the call's unknown accounts, or were
    /// there when its events were decided before.
    Unknown {
        commands_position: i64,
    },
    /// Every record of the call's ranges that must end as a dead letter.
    Dead(Vec<Note>),
    OutboxFull {
        entries: usize,
    },
    Applied(T),
}

impl<T> Reply<T> {
    pub const fn kind(&self) -> &'static str {
        match self {
            Reply::OtherGeneration(_) => "other_generation",
            Reply::Torn { .. } => "torn",
            Reply::DoneBefore => "done_before",
            Reply::OtherPosition(_) => "other_position",
            Reply::FellBack => "fell_back",
            Reply::OtherCatalogue(_) => "other_catalogue",
            Reply::Stale(_) => "stale",
            Reply::AccountLost(_) => "account_lost",
            Reply::Unknown { .. } => "unknown",
            Reply::Dead(_) => "dead",
            Reply::OutboxFull { .. } => "outbox_full",
            Reply::Applied(_) => "applied",
        }
    }
}

/// What [`Reply::AccountLost`] means to whoever can mend it.
pub fn account_lost(account: &str, shard: u32) -> String {
    format!(
        "account `{account}` is in its due set, but its hash is gone: redis has evicted or deleted it; restore its data, or stop \
         the workers and `credit-meter rebuild --shard {shard}`"
    )
}

#[derive(Clone, Debug, PartialEq)]
pub struct StaleAccount {
    pub account: Arc<str>,
    /// `None`: it does not exist.
    pub view: Option<AccountView>,
}

/// How a call's events were decided, in the call's order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Applied {
    pub verdicts: Vec<Verdict>,
    /// Entries in the shard's outbox, for the relay to know.
    pub outbox: usize,
    /// What capped events asked for beyond what was left, by group and class. Such a class' others are as told.
    pub uncovered: BTreeMap<(usize, usize), Credits>,
    /// Days that have more sets from now on.
    pub grown: Vec<GrownDay>,
    /// Cycles whose marks have.
    pub grown_marks: Vec<GrownMarks>,
}

/// A day of an account whose sets might not have taken the next call's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrownDay {
    pub account: Arc<str>,
    pub day: i64,
    pub layout: Layout,
}

/// How a command ended: applied, refused (with the reason) or a duplicate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commanded {
    pub outcome: Outcome,
    pub outbox: usize,
}

/// A message that waits to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEntry {
    pub output: Output,
    /// Deterministic: a message that is published twice has the same.
    pub id: String,
    pub event_type: String,
    pub account: String,
    /// The event's `data`, as JSON.
    pub data: String,
}

/// A topic that is written from the outbox, by its part in the meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    Denied,
    Ledger,
    Cycles,
    Alerts,
}

impl Output {
    pub const ALL: [Output; 4] = [Output::Denied, Output::Ledger, Output::Cycles, Output::Alerts];

    pub const fn name(self) -> &'static str {
        match self {
            Output::Denied => "denied",
            Output::Ledger => "ledger",
            Output::Cycles => "cycles",
            Output::Alerts => "alerts",
        }
    }

    pub fn from_name(name: &str) -> Option<Output> {
        Output::ALL.into_iter().find(|output| output.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::event::{DAY_MS, Identity};

    #[test]
    fn a_run_ends_with_its_days_and_where_a_script_cannot_take_more() {
        let event = |time_ms: i64| CallEvent {
            range: 0,
            class: 0,
            offset: 0,
            event: Arc::new(UsageEvent {
                account: "a".into(),
                source: "s".into(),
                id: "1".into(),
                time_ms,
                dated_ms: time_ms,
                action: "reveal".into(),
                quantity: 1,
                outcome: None,
                user: None,
                fields: Box::default(),
                once: None,
                voids: None,
                identity: Identity::of("s", "1"),
            }),
        };
        let noon = DAY_MS / 2;
        let mut events = vec![event(noon); 2 * RUN_EVENTS_MAX + 1];
        events.extend(vec![event(noon + DAY_MS); 3]);
        let (account, overage, days) = ("a".into(), Overage::Reject, Vec::new());
        let (thresholds, member_limits, marks, breakdown, plan) = (Vec::new(), Arc::default(), Vec::new(), None, None);
        let group = Group {
            account,
            version: 1,
            plan,
            overage,
            thresholds,
            member_limits,
            breakdown,
            days,
            cycle: 0,
            marks,
            events,
        };
        let runs: Vec<_> = group.runs(0).map(|(days, run)| (days.own, run.len())).collect();
        assert_eq!(runs, [(0, RUN_EVENTS_MAX), (0, RUN_EVENTS_MAX), (0, 1), (1, 3)]);
    }
}
