//! From instructions of the guest to instructions of the host.
//!
//! Law: what can stop an instruction is tried before anything of it is done, so
//! that the guest can always be left at its start. Memory is touched at
//! addresses only that the current set of translations has just allowed for this
//! many bytes: `glue::translate` has allowed them.
//!
//! Code that is executed once in a while is spoilt by its length more than by a call. So
//! translations are made by shared code (`Glue::access`), and in place only where code is
//! hot. Shared code that can't do its part leaves for the interpreter, before the
//! instruction of the [`Site`] that called it.

use super::{
    asm::{Asm, Label, at},
    calls,
    glue::{self, Glue},
    layout::{
        MORE, PLACE, STACK, TEST, home, left, left_high, negative_still, page, register, slot_of,
        temporary, word,
    },
    region::{Item, Kind, Parts, is_high},
};
use crate::interp::{
    host::CodeMemory,
    op::{Op, slot},
};
use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

/// The compiled code of a region.
pub struct Emitted {
    /// Its bytes.
    pub code: Vec<u8>,
    /// For each entry: the offset in the page, and where code comes in that does
    /// or does not have to set the page.
    pub entries: Vec<Entry>,
    /// Its links, from the first that it was given.
    pub links: Vec<Link>,
    /// Its sites, in the order of their addresses.
    pub sites: Vec<Site>,
}

/// A call of shared code that may leave before the instruction it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// The address that it returns to.
    pub behind: u64,
    /// The instruction's offset in its page.
    pub offset: u16,
    /// Instructions that its segment was charged for and which are not done: those from
    /// here on.
    pub rest: u16,
}

/// A branch to another region of the same page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Where it leads at first.
    pub place: u64,
    /// The offset in the page of its target.
    pub offset: u64,
}

/// A way into a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The instruction's offset in its page.
    pub offset: u64,
    /// For an address in PLACE.
    pub far: u64,
    /// From the same page.
    pub near: u64,
}

/// The guest's address of an access.
#[derive(Clone, Copy)]
enum Place {
    /// The memory operand's.
    Operand(Instruction),
    /// The word that is pushed.
    Push,
    /// The word on top of the stack.
    Top,
    /// The word at RBP.
    Frame,
}

/// What is written behind the region, out of the way.
enum Cold {
    /// Makes a translation.
    Slow {
        from: Label,
        again: Label,
        item: usize,
        kind: i32,
    },
    /// Leaves before an instruction, whose segment is charged for already.
    Leave { from: Label, item: usize, code: i32 },
    /// Compares the region with memory, at an entry; if it is not right, leaves there.
    Verify {
        from: Label,
        right: Label,
        wrong: Label,
        offset: u64,
    },
    /// Leaves for a place of the same page.
    Link { from: Label, offset: u64 },
    /// Goes to another page.
    Away { from: Label, offset: u64 },
}

/// Emits one region.
pub struct Emitter<'a> {
    asm: Asm,
    glue: &'a Glue,
    parts: &'a Parts,
    ops: &'a [Op],
    memory: &'a CodeMemory,
    labels: Vec<Label>,
    /// Where code comes in from elsewhere, for those that are entries.
    ways: Vec<Label>,
    cold: Vec<Cold>,
    number: usize,
    first_link: usize,
    links: Vec<Link>,
    sites: Vec<Site>,
}

/// `[base + index * scale + displacement]`.
fn address(base: Register, index: Register, scale: u32, displacement: i64) -> MemoryOperand {
    // Without a base the displacement always has 32 bits.
    let size = if base == Register::None { 8 } else { 1 };
    MemoryOperand::with_base_index_scale_displ_size(base, index, scale, displacement, size)
}

/// The part of `register` that is `bytes` wide.
fn part(register: Register, bytes: usize) -> Option<Register> {
    let number = u32::try_from(register.number()).ok()?;
    Some(match bytes {
        // Without AH to BH in between.
        1 if number < 4 => Register::AL + number,
        1 => Register::SPL + (number - 4),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        8 => Register::RAX + number,
        _ => return None,
    })
}

impl<'a> Emitter<'a> {
    /// For region `number`, whose links are numbered from `first_link`.
    pub fn new(
        memory: &'a CodeMemory,
        glue: &'a Glue,
        parts: &'a Parts,
        ops: &'a [Op],
        number: usize,
        first_link: usize,
    ) -> Self {
        let mut asm = Asm::new(memory);
        let mut each = || parts.items.iter().map(|_| asm.label()).collect();
        let (labels, ways) = (each(), each());
        Emitter {
            asm,
            glue,
            parts,
            ops,
            memory,
            labels,
            ways,
            cold: Vec::new(),
            number,
            first_link,
            links: Vec::new(),
            sites: Vec::new(),
        }
    }

