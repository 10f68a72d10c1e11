//! The privcmd socket as Dom0 processes meet it: real sockets, real processes,
//! and callers that misbehave. The calls behind it are a small book-keeper, so
//! that each test can ask whether all was given back.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use domus_privcmd::{
    client::{Client, ClientError},
    protocol::{Failure, MAX_MESSAGE, PROTOCOL_VERSION, Reply, Request, Response},
    wire::{Channel, Patience},
};
use guest_abi::{
    addr::{DomId, Port, VcpuId},
    errno::Errno,
};
use hypervisor::privcmd::{Answer, Dom0Calls, Limits, PID_FILE, Server, ServerError, Session};
use nix::sys::eventfd::EventFd;

/// Ports given and taken back, and nothing else of a hypervisor.
#[derive(Default)]
struct Books {
    next_port: AtomicUsize,
    bound: Mutex<BTreeSet<(u64, Port)>>,
    released: AtomicUsize,
}

impl Books {
    fn bound(&self) -> usize {
        self.bound.lock().unwrap().len()
    }
}

impl Dom0Calls for Books {
    fn handle(&self, session: &mut Session, request: Request) -> Result<Answer, Failure> {
        match request {
            Request::EvtchnBindVirq { .. } => {
                let number = self.next_port.fetch_add(1, Ordering::Relaxed) + 1;
                let port = Port(u32::try_from(number).unwrap());
                self.bound.lock().unwrap().insert((session.id(), port));
                session.hold_port(port);
                let eventfd = EventFd::from_value(port.0).unwrap();
                let fd: OwnedFd = eventfd.as_fd().try_clone_to_owned().unwrap();
                Ok(Answer::with_fd(Reply::Port(port.0), fd))
            }
            Request::EvtchnClose { port } => {
                let port = Port(port);
                if !session.forget_port(port) {
                    return Err(Failure::new(Errno::EINVAL, format!("no port {port}")));
                }
                self.bound.lock().unwrap().remove(&(session.id(), port));
                Ok(Answer::DONE)
            }
            Request::DestroyDomain { dom } => panic!("as asked, by domain {dom}"),
            Request::PauseDomain { .. } => {
                thread::sleep(Duration::from_millis(300));
                Ok(Answer::DONE)
            }
            Request::GetVcpuContext { .. } => {
                Ok(Reply::VcpuContext(vec![0; MAX_MESSAGE + 1]).into())
            }
            other => Err(Failure::new(Errno::ENOSYS, other.name())),
        }
    }

    fn release(&self, session: Session) {
        let mut bound = self.bound.lock().unwrap();
        for port in session.ports() {
            assert!(bound.remove(&(session.id(), port)), "{port} twice");
        }
        self.released.fetch_add(1, Ordering::SeqCst);
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    books: Arc<Books>,
    server: Server,
}

const QUICK: Limits = Limits {
    connections: 24,
    hello: Duration::from_millis(400),
    message: Duration::from_millis(400),
};

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let books = Arc::new(Books::default());
        let server = Server::start(&socket_in(dir.path()), books.clone(), QUICK).unwrap();
        Self { dir, books, server }
    }

    fn socket(&self) -> PathBuf {
        socket_in(self.dir.path())
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    /// A connection that has said hello and will misbehave.
    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        let channel = Channel::over(&stream, Patience::default());
        let version = PROTOCOL_VERSION;
        channel.send(&Request::Hello { version }, &[]).unwrap();
        let answer = channel.receive::<Response>(0).unwrap().unwrap();
        assert_eq!(answer.0, Ok(Reply::Done));
        stream
    }

    fn settled(&self) -> bool {
        eventually(|| self.server.connections() == 0) && self.books.bound() == 0
    }
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("privcmd.sock")
}

fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if is_so() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn a_reply_carries_its_descriptor() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let (port, eventfd) = client.evtchn_bind_virq(3).unwrap();
    let mut count = [0; 8];
    fs::File::from(eventfd).read_exact(&mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), u64::from(port.0));
    client.evtchn_close(port).unwrap();
    assert_eq!(fixture.books.bound(), 0);
}

