//! Network interfaces: one string of the `vif` list, `mac=...,bridge=...`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::forward::{self, Forward, ForwardError};

/// A virtual network interface, as far as the configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vif {
    /// Its address; none asks for a random one.
    pub mac: Option<Mac>,
    /// The bridge that it joins.
    pub bridge: Option<String>,
    /// The guest's addresses, for the script's firewall rules.
    pub ip: Option<String>,
    /// The script that sets the interface up.
    pub script: Option<String>,
    /// The interface's name in the domain that serves it.
    pub vifname: Option<String>,
    /// The most that it may send.
    pub rate: Option<Rate>,
    /// The domain that serves it, if not Domain-0.
    pub backend: Option<String>,
    /// The longest packet.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// How it reaches the network.
    #[serde(default)]
    pub mode: Mode,
    /// Ports of the host that lead to the guest; for `mode=user`.
    #[serde(default)]
    pub forward: Option<Vec<Forward>>,
    /// Its number in the domain, once it has one.
    #[serde(default)]
    pub devid: Option<u32>,
}

/// How an interface reaches the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Through an interface of the host's, a bridge perhaps.
    #[default]
    Tap,
    /// Through the sockets of an ordinary user.
    User,
}

impl Mode {
    /// As the configuration and the back end spell it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Mode::Tap => "tap",
            Mode::User => "user",
        }
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// `10Mb/s@20ms`: so many bytes in each interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes in a second.
    pub bytes_per_second: u64,
    /// How often the credit is filled up, in microseconds.
    pub interval_us: u64,
}

/// Why a text describes no interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VifError {
    /// No such option.
    #[error(
        "Invalid vif option: {0}; written as key=value, with the keys mac, bridge, ip, script, vifname, rate, mtu, mode, \
         forward, backend, type and model"
    )]
    Option(String),
    /// Not an address.
    #[error("'{0}' is no MAC address: write six hexadecimal pairs, such as 00:16:3e:01:02:03")]
    Mac(String),
    /// An address that no interface can have.
    #[error("MAC address {0} is a multicast address: the first byte must be even")]
    Multicast(Mac),
    /// Not a rate.
    #[error("'{0}' is no rate: write for example 10Mb/s, 1GB/s or 10Mb/s@20ms")]
    Rate(String),
    /// A name that no interface or bridge can have.
    #[error("'{0}' can't be the name of a {1}: at most 15 letters, digits and _ - . :")]
    Name(String, &'static str),
    /// Said twice.
    #[error("vif option '{0}' is given twice")]
    Twice(String),
    /// A character that would mean something to a shell.
    #[error("vif option '{0}' holds the character {1:?}")]
    Character(String, char),
    /// A length that no packet has.
    #[error("'{0}' is no MTU: write a number from 68 to 65535")]
    Mtu(String),
    /// No such mode.
    #[error(
        "'{0}' is no mode of a vif: write tap (an interface of the host, with bridge= or script=) or user"
    )]
    Mode(String),
    /// Not a port.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// There is nothing to forward.
    #[error(
        "vif option 'forward' goes with mode=user: an interface of the host's has an address of its own"
    )]
    ForwardOfTap,
    /// There is no interface on the host.
    #[error(
        "vif option '{0}' goes with mode=tap: with mode=user there is no interface of the host's to use it on"
    )]
    TapOfUser(&'static str),
    /// HVM.
    #[error("vif option 'type={0}' is not for a PV domain")]
    Type(String),
}

