//! Using what guests grant to domid 0: by mapping, and by copying.
//!
//! ```text
//! map_grants     the hypervisor pins the grants and says which frames they
//!                are; we map these pages of the domain's memory file
//! (drop)         our mapping goes first, then the hypervisor is told: the
//!                guest never gets a page back that we can still reach
//! copy_grants    the bytes travel through the socket; nothing is mapped
//! ```
//!
//! Law: the guest has the same pages, and may be hostile: each word is read
//! once, and what was read is checked and used.

use std::{
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{Arc, atomic::Ordering},
};

use guest_abi::addr::{DomId, Mfn, PAGE_SIZE};
use vm_memory::AtomicAccess;

use super::{AccessError, Client, ClientError, files::DomainFiles, link::Link, region::Region};
use crate::protocol::{CopyElement, CopyWhat, MAX_COPY_BYTES, MAX_GRANT_BATCH, Reply, Request};

impl Client {
    /// Maps grants of domain `dom`, one after the other, all of them or none.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with `EACCES` for what is not granted, or not
    /// for writing, `ESRCH` for no such domain, `ENOSPC` beyond the limit of a
    /// connection, `EINVAL` for no grant of that number; or
    /// [`ClientError::Map`].
    pub fn map_grants(
        &self,
        dom: u16,
        refs: &[u32],
        write: bool,
    ) -> Result<GrantMapping, ClientError> {
        let (known, has_file) = self.files.known(dom, write);
        let request = Request::GrantMap {
            dom,
            refs: refs.to_vec(),
            write,
            has_file,
        };
        let (reply, fds) = self.call(&request)?;
        let Reply::Grants {
            generation,
            base_mfn,
            grants,
        } = &reply
        else {
            return Err(ClientError::unexpected(&request, &reply));
        };
        // From here on the handles go back by themselves.
        let held = Held {
            link: Arc::clone(&self.link),
            handles: grants.iter().map(|(handle, _)| *handle).collect(),
        };
        let files = match fds.into_iter().next() {
            Some(fd) => Some(self.files.enter(dom, *generation, write, fd)),
            None => known,
        };
        let unexpected = || ClientError::unexpected(&request, &reply);
        let files = files.ok_or_else(unexpected)?;
        let file: &OwnedFd = files.get(write).ok_or_else(unexpected)?;
        let offset = |(_, frame): &(u32, u64)| {
            let index = Mfn(*frame).checked_offset_from(Mfn(*base_mfn))?;
            index.checked_mul(PAGE_SIZE)
        };
        let offsets: Option<Vec<u64>> = grants.iter().map(offset).collect();
        let offsets = offsets
            .filter(|offsets| offsets.len() == refs.len())
            .ok_or_else(unexpected)?;
        let region = Region::map(file, &offsets, write)
            .map_err(|source| ClientError::Map { dom, source })?;
        Ok(GrantMapping {
            region,
            held,
            dom,
            generation: *generation,
            _files: files,
        })
    }

