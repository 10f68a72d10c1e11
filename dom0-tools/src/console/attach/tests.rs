//! A person at a terminal (a pty) or a script at a pipe, against consoles that
//! are ptys as the daemon makes them.

use std::{
    collections::VecDeque,
    io::{PipeReader, PipeWriter, Read, Write, pipe},
    sync::{Arc, Mutex},
};

use nix::sys::termios::{LocalFlags, tcgetattr};

use super::*;
use crate::console::pty::Pty;

/// Consoles that appear one after the other; no more of them: the guest ended.
#[derive(Clone, Default)]
struct Script {
    ttys: Arc<Mutex<VecDeque<PathBuf>>>,
    dead: Arc<Mutex<bool>>,
}

impl Script {
    fn show(&self, pty: &Pty) {
        self.ttys.lock().unwrap().push_back(pty.path().into());
    }
    fn end(&self) {
        *self.dead.lock().unwrap() = true;
    }
}

impl Source for Script {
    fn tty(&mut self) -> Option<PathBuf> {
        self.ttys.lock().unwrap().back().cloned()
    }
    fn alive(&mut self) -> bool {
        !*self.dead.lock().unwrap()
    }
}

/// A visit from a script, in a thread of its own.
struct Visit {
    keys: Option<PipeWriter>,
    screen: PipeReader,
    thread: thread::JoinHandle<Result<End, AttachError>>,
}

fn visit(script: &Script) -> Visit {
    let (keys_out, keys) = pipe().unwrap();
    let (screen, screen_in) = pipe().unwrap();
    let mut source = script.clone();
    let thread = thread::spawn(move || attach_to(&mut source, keys_out.as_fd(), screen_in.as_fd()));
    Visit {
        keys: Some(keys),
        screen,
        thread,
    }
}

impl Visit {
    fn type_in(&mut self, keys: &[u8]) {
        self.keys.as_mut().unwrap().write_all(keys).unwrap();
    }
    fn see(&mut self, expected: &[u8]) {
        let mut seen = vec![0; expected.len()];
        self.screen.read_exact(&mut seen).unwrap();
        assert_eq!(seen, expected);
    }
    fn end(self) -> Result<End, AttachError> {
        self.thread.join().unwrap()
    }
}

/// Reads what reaches the daemon's side.
fn receive(pty: &mut Pty, expected: &[u8]) {
    let mut got: Vec<u8> = Vec::new();
    let end = Instant::now() + Duration::from_secs(10);
    while got.len() < expected.len() {
        assert!(Instant::now() < end, "got {got:?}");
        let mut buf = [0; 256];
        match pty.read(&mut buf).unwrap() {
            Some(count) => got.extend(&buf[..count]),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
    assert_eq!(got, expected);
}

#[test]
fn bytes_pass_as_they_are_and_the_key_leaves() {
    let (script, mut pty) = (Script::default(), Pty::new().unwrap());
    script.show(&pty);
    let mut visit = visit(&script);
    let text = "grüße \x1b[1m\u{1F600}\r\n\x00\x03\x04\x1a".as_bytes();
    pty.write(text).unwrap();
    visit.see(text);
    visit.type_in(text);
    receive(&mut pty, text);
    visit.type_in(b"last\x1dnot this");
    receive(&mut pty, b"last");
    assert_eq!(visit.end().unwrap(), End::Detached);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(pty.read(&mut [0; 8]).unwrap(), None);
}

#[test]
fn the_end_of_a_pipe_ends_nothing_but_the_input() {
    let (script, mut pty) = (Script::default(), Pty::new().unwrap());
    script.show(&pty);
    let mut visit = visit(&script);
    visit.type_in(b"poweroff\n");
    visit.keys = None;
    receive(&mut pty, b"poweroff\n");
    pty.write(b"going down\n").unwrap();
    visit.see(b"going down\n");
    script.end();
    drop(pty);
    assert_eq!(visit.end().unwrap(), End::GuestEnded);
}

#[test]
fn a_new_daemons_terminal_is_followed() {
    let (script, mut pty) = (Script::default(), Pty::new().unwrap());
    script.show(&pty);
    let mut visit = visit(&script);
    pty.write(b"one").unwrap();
    visit.see(b"one");
    let mut next = Pty::new().unwrap();
    drop(pty);
    thread::sleep(Duration::from_millis(100));
    script.show(&next);
    next.write(b"two").unwrap();
    visit.see(b"two");
    script.end();
    drop(next);
    assert_eq!(visit.end().unwrap(), End::GuestEnded);
}

#[test]
fn two_people_do_not_share_a_console() {
    let (script, pty) = (Script::default(), Pty::new().unwrap());
    script.show(&pty);
    let mut first = visit(&script);
    let mut pty = pty;
    pty.write(b"x").unwrap();
    first.see(b"x");
    assert!(matches!(visit(&script).end(), Err(AttachError::Busy(_))));
    first.type_in(&[DETACH]);
    assert_eq!(first.end().unwrap(), End::Detached);
}

#[test]
fn a_file_in_a_terminals_place_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = Script::default();
    script.ttys.lock().unwrap().push_back(file.path().into());
    let outcome = visit(&script).end();
    assert!(matches!(outcome, Err(AttachError::NotATerminal(_))));
    let link = file.path().with_extension("link");
    let pty = Pty::new().unwrap();
    std::os::unix::fs::symlink(pty.path(), &link).unwrap();
    script.ttys.lock().unwrap().push_back(link.clone());
    let outcome = visit(&script).end();
    std::fs::remove_file(link).unwrap();
    assert!(matches!(outcome, Err(AttachError::Io(_))), "{outcome:?}");
}

#[test]
fn a_guest_that_is_gone_is_an_end() {
    let script = Script::default();
    script.end();
    assert_eq!(visit(&script).end().unwrap(), End::GuestEnded);
}

/// A person at a terminal: it is raw during the visit and as before after it,
/// and the key leaves although the guest reads nothing.
#[test]
fn a_persons_terminal_is_given_back() {
    let (script, console) = (Script::default(), Pty::new().unwrap());
    script.show(&console);
    let mut person = Pty::new().unwrap();
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(person.path())
        .unwrap();
    let mut cooked = tcgetattr(&terminal).unwrap();
    cooked.local_flags |= LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
    let when = nix::sys::termios::SetArg::TCSANOW;
    nix::sys::termios::tcsetattr(&terminal, when, &cooked).unwrap();
    let flags = |terminal: &File| tcgetattr(terminal).unwrap().local_flags;
    let before = flags(&terminal);

    let theirs = terminal.try_clone().unwrap();
    let mut source = script.clone();
    let visit = thread::spawn(move || attach_to(&mut source, theirs.as_fd(), theirs.as_fd()));
    let end = Instant::now() + Duration::from_secs(10);
    while flags(&terminal).contains(LocalFlags::ICANON) {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(1));
    }
    // More than the console, whose daemon is asleep, ever takes.
    for _ in 0..200 {
        while person.write(&[b'k'; 1000]).unwrap().is_none() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
    }
    while person.write(&[DETACH]).unwrap().is_none() {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(visit.join().unwrap().unwrap(), End::Detached);
    assert_eq!(flags(&terminal), before);
    drop(console);
}
