//! Two domains that share pages.
//!
//! **Mechanism.** A grant lets one other domain map a page, or have it copied.
//! The mapping domain gets the page at a place of its page tables that only
//! the grant operations can fill and empty; the granting domain cannot take
//! the page back meanwhile, and must get it back afterwards.
//!
//! **Scenario.** The command line says which part a kernel plays: `granter N`
//! grants four pages to domain N and does what it is told through the first of
//! them; `mapper N` maps them and tries what it should not be able to do:
//! writing what is granted for reading, naming the foreign frame in an entry of
//! its own, ending a mapping in the wrong way (XSA-227, 234), keeping a page
//! that was taken back. At its end it leaves mappings behind, as many as it
//! gets; `outlive N` instead tells the granter to go first, and uses its pages on.
//!
//! **Expected.** The granter's pages, and no other, are reachable, and only
//! while they are mapped; the granter ends when all its grants are free again.
//!
//! **Race.** Two domains run at once, and a second vCPU, if there is one, looks
//! at a page that the first has just unmapped; see the hypervisor's own
//! tests for mapping, taking back and scribbling at the same time.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_abi::{
    addr::{DomId, GrantRef, GuestVirt, MachineAddr, Mfn, Pfn, Port, VcpuId},
    errno::Errno,
    grant_table::*,
    kernel::{
        Boot, VIRT_BASE, boot,
        entry::Stack,
        event,
        grant::{Access, GrantError, Grants},
        guard, hypercall, mm,
        page::Page,
        sched, smp, time,
    },
    kprintln,
    sched::SHUTDOWN_POWEROFF,
    xen::{HYPERVISOR_GRANT_TABLE_OP, MMUEXT_PIN_L1_TABLE},
};
use test_guests::Report;

guest_abi::pv_kernel!(main, name = "grants");

/// The first grants that a kernel gives have these numbers.
const CONTROL: u32 = GNTTAB_NR_RESERVED_ENTRIES;
const READ: u32 = CONTROL + 1;
const WRITE: u32 = CONTROL + 2;
const GIVEN_AND_TAKEN: u32 = CONTROL + 3;

/// Words of the control page.
const MAGIC_AT: u64 = 0;
const PORT_AT: u64 = 8;
const ORDER_AT: u64 = 16;
const ANSWERS_AT: u64 = 24;
const RESULT_AT: u64 = 32;
/// Of each page: a [`GnttabGetVersion`] of oneself.
const QUESTION_AT: u64 = 64;
const MAGIC: u64 = 0x6772_616e_7465_6421;

/// What the granter is told to do: the order, and a number in the upper half.
mod order {
    /// Which grants are in use, a bit each.
    pub const IN_USE: u64 = 1;
    /// Takes a grant back: 0 done, 1 in use.
    pub const TAKE_BACK: u64 = 2;
    /// The first word of the page granted for writing.
    pub const LOOK: u64 = 3;
    /// Goes away at once.
    pub const GO: u64 = 4;
    /// Goes away when no grant is in use.
    pub const WAIT_AND_GO: u64 = 5;
}

fn main(boot: &'static Boot) -> ! {
    let mut words = boot.command_line().split_ascii_whitespace();
    let (role, peer) = (words.next(), words.next());
    let peer = peer.and_then(|text| text.parse().ok()).map(DomId);
    match (role, peer) {
        (Some("granter"), Some(peer)) => granter(boot, peer),
        (Some("mapper"), Some(peer)) => mapper(boot, peer, attacks),
        (Some("outlive"), Some(peer)) => mapper(boot, peer, outlive),
        _ => Report::begin("grants", boot)
            .skip(&"needs 'granter', 'mapper' or 'outlive' and a domain"),
    }
}

fn page() -> Result<(Pfn, Page), Errno> {
    let pfn = mm::allocate().ok_or(Errno::ENOMEM)?;
    let mfn = boot::pfn_to_mfn(pfn).ok_or(Errno::EINVAL)?;
    // SAFETY: a page of the initial mapping, handed out once.
    let page = unsafe { Page::from_raw(boot::pfn_to_virt(pfn).0 as *mut u8, mfn) };
    Ok((pfn, page.ok_or(Errno::EINVAL)?))
}

