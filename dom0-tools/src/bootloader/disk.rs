//! Stretches of a guest's disk, read within a budget.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::image::Image;

/// All that may be read of one disk: some kernels and ramdisks of the largest
/// size.
pub const BUDGET: u64 = 4 << 30;

/// What a read costs at least, so that many small ones end too.
const LEAST_COST: u64 = 512;

struct Source {
    image: Image,
    left: AtomicU64,
}

/// A stretch of a disk: all of it, or a partition.
#[derive(Clone)]
pub struct Section {
    source: Arc<Source>,
    start: u64,
    len: u64,
}

impl Section {
    /// All of a disk.
    #[must_use]
    pub fn whole(image: Image) -> Self {
        let len = image.size();
        let left = AtomicU64::new(BUDGET);
        Self {
            source: Arc::new(Source { image, left }),
            start: 0,
            len,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A stretch of this one; what reaches beyond its end is cut off.
    #[must_use]
    pub fn part(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Self {
            source: Arc::clone(&self.source),
            start: self.start + start,
            len: len.min(self.len - start),
        }
    }

    /// Reads exactly `bytes.len()` bytes.
    ///
    /// # Errors
    /// They reach beyond the end, the budget is used up, or the image's.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !fits {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.source.spend(len.max(LEAST_COST))?;
        self.source.image.read(bytes, self.start + offset)
    }

    /// Reads `N` bytes, or `None` if there are not so many.
    ///
    /// # Errors
    /// As [`read`](Self::read), but for the end.
    pub fn bytes<const N: usize>(&self, offset: u64) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.read(offset, &mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Source {
    fn spend(&self, cost: u64) -> io::Result<()> {
        let less = |left: u64| left.checked_sub(cost);
        let order = Ordering::Relaxed;
        match self.left.fetch_update(order, order, less) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other(format!(
                "more than {BUDGET} bytes would have to be read to find a kernel"
            ))),
        }
    }
}

impl ext4_view::Ext4Read for Section {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(Section::read(self, start_byte, dst)?)
    }
}
