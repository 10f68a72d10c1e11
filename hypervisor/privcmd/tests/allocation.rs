//! A hostile message must not make its receiver allocate: neither by the
//! length that it announces, nor by a length inside its body.
//!
//! Scenario: the receiver's allocator records its largest request while
//! messages with lying lengths come in. Limit: only this one test may live in
//! this file, since the record is the process's.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicUsize, Ordering},
};

use domus_privcmd::{
    protocol::{MAX_MESSAGE, Reply, Response},
    wire::{Channel, Patience},
};

struct Recording;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all work is the system allocator's; the record is an atomic.
unsafe impl GlobalAlloc for Recording {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Recording = Recording;

/// The largest allocation while `bytes` are received as `T`.
fn largest_for<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> usize {
    let (mut sender, receiver) = UnixStream::pair().unwrap();
    sender.write_all(bytes).unwrap();
    drop(sender);
    let channel = Channel::over(receiver, Patience::default());
    LARGEST.store(0, Ordering::Relaxed);
    let got = channel.receive::<T>(0);
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(got.is_err());
    largest
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn lying_lengths_do_not_allocate() {
    // A frame that announces the limit and brings 2 bytes.
    let mut liar = Vec::from(u32::try_from(MAX_MESSAGE).unwrap().to_le_bytes());
    liar.extend([0, 0]);
    assert!(largest_for::<Reply>(&liar) < 64 << 10);

    // A sequence or string inside that announces 2^40 elements.
    for variant in 0u32..16 {
        for prefix in [0usize, 2, 8, 17] {
            let mut body = Vec::from(variant.to_le_bytes());
            body.extend(vec![0; prefix]);
            body.extend((1u64 << 40).to_le_bytes());
            body.extend([0; 64]);
            let bytes = framed(&body);
            assert!(
                largest_for::<Reply>(&bytes) <= MAX_MESSAGE,
                "{variant} {prefix}"
            );
            let mut failure = Vec::from(1u32.to_le_bytes());
            failure.extend(&body);
            assert!(largest_for::<Response>(&framed(&failure)) <= MAX_MESSAGE);
        }
    }
}
