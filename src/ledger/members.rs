//! Member limits: how much of a credit type each member of a team may have charged within one billing cycle.
//!
//! A limit cuts a member's share of what the team has; it gives nothing. An event whose cost would bring its member above
//! the limit is denied whole, whatever the plan's overage policy. What counts is what was charged to the member in the
//! cycle while the account had a limit of that credit type, for this member or another: a limit that comes within a cycle
//! counts from then on, one that is changed keeps the count. Late use of a closed cycle counts there, against the limits in
//! force now; a cycle's counts are forgotten with it. A void takes its event's charge out of the count.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::call::{CallEvent, Group};
use super::credits::Credits;
use super::event::{Class, Judge};
use super::outcome::{Denial, Verdict};
use super::void::Charge;

/// Limits of an account. A worker keeps them with each account that it knows, and an account is shown whole whenever it has
/// changed: a few KiB.
pub const MEMBER_LIMITS_MAX: usize = 200;

/// The most of a credit type that may be charged to a member within a cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberLimit {
    pub credit_type: String,
    /// For this member alone; `None`: for each that has none of its own, and for events that name no member.
    pub user: Option<Arc<str>>,
    pub amount: Credits,
}

/// What was charged to members in a cycle, by credit type and member (`""`: the events name none).
pub type MemberCounts = BTreeMap<(String, Arc<str>), Credits>;

/// The count that an event goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberCount<'a> {
    pub cycle: i32,
    pub credit_type: &'a str,
    pub user: &'a str,
    /// `None`: it is only counted, since others have a limit.
    pub limit: Option<Credits>,
}

impl MemberLimit {
    fn place(&self) -> (&str, Option<&str>) {
        (&self.credit_type, self.user.as_deref())
    }

    /// The order in which an account's limits stand.
    pub fn order(&self, other: &MemberLimit) -> Ordering {
        self.place().cmp(&other.place())
    }
}

/// The stored form of an account's limits: of each its type, its amount and, after another space, its member, who may have
/// spaces in the name, but no tab.
pub fn limits_text(limits: &[MemberLimit]) -> String {
    let text = |limit: &MemberLimit| {
        let user = limit.user.as_ref().map_or(String::new(), |user| format!(" {user}"));
        format!("{} {}{user}", limit.credit_type, limit.amount.thousandths())
    };
    limits.iter().map(text).collect::<Vec<_>>().join("\t")
}

pub fn limits_from(text: &str) -> Option<Arc<[MemberLimit]>> {
    let limit = |text: &str| {
        let mut parts = text.splitn(3, ' ');
        let (credit_type, amount) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
        Some(MemberLimit { credit_type, amount: Credits::from_thousandths(amount), user: parts.next().map(Arc::from) })
    };
    text.split('\t').map(limit).collect()
}

/// What an account's limits say of a member: `None`: its use of that type is not counted.
fn limit_of(limits: &[MemberLimit], credit_type: &str, user: &str) -> Option<Option<Credits>> {
    let first = limits.partition_point(|limit| *limit.credit_type < *credit_type);
    let of_type = &limits[first..];
    let of_type = &of_type[..of_type.partition_point(|limit| limit.credit_type == credit_type)];
    let place = |user: Option<&str>| of_type.binary_search_by(|limit| limit.user.as_deref().cmp(&user)).ok();
    // The one for all stands first.
    let limit = place(Some(user)).or_else(|| place(None)).map(|index| of_type[index].amount);
    (!of_type.is_empty()).then_some(limit)
}

impl Group {
    /// The cycle whose counts a void may have to change: that of its event, by its own time.
    pub fn voided_cycle(&self, class: &Class) -> Option<i32> {
        (class.judge == Judge::Void).then_some(class.cycle.unwrap_or(self.cycle))
    }

