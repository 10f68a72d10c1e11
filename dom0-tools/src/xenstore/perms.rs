//! Who may read and write a node.
//!
//! Law: a [`Perms`] is never empty. Its first entry names the owner, who may
//! do everything, and gives what any domain without an entry of its own may
//! do. Domid 0 may do everything everywhere.

use std::{fmt, sync::Arc};

use guest_abi::{addr::DomId, errno::Errno};

/// What an entry grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `n`: nothing.
    None,
    /// `r`.
    Read,
    /// `w`.
    Write,
    /// `b`: both.
    Both,
}

impl Access {
    const LETTERS: [(Access, char); 4] = [
        (Access::None, 'n'),
        (Access::Read, 'r'),
        (Access::Write, 'w'),
        (Access::Both, 'b'),
    ];

    /// Whether this covers `wanted`.
    #[must_use]
    pub fn covers(self, wanted: Access) -> bool {
        self == Access::Both || wanted == Access::None || self == wanted
    }

    /// The letter.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        }
    }
}

/// One entry, spelt `r5` and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Perm {
    /// What is granted.
    pub access: Access,
    /// To whom.
    pub dom: DomId,
}

impl Perm {
    /// An entry.
    #[must_use]
    pub const fn new(access: Access, dom: DomId) -> Perm {
        Perm { access, dom }
    }

    /// Reads one entry's spelling.
    ///
    /// # Errors
    /// `EINVAL` for an unknown letter or something that is no domid.
    pub fn parse(text: &[u8]) -> Result<Perm, Errno> {
        let (letter, dom) = text.split_first().ok_or(Errno::EINVAL)?;
        let (access, _) = Access::LETTERS
            .into_iter()
            .find(|(_, known)| *known == char::from(*letter))
            .ok_or(Errno::EINVAL)?;
        Ok(Perm::new(access, parse_domid(dom)?))
    }
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.access.letter(), self.dom)
    }
}

/// Reads a decimal domid.
///
/// # Errors
/// `EINVAL` for anything else.
pub fn parse_domid(text: &[u8]) -> Result<DomId, Errno> {
    parse_decimal(text).map(DomId)
}

/// Reads a decimal number, digits only.
///
/// # Errors
/// `EINVAL` for anything else, and for what does not fit `T`.
pub fn parse_decimal<T: std::str::FromStr>(text: &[u8]) -> Result<T, Errno> {
    let digits = std::str::from_utf8(text)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    digits
        .and_then(|text| text.parse().ok())
        .ok_or(Errno::EINVAL)
}

/// For whom a request is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// The asking domain.
    pub dom: DomId,
    /// The domain it acts for (SET_TARGET).
    pub target: Option<DomId>,
}

impl Who {
    /// Domid 0.
    pub const DOM0: Who = Who {
        dom: DomId::DOM0,
        target: None,
    };

    /// A domain that acts for itself.
    #[must_use]
    pub const fn domain(dom: DomId) -> Who {
        Who { dom, target: None }
    }

    /// Whether permissions and quotas don't apply.
    #[must_use]
    pub fn is_privileged(&self) -> bool {
        self.dom == DomId::DOM0
    }

    fn is(&self, dom: DomId) -> bool {
        self.dom == dom || self.target == Some(dom)
    }
}

/// A node's permissions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Perms(Arc<[Perm]>);

impl Perms {
    /// Only the owner has access.
    #[must_use]
    pub fn private(owner: DomId) -> Perms {
        Perms(Arc::new([Perm::new(Access::None, owner)]))
    }

    /// These entries.
    ///
    /// # Errors
    /// `EINVAL` when there are none.
    pub fn new(entries: Vec<Perm>) -> Result<Perms, Errno> {
        if entries.is_empty() {
            return Err(Errno::EINVAL);
        }
        Ok(Perms(entries.into()))
    }

    /// The owner.
    #[must_use]
    pub fn owner(&self) -> DomId {
        self.0[0].dom
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[Perm] {
        &self.0
    }

    /// Whether `who` owns the node, or may act as if.
    #[must_use]
    pub fn is_owner(&self, who: &Who) -> bool {
        who.is_privileged() || who.is(self.owner())
    }

    /// Whether `who` may do `wanted`.
    #[must_use]
    pub fn allows(&self, who: &Who, wanted: Access) -> bool {
        if self.is_owner(who) {
            return true;
        }
        let named = self.0[1..].iter().find(|entry| who.is(entry.dom));
        named.unwrap_or(&self.0[0]).access.covers(wanted)
    }

    /// The same for another owner.
    #[must_use]
    pub fn owned_by(&self, owner: DomId) -> Perms {
        if owner == self.owner() {
            return self.clone();
        }
        let mut entries = self.0.to_vec();
        entries[0].dom = owner;
        Perms(entries.into())
    }

    /// Whether an entry besides the owner's names `dom`.
    #[must_use]
    pub fn names(&self, dom: DomId) -> bool {
        self.0[1..].iter().any(|entry| entry.dom == dom)
    }

    /// The same with only those entries (besides the owner's) that `keep`
    /// accepts.
    #[must_use]
    pub fn retain(&self, keep: impl Fn(DomId) -> bool) -> Perms {
        let rest = self.0[1..].iter().filter(|entry| keep(entry.dom));
        Perms(self.0[..1].iter().chain(rest).copied().collect())
    }
}

impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, entry) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{entry}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perms(text: &str) -> Perms {
        let entries = text.split(',').map(|entry| Perm::parse(entry.as_bytes()));
        Perms::new(entries.collect::<Result<_, _>>().unwrap()).unwrap()
    }

    #[test]
    fn spelling_survives_a_round_trip() {
        assert_eq!(perms("n0,r5,b7,w9").to_string(), "n0,r5,b7,w9");
        for bad in ["", "x1", "r", "r-1", "r+1", "r65536", "r1 ", "R1"] {
            assert_eq!(Perm::parse(bad.as_bytes()), Err(Errno::EINVAL), "{bad}");
        }
    }

    #[test]
    fn the_first_entry_is_owner_and_default() {
        let node = perms("r1,b2,n3,w4");
        let may = |dom, access| node.allows(&Who::domain(DomId(dom)), access);
        assert!(may(0, Access::Both) && may(1, Access::Both) && may(2, Access::Both));
        assert!(!may(3, Access::Read) && !may(3, Access::Write));
        assert!(may(4, Access::Write) && !may(4, Access::Read) && !may(4, Access::Both));
        assert!(may(9, Access::Read) && !may(9, Access::Write));
    }

    #[test]
    fn a_target_lends_its_rights() {
        let node = perms("n1,r2");
        let stub = Who {
            dom: DomId(5),
            target: Some(DomId(2)),
        };
        assert!(node.allows(&stub, Access::Read) && !node.allows(&stub, Access::Write));
        let stub = Who {
            dom: DomId(5),
            target: Some(DomId(1)),
        };
        assert!(node.is_owner(&stub) && node.allows(&stub, Access::Both));
    }

    #[test]
    fn entries_of_a_gone_domain_can_be_taken_out() {
        let node = perms("n1,r2,r3");
        assert_eq!(node.retain(|dom| dom != DomId(2)), perms("n1,r3"));
        assert!(node.names(DomId(2)) && !node.names(DomId(1)));
    }
}
