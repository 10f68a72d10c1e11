//! `mmuext_op`.

use super::{Done, Outcome, domid, own_domain};
use crate::{cpu::reg, guest_access::GuestAccessExt, paging::Level, vcpu::Vcpu};
use guest_abi::{
    addr::{GuestVirt, Mfn},
    errno::Errno,
    xen::*,
};

/// `HYPERVISOR_mmuext_op(operations, count, done, foreign)`: pins, roots, flushes, the LDT, and copying of
/// frames.
///
/// # Arguments
/// - `operations`: address of an array of `MmuextOp`.
/// - `count`: its length.
/// - `done`: address of a `u32` that gets the number carried out; may be null.
/// - `foreign`: whose frames. Own domain only.
///
/// The batch ends at the first operation that is refused.
///
/// # Operations
/// ## `MMUEXT_PIN_L1_TABLE`
/// Validates the frame `arg1` as an L1 table, and keeps it validated until it is unpinned.
///
/// Errors: `EINVAL`: the frame is not the domain's, in use as something else, pinned, or holds an entry that
/// an L1 table may not have. `EBUSY`: an entry maps a page table writable. `EPERM`: one maps no memory.
/// ## `MMUEXT_PIN_L2_TABLE`
/// The same for an L2 table, and the tables below it.
///
/// Errors: as `MMUEXT_PIN_L1_TABLE`.
/// ## `MMUEXT_PIN_L3_TABLE`
/// The same for an L3 table.
///
/// Errors: as `MMUEXT_PIN_L1_TABLE`.
/// ## `MMUEXT_PIN_L4_TABLE`
/// The same for an L4 table: the hypervisor's slots are filled in.
///
/// Errors: as `MMUEXT_PIN_L1_TABLE`.
/// ## `MMUEXT_UNPIN_TABLE`
/// Ends the pin of `arg1`. Types that nobody else uses are dropped, down to the leaves.
///
/// Errors: `EINVAL`: it is not pinned.
/// ## `MMUEXT_NEW_BASEPTR`
/// `arg1` is the kernel's root. The old one is released.
///
/// Errors: as `MMUEXT_PIN_L4_TABLE`.
/// ## `MMUEXT_TLB_FLUSH_LOCAL`
/// Drops all translations of this vCPU.
///
/// Errors: none.
/// ## `MMUEXT_INVLPG_LOCAL`
/// Drops that of one address; all are dropped.
///
/// Errors: none.
/// ## `MMUEXT_TLB_FLUSH_MULTI`
/// Drops those of the vCPUs in a bitmap; all are taken.
///
/// Errors: none.
/// ## `MMUEXT_INVLPG_MULTI`
/// Drops one address' of the vCPUs in a bitmap; all are taken.
///
/// Errors: none.
/// ## `MMUEXT_TLB_FLUSH_ALL`
/// Drops all translations of all vCPUs.
///
/// Errors: none.
/// ## `MMUEXT_INVLPG_ALL`
/// Drops one address' of all vCPUs; all are dropped.
///
/// Errors: none.
/// ## `MMUEXT_FLUSH_CACHE`
/// For domains with hardware only.
///
/// Errors: `EACCES`: always.
/// ## `MMUEXT_SET_LDT`
/// The LDT is `arg2` entries at the address `arg1`. Its pages are checked when they are first used.
///
/// Errors: `EINVAL`: not page-aligned, not the guest's, or more than 8192 entries.
/// ## `MMUEXT_NEW_USER_BASEPTR`
/// `arg1` is the root of user mode; 0 is none.
///
/// Errors: as `MMUEXT_PIN_L4_TABLE`.
/// ## `MMUEXT_CLEAR_PAGE`
/// Fills the frame `arg1` with zeros. It must be data.
///
/// Errors: `EINVAL`: it is not the domain's, or a table.
/// ## `MMUEXT_COPY_PAGE`
/// Copies the frame `arg2` to the frame `arg1`, which must be data.
///
/// Errors: `EINVAL`: one of them is not the domain's, or `arg1` is a table.
/// ## `MMUEXT_FLUSH_CACHE_GLOBAL`
/// For domains with hardware only.
///
/// Errors: `EACCES`: always.
/// ## `MMUEXT_MARK_SUPER`
/// No longer in Xen.
///
/// Errors: `EOPNOTSUPP`: always.
/// ## `MMUEXT_UNMARK_SUPER`
/// No longer in Xen.
///
/// Errors: `EOPNOTSUPP`: always.
///
/// # Errors
/// - `EPERM`: another domain.
/// - `ENOSYS`: an unknown operation.
/// - `EFAULT`: an operation can't be read, or `done` not written.
/// - `EINVAL`, `EBUSY`, `EACCES`, `EOPNOTSUPP`: see the operations.
///
/// # Left out
/// - Flushes of single pages and single vCPUs: more is flushed, which is always right.
/// - Pinning for another domain.
///
/// # Guards against
/// - XSA-264: validation without a bound; it is cut between tables.
/// - XSA-240: recursion without a bound.
/// - XSA-185, XSA-286: tables that refer to their own level.
/// - XSA-45, XSA-58: a batch gives way to other work between its operations.
///
/// # Source
/// - Xen: `public/xen.h`
/// - Here: `paging/mmuext.rs`, `paging/validate.rs`, `paging/refusal.rs`
/// - Book: [direct paging](../direct-paging.md)
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
