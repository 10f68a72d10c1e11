//! Code that the KVM engine can't run: 32-bit programs, and whatever runs with
//! segments that the engine's tables lack. It is interpreted, for as long as its
//! context says so ([`needs_interpreter`](crate::cpu::Context::needs_interpreter)).
//!
//! Law: the vector and x87 registers are in one place: here from the first such
//! entry until the next one of the engine. Page-table words that are queued for
//! the VM stay queued, within the limits of run-ahead.

use super::{Crash, Vcpu};
use crate::{
    cpu::{DataSegments, Trap},
    engine::{Engine, EngineKind, Entry, SoftVcpu, TableWrites},
};
use std::sync::Arc;

/// The interpreter beside a KVM engine.
pub struct Aside {
    vcpu: Box<SoftVcpu>,
    /// It has the vector and x87 registers.
    has_fpu: bool,
}

impl Vcpu {
    /// Runs the guest if its code is not for the engine.
    pub(super) fn run_aside(&mut self) -> Result<Option<Trap>, Crash> {
        let breakpoints = self.state.breakpoints();
        if self.engine.kind() != EngineKind::Kvm {
            return Ok(None);
        }
        if !self.state.context.needs_interpreter() && !breakpoints.are_armed() {
            // The engine does not tell what ring 3 loads.
            self.state.context.segments = DataSegments::default();
            self.end_aside()?;
            return Ok(None);
        }
        self.begin_aside()?;
        let root = self.state.root();
        if !self.settle_tables()? {
            self.write_tables()?;
        }
        let Some(aside) = &mut self.aside else {
            return Ok(None);
        };
        aside.vcpu.set_breakpoints(breakpoints);
        let trap = aside.vcpu.run(&mut Entry {
            root,
            context: &mut self.state.context,
            flush: self.flush_aside.replace(false),
            writes: &mut TableWrites::default(),
        })?;
        Ok(Some(trap))
    }

    fn begin_aside(&mut self) -> Result<(), Crash> {
        let (space, cpuid) = (&self.domain.space, &self.domain.cpuid);
        let aside = self.aside.get_or_insert_with(|| {
            let interrupt = self.shared.interrupt_flag();
            let vcpu = SoftVcpu::new(Arc::clone(space) as _, cpuid.clone(), interrupt);
            Aside {
                vcpu: Box::new(vcpu),
                has_fpu: false,
            }
        });
        if aside.has_fpu {
            return Ok(());
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.hand_over_fpu(&mut self.engine)?;
        }
        aside.vcpu.set_fpu(&self.engine.fpu()?);
        aside.vcpu.set_xcr0(self.state.xcr0);
        aside.has_fpu = true;
        Ok(())
    }

    /// Gives the vector and x87 registers back to the engine.
    pub(super) fn end_aside(&mut self) -> Result<(), Crash> {
        if let Some(aside) = &mut self.aside
            && std::mem::take(&mut aside.has_fpu)
        {
            self.engine.set_fpu(&aside.vcpu.fpu())?;
        }
        Ok(())
    }

    /// Bits of DR6 for breakpoints that were hit since this was called.
    pub(super) fn take_hits(&mut self) -> u64 {
        let aside = self
            .aside
            .as_mut()
            .map_or(0, |aside| aside.vcpu.take_hits());
        match &mut self.engine {
            Engine::Kvm(_) => aside,
            Engine::Soft(vcpu) => aside | vcpu.take_hits(),
        }
    }

    /// The guest has set XCR0.
    pub(super) fn set_xcr0_aside(&mut self, value: u64) {
        if let Some(aside) = &mut self.aside {
            aside.vcpu.set_xcr0(value);
        }
    }
}
