//! Bounce frames: how an exception, an event or user mode's `syscall` reaches
//! a handler of the guest kernel.
//!
//! ```text
//!  old rsp, aligned down to 16 ->  ss
//!                                  rsp
//!                                  rflags      IF = events were not masked
//!                                  cs          bits 32..39: the saved event mask
//!                                  rip
//!                                  error code  (only where the vector has one)
//!                                  ds es fs gs (failsafe only, ds lowest)
//!                                  r11
//!                           rsp -> rcx
//! ```
//!
//! Law: one trap, one frame. A frame that can't be written crashes the domain:
//! there is nobody else to tell.

use super::{Crash, Vcpu, mistakes::Cause, state::Handler};
use crate::{cpu::reg, guest_access::GuestAccess};
use guest_abi::addr::GuestVirt;

const IF: u64 = 1 << 9;
/// TF, NT, RF and AC end with the entry into a handler.
const CLEARED: u64 = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 18;

impl Vcpu {
    /// Enters `handler`, in kernel mode.
    ///
    /// # Errors
    /// There is no handler, or no stack for the frame.
    pub(super) fn bounce(&mut self, handler: Handler, error: Option<u32>) -> Result<(), Crash> {
        let error = error.map(u64::from);
        self.push_frame(handler, error.as_slice())
    }

    /// The guest can't be gone on with where it wanted to (a bad `iret`): enters
    /// the failsafe handler, whose frame has the data selectors in place of an
    /// error code. Those of a 64-bit guest are null. A kernel without one gets
    /// the `#GP` that a processor would raise.
    ///
    /// # Errors
    /// There is no handler, or no stack for the frame.
    pub(crate) fn bounce_failsafe(&mut self) -> Result<(), Crash> {
        self.note_cause(Cause::Failsafe);
        match self.state.failsafe {
            Handler { address: 0, .. } => self.bounce(self.state.trap_handler(13), Some(0)),
            handler => self.push_frame(handler, &[0; 4]),
        }
    }

    /// Pushes a frame with the words `extra` between `r11` and `rip`.
    fn push_frame(&mut self, handler: Handler, extra: &[u64]) -> Result<(), Crash> {
        self.note_bounce();
        if handler.address == 0 || !GuestVirt(handler.address).is_canonical() {
            return Err(Crash::NoHandler(handler.address));
        }
        let (cs, ss) = self.state.selectors();
        let mask = self.events_masked();
        let old_rsp = self.state.context.gpr[reg::RSP];
        let mut stack = old_rsp;
        if self.state.user_mode {
            self.state.toggle_mode();
            stack = self.state.kernel_sp;
        }
        let context = &self.state.context;
        let flags = context.rflags & !IF & !(3 << 12)
            | if mask { 0 } else { IF }
            | u64::from(self.state.iopl) << 12;
        let cs = cs | u64::from(mask) << 32;
        let mut words = vec![context.gpr[reg::RCX], context.gpr[reg::R11]];
        words.extend(extra);
        words.extend([context.rip, cs, flags, old_rsp, ss]);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let top = stack & !0xf;
        let rsp = top
            .checked_sub(bytes.len() as u64)
            .ok_or(Crash::NoStack(stack))?;
        self.access_kernel()
            .write_bytes(GuestVirt(rsp), &bytes)
            .map_err(|_| Crash::NoStack(rsp))?;
        let context = &mut self.state.context;
        context.compat = None;
        context.gpr[reg::RSP] = rsp;
        context.rip = handler.address;
        context.rflags &= !CLEARED;
        if handler.masks_events {
            self.mask_events(true);
        }
        Ok(())
    }
}
