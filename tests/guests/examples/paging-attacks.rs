//! A kernel that wants a writable page table.
//!
//! **Mechanism.** Under direct paging a frame is never writable and a page
//! table (or descriptor page) at once: each entry that a guest installs is
//! checked against the type and counts of the frame it names. A guest that got
//! round this would map whatever it likes.
//!
//! **Scenario.** One kernel, one vCPU, tries the ways of twenty years of
//! advisories: the straight way, flipping the RW bit of an entry that exists
//! (XSA-182), large pages (XSA-148), tables of the wrong level and in a circle
//! (XSA-185, 240), descriptor pages (XSA-298), the hypervisor's own slots and
//! frames, caching attributes (XSA-402), unpinning what is in use, and plain
//! stores to a read-only table, which the hypervisor emulates.
//!
//! **Expected.** Each attempt is refused with an error (or a page fault, for
//! stores), and leaves the entry as it was; legal changes right after it work.
//!
//! **Race.** None here: it would take a second vCPU that writes meanwhile.
//!
//! **Limits.** A linear page table (a root that maps itself read-only) is legal
//! or not, as the hypervisor was built: either is accepted, but never writable.
//! The initial domain of a real Xen may map I/O memory: attacks by foreign
//! frames and caching attributes are left out there.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use guest_abi::{
    addr::{DomId, GuestVirt, MachineAddr, Mfn, PAGE_SIZE, Pfn},
    arch_x86_64::{HYPERVISOR_VIRT_START, ROOT_PAGETABLE_FIRST_XEN_SLOT},
    errno::Errno,
    kernel::{Boot, VIRT_BASE, boot, guard, hypercall, mm},
    memory::{MemoryExchange, XENMEM_EXCHANGE},
    xen::{
        MMU_MACHPHYS_UPDATE, MMU_PT_UPDATE_PRESERVE_AD, MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L1_TABLE,
        MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE, MmuUpdate, SIF_INITDOMAIN,
    },
};
use test_guests::Report;

guest_abi::pv_kernel!(main, name = "paging-attacks");

/// What the attacks are made with.
struct Stage {
    /// The tables that map `fresh`, by level less one.
    tables: [Mfn; 4],
    /// A page of our own, mapped at `fresh`.
    page: Mfn,
    /// An address whose L1 entry is ours to play with.
    fresh: GuestVirt,
}

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("paging-attacks", boot);
    let stage = match Stage::set() {
        Ok(stage) => stage,
        Err(errno) => {
            report.check(false, &format_args!("the stage: {errno:?}"));
            report.end()
        }
    };
    let attacks = [
        writable_tables,
        flip_to_writable,
        native_stores,
        large_pages,
        wrong_levels,
        circles,
        descriptors,
        hypervisor_slots,
        foreign_frames,
        reserved_bits,
        pins,
        roots,
        trades,
    ];
    for attack in attacks {
        attack(&mut report, &stage);
        stage.still_fine(&mut report);
    }
    report.end()
}

impl Stage {
    fn set() -> Result<Self, Errno> {
        let fresh = GuestVirt(VIRT_BASE + (1 << 30));
        let page = boot::pfn_to_mfn(mm::allocate().ok_or(Errno::ENOMEM)?).ok_or(Errno::EINVAL)?;
        let root = mm::root().ok_or(Errno::EINVAL)?;
        // SAFETY: nothing else is mapped there.
        unsafe { mm::map(root, fresh, mm::entry(page, mm::PAGE_KERNEL)) }?;
        let mut tables = [root; 4];
        for (slot, level) in tables.iter_mut().zip(1..) {
            *slot = mm::table(fresh, level).ok_or(Errno::EINVAL)?;
        }
        Ok(Self {
            tables,
            page,
            fresh,
        })
    }

    /// The machine address of the entry of `level` that translates `fresh`.
    fn entry(&self, level: usize) -> MachineAddr {
        let table = self.tables[level - 1];
        let level = u32::try_from(level).unwrap_or(1);
        mm::entry_address(table, mm::index(self.fresh, level))
    }

    /// Tries to write the entry of `level` (the result is put right again if
    /// it was allowed), and checks that a refusal left it alone.
    fn refuse(&self, report: &mut Report, level: usize, value: u64, what: &str) {
        let index = mm::index(self.fresh, u32::try_from(level).unwrap_or(1));
        let before = mm::read_entry(self.tables[level - 1], index);
        // SAFETY: an entry of our own; it is restored below.
        let answer = unsafe { mm::write_entry(self.entry(level), value) };
        report.refused(answer, &what);
        let after = mm::read_entry(self.tables[level - 1], index);
        if answer.is_err() {
            report.check(before == after, &"  and the entry is as it was");
        } else if let Some(before) = before {
            // SAFETY: what was there before.
            let _ = unsafe { mm::write_entry(self.entry(level), before) };
        }
    }

