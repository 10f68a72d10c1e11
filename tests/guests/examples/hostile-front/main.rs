//! A guest whose front ends lie.
//!
//! **Mechanism.** A ring is the guest's memory: it may write anything there, at any
//! time, and may take back what it granted. A back end copies each request once,
//! checks the copy, compares the indices with its own, and lets the hypervisor
//! check each grant.
//!
//! **Scenario.** For a disk (whose bytes are all `0xD5`) and an interface, each time
//! over a new connection: indices that jump; slots of random bytes; requests, and
//! lists of segments, that change after they are published; sectors and segments out
//! of range; grants that are none, and some that are taken back while they are used;
//! chains that end in nothing; parts without bytes, headers split over slots; pages
//! to receive into that are none; a connection that ends with requests under way.
//! Then storms: connections that are opened and closed without a word between, and
//! states in any order, without waiting.
//!
//! **Expected.** What is wrong is answered with an error or ends in `Closing`, and
//! the next connection is served. Of a granted page exactly the sectors that were
//! asked for change, and the bytes of the packet that came; the padding of a response
//! is zero.
//!
//! **Limits.** That the processes of the back ends live on, as small as before, and
//! that a neighbour notices nothing, is for the host to see:
//! `tests/tests/system/hostile.rs`.
#![no_std]
#![no_main]
#![cfg_attr(panic = "unwind", feature(lang_items), allow(internal_features))]
// Counts below 300, and random bits.
#![allow(clippy::cast_possible_truncation)]

mod any;
mod disk;
mod front;
mod net;

use guest_abi::kernel::{
    Boot,
    grant::Grants,
    page::{Page, PagePool},
    xenbus::Bus,
    xenstore::Xenstore,
};
use test_guests::Report;

use front::Front;

guest_abi::pv_kernel!(main, name = "hostile-front");

static PAGES: PagePool<16> = PagePool::new();

fn main(boot: &'static Boot) -> ! {
    let mut report = Report::begin("hostile-front", boot);
    let store = Xenstore::connect(boot).expect("xenstore");
    let grants = Grants::set_up([page()]).expect("a grant table");
    let mut world = World {
        bus: Bus { store, grants },
        random: 0x9E37_79B9_7F4A_7C15,
    };
    let mut disk = Front::open(&mut world, "vbd");
    let mut net = Front::open(&mut world, "vif");
    any::indices_that_jump(&mut world, &mut disk, &mut report);
    disk::attack(&mut world, &mut disk, &mut report);
    any::indices_that_jump(&mut world, &mut net, &mut report);
    net::attack(&mut world, &mut net, &mut report);
    for front in [&mut disk, &mut net] {
        any::random_slots(&mut world, front, &mut report);
        any::closed_under_way(&mut world, front, &mut report);
        any::connections(&mut world, front, &mut report);
        any::states(&mut world, front, &mut report);
    }
    // Its back ends would end with it.
    report.end_and_stay()
}

fn page() -> Page {
    PAGES.take().expect("enough pages")
}

/// What all attacks need.
struct World {
    bus: Bus,
    random: u64,
}

impl World {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
