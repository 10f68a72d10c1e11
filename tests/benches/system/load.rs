//! Where a guest's work costs processor time: thread by thread.
//!
//! Such times hardly depend on what else the machine does, unlike ratios of
//! speeds.

use std::{collections::BTreeMap, fs, time::Instant};

use domus_privcmd::client::Client;
use domus_tests::harness::{Guest, Installation};
use guest_abi::addr::DomId;

/// Runs a work once more and prints what each of its `pieces` costs: time of
/// processors, and traps.
pub fn costs(domus: &Installation, guest: &mut Guest<'_>, work: &str, pieces: f64, thing: &str) {
    let (client, dom) = (domus.client(), guest.id());
    let (before, load) = (counts(&client, dom), Load::now(domus));
    guest.run(work);
    let (after, used) = (counts(&client, dom), Load::now(domus));
    used.print_since(&load, pieces, thing);
    let each = |name: &str| {
        let of = |list: &[(String, u64)]| {
            let found = list.iter().find(|(counter, _)| counter == name);
            found.map_or(0, |(_, count)| *count)
        };
        (of(&after) - of(&before)) as f64 / pieces
    };
    let traps: Vec<_> = after
        .iter()
        .map(|(name, _)| (name, each(name)))
        .filter(|(_, count)| *count > 0.02)
        .map(|(name, count)| format!("{name} {count:.3}"))
        .collect();
    println!("    traps and the like for a {thing}: {}", traps.join(", "));
}

fn counts(client: &Client, dom: DomId) -> Vec<(String, u64)> {
    client.domain_counters(dom).expect("the domain's counters")
}

/// What a thread has used: on a processor, and waiting for one, in ns.
type Used = (String, u64, u64);

/// Times of all threads of an installation's processes, at one moment.
struct Load {
    at: Instant,
    threads: BTreeMap<(i32, String), Used>,
}

impl Load {
    /// Now.
    fn now(domus: &Installation) -> Self {
        let mut threads = BTreeMap::new();
        for process in domus.processes() {
            let program = process.command.split(' ').next().unwrap_or("");
            let program = program.rsplit('/').next().unwrap_or("").to_owned();
            let tasks = fs::read_dir(format!("/proc/{}/task", process.pid));
            for task in tasks.into_iter().flatten().flatten() {
                if let Some((comm, ran, waited)) = times(&task.path()) {
                    let tid = task.file_name().to_string_lossy().into_owned();
                    let name = format!("{program}/{comm}");
                    threads.insert((process.pid, tid), (name, ran, waited));
                }
            }
        }
        Self {
            at: Instant::now(),
            threads,
        }
    }

    /// Prints what was used since, for each of `count` things.
    fn print_since(&self, before: &Self, count: f64, thing: &str) {
        let wall = self.at.duration_since(before.at).as_secs_f64();
        println!(
            "  {:.1} us a {thing}; of a thread's time:",
            wall * 1e6 / count
        );
        for (id, (name, ran, waited)) in &self.threads {
            let old = before.threads.get(id).map_or((0, 0), |old| (old.1, old.2));
            let (ran, waited) = (ran - old.0, waited - old.1);
            if ran as f64 > wall * 1e7 {
                println!(
                    "    {name}: {:.1} us a {thing} ({:.0} % busy, {:.0} % without a processor)",
                    ran as f64 / 1e3 / count,
                    ran as f64 / wall / 1e7,
                    waited as f64 / wall / 1e7,
                );
            }
        }
    }
}

fn times(task: &std::path::Path) -> Option<(String, u64, u64)> {
    let comm = fs::read_to_string(task.join("comm")).ok()?;
    let stat = fs::read_to_string(task.join("schedstat")).ok()?;
    let mut words = stat.split_whitespace();
    let ran = words.next()?.parse().ok()?;
    let waited = words.next()?.parse().ok()?;
    Some((comm.trim().to_owned(), ran, waited))
}
