//! A tap device: an interface of the host's whose other end is a descriptor.
//!
//! Law: the device lives as long as a descriptor of it is open. So a back end
//! that is killed leaves none behind, and the next one makes it anew.
//!
//! Each packet has a [`VnetHeader`] in front. With it, checksums and the
//! cutting of large TCP packets are left to whoever comes last: between two
//! guests on one bridge nobody does either.

use std::{
    ffi::c_int,
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use zerocopy::{FromZeros, IntoBytes};

use super::{
    link,
    offload::{Checksum, Offload, VnetHeader},
    packet::Transport,
    wire::{Sent, Wire},
};

const DEVICE: &str = "/dev/net/tun";

const TUN_F_CSUM: c_int = 1;
const TUN_F_TSO4: c_int = 2;
const TUN_F_TSO6: c_int = 4;

mod call {
    //! The requests of `linux/if_tun.h`.
    #![allow(missing_docs)] // the macros take no comments
    use std::ffi::c_int;

    nix::ioctl_write_ptr_bad!(
        set_iff,
        nix::request_code_write!(b'T', 202, size_of::<c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int!(set_offload, b'T', 208);
    nix::ioctl_write_ptr!(set_vnet_header_size, b'T', 216, c_int);
    nix::ioctl_write_ptr!(set_carrier, b'T', 226, c_int);
}

/// Why there is no tap device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host has no such devices.
    #[error("cannot open {DEVICE}: {0}; load the module with `modprobe tun`, or use mode=user")]
    Missing(io::Error),
    /// No privilege.
    #[error(
        "cannot make the interface {name}: {source}; that needs CAP_NET_ADMIN: run as root, or \
         use mode=user, which needs no privilege"
    )]
    Forbidden {
        /// Its name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// The name is taken.
    #[error(
        "cannot make the interface {name}: there is one of that name in use; give another \
         vifname, or remove it with `ip link delete {name}`"
    )]
    Taken {
        /// Its name.
        name: String,
    },
    /// Something else.
    #[error("cannot make the interface {name}: {source}")]
    Io {
        /// Its name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

/// What the guest can be given undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// IPv4 packets without checksum.
    pub blank_v4: bool,
    /// IPv6 packets without checksum.
    pub blank_v6: bool,
    /// Large TCP packets over IPv4.
    pub tso_v4: bool,
    /// Large TCP packets over IPv6.
    pub tso_v6: bool,
}

/// A queue of a tap device.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    takes: Takes,
}

impl Tap {
    /// Makes the device with its first queue, or opens one more queue of it.
    /// A new device has no carrier.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, is_new: bool) -> Result<Self, TapError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::Forbidden {
                name: name.into(),
                source,
            },
            Some(libc::EBUSY | libc::EEXIST) => TapError::Taken { name: name.into() },
            _ => TapError::Io {
                name: name.into(),
                source,
            },
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => failed(error),
            _ => TapError::Missing(error),
        })?;
        attach(&file, name, is_new).map_err(failed)?;
        let tap = Self {
            file,
            name: name.into(),
            takes: Takes::default(),
        };
        tap.set_header_size().map_err(failed)?;
        if is_new {
            tap.carrier(false);
        }
        Ok(tap)
    }

    /// The same queue once more.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            name: self.name.clone(),
            takes: self.takes,
        })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells the host what it may leave to the guest.
    ///
    /// # Errors
    /// The system's.
    pub fn set_takes(&mut self, takes: Takes) -> io::Result<()> {
        self.takes = takes;
        let mut bits = 0;
        if takes.blank_v4 {
            bits |= TUN_F_CSUM;
            bits |= if takes.tso_v4 { TUN_F_TSO4 } else { 0 };
            let v6 = takes.tso_v6 && takes.blank_v6;
            bits |= if v6 { TUN_F_TSO6 } else { 0 };
        }
        let bits = u64::try_from(bits).unwrap_or(0);
        // SAFETY: it takes a number and touches no memory of ours.
        unsafe { call::set_offload(self.file.as_raw_fd(), bits) }?;
        Ok(())
    }

    fn set_header_size(&self) -> io::Result<()> {
        let size = c_int::try_from(size_of::<VnetHeader>()).unwrap_or(c_int::MAX);
        // SAFETY: it reads the one number, which lives through the call.
        unsafe { call::set_vnet_header_size(self.file.as_raw_fd(), &raw const size) }?;
        Ok(())
    }

    fn carrier(&self, on: bool) {
        let on = c_int::from(on);
        // SAFETY: it reads the one number, which lives through the call.
        let done = unsafe { call::set_carrier(self.file.as_raw_fd(), &raw const on) };
        if let Err(error) = done {
            tracing::debug!(name = self.name, %error, "cannot set the carrier");
        }
    }

    /// Fills in the checksum of a packet that the guest can't take without.
    fn complete_for_guest(&self, packet: &mut [u8], offload: &mut Offload) {
        let is_blank = offload.checksum == Checksum::Blank;
        if is_blank && self.takes.blank_v4 && !self.takes.blank_v6 && offload.gso.is_none() {
            let transport = Transport::find(packet);
            if transport.is_some_and(|transport| transport.is_ipv6()) {
                // It can't fail: the transport was found.
                let _ = offload.complete_checksum(packet);
            }
        }
    }
}

fn attach(file: &File, name: &str, is_new: bool) -> io::Result<()> {
    let exclusive = if is_new { libc::IFF_TUN_EXCL } else { 0 };
    let flags =
        libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | exclusive;
    let mut request = link::request(name)?;
    let flags = u16::try_from(flags).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes(flags.to_ne_bytes());
    // SAFETY: it reads and writes the one structure, which lives through the
    // call.
    unsafe { call::set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(())
}

impl Wire for Tap {
    fn send(&mut self, packet: &mut [u8], offload: Offload) -> io::Result<Sent> {
        let header = VnetHeader::prepare(&offload, packet)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(packet)];
        match (&self.file).write_vectored(&parts) {
            Ok(_) => Ok(Sent::Done),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Full),
            Err(error) => Err(match error.raw_os_error() {
                // The interface was deleted.
                Some(libc::EBADFD) => io::Error::new(io::ErrorKind::BrokenPipe, error),
                _ => error,
            }),
        }
    }

    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<(usize, Offload)>> {
        let mut header = VnetHeader::new_zeroed();
        let header_len = size_of::<VnetHeader>();
        let mut parts = [IoSliceMut::new(header.as_mut_bytes()), IoSliceMut::new(buf)];
        let len = match (&self.file).read_vectored(&mut parts) {
            Ok(len) => len.saturating_sub(header_len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            // The interface is down: no packet for now.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut offload = header.offload();
        self.complete_for_guest(&mut buf[..len], &mut offload);
        Ok(Some((len, offload)))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn set_carrier(&mut self, on: bool) {
        self.carrier(on);
    }
}
