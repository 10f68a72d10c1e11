//! `xen_version`.

use super::{Done, OK, Outcome};
use crate::{
    engine::kvm::M2P,
    guest_access::{GuestAccess, GuestAccessExt},
    vcpu::Vcpu,
    version,
};
use guest_abi::{
    addr::GuestVirt, arch_x86_64::HYPERVISOR_VIRT_START, errno::Errno, features::*, version::*,
};
use zerocopy::FromZeros;

/// What we offer of `XENFEAT_*`'s first 32.
const FEATURES: u32 = 1 << XENFEAT_PAE_PGDIR_ABOVE_4GB
    | 1 << XENFEAT_MMU_PT_UPDATE_PRESERVE_AD
    | 1 << XENFEAT_HIGHMEM_ASSIST
    | 1 << XENFEAT_GNTTAB_MAP_AVAIL_BITS;

/// `HYPERVISOR_xen_version(cmd, arg)`: who the hypervisor is. Operation 0 is also how Linux has its pending
/// events delivered: that happens on the way back from any hypercall.
///
/// # Arguments
/// - `cmd`: the operation.
/// - `arg`: address of the answer.
///
/// # Operations
/// ## `XENVER_VERSION`
/// 4.17, as `major << 16 | minor`. No argument.
///
/// Errors: none.
/// ## `XENVER_EXTRAVERSION`
/// `.0-domus-` and the version of Domus.
///
/// Errors: `EFAULT`.
/// ## `XENVER_COMPILE_INFO` `CompileInfo`
/// `rustc`, `domus`.
///
/// Errors: `EFAULT`.
/// ## `XENVER_CAPABILITIES`
/// `xen-3.0-x86_64 `: 64-bit PV guests.
///
/// Errors: `EFAULT`.
/// ## `XENVER_CHANGESET`
/// Names Domus.
///
/// Errors: `EFAULT`.
/// ## `XENVER_PLATFORM_PARAMETERS` `PlatformParameters`
/// Where the hypervisor's part of an address space begins: 0xffff800000000000.
///
/// Errors: `EFAULT`.
/// ## `XENVER_GET_FEATURES` `FeatureInfo`
/// `pae_pgdir_above_4gb`, `mmu_pt_update_preserve_ad`, `highmem_assist`, `gnttab_map_avail_bits`; further
/// words are 0.
///
/// Errors: `EFAULT`.
/// ## `XENVER_PAGESIZE`
/// 4096. No argument.
///
/// Errors: none.
/// ## `XENVER_GUEST_HANDLE`
/// The domain's UUID, 16 bytes.
///
/// Errors: `EFAULT`.
/// ## `XENVER_COMMANDLINE`
/// Not shown to ordinary domains.
///
/// Errors: `EPERM`: always.
/// ## `XENVER_BUILD_ID`
/// There is none.
///
/// Errors: `ENODATA`: always.
///
/// # Errors
/// - `ENOSYS`: an unknown operation.
/// - `EFAULT`, `EPERM`, `ENODATA`: see the operations.
///
/// # Left out
/// - The command line, and a build id.
///
/// # Guards against
/// - Leaks of what was on the stack: a field is zeroed before its text is written.
///
/// # Source
/// - Xen: `public/version.h`, `public/features.h`
/// - Here: `version.rs`
pub(super) fn xen_version(vcpu: &Vcpu, cmd: u32, arg: GuestVirt) -> Outcome {
    match cmd {
        XENVER_VERSION => {
            let (major, minor) = version::XEN_VERSION;
            return Ok(Done::Value(u64::from(major << 16 | minor)));
        }
        XENVER_EXTRAVERSION => text::<XEN_EXTRAVERSION_LEN>(vcpu, arg, version::EXTRA_VERSION)?,
        XENVER_COMPILE_INFO => compile_info(vcpu, arg)?,
        XENVER_CAPABILITIES => text::<XEN_CAPABILITIES_INFO_LEN>(vcpu, arg, version::CAPABILITIES)?,
        XENVER_CHANGESET => text::<XEN_CHANGESET_INFO_LEN>(vcpu, arg, version::CHANGESET)?,
        XENVER_PLATFORM_PARAMETERS => {
            vcpu.access().write_obj(
                arg,
                &PlatformParameters {
                    virt_start: HYPERVISOR_VIRT_START,
                },
            )?;
        }
        XENVER_GET_FEATURES => {
            let mut info: FeatureInfo = vcpu.access().read_obj(arg)?;
            info.submap = if info.submap_idx == 0 { FEATURES } else { 0 };
            vcpu.access().write_obj(arg, &info)?;
        }
        XENVER_PAGESIZE => return Ok(Done::Value(4096)),
        XENVER_GUEST_HANDLE => vcpu
            .access()
            .write_bytes(arg, vcpu.domain.uuid.as_bytes())?,
        XENVER_COMMANDLINE => return Err(Errno::EPERM),
        XENVER_BUILD_ID => return Err(Errno::ENODATA),
        _ => return Err(Errno::ENOSYS),
    }
    OK
}

/// Writes `text` into a field of `N` bytes, NUL-padded.
fn text<const N: usize>(vcpu: &Vcpu, arg: GuestVirt, text: &str) -> Result<(), Errno> {
    let mut field = [0; N];
    fill(&mut field, text);
    vcpu.access().write_bytes(arg, &field)
}

fn fill(field: &mut [u8], text: &str) {
    let length = text.len().min(field.len() - 1);
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}

fn compile_info(vcpu: &Vcpu, arg: GuestVirt) -> Result<(), Errno> {
    let mut info = CompileInfo::new_zeroed();
    let [compiler, by, domain, date] = version::COMPILE_INFO;
    fill(&mut info.compiler, compiler);
    fill(&mut info.compile_by, by);
    fill(&mut info.compile_domain, domain);
    fill(&mut info.compile_date, date);
    vcpu.access().write_obj(arg, &info)
}

const _: () = assert!(M2P >= HYPERVISOR_VIRT_START);
