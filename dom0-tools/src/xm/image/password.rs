//! Root's password: hashed here, so that no program of the host or the guest
//! has to be run for it.

use std::{fs::File, io, io::Read};

use sha_crypt::{PasswordHasher, ShaCrypt};

/// Letters that nobody takes for each other.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// A password that nobody guesses: 16 letters, 80 bits.
///
/// # Errors
/// The host has no randomness.
pub fn random() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let letter = |byte: u8| char::from(LETTERS[usize::from(byte % 32)]);
    Ok(bytes.into_iter().map(letter).collect())
}

/// Its hash, as `/etc/shadow` has it.
///
/// # Errors
/// The host has no randomness.
pub fn hash(password: &str) -> io::Result<String> {
    // 16 letters: crypt(3) knows no longer salt, and would not find its own
    // answer in what a longer one has made.
    let mut salt = [0u8; 12];
    File::open("/dev/urandom")?.read_exact(&mut salt)?;
    let hash = ShaCrypt::default().hash_password_with_salt(password.as_bytes(), &salt);
    hash.map(|hash| hash.as_str().to_owned())
        .map_err(io::Error::other)
}

/// `/etc/shadow` with another password for root.
#[must_use]
pub fn with_root(shadow: &str, hash: &str) -> String {
    let line = |line: &str| match line
        .strip_prefix("root:")
        .and_then(|rest| rest.split_once(':'))
    {
        Some((_, rest)) => format!("root:{hash}:{rest}\n"),
        None => format!("{line}\n"),
    };
    shadow.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_password_changes() {
        let shadow = "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nrooty:x:1::::::\n";
        let hash = hash("secret").expect("a hash");
        let fields: Vec<&str> = hash.split('$').collect();
        assert_eq!((fields[1], fields[3].len()), ("6", 16), "{hash}");
        let new = with_root(shadow, &hash);
        assert_eq!(new.lines().count(), 3);
        assert!(new.starts_with(&format!("root:{hash}:19000:")), "{new}");
        assert!(new.contains("\ndaemon:*:"), "{new}");
        assert_ne!(random().expect("a"), random().expect("b"));
    }
}
