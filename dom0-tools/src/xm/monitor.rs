//! The process that each domain leaves behind: it waits until the domain shuts
//! down and does what its configuration wants then.
//!
//! `xm create` starts it as `xm --domain-monitor N` in a session of its own,
//! with its output in `xm-NAME.log`, and goes on only after it has said
//! `ready`. It keeps the configuration in memory: the file may change or go.
//!
//! ```text
//!   VIRQ_DOM_EXC -> shut down? -> poweroff  on_poweroff
//!                                 reboot    on_reboot
//!                                 crash     on_crash
//!                   gone?      -> clean up, end
//! ```
//!
//! Law: a domain that restarts within [`MIN_RESTART_TIME`] of its last restart
//! is destroyed instead, so that one that dies at once does not do so for
//! ever (xend's rule; a reboot that `xm reboot` asked for is exempt). When the hypervisor is gone the monitor ends; the next
//! `xm` cleans up.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use domus_privcmd::{
    client::{Client, ClientError},
    pidfile::{PidFile, PidFileError},
    protocol::DomainInfo,
};
use guest_abi::addr::DomId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use uuid::Uuid;

use super::{
    crash,
    devices::{Kind, supervisor::Supervisor},
    dump_core,
    error::XmError,
    host::Host,
    hotplug, last_words,
    life::{self, Images, Making, Origin},
    nodes,
    progress::Progress,
    record::{self, Record},
    signals::Held,
};
use crate::{
    config::action::Action,
    coredump::Format,
    paths, services,
    xenstore::client::{Client as Store, Error as StoreError},
};

/// A domain that restarts sooner than this after its last restart does not.
pub const MIN_RESTART_TIME: f64 = 10.0;

/// The argument that makes `xm` a monitor.
pub const ARGUMENT: &str = "--domain-monitor";

/// How often the hypervisor is asked without having said anything: that is
/// how its own end is noticed.
const LOOK_AGAIN: u16 = 2000;

const READY: &str = "ready";
const VIRQ_DOM_EXC: u32 = 3;

const SHUTDOWN_POWEROFF: u32 = 0;
const SHUTDOWN_REBOOT: u32 = 1;
const SHUTDOWN_SUSPEND: u32 = 2;

/// A monitor's log.
#[must_use]
pub fn log_of(name: &str) -> PathBuf {
    paths::log_dir().join(format!("xm-{name}.log"))
}

/// Starts the monitor of a domain and waits until it watches.
///
/// # Errors
/// It could not be started.
pub fn start(record: &Record) -> Result<(), XmError> {
    let failed =
        |what: String| XmError::Failed(format!("can't start the domain's monitor: {what}"));
    services::make_dir(&paths::log_dir())?;
    let path = log_of(record.config.name.as_str());
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| failed(format!("{}: {e}", path.display())))?;
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let mut command = Command::new(program);
    command
        .arg0(format!("xm monitor {}", record.config.name))
        .args([ARGUMENT, &record.dom.to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    services::detach(&mut command);
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        let _ = BufReader::new(output).read_line(&mut line);
    }
    if line.trim_end() == READY {
        return Ok(());
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(failed(format!("see {}", path.display())))
}

/// The monitor's own program: `args` is what follows [`ARGUMENT`].
///
/// # Errors
/// There is no such domain, or the services can't be reached.
pub fn main(args: &[String]) -> Result<(), XmError> {
    let [dom] = args else {
        return Err(XmError::Failed(format!("{ARGUMENT} is for xm itself")));
    };
    let record = dom.parse().ok().and_then(|n| Record::load(DomId(n)));
    let record = record.ok_or_else(|| XmError::NoDomain(dom.clone()))?;
    let lock = match PidFile::acquire(&record::monitor_lock(record.uuid)) {
        Ok(lock) => lock,
        // Another xm was faster: there is one, and that is all that counts.
        Err(PidFileError::Held { .. }) => return detach_output(),
        Err(error) => return Err(lock_failed(&error)),
    };
    let host = Host {
        hypervisor: Client::connect(&paths::privcmd_socket())?,
        store: Store::connect()?,
    };
    let (_, changed) = host.hypervisor.evtchn_bind_virq(VIRQ_DOM_EXC)?;
    let mut monitor = Monitor {
        supervisor: Supervisor::new(record.dom(), record.config.name.as_str()),
        host,
        changed,
        record,
        lock,
        due: true,
    };
    monitor.watch_devices()?;
    monitor.say("watching");
    detach_output()?;
    let ended = monitor.run();
    let (dom, uuid) = (monitor.record.dom(), monitor.record.uuid);
    drop(monitor);
    // Looked at when the lock is free: an `xm destroy` that removes the record
    // of a kept domain now removes the lock too, one before has left it to us.
    if Record::load(dom).is_none_or(|record| record.uuid != uuid) {
        let _ = fs::remove_file(record::monitor_lock(uuid));
    }
    ended
}

fn lock_failed(error: &PidFileError) -> XmError {
    XmError::Failed(format!("can't lock the monitor's file: {error}"))
}

/// Tells `xm create` that all is well, and lets go of its pipe.
fn detach_output() -> Result<(), XmError> {
    let failed = |e: io::Error| XmError::Failed(format!("can't answer xm create: {e}"));
    writeln!(io::stdout(), "{READY}").map_err(failed)?;
    nix::unistd::dup2_stdout(io::stderr()).map_err(|errno| failed(errno.into()))
}

struct Monitor {
    host: Host,
    changed: OwnedFd,
    record: Record,
    lock: PidFile,
    supervisor: Supervisor,
    /// Whether the devices are to be looked at.
    due: bool,
}

/// Whether the monitor has more to do.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Watch,
    End,
}

