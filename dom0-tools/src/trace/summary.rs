//! `xm trace -c`: what a trace comes to, by name.

use super::Line;
use domus_privcmd::trace::{Record, What};
use serde::Serialize;
use std::collections::BTreeMap;

/// Times kept of one name, for its median: beyond them every second one goes.
const SAMPLES: usize = 1 << 16;

/// Counts of a trace.
#[derive(Debug, Default)]
pub struct Summary {
    names: BTreeMap<String, Counted>,
    vcpus: BTreeMap<u32, Span>,
    slept_ns: u64,
    served_ns: u64,
}

/// From a vCPU's first record to its last.
#[derive(Debug)]
struct Span {
    first: u64,
    last: u64,
}

/// Where the vCPUs' time went, in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shares {
    /// From each vCPU's first record to its last, added up.
    pub traced_ns: u64,
    /// Waiting for events.
    pub slept_ns: u64,
    /// In the hypervisor, at what was recorded.
    pub served_ns: u64,
    /// The rest: the guest's own code, and the way from there and back.
    pub guest_ns: u64,
}

#[derive(Debug, Default)]
struct Counted {
    calls: u64,
    errors: u64,
    total_ns: u64,
    max_ns: u64,
    samples: Vec<u64>,
    /// One in so many is sampled.
    stride: u64,
}

/// A row of the summary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// "event_channel_op.send" and the like.
    pub name: String,
    /// How often.
    pub calls: u64,
    /// How often it was refused.
    pub errors: u64,
    /// In the hypervisor, in ns.
    pub total_ns: u64,
    /// The median of one, in ns.
    pub median_ns: u64,
    /// The longest one, in ns.
    pub max_ns: u64,
}

impl Summary {
    /// Counts a record.
    pub fn add(&mut self, record: &Record, line: &Line) {
        let end = record.time_ns.saturating_add(record.took_ns);
        let span = self.vcpus.entry(record.vcpu).or_insert(Span {
            first: record.time_ns,
            last: end,
        });
        span.last = span.last.max(end);
        match record.what {
            // A sleep has no row: it would dwarf all others.
            What::Slept => return self.slept_ns += record.took_ns,
            // Its time is in that of the multicall.
            What::Hypercall {
                in_multicall: true, ..
            } => {}
            _ => self.served_ns += record.took_ns,
        }
        self.count(line, record.took_ns);
    }

    /// Where the time went.
    #[must_use]
    pub fn shares(&self) -> Shares {
        let spans = self.vcpus.values();
        let traced_ns = spans.map(|it| it.last.saturating_sub(it.first)).sum();
        Shares {
            traced_ns,
            slept_ns: self.slept_ns,
            served_ns: self.served_ns,
            guest_ns: traced_ns
                .saturating_sub(self.slept_ns)
                .saturating_sub(self.served_ns),
        }
    }

    fn count(&mut self, line: &Line, took_ns: u64) {
        let counted = self.names.entry(line.name.clone()).or_default();
        let stride = counted.stride.max(1);
        if counted.calls.is_multiple_of(stride) {
            counted.samples.push(took_ns);
        }
        if counted.samples.len() > SAMPLES {
            let mut keep = false;
            counted.samples.retain(|_| {
                keep = !keep;
                keep
            });
            counted.stride = stride * 2;
        }
        counted.calls += 1;
        counted.errors += u64::from(line.failed);
        counted.total_ns = counted.total_ns.saturating_add(took_ns);
        counted.max_ns = counted.max_ns.max(took_ns);
    }

    /// The rows, the one that took longest first.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<_> = self.names.iter().map(|(name, it)| it.row(name)).collect();
        rows.sort_by(|a, b| b.total_ns.cmp(&a.total_ns).then(a.name.cmp(&b.name)));
        rows
    }

    /// The table, as strace prints its own.
    #[must_use]
    pub fn table(&self) -> Vec<String> {
        let rows = self.rows();
        let all: u64 = rows.iter().map(|row| row.total_ns).sum();
        let mut lines = vec![
            format!(
                "{:>6} {:>11} {:>11} {:>11} {:>9} {:>7} name",
                "% time", "total ms", "median us", "longest us", "count", "errors"
            ),
            "------ ----------- ----------- ----------- --------- ------- ----------------".into(),
        ];
        lines.extend(rows.iter().map(|row| row.line(all)));
        lines.push(self.shares().text());
        lines
    }
}

