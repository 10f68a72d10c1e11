//! Memory ahead of the guest.
//!
//! A guest's pages cost the host nothing until they are touched. Where KVM
//! shadows page tables, each first touch is dear, and KVM brings along the entries
//! of up to seven neighbours *if their pages are there already*. So a thread
//! touches a new domain's pages before the guest does, while its kernel boots.
//!
//! Laws:
//! - It takes no memory that others may want: it stops at half of what the host,
//!   or the control group, has ([`Room`]), and at [`MOST`] for a domain.
//! - It holds nobody up: it has the lowest priority, takes no lock of a domain's, and
//!   keeps no memory of a domain that is gone.
//! - It changes no byte, and touches only frames that the domain owns. (One that
//!   a guest gives back at this very moment may cost the host a page of
//!   zeros until the domain ends.)

mod room;

use crate::{memory::MachineMemory, space::Space};
use guest_abi::addr::Mfn;
use room::Room;
use std::{
    sync::{
        Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

/// Pages that are touched at once: some 50 us.
const STEP: usize = 16;
const CHUNK: u64 = STEP as u64;
/// Domains with fewer are not worth it: 32 MiB.
const LEAST: u64 = (32 << 20) / 4096;
/// Pages of one domain: 1 GiB.
const MOST: u64 = (1 << 30) / 4096;
/// Pages from a domain's start that come first, with its kernel: 64 MiB. A kernel
/// begins to hand out the others from the upper end.
const KERNEL: u64 = (64 << 20) / 4096;
/// Chunks between looks at how much memory is left: 4 MiB.
const BETWEEN_LOOKS: usize = 64;
const NICEST: libc::c_int = 19;

/// Consecutive frames of a domain.
struct Job {
    space: Weak<Space>,
    first: Mfn,
    pages: u64,
}

/// Whether a new domain's memory is touched in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PopulateChoice {
    /// Where traps are slow, as long as half of the memory stays free.
    Auto,
    /// Never.
    Off,
}

/// Has memory touched in advance, by a thread that starts when it is needed.
pub struct Populator {
    on: AtomicBool,
    thread: Mutex<Option<Sender<Job>>>,
}

impl Populator {
    /// One that is on or off.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Populator {
            on: on.into(),
            thread: Mutex::default(),
        }
    }

    /// From now on nothing is touched in advance.
    pub fn turn_off(&self) {
        self.on.store(false, Ordering::Relaxed);
    }

    /// Has frames of a new domain touched.
    pub fn add(&self, space: Weak<Space>, first: Mfn, pages: u64) {
        if pages < LEAST || !self.on.load(Ordering::Relaxed) {
            return;
        }
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            *thread = start();
        }
        if let Some(jobs) = &*thread {
            // A thread that has ended found that this host can't do it.
            let _ = jobs.send(Job {
                space,
                first,
                pages,
            });
        }
    }
}

fn start() -> Option<Sender<Job>> {
    let (jobs, todo) = channel();
    let thread = thread::Builder::new().name("populate".into());
    match thread.spawn(move || serve(&todo)) {
        Ok(_) => Some(jobs),
        Err(error) => {
            tracing::warn!(%error, "no thread that populates memory");
            None
        }
    }
}

fn serve(todo: &Receiver<Job>) {
    // SAFETY: sets the priority of the calling thread; no memory is involved.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) };
    while let Ok(job) = todo.recv() {
        let mut populated = 0;
        for (number, (first, pages)) in chunks(job.pages).enumerate() {
            if number % BETWEEN_LOOKS == 0 && !Room::now().is_some_and(|room| room.is_ample()) {
                break;
            }
            let Some(space) = job.space.upgrade() else {
                break;
            };
            let first = Mfn(job.first.0 + first);
            if !owned(&space.memory, first, pages) {
                continue;
            }
            if let Err(error) = space.memory.populate(first, pages) {
                tracing::info!(%error, "memory is not populated in advance");
                return;
            }
            populated += pages;
        }
        tracing::debug!(pages = job.pages, populated, "populated");
    }
}

fn owned(memory: &MachineMemory, first: Mfn, pages: u64) -> bool {
    (first.0..first.0 + pages).all(|mfn| memory.m2p(Mfn(mfn)).is_some())
}

/// In which order so many pages are touched: first page, and how many.
fn chunks(pages: u64) -> impl Iterator<Item = (u64, u64)> {
    let kernel = KERNEL.min(pages);
    let rest = (pages - kernel).min(MOST - kernel);
    let upwards = (0..kernel).step_by(STEP);
    let upwards = upwards.map(move |first| (first, CHUNK.min(kernel - first)));
    let downwards = (0..rest).step_by(STEP);
    let downwards = downwards.map(move |done| {
        let count = CHUNK.min(rest - done);
        (pages - done - count, count)
    });
    upwards.chain(downwards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::BASE_MFN;

    #[test]
    fn each_page_comes_once_and_the_kernel_first() {
        for pages in [0, 1, CHUNK + 1, KERNEL - 1, KERNEL + 5, MOST, MOST + 1000] {
            let mut seen = vec![0u8; usize::try_from(pages).unwrap()];
            let mut last = None;
            for (first, count) in chunks(pages) {
                for page in first..first + count {
                    seen[usize::try_from(page).unwrap()] += 1;
                }
                if let Some(last) = last {
                    assert!(first < KERNEL || first < last || last < KERNEL);
                }
                last = Some(first);
            }
            assert!(seen.iter().all(|times| *times <= 1));
            let all = seen.iter().map(|times| u64::from(*times)).sum::<u64>();
            assert_eq!(all, pages.min(MOST));
        }
    }

    #[test]
    fn frames_become_resident_and_keep_what_they_hold() {
        let memory = MachineMemory::new(64).unwrap();
        let first = BASE_MFN;
        for page in 0..64 {
            memory.set_m2p(Mfn(first.0 + page), Some(page));
        }
        let byte = Mfn(first.0 + 3).addr().unwrap();
        memory.write(byte, &[7; 16]).unwrap();
        assert!(owned(&memory, first, 64));
        let before = memory.resident_pages().unwrap();
        memory.populate(first, 64).unwrap();
        assert_eq!((before, memory.resident_pages().unwrap()), (1, 64));
        let mut bytes = [0; 16];
        memory.read(byte, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 16]);
        memory.set_m2p(Mfn(first.0 + 9), None);
        assert!(!owned(&memory, first, 64));
        assert!(memory.populate(Mfn(first.0 + 60), 5).is_err());
    }
}
