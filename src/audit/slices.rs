//! Accounts are audited in slices, so that memory is bounded: the log is read once for each.

use xxhash_rust::xxh3::xxh3_64;

/// What a record that is folded takes, with the room that a growing list keeps: two identities' halves, two times, an
/// offset, a partition, a price and a member, twice; and a row of usage as it is stored.
const RECORD_BYTES: u64 = 160;
/// What an account takes: its hash as read, its configuration and its sums. 1,000,000 accounts of three credit types, with two
/// events each, took 7.1 GB in one slice.
const ACCOUNT_BYTES: u64 = 7_168;

/// The accounts whose hash lies in one part of `of` equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub number: u64,
    pub of: u64,
}

impl Slice {
    /// As many slices as an estimate of the memory needs.
    pub fn count(records: u64, accounts: u64, memory_bytes: u64) -> u64 {
        let bytes = records.saturating_mul(RECORD_BYTES).saturating_add(accounts.saturating_mul(ACCOUNT_BYTES));
        bytes.div_ceil(memory_bytes.max(1)).max(1)
    }

    pub fn holds(self, account: &str) -> bool {
        self.of == 1 || {
            // The high bits: shards go by the low ones.
            let place = u128::from(xxh3_64(account.as_bytes())) * u128::from(self.of);
            (place >> 64) as u64 == self.number
        }
    }

    /// Records that name no account are folded once, with the first slice.
    pub fn holds_nameless(self) -> bool {
        self.number == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_account_lies_in_one_slice_and_slices_are_about_equal() {
        let of = 7;
        let mut held = vec![0; of as usize];
        for account in (0..7_000).map(|number| format!("team-{number}")) {
            let slices: Vec<u64> = (0..of).filter(|&number| Slice { number, of }.holds(&account)).collect();
            assert_eq!(slices.len(), 1, "{account}");
            held[slices[0] as usize] += 1;
        }
        assert!(held.iter().all(|held| (800..1200).contains(held)), "{held:?}");
    }

    #[test]
    fn memory_decides_how_many_slices_there_are() {
        assert_eq!(Slice::count(0, 0, 1 << 30), 1);
        assert_eq!(Slice::count(1_000_000, 1_000, 1 << 30), 1);
        assert_eq!(Slice::count(100_000_000, 0, 1 << 30), 15);
    }
}