#[test]
fn a_failure_arrives_with_its_number_and_its_reason() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let error = client.evtchn_close(Port(77)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL));
    assert_eq!(error.to_string(), "no port 77 (EINVAL (invalid argument))");
    // And the connection is as good as before.
    assert!(client.evtchn_bind_virq(0).is_ok());
}

#[test]
fn the_end_of_a_connection_gives_its_ports_back() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.client(), fixture.client());
    for _ in 0..5 {
        one.evtchn_bind_virq(0).unwrap();
    }
    two.evtchn_bind_virq(0).unwrap();
    drop(one);
    assert!(eventually(|| fixture.books.bound() == 1));
    // A port of another session is not ours to close.
    let error = fixture.client().evtchn_close(Port(6)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL));
    drop(two);
    assert!(fixture.settled());
}

#[test]
fn threads_share_a_client() {
    let fixture = Fixture::new();
    let client = fixture.client();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (port, _eventfd) = client.evtchn_bind_virq(0).unwrap();
                    client.evtchn_close(port).unwrap();
                }
            });
        }
    });
    assert_eq!(fixture.books.bound(), 0);
}

#[test]
fn nothing_listening_is_said_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::connect(&socket_in(dir.path())).unwrap_err();
    assert!(matches!(error, ClientError::NoHypervisor { .. }));
    assert!(error.to_string().contains("domus-hypervisor"), "{error}");
}

#[test]
fn another_version_is_refused_in_words() {
    let fixture = Fixture::new();
    let stream = UnixStream::connect(fixture.socket()).unwrap();
    let channel = Channel::over(stream, Patience::default());
    let version = PROTOCOL_VERSION + 1;
    channel.send(&Request::Hello { version }, &[]).unwrap();
    let (answer, _) = channel.receive::<Response>(0).unwrap().unwrap();
    let failure = answer.unwrap_err();
    assert_eq!(failure.errno(), Errno::EACCES);
    assert!(failure.why.contains("restart"), "{failure}");
    assert!(channel.receive::<Response>(0).unwrap().is_none());
}

#[test]
fn no_request_is_served_before_the_hello() {
    let fixture = Fixture::new();
    let stream = UnixStream::connect(fixture.socket()).unwrap();
    let channel = Channel::over(stream, Patience::default());
    channel
        .send(&Request::EvtchnBindVirq { virq: 0 }, &[])
        .unwrap();
    let (answer, fds) = channel.receive::<Response>(4).unwrap().unwrap();
    assert_eq!(answer.unwrap_err().errno(), Errno::EINVAL);
    assert!(fds.is_empty());
    assert!(fixture.settled());
    assert_eq!(fixture.books.next_port.load(Ordering::Relaxed), 0);
}

#[test]
fn a_silent_caller_is_dropped_and_a_greeted_one_may_be_silent() {
    let fixture = Fixture::new();
    let silent = UnixStream::connect(fixture.socket()).unwrap();
    let client = fixture.client();
    assert!(eventually(|| fixture.server.connections() == 1));
    thread::sleep(QUICK.hello + QUICK.message);
    assert!(client.evtchn_bind_virq(0).is_ok());
    drop(silent);
}

#[test]
fn half_a_message_blocks_nobody_else() {
    let fixture = Fixture::new();
    let halves: Vec<_> = (0..8)
        .map(|n| {
            let mut stream = fixture.raw();
            stream.write_all(&[9, 0, 0, 0][..1 + n % 4]).unwrap();
            stream
        })
        .collect();
    let started = Instant::now();
    assert!(fixture.client().evtchn_bind_virq(0).is_ok());
    assert!(started.elapsed() < QUICK.message);
    // They run out of time, though they keep their ends open.
    assert!(eventually(|| fixture.server.connections() == 0));
    drop(halves);
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let fixture = Fixture::new();
    let client = fixture.client();
    client.evtchn_bind_virq(0).unwrap();
    let bodies: [&[u8]; 5] = [
        &[0xff; 4],
        &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 0],
        &[5, 0, 0, 0, 1, 0, 0, 0, 9],
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    for body in bodies {
        let mut stream = fixture.raw();
        stream.write_all(body).unwrap();
        let channel = Channel::over(&stream, Patience::default());
        let (answer, _) = channel.receive::<Response>(0).unwrap().unwrap();
        assert_eq!(answer.unwrap_err().errno(), Errno::EBADMSG, "{body:?}");
        let end = channel.receive::<Response>(0);
        assert!(!matches!(end, Ok(Some(_))), "{body:?}: {end:?}");
    }
    assert!(client.evtchn_bind_virq(0).is_ok());
    drop(client);
    assert!(fixture.settled());
}

