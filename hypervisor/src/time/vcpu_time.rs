//! `vcpu_time_info`: the clock's parameters, where each vCPU reads them.
//!
//! Written to the vCPU's `vcpu_info`, and to a second place in the guest's
//! virtual memory if it registered one (its user space reads the clock there).
//!
//! Protocol: the version becomes odd, the fields are written, the version
//! becomes even. A reader that saw an odd version, or two different ones
//! before and after, reads again.

use super::TscClock;
use crate::{
    guest_access::{GuestAccess, GuestAccessExt},
    shared_words::SharedWords,
};
use guest_abi::{
    addr::{GuestVirt, MachineAddr},
    errno::Errno,
    xen::{VcpuTimeInfo, XEN_PVCLOCK_TSC_STABLE_BIT},
};
use std::mem::offset_of;

const VERSION: u64 = offset_of!(VcpuTimeInfo, version) as u64;
const TSC_TIMESTAMP: u64 = offset_of!(VcpuTimeInfo, tsc_timestamp) as u64;
const SYSTEM_TIME: u64 = offset_of!(VcpuTimeInfo, system_time) as u64;
const MUL: u64 = offset_of!(VcpuTimeInfo, tsc_to_system_mul) as u64;
const SHIFT: u64 = offset_of!(VcpuTimeInfo, tsc_shift) as u64;

/// What a domain's vCPUs are told of the clock.
#[derive(Debug, Clone, Copy)]
pub struct PvClock {
    /// The hypervisor's clock.
    pub clock: TscClock,
    /// The guest's TSC minus the host's.
    pub tsc_offset: u64,
    /// All vCPUs read one TSC, at a constant rate: readings on different vCPUs
    /// may be compared. Linux' vDSO needs this.
    pub stable: bool,
}

impl PvClock {
    /// The structure, with version 0.
    #[must_use]
    pub fn info(&self) -> VcpuTimeInfo {
        let scale = self.clock.scale();
        VcpuTimeInfo {
            tsc_timestamp: self.clock.start_tsc().wrapping_add(self.tsc_offset),
            system_time: 0,
            tsc_to_system_mul: scale.mul,
            tsc_shift: scale.shift,
            flags: if self.stable {
                XEN_PVCLOCK_TSC_STABLE_BIT
            } else {
                0
            },
            ..VcpuTimeInfo::default()
        }
    }
}

/// Writes the clock at `at`, the `time` field of a `vcpu_info` (see
/// [`VcpuInfoArea::with_time`](crate::events::VcpuInfoArea::with_time)).
pub fn publish_time(words: &dyn SharedWords, at: MachineAddr, info: &VcpuTimeInfo) {
    let field = |offset| MachineAddr(at.0.wrapping_add(offset));
    let odd = words.load_u32(field(VERSION)) | 1;
    words.store_u32(field(VERSION), odd);
    words.store_u64(field(TSC_TIMESTAMP), info.tsc_timestamp);
    words.store_u64(field(SYSTEM_TIME), info.system_time);
    words.store_u32(field(MUL), info.tsc_to_system_mul);
    let [shift] = info.tsc_shift.to_le_bytes();
    words.store_u32(field(SHIFT), u32::from_le_bytes([shift, info.flags, 0, 0]));
    words.store_u32(field(VERSION), odd.wrapping_add(1));
}

/// The second place of a vCPU's clock
/// (`VCPUOP_register_vcpu_time_memory_area`).
#[derive(Debug, Default)]
pub struct SecondaryTime {
    at: Option<GuestVirt>,
    version: u32,
}

impl SecondaryTime {
    /// Registers `at`; 0 ends the registration. Write it with
    /// [`publish`](Self::publish) next.
    ///
    /// # Errors
    /// `EFAULT` for an address that is not the guest's to name.
    pub fn register(&mut self, at: GuestVirt) -> Result<(), Errno> {
        if !super::area_address_ok(at, size_of::<VcpuTimeInfo>() as u64) {
            return Err(Errno::EFAULT);
        }
        self.at = (at.0 != 0).then_some(at);
        Ok(())
    }