    /// The region's code; `None` if something could not be encoded.
    pub fn emit(mut self) -> Option<Emitted> {
        let parts = self.parts;
        let mut entries = vec![self.entry(0, parts.items.first()?.instruction.ip())];
        for (n, item) in parts.items.iter().enumerate() {
            self.asm.bind(self.labels[n]);
            let starts = n == 0 || item.label || item.entry || parts.items[n - 1].kind.is_branch();
            if starts {
                self.charge(n, item);
            }
            self.item(n, item)?;
        }
        if let Some(last) = parts.items.last() {
            self.go(last.instruction.next_ip());
        }
        let others = parts.items.iter().enumerate().skip(1);
        for (n, item) in others.filter(|(_, item)| item.entry) {
            entries.push(self.entry(n, item.instruction.ip()));
            self.asm.jump(self.labels[n]);
        }
        while let Some(cold) = self.cold.pop() {
            self.cold(&cold)?;
        }
        Some(Emitted {
            code: self.asm.finish()?,
            entries,
            links: self.links,
            sites: self.sites,
        })
    }

    /// Takes the instructions of a segment off what is left; where a branch leads
    /// back to, looks whether there is anything left.
    fn charge(&mut self, n: usize, item: &Item) {
        let count = i64::from(item.rest);
        self.asm.load(TEST, left());
        self.asm.lea(TEST, at(TEST, -count));
        self.asm.store(left(), TEST);
        if item.looped {
            let over = self.leave(n, calls::NEXT);
            self.stop_if_over(over);
        }
    }

    fn stop_if_over(&mut self, over: Label) {
        let (low, high) = (Register::ECX, left_high());
        let load = Instruction::with2(Code::Mov_r32_rm32, low, high);
        self.asm.put(load);
        self.asm.jump_if_rcx(over);
    }

    /// The way in for other code, which goes on at the instruction itself. Who comes in here
    /// may be part of a loop through several regions.
    fn entry(&mut self, n: usize, offset: u64) -> Entry {
        let asm = &mut self.asm;
        asm.bind(self.ways[n]);
        let far = asm.here();
        asm.lea(PLACE, at(PLACE, offset.wrapping_neg().cast_signed()));
        asm.store(page(), PLACE);
        let near = asm.here();
        let checked = self.memory.word_address(word::CHECKED + self.number);
        asm.load(TEST, at(Register::RIP, checked.cast_signed()));
        asm.load(MORE, negative_still());
        asm.lea(TEST, MemoryOperand::with_base_index(TEST, MORE));
        let [verify, right, wrong] = [(); 3].map(|()| asm.label());
        asm.jump_if_rcx(verify);
        asm.bind(right);
        self.stop_if_over(wrong);
        self.cold.push(Cold::Verify {
            from: verify,
            right,
            wrong,
            offset,
        });
        Entry { offset, far, near }
    }

    /// PLACE is the address at `offset` from the page.
    fn place(&mut self, offset: u64) {
        self.asm.load(PLACE, page());
        self.asm.lea(PLACE, at(PLACE, offset.cast_signed()));
    }

    fn leave(&mut self, item: usize, code: i32) -> Label {
        let from = self.asm.label();
        self.cold.push(Cold::Leave { from, item, code });
        from
    }

    fn item(&mut self, n: usize, item: &Item) -> Option<()> {
        let i = &item.instruction;
        match item.kind {
            Kind::Skip => {}
            Kind::Native => self.native(n, i)?,
            Kind::Push => self.push(n, i)?,
            Kind::Pop => self.pop(n, i)?,
            Kind::Leave => self.leave_frame(n)?,
            Kind::Jump => self.go(i.near_branch64()),
            Kind::Branch(condition) => {
                let to = self.target(i.near_branch64());
                self.asm.jump_if(condition, to);
            }
            Kind::Call => {
                self.push_return(n, i.next_ip())?;
                self.go(i.near_branch64());
            }
            Kind::JumpBy => {
                self.operand(n, i)?;
                self.find(n)?;
                self.asm.jump_by(MORE);
            }
            Kind::CallBy => self.call_by(n, i)?,
            Kind::Return => self.ret(n, i)?,
            Kind::Interpret => {
                for op in &self.ops[item.ops.clone()] {
                    let op = std::ptr::from_ref(op).expose_provenance();
                    self.asm.set_address(PLACE, op as u64);
                    self.asm.call(self.glue.interpret);
                }
            }
            Kind::LeaveOut => {
                let away = self.leave(n, calls::INTERPRET);
                self.asm.jump(away);
            }
        }
        Some(())
    }

