//! `xm gdb`: gdb attaches to a domain.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use clap::Parser;
use domus_privcmd::{
    client::Client,
    pidfile::{PidFile, PidFileError},
};

use super::{
    Session,
    error::XmError,
    host::{Domain, Host},
    table::Subcommand,
};
use crate::{
    gdb::{self, Guest, Wire},
    paths,
};

/// Debug a domain, kernel and programs, with gdb.
#[derive(Debug, Parser)]
#[command(
    after_help = "The domain stops when gdb connects, and runs on when gdb goes. A vCPU is a
thread. Without --stdio or --listen, a socket is made that only you can open.

Examples:
  gdb vmlinux -ex 'target remote | xm gdb --stdio web1'
  xm gdb web1                          then, in gdb: target remote PATH
  xm gdb --listen 127.0.0.1:1234 web1  anybody on this host may connect"
)]
pub struct Gdb {
    #[arg(value_name = "Domain")]
    domain: String,
    /// Speak over standard input and output, for gdb's "target remote |"
    #[arg(long, conflicts_with = "listen")]
    stdio: bool,
    /// Wait for gdb on this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

impl Subcommand for Gdb {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let mut host = Host::connect()?;
        let domain = host.find(&self.domain)?;
        if domain.is_dom0() {
            return Err(XmError::Failed(
                "Domain-0 is made of ordinary processes: debug those with gdb itself.".into(),
            ));
        }
        let _sole = sole(&domain)?;
        let wire = self.wire(&domain)?;
        let client = Client::connect(&paths::privcmd_socket())?;
        let mut guest = Guest::attach(client, domain.id()).map_err(failed)?;
        let end = gdb::serve(&mut guest, wire).map_err(failed)?;
        eprintln!("xm gdb: {end}.");
        Ok(())
    }
}

/// Holds the domain for this debugger, from before gdb is waited for.
///
/// The hypervisor refuses a second one only once the first has attached, and
/// does not know its name. Whoever may not write the run directory is refused
/// by it alone.
fn sole(domain: &Domain) -> Result<Option<PidFile>, XmError> {
    match PidFile::acquire(&paths::pid_file(&format!("gdb-{}", domain.id().0))) {
        Ok(lock) => Ok(Some(lock)),
        Err(PidFileError::Held { holder, .. }) => {
            let who = holder.map_or("xm gdb".into(), |pid| format!("xm gdb, process {pid},"));
            Err(XmError::Failed(format!(
                "domain {} has another debugger: {who} serves it: detach its gdb, or end it.",
                domain.id(),
            )))
        }
        Err(PidFileError::Io { .. }) => Ok(None),
    }
}

fn failed(error: impl std::fmt::Display) -> XmError {
    XmError::Failed(error.to_string())
}

impl Gdb {
    /// The connection to gdb, once there is one.
    fn wire(&self, domain: &Domain) -> Result<Wire, XmError> {
        let made = if self.stdio {
            standard_streams()
        } else if let Some(address) = self.listen {
            wait_on_address(address)
        } else {
            wait_on_socket(&paths::run_dir().join(format!("gdb-{}.sock", domain.id().0)))
        };
        made.map_err(|error| XmError::Failed(format!("no connection to gdb: {error}")))
    }
}

fn standard_streams() -> io::Result<Wire> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(Wire::new(input, output))
}

fn wait_on_address(address: SocketAddr) -> io::Result<Wire> {
    let listener = TcpListener::bind(address)?;
    say(&listener.local_addr()?.to_string());
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    Wire::over(OwnedFd::from(stream))
}

fn wait_on_socket(path: &Path) -> io::Result<Wire> {
    let _gone = Removed(path.to_owned());
    // One that a killed xm left: who lives has the pid file.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    say(&path.display().to_string());
    let (stream, _) = listener.accept()?;
    Wire::over(OwnedFd::from(stream))
}

fn say(place: &str) {
    eprintln!("Waiting for gdb: target remote {place}");
}

/// A file that goes when this does.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