    /// Copies to and from grants of domain `dom`, in their order. The result
    /// has a `GNTST_*` for each; one that failed changes nothing.
    ///
    /// # Errors
    /// [`ClientError`]: then some may have been done.
    pub fn copy_grants(
        &self,
        dom: u16,
        copies: &mut [GrantCopy<'_>],
    ) -> Result<Vec<i16>, ClientError> {
        let mut statuses = Vec::with_capacity(copies.len());
        let mut rest = copies;
        while !rest.is_empty() {
            let (batch, later) = rest.split_at_mut(batch_len(rest));
            self.copy_batch(dom, batch, &mut statuses)?;
            rest = later;
        }
        Ok(statuses)
    }

    fn copy_batch(
        &self,
        dom: u16,
        batch: &mut [GrantCopy<'_>],
        statuses: &mut Vec<i16>,
    ) -> Result<(), ClientError> {
        let request = Request::GrantCopy {
            dom,
            copies: batch.iter().map(GrantCopy::element).collect(),
        };
        let (reply, _) = self.call(&request)?;
        let copied = match reply {
            Reply::Copied(copied) if copied.len() == batch.len() => copied,
            other => return Err(ClientError::unexpected(&request, &other)),
        };
        for (copy, (status, bytes)) in batch.iter_mut().zip(copied) {
            statuses.push(status);
            if let CopyData::Read(buf) = &mut copy.data
                && status == 0
            {
                if buf.len() != bytes.len() {
                    let reply = Reply::Copied(vec![(status, bytes)]);
                    return Err(ClientError::unexpected(&request, &reply));
                }
                buf.copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    /// Gives up all but domain `dom`'s information, event channels and grants,
    /// for the rest of the connection's life.
    ///
    /// # Errors
    /// `ESRCH` for no such domain, `EPERM` if restricted to another already.
    pub fn restrict(&self, dom: DomId) -> Result<(), ClientError> {
        let request = Request::Restrict { dom: dom.0 };
        match self.call(&request)? {
            (Reply::Done, _) => Ok(()),
            (reply, _) => Err(ClientError::unexpected(&request, &reply)),
        }
    }
}

/// How many of the copies, one at least, go into one request.
fn batch_len(copies: &[GrantCopy<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |copy: &&GrantCopy<'_>| {
        bytes += copy.data.len();
        bytes <= MAX_COPY_BYTES
    };
    let fitting = copies.iter().take(MAX_GRANT_BATCH).take_while(fits).count();
    fitting.max(1)
}

/// One element of [`Client::copy_grants`].
#[derive(Debug)]
pub struct GrantCopy<'a> {
    /// The grant.
    pub gref: u32,
    /// The first byte in its page.
    pub offset: u16,
    /// Our bytes. They may not cross the page's end.
    pub data: CopyData<'a>,
}

/// Which way a [`GrantCopy`] goes.
#[derive(Debug)]
pub enum CopyData<'a> {
    /// Out of the granted page.
    Read(&'a mut [u8]),
    /// Into the granted page.
    Write(&'a [u8]),
}

impl CopyData<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(buf) => buf.len(),
            Self::Write(bytes) => bytes.len(),
        }
    }
}

impl GrantCopy<'_> {
    fn element(&self) -> CopyElement {
        let what = match &self.data {
            // More than a page is refused there, not cut short here.
            CopyData::Read(buf) => CopyWhat::Read(u16::try_from(buf.len()).unwrap_or(u16::MAX)),
            CopyData::Write(bytes) => CopyWhat::Write(bytes.to_vec()),
        };
        CopyElement {
            gref: self.gref,
            offset: self.offset,
            what,
        }
    }
}

/// Mappings that the hypervisor counts for us; dropped, they are given back.
#[derive(Debug)]
struct Held {
    link: Arc<Link>,
    handles: Vec<u32>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let handles = std::mem::take(&mut self.handles);
        if !handles.is_empty() {
            // If this does not get through then the connection has ended, and
            // all its mappings with it.
            let _ = self.link.call(&Request::GrantUnmap { handles });
        }
    }
}

/// Granted pages in this process, one after the other. Dropped, the mapping
/// ends and the guest may have its pages back.
///
/// The guest sees and changes the same bytes: there is no reference to them,
/// only copies out and in. Pointers from [`as_ptr`](Self::as_ptr) and
/// [`part`](Self::part) are for system calls that do I/O on the pages, and are
/// valid until the mapping is dropped.
#[derive(Debug)]
pub struct GrantMapping {
    // Dropped in this order: first we reach the pages no more, then the
    // hypervisor is told.
    region: Region,
    held: Held,
    dom: u16,
    generation: u64,
    _files: Arc<DomainFiles>,
}

impl GrantMapping {
    /// The first byte's address.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr()
    }

    /// Its length in bytes: 4096 for each grant.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // there is no mapping of nothing
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// How many grants it consists of.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.held.handles.len()
    }

    /// Whether it may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.region.is_writable()
    }

    /// The granting domain, and its generation.
    #[must_use]
    pub fn domain(&self) -> (DomId, u64) {
        (DomId(self.dom), self.generation)
    }

    /// The address of `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub fn part(&self, offset: usize, len: usize) -> Result<NonNull<u8>, AccessError> {
        self.region.part(offset, len)
    }

    /// Copies out, once.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), AccessError> {
        self.region.read(offset, buf)
    }

    /// Copies in.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        self.region.write(offset, bytes)
    }

    /// Sets bytes.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), AccessError> {
        self.region.fill(offset, len, byte)
    }

    /// Reads one aligned word.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<T, AccessError> {
        self.region.load(offset, order)
    }

    /// Writes one aligned word.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn store<T: AtomicAccess>(
        &self,
        offset: usize,
        value: T,
        order: Ordering,
    ) -> Result<(), AccessError> {
        self.region.store(offset, value, order)
    }
}