    /// Where a branch to `offset` leads.
    fn target(&mut self, offset: u64) -> Label {
        if let Some(n) = self.parts.at(offset) {
            return self.labels[n];
        }
        let from = self.asm.label();
        self.cold.push(if offset < 0x1000 {
            Cold::Link { from, offset }
        } else {
            Cold::Away { from, offset }
        });
        from
    }

    fn go(&mut self, offset: u64) {
        let to = self.target(offset);
        self.asm.jump(to);
    }

    /// PLACE becomes where the host has the guest's `bytes` bytes at `place`.
    fn translate(&mut self, item: usize, place: Place, bytes: usize, write: bool) -> Option<()> {
        guest_address(&mut self.asm, place);
        if !self.parts.items[item].in_place {
            self.asm.call(self.glue.access(bytes, write)?);
            return self.site(item);
        }
        let again = self.asm.label();
        self.asm.bind(again);
        let from = glue::translate(&mut self.asm, bytes, write);
        let size = i32::try_from(bytes).ok()?;
        self.cold.push(Cold::Slow {
            from,
            again,
            item,
            kind: size | if write { calls::WRITE } else { 0 },
        });
        Some(())
    }

    /// Shared code was called, which may leave before `item`.
    fn site(&mut self, item: usize) -> Option<()> {
        let item = &self.parts.items[item];
        self.sites.push(Site {
            behind: self.asm.here(),
            offset: u16::try_from(item.instruction.ip()).ok()?,
            rest: u16::try_from(item.rest).ok()?,
        });
        Some(())
    }

    /// The instruction itself on the host.
    fn native(&mut self, n: usize, i: &Instruction) -> Option<()> {
        if i.mnemonic() == Mnemonic::Lea {
            return self.lea(i);
        }
        let memory = (0..i.op_count()).find(|k| i.op_kind(*k) == OpKind::Memory);
        let mut copy = *i;
        if let Some(operand) = memory {
            let write = operand == 0 && writes_first(i);
            self.translate(n, Place::Operand(*i), i.memory_size().size(), write)?;
            copy.set_memory_base(PLACE);
            copy.set_memory_index(Register::None);
            copy.set_memory_index_scale(1);
            copy.set_memory_displ_size(0);
            copy.set_memory_displacement64(0);
            copy.set_segment_prefix(Register::None);
        }
        let counts = shifts_by_cl(i);
        let mut free = vec![MORE];
        if counts {
            load_guest(&mut self.asm, TEST, 1);
        } else {
            free.push(TEST);
        }
        if memory.is_none() {
            free.push(PLACE);
        }
        let mut stands: Vec<(usize, Register)> = Vec::new();
        for k in 0..i.op_count() {
            if i.op_kind(k) != OpKind::Register || (counts && k + 1 == i.op_count()) {
                continue;
            }
            let guest = i.op_register(k);
            if is_high(guest) {
                // At home under its own name.
                continue;
            }
            let number = guest.full_register().number();
            let stand = match home(number) {
                Some(home) => home,
                None => match stands.iter().find(|(known, _)| *known == number) {
                    Some((_, stand)) => *stand,
                    None => {
                        let stand = free.pop()?;
                        self.asm.load(stand, slot_of(number));
                        stands.push((number, stand));
                        stand
                    }
                },
            };
            copy.set_op_register(k, part(stand, guest.size())?);
        }
        self.asm.put(copy);
        for (number, stand) in stands {
            self.asm.store(slot_of(number), stand);
        }
        Some(())
    }

    fn lea(&mut self, i: &Instruction) -> Option<()> {
        let guest = i.op0_register();
        let number = guest.full_register().number();
        let to = home(number).unwrap_or(TEST);
        if home(number).is_none() && guest.size() < 4 {
            self.asm.load(to, slot_of(number));
        }
        let from = guest_operand(&mut self.asm, i);
        let code = match guest.size() {
            2 => Code::Lea_r16_m,
            4 => Code::Lea_r32_m,
            _ => Code::Lea_r64_m,
        };
        self.asm
            .put(Instruction::with2(code, part(to, guest.size())?, from));
        if home(number).is_none() {
            self.asm.store(slot_of(number), to);
        }
        Some(())
    }

