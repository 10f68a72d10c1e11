//! Programs that a back end starts: hotplug scripts and user-mode networks.
//!
//! Law: a child begins with no signal blocked and in a process group of its
//! own, and only a bounded part of what it says is kept.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{ChildStderr, Command},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use nix::sys::signal::SigSet;
use tracing::info;

/// The longest line that is read as one.
const LINE: u64 = 1024;
/// Lines that are kept.
const KEPT: usize = 20;

/// Makes a child start with no signal blocked (the back end's main thread
/// blocks those that it reads from a descriptor) and in its own process group.
pub fn with_clean_signals(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: between fork and exec it makes one system call and touches no
    // memory but its own stack.
    unsafe {
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    command
}

/// What a child says on its standard error: into the log, and the last lines
/// kept.
#[derive(Debug)]
pub struct Listener {
    lines: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
}

impl Listener {
    /// Listens until the child, and whoever has its end of the pipe, ends.
    #[must_use]
    pub fn start(name: &str, pipe: ChildStderr) -> Self {
        let lines = Arc::default();
        let (kept, name) = (Arc::clone(&lines), name.to_owned());
        let thread = thread::spawn(move || listen(&name, pipe, &kept));
        Self { lines, thread }
    }

    /// Whether all that was said has been heard.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// The last line that is worth telling, if there was one.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.last().cloned()
    }
}

fn listen(name: &str, pipe: impl Read, kept: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(pipe);
    let mut bytes = Vec::new();
    while matches!((&mut reader).take(LINE).read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
        let line = String::from_utf8_lossy(&bytes).trim().to_owned();
        bytes.clear();
        // passt says this of each message where there is no syslog.
        if line.is_empty() || line.starts_with("Failed to send ") {
            continue;
        }
        info!("{name}: {line}");
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_kept_of_a_child_that_says_much() {
        let kept = Mutex::default();
        let mut text = vec![b'x'; 1 << 20];
        text.extend(b"\nthe reason\nFailed to send 9 bytes to syslog\n");
        listen("test", &text[..], &kept);
        let kept = kept.into_inner().unwrap();
        assert_eq!(
            (kept.len(), kept.last().unwrap().as_str()),
            (KEPT, "the reason")
        );
        assert!(kept.iter().all(|line| line.len() <= 1024));
    }
}
