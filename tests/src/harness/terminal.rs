//! A program on a pseudo-terminal, as a person sees it.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::pty::{Winsize, openpty};

use super::{PATIENCE, eventually};

/// A program and what it has written so far.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Screen>,
    reader: Option<JoinHandle<()>>,
    /// Up to where output was waited for.
    seen: usize,
}

#[derive(Debug, Default)]
struct Screen {
    output: Mutex<Output>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Output {
    text: String,
    ended: bool,
}

impl Terminal {
    /// Starts a program on a terminal of its own.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let size = Winsize {
            ws_row: 50,
            ws_col: 200,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).expect("a pseudo-terminal");
        let slave = || pty.slave.try_clone().expect("a descriptor");
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // The command holds copies of the slave, which would keep it open.
        drop(command);
        drop(pty.slave);
        let screen = Arc::new(Screen::default());
        let master = File::from(pty.master);
        let keys = master.try_clone().expect("a descriptor");
        let filled = Arc::clone(&screen);
        let reader = thread::spawn(move || filled.fill(master));
        Self {
            child,
            keys,
            screen,
            reader: Some(reader),
            seen: 0,
        }
    }

    /// Types.
    ///
    /// # Panics
    /// When the program has gone.
    #[track_caller]
    pub fn send(&mut self, keys: &str) {
        let sent = self.keys.write_all(keys.as_bytes());
        sent.unwrap_or_else(|error| panic!("typing {keys:?}: {error}\n{}", self.transcript()));
    }

    /// Waits for a text that comes after all that was waited for before; what
    /// came until it.
    ///
    /// # Panics
    /// When it does not come, with all that came.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> String {
        let start = Instant::now();
        let mut output = self.screen.lock();
        loop {
            let new = &output.text[self.seen..];
            if let Some(at) = new.find(text) {
                let before = new[..at].to_owned();
                self.seen += at + text.len();
                return before;
            }
            let left = patience.saturating_sub(start.elapsed());
            if output.ended || left.is_zero() {
                let why = if output.ended {
                    "the program's output ended".to_owned()
                } else {
                    format!("nothing within {patience:?}")
                };
                panic!("waited for {text:?}: {why}. All output:\n{}", output.text);
            }
            output = self
                .screen
                .changed
                .wait_timeout(output, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// All output so far.
    #[must_use]
    pub fn transcript(&self) -> String {
        self.screen.lock().text.clone()
    }

    /// Waits for the program's end.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        eventually("the program on the terminal ends", PATIENCE, || {
            self.child.try_wait().expect("one's own child")
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ended already, or of no use any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the last process has closed the terminal.
    fn fill(&self, mut master: File) {
        let mut buffer = [0; 4096];
        // Bytes of a character whose end has not come yet.
        let mut rest = Vec::new();
        while let Ok(count @ 1..) = master.read(&mut buffer) {
            rest.extend(&buffer[..count]);
            let text = take_text(&mut rest);
            self.lock().text.push_str(&text);
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// The whole characters at the front.
fn take_text(bytes: &mut Vec<u8>) -> String {
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    };
    let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
    bytes.drain(..whole);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_typed_to_and_read() {
        let mut terminal = Terminal::start(Command::new("cat"));
        terminal.send("grüße\n");
        terminal.wait_for("grüße", PATIENCE);
        // Once by the terminal's echo, once by cat.
        terminal.wait_for("grüße", PATIENCE);
        terminal.send("\x04");
        assert!(terminal.wait_for_end().success());
    }

    #[test]
    #[should_panic(expected = "output ended")]
    fn a_program_that_ends_is_not_waited_for() {
        Terminal::start(Command::new("true")).wait_for("x", PATIENCE);
    }

    #[test]
    fn characters_are_not_cut() {
        let mut bytes = "aé".as_bytes()[..2].to_vec();
        assert_eq!(take_text(&mut bytes), "a");
        bytes.push("é".as_bytes()[1]);
        assert_eq!(take_text(&mut bytes), "é");
        assert!(bytes.is_empty());
    }
}
