//! A clock of day that is set back. librdkafka's threads wait by it (its issue 2145, open): each sleeps for as long as the
//! clock was set back, unless a message wakes it, so that a worker would answer and not work. Whoever starts anew is rid of
//! that. A clock that is set forward wakes them early, which harms nothing.

use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;

/// A sleep of this length is over before anybody is missed.
const SET_BACK_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "this machine's clock was set back by {}: the kafka client's threads would sleep for as long; the meter ends, and is to \
     be started again (nothing is lost); let the clock be slewed, not stepped",
    humantime::format_duration(*.0)
)]
pub struct SetBack(Duration);

/// Comes back once the clock of day was set back by more than a session outlives.
pub async fn set_back() -> SetBack {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let mut last = (Instant::now(), SystemTime::now());
    loop {
        looks.tick().await;
        let look = (Instant::now(), SystemTime::now());
        if let Some(set_back) = between(last, look) {
            return set_back;
        }
        last = look;
    }
}

/// By how much the clock of day fell behind between two looks, in whole seconds.
fn between(before: (Instant, SystemTime), now: (Instant, SystemTime)) -> Option<SetBack> {
    let behind = (before.1 + (now.0 - before.0)).duration_since(now.1).unwrap_or_default();
    (behind > SET_BACK_MAX).then(|| SetBack(Duration::from_secs(behind.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_falls_behind_by_much_was_set_back() {
        let second = Duration::from_secs(1);
        let (at, day) = (Instant::now(), SystemTime::now());
        assert_eq!(between((at, day), (at + second, day + second)), None, "it goes on");
        assert_eq!(between((at, day), (at + second, day + 3_600 * second)), None, "set forward");
        assert_eq!(between((at, day), (at + second, day - 3 * second)), None, "a little");
        let hour = 3_600 * second;
        assert_eq!(between((at, day), (at + second, day + second - hour)), Some(SetBack(hour)));
        // Stopped for an hour: both went on.
        assert_eq!(between((at, day), (at + hour, day + hour)), None);
    }
}
