//! What a trap means: hypercalls, faults that are ours, faults that are the
//! guest's.

use super::{Crash, Handler, Vcpu, mistakes::Cause};
use crate::{
    cpu::{Trap, reg},
    debug::{DebugTrap, Stepping},
    emulate::privileged::{self, MAX_FETCH, Outcome},
    engine::TableWrite,
    guest_access::GuestAccess,
    hypercall,
    interp::{GuestPhys, RF},
    mistakes::reason,
    paging::{PtWrite, PtWriteOutcome},
    trace::{Seen, syscall_number},
};
use domus_privcmd::trace::kind;
use guest_abi::addr::{GuestVirt, MachineAddr};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind};
use std::sync::atomic::Ordering::Relaxed;

/// Error code bits of a page fault.
pub(super) mod fault {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const USER: u32 = 4;
    pub const FETCH: u32 = 16;
}
/// The trap flag.
const TF: u64 = 1 << 8;
/// The bit of DR6 for a single step.
const SINGLE_STEP: u64 = 1 << 14;
/// Vectors that push an error code.
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;
/// An access that its mapping allows may fault this often in a row.
const MAX_SPURIOUS: u32 = 8;

/// Faults that their mapping does not explain, one after the other. Where another vCPU
/// takes the mapping away and gives it back, each of them is another one.
#[derive(Debug, Default)]
pub(super) struct Spurious {
    /// rip, address, and the number of the last change of the tables.
    place: (u64, u64, u64),
    count: u32,
}

impl Vcpu {
    /// Deals with a trap.
    ///
    /// # Errors
    /// The domain can't go on.
    pub(super) fn handle(&mut self, trap: Trap, stepping: Option<Stepping>) -> Result<(), Crash> {
        self.count(&trap);
        self.why = match trap {
            Trap::Syscall => self.state.context.gpr[reg::RAX] & 0xffff_ffff,
            Trap::Exception { vector, .. } => 1 << 33 | u64::from(vector),
            Trap::Kick => self.why,
        };
        match self.debug_trap(stepping, &trap) {
            DebugTrap::Ours => Ok(()),
            DebugTrap::Guests => self.serve_trap(trap),
            DebugTrap::LastOfStep => {
                let served = self.serve_trap(trap);
                self.debug_stepped();
                served
            }
        }
    }

    fn serve_trap(&mut self, trap: Trap) -> Result<(), Crash> {
        match trap {
            Trap::Kick => Ok(()),
            Trap::Syscall if !self.state.user_mode => hypercall::dispatch(self),
            Trap::Syscall => self.user_syscall(),
            Trap::Exception { vector, error, cr2 } => {
                let rip = self.state.context.rip;
                let done = self.exception(vector, error, cr2);
                if self.state.context.rip != rip {
                    // The instruction is done: the next one may have a breakpoint.
                    self.state.context.rflags &= !RF;
                }
                done
            }
        }
    }

    fn exception(&mut self, vector: u8, error: u32, cr2: GuestVirt) -> Result<(), Crash> {
        let Some(began) = self.trace_clock(kind::EXCEPTION) else {
            return self.raised(vector, error, cr2);
        };
        let seen = Seen::new(vector, error, cr2, &self.state);
        let handler = self.state.trap_handler(vector).address;
        let done = self.raised(vector, error, cr2);
        self.trace_exception(began, seen, handler);
        done
    }

    fn raised(&mut self, vector: u8, error: u32, cr2: GuestVirt) -> Result<(), Crash> {
        self.note_cause(Cause::Exception { vector, error, cr2 });
        match vector {
            14 => self.page_fault(error, cr2),
            13 => self.general_protection(error),
            6 => self.invalid_opcode(),
            _ => {
                if vector == 1 {
                    self.state.debug[6] |= self.take_hits();
                    if self.state.context.rflags & TF != 0 {
                        self.state.debug[6] |= SINGLE_STEP;
                    }
                }
                let error = (WITH_ERROR_CODE >> vector & 1 != 0).then_some(error);
                self.bounce(self.state.trap_handler(vector), error)
            }
        }
    }

