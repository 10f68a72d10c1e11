//! What compiled code calls.
//!
//! Law: nothing here unwinds. A panic is kept, compiled code is left, and the
//! panic goes on from there.

use super::layout::BIAS;
use crate::interp::{
    op::{Flow, Op},
    state::Cpu,
    stopped,
};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Go on at `Cpu::rip`.
pub const NEXT: i32 = 1;
/// The interpreter has to execute what is at `Cpu::rip`.
pub const INTERPRET: i32 = 2;
/// `Cpu::stop` says why the guest stopped.
pub const STOPPED: i32 = 3;
/// A function of ours has panicked.
pub const PANICKED: i32 = 4;
/// Go on at `Cpu::rip`, and make a link, whose number is in the bits above, go
/// there the next time.
pub const LINK: i32 = 5;
/// In the kind of an access: it writes.
pub const WRITE: i32 = 0x100;
/// Where the number of a link begins.
pub const LINK_SHIFT: u32 = 8;

/// The vCPU behind FRAME.
fn cpu<'a>(frame: *mut u8) -> &'a mut Cpu {
    // SAFETY: compiled code passes on what `enter` was given: the vCPU, which
    // nobody else refers to while compiled code runs.
    unsafe { &mut *frame.wrapping_sub(BIAS).cast::<Cpu>() }
}

fn kept(cpu: &mut Cpu, function: impl FnOnce(&mut Cpu) -> i32) -> u64 {
    let result = catch_unwind(AssertUnwindSafe(|| function(cpu)));
    let code = result.unwrap_or_else(|panic| {
        cpu.panic = Some(panic);
        PANICKED
    });
    u64::from(code.unsigned_abs())
}

/// Makes the translation of `address` for an access of `kind % 256` bytes, a
/// write if `kind` has bit 8. Zero, or what to do instead.
pub extern "sysv64" fn translate(frame: *mut u8, address: u64, kind: u64) -> u64 {
    kept(cpu(frame), |cpu| {
        let (bytes, write) = (kind & 0xff, kind & 0x100 != 0);
        if cpu.make_fast(address, bytes, write) {
            0
        } else {
            INTERPRET
        }
    })
}

/// Makes the vCPU's state that before the instruction of the site which has called
/// shared code and would have come back to `address`. Always [`INTERPRET`].
pub extern "sysv64" fn leave_site(frame: *mut u8, address: u64, _: u64) -> u64 {
    kept(cpu(frame), |cpu| {
        super::back_to_site(cpu, address);
        INTERPRET
    })
}

/// Compares region `number` with memory.
pub extern "sysv64" fn verify(frame: *mut u8, number: u64, _: u64) -> u64 {
    kept(cpu(frame), |cpu| {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let right = super::verify(cpu, number);
        if right { 0 } else { NEXT }
    })
}

/// Executes one operation of the interpreter's.
pub extern "sysv64" fn interpret(frame: *mut u8, op: *const Op, _: u64) -> u64 {
    // SAFETY: compiled code names operations of its own region, which lives as
    // long as it may run.
    let op = unsafe { &*op };
    kept(cpu(frame), |cpu| {
        let code = match (op.run)(cpu, op) {
            Ok(Flow::Next) => 0,
            Ok(Flow::Branch) => NEXT,
            Err(_) => {
                stopped(cpu, op);
                STOPPED
            }
        };
        let extra = i64::try_from(std::mem::take(&mut cpu.extra)).unwrap_or(i64::MAX);
        cpu.left = cpu.left.saturating_sub(extra);
        code
    })
}
