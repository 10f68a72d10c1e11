//! Keys with their values, before anybody asks what they mean.
//!
//! A file's assignments come first, then those of the command line; the later
//! one wins, `+=` adds. A key that was asked for is taken out, so that what is
//! left at the end is what nobody knew.

use std::collections::HashMap;

use super::{
    keys,
    source::{Diagnostic, SourceMap},
    syntax::{self, Assignment, Kind, Value},
};

/// The settings of one domain.
#[derive(Debug, Default)]
pub struct Settings {
    map: SourceMap,
    entries: Vec<Entry>,
    taken: HashMap<String, usize>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    at: usize,
    value: Value,
}

/// A string and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The place, for [`Settings::error_at`].
    pub at: usize,
    /// The string.
    pub text: String,
}

impl Settings {
    /// Parses a file's text and then the overrides of the command line.
    ///
    /// # Errors
    /// The first place that does not follow the grammar.
    pub fn parse(file: &str, text: &str, overrides: &[String]) -> Result<Self, Diagnostic> {
        let mut settings = Settings::default();
        let base = settings.map.add(file, text);
        let all = syntax::parse(text, base).map_err(|p| settings.problem(p))?;
        settings.merge(all)?;
        for argument in overrides {
            let all = settings.parse_override(argument)?;
            settings.merge(all)?;
        }
        Ok(settings)
    }

    /// `key=value` as a shell gives it. The value may follow the grammar; if
    /// it does not, it is a string as it stands, as `extra=console=hvc0`.
    fn parse_override(&mut self, argument: &str) -> Result<Vec<Assignment>, Diagnostic> {
        let base = self.map.add("command line", argument);
        let parsed = syntax::parse(argument, base);
        let (key, value) = match argument.split_once('=') {
            Some(pair) => pair,
            None => {
                let message = "expected key=value".to_owned();
                return Err(self.map.diagnose(base, message, None));
            }
        };
        let problem = match parsed {
            Ok(all) if !all.is_empty() => return Ok(all),
            Ok(_) => None,
            Err(problem) => Some(problem),
        };
        let (name, append) = match key.strip_suffix('+') {
            Some(name) => (name.trim(), true),
            None => (key.trim(), false),
        };
        if !keys::is_key(name) {
            let message = format!("'{name}' can't be the name of a setting");
            let remedy = Some("Expected key=value; keys are letters, digits and '_'.".into());
            return Err(self.map.diagnose(base, message, remedy));
        }
        if let (true, Some(problem)) = (value.trim_start().starts_with('['), problem) {
            return Err(self.problem(problem));
        }
        let at = base + key.len() + 1;
        Ok(vec![Assignment {
            key: name.to_owned(),
            at: base,
            append,
            value: Value {
                at,
                kind: Kind::Text(value.to_owned()),
            },
        }])
    }

    fn merge(&mut self, all: Vec<Assignment>) -> Result<(), Diagnostic> {
        for one in all {
            let old = self.entries.iter_mut().find(|e| e.key == one.key);
            match (old, one.append) {
                (None, _) => self.entries.push(Entry {
                    key: one.key,
                    at: one.at,
                    value: one.value,
                }),
                (Some(old), false) => {
                    old.at = one.at;
                    old.value = one.value;
                }
                (Some(old), true) => {
                    if let Err(message) = append(&mut old.value, one.value) {
                        let remedy =
                            Some("Add a list to a list, or a string to a string.".to_owned());
                        return Err(self.map.diagnose(one.at, message, remedy));
                    }
                }
            }
        }
        Ok(())
    }

    fn problem(&self, problem: syntax::Problem) -> Diagnostic {
        let remedy = problem.fault.remedy();
        self.map
            .diagnose(problem.at, problem.fault.to_string(), remedy)
    }

    /// A message that points at the value of `key`, also after it was taken.
    #[must_use]
    pub fn error(&self, key: &str, message: impl Into<String>) -> Diagnostic {
        self.error_at(self.place(key), message)
    }

    /// As [`Settings::error`], with the remedy.
    #[must_use]
    pub fn error_with(
        &self,
        key: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Diagnostic {
        self.map
            .diagnose(self.place(key), message.into(), Some(remedy.into()))
    }

    /// A message that points at a place.
    #[must_use]
    pub fn error_at(&self, at: usize, message: impl Into<String>) -> Diagnostic {
        self.map.diagnose(at, message.into(), None)
    }

    fn place(&self, key: &str) -> usize {
        let left = self.entries.iter().find(|e| e.key == key);
        left.map(|e| e.value.at)
            .or_else(|| self.taken.get(key).copied())
            .unwrap_or(0)
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        let index = self.entries.iter().position(|e| e.key == key)?;
        let entry = self.entries.remove(index);
        self.taken.insert(entry.key, entry.value.at);
        Some(entry.value)
    }

    /// A string; a number counts as it was written. An empty string counts as
    /// absent, as it did for xm.
    ///
    /// # Errors
    /// It is a list.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, Diagnostic> {
        match self.take(key).map(|v| v.kind) {
            None => Ok(None),
            Some(Kind::Text(text) | Kind::Number { text, .. }) => {
                Ok((!text.is_empty()).then_some(text))
            }
            Some(Kind::List(_)) => {
                Err(self.error(key, format!("'{key}' must be a string, not a list")))
            }
        }
    }