    /// Writes the clock there, through the vCPU's kernel address space. As in
    /// Xen the guest is not told if that fails: try again when the vCPU next
    /// runs its kernel.
    ///
    /// # Errors
    /// `EFAULT`, with a version left odd if it was written.
    pub fn publish(&mut self, guest: &dyn GuestAccess, info: &VcpuTimeInfo) -> Result<(), Errno> {
        let Some(at) = self.at else { return Ok(()) };
        let odd = self.version | 1;
        self.version = odd.wrapping_add(1);
        guest.write_obj(at, &odd)?;
        guest.write_obj(
            at,
            &VcpuTimeInfo {
                version: odd,
                ..*info
            },
        )?;
        guest.write_obj(at, &self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hypercall::test_guest::TestGuest, shared_words::test_memory::Pages};
    use std::time::{Duration, Instant};

    const AT: MachineAddr = MachineAddr(64 + 32);

    fn clock(start: u64) -> PvClock {
        PvClock {
            clock: TscClock::starting_at(2_500_000, start),
            tsc_offset: 5,
            stable: true,
        }
    }

    #[test]
    fn the_guest_computes_our_clock() {
        let pv = clock(1_000_000);
        let info = pv.info();
        let host_tsc = 1_000_000 + 777_777;
        let guest_tsc = host_tsc + 5;
        let delta = (guest_tsc - info.tsc_timestamp) >> -info.tsc_shift;
        let ns = info.system_time + ((delta * u64::from(info.tsc_to_system_mul)) >> 32);
        assert_eq!(ns, pv.clock.ns_at(host_tsc));
    }

    #[test]
    fn a_guests_tsc_may_be_behind_the_hosts() {
        let mut pv = clock(100);
        pv.tsc_offset = 0u64.wrapping_sub(100);
        assert_eq!(pv.info().tsc_timestamp, 0);
    }

    #[test]
    fn fields_land_where_the_abi_has_them() {
        let memory = Pages::new(1);
        memory.store_u32(AT, 7);
        publish_time(&memory, AT, &clock(95).info());
        assert_eq!(memory.load_u32(AT), 8, "an odd version counts as begun");
        assert_eq!(memory.load_u64(MachineAddr(AT.0 + 8)), 100);
        assert_eq!(memory.load_u32(MachineAddr(AT.0 + 24)), 3_435_973_836);
        assert_eq!(memory.load_u8(MachineAddr(AT.0 + 28)), 0xff);
        assert_eq!(memory.load_u8(MachineAddr(AT.0 + 29)), 1);
        publish_time(&memory, AT, &clock(95).info());
        assert_eq!(memory.load_u32(AT), 10);
    }

    #[test]
    fn a_reader_by_the_protocol_sees_no_mixture() {
        let memory = Pages::new(1);
        let end = Instant::now() + Duration::from_millis(200);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0u64.. {
                    let info = VcpuTimeInfo {
                        tsc_timestamp: n,
                        system_time: n,
                        ..Default::default()
                    };
                    publish_time(&memory, AT, &info);
                    if Instant::now() > end {
                        break;
                    }
                }
            });
            let mut good = 0u64;
            while Instant::now() < end {
                let before = memory.load_u32(AT);
                let tsc = memory.load_u64(MachineAddr(AT.0 + 8));
                let time = memory.load_u64(MachineAddr(AT.0 + 16));
                if before & 1 == 0 && memory.load_u32(AT) == before {
                    assert_eq!(tsc, time);
                    good += 1;
                }
            }
            assert!(good > 0);
        });
    }

    #[test]
    fn the_second_place_follows_registration() {
        let guest = TestGuest::new(4096);
        let info = clock(95).info();
        let mut second = SecondaryTime::default();
        assert_eq!(
            second.register(GuestVirt(0xffff_8000_0000_0000)),
            Err(Errno::EFAULT)
        );
        assert_eq!(
            second.publish(&guest, &info),
            Ok(()),
            "nothing registered, nothing written"
        );
        second.register(GuestVirt(64)).unwrap();
        second.publish(&guest, &info).unwrap();
        second.publish(&guest, &info).unwrap();
        let read: VcpuTimeInfo = guest.read_obj(GuestVirt(64)).unwrap();
        assert_eq!(read, VcpuTimeInfo { version: 4, ..info });
        second.register(GuestVirt(1 << 40)).unwrap();
        assert_eq!(second.publish(&guest, &info), Err(Errno::EFAULT));
        second.register(GuestVirt(0)).unwrap();
        assert_eq!(second.publish(&guest, &info), Ok(()));
    }
}
