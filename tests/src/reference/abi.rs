//! What the reference needs of `guest-abi`: constants, and structures with their
//! offsets, read from the sources.

use super::{is_word, read};
use std::{collections::BTreeMap, fs, path::Path};

/// A constant.
#[derive(Debug, Clone)]
pub struct Constant {
    /// Its value as the source has it.
    pub value: String,
    /// The module that it is in.
    pub module: String,
}

/// A structure of `layout!`.
#[derive(Debug, Clone, Default)]
pub struct Structure {
    /// What it is for.
    pub doc: String,
    /// Bytes.
    pub size: u64,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// A field.
#[derive(Debug, Clone)]
pub struct Field {
    /// Byte offset.
    pub offset: u64,
    /// Its name.
    pub name: String,
    /// Its Rust type.
    pub kind: String,
    /// What it holds.
    pub doc: String,
}

/// Constants and structures by name.
#[derive(Debug, Default)]
pub struct Abi {
    constants: BTreeMap<String, Constant>,
    structures: BTreeMap<String, Structure>,
    hypercalls: BTreeMap<String, (u64, String)>,
}

impl Abi {
    /// Reads the crate's sources.
    ///
    /// # Panics
    /// If they can't be read.
    #[must_use]
    pub fn read(dir: &Path) -> Self {
        let mut abi = Abi::default();
        let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for path in entries.map(|entry| entry.expect("a directory entry").path()) {
            if path.extension().is_some_and(|extension| extension == "rs") {
                let module = path.file_stem().expect("a file has a name");
                abi.take(&module.to_string_lossy(), &read(&path));
            }
        }
        abi
    }

    /// A constant.
    #[must_use]
    pub fn constant(&self, name: &str) -> Option<&Constant> {
        self.constants.get(name)
    }

    /// A structure.
    #[must_use]
    pub fn structure(&self, name: &str) -> Option<&Structure> {
        self.structures.get(name)
    }

    /// Number and Xen's name of a `HYPERVISOR_*`.
    #[must_use]
    pub fn hypercall(&self, constant: &str) -> Option<(u64, &str)> {
        let (number, name) = self.hypercalls.get(constant)?;
        Some((*number, name))
    }

    /// All hypercalls: constant, number, Xen's name; in the order of numbers.
    #[must_use]
    pub fn hypercalls(&self) -> Vec<(&str, u64, &str)> {
        let all = self.hypercalls.iter();
        let mut all: Vec<_> = all.map(|(c, (n, name))| (&**c, *n, &**name)).collect();
        all.sort_by_key(|(_, number, _)| *number);
        all
    }

    fn take(&mut self, module: &str, text: &str) {
        let mut doc = String::new();
        let mut open: Option<(String, Structure)> = None;
        for line in text.lines().map(str::trim) {
            if let Some(more) = line.strip_prefix("///") {
                if !doc.is_empty() {
                    doc.push(' ');
                }
                doc.push_str(more.trim());
                continue;
            }
            let said = std::mem::take(&mut doc);
            if let Some((name, number, xen)) = hypercall(line) {
                self.hypercalls.insert(name, (number, xen));
            } else if let Some((name, value)) = constant(line) {
                let module = module.to_owned();
                self.constants.insert(name, Constant { value, module });
            } else if let Some((name, size)) = structure(line) {
                let fields = Vec::new();
                let doc = said;
                open = Some((name, Structure { doc, size, fields }));
            } else if let Some((_, structure)) = &mut open
                && let Some(field) = field(line, said)
            {
                structure.fields.push(field);
            } else if line == "}"
                && let Some((name, structure)) = open.take()
            {
                self.structures.insert(name, structure);
            }
        }
    }
}

/// `HYPERVISOR_SCHED_OP = 29, "sched_op";`
fn hypercall(line: &str) -> Option<(String, u64, String)> {
    let (name, rest) = line.split_once(" = ")?;
    let (number, rest) = rest.split_once(", \"")?;
    let xen = rest.strip_suffix("\";")?;
    let known = name.starts_with("HYPERVISOR_");
    known.then_some((name.to_owned(), number.parse().ok()?, xen.to_owned()))
}

/// `pub const SCHEDOP_YIELD: u32 = 0;`
fn constant(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.strip_prefix("pub const ")?.split_once(": ")?;
    let (_, value) = rest.strip_suffix(';')?.split_once(" = ")?;
    Some((name.to_owned(), value.to_owned()))
}

/// `struct SchedPoll [24] {`
fn structure(line: &str) -> Option<(String, u64)> {
    let (name, rest) = line.strip_prefix("struct ")?.split_once(" [")?;
    let size = rest.strip_suffix("] {")?.parse().ok()?;
    Some((name.to_owned(), size))
}

/// `8 => nr_ports: u32,`
fn field(line: &str, doc: String) -> Option<Field> {
    let (offset, rest) = line.split_once(" => ")?;
    let (name, kind) = rest.strip_suffix(',')?.split_once(": ")?;
    name.chars().all(is_word).then_some(Field {
        offset: offset.parse().ok()?,
        name: name.to_owned(),
        kind: kind.to_owned(),
        doc,
    })
}
