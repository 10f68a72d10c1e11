//! Parsers of others, on files that may hold anything.
//!
//! Law: a panic in one is an error about its file, never the end of the process:
//! the files are written by guests, and the process serves others too.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`; the words of its panic, if it panics. What it was working on
/// is not to be used afterwards, unless it may be left in any state.
///
/// # Errors
/// It panicked.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        assert_eq!(contained(|| 7), Ok(7));
        let number = 3;
        let words = contained(|| panic!("no {number}")).map(|(): ()| ());
        assert_eq!(words, Err("no 3".to_owned()));
    }
}
