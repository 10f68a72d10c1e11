//! What a vCPU's kernel did wrong, in one line each; see [`crate::mistakes`].
//!
//! Law: nothing here changes what the guest sees.

use super::{Crash, Vcpu, Wait, trap::fault};
use crate::{
    cpu::reg,
    hypercall::{Done, Outcome},
    mistakes::{
        Admission, Line, MAX_TOLD,
        instruction::{self, Privileged},
        reason::{self, Reason},
    },
};
use guest_abi::{
    addr::{GuestVirt, Port},
    arch_x86::exception_name,
    errno::Errno,
    xen::{HYPERVISOR_VM_ASSIST, hypercall_name},
};
use std::{
    hash::Hash,
    time::{Duration, Instant},
};

/// As often the same fault at the same place is taken for a loop.
const LOOP: u32 = 4096;
/// So many exceptions, each in the handler of the one before, are no accident.
const NESTED: u32 = 4;
/// After this time of sleep without a timer a look is taken at why.
const LONG_SLEEP: Duration = Duration::from_secs(2);
/// So many looks are taken in a vCPU's life.
const LOOKS: u32 = 16;
/// Exceptions that say that something is wrong: not #DB, #BP, NMI.
const FAULTS: u32 = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 0x7f << 8 | 1 << 16 | 1 << 17 | 1 << 19;

/// What to do where `iret` leads nowhere.
const ASTRAY: &str = "iret went there: the frame at rsp is rax, r11, rcx, flags, rip, cs, rflags, rsp, ss (was the error code left on the stack?)";

/// What a bounce frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// An exception.
    Exception {
        vector: u8,
        error: u32,
        cr2: GuestVirt,
    },
    /// An event.
    Event,
    /// `syscall` in user mode.
    Syscall,
    /// A return that can't be made.
    Failsafe,
}

/// What is remembered to explain what comes.
#[derive(Debug)]
pub(super) struct Blame {
    cause: Cause,
    /// The frame on its way is for something that user mode did.
    from_user: bool,
    /// Exceptions taken in kernel mode since the last `iret`.
    nested: u32,
    /// Where the last `iret` led.
    returned_to: Option<u64>,
    /// The last fault (cause, rip, rsp), and how often it came in a row.
    last_fault: Option<(Cause, u64, u64)>,
    repeated: u32,
    looks: u32,
}

impl Blame {
    pub(super) const fn new() -> Self {
        Self {
            cause: Cause::Event,
            from_user: false,
            nested: 0,
            returned_to: None,
            last_fault: None,
            repeated: 0,
            looks: 0,
        }
    }
}

impl Vcpu {
    /// Says what the next bounce frame is for.
    pub(super) fn note_cause(&mut self, cause: Cause) {
        self.blame.cause = cause;
    }

    /// `iret` has loaded its frame.
    pub(crate) fn note_iret(&mut self) {
        self.blame.nested = 0;
        self.blame.returned_to = Some(self.state.context.rip);
    }

    /// A bounce frame is about to be pushed.
    pub(super) fn note_bounce(&mut self) {
        self.blame.from_user = self.state.user_mode;
        let Cause::Exception { vector, .. } = self.blame.cause else {
            if self.blame.cause == Cause::Syscall {
                self.blame.last_fault = None;
            }
            return;
        };
        self.blame.nested = if self.state.user_mode {
            0
        } else {
            self.blame.nested.saturating_add(1)
        };
        // `int n` has vectors up to 255.
        let bits = FAULTS.checked_shr(vector.into()).unwrap_or(0);
        if bits & 1 != 0 {
            self.note_fault();
        }
    }

