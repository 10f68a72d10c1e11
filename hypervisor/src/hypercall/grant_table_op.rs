//! `HYPERVISOR_grant_table_op`: its arguments in, its results out.
//!
//! The operations are methods of [`GrantTable`] and [`MapTrack`]. Most take an
//! array and give each element a status of its own; the hypercall itself fails
//! only for arguments that cannot be read or written.

use crate::{
    grants::{
        Ended, GrantDomains, GrantError, GrantTable, MapRequest, MapTarget, MapTrack, UnmapRequest,
        copy,
    },
    guest_access::{GuestAccess, GuestAccessExt},
    mistakes::reason::{self, Reason},
    time::area_address_ok,
};
use guest_abi::{
    addr::{DomId, GrantRef, GuestVirt, MachineAddr, Mfn, PAGE_SIZE},
    errno::Errno,
    grant_table::*,
};
use std::{cell::RefCell, mem::offset_of, sync::Arc};
use zerocopy::{FromBytes, IntoBytes};

/// Elements done before the vCPU looks for other work.
const BATCH: u32 = 64;
/// `cmd` has the operation in these bits; the rest is for Xen's own use.
const CMD_MASK: u32 = 0xfff;

/// Who calls, and through what.
pub struct GrantCaller<'a> {
    /// The calling domain's grants.
    pub own: &'a Arc<GrantTable>,
    /// The calling domain's mappings.
    pub maps: &'a MapTrack,
    /// Where its mappings are put.
    pub target: &'a dyn MapTarget,
    /// All domains.
    pub domains: &'a dyn GrantDomains,
    /// The calling vCPU's memory.
    pub guest: &'a dyn GuestAccess,
    /// What unmaps have ended: to be dropped when no vCPU has a translation
    /// of it.
    pub ended: &'a RefCell<Vec<Ended>>,
}

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The hypercall returns 0.
    Done,
    /// Some elements are left: look for other work, then make the same call
    /// with these arguments.
    Continue {
        /// The rest of the array.
        arg: GuestVirt,
        /// Its length.
        count: u32,
    },
}

