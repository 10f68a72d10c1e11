//! Changes as bytes.
//!
//! Numbers are little-endian and of fixed width; whatever has a length is
//! preceded by it, 32 bits wide. A change is its number, then its fields.

use std::sync::Arc;

use guest_abi::addr::{DomId, Mfn, Port};

use crate::xenstore::{
    change::Change,
    path::{Path, WatchPath},
    peers::{EventKey, Item},
    perms::{Perm, Perms},
    ring::Stream,
};

/// Something that a change consists of.
pub(super) trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// Takes the field off the front; `None` if these bytes are not one.
    fn take(input: &mut &[u8]) -> Option<Self>;
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(input: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = input.split_first_chunk()?;
                *input = rest;
                Some(<$type>::from_le_bytes(*bytes))
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64);

/// A field that is kept as another one.
macro_rules! kept_as {
    ($($type:ty as $kept:ty: $to:expr, $from:expr;)*) => {$(
        impl Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                let to: fn(&$type) -> $kept = $to;
                to(self).put(out);
            }
            fn take(input: &mut &[u8]) -> Option<Self> {
                let from: fn($kept) -> Option<$type> = $from;
                from(<$kept>::take(input)?)
            }
        }
    )*};
}
kept_as! {
    bool as u8: |value| u8::from(*value), |kept| (kept < 2).then_some(kept == 1);
    usize as u64: |value| *value as u64, |kept| usize::try_from(kept).ok();
    DomId as u16: |dom| dom.0, |kept| Some(DomId(kept));
    Mfn as u64: |mfn| mfn.0, |kept| Some(Mfn(kept));
    Port as u32: |port| port.0, |kept| Some(Port(kept));
    Arc<[u8]> as Vec<u8>: |bytes| bytes.to_vec(), |kept| Some(kept.into());
    Arc<str> as Vec<u8>: |text| text.as_bytes().to_vec(),
        |kept| String::from_utf8(kept).ok().map(Arc::from);
    Path as Arc<str>: |path| path.as_str().into(), |kept| Path::absolute(&kept).ok();
    Perm as Arc<str>: |perm| perm.to_string().into(), |kept| Perm::parse(kept.as_bytes()).ok();
    Perms as Vec<Perm>: |perms| perms.entries().to_vec(), |kept| Perms::new(kept).ok();
}

impl Field for Vec<u8> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        out.extend_from_slice(self);
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        let len = u32::take(input)? as usize;
        let (bytes, rest) = input.split_at_checked(len)?;
        *input = rest;
        Some(bytes.to_vec())
    }
}

/// Lists of anything but bytes.
macro_rules! lists {
    ($($type:ty),*) => {$(
        impl Field for Vec<$type> {
            fn put(&self, out: &mut Vec<u8>) {
                put_len(self.len(), out);
                self.iter().for_each(|item| item.put(out));
            }
            fn take(input: &mut &[u8]) -> Option<Self> {
                let len = u32::take(input)?;
                (0..len).map(|_| <$type>::take(input)).collect()
            }
        }
    )*};
}
lists!(u64, Perm);

fn put_len(len: usize, out: &mut Vec<u8>) {
    u32::try_from(len).unwrap_or(u32::MAX).put(out);
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        if bool::take(input)? {
            T::take(input).map(Some)
        } else {
            Some(None)
        }
    }
}

macro_rules! structs {
    ($($type:ident { $($field:ident),* })*) => {$(
        impl Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn take(input: &mut &[u8]) -> Option<Self> {
                Some($type { $($field: Field::take(input)?),* })
            }
        }
    )*};
}
structs! {
    WatchPath { full, relative }
    EventKey { watch, path }
    Item { seq, bytes, event }
    Stream { req_cons, input, rsp_prod, staged, broken }
}

