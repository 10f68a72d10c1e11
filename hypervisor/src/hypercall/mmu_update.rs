//! `mmu_update`, `update_va_mapping`, `update_va_mapping_otherdomain`.

use super::{Done, OK, Outcome, domid, own_domain};
use crate::{
    cpu::reg,
    guest_access::GuestAccessExt,
    paging::{Pte, UpdateMode},
    vcpu::Vcpu,
};
use guest_abi::{
    addr::{DomId, GuestVirt, MachineAddr},
    errno::Errno,
    xen::*,
};

/// Set in the count of a batch that was interrupted.
const PREEMPTED: u32 = 1 << 31;

/// `HYPERVISOR_mmu_update(requests, count, done, foreign)`: a batch of writes to page tables and to
/// the machine-to-phys table.
///
/// # Arguments
/// - `requests`: address of an array of `MmuUpdate`. The low two bits of `ptr` are the operation.
/// - `count`: its length.
/// - `done`: address of a `u32` that gets the number carried out; may be null.
/// - `foreign`: whose frames; the high half is 0 or the tables' owner plus one. Own domain only.
///
/// The batch ends at the first request that is refused; those before it stay carried out. A table of
/// any level may be named, or a page that the guest may write anyway.
///
/// # Operations
/// ## `MMU_NORMAL_PT_UPDATE`
/// The page-table entry at the machine address `ptr` becomes `val`.
///
/// Errors: `EINVAL`: the address is not aligned, not the domain's, in a slot of the hypervisor's or in a
/// descriptor table; `val` has a bit that no entry may have; its frame can't be a table of the level below.
/// `EBUSY`: an L1 entry would map a page table writable, or a frame that is free or the hypervisor's.
/// `EPERM`: an L1 entry would map what is no memory.
/// ## `MMU_MACHPHYS_UPDATE`
/// The machine-to-phys entry of the frame at `ptr` becomes `val`.
///
/// Errors: `EINVAL`: the frame is not the domain's.
/// ## `MMU_PT_UPDATE_PRESERVE_AD`
/// As `MMU_NORMAL_PT_UPDATE`, but the accessed and dirty bits that the entry has are kept.
///
/// Errors: those of `MMU_NORMAL_PT_UPDATE`.
///
/// # Errors
/// - `EPERM`: another domain's tables or frames.
/// - `ENOSYS`: operation 3.
/// - `EFAULT`: a request can't be read, or `done` not written.
/// - `EBUSY`, `EINVAL`: see the operations.
///
/// # Left out
/// - `MMU_PT_UPDATE_NO_TRANSLATE` (operation 3), which is for owners that are not PV.
/// - Frames of other domains: the control domain is no guest here.
///
/// # Guards against
/// - XSA-148, XSA-182, XSA-185: a page table that its guest can write.
/// - XSA-299, XSA-309, XSA-310: counts lost on the way out of a refusal.
/// - XSA-401: a type change without a flush before the content is looked at.
/// - XSA-402: caching attributes.
/// - XSA-45, XSA-58: a batch gives way to other work every 64 requests.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `paging/update.rs`, `paging/refusal.rs`
/// - Book: [direct paging](../direct-paging.md)
pub(super) fn mmu_update(
    vcpu: &mut Vcpu,
    requests: GuestVirt,
    count: u32,
    done: GuestVirt,
    foreign: u32,
) -> Outcome {
    // The high half names the owner of the tables, plus one.
    let table_owner = foreign >> 16;
    own_domain(vcpu, domid(u64::from(foreign & 0xffff)))?;
    if table_owner != 0 {
        own_domain(vcpu, domid(u64::from(table_owner - 1)))?;
    }
    let earlier = count & PREEMPTED != 0;
    let count = count & !PREEMPTED;
    let mut carried_out = 0;
    let mut outcome = Ok(());
    while carried_out < count {
        if carried_out != 0 && carried_out.is_multiple_of(64) && vcpu.should_yield() {
            report(vcpu, done, carried_out, earlier)?;
            let next = requests
                .0
                .wrapping_add(u64::from(carried_out) * size_of::<MmuUpdate>() as u64);
            let rest = [
                (reg::RDI, next),
                (reg::RSI, u64::from((count - carried_out) | PREEMPTED)),
            ];
            return Ok(vcpu.restart(HYPERVISOR_MMU_UPDATE, &rest));
        }
        outcome = one(vcpu, requests, carried_out);
        if outcome.is_err() {
            break;
        }
        carried_out += 1;
    }
    report(vcpu, done, carried_out, earlier)?;
    outcome.map(Done::from)
}

