//! Finding a device in xenstore, and the front end's half of the handshake.
//!
//! Each device is two directories, one of each half, that name each other:
//!
//! ```text
//!   /local/domain/5/device/vbd/51712         /local/domain/0/backend/vbd/5/51712
//!     backend    = /local/domain/0/back...     frontend = /local/domain/5/dev...
//!     backend-id = 0                           frontend-id = 5
//!     state      = 4           <- each half writes its own ->      state = 4
//!     ring-ref, event-channel, ...             sectors, feature-..., ...
//! ```
//!
//! The usual way, states of [`XenbusState`] and who moves:
//!
//! ```text
//!   front end                      back end
//!   Initialising                   Initialising, InitWait  (it tells its features)
//!   Initialised or Connected       (we told ring and event channel)
//!                                  Connected               (it mapped the ring)
//!   Connected
//! ```
//!
//! A back end that ends says `Closing` and `Closed`; one that comes back says
//! `InitWait`, and it all starts again: [`Phase::step`] has the rules.

mod link;

use core::fmt;

pub use link::{Phase, Step};

use super::{
    doorbell::wait_any,
    event,
    grant::{Access, GrantError, Grants},
    page::Page,
    text::Text,
    xenstore::{StoreError, Tx, Watch, Xenstore},
};
use crate::{
    addr::{DomId, GrantRef, Port},
    errno::Errno,
    xenbus::XenbusState,
};

/// A path in xenstore, of a device's directory.
pub type Path = Text<128>;

/// What a driver needs of the kernel around it.
#[derive(Debug)]
pub struct Bus {
    /// The connection to xenstore.
    pub store: Xenstore,
    /// The domain's grant table.
    pub grants: Grants,
}

impl Bus {
    /// Sleeps until xenstore has news, one of `ports` is pending, or
    /// `deadline` (ns of system time; 0 = never). May return early.
    ///
    /// # Errors
    /// Xenstore's; [`BusError::Event`] for a port that can't be.
    pub fn wait(&mut self, ports: &[Option<Port>], deadline: u64) -> Result<(), BusError> {
        if self.store.has_news()? {
            return Ok(());
        }
        let store = [Some(self.store.port())];
        wait_any(&[&store, ports], deadline).map_err(BusError::Event)
    }
}

/// Why a device is not there, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusError {
    /// Xenstore's.
    Store(StoreError),
    /// The grant table's.
    Grant(GrantError),
    /// An event channel could not be had.
    Event(Errno),
    /// The domain has no such device.
    NoDevice,
    /// The back end is in a state in which it will not connect.
    Backend(XenbusState),
    /// The back end did not come in time.
    TimedOut(XenbusState),
}

impl From<StoreError> for BusError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<GrantError> for BusError {
    fn from(error: GrantError) -> Self {
        Self::Grant(error)
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Grant(error) => error.fmt(f),
            Self::Event(errno) => write!(f, "no event channel to the back end: {errno}"),
            Self::NoDevice => f.write_str("the domain has no such device"),
            Self::Backend(state) => write!(f, "the back end is {state:?}"),
            Self::TimedOut(state) => write!(f, "the back end stays {state:?}"),
        }
    }
}

impl core::error::Error for BusError {}

/// A front end's directory, and the back end's that it names.
#[derive(Debug)]
pub struct Device {
    front: Path,
    back: Path,
    domain: DomId,
    watch: Watch,
}

impl Device {
    /// The device `id` of a kind (`vbd`, `vif`), watched from now on.
    ///
    /// # Errors
    /// [`BusError::NoDevice`]; xenstore's.
    pub fn open(store: &mut Xenstore, kind: &str, id: u32) -> Result<Self, BusError> {
        let front = path(&format_args!("device/{kind}/{id}"))?;
        let back = store.read_text(Tx::NONE, &format_args!("{front}/backend"));
        let back: Path = match back {
            Err(StoreError::Refused(Errno::ENOENT)) => return Err(BusError::NoDevice),
            other => other?,
        };
        let domain = store.read_number(Tx::NONE, &format_args!("{front}/backend-id"))?;
        let watch = store.watch(&format_args!("{back}/state"))?;
        Ok(Self {
            front,
            back,
            domain: DomId(domain),
            watch,
        })
    }

