//! Decoded code.
//!
//! Law: a block is found by the machine address of its first byte, so all
//! address spaces share it, and is executed only if memory held its bytes
//! when it was last compared: once in every [`CodeCache::epoch`], which is a
//! `run`, unless its frame holds still since ([`mark`]). Within a run, a write of the interpreter itself to a block's bytes
//! drops the block (`pages`). Code that another processor changes meanwhile is
//! noticed in the next run: every synchronising instruction ends one.

use super::{
    compiled::{self, Way},
    decode::{Decoded, decode},
    exec::control,
    host::{HostPtr, IS_AMD, copy_out, same_bytes},
    op::{Halt, Op},
    pages::NumberMap,
    state::Cpu,
    vector::Plans,
    walk::Page,
};
use guest_abi::addr::Mfn;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

/// Instructions in a block, so that the loop's checks come often enough.
const BLOCK_INSTRUCTIONS: u32 = 48;
/// Bytes of code looked at for one block.
const BLOCK_BYTES: usize = 192;
/// No instruction is longer.
const LONGEST: usize = 15;
/// Operations kept, of 40 bytes each; then all start anew.
const MOST_OPERATIONS: usize = 1 << 19;
const JUMPS: usize = 4096;

/// A straight run of instructions, ended by a branch.
pub struct Block {
    /// The operations.
    pub ops: Box<[Op]>,
    /// Instructions in it.
    pub count: u32,
    bytes: Box<[u8]>,
    key: u64,
    /// The frame that its only instruction goes on in.
    second: Option<Mfn>,
    /// The epoch in which memory was last seen to hold `bytes`, or the mark that it
    /// holds still since; 0 is never.
    checked: u64,
    form: Form,
}

/// What is known of a block's compiled form.
#[derive(Clone, Copy)]
enum Form {
    /// It has been found so often.
    Visits(u32),
    /// There is one.
    Compiled(Way),
    /// There will be none.
    Never,
}

/// Where a block is for a virtual address; see [`CodeCache::tag`].
#[derive(Clone, Copy, Default)]
struct Jump {
    rip: u64,
    tag: u64,
    block: usize,
    /// Its bytes in guest memory, if they are in one frame.
    place: Option<HostPtr>,
}

/// The blocks of one vCPU.
pub struct CodeCache {
    blocks: Vec<Block>,
    by_address: NumberMap<usize>,
    by_frame: NumberMap<Vec<usize>>,
    jumps: Box<[Jump; JUMPS]>,
    /// In the upper bits of a [`Jump`]'s tag, above the root's generation.
    jump_epoch: u64,
    epoch: u64,
    /// What is in `checked` of a block whose bytes hold still: [`STILL`], and since when.
    still: u64,
    operations: usize,
}

/// The code at an address, copied.
struct Bytes {
    buffer: [u8; BLOCK_BYTES],
    len: usize,
    /// The frame of the bytes past the page's end.
    second: Option<Mfn>,
}

/// AMD's processors decode branches with 16-bit operands differently.
pub fn decoder_options() -> u32 {
    if *IS_AMD {
        DecoderOptions::AMD
    } else {
        DecoderOptions::NONE
    }
}

impl CodeCache {
    /// An empty one.
    pub fn new() -> Self {
        CodeCache {
            blocks: Vec::new(),
            by_address: NumberMap::default(),
            by_frame: NumberMap::default(),
            jumps: Box::new([Jump::default(); JUMPS]),
            jump_epoch: 1,
            epoch: 1,
            still: STILL,
            operations: 0,
        }
    }

    /// Begins a run: all blocks whose frames do not hold still have to be compared with
    /// memory again.
    pub fn next_epoch(&mut self) {
        self.epoch += 1;
    }

    /// Forgets which virtual address means which block.
    pub fn forget_addresses(&mut self) {
        self.jump_epoch += 1;
    }

    /// A block found by [`CodeCache::find`].
    #[inline(always)]
    pub fn block(&self, id: usize) -> &Block {
        &self.blocks[id]
    }

    /// Code in frames that were asked to hold still is right until `epoch` changes.
    pub fn set_still(&mut self, epoch: u64) {
        self.still = STILL | epoch;
    }

    /// What code is marked with that holds still.
    pub fn still(&self) -> u64 {
        self.still
    }

