//! Texts and JSON on stdout. The only place that writes there. Progress on stderr.

use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

pub use crate::ledger::time::rfc3339 as time;

/// A line for whoever runs the command, on stderr. Where that takes none, the work goes on: see [`crate::log::tell`].
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => {
        $crate::log::tell(&format!($($text)*))
    };
}

/// How a command answers.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// Writes one JSON document on a line, or the text.
    pub fn answer(self, document: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string(document)? } else { text() };
        self.line(&line).map(|_| ())
    }

    /// Writes lines that are read by programs, whatever `--json` says.
    pub fn lines(self, lines: &[String]) -> anyhow::Result<()> {
        self.line(&lines.join("\n")).map(|_| ())
    }

    /// Writes a line of many, as it is.
    pub fn line(self, text: &str) -> anyhow::Result<Reader> {
        let mut stdout = std::io::stdout().lock();
        match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
            written => Ok(written.map(|()| Reader::There).context("stdout cannot be written")?),
        }
    }
}

/// Whether someone still reads what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    There,
    /// It has seen enough: `| head`.
    Gone,
}

/// Waits until nobody reads stdout any more, for commands that write rarely. For ever where that cannot be told.
pub async fn reader_gone() {
    // Stdout is shared with others, so that it is looked at and stays as it is.
    let stdout = std::io::stdout().as_fd().try_clone_to_owned();
    if let Ok(stdout) = stdout.and_then(Sender::from_owned_fd_unchecked)
        && stdout.ready(Interest::ERROR).await.is_ok_and(|ready| ready.is_error())
    {
        return;
    }
    std::future::pending().await
}

/// A cell of CSV, as RFC 4180 has it: accounts and members may have any name.
pub fn quoted(cell: &str) -> String {
    let bare = !cell.contains([',', '"', '\n', '\r']);
    if bare { cell.to_owned() } else { format!("\"{}\"", cell.replace('"', "\"\"")) }
}

/// Progress of long work: on stderr, and only where a person looks.
pub fn progress(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta} left");
    ProgressBar::new(length).with_style(style.expect("the template is a constant that is valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_with_commas_and_quotes_are_quoted() {
        assert_eq!(quoted("acme"), "acme");
        assert_eq!(quoted("a\nb"), "\"a\nb\"");
        assert_eq!(quoted("acme, \"the\" team"), "\"acme, \"\"the\"\" team\"");
    }
}
