//! Far jumps, calls and returns of ring 3: from 64-bit code to 32-bit code and back.
//!
//! A processor would read the guest's descriptor tables; the KVM engine's own lack
//! the guest's segments, and the interpreter has none: both raise #GP (some KVMs #UD), and
//! the branch is done here.
//!
//! Law: a branch stays in ring 3: gates, and selectors whose RPL is not 3, are #GP with
//! the selector. (So they are on Xen, which gives a call gate level 0, and emulates gates
//! for 32-bit guests alone.) All of the operand and of the stack is read before anything changes.

use super::{Crash, Vcpu};
use crate::{
    cpu::{Compat, reg},
    guest_access::GuestAccess,
    hypercall::code_segment,
    interp::{Far, FarKind, POPPED},
};
use guest_abi::addr::GuestVirt;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};

/// CS and SS of 64-bit code.
const LONG_MODE: (u16, u16) = (0x33, 0x2b);
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
/// Error code bits of a page fault.
const WRITE: u32 = 2;
const USER: u32 = 4;

/// The exception that a branch ends in.
struct Fault {
    vector: u8,
    error: u32,
    cr2: GuestVirt,
}

impl Vcpu {
    /// Does the far branch `code` at `rip`, or raises what it ends in. `None` if it is no
    /// far branch.
    pub(super) fn far_branch(&mut self, code: &[u8]) -> Option<Result<(), Crash>> {
        let bits = if self.state.context.compat.is_some() {
            32
        } else {
            64
        };
        let rip = self.state.context.rip;
        let insn = Decoder::with_ip(bits, code, rip, DecoderOptions::NONE).decode();
        let far = Far::of(&insn)?;
        let done = match far.kind {
            FarKind::Jump => self.far_jump(&insn, far.bytes),
            FarKind::Call => self.far_call(&insn, far.bytes),
            FarKind::Return(more) => self.far_return(far.bytes, more),
            FarKind::InterruptReturn => self.interrupt_return(far.bytes),
        };
        Some(match done {
            Ok(()) => Ok(()),
            Err(Fault { vector, error, cr2 }) => self.raise(vector, error, cr2),
        })
    }

    fn raise(&mut self, vector: u8, error: u32, cr2: GuestVirt) -> Result<(), Crash> {
        match vector {
            PAGE_FAULT => self.page_fault(error, cr2),
            _ => self.bounce(self.state.trap_handler(vector), Some(error)),
        }
    }

    /// An address within what the running code can reach.
    fn reach(&self, address: u64) -> u64 {
        if self.state.context.compat.is_some() {
            address & 0xffff_ffff
        } else {
            address
        }
    }

    fn word(&self, address: u64, bytes: u64) -> Result<u64, Fault> {
        let mut word = [0; 8];
        let at = GuestVirt(self.reach(address));
        let len = usize::try_from(bytes).unwrap_or(8).min(8);
        match self.access().read_bytes(at, &mut word[..len]) {
            Ok(()) => Ok(u64::from_le_bytes(word)),
            Err(_) => Err(Fault {
                vector: PAGE_FAULT,
                error: USER,
                cr2: at,
            }),
        }
    }

    /// Where a jump or a call goes: selector and offset.
    fn target(&self, insn: &Instruction, bytes: u64) -> Result<(u64, u64), Fault> {
        let selector = || insn.far_branch_selector().into();
        match insn.op0_kind() {
            OpKind::FarBranch16 => return Ok((selector(), insn.far_branch16().into())),
            OpKind::FarBranch32 => return Ok((selector(), insn.far_branch32().into())),
            _ => {}
        }
        let Some(at) = self.memory_operand(insn, 0) else {
            return Err(protection(0));
        };
        Ok((self.word(at.wrapping_add(bytes), 2)?, self.word(at, bytes)?))
    }

