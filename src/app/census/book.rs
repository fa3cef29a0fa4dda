//! What a worker knows of the accounts of its shards: how many there are of each plan, and which are in alarm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{Metrics, PerAccount};
use crate::ledger::credits::Credits;
use crate::metrics::accounts::{Remaining, Standing};
use crate::store::Counted;

/// Every reading of an account is newer than the one before, so that it takes its place.
pub struct Book {
    settings: Metrics,
    listed: BTreeSet<Arc<str>>,
    shards: BTreeMap<u32, ShardBook>,
    /// Those that have series.
    named: BTreeMap<Arc<str>, Named>,
    /// Those of them that are not exhausted: they make room for one that is.
    low: BTreeSet<Arc<str>>,
    /// Each once, however many accounts have it.
    plans: BTreeSet<Arc<str>>,
}

#[derive(Default)]
struct ShardBook {
    /// Open accounts by plan, as last counted.
    totals: BTreeMap<Arc<str>, u64>,
    /// Those that are low or exhausted, by a hash of their name: there may be very many.
    alarmed: FxHashMap<u64, (Standing, Arc<str>)>,
}

struct Named {
    shard: u32,
    remaining: Vec<(String, Credits)>,
}

/// A count of a shard that is under way.
#[derive(Default)]
pub struct Count {
    totals: BTreeMap<Arc<str>, u64>,
    /// A hash of each name: a page may hold one again.
    seen: FxHashSet<u64>,
}

impl Book {
    pub fn new(settings: Metrics) -> Book {
        let listed = settings.allowlist.iter().map(|name| Arc::from(name.as_str())).collect();
        Book {
            settings,
            listed,
            shards: BTreeMap::new(),
            named: BTreeMap::new(),
            low: BTreeSet::new(),
            plans: BTreeSet::new(),
        }
    }

    pub fn holds(&self, shard: u32) -> bool {
        self.shards.contains_key(&shard)
    }

    pub fn take(&mut self, shard: u32) {
        self.shards.entry(shard).or_default();
    }

    /// Another worker tells of the shard's accounts.
    pub fn drop(&mut self, shard: u32) {
        self.shards.remove(&shard);
        self.named.retain(|_, named| named.shard != shard);
        let named = &self.named;
        self.low.retain(|account| named.contains_key(account));
    }

    /// An account as it is now; `None`: there is none, or it is closed.
    pub fn note(&mut self, shard: u32, account: &Arc<str>, counted: Option<&Counted>) {
        let Some(plan) = counted.map(|counted| self.plan(&counted.plan)) else {
            if let Some(book) = self.shards.get_mut(&shard) {
                book.alarmed.remove(&hash(account));
            }
            return self.forget(account);
        };
        let counted = counted.expect("it has a plan");
        let Some(book) = self.shards.get_mut(&shard) else { return };
        let standing = counted.standing();
        match standing {
            Standing::Ok => drop(book.alarmed.remove(&hash(account))),
            Standing::Low | Standing::Exhausted => drop(book.alarmed.insert(hash(account), (standing, plan))),
        }
        let named = match self.settings.per_account {
            PerAccount::Off => false,
            PerAccount::Alarmed => standing != Standing::Ok && self.has_room(account, standing),
            PerAccount::Allowlist => self.listed.contains(account),
        };
        if named { self.name(shard, account, standing, counted) } else { self.forget(account) }
    }

    /// Whether an account may have series; one that is exhausted takes the place of one that is low.
    fn has_room(&mut self, account: &Arc<str>, standing: Standing) -> bool {
        if self.named.contains_key(account) || self.named.len() < self.settings.per_account_max {
            return true;
        }
        let gives_way = self.low.first().filter(|_| standing == Standing::Exhausted).cloned();
        gives_way.is_some_and(|low| {
            self.forget(&low);
            true
        })
    }

    fn name(&mut self, shard: u32, account: &Arc<str>, standing: Standing, counted: &Counted) {
        let all = self.settings.per_account == PerAccount::Allowlist;
        let shown = counted.balances.iter().filter(|(_, balance)| all || balance.standing != Standing::Ok);
        let remaining = shown.filter_map(|(name, balance)| Some((name.clone(), balance.remaining?))).collect();
        self.named.insert(account.clone(), Named { shard, remaining });
        if standing == Standing::Exhausted {
            self.low.remove(account);
        } else {
            self.low.insert(account.clone());
        }
    }

    fn forget(&mut self, account: &Arc<str>) {
        self.named.remove(account);
        self.low.remove(account);
    }

