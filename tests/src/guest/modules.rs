//! The kernel's modules that tests load: front ends and a file system.
//!
//! ```text
//! /lib/modules/NAME.ko    a module
//! /lib/modules/NAME.dep   it and those that it needs, in the order to load
//! /sbin/load NAME         loads them
//! ```
//!
//! They are an archive of their own: the kernel unpacks several, one behind
//! the other. So a guest that needs none does not carry them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    PrepareError,
    cpio::{Archive, Entry},
    io_error,
};

/// Where they are in the kernel's package.
pub const PATTERNS: [&str; 7] = [
    "*/kernel/drivers/block/xen-blkfront.ko",
    "*/kernel/drivers/net/xen-netfront.ko",
    "*/kernel/fs/ext4/ext4.ko",
    "*/kernel/fs/jbd2/jbd2.ko",
    "*/kernel/fs/mbcache.ko",
    "*/kernel/crypto/crc32c_generic.ko",
    "*/kernel/lib/crc16.ko",
];
/// Rises when the archive changes, so that an old one is not used.
const ARCHIVE: &str = "modules-2.cpio";

const LOAD: &str = "#!/bin/sh
for name in $(cat \"/lib/modules/$1.dep\"); do
    grep -q \"^$(echo $name | tr - _) \" /proc/modules || insmod \"/lib/modules/$name.ko\" || exit 1
done
";

/// The archive, made if it is not there; `None` if the kernel has no modules
/// beside it.
pub fn prepare(dir: &Path, kernel: &Path) -> Result<Option<PathBuf>, PrepareError> {
    let Some(package) = kernel.ancestors().nth(2).map(|dir| dir.join("lib/modules")) else {
        return Ok(None);
    };
    if !package.starts_with(dir) || !package.is_dir() {
        return Ok(None);
    }
    let to = package.join(ARCHIVE);
    if !to.exists() {
        let fresh = to.with_extension("part");
        fs::write(&fresh, archive(&package)?).map_err(io_error(&fresh))?;
        fs::rename(&fresh, &to).map_err(io_error(&to))?;
    }
    Ok(Some(to))
}

/// An archive of all modules below a directory.
pub fn archive(dir: &Path) -> Result<Vec<u8>, PrepareError> {
    let mut modules = BTreeMap::new();
    collect(dir, &mut modules)?;
    Ok(pack(&modules))
}

fn collect(dir: &Path, into: &mut BTreeMap<String, Vec<u8>>) -> Result<(), PrepareError> {
    for entry in fs::read_dir(dir).map_err(io_error(dir))? {
        let path = entry.map_err(io_error(dir))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        if path.is_dir() {
            collect(&path, into)?;
        } else if let Some(name) = name.strip_suffix(".ko") {
            into.insert(name.into(), fs::read(&path).map_err(io_error(&path))?);
        }
    }
    Ok(())
}

fn pack(modules: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["lib", "lib/modules", "sbin"] {
        archive.add(directory, Entry::Directory);
    }
    for (name, bytes) in modules {
        let mut order = Vec::new();
        order_of(name, modules, &mut order);
        let text = order.join("\n");
        archive.add(&format!("lib/modules/{name}.ko"), Entry::File(0o644, bytes));
        let dep = Entry::File(0o644, text.as_bytes());
        archive.add(&format!("lib/modules/{name}.dep"), dep);
    }
    archive.add("sbin/load", Entry::File(0o755, LOAD.as_bytes()));
    archive.finish()
}

/// What a module needs, and then itself.
fn order_of(name: &str, modules: &BTreeMap<String, Vec<u8>>, order: &mut Vec<String>) {
    if order.iter().any(|known| known == name) {
        return;
    }
    // A dependency that is not here is part of the kernel.
    let Some(bytes) = modules.get(name) else {
        return;
    };
    for needed in depends(bytes) {
        order_of(&needed, modules, order);
    }
    order.push(name.into());
}

/// The names after `depends=` in a module's `.modinfo`, and those that it asks
/// for softly.
fn depends(module: &[u8]) -> Vec<String> {
    let after = |key: &[u8]| {
        let at = module.windows(key.len()).position(|window| window == key)?;
        let value = module[at + key.len()..].split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let hard = after(b"\0depends=").unwrap_or_default();
    let soft = after(b"\0softdep=pre: ").unwrap_or_default();
    let names = hard.split(',').chain(soft.split(' '));
    names
        .filter(|name| !name.is_empty())
        // An alias.
        .map(|name| match name {
            "crypto-crc32c" => "crc32c_generic",
            name => name,
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_first() {
        let module = |depends: &str| format!("ELF\0license=GPL\0depends={depends}\0x").into_bytes();
        let modules = BTreeMap::from([
            ("ext4".to_owned(), module("jbd2,mbcache,builtin")),
            ("jbd2".to_owned(), module("crc16")),
            ("mbcache".to_owned(), module("")),
            ("crc16".to_owned(), b"ELF\0depends=\0".to_vec()),
        ]);
        let mut order = Vec::new();
        order_of("ext4", &modules, &mut order);
        assert_eq!(order, ["crc16", "jbd2", "mbcache", "ext4"]);
    }
}
