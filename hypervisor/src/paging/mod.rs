//! Direct paging: what a guest may write into its page tables.

use guest_abi::addr::Mfn;

/// What the paging rules need from the world below them: the domain's memory
/// as tables of 512 entries, and the vCPUs' cached translations.
///
/// Law: the rules above this trait are pure; only an implementation of it
/// touches memory or a CPU. What it loads may have been written by an
/// attacker at any time, page-table frame or not: no caller may rest a check
/// on a value that it loaded earlier.
pub trait TableStore {
    /// One entry, read atomically. The caller has checked that `table` is RAM
    /// of the domain and `index < 512`.
    fn load(&self, table: Mfn, index: usize) -> u64;

    /// Writes one entry atomically and sees to it that no vCPU uses the old
    /// one once the calling vCPU enters the guest again. (An engine on a
    /// shadow-paging KVM has to repeat the write from inside the VM.)
    fn store(&self, table: Mfn, index: usize, value: u64);

    /// Like [`store`](Self::store), if the entry still holds `old`.
    ///
    /// # Errors
    /// The value found instead.
    fn compare_exchange(&self, table: Mfn, index: usize, old: u64, new: u64) -> Result<(), u64>;

    /// Called when `frame`'s type leaves `Writable` for a table or descriptor
    /// type, **after** the new type is taken and **before** its content is
    /// validated (XSA-401): on return no vCPU of the domain has a writable
    /// translation of it.
    fn flush_writable(&self, frame: Mfn);

    /// Called when `frame` becomes a page table of any level (content about to
    /// be validated) so that an engine can drop what it cached of the frame's
    /// former life as a table.
    fn table_promoted(&self, frame: Mfn);

    /// Writes the hypervisor's own L4 entries (slots 256..=271) into `l4`,
    /// which has just become a validated L4 table.
    fn install_hypervisor_slots(&self, l4: Mfn);
}
