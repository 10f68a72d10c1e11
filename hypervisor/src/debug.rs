//! A debugger's hold on a domain.
//!
//! ```text
//! Dom0: Attach, breakpoints, Go ----> State <---- vCPU threads: #BP, #DB, shutdown
//!                    Wait <---------- stops
//! ```
//!
//! A breakpoint is an `int3` in the guest's memory. Its #BP comes here before it
//! goes to the guest; one that is not ours is the guest's own. A step runs one
//! vCPU with TF set until its next trap, whatever that is; TF does not stay.
//!
//! Law: without a debugger this costs one relaxed load a trap. What it changed
//! is taken back when its connection ends: the pause, and each `int3` that is
//! still there.
//!
//! Lock order: [`Debugger`]'s state, then `life`, then `mm`.

use crate::{
    cpu::Trap,
    domain::Domain,
    vcpu::{Vcpu, request},
};
use domus_privcmd::debug::{MAX_BREAKPOINTS, Stop};
use guest_abi::{
    addr::{GuestVirt, MachineAddr, Mfn, PAGE_SIZE, VcpuId},
    arch_x86::{VGCF_IN_KERNEL, VcpuGuestContext},
    arch_x86_64::cr3_to_pfn,
    errno::Errno,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

const INT3: u8 = 0xcc;
const TF: u64 = 1 << 8;
/// How long a vCPU's thread may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Stops that wait for their reader.
const MAX_STOPS: usize = 64;

/// The debugger of one domain.
#[derive(Debug, Default)]
pub struct Debugger {
    active: AtomicBool,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The connection that has it.
    session: Option<u64>,
    /// Its pause is counted in the domain's.
    halted: bool,
    /// The only vCPU that may run.
    only: Option<VcpuId>,
    /// It takes a step.
    step: bool,
    breakpoints: BTreeMap<u64, Patch>,
    stops: VecDeque<Stop>,
}

/// Where an `int3` was put.
#[derive(Debug, Clone, Copy)]
struct Patch {
    at: MachineAddr,
    original: u8,
}

impl Debugger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody debugs the domain.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// Whether the debugger lets this vCPU run.
    #[must_use]
    pub fn lets_run(&self, vcpu: VcpuId) -> bool {
        !self.is_active() || self.lock().only.is_none_or(|only| only == vcpu)
    }

    fn steps(&self, vcpu: VcpuId) -> bool {
        if !self.is_active() {
            return false;
        }
        let state = self.lock();
        state.step && state.only == Some(vcpu)
    }

    fn owned(&self, session: u64) -> Result<MutexGuard<'_, State>, Errno> {
        let state = self.lock();
        if state.session == Some(session) {
            Ok(state)
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn report(&self, state: &mut State, stop: Stop) {
        if state.stops.len() < MAX_STOPS {
            state.stops.push_back(stop);
        }
        self.news.notify_all();
    }

    /// Waits up to `patience` for a stop.
    ///
    /// # Errors
    /// `EINVAL` if the debugger is not this connection.
    pub fn wait(&self, session: u64, patience: Duration) -> Result<Option<Stop>, Errno> {
        let state = self.owned(session)?;
        let silent = |state: &mut State| state.stops.is_empty();
        let (mut state, _) = self
            .news
            .wait_timeout_while(state, patience, silent)
            .unwrap_or_else(PoisonError::into_inner);
        Ok(state.stops.pop_front())
    }

    /// Tells the debugger that the domain has shut down.
    pub fn shut_down(&self, reason: u32) {
        if self.is_active() {
            let mut state = self.lock();
            self.report(&mut state, Stop::Shutdown { reason });
        }
    }
}

impl Domain {
    /// Stops the domain for a debugger.
    ///
    /// # Errors
    /// `EBUSY` if it has one.
    pub fn debug_attach(&self, session: u64) -> Result<(), Errno> {
        let mut state = self.debugger.lock();
        if state.session.is_some() {
            return Err(Errno::EBUSY);
        }
        state.session = Some(session);
        self.debugger.active.store(true, Relaxed);
        self.hold(&mut state);
        drop(state);
        self.wait_until_stopped();
        Ok(())
    }

    /// Takes back all that the debugger did to watch, if it is this one.
    pub fn debug_detach(&self, session: u64) {
        let Ok(mut state) = self.debugger.owned(session) else {
            return;
        };
        self.debugger.active.store(false, Relaxed);
        let old = std::mem::take(&mut *state);
        drop(state);
        for patch in old.breakpoints.values() {
            self.unpatch(*patch);
        }
        if old.halted {
            let _ = self.unpause();
        }
    }

    /// Stops all vCPUs, and reports that.
    ///
    /// # Errors
    /// `EINVAL` if the debugger is not this connection.
    pub fn debug_halt(&self, session: u64) -> Result<(), Errno> {
        let mut state = self.debugger.owned(session)?;
        if !state.halted {
            self.hold(&mut state);
            self.debugger.report(&mut state, Stop::Halted);
        }
        drop(state);
        self.wait_until_stopped();
        Ok(())
    }

    /// Lets the vCPUs run, or `only` one of them, that one perhaps for one
    /// instruction.
    ///
    /// # Errors
    /// `EINVAL` if the debugger is not this connection, the domain runs, or a
    /// step is nobody's; `ENOENT` for an unknown vCPU.
    pub fn debug_go(&self, session: u64, only: Option<VcpuId>, step: bool) -> Result<(), Errno> {
        if only.is_some_and(|vcpu| self.vcpu(vcpu).is_none()) {
            return Err(Errno::ENOENT);
        }
        if step && only.is_none() {
            return Err(Errno::EINVAL);
        }
        let mut state = self.debugger.owned(session)?;
        if !state.halted {
            return Err(Errno::EINVAL);
        }
        if !state.stops.is_empty() {
            // Another vCPU stopped at the same time: that is to be seen first.
            return Ok(());
        }
        (state.halted, state.only, state.step) = (false, only, step);
        drop(state);
        self.unpause()
    }

    /// Pauses the domain on the debugger's behalf, without waiting.
    fn hold(&self, state: &mut State) {
        (state.halted, state.only, state.step) = (true, None, false);
        self.lock_life().pauses += 1;
        self.state_changed();
    }

    fn wait_until_stopped(&self) {
        self.vcpus
            .iter()
            .for_each(|vcpu| vcpu.wait_for(request::STATE));
    }

    fn vcpu(&self, vcpu: VcpuId) -> Option<&crate::vcpu::VcpuShared> {
        self.vcpus
            .get(usize::try_from(vcpu.0).ok()?)
            .map(|vcpu| &**vcpu)
    }

    /// The page-table root that a vCPU runs under.
    fn debug_root(&self, vcpu: VcpuId) -> Result<Mfn, Errno> {
        let shared = self.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        let context = shared.context(PATIENCE).ok_or(Errno::ENODATA)?;
        let user = context.ctrlreg[1];
        let root = if context.flags & VGCF_IN_KERNEL == 0 && user & 1 != 0 {
            user
        } else {
            context.ctrlreg[3]
        };
        Ok(Mfn(cr3_to_pfn(root)))
    }

    /// Where `va` lies in machine memory.
    fn debug_translate(&self, root: Mfn, va: GuestVirt) -> Option<MachineAddr> {
        let tables = crate::space::Tables::read_only(&self.space);
        let found = self.space.lock_mm().translate(&tables, root, va)?;
        found.mfn.addr()?.checked_add(va.page_offset())
    }

    /// Reads up to `length` bytes as `vcpu` sees them, to the first page that
    /// is missing.
    ///
    /// # Errors
    /// `EINVAL` as above, `ENOENT` and `ENODATA` for a vCPU without registers,
    /// `EFAULT` if nothing is there.
    pub fn debug_read(
        &self,
        session: u64,
        vcpu: VcpuId,
        address: GuestVirt,
        length: usize,
    ) -> Result<Vec<u8>, Errno> {
        let root = self.debug_root(vcpu)?;
        let state = self.debugger.owned(session)?;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let Some(va) = address.checked_add(bytes.len() as u64) else {
                break;
            };
            let Some(at) = self.debug_translate(root, va) else {
                break;
            };
            let mut piece = vec![0; in_page(va, length - bytes.len())];
            if self.space.memory.read(at, &mut piece).is_none() {
                break;
            }
            state.hide(at, &mut piece);
            bytes.extend(piece);
        }
        if bytes.is_empty() && length != 0 {
            return Err(Errno::EFAULT);
        }
        Ok(bytes)
    }

    /// Writes bytes where `vcpu` sees them.
    ///
    /// # Errors
    /// As [`debug_read`](Self::debug_read); `EPERM` for a page table.
    pub fn debug_write(
        &self,
        session: u64,
        vcpu: VcpuId,
        address: GuestVirt,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let root = self.debug_root(vcpu)?;
        let mut state = self.debugger.owned(session)?;
        let mut done = 0;
        while done < bytes.len() {
            let va = address.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let at = self.debug_translate(root, va).ok_or(Errno::EFAULT)?;
            let step = in_page(va, bytes.len() - done);
            let mut piece = bytes[done..done + step].to_vec();
            state.keep(at, &mut piece);
            self.poke(at, &piece)?;
            done += step;
        }
        Ok(())
    }

    /// Writes into a frame that holds the guest's code or data.
    fn poke(&self, at: MachineAddr, bytes: &[u8]) -> Result<(), Errno> {
        let mfn = Mfn(at.0 / PAGE_SIZE);
        let mm = self.space.lock_mm();
        if !self.space.may_write(&mm, mfn) {
            return Err(Errno::EPERM);
        }
        self.space.memory.write(at, bytes).ok_or(Errno::EFAULT)?;
        self.space.note_written(mfn);
        Ok(())
    }

    /// Sets the registers of a vCPU that is stopped.
    ///
    /// # Errors
    /// `EINVAL` if the domain runs, `ENOENT` for an unknown vCPU, `ENODATA` for
    /// one that never ran.
    pub fn debug_set_registers(
        &self,
        session: u64,
        vcpu: VcpuId,
        context: Box<VcpuGuestContext>,
    ) -> Result<(), Errno> {
        let shared = self.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        if !self.debugger.owned(session)?.halted {
            return Err(Errno::EINVAL);
        }
        if !shared.set_registers(context) {
            return Err(Errno::ENODATA);
        }
        Ok(())
    }

    /// Puts an `int3` at `address`.
    ///
    /// # Errors
    /// As [`debug_write`](Self::debug_write), `ENOSPC` if there are too many.
    pub fn debug_add_breakpoint(
        &self,
        session: u64,
        vcpu: VcpuId,
        address: GuestVirt,
    ) -> Result<(), Errno> {
        let root = self.debug_root(vcpu)?;
        let mut state = self.debugger.owned(session)?;
        if state.breakpoints.contains_key(&address.0) {
            return Ok(());
        }
        if state.breakpoints.len() >= MAX_BREAKPOINTS {
            return Err(Errno::ENOSPC);
        }
        let at = self.debug_translate(root, address).ok_or(Errno::EFAULT)?;
        let mut original = [0];
        self.space
            .memory
            .read(at, &mut original)
            .ok_or(Errno::EFAULT)?;
        // Another name of the same instruction has the `int3` there already.
        state.hide(at, &mut original);
        self.poke(at, &[INT3])?;
        let [original] = original;
        state.breakpoints.insert(address.0, Patch { at, original });
        Ok(())
    }

    /// Takes the `int3` at `address` back.
    ///
    /// # Errors
    /// `EINVAL` if the debugger is not this connection, `ENOENT` if there is
    /// none.
    pub fn debug_remove_breakpoint(&self, session: u64, address: GuestVirt) -> Result<(), Errno> {
        let mut state = self.debugger.owned(session)?;
        let patch = state.breakpoints.remove(&address.0).ok_or(Errno::ENOENT)?;
        if !state.breakpoints.values().any(|other| other.at == patch.at) {
            self.unpatch(patch);
        }
        Ok(())
    }

    /// Puts the original byte back, if our `int3` is still there.
    fn unpatch(&self, patch: Patch) {
        let mut now = [0];
        let read = self.space.memory.read(patch.at, &mut now);
        if read.is_some() && now == [INT3] {
            let _ = self.poke(patch.at, &[patch.original]);
        }
    }

    /// A vCPU has come to where the debugger wants to look.
    fn debug_stop(&self, stop: Stop) {
        let mut state = self.debugger.lock();
        if state.session.is_none() {
            return;
        }
        if !state.halted {
            self.hold(&mut state);
        }
        self.debugger.report(&mut state, stop);
    }
}

