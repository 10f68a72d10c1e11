//! A vCPU's first state: `VCPUOP_initialise` and `XEN_DOMCTL_setvcpucontext`.

use crate::{domain::Domain, paging::Paging, space::Tables, vcpu};
use guest_abi::{
    addr::{GuestVirt, Mfn, VcpuId},
    arch_x86::VcpuGuestContext,
    arch_x86_64::cr3_to_pfn,
    errno::Errno,
};
use std::sync::Arc;

/// Gives a vCPU, which must be down, its state: takes references to its roots
/// and descriptor tables, and makes its thread.
///
/// # Errors
/// `EINVAL` for a root or a descriptor table that can't be one, or entry
/// points that are not canonical; `EEXIST` if the vCPU is up; `ENOMEM` if the
/// host refuses a thread. Nothing is kept then.
pub fn install(
    domain: &Arc<Domain>,
    id: VcpuId,
    context: Box<VcpuGuestContext>,
) -> Result<(), Errno> {
    let shared = usize::try_from(id.0)
        .ok()
        .and_then(|index| domain.vcpus.get(index))
        .ok_or(Errno::ENOENT)?;
    if shared.is_online() && domain.may_run() {
        return Err(Errno::EEXIST);
    }
    check(&context)?;
    domain.space.foreign_try(|mm, tables| {
        take(mm, tables, id, &context).inspect_err(|error| {
            if *error != Errno::ERESTART {
                let _ = mm.release_vcpu(tables, id);
            }
        })
    })?;
    shared.set_initial(context);
    vcpu::start(domain, id).map_err(|error| {
        tracing::error!(domain = domain.id.0, vcpu = id.0, %error, "vCPU not started");
        Errno::ENOMEM
    })
}

fn check(context: &VcpuGuestContext) -> Result<(), Errno> {
    let entries = [
        context.event_callback_eip,
        context.failsafe_callback_eip,
        context.syscall_callback_eip,
        context.user_regs.rip,
    ];
    if entries
        .iter()
        .all(|address| GuestVirt(*address).is_canonical())
        && context.gdt_ents <= 14 * 512
    {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

fn take(
    mm: &mut Paging,
    tables: &Tables<'_>,
    id: VcpuId,
    context: &VcpuGuestContext,
) -> Result<(), Errno> {
    let entries = u32::try_from(context.gdt_ents).map_err(|_| Errno::EINVAL)?;
    let pages = usize::try_from(entries.div_ceil(512)).map_err(|_| Errno::EINVAL)?;
    let frames: Vec<Mfn> = context
        .gdt_frames
        .iter()
        .take(pages)
        .copied()
        .map(Mfn)
        .collect();
    mm.set_gdt(tables, id, &frames, entries)?;
    mm.new_baseptr(tables, id, Mfn(cr3_to_pfn(context.ctrlreg[3])))?;
    let user = context.ctrlreg[1];
    let user = if user & 1 == 0 {
        Mfn(0)
    } else {
        Mfn(cr3_to_pfn(user))
    };
    mm.new_user_baseptr(tables, id, user)?;
    let ldt = u32::try_from(context.ldt_ents).map_err(|_| Errno::EINVAL)?;
    mm.set_ldt(tables, id, GuestVirt(context.ldt_base), ldt)
}
