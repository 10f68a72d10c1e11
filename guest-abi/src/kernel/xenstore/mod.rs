//! Xenstore: the tree of names and values through which domains find their
//! devices.
//!
//! One request at a time; events of watches that come meanwhile are noted.
//! A watch is a bit: set when something changed, taken by
//! [`fired`](Xenstore::fired). What changed, the caller reads again; so a
//! flood of events needs no memory, and a path that the daemon sends is never
//! believed.
//!
//! ```no_run
//! # use guest_abi::kernel::{Boot, xenstore::{StoreError, Tx, Xenstore}};
//! # fn f(boot: &Boot) -> Result<(), StoreError> {
//! let mut store = Xenstore::connect(boot)?;
//! let id: u32 = store.read_number(Tx::NONE, &"domid")?;
//! store.write(Tx::NONE, &format_args!("data/hello-{id}"), &"world")?;
//! let watch = store.watch(&"control/shutdown")?;
//! while !store.fired(&watch)? {
//!     store.wait(0)?;
//! }
//! # Ok(())
//! # }
//! ```

mod error;
mod message;
mod ring;
#[cfg(test)]
mod tests;

use core::{fmt, str::FromStr};

pub use error::StoreError;
use message::{Connection, Reply};

use super::{
    Boot, boot,
    doorbell::{Doorbell, EventBell},
    page::Page,
    text::Text,
};
use crate::{
    addr::{Mfn, Port},
    errno::Errno,
    xs_wire::*,
};

/// Watches that a client can have.
pub const MAX_WATCHES: usize = 64;

/// How long an answer is waited for, in ns. The daemon may be starting again.
const PATIENCE: u64 = 60_000_000_000;

/// How often a transaction is done again before that is an error.
const RETRIES: u32 = 64;

/// A transaction, or [`Tx::NONE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tx(u32);

impl Tx {
    /// Outside any transaction.
    pub const NONE: Tx = Tx(0);
}

/// A watch that is in place.
#[derive(Debug, PartialEq, Eq)]
pub struct Watch(u32);

/// The connection to xenstore. 8 KiB large: better a static's or a `main`'s
/// than a small stack's.
#[derive(Debug)]
pub struct Xenstore<B = EventBell> {
    connection: Connection<B>,
    /// Watches in place, and those that fired.
    taken: u64,
    pending: u64,
    /// One fired since the last sleep.
    fresh: bool,
}

impl Xenstore {
    /// Uses the ring that the domain builder set up. Once in a kernel's life;
    /// after [`Boot::init_console`].
    ///
    /// # Errors
    /// [`StoreError::Absent`].
    pub fn connect(boot: &Boot) -> Result<Self, StoreError> {
        let info = boot.start_info();
        let mfn = Mfn(info.store_mfn);
        let pfn = boot::mfn_to_pfn(mfn).ok_or(StoreError::Absent)?;
        let at = boot::pfn_to_virt(pfn).0 as *mut u8;
        // SAFETY: the builder keeps the page for this; nobody else uses it.
        let page = unsafe { Page::from_raw(at, mfn) }.ok_or(StoreError::Absent)?;
        match info.store_evtchn {
            0 => Err(StoreError::Absent),
            port => Ok(Self::over(page, EventBell(Port(port)))),
        }
    }

    /// The event channel, to wait for together with others.
    #[must_use]
    pub fn port(&self) -> Port {
        self.connection.bell.0
    }
}

impl<B: Doorbell> Xenstore<B> {
    /// A client on a page that the caller found by means of his own.
    #[must_use]
    pub fn over(page: Page, bell: B) -> Self {
        Self {
            connection: Connection::new(page, bell),
            taken: 0,
            pending: 0,
            fresh: false,
        }
    }

    /// A node's value.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; see [`StoreError`].
    pub fn read(&mut self, tx: Tx, path: &dyn fmt::Display) -> Result<&[u8], StoreError> {
        self.call(XS_READ, tx, format_args!("{path}\0"))
    }

    /// A node's value as short text.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`StoreError::Malformed`] if it is no text or too long.
    pub fn read_text<const N: usize>(
        &mut self,
        tx: Tx,
        path: &dyn fmt::Display,
    ) -> Result<Text<N>, StoreError> {
        let text = core::str::from_utf8(self.read(tx, path)?);
        Text::format(&text.map_err(|_| StoreError::Malformed)?).ok_or(StoreError::Malformed)
    }

    /// A node's value as a number.
    ///
    /// # Errors
    /// As [`read_text`](Self::read_text).
    pub fn read_number<T: FromStr>(
        &mut self,
        tx: Tx,
        path: &dyn fmt::Display,
    ) -> Result<T, StoreError> {
        let text: Text<32> = self.read_text(tx, path)?;
        text.trim().parse().map_err(|_| StoreError::Malformed)
    }

