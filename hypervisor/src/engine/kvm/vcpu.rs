//! One vCPU: entering the guest, and telling what trapped.
//!
//! Law: registers come from `kvm_run`'s sync area, the trap frame from the
//! trap stack; both are the guest's word. Every way out of the monitor's code
//! ends in an `out`, so a kick that lands there is simply entered again, and
//! an entry that was interrupted before it reached ring 3 is done anew from
//! the same context.

use super::{
    layout::{self as at, VcpuArea, selector},
    monitor,
};
use crate::{
    cpu::{Context, Trap, reg},
    engine::{EngineCounts, EngineError, Entry, FIXED_FLAGS, TableWrite, USER_FLAGS, kick},
    fpu::FpuState,
    memory::MachineMemory,
};
use guest_abi::addr::{GuestVirt, MachineAddr};
use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_regs, kvm_segment, kvm_sregs,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use std::{os::fd::AsRawFd, ptr, sync::Arc};
use zerocopy::IntoBytes;

/// CR0: PE MP ET NE WP AM PG.
const CR0: u64 = 0x8005_0033;
/// EFER: SCE LME LMA NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// The CR3 bit that means nothing to us; flipping it makes KVM flush.
const CR3_FLIP: u64 = 1 << 3;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
const MSR_PLATFORM_INFO: u32 = 0xce;
const MSR_MISC_FEATURES_ENABLES: u32 = 0x140;
/// The bit of [`MSR_PLATFORM_INFO`] that offers CPUID faulting.
const CPUID_FAULTING: u64 = 1 << 31;
/// Vectors whose trap frame has an error code.
const WITH_ERROR_CODE: u32 =
    1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;
/// The stub that a batch of writes returns to when more batches follow.
const STUB_DONE: u64 = 64;

nix::ioctl_write_ptr!(set_device_attr, kvm_bindings::KVMIO, 0xe1, kvm_device_attr);

/// Where the VM was when it came back to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Ring-3 code of the guest.
    Guest,
    /// A trap stub or the syscall page: an `out` follows.
    Stub,
    /// The entry routine: ring 3 has not been reached.
    Entry,
}

/// A KVM vCPU.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    area: VcpuArea,
    memory: Arc<MachineMemory>,
    /// CR3 as KVM last had it.
    cr3: u64,
    /// The XSAVE area as KVM last gave it, with what the process does not use.
    xsave: Box<kvm_xsave>,
    counts: EngineCounts,
}

impl KvmVcpu {
    pub(super) fn new(
        fd: VcpuFd,
        id: u32,
        cr4: u64,
        memory: Arc<MachineMemory>,
    ) -> Result<Self, EngineError> {
        let mut vcpu = KvmVcpu {
            fd,
            area: VcpuArea(id),
            memory,
            cr3: 0,
            xsave: Box::default(),
            counts: EngineCounts::default(),
        };
        for set in [
            SyncReg::Register,
            SyncReg::SystemRegister,
            SyncReg::VcpuEvents,
        ] {
            vcpu.fd.set_sync_valid_reg(set);
        }
        vcpu.set_msrs()?;
        vcpu.set_tsc_offset();
        let mut sregs = vcpu
            .fd
            .get_sregs()
            .map_err(EngineError::kvm("KVM_GET_SREGS"))?;
        init_sregs(&mut sregs, id, cr4);
        vcpu.fd.sync_regs_mut().sregs = sregs;
        Ok(vcpu)
    }

    fn set_msrs(&self) -> Result<(), EngineError> {
        let entry = |index, data| kvm_bindings::kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let star = u64::from(selector::KERNEL_CODE) << 32 | 0x23 << 48;
        let list = [
            entry(MSR_STAR, star),
            entry(MSR_LSTAR, at::SYSCALL_PAGE),
            entry(MSR_SFMASK, 0x4_7700),
        ];
        let msrs =
            kvm_bindings::Msrs::from_entries(&list).map_err(|_| EngineError::Layout("MSR list"))?;
        self.fd
            .set_msrs(&msrs)
            .map_err(EngineError::kvm("KVM_SET_MSRS"))?;
        self.make_cpuid_fault();
        Ok(())
    }