    /// A legal change works, before and after every attack.
    fn still_fine(&self, report: &mut Report) {
        // SAFETY: our own page at our own address.
        let answer = unsafe {
            mm::set_mapping(self.fresh, mm::entry(self.page, mm::PAGE_READONLY))
                .and_then(|()| mm::set_mapping(self.fresh, self.own()))
        };
        report.allowed(answer, &"a legal change works");
    }

    /// The legal value of the L1 entry.
    fn own(&self) -> u64 {
        mm::entry(self.page, mm::PAGE_KERNEL)
    }
}

fn writable_tables(report: &mut Report, stage: &Stage) {
    let names = ["an L1 table", "an L2 table", "an L3 table", "the L4 table"];
    for (table, name) in stage.tables.into_iter().zip(names) {
        let value = mm::entry(table, mm::PAGE_KERNEL);
        stage.refuse(report, 1, value, name);
        // SAFETY: refused, or a finding.
        let answer = unsafe { mm::set_mapping(stage.fresh, value) };
        report.refused(answer, &format_args!("{name}, by update_va_mapping"));
    }
}

/// Read-only first, which is legal; then only the RW bit changes.
fn flip_to_writable(report: &mut Report, stage: &Stage) {
    for table in stage.tables {
        let readonly = mm::entry(table, mm::PAGE_READONLY);
        // SAFETY: reading tables is legal.
        let answer = unsafe { mm::set_mapping(stage.fresh, readonly) };
        report.allowed(answer, &"a table mapped read-only");
        stage.refuse(report, 1, readonly | mm::PAGE_RW, "its RW bit set");
        let keep = MmuUpdate {
            ptr: stage.entry(1).0 | MMU_PT_UPDATE_PRESERVE_AD,
            val: readonly | mm::PAGE_RW,
        };
        // SAFETY: refused, or a finding.
        let answer = unsafe { hypercall::mmu_update(&[keep]) };
        report.refused(answer, &"its RW bit set, A and D preserved");
        // SAFETY: a fault, or a finding.
        let fault = unsafe { guard::write(stage.fresh, readonly | mm::PAGE_RW) };
        report.check(fault.is_err(), &"a store through the mapping faults");
    }
}

/// Stores to the initial, read-only mapping of the L1 table: the hypervisor
/// may emulate those of legal values, never those of others.
fn native_stores(report: &mut Report, stage: &Stage) {
    let Some(table) = boot::mfn_to_pfn(stage.tables[0]).map(boot::pfn_to_virt) else {
        return report.check(false, &"the L1 table is a page of ours");
    };
    let index = mm::index(stage.fresh, 1);
    let at = GuestVirt(table.0 + index as u64 * 8);
    for (value, what) in [
        (
            mm::entry(stage.tables[0], mm::PAGE_KERNEL),
            "itself, writable",
        ),
        (
            mm::entry(stage.tables[3], mm::PAGE_KERNEL),
            "the root, writable",
        ),
        (
            mm::entry(Mfn(0xf_ffff_ffff), mm::PAGE_KERNEL),
            "a frame past the last",
        ),
    ] {
        // SAFETY: a fault, or a finding.
        let fault = unsafe { guard::write(at, value) };
        let found = mm::read_entry(stage.tables[0], index);
        report.check(
            fault.is_err() && found.is_some_and(|entry| mm::frame(entry) == stage.page),
            &format_args!("a plain store of {what}"),
        );
        // SAFETY: a fault, or a finding.
        let fault = unsafe { guard::swap(at, value) };
        report.check(fault.is_err(), &format_args!("an xchg of {what}"));
    }
    // SAFETY: a misaligned store can't be one of an entry.
    let fault = unsafe { guard::write(GuestVirt(at.0 + 4), stage.own()) };
    report.check(fault.is_err(), &"a store across two entries");
}

fn large_pages(report: &mut Report, stage: &Stage) {
    let large = mm::PAGE_KERNEL | mm::PAGE_PSE;
    let page = Mfn(stage.page.0 & !511);
    stage.refuse(report, 2, mm::entry(page, large), "an L2 entry of 2 MiB");
    stage.refuse(
        report,
        2,
        mm::entry(stage.tables[0], large),
        "PSE on the entry of a table",
    );
    stage.refuse(report, 3, mm::entry(Mfn(0), large), "an L3 entry of 1 GiB");
    stage.refuse(
        report,
        4,
        mm::entry(stage.tables[2], large),
        "PSE in the root",
    );
}

