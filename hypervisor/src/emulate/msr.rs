//! Model-specific registers, as a PV guest's kernel sees them.
//!
//! Law: no MSR of the host is read or written for a guest. An MSR that is not
//! listed faults, as on a CPU without it; stock kernels probe with a fix-up.

use crate::vcpu::GuestState;
use guest_abi::addr::GuestVirt;

const IA32_TSC: u32 = 0x10;
const IA32_PLATFORM_ID: u32 = 0x17;
const IA32_APIC_BASE: u32 = 0x1b;
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
const IA32_MTRRCAP: u32 = 0xfe;
const IA32_MCG_CAP: u32 = 0x179;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_PAT: u32 = 0x277;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// The power-on PAT: what the entries of a guest without PAT mean.
const PAT: u64 = 0x0007_0406_0007_0406;
/// SCE LME LMA NXE.
const EFER_VALUE: u64 = 0xd01;

/// The MSR does not exist, or not with this value: `#GP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchMsr;

/// `rdmsr`.
///
/// # Errors
/// [`NoSuchMsr`].
pub fn read(state: &GuestState, first_vcpu: bool, msr: u32) -> Result<u64, NoSuchMsr> {
    Ok(match msr {
        IA32_APIC_BASE => 0xfee0_0000 | if first_vcpu { 0x100 } else { 0 },
        IA32_MISC_ENABLE => 1,
        IA32_PAT => PAT,
        EFER => EFER_VALUE,
        FS_BASE => state.context.fs_base,
        GS_BASE => state.context.gs_base,
        KERNEL_GS_BASE => state.other_gs_base,
        IA32_TSC => crate::time::read_tsc(),
        IA32_PLATFORM_ID | IA32_BIOS_SIGN_ID | IA32_MTRRCAP | IA32_MCG_CAP | IA32_MTRR_DEF_TYPE
        | TSC_AUX => 0,
        _ => return Err(NoSuchMsr),
    })
}

/// `wrmsr`.
///
/// # Errors
/// [`NoSuchMsr`]; nothing was changed.
pub fn write(state: &mut GuestState, msr: u32, value: u64) -> Result<(), NoSuchMsr> {
    let base = || {
        if GuestVirt(value).is_canonical() {
            Ok(value)
        } else {
            Err(NoSuchMsr)
        }
    };
    match msr {
        FS_BASE => state.context.fs_base = base()?,
        GS_BASE => state.context.gs_base = base()?,
        KERNEL_GS_BASE => state.other_gs_base = base()?,
        EFER if value == EFER_VALUE => {}
        IA32_PAT if value == PAT => {}
        // Xen drops these without a word too.
        IA32_TSC | IA32_APIC_BASE | IA32_BIOS_SIGN_ID | IA32_MISC_ENABLE | TSC_AUX => {}
        _ => return Err(NoSuchMsr),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_must_be_canonical() {
        let mut state = GuestState::new();
        assert_eq!(
            write(&mut state, GS_BASE, 0x8000_0000_0000_0000),
            Err(NoSuchMsr)
        );
        assert_eq!(write(&mut state, GS_BASE, 0xffff_8880_0000_0000), Ok(()));
        assert_eq!(read(&state, true, GS_BASE), Ok(0xffff_8880_0000_0000));
    }

    #[test]
    fn unknown_registers_fault() {
        let mut state = GuestState::new();
        assert_eq!(read(&state, true, 0x48), Err(NoSuchMsr));
        assert_eq!(write(&mut state, 0xc000_0082, 1), Err(NoSuchMsr));
        assert_eq!(write(&mut state, EFER, 0), Err(NoSuchMsr));
    }
}