    /// A number, or `default` where the node is missing or says something else.
    ///
    /// # Errors
    /// Those that have nothing to do with the node.
    pub fn number_or<T: FromStr>(
        &mut self,
        tx: Tx,
        path: &dyn fmt::Display,
        default: T,
    ) -> Result<T, StoreError> {
        match self.read_number(tx, path) {
            Err(StoreError::Refused(Errno::ENOENT) | StoreError::Malformed) => Ok(default),
            other => other,
        }
    }

    /// Sets a node's value, making it where it is missing.
    ///
    /// # Errors
    /// `EACCES`, `ENOSPC`; see [`StoreError`].
    pub fn write(
        &mut self,
        tx: Tx,
        path: &dyn fmt::Display,
        value: &dyn fmt::Display,
    ) -> Result<(), StoreError> {
        self.call(XS_WRITE, tx, format_args!("{path}\0{value}"))?;
        Ok(())
    }

    /// Makes a node, if it is missing.
    ///
    /// # Errors
    /// `EACCES`, `ENOSPC`; see [`StoreError`].
    pub fn mkdir(&mut self, tx: Tx, path: &dyn fmt::Display) -> Result<(), StoreError> {
        self.call(XS_MKDIR, tx, format_args!("{path}\0"))?;
        Ok(())
    }

    /// Removes a node and all below.
    ///
    /// # Errors
    /// `ENOENT` where the parent is missing, `EACCES`; see [`StoreError`].
    pub fn remove(&mut self, tx: Tx, path: &dyn fmt::Display) -> Result<(), StoreError> {
        self.call(XS_RM, tx, format_args!("{path}\0"))?;
        Ok(())
    }

