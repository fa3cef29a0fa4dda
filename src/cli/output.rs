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

/// Progress of long work: on stderr, and only where a person looks.
pub fn progress(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta} left");
    ProgressBar::new(length).with_style(style.expect("the template is a constant that is valid"))
}
