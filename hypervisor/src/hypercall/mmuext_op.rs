//! `mmuext_op`.

use super::{Done, Outcome, domid, own_domain};
use crate::{cpu::reg, guest_access::GuestAccessExt, paging::Level, vcpu::Vcpu};
use guest_abi::{
    addr::{GuestVirt, Mfn},
    errno::Errno,
    xen::*,
};

/// `HYPERVISOR_mmuext_op(operations, count, done, foreign)`: pins, roots,
/// flushes, descriptor tables, and copying of frames that the guest may not
/// write itself. The batch ends at the first one that is refused.
///
/// # Errors
/// That of the refused operation; `EPERM` for another domain; `EFAULT`;
/// `ENOSYS` for an unknown one.
pub(super) fn mmuext_op(
    vcpu: &mut Vcpu,
    operations: GuestVirt,
    count: u32,
    done: GuestVirt,
    foreign: u32,
) -> Outcome {
    own_domain(vcpu, domid(foreign.into()))?;
    let mut carried_out = 0;
    let mut outcome = Ok(());
    while carried_out < count {
        if carried_out != 0 && vcpu.should_yield() {
            let next = operations
                .0
                .wrapping_add(u64::from(carried_out) * size_of::<MmuextOp>() as u64);
            let rest = [(reg::RDI, next), (reg::RSI, u64::from(count - carried_out))];
            return Ok(vcpu.restart(HYPERVISOR_MMUEXT_OP, &rest));
        }
        let operation = vcpu.access().read_element(operations, carried_out.into())?;
        outcome = one(vcpu, &operation);
        if outcome.is_err() {
            break;
        }
        carried_out += 1;
    }
    if done.0 != 0 {
        vcpu.access().write_obj(done, &carried_out)?;
    }
    outcome.map(Done::from)
}

fn one(vcpu: &mut Vcpu, operation: &MmuextOp) -> Result<(), Errno> {
    let (mfn, id) = (Mfn(operation.arg1), vcpu.shared.id);
    match operation.cmd {
        MMUEXT_PIN_L1_TABLE => pin(vcpu, Level::L1, mfn),
        MMUEXT_PIN_L2_TABLE => pin(vcpu, Level::L2, mfn),
        MMUEXT_PIN_L3_TABLE => pin(vcpu, Level::L3, mfn),
        MMUEXT_PIN_L4_TABLE => pin(vcpu, Level::L4, mfn),
        MMUEXT_UNPIN_TABLE => vcpu.update(|mm, tables| mm.unpin_table(tables, mfn)),
        MMUEXT_NEW_BASEPTR => {
            vcpu.update(|mm, tables| mm.new_baseptr(tables, id, mfn))?;
            vcpu.state.kernel_root = mfn;
            vcpu.flush();
            Ok(())
        }
        MMUEXT_NEW_USER_BASEPTR => {
            vcpu.update(|mm, tables| mm.new_user_baseptr(tables, id, mfn))?;
            vcpu.state.user_root = (mfn.0 != 0).then_some(mfn);
            vcpu.flush();
            Ok(())
        }
        MMUEXT_TLB_FLUSH_LOCAL | MMUEXT_INVLPG_LOCAL => {
            vcpu.flush();
            Ok(())
        }
        // Flushing more vCPUs than the bitmap names is always right.
        MMUEXT_TLB_FLUSH_MULTI | MMUEXT_INVLPG_MULTI | MMUEXT_TLB_FLUSH_ALL | MMUEXT_INVLPG_ALL => {
            vcpu.flush_everywhere();
            Ok(())
        }
        // A guest without devices has no cache to flush: Xen refuses too.
        MMUEXT_FLUSH_CACHE | MMUEXT_FLUSH_CACHE_GLOBAL => Err(Errno::EACCES),
        MMUEXT_SET_LDT => {
            let entries = u32::try_from(operation.arg2 & 0xffff_ffff).unwrap_or(u32::MAX);
            vcpu.update(|mm, tables| mm.set_ldt(tables, id, GuestVirt(operation.arg1), entries))
        }
        MMUEXT_CLEAR_PAGE => write_frame(vcpu, mfn, None),
        MMUEXT_COPY_PAGE => write_frame(vcpu, mfn, Some(Mfn(operation.arg2))),
        MMUEXT_MARK_SUPER | MMUEXT_UNMARK_SUPER => vcpu.lock_mm().mark_super(),
        _ => Err(Errno::ENOSYS),
    }
}

fn pin(vcpu: &Vcpu, level: Level, mfn: Mfn) -> Result<(), Errno> {
    vcpu.update(|mm, tables| mm.pin_table(tables, level, mfn))
}

/// Clears a frame, or copies another one into it.
fn write_frame(vcpu: &Vcpu, to: Mfn, from: Option<Mfn>) -> Result<(), Errno> {
    let memory = &vcpu.domain.space.memory;
    vcpu.update(|mm, tables| {
        if let Some(from) = from {
            mm.get_frame_ref(from)?;
        }
        let result = mm.get_writable(tables, to).and_then(|()| {
            let written = match from {
                None => memory.clear_frame(to),
                Some(from) => memory.copy_frame(from, to),
            };
            vcpu.domain.space.note_written(to);
            mm.put_writable(tables, to);
            written.ok_or(Errno::EINVAL)
        });
        if let Some(from) = from {
            mm.put_frame_ref(from);
        }
        result
    })
}
