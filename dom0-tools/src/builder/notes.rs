//! What a kernel says of itself to the builder.
//!
//! A PV kernel carries ELF notes named "Xen", one value each. Kernels from
//! before the notes carry one string in a section `__xen_guest` instead, of
//! `NAME=value` pairs with commas between. Where both are there, the notes
//! count.

use std::fmt;

use guest_abi::{
    elfnote as abi,
    features::{
        FEATURE_NAMES, XENFEAT_GNTTAB_MAP_AVAIL_BITS, XENFEAT_HVM_CALLBACK_VECTOR,
        XENFEAT_MMU_PT_UPDATE_PRESERVE_AD, XENFEAT_PAE_PGDIR_ABOVE_4GB,
        XENFEAT_WRITABLE_PAGE_TABLES,
    },
};
use thiserror::Error;

/// Notes that make a kernel unusable for us.
#[derive(Debug, Error, PartialEq)]
pub enum NotesError {
    /// Neither notes nor the section.
    #[error(
        "no Xen PV notes: this kernel was built without CONFIG_XEN_PV. Debian's \
         linux-image-amd64 and linux-image-cloud-amd64 have it"
    )]
    NotPv,
    /// Only a PVH entry point.
    #[error(
        "a Xen kernel, but for PVH/HVM only (it has no PV entry, only PHYS32_ENTRY {0:#x}): \
         it needs CONFIG_XEN_PV too. Debian's linux-image-amd64 has it"
    )]
    HvmOnly(u64),
    /// Neither LOADER "generic" nor GUEST_OS "linux".
    #[error(
        "LOADER is \"{loader}\" and GUEST_OS is \"{guest_os}\": only kernels for the generic \
         loader and Linux are loaded"
    )]
    Loader {
        /// The note's text.
        loader: String,
        /// The note's text.
        guest_os: String,
    },
    /// Not `xen-3.0`.
    #[error("XEN_VERSION is \"{0}\": only kernels for \"xen-3.0\" are loaded")]
    Version(String),
    /// A `!feature` that we don't have.
    #[error("the kernel requires the Xen feature \"{0}\", which Domus does not have")]
    Feature(String),
}

/// A set of `XENFEAT_*`, by bit.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(pub u64);

/// What a kernel may require: writable page tables (through emulated writes),
/// and what concerns other kinds of guest. Requiring an auto-translated memory
/// map, a kernel in supervisor mode, writable descriptor tables or being Dom0
/// cannot be met.
const MET: Features = Features(
    1 << XENFEAT_WRITABLE_PAGE_TABLES
        | 1 << XENFEAT_PAE_PGDIR_ABOVE_4GB
        | 1 << XENFEAT_MMU_PT_UPDATE_PRESERVE_AD
        | 1 << XENFEAT_GNTTAB_MAP_AVAIL_BITS
        | 1 << XENFEAT_HVM_CALLBACK_VECTOR,
);

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bar = "";
        let mut rest = self.0;
        for (name, bit) in FEATURE_NAMES {
            if self.0 >> bit & 1 == 1 {
                write!(f, "{bar}{name}")?;
                bar = "|";
                rest &= !(1 << bit);
            }
        }
        if rest != 0 {
            write!(f, "{bar}{rest:#x}")?;
        }
        Ok(())
    }
}

/// A kernel's notes, or its `__xen_guest` string.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct XenNotes {
    /// From `__xen_guest`; the meaning of a missing PADDR_OFFSET depends on it.
    pub legacy: bool,
    /// Where vCPU 0 starts.
    pub entry: Option<u64>,
    /// The page that the builder fills with hypercall stubs.
    pub hypercall_page: Option<u64>,
    /// Virtual address of pseudo-physical address 0.
    pub virt_base: Option<u64>,
    /// What the ELF file's physical addresses are too large by.
    pub paddr_offset: Option<u64>,
    /// E.g. "xen-3.0".
    pub xen_version: String,
    /// E.g. "linux".
    pub guest_os: String,
    /// E.g. "2.6".
    pub guest_version: String,
    /// "generic" where anything is known.
    pub loader: String,
    /// Of 32-bit kernels.
    pub pae_mode: String,
    /// What the kernel can do with.
    pub supported: Features,
    /// What the kernel can't do without.
    pub required: Features,
    /// A required feature whose name nobody knows.
    pub unknown_required: Option<String>,
    /// Wants its symbols loaded behind it.
    pub bsd_symtab: bool,
    /// Lowest address that the kernel leaves to the hypervisor (32-bit).
    pub hv_start_low: Option<u64>,
    /// Mask and value by which a valid L1 entry is known (migration of old).
    pub l1_mfn_valid: Option<(u64, u64)>,
    /// Can go on after a suspend that was cancelled.
    pub suspend_cancel: bool,
    /// Where the p2m list shall be mapped, outside the kernel's own mapping.
    pub init_p2m: Option<u64>,
    /// The ramdisk may stay unmapped; `mod_start` is its PFN then.
    pub mod_start_pfn: bool,
    /// The PVH entry point.
    pub phys32_entry: Option<u64>,
}

impl XenNotes {
    /// Reads the notes, or the string if there are none; and sees to it that
    /// they are those of a PV kernel that can run here.
    ///
    /// # Errors
    /// See [`NotesError`].
    pub fn parse(
        notes: &[(u32, Vec<u8>)],
        guest_section: Option<&[u8]>,
    ) -> Result<Self, NotesError> {
        let mut parsed = Self::default();
        match guest_section {
            _ if !notes.is_empty() => {
                for (kind, content) in notes {
                    parsed.note(*kind, content);
                }
            }
            Some(text) => parsed.section(&printable(text)),
            None => return Err(NotesError::NotPv),
        }
        parsed.check()?;
        Ok(parsed)
    }