    /// The names of a node's children.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, `E2BIG`; see [`StoreError`].
    pub fn directory(&mut self, tx: Tx, path: &dyn fmt::Display) -> Result<Names<'_>, StoreError> {
        let reply = self.call(XS_DIRECTORY, tx, format_args!("{path}\0"))?;
        Ok(Names(reply))
    }

    /// A node's permissions: the first is the owner's number and what
    /// everybody may, then who else may what (`n5`, `r0`, ...).
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; see [`StoreError`].
    pub fn permissions(
        &mut self,
        tx: Tx,
        path: &dyn fmt::Display,
    ) -> Result<Names<'_>, StoreError> {
        let reply = self.call(XS_GET_PERMS, tx, format_args!("{path}\0"))?;
        Ok(Names(reply))
    }

    /// Sets a node's permissions, in the same form.
    ///
    /// # Errors
    /// `EACCES` if the node is not ours, `EINVAL`; see [`StoreError`].
    pub fn set_permissions(
        &mut self,
        tx: Tx,
        path: &dyn fmt::Display,
        permissions: &[&str],
    ) -> Result<(), StoreError> {
        let list = Terminated(permissions);
        self.call(XS_SET_PERMS, tx, format_args!("{path}\0{list}"))?;
        Ok(())
    }

    /// Starts a transaction: its requests see one state of the tree, and all
    /// or none of its changes are made.
    ///
    /// # Errors
    /// `ENOSPC` with too many open; see [`StoreError`].
    pub fn begin(&mut self) -> Result<Tx, StoreError> {
        let reply = self.call(XS_TRANSACTION_START, Tx::NONE, format_args!("\0"))?;
        let text = core::str::from_utf8(reply).map_err(|_| StoreError::Protocol)?;
        let number = text.trim_end_matches('\0').parse();
        number.map(Tx).map_err(|_| StoreError::Protocol)
    }

    /// Ends a transaction, making its changes or dropping them.
    ///
    /// # Errors
    /// `EAGAIN`: somebody else changed what it saw, nothing was done.
    pub fn end(&mut self, tx: Tx, commit: bool) -> Result<(), StoreError> {
        let verdict = if commit { "T" } else { "F" };
        self.call(XS_TRANSACTION_END, tx, format_args!("{verdict}\0"))?;
        Ok(())
    }

    /// Does `work` in a transaction, again where somebody else got in between.
    ///
    /// # Errors
    /// The first of `work`'s, and then nothing was done; `EAGAIN` after 64 tries.
    pub fn transaction<T>(
        &mut self,
        mut work: impl FnMut(&mut Self, Tx) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let again = StoreError::Refused(Errno::EAGAIN);
        for _ in 0..RETRIES {
            let tx = self.begin()?;
            let done = work(self, tx);
            let ended = self.end(tx, done.is_ok());
            match (done, ended) {
                (Ok(value), Ok(())) => return Ok(value),
                (Err(error), _) if error != again => return Err(error),
                (_, Err(error)) if error != again => return Err(error),
                _ => {}
            }
        }
        Err(again)
    }

    /// Watches a node and all below. It fires once at once.
    ///
    /// # Errors
    /// [`StoreError::NoWatch`]; `E2BIG` where the daemon's quota is used up.
    pub fn watch(&mut self, path: &dyn fmt::Display) -> Result<Watch, StoreError> {
        let number = self.taken.trailing_ones();
        let bit = 1u64.checked_shl(number).ok_or(StoreError::NoWatch)?;
        // Before the request: the first event comes right behind the reply.
        self.taken |= bit;
        self.pending &= !bit;
        let answer = self.call(XS_WATCH, Tx::NONE, format_args!("{path}\0{number}\0"));
        if let Err(error) = answer {
            self.taken &= !bit;
            return Err(error);
        }
        Ok(Watch(number))
    }

    /// Ends a watch; `path` as it was given to [`watch`](Self::watch).
    ///
    /// # Errors
    /// `ENOENT` if there is no such watch.
    pub fn unwatch(&mut self, watch: Watch, path: &dyn fmt::Display) -> Result<(), StoreError> {
        let Watch(number) = watch;
        self.call(XS_UNWATCH, Tx::NONE, format_args!("{path}\0{number}\0"))?;
        // An event that was under way is before the reply, and noted by now.
        self.taken &= !(1 << number);
        self.pending &= !(1 << number);
        Ok(())
    }

    /// Whether a watch fired since it was last asked. Does not sleep.
    ///
    /// # Errors
    /// [`StoreError::BrokenRing`], [`StoreError::Protocol`].
    pub fn fired(&mut self, watch: &Watch) -> Result<bool, StoreError> {
        self.take_events()?;
        let bit = 1 << watch.0;
        let fired = self.pending & bit != 0;
        self.pending &= !bit;
        Ok(fired)
    }

    /// Sleeps until the daemon rings or `deadline` (ns; 0 = never), unless
    /// some watch has fired since the last sleep.
    ///
    /// # Errors
    /// As [`fired`](Self::fired).
    pub fn wait(&mut self, deadline: u64) -> Result<(), StoreError> {
        if !self.has_news()? {
            self.connection.bell.wait(deadline);
        }
        Ok(())
    }

    /// Whether some watch has fired since this was last asked: then don't sleep.
    ///
    /// # Errors
    /// As [`fired`](Self::fired).
    pub fn has_news(&mut self) -> Result<bool, StoreError> {
        self.take_events()?;
        Ok(core::mem::take(&mut self.fresh))
    }

    fn take_events(&mut self) -> Result<(), StoreError> {
        while let Some(reply) = self.connection.next()? {
            self.note(reply)?;
        }
        Ok(())
    }

    /// System time, by which deadlines are counted.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.connection.bell.now()
    }

    /// One request and its answer.
    fn call(
        &mut self,
        kind: u32,
        tx: Tx,
        payload: fmt::Arguments<'_>,
    ) -> Result<&[u8], StoreError> {
        let deadline = self.connection.bell.now().saturating_add(PATIENCE);
        let id = self.connection.request(kind, tx.0, payload)?;
        loop {
            let flushed = self.connection.flush()?;
            match self.connection.next()? {
                Some(reply) if reply.id == id && reply.kind == kind && flushed => {
                    return Ok(self.connection.payload(reply));
                }
                Some(reply) if reply.id == id && reply.kind == XS_ERROR && flushed => {
                    return Err(message::refusal(self.connection.payload(reply)));
                }
                Some(reply) if reply.id == id => return Err(StoreError::Protocol),
                Some(reply) => self.note(reply)?,
                None if self.connection.bell.now() >= deadline => return Err(StoreError::TimedOut),
                None => self.connection.bell.wait(deadline),
            }
        }
    }

    /// A message that nobody waits for: a watch's event is remembered, a late
    /// answer is dropped.
    fn note(&mut self, reply: Reply) -> Result<(), StoreError> {
        if reply.kind != XS_WATCH_EVENT {
            return Ok(());
        }
        // path NUL token NUL; tokens are ours, so others are no text of ours.
        let payload = self.connection.payload(reply);
        let token = payload.split(|&byte| byte == 0).nth(1);
        let token = core::str::from_utf8(token.ok_or(StoreError::Protocol)?);
        let number: Option<u32> = token.ok().and_then(|token| token.parse().ok());
        let bit = number.and_then(|number| 1u64.checked_shl(number));
        self.pending |= bit.unwrap_or(0) & self.taken;
        self.fresh = true;
        Ok(())
    }
}

/// Text pieces, each ended by NUL.
struct Terminated<'a>(&'a [&'a str]);

impl fmt::Display for Terminated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| write!(f, "{piece}\0"))
    }
}

/// Names out of one reply; those that are no text are left out.
#[derive(Clone, Debug)]
pub struct Names<'a>(&'a [u8]);

impl<'a> Iterator for Names<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        while !self.0.is_empty() {
            let end = self.0.iter().position(|&byte| byte == 0);
            let end = end.unwrap_or(self.0.len());
            let name = &self.0[..end];
            self.0 = self.0.get(end + 1..).unwrap_or_default();
            match core::str::from_utf8(name) {
                Ok(name) if !name.is_empty() => return Some(name),
                _ => {}
            }
        }
        None
    }
}
