//! The book is true where a program can tell.
//!
//! **Mechanism.** Markdown files name other files, headings, sources and tests.
//! Names go stale when what they name moves.
//!
//! **Scenario.** All `*.md` files of the repository: each relative link leads to
//! a file, and its anchor to a heading; each source file that is named in code
//! font is there; each test that `SPECIFICATION.md` names is a test; the index of
//! the book lists every page; a name that is given with its type (`Type::name`) is
//! one of the sources'.
//!
//! **Limits.** That a sentence is true no program can tell.

use domus_tests::repository::{files, root};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Where a path in code font may begin.
const BASES: [&str; 6] = [
    "",
    "guest-abi",
    "hypervisor/src",
    "hypervisor/src/interp",
    "dom0-tools/src",
    "dom0-tools/src/xenstore",
];

/// A page, without its code blocks.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let all = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut fenced = false;
        let mut text = String::new();
        for line in all.lines() {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            if !fenced && !fence && !line.starts_with("    ") {
                text.push_str(line);
                text.push('\n');
            }
        }
        Page { path, text }
    }

    fn dir(&self) -> &Path {
        self.path.parent().expect("a page lies somewhere")
    }

    /// What stands in code font.
    fn code_spans(&self) -> impl Iterator<Item = &str> {
        self.text.split('`').skip(1).step_by(2)
    }

    /// Targets of links.
    fn links(&self) -> impl Iterator<Item = &str> {
        self.text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
    }

    /// The anchors of its headings, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.text.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| {
                let title = line.trim_start_matches('#').trim().to_lowercase();
                let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
                title
                    .chars()
                    .filter(kept)
                    .collect::<String>()
                    .replace(' ', "-")
            })
            .collect()
    }
}

fn pages() -> Vec<Page> {
    let pages: Vec<_> = files(".md").into_iter().map(Page::read).collect();
    assert!(pages.len() > 10, "only {} pages found", pages.len());
    pages
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        for link in page.links() {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = page.dir().join(file);
            let target = if file.is_empty() { &page.path } else { &target };
            let found = target.exists()
                && (anchor.is_empty() || Page::read(target.clone()).anchors().contains(anchor));
            if !found {
                broken.push(format!("{}: {link}", page.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn sources_that_are_named_are_there() {
    let root = root();
    let mut missing = Vec::new();
    for page in pages() {
        for span in page.code_spans() {
            let path = span.split("::").next().unwrap_or(span);
            let plain = path
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
            if !plain || !path.contains('/') || !path.ends_with(".rs") {
                continue;
            }
            let there = |base: &&str| root.join(base).join(path).exists();
            if !BASES.iter().any(there) && !page.dir().join(path).exists() {
                missing.push(format!("{}: {path}", page.path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// `Type::name` in code font or in a picture, in the book.
#[test]
fn names_that_are_given_with_their_type_are_there() {
    let mut sources = Vec::new();
    let root = root();
    for dir in ["guest-abi", "hypervisor", "dom0-tools", "tests"] {
        collect_sources(&root.join(dir), &mut sources);
    }
    let sources = sources.concat();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let known: BTreeSet<&str> = sources.split(|c| !word(c)).collect();
    let mut missing = BTreeSet::new();
    let mut looked_at = 0;
    for page in pages()
        .iter()
        .filter(|page| page.path.starts_with(root.join("docs")))
    {
        let text = fs::read_to_string(&page.path).expect("a page");
        for path in text.split(|c| !word(c) && c != ':') {
            let parts: Vec<&str> = path.trim_matches(':').split("::").collect();
            let typed = parts.len() > 1
                && parts[0].starts_with(|c: char| c.is_ascii_uppercase())
                && parts
                    .iter()
                    .all(|part| !part.is_empty() && part.chars().all(word));
            if !typed {
                continue;
            }
            looked_at += 1;
            if !parts.iter().all(|part| known.contains(part)) {
                missing.insert(format!("{}: {path}", page.path.display()));
            }
        }
    }
    assert!(looked_at > 100, "{looked_at} names found");
    assert!(missing.is_empty(), "{missing:#?}");
}

fn collect_sources(dir: &Path, sources: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() && !path.ends_with("target") {
            collect_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(fs::read_to_string(&path).unwrap_or_default());
        }
    }
}

/// One row of a table of promises.
struct Promise {
    number: String,
    tests: Vec<(String, String)>,
    none: bool,
}

fn promises() -> Vec<Promise> {
    let text = fs::read_to_string(root().join("SPECIFICATION.md")).expect("SPECIFICATION.md");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let numbered = |cell: &str| {
            let (area, n) = cell.split_once('-').unwrap_or(("", ""));
            area.len() == 3 && !n.is_empty() && n.chars().all(|c| c.is_ascii_digit())
        };
        (cells.len() == 3 && numbered(cells[0])).then_some(cells)
    });
    rows.map(|cells| Promise {
        number: cells[0].to_owned(),
        tests: cells[2]
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|test| {
                let (file, name) = test.split_once("::").unwrap_or((test, ""));
                (file.to_owned(), name.to_owned())
            })
            .collect(),
        none: cells[2].contains("no test"),
    })
    .collect()
}

/// Whether the file, wherever its path begins, has a test of this name.
fn has_test(root: &Path, file: &str, name: &str) -> bool {
    let paths = BASES.map(|base| root.join(base).join(file));
    let text: String = paths
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let start = format!("fn {name}(");
    lines.iter().enumerate().any(|(n, line)| {
        line.starts_with(&start) && lines[n.saturating_sub(4)..n].contains(&"#[test]")
    })
}

#[test]
fn each_promise_names_a_test_that_exists_or_says_that_it_has_none() {
    let root = root();
    let promises = promises();
    assert!(
        promises.len() > 30,
        "only {} promises found",
        promises.len()
    );
    let mut numbers = BTreeSet::new();
    let mut wrong = Vec::new();
    for promise in &promises {
        if !numbers.insert(&promise.number) {
            wrong.push(format!("{} stands there twice", promise.number));
        }
        if promise.tests.is_empty() != promise.none {
            wrong.push(format!("{}: a test, or \"no test\"", promise.number));
        }
        for (file, name) in &promise.tests {
            if !has_test(&root, file, name) {
                wrong.push(format!("{}: no test {name} in {file}", promise.number));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `tests/book` checks that the table of contents is whole; this, that it is the
/// same book as the index.
#[test]
fn the_contents_and_the_index_name_the_same_pages() {
    let pages = |name: &str| -> BTreeSet<String> {
        let page = Page::read(root().join("docs").join(name));
        let ours = page.links().filter(|link| !link.starts_with("reference/"));
        let ours = ours.filter(|link| !link.starts_with("../guest-"));
        ours.filter(|link| *link != "README.md" && *link != "../README.md")
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(pages("SUMMARY.md"), pages("README.md"));
}

#[test]
fn the_index_lists_every_page() {
    let index = Page::read(root().join("docs/README.md"));
    let listed: BTreeSet<&str> = index.links().collect();
    let entries = fs::read_dir(root().join("docs")).expect("docs");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let missing: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".md") && name != "README.md" && name != "SUMMARY.md")
        .filter(|name| !listed.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "not in docs/README.md: {missing:?}");
}
