//! Granted pages, mapped while a request uses them, or longer.
//!
//! A front end that says `feature-persistent` uses the same grants again and
//! again: these stay mapped, up to [`KEPT_PAGES`] for a ring, and what was not
//! used longest goes first. Without it a mapping ends before the response is
//! given, because the guest takes the page back then.

use std::{collections::HashMap, sync::Arc};

use domus_privcmd::client::{Client, ClientError, GrantMapping};
use guest_abi::addr::DomId;

use crate::backend::SharedMemory;

/// Pages that a ring may keep mapped: what Linux' front end uses with a ring
/// of one page and its default of 32 segments for a request, lists included.
pub const KEPT_PAGES: usize = 1056;

/// Where granted pages come from.
pub trait Grants: Send {
    /// Maps pages; all or none.
    fn map(&self, refs: &[u32], write: bool) -> Result<Vec<Page>, ClientError>;
}

/// A guest's grants.
pub struct GuestGrants {
    /// The connection.
    pub client: Arc<Client>,
    /// The guest.
    pub dom: DomId,
}

impl Grants for GuestGrants {
    fn map(&self, refs: &[u32], write: bool) -> Result<Vec<Page>, ClientError> {
        let mapping = self.client.map_grants(self.dom.0, refs, write)?;
        let mapping: Arc<dyn SharedMemory> = Arc::new(Mapped(mapping));
        let page = |index| Page {
            mapping: mapping.clone(),
            offset: index * 4096,
        };
        Ok((0..refs.len()).map(page).collect())
    }
}

/// A mapping as shared memory.
pub struct Mapped(pub GrantMapping);

// SAFETY: the mapping stays where it is until it is dropped, and gives out no
// references to its bytes.
unsafe impl SharedMemory for Mapped {
    fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// One mapped page, mapped as long as this lives.
#[derive(Clone)]
pub struct Page {
    mapping: Arc<dyn SharedMemory>,
    offset: usize,
}

impl Page {
    /// Where `len` bytes at `offset` of the page are.
    ///
    /// # Panics
    /// When that is not within the page: a mistake of ours.
    pub fn part(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= 4096 && len <= 4096 - offset);
        self.mapping.as_ptr().wrapping_add(self.offset + offset)
    }

    /// Copies bytes out, once.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        use vm_memory::Bytes;
        let slice = self.mapping.slice();
        slice
            .read_slice(to, self.offset + offset)
            .expect("within the page");
    }

    /// Copies bytes in.
    #[cfg(test)]
    pub fn write(&self, offset: usize, from: &[u8]) {
        use vm_memory::Bytes;
        let slice = self.mapping.slice();
        slice
            .write_slice(from, self.offset + offset)
            .expect("within the page");
    }
}

struct Kept {
    pages: Vec<Page>,
    refs: Vec<u32>,
    used: u64,
}

/// The pages of one ring.
pub struct Pages {
    grants: Box<dyn Grants>,
    persistent: bool,
    /// Mappings by number, and in which one each grant is.
    kept: HashMap<u64, Kept>,
    place: HashMap<u32, (u64, usize)>,
    clock: u64,
}

impl Pages {
    /// None mapped yet.
    pub fn new(grants: Box<dyn Grants>, persistent: bool) -> Self {
        Self {
            grants,
            persistent,
            kept: HashMap::new(),
            place: HashMap::new(),
            clock: 0,
        }
    }

