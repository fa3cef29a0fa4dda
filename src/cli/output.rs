//! Texts and JSON on stdout. The only place that writes there. Progress on stderr.

use std::io::{ErrorKind, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub use crate::ledger::time::rfc3339 as time;

/// How a command answers.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// Writes one JSON document on a line, or the text.
    pub fn answer(self, document: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.json { line(&serde_json::to_string(document)?) } else { line(&text()) }
    }

    /// Writes lines that are read by programs, whatever `--json` says.
    pub fn lines(self, lines: &[String]) -> anyhow::Result<()> {
        line(&lines.join("\n"))
    }
}

fn line(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // The reader has seen enough: `| head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// A cell of CSV, as RFC 4180 has it: accounts and members may have any name.
pub fn quoted(cell: &str) -> String {
    if cell.contains([',', '"']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
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
        assert_eq!(quoted("acme, \"the\" team"), "\"acme, \"\"the\"\" team\"");
    }
}