fn wrong_levels(report: &mut Report, stage: &Stage) {
    let [l1, l2, l3, l4] = stage.tables.map(|table| mm::entry(table, mm::PAGE_TABLE));
    stage.refuse(report, 2, l3, "an L3 table as an L1");
    stage.refuse(report, 2, l4, "the root as an L1");
    stage.refuse(report, 3, l1, "an L1 table as an L2");
    stage.refuse(report, 3, l4, "the root as an L2");
    stage.refuse(report, 4, l1, "an L1 table as an L3");
    stage.refuse(report, 4, l2, "an L2 table as an L3");
    stage.refuse(
        report,
        2,
        mm::entry(stage.page, mm::PAGE_TABLE),
        "a writable page as an L1",
    );
}

/// A table that maps itself. Read-only it may be legal; writable never.
fn circles(report: &mut Report, stage: &Stage) {
    for level in 2..=4 {
        let table = stage.tables[level - 1];
        stage.refuse(
            report,
            level,
            mm::entry(table, mm::PAGE_KERNEL),
            "a table that maps itself, writable",
        );
        // An entry beside ours, so that a legal one does no harm.
        let index = mm::index(stage.fresh, u32::try_from(level).unwrap_or(1)) ^ 1;
        if mm::read_entry(table, index) != Some(0) {
            continue;
        }
        let at = mm::entry_address(table, index);
        // SAFETY: the entry was empty and is emptied again.
        unsafe {
            if mm::write_entry(at, mm::entry(table, mm::PAGE_READONLY)).is_err() {
                report.check(true, &"a linear table is refused");
                continue;
            }
            let answer = mm::write_entry(at, mm::entry(table, mm::PAGE_KERNEL));
            report.refused(answer, &"a linear table made writable");
            report.allowed(mm::write_entry(at, 0), &"a linear table taken away");
        }
    }
}

fn descriptors(report: &mut Report, stage: &Stage) {
    // SAFETY: refused, for the frame is mapped writable.
    let answer = unsafe { hypercall::set_gdt(&[stage.page.0], 512) };
    report.refused(answer, &"a writable page as GDT");
    // SAFETY: refused, for the frame is a page table.
    let answer = unsafe { hypercall::set_gdt(&[stage.tables[0].0], 512) };
    report.refused(answer, &"a page table as GDT");
    let gdt = mm::allocate().ok_or(Errno::ENOMEM).and_then(mm::make_table);
    let Some(gdt) = report.allowed(gdt, &"a page for descriptors") else {
        return;
    };
    // SAFETY: empty descriptors; we use the hypervisor's selectors only.
    let answer = unsafe { hypercall::set_gdt(&[gdt.0], 512) };
    report.allowed(answer, &"a read-only page as GDT");
    stage.refuse(
        report,
        1,
        mm::entry(gdt, mm::PAGE_KERNEL),
        "the GDT mapped writable",
    );
    // A call gate to ring 0, and a ring-0 code segment.
    for (descriptor, what) in [
        (0x0000_ec00_e008_0000, "a call gate"),
        (0x00af_9b00_0000_ffff, "a ring-0 code segment"),
        (0x0000_8900_0000_0067, "a task state segment"),
    ] {
        // SAFETY: refused or made harmless.
        let answer = unsafe { hypercall::update_descriptor(gdt.0 << 12, descriptor) };
        let found = boot::mfn_to_pfn(gdt).and_then(|pfn| guard::read(boot::pfn_to_virt(pfn)).ok());
        report.check(
            answer.is_err() || found != Some(descriptor),
            &format_args!("{what}: {answer:?}"),
        );
    }
    // SAFETY: as before.
    let answer = unsafe { hypercall::update_descriptor(stage.tables[0].0 << 12, 0) };
    report.refused(answer, &"a descriptor written into a page table");
    // SAFETY: no entries: no page either.
    let answer = unsafe { hypercall::set_gdt(&[], 0) };
    report.allowed(answer, &"the GDT taken away");
    let page = mm::entry(gdt, mm::PAGE_KERNEL);
    // SAFETY: a page of our own.
    let answer = unsafe { mm::set_mapping(stage.fresh, page) };
    report.allowed(answer, &"its page is writable again");
}

