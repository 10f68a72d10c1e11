//! The hypercall reference: `docs/reference`, made from the doc comments of the
//! code.
//!
//! A hypercall is one function in `hypervisor/src/hypercall/`; its doc comment is
//! its page. The comment has fixed sections ([`SECTIONS`]); numbers, structures
//! and offsets come from `guest-abi`. So neither can be out of step with the code
//! for long: `tests/tests/reference.rs` compares the pages with what this module
//! makes, and what they name with what the functions do.

mod abi;
mod page;
mod render;

pub use abi::{Abi, Constant, Field, Structure};
pub use page::{Operation, Page, SECTIONS};

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the hypercalls' functions are.
pub const CODE: &str = "hypervisor/src/hypercall";
/// Where their pages are.
pub const PAGES: &str = "docs/reference";

/// A table from hypercalls to functions, as `dispatch` has it.
pub struct Dispatcher {
    /// `HYPERVISOR_*`, module and function.
    pub served: Vec<(String, String, String)>,
    /// `HYPERVISOR_*` that an ordinary domain may not make.
    pub forbidden: Vec<String>,
}

/// All that the reference is made from.
pub struct Reference {
    /// Numbers and structures.
    pub abi: Abi,
    /// What the hypervisor serves.
    pub dispatcher: Dispatcher,
    /// A page each, in the order of numbers.
    pub pages: Vec<Page>,
}

/// The text of a file of the repository.
///
/// # Panics
/// If it can't be read.
#[must_use]
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Reference {
    /// Reads the sources of the repository at `root`.
    ///
    /// # Panics
    /// If a source can't be read, or does not have the shape that this module
    /// knows: the message says which.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        let abi = Abi::read(&root.join("guest-abi/src"));
        let dispatcher = Dispatcher::read(&root.join(CODE).join("mod.rs"));
        let mut pages: Vec<Page> = dispatcher
            .served
            .iter()
            .map(|(constant, module, function)| {
                let (number, name) = abi
                    .hypercall(constant)
                    .unwrap_or_else(|| panic!("guest-abi has no {constant}"));
                let file = root.join(CODE).join(format!("{module}.rs"));
                let doc = page::doc_of(&read(&file), function)
                    .unwrap_or_else(|| panic!("{}: no fn {function}", file.display()));
                Page::parse(number, name, module, &doc)
            })
            .collect();
        pages.sort_by_key(|page| page.number);
        Reference {
            abi,
            dispatcher,
            pages,
        }
    }

    /// Every file of the reference, with its content.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, String)> {
        let pages = self.pages.iter().map(|page| {
            let name = format!("{}.md", page.name);
            (PathBuf::from(name), render::page(&self.abi, page))
        });
        let index = (PathBuf::from("README.md"), render::index(self));
        pages.chain([index]).collect()
    }
}

impl Dispatcher {
    /// Reads the table: one `match` on the number.
    fn read(file: &Path) -> Self {
        let text = read(file);
        let body = table(&text).unwrap_or_else(|| panic!("{}: no {TABLE}", file.display()));
        let mut dispatcher = Dispatcher {
            served: Vec::new(),
            forbidden: Vec::new(),
        };
        for arm in body.split("HYPERVISOR_").skip(1) {
            let name: String = arm.chars().take_while(|c| is_word(*c)).collect();
            let constant = format!("HYPERVISOR_{name}");
            match arm.split_once("=>") {
                Some((_, answer))
                    if !answer
                        .trim_start_matches([' ', '\n', '{'])
                        .starts_with("Err(") =>
                {
                    let (module, function) = called(answer)
                        .unwrap_or_else(|| panic!("{}: {constant} calls nothing", file.display()));
                    dispatcher.served.push((constant, module, function));
                }
                _ => dispatcher.forbidden.push(constant),
            }
        }
        dispatcher
    }
}

/// How the table of hypercalls begins.
const TABLE: &str = "match number {";

/// The dispatcher's table of hypercalls, in its source.
#[must_use]
pub fn table(source: &str) -> Option<&str> {
    let (_, body) = source.split_once(TABLE)?;
    body.split("\n}\n").next()
}

/// The first `module::function(` of an arm. The grants' arm calls a function
/// beside the table, named after nothing.
fn called(answer: &str) -> Option<(String, String)> {
    if answer.trim_start().starts_with("grants(") {
        return Some(("grant_table_op".into(), "grant_table_op".into()));
    }
    let open = answer
        .match_indices('(')
        .map(|(at, _)| &answer[..at])
        .find(|before| before.contains("::") && before.ends_with(is_word))?;
    let path = open.rsplit(|c: char| !is_word(c) && c != ':').next()?;
    let (module, function) = path.rsplit_once("::")?;
    Some((module.to_owned(), function.to_owned()))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