impl Monitor {
    fn run(&mut self) -> Result<(), XmError> {
        loop {
            match self.look() {
                Ok(Next::End) => return Ok(()),
                Ok(Next::Watch) => {
                    self.tend();
                    self.wait()?;
                }
                Err(XmError::Hypervisor(ClientError::Disconnected { .. })) => {
                    self.say("the hypervisor has gone; nothing is left to do");
                    return Ok(());
                }
                Err(error) => {
                    self.say(&format!("failed: {error}"));
                    return Err(error);
                }
            }
        }
    }

    /// Until the hypervisor says that some domain has changed, the store that
    /// a device has, or a back end ends.
    fn wait(&mut self) -> Result<(), XmError> {
        // An event may be here already, without the socket being readable.
        self.due |= self.take_store_events();
        if self.due {
            return Ok(());
        }
        let (changed, other) = self.poll()?;
        if changed {
            let mut count = [0; 8];
            match nix::unistd::read(&self.changed, &mut count) {
                Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(poll_failed(errno)),
            }
        }
        let rested = self
            .supervisor
            .next()
            .is_some_and(|at| at <= Instant::now());
        self.due |= other || rested;
        Ok(())
    }

    /// Whether the hypervisor has something to say, and whether others have.
    fn poll(&self) -> Result<(bool, bool), XmError> {
        let own = [self.changed.as_fd(), self.host.store.as_fd()];
        let mut fds: Vec<PollFd<'_>> = own
            .into_iter()
            .chain(self.supervisor.fds())
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, self.patience()) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok((false, false)),
            Err(errno) => return Err(poll_failed(errno)),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        Ok((ready[0], ready[1..].contains(&true)))
    }

    fn patience(&self) -> PollTimeout {
        let longest = Duration::from_millis(LOOK_AGAIN.into());
        let rest = self.supervisor.next();
        let rest = rest.map(|at| at.saturating_duration_since(Instant::now()));
        let time = rest.map_or(longest, |rest| rest.min(longest));
        // Rounded up: a wait of 0 ms would spin.
        PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }

    /// What they say does not count: all devices are looked at.
    fn take_store_events(&mut self) -> bool {
        let mut any = false;
        while let Ok(Some(_)) = self.host.store.next_event(Some(Duration::ZERO)) {
            any = true;
        }
        any
    }

    /// Asks the store to tell of this domain's devices.
    fn watch_devices(&mut self) -> Result<(), StoreError> {
        let dom = self.record.dom();
        Kind::ALL
            .into_iter()
            .try_for_each(|kind| self.host.store.watch(&kind.back_dir(dom), kind.name()))
    }

    fn unwatch_devices(&mut self) -> Result<(), StoreError> {
        let dom = self.record.dom();
        Kind::ALL
            .into_iter()
            .try_for_each(|kind| self.host.store.unwatch(&kind.back_dir(dom), kind.name()))
    }

    /// Looks after the devices. A store that is away is no reason to end.
    fn tend(&mut self) {
        if !std::mem::take(&mut self.due) {
            return;
        }
        self.take_store_events();
        match self.supervisor.tend(&mut self.host.store) {
            Ok(lines) => lines.iter().for_each(|line| self.say(line)),
            Err(error) => self.say(&format!("can't look after the devices: {error}")),
        }
        let (dom, uuid) = (self.record.dom(), self.record.uuid);
        match hotplug::reap(&mut self.host.store, dom, uuid) {
            Ok(gone) => gone
                .iter()
                .for_each(|device| self.say(&format!("{device} has been let go of"))),
            Err(error) => self.say(&format!("can't remove a device: {error}")),
        }
    }

    /// What `xm` has changed in the record meanwhile: devices, the name.
    fn refresh(&mut self) {
        let (dom, uuid) = (self.record.dom(), self.record.uuid);
        if let Some(record) = Record::load(dom).filter(|r| r.uuid == uuid) {
            self.record = record;
        }
    }

    fn look(&mut self) -> Result<Next, XmError> {
        let (dom, uuid) = (self.record.dom(), self.record.uuid);
        let info = match self.host.hypervisor.domain_info(dom) {
            Ok(info) if info.uuid == uuid => Some(info),
            Ok(_) => None,
            Err(error) if error.is_no_such_domain() => None,
            Err(error) => return Err(error.into()),
        };
        let Some(info) = info else {
            self.say("the domain was destroyed");
            life::clean_up(&mut self.host, dom, uuid)?;
            return Ok(Next::End);
        };
        match info.shutdown {
            Some(reason) if !info.dying => self.shut_down(&info, reason),
            _ => Ok(Next::Watch),
        }
    }

    fn shut_down(&mut self, info: &DomainInfo, reason: u32) -> Result<Next, XmError> {
        self.refresh();
        let config = &self.record.config;
        let (what, action) = match reason {
            SHUTDOWN_POWEROFF => ("powered off", config.on_poweroff),
            SHUTDOWN_REBOOT => ("wants to reboot", config.on_reboot),
            SHUTDOWN_SUSPEND => ("has suspended itself", Action::Preserve),
            _ => ("crashed", config.on_crash),
        };
        self.say(&format!(
            "the domain {what} (reason {reason}); action: {action}"
        ));
        last_words::wait_for_console(&mut self.host.store, self.record.dom());
        if !matches!(
            reason,
            SHUTDOWN_POWEROFF | SHUTDOWN_REBOOT | SHUTDOWN_SUSPEND
        ) {
            let report = crash::report(&self.host.hypervisor, info, &self.record.config);
            self.say(&report);
        }
        if action.dumps_core() {
            self.dump_core(info);
        }
        match action {
            Action::Preserve => {
                let mut record = self.record.clone();
                self.keep(&mut record)?;
                self.record = record;
                Ok(Next::End)
            }
            Action::Destroy | Action::CoredumpDestroy => self.destroy(),
            Action::Restart | Action::CoredumpRestart => self.restart(false),
            Action::RenameRestart => self.restart(true),
        }
    }

    /// A dump that can't be had keeps nothing else from being done.
    fn dump_core(&self, info: &DomainInfo) {
        let dom = DomId(info.dom);
        let dumped =
            dump_core::default_path(self.record.config.name.as_str(), dom).and_then(|path| {
                let written = dump_core::dump(
                    &self.host.hypervisor,
                    dom,
                    Format::Gdb,
                    &path,
                    &Progress::silent(),
                )?;
                Ok(dump_core::describe(&path, &written))
            });
        match dumped {
            Ok(what) => self.say(&format!("core dumped: {what}")),
            Err(error) => self.say(&format!("no core dumped: {error}")),
        }
    }

    fn destroy(&mut self) -> Result<Next, XmError> {
        life::destroy(&mut self.host, self.record.dom(), self.record.uuid)?;
        self.say("destroyed");
        Ok(Next::End)
    }

    fn restart(&mut self, rename: bool) -> Result<Next, XmError> {
        let now = life::now();
        let asked_for = nodes::take_reboot_request(&mut self.host.store, self.record.uuid)?;
        if let Some(since) = self.record.last_restart.map(|last| now - last)
            && since < MIN_RESTART_TIME
            && !asked_for
        {
            self.say(&format!(
                "restarting too fast ({since:.1} s since the last restart); refusing to restart to avoid loops"
            ));
            return self.destroy();
        }
        let old = self.record.clone();
        // What it has written is on its disk before a kernel is read from there.
        life::release_devices(&mut self.host.store, old.dom(), old.uuid)?;
        // The kernel may have been replaced meanwhile: read it before the old
        // domain goes, so that what is said of it is said early.
        let images = Images::open(&old.config, &Progress::silent());
        let uuid = if rename {
            self.set_aside()?;
            let uuid = Uuid::new_v4();
            self.lock = PidFile::acquire(&record::monitor_lock(uuid))
                .map_err(|error| lock_failed(&error))?;
            uuid
        } else {
            life::destroy(&mut self.host, old.dom(), old.uuid)?;
            old.uuid
        };
        let mut config = old.config.clone();
        config.uuid = Some(uuid);
        let making = Making {
            origin: Origin {
                uuid: Some(uuid),
                restarts: old.restarts.saturating_add(1),
                last_restart: Some(now),
            },
            progress: &Progress::silent(),
            held: &Held::hold(),
        };
        self.unwatch_devices()?;
        self.record = life::create(&mut self.host, &config, &images?, &making)?;
        if let Err(error) = self.connect_devices() {
            life::destroy(&mut self.host, self.record.dom(), self.record.uuid)?;
            return Err(error);
        }
        self.host.hypervisor.unpause_domain(self.record.dom())?;
        self.say(&format!("restarted as domain {}", self.record.dom));
        Ok(Next::Watch)
    }

    /// Lets the back ends of a domain that was just made take its devices.
    fn connect_devices(&mut self) -> Result<(), XmError> {
        let record = self.record.clone();
        self.supervisor = Supervisor::new(record.dom(), record.config.name.as_str());
        self.watch_devices()?;
        let supervisor = &mut self.supervisor;
        let mut said = supervisor.tend(&mut self.host.store)?;
        let connected = life::wait_for_devices(&mut self.host.store, &record, |store| {
            said.extend(supervisor.tend(store)?);
            Ok(true)
        });
        said.iter().for_each(|line| self.say(line));
        Ok(connected?)
    }

    /// Notes that a dead domain stays as it is. It needs no devices, and others
    /// may need them.
    fn keep(&mut self, record: &mut Record) -> Result<(), XmError> {
        life::release_devices(&mut self.host.store, record.dom(), record.uuid)?;
        record.config.disks.clear();
        record.config.vifs.clear();
        record.kept = true;
        record.save().map_err(life::LifeError::Record)?;
        // `xm destroy` ends the domain first: it may have removed the record
        // just before it was saved.
        let gone = match self.host.hypervisor.domain_info(record.dom()) {
            Ok(info) => info.uuid != record.uuid,
            Err(error) => error.is_no_such_domain(),
        };
        if gone {
            record.remove();
        }
        Ok(())
    }

    /// Renames the dead domain, so that the new one can have its name.
    fn set_aside(&mut self) -> Result<(), XmError> {
        let mut record = self.record.clone();
        for n in 1.. {
            let name = record.config.name.preserved(n);
            let (dom, uuid) = (record.dom(), record.uuid);
            let Host { hypervisor, store } = &mut self.host;
            let lives = |other| life::lives(hypervisor, other);
            match nodes::rename(store, dom, uuid, name.as_str(), lives) {
                Ok(()) => {
                    record.config.name = name;
                    break;
                }
                Err(nodes::NameError::Taken { .. }) => {}
                Err(nodes::NameError::Store(error)) => return Err(error.into()),
            }
        }
        self.keep(&mut record)?;
        self.say(&format!("kept as {}", record.config.name));
        Ok(())
    }

    /// A line in the log.
    fn say(&self, what: &str) {
        let _ = writeln!(
            io::stderr(),
            "{} {} ({}): {what}",
            timestamp(),
            self.record.config.name,
            self.record.dom
        );
    }
}

fn poll_failed(errno: nix::errno::Errno) -> XmError {
    XmError::Failed(format!("poll: {errno}"))
}

/// Seconds since 1970 as a date and time, UTC.
fn timestamp() -> String {
    let elapsed = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or(Duration::ZERO);
    let seconds = elapsed.as_secs();
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The date of a day since 1970, by eras of 400 years from the 1st of March of
/// year 0.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_088), (2024, 12, 31));
    }
}
