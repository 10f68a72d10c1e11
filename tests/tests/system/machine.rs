//! A machine on the network, as people use one: ping, ssh and apt, seen from
//! the host and from inside.
//!
//! **Mechanism.** The test runs in a network namespace with a bridge. Host's
//! side: `ssh`, an `sshd` of the test's own, and [`Mirror`], a web server of a few
//! lines that has one Debian package.
//!
//! **Limits.** The addresses are fixed: no DHCP server is asked. apt trusts the
//! package without a signature.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use domus_tests::harness::{Child, Guest, Installation, eventually, ip, is_installed};

const HOST: &str = "10.9.0.1";
const GUEST: &str = "10.9.0.2";
const MIRROR_PORT: u16 = 8080;
/// A whole system's way to a listening sshd.
const START: Duration = Duration::from_secs(300);

/// What the host's side needs.
pub fn can_be_reached() -> bool {
    is_installed("ssh", "openssh-client")
        && is_installed("sshd", "openssh-server")
        && is_installed("ping", "iputils-ping")
}

/// The host's half: a bridge, keys, an sshd, a mirror.
pub struct Network {
    dir: PathBuf,
    _sshd: Child,
    mirror: Mirror,
}

impl Network {
    /// In the namespace of this thread; its files go to `dir`.
    pub fn new(dir: PathBuf) -> Self {
        ip("link add br0 type bridge");
        ip(&format!("address add {HOST}/24 dev br0"));
        ip("link set br0 up");
        fs::create_dir(&dir).expect("a new directory");
        for key in ["key", "host_key"] {
            let file = dir.join(key);
            let file = file.to_str().expect("a path of ours");
            tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", file]);
        }
        let sshd = sshd(&dir);
        let mirror = Mirror::start(&dir.join("mirror"));
        Self {
            dir,
            _sshd: sshd,
            mirror,
        }
    }

    /// Gives a guest its address, over its console, and lets each side's root
    /// in at the other's.
    pub fn introduce(&self, guest: &mut Guest<'_>) {
        guest.run(&format!(
            "printf 'auto lo eth0\\niface lo inet loopback\\niface eth0 inet static\\n \
             address {GUEST}/24\\n' > /etc/network/interfaces"
        ));
        // From the next start on; now there is a client that asks in vain.
        guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 1; done; pkill dhclient; sleep 1");
        guest.run(&format!(
            "ip link set eth0 up && ip address add {GUEST}/24 dev eth0"
        ));
        let key = fs::read_to_string(self.dir.join("key.pub")).expect("the key's public half");
        guest.run("mkdir -p -m 700 /root/.ssh");
        guest.run(&format!(
            "echo '{}' > /root/.ssh/authorized_keys",
            key.trim()
        ));
        guest.run("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519");
        let key = guest.run("cat /root/.ssh/id_ed25519.pub");
        fs::write(self.dir.join("authorized_keys"), key).expect("room");
    }

    /// A command in the guest by way of ssh; what it printed, if it succeeded.
    pub fn try_in_guest(&self, command: &str) -> Option<String> {
        let said = self.ssh(command).stdin(Stdio::null()).output();
        let said = said.expect("ssh runs");
        let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        said.status.success().then_some(text)
    }

    #[track_caller]
    pub fn in_guest(&self, command: &str) -> String {
        let said = self.try_in_guest(command);
        said.unwrap_or_else(|| panic!("in the guest, by ssh: `{command}`"))
    }

    /// Until ssh answers: a whole system is on its way.
    #[track_caller]
    pub fn wait_for_guest(&self) {
        eventually("ssh to the guest", START, || self.try_in_guest("true"));
    }

    fn ssh(&self, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=20",
        ])
        .args(["-o", "StrictHostKeyChecking=accept-new", "-o"])
        .arg(format!(
            "UserKnownHostsFile={}",
            self.dir.join("known").display()
        ))
        .arg("-i")
        .arg(self.dir.join("key"))
        .args([&format!("root@{GUEST}"), command])
        .stderr(Stdio::inherit());
        ssh
    }

    /// Both ways: small packets, large ones, ssh, and data that are the same
    /// afterwards.
    pub fn both_ways(&self, domus: &Installation) {
        let ping = tool("ping", &["-c", "3", "-W", "20", GUEST]);
        assert!(ping.contains(" 3 received"), "{ping}");
        let ping = self.in_guest(&format!("ping -c 3 -W 20 {HOST}"));
        assert!(ping.contains(" 3 received"), "{ping}");

        let data = domus.path("data");
        tool(
            "dd",
            &[
                "if=/dev/urandom",
                &format!("of={}", data.display()),
                "bs=1M",
                "count=8",
            ],
        );
        let sum = sum_of(&data);
        let mut up = self.ssh("cat > /root/data && sha256sum < /root/data");
        up.stdin(fs::File::open(&data).expect("written just now"));
        let up = up.stdout(Stdio::piped()).spawn().expect("ssh runs");
        // Whose root file system is on one of them, and whose connection is on the
        // other, notices nothing.
        for back_end in ["/blkback ", "/netback "] {
            let all = domus.processes();
            let found = all.iter().find(|p| p.command.contains(back_end));
            found.expect("its back end").kill();
        }
        let said = up.wait_with_output().expect("one's own child");
        assert!(String::from_utf8_lossy(&said.stdout).starts_with(&sum));
        let back = domus.path("back");
        let mut down = self.ssh("cat /root/data");
        down.stdout(fs::File::create(&back).expect("room"));
        assert!(down.status().expect("ssh runs").success());
        assert_eq!(sum_of(&back), sum);
        fs::remove_file(back).expect("one's own file");

        // Guest to host.
        let there = self.in_guest(&format!(
            "ssh -o BatchMode=yes -o StrictHostKeyChecking=no root@{HOST} 'echo $SSH_CONNECTION' \
             2>/dev/null"
        ));
        assert!(
            there.starts_with(GUEST) && there.ends_with(&format!("{HOST} 22")),
            "{there}"
        );
    }

    /// The data of [`both_ways`](Self::both_ways) are there still.
    pub fn data_are_there(&self, domus: &Installation) {
        let sum = self.in_guest("sha256sum < /root/data");
        assert!(sum.starts_with(&sum_of(&domus.path("data"))), "{sum}");
    }

    /// apt in the guest takes its lists and a package from the host.
    pub fn apt_works(&self) {
        self.in_guest("rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*");
        self.in_guest(&format!(
            "echo 'deb [trusted=yes] http://{HOST}:{MIRROR_PORT}/ ./' > /etc/apt/sources.list"
        ));
        let said = self.in_guest("apt-get update 2>&1");
        assert!(said.contains("Reading package lists"), "{said}");
        assert!(!said.contains("\nE:") && !said.contains("\nW:"), "{said}");
        self.in_guest("apt-get install -y domus-greeting >/dev/null 2>&1");
        assert_eq!(self.in_guest("cat /usr/share/domus-greeting"), "hello");
        assert!(self.mirror.sent("/Packages") && self.mirror.sent("/domus-greeting.deb"));
    }
}

