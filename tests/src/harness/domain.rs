//! A domain of a test, driven over its console.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use guest_abi::addr::DomId;

use super::{Installation, PATIENCE, Programs, Terminal};
use crate::guest::{
    READY,
    cpio::{Archive, Entry},
    prepare, prepare_with_drivers,
};

/// From `xm create` to a shell on a machine that does much else.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);

/// From `xm create` to the login of a distribution, which starts dozens of
/// programs.
const LOGIN_PATIENCE: Duration = Duration::from_secs(1200);

/// Guests with a user space at once: each wants a CPU and its memory. No test
/// holds one and asks for a second: two such tests would wait for each other.
const AT_ONCE: usize = 2;

/// A domain's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its ramdisk.
    pub ramdisk: Option<PathBuf>,
    /// In MiB.
    pub memory: u64,
    /// Its vCPUs.
    pub vcpus: u32,
    /// More lines of the file.
    pub more: String,
    /// Archives to put in front of the ramdisk.
    pub archives: Vec<Vec<u8>>,
}

impl Config {
    /// Debian's kernel and a shell.
    ///
    /// # Panics
    /// When it can't be fetched.
    #[must_use]
    pub fn debian(name: &str) -> Self {
        let guest = prepare().unwrap_or_else(|error| panic!("no guest: {error}"));
        Self {
            name: name.into(),
            kernel: guest.kernel,
            ramdisk: Some(guest.initramfs),
            memory: 256,
            vcpus: 1,
            more: "extra = \"console=hvc0\"\n".into(),
            archives: Vec::new(),
        }
    }

    /// As [`Config::debian`], with the drivers of disks and network interfaces.
    ///
    /// # Panics
    /// When it can't be fetched.
    #[must_use]
    pub fn debian_with_drivers(name: &str) -> Self {
        let guest = prepare_with_drivers().unwrap_or_else(|error| panic!("no guest: {error}"));
        Self {
            kernel: guest.kernel,
            ramdisk: Some(guest.initramfs),
            ..Self::debian(name)
        }
    }

    /// A kernel of our own: `hello`, or one of `tests/guests`.
    #[must_use]
    pub fn test_kernel(name: &str) -> Self {
        Self::own_kernel(name, &Programs::get().kernel(name))
    }

    /// A kernel image that needs no ramdisk.
    #[must_use]
    pub fn own_kernel(name: &str, kernel: &Path) -> Self {
        Self {
            name: name.into(),
            kernel: kernel.to_owned(),
            ramdisk: None,
            memory: 32,
            vcpus: 1,
            more: String::new(),
            archives: Vec::new(),
        }
    }

    /// Debian's kernel with the front ends' modules: `load xen-netfront` in
    /// its shell loads one.
    ///
    /// # Panics
    /// When they can't be fetched.
    #[must_use]
    pub fn debian_with_modules(name: &str) -> Self {
        let guest = prepare().unwrap_or_else(|error| panic!("no guest: {error}"));
        let modules = guest.modules.expect("a kernel of a package");
        let modules = fs::read(&modules).expect("prepared just now");
        let mut config = Self::debian(name);
        config.archives.push(modules);
        config
    }

    /// With a program in `/bin`.
    #[must_use]
    pub fn program(mut self, name: &str, bytes: &[u8]) -> Self {
        let mut archive = Archive::default();
        archive.add("bin", Entry::Directory);
        archive.add(&format!("bin/{name}"), Entry::File(0o755, bytes));
        self.archives.push(archive.finish());
        self
    }

    /// With this much memory, in MiB.
    #[must_use]
    pub fn memory(mut self, mib: u64) -> Self {
        self.memory = mib;
        self
    }