    /// A number, in quotes or not.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&mut self, key: &str) -> Result<Option<u64>, Diagnostic> {
        match self.take(key).map(|v| v.kind) {
            None => Ok(None),
            Some(Kind::Number { value, .. }) => Ok(Some(value)),
            Some(Kind::Text(text)) if text.is_empty() => Ok(None),
            Some(Kind::Text(text)) => match syntax::number_value(text.trim()) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(self.error(
                    key,
                    format!("'{key}' must be a number, not the string \"{text}\""),
                )),
            },
            Some(Kind::List(_)) => {
                Err(self.error(key, format!("'{key}' must be a number, not a list")))
            }
        }
    }

    /// A list of strings; a single string counts as a list of one.
    ///
    /// # Errors
    /// An item is a list itself.
    pub fn list(&mut self, key: &str) -> Result<Vec<Placed>, Diagnostic> {
        let Some(value) = self.take(key) else {
            return Ok(Vec::new());
        };
        let items = match value.kind {
            Kind::List(items) => items,
            Kind::Text(text) if text.is_empty() => Vec::new(),
            kind => vec![Value { at: value.at, kind }],
        };
        let placed = items.into_iter().map(|item| match item.kind {
            Kind::Text(text) | Kind::Number { text, .. } => Ok(Placed { at: item.at, text }),
            Kind::List(_) => Err(self.error_at(
                item.at,
                format!("'{key}' must be a list of strings, not of lists"),
            )),
        });
        placed.collect()
    }

    /// The string that `key` has, if it has one, without taking it.
    #[must_use]
    pub fn peek_text(&self, key: &str) -> Option<String> {
        let entry = self.entries.iter().find(|e| e.key == key)?;
        match &entry.value.kind {
            Kind::Text(text) | Kind::Number { text, .. } => Some(text.clone()),
            Kind::List(_) => None,
        }
    }

    /// Whether `key` is set to something else than nothing: 0, "", [].
    #[must_use]
    pub fn is_on(&self, key: &str) -> bool {
        let entry = self.entries.iter().find(|e| e.key == key);
        entry.is_some_and(|e| match &e.value.kind {
            Kind::Text(text) => !matches!(text.as_str(), "" | "0" | "no" | "off"),
            Kind::Number { value, .. } => *value != 0,
            Kind::List(items) => !items.is_empty(),
        })
    }

    /// The keys that nobody took, with the places of their names.
    pub fn left(&self) -> impl Iterator<Item = (&str, usize)> {
        self.entries.iter().map(|e| (e.key.as_str(), e.at))
    }
}

fn append(old: &mut Value, new: Value) -> Result<(), String> {
    match (&mut old.kind, new.kind) {
        (Kind::List(items), Kind::List(more)) => items.extend(more),
        (Kind::Text(text), Kind::Text(more)) => text.push_str(&more),
        (Kind::List(items), kind @ (Kind::Text(_) | Kind::Number { .. })) => {
            items.push(Value { at: new.at, kind });
        }
        _ => return Err("'+=' can't add this to the value that the key has".into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str, overrides: &[&str]) -> Result<Settings, Diagnostic> {
        let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
        Settings::parse("a.cfg", text, &overrides)
    }

    fn text_of(text: &str, overrides: &[&str]) -> Option<String> {
        let mut settings = settings(text, overrides).expect("parse");
        settings.text("a").expect("text")
    }

    #[test]
    fn later_wins_and_plus_adds() {
        assert_eq!(text_of("a = 'x'; a = 'y'", &[]).as_deref(), Some("y"));
        assert_eq!(text_of("a = 'x'; a += 'y'", &[]).as_deref(), Some("xy"));
        assert_eq!(text_of("a += 'y'", &[]).as_deref(), Some("y"));
        assert!(settings("a = 1; a += 'y'", &[]).is_err());
        let mut list = settings("a = ['x']; a += ['y', 'z']; a += 'w'", &[]).expect("parse");
        let items: Vec<_> = list
            .list("a")
            .expect("list")
            .into_iter()
            .map(|p| p.text)
            .collect();
        assert_eq!(items, ["x", "y", "z", "w"]);
    }

    #[test]
    fn overrides_are_grammar_or_plain_text() {
        for (argument, value) in [
            ("a=y", "y"),
            ("a='y'", "y"),
            ("a=0x10", "0x10"),
            ("a=root=/dev/xvda ro", "root=/dev/xvda ro"),
            ("a=console=hvc0", "console=hvc0"),
            ("a=\"x\" y", "\"x\" y"),
            ("a+=y", "xy"),
            ("b=1;a='z'", "z"),
        ] {
            assert_eq!(
                text_of("a = 'x'", &[argument]).as_deref(),
                Some(value),
                "{argument}"
            );
        }
        assert_eq!(text_of("a = 'x'", &["a="]), None);
        let mut list = settings("", &["a=['x','y']"]).expect("parse");
        assert_eq!(list.list("a").expect("list").len(), 2);
        for wrong in ["a", "=x", "a b=x", "a=[phy:x,y]"] {
            let error = settings("", &[wrong]).expect_err(wrong);
            assert_eq!(error.file, "command line", "{wrong}");
        }
    }

    #[test]
    fn numbers_may_be_quoted() {
        let mut all = settings("a = '128'; b = 128; c = 'x'; d = [1]; e = ''", &[]).expect("parse");
        assert_eq!(all.number("a").expect("number"), Some(128));
        assert_eq!(all.number("b").expect("number"), Some(128));
        assert!(all.number("c").is_err());
        assert!(all.number("d").is_err());
        assert_eq!(all.number("e").expect("number"), None);
        assert_eq!(all.left().count(), 0);
    }

    #[test]
    fn one_string_is_a_list_of_one() {
        let mut all = settings("vif = 'mac=x'; disk = [['x']]", &[]).expect("parse");
        assert_eq!(all.list("vif").expect("list").len(), 1);
        assert_eq!(all.list("disk").expect_err("nested").column, 24);
        assert_eq!(all.list("absent").expect("list"), []);
    }
}