    fn note(&mut self, kind: u32, content: &[u8]) {
        let value = Some(number(content));
        match kind {
            abi::XEN_ELFNOTE_ENTRY => self.entry = value,
            abi::XEN_ELFNOTE_HYPERCALL_PAGE => self.hypercall_page = value,
            abi::XEN_ELFNOTE_VIRT_BASE => self.virt_base = value,
            abi::XEN_ELFNOTE_PADDR_OFFSET => self.paddr_offset = value,
            abi::XEN_ELFNOTE_XEN_VERSION => self.xen_version = text(content),
            abi::XEN_ELFNOTE_GUEST_OS => self.guest_os = text(content),
            abi::XEN_ELFNOTE_GUEST_VERSION => self.guest_version = text(content),
            abi::XEN_ELFNOTE_LOADER => self.loader = text(content),
            abi::XEN_ELFNOTE_PAE_MODE => self.pae_mode = text(content),
            abi::XEN_ELFNOTE_FEATURES => self.features(&text(content)),
            abi::XEN_ELFNOTE_BSD_SYMTAB => self.bsd_symtab = text(content) == "yes",
            abi::XEN_ELFNOTE_HV_START_LOW => self.hv_start_low = value,
            abi::XEN_ELFNOTE_L1_MFN_VALID => {
                let (mask, valid) = content.split_at(content.len() / 2);
                self.l1_mfn_valid = Some((number(mask), number(valid)));
            }
            abi::XEN_ELFNOTE_SUSPEND_CANCEL => self.suspend_cancel = value != Some(0),
            abi::XEN_ELFNOTE_INIT_P2M => self.init_p2m = value,
            abi::XEN_ELFNOTE_MOD_START_PFN => self.mod_start_pfn = value != Some(0),
            abi::XEN_ELFNOTE_SUPPORTED_FEATURES => self.supported.0 |= number(content),
            abi::XEN_ELFNOTE_PHYS32_ENTRY => self.phys32_entry = value,
            _ => {}
        }
    }

    fn section(&mut self, text: &str) {
        self.legacy = true;
        let mut hypercall_page = None;
        for pair in text.split(',') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "LOADER" => self.loader = value.into(),
                "GUEST_OS" => self.guest_os = value.into(),
                "GUEST_VER" => self.guest_version = value.into(),
                "XEN_VER" => self.xen_version = value.into(),
                "PAE" => self.pae_mode = value.into(),
                "BSD_SYMTAB" => self.bsd_symtab = true,
                "VIRT_BASE" => self.virt_base = c_number(value),
                "VIRT_ENTRY" => self.entry = c_number(value),
                "ELF_PADDR_OFFSET" => self.paddr_offset = c_number(value),
                "HYPERCALL_PAGE" => hypercall_page = c_number(value),
                "FEATURES" => self.features(value),
                _ => {}
            }
        }
        // In this form it is a frame number above VIRT_BASE.
        self.hypercall_page = hypercall_page.map(|page| {
            page.wrapping_shl(12)
                .wrapping_add(self.virt_base.unwrap_or(0))
        });
    }

    /// `name|name|!name`: supported, and with a bang required.
    fn features(&mut self, text: &str) {
        for feature in text.split('|').filter(|name| !name.is_empty()) {
            let (name, required) = match feature.strip_prefix('!') {
                Some(name) => (name, true),
                None => (feature, false),
            };
            let bit = FEATURE_NAMES.iter().find(|(known, _)| *known == name);
            match bit {
                Some((_, bit)) => {
                    self.supported.0 |= 1 << bit;
                    self.required.0 |= u64::from(required) << bit;
                }
                None if required => self.unknown_required = Some(name.into()),
                None => {}
            }
        }
    }

    fn check(&self) -> Result<(), NotesError> {
        let pv = self.entry.is_some()
            || self.virt_base.is_some()
            || self.hypercall_page.is_some()
            || !self.xen_version.is_empty();
        match self.phys32_entry {
            Some(entry) if !pv => return Err(NotesError::HvmOnly(entry)),
            None if !pv && !self.legacy => return Err(NotesError::NotPv),
            _ => {}
        }
        if !self.loader.starts_with("generic") && !self.guest_os.starts_with("linux") {
            return Err(NotesError::Loader {
                loader: self.loader.clone(),
                guest_os: self.guest_os.clone(),
            });
        }
        if !self.xen_version.starts_with("xen-3.0") {
            return Err(NotesError::Version(self.xen_version.clone()));
        }
        if let Some(name) = &self.unknown_required {
            return Err(NotesError::Feature(name.clone()));
        }
        let unmet = Features(self.required.0 & !MET.0);
        if unmet.0 != 0 {
            return Err(NotesError::Feature(unmet.to_string()));
        }
        Ok(())
    }
}

/// A note's number: 1 to 8 bytes, little endian.
fn number(content: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = content.len().min(8);
    bytes[..len].copy_from_slice(&content[..len]);
    u64::from_le_bytes(bytes)
}

fn text(content: &[u8]) -> String {
    let end = content.iter().position(|&byte| byte == 0);
    let content = &content[..end.unwrap_or(content.len()).min(256)];
    printable(content)
}

/// Text of a stranger's for a terminal: no control characters.
pub(super) fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A number as C's `strtoull` reads it with base 0.
fn c_number(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()
    } else if text.len() > 1 && text.starts_with('0') {
        u64::from_str_radix(text, 8).ok()
    } else {
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests;
