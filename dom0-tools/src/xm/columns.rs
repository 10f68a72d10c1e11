//! The columns that programs parse.
//!
//! Law: every width here is an interface. `list` has exactly six fields
//! separated by blanks, whatever a domain is called.

use domus_privcmd::protocol::DomainInfo;

/// `SHUTDOWN_crash`.
const SHUTDOWN_CRASH: u32 = 3;

/// The six letters of a domain's state: `rbpscd`, `-` where it is not so. A
/// domain that is paused or has ended neither runs nor waits, whatever its
/// vCPUs did last.
#[must_use]
pub fn state_letters(info: &DomainInfo) -> String {
    let crashed = info.shutdown == Some(SHUTDOWN_CRASH);
    let ended = info.shutdown.is_some() || info.dying;
    let goes_on = !ended && !info.paused;
    let letters = [
        (info.running && goes_on, 'r'),
        (info.blocked && goes_on, 'b'),
        (info.paused && !ended, 'p'),
        (info.shutdown.is_some() && !crashed, 's'),
        (crashed, 'c'),
        (info.dying, 'd'),
    ];
    letters
        .iter()
        .map(|(is, letter)| if *is { *letter } else { '-' })
        .collect()
}

/// The one word for a state, as `xm domstate` says it.
#[must_use]
pub fn state_word(info: &DomainInfo) -> &'static str {
    match info.shutdown {
        _ if info.dying => "dying",
        Some(SHUTDOWN_CRASH) => "crashed",
        Some(_) => "shutdown",
        None if info.paused => "paused",
        None if info.blocked => "idle",
        None => "running",
    }
}

/// The header of `xm list`.
#[must_use]
pub fn list_header() -> String {
    format!(
        "{:<40} {:>5} {:>5} {:>5} {:>10} {:>9}",
        "Name", "ID", "Mem", "VCPUs", "State", "Time(s)"
    )
}

/// A row of `xm list`.
#[must_use]
pub fn list_row(
    name: &str,
    dom: u16,
    mem_mib: u64,
    vcpus: u32,
    state: &str,
    time_s: f64,
) -> String {
    format!("{name:<40} {dom:>5} {mem_mib:>5} {vcpus:>5} {state:>10} {time_s:>8.1}")
}

/// The header of `xm vcpu-list`.
#[must_use]
pub fn vcpu_header() -> String {
    format!(
        "{:<32} {:>5} {:>5} {:>5} {:>5} {:>9} {}",
        "Name", "ID", "VCPU", "CPU", "State", "Time(s)", "CPU Affinity"
    )
}

/// A row of `xm vcpu-list`; `cpu` is `-` for a vCPU that is down.
#[must_use]
pub fn vcpu_row(
    name: &str,
    dom: u16,
    vcpu: u32,
    cpu: &str,
    state: &str,
    time_s: f64,
    affinity: &str,
) -> String {
    format!("{name:<32} {dom:>5} {vcpu:>5} {cpu:>5} {state:>5} {time_s:>9.1} {affinity}")
}

/// A row of `xm info`.
#[must_use]
pub fn info_row(key: &str, value: &str) -> String {
    format!("{key:<23}: {value}")
}

/// The header of `xm uptime`.
#[must_use]
pub fn uptime_header() -> String {
    format!("{:<33} {:>4} {}", "Name", "ID", "Uptime")
}

/// A row of `xm uptime`.
#[must_use]
pub fn uptime_row(name: &str, dom: u16, seconds: u64) -> String {
    format!("{name:<33} {dom:>4} {}", duration(seconds, true))
}

/// A row of `xm uptime -s`; `now` is the time of day, `12:34:56`.
#[must_use]
pub fn uptime_short(name: &str, dom: u16, seconds: u64, now: &str) -> String {
    format!(" {now} up {}, {name} ({dom})", duration(seconds, false))
}

