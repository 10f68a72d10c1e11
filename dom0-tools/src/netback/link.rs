//! The host's network interfaces, as far as a back end sets them up: what
//! `ip link set` does.

use std::{
    ffi::{c_int, c_ulong},
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The address of every virtual interface on the host's side, as in Xen: the
/// highest there is, so that a bridge does not take it for its own.
pub const VIF_ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

const SIOCBRADDIF: c_ulong = 0x89a2;
const ARPHRD_ETHER: u16 = 1;

/// What failed, on which interface.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {name}: {source}{}", remedy(source))]
pub struct LinkError {
    what: &'static str,
    name: String,
    source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; that needs CAP_NET_ADMIN",
        Some(libc::ENODEV) => "; there is no such interface",
        Some(libc::EOPNOTSUPP) => "; it is no bridge",
        _ => "",
    }
}

/// An `ifreq` with the name and zeroes.
///
/// # Errors
/// `InvalidInput` for a name that is empty or too long.
pub fn request(name: &str) -> io::Result<libc::ifreq> {
    let wrong = name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/']);
    if wrong {
        let text = format!("'{name}' can't be the name of an interface");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // SAFETY: it is plain data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// A socket to change interfaces through.
#[derive(Debug)]
pub struct Links(OwnedFd);

impl Links {
    /// Opens one.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        Ok(Self(fd))
    }

    /// Whether there is an interface of that name.
    #[must_use]
    pub fn exists(&self, name: &str) -> bool {
        self.index(name).is_ok()
    }

    /// Brings it up.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn set_up(&self, name: &str) -> Result<(), LinkError> {
        self.run("bring up", name, || {
            let mut ifreq = self.call(libc::SIOCGIFFLAGS, request(name)?)?;
            // SAFETY: the call has just filled in this field of the union.
            let flags = unsafe { ifreq.ifr_ifru.ifru_flags };
            let up = i16::try_from(libc::IFF_UP).map_err(io::Error::other)?;
            ifreq.ifr_ifru.ifru_flags = flags | up;
            self.call(libc::SIOCSIFFLAGS, ifreq).map(drop)
        })
    }

    /// Its MTU.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn mtu(&self, name: &str) -> Result<u32, LinkError> {
        self.run("ask for the MTU of", name, || {
            let ifreq = self.call(libc::SIOCGIFMTU, request(name)?)?;
            // SAFETY: the call has just filled in this field of the union.
            let mtu = unsafe { ifreq.ifr_ifru.ifru_mtu };
            u32::try_from(mtu).map_err(io::Error::other)
        })
    }

    /// Sets its MTU.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), LinkError> {
        self.run("set the MTU of", name, || {
            let mut ifreq = request(name)?;
            ifreq.ifr_ifru.ifru_mtu = c_int::try_from(mtu).map_err(io::Error::other)?;
            self.call(libc::SIOCSIFMTU, ifreq).map(drop)
        })
    }

    /// Sets its Ethernet address.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn set_address(&self, name: &str, address: [u8; 6]) -> Result<(), LinkError> {
        self.run("set the address of", name, || {
            let mut ifreq = request(name)?;
            let mut hardware = libc::sockaddr {
                sa_family: ARPHRD_ETHER,
                sa_data: [0; 14],
            };
            for (to, from) in hardware.sa_data.iter_mut().zip(address) {
                *to = libc::c_char::from_ne_bytes([from]);
            }
            ifreq.ifr_ifru.ifru_hwaddr = hardware;
            self.call(libc::SIOCSIFHWADDR, ifreq).map(drop)
        })
    }

    /// Makes it a port of the bridge; it may be one already.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn join(&self, name: &str, bridge: &str) -> Result<(), LinkError> {
        let index = self.run("find", name, || self.index(name))?;
        if !self.exists(bridge) {
            return Err(LinkError {
                what: "find the bridge",
                name: bridge.into(),
                source: io::Error::from_raw_os_error(libc::ENODEV),
            });
        }
        self.run("add an interface to the bridge", bridge, || {
            let mut ifreq = request(bridge)?;
            ifreq.ifr_ifru.ifru_ifindex = index;
            match self.call(SIOCBRADDIF, ifreq) {
                // It is a port of a bridge already: of this one?
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    let master = fs::read_link(format!("/sys/class/net/{name}/master"))?;
                    let is_ours = master.file_name().is_some_and(|own| own == bridge);
                    is_ours.then_some(()).ok_or(error)
                }
                other => other.map(drop),
            }
        })
    }

    fn index(&self, name: &str) -> io::Result<c_int> {
        let ifreq = self.call(libc::SIOCGIFINDEX, request(name)?)?;
        // SAFETY: the call has just filled in this field of the union.
        Ok(unsafe { ifreq.ifr_ifru.ifru_ifindex })
    }

    fn run<T>(
        &self,
        what: &'static str,
        name: &str,
        body: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, LinkError> {
        body().map_err(|source| LinkError {
            what,
            name: name.into(),
            source,
        })
    }

    fn call(&self, number: c_ulong, mut ifreq: libc::ifreq) -> io::Result<libc::ifreq> {
        // SAFETY: all requests of this file read and write one `ifreq`, which
        // lives through the call.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), number, &raw mut ifreq) };
        nix::errno::Errno::result(done)?;
        Ok(ifreq)
    }
}

/// Keeps the host from using a bridge's port for IPv6 itself.
pub fn without_ipv6(name: &str) {
    // A host without IPv6 has no such file.
    let _ = fs::write(
        format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"),
        "1\n",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_names_are_refused() {
        for name in ["", "a-name-of-16-byte", "a/b", "a\0b"] {
            assert!(request(name).is_err(), "{name:?}");
        }
        assert!(request("vif12.0").is_ok());
    }

    #[test]
    fn an_interface_that_is_missing_is_named() {
        let links = Links::open().unwrap();
        assert!(links.exists("lo") && !links.exists("none.7"));
        assert!(links.mtu("lo").unwrap() > 0);
        let error = links.mtu("none.7").unwrap_err().to_string();
        assert!(
            error.contains("none.7") && error.contains("no such interface"),
            "{error}"
        );
        let error = links.join("lo", "none.7").unwrap_err().to_string();
        assert!(error.contains("find the bridge none.7"), "{error}");
    }
}