    /// Finds a handler that returns without having mended anything.
    fn note_fault(&mut self) {
        let context = &self.state.context;
        let fault = (self.blame.cause, context.rip, context.gpr[reg::RSP]);
        if self.blame.last_fault != Some(fault) {
            (self.blame.last_fault, self.blame.repeated) = (Some(fault), 0);
            return;
        }
        self.blame.repeated = self.blame.repeated.saturating_add(1);
        if self.blame.repeated == LOOP {
            let vector = match self.blame.cause {
                Cause::Exception { vector, .. } => Some(vector),
                _ => None,
            };
            self.tell_once(
                ("loop", vector),
                || format!("{} came {LOOP} times on end", self.cause_text()),
                "its handler returns to the instruction without having mended the cause: mend it, move rip on, or stop",
            );
        }
    }

    /// Looks at what came of a hypercall.
    pub(crate) fn judge(&self, number: u64, args: &[u64; 6], outcome: &Outcome) {
        let reason = reason::take();
        let name = hypercall_name(number);
        match (outcome, reason) {
            (Err(errno), Some(reason)) => self.tell_refusal(name, Some(*errno), &reason),
            (Ok(Done::Value(_)), Some(reason @ Reason::Grant(_))) => {
                self.tell_refusal(name, None, &reason);
            }
            (Err(Errno::ENOSYS), None) if name.is_none() => self.tell_once(
                "no hypercall",
                || format!("there is no hypercall {number:#x}"),
                "the number goes into rax, the arguments into rdi, rsi, rdx, r10, r8, r9",
            ),
            (Err(Errno::EFAULT), None) => self.tell_once(
                ("bad pointer", number),
                || format!("{} got a bad pointer (EFAULT){}", name.unwrap_or("?"), arguments(args)),
                "arguments in memory are named by virtual addresses that are mapped, and writable where there is a result",
            ),
            (Err(Errno::EINVAL), None) if number != HYPERVISOR_VM_ASSIST => self.tell_once(
                ("refused", number),
                || format!("{} was refused (EINVAL){}", name.unwrap_or("?"), arguments(args)),
                "docs/reference has a page on each hypercall: what it takes, and what it refuses",
            ),
            _ => {}
        }
    }

    /// Without an errno, the operation's status tells.
    fn tell_refusal(&self, name: Option<&str>, errno: Option<Errno>, reason: &Reason) {
        let Some(remedy) = reason.remedy() else {
            return;
        };
        let text = || {
            let name = name.unwrap_or("a hypercall");
            let how = errno.map_or_else(
                || "in the operation's status".to_owned(),
                |errno| format!("{errno:?}"),
            );
            format!("{name} was refused ({how}): {reason}")
        };
        self.tell_once((name, errno, reason.kind()), text, remedy);
    }

    /// The kernel's own fault at a privileged instruction goes to its handler.
    pub(super) fn tell_privileged(&self, code: &[u8]) {
        match instruction::privileged(code, self.state.context.rip) {
            Some(found) if !found.probe => self.tell_once(
                "privileged",
                || format!("`{}` is privileged (#GP)", found.text),
                found.remedy,
            ),
            _ => {}
        }
    }

    /// A store to a page table was not done for the kernel.
    pub(super) fn tell_table_store(&self, at: GuestVirt) {
        match reason::take() {
            Some(reason) if reason.remedy().is_some() => self.tell_once(
                ("table store", reason.kind()),
                || format!("a store to the page table at {:#x} was refused: {reason}", at.0),
                reason.remedy().unwrap_or_default(),
            ),
            _ => self.tell_once(
                "table store",
                || format!("a store to the page table at {:#x}: a guest's tables are read-only", at.0),
                "change entries by mmu_update or update_va_mapping (only plain stores of whole entries into L1 tables are done as if by mmu_update)",
            ),
        }
    }

    /// When to look why the vCPU sleeps, where no timer will wake it.
    pub(super) fn alarm(&self) -> Option<Instant> {
        let wanted = self.wait == Wait::Block && self.blame.looks < LOOKS;
        wanted.then(|| Instant::now() + LONG_SLEEP)
    }

