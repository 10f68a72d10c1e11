//! A writer of initramfs archives: cpio's "newc" format, as the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` has it.
//!
//! Written here because device nodes then need no root, and because the result
//! is the same byte for byte wherever it is made.

const MAGIC: &str = "070701";
const END: &str = "TRAILER!!!";

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// A directory.
    Directory,
    /// A file with its permission bits and content.
    File(u32, &'a [u8]),
    /// A symbolic link to a path.
    Link(&'a str),
    /// A character device: major and minor.
    Device(u32, u32),
}

/// An archive that grows.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an entry; its directory has to be there already.
    pub fn add(&mut self, path: &str, entry: Entry<'_>) {
        let (mode, content, device): (u32, &[u8], (u32, u32)) = match entry {
            Entry::Directory => (0o040_755, &[], (0, 0)),
            Entry::File(mode, content) => (0o100_000 | mode, content, (0, 0)),
            Entry::Link(to) => (0o120_777, to.as_bytes(), (0, 0)),
            Entry::Device(major, minor) => (0o020_600, &[], (major, minor)),
        };
        self.entries += 1;
        self.put(path, self.entries, mode, device, content);
    }

    /// The whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.put(END, 0, 0, (0, 0), &[]);
        self.bytes
    }

    fn put(&mut self, path: &str, inode: u32, mode: u32, device: (u32, u32), content: &[u8]) {
        let size = u32::try_from(content.len()).expect("no file of an initramfs has 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("a path");
        self.bytes.extend(MAGIC.as_bytes());
        // ino, mode, uid, gid, nlink, mtime, size, device of the file system,
        // device of the node, length of the name, checksum
        let fields = [
            inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0,
        ];
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The content of a file of an archive.
#[must_use]
pub fn find<'a>(archive: &'a [u8], path: &str) -> Option<&'a [u8]> {
    let name = format!("{path}\0");
    let mut windows = archive.windows(name.len());
    let at = windows.position(|window| window == name.as_bytes())?;
    // The size is the seventh of the fields of 8 digits behind the magic.
    let header = archive.get(at.checked_sub(110)?..at)?;
    let size = std::str::from_utf8(&header[6 + 6 * 8..6 + 7 * 8]).ok()?;
    let size = usize::from_str_radix(size, 16).ok()?;
    // Entries are padded from the archive's start, which is aligned.
    let start = (at + name.len()).next_multiple_of(4);
    archive.get(start..start + size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.add("init", Entry::File(0o755, b"hello"));
        archive.add("dev/console", Entry::Device(5, 1));
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000081ed0000000000000000000000010000000000000005"));
        // Header and name: 110 + 5 bytes, padded to 116; content padded to 8.
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert!(text[124..].starts_with("07070100000002000021800000"));
        assert!(text[124..234].ends_with("00000005000000010000000c00000000"));
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(find(&bytes, "init"), Some(&b"hello"[..]));
        assert!(text.contains(END));
    }
}
