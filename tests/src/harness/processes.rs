//! Processes of an installation, and what they hold.

use std::{fs, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A process, by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its arguments, for messages.
    pub command: String,
}

/// What a process holds, to be compared with what it held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Memory in use that is its own, in KiB (`RssAnon`).
    pub anonymous_kib: u64,
    /// Shared memory that it has mapped, in KiB (`RssShmem`).
    pub shared_kib: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings.
    pub mappings: usize,
}

impl Process {
    /// The living processes whose `DOMUS_RUN_DIR` is this: nobody else's.
    #[must_use]
    pub fn all_of(run_dir: &Path) -> Vec<Self> {
        let mark = format!("DOMUS_RUN_DIR={}", run_dir.display());
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| has_in_environment(*pid, mark.as_bytes()))
            .map(Self::of)
            .collect()
    }

    /// The process of this number.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        Self { pid, command }
    }

    /// Whether it lives (a zombie does not).
    #[must_use]
    pub fn lives(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        status.is_ok_and(|text| !text.contains("State:\tZ"))
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        assert!(self.pid > 1, "{self:?}");
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
    }

    /// What it holds now.
    ///
    /// # Panics
    /// When it does not live.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let dir = format!("/proc/{}", self.pid);
        let entries = |what: &str| fs::read_dir(format!("{dir}/{what}")).map(Iterator::count);
        let read = || -> std::io::Result<Footprint> {
            let status = fs::read_to_string(format!("{dir}/status"))?;
            Ok(Footprint {
                anonymous_kib: field(&status, "RssAnon:"),
                shared_kib: field(&status, "RssShmem:"),
                descriptors: entries("fd")?,
                threads: entries("task")?,
                mappings: fs::read_to_string(format!("{dir}/maps"))?.lines().count(),
            })
        };
        read().unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }
}

fn has_in_environment(pid: i32, mark: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|one| one == mark)
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {status}"))
}