#[test]
fn a_caller_that_sends_descriptors_does_not_fill_our_table() {
    let fixture = Fixture::new();
    let channel = Channel::over(fixture.raw(), Patience::default());
    let (mut watched, sent) = UnixStream::pair().unwrap();
    channel
        .send(&Request::HostInfo, &[sent.as_fd(), sent.as_fd()])
        .unwrap();
    drop(sent);
    let (answer, _) = channel.receive::<Response>(0).unwrap().unwrap();
    assert_eq!(answer.unwrap_err().errno(), Errno::ENOSYS);
    watched
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    assert_eq!(watched.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_caller_that_does_not_read_its_replies_is_dropped() {
    let fixture = Fixture::new();
    let mut stream = fixture.raw();
    let channel = Channel::over(
        &stream,
        Patience {
            idle: None,
            message: Some(Duration::from_millis(50)),
        },
    );
    // Each of these makes the server say a little; at last it can't.
    let flooded = (0..1_000_000).find_map(|_| channel.send(&Request::HostInfo, &[]).err());
    assert!(flooded.is_some());
    assert!(eventually(|| fixture.server.connections() == 0));
    assert!(fixture.client().evtchn_bind_virq(0).is_ok());
    let _ = stream.read(&mut [0; 1]);
}

#[test]
fn too_many_connections_are_refused_in_words() {
    let fixture = Fixture::new();
    let held: Vec<_> = (0..QUICK.connections).map(|_| fixture.client()).collect();
    match Client::connect(&fixture.socket()) {
        Err(ClientError::Refused(failure)) => {
            assert_eq!(failure.errno(), Errno::EBUSY);
            assert!(failure.why.contains("24"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    drop(held);
    assert!(eventually(|| Client::connect(&fixture.socket()).is_ok()));
}

#[test]
fn a_panic_in_a_call_ends_that_session_only() {
    let fixture = Fixture::new();
    let (victim, other) = (fixture.client(), fixture.client());
    victim.evtchn_bind_virq(0).unwrap();
    other.evtchn_bind_virq(0).unwrap();
    let error = victim.destroy_domain(DomId(5)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EIO));
    let error = victim.evtchn_bind_virq(0).unwrap_err();
    assert!(
        matches!(error, ClientError::Disconnected { .. }),
        "{error:?}"
    );
    assert!(eventually(|| fixture.books.bound() == 1));
    assert!(other.evtchn_bind_virq(0).is_ok());
}

#[test]
fn a_reply_beyond_the_limit_becomes_an_error() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let error = client.vcpu_context(DomId(1), VcpuId(0)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::E2BIG));
    assert!(client.evtchn_bind_virq(0).is_ok());
}

#[test]
fn a_storm_of_connections_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let socket = fixture.socket();
    thread::scope(|scope| {
        for seed in 0..4usize {
            let socket = &socket;
            scope.spawn(move || {
                for round in 0..100 {
                    storm(socket, seed + round);
                }
            });
        }
    });
    assert!(fixture.settled());
    assert!(fixture.client().evtchn_bind_virq(0).is_ok());
}

fn storm(socket: &Path, kind: usize) {
    match kind % 4 {
        0 => drop(UnixStream::connect(socket)),
        1 => {
            let mut stream = UnixStream::connect(socket).unwrap();
            let _ = stream.write_all(&[8, 0, 0, 0, 0, 0]);
        }
        2 => {
            // May be turned away when all places are taken: that's no failure.
            if let Ok(client) = Client::connect(socket) {
                let _ = client.evtchn_bind_virq(0).unwrap();
            }
        }
        _ => {
            if let Ok(client) = Client::connect(socket) {
                let (port, _fd) = client.evtchn_bind_virq(0).unwrap();
                client.evtchn_close(port).unwrap();
            }
        }
    }
}

/// Not a test: the process that [`a_killed_process_gives_its_ports_back`]
/// kills. It binds ports and stops in the middle of its next message.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn victim_process() {
    let Some(socket) = std::env::var_os("VICTIM_SOCKET") else {
        return;
    };
    let client = Client::connect(Path::new(&socket)).unwrap();
    client.evtchn_bind_virq(0).unwrap();
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[8, 0, 0]).unwrap();
    println!("bound");
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_process_gives_its_ports_back() {
    let fixture = Fixture::new();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "victim_process", "--nocapture"])
        .env("VICTIM_SOCKET", fixture.socket())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let bound = eventually(|| fixture.books.bound() == 1);
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(bound, "the victim never bound its port");
    assert!(fixture.settled());
}