    /// The count that an event goes to, should it be charged; `None`: its account has no limit of that type, or it costs
    /// nothing.
    pub fn member_count<'a>(&'a self, class: &'a Class, event: &'a CallEvent) -> Option<MemberCount<'a>> {
        if self.member_limits.is_empty() || !matches!(class.judge, Judge::Charge | Judge::Capped) {
            return None;
        }
        let user = event.event.user.as_deref().unwrap_or_default();
        let limit = limit_of(&self.member_limits, &class.credit_type, user)?;
        let cycle = class.cycle.unwrap_or(self.cycle);
        Some(MemberCount { cycle, credit_type: &class.credit_type, user, limit })
    }
}

/// The counts of a shard's accounts, by account and number of the cycle. Absent = none.
pub type Counts = FxHashMap<(Arc<str>, i32), MemberCounts>;

/// An event whose cost would bring its member above the limit, as a class that is denied for it. A decision that was
/// recorded stands.
pub(super) fn denied_by_limit(
    counts: &Counts,
    account: &Arc<str>,
    count: Option<MemberCount>,
    class: &Class,
) -> Option<Class> {
    let MemberCount { cycle, credit_type, user, limit } = count.filter(|_| class.judge == Judge::Charge)?;
    let of_cycle = counts.get(&(account.clone(), cycle));
    let used = of_cycle.and_then(|of_cycle| of_cycle.get(&(credit_type.to_owned(), Arc::from(user)))).copied();
    let above = used.unwrap_or_default() + class.cost > limit?;
    above.then(|| Class { judge: Judge::Denied(Denial::MemberLimit), ..class.clone() })
}

/// Counts what was charged to a member.
pub(super) fn count_charged(
    counts: &mut Counts,
    account: &Arc<str>,
    count: Option<MemberCount>,
    verdict: Verdict,
    charged: Credits,
) {
    let Some(MemberCount { cycle, credit_type, user, .. }) = count else { return };
    if matches!(verdict, Verdict::Charged | Verdict::Capped) && charged > Credits::ZERO {
        let of_cycle = counts.entry((account.clone(), cycle)).or_default();
        *of_cycle.entry((credit_type.to_owned(), Arc::from(user))).or_default() += charged;
    }
}

