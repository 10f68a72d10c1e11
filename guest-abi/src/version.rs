//! `public/version.h`: `xen_version`, who the hypervisor is.
//!
//! Strings are NUL-terminated in arrays of fixed size. [`XENVER_VERSION`] has
//! no argument; since any hypercall lets pending events be delivered on its
//! way back, Linux uses it for nothing but that.
//!
//! ```
//! // What XENVER_VERSION returns: major in the upper half, minor in the lower.
//! let version = 4 << 16 | 17;
//! assert_eq!((version >> 16, version & 0xffff), (4, 17));
//! assert_eq!(size_of::<guest_abi::version::CompileInfo>(), 144);
//! ```

use crate::layout::layout;

/// `major << 16 | minor`.
pub const XENVER_VERSION: u32 = 0;
/// The rest of the version, [`XEN_EXTRAVERSION_LEN`] bytes.
pub const XENVER_EXTRAVERSION: u32 = 1;
/// [`CompileInfo`].
pub const XENVER_COMPILE_INFO: u32 = 2;
/// Kinds of guests that run here, [`XEN_CAPABILITIES_INFO_LEN`] bytes.
pub const XENVER_CAPABILITIES: u32 = 3;
/// The source's revision, [`XEN_CHANGESET_INFO_LEN`] bytes.
pub const XENVER_CHANGESET: u32 = 4;
/// [`PlatformParameters`].
pub const XENVER_PLATFORM_PARAMETERS: u32 = 5;
/// [`FeatureInfo`].
pub const XENVER_GET_FEATURES: u32 = 6;
/// Bytes of a page.
pub const XENVER_PAGESIZE: u32 = 7;
/// The domain's own handle (UUID), 16 bytes.
pub const XENVER_GUEST_HANDLE: u32 = 8;
/// The hypervisor's command line, [`XEN_COMMANDLINE_LEN`] bytes.
pub const XENVER_COMMANDLINE: u32 = 9;
/// The binary's build id.
pub const XENVER_BUILD_ID: u32 = 10;

/// Bytes of [`XENVER_EXTRAVERSION`]'s answer.
pub const XEN_EXTRAVERSION_LEN: usize = 16;
/// Bytes of [`XENVER_CAPABILITIES`]' answer.
pub const XEN_CAPABILITIES_INFO_LEN: usize = 1024;
/// Bytes of [`XENVER_CHANGESET`]'s answer.
pub const XEN_CHANGESET_INFO_LEN: usize = 64;
/// Bytes of [`XENVER_COMMANDLINE`]'s answer.
pub const XEN_COMMANDLINE_LEN: usize = 1024;

layout! {
    /// Answer of [`XENVER_COMPILE_INFO`].
    struct CompileInfo [144] {
        /// The compiler.
        0 => compiler: [u8; 64],
        /// Who compiled.
        64 => compile_by: [u8; 16],
        /// Where.
        80 => compile_domain: [u8; 32],
        /// When.
        112 => compile_date: [u8; 32],
    }

    /// Answer of [`XENVER_PLATFORM_PARAMETERS`].
    struct PlatformParameters [8] {
        /// Where the hypervisor's part of an address space begins.
        0 => virt_start: u64,
    }

    /// Question and answer of [`XENVER_GET_FEATURES`].
    struct FeatureInfo [8] {
        /// In: which 32 features.
        0 => submap_idx: u32,
        /// Out: one bit a [`XENFEAT_*`](crate::features).
        4 => submap: u32,
    }
}