/// `HYPERVISOR_grant_table_op(cmd, arg, count)`: how a domain uses pages that another granted, and manages the
/// table of its own grants: 1 to `max_grant_frames` frames of 512 entries of version 1 or 256 of version 2.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `arg`: address of an array of its structures.
/// - `count`: its length.
///
/// Each element gets a status (`GNTST_*`) of its own; the hypercall itself fails only for arguments that make
/// no sense or can't be read or written.
///
/// # Operations
/// ## `GNTTABOP_MAP_GRANT_REF` `GnttabMapGrantRef`
/// Maps a granted page at an address or, with `GNTMAP_CONTAINS_PTE`, by an entry of an L1 table. Up to 2048
/// pages are mapped at a time.
///
/// Status: `GNTST_BAD_DOMAIN`, `GNTST_BAD_GNTREF`, `GNTST_NO_SPACE`, `GNTST_BAD_PAGE`, `GNTST_GENERAL_ERROR`.
/// ## `GNTTABOP_UNMAP_GRANT_REF` `GnttabUnmapGrantRef`
/// Ends a mapping. The entry found there must be the very one.
///
/// Status: `GNTST_BAD_HANDLE`, `GNTST_GENERAL_ERROR`.
/// ## `GNTTABOP_SETUP_TABLE` `GnttabSetupTable`
/// Makes the own table that many frames large, and writes their numbers to the list. Takes one element.
///
/// Status: `GNTST_PERMISSION_DENIED`, `GNTST_BAD_DOMAIN`, `GNTST_GENERAL_ERROR`, `GNTST_BAD_VIRT_ADDR`.
/// ## `GNTTABOP_TRANSFER` `GnttabTransfer`
/// Frames stay with their domain: as Xen for a frame that it can't take away.
///
/// Status: `GNTST_GENERAL_ERROR`, `GNTST_BAD_PAGE`.
/// ## `GNTTABOP_COPY` `GnttabCopy`
/// Copies within and between domains, from or to a grant or an own frame, within one page.
///
/// Status: `GNTST_BAD_DOMAIN`, `GNTST_BAD_GNTREF`, `GNTST_PERMISSION_DENIED`, `GNTST_BAD_COPY_ARG`,
/// `GNTST_BAD_PAGE`, `GNTST_GENERAL_ERROR`.
/// ## `GNTTABOP_QUERY_SIZE` `GnttabQuerySize`
/// The own table's size, and its limit. Takes one element.
///
/// Status: `GNTST_PERMISSION_DENIED`, `GNTST_BAD_DOMAIN`.
/// ## `GNTTABOP_UNMAP_AND_REPLACE` `GnttabUnmapAndReplace`
/// Ends a mapping and puts the page that is mapped at another address in its place. Mappings by address only.
///
/// Status: `GNTST_BAD_HANDLE`, `GNTST_GENERAL_ERROR`.
/// ## `GNTTABOP_SET_VERSION` `GnttabSetVersion`
/// Chooses version 1, as which a table begins, or 2. The table is empty afterwards but for its first 8 entries.
/// `version` then says which it is, also after an error.
///
/// Errors: `EINVAL`: another version. `EBUSY`: a grant is in use. `ENOMEM`: no frame is left for the marks.
/// ## `GNTTABOP_GET_STATUS_FRAMES` `GnttabGetStatusFrames`
/// Writes the numbers of the frames with the in-use marks of version 2, a word of 16 bits for each entry, to
/// the list. Version 1 has none.
///
/// Status: `GNTST_PERMISSION_DENIED`, `GNTST_BAD_DOMAIN`, `GNTST_GENERAL_ERROR`, `GNTST_BAD_VIRT_ADDR`.
/// ## `GNTTABOP_GET_VERSION` `GnttabGetVersion`
/// 1 or 2.
///
/// Errors: `EPERM`: another domain's. `ESRCH`: no such domain.
/// ## `GNTTABOP_SWAP_GRANT_REF` `GnttabSwapGrantRef`
/// Swaps two entries of the own table.
///
/// Status: `GNTST_BAD_GNTREF`, `GNTST_EAGAIN`: one is in use.
/// ## `GNTTABOP_CACHE_FLUSH` `GnttabCacheFlush`
/// Caches are coherent: cleaning them is done at once, dropping them is not possible.
///
/// Errors: `EINVAL`: not within one page, an unknown `op`, or a frame that is not the domain's. `EOPNOTSUPP`: to
/// drop without cleaning.
///
/// # Errors
/// - `ENOSYS`: an unknown operation, and what is left out.
/// - `EINVAL`: a negative count, more than one element where one is taken; or see the operations.
/// - `EFAULT`: the array can't be read or written. Elements before are done.
/// - `EPERM`, `ESRCH`, `EOPNOTSUPP`: see the operations. The hypervisor's log has the reason of a refusal, at
///   the debug level.
///
/// # Left out
/// - Transitive grants, as on a Xen started with `gnttab=no-transitive`; transfers; `GNTTABOP_dump_table`.
/// - The console's and xenstore's reserved entries are empty: Dom0 maps those rings by frame number.
///
/// # Guards against
/// - XSA-295: an entry that changes without end; it is read as one word and tried five times.
/// - XSA-226, XSA-230: another frame or user than that of the first use.
/// - XSA-218, XSA-224: a use that gives back what it did not take.
/// - XSA-227, XSA-234: an entry that is misaligned, not in an L1 table, or not the very one at the end.
/// - XSA-26, XSA-134, XSA-255, XSA-384: operations before the table is there, and switches of its version.
///
/// # Source
/// - Xen: `public/grant_table.h`
/// - Here: `grants/error.rs`, `grants/maptrack.rs`, `grants/copy.rs`, `hypercall/grant_target.rs`
/// - Book: [grants](../grants.md)
pub fn grant_table_op(
    caller: &GrantCaller<'_>,
    cmd: u32,
    arg: GuestVirt,
    count: u32,
) -> Result<Progress, Errno> {
    if i32::try_from(count).is_err() || (cmd & !CMD_MASK != 0) {
        return Err(Errno::EINVAL);
    }
    let array = Array { caller, arg, count };
    match cmd {
        GNTTABOP_MAP_GRANT_REF => array.each(map_grant_ref),
        GNTTABOP_UNMAP_GRANT_REF => array.each(unmap_grant_ref),
        GNTTABOP_UNMAP_AND_REPLACE => array.each(unmap_and_replace),
        GNTTABOP_COPY => array.each(copy_one),
        GNTTABOP_TRANSFER => array.each(transfer),
        GNTTABOP_SWAP_GRANT_REF => array.each(swap_grant_ref),
        GNTTABOP_CACHE_FLUSH => array.each(cache_flush),
        GNTTABOP_SETUP_TABLE => array.one(setup_table),
        GNTTABOP_QUERY_SIZE => array.one(query_size),
        GNTTABOP_GET_STATUS_FRAMES => array.one(get_status_frames),
        GNTTABOP_SET_VERSION => set_version(caller, arg).map(|()| Progress::Done),
        GNTTABOP_GET_VERSION => get_version(caller, arg).map(|()| Progress::Done),
        // Xen has the number of GNTTABOP_dump_table but not the operation.
        _ => Err(Errno::ENOSYS),
    }
}

