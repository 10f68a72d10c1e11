//! Where a vCPU's time goes: running, waiting for a CPU, blocked, offline.
//!
//! A guest may register an area where it reads this (Linux' stolen time). With
//! the VM assist `runstate_update_flag` the top bit of `state_entry_time` is
//! set there while the rest changes.

use crate::guest_access::{GuestAccess, GuestAccessExt};
use guest_abi::{
    addr::GuestVirt,
    errno::Errno,
    vcpu::{
        RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, RUNSTATE_RUNNING, VcpuRunstateInfo,
        XEN_RUNSTATE_UPDATE,
    },
};
use std::mem::offset_of;

/// The account of one vCPU. All times are system time.
#[derive(Debug, Clone)]
pub struct Runstate {
    info: VcpuRunstateInfo,
    area: Option<GuestVirt>,
}

impl Runstate {
    /// A vCPU that is offline since `now`.
    #[must_use]
    pub fn new(now: u64) -> Self {
        let info = VcpuRunstateInfo {
            state: RUNSTATE_OFFLINE,
            state_entry_time: now,
            ..VcpuRunstateInfo::default()
        };
        Runstate { info, area: None }
    }

    /// The current state, a `RUNSTATE_*`.
    #[must_use]
    pub fn state(&self) -> u32 {
        self.info.state
    }

    /// Enters `state` (a `RUNSTATE_*`; another number is ignored). The account
    /// of the state left is closed even if it is the same one.
    pub fn change(&mut self, state: u32, now: u64) {
        if state > RUNSTATE_OFFLINE {
            return;
        }
        self.charge(now);
        self.info.state = state;
    }

    fn charge(&mut self, now: u64) {
        let spent = now.saturating_sub(self.info.state_entry_time);
        add(self.time(self.info.state), spent);
        self.info.state_entry_time = self.info.state_entry_time.max(now);
    }

    fn time(&mut self, state: u32) -> Option<&mut u64> {
        self.info.time.get_mut(usize::try_from(state).ok()?)
    }

    /// Of the time accounted as running, `ns` were spent waiting for a CPU: the
    /// host ran somebody else. (Wall time minus the thread's CPU time tells.)
    pub fn steal(&mut self, ns: u64) {
        let running = self.info.time[RUNSTATE_RUNNING as usize];
        let stolen = ns.min(running);
        self.info.time[RUNSTATE_RUNNING as usize] -= stolen;
        add(self.time(RUNSTATE_RUNNABLE), stolen);
    }

    /// `VCPUOP_get_runstate_info`: the account, the running period included.
    #[must_use]
    pub fn get(&self, now: u64) -> VcpuRunstateInfo {
        let mut now_closed = Runstate {
            info: self.info,
            area: None,
        };
        let spent = now.saturating_sub(self.info.state_entry_time);
        add(now_closed.time(self.info.state), spent);
        now_closed.info
    }

    /// The vCPU's CPU time, as `xm list` shows it.
    #[must_use]
    pub fn cpu_time(&self, now: u64) -> u64 {
        self.get(now).time[RUNSTATE_RUNNING as usize]
    }

    /// `VCPUOP_register_runstate_memory_area`: 0 ends the registration. Write
    /// it with [`publish`](Self::publish) next.
    ///
    /// # Errors
    /// `EFAULT` for an address that is not the guest's to name.
    pub fn register(&mut self, at: GuestVirt) -> Result<(), Errno> {
        if !super::area_address_ok(at, size_of::<VcpuRunstateInfo>() as u64) {
            return Err(Errno::EFAULT);
        }
        self.area = (at.0 != 0).then_some(at);
        Ok(())
    }

    /// Whether there is an area to write at a change of state.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.area.is_some()
    }

    /// Writes the account to the registered area, through the vCPU's kernel
    /// address space; with the update flag if the guest asked for that. As in
    /// Xen the guest is not told if it fails.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn publish(&self, guest: &dyn GuestAccess, update_flag: bool) -> Result<(), Errno> {
        let Some(area) = self.area else { return Ok(()) };
        if !update_flag {
            return guest.write_obj(area, &self.info);
        }
        let offset = offset_of!(VcpuRunstateInfo, state_entry_time) as u64;
        let entry = area.checked_add(offset).ok_or(Errno::EFAULT)?;
        let changing = self.info.state_entry_time | XEN_RUNSTATE_UPDATE;
        guest.write_obj(entry, &changing)?;
        guest.write_obj(
            area,
            &VcpuRunstateInfo {
                state_entry_time: changing,
                ..self.info
            },
        )?;
        guest.write_obj(entry, &self.info.state_entry_time)
    }
}