    /// The run's number.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The compiled form of a block just found, if it has one by now.
    #[inline(always)]
    pub fn way(&mut self, cpu: &mut Cpu, id: usize) -> Option<Way> {
        match &mut self.blocks[id].form {
            Form::Compiled(way) => {
                let way = *way;
                if compiled::is_right(cpu, way) {
                    return Some(way);
                }
                self.wrong(cpu, id)
            }
            Form::Visits(visits) => {
                *visits += 1;
                let often = cpu.compiled.as_ref()?.often();
                if *visits < often {
                    return None;
                }
                self.compile(cpu, id)
            }
            Form::Never => None,
        }
    }

    #[cold]
    fn compile(&mut self, cpu: &mut Cpu, id: usize) -> Option<Way> {
        self.blocks[id].form = Form::Never;
        let key = self.blocks[id].key;
        let (mfn, offset) = (frame_of(key), key & 0xfff);
        if key & MODE != 0 || self.blocks[id].second.is_some() {
            return None;
        }
        let compiled = cpu.compiled.as_ref()?;
        if compiled.way(key).is_none() {
            let len = compiled::compile(cpu, mfn, offset)?;
            if cpu.lines.mark(mfn, offset, len) {
                cpu.tlb.protect(mfn);
            }
        }
        let way = cpu.compiled.as_ref()?.way(key)?;
        self.blocks[id].form = Form::Compiled(way);
        compiled::is_right(cpu, way).then_some(way)
    }

    /// Memory no longer holds the code of a block's compiled form.
    #[cold]
    fn wrong(&mut self, cpu: &mut Cpu, id: usize) -> Option<Way> {
        let mfn = frame_of(self.blocks[id].key);
        self.drop_frame(cpu, mfn);
        None
    }

    /// Starts anew if there is no room for more compiled code.
    pub fn make_room(&mut self, cpu: &mut Cpu) {
        if cpu
            .compiled
            .as_ref()
            .is_some_and(|compiled| compiled.is_full())
        {
            self.clear(cpu);
        }
    }

    /// What jumps of compiled code are tagged with.
    pub fn jump_tag(&self, cpu: &Cpu) -> u64 {
        (self.jump_epoch << 12) | cpu.tlb.generation()
    }

    /// The block at `cpu.rip`.
    #[inline(always)]
    pub fn find(&mut self, cpu: &mut Cpu) -> Result<usize, Halt> {
        let jump = &self.jumps[jump_slot(cpu.rip)];
        if jump.rip == cpu.rip && jump.tag == self.tag(cpu) {
            let block = &mut self.blocks[jump.block];
            if block.checked == self.still || block.checked == self.epoch {
                return Ok(jump.block);
            }
            // Dropped blocks have 0 here: they are not to be found again.
            if block.checked != 0
                && let Some(place) = jump.place
                && let Some(mark) = mark(cpu, frame_of(block.key), self.epoch, self.still, || {
                    same_bytes(place, &block.bytes)
                })
            {
                block.checked = mark;
                return Ok(jump.block);
            }
        }
        self.find_slow(cpu)
    }

    fn tag(&self, cpu: &Cpu) -> u64 {
        mode(cpu) | self.jump_tag(cpu)
    }

    #[cold]
    #[inline(never)]
    fn find_slow(&mut self, cpu: &mut Cpu) -> Result<usize, Halt> {
        let page = cpu.fetch(cpu.rip)?;
        let key = mode(cpu) | (page.mfn.0 << 12) | (cpu.rip & 0xfff);
        let known = match self.recent(cpu.rip, key) {
            Some(id) => Some(id),
            None => self.by_address.get(&key).copied(),
        };
        let id = match known {
            Some(id) if self.still_right(cpu, id, &page)? => id,
            _ => self.add(cpu, &page, key)?,
        };
        if self.blocks[id].checked != self.still {
            self.blocks[id].checked = self.epoch;
        }
        self.jumps[jump_slot(cpu.rip)] = Jump {
            rip: cpu.rip,
            tag: self.tag(cpu),
            block: id,
            place: self.blocks[id]
                .second
                .is_none()
                .then(|| page.frame.ptr.at(cpu.rip)),
        };
        Ok(id)
    }

    /// The block of this machine address, if it was the last one to be found at
    /// `rip`: translations come and go, but mostly mean the same.
    fn recent(&self, rip: u64, key: u64) -> Option<usize> {
        let jump = &self.jumps[jump_slot(rip)];
        let block = self.blocks.get(jump.block)?;
        // Dropped blocks have 0 for their epoch.
        (jump.rip == rip && block.key == key && block.checked != 0).then_some(jump.block)
    }

