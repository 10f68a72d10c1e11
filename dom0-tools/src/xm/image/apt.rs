//! Where Debian's packages come from: as the host's apt is configured.

use std::process::Command;

/// Debian's public mirror, where the host says nothing.
pub const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// The release that is made, unless asked for another.
pub const DEFAULT_SUITE: &str = "bookworm";

/// What of apt's configuration an image's packages are fetched by.
const PASSED_ON: [&str; 6] = [
    "Acquire::http",
    "Acquire::https",
    "Acquire::Retries",
    "Acquire::ForceIPv",
    "Acquire::Check-",
    "Acquire::Queue-Mode",
];

/// The package sources of a suite, as lines of sources.list: the host's, if it
/// has some of that suite, else Debian's mirror. The first is the suite itself.
#[must_use]
pub fn sources(suite: &str, mirror: Option<&str>) -> Vec<String> {
    if let Some(mirror) = mirror {
        return vec![format!("deb {mirror} {suite} main")];
    }
    let format = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(CREATED_BY)";
    let listed = output("apt-get", &["indextargets", "--format", format]);
    let found = from_targets(suite, &listed);
    if found.is_empty() {
        return vec![format!("deb {DEFAULT_MIRROR} {suite} main")];
    }
    found
}

fn from_targets(suite: &str, listed: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for release in [
        suite.to_owned(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
    ] {
        for line in listed.lines() {
            let fields: Vec<&str> = line.split('|').collect();
            if let [uri, of, "main", "Packages"] = fields[..]
                && of == release
                && uri.starts_with("http")
            {
                let source = format!("deb {} {release} main", uri.trim_end_matches('/'));
                if !found.contains(&source) {
                    found.push(source);
                }
            }
        }
    }
    // Updates without what they update are of no use.
    let whole = found
        .first()
        .is_some_and(|f| f.contains(&format!(" {suite} ")));
    if whole { found } else { Vec::new() }
}

/// The host's settings for fetching (proxies, checks), as a configuration file.
#[must_use]
pub fn settings() -> String {
    let dump = output("apt-config", &["dump"]);
    let wanted = |line: &&str| PASSED_ON.iter().any(|key| line.starts_with(key));
    let lines = dump
        .lines()
        .filter(wanted)
        .filter(|line| !line.ends_with("\"\";"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What a program says; nothing if it can't be run.
fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(
        |_| String::new(),
        |o| String::from_utf8_lossy(&o.stdout).into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_sources_are_taken() {
        let listed = "http://m/debian/|bookworm|main|Packages\nhttp://m/debian/|bookworm|main|Translations\n\
                      http://m/sec/|bookworm-security|main|Packages\nhttp://other|nodistro|main|Packages\n\
                      http://m/debian/|bookworm-updates|contrib|Packages\ncdrom://x|bookworm|main|Packages\n";
        assert_eq!(
            from_targets("bookworm", listed),
            [
                "deb http://m/debian bookworm main",
                "deb http://m/sec bookworm-security main"
            ]
        );
        assert_eq!(from_targets("trixie", listed), Vec::<String>::new());
        assert_eq!(sources("x", Some("http://y")), ["deb http://y x main"]);
    }
}
