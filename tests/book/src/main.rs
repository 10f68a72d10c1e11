//! Builds the book: `docs/` and the pages beside it, as HTML.
//!
//! usage: `domus-book [DIRECTORY]` (default: `target/book`)
//!
//! The pages are written to be read in the repository: they link to each other
//! and to sources by relative paths. So what mdBook is given is a copy of the
//! repository with the pages only, under the same paths; links between pages lead
//! where they led before. A source that is linked becomes a page of its own. At
//! the end every link of the book is looked up in what was written.
//!
//! A page that `docs/SUMMARY.md` does not name, or names and is not there, and a
//! link that leads nowhere end this with an error.

mod check;
mod links;
mod stage;

use mdbook_driver::{
    MDBook,
    config::Config,
    errors::{Error, Result},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let out = std::env::args_os().nth(1);
    let out = out.map_or_else(|| root.join("target/book"), PathBuf::from);
    match build(&root, &out) {
        Ok(pages) => {
            println!("{pages} pages: {}", out.join("index.html").display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("domus-book: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the book of the repository at `root` into `out`; gives the number of
/// its pages.
fn build(root: &Path, out: &Path) -> Result<usize> {
    let root = root.canonicalize()?;
    fs::create_dir_all(out)?;
    let out = out.canonicalize()?;
    let stage = stage::Stage::of(&root)?;
    fail("docs/SUMMARY.md", &stage.problems)?;

    let copy = out.with_extension("stage");
    stage.write(&copy)?;
    let mut config = Config::from_str(&fs::read_to_string(root.join("docs/book.toml"))?)?;
    config.book.src = PathBuf::from(".");
    config.build.build_dir.clone_from(&out);
    let built = MDBook::load_with_config(&copy, config).and_then(|book| book.build());
    fs::remove_dir_all(&copy)?;
    built?;

    stage.write_sources(&root, &out)?;
    fail("the book", &check::broken_links(&out, &stage.pages)?)?;
    Ok(stage.pages.len())
}

fn fail(what: &str, problems: &[String]) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::msg(format!("{what}:\n  {}", problems.join("\n  "))))
}

#[cfg(test)]
mod tests;
