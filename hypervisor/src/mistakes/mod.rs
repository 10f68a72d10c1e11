//! Telling a kernel's author what was wrong with a request or a fault.
//!
//! An errno says that something was refused; the author needs to know why, from
//! which instruction, and what to do. So each mistake becomes one line on the
//! hypervisor's console, which `xm dmesg` shows and `xenconsoled` adds to the
//! domain's own console and its log:
//!
//! ```text
//! (XEN) d1v0: mmu_update refused (EBUSY): entry ... maps Mfn(0x1234) writable,
//!       which is L1 with 1 uses; at rip ffffffff80001234. Remedy: map a page
//!       table read-only ...
//! ```
//!
//! Law: nothing that a guest does makes this unbounded, and nothing here changes
//! what a guest is answered. A domain is told of [`MAX_TOLD`] different mistakes
//! in its life, of each once; what ends it is told besides.
//!
//! [`reason`] carries the cause from where an operation is refused to where the
//! vCPU knows whose it was; [`instruction`] knows privileged instructions. The
//! lines themselves are made in `vcpu/mistakes.rs`.

pub mod instruction;
pub mod reason;

use guest_abi::addr::{DomId, VcpuId};
use std::{
    collections::HashSet,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
};

/// Different mistakes that a domain is told of.
pub const MAX_TOLD: usize = 64;

/// What a domain has been told of.
#[derive(Debug, Default)]
pub struct Mistakes {
    told: Mutex<HashSet<u64>>,
}

/// Whether to tell of a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is news.
    Tell,
    /// It is news, and the last.
    TellAsLast,
    /// It was told before, or too much was.
    Silence,
}

impl Mistakes {
    /// Whether a mistake of this kind at `place` is to be told of.
    pub fn admit(&self, kind: impl Hash, place: u64) -> Admission {
        let mut hasher = DefaultHasher::new();
        (place, kind).hash(&mut hasher);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MAX_TOLD || !told.insert(hasher.finish()) {
            return Admission::Silence;
        }
        if told.len() == MAX_TOLD {
            Admission::TellAsLast
        } else {
            Admission::Tell
        }
    }
}

/// One mistake, as people read it.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Whose.
    pub dom: DomId,
    /// On which vCPU, where one made it.
    pub vcpu: Option<VcpuId>,
    /// What was wrong.
    pub what: &'a str,
    /// The instruction, and whether it was user mode's.
    pub at: Option<(u64, bool)>,
    /// What to do.
    pub remedy: &'a str,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.dom)?;
        if let Some(vcpu) = self.vcpu {
            write!(f, "v{}", vcpu.0)?;
        }
        write!(f, ": {}", self.what)?;
        if let Some((rip, user)) = self.at {
            let mode = if user { " in user mode" } else { "" };
            write!(f, "; at rip {rip:016x}{mode}")?;
        }
        write!(f, ". Remedy: {}", self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_is_told_once_and_all_are_bounded() {
        let mistakes = Mistakes::default();
        assert_eq!(mistakes.admit("free", 1), Admission::Tell);
        assert_eq!(mistakes.admit("free", 1), Admission::Silence);
        assert_eq!(mistakes.admit("free", 2), Admission::Tell);
        assert_eq!(mistakes.admit(("free", 7), 2), Admission::Tell);
        let admitted: Vec<_> = (3..10_000).map(|rip| mistakes.admit("x", rip)).collect();
        let told = admitted.iter().filter(|it| **it != Admission::Silence);
        assert_eq!(told.count(), MAX_TOLD - 3);
        let last = admitted.iter().filter(|it| **it == Admission::TellAsLast);
        assert_eq!(last.count(), 1);
    }

    #[test]
    fn a_line_names_domain_cause_place_and_remedy() {
        let line = Line {
            dom: DomId(3),
            vcpu: Some(VcpuId(1)),
            what: "no",
            at: Some((0x1000, false)),
            remedy: "do",
        };
        let text = "d3v1: no; at rip 0000000000001000. Remedy: do";
        assert_eq!(line.to_string(), text);
        let of_dom0 = Line {
            vcpu: None,
            at: None,
            ..line
        };
        assert_eq!(of_dom0.to_string(), "d3: no. Remedy: do");
    }
}
