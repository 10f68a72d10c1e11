//! What a back end reads and writes in xenstore for one device.
//!
//! ```text
//! /local/domain/0/backend/KIND/N/DEV    ours: the tools make it, we add to it
//! /local/domain/N/device/KIND/DEV       the guest's: hostile
//! /local/domain/0/error/backend/KIND/N/DEV/error    what went wrong
//! ```

use std::{fmt::Display, io, str::FromStr, sync::Arc};

use domus_privcmd::client::{Client, ClientError};
use guest_abi::{addr::DomId, xenbus::XenbusState};
use nix::sys::eventfd::EventFd;

use crate::xenstore::client::{self, Nodes};

/// Nodes by absolute path: xenstored's, or a test's.
pub trait Store {
    /// A node's value, or `None` if there is no such node.
    ///
    /// # Errors
    /// [`BusError::Store`].
    fn find(&mut self, path: &str) -> Result<Option<String>, BusError>;

    /// Sets a node's value.
    ///
    /// # Errors
    /// [`BusError::Store`].
    fn write(&mut self, path: &str, value: &str) -> Result<(), BusError>;

    /// Removes a node, if it is there, and those below it.
    ///
    /// # Errors
    /// [`BusError::Store`].
    fn remove(&mut self, path: &str) -> Result<(), BusError>;

    /// The names of a node's children; none if there is no such node.
    ///
    /// # Errors
    /// [`BusError::Store`].
    fn children(&mut self, path: &str) -> Result<Vec<String>, BusError>;

    /// Asks to hear of changes at or below `path`.
    ///
    /// # Errors
    /// [`BusError::Store`].
    fn watch(&mut self, path: &str, token: &str) -> Result<(), BusError>;

    /// Takes a watch back.
    ///
    /// # Errors
    /// [`BusError::Store`].
    fn unwatch(&mut self, path: &str, token: &str) -> Result<(), BusError>;
}

impl Store for client::Client {
    fn find(&mut self, path: &str) -> Result<Option<String>, BusError> {
        match Nodes::find(self, path) {
            // A guest may put any bytes into its nodes.
            Err(client::Error::NotText { path }) => Err(BusError::Malformed {
                path,
                value: "(not text)".into(),
                wanted: "text",
            }),
            other => Ok(other?),
        }
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), BusError> {
        Ok(Nodes::write(self, path, value)?)
    }

    fn remove(&mut self, path: &str) -> Result<(), BusError> {
        match Nodes::rm(self, path) {
            Err(error) if error.errno() == Some(guest_abi::errno::Errno::ENOENT) => Ok(()),
            other => Ok(other?),
        }
    }

    fn children(&mut self, path: &str) -> Result<Vec<String>, BusError> {
        match Nodes::list(self, path) {
            Err(error) if error.errno() == Some(guest_abi::errno::Errno::ENOENT) => Ok(Vec::new()),
            other => Ok(other?),
        }
    }

    fn watch(&mut self, path: &str, token: &str) -> Result<(), BusError> {
        Ok(client::Client::watch(self, path, token)?)
    }

    fn unwatch(&mut self, path: &str, token: &str) -> Result<(), BusError> {
        Ok(client::Client::unwatch(self, path, token)?)
    }
}

/// Why a node can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The store said no, or is gone.
    #[error(transparent)]
    Store(#[from] client::Error),
    /// A node that has to be there is not.
    #[error("{path} is missing")]
    Missing {
        /// The node.
        path: String,
    },
    /// A node does not hold what it should.
    #[error("{path} = \"{value}\" is not {wanted}")]
    Malformed {
        /// The node.
        path: String,
        /// Its value, shortened.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The hypervisor said no.
    #[error(transparent)]
    Hypervisor(#[from] ClientError),
    /// The system said no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Its answer.
        source: io::Error,
    },
}

impl BusError {
    /// Whether the store itself is lost, so that nothing more can be said.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Store(client::Error::Unreachable { .. } | client::Error::Interrupted)
        )
    }
}

/// How threads call the main thread to look after their device
/// ([`Driver::check`](super::Driver::check)).
#[derive(Clone, Debug)]
pub struct Attention(pub(super) Arc<EventFd>);

impl Attention {
    /// Calls.
    pub fn call(&self) {
        // Can only fail when a call is there already.
        let _ = self.0.write(1);
    }
}

/// One device's two directories, while the main thread works on the device.
pub struct Bus<'a> {
    pub(super) store: &'a mut dyn Store,
    /// For grants and ports; `None` in tests without a hypervisor.
    pub(super) client: Option<&'a Arc<Client>>,
    pub(super) attention: &'a Attention,
    pub(super) dom: DomId,
    pub(super) kind: &'static str,
    pub(super) device: &'a str,
    pub(super) backend: String,
    pub(super) frontend: String,
}