/// Runs a program of the host's; what it said.
#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> String {
    let said = Command::new(program).args(args).output();
    let said = said.unwrap_or_else(|error| panic!("{program}: {error}"));
    let (out, err) = (&said.stdout, &said.stderr);
    let text = String::from_utf8_lossy(out).into_owned();
    assert!(
        said.status.success(),
        "{program} {args:?}: {text}{}",
        String::from_utf8_lossy(err)
    );
    text
}

fn sum_of(file: &Path) -> String {
    let said = tool("sha256sum", &[file.to_str().expect("a path of ours")]);
    said.split(' ').next().expect("a word").to_owned()
}

/// An ssh server with keys and settings of its own, on the bridge only.
fn sshd(dir: &Path) -> Child {
    // Debian's needs it, and makes it when its own service starts.
    let _ = fs::create_dir("/run/sshd");
    fs::write(dir.join("authorized_keys"), "").expect("room");
    let show = |name: &str| dir.join(name).display().to_string();
    let settings = format!(
        "ListenAddress {HOST}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nPidFile none\n",
        show("host_key"),
        show("authorized_keys"),
    );
    let file = dir.join("sshd_config");
    fs::write(&file, settings).expect("room");
    let log = fs::File::create(dir.join("sshd.log")).expect("room");
    // It wants to be called by its whole path.
    let mut sshd = Command::new("/usr/sbin/sshd");
    sshd.args(["-D", "-e", "-f"]).arg(file).stderr(log);
    Child::start(&mut sshd)
}

/// A Debian mirror with one package, on the bridge.
struct Mirror {
    log: PathBuf,
}

impl Mirror {
    fn start(dir: &Path) -> Self {
        make_package(dir);
        let listener = TcpListener::bind((HOST, MIRROR_PORT)).expect("a free port");
        let (root, log) = (dir.to_owned(), dir.with_extension("log"));
        let of_thread = log.clone();
        // Ends with the test's process, and is reached in its namespace only.
        thread::spawn(move || {
            let mut log = fs::File::create(of_thread).expect("room");
            for stream in listener.incoming().flatten() {
                if let Some(path) = answer(stream, &root) {
                    let _ = writeln!(log, "{path}");
                }
            }
        });
        Self { log }
    }

    fn sent(&self, path: &str) -> bool {
        let log = fs::read_to_string(&self.log).expect("its log");
        log.lines().any(|line| line.ends_with(path))
    }
}

/// A package with a file, the list of packages, and the list of lists.
fn make_package(dir: &Path) {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("DEBIAN")).expect("room");
    fs::create_dir_all(tree.join("usr/share")).expect("room");
    fs::write(tree.join("usr/share/domus-greeting"), "hello\n").expect("room");
    let control = "Package: domus-greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: a test \
                   <root@localhost>\nDescription: says hello\n";
    fs::write(tree.join("DEBIAN/control"), control).expect("room");
    let deb = dir.join("domus-greeting.deb");
    let text = |path: &Path| path.to_str().expect("a path of ours").to_owned();
    tool("dpkg-deb", &["--build", &text(&tree), &text(&deb)]);
    let size = |file: &Path| fs::metadata(file).expect("written just now").len();
    let list = dir.join("Packages");
    let entry = format!(
        "{control}Filename: ./domus-greeting.deb\nSize: {}\nSHA256: {}\n\n",
        size(&deb),
        sum_of(&deb)
    );
    fs::write(&list, entry).expect("room");
    let release = format!(
        "Origin: test\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {} {} Packages\n",
        sum_of(&list),
        size(&list)
    );
    fs::write(dir.join("Release"), release).expect("room");
}

/// Answers one GET after the other on a connection; the last path that was
/// found.
fn answer(stream: TcpStream, root: &Path) -> Option<String> {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let mut out = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next()?.ok()?;
    let path = request.split(' ').nth(1)?.replace("/./", "/");
    lines
        .by_ref()
        .map_while(Result::ok)
        .find(String::is_empty)?;
    // Nothing but what was put there: no path leads out.
    let name = Path::new(&path).file_name()?;
    let (status, body) = match fs::read(root.join(name)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    out.write_all(head.as_bytes()).ok()?;
    out.write_all(&body).ok()?;
    status.starts_with("200").then_some(path)
}
