//! Descriptor tables: the GDT and LDT of a vCPU, made of the guest's frames.
//!
//! A frame of type `SegDesc` holds 512 descriptors, each of which is harmless
//! in ring 3. As with page tables, the guest can't write it while it is in
//! use; single descriptors change by `update_descriptor`.
//!
//! ```text
//!  63      56 55 54 53 52 51    48 47 46 45 44 43    40 39           16 15     0
//! | base 31:24 | G| D| L| A|lim19:16| P| DPL | S|  type  |   base 23:0    |lim15:0|
//! ```

use guest_abi::{
    addr::{GuestVirt, MachineAddr, Mfn, PAGE_SIZE, VcpuId},
    errno::Errno,
};

use super::{
    ENTRIES, Paging, TableStore,
    frame::FrameType,
    pte::Level,
    refusal::{Refusal, Traced},
    walk::index_of,
};

/// The pages of a GDT that a guest provides; the rest is the hypervisor's.
const GDT_PAGES: usize = 14;
/// The most descriptors of a guest's GDT.
const GDT_ENTRIES: u32 = 14 * 512;
const LDT_PAGES: usize = 16;
const LDT_ENTRIES: u32 = 8192;

const PRESENT: u64 = 1 << 47;
const DPL: u64 = 3 << 45;
const CODE_OR_DATA: u64 = 1 << 44;
const TYPE: u64 = 0xf << 40;
const CALL_GATE: u64 = 0xc << 40;
/// Must be zero in a 64-bit call gate: the byte of the stack table and above.
const GATE_RESERVED: u64 = 0xff << 32;
/// The selector that a call gate enters.
const GATE_SELECTOR: u64 = 0xffff << 16;

/// The kernel code selector that Xen provides to 64-bit guests.
const FLAT_KERNEL_CS: u64 = 0xe033;

/// What is stored for the descriptor that a guest asks for: `None` if no form
/// of it is safe in ring 3 (Xen's `check_descriptor`).
///
/// Code and data segments of any base and limit are: paging is the wall. Their
/// privilege level is made 3. A call gate keeps its level in the selector's
/// low bits and gets level 0, so that using it traps. System segments and
/// other gates are refused.
#[must_use]
pub(super) fn checked_descriptor(value: u64) -> Option<u64> {
    if value & PRESENT == 0 {
        return Some(value);
    }
    let ring3 = value | DPL;
    if value & CODE_OR_DATA != 0 {
        return Some(ring3);
    }
    match value & TYPE {
        0 => Some(value), // the second half of a call gate
        CALL_GATE => checked_gate(ring3),
        _ => None,
    }
}

fn checked_gate(ring3: u64) -> Option<u64> {
    let selector = (ring3 & GATE_SELECTOR) >> 16;
    let in_ldt = selector & 4 != 0;
    let enterable = in_ldt || selector >> 3 < u64::from(GDT_ENTRIES) || selector == FLAT_KERNEL_CS;
    if !enterable || ring3 & GATE_RESERVED != 0 {
        return None;
    }
    Some((ring3 & !DPL) | (3 << 16))
}

/// A vCPU's GDT.
#[derive(Debug, Clone, Default)]
pub(super) struct Gdt {
    frames: Vec<Mfn>,
    entries: u32,
}

impl Gdt {
    pub fn frames(&self) -> &[Mfn] {
        &self.frames
    }
}

/// A vCPU's LDT. A page without a frame has not been used yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ldt {
    base: GuestVirt,
    entries: u32,
    frames: [Option<Mfn>; LDT_PAGES],
}

impl Default for Ldt {
    fn default() -> Self {
        Self {
            base: GuestVirt(0),
            entries: 0,
            frames: [None; LDT_PAGES],
        }
    }
}

impl Ldt {
    pub fn mapped(&self) -> impl Iterator<Item = Mfn> {
        self.frames.into_iter().flatten()
    }
}

