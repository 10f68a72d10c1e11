//! Paths, checked once and then trusted.
//!
//! Law: a [`Path`] is absolute and well-formed, so code that holds one never
//! looks at its syntax again. What a client sends becomes a `Path` only by
//! [`Path::resolve`].

use std::{fmt, sync::Arc};

use guest_abi::{
    addr::DomId,
    errno::Errno,
    xs_wire::{XENSTORE_ABS_PATH_MAX as ABSOLUTE_MAX, XENSTORE_REL_PATH_MAX as RELATIVE_MAX},
};

/// The absolute path of a node: `/`, or `/a/b` without empty parts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Arc<str>);

impl Path {
    /// `/`.
    #[must_use]
    pub fn root() -> Path {
        Path("/".into())
    }

    /// What a client of domain `home` means by `text`: relative paths start at
    /// the domain's home.
    ///
    /// # Errors
    /// `EINVAL` for a malformed or overlong path.
    pub fn resolve(text: &[u8], home: DomId) -> Result<Path, Errno> {
        let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        if text.starts_with('/') {
            return Path::absolute(text);
        }
        if text.is_empty() || text.starts_with('@') || text.len() > RELATIVE_MAX {
            return Err(Errno::EINVAL);
        }
        Path::absolute(&format!("{}/{text}", home_of(home)))
    }

    /// The path of this absolute spelling.
    ///
    /// # Errors
    /// As [`Path::resolve`].
    pub fn absolute(text: &str) -> Result<Path, Errno> {
        let fits = text.len() <= ABSOLUTE_MAX && below_home(text).len() <= RELATIVE_MAX;
        let parts = text.strip_prefix('/').ok_or(Errno::EINVAL)?;
        let sound = parts.is_empty() || parts.split('/').all(is_name);
        if fits && sound {
            Ok(Path(text.into()))
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// The spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names on the way from the root.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|name| !name.is_empty())
    }

    /// The last name; `None` for the root.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// The node above; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Path> {
        self.name()?;
        match self.0.rfind('/') {
            Some(0) | None => Some(Path::root()),
            Some(at) => Some(Path(self.0[..at].into())),
        }
    }

    /// This path, then the one above it, up to the root.
    pub fn ancestry(&self) -> impl Iterator<Item = Path> {
        std::iter::successors(Some(self.clone()), Path::parent)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path of a domain's home.
#[must_use]
pub fn home_of(dom: DomId) -> String {
    format!("/local/domain/{dom}")
}

/// The part of an absolute path that counts against [`RELATIVE_MAX`]: what
/// follows `/local/domain/N/`, or all of it elsewhere.
fn below_home(text: &str) -> &str {
    let inside = text.strip_prefix("/local/domain/").and_then(|rest| {
        let (dom, below) = rest.split_once('/')?;
        let is_domid = !dom.is_empty() && dom.len() <= 5 && dom.bytes().all(|b| b.is_ascii_digit());
        is_domid.then_some(below)
    });
    inside.unwrap_or(text)
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_@".contains(&byte);
    !name.is_empty() && name.bytes().all(allowed)
}

/// What a watch names: a path, or one of the daemon's own events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchPath {
    /// The absolute path, or the special name with its `@`.
    pub full: Arc<str>,
    /// The client spelt it relative to its home: events are spelt so as well.
    pub relative: bool,
}

impl WatchPath {
    /// What a client of domain `home` means by `text`.
    ///
    /// # Errors
    /// `EINVAL` for a malformed or overlong path.
    pub fn resolve(text: &[u8], home: DomId) -> Result<WatchPath, Errno> {
        if text.starts_with(b"@") {
            return Ok(WatchPath {
                full: special_name(text)?.into(),
                relative: false,
            });
        }
        Ok(WatchPath {
            full: Path::resolve(text, home)?.0,
            relative: !text.starts_with(b"/"),
        })
    }

    /// How `event`, an absolute path at or below this one, is told to the
    /// client of domain `home`.
    #[must_use]
    pub fn spell<'a>(&self, event: &'a str, home: DomId) -> &'a str {
        let below = || event.strip_prefix(&home_of(home))?.strip_prefix('/');
        if self.relative {
            below().unwrap_or(event)
        } else {
            event
        }
    }
}

/// A name with an `@` in front, well-formed.
///
/// # Errors
/// `EINVAL` for a malformed or overlong one.
pub fn special_name(text: &[u8]) -> Result<&str, Errno> {
    let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let sound = text.starts_with('@') && text.split('/').all(is_name);
    if sound && text.len() <= RELATIVE_MAX {
        Ok(text)
    } else {
        Err(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(7);

    #[test]
    fn malformed_paths_are_refused() {
        for bad in [
            "", "//", "/a/", "/a//b", "a/", "/a b", "/\u{e9}", "/a\u{0}", "@x", "/a.b",
        ] {
            assert_eq!(
                Path::resolve(bad.as_bytes(), GUEST),
                Err(Errno::EINVAL),
                "{bad:?}"
            );
        }
        assert_eq!(Path::resolve(b"/\xff", GUEST), Err(Errno::EINVAL));
    }

    #[test]
    fn relative_paths_start_at_home() {
        let path = Path::resolve(b"device/vif", GUEST).unwrap();
        assert_eq!(path.as_str(), "/local/domain/7/device/vif");
        assert_eq!(path.names().count(), 5);
        assert_eq!(path.parent().unwrap().as_str(), "/local/domain/7/device");
        assert_eq!(Path::absolute("/a").unwrap().parent(), Some(Path::root()));
        assert_eq!(Path::root().parent(), None);
        assert_eq!(path.ancestry().count(), 6);
    }

    #[test]
    fn lengths_are_bounded_below_home_and_in_all() {
        let long = "a".repeat(RELATIVE_MAX);
        assert!(Path::resolve(long.as_bytes(), GUEST).is_ok());
        assert!(Path::resolve(format!("{long}a").as_bytes(), GUEST).is_err());
        assert!(Path::absolute(&format!("/local/domain/7/{long}")).is_ok());
        assert!(Path::absolute(&format!("/local/domain/7/{long}a")).is_err());
        assert!(Path::absolute(&format!("/{long}")).is_err());
    }

    #[test]
    fn events_are_spelt_as_the_watch_was() {
        let relative = WatchPath::resolve(b"device", GUEST).unwrap();
        let event = "/local/domain/7/device/vif/0";
        assert_eq!(relative.spell(event, GUEST), "device/vif/0");
        let absolute = WatchPath::resolve(b"/local/domain/7/device", GUEST).unwrap();
        assert_eq!(absolute.spell(event, GUEST), event);
        let special = WatchPath::resolve(b"@releaseDomain", GUEST).unwrap();
        assert_eq!(special.spell("@releaseDomain", GUEST), "@releaseDomain");
    }
}
