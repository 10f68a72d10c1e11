//! Long work in bounded pieces.
//!
//! Two things that a guest asks for can touch all of its memory: to validate a
//! tree of tables, and to let one go. Neither may hold the domain's `mm` lock
//! for as long as that takes. Both are cut at whole tables, so that no table is
//! ever half of anything:
//!
//! - **Letting go.** A table that loses its last use becomes *doomed*: it stays
//!   what it is and unusable, and its entries are returned later. Doomed
//!   tables are worked off at the end of the operation and, what is left, at
//!   the start of the next, which does nothing else until none are left. So no
//!   operation ever meets one.
//! - **Validating.** When the budget is spent, the operation undoes itself and
//!   fails with `ERESTART`; but the tables below that were already validated
//!   are *kept*, by references of ours, until the same operation is called
//!   again and finds them ready. Each attempt keeps at least one more. They
//!   are let go when it succeeds, is refused, or too many others are waiting.
//!
//! At each stop all counts are true: doomed and kept tables are holders of
//! references like any other, and the audit knows them.

use guest_abi::{addr::Mfn, errno::Errno};

use super::{
    Paging, TableStore,
    pte::Level,
    refusal::{Refusal, Traced},
};

/// A tree can't be validated in pieces smaller than one table of each level.
const LEAST_BUDGET: u32 = 4;

/// How many interrupted operations have their tables kept: one a vCPU.
const MOST_KEPT: usize = 32;

/// Tables kept for an interrupted operation.
struct Kept {
    /// The table that the operation wants to use.
    top: Mfn,
    /// Each with one reference of both kinds.
    tables: Vec<Mfn>,
}

/// What is under way.
pub(super) struct Work {
    /// Tables that one call may validate or let go.
    budget: u32,
    /// What is left of it in this call.
    left: u32,
    /// Tables without a use whose entries still hold references. Each has one
    /// type reference and one reference left. A stack: at most 512 for each of
    /// three levels, and the few that one operation starts with.
    doomed: Vec<Mfn>,
    kept: Vec<Kept>,
    /// What the operation that is just being interrupted will keep.
    keeping: Vec<Mfn>,
}

impl Work {
    pub const fn new() -> Self {
        Self {
            budget: u32::MAX,
            left: 0,
            doomed: Vec::new(),
            kept: Vec::new(),
            keeping: Vec::new(),
        }
    }

    pub fn doomed(&self) -> &[Mfn] {
        &self.doomed
    }

    pub fn kept(&self) -> impl Iterator<Item = Mfn> {
        self.kept
            .iter()
            .flat_map(|kept| kept.tables.iter().copied())
    }

    pub fn doom(&mut self, table: Mfn) {
        self.doomed.push(table);
    }

    /// One more table is to be validated.
    pub fn spend(&mut self) -> Result<(), Refusal> {
        self.left = self.left.checked_sub(1).ok_or(Refusal::Restart)?;
        Ok(())
    }

    /// An interrupted operation leaves a validated table and its references.
    pub fn keep(&mut self, table: Mfn) {
        self.keeping.push(table);
    }

    /// A doomed or kept table, to be forgotten by a dying domain.
    pub fn forget(&mut self) -> Option<Forgotten> {
        if let Some(table) = self.doomed.pop() {
            return Some(Forgotten::Doomed(table));
        }
        while let Some(kept) = self.kept.last_mut() {
            match kept.tables.pop() {
                Some(table) => return Some(Forgotten::Kept(table)),
                None => drop(self.kept.pop()),
            }
        }
        None
    }

    /// The tables kept for `top` are taken out; those that the operation
    /// leaves this time, if any, take their place.
    fn replace_kept(&mut self, top: Mfn) -> Vec<Mfn> {
        let mine = self.kept.iter().position(|kept| kept.top == top);
        let mut released = mine.map_or(Vec::new(), |i| self.kept.remove(i).tables);
        let tables = std::mem::take(&mut self.keeping);
        if !tables.is_empty() {
            if self.kept.len() == MOST_KEPT {
                released.append(&mut self.kept.remove(0).tables);
            }
            self.kept.push(Kept { top, tables });
        }
        released
    }
}

/// See [`Work::forget`].
pub(super) enum Forgotten {
    Doomed(Mfn),
    Kept(Mfn),
}

impl Paging {
    /// Lets each call validate or let go at most `tables` tables (4 at least;
    /// without limit from the start; 4096 are some tens of milliseconds). A call that needs more fails with
    /// `ERESTART` and is to be repeated as it was, with the `mm` lock released
    /// in between: it goes on where it stopped. A caller who gives up instead
    /// leaves nothing behind but tables that stay validated for a while.
    pub fn set_budget(&mut self, tables: u32) {
        self.work.budget = tables.max(LEAST_BUDGET);
    }

    /// Goes on with what earlier operations left to be let go. Gives whether
    /// all is done. Nobody has to call this: the next operation does.
    pub fn finish_work<S: TableStore + ?Sized>(&mut self, store: &S) -> bool {
        self.work.left = self.work.budget;
        self.alive().and_then(|()| self.settle(store)).is_ok()
    }

    /// The frame of every operation: finishes what others left, does it,
    /// returns what it gave up, and turns a refusal into an errno. `top` is the
    /// table that a long operation wants to use.
    pub(super) fn operate<S: TableStore + ?Sized, T>(
        &mut self,
        store: &S,
        name: &'static str,
        top: Option<Mfn>,
        operation: impl FnOnce(&mut Self) -> Result<T, Refusal>,
    ) -> Result<T, Errno> {
        self.alive().traced(name)?;
        self.work.left = self.work.budget;
        self.settle(store).traced(name)?;
        // All of the budget, or an attempt might keep less than the one before.
        self.work.left = self.work.budget;
        let outcome = operation(self);
        if let Some(top) = top
            && !(self.work.kept.is_empty() && self.work.keeping.is_empty())
        {
            for table in self.work.replace_kept(top) {
                self.put_page_and_type(table);
            }
        }
        self.let_go(store);
        outcome.traced(name)
    }

    fn settle<S: TableStore + ?Sized>(&mut self, store: &S) -> Result<(), Refusal> {
        self.let_go(store);
        match self.work.doomed.is_empty() {
            true => Ok(()),
            false => Err(Refusal::Restart),
        }
    }

    /// Returns what doomed tables hold, as far as the budget goes.
    fn let_go<S: TableStore + ?Sized>(&mut self, store: &S) {
        while self.work.left > 0
            && let Some(table) = self.work.doomed.pop()
        {
            self.work.left -= 1;
            if let Some(level) = self.level_of(table) {
                self.devalidate(store, table, level);
            }
            self.end_type(table);
            self.put_ref(table);
        }
    }

    fn level_of(&self, table: Mfn) -> Option<Level> {
        let index = self.frames.index(table)?;
        self.frames.at(index).frame_type().level()
    }
}
