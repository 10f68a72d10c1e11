//! A network without privilege: `passt` translates between the guest's
//! packets and ordinary sockets of its own.
//!
//! ```text
//!   guest -- ring -- netback -- stream socket -- passt -- sockets -- the host's network
//! ```
//!
//! Law: one `passt` for each interface, a child of this process. It ends with
//! its socket, so one that is killed leaves none behind. A `passt` that ends is
//! started again, not more often than every [`PAUSE`]; connections through it
//! are lost, the interface stays.
//!
//! A new `passt` learns the guest's address from the first frame that it sees; a guest that
//! only listens may never send one, so netback sends one in its name.
//!
//! Frames carry no header: checksums are completed here, and large packets are
//! not announced to the guest.

use std::{
    env, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    child::{self, Listener},
    frames::{Incoming, Outgoing},
    offload::Offload,
    wire::{Sent, Wire},
};
use crate::config::{forward::Forward, vif::Mac};

const PROGRAM: &str = "passt";

/// Between two starts.
pub const PAUSE: Duration = Duration::from_secs(1);

/// How long the program is watched when it starts.
const STARTING: Duration = Duration::from_millis(250);

/// Why there is no user-mode network.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The program is not there.
    #[error(
        "mode=user needs the program passt, which is not in PATH: install it (on Debian: \
         `apt install passt`), or set DOMUS_PASST to its path"
    )]
    Missing,
    /// It ended at once.
    #[error("{} ended at once{}{why}", program.display(), if why.is_empty() { "" } else { ": " })]
    Ended {
        /// The program.
        program: PathBuf,
        /// What it said last.
        why: String,
    },
    /// It could not be started.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What is to be known of an interface.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Ports of the host that lead to the guest.
    pub forward: Vec<Forward>,
    /// The guest's address.
    pub mac: Option<Mac>,
}

/// An interface's user-mode network.
#[derive(Debug)]
pub struct UserNet {
    program: PathBuf,
    plan: Plan,
    link: Option<Link>,
    started: Instant,
}

#[derive(Debug)]
struct Link {
    child: Child,
    listener: Listener,
    stream: UnixStream,
    incoming: Incoming,
    outgoing: Outgoing,
}

impl UserNet {
    /// Starts it.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn start(plan: &Plan) -> Result<Self, UserError> {
        let program = find().ok_or(UserError::Missing)?;
        let mut net = Self {
            link: Some(Link::start(&program, plan)?),
            program,
            plan: plan.clone(),
            started: Instant::now(),
        };
        net.watch_over_start()?;
        Ok(net)
    }

    /// Waits for a moment: what is set up wrong ends the program at once.
    fn watch_over_start(&mut self) -> Result<(), UserError> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        while self.started.elapsed() < STARTING {
            if matches!(link.child.try_wait(), Ok(Some(_))) {
                while !link.listener.is_done() && self.started.elapsed() < 2 * STARTING {
                    thread::sleep(Duration::from_millis(5));
                }
                return Err(UserError::Ended {
                    program: self.program.clone(),
                    why: link.listener.last_words().unwrap_or_default(),
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The program's process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.link.as_ref().map(|link| link.child.id())
    }

    /// Runs `body` with the program, which is started again if it has ended
    /// and the pause is over.
    fn with_link<T>(
        &mut self,
        otherwise: T,
        body: impl FnOnce(&mut Link) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.link.is_none() && self.started.elapsed() >= PAUSE {
            self.started = Instant::now();
            match Link::start(&self.program, &self.plan) {
                Ok(link) => self.link = Some(link),
                Err(error) => warn!(%error, "the interface is without network for now"),
            }
        }
        let Some(link) = &mut self.link else {
            return Ok(otherwise);
        };
        match body(link) {
            Ok(value) => Ok(value),
            Err(error) => {
                warn!(%error, pid = link.child.id(), "passt has ended and is started again");
                self.link = None;
                Ok(otherwise)
            }
        }
    }
}

/// The program: `$DOMUS_PASST`, or from `PATH`.
fn find() -> Option<PathBuf> {
    if let Some(path) = env::var_os("DOMUS_PASST").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(PROGRAM))
        .find(|file| file.is_file())
}

impl Link {
    fn start(program: &PathBuf, plan: &Plan) -> Result<Self, UserError> {
        let failed = |source: io::Error| UserError::Start {
            program: program.clone(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let fd = theirs.as_raw_fd();
        let mut command = Command::new(program);
        command
            .args(["--foreground", "--quiet", "--fd", &fd.to_string()])
            .args(plan.forward.iter().flat_map(Forward::passt))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec it makes one system call, with a
        // descriptor that is open.
        unsafe {
            command.pre_exec(move || {
                let cleared = libc::fcntl(fd, libc::F_SETFD, 0);
                nix::errno::Errno::result(cleared)?;
                Ok(())
            });
        }
        let mut child = child::with_clean_signals(&mut command)
            .spawn()
            .map_err(failed)?;
        let stderr = child
            .stderr
            .take()
            .ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        info!(pid = child.id(), program = %program.display(), "user-mode network started");
        let mut link = Self {
            child,
            listener: Listener::start(PROGRAM, stderr),
            stream: ours,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
        };
        if let Some(mac) = plan.mac {
            let sent = link.outgoing.send(&mut &link.stream, &introduction(mac));
            sent.map_err(failed)?;
        }
        Ok(link)
    }
}

/// A frame to everybody that says nothing but whose it is: its type is the one that is
/// set aside for experiments, which nobody answers.
fn introduction(mac: Mac) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

impl Drop for Link {
    fn drop(&mut self) {
        // It would end by itself when its socket closes; don't wait for that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Wire for UserNet {
    fn send(&mut self, packet: &mut [u8], mut offload: Offload) -> io::Result<Sent> {
        offload
            .complete_checksum(packet)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // Without the program, packets are lost as on a cut cable.
        self.with_link(Sent::Done, |link| {
            link.outgoing.send(&mut &link.stream, packet)
        })
    }

    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<(usize, Offload)>> {
        let len = self.with_link(None, |link| link.incoming.receive(&mut &link.stream, buf))?;
        Ok(len.map(|len| (len, Offload::default())))
    }

    fn flush(&mut self) {
        if self.wants_to_write() {
            // What goes wrong is dealt with in there.
            let _ = self.with_link((), |link| link.outgoing.flush(&mut &link.stream));
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(|link| link.stream.as_fd())
    }

    fn wants_to_write(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.outgoing.is_busy())
    }
}
