//! How a test kernel says what it found.
//!
//! A kernel makes its checks through a [`Report`] and ends with one verdict
//! line on both consoles, after which the domain powers off:
//!
//! ```text
//! DOMUS-TEST: SUCCESS paging-attacks 31 checks
//! DOMUS-TEST: FAILURE paging-attacks 1 of 31 checks failed
//! DOMUS-TEST: SKIP ping-pong needs two vCPUs
//! ```
//!
//! Five outcomes differ: SUCCESS; FAILURE, a bug of the hypervisor was found
//! (each with a line `FAILED:` before); SKIP, the test could not run, which is
//! not a success; ERROR, no verdict, for the test itself is broken (a panic
//! crashes the domain with `domain crashes:`); and CRASH, the hypervisor ended
//! the domain. Kernels that are to be ended say so first, and fail if they
//! live on:
//!
//! ```text
//! DOMUS-TEST: EXPECT-CRASH early-crash ...     shutdown reason must be crash
//! DOMUS-TEST: EXPECT-DESTROY spin-masked ...   must be destroyed from outside
//! ```
#![no_std]

use core::fmt::{Debug, Display};

use guest_abi::{
    errno::Errno,
    kernel::{Boot, sched},
    kprintln,
    sched::SHUTDOWN_POWEROFF,
};

/// Counts checks and ends in a verdict.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    checks: u32,
    failed: u32,
}

impl Report {
    /// Does the usual set-up and starts a report.
    ///
    /// # Panics
    /// If the hypervisor refuses the set-up: the test can't say anything then.
    #[must_use]
    pub fn begin(name: &'static str, boot: &Boot) -> Self {
        boot.init().expect("the set-up is refused");
        kprintln!("{name}: begins");
        Self {
            name,
            checks: 0,
            failed: 0,
        }
    }

    /// What must hold.
    pub fn check(&mut self, holds: bool, what: &dyn Display) {
        self.checks += 1;
        if holds {
            kprintln!("  ok: {what}");
        } else {
            self.failed += 1;
            kprintln!("  FAILED: {what}");
        }
    }

    /// What the hypervisor must refuse, with whatever error.
    pub fn refused<T: Debug>(&mut self, answer: Result<T, Errno>, what: &dyn Display) {
        match answer {
            Ok(value) => self.check(false, &format_args!("{what}: allowed, gave {value:?}")),
            Err(errno) => self.check(true, &format_args!("{what}: {errno:?}")),
        }
    }

    /// What the hypervisor must refuse with one certain error.
    pub fn refused_with<T: Debug>(
        &mut self,
        expected: Errno,
        answer: Result<T, Errno>,
        what: &dyn Display,
    ) {
        let holds = matches!(answer, Err(errno) if errno == expected);
        self.check(
            holds,
            &format_args!("{what}: {answer:?}, expected {expected:?}"),
        );
    }

    /// What the hypervisor must allow; its result.
    pub fn allowed<T: Debug>(&mut self, answer: Result<T, Errno>, what: &dyn Display) -> Option<T> {
        self.check(answer.is_ok(), &format_args!("{what}: {answer:?}"));
        answer.ok()
    }

    /// Adds checks that were made without a line each.
    pub fn count(&mut self, checks: u32) {
        self.checks += checks;
    }

    /// The verdict, and the end of the domain.
    pub fn end(self) -> ! {
        self.tell();
        sched::shutdown(SHUTDOWN_POWEROFF)
    }

    /// The verdict; the domain stays until it is destroyed from outside, so that what
    /// serves it can be looked at.
    pub fn end_and_stay(self) -> ! {
        self.tell();
        loop {
            // No port, and a time that never comes.
            let _ = sched::poll(&[], 0);
        }
    }

    fn tell(self) {
        let Self {
            name,
            checks,
            failed,
        } = self;
        match failed {
            0 if checks == 0 => kprintln!("DOMUS-TEST: FAILURE {name} made no check"),
            0 => kprintln!("DOMUS-TEST: SUCCESS {name} {checks} checks"),
            _ => kprintln!("DOMUS-TEST: FAILURE {name} {failed} of {checks} checks failed"),
        }
    }

    /// The test can't run here.
    pub fn skip(self, why: &dyn Display) -> ! {
        kprintln!("DOMUS-TEST: SKIP {} {why}", self.name);
        sched::shutdown(SHUTDOWN_POWEROFF)
    }
}

/// Announces that the hypervisor is to crash the domain now.
pub fn expect_crash(name: &str, how: &str) {
    kprintln!("DOMUS-TEST: EXPECT-CRASH {name} {how}");
}

/// Announces that the domain will not end by itself.
pub fn expect_destroy(name: &str, why: &str) {
    kprintln!("DOMUS-TEST: EXPECT-DESTROY {name} {why}");
}

/// The end of a kernel that should not have come this far.
pub fn survived(name: &str) -> ! {
    kprintln!("DOMUS-TEST: FAILURE {name} the domain lives on");
    sched::shutdown(SHUTDOWN_POWEROFF)
}
