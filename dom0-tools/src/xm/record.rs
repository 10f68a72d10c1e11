//! What xm keeps of each domain while it lives: `domains/N.json` in the run
//! directory, for the monitor, for `xm list -l` and for recovery.
//!
//! Law: a record is only a note. Whether the domain lives is the hypervisor's
//! word, and a record counts for it only where the UUID is the same.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use domus_privcmd::pidfile;
use guest_abi::addr::{DomId, Mfn, Port};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{config::DomainConfig, paths, services};

/// A ring that the domain shares with Dom0: its frame, and the domain's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// The frame.
    pub mfn: u64,
    /// The port.
    pub port: u32,
}

impl Ring {
    /// From the builder's numbers.
    #[must_use]
    pub fn new(mfn: Mfn, port: Port) -> Self {
        Self {
            mfn: mfn.0,
            port: port.0,
        }
    }
}

/// What is kept of a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub dom: u16,
    /// Its handle, also where the configuration gave none.
    pub uuid: Uuid,
    /// Seconds since 1970.
    pub start_time: f64,
    /// How often it was restarted since `xm create`.
    pub restarts: u32,
    /// When it was restarted last: seconds since 1970.
    pub last_restart: Option<f64>,
    /// It has ended and is kept as it is: its monitor has no more to do.
    #[serde(default)]
    pub kept: bool,
    /// The xenstore ring.
    pub store: Ring,
    /// The console ring.
    pub console: Ring,
    /// What it was built from.
    pub config: DomainConfig,
}

impl Record {
    /// The domain's number.
    #[must_use]
    pub fn dom(&self) -> DomId {
        DomId(self.dom)
    }

    /// Writes it, replacing an older one at once.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self) -> io::Result<()> {
        let path = path_of(self.dom());
        if let Some(dir) = path.parent() {
            services::make_dir(dir).map_err(io::Error::other)?;
        }
        let new = path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, &path)
    }

    /// The record of a domain.
    #[must_use]
    pub fn load(dom: DomId) -> Option<Self> {
        Self::read(&path_of(dom))
    }

    /// Reads a record.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// All records.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(dir()).into_iter().flatten().flatten();
        let paths = entries.map(|e| e.path());
        let mut all: Vec<Self> = paths
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .filter_map(|p| Self::read(&p))
            .collect();
        all.sort_by_key(|r| r.dom);
        all
    }

    /// Removes it, unless another domain's has taken its place.
    pub fn remove(&self) {
        // Already gone is as good.
        if Self::load(self.dom()).is_some_and(|r| r.uuid == self.uuid) {
            let _ = fs::remove_file(path_of(self.dom()));
        }
        if !self.has_monitor() {
            let _ = fs::remove_file(monitor_lock(self.uuid));
        }
    }

    /// Whether the domain's monitor lives.
    #[must_use]
    pub fn has_monitor(&self) -> bool {
        pidfile::holder(&monitor_lock(self.uuid)).is_some()
    }
}

fn dir() -> PathBuf {
    paths::run_dir().join("domains")
}

/// The file that a domain's monitor locks. It goes by the UUID, which a
/// restart leaves as it is.
#[must_use]
pub fn monitor_lock(uuid: Uuid) -> PathBuf {
    dir().join(format!("{uuid}.monitor"))
}

/// The file of a domain's record.
#[must_use]
pub fn path_of(dom: DomId) -> PathBuf {
    dir().join(format!("{dom}.json"))
}
