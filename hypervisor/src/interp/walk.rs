//! The page walk: four levels, as the processor does it for ring-3 code.
//!
//! Law: nothing is believed of a table but the word just read, and a table is
//! any frame that [`GuestPhys`] gives out: a malformed tree can send the walk
//! nowhere else.

use super::{
    host::{Atomic, HostPtr, Memory},
    phys::{Frame, FrameUse, GuestPhys},
};
use guest_abi::addr::Mfn;

/// Bits of a page-table entry.
mod pte {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 2;
    pub const USER: u64 = 4;
    pub const ACCESSED: u64 = 0x20;
    pub const DIRTY: u64 = 0x40;
    pub const LARGE: u64 = 0x80;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Bits of a page fault's error code.
pub mod error {
    #![allow(missing_docs, reason = "the manual's names")]
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const USER: u32 = 4;
    pub const FETCH: u32 = 16;
}

/// What the address is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Data is read.
    Read,
    /// Data is written, or read and written.
    Write,
    /// Instructions are fetched.
    Fetch,
}

/// Where a page is.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Its frame's number.
    pub mfn: Mfn,
    /// Its frame.
    pub frame: Frame,
}

/// Why an address could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A page fault with this error code.
    Fault(u32),
    /// The tables say yes, but it is not memory that we know how to use.
    Unknown,
}

/// An entry on the way, for its accessed and dirty bits.
#[derive(Clone, Copy)]
struct Step {
    place: HostPtr,
    value: u64,
    writable: bool,
}

/// Translates `address`, which is canonical, and sets the accessed and dirty
/// bits that the access sets.
///
/// # Errors
/// [`Refused`]; then no dirty bit has changed.
pub fn walk(
    phys: &dyn GuestPhys,
    root: Mfn,
    address: u64,
    access: Access,
) -> Result<Page, Refused> {
    // Another processor may change an entry between our reading it and
    // setting its bits; then its new value has to be judged.
    for _ in 0..16 {
        if let Some(page) = try_walk(phys, root, address, access)? {
            return Ok(page);
        }
    }
    Err(Refused::Unknown)
}

fn try_walk(
    phys: &dyn GuestPhys,
    root: Mfn,
    address: u64,
    access: Access,
) -> Result<Option<Page>, Refused> {
    let mut table = root;
    let mut steps = [None::<Step>; 4];
    let (mut all, mut any) = (u64::MAX, 0);
    for (depth, step) in steps.iter_mut().enumerate() {
        let shift = 39 - 9 * depth;
        let frame = phys.frame(table).ok_or(Refused::Unknown)?;
        let place = frame.ptr.at(((address >> shift) & 0x1ff) << 3);
        let value = u64::load(place);
        if value & pte::PRESENT == 0 {
            return Err(Refused::Fault(code(access, 0)));
        }
        let writable = frame.usage == FrameUse::Write;
        *step = Some(Step {
            place,
            value,
            writable,
        });
        all &= value;
        any |= value;
        let target = (value & pte::ADDRESS) >> 12;
        if depth == 3 {
            table = Mfn(target);
        } else if value & pte::LARGE == 0 {
            table = Mfn(target);
            continue;
        } else if depth == 0 {
            return Err(Refused::Unknown);
        } else {
            let within = (1 << (shift - 12)) - 1;
            table = Mfn((target & !within) | ((address >> 12) & within));
        }
        break;
    }
    permitted(all, any, access)?;
    let frame = phys.frame(table).ok_or(Refused::Unknown)?;
    let needed = match access {
        Access::Write => FrameUse::Write,
        Access::Read | Access::Fetch => FrameUse::Read,
    };
    if frame.usage < needed {
        return Err(Refused::Unknown);
    }
    let page = Page { mfn: table, frame };
    Ok(mark(&steps, access).then_some(page))
}

fn permitted(all: u64, any: u64, access: Access) -> Result<(), Refused> {
    let allowed = all & pte::USER != 0
        && match access {
            Access::Read => true,
            Access::Write => all & pte::WRITE != 0,
            Access::Fetch => any & pte::NO_EXECUTE == 0,
        };
    if allowed {
        Ok(())
    } else {
        Err(Refused::Fault(code(access, error::PRESENT)))
    }
}

fn code(access: Access, present: u32) -> u32 {
    let kind = match access {
        Access::Read => 0,
        Access::Write => error::WRITE,
        Access::Fetch => error::FETCH,
    };
    present | kind | error::USER
}

/// Sets accessed bits, and the leaf's dirty bit for a write. False if an
/// entry has changed meanwhile.
fn mark(steps: &[Option<Step>; 4], access: Access) -> bool {
    let mut path = steps.iter().flatten().peekable();
    while let Some(step) = path.next() {
        let mut bits = pte::ACCESSED;
        if path.peek().is_none() && access == Access::Write {
            bits |= pte::DIRTY;
        }
        if step.value & bits == bits || !step.writable {
            continue;
        }
        let (found, _) = (step.value | bits).lock_cmpxchg(step.place, step.value);
        if found != step.value {
            return false;
        }
    }
    true
}
