//! Values on a terminal: escapes out and in.

/// A value with backslash escapes for what is not printable ASCII.
#[must_use]
pub fn escape(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for (at, byte) in value.iter().enumerate() {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\t' => text.push_str("\\t"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b' '..=b'~' => text.push(char::from(*byte)),
            // A digit behind must not be taken for a part of the number.
            _ if value.get(at + 1).is_some_and(u8::is_ascii_digit) => {
                text.push_str(&format!("\\{byte:03o}"));
            }
            _ => text.push_str(&format!("\\{byte:o}")),
        }
    }
    text
}

/// The value that a text with escapes stands for. A backslash before anything
/// else stands for what follows it.
#[must_use]
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            value.push(*byte);
            continue;
        }
        let (byte, after) = escaped(rest);
        value.extend(byte);
        rest = after;
    }
    value
}

/// What stands behind a backslash, and the rest.
fn escaped(text: &[u8]) -> (Option<u8>, &[u8]) {
    let Some((first, after)) = text.split_first() else {
        return (None, text);
    };
    match first {
        b't' => (Some(b'\t'), after),
        b'n' => (Some(b'\n'), after),
        b'r' => (Some(b'\r'), after),
        b'x' => number(after, 16, 2),
        b'0'..=b'7' => number(text, 8, 3),
        other => (Some(*other), after),
    }
}

fn number(text: &[u8], radix: u32, most: usize) -> (Option<u8>, &[u8]) {
    let is_digit = |byte: &&u8| char::from(**byte).is_digit(radix);
    let len = text.iter().take(most).take_while(is_digit).count();
    let (digits, rest) = text.split_at(len);
    let digits = std::str::from_utf8(digits).unwrap_or("");
    let value = u32::from_str_radix(digits, radix).unwrap_or(0);
    (u8::try_from(value & 0xff).ok(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_are_xens() {
        assert_eq!(escape(b"a\\b\t\n\r~ \""), "a\\\\b\\t\\n\\r~ \"");
        assert_eq!(escape(b"\x01\x011\xff"), "\\1\\0011\\377");
        assert_eq!(unescape(b"\\x41\\101\\\"\\q\\"), b"AA\"q");
    }

    proptest! {
        #[test]
        fn what_goes_out_comes_back(value in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(unescape(escape(&value).as_bytes()), value);
        }
    }
}
