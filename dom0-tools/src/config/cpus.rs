//! Sets of host CPUs, as `cpus = "0-3,5,^1"` writes them.

/// No host has more.
const MAX_CPU: u32 = 8191;

/// Why a text is no set of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpusError {
    /// Not a number, a range, or `^` and one of these.
    #[error("'{0}' is no CPU: write numbers and ranges such as 0-3,5,^1")]
    NoCpu(String),
    /// Downwards.
    #[error("the range '{0}' runs downwards")]
    Backwards(String),
    /// Nothing left.
    #[error("'{0}' leaves no CPU")]
    Empty(String),
}

/// Parses a set of CPUs, sorted. Empty means any CPU (`all`, or no text).
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Vec<u32>, CpusError> {
    let text = text.trim();
    if matches!(text, "" | "all" | "any" | "-1") {
        return Ok(Vec::new());
    }
    let mut set = Vec::new();
    for part in text.split(',').map(str::trim) {
        if matches!(part, "all") {
            return Ok(Vec::new());
        } else if let Some(out) = part.strip_prefix('^') {
            let (first, last) = range(out)?;
            set.retain(|cpu| !(first..=last).contains(cpu));
        } else {
            let (first, last) = range(part)?;
            set.extend(first..=last);
        }
    }
    if set.is_empty() {
        return Err(CpusError::Empty(text.to_owned()));
    }
    set.sort_unstable();
    set.dedup();
    Ok(set)
}

fn range(text: &str) -> Result<(u32, u32), CpusError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |digits: &str| {
        let digits = digits.trim();
        let value = digits.parse::<u32>().ok();
        value
            .filter(|cpu| *cpu <= MAX_CPU && digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| CpusError::NoCpu(text.to_owned()))
    };
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(CpusError::Backwards(text.to_owned()));
    }
    Ok((first, last))
}

/// A set as `xm vcpu-list` shows it: `any cpu`, or `0-3,5`.
#[must_use]
pub fn format(set: &[u32], nr_cpus: u32) -> String {
    let within = set.iter().filter(|cpu| **cpu < nr_cpus).count();
    if set.is_empty() || u32::try_from(within).is_ok_and(|n| n == nr_cpus) {
        return "any cpu".to_owned();
    }
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for cpu in set {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*cpu) => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let texts = parts.iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        assert_eq!(parse("0-3,5,^1"), Ok(vec![0, 2, 3, 5]));
        assert_eq!(parse(" 2 , 1-2 "), Ok(vec![1, 2]));
        assert_eq!(parse("0-7,^2-5"), Ok(vec![0, 1, 6, 7]));
        for any in ["", "all", "-1"] {
            assert_eq!(parse(any), Ok(vec![]), "{any:?}");
        }
        for wrong in [
            "a", "1-", "-2", "0,,1", "99999", "+1", "1-2-3", "3-1", "1,^1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn shown() {
        assert_eq!(format(&[], 4), "any cpu");
        assert_eq!(format(&[0, 1, 2, 3], 4), "any cpu");
        assert_eq!(format(&[0, 1, 2, 5], 8), "0-2,5");
        assert_eq!(format(&[3], 8), "3");
    }
}