    fn count(&self, trap: &Trap) {
        let counts = &self.domain.counts;
        match trap {
            Trap::Kick => counts.kicks.fetch_add(1, Relaxed),
            Trap::Syscall if self.state.user_mode => counts.user_syscalls.fetch_add(1, Relaxed),
            Trap::Syscall => 0,
            Trap::Exception { vector, .. } => {
                counts.exception(*vector);
                0
            }
        };
    }

    fn user_syscall(&mut self) -> Result<(), Crash> {
        if let Some(began) = self.trace_clock(kind::SYSCALL) {
            self.trace_syscall(began, syscall_number(&self.state), self.state.context.rip);
        }
        self.note_cause(Cause::Syscall);
        let handler = match self.state.context.compat {
            Some(_) => self.state.syscall32,
            None => self.state.syscall,
        };
        match handler {
            Handler { address: 0, .. } => self.bounce(self.state.trap_handler(6), None),
            handler => self.bounce(handler, None),
        }
    }

    /// Up to [`MAX_FETCH`] bytes of code at `rip`: fewer at the end of a page
    /// behind which nothing is mapped.
    pub(super) fn fetch(&self) -> Vec<u8> {
        let rip = self.state.context.rip;
        let mut bytes = [0; MAX_FETCH];
        let in_page = usize::try_from(4096 - (rip & 4095))
            .unwrap_or(1)
            .min(MAX_FETCH);
        let access = self.access();
        if access.read_bytes(GuestVirt(rip), &mut bytes).is_ok() {
            return bytes.to_vec();
        }
        match access.read_bytes(GuestVirt(rip), &mut bytes[..in_page]) {
            Ok(()) => bytes[..in_page].to_vec(),
            Err(_) => Vec::new(),
        }
    }

    fn invalid_opcode(&mut self) -> Result<(), Crash> {
        let code = self.fetch();
        let policy = &self.domain.cpuid;
        if privileged::prefixed_cpuid(&mut self.state.context, policy, &code).is_some() {
            return Ok(());
        }
        // A KVM that runs ring 3 natively raises #UD for `int n`.
        if let Some((vector, length)) = privileged::software_interrupt(&code) {
            return self.software_interrupt(vector, length);
        }
        // ... and for far branches whose operand is in memory.
        if let Some(done) = self.far_branch(&code) {
            return done;
        }
        self.bounce(self.state.trap_handler(6), None)
    }

    fn general_protection(&mut self, error: u32) -> Result<(), Crash> {
        // Bit 1: the error code names an IDT entry, so this was an `int n`.
        if error & 3 == 2 {
            let vector = u8::try_from(error >> 3 & 0xff).unwrap_or(0);
            return self.software_interrupt(vector, 2);
        }
        if error & 3 == 0 && error != 0 {
            let code = self.fetch();
            if self.use_selector(&code) {
                return Ok(());
            }
            if let Some(done) = self.far_branch(&code) {
                return done;
            }
        }
        if error == 0 {
            let code = self.fetch();
            let policy = &self.domain.cpuid;
            if privileged::plain_cpuid(&mut self.state.context, policy, &code).is_some() {
                return Ok(());
            }
            if self.state.user_mode {
                return self.bounce(self.state.trap_handler(13), Some(error));
            }
            let first = self.is_first();
            match privileged::emulate(&mut self.state, &self.domain.cpuid, first, &code) {
                Outcome::Done => return Ok(()),
                Outcome::EventMask(mask) => {
                    self.mask_events(mask);
                    return Ok(());
                }
                Outcome::SetXcr0(value) => return self.load_xcr0(value),
                Outcome::Interrupt { vector, length } => {
                    return self.software_interrupt(vector, length);
                }
                Outcome::Refused => self.tell_privileged(&code),
            }
        }
        self.bounce(self.state.trap_handler(13), Some(error))
    }

    fn software_interrupt(&mut self, vector: u8, length: u8) -> Result<(), Crash> {
        if !self.state.may_raise(vector) {
            return self.bounce(
                self.state.trap_handler(13),
                Some(u32::from(vector) << 3 | 2),
            );
        }
        self.state.context.rip = self.state.context.rip.wrapping_add(length.into());
        self.state.context.rflags &= !RF;
        self.note_cause(Cause::Exception {
            vector,
            error: 0,
            cr2: GuestVirt(0),
        });
        self.bounce(self.state.trap_handler(vector), None)
    }

