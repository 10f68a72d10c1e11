//! One domain's console.
//!
//! Law: what the guest prints goes to the log first and then, as far as the
//! backlog's limit allows, to whoever looks at the terminal. Nothing that the
//! guest or a person does makes a console hold more than its limits.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use guest_abi::{
    addr::Port,
    console::{XENCONS_IN_SIZE, XENCONS_OUT_SIZE},
};

use super::{backlog::Backlog, log::Log, pty::Pty, rate::Allowance, ring::Ring};

/// Output that waits for a reader, as Xen's daemon holds it.
pub const BACKLOG_LIMIT: usize = 1 << 20;

/// Tells the guest that its ring has changed.
pub trait Bell {
    /// Notifies the other end of `port`.
    fn ring(&self, port: Port);
}

/// The hypervisor's part of a console.
#[derive(Debug)]
pub struct Line {
    /// The shared page.
    pub ring: Ring,
    /// Our port.
    pub port: Port,
    /// Readable when the guest has notified us.
    pub event: OwnedFd,
}

/// What a console waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// The guest's notification.
    pub event: bool,
    /// A person's keys.
    pub keys: bool,
    /// Room in the terminal.
    pub screen: bool,
    /// Look again after this long.
    pub again: Option<Duration>,
}

/// A console at work.
#[derive(Debug)]
pub struct Console {
    line: Line,
    pty: Pty,
    log: Log,
    backlog: Backlog,
    allowance: Allowance,
    /// The last line that was printed has not ended.
    in_line: bool,
}

impl Console {
    /// Puts a console together.
    #[must_use]
    pub fn new(line: Line, pty: Pty, log: Log, now: Instant) -> Self {
        Self {
            line,
            pty,
            log,
            backlog: Backlog::new(BACKLOG_LIMIT),
            allowance: Allowance::new(now),
            in_line: false,
        }
    }

    /// The terminal's name.
    #[must_use]
    pub fn tty(&self) -> &Path {
        self.pty.path()
    }

    /// Our port.
    #[must_use]
    pub const fn port(&self) -> Port {
        self.line.port
    }

