//! Code that is executed often, compiled.
//!
//! Guest and host have the same instructions. So a *region*, a stretch of code
//! within a page, is encoded anew: the guest's registers in others of the
//! host's, memory operands through the TLB, branches within it as branches; what
//! can't be done so is left to the interpreter, one instruction at a time. Results
//! and flags are the processor's own.
//!
//! ```text
//!   Block found often ──► Parts ──► Emitter ──► CodeMemory
//!                        (region)   (emit, asm,     │
//!                                    layout, glue)  ▼
//!   Interpreter::execute ── run ──► region ⇄ region ── calls: translate, verify,
//!             ▲                        │                      interpret
//!             └──────── leaves ────────┘
//! ```
//!
//! Laws:
//! - Compiled code has no more rights than the interpreter. It touches the vCPU's
//!   own words, and guest memory where the TLB has allowed just this access.
//! - It can be left before each instruction, and then is the guest's state exactly.
//! - A region is executed only if memory held its bytes when it was last
//!   compared: as with blocks, in this run, or since its frame holds still. It goes with
//!   its frame's blocks.
//! - It is left after a bounded number of instructions.

mod asm;
mod calls;
mod emit;
mod glue;
mod layout;
mod region;

use super::{
    code,
    host::{CodeMemory, copy_out, enter, same_bytes},
    op::Op,
    pages::NumberMap,
    phys::FrameUse,
    state::Cpu,
};
use emit::{Emitter, Entry, Site};
use glue::Glue;
use guest_abi::addr::Mfn;
use layout::{LINKS, REGIONS, word};
use region::Parts;

/// Visits of a block after which it is compiled, if nothing else is said.
pub const OFTEN: u32 = 48;
/// Bytes of code of one vCPU.
const CAPACITY: usize = 48 << 20;
/// Instructions after which the interrupt flag is looked at.
const SLICE: u64 = 1 << 13;
/// With fewer instructions left it is not entered: a region takes those of a
/// whole segment off at once, and each visit has to get on.
pub const LEAST: u64 = 256;

/// A compiled region.
struct Region {
    mfn: Mfn,
    /// Where in its frame it begins.
    start: u64,
    bytes: Box<[u8]>,
    /// What the interpreter does for it: compiled code has the addresses.
    _ops: Box<[Op]>,
    entries: Box<[Entry]>,
    /// Where its code is.
    code: u64,
    sites: Box<[Site]>,
    /// The run in which memory was last seen to hold `bytes`, or the mark that it holds
    /// still since; 0 is never.
    checked: u64,
    dropped: bool,
}

/// Where compiled code can be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    region: usize,
    entry: Entry,
}

/// What is to be done after a visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Go on at `Cpu::rip`.
    Next,
    /// Interpret what is at `Cpu::rip`.
    Interpret,
    /// `Cpu::stop` says why the guest stopped.
    Stopped,
    /// Go on at `Cpu::rip`, and let this link go there.
    Link(usize),
}

/// The compiled code of one vCPU.
pub struct Compiled {
    memory: CodeMemory,
    glue: Glue,
    regions: Vec<Region>,
    by_address: NumberMap<Way>,
    by_frame: NumberMap<Vec<usize>>,
    /// The region of each link, and its target's offset in the page.
    links: Vec<(usize, u64)>,
    full: bool,
    often: u32,
    /// The tag of the jumps that returns are remembered beside.
    returns_of: u64,
    /// Translations are made in place everywhere: most code is hot.
    in_place: bool,
}

/// Whether this processor has the instructions that compiled code is made of.
pub fn is_possible() -> bool {
    is_x86_feature_detected!("bmi2")
}

