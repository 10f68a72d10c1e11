//! The links of the book as it was written.

use crate::links;
use mdbook_driver::errors::Result;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Links of these pages that lead nowhere in `out`.
pub fn broken_links(out: &Path, pages: &BTreeMap<PathBuf, String>) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for page in pages.keys() {
        let page = page.with_extension("html");
        let html = fs::read_to_string(out.join(&page))?;
        for target in attributes(&html, "href") {
            if !leads_somewhere(out, &page, &html, target) {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    Ok(broken)
}

fn leads_somewhere(out: &Path, page: &Path, html: &str, target: &str) -> bool {
    if links::is_address(target) || target.starts_with("javascript:") {
        return true;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let found = |html: &str| anchor.is_empty() || attributes(html, "id").any(|id| id == anchor);
    if file.is_empty() {
        return found(html);
    }
    let Some(path) = links::resolve(page, file) else {
        return false;
    };
    match fs::read_to_string(out.join(&path)) {
        Ok(html) => found(&html),
        Err(_) => anchor.is_empty() && out.join(&path).exists(),
    }
}

/// The values of an attribute.
fn attributes<'a>(html: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let mark = format!(" {name}=\"");
    let parts: Vec<&str> = html.split(&*mark).skip(1).collect();
    parts.into_iter().filter_map(|rest| rest.split('"').next())
}
