//! Addresses to names, for crash reports.

use std::{fs::File, io::Read, path::Path};

use object::{
    Endianness, ReadRef,
    elf::{self, FileHeader64},
    read::elf::{SectionTable, Sym},
};

/// More is not a symbol table but an attack on our memory.
const MAX_MAP_FILE: u64 = 64 << 20;

/// Names by address.
#[derive(Debug, Default, Clone)]
pub struct SymbolTable {
    /// By address.
    entries: Vec<Entry>,
    /// Each ends with a NUL.
    names: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    address: u64,
    /// Where in `names` the name starts.
    name: u32,
    kind: Kind,
}

/// What a symbol stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Instructions.
    Code,
    /// Data of any kind.
    Data,
}

impl Kind {
    /// By the letter of `nm`, `System.map` and kallsyms.
    #[must_use]
    pub fn from_letter(letter: u8) -> Self {
        match letter.to_ascii_lowercase() {
            b't' | b'w' => Self::Code,
            _ => Self::Data,
        }
    }
}

/// What [`SymbolTable::lookup`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// How far behind its start the address lies.
    pub offset: u64,
    /// What it stands for.
    pub kind: Kind,
}

impl SymbolTable {
    /// The symbols of an ELF file; `None` where there are none.
    #[must_use]
    pub fn from_elf<'data, R: ReadRef<'data>>(
        sections: &SectionTable<'data, FileHeader64<Endianness>, R>,
        endian: Endianness,
        data: R,
    ) -> Option<Self> {
        let symbols = sections.symbols(endian, data, elf::SHT_SYMTAB).ok()?;
        let mut table = Self::default();
        for symbol in symbols.iter() {
            let wanted = matches!(
                symbol.st_type(),
                elf::STT_NOTYPE | elf::STT_FUNC | elf::STT_OBJECT
            );
            if !wanted || symbol.is_undefined(endian) || symbol.is_absolute(endian) {
                continue;
            }
            if let Ok(name) = symbols.symbol_name(endian, symbol) {
                let kind = match symbol.st_type() {
                    elf::STT_OBJECT => Kind::Data,
                    _ => Kind::Code,
                };
                table.push(symbol.st_value(endian), name, kind);
            }
        }
        table.sorted()
    }

    /// Reads a `System.map`: lines of address, type and name.
    ///
    /// # Errors
    /// The file can't be read. A file without symbols gives `None`: Debian
    /// installs a `System.map` of one line that says where the real one is.
    pub fn from_map_file(path: &Path) -> std::io::Result<Option<Self>> {
        let mut text = Vec::new();
        File::open(path)?
            .take(MAX_MAP_FILE)
            .read_to_end(&mut text)?;
        Ok(Self::from_map(&text))
    }

    fn from_map(text: &[u8]) -> Option<Self> {
        let mut table = Self::default();
        for line in text.split(|&byte| byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            let mut fields = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name), None) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            // `A` and per-CPU offsets are numbers, not places.
            if let (Ok(address), false) = (u64::from_str_radix(address, 16), kind == "A") {
                let letter = kind.as_bytes().first().copied().unwrap_or(0);
                table.push(address, name.as_bytes(), Kind::from_letter(letter));
            }
        }
        table.sorted()
    }

    /// The symbol at or before `address`.
    #[must_use]
    pub fn lookup(&self, address: u64) -> Option<Symbol<'_>> {
        let after = self.entries.partition_point(|e| e.address <= address);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        let name = self.names.get(usize::try_from(entry.name).ok()?..)?;
        let name = name.split(|&byte| byte == 0).next()?;
        Some(Symbol {
            name: std::str::from_utf8(name).ok()?,
            offset: address - entry.address,
            kind: entry.kind,
        })
    }

    /// How many symbols there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn push(&mut self, address: u64, text: &[u8], kind: Kind) {
        let Ok(name) = u32::try_from(self.names.len()) else {
            return;
        };
        // Names are shown on terminals.
        let graphic = text.iter().all(u8::is_ascii_graphic);
        if address == 0 || text.is_empty() || !graphic {
            return;
        }
        self.entries.push(Entry {
            address,
            name,
            kind,
        });
        self.names.extend_from_slice(text);
        self.names.push(0);
    }

    pub(super) fn sorted(mut self) -> Option<Self> {
        // Stable: of several names at an address the last one counts.
        self.entries.sort_by_key(|entry| entry.address);
        (!self.is_empty()).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_looked_up_by_the_symbol_before() {
        let text = b"ffffffff81000000 D _stext\nffffffff81000100 t do_one\n0000000000000000 A x\n";
        let table = SymbolTable::from_map(text).unwrap();
        assert_eq!(table.len(), 2);
        let found = |address| table.lookup(address).map(|s| (s.name, s.offset, s.kind));
        assert_eq!(
            found(0xffff_ffff_8100_0110),
            Some(("do_one", 0x10, Kind::Code))
        );
        assert_eq!(
            found(0xffff_ffff_8100_00ff),
            Some(("_stext", 0xff, Kind::Data))
        );
        assert_eq!(table.lookup(0xffff_ffff_80ff_ffff), None);
    }

    #[test]
    fn debians_placeholder_map_has_no_symbols() {
        let text = b"ffffffffffffffff B The real System.map is in the package\n";
        assert!(SymbolTable::from_map(text).is_none());
    }
}
