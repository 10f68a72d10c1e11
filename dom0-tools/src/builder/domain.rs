//! Puts a kernel into a new domain, by the [`Layout`].
//!
//! Law: nothing is asked of the hypervisor before the plan stands, so that
//! what can't work fails with the domain untouched. The page tables are
//! written last and pinned at once; from then on their frames are not written.

use std::path::PathBuf;

use domus_privcmd::client::{Client, ClientError, Memory};
use guest_abi::{
    addr::{DomId, Mfn, PAGE_SHIFT, Pfn, Port, VcpuId},
    arch_x86::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext},
    arch_x86_64::{FLAT_KERNEL_CS, FLAT_KERNEL_DS, FLAT_KERNEL_SS, pfn_to_cr3},
    xen::{MAX_GUEST_CMDLINE, SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS, StartInfo},
};
use thiserror::Error;
use zerocopy::IntoBytes;

use super::{
    hypercall_page,
    image::KernelImage,
    layout::{Layout, LayoutError},
    memory::{DomainMemory, MemoryError, MemoryFile, PhysMap},
    ramdisk::Ramdisk,
};

/// `start_info.magic` of a 64-bit PV guest on an interface of Xen 3.0 and up.
const MAGIC: &[u8] = b"xen-3.0-x86_64";
/// `rflags` at the start: IF, that is events on; bit 1 always reads as 1.
const INITIAL_RFLAGS: u64 = 1 << 9 | 1 << 1;
const INITIAL_DR6: u64 = 0xffff_0ff0;
const INITIAL_DR7: u64 = 0x0000_0400;

/// What a domain shall start with.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// Memory, in pages.
    pub memory_pages: u64,
    /// Its initial ramdisk.
    pub ramdisk: Option<Ramdisk>,
    /// The kernel's command line.
    pub cmdline: String,
    /// `SIF_*` beyond those that the builder sets itself.
    pub flags: u32,
    /// The domain's end of the xenstore channel.
    pub store_port: Port,
    /// The domain's end of the console channel.
    pub console_port: Port,
}

/// A domain that was built and can be unpaused.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// Frame of the xenstore ring.
    pub store_mfn: Mfn,
    /// Frame of the console ring.
    pub console_mfn: Mfn,
    /// PFN of the xenstore ring.
    pub store_pfn: Pfn,
    /// PFN of the console ring.
    pub console_pfn: Pfn,
    /// Where everything lies.
    pub layout: Layout,
}

/// Why a domain could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Too long for `start_info`.
    #[error(
        "the command line has {len} bytes, a PV kernel takes at most {}: shorten `extra` or `root`",
        MAX_GUEST_CMDLINE - 1
    )]
    CommandLineTooLong {
        /// Its length.
        len: usize,
    },
    /// It would end there.
    #[error("the command line has a NUL character in it (after {0} bytes)")]
    CommandLineNul(usize),
    /// Does not fit.
    #[error("kernel image {}: {source}", path.display())]
    Layout {
        /// The kernel.
        path: PathBuf,
        /// Why.
        source: LayoutError,
    },
    /// The hypervisor refused.
    #[error("can't {what} of domain {}: {source}", dom.0)]
    Hypervisor {
        /// What was asked.
        what: &'static str,
        /// Of whom.
        dom: DomId,
        /// What it said.
        source: ClientError,
    },
    /// See [`MemoryError`].
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What the builder asks of the hypervisor.
pub trait DomainControl {
    /// The memory that [`map_memory`](Self::map_memory) gives.
    type Memory: DomainMemory;

    /// Gives the domain its frames.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn populate(&self, dom: DomId, first: Pfn, count: u64) -> Result<Vec<(Mfn, u64)>, ClientError>;

    /// Makes the domain's memory writable for us.
    ///
    /// # Errors
    /// What the hypervisor said, or why mapping failed.
    fn map_memory(&self, dom: DomId) -> Result<Self::Memory, BuildError>;

    /// The frame of the domain's `shared_info`.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn shared_info(&self, dom: DomId) -> Result<Mfn, ClientError>;

    /// Pins the page-table root.
    ///
    /// # Errors
    /// What the hypervisor said: a table that breaks a rule.
    fn pin_root(&self, dom: DomId, root: Mfn) -> Result<(), ClientError>;

