//! The log: lines on stderr, which a thread of its own writes. A disk that is full and a collector that stands still cost
//! lines, which are counted, and nothing else: the meter neither ends nor waits.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Lines that wait for a stderr that takes none; what comes on top is lost.
const WAITING_LINES_MAX: usize = 16_384;

static NOT_WRITTEN: AtomicU64 = AtomicU64::new(0);
static NOT_TAKEN: OnceLock<ErrorCounter> = OnceLock::new();

/// Logs from now on, until what it gives is dropped: that waits up to a second for what is still to be written.
pub fn start(log: &Log, filter: &str) -> anyhow::Result<WorkerGuard> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log.filter `{filter}` is no tracing filter"))?;
    let lines = NonBlockingBuilder::default().buffered_lines_limit(WAITING_LINES_MAX).thread_name("log");
    let (lines, guard) = lines.finish(Counted { inner: io::stderr(), not_written: &NOT_WRITTEN });
    let _ = NOT_TAKEN.set(lines.error_counter());
    let mut logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).log_internal_errors(false);
    if !io::stderr().is_terminal() {
        // On a terminal NO_COLOR decides.
        logging = logging.with_ansi(false);
    }
    match log.format {
        LogFormat::Text => logging.init(),
        LogFormat::Json => logging.json().init(),
    }
    Ok(guard)
}

/// Lines that nobody will read.
pub fn lines_lost() -> u64 {
    let not_taken = NOT_TAKEN.get().map_or(0, ErrorCounter::dropped_lines);
    NOT_WRITTEN.load(Ordering::Relaxed) + not_taken as u64
}

/// Counts what cannot be written, a line at a time, and goes on.
struct Counted<'a, W> {
    inner: W,
    not_written: &'a AtomicU64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.inner.write_all(line).is_err() {
            self.not_written.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.inner.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_the_next_is_tried() {
        let not_written = AtomicU64::new(0);
        let mut room_for_five = [0_u8; 5];
        let mut lines = Counted { inner: &mut room_for_five[..], not_written: &not_written };
        for line in ["one\n", "two\n", "three\n"] {
            lines.write_all(line.as_bytes()).expect("never an error");
        }
        assert_eq!(not_written.load(Ordering::Relaxed), 2);
        assert_eq!(&room_for_five, b"one\nt");
    }
}