fn hypervisor_slots(report: &mut Report, stage: &Stage) {
    let root = stage.tables[3];
    for slot in [0, 1, 2, 15] {
        let slot = ROOT_PAGETABLE_FIRST_XEN_SLOT + slot;
        let at = mm::entry_address(root, slot);
        for value in [0, mm::entry(stage.tables[2], mm::PAGE_TABLE)] {
            // SAFETY: refused, or a finding.
            let answer = unsafe { mm::write_entry(at, value) };
            report.refused(answer, &format_args!("slot {slot} = {value:#x}"));
        }
        // What the slot points to is not ours to map.
        let Some(entry) = mm::read_entry(root, slot).filter(|entry| entry & 1 != 0) else {
            continue;
        };
        for flags in [mm::PAGE_KERNEL, mm::PAGE_READONLY] {
            let value = mm::entry(mm::frame(entry), flags);
            // Xen keeps a linear mapping of the guest's own root in one slot.
            if flags == mm::PAGE_READONLY && boot::mfn_to_pfn(mm::frame(entry)).is_some() {
                continue;
            }
            stage.refuse(report, 1, value, "the hypervisor's own table mapped");
        }
        stage.refuse(report, 4, entry, "the hypervisor's slot copied");
    }
    for address in [
        HYPERVISOR_VIRT_START,
        boot::m2p_table().0.0,
        0xffff_87ff_ffff_f000,
    ] {
        // SAFETY: refused, or a finding.
        let answer = unsafe { mm::set_mapping(GuestVirt(address), stage.own()) };
        report.refused(answer, &format_args!("a mapping at {address:#x}"));
        // SAFETY: a fault, or a finding.
        let fault = unsafe { guard::write(GuestVirt(address), 0) };
        report.check(fault.is_err(), &format_args!("a store to {address:#x}"));
    }
}

/// The initial domain may map I/O memory, with whatever caching it likes.
fn may_map_io() -> bool {
    boot::start_info().is_some_and(|info| info.flags & SIF_INITDOMAIN != 0)
}

fn foreign_frames(report: &mut Report, stage: &Stage) {
    if may_map_io() {
        return;
    }
    let (_, entries) = boot::m2p_table();
    for mfn in [0, 1, 0x1f, entries, entries + 1, 0xf_ffff, 0xff_ffff_ffff] {
        if boot::mfn_to_pfn(Mfn(mfn)).is_some() {
            continue;
        }
        let value = mm::entry(Mfn(mfn), mm::PAGE_KERNEL);
        if Some(Mfn(mfn)) != shared_info_frame() {
            stage.refuse(report, 1, value, "a frame that is not ours");
        }
        stage.refuse(report, 2, value, "a table in a frame that is not ours");
        let update = MmuUpdate {
            ptr: (mfn << 12) | MMU_MACHPHYS_UPDATE,
            val: 0,
        };
        // SAFETY: refused, or a finding.
        let answer = unsafe { hypercall::mmu_update(&[update]) };
        report.refused(answer, &format_args!("the m2p entry of {mfn:#x}"));
        // SAFETY: refused, or a finding.
        let answer = unsafe { mm::write_entry(MachineAddr(mfn << 12), 0) };
        report.refused(answer, &format_args!("an entry in frame {mfn:#x}"));
    }
    if let Some(frame) = shared_info_frame() {
        let value = mm::entry(frame, mm::PAGE_TABLE);
        stage.refuse(report, 2, value, "the shared info frame as an L1 table");
    }
}

fn shared_info_frame() -> Option<Mfn> {
    Some(MachineAddr(boot::start_info()?.shared_info).frame())
}

fn reserved_bits(report: &mut Report, stage: &Stage) {
    if may_map_io() {
        return;
    }
    for bit in [3, 4, 46, 51] {
        let value = stage.own() | 1 << bit;
        stage.refuse(report, 1, value, "a bit that must be 0");
    }
    stage.refuse(
        report,
        1,
        stage.own() | mm::PAGE_PSE,
        "the PAT bit of an L1 entry",
    );
}

