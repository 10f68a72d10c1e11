//! What happens when a domain has shut down: `on_poweroff` and its kin.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the monitor of a domain does once it has shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Free all that it had.
    Destroy,
    /// Destroy it and build it anew from the same configuration.
    Restart,
    /// Leave it as it is, for somebody to look at; it keeps its memory.
    Preserve,
    /// Keep the dead domain under another name and build a new one.
    RenameRestart,
    /// Write its memory to a file, then destroy it. Only for `on_crash`.
    CoredumpDestroy,
    /// Write its memory to a file, then restart it. Only for `on_crash`.
    CoredumpRestart,
}

impl Action {
    const NAMES: [(&'static str, Action); 6] = [
        ("destroy", Action::Destroy),
        ("restart", Action::Restart),
        ("preserve", Action::Preserve),
        ("rename-restart", Action::RenameRestart),
        ("coredump-destroy", Action::CoredumpDestroy),
        ("coredump-restart", Action::CoredumpRestart),
    ];

    /// The action of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Action> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, action)| *action)
    }

    /// Its name in configuration files.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, action)| *action == self);
        found.map_or("destroy", |(name, _)| name)
    }

    /// Whether it writes a core file.
    #[must_use]
    pub fn dumps_core(self) -> bool {
        matches!(self, Action::CoredumpDestroy | Action::CoredumpRestart)
    }

    /// The names that a key may have, for a message.
    #[must_use]
    pub fn choices(with_coredump: bool) -> String {
        let names = Self::NAMES
            .iter()
            .filter(|(_, a)| with_coredump || !a.dumps_core());
        names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_there_and_back() {
        for (name, action) in Action::NAMES {
            assert_eq!(Action::named(name), Some(action));
            assert_eq!(action.to_string(), name);
        }
        assert_eq!(Action::named("reboot"), None);
        assert!(!Action::choices(false).contains("coredump"));
    }
}
