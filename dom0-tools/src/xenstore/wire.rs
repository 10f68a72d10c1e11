//! Messages as they travel: a header of four little-endian words, then the
//! payload.
//!
//! Law: nothing here trusts a length. A header that promises more than
//! [`PAYLOAD_MAX`] bytes is a [`TooLong`] error before a byte of payload is
//! looked at, so a buffer that holds one message never grows past
//! [`MESSAGE_MAX`].

use guest_abi::{errno::Errno, xs_wire::*};

pub use guest_abi::xs_wire::XENSTORE_PAYLOAD_MAX as PAYLOAD_MAX;

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;
/// The most bytes of a whole message.
pub const MESSAGE_MAX: usize = HEADER_LEN + PAYLOAD_MAX;

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $value:ident, $text:literal;)*) => {
        /// What a message asks for, or what it is (`enum xsd_sockmsg_type`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Op { $($(#[$doc])* $name = $value,)* }

        impl Op {
            /// The operation of this number, if there is one.
            #[must_use]
            pub const fn from_wire(value: u32) -> Option<Op> {
                match value { $($value => Some(Op::$name),)* _ => None }
            }
            /// The name that Xen's traces give it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Op::$name => $text,)* }
            }
        }
    };
}

ops! {
    /// Daemon control, Dom0 only.
    Control = XS_CONTROL, "CONTROL";
    /// Names of a node's children.
    Directory = XS_DIRECTORY, "DIRECTORY";
    /// A node's value.
    Read = XS_READ, "READ";
    /// A node's permissions.
    GetPerms = XS_GET_PERMS, "GET_PERMS";
    /// Adds a watch.
    Watch = XS_WATCH, "WATCH";
    /// Takes a watch back.
    Unwatch = XS_UNWATCH, "UNWATCH";
    /// Opens a transaction.
    TransactionStart = XS_TRANSACTION_START, "TRANSACTION_START";
    /// Commits or drops a transaction.
    TransactionEnd = XS_TRANSACTION_END, "TRANSACTION_END";
    /// A domain's ring is ready, Dom0 only.
    Introduce = XS_INTRODUCE, "INTRODUCE";
    /// A domain is gone, Dom0 only.
    Release = XS_RELEASE, "RELEASE";
    /// A domain's home.
    GetDomainPath = XS_GET_DOMAIN_PATH, "GET_DOMAIN_PATH";
    /// Sets a node's value, creating it where needed.
    Write = XS_WRITE, "WRITE";
    /// Creates a node where needed.
    Mkdir = XS_MKDIR, "MKDIR";
    /// Removes a node and all below it.
    Rm = XS_RM, "RM";
    /// Sets a node's permissions.
    SetPerms = XS_SET_PERMS, "SET_PERMS";
    /// From the daemon: a watch has fired.
    WatchEvent = XS_WATCH_EVENT, "WATCH_EVENT";
    /// From the daemon: the request failed.
    Error = XS_ERROR, "ERROR";
    /// Whether a domain is connected.
    IsDomainIntroduced = XS_IS_DOMAIN_INTRODUCED, "IS_DOMAIN_INTRODUCED";
    /// Report this domain's next shutdown again, Dom0 only.
    Resume = XS_RESUME, "RESUME";
    /// A domain acts for another one, Dom0 only.
    SetTarget = XS_SET_TARGET, "SET_TARGET";
    /// Drops all watches and transactions of the caller.
    ResetWatches = XS_RESET_WATCHES, "RESET_WATCHES";
    /// Part of a list of children that is too long for one reply.
    DirectoryPart = XS_DIRECTORY_PART, "DIRECTORY_PART";
}

impl Op {
    /// The operation's number.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self as u32
    }
}

/// A message's first 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// An [`Op`]'s number, or anything else from a hostile peer.
    pub kind: u32,
    /// Chosen by the client, echoed in the reply.
    pub req_id: u32,
    /// The transaction, 0 for none.
    pub tx_id: u32,
    /// Bytes of payload.
    pub len: u32,
}

/// A header promised more payload than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes of payload is over the protocol's {PAYLOAD_MAX}")]
pub struct TooLong(pub u32);

impl Header {
    /// The header in these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Header {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Header {
            kind: word(0),
            req_id: word(4),
            tx_id: word(8),
            len: word(12),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let words = [self.kind, self.req_id, self.tx_id, self.len];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Bytes of the whole message.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn message_len(self) -> Result<usize, TooLong> {
        match usize::try_from(self.len) {
            Ok(len) if len <= PAYLOAD_MAX => Ok(HEADER_LEN + len),
            _ => Err(TooLong(self.len)),
        }
    }
}

