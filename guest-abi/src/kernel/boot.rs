//! The first steps of a kernel, and what the domain builder told it.
//!
//! ```no_run
//! use guest_abi::{addr::Pfn, kernel::{Boot, boot}};
//!
//! fn set_up(boot: &'static Boot) {
//!     // Console, trap table, shared info, events.
//!     boot.init().expect("the usual set-up");
//!     let first = boot::pfn_to_mfn(Pfn(0)).expect("page 0 has a frame");
//!     assert_eq!(boot::mfn_to_pfn(first), Some(Pfn(0)));
//!     let _pages = boot.start_info().nr_pages;
//! }
//! ```

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::{VIRT_BASE, console, event, hypercall, mm, smp, trap};
use crate::{
    addr::{DomId, GuestVirt, Mfn, PAGE_SIZE, Pfn},
    errno::Errno,
    memory::{MachphysMapping, XENMEM_MACHPHYS_MAPPING},
    xen::{SharedInfo, StartInfo},
};

/// The builder's record, for code without a [`Boot`] at hand.
static START_INFO: AtomicPtr<StartInfo> = AtomicPtr::new(core::ptr::null_mut());
/// Where the machine-to-phys table is, and how many entries it has.
static M2P_START: AtomicU64 = AtomicU64::new(0);
static M2P_ENTRIES: AtomicU64 = AtomicU64::new(0);

/// A page of the image whose mapping is turned over to the shared info frame.
#[repr(C, align(4096))]
struct SharedPage(core::cell::UnsafeCell<[u8; 4096]>);

// SAFETY: only ever accessed through raw pointers with atomic operations.
unsafe impl Sync for SharedPage {}

static SHARED_PAGE: SharedPage = SharedPage(core::cell::UnsafeCell::new([0; 4096]));

/// What the kernel was given, and the usual set-up with it.
#[derive(Debug)]
pub struct Boot {
    start_info: &'static StartInfo,
}

impl Boot {
    /// Called by the entry point.
    ///
    /// # Safety
    /// Once, with the address that the domain builder left in `rsi`.
    pub unsafe fn start(start_info: *const StartInfo) -> &'static Boot {
        static BOOT: OnceBoot = OnceBoot(core::cell::UnsafeCell::new(None));
        START_INFO.store(start_info.cast_mut(), Ordering::Release);
        // SAFETY: the only caller runs once, alone; the builder's page is
        // there for good and nobody writes it.
        unsafe {
            (*BOOT.0.get()).insert(Boot {
                start_info: &*start_info,
            })
        }
    }

    /// The domain builder's record.
    #[must_use]
    pub fn start_info(&self) -> &'static StartInfo {
        self.start_info
    }

    /// The command line, without its NUL; cut at the first byte that is not text.
    #[must_use]
    pub fn command_line(&self) -> &'static str {
        let bytes = &self.start_info.cmd_line;
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        match core::str::from_utf8(&bytes[..end]) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }

    /// The usual: [`init_console`](Self::init_console), traps, event entry
    /// points.
    ///
    /// # Errors
    /// The first refusal.
    pub fn init(&self) -> Result<(), Errno> {
        self.init_console()?;
        trap::install()?;
        event::install()
    }

    /// What the console ring needs: the machine-to-phys table, the shared
    /// info page with its clock, this vCPU's record.
    ///
    /// # Errors
    /// The first refusal.
    pub fn init_console(&self) -> Result<(), Errno> {
        self.find_m2p()?;
        self.map_shared_info()?;
        smp::init_boot_vcpu()?;
        console::attach_ring(self);
        Ok(())
    }

    /// Asks where the machine-to-phys table is.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn find_m2p(&self) -> Result<(), Errno> {
        let mut mapping = MachphysMapping::default();
        // SAFETY: the command's type.
        unsafe { hypercall::memory_op(XENMEM_MACHPHYS_MAPPING, &mut mapping) }?;
        let room = mapping.v_end.saturating_sub(mapping.v_start) / 8;
        M2P_ENTRIES.store(
            room.min(mapping.max_mfn.saturating_add(1)),
            Ordering::Relaxed,
        );
        M2P_START.store(mapping.v_start, Ordering::Release);
        Ok(())
    }

    /// Maps the shared info frame over a page of the image.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn map_shared_info(&self) -> Result<(), Errno> {
        let entry = self.start_info.shared_info | mm::PAGE_KERNEL;
        let here = GuestVirt(SHARED_PAGE.0.get() as u64);
        // SAFETY: nothing but shared info accesses uses that page.
        unsafe { hypercall::update_va_mapping(here, entry, crate::xen::UVMF_INVLPG) }?;
        Ok(())
    }
}

