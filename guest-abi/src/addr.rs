//! The numbers of the boundary, each with a type of its own.
//!
//! Law: none of these has arithmetic operators. A number that a guest supplied
//! is moved only by `checked_*` methods, so that an overflow is an error that
//! somebody handles and never a wrapped value that somebody trusts.
//!
//! ```
//! use guest_abi::addr::{GuestVirt, MachineAddr, Mfn};
//!
//! assert_eq!(MachineAddr(0x5678).frame(), Mfn(5));
//! assert_eq!(MachineAddr(0x5678).page_offset(), 0x678);
//! assert!(!GuestVirt(0x8000_0000_0000).is_canonical());
//! // A frame number too large for an address has none.
//! assert_eq!(Mfn(1 << 60).addr(), None);
//! ```

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $repr:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }

        impl $name {
            /// `self + n`, or `None` on overflow.
            #[must_use]
            pub const fn checked_add(self, n: $repr) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }
            /// `self - other`, or `None` if it would be negative.
            #[must_use]
            pub const fn checked_offset_from(self, other: Self) -> Option<$repr> {
                self.0.checked_sub(other.0)
            }
        }
    };
}

number!(
    /// A machine frame number: an index into the domain's machine address
    /// space, in pages. What page-table entries and hypercalls name.
    Mfn, u64
);
number!(
    /// A pseudo-physical frame number: the guest's own contiguous numbering.
    Pfn, u64
);
number!(
    /// A byte address in the domain's machine address space.
    MachineAddr, u64
);
number!(
    /// A guest virtual address, not necessarily canonical.
    GuestVirt, u64
);
number!(
    /// A domain's number. 0 is the control domain; 0x7ff0 and up are reserved.
    DomId, u16
);
number!(
    /// A vCPU's number within its domain.
    VcpuId, u32
);
number!(
    /// An event channel's number within its domain.
    Port, u32
);
number!(
    /// A grant reference: an index into the granting domain's grant table.
    GrantRef, u32
);

impl Mfn {
    /// The entry that marks "no frame" in p2m and m2p tables.
    pub const INVALID: Mfn = Mfn(u64::MAX);

    /// The address of the frame's first byte; `None` past 2^52 bytes.
    #[must_use]
    pub const fn addr(self) -> Option<MachineAddr> {
        if self.0 >> 40 == 0 {
            Some(MachineAddr(self.0 << PAGE_SHIFT))
        } else {
            None
        }
    }
}

impl MachineAddr {
    /// The frame that holds this byte.
    #[must_use]
    pub const fn frame(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }
    /// The byte's offset within its frame.
    #[must_use]
    pub const fn page_offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl GuestVirt {
    /// Whether bits 63..47 are all equal.
    #[must_use]
    pub const fn is_canonical(self) -> bool {
        let top = self.0 >> 47;
        top == 0 || top == 0x1_ffff
    }
    /// The byte's offset within its page.
    #[must_use]
    pub const fn page_offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl DomId {
    /// The control domain.
    pub const DOM0: DomId = DomId(0);
    /// The first reserved number: no real domain has it or a higher one.
    pub const FIRST_RESERVED: DomId = DomId(0x7ff0);
    /// "The calling domain."
    pub const SELF: DomId = DomId(0x7ff0);
    /// Owner of memory-mapped I/O.
    pub const IO: DomId = DomId(0x7ff1);
    /// Owner of hypervisor frames.
    pub const XEN: DomId = DomId(0x7ff2);
    /// Copy-on-write pages.
    pub const COW: DomId = DomId(0x7ff3);
    /// "No domain."
    pub const INVALID: DomId = DomId(0x7ff4);
}