    fn plan(&mut self, name: &str) -> Arc<str> {
        if let Some(plan) = self.plans.get(name) {
            return plan.clone();
        }
        let plan: Arc<str> = name.into();
        self.plans.insert(plan.clone());
        plan
    }

    /// Counts an account that a page of its shard holds.
    pub fn count(&mut self, count: &mut Count, account: &Arc<str>, counted: Option<&Counted>) {
        if let Some(counted) = counted
            && count.seen.insert(hash(account))
        {
            *count.totals.entry(self.plan(&counted.plan)).or_default() += 1;
        }
    }

    /// All accounts of a shard are counted: those that were not seen are gone.
    pub fn counted(&mut self, shard: u32, count: Count) {
        let Some(book) = self.shards.get_mut(&shard) else { return };
        book.totals = count.totals;
        book.alarmed.retain(|account, _| count.seen.contains(account));
        self.named.retain(|account, named| named.shard != shard || count.seen.contains(&hash(account)));
        let named = &self.named;
        self.low.retain(|account| named.contains_key(account));
    }

    /// Accounts by plan and standing, in the order of [`Standing::ALL`].
    pub fn accounts(&self) -> BTreeMap<String, [u64; 3]> {
        let mut accounts: BTreeMap<&Arc<str>, [u64; 3]> = self.plans.iter().map(|plan| (plan, [0; 3])).collect();
        for book in self.shards.values() {
            let mut alarmed: BTreeMap<&Arc<str>, [u64; 3]> = BTreeMap::new();
            for (standing, plan) in book.alarmed.values() {
                alarmed.entry(plan).or_default()[*standing as usize] += 1;
            }
            for (plan, all) in &mut accounts {
                let [_, low, exhausted] = alarmed.get(plan).copied().unwrap_or_default();
                // One that came into alarm since may not be in the total yet.
                let fine = book.totals.get(*plan).copied().unwrap_or(0).saturating_sub(low + exhausted);
                [fine, low, exhausted].into_iter().zip(all).for_each(|(own, all)| *all += own);
            }
        }
        accounts.into_iter().map(|(plan, counts)| (plan.to_string(), counts)).collect()
    }

    /// What is left to the accounts that are named, and how many of those in alarm are not.
    pub fn remaining(&self) -> (Remaining, u64) {
        let mut remaining = Remaining::new();
        for (account, named) in &self.named {
            for (credit_type, credits) in &named.remaining {
                remaining.insert((account.to_string(), credit_type.clone()), *credits);
            }
        }
        let alarmed: usize = self.shards.values().map(|book| book.alarmed.len()).sum();
        let dropped = match self.settings.per_account {
            PerAccount::Alarmed => alarmed.saturating_sub(self.named.len()),
            PerAccount::Off | PerAccount::Allowlist => 0,
        };
        (remaining, dropped as u64)
    }

    /// Accounts whose series are to be kept up to date.
    pub fn followed(&self) -> Vec<Arc<str>> {
        match self.settings.per_account {
            PerAccount::Off => Vec::new(),
            PerAccount::Alarmed => self.named.keys().cloned().collect(),
            PerAccount::Allowlist => self.listed.iter().cloned().collect(),
        }
    }
}

