//! When a plan may do what.

use std::collections::BTreeSet;

use super::Line;

/// A time in which a plan is entitled to an action.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entitlement {
    /// `None`: from the beginning.
    pub from_ms: Option<i64>,
    /// The first moment after it; `None`: it has no end.
    pub until_ms: Option<i64>,
    pub(super) line: Line,
}

impl Entitlement {
    pub fn holds(&self, at_ms: i64) -> bool {
        self.from_ms.is_none_or(|from_ms| from_ms <= at_ms) && self.until_ms.is_none_or(|until_ms| at_ms < until_ms)
    }

    /// From the beginning, for ever.
    pub fn always(&self) -> bool {
        self.from_ms.is_none() && self.until_ms.is_none()
    }

    /// When it begins, and when it ends.
    pub fn bounds(&self) -> impl Iterator<Item = i64> {
        self.from_ms.into_iter().chain(self.until_ms)
    }
}

/// Whether one of several holds at a time.
pub fn entitled(when: &[Entitlement], at_ms: i64) -> bool {
    when.iter().any(|each| each.holds(at_ms))
}

/// When two say otherwise first; the inner `None`: from the beginning.
pub(super) fn first_difference(before: &[Entitlement], now: &[Entitlement]) -> Option<Option<i64>> {
    let bounds: BTreeSet<i64> = before.iter().chain(now).flat_map(Entitlement::bounds).collect();
    let differs = |at_ms: i64| entitled(before, at_ms) != entitled(now, at_ms);
    if differs(i64::MIN) {
        return Some(None);
    }
    bounds.into_iter().find(|at_ms| differs(*at_ms)).map(Some)
}