impl State {
    /// Shows the original bytes in what was read at `at`.
    fn hide(&self, at: MachineAddr, bytes: &mut [u8]) {
        for patch in self.breakpoints.values() {
            if let Some(byte) = byte_of(patch.at, at, bytes) {
                *byte = patch.original;
            }
        }
    }

    /// Keeps our `int3`s in what is to be written at `at`, and what was to be
    /// there as their originals.
    fn keep(&mut self, at: MachineAddr, bytes: &mut [u8]) {
        for patch in self.breakpoints.values_mut() {
            if let Some(byte) = byte_of(patch.at, at, bytes) {
                patch.original = *byte;
            }
        }
        for patch in self.breakpoints.values() {
            if let Some(byte) = byte_of(patch.at, at, bytes) {
                *byte = INT3;
            }
        }
    }
}

fn byte_of(wanted: MachineAddr, at: MachineAddr, bytes: &mut [u8]) -> Option<&mut u8> {
    let index = wanted.0.checked_sub(at.0)?;
    bytes.get_mut(usize::try_from(index).ok()?)
}

/// How many of `left` bytes at `va` lie in its page.
fn in_page(va: GuestVirt, left: usize) -> usize {
    let room = usize::try_from(PAGE_SIZE - va.page_offset()).unwrap_or(1);
    room.min(left)
}

