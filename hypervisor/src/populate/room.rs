//! How much memory is left, here and in the control group.

use std::{fs, path::Path};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Bytes of memory: the narrowest of the host's and of each control group's
/// that this process is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    available: u64,
    total: u64,
}

impl Room {
    /// As it is now; `None` if the host does not tell.
    pub fn now() -> Option<Self> {
        let host = host(&fs::read_to_string("/proc/meminfo").ok()?)?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let groups = Path::new(own.unwrap_or("")).ancestors();
        let groups = groups.filter_map(|group| {
            let group = Path::new(CGROUPS).join(group);
            let number = |name| fs::read_to_string(group.join(name)).ok();
            limit(&number("memory.max")?, &number("memory.current")?)
        });
        Some(groups.fold(host, Room::narrower))
    }

    /// Whether there is more than half.
    pub fn is_ample(self) -> bool {
        self.available > self.total / 2
    }

    fn narrower(self, other: Room) -> Room {
        let share = |room: Room| u128::from(room.available) << 64;
        let of = |room: Room| u128::from(room.total.max(1));
        if share(other) / of(other) < share(self) / of(self) {
            other
        } else {
            self
        }
    }
}

/// From `/proc/meminfo`.
fn host(text: &str) -> Option<Room> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let number = line.trim().strip_suffix("kB")?.trim().parse::<u64>();
        number.ok()?.checked_mul(1024)
    };
    Some(Room {
        available: field("MemAvailable:")?,
        total: field("MemTotal:")?,
    })
}

/// From a control group's limit and use; `None` if it has no limit.
fn limit(max: &str, current: &str) -> Option<Room> {
    let total = max.trim().parse::<u64>().ok()?;
    let used = current.trim().parse::<u64>().ok()?;
    Some(Room {
        available: total.saturating_sub(used),
        total,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_counts() {
        let text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\n";
        let room = host(text).unwrap();
        assert_eq!((room.available, room.total), (600 << 10, 1000 << 10));
        assert!(room.is_ample());
        assert_eq!(limit("max\n", "5\n"), None);
        let group = limit("1000\n", "400\n").unwrap();
        assert!(room.narrower(group).is_ample());
        let full = limit("1000\n", "500\n").unwrap();
        assert!(!room.narrower(full).is_ample() && !full.narrower(room).is_ample());
        assert_eq!(limit("10\n", "20\n").unwrap().available, 0);
        assert_eq!(host("MemTotal: 7 kB\n"), None);
        assert!(Room::now().is_some());
    }
}