    pub(super) fn page_fault(&mut self, error: u32, cr2: GuestVirt) -> Result<(), Crash> {
        let kernel_write = !self.state.user_mode
            && error & (fault::PRESENT | fault::WRITE) == fault::PRESENT | fault::WRITE;
        if kernel_write && self.table_write(cr2) {
            return Ok(());
        }
        if self.is_spurious(error, cr2) {
            return self.retry(cr2);
        }
        self.spurious = Spurious::default();
        self.domain.delivery.set_cr2(self.shared.id, cr2.0);
        let error = if self.state.user_mode {
            error | fault::USER
        } else {
            error & !fault::USER
        };
        self.bounce(self.state.trap_handler(14), Some(error))
    }

    /// A fault whose mapping, by now, allows the access: cached translations
    /// were older than the tables.
    fn is_spurious(&self, error: u32, cr2: GuestVirt) -> bool {
        let mm = self.lock_mm();
        let Some(found) = mm.translate(&self.tables(), self.state.root(), cr2) else {
            return false;
        };
        found.user
            && (error & fault::WRITE == 0 || found.writable)
            && (error & fault::FETCH == 0 || !found.nx)
    }

    fn retry(&mut self, cr2: GuestVirt) -> Result<(), Crash> {
        let (rip, epoch) = (
            self.state.context.rip,
            self.domain.space.translation_epoch(),
        );
        let place = (rip, cr2.0, epoch);
        let count = if self.spurious.place == place {
            self.spurious.count + 1
        } else {
            1
        };
        self.spurious = Spurious { place, count };
        self.flush();
        self.repeat_entry(cr2, count > MAX_SPURIOUS);
        if count > 4 * MAX_SPURIOUS {
            return Err(Crash::EndlessFault(cr2.0));
        }
        Ok(())
    }

    /// Repeats, from inside the VM, the entry that maps `va`: a KVM that
    /// shadows tables may hold an older one than memory does. With `all` it
    /// forgets the whole table.
    fn repeat_entry(&self, va: GuestVirt, all: bool) {
        let slot = self
            .lock_mm()
            .l1_slot(&self.tables(), self.state.root(), va);
        let Some(base) = slot.and_then(|slot| slot.table.addr()) else {
            return;
        };
        let index = slot.map_or(0, |slot| slot.index) as u64;
        if all {
            tracing::warn!(domain = self.domain.id.0, %va, "stale shadow page table dropped");
        }
        let addr = MachineAddr(base.0 + index * 8);
        self.writes.borrow_mut().push(TableWrite {
            addr,
            forget_frame: all,
        });
    }

    /// Does the store of a kernel that writes a page table natively. `false`
    /// if the fault is not that.
    fn table_write(&mut self, cr2: GuestVirt) -> bool {
        let mm = self.lock_mm();
        let maps_table = mm
            .translate(&self.tables(), self.state.root(), cr2)
            .is_some_and(|found| {
                !found.writable
                    && mm
                        .frame_type(found.mfn)
                        .is_some_and(|(kind, _)| kind.level().is_some())
            });
        drop(mm);
        if !maps_table {
            return false;
        }
        let code = self.fetch();
        let mut decoder = Decoder::with_ip(64, &code, self.state.context.rip, DecoderOptions::NONE);
        let insn = decoder.decode();
        let Some(store) = TableStoreInsn::decode(&insn) else {
            tracing::debug!(
                ?insn,
                "a page-table write by an instruction that is not emulated"
            );
            self.tell_table_store(cr2);
            return false;
        };
        let _ = reason::take();
        let done = self.emulate_store(&insn, &store, cr2).is_some();
        if !done {
            self.tell_table_store(cr2);
        }
        done
    }

