//! The hypercall reference says what the code does.
//!
//! **Mechanism.** `docs/reference` is made from the doc comments of the functions
//! that serve hypercalls (`domus_tests::reference`).
//!
//! **Scenario.** The pages that are checked in are those that the code makes now.
//! Each number that the dispatcher knows has one, with all sections. Each
//! operation in the code is on the page, each error on the page is in the code
//! that the page names, and each error in the function's own file is on a page.
//!
//! **Limits.** Which of a function's errors comes when, no text search can tell.

use domus_tests::{
    reference::{CODE, PAGES, Page, Reference, SECTIONS, read, table},
    repository::root,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn reference() -> Reference {
    let reference = Reference::of(&root());
    assert!(reference.pages.len() > 20, "{}", reference.pages.len());
    reference
}

/// A source file without comments and tests.
fn code(path: &Path) -> String {
    let text = read(path);
    let text = text.split("\nmod tests").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The names in a text that begin so.
fn names<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|name| name.len() > prefix.len() && name.starts_with(prefix))
        .collect()
}

/// Errnos in a text of code.
fn errnos(text: &str) -> BTreeSet<&str> {
    let parts = text.split("Errno::").skip(1);
    parts
        .filter_map(|rest| {
            rest.split(|c: char| !c.is_ascii_alphanumeric())
                .next()
                .filter(|name| name.starts_with('E') && name.len() > 3)
        })
        .collect()
}

#[test]
fn the_pages_are_those_of_the_code() {
    let dir = root().join(PAGES);
    let made = reference().files();
    let mut wrong = Vec::new();
    for (name, text) in &made {
        if fs::read_to_string(dir.join(name)).ok().as_ref() != Some(text) {
            wrong.push(name.clone());
        }
    }
    let made: BTreeSet<_> = made.into_iter().map(|(name, _)| name).collect();
    let there = fs::read_dir(&dir).expect(PAGES);
    let there = there.map(|entry| PathBuf::from(entry.expect("an entry").file_name()));
    wrong.extend(there.filter(|name| !made.contains(name)));
    assert!(
        wrong.is_empty(),
        "{wrong:?} in {PAGES}: run cargo run -p domus-tests --bin hypercall-reference"
    );
}

#[test]
fn each_hypercall_that_is_served_has_a_whole_page() {
    let reference = reference();
    let mut wrong = Vec::new();
    for page in &reference.pages {
        let titles: Vec<&str> = page.sections.iter().map(|(title, _)| &**title).collect();
        let expected: Vec<&str> = SECTIONS
            .into_iter()
            .filter(|title| *title != "Operations" || !page.operations.is_empty())
            .collect();
        if titles != expected {
            wrong.push(format!("{}: {titles:?}, not {expected:?}", page.name));
        }
        if page.sections.iter().any(|(_, text)| text.is_empty()) {
            wrong.push(format!("{}: an empty section", page.name));
        }
        let call = format!("HYPERVISOR_{}(", page.name);
        if !page.summary.starts_with(&format!("`{call}")) {
            wrong.push(format!("{}: does not begin with {call}", page.name));
        }
        if page.sources("Xen").is_empty() {
            wrong.push(format!("{}: no header of Xen's", page.name));
        }
    }
    // The dispatcher's numbers are guest-abi's, each once.
    let numbers: BTreeSet<u64> = reference.pages.iter().map(|page| page.number).collect();
    assert_eq!(numbers.len(), reference.dispatcher.served.len());
    let dispatcher = code(&root().join(CODE).join("mod.rs"));
    let known = names(table(&dispatcher).expect("a table"), "HYPERVISOR_");
    let listed = reference.dispatcher.served.iter().map(|(name, ..)| name);
    let listed: BTreeSet<&str> = listed
        .chain(&reference.dispatcher.forbidden)
        .map(String::as_str)
        .collect();
    assert_eq!(known, listed);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The beginning that the names of a hypercall's operations share.
fn common_prefix(page: &Page) -> String {
    let mut names = page.operations.iter().map(|operation| &*operation.constant);
    let mut prefix = names.next().unwrap_or_default().to_owned();
    for name in names {
        while !name.starts_with(&prefix) {
            prefix.pop();
        }
    }
    let end = prefix.rfind('_').map_or(0, |at| at + 1);
    prefix.truncate(end);
    prefix
}

#[test]
fn each_operation_in_the_code_is_on_the_page() {
    let reference = reference();
    let mut wrong = Vec::new();
    for page in reference.pages.iter().filter(|p| !p.operations.is_empty()) {
        let code = code(&root().join(CODE).join(format!("{}.rs", page.module)));
        let prefix = common_prefix(page);
        assert!(prefix.len() > 3, "{}: {prefix:?}", page.name);
        let in_code: BTreeSet<&str> = names(&code, &prefix)
            .into_iter()
            .filter(|name| !name.ends_with("_MASK"))
            .collect();
        let on_page: BTreeSet<&str> = page.operations.iter().map(|o| &*o.constant).collect();
        for name in in_code.symmetric_difference(&on_page) {
            wrong.push(format!("{}: {name} is on one side only", page.name));
        }
        for operation in &page.operations {
            if reference.abi.constant(&operation.constant).is_none() {
                wrong.push(format!("guest-abi has no {}", operation.constant));
            }
            let structure = operation.structure.as_deref();
            if structure.is_some_and(|name| reference.abi.structure(name).is_none()) {
                wrong.push(format!("guest-abi has no structure {structure:?}"));
            }
            if !operation.text.contains("Errors: ") && !operation.text.contains("Status: ") {
                wrong.push(format!("{}: no word of its errors", operation.constant));
            }
        }
        let numbers = page.operations.iter().map(|operation| {
            let constant = reference.abi.constant(&operation.constant);
            constant.and_then(|constant| constant.value.parse::<u32>().ok())
        });
        assert!(numbers.is_sorted(), "{}: not in order", page.name);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_error_on_a_page_is_in_the_code_and_the_reverse() {
    let root = root();
    let reference = reference();
    let own = |page: &Page| root.join(CODE).join(format!("{}.rs", page.module));
    let mut wrong = Vec::new();
    for page in &reference.pages {
        let here = page.sources("Here");
        let files = here
            .iter()
            .map(|file| root.join("hypervisor/src").join(file));
        let mut text: String = files.map(|file| code(&file)).collect();
        let own = code(&own(page));
        text.push_str(&own);
        let mut possible = errnos(&text);
        // What the helpers of the module give.
        if own.contains("own_domain(") {
            possible.insert("EPERM");
        }
        if own.contains(".read_") || own.contains(".write_") || own.contains("guest_access") {
            possible.insert("EFAULT");
        }
        let statuses = names(&text, "GNTST_");
        for error in page.errors() {
            if !possible.contains(error) && !statuses.contains(error) {
                wrong.push(format!(
                    "{}: nothing that it names gives {error}",
                    page.name
                ));
            }
        }
    }
    let modules: BTreeSet<&str> = reference.pages.iter().map(|page| &*page.module).collect();
    for module in modules {
        let pages: Vec<&Page> = reference
            .pages
            .iter()
            .filter(|p| p.module == module)
            .collect();
        let named: BTreeSet<&str> = pages.iter().flat_map(|page| page.errors()).collect();
        let text = code(&own(pages[0]));
        for errno in errnos(&text) {
            if !named.contains(errno) && errno != "ERESTART" {
                wrong.push(format!("{module}.rs gives {errno}: no page of it says so"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
