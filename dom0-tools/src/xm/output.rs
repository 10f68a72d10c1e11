//! Writing to stdout.
//!
//! Law: a reader that goes away (`xm list | head -1`) ends us quietly, never
//! with a panic.

use std::io::{self, Write};

use serde::Serialize;

use super::error::XmError;

/// Writes bytes as they are.
///
/// # Errors
/// [`XmError::OutputClosed`] or [`XmError::Output`].
pub fn bytes(bytes: &[u8]) -> Result<(), XmError> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => XmError::OutputClosed,
        _ => XmError::Output(e),
    })
}

/// Writes a line.
///
/// # Errors
/// As [`bytes`].
pub fn line(text: &str) -> Result<(), XmError> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes lines, all at once.
///
/// # Errors
/// As [`bytes`].
pub fn lines(lines: &[String]) -> Result<(), XmError> {
    let mut text = lines.join("\n");
    if !lines.is_empty() {
        text.push('\n');
    }
    bytes(text.as_bytes())
}

/// Writes a value as JSON.
///
/// # Errors
/// As [`bytes`].
pub fn json(value: &impl Serialize) -> Result<(), XmError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| XmError::Failed(format!("can't write JSON: {e}")))?;
    line(&text)
}
