//! The PV domain builder: reads a kernel image and puts it into a new domain.
//!
//! ```text
//!   file --KernelImage::open--> KernelImage --plan--> Layout
//!                                    |                   |
//!            bzimage, decompress,    |   layout, tables  |
//!            elf, notes              v                   v
//!                                  build: populate, write, pin, set registers
//! ```
//!
//! Law: a kernel image is hostile input (XSA-25, XSA-55, XSA-194). Reading it
//! ([`KernelImage::open`]) and laying the domain out ([`plan`]) are pure, are
//! bounded in time and memory, and are done before a domain is created.
//! Writing goes through [`PhysMap`], which reaches the domain's own frames and
//! nothing else.

pub mod bzimage;
pub mod crash;
pub mod decompress;
pub mod describe;
pub mod domain;
pub mod elf;
pub mod hypercall_page;
pub mod image;
pub mod kallsyms;
pub mod kept;
pub mod layout;
pub mod memory;
pub mod notes;
pub mod placement;
pub mod ramdisk;
pub mod symbols;
pub mod tables;
pub mod virt;

#[cfg(test)]
mod testing;

pub use crash::{crash_report, crash_report_of};
pub use describe::describe;
pub use domain::{BuildError, BuildSpec, Built, DomainControl, build, plan};
pub use image::{KernelError, KernelFault, KernelImage, Progress, Reading};
pub use kept::KeptKernels;
pub use layout::Layout;
pub use memory::{DomainMemory, PhysMap};
pub use ramdisk::{Ramdisk, RamdiskError};