#[test]
fn stop_releases_every_session_and_removes_the_socket() {
    let fixture = Fixture::new();
    let clients: Vec<_> = (0..6).map(|_| fixture.client()).collect();
    for client in &clients {
        client.evtchn_bind_virq(0).unwrap();
    }
    let half = fixture.raw();
    (&half).write_all(&[1]).unwrap();
    let socket = fixture.socket();
    fixture.server.stop();
    assert_eq!(fixture.books.bound(), 0);
    assert_eq!(fixture.books.released.load(Ordering::SeqCst), 7);
    assert!(!socket.exists());
    let error = clients[0].evtchn_bind_virq(0).unwrap_err();
    assert!(
        matches!(error, ClientError::Disconnected { .. }),
        "{error:?}"
    );
}

#[test]
fn stop_lets_a_call_finish() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let caller = thread::spawn(move || client.pause_domain(DomId(1)));
    thread::sleep(Duration::from_millis(100));
    fixture.server.stop();
    caller.join().unwrap().unwrap();
}

#[test]
fn socket_and_directory_are_for_their_owner_only() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("a/b");
    let books = Arc::new(Books::default());
    let _server = Server::start(&socket_in(&dir), books, QUICK).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&socket_in(&dir)), 0o600);
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let started = Server::start(&socket_in(dir.path()), Arc::new(Books::default()), QUICK);
    let error = started.err().expect("refused");
    assert!(matches!(error, ServerError::OpenDirectory { .. }));
    assert!(error.to_string().contains("777"), "{error}");
}

#[test]
fn a_second_hypervisor_is_refused_and_harms_nothing() {
    let fixture = Fixture::new();
    let again = Server::start(&fixture.socket(), Arc::new(Books::default()), QUICK);
    let error = again.err().expect("refused");
    assert!(matches!(error, ServerError::AlreadyRunning { .. }));
    let pid = std::process::id().to_string();
    assert!(error.to_string().contains(&pid), "{error}");
    assert!(fixture.client().evtchn_bind_virq(0).is_ok());
}

#[test]
fn a_dead_hypervisors_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_in(dir.path());
    // What a killed process leaves: a socket file that nobody listens on, and
    // a pid file that nobody locks.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    fs::write(dir.path().join(PID_FILE), "1\n").unwrap();
    assert!(
        fs::metadata(&socket).unwrap().file_type().is_socket(),
        "left over"
    );
    let error = Client::connect(&socket).unwrap_err();
    assert!(matches!(error, ClientError::NoHypervisor { .. }));
    let server = Server::start(&socket, Arc::new(Books::default()), QUICK).unwrap();
    assert!(
        Client::connect(&socket)
            .unwrap()
            .evtchn_bind_virq(0)
            .is_ok()
    );
    server.stop();
}