fn hash(account: &str) -> u64 {
    xxh3_64(account.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::CountedBalance;

    fn settings(per_account: PerAccount, per_account_max: usize, allowlist: &[&str]) -> Metrics {
        let allowlist = allowlist.iter().map(|name| (*name).to_owned()).collect();
        Metrics { per_account, per_account_max, allowlist, ..Metrics::default() }
    }

    fn counted(standing: Standing, left: i64) -> Counted {
        let fine = CountedBalance { standing: Standing::Ok, remaining: Some(Credits::from_thousandths(7_000)) };
        let email = CountedBalance { standing, remaining: Some(Credits::from_thousandths(left)) };
        let unlimited = CountedBalance { standing: Standing::Ok, remaining: None };
        let balances = [("email", email), ("phone", fine), ("search", unlimited)];
        let balances = balances.into_iter().map(|(name, balance)| (name.to_owned(), balance)).collect();
        Counted { plan: "basic".into(), balances }
    }

    fn note(book: &mut Book, shard: u32, account: &str, standing: Standing) {
        book.note(shard, &account.into(), Some(&counted(standing, 1_500)));
    }

    fn count(book: &mut Book, shard: u32, accounts: &[(&str, Standing)]) {
        let mut count = Count::default();
        for (account, standing) in accounts {
            let (account, counted) = (Arc::from(*account), counted(*standing, 1_500));
            book.note(shard, &account, Some(&counted));
            book.count(&mut count, &account, Some(&counted));
        }
        book.counted(shard, count);
    }

    fn named(book: &Book) -> Vec<String> {
        book.remaining().0.into_keys().map(|(account, credit_type)| format!("{account}.{credit_type}")).collect()
    }

    fn book(settings: Metrics) -> Book {
        let mut book = Book::new(settings);
        (0..2).for_each(|shard| book.take(shard));
        book
    }

    use Standing::{Exhausted, Low, Ok as Fine};

    #[test]
    fn an_account_is_counted_once_however_often_a_page_holds_it() {
        let mut book = book(Metrics::default());
        count(&mut book, 0, &[("a", Fine), ("b", Low), ("a", Fine), ("c", Exhausted)]);
        count(&mut book, 1, &[("d", Fine)]);
        assert_eq!(book.accounts()["basic"], [2, 1, 1]);
    }

    #[test]
    fn between_two_counts_alarms_move_accounts_from_state_to_state() {
        let mut book = book(Metrics::default());
        count(&mut book, 0, &[("a", Fine), ("b", Fine), ("c", Fine)]);
        assert_eq!(book.accounts()["basic"], [3, 0, 0]);
        note(&mut book, 0, "a", Low);
        assert_eq!((book.accounts()["basic"], named(&book)), ([2, 1, 0], vec!["a.email".to_owned()]));
        note(&mut book, 0, "a", Exhausted);
        assert_eq!(book.accounts()["basic"], [2, 0, 1]);
        note(&mut book, 0, "a", Fine);
        assert_eq!((book.accounts()["basic"], named(&book).len()), ([3, 0, 0], 0));
        // One that was not counted yet.
        note(&mut book, 0, "new", Exhausted);
        assert_eq!(book.accounts()["basic"][2], 1);
        book.note(0, &"new".into(), None);
        assert_eq!((book.accounts()["basic"], named(&book).len()), ([3, 0, 0], 0), "it was closed");
    }

    #[test]
    fn an_account_that_is_gone_leaves_with_the_next_count() {
        let mut book = book(Metrics::default());
        count(&mut book, 0, &[("a", Exhausted), ("b", Low)]);
        count(&mut book, 0, &[("b", Low)]);
        assert_eq!((book.accounts()["basic"], named(&book)), ([0, 1, 0], vec!["b.email".to_owned()]));
    }

    #[test]
    fn a_shard_that_another_worker_tells_of_is_dropped() {
        let mut book = book(Metrics::default());
        count(&mut book, 0, &[("a", Exhausted), ("b", Fine)]);
        count(&mut book, 1, &[("c", Low)]);
        book.drop(0);
        assert_eq!((book.accounts()["basic"], named(&book)), ([0, 1, 0], vec!["c.email".to_owned()]));
        note(&mut book, 0, "a", Exhausted);
        assert_eq!(book.accounts()["basic"], [0, 1, 0], "a reading that was under way");
        assert!(!book.holds(0) && book.holds(1));
    }

    #[test]
    fn series_are_bounded_and_the_exhausted_come_first() {
        let mut book = book(settings(PerAccount::Alarmed, 2, &[]));
        note(&mut book, 0, "a", Low);
        note(&mut book, 0, "b", Low);
        note(&mut book, 0, "c", Low);
        assert_eq!((named(&book), book.remaining().1), (vec!["a.email".to_owned(), "b.email".to_owned()], 1));
        note(&mut book, 1, "d", Exhausted);
        assert_eq!((named(&book), book.remaining().1), (vec!["b.email".to_owned(), "d.email".to_owned()], 2));
        note(&mut book, 0, "b", Exhausted);
        note(&mut book, 0, "e", Exhausted);
        assert_eq!((named(&book), book.remaining().1), (vec!["b.email".to_owned(), "d.email".to_owned()], 3));
        assert_eq!(book.accounts()["basic"], [0, 2, 3], "all are counted");
    }

    #[test]
    fn a_list_names_accounts_however_they_stand() {
        let mut book = book(settings(PerAccount::Allowlist, 2, &["a"]));
        count(&mut book, 0, &[("a", Fine), ("b", Exhausted)]);
        assert_eq!((named(&book), book.remaining().1), (vec!["a.email".to_owned(), "a.phone".to_owned()], 0));
        let mut off = self::book(settings(PerAccount::Off, 2, &[]));
        count(&mut off, 0, &[("b", Exhausted)]);
        assert_eq!((named(&off).len(), off.remaining().1, off.accounts()["basic"]), (0, 0, [0, 0, 1]));
    }
}
