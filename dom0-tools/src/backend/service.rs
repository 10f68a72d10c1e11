//! A back end's main thread: watches the nodes of one guest's devices of one
//! kind, and takes each device through its states.
//!
//! Law: one device's error is reported at that device and touches no other. A
//! `SIGTERM` ends the process and leaves all states as they are, so that the
//! next process takes the rings up again; the guest's end ends it for good.

mod table;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use domus_privcmd::client::{Client, ClientError};
use guest_abi::addr::DomId;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use tracing::info;

use super::bus::{Attention, Bus, BusError};
use super::machine::Attach;
use crate::xenstore::client as xenstore;
use table::Table;

/// A kind of device. The main thread calls these, never two at once.
pub trait Driver {
    /// `vbd` or `vif`.
    const KIND: &'static str;
    /// One device.
    type Device;
    /// What can go wrong with one.
    type Error: std::error::Error + From<BusError>;

    /// Opens what is behind the device and writes what it can do, for the
    /// front end to read.
    ///
    /// # Errors
    /// Are reported in xenstore, and close the device.
    fn open(&mut self, bus: &mut Bus<'_>) -> Result<Self::Device, Self::Error>;

    /// Whether a front end that is ready may be connected; if not, it is asked
    /// again when a node of the device changes.
    ///
    /// # Errors
    /// Are reported in xenstore, and close the device.
    fn may_connect(
        &mut self,
        _device: &mut Self::Device,
        _bus: &mut Bus<'_>,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }

    /// Maps the rings that the front end's nodes name, binds the ports, writes
    /// what the front end reads when it is connected, and begins to serve.
    ///
    /// # Errors
    /// Are reported in xenstore, and close the device.
    fn connect(
        &mut self,
        device: &mut Self::Device,
        bus: &mut Bus<'_>,
        how: Attach,
    ) -> Result<(), Self::Error>;

    /// Ends the serving and gives rings and ports back. What was begun is
    /// finished or left undone, but never answered undone.
    fn disconnect(&mut self, device: &mut Self::Device);

    /// A node of the device may have changed while it is open.
    ///
    /// # Errors
    /// Are reported in xenstore, and close the device.
    fn changed(
        &mut self,
        _device: &mut Self::Device,
        _bus: &mut Bus<'_>,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    /// A thread of a connected device has called ([`Attention::call`]).
    ///
    /// # Errors
    /// Why the device can't be served any more.
    fn check(&mut self, _device: &mut Self::Device, _bus: &mut Bus<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Why a back end ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] ClientError),
    /// The store.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// The store, while a device was worked on.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The guest.
    #[error("there is no domain {0}")]
    NoDomain(DomId),
    /// The system.
    #[error("the system: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for ServiceError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// A running back end.
pub struct Service<D: Driver> {
    client: Arc<Client>,
    store: xenstore::Client,
    dom: DomId,
    generation: u64,
    hypervisor: OwnedFd,
    signals: SignalFd,
    attention: Attention,
    table: Table<D>,
}

impl<D: Driver> Service<D> {
    /// Connects and takes up the devices that there are. Before other threads
    /// are started: they inherit the signals' mask.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn start(driver: D, client: Client, dom: DomId) -> Result<Self, ServiceError> {
        let signals = catch_signals()?;
        let store = xenstore::Client::connect()?;
        let info = client.domain_info(dom);
        let info = info.map_err(|error| match error.is_no_such_domain() {
            true => ServiceError::NoDomain(dom),
            false => error.into(),
        })?;
        // From here on a mistake of this process can't reach another guest.
        client.restrict(dom)?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut service = Self {
            hypervisor: client.hang_up_fd()?,
            client: Arc::new(client),
            store,
            dom,
            generation: info.generation,
            signals,
            attention: Attention(Arc::new(event)),
            table: Table::new(driver, dom),
        };
        let directory = service.table.directory();
        service.store.watch("@releaseDomain", "domain")?;
        service.store.watch(&directory, "devices")?;
        Ok(service)
    }

    /// Serves until a signal, or the end of the guest or the hypervisor.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn run(mut self) -> Result<(), ServiceError> {
        loop {
            if self.take_events()? && self.guest_has_gone()? {
                info!(dom = %self.dom, "the domain has gone");
                self.table.end();
                return Ok(());
            }
            self.table
                .settle(&mut self.store, Some(&self.client), &self.attention)?;
            if self.wait()? {
                self.table.stop();
                return Ok(());
            }
        }
    }

    /// Notes which devices have changed; whether a domain has gone. All events
    /// that are here, so that a guest that writes its nodes without end makes
    /// its own device wait and nothing grow.
    fn take_events(&mut self) -> Result<bool, ServiceError> {
        let mut released = false;
        while let Some(event) = self.store.next_event(Some(Duration::ZERO))? {
            match event.token.as_str() {
                "domain" => released = true,
                token => self.table.note(token, &event.path),
            }
        }
        Ok(released)
    }

    fn guest_has_gone(&self) -> Result<bool, ServiceError> {
        match self.client.domain_info(self.dom) {
            Ok(info) => Ok(info.dying || info.generation != self.generation),
            Err(error) if error.is_no_such_domain() => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether to end.
    fn wait(&mut self) -> Result<bool, ServiceError> {
        let timeout = self.patience()?;
        let fds = [
            (self.signals.as_fd(), PollFlags::POLLIN),
            (self.hypervisor.as_fd(), PollFlags::empty()),
            (self.attention.0.as_fd(), PollFlags::POLLIN),
            (self.store.as_fd(), PollFlags::POLLIN),
        ];
        let mut fds = fds.map(|(fd, flags)| PollFd::new(fd, flags));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [signal, gone, call, _] = fds.map(|fd| fd.any() == Some(true));
        if gone {
            info!("the hypervisor has ended");
            return Ok(true);
        }
        if call {
            let _ = self.attention.0.read();
            self.table.note_calls();
        }
        Ok(signal && self.signals.read_signal()?.is_some())
    }

    /// How long to wait. Not at all for an event that came while the devices
    /// were worked on: signals are looked at nevertheless.
    fn patience(&mut self) -> Result<PollTimeout, ServiceError> {
        if self.store.has_event()? {
            return Ok(PollTimeout::ZERO);
        }
        let retry = self.table.retry_in(Instant::now());
        Ok(retry.map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        }))
    }
}

fn catch_signals() -> nix::Result<SignalFd> {
    let mut ours = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ours.add(signal);
    }
    ours.thread_block()?;
    SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