    fn emulate_store(
        &mut self,
        insn: &Instruction,
        store: &TableStoreInsn,
        at: GuestVirt,
    ) -> Option<()> {
        let mut old = 0u64;
        for _ in 0..64 {
            let request = match store.compute(self, insn, old)? {
                Store::Plain(value) => PtWrite::Write { value },
                Store::Exchange(new) => PtWrite::CompareExchange { old, new },
                Store::Keep => return self.finish_store(insn, store, old),
            };
            let root = self.state.root();
            let outcome = self
                .update(|mm, tables| mm.emulate_pt_write(tables, root, at, store.bytes, request))
                .ok()?;
            match outcome {
                PtWriteOutcome::Written => return self.finish_store(insn, store, old),
                PtWriteOutcome::Differs(found) => old = found,
                PtWriteOutcome::NotATable => return None,
            }
        }
        None
    }

    fn finish_store(&mut self, insn: &Instruction, store: &TableStoreInsn, old: u64) -> Option<()> {
        store.finish(self, insn, old)?;
        self.state.context.rip = insn.next_ip();
        Some(())
    }

    fn operand(&self, insn: &Instruction, index: u32) -> Option<u64> {
        match insn.op_kind(index) {
            OpKind::Register => {
                let register = insn.op_register(index);
                let value = self.state.context.gpr[register.number() & 15];
                Some(if is_high_byte(register) {
                    value >> 8
                } else {
                    value
                })
            }
            OpKind::Memory => None,
            _ => Some(insn.immediate(index)),
        }
    }
}

fn is_high_byte(register: iced_x86::Register) -> bool {
    use iced_x86::Register as R;
    matches!(register, R::AH | R::BH | R::CH | R::DH)
}

/// The instructions by which kernels write page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mov,
    Xchg,
    CmpXchg,
    And,
    Or,
    /// `btr`, `bts`, `btc` with an immediate or register bit number.
    Bit(BitOp),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BitOp {
    Reset,
    Set,
    Complement,
}

#[derive(Debug, Clone, Copy)]
struct TableStoreInsn {
    kind: Kind,
    bytes: usize,
}

enum Store {
    Plain(u64),
    Exchange(u64),
    /// The comparison failed: nothing is written.
    Keep,
}

impl TableStoreInsn {
    fn decode(insn: &Instruction) -> Option<Self> {
        if insn.op0_kind() != OpKind::Memory && insn.op1_kind() != OpKind::Memory {
            return None;
        }
        let kind = match insn.code() {
            Code::Mov_rm64_r64 | Code::Mov_rm32_r32 | Code::Mov_rm16_r16 | Code::Mov_rm8_r8 => {
                Kind::Mov
            }
            Code::Mov_rm64_imm32
            | Code::Mov_rm32_imm32
            | Code::Mov_rm16_imm16
            | Code::Mov_rm8_imm8 => Kind::Mov,
            Code::Xchg_rm64_r64 | Code::Xchg_rm32_r32 | Code::Xchg_rm16_r16 | Code::Xchg_rm8_r8 => {
                Kind::Xchg
            }
            Code::Cmpxchg_rm64_r64 | Code::Cmpxchg_rm32_r32 => Kind::CmpXchg,
            Code::And_rm64_imm8 | Code::And_rm64_imm32 | Code::And_rm64_r64 => Kind::And,
            Code::And_rm8_imm8 | Code::And_rm8_r8 | Code::And_rm32_imm8 | Code::And_rm32_imm32 => {
                Kind::And
            }
            Code::Or_rm64_imm8 | Code::Or_rm64_imm32 | Code::Or_rm64_r64 => Kind::Or,
            Code::Or_rm8_imm8 | Code::Or_rm8_r8 | Code::Or_rm32_imm8 | Code::Or_rm32_imm32 => {
                Kind::Or
            }
            Code::Btr_rm64_imm8 | Code::Btr_rm32_imm8 => Kind::Bit(BitOp::Reset),
            Code::Bts_rm64_imm8 | Code::Bts_rm32_imm8 => Kind::Bit(BitOp::Set),
            Code::Btc_rm64_imm8 | Code::Btc_rm32_imm8 => Kind::Bit(BitOp::Complement),
            Code::Btr_rm64_r64 => Kind::Bit(BitOp::Reset),
            Code::Bts_rm64_r64 => Kind::Bit(BitOp::Set),
            _ => return None,
        };
        Some(TableStoreInsn {
            kind,
            bytes: insn.memory_size().size(),
        })
    }