impl Compiled {
    /// None yet; what is found `often` times is compiled.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn new(often: u32, in_place: bool) -> std::io::Result<Self> {
        let mut memory = CodeMemory::new(CAPACITY, word::COUNT)?;
        let glue = Glue::new(&mut memory).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut compiled = Compiled {
            memory,
            glue,
            regions: Vec::new(),
            by_address: NumberMap::default(),
            by_frame: NumberMap::default(),
            links: Vec::new(),
            full: false,
            often,
            returns_of: 0,
            in_place,
        };
        compiled.forget_returns();
        Ok(compiled)
    }

    /// Visits after which a block is compiled.
    pub fn often(&self) -> u32 {
        self.often
    }

    /// Whether there was no room: time to start anew.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The way in at a machine address.
    pub fn way(&self, key: u64) -> Option<Way> {
        self.by_address.get(&key).copied()
    }

    /// Remembers where to go for `address`.
    pub fn remember(&mut self, address: u64, tag: u64, way: Way) {
        let jump = layout::jump_word(address);
        let mut set = |word, value| self.memory.set_word(jump + word, value);
        set(word::JUMP_KEY, address.wrapping_neg());
        set(word::JUMP_TAG, tag.wrapping_neg());
        set(word::JUMP_ENTRY, way.entry.far);
    }

    /// Forgets where returns go that were remembered under another tag.
    pub fn keep_returns_of(&mut self, tag: u64) {
        if std::mem::replace(&mut self.returns_of, tag) != tag {
            self.forget_returns();
        }
    }

    fn forget_returns(&mut self) {
        for n in 0..layout::RETURNS {
            let first = word::RETURN + word::RETURN_WORDS * n;
            // True of one address only, where a return goes as any jump does.
            self.memory.set_word(first + word::RETURN_KEY, 0);
            let entry = first + word::RETURN_ENTRY;
            self.memory.set_word(entry, self.glue.go);
        }
    }

    /// Lets `link`, which has just led to `way`, go there by itself.
    pub fn link(&mut self, link: usize, way: Way) {
        let frame = |number: usize| self.regions.get(number).map(|region| region.mfn);
        // Between, everything may have started anew, with other links.
        let Some((from, offset)) = self.links.get(link).copied() else {
            return;
        };
        if offset == way.entry.offset && frame(from) == frame(way.region) {
            self.memory.set_word(word::LINK + link, way.entry.near);
        }
    }

    /// Drops all regions of a frame.
    pub fn drop_frame(&mut self, mfn: Mfn) {
        for number in self.by_frame.remove(&mfn.0).unwrap_or_default() {
            self.memory.set_word(word::CHECKED + number, 0);
            let region = &mut self.regions[number];
            (region.dropped, region.checked) = (true, 0);
            for entry in &region.entries {
                let key = region.mfn.0 << 12 | entry.offset;
                if self
                    .by_address
                    .get(&key)
                    .is_some_and(|way| way.region == number)
                {
                    self.by_address.remove(&key);
                }
            }
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.memory.clear();
        self.regions.clear();
        self.by_address.clear();
        self.by_frame.clear();
        self.links.clear();
        for n in 0..word::LINK {
            self.memory.set_word(n, 0);
        }
        match Glue::new(&mut self.memory) {
            Some(glue) => (self.glue, self.full) = (glue, false),
            None => self.full = true,
        }
        self.forget_returns();
    }
}

/// Compiles the code at `offset` of frame `mfn`, which begins a page's bytes in
/// guest memory: how many bytes of the frame it is.
pub fn compile(cpu: &mut Cpu, mfn: Mfn, offset: u64) -> Option<u64> {
    let frame = cpu.phys.frame(mfn)?;
    let mut buffer = [0; region::BYTES];
    let room = usize::try_from(0x1000 - offset).unwrap_or(0);
    let bytes = &mut buffer[..room.min(region::BYTES)];
    copy_out(frame.ptr.at(offset), bytes);
    let parts = Parts::new(bytes, offset, &mut cpu.vector.plans)?;
    if parts.items.first()?.kind == region::Kind::LeaveOut {
        return None;
    }
    let compiled = cpu.compiled.as_mut()?;
    compiled.add(parts, bytes, mfn, offset)
}

