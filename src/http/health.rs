//! What the meter says of its own state. Others set it; only the probes read it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What must hold for the meter to be ready, in the order in which it comes true at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The brokers answer.
    Kafka,
    /// The group has given this worker partitions.
    Assigned,
    /// The brokers let this worker's user read its inputs.
    Allowed,
    /// Redis answers.
    Redis,
    /// No shard is halted.
    Shards,
    /// Every partition's position moves while records of it wait.
    Progress,
    /// Messages leave every outbox, none of them too late.
    Outbox,
    /// Ticks come through, where it is this worker that sends them.
    Time,
}

impl Check {
    pub const ALL: [Check; 8] = [
        Check::Kafka,
        Check::Assigned,
        Check::Allowed,
        Check::Redis,
        Check::Shards,
        Check::Progress,
        Check::Outbox,
        Check::Time,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Check::Kafka => "kafka",
            Check::Assigned => "assigned",
            Check::Allowed => "allowed",
            Check::Redis => "redis",
            Check::Shards => "shards",
            Check::Progress => "progress",
            Check::Outbox => "outbox",
            Check::Time => "time",
        }
    }

    /// Some are faults until the first good news, the others are fine until the first bad news.
    fn at_start(self) -> Result<(), String> {
        match self {
            Check::Assigned => Err("no partitions are assigned yet".to_owned()),
            Check::Redis => Err("redis has not answered yet".to_owned()),
            Check::Kafka | Check::Allowed | Check::Shards | Check::Progress | Check::Outbox | Check::Time => Ok(()),
        }
    }
}

/// The first reason is not always the one that helps; some change with every look.
const TELL_ANOTHER_REASON_EVERY: Duration = Duration::from_secs(30);

/// The state of every check, and whether the process is beyond repair.
#[derive(Debug)]
pub struct Health {
    states: Mutex<[Result<(), String>; Check::ALL.len()]>,
    /// When the log was told last that a check does not hold.
    told: Mutex<[Option<Instant>; Check::ALL.len()]>,
    dead: Mutex<Option<String>>,
    stuck: Mutex<Option<String>>,
}

impl Default for Health {
    fn default() -> Health {
        Health::new()
    }
}

impl Health {
    pub fn new() -> Health {
        let (states, told) = (Mutex::new(Check::ALL.map(Check::at_start)), Mutex::default());
        Health { states, told, dead: Mutex::new(None), stuck: Mutex::new(None) }
    }

    /// Says whether a check holds, or why not. A change is logged.
    pub fn set(&self, check: Check, state: Result<(), String>) {
        let mut states = hold(&self.states);
        let previous = std::mem::replace(&mut states[check as usize], state.clone());
        drop(states);
        match state {
            Err(reason) if previous.as_ref() != Err(&reason) && self.is_to_be_told(check, previous.is_ok()) => {
                tracing::warn!(check = check.name(), reason, "not ready");
            }
            Ok(()) if previous.is_err() => tracing::info!(check = check.name(), "ready"),
            Ok(()) | Err(_) => {}
        }
    }

    fn is_to_be_told(&self, check: Check, held: bool) -> bool {
        let (told, now) = (&mut hold(&self.told)[check as usize], Instant::now());
        let tell = held || told.is_none_or(|told| now.duration_since(told) >= TELL_ANOTHER_REASON_EVERY);
        if tell {
            *told = Some(now);
        }
        tell
    }

    /// Only a restart can help. The first reason stays.
    pub fn set_dead(&self, reason: String) {
        tracing::error!(reason, "dead");
        hold(&self.dead).get_or_insert(reason);
    }

    /// Whether something does not go on that a restart would set going. It may yet go on by itself.
    pub fn set_stuck(&self, reason: Option<String>) {
        let previous = std::mem::replace(&mut *hold(&self.stuck), reason.clone());
        match reason {
            Some(reason) if previous.is_none() => tracing::error!(reason, "stuck"),
            None if previous.is_some() => tracing::info!("it goes on"),
            Some(_) | None => {}
        }
    }

    pub fn alive(&self) -> Result<(), String> {
        let dead = hold(&self.dead).clone();
        dead.or_else(|| hold(&self.stuck).clone()).map_or(Ok(()), Err)
    }

    pub fn state(&self, check: Check) -> Result<(), String> {
        hold(&self.states)[check as usize].clone()
    }

    pub fn ready(&self) -> bool {
        hold(&self.states).iter().all(Result::is_ok)
    }

    pub fn checks(&self) -> Vec<(Check, Result<(), String>)> {
        Check::ALL.into_iter().zip(hold(&self.states).iter().cloned()).collect()
    }
}

/// A thread that panicked while it held a state left it whole: each change is one assignment.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_takes_every_check() {
        let health = Health::new();
        assert!(!health.ready());
        health.set(Check::Assigned, Ok(()));
        health.set(Check::Redis, Ok(()));
        assert!(health.ready());
        for check in Check::ALL {
            health.set(check, Err("broken".to_owned()));
            assert!(!health.ready(), "{}", check.name());
            health.set(check, Ok(()));
        }
        assert!(health.ready());
    }

    #[test]
    fn the_first_reason_of_death_stays() {
        let health = Health::new();
        assert_eq!(health.alive(), Ok(()));
        health.set_dead("first".to_owned());
        health.set_dead("second".to_owned());
        assert_eq!(health.alive(), Err("first".to_owned()));
    }

    #[test]
    fn what_was_stuck_may_go_on_and_what_is_dead_may_not() {
        let health = Health::new();
        health.set_stuck(Some("slow".to_owned()));
        assert_eq!(health.alive(), Err("slow".to_owned()));
        health.set_stuck(None);
        assert_eq!(health.alive(), Ok(()));
        health.set_dead("gone".to_owned());
        health.set_stuck(None);
        assert_eq!(health.alive(), Err("gone".to_owned()));
    }
}
