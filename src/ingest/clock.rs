//! A clock of day that is set back. librdkafka's threads wait by it (its issue 2145, open): each sleeps for as long as the
//! clock was set back, unless a message wakes it, so that a worker would answer and not work. Whoever starts anew is rid of
//! that. A clock that is set forward wakes them early, which harms nothing.

use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::log;

/// A sleep of this length is over before anybody is missed.
const SET_BACK_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an orderly end may take. Clients that are dropped wait for their threads, and those may sleep.
const END_WAIT: Duration = Duration::from_secs(20);

/// What is to be done then, for most.
pub const START_AGAIN: &str = "it has ended and is to be started again, with the same command; nothing is lost";

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "this machine's clock was set back by {}, and the kafka client's threads would sleep for as long (let the clock be slewed, \
     not stepped)",
    humantime::format_duration(*.0)
)]
pub struct SetBack(Duration);

/// Does its work until the clock of day is set back: then `stop` is cancelled, and the process ends, in order or not, with
/// `advice` for whoever reads why.
pub async fn watched<T>(
    work: impl Future<Output = anyhow::Result<T>>,
    stop: CancellationToken,
    advice: &'static str,
) -> anyhow::Result<T> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => done,
        set_back = set_back() => {
            tracing::error!("{set_back}");
            end_after(END_WAIT, format!("credit-meter: {advice}: {set_back}"));
            stop.cancel();
            let _ = work.await;
            Err(anyhow::Error::new(set_back).context(advice))
        }
    }
}

/// What a process that is killed leaves undone is done by the next.
fn end_after(wait: Duration, last_words: String) {
    std::thread::spawn(move || {
        std::thread::sleep(wait);
        log::tell(&last_words);
        std::process::exit(1);
    });
}

/// Comes back once the clock of day was set back by more than [`SET_BACK_MAX`].
async fn set_back() -> SetBack {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let mut last = Look::now();
    loop {
        looks.tick().await;
        let look = Look::now();
        if let Some(set_back) = last.set_back_until(look) {
            return set_back;
        }
        last = look;
    }
}

/// The time of day, and between which moments it was read: who looks may be stopped meanwhile.
#[derive(Clone, Copy, Debug)]
struct Look {
    after: Instant,
    day: SystemTime,
    before: Instant,
}

impl Look {
    fn now() -> Look {
        let after = Instant::now();
        let day = SystemTime::now();
        Look { after, day, before: Instant::now() }
    }

    /// By how much the clock of day fell behind, in whole seconds, at least.
    fn set_back_until(self, later: Look) -> Option<SetBack> {
        let passed = later.after.saturating_duration_since(self.before);
        let behind = (self.day + passed).duration_since(later.day).unwrap_or_default();
        (behind > SET_BACK_MAX).then(|| SetBack(Duration::from_secs(behind.as_secs())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_falls_behind_by_much_was_set_back() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3_600));
        let (at, day) = (Instant::now(), SystemTime::now());
        let look = |at: Instant, day: SystemTime| Look { after: at, day, before: at };
        let first = look(at, day);
        assert_eq!(first.set_back_until(look(at + second, day + second)), None, "it goes on");
        assert_eq!(first.set_back_until(look(at + second, day + hour)), None, "set forward");
        assert_eq!(first.set_back_until(look(at + second, day - 3 * second)), None, "a little");
        assert_eq!(first.set_back_until(look(at + second, day + second - hour)), Some(SetBack(hour)));
        assert_eq!(first.set_back_until(look(at + hour, day + hour)), None, "stopped for an hour");
        // Stopped within a look, before or after the time of day was read.
        let stopped = Look { after: at, day, before: at + hour };
        assert_eq!(stopped.set_back_until(look(at + hour + second, day + hour + second)), None);
        assert_eq!(first.set_back_until(Look { after: at + second, day: day + second, before: at + hour }), None);
        let stopped = Look { after: at, day: day + hour, before: at + hour };
        assert_eq!(stopped.set_back_until(look(at + hour + second, day + hour + second)), None);
    }
}
