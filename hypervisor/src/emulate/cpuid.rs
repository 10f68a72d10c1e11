//! What CPU the guest sees.
//!
//! Law: one table answers everybody. The guest kernel asks through the emulation
//! prefix or a fault and is answered from it; a plain `cpuid` of any mode is made
//! to fault where KVM can do that, and is answered by KVM from the same table
//! where it can't. So the state of each feature that a program sees is saved by
//! its kernel.
//!
//! Features are shown by a list of what works in ring 3, not by hiding what is
//! known not to: a CPU newer than this code shows nothing that nobody tried.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
const LEAF1_EDX: u32 = bits(&[0, 2, 4, 5, 6, 8, 15, 19, 23, 24, 25, 26]);
const XSAVE: u32 = 1 << 26;
/// Shown from the start where there is XSAVE, or Linux chooses FXSAVE.
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// FSGSBASE BMI1 AVX2 BMI2 ERMS RDSEED ADX CLFLUSHOPT CLWB SHA.
const LEAF7_EBX: u32 = bits(&[0, 3, 5, 8, 9, 18, 19, 23, 24, 29]);
/// GFNI VAES VPCLMULQDQ.
const LEAF7_ECX: u32 = bits(&[8, 9, 10]);
/// FSRM.
const LEAF7_EDX: u32 = bits(&[4]);
/// LAHF ABM SSE4A MISALIGNSSE PREFETCHW.
const EXT1_ECX: u32 = bits(&[0, 5, 6, 7, 8]);
/// SYSCALL NX RDTSCP LM; MMXEXT and FXSR_OPT of AMD.
const EXT1_EDX: u32 = bits(&[11, 20, 22, 25, 27, 29]);
/// XSAVEOPT XSAVEC.
const XSAVE_FEATURES: u32 = bits(&[0, 1]);
/// What the interpreter lacks: SSE4A.
const NOT_INTERPRETED_EXT1_ECX: u32 = bits(&[6]);
/// x87, SSE, AVX.
pub const XCR0_MASK: u64 = 7;
/// Bytes of an XSAVE area with x87, SSE and AVX, in either format.
const XSAVE_BYTES: u32 = 576 + 256;
const MAX_LEAF: u32 = 0xd;
const MAX_EXTENDED: u32 = 0x8000_0008;
const XEN_BASE: u32 = 0x4000_0000;
const XEN_LEAVES: u32 = 5;

const fn bits(list: &[u32]) -> u32 {
    let (mut mask, mut i) = (0, 0);
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

/// The four result registers of `cpuid`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The CPUID table of a domain.
#[derive(Debug, Clone)]
pub struct CpuidPolicy {
    entries: Vec<kvm_cpuid_entry2>,
}

impl CpuidPolicy {
    /// The table for guests of a host whose KVM supports `host`.
    #[must_use]
    pub fn new(host: &CpuId, xen_version: (u32, u32), tsc_khz: u32) -> Self {
        let mut entries: Vec<_> = host
            .as_slice()
            .iter()
            .filter_map(|entry| shown(*entry))
            .collect();
        entries.extend(xen_leaves(xen_version, tsc_khz));
        CpuidPolicy { entries }
    }

    /// The same CPU with the features that the interpreter has.
    #[must_use]
    pub fn for_interpreter(mut self) -> Self {
        for entry in &mut self.entries {
            if entry.function == 0x8000_0001 {
                entry.ecx &= !NOT_INTERPRETED_EXT1_ECX;
            }
        }
        self
    }

    /// The table for `KVM_SET_CPUID2`.
    ///
    /// # Panics
    /// Never: the table is shorter than KVM's limit.
    #[must_use]
    pub fn for_kvm(&self) -> CpuId {
        CpuId::from_entries(&self.entries)
            .unwrap_or_else(|_| CpuId::new(0).expect("an empty table fits"))
    }

    /// The CR4 bits that a vCPU runs with: those whose features are shown.
    #[must_use]
    pub fn cr4(&self) -> u64 {
        const PAE: u64 = 1 << 5;
        const OSFXSR: u64 = 1 << 9;
        const OSXMMEXCPT: u64 = 1 << 10;
        let fsgsbase = u64::from(self.lookup(7, 0).ebx & 1) << 16;
        let osxsave = u64::from(self.lookup(1, 0).ecx >> 27 & 1) << 18;
        PAE | OSFXSR | OSXMMEXCPT | fsgsbase | osxsave
    }

    /// What `cpuid` answers to `leaf` and `subleaf`; zeros for unknown ones.
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32) -> Leaf {
        let indexed = |entry: &kvm_cpuid_entry2| entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        self.entries
            .iter()
            .find(|entry| entry.function == leaf && (!indexed(entry) || entry.index == subleaf))
            .map_or_else(Leaf::default, |e| Leaf {
                eax: e.eax,
                ebx: e.ebx,
                ecx: e.ecx,
                edx: e.edx,
            })
    }
}