    /// With so many vCPUs.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// With one more line.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.more.push_str(line);
        self.more.push('\n');
        self
    }

    /// The ramdisk with the archives in front of it. (The kernel unpacks one
    /// after the other; uncompressed ones have to begin aligned.)
    fn whole_ramdisk(&self, installation: &Installation) -> Option<PathBuf> {
        let ramdisk = self.ramdisk.as_ref()?;
        if self.archives.is_empty() {
            return Some(ramdisk.clone());
        }
        let path = installation.path(&format!("{}.initrd", self.name));
        let mut all = self.archives.concat();
        all.extend(fs::read(ramdisk).expect("the prepared user space"));
        fs::write(&path, all).expect("the test's directory can be written");
        Some(path)
    }

    /// As a file of the installation; its path.
    ///
    /// # Panics
    /// When it can't be written.
    #[must_use]
    pub fn write(&self, installation: &Installation) -> PathBuf {
        let path = installation.path(&format!("{}.cfg", self.name));
        let mut text = format!(
            "name = \"{}\"\nkernel = \"{}\"\nmemory = {}\nvcpus = {}\n{}",
            self.name,
            self.kernel.display(),
            self.memory,
            self.vcpus,
            self.more
        );
        if let Some(ramdisk) = self.whole_ramdisk(installation) {
            let _ = writeln!(text, "ramdisk = \"{}\"", ramdisk.display());
        }
        fs::write(&path, text).expect("the test's directory can be written");
        path
    }
}

/// A domain and its console.
#[derive(Debug)]
pub struct Guest<'a> {
    installation: &'a Installation,
    name: String,
    console: Terminal,
    commands: u32,
    _room: Option<Arc<Room>>,
}

impl<'a> Guest<'a> {
    /// Creates a domain and attaches to its console.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    #[must_use]
    pub fn create(installation: &'a Installation, config: &Config) -> Self {
        Self::create_by(installation, config, |file| {
            installation.xm(&[Path::new("create"), file]).ok();
        })
    }

    /// As [`Guest::create`], with something else than a plain `xm create` of
    /// the configuration's file.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    #[must_use]
    pub fn create_by(
        installation: &'a Installation,
        config: &Config,
        create: impl FnOnce(&Path),
    ) -> Self {
        let room = config.ramdisk.is_some().then(|| Arc::new(Room::take(1)));
        Self::create_in(installation, config, room, create)
    }

    /// Boots two, which get their places together: see [`AT_ONCE`].
    ///
    /// # Panics
    /// When they do not come.
    #[track_caller]
    #[must_use]
    pub fn boot_pair(installation: &'a Installation, configs: [&Config; 2]) -> [Self; 2] {
        let room = Arc::new(Room::take(2));
        let mut guests = configs.map(|config| {
            Self::create_in(installation, config, Some(room.clone()), |file| {
                installation.xm(&[Path::new("create"), file]).ok();
            })
        });
        guests.iter_mut().for_each(Self::wait_for_shell);
        guests
    }

    #[track_caller]
    fn create_in(
        installation: &'a Installation,
        config: &Config,
        room: Option<Arc<Room>>,
        create: impl FnOnce(&Path),
    ) -> Self {
        let file = config.write(installation);
        create(&file);
        Self {
            installation,
            name: config.name.clone(),
            console: attach(installation, &config.name),
            commands: 0,
            _room: room,
        }
    }

    /// Creates a domain from a configuration file that somebody else wrote.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    #[must_use]
    pub fn create_from(installation: &'a Installation, name: &str, file: &Path) -> Self {
        let room = Some(Arc::new(Room::take(1)));
        installation.xm(&[Path::new("create"), file]).ok();
        Self {
            _room: room,
            ..Self::attach(installation, name)
        }
    }

    /// Attaches to a domain that somebody else created.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    #[must_use]
    pub fn attach(installation: &'a Installation, name: &str) -> Self {
        Self {
            installation,
            name: name.to_owned(),
            console: attach(installation, name),
            commands: 0,
            _room: None,
        }
    }