/// `2 days,  1:02:03`.
fn duration(seconds: u64, with_seconds: bool) -> String {
    let days = seconds / 86400;
    let days = match days {
        0 => String::new(),
        1 => "1 day, ".to_owned(),
        n => format!("{n} days, "),
    };
    let (hours, minutes, rest) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    if with_seconds {
        format!("{days}{hours:>2}:{minutes:02}:{rest:02}")
    } else {
        format!("{days}{hours:>2}:{minutes:02}")
    }
}

/// Nanoseconds of CPU time in seconds, for `Time(s)`.
#[must_use]
#[allow(clippy::cast_precision_loss)] // shown with one digit after the point
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Pages in MiB, rounded down.
#[must_use]
pub const fn mib(pages: u64) -> u64 {
    pages / 256
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn info() -> DomainInfo {
        DomainInfo {
            dom: 5,
            uuid: Uuid::nil(),
            running: false,
            blocked: false,
            paused: false,
            shutdown: None,
            dying: false,
            tot_pages: 0,
            max_pages: 0,
            cpu_time_ns: 0,
            nr_online_vcpus: 1,
            max_vcpu_id: 0,
            shared_info_frame: 0,
            generation: 1,
        }
    }

    #[test]
    fn states() {
        let of = |change: fn(&mut DomainInfo)| {
            let mut info = info();
            change(&mut info);
            (state_letters(&info), state_word(&info))
        };
        let expect = |letters: &str, word| (letters.to_owned(), word);
        assert_eq!(of(|_| {}), expect("------", "running"));
        assert_eq!(of(|i| i.running = true), expect("r-----", "running"));
        assert_eq!(of(|i| i.blocked = true), expect("-b----", "idle"));
        assert_eq!(of(|i| i.paused = true), expect("--p---", "paused"));
        let all = |i: &mut DomainInfo| (i.running, i.blocked, i.paused) = (true, true, true);
        assert_eq!(of(all), expect("--p---", "paused"));
        assert_eq!(of(|i| i.shutdown = Some(0)), expect("---s--", "shutdown"));
        assert_eq!(of(|i| i.shutdown = Some(3)), expect("----c-", "crashed"));
        assert_eq!(of(|i| i.dying = true), expect("-----d", "dying"));
    }

    #[test]
    fn list() {
        assert_eq!(
            list_header(),
            "Name                                        ID   Mem VCPUs      State   Time(s)"
        );
        assert_eq!(
            list_row("Domain-0", 0, 1024, 4, "r-----", 1234.56),
            "Domain-0                                     0  1024     4     r-----   1234.6"
        );
        let long = list_row(&"n".repeat(60), 12, 8, 1, "-b----", 0.04);
        assert_eq!(long.split_whitespace().count(), 6);
        assert!(long.ends_with("n    12     8     1     -b----      0.0"));
    }

    #[test]
    fn vcpus() {
        assert_eq!(
            vcpu_header(),
            "Name                                ID  VCPU   CPU State   Time(s) CPU Affinity"
        );
        assert_eq!(
            vcpu_row("web1", 3, 0, "1", "-b-", 12.34, "any cpu"),
            "web1                                 3     0     1   -b-      12.3 any cpu"
        );
        assert_eq!(
            vcpu_row("web1", 3, 1, "-", "--p", 0.0, "0-3"),
            "web1                                 3     1     -   --p       0.0 0-3"
        );
    }

    #[test]
    fn info_rows() {
        assert_eq!(
            info_row("host", "myhost"),
            "host                   : myhost"
        );
    }

    #[test]
    fn uptimes() {
        assert_eq!(
            uptime_header(),
            "Name                                ID Uptime"
        );
        assert_eq!(
            uptime_row("web1", 3, 3723),
            "web1                                 3  1:02:03"
        );
        assert_eq!(
            uptime_row("web1", 3, 2 * 86400 + 36000),
            "web1                                 3 2 days, 10:00:00"
        );
        assert_eq!(
            uptime_short("web1", 3, 86400 + 60, "12:34:56"),
            " 12:34:56 up 1 day,  0:01, web1 (3)"
        );
    }
}
