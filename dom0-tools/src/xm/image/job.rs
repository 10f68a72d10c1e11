//! Programs that take a while: shown, and ended with us.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal, killpg},
    },
    unistd::Pid,
};

use super::ImageCommandError;
use crate::xm::{progress::Progress, signals::Held};

/// How many of a program's last lines an error shows.
const LAST: usize = 15;
const LOOK: Duration = Duration::from_millis(100);
/// How long a program may take to clean up after itself.
const PATIENCE: u32 = 50;

/// What a program runs beside.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Shows what it does.
    pub progress: &'a Progress,
    /// Ctrl+C.
    pub held: &'a Held,
}

impl Job<'_> {
    /// Whether we shall end.
    ///
    /// # Errors
    /// [`ImageCommandError::Interrupted`].
    pub fn go_on(&self) -> Result<(), ImageCommandError> {
        if self.held.arrived() {
            return Err(ImageCommandError::Interrupted);
        }
        Ok(())
    }

    /// Runs a program to its end; `what` is shown before its lines.
    ///
    /// # Errors
    /// It can't be run, fails, or we were interrupted, and it has ended then.
    pub fn run(&self, what: &str, command: Command) -> Result<(), ImageCommandError> {
        self.run_all(what, vec![command])
    }

    /// Runs programs, each reading what the one before it writes.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_all(&self, what: &str, commands: Vec<Command>) -> Result<(), ImageCommandError> {
        let (sender, lines) = mpsc::channel();
        let mut running = Running(Vec::new());
        let mut input = Stdio::null();
        let last_one = commands.len().saturating_sub(1);
        for (index, mut command) in commands.into_iter().enumerate() {
            command
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = spawn(&mut command)?;
            let output = child.stdout.take();
            pump(child.stderr.take(), &sender);
            input = Stdio::null();
            if index == last_one {
                pump(output, &sender);
            } else if let Some(output) = output {
                input = output.into();
            }
            running.0.push((name_of(&command), child));
        }
        drop(sender);
        let mut last = VecDeque::new();
        loop {
            match lines.recv_timeout(LOOK) {
                Ok(line) => {
                    self.progress.step(&format!("{what}: {}", short(&line)));
                    if last.len() == LAST {
                        last.pop_front();
                    }
                    last.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.go_on()?;
        }
        running.wait(last.into())
    }
}

fn spawn(command: &mut Command) -> Result<Child, ImageCommandError> {
    command.process_group(0);
    // SAFETY: between fork and exec only two system calls are made, on values
    // that the closure owns.
    unsafe {
        command.pre_exec(|| {
            // What we hold back is not to be held back in it.
            SigSet::all().thread_unblock()?;
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            Ok(())
        });
    }
    command.spawn().map_err(|e| ImageCommandError::Failed {
        program: name_of(command),
        status: format!("can't be run: {e}"),
        remedy: String::new(),
        last: Vec::new(),
    })
}

fn name_of(command: &Command) -> String {
    let name = command.get_program().to_string_lossy();
    match name.as_ref() {
        // A wrapper is of no interest.
        "unshare" | "fakeroot" => {
            let mut words = command.get_args().map(|a| a.to_string_lossy().into_owned());
            words
                .find(|word| word == "--")
                .and_then(|_| words.next())
                .unwrap_or(name.into_owned())
        }
        name => name.to_owned(),
    }
}

/// Sends a program's lines, as long as it has any.
fn pump(from: Option<impl Read + Send + 'static>, to: &mpsc::Sender<String>) {
    let (Some(from), to) = (from, to.clone()) else {
        return;
    };
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if !line.is_empty() && to.send(line).is_err() {
                return;
            }
        }
    });
}

/// As much of a line as fits on a terminal's.
fn short(line: &str) -> String {
    let line = line.trim_start_matches("I: ");
    line.chars().filter(|c| !c.is_control()).take(50).collect()
}

/// Children that don't outlive us.
struct Running(Vec<(String, Child)>);

impl Running {
    fn wait(mut self, last: Vec<String>) -> Result<(), ImageCommandError> {
        let mut failed = None;
        for (name, mut child) in self.0.drain(..) {
            let status = child.wait().map_err(super::error::at(name.clone()))?;
            if !status.success() && failed.is_none() {
                failed = Some((name, status));
            }
        }
        match failed {
            None => Ok(()),
            Some((program, status)) => Err(ImageCommandError::Failed {
                remedy: remedy(&last),
                program,
                status: said(status),
                last,
            }),
        }
    }
}

fn said(status: ExitStatus) -> String {
    status.to_string()
}

/// What to do about failures that have a well-known cause.
fn remedy(last: &[String]) -> String {
    let has = |text: &str| last.iter().any(|line| line.contains(text));
    let remedy = if has("No space left on device") {
        "; the disk is full: free some space, or choose another place with --output"
    } else if has("Could not allocate block")
        || has("Could not allocate inode")
        || has("ext2 filesystem too small")
    {
        "; the image is too small for what is in it: choose a larger --size"
    } else if has("Could not resolve")
        || has("Temporary failure resolving")
        || has("Could not connect")
    {
        "; the mirror can't be reached: see --mirror, and the host's apt configuration"
    } else if has("newuidmap") || has("subuid") || has("unprivileged user") {
        "; making it without root needs user namespaces: apt install uidmap, and a line for you in /etc/subuid"
    } else {
        ""
    };
    remedy.to_owned()
}

impl Drop for Running {
    fn drop(&mut self) {
        let groups: Vec<Pid> = self
            .0
            .iter()
            .filter_map(|(_, c)| Some(Pid::from_raw(i32::try_from(c.id()).ok()?)))
            .collect();
        for group in &groups {
            // Gone is as good.
            let _ = killpg(*group, Signal::SIGTERM);
        }
        for _ in 0..PATIENCE {
            if self
                .0
                .iter_mut()
                .all(|(_, c)| matches!(c.try_wait(), Ok(Some(_))))
            {
                return;
            }
            thread::sleep(LOOK);
        }
        for (group, (_, child)) in groups.iter().zip(&mut self.0) {
            let _ = killpg(*group, Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}
