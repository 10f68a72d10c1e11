//! xenconsoled as a program, with the real xenstored, and a hypervisor whose
//! guests are played by the test.
//!
//! What it must survive: its own death by `kill -9` with guests running, a
//! guest's end, a guest that floods, a new xenstored, and the hypervisor's end.

mod fake_hypervisor;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use dom0_tools::xenstore::client::{Client as Store, Nodes};
use fake_hypervisor::{BASE_MFN, FakeHypervisor, GuestConsole};
use guest_abi::addr::{DomId, Mfn, Port};

const CONSOLE_PAGE: u64 = 5;
const CONSOLE_PORT: u32 = 2;
const STORE_PAGE: u64 = 6;
const STORE_PORT: u32 = 1;

/// One installation, in a directory of its own.
struct Site {
    dir: tempfile::TempDir,
    hypervisor: FakeHypervisor,
    xenstored: Child,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hypervisor = FakeHypervisor::listen(&dir.path().join("privcmd.sock"));
        let xenstored = start_xenstored(dir.path());
        Self {
            dir,
            hypervisor,
            xenstored,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xenconsoled"));
        in_site(&mut command, self.dir.path());
        command
    }

    /// Starts it in the foreground and waits until it serves.
    fn xenconsoled(&self) -> Daemon {
        let log = File::create(self.dir.path().join("xenconsoled.out")).unwrap();
        let mut child = self
            .command()
            .args(["--foreground", "--ready-on-stdout"])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = [0; 6];
        child
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut line)
            .expect("it says that it is ready");
        assert_eq!(&line, b"ready\n");
        Daemon { child }
    }

    fn store(&self) -> Store {
        Store::connect_to(&self.dir.path().join("xenstored/socket")).unwrap()
    }

    /// Makes a domain and its nodes, as xm does.
    fn guest(&self, dom: u16, name: &str) -> Guest<'_> {
        let memory = self.hypervisor.create(dom);
        let mut store = self.store();
        let home = format!("/local/domain/{dom}");
        store
            .transaction(|tx| {
                tx.write(&format!("{home}/name"), name)?;
                tx.write(&format!("{home}/console/type"), "xenconsoled")?;
                let mfn = BASE_MFN + CONSOLE_PAGE;
                tx.write(&format!("{home}/console/ring-ref"), mfn.to_string())?;
                tx.write(&format!("{home}/console/port"), CONSOLE_PORT.to_string())
            })
            .unwrap();
        let mfn = Mfn(BASE_MFN + STORE_PAGE);
        store.introduce(DomId(dom), mfn, Port(STORE_PORT)).unwrap();
        Guest {
            site: self,
            dom,
            console: GuestConsole::new(&memory, CONSOLE_PAGE),
        }
    }

    fn log(&self, name: &str) -> Vec<u8> {
        let path = self.dir.path().join(format!("log/console/{name}.log"));
        fs::read(path).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.xenstored.kill();
        let _ = self.xenstored.wait();
    }
}

fn in_site(command: &mut Command, dir: &Path) {
    command
        .env("DOMUS_RUN_DIR", dir)
        .env_remove("DOMUS_LOG_DIR")
        .env_remove("XENSTORED_PATH")
        .env_remove("XENSTORED_RUNDIR")
        .stdin(Stdio::null());
}

struct Daemon {
    child: Child,
}

impl Daemon {
    fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    /// Resident memory, in bytes.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.child.id());
        let text = fs::read_to_string(path).unwrap();
        let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Guest<'a> {
    site: &'a Site,
    dom: u16,
    console: GuestConsole,
}

