//! Descriptors of the memory of domains whose grants are mapped.
//!
//! Law: a descriptor lives as long as some mapping of its domain does, and no
//! longer: an open one keeps the whole memory of a domain that is gone.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

/// The descriptors of one domain's memory.
#[derive(Debug)]
pub(super) struct DomainFiles {
    generation: u64,
    read_only: OnceLock<OwnedFd>,
    writable: OnceLock<OwnedFd>,
}

impl DomainFiles {
    fn of(&self, write: bool) -> &OnceLock<OwnedFd> {
        if write {
            &self.writable
        } else {
            &self.read_only
        }
    }

    /// The descriptor for mappings of that kind.
    pub fn get(&self, write: bool) -> Option<&OwnedFd> {
        self.of(write).get()
    }
}

/// Those of all domains.
#[derive(Debug, Default)]
pub(super) struct Files(Mutex<HashMap<u16, Weak<DomainFiles>>>);

impl Files {
    /// The domain's descriptors, if there are any, and its generation if one
    /// of them is for mappings of that kind.
    pub fn known(&self, dom: u16, write: bool) -> (Option<Arc<DomainFiles>>, Option<u64>) {
        let files = self.lock().get(&dom).and_then(Weak::upgrade);
        let generation = files
            .as_ref()
            .and_then(|files| files.get(write).map(|_| files.generation));
        (files, generation)
    }

    /// Enters a descriptor of the domain's memory.
    pub fn enter(&self, dom: u16, generation: u64, write: bool, fd: OwnedFd) -> Arc<DomainFiles> {
        let mut domains = self.lock();
        let same = |files: &Arc<DomainFiles>| files.generation == generation;
        let files = domains.get(&dom).and_then(Weak::upgrade).filter(same);
        let files = files.unwrap_or_else(|| {
            domains.retain(|_, files| files.strong_count() > 0);
            let files = Arc::new(DomainFiles {
                generation,
                read_only: OnceLock::new(),
                writable: OnceLock::new(),
            });
            domains.insert(dom, Arc::downgrade(&files));
            files
        });
        drop(domains);
        // Another thread may have been quicker with the same file.
        let _ = files.of(write).set(fd);
        files
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u16, Weak<DomainFiles>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