/// A word that another domain reads and writes as well.
fn word(page: GuestVirt, offset: u64) -> &'static AtomicU64 {
    // SAFETY: pages stay mapped as long as their word is used, and are used as
    // atomics only.
    unsafe { AtomicU64::from_ptr((page.0 + offset) as *mut u64) }
}

// The granting side

struct Granter {
    grants: Grants,
    pages: [GuestVirt; 4],
    port: Port,
}

fn granter(boot: &'static Boot, peer: DomId) -> ! {
    let mut report = Report::begin("granter", boot);
    let granter = Granter::set_up(peer).expect("four grants");
    let mut answers = 0;
    loop {
        let _ = sched::poll(&[granter.port], time::system_time() + 100_000_000);
        event::clear(granter.port);
        let control = |offset| word(granter.pages[0], offset);
        let order = control(ORDER_AT).swap(0, Ordering::SeqCst);
        if order == 0 {
            continue;
        }
        match order & 0xffff_ffff {
            order::GO => sched::shutdown(SHUTDOWN_POWEROFF),
            order::WAIT_AND_GO => granter.wait_and_go(report),
            what => {
                let result = granter.obey(&mut report, what, order >> 32);
                control(RESULT_AT).store(result, Ordering::SeqCst);
                answers += 1;
                control(ANSWERS_AT).store(answers, Ordering::SeqCst);
                let _ = event::send(granter.port);
            }
        }
    }
}

impl Granter {
    fn set_up(peer: DomId) -> Result<Self, GrantError> {
        let new = || page().map_err(GrantError::Refused);
        let grants = Grants::set_up([new()?.1])?;
        let pages = [new()?.1, new()?.1, new()?.1, new()?.1];
        let port = event::alloc_unbound(peer).map_err(GrantError::Refused)?;
        let at = [0, 1, 2, 3].map(|index: usize| pages[index].address());
        for (index, page) in (0..).zip(at) {
            word(page, 0).store(0x1000 + index, Ordering::SeqCst);
            word(page, QUESTION_AT).store(boot::SELF.into(), Ordering::SeqCst);
        }
        word(at[0], PORT_AT).store(port.0.into(), Ordering::SeqCst);
        word(at[0], MAGIC_AT).store(MAGIC, Ordering::SeqCst);
        for (index, page) in pages.iter().enumerate() {
            let access = if index == 1 {
                Access::ReadOnly
            } else {
                Access::ReadWrite
            };
            grants.give(peer, page.mfn(), access)?;
        }
        Ok(Self {
            grants,
            pages: at,
            port,
        })
    }

    fn in_use(&self) -> u64 {
        (0..4).fold(0, |bits, index| {
            let gref = GrantRef(CONTROL + index);
            bits | u64::from(self.grants.in_use(gref)) << index
        })
    }

    fn obey(&self, report: &mut Report, what: u64, argument: u64) -> u64 {
        match what {
            order::IN_USE => self.in_use(),
            order::TAKE_BACK => {
                let gref = u32::try_from(argument).unwrap_or(u32::MAX);
                let taken = self.grants.take_back(GrantRef(gref));
                u64::from(taken.is_err())
            }
            order::LOOK => word(self.pages[2], 0).load(Ordering::SeqCst),
            _ => {
                report.check(false, &format_args!("order {what} is none"));
                u64::MAX
            }
        }
    }

    /// The other domain ends with pages of ours mapped: they come back.
    fn wait_and_go(&self, mut report: Report) -> ! {
        let end = time::system_time() + 120_000_000_000;
        report.check(self.in_use() != 0, &"something is in use at first");
        kprintln!("granter: waits");
        while self.in_use() != 0 && time::system_time() < end {
            let _ = sched::poll(&[], time::system_time() + 20_000_000);
        }
        report.check(self.in_use() == 0, &"all grants come back");
        for index in 0..4 {
            let taken = self.grants.take_back(GrantRef(CONTROL + index));
            let gone = index == 3;
            report.check(
                taken.is_ok() || gone,
                &format_args!("grant {index} can be taken back"),
            );
        }
        report.end()
    }
}