    /// Sets vCPU 0's registers.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn set_context(&self, dom: DomId, context: &VcpuGuestContext) -> Result<(), ClientError>;
}

impl DomainControl for Client {
    type Memory = MemoryFile;

    fn populate(&self, dom: DomId, first: Pfn, count: u64) -> Result<Vec<(Mfn, u64)>, ClientError> {
        self.populate_physmap(dom, first, count)
    }

    fn map_memory(&self, dom: DomId) -> Result<MemoryFile, BuildError> {
        let Memory {
            fd,
            base_mfn,
            pages,
        } = Client::map_memory(self, dom).map_err(failed("map the memory", dom))?;
        Ok(MemoryFile::new(fd, base_mfn, pages)?)
    }

    fn shared_info(&self, dom: DomId) -> Result<Mfn, ClientError> {
        Ok(Mfn(self.domain_info(dom)?.shared_info_frame))
    }

    fn pin_root(&self, dom: DomId, root: Mfn) -> Result<(), ClientError> {
        self.pin_table(dom, 4, root)
    }

    fn set_context(&self, dom: DomId, context: &VcpuGuestContext) -> Result<(), ClientError> {
        self.set_vcpu_context(dom, VcpuId(0), context.as_bytes().to_vec())
    }
}

/// Checks all that can be checked of a build without a domain.
///
/// # Errors
/// Those of [`build`] that are not the hypervisor's.
pub fn plan(image: &KernelImage, spec: &BuildSpec) -> Result<Layout, BuildError> {
    check_cmdline(&spec.cmdline)?;
    let ramdisk = spec.ramdisk.as_ref().map(|r| r.content().len() as u64);
    Layout::plan(image.placement(), spec.memory_pages, ramdisk).map_err(|source| {
        BuildError::Layout {
            path: image.path().to_owned(),
            source,
        }
    })
}

/// Gives domain `dom`, which is new and has no memory yet, its memory, its
/// kernel and its first vCPU's registers. It stays paused.
///
/// # Errors
/// See [`BuildError`]. After a failure the domain may have memory: destroy it.
pub fn build<C: DomainControl>(
    control: &C,
    dom: DomId,
    image: &KernelImage,
    spec: &BuildSpec,
) -> Result<Built, BuildError> {
    let layout = plan(image, spec)?;
    let extents = control
        .populate(dom, Pfn(0), spec.memory_pages)
        .map_err(failed("populate the memory", dom))?;
    let frames = PhysMap::new(extents, spec.memory_pages)?;
    let shared_info = control
        .shared_info(dom)
        .map_err(failed("get the state", dom))?;
    let mut memory = control.map_memory(dom)?;
    Writer {
        memory: &mut memory,
        frames: &frames,
        layout: &layout,
    }
    .write(image, spec, shared_info)?;
    drop(memory);
    let root = frames.mfn(Pfn(layout.table_set.root()));
    control
        .pin_root(dom, root)
        .map_err(failed("pin the page tables", dom))?;
    control
        .set_context(dom, &initial_context(&layout, root))
        .map_err(failed("set vCPU 0's registers", dom))?;
    Ok(Built {
        store_mfn: frames.mfn(layout.xenstore),
        console_mfn: frames.mfn(layout.console),
        store_pfn: layout.xenstore,
        console_pfn: layout.console,
        layout,
    })
}

fn failed(what: &'static str, dom: DomId) -> impl FnOnce(ClientError) -> BuildError {
    move |source| BuildError::Hypervisor { what, dom, source }
}

fn check_cmdline(cmdline: &str) -> Result<(), BuildError> {
    let len = cmdline.len();
    if len >= MAX_GUEST_CMDLINE {
        return Err(BuildError::CommandLineTooLong { len });
    }
    match cmdline.find('\0') {
        Some(at) => Err(BuildError::CommandLineNul(at)),
        None => Ok(()),
    }
}

struct Writer<'a, M> {
    memory: &'a mut M,
    frames: &'a PhysMap,
    layout: &'a Layout,
}

