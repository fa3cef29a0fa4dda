//! Texts and JSON on stdout. The only place that writes there.

use std::io::{ErrorKind, Write};

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
}

fn line(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // The reader has seen enough: `| head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