struct Array<'a> {
    caller: &'a GrantCaller<'a>,
    arg: GuestVirt,
    count: u32,
}

impl Array<'_> {
    /// Does up to [`BATCH`] elements.
    fn each<T: FromBytes + IntoBytes>(
        &self,
        op: fn(&GrantCaller<'_>, GuestVirt, T) -> Result<(), Errno>,
    ) -> Result<Progress, Errno> {
        let size = size_of::<T>() as u64;
        if !area_address_ok(self.arg, u64::from(self.count).saturating_mul(size)) {
            return Err(Errno::EFAULT);
        }
        let now = self.count.min(BATCH);
        let mut at = self.arg;
        for _ in 0..now {
            op(self.caller, at, self.caller.guest.read_obj(at)?)?;
            at = at.checked_add(size).ok_or(Errno::EFAULT)?;
        }
        match self.count - now {
            0 => Ok(Progress::Done),
            count => Ok(Progress::Continue { arg: at, count }),
        }
    }

    /// Does an operation that takes no array.
    fn one<T: FromBytes + IntoBytes>(
        &self,
        op: fn(&GrantCaller<'_>, GuestVirt, T) -> Result<(), Errno>,
    ) -> Result<Progress, Errno> {
        if self.count != 1 {
            return Err(Errno::EINVAL);
        }
        op(self.caller, self.arg, self.caller.guest.read_obj(self.arg)?)?;
        Ok(Progress::Done)
    }
}

impl GrantCaller<'_> {
    /// The status for the guest; a refusal leaves a trace.
    fn status<T>(&self, outcome: &Result<T, GrantError>) -> i16 {
        match outcome {
            Ok(_) => GNTST_OKAY,
            Err(error) => {
                tracing::debug!(dom = self.own.key().dom.0, %error, "grant operation refused");
                reason::leave(Reason::Grant(error.clone()));
                error.status()
            }
        }
    }

    /// Ends a mapping; the status for the guest.
    fn unmap(&self, request: UnmapRequest) -> i16 {
        let outcome = self.maps.unmap_with(self.target, request);
        let status = self.status(&outcome);
        self.ended.borrow_mut().extend(outcome.ok());
        status
    }

    /// Writes one field of the argument at `at`.
    fn tell<T: IntoBytes + zerocopy::Immutable>(
        &self,
        at: GuestVirt,
        offset: usize,
        value: &T,
    ) -> Result<(), Errno> {
        let field = at.checked_add(offset as u64).ok_or(Errno::EFAULT)?;
        self.guest.write_obj(field, value)
    }

    /// Fails unless `dom` is the caller: a guest has no say over others.
    fn expect_own(&self, dom: DomId) -> Result<(), GrantError> {
        let own = self.own.key().dom;
        if dom == DomId::SELF || dom == own {
            return Ok(());
        }
        self.domains
            .grants(dom)
            .ok_or(GrantError::NoSuchDomain(dom))?;
        Err(GrantError::NotPermitted {
            caller: own,
            target: dom,
        })
    }

    /// The domain whose grant is mapped: a number, not `DOMID_SELF`.
    fn granter(&self, dom: DomId) -> Result<Arc<GrantTable>, GrantError> {
        if dom == self.own.key().dom {
            return Ok(self.own.clone());
        }
        self.domains
            .grants(dom)
            .ok_or(GrantError::NoSuchDomain(dom))
    }
}