/// A vCPU that takes a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stepping {
    /// The guest had set TF itself.
    guests_own: bool,
}

impl Vcpu {
    /// Sets TF if the debugger wants a step of this vCPU.
    pub(crate) fn begin_step(&mut self) -> Option<Stepping> {
        if !self.domain.debugger.steps(self.shared.id) {
            return None;
        }
        let flags = &mut self.state.context.rflags;
        let guests_own = *flags & TF != 0;
        *flags |= TF;
        Some(Stepping { guests_own })
    }

    /// Takes TF back after a trap; whether the step is over.
    fn end_step(&mut self, stepping: Option<Stepping>, trap: &Trap) -> bool {
        let Some(Stepping { guests_own }) = stepping else {
            return false;
        };
        if !guests_own {
            let context = &mut self.state.context;
            context.rflags &= !TF;
            if *trap == Trap::Syscall {
                context.gpr[crate::cpu::reg::R11] &= !TF;
            }
        }
        *trap != Trap::Kick
    }

    /// Looks at a trap before the guest does: a debugger's own ends here.
    /// Whether there is one, and whether a step is over once it has been dealt
    /// with.
    pub(crate) fn debug_trap(&mut self, stepping: Option<Stepping>, trap: &Trap) -> DebugTrap {
        let stepped = self.end_step(stepping, trap);
        if !self.domain.debugger.is_active() {
            return DebugTrap::Guests;
        }
        let vcpu = self.shared.id.0;
        match trap {
            Trap::Exception { vector: 3, .. } => {
                let address = self.state.context.rip.wrapping_sub(1);
                let ours = self
                    .domain
                    .debugger
                    .lock()
                    .breakpoints
                    .contains_key(&address);
                if ours {
                    self.state.context.rip = address;
                    self.domain.debug_stop(Stop::Breakpoint { vcpu });
                    return DebugTrap::Ours;
                }
            }
            Trap::Exception { vector: 1, .. } if stepped => {
                self.domain.debug_stop(Stop::Step { vcpu });
                return DebugTrap::Ours;
            }
            _ => {}
        }
        if stepped {
            DebugTrap::LastOfStep
        } else {
            DebugTrap::Guests
        }
    }