/// Takes what a void gives back out of the count that it went to.
pub(super) fn give_back(counts: &mut Counts, group: &Group, void: &Class, charge: &Charge) {
    let Some(user) = charge.member.as_ref().filter(|_| group.voided_cycle(void) == Some(charge.cycle)) else { return };
    let key = (group.account.clone(), charge.cycle);
    let Some(of_cycle) = counts.get_mut(&key) else { return };
    let place = (charge.credit_type.clone(), user.clone());
    let Some(used) = of_cycle.get_mut(&place) else { return };
    *used = *used - charge.cost.min(*used);
    if *used == Credits::ZERO {
        of_cycle.remove(&place);
    }
    if of_cycle.is_empty() {
        counts.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::catalogue::Overage;
    use crate::ledger::event::{Identity, UsageEvent};

    fn limits(text: &str) -> Arc<[MemberLimit]> {
        limits_from(text).expect("limits")
    }

    fn class(judge: Judge, cost: i64) -> Class {
        let (action, credit_type) = ("reveal".into(), "email".into());
        Class { action, credit_type, cost: Credits::whole(cost), judge, cycle: None, once: false, voidable: false }
    }

    #[test]
    fn a_members_own_limit_goes_before_that_of_all() {
        let all = limits("email 50000\temail 0 eve\temail 200000 ada lovelace\tphone 1500 ada lovelace");
        let check = |credit_type: &str, user: &str, expected: Option<Option<i64>>| {
            let expected = expected.map(|limit| limit.map(Credits::from_thousandths));
            let mut sorted = all.to_vec();
            sorted.sort_by(MemberLimit::order);
            assert_eq!(limit_of(&sorted, credit_type, user), expected, "{credit_type} {user}");
        };
        // type member | limit
        check("email", "ada lovelace", Some(Some(200_000)));
        check("email", "bob", Some(Some(50_000)));
        check("email", "eve", Some(Some(0)));
        check("email", "", Some(Some(50_000)));
        check("phone", "ada lovelace", Some(Some(1_500)));
        check("phone", "bob", Some(None)); // counted: the account has a limit of this type
        check("enrichment", "ada lovelace", None);
        check("fax", "bob", None);
    }

    #[test]
    fn limits_are_stored_and_read_back() {
        let text = "email 50000\temail 200000 ada lovelace\tphone 1500  ";
        assert_eq!(limits_text(&limits(text)), text);
        assert_eq!(limits(text)[2].user.as_deref(), Some(" "));
        for broken in ["", "email", "email x", "email 1\t"] {
            assert_eq!(limits_from(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn what_would_bring_a_member_above_its_limit_is_denied() {
        let account: Arc<str> = "acme".into();
        let group = Group {
            account: account.clone(),
            version: 1,
            plan: None,
            overage: Overage::Allow { limit: None },
            thresholds: Vec::new(),
            member_limits: limits("email 5000"),
            breakdown: None,
            days: Vec::new(),
            cycle: 3,
            marks: Vec::new(),
            events: Vec::new(),
        };
        let event = CallEvent {
            range: 0,
            class: 0,
            offset: 0,
            event: Arc::new(UsageEvent {
                account: account.clone(),
                source: "s".into(),
                id: "1".into(),
                time_ms: 0,
                dated_ms: 0,
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
        let mut counts = Counts::default();
        let mut check = |judge: Judge, cost: i64, verdict: Verdict, uncovered: i64, used: i64| {
            let class = class(judge, cost);
            let count = group.member_count(&class, &event);
            let denied = denied_by_limit(&counts, &account, count, &class);
            let denied = denied.map(|class| class.judge);
            let expected = (verdict == Verdict::Denied(Denial::MemberLimit) && judge == Judge::Charge)
                .then_some(Judge::Denied(Denial::MemberLimit));
            assert_eq!(denied, expected, "{judge:?} {cost}");
            count_charged(&mut counts, &account, count, verdict, class.cost - Credits::whole(uncovered));
            let of_cycle = counts.get(&(account.clone(), 3));
            let found = of_cycle.and_then(|of_cycle| of_cycle.get(&("email".to_owned(), "".into()))).copied();
            assert_eq!(found.unwrap_or_default(), Credits::whole(used), "{judge:?} {cost}");
        };
        let over = Verdict::Denied(Denial::MemberLimit);
        // judge cost | verdict uncovered used
        check(Judge::Charge, 6, over, 0, 0);
        check(Judge::Charge, 4, Verdict::Charged, 0, 4);
        check(Judge::Charge, 2, over, 0, 4);
        check(Judge::Charge, 1, Verdict::Duplicate, 0, 4);
        check(Judge::Charge, 1, Verdict::Capped, 1, 4); // nothing was left to take
        check(Judge::Charge, 1, Verdict::Charged, 0, 5);
        check(Judge::Charge, 1, over, 0, 5);
        check(Judge::Free, 0, Verdict::Free, 0, 5);
        check(Judge::NotEntitled, 1, Verdict::Denied(Denial::NotEntitled), 0, 5);
        check(Judge::Denied(Denial::MemberLimit), 1, over, 0, 5);
        check(Judge::Capped, 3, Verdict::Capped, 0, 8); // a recorded decision stands
        // Another cycle has its own count.
        let late = Class { cycle: Some(2), ..class(Judge::Charge, 5) };
        let count = group.member_count(&late, &event);
        assert_eq!(denied_by_limit(&counts, &account, count, &late), None);
        count_charged(&mut counts, &account, count, Verdict::Charged, late.cost);
        assert!(denied_by_limit(&counts, &account, count, &late).is_some());
    }
}