    /// Makes `cpuid` in ring 3 fault, so that it is answered from the domain's
    /// table. A KVM that runs ring 3 natively otherwise shows the hardware's
    /// features, whose state the guest kernel, which was shown fewer, does not
    /// save.
    fn make_cpuid_fault(&self) {
        let entry = |index, data| kvm_bindings::kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let list = [
            entry(MSR_PLATFORM_INFO, CPUID_FAULTING),
            entry(MSR_MISC_FEATURES_ENABLES, 1),
        ];
        let done = kvm_bindings::Msrs::from_entries(&list).map(|msrs| self.fd.set_msrs(&msrs));
        if !matches!(done, Ok(Ok(2))) {
            tracing::debug!(?done, "no CPUID faulting: cpuid is answered by KVM");
        }
    }

    /// The guest reads the host's TSC: then the clock is one function of it
    /// everywhere. A KVM without the attribute that runs ring 3 natively
    /// shows the host's TSC anyway.
    fn set_tsc_offset(&self) {
        let offset = 0u64;
        let attr = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: ptr::from_ref(&offset) as u64,
            ..Default::default()
        };
        // SAFETY: the attribute names 8 readable bytes, which outlive the call.
        if let Err(error) = unsafe { set_device_attr(self.fd.as_raw_fd(), &attr) } {
            tracing::debug!(%error, "no TSC offset attribute");
        }
    }

    /// Sets XCR0, after the guest's `xsetbv` was checked.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn set_xcr0(&mut self, value: u64) -> Result<(), EngineError> {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = value;
        self.fd
            .set_xcrs(&xcrs)
            .map_err(EngineError::kvm("KVM_SET_XCRS"))
    }

    /// The vector and x87 state, which stays in KVM's hands until the next
    /// entry.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn fpu(&mut self) -> Result<FpuState, EngineError> {
        *self.xsave = self
            .fd
            .get_xsave()
            .map_err(EngineError::kvm("KVM_GET_XSAVE"))?;
        Ok(FpuState::from_xsave(self.xsave.region.as_bytes()))
    }

    /// Gives KVM another vector and x87 state. Components that
    /// [`FpuState`] lacks stay as [`fpu`](Self::fpu) found them.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn set_fpu(&mut self, state: &FpuState) -> Result<(), EngineError> {
        state.to_xsave(self.xsave.region.as_mut_bytes());
        // SAFETY: the state has no feature that was enabled dynamically, so the
        // structure is as large as KVM reads.
        unsafe { self.fd.set_xsave(&self.xsave) }.map_err(EngineError::kvm("KVM_SET_XSAVE"))
    }

    /// Makes the calling thread the one that [the kick signal](kick::kick_signal) takes out of this
    /// vCPU's VM.
    pub fn adopt_thread(&mut self) {
        let flag = ptr::from_ref(&self.fd.get_kvm_run().immediate_exit);
        kick::watch_kvm_run(flag.cast());
    }

    /// The selectors of ES, CS, SS, DS, FS and GS, as KVM tells them.
    ///
    /// A KVM that runs ring 3 natively tells what it was given, null, and not
    /// what ring 3 has loaded since. There a guest's own descriptors do not exist
    /// either; in 64-bit code the difference shows in nothing but the number read.
    #[must_use]
    pub fn selectors(&self) -> [Option<u16>; 6] {
        let sregs = &self.fd.sync_regs().sregs;
        let (cs, ss) = (selector::USER_CODE, selector::USER_DATA);
        let data = [sregs.es, sregs.ds, sregs.fs, sregs.gs].map(|segment| segment.selector);
        let [es, ds, fs, gs] = data;
        [es, cs, ss, ds, fs, gs].map(Some)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> EngineCounts {
        self.counts
    }

    /// Runs ring 3 until it traps.
    ///
    /// # Errors
    /// [`EngineError`]: the domain can't go on.
    pub fn run(&mut self, entry: &mut Entry<'_>) -> Result<Trap, EngineError> {
        self.carry_out_surplus(entry)?;
        self.load(entry)?;
        loop {
            match self.enter()? {
                Some(out) => match self.trap_of(entry.context, out)? {
                    Some(trap) => {
                        entry.writes.clear();
                        return Ok(trap);
                    }
                    None => continue,
                },
                None => match self.place() {
                    Place::Guest => {
                        entry.writes.clear();
                        self.take_context(entry.context);
                        return Ok(Trap::Kick);
                    }
                    Place::Entry => return Ok(Trap::Kick),
                    Place::Stub => {}
                },
            }
        }
    }

    /// One `KVM_RUN`: the port of an `out`, or `None` for a kick.
    fn enter(&mut self) -> Result<Option<u16>, EngineError> {
        self.counts.entries += 1;
        let out = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, _)) => Some(port),
            Ok(VcpuExit::Intr) => None,
            Ok(exit) => {
                let text = format!("{exit:?}");
                return Err(self.stopped(&text));
            }
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => None,
            Err(source) => {
                return Err(EngineError::Kvm {
                    call: "KVM_RUN",
                    source,
                });
            }
        };
        if out.is_none() {
            self.fd.set_kvm_immediate_exit(0);
        }
        Ok(out)
    }

    fn stopped(&self, exit: &str) -> EngineError {
        let sync = self.fd.sync_regs();
        EngineError::Vm(format!(
            "{exit} at rip {:#x} rsp {:#x} cs {:#x} cr3 {:#x} cr2 {:#x}",
            sync.regs.rip, sync.regs.rsp, sync.sregs.cs.selector, sync.sregs.cr3, sync.sregs.cr2
        ))
    }

    /// Where the VM is now.
    fn place(&self) -> Place {
        let sync = self.fd.sync_regs();
        let rip = sync.regs.rip;
        if (at::STUBS + at::ENTRY_OFFSET as u64..at::STUBS + 4096).contains(&rip) {
            return Place::Entry;
        }
        let pending = sync.events.exception.injected | sync.events.exception.pending;
        let landing = (at::SYSCALL_PAGE..at::SYSCALL_PAGE + 4096).contains(&rip);
        if landing
            || pending != 0
            || (at::STUBS..at::STUBS + at::ENTRY_OFFSET as u64).contains(&rip)
        {
            return Place::Stub;
        }
        Place::Guest
    }

    /// Loads the registers for an entry into ring 3.
    fn load(&mut self, entry: &mut Entry<'_>) -> Result<(), EngineError> {
        let writes = entry.writes.words();
        self.counts.table_writes += writes.len() as u64;
        let through_routine = !writes.is_empty();
        let context = *entry.context;
        self.load_sregs(entry, through_routine);
        let rflags = context.rflags & USER_FLAGS | FIXED_FLAGS;
        let mut regs = kvm_regs_of(&context, rflags);
        if through_routine {
            let frame = [
                context.rip,
                u64::from(selector::USER_CODE),
                rflags,
                context.gpr[reg::RSP],
                u64::from(selector::USER_DATA),
            ];
            (regs.rip, regs.rsp) = self.write_entry_list(writes, regs.rdi, frame)?;
            regs.rflags = 2;
        }
        self.fd.sync_regs_mut().regs = regs;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        Ok(())
    }

    fn load_sregs(&mut self, entry: &Entry<'_>, ring0: bool) {
        let mut cr3 = entry.root.0 << 12 | self.cr3 & CR3_FLIP;
        if entry.flush {
            cr3 ^= CR3_FLIP;
            self.counts.flushes += 1;
        }
        let (fs_base, gs_base) = (entry.context.fs_base, entry.context.gs_base);
        let sregs = &mut self.fd.sync_regs_mut().sregs;
        let dpl = if ring0 { 0 } else { 3 };
        let same = sregs.cr3 == cr3
            && sregs.fs.base == fs_base
            && sregs.gs.base == gs_base
            && sregs.cs.dpl == dpl
            && sregs.ss.dpl == dpl;
        self.cr3 = cr3;
        if same && self.counts.entries != 0 {
            return;
        }
        sregs.cr3 = cr3;
        sregs.fs.base = fs_base;
        sregs.gs.base = gs_base;
        (sregs.cs, sregs.ss) = if ring0 {
            (
                code_segment(selector::KERNEL_CODE, 0),
                data_segment(selector::KERNEL_DATA, 0),
            )
        } else {
            (
                code_segment(selector::USER_CODE, 3),
                data_segment(selector::USER_DATA, 3),
            )
        };
        self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
    }

    /// Writes the list that the entry routine pops: the address of each word, rdi,
    /// and the frame for `iretq`. Returns rip and rsp to start with.
    fn write_entry_list(
        &self,
        writes: &[TableWrite],
        rdi: u64,
        frame: [u64; 5],
    ) -> Result<(u64, u64), EngineError> {
        let mut list = Vec::with_capacity(writes.len() + 6);
        for write in writes {
            let address = self.inside_address(*write);
            list.push(address.ok_or(EngineError::Layout("table write outside memory"))?);
        }
        list.push(rdi);
        list.extend(frame);
        let bytes: Vec<u8> = list.iter().flat_map(|word| word.to_le_bytes()).collect();
        let start = self
            .area
            .entry_list()
            .addr()
            .ok_or(EngineError::Layout("entry list"))?;
        self.memory
            .write(start, &bytes)
            .ok_or(EngineError::Layout("entry list"))?;
        let rip = at::ENTRY_END - writes.len() as u64 * at::ENTRY_WRITE_BYTES;
        Ok((rip, self.area.virt(2)))
    }

    /// The alias address of a word that there is. A frame to be forgotten is written
    /// one byte off: only a misaligned write makes KVM drop its shadow.
    fn inside_address(&self, write: TableWrite) -> Option<u64> {
        let base = write.addr.0 & !7;
        let addr = if write.forget_frame {
            base & !0xfff | 1
        } else {
            base
        };
        self.memory.slice(MachineAddr(addr), 8)?;
        Some(at::ALIAS + addr)
    }

    /// Carries the queued words out without going on into ring 3.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn write_tables(&mut self, entry: &mut Entry<'_>) -> Result<(), EngineError> {
        entry.writes.settle();
        let words = entry.writes.words().to_vec();
        for batch in words.chunks(at::ENTRY_WRITES) {
            self.carry_out(batch, entry)?;
            entry.flush = false;
        }
        entry.writes.clear();
        Ok(())
    }

    /// More words than one list holds: batches that come back to us.
    fn carry_out_surplus(&mut self, entry: &mut Entry<'_>) -> Result<(), EngineError> {
        entry.writes.settle();
        if entry.writes.words().len() <= at::ENTRY_WRITES {
            return Ok(());
        }
        let words = entry.writes.words();
        let keep = words.len() % at::ENTRY_WRITES;
        let surplus = words[..words.len() - keep].to_vec();
        let rest = words[words.len() - keep..].to_vec();
        for batch in surplus.chunks(at::ENTRY_WRITES) {
            self.carry_out(batch, entry)?;
        }
        entry.writes.clear();
        rest.into_iter().for_each(|word| entry.writes.push(word));
        entry.flush = false;
        Ok(())
    }

    fn carry_out(&mut self, batch: &[TableWrite], entry: &Entry<'_>) -> Result<(), EngineError> {
        let done = at::STUBS + STUB_DONE * at::STUB_BYTES as u64;
        let frame = [
            done,
            u64::from(selector::KERNEL_CODE),
            2,
            self.area.trap_stack_top(),
            u64::from(selector::KERNEL_DATA),
        ];
        loop {
            self.load_sregs(entry, true);
            let (rip, rsp) = self.write_entry_list(batch, 0, frame)?;
            self.fd.sync_regs_mut().regs = kvm_regs {
                rip,
                rsp,
                rflags: 2,
                ..Default::default()
            };
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            let out = self.enter()?;
            let rip = self.fd.sync_regs().regs.rip;
            if out.is_some() && (done..done + at::STUB_BYTES as u64).contains(&rip) {
                self.counts.table_writes += batch.len() as u64;
                return Ok(());
            }
            if out.is_some() {
                return Err(self.stopped("the monitor trapped"));
            }
        }
    }

    /// What an `out` means; `None` when it was not the monitor's and the guest
    /// shall see a fault later.
    fn trap_of(&mut self, context: &mut Context, port: u16) -> Result<Option<Trap>, EngineError> {
        let rip = self.fd.sync_regs().regs.rip;
        if port == u16::from(at::PORT_SYSCALL)
            && (at::SYSCALL_PAGE..=at::SYSCALL_PAGE + 2).contains(&rip)
        {
            self.take_context(context);
            context.rip = context.gpr[reg::RCX];
            context.rflags = context.gpr[reg::R11] & USER_FLAGS | FIXED_FLAGS;
            return Ok(Some(Trap::Syscall));
        }
        if let Some(offset) = rip.checked_sub(at::STUBS)
            && offset < 32 * at::STUB_BYTES as u64
        {
            return self
                .exception(context, offset / at::STUB_BYTES as u64)
                .map(Some);
        }
        if (at::MONITOR..at::ALIAS).contains(&rip) {
            return Err(self.stopped("the monitor left at an unknown place"));
        }
        // Ring-3 code used the syscall page's port itself.
        self.take_context(context);
        self.back_to_out(context);
        Ok(Some(Trap::Exception {
            vector: 13,
            error: 0,
            cr2: GuestVirt(0),
        }))
    }

    /// `out` may be reported before or after it: the stub that leaves at a
    /// known address tells which this KVM does, and guests' `out %al, imm8` is
    /// the only form that the I/O bitmap lets pass besides `out %al, %dx`.
    fn back_to_out(&self, context: &mut Context) {
        let after = self.fd.sync_regs().regs.rip;
        context.rip = after.wrapping_sub(2);
    }

    fn exception(&mut self, context: &mut Context, vector: u64) -> Result<Trap, EngineError> {
        self.take_context(context);
        let has_error = WITH_ERROR_CODE >> vector & 1 != 0;
        let words = if has_error { 6 } else { 5 };
        let mut bytes = [0; 48];
        let frame = &mut bytes[..words * 8];
        let base = self
            .area
            .trap_stack()
            .addr()
            .ok_or(EngineError::Layout("trap stack"))?;
        let start = MachineAddr(base.0 + 4096 - frame.len() as u64);
        self.memory
            .read(start, frame)
            .ok_or(EngineError::Layout("trap stack"))?;
        let mut words = frame
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        let error = if has_error {
            words.next().unwrap_or(0)
        } else {
            0
        };
        let mut next = || words.next().unwrap_or(0);
        let (rip, cs, rflags, rsp) = (next(), next(), next(), next());
        if cs & 3 == 0 {
            return Err(self.stopped(&format!(
                "vector {vector} inside the monitor, rip {rip:#x} error {error:#x}"
            )));
        }
        context.rip = rip;
        context.rflags = rflags & USER_FLAGS | FIXED_FLAGS;
        context.gpr[reg::RSP] = rsp;
        let cr2 = GuestVirt(self.fd.sync_regs().sregs.cr2);
        Ok(Trap::Exception {
            vector: u8::try_from(vector).unwrap_or(13),
            error: u32::try_from(error & 0xffff_ffff).unwrap_or(0),
            cr2,
        })
    }

    fn take_context(&self, context: &mut Context) {
        let sync = self.fd.sync_regs();
        let r = &sync.regs;
        context.gpr = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ];
        context.rip = r.rip;
        context.rflags = r.rflags & USER_FLAGS | FIXED_FLAGS;
        context.fs_base = sync.sregs.fs.base;
        context.gs_base = sync.sregs.gs.base;
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        kick::forget_kvm_run(ptr::from_ref(&self.fd.get_kvm_run().immediate_exit).cast());
    }
}