    /// The step is over.
    pub(crate) fn debug_stepped(&self) {
        let vcpu = self.shared.id.0;
        self.domain.debug_stop(Stop::Step { vcpu });
    }
}

/// Whose a trap is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DebugTrap {
    /// The debugger's: it has been dealt with.
    Ours,
    /// The guest's or the hypervisor's.
    Guests,
    /// That, and with it the step is over.
    LastOfStep,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(patches: &[(u64, u64, u8)]) -> State {
        let breakpoints = patches.iter().map(|(va, at, original)| {
            let patch = Patch {
                at: MachineAddr(*at),
                original: *original,
            };
            (*va, patch)
        });
        State {
            breakpoints: breakpoints.collect(),
            ..State::default()
        }
    }

    #[test]
    fn breakpoints_do_not_show_in_what_is_read() {
        let state = with(&[(0x1000, 0x5001, 0x90), (0x2000, 0x6000, 0x55)]);
        let mut bytes = [1, INT3, 3];
        state.hide(MachineAddr(0x5000), &mut bytes);
        assert_eq!(bytes, [1, 0x90, 3]);
    }

    #[test]
    fn a_write_over_a_breakpoint_keeps_it_and_changes_what_lies_under_it() {
        let mut state = with(&[(0x1000, 0x5001, 0x90), (0x9000, 0x5001, 0x90)]);
        let mut bytes = [7, 8, 9];
        state.keep(MachineAddr(0x5000), &mut bytes);
        assert_eq!(bytes, [7, INT3, 9]);
        assert!(state.breakpoints.values().all(|patch| patch.original == 8));
    }

    #[test]
    fn only_its_own_connection_is_told() {
        let debugger = Debugger::default();
        assert_eq!(debugger.wait(1, Duration::ZERO), Err(Errno::EINVAL));
        debugger.lock().session = Some(1);
        debugger.active.store(true, Relaxed);
        assert_eq!(debugger.wait(1, Duration::ZERO), Ok(None));
        debugger.shut_down(3);
        assert_eq!(debugger.wait(2, Duration::ZERO), Err(Errno::EINVAL));
        let stop = debugger.wait(1, Duration::ZERO);
        assert_eq!(stop, Ok(Some(Stop::Shutdown { reason: 3 })));
    }
}
