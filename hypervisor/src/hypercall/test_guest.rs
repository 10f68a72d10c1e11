//! A guest that is a vector of bytes, mapped from virtual address 0 on.

use crate::guest_access::GuestAccess;
use guest_abi::{addr::GuestVirt, errno::Errno};
use std::cell::{Cell, RefCell};

/// See the [module](self).
pub(crate) struct TestGuest {
    bytes: RefCell<Vec<u8>>,
    read_only: Cell<bool>,
}

impl TestGuest {
    pub(crate) fn new(size: usize) -> Self {
        TestGuest {
            bytes: RefCell::new(vec![0; size]),
            read_only: Cell::new(false),
        }
    }

    pub(crate) fn make_read_only(&self) {
        self.read_only.set(true);
    }

    fn range(&self, at: GuestVirt, len: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = usize::try_from(at.0).map_err(|_| Errno::EFAULT)?;
        let end = start.checked_add(len).ok_or(Errno::EFAULT)?;
        if end > self.bytes.borrow().len() {
            Err(Errno::EFAULT)
        } else {
            Ok(start..end)
        }
    }
}

impl GuestAccess for TestGuest {
    fn read_bytes(&self, from: GuestVirt, buf: &mut [u8]) -> Result<(), Errno> {
        let range = self.range(from, buf.len())?;
        buf.copy_from_slice(&self.bytes.borrow()[range]);
        Ok(())
    }

    fn write_bytes(&self, to: GuestVirt, bytes: &[u8]) -> Result<(), Errno> {
        let range = self.range(to, bytes.len())?;
        if self.read_only.get() {
            return Err(Errno::EFAULT);
        }
        self.bytes.borrow_mut()[range].copy_from_slice(bytes);
        Ok(())
    }
}