    /// Whether memory still holds the block's bytes.
    fn still_right(&self, cpu: &mut Cpu, id: usize, page: &Page) -> Result<bool, Halt> {
        let block = &self.blocks[id];
        let place = page.frame.ptr.at(cpu.rip);
        let Some(second) = block.second else {
            let known = [self.epoch, self.still].contains(&block.checked);
            return Ok(known || same_bytes(place, &block.bytes));
        };
        let rest = cpu.fetch(next_page(cpu.rip))?;
        let (head, tail) = block.bytes.split_at(to_page_end(cpu.rip));
        Ok(rest.mfn == second && same_bytes(place, head) && same_bytes(rest.frame.ptr.at(0), tail))
    }

    fn add(&mut self, cpu: &mut Cpu, page: &Page, key: u64) -> Result<usize, Halt> {
        if self.operations > MOST_OPERATIONS || cpu.vector.plans.is_full() {
            self.clear(cpu);
        }
        let block = build(cpu, page, key, BLOCK_INSTRUCTIONS)?;
        let id = self.blocks.len();
        let first = to_page_end(cpu.rip).min(block.bytes.len());
        self.claim(cpu, page.mfn, id, key & 0xfff, first);
        if let Some(second) = block.second {
            self.claim(cpu, second, id, 0, block.bytes.len() - first);
        }
        self.operations += block.ops.len();
        self.blocks.push(block);
        self.by_address.insert(key, id);
        Ok(id)
    }

    /// Notes that a block has `len` bytes of a frame.
    fn claim(&mut self, cpu: &mut Cpu, mfn: Mfn, id: usize, offset: u64, len: usize) {
        if cpu.lines.mark(mfn, offset, len as u64) {
            cpu.tlb.protect(mfn);
        }
        self.by_frame.entry(mfn.0).or_default().push(id);
    }

    /// Drops all blocks of a frame.
    pub fn drop_frame(&mut self, cpu: &mut Cpu, mfn: Mfn) {
        for id in self.by_frame.remove(&mfn.0).unwrap_or_default() {
            let block = &mut self.blocks[id];
            if self.by_address.get(&block.key) == Some(&id) {
                self.by_address.remove(&block.key);
            }
            block.checked = 0;
        }
        if let Some(compiled) = &mut cpu.compiled {
            compiled.drop_frame(mfn);
        }
        cpu.lines.remove(mfn);
    }

    /// Forgets all code.
    pub fn clear(&mut self, cpu: &mut Cpu) {
        self.blocks.clear();
        self.by_address.clear();
        self.by_frame.clear();
        self.jumps.fill(Jump::default());
        self.operations = 0;
        cpu.lines.clear();
        cpu.vector.plans.clear();
        if let Some(compiled) = &mut cpu.compiled {
            compiled.clear();
        }
    }
}

/// The one instruction at `cpu.rip`, not to be kept.
pub fn single(cpu: &mut Cpu) -> Result<Block, Halt> {
    let page = cpu.fetch(cpu.rip)?;
    build(cpu, &page, 0, 1)
}

/// The instruction at `cpu.rip`, as far as its page has it.
pub fn instruction(cpu: &mut Cpu) -> Option<Instruction> {
    let page = cpu.fetch(cpu.rip).ok()?;
    let mut buffer = [0; LONGEST];
    let code = &mut buffer[..to_page_end(cpu.rip).min(LONGEST)];
    copy_out(page.frame.ptr.at(cpu.rip), code);
    Some(Decoder::with_ip(bits(cpu), code, cpu.rip, decoder_options()).decode())
}

/// The whole instruction at `cpu.rip`, also where it goes on in the next page; `None`
/// if it can't be fetched, or is none.
pub fn whole_instruction(cpu: &mut Cpu) -> Option<Instruction> {
    let here = to_page_end(cpu.rip).min(LONGEST);
    let first = instruction(cpu)?;
    if !first.is_invalid() || here == LONGEST {
        return Some(first).filter(|instruction| !instruction.is_invalid());
    }
    let mut buffer = [0; LONGEST];
    let page = cpu.fetch(cpu.rip).ok()?;
    copy_out(page.frame.ptr.at(cpu.rip), &mut buffer[..here]);
    let next = (cpu.rip | 0xfff).wrapping_add(1);
    let page = cpu.fetch(next).ok()?;
    copy_out(page.frame.ptr.at(next), &mut buffer[here..]);
    let whole = Decoder::with_ip(bits(cpu), &buffer, cpu.rip, decoder_options()).decode();
    Some(whole).filter(|instruction| !instruction.is_invalid())
}