impl Vif {
    /// Parses one interface. An empty text is one with all defaults.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, VifError> {
        let mut vif = Vif::default();
        let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| VifError::Option(part.to_owned()))?;
            vif.set(key.trim(), value.trim())?;
        }
        if vif.forward.is_some() && vif.mode != Mode::User {
            return Err(VifError::ForwardOfTap);
        }
        vif.check_user()?;
        Ok(vif)
    }

    fn check_user(&self) -> Result<(), VifError> {
        let of_tap = [
            ("bridge", &self.bridge),
            ("script", &self.script),
            ("vifname", &self.vifname),
        ];
        let given = of_tap.into_iter().find(|(_, value)| value.is_some());
        match (self.mode, given) {
            (Mode::User, Some((key, _))) => Err(VifError::TapOfUser(key)),
            _ => Ok(()),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), VifError> {
        if let Some(wrong) = value.chars().find(|c| !is_plain(*c)) {
            return Err(VifError::Character(key.to_owned(), wrong));
        }
        match key {
            "mac" => once(&mut self.mac, key, value.parse()?),
            "bridge" => once(&mut self.bridge, key, interface(value, "bridge")?),
            "vifname" => once(&mut self.vifname, key, interface(value, "vif")?),
            "ip" => once(&mut self.ip, key, value.to_owned()),
            "script" => once(&mut self.script, key, value.to_owned()),
            "backend" => once(&mut self.backend, key, value.to_owned()),
            "rate" => once(&mut self.rate, key, value.parse()?),
            "mtu" => once(&mut self.mtu, key, mtu(value)?),
            "forward" => once(&mut self.forward, key, forward::parse_all(value)?),
            "mode" if value == "tap" => {
                self.mode = Mode::Tap;
                Ok(())
            }
            "mode" if value == "user" => {
                self.mode = Mode::User;
                Ok(())
            }
            "mode" => Err(VifError::Mode(value.to_owned())),
            "type" if matches!(value, "" | "vif" | "netfront" | "front") => Ok(()),
            "type" => Err(VifError::Type(value.to_owned())),
            // The emulated card's model: PV domains have none.
            "model" => Ok(()),
            _ => Err(VifError::Option(key.to_owned())),
        }
    }
}

fn mtu(text: &str) -> Result<u16, VifError> {
    let number = text.parse().ok().filter(|n| *n >= 68);
    number.ok_or_else(|| VifError::Mtu(text.to_owned()))
}

/// Nothing that a shell, xenstore or a path could take for something else.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.:/@+ ".contains(c)
}

fn interface(name: &str, what: &'static str) -> Result<String, VifError> {
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    if !fits || name.starts_with('-') || name.contains(['/', ' ', '@']) {
        return Err(VifError::Name(name.to_owned(), what));
    }
    Ok(name.to_owned())
}

fn once<T>(field: &mut Option<T>, key: &str, value: T) -> Result<(), VifError> {
    if field.is_some() {
        return Err(VifError::Twice(key.to_owned()));
    }
    *field = Some(value);
    Ok(())
}

impl Mac {
    /// An address in Xen's range, from three random bytes.
    #[must_use]
    pub fn from_random(random: [u8; 3]) -> Self {
        let [a, b, c] = random;
        Mac([0x00, 0x16, 0x3e, a & 0x7f, b, c])
    }
}

impl std::str::FromStr for Mac {
    type Err = VifError;

    fn from_str(text: &str) -> Result<Self, VifError> {
        let wrong = || VifError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or_else(wrong)?;
            if pair.len() != 2 || !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        if pairs.next().is_some() {
            return Err(wrong());
        }
        let mac = Mac(bytes);
        if bytes[0] & 1 != 0 {
            return Err(VifError::Multicast(mac));
        }
        Ok(mac)
    }
}

impl TryFrom<String> for Mac {
    type Error = VifError;

    fn try_from(text: String) -> Result<Self, VifError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Rate {
    /// The credit that each interval gives, in bytes: at least one.
    #[must_use]
    pub fn bytes_per_interval(&self) -> u64 {
        let bytes = u128::from(self.bytes_per_second) * u128::from(self.interval_us) / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
    }
}

impl std::str::FromStr for Rate {
    type Err = VifError;