    /// The segment that a selector names, if ring 3 may run in it.
    fn segment(&mut self, cs: u64, ss: u64) -> Result<Option<Compat>, Fault> {
        let refused = || protection(u32::try_from(cs & 0xfffc).unwrap_or(0));
        if cs & 3 != 3 {
            return Err(refused());
        }
        code_segment(self, cs & 0xffff, ss).map_err(|_| refused())
    }

    /// The selectors of the running code and its stack.
    fn running(&self) -> (u16, u16) {
        let compat = self.state.context.compat;
        compat.map_or(LONG_MODE, |compat| (compat.cs, compat.ss))
    }

    fn go(&mut self, segment: Option<Compat>, offset: u64) -> Result<(), Fault> {
        let offset = match segment {
            Some(_) => offset & 0xffff_ffff,
            None => offset,
        };
        if !GuestVirt(offset).is_canonical() {
            return Err(protection(0));
        }
        (self.state.context.compat, self.state.context.rip) = (segment, offset);
        Ok(())
    }

    fn far_jump(&mut self, insn: &Instruction, bytes: u64) -> Result<(), Fault> {
        let (cs, offset) = self.target(insn, bytes)?;
        let segment = self.segment(cs, self.running().1.into())?;
        self.go(segment, offset)
    }

    fn far_call(&mut self, insn: &Instruction, bytes: u64) -> Result<(), Fault> {
        let (cs, offset) = self.target(insn, bytes)?;
        let (own, stack_segment) = self.running();
        let segment = self.segment(cs, stack_segment.into())?;
        let below = self.reach(self.state.context.gpr[reg::RSP].wrapping_sub(2 * bytes));
        let stack = self.stack_address(0u64.wrapping_sub(2 * bytes));
        let words = [insn.next_ip(), own.into()];
        let len = usize::try_from(bytes).unwrap_or(8).min(8);
        let image: Vec<u8> = words
            .iter()
            .flat_map(|word| word.to_le_bytes().into_iter().take(len))
            .collect();
        let written = self.access().write_bytes(GuestVirt(stack), &image);
        written.map_err(|_| Fault {
            vector: PAGE_FAULT,
            error: USER | WRITE,
            cr2: GuestVirt(stack),
        })?;
        self.go(segment, offset)?;
        self.state.context.gpr[reg::RSP] = below;
        Ok(())
    }

    fn far_return(&mut self, bytes: u64, more: u64) -> Result<(), Fault> {
        let stack = self.state.context.gpr[reg::RSP];
        let offset = self.word(self.stack_address(0), bytes)?;
        let cs = self.word(self.stack_address(bytes), 2)?;
        let segment = self.segment(cs, self.running().1.into())?;
        let above = self.reach(stack.wrapping_add(2 * bytes + more));
        self.go(segment, offset)?;
        self.state.context.gpr[reg::RSP] = above;
        Ok(())
    }

    /// `iret` within ring 3: three words, in 64-bit code five.
    fn interrupt_return(&mut self, bytes: u64) -> Result<(), Fault> {
        let stack = self.state.context.gpr[reg::RSP];
        let word = |n: u64| self.word(self.stack_address(n * bytes), bytes);
        let (offset, cs, flags) = (word(0)?, word(1)?, word(2)?);
        let (above, ss) = match self.state.context.compat {
            Some(compat) => (self.reach(stack.wrapping_add(3 * bytes)), compat.ss.into()),
            None => (word(3)?, word(4)?),
        };
        let segment = self.segment(cs, ss)?;
        self.go(segment, offset)?;
        let context = &mut self.state.context;
        context.gpr[reg::RSP] = above;
        // A word of 16 bits has no more flags than that.
        let popped = if bytes == 2 { POPPED & 0xffff } else { POPPED };
        context.rflags = context.rflags & !popped | flags & popped;
        Ok(())
    }
}

fn protection(error: u32) -> Fault {
    Fault {
        vector: GENERAL_PROTECTION,
        error,
        cr2: GuestVirt(0),
    }
}
