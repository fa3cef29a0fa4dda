//! What a relay knows of each shard's outbox: whether it is the one that publishes it, and how long messages wait.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The outboxes of all shards, as one worker knows them.
pub struct Known {
    outboxes: Mutex<Vec<Outbox>>,
    /// For how long a shard counts as this worker's after its relay was last given messages.
    held_for: Duration,
    /// A message that waits longer makes the worker unready.
    wait_max: Duration,
}

/// While the store does not answer, nobody else is given a shard's messages, but for this worker's own fault.
const UNANSWERED_MAX: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, Default)]
struct Outbox {
    taken_at: Option<Instant>,
    unanswered: bool,
    oldest: Option<Oldest>,
    /// When it was last seen empty.
    empty_at: Option<Instant>,
    fault: Option<String>,
}

/// The oldest message that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Oldest {
    /// By Redis' clock, in ms since 1970; that of a message that was not given is not known.
    written_ms: Option<i64>,
    since: Instant,
}

impl Known {
    pub fn new(shards: u32, held_for: Duration, wait_max: Duration) -> Known {
        Known { outboxes: Mutex::new(vec![Outbox::default(); shards as usize]), held_for, wait_max }
    }

    /// The relay was given what waits: when the oldest message was written, if there is one.
    pub fn taken(&self, shard: u32, oldest_ms: Option<i64>) {
        let mut outboxes = self.outboxes();
        let outbox = &mut outboxes[shard as usize];
        let now = Instant::now();
        (outbox.taken_at, outbox.unanswered) = (Some(now), false);
        let Some(written_ms) = oldest_ms else {
            (outbox.oldest, outbox.empty_at) = (None, Some(now));
            return;
        };
        // Redis' clock may be another than this one, so it is asked only for what came after what.
        let since = match (outbox.oldest, outbox.empty_at) {
            (Some(Oldest { written_ms: Some(before_ms), since }), _) => {
                let later = Duration::from_millis(u64::try_from(written_ms - before_ms).unwrap_or(0));
                (since + later).min(now)
            }
            // It was written since the outbox was empty.
            (_, Some(empty_at)) => now.checked_sub(age(written_ms)).unwrap_or(now).max(empty_at),
            // Seen for the first time.
            (_, None) => now.checked_sub(age(written_ms)).unwrap_or(now),
        };
        outbox.oldest = Some(Oldest { written_ms: Some(written_ms), since });
    }

    /// The store did not answer.
    pub fn unanswered(&self, shard: u32) {
        self.outboxes()[shard as usize].unanswered = true;
    }

    /// Messages wait and were not given; since when is known only where they were seen before.
    pub fn withheld(&self, shard: u32) {
        let mut outboxes = self.outboxes();
        let outbox = &mut outboxes[shard as usize];
        (outbox.taken_at, outbox.unanswered) = (Some(Instant::now()), false);
        outbox.oldest.get_or_insert_with(|| Oldest { written_ms: None, since: Instant::now() });
    }

    /// What became of the attempt to publish.
    pub fn tried(&self, shard: u32, fault: Option<String>) {
        self.outboxes()[shard as usize].fault = fault;
    }

    /// Another relay publishes the shard's messages, and tells of them.
    pub fn lost(&self, shard: u32) {
        self.outboxes()[shard as usize] = Outbox::default();
    }

    /// Whether this worker publishes the shard's messages.
    pub fn holds(&self, shard: u32) -> bool {
        let outboxes = self.outboxes();
        let outbox = &outboxes[shard as usize];
        let held_for = if outbox.unanswered { self.held_for.max(UNANSWERED_MAX) } else { self.held_for };
        outbox.taken_at.is_some_and(|at| at.elapsed() < held_for)
    }

    /// How long the oldest message of all has waited; zero if none waits.
    pub fn oldest(&self) -> Duration {
        let since = self.outboxes().iter().filter_map(|outbox| outbox.oldest).map(|oldest| oldest.since).min();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether a shard's messages leave, or why not.
    pub fn state(&self, shard: u32) -> Result<(), String> {
        let outbox = self.outboxes()[shard as usize].clone();
        if let Some(fault) = outbox.fault {
            return Err(fault);
        }
        let wait = outbox.oldest.map_or(Duration::ZERO, |oldest| oldest.since.elapsed());
        if wait <= self.wait_max {
            return Ok(());
        }
        let wait = humantime::format_duration(Duration::from_secs(wait.as_secs()));
        Err(format!(
            "its oldest message has waited for {wait}: kafka does not take messages, or not as fast as they come"
        ))
    }

    fn outboxes(&self) -> MutexGuard<'_, Vec<Outbox>> {
        // A thread that panicked here left it whole: each change is one assignment.
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Redis' clock may be ahead of this one.
fn age(written_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_ms() - written_ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn known() -> Known {
        Known::new(2, MINUTE, MINUTE)
    }

    #[test]
    fn an_outbox_that_does_not_drain_is_a_fault() {
        let known = known();
        known.taken(0, Some(now_ms() - 3_600_000));
        known.taken(1, Some(now_ms()));
        assert!(known.oldest() >= 60 * MINUTE, "the oldest of all");
        let said = known.state(0).unwrap_err();
        assert!(said.starts_with("its oldest message has waited for 1h"), "{said}");
        assert_eq!(known.state(1), Ok(()), "it has not waited long");
        known.taken(0, None);
        assert_eq!((known.state(0), known.oldest() < MINUTE), (Ok(()), true));
    }

    #[test]
    fn what_was_not_given_waits_too() {
        let known = Known::new(1, MINUTE, Duration::ZERO);
        known.withheld(0);
        let since = known.outboxes()[0].oldest;
        assert!(since.is_some() && known.holds(0));
        known.withheld(0);
        assert_eq!(known.outboxes()[0].oldest, since, "its wait goes on");
    }

    #[test]
    fn a_clock_that_differs_from_redis_makes_no_message_older_than_the_outbox_knows() {
        let known = known();
        known.taken(0, None);
        let an_hour_ago = now_ms() - 3_600_000;
        known.taken(0, Some(an_hour_ago));
        assert_eq!(known.state(0), Ok(()), "it was written after the outbox was empty");
        known.taken(0, Some(an_hour_ago + 5));
        assert_eq!(known.state(0), Ok(()), "the next one is later");
        // Seen when messages waited already, an hour by this clock: the next one is ten minutes younger.
        known.taken(1, Some(an_hour_ago));
        known.taken(1, Some(an_hour_ago + 600_000));
        let wait = known.oldest();
        assert!(wait >= 50 * MINUTE && wait < 55 * MINUTE, "{wait:?}");
        known.taken(1, Some(now_ms() + 3_600_000));
        assert!(known.oldest() < MINUTE, "none is of the future");
    }

    #[test]
    fn one_worker_tells_of_an_outbox() {
        let known = known();
        assert!(!known.holds(0));
        known.taken(0, Some(1));
        known.tried(0, Some("no answer".into()));
        assert!(known.holds(0) && !known.holds(1) && known.state(0) == Err("no answer".into()));
        known.lost(0);
        assert!(!known.holds(0));
        assert_eq!((known.state(0), known.oldest()), (Ok(()), Duration::ZERO));
        let known = Known::new(1, Duration::ZERO, MINUTE);
        known.taken(0, None);
        assert!(!known.holds(0), "a lease ends");
        known.unanswered(0);
        assert!(known.holds(0), "nobody can have taken it");
        known.taken(0, None);
        assert!(!known.holds(0));
    }
}
