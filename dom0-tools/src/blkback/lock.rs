//! Who may use an image at the same time: QEMU's rules and QEMU's bytes, so
//! that `qemu-img` and QEMU itself are kept away too, and keep us away.
//!
//! ```text
//! byte 100 + P   somebody uses permission P     (a shared lock each)
//! byte 200 + P   somebody forbids others P
//! P: 0 read consistently, 1 write, 3 resize
//! ```
//!
//! A writer forbids others to write; a reader too. The locks are "open file
//! description" locks on the file itself: they belong to this process's open
//! file and vanish when the last thread that could still write has ended.

use std::{fs::File, io, os::fd::AsRawFd};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

const USED: i64 = 100;
const FORBIDDEN: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks an image for as long as `file` is open; `false` if somebody is in
/// the way, and then nothing is locked.
///
/// # Errors
/// What the system gives; a file system without locks is no error.
pub fn lock(file: &File, write: bool) -> io::Result<bool> {
    let (uses, forbids): (&[i64], &[i64]) = match write {
        true => (&[READ, WRITE], &[WRITE, RESIZE]),
        false => (&[READ], &[WRITE, RESIZE]),
    };
    let ours = uses.iter().map(|bit| USED + bit);
    let ours = ours.chain(forbids.iter().map(|bit| FORBIDDEN + bit));
    for byte in ours {
        match set(file, libc::F_RDLCK, byte) {
            Ok(()) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOLCK) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => return give_up(file),
            Err(errno) => return Err(errno.into()),
        }
    }
    // Only then look at the others: of two that come at once, at least one
    // sees the other.
    let theirs = uses.iter().map(|bit| FORBIDDEN + bit);
    for byte in theirs.chain(forbids.iter().map(|bit| USED + bit)) {
        if is_locked_by_others(file, byte)? {
            return give_up(file);
        }
    }
    Ok(true)
}

fn give_up(file: &File) -> io::Result<bool> {
    let all = region(libc::F_UNLCK, 0, 0);
    fcntl(file, FcntlArg::F_OFD_SETLK(&all))?;
    Ok(false)
}

fn set(file: &File, kind: i32, byte: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&region(kind, byte, 1))).map(drop)
}

fn is_locked_by_others(file: &File, byte: i64) -> io::Result<bool> {
    let mut probe = region(libc::F_WRLCK, byte, 1);
    // SAFETY: the descriptor is open, and `probe` is a flock that the call
    // fills.
    let outcome = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut probe) };
    Errno::result(outcome)?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
}

fn region(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0, // SEEK_SET
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn one_writer_or_many_readers() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).open(image.path()).unwrap()
        };
        let (a, b, c) = (open(), open(), open());
        assert!(lock(&a, true).unwrap());
        assert!(!lock(&b, true).unwrap());
        assert!(!lock(&b, false).unwrap());
        drop(a);
        assert!(lock(&b, false).unwrap());
        assert!(lock(&c, false).unwrap());
        let d = open();
        assert!(!lock(&d, true).unwrap());
        drop((b, c));
        assert!(lock(&d, true).unwrap());
    }

    #[test]
    fn qemu_is_kept_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create_new(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.unwrap();
        assert!(lock(&file, true).unwrap());
        let info = std::process::Command::new("qemu-img")
            .args(["resize", "-f", "raw"])
            .arg(&path)
            .arg("2M")
            .output();
        // Only where the program is: the bytes are checked above.
        if let Ok(info) = info {
            assert!(!info.status.success());
            assert!(String::from_utf8_lossy(&info.stderr).contains("lock"));
        }
    }
}
