//! Writes `docs/reference` from the doc comments of the code.

use domus_tests::reference::{PAGES, Reference};
use std::{fs, path::Path};

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = root.join(PAGES);
    fs::create_dir_all(&dir)?;
    for (name, text) in Reference::of(&root).files() {
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}
