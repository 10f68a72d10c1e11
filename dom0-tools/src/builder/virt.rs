//! Which virtual addresses are a guest's own.

use std::ops::Range;

use guest_abi::{
    addr::GuestVirt,
    arch_x86_64::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START},
};

/// Bits of a virtual address that page tables translate.
pub const MASK: u64 = (1 << 48) - 1;

/// Whether `range` lies in one canonical half and not in the hypervisor's part.
#[must_use]
pub fn is_guests(range: &Range<u64>) -> bool {
    let Some(last) = range.end.checked_sub(1) else {
        return false;
    };
    if range.start > last {
        return false;
    }
    let canonical = GuestVirt(range.start).is_canonical() && GuestVirt(last).is_canonical();
    let same_half = range.start >> 63 == last >> 63;
    canonical && same_half && (last < HYPERVISOR_VIRT_START || range.start >= HYPERVISOR_VIRT_END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_ranges_outside_the_hypervisors_are_the_guests() {
        assert!(is_guests(&(0..0x1000)));
        assert!(is_guests(&(0xffff_ffff_8000_0000..0xffff_ffff_f000_0000)));
        assert!(is_guests(&(0xffff_8800_0000_0000..0xffff_8800_0000_1000)));
        assert!(!is_guests(&(0xffff_87ff_ffff_f000..0xffff_8800_0000_1000)));
        assert!(!is_guests(&(0x7fff_ffff_f000..0x8000_0000_1000)));
        assert!(!is_guests(&(0x7fff_ffff_f000..0xffff_8800_0000_1000)));
        assert!(!is_guests(&(0x2000..0x2000)));
        assert!(!is_guests(&(0..0)));
    }
}