/// A host entry as guests see it.
fn shown(mut e: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    match e.function {
        0 => e.eax = MAX_LEAF,
        1 => {
            // One logical CPU, APIC id 0: an APIC is not shown.
            e.ebx = e.ebx & 0xff00 | 1 << 16;
            let osxsave = if e.ecx & XSAVE != 0 { OSXSAVE } else { 0 };
            e.ecx = e.ecx & LEAF1_ECX | osxsave | HYPERVISOR;
            e.edx &= LEAF1_EDX;
        }
        2 | 4 | 0x8000_0002..=0x8000_0006 => {}
        7 if e.index == 0 => {
            e.eax = 0;
            e.ebx &= LEAF7_EBX;
            e.ecx &= LEAF7_ECX;
            e.edx &= LEAF7_EDX;
        }
        0xd => return xsave_leaf(e),
        0x8000_0000 => e.eax = e.eax.min(MAX_EXTENDED),
        0x8000_0001 => {
            e.ecx &= EXT1_ECX;
            e.edx &= EXT1_EDX;
        }
        // The invariant TSC.
        0x8000_0007 => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, e.edx & 1 << 8),
        0x8000_0008 => (e.ebx, e.ecx, e.edx) = (0, 0, 0),
        _ => return None,
    }
    Some(e)
}

fn xsave_leaf(mut e: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    match e.index {
        0 => (e.eax, e.ebx, e.ecx, e.edx) = (7, XSAVE_BYTES, XSAVE_BYTES, 0),
        1 => (e.eax, e.ebx, e.ecx, e.edx) = (e.eax & XSAVE_FEATURES, XSAVE_BYTES, 0, 0),
        2 => (e.eax, e.ebx, e.ecx, e.edx) = (256, 576, 0, 0),
        // MPX and AVX-512 are not to be used, but where ring 3 runs with the
        // host's XCR0 an XSAVEC that asks for them touches the last byte of
        // their place, and glibc, which asks for all, takes its size from here.
        3 | 5..=7 if e.eax != 0 => {}
        _ => return None,
    }
    Some(e)
}

fn xen_leaves((major, minor): (u32, u32), tsc_khz: u32) -> Vec<kvm_cpuid_entry2> {
    let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let plain = |leaf, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
        function: XEN_BASE + leaf,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    vec![
        plain(
            0,
            XEN_BASE + XEN_LEAVES,
            word(b"XenV"),
            word(b"MMXe"),
            word(b"nVMM"),
        ),
        plain(1, major << 16 | minor, 0, 0, 0),
        // One hypercall page, its MSR, and MMU_PT_UPDATE_PRESERVE_AD.
        plain(2, 1, XEN_BASE, 1, 0),
        // The TSC runs at this many kHz, is not emulated and is reliable.
        plain(3, 0x6, 2, tsc_khz, 0),
        plain(4, 0, 0, 0, 0),
        plain(5, 0, 40, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> CpuidPolicy {
        let entry = |function, index, flags, fill| kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax: fill,
            ebx: fill,
            ecx: fill,
            edx: fill,
            ..Default::default()
        };
        let mut host = vec![
            entry(0, 0, 0, 0x1f),
            entry(1, 0, 0, !0),
            entry(0x12, 0, 1, !0),
        ];
        host.extend((0..12).map(|index| entry(0xd, index, 1, !0)));
        host.extend([
            entry(7, 0, 1, !0),
            entry(0x8000_0001, 0, 0, !0),
            entry(0x4000_0000, 0, 0, !0),
        ]);
        CpuidPolicy::new(&CpuId::from_entries(&host).unwrap(), (4, 17), 2_000_000)
    }

    #[test]
    fn what_ring_3_cannot_use_is_hidden() {
        let leaf = policy().lookup(1, 0);
        for (name, bit) in [
            ("VME", 1),
            ("PSE", 3),
            ("MCE", 7),
            ("APIC", 9),
            ("MTRR", 12),
            ("PGE", 13),
            ("MCA", 14),
        ] {
            assert_eq!(leaf.edx >> bit & 1, 0, "{name}");
        }
        for (name, bit) in [("PCID", 17), ("x2APIC", 21), ("VMX", 5), ("MONITOR", 3)] {
            assert_eq!(leaf.ecx >> bit & 1, 0, "{name}");
        }
        assert_ne!(leaf.ecx & OSXSAVE, 0);
        let leaf = policy().lookup(7, 0);
        assert_eq!(
            (leaf.ebx >> 7 & 1, leaf.ebx >> 20 & 1),
            (0, 0),
            "SMEP, SMAP"
        );
        assert_eq!(
            policy().lookup(0x8000_0001, 0).edx >> 26 & 1,
            0,
            "1 GiB pages"
        );
    }

    #[test]
    fn xsave_sizes_agree() {
        let policy = policy();
        assert_eq!(policy.lookup(0xd, 0).ecx, 832);
        assert_eq!(policy.lookup(0xd, 1).ebx, 832);
        // Sizes only: glibc's buffer has to hold what its XSAVEC may touch.
        assert_eq!(policy.lookup(0xd, 0).eax, 7);
        assert_ne!(policy.lookup(0xd, 6).eax, 0);
        assert_eq!(policy.lookup(0xd, 9), Leaf::default());
    }

    #[test]
    fn the_hypervisor_leaf_says_xen_and_nothing_of_the_host_s() {
        let leaf = policy().lookup(0x4000_0000, 0);
        assert_eq!(leaf.ebx.to_le_bytes(), *b"XenV");
        assert_eq!(policy().lookup(0x4000_0001, 0).eax, 0x0004_0011);
        assert_eq!(policy().lookup(0x12, 0), Leaf::default());
        assert_eq!(
            policy()
                .entries
                .iter()
                .filter(|e| e.function == 0x4000_0000)
                .count(),
            1
        );
    }
}
