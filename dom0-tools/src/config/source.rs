//! Texts, places in them, and messages that point at a place.
//!
//! All texts of one configuration (the file, then each `key=value` from the
//! command line) lie one after another in a [`SourceMap`], so that one number
//! names a place in any of them.

use std::fmt;

/// One text: a file, or one argument of the command line.
#[derive(Debug, Clone)]
struct Source {
    name: String,
    base: usize,
    text: String,
}

/// The texts of one configuration.
#[derive(Debug, Clone, Default)]
pub struct SourceMap {
    sources: Vec<Source>,
}

/// A message that points at a place, with the remedy where it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, or `command line`.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The whole line, without its end.
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl SourceMap {
    /// Adds a text; returns the place of its first byte.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> usize {
        // One place after each text is its end: "unexpected end of file".
        let base = self.sources.last().map_or(0, |s| s.base + s.text.len() + 1);
        self.sources.push(Source {
            name: name.into(),
            base,
            text: text.into(),
        });
        base
    }

    /// A message about the place `at`.
    #[must_use]
    pub fn diagnose(&self, at: usize, message: String, remedy: Option<String>) -> Diagnostic {
        let Some(source) = self.sources.iter().rev().find(|s| s.base <= at) else {
            return Diagnostic {
                file: "configuration".into(),
                line: 1,
                column: 1,
                text: String::new(),
                message,
                remedy,
            };
        };
        let (line, column, text) = locate(&source.text, at - source.base);
        Diagnostic {
            file: source.name.clone(),
            line,
            column,
            text: text.to_owned(),
            message,
            remedy,
        }
    }
}

/// Line, column and the line's text of byte `offset` (clamped into `text`).
fn locate(text: &str, offset: usize) -> (usize, usize, &str) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    let end = text[offset..].find('\n').map_or(text.len(), |i| offset + i);
    let line = before.matches('\n').count() + 1;
    let column = text[start..offset].chars().count() + 1;
    (line, column, text[start..end].trim_end_matches('\r'))
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}:{}:{}: {}",
            self.file, self.line, self.column, self.message
        )?;
        // Tabs stay tabs in the padding, so that the caret stands right.
        let padding: String = self
            .text
            .chars()
            .take(self.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        write!(f, "    {}\n    {padding}^", printable(&self.text))?;
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// Control characters would move the caret, or the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_at_line_and_column() {
        let mut map = SourceMap::default();
        map.add("a.cfg", "name = 'x'\n\tmemory = é!\n");
        let at = "name = 'x'\n\tmemory = é".len();
        let shown = map
            .diagnose(at, "wrong".into(), Some("Mend it.".into()))
            .to_string();
        assert_eq!(
            shown,
            "a.cfg:2:12: wrong\n    \tmemory = é!\n    \t          ^\n  Mend it."
        );
    }

    #[test]
    fn second_text_has_places_of_its_own() {
        let mut map = SourceMap::default();
        map.add("a.cfg", "name = 'x'");
        let base = map.add("command line", "memory=no");
        let found = map.diagnose(base + 7, "wrong".into(), None);
        assert_eq!(
            (found.file.as_str(), found.line, found.column),
            ("command line", 1, 8)
        );
    }

    #[test]
    fn end_of_text_and_beyond_are_places() {
        let mut map = SourceMap::default();
        map.add("a", "x = [\n");
        assert_eq!(map.diagnose(6, String::new(), None).line, 2);
        assert_eq!(map.diagnose(999, String::new(), None).line, 2);
        assert_eq!(
            SourceMap::default()
                .diagnose(0, String::new(), None)
                .to_string(),
            "configuration:1:1: \n    \n    ^"
        );
    }
}
