//! What a record can end as, in order of precedence, and why.

/// How a record ends. Every record that a worker reads ends as exactly one of these; an earlier one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Could not be judged; goes to the dead-letter topic as it came, and is not remembered.
    DeadLettered,
    /// A command that changed nothing, with a reason.
    Refused,
    /// The same identity was decided before.
    Duplicate,
    /// The plan or the balance does not allow it: nothing is charged, the id counts as seen.
    Denied,
    /// The action costs nothing, or nothing was found.
    Free,
    /// Took what was left; the rest is uncovered and never charged.
    Capped,
    /// Took its cost.
    Charged,
    /// It takes back what another event was charged; or it is that event, and came later.
    Voided,
    /// A command that took effect.
    Applied,
}

impl Outcome {
    pub const ALL: [Outcome; 9] = [
        Outcome::DeadLettered,
        Outcome::Refused,
        Outcome::Duplicate,
        Outcome::Denied,
        Outcome::Free,
        Outcome::Capped,
        Outcome::Charged,
        Outcome::Voided,
        Outcome::Applied,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Outcome::DeadLettered => "dead_lettered",
            Outcome::Refused => "refused",
            Outcome::Duplicate => "duplicate",
            Outcome::Denied => "denied",
            Outcome::Free => "free",
            Outcome::Capped => "capped",
            Outcome::Charged => "charged",
            Outcome::Voided => "voided",
            Outcome::Applied => "applied",
        }
    }

    pub fn from_name(name: &str) -> Option<Outcome> {
        Outcome::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

/// Why an event is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Denial {
    /// The plan does not include the action.
    NotEntitled,
    /// The cost exceeds what remains, and the plan's policy is `reject`.
    InsufficientCredits,
    /// The cost exceeds what remains and the plan's overage limit.
    OverageLimit,
    /// The cost would bring its member above the account's limit for one, whatever the policy.
    MemberLimit,
}

impl Denial {
    pub const ALL: [Denial; 4] =
        [Denial::NotEntitled, Denial::InsufficientCredits, Denial::OverageLimit, Denial::MemberLimit];

    pub const fn name(self) -> &'static str {
        match self {
            Denial::NotEntitled => "not_entitled",
            Denial::InsufficientCredits => "insufficient_credits",
            Denial::OverageLimit => "overage_limit",
            Denial::MemberLimit => "member_limit",
        }
    }
}

/// How one usage event of a call was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Duplicate,
    Denied(Denial),
    Free,
    Capped,
    Charged,
    Voided,
}

impl Verdict {
    pub const fn outcome(self) -> Outcome {
        match self {
            Verdict::Duplicate => Outcome::Duplicate,
            Verdict::Denied(_) => Outcome::Denied,
            Verdict::Free => Outcome::Free,
            Verdict::Capped => Outcome::Capped,
            Verdict::Charged => Outcome::Charged,
            Verdict::Voided => Outcome::Voided,
        }
    }

    /// The character that stands for it in a script's reply.
    pub const fn code(self) -> u8 {
        match self {
            Verdict::Duplicate => b'd',
            Verdict::Denied(Denial::NotEntitled) => b'e',
            Verdict::Denied(Denial::InsufficientCredits) => b'i',
            Verdict::Denied(Denial::OverageLimit) => b'o',
            Verdict::Denied(Denial::MemberLimit) => b'm',
            Verdict::Free => b'f',
            Verdict::Capped => b'p',
            Verdict::Charged => b'c',
            Verdict::Voided => b'v',
        }
    }

    pub fn from_code(code: u8) -> Option<Verdict> {
        const ALL: [Verdict; 9] = [
            Verdict::Duplicate,
            Verdict::Denied(Denial::NotEntitled),
            Verdict::Denied(Denial::InsufficientCredits),
            Verdict::Denied(Denial::OverageLimit),
            Verdict::Denied(Denial::MemberLimit),
            Verdict::Free,
            Verdict::Capped,
            Verdict::Charged,
            Verdict::Voided,
        ];
        ALL.into_iter().find(|verdict| verdict.code() == code)
    }
}

macro_rules! dead_reasons {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// Why a record goes to the dead-letter topic.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DeadReason { $($(#[doc = $doc])* $variant,)* }

        impl DeadReason {
            pub const ALL: &[DeadReason] = &[$(DeadReason::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self { $(DeadReason::$variant => $name,)* }
            }

            /// What it means and what to do, for the dead letter's `__connect.errors.exception.message`.
            pub const fn explain(self) -> &'static str {
                match self { $(DeadReason::$variant => concat!($($doc,)*).trim_ascii_start(),)* }
            }
        }
    };
}

dead_reasons! {
    /// the record has no value; a tombstone is not an event
    EmptyValue = "empty_value",
    /// the value is larger than events.max_bytes
    TooLarge = "too_large",
    /// the value is not UTF-8 text
    InvalidUtf8 = "invalid_utf8",
    /// the value is not valid JSON
    InvalidJson = "invalid_json",
    /// the JSON is nested deeper than 128 levels
    NestingTooDeep = "nesting_too_deep",
    /// neither a structured nor a binary CloudEvent: no specversion
    NotACloudEvent = "not_a_cloudevent",
    /// specversion is not 1.0
    UnsupportedSpecversion = "unsupported_specversion",
    /// the event's type is none that this topic carries
    UnknownType = "unknown_type",
    /// a required attribute or data field is missing or empty
    MissingField = "missing_field",
    /// an attribute or data field has the wrong JSON type
    WrongType = "wrong_type",
    /// id, source, subject or a data field is longer than 256 bytes, or holds a control character
    InvalidField = "invalid_field",
    /// time is not an RFC 3339 timestamp between the years 1970 and 9999
    InvalidTime = "invalid_time",
    /// quantity is zero; it must be an integer of at least 1
    QuantityZero = "quantity_zero",
    /// quantity is negative; it must be an integer of at least 1
    QuantityNegative = "quantity_negative",
    /// quantity is not written as an integer; it must be an integer of at least 1
    QuantityNotInteger = "quantity_not_integer",
    /// quantity is beyond 10^15
    QuantityTooLarge = "quantity_too_large",
    /// quantity times price is beyond 10^8 credits
    CostTooLarge = "cost_too_large",
    /// the catalogue has no such action; add it, then replay
    UnknownAction = "unknown_action",
    /// no account.put has come for the event's subject
    UnknownAccount = "unknown_account",
    /// the event's time is further ahead of its append time than events.early_limit
    TooEarly = "too_early",
    /// the event is dated below the floor (meter time less events.late_after); settle it by an adjustment
    TooLate = "too_late",
    /// the voided event's day is kept no more, or its cycle; settle it by an adjustment
    VoidTooLate = "void_too_late",
    /// the catalogue does not let this action be voided; settle it by an adjustment
    NotVoidable = "not_voidable",
    /// the event is dated before the account's first cycle; settle it by an adjustment
    BeforeAccount = "before_account",
    /// the event is dated after the account was closed
    AccountClosed = "account_closed",
    /// no calendar names a cycle for the event's date
    CycleNotOpen = "cycle_not_open",
}

impl DeadReason {
    pub fn from_name(name: &str) -> Option<DeadReason> {
        DeadReason::ALL.iter().copied().find(|reason| reason.name() == name)
    }
}
