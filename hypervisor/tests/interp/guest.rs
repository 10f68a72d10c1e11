//! A guest of two pages of code and some of data, for tests of the rules.

use crate::machine::{ALL, Machine};
use guest_abi::addr::{GuestVirt, Mfn};
use hypervisor::{
    cpu::{Context, Trap, reg},
    interp::{Exit, Interpreter},
};
use std::sync::{Arc, atomic::AtomicBool};

pub const CODE: u64 = 0xffff_8880_0000_0000;
pub const DATA: u64 = 0xffff_8880_0100_0000;

pub struct Guest {
    pub machine: Arc<Machine>,
    pub root: Mfn,
    pub code: Mfn,
    pub data: Mfn,
    pub interpreter: Interpreter,
    pub context: Context,
}

impl Guest {
    /// With `code` at [`CODE`], and a page of data at [`DATA`] in RSI and RDI;
    /// the page after it is missing.
    pub fn new(code: &[u8]) -> Self {
        let machine = Arc::new(Machine::new(64));
        let root = machine.alloc();
        let frame = machine.map_new(root, CODE, ALL);
        let data = machine.map_new(root, DATA, ALL);
        machine.write(frame, 0, code);
        let mut context = Context {
            rip: CODE,
            rflags: 0x202,
            ..Context::default()
        };
        context.gpr[reg::RSI] = DATA;
        context.gpr[reg::RDI] = DATA;
        context.gpr[reg::RSP] = DATA + 0x800;
        Guest {
            interpreter: crate::interpreter(&machine),
            machine,
            root,
            code: frame,
            data,
            context,
        }
    }

    pub fn run(&mut self) -> Exit {
        self.run_for(10_000)
    }

    pub fn run_for(&mut self, budget: u64) -> Exit {
        let go = AtomicBool::new(false);
        self.interpreter
            .run(&mut self.context, self.root, budget, &go)
    }

    /// Runs from the start of the code again.
    pub fn rerun(&mut self) -> Exit {
        self.context.rip = CODE;
        self.run()
    }

    /// The context without RF, which every fault sets.
    pub fn stopped(&self) -> Context {
        Context {
            rflags: self.context.rflags & !(1 << 16),
            ..self.context
        }
    }

    pub fn gpr(&mut self, register: usize) -> &mut u64 {
        &mut self.context.gpr[register]
    }
}

pub fn exception(vector: u8, error: u32, cr2: u64) -> Exit {
    Exit::Trap(Trap::Exception {
        vector,
        error,
        cr2: GuestVirt(cr2),
    })
}

pub fn page_fault(error: u32, cr2: u64) -> Exit {
    exception(14, error, cr2)
}

/// `hlt`: how the tests' code ends.
pub const END: Exit = Exit::Trap(Trap::Exception {
    vector: 13,
    error: 0,
    cr2: GuestVirt(0),
});
