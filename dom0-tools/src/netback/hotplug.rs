//! Setting an interface up on the host, by Xen's conventions for hotplug
//! scripts.
//!
//! ```text
//!   SCRIPT online  type_if=vif      when the interface is there
//!   SCRIPT offline type_if=vif      before it goes
//!
//!   XENBUS_PATH=backend/vif/N/I     the nodes, below /local/domain/0
//!   XENBUS_TYPE=vif  XENBUS_BASE_PATH=backend  script=SCRIPT
//!   vif=NAME  INTERFACE=NAME        the interface
//! ```
//!
//! A script says `hotplug-status` = `connected`, or `error` and why in
//! `hotplug-error`. Where no script is named and Xen's `vif-bridge` is not
//! installed, the same is done here: the interface gets Xen's address and the
//! bridge's MTU, joins the bridge, and goes up.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tracing::{info, warn};

use super::{
    child::{self, Listener},
    link::{self, LinkError, Links},
};

/// How long a script may take.
const PATIENCE: Duration = Duration::from_secs(40);
const SCRIPTS: &str = "/etc/xen/scripts";
const DEFAULT: &str = "vif-bridge";
/// What the tools write where nobody asked for an MTU.
const ORDINARY_MTU: u32 = 1500;

/// Why an interface could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// There is no such script.
    #[error("there is no script {}; correct 'script', or leave it out", .0.display())]
    NoScript(PathBuf),
    /// It can't be run.
    #[error("cannot run the script {}: {source}", script.display())]
    Run {
        /// The script.
        script: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It failed.
    #[error("the script {} failed ({how}){}{why}", script.display(), if why.is_empty() { "" } else { ": " })]
    Failed {
        /// The script.
        script: PathBuf,
        /// Its exit code or signal.
        how: String,
        /// What it said last.
        why: String,
    },
    /// It takes too long.
    #[error("the script {} did not end within {PATIENCE:?} and was killed", .0.display())]
    TooSlow(PathBuf),
    /// An interface can't be changed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The system.
    #[error("cannot change interfaces: {0}")]
    Io(#[from] io::Error),
}

/// What is to be set up, and how.
#[derive(Clone, Debug)]
pub struct Hotplug {
    /// `None` does it here.
    script: Option<PathBuf>,
    bridge: Option<String>,
    interface: String,
    xenbus_path: String,
}

impl Hotplug {
    /// From the nodes `script` and `bridge`.
    ///
    /// # Errors
    /// [`HotplugError::NoScript`].
    pub fn new(
        script: Option<&str>,
        bridge: Option<&str>,
        interface: &str,
        xenbus_path: &str,
    ) -> Result<Self, HotplugError> {
        let bridge = bridge.filter(|bridge| !bridge.is_empty());
        Ok(Self {
            script: choose(script, bridge, Path::new(SCRIPTS))?,
            bridge: bridge.map(str::to_owned),
            interface: interface.into(),
            xenbus_path: xenbus_path.into(),
        })
    }

    /// Sets the interface up; the MTU that it has then. `said` gives what a
    /// script may have left in `hotplug-error`.
    ///
    /// # Errors
    /// See [`HotplugError`].
    pub fn online(
        &self,
        mtu: Option<u32>,
        said: impl FnOnce() -> Option<String>,
    ) -> Result<u32, HotplugError> {
        let links = Links::open()?;
        match &self.script {
            Some(script) => self.run(script, "online").map_err(|error| match error {
                HotplugError::Failed { script, how, why } => {
                    let why = said().filter(|text| !text.is_empty()).unwrap_or(why);
                    HotplugError::Failed { script, how, why }
                }
                other => other,
            })?,
            None => self.set_up(&links, mtu)?,
        }
        Ok(links.mtu(&self.interface)?)
    }

    /// Tells a script that the interface goes. Its failure is only logged:
    /// the interface goes all the same.
    pub fn offline(&self) {
        if let Some(script) = &self.script
            && let Err(error) = self.run(script, "offline")
        {
            warn!(interface = self.interface, %error, "while it went offline");
        }
    }

    fn set_up(&self, links: &Links, mtu: Option<u32>) -> Result<(), HotplugError> {
        let name = &self.interface;
        links.set_address(name, link::VIF_ADDRESS)?;
        let wanted = mtu.filter(|mtu| *mtu != ORDINARY_MTU);
        match (wanted, &self.bridge) {
            (Some(mtu), _) => links.set_mtu(name, mtu)?,
            (None, Some(bridge)) if links.exists(bridge) => {
                links.set_mtu(name, links.mtu(bridge)?)?;
            }
            _ => {}
        }
        if let Some(bridge) = &self.bridge {
            link::without_ipv6(name);
            links.join(name, bridge)?;
        }
        links.set_up(name)?;
        info!(interface = name, bridge = ?self.bridge, "set up");
        Ok(())
    }

    fn run(&self, script: &Path, action: &str) -> Result<(), HotplugError> {
        let failed = |source| HotplugError::Run {
            script: script.into(),
            source,
        };
        let mut command = Command::new(script);
        command
            .args([action, "type_if=vif"])
            .env("script", script)
            .env("XENBUS_TYPE", "vif")
            .env("XENBUS_PATH", &self.xenbus_path)
            .env("XENBUS_BASE_PATH", "backend")
            .env("vif", &self.interface)
            .env("INTERFACE", &self.interface)
            .env("PATH", path_with_own_directory())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = child::with_clean_signals(&mut command)
            .spawn()
            .map_err(failed)?;
        let name = format!("{} {action}", script.display());
        let listener = child.stderr.take().map(|pipe| Listener::start(&name, pipe));
        let Some(status) = wait(&mut child).map_err(failed)? else {
            return Err(HotplugError::TooSlow(script.into()));
        };
        if status.success() {
            return Ok(());
        }
        let why = listener.and_then(|listener| {
            // What it left running may hold the pipe.
            let deadline = Instant::now() + Duration::from_millis(200);
            while !listener.is_done() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            listener.last_words()
        });
        Err(HotplugError::Failed {
            script: script.into(),
            how: describe(status),
            why: why.unwrap_or_default(),
        })
    }
}

/// Which script to run.
fn choose(
    script: Option<&str>,
    bridge: Option<&str>,
    scripts: &Path,
) -> Result<Option<PathBuf>, HotplugError> {
    let Some(named) = script.filter(|script| !script.is_empty()) else {
        let default = scripts.join(DEFAULT);
        return Ok(Some(default).filter(|file| bridge.is_some() && file.exists()));
    };
    let path = scripts.join(named);
    match path.exists() {
        true => Ok(Some(path)),
        // What it does is done here.
        false if path.file_name().is_some_and(|name| name == DEFAULT) => Ok(None),
        false => Err(HotplugError::NoScript(path)),
    }
}

/// Waits for a child, and kills its group when it takes too long.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            let group = i32::try_from(child.id()).map_err(io::Error::other)?;
            // It may have ended just now.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or(0)),
    }
}

