//! GRUB's `[ ... ]`.

use crate::bootloader::{files::Files, legacy::plain};

/// Whether it holds, from left to right; what is not known does not.
#[must_use]
pub fn holds(words: &[String], files: &dyn Files) -> bool {
    let mut any = false;
    for group in words.split(|w| w == "-o") {
        any |= group.split(|w| w == "-a").all(|one| simple(one, files));
    }
    any
}

fn simple(words: &[String], files: &dyn Files) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["!", ..] => {
            let rest: Vec<String> = words[1..].iter().map(|w| (*w).to_owned()).collect();
            rest.first().is_some_and(|w| w != "!") && !simple(&rest, files)
        }
        [one] => !one.is_empty(),
        ["-n", text] => !text.is_empty(),
        ["-z", text] => text.is_empty(),
        ["-e" | "-f" | "-s" | "-d", path] => files.exists(&plain(path)),
        [a, "=" | "==", b] => a == b,
        [a, "!=", b] => a != b,
        [a, "-eq", b] => numbers(a, b).is_some_and(|(a, b)| a == b),
        [a, "-ne", b] => numbers(a, b).is_some_and(|(a, b)| a != b),
        [a, "-lt", b] => numbers(a, b).is_some_and(|(a, b)| a < b),
        [a, "-gt", b] => numbers(a, b).is_some_and(|(a, b)| a > b),
        [a, "-le", b] => numbers(a, b).is_some_and(|(a, b)| a <= b),
        [a, "-ge", b] => numbers(a, b).is_some_and(|(a, b)| a >= b),
        _ => false,
    }
}

fn numbers(a: &str, b: &str) -> Option<(i64, i64)> {
    Some((a.parse().ok()?, b.parse().ok()?))
}
