//! Credits given, and in which order they burn.
//!
//! What the plan and the add-ons give in a cycle is one pool a credit type; each top-up and promo is a lot of its own.
//! Charges are added up as they come, and taken from pool and lots only where it matters from which: when a lot begins,
//! ends, is added or voided, what was charged is given back, and at the end of a cycle. In between the order of burning
//! moves no sum that anyone sees, so settling late gives what settling at once would (`settling_late_is_settling_at_once`).

use std::collections::BTreeMap;
use std::fmt;

use super::catalogue::Amount;
use super::credits::Credits;
use super::shard::Account;

/// The priority of grants that name none. Smaller ones burn first.
pub const PRIORITY_DEFAULT: u32 = 100;
/// Lots that an account may hold, so that its hash stays small.
pub const LOTS_MAX: usize = 50;

/// Where credits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GrantKind {
    Plan,
    Addon,
    /// Unused credits of the cycle before, up to the plan's `carry_over_max`.
    Carried,
    /// Given by an adjustment.
    Adjusted,
    Topup,
    Promo,
}

impl GrantKind {
    pub const ALL: [GrantKind; 6] = [
        GrantKind::Plan,
        GrantKind::Addon,
        GrantKind::Carried,
        GrantKind::Adjusted,
        GrantKind::Topup,
        GrantKind::Promo,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            GrantKind::Plan => "plan",
            GrantKind::Addon => "addon",
            GrantKind::Carried => "carried",
            GrantKind::Adjusted => "adjusted",
            GrantKind::Topup => "topup",
            GrantKind::Promo => "promo",
        }
    }

    pub fn from_name(name: &str) -> Option<GrantKind> {
        GrantKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What was granted of a credit type in a cycle, by where it came from, in the order of [`GrantKind::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted([Amount; 6]);

impl Default for Granted {
    fn default() -> Granted {
        Granted([Amount::Limited(Credits::ZERO); 6])
    }
}

impl Granted {
    pub fn of(&self, kind: GrantKind) -> Amount {
        self.0[kind as usize]
    }

    /// What is granted of a kind in numbers.
    pub fn credits(&self, kind: GrantKind) -> Credits {
        match self.of(kind) {
            Amount::Limited(credits) => credits,
            Amount::Unlimited => Credits::ZERO,
        }
    }

    pub fn total(&self) -> Amount {
        self.0.iter().fold(Amount::Limited(Credits::ZERO), |sum, amount| sum.plus(*amount))
    }

    /// What is granted in numbers, beside what is unlimited. Never beyond the largest balance: a type that is unlimited
    /// may be limited in the next cycle, and then this counts.
    pub fn counted(&self) -> Credits {
        GrantKind::ALL.into_iter().fold(Credits::ZERO, |sum, kind| sum + self.credits(kind))
    }

    /// As much of an amount as the balance can take in the place of what is granted of a kind.
    pub fn fitting(&self, kind: GrantKind, amount: Amount) -> Amount {
        let others = self.counted() - self.credits(kind);
        match amount {
            Amount::Limited(credits) => Amount::Limited(credits.min(Credits::BALANCE_MAX - others)),
            Amount::Unlimited => Amount::Unlimited,
        }
    }

    /// What plan, add-ons, what was carried over and adjustments gave in numbers.
    pub fn own(&self) -> Credits {
        let lots = [GrantKind::Topup, GrantKind::Promo].map(|kind| self.credits(kind));
        self.counted() - lots[0] - lots[1]
    }

    pub fn add(&mut self, kind: GrantKind, amount: Amount) {
        self.0[kind as usize] = self.of(kind).plus(amount);
    }

    pub fn take(&mut self, kind: GrantKind, amount: Credits) {
        self.0[kind as usize] = Amount::Limited(self.credits(kind) - amount);
    }

    pub fn parse<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Granted> {
        let mut granted = Granted::default();
        for kind in GrantKind::ALL {
            granted.0[kind as usize] = match words.next()? {
                "unlimited" => Amount::Unlimited,
                thousandths => Amount::Limited(Credits::from_thousandths(thousandths.parse().ok()?)),
            };
        }
        Some(granted)
    }
}

impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, amount) in self.0.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            match amount {
                Amount::Limited(credits) => write!(f, "{space}{}", credits.thousandths())?,
                Amount::Unlimited => write!(f, "{space}unlimited")?,
            }
        }
        Ok(())
    }
}

/// One credit type in the open cycle: what was granted, and what the plan and the add-ons gave and is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Of lots only those that have begun; one that goes on from the cycle before counts with what was left of it.
    pub granted: Granted,
    /// Of plan, add-ons, carried credits and adjustments, at the last settling.
    pub left: Credits,
}

/// A top-up or promo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lot {
    pub kind: GrantKind,
    pub credit_type: String,
    /// At the last settling.
    pub left: Credits,
    /// What was taken from it, by the number of each cycle that is open or kept: a void brings it back.
    pub used: BTreeMap<i32, Credits>,
    pub priority: u32,
    pub effective_ms: i64,
    /// `None`: at the end of the cycle in which it begins.
    pub expires_ms: Option<i64>,
    /// Whether it has begun.
    pub begun: bool,
    /// The command that gave it.
    pub command_id: String,
}

/// Lots by the offset of the command that gave them, which is also their order of creation.
pub type Lots = BTreeMap<i64, Lot>;

impl Lot {
    /// When it next begins or ends; `None`: not before its cycle's end.
    pub fn next_change_ms(&self) -> Option<i64> {
        if self.begun { self.expires_ms } else { Some(self.effective_ms) }
    }

    pub fn ends_by(&self, time_ms: i64) -> bool {
        self.begun && self.expires_ms.is_some_and(|expires_ms| expires_ms <= time_ms)
    }

    pub fn begins_by(&self, time_ms: i64) -> bool {
        !self.begun && self.effective_ms <= time_ms
    }

    /// The stored form; the command's id stands apart, so that each field is short enough for a packed hash.
    pub fn parse(text: &str) -> Option<Lot> {
        let mut words = text.split(' ');
        Some(Lot {
            kind: GrantKind::from_name(words.next()?)?,
            credit_type: words.next()?.to_owned(),
            left: Credits::from_thousandths(words.next()?.parse().ok()?),
            priority: words.next()?.parse().ok()?,
            effective_ms: words.next()?.parse().ok()?,
            expires_ms: match words.next()? {
                "-" => None,
                time_ms => Some(time_ms.parse().ok()?),
            },
            begun: words.next()? == "begun",
            used: BTreeMap::new(),
            command_id: String::new(),
        })
    }

    /// The stored form of [`Lot::used`], which stands apart too: `<cycle>:<thousandths>`, and a space between.
    pub fn parse_used(text: &str) -> Option<BTreeMap<i32, Credits>> {
        let used = |word: &str| {
            let (cycle, thousandths) = word.split_once(':')?;
            Some((cycle.parse().ok()?, Credits::from_thousandths(thousandths.parse().ok()?)))
        };
        text.split(' ').map(used).collect()
    }

    /// Counts what a cycle takes from it; below zero, what comes back to it.
    pub fn take(&mut self, cycle: i32, amount: Credits) {
        self.left = self.left - amount;
        let used = self.used.entry(cycle).or_default();
        *used += amount;
        if *used == Credits::ZERO {
            self.used.remove(&cycle);
        }
    }
}

impl fmt::Display for Lot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expires = self.expires_ms.map_or("-".to_owned(), |time_ms| time_ms.to_string());
        let begun = if self.begun { "begun" } else { "waits" };
        write!(
            f,
            "{} {} {} {} {} {expires} {begun}",
            self.kind.name(),
            self.credit_type,
            self.left.thousandths(),
            self.priority,
            self.effective_ms,
        )
    }
}

/// What burns: a type's pool, or a lot of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Pool,
    Lot(i64),
}

impl Account {
    /// Pool and lots of a type that have begun, in the order in which they burn: smaller priority, sooner end, promo
    /// before bought, earlier begin, earlier creation.
    fn burn_order(&self, credit_type: &str) -> Vec<Source> {
        let end_ms = self.cycle.end_ms;
        let pool = ((PRIORITY_DEFAULT, end_ms, true, self.cycle.start_ms, -1), Source::Pool);
        let lots = self.lots.iter().filter(|(_, lot)| lot.begun && lot.credit_type == credit_type);
        let lots = lots.map(|(&created, lot)| {
            let bought = lot.kind != GrantKind::Promo;
            let order = (lot.priority, lot.expires_ms.unwrap_or(end_ms), bought, lot.effective_ms, created);
            (order, Source::Lot(created))
        });
        let mut order: Vec<_> = lots.chain([pool]).collect();
        order.sort_unstable_by_key(|(order, _)| *order);
        order.into_iter().map(|(_, source)| source).collect()
    }

    /// What is left in what has begun, in the order in which it burns, and when each ends. As of the last settling.
    pub fn burning(&self, credit_type: &str) -> Vec<(Credits, i64)> {
        let of = |source| match source {
            Source::Pool => (self.pools.get(credit_type).map_or(Credits::ZERO, |pool| pool.left), self.cycle.end_ms),
            Source::Lot(created) => {
                let lot = &self.lots[&created];
                (lot.left, lot.expires_ms.unwrap_or(self.cycle.end_ms))
            }
        };
        self.burn_order(credit_type).into_iter().map(of).collect()
    }

    fn left_of(&mut self, credit_type: &str, source: Source) -> &mut Credits {
        match source {
            Source::Pool => &mut self.pools.entry(credit_type.to_owned()).or_default().left,
            Source::Lot(created) => &mut self.lots.get_mut(&created).expect("it is in the order").left,
        }
    }

    /// Takes what was charged since the last settling from pool and lots. What exceeds them stays open: a later
    /// grant covers it first.
    pub fn settle(&mut self, credit_type: &str) {
        let Some(counter) = self.counters.get(credit_type).copied() else { return };
        let Amount::Limited(granted) = counter.granted else { return };
        let order = self.burn_order(credit_type);
        let left = order.iter().fold(Credits::ZERO, |sum, source| sum + *self.left_of(credit_type, *source));
        let settled = granted - counter.expired - left;
        let (cycle, mut open) = (self.cycle.number, counter.charged - settled);
        for source in order {
            let left = self.left_of(credit_type, source);
            let taken = open.min(*left);
            open = open - taken;
            match source {
                Source::Pool => *left = *left - taken,
                Source::Lot(created) => self.lots.get_mut(&created).expect("it is in the order").take(cycle, taken),
            }
        }
    }

    /// Gives back what was charged: where nothing was granted for it, that is covered first, the rest is again in what burns last.
    /// So pool and lots are as if it had never been charged, unless one of them has come, grown or ended since: what was taken
    /// from one that is gone comes back to the pool.
    /// `unlimited`: nothing was taken for it.
    pub fn refund(&mut self, credit_type: &str, amount: Credits, unlimited: bool) {
        // What it comes back to must not depend on when something else was settled.
        self.settle(credit_type);
        let counter = self.counters.entry(credit_type.to_owned()).or_default();
        counter.charged = counter.charged - amount;
        let (counter, cycle) = (*counter, self.cycle.number);
        let Amount::Limited(granted) = counter.granted else {
            // It has become unlimited since. Lots may go on to a cycle in which it is not.
            let mut back = if unlimited { Credits::ZERO } else { amount };
            for created in self.lots_used_in(cycle, credit_type) {
                let lot = self.lots.get_mut(&created).expect("it is in the order");
                let given = back.min(lot.used[&cycle]);
                lot.take(cycle, Credits::ZERO - given);
                back = back - given;
            }
            return;
        };
        let order = self.burn_order(credit_type);
        let left = order.iter().fold(Credits::ZERO, |sum, source| sum + *self.left_of(credit_type, *source));
        let mut back = (granted - counter.expired - counter.charged - left).max(Credits::ZERO);
        for source in order.into_iter().rev() {
            let given = match source {
                Source::Pool => {
                    let pool = self.pools.entry(credit_type.to_owned()).or_default();
                    let own = pool.granted.own();
                    let given = back.min(own - own.min(pool.left));
                    pool.left += given;
                    given
                }
                Source::Lot(created) => {
                    let lot = self.lots.get_mut(&created).expect("it is in the order");
                    let given = back.min(lot.used.get(&cycle).copied().unwrap_or_default());
                    lot.take(cycle, Credits::ZERO - given);
                    given
                }
            };
            back = back - given;
        }
        *self.left_of(credit_type, Source::Pool) += back;
    }

    /// Lots of a type from which a cycle has taken something, the last burnt first.
    pub fn lots_used_in(&self, cycle: i32, credit_type: &str) -> Vec<i64> {
        let used = |source: Source| match source {
            Source::Lot(created) => Some(created).filter(|created| self.lots[created].used.contains_key(&cycle)),
            Source::Pool => None,
        };
        self.burn_order(credit_type).into_iter().rev().filter_map(used).collect()
    }

    /// Lots of a type in force at a time before the open cycle, in the order in which they burn.
    pub fn lots_in_force(&self, credit_type: &str, time_ms: i64) -> Vec<i64> {
        let in_force = |source: Source| match source {
            Source::Lot(created) => Some(created).filter(|created| self.lots[created].effective_ms <= time_ms),
            Source::Pool => None,
        };
        self.burn_order(credit_type).into_iter().filter_map(in_force).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::account::AccountConfig;
    use crate::ledger::cycle::Cycle;

    pub fn account() -> Account {
        let config = AccountConfig {
            plan: "basic".into(),
            anchor: "2026-01-01".parse().unwrap(),
            interval: None,
            timezone: chrono_tz::UTC,
            addons: Vec::new(),
            thresholds: None,
            overage: None,
            member_limits: Default::default(),
        };
        let mut account = Account::opened(config, Cycle { number: 0, start_ms: 0, end_ms: 1_000 });
        account.grant("email", GrantKind::Plan, Amount::Limited(Credits::whole(10))).unwrap();
        account
    }

    fn add(account: &mut Account, created: i64, lot: &Lot) {
        account.settle("email");
        account.grant("email", lot.kind, Amount::Limited(lot.left)).unwrap();
        account.lots.insert(created, lot.clone());
    }

    #[test]
    fn what_is_granted_fits_beside_the_other_kinds() {
        let (most, email) = (Credits::BALANCE_MAX, |credits: i64| Amount::Limited(Credits::whole(credits)));
        let mut granted = Granted::default();
        granted.add(GrantKind::Topup, email(7));
        granted.add(GrantKind::Plan, Amount::Limited(most - Credits::whole(7)));
        assert_eq!(granted.fitting(GrantKind::Plan, Amount::Limited(most)), granted.of(GrantKind::Plan));
        assert_eq!(granted.fitting(GrantKind::Plan, email(5)), email(5));
        assert_eq!(granted.fitting(GrantKind::Addon, email(5)), email(0));
        assert_eq!(granted.fitting(GrantKind::Plan, Amount::Unlimited), Amount::Unlimited);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add(Lot),
        Charge(i64),
        Refund(i64),
        Adjust(i64),
    }

    fn charge(account: &mut Account, credits: i64) {
        account.counters.get_mut("email").unwrap().charged += Credits::whole(credits);
    }

    fn lot() -> impl Strategy<Value = Lot> {
        let priority = prop::sample::select(vec![50, PRIORITY_DEFAULT, 150]);
        let expires_ms = prop::option::of(prop::sample::select(vec![500, 1_000, 2_000]));
        (any::<bool>(), 0i64..8, priority, 0i64..3, expires_ms).prop_map(
            |(promo, left, priority, effective_ms, expires_ms)| Lot {
                kind: if promo { GrantKind::Promo } else { GrantKind::Topup },
                credit_type: "email".into(),
                left: Credits::whole(left),
                used: BTreeMap::new(),
                priority,
                effective_ms,
                expires_ms,
                begun: true,
                command_id: "c".into(),
            },
        )
    }

    proptest! {
        #[test]
        fn settling_late_is_settling_at_once(ops in prop::collection::vec(prop_oneof![
            3 => (1i64..6).prop_map(Op::Charge),
            1 => (1i64..6).prop_map(Op::Refund),
            1 => (1i64..6).prop_map(Op::Adjust),
            3 => lot().prop_map(Op::Add),
        ], 1..30)) {
            let (mut late, mut at_once, mut charged) = (account(), account(), 0);
            for (created, op) in (0..).zip(ops) {
                match op {
                    Op::Add(lot) => {
                        add(&mut late, created, &lot);
                        add(&mut at_once, created, &lot);
                    }
                    Op::Charge(credits) => {
                        charged += credits;
                        charge(&mut late, credits);
                        // One credit after the other, each taken at once.
                        for _ in 0..credits {
                            charge(&mut at_once, 1);
                            at_once.settle("email");
                        }
                    }
                    Op::Refund(credits) => {
                        let credits = credits.min(charged);
                        charged -= credits;
                        late.refund("email", Credits::whole(credits), false);
                        at_once.refund("email", Credits::whole(credits), false);
                    }
                    Op::Adjust(credits) => {
                        for account in [&mut late, &mut at_once] {
                            account.settle("email");
                            let amount = Amount::Limited(Credits::whole(credits));
                            account.grant("email", GrantKind::Adjusted, amount).unwrap();
                        }
                        at_once.settle("email"); // it covers overage
                    }
                }
            }
            late.settle("email");
            at_once.settle("email");
            prop_assert_eq!(late, at_once);
        }

        #[test]
        fn what_is_taken_back_was_never_taken(
            lots in prop::collection::vec(lot(), 0..4),
            charges in prop::collection::vec((1i64..8, any::<bool>()), 1..12),
            voided in any::<prop::sample::Index>(),
            comes_after in any::<prop::sample::Index>(),
        ) {
            let (mut with, mut without) = (account(), account());
            for (created, lot) in (0..).zip(&lots) {
                add(&mut with, created, lot);
                add(&mut without, created, lot);
            }
            let voided = voided.index(charges.len());
            let comes_after = comes_after.index(charges.len()).max(voided);
            for (index, (credits, settles)) in charges.iter().enumerate() {
                charge(&mut with, *credits);
                if *settles {
                    with.settle("email");
                }
                if index != voided {
                    charge(&mut without, *credits);
                }
                if index == comes_after {
                    with.refund("email", Credits::whole(charges[voided].0), false);
                }
            }
            with.settle("email");
            without.settle("email");
            prop_assert_eq!(with, without);
        }
    }

    #[test]
    fn grants_burn_in_their_order() {
        // What is left of the plan's 10 and of the two lots after 12 were charged.
        let check = |first: (GrantKind, u32, i64, Option<i64>),
                     second: (GrantKind, u32, i64, Option<i64>),
                     left: [i64; 3]| {
            let mut account = account();
            for (created, (kind, priority, effective_ms, expires_ms)) in (1..).zip([first, second]) {
                let command_id = format!("c{created}");
                let (credit_type, left, used, begun) = ("email".to_owned(), Credits::whole(10), BTreeMap::new(), true);
                add(
                    &mut account,
                    created,
                    &Lot { kind, credit_type, left, used, priority, effective_ms, expires_ms, begun, command_id },
                );
            }
            charge(&mut account, 12);
            account.settle("email");
            let seen = [account.pools["email"].left, account.lots[&1].left, account.lots[&2].left];
            assert_eq!(seen, left.map(Credits::whole), "{first:?} {second:?}");
        };
        use GrantKind::{Promo, Topup};
        // kind priority begins ends | left of plan, first, second
        check((Topup, 100, 5, Some(2_000)), (Topup, 100, 5, Some(1_500)), [0, 10, 8]); // sooner end
        check((Topup, 50, 5, Some(2_000)), (Topup, 100, 5, Some(1_500)), [8, 0, 10]); // smaller priority
        check((Topup, 100, 5, None), (Promo, 100, 5, None), [8, 10, 0]); // promo before bought
        check((Topup, 100, 6, Some(2_000)), (Topup, 100, 5, Some(2_000)), [0, 10, 8]); // earlier begin
        check((Topup, 100, 5, Some(2_000)), (Topup, 100, 5, Some(2_000)), [0, 8, 10]); // earlier creation
        check((Topup, 150, 5, Some(500)), (Topup, 100, 5, None), [0, 10, 8]); // the plan began earlier
    }
}