/// Scripts call `xenstore-read` and the like, which may lie where we do.
fn path_with_own_directory() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::current_exe().ok();
    let own = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    env::join_paths(env::split_paths(&path).chain(own)).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use tempfile::TempDir;

    use super::*;

    fn script(text: &str) -> (TempDir, Hotplug) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vif-test");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let name = path.to_str().unwrap();
        let hotplug = Hotplug::new(Some(name), Some("br0"), "lo", "backend/vif/7/0");
        (dir, hotplug.unwrap())
    }

    #[test]
    fn the_script_gets_what_xens_scripts_need() {
        let (dir, hotplug) = script("{ echo \"$*\"; env; } >> $(dirname $0)/out");
        assert!(hotplug.online(None, || None).unwrap() > 0);
        hotplug.offline();
        let out = fs::read_to_string(dir.path().join("out")).unwrap();
        for line in [
            "online type_if=vif",
            "offline type_if=vif",
            "XENBUS_PATH=backend/vif/7/0",
            "XENBUS_TYPE=vif",
            "XENBUS_BASE_PATH=backend",
            "vif=lo",
            "INTERFACE=lo",
        ] {
            assert!(out.lines().any(|got| got == line), "{line}: {out}");
        }
    }

    #[test]
    fn a_failure_tells_the_scripts_own_words() {
        let (_dir, hotplug) = script("echo 'no such bridge' >&2; exit 3");
        let error = hotplug.online(None, || None).unwrap_err().to_string();
        assert!(
            error.ends_with("failed (exit code 3): no such bridge"),
            "{error}"
        );
        let said = || Some("from its node".to_owned());
        let error = hotplug.online(None, said).unwrap_err().to_string();
        assert!(
            error.ends_with("failed (exit code 3): from its node"),
            "{error}"
        );
        let (_dir, hotplug) = script("kill -9 $$");
        let error = hotplug.online(None, || None).unwrap_err().to_string();
        assert!(error.ends_with("failed (signal 9)"), "{error}");
    }

    #[test]
    fn xens_bridge_script_is_the_default_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let chosen = |script, bridge| choose(script, bridge, dir.path());
        assert_eq!(chosen(None, Some("br0")).unwrap(), None);
        assert_eq!(chosen(Some("/x/vif-bridge"), None).unwrap(), None);
        let error = chosen(Some("vif-route"), None).unwrap_err().to_string();
        assert!(error.contains("vif-route; correct 'script'"), "{error}");
        let there = dir.path().join(DEFAULT);
        fs::write(&there, "").unwrap();
        for (script, bridge) in [(None, Some("br0")), (Some("vif-bridge"), None)] {
            assert_eq!(chosen(script, bridge).unwrap(), Some(there.clone()));
        }
        assert_eq!(chosen(Some(""), None).unwrap(), None);
    }
}