struct OnceBoot(core::cell::UnsafeCell<Option<Boot>>);

// SAFETY: written once, by the entry point, before anything else runs.
unsafe impl Sync for OnceBoot {}

/// The shared info page. Nothing in it may be borrowed: the hypervisor writes
/// it at any time.
#[must_use]
pub fn shared_info() -> *mut SharedInfo {
    SHARED_PAGE.0.get().cast()
}

/// The builder's record, once [`Boot::start`] has run.
#[must_use]
pub fn start_info() -> Option<&'static StartInfo> {
    // SAFETY: null, or the builder's page, which is there for good.
    unsafe { START_INFO.load(Ordering::Acquire).as_ref() }
}

/// The MFN of a pseudo-physical page, by the builder's list.
#[must_use]
pub fn pfn_to_mfn(pfn: Pfn) -> Option<Mfn> {
    let info = start_info()?;
    if pfn.0 >= info.nr_pages {
        return None;
    }
    let entry = info.mfn_list + pfn.0 * 8;
    // SAFETY: the list has `nr_pages` entries.
    let mfn = Mfn(unsafe { (entry as *const u64).read_volatile() });
    (mfn != Mfn::INVALID).then_some(mfn)
}

/// Changes the list, after an exchange of frames.
///
/// # Errors
/// `EINVAL` for a page that the list has not.
pub fn set_pfn_mfn(pfn: Pfn, mfn: Mfn) -> Result<(), Errno> {
    let info = start_info().ok_or(Errno::EINVAL)?;
    if pfn.0 >= info.nr_pages {
        return Err(Errno::EINVAL);
    }
    let entry = info.mfn_list + pfn.0 * 8;
    // SAFETY: the list has `nr_pages` entries and is the kernel's own.
    unsafe { (entry as *mut u64).write_volatile(mfn.0) };
    Ok(())
}

/// The pseudo-physical page of an MFN, by the hypervisor's table; `None` for
/// a frame that is not this domain's RAM.
#[must_use]
pub fn mfn_to_pfn(mfn: Mfn) -> Option<Pfn> {
    let start = M2P_START.load(Ordering::Acquire);
    if start == 0 || mfn.0 >= M2P_ENTRIES.load(Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the hypervisor maps the table up to its last entry.
    let pfn = Pfn(unsafe { ((start + mfn.0 * 8) as *const u64).read_volatile() });
    (pfn_to_mfn(pfn) == Some(mfn)).then_some(pfn)
}

/// The machine-to-phys table: its address and number of entries.
#[must_use]
pub fn m2p_table() -> (GuestVirt, u64) {
    (
        GuestVirt(M2P_START.load(Ordering::Acquire)),
        M2P_ENTRIES.load(Ordering::Relaxed),
    )
}

/// The address of a pseudo-physical page in the initial mapping.
#[must_use]
pub fn pfn_to_virt(pfn: Pfn) -> GuestVirt {
    GuestVirt(VIRT_BASE.wrapping_add(pfn.0.wrapping_mul(PAGE_SIZE)))
}

/// The MFN behind an address of the initial mapping.
#[must_use]
pub fn virt_to_mfn(address: GuestVirt) -> Option<Mfn> {
    pfn_to_mfn(Pfn(address.0.checked_sub(VIRT_BASE)? / PAGE_SIZE))
}

/// This domain, as hypercalls take it.
pub const SELF: u16 = DomId::SELF.0;