/// Tells how many requests were carried out, those before an interruption included.
fn report(vcpu: &Vcpu, done: GuestVirt, count: u32, earlier: bool) -> Result<(), Errno> {
    if done.0 == 0 {
        return Ok(());
    }
    let before: u32 = if earlier {
        vcpu.access().read_obj(done)?
    } else {
        0
    };
    vcpu.access().write_obj(done, &before.wrapping_add(count))
}

fn one(vcpu: &Vcpu, requests: GuestVirt, index: u32) -> Result<(), Errno> {
    let request: MmuUpdate = vcpu.access().read_element(requests, index.into())?;
    let at = MachineAddr(request.ptr & !MMU_UPDATE_COMMAND_MASK);
    let normal = |mode| vcpu.update(|mm, tables| mm.mmu_update(tables, at, Pte(request.val), mode));
    match request.ptr & MMU_UPDATE_COMMAND_MASK {
        MMU_NORMAL_PT_UPDATE => normal(UpdateMode::Normal),
        MMU_PT_UPDATE_PRESERVE_AD => normal(UpdateMode::PreserveAd),
        MMU_MACHPHYS_UPDATE => {
            let mfn = at.frame();
            vcpu.lock_mm().check_machphys(mfn)?;
            vcpu.domain
                .space
                .memory
                .set_m2p(mfn, Some(request.val))
                .ok_or(Errno::EINVAL)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// `HYPERVISOR_update_va_mapping(va, entry, flags)`: changes the L1 entry that maps an address under the
/// root in use, then flushes.
///
/// # Arguments
/// - `va`: the address.
/// - `entry`: the new value of the entry.
/// - `flags`: what to flush, in the low two bits (`UVMF_NONE`, `UVMF_TLB_FLUSH`, `UVMF_INVLPG`); where, in
///   the others: `UVMF_LOCAL`, `UVMF_ALL`, or the address of a bitmap of vCPUs.
///
/// # Errors
/// - `EINVAL`: no L1 table maps `va`; a bad entry, as in `mmu_update`; flush type 3 (the entry has been
///   changed by then).
/// - `EBUSY`, `EPERM`: as in `mmu_update`.
///
/// # Left out
/// - A flush of one page flushes all, and a bitmap is taken as all vCPUs: more than asked for is always right.
///
/// # Guards against
/// - What `mmu_update` guards against: it is the same path.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `paging/update.rs`, `paging/refusal.rs`
/// - Book: [direct paging](../direct-paging.md)
pub(super) fn update_va_mapping(vcpu: &mut Vcpu, va: GuestVirt, entry: u64, flags: u64) -> Outcome {
    let root = vcpu.state.root();
    vcpu.update(|mm, tables| mm.update_va_mapping(tables, root, va, Pte(entry)))?;
    let everywhere = flags & !UVMF_FLUSHTYPE_MASK;
    match flags & UVMF_FLUSHTYPE_MASK {
        UVMF_NONE => return OK,
        UVMF_TLB_FLUSH | UVMF_INVLPG => vcpu.flush(),
        _ => return Err(Errno::EINVAL),
    }
    // UVMF_LOCAL is 0; anything else is UVMF_ALL or the address of a bitmap of
    // vCPUs. Flushing more vCPUs than asked for is always right.
    if everywhere != UVMF_LOCAL {
        vcpu.flush_everywhere();
    }
    OK
}

/// `HYPERVISOR_update_va_mapping_otherdomain(va, entry, flags, domid)`: as `update_va_mapping`, and names
/// the owner of the frame in the entry.
///
/// # Arguments
/// - `va`, `entry`, `flags`: as in `update_va_mapping`.
/// - `domid`: whose frame: `DOMID_SELF` or the caller's own number.
///
/// # Errors
/// - `EPERM`: another domain; or as in `mmu_update`.
/// - `EINVAL`, `EBUSY`: as in `update_va_mapping`.
///
/// # Left out
/// - Foreign frames: they are the control domain's to map, and that is no guest here.
///
/// # Guards against
/// - A frame of another domain in a guest's page tables.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `paging/update.rs`, `paging/refusal.rs`
pub(super) fn update_va_mapping_otherdomain(
    vcpu: &mut Vcpu,
    va: GuestVirt,
    entry: u64,
    flags: u64,
    dom: DomId,
) -> Outcome {
    own_domain(vcpu, dom)?;
    update_va_mapping(vcpu, va, entry, flags)
}