fn map_grant_ref(
    caller: &GrantCaller<'_>,
    at: GuestVirt,
    mut arg: GnttabMapGrantRef,
) -> Result<(), Errno> {
    let request = MapRequest {
        flags: arg.flags,
        gref: GrantRef(arg.gref),
        host_addr: arg.host_addr,
    };
    let outcome = caller
        .granter(DomId(arg.dom))
        .and_then(|granter| caller.maps.map_with(caller.target, &granter, request));
    arg.status = caller.status(&outcome);
    if let Ok(reply) = outcome {
        arg.handle = reply.handle;
        arg.dev_bus_addr = reply.frame.addr().map_or(0, |at| at.0);
    }
    caller.guest.write_obj(at, &arg)
}

fn unmap_grant_ref(
    caller: &GrantCaller<'_>,
    at: GuestVirt,
    arg: GnttabUnmapGrantRef,
) -> Result<(), Errno> {
    let status = caller.unmap(UnmapRequest {
        handle: arg.handle,
        host_addr: arg.host_addr,
        dev_bus_addr: arg.dev_bus_addr,
        new_addr: 0,
    });
    caller.tell(at, offset_of!(GnttabUnmapGrantRef, status), &status)
}

fn unmap_and_replace(
    caller: &GrantCaller<'_>,
    at: GuestVirt,
    arg: GnttabUnmapAndReplace,
) -> Result<(), Errno> {
    let status = caller.unmap(UnmapRequest {
        handle: arg.handle,
        host_addr: arg.host_addr,
        dev_bus_addr: 0,
        new_addr: arg.new_addr,
    });
    caller.tell(at, offset_of!(GnttabUnmapAndReplace, status), &status)
}

fn copy_one(caller: &GrantCaller<'_>, at: GuestVirt, arg: GnttabCopy) -> Result<(), Errno> {
    let status = caller.status(&copy(caller.own, caller.domains, &arg));
    caller.tell(at, offset_of!(GnttabCopy, status), &status)
}

/// Frames stay with their domain: as Xen for a frame that it cannot take away.
fn transfer(caller: &GrantCaller<'_>, at: GuestVirt, arg: GnttabTransfer) -> Result<(), Errno> {
    let refused: Result<(), _> = Err(match caller.own.owns(Mfn(arg.mfn)) {
        Ok(()) => GrantError::NoTransfer(Mfn(arg.mfn)),
        Err(error) => error,
    });
    let status = caller.status(&refused);
    caller.tell(at, offset_of!(GnttabTransfer, status), &status)
}

fn swap_grant_ref(
    caller: &GrantCaller<'_>,
    at: GuestVirt,
    arg: GnttabSwapGrantRef,
) -> Result<(), Errno> {
    let status = caller.status(&caller.own.swap(GrantRef(arg.ref_a), GrantRef(arg.ref_b)));
    caller.tell(at, offset_of!(GnttabSwapGrantRef, status), &status)
}

