//! The entry point, and the notes by which a domain builder knows it.
//!
//! The builder enters with `rsi` = virtual address of
//! [`StartInfo`](crate::xen::StartInfo), events masked, a stack of its own
//! making and nothing else promised. The entry point takes a stack from the
//! kernel's `.bss` and goes on in Rust.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use guest_abi::{kernel::{Boot, sched}, kprintln, sched::SHUTDOWN_POWEROFF};
//!
//! guest_abi::pv_kernel!(main, name = "my-kernel");
//!
//! fn main(boot: &'static Boot) -> ! {
//!     boot.init_console().expect("a console");
//!     kprintln!("hello");
//!     sched::shutdown(SHUTDOWN_POWEROFF)
//! }
//! ```
//!
//! (A documentation test has a `main` and a panic handler of its own, so this one
//! is not compiled; its like, `examples/hello.rs` and the template of the repository, are.)
//! Stacks for more vCPUs are made as the first one is:
//!
//! ```
//! use guest_abi::kernel::entry::Stack;
//!
//! static SECOND: Stack = Stack::new();
//! assert_eq!(SECOND.top() % 4096, 0);
//! ```

/// Bytes of the stack that [`pv_kernel!`](crate::pv_kernel) reserves.
pub const BOOT_STACK_SIZE: usize = 256 * 1024;

/// A stack in `.bss`.
#[repr(C, align(4096))]
pub struct Stack(pub core::cell::UnsafeCell<[u8; BOOT_STACK_SIZE]>);

// SAFETY: only the code that runs on it touches it.
unsafe impl Sync for Stack {}

impl Stack {
    /// A stack of zeroes.
    #[must_use]
    pub const fn new() -> Self {
        Self(core::cell::UnsafeCell::new([0; BOOT_STACK_SIZE]))
    }