    /// The vCPU was woken by the [`alarm`](Self::alarm), or by something else.
    pub(super) fn look_at_sleep(&mut self, alarm: Option<Instant>) {
        let Some(alarm) = alarm.filter(|at| Instant::now() >= *at) else {
            return;
        };
        if self.shared.has_requests() || self.event_deliverable() {
            return;
        }
        tracing::trace!(?alarm, domain = self.domain.id.0, "sleeps without a timer");
        self.blame.looks += 1;
        let stuck = self.domain.delivery.masked_pending();
        if let Some(Port(port)) = stuck {
            self.tell_once(
                "sleeps",
                || format!("it sleeps (SCHEDOP_block) without a timer, while port {port} is pending and masked"),
                "clear the port's bit in shared_info.evtchn_mask by EVTCHNOP_unmask (guest-abi: event::unmask), or nothing wakes it",
            );
        }
    }

    /// Tells of a mistake of this kind at this place, once.
    fn tell_once(&self, kind: impl Hash, what: impl FnOnce() -> String, remedy: &str) {
        let context = &self.state.context;
        let admission = self.domain.mistakes.admit(kind, context.rip);
        if admission == Admission::Silence {
            return;
        }
        self.domain.tell(&Line {
            dom: self.domain.id,
            vcpu: Some(self.shared.id),
            what: &what(),
            at: Some((context.rip, self.state.user_mode)),
            remedy,
        });
        if admission == Admission::TellAsLast {
            let text = format!(
                "d{}: that was the {MAX_TOLD}th mistake; of more this domain is not told",
                self.domain.id
            );
            self.domain.host.console.print(&text);
        }
    }

    /// Says why the domain can't go on.
    pub(super) fn tell_crash(&self, crash: &Crash) {
        let (what, remedy) = self.explain(crash);
        self.domain.tell(&Line {
            dom: self.domain.id,
            vcpu: Some(self.shared.id),
            what: &format!("crashed: {what}"),
            at: Some((self.state.context.rip, self.blame.from_user)),
            remedy: &remedy,
        });
    }

    fn explain(&self, crash: &Crash) -> (String, String) {
        let cause = self.cause_text();
        let (what, remedy) = match crash {
            Crash::NoHandler(0) => return self.explain_no_handler(&cause),
            Crash::NoHandler(address) => (
                format!("{cause}, and its handler's address {address:#x} is not canonical"),
                "handlers are named by their virtual addresses",
            ),
            Crash::NoStack(_) if self.went_astray_by_iret() => {
                (format!("{cause}, where iret led"), ASTRAY)
            }
            Crash::NoStack(_) if self.blame.nested >= NESTED => (
                format!(
                    "{} exceptions, each in the handler of the one before, filled the stack; the last: {cause}",
                    self.blame.nested
                ),
                "a handler faults itself: its code, its data and its stack must be mapped",
            ),
            Crash::NoStack(at) if self.blame.from_user => (
                format!(
                    "{cause}, and the kernel's stack for entries from user mode can't be written at {at:#x}"
                ),
                "name a mapped, writable stack by stack_switch before user mode is entered",
            ),
            Crash::NoStack(at) => (
                format!(
                    "{cause}, and no frame for its handler can be pushed: the stack can't be written at {at:#x}"
                ),
                "rsp points to the upper end of mapped, writable memory: it was never loaded, or the stack overflowed",
            ),
            Crash::BadIret(why) => (format!("iret: {why}"), bad_iret(why)),
            Crash::EndlessFault(_) | Crash::Engine(_) => (
                crash.to_string(),
                "this is no mistake of the kernel's: please report it, with the registers below",
            ),
        };
        (what, remedy.to_owned())
    }

    fn explain_no_handler(&self, cause: &str) -> (String, String) {
        match self.blame.cause {
            Cause::Exception { vector, error, cr2 } => {
                let what = format!("{cause}, and no handler is set for vector {vector}");
                (what, self.exception_remedy(vector, error, cr2))
            }
            Cause::Event => (
                "an event came, and no event callback is registered".to_owned(),
                "register one by callback_op(CALLBACKOP_register) with CALLBACKTYPE_event before events are unmasked (guest-abi: Boot::init)".to_owned(),
            ),
            Cause::Syscall => (
                "user mode made a syscall, and no syscall callback is registered".to_owned(),
                "register one by callback_op(CALLBACKOP_register) with CALLBACKTYPE_syscall".to_owned(),
            ),
            Cause::Failsafe => (
                "it can't go on where iret led, and no failsafe callback is registered".to_owned(),
                bad_iret("").to_owned(),
            ),
        }
    }

