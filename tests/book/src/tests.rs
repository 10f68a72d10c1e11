//! A book with each mistake is refused, and the message names it.

use super::*;
use std::fs;

/// A repository with these files, and the result of building its book.
fn book_of(name: &str, files: &[(&str, &str)]) -> (PathBuf, Result<usize>) {
    let dir = std::env::temp_dir().join(format!("domus-book-{}-{name}", std::process::id()));
    let root = dir.join("root");
    let config = ("docs/book.toml", include_str!("../../../docs/book.toml"));
    for (path, text) in files.iter().chain([&config]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let out = dir.join("out");
    let built = build(&root, &out);
    (out, built)
}

fn refusal(name: &str, files: &[(&str, &str)]) -> String {
    let (out, built) = book_of(name, files);
    fs::remove_dir_all(out.parent().unwrap()).unwrap();
    format!("{:#}", built.expect_err("a mistake"))
}

#[test]
fn pages_sources_and_anchors_are_found() {
    let files = [
        ("docs/SUMMARY.md", "# S\n\n- [A](a.md)\n- [P](../P.md)\n"),
        (
            "docs/a.md",
            "# A\n\n[P](../P.md#a-part), [s](../src/x.rs), [dir](../src), [m](../src/M.md)\n",
        ),
        (
            "P.md",
            "# P\n\n## A part\n\n[A](docs/a.md), `[no](link)`\n\n    [nor](this)\n",
        ),
        ("src/x.rs", "fn a<T>() {}\n"),
        ("src/M.md", "# M\n"),
    ];
    let (out, built) = book_of("good", &files);
    assert_eq!(built.unwrap(), 2);
    let page = fs::read_to_string(out.join("docs/a.html")).unwrap();
    assert!(page.contains("href=\"../P.html#a-part\""), "{page}");
    assert!(page.contains("href=\"../src/x.rs.html\""), "{page}");
    assert!(page.contains("href=\"../src/M-md.html\""), "{page}");
    let source = fs::read_to_string(out.join("src/x.rs.html")).unwrap();
    assert!(source.contains("fn a&lt;T>() {}"), "{source}");
    fs::remove_dir_all(out.parent().unwrap()).unwrap();
}

#[test]
fn mistakes_are_named() {
    let summary = ("docs/SUMMARY.md", "# S\n\n- [A](a.md)\n");
    let forgotten = [summary, ("docs/a.md", "# A\n"), ("docs/b.md", "# B\n")];
    assert!(refusal("forgotten", &forgotten).contains("docs/b.md is missing"));
    assert!(refusal("absent", &[summary]).contains("a.md: No such file"));
    let anchor = [summary, ("docs/a.md", "# A\n\n[x](#nowhere)\n")];
    assert!(refusal("anchor", &anchor).contains("docs/a.html: #nowhere"));
    let source = [summary, ("docs/a.md", "# A\n\n[x](../src/gone.rs)\n")];
    assert!(refusal("source", &source).contains("docs/a.html: ../src/gone.rs.html"));
    let page = [summary, ("docs/a.md", "# A\n\n[x](../gone.md)\n")];
    assert!(refusal("page", &page).contains("links ../gone.md, which is missing"));
}
