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

/// `HYPERVISOR_mmu_update(requests, count, done, foreign)`: a batch of
/// page-table writes or machine-to-phys entries. `done`, if given, gets the
/// number carried out. The batch ends at the first one that is refused.
///
/// # Errors
/// That of the refused request (see [`Paging::mmu_update`]); `EPERM` for
/// another domain's tables; `EFAULT`; `ENOSYS` for an unknown kind.
///
/// [`Paging::mmu_update`]: crate::paging::Paging::mmu_update
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

/// `HYPERVISOR_update_va_mapping(va, entry, flags)`: changes the entry that
/// maps `va`, then flushes as `flags` (`UVMF_*`) says.
///
/// # Errors
/// See [`Paging::update_va_mapping`](crate::paging::Paging::update_va_mapping);
/// `EINVAL` for an unknown flush.
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

/// `HYPERVISOR_update_va_mapping_otherdomain`: for the caller's own domain as
/// `update_va_mapping`; a driver domain's use of it, mapping foreign frames,
/// is the control domain's.
///
/// # Errors
/// `EPERM` for another domain.
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