impl Bus<'_> {
    /// The guest.
    #[must_use]
    pub const fn dom(&self) -> DomId {
        self.dom
    }

    /// The device's name in xenstore, which is its number.
    #[must_use]
    pub const fn device(&self) -> &str {
        self.device
    }

    /// The back end's directory.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// The front end's directory.
    #[must_use]
    pub fn frontend(&self) -> &str {
        &self.frontend
    }

    /// The connection to the hypervisor.
    ///
    /// # Panics
    /// In a test that has none.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        self.client.expect("a hypervisor")
    }

    /// For the device's threads.
    #[must_use]
    pub fn attention(&self) -> Attention {
        self.attention.clone()
    }

    /// The store, for other nodes.
    pub fn store(&mut self) -> &mut dyn Store {
        self.store
    }

    /// A node of the back end's directory.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn find(&mut self, node: &str) -> Result<Option<String>, BusError> {
        self.store.find(&format!("{}/{node}", self.backend))
    }

    /// A node of the back end's directory that has to be there.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn read(&mut self, node: &str) -> Result<String, BusError> {
        let path = format!("{}/{node}", self.backend);
        self.store.find(&path)?.ok_or(BusError::Missing { path })
    }

    /// Sets a node of the back end's directory.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn write(&mut self, node: &str, value: impl Display) -> Result<(), BusError> {
        let path = format!("{}/{node}", self.backend);
        self.store.write(&path, &value.to_string())
    }

    /// Removes a node of the back end's directory.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn remove(&mut self, node: &str) -> Result<(), BusError> {
        self.store.remove(&format!("{}/{node}", self.backend))
    }

    /// A node of the front end's directory, of which nothing may be believed.
    ///
    /// # Errors
    /// See [`BusError`].
    pub fn find_front(&mut self, node: &str) -> Result<Option<String>, BusError> {
        self.store.find(&format!("{}/{node}", self.frontend))
    }

    /// A number of the front end's directory, or `None` if it is not there.
    ///
    /// # Errors
    /// [`BusError::Malformed`] if it is no such number.
    pub fn find_front_number<T: FromStr>(&mut self, node: &str) -> Result<Option<T>, BusError> {
        let path = format!("{}/{node}", self.frontend);
        let Some(value) = self.store.find(&path)? else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(BusError::Malformed {
                path,
                value: value.chars().take(40).collect(),
                wanted: "a number in range",
            }),
        }
    }

    /// A number of the front end's directory that has to be there.
    ///
    /// # Errors
    /// [`BusError::Missing`], [`BusError::Malformed`].
    pub fn read_front_number<T: FromStr>(&mut self, node: &str) -> Result<T, BusError> {
        let path = format!("{}/{node}", self.frontend);
        self.find_front_number(node)?
            .ok_or(BusError::Missing { path })
    }

    /// The state of the back end, as its node says.
    pub(super) fn mine(&mut self) -> Result<XenbusState, BusError> {
        Ok(state_of(self.find("state")?))
    }

    /// The state of the front end, as its node says.
    pub(super) fn theirs(&mut self) -> Result<XenbusState, BusError> {
        match self.find_front("state") {
            Err(BusError::Malformed { .. }) => Ok(XenbusState::Unknown),
            other => Ok(state_of(other?)),
        }
    }

    pub(super) fn set_state(&mut self, state: XenbusState) -> Result<(), BusError> {
        self.write("state", state.number())
    }

    /// Says in xenstore what went wrong, where people and the tools look.
    pub(super) fn report(&mut self, error: &dyn Display) -> Result<(), BusError> {
        let text = error.to_string();
        let path = self.error_path();
        self.store.write(&format!("{path}/error"), &text)?;
        self.write("hotplug-error", &text)?;
        self.write("hotplug-status", "error")
    }

    /// Takes a report back.
    pub(super) fn clear_report(&mut self) -> Result<(), BusError> {
        let path = self.error_path();
        self.store.remove(&path)?;
        self.remove("hotplug-error")
    }

    fn error_path(&self) -> String {
        let Self {
            kind, dom, device, ..
        } = self;
        format!("/local/domain/0/error/backend/{kind}/{dom}/{device}")
    }
}

fn state_of(node: Option<String>) -> XenbusState {
    node.and_then(|value| value.trim().parse().ok())
        .and_then(XenbusState::from_number)
        .unwrap_or(XenbusState::Unknown)
}