/// `XENMEM_exchange`: a frame in use stays, one that nobody maps is traded.
fn trades(report: &mut Report, _: &Stage) {
    let Some(page) = mm::allocate() else {
        return report.check(false, &"a spare page");
    };
    let Some(mfn) = boot::pfn_to_mfn(page) else {
        return report.check(false, &"its frame");
    };
    let (given, mut got) = ([mfn.0], [page.0]);
    let mut trade = MemoryExchange::default();
    for (side, list) in [
        (&mut trade.input, given.as_ptr()),
        (&mut trade.output, got.as_mut_ptr().cast_const()),
    ] {
        side.extent_start = list as u64;
        side.nr_extents = 1;
        side.domid = DomId::SELF.0;
    }
    let home = boot::pfn_to_virt(page);
    // SAFETY: the lists live on this stack; the page is a spare one, mapped at
    // one place, which is empty while the frame is traded.
    unsafe {
        let mapped = hypercall::memory_op(XENMEM_EXCHANGE, &mut trade);
        report.refused(mapped, &"a trade of a frame that is mapped");
        report.allowed(mm::set_mapping(home, 0), &"unmapping a spare page");
        let traded = hypercall::memory_op(XENMEM_EXCHANGE, &mut trade);
        report.allowed(traded, &"a trade of a frame that nobody maps");
        report.check(trade.nr_exchanged == 1, &"one extent was traded");
        let new = mm::entry(
            Mfn(core::ptr::read_volatile(&raw const got[0])),
            mm::PAGE_KERNEL,
        );
        report.allowed(mm::set_mapping(home, new), &"mapping what was got for it");
    }
    report.check(
        // SAFETY: the spare page.
        unsafe { guard::write(home, 0x5eed) }.is_ok() && matches!(guard::read(home), Ok(0x5eed)),
        &"the new frame holds what is written",
    );
}

fn pins(report: &mut Report, stage: &Stage) {
    let [l1, l2, ..] = stage.tables;
    let spare = mm::allocate().and_then(boot::pfn_to_mfn);
    let Some(writable) = spare else {
        return report.check(false, &"a spare page");
    };
    for (cmd, mfn, what) in [
        (MMUEXT_PIN_L1_TABLE, writable, "a pin of a writable page"),
        (MMUEXT_PIN_L4_TABLE, writable, "the same as L4"),
        (MMUEXT_PIN_L2_TABLE, l1, "a pin of an L1 table as L2"),
        (MMUEXT_PIN_L1_TABLE, l2, "a pin of an L2 table as L1"),
        (MMUEXT_UNPIN_TABLE, l1, "an unpin of what is not pinned"),
        (
            MMUEXT_PIN_L1_TABLE,
            Mfn(0xff_ffff_ffff),
            "a pin of no frame",
        ),
    ] {
        // SAFETY: refused, or a finding.
        let answer = unsafe { mm::extended(cmd, mfn.0, 0) };
        report.refused(answer, &what);
    }
    // SAFETY: the table stays what it is, pinned or not.
    unsafe {
        report.allowed(mm::extended(MMUEXT_PIN_L1_TABLE, l1.0, 0), &"a legal pin");
        let twice = mm::extended(MMUEXT_PIN_L1_TABLE, l1.0, 0);
        report.refused(twice, &"pinning it twice");
        report.allowed(mm::extended(MMUEXT_UNPIN_TABLE, l1.0, 0), &"the unpin");
    }
    let value = mm::entry(l1, mm::PAGE_KERNEL);
    stage.refuse(report, 1, value, "the table, unpinned but in use, writable");
    unpin_the_root(report, stage);
}

/// The pin goes, the use stays: the root must stay a table.
fn unpin_the_root(report: &mut Report, stage: &Stage) {
    let root = stage.tables[3];
    // SAFETY: the vCPU's use keeps the table; the pin comes back.
    unsafe {
        if mm::extended(MMUEXT_UNPIN_TABLE, root.0, 0).is_err() {
            return report.check(true, &"the root in use can't be unpinned");
        }
        let value = mm::entry(root, mm::PAGE_KERNEL);
        stage.refuse(report, 1, value, "the unpinned root, writable");
        let again = mm::extended(MMUEXT_PIN_L4_TABLE, root.0, 0);
        report.allowed(again, &"the root pinned again");
    }
}

fn roots(report: &mut Report, stage: &Stage) {
    let beyond = Mfn(boot::m2p_table().1 + 1);
    for (mfn, what) in [
        (stage.page, "a writable page as root"),
        (stage.tables[0], "an L1 table as root"),
        (stage.tables[2], "an L3 table as root"),
        (beyond, "no frame as root"),
        (Mfn::INVALID, "the invalid frame as root"),
    ] {
        // SAFETY: refused, or we are lost, which is a finding too.
        let answer = unsafe { mm::extended(MMUEXT_NEW_BASEPTR, mfn.0, 0) };
        report.refused(answer, &what);
    }
    let first = boot::pfn_to_virt(Pfn(0));
    report.check(
        guard::read(first).is_ok() && guard::read(GuestVirt(first.0 + PAGE_SIZE)).is_ok(),
        &"the address space is still ours",
    );
}
