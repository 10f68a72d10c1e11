//! Using pages that another domain granted: `grant_table_op` from the other
//! side. Copying needs no mapping and is what to prefer.
//!
//! Errors of all: `EFAULT`; the elements' own are the `GNTST_*` returned.
//!
//! ```no_run
//! use guest_abi::{
//!     addr::{DomId, GrantRef},
//!     kernel::{foreign::{self, ForeignError}, page::PagePool},
//! };
//!
//! static PAGES: PagePool<1> = PagePool::new();
//!
//! /// The first 16 bytes of a page that `peer` granted.
//! fn greeting(peer: DomId, gref: GrantRef) -> Result<[u8; 16], ForeignError> {
//!     let page = PAGES.take().expect("a page of ours");
//!     let mut copy = [0; 16];
//!     // SAFETY: the page is ours, and nothing is in it yet.
//!     unsafe { foreign::copy_in(peer, gref, page.mfn(), 0, 16) }?;
//!     page.read(0, &mut copy).expect("inside the page");
//!     Ok(copy)
//! }
//! ```

use super::{boot, hypercall};
use crate::{
    addr::{DomId, GrantRef, GuestVirt, Mfn},
    errno::Errno,
    grant_table::*,
};

/// Why a granted page can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignError {
    /// The hypercall failed.
    Refused(Errno),
    /// A `GNTST_*` that is not `GNTST_okay`.
    Status(i16),
}

impl core::fmt::Display for ForeignError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Refused(errno) => errno.fmt(f),
            Self::Status(status) => f.write_str(gntst_text(*status)),
        }
    }
}

impl core::error::Error for ForeignError {}

/// A page that is mapped; ended by [`unmap`].
#[derive(Debug)]
#[must_use = "the other domain can't take back what is mapped"]
pub struct Mapping {
    handle: u32,
    at: GuestVirt,
}

fn checked(status: i16) -> Result<(), ForeignError> {
    match status {
        GNTST_OKAY => Ok(()),
        other => Err(ForeignError::Status(other)),
    }
}

fn one<T>(command: u32, argument: &mut T) -> Result<(), ForeignError> {
    let batch = core::slice::from_mut(argument);
    // SAFETY: called with the command's type only, below.
    unsafe { hypercall::grant_table_op(command, batch) }.map_err(ForeignError::Refused)?;
    Ok(())
}

/// Maps a granted page at `at`, in the place of what is there.
///
/// # Safety
/// Nothing may rely on what was mapped at `at`.
///
/// # Errors
/// `GNTST_bad_domain`, `GNTST_bad_gntref`, `GNTST_permission_denied`,
/// `GNTST_bad_virt_addr`, `GNTST_general_error` where guests may not map.
pub unsafe fn map(
    domain: DomId,
    gref: GrantRef,
    at: GuestVirt,
    read_only: bool,
) -> Result<Mapping, ForeignError> {
    let readonly = if read_only { GNTMAP_READONLY } else { 0 };
    let mut argument = GnttabMapGrantRef {
        host_addr: at.0,
        flags: GNTMAP_HOST_MAP | readonly,
        gref: gref.0,
        dom: domain.0,
        ..Default::default()
    };
    one(GNTTABOP_MAP_GRANT_REF, &mut argument)?;
    checked(argument.status)?;
    let handle = argument.handle;
    Ok(Mapping { handle, at })
}

/// Ends a mapping; nothing is mapped there then.
///
/// # Errors
/// `GNTST_bad_handle`, `GNTST_bad_virt_addr` if somebody changed the entry.
pub fn unmap(mapping: &Mapping) -> Result<(), ForeignError> {
    let mut argument = GnttabUnmapGrantRef {
        host_addr: mapping.at.0,
        handle: mapping.handle,
        ..Default::default()
    };
    one(GNTTABOP_UNMAP_GRANT_REF, &mut argument)?;
    checked(argument.status)
}

/// Copies out of a granted page into a frame of our own; both from `offset` on.
///
/// # Safety
/// Nobody may rely on what is in that part of `to`.
///
/// # Errors
/// `GNTST_bad_gntref`, `GNTST_permission_denied`, `GNTST_bad_copy_arg` past a
/// page's end, `GNTST_bad_page`.
pub unsafe fn copy_in(
    domain: DomId,
    gref: GrantRef,
    to: Mfn,
    offset: u16,
    length: u16,
) -> Result<(), ForeignError> {
    let theirs = side(u64::from(gref.0), domain.0, offset);
    let ours = side(to.0, boot::SELF, offset);
    copy(theirs, ours, length, GNTCOPY_SOURCE_GREF)
}

/// Copies a frame of our own into a granted page; both from `offset` on.
///
/// # Errors
/// As [`copy_in`]; `GNTST_permission_denied` for a grant to read only.
pub fn copy_out(
    from: Mfn,
    domain: DomId,
    gref: GrantRef,
    offset: u16,
    length: u16,
) -> Result<(), ForeignError> {
    let ours = side(from.0, boot::SELF, offset);
    let theirs = side(u64::from(gref.0), domain.0, offset);
    copy(ours, theirs, length, GNTCOPY_DEST_GREF)
}

fn side(u: u64, domid: u16, offset: u16) -> GnttabCopyPtr {
    GnttabCopyPtr {
        u,
        domid,
        offset,
        ..Default::default()
    }
}

fn copy(
    source: GnttabCopyPtr,
    dest: GnttabCopyPtr,
    len: u16,
    flags: u16,
) -> Result<(), ForeignError> {
    let mut argument = GnttabCopy {
        source,
        dest,
        len,
        flags,
        ..Default::default()
    };
    one(GNTTABOP_COPY, &mut argument)?;
    checked(argument.status)
}

/// Frames of our own grant table, now and at most.
///
/// # Errors
/// None known.
pub fn table_size() -> Result<(u32, u32), ForeignError> {
    let mut argument = GnttabQuerySize {
        dom: boot::SELF,
        ..Default::default()
    };
    one(GNTTABOP_QUERY_SIZE, &mut argument)?;
    checked(argument.status)?;
    Ok((argument.nr_frames, argument.max_nr_frames))
}

/// Our grant table's version. [`Grants`](super::grant::Grants) needs 1, which
/// a domain begins with.
///
/// # Errors
/// None known.
pub fn table_version() -> Result<u32, ForeignError> {
    let mut argument = GnttabGetVersion {
        dom: boot::SELF,
        ..Default::default()
    };
    one(GNTTABOP_GET_VERSION, &mut argument)?;
    Ok(argument.version)
}
