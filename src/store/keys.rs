//! Redis keys. Nothing else in the crate spells one.
//!
//! All keys of a shard carry its hash tag, so that a script's keys lie in one slot of a Redis Cluster.
//! Nothing that decides expires by a Redis TTL: it is deleted by meter time.

use std::io::Write as _;

use chrono::NaiveDate;

use crate::ledger::day::SetIndex;
use crate::ledger::shard::shard_of;
use crate::ledger::usage::day_number;

/// Slots of a Redis Cluster.
const SLOTS: u32 = 16_384;

/// What is stored, by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// `{prefix}:root` string, JSON [`super::Root`]: names this state, its number of shards and where its
    /// partitions started. Made on the first start, never changed. Absent = never started, or emptied.
    Root,
    /// `shard` hash: the fence. Made by `init` with the first start; absent afterwards = emptied.
    /// - `schema`, `generation` (while a rebuild works another one, see [`crate::ledger::shard::name_of_rebuild`]), `shards`,
    ///   `catalogue_version`, `catalogue_hash`
    /// - `meter_time_ms`, `floor_ms` (events dated below are too late), `restamp_tolerance_ms` (largest ever used)
    /// - `begun`, `ended`: how many writes of `apply`, `command`, `roll` and `fold_usage` were; they differ = Redis ran half of one
    /// - `rebuilt` s, when the state was last counted anew; absent = never
    /// - `usage_from` `20261125`: usage of earlier days was forgotten; absent = none was
    /// - `position:<input>:<partition>` next offset to apply; absent = 0
    /// - `anchor:<input>:<partition>` `offset:fingerprint` of the last record below it; absent = none was read
    /// - `reached:<input>:<partition>` ms, the time of the last records below it; absent = none was read
    /// - `total:<input>:<partition>:<outcome>` records that ended so; absent = 0
    Shard(u32),
    /// `catalogue` string: what the catalogue in force was read from, so that a higher version can be compared with it.
    /// Written with the shard's `catalogue_version`; absent = an older program made the shard.
    Catalogue(u32),
    /// `notes` hash `<input>:<partition>@<offset>` -> reason: records found dead that the position has not
    /// passed yet. Absent = none.
    Notes(u32),
    /// `outbox` stream (output, id, type, account, data): written by the script that moved the counters,
    /// deleted once published. Absent = all published.
    Outbox(u32),
    /// `relay` string: the relay that publishes the outbox. Expires; two relays would only repeat.
    Relay(u32),
    /// `due` zset account -> time in ms at which it next changes by itself: its cycle or a lot of it ends or begins, a
    /// statement is to be restated (meter time), a closed cycle may be forgotten. Every account is in it.
    Due(u32),
    /// `a:<account>` hash of short fields, so that Redis keeps it packed. Absent = no account.
    /// - `version` counts every change but usage; `days` ` <day>:<layout>` for each day whose identities are kept, where a layout is the
    ///   number of sets of each generation: `1`, or `1,8,64` for a busy day
    /// - `once` ` <cycle>:<layout>` for each cycle whose marks are kept; absent = none
    /// - `<type>.g` granted, in thousandths or `unlimited`; `<type>.c` charged; `<type>.e` expired; absent = 0
    /// - `ids` identities of the first commands that were applied to it, for ever
    /// - `plan`, `anchor`, `timezone`, `interval`, `thresholds`, `overage`, `addon:<type>`, `members` (limits: `email 50000`,
    ///   and behind a tab `email 200000 ada`): what was put, and no `timezone` = UTC; with `>` before the name what waits for the renewal
    /// - `cycle` `number start end` in ms: the open one; `since` start of the first, absent = of this one; `life` absent = open
    /// - `<type>.p` what is left of the open cycle's plan, add-ons, carried over and adjustments (`=`: all), then what was
    ///   granted by these four, top-ups and promos, without zeros at the end; `<type>.d` events denied; `<type>.a` `arming levels`:
    ///   those that it is below (`p80`, `r10000`, `x`); absent = `0` and none
    /// - `lot:<offset>` a top-up or promo: `kind type left priority begins ends|- begun|waits`; `lot:<offset>:id` its command;
    ///   `used:<offset>` `<cycle>:<thousandths>` for each cycle, open or kept, that took from it
    /// - `closed:<number>` `start end keep stated told`; `terms:<number>` `restate revision overage plan`;
    ///   `closed:<number>:<type>` granted as above, with all zeros, then charged, expired, moved on, spare, denied: until nothing can be
    ///   charged to it any more
    Account(&'a str),
    /// `d:<day>:<account>` set: identities decided whose time is in that UTC day (64-bit members, so that it
    /// stays an intset); `d:<day>.<generation>.<set>:<account>` where a busy day has several.
    /// Deleted once the floor has passed the day by the restamp tolerance. Absent = none.
    Day(&'a str, i64, SetIndex),
    /// `v:<day>:<account>` hash: what events of voidable actions whose time is in that UTC day were charged, by the member
    /// that `d:` has of them: `<type> <thousandths> <cycle> <mark or ->[u][m] [<20261125> <action> <member>]`, `u` where the
    /// type was unlimited, `m` where it counts for the member; `-` = their void came first. Deleted with the day. Absent =
    /// nothing that may be voided.
    Charges(&'a str, i64),
    /// `u:<20261125>:<account>` hash: usage of a day of the account's zone, by member (`""`: the event named none), each a
    /// list of numbers in MessagePack: for each action events charged, thousandths, events denied, free. The actions
    /// are those of the field `"\t"`, in their order. Forgotten `usage.keep` after the day. Absent = none.
    Usage(&'a str, NaiveDate),
    /// `j:<20261125>:<account>` string: what is to be added to that usage, as `usage.lua` describes it. Added when it is
    /// long, and when the day has passed; forgotten with it. Absent = nothing.
    Journal(&'a str, NaiveDate),
    /// `o:<cycle>:<account>` set: what the account was charged for in that cycle and is charged for once in it (64-bit
    /// hashes of action and contact or company); `o:<cycle>.<generation>.<set>:<account>` where there is much.
    /// Deleted with the closed cycle. Absent = none.
    Marks(&'a str, i32, SetIndex),
    /// `m:<cycle>:<account>` hash `<type>:<member>` -> thousandths: what was charged to a member (`""`: the event named none)
    /// in that cycle while the account had a limit of that type. Deleted with the closed cycle. Absent = none.
    Members(&'a str, i32),
    /// `c:<account>` set: identities of the commands that were applied to it, for ever, but for the first few, which are in
    /// its `ids`. Absent = none.
    Commands(&'a str),
}

/// Spells the keys of one meter.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
    tags: Vec<String>,
}

impl Keys {
    pub fn new(prefix: &str, shards: u32) -> Keys {
        Keys { prefix: prefix.to_owned(), tags: (0..shards).map(|shard| tag(shard, shards)).collect() }
    }

    pub fn shards(&self) -> u32 {
        self.tags.len() as u32
    }

    pub fn shard_of(&self, account: &str) -> u32 {
        shard_of(account, self.shards())
    }

    /// Matches every key of a shard, for SCAN.
    pub fn pattern(&self, shard: u32) -> String {
        let literal = |text: &str| {
            text.chars().flat_map(|char| if "*?[]^\\".contains(char) { vec!['\\', char] } else { vec![char] }).collect()
        };
        let prefix: String = literal(&self.prefix);
        format!("{prefix}:{{{}}}:*", self.tags[shard as usize])
    }

    pub fn spell(&self, key: Key) -> String {
        let mut spelled = Vec::new();
        self.write(key, &mut spelled);
        String::from_utf8(spelled).expect("a key is made of texts")
    }

    /// Writes a key behind what `to` holds. A call has thousands of keys.
    pub fn write(&self, key: Key, to: &mut Vec<u8>) {
        let prefix = &self.prefix;
        let tag = |shard: u32| &self.tags[shard as usize];
        let of = |account: &str| tag(self.shard_of(account));
        let written = match key {
            Key::Root => write!(to, "{prefix}:root"),
            Key::Shard(shard) => write!(to, "{prefix}:{{{}}}:shard", tag(shard)),
            Key::Catalogue(shard) => write!(to, "{prefix}:{{{}}}:catalogue", tag(shard)),
            Key::Notes(shard) => write!(to, "{prefix}:{{{}}}:notes", tag(shard)),
            Key::Outbox(shard) => write!(to, "{prefix}:{{{}}}:outbox", tag(shard)),
            Key::Relay(shard) => write!(to, "{prefix}:{{{}}}:relay", tag(shard)),
            Key::Due(shard) => write!(to, "{prefix}:{{{}}}:due", tag(shard)),
            Key::Account(account) => write!(to, "{prefix}:{{{}}}:a:{account}", of(account)),
            Key::Day(account, day, SetIndex::ONLY) => write!(to, "{prefix}:{{{}}}:d:{day}:{account}", of(account)),
            Key::Day(account, day, SetIndex { generation, set }) => {
                write!(to, "{prefix}:{{{}}}:d:{day}.{generation}.{set}:{account}", of(account))
            }
            Key::Charges(account, day) => write!(to, "{prefix}:{{{}}}:v:{day}:{account}", of(account)),
            Key::Usage(account, day) => write!(to, "{prefix}:{{{}}}:u:{}:{account}", of(account), day_number(day)),
            Key::Journal(account, day) => write!(to, "{prefix}:{{{}}}:j:{}:{account}", of(account), day_number(day)),
            Key::Marks(account, cycle, SetIndex::ONLY) => {
                write!(to, "{prefix}:{{{}}}:o:{cycle}:{account}", of(account))
            }
            Key::Marks(account, cycle, SetIndex { generation, set }) => {
                write!(to, "{prefix}:{{{}}}:o:{cycle}.{generation}.{set}:{account}", of(account))
            }
            Key::Members(account, cycle) => write!(to, "{prefix}:{{{}}}:m:{cycle}:{account}", of(account)),
            Key::Commands(account) => write!(to, "{prefix}:{{{}}}:c:{account}", of(account)),
        };
        written.expect("memory takes all text");
    }
}

/// A hash tag whose slot lies in the shard's own share of the slots, so that shards spread evenly over a cluster.
fn tag(shard: u32, shards: u32) -> String {
    let share = |slot: u32| slot * shards / SLOTS;
    let mut tags = (0..).map(|salt| format!("{shard}.{salt}"));
    tags.find(|tag| share(slot(tag)) == shard).expect("every share of the slots has some tag")
}

/// The slot of a key: of its hash tag, if it has one.
pub fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| Some(rest.split_once('}')?.0)).filter(|tag| !tag.is_empty());
    slot(tag.unwrap_or(key)) as u16
}

/// The slot of a hash tag (CRC-16/XMODEM, <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
fn slot(tag: &str) -> u32 {
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| (crc << 1) ^ if crc & 0x8000 != 0 { 0x1021 } else { 0 })
    });
    u32::from(crc) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(slot("123456789"), 0x31C3 % SLOTS); // the specification's own check value
        assert_eq!(slot("foo"), 12_182); // CLUSTER KEYSLOT foo
        for (key, tagged) in [("{foo}", "foo"), ("a:{foo}:b{c}", "foo"), ("a{}b", "a{}b"), ("a{b", "a{b")] {
            assert_eq!(u32::from(slot_of(key)), slot(tagged), "{key}");
        }
    }

    #[test]
    fn shards_spread_evenly_over_the_slots() {
        for shards in [1, 3, 16, 256] {
            for shard in 0..shards {
                let share = slot(&tag(shard, shards)) * shards / SLOTS;
                assert_eq!(share, shard, "shard {shard} of {shards}");
            }
        }
    }

    #[test]
    fn all_keys_of_an_account_lie_in_its_shard() {
        let keys = Keys::new("cm", 16);
        let tag_of = |key: String| key[key.find('{').unwrap()..=key.find('}').unwrap()].to_owned();
        let shard = tag_of(keys.spell(Key::Shard(keys.shard_of("team}{-7"))));
        for key in [Key::Account("team}{-7"), Key::Day("team}{-7", 20_000, SetIndex::ONLY), Key::Commands("team}{-7")] {
            assert_eq!(tag_of(keys.spell(key)), shard);
        }
    }
}
