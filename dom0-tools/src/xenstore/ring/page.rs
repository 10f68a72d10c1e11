//! The shared page itself (`struct xenstore_domain_interface`).

use std::{fs::File, io, os::fd::OwnedFd, sync::atomic::Ordering};

use guest_abi::{
    addr::PAGE_SIZE,
    xs_wire::{
        XENSTORE_CONNECTED, XENSTORE_ERROR_NONE, XENSTORE_RECONNECT, XENSTORE_RING_SIZE,
        XENSTORE_SERVER_FEATURE_ERROR, XENSTORE_SERVER_FEATURE_RECONNECTION,
        XenstoreDomainInterface,
    },
};
use std::mem::offset_of;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Features that the daemon offers: a guest may start its connection anew, and
/// may read why it was cut off.
const FEATURES: u32 = XENSTORE_SERVER_FEATURE_RECONNECTION | XENSTORE_SERVER_FEATURE_ERROR;
const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE_SIZE);

/// The page could not be mapped.
#[derive(Debug, thiserror::Error)]
#[error("cannot map the ring's page: {0}")]
pub struct PageError(String);

/// A mapped page.
#[derive(Debug)]
pub struct RingPage {
    region: MmapRegion,
}

macro_rules! words {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $field:ident;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $get(&self) -> u32 {
                self.load(offset_of!(XenstoreDomainInterface, $field))
            }
            /// Shows this value, after everything written before.
            pub fn $set(&self, value: u32) {
                self.store(offset_of!(XenstoreDomainInterface, $field), value);
            }
        )*
    };
}

impl RingPage {
    /// Maps the page at this byte of a domain's memory.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn map(memory: OwnedFd, offset: u64) -> Result<RingPage, PageError> {
        let place = FileOffset::new(File::from(memory), offset);
        let region = MmapRegion::from_file(place, PAGE_LEN);
        let region = region.map_err(|error| PageError(error.to_string()))?;
        Ok(RingPage { region })
    }

    /// A page of its own, shared with nobody but the holders of the same file.
    ///
    /// # Errors
    /// As the file's.
    pub fn of_file(file: &File) -> io::Result<RingPage> {
        let memory = OwnedFd::from(file.try_clone()?);
        RingPage::map(memory, 0).map_err(io::Error::other)
    }

    words! {
        /// Bytes of requests that the daemon has taken.
        req_cons, set_req_cons, req_cons;
        /// Bytes of requests that the guest has put in.
        req_prod, set_req_prod, req_prod;
        /// Bytes of replies that the guest has taken.
        rsp_cons, set_rsp_cons, rsp_cons;
        /// Bytes of replies that the daemon has put in.
        rsp_prod, set_rsp_prod, rsp_prod;
        /// Whether the guest asks to start anew.
        connection, set_connection, connection;
        /// What the daemon offers.
        features, set_features, server_features;
        /// Why the daemon does not serve the guest any more.
        error, set_error, error;
    }

    /// Whether the guest asks to start anew.
    #[must_use]
    pub fn wants_reconnect(&self) -> bool {
        self.connection() == XENSTORE_RECONNECT
    }

    /// Shows that the daemon is there.
    pub fn welcome(&self) {
        self.set_features(FEATURES);
        self.set_error(XENSTORE_ERROR_NONE);
        self.set_connection(XENSTORE_CONNECTED);
    }

    /// Empties the ring, for a connection that starts anew.
    pub fn clear(&self) {
        self.set_req_cons(0);
        self.set_req_prod(0);
        self.set_rsp_cons(0);
        self.set_rsp_prod(0);
    }

    /// Copies request bytes out, from position `at` of the stream on.
    pub fn read_requests(&self, at: u32, bytes: &mut [u8]) {
        let area = offset_of!(XenstoreDomainInterface, req);
        let (first, second) = bytes.split_at_mut(until_wrap(at, bytes.len()));
        self.slice().read_slice(first, area + place(at)).ok();
        self.slice().read_slice(second, area).ok();
    }

    /// Copies request bytes in, as a guest does.
    pub fn write_requests(&self, at: u32, bytes: &[u8]) {
        self.write_area(offset_of!(XenstoreDomainInterface, req), at, bytes);
    }

    /// Copies reply bytes in, at position `at` of the stream.
    pub fn write_replies(&self, at: u32, bytes: &[u8]) {
        self.write_area(offset_of!(XenstoreDomainInterface, rsp), at, bytes);
    }

    /// Copies reply bytes out, as a guest does.
    pub fn read_replies(&self, at: u32, bytes: &mut [u8]) {
        let area = offset_of!(XenstoreDomainInterface, rsp);
        let (first, second) = bytes.split_at_mut(until_wrap(at, bytes.len()));
        self.slice().read_slice(first, area + place(at)).ok();
        self.slice().read_slice(second, area).ok();
    }

    fn write_area(&self, area: usize, at: u32, bytes: &[u8]) {
        let (first, second) = bytes.split_at(until_wrap(at, bytes.len()));
        self.slice().write_slice(first, area + place(at)).ok();
        self.slice().write_slice(second, area).ok();
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.region.as_volatile_slice()
    }

    fn load(&self, offset: usize) -> u32 {
        self.slice().load(offset, Ordering::Acquire).unwrap_or(0)
    }

    fn store(&self, offset: usize, value: u32) {
        self.slice().store(value, offset, Ordering::Release).ok();
    }
}

/// Where in its half of the ring a position of the stream lies.
fn place(at: u32) -> usize {
    at as usize % XENSTORE_RING_SIZE
}

/// How many of `len` bytes from `at` on come before the ring's end.
fn until_wrap(at: u32, len: usize) -> usize {
    len.min(XENSTORE_RING_SIZE - place(at))
}