impl Compiled {
    fn add(&mut self, mut parts: Parts, bytes: &[u8], mfn: Mfn, start: u64) -> Option<u64> {
        let number = self.regions.len();
        let ops: Box<[Op]> = std::mem::take(&mut parts.ops).into();
        let first = self.links.len();
        let code = self.memory.next() as u64;
        if self.in_place {
            parts.items.iter_mut().for_each(|item| item.in_place = true);
        }
        let emitter = Emitter::new(&self.memory, &self.glue, &parts, &ops, number, first);
        let emitted = emitter.emit()?;
        let room = number < REGIONS && first + emitted.links.len() <= LINKS;
        if !room || self.memory.add(&emitted.code).is_none() {
            self.full = true;
            return None;
        }
        for link in &emitted.links {
            let word = word::LINK + self.links.len();
            self.memory.set_word(word, link.place);
            self.links.push((number, link.offset));
        }
        for entry in &emitted.entries {
            let way = Way {
                region: number,
                entry: *entry,
            };
            let key = mfn.0 << 12 | entry.offset;
            self.by_address.entry(key).or_insert(way);
        }
        self.by_frame.entry(mfn.0).or_default().push(number);
        self.regions.push(Region {
            mfn,
            start,
            bytes: bytes[..parts.len].into(),
            _ops: ops,
            entries: emitted.entries.into(),
            code,
            sites: emitted.sites.into(),
            checked: 0,
            dropped: false,
        });
        u64::try_from(parts.len).ok()
    }
}

/// Goes back to before the instruction whose site `address` is behind: the last region
/// that begins before `address` has it.
fn back_to_site(cpu: &mut Cpu, address: u64) {
    let site = cpu.compiled.as_ref().and_then(|compiled| {
        let behind = compiled.regions.partition_point(|r| r.code < address);
        let region = compiled.regions.get(behind.checked_sub(1)?)?;
        let n = region.sites.binary_search_by_key(&address, |s| s.behind);
        region.sites.get(n.ok()?).copied()
    });
    let site = site.expect("only sites call what leaves so");
    cpu.rip = cpu.in_page(u64::from(site.offset));
    cpu.left += i64::from(site.rest);
}

/// Whether region `number` is there and memory still holds its bytes; then it
/// may be executed in this run.
fn verify(cpu: &mut Cpu, number: usize) -> bool {
    let [epoch, still] = marks(cpu);
    let compiled = cpu.compiled.as_ref();
    let region = compiled.and_then(|compiled| compiled.regions.get(number));
    let Some(region) = region.filter(|region| !region.dropped) else {
        return false;
    };
    let mark = code::mark(cpu, region.mfn, epoch, still, || {
        let frame = cpu.phys.frame(region.mfn);
        frame.is_some_and(|frame| {
            frame.usage >= FrameUse::Read && same_bytes(frame.ptr.at(region.start), &region.bytes)
        })
    });
    if let (Some(mark), Some(compiled)) = (mark, &mut cpu.compiled) {
        compiled.regions[number].checked = mark;
        compiled.memory.set_word(word::CHECKED + number, mark);
    }
    mark.is_some()
}

/// What code is marked with that may be executed in this run.
fn marks(cpu: &Cpu) -> [u64; 2] {
    [cpu.negative_epoch, cpu.negative_still].map(u64::wrapping_neg)
}

/// Whether a region may be executed in this run.
#[inline(always)]
pub fn is_right(cpu: &mut Cpu, way: Way) -> bool {
    let known = cpu
        .compiled
        .as_ref()
        .and_then(|compiled| compiled.regions.get(way.region));
    known.is_some_and(|region| marks(cpu).contains(&region.checked)) || verify(cpu, way.region)
}

/// Enters at `way`, for `budget` instructions at most, which are not fewer than
/// [`LEAST`]: how many were executed, and what to do next.
pub fn run(cpu: &mut Cpu, way: Way, budget: u64) -> (u64, Left) {
    let Some(glue) = cpu.compiled.as_ref().map(|compiled| compiled.glue) else {
        return (0, Left::Interpret);
    };
    let given = i64::try_from(budget.min(SLICE)).unwrap_or(0);
    cpu.left = given;
    let code = enter(cpu, layout::BIAS, glue.enter, way.entry.far);
    if let Some(panic) = cpu.panic.take() {
        std::panic::resume_unwind(panic);
    }
    let spent = u64::try_from(given - cpu.left).unwrap_or(0);
    let code = i32::try_from(code).unwrap_or(calls::INTERPRET);
    let left = match code & ((1 << calls::LINK_SHIFT) - 1) {
        calls::NEXT => Left::Next,
        calls::STOPPED => Left::Stopped,
        calls::LINK => Left::Link(usize::try_from(code >> calls::LINK_SHIFT).unwrap_or(0)),
        _ => Left::Interpret,
    };
    (spent, left)
}