// The mapping side

struct Mapper {
    peer: DomId,
    /// The L1 table whose entries are ours to play with, and its first address.
    table: Mfn,
    first: GuestVirt,
    /// A page of our own.
    own: (GuestVirt, Mfn),
    port: Port,
}

/// A mapping that stands.
#[derive(Clone, Copy)]
struct Mapped {
    handle: u32,
    host_addr: u64,
    frame: Mfn,
}

/// The entry that holds the control page.
const CONTROL_SLOT: usize = 1;

fn mapper(
    boot: &'static Boot,
    peer: DomId,
    act: fn(&Mapper, &mut Report) -> Result<(), Errno>,
) -> ! {
    let mut report = Report::begin("mapper", boot);
    let outcome = Mapper::set_up(&mut report, peer).and_then(|mapper| act(&mapper, &mut report));
    if let Err(errno) = outcome {
        report.check(false, &format_args!("it ended early: {errno:?}"));
    }
    report.end()
}

impl Mapper {
    fn set_up(report: &mut Report, peer: DomId) -> Result<Self, Errno> {
        let first = GuestVirt(VIRT_BASE + (1 << 30));
        let (pfn, own) = page()?;
        let root = mm::root().ok_or(Errno::EINVAL)?;
        // SAFETY: nothing else is mapped there.
        unsafe { mm::map(root, first, mm::entry(own.mfn(), mm::PAGE_KERNEL)) }?;
        let mut mapper = Self {
            peer,
            table: mm::table(first, 1).ok_or(Errno::EINVAL)?,
            first,
            own: (boot::pfn_to_virt(pfn), own.mfn()),
            port: Port(0),
        };
        mapper.wait_for_the_granter(report)?;
        let port = mapper.control(PORT_AT).load(Ordering::SeqCst);
        let port = Port(u32::try_from(port).map_err(|_| Errno::EINVAL)?);
        mapper.port = event::bind_interdomain(peer, port)?;
        Ok(mapper)
    }

    fn wait_for_the_granter(&self, report: &mut Report) -> Result<(), Errno> {
        let end = time::system_time() + 60_000_000_000;
        while time::system_time() < end {
            if let Ok(mapped) = self.map(CONTROL, CONTROL_SLOT, 0) {
                if self.control(MAGIC_AT).load(Ordering::SeqCst) == MAGIC {
                    report.check(true, &"the granter's page is there");
                    return Ok(());
                }
                self.unmap(mapped)?;
            }
            let _ = sched::poll(&[], time::system_time() + 20_000_000);
        }
        Err(Errno::ETIMEDOUT)
    }

    fn address(&self, slot: usize) -> GuestVirt {
        GuestVirt(self.first.0 + slot as u64 * 4096)
    }

