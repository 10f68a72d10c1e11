//! What we say that we are.

/// The Xen whose interface is offered.
pub const XEN_VERSION: (u32, u32) = (4, 17);
/// `XENVER_extraversion`.
pub const EXTRA_VERSION: &str = concat!(".0-domus-", env!("CARGO_PKG_VERSION"));
/// `XENVER_capabilities`: 64-bit PV guests.
pub const CAPABILITIES: &str = "xen-3.0-x86_64 ";
/// `XENVER_changeset`.
pub const CHANGESET: &str = "domus";
/// `XENVER_compile_info`: compiler, by, domain, date.
pub const COMPILE_INFO: [&str; 4] = ["rustc", "domus", "localdomain", "unknown"];
