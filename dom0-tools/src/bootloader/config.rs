//! What `bootloader`, `bootloader_args` and `bootentry` ask for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Names by which configurations call the boot loader that is built in: those
/// of the programs that it stands for.
const BUILT_IN: [&str; 4] = ["pygrub", "domus-boot", "xenpygrub", "default"];

/// `bootloader=`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootloader {
    /// A program of somebody else's; none: the one that is built in.
    pub program: Option<PathBuf>,
    /// What of the disk is to be booted.
    pub choice: Choice,
    /// The arguments as they are, for a program.
    pub args: Vec<String>,
}

/// What of a disk is to be booted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The entry, by number, id or title; none: the menu's default.
    pub entry: Option<String>,
    /// A kernel in the disk, instead of all menus.
    pub kernel: Option<String>,
    /// Its ramdisk.
    pub ramdisk: Option<String>,
}

/// A word of `bootloader_args` that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// Not known.
    #[error(
        "'{0}' is no argument of the boot loader: --entry=N, --kernel=PATH, --ramdisk=PATH and --args=TEXT are"
    )]
    Unknown(String),
    /// Nothing behind it.
    #[error("'{0}' wants a value")]
    NoValue(String),
}

/// Whether a name means the boot loader that is built in, in whatever directory
/// it is looked for.
#[must_use]
pub fn is_built_in(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name);
    BUILT_IN.contains(&base)
}

impl Choice {
    /// From `bootloader_args`, and the further kernel options among them.
    ///
    /// # Errors
    /// See [`ArgumentError`].
    pub fn parse(args: &[String]) -> Result<(Self, Option<String>), ArgumentError> {
        let (mut choice, mut options) = (Self::default(), None);
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (key, value) = match arg.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            let field = match key {
                "--entry" => &mut choice.entry,
                "--kernel" => &mut choice.kernel,
                "--ramdisk" => &mut choice.ramdisk,
                "--args" => &mut options,
                // pygrub's, without meaning where nobody is asked.
                "-q" | "--quiet" | "--not-really" | "-n" => continue,
                _ => return Err(ArgumentError::Unknown(arg.clone())),
            };
            let value = value.or_else(|| args.next().cloned());
            *field = Some(value.ok_or_else(|| ArgumentError::NoValue(arg.clone()))?);
        }
        Ok((choice, options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Choice, Option<String>), ArgumentError> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Choice::parse(&words)
    }

    #[test]
    fn arguments() {
        let (choice, options) = parse("-q --entry 2 --kernel=/k --args quiet").expect("valid");
        assert_eq!(choice.entry.as_deref(), Some("2"));
        assert_eq!(choice.kernel.as_deref(), Some("/k"));
        assert_eq!(options.as_deref(), Some("quiet"));
        assert_eq!(
            parse("--entry"),
            Err(ArgumentError::NoValue("--entry".into()))
        );
        assert_eq!(
            parse("--boot=x"),
            Err(ArgumentError::Unknown("--boot=x".into()))
        );
    }

    #[test]
    fn names_of_the_one_that_is_built_in() {
        for name in [
            "pygrub",
            "/usr/lib/xen-4.17/bin/pygrub",
            "/usr/bin/domus-boot",
        ] {
            assert!(is_built_in(name), "{name}");
        }
        assert!(!is_built_in("/usr/local/bin/loader"));
    }
}