macro_rules! changes {
    ($($number:literal => $name:ident { $($field:ident),* })*) => {
        impl Field for Change {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Change::$name { $($field),* } => {
                        out.push($number);
                        $($field.put(out);)*
                    })*
                    Change::Removed(path) => { out.push(1); path.put(out); }
                    Change::Gone(dom) => { out.push(2); dom.put(out); }
                    Change::Disconnected(dom) => { out.push(3); dom.put(out); }
                    Change::Reset(dom) => { out.push(4); dom.put(out); }
                }
            }
            fn take(input: &mut &[u8]) -> Option<Self> {
                Some(match u8::take(input)? {
                    $($number => Change::$name { $($field: Field::take(input)?),* },)*
                    1 => Change::Removed(Field::take(input)?),
                    2 => Change::Gone(Field::take(input)?),
                    3 => Change::Disconnected(Field::take(input)?),
                    4 => Change::Reset(Field::take(input)?),
                    _ => return None,
                })
            }
        }
    };
}
changes! {
    10 => Node { path, value, perms }
    11 => Special { name, perms }
    12 => Seen { dom, generation }
    13 => Introduced { dom, mfn, port }
    14 => Target { dom, target }
    15 => Shutdown { dom, told }
    16 => Limit { name, value }
    20 => Watched { dom, id, path, depth, token }
    21 => Unwatched { dom, path, token }
    22 => Started { dom, id }
    23 => Ended { dom, id }
    24 => Queued { dom, item }
    25 => Staged { dom, count }
    26 => Progress { dom, req_cons, input }
    27 => Ring { dom, stream }
    28 => Dropped { dom, seqs }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One of each kind.
    pub(crate) fn samples() -> Vec<Change> {
        let (dom, path) = (DomId(7), Path::absolute("/local/domain/7/x").unwrap());
        let perms = Perms::new(vec![
            Perm::parse(b"n7").unwrap(),
            Perm::parse(b"b0").unwrap(),
        ]);
        let perms = perms.unwrap();
        let watch = WatchPath::resolve(b"device", dom).unwrap();
        let token: Arc<[u8]> = Arc::from(&b"t\xff"[..]);
        let event = Some(EventKey {
            watch: 9,
            path: "/a".into(),
        });
        let item = |event| Item {
            seq: 3,
            bytes: vec![1, 2, 3],
            event,
        };
        let stream = Stream {
            req_cons: u32::MAX,
            input: vec![5],
            rsp_prod: 17,
            staged: vec![1; 2000],
            broken: true,
        };
        vec![
            Change::Node {
                path: path.clone(),
                value: Arc::from(&b"\0v"[..]),
                perms: perms.clone(),
            },
            Change::Removed(path),
            Change::Special {
                name: "@releaseDomain".into(),
                perms,
            },
            Change::Seen { dom, generation: 5 },
            Change::Gone(dom),
            Change::Introduced {
                dom,
                mfn: Mfn(0x1234),
                port: Port(2),
            },
            Change::Disconnected(dom),
            Change::Target {
                dom,
                target: DomId(8),
            },
            Change::Shutdown { dom, told: true },
            Change::Limit {
                name: "nodes".into(),
                value: 12,
            },
            Change::Watched {
                dom,
                id: 1,
                path: watch.clone(),
                depth: Some(2),
                token: token.clone(),
            },
            Change::Unwatched {
                dom,
                path: watch,
                token,
            },
            Change::Started { dom, id: 1 },
            Change::Ended { dom, id: 1 },
            Change::Reset(dom),
            Change::Queued {
                dom,
                item: item(None),
            },
            Change::Queued {
                dom,
                item: item(event),
            },
            Change::Staged { dom, count: 2 },
            Change::Progress {
                dom,
                req_cons: 4,
                input: vec![9; 100],
            },
            Change::Ring { dom, stream },
            Change::Dropped {
                dom,
                seqs: vec![1, 5],
            },
        ]
    }

    #[test]
    fn each_change_survives_and_no_prefix_passes_for_one() {
        for change in samples() {
            let mut bytes = Vec::new();
            change.put(&mut bytes);
            assert_eq!(Change::take(&mut &bytes[..]), Some(change));
            for len in 0..bytes.len() {
                assert_eq!(Change::take(&mut &bytes[..len]), None);
            }
        }
    }

    #[test]
    fn a_lying_length_allocates_nothing() {
        let mut bytes = vec![28, 7, 0];
        bytes.extend([0xff; 8]);
        assert_eq!(Change::take(&mut &bytes[..]), None);
    }
}
