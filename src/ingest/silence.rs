//! Brokers that answer nothing though the connection to them stands: what lies between drops all, or they stand still. The
//! client itself gives up only after `socket.timeout.ms`, a minute by default.

use std::collections::BTreeMap;
use std::time::Duration;

/// How often the client's statistics come.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A broker that is there answers within milliseconds, and the start of a large answer is one as well.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// A connection that stands, as the client's statistics show it.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub broker: &'a str,
    /// Whether something was asked that the broker may not leave unanswered.
    pub waits: bool,
    /// Since when nothing has come.
    pub idle: Duration,
}

/// Counts looks, not time: a worker that was stopped has heard nothing, and no broker is to blame.
#[derive(Debug)]
pub struct Silence {
    after: Duration,
    /// How often in a row a broker that was asked was found silent.
    looks: BTreeMap<String, u32>,
}

impl Silence {
    /// `fetch_wait`: for how long brokers may leave a question unanswered, as they were told.
    pub fn new(fetch_wait: Duration) -> Silence {
        Silence { after: SILENT_AFTER + fetch_wait, looks: BTreeMap::new() }
    }

    /// Takes the next look at all connections; for how long no broker has answered, if that is too long.
    pub fn look(&mut self, lines: &[Line]) -> Option<Duration> {
        let looks = |line: &Line| {
            let before = self.looks.get(line.broker).copied().unwrap_or(0);
            (line.broker.to_owned(), if line.waits && line.idle >= LOOK_EVERY { before + 1 } else { 0 })
        };
        self.looks = lines.iter().map(looks).collect();
        let heard = lines.iter().map(|line| line.idle).min()?;
        // One that is asked nothing has nothing to say.
        let silent = lines.iter().any(|line| self.is_silent(line.broker));
        (silent && heard >= self.after).then_some(heard)
    }

    pub fn is_silent(&self, broker: &str) -> bool {
        self.looks.get(broker).is_some_and(|looks| LOOK_EVERY * *looks >= self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(broker: &str, waits: bool, idle_seconds: u64) -> Line<'_> {
        Line { broker, waits, idle: Duration::from_secs(idle_seconds) }
    }

    #[test]
    fn brokers_that_were_asked_and_say_nothing_are_silent_until_they_do() {
        let mut silence = Silence::new(Duration::ZERO);
        for second in 1..10 {
            assert_eq!(silence.look(&[line("a", true, second), line("idle", false, 500)]), None, "it may answer yet");
        }
        assert_eq!(silence.look(&[line("a", true, 10), line("idle", false, 510)]), Some(Duration::from_secs(10)));
        assert!(silence.is_silent("a") && !silence.is_silent("idle"));
        assert_eq!(silence.look(&[line("a", true, 11), line("b", true, 0)]), None, "another broker answers");
        assert!(silence.is_silent("a"));
        assert_eq!(silence.look(&[line("a", true, 0)]), None, "the start of an answer");
        assert_eq!(silence.look(&[line("a", true, 12)]), None, "counted anew");
    }

    #[test]
    fn a_broker_that_may_wait_with_its_answer_is_given_that_time() {
        let mut silence = Silence::new(Duration::from_secs(20));
        for second in 1..30 {
            assert_eq!(silence.look(&[line("a", true, second)]), None, "nothing new comes for {second} s");
        }
        assert_eq!(silence.look(&[line("a", true, 30)]), Some(Duration::from_secs(30)));
    }

    #[test]
    fn who_is_asked_seldom_is_not_silent() {
        let mut silence = Silence::new(Duration::ZERO);
        for second in 0..100 {
            assert_eq!(silence.look(&[line("a", second % 5 == 0, 300 + second)]), None);
        }
        assert_eq!(silence.look(&[]), None, "no connection stands");
    }
}
