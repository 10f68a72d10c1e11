//! `GNTTABOP_copy`: the hypervisor copies within and between domains.

use super::{Access, GrantDomains, GrantError, GrantTable, Granted, Use, table::FrameRef};
use guest_abi::{
    addr::{DomId, GrantRef, MachineAddr, Mfn, PAGE_SIZE},
    grant_table::{GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GnttabCopy, GnttabCopyPtr},
};
use std::sync::Arc;

const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// One end of a copy, held while it lasts.
enum Side {
    Own(FrameRef),
    Granted(Granted),
}

impl Side {
    fn frame(&self) -> &FrameRef {
        match self {
            Side::Own(frame) => frame,
            Side::Granted(granted) => granted.frame_ref(),
        }
    }

    fn at(&self, offset: u16, len: usize) -> Result<MachineAddr, GrantError> {
        match self {
            Side::Own(frame) => frame.at(offset),
            Side::Granted(granted) => granted.at(offset, len),
        }
    }
}

/// Does one element of a `GNTTABOP_copy` of the domain `caller`.
///
/// # Errors
/// A [`GrantError`]; then nothing was copied.
pub fn copy(
    caller: &Arc<GrantTable>,
    domains: &dyn GrantDomains,
    op: &GnttabCopy,
) -> Result<(), GrantError> {
    let from_grant = op.flags & GNTCOPY_SOURCE_GREF != 0;
    let to_grant = op.flags & GNTCOPY_DEST_GREF != 0;
    let source = owner(caller, domains, &op.source, from_grant)?;
    let dest = owner(caller, domains, &op.dest, to_grant)?;
    let source = claim(caller, &source, &op.source, from_grant, false)?;
    let dest = claim(caller, &dest, &op.dest, to_grant, true)?;
    let len = usize::from(op.len);
    check_part(op.source.offset, op.len)?;
    check_part(op.dest.offset, op.len)?;
    // Through a buffer: either side may change while it is copied, and the
    // two may overlap.
    let mut page = [0; PAGE];
    let bytes = &mut page[..len];
    let from = source.at(op.source.offset, len)?;
    let to = dest.at(op.dest.offset, len)?;
    if !source.frame().table().memory().read(from, bytes) {
        return Err(GrantError::NotRam(source.frame().frame()));
    }
    if !dest.frame().table().memory().write(to, bytes) {
        return Err(GrantError::NotRam(dest.frame().frame()));
    }
    Ok(())
}

/// Copies `buf.len()` bytes out of a grant to `user`: a `GNTTABOP_copy` of a
/// Dom0 process, into memory of its own.
///
/// # Errors
/// A [`GrantError`].
pub fn read_grant(
    granter: &Arc<GrantTable>,
    user: DomId,
    gref: GrantRef,
    offset: u16,
    buf: &mut [u8],
) -> Result<(), GrantError> {
    let granted = part(granter, user, gref, (offset, buf.len()), false)?;
    let at = granted.at(offset, buf.len())?;
    let read = granter.memory().read(at, buf);
    read.then_some(())
        .ok_or(GrantError::NotRam(granted.frame()))
}

/// Copies `bytes` into a grant to `user`: see [`read_grant`].
///
/// # Errors
/// A [`GrantError`]; then nothing was copied.
pub fn write_grant(
    granter: &Arc<GrantTable>,
    user: DomId,
    gref: GrantRef,
    offset: u16,
    bytes: &[u8],
) -> Result<(), GrantError> {
    let granted = part(granter, user, gref, (offset, bytes.len()), true)?;
    let at = granted.at(offset, bytes.len())?;
    let written = granter.memory().write(at, bytes);
    written
        .then_some(())
        .ok_or(GrantError::NotRam(granted.frame()))
}

/// A use of a part of a granted page.
fn part(
    granter: &Arc<GrantTable>,
    user: DomId,
    gref: GrantRef,
    (offset, len): (u16, usize),
    write: bool,
) -> Result<Granted, GrantError> {
    check_part(offset, u16::try_from(len).unwrap_or(u16::MAX))?;
    let how = Use::Copy;
    granter.acquire(gref, user, Access { how, write })
}

fn check_part(offset: u16, len: u16) -> Result<(), GrantError> {
    if u64::from(offset) + u64::from(len) > PAGE_SIZE {
        return Err(GrantError::CrossesPage { offset, len });
    }
    Ok(())
}

/// The domain that a side names. Only the caller's own frames may be named as
/// frames.
fn owner(
    caller: &Arc<GrantTable>,
    domains: &dyn GrantDomains,
    side: &GnttabCopyPtr,
    is_grant: bool,
) -> Result<Arc<GrantTable>, GrantError> {
    let dom = DomId(side.domid);
    if dom != DomId::SELF && !is_grant {
        return Err(GrantError::FrameNotOwn(dom));
    }
    if dom == DomId::SELF || dom == caller.key().dom {
        return Ok(caller.clone());
    }
    domains.grants(dom).ok_or(GrantError::NoSuchDomain(dom))
}

fn claim(
    caller: &GrantTable,
    owner: &Arc<GrantTable>,
    side: &GnttabCopyPtr,
    is_grant: bool,
    write: bool,
) -> Result<Side, GrantError> {
    if !is_grant {
        return FrameRef::take(owner, Mfn(side.u), write).map(Side::Own);
    }
    // The low half of the union.
    let gref = GrantRef(u32::try_from(side.u & u64::from(u32::MAX)).unwrap_or(u32::MAX));
    let access = Access {
        how: Use::Copy,
        write,
    };
    owner
        .acquire(gref, caller.key().dom, access)
        .map(Side::Granted)
}
