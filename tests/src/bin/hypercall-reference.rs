//! Writes `docs/reference` from the doc comments of the code.

use domus_tests::{
    reference::{PAGES, Reference},
    repository::root,
};
use std::fs;

fn main() -> std::io::Result<()> {
    let root = root();
    let dir = root.join(PAGES);
    fs::create_dir_all(&dir)?;
    for (name, text) in Reference::of(&root).files() {
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}