    fn from_str(text: &str) -> Result<Self, VifError> {
        let wrong = || VifError::Rate(text.to_owned());
        let (rate, interval) = text.split_once('@').unwrap_or((text, "50ms"));
        let bytes_per_second = bytes_per_second(rate).ok_or_else(wrong)?;
        let interval_us = microseconds(interval).ok_or_else(wrong)?;
        if bytes_per_second == 0 || interval_us == 0 {
            return Err(wrong());
        }
        Ok(Rate {
            bytes_per_second,
            interval_us,
        })
    }
}

fn bytes_per_second(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let unit = unit.strip_suffix("/s")?;
    let (factor, unit) = match unit.chars().next()? {
        'G' => (1_000_000_000, &unit[1..]),
        'M' => (1_000_000, &unit[1..]),
        'K' | 'k' => (1_000, &unit[1..]),
        _ => (1, unit),
    };
    let product = number.checked_mul(factor)?;
    match unit {
        "b" => Some(product / 8),
        "B" => Some(product),
        _ => None,
    }
}

fn microseconds(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let factor = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_options() {
        let vif = Vif::parse(
            "mac=00:16:3E:01:02:03, bridge=br0, ip=10.0.0.2, script=vif-bridge, vifname=web.0, \
             rate=10Mb/s@20ms, type=vif, model=e1000, backend=Net",
        )
        .expect("vif");
        assert_eq!(
            vif.mac.map(|m| m.to_string()).as_deref(),
            Some("00:16:3e:01:02:03")
        );
        assert_eq!(vif.bridge.as_deref(), Some("br0"));
        let rate = vif.rate.expect("rate");
        assert_eq!(
            (rate.bytes_per_second, rate.interval_us),
            (1_250_000, 20_000)
        );
        assert_eq!(rate.bytes_per_interval(), 25_000);
        let user = Vif::parse("mode=user,mtu=1400").expect("vif");
        assert_eq!((user.mode, user.mtu), (Mode::User, Some(1400)));
        let user = Vif::parse("forward=8080:80+22,mode=user").expect("vif");
        assert_eq!(user.forward.map(|ports| ports.len()), Some(2));
        assert_eq!(Vif::parse(""), Ok(Vif::default()));
    }

    #[test]
    fn wrong_ones_say_what_is_wrong() {
        for (text, message) in [
            ("colour=red", "Invalid vif option: colour"),
            ("bridge", "Invalid vif option: bridge"),
            ("brige=br0", "with the keys mac, bridge, ip"),
            ("bridge=br0,mode=user", "'bridge' goes with mode=tap"),
            ("mode=user,vifname=x", "'vifname' goes with mode=tap"),
            ("mac=1:2:3", "'1:2:3' is no MAC address"),
            ("mac=00:16:3e:00:00:00:00", "is no MAC address"),
            ("mac=+0:16:3e:00:00:00", "is no MAC address"),
            ("mac=01:16:3e:00:00:00", "multicast"),
            ("rate=10", "'10' is no rate"),
            ("rate=99999999999999999999Gb/s", "is no rate"),
            ("rate=0Mb/s", "is no rate"),
            (
                "bridge=this-name-is-too-long",
                "can't be the name of a bridge",
            ),
            ("vifname=../x", "can't be the name of a vif"),
            ("script=a;b", "';'"),
            ("ip=1,ip=2", "given twice"),
            ("type=ioemu", "not for a PV domain"),
            ("mtu=67", "'67' is no MTU"),
            ("mode=user,forward=http", "'http' forwards no port"),
            ("forward=80", "goes with mode=user"),
            ("mode=bridge", "'bridge' is no mode of a vif"),
        ] {
            let error = Vif::parse(text).expect_err(text).to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn random_addresses_are_in_xens_range() {
        assert_eq!(
            Mac::from_random([0xff, 2, 3]).to_string(),
            "00:16:3e:7f:02:03"
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = Vif::parse(&text);
        }
        #[test]
        fn never_panics_near_the_form(text in "(mac=|rate=|[0-9]|:|[GMKbB]|/s|@|ms|,|é){0,16}") {
            let _ = Vif::parse(&text);
        }
    }
}