impl<M: DomainMemory> Writer<'_, M> {
    fn write(
        &mut self,
        image: &KernelImage,
        spec: &BuildSpec,
        shared_info: Mfn,
    ) -> Result<(), MemoryError> {
        self.kernel(image)?;
        if let (Some((frames, _)), Some(ramdisk)) = (&self.layout.ramdisk, &spec.ramdisk) {
            self.put(frames.start << PAGE_SHIFT, ramdisk.content())?;
        }
        self.p2m()?;
        let start_info = start_info(self.layout, self.frames, spec, shared_info);
        self.put(
            self.layout.start_info.0 << PAGE_SHIFT,
            start_info.as_bytes(),
        )?;
        self.page_tables()
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.frames.write(self.memory, at, bytes)
    }

    fn kernel(&mut self, image: &KernelImage) -> Result<(), MemoryError> {
        let placement = image.placement();
        for segment in image.segments() {
            self.put(segment.paddr - placement.paddr_offset, &segment.data)?;
        }
        match placement.hypercall_page {
            Some(page) => self.put(page, &hypercall_page::content()),
            None => Ok(()),
        }
    }

    /// The list is written by pieces, so that a large domain's is never whole
    /// in our memory.
    fn p2m(&mut self) -> Result<(), MemoryError> {
        const PIECE: usize = 1 << 16;
        let mut at = self.layout.p2m.start << PAGE_SHIFT;
        let mut entries = self.frames.mfns();
        loop {
            let piece: Vec<u64> = entries.by_ref().take(PIECE).collect();
            if piece.is_empty() {
                return Ok(());
            }
            self.put(at, piece.as_bytes())?;
            at += piece.as_bytes().len() as u64;
        }
    }

    fn page_tables(&mut self) -> Result<(), MemoryError> {
        let (frames, layout) = (self.frames, self.layout);
        layout.table_set.fill(
            |pfn| frames.mfn(Pfn(pfn)),
            |pfn, entries| self.put(pfn << PAGE_SHIFT, entries.as_bytes()),
        )
    }
}

fn start_info(layout: &Layout, frames: &PhysMap, spec: &BuildSpec, shared_info: Mfn) -> StartInfo {
    let mut info = StartInfo {
        nr_pages: layout.pages,
        shared_info: shared_info.0 << PAGE_SHIFT,
        flags: spec.flags | SIF_VIRT_P2M_4TOOLS,
        store_mfn: frames.mfn(layout.xenstore).0,
        store_evtchn: spec.store_port.0,
        console_mfn: frames.mfn(layout.console).0,
        console_evtchn: spec.console_port.0,
        pt_base: layout.virt(Pfn(layout.tables.start)),
        nr_pt_frames: layout.tables.end - layout.tables.start,
        mfn_list: layout.p2m_virt,
        ..StartInfo::default()
    };
    info.magic[..MAGIC.len()].copy_from_slice(MAGIC);
    info.cmd_line[..spec.cmdline.len()].copy_from_slice(spec.cmdline.as_bytes());
    if let Some((ramdisk, len)) = &layout.ramdisk {
        info.mod_len = *len;
        info.mod_start = layout.virt(Pfn(ramdisk.start));
        if layout.ramdisk_unmapped {
            info.mod_start = ramdisk.start;
            info.flags |= SIF_MOD_START_PFN;
        }
    }
    if let Some(own) = &layout.p2m_own {
        info.first_p2m_pfn = own.start;
        info.nr_p2m_frames = own.end - own.start;
    }
    info
}

fn initial_context(layout: &Layout, root: Mfn) -> VcpuGuestContext {
    let mut context = VcpuGuestContext {
        flags: VGCF_IN_KERNEL | VGCF_ONLINE,
        ..VcpuGuestContext::default()
    };
    let stack_top = layout.virt(layout.boot_stack) + (1 << PAGE_SHIFT);
    let regs = &mut context.user_regs;
    regs.rip = layout.entry;
    regs.rsp = stack_top;
    regs.rsi = layout.virt(layout.start_info);
    regs.rflags = INITIAL_RFLAGS;
    regs.cs = FLAT_KERNEL_CS;
    regs.ss = FLAT_KERNEL_SS;
    regs.ds = FLAT_KERNEL_DS;
    regs.es = FLAT_KERNEL_DS;
    regs.fs = FLAT_KERNEL_DS;
    regs.gs = FLAT_KERNEL_DS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = stack_top;
    context.ctrlreg[3] = pfn_to_cr3(root.0);
    context.debugreg[6] = INITIAL_DR6;
    context.debugreg[7] = INITIAL_DR7;
    context
}

#[cfg(test)]
mod tests;
