//! `mmuext_op`: pins, roots and the LDT; and what each vCPU holds.

use guest_abi::{
    addr::{GuestVirt, Mfn, VcpuId},
    errno::Errno,
};

use super::{
    Paging, TableStore,
    descriptor::{Gdt, Ldt},
    frame::FrameType,
    pte::Level,
    refusal::{Refusal, Traced},
};

/// The page-table roots of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VcpuRoots {
    /// In use while the guest kernel runs; none before the first context.
    pub kernel: Option<Mfn>,
    /// In use while guest user code runs; a guest may have none.
    pub user: Option<Mfn>,
}

/// The frames that a vCPU holds.
#[derive(Debug, Clone, Default)]
pub(super) struct VcpuTables {
    pub roots: VcpuRoots,
    pub gdt: Gdt,
    pub ldt: Ldt,
}

impl Paging {
    /// `MMUEXT_PIN_L1_TABLE` to `MMUEXT_PIN_L4_TABLE`.
    ///
    /// # Errors
    /// `EINVAL` if the frame is not the domain's, is in use otherwise, is
    /// pinned already, or does not hold a valid table of this level.
    pub fn pin_table<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        level: Level,
        mfn: Mfn,
    ) -> Result<(), Errno> {
        self.operate(store, "pin_table", Some(mfn), |p| {
            p.try_pin_table(store, level, mfn)
        })
    }

    fn try_pin_table<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        level: Level,
        mfn: Mfn,
    ) -> Result<(), Refusal> {
        let index = self.frames.ram(mfn)?;
        if self.frames.at(index).pinned() {
            return Err(Refusal::AlreadyPinned { mfn });
        }
        self.get_page_and_type(store, mfn, level.frame_type())?;
        let pinned = self.frames.at(index).with_pinned(true);
        self.frames.set(index, pinned);
        Ok(())
    }

    /// `MMUEXT_UNPIN_TABLE`: the pin's references go. If they were the last,
    /// the table and the tables below it that nobody else uses lose their
    /// types, recursively.
    ///
    /// # Errors
    /// `EINVAL` if the frame is not the domain's or not pinned.
    pub fn unpin_table<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        mfn: Mfn,
    ) -> Result<(), Errno> {
        self.operate(store, "unpin_table", None, |p| p.try_unpin_table(mfn))
    }

    fn try_unpin_table(&mut self, mfn: Mfn) -> Result<(), Refusal> {
        let index = self.frames.ram(mfn)?;
        let frame = self.frames.at(index);
        if !frame.pinned() {
            return Err(Refusal::NotPinned { mfn });
        }
        self.frames.set(index, frame.with_pinned(false));
        self.put_page_and_type(mfn);
        Ok(())
    }

    /// `MMUEXT_NEW_BASEPTR`, and the root of a vCPU's first context. The new
    /// root is validated unless it is in use or pinned; the old one is
    /// released. LDT pages are found anew under the new root.
    ///
    /// # Errors
    /// `EINVAL` if `root` can't be an L4 table; `ENOENT` without such a vCPU.
    pub fn new_baseptr<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        root: Mfn,
    ) -> Result<(), Errno> {
        self.operate(store, "new_baseptr", Some(root), |p| {
            p.try_new_baseptr(store, vcpu, root)
        })
    }

    fn try_new_baseptr<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        root: Mfn,
    ) -> Result<(), Refusal> {
        let old = self.vcpu(vcpu)?.roots.kernel;
        if old == Some(root) {
            return Ok(());
        }
        self.get_page_and_type(store, root, FrameType::L4)?;
        self.drop_ldt_pages(vcpu);
        self.vcpu(vcpu)?.roots.kernel = Some(root);
        if let Some(old) = old {
            self.put_page_and_type(old);
        }
        Ok(())
    }

    /// `MMUEXT_NEW_USER_BASEPTR`; frame 0 means none.
    ///
    /// # Errors
    /// `EINVAL` if `root` is neither 0 nor can be an L4 table; `ENOENT`
    /// without such a vCPU.
    pub fn new_user_baseptr<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        root: Mfn,
    ) -> Result<(), Errno> {
        self.operate(store, "new_user_baseptr", Some(root), |p| {
            p.try_new_user_baseptr(store, vcpu, root)
        })
    }

    fn try_new_user_baseptr<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        root: Mfn,
    ) -> Result<(), Refusal> {
        let old = self.vcpu(vcpu)?.roots.user;
        let new = (root != Mfn(0)).then_some(root);
        if old == new {
            return Ok(());
        }
        if let Some(new) = new {
            self.get_page_and_type(store, new, FrameType::L4)?;
        }
        self.vcpu(vcpu)?.roots.user = new;
        if let Some(old) = old {
            self.put_page_and_type(old);
        }
        Ok(())
    }

    /// The roots of a vCPU.
    ///
    /// # Errors
    /// `ENOENT` without such a vCPU.
    pub fn roots(&self, vcpu: VcpuId) -> Result<VcpuRoots, Errno> {
        self.vcpu_ref(vcpu).map(|v| v.roots).traced("roots")
    }

    /// Releases all that a vCPU holds: roots, GDT and LDT.
    ///
    /// # Errors
    /// `ENOENT` without such a vCPU.
    pub fn release_vcpu<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
    ) -> Result<(), Errno> {
        self.operate(store, "release_vcpu", None, |p| {
            p.vcpu(vcpu)?;
            p.drop_vcpu(vcpu);
            Ok(())
        })
    }

    pub(super) fn drop_vcpu(&mut self, vcpu: VcpuId) {
        let Ok(tables) = self.vcpu(vcpu).map(std::mem::take) else {
            return;
        };
        let roots = [tables.roots.kernel, tables.roots.user];
        for frame in roots
            .into_iter()
            .flatten()
            .chain(tables.gdt.frames().iter().copied())
            .chain(tables.ldt.mapped())
        {
            self.put_page_and_type(frame);
        }
    }

    /// `MMUEXT_SET_LDT`: `entries` descriptors at `base`, or none. The pages
    /// are taken when they are first used ([`ldt_frame`](Self::ldt_frame)), as
    /// on Xen: an LDT may be announced before it is mapped.
    ///
    /// # Errors
    /// `EINVAL` if `base` is not page-aligned or not a guest address, or there
    /// are more than 8192 entries; `ENOENT` without such a vCPU.
    pub fn set_ldt<S: TableStore + ?Sized>(
        &mut self,
        store: &S,
        vcpu: VcpuId,
        base: GuestVirt,
        entries: u32,
    ) -> Result<(), Errno> {
        self.operate(store, "set_ldt", None, |p| {
            p.try_set_ldt(vcpu, base, entries)
        })
    }

    /// `MMUEXT_MARK_SUPER` and `MMUEXT_UNMARK_SUPER`, which Xen no longer has.
    ///
    /// # Errors
    /// Always `EOPNOTSUPP`.
    pub fn mark_super(&self) -> Result<(), Errno> {
        Err(Refusal::Superpage).traced("mark_super")
    }

    pub(super) fn vcpu_ref(&self, vcpu: VcpuId) -> Result<&VcpuTables, Refusal> {
        usize::try_from(vcpu.0)
            .ok()
            .and_then(|i| self.vcpus.get(i))
            .ok_or(Refusal::NoVcpu { vcpu })
    }
}
