//! Disks and network interfaces of domains, from the toolstack's side.
//!
//! ```text
//!   configuration -> images::check    before anything exists
//!                 -> sharing::check   under the devices' lock, with the record
//!                 -> nodes::publish   one transaction: both halves' nodes
//!   monitor       -> supervisor       one blkback and one netback a domain
//!                 -> wait             until the back end has taken the device
//!   detach, end   -> detach           closing, closed, nodes removed
//! ```
//!
//! A device has two directories: the back half is Dom0's and the guest only
//! reads it; the front half is the guest's, which may write anything there.
//!
//! Law: nothing that the guest can write says where a back half is or whether
//! it may go. Paths are made from the domain's number, the kind and the
//! device's number, never read from the front half; what is read there (its
//! `state`, its ring) is only shown.

pub mod describe;
pub mod detach;
pub mod images;
pub mod medium;
pub mod nodes;
pub mod process;
pub mod sharing;
pub mod supervisor;
pub mod wait;

use std::{env, fmt, time::Duration};

use guest_abi::{addr::DomId, errno::Errno, xenbus::XenbusState};

use crate::xenstore::client::{Error, Nodes};

/// How long a half of a device may take, unless `DOMUS_DEVICE_TIMEOUT` says
/// otherwise in seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A disk.
    Vbd,
    /// A network interface.
    Vif,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 2] = [Kind::Vbd, Kind::Vif];

    /// As paths in the store spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Vbd => "vbd",
            Kind::Vif => "vif",
        }
    }

    /// The program that serves such devices.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Kind::Vbd => "blkback",
            Kind::Vif => "netback",
        }
    }

    /// The directory of all back halves for a domain.
    #[must_use]
    pub fn back_dir(self, dom: DomId) -> String {
        format!("/local/domain/0/backend/{}/{dom}", self.name())
    }

    /// Where back ends leave what went wrong.
    #[must_use]
    pub fn error_dir(self, dom: DomId) -> String {
        format!("/local/domain/0/error/backend/{}/{dom}", self.name())
    }
}

/// A device of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    /// Whose.
    pub dom: DomId,
    /// What.
    pub kind: Kind,
    /// Its number: the virtual device's, or the interface's index.
    pub id: u32,
}

impl Device {
    /// A device.
    #[must_use]
    pub const fn new(dom: DomId, kind: Kind, id: u32) -> Self {
        Self { dom, kind, id }
    }

    /// The directory of the guest's half.
    #[must_use]
    pub fn front(&self) -> String {
        let Self { dom, kind, id } = self;
        format!("/local/domain/{dom}/device/{}/{id}", kind.name())
    }

    /// The directory of Dom0's half.
    #[must_use]
    pub fn back(&self) -> String {
        format!("{}/{}", self.kind.back_dir(self.dom), self.id)
    }

    /// Where the back end leaves what went wrong.
    #[must_use]
    pub fn error(&self) -> String {
        format!("{}/{}", self.kind.error_dir(self.dom), self.id)
    }

    /// The state of Dom0's half; `None` where there is no such device.
    ///
    /// # Errors
    /// The store's.
    pub fn back_state(&self, store: &mut impl Nodes) -> Result<Option<XenbusState>, Error> {
        if !store.exists(&self.back())? {
            return Ok(None);
        }
        state_in(store, &self.back()).map(Some)
    }

    /// The state of the guest's half, as the guest says.
    ///
    /// # Errors
    /// The store's.
    pub fn front_state(&self, store: &mut impl Nodes) -> Result<XenbusState, Error> {
        state_in(store, &self.front())
    }

    /// The devices of a kind that a domain has.
    ///
    /// # Errors
    /// The store's.
    pub fn all(store: &mut impl Nodes, dom: DomId, kind: Kind) -> Result<Vec<Self>, Error> {
        let names = match store.list(&kind.back_dir(dom)) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Vec::new(),
            names => names?,
        };
        let mut ids: Vec<u32> = names.iter().filter_map(|n| n.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids.into_iter().map(|id| Self::new(dom, kind, id)).collect())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.id)
    }
}

fn state_in(store: &mut impl Nodes, dir: &str) -> Result<XenbusState, Error> {
    // The guest may have put anything there.
    let text = store.read(&format!("{dir}/state"));
    let text = match text {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Vec::new(),
        text => text?,
    };
    let number = std::str::from_utf8(&text).ok().and_then(|t| t.parse().ok());
    Ok(number
        .and_then(XenbusState::from_number)
        .unwrap_or(XenbusState::Unknown))
}

/// How long to wait for a half of a device.
#[must_use]
pub fn patience() -> Duration {
    let seconds = env::var("DOMUS_DEVICE_TIMEOUT").ok();
    let seconds = seconds.and_then(|s| s.parse::<f64>().ok());
    seconds
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .unwrap_or(PATIENCE)
}