    /// The address behind the last byte: where a stack pointer starts.
    #[must_use]
    pub fn top(&self) -> u64 {
        self.0.get() as u64 + BOOT_STACK_SIZE as u64
    }
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the crate a PV kernel: the entry point (which calls `$main` with the
/// [`Boot`](crate::kernel::Boot) record), the ELF notes, the panic handler and
/// the memory functions.
///
/// `name` becomes the note `GUEST_OS`. With `hypercall_page` the kernel asks
/// for a page of hypercall stubs too, found at
/// [`hypercall_page`](crate::kernel::entry) `::HYPERCALL_PAGE` in the crate.
#[macro_export]
macro_rules! pv_kernel {
    ($main:path, name = $name:literal) => {
        $crate::pv_kernel_items!($main);
        $crate::pv_notes!($name);
    };
    ($main:path, name = $name:literal, hypercall_page) => {
        $crate::pv_kernel!($main, name = $name);

        /// The page that the domain builder fills with hypercall stubs, 32
        /// bytes each. In its own section, page-aligned.
        #[unsafe(link_section = ".hypercall_page")]
        #[unsafe(no_mangle)]
        static HYPERCALL_PAGE: $crate::kernel::entry::HypercallPage =
            $crate::kernel::entry::HypercallPage::new();

        $crate::pv_note!(
            $crate::elfnote::XEN_ELFNOTE_HYPERCALL_PAGE,
            ".quad HYPERCALL_PAGE"
        );
    };
}

/// One ELF note: its type and the assembly directives of its content.
#[doc(hidden)]
#[macro_export]
macro_rules! pv_note {
    ($kind:expr, $content:expr) => {
        ::core::arch::global_asm!(
            ".pushsection .note.Xen, \"a\", @note",
            ".balign 4",
            ".long 4",
            ".long 3f - 2f",
            ".long {kind}",
            ".asciz \"Xen\"",
            "2:",
            $content,
            "3:",
            ".balign 4",
            ".popsection",
            kind = const $kind,
            options(att_syntax)
        );
    };
}

/// The notes of every kernel.
#[doc(hidden)]
#[macro_export]
macro_rules! pv_notes {
    ($name:literal) => {
        $crate::pv_note!(
            $crate::elfnote::XEN_ELFNOTE_GUEST_OS,
            concat!(".asciz \"", $name, "\"")
        );
        $crate::pv_note!(
            $crate::elfnote::XEN_ELFNOTE_GUEST_VERSION,
            concat!(".asciz \"", env!("CARGO_PKG_VERSION"), "\"")
        );
        $crate::pv_note!(
            $crate::elfnote::XEN_ELFNOTE_XEN_VERSION,
            ".asciz \"xen-3.0\""
        );
        $crate::pv_note!($crate::elfnote::XEN_ELFNOTE_VIRT_BASE, ".quad __virt_base");
        $crate::pv_note!($crate::elfnote::XEN_ELFNOTE_PADDR_OFFSET, ".quad 0");
        $crate::pv_note!($crate::elfnote::XEN_ELFNOTE_ENTRY, ".quad _start");
        $crate::pv_note!($crate::elfnote::XEN_ELFNOTE_PAE_MODE, ".asciz \"yes\"");
        $crate::pv_note!($crate::elfnote::XEN_ELFNOTE_LOADER, ".asciz \"generic\"");
        $crate::pv_note!(
            $crate::elfnote::XEN_ELFNOTE_FEATURES,
            ".asciz \"pae_pgdir_above_4gb\""
        );
    };
}

/// The entry point and what compiled code expects around it.
#[doc(hidden)]
#[macro_export]
macro_rules! pv_kernel_items {
    ($main:path) => {
        static BOOT_STACK: $crate::kernel::entry::Stack = $crate::kernel::entry::Stack::new();

        /// Where the domain builder enters: `rsi` = `start_info`.
        ///
        /// # Safety
        /// Not to be called.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn _start() -> ! {
            ::core::arch::naked_asm!(
                "cld",
                "lea rsp, [rip + {stack} + {size}]",
                "xor ebp, ebp",
                "mov rdi, rsi",
                "call {rust}",
                "ud2",
                stack = sym BOOT_STACK,
                size = const $crate::kernel::entry::BOOT_STACK_SIZE,
                rust = sym start_rust,
            )
        }

        unsafe extern "C" fn start_rust(start_info: *const $crate::xen::StartInfo) -> ! {
            // SAFETY: called once, with the builder's page.
            $main(unsafe { $crate::kernel::Boot::start(start_info) })
        }

        #[panic_handler]
        fn panic(info: &::core::panic::PanicInfo) -> ! {
            $crate::kernel::sched::crash(info)
        }

        /// The compiler wants one where panics could unwind; none does here.
        #[cfg(panic = "unwind")]
        #[lang = "eh_personality"]
        extern "C" fn eh_personality() {}

        /// In a profile that aborts it is no language item, but the prebuilt
        /// `core` may name it.
        #[cfg(not(panic = "unwind"))]
        #[unsafe(no_mangle)]
        extern "C" fn rust_eh_personality() {}

        /// Where the clean-up code of `core` ends; nobody gets there.
        #[unsafe(no_mangle)]
        extern "C" fn _Unwind_Resume() -> ! {
            $crate::kernel::sched::crash(&"unwinding in a kernel")
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
            // SAFETY: the caller's duty, as in C.
            unsafe { $crate::kernel::mem::copy(to, from, count) };
            to
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
            // SAFETY: the caller's duty, as in C.
            unsafe { $crate::kernel::mem::copy_overlapping(to, from, count) };
            to
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
            // SAFETY: the caller's duty, as in C.
            unsafe { $crate::kernel::mem::fill(to, byte.to_le_bytes()[0], count) };
            to
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
            // SAFETY: the caller's duty, as in C.
            unsafe { $crate::kernel::mem::compare(a, b, count) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
            // SAFETY: the caller's duty, as in C.
            unsafe { $crate::kernel::mem::compare(a, b, count) }
        }
    };
}

/// Room for a page of hypercall stubs, filled by the domain builder.
#[repr(C, align(4096))]
pub struct HypercallPage(core::cell::UnsafeCell<[u8; 4096]>);

// SAFETY: written by the domain builder before the kernel runs, then only read.
unsafe impl Sync for HypercallPage {}

impl HypercallPage {
    /// A page of `int3`, so that an unfilled stub is noticed.
    #[must_use]
    #[allow(clippy::new_without_default)] // Only ever a static.
    pub const fn new() -> Self {
        Self(core::cell::UnsafeCell::new([0xcc; 4096]))
    }

    /// A hypercall through the page.
    ///
    /// # Safety
    /// As for [`hypercall::raw`](crate::kernel::hypercall::raw); not for
    /// `iret`, whose stub pushes.
    ///
    /// # Panics
    /// If `number` has no stub in the page.
    pub unsafe fn call(&self, number: usize, args: [u64; 5]) -> crate::kernel::hypercall::Outcome {
        const STUB: usize = crate::xen::HYPERCALL_PAGE_STUB_SIZE;
        assert!(number < 4096 / STUB, "hypercall {number} has no stub");
        let stub = self.0.get() as usize + number * STUB;
        let result: i64;
        // SAFETY: a stub loads `rax`, does the hypercall and returns.
        unsafe {
            core::arch::asm!(
                "call {stub}",
                stub = in(reg) stub,
                out("rax") result,
                inlateout("rdi") args[0] => _,
                inlateout("rsi") args[1] => _,
                inlateout("rdx") args[2] => _,
                inlateout("r10") args[3] => _,
                inlateout("r8") args[4] => _,
                out("rcx") _,
                out("r11") _,
            );
        }
        crate::errno::Errno::from_return(result)
    }
}
