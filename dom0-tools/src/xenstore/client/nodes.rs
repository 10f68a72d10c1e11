//! What can be done with nodes, within a transaction and without.

use guest_abi::errno::Errno;

use super::{Error, strings};
use crate::xenstore::{perms::Perm, wire::Op};

/// Calls on nodes. Relative paths start at `/local/domain/0`.
pub trait Nodes {
    /// Sends a request and gives the reply's payload.
    ///
    /// # Errors
    /// Whatever went wrong on the way, or the daemon's refusal.
    fn request(&mut self, op: Op, payload: Vec<u8>) -> Result<Vec<u8>, Error>;

    /// A node's value.
    ///
    /// # Errors
    /// `ENOENT` if there is no such node.
    fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        self.request(Op::Read, strings(&[path]))
    }

    /// A node's value as text, or `None` if there is no such node.
    ///
    /// # Errors
    /// As any request; [`Error::NotText`].
    fn find(&mut self, path: &str) -> Result<Option<String>, Error> {
        match self.read(path) {
            Ok(value) => String::from_utf8(value)
                .map(Some)
                .map_err(|_| Error::NotText { path: path.into() }),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there is such a node.
    ///
    /// # Errors
    /// As any request.
    fn exists(&mut self, path: &str) -> Result<bool, Error> {
        match self.read(path) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets a node's value; the node and those above it are made if missing.
    ///
    /// # Errors
    /// As any request.
    fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        let payload = [&strings(&[path])[..], value.as_ref()].concat();
        self.request(Op::Write, payload).map(drop)
    }

    /// Makes a node without value if there is none.
    ///
    /// # Errors
    /// As any request.
    fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        self.request(Op::Mkdir, strings(&[path])).map(drop)
    }

    /// Removes a node and all below it. There need not be one, but there has
    /// to be one above.
    ///
    /// # Errors
    /// As any request; `ENOENT` if there is no node above.
    fn rm(&mut self, path: &str) -> Result<(), Error> {
        self.request(Op::Rm, strings(&[path])).map(drop)
    }

    /// The names of a node's children, however many.
    ///
    /// # Errors
    /// `ENOENT` if there is no such node.
    fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        match self.request(Op::Directory, strings(&[path])) {
            Ok(names) => Ok(split_names(&names)),
            Err(error) if error.errno() == Some(Errno::E2BIG) => self.list_in_parts(path),
            Err(error) => Err(error),
        }
    }

    /// As [`Nodes::list`], part by part, from the start again whenever the
    /// list changes on the way.
    ///
    /// # Errors
    /// As [`Nodes::list`].
    fn list_in_parts(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let op = Op::DirectoryPart;
        let malformed = || Error::Malformed { op: op.name() };
        let (mut names, mut generation) = (Vec::new(), Vec::new());
        loop {
            let offset = names.len().to_string();
            let reply = self.request(op, strings(&[path, &offset]));
            if reply
                .as_ref()
                .is_err_and(|error| error.errno() == Some(Errno::EINVAL))
                && !names.is_empty()
            {
                names.clear(); // The list has become shorter than the offset.
                continue;
            }
            let reply = reply?;
            let nul = reply.iter().position(|byte| *byte == 0);
            let (count, part) = reply.split_at(nul.ok_or_else(malformed)?);
            if !names.is_empty() && count != generation {
                names.clear();
                continue;
            }
            generation = count.to_vec();
            names.extend_from_slice(&part[1..]);
            if names.ends_with(&[0, 0]) || names == [0] {
                names.pop();
                return Ok(split_names(&names));
            }
            if part.len() == 1 {
                return Err(malformed());
            }
        }
    }

    /// A node's permissions.
    ///
    /// # Errors
    /// `ENOENT` if there is no such node.
    fn perms(&mut self, path: &str) -> Result<Vec<Perm>, Error> {
        let op = Op::GetPerms;
        let reply = self.request(op, strings(&[path]))?;
        let entries = reply
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty());
        entries
            .map(|entry| Perm::parse(entry).map_err(|_| Error::Malformed { op: op.name() }))
            .collect()
    }

    /// Sets a node's permissions. The first entry names the owner and gives
    /// what domains may do that are not named.
    ///
    /// # Errors
    /// As any request.
    fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), Error> {
        let mut payload = strings(&[path]);
        for entry in perms {
            payload.extend_from_slice(format!("{entry}\0").as_bytes());
        }
        self.request(Op::SetPerms, payload).map(drop)
    }
}

fn split_names(list: &[u8]) -> Vec<String> {
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}