    /// Creates a domain with Debian's kernel and waits for its shell.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    #[must_use]
    pub fn boot(installation: &'a Installation, config: &Config) -> Self {
        let mut guest = Self::create(installation, config);
        guest.wait_for_shell();
        guest
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number now.
    ///
    /// # Panics
    /// When it does not exist.
    #[track_caller]
    #[must_use]
    pub fn id(&self) -> DomId {
        let text = self.installation.xm(&["domid", &self.name]).output();
        DomId(text.trim().parse().expect("xm domid gives a number"))
    }

    /// Waits until the user space is up and the shell answers.
    ///
    /// # Panics
    /// When that does not come.
    #[track_caller]
    pub fn wait_for_shell(&mut self) {
        self.wait_for(READY, BOOT_PATIENCE);
        self.send("\n");
        // The kernel's own messages would get between those of commands.
        self.run("dmesg -n 1");
    }

    /// Waits for a distribution's login, and logs in as root.
    ///
    /// # Panics
    /// When that does not come.
    #[track_caller]
    pub fn log_in(&mut self, password: &str) {
        self.wait_for("login: ", LOGIN_PATIENCE);
        self.send("root\n");
        self.wait_for("Password: ", PATIENCE);
        self.send(&format!("{password}\n"));
        self.wait_for("# ", BOOT_PATIENCE);
        self.send("TERM=dumb; dmesg -n 1\n");
        self.run("true");
    }

    /// Waits for a text on the console; what came before it.
    ///
    /// # Panics
    /// When it does not come: with all that came, and the logs.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> String {
        self.console.wait_for(text, patience)
    }

    /// Types.
    ///
    /// # Panics
    /// When the console is gone.
    #[track_caller]
    pub fn send(&mut self, keys: &str) {
        self.console.send(keys);
    }

    /// Runs a command in the guest's shell; what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        self.run_within(command, PATIENCE)
    }

    /// As [`Guest::run`], for what takes long.
    ///
    /// # Panics
    /// When it fails, or does not end within `patience`.
    #[track_caller]
    pub fn run_within(&mut self, command: &str, patience: Duration) -> String {
        let (output, code) = self.try_run_within(command, patience);
        assert_eq!(code, 0, "in the guest: `{command}`\n{output}");
        output
    }

    /// Runs a command in the guest's shell; what it printed, and its exit
    /// code.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn try_run(&mut self, command: &str) -> (String, u32) {
        self.try_run_within(command, PATIENCE)
    }

    #[track_caller]
    fn try_run_within(&mut self, command: &str, patience: Duration) -> (String, u32) {
        self.commands += 1;
        let n = self.commands;
        // Quotes within the marks, so that the echo of what is typed is none.
        self.send(&format!("echo '<''{n}'; {command}; echo '>''{n}' $?.\n"));
        self.wait_for(&format!("<{n}\r\n"), patience);
        let output = self.wait_for(&format!(">{n} "), patience);
        let code = self.wait_for(".", PATIENCE);
        let code = code.parse().expect("an exit code");
        (output.replace("\r\n", "\n").trim_end().to_owned(), code)
    }

    /// Attaches to the console of the domain that has the name now: after a
    /// restart.
    pub fn attach_again(&mut self) {
        self.console = attach(self.installation, &self.name);
    }

    /// Waits until `xm console` ends by itself, as it does with its domain.
    ///
    /// # Panics
    /// When it does not end, or not well.
    #[track_caller]
    pub fn wait_for_console_end(&mut self) {
        let status = self.console.wait_for_end();
        assert!(status.success(), "{status}\n{}", self.transcript());
    }

    /// All that came over the console.
    #[must_use]
    pub fn transcript(&self) -> String {
        self.console.transcript()
    }
}

fn attach(installation: &Installation, name: &str) -> Terminal {
    let mut command = installation.command(Programs::get().program("xm"));
    command.args(["console", name]);
    Terminal::start(command)
}

/// So many of the places for guests.
#[derive(Debug)]
struct Room(usize);

static TAKEN: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

impl Room {
    fn take(count: usize) -> Self {
        let mut taken = rooms();
        while *taken + count > AT_ONCE {
            taken = LEFT.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += count;
        Self(count)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *rooms() -= self.0;
        LEFT.notify_all();
    }
}

fn rooms() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}
