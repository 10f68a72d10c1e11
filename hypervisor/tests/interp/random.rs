//! Random instructions and registers.

/// A small generator: splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
    /// Values that arithmetic is likely to get wrong, and any.
    pub fn value(&mut self) -> u64 {
        let shift = self.below(64);
        match self.below(8) {
            0 => self.below(4),
            1 => u64::MAX - self.below(4),
            2 => 1 << shift,
            3 => (1 << shift) - 1,
            4 => self.below(256),
            5 => 0x8000_8000_8000_8080 >> (8 * self.below(8)),
            _ => self.next(),
        }
    }
}

/// One-byte opcodes that ring-3 integer code uses.
const ONE: &[(u8, u8)] = &[
    (0x00, 0x05),
    (0x08, 0x0d),
    (0x10, 0x15),
    (0x18, 0x1d),
    (0x20, 0x25),
    (0x28, 0x2d),
    (0x30, 0x35),
    (0x38, 0x3d),
    (0x50, 0x5f),
    (0x63, 0x63),
    (0x68, 0x6b),
    (0x70, 0x7f),
    (0x80, 0x8b),
    (0x8d, 0x8d),
    (0x8f, 0x99),
    (0x9c, 0xbf),
    (0xc0, 0xc3),
    (0xc6, 0xc9),
    (0xd0, 0xd3),
    (0xd7, 0xd7),
    (0xe0, 0xe3),
    (0xe8, 0xe9),
    (0xeb, 0xeb),
    (0xf5, 0xf9),
    (0xfc, 0xff),
];

/// Opcodes behind 0f.
const TWO: &[(u8, u8)] = &[
    (0x0d, 0x0d),
    (0x18, 0x18),
    (0x1e, 0x1f),
    (0x40, 0x4f),
    (0x80, 0x9f),
    (0xa3, 0xa5),
    (0xab, 0xad),
    (0xaf, 0xb1),
    (0xb3, 0xb3),
    (0xb6, 0xb8),
    (0xba, 0xc1),
    (0xc3, 0xc3),
    (0xc7, 0xcf),
];

fn opcode(random: &mut Random, ranges: &[(u8, u8)]) -> u8 {
    let (first, last) = random.pick(ranges);
    first + u8::try_from(random.below(u64::from(last - first) + 1)).unwrap()
}

/// Bytes that begin with a plausible instruction.
pub fn instruction(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    let prefixes = [0x66, 0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x65, 0x3e];
    for _ in 0..random.pick(&[0, 0, 0, 1, 1, 2]) {
        bytes.push(random.pick(&prefixes));
    }
    if random.below(10) == 0 {
        vex(random, &mut bytes);
    } else {
        if random.below(2) == 0 {
            bytes.push(0x40 | (random.byte() & 15));
        }
        match random.below(10) {
            0 => bytes.extend([0x0f, 0x38, random.pick(&[0xf0, 0xf1, 0xf6])]),
            1..5 => bytes.extend([0x0f, opcode(random, TWO)]),
            _ => bytes.push(opcode(random, ONE)),
        }
    }
    for _ in 0..12 {
        bytes.push(random.byte());
    }
    bytes.truncate(15);
    bytes
}

/// A VEX prefix and an opcode of BMI1 or BMI2.
fn vex(random: &mut Random, bytes: &mut Vec<u8>) {
    let rorx = random.below(6) == 0;
    let map = if rorx { 3 } else { 2 };
    bytes.push(0xc4);
    bytes.push((random.byte() & 0xe0) | map);
    bytes.push(random.byte() & 0xfb);
    let opcodes = [0xf2, 0xf3, 0xf5, 0xf6, 0xf7];
    bytes.push(if rorx { 0xf0 } else { random.pick(&opcodes) });
}

/// SSE opcodes behind 0f.
const SSE: &[(u8, u8)] = &[
    (0x10, 0x17),
    (0x28, 0x2f),
    (0x50, 0x7f),
    (0xc2, 0xc2),
    (0xc4, 0xc6),
    (0xd0, 0xff),
];
/// Behind 0f 38.
const SSE_38: &[(u8, u8)] = &[
    (0x00, 0x0b),
    (0x10, 0x1e),
    (0x20, 0x41),
    (0xc8, 0xcf),
    (0xdb, 0xdf),
];
/// Behind 0f 3a.
const SSE_3A: &[(u8, u8)] = &[
    (0x08, 0x0f),
    (0x14, 0x17),
    (0x20, 0x22),
    (0x40, 0x44),
    (0x60, 0x63),
    (0xcc, 0xcf),
    (0xdf, 0xdf),
];

/// Bytes that begin with a plausible vector, MMX or x87 instruction.
pub fn vector_instruction(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    match random.below(8) {
        0 => bytes.extend([0xd8 | (random.byte() & 7)]),
        1 => bytes.extend([0x0f, random.pick(&[0xae, 0x77, 0xc3])]),
        2..5 => {
            let prefixes: &[&[u8]] = &[&[], &[0x66], &[0x66], &[0xf3], &[0xf2]];
            bytes.extend(random.pick(prefixes));
            if random.below(2) == 0 {
                bytes.push(0x40 | (random.byte() & 15));
            }
            match random.below(4) {
                0 => bytes.extend([0x0f, 0x38, opcode(random, SSE_38)]),
                1 => bytes.extend([0x0f, 0x3a, opcode(random, SSE_3A)]),
                _ => bytes.extend([0x0f, opcode(random, SSE)]),
            }
        }
        _ => {
            bytes.extend([0xc4, (random.byte() & 0xe0) | random.pick(&[1, 2, 3])]);
            let unused = if random.below(2) == 0 { 0x78 } else { 0 };
            bytes.extend([random.byte() | unused, random.byte()]);
        }
    }
    for _ in 0..12 {
        bytes.push(random.byte());
    }
    bytes.truncate(15);
    bytes
}

/// Numbers that floating-point arithmetic is likely to get wrong, and any.
pub fn float(random: &mut Random) -> u64 {
    let single = |n: u64| n | n << 32;
    match random.below(12) {
        0 => 0x7ff0_0000_0000_0000 | random.below(3) << 50,
        1 => single(0x7f80_0000 | random.below(3) << 21),
        2 => 0x8000_0000_8000_0000,
        3 => random.below(8),
        4 => single(random.below(8) | 0x8000_0000),
        5 => single(0x3f80_0000),
        6 => 1f64.to_bits() + random.below(3),
        7 => (random.below(1 << 20) as f64).to_bits(),
        8 => random.next() & !(0x7ff << 52) | (1023 + random.below(64) - 32) << 52,
        _ => random.value(),
    }
}
