//! The instructions, by family: for each, its handlers and the choice of one.

/// The handler for an operand width of 1, 2, 4 or 8 bytes.
macro_rules! by_width {
    ($width:expr, $handler:ident $(, $parameter:tt)*) => {
        match $width {
            1 => Some($handler::<$($parameter,)* u8> as $crate::interp::op::Handler),
            2 => Some($handler::<$($parameter,)* u16> as $crate::interp::op::Handler),
            4 => Some($handler::<$($parameter,)* u32> as $crate::interp::op::Handler),
            8 => Some($handler::<$($parameter,)* u64> as $crate::interp::op::Handler),
            _ => None,
        }
    };
}

/// The same where there is no 8-bit form.
macro_rules! by_wide_width {
    ($width:expr, $handler:ident $(, $parameter:tt)*) => {
        match $width {
            2 => Some($handler::<$($parameter,)* u16> as $crate::interp::op::Handler),
            4 => Some($handler::<$($parameter,)* u32> as $crate::interp::op::Handler),
            8 => Some($handler::<$($parameter,)* u64> as $crate::interp::op::Handler),
            _ => None,
        }
    };
}

use super::{
    host::Memory,
    op::{Halt, Op},
    state::Cpu,
};

/// The operand that is in memory or in this register.
#[inline(always)]
fn operand<const MEM: bool, W: Memory>(cpu: &mut Cpu, op: &Op, register: u8) -> Result<W, Halt> {
    if MEM {
        cpu.load(cpu.address(op))
    } else {
        Ok(cpu.get(register))
    }
}

pub mod alu;
pub mod bits;
pub mod compat;
pub mod control;
pub mod data;
pub mod legacy;
pub mod masked;
pub mod segment;
pub mod shift;
pub mod stack;
pub mod string;
pub mod swap;
pub mod system;
pub mod vector;
pub mod xstate;
