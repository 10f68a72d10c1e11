//! Where the Dom0 services and their clients meet.
//!
//! `DOMUS_RUN_DIR` moves everything of one installation elsewhere, so that
//! several (tests, say) live side by side on one host.

use std::{env, path::PathBuf};

/// Sockets, pid files and other state that ends with the host's boot.
#[must_use]
pub fn run_dir() -> PathBuf {
    env_path("DOMUS_RUN_DIR").unwrap_or_else(|| "/run/domus".into())
}

/// Log files: the hypervisor's, the services', and each domain's console.
#[must_use]
pub fn log_dir() -> PathBuf {
    env_path("DOMUS_LOG_DIR")
        .or_else(|| env_path("DOMUS_RUN_DIR").map(|dir| dir.join("log")))
        .unwrap_or_else(|| "/var/log/domus".into())
}

/// What is kept to be quicker the next time, and may be removed at any time.
#[must_use]
pub fn cache_dir() -> PathBuf {
    env_path("DOMUS_CACHE_DIR")
        .or_else(|| env_path("DOMUS_RUN_DIR").map(|dir| dir.join("cache")))
        .unwrap_or_else(|| "/var/cache/domus".into())
}

/// The hypervisor's socket.
#[must_use]
pub fn privcmd_socket() -> PathBuf {
    run_dir().join("privcmd.sock")
}

/// The xenstore daemon's socket, where Xen's clients look for it too.
#[must_use]
pub fn xenstored_socket() -> PathBuf {
    env_path("XENSTORED_PATH")
        .or_else(|| env_path("XENSTORED_RUNDIR").map(|dir| dir.join("socket")))
        .or_else(|| env_path("DOMUS_RUN_DIR").map(|dir| dir.join("xenstored/socket")))
        .unwrap_or_else(|| "/var/run/xenstored/socket".into())
}

/// The file that a service locks while it lives and that holds its pid.
#[must_use]
pub fn pid_file(service: &str) -> PathBuf {
    run_dir().join(format!("{service}.pid"))
}

fn env_path(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}