    /// Pages kept mapped now.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.kept.values().map(|kept| kept.refs.len()).sum()
    }

    /// Maps pages for reading, or writing too.
    pub fn get(&mut self, refs: &[u32], write: bool) -> Result<Vec<Page>, ClientError> {
        if !self.persistent {
            return self.grants.map(refs, write);
        }
        let mut missing: Vec<u32> = refs.to_vec();
        missing.retain(|gref| !self.place.contains_key(gref));
        missing.sort_unstable();
        missing.dedup();
        // Kept for all uses, so writable; who grants only reading gets no more.
        if !missing.is_empty() {
            match self.grants.map(&missing, true) {
                Ok(pages) => self.keep(pages, missing),
                Err(error) if write => return Err(error),
                Err(_) => return self.grants.map(refs, false),
            }
        }
        let pages = refs.iter().map(|gref| self.find(*gref)).collect();
        self.shrink();
        Ok(pages)
    }

    fn keep(&mut self, pages: Vec<Page>, refs: Vec<u32>) {
        self.clock += 1;
        let number = self.clock;
        let places = refs.iter().enumerate();
        self.place
            .extend(places.map(|(index, gref)| (*gref, (number, index))));
        let used = number;
        self.kept.insert(number, Kept { pages, refs, used });
    }

    fn find(&mut self, gref: u32) -> Page {
        self.clock += 1;
        let (number, index) = self.place[&gref];
        let kept = self.kept.get_mut(&number).expect("a place is in a mapping");
        kept.used = self.clock;
        kept.pages[index].clone()
    }

    /// Lets the mappings go that were not used longest. Requests under way
    /// hold theirs.
    fn shrink(&mut self) {
        while self.place.len() > KEPT_PAGES {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used);
            let Some(number) = oldest.map(|(number, _)| *number) else {
                return;
            };
            let gone = self.kept.remove(&number);
            for gref in gone.iter().flat_map(|kept| &kept.refs) {
                self.place.remove(gref);
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::backend::PlainMemory;

    /// Pages of plain memory by number; a copy of each is made up on first use.
    #[derive(Clone, Default)]
    pub struct FakeGrants(pub Arc<FakeState>);

    #[derive(Default)]
    pub struct FakeState {
        pub memory: Mutex<HashMap<u32, Arc<PlainMemory>>>,
        pub calls: AtomicUsize,
    }

    /// Grants from here on are refused.
    pub const REFUSED: u32 = 1_000_000;

    impl FakeGrants {
        /// The page behind a grant.
        pub fn page(&self, gref: u32) -> Arc<PlainMemory> {
            let mut memory = self.0.memory.lock().unwrap();
            let page = memory
                .entry(gref)
                .or_insert_with(|| Arc::new(PlainMemory::pages(1)));
            page.clone()
        }
    }

    impl Grants for FakeGrants {
        fn map(&self, refs: &[u32], _write: bool) -> Result<Vec<Page>, ClientError> {
            self.0.calls.fetch_add(1, Ordering::Relaxed);
            if refs.iter().any(|gref| *gref >= REFUSED) {
                return Err(ClientError::Disconnected { path: "/".into() });
            }
            let page = |gref: &u32| Page {
                mapping: self.page(*gref),
                offset: 0,
            };
            Ok(refs.iter().map(page).collect())
        }
    }

    #[test]
    fn persistent_pages_are_mapped_once_and_bounded() {
        let grants = FakeGrants::default();
        let mut pages = Pages::new(Box::new(grants.clone()), true);
        for _ in 0..3 {
            pages.get(&[1, 2, 3, 2], true).unwrap();
        }
        assert_eq!(grants.0.calls.load(Ordering::Relaxed), 1);
        for gref in 0..5000 {
            pages.get(&[gref], false).unwrap();
            pages.get(&[4999], false).unwrap();
            assert!(pages.kept() <= KEPT_PAGES);
        }
        let before = grants.0.calls.load(Ordering::Relaxed);
        pages.get(&[4999], false).unwrap();
        assert_eq!(grants.0.calls.load(Ordering::Relaxed), before);
        pages.get(&[3], false).unwrap();
        assert_eq!(grants.0.calls.load(Ordering::Relaxed), before + 1);
    }

    #[test]
    fn without_persistence_each_request_maps() {
        let grants = FakeGrants::default();
        let mut pages = Pages::new(Box::new(grants.clone()), false);
        pages.get(&[1], true).unwrap();
        pages.get(&[1], true).unwrap();
        assert_eq!(
            (grants.0.calls.load(Ordering::Relaxed), pages.kept()),
            (2, 0)
        );
    }

    #[test]
    fn a_refused_grant_keeps_nothing() {
        let mut pages = Pages::new(Box::new(FakeGrants::default()), true);
        assert!(pages.get(&[1, REFUSED], true).is_err());
        assert!(pages.get(&[1, REFUSED], false).is_err());
        assert_eq!(pages.kept(), 0);
    }
}