    /// The fault is that of fetching the instruction to which `iret` returned.
    fn went_astray_by_iret(&self) -> bool {
        let rip = self.state.context.rip;
        let fetched =
            matches!(self.blame.cause, Cause::Exception { vector: 14, cr2, .. } if cr2.0 == rip);
        fetched && self.blame.returned_to == Some(rip)
    }

    fn exception_remedy(&self, vector: u8, error: u32, cr2: GuestVirt) -> String {
        const HANDLER: &str = "set handlers by set_trap_table (guest-abi: kernel::trap::install) before anything can fault";
        let rip = self.state.context.rip;
        let why = match vector {
            14 if self.went_astray_by_iret() => ASTRAY.to_owned(),
            14 if cr2.0 == rip => {
                "no code is there: a null or wild function pointer, or the entry point returned, which it may not (end with SCHEDOP_shutdown)".to_owned()
            }
            14 if error & fault::PRESENT != 0 => {
                "the page is read-only or not for code: change its entry by update_va_mapping".to_owned()
            }
            14 => "map the page first, or mend the pointer".to_owned(),
            13 => self
                .privileged_here()
                .map_or_else(|| "look at the instruction at rip".to_owned(), |it| it.remedy.to_owned()),
            6 => "ud2 is what a panic or unreachable code compiles to".to_owned(),
            _ => "look at the instruction at rip".to_owned(),
        };
        format!("{why}; and {HANDLER}")
    }

    fn privileged_here(&self) -> Option<Privileged> {
        instruction::privileged(&self.fetch(), self.state.context.rip)
    }

    /// What happened, as a clause.
    fn cause_text(&self) -> String {
        let Cause::Exception { vector, error, cr2 } = self.blame.cause else {
            return match self.blame.cause {
                Cause::Event => "an event came".to_owned(),
                Cause::Syscall => "user mode made a syscall".to_owned(),
                _ => "it can't go on where iret led".to_owned(),
            };
        };
        let name =
            exception_name(vector).map_or_else(|| format!("exception {vector}"), String::from);
        match vector {
            14 => format!("{name} {}", access_text(error, cr2)),
            13 => match self.privileged_here() {
                Some(found) => format!("{name} at `{}`, which is privileged", found.text),
                None => format!("{name} (error {error:#x})"),
            },
            _ => name,
        }
    }
}

fn access_text(error: u32, cr2: GuestVirt) -> String {
    let access = match error & (fault::WRITE | fault::FETCH) {
        0 => "reading",
        fault::WRITE => "writing",
        _ => "executing",
    };
    let mapped = if error & fault::PRESENT == 0 {
        "not mapped"
    } else {
        "mapped, but not for that"
    };
    format!("{access} {:#x}, which is {mapped}", cr2.0)
}

fn bad_iret(why: &str) -> &'static str {
    if why.contains("root") {
        "a code selector with RPL 3 means user mode: name its L4 table by mmuext_op(MMUEXT_NEW_USER_BASEPTR); the kernel's own selector is 0xe030"
    } else {
        "rsp points to the frame: rax, r11, rcx, flags, rip, cs, rflags, rsp, ss (the error code is taken off before)"
    }
}

/// The argument registers of a hypercall, as far as hypercalls with a structure
/// in memory use them.
fn arguments(args: &[u64; 6]) -> String {
    let [rdi, rsi, rdx, r10, ..] = args;
    format!("; rdi {rdi:#x}, rsi {rsi:#x}, rdx {rdx:#x}, r10 {r10:#x}")
}
