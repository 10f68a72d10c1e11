//! The pseudo-terminal that stands for a domain's console on the host.
//!
//! Law: the far end is kept open here too, so that it never hangs up while
//! people come and go, its raw mode stays, and what is written before anybody
//! looks is kept by the kernel up to its buffer.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::{
        stat::{Mode, fchmod},
        termios::{FlushArg, SetArg, cfmakeraw, tcflush, tcgetattr, tcsetattr},
    },
};

nix::ioctl_read_bad!(
    /// Bytes that the far end could read now.
    bytes_readable,
    libc::FIONREAD,
    libc::c_int
);

/// Both ends of a pty, raw.
#[derive(Debug)]
pub struct Pty {
    near: PtyMaster,
    far: File,
    path: PathBuf,
}

impl Pty {
    /// Makes one. Its device is for this user only, mode 0600.
    ///
    /// # Errors
    /// What the system gives.
    pub fn new() -> io::Result<Self> {
        let near =
            posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        grantpt(&near)?;
        unlockpt(&near)?;
        let path = PathBuf::from(ptsname_r(&near)?);
        let far = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)?;
        fchmod(&far, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mut mode = tcgetattr(&far)?;
        cfmakeraw(&mut mode);
        tcsetattr(&far, SetArg::TCSANOW, &mode)?;
        Ok(Self { near, far, path })
    }

    /// The device's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was typed: `None` when nothing is there now.
    ///
    /// # Errors
    /// What the system gives.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        unless_blocked(self.near.read(buf))
    }

    /// Shows bytes: how many were taken, `None` when there is no room now.
    ///
    /// # Errors
    /// What the system gives.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        unless_blocked(self.near.write(bytes))
    }

    /// Throws away what was shown and not read.
    pub fn forget_unread(&self) {
        let _ = tcflush(&self.far, FlushArg::TCIFLUSH);
    }

    /// Whether somebody could still read what was shown. The kernel carries
    /// bytes over a moment after they were written, so that "no" right after a
    /// write is not the last word.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        let mut count = 0;
        // SAFETY: FIONREAD writes one int to the address, which is one.
        let asked = unsafe { bytes_readable(self.far.as_raw_fd(), &raw mut count) };
        asked.is_ok() && count > 0
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.near.as_fd()
    }
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn it_is_raw_and_private() {
        let mut pty = Pty::new().unwrap();
        let mode = fs::metadata(pty.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let bytes = b"\x03\x04\n\r\x1a\xff\x00";
        assert_eq!(pty.write(bytes).unwrap(), Some(bytes.len()));
        let mut person = File::options()
            .read(true)
            .write(true)
            .open(pty.path())
            .unwrap();
        let mut buf = [0; 64];
        assert_eq!(person.read(&mut buf).unwrap(), bytes.len());
        assert_eq!(&buf[..bytes.len()], bytes);
        person.write_all(bytes).unwrap();
        assert_eq!(pty.read(&mut buf).unwrap(), Some(bytes.len()));
        assert_eq!(&buf[..bytes.len()], bytes);
    }

    #[test]
    fn people_come_and_go() {
        let mut pty = Pty::new().unwrap();
        for _ in 0..3 {
            drop(File::open(pty.path()).unwrap());
            assert_eq!(pty.read(&mut [0; 8]).unwrap(), None);
        }
        pty.write(b"x").unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while !pty.has_unread() {
            assert!(Instant::now() < end);
        }
        pty.forget_unread();
        assert!(!pty.has_unread());
    }

    #[test]
    fn nobody_reading_ends_in_no_room_not_in_an_error() {
        let mut pty = Pty::new().unwrap();
        let mut taken = 0;
        while let Some(count) = pty.write(&[b'x'; 4096]).unwrap() {
            taken += count;
            assert!(taken < 1 << 20);
        }
        assert!(taken > 0);
        pty.forget_unread();
        assert!(pty.write(b"x").unwrap().is_some());
    }
}
