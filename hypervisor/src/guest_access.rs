//! Reading a hypercall's arguments, and writing its results.
//!
//! Law: guest memory is hostile and changes under us. An argument is copied in
//! once, the copy is checked, and only the copy is used. What is copied out is
//! fully initialised (`IntoBytes` has no padding). No reference to guest
//! memory is ever formed.

use guest_abi::{addr::GuestVirt, errno::Errno};
use zerocopy::{FromBytes, IntoBytes};

/// The calling vCPU's view of guest virtual memory.
///
/// Addresses inside the hypervisor's reserved range, unmapped ones, and
/// read-only ones for a write give `EFAULT`, as Xen's `copy_from_guest` does.
pub trait GuestAccess {
    /// Copies `buf.len()` bytes at `from` into `buf`.
    ///
    /// # Errors
    /// `EFAULT`; then `buf` holds what was read before the failure.
    fn read_bytes(&self, from: GuestVirt, buf: &mut [u8]) -> Result<(), Errno>;

    /// Copies `bytes` to `to`.
    ///
    /// # Errors
    /// `EFAULT`; then the bytes before the failing page have been written.
    fn write_bytes(&self, to: GuestVirt, bytes: &[u8]) -> Result<(), Errno>;
}

/// Typed forms of [`GuestAccess`].
pub trait GuestAccessExt: GuestAccess {
    /// Copies in one structure.
    ///
    /// # Errors
    /// `EFAULT`.
    fn read_obj<T: FromBytes + IntoBytes>(&self, from: GuestVirt) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read_bytes(from, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies in element `index` of an array at `base`: the address of the
    /// element touched is computed without overflow (XSA-29, XSA-212).
    ///
    /// # Errors
    /// `EFAULT`.
    fn read_element<T: FromBytes + IntoBytes>(
        &self,
        base: GuestVirt,
        index: u64,
    ) -> Result<T, Errno> {
        self.read_obj(element::<T>(base, index)?)
    }

    /// Copies out one structure.
    ///
    /// # Errors
    /// `EFAULT`.
    fn write_obj<T: IntoBytes + zerocopy::Immutable>(
        &self,
        to: GuestVirt,
        value: &T,
    ) -> Result<(), Errno> {
        self.write_bytes(to, value.as_bytes())
    }

    /// Copies out element `index` of an array at `base`.
    ///
    /// # Errors
    /// `EFAULT`.
    fn write_element<T: IntoBytes + zerocopy::Immutable>(
        &self,
        base: GuestVirt,
        index: u64,
        value: &T,
    ) -> Result<(), Errno> {
        self.write_obj(element::<T>(base, index)?, value)
    }
}

impl<A: GuestAccess + ?Sized> GuestAccessExt for A {}

fn element<T>(base: GuestVirt, index: u64) -> Result<GuestVirt, Errno> {
    index
        .checked_mul(size_of::<T>() as u64)
        .and_then(|offset| base.checked_add(offset))
        .ok_or(Errno::EFAULT)
}