    fn control(&self, offset: u64) -> &'static AtomicU64 {
        word(self.address(CONTROL_SLOT), offset)
    }

    /// Gives the granter an order and waits for the result.
    fn order(&self, what: u64, argument: u32) -> Result<u64, Errno> {
        let before = self.control(ANSWERS_AT).load(Ordering::SeqCst);
        self.tell(what, argument)?;
        let end = time::system_time() + 30_000_000_000;
        while self.control(ANSWERS_AT).load(Ordering::SeqCst) == before {
            if time::system_time() > end {
                return Err(Errno::ETIMEDOUT);
            }
            sched::poll(&[self.port], time::system_time() + 1_000_000_000)?;
            event::clear(self.port);
        }
        Ok(self.control(RESULT_AT).load(Ordering::SeqCst))
    }

    fn tell(&self, what: u64, argument: u32) -> Result<(), Errno> {
        let order = what | u64::from(argument) << 32;
        self.control(ORDER_AT).store(order, Ordering::SeqCst);
        event::send(self.port)
    }

    /// Maps a grant at an entry, by its address; a `GNTST_*` if refused.
    fn map(&self, gref: u32, slot: usize, flags: u32) -> Result<Mapped, i16> {
        self.map_at(gref, self.address(slot).0, GNTMAP_HOST_MAP | flags)
    }

    fn map_at(&self, gref: u32, host_addr: u64, flags: u32) -> Result<Mapped, i16> {
        let mut argument = GnttabMapGrantRef {
            host_addr,
            flags,
            gref,
            dom: self.peer.0,
            ..Default::default()
        };
        call(GNTTABOP_MAP_GRANT_REF, &mut argument);
        match argument.status {
            GNTST_OKAY => Ok(Mapped {
                handle: argument.handle,
                host_addr,
                frame: MachineAddr(argument.dev_bus_addr).frame(),
            }),
            status => Err(status),
        }
    }

    fn unmap(&self, mapped: Mapped) -> Result<(), Errno> {
        match self.unmap_at(mapped.handle, mapped.host_addr, 0) {
            GNTST_OKAY => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn unmap_at(&self, handle: u32, host_addr: u64, dev_bus_addr: u64) -> i16 {
        let mut argument = GnttabUnmapGrantRef {
            host_addr,
            dev_bus_addr,
            handle,
            ..Default::default()
        };
        call(GNTTABOP_UNMAP_GRANT_REF, &mut argument);
        argument.status
    }

    fn entry(&self, slot: usize) -> MachineAddr {
        mm::entry_address(self.table, slot)
    }

    /// Writes an entry by the ordinary request.
    fn write_entry(&self, slot: usize, value: u64) -> Result<(), Errno> {
        // SAFETY: an entry of our own, through which nobody reaches anything.
        unsafe { mm::write_entry(self.entry(slot), value) }
    }

    /// The same, and no vCPU has an old translation afterwards.
    fn set(&self, slot: usize, value: u64) -> Result<(), Errno> {
        // SAFETY: as above.
        unsafe { mm::set_mapping(self.address(slot), value) }
    }
}

fn call<T>(cmd: u32, argument: &mut T) {
    // SAFETY: the command's type; what is mapped is an entry of our own.
    let outcome = unsafe { hypercall::grant_table_op(cmd, core::slice::from_mut(argument)) };
    outcome.expect("the argument can be read and written");
}

fn attacks(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let steps = [
        events,
        reading,
        writing,
        by_entry,
        foreign_frames,
        wrong_ends,
        taken_back,
        devices,
        replacing,
        arguments,
        copies,
        batches,
        another_vcpu,
        exhaustion,
    ];
    for step in steps {
        step(m, report)?;
    }
    m.tell(order::WAIT_AND_GO, 0)
}

fn events(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let used = m.order(order::IN_USE, 0)?;
    report.check(
        used == 1,
        &format_args!("the control page alone is in use ({used:#b})"),
    );
    Ok(())
}

fn reading(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let refused = m.map(READ, 2, 0).err();
    report.check(
        refused == Some(GNTST_GENERAL_ERROR),
        &format_args!("writing what is granted for reading: {refused:?}"),
    );
    report.check(
        guard::read(m.address(2)).is_err(),
        &"nothing is mapped then",
    );
    let Ok(page) = m.map(READ, 2, GNTMAP_READONLY) else {
        return Err(Errno::EACCES);
    };
    report.check(
        guard::read(m.address(2)) == Ok(0x1001),
        &"the page granted for reading is read",
    );
    // SAFETY: the other domain's page, which means nothing to us.
    let write = unsafe { guard::write(m.address(2), 1) };
    report.check(
        matches!(write, Err(fault) if fault.vector == 14 && fault.error & 3 == 3),
        &"writing it is a page fault",
    );
    let writable = mm::entry(page.frame, mm::PAGE_KERNEL);
    report.refused_with(
        Errno::EBUSY,
        m.write_entry(2, writable),
        &"making it writable",
    );
    report.check(m.order(order::IN_USE, 0)? == 3, &"it is in use");
    m.unmap(page)?;
    report.check(
        guard::read(m.address(2)).is_err(),
        &"after the unmap it is not mapped",
    );
    report.check(m.order(order::IN_USE, 0)? == 1, &"nor in use");
    Ok(())
}

fn writing(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let page = m.map(WRITE, 2, 0).map_err(|_| Errno::EACCES)?;
    for value in [0xfeed, 0xbeef] {
        word(m.address(2), 0).store(value, Ordering::SeqCst);
        let seen = m.order(order::LOOK, 0)?;
        report.check(seen == value, &format_args!("the granter sees {seen:#x}"));
    }
    m.unmap(page)?;
    // A second time, at another frame perhaps.
    let page = m
        .map(WRITE, 3, GNTMAP_READONLY)
        .map_err(|_| Errno::EACCES)?;
    report.check(
        guard::read(m.address(3)) == Ok(0xbeef),
        &"what is granted for writing can be mapped for reading",
    );
    // SAFETY: the other domain's page, which means nothing to us.
    report.check(
        unsafe { guard::write(m.address(3), 1) }.is_err(),
        &"and is not written then",
    );
    m.unmap(page)
}

fn by_entry(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let flags = GNTMAP_HOST_MAP | GNTMAP_APPLICATION_MAP | GNTMAP_CONTAINS_PTE;
    let available = 5 << GNTMAP_GUEST_AVAIL0_SHIFT;
    let page = m
        .map_at(WRITE, m.entry(4).0, flags | available)
        .map_err(|_| Errno::EACCES)?;
    let entry = mm::read_entry(m.table, 4).unwrap_or(0);
    report.check(
        mm::frame(entry) == page.frame && entry >> 9 & 7 == 5,
        &format_args!("the entry that was named is {entry:#x}"),
    );
    report.check(
        guard::read(m.address(4)) == Ok(0xbeef),
        &"and maps the page",
    );
    m.unmap(page)?;
    report.check(
        mm::read_entry(m.table, 4) == Some(0),
        &"the entry is empty again",
    );
    let own = m.own.1.addr().map_or(0, |at| at.0);
    let bad = [
        (m.entry(4).0 + 4, "a misaligned entry"),
        (own, "an entry in a page that is no table"),
        (!7, "an entry in no memory"),
        (0xfff << 12, "an entry in the hypervisor's memory"),
    ];
    for (host_addr, what) in bad {
        let refused = m.map_at(WRITE, host_addr, flags).err();
        report.check(
            refused == Some(GNTST_GENERAL_ERROR),
            &format_args!("{what}: {refused:?}"),
        );
    }
    let nowhere = m.map_at(WRITE, 1 << 46, GNTMAP_HOST_MAP).err();
    report.check(
        nowhere == Some(GNTST_GENERAL_ERROR),
        &format_args!("an address without tables: {nowhere:?}"),
    );
    Ok(())
}

fn foreign_frames(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let page = m.map(WRITE, 2, 0).map_err(|_| Errno::EACCES)?;
    for flags in [mm::PAGE_READONLY, mm::PAGE_KERNEL] {
        let entry = mm::entry(page.frame, flags);
        report.refused_with(
            Errno::EBUSY,
            m.write_entry(5, entry),
            &"a second entry for it",
        );
        let next = mm::entry(Mfn(page.frame.0 + 1), flags);
        report.refused(m.write_entry(5, next), &"an entry for its neighbour");
    }
    // SAFETY: refused, or the check fails.
    let pinned = unsafe { mm::extended(MMUEXT_PIN_L1_TABLE, page.frame.0, 0) };
    report.refused(pinned, &"the page as a page table");
    m.unmap(page)?;
    let entry = mm::entry(page.frame, mm::PAGE_READONLY);
    report.refused(m.write_entry(5, entry), &"an entry for it after the unmap");
    Ok(())
}

fn wrong_ends(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let one = m.map(WRITE, 2, 0).map_err(|_| Errno::EACCES)?;
    let other = m.map(READ, 3, GNTMAP_READONLY).map_err(|_| Errno::EACCES)?;
    let wrong = [
        (
            one.handle,
            other.host_addr,
            GNTST_GENERAL_ERROR,
            "another grant's address",
        ),
        (
            one.handle,
            m.first.0,
            GNTST_GENERAL_ERROR,
            "an own page's address",
        ),
        (
            one.handle,
            m.address(6).0,
            GNTST_GENERAL_ERROR,
            "an empty entry's address",
        ),
        (
            one.handle,
            1 << 46,
            GNTST_GENERAL_ERROR,
            "an address without tables",
        ),
        (
            0x7fff_ffff,
            one.host_addr,
            GNTST_BAD_HANDLE,
            "a handle that is none",
        ),
    ];
    for (handle, host_addr, expected, what) in wrong {
        let status = m.unmap_at(handle, host_addr, 0);
        report.check(
            status == expected,
            &format_args!("unmap with {what}: {status}"),
        );
    }
    report.check(
        guard::read(m.address(2)).is_ok() && guard::read(m.address(3)).is_ok(),
        &"both are still mapped",
    );
    m.unmap(one)?;
    m.unmap(other)?;
    let status = m.unmap_at(one.handle, one.host_addr, 0);
    report.check(
        status == GNTST_BAD_HANDLE,
        &format_args!("a second unmap: {status}"),
    );
    Ok(())
}

fn taken_back(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let page = m.map(GIVEN_AND_TAKEN, 2, 0).map_err(|_| Errno::EACCES)?;
    let taken = m.order(order::TAKE_BACK, GIVEN_AND_TAKEN)?;
    report.check(taken == 1, &"a mapped page is not taken back");
    report.check(
        guard::read(m.address(2)) == Ok(0x1003),
        &"and stays where it is",
    );
    m.unmap(page)?;
    let taken = m.order(order::TAKE_BACK, GIVEN_AND_TAKEN)?;
    report.check(taken == 0, &"an unmapped one is");
    let refused = m.map(GIVEN_AND_TAKEN, 2, 0).err();
    report.check(
        refused == Some(GNTST_GENERAL_ERROR),
        &format_args!("and is not mapped any more: {refused:?}"),
    );
    report.check(guard::read(m.address(2)).is_err(), &"nor reached");
    Ok(())
}

fn devices(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let both = m
        .map(WRITE, 2, GNTMAP_DEVICE_MAP)
        .map_err(|_| Errno::EACCES)?;
    m.unmap(both)?;
    report.check(m.order(order::IN_USE, 0)? == 5, &"in use for devices still");
    let bus = both.frame.addr().map_or(0, |at| at.0);
    let wrong = m.unmap_at(both.handle, 0, bus + 4096);
    report.check(
        wrong == GNTST_GENERAL_ERROR,
        &format_args!("another device address: {wrong}"),
    );
    let status = m.unmap_at(both.handle, 0, bus);
    report.check(
        status == GNTST_OKAY,
        &format_args!("the right one: {status}"),
    );
    report.check(m.order(order::IN_USE, 0)? == 1, &"in use no longer");
    Ok(())
}

fn replacing(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let page = m.map(WRITE, 2, 0).map_err(|_| Errno::EACCES)?;
    m.set(7, mm::entry(m.own.1, mm::PAGE_KERNEL))?;
    word(m.own.0, 0).store(0x0e17, Ordering::SeqCst);
    let mut argument = GnttabUnmapAndReplace {
        host_addr: page.host_addr,
        new_addr: m.address(7).0,
        handle: page.handle,
        ..Default::default()
    };
    call(GNTTABOP_UNMAP_AND_REPLACE, &mut argument);
    report.check(
        argument.status == GNTST_OKAY,
        &format_args!("unmap and replace: {}", argument.status),
    );
    report.check(
        guard::read(m.address(2)) == Ok(0x0e17),
        &"our own page has moved there",
    );
    report.check(
        guard::read(m.address(7)).is_err(),
        &"away from where it was",
    );
    report.check(m.order(order::IN_USE, 0)? == 1, &"the grant is free");
    m.set(2, 0)
}

/// Hypercalls find their arguments in granted pages.
fn arguments(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let writable = m.map(WRITE, 2, 0).map_err(|_| Errno::EACCES)?;
    let read_only = m.map(READ, 3, GNTMAP_READONLY).map_err(|_| Errno::EACCES)?;
    let ask = |slot: usize| {
        let at = m.address(slot).0 + QUESTION_AT;
        let args = [GNTTABOP_GET_VERSION.into(), at, 1, 0, 0];
        // SAFETY: the command's type is in the page, and nobody borrows it.
        unsafe { hypercall::raw(HYPERVISOR_GRANT_TABLE_OP, args) }
    };
    report.allowed(ask(2), &"an argument in a granted page");
    let told = word(m.address(2), QUESTION_AT).load(Ordering::SeqCst) >> 32;
    report.check(
        told == 1,
        &format_args!("the result is there: version {told}"),
    );
    report.refused_with(
        Errno::EFAULT,
        ask(3),
        &"a result in a page granted for reading",
    );
    m.unmap(writable)?;
    m.unmap(read_only)
}

fn copies(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let side = |u: u64, domid: u16| GnttabCopyPtr {
        u,
        domid,
        ..Default::default()
    };
    let mut copy = GnttabCopy {
        source: side(READ.into(), m.peer.0),
        dest: side(m.own.1.0, boot::SELF),
        len: 8,
        flags: GNTCOPY_SOURCE_GREF,
        ..Default::default()
    };
    call(GNTTABOP_COPY, &mut copy);
    let seen = word(m.own.0, 0).load(Ordering::SeqCst);
    report.check(
        copy.status == GNTST_OKAY && seen == 0x1001,
        &format_args!("a copy: {}, {seen:#x}", copy.status),
    );
    // A foreign frame is not one of ours to copy from.
    let page = m.map(WRITE, 2, 0).map_err(|_| Errno::EACCES)?;
    copy.source = side(page.frame.0, boot::SELF);
    copy.flags = 0;
    call(GNTTABOP_COPY, &mut copy);
    report.check(
        copy.status == GNTST_BAD_PAGE,
        &format_args!("of a foreign frame: {}", copy.status),
    );
    m.unmap(page)
}

const BATCH: usize = 200;

fn batches(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let mut maps = [GnttabMapGrantRef::default(); BATCH];
    for (slot, map) in (10..).zip(&mut maps) {
        map.host_addr = m.address(slot).0;
        map.flags = GNTMAP_HOST_MAP;
        map.gref = WRITE;
        map.dom = m.peer.0;
    }
    // SAFETY: the command's type; entries of our own.
    unsafe { hypercall::grant_table_op(GNTTABOP_MAP_GRANT_REF, &mut maps) }?;
    let good = maps.iter().filter(|map| map.status == GNTST_OKAY).count();
    report.check(
        good == BATCH,
        &format_args!("{good} of {BATCH} mapped at once"),
    );
    word(m.address(10), 8).store(77, Ordering::SeqCst);
    let same =
        (10..10 + BATCH).filter(|slot| word(m.address(*slot), 8).load(Ordering::SeqCst) == 77);
    report.check(same.count() == BATCH, &"all of them are one page");
    let mut unmaps = maps.map(|map| GnttabUnmapGrantRef {
        host_addr: map.host_addr,
        handle: map.handle,
        ..Default::default()
    });
    // SAFETY: the command's type; entries of our own.
    unsafe { hypercall::grant_table_op(GNTTABOP_UNMAP_GRANT_REF, &mut unmaps) }?;
    let good = unmaps
        .iter()
        .filter(|unmap| unmap.status == GNTST_OKAY)
        .count();
    report.check(
        good == BATCH,
        &format_args!("{good} of {BATCH} unmapped at once"),
    );
    let left = (10..10 + BATCH).filter(|slot| guard::read(m.address(*slot)).is_ok());
    report.check(left.count() == 0, &"none is mapped");
    report.check(m.order(order::IN_USE, 0)? == 1, &"nor in use");
    Ok(())
}

static SECOND_STACK: Stack = Stack::new();
/// The address that the second vCPU reads when it is asked.
static LOOK_AT: AtomicU64 = AtomicU64::new(0);
/// Looks asked for, and done.
static ASKED: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
/// What was read: 1 for a fault.
static SEEN: AtomicU64 = AtomicU64::new(0);

fn second(_: VcpuId) -> ! {
    loop {
        let asked = ASKED.load(Ordering::SeqCst);
        if asked == DONE.load(Ordering::SeqCst) {
            core::hint::spin_loop();
            continue;
        }
        let seen = guard::read(GuestVirt(LOOK_AT.load(Ordering::SeqCst)));
        SEEN.store(seen.unwrap_or(1), Ordering::SeqCst);
        DONE.store(asked, Ordering::SeqCst);
    }
}

/// What the second vCPU sees at an address; 1 if it faults there.
fn second_sees(address: GuestVirt) -> u64 {
    LOOK_AT.store(address.0, Ordering::SeqCst);
    let asked = ASKED.fetch_add(1, Ordering::SeqCst) + 1;
    while DONE.load(Ordering::SeqCst) != asked {
        sched::yield_now();
    }
    SEEN.load(Ordering::SeqCst)
}

const ROUNDS: usize = 40;

/// After an unmap no vCPU reaches the page, though nobody flushed anything.
fn another_vcpu(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    if smp::is_up(VcpuId(1)).is_err() {
        return Ok(());
    }
    // SAFETY: the stack is the second vCPU's alone.
    unsafe { smp::start(VcpuId(1), SECOND_STACK.top(), second) }?;
    let (mut wrong, mut stale) = (0, 0);
    for round in 0..ROUNDS {
        let slot = 300 + round % 3;
        let (gref, expected) = match round % 2 {
            0 => (READ, 0x1001),
            _ => (WRITE, 0xbeef),
        };
        let page = m
            .map(gref, slot, GNTMAP_READONLY)
            .map_err(|_| Errno::EACCES)?;
        wrong += u32::from(second_sees(m.address(slot)) != expected);
        m.unmap(page)?;
        stale += u32::from(second_sees(m.address(slot)) != 1);
    }
    report.check(
        wrong == 0,
        &format_args!("the second vCPU sees what is mapped ({wrong} of {ROUNDS} times not)"),
    );
    report.check(
        stale == 0,
        &format_args!("and nothing after the unmap ({stale} of {ROUNDS} times something)"),
    );
    Ok(())
}

/// Takes all that there is, and leaves it to the hypervisor to tidy up.
fn exhaustion(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let mut got = 0;
    let end = loop {
        // Over and over at the same address: what was there is lost to us.
        match m.map(WRITE, 2, 0) {
            Ok(_) if got < 1_000_000 => got += 1,
            Ok(_) => return Err(Errno::E2BIG),
            Err(status) => break status,
        }
    };
    report.check(
        end == GNTST_NO_SPACE && got > 100,
        &format_args!("after {got} mappings: {end}"),
    );
    report.check(m.order(order::IN_USE, 0)? == 5, &"they are in use");
    m.set(2, 0)
}

/// The granter goes, and its pages stay until we let go of them.
fn outlive(m: &Mapper, report: &mut Report) -> Result<(), Errno> {
    let page = m.map(WRITE, 2, 0).map_err(|_| Errno::EACCES)?;
    word(m.address(2), 0).store(0x11fe, Ordering::SeqCst);
    m.tell(order::GO, 0)?;
    let end = time::system_time() + 120_000_000_000;
    let gone = loop {
        match m.map(READ, 3, GNTMAP_READONLY) {
            Ok(mapped) => m.unmap(mapped)?,
            Err(GNTST_BAD_DOMAIN) => break true,
            Err(_) => {}
        }
        if time::system_time() > end {
            break false;
        }
        let _ = sched::poll(&[], time::system_time() + 20_000_000);
    };
    report.check(gone, &"the granter is gone");
    for value in 0..100 {
        word(m.address(2), 8 * value).store(value ^ 0x5555, Ordering::SeqCst);
    }
    let kept = (0..100).filter(|i| word(m.address(2), 8 * i).load(Ordering::SeqCst) == i ^ 0x5555);
    report.check(kept.count() == 100, &"its page is still there");
    m.unmap(page)?;
    report.check(guard::read(m.address(2)).is_err(), &"until the unmap");
    let control = m.unmap_at(0, m.address(CONTROL_SLOT).0, 0);
    report.check(
        control == GNTST_OKAY,
        &format_args!("the first mapping too: {control}"),
    );
    Ok(())
}
