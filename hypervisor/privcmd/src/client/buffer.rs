//! Copying between grants and a buffer that the hypervisor has mapped too.
//!
//! ```text
//!   this process             the hypervisor            the guest
//!   CopyBuffer (mapped) <==> the same memory <-------> granted pages
//!                  one message for a batch, no bytes in it
//! ```
//!
//! Law: the hypervisor touches the buffer only while it serves a request that
//! names it, and such a request has the buffer exclusively here. So its bytes
//! are ordinary memory to this process: no guest ever sees them.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use super::{Client, ClientError, link::Link, region::Region};
use crate::protocol::{MAX_GRANT_BATCH, Reply, Request};

pub use crate::protocol::GrantPart;

/// Memory of this process that grants are copied to and from. Dropped, the
/// hypervisor forgets it.
#[derive(Debug)]
pub struct CopyBuffer {
    link: Arc<Link>,
    id: u32,
    region: Region,
}

impl Deref for CopyBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is mapped as long as `self` lives. The hypervisor
        // alone has it too, and touches it only during calls that borrow the
        // buffer mutably: see the module's law.
        unsafe { std::slice::from_raw_parts(self.region.as_ptr(), self.region.len()) }
    }
}

impl DerefMut for CopyBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and writable.
        unsafe { std::slice::from_raw_parts_mut(self.region.as_ptr(), self.region.len()) }
    }
}

impl Drop for CopyBuffer {
    fn drop(&mut self) {
        // If this does not get through then the connection has ended, and the
        // buffer with it.
        let _ = self
            .link
            .call(&Request::CloseCopyBuffer { buffer: self.id });
    }
}

impl Client {
    /// A zeroed buffer of so many bytes, rounded up to pages.
    ///
    /// # Errors
    /// `E2BIG` beyond what one may have, `ENOSPC` for one too many, or
    /// [`ClientError::Buffer`].
    pub fn copy_buffer(&self, bytes: usize) -> Result<CopyBuffer, ClientError> {
        let pages = bytes.div_ceil(4096).max(1);
        let request = Request::CopyBuffer {
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
        };
        let (reply, fds) = self.call(&request)?;
        let (Reply::CopyBuffer(id), Some(fd)) = (&reply, fds.into_iter().next()) else {
            return Err(ClientError::unexpected(&request, &reply));
        };
        let offsets: Vec<u64> = (0..pages as u64).map(|page| page * 4096).collect();
        let region = Region::map(&fd, &offsets, true).map_err(ClientError::Buffer)?;
        Ok(CopyBuffer {
            link: Arc::clone(&self.link),
            id: *id,
            region,
        })
    }

    /// Copies parts of domain `dom`'s grants, one behind the other, to the start
    /// of `buffer`. A `GNTST_*` for each; the bytes of one that failed stay.
    ///
    /// # Errors
    /// [`ClientError`]: then some may have been copied.
    pub fn copy_from_grants(
        &self,
        dom: u16,
        parts: &[GrantPart],
        buffer: &mut CopyBuffer,
    ) -> Result<Vec<i16>, ClientError> {
        self.copy_by(dom, parts, buffer, false)
    }

    /// Copies bytes, one part behind the other, from the start of `buffer` to
    /// domain `dom`'s grants. A `GNTST_*` for each.
    ///
    /// # Errors
    /// [`ClientError`]: then some may have been copied.
    pub fn copy_to_grants(
        &self,
        dom: u16,
        parts: &[GrantPart],
        buffer: &mut CopyBuffer,
    ) -> Result<Vec<i16>, ClientError> {
        self.copy_by(dom, parts, buffer, true)
    }

    fn copy_by(
        &self,
        dom: u16,
        parts: &[GrantPart],
        buffer: &mut CopyBuffer,
        write: bool,
    ) -> Result<Vec<i16>, ClientError> {
        let mut statuses = Vec::with_capacity(parts.len());
        let mut at = 0_u32;
        for batch in parts.chunks(MAX_GRANT_BATCH) {
            let request = Request::GrantCopyBuffer {
                dom,
                buffer: buffer.id,
                at,
                write,
                parts: batch.to_vec(),
            };
            match self.call(&request)? {
                (Reply::Statuses(each), _) if each.len() == batch.len() => statuses.extend(each),
                (reply, _) => return Err(ClientError::unexpected(&request, &reply)),
            }
            at += batch.iter().map(|part| u32::from(part.len)).sum::<u32>();
        }
        Ok(statuses)
    }
}