fn add(total: Option<&mut u64>, ns: u64) {
    if let Some(total) = total {
        *total = total.saturating_add(ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercall::test_guest::TestGuest;
    use guest_abi::vcpu::RUNSTATE_BLOCKED;
    use proptest::prelude::*;
    use std::cell::RefCell;

    #[test]
    fn each_state_is_charged_for_its_time() {
        let mut vcpu = Runstate::new(100);
        vcpu.change(RUNSTATE_RUNNING, 150);
        vcpu.change(RUNSTATE_BLOCKED, 250);
        vcpu.change(RUNSTATE_RUNNING, 1250);
        assert_eq!(vcpu.get(1300).time, [150, 0, 1000, 50]);
        assert_eq!(vcpu.cpu_time(1251), 101);
        vcpu.change(RUNSTATE_RUNNING, 1300);
        vcpu.steal(30);
        assert_eq!(vcpu.get(1300).time, [120, 30, 1000, 50]);
        vcpu.steal(u64::MAX);
        assert_eq!(vcpu.get(1300).time, [0, 150, 1000, 50]);
        vcpu.change(9, 2000);
        assert_eq!(vcpu.state(), RUNSTATE_RUNNING);
    }

    #[test]
    fn a_clock_that_steps_back_charges_nothing() {
        let mut vcpu = Runstate::new(100);
        vcpu.change(RUNSTATE_RUNNING, 90);
        assert_eq!(vcpu.get(80).time, [0; 4]);
        assert_eq!(vcpu.get(101).time, [1, 0, 0, 0]);
    }

    /// Keeps what was written, in order.
    struct Recorder(TestGuest, RefCell<Vec<VcpuRunstateInfo>>);

    impl GuestAccess for Recorder {
        fn read_bytes(&self, from: GuestVirt, buf: &mut [u8]) -> Result<(), Errno> {
            self.0.read_bytes(from, buf)
        }
        fn write_bytes(&self, to: GuestVirt, bytes: &[u8]) -> Result<(), Errno> {
            self.0.write_bytes(to, bytes)?;
            self.1.borrow_mut().push(self.0.read_obj(GuestVirt(64))?);
            Ok(())
        }
    }

    #[test]
    fn the_flag_is_set_while_the_area_changes() {
        let guest = Recorder(TestGuest::new(4096), RefCell::default());
        let mut vcpu = Runstate::new(100);
        assert_eq!(
            vcpu.register(GuestVirt(0xffff_8700_0000_0000)),
            Err(Errno::EFAULT)
        );
        vcpu.register(GuestVirt(64)).unwrap();
        vcpu.change(RUNSTATE_RUNNING, 200);
        vcpu.publish(&guest, true).unwrap();
        let seen = guest.1.borrow();
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[0].time, [0; 4]);
        assert!(
            seen[..2]
                .iter()
                .all(|it| it.state_entry_time == 200 | XEN_RUNSTATE_UPDATE)
        );
        assert_eq!(seen[2], vcpu.get(200));
    }

    #[test]
    fn without_the_flag_the_area_is_written_at_once() {
        let guest = Recorder(TestGuest::new(4096), RefCell::default());
        let mut vcpu = Runstate::new(100);
        vcpu.register(GuestVirt(64)).unwrap();
        vcpu.publish(&guest, false).unwrap();
        assert_eq!(*guest.1.borrow(), [vcpu.get(100)]);
        vcpu.register(GuestVirt(0)).unwrap();
        assert!(!vcpu.is_registered());
        vcpu.publish(&guest, true).unwrap();
        assert_eq!(guest.1.borrow().len(), 1);
    }

    proptest! {
        #[test]
        fn no_time_is_lost_or_made(changes in prop::collection::vec((0u32..4, 0u64..1000), 0..50)) {
            let mut now = 7;
            let mut vcpu = Runstate::new(now);
            for (state, later) in changes {
                now += later;
                vcpu.change(state, now);
                vcpu.steal(later / 3);
                prop_assert_eq!(vcpu.get(now).time.iter().sum::<u64>(), now - 7);
            }
        }
    }
}