fn kvm_regs_of(context: &Context, rflags: u64) -> kvm_regs {
    let g = &context.gpr;
    kvm_regs {
        rax: g[0],
        rcx: g[1],
        rdx: g[2],
        rbx: g[3],
        rsp: g[4],
        rbp: g[5],
        rsi: g[6],
        rdi: g[7],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: context.rip,
        rflags,
    }
}

fn code_segment(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment {
        selector,
        type_: 0xb,
        l: 1,
        db: 0,
        ..data_segment(selector, dpl)
    }
}

fn data_segment(selector: u16, dpl: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: 3,
        present: 1,
        dpl,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}

fn init_sregs(sregs: &mut kvm_sregs, id: u32, cr4: u64) {
    sregs.cr0 = CR0;
    sregs.cr4 = cr4;
    sregs.efer = EFER;
    sregs.cs = code_segment(selector::USER_CODE, 3);
    sregs.ss = data_segment(selector::USER_DATA, 3);
    // Null, as on Xen at the start of day.
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
        *segment = kvm_segment {
            unusable: 1,
            ..Default::default()
        };
    }
    sregs.tr = kvm_segment {
        base: VcpuArea(id).virt(0),
        limit: u32::try_from(monitor::TSS_LIMIT).unwrap_or(0x88),
        selector: monitor::tss_selector(id),
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    sregs.idt = kvm_bindings::kvm_dtable {
        base: at::IDT,
        limit: 0x1ff,
        ..Default::default()
    };
    sregs.gdt = kvm_bindings::kvm_dtable {
        base: at::GDT,
        limit: 0xfff,
        ..Default::default()
    };
}
