//! What mdBook is given: the pages, under the paths that they have in the
//! repository.

use crate::links;
use mdbook_driver::errors::Result;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The book's pages and what they link.
pub struct Stage {
    /// The pages, by their paths in the repository.
    pub pages: BTreeMap<PathBuf, String>,
    /// Sources that pages link.
    sources: BTreeSet<PathBuf>,
    /// The table of contents, as mdBook reads it.
    summary: String,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

impl Stage {
    /// Reads what `docs/SUMMARY.md` names.
    pub fn of(root: &Path) -> Result<Self> {
        let contents = Path::new("docs/SUMMARY.md");
        let text = fs::read_to_string(root.join(contents))?;
        let mut stage = Stage {
            pages: BTreeMap::new(),
            sources: BTreeSet::new(),
            summary: String::new(),
            problems: Vec::new(),
        };
        for target in links::files(&text) {
            let Some(path) = links::resolve(contents, &target) else {
                stage.problems.push(format!("{target} is no page of ours"));
                continue;
            };
            match fs::read_to_string(root.join(&path)) {
                Ok(page) if !stage.pages.contains_key(&path) => {
                    stage.pages.insert(path, page);
                }
                Ok(_) => stage.problems.push(format!("{target} stands there twice")),
                Err(error) => stage.problems.push(format!("{target}: {error}")),
            }
        }
        stage.summary = links::replace(&text, |target| {
            Some(links::resolve(contents, target)?.display().to_string())
        });
        stage.find_forgotten(root, Path::new("docs"))?;
        stage.follow_links(root);
        Ok(stage)
    }

    /// Pages in `docs/` that the table of contents does not name.
    fn find_forgotten(&mut self, root: &Path, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(root.join(dir))? {
            let path = dir.join(entry?.file_name());
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if root.join(&path).is_dir() {
                if name != "target" && !name.starts_with('.') {
                    self.find_forgotten(root, &path)?;
                }
            } else if name.ends_with(".md")
                && name != "SUMMARY.md"
                && !self.pages.contains_key(&path)
            {
                self.problems.push(format!("{} is missing", path.display()));
            }
        }
        Ok(())
    }

    /// Makes links to sources lead to their pages in the book, and takes away
    /// those to directories, which have none.
    fn follow_links(&mut self, root: &Path) {
        let pages = std::mem::take(&mut self.pages);
        let names: BTreeSet<PathBuf> = pages.keys().cloned().collect();
        for (path, text) in pages {
            let text = links::replace(&text, |target| {
                let file = target.split('#').next().unwrap_or(target);
                if file.is_empty() || links::is_address(target) {
                    return None;
                }
                let to = links::resolve(&path, file)?;
                if names.contains(&to) {
                    return None;
                }
                if root.join(&to).is_dir() {
                    return Some(String::new());
                }
                // A page beside docs/ that the book leaves out is shown as it is.
                let ours = to.starts_with("docs") || !root.join(&to).exists();
                if ours && to.extension().is_some_and(|extension| extension == "md") {
                    let problem = format!("{} links {file}, which is missing", path.display());
                    self.problems.push(problem);
                    return None;
                }
                self.sources.insert(to);
                let anchor = target.strip_prefix(file).unwrap_or_default();
                Some(format!("{}{anchor}", page_of(file)))
            });
            self.pages.insert(path, without_empty_links(&text));
        }
    }

    /// Writes the copy for mdBook.
    pub fn write(&self, dir: &Path) -> Result<()> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        for (path, text) in &self.pages {
            put(&dir.join(path), text)?;
        }
        put(&dir.join("SUMMARY.md"), &self.summary)
    }

    /// Writes a page for each source that is linked.
    pub fn write_sources(&self, root: &Path, out: &Path) -> Result<()> {
        for path in &self.sources {
            let name = path.display();
            let Ok(text) = fs::read_to_string(root.join(path)) else {
                continue;
            };
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            let page = format!(
                "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<title>{name}</title>\n\
                 <h1>{name}</h1>\n<pre>{text}</pre>\n"
            );
            put(&out.join(page_of(&name.to_string())), &page)?;
        }
        Ok(())
    }
}

/// The page of a source. (`X.md.html` would be taken for a page of the book.)
fn page_of(source: &str) -> String {
    match source.strip_suffix(".md") {
        Some(name) => format!("{name}-md.html"),
        None => format!("{source}.html"),
    }
}

/// `[text]()` is `text`.
fn without_empty_links(text: &str) -> String {
    let mut text = text.to_owned();
    while let Some(end) = text.find("]()") {
        let start = text[..end].rfind('[').unwrap_or(end);
        let inner = text[start..end].trim_start_matches('[').to_owned();
        text.replace_range(start..end + 3, &inner);
    }
    text
}

fn put(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    Ok(fs::write(path, text)?)
}