/// A whole message. `header.len` always equals the payload's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// A message of this payload.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn new(op: Op, req_id: u32, tx_id: u32, payload: Vec<u8>) -> Result<Message, TooLong> {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header {
            kind: op.to_wire(),
            req_id,
            tx_id,
            len,
        };
        header.message_len()?;
        Ok(Message { header, payload })
    }

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.payload.len());
        bytes.extend_from_slice(&self.header.to_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Takes the first whole message off `input`; `None` while there is none.
    ///
    /// # Errors
    /// [`TooLong`]; the stream has no further meaning then.
    pub fn take(input: &mut Vec<u8>) -> Result<Option<Message>, TooLong> {
        let Some(head) = input.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = Header::from_bytes(*head);
        let len = header.message_len()?;
        if input.len() < len {
            return Ok(None);
        }
        let rest = input.split_off(len);
        let mut payload = std::mem::replace(input, rest);
        payload.drain(..HEADER_LEN);
        Ok(Some(Message { header, payload }))
    }
}

/// The name that an ERROR message carries. An error that clients don't know
/// goes out as `EINVAL`, which is what they would make of it anyway.
#[must_use]
pub fn error_name(errno: Errno) -> &'static str {
    let known = XSD_ERRORS.iter().find(|(_, number)| *number == errno.0);
    known.map_or("EINVAL", |(name, _)| name)
}

/// The error of an ERROR message's payload; unknown names read as `EINVAL`.
#[must_use]
pub fn error_from_payload(payload: &[u8]) -> Errno {
    let name = payload.strip_suffix(&[0]).unwrap_or(payload);
    let known = XSD_ERRORS
        .iter()
        .find(|(known, _)| known.as_bytes() == name);
    known.map_or(Errno::EINVAL, |(_, number)| Errno(*number))
}

/// Splits a payload that must consist of NUL-terminated strings only.
///
/// # Errors
/// `EINVAL` when the last one has no NUL.
pub fn strings(payload: &[u8]) -> Result<Vec<&[u8]>, Errno> {
    match payload.split_last() {
        None => Ok(Vec::new()),
        Some((0, rest)) => Ok(rest.split(|byte| *byte == 0).collect()),
        Some(_) => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn header_layout_is_xens() {
        let header = Header {
            kind: 2,
            req_id: 0x0102_0304,
            tx_id: 5,
            len: 6,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes, [2, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(Header::from_bytes(bytes), header);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_the_payload_arrives() {
        let mut input = Header {
            len: 4097,
            ..Header::default()
        }
        .to_bytes()
        .to_vec();
        assert_eq!(Message::take(&mut input), Err(TooLong(4097)));
        assert!(Message::new(Op::Read, 0, 0, vec![0; 4097]).is_err());
        assert!(Message::new(Op::Read, 0, 0, vec![0; 4096]).is_ok());
    }

    #[test]
    fn strings_need_their_last_nul() {
        assert_eq!(strings(b""), Ok(vec![]));
        assert_eq!(strings(b"a\0"), Ok(vec![&b"a"[..]]));
        assert_eq!(strings(b"a\0\0"), Ok(vec![&b"a"[..], &b""[..]]));
        assert_eq!(strings(b"a"), Err(Errno::EINVAL));
        assert_eq!(strings(b"a\0b"), Err(Errno::EINVAL));
    }

    #[test]
    fn errors_travel_by_name() {
        assert_eq!(error_from_payload(b"ENOENT\0"), Errno::ENOENT);
        assert_eq!(error_from_payload(b"EWHATEVER\0"), Errno::EINVAL);
        assert_eq!(error_name(Errno::ETIMEDOUT), "EINVAL");
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting_of_the_stream(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..8),
            cut in 1usize..40,
        ) {
            let messages: Vec<Message> = payloads
                .into_iter()
                .zip(0..)
                .map(|(payload, id)| Message::new(Op::Write, id, 0, payload).unwrap())
                .collect();
            let stream: Vec<u8> = messages.iter().flat_map(Message::to_bytes).collect();
            let (mut input, mut seen) = (Vec::new(), Vec::new());
            for chunk in stream.chunks(cut) {
                input.extend_from_slice(chunk);
                while let Some(message) = Message::take(&mut input).unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, messages);
            prop_assert!(input.is_empty());
        }
    }
}
