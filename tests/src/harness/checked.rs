//! What the checker of a vCPU counted, as the hypervisor's log tells it.

use std::iter::Sum;

/// The counts of one vCPU, or of several together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Stretches of guest code.
    pub stretches: u64,
    /// Steps of KVM in them.
    pub steps: u64,
    /// Stretches of which compiled code came to the same end as KVM.
    pub compiled: u64,
    /// Pages that were read from inside the VM.
    pub probes: u64,
    /// Differences, of whatever kind.
    pub differences: u64,
}

impl Checked {
    /// The counts in a line of the log.
    #[must_use]
    pub fn in_line(line: &str) -> Option<Self> {
        let (_, counts) = line.split_once("checker: ")?;
        let numbers: Vec<u64> = counts
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let [stretches, steps, compiled, probes, differences] = numbers[..] else {
            return None;
        };
        Some(Checked {
            stretches,
            steps,
            compiled,
            probes,
            differences,
        })
    }
}

impl Sum for Checked {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |a, b| Checked {
            stretches: a.stretches + b.stretches,
            steps: a.steps + b.steps,
            compiled: a.compiled + b.compiled,
            probes: a.probes + b.probes,
            differences: a.differences + b.differences,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_read() {
        let line =
            "INFO checker: 5 stretches, 70 steps, 4 compiled, 9 probes, 0 differences domain=1";
        let counts = Checked::in_line(line).unwrap();
        assert_eq!((counts.stretches, counts.differences), (5, 0));
        let sum: Checked = [counts, counts].into_iter().sum();
        assert_eq!((sum.steps, sum.compiled, sum.probes), (140, 8, 18));
        assert_eq!(Checked::in_line("checker: difference at nop"), None);
    }
}