/// Marks 32-bit code.
const MODE: u64 = 1 << 63;

fn frame_of(key: u64) -> Mfn {
    Mfn((key & !MODE) >> 12)
}

/// Marks code that holds still, above all numbers of runs.
const STILL: u64 = 1 << 62;
/// In every so manieth run frames are asked to hold still, which may take a lock.
const ASK_EVERY: u64 = 64;

/// What code of frame `mfn` is marked with in run `epoch` if it is `right`: `still`, if it
/// will be so until told otherwise. (First it holds still, then it is looked at.)
pub fn mark(
    cpu: &Cpu,
    mfn: Mfn,
    epoch: u64,
    still: u64,
    right: impl FnOnce() -> bool,
) -> Option<u64> {
    let holds = epoch.is_multiple_of(ASK_EVERY) && cpu.phys.hold_still(mfn);
    right().then_some(if holds { still } else { epoch })
}

fn mode(cpu: &Cpu) -> u64 {
    if cpu.compat.is_some() { MODE } else { 0 }
}

/// How wide code is now.
fn bits(cpu: &Cpu) -> u32 {
    if cpu.compat.is_some() { 32 } else { 64 }
}

fn build(cpu: &mut Cpu, page: &Page, key: u64, limit: u32) -> Result<Block, Halt> {
    let mut code = Bytes {
        buffer: [0; BLOCK_BYTES],
        len: to_page_end(cpu.rip).min(BLOCK_BYTES),
        second: None,
    };
    copy_out(page.frame.ptr.at(cpu.rip), &mut code.buffer[..code.len]);
    let start = cpu.rip & 0xfff;
    let width = bits(cpu);
    let plans = &mut cpu.vector.plans;
    let (mut ops, mut count, mut bytes) =
        straight(&code.buffer[..code.len], start, limit, width, plans);
    if count == 0 {
        code.read_second(cpu)?;
        let plans = &mut cpu.vector.plans;
        (ops, count, bytes) = straight(&code.buffer[..code.len], start, 1, width, plans);
        if count == 0 {
            // Not an instruction however it goes on.
            ops.push(Op::new(super::exec::system::unknown, page_offset(start), 1));
            (count, bytes) = (1, code.len);
        }
    }
    Ok(Block {
        ops: ops.into(),
        count,
        bytes: code.buffer[..bytes].into(),
        key,
        second: code.second,
        checked: 0,
        form: Form::Visits(0),
    })
}

impl Bytes {
    /// Adds bytes of the next page to an instruction that goes on there.
    fn read_second(&mut self, cpu: &mut Cpu) -> Result<(), Halt> {
        let address = next_page(cpu.rip);
        let page = cpu.fetch(address)?;
        let end = LONGEST.max(self.len);
        copy_out(page.frame.ptr.at(0), &mut self.buffer[self.len..end]);
        self.len = end;
        self.second = Some(page.mfn);
        Ok(())
    }
}

/// The operations of the instructions at the start of `bytes`, how many
/// instructions they are, and their length.
fn straight(
    bytes: &[u8],
    start: u64,
    limit: u32,
    width: u32,
    plans: &mut Plans,
) -> (Vec<Op>, u32, usize) {
    let mut decoder = Decoder::with_ip(width, bytes, start, decoder_options());
    let mut instruction = Instruction::default();
    let (mut ops, mut count, mut used) = (Vec::new(), 0, 0);
    while count < limit {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let Decoded {
            before,
            op,
            ends_block,
        } = decode(&instruction, width == 32, plans);
        ops.extend(before);
        ops.push(op);
        count += 1;
        used = decoder.position();
        if ends_block {
            return (ops, count, used);
        }
    }
    let mut onwards = Op::new(control::fall_through, page_offset(start), 0);
    onwards.imm = start + used as u64;
    ops.push(onwards);
    (ops, count, used)
}

fn jump_slot(rip: u64) -> usize {
    let mixed = rip ^ (rip >> 12) ^ (rip >> 22);
    usize::try_from(mixed & (JUMPS as u64 - 1)).unwrap_or(0)
}

fn page_offset(address: u64) -> u16 {
    u16::try_from(address & 0xfff).unwrap_or(0)
}

/// Bytes from `address` to its page's end.
fn to_page_end(address: u64) -> usize {
    0x1000 - usize::from(page_offset(address))
}

fn next_page(address: u64) -> u64 {
    (address | 0xfff).wrapping_add(1)
}
