//! Which keys there are beyond the ones that mean something here.

/// What becomes of a key that no part of [`super::domain`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// It configures hardware-assisted (HVM) domains.
    HvmOnly,
    /// xm or xl know it, and it changes nothing here.
    NoEffect,
    /// It asks for something that a domain would miss if it were ignored.
    Refused(&'static str),
    /// Nobody knows it.
    Unknown,
}

const HVM_ONLY: &[&str] = &[
    "acpi",
    "acpi_s3",
    "acpi_s4",
    "altp2m",
    "apic",
    "bios",
    "boot",
    "cpuid",
    "cpuid_check",
    "device_model",
    "device_model_args",
    "device_model_override",
    "device_model_stubdomain_override",
    "device_model_version",
    "display",
    "fda",
    "fdb",
    "firmware_override",
    "gfx_passthru",
    "guest_os_type",
    "hap",
    "hdtype",
    "hpet",
    "isa",
    "keymap",
    "loader",
    "localtime",
    "max_event_channels_hvm",
    "monitor",
    "mmio_hole",
    "nestedhvm",
    "nographic",
    "nx",
    "opengl",
    "oos",
    "pae",
    "rdm",
    "rtc_timeoffset",
    "sdl",
    "serial",
    "shadow_memory",
    "smbios_firmware",
    "soundhw",
    "spice",
    "spiceagent_mouse",
    "spicehost",
    "spicepasswd",
    "spiceport",
    "stdvga",
    "system_firmware",
    "timer_mode",
    "usb",
    "usbdevice",
    "usbversion",
    "vga",
    "vhpt",
    "videoram",
    "viridian",
    "vnc",
    "vncconsole",
    "vncdisplay",
    "vnclisten",
    "vncpasswd",
    "vncunused",
    "vncviewer",
    "vpt_align",
    "xauthority",
    "xen_extended_power_mgmt",
    "xen_platform_pci",
];

const NO_EFFECT: &[&str] = &[
    "access_control",
    "builder_args",
    "change_home_server",
    "claim_mode",
    "cpuset",
    "driver_domain",
    "description",
    "image",
    "init_seclabel",
    "machine_address_size",
    "max_event_channels",
    "max_grant_version",
    "memory_sharing",
    "nomigrate",
    "numa_placement",
    "on_shutdown",
    "on_soft_reset",
    "on_suspend",
    "on_watchdog",
    "on_xend_start",
    "on_xend_stop",
    "pvh",
    "s3_integrity",
    "seclabel",
    "superpages",
    "suppress_spurious_page_faults",
    "timeout",
    "tsc_mode",
    "vcpu_avail",
    "vfb",
    "vkb",
    "xend_config_format",
];

const REFUSED: &[(&str, &str)] = &[
    ("cpupool", "CPU pools are not supported"),
    ("dtdev", "device passthrough is not supported"),
    ("iomem", "device passthrough is not supported"),
    ("ioports", "device passthrough is not supported"),
    ("irq", "device passthrough is not supported"),
    ("irqs", "device passthrough is not supported"),
    ("p9", "9pfs shares are not supported"),
    ("pci", "PCI passthrough is not supported"),
    ("pool", "CPU pools are not supported"),
    ("pvcalls", "PV calls are not supported"),
    ("tpmif", "virtual TPMs are not supported"),
    ("usbctrl", "USB passthrough is not supported"),
    ("usbdev", "USB passthrough is not supported"),
    ("vscsi", "SCSI passthrough is not supported"),
    ("vtpm", "virtual TPMs are not supported"),
    ("vusb", "USB passthrough is not supported"),
];

/// What becomes of `key`.
#[must_use]
pub fn leftover(key: &str) -> Leftover {
    if let Some((_, why)) = REFUSED.iter().find(|(name, _)| *name == key) {
        Leftover::Refused(why)
    } else if HVM_ONLY.contains(&key) {
        Leftover::HvmOnly
    } else if NO_EFFECT.contains(&key) {
        Leftover::NoEffect
    } else {
        Leftover::Unknown
    }
}

/// The key that was perhaps meant by `key`.
#[must_use]
pub fn similar(key: &str) -> Option<&'static str> {
    super::domain::KEYS
        .iter()
        .copied()
        .map(|known| (distance(key, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 6)
        .min()
        .map(|(_, known)| known)
}

/// Whether `text` can be a key at all.
#[must_use]
pub fn is_key(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Levenshtein's distance; both words are short.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_one_fate() {
        assert_eq!(leftover("vnc"), Leftover::HvmOnly);
        assert_eq!(leftover("vfb"), Leftover::NoEffect);
        assert_eq!(
            leftover("pci"),
            Leftover::Refused("PCI passthrough is not supported")
        );
        assert_eq!(leftover("memroy"), Leftover::Unknown);
        for key in super::super::domain::KEYS {
            assert_eq!(leftover(key), Leftover::Unknown, "{key} is listed twice");
        }
    }

    #[test]
    fn a_slip_of_the_pen_is_recognised() {
        assert_eq!(similar("memroy"), Some("memory"));
        assert_eq!(similar("kernal"), Some("kernel"));
        assert_eq!(similar("zzzzzz"), None);
    }
}