    /// The number of the `nth` device of a kind, in xenstore's order.
    ///
    /// # Errors
    /// [`BusError::NoDevice`]; xenstore's.
    pub fn find(store: &mut Xenstore, kind: &str, nth: usize) -> Result<u32, BusError> {
        let names = match store.directory(Tx::NONE, &format_args!("device/{kind}")) {
            Err(StoreError::Refused(Errno::ENOENT)) => return Err(BusError::NoDevice),
            other => other?,
        };
        let mut ids = names.filter_map(|name| name.parse().ok());
        ids.nth(nth).ok_or(BusError::NoDevice)
    }

    /// The domain of the back end.
    #[must_use]
    pub fn backend_domain(&self) -> DomId {
        self.domain
    }

    /// Our directory.
    #[must_use]
    pub fn front(&self) -> &str {
        &self.front
    }

    /// The back end's directory.
    #[must_use]
    pub fn back(&self) -> &str {
        &self.back
    }

    /// The back end's state now; a number that is none is `Unknown`.
    ///
    /// # Errors
    /// Xenstore's.
    pub fn backend_state(&self, store: &mut Xenstore) -> Result<XenbusState, StoreError> {
        let number = store.number_or(Tx::NONE, &format_args!("{}/state", self.back), 0)?;
        Ok(XenbusState::from_number(number).unwrap_or(XenbusState::Unknown))
    }

    /// The back end's state, if it may have changed since this was last asked.
    ///
    /// # Errors
    /// Xenstore's.
    pub fn news(&self, store: &mut Xenstore) -> Result<Option<XenbusState>, StoreError> {
        match store.fired(&self.watch)? {
            true => self.backend_state(store).map(Some),
            false => Ok(None),
        }
    }

    /// What to do now, if the back end's state may have changed since this was
    /// last asked.
    ///
    /// # Errors
    /// Xenstore's.
    pub fn next_step(&self, store: &mut Xenstore, phase: Phase) -> Result<Step, StoreError> {
        match self.news(store)? {
            Some(state) => {
                let online = self.told(store, "online", 0)? != 0;
                Ok(phase.step(state, online))
            }
            None => Ok(Step::Nothing),
        }
    }

    /// Says our state.
    ///
    /// # Errors
    /// Xenstore's.
    pub fn set_state(&self, store: &mut Xenstore, state: XenbusState) -> Result<(), StoreError> {
        self.tell(store, Tx::NONE, "state", &state.number())
    }

    /// Writes a node of ours.
    ///
    /// # Errors
    /// Xenstore's.
    pub fn tell(
        &self,
        store: &mut Xenstore,
        tx: Tx,
        node: &str,
        value: &dyn fmt::Display,
    ) -> Result<(), StoreError> {
        store.write(tx, &format_args!("{}/{node}", self.front), value)
    }

    /// A number of the back end's, or `default` where it tells none.
    ///
    /// # Errors
    /// Xenstore's.
    pub fn told(&self, store: &mut Xenstore, node: &str, default: u64) -> Result<u64, StoreError> {
        store.number_or(Tx::NONE, &format_args!("{}/{node}", self.back), default)
    }

    /// Sleeps until the back end is in one of `states`.
    ///
    /// # Errors
    /// [`BusError::TimedOut`] at `deadline` (ns of system time); xenstore's.
    pub fn wait_for(
        &self,
        store: &mut Xenstore,
        states: &[XenbusState],
        deadline: u64,
    ) -> Result<XenbusState, BusError> {
        loop {
            // Taken before the state is read: a change after that fires again.
            store.fired(&self.watch)?;
            let state = self.backend_state(store)?;
            if states.contains(&state) {
                return Ok(state);
            }
            if store.now() >= deadline {
                return Err(BusError::TimedOut(state));
            }
            store.wait(deadline)?;
        }
    }

    /// A new event channel for the back end to bind to.
    ///
    /// # Errors
    /// [`BusError::Event`].
    pub fn open_port(&self) -> Result<Port, BusError> {
        event::alloc_unbound(self.domain).map_err(BusError::Event)
    }

    /// Grants a page to the back end's domain, to read and write.
    ///
    /// # Errors
    /// The grant table's.
    pub fn grant(&self, grants: &Grants, page: &Page) -> Result<GrantRef, BusError> {
        Ok(grants.give(self.domain, page.mfn(), Access::ReadWrite)?)
    }

    /// Stops watching the back end.
    ///
    /// # Errors
    /// Xenstore's.
    pub fn close(self, store: &mut Xenstore) -> Result<(), StoreError> {
        store.unwatch(self.watch, &format_args!("{}/state", self.back))
    }
}

fn path(what: &dyn fmt::Display) -> Result<Path, StoreError> {
    Path::format(what).ok_or(StoreError::TooLong)
}