/// Caches are coherent and no device reads past them: there is nothing to do,
/// and dropping a cache without writing it back is not possible.
fn cache_flush(
    caller: &GrantCaller<'_>,
    _at: GuestVirt,
    arg: GnttabCacheFlush,
) -> Result<(), Errno> {
    let end = u64::from(arg.offset) + u64::from(arg.length);
    let known = GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL;
    if u64::from(arg.offset) >= PAGE_SIZE || end > PAGE_SIZE || arg.op & !known != 0 {
        return Err(Errno::EINVAL);
    }
    if arg.length == 0 || arg.op == 0 {
        return Ok(());
    }
    let owned = caller.own.owns(MachineAddr(arg.a).frame());
    owned.map_err(|_| Errno::EINVAL)?;
    if arg.op == GNTTAB_CACHE_INVAL {
        Err(Errno::EOPNOTSUPP)
    } else {
        Ok(())
    }
}

fn setup_table(
    caller: &GrantCaller<'_>,
    at: GuestVirt,
    arg: GnttabSetupTable,
) -> Result<(), Errno> {
    let list = GuestVirt(arg.frame_list);
    if !area_address_ok(list, u64::from(arg.nr_frames) * 8) {
        return Err(Errno::EFAULT);
    }
    let outcome = caller.expect_own(DomId(arg.dom)).and_then(|()| {
        for (frame, index) in caller.own.setup(arg.nr_frames)?.iter().zip(0..) {
            let written = caller.guest.write_element(list, index, &frame.0);
            written.map_err(|_| GrantError::BadResultAddress(list.0))?;
        }
        Ok(())
    });
    let status = caller.status(&outcome);
    caller.tell(at, offset_of!(GnttabSetupTable, status), &status)
}

fn query_size(
    caller: &GrantCaller<'_>,
    at: GuestVirt,
    mut arg: GnttabQuerySize,
) -> Result<(), Errno> {
    let outcome = caller.expect_own(DomId(arg.dom));
    arg.status = caller.status(&outcome);
    if outcome.is_ok() {
        (arg.nr_frames, arg.max_nr_frames) = caller.own.size();
    }
    caller.guest.write_obj(at, &arg)
}

/// The frames of the marks of version 2; in version 1 there are none.
fn get_status_frames(
    caller: &GrantCaller<'_>,
    at: GuestVirt,
    arg: GnttabGetStatusFrames,
) -> Result<(), Errno> {
    let list = GuestVirt(arg.frame_list);
    let outcome = caller.expect_own(DomId(arg.dom)).and_then(|()| {
        for (frame, index) in caller.own.status_frames(arg.nr_frames)?.iter().zip(0..) {
            let written = caller.guest.write_element(list, index, &frame.0);
            written.map_err(|_| GrantError::BadResultAddress(list.0))?;
        }
        Ok(())
    });
    let status = caller.status(&outcome);
    caller.tell(at, offset_of!(GnttabGetStatusFrames, status), &status)
}

/// Whatever comes of it, the version that there is then is told.
fn set_version(caller: &GrantCaller<'_>, at: GuestVirt) -> Result<(), Errno> {
    let arg: GnttabSetVersion = caller.guest.read_obj(at)?;
    let outcome = match arg.version {
        1 | 2 => caller.own.set_version(arg.version == 2),
        _ => return Err(Errno::EINVAL),
    };
    let version = caller.own.version();
    caller.guest.write_obj(at, &GnttabSetVersion { version })?;
    outcome.map_err(|error| {
        reason::leave(Reason::Grant(error.clone()));
        match error {
            GrantError::NoMemory => Errno::ENOMEM,
            _ => Errno::EBUSY,
        }
    })
}

fn get_version(caller: &GrantCaller<'_>, at: GuestVirt) -> Result<(), Errno> {
    let arg: GnttabGetVersion = caller.guest.read_obj(at)?;
    caller
        .expect_own(DomId(arg.dom))
        .map_err(|error| match error {
            GrantError::NoSuchDomain(_) => Errno::ESRCH,
            _ => Errno::EPERM,
        })?;
    let version = caller.own.version();
    caller.tell(at, offset_of!(GnttabGetVersion, version), &version)
}

#[cfg(test)]
#[path = "grant_table_op_tests.rs"]
mod tests;
