//! Names of domains.
//!
//! Law: a name becomes a xenstore value, a part of file names and an argument
//! of commands. It holds nothing that means something to any of those.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 100;

/// What the control domain is called.
pub const DOM0_NAME: &str = "Domain-0";

/// A valid name of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

/// Why a text can't be a domain's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("a domain's name can't be empty")]
    Empty,
    /// Too long.
    #[error("a domain's name has at most {MAX_NAME} characters, this one has {0}")]
    TooLong(usize),
    /// A character that names don't have.
    #[error("{0:?} can't stand in a domain's name: letters, digits and _ - . : + can")]
    Character(char),
    /// `.`, `-x` and the like.
    #[error("a domain's name begins with a letter, a digit or '_', not with '{0}'")]
    Start(char),
    /// It would be mistaken for a domid.
    #[error("a domain's name can't be a number: '{0}' would be taken for a domain ID")]
    Number(String),
}

impl DomainName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.:+".contains(c);
        let Some(first) = name.chars().next() else {
            return Err(NameError::Empty);
        };
        if let Some(wrong) = name.chars().find(|c| !allowed(*c)) {
            return Err(NameError::Character(wrong));
        }
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong(name.len()));
        }
        if !first.is_ascii_alphanumeric() && first != '_' {
            return Err(NameError::Start(first));
        }
        if name.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NameError::Number(name));
        }
        Ok(Self(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the `n`-th dead domain that `rename-restart` keeps.
    #[must_use]
    pub fn preserved(&self, n: u32) -> Self {
        let suffix = format!("-{n}");
        let kept = self.0.len().min(MAX_NAME - suffix.len());
        Self(format!("{}{suffix}", &self.0[..kept]))
    }
}

impl TryFrom<String> for DomainName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> String {
        name.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names() {
        for name in ["web1", "a", "_x", "x-y.z:w+1", "1a", &"n".repeat(MAX_NAME)] {
            assert!(DomainName::new(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn bad_names() {
        for (name, error) in [
            ("", NameError::Empty),
            ("a b", NameError::Character(' ')),
            ("a/b", NameError::Character('/')),
            ("a\nb", NameError::Character('\n')),
            ("ä", NameError::Character('ä')),
            (".", NameError::Start('.')),
            ("-a", NameError::Start('-')),
            ("17", NameError::Number("17".into())),
            (&"n".repeat(MAX_NAME + 1), NameError::TooLong(MAX_NAME + 1)),
        ] {
            assert_eq!(DomainName::new(name), Err(error), "{name}");
        }
    }

    #[test]
    fn preserved_names_are_names() {
        let long = DomainName::new("n".repeat(MAX_NAME)).expect("name");
        let preserved = long.preserved(12).to_string();
        assert!(DomainName::new(preserved.clone()).is_ok() && preserved.ends_with("n-12"));
    }
}
