//! What a PV kernel of one's own needs: an entry point, hypercalls, traps,
//! events, time, page tables, more vCPUs, user mode; grants, xenstore, a disk
//! and a network. `guest-abi/template` is a kernel to copy.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! #![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]
//!
//! guest_abi::pv_kernel!(main, name = "hello");
//!
//! fn main(boot: &'static guest_abi::kernel::Boot) -> ! {
//!     boot.init().expect("the hypervisor refuses the usual set-up");
//!     guest_abi::kprintln!("hello from {} pages", boot.start_info().nr_pages);
//!     guest_abi::kernel::sched::shutdown(guest_abi::sched::SHUTDOWN_POWEROFF)
//! }
//! ```
//!
//! (Not compiled here, where a `main` and a panic handler are already:
//! `examples/hello.rs` of the repository is.) The body of such a `main`:
//!
//! ```no_run
//! use guest_abi::{kernel::{Boot, event, sched, time}, kprintln, sched::SHUTDOWN_POWEROFF};
//!
//! fn kernel_main(boot: &'static Boot) -> ! {
//!     boot.init().expect("the hypervisor refuses the usual set-up");
//!     time::set_singleshot_timer(time::system_time() + 1_000_000, 0).expect("a timer");
//!     event::block();
//!     kprintln!("{} pages, {:?}", boot.start_info().nr_pages, boot.command_line());
//!     sched::shutdown(SHUTDOWN_POWEROFF)
//! }
//! ```
//!
//! A build script gives the linker its arguments
//! (`cargo:rustc-link-arg-bins=-Txen-pv.ld` and the rest of the list in this
//! crate's `build.rs`). A workspace of kernels says `panic = "abort"` in its
//! profiles and leaves the third line out; the line is for workspaces, like
//! ours, whose other members unwind.
//!
//! # The red zone: where a kernel may be interrupted
//!
//! A bounce frame is pushed right under the interrupted kernel's stack
//! pointer. Code for the ordinary `x86_64-unknown-linux-gnu` target, the
//! prebuilt `core` included, keeps live data there (128 bytes, the *red
//! zone*). So, by law:
//!
//! - **Events are masked** from the first instruction on, except inside
//!   [`event::take`] and [`event::block`]: inline assembly that tells the
//!   compiler that it uses the stack, so that no red zone is live, and that
//!   all registers of the calling convention change. Handlers run there.
//! - **Hypercalls** are safe anywhere, for the same reason.
//! - **An exception** in ordinary code is the end: it is reported and the
//!   domain crashes. Only the functions of [`guard`] may fault and go on: they
//!   are naked functions, which keep nothing below the stack pointer.
//! - User mode has its own stack; traps from it are always fine.

pub mod blkfront;
pub mod boot;
pub mod console;
pub mod doorbell;
pub mod entry;
pub mod event;
pub mod foreign;
pub mod front_ring;
pub mod grant;
pub mod guard;
pub mod hypercall;
pub mod mem;
pub mod mm;
pub mod mmuext;
pub mod netfront;
pub mod page;
pub mod processor;
pub mod reservation;
pub mod sched;
pub mod smp;
pub mod static_cell;
pub mod text;
pub mod time;
pub mod trap;
pub mod user;
pub mod xenbus;
pub mod xenstore;

pub use boot::Boot;

/// The virtual address of pseudo-physical page 0 in the initial mapping: the
/// note `VIRT_BASE`, and where `xen-pv.ld` links a kernel.
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