impl Shares {
    fn text(&self) -> String {
        let ms = |ns: u64| format!("{} ms", thousandths(ns / 1000));
        format!(
            "\n{} of vCPU time: {} asleep, {} in the hypervisor at the above, {} in the guest and on the way",
            ms(self.traced_ns),
            ms(self.slept_ns),
            ms(self.served_ns),
            ms(self.guest_ns)
        )
    }
}

impl Counted {
    fn row(&self, name: &str) -> Row {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        Row {
            name: name.to_owned(),
            calls: self.calls,
            errors: self.errors,
            total_ns: self.total_ns,
            median_ns: sorted.get(sorted.len() / 2).copied().unwrap_or(0),
            max_ns: self.max_ns,
        }
    }
}

impl Row {
    fn line(&self, all: u64) -> String {
        let errors = if self.errors == 0 {
            String::new()
        } else {
            self.errors.to_string()
        };
        format!(
            "{:>6.2} {:>11} {:>11} {:>11} {:>9} {:>7} {}",
            percent(self.total_ns, all),
            thousandths(self.total_ns / 1000),
            thousandths(self.median_ns),
            thousandths(self.max_ns),
            self.calls,
            errors,
            self.name
        )
    }
}

#[allow(clippy::cast_precision_loss)] // a share for people
fn percent(part: u64, all: u64) -> f64 {
    if all == 0 {
        return 0.0;
    }
    part as f64 * 100.0 / all as f64
}

/// A number of thousandths, with a decimal point.
fn thousandths(value: u64) -> String {
    format!("{}.{:03}", value / 1000, value % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, failed: bool) -> Line {
        Line {
            name: name.into(),
            args: Vec::new(),
            result: None,
            failed,
        }
    }

    #[test]
    fn the_costliest_comes_first_with_its_median() {
        let mut summary = Summary::default();
        for took in [100, 300, 200] {
            summary.count(&line("a", false), took);
        }
        summary.count(&line("b", true), 5_000_000);
        let rows = summary.rows();
        assert_eq!((rows[0].name.as_str(), rows[0].errors), ("b", 1));
        assert_eq!((rows[1].calls, rows[1].total_ns), (3, 600));
        assert_eq!((rows[1].median_ns, rows[1].max_ns), (200, 300));
        let table = summary.table();
        assert_eq!(
            table[2],
            " 99.99       5.000    5000.000    5000.000         1       1 b"
        );
    }

    #[test]
    fn time_is_shared_out_once() {
        let call = |in_multicall| What::Hypercall {
            number: 1,
            args: [0; 6],
            result: Some(0),
            in_multicall,
            data: Vec::new(),
        };
        let mut summary = Summary::default();
        let mut add = |vcpu, time_ns, took_ns, what| {
            let record = Record {
                time_ns,
                took_ns,
                vcpu,
                what,
            };
            summary.add(&record, &line("x", false));
        };
        add(0, 1000, 100, call(false));
        add(0, 1010, 20, call(true));
        add(0, 2000, 500, What::Slept);
        add(1, 5000, 50, call(false));
        let shares = summary.shares();
        assert_eq!(shares.traced_ns, 1500 + 50);
        assert_eq!((shares.slept_ns, shares.served_ns), (500, 150));
        assert_eq!(shares.guest_ns, 1550 - 650);
        assert_eq!(summary.rows()[0].calls, 3);
    }

    #[test]
    fn memory_stays_bounded_and_the_median_right() {
        let mut summary = Summary::default();
        for took in 0..(SAMPLES as u64 * 5) {
            summary.count(&line("a", false), took);
        }
        let counted = &summary.names["a"];
        assert!(counted.samples.len() <= SAMPLES);
        let median = summary.rows()[0].median_ns;
        let middle = SAMPLES as u64 * 5 / 2;
        assert!(median.abs_diff(middle) < middle / 10, "{median}");
        assert_eq!(summary.rows()[0].calls, SAMPLES as u64 * 5);
    }
}