impl Guest<'_> {
    fn print(&self, text: &[u8]) {
        let mut rest = text;
        let until = deadline();
        while !rest.is_empty() {
            let count = self.console.print(rest);
            rest = &rest[count..];
            self.site.hypervisor.notify(self.dom, CONSOLE_PORT);
            if count == 0 {
                assert!(Instant::now() < until, "nobody empties the ring");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn wait_until_typed(&self, expected: &[u8]) {
        let mut typed = Vec::new();
        eventually("keys reach the guest", || {
            typed.extend(self.console.typed());
            self.site.hypervisor.notify(self.dom, CONSOLE_PORT);
            typed.len() >= expected.len()
        });
        assert_eq!(typed, expected);
    }

    /// The terminal that the store names.
    fn tty(&self) -> Option<PathBuf> {
        let node = format!("/local/domain/{}/console/tty", self.dom);
        let name = self.site.store().find(&node).unwrap()?;
        Some(name.into())
    }

    fn open_tty(&self) -> File {
        eventually("the tty node is there", || self.tty().is_some());
        open(&self.tty().unwrap())
    }

    /// As the monitor does when the domain has died.
    fn end(self) {
        self.site.hypervisor.destroy(self.dom);
        let mut store = self.site.store();
        let _ = store.release(DomId(self.dom));
        store.rm(&format!("/local/domain/{}", self.dom)).unwrap();
    }
}

fn open(tty: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(tty)
        .unwrap()
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = deadline();
    while !is_so() {
        assert!(Instant::now() < until, "not so: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Reads a terminal until `end` has come.
fn read_until(tty: &mut File, end: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    let until = deadline();
    while !got.ends_with(end) {
        let mut buf = [0; 4096];
        match tty.read(&mut buf) {
            Ok(0) => panic!("hung up after {:?}", String::from_utf8_lossy(&got)),
            Ok(count) => got.extend(&buf[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = String::from_utf8_lossy(&got);
                assert!(Instant::now() < until, "no more than {text:?}");
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    got
}

fn is_hung_up(tty: &mut File) -> bool {
    match tty.read(&mut [0; 64]) {
        Ok(count) => count == 0,
        Err(error) => error.raw_os_error() == Some(libc::EIO),
    }
}

fn start_xenstored(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenstored"));
    in_site(&mut command, dir);
    let log = File::create(dir.join("xenstored.out")).unwrap();
    let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let socket = dir.join("xenstored/socket");
    eventually("xenstored answers", || Store::connect_to(&socket).is_ok());
    child
}

#[test]
fn bytes_pass_between_guest_and_terminal_and_into_the_log() {
    let site = Site::new();
    let _daemon = site.xenconsoled();
    let guest = site.guest(1, "web");
    let mut tty = guest.open_tty();
    let mode = fs::metadata(guest.tty().unwrap()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    let greeting = "Grüß Gott\r\nlogin: ".as_bytes();
    guest.print(greeting);
    assert_eq!(read_until(&mut tty, b"login: "), greeting);
    assert!(site.hypervisor.notified(1, CONSOLE_PORT) > 0);
    tty.write_all(b"root\r\x03\xff").unwrap();
    guest.wait_until_typed(b"root\r\x03\xff");
    assert_eq!(site.log("web"), greeting);
}

#[test]
fn much_passes_without_a_loss() {
    let site = Site::new();
    let _daemon = site.xenconsoled();
    let guest = site.guest(1, "much");
    let mut tty = guest.open_tty();
    let lines: Vec<u8> = (0..20_000)
        .flat_map(|i| format!("{i:06}\r\n").into_bytes())
        .collect();
    let reader = thread::spawn(move || read_until(&mut tty, b"019999\r\n"));
    guest.print(&lines);
    assert!(reader.join().unwrap() == lines);
    assert!(site.log("much") == lines);
}

#[test]
fn a_killed_daemons_successor_goes_on() {
    let site = Site::new();
    let daemon = site.xenconsoled();
    let guest = site.guest(1, "web");
    let mut tty = guest.open_tty();
    guest.print(b"before ");
    read_until(&mut tty, b"before ");
    let old = guest.tty();
    daemon.kill_9();
    eventually("the old terminal hangs up", || is_hung_up(&mut tty));
    // The guest prints while nobody listens.
    guest.console.print(b"between ");

    let _successor = site.xenconsoled();
    eventually("a new terminal is named", || {
        guest.tty().is_some_and(|tty| {
            // The number may be the same one again: then it must be alive.
            Some(&tty) != old.as_ref() || tty.exists()
        })
    });
    let mut tty = guest.open_tty();
    guest.print(b"after");
    assert_eq!(read_until(&mut tty, b"after"), b"between after");
    tty.write_all(b"hello").unwrap();
    guest.wait_until_typed(b"hello");
    assert_eq!(site.log("web"), b"before between after");
}

#[test]
fn a_guests_last_words_are_read() {
    let site = Site::new();
    let _daemon = site.xenconsoled();
    let guest = site.guest(1, "short");
    let mut tty = guest.open_tty();
    guest.print(b"up. ");
    read_until(&mut tty, b"up. ");
    // Without a notification: the end itself must be reason enough to look.
    guest.console.print(b"Power down.\r\n");
    guest.end();
    assert_eq!(read_until(&mut tty, b"\r\n"), b"Power down.\r\n");
    eventually("then it hangs up", || is_hung_up(&mut tty));
    assert_eq!(site.log("short"), b"up. Power down.\r\n");
}

#[test]
fn a_number_that_is_used_again_is_another_domain() {
    let site = Site::new();
    let _daemon = site.xenconsoled();
    let first = site.guest(7, "first");
    let mut old = first.open_tty();
    first.print(b"one");
    read_until(&mut old, b"one");
    first.end();
    let second = site.guest(7, "second");
    let mut tty = second.open_tty();
    second.print(b"two");
    assert_eq!(read_until(&mut tty, b"two"), b"two");
    eventually("the first one's hangs up", || is_hung_up(&mut old));
    assert_eq!(
        (site.log("first"), site.log("second")),
        (b"one".into(), b"two".into())
    );
}

#[test]
fn a_flood_neither_grows_the_daemon_nor_stops_another_console() {
    let site = Site::new();
    let daemon = site.xenconsoled();
    let (loud, calm) = (site.guest(1, "loud"), site.guest(2, "calm"));
    let mut tty = calm.open_tty();
    loud.open_tty();
    let end = Instant::now() + Duration::from_secs(3);
    let flooding = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut moved = 0;
            while Instant::now() < end {
                moved += loud.console.print(&[b'x'; 2048]);
                site.hypervisor.notify(1, CONSOLE_PORT);
            }
            moved
        });
        let before = daemon.memory();
        while Instant::now() < end {
            let asked = Instant::now();
            calm.print(b"?");
            read_until(&mut tty, b"?");
            assert!(asked.elapsed() < Duration::from_secs(3));
            thread::sleep(Duration::from_millis(10));
        }
        let grown = daemon.memory().saturating_sub(before);
        assert!(grown < 4 << 20, "{grown}");
        flood.join().unwrap()
    });
    assert!(flooding < 6 << 20, "{flooding} bytes in 3 s");
}

#[test]
fn a_log_that_was_moved_away_is_opened_again() {
    let site = Site::new();
    let daemon = site.xenconsoled();
    let guest = site.guest(1, "web");
    guest.open_tty();
    guest.print(b"old");
    eventually("it is logged", || site.log("web") == b"old");
    let log = site.dir.path().join("log/console/web.log");
    fs::rename(&log, log.with_extension("moved")).unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("a new log is there", || log.exists());
    guest.print(b"new");
    eventually("it is logged", || site.log("web") == b"new");
}

#[test]
fn a_new_name_makes_a_new_log() {
    let site = Site::new();
    let _daemon = site.xenconsoled();
    let guest = site.guest(1, "old");
    guest.open_tty();
    guest.print(b"one");
    eventually("it is logged", || site.log("old") == b"one");
    site.store().write("/local/domain/1/name", "new").unwrap();
    let log = site.dir.path().join("log/console/new.log");
    eventually("the new log is there", || log.exists());
    guest.print(b"two");
    eventually("it is logged", || site.log("new") == b"two");
    assert_eq!(site.log("old"), b"one");
}

#[test]
fn nonsense_in_the_store_harms_nobody() {
    let site = Site::new();
    let _daemon = site.xenconsoled();
    let good = site.guest(1, "good");
    let mut tty = good.open_tty();
    let _bad = site.guest(2, "../../bad");
    let mut store = site.store();
    for nonsense in ["99999999999", "0", "-1", "x", ""] {
        store
            .write("/local/domain/2/console/ring-ref", nonsense)
            .unwrap();
        store
            .write("/local/domain/2/console/port", nonsense)
            .unwrap();
    }
    store.write("/local/domain/2/name", b"\xff\xfe").unwrap();
    store.rm("/local/domain/2").unwrap();
    good.print(b"still here");
    read_until(&mut tty, b"still here");
    assert!(!site.dir.path().join("bad.log").exists());
}

#[test]
fn a_new_xenstored_is_found() {
    let mut site = Site::new();
    let _daemon = site.xenconsoled();
    let guest = site.guest(1, "web");
    let mut tty = guest.open_tty();
    guest.print(b"one");
    read_until(&mut tty, b"one");
    site.xenstored.kill().unwrap();
    site.xenstored.wait().unwrap();
    site.xenstored = start_xenstored(site.dir.path());
    let guest = site.guest(2, "next");
    let mut second = guest.open_tty();
    guest.print(b"two");
    assert_eq!(read_until(&mut second, b"two"), b"two");
}

#[test]
fn it_goes_into_the_background_when_it_serves() {
    let site = Site::new();
    let guest = site.guest(1, "web");
    let done = site.command().output().unwrap();
    assert!(done.status.success(), "{}", text_of(&done));
    // Now, without waiting.
    let tty = guest.tty().expect("it serves");
    assert!(tty.exists());

    let again = site.command().output().unwrap();
    assert!(!again.status.success());
    assert!(
        text_of(&again).contains("already running"),
        "{}",
        text_of(&again)
    );

    site.hypervisor.hang_up();
    let pid_file = site.dir.path().join("xenconsoled.pid");
    eventually("it ends with the hypervisor", || {
        domus_privcmd::pidfile::holder(&pid_file).is_none()
    });
}

#[test]
fn without_a_hypervisor_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenconsoled"));
    in_site(&mut command, dir.path());
    let done = command.output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(
        text_of(&done).contains("no hypervisor is running"),
        "{}",
        text_of(&done)
    );
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