    /// PLACE becomes where the host has a new word on the stack.
    fn push_place(&mut self, n: usize) -> Option<()> {
        self.translate(n, Place::Push, 8, true)
    }

    fn top(&mut self, n: usize) -> Option<()> {
        self.translate(n, Place::Top, 8, false)
    }

    /// Which of these does `i`, if one does.
    fn shared(&self, n: usize, i: &Instruction, thunks: &[u64; 16]) -> Option<u64> {
        let register = i.op0_kind() == OpKind::Register && !self.parts.items[n].in_place;
        let number = i.op0_register().full_register().number();
        register.then(|| thunks.get(number).copied()).flatten()
    }

    fn push(&mut self, n: usize, i: &Instruction) -> Option<()> {
        if let Some(thunk) = self.shared(n, i, &self.glue.push) {
            self.asm.call(thunk);
            return self.site(n);
        }
        self.push_place(n)?;
        if i.op0_kind() == OpKind::Register {
            let number = i.op0_register().full_register().number();
            let from = match home(number) {
                Some(home) => home,
                None => {
                    self.asm.load(TEST, slot_of(number));
                    TEST
                }
            };
            self.asm.store(at(PLACE, 0), from);
        } else {
            let value = i32::try_from(i.immediate(0).cast_signed()).ok()?;
            self.asm.put(Instruction::with2(
                Code::Mov_rm64_imm32,
                at(PLACE, 0),
                value,
            ));
        }
        self.asm.lea(STACK, at(STACK, -8));
        Some(())
    }

    fn pop(&mut self, n: usize, i: &Instruction) -> Option<()> {
        if let Some(thunk) = self.shared(n, i, &self.glue.pop) {
            self.asm.call(thunk);
            return self.site(n);
        }
        self.top(n)?;
        self.asm.lea(STACK, at(STACK, 8));
        let number = i.op0_register().full_register().number();
        match home(number) {
            Some(home) => self.asm.load(home, at(PLACE, 0)),
            None => {
                self.asm.load(TEST, at(PLACE, 0));
                self.asm.store(slot_of(number), TEST);
            }
        }
        Some(())
    }

    fn leave_frame(&mut self, n: usize) -> Option<()> {
        self.translate(n, Place::Frame, 8, false)?;
        self.asm.lea(STACK, at(Register::RBP, 8));
        self.asm.load(Register::RBP, at(PLACE, 0));
        Some(())
    }

    fn push_return(&mut self, n: usize, back: u64) -> Option<()> {
        if n + 1 == self.parts.items.len() {
            // It returns to code that is not of this region, and that may be at an address
            // where a return faults.
            self.push_place(n)?;
            self.asm.load(TEST, page());
            self.asm.lea(TEST, at(TEST, back.cast_signed()));
            self.asm.store(at(PLACE, 0), TEST);
            self.asm.lea(STACK, at(STACK, -8));
            return Some(());
        }
        self.asm.lea_label(MORE, self.ways[n + 1]);
        self.asm.set_low(TEST, u32::try_from(back).ok()?);
        self.asm.call(self.glue.push_return);
        self.site(n)
    }

    /// PLACE becomes the operand of an indirect branch.
    fn operand(&mut self, n: usize, i: &Instruction) -> Option<()> {
        if i.op0_kind() == OpKind::Register {
            load_guest(
                &mut self.asm,
                PLACE,
                i.op0_register().full_register().number(),
            );
        } else {
            self.translate(n, Place::Operand(*i), 8, false)?;
            self.asm.load(PLACE, at(PLACE, 0));
        }
        Some(())
    }

    /// MORE becomes where to go for the address in PLACE. If that is not known
    /// the interpreter does the instruction, which may raise an exception.
    fn find(&mut self, n: usize) -> Option<()> {
        self.asm.call(self.glue.find);
        self.site(n)
    }

    fn call_by(&mut self, n: usize, i: &Instruction) -> Option<()> {
        self.operand(n, i)?;
        self.find(n)?;
        self.asm.store(temporary(0), PLACE);
        self.asm.store(temporary(1), MORE);
        self.push_return(n, i.next_ip())?;
        self.asm.load(PLACE, temporary(0));
        self.asm.jump_through(temporary(1));
        Some(())
    }

    fn ret(&mut self, n: usize, i: &Instruction) -> Option<()> {
        self.asm.call(self.glue.pop_return);
        self.site(n)?;
        if i.op_count() > 0 {
            let more = i.immediate(0).cast_signed();
            self.asm.lea(STACK, at(STACK, more));
        }
        self.asm.jump_by(MORE);
        Some(())
    }

