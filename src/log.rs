//! The log: lines on stderr, which a thread of its own writes. A disk that is full and a collector that stands still cost
//! lines, which are counted, and nothing else: the meter neither ends nor waits.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// How long who must be heard waits for a stderr that takes nothing.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

static LOST: AtomicU64 = AtomicU64::new(0);
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Logs from now on. Called once.
pub fn start(log: &Log, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log.filter `{filter}` is no tracing filter"))?;
    let (sender, waiting) = sync_channel(log.queue_max);
    std::thread::Builder::new().name("log".into()).spawn(move || write(&waiting, io::stderr(), &LOST))?;
    let queue = QUEUE.get_or_init(|| Queue { waiting: sender, lost: &LOST });
    let lines = move || queue.clone();
    let mut logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).log_internal_errors(false);
    if !io::stderr().is_terminal() {
        // On a terminal NO_COLOR decides.
        logging = logging.with_ansi(false);
    }
    match log.format {
        LogFormat::Text => logging.init(),
        LogFormat::Json => logging.json().init(),
    }
    Ok(())
}

/// Says something to whoever runs the program, behind all lines so far. Comes back when it is said, or soon, if nobody
/// takes it.
pub fn tell(text: &str) {
    match QUEUE.get() {
        Some(queue) => queue.tell(text),
        None => {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}

/// Waits until all lines so far are written, for a while.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush_all();
    }
}

/// Lines that nobody will read.
pub fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

enum Waiting {
    Line(Vec<u8>),
    /// Told when all before it is written.
    Mark(Sender<()>),
}

/// What waits for stderr.
#[derive(Clone)]
struct Queue {
    waiting: SyncSender<Waiting>,
    lost: &'static AtomicU64,
}

impl Queue {
    fn put(&self, line: Vec<u8>) {
        if self.waiting.try_send(Waiting::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tell(&self, text: &str) {
        self.put(format!("{text}\n").into_bytes());
        self.flush_all();
    }

    fn flush_all(&self) {
        let (mark, written) = channel();
        if self.waiting.try_send(Waiting::Mark(mark)).is_ok() {
            let _ = written.recv_timeout(FLUSH_WAIT);
        }
    }
}

/// A line each, as `tracing_subscriber` writes them.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what waits, a line at a time; what cannot be written is counted.
fn write(waiting: &Receiver<Waiting>, mut to: impl Write, lost: &AtomicU64) {
    for next in waiting {
        match next {
            Waiting::Line(line) => {
                if to.write_all(&line).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Nobody may wait any more.
            Waiting::Mark(mark) => drop(mark.send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(room: usize) -> (Queue, Receiver<Waiting>, &'static AtomicU64) {
        let (sender, waiting) = sync_channel(room);
        let lost = Box::leak(Box::new(AtomicU64::new(0)));
        (Queue { waiting: sender, lost }, waiting, lost)
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_the_next_is_tried() {
        let (mut queue, waiting, lost) = queue(10);
        for line in ["one\n", "two\n", "three\n"] {
            queue.write_all(line.as_bytes()).expect("never an error");
        }
        drop(queue);
        let mut room_for_five = [0_u8; 5];
        write(&waiting, &mut room_for_five[..], lost);
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        assert_eq!(&room_for_five, b"one\nt");
    }

    #[test]
    fn nobody_waits_for_a_stderr_that_takes_nothing() {
        let (queue, _nobody_writes, lost) = queue(2);
        queue.tell("waits for a second, then goes on");
        queue.tell("does not fit any more");
        queue.tell("nor does this");
        assert_eq!(lost.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_last_words_come_last() {
        let (mut queue, waiting, lost) = queue(10);
        let writer = std::thread::spawn(move || {
            let mut written = Vec::new();
            write(&waiting, &mut written, lost);
            written
        });
        queue.write_all(b"a line\n").expect("never an error");
        queue.tell("the last words");
        drop(queue);
        assert_eq!(writer.join().expect("it ends"), b"a line\nthe last words\n");
    }
}