impl Paging {
    /// `set_gdt`: the vCPU's GDT is the first `entries` descriptors of these
    /// frames; none releases it.
    ///
    /// # Errors
    /// `EINVAL` for more than 7168 entries, a number of frames that does not
    /// fit, or a frame that is not the domain's, is in use otherwise, or holds
    /// an unsafe descriptor: then the old GDT stays. `ENOENT` without such a
    /// vCPU.
    pub fn set_gdt<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        frames: &[Mfn],
        entries: u32,
    ) -> Result<(), Errno> {
        self.operate(store, "set_gdt", None, |p| {
            p.try_set_gdt(store, vcpu, frames, entries)
        })
    }

    fn try_set_gdt<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        frames: &[Mfn],
        entries: u32,
    ) -> Result<(), Refusal> {
        self.vcpu(vcpu)?;
        let needed = usize::try_from(entries.div_ceil(512)).unwrap_or(usize::MAX);
        if entries > GDT_ENTRIES || frames.len() != needed || needed > GDT_PAGES {
            let frames = frames.len();
            return Err(Refusal::DescriptorTableSize { entries, frames });
        }
        self.get_all(store, frames)?;
        let new = Gdt {
            frames: frames.to_vec(),
            entries,
        };
        let old = std::mem::replace(&mut self.vcpu(vcpu)?.gdt, new);
        for frame in old.frames {
            self.put_page_and_type(frame);
        }
        Ok(())
    }

    fn get_all<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        frames: &[Mfn],
    ) -> Result<(), Refusal> {
        for (taken, frame) in frames.iter().enumerate() {
            if let Err(refusal) = self.get_page_and_type(store, *frame, FrameType::SegDesc) {
                for frame in &frames[..taken] {
                    self.put_page_and_type(*frame);
                }
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// The frames and number of entries of a vCPU's GDT.
    ///
    /// # Errors
    /// `ENOENT` without such a vCPU.
    pub fn gdt(&self, vcpu: VcpuId) -> Result<(&[Mfn], u32), Errno> {
        let tables = self.vcpu_ref(vcpu).traced("gdt")?;
        Ok((&tables.gdt.frames, tables.gdt.entries))
    }

    /// The address and number of entries of a vCPU's LDT.
    ///
    /// # Errors
    /// `ENOENT` without such a vCPU.
    pub fn ldt(&self, vcpu: VcpuId) -> Result<(GuestVirt, u32), Errno> {
        let tables = self.vcpu_ref(vcpu).traced("ldt")?;
        Ok((tables.ldt.base, tables.ldt.entries))
    }

    pub(super) fn try_set_ldt(
        &mut self,
        vcpu: VcpuId,
        base: GuestVirt,
        entries: u32,
    ) -> Result<(), Refusal> {
        let ldt = self.vcpu(vcpu)?.ldt;
        if entries > LDT_ENTRIES {
            return Err(Refusal::DescriptorTableSize { entries, frames: 0 });
        }
        let base = if entries == 0 { GuestVirt(0) } else { base };
        if base.page_offset() != 0 || !is_guest_address(base) {
            return Err(Refusal::BadLdtBase { base });
        }
        if (ldt.base, ldt.entries) != (base, entries) {
            self.drop_ldt_pages(vcpu);
            let ldt = &mut self.vcpu(vcpu)?.ldt;
            (ldt.base, ldt.entries) = (base, entries);
        }
        Ok(())
    }

    pub(super) fn drop_ldt_pages(&mut self, vcpu: VcpuId) {
        let Ok(tables) = self.vcpu(vcpu) else { return };
        let frames = std::mem::take(&mut tables.ldt.frames);
        for frame in frames.into_iter().flatten() {
            self.put_page_and_type(frame);
        }
    }

    /// The frame of page `page` of a vCPU's LDT. At its first use the frame is
    /// found through the kernel's root and becomes a descriptor table.
    ///
    /// # Errors
    /// `EINVAL` beyond the LDT's end, or if the page is not mapped or can't be
    /// a descriptor table; `ENOENT` without such a vCPU.
    pub fn ldt_frame<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        page: u32,
    ) -> Result<Mfn, Errno> {
        self.operate(store, "ldt_frame", None, |p| {
            p.try_ldt_frame(store, vcpu, page)
        })
    }

    fn try_ldt_frame<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        page: u32,
    ) -> Result<Mfn, Refusal> {
        let tables = self.vcpu(vcpu)?;
        let (ldt, root) = (tables.ldt, tables.roots.kernel);
        let beyond = Refusal::DescriptorTableSize {
            entries: ldt.entries,
            frames: 0,
        };
        let at = usize::try_from(page).map_err(|_| beyond)?;
        if page >= ldt.entries.div_ceil(512) {
            return Err(beyond);
        }
        if let Some(frame) = ldt.frames[at] {
            return Ok(frame);
        }
        let frame = self.find_ldt_page(store, root, ldt.base, page)?;
        self.get_page_and_type(store, frame, FrameType::SegDesc)?;
        self.vcpu(vcpu)?.ldt.frames[at] = Some(frame);
        Ok(frame)
    }

    fn find_ldt_page<S: TableStore + ?Sized>(
        &self,
        store: &S,
        root: Option<Mfn>,
        base: GuestVirt,
        page: u32,
    ) -> Result<Mfn, Refusal> {
        let va = base
            .checked_add(u64::from(page) * PAGE_SIZE)
            .ok_or(Refusal::BadLdtBase { base })?;
        root.and_then(|root| self.translate(store, root, va))
            .map(|t| t.mfn)
            .ok_or(Refusal::NoL1 { va })
    }

    /// The descriptor that `selector` names in a vCPU's tables: `None` beyond
    /// the current limits (XSA-298), for the null selector, and where the
    /// hypervisor's own descriptors are.
    pub fn read_descriptor<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        selector: u16,
    ) -> Option<u64> {
        let index = u32::from(selector >> 3);
        let page = index / 512;
        let tables = self.vcpu_ref(vcpu).ok()?;
        let frame = match selector & 4 {
            0 if index == 0 || index >= tables.gdt.entries => return None,
            0 => *tables.gdt.frames.get(usize::try_from(page).ok()?)?,
            _ if index >= tables.ldt.entries => return None,
            _ => self.ldt_frame(store, vcpu, page).ok()?,
        };
        let within = usize::try_from(index % 512).ok()?;
        Some(store.load(frame, within))
    }

    /// `update_descriptor`: writes one descriptor into a descriptor table, or
    /// into a page that the guest may write anyway.
    ///
    /// # Errors
    /// `EINVAL` if the address is not aligned or not the domain's, the frame
    /// is in use as a page table, or the descriptor is not safe.
    pub fn update_descriptor<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        at: MachineAddr,
        value: u64,
    ) -> Result<(), Errno> {
        self.operate(store, "update_descriptor", None, |p| {
            p.try_update_descriptor(store, at, value)
        })
    }

    fn try_update_descriptor<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        at: MachineAddr,
        value: u64,
    ) -> Result<(), Refusal> {
        let (mfn, index) = super::update::entry_at(at)?;
        let checked =
            checked_descriptor(value).ok_or(Refusal::BadDescriptor { mfn, index, value })?;
        let current = self.frames.at(self.frames.ram(mfn)?).frame_type();
        let wanted = match current {
            FrameType::SegDesc => FrameType::SegDesc,
            _ => FrameType::Writable,
        };
        self.get_page_and_type(store, mfn, wanted)?;
        store.store(mfn, index, checked);
        self.put_page_and_type(mfn);
        Ok(())
    }

    /// Checks all descriptors of a frame first and mends them then, so that a
    /// refused frame is left as it was.
    pub(super) fn validate_descriptors<S: TableStore + ?Sized>(
        store: &S,
        mfn: Mfn,
    ) -> Result<(), Refusal> {
        let check = |index| {
            let value = store.load(mfn, index);
            match checked_descriptor(value) {
                Some(checked) => Ok((value, checked)),
                None => Err(Refusal::BadDescriptor { mfn, index, value }),
            }
        };
        for index in 0..ENTRIES {
            check(index)?;
        }
        for index in 0..ENTRIES {
            let (value, checked) = check(index)?;
            if value != checked {
                store
                    .compare_exchange(mfn, index, value, checked)
                    .map_err(|value| Refusal::BadDescriptor { mfn, index, value })?;
            }
        }
        Ok(())
    }
}

/// Canonical, and outside the hypervisor's range.
fn is_guest_address(va: GuestVirt) -> bool {
    va.is_canonical() && super::validate::is_guest_slot(Level::L4, index_of(va, Level::L4))
}