    /// The two descriptors to wait on: the guest's and the terminal's.
    #[must_use]
    pub fn fds(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.line.event.as_fd(), self.pty.as_fd())
    }

    /// What to wait for.
    pub fn interest(&mut self, now: Instant) -> Interest {
        let again = self.allowance.pause(now);
        Interest {
            event: again.is_none(),
            keys: self.line.ring.input_room() > 0,
            screen: !self.backlog.is_empty(),
            again,
        }
    }

    /// Answers the guest's notification: takes a ring's length of output at
    /// most, so that the other consoles get their turn.
    pub fn serve_guest(&mut self, bell: &dyn Bell) {
        // Emptied before the ring is looked at: what the guest adds later
        // notifies again.
        let _ = nix::unistd::read(&self.line.event, &mut [0; 8]);
        let moved = self.take_output(bell);
        self.allowance.spend(moved);
    }

    /// Passes on what a person has typed, as far as the guest has room.
    ///
    /// # Errors
    /// What the terminal gives.
    pub fn serve_keys(&mut self, bell: &dyn Bell) -> io::Result<()> {
        let mut buf = [0; XENCONS_IN_SIZE];
        let room = self.line.ring.input_room();
        if room == 0 {
            return Ok(());
        }
        if let Some(count) = self.pty.read(&mut buf[..room])? {
            // The room can only have grown, unless the guest cheats itself.
            self.line.ring.put_input(&buf[..count]);
            bell.ring(self.line.port);
        }
        Ok(())
    }

    /// Shows as much of the backlog as the terminal takes.
    ///
    /// # Errors
    /// What the terminal gives.
    pub fn serve_screen(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            match self.pty.write(self.backlog.front())? {
                Some(count) => self.backlog.consume(count),
                None => break,
            }
        }
        Ok(())
    }

    /// Takes what is left in the ring of a guest that has ended.
    pub fn take_last_words(&mut self, bell: &dyn Bell) {
        self.take_output(bell);
        let _ = self.serve_screen();
    }

    /// Whether everything has been read from the terminal.
    #[must_use]
    pub fn is_read_out(&self) -> bool {
        self.backlog.is_empty() && !self.pty.has_unread()
    }

    /// Goes on with another ring: the guest has been given a new one.
    pub fn set_line(&mut self, line: Line) {
        self.line = line;
    }

    /// Goes on in another log.
    pub fn set_log(&mut self, log: Log) {
        self.log = log;
    }

    /// Opens the log again, after somebody has moved it away.
    pub fn reopen_log(&mut self) {
        self.log.reopen();
    }

    /// Adds a text of somebody else's, on lines of its own.
    pub fn say(&mut self, text: &str) {
        let own_line = if self.in_line { "\r\n" } else { "" };
        self.put(format!("{own_line}{text}").as_bytes());
    }

    /// What is printed: to the log and the backlog.
    fn put(&mut self, bytes: &[u8]) {
        self.in_line = bytes.last().is_some_and(|last| *last != b'\n');
        self.log.write(bytes);
        if self.backlog.push(bytes) > 0 {
            // What the kernel holds is older than what was just pushed out: a
            // late reader shall find the newest without a hole.
            self.pty.forget_unread();
        }
    }

    fn take_output(&mut self, bell: &dyn Bell) -> usize {
        let mut buf = [0; XENCONS_OUT_SIZE];
        let count = self.line.ring.take_output(&mut buf);
        if count == 0 {
            return 0;
        }
        bell.ring(self.line.port);
        self.put(&buf[..count]);
        count
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs::File, os::unix::fs::FileExt};

    use guest_abi::addr::PAGE_SIZE;
    use nix::sys::eventfd::EventFd;

    use super::*;

    #[derive(Default)]
    struct Counter(Cell<usize>);

    impl Bell for Counter {
        fn ring(&self, port: Port) {
            assert_eq!(port, Port(7));
            self.0.set(self.0.get() + 1);
        }
    }

    struct Guest {
        page: File,
        event: EventFd,
        printed: u32,
    }

    impl Guest {
        /// Writes as much as fits now; how much that was.
        fn print(&mut self, text: &[u8]) -> usize {
            let mut cons = [0; 4];
            self.page.read_exact_at(&mut cons, 3080).unwrap();
            let used = self.printed.wrapping_sub(u32::from_le_bytes(cons));
            let room = XENCONS_OUT_SIZE - usize::try_from(used).unwrap();
            let text = &text[..room.min(text.len())];
            for byte in text {
                let at = 1024 + u64::from(self.printed) % 2048;
                self.page.write_all_at(&[*byte], at).unwrap();
                self.printed = self.printed.wrapping_add(1);
            }
            let prod = self.printed.to_le_bytes();
            self.page.write_all_at(&prod, 3084).unwrap();
            self.event.write(1).unwrap();
            text.len()
        }
    }

    fn console(dir: &Path) -> (Console, Guest) {
        let page = tempfile::tempfile().unwrap();
        page.set_len(PAGE_SIZE).unwrap();
        let event = EventFd::new().unwrap();
        let line = Line {
            ring: Ring::map(page.try_clone().unwrap().into(), 0).unwrap(),
            port: Port(7),
            event: event.as_fd().try_clone_to_owned().unwrap(),
        };
        let log = Log::open(dir, "guest");
        let console = Console::new(line, Pty::new().unwrap(), log, Instant::now());
        let guest = Guest {
            page,
            event,
            printed: 0,
        };
        (console, guest)
    }

    /// What a person reads now at the terminal.
    fn read_screen(console: &mut Console, far: &mut File) -> Vec<u8> {
        use std::io::Read;
        let mut all = Vec::new();
        let mut quiet = 0;
        while quiet < 20 {
            console.serve_screen().unwrap();
            let mut buf = [0; 4096];
            match far.read(&mut buf) {
                Ok(count) => {
                    quiet = 0;
                    all.extend(&buf[..count]);
                }
                Err(_) => {
                    quiet += 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        all
    }

    fn open_far(console: &Console) -> File {
        use std::os::unix::fs::OpenOptionsExt;
        File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(console.tty())
            .unwrap()
    }

    #[test]
    fn output_reaches_log_and_terminal_and_the_guest_hears_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut console, mut guest) = console(dir.path());
        let bell = Counter::default();
        guest.print(b"hello\r\n");
        console.serve_guest(&bell);
        assert_eq!(bell.0.get(), 1);
        let mut far = open_far(&console);
        assert_eq!(read_screen(&mut console, &mut far), b"hello\r\n");
        let log = std::fs::read(dir.path().join("guest.log")).unwrap();
        assert_eq!(log, b"hello\r\n");
        // A notification without output gets no answer.
        guest.event.write(1).unwrap();
        console.serve_guest(&bell);
        assert_eq!(bell.0.get(), 1);
    }

    #[test]
    fn a_late_reader_finds_the_newest_output_without_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let (mut console, mut guest) = console(dir.path());
        let lines = 3 * BACKLOG_LIMIT / 16;
        for i in 0..lines {
            let line = format!("line {i:09}\r\n");
            assert_eq!(guest.print(line.as_bytes()), 16);
            console.serve_guest(&Counter::default());
            console.serve_screen().unwrap();
        }
        let mut far = open_far(&console);
        let seen = String::from_utf8(read_screen(&mut console, &mut far)).unwrap();
        let (_, seen) = seen.split_once("line ").unwrap();
        let numbers: Vec<usize> = seen
            .split("line ")
            .map(|text| text.trim().parse().unwrap())
            .collect();
        assert!(numbers.len() > BACKLOG_LIMIT / 16 - 16, "{}", numbers.len());
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
        assert_eq!(numbers.last(), Some(&(lines - 1)));
    }

    #[test]
    fn a_flood_is_paused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut console, mut guest) = console(dir.path());
        let start = Instant::now();
        let mut moved = 0;
        while console.interest(start).event {
            moved += guest.print(&[b'x'; 2048]);
            console.serve_guest(&Counter::default());
            assert!(moved < 1 << 20);
        }
        let wait = console.interest(start).again.unwrap();
        assert!(console.interest(start + wait).event);
        assert!(console.backlog.len() <= BACKLOG_LIMIT);
    }

    #[test]
    fn keys_wait_until_the_guest_has_room() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let (mut console, guest) = console(dir.path());
        let bell = Counter::default();
        let mut far = open_far(&console);
        let mut sent = 0;
        let deadline = Instant::now() + Duration::from_secs(10);
        while console.interest(Instant::now()).keys {
            assert!(Instant::now() < deadline);
            sent += far.write(&[b'k'; 100]).unwrap_or(0);
            console.serve_keys(&bell).unwrap();
        }
        assert!(sent >= XENCONS_IN_SIZE);
        console.serve_keys(&bell).unwrap();
        // The guest reads: in_cons = in_prod.
        let mut prod = [0; 4];
        guest.page.read_exact_at(&mut prod, 3076).unwrap();
        assert_eq!(u32::from_le_bytes(prod), 1024);
        guest.page.write_all_at(&prod, 3072).unwrap();
        assert!(console.interest(Instant::now()).keys);
    }
}