    fn cold(&mut self, cold: &Cold) -> Option<()> {
        match *cold {
            Cold::Slow {
                from,
                again,
                item,
                kind,
            } => {
                self.asm.bind(from);
                self.asm.load(PLACE, glue::address());
                self.asm.set(TEST, kind);
                self.asm.call(self.glue.translate);
                let away = self.leave(item, calls::INTERPRET);
                self.asm.jump_if_rcx(away);
                self.asm.jump(again);
            }
            Cold::Leave { from, item, code } => {
                self.asm.bind(from);
                let item = &self.parts.items[item];
                self.asm.load(TEST, left());
                self.asm.lea(TEST, at(TEST, i64::from(item.rest)));
                self.asm.store(left(), TEST);
                self.place(item.instruction.ip());
                self.asm.set(TEST, code);
                self.asm.jump_to(self.glue.leave);
            }
            Cold::Verify {
                from,
                right,
                wrong,
                offset,
            } => {
                let number = i32::try_from(self.number).ok()?;
                self.asm.bind(from);
                self.asm.set(PLACE, number);
                self.asm.call(self.glue.verify);
                self.asm.jump_if_rcx(wrong);
                self.asm.jump(right);
                self.asm.bind(wrong);
                self.place(offset);
                self.asm.set(TEST, calls::NEXT);
                self.asm.jump_to(self.glue.leave);
            }
            Cold::Link { from, offset } => {
                let link = self.first_link + self.links.len();
                self.asm.bind(from);
                let word = self.memory.word_address(word::LINK + link);
                self.asm.jump_through(at(Register::RIP, word.cast_signed()));
                let place = self.asm.here();
                self.links.push(Link { place, offset });
                self.place(offset);
                let number = i32::try_from(link).ok()? << calls::LINK_SHIFT;
                self.asm.set(TEST, calls::LINK | number);
                self.asm.jump_to(self.glue.leave);
            }
            Cold::Away { from, offset } => {
                self.asm.bind(from);
                self.place(offset);
                self.asm.jump_to(self.glue.go);
            }
        }
        Some(())
    }
}

/// Whether the first operand, in memory, is written.
fn writes_first(i: &Instruction) -> bool {
    use Mnemonic as M;
    !matches!(i.mnemonic(), M::Cmp | M::Test | M::Bt | M::Mul | M::Imul)
}

/// Whether it is a shift whose last operand is CL.
fn shifts_by_cl(i: &Instruction) -> bool {
    use Mnemonic as M;
    let shift = matches!(
        i.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    let last = i.op_count().saturating_sub(1);
    shift && last > 0 && i.op_kind(last) == OpKind::Register
}

/// PLACE becomes the guest's address.
fn guest_address(asm: &mut Asm, place: Place) {
    match place {
        Place::Operand(i) => {
            let operand = guest_operand(asm, &i);
            asm.lea(PLACE, operand);
            let segment = match i.memory_segment() {
                Register::FS => slot::FS,
                Register::GS => slot::GS,
                _ => return,
            };
            asm.load(TEST, register(segment));
            asm.lea(PLACE, MemoryOperand::with_base_index(PLACE, TEST));
        }
        Place::Push => asm.lea(PLACE, at(STACK, -8)),
        Place::Top => asm.mov(PLACE, STACK),
        Place::Frame => asm.mov(PLACE, Register::RBP),
    }
}

/// The memory operand with the host's registers, but for its segment. May use PLACE
/// and MORE.
fn guest_operand(asm: &mut Asm, i: &Instruction) -> MemoryOperand {
    let mut stand = |guest: Register, other: Register| {
        if guest == Register::None {
            return Register::None;
        }
        if guest == Register::RIP {
            asm.load(other, page());
            return other;
        }
        home(guest.number()).unwrap_or_else(|| {
            asm.load(other, slot_of(guest.number()));
            other
        })
    };
    let base = stand(i.memory_base(), PLACE);
    let index = stand(i.memory_index(), MORE);
    let displacement = i.memory_displacement64().cast_signed();
    if base == Register::None && index == Register::None {
        asm.set(PLACE, i32::try_from(displacement).unwrap_or(0));
        return at(PLACE, 0);
    }
    address(base, index, i.memory_index_scale(), displacement)
}

fn load_guest(asm: &mut Asm, to: Register, number: usize) {
    match home(number) {
        Some(home) => asm.mov(to, home),
        None => asm.load(to, slot_of(number)),
    }
}