    fn mask(&self) -> u64 {
        if self.bytes >= 8 {
            u64::MAX
        } else {
            (1 << (self.bytes * 8)) - 1
        }
    }

    /// What is stored, if memory holds `old`.
    fn compute(&self, vcpu: &Vcpu, insn: &Instruction, old: u64) -> Option<Store> {
        let source = vcpu.operand(insn, 1)?;
        Some(match self.kind {
            Kind::Mov => Store::Plain(source),
            Kind::Xchg => Store::Exchange(source),
            Kind::And => Store::Exchange(old & source & self.mask()),
            Kind::Or => Store::Exchange((old | source) & self.mask()),
            Kind::Bit(op) => Store::Exchange(apply_bit(op, old, source, self.bytes)),
            Kind::CmpXchg if (vcpu.state.context.gpr[reg::RAX] ^ old) & self.mask() == 0 => {
                Store::Exchange(source)
            }
            Kind::CmpXchg => Store::Keep,
        })
    }

    /// Registers and flags after the store.
    fn finish(&self, vcpu: &mut Vcpu, insn: &Instruction, old: u64) -> Option<()> {
        let operand = vcpu.operand(insn, 1)?;
        let context = &mut vcpu.state.context;
        match self.kind {
            Kind::Mov => {}
            Kind::Xchg => self.set_register(
                &mut context.gpr[insn.op1_register().number() & 15],
                insn,
                old,
            ),
            Kind::And => self.logic_flags(context, old & operand),
            Kind::Or => self.logic_flags(context, old | operand),
            Kind::Bit(_) => {
                let bit = operand % (self.bytes as u64 * 8);
                set_flag(&mut context.rflags, 0, old >> bit & 1 != 0);
            }
            Kind::CmpXchg => {
                let accumulator = context.gpr[reg::RAX];
                self.compare_flags(context, accumulator, old);
                if (accumulator ^ old) & self.mask() != 0 {
                    context.gpr[reg::RAX] = if self.bytes == 4 {
                        old & self.mask()
                    } else {
                        old
                    };
                }
            }
        }
        Some(())
    }

    fn set_register(&self, register: &mut u64, insn: &Instruction, value: u64) {
        let mask = self.mask();
        *register = match self.bytes {
            8 => value,
            4 => value & mask,
            _ if is_high_byte(insn.op1_register()) => *register & !0xff00 | (value & 0xff) << 8,
            _ => *register & !mask | value & mask,
        };
    }

    fn result_flags(&self, rflags: &mut u64, result: u64) {
        let result = result & self.mask();
        set_flag(rflags, 2, (result & 0xff).count_ones().is_multiple_of(2));
        set_flag(rflags, 6, result == 0);
        set_flag(rflags, 7, result >> (self.bytes * 8 - 1) & 1 != 0);
    }

    fn logic_flags(&self, context: &mut crate::cpu::Context, result: u64) {
        self.result_flags(&mut context.rflags, result);
        set_flag(&mut context.rflags, 0, false);
        set_flag(&mut context.rflags, 11, false);
    }

    fn compare_flags(&self, context: &mut crate::cpu::Context, left: u64, right: u64) {
        let (left, right) = (left & self.mask(), right & self.mask());
        let result = left.wrapping_sub(right) & self.mask();
        let sign = 1u64 << (self.bytes * 8 - 1);
        self.result_flags(&mut context.rflags, result);
        set_flag(&mut context.rflags, 0, left < right);
        set_flag(&mut context.rflags, 4, left & 15 < right & 15);
        set_flag(
            &mut context.rflags,
            11,
            (left ^ right) & (left ^ result) & sign != 0,
        );
    }
}

fn apply_bit(op: BitOp, old: u64, number: u64, bytes: usize) -> u64 {
    let bit = 1u64 << (number % (bytes as u64 * 8));
    match op {
        BitOp::Reset => old & !bit,
        BitOp::Set => old | bit,
        BitOp::Complement => old ^ bit,
    }
}

fn set_flag(rflags: &mut u64, bit: u32, set: bool) {
    *rflags = *rflags & !(1 << bit) | u64::from(set) << bit;
}
