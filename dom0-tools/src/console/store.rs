//! What the console daemon asks of xenstore.
//!
//! Law: an error from here means that the connection is lost. A node that is
//! missing, refused or no text is a fact about that node, and no more.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use tracing::warn;

use crate::xenstore::client::{Client, Error, Nodes};

/// A connection.
pub struct Store(Client);

impl Store {
    pub fn connect() -> io::Result<Self> {
        Client::connect().map(Self).map_err(io::Error::other)
    }

    pub fn watch(&mut self, path: &str, token: &str) -> io::Result<()> {
        let outcome = self.0.watch(path, token);
        unless_lost("watch", path, outcome).map(drop)
    }

    pub fn unwatch(&mut self, path: &str, token: &str) -> io::Result<()> {
        let outcome = self.0.unwatch(path, token);
        unless_lost("unwatch", path, outcome).map(drop)
    }

    pub fn read(&mut self, path: &str) -> io::Result<Option<String>> {
        let outcome = self.0.find(path);
        unless_lost("read", path, outcome).map(Option::flatten)
    }

    pub fn write(&mut self, path: &str, value: &str) -> io::Result<()> {
        let outcome = self.0.write(path, value);
        unless_lost("write", path, outcome).map(drop)
    }

    /// The token of the next event that is here already.
    pub fn next_event(&mut self) -> io::Result<Option<String>> {
        match self.0.next_event(Some(Duration::ZERO)) {
            Ok(event) => Ok(event.map(|event| event.token)),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl AsFd for Store {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn unless_lost<T>(what: &str, path: &str, outcome: Result<T, Error>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error @ (Error::Refused { .. } | Error::NotText { .. } | Error::TooLong { .. })) => {
            warn!(what, path, %error, "xenstore");
            Ok(None)
        }
        Err(error) => Err(io::Error::other(error)),
    }
}
