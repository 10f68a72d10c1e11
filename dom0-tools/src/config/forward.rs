//! Ports of the host that lead into a guest with a user-mode network:
//! `forward=8080:80+0.0.0.0@2222:22+5353:53/udp` of a `vif`.
//!
//! Without an address a port listens on the host's loopback only: who wants the
//! guest to be reached from outside says so.

use std::{fmt, net::IpAddr, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// One port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// Where the host listens.
    pub address: IpAddr,
    /// The host's port.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
    /// UDP, not TCP.
    pub udp: bool,
}

/// Why a text names no port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' forwards no port: write PORT, HOSTPORT:GUESTPORT, ADDRESS@HOSTPORT:GUESTPORT, with /udp \
     behind it for UDP, and + between several: forward=8080:80+0.0.0.0@2222:22"
)]
pub struct ForwardError(pub String);

/// Several, with `+` between.
///
/// # Errors
/// The first that is none.
pub fn parse_all(text: &str) -> Result<Vec<Forward>, ForwardError> {
    text.split('+').map(str::parse).collect()
}

/// As [`parse_all`] reads them.
#[must_use]
pub fn join(all: &[Forward]) -> String {
    let all: Vec<String> = all.iter().map(Forward::to_string).collect();
    all.join("+")
}

impl Forward {
    /// The option of `passt` that does it.
    #[must_use]
    pub fn passt(&self) -> [String; 2] {
        let option = if self.udp { "-u" } else { "-t" };
        let ports = format!("{}:{}", self.host, self.guest);
        [option.into(), format!("{}/{ports}", self.address)]
    }
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let wrong = || ForwardError(text.to_owned());
        let (rest, udp) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), false),
            Some((rest, "udp")) => (rest, true),
            Some(_) => return Err(wrong()),
        };
        let (address, ports) = match rest.split_once('@') {
            Some((address, ports)) => (address.parse().map_err(|_| wrong())?, ports),
            None => (Ipv4Addr::LOCALHOST.into(), rest),
        };
        let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
        Ok(Self {
            address,
            host: port(host).ok_or_else(wrong)?,
            guest: port(guest).ok_or_else(wrong)?,
            udp,
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.udp { "/udp" } else { "" };
        write!(f, "{}@{}:{}{end}", self.address, self.host, self.guest)
    }
}

impl TryFrom<String> for Forward {
    type Error = ForwardError;

    fn try_from(text: String) -> Result<Self, ForwardError> {
        text.parse()
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> String {
        forward.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_as_people_write_them() {
        for (text, shown, option, value) in [
            ("80", "127.0.0.1@80:80", "-t", "127.0.0.1/80:80"),
            (
                "8080:80/tcp",
                "127.0.0.1@8080:80",
                "-t",
                "127.0.0.1/8080:80",
            ),
            ("::1@53:5353/udp", "::1@53:5353/udp", "-u", "::1/53:5353"),
            ("0.0.0.0@22", "0.0.0.0@22:22", "-t", "0.0.0.0/22:22"),
        ] {
            let forward: Forward = text.parse().expect(text);
            assert_eq!(forward.to_string(), shown);
            assert_eq!(shown.parse(), Ok(forward));
            assert_eq!(forward.passt(), [option, value]);
        }
        let two = parse_all("8080:80+2222:22").expect("two");
        assert_eq!(join(&two), "127.0.0.1@8080:80+127.0.0.1@2222:22");
    }

    #[test]
    fn what_is_no_port() {
        for text in [
            "", "0", "65536", "80:", "x@80", "80/icmp", "1:2:3", "-1", "80+",
        ] {
            assert!(parse_all(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = parse_all(&text);
        }
    }
}
